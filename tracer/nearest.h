/*
 * The name that somebody probably meant.
 */
#ifndef UB_TRACER_NEAREST_H
#define UB_TRACER_NEAREST_H

/* The name of the list (NULL-terminated) that is nearest to `word`, or NULL: none is near. */
const char *ub_nearest(const char *word, const char *const *names);

#endif
