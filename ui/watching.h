/*
 * What all who watch have in common, whether they started the program (`run`) or
 * found it running (`trace`): around one watch a recording, totals, live text,
 * metrics, the control socket, and what is said at the end. Trouble is told here.
 */
#ifndef UB_UI_WATCHING_H
#define UB_UI_WATCHING_H

#include "model.h"
#include "recording.h"
#include "rules.h"
#include "settings.h"

#include "../tracer/watch.h"

#include <limits.h>

struct ub_watching {
    const char *command; /* "run": how messages begin, and the mode that `ps` shows */
    const struct ub_settings *set;
    char *path;             /* of the recording; NULL before ub_watching_open */
    struct ub_watch *watch; /* NULL: not yet, or no longer */
    struct ub_model *model;
    struct ub_watch_totals totals; /* when it has stopped */
    uint32_t offload;              /* enum ub_offload_mode that it was started with */
    void (*detach)(void *self);    /* somebody asks for the end of it (control.h); NULL: they cannot */

    /* its own */
    struct ub_recording_writer *writer;
    struct ub_text_live *text;
    struct ub_sink text_sink;
    struct ub_rules suppress;
    struct ub_metrics *metrics;
    struct ub_control *control;
    char full_path[PATH_MAX]; /* of the recording, for those who ask */
    struct ub_sink sinks[4];  /* the watch refers to them until it stops */
};

/* What the options say together. 0, or -EINVAL and why. */
int ub_watching_settle(struct ub_settings *set, char *why);

/* Reads the list of --suppress. 0, or -errno and why. */
int ub_watching_init(struct ub_watching *w, const char *command, const struct ub_settings *set, char *why);

/* Creates the recording; without -o it is named after the program. 0 or -errno. */
int ub_watching_open(struct ub_watching *w, const char *program, pid_t pid);

/* Starts the watch with `options`, whose sinks are filled in here; `pid`: of the program's first process. 0 or -errno.
 */
int ub_watching_start(struct ub_watching *w, struct ub_watch_options *options, pid_t pid);

/* The program ended with `status` (or goes on: `ended` false): the recording is closed, and the verdict told. */
void ub_watching_stop(struct ub_watching *w, bool ended, int status);

/* Nothing ran: a recording of nothing is not left behind, unless it was there before. */
void ub_watching_discard(struct ub_watching *w);

/* The longest stall that --fail-on does not allow, or 0. */
uint64_t ub_watching_too_long(const struct ub_watching *w);
/* Says that it was too long, in the last line, whatever else is silent; the exit status. */
int ub_watching_fail(const struct ub_watching *w, uint64_t worst_ns);

/*
 * The signals that end a watch on a process that is not ours, as a descriptor to be
 * polled: blocked in this thread and all that it starts. `more`: one more, or 0.
 * -1 and errno.
 */
int ub_watching_signals(int more);

void ub_watching_clear(struct ub_watching *w);

#endif
