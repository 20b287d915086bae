/*
 * Processes of a run that loaded the agent but cannot be watched, because they
 * were executed by another user than the watcher's (setpriv, gosu, su-exec) or
 * in another user namespace (unshare): the run's memory is closed to them.
 */
#ifndef UB_UI_STRANGERS_H
#define UB_UI_STRANGERS_H

#include "../tracer/watch.h"

#define UB_STRANGERS_MAX 16

struct ub_strangers {
    pid_t told[UB_STRANGERS_MAX];
    uint32_t count;
};

/* Looks at `pid` and all that come from it; writes a note for each one that is new. */
void ub_strangers_look(struct ub_strangers *s, struct ub_watch *watch, pid_t pid);

#endif
