/*
 * The originals of the hooked functions: what the program would have called.
 */
#ifndef UB_AGENT_REAL_H
#define UB_AGENT_REAL_H

#include <aio.h>
#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <mqueue.h>
#include <netdb.h>
#include <poll.h>
#include <pwd.h>
#include <resolv.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <termios.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

/* libc declares socket addresses as a union of all their kinds. */
#define UB_ADDRESS_ARG    __CONST_SOCKADDR_ARG
#define UB_ADDRESS_RET    __SOCKADDR_ARG
#define UB_ADDRESS(a)     ((uintptr_t)(a).__sockaddr__)
#define UB_STREAM(stream) ub_timing_stream(stream) /* its descriptor: calls/timing.c */

/* Headers rename some, or have macros in their place; the programs' names are these. */
#undef fread_unlocked
#undef fwrite_unlocked
#undef res_query
#undef res_search
#undef res_nquery
#undef res_nsearch
#undef res_send
#undef res_nsend

struct ub_real {
#define UB_HOOK(type, name, params, args) type(*name) params;
#define UB_EXPORT(name)
#include "hooks.def"
#undef UB_EXPORT
#undef UB_HOOK
};

/* Every member is callable at any time: before ub_real_resolve it resolves itself first. */
extern struct ub_real ub_real;
extern long (*ub_real_syscall_pointer)(long nr, ...); /* by itself: calls/syscall.S jumps through it */

/* Fills ub_real with dlsym(RTLD_NEXT): no allocation when the name exists. Called by the constructor. Slow path only.
 */
void ub_real_resolve(void);

/* The same where there is no next: loaded late, everything is libc's. Slow path only. */
void ub_real_resolve_in(void *libc);

#endif
