#include "signals.h"

#include "../process.h"
#include "../raw.h"
#include "../real.h"
#include "decide.h"

#include <errno.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>

/* How long what was found holds: whoever installs a handler by a function of libc's is seen doing so. Others are not.
 */
#define KNOWN_NS 10000000u

/*
 * A program that wants its calls interrupted: by a handler without SA_RESTART, by an alarm while it sleeps; and where
 * the call is one that no flag restarts (sleeps, sockets with a time limit), by any handler. Where the call is made
 * elsewhere nothing interrupts it. Handlers of the program's own faults are for its end, not for its calls.
 */
#define SIGNAL(name) (1ull << (SIG##name - 1))
static const uint64_t faults =
    SIGNAL(SEGV) | SIGNAL(BUS) | SIGNAL(FPE) | SIGNAL(ILL) | SIGNAL(TRAP) | SIGNAL(ABRT) | SIGNAL(SYS);
static const uint64_t libcs = 3ull << 31; /* 32 and 33 */

/* One bit a signal. */
struct handlers {
    uint64_t any, not_restarting;
    bool alarm; /* is to come */
};

static uint64_t changes;

static struct handlers ask(void)
{
    uint64_t not_the_programs = faults | libcs | (ub_process->sampler ? SIGNAL(URG) : 0);
    struct itimerval alarm = {0};
    struct handlers h = {0};

    for (int sig = 1; sig <= 64; sig++) {
        struct ub_sigaction act = {0};
        uint64_t bit = 1ull << (sig - 1);

        if (not_the_programs & bit || ub_raw4(SYS_rt_sigaction, sig, 0, &act, sizeof(act.mask)) < 0 || act.handler <= 1)
            continue;
        h.any |= bit;
        h.not_restarting |= act.flags & SA_RESTART ? 0 : bit;
    }
    h.alarm = ub_raw2(SYS_getitimer, ITIMER_REAL, &alarm) == 0 && (alarm.it_value.tv_sec || alarm.it_value.tv_usec);
    return h;
}

/* 58 system calls: not for each call that moves. One thread keeps it, another that comes meanwhile asks for itself. */
static struct handlers handlers(void)
{
    static struct {
        struct handlers of;
        uint64_t changes, until_ns;
    } known;
    static uint32_t busy;
    uint64_t now = ub_clock_monotonic_ns(), seen = __atomic_load_n(&changes, __ATOMIC_ACQUIRE);
    struct handlers h;

    /* In the dry run nobody is seen. */
    if (!ub_offload_moves || __atomic_exchange_n(&busy, 1, __ATOMIC_ACQUIRE))
        return ask();
    if (known.changes != seen || now >= known.until_ns) {
        known.of = ask();
        known.changes = seen;
        known.until_ns = now + KNOWN_NS;
    }
    h = known.of;
    __atomic_store_n(&busy, 0, __ATOMIC_RELEASE);
    return h;
}

/* Whose ends are told by SIGCHLD, which libraries handle in any case. */
static bool has_children(void)
{
    siginfo_t info = {0};

    return ub_raw6(SYS_waitid, P_ALL, 0, (long)&info, WEXITED | WNOHANG | WNOWAIT | __WALL, 0, 0) != -ECHILD;
}

bool ub_signals_interrupt(bool never_restarted)
{
    struct handlers h = handlers();
    uint64_t which = never_restarted ? h.any : h.not_restarting;

    return h.alarm || which & ~SIGNAL(CHLD) || (which && has_children());
}

/* ---- what installs handlers: it is asked again after each ---------------------------------------------- */

void ub_signals_changed(void)
{
    __atomic_fetch_add(&changes, 1, __ATOMIC_RELEASE);
}

/* clang-format off */
#define INSTALLS(X) \
    X(int, sigaction, (int sig, const struct sigaction *act, struct sigaction *old), (sig, act, old)) \
    X(int, __sigaction, (int sig, const struct sigaction *act, struct sigaction *old), (sig, act, old)) \
    X(sighandler_t, signal, (int sig, sighandler_t handler), (sig, handler)) \
    X(sighandler_t, bsd_signal, (int sig, sighandler_t handler), (sig, handler)) \
    X(sighandler_t, ssignal, (int sig, sighandler_t handler), (sig, handler)) \
    X(sighandler_t, sysv_signal, (int sig, sighandler_t handler), (sig, handler)) \
    X(sighandler_t, __sysv_signal, (int sig, sighandler_t handler), (sig, handler)) \
    X(sighandler_t, sigset, (int sig, sighandler_t handler), (sig, handler)) \
    X(int, sigignore, (int sig), (sig))
/* clang-format on */

static struct ub_real direct;

/* Signal-safe, as what they stand for. */
#define COUNTED(type, name, params, args)                                                                              \
    static type counted_##name params                                                                                  \
    {                                                                                                                  \
        type ret = direct.name args;                                                                                   \
                                                                                                                       \
        ub_signals_changed();                                                                                          \
        return ret;                                                                                                    \
    }
INSTALLS(COUNTED)

void ub_signals_start(void)
{
    direct = ub_real;
#define TAKE_OVER(type, name, ...) ub_real.name = counted_##name;
    INSTALLS(TAKE_OVER)
}
