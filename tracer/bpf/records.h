/*
 * What the BPF program (unblock.bpf.c) and its loader agree on. Both are built
 * from this file, so nothing here may include anything.
 */
#ifndef UB_BPF_RECORDS_H
#define UB_BPF_RECORDS_H

#define UB_BPF_SLOTS      256   /* event-loop threads at one time */
#define UB_BPF_THREADS    8192  /* watched threads, loops or not, at one time */
#define UB_BPF_CALLS      6     /* longest (call, descriptor) pairs kept of a turn */
#define UB_BPF_TEXT       128   /* bytes of the memory that a call's pointer argument points to */
#define UB_BPF_STACK      32768 /* bytes of a copied stack */
#define UB_BPF_CALL_TABLE 512
#define UB_BPF_COMM       16
#define UB_BPF_BUCKETS    2624 /* UB_HISTOGRAM_BUCKETS, asserted by the loader */
#define UB_BPF_REGS       17   /* UB_REG_COUNT */

/* What is known of a system call, by its number (rodata `call_info`): index + 1 of an argument in four bits each. */
#define UB_BPF_FD(info)      ((info)&15)          /* the descriptor it works on */
#define UB_BPF_POINTER(info) (((info) >> 4) & 15) /* a path, an address, a timeout: copied for people */

/* Same layout as struct ub_slot (common/slot.h); asserted by the loader. */
struct ub_bpf_slot {
    unsigned long long start, turns, busy, max, site;
    unsigned int state, flags;
    int pid, tid;
    unsigned int ready;
    int epfd;
};

enum ub_bpf_waker {
    UB_BPF_WAKER_NONE,  /* nobody woke it: it did not block, or the waker was not seen */
    UB_BPF_WAKER_FUTEX, /* a thread inside futex(2) */
    UB_BPF_WAKER_TIMER, /* an interrupt on an idle CPU, or the call said that its time was up */
    UB_BPF_WAKER_OTHER, /* whoever ran when it was woken: a kernel thread, an interrupted bystander, a peer */
};

struct ub_bpf_who {
    int pid, tid; /* as the tracer sees them; 0: in a namespace that it does not see */
    char comm[UB_BPF_COMM];
};

/* Calls of one number on one descriptor during a turn, and details of the longest of them. */
struct ub_bpf_call {
    unsigned long long key; /* descriptor or futex */
    unsigned int nr, count;
    unsigned long long total_ns, blocked_ns;
    /* Of the longest one; not filled in below UB_BPF_DETAIL of the threshold. */
    unsigned long long longest_ns, at_ns;
    long long ret;
    unsigned long long arg[6];
    unsigned long long inode;
    unsigned int waker_how; /* enum ub_bpf_waker: who ended its longest block */
    unsigned int detailed;
    unsigned long long waker_blocked_ns; /* how long that block was */
    struct ub_bpf_who waker;
    char text[UB_BPF_TEXT];
};
#define UB_BPF_DETAIL 128 /* of a call that took less than 1/128 of the threshold nothing but its time is kept */

enum ub_bpf_kind {
    UB_BPF_RECORD_WAKE = 1, /* a turn has begun while the tracer slept */
    UB_BPF_RECORD_TURN,
    UB_BPF_RECORD_STACK,
    UB_BPF_RECORD_PROGRAM, /* a process has come, or executes another program: what is it? */
};

/* Where a turn's time went. */
struct ub_bpf_accounts {
    unsigned long long cpu_ns, blocked_ns, runqueue_ns, fault_ns, stopped_ns;
    unsigned long long major_faults, syscalls;
};

struct ub_bpf_turn {
    unsigned int kind, slot;
    int pid, tid;
    unsigned int flags; /* UB_RECORD_* */
    unsigned int ready;
    unsigned long long start, end, turn; /* CLOCK_MONOTONIC */
    unsigned long long unclear_ns;       /* it may have begun by so much later: turns right before it were not seen */
    unsigned long long certain_ns;       /* what surely was one turn */
    struct ub_bpf_accounts accounts;
    struct ub_bpf_who neighbour; /* who had the CPU, most of the time that the thread waited for it */
    unsigned long long neighbour_ns;
    unsigned int call_count, pad;
    struct ub_bpf_call call[UB_BPF_CALLS];
};

enum ub_bpf_stack_why {
    UB_BPF_STACK_CALL,    /* at the end of a call that blocked long */
    UB_BPF_STACK_FAULT,   /* going to sleep outside any call: a page fault */
    UB_BPF_STACK_RUNNING, /* of a thread that runs: sampled by its own CPU clock */
    UB_BPF_STACK_LOST,   /* of a thread that loses its CPU in a turn that is not overdue yet, but may be when it is back
                          */
    UB_BPF_STACK_HOLDER, /* of the thread that woke the one of the slot out of a long futex wait */
};

struct ub_bpf_stack {
    unsigned int kind, slot;
    int pid, tid; /* whose stack it is */
    unsigned int why, nr;
    unsigned long long start; /* of the turn */
    unsigned long long at;
    unsigned long long call_ns;
    unsigned long long arg[6];
    unsigned long long reg[UB_BPF_REGS]; /* DWARF numbering, common/slot.h */
    unsigned int len, pad;
    unsigned char bytes[UB_BPF_STACK + 4096];
};

/* Asked by UB_BPF_RECORD_PROGRAM, answered by an entry of the map `programs`. */
struct ub_bpf_program_record {
    unsigned int kind;
    int tgid; /* the kernel's number: the key */
    int pid;  /* as the tracer sees it */
    unsigned int pad;
};

#define UB_BPF_PARKS     1 /* a runtime whose idle threads sleep in futex or nanosleep (Go): those are waits too */
#define UB_BPF_LIBRARIES 3

/* What a program is, as far as its loop's waits depend on it. */
struct ub_bpf_program {
    unsigned int traits, pad;
    struct {
        unsigned long long start, end;
    } library[UB_BPF_LIBRARIES]; /* code of event-loop libraries: they may wait for a single descriptor */
};

#endif
