#include "refuse.h"

#include "say.h"
#include "target.h"

#include <errno.h>
#include <limits.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int yama_scope(void)
{
    FILE *f = fopen("/proc/sys/kernel/yama/ptrace_scope", "re");
    int scope = 0;

    if (f != NULL) {
        if (fscanf(f, "%d", &scope) != 1)
            scope = 0;
        fclose(f);
    }
    return scope;
}

static void say_denied(const char *command, const struct ub_dump_target *t)
{
    const struct passwd *owner = getpwuid(t->uid);

    if (geteuid() == 0)
        ub_say(command,
               "process %d (%s) may not be looked at although we are root: CAP_SYS_PTRACE is missing; in a "
               "container add --cap-add=SYS_PTRACE",
               (int)t->pid, t->name);
    else if (t->uid != geteuid())
        ub_say(command, "process %d (%s) belongs to user %s: sudo unblock %s %d", (int)t->pid, t->name,
               owner != NULL ? owner->pw_name : "of another number", command, (int)t->pid);
    else if (yama_scope() > 0)
        ub_say(command,
               "process %d (%s) may not be looked at: kernel.yama.ptrace_scope is %d; sudo unblock %s %d, or "
               "sudo sysctl kernel.yama.ptrace_scope=0",
               (int)t->pid, t->name, yama_scope(), command, (int)t->pid);
    else
        ub_say(command,
               "process %d (%s) may not be looked at: it has changed its user or made itself undumpable; sudo "
               "unblock %s %d",
               (int)t->pid, t->name, command, (int)t->pid);
}

static bool is_other_machine(pid_t pid)
{
    char path[64], interpreter[PATH_MAX];

    snprintf(path, sizeof(path), "/proc/%d/exe", (int)pid);
    return ub_target_look(path, interpreter, sizeof(interpreter)) == UB_IMAGE_MACHINE;
}

int ub_refuse(const char *command, pid_t pid, struct ub_dump_target *t)
{
    int r = ub_dump_look(pid, t);

    if (r == -ENOENT)
        ub_say(command, "/proc cannot be read, and nothing can be seen without it: mount -t proc proc /proc");
    else if (r == -ESRCH && kill(pid, 0) != 0 && errno == ESRCH)
        ub_say(command, "there is no process %d: take its number from ps or pgrep", (int)pid);
    else if (r == -ESRCH)
        ub_say(command, "process %d is hidden from us (/proc is mounted with hidepid): sudo unblock %s %d", (int)pid,
               command, (int)pid);
    else if (r < 0)
        ub_say(command, "process %d cannot be read: %s", (int)pid, strerror(-r));
    else if (t->kind == UB_DUMP_ZOMBIE)
        ub_say(command,
               "process %d (%s) is a zombie: it has ended and waits for its parent to take note; there is no "
               "stack to show",
               (int)t->pid, t->name);
    else if (t->kind == UB_DUMP_KERNEL)
        ub_say(command, "process %d (%s) is a kernel thread: it has no program whose stack could be shown", (int)t->pid,
               t->name);
    else if (t->access != 0)
        say_denied(command, t);
    else if (is_other_machine(t->pid))
        ub_say(command, "process %d (%s) is not an x86-64 program: only those can be looked at", (int)t->pid, t->name);
    else
        return 0;
    return -EINVAL;
}
