/*
 * A thread's own record of the blocking calls of one turn, out of the arena.
 * The thread goes on while we read, and may be hostile: what changes under our
 * hands is dropped, and counts are bounded.
 */
#include "syscalls.h"
#include "timed_calls.h"
#include "watch_impl.h"

#include <stdlib.h>
#include <string.h>

static bool copy_report(const struct ub_call_report *from, uint64_t start, struct ub_call_report *to)
{
    uint32_t seq = ub_load_acquire(&from->seq);

    if (seq & 1 || ub_load_relaxed(&from->turn) != start)
        return false;
    memcpy(to, from, sizeof(*to));
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (ub_load_relaxed(&from->seq) != seq || to->turn != start)
        return false;
    if (to->count > UB_CALLS_KEPT)
        to->count = UB_CALLS_KEPT;
    for (uint32_t i = 0; i < to->count; i++)
        ub_timed_call_forget_pointers(&to->call[i]);
    return to->count > 0;
}

static const struct ub_timed_call *call_that_began(const struct ub_call_report *r, uint64_t start)
{
    for (uint32_t i = 0; i < r->count; i++) {
        if (r->call[i].start == start)
            return &r->call[i];
    }
    return NULL;
}

_Static_assert(sizeof(((struct ub_call_stack *)0)->stack) <= UB_STACK_COPY_MAX, "a kept stack fits a capture");

static struct ub_capture *capture_of(const struct ub_call_stack *s, const struct ub_timed_call *call)
{
    static const uint8_t known[] = {3, UB_REG_RBP, UB_REG_RSP, 12, 13, 14, 15, UB_REG_RIP};
    uint32_t bytes = ub_load_relaxed(&s->bytes);
    struct ub_capture *c;

    if (bytes == 0 || bytes > sizeof(s->stack))
        return NULL;
    c = calloc(1, sizeof(*c));
    if (!c)
        return NULL;
    c->state = UB_THREAD_BLOCKED;
    c->proof = UB_PROOF_SELF;
    c->at_ns = ub_ticks_to_ns(call->start + call->longest);
    c->nr = ub_timed_call_syscall(call->id);
    memcpy(c->reg, s->reg, sizeof(c->reg));
    for (uint32_t i = 0; i < UB_ARRAY_LEN(known); i++)
        c->reg_known |= 1u << known[i];
    c->region_count = 1;
    c->region[0] = (struct ub_stack_region){.address = c->reg[UB_REG_RSP], .len = bytes};
    memcpy(c->bytes, s->stack, bytes);
    return c;
}

static struct ub_python_look *python_of(struct ub_watch *w, struct ub_watched *t, const struct ub_call_stack *s)
{
    struct ub_call_frame frame[UB_CALLS_FRAMES];
    uint32_t count = ub_load_relaxed(&s->frames);

    if (count == 0 || count > UB_CALLS_FRAMES)
        return NULL;
    memcpy(frame, s->frame, sizeof(frame));
    return ub_watch_python_own(w, t, frame, count);
}

static struct ub_capture *take_stack(struct ub_watch *w, struct ub_watched *t, const struct ub_call_report *r,
                                     struct ub_python_look **ret_python)
{
    const struct ub_timed_call *call = call_that_began(r, r->stack_call);
    const struct ub_call_stack *s;
    struct ub_capture *c, *small;
    uint32_t seq;

    if (!call || r->stack == 0 || r->stack > UB_CALLS_STACKS)
        return NULL;
    s = &w->arena->call_stack[r->stack - 1];
    seq = ub_load_acquire(&s->seq);
    if (seq & 1 || s->turn != r->turn || s->tid != t->tid)
        return NULL;
    c = capture_of(s, call);
    *ret_python = c ? python_of(w, t, s) : NULL;
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (c && ub_load_relaxed(&s->seq) == seq) {
        small = realloc(c, offsetof(struct ub_capture, bytes) + c->region[0].len); /* 70 KB, mostly unused */
        /* cppcheck-suppress memleak */
        return small ? small : c;
    }
    free(*ret_python); /* another turn's by now */
    *ret_python = NULL;
    free(c);
    return NULL;
}

void ub_watch_calls(struct ub_watch *w, uint32_t slot, uint64_t start, struct ub_event *e)
{
    const struct ub_calls *calls = &w->arena->cold[slot].calls;
    struct ub_call_report *r = NULL;

    for (uint32_t i = 0; i < UB_CALLS_REPORTS; i++) {
        if (ub_load_relaxed(&calls->report[i].turn) != start)
            continue;
        r = malloc(sizeof(*r));
        if (r && copy_report(&calls->report[i], start, r))
            break;
        free(r);
        r = NULL;
    }
    e->calls = r;
    if (r)
        e->call_capture = take_stack(w, &w->watched[slot], r, &e->call_python);
}
