/*
 * libuv's pool of threads: what waits in it, and how long (common/uv_pool.h). Of a
 * process one pool is measured, that of the first copy of libuv that it uses.
 *
 * All of it is signal-safe and leaves errno alone.
 */
#ifndef UB_AGENT_UV_POOL_H
#define UB_AGENT_UV_POOL_H

#include "../../common/base.h"

/* A piece of work is about to be handed in; `slow`: of the kind of which the pool runs only a few at once. False: it is
 * not counted. */
bool ub_uv_pool_submit(uint32_t copy, bool slow);

/* It was not accepted after all. */
void ub_uv_pool_refused(uint32_t copy, bool slow);

/* A thread has ended one, or a piece that waited was taken back. */
void ub_uv_pool_end(uint32_t copy);

/* The callback of one is about to be called. */
void ub_uv_pool_done(void);
void ub_uv_pool_slow_done(void);

#endif
