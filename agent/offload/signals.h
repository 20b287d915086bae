/* Whether the program wants its calls interrupted. */
#ifndef UB_AGENT_OFFLOAD_SIGNALS_H
#define UB_AGENT_OFFLOAD_SIGNALS_H

#include <stdbool.h>
#include <stdint.h>

/* The kernel's own layout. */
struct ub_sigaction {
    uintptr_t handler;
    unsigned long flags;
    uintptr_t restorer;
    uint64_t mask;
};

/*
 * A handler without SA_RESTART is installed, or an interval timer armed; `never_restarted`: the call is one that no
 * flag restarts, so any handler counts. By any thread; not signal-safe.
 */
bool ub_signals_interrupt(bool never_restarted);

/* From now on the functions that install handlers are ours first. Once, before the program runs. */
void ub_signals_start(void);

/* Handlers, or an alarm, are not what they were. Signal-safe. */
void ub_signals_changed(void);

#endif
