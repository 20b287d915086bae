/* Dictionaries of a Python process. */
#include "python_impl.h"

#include <stdlib.h>

#define KEYS_HEAD   48u
#define ENTRIES_MAX (1u << 20)

enum { KEYS_GENERAL, KEYS_UNICODE, KEYS_SPLIT };

struct keys {
    uint64_t entries; /* address of the first */
    uint32_t count;
    uint32_t stride, key_at;
    uint32_t kind;
};

/* Bytes of the hash index before the entries; 0: nonsense. */
static uint64_t index_bytes(const struct ub_python_layout *l, const uint8_t *head)
{
    uint64_t size;

    if (l->keys_index_bytes != UB_PYTHON_NONE) {
        uint8_t log2 = head[l->keys_index_bytes];

        return log2 < 40 ? (uint64_t)1 << log2 : 0;
    }
    size = ub_python_u64(head, KEYS_HEAD, l->keys_size);
    if (size == 0 || size > (uint64_t)1 << 36)
        return 0;
    return size * (size <= 0xff ? 1u : size <= 0xffff ? 2u : size <= 0xffffffffu ? 4u : 8u);
}

static bool read_keys(const struct ub_python *py, uint64_t address, struct keys *ret)
{
    const struct ub_python_layout *l = &py->layout;
    uint8_t head[KEYS_HEAD];
    uint64_t index, count;

    if (!ub_python_read(py, address, head, sizeof(head)))
        return false;
    index = index_bytes(l, head);
    count = ub_python_u64(head, sizeof(head), l->keys_entries);
    if (index == 0 || count > ENTRIES_MAX)
        return false;
    ret->kind = l->keys_kind != UB_PYTHON_NONE ? head[l->keys_kind] : KEYS_GENERAL;
    ret->entries = address + l->keys_indices + index;
    ret->count = (uint32_t)count;
    ret->stride = ret->kind == KEYS_GENERAL ? 24 : 16;
    ret->key_at = ret->kind == KEYS_GENERAL ? 8 : 0;
    return ret->kind <= KEYS_UNICODE; /* split ones belong to instances, whose dictionaries are not read here */
}

struct ub_python_entry *ub_python_dict(struct ub_python *py, uint64_t dict, uint32_t max, uint32_t *ret_count)
{
    struct ub_python_entry *list;
    uint64_t address;
    struct keys keys;
    uint32_t count = 0;
    uint8_t *bytes;

    *ret_count = 0;
    if (!ub_python_is(py, dict, "dict") || !ub_python_read_pointer(py, dict + py->layout.dict_keys, &address) ||
        !read_keys(py, address, &keys) || keys.count == 0)
        return NULL;
    if (keys.count > max)
        keys.count = max;
    bytes = malloc((size_t)keys.count * keys.stride);
    list = calloc(keys.count, sizeof(*list));
    if (!bytes || !list || !ub_python_read(py, keys.entries, bytes, (size_t)keys.count * keys.stride)) {
        free(bytes);
        free(list);
        return NULL;
    }
    for (uint32_t i = 0; i < keys.count; i++) {
        const uint8_t *entry = bytes + (size_t)i * keys.stride;

        memcpy(&list[count].key, entry + keys.key_at, 8);
        memcpy(&list[count].value, entry + keys.key_at + 8, 8);
        if (list[count].key && list[count].value)
            count++;
    }
    free(bytes);
    *ret_count = count;
    return list;
}

uint64_t ub_python_dict_get(struct ub_python *py, uint64_t dict, const char *key)
{
    size_t len = strlen(key);
    uint32_t count;
    struct ub_python_entry *list = ub_python_dict(py, dict, 1u << 16, &count);
    uint64_t value = 0;

    for (uint32_t i = 0; i < count && !value; i++) {
        char text[64];
        uint64_t length;

        /* Most keys differ in their length already: one small read instead of three. */
        if (ub_python_read_pointer(py, list[i].key + py->layout.string_length, &length) && length == len &&
            ub_python_string(py, list[i].key, text, sizeof(text)) && strcmp(text, key) == 0)
            value = list[i].value;
    }
    free(list);
    return value;
}
