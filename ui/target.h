/*
 * What the program to be run is: found as execvp(3) finds it, and whether the
 * agent can enter it.
 */
#ifndef UB_UI_TARGET_H
#define UB_UI_TARGET_H

#include "../common/image.h"

/*
 * Path of command `name` as execvp would choose it, into `path`. 0; -ENOENT;
 * -EACCES: found, but it may not be executed, or it is a folder (-EISDIR).
 */
int ub_target_find(const char *name, char *path, size_t size);

/*
 * Looks at the file, through "#!" lines to the interpreter, whose path is then in
 * `ret_interpreter` (size bytes; "" when it is no script; may name a file that does not exist).
 */
enum ub_image ub_target_look(const char *path, char *ret_interpreter, size_t size);

/* One line about a target that cannot be entered: what it is and what to do. NULL for UB_IMAGE_FINE. */
const char *ub_target_warning(enum ub_image target);

#endif
