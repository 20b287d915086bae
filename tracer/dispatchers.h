/*
 * Which frames are an event loop's own: the table that tells the callback from
 * the loop where nothing better is known, and the classes of modules.
 */
#ifndef UB_TRACER_DISPATCHERS_H
#define UB_TRACER_DISPATCHERS_H

#include "frames.h"

/* Role of a function in a module (its file name without folders). `function` may be NULL. */
enum ub_role ub_dispatchers_role(const char *module, const char *function, bool *ret_libc);

/* Role of a module by its whole path: compiled modules of Python and of its packages are not the program's own. */
enum ub_role ub_dispatchers_path_role(const char *path);

/* Recording's name of the loop library that a stack runs in: "libuv", "libevent", "libev", "glib", "sd-event", else
 * "turn". */
const char *ub_dispatchers_loop(const struct ub_named_stack *s);

/*
 * Index of the outermost user frame below the dispatcher: the callback. `loop`
 * (may be NULL) is the same thread's stack while it waited: the frames that
 * both share are the loop. A frame whose name is known goes before an outer one
 * with a guessed name (stripped programs). -ENOENT when there is no user frame.
 */
int ub_dispatchers_callback(const struct ub_named_stack *stall, const struct ub_stack *stall_raw,
                            const struct ub_stack *loop);

/*
 * The same where the loop was never met in its wait: the dispatcher is the
 * function that holds `site`, the return address of the wait call. -ENOENT when
 * that function is not on the stack (it only waits) or not known.
 */
int ub_dispatchers_callback_by_site(const struct ub_named_stack *stall, uint64_t site);

#endif
