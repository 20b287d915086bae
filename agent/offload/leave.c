/*
 * A call that is made on a fiber: whether it would block, whether it may be made elsewhere, and how the loop is left
 * for it and come back to. What must be known of the call itself is in block.c, of the thread in decide.c.
 */
#include "suspend_impl.h"

#include "../calls/timing.h"
#include "../raw.h"
#include "block.h"
#include "decide.h"
#include "drive.h"
#include "fds.h"
#include "order.h"
#include "ready.h"
#include "sites.h"

#include <errno.h>
#include <signal.h>

#define STAY_NS 5000000

static uint64_t now_ns(void)
{
    return ub_clock_monotonic_ns();
}

uintptr_t ub_suspend_stack(uintptr_t sp)
{
    const struct mine *m = ub_suspend_mine(false);

    return m && m->current && ub_fiber_contains(&m->current->fiber, sp) ? m->current->fiber.high : 0;
}

/* What of the time was not the call's own. */
static uint64_t overhead_ns(const struct ub_task *task, uint64_t begun, uint64_t now)
{
    const struct ub_job *job = &task->job;

    if (task->deadline_ns)
        return now > task->deadline_ns ? now - task->deadline_ns : 0;
    return job->begun_ns < begun || job->ended_ns > now ? 0 : job->begun_ns - begun + (now - job->ended_ns);
}

static void count_away(int by)
{
    if (ub_process->arena)
        __atomic_fetch_add(&ub_process->arena->h.away, (uint64_t)by, __ATOMIC_RELAXED);
}

/* The program is left here, and comes back here. */
static __attribute__((noinline)) void wait_for_call(struct ub_task *task)
{
    struct mine *m = ub_suspend_mine(false);
    uint64_t begun = now_ns();

    ub_beside_leaves(&m->beside, m->suspended == 0, &task->beside);
    task->started = task->done = false;
    count_away(1);
    ub_timing_leave(&ub_thread, 0);
    ub_fiber_suspend(&task->fiber);
    count_away(-1);
    if (ub_process->arena) {
        __atomic_fetch_add(&ub_process->arena->h.moved, 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&ub_process->arena->h.moved_ns, now_ns() - begun, __ATOMIC_RELAXED);
        if (task->site)
            ub_sites_moved(task->site, now_ns() - begun, overhead_ns(task, begun, now_ns()), &m->beside, &task->beside);
    }
    if (task->job.signal)
        ub_raw3(SYS_tgkill, ub_raw0(SYS_getpid), ub_raw0(SYS_gettid), task->job.signal);
}

void ub_suspend_park(struct ub_task *task, uint64_t ns)
{
    int saved = errno;

    task->job = (struct ub_job){0};
    task->fd = task->own_fd = -1;
    task->object = 0;
    task->direction = task->holds_up = 0;
    task->deadline_ns = now_ns() + ns;
    task->started = task->done = false;
    ub_timing_leave(&ub_thread, 0);
    ub_fiber_suspend(&task->fiber);
    errno = saved;
}

/* Out of the loop, and back with its result. */
static void leave(struct ub_task *task, uint32_t id, void *function, const uint64_t *word, const struct ub_block *block,
                  struct ub_place p, int64_t *ret)
{
    task->job = (struct ub_job){.function = block->function ? block->function : (ub_job_function *)function,
                                .error = errno,
                                .lane = block->lane,
                                .libc_lock = block->libc_lock};
    for (uint32_t i = 0; i < UB_POOL_WORDS; i++)
        task->job.word[i] = block->function ? block->word[i] : word[i];
    task->fd = p.fd;
    task->own_fd = -1;
    task->site = ub_sites_find(&ub_thread, id, true);
    task->job.lane = ub_sites_begin(task->site, task->job.lane);
    task->object = p.object;
    task->direction = block->direction;
    task->holds_up = block->holds_up;
    task->deadline_ns = block->deadline_ns;
    task->for_child = ub_block_is_child(id);
    if (!block->deadline_ns)
        task->own_fd = ub_ready_prepare(id, &task->job, ub_fds_keep(&task->job, task->fd));
    if (!p.object)
        task->object = ub_order_object(&task->job, block->direction);
    wait_for_call(task);
    task->for_child = false;
    ub_sites_end(task->site);
    ub_fds_close(task->own_fd);
    *ret = block->deadline_ns ? 0 : task->job.result;
    errno = task->job.error;
}

/* Sure to block, or likely to: by its kind, or because it has done so here before. In `eager` most calls are made by
 * the look at whether they would, and nothing more has to be known. */
static bool will_block(const struct mine *m, uint32_t id, const uint64_t *word, struct ub_block *block, int64_t *ret)
{
    bool eager = ub_offload_now() == UB_OFFLOAD_EAGER, proven = eager && ub_block_proven(id, word, block, ret);
    struct ub_sites_say say;

    if (block->made)
        return false;
    ub_sites_ask(&ub_thread, id, &say);
    /* Semaphores are not timed; and what one waits for may be with a callback that is suspended. */
    if (id == UB_BLOCK_SEM_WAIT && say.mode != UB_OFFLOAD_POLICY)
        say.learned = m->suspended > 0;
    if (!ub_sites_may_leave(&say))
        return false;
    if (proven || (!eager && ub_block_proven(id, word, block, ret)))
        return ub_sites_leave(&ub_thread, id, &say, true);
    return !block->made && (block->likely || say.learned) && ub_block_expected(id, word, block) &&
           ub_sites_leave(&ub_thread, id, &say, false);
}

/* `poll` with what is left of its time. */
static bool poll_rest(ub_job_function *function, const uint64_t *word, uint64_t until_ns, int64_t *ret)
{
    uint64_t now = now_ns(), left_ms = until_ns > now ? (until_ns - now + 999999) / 1000000 : 0;

    *ret = function(word[0], word[1], left_ms, word[3], 0, 0, 0, 0);
    return true;
}

/* Made where it is, though what it waits for may be with a callback that is suspended (drive.h). True: it was made. */
static bool stay(uint32_t id, void *function, const uint64_t *word, const uint64_t *value, struct ub_block *b,
                 int64_t *ret)
{
    uint64_t until_ns = ub_block_until(id, word);
    struct ub_drive d = {0};
    short events;
    int fd = ub_block_ready_on(id, b, &events);

    if (b->may_move && ub_drive_concerned() && ub_block_is_awaited(id) && !ub_decide_is_interrupted(id, value)) {
        while (!(until_ns && now_ns() >= until_ns) && ub_block_waits(id, word, b, ret)) {
            if (ub_drive(&d, fd, events, STAY_NS) == UB_DROVE_NOTHING)
                break;
        }
        if (until_ns && d.begun_ns)
            return poll_rest((ub_job_function *)function, word, until_ns, ret);
    }
    if (!b->made && b->function) { /* a part of it was made already */
        *ret = b->function(b->word[0], b->word[1], b->word[2], b->word[3], b->word[4], 0, 0, 0);
        return true;
    }
    return b->made;
}

UB_HOT bool ub_suspend_call(uint32_t id, void *function, const uint64_t word[UB_POOL_WORDS], const uint64_t *value,
                            int64_t *ret)
{
    struct mine *m = ub_suspend_mine(false);
    uintptr_t sp = (uintptr_t)__builtin_frame_address(0);
    struct ub_verdict verdict;
    struct ub_block block;
    struct ub_task *task;
    struct ub_host *earlier;
    struct ub_place p;
    bool asked;

    if (!m || (!m->current && !m->suspended))
        return false;
    task = ub_suspend_task(m, sp);
    if (task && task->nested_sp && sp < task->nested_sp)
        task = NULL;
    asked = task && !m->suspended && ub_offload_now() == UB_OFFLOAD_EAGER;
    if (asked && ub_block_receive(id, word, ret)) /* most reads: nothing more has to be known */
        return true;
    ub_block_look(id, word, &block);
    block.asked = asked;
    if (!task && !m->suspended)
        return false;
    p = ub_order_place(m, block.fd, block.direction);
    earlier = ub_order_busy(m, p);
    if (!earlier && (!task || !block.may_move))
        return stay(id, function, word, value, &block, ret);
    if (!earlier && !will_block(m, id, word, &block, ret))
        return block.made || stay(id, function, word, value, &block, ret); /* it did not block: that was it */
    if (task && block.may_move)
        ub_decide(&ub_thread, id, value, sp, task->fiber.high, &verdict);
    if (!task || !block.may_move || verdict.pin != UB_PIN_MOVABLE || (earlier && earlier != task->host)) {
        if (earlier)
            ub_order_settle(earlier, p);
        return stay(id, function, word, value, &block, ret);
    }
    if (earlier && !ub_block_may_queue(id, &block)) {
        ub_order_settle(earlier, p);
        return stay(id, function, word, value, &block, ret);
    }
    leave(task, id, function, word, &block, p, ret);
    return true;
}
