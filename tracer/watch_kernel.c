/*
 * What the kernel's programs (bpf/) tell the watching thread: turns that have
 * ended, and samples of turns that still run.
 */
#include "watch_impl.h"

#include <errno.h>
#include <stdlib.h>

#define UB_SEE_EXITS_FOR_NS 30000000u
#define UB_SEE_FOR_NS       1000000000u
#define UB_SEE_FOR_MAX_NS   64000000000u

/* A turn that the kernel saw to its end is put where an agent would have put it. */
static void on_turn(void *self, const struct ub_bpf_turn *turn)
{
    struct ub_watch *w = self;
    struct ub_watched *t = turn->slot < UB_BPF_SLOTS ? &w->watched[turn->slot] : NULL;
    struct ub_record record = {.kind = UB_RECORD_TURN,
                               .flags = turn->flags,
                               .start = turn->start,
                               .end = turn->end,
                               .turn = turn->turn,
                               .ready = turn->ready};

    if (!w->agentless || !t)
        return;
    ub_ring_put(&w->arena->cold[turn->slot].ring, &record);
    /* A late watcher reads more of them at once than fit there, or than the reasons that are kept. */
    if (t->process && t->pid == turn->pid && t->tid == turn->tid)
        ub_watch_drain(w, turn->slot);
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
    ub_watch_drain(w, s->slot); /* a late watcher reads of several turns at once: the one before ends first */
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

static bool nothing_runs(void *watch)
{
    return !ub_watch_any_running(watch);
}

static void see(struct ub_watch *w, enum ub_bpf_sees sees)
{
    int r = ub_bpf_see(w->bpf, sees, nothing_runs, w);

    if (r < 0 && r != -EBUSY)
        ub_watch_note(w, "error", "the BPF programs could not be attached again: nothing is seen from now on");
}

bool ub_watch_kernel_looks(const struct ub_watch *w)
{
    return ub_bpf_sees(w->bpf) != UB_BPF_SEES_NO_CALLS;
}

void ub_watch_kernel_doze(struct ub_watch *w)
{
    if (ub_watch_kernel_looks(w))
        see(w, UB_BPF_SEES_NO_CALLS);
}

void ub_watch_kernel_end_doze(struct ub_watch *w)
{
    if (ub_bpf_stretch_ns(w->bpf) == 0 && ub_bpf_sees(w->bpf) == UB_BPF_SEES_NO_CALLS)
        see(w, UB_BPF_SEES_ALL);
}

/*
 * When (ns) the oldest running turn will have lasted for `stretch`, as far as it was seen since `from`. One that has
 * lasted for very long by now most likely hangs in a single call: the whole machine need not pay for it.
 */
static uint64_t oldest_until(const struct ub_watch *w, uint32_t high, uint64_t stretch, uint64_t from)
{
    uint64_t next = UINT64_MAX, now = ub_clock_monotonic_ns();

    for (uint32_t i = 0; i < high; i++) {
        uint64_t start = ub_load_relaxed(&w->arena->slot[i].start);

        if (!start || ub_load_relaxed(&w->arena->slot[i].state) != UB_SLOT_LIVE)
            continue;
        start = ub_ticks_to_ns(start);
        if (start + UB_SEE_FOR_MAX_NS < now)
            continue;
        if (start < from)
            start = from;
        if (start + stretch < next)
            next = start + stretch;
    }
    return next;
}

/* More of the calls is to be seen since then; or for how long nothing of the kind must have been. */
static bool needed_since(const struct ub_watch *w, enum ub_bpf_sees sees, uint64_t from)
{
    return ub_bpf_program_ns(w->bpf) > from ||
           (sees == UB_BPF_SEES_NO_CALLS ? ub_bpf_stretched_ns(w->bpf) : ub_bpf_long_turn_ns(w->bpf)) > from;
}

/* Not while a turn takes long: what it does now is what is wanted, and the end of a call would be missed in between. */
static void see_less(struct ub_watch *w, uint32_t high, uint64_t now)
{
    enum ub_bpf_sees sees = ub_bpf_sees(w->bpf);
    uint64_t hold = sees == UB_BPF_SEES_ALL ? UB_SEE_EXITS_FOR_NS : w->see_for_ns;

    if (sees == UB_BPF_SEES_NO_CALLS || now - ub_bpf_sees_from_ns(w->bpf) < hold ||
        now - ub_bpf_program_ns(w->bpf) < UB_SEE_FOR_NS || needed_since(w, sees - 1, now - hold) ||
        oldest_until(w, high, 3 * ub_bpf_stretch_ns(w->bpf), 0) <= now)
        return;
    if (now >= (sees == UB_BPF_SEES_ALL ? w->see_all_until_ns : w->see_waits_until_ns))
        see(w, sees - 1);
}

/*
 * The tracer gets no CPU in time. Without the waits in sight that may hide how long a turn
 * was, so they are looked at for ever longer times; when it is later than that, the
 * kernel's programs had better see everything by themselves.
 */
static void note_lateness(struct ub_watch *w, uint64_t now, uint64_t stretch)
{
    uint64_t late = w->last_late_ns;

    w->last_late_ns = 0;
    if (!w->see_for_ns || (late <= stretch && now - ub_bpf_sees_from_ns(w->bpf) > UB_SEE_FOR_MAX_NS))
        w->see_for_ns = UB_SEE_FOR_NS;
    if (late <= stretch)
        return;
    if (ub_bpf_sees(w->bpf) == UB_BPF_SEES_NO_CALLS && w->see_for_ns < UB_SEE_FOR_MAX_NS)
        w->see_for_ns *= 2;
    w->see_waits_until_ns = now + w->see_for_ns;
    if (late > w->threshold_ns)
        w->see_all_until_ns = now + UB_SEE_FOR_NS;
}

/*
 * How much of the system calls is looked at, see ub_bpf_see(). As soon as a loop works for longer than a part of the
 * threshold without a sleep its waits are, and when one turn takes three times that everything is, a good
 * while before the threshold. Returns when to be back (ticks).
 */
uint64_t ub_watch_kernel_see(struct ub_watch *w, uint32_t high, uint64_t deadline)
{
    uint64_t now = ub_clock_monotonic_ns(), stretch = ub_bpf_stretch_ns(w->bpf), next, most;
    enum ub_bpf_sees sees = ub_bpf_sees(w->bpf);

    if (stretch == 0)
        return deadline; /* less is seen only while nothing runs at all */
    note_lateness(w, now, stretch);
    if (sees == UB_BPF_SEES_NO_CALLS)
        next = oldest_until(w, high, stretch, 0);
    else
        next = oldest_until(w, high, 3 * stretch, ub_bpf_sees_from_ns(w->bpf));
    if (sees < UB_BPF_SEES_ALL && (needed_since(w, sees, ub_bpf_sees_from_ns(w->bpf)) || now + w->early_ns >= next))
        sees++;
    if (sees == UB_BPF_SEES_NO_CALLS && now < w->see_waits_until_ns)
        sees = UB_BPF_SEES_ENTRIES;
    if (now < w->see_all_until_ns)
        sees = UB_BPF_SEES_ALL;
    if (sees != ub_bpf_sees(w->bpf)) {
        see(w, sees);
        next = now + stretch;
    } else {
        see_less(w, high, now);
    }
    sees = ub_bpf_sees(w->bpf);
    if (sees == UB_BPF_SEES_ALL)
        return deadline;
    most = now + (sees == UB_BPF_SEES_ENTRIES ? 3 * stretch : stretch); /* a turn may begin as soon as we sleep */
    if (next > most)
        next = most;
    next = ub_ticks_now() + ub_ticks_from_span_ns(next > now ? next - now : 0);
    return next < deadline ? next : deadline;
}

/* Nothing but waiting for a CPU takes long there; and where its stack was taken when it lost one is in no callback. */
static void leave_out_what_came_after(struct ub_reasons *r, uint64_t end)
{
    struct ub_bpf_accounts *a = &r->turn.accounts;
    uint64_t after = r->turn.end > end ? r->turn.end - end : 0;
    uint64_t waited = after < a->runqueue_ns ? after : a->runqueue_ns;
    uint64_t ran = after - waited < a->cpu_ns ? after - waited : a->cpu_ns;
    uint32_t kept = 0;

    a->runqueue_ns -= waited;
    a->cpu_ns -= ran;
    r->turn.end -= waited + ran;
    if (r->turn.neighbour_ns > a->runqueue_ns)
        r->turn.neighbour_ns = a->runqueue_ns;
    for (uint32_t i = 0; i < r->stack_count; i++) {
        if (r->stack[i].why == UB_BPF_STACK_LOST && r->stack[i].capture->at_ns > end)
            free(r->stack[i].capture);
        else
            r->stack[kept++] = r->stack[i];
    }
    r->stack_count = kept;
}

void ub_watch_kernel_reasons(struct ub_watch *w, struct ub_event *e)
{
    uint64_t end = ub_ticks_to_ns(e->end);

    e->reasons = ub_bpf_take(w->bpf, e->tid, ub_ticks_to_ns(e->start), end);
    if (e->reasons && !w->agentless && e->callback.kind == UB_CALLBACK_TURN)
        leave_out_what_came_after(e->reasons, end);
}
