/*
 * A child that a moved call waits for is that call's, whoever else asks for any child meanwhile (libev's handler of
 * SIGCHLD, the program's own): without us the callback was inside the call when the child ended, and had it.
 */
#include "children.h"

#include "../raw.h"
#include "drive.h"
#include "suspend_impl.h"

#include <poll.h>
#include <sys/wait.h>

#define BEAT_NS 1000000
#define LIVING  (WSTOPPED | WCONTINUED)
#define WHICH   (__WALL | __WCLONE | __WNOTHREAD)

/* One of those that are asked for which has ended (or is LIVING, as `flags` say), and stays as it is; 0: none has;
 * negative: the call will say why. */
static pid_t peek(pid_t asked, int flags)
{
    siginfo_t info = {0};
    long r = ub_raw6(SYS_waitid, asked == -1 ? P_ALL : P_PGID, asked < -1 ? -asked : 0, (long)&info,
                     WEXITED | WNOHANG | WNOWAIT | (flags & (LIVING | WHICH)), 0, 0);

    return r < 0 ? (pid_t)r : info.si_pid;
}

/* `wanted` as waitpid's first argument. */
static bool is_meant(pid_t wanted, pid_t pid)
{
    if (wanted > 0 || wanted == -1)
        return wanted == pid || wanted == -1;
    return ub_raw1(SYS_getpgid, pid) == (wanted ? -wanted : ub_raw1(SYS_getpgid, 0));
}

/* Whose call waits for the child; 0: for any at all. NULL: nobody's. */
static struct ub_host *awaiting(const struct mine *m, pid_t pid)
{
    for (uint32_t i = 0; i < UB_HOSTS_MAX; i++) {
        struct ub_host *h = m->host[i];

        for (const struct ub_task *task = h && h->loop ? h->suspended : NULL; task; task = task->next) {
            if (task->for_child && !task->done && (!pid || is_meant((pid_t)task->job.word[0], pid)))
                return h;
        }
    }
    return NULL;
}

static void wait_a_little(struct ub_host *h, struct ub_drive *d)
{
    struct pollfd p = {.fd = h->inbox.fd, .events = POLLIN};
    struct timespec beat = {.tv_nsec = BEAT_NS};

    ub_suspend_arm(h);
    if (ub_drive(d, h->inbox.fd, POLLIN, BEAT_NS) == UB_DROVE_NOTHING)
        ub_raw6(SYS_ppoll, (long)&p, 1, (long)&beat, 0, 0, 0);
    ub_suspend_collect(h);
    ub_suspend_arm(h);
}

bool ub_children_none(pid_t *asked, int flags)
{
    const struct mine *m = ub_suspend_mine(false);
    struct ub_drive d = {0};
    struct ub_host *h;
    pid_t pid;

    if (!m || !m->suspended || *asked > 0 || !(flags & WNOHANG) || !awaiting(m, 0))
        return false;
    while ((pid = peek(*asked, flags & ~LIVING)) > 0 && (h = awaiting(m, pid)))
        wait_a_little(h, &d);
    if (pid == 0 && flags & LIVING && (pid = peek(*asked, flags)) > 0 && awaiting(m, pid))
        pid = 0; /* its call waits for the end, or is told of the stop itself */
    if (pid > 0)
        *asked = pid;
    return pid == 0;
}
