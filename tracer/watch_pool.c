/*
 * The programs' own pools of threads, out of the arena (common/uv_pool.h). Any
 * number may be in it: counts are bounded, nothing is trusted.
 */
#include "watch_impl.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#define UB_UV_POOL_STATS_ROUNDS 10u

static bool is_telling(const struct ub_uv_pool *p)
{
    return ub_load_relaxed(&p->threads) > 0 && ub_load_relaxed(&p->begun) != 0;
}

static uint32_t uv_pools_high(const struct ub_watch *w)
{
    uint32_t high = ub_load_acquire(&w->arena->h.uv_pools_high);

    return high < UB_UV_POOL_MAX ? high : UB_UV_POOL_MAX;
}

static void queue_pool(struct ub_watch *w, const struct ub_uv_pool *p)
{
    struct ub_event *e = is_telling(p) ? ub_event_new(UB_EVENT_POOL) : NULL;

    if (!e)
        return;
    e->pid = ub_watch_number(w, p->pid);
    e->pool = malloc(sizeof(*e->pool));
    if (e->pool)
        memcpy(e->pool, p, sizeof(*p));
    ub_watch_queue(w, e);
}

static bool is_over(struct ub_watch *w, const struct ub_uv_pool *p)
{
    pid_t pid = p->pid > 0 ? ub_watch_number(w, p->pid) : 0;

    return ub_load_relaxed(&p->state) == UB_UV_POOL_RELEASED || pid <= 0 || (kill(pid, 0) < 0 && errno == ESRCH);
}

void ub_watch_pools(struct ub_watch *w, bool finish)
{
    static uint32_t rounds;
    bool stats = ++rounds % UB_UV_POOL_STATS_ROUNDS == 0;

    for (uint32_t i = 0; i < uv_pools_high(w); i++) {
        struct ub_uv_pool *p = &w->arena->uv_pool[i];
        uint32_t state = ub_load_acquire(&p->state);
        bool over;

        if (state != UB_UV_POOL_LIVE && state != UB_UV_POOL_RELEASED)
            continue;
        over = !finish && is_over(w, p);
        if (finish || over || stats)
            queue_pool(w, p);
        if (over)
            ub_store_release(&p->state, UB_UV_POOL_FREE);
    }
}

bool ub_watch_pool_state(const struct ub_watch *w, pid_t pid, struct ub_uv_pool_now *ret)
{
    *ret = (struct ub_uv_pool_now){0};
    for (uint32_t i = 0; i < uv_pools_high(w); i++) {
        const struct ub_uv_pool *p = &w->arena->uv_pool[i];
        uint32_t threads = ub_load_relaxed(&p->threads), inside;

        if (ub_load_acquire(&p->state) != UB_UV_POOL_LIVE || ub_watch_number(w, p->pid) != pid || !is_telling(p))
            continue;
        inside = ub_uv_pool_inside(ub_load_relaxed(&p->word), ub_load_relaxed(&p->done));
        ret->threads = threads;
        ret->busy = inside < threads ? inside : threads;
        ret->queued = inside - ret->busy;
        return true;
    }
    return false;
}
