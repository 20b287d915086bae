/*
 * The explaining thread: takes what the watching thread saw and writes the
 * recording's lines. Slow work (symbols, files) happens only here.
 */
#include "explain_impl.h"

#include "dispatchers.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

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
    ub_explain_emit(x, json_pack("{s:s, s:I, s:o}", "type", "stack", "id", known->id, "frames",
                                 ub_frames_json(s, x->w->redact)));
    return known->id;
}

static void now_text(char *buf, size_t size)
{
    struct timespec ts;
    struct tm tm;
    size_t len;

    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    len = strftime(buf, size, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(buf + len, size - len, ".%06ldZ", ts.tv_nsec / 1000);
}

static json_t *utf8(const char *s)
{
    json_t *j = json_string(s);

    return j ? j : json_string("(not UTF-8)");
}

static void emit_header(struct ub_explain *x, const struct ub_watch_options *options)
{
    json_t *command = json_array();
    char started[48], host[256] = "";

    for (int i = 0; i < options->argc; i++)
        json_array_append_new(command, utf8(options->redact && i > 0 ? "(redacted)" : options->argv[i]));
    gethostname(host, sizeof(host) - 1);
    now_text(started, sizeof(started));
    ub_explain_emit(x, json_pack("{s:s, s:s, s:i, s:s, s:s, s:I, s:o, s:o, s:I, s:s, s:s}", "type", "header", "schema",
                                 "unblock-recording", "version", 1, "tool", "unblock " UB_VERSION, "started", started,
                                 "monotonic_ns", (json_int_t)ub_clock_monotonic_ns(), "host", utf8(host), "command",
                                 command, "threshold_ns", (json_int_t)options->threshold_ns, "source", "agent",
                                 "offload", "off"));
}

int ub_explain_new(struct ub_watch *w, const struct ub_watch_options *options, struct ub_explain **ret)
{
    struct ub_explain *x = calloc(1, sizeof(*x));
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
    emit_header(x, options);
    *ret = x;
    return 0;
}

static void clear_thread(struct ub_thread_record *t)
{
    ub_stall_clear(&t->stall);
    for (uint32_t i = 0; i < t->pending_count; i++)
        json_decref(t->pending[i]);
    free(t->wait_stack);
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
    HASH_ITER(hh, x->stacks, stack, next_stack) {
        HASH_DEL(x->stacks, stack);
        free(stack);
    }
    HASH_ITER(hh, x->sites, site, next_site) {
        HASH_DEL(x->sites, site);
        free(site);
    }
    for (uint32_t i = 0; i < UB_SLOT_MAX; i++)
        clear_thread(&x->thread[i]);
    ub_frames_clear(&x->named);
    ub_unwinder_free(x->unwinder);
    free(x);
}

static void announce_process(struct ub_explain *x, struct ub_process *p)
{
    char path[64], args[4096];
    json_t *line, *list;
    FILE *f;
    size_t len = 0;

    if (!p || p->announced)
        return;
    p->announced = true;
    snprintf(path, sizeof(path), "/proc/%d/cmdline", p->pid);
    f = fopen(path, "re");
    if (f) {
        len = fread(args, 1, sizeof(args) - 1, f);
        fclose(f);
    }
    while (len > 0 && args[len - 1] == '\0') /* setproctitle() leaves the rest of the old arguments as NULs */
        len--;
    args[len] = '\0';
    list = json_array();
    for (size_t at = 0; at < len; at += strlen(args + at) + 1)
        json_array_append_new(list, utf8(x->w->redact && at > 0 ? "(redacted)" : args + at));
    line = json_pack("{s:s, s:i, s:i, s:o, s:o, s:s}", "type", "process", "pid", p->pid, "ppid", p->ppid, "exe",
                     utf8(p->exe ? p->exe : "?"), "args", list, "how", "preloaded");
    ub_explain_emit(x, line);
}

/* The kernel cuts names at 15 bytes, if need be in the middle of a character. */
static void cut_to_utf8(char *name)
{
    size_t len = strlen(name);
    json_t *valid;

    while (len > 0 && !(valid = json_stringn(name, len)))
        name[--len] = '\0';
    if (len > 0)
        json_decref(valid);
}

static void read_thread_name(struct ub_thread_record *t)
{
    char path[64];
    size_t len;
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%d/task/%d/comm", t->pid, t->tid);
    f = fopen(path, "re");
    if (!f)
        return;
    len = fread(t->name, 1, sizeof(t->name) - 1, f);
    fclose(f);
    t->name[len] = '\0';
    t->name[strcspn(t->name, "\n")] = '\0';
    cut_to_utf8(t->name);
}

/* The record of the event's thread; a slot that has a new owner starts afresh. */
static struct ub_thread_record *thread_of(struct ub_explain *x, const struct ub_event *e)
{
    struct ub_thread_record *t = &x->thread[e->slot];

    if (t->pid != e->pid || t->tid != e->tid) {
        clear_thread(t);
        t->pid = e->pid;
        t->tid = e->tid;
        t->loop = "turn";
        read_thread_name(t);
    }
    return t;
}

static void keep_wait_stack(struct ub_explain *x, struct ub_thread_record *t, const struct ub_event *e)
{
    struct ub_maps *maps;

    if (!e->capture || ub_process_refresh(e->process) < 0)
        return;
    maps = ub_process_maps(e->process);
    if (maps && ub_unwind(x->unwinder, maps, e->capture, &x->raw) == 0) {
        free(t->wait_stack);
        t->wait_stack = malloc(sizeof(*t->wait_stack));
        if (t->wait_stack)
            *t->wait_stack = x->raw;
        ub_frames_name(maps, &x->raw, &x->named);
        t->loop = ub_dispatchers_loop(&x->named);
    }
    ub_maps_unref(maps);
}

/* Once a thread: by the look at it in its wait, or by the first stall that the agent says was a loop's. */
static void on_loop(struct ub_explain *x, const struct ub_event *e)
{
    struct ub_thread_record *t = thread_of(x, e);

    if (e->kind == UB_EVENT_LOOP)
        keep_wait_stack(x, t, e);
    if (t->qualified)
        return;
    t->qualified = true;
    x->totals.loops++;
    announce_process(x, e->process);
    ub_explain_emit(x, json_pack("{s:s, s:i, s:i, s:s, s:s}", "type", "loop", "pid", e->pid, "tid", e->tid, "loop",
                                 t->loop, "identity", "turn"));
    ub_stall_qualified(x, t);
}

static json_t *histogram_json(const struct ub_histogram *h)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < UB_HISTOGRAM_BUCKETS; i++) {
        if (h->count[i])
            json_array_append_new(list, json_pack("[I, I]",
                                                  (json_int_t)ub_ticks_span_to_ns(ub_histogram_upper(i)),
                                                  (json_int_t)h->count[i]));
    }
    return list;
}

static void on_stats(struct ub_explain *x, const struct ub_event *e)
{
    struct ub_thread_record *t = thread_of(x, e);
    const struct ub_stats *s = e->stats;
    json_t *line;

    if (!t->qualified)
        return;
    line = json_pack("{s:s, s:i, s:i, s:s, s:I, s:I, s:I, s:I, s:I, s:o}", "type", "stats", "pid", e->pid, "tid", e->tid,
                     "loop", t->loop, "callbacks", (json_int_t)s->turns, "turns", (json_int_t)s->turns, "total_ns",
                     (json_int_t)ub_ticks_span_to_ns(s->busy_ticks), "busy_ns",
                     (json_int_t)ub_ticks_span_to_ns(s->busy_ticks), "max_ns",
                     (json_int_t)ub_ticks_span_to_ns(s->max_ticks), "histogram", histogram_json(&s->histogram));
    json_object_set_new(line, "at_ns", json_integer((json_int_t)ub_clock_monotonic_ns()));
    if (s->cpu_ns)
        json_object_set_new(line, "cpu_ns", json_integer((json_int_t)s->cpu_ns));
    ub_explain_emit(x, line);
}

static void emit_note(struct ub_explain *x, const char *level, const char *text)
{
    ub_explain_emit(x, json_pack("{s:s, s:s, s:s}", "type", "note", "level", level, "text", text));
}

/* Nothing seen is not the same as nothing there: say which. */
static void tell_what_was_not_seen(struct ub_explain *x)
{
    const struct ub_arena_header *h = &x->w->arena->h;
    char text[256];

    if (ub_load_relaxed(&h->elsewhere)) {
        snprintf(text, sizeof(text), "%u program images were not watched: they run in another PID namespace",
                 ub_load_relaxed(&h->elsewhere));
        emit_note(x, "warning", text);
    } else if (ub_load_relaxed(&h->images) == 0)
        emit_note(x, "warning",
                  "the agent was not loaded into the program: it is statically linked, set-user-ID, of another "
                  "architecture or C library, or clears LD_PRELOAD; nothing was watched");
    else if (x->totals.loops == 0)
        emit_note(x, "info",
                  "no event loop was seen: no thread came back to one epoll, poll, select or io_uring wait often enough "
                  "(8 times; poll and select on two descriptors or more). A program that goes into the background is "
                  "watched only until its first process ends: keep it in the foreground");
    if (x->w->left_running) {
        snprintf(text, sizeof(text), "%u loop threads of background processes still run and are watched no longer: the "
                 "run ends with the program that was started; keep it in the foreground", x->w->left_running);
        emit_note(x, "warning", text);
    }
    if (ub_load_relaxed(&h->no_slot)) {
        snprintf(text, sizeof(text), "%u threads were not watched: all %u slots were taken",
                 ub_load_relaxed(&h->no_slot), UB_SLOT_MAX);
        emit_note(x, "warning", text);
    }
}

static void on_finish(struct ub_explain *x, const struct ub_event *e)
{
    json_t *line;

    tell_what_was_not_seen(x);
    line = json_pack("{s:s, s:I, s:{s:I, s:I, s:I, s:i}}", "type", "end", "slow", x->last_slow, "lost", "ring",
                     (json_int_t)x->w->lost, "rate_limited", (json_int_t)x->w->rate_limited, "queue",
                     (json_int_t)x->w->queue_dropped, "torn", 0);
    json_object_set_new(line, "at_ns", json_integer((json_int_t)ub_clock_monotonic_ns()));
    if (e->flags && WIFEXITED(e->fd))
        json_object_set_new(line, "exit", json_integer(WEXITSTATUS(e->fd)));
    if (e->flags && WIFSIGNALED(e->fd))
        json_object_set_new(line, "signal", json_integer(WTERMSIG(e->fd)));
    ub_explain_emit(x, line);
}

static void explain(struct ub_explain *x, const struct ub_event *e)
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
    case UB_EVENT_NOTE:
        emit_note(x, e->level, e->text ? e->text : "");
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

    while (!over) {
        struct ub_event *e = next_event(w);

        over = e->kind == UB_EVENT_FINISH;
        explain(w->explain, e);
        ub_event_free(e);
    }
    return NULL;
}
