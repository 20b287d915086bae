#include "doctor.h"

#include "bpf/bpf.h"
#include "capture.h"
#include "line.h"
#include "procfile.h"
#include "ticks.h"

#include <errno.h>
#include <fcntl.h>
#include <gnu/libc-version.h>
#include <linux/capability.h>
#include <linux/membarrier.h>
#include <linux/perf_event.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#define DISABLED "/run/unblock/disabled"

void ub_doctor_say(ub_doctor_tell *tell, void *self, const char *what, enum ub_health health,
                   const char *const mend[UB_PLACES], const char *format, ...)
{
    struct ub_finding f = {.what = what, .health = health};
    struct ub_line line;
    char text[512];
    va_list ap;

    va_start(ap, format);
    vsnprintf(text, sizeof(text), format, ap); /* NOLINT(clang-analyzer-valist.Uninitialized): started above */
    va_end(ap);
    ub_line_begin(&line, f.text, sizeof(f.text));
    ub_line_escape(&line, text, strlen(text), 0);
    for (int i = 0; mend && i < UB_PLACES; i++)
        f.mend[i] = mend[i];
    tell(self, &f);
}

enum ub_place ub_doctor_place(void)
{
    char environment[8192];

    if (getenv("KUBERNETES_SERVICE_HOST") || access("/var/run/secrets/kubernetes.io", F_OK) == 0)
        return UB_PLACE_KUBERNETES;
    if (access("/.dockerenv", F_OK) == 0 || access("/run/.containerenv", F_OK) == 0)
        return UB_PLACE_DOCKER;
    if (ub_procfile_read(environment, sizeof(environment), "/proc/1/environ") > 0 &&
        strncmp(environment, "container=", 10) == 0)
        return UB_PLACE_DOCKER;
    return UB_PLACE_HOST;
}

static int read_number(const char *path, int missing)
{
    char text[64];
    size_t n = ub_procfile_read(text, sizeof(text), "%s", path);

    return n > 0 ? atoi(text) : missing;
}

static bool have_capability(int cap)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{0}};

    return syscall(SYS_capget, &header, data) == 0 && data[cap / 32].effective & (1u << (cap % 32));
}

static void look_at_system(ub_doctor_tell *tell, void *self)
{
    static const char *const old[] = {"a kernel of 4.14 or later", "a host kernel of 4.14 or later",
                                      "nodes with a kernel of 4.14 or later"};
    struct utsname u;
    int major = 0, minor = 0;
    bool works;

    uname(&u);
    works = sscanf(u.release, "%d.%d", &major, &minor) == 2 && (major > 4 || (major == 4 && minor >= 14));
    ub_doctor_say(tell, self, "kernel", works ? UB_HEALTH_OK : UB_HEALTH_FAILED, works ? NULL : old,
                  "Linux %s, %s, glibc %s", u.release, u.machine, gnu_get_libc_version());
    ub_ticks_start();
    ub_doctor_say(tell, self, "clock", ub_ticks_clock() == UB_CLOCK_TSC ? UB_HEALTH_OK : UB_HEALTH_INFO, NULL,
                  ub_ticks_clock() == UB_CLOCK_TSC
                      ? "the TSC is constant: a loop turn costs about 25 ns"
                      : "no usable TSC: times come from clock_gettime, a loop turn costs some 30 ns more");
}

static void look_at_agent(const char *agent, const char *why, ub_doctor_tell *tell, void *self)
{
    static const char *const lost[] = {"make install, or run unblock from its build tree",
                                       "copy lib/unblock/ into the image beside bin/unblock",
                                       "let the init container copy lib/unblock/ beside bin/unblock"};
    static const char *const noexec[] = {"install it on a file system that is not mounted noexec",
                                         "mount its volume without noexec: -v unblock:/unblock:exec",
                                         "put it on an emptyDir (not noexec), not on a projected volume"};
    static const char *const closed[] = {"chmod a+rx its folders and a+r the library", "the same in the image",
                                         "the same in the init container"};
    struct statvfs fs;
    struct stat st;

    if (!agent)
        ub_doctor_say(tell, self, "agent", UB_HEALTH_FAILED, lost, "the agent's library was not found: %s", why);
    else if (statvfs(agent, &fs) == 0 && fs.f_flag & ST_NOEXEC)
        ub_doctor_say(tell, self, "agent", UB_HEALTH_FAILED, noexec, "%s lies on a file system mounted noexec", agent);
    else if (stat(agent, &st) == 0 && !(st.st_mode & S_IROTH))
        ub_doctor_say(tell, self, "agent", UB_HEALTH_LIMITED, closed, "%s is not readable for other users", agent);
    else
        ub_doctor_say(tell, self, "agent", UB_HEALTH_OK, NULL, "%s", agent);
    if (access(DISABLED, F_OK) == 0)
        ub_doctor_say(tell, self, "disabled", UB_HEALTH_FAILED,
                      (const char *const[]){"rm " DISABLED, "rm " DISABLED, "rm " DISABLED},
                      DISABLED " exists: no agent does anything on this machine");
}

/* A child of our own that sleeps in a call: what may be done to it may be done to the programs we start. */
static pid_t start_sleeper(void)
{
    pid_t pid = fork();
    char state[UB_STAT_MAX] = "";

    if (pid == 0)
        for (;;)
            pause();
    for (int i = 0; pid > 0 && i < 200 && state[0] != 'S'; i++) {
        usleep(1000);
        ub_procfile_stat(pid, pid, state);
    }
    return pid;
}

static void look_at_stacks(ub_doctor_tell *tell, void *self)
{
    static const char *const denied[] = {
        "sysctl kernel.yama.ptrace_scope=1, or run unblock as root",
        "docker run --cap-add=SYS_PTRACE (and --security-opt seccomp=unconfined where the kernel is older than 4.8)",
        "securityContext: {capabilities: {add: [SYS_PTRACE]}}"};
    struct ub_capture *c = calloc(1, sizeof(*c));
    pid_t pid = start_sleeper();
    int r = c && pid > 0 ? ub_capture_blocked(pid, pid, NULL, c) : -ENOMEM;

    if (r == 0 && c->proof == UB_PROOF_STILL)
        ub_doctor_say(tell, self, "stacks", UB_HEALTH_OK, NULL, "stacks of programs that we start can be read");
    else if (r == 0)
        ub_doctor_say(tell, self, "stacks", UB_HEALTH_LIMITED, NULL,
                      "stacks can be read, but this kernel keeps no counter that proves them (schedstat)");
    else
        ub_doctor_say(tell, self, "stacks", UB_HEALTH_LIMITED, denied,
                      "stacks of programs that we start cannot be read (%s): stalls are recorded with what the program "
                      "itself sees",
                      strerror(-r));
    if (pid > 0) {
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    free(c);
}

static void look_at_capabilities(ub_doctor_tell *tell, void *self)
{
    static const char *const mend[] = {"sudo unblock ..., for processes of other users",
                                       "docker run --cap-add=SYS_PTRACE",
                                       "securityContext: {capabilities: {add: [SYS_PTRACE]}}"};
    static const char *const yama_mend[] = {"sudo sysctl kernel.yama.ptrace_scope=0, or run unblock as root",
                                            "on the host: sysctl kernel.yama.ptrace_scope=0, or --cap-add=SYS_PTRACE",
                                            "on the node: sysctl kernel.yama.ptrace_scope=0, or add SYS_PTRACE"};
    int yama = read_number("/proc/sys/kernel/yama/ptrace_scope", 0);
    bool ptrace = have_capability(CAP_SYS_PTRACE);

    if (ptrace)
        ub_doctor_say(tell, self, "ptrace", UB_HEALTH_OK, NULL,
                      "CAP_SYS_PTRACE: processes of all users can be looked at");
    else
        ub_doctor_say(tell, self, "ptrace", UB_HEALTH_LIMITED, mend,
                      "%s without CAP_SYS_PTRACE: only own, dumpable processes can be looked at",
                      geteuid() == 0 ? "root" : "a plain user");
    if (yama == 0)
        ub_doctor_say(tell, self, "yama", UB_HEALTH_OK, NULL, "Yama does not restrict who may look");
    else
        ub_doctor_say(tell, self, "yama", ptrace && yama < 3 ? UB_HEALTH_OK : UB_HEALTH_LIMITED,
                      ptrace && yama < 3 ? NULL : yama_mend, "kernel.yama.ptrace_scope is %d: %s", yama,
                      yama == 1   ? "programs that we start can be looked at, others need CAP_SYS_PTRACE"
                      : yama == 2 ? "looking takes CAP_SYS_PTRACE"
                                  : "nobody may look into another process, until the next boot");
}

static void look_at_lsm(ub_doctor_tell *tell, void *self)
{
    static const char *const mend[] = {"aa-complain the profile, or allow it ptrace (read)",
                                       "docker run --security-opt apparmor=unconfined",
                                       "annotation container.apparmor.security.beta.kubernetes.io/NAME: unconfined"};
    char text[256] = "";
    size_t n = ub_procfile_read(text, sizeof(text), "/proc/self/attr/apparmor/current");

    if (n == 0)
        n = ub_procfile_read(text, sizeof(text), "/proc/self/attr/current");
    text[strcspn(text, "\n")] = '\0';
    if (n == 0 || strcmp(text, "unconfined") == 0)
        ub_doctor_say(tell, self, "lsm", UB_HEALTH_OK, NULL, "no AppArmor or SELinux profile confines us");
    else
        ub_doctor_say(tell, self, "lsm", UB_HEALTH_INFO, mend, "confined by the profile %s", text);
}

static int status_number(pid_t pid, const char *key)
{
    char text[UB_STATUS_MAX], *at;

    if (ub_procfile_status(pid, pid, text) == 0)
        return -1;
    at = strstr(text, key);
    return at ? atoi(at + strlen(key)) : -1;
}

static void look_at_seccomp(ub_doctor_tell *tell, void *self)
{
    static const char *const mend[] = {"start it outside the sandbox (systemd: SystemCallFilter=)",
                                       "docker run --security-opt seccomp=unconfined, or allow perf_event_open, bpf",
                                       "securityContext: {seccompProfile: {type: Unconfined}}"};
    int mode = status_number(getpid(), "\nSeccomp:\t");
    long barrier = syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0);
    int fd = memfd_create("unblock-doctor", MFD_CLOEXEC);

    if (fd >= 0)
        close(fd);
    if (fd < 0)
        ub_doctor_say(tell, self, "seccomp", UB_HEALTH_FAILED, mend, "memfd_create is refused: nothing can be watched");
    else if (mode > 0)
        ub_doctor_say(
            tell, self, "seccomp", UB_HEALTH_LIMITED, mend,
            "a seccomp filter is set: agents under it make no system calls of their own, and the watcher polls "
            "them");
    else if (mode < 0)
        ub_doctor_say(tell, self, "seccomp", UB_HEALTH_LIMITED, NULL, "/proc/self/status cannot be read");
    else
        ub_doctor_say(tell, self, "seccomp", UB_HEALTH_OK, NULL, "no seccomp filter");
    if (barrier < 0 || !(barrier & MEMBARRIER_CMD_GLOBAL_EXPEDITED))
        ub_doctor_say(tell, self, "membarrier", UB_HEALTH_LIMITED, NULL,
                      "no expedited membarrier: the watcher wakes up now and then although nothing happens");
}

static void look_at_perf(ub_doctor_tell *tell, void *self)
{
    static const char *const mend[] = {"sysctl kernel.perf_event_paranoid=2", "docker run --cap-add=PERFMON",
                                       "securityContext: {capabilities: {add: [PERFMON]}}"};
    struct perf_event_attr attr = {.type = PERF_TYPE_SOFTWARE,
                                   .size = sizeof(attr),
                                   .config = PERF_COUNT_SW_TASK_CLOCK,
                                   .exclude_kernel = 1,
                                   .exclude_hv = 1,
                                   .disabled = 1};
    int fd = (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0UL), error = errno;

    if (fd >= 0) {
        close(fd);
        ub_doctor_say(tell, self, "perf", UB_HEALTH_OK, NULL,
                      "perf_event_open works: running threads can be sampled without a signal");
        return;
    }
    ub_doctor_say(
        tell, self, "perf", UB_HEALTH_LIMITED, mend,
        "perf_event_open is refused (%s, kernel.perf_event_paranoid %d): running threads are sampled by signal "
        "only",
        strerror(error), read_number("/proc/sys/kernel/perf_event_paranoid", -1));
}

static void look_at_bpf(ub_doctor_tell *tell, void *self)
{
    static const char *const mend[] = {
        "sudo unblock trace ...",
        "docker run --cap-add=BPF --cap-add=PERFMON --pid=host --security-opt seccomp=unconfined",
        "securityContext: {privileged: true} with hostPID: true"};
    const struct ub_bpf_options options = {.threshold_ns = 50000000};
    char why[UB_BPF_WHY_MAX] = "";
    struct ub_bpf *b = NULL;

    if (ub_bpf_open(&options, &b, why) == 0)
        ub_doctor_say(tell, self, "bpf", UB_HEALTH_OK, NULL, "BPF programs load: unblock trace works");
    else
        ub_doctor_say(tell, self, "bpf", UB_HEALTH_LIMITED, mend, "unblock trace does not work: %s", why);
    ub_bpf_close(b);
}

/* Whether other users' processes show in /proc. */
static void look_at_proc(ub_doctor_tell *tell, void *self)
{
    static const char *const mend[] = {"mount -o remount,hidepid=0 /proc, or run unblock as root", "", ""};
    static const char *const no_proc[] = {"mount -t proc proc /proc", "mount /proc in the container",
                                          "procMount: Default"};
    char mounts[16384];
    const char *at;

    if (access("/proc/self/stat", R_OK) != 0) {
        ub_doctor_say(tell, self, "proc", UB_HEALTH_FAILED, no_proc, "/proc is not there: nothing can be seen without");
        return;
    }
    ub_procfile_read(mounts, sizeof(mounts), "/proc/self/mounts");
    at = strstr(mounts, " /proc proc ");
    at = at ? strstr(at, "hidepid=") : NULL;
    if (at && at < strchr(at, '\n') && strncmp(at, "hidepid=0", 9) != 0 && strncmp(at, "hidepid=off", 11) != 0 &&
        geteuid() != 0)
        ub_doctor_say(tell, self, "proc", UB_HEALTH_LIMITED, mend,
                      "/proc is mounted with hidepid: processes of others do not show");
    else
        ub_doctor_say(tell, self, "proc", UB_HEALTH_OK, NULL, "/proc shows what is needed");
}

static bool writable(const char *folder)
{
    return folder && access(folder, W_OK | X_OK) == 0;
}

static void look_at_folders(ub_doctor_tell *tell, void *self)
{
    static const char *const mend[] = {"set UNBLOCK_OUTPUT or -o to a writable place",
                                       "-v /var/log/unblock, or UNBLOCK_OUTPUT=/tmp/unblock-%p.jsonl",
                                       "an emptyDir, and UNBLOCK_OUTPUT in it (readOnlyRootFilesystem)"};
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    const char *log = geteuid() == 0 ? "/var/log" : state ? state : home;
    struct statvfs fs;
    bool read_only = statvfs("/", &fs) == 0 && fs.f_flag & ST_RDONLY;

    if (writable(log))
        ub_doctor_say(tell, self, "output", UB_HEALTH_OK, NULL, "recordings of LD_PRELOAD alone go below %s", log);
    else
        ub_doctor_say(tell, self, "output", UB_HEALTH_LIMITED, mend,
                      "%s is not writable%s: recordings of LD_PRELOAD alone have no place", log ? log : "$HOME",
                      read_only ? " (the root file system is read-only)" : "");
}

static void look_at_namespaces(ub_doctor_tell *tell, void *self)
{
    static const char *const pid1[] = {"", "docker run --init, or run the program by unblock run",
                                       "shareProcessNamespace: true, or run the program by unblock run"};
    char map[256] = "";
    struct stat st = {0};
    unsigned long long inside = 0, outside = 0, count = 0;
    bool pid_namespace = stat("/proc/self/ns/pid", &st) == 0 && st.st_ino != 4026531836u;
    bool user_namespace;

    ub_procfile_read(map, sizeof(map), "/proc/self/uid_map");
    user_namespace = sscanf(map, "%llu %llu %llu", &inside, &outside, &count) == 3 && count != 4294967295u;
    if (!pid_namespace && !user_namespace)
        ub_doctor_say(tell, self, "namespaces", UB_HEALTH_OK, NULL, "the host's own pid and user namespace");
    else
        ub_doctor_say(tell, self, "namespaces", UB_HEALTH_INFO, NULL, "in %s%s%s: only processes in it can be watched",
                      pid_namespace ? "a pid namespace" : "", pid_namespace && user_namespace ? " and " : "",
                      user_namespace ? "a user namespace" : "");
    if (getppid() == 1 && pid_namespace)
        ub_doctor_say(tell, self, "init", UB_HEALTH_INFO, pid1,
                      "the program that is pid 1 here gets no helper watcher by LD_PRELOAD alone");
}

void ub_doctor_host(const char *agent, const char *why, ub_doctor_tell *tell, void *self)
{
    look_at_system(tell, self);
    look_at_agent(agent, why, tell, self);
    look_at_proc(tell, self);
    look_at_stacks(tell, self);
    look_at_capabilities(tell, self);
    look_at_lsm(tell, self);
    look_at_seccomp(tell, self);
    look_at_perf(tell, self);
    look_at_bpf(tell, self);
    look_at_namespaces(tell, self);
    look_at_folders(tell, self);
}
