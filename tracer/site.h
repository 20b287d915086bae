/*
 * The call site of a stall: a hash that is the same for the same bug in every
 * run, on every host and after a rebuild. Made of names, never of addresses or
 * line numbers.
 */
#ifndef UB_TRACER_SITE_H
#define UB_TRACER_SITE_H

#include "frames.h"

#define UB_SITE_SIZE 9 /* eight hexadecimal digits and NUL */

/*
 * `stack`: the representative one, or NULL when none was taken; `callback`: index of
 * its callback frame or negative; `call`: name of the blocking call or NULL;
 * `cause` and `program` serve where there is nothing better.
 */
void ub_site_hash(const struct ub_named_stack *stack, int callback, const char *call, const char *cause,
                  const char *program, char ret[UB_SITE_SIZE]);

#endif
