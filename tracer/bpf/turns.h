/*
 * What is a loop: the rules of agent/loops/turn.c, with what the kernel sees of a
 * call. The agent knows the return address of the wait function and its frame; here
 * it is the address of the system call instruction and the stack pointer there,
 * which tells frames apart just as well.
 *
 *  - poll and select on fewer than two descriptors are how synchronous code waits,
 *    unless a loop library does: its return address lies close above the stack
 *    pointer, and where the libraries are the tracer says (programs).
 *  - A wait on the loop's own epoll descriptor is its wait wherever it is called from.
 *  - The same call deeper in the stack is a nested run of the same loop.
 *  - Another site takes over when it lies further out, or the old one is not seen any more.
 *  - Runtimes that park idle threads in futex: see UB_BPF_PARKS.
 */
#ifndef UB_BPF_TURNS_H
#define UB_BPF_TURNS_H

#define QUALIFY       8
#define FIRST_WAITS   2
#define ASK_AGAIN     64
#define RELEARN_OUTER 2
#define RELEARN_INNER 16

/* UB_SLOT_* and UB_RECORD_* of common/slot.h and ring.h; asserted by the loader. */
#define SLOT_QUALIFIED      1u
#define SLOT_SERVED         2u
#define SLOT_EPOLL          16u
#define RECORD_QUALIFIED    1u
#define RECORD_STARTUP      2u
#define RECORD_ABANDONED    4u
#define SLOT_STATE_LIVE     2
#define SLOT_STATE_RELEASED 3
#define READY_UNKNOWN       0xffffffffL

#define ERESTART_RESTARTBLOCK (-516)

/* ---- turns ---- */

static __always_inline void switched_in(struct thread *t, u64 now)
{
    u64 awake = now;

    if (t->off_how != OFF_RUNNABLE) {
        if (t->wake_at)
            awake = t->wake_at;
        blocked(t, awake - t->off_at);
        if (awake - t->off_at > t->longest_block) {
            t->longest_block = awake - t->off_at;
            t->longest_at = t->off_at;
        }
        t->call_end = now;
    } else {
        awake = t->off_at;
    }
    waited_for_cpu(t, now - awake);
    t->off_at = 0;
    t->on_at = now;
}

/*
 * Who leaves a CPU, or ends its turn, was on one. Once in a thousand stalls the
 * switch that brought it there is not seen (why is not known); it was when the
 * thread was woken, and what it slept must not be taken for work.
 */
static __always_inline void back_on_cpu(struct thread *t, u64 now)
{
    if (t->off_at)
        switched_in(t, t->wake_at ? t->wake_at : now);
}

static __always_inline u32 log2_of(u64 v)
{
    u32 r = 0;

    if (v >> 32) {
        v >>= 32;
        r += 32;
    }
    if (v >> 16) {
        v >>= 16;
        r += 16;
    }
    if (v >> 8) {
        v >>= 8;
        r += 8;
    }
    if (v >> 4) {
        v >>= 4;
        r += 4;
    }
    if (v >> 2) {
        v >>= 2;
        r += 2;
    }
    return r + (v >> 1 ? 1 : 0);
}

/* ub_histogram_index (common/histogram.h), in nanoseconds. */
static __always_inline void count_turn(u32 slot, u64 ns)
{
    struct histogram *h = bpf_map_lookup_elem(&histograms, &slot);
    u32 top, index;

    if (!h)
        return;
    if (ns < 64) {
        index = ns;
    } else {
        top = log2_of(ns);
        index = (top - 6) * 64 + (u32)(ns >> (top - 6));
    }
    if (index >= UB_BPF_BUCKETS)
        index = UB_BPF_BUCKETS - 1;
    h->count[index]++;
}

/*
 * A turn that began while calls were not seen may be several that followed each
 * other without a pause. What is certain of it is its longest sleep, or what came
 * after calls were seen again. How much of its beginning is not, in ns.
 */
static __always_inline u64 unclear_ns(const struct thread *t, u64 start, u64 end, u64 *ret_certain)
{
    u64 sure = end, certain = 0;

    if (calls_seen_ns > start && calls_seen_ns < end) {
        sure = calls_seen_ns;
        certain = end - sure;
    }
    if (t->longest_block > certain) {
        certain = t->longest_block;
        if (t->longest_at < sure)
            sure = t->longest_at;
    }
    if (certain < threshold_ns)
        __sync_fetch_and_add(&unclear, 1);
    *ret_certain = certain;
    return sure - start;
}

static __noinline int emit_turn(struct thread *t, struct ub_bpf_slot *slot, u64 start, u64 end, u64 more)
{
    struct task_struct *task = bpf_get_current_task_btf();
    struct ub_bpf_turn *r;
    struct calls *calls;
    u32 i;

    if (!t || !slot || !(calls = calls_of(t)))
        return 0;
    if (t->call_unseen)
        end_unseen_call(t);
    r = bpf_ringbuf_reserve(&ring, sizeof(*r), 0);
    if (!r) {
        __sync_fetch_and_add(&lost_records, 1);
        return 0;
    }
    r->kind = UB_BPF_RECORD_TURN;
    r->slot = t->slot_plus1 - 1;
    r->pid = slot->pid;
    r->tid = slot->tid;
    r->flags =
        more | (slot->flags & SLOT_QUALIFIED ? RECORD_QUALIFIED : 0) | (slot->flags & SLOT_SERVED ? 0 : RECORD_STARTUP);
    r->ready = t->ready;
    r->start = start;
    r->end = end;
    r->turn = slot->turns;
    r->certain_ns = end - start;
    r->unclear_ns = t->unseen && !(more & RECORD_ABANDONED) ? unclear_ns(t, start, end, &r->certain_ns) : 0;
    r->accounts = t->accounts;
    r->accounts.major_faults = task->maj_flt - t->faults_before;
    r->neighbour = t->neighbour;
    r->neighbour_ns = t->neighbour_ns;
    r->call_count = t->call_count;
    for (i = 0; i < UB_BPF_CALLS; i++)
        r->call[i] = calls->call[i];
    bpf_ringbuf_submit(r, 0);
    return 0;
}

static __always_inline void close_turn(struct thread *t, struct ub_bpf_slot *slot)
{
    u64 now, start = t->start, spent;

    if (!start)
        return;
    t->start = 0; /* before the record: the CPU clock may tick here, and must not sample what is told to be over */
    barrier();
    now = bpf_ktime_get_ns();
    spent = now - start;
    slot->start = 0;
    if (now - t->stretch >= stretch_ns)
        stretch_at = now;
    if (spent >= 3 * stretch_ns)
        long_turn_at = now;
    slot->turns++;
    slot->busy += spent;
    if (spent > slot->max)
        slot->max = spent;
    count_turn(t->slot_plus1 - 1, spent);
    if (spent >= threshold_ns) {
        back_on_cpu(t, now);
        t->accounts.cpu_ns += now - t->on_at;
        emit_turn(t, slot, start, now, 0);
    }
}

static __always_inline void wake_tracer(void)
{
    u32 kind = UB_BPF_RECORD_WAKE;

    bpf_ringbuf_output(&ring, &kind, sizeof(kind), BPF_RB_FORCE_WAKEUP);
}

static __always_inline void begin_turn(struct thread *t, struct ub_bpf_slot *slot, struct task_struct *task, u64 now,
                                       long ret)
{
    t->start = t->on_at = now;
    if (t->slept || !t->stretch)
        t->stretch = now;
    t->slept = t->unseen = t->woke = false;
    t->longest_block = 0;
    t->start_jiffies = bpf_jiffies64();
    t->off_at = 0;
    no_call(t);
    t->next_stack = 0;
    t->sample_soon = false;
    t->next_sample = now + threshold_ns;
    t->ready = ret > 0 ? ret : 0;
    t->call_count = 0;
    t->neighbour_ns = 0;
    t->neighbour_task = 0;
    t->faults_before = task->maj_flt;
    __builtin_memset(&t->accounts, 0, sizeof(t->accounts));
    slot->ready = t->ready;
    __sync_lock_test_and_set(&slot->start,
                             now); /* seen before `asleep` is read: the tracer looks the other way round */
    if (asleep || dozing == DOZE_WAKE) {
        asleep = 0;
        if (dozing == DOZE_WAKE)
            dozing = DOZE_LIGHT; /* told */
        wake_tracer();
    }
}

/* ---- slots ---- */

static __always_inline void release_slot(struct thread *t)
{
    struct ub_bpf_slot *slot = slot_of(t);
    u32 index = t->slot_plus1 - 1;

    t->slot_plus1 = 0;
    if (!slot)
        return;
    slot->start = 0;
    slot->state = SLOT_STATE_RELEASED;
    if (!slots_are_read)
        bpf_map_push_elem(&free_slots, &index, 0);
}

static __always_inline struct ub_bpf_slot *take_slot(struct thread *t, struct task_struct *task)
{
    struct ub_bpf_slot *slot;
    u32 index;

    if (bpf_map_pop_elem(&free_slots, &index) < 0) {
        __sync_fetch_and_add(&no_slot, 1);
        return 0;
    }
    slot = bpf_map_lookup_elem(&slots, &index);
    if (!slot)
        return 0;
    t->slot_plus1 = index + 1;
    slot->start = slot->turns = slot->busy = slot->max = slot->site = 0;
    slot->flags = t->served ? SLOT_SERVED : 0;
    slot->pid = pid_of(BPF_CORE_READ(task, group_leader));
    slot->tid = pid_of(task);
    slot->ready = 0;
    slot->epfd = -1;
    *(volatile u32 *)&slot->state = SLOT_STATE_LIVE;
    return slot;
}

/* ---- which wait is the loop's ---- */

/*
 * The return address of the wait function, for as long as the loop was not met in
 * its wait: libc's has no frame where the program has one thread. If it has one,
 * the word is something else, in no function of the stack, and serves nobody.
 */
static __always_inline void note_site(struct ub_bpf_slot *slot, u64 sp)
{
    u64 word = 0;

    bpf_probe_read_user(&word, sizeof(word), (void *)sp);
    slot->site = word;
}

static __always_inline void learn(struct thread *t, struct ub_bpf_slot *slot, u64 ra, u64 sp, u64 arg, u32 kind)
{
    u32 flags = slot->flags & ~(SLOT_QUALIFIED | SLOT_EPOLL);

    if (t->start) {
        u64 start = t->start;

        slot->start = 0;
        t->start = 0;
        barrier();
        emit_turn(t, slot, start, start, RECORD_ABANDONED);
    }
    t->ra = t->sp = 0;
    t->cand_ra = ra;
    t->cand_sp = sp;
    t->cand_count = t->cand_turns = 0;
    slot->epfd = kind == WAIT_EPOLL ? (int)arg : -1;
    slot->flags = flags | (kind == WAIT_EPOLL ? SLOT_EPOLL : 0);
}

static __always_inline void probation(struct thread *t, struct ub_bpf_slot *slot, u64 ra, u64 sp)
{
    t->cand_turns = 0;
    if (slot->ready > 0 && slot->ready != (u32)READY_UNKNOWN)
        slot->flags |= SLOT_SERVED;
    if (++t->cand_count > QUALIFY) {
        t->ra = ra;
        t->sp = sp;
        note_site(slot, sp);
        t->cand_ra = t->cand_sp = 0;
        t->cand_count = 0;
        slot->flags |= SLOT_QUALIFIED | SLOT_SERVED;
    }
}

static __always_inline bool takes_over(struct thread *t, const struct ub_bpf_slot *slot, u64 ra, u64 sp)
{
    u32 turns = slot->turns, limit = sp > t->sp ? RELEARN_OUTER : RELEARN_INNER;

    if (t->cand_ra != ra || t->cand_sp != sp || t->cand_turns != turns) {
        t->cand_ra = ra;
        t->cand_sp = sp;
        t->cand_turns = turns;
        t->cand_count = 0;
    }
    return ++t->cand_count >= limit;
}

/* A thread without a slot: only at its third return to one wait it gets one. */
static __always_inline bool first_waits(struct thread *t, u64 ra, u64 sp, u64 arg, u32 kind)
{
    u32 epfd = kind == WAIT_EPOLL ? (u32)arg : ~0u;
    struct ub_bpf_slot *slot;
    bool same = t->cand_ra && ((t->cand_ra == ra && t->cand_sp == sp) ||
                               (kind == WAIT_EPOLL && t->cand_turns == epfd) || kind == WAIT_PARK);

    if (!same) {
        t->cand_ra = ra;
        t->cand_sp = sp;
        t->cand_count = 0;
        t->cand_turns = epfd;
        return false;
    }
    t->cand_count++;
    if (t->cand_count != FIRST_WAITS && t->cand_count % ASK_AGAIN != 0)
        return false;
    slot = take_slot(t, bpf_get_current_task_btf());
    if (!slot)
        return false;
    learn(t, slot, ra, sp, arg, kind);
    t->cand_count = FIRST_WAITS;
    return true;
}

static __noinline int settle(struct thread *t, struct pt_regs *regs, u32 kind)
{
    struct ub_bpf_slot *slot;
    u64 ra, sp, arg;

    if (!t || !plausible(t, regs, kind))
        return 0;
    ra = regs->ip;
    sp = regs->sp;
    arg = regs->di;
    slot = slot_of(t);
    if (!slot)
        return first_waits(t, ra, sp, arg, kind);
    if ((kind == WAIT_EPOLL && (int)arg == slot->epfd) || t->traits & UB_BPF_PARKS) {
        close_turn(t, slot);
        if (t->ra) {
            t->ra = ra;
            t->sp = sp;
        } else {
            probation(t, slot, ra, sp);
        }
        return 1;
    }
    if (!t->ra && t->cand_ra == ra && t->cand_sp == sp) {
        close_turn(t, slot);
        probation(t, slot, ra, sp);
        return 1;
    }
    if (kind != WAIT_EPOLL && t->ra && ra == t->ra && sp < t->sp) {
        close_turn(t, slot);
        return 1;
    }
    if (!t->ra && sp < t->cand_sp && ++t->cand_turns < RELEARN_INNER)
        return 0;
    if (!t->ra || takes_over(t, slot, ra, sp)) {
        learn(t, slot, ra, sp, arg, kind);
        return 1;
    }
    return 0;
}

/* False: a wait, but not the loop's: a call like any other. */
static __always_inline bool wait_entered(struct thread *t, struct pt_regs *regs, long nr, u32 kind)
{
    struct ub_bpf_slot *slot;

    if (t->restarts) {
        t->restarts = false;
        if (nr == SYS_RESTART_SYSCALL) { /* the same wait goes on, as after SIGCONT: no turn was in between */
            slot = slot_of(t);
            if (slot)
                slot->start = 0;
            t->start = 0;
            t->wait_nr = nr;
            t->in_wait = true;
            return true;
        }
    }
    if (nr == SYS_RESTART_SYSCALL)
        return false;
    if (t->ra == regs->ip && t->sp == regs->sp) {
        slot = slot_of(t);
        if (slot)
            close_turn(t, slot);
    } else if (!settle(t, regs, kind)) {
        return false;
    }
    t->wait_nr = nr;
    t->in_wait = true;
    return true;
}

static __always_inline void wait_left(struct thread *t, struct pt_regs *regs, long ret)
{
    struct ub_bpf_slot *slot = slot_of(t);

    t->in_wait = false;
    if (!slot || regs->orig_ax != t->wait_nr)
        return;
    t->restarts = ret == ERESTART_RESTARTBLOCK;
    begin_turn(t, slot, bpf_get_current_task_btf(), bpf_ktime_get_ns(), ret);
    t->unseen = dozing == DOZE_WAKE || dozing == DOZE_LIGHT; /* they are being taken away: its end may not be seen */
}

/* A thread met while it sleeps, at the start: if that is in epoll_wait, a loop was found. */
static __always_inline void found_asleep(struct thread *t, struct task_struct *task, struct pt_regs *regs)
{
    u32 kind = wait_kind(t, regs, regs->orig_ax);
    struct ub_bpf_slot *slot;

    if (kind != WAIT_EPOLL)
        return;
    slot = take_slot(t, task);
    if (!slot)
        return;
    learn(t, slot, regs->ip, regs->sp, regs->di, kind);
    t->ra = regs->ip;
    t->sp = regs->sp;
    t->cand_ra = t->cand_sp = 0;
    slot->flags |= SLOT_QUALIFIED | SLOT_SERVED;
    t->wait_nr = regs->orig_ax;
    t->in_wait = true;
}

#endif
