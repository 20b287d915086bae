/*
 * doctor PID: what stands between us and one process.
 */
#include "doctor.h"

#include "dump.h"
#include "inject.h"
#include "procfile.h"

#include "../common/arena.h"
#include "../common/attach.h"
#include "../common/image.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct seen {
    pid_t pid;
    char *maps;
    char exe[PATH_MAX];
    enum ub_image image;
    bool image_known, go;
};

/* The whole of /proc/PID/maps: long for some, so not into a fixed buffer. */
static char *read_maps(pid_t pid)
{
    char path[64], *text = NULL;
    size_t size = 0;
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
    f = fopen(path, "re");
    if (!f)
        return NULL;
    if (getdelim(&text, &size, '\0', f) < 0) {
        free(text);
        text = NULL;
    }
    fclose(f);
    return text;
}

/* Go writes its build information into a section of its own; the note of its build-id is named "Go". */
static bool is_go(int fd, const Elf64_Ehdr *eh)
{
    Elf64_Phdr ph[UB_IMAGE_HEADERS_MAX];
    size_t count = eh->e_phnum < UB_IMAGE_HEADERS_MAX ? eh->e_phnum : UB_IMAGE_HEADERS_MAX;
    ssize_t n = pread(fd, ph, count * sizeof(ph[0]), (off_t)eh->e_phoff);

    for (size_t i = 0; n > 0 && i < (size_t)n / sizeof(ph[0]); i++) {
        char note[256] = "";

        if (ph[i].p_type != PT_NOTE || pread(fd, note, sizeof(note) - 1, (off_t)ph[i].p_offset) <= 16)
            continue;
        for (size_t k = 12; k + 4 < sizeof(note); k += 4) {
            if (memcmp(note + k, "Go\0\0", 4) == 0)
                return true;
        }
    }
    return false;
}

static void look_at_image(struct seen *s)
{
    char path[64];
    Elf64_Ehdr eh;
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/exe", (int)s->pid);
    if (readlink(path, s->exe, sizeof(s->exe) - 1) < 0)
        s->exe[0] = '\0';
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    if (pread(fd, &eh, sizeof(eh), 0) == (ssize_t)sizeof(eh) && memcmp(eh.e_ident, ELFMAG, SELFMAG) == 0) {
        s->image = ub_image_look(fd, &eh);
        s->image_known = true;
        s->go = s->image != UB_IMAGE_MACHINE && is_go(fd, &eh);
    }
    close(fd);
}

static void tell_image(const struct seen *s, ub_doctor_tell *tell, void *self)
{
    static const char *const trace[] = {"sudo unblock trace PID, which enters nothing", "unblock trace on the host",
                                        "unblock trace in a privileged pod on the node"};

    if (!s->image_known) {
        ub_doctor_say(tell, self, "program", UB_HEALTH_INFO, NULL, "its program file cannot be read");
        return;
    }
    if (s->go)
        ub_doctor_say(tell, self, "program", UB_HEALTH_LIMITED, trace,
                      "%s is a Go program: its goroutines are scheduled by itself; no agent enters it", s->exe);
    else if (s->image == UB_IMAGE_STATIC)
        ub_doctor_say(tell, self, "program", UB_HEALTH_LIMITED, trace, "%s is statically linked: no agent enters it",
                      s->exe);
    else if (s->image == UB_IMAGE_MACHINE)
        ub_doctor_say(tell, self, "program", UB_HEALTH_FAILED, trace, "%s is not an x86-64 program", s->exe);
    else if (s->image == UB_IMAGE_LIBC)
        ub_doctor_say(tell, self, "program", UB_HEALTH_LIMITED, trace, "%s uses another C library than glibc", s->exe);
    else if (s->image == UB_IMAGE_SANITIZER)
        ub_doctor_say(tell, self, "program", UB_HEALTH_LIMITED, trace,
                      "%s is linked to a sanitizer's shared runtime, which lets no library load before itself", s->exe);
    else
        ub_doctor_say(tell, self, "program", UB_HEALTH_OK, NULL, "%s: dynamic, 64 bits, glibc", s->exe);
}

static void tell_runtime(const struct seen *s, ub_doctor_tell *tell, void *self)
{
    static const char *const js[] = {"unblock run --js -- node ...", "the same in the image", "the same in the image"};
    const char *base = strrchr(s->exe, '/');

    base = base ? base + 1 : s->exe;
    if (s->maps && strstr(s->maps, "/libjvm.so"))
        ub_doctor_say(tell, self, "runtime", UB_HEALTH_INFO, NULL,
                      "a JVM: its compiled code has no names; netty and its kin run loops in threads");
    else if (strcmp(base, "node") == 0 || (s->maps && strstr(s->maps, "/libnode.so")))
        ub_doctor_say(tell, self, "runtime", UB_HEALTH_INFO, js, "Node: names of JavaScript functions take --js");
    else if (strncmp(base, "python", 6) == 0 || (s->maps && strstr(s->maps, "/libpython")))
        ub_doctor_say(tell, self, "runtime", UB_HEALTH_INFO, NULL, "Python");
}

static bool agent_inside(const struct seen *s)
{
    return s->maps && strstr(s->maps, UB_ATTACH_LIBRARY);
}

/* What `attach` would say, without touching the process. */
static void tell_attach(const struct seen *s, const struct ub_dump_target *t, ub_doctor_tell *tell, void *self)
{
    long detail;
    enum ub_inject_obstacle o = ub_inject_look(s->pid, &detail);
    const char *const mend[UB_PLACES] = {ub_inject_obstacle_mend(o), ub_inject_obstacle_mend(o),
                                         ub_inject_obstacle_mend(o)};

    if (o == UB_INJECT_POSSIBLE)
        ub_doctor_say(tell, self, "attach", UB_HEALTH_OK, NULL,
                      "unblock attach %d can enter it while it runs, as far as that shows without touching it (whether "
                      "its loader has static TLS left for the agent does not: if not, it goes on as before)",
                      (int)t->pid);
    else
        ub_doctor_say(tell, self, "attach", UB_HEALTH_LIMITED, mend, "it cannot be entered while it runs: %s",
                      ub_inject_obstacle_text(o));
}

static void tell_agent(const struct seen *s, ub_doctor_tell *tell, void *self)
{
    static const char *const mend[] = {"unblock attach PID, start it by unblock run, or LD_PRELOAD=.../libunblock.so",
                                       "ENV LD_PRELOAD=/unblock/lib/unblock/libunblock.so in the image",
                                       "env LD_PRELOAD=/unblock/lib/unblock/libunblock.so and an init container"};

    if (!s->maps)
        return;
    if (!agent_inside(s))
        ub_doctor_say(tell, self, "loaded", UB_HEALTH_INFO, mend, "the agent is not in it");
    else if (strstr(s->maps, UB_ARENA_NAME))
        ub_doctor_say(tell, self, "loaded", UB_HEALTH_OK, NULL, "the agent is in it and watched");
    else
        ub_doctor_say(
            tell, self, "loaded", UB_HEALTH_INFO, NULL,
            "the agent is in it but not watched: left asleep by attach, UNBLOCK=0, no loop so far, or see unblock "
            "ps");
}

static void tell_access(const struct seen *s, const struct ub_dump_target *t, ub_doctor_tell *tell, void *self)
{
    static const char *const mend[] = {"sudo unblock ..., or let the service stay dumpable (prctl PR_SET_DUMPABLE 1)",
                                       "docker run --cap-add=SYS_PTRACE",
                                       "securityContext: {capabilities: {add: [SYS_PTRACE]}}"};
    char path[64];
    struct stat st;
    bool dumpable;

    snprintf(path, sizeof(path), "/proc/%d/environ", (int)s->pid);
    dumpable = stat(path, &st) != 0 || st.st_uid == t->uid;
    if (t->access == 0)
        ub_doctor_say(tell, self, "access", UB_HEALTH_OK, NULL, "its stacks can be read%s",
                      dumpable ? "" : " (it is not dumpable; we are privileged)");
    else
        ub_doctor_say(tell, self, "access", UB_HEALTH_LIMITED, mend, "its stacks cannot be read: %s",
                      !dumpable             ? "it is not dumpable (it changed its user, or asked for that)"
                      : t->uid != geteuid() ? "it belongs to another user"
                                            : "Yama, a security module or missing capabilities forbid it");
}

static uint64_t status_mask(const char *status, const char *key)
{
    const char *at = strstr(status, key);

    return at ? strtoull(at + strlen(key), NULL, 16) : 0;
}

static void tell_status(const struct seen *s, ub_doctor_tell *tell, void *self)
{
    static const char *const none[UB_PLACES] = {0};
    const uint64_t urgent = 1ull << (SIGURG - 1);
    char status[UB_STATUS_MAX];
    const char *seccomp;

    if (ub_procfile_status(s->pid, s->pid, status) == 0)
        return;
    seccomp = strstr(status, "\nSeccomp:\t");
    if (seccomp && seccomp[10] != '0')
        ub_doctor_say(
            tell, self, "seccomp", UB_HEALTH_LIMITED, none,
            "it runs under a seccomp filter: an agent in it makes no system calls of its own and is sampled by "
            "perf only");
    if (!agent_inside(s) && status_mask(status, "\nSigCgt:\t") & urgent)
        ub_doctor_say(tell, self, "sigurg", UB_HEALTH_INFO, none,
                      "it has a SIGURG handler of its own: it would be sampled by perf only");
    if (status_mask(status, "\nSigBlk:\t") & urgent)
        ub_doctor_say(tell, self, "sigurg", UB_HEALTH_INFO, none,
                      "it blocks SIGURG in its first thread, which is sampled by perf only");
}

/* Of AppArmor, SELinux or the like; empty: of none, or none that confines. */
static void read_profile(pid_t pid, char *ret, size_t size)
{
    if (ub_procfile_read(ret, size, "/proc/%d/attr/apparmor/current", (int)pid) == 0 &&
        ub_procfile_read(ret, size, "/proc/%d/attr/current", (int)pid) == 0)
        ret[0] = '\0';
    ret[strcspn(ret, "\n")] = '\0';
    if (strstr(ret, "unconfined"))
        ret[0] = '\0';
}

/* The rules themselves are the kernel's secret. */
static void tell_profile(const struct seen *s, ub_doctor_tell *tell, void *self)
{
    static const char *const mend[UB_PLACES] = {
        "aa-complain PROFILE, or \"ptrace (trace, tracedby),\" in it; SELinux: setsebool deny_ptrace 0, and execmem",
        "docker run --security-opt apparmor=unconfined (or label=disable)",
        "securityContext: {appArmorProfile: {type: Unconfined}}"};
    char its[128], ours[128];

    read_profile(s->pid, its, sizeof(its));
    read_profile(getpid(), ours, sizeof(ours));
    if (*its || *ours)
        ub_doctor_say(
            tell, self, "profile", UB_HEALTH_LIMITED, mend,
            "%s%s%s%s%s: whether the rules let us trace it, and it map code, shows only when attach tries; if "
            "not, it goes on as before",
            *its ? "a security module confines it (" : "a security module confines us (", *its ? its : ours,
            *its && *ours ? ") and us (" : "", *its && *ours ? ours : "", ")");
}

static bool same_namespace(pid_t pid, const char *name)
{
    char path[64];
    struct stat own, its;

    snprintf(path, sizeof(path), "/proc/self/ns/%s", name);
    if (stat(path, &own) != 0)
        return true;
    snprintf(path, sizeof(path), "/proc/%d/ns/%s", (int)pid, name);
    return stat(path, &its) != 0 || own.st_ino == its.st_ino;
}

static void tell_namespaces(const struct seen *s, ub_doctor_tell *tell, void *self)
{
    static const char *const mend[] = {"unblock attach or trace from here; nsenter -t PID -a unblock run ...",
                                       "docker exec into the container, or --pid=container:NAME",
                                       "a sidecar with shareProcessNamespace: true"};

    if (!same_namespace(s->pid, "pid"))
        ub_doctor_say(
            tell, self, "namespaces", UB_HEALTH_LIMITED, mend,
            "it lives in another pid namespace: attach and trace reach it from here, run only from inside that one");
    else if (!same_namespace(s->pid, "user"))
        ub_doctor_say(tell, self, "namespaces", UB_HEALTH_LIMITED, mend,
                      "it lives in another user namespace: run reaches what is executed there only from inside it");
    else if (!same_namespace(s->pid, "mnt"))
        ub_doctor_say(tell, self, "namespaces", UB_HEALTH_INFO, NULL,
                      "it has a file system view of its own: the agent's path must exist there too");
}

int ub_doctor_process(pid_t pid, ub_doctor_tell *tell, void *self)
{
    struct ub_dump_target target;
    struct seen s = {0};
    int r = ub_dump_look(pid, &target);

    if (r < 0)
        return r;
    s.pid = target.pid;
    ub_doctor_say(tell, self, "process", target.kind == UB_DUMP_PROCESS ? UB_HEALTH_INFO : UB_HEALTH_FAILED, NULL,
                  "%d (%s), user %u%s", (int)target.pid, target.name, (unsigned)target.uid,
                  target.kind == UB_DUMP_ZOMBIE   ? ": a zombie"
                  : target.kind == UB_DUMP_KERNEL ? ": a kernel thread"
                                                  : "");
    if (target.kind != UB_DUMP_PROCESS)
        return 0;
    s.maps = read_maps(target.pid);
    look_at_image(&s);
    tell_image(&s, tell, self);
    tell_runtime(&s, tell, self);
    tell_access(&s, &target, tell, self);
    tell_attach(&s, &target, tell, self);
    tell_profile(&s, tell, self);
    tell_agent(&s, tell, self);
    tell_status(&s, tell, self);
    tell_namespaces(&s, tell, self);
    free(s.maps);
    return 0;
}
