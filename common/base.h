/*
 * Words shared by every room. No functions that allocate, print or lock:
 * this header is included inside the watched program.
 */
#ifndef UB_BASE_H
#define UB_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UB_VERSION "0.1.0"

#define ub_likely(x)   __builtin_expect(!!(x), 1)
#define ub_unlikely(x) __builtin_expect(!!(x), 0)

/* Text that lies beside the hooks': after a system call each page and line that is not touched is time saved. */
#define UB_HOT          __attribute__((hot))
#define UB_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define UB_CACHE_LINE   64

/* Attribute for a local variable: `f(&variable)` runs when it goes out of scope. */
#define UB_CLEANUP(f) __attribute__((cleanup(f)))

#define ub_load_relaxed(p)     __atomic_load_n((p), __ATOMIC_RELAXED)
#define ub_load_acquire(p)     __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define ub_store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define ub_store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)

#endif
