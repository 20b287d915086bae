/*
 * What kind of descriptor a number is, remembered: asking the kernel at each call would cost more than the call.
 * Forgotten when the program closes the number or puts another one in its place, by what is hooked (moves.c, fds.c,
 * calls/wait.c); what closes it past the hooks (instructions of the program's own) leaves a kind that may be wrong by
 * then: a call that finds no socket where there was one asks again, but a file in a pipe's place may be read short.
 * Threads with tables of their own (CLONE_FILES taken back) are told apart no more than that.
 * Any thread; signal-safe.
 */
#ifndef UB_AGENT_FDKIND_H
#define UB_AGENT_FDKIND_H

#include "../../common/base.h"

enum ub_fdkind {
    UB_FDKIND_NONE, /* no descriptor */
    UB_FDKIND_PIPE,
    UB_FDKIND_STREAM, /* a socket */
    UB_FDKIND_SOCKET, /* no stream */
    UB_FDKIND_LATE, /* a socket that is ready from some bytes on (SO_RCVLOWAT): who does not wait gets what is there */
    UB_FDKIND_FILE, /* or a block device */
    UB_FDKIND_OTHER,
};

#define UB_FDKIND_NUMBERS 4096u /* higher ones are asked about each time */
extern uint8_t ub_fdkinds[UB_FDKIND_NUMBERS];

enum ub_fdkind ub_fdkind_ask(int fd);

static inline enum ub_fdkind ub_fdkind(int fd)
{
    uint8_t known = (uint32_t)fd < UB_FDKIND_NUMBERS ? ub_load_relaxed(&ub_fdkinds[fd]) : (uint8_t)UB_FDKIND_NONE;

    return known != UB_FDKIND_NONE ? (enum ub_fdkind)known : ub_fdkind_ask(fd);
}

/* Whether who reads there waits for somebody else. */
static inline bool ub_fdkind_is_awaited(enum ub_fdkind kind)
{
    return kind >= UB_FDKIND_PIPE && kind <= UB_FDKIND_LATE;
}

void ub_fdkind_forget(int fd);
void ub_fdkind_forget_range(unsigned first, unsigned last);

#endif
