/*
 * Reading fields of a record that may be anything: a missing field, a field of
 * the wrong type and a record that is no object all read as "not there".
 * Nothing here allocates; returned pointers belong to the record.
 */
#ifndef UB_UI_JSON_GET_H
#define UB_UI_JSON_GET_H

#include "../common/base.h"

#include <jansson.h>
#include <string.h>

/* NULL when there is no such string. */
static inline const char *ub_json_string(const json_t *record, const char *key)
{
    return json_string_value(json_object_get(record, key));
}

static inline bool ub_json_is(const json_t *record, const char *key, const char *value)
{
    const char *s = ub_json_string(record, key);

    return s && strcmp(s, value) == 0;
}

/* True and the value when the field is an integer that is not negative. */
static inline bool ub_json_u64(const json_t *record, const char *key, uint64_t *ret)
{
    const json_t *v = json_object_get(record, key);

    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return false;
    *ret = (uint64_t)json_integer_value(v);
    return true;
}

static inline uint64_t ub_json_u64_or(const json_t *record, const char *key, uint64_t otherwise)
{
    uint64_t v;

    return ub_json_u64(record, key, &v) ? v : otherwise;
}

static inline bool ub_json_true(const json_t *record, const char *key)
{
    return json_is_true(json_object_get(record, key));
}

/* For json_t locals: `UB_CLEANUP(ub_json_drop) json_t *x = ...`. */
static inline void ub_json_drop(json_t **json)
{
    json_decref(*json);
}

/* A sum that sticks at the top: durations of hostile recordings add up to anything. */
static inline uint64_t ub_add_saturated(uint64_t a, uint64_t b)
{
    uint64_t sum;

    return __builtin_add_overflow(a, b, &sum) ? UINT64_MAX : sum;
}

/* The last component of a path; the whole of it when there is no '/'. */
static inline const char *ub_path_base(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash && slash[1] ? slash + 1 : path;
}

#endif
