/*
 * What the program to be run is: found as execvp(3) finds it, and whether the
 * agent can enter it.
 */
#ifndef UB_UI_TARGET_H
#define UB_UI_TARGET_H

#include "../common/base.h"

enum ub_target {
    UB_TARGET_FINE,    /* dynamic, our machine; or not known to be anything else */
    UB_TARGET_STATIC,  /* no dynamic loader: LD_PRELOAD says nothing to it (its dynamic children may be entered) */
    UB_TARGET_MACHINE, /* 32-bit, or of another machine */
    UB_TARGET_MUSL,    /* another C library: it would fail on an agent built for glibc */
    UB_TARGET_SETUID,  /* gains privileges: its loader ignores LD_PRELOAD */
};

/*
 * Path of command `name` as execvp would choose it, into `path`. 0; -ENOENT;
 * -EACCES: found, but it may not be executed, or it is a folder (-EISDIR).
 */
int ub_target_find(const char *name, char *path, size_t size);

/*
 * Looks at the file, through "#!" lines to the interpreter, whose path is then in
 * `ret_interpreter` (size bytes; "" when it is no script; may name a file that does not exist).
 */
enum ub_target ub_target_look(const char *path, char *ret_interpreter, size_t size);

/* Whether LD_PRELOAD does no harm there. */
bool ub_target_may_preload(enum ub_target target);

/* One line about a target that cannot be entered: what it is and what to do. NULL for UB_TARGET_FINE. */
const char *ub_target_warning(enum ub_target target);

#endif
