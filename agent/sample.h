/*
 * The sampling signal: the tracer sends SIGURG to a thread that is seen
 * running past its threshold; the handler copies registers and stack into the
 * thread's slot. SIGURG, because its default action is to be ignored: one that
 * arrives after an exec harms nobody.
 */
#ifndef UB_AGENT_SAMPLE_H
#define UB_AGENT_SAMPLE_H

#include "../common/base.h"

#include <signal.h>

#define UB_SAMPLE_SIGNAL SIGURG

/* An address above all frames of the main thread, on its stack: argv. Once, in the constructor. */
void ub_sample_main_stack(const void *top);

/*
 * Installs the handler unless the program has one of its own there. True when
 * ours is installed. Signal-safe; leaves errno alone.
 */
bool ub_sample_install(void);

/*
 * While true, what this process sets for the signal is our own doing: the interpreter is told that the signal has a
 * handler, so that it can be asked to call it, and ours stays in place.
 */
void ub_sample_reserve(bool on);

/*
 * Around a call of this thread's, which has said that it is under way (s->call), and when it no longer is: somebody
 * asks for a sample (common/slot.h), or the signal is blocked. Slow path only; signal-safe; leaves errno alone.
 */
struct ub_sample;
__attribute__((cold)) void ub_sample_before_call(struct ub_sample *s);
__attribute__((cold)) void ub_sample_after_call(struct ub_sample *s);

/* Whether it is ours just now: then the program has no handler of its own for it. Signal-safe. */
bool ub_sample_is_installed(void);

/* Gives the signal back to what the program set. Signal-safe; leaves errno alone. */
void ub_sample_uninstall(void);

/*
 * sigaction(SIGURG) as the program means it. It sees its own idea of the
 * disposition; a real handler of its own replaces ours for good, while
 * SIG_DFL and SIG_IGN (both: nothing happens) leave ours in place. Signal-safe.
 */
int ub_sample_sigaction(const struct sigaction *act, struct sigaction *old);

#endif
