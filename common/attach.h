/*
 * What the injector (tracer/inject*.c), the code that it puts into a running
 * process (tracer/inject_stub.S) and the agent (agent/attach.c) say to each
 * other. The room is memory of the target's that stays: a page of code, then
 * this structure, then what the code needs while it runs. It is used again by
 * the next attach or detach.
 *
 * Read by assembler, too: offsets are asserted below.
 */
#ifndef UB_ATTACH_H
#define UB_ATTACH_H

#define UB_ROOM_ATTACH 4096 /* offsets in the room */
#define UB_ROOM_XSTATE 8192
#define UB_ROOM_STACK  (8192 + 16384)
#define UB_ROOM_IMAGE  (8192 + 16384 + 262144) /* the agent's file; unmapped once it is loaded */
#define UB_ROOM_BYTES  UB_ROOM_IMAGE

#define UB_ATTACH_DLOPEN     16
#define UB_ATTACH_DLERROR    24
#define UB_ATTACH_ERRNO      32
#define UB_ATTACH_BASE       40
#define UB_ATTACH_ENTRY      48
#define UB_ATTACH_IMAGE      56
#define UB_ATTACH_IMAGE_SIZE 64
#define UB_ATTACH_HANDLE     72
#define UB_ATTACH_RESUME_AX  80
#define UB_ATTACH_EINTR_IP   88
#define UB_ATTACH_ALL        96
#define UB_ATTACH_MASK       104
#define UB_ATTACH_PENDING    112
#define UB_ATTACH_SP         120
#define UB_ATTACH_STATE      12
#define UB_ATTACH_RESULT     128
#define UB_ATTACH_STEP       132
#define UB_ATTACH_VERB       136
#define UB_ATTACH_CAUGHT     168
#define UB_ATTACH_PREPARED   176
#define UB_ATTACH_NAME       192
#define UB_ATTACH_PATH       208
#define UB_ATTACH_TEXT       240
#define UB_ATTACH_TEXT_BYTES 256
#define UB_ATTACH_DLCLOSE    512

/* enum ub_attach_state, for the assembler. */
#define UB_ATTACH_RUNNING 2
#define UB_ATTACH_DONE    3

/* How far the code came before it failed: enum ub_attach_step. */
#define UB_ATTACH_STEP_FILE  1
#define UB_ATTACH_STEP_WRITE 2
#define UB_ATTACH_STEP_LOAD  3
#define UB_ATTACH_STEP_AGENT 4
#define UB_ATTACH_STEP_CLOSE 5

/* One of enum ub_attach_verb. */
#define UB_ATTACH_IS_UNLOAD 8

#ifndef __ASSEMBLER__

#include "base.h"

#define UB_ATTACH_MAGIC   0x4843415454414255ull /* "UBATTACH" */
#define UB_ATTACH_VERSION 7u
#define UB_ATTACH_LIBRARY "libunblock.so" /* name of the memfd: maps show "/memfd:libunblock.so (deleted)" */

/*
 * The two lowest bits of `state`; those above count the requests. A thread that
 * is sent into the room knows the number of its own: it begins by exchanging
 * that number's ASKED for RUNNING, and if another stands there (its injector was
 * killed, and the next one has taken the room) goes straight on with its wait.
 * From DONE on it uses nothing but its own stack and the code.
 */
enum ub_attach_state {
    UB_ATTACH_IDLE = 0,
    UB_ATTACH_ASKED = 1, /* `tid` is on its way into the room's code, or its injector was killed before it sent it */
    UB_ATTACH_IS_RUNNING = UB_ATTACH_RUNNING,
    UB_ATTACH_IS_DONE = UB_ATTACH_DONE,
};
#define UB_ATTACH_STATE_MASK 3u
#define UB_ATTACH_NEXT       4u /* the next request's number */

enum ub_attach_verb {
    UB_ATTACH_ENTER = 1,
    UB_ATTACH_LEAVE = 2,
    /* What takes time and changes nothing, each in a wait of the loop of its own, so that none is kept long: */
    UB_ATTACH_LOAD = 3,    /* the library is loaded, nothing more */
    UB_ATTACH_PREPARE = 4, /* libc's functions are looked up, and which slots are theirs; UB_ATTACH_MORE: once more */
    UB_ATTACH_PATCH = 6,   /* after ENTER has said UB_ATTACH_MORE: further modules, likewise */
    UB_ATTACH_ADOPTED = 5, /* the injector has the arena: its descriptor is closed, where no turn has done so */
    /* After LEAVE, when nothing leads into the agent any more (tracer/inject_proof.c): */
    UB_ATTACH_FORGET = 7,                   /* what it has mapped is unmapped; or one of enum ub_attach_kept */
    UB_ATTACH_UNLOAD = UB_ATTACH_IS_UNLOAD, /* the library goes; the code in the room does that */
};

/* Why nothing was forgotten: results of FORGET. */
enum ub_attach_kept {
    UB_ATTACH_KEPT_HANDLER = 1, /* the kernel has a signal handler of its */
    UB_ATTACH_KEPT_WATCHED,     /* somebody else has come in meanwhile */
    UB_ATTACH_KEPT_LEAVING,     /* slots, or the arena's descriptor, are not put back or closed yet */
    UB_ATTACH_KEPT_PRELOADED,   /* it was loaded with the program */
    UB_ATTACH_KEPT_REASONS
};

#define UB_ATTACH_MORE     1
#define UB_ATTACH_PIECE_NS 150000u /* then it is left for another wait of the loop */

struct ub_attach {
    uint64_t magic;
    uint32_t version;
    uint32_t state; /* enum ub_attach_state, and the number of the request */
    /* Functions of the target's libc. */
    uint64_t dl_open, dl_error, errno_location;
    uint64_t base;  /* where the agent is loaded; 0: not yet, `image` is to be */
    uint64_t entry; /* of the agent's file: offset of its entry point */
    uint64_t image, image_size;
    uint64_t handle; /* what dlopen gave for it */
    /* How the thread goes on: with rax `resume_ax`; at `eintr_ip` with -EINTR if a signal of the program's own has
     * arrived meanwhile (0: as otherwise). */
    uint64_t resume_ax, eintr_ip;
    uint64_t all_signals; /* all ones */
    uint64_t mask, pending, sp;
    int32_t result;   /* -errno, UB_ATTACH_MORE */
    uint32_t step;    /* UB_ATTACH_STEP_*: what failed */
    uint32_t verb;    /* enum ub_attach_verb */
    int32_t arena_fd; /* ENTER: the injector is to take it, and to write its pid into it */
    uint64_t arena_inode;
    int32_t tid;                     /* the thread that is asked, by the number that it knows itself */
    int32_t watcher;                 /* ENTER: -EBUSY is because of this process */
    uint64_t done_ns;                /* CLOCK_MONOTONIC at the agent's last instructions */
    uint64_t caught;                 /* signals for which the program has handlers */
    uint64_t prepared;               /* PREPARE has come to its end once: 1 */
    uint64_t watcher_gone;           /* ENTER: who watched it, from a PID namespace that is not its own, has ended: 1 */
    char name[16];                   /* of the memfd */
    char path[32];                   /* "/proc/self/fd/", completed by the code */
    char text[UB_ATTACH_TEXT_BYTES]; /* dlerror() */
    /* ENTER: another process's arena is to be joined (0: a new one is made). The injector hands it out at this abstract
     * name. In another network namespace there is none: then `arena_fd` is one end of a pair of sockets meanwhile. */
    uint64_t join_inode;
    char join_name[8];    /* behind its first zero */
    uint64_t dl_close;    /* of the target's libc */
    uint64_t done_cpu_ns; /* the thread's CPU time at `done_ns` */
    uint64_t offload;     /* ENTER: enum ub_offload_mode, OFF or DRY_RUN; what moves has to be there from the start */
    uint64_t python_objects; /* ENTER: bit n: what the agent needs of CPython 3.n lies beside its file */
};
#define UB_ATTACH_AT(member, offset)                                                                                   \
    _Static_assert(offsetof(struct ub_attach, member) == (offset), "attach: the assembler knows it")
UB_ATTACH_AT(state, UB_ATTACH_STATE);
UB_ATTACH_AT(dl_open, UB_ATTACH_DLOPEN);
UB_ATTACH_AT(dl_error, UB_ATTACH_DLERROR);
UB_ATTACH_AT(errno_location, UB_ATTACH_ERRNO);
UB_ATTACH_AT(base, UB_ATTACH_BASE);
UB_ATTACH_AT(entry, UB_ATTACH_ENTRY);
UB_ATTACH_AT(image, UB_ATTACH_IMAGE);
UB_ATTACH_AT(image_size, UB_ATTACH_IMAGE_SIZE);
UB_ATTACH_AT(handle, UB_ATTACH_HANDLE);
UB_ATTACH_AT(verb, UB_ATTACH_VERB);
UB_ATTACH_AT(prepared, UB_ATTACH_PREPARED);
UB_ATTACH_AT(dl_close, UB_ATTACH_DLCLOSE);
UB_ATTACH_AT(resume_ax, UB_ATTACH_RESUME_AX);
UB_ATTACH_AT(eintr_ip, UB_ATTACH_EINTR_IP);
UB_ATTACH_AT(all_signals, UB_ATTACH_ALL);
UB_ATTACH_AT(mask, UB_ATTACH_MASK);
UB_ATTACH_AT(pending, UB_ATTACH_PENDING);
UB_ATTACH_AT(sp, UB_ATTACH_SP);
UB_ATTACH_AT(result, UB_ATTACH_RESULT);
UB_ATTACH_AT(step, UB_ATTACH_STEP);
UB_ATTACH_AT(caught, UB_ATTACH_CAUGHT);
UB_ATTACH_AT(name, UB_ATTACH_NAME);
UB_ATTACH_AT(path, UB_ATTACH_PATH);
UB_ATTACH_AT(text, UB_ATTACH_TEXT);

#endif
#endif
