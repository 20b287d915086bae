/*
 * Call sites: which of them have blocked, and what became of their calls (common/policy.h).
 */
#ifndef UB_AGENT_SITES_H
#define UB_AGENT_SITES_H

#include "../../common/policy.h"
#include "../process.h"

/* Of a call that comes just now, in the outermost callback; NULL: there is no room, or (not `make`) nothing is known of
 * it. Signal-safe. */
struct ub_policy_site *ub_sites_find(const struct ub_thread *t, uint32_t id, bool make);

/* A call that might have left has blocked for so many ticks: the next one from there will. Signal-safe. */
void ub_sites_blocked(const struct ub_thread *t, uint32_t id, uint64_t spent);

/* One has left, and is back; `pool_ns` of it went by before a thread took it up, and after it was done. */
void ub_sites_moved(struct ub_policy_site *site, uint64_t ns, uint64_t pool_ns);

#endif
