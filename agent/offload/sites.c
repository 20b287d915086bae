#include "sites.h"

#include "../../common/units.h"

#include "../python/stack.h"
#include "../raw.h"
#include "decide.h"
#include "pool.h"

#include <errno.h>
#include <linux/futex.h>
#include <time.h>

/* Beside what the call itself will take; one that is only likely to take long waits for a moment. */
#define ANSWER_MAX_NS    200000000ull
#define ANSWER_LIKELY_NS 20000000ull

_Static_assert((int)UB_UNITS_END <= (int)UB_POLICY_CALLS, "every call has its place in the policy");

/* Number of this program image in the run: its addresses mean nothing in another. A fork has its parent's. */
static uint64_t image(void)
{
    static uint64_t own;
    uint64_t none = 0, next;

    if (!ub_load_relaxed(&own)) {
        next = 1 + __atomic_fetch_add(&ub_process->arena->h.policy_images, 1, __ATOMIC_RELAXED);
        __atomic_compare_exchange_n(&own, &none, next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
    return ub_load_relaxed(&own);
}

/* In Python: every such call is made from the same few places of the interpreter, so its own innermost frame counts. */
static struct ub_policy_site *find_python(struct ub_policy *p, uint32_t id, uint64_t function, bool make)
{
    uint64_t place[UB_POLICY_FRAMES];
    struct ub_policy_site *site;
    uint32_t n;

    if (!make && ub_load_relaxed(&p->fresh) == 0)
        return NULL;
    n = ub_python_places(place, 1);
    site = n ? ub_policy_find(p, image(), id, place[0], function, ub_process->pid, NULL, 0, false) : NULL;
    if (site || !make || !n)
        return site;
    n = ub_python_places(place, UB_POLICY_FRAMES);
    return n ? ub_policy_find(p, image(), id, place[0], function, ub_process->pid, place, n, true) : NULL;
}

struct ub_policy_site *ub_sites_find(const struct ub_thread *t, uint32_t id, bool make)
{
    struct ub_policy *p = &ub_process->arena->policy;
    const struct ub_spans *s = &t->cold->spans;
    const struct ub_callback *step = ub_span_asyncio(s);
    uint64_t function = step ? step->function : s->depth ? s->level[0].callback.function : 0;
    uint32_t fresh = ub_load_relaxed(&p->fresh);
    struct ub_policy_site *site;

    if (step)
        site = find_python(p, id, function, make);
    else
        site = ub_policy_find(p, image(), id, s->call_ra, function, ub_process->pid, NULL, 0, make);
    if (ub_load_relaxed(&p->fresh) != fresh)
        ub_process_ring(); /* its names are had only as long as this process is there */
    return site;
}

/* ---- the policy ------------------------------------------------------------------------ */

/* WATCH: the tracer has not answered yet. */
static uint32_t verdict_of(const struct ub_policy *p, const struct ub_policy_site *site)
{
    return ub_load_acquire(&site->version) == ub_load_relaxed(&p->version) ? ub_load_relaxed(&site->verdict)
                                                                           : UB_POLICY_WATCH;
}

void ub_sites_ask(const struct ub_thread *t, uint32_t id, struct ub_sites_say *ret)
{
    const struct ub_policy *p = &ub_process->arena->policy;
    uint32_t mode = ub_offload_now(), verdict = UB_POLICY_DENY;
    struct ub_policy_site *site;

    if (mode != UB_OFFLOAD_EAGER && ub_load_relaxed(&p->version))
        verdict = ub_load_relaxed(&p->call[id]);
    site = ub_sites_find(t, id, verdict != UB_POLICY_DENY);
    if (verdict == UB_POLICY_WATCH)
        verdict = site ? verdict_of(p, site) : UB_POLICY_DENY;
    *ret = (struct ub_sites_say){.mode = mode,
                                 .verdict = verdict,
                                 .site = site,
                                 .learned = verdict == UB_POLICY_ALLOW ||
                                            (mode != UB_OFFLOAD_POLICY && site && ub_load_relaxed(&site->learned))};
}

bool ub_sites_may_leave(const struct ub_sites_say *say)
{
    if (say->mode <= UB_OFFLOAD_DRY_RUN)
        return false;
    return say->mode == UB_OFFLOAD_EAGER || say->learned || say->verdict != UB_POLICY_DENY;
}

/* By the tracer, who has to look for names: a moment, beside a call that blocks. */
static void wait_for_answer(const struct ub_policy *p, struct ub_policy_site *site, bool proven)
{
    uint64_t least_ns = ub_load_relaxed(&ub_process->arena->h.offload_least_us) * 1000ull, now;
    uint64_t limit = proven ? ANSWER_MAX_NS : ANSWER_LIKELY_NS;
    uint64_t until = ub_clock_monotonic_ns() + (least_ns < limit ? least_ns : limit);
    int saved = errno;

    if (__atomic_exchange_n(&site->waited, 1, __ATOMIC_RELAXED))
        return;
    while (verdict_of(p, site) == UB_POLICY_WATCH && (now = ub_clock_monotonic_ns()) < until) {
        const struct timespec left = {.tv_nsec = (long)(until - now)};
        uint32_t version = ub_load_acquire(&site->version);

        if (version != ub_load_relaxed(&p->version))
            ub_raw4(SYS_futex, &site->version, FUTEX_WAIT, version, &left);
    }
    errno = saved;
}

/* Calls of each rule that are away, of this process. */
static struct {
    uint32_t generation;
    uint32_t away[UB_POLICY_LIMITS];
} limits;

/* A forked child has none of its parent's. */
static uint32_t *away_of(const struct ub_policy_site *site)
{
    uint32_t now = ub_process->generation;

    if (__atomic_exchange_n(&limits.generation, now, __ATOMIC_RELAXED) != now) {
        for (uint32_t i = 0; i < UB_POLICY_LIMITS; i++)
            ub_store_relaxed(&limits.away[i], 0);
    }
    return &limits.away[site->rule % UB_POLICY_LIMITS];
}

static bool is_limited(struct ub_policy *p, const struct ub_policy_site *site)
{
    if (!site || site->limit == 0 || ub_load_relaxed(away_of(site)) < site->limit)
        return false;
    __atomic_fetch_add(&p->limited, 1, __ATOMIC_RELAXED);
    return true;
}

bool ub_sites_leave(const struct ub_thread *t, uint32_t id, struct ub_sites_say *say, bool proven)
{
    struct ub_policy *p = &ub_process->arena->policy;

    if (say->verdict == UB_POLICY_WATCH && !say->learned && say->mode != UB_OFFLOAD_EAGER) {
        wait_for_answer(p, say->site, proven);
        say->verdict = verdict_of(p, say->site);
        say->learned = say->verdict == UB_POLICY_ALLOW;
    }
    if (say->mode == UB_OFFLOAD_EAGER)
        return true;
    return say->learned && !(say->verdict == UB_POLICY_ALLOW && is_limited(p, say->site));
}

bool ub_sites_denies(const struct ub_thread *t, uint32_t id)
{
    struct ub_sites_say say;

    if (ub_offload_now() != UB_OFFLOAD_POLICY)
        return false;
    ub_sites_ask(t, id, &say);
    return say.verdict == UB_POLICY_DENY;
}

uint32_t ub_sites_begin(struct ub_policy_site *site, uint32_t lane)
{
    if (!site || ub_load_relaxed(&site->version) == 0)
        return lane;
    if (site->limit)
        __atomic_fetch_add(away_of(site), 1, __ATOMIC_RELAXED);
    return site->lane == UB_EXECUTOR_FILES ? UB_LANE_FILES : site->lane == UB_EXECUTOR_WAIT ? UB_LANE_WAIT : lane;
}

void ub_sites_end(struct ub_policy_site *site)
{
    uint32_t *away = site && ub_load_relaxed(&site->version) && site->limit ? away_of(site) : NULL;
    uint32_t n = away ? ub_load_relaxed(away) : 0;

    while (n > 0 && !__atomic_compare_exchange_n(away, &n, n - 1, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
}

void ub_sites_blocked(const struct ub_thread *t, uint32_t id, uint64_t spent)
{
    struct ub_policy_site *site = ub_sites_find(t, id, true);

    if (!site)
        return;
    __atomic_fetch_add(&site->blocked, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&site->blocked_ticks, spent, __ATOMIC_RELAXED);
    ub_store_relaxed(&site->learned, 1);
}

/* By name: those that ran meanwhile. */
static uint64_t count_meanwhile(struct ub_policy *p, struct ub_policy_site *site, const struct ub_beside *b,
                                const struct ub_beside_counts *c)
{
    uint32_t fresh = ub_load_relaxed(&p->fresh);
    uint64_t sum = c->n[UB_BESIDE_FUNCTIONS];

    for (uint32_t i = 0; i < UB_BESIDE_FUNCTIONS; i++) {
        sum += c->n[i];
        if (c->n[i])
            ub_policy_count_meanwhile(p, site, b->who[i].function, b->who[i].kind, b->who[i].library, ub_process->pid,
                                      c->n[i]);
    }
    __atomic_fetch_add(&site->others, c->n[UB_BESIDE_FUNCTIONS], __ATOMIC_RELAXED);
    if (ub_load_relaxed(&p->fresh) != fresh)
        ub_process_ring(); /* as in ub_sites_find */
    return sum;
}

void ub_sites_moved(struct ub_policy_site *site, uint64_t ns, uint64_t pool_ns, const struct ub_beside *b,
                    const struct ub_beside_counts *c)
{
    uint64_t beside = count_meanwhile(&ub_process->arena->policy, site, b, c);

    __atomic_fetch_add(&site->moved, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&site->moved_ns, ns, __ATOMIC_RELAXED);
    __atomic_fetch_add(&site->pool_ns, pool_ns, __ATOMIC_RELAXED);
    __atomic_fetch_add(&site->beside, beside, __ATOMIC_RELAXED);
    if (beside > ub_load_relaxed(&site->beside_most))
        ub_store_relaxed(&site->beside_most, beside);
    if (ns > ub_load_relaxed(&site->longest_ns))
        ub_store_relaxed(&site->longest_ns, ns); /* two threads at once: either is right enough */
}
