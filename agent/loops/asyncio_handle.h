/*
 * What an asyncio or uvloop loop runs beside the steps of tasks: handles, of
 * call_soon, call_later, add_reader, of transports and protocols.
 */
#ifndef UB_AGENT_ASYNCIO_HANDLE_H
#define UB_AGENT_ASYNCIO_HANDLE_H

#include "loop.h"

/* Types of one interpreter: addresses, each NULL where it does not export it. */
struct ub_handle_types {
    const void *context, *type, *function, *method, *c_function, *coroutine, *generator;
    uint32_t function_code; /* bytes: where a function keeps its code object */
};

/* An interpreter is there; after ub_python_stack_found. Slow path only. */
void ub_handle_found(uint32_t copy, const struct ub_handle_types *types);

/* Hooks Context.run of that interpreter, or puts back what was there. Again and again. Slow path only. */
void ub_handle_hook(uint32_t copy, bool back);

/*
 * A task's coroutine is about to be resumed, by a call in the frame at `sp`. True: a handle does that and nothing else,
 * and its span is this step's from now on; the handle will end it. Signal-safe.
 */
bool ub_handle_is_step(struct ub_thread *t, uint32_t copy, uintptr_t sp, uint64_t code, uint64_t coroutine);

/* A step is about to end with a bare yield, asyncio.sleep(0), and then has, after so many ticks. Signal-safe. */
void ub_handle_yielded(struct ub_thread *t, uint64_t code);
void ub_handle_yield_took(struct ub_thread *t, uint64_t spent);

#endif
