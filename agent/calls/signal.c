/*
 * Every libc name that sets a signal's disposition: for SIGURG they go through
 * ub_sample_sigaction, all else goes straight on.
 */
#include "../real.h"
#include "../sample.h"

#include <errno.h>

/* From here on: what the program calls. Everything else in the agent is hidden (-fvisibility=hidden). */
#pragma GCC visibility push(default)

int sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
    if (sig == UB_SAMPLE_SIGNAL)
        return ub_sample_sigaction(act, old);
    return ub_real.sigaction(sig, act, old);
}

int __sigaction(int sig, const struct sigaction *act, struct sigaction *old);
int __sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
    if (sig == UB_SAMPLE_SIGNAL)
        return ub_sample_sigaction(act, old);
    return ub_real.__sigaction(sig, act, old);
}

static sighandler_t set(sighandler_t handler, int flags)
{
    struct sigaction act = {.sa_handler = handler, .sa_flags = flags}, old;

    sigemptyset(&act.sa_mask);
    if (ub_sample_sigaction(&act, &old) < 0)
        return SIG_ERR;
    return old.sa_handler;
}

/* SIG_ERR and SIG_HOLD are left to libc, which knows what to say. */
static bool plain(int sig, sighandler_t handler)
{
    return sig == UB_SAMPLE_SIGNAL && handler != SIG_ERR && handler != SIG_HOLD;
}

sighandler_t signal(int sig, sighandler_t handler)
{
    return plain(sig, handler) ? set(handler, SA_RESTART) : ub_real.signal(sig, handler);
}

sighandler_t bsd_signal(int sig, sighandler_t handler);
sighandler_t bsd_signal(int sig, sighandler_t handler)
{
    return plain(sig, handler) ? set(handler, SA_RESTART) : ub_real.bsd_signal(sig, handler);
}

sighandler_t ssignal(int sig, sighandler_t handler)
{
    return plain(sig, handler) ? set(handler, SA_RESTART) : ub_real.ssignal(sig, handler);
}

sighandler_t sysv_signal(int sig, sighandler_t handler)
{
    return plain(sig, handler) ? set(handler, (int)SA_RESETHAND | SA_NODEFER) : ub_real.sysv_signal(sig, handler);
}

sighandler_t __sysv_signal(int sig, sighandler_t handler)
{
    return plain(sig, handler) ? set(handler, (int)SA_RESETHAND | SA_NODEFER) : ub_real.__sysv_signal(sig, handler);
}

/* sigset also unblocks the signal and may answer SIG_HOLD: libc does that part on the disposition we leave it. */
sighandler_t sigset(int sig, sighandler_t handler)
{
    sigset_t one, old;

    if (!plain(sig, handler))
        return ub_real.sigset(sig, handler);
    handler = set(handler, 0);
    if (handler == SIG_ERR)
        return SIG_ERR;
    sigemptyset(&one);
    sigaddset(&one, sig);
    if (sigprocmask(SIG_UNBLOCK, &one, &old) < 0)
        return SIG_ERR;
    return sigismember(&old, sig) ? SIG_HOLD : handler;
}

int sigignore(int sig)
{
    if (sig != UB_SAMPLE_SIGNAL)
        return ub_real.sigignore(sig);
    return set(SIG_IGN, 0) == SIG_ERR ? -1 : 0;
}

#pragma GCC visibility pop
