/*
 * offload_uv.c on libevent: the same cases, and "io" and "persist": a descriptor that stays ready while its callback
 * blocks.
 */
// libs: -levent_core -levent_pthreads
#define LIBEVENT 1
#include "offload_uv.c"
