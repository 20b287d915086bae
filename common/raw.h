/*
 * System calls that leave errno alone and pass no hook of ours: for the agent,
 * and for what agent and watcher share.
 */
#ifndef UB_RAW_CALL_H
#define UB_RAW_CALL_H

#include "base.h"

#include <sys/syscall.h>

#if !defined(__x86_64__)
#error "x86-64 only so far: common/raw.h, agent/calls/syscall.S and agent/sample.c are what another CPU needs"
#endif

/* Returns the kernel's answer: negative is -errno. Signal-safe. */
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

#define ub_raw0(nr)             ub_raw6((nr), 0, 0, 0, 0, 0, 0)
#define ub_raw1(nr, a)          ub_raw6((nr), (long)(a), 0, 0, 0, 0, 0)
#define ub_raw2(nr, a, b)       ub_raw6((nr), (long)(a), (long)(b), 0, 0, 0, 0)
#define ub_raw3(nr, a, b, c)    ub_raw6((nr), (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define ub_raw4(nr, a, b, c, d) ub_raw6((nr), (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)

#endif
