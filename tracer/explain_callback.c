/*
 * The callback of a stall where the thread itself has named it (loop libraries
 * whose callbacks are timed), and the biggest callbacks of a turn none of which
 * was slow by itself.
 */
#include "explain_impl.h"

#include "dispatchers.h"
#include "fdinfo.h"
#include "site.h"
#include "timed_calls.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const kind_names[UB_CALLBACK_KINDS] = {
#define X(name, text) [UB_CALLBACK_##name] = text,
    UB_CALLBACK_KIND_LIST(X)
#undef X
};

static const char *const library_names[UB_LOOP_LIBRARIES] = {
#define X(name, text) [UB_LOOP_##name] = text,
    UB_LOOP_LIST(X)
#undef X
};

const char *ub_callback_kind_name(uint32_t kind)
{
    return kind < UB_CALLBACK_KINDS ? kind_names[kind] : "callback";
}

const char *ub_callback_library_name(uint32_t library)
{
    return library < UB_LOOP_LIBRARIES ? library_names[library] : "turn";
}

/* The function as if it were a frame at its own beginning. False: nothing is known of that address. */
static bool as_frame(struct ub_maps *maps, uint64_t function, struct ub_named_frame *ret)
{
    struct ub_symbol symbol[UB_INLINES_MAX];
    const struct ub_map *map = maps ? ub_maps_find(maps, function) : NULL;
    uint32_t n;

    if (!map)
        return false;
    n = ub_symbols_resolve(maps, function, symbol, UB_INLINES_MAX);
    *ret = (struct ub_named_frame){.symbol = symbol[n ? n - 1 : 0], .map = map, .pc = function};
    if (n == 0)
        ret->symbol = (struct ub_symbol){0};
    ret->symbol.inlined = false;
    ret->role = ub_dispatchers_role(map->elf ? map->elf->basename : "",
                                    ret->symbol.nearest ? NULL : ret->symbol.function, &ret->libc);
    if (ret->role == UB_ROLE_USER && map->elf)
        ret->role = ub_dispatchers_path_role(map->elf->path);
    return true;
}

static json_t *place_of(struct ub_maps *maps, uint64_t function, bool redact, enum ub_role *ret_role)
{
    struct ub_named_frame frame;
    json_t *o;

    if (!as_frame(maps, function, &frame))
        return NULL;
    if (frame.symbol.nearest)
        frame.symbol.function = NULL; /* a guess names a frame; a callback it would misname */
    o = ub_frame_place(&frame, redact);
    *ret_role = frame.symbol.function ? frame.role : UB_ROLE_LIBRARY;
    return o;
}

json_t *ub_callback_place(struct ub_maps *maps, uint64_t address, bool redact)
{
    struct ub_named_frame frame;

    return as_frame(maps, address, &frame) ? ub_frame_place(&frame, redact) : NULL;
}

int ub_callback_frame(const struct ub_named_stack *stack, uint64_t function)
{
    for (uint32_t i = stack->count; function && i-- > 0;) {
        const struct ub_named_frame *f = &stack->frame[i];
        uint64_t begins = f->pc - f->symbol.offset;

        /* The offset is that of the call, the pc often that of the instruction after it. */
        if (!f->symbol.inlined && f->symbol.function && (begins == function || begins == function + 1))
            return (int)i;
    }
    return -1;
}

/* The descriptor may be another file by now: only the look that found it in the callback says what it is. */
static void set_fd(json_t *o, const struct ub_event *e, bool redact)
{
    char path[UB_FD_TEXT_MAX];

    if (e->callback.fd < 0)
        return;
    json_object_set_new(o, "fd", json_integer(e->callback.fd));
    if (!redact && e->kind == UB_EVENT_SAMPLE && ub_fd_describe(e->pid, e->callback.fd, path, sizeof(path)) == 0)
        json_object_set_new(o, "fd_path", json_string(path));
}

/*
 * Not said of Python's loops: who is served there are tasks, and a task that goes on has read nothing in this turn.
 * A socket's peer is looked up here, where that may take time; by now the number may mean another file.
 */
json_t *ub_callback_input(const struct ub_explain *x, const struct ub_event *e)
{
    const struct ub_input_seen *in = &e->input;
    char path[UB_FD_TEXT_MAX], *now;
    json_t *o;

    if (x->thread[e->slot].python_version)
        return NULL;
    o = json_pack("{s:i, s:s, s:I, s:I}", "fd", in->input.fd, "call", ub_timed_call_name(in->input.call), "at_ns",
                  (json_int_t)ub_ticks_span_to_ns(in->input.at - e->start), "others", (json_int_t)in->others);
    if (x->w->redact || !in->link)
        return o;
    now = ub_fd_link(e->pid, in->input.fd);
    if (now && strcmp(now, in->link) == 0 && ub_fd_describe(e->pid, in->input.fd, path, sizeof(path)) == 0)
        json_object_set_new(o, "fd_path", json_string(path));
    else
        json_object_set_new(o, "fd_path", json_string(in->link));
    free(now);
    return o;
}

/* A step of a task: by its coroutine's function; a handle by the function it was given, which may be one of C. */
static void keep_step(struct ub_explain *x, struct ub_stall *s, const struct ub_event *e)
{
    s->what = e->callback;
    if (!s->named && !e->code && e->name[0])
        s->named = json_pack("{s:s}", "function", e->name);
    if (s->named || !e->code)
        return;
    s->named = ub_python_code_place(e->code, x->w->redact);
    s->named_user = s->named && e->code->owner == UB_PYTHON_USER;
    s->code = e->code;
}

void ub_callback_keep(struct ub_explain *x, struct ub_stall *s, const struct ub_event *e)
{
    struct ub_maps *maps;
    enum ub_role role;

    if (e->callback.library == UB_LOOP_ASYNCIO && e->callback.kind != UB_CALLBACK_TURN)
        keep_step(x, s, e);
    if (e->callback.kind == UB_CALLBACK_TURN || e->callback.library == UB_LOOP_ASYNCIO ||
        x->thread[e->slot].python_version) /* uvloop's own callbacks say nothing of the program's */
        return;
    s->what = e->callback;
    if (!s->named) {
        maps = ub_process_maps(e->process);
        s->named = place_of(maps, e->callback.function, x->w->redact, &role);
        s->named_user = s->named && role == UB_ROLE_USER;
        if (s->named)
            set_fd(s->named, e, x->w->redact);
        ub_maps_unref(maps);
    }
    if (s->named && e->name[0] && !x->w->redact) {
        json_t *name = json_string(e->name);

        json_object_set_new(s->named, "name", name ? name : json_string("(not UTF-8)"));
    }
}

/*
 * The thread says itself whose step it is; frames that are read while it runs
 * may lack the outermost. A step of a library's (aiohttp's of a connection) gives
 * way to the program's function that it runs.
 */
static bool look_lacks_step(const struct ub_stall *s)
{
    return s->code && s->named_user && s->callback &&
           !json_equal(json_object_get(s->named, "function"), json_object_get(s->callback, "function"));
}

/*
 * The function that the library was given goes before what the stack shows: it
 * is what the program registered. Where that is no code of the program's own
 * (GIO's completion of a task) the outermost frame of the program says more.
 */
/*
 * Likewise a step of a library's: what the look took for the callback must be one of its coroutines; else the innermost
 * of these. NULL: nothing better than the look is known.
 */
static json_t *coroutine_of_step(const struct ub_stall *s)
{
    const json_t *chain = s->task ? json_object_get(s->task, "await") : NULL, *one, *name;
    size_t i;
    json_t *o;

    if (!s->code || s->named_user || !s->callback || json_array_size(chain) == 0)
        return NULL;
    json_array_foreach (chain, i, one) {
        if (json_equal(json_object_get(one, "function"), json_object_get(s->callback, "function")))
            return NULL;
    }
    o = json_copy(json_array_get(chain, json_array_size(chain) - 1));
    name = json_object_get(s->callback, "name");
    if (name)
        json_object_set(o, "name", (json_t *)name);
    return o;
}

json_t *ub_callback_json(const struct ub_stall *s)
{
    json_t *o = coroutine_of_step(s);

    if (o)
        return o;
    if (look_lacks_step(s))
        return json_copy(s->named);
    if (!s->named || (s->has_python && (s->callback || (!s->code && s->what.library != UB_LOOP_ASYNCIO))))
        return s->callback ? json_copy(s->callback) : json_object();
    if (s->named_user || !s->callback)
        return json_copy(s->named);
    o = json_copy(s->callback);
    json_object_update_missing(o, s->named);
    return o;
}

/* Likewise a Python function. */
static void code_as_frame(const struct ub_python_code *code, struct ub_named_frame *ret)
{
    *ret = (struct ub_named_frame){
        .python = 1, .symbol = {.function = code->function, .file = code->file, .language = UB_LANGUAGE_PYTHON}};
}

void ub_callback_site(struct ub_explain *x, const struct ub_event *e, uint64_t function,
                      const struct ub_python_code *code, const char *call, const char *cause, const char *program,
                      char ret[9])
{
    struct ub_maps *maps = ub_process_maps(e->process);
    bool known = true;

    ub_frames_clear(&x->named);
    if (code)
        code_as_frame(code, &x->named.frame[0]);
    else
        known = as_frame(maps, function, &x->named.frame[0]);
    x->named.count = known;
    x->named.maps = maps; /* the reference goes with it */
    if (known)
        x->named.frame[0].role = UB_ROLE_USER; /* whoever's it is: it is the callback */
    ub_site_hash(known ? &x->named : NULL, known ? 0 : -1, call, cause, program, ret);
}

static void sort_bigs(struct ub_bigs *bigs)
{
    for (uint32_t done = 0; done < bigs->count; done++) {
        for (uint32_t i = done + 1; i < bigs->count; i++) {
            struct ub_record record = bigs->record[done];
            const struct ub_python_code *code = bigs->code[done];

            if (bigs->record[i].total <= record.total)
                continue;
            bigs->record[done] = bigs->record[i];
            bigs->code[done] = bigs->code[i];
            bigs->record[i] = record;
            bigs->code[i] = code;
        }
    }
}

json_t *ub_callback_bigs(struct ub_explain *x, const struct ub_event *e)
{
    struct ub_maps *maps = ub_process_maps(e->process);
    json_t *list = json_array();

    if (e->bigs)
        sort_bigs(e->bigs);
    for (uint32_t i = 0; e->bigs && i < e->bigs->count; i++) {
        const struct ub_record *r = &e->bigs->record[i];
        enum ub_role role;
        json_t *o, *place = NULL;

        if (e->bigs->code[i])
            place = ub_python_code_place(e->bigs->code[i], x->w->redact);
        else if (r->library != UB_LOOP_ASYNCIO)
            place = place_of(maps, r->function, x->w->redact, &role);
        o = json_pack("{s:s, s:I, s:I, s:o}", "kind", ub_callback_kind_name(r->callback), "duration_ns",
                      (json_int_t)ub_ticks_span_to_ns(r->total), "count", (json_int_t)r->count, "callback",
                      place ? place : json_object());
        json_array_append_new(list, o);
    }
    ub_maps_unref(maps);
    return list;
}

static json_t *coarse_json(const struct ub_coarse_histogram *h)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < UB_ARRAY_LEN(h->count); i++) {
        if (h->count[i])
            json_array_append_new(list, json_pack("[I, I]", (json_int_t)ub_ticks_span_to_ns(ub_coarse_upper(i)),
                                                  (json_int_t)h->count[i]));
    }
    return list;
}

static json_t *delayed_json(const struct ub_kind_stats *k)
{
    json_t *o = json_pack("{s:I, s:I, s:I}", "callbacks", (json_int_t)k->late, "total_ns",
                          (json_int_t)ub_ticks_span_to_ns(k->late_ticks), "max_ns",
                          (json_int_t)ub_ticks_span_to_ns(k->late_max_ticks));

    if (k->has_late_histogram)
        json_object_set_new(o, "histogram", coarse_json(&k->late_histogram));
    return o;
}

json_t *ub_callback_kinds(const struct ub_stats *s)
{
    json_t *kinds = json_object();

    for (uint32_t i = 0; i < s->kinds; i++) {
        const struct ub_kind_stats *k = &s->kind[i];
        json_t *o = json_pack("{s:I, s:I, s:I}", "callbacks", (json_int_t)k->count, "total_ns",
                              (json_int_t)ub_ticks_span_to_ns(k->total_ticks), "max_ns",
                              (json_int_t)ub_ticks_span_to_ns(k->max_ticks));

        if (k->has_histogram)
            json_object_set_new(o, "histogram", ub_explain_histogram(&k->histogram));
        if (k->late)
            json_object_set_new(o, "delayed", delayed_json(k));
        json_object_set_new(kinds, ub_callback_kind_name(k->kind), o);
    }
    return kinds;
}
