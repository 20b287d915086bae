/*
 * Words on a thread's stack that look as if they led into the agent: mostly return addresses of calls that are long
 * over, in parts of frames that nobody has written to since. A return address is good for returning only, so where the
 * stack can be unwound to its end, by tables alone, and no frame of it is in the module, it is one of those.
 *
 * What could be a function's address may be a variable's value, and is never taken for one.
 */
#include "inject_impl.h"

#include "arch.h"
#include "unwind.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNED 16u /* functions are, nearly all; and the agent's thunks */

/* Little of PT_GNU_EH_FRAME: a table of functions' beginnings, sorted. */
struct table {
    uint8_t version, eh_frame_encoding, count_encoding, table_encoding;
    int32_t eh_frame;
    uint32_t count;
};
#define ENCODING_COUNT 0x03 /* DW_EH_PE_udata4 */
#define ENCODING_TABLE 0x3b /* DW_EH_PE_datarel | DW_EH_PE_sdata4 */

/* True as well where it cannot be told. */
static bool begins_function(const struct ub_room *room, uint64_t header, uint64_t word)
{
    uint32_t low = 0, high;
    struct table t;

    if (ub_room_read(room, header, &t, sizeof(t)) < 0 || t.version != 1 || t.count_encoding != ENCODING_COUNT ||
        t.table_encoding != ENCODING_TABLE)
        return true;
    for (high = t.count; low < high;) {
        uint32_t middle = low + (high - low) / 2;
        int32_t entry[2];

        if (ub_room_read(room, header + sizeof(t) + middle * sizeof(entry), entry, sizeof(entry)) < 0)
            return true;
        if (header + (uint64_t)(int64_t)entry[0] == word)
            return true;
        if (header + (uint64_t)(int64_t)entry[0] < word)
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}

bool ub_inject_is_return_address(const struct ub_room *room, uint64_t eh_frame_header, uint64_t word)
{
    uint8_t code[UB_ARCH_CALL_BYTES];
    uint64_t target;

    return word % ALIGNED != 0 && ub_room_read(room, word - sizeof(code), code, sizeof(code)) == 0 &&
           ub_arch_call_before(code, sizeof(code), word, &target) != UB_CALL_NONE &&
           !begins_function(room, eh_frame_header, word);
}

void ub_inject_keep_stack(const struct ub_hold *h, const struct ub_maps *maps, struct ub_capture *ret)
{
    const struct user_regs_struct *r = &h->regs;
    const uint64_t reg[UB_REG_COUNT] = {r->rax, r->rdx, r->rcx, r->rbx, r->rsi, r->rdi, r->rbp, r->rsp, r->r8,
                                        r->r9,  r->r10, r->r11, r->r12, r->r13, r->r14, r->r15, r->rip};
    const struct ub_map *m = ub_maps_find(maps, r->rsp);
    uint64_t size = m ? m->end - r->rsp : 0;
    int n;

    memset(ret, 0, offsetof(struct ub_capture, bytes));
    ret->state = UB_THREAD_BLOCKED;
    ret->proof = UB_PROOF_STILL;
    ret->nr = (int64_t)r->orig_rax;
    ret->reg_known = UB_REG_ALL;
    memcpy(ret->reg, reg, sizeof(reg));
    n = ub_capture_memory(h->pid, r->rsp, ret->bytes, (uint32_t)(size < UB_STACK_COPY_MAX ? size : UB_STACK_COPY_MAX));
    ret->region_count = n > 0;
    ret->region[0] = (struct ub_stack_region){.address = r->rsp, .len = n > 0 ? (uint32_t)n : 0};
}

bool ub_inject_is_outside(struct ub_maps *maps, const struct ub_capture *c, uint64_t start, uint64_t end)
{
    struct ub_unwinder *u;
    struct ub_stack *stack = calloc(1, sizeof(*stack));
    bool outside = false;

    if (stack && ub_unwinder_new(&u) == 0) {
        outside = ub_unwind(u, maps, c, stack) == 0 && stack->complete && !stack->truncated;
        for (uint32_t i = 0; i < stack->count && outside; i++)
            outside = stack->frame[i].how == UB_FRAME_EXACT && stack->frame[i].pc - start >= end - start;
        ub_unwinder_free(u);
    }
    free(stack);
    return outside;
}
