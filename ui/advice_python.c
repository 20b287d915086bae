/*
 * Advice with the program's own names: which line to change, which function to
 * hand to a thread or process. The line is that of the innermost coroutine of
 * the user's own, for only there can something be awaited; without a task, that
 * of the callback.
 */
#include "advice.h"
#include "json_get.h"
#include "../tracer/python.h"

#include <inttypes.h>
#include <stdio.h>

struct names {
    char at[300];       /* "api.py:31" */
    char function[200]; /* what it called, "": C code, or a library's coroutine */
    bool coroutine;
    bool before_3_9; /* no asyncio.to_thread */
};

static bool is_python(const json_t *frame)
{
    return ub_json_is(frame, "language", "python");
}

static bool is_users(const json_t *place)
{
    return ub_python_owner_of(ub_json_string(place, "file"), ub_json_string(place, "function")) == UB_PYTHON_USER;
}

static const json_t *python_stack(const struct ub_advice_query *query)
{
    const json_t *frame;
    uint32_t i;
    size_t k;

    for (i = 0; i < query->stacks; i++) {
        json_array_foreach (query->stack[i], k, frame) {
            if (is_python(frame))
                return query->stack[i];
        }
    }
    return NULL;
}

static bool same_place(const json_t *a, const json_t *b)
{
    const char *x = ub_json_string(a, "function"), *y = ub_json_string(b, "function");
    const char *f = ub_json_string(a, "file"), *g = ub_json_string(b, "file");

    return x && y && strcmp(x, y) == 0 && f && g && strcmp(f, g) == 0;
}

/* The innermost coroutine of the user's own that ran, or NULL. */
static const json_t *find_coroutine(const struct ub_advice_query *query)
{
    const json_t *chain = json_object_get(json_object_get(query->slow, "task"), "await");
    size_t i;

    for (i = json_array_size(chain); i-- > 0;) {
        if (is_users(json_array_get(chain, i)))
            return json_array_get(chain, i);
    }
    return NULL;
}

static bool awaited(const struct ub_advice_query *query, const json_t *frame)
{
    const json_t *place;
    size_t i;

    json_array_foreach (json_object_get(json_object_get(query->slow, "task"), "await"), i, place) {
        if (same_place(place, frame))
            return true;
    }
    return false;
}

/* "urllib.request" of ".../lib/python3.11/urllib/request.py", "pay" of "/srv/app/pay.py". */
static void module_of(const char *file, char *buf, size_t size)
{
    static const char *const roots[] = {"/site-packages/", "/dist-packages/", "/lib/python3.", "/lib64/python3."};
    const char *name = ub_path_base(file), *at;
    size_t i, len;

    for (i = 0; i < UB_ARRAY_LEN(roots); i++) {
        at = strstr(file, roots[i]);
        if (!at)
            continue;
        name = at + strlen(roots[i]);
        if (i >= 2) /* what follows is the minor version */
            name = strchr(name, '/') ? strchr(name, '/') + 1 : ub_path_base(file);
        break;
    }
    snprintf(buf, size, "%s", name);
    len = strlen(buf);
    if (len > 3 && strcmp(buf + len - 3, ".py") == 0)
        buf[len - 3] = 0;
    len = strlen(buf);
    if (len > 9 && strcmp(buf + len - 9, "/__init__") == 0)
        buf[len - 9] = 0;
    for (i = 0; buf[i]; i++)
        if (buf[i] == '/')
            buf[i] = '.';
}

/* How the caller, in `from`, would call it. */
static void name_function(const json_t *frame, const char *from, char *buf, size_t size)
{
    const char *function = ub_json_string(frame, "function"), *file = ub_json_string(frame, "file");
    const char *local = function ? strstr(function, "<locals>.") : NULL, *next;
    char module[120];

    *buf = 0;
    while (local && (next = strstr(local + 9, "<locals>.")) != NULL)
        local = next;
    if (local)
        function = local + 9;
    if (!function || !file || strchr(function, '<')) /* a lambda, a comprehension, a module's own code */
        return;
    module_of(file, module, sizeof(module));
    if ((from && strcmp(file, from) == 0) || strchr(module, '<'))
        snprintf(buf, size, "%s", function);
    else
        snprintf(buf, size, "%s.%s", module, function);
}

static bool find_names(const struct ub_advice_query *query, struct names *ret)
{
    const json_t *frames = python_stack(query), *at = find_coroutine(query), *frame;
    size_t i, k;

    *ret = (struct names){.coroutine = at != NULL};
    if (!frames)
        return false;
    if (!at)
        at = json_object_get(query->slow, "callback");
    for (i = 0; i < json_array_size(frames); i++) {
        frame = json_array_get(frames, i);
        ret->before_3_9 |=
            strstr(ub_json_string(frame, "file") ? ub_json_string(frame, "file") : "", "/python3.8/") != NULL;
    }
    for (i = 0; i < json_array_size(frames) && !same_place(json_array_get(frames, i), at); i++)
        ;
    frame = json_array_get(frames, i);
    if (!frame || !ub_json_string(frame, "file"))
        return false;
    snprintf(ret->at, sizeof(ret->at), "%s:%" PRIu64, ub_path_base(ub_json_string(frame, "file")),
             ub_json_u64_or(frame, "line", 0));
    for (k = i; k-- > 0;) {
        if (!is_python(json_array_get(frames, k)))
            continue;
        if (!awaited(query, json_array_get(frames, k)))
            name_function(json_array_get(frames, k), ub_json_string(frame, "file"), ret->function,
                          sizeof(ret->function));
        break;
    }
    return true;
}

static int put_holder(const struct ub_advice_query *query, char *buf, size_t size)
{
    const json_t *holder = json_object_get(json_object_get(query->slow, "gil"), "holder");
    const char *function = ub_json_string(holder, "function"), *file = ub_json_string(holder, "file");

    if (!function)
        return snprintf(buf, size, "another thread");
    return snprintf(buf, size, "%s (%s:%" PRIu64 ")", function, file ? ub_path_base(file) : "?",
                    ub_json_u64_or(holder, "line", 0));
}

static int put_yields(const struct ub_advice_query *query, char *buf, size_t size)
{
    uint64_t count = ub_json_u64_or(json_object_get(query->slow, "yields"), "count", 0);

    return count == 1 ? snprintf(buf, size, "once") : snprintf(buf, size, "%" PRIu64 " times", count);
}

static int put_word(const struct ub_advice_query *query, const struct names *names, const char *word, size_t len,
                    char *buf, size_t size)
{
    const json_t *gil = json_object_get(query->slow, "gil");
    const char *f = *names->function ? names->function : "f", *wait = names->coroutine ? "await " : "";

    if (strncmp(word, "at", len) == 0)
        return snprintf(buf, size, "%s", names->at);
    if (strncmp(word, "f", len) == 0)
        return snprintf(buf, size, "%s", f);
    if (strncmp(word, "process", len) == 0 && ub_json_u64_or(gil, "released", 0) > ub_json_u64_or(gil, "held", 0))
        word = "thread", len = 6; /* C code that lets others run meanwhile */
    if (strncmp(word, "thread", len) == 0 && names->coroutine && !names->before_3_9)
        return snprintf(buf, size, "await asyncio.to_thread(%s, ...)", f);
    if (strncmp(word, "thread", len) == 0)
        return snprintf(buf, size, "%sloop.run_in_executor(None, %s, ...)", wait, f);
    if (strncmp(word, "process", len) == 0)
        return snprintf(buf, size, "%sloop.run_in_executor(pool, %s, ...) with a ProcessPoolExecutor", wait, f);
    if (strncmp(word, "yields", len) == 0)
        return put_yields(query, buf, size);
    if (strncmp(word, "holder", len) == 0)
        return put_holder(query, buf, size);
    return 0;
}

const char *ub_advice_words(const struct ub_advice_query *query, const struct ub_advice *row, char *buf, size_t size)
{
    struct names names;
    const char *p;
    size_t used = 0;

    if (!find_names(query, &names) && !(python_stack(query) && row->python && !strstr(row->python, "{at}")))
        return row->text;
    p = *names.function || !row->python_direct ? row->python : row->python_direct;
    if (!p) {
        snprintf(buf, size, "%s: %s", names.at, row->text);
        return row->program ? buf : row->text;
    }
    for (buf[0] = 0; *p && used + 1 < size;) {
        const char *end = *p == '{' ? strchr(p, '}') : NULL;
        int n = end ? put_word(query, &names, p + 1, (size_t)(end - p) - 1, buf + used, size - used)
                    : snprintf(buf + used, size - used, "%c", *p);

        used += n > 0 ? (size_t)n : 0;
        p = end ? end + 1 : p + 1;
    }
    return buf;
}
