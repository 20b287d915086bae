/*
 * Attributes of instances by name: in their dict, or in values whose names their
 * type keeps; and slots.
 */
#include "python_impl.h"

#include <stdlib.h>

#define MEMBERS_MAX 64
#define BASES_MAX   8
#define MEMBER_SIZE 40u /* PyMemberDef: name, type, offset, flags, doc */
#define MEMBER_AT   16u

/* tp_flags */
#define FLAG_INLINE_VALUES (1u << 2) /* 3.13 */
#define FLAG_MANAGED_DICT  (1u << 4) /* 3.11 and later */
#define FLAG_HEAP_TYPE     (1u << 9)

/* Of an instance whose values are an array: the names are its type's. */
static uint64_t in_values(struct ub_python *py, uint64_t keys, uint64_t values, const char *name)
{
    int i = ub_python_keys_find(py, keys, name);
    uint64_t value;

    return i >= 0 && ub_python_read_pointer(py, values + py->layout.values_first + 8 * (uint64_t)i, &value) ? value : 0;
}

static uint64_t in_dict(struct ub_python *py, uint64_t dict, const char *name)
{
    uint64_t keys, values;

    if (!dict || !ub_python_is(py, dict, "dict") || !ub_python_read_pointer(py, dict + py->layout.dict_keys, &keys) ||
        !ub_python_read_pointer(py, dict + py->layout.dict_values, &values))
        return 0;
    return values ? in_values(py, keys, values, name) : ub_python_dict_get(py, dict, name);
}

/* How instances of that type keep their attributes: not all do it in their version's way. */
static enum ub_python_instance way_of(const struct ub_python_layout *l, uint64_t flags)
{
    return l->instance != UB_PYTHON_DICT_AT && flags & FLAG_MANAGED_DICT && flags & FLAG_HEAP_TYPE ? l->instance
                                                                                                   : UB_PYTHON_DICT_AT;
}

uint64_t ub_python_attribute(struct ub_python *py, uint64_t object, const char *name)
{
    const struct ub_python_layout *l = &py->layout;
    uint64_t type, keys, flags, at = 0, word = 0;

    if (!ub_python_read_pointer(py, object + UB_PYTHON_OBJECT_TYPE, &type) ||
        !ub_python_read_pointer(py, type + UB_PYTHON_TYPE_FLAGS, &flags) || !(flags & FLAG_HEAP_TYPE) ||
        !ub_python_read_pointer(py, type + l->type_keys, &keys))
        return 0;
    switch (way_of(l, flags)) {
    case UB_PYTHON_DICT_AT:
        if (!ub_python_read_pointer(py, type + UB_PYTHON_TYPE_DICT_AT, &at) || at == 0 || at > 4096)
            return 0;
        return ub_python_read_pointer(py, object + at, &word) ? in_dict(py, word, name) : 0;
    case UB_PYTHON_VALUES_BEFORE:
        if (ub_python_read_pointer(py, object - 32, &word) && word)
            return in_values(py, keys, word, name);
        return ub_python_read_pointer(py, object - 24, &word) ? in_dict(py, word, name) : 0;
    case UB_PYTHON_TAGGED_BEFORE:
        if (!ub_python_read_pointer(py, object - 24, &word))
            return 0;
        return word & 1 ? in_values(py, keys, word + 1, name) : in_dict(py, word, name);
    case UB_PYTHON_INLINE:
        if ((ub_python_read_pointer(py, object - 24, &word) && word) || !(flags & FLAG_INLINE_VALUES))
            return in_dict(py, word, name);
        if (!ub_python_read_pointer(py, type + UB_PYTHON_TYPE_SIZE_AT, &at) || at > 4096)
            return 0;
        return in_values(py, keys, object + at, name);
    }
    return 0;
}

uint32_t ub_python_slot(struct ub_python *py, uint64_t type, const char *name)
{
    uint64_t members, at, text;
    char found[32];

    if (!ub_python_read_pointer(py, type + UB_PYTHON_TYPE_MEMBERS, &members) || !members)
        return 0;
    for (uint32_t i = 0; i < MEMBERS_MAX; i++, members += MEMBER_SIZE) {
        if (!ub_python_read_pointer(py, members, &text) || !text)
            return 0;
        memset(found, 0, sizeof(found));
        /* It may stand at the end of its mapping. */
        for (size_t k = 0;
             k + 9 < sizeof(found) && !memchr(found, '\0', k) && ub_python_read(py, text + k, found + k, 8);)
            k += 8;
        if (strcmp(found, name) == 0)
            return ub_python_read_pointer(py, members + MEMBER_AT, &at) && at < 4096 ? (uint32_t)at : 0;
    }
    return 0;
}

uint32_t ub_python_base_slot(struct ub_python *py, uint64_t type, const char *name)
{
    uint32_t at = 0;

    for (int i = 0; type && i < BASES_MAX && !at; i++) {
        at = ub_python_slot(py, type, name);
        if (!ub_python_read_pointer(py, type + UB_PYTHON_TYPE_BASE, &type))
            break;
    }
    return at;
}
