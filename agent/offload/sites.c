#include "sites.h"

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

struct ub_policy_site *ub_sites_find(const struct ub_thread *t, uint32_t id, bool make)
{
    struct ub_policy *p = &ub_process->arena->policy;
    const struct ub_spans *s = &t->cold->spans;
    uint32_t fresh = ub_load_relaxed(&p->fresh);
    struct ub_policy_site *site;

    site =
        ub_policy_find(p, image(), id, s->call_ra, s->depth ? s->level[0].callback.function : 0, ub_process->pid, make);
    if (ub_load_relaxed(&p->fresh) != fresh)
        ub_process_ring(); /* its names are had only as long as this process is there */
    return site;
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

void ub_sites_moved(struct ub_policy_site *site, uint64_t ns, uint64_t pool_ns)
{
    __atomic_fetch_add(&site->moved, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&site->moved_ns, ns, __ATOMIC_RELAXED);
    __atomic_fetch_add(&site->pool_ns, pool_ns, __ATOMIC_RELAXED);
    if (ns > ub_load_relaxed(&site->longest_ns))
        ub_store_relaxed(&site->longest_ns, ns); /* two threads at once: either is right enough */
}
