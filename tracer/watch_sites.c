/*
 * Call sites of calls that were moved, or that stayed (common/policy.h): each goes to the explaining
 * thread once, as long as its process is there to be asked for names. So does each function whose callbacks ran
 * meanwhile.
 */
#include "watch_impl.h"

static struct ub_watched *thread_of(struct ub_watch *w, pid_t pid)
{
    for (uint32_t i = 0; i < UB_SLOT_MAX; i++) {
        if (w->watched[i].process && w->watched[i].slot_pid == pid)
            return &w->watched[i];
    }
    return NULL;
}

/* Where it was called, in Python: as though the thread had kept its frames, of which the instruction is all that
 * counts. */
static void see_python(struct ub_watch *w, struct ub_watched *t, uint32_t site, struct ub_event *e)
{
    const struct ub_policy *p = &w->arena->policy;
    struct ub_call_frame frame[UB_POLICY_FRAMES] = {0};
    uint32_t n = p->site[site].frames < UB_POLICY_FRAMES ? (uint32_t)p->site[site].frames : UB_POLICY_FRAMES;

    for (uint32_t i = 0; i < n; i++)
        ub_watch_python_frame(w, t, ub_policy_code(p->frame[site][i]), ub_policy_instruction(p->frame[site][i]),
                              &frame[i]);
    e->call_python = ub_watch_python_own(w, t, frame, n);
    e->code = ub_watch_python_code(w, t, p->site[site].function);
}

_Static_assert(UB_POLICY_MEANWHILE <= 8, "watch: a bit each");

/* What ran while its calls were away. False: some of it is to be asked for later. */
static bool see_meanwhile(struct ub_watch *w, uint32_t site)
{
    bool all = true;

    for (uint32_t i = 0; i < UB_POLICY_MEANWHILE; i++) {
        const struct ub_policy_meanwhile *who = &w->arena->policy.meanwhile[site][i];
        struct ub_watched *t;
        struct ub_event *e;

        if (w->meanwhile_named[site] & 1u << i || ub_load_acquire(&who->state) != UB_POLICY_LIVE)
            continue;
        t = thread_of(w, who->pid);
        e = t ? ub_event_new(UB_EVENT_MEANWHILE) : NULL;
        if (!e) {
            all = false;
            continue;
        }
        e->slot = site;
        e->flags = i;
        e->process = ub_process_ref(t->process);
        e->pid = t->process->pid;
        if (who->kind == UB_CALLBACK_TASK)
            e->code = ub_watch_python_code(w, t, who->function);
        w->meanwhile_named[site] |= (uint8_t)(1u << i);
        ub_watch_queue(w, e);
    }
    return all;
}

void ub_watch_sites(struct ub_watch *w)
{
    struct ub_policy *p = &w->arena->policy;
    uint32_t fresh = ub_load_acquire(&p->fresh);
    bool all = true;

    if (fresh == w->sites_named)
        return;
    for (uint32_t i = 0; i < UB_POLICY_SITES; i++) {
        struct ub_watched *t;
        struct ub_event *e;

        if (ub_load_acquire(&p->site[i].state) != UB_POLICY_LIVE)
            continue;
        all = see_meanwhile(w, i) && all;
        if (w->site_named[i])
            continue;
        t = thread_of(w, p->site[i].pid);
        e = t ? ub_event_new(UB_EVENT_SITE) : NULL;
        if (!e) {
            all = false; /* its thread was not met yet */
            continue;
        }
        e->slot = i;
        e->process = ub_process_ref(t->process);
        e->pid = t->process->pid;
        if (p->site[i].frames)
            see_python(w, t, i, e);
        w->site_named[i] = true;
        ub_watch_queue(w, e);
    }
    if (all)
        w->sites_named = fresh;
}
