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
#include "stall.h"

#include <stdio.h>

#define UB_RECORDING_SCHEMA  "unblock-recording"
#define UB_RECORDING_VERSION 1

/* A longer line is skipped: it bounds what a reader needs in memory. The longest honest line, a stack of 256 frames
   with long C++ names, is far below. */
#define UB_RECORDING_LINE_MAX ((size_t)4 << 20)

struct ub_recording_options {
    const char *path;  /* "-": standard output. %p %t %h are already expanded */
    bool force;        /* replace an existing file */
    bool append;       /* add to it */
    bool lock;         /* -EWOULDBLOCK when another writer that asked for this has the file open */
    uint64_t max_size; /* bytes; goes on in PATH.1, PATH.2 ... when reached; 0: never */
};

struct ub_recording_writer;

/*
 * -EEXIST without force or append; another -errno of open. Mode 0600. A pipe,
 * terminal or device is written to as it is, without force.
 * With `force` a regular file is replaced by a new one: nobody who reads the old one is disturbed.
 */
int ub_recording_create(const struct ub_recording_options *options, struct ub_recording_writer **ret);
struct ub_sink ub_recording_sink(struct ub_recording_writer *w);
/* Lines not written so far. Any thread. */
uint64_t ub_recording_lost(const struct ub_recording_writer *w);
/* Closes; returns 0 or the first -errno that a write met. *ret_lost: lines not written (may be NULL). */
int ub_recording_close(struct ub_recording_writer *w, uint64_t *ret_lost);

/*
 * A template with %p (pid) %t (UTC time) %h (host) %%, or for NULL
 * "unblock-<program>-<pid>-<UTC time>.jsonl" (`program` may be a path). Any
 * other % stays as it is. Caller frees; NULL: out of memory.
 */
char *ub_recording_name(const char *template, const char *program, long pid);

/*
 * The folder for recordings of programs that nobody gave a name for: /var/log/unblock
 * (root), $XDG_STATE_HOME/unblock, ~/.local/state/unblock, or at last
 * /tmp/unblock-UID. Made when missing, for its user only. Caller frees; NULL: there is none, see errno.
 */
char *ub_recording_folder(void);

/*
 * A private folder of this user: made, or found to be a real folder (no link),
 * ours, and not writable by others. 0 or -errno (-EPERM: it is somebody else's).
 */
int ub_private_folder(const char *path);

struct ub_recording_stats {
    uint64_t lines;   /* readable ones */
    uint64_t torn;    /* 1 when the last line is cut short: the writer was killed or the disk full */
    uint64_t skipped; /* other unreadable lines */
    bool ended;       /* an `end` line was seen */
};

/*
 * Calls `line` for every readable object of the stream; memory is bounded by
 * the longest line. A recording must begin with a `header` line of a version
 * we know, else nothing is called:
 * -ENODATA: empty; -EINVAL: not a recording; -EPROTONOSUPPORT: of a newer version.
 * -EIO and other -errno from reading (what was read before has been delivered).
 */
int ub_recording_read(FILE *file, const struct ub_sink *sink, struct ub_recording_stats *ret_stats);

/* The same; lines of stalls go to `taker` first, and to `sink` only if it refuses them. `taker` may be NULL. */
int ub_recording_read_fast(FILE *file, const struct ub_sink *sink, const struct ub_taker *taker,
                           struct ub_recording_stats *ret_stats);

/*
 * The same in steps, for a file that grows: each read goes on to the end that the
 * file has by now. Errors as above; -ENODATA comes from the end only. `sink` and `taker` must stay.
 */
struct ub_recording_reader;
struct ub_recording_reader *ub_recording_reader_new(const struct ub_sink *sink, const struct ub_taker *taker);
int ub_recording_reader_read(struct ub_recording_reader *r, FILE *file);
int ub_recording_reader_end(struct ub_recording_reader *r, struct ub_recording_stats *ret_stats);
void ub_recording_reader_free(struct ub_recording_reader *r); /* NULL is fine */

#endif
