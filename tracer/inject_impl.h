/* What the files of the injector share. */
#ifndef UB_TRACER_INJECT_IMPL_H
#define UB_TRACER_INJECT_IMPL_H

#include "../common/attach.h"
#include "capture.h"
#include "inject.h"
#include "maps.h"

#include <sys/user.h>

/* ---- inject_hold.c: stopping a thread where it holds no lock of libc's ------------ */

/* How long a thread has waited already, as far as that can be known of a sleeping one. */
struct ub_waited {
    uint64_t slept_ns, at_ns;
    struct ub_schedstat sched;
    bool known;
};

/* The scheduler's, at one moment. */
struct ub_piece_books {
    uint64_t at_ns;
    struct ub_schedstat its;
    uint64_t own_wait_ns;
};

struct ub_hold {
    pid_t pid, tid;
    bool single; /* also waits for a single descriptor will do */
    pid_t last;  /* the one to be preferred; 0: none */
    pid_t inner; /* its number as it knows it */
    struct user_regs_struct regs;
    uint64_t resume_ip, resume_ax, eintr_ip; /* where it goes on, with which rax; see struct ub_attach */
    uint64_t caught;                         /* signals that the program handles */
    bool filtered;                           /* it runs under a seccomp filter */
    struct ub_inject_piece piece;            /* how long it is kept from its work */
    struct ub_piece_books books;             /* as they were at the end of its last part */
    uint32_t stops;
    struct ub_waited waited;
    bool waiting; /* it was interrupted in its wait, or stands before it; else the wait has just returned */
    bool (*cancelled)(void *self); /* as that of struct ub_inject_options; may be NULL */
    void *self;
};

/* A thread that waits in a loop just now, or (`busy`) the one that most likely runs one. 0 or -EAGAIN; -ESRCH. */
int ub_hold_find(struct ub_hold *h, bool busy);

/*
 * Stops h->tid at a wait. 0: held, until ub_hold_go or ub_hold_drop; -EAGAIN: it
 * was not to be had just now, and goes on undisturbed; -ESRCH; -EPERM: may not be traced;
 * -EACCES: it runs under a seccomp filter, which may kill it for what we would have it call.
 */
int ub_hold_take(struct ub_hold *h);

/*
 * Lets it go on at `ip`, as if its call were made by way of there, with `request` (not 0) in r11 and the place to go on
 * at in rcx (see inject_stub.S). It is not held any more. 0 or -errno.
 */
int ub_hold_go(struct ub_hold *h, uint64_t ip, uint32_t request);

/* Lets it go on as if nothing had been. */
void ub_hold_drop(struct ub_hold *h);

/*
 * What takes time before any thread (h->pid, h->tid) is stopped to be looked at. 0; -EINTR: it sleeps in a call
 * (regs.orig_rax) that might not take an interruption well; -ESRCH.
 */
int ub_hold_look(struct ub_hold *h);

/* 0: it will stop, see ub_hold_stopped(); -ESRCH; -EPERM. */
int ub_hold_stop(struct ub_hold *h);

/* Waits until it has, or until then (0: however long it takes). 0: held, with its registers; -EAGAIN: it goes on, a
 * signal was quicker; -ESRCH; -ETIMEDOUT: it will stop yet, and is to be waited for once more. */
int ub_hold_stopped(struct ub_hold *h, uint64_t until_ns);

/* ---- inject_piece.c: how long a thread is kept from its work -------------------------- */

/* Right before it is stopped. */
void ub_piece_begin(struct ub_hold *h);

/* We sleep until it stops: only what we wait for a CPU from here on is time that it loses by it. */
void ub_piece_sleep(struct ub_hold *h);

/* One part is over. */
void ub_piece_part(struct ub_hold *h, enum ub_inject_part which);

/* It was let go, and has done what it was asked for (CLOCK_MONOTONIC), at `done_cpu_ns` of its own CPU time (0: not
 * known). */
void ub_piece_worked(struct ub_hold *h, uint64_t done_ns, uint64_t done_cpu_ns);

/* ---- inject_room.c: memory in the target ------------------------------------------- */

struct ub_room {
    pid_t pid;
    uint64_t at;    /* 0: none yet */
    uint64_t image; /* where the agent's file is to be put; 0: nowhere */
    uint64_t image_size;
    uint64_t cave; /* where the code that maps the room is put */
};

/* Looks for a room of an earlier time. */
void ub_room_find(struct ub_room *room, const struct ub_maps *maps);

/* Chooses places for the room (unless it is there) and an image of `image_size`. 0; -ENOSPC: there is none, with `why`.
 */
int ub_room_plan(struct ub_room *room, const struct ub_maps *maps, uint64_t image_size, char *why);

/* The thread is held: puts the code into the cave. 0 or -errno; *ret_ip is where to let it go on. */
int ub_room_dig(struct ub_room *room, const struct ub_hold *h, uint64_t *ret_ip);

/* Waits until the planned memory is mapped (CLOCK_MONOTONIC) by the thread that `h` was. 0; -EACCES: no executable
 * memory; -ETIMEDOUT. */
int ub_room_wait(struct ub_room *room, const struct ub_hold *h, uint64_t *ret_when_ns);

int ub_room_read(const struct ub_room *room, uint64_t at, void *buf, size_t size);
int ub_room_write(const struct ub_room *room, uint64_t at, const void *buf, size_t size);

/* Writes where the program itself may not: code. `tid` is held by us, or 0: then it may fail where holding would help.
 */
int ub_room_write_code(const struct ub_room *room, pid_t tid, uint64_t at, const void *buf, size_t size);

/* inject_stub.S */
extern const uint8_t ub_stub_room[], ub_stub_room_words[], ub_stub_room_end[];
extern const uint8_t ub_stub_enter[], ub_stub_enter_end[];

/* ---- inject_proof.c -------------------------------------------------------------------- */

/*
 * Shows that nothing in the process leads into the module at `base` (`handle`: what dlopen gave for it), and so never
 * will: neither a register nor a word of writable memory of any thread, while all of them are stopped (`ret_held_ns`,
 * `hold_max_ns` at most). 0; -EBUSY with `why`; -EAGAIN with `why`: another time, perhaps; -ESRCH.
 */
int ub_inject_prove(const struct ub_room *room, uint64_t base, uint64_t handle, uint64_t hold_max_ns,
                    uint64_t *ret_held_ns, char *why);

/* ---- inject_stack.c -------------------------------------------------------------------- */

/* Behind a call instruction, and surely no function's beginning. */
bool ub_inject_is_return_address(const struct ub_room *room, uint64_t eh_frame_header, uint64_t word);

/* Registers and stack of a thread that is held. */
void ub_inject_keep_stack(const struct ub_hold *h, const struct ub_maps *maps, struct ub_capture *ret);

/* Unwound to its end by tables alone, and no frame is in [start, end). */
bool ub_inject_is_outside(struct ub_maps *maps, const struct ub_capture *c, uint64_t start, uint64_t end);

/* ---- inject_look.c ------------------------------------------------------------------- */

/* The map of a module by the beginning of its file name; NULL. */
const struct ub_map *ub_inject_module(const struct ub_maps *maps, const char *name);

#endif
