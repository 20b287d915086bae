/* Settings, maps, and what is remembered of a thread. */
#ifndef UB_BPF_STATE_H
#define UB_BPF_STATE_H

#define TASK_RUNNING         0
#define TASK_INTERRUPTIBLE   1
#define TASK_UNINTERRUPTIBLE 2
#define TASK_STOPPED_BIT     4
#define TASK_TRACED_BIT      8
#define TASK_WAKING          0x200 /* it was asleep, and somebody wakes it before it has left its CPU */
#define TASK_ASLEEP          (TASK_INTERRUPTIBLE | TASK_UNINTERRUPTIBLE | TASK_WAKING)
#define PF_KTHREAD           0x00200000

/* Set by the loader, constants to the verifier: what is not asked for is not even compiled in. */
const volatile u64 threshold_ns = 50000000;
const volatile u64 stretch_ns = 5000000; /* who works so long without a pause has its calls looked at */
const volatile bool follow_children = false;
const volatile bool slots_are_read = true; /* by the tracer, which gives them back; beside agents nobody does */
const volatile bool want_stacks = true;
const volatile bool want_calls = true;
const volatile u8 call_info[UB_BPF_CALL_TABLE];

/* Read and written by the tracer as well (.bss is mapped). */
u32 asleep;          /* the tracer sleeps: the next turn wakes it */
u32 dozing;          /* enum doze */
u64 calls_seen_ns;   /* since when calls are seen to begin, if they are */
u64 stretch_at;      /* when somebody had last worked for stretch_ns without a pause, */
u64 long_turn_at;    /* and for as long in one turn */
u64 unclear;         /* turns over the threshold of which less than that is certain */
u32 waiting;         /* threads in a turn that want a CPU and have none */
u64 wait_epoch;      /* since when the last of them does */
u32 no_slot;         /* threads that found no free slot */
u32 lost_threads;    /* threads for which there was no memory */
u64 lost_records;    /* turns and stacks that did not fit the ring */
u32 namespace_known; /* ns_level below is valid */
u32 ns_level;        /* how deep the tracer's PID namespace is */
u64 ns_address;      /* which it is */

/*
 * What is not seen, because nobody needs it now. Without its entries (DOZE_WAKE, DOZE_LIGHT) a turn begins when
 * its thread wakes and ends when that falls asleep in its wait; without its exits it begins when the wait
 * is entered, and did not if the thread falls asleep there.
 */
enum doze {
    DOZE_NONE,
    DOZE_WAKE,  /* no system calls: the next watched thread that comes onto a CPU wakes the tracer */
    DOZE_LIGHT, /* no system calls */
    DOZE_EXITS, /* no returns from system calls */
};

/*
 * A call during the first moments of a turn: its beginning is read from the clock
 * only if it blocks. Most turns end within a tick, and cost so much less.
 */
#define NOT_TIMED      1
#define TIME_ALL_BELOW 8000000 /* thresholds where a tick of 4 ms is not a moment */

enum off_how { OFF_RUNNABLE, OFF_CALL, OFF_FAULT, OFF_STOPPED };

struct thread {
    int task; /* the kernel's number of it */
    /* The running turn. */
    u64 start;  /* 0: none */
    u64 on_at;  /* since when it has the CPU */
    u64 off_at; /* since when it has not; 0: it has */
    u64 wake_at;
    u64 sys_at; /* since when it is in a call; 0: in none; NOT_TIMED */
    u64 start_jiffies;
    u64 sys_blocked, sys_longest_block;
    u64 stretch;                   /* since when it has not slept in its wait */
    u64 longest_block, longest_at; /* of the turn, in a call or a fault */
    u64 call_end, call_mark;       /* of a call that was first seen when it blocked: */
    u64 call_arg[6];               /* when it last came back from that, its registers */
    u64 next_stack;                /* no stack is copied before */
    u64 next_sample;               /* of its running */
    u32 sys_nr, wait_nr;
    u32 off_how;
    u32 waker_how;
    bool in_wait, restarts, served;
    bool slept;         /* in the wait that it is in */
    bool unseen;        /* the running turn began while calls were not seen: perhaps later than it seems */
    bool call_unseen;   /* the call in `sys_at` was met asleep, and its end may go unseen */
    bool exit_missed;   /* so may the end of the one that was entered last */
    bool woke;          /* the turn began before its wait returned: it may yet sleep there */
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
    u32 call_count;     /* of the slot's `calls` */
};

/*
 * Watched threads. An array, because a look into one is two instructions, where
 * task storage takes a call of 33 ns, several times a system call.
 */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, UB_BPF_THREADS);
    __type(key, u32);
    __type(value, struct thread);
} threads SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_STACK);
    __uint(max_entries, UB_BPF_THREADS);
    __type(value, u32);
} free_threads SEC(".maps");

/* Those whose place was taken: kernel's number to index in `threads`. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, UB_BPF_THREADS);
    __type(key, int);
    __type(value, u32);
} displaced SEC(".maps");

/* The longest calls of the running turn. */
struct calls {
    struct ub_bpf_call call[UB_BPF_CALLS];
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, UB_BPF_SLOTS);
    __type(key, u32);
    __type(value, struct calls);
} calls SEC(".maps");

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
 * Index + 1 in `threads` by the last bits of a thread's number: nearly all threads of
 * the machine are known not to be watched after this one load. Two watched ones
 * with the same bits: the later is `displaced`.
 */
#define PLACES 16384
u16 place_of[PLACES];
u32 displaced_count; /* ever: their places are ELSEWHERE rather than 0 once they are free */
#define ELSEWHERE 0xffff

static __noinline struct thread *displaced_thread(int number)
{
    u32 *index = displaced_count ? bpf_map_lookup_elem(&displaced, &number) : 0, at;
    struct thread *t;

    if (!index)
        return 0;
    at = *index;
    t = bpf_map_lookup_elem(&threads, &at);
    return t && t->task == number ? t : 0;
}

static __always_inline struct thread *thread_by_number(int number)
{
    u32 index = place_of[number & (PLACES - 1)];
    struct thread *t;

    if (!index)
        return 0;
    index--;
    t = bpf_map_lookup_elem(&threads, &index);
    if (t && t->task == number)
        return t;
    return displaced_thread(number);
}

static __always_inline struct thread *thread_of(struct task_struct *task)
{
    return thread_by_number(task->pid);
}

/* From now on `t`, number `index`, is found by `number`. */
static __always_inline void enter_thread(struct thread *t, u32 index, int number)
{
    u16 *place = &place_of[number & (PLACES - 1)];

    t->task = number;
    if (*place == 0 || *place == ELSEWHERE) {
        *place = index + 1;
        return;
    }
    __sync_fetch_and_add(&displaced_count, 1);
    bpf_map_update_elem(&displaced, &number, &index, 0);
}

/* The index of `t`, which is no longer found by its number. */
static __always_inline u32 leave_thread(struct thread *t)
{
    u16 *place = &place_of[t->task & (PLACES - 1)];
    int number = t->task;
    u32 *moved = displaced_count ? bpf_map_lookup_elem(&displaced, &number) : 0, index;

    if (moved) {
        index = *moved;
        bpf_map_delete_elem(&displaced, &number);
    } else {
        index = *place - 1;
        *place = displaced_count ? ELSEWHERE : 0;
    }
    t->task = 0;
    return index;
}

static __always_inline struct thread *new_thread(struct task_struct *task)
{
    struct thread *t;
    u32 index;

    if (bpf_map_pop_elem(&free_threads, &index) < 0 || !(t = bpf_map_lookup_elem(&threads, &index))) {
        __sync_fetch_and_add(&lost_threads, 1);
        return 0;
    }
    __builtin_memset(t, 0, sizeof(*t));
    enter_thread(t, index, task->pid);
    return t;
}

static __always_inline void free_thread(struct thread *t)
{
    u32 index = leave_thread(t);

    bpf_map_push_elem(&free_threads, &index, 0);
}

static __always_inline struct ub_bpf_slot *slot_of(const struct thread *t)
{
    u32 index = t->slot_plus1 - 1;

    return t->slot_plus1 ? bpf_map_lookup_elem(&slots, &index) : 0;
}

static __always_inline struct calls *calls_of(const struct thread *t)
{
    u32 index = t->slot_plus1 - 1;

    return t->slot_plus1 ? bpf_map_lookup_elem(&calls, &index) : 0;
}

#endif
