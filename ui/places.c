#include "places.h"
#include "hash.h"

#include <errno.h>
#include <stdlib.h>

struct ub_places {
    const void *what;
    json_int_t place;
    UT_hash_handle hh;
};

json_int_t ub_places_find(const struct ub_places *places, const void *what)
{
    const struct ub_places *found;

    HASH_FIND_PTR(places, &what, found);
    return found ? found->place : -1;
}

int ub_places_add(struct ub_places **places, const void *what, json_int_t place)
{
    struct ub_places *entry = calloc(1, sizeof(*entry));

    if (!entry)
        return -ENOMEM;
    entry->what = what;
    entry->place = place;
    HASH_ADD_PTR(*places, what, entry);
    if (!UB_HASHED(entry)) {
        free(entry);
        return -ENOMEM;
    }
    return 0;
}

static void destroy(struct ub_places *entry)
{
    free(entry);
}

void ub_places_clear(struct ub_places **places)
{
    UB_HASH_DESTROY(struct ub_places, *places, destroy);
}
