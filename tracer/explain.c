/*
 * The explaining thread: takes what the watching thread saw and writes the
 * recording's lines. Slow work (symbols, files) happens only here.
 */
#include "explain_impl.h"
#include "static_pool.h"

#include "dispatchers.h"
#include "preamble.h"
#include "python_layout.h"

#include "../common/image.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* What is explained can wait; who is watched shall not, not even where there are few CPUs. */
#define UB_EXPLAIN_NICE 10

void ub_explain_emit(struct ub_explain *x, json_t *line)
{
    if (!line)
        return;
    for (uint32_t i = 0; i < x->sink_count; i++)
        x->sinks[i].line(x->sinks[i].self, line);
    json_decref(line);
}

json_int_t ub_explain_stack(struct ub_explain *x, const struct ub_named_stack *s)
{
    struct ub_known_stack *known;

    HASH_FIND(hh, x->stacks, &s->hash, sizeof(s->hash), known);
    if (known)
        return known->id;
    known = calloc(1, sizeof(*known));
    if (!known)
        return 0;
    known->hash = s->hash;
    known->id = ++x->last_stack;
    HASH_ADD(hh, x->stacks, hash, sizeof(known->hash), known);
    ub_explain_emit(
        x, json_pack("{s:s, s:I, s:o}", "type", "stack", "id", known->id, "frames", ub_frames_json(s, x->w->redact)));
    return known->id;
}

static const char *source_of(const struct ub_watch_options *options)
{
    if (options->agentless)
        return options->bpf ? "bpf" : "proc";
    return options->bpf ? "agent+bpf" : "agent";
}

int ub_explain_new(struct ub_watch *w, const struct ub_watch_options *options, struct ub_explain **ret)
{
    const struct ub_policy_file *policy = options->policy;
    struct ub_explain *x = calloc(1, sizeof(*x));
    json_t *header;
    int r;

    if (!x)
        return -ENOMEM;
    x->w = w;
    x->sinks = options->sinks;
    x->sink_count = options->sink_count;
    r = ub_unwinder_new(&x->unwinder);
    if (r < 0) {
        free(x);
        return r;
    }
    header = ub_preamble_header(source_of(options), options->threshold_ns, options->argc, options->argv,
                                options->redact, options->offload);
    if (policy && policy->predicted)
        json_object_set_new(
            header, "predicted",
            ub_preamble_predicted(policy->path, policy->predicted_p99_ns, policy->predicted_longest_ns));
    ub_explain_emit(x, header);
    ub_explain_policy(x, options->policy);
    *ret = x;
    return 0;
}

static void drop_pending(struct ub_thread_record *t)
{
    while (t->pending_count > 0)
        json_decref(t->pending[--t->pending_count]);
}

static void clear_thread(struct ub_thread_record *t)
{
    ub_stall_clear(&t->stall);
    drop_pending(t);
    free(t->wait_stack);
    free(t->wait_python);
    ub_lag_clear(&t->lag);
    memset(t, 0, sizeof(*t));
}

void ub_explain_free(struct ub_explain *x, struct ub_watch_totals *ret_totals)
{
    struct ub_known_stack *stack, *next_stack;
    struct ub_known_site *site, *next_site;

    if (ret_totals) {
        ret_totals->slow = x->totals.slow;
        ret_totals->worst_ns = x->totals.worst_ns;
        ret_totals->loops = x->totals.loops;
    }
    /* Clearing a table leaves its entries and their order alone. */
    stack = x->stacks;
    HASH_CLEAR(hh, x->stacks);
    for (; stack; stack = next_stack) {
        next_stack = stack->hh.next;
        free(stack);
    }
    site = x->sites;
    HASH_CLEAR(hh, x->sites);
    for (; site; site = next_site) {
        next_site = site->hh.next;
        free(site);
    }
    for (uint32_t i = 0; i < UB_SLOT_MAX; i++)
        clear_thread(&x->thread[i]);
    ub_frames_clear(&x->named);
    ub_unwinder_free(x->unwinder);
    json_decref(x->offload);
    json_decref(x->pins);
    ub_explain_policy_free(x);
    free(x);
}

static void announce_process(struct ub_explain *x, struct ub_process *p)
{
    if (!p || p->announced)
        return;
    p->announced = true;
    ub_explain_emit(x, ub_preamble_process(p->pid, p->ppid, p->exe ? p->exe : "?",
                                           x->w->agentless  ? "traced"
                                           : x->w->attached ? "attached"
                                                            : "preloaded",
                                           x->w->redact));
    ub_static_pool_find(p);
}

/* The record of the event's thread; a slot that has a new owner starts afresh. */
static struct ub_thread_record *thread_of(struct ub_explain *x, const struct ub_event *e)
{
    struct ub_thread_record *t = &x->thread[e->slot];

    if (t->pid != e->pid || t->tid != e->tid) {
        clear_thread(t);
        t->pid = e->pid;
        t->tid = e->tid;
        t->since_ns = ub_clock_monotonic_ns();
        t->loop = "turn";
        ub_preamble_thread_name(t->pid, t->tid, t->name, sizeof(t->name));
    }
    return t;
}

static void keep_wait_python(struct ub_explain *x, struct ub_thread_record *t, const struct ub_python_look *look)
{
    size_t size = look ? offsetof(struct ub_python_look, frame) + look->count * sizeof(look->frame[0]) : 0;
    const char *loop;

    if (!look)
        return;
    free(t->wait_python);
    t->wait_python = malloc(size);
    if (t->wait_python)
        memcpy(t->wait_python, look, size);
    ub_python_merge(&x->named, look);
    loop = ub_python_loop(&x->named);
    if (loop)
        t->loop = loop;
    if (loop && look->count)
        t->python_version = look->frame[0].code->layout->version;
}

static void keep_wait_stack(struct ub_explain *x, struct ub_thread_record *t, const struct ub_event *e)
{
    struct ub_maps *maps;

    x->named.count = 0;
    if (!e->capture)
        return;
    ub_process_refresh(e->process); /* a process that is gone keeps its last maps */
    maps = ub_process_maps(e->process);
    if (maps && ub_unwind(x->unwinder, maps, e->capture, &x->raw) == 0) {
        free(t->wait_stack);
        t->wait_stack = malloc(sizeof(*t->wait_stack));
        if (t->wait_stack)
            *t->wait_stack = x->raw;
        ub_frames_name(maps, &x->raw, &x->named);
        t->loop = ub_dispatchers_loop(&x->named);
    }
    keep_wait_python(x, t, e->python); /* the frames were read when the wait was seen: they need no stack */
    ub_maps_unref(maps);
}

/* The thread says itself whose callbacks it runs; a loop of Python's on top of it is the better name. */
static void keep_library(struct ub_thread_record *t, const struct ub_event *e)
{
    if (!e->library)
        return;
    t->library = e->library;
    t->tasks |= e->tasks;
    memcpy(t->version, e->version, sizeof(t->version));
    if (!t->python_version && strcmp(t->loop, "uvloop") != 0)
        t->loop = ub_callback_library_name(e->library);
}

/*
 * Whether a wait of this thread is a loop's is seen from its Python frames, and
 * those only in the look at the wait: until then the stalls of a Python program
 * that polls are held back. (What waits with epoll is a loop.)
 */
static bool is_judged(const struct ub_explain *x, const struct ub_event *e)
{
    const char *slash = e->process->exe ? strrchr(e->process->exe, '/') : NULL;

    if (ub_load_relaxed(&x->w->arena->slot[e->slot].flags) & UB_SLOT_EPOLL)
        return true;
    /* The interpreter is looked for only when a stall is: the program's name is known before. */
    return !__atomic_load_n(&e->process->python, __ATOMIC_RELAXED) &&
           (slash == NULL || strncmp(slash + 1, "python", 6) != 0);
}

/* Once a thread: by the look at it in its wait, or by the first stall that the agent says was a loop's. */
static void on_loop(struct ub_explain *x, const struct ub_event *e)
{
    struct ub_thread_record *t = thread_of(x, e);
    char version[16];
    json_t *line;

    if (e->kind == UB_EVENT_LOOP)
        keep_wait_stack(x, t, e);
    keep_library(t, e);
    if (t->qualified)
        return;
    if (e->kind == UB_EVENT_LOOP && !is_judged(x, e) && ub_python_synchronous(t->wait_python)) {
        drop_pending(t);
        t->synchronous = true;
    }
    if ((t->synchronous || e->kind != UB_EVENT_LOOP) && !is_judged(x, e))
        return;
    t->qualified = true;
    x->totals.loops++;
    announce_process(x, e->process);
    line = json_pack("{s:s, s:i, s:i, s:s, s:s}", "type", "loop", "pid", e->pid, "tid", e->tid, "loop", t->loop,
                     "identity",
                     t->tasks                           ? "task"
                     : t->library && !t->python_version ? "callback"
                                                        : "turn");
    if (t->library && t->version[0] && !t->python_version)
        json_object_set_new(line, "version", json_string(t->version));
    if (t->python_version && strcmp(t->loop, "asyncio") == 0) {
        snprintf(version, sizeof(version), "%u.%u", t->python_version >> 8, t->python_version & 0xff);
        json_object_set_new(line, "version", json_string(version));
    }
    ub_explain_emit(x, line);
    ub_stall_qualified(x, t);
}

json_t *ub_explain_histogram(const struct ub_histogram *h)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < UB_HISTOGRAM_BUCKETS; i++) {
        if (h->count[i])
            json_array_append_new(list, json_pack("[I, I]", (json_int_t)ub_ticks_span_to_ns(ub_histogram_upper(i)),
                                                  (json_int_t)h->count[i]));
    }
    return list;
}

static void on_stats(struct ub_explain *x, const struct ub_event *e)
{
    struct ub_thread_record *t = thread_of(x, e);
    const struct ub_stats *s = e->stats;
    json_t *line;

    keep_library(t, e);
    if (!t->qualified)
        return;
    line = json_pack("{s:s, s:i, s:i, s:s, s:I, s:I, s:I, s:I, s:I, s:o}", "type", "stats", "pid", e->pid, "tid",
                     e->tid, "loop", t->loop, "callbacks", (json_int_t)s->turns, "turns", (json_int_t)s->turns,
                     "total_ns", (json_int_t)ub_ticks_span_to_ns(s->busy_ticks), "busy_ns",
                     (json_int_t)ub_ticks_span_to_ns(s->busy_ticks), "max_ns",
                     (json_int_t)ub_ticks_span_to_ns(s->max_ticks), "histogram", ub_explain_histogram(&s->histogram));
    json_object_set_new(line, "at_ns", json_integer((json_int_t)ub_clock_monotonic_ns()));
    json_object_set_new(line, "lag", ub_lag_json(x, t, s)); /* not set where there is none */
    if (s->kinds)
        json_object_set_new(line, "kinds", ub_callback_kinds(s));
    if (s->cpu_ns)
        json_object_set_new(line, "cpu_ns", json_integer((json_int_t)s->cpu_ns));
    ub_explain_emit(x, line);
    ub_offload_progress(x);
    ub_lint_yields(x, e);
}

void ub_explain_note(struct ub_explain *x, const char *level, const char *text)
{
    ub_explain_emit(x, json_pack("{s:s, s:s, s:s}", "type", "note", "level", level, "text", text));
}

/* Programs that were executed without the agent, since it would disturb them. */
static void tell_what_was_not_entered(struct ub_explain *x)
{
    static const char *const why[UB_IMAGE_KINDS] = {
        [UB_IMAGE_STATIC] = "they are statically linked (what they start is watched)",
        [UB_IMAGE_MACHINE] = "they are not x86-64 programs",
        [UB_IMAGE_LIBC] = "they use another C library than glibc",
        [UB_IMAGE_SANITIZER] = "they are linked to the shared runtime of a sanitizer, which must come first",
        [UB_IMAGE_SECURE] = "they gain privileges when executed (set-user-ID, file capabilities)",
    };
    const struct ub_arena_header *h = &x->w->arena->h;
    char text[256];

    for (uint32_t i = 0; i < UB_IMAGE_KINDS; i++) {
        uint32_t n = why[i] ? ub_load_relaxed(&h->not_entered[i]) : 0;

        if (n == 0)
            continue;
        snprintf(text, sizeof(text), "%u programs that were executed are not watched: %s", n, why[i]);
        ub_explain_note(x, "info", text);
    }
}

/* Nothing seen is not the same as nothing there: say which. */
static void tell_what_was_not_seen(struct ub_explain *x)
{
    const struct ub_arena_header *h = &x->w->arena->h;
    char text[256];

    if (x->w->bpf)
        ub_reasons_tell_losses(x, ub_explain_note);
    if (x->w->agentless) {
        if (x->totals.loops == 0)
            ub_explain_note(
                x, "info",
                "no thread came back to one epoll, poll, select or io_uring wait often enough to count as an event "
                "loop (8 times; poll and select on two descriptors or more) while it was watched");
        return;
    }

    if (ub_load_relaxed(&h->elsewhere)) {
        snprintf(text, sizeof(text), "%u program images were not watched: they run in another PID namespace",
                 ub_load_relaxed(&h->elsewhere));
        ub_explain_note(x, "warning", text);
    } else if (ub_load_relaxed(&h->images) == 0)
        ub_explain_note(
            x, "warning",
            "the agent was not loaded into the program: it is statically linked, set-user-ID, of another "
            "architecture or C library, has ThreadSanitizer in it, or clears LD_PRELOAD; nothing was watched");
    else if (x->totals.loops == 0 && !x->w->adopted)
        ub_explain_note(
            x, "info",
            "no thread came back to one epoll, poll, select or io_uring wait often enough to count as an event loop "
            "(8 times; poll and select on two descriptors or more). A program that goes into the background is "
            "watched only until its first process ends: keep it in the foreground");
    if (x->w->left_running && !x->w->adopted) {
        snprintf(text, sizeof(text),
                 "%u loop threads of background processes still run and are watched no longer: the "
                 "run ends with the program that was started; keep it in the foreground",
                 x->w->left_running);
        ub_explain_note(x, "warning", text);
    }
    tell_what_was_not_entered(x);
    if (ub_load_relaxed(&h->thunks_full)) {
        snprintf(
            text, sizeof(text),
            "%u times a callback was not timed by itself: there are more callback functions than a process has room "
            "for (4096); stalls in it are told as its turn's",
            ub_load_relaxed(&h->thunks_full));
        ub_explain_note(x, "info", text);
    }
    if (ub_load_relaxed(&h->copies_full))
        ub_explain_note(
            x, "info",
            "a process has more than two copies of one event-loop library: callbacks of the further ones are not "
            "timed by themselves");
    if (ub_load_relaxed(&h->no_slot)) {
        snprintf(text, sizeof(text), "%u threads were not watched: all %u slots were taken",
                 ub_load_relaxed(&h->no_slot), UB_SLOT_MAX);
        ub_explain_note(x, "warning", text);
    }
}

static void on_finish(struct ub_explain *x, const struct ub_event *e)
{
    json_t *line;

    tell_what_was_not_seen(x);
    ub_explain_policy_tell(x);
    ub_offload_finish(x);
    ub_elsewhere_finish(x);
    ub_python_finish(x);
    line = json_pack("{s:s, s:I, s:{s:I, s:I, s:I, s:i}}", "type", "end", "slow", x->last_slow, "lost", "ring",
                     (json_int_t)x->w->lost, "rate_limited", (json_int_t)x->w->rate_limited, "queue",
                     (json_int_t)x->w->queue_dropped, "torn", 0);
    json_object_set_new(line, "at_ns", json_integer((json_int_t)ub_clock_monotonic_ns()));
    if (e->flags && WIFEXITED(e->fd))
        json_object_set_new(line, "exit", json_integer(WEXITSTATUS(e->fd)));
    if (e->flags && WIFSIGNALED(e->fd))
        json_object_set_new(line, "signal", json_integer(WTERMSIG(e->fd)));
    ub_offload_end(x, line);
    ub_explain_emit(x, line);
}

static void explain(struct ub_explain *x, struct ub_event *e)
{
    switch (e->kind) {
    case UB_EVENT_LOOP:
        on_loop(x, e);
        break;
    case UB_EVENT_SAMPLE:
    case UB_EVENT_GOING:
        if (e->flags & UB_SLOT_QUALIFIED)
            on_loop(x, e);
        thread_of(x, e);
        ub_stall_look(x, e);
        break;
    case UB_EVENT_END:
        if (e->flags & UB_RECORD_QUALIFIED)
            on_loop(x, e);
        thread_of(x, e);
        ub_stall_end(x, e);
        break;
    case UB_EVENT_GONE:
        thread_of(x, e);
        ub_stall_gone(x, e);
        clear_thread(&x->thread[e->slot]);
        break;
    case UB_EVENT_STATS:
        on_stats(x, e);
        break;
    case UB_EVENT_SITE:
        ub_offload_site(x, e);
        ub_explain_policy_site(x, e);
        break;
    case UB_EVENT_MEANWHILE:
        ub_offload_meanwhile(x, e);
        break;
    case UB_EVENT_LINT:
        ub_lint_unawaited(x, e);
        break;
    case UB_EVENT_POOL:
        ub_explain_pool(x, e);
        break;
    case UB_EVENT_NOTE:
        ub_explain_note(x, e->level, e->text ? e->text : "");
        break;
    case UB_EVENT_OFFLOAD:
        ub_offload_switch(x, e);
        break;
    case UB_EVENT_FINISH:
        on_finish(x, e);
        break;
    }
}

static struct ub_event *next_event(struct ub_watch *w)
{
    struct ub_event *e;

    pthread_mutex_lock(&w->queue_lock);
    while (!w->queue_head)
        pthread_cond_wait(&w->queue_filled, &w->queue_lock);
    e = w->queue_head;
    w->queue_head = e->next;
    if (!w->queue_head)
        w->queue_tail = &w->queue_head;
    w->queue_length--;
    pthread_mutex_unlock(&w->queue_lock);
    return e;
}

void *ub_explain_loop(void *watch)
{
    struct ub_watch *w = watch;
    bool over = false;

    if (!w->explain->policy) /* whose answers calls wait for */
        setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), UB_EXPLAIN_NICE);
    while (!over) {
        struct ub_event *e = next_event(w);

        over = e->kind == UB_EVENT_FINISH;
        explain(w->explain, e);
        ub_event_free(e);
    }
    return NULL;
}
