/* Settings, maps, and what is remembered of a thread. */
#ifndef UB_BPF_STATE_H
#define UB_BPF_STATE_H

#define TASK_RUNNING         0
#define TASK_INTERRUPTIBLE   1
#define TASK_UNINTERRUPTIBLE 2
#define TASK_STOPPED_BIT     4
#define TASK_TRACED_BIT      8
#define PF_KTHREAD           0x00200000

/* Set by the loader, constants to the verifier: what is not asked for is not even compiled in. */
const volatile u64 threshold_ns = 50000000;
const volatile bool follow_children = false;
const volatile bool want_stacks = true;
const volatile bool want_calls = true;
const volatile u8 call_info[UB_BPF_CALL_TABLE];

/* Read and written by the tracer as well (.bss is mapped). */
u32 asleep;          /* the tracer sleeps: the next turn wakes it */
u32 waiting;         /* threads in a turn that want a CPU and have none */
u64 wait_epoch;      /* since when the last of them does */
u32 no_slot;         /* threads that found no free slot */
u32 lost_threads;    /* threads for which there was no memory */
u64 lost_records;    /* turns and stacks that did not fit the ring */
u32 namespace_known; /* ns_level below is valid */
u32 ns_level;        /* how deep the tracer's PID namespace is */
u64 ns_address;      /* which it is */

/*
 * A call during the first moments of a turn: its beginning is read from the clock
 * only if it blocks. Most turns end within a tick, and cost so much less.
 */
#define NOT_TIMED      1
#define TIME_ALL_BELOW 8000000 /* thresholds where a tick of 4 ms is not a moment */

enum off_how { OFF_RUNNABLE, OFF_CALL, OFF_FAULT, OFF_STOPPED };

struct thread {
    /* The running turn. */
    u64 start;  /* 0: none */
    u64 on_at;  /* since when it has the CPU */
    u64 off_at; /* since when it has not; 0: it has */
    u64 wake_at;
    u64 sys_at; /* since when it is in a call; 0: in none; NOT_TIMED */
    u64 start_jiffies;
    u64 sys_blocked, sys_longest_block;
    u64 next_stack;  /* no stack is copied before */
    u64 next_sample; /* of its running */
    u32 sys_nr, wait_nr;
    u32 off_how;
    u32 waker_how;
    bool in_wait, restarts, served;
    bool program_known; /* `traits` is valid */
    bool wants_cpu;     /* counted in `waiting` */
    bool sample_soon;   /* it had no CPU for long: its stack at the next opportunity */
    u32 slot_plus1;
    u32 traits, ready;

    /* What is the loop's wait: see turns.h. */
    u64 ra, sp, cand_ra, cand_sp;
    u32 cand_count, cand_turns;
    u32 single_polls;

    struct ub_bpf_accounts accounts;
    u64 faults_before;
    struct ub_bpf_who waker, neighbour;
    u64 neighbour_ns;
    int neighbour_task; /* the kernel's number of it; 0: none yet */
    u32 call_count;
    struct ub_bpf_call call[UB_BPF_CALLS];
};

struct {
    __uint(type, BPF_MAP_TYPE_TASK_STORAGE);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, int);
    __type(value, struct thread);
} threads SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 4096);
    __type(key, int);
    __type(value, u32);
} targets SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 4096);
    __type(key, int);
    __type(value, struct ub_bpf_program);
} programs SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, UB_BPF_SLOTS);
    __type(key, u32);
    __type(value, struct ub_bpf_slot);
} slots SEC(".maps");

struct histogram {
    u64 count[UB_BPF_BUCKETS];
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, UB_BPF_SLOTS);
    __type(key, u32);
    __type(value, struct histogram);
} histograms SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_STACK);
    __uint(max_entries, UB_BPF_SLOTS);
    __type(value, u32);
} free_slots SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, 4 << 20);
} ring SEC(".maps");

/*
 * How many watched threads have a number that ends in these bits: nearly all
 * threads of the machine are known not to be watched after one load, where asking
 * for their storage takes 33 ns.
 */
#define MAYBE 16384
u32 maybe_watched[MAYBE];

static __always_inline struct thread *thread_of(struct task_struct *task)
{
    if (!maybe_watched[task->pid & (MAYBE - 1)])
        return 0;
    return bpf_task_storage_get(&threads, task, 0, 0);
}

static __always_inline struct thread *new_thread(struct task_struct *task)
{
    struct thread *t = bpf_task_storage_get(&threads, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

    if (t)
        __sync_fetch_and_add(&maybe_watched[task->pid & (MAYBE - 1)], 1);
    else
        __sync_fetch_and_add(&lost_threads, 1);
    return t;
}

static __always_inline struct ub_bpf_slot *slot_of(const struct thread *t)
{
    u32 index = t->slot_plus1 - 1;

    return t->slot_plus1 ? bpf_map_lookup_elem(&slots, &index) : 0;
}

#endif
