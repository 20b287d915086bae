/*
 * What offload would have done about a stall, or did not and why: the `offload` of a
 * `slow` line, and the `offload` lines by call site at the end.
 */
#include "explain_impl.h"

#include "preamble.h"
#include "site.h"
#include "timed_calls.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PINS_MAX 64 /* places of locks that are told apart in `pins` */

static const char *const pin_names[UB_PINS] = {
#define X(name, text) [UB_PIN_##name] = text,
    UB_PIN_LIST(X)
#undef X
};

static const char *const executor_names[UB_EXECUTORS] = {
#define X(name, text) [UB_EXECUTOR_##name] = text,
    UB_EXECUTOR_LIST(X)
#undef X
};

/* Where the lock was taken, by the return address of the call that took it. NULL: nobody knows. */
static json_t *lock_place(struct ub_explain *x, const struct ub_event *e, uint64_t ra)
{
    struct ub_maps *maps = ra ? ub_process_maps(e->process) : NULL;
    json_t *place = maps ? ub_callback_place(maps, ra - 1, x->w->redact) : NULL;

    ub_maps_unref(maps);
    return place;
}

/* The call that was most of it; NULL: no call that the thread itself has timed. */
static const struct ub_timed_call *longest(const struct ub_event *e)
{
    const struct ub_timed_call *c = NULL;

    for (uint32_t i = 0; e->calls && i < e->calls->count; i++) {
        if (e->calls->call[i].count && (!c || e->calls->call[i].total > c->total))
            c = &e->calls->call[i];
    }
    return c;
}

static uint64_t movable_ns(const struct ub_event *e)
{
    uint64_t ticks = 0;

    for (uint32_t i = 0; e->calls && i < e->calls->count; i++)
        ticks +=
            e->calls->call[i].movable < e->calls->call[i].total ? e->calls->call[i].movable : e->calls->call[i].total;
    return ub_ticks_span_to_ns(ticks);
}

/*
 * Whether a call made the stall. One that the agent does not hook (a futex, an ioctl, a wait for descriptors) is
 * known from the looks only.
 */
static bool is_to_blame(const struct ub_timed_call *c, const char *cause, uint64_t duration_ns)
{
    return strcmp(cause, "call") == 0 || strcmp(cause, "lock") == 0 ||
           (c && ub_ticks_span_to_ns(c->total) >= duration_ns / 2);
}

/*
 * A wait for a lock of the interpreter's in a task's step: no call that the thread times, and steps are left in it. The
 * looks say what it was.
 */
static bool is_pythons_lock(const struct ub_explain *x, const struct ub_event *e, const struct ub_stall *s,
                            const char *cause)
{
    uint32_t version = x->thread[e->slot].python_version;
    const char *via = json_string_value(json_object_get(s->call, "via"));
    bool supported = version >> 8 == 3 && ub_load_relaxed(&x->w->arena->h.python_steps) & 1ull << (version & 63);

    return supported && strcmp(cause, "lock") == 0 && s->what.library == UB_LOOP_ASYNCIO &&
           s->what.kind == UB_CALLBACK_TASK && via && strstr(via, "sem_") && s->gil_released > 0 && s->gil_held == 0;
}

/* In the dry run no agent counts what is imported. */
static bool imports(const struct ub_stall *s)
{
    bool importing = false;

    for (uint32_t i = 0; i < s->count; i++)
        importing |= s->look[i].seen.importing;
    return importing;
}

/* A whole one (common/units.h), which is in no list of calls. */
static void name_unit(json_t *o, const struct ub_timed_call *c)
{
    if (c && c->id > UB_CALL_IDS && ub_moved_call_name(c->id))
        json_object_set_new(o, "call", json_string(ub_moved_call_name(c->id)));
}

static json_t *would_move(uint64_t saved_ns, uint32_t executor)
{
    json_t *o = json_pack("{s:s, s:I}", "state", "would-move", "saved_ns", (json_int_t)saved_ns);

    if (executor < UB_EXECUTORS && executor != UB_EXECUTOR_NONE)
        json_object_set_new(o, "executor", json_string(executor_names[executor]));
    return o;
}

json_t *ub_offload_json(struct ub_explain *x, const struct ub_event *e, const struct ub_stall *s, const char *cause,
                        uint64_t duration_ns, uint64_t blocked_ns)
{
    const struct ub_timed_call *c = longest(e);
    uint32_t pin = c && c->pin < UB_PINS ? c->pin : UB_PIN_UNKNOWN;
    uint64_t saved = movable_ns(e);
    json_t *o, *lock;

    if (x->w->offload == UB_OFFLOAD_OFF || strcmp(cause, "stopped") == 0 || !is_to_blame(c, cause, duration_ns))
        return NULL;
    if (c && ub_ticks_span_to_ns(c->total) < duration_ns / 2) { /* most of it was a call that is not hooked */
        pin = UB_PIN_CALL;
        c = NULL;
    }
    if (!c && is_pythons_lock(x, e, s, cause))
        return imports(s) ? json_pack("{s:s, s:s}", "state", "pinned", "reason", pin_names[UB_PIN_IMPORT])
               : x->w->offload == UB_OFFLOAD_DRY_RUN
                   ? would_move(blocked_ns < duration_ns ? blocked_ns : duration_ns, UB_EXECUTOR_NONE)
                   : json_pack("{s:s, s:s}", "state", "pinned", "reason", pin_names[UB_PIN_CALL]);
    if (pin == UB_PIN_MOVABLE && s->what.library == UB_LOOP_ASYNCIO && imports(s))
        pin = UB_PIN_IMPORT;
    if (pin == UB_PIN_MOVABLE) { /* where calls move the next one from this place leaves */
        o = x->w->offload > UB_OFFLOAD_DRY_RUN ? json_pack("{s:s}", "state", "first") : would_move(saved, c->executor);
        name_unit(o, c);
        return o;
    }
    o = json_pack("{s:s, s:s}", "state", "pinned", "reason", pin_names[pin == UB_PIN_UNKNOWN ? UB_PIN_CALL : pin]);
    name_unit(o, c);
    if (saved)
        json_object_set_new(o, "saved_ns", json_integer((json_int_t)saved)); /* of other calls in it */
    lock = pin == UB_PIN_LOCK && c ? lock_place(x, e, c->lock) : NULL;
    if (lock)
        json_object_set_new(o, "lock", lock);
    return o;
}

/* ---- by call site -------------------------------------------------------------------------- */

static void add_u64(json_t *o, const char *name, uint64_t n)
{
    json_object_set_new(o, name, json_integer(json_integer_value(json_object_get(o, name)) + (json_int_t)n));
}

static const char *text_of(const json_t *o, const char *key)
{
    const char *text = json_string_value(json_object_get(o, key));

    return text ? text : "";
}

/* One entry of `pins`. Where there are too many locks already this one's place is left out. */
static json_t *pin_of(struct ub_explain *x, const char *reason, const json_t *lock)
{
    char key[512];
    json_t *o;

    if (!x->pins)
        x->pins = json_object();
    lock = json_object_size(x->pins) < PINS_MAX ? lock : NULL;
    snprintf(key, sizeof(key), "%s %s %s:%lld", reason, text_of(lock, "function"), text_of(lock, "file"),
             (long long)json_integer_value(json_object_get(lock, "line")));
    o = json_object_get(x->pins, key);
    if (o)
        return o;
    o = json_pack("{s:s, s:i, s:i}", "reason", reason, "count", 0, "total_ns", 0);
    if (lock)
        json_object_set(o, "lock", (json_t *)lock);
    json_object_set_new(x->pins, key, o);
    return o;
}

static void count_pin(struct ub_explain *x, const char *reason, const json_t *lock, uint64_t duration_ns)
{
    json_t *pin = pin_of(x, reason, lock);

    x->pinned++;
    add_u64(pin, "count", 1);
    add_u64(pin, "total_ns", duration_ns);
}

void ub_offload_count(struct ub_explain *x, const json_t *line)
{
    uint64_t duration = (uint64_t)json_integer_value(json_object_get(line, "duration_ns"));
    const json_t *offload = json_object_get(line, "offload");
    const char *site = json_string_value(json_object_get(line, "site"));
    const char *state = json_string_value(json_object_get(offload, "state"));
    const char *reason = json_string_value(json_object_get(offload, "reason"));
    json_t *o, *call = json_object_get(offload, "call");

    if (!call)
        call = json_object_get(json_object_get(line, "call"), "name");
    if (!call)
        call = json_object_get(json_array_get(json_object_get(line, "calls"), 0), "name");

    if (!site || !state || json_object_get(line, "startup"))
        return;
    if (!x->offload)
        x->offload = json_object();
    o = json_object_get(x->offload, site);
    if (!o) {
        o = json_pack("{s:s, s:s, s:s, s:i, s:i, s:I}", "type", "offload", "site", site, "call",
                      call ? json_string_value(call) : "?", "moved", 0, "would_move", 0, "saved_ns", (json_int_t)0);
        json_object_set_new(x->offload, site, o);
    }
    add_u64(o, "saved_ns", (uint64_t)json_integer_value(json_object_get(offload, "saved_ns")));
    if (strcmp(state, "would-move") == 0) {
        add_u64(o, "would_move", 1);
    } else if (reason) {
        if (!json_object_get(o, "pinned"))
            json_object_set_new(o, "pinned", json_object());
        add_u64(json_object_get(o, "pinned"), reason, 1);
        add_u64(o, "pinned_ns", duration);
        count_pin(x, reason, json_object_get(offload, "lock"), duration);
    }
    if (json_object_get(offload, "lock"))
        json_object_set(o, "lock", json_object_get(offload, "lock"));
}

/* ---- by place of a moved call ------------------------------------------------------------------- */

/* The innermost frame of the program's own; where there is none, the innermost. */
static json_t *python_place(const struct ub_python_look *look, bool redact)
{
    const struct ub_python_frame *frame = look && look->count ? &look->frame[0] : NULL;

    for (uint32_t i = 0; look && i < look->count; i++) {
        if (look->frame[i].code->owner == UB_PYTHON_USER)
            return ub_python_place(&look->frame[i], redact);
    }
    return frame ? ub_python_place(frame, redact) : NULL;
}

static void name_python(const struct ub_explain *x, const struct ub_event *e, json_t *names)
{
    json_t *caller = python_place(e->call_python, x->w->redact);
    json_t *callback = e->code ? ub_python_code_place(e->code, x->w->redact) : NULL;

    if (caller)
        json_object_set_new(names, "caller", caller);
    if (callback)
        json_object_set_new(names, "callback", callback);
}

void ub_offload_site(struct ub_explain *x, const struct ub_event *e)
{
    const struct ub_policy_site *site = &x->w->arena->policy.site[e->slot % UB_POLICY_SITES];
    json_t *place, *names = x->site[e->slot % UB_POLICY_SITES];
    struct ub_maps *maps;

    if (names)
        return;
    if (site->frames) {
        x->site[e->slot % UB_POLICY_SITES] = names = json_object();
        name_python(x, e, names);
        return;
    }
    ub_process_refresh(e->process);
    maps = ub_process_maps(e->process);
    names = json_object();
    place = maps && site->ra ? ub_callback_place(maps, site->ra - 1, x->w->redact) : NULL;
    if (place)
        json_object_set_new(names, "caller", place);
    place = maps && site->function ? ub_callback_place(maps, site->function, x->w->redact) : NULL;
    if (place)
        json_object_set_new(names, "callback", place);
    ub_maps_unref(maps);
    x->site[e->slot % UB_POLICY_SITES] = names;
}

void ub_offload_meanwhile(struct ub_explain *x, const struct ub_event *e)
{
    uint32_t site = e->slot % UB_POLICY_SITES, i = e->flags % UB_POLICY_MEANWHILE;
    const struct ub_policy_meanwhile *who = &x->w->arena->policy.meanwhile[site][i];
    struct ub_maps *maps;
    json_t *place;

    if (x->meanwhile[site][i])
        return;
    if (who->kind == UB_CALLBACK_TASK) {
        place = e->code ? ub_python_code_place(e->code, x->w->redact) : NULL;
    } else {
        ub_process_refresh(e->process);
        maps = ub_process_maps(e->process);
        place = maps ? ub_callback_place(maps, who->function, x->w->redact) : NULL;
        ub_maps_unref(maps);
    }
    x->meanwhile[site][i] = place;
}

static const char *site_call(uint32_t id)
{
    const char *name = ub_moved_call_name(id);

    return name ? name : "?";
}

/* By names, so that it is the same in every run. */
static void site_name(const json_t *names, const char *call, char ret[UB_SITE_SIZE])
{
    const char *text[] = {call, json_string_value(json_object_get(json_object_get(names, "caller"), "function")),
                          json_string_value(json_object_get(json_object_get(names, "callback"), "function"))};
    uint64_t hash = 0xcbf29ce484222325ull;

    for (size_t i = 0; i < UB_ARRAY_LEN(text); i++) {
        for (const char *c = text[i] ? text[i] : "?"; *c; c++)
            hash = (hash ^ (uint8_t)*c) * 0x100000001b3ull;
        hash = (hash ^ 0xff) * 0x100000001b3ull;
    }
    snprintf(ret, UB_SITE_SIZE, "%08x", (uint32_t)(hash ^ (hash >> 32)));
}

/* [{function, ..., kind, count}], the most frequent first; *others: what is not named. */
static json_t *take_meanwhile(struct ub_explain *x, uint32_t site, uint64_t *others)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < UB_POLICY_MEANWHILE; i++) {
        const struct ub_policy_meanwhile *who = &x->w->arena->policy.meanwhile[site][i];
        uint64_t count = ub_load_acquire(&who->state) == UB_POLICY_LIVE ? ub_load_relaxed(&who->count) : 0;
        json_t *o = x->meanwhile[site][i];
        size_t at = json_array_size(list);

        x->meanwhile[site][i] = NULL;
        if (!o) {
            *others += count;
            continue;
        }
        json_object_set_new(o, "kind", json_string(ub_callback_kind_name(who->kind)));
        json_object_set_new(o, "count", json_integer((json_int_t)count));
        while (at && json_integer_value(json_object_get(json_array_get(list, at - 1), "count")) < (json_int_t)count)
            at--;
        json_array_insert_new(list, at, o);
    }
    return list;
}

static void tell_site(struct ub_explain *x, uint32_t i)
{
    const struct ub_policy_site *site = &x->w->arena->policy.site[i];
    const char *call = site_call(ub_load_relaxed(&site->id));
    uint64_t others = ub_load_relaxed(&site->others);
    json_t *o, *meanwhile = take_meanwhile(x, i, &others);
    char hash[UB_SITE_SIZE];

    site_name(x->site[i], call, hash);
    o = json_pack(
        "{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "type", "offload", "site", hash, "call", call,
        "moved", (json_int_t)ub_load_relaxed(&site->moved), "saved_ns", (json_int_t)ub_load_relaxed(&site->moved_ns),
        "longest_ns", (json_int_t)ub_load_relaxed(&site->longest_ns), "wait_ns",
        (json_int_t)ub_load_relaxed(&site->pool_ns), "beside", (json_int_t)ub_load_relaxed(&site->beside), "beside_max",
        (json_int_t)ub_load_relaxed(&site->beside_most), "first", (json_int_t)ub_load_relaxed(&site->blocked),
        "first_ns", (json_int_t)ub_ticks_span_to_ns(ub_load_relaxed(&site->blocked_ticks)));
    json_object_update_missing(o, x->site[i]);
    if (json_array_size(meanwhile))
        json_object_set(o, "meanwhile", meanwhile);
    if (others)
        json_object_set_new(o, "meanwhile_others", json_integer((json_int_t)others));
    json_decref(meanwhile);
    ub_explain_emit(x, o);
}

void ub_offload_finish(struct ub_explain *x)
{
    const char *site;
    json_t *o;

    json_object_foreach (x->offload, site, o)
        ub_explain_emit(x, json_incref(o));
    json_decref(x->offload);
    x->offload = NULL;
    for (uint32_t i = 0; x->w->offload > UB_OFFLOAD_DRY_RUN && i < UB_POLICY_SITES; i++) {
        const struct ub_policy_site *place = &x->w->arena->policy.site[i];

        if (ub_load_acquire(&place->state) == UB_POLICY_LIVE &&
            (ub_load_relaxed(&place->moved) || ub_load_relaxed(&place->blocked))) /* not: only asked about */
            tell_site(x, i);
        json_decref(x->site[i]);
        x->site[i] = NULL;
    }
}

void ub_offload_switch(struct ub_explain *x, struct ub_event *e)
{
    char text[128];

    ub_explain_policy(x, e->policy);
    e->policy = NULL;
    ub_store_relaxed(&x->w->arena->h.offload, e->flags);
    snprintf(text, sizeof(text), "offload: switched from %s to %s", ub_preamble_offload(x->w->offload),
             ub_preamble_offload(e->flags));
    x->w->offload = e->flags;
    ub_explain_note(x, "info", text);
}

static json_t *pins_json(const struct ub_explain *x)
{
    json_t *list = json_array(), *pin;
    const char *key;

    json_object_foreach (x->pins, key, pin)
        json_array_append_new(list, json_copy(pin)); /* goes on being counted */
    return list;
}

/* Totals of the run so far. */
static json_t *executor_json(const struct ub_explain *x, uint64_t *ret_calls)
{
    const struct ub_arena_header *h = &x->w->arena->h;
    json_t *functions = ub_python_elsewhere(x, ret_calls);
    uint64_t wait_ns = 0, beside = 0;
    json_t *o;

    for (uint32_t i = 0; i < UB_POLICY_SITES; i++) {
        wait_ns += ub_load_relaxed(&x->w->arena->policy.site[i].pool_ns);
        beside += ub_load_relaxed(&x->w->arena->policy.site[i].beside);
    }
    o = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o*}", "moved", (json_int_t)ub_load_relaxed(&h->moved),
                  "saved_ns", (json_int_t)ub_load_relaxed(&h->moved_ns), "wait_ns", (json_int_t)wait_ns, "stack_bytes",
                  (json_int_t)ub_load_relaxed(&h->stack_deepest), "threads",
                  (json_int_t)ub_load_relaxed(&h->pool_threads), "queued_max",
                  (json_int_t)ub_load_relaxed(&h->pool_queued), "busy_ns",
                  (json_int_t)ub_load_relaxed(&h->pool.busy_ns), "beside", (json_int_t)beside, "functions", functions);
    if (x->pins)
        json_object_set_new(o, "pins", pins_json(x));
    return o;
}

/* Whether there is anything to tell: where calls may move, always; in a dry run, what would have stayed. */
static bool has_executor(const struct ub_explain *x)
{
    return x->w->offload > UB_OFFLOAD_DRY_RUN || x->pins;
}

void ub_offload_progress(struct ub_explain *x)
{
    const struct ub_arena_header *h = &x->w->arena->h;
    uint64_t moved = ub_load_relaxed(&h->moved), away = ub_load_relaxed(&h->away), calls;
    json_t *line;

    if (!has_executor(x))
        return;
    line = executor_json(x, &calls);
    if (moved == x->moved_told && away == x->away_told && calls == x->functions_told && x->pinned == x->pinned_told) {
        json_decref(line);
        return;
    }
    x->moved_told = moved;
    x->away_told = away;
    x->functions_told = calls;
    x->pinned_told = x->pinned;
    json_object_set_new(line, "away", json_integer((json_int_t)away));
    json_object_set_new(line, "queued", json_integer((json_int_t)ub_load_relaxed(&h->pool.queued)));
    json_object_set_new(line, "type", json_string("executor"));
    ub_explain_emit(x, line);
}

void ub_offload_end(struct ub_explain *x, json_t *line)
{
    uint64_t calls;

    if (has_executor(x))
        json_object_set_new(line, "offload", executor_json(x, &calls));
}
