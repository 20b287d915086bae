/*
 * Code objects: what a frame executes. Read once each and kept: their names,
 * file and line table do not change.
 */
#include "python_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define LINES_MAX  (256u * 1024u)
#define BYTES_MAX  (64u << 20) /* of all code objects together: a hostile program has as many as it likes */
#define STRING_MAX 1024
#define LOCALS_MAX 64

static bool contains(const char *text, const char *const *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (strstr(text, list[i]))
            return true;
    }
    return false;
}

static bool is_library(const char *file)
{
    static const char *const folders[] = {"/lib/python3.",   "/lib64/python3.", "/lib/python3/", "/lib/python2.",
                                          "/site-packages/", "/dist-packages/", "/lib-dynload/", ".zip/asyncio/"};

    return strncmp(file, "<frozen", 7) == 0 || contains(file, folders, UB_ARRAY_LEN(folders));
}

static bool ends_in(const char *text, const char *end)
{
    size_t len = strlen(text), end_len = strlen(end);

    return len >= end_len && strcmp(text + len - end_len, end) == 0;
}

enum ub_python_owner ub_python_owner_of(const char *file, const char *function)
{
    static const struct {
        const char *file, *function;
    } dispatchers[] = {
        {"/asyncio/events.py", "_run"},
        {"/asyncio/base_events.py", "_run_once"},
        {"/asyncio/base_events.py", "run_forever"},
        {"/asyncio/base_events.py", "run_until_complete"},
        {"/asyncio/runners.py", "run"},
        {"/uvloop/__init__.py", "run"},
    };
    const char *last;

    if (!file || !is_library(file))
        return UB_PYTHON_USER;
    last = function ? strrchr(function, '.') : NULL;
    last = last ? last + 1 : function;
    for (size_t i = 0; last && i < UB_ARRAY_LEN(dispatchers); i++) {
        if (strcmp(last, dispatchers[i].function) == 0 && ends_in(file, dispatchers[i].file))
            return UB_PYTHON_LOOP;
    }
    return UB_PYTHON_LIBRARY;
}

/* A script is often named as it was typed, relative to where it was started. */
static char *absolute(pid_t pid, const char *file)
{
    char link[64], path[4096 + STRING_MAX];
    ssize_t len;

    if (*file == '/' || *file == '<' || *file == '\0')
        return strdup(file);
    snprintf(link, sizeof(link), "/proc/%d/cwd", (int)pid);
    len = readlink(link, path, 4096);
    if (len <= 0)
        return strdup(file);
    snprintf(path + len, sizeof(path) - (size_t)len, "/%s", file);
    return access(path, F_OK) == 0 ? strdup(path) : strdup(file);
}

static void code_free(struct ub_python_known *k)
{
    while (k) {
        struct ub_python_known *older = k->older;

        free((char *)k->code.function);
        free((char *)k->code.file);
        free((uint8_t *)k->code.lines);
        free(k);
        k = older;
    }
}

/* The variables that may hold an HTTP request (python_request.c). */
static void find_locals(struct ub_python *py, uint64_t tuple, struct ub_python_code *code)
{
    uint64_t size, names[LOCALS_MAX];

    code->scope = code->request = -1;
    if (!ub_python_is(py, tuple, "tuple") || !ub_python_read_pointer(py, tuple + UB_PYTHON_VAR_SIZE, &size) ||
        size == 0)
        return;
    if (size > LOCALS_MAX)
        size = LOCALS_MAX;
    if (!ub_python_read(py, tuple + UB_PYTHON_TUPLE_ITEMS, names, size * sizeof(*names)))
        return;
    for (int i = 0; i < (int)size; i++) {
        if (code->scope < 0 && ub_python_text_is(py, names[i], "scope"))
            code->scope = i;
        if (code->request < 0 && ub_python_text_is(py, names[i], "request"))
            code->request = i;
    }
}

static struct ub_python_known *read_code(struct ub_python *py, const uint8_t *head, size_t size)
{
    const struct ub_python_layout *l = &py->layout;
    struct ub_python_known *k = calloc(1, sizeof(*k));
    char function[STRING_MAX], file[STRING_MAX];

    if (!k)
        return NULL;
    if (!(l->code_qualname != UB_PYTHON_NONE &&
          ub_python_string(py, ub_python_u64(head, size, l->code_qualname), function, sizeof(function))) &&
        !ub_python_string(py, ub_python_u64(head, size, l->code_name), function, sizeof(function)))
        strcpy(function, "?");
    if (!ub_python_string(py, ub_python_u64(head, size, l->code_filename), file, sizeof(file)))
        strcpy(file, "?");
    k->code.layout = l;
    k->code.flags = ub_python_u32(head, size, l->code_flags);
    find_locals(py, ub_python_u64(head, size, l->code_locals), &k->code);
    k->code.first_line = (int)ub_python_u32(head, size, l->code_first_line);
    k->code.lines = ub_python_bytes(py, ub_python_u64(head, size, l->code_lines), LINES_MAX, &k->code.lines_size);
    k->code.function = strdup(function);
    k->code.file = absolute(py->pid, file);
    if (!k->code.function || !k->code.file) {
        code_free(k);
        return NULL;
    }
    k->code.owner = ub_python_owner_of(k->code.file, k->code.function);
    py->code_bytes += k->code.lines_size + sizeof(*k) + strlen(function) + strlen(file);
    return k;
}

static void set_key(const struct ub_python_layout *l, const uint8_t *head, size_t size, uint64_t key[4])
{
    key[0] = ub_python_u64(head, size, l->code_name);
    key[1] = ub_python_u64(head, size, l->code_filename);
    key[2] = ub_python_u64(head, size, l->code_lines);
    key[3] = ub_python_u32(head, size, l->code_first_line);
}

const struct ub_python_code *ub_python_code(struct ub_python *py, uint64_t address, uint64_t *ret_bytes)
{
    const struct ub_python_layout *l = &py->layout;
    struct ub_python_known *known, *fresh;
    uint8_t head[256];
    size_t size = l->code_size < sizeof(head) ? l->code_size : sizeof(head);
    uint64_t key[4];

    if (!ub_python_read(py, address, head, size) ||
        strcmp(ub_python_type_name(py, ub_python_u64(head, size, UB_PYTHON_OBJECT_TYPE)), "code") != 0)
        return NULL;
    *ret_bytes = l->code_bytes != UB_PYTHON_NONE ? address + l->code_bytes : 0;
    set_key(l, head, size, key);
    HASH_FIND(hh, py->codes, &address, sizeof(address), known);
    if (known && memcmp(known->key, key, sizeof(key)) == 0)
        return &known->code;
    if (py->code_count >= UB_PYTHON_CODES_MAX || py->code_bytes >= BYTES_MAX)
        return NULL;
    fresh = read_code(py, head, size);
    if (!fresh)
        return NULL;
    py->code_count++;
    fresh->address = address;
    memcpy(fresh->key, key, sizeof(key));
    fresh->older = known;
    if (known)
        HASH_DEL(py->codes, known);
    HASH_ADD(hh, py->codes, address, sizeof(fresh->address), fresh);
    return &fresh->code;
}

const struct ub_python_code *ub_python_code_at(struct ub_python *py, uint64_t address)
{
    uint64_t bytes;

    return py->gone ? NULL : ub_python_code(py, address, &bytes);
}

void ub_python_codes_free(struct ub_python *py)
{
    struct ub_python_known *k = py->codes, *next;

    HASH_CLEAR(hh, py->codes);
    for (; k; k = next) {
        next = k->hh.next;
        code_free(k);
    }
}
