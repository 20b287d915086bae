/*
 * uthash, told not to end the process when memory is short: an entry that did
 * not get in has no table (UB_HASHED is false) and its owner frees it.
 */
#ifndef UB_UI_HASH_H
#define UB_UI_HASH_H

#define HASH_NONFATAL_OOM 1
#include <uthash.h>

#define UB_HASHED(entry) ((entry)->hh.tbl != NULL)

#endif
