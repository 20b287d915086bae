/*
 * What is a loop? `poll` in ssh, curl or subprocess.communicate is none. A
 * thread counts as one after UB_QUALIFY returns from one wait site: the same
 * call instruction in the same stack frame. Until then every wait comes here;
 * afterwards only those that are not the loop's.
 *
 *  - A wait for nothing (poll(NULL, 0, t)) is a sleep. A wait for a single
 *    descriptor outside a loop library is how synchronous code waits with a
 *    timeout. Neither is ever a loop's wait.
 *  - Another call in the same frame for the same epoll descriptor is the same
 *    loop: some only look first, and sleep then.
 *  - The same call deeper in the stack, on the same epoll descriptor or none,
 *    is a nested run of the same loop: it ends and begins turns too.
 *  - Another site takes over when it lies further out (the first one was inside
 *    a callback, or the first loop is over), or when the old one has not been
 *    seen for many waits.
 */
#include "turn.h"

#include "existing.h"

#include "../alone.h"
#include "../module.h"
#include "../patch.h"
#include "../raw.h"
#include "../tree.h"

#include <sys/uio.h>

#define UB_QUALIFY       8u
#define UB_FIRST_WAITS   2u /* returns before a slot is taken */
#define UB_ASK_AGAIN     64u
#define UB_RELEARN_OUTER 2u
#define UB_RELEARN_INNER 16u

uintptr_t ub_turn_single[UB_TURN_SINGLES];

/*
 * Bits set in one descriptor set of select. The pointer may be bad: that is for
 * the kernel to say (EFAULT), so the set is read by a call that cannot fault.
 */
static uint32_t set_size(const void *set, int count)
{
    unsigned long word[16] = {0}; /* FD_SETSIZE */
    size_t bytes = ((size_t)count + 8 * sizeof(*word) - 1) / (8 * sizeof(*word)) * sizeof(*word);
    struct iovec local = {word, bytes < sizeof(word) ? bytes : sizeof(word)}, remote = {(void *)set, local.iov_len};
    uint32_t bits = 0;

    if (!set || count <= 0 || !ub_process->generation || ub_process->quiet ||
        ub_raw6(SYS_process_vm_readv, ub_process->pid, (long)&local, 1, (long)&remote, 1, 0) <= 0)
        return 0;
    for (size_t i = 0; i < UB_ARRAY_LEN(word); i++)
        bits += (uint32_t)__builtin_popcountl(word[i]);
    return bits;
}

static uint32_t watched_descriptors(const struct ub_wait *wait)
{
    if (wait->kind == UB_WAIT_POLL)
        return wait->count > 0 ? (uint32_t)wait->count : 0;
    return set_size(wait->set[0], wait->count) + set_size(wait->set[1], wait->count) +
           set_size(wait->set[2], wait->count);
}

static bool plausible(const struct ub_wait *wait)
{
    uint32_t count;

    if (wait->kind == UB_WAIT_EPOLL || wait->kind == UB_WAIT_URING)
        return true;
    count = watched_descriptors(wait);
    if (count != 1)
        return count > 1;
    if (ub_module_is_loop_library((const void *)wait->ra))
        return true;
    if (wait->kind == UB_WAIT_POLL)
        ub_store_relaxed(ub_turn_single_at(wait->ra), wait->ra);
    return false;
}

/*
 * A wait on the loop's own epoll descriptor is its wait wherever it is called
 * from: loops have two calls (look, then wait), CPython's stack depth changes
 * as it specialises code, cooperative threads wait on stacks of their own.
 */
static bool own_descriptor(const struct ub_thread *t, const struct ub_wait *wait)
{
    return wait->kind == UB_WAIT_EPOLL && wait->count == t->slot->epfd;
}

/* A nested run of a loop without a descriptor of its own: the same call deeper in the stack. */
static bool nested_run(const struct ub_thread *t, const struct ub_wait *wait)
{
    return wait->kind != UB_WAIT_EPOLL && t->ra && wait->ra == t->ra && wait->sp < t->sp;
}

static void learn(struct ub_thread *t, const struct ub_wait *wait)
{
    struct ub_slot *slot = t->slot;
    uint32_t flags = ub_load_relaxed(&slot->flags) & ~(UB_SLOT_QUALIFIED | UB_SLOT_EPOLL);

    if (t->start) {
        struct ub_record gone = {.kind = UB_RECORD_TURN, .flags = UB_RECORD_ABANDONED, .start = t->start};

        gone.end = t->start;
        ub_store_relaxed(&slot->start, 0);
        t->start = 0;
        ub_ring_put(&t->cold->ring, &gone);
    }
    t->ra = t->sp = 0;
    t->cand_ra = (uint32_t)wait->ra;
    t->cand_sp = wait->sp;
    t->cand_count = t->cand_turns = 0;
    ub_store_relaxed(&slot->site, (uint64_t)wait->ra);
    ub_store_relaxed(&slot->epfd, wait->kind == UB_WAIT_EPOLL ? wait->count : -1);
    ub_store_relaxed(&slot->flags, flags | (wait->kind == UB_WAIT_EPOLL ? UB_SLOT_EPOLL : 0));
}

/* The fast path recognises this call from now on. */
static void settle_here(struct ub_thread *t, const struct ub_wait *wait)
{
    t->ra = wait->ra;
    t->sp = wait->sp;
    ub_store_relaxed(&t->slot->site, (uint64_t)wait->ra);
}

/* The wait on probation is back: after enough of them it is the loop. */
static void probation(struct ub_thread *t, const struct ub_wait *wait)
{
    struct ub_slot *slot = t->slot;
    uint32_t flags = ub_load_relaxed(&slot->flags);

    t->cand_turns = 0;
    if (ub_load_relaxed(&slot->ready) > 0)
        flags |= UB_SLOT_SERVED;
    if (++t->cand_count > UB_QUALIFY) {
        settle_here(t, wait);
        t->cand_ra = 0;
        t->cand_sp = 0;
        t->cand_count = 0;
        flags |= UB_SLOT_QUALIFIED | UB_SLOT_SERVED;
    }
    ub_store_relaxed(&slot->flags, flags);
}

/* A plausible wait that is neither the loop's nor on probation: does it take over? */
static bool takes_over(struct ub_thread *t, const struct ub_wait *wait)
{
    uint16_t turns = (uint16_t)t->slot->turns;
    uint32_t limit = wait->sp > t->sp ? UB_RELEARN_OUTER : UB_RELEARN_INNER;

    if (t->cand_ra != (uint32_t)wait->ra || t->cand_sp != wait->sp || t->cand_turns != turns) {
        t->cand_ra = (uint32_t)wait->ra;
        t->cand_sp = wait->sp;
        t->cand_turns = turns;
        t->cand_count = 0;
    }
    return ++t->cand_count >= limit;
}

static void close_now(struct ub_thread *t)
{
    uint64_t spent = ub_turn_close(t, ub_process);

    if (spent)
        ub_turn_account(t, spent);
}

/* The site of the wait before, or its epoll descriptor (kept in cand_turns while there is no slot). */
static bool seen_before(const struct ub_thread *t, const struct ub_wait *wait)
{
    if (t->generation != ub_process->generation || !t->cand_ra)
        return false;
    return (t->cand_ra == (uint32_t)wait->ra && t->cand_sp == wait->sp) ||
           (wait->kind == UB_WAIT_EPOLL && t->cand_turns == (uint16_t)wait->count);
}

/*
 * With LD_PRELOAD alone a slot takes a watcher, and that a process: only what
 * is a loop beyond doubt gets one, and asks again at each wait (another process
 * may be just starting it).
 */
static bool is_time_to_enter(uint32_t count)
{
    if (!ub_process->arena)
        return count >= UB_QUALIFY;
    return count == UB_FIRST_WAITS || count % UB_ASK_AGAIN == 0;
}

/*
 * A wait deeper in the stack than the candidate: one inside a callback (of a
 * library with a descriptor of its own, looked at in each of them), or the
 * candidate was no loop. It must insist. Kept in `sp`, which has no other use
 * while the loop is not settled.
 */
static bool inside_candidate(struct ub_thread *t, const struct ub_wait *wait)
{
    return t->generation == ub_process->generation && t->cand_ra && wait->sp < t->cand_sp && ++t->sp < UB_RELEARN_INNER;
}

/*
 * A thread that has no slot yet. Many threads wait once or twice and end: only
 * at its third return to one wait is a slot spent on it. One that found all
 * slots taken asks again from time to time.
 */
static bool first_waits(struct ub_thread *t, const struct ub_wait *wait)
{
    uint8_t count;

    if (!seen_before(t, wait)) {
        if (inside_candidate(t, wait))
            return false;
        *t = (struct ub_thread){
            .generation = ub_process->generation, .cand_ra = (uint32_t)wait->ra, .cand_sp = wait->sp};
        t->cand_turns = wait->kind == UB_WAIT_EPOLL ? (uint16_t)wait->count : UINT16_MAX;
        return false;
    }
    t->sp = 0;
    t->cand_count++;
    if (!is_time_to_enter(t->cand_count) || !ub_process_enter(t))
        return false;
    if (ub_patch_is_late)
        ub_existing_adopt(wait);
    count = t->cand_count < UB_QUALIFY ? t->cand_count : UB_QUALIFY;
    learn(t, wait);
    t->cand_count = count;
    return true;
}

bool ub_turn_settle(struct ub_thread *t, const struct ub_wait *wait)
{
    /* First: in a forked child select's sets cannot be read before. */
    if (!ub_process->generation && !ub_process_wake()) {
        t->start = 0; /* left in the middle of a turn: its calls are timed no more */
        return false;
    }
    ub_process_hands_over();
    if (ub_process->arena && ub_unlikely(ub_load_relaxed(&ub_process->arena->h.closed)) &&
        ub_process_leave(ub_clock_monotonic_ns() + UB_ATTACH_PIECE_NS) >= 0)
        return false;
    if (!plausible(wait))
        return false;
    if (t->generation != ub_process->generation || !t->slot)
        return first_waits(t, wait);
    if (own_descriptor(t, wait)) {
        close_now(t);
        if (t->ra)
            settle_here(t, wait);
        else
            probation(t, wait);
        return true;
    }
    if (!t->ra && t->cand_ra == (uint32_t)wait->ra && t->cand_sp == wait->sp) {
        close_now(t);
        probation(t, wait);
        return true;
    }
    if (nested_run(t, wait)) {
        close_now(t);
        return true;
    }
    /* On probation the outermost site is the better guess; a deeper one must insist (cand_turns counts how often). */
    if (!t->ra && wait->sp < t->cand_sp && ++t->cand_turns < UB_RELEARN_INNER)
        return false;
    if (!t->ra || takes_over(t, wait)) {
        learn(t, wait);
        return true;
    }
    return false;
}

void ub_turn_tell(struct ub_thread *t, struct ub_record *record)
{
    struct ub_slot *slot = t->slot;
    uint32_t flags = ub_load_relaxed(&slot->flags);

    record->flags |=
        (flags & UB_SLOT_QUALIFIED ? UB_RECORD_QUALIFIED : 0) | (flags & UB_SLOT_SERVED ? 0 : UB_RECORD_STARTUP);
    record->site = slot->site;
    record->turn = slot->turns;
    record->ready = slot->ready;
    /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): where there is a slot there is the arena that it lies in */
    if (ub_unlikely(ub_process->arena->h.mode == UB_ARENA_ALONE)) {
        ub_alone_record(ub_tree(), ub_process->arena, record);
        return;
    }
    ub_after_before(t, record);
    ub_ring_put(&t->cold->ring, record);
    ub_process_ring();
    ub_after_stall(t, record);
}

void ub_turn_slow(struct ub_thread *t, uint64_t start, uint64_t end)
{
    struct ub_record record = {.kind = UB_RECORD_TURN, .start = start, .end = end, .fd = -1};

    ub_turn_tell(t, &record);
}
