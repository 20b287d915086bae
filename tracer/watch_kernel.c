/*
 * What the kernel's programs (bpf/) tell the watching thread: turns that have
 * ended, and samples of turns that still run.
 */
#include "watch_impl.h"

#include <stdlib.h>
#include <time.h>

#define UB_REASON_TRIES   8 /* for the kernel's record of a turn that an agent has ended */
#define UB_REASON_WAIT_NS 100000

/* A turn that the kernel saw to its end is put where an agent would have put it. */
static void on_turn(void *self, const struct ub_bpf_turn *turn)
{
    struct ub_watch *w = self;
    struct ub_record record = {.kind = UB_RECORD_TURN,
                               .flags = turn->flags,
                               .start = turn->start,
                               .end = turn->end,
                               .turn = turn->turn,
                               .ready = turn->ready};

    if (w->agentless && turn->slot < UB_BPF_SLOTS)
        ub_ring_put(&w->arena->cold[turn->slot].ring, &record);
}

static void on_sample(void *self, const struct ub_bpf_stack *s, struct ub_capture *capture)
{
    struct ub_watch *w = self;
    struct ub_watched *t = s->slot < UB_BPF_SLOTS ? &w->watched[s->slot] : NULL;
    struct ub_event *e = NULL;

    /* Beside agents its slots are others than ours, and they take the samples. */
    if (capture && w->agentless && t && t->process && t->pid == s->pid && t->tid == s->tid)
        e = ub_event_new(UB_EVENT_SAMPLE);
    if (!e) {
        free(capture);
        return;
    }
    capture->proc_state = 'R';
    e->capture = capture;
    e->slot = s->slot;
    e->pid = t->pid;
    e->tid = t->tid;
    e->process = ub_process_ref(t->process);
    e->start = s->start;
    e->end = s->at;
    if (t->start == s->start) {
        e->baseline = t->baseline;
        ub_watch_account(t, true, &e->account);
    }
    e->ready = ub_load_relaxed(&w->arena->slot[s->slot].ready);
    e->flags = ub_load_relaxed(&w->arena->slot[s->slot].flags);
    ub_watch_queue(w, e);
}

void ub_watch_kernel_poll(struct ub_watch *w)
{
    const struct ub_bpf_listener listener = {.turn = on_turn, .sample = on_sample, .self = w};

    ub_bpf_poll(w->bpf, &listener);
}

/*
 * What the kernel saw of a turn. The agent ends its turn a moment before the
 * wait call is entered, where the kernel ends it: its word may still be on the way.
 */
struct ub_reasons *ub_watch_kernel_reasons(struct ub_watch *w, pid_t tid, const struct ub_record *record)
{
    uint64_t start = ub_ticks_to_ns(record->start), end = ub_ticks_to_ns(record->end);
    struct ub_reasons *r = ub_bpf_take(w->bpf, tid, start, end);

    for (int i = 0; !r && !w->agentless && i < UB_REASON_TRIES; i++) {
        nanosleep(&(struct timespec){0, UB_REASON_WAIT_NS}, NULL);
        ub_watch_kernel_poll(w);
        r = ub_bpf_take(w->bpf, tid, start, end);
    }
    return r;
}
