/*
 * One stall, from the first look at it to its `slow` line.
 *
 * Longer than most files here: the parts of that line share the stall's state.
 */
#include "explain_impl.h"

#include "dispatchers.h"
#include "fdinfo.h"
#include "site.h"
#include "syscalls.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#define UB_TELL_FIRST_NS  1000000000ull /* `ongoing` lines: at the first look, at 1 s, at 10 s, then each minute */
#define UB_TELL_SECOND_NS 10000000000ull
#define UB_TELL_EACH_NS   60000000000ull

void ub_stall_clear(struct ub_stall *s)
{
    for (uint32_t i = 0; i < s->count; i++)
        json_decref(s->look[i].sample);
    json_decref(s->named);
    json_decref(s->callback);
    json_decref(s->input);
    json_decref(s->call);
    json_decref(s->task);
    json_decref(s->holder);
    json_decref(s->calls);
    memset(s, 0, sizeof(*s));
}

static struct ub_stall *stall_of(struct ub_explain *x, const struct ub_event *e)
{
    struct ub_stall *s = &x->thread[e->slot].stall;

    if (s->start != e->start) {
        ub_stall_clear(s);
        s->start = e->start;
        s->baseline = e->baseline;
    }
    s->ready = e->ready;
    return s;
}

static const char *program_of(const struct ub_event *e)
{
    const char *exe = e->process && e->process->exe ? e->process->exe : "?";
    const char *slash = strrchr(exe, '/');

    return slash ? slash + 1 : exe;
}

/*
 * A socket's peer is found in tables that are long on a busy host: not the
 * watching thread's work. By now the number may mean another file; then only
 * what it was a link to is told.
 */
static void set_fd_path(json_t *call, const struct ub_event *e)
{
    char *now = e->fd_link ? ub_fd_link(e->pid, e->fd) : NULL;
    char path[UB_FD_TEXT_MAX];

    if (now && strcmp(now, e->fd_link) == 0 && ub_fd_describe(e->pid, e->fd, path, sizeof(path)) == 0)
        json_object_set_new(call, "fd_path", json_string(path));
    else if (e->fd_link)
        json_object_set_new(call, "fd_path", json_string(e->fd_link));
    free(now);
}

/* The agent's own frame stands between libc's and the program's. */
static bool is_hook(const struct ub_named_frame *f)
{
    return f->map && f->map->elf && strncmp(f->map->elf->basename, "libunblock.", 11) == 0;
}

/* Names of the blocking call: the system call, and the library function that the program called to get there. */
static json_t *call_json(const struct ub_event *e, const struct ub_named_stack *stack)
{
    char name[UB_SYSCALL_NAME_MAX];
    json_t *call = json_object();

    json_object_set_new(call, "name", json_string(ub_syscall_name(e->capture->nr, name)));
    if (e->args)
        json_object_set_new(call, "args", json_string(e->args));
    if (e->fd >= 0)
        json_object_set_new(call, "fd", json_integer(e->fd));
    set_fd_path(call, e);
    for (uint32_t i = 0; stack && i < stack->count && stack->frame[i].role != UB_ROLE_USER; i++) {
        const struct ub_symbol *symbol = &stack->frame[i].symbol;

        if (stack->frame[i].libc && symbol->function && !symbol->nearest && !is_hook(&stack->frame[i]))
            json_object_set_new(call, "via", json_string(symbol->function));
    }
    return call;
}

static const char *proof_name(enum ub_proof proof)
{
    switch (proof) {
    case UB_PROOF_STILL:
        return "still";
    case UB_PROOF_SIGNAL:
        return "signal";
    case UB_PROOF_PERF:
        return "perf";
    case UB_PROOF_KERNEL:
        return "kernel";
    case UB_PROOF_SELF:
        return "self";
    case UB_PROOF_NONE:
    case UB_PROOF_UNPROVEN:
        break;
    }
    return "unproven";
}

static bool unwind_look(struct ub_explain *x, const struct ub_event *e)
{
    struct ub_maps *maps;
    bool ok;

    ub_process_refresh(e->process); /* a process that is gone keeps its last maps */
    maps = ub_process_maps(e->process);
    if (!maps)
        return false;
    if (!x->w->agentless && !maps->has_arena) {
        ub_store_relaxed(&e->process->left, 1);
        ub_maps_unref(maps);
        return false;
    }
    ok = e->capture->proof != UB_PROOF_NONE && ub_unwind(x->unwinder, maps, e->capture, &x->raw) == 0;
    if (ok)
        ub_frames_name(maps, &x->raw, &x->named);
    x->merged = ub_stall_python_merge(x, e, maps, &ok);
    ub_maps_unref(maps);
    return ok;
}

static int callback_of(const struct ub_explain *x, const struct ub_event *e)
{
    const struct ub_stack *wait = x->thread[e->slot].wait_stack;
    int callback = -ENOENT;

    if (e->python && e->python->count)
        callback = ub_python_callback(&x->named, e->python, x->thread[e->slot].wait_python);
    if (callback < 0 && e->callback.kind != UB_CALLBACK_TURN)
        callback = ub_callback_frame(&x->named, e->callback.function);
    if (callback >= 0)
        return callback;
    if (!wait)
        callback = ub_dispatchers_callback_by_site(&x->named, ub_load_relaxed(&x->w->arena->slot[e->slot].site));
    return callback >= 0 ? callback : ub_dispatchers_callback(&x->named, &x->raw, wait);
}

/*
 * The representative stack gives callback, call and site: a look with a stack
 * says more than one without, a blocked look more than a running one.
 */
static void represent(struct ub_explain *x, struct ub_stall *s, const struct ub_event *e, bool stack)
{
    bool blocked = e->capture->state == UB_THREAD_BLOCKED && e->capture->nr >= 0;
    int callback = stack ? callback_of(x, e) : -ENOENT;
    bool first_blocked = blocked && s->blocked_looks++ == 0;
    bool python = stack && e->python && e->python->count > 0;
    char name[UB_SYSCALL_NAME_MAX];

    if (first_blocked) {
        json_decref(s->call);
        s->call = call_json(e, stack ? &x->named : NULL);
        s->call_nr = e->capture->nr;
    }
    if (s->site[0] && !(stack && !s->has_stack) && !(python && !s->has_python) &&
        !(first_blocked && stack == s->has_stack && python == s->has_python))
        return;
    s->has_stack |= stack;
    s->has_python |= python;
    if (e->input.input.at) {
        json_decref(s->input);
        s->input = ub_callback_input(x, e);
    }
    if (callback >= 0) {
        json_decref(s->callback);
        s->callback = ub_frame_place(&x->named.frame[callback], x->w->redact);
    }
    if (python && e->python->task.known) {
        json_decref(s->task);
        s->task = ub_python_task_json(e->python, x->w->redact);
    }
    ub_site_hash(stack ? &x->named : NULL, callback, blocked ? ub_syscall_name(e->capture->nr, name) : NULL,
                 blocked ? "call" : "cpu", program_of(e), s->site);
}

static json_t *sample_json(struct ub_explain *x, const struct ub_event *e, bool stack)
{
    const struct ub_capture *c = e->capture;
    char name[UB_SYSCALL_NAME_MAX];
    uint64_t at = c->at_ns > ub_ticks_to_ns(e->start) ? c->at_ns : ub_ticks_to_ns(e->end);
    json_t *o = json_pack("{s:I, s:s}", "at_ns", (json_int_t)(at - ub_ticks_to_ns(e->start)), "state",
                          c->state == UB_THREAD_RUNNING ? "running" : "blocked");

    if (c->state == UB_THREAD_BLOCKED && c->nr >= 0)
        json_object_set_new(o, "call", json_string(ub_syscall_name(c->nr, name)));
    if (!stack)
        return o;
    json_object_set_new(o, "stack", json_integer(ub_explain_stack(x, &x->named)));
    json_object_set_new(o, "proof", json_string(proof_name(c->proof)));
    json_object_set_new(o, "complete", json_boolean(x->raw.complete));
    if (e->python && e->python->count)
        json_object_set_new(o, "python", json_string(ub_python_proof_name(e->python, x->merged)));
    return o;
}

static void note_denied(struct ub_explain *x, const struct ub_event *e)
{
    int error = e->capture->error;

    if (e->process->denied || (error != -EACCES && error != -EPERM))
        return;
    e->process->denied = true;
    ub_explain_emit(
        x, json_pack("{s:s, s:s, s:s++}", "type", "note", "level", "warning", "text", "stacks of ", program_of(e),
                     " cannot be read: it belongs to another user or is not dumpable; run unblock as root or "
                     "with CAP_SYS_PTRACE. Stalls and their durations are recorded all the same"));
}

/*
 * The outermost frame is the dynamic loader's: the process has executed another
 * program, whose copy of the agent has not yet said so, and the turn is gone
 * with the old one.
 */
static bool is_another_image(const struct ub_named_stack *s)
{
    const struct ub_map *map = s->count ? s->frame[s->count - 1].map : NULL;

    return map && map->elf && strncmp(map->elf->basename, "ld-linux", 8) == 0;
}

/* In the order of time: the kernel's stacks of calls come only with the end of their turn. */
static struct ub_explained_look *place_for(struct ub_stall *s, uint64_t at_ns)
{
    uint32_t i = s->count++;

    for (; i > 0 && s->look[i - 1].seen.at_ns > at_ns; i--)
        s->look[i] = s->look[i - 1];
    return &s->look[i];
}

/* False: what was seen is not that turn any more, because the thread has ended or executed another program. */
static bool keep_look(struct ub_explain *x, struct ub_stall *s, const struct ub_event *e)
{
    const struct ub_capture *c = e->capture;
    struct ub_explained_look *look;
    bool stack = unwind_look(x, e);

    ub_stall_python_loop(x, e, stack);
    ub_callback_keep(x, s, e);
    note_denied(x, e);
    if (c->error == -ESRCH || c->state == UB_THREAD_DEAD || ub_load_relaxed(&e->process->left) ||
        (stack && is_another_image(&x->named)))
        return false;
    represent(x, s, e, stack);
    ub_stall_python_gil(x, s, e->pid, e->python);
    ub_stall_python_waiting(s, e->python);
    ub_elsewhere_look(s, e->python);
    if (s->count == UB_LOOKS_KEPT)
        return true;
    look = place_for(s, c->at_ns);
    look->seen = (struct ub_seen){
        .state = c->state,
        .nr = c->nr,
        .stack = stack,
        .lock = stack && c->nr == SYS_futex && ub_cause_is_lock(&x->named),
        .stopped = c->state == UB_THREAD_STOPPED || c->proc_state == 'T' || c->proc_state == 't',
        .slices = e->account.at_ns ? e->account.sched.slices : 0,
        .at_ns = c->at_ns,
        .gil = e->python ? e->python->gil : UB_PYTHON_GIL_UNKNOWN,
        .collecting = e->python && e->python->collecting,
        .importing = e->python && ub_python_importing(e->python),
    };
    look->sample = sample_json(x, e, stack);
    return true;
}

static json_int_t count_site(struct ub_explain *x, const char *site)
{
    struct ub_known_site *known;

    HASH_FIND_STR(x->sites, site, known);
    if (!known) {
        known = calloc(1, sizeof(*known));
        if (!known)
            return 0;
        memcpy(known->site, site, sizeof(known->site));
        HASH_ADD_STR(x->sites, site, known);
    }
    return known->seen++;
}

/* Every look found it in one and the same call, and nearly all the time it was blocked: then that is the call's time.
 */
static void set_call_duration(struct ub_stall *s, const struct ub_shares *shares, uint64_t duration)
{
    for (uint32_t i = 0; i < s->count; i++) {
        if (s->look[i].seen.state != UB_THREAD_BLOCKED || s->look[i].seen.nr != s->call_nr)
            return;
    }
    if (s->call && s->count && shares->known && shares->blocked_ns > duration - duration / 5)
        json_object_set_new(s->call, "duration_ns", json_integer((json_int_t)shares->blocked_ns));
}

static void set_shares(json_t *line, const struct ub_shares *shares, uint64_t duration)
{
    if (!shares->known)
        return;
    json_object_set_new(line, "cpu_ns", json_integer((json_int_t)shares->cpu_ns));
    json_object_set_new(line, "blocked_ns", json_integer((json_int_t)shares->blocked_ns));
    json_object_set_new(line, "runqueue_ns", json_integer((json_int_t)shares->runqueue_ns));
    if (shares->window_ns < duration - duration / 100)
        json_object_set_new(line, "accounted_ns", json_integer((json_int_t)shares->window_ns));
}

/*
 * The stack that the thread has kept of its longest call, where no look has a
 * stack, or only stacks of a thread that ran, while that call was most of it.
 */
static void add_own_sample(struct ub_explain *x, struct ub_stall *s, const struct ub_event *e, bool dominant)
{
    struct ub_event own = *e;
    json_t *call = s->call;

    if (!e->call_capture || s->count == UB_LOOKS_KEPT || (s->has_stack && (s->blocked_looks > 0 || !dominant)))
        return;
    own.capture = e->call_capture;
    own.python = e->call_python;
    if (!unwind_look(x, &own))
        return;
    s->call = NULL;
    s->site[0] = '\0';
    represent(x, s, &own, true);
    json_decref(s->call);
    s->call = call;
    s->look[s->count].seen = (struct ub_seen){.state = UB_THREAD_BLOCKED, .nr = own.capture->nr, .stack = true};
    s->look[s->count++].sample = sample_json(x, &own, true);
}

/*
 * The thread itself has timed its calls: exact, where looks only see which call
 * it is in now and then. A look's call keeps its arguments and gets the time; one
 * that was half of the stall counts whatever was seen. Of a stop (SIGSTOP) they
 * only say in what it came.
 */
static void add_calls(struct ub_explain *x, struct ub_stall *s, const struct ub_event *e, uint64_t duration)
{
    bool stopped = e->blind_ns > duration / 2, dominant;
    json_t *longest;

    s->calls = ub_calls_json(x, e, &s->calls_ns);
    longest = json_array_get(s->calls, 0);
    if (!longest)
        return;
    dominant = (uint64_t)json_integer_value(json_object_get(longest, "duration_ns")) >= duration / 2;
    if (!stopped)
        add_own_sample(x, s, e, dominant);
    if (s->call && json_equal(json_object_get(s->call, "name"), json_object_get(longest, "name"))) {
        json_object_update_missing(s->call, longest);
        json_object_set(s->call, "duration_ns", json_object_get(longest, "duration_ns")); /* not what `ongoing` told */
        s->call_timed = true;
    } else if (dominant && !stopped) {
        json_decref(s->call);
        s->call = json_deep_copy(longest);
        s->call_timed = true;
    }
}

static json_t *samples_json(const struct ub_stall *s)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < s->count; i++)
        json_array_append(list, s->look[i].sample);
    return list;
}

/* Without a stack the callback is told from others by its function, a turn of many by the biggest of them. */
static void set_site(struct ub_explain *x, struct ub_stall *s, const struct ub_event *e)
{
    const struct ub_python_code *code = s->what.kind != UB_CALLBACK_TURN ? s->code : NULL;
    uint64_t function = s->what.kind != UB_CALLBACK_TURN ? s->what.function : 0;
    bool is_code = s->what.library == UB_LOOP_ASYNCIO;

    if (!function && e->bigs && e->bigs->count) {
        function = e->bigs->record[0].function;
        code = e->bigs->code[0];
        is_code = e->bigs->record[0].library == UB_LOOP_ASYNCIO;
    }
    if (function && (code || !is_code))
        ub_callback_site(x, e, function, code, NULL, "no stack", program_of(e), s->site);
    else
        ub_site_hash(NULL, -1, NULL, "no stack", program_of(e), s->site);
}

/*
 * A turn that was slow although none of its callbacks was (or apart from those
 * that were, which have lines of their own): its time is what is not told
 * elsewhere, so that sums of stalls stay right.
 */
static void set_whole(struct ub_explain *x, struct ub_stall *s, const struct ub_event *e, json_t *line)
{
    uint64_t whole = ub_ticks_span_to_ns(e->end - e->start), reported = ub_ticks_span_to_ns(e->turn_reported);
    json_t *bigs = ub_callback_bigs(x, e);

    json_decref(s->task); /* of the step that a look met, one of many */
    s->task = NULL;
    s->request.path[0] = '\0';
    json_object_set_new(line, "duration_ns", json_integer((json_int_t)(whole - reported)));
    if (reported)
        json_object_set_new(line, "turn_ns", json_integer((json_int_t)whole));
    json_object_set_new(line, "callback_count", json_integer(e->turn_callbacks));
    json_object_set(line, "callback", json_object_get(json_array_get(bigs, 0), "callback"));
    if (!json_object_get(line, "callback"))
        json_object_set_new(line, "callback", json_object());
    json_object_set_new(line, "callbacks", bigs);
}

/* Peers, where they are known; what has no name (asyncio's own pair of sockets that wakes it) is left out. */
static json_t *sockets_json(pid_t pid, const struct ub_waited *w)
{
    json_t *list = json_array();

    for (uint32_t i = w->reads; i-- > 0;) {
        char text[UB_FD_TEXT_MAX], *now = ub_fd_link(pid, w->read[i].fd);

        if (now && strcmp(now, w->read[i].link) == 0 && ub_fd_describe(pid, w->read[i].fd, text, sizeof(text)) == 0 &&
            strncmp(text, "socket ", 7) == 0 && strcmp(text, "socket unix") != 0)
            json_array_append_new(list, json_string(text));
        free(now);
    }
    return list;
}

/*
 * `ready` is of the wait that began the turn; the rest is known when the loop has
 * come round. Of uvloop's timers Python itself tells.
 */
static void set_waiting(const struct ub_explain *x, const struct ub_stall *s, const struct ub_event *e, json_t *line)
{
    const struct ub_waited *w = &e->waited;
    bool after = e->kind == UB_EVENT_END && w->known;
    json_t *o;

    if (s->ready == UB_READY_UNKNOWN && !after)
        return;
    o = json_object();
    if (s->ready != UB_READY_UNKNOWN)
        json_object_set_new(o, "ready", json_integer(s->ready));
    if (after && w->round)
        json_object_set_new(o, "became_ready", json_integer(w->ready));
    if (after && w->reads && !x->w->redact) {
        json_t *sockets = sockets_json(e->pid, w);

        if (json_array_size(sockets) > 0)
            json_object_set(o, "then_read", sockets);
        json_decref(sockets);
    }
    if (after && w->counted && !x->thread[e->slot].python_version)
        json_object_set_new(o, "timers", json_integer(w->timers));
    if (after && w->delay)
        json_object_set_new(o, "delay_ns", json_integer((json_int_t)ub_ticks_span_to_ns(w->delay)));
    json_object_set_new(line, "waiting", o);
}

/* The `slow` line of a stall as it is known now. */
static json_t *slow_json(struct ub_explain *x, struct ub_stall *s, const struct ub_event *e, uint64_t end_ticks,
                         const char **ret_cause)
{
    struct ub_thread_record *t = &x->thread[e->slot];
    uint64_t duration = ub_ticks_span_to_ns(end_ticks - e->start), end_ns = ub_ticks_to_ns(end_ticks);
    bool whole = e->flags & UB_RECORD_WHOLE && e->kind == UB_EVENT_END;
    bool library = s->what.library && s->what.library != UB_LOOP_ASYNCIO; /* a task's loop may be uvloop */
    struct ub_seen seen[UB_LOOKS_KEPT];
    struct ub_shares shares;
    json_t *line;

    for (uint32_t i = 0; i < s->count; i++)
        seen[i] = s->look[i].seen;
    ub_cause_shares(&s->baseline, &s->last, end_ns, &shares);
    *ret_cause = ub_cause_name(seen, s->count, &shares, duration, e->blind_ns);
    if (e->reasons) {
        ub_reasons_shares(e->reasons, &shares);
        *ret_cause = ub_reasons_cause(e->reasons, seen, s->count, *ret_cause);
    } else if (s->calls_ns >= duration / 2 && (!shares.known || strcmp(*ret_cause, "unknown") == 0) &&
               strcmp(*ret_cause, "stopped") != 0) {
        *ret_cause = "call";
    }
    if (!s->call_timed)
        set_call_duration(s, &shares, duration);
    if (!s->site[0] || whole)
        set_site(x, s, e); /* a turn's is by what was most of it, not by where it was met */
    line =
        json_pack("{s:s, s:i, s:i, s:s, s:s, s:s, s:I, s:I, s:I, s:s, s:o, s:s}", "type", "slow", "pid", e->pid, "tid",
                  e->tid, "thread", t->name, "loop", library ? ub_callback_library_name(s->what.library) : t->loop,
                  "kind", ub_callback_kind_name(s->what.kind), "start_ns", (json_int_t)ub_ticks_to_ns(e->start),
                  "duration_ns", (json_int_t)duration, "threshold_ns", (json_int_t)x->w->threshold_ns, "cause",
                  *ret_cause, "samples", samples_json(s), "site", s->site);
    if (!line)
        return NULL;
    set_waiting(x, s, e, line);
    json_object_set_new(line, "callback", ub_callback_json(s));
    if (whole)
        set_whole(x, s, e, line);
    else if (s->input && s->what.kind == UB_CALLBACK_TURN)
        json_object_set(line, "input", s->input);
    ub_stall_python_set(line, s, end_ns, x->w->redact);
    if (e->yields.count)
        json_object_set_new(line, "yields", ub_lint_yields_json(&e->yields));
    if (s->call && strcmp(*ret_cause, "cpu") != 0)
        json_object_set_new(line, "call", json_deep_copy(s->call));
    if (s->calls)
        json_object_set(line, "calls", s->calls);
    json_object_set_new(line, "offload",
                        ub_offload_json(x, e, s, *ret_cause, duration, shares.known ? shares.blocked_ns : duration));
    if (!json_object_get(json_object_get(line, "offload"), "call")) /* that is known exactly */
        json_object_set_new(line, "elsewhere", ub_elsewhere_json(s, *ret_cause, duration));
    if (s->uv_pool.queued)
        json_object_set_new(line, "pool", ub_uv_pool_now_json(&s->uv_pool));
    set_shares(line, &shares, duration);
    if (e->reasons)
        ub_reasons_write(x, e, *ret_cause, s->call, line);
    return line;
}

static void set_id(struct ub_explain *x, struct ub_stall *s, json_t *line)
{
    if (!s->id)
        s->id = ++x->last_slow;
    json_object_set_new(line, "id", json_integer(s->id));
}

static bool worth_telling(const struct ub_stall *s, uint64_t duration)
{
    if (s->told_ns == 0)
        return true;
    if (s->told_ns < UB_TELL_FIRST_NS)
        return duration >= UB_TELL_FIRST_NS;
    if (s->told_ns < UB_TELL_SECOND_NS)
        return duration >= UB_TELL_SECOND_NS;
    return duration >= s->told_ns + UB_TELL_EACH_NS;
}

static void tell_ongoing(struct ub_explain *x, struct ub_stall *s, const struct ub_event *e, bool startup)
{
    const char *cause;
    json_t *line = slow_json(x, s, e, e->end, &cause);

    if (!line)
        return;
    set_id(x, s, line);
    json_object_set_new(line, "ongoing", json_true());
    if (startup)
        json_object_set_new(line, "startup", json_true());
    s->told_ns = ub_ticks_span_to_ns(e->end - e->start);
    ub_explain_emit(x, line);
}

/*
 * A turn that the kernel saw begin while no system calls were looked at may be several; it is not called a stall
 * before what is certain of it is one: since the calls are seen, or since the thread has not run.
 */
static bool certain(const struct ub_explain *x, const struct ub_stall *s, const struct ub_event *e)
{
    uint64_t start = ub_ticks_to_ns(e->start), end = ub_ticks_to_ns(e->end), seen;
    const struct ub_accounting *a = &s->baseline, *b = &e->account;

    if (!ub_watch_from_kernel(x->w))
        return true;
    seen = ub_bpf_calls_seen_ns(x->w->bpf);
    if (seen <= start || (seen < end && end - seen >= x->w->threshold_ns))
        return true;
    return a->at_ns && b->at_ns && a->sched.slices == b->sched.slices && a->sched.run_ns == b->sched.run_ns &&
           a->at_ns < end && end - a->at_ns >= x->w->threshold_ns;
}

void ub_stall_look(struct ub_explain *x, const struct ub_event *e)
{
    struct ub_stall *s = stall_of(x, e);

    s->over |= e->loop_over && !s->id;
    if (s->over || (e->capture && !keep_look(x, s, e)))
        return;
    if (e->pool_now.queued > s->uv_pool.queued)
        s->uv_pool = e->pool_now;
    if (e->account.at_ns)
        s->last = e->account;
    if (!s->baseline.majflt) /* the baseline is read without faults: the first look's count starts theirs */
        s->baseline.majflt = e->account.majflt;
    /* Of a whole turn it is known only at its end what was reported otherwise. */
    if (ub_load_relaxed(&e->process->left) || !x->thread[e->slot].qualified || e->whole)
        return;
    if (worth_telling(s, ub_ticks_span_to_ns(e->end - e->start)) && (s->told_ns || certain(x, s, e)))
        tell_ongoing(x, s, e, !(e->flags & UB_SLOT_SERVED));
}

static void count_slow(struct ub_explain *x, const json_t *line, const char *cause)
{
    uint64_t duration = (uint64_t)json_integer_value(json_object_get(line, "duration_ns"));

    if (json_object_get(line, "startup") || json_object_get(line, "unclear") || strcmp(cause, "stopped") == 0)
        return;
    x->totals.slow++;
    if (duration > x->totals.worst_ns)
        x->totals.worst_ns = duration;
}

static void finish_line(struct ub_explain *x, struct ub_thread_record *t, struct ub_stall *s, json_t *line)
{
    set_id(x, s, line);
    json_object_set_new(line, "seen", json_integer(count_site(x, s->site)));
    count_slow(x, line, json_string_value(json_object_get(line, "cause")));
    ub_offload_count(x, line);
    ub_elsewhere_count(x, line);
    ub_lag_keep(t, line);
    ub_explain_emit(x, line);
}

/* They were taken while the turn was slow, like looks, and where no look was in time they are all there is. */
static void add_kernel_stacks(struct ub_explain *x, struct ub_stall *s, const struct ub_event *e)
{
    for (uint32_t i = 0; e->reasons && i < e->reasons->stack_count; i++) {
        struct ub_event look;

        if (!ub_reasons_as_look(x, e, i, &look))
            continue;
        keep_look(x, s, &look);
        free(look.args);
        free(look.fd_link);
    }
}

void ub_stall_end(struct ub_explain *x, const struct ub_event *e)
{
    struct ub_thread_record *t = &x->thread[e->slot];
    struct ub_stall *s = stall_of(x, e);
    const char *cause;
    json_t *line;

    /* Read late, the accounts hold what the thread has done since its turn ended as well. */
    if (e->account.at_ns && e->account.at_ns <= ub_ticks_to_ns(e->end) + ub_ticks_span_to_ns(e->end - e->start) / 8)
        s->last = e->account;
    ub_callback_keep(x, s, e);
    if (e->callback.kind == UB_CALLBACK_TURN) { /* the callback was left by longjmp meanwhile, or is not the one */
        s->what = (struct ub_callback){.fd = -1};
        json_decref(s->named);
        s->named = NULL;
        s->code = NULL;
    }
    if (e->turn_reported) /* the accounts are of the whole turn, the time is of a part of it */
        memset(&s->baseline, 0, sizeof(s->baseline));
    add_kernel_stacks(x, s, e);
    if (!(e->flags & UB_RECORD_ABANDONED))
        add_calls(x, s, e, ub_ticks_span_to_ns(e->end - e->start));
    line = slow_json(x, s, e, e->flags & UB_RECORD_ABANDONED ? e->start + ub_ticks_from_span_ns(s->told_ns) : e->end,
                     &cause);
    /* The loop is over, or another wait took over: what seemed a turn was none. Only if it was told must it be closed.
     */
    if (line && (s->over || e->flags & UB_RECORD_ABANDONED) && !s->id) {
        json_decref(line);
        line = NULL;
    }
    if (line) {
        if (e->flags & UB_RECORD_STARTUP)
            json_object_set_new(line, "startup", json_true());
        if (t->qualified)
            finish_line(x, t, s, line);
        else if (t->pending_count < UB_PENDING_MAX)
            t->pending[t->pending_count++] = line;
        else
            json_decref(line);
    }
    ub_stall_clear(s);
}

void ub_stall_gone(struct ub_explain *x, const struct ub_event *e)
{
    struct ub_stall *s = &x->thread[e->slot].stall;
    uint64_t told = e->start + ub_ticks_from_span_ns(s->told_ns);
    const char *cause;
    json_t *line;

    if (!s->start || s->start != e->start || !s->id || ub_load_relaxed(&e->process->left))
        return;
    add_calls(x, s, e, ub_ticks_span_to_ns(e->end - e->start));
    line = slow_json(x, s, e, e->end > told ? e->end : told, &cause);
    if (!line)
        return;
    json_object_set_new(line, "ongoing", json_true());
    finish_line(x, &x->thread[e->slot], s, line);
}

/* The thread runs a loop after all: what was held back counts. */
void ub_stall_qualified(struct ub_explain *x, struct ub_thread_record *t)
{
    for (uint32_t i = 0; i < t->pending_count; i++) {
        json_t *line = t->pending[i];
        struct ub_stall shown = {0};
        const char *site = json_string_value(json_object_get(line, "site"));

        memcpy(shown.site, site, strlen(site) + 1);
        const char *kind = json_string_value(json_object_get(line, "kind"));

        if (strcmp(kind, "turn") == 0 || strcmp(kind, "task") == 0)
            json_object_set_new(line, "loop", json_string(t->loop));
        finish_line(x, t, &shown, line);
    }
    t->pending_count = 0;
}
