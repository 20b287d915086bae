/* Where the time of a turn goes. */
#ifndef UB_BPF_ACCOUNT_H
#define UB_BPF_ACCOUNT_H

#define SYS_FUTEX 202

static __always_inline void blocked(struct thread *t, u64 ns)
{
    if (t->off_how == OFF_STOPPED) {
        t->accounts.stopped_ns += ns;
    } else if (t->off_how == OFF_FAULT) {
        t->accounts.fault_ns += ns;
    } else {
        t->accounts.blocked_ns += ns;
        t->sys_blocked += ns;
    }
}

/* The descriptor's file as it is now; its name is looked up later, if it still is the same. */
static __always_inline u64 inode_of(u64 fd)
{
    struct task_struct *task = bpf_get_current_task_btf();
    struct fdtable *fdt = BPF_CORE_READ(task, files, fdt);
    struct file **table = BPF_CORE_READ(fdt, fd), *file = 0;

    if ((u32)fd >= BPF_CORE_READ(fdt, max_fds))
        return 0;
    bpf_probe_read_kernel(&file, sizeof(file), table + (u32)fd);
    return file ? BPF_CORE_READ(file, f_inode, i_ino) : 0;
}

static __always_inline void read_args(const struct pt_regs *regs, u64 arg[6])
{
    arg[0] = regs->di;
    arg[1] = regs->si;
    arg[2] = regs->dx;
    arg[3] = regs->r10;
    arg[4] = regs->r8;
    arg[5] = regs->r9;
}

static __always_inline u64 one_arg(const u64 arg[6], u32 index)
{
    switch (index) {
    case 0:
        return arg[0];
    case 1:
        return arg[1];
    case 2:
        return arg[2];
    case 3:
        return arg[3];
    case 4:
        return arg[4];
    default:
        return arg[5];
    }
}

/* `regs` NULL: the call is over, and what its arguments point to may be something else by now. */
static __always_inline void describe(struct thread *t, struct ub_bpf_call *c, const struct pt_regs *regs, long ret,
                                     u64 spent, u8 info)
{
    u64 at;

    c->longest_ns = spent;
    c->at_ns = t->sys_at;
    c->ret = ret;
    c->detailed = 1;
    if (regs)
        read_args(regs, c->arg);
    else
        __builtin_memcpy(c->arg, t->call_arg, sizeof(c->arg));
    c->inode = regs && UB_BPF_FD(info) ? inode_of(one_arg(c->arg, UB_BPF_FD(info) - 1)) : 0;
    c->text[0] = 0;
    if (regs && UB_BPF_POINTER(info)) {
        at = one_arg(c->arg, UB_BPF_POINTER(info) - 1);
        /* Paths end early, and the page after them may not be there: what can be had without a fault. */
        if (!at || bpf_probe_read_user(c->text, sizeof(c->text), (void *)at) < 0) {
            __builtin_memset(c->text, 0, sizeof(c->text));
            if (at)
                bpf_probe_read_user_str(c->text, sizeof(c->text), (void *)at);
        }
    }
    c->waker_how = t->waker_how;
    c->waker = t->waker;
    c->waker_blocked_ns = t->sys_longest_block;
    if (t->sys_nr == SYS_FUTEX && ret != 0)
        c->waker_how = UB_BPF_WAKER_TIMER; /* it gave up by itself, or a signal came: nobody handed it the lock */
}

/* The entry of this call, or the one that has cost least and has to make room for it. */
static __always_inline struct ub_bpf_call *entry_of(struct thread *t, u32 nr, u64 key, u64 spent)
{
    struct calls *calls = calls_of(t);
    struct ub_bpf_call *least = 0;
    u32 i;

    if (!calls)
        return 0;
    for (i = 0; i < UB_BPF_CALLS; i++) {
        struct ub_bpf_call *c = &calls->call[i];

        if (i >= t->call_count) {
            t->call_count = i + 1;
            c->count = 0;
            least = c;
            break;
        }
        if (c->nr == nr && c->key == key)
            return c;
        if (!least || c->total_ns < least->total_ns)
            least = c;
    }
    if (!least || (least->count && least->total_ns >= spent))
        return 0;
    least->nr = nr;
    least->key = key;
    least->count = 0;
    least->total_ns = least->blocked_ns = least->longest_ns = 0;
    least->detailed = 0;
    return least;
}

static __always_inline void add_call(struct thread *t, const struct pt_regs *regs, long ret, u64 spent)
{
    u32 nr = t->sys_nr;
    u8 info = nr < UB_BPF_CALL_TABLE ? call_info[nr] : 0;
    u64 key = UB_BPF_FD(info) == 1 || nr == SYS_FUTEX ? (regs ? regs->di : t->call_arg[0]) : 0;
    struct ub_bpf_call *c = entry_of(t, nr, key, spent);

    if (!c)
        return;
    c->count++;
    c->total_ns += spent;
    c->blocked_ns += t->sys_blocked;
    if (spent > c->longest_ns && spent >= threshold_ns / UB_BPF_DETAIL)
        describe(t, c, regs, ret, spent, info);
}

/* Nearly every two calls differ in some register; one that sleeps several times does in none. */
static __always_inline u64 mark_of(const struct pt_regs *regs)
{
    u64 m = regs->ip;

    m = m * 31 + regs->sp;
    m = m * 31 + regs->di;
    m = m * 31 + regs->si;
    m = m * 31 + regs->dx;
    m = m * 31 + regs->r10;
    m = m * 31 + regs->bx;
    m = m * 31 + regs->bp;
    m = m * 31 + regs->r12;
    m = m * 31 + regs->r13;
    m = m * 31 + regs->r14;
    return m * 31 + regs->r15;
}

/* Between calls nothing is kept of the last one: the next may be noticed only when it wakes up. */
static __always_inline void no_call(struct thread *t)
{
    t->sys_at = 0;
    t->sys_blocked = 0;
    t->sys_longest_block = 0;
    t->waker_how = UB_BPF_WAKER_NONE;
    t->call_unseen = false;
}

/* A call whose end was not seen: it lasted at least until it last came back from sleeping. */
static __noinline int end_unseen_call(struct thread *t)
{
    if (!t)
        return 0;
    if (t->call_unseen && t->sys_at > NOT_TIMED && t->call_end > t->sys_at && want_calls)
        add_call(t, 0, 0, t->call_end - t->sys_at);
    no_call(t);
    return 0;
}

/* A thread in a turn falls asleep in a call that was not seen to begin, or will not be seen to end. */
static __always_inline void unseen_call(struct thread *t, const struct pt_regs *regs, u64 now)
{
    u64 mark = mark_of(regs);
    bool same = t->sys_at && t->sys_nr == (u32)regs->orig_ax;

    if (same && t->call_unseen && t->call_mark == mark)
        return; /* it goes on */
    if (!same || t->call_unseen) {
        end_unseen_call(t);
        t->accounts.syscalls++;
        t->sys_nr = regs->orig_ax;
        t->sys_at = now;
    }
    t->call_unseen = true;
    t->call_mark = mark;
    t->call_end = 0;
    read_args(regs, t->call_arg);
}

#endif
