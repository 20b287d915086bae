/*
 * The pool of threads of a libuv that is linked into the program itself, as in
 * node: no hook reaches it, but where the symbols of its variables are in the
 * file its state can be read from outside at any moment.
 */
#ifndef UB_TRACER_STATIC_POOL_H
#define UB_TRACER_STATIC_POOL_H

#include "process.h"
#include "stall.h"

/* Addresses in the process. */
struct ub_static_pool {
    uint64_t threads, idle; /* unsigned int */
    uint64_t queue;         /* head of a ring of {next, prev} */
    uint64_t token;         /* an entry of the ring that is no work: "look at the slow queue"; 0: none */
};

/* Looks for it in the program's file, once; costs milliseconds. Explaining thread only. */
void ub_static_pool_find(struct ub_process *p);

/* False: there is none, or it makes no sense just now. Any thread; a few microseconds. */
bool ub_static_pool_read(const struct ub_process *p, struct ub_uv_pool_now *ret);

#endif
