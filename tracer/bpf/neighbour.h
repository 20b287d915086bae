/*
 * Who had the CPU while a watched thread waited for it. Only while one waits
 * (`waiting`) is anything noted, a CPU at a time: which tasks ran on it, and for
 * how long. Several waiting at once share the notes and know less.
 */
#ifndef UB_BPF_NEIGHBOUR_H
#define UB_BPF_NEIGHBOUR_H

#define RUNNERS 4

struct runner {
    int task; /* the kernel's number */
    u32 pad;
    u64 ns;
    struct ub_bpf_who who;
};

struct runners {
    u64 epoch, since; /* since when its present task runs, as far as the wait goes */
    struct runner runner[RUNNERS];
};

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, u32);
    __type(value, struct runners);
} on_cpu SEC(".maps");

/* From now on `t` wants a CPU. */
static __always_inline void wants_cpu(struct thread *t, u64 now)
{
    if (t->wants_cpu)
        return;
    t->wants_cpu = true;
    __sync_fetch_and_add(&waiting, 1);
    wait_epoch = now;
}

static __always_inline void stops_wanting(struct thread *t)
{
    if (!t->wants_cpu)
        return;
    t->wants_cpu = false;
    __sync_fetch_and_add(&waiting, -1);
}

/* `prev` leaves this CPU: how long it was on it, but not before the wait began. */
static __noinline int note_runner(struct task_struct *prev, u64 now)
{
    u64 ran, epoch = wait_epoch;
    struct runner *least;
    struct runners *r;
    u32 zero = 0, i;

    r = bpf_map_lookup_elem(&on_cpu, &zero);
    if (!r)
        return 0;
    if (r->epoch != epoch) {
        __builtin_memset(r, 0, sizeof(*r));
        r->epoch = r->since = epoch;
    }
    ran = now - r->since;
    r->since = now;
    if (prev->pid == 0)
        return 0;
    least = &r->runner[0];
    for (i = 0; i < RUNNERS; i++) {
        struct runner *k = &r->runner[i];

        if (k->task == prev->pid) {
            k->ns += ran;
            return 0;
        }
        if (k->ns < least->ns)
            least = k;
    }
    if (least->ns >= ran)
        return 0;
    least->task = prev->pid;
    least->ns = ran;
    who_is(prev, &least->who);
    return 0;
}

/* The wait is over. Named is only who had most of it. */
static __noinline int waited_for_cpu(struct thread *t, u64 ns)
{
    struct runner *most = 0;
    struct runners *r;
    u32 zero = 0, i;

    if (!t)
        return 0;
    stops_wanting(t);
    t->accounts.runqueue_ns += ns;
    t->sample_soon |= ns >= threshold_ns / 2;
    r = ns >= threshold_ns / 64 ? bpf_map_lookup_elem(&on_cpu, &zero) : 0;
    if (!r || r->epoch != wait_epoch)
        return 0;
    for (i = 0; i < RUNNERS; i++) {
        if (!most || r->runner[i].ns > most->ns)
            most = &r->runner[i];
    }
    if (!most || most->ns < ns / 2)
        return 0;
    if (t->neighbour_task == most->task) {
        t->neighbour_ns += most->ns;
    } else if (most->ns > t->neighbour_ns) {
        t->neighbour_task = most->task;
        t->neighbour_ns = most->ns;
        t->neighbour = most->who;
    }
    return 0;
}

#endif
