/*
 * uthash, told not to end the process when memory is short: an entry that did
 * not get in has no table (UB_HASHED is false) and its owner frees it.
 */
#ifndef UB_UI_HASH_H
#define UB_UI_HASH_H

#define HASH_NONFATAL_OOM 1
#include <uthash.h>

#define UB_HASHED(entry) ((entry)->hh.tbl != NULL)

/*
 * Empties a table that is given up, calling `destroy` for each entry:
 *
 *     UB_HASH_DESTROY(struct ub_site_entry, m->site, site_free);
 */
#define UB_HASH_DESTROY(type, table, destroy)                                                                          \
    do {                                                                                                               \
        type *ub_entry = (table), *ub_next;                                                                            \
                                                                                                                       \
        HASH_CLEAR(hh, table); /* leaves the entries and their order alone */                                          \
        for (; ub_entry; ub_entry = ub_next) {                                                                         \
            ub_next = ub_entry->hh.next;                                                                               \
            destroy(ub_entry);                                                                                         \
        }                                                                                                              \
    } while (0)

#endif
