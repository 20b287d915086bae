/*
 * The descriptors that a loop's thread has read from lately. A hand-written loop
 * does not say whom its callback serves; what the thread read last before it was
 * slow does, as a rule. The agent notes each such call that brought something,
 * and knows nothing of what a descriptor is: the tracer looks that up while the
 * stall lasts, and passes over files.
 *
 * One writer: the thread. An entry may change under the reader's hands: its `at`
 * is 0 while it is written, and another one afterwards.
 *
 * Signal-safe.
 */
#ifndef UB_INPUTS_H
#define UB_INPUTS_H

#include "base.h"
#include "calls.h"

#define UB_INPUTS 8u /* a power of two; several reads of one descriptor in a row are one entry */

struct ub_input {
    uint64_t at; /* ticks: the return of the first of those calls; 0: none, or being written */
    int32_t fd;
    uint32_t call; /* enum ub_call_id, and UB_INPUT_CLOSED: the number may mean another file by now */
};
#define UB_INPUT_CLOSED 0x80000000u

/* Which of them is the newest only `at` says. */
struct ub_inputs {
    struct ub_input input[UB_INPUTS];
} __attribute__((aligned(UB_CACHE_LINE)));
_Static_assert(sizeof(struct ub_inputs) == UB_INPUTS * 16, "inputs: agent and tracer agree on it");

/* Calls that bring what a descriptor was ready for. Reading at an offset is for files. */
#define UB_CALL_IS_INPUT(id)                                                                                           \
    ((id) == UB_CALL_ID_read || (id) == UB_CALL_ID___read || (id) == UB_CALL_ID___read_chk ||                          \
     (id) == UB_CALL_ID_readv || (id) == UB_CALL_ID_recv || (id) == UB_CALL_ID___recv ||                               \
     (id) == UB_CALL_ID___recv_chk || (id) == UB_CALL_ID_recvfrom || (id) == UB_CALL_ID___recvfrom_chk ||              \
     (id) == UB_CALL_ID_recvmsg || (id) == UB_CALL_ID_recvmmsg || (id) == UB_CALL_ID_accept ||                         \
     (id) == UB_CALL_ID_accept4)
#define UB_CALL_IS_CLOSE(id) ((id) == UB_CALL_ID_close || (id) == UB_CALL_ID___close)

/*
 * `turn`: ticks when the running turn began; what was read before it is over. `last`: where the thread keeps the place
 * of its newest entry, for itself and not beside the entries: so one line is touched, not two.
 */
__attribute__((always_inline)) static inline void ub_inputs_note(struct ub_inputs *inputs, uint8_t *last, uint64_t turn,
                                                                 uint64_t at, int32_t fd, uint32_t call)
{
    uint32_t place = *last;
    struct ub_input *i = &inputs->input[place % UB_INPUTS];

    if (i->fd == fd && i->at >= turn && !((call | i->call) & UB_INPUT_CLOSED))
        return;
    place++;
    *last = (uint8_t)place;
    i = &inputs->input[place % UB_INPUTS];
    ub_store_relaxed(&i->at, 0);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    ub_store_relaxed(&i->fd, fd);
    ub_store_relaxed(&i->call, call);
    ub_store_release(&i->at, at);
}

#endif
