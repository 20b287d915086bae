/*
 * System calls that leave errno alone and pass no hook of ours: for the agent,
 * and for what agent and watcher share.
 */
#ifndef UB_RAW_CALL_H
#define UB_RAW_CALL_H

#include "base.h"

#include <sys/syscall.h>

/* Returns the kernel's answer: negative is -errno. Signal-safe. */
#if defined(__x86_64__)
static inline long ub_raw6(long nr, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long ret;

    __asm__ volatile("syscall"
                     : "=a"(ret)
                     : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return ret;
}
#elif defined(__aarch64__) /* for fibers: the rest of the agent is not there yet (agent/sample.c) */
static inline long ub_raw6(long nr, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = nr;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;

    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}
#else
#error "how a system call is made on this CPU is not known here"
#endif

#define ub_raw0(nr)             ub_raw6((nr), 0, 0, 0, 0, 0, 0)
#define ub_raw1(nr, a)          ub_raw6((nr), (long)(a), 0, 0, 0, 0, 0)
#define ub_raw2(nr, a, b)       ub_raw6((nr), (long)(a), (long)(b), 0, 0, 0, 0)
#define ub_raw3(nr, a, b, c)    ub_raw6((nr), (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define ub_raw4(nr, a, b, c, d) ub_raw6((nr), (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)

#endif
