/* Processes and threads as the tracer's PID namespace numbers them. */
#ifndef UB_BPF_WHO_H
#define UB_BPF_WHO_H

static __always_inline void learn_namespace(struct task_struct *tracer)
{
    struct pid *pid = tracer->thread_pid;
    u32 level = BPF_CORE_READ(pid, level);
    struct upid upid = {0};

    if (level > 32)
        return;
    bpf_core_read(&upid.ns, sizeof(upid.ns), &pid->numbers[level].ns);
    ns_level = level;
    ns_address = (u64)upid.ns;
    namespace_known = 1;
}

/* 0: it is not visible from the tracer's namespace. */
static __noinline int pid_of(struct task_struct *task)
{
    struct pid *pid = BPF_CORE_READ(task, thread_pid);
    struct pid_namespace *ns = 0;
    u32 level = ns_level;
    int nr = 0;

    if (!pid || level > 32 || BPF_CORE_READ(pid, level) < level)
        return 0;
    bpf_core_read(&ns, sizeof(ns), &pid->numbers[level].ns);
    if ((u64)ns == ns_address)
        bpf_core_read(&nr, sizeof(nr), &pid->numbers[level].nr);
    return nr;
}

static __always_inline void who_is(struct task_struct *task, struct ub_bpf_who *ret)
{
    ret->tid = pid_of(task);
    ret->pid = pid_of(BPF_CORE_READ(task, group_leader));
    bpf_probe_read_kernel_str(ret->comm, sizeof(ret->comm), &task->comm);
}

#endif
