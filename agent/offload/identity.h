/*
 * Who a thread is to the kernel. What is moved to another thread is made with that one's credentials, in its
 * namespaces and its folder: as a rule the same for all threads of a process, but a thread can have its own.
 */
#ifndef UB_AGENT_IDENTITY_H
#define UB_AGENT_IDENTITY_H

#include "../../common/base.h"

/*
 * Whether the threads of the pool are what the calling thread is. Some system calls: asked when a call is about to be
 * moved to a thread. `makes_sockets`: the call does, and so depends on the network namespace. The first to ask is the
 * one the others are compared with: it starts the first of those threads.
 */
bool ub_identity_is_the_pools(bool makes_sockets);

#endif
