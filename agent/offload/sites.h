/*
 * Call sites: which of them have blocked, and what became of their calls (common/policy.h).
 */
#ifndef UB_AGENT_SITES_H
#define UB_AGENT_SITES_H

#include "../../common/policy.h"
#include "../process.h"
#include "beside.h"

/* Of a call that comes just now, in the outermost callback; NULL: there is no room, or (not `make`) nothing is known of
 * it. Signal-safe. */
struct ub_policy_site *ub_sites_find(const struct ub_thread *t, uint32_t id, bool make);

/* What mode and policy say of a call, beforehand. */
struct ub_sites_say {
    uint32_t mode;    /* enum ub_offload_mode */
    uint32_t verdict; /* enum ub_policy_verdict */
    bool learned;     /* its place is known to block, or a rule moves it */
    struct ub_policy_site *site;
};
void ub_sites_ask(const struct ub_thread *t, uint32_t id, struct ub_sites_say *ret);

/* False: it stays, whether it blocks or not. Signal-safe. */
bool ub_sites_may_leave(const struct ub_sites_say *say);

/* It does block (`proven`), or is likely to. True: it may leave. The first call from a place waits for the tracer's
 * answer, no longer than a stall begins. */
bool ub_sites_leave(const struct ub_thread *t, uint32_t id, struct ub_sites_say *say, bool proven);

/* The policy keeps a call that blocked just now. Signal-safe. */
bool ub_sites_denies(const struct ub_thread *t, uint32_t id);

/* One leaves, by this lane (enum ub_lane); it is back. */
uint32_t ub_sites_begin(struct ub_policy_site *site, uint32_t lane);
void ub_sites_end(struct ub_policy_site *site);

/* A call that might have left has blocked for so many ticks: the next one from there will. Signal-safe. */
void ub_sites_blocked(const struct ub_thread *t, uint32_t id, uint64_t spent);

/* One has left, and is back; `pool_ns` of it went by before a thread took it up, and after it was done. `c`: the
 * callbacks of its thread that ran meanwhile, each that went on counted once more. */
void ub_sites_moved(struct ub_policy_site *site, uint64_t ns, uint64_t pool_ns, const struct ub_beside *b,
                    const struct ub_beside_counts *c);

#endif
