/*
 * Turns of event loops, seen from the kernel: a turn begins when a loop's wait
 * call returns and ends when it is entered again. Between the two every
 * nanosecond is accounted for (CPU, blocked, run queue, page fault), system calls
 * are added up, and what took long is kept with its details.
 *
 * Cost is what matters here: these programs run at every system call and every
 * context switch of the machine. A thread that is not watched is known after one
 * load; a watched one outside a turn after a few more.
 *
 * The rules of what is a loop are those of agent/loops/turn.c (turns.h here).
 */
#include "kernel.h"
#include "records.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#include "state.h"
#include "who.h"
#include "neighbour.h"
#include "account.h"
#include "stack.h"
#include "waits.h"
#include "turns.h"
#include "unseen.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* ---- system calls ---- */

SEC("tp_btf/sys_enter")
int BPF_PROG(ub_sys_enter, struct pt_regs *regs, long nr)
{
    struct thread *t = thread_of(bpf_get_current_task_btf());
    u32 kind;

    if (!t)
        return 0;
    kind = wait_kind(t, regs, nr);
    if (kind != WAIT_NONE && wait_entered(t, regs, nr, kind)) {
        if (dozing)
            passes_wait(t);
        return 0;
    }
    if (!t->start) {
        if (!t->in_wait)
            return 0;
        left_unseen(t, bpf_get_current_task_btf(), bpf_ktime_get_ns());
    }
    if (t->call_unseen)
        end_unseen_call(t);
    t->restarts = t->woke = false;
    t->exit_missed = dozing;
    t->accounts.syscalls++;
    t->sys_nr = nr;
    t->sys_at = threshold_ns >= TIME_ALL_BELOW && bpf_jiffies64() - t->start_jiffies < 2 && !t->sample_soon
                    ? NOT_TIMED
                    : bpf_ktime_get_ns();
    if (t->sample_soon)
        sample_now(t, regs, t->sys_at);
    t->sys_blocked = 0;
    t->sys_longest_block = 0;
    t->waker_how = UB_BPF_WAKER_NONE;
    return 0;
}

SEC("tp_btf/sys_exit")
int BPF_PROG(ub_sys_exit, struct pt_regs *regs, long ret)
{
    struct thread *t = thread_of(bpf_get_current_task_btf());

    if (!t)
        return 0;
    if (t->call_unseen && t->sys_nr != (u32)regs->orig_ax)
        end_unseen_call(t);
    if (t->in_wait)
        wait_left(t, regs, ret);
    else if (t->sys_at == NOT_TIMED)
        t->sys_at = 0;
    else if (t->sys_at)
        call_left(t, regs, ret);
    else if (t->start && (t->unseen || t->woke))
        exit_unseen(t, regs, ret);
    return 0;
}

/* ---- on and off the CPU ---- */

static __always_inline void switched_out(struct thread *t, struct task_struct *prev, bool preempt, u64 now)
{
    struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(prev);
    u32 state = prev->__state;

    back_on_cpu(t, now);
    t->accounts.cpu_ns += now - t->on_at;
    t->off_at = now;
    if (t->sys_at == NOT_TIMED)
        t->sys_at = now;
    t->wake_at = 0;
    if (preempt || state == TASK_RUNNING) {
        t->off_how = OFF_RUNNABLE;
        wants_cpu(t, now);
        /* On a machine so busy the tracer may come too late to have it sampled by its clock. */
        if (now - t->start >= threshold_ns && now >= t->next_sample)
            sample_now(t, regs, now);
        else if (now - t->start >= threshold_ns / 4 && now - t->start < threshold_ns && now >= t->next_stack)
            copy_own_stack(t, UB_BPF_STACK_LOST, regs, now, 0);
        return;
    }
    if (state & (TASK_STOPPED_BIT | TASK_TRACED_BIT))
        t->off_how = OFF_STOPPED;
    else if ((long)regs->orig_ax >= 0)
        t->off_how = OFF_CALL;
    else
        t->off_how = OFF_FAULT;
    if (t->off_how == OFF_FAULT && now - t->start >= threshold_ns / 2 && now >= t->next_stack)
        copy_own_stack(t, UB_BPF_STACK_FAULT, regs, now, 0);
}

SEC("tp_btf/sched_switch")
int BPF_PROG(ub_sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
    struct thread *out = thread_of(prev);
    struct thread *in = thread_of(next);

    if (waiting)
        note_runner(prev, bpf_ktime_get_ns());
    if (out && !preempt && prev->__state & TASK_ASLEEP) {
        struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(prev);

        out->slept |= out->in_wait;
        if ((dozing || out->woke) && (long)regs->orig_ax >= 0)
            slept_unseen(out, prev, regs, bpf_ktime_get_ns());
    }
    if (out && out->start)
        switched_out(out, prev, preempt, bpf_ktime_get_ns());
    if (in && dozing && !in->start)
        woke_from_doze(in, next, bpf_ktime_get_ns());
    if (in && in->start && in->off_at) {
        u64 now = bpf_ktime_get_ns();

        if (dozing == DOZE_EXITS && in->off_how == OFF_CALL)
            end_may_be_missed(in, next, now);
        switched_in(in, now);
    }
    return 0;
}

SEC("tp_btf/sched_waking")
int BPF_PROG(ub_sched_waking, struct task_struct *p)
{
    struct thread *t = thread_of(p);
    u64 now;

    if (!t || !t->start || !t->off_at || t->off_how == OFF_RUNNABLE || t->wake_at)
        return 0;
    now = bpf_ktime_get_ns();
    t->wake_at = now;
    wants_cpu(t, now);
    if (t->off_how == OFF_CALL)
        woken(t, p, now);
    return 0;
}

/*
 * The CPU clock of a loop's thread: it ticks only while that runs. A turn that
 * is overdue is sampled at 1, 2, 4 ... thresholds, in its own context; one that had
 * to wait for a CPU, as soon as it has one.
 */
SEC("perf_event")
int ub_tick(void *ctx)
{
    struct task_struct *task = bpf_get_current_task_btf();
    struct thread *t = thread_of(task);
    u64 now;

    if (!t || !t->start)
        return 0;
    now = bpf_ktime_get_ns();
    if (now - t->start >= threshold_ns && (now >= t->next_sample || t->sample_soon))
        sample_now(t, (struct pt_regs *)bpf_task_pt_regs(task), now);
    return 0;
}

/* ---- processes and threads ---- */

SEC("tp_btf/sched_process_fork")
int BPF_PROG(ub_fork, struct task_struct *parent, struct task_struct *child)
{
    struct thread *p = thread_of(parent), *t;

    if (!p || (child->tgid != parent->tgid && !follow_children))
        return 0;
    t = new_thread(child);
    if (!t)
        return 0;
    t->traits = p->traits;
    t->program_known = p->program_known;
    if (child->tgid == parent->tgid) {
        t->served = p->served;
    } else {
        t->program_known = false;
        ask_for_program(child);
    }
    return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(ub_exec, struct task_struct *p, int old_pid)
{
    struct thread *t;

    /* A thread that executes becomes its process's first, and takes over that one's number. */
    t = thread_by_number(old_pid);
    if (!t)
        return 0;
    if (old_pid != p->pid)
        enter_thread(t, leave_thread(t), p->pid);
    release_slot(t);
    t->start = t->sys_at = t->off_at = 0;
    t->in_wait = false;
    t->ra = t->sp = t->cand_ra = t->cand_sp = 0;
    t->cand_count = t->cand_turns = 0;
    t->traits = 0;
    t->served = t->program_known = false;
    t->single_polls = 0;
    ask_for_program(p);
    return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(ub_exit, struct task_struct *p)
{
    struct thread *t = thread_of(p);

    if (!t)
        return 0;
    stops_wanting(t);
    release_slot(t);
    free_thread(t);
    return 0;
}

/*
 * Run once for what lives already, and again when processes are added: every
 * thread of a process in `targets` gets its storage. One that sleeps in
 * epoll_wait right now is an event loop, and need not prove it first.
 */
SEC("iter/task")
int ub_find_threads(struct bpf_iter__task *ctx)
{
    struct task_struct *task = ctx->task;
    struct thread *t;
    int pid;

    if (!task || task->flags & PF_KTHREAD)
        return 0;
    if (!namespace_known)
        learn_namespace(bpf_get_current_task_btf());
    pid = pid_of(task->group_leader);
    if (!bpf_map_lookup_elem(&targets, &pid) || thread_of(task))
        return 0;
    t = new_thread(task);
    if (!t)
        return 0;
    if (task->pid == task->tgid)
        ask_for_program(task);
    t->served = true;
    if (task->__state & (TASK_INTERRUPTIBLE | TASK_UNINTERRUPTIBLE))
        found_asleep(t, task, (struct pt_regs *)bpf_task_pt_regs(task));
    return 0;
}
