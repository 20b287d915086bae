/* What an export writes once into a list and names by its place in it from then on: a table from a pointer to that
 * place. */
#ifndef UB_UI_PLACES_H
#define UB_UI_PLACES_H

#include <jansson.h>

struct ub_places; /* NULL: none yet */

/* The place of `what`, or -1 when it has none. */
json_int_t ub_places_find(const struct ub_places *places, const void *what);
/* Borrows `what`, which has no place yet. 0 or -ENOMEM: it has none then, either. */
int ub_places_add(struct ub_places **places, const void *what, json_int_t place);
void ub_places_clear(struct ub_places **places);

#endif
