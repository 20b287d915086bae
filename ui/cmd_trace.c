/*
 * unblock trace: watches processes that already run, from the kernel; nothing
 * enters them.
 */
#include "command.h"
#include "options.h"
#include "say.h"
#include "settings.h"
#include "trace_targets.h"
#include "watching.h"

#include "../common/clock.h"
#include "../tracer/bpf/bpf.h"
#include "../tracer/dump.h"
#include "../tracer/outside.h"
#include "../tracer/watch.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define RESCAN_MS 1000 /* processes that have come into a cgroup */

struct trace {
    struct ub_settings set;
    bool children;
    const char *cgroup;

    struct ub_trace_targets targets;
    char name[64]; /* of the first process */
    char **argv;
    int argc;
    struct ub_bpf *bpf;                 /* NULL: the reduced view */
    char reduced[UB_BPF_WHY_MAX + 512]; /* what is not seen without BPF, and why there is none; "" with it */
    struct ub_watching w;
};

static const char about[] = "Watches the event loops of running processes from the kernel, by eBPF. Nothing\n"
                            "enters them, so they may be static, set-user-ID, written in Go, or not yours.\n"
                            "A loop turn longer than the threshold is reported with its stack and with where\n"
                            "its time went: blocking calls, CPU, run queue and who had the CPU instead, page\n"
                            "faults, locks and who held them.";

static const char more[] = "Examples:\n"
                           "  unblock trace $(pgrep -o redis-server)\n"
                           "  unblock trace -t 10ms --duration 60s -o web.jsonl --children $(pgrep -o nginx)\n"
                           "  unblock trace --cgroup system.slice/app.service\n"
                           "\n"
                           "Ctrl-C ends the watching; the processes go on. It also ends when they have.\n"
                           "It takes CAP_BPF and CAP_PERFMON, and CAP_SYS_PTRACE for the stacks of others'\n"
                           "processes (root has them), and a kernel of 5.15 or later with BTF.\n"
                           "Without them your own processes are watched through /proc, which shows less: only\n"
                           "calls in which a loop sleeps for longer than the threshold.\n"
                           "\n"
                           "What it does not do: single callbacks are not timed, only turns of the loop. The\n"
                           "names of a closed file or an ended process's stacks may be missing. System calls\n"
                           "are looked at only while somebody works for long; what may have been several\n"
                           "short turns is kept apart and not counted. In Go a turn is the time between two\n"
                           "visits of a thread to the kernel. Time that a hypervisor took counts as CPU.\n"
                           "\n"
                           "Exit status:\n"
                           "  0    watched to the end\n"
                           "  1    --fail-on was exceeded\n"
                           "  125  wrong use, no such process, or this system does not allow it\n";

static int parse(struct trace *t, int argc, char **argv, int *ret_first, char *why)
{
    struct ub_option option[UB_SETTINGS_MAX + 2];
    uint32_t count = ub_settings_options(&t->set, option);
    const struct ub_options options = {.usage = "unblock trace [OPTION...] PID...",
                                       .about = about,
                                       .more = more,
                                       .option = option,
                                       .count = count + 2};

    option[count] = (struct ub_option){.name = "children",
                                       .kind = UB_OPTION_FLAG,
                                       .value = &t->children,
                                       .help = "watch their children too, those there are and those to come"};
    option[count + 1] = (struct ub_option){.name = "cgroup",
                                           .kind = UB_OPTION_TEXT,
                                           .value = &t->cgroup,
                                           .argument = "PATH",
                                           .help = "watch all processes of this control group (below\n/sys/fs/cgroup) "
                                                   "and of those in it"};
    return ub_options_read(&options, argc, argv, ret_first, why);
}

/* ---- who ------------------------------------------------------------------ */

static int add_process(struct trace *t, const char *word, char *why)
{
    struct ub_dump_target target;
    pid_t pid;
    int r = ub_option_pid(word, &pid, why);

    if (r < 0)
        return r;
    r = ub_dump_look(pid, &target);
    if (r == 0 && target.pid == getpid())
        snprintf(why, UB_WHY_MAX, "%d is unblock itself: name the process to be watched", pid);
    else if (r == -ENOENT)
        snprintf(why, UB_WHY_MAX, "/proc is not mounted, so no process can be looked at: mount -t proc proc /proc");
    else if (r < 0)
        snprintf(why, UB_WHY_MAX, "there is no process %d: see ps or pgrep", pid);
    else if (target.kind == UB_DUMP_ZOMBIE)
        snprintf(why, UB_WHY_MAX, "process %d (%s) has ended and only waits to be reaped", pid, target.name);
    else if (target.kind == UB_DUMP_KERNEL)
        snprintf(why, UB_WHY_MAX, "process %d (%s) is a thread of the kernel: it runs no event loop", pid, target.name);
    else
        r = 1;
    if (r != 1)
        return r < 0 ? r : -EINVAL;
    if (t->targets.count == 0)
        snprintf(t->name, sizeof(t->name), "%s", target.name);
    return ub_trace_targets_add(&t->targets, target.pid, t->children, why);
}

static int find_targets(struct trace *t, char **words, int count, char *why)
{
    int r = 0;

    for (int i = 0; i < count && r == 0; i++)
        r = add_process(t, words[i], why);
    if (r == 0 && t->cgroup) {
        r = ub_trace_targets_cgroup(&t->targets, t->cgroup, why);
        if (r == 0 && *t->name == '\0')
            snprintf(t->name, sizeof(t->name), "%s", ub_path_base(t->cgroup));
    }
    if (r == 0 && t->targets.count == 0 && !t->cgroup) {
        snprintf(why, UB_WHY_MAX, "no process named: unblock trace PID");
        r = -EINVAL;
    }
    return r;
}

/* ---- watching -------------------------------------------------------------- */

/* One that has just ended is no trouble; one that came later may belong to somebody else. */
static void tell_outside(struct trace *t, pid_t pid)
{
    int r = ub_watch_add(t->w.watch, pid);

    if (r < 0 && r != -ESRCH)
        ub_watch_note(t->w.watch, "warning", "process %d is not watched: %s", (int)pid, strerror(-r));
}

/* Only now, when the slots are read, is anybody watched. */
static int tell_kernel(struct trace *t)
{
    int r = 0;

    for (uint32_t i = 0; i < t->targets.count && r == 0; i++) {
        if (!t->targets.process[i].told && t->bpf)
            r = ub_bpf_add(t->bpf, t->targets.process[i].pid);
        else if (!t->targets.process[i].told)
            tell_outside(t, t->targets.process[i].pid);
        t->targets.process[i].told = true;
    }
    t->targets.fresh = false;
    if (r == 0 && t->bpf)
        r = ub_bpf_find(t->bpf);
    if (r < 0)
        ub_say("trace", "the kernel does not take the processes: %s", strerror(-r));
    return r;
}

/* Whether processes to be watched may come unannounced. */
static bool rescans(const struct trace *t)
{
    return t->cgroup || (t->children && !t->bpf);
}

static int rescan(struct trace *t)
{
    char why[UB_WHY_MAX];

    if (t->cgroup && ub_trace_targets_cgroup(&t->targets, t->cgroup, why) < 0)
        return 0;
    if (t->children && t->targets.count)
        ub_trace_targets_add(&t->targets, t->targets.process[0].pid, true, why);
    if (!t->targets.fresh)
        return 0;
    return tell_kernel(t);
}

static int next_timeout_ms(const struct trace *t, uint64_t deadline_ns)
{
    uint64_t now = ub_clock_monotonic_ns();
    uint64_t left = deadline_ns > now ? (deadline_ns - now) / 1000000 + 1 : 0;
    uint64_t most = rescans(t) ? RESCAN_MS : 60000;

    return (int)(left < most ? left : most);
}

/* Until all have ended, the time is over, or a signal says so. */
static void watch_to_the_end(struct trace *t, int signals)
{
    uint64_t deadline = t->set.duration_ns != 0 ? ub_clock_monotonic_ns() + t->set.duration_ns : UINT64_MAX;

    while (ub_clock_monotonic_ns() < deadline && (ub_trace_targets_left(&t->targets) || t->cgroup)) {
        if (ub_trace_targets_wait(&t->targets, signals, next_timeout_ms(t, deadline)))
            return;
        if (rescans(t) && rescan(t) < 0)
            return;
    }
}

/* Without BPF what /proc shows must do; `bpf` says why there is none. False, and it is said: not even that. */
static bool reduced_view(struct trace *t, const char *bpf)
{
    for (uint32_t i = 0; i < t->targets.count; i++) {
        pid_t pid = t->targets.process[i].pid;
        int r = ub_outside_may_look(pid);

        if (r == 0 || r == -ESRCH)
            continue;
        ub_say("trace", "%s (and process %d cannot be looked at without it: %s)", bpf, (int)pid,
               r == -EACCES ? "it is not yours" : strerror(-r));
        return false;
    }
    snprintf(t->reduced, sizeof(t->reduced),
             "the reduced view: only calls in which a loop sleeps for longer than the threshold are seen%s, not turns "
             "that compute or add up short calls, nor who held a lock or had the CPU. For the whole: %s",
             ub_outside_exact() ? "" : ", and when they began and ended only to a quarter of it", bpf);
    ub_say("trace", "warning: %s", t->reduced);
    return true;
}

static int trace(struct trace *t)
{
    const struct ub_bpf_options options = {.threshold_ns = t->set.threshold_ns, .children = t->children};
    char why[UB_BPF_WHY_MAX] = "";
    struct ub_watch_options watch = {.argc = t->argc, .argv = t->argv, .agentless = true};
    pid_t first = t->targets.count > 0 ? t->targets.process[0].pid : getpid();
    int signals = ub_watching_signals(0), r = ub_bpf_open(&options, &t->bpf, why);
    uint64_t worst_ns;

    if (r < 0 && !reduced_view(t, *why != '\0' ? why : strerror(-r)))
        return UB_EXIT_RUN_FAILED;
    if (ub_watching_open(&t->w, t->name, first) < 0)
        return UB_EXIT_RUN_FAILED;
    watch.bpf = t->bpf;
    if (ub_watching_start(&t->w, &watch, first) < 0) {
        ub_watching_discard(&t->w);
        return UB_EXIT_RUN_FAILED;
    }
    if (*t->reduced != '\0')
        ub_watch_note(t->w.watch, "warning", "%s", t->reduced);
    r = tell_kernel(t);
    if (r == 0)
        r = rescan(t); /* children made before the kernel's programs saw their parent fork */
    if (r == 0 && t->set.verbose)
        ub_say("trace", "%u processes, recording %s", t->targets.count, t->w.path);
    if (r == 0)
        watch_to_the_end(t, signals);
    ub_watching_stop(&t->w, false, 0);
    if (r < 0)
        return UB_EXIT_RUN_FAILED;
    worst_ns = ub_watching_too_long(&t->w);
    return worst_ns > 0 ? ub_watching_fail(&t->w, worst_ns) : 0;
}

int ub_cmd_trace(int argc, char **argv)
{
    static struct trace t;
    char why[UB_WHY_MAX];
    int first, r;

    ub_settings_init(&t.set);
    r = parse(&t, argc, argv, &first, why);
    if (r == UB_OPTIONS_HELP)
        return 0;
    if (r == 0)
        r = ub_watching_settle(&t.set, why);
    if (r == 0)
        r = ub_watching_init(&t.w, "trace", &t.set, why);
    if (r == 0)
        r = find_targets(&t, argv + first, argc - first, why);
    if (r < 0) {
        ub_say("trace", "%s", why);
        return UB_EXIT_RUN_FAILED;
    }
    t.argv = argv;
    t.argc = argc;
    r = trace(&t);
    ub_bpf_close(t.bpf);
    ub_trace_targets_clear(&t.targets);
    ub_watching_clear(&t.w);
    return r;
}
