/* Dictionaries of a Python process. */
#include "python_impl.h"

#include <stdlib.h>

#define KEYS_HEAD      48u
#define ENTRIES_MAX    (1u << 20)
#define ATTRIBUTES_MAX 256u

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
    return ret->kind <= KEYS_SPLIT;
}

/* At most `max` entries, values of their own or not. NULL: none. */
static struct ub_python_entry *read_entries(struct ub_python *py, uint64_t address, uint32_t max, bool split,
                                            uint32_t *ret_count)
{
    struct ub_python_entry *list;
    struct keys keys;
    uint8_t *bytes;

    if (!read_keys(py, address, &keys) || keys.count == 0 || (keys.kind == KEYS_SPLIT && !split))
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
    for (uint32_t i = 0; i < keys.count; i++)
        memcpy(&list[i], bytes + (size_t)i * keys.stride + keys.key_at, sizeof(list[i]));
    free(bytes);
    *ret_count = keys.count;
    return list;
}

/* Most keys differ in their length already: one small read instead of three. */
bool ub_python_text_is(struct ub_python *py, uint64_t string, const char *text)
{
    uint64_t length, len = strlen(text);
    char buf[64];

    return ub_python_read_pointer(py, string + py->layout.string_length, &length) && length == len &&
           ub_python_string(py, string, buf, sizeof(buf)) && strcmp(buf, text) == 0;
}

int ub_python_keys_find(struct ub_python *py, uint64_t keys, const char *key)
{
    uint32_t count = 0;
    struct ub_python_entry *list = read_entries(py, keys, ATTRIBUTES_MAX, true, &count);
    int found = -1;

    for (uint32_t i = 0; i < count && found < 0; i++) {
        if (list[i].key && ub_python_text_is(py, list[i].key, key))
            found = (int)i;
    }
    free(list);
    return found;
}

struct ub_python_entry *ub_python_dict(struct ub_python *py, uint64_t dict, uint32_t max, uint32_t *ret_count)
{
    struct ub_python_entry *list;
    uint64_t address;
    uint32_t read = 0, count = 0;

    *ret_count = 0;
    if (!ub_python_is(py, dict, "dict") || !ub_python_read_pointer(py, dict + py->layout.dict_keys, &address))
        return NULL;
    list = read_entries(py, address, max, false, &read);
    for (uint32_t i = 0; i < read; i++) {
        if (list[i].key && list[i].value)
            list[count++] = list[i];
    }
    *ret_count = count;
    return list;
}

uint64_t ub_python_dict_get(struct ub_python *py, uint64_t dict, const char *key)
{
    uint32_t count;
    struct ub_python_entry *list = ub_python_dict(py, dict, 1u << 16, &count);
    uint64_t value = 0;

    for (uint32_t i = 0; i < count && !value; i++) {
        if (ub_python_text_is(py, list[i].key, key))
            value = list[i].value;
    }
    free(list);
    return value;
}
