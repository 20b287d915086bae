/*
 * The user's stack, copied by the thread itself while it is in the kernel: registers and bytes
 * belong together, and nothing can change meanwhile.
 */
#ifndef UB_BPF_STACK_H
#define UB_BPF_STACK_H

static __always_inline void copy_regs(struct ub_bpf_stack *s, const struct pt_regs *regs)
{
    s->reg[0] = regs->ax;
    s->reg[1] = regs->dx;
    s->reg[2] = regs->cx;
    s->reg[3] = regs->bx;
    s->reg[4] = regs->si;
    s->reg[5] = regs->di;
    s->reg[6] = regs->bp;
    s->reg[7] = regs->sp;
    s->reg[8] = regs->r8;
    s->reg[9] = regs->r9;
    s->reg[10] = regs->r10;
    s->reg[11] = regs->r11;
    s->reg[12] = regs->r12;
    s->reg[13] = regs->r13;
    s->reg[14] = regs->r14;
    s->reg[15] = regs->r15;
    s->reg[16] = regs->ip;
}

/* Page by page up to the first hole: a whole range would fail as one. */
static __always_inline void copy_bytes(struct ub_bpf_stack *s, u64 sp)
{
    u32 chunk = 4096 - (sp & 4095), at = 0, i;

    for (i = 0; i < UB_BPF_STACK / 4096; i++) {
        at &= UB_BPF_STACK - 1;
        if (chunk == 0 || chunk > 4096 || bpf_probe_read_user(s->bytes + at, chunk, (void *)(sp + at)) < 0)
            break;
        at += chunk;
        chunk = 4096;
        s->len = at;
    }
}

/* A call whose end may go unseen is over, for all that is known, as soon as it has come back from a sleep. */
static __always_inline bool in_call(const struct thread *t)
{
    return t->sys_at && !t->exit_missed && !(t->call_unseen && t->call_end);
}

static __noinline int copy_stack(struct thread *t, u32 why, struct pt_regs *regs, struct task_struct *whose, u64 now)
{
    struct ub_bpf_stack *s;

    if (!t || !want_stacks)
        return 0;
    s = bpf_ringbuf_reserve(&ring, sizeof(*s), 0);
    if (!s) {
        __sync_fetch_and_add(&lost_records, 1);
        return 0;
    }
    s->kind = UB_BPF_RECORD_STACK;
    s->slot = t->slot_plus1 - 1;
    s->tid = pid_of(whose);
    s->pid = pid_of(BPF_CORE_READ(whose, group_leader));
    s->why = why;
    s->nr = why == UB_BPF_STACK_CALL || ((why == UB_BPF_STACK_RUNNING || why == UB_BPF_STACK_LOST) && in_call(t))
                ? t->sys_nr
                : ~0u;
    s->start = t->start;
    s->at = now;
    s->call_ns = t->sys_at ? now - t->sys_at : 0;
    s->len = 0;
    copy_regs(s, regs);
    read_args(regs, s->arg);
    copy_bytes(s, regs->sp);
    bpf_ringbuf_submit(s, 0);
    return 0;
}

/* At most one a half threshold, so that a turn of many blocks costs no more than a few copies. */
static __always_inline void copy_own_stack(struct thread *t, u32 why, struct pt_regs *regs, u64 now, u64 unused)
{
    t->next_stack = now + threshold_ns / 2;
    copy_stack(t, why, regs, bpf_get_current_task_btf(), now);
}

/* A stack of a thread that runs. One from within a call, before it has done anything, is where it came from. */
static __always_inline void sample_now(struct thread *t, struct pt_regs *regs, u64 now)
{
    t->sample_soon = false;
    if (now - t->start < threshold_ns)
        return; /* it may yet be in time: the clock's tick will tell */
    t->next_sample = now + (now - t->start);
    copy_stack(t, UB_BPF_STACK_RUNNING, regs, bpf_get_current_task_btf(), now);
}

/* The thread is being woken, by whoever runs here now. */
static __always_inline void woken(struct thread *t, struct task_struct *task, u64 now)
{
    struct task_struct *by = bpf_get_current_task_btf();
    struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(by), *own = (struct pt_regs *)bpf_task_pt_regs(task);
    u64 slept = now - t->off_at;
    bool futex;

    if (slept < t->sys_longest_block || slept < threshold_ns / UB_BPF_DETAIL)
        return;
    t->sys_longest_block = slept;
    if (by->pid == 0) {
        t->waker_how = UB_BPF_WAKER_TIMER;
        return;
    }
    futex = own->orig_ax == SYS_FUTEX && !(by->flags & PF_KTHREAD) && regs->orig_ax == SYS_FUTEX;
    t->waker_how = futex ? UB_BPF_WAKER_FUTEX : UB_BPF_WAKER_OTHER;
    who_is(by, &t->waker);
    if (futex && slept >= threshold_ns / 2)
        copy_stack(t, UB_BPF_STACK_HOLDER, regs, by, now);
}

static __always_inline void call_left(struct thread *t, struct pt_regs *regs, long ret)
{
    u64 now = bpf_ktime_get_ns(), spent = now - t->sys_at;

    if (want_calls)
        add_call(t, regs, ret, spent);
    if (spent >= threshold_ns / 2 && now >= t->next_stack)
        copy_own_stack(t, UB_BPF_STACK_CALL, regs, now, 0);
    no_call(t);
}

#endif
