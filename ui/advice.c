#include "advice.h"
#include "json_get.h"

/* `word` in "a|b*|c". */
static bool in_list(const char *list, const char *word)
{
    while (word && list && *list) {
        size_t len = strcspn(list, "|");

        if (len > 0 && list[len - 1] == '*' ? strncmp(list, word, len - 1) == 0
                                            : strlen(word) == len && strncmp(list, word, len) == 0)
            return true;
        list += len + (list[len] == '|');
    }
    return false;
}

static bool is_in_stack(const json_t *stack, const char *list)
{
    const json_t *frame;
    size_t k;

    json_array_foreach (stack, k, frame) {
        if (!ub_json_true(frame, "nearest") && in_list(list, ub_json_string(frame, "function")))
            return true;
    }
    return false;
}

/* On a third of the stacks: one look at a short collection in the midst of a long loop says nothing of the loop. */
static bool on_stack(const struct ub_advice_query *query, const char *list)
{
    uint32_t hits = 0;

    for (uint32_t i = 0; i < query->stacks; i++)
        hits += is_in_stack(query->stack[i], list);
    return hits > 0 && 3 * hits >= query->stacks;
}

/* The installed package that a Python file belongs to, or the module of the standard library; "". */
static void package_of(const char *file, char *buf, size_t size)
{
    static const char *const roots[] = {"/site-packages/", "/dist-packages/", "/lib/python3.", "/lib64/python3."};
    const char *at = NULL;
    size_t i;

    *buf = 0;
    for (i = 0; i < UB_ARRAY_LEN(roots) && !at; i++) {
        at = strstr(file, roots[i]);
        if (at)
            at += strlen(roots[i]);
        if (at && i >= 2) { /* what follows is the minor version */
            at = strchr(at, '/');
            at = at ? at + 1 : NULL;
        }
    }
    if (at)
        snprintf(buf, size, "%.*s", (int)strcspn(at, "/."), at);
}

static bool package_on_stack(const struct ub_advice_query *query, const char *list)
{
    const json_t *frame;
    char package[64];
    uint32_t i;
    size_t k;

    for (i = 0; i < query->stacks; i++) {
        json_array_foreach (query->stack[i], k, frame) {
            const char *file = ub_json_is(frame, "language", "python") ? ub_json_string(frame, "file") : NULL;

            if (!file)
                continue;
            package_of(file, package, sizeof(package));
            if (*package && in_list(list, package))
                return true;
        }
    }
    return false;
}

static enum ub_advice_fd fd_kind(const json_t *call)
{
    const char *path = ub_json_string(call, "fd_path");

    if (!path)
        return UB_ADVICE_FD_ANY;
    if (strncmp(path, "/dev/pts/", 9) == 0 || strncmp(path, "/dev/tty", 8) == 0)
        return UB_ADVICE_FD_TERMINAL;
    if (*path == '/')
        return UB_ADVICE_FD_FILE;
    if (strncmp(path, "socket", 6) == 0)
        return UB_ADVICE_FD_SOCKET;
    return strncmp(path, "pipe", 4) == 0 ? UB_ADVICE_FD_PIPE : UB_ADVICE_FD_ANY;
}

/*
 * The library whose loop this is. Where callbacks are not known the recording
 * says "turn"; then the stack tells, by modules and by functions that were
 * linked into the program.
 */
static const char *loop_library(const struct ub_advice_query *query)
{
    static const struct {
        const char *loop, *modules, *functions;
    } libraries[] = {
        {"libuv", "libuv.*", "uv_run"},
        {"libevent", "libevent*", "event_base_loop"},
        {"libev", "libev.*", "ev_run"},
        {"glib", "libglib-2*|libgio-2*", "g_main_context_iterate|g_main_loop_run"},
        {"sd-event", "libsystemd*", "sd_event_run|sd_event_loop"},
    };
    size_t i, k, n;
    const json_t *frame;

    if (query->loop && strcmp(query->loop, "turn") != 0)
        return query->loop;
    for (i = 0; i < UB_ARRAY_LEN(libraries); i++) {
        if (on_stack(query, libraries[i].functions))
            return libraries[i].loop;
        for (n = 0; n < query->stacks; n++) {
            json_array_foreach (query->stack[n], k, frame) {
                const char *module = ub_json_string(frame, "module");

                if (module && in_list(libraries[i].modules, ub_path_base(module)))
                    return libraries[i].loop;
            }
        }
    }
    return "turn";
}

static bool has_language(const struct ub_advice_query *query, const char *language)
{
    const json_t *frame;
    uint32_t i;
    size_t k;

    for (i = 0; i < query->stacks; i++) {
        json_array_foreach (query->stack[i], k, frame) {
            if (ub_json_is(frame, "language", language))
                return true;
        }
    }
    return false;
}

static bool fits(const struct ub_advice *row, const struct ub_advice_query *query, const char *loop)
{
    if (row->program && !in_list(row->program, query->program) &&
        !(strcmp(row->program, "python*") == 0 &&
          has_language(query, "python"))) /* Python inside of uwsgi and the like */
        return false;
    if (row->loop && !in_list(row->loop, loop))
        return false;
    if (row->cause && !in_list(row->cause, ub_model_cause_name(query->cause)))
        return false;
    if (row->call && !in_list(row->call, ub_json_string(query->call, "name")) &&
        !in_list(row->call, ub_json_string(query->call, "via")))
        return false;
    if (row->fd != UB_ADVICE_FD_ANY && row->fd != fd_kind(query->call))
        return false;
    if (row->yields && ub_json_u64_or(json_object_get(query->slow, "yields"), "count", 0) == 0)
        return false;
    if (row->whole && !json_is_array(json_object_get(query->slow, "callbacks")))
        return false;
    if (row->script && !has_language(query, "js"))
        return false;
    if (row->package && !package_on_stack(query, row->package))
        return false;
    return !row->function || on_stack(query, row->function);
}

const struct ub_advice *ub_advice_find(const struct ub_advice_query *query)
{
    const char *loop = loop_library(query);
    size_t i;

    if (query->cause == UB_CAUSE_STOPPED)
        return NULL;
    for (i = 0; i < ub_advice_rows; i++)
        if (fits(&ub_advice_table[i], query, loop))
            return &ub_advice_table[i];
    return NULL;
}

static void set_stall(struct ub_advice_query *query, const json_t *slow)
{
    query->slow = slow;
    query->loop = ub_json_string(slow, "loop");
    query->cause = ub_model_cause_parse(ub_json_string(slow, "cause"));
    query->call = json_object_get(slow, "call");
}

void ub_advice_query_record(const struct ub_model *m, const json_t *slow, struct ub_advice_query *ret)
{
    const json_t *sample;
    size_t i;

    *ret = (struct ub_advice_query){.program = ub_model_program(m, ub_json_u64_or(slow, "pid", 0))};
    set_stall(ret, slow);
    json_array_foreach (json_object_get(slow, "samples"), i, sample) {
        const json_t *id = json_object_get(sample, "stack");
        const json_t *frames = json_is_integer(id) ? ub_model_stack(m, json_integer_value(id)) : NULL;

        if (frames && ret->stacks < UB_ADVICE_STACKS_MAX)
            ret->stack[ret->stacks++] = frames;
    }
}

void ub_advice_query_site(const struct ub_site *site, struct ub_advice_query *ret)
{
    uint32_t i;

    *ret = (struct ub_advice_query){.program = site->program};
    set_stall(ret, site->worst);
    for (i = 0; i < site->stacks && ret->stacks < UB_ADVICE_STACKS_MAX; i++)
        if (site->stack[i].samples > 0)
            ret->stack[ret->stacks++] = site->stack[i].frames;
}

const struct ub_advice *ub_advice_of_record(const struct ub_model *m, const json_t *slow)
{
    struct ub_advice_query query;

    ub_advice_query_record(m, slow, &query);
    return ub_advice_find(&query);
}

const struct ub_advice *ub_advice_of_site(const struct ub_site *site)
{
    struct ub_advice_query query;

    ub_advice_query_site(site, &query);
    return ub_advice_find(&query);
}

const char *ub_advice_site_words(const struct ub_site *site, char *buf, size_t size)
{
    const struct ub_advice *advice;
    struct ub_advice_query query;

    ub_advice_query_site(site, &query);
    advice = ub_advice_find(&query);
    return advice ? ub_advice_words(&query, advice, buf, size) : NULL;
}
