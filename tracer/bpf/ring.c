/*
 * Records from the ring buffer: stacks come while a turn runs, its accounts
 * when it has ended; both wait here until the turn's end is explained.
 */
#include "bpf_impl.h"

#include "../capture.h"

#include <bpf/libbpf.h>
#include <stdlib.h>
#include <string.h>

void ub_reasons_free(struct ub_reasons *r)
{
    if (!r)
        return;
    for (uint32_t i = 0; i < r->stack_count; i++)
        free(r->stack[i].capture);
    free(r);
}

/* The entry of a turn, made when there is none; the oldest gives way. */
static struct ub_reasons *entry_of(struct ub_bpf *b, uint32_t slot, uint64_t start)
{
    struct ub_reasons **place;

    for (uint32_t i = 0; i < UB_BPF_PENDING; i++) {
        struct ub_reasons *r = b->pending[i];

        if (r && r->turn.slot == slot && r->turn.start == start)
            return r;
        if (r && r->turn.slot == slot && r->turn.end == 0) { /* that turn ended below the threshold */
            ub_reasons_free(r);
            b->pending[i] = NULL;
        }
    }
    place = &b->pending[b->pending_at++ % UB_BPF_PENDING];
    ub_reasons_free(*place);
    *place = calloc(1, sizeof(**place));
    if (*place) {
        (*place)->turn.slot = slot;
        (*place)->turn.start = start;
    }
    return *place;
}

static struct ub_capture *capture_of(const struct ub_bpf_stack *s)
{
    uint32_t len = s->len < UB_BPF_STACK ? s->len : UB_BPF_STACK;
    struct ub_capture *c = malloc(sizeof(*c)), *small;

    if (!c)
        return NULL;
    memset(c, 0, offsetof(struct ub_capture, bytes));
    c->state = s->why == UB_BPF_STACK_FAULT                                    ? UB_THREAD_FAULT
               : s->why == UB_BPF_STACK_RUNNING || s->why == UB_BPF_STACK_LOST ? UB_THREAD_RUNNING
                                                                               : UB_THREAD_BLOCKED;
    c->proof = UB_PROOF_KERNEL;
    c->at_ns = s->at;
    c->nr = s->nr == ~0u ? -1 : (int64_t)s->nr;
    memcpy(c->arg, s->arg, sizeof(c->arg));
    memcpy(c->reg, s->reg, sizeof(c->reg));
    c->reg_known = (1u << UB_REG_COUNT) - 1;
    if (len) {
        c->region_count = 1;
        c->region[0] = (struct ub_stack_region){s->reg[UB_REG_RSP], len, 0};
        memcpy(c->bytes, s->bytes, len);
    }
    small = realloc(c, offsetof(struct ub_capture, bytes) + len); /* 64 KB that this stack does not need */
    return small ? small : c;                                     // cppcheck-suppress memleak
}

static void on_stack(struct ub_bpf *b, const struct ub_bpf_stack *s)
{
    struct ub_reasons *r;

    if (s->why == UB_BPF_STACK_RUNNING) {
        if (b->listener && b->listener->sample)
            b->listener->sample(b->listener->self, s, capture_of(s));
        return;
    }
    r = entry_of(b, s->slot, s->start);

    if (!r || r->stack_count == UB_REASON_STACKS)
        return;
    r->stack[r->stack_count].capture = capture_of(s);
    if (!r->stack[r->stack_count].capture)
        return;
    r->stack[r->stack_count].why = (enum ub_bpf_stack_why)s->why;
    r->stack[r->stack_count].pid = s->pid;
    r->stack[r->stack_count].tid = s->tid;
    r->stack[r->stack_count].call_ns = s->call_ns;
    r->stack_count++;
}

static void on_turn(struct ub_bpf *b, const struct ub_bpf_turn *t)
{
    struct ub_reasons *r = entry_of(b, t->slot, t->start);

    if (r)
        r->turn = *t;
    if (b->listener && b->listener->turn)
        b->listener->turn(b->listener->self, t);
}

int ub_bpf_record(void *self, void *data, size_t size)
{
    struct ub_bpf *b = self;
    uint32_t kind;

    if (size < sizeof(kind))
        return 0;
    memcpy(&kind, data, sizeof(kind));
    if (kind == UB_BPF_RECORD_TURN && size >= sizeof(struct ub_bpf_turn))
        on_turn(b, data);
    else if (kind == UB_BPF_RECORD_STACK && size >= sizeof(struct ub_bpf_stack))
        on_stack(b, data);
    else if (kind == UB_BPF_RECORD_PROGRAM && size >= sizeof(struct ub_bpf_program_record))
        ub_bpf_answer(b, data);
    return 0;
}

void ub_bpf_poll(struct ub_bpf *b, const struct ub_bpf_listener *listener)
{
    b->listener = listener;
    ring_buffer__consume(b->ring);
    b->listener = NULL;
}

struct ub_reasons *ub_bpf_take(struct ub_bpf *b, pid_t tid, uint64_t start_ns, uint64_t end_ns)
{
    struct ub_reasons *best = NULL;
    uint64_t most = (end_ns - start_ns) / 2;
    uint32_t where = 0;

    for (uint32_t i = 0; i < UB_BPF_PENDING; i++) {
        struct ub_reasons *r = b->pending[i];
        uint64_t from, to;

        if (!r || r->turn.tid != tid || r->turn.end == 0)
            continue;
        from = r->turn.start > start_ns ? r->turn.start : start_ns;
        to = r->turn.end < end_ns ? r->turn.end : end_ns;
        if (to > from && to - from > most) {
            most = to - from;
            best = r;
            where = i;
        }
    }
    if (best)
        b->pending[where] = NULL;
    return best;
}
