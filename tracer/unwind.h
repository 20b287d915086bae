/*
 * From a captured stack to return addresses: libunwind with a remote address
 * space whose memory is the copy plus the mapped ELF files. Never touches the
 * process.
 *
 * One struct ub_unwinder belongs to one thread at a time.
 */
#ifndef UB_TRACER_UNWIND_H
#define UB_TRACER_UNWIND_H

#include "capture.h"

#define UB_FRAMES_MAX 256

enum ub_frame_how {
    UB_FRAME_EXACT, /* unwind tables and known registers */
    UB_FRAME_RBP,   /* rbp was not known and was recovered (prologue or call-target scan) */
    UB_FRAME_FP,    /* followed the frame pointer where there is no unwind table (JIT code) */
    UB_FRAME_CODE,  /* there is no unwind table: its code was followed to its return (musl) */
};

struct ub_frame {
    uint64_t pc; /* as found: a return address for all but the innermost frame and frames above a signal trampoline */
    uint64_t cfa;
    uint8_t how;  /* enum ub_frame_how */
    bool is_call; /* pc is a return address: look up pc - 1 */
};

struct ub_stack {
    uint32_t count;
    bool complete;  /* reached the outermost frame (_start, clone, or a root marked by CFI) */
    bool truncated; /* more frames than UB_FRAMES_MAX */
    struct ub_frame frame[UB_FRAMES_MAX];
};

struct ub_unwinder;

int ub_unwinder_new(struct ub_unwinder **ret);
void ub_unwinder_free(struct ub_unwinder *u);

/*
 * Unwinds `capture`. Always yields at least the innermost frame when RIP is
 * known. 0; -ENODATA when the capture has no registers.
 */
int ub_unwind(struct ub_unwinder *u, struct ub_maps *maps, const struct ub_capture *capture, struct ub_stack *ret);

#endif
