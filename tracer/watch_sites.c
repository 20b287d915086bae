/*
 * Call sites of calls that were moved, or that stayed (common/policy.h): each goes to the explaining
 * thread once, as long as its process is there to be asked for names.
 */
#include "watch_impl.h"

static struct ub_process *process_of(const struct ub_watch *w, pid_t pid)
{
    for (uint32_t i = 0; i < UB_SLOT_MAX; i++) {
        if (w->watched[i].process && w->watched[i].process->pid == pid)
            return w->watched[i].process;
    }
    return NULL;
}

void ub_watch_sites(struct ub_watch *w)
{
    struct ub_policy *p = &w->arena->policy;
    uint32_t fresh = ub_load_acquire(&p->fresh);
    bool all = true;

    if (fresh == w->sites_named)
        return;
    for (uint32_t i = 0; i < UB_POLICY_SITES; i++) {
        struct ub_process *process;
        struct ub_event *e;

        if (w->site_named[i] || ub_load_acquire(&p->site[i].state) != UB_POLICY_LIVE)
            continue;
        process = process_of(w, p->site[i].pid);
        e = process ? ub_event_new(UB_EVENT_SITE) : NULL;
        if (!e) {
            all = false; /* its thread was not met yet */
            continue;
        }
        e->slot = i;
        e->process = ub_process_ref(process);
        e->pid = process->pid;
        w->site_named[i] = true;
        ub_watch_queue(w, e);
    }
    if (all)
        w->sites_named = fresh;
}
