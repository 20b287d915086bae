/* Which system calls are waits at all; which of them is the loop's own: turns.h. */
#ifndef UB_BPF_WAITS_H
#define UB_BPF_WAITS_H

#define SYS_RESTART_SYSCALL 219

enum wait_kind { WAIT_NONE, WAIT_EPOLL, WAIT_POLL, WAIT_SELECT, WAIT_URING, WAIT_PARK };

static __always_inline void ask_for_program(struct task_struct *task)
{
    struct ub_bpf_program_record r = {.kind = UB_BPF_RECORD_PROGRAM, .tgid = task->tgid};

    r.pid = pid_of(BPF_CORE_READ(task, group_leader));
    bpf_ringbuf_output(&ring, &r, sizeof(r), BPF_RB_FORCE_WAKEUP);
}

static __always_inline struct ub_bpf_program *program_of(void)
{
    int tgid = bpf_get_current_task_btf()->tgid;

    return bpf_map_lookup_elem(&programs, &tgid);
}

static __noinline int parks(struct thread *t)
{
    struct ub_bpf_program *p;

    if (!t)
        return 0;
    if (!t->program_known) {
        p = program_of();
        if (!p)
            return 0;
        t->traits = p->traits;
        t->program_known = true;
    }
    return t->traits & UB_BPF_PARKS;
}

static __always_inline u32 wait_kind(struct thread *t, const struct pt_regs *regs, long nr)
{
    switch (nr) {
    case 232: /* epoll_wait */
    case 281: /* epoll_pwait */
    case 441: /* epoll_pwait2 */
        return WAIT_EPOLL;
    case 7:   /* poll */
    case 271: /* ppoll */
        return WAIT_POLL;
    case 23:  /* select */
    case 270: /* pselect6 */
        return WAIT_SELECT;
    case 426: /* io_uring_enter: with IORING_ENTER_GETEVENTS, for at least one */
        return regs->dx && regs->r10 & 1 ? WAIT_URING : WAIT_NONE;
    case 202: /* futex: FUTEX_WAIT, FUTEX_WAIT_BITSET */
        return ((regs->si & 0x7f) == 0 || (regs->si & 0x7f) == 9) && parks(t) ? WAIT_PARK : WAIT_NONE;
    case 35: /* nanosleep */
        return parks(t) ? WAIT_PARK : WAIT_NONE;
    case SYS_RESTART_SYSCALL:
        return t->restarts ? WAIT_EPOLL : WAIT_NONE;
    default:
        return WAIT_NONE;
    }
}

/* 1 for anything but 0, without a branch: sixteen of them would be more paths than the verifier walks. */
static __always_inline u64 not_zero(u64 v)
{
    v |= -v;
    asm volatile("" : "+r"(v));
    return v >> 63;
}

/* Bits set in one set of select; 0, 1, or at least 2. */
static __always_inline u64 two_bits(u64 set, u64 count)
{
    u32 i, words = count >= 1024 ? 16 : (u32)(count + 63) / 64;
    u64 word[16] = {}, bits = 0;

    asm volatile("" : "+r"(words)); /* keeps the check below, which only the verifier needs */
    if (!set || words == 0 || words > 16 || bpf_probe_read_user(word, words * 8, (void *)set) < 0)
        return 0;
    for (i = 0; i < 16; i++)
        bits += not_zero(word[i]) + not_zero(word[i] & (word[i] - 1));
    return bits;
}

static __noinline int watches_two(struct pt_regs *regs)
{
    u64 count = (u32)regs->di;

    return two_bits(regs->si, count) + two_bits(regs->dx, count) + two_bits(regs->r10, count) >= 2;
}

/* One of the words right above the stack pointer is the return address of libc's poll(). */
static __noinline int library_polls(struct thread *t, struct pt_regs *regs)
{
    struct ub_bpf_program *p = program_of();
    u64 word[8] = {}, start, end, found = 0;
    u32 i, k;

    if (!t)
        return 0;
    t->single_polls++;
    if ((t->single_polls & (t->single_polls - 1)) == 0) /* it may have loaded one meanwhile: ask ever more seldom */
        ask_for_program(bpf_get_current_task_btf());
    if (!p || !p->library[0].end || bpf_probe_read_user(word, sizeof(word), (void *)regs->sp) < 0)
        return 0;
    for (k = 0; k < UB_BPF_LIBRARIES; k++) {
        start = p->library[k].start;
        end = p->library[k].end;
        for (i = 0; i < 8; i++)
            found |= (word[i] - end) & ~(word[i] - start); /* top bit: start <= word < end; no branch, see not_zero */
    }
    return found >> 63 != 0;
}

static __always_inline bool plausible(struct thread *t, struct pt_regs *regs, u32 kind)
{
    if (kind == WAIT_POLL && (u32)regs->si == 1)
        return library_polls(t, regs);
    if (kind == WAIT_POLL)
        return (u32)regs->si >= 2;
    if (kind == WAIT_SELECT)
        return watches_two(regs);
    return true;
}

#endif
