/*
 * Turns and calls while system calls are not seen, or only seen to begin (enum doze): what
 * the switches of a thread tell of them.
 */
#ifndef UB_BPF_UNSEEN_H
#define UB_BPF_UNSEEN_H

/*
 * While system calls are not seen (`dozing`) a loop that comes onto a CPU has slept
 * in its wait: there its turn begins. How many descriptors are ready is not known.
 */
static __always_inline void woke_from_doze(struct thread *t, struct task_struct *task, u64 now)
{
    struct ub_bpf_slot *slot = slot_of(t);

    if (dozing == DOZE_WAKE) {
        dozing = DOZE_LIGHT; /* told */
        wake_tracer();
    }
    if (!t->in_wait || !slot)
        return;
    t->in_wait = false;
    t->slept = true;
    t->restarts = true; /* perhaps it was a signal that woke it: then the wait goes on with the next call */
    begin_turn(t, slot, task, now, READY_UNKNOWN);
    t->woke = true;
    t->unseen = dozing != DOZE_EXITS;
}

/* It is in no wait, although none was seen to return: a turn that is seen from here on. */
static __always_inline void left_unseen(struct thread *t, struct task_struct *task, u64 now)
{
    struct ub_bpf_slot *slot = slot_of(t);

    t->in_wait = false;
    if (!slot)
        return;
    begin_turn(t, slot, task, now, READY_UNKNOWN);
    t->unseen = true;
}

/*
 * The wait's return will not be seen: what follows it begins now, unless the thread falls
 * asleep here. The time in a wait that does not sleep is the turn's, then: less than a microsecond.
 */
static __always_inline void passes_wait(struct thread *t)
{
    struct ub_bpf_slot *slot = slot_of(t);

    t->in_wait = false;
    if (!slot)
        return;
    begin_turn(t, slot, bpf_get_current_task_btf(), bpf_ktime_get_ns(), READY_UNKNOWN);
    t->woke = true;
}

/* A thread falls asleep in a call that may not have been seen. True: it is a wait, and the turn is over. */
static __noinline int slept_unseen(struct thread *t, struct task_struct *task, struct pt_regs *regs, u64 now)
{
    long nr = regs->orig_ax;
    struct ub_bpf_slot *slot;
    bool late = false;
    u32 kind;

    if (!t)
        return 0;
    if (t->in_wait) {
        if (nr == t->wait_nr || nr == SYS_RESTART_SYSCALL)
            return 1;
        left_unseen(t, task, now);
        late = true;
    }
    if (t->start && t->woke && !t->unseen && (nr == t->wait_nr || nr == SYS_RESTART_SYSCALL)) {
        slot = slot_of(t); /* it was in its wait all the time: no turn has begun */
        if (slot)
            slot->start = 0;
        t->start = 0;
        t->woke = false;
        t->in_wait = t->slept = true;
        return 1;
    }
    if ((dozing == DOZE_NONE || dozing == DOZE_EXITS) && !late && !(t->unseen && t->woke)) {
        if (t->start && dozing == DOZE_EXITS) /* it was seen to begin, and a wait would have been */
            unseen_call(t, regs, now);
        return 0;
    }
    kind = wait_kind(t, regs, nr);
    if (kind != WAIT_NONE && wait_entered(t, regs, nr, kind)) {
        t->slept = true;
        return 1;
    }
    if (!t->start)
        return 0;
    t->restarts = false;
    unseen_call(t, regs, now);
    return 0;
}

/*
 * A thread in a turn comes back from a call that was not seen to begin: from the wait
 * that its turn began in, or from a call that was running when calls began to be seen.
 */
static __noinline int exit_unseen(struct thread *t, struct pt_regs *regs, long ret)
{
    struct ub_bpf_slot *slot;
    long nr = regs->orig_ax;

    if (!t || !(slot = slot_of(t)))
        return 0;
    if (t->woke && nr == t->wait_nr) {
        t->woke = false;
        t->ready = ret > 0 ? ret : 0;
        slot->ready = t->ready;
        t->restarts = ret == ERESTART_RESTARTBLOCK;
        return 0;
    }
    t->woke = false;
    if (calls_seen_ns < t->start)
        return 0;
    t->accounts.syscalls++;
    t->sys_nr = nr;
    t->sys_at = calls_seen_ns;
    call_left(t, regs, ret);
    return 0;
}

/*
 * A thread comes back from its sleep in a call that was seen to begin, when returns had been in sight
 * and it did not matter that it slept. They are not now.
 */
static __noinline int end_may_be_missed(struct thread *t, struct task_struct *task, u64 now)
{
    struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);

    if (t && !t->call_unseen && t->sys_at > NOT_TIMED && t->sys_nr == (u32)regs->orig_ax)
        unseen_call(t, regs, now);
    return 0;
}

#endif
