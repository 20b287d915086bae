/*
 * Recordings on disk: JSON Lines, see README "The recording" and
 * ui/recording.schema.json.
 *
 * Writing: a sink for the tracer. Trouble (full disk, vanished folder) is
 * counted and reported once at the end, never to the target.
 * Reading: input is hostile. A line that is torn, too long, too deep, not UTF-8
 * or not an object is skipped and counted; unknown types and fields are kept
 * as they are.
 */
#ifndef UB_UI_RECORDING_H
#define UB_UI_RECORDING_H

#include "../tracer/record.h"

#include <stdio.h>

struct ub_recording_options {
    const char *path;  /* "-": standard output. %p %t %h are already expanded */
    bool force;        /* replace an existing file */
    bool append;       /* add to it */
    uint64_t max_size; /* bytes; rotates to PATH.1, PATH.2 ...; 0: never */
};

struct ub_recording_writer;

/* -EEXIST without force or append; another -errno of open. Mode 0600. */
int ub_recording_create(const struct ub_recording_options *options, struct ub_recording_writer **ret);
struct ub_sink ub_recording_sink(struct ub_recording_writer *w);
/* Closes; returns 0 or the first -errno that a write met. *ret_lost: lines not written (may be NULL). */
int ub_recording_close(struct ub_recording_writer *w, uint64_t *ret_lost);

/* "unblock-<program>-<pid>-<UTC time>.jsonl" or a template with %p %t %h (and %%). Caller frees. */
char *ub_recording_name(const char *template, const char *program, long pid);

struct ub_recording_stats {
    uint64_t lines, torn, skipped;
    bool ended; /* an `end` line was seen */
};

/*
 * Calls `line` for every readable object of the stream. A recording must begin
 * with a `header` line of a version we know: else -EINVAL (nothing was called).
 * -EIO and other -errno from reading.
 */
int ub_recording_read(FILE *file, const struct ub_sink *sink, struct ub_recording_stats *ret_stats);

#endif
