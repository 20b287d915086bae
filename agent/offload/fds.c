#include "fds.h"

#include "../raw.h"
#include "block.h"
#include "fdkind.h"
#include "pysteps.h"
#include "signals.h"
#include "suspend.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>

#define NUMBERS 4096u /* none of ours is higher */
#define HIGH    900
#define LOW     64 /* where a limit leaves nothing else */

static uint64_t own[NUMBERS / 64];

/*
 * The kernel makes the table of descriptors larger when a number is beyond it, and waits for every CPU where
 * other threads use it, too: 100 ms were seen, of the loop's. Here there are none yet.
 */
void ub_fds_start(void)
{
    long fd = ub_raw2(SYS_timerfd_create, CLOCK_MONOTONIC, TFD_CLOEXEC), high;

    if (fd < 0)
        return;
    high = ub_raw3(SYS_fcntl, fd, F_DUPFD_CLOEXEC, HIGH);
    if (high >= 0)
        ub_raw1(SYS_close, high);
    ub_raw1(SYS_close, fd);
}

bool ub_fds_is_own(int fd)
{
    return (uint32_t)fd < NUMBERS && ub_load_relaxed(&own[(uint32_t)fd / 64]) & 1ull << (uint32_t)fd % 64;
}

static void give_up(int fd)
{
    if ((uint32_t)fd < NUMBERS)
        __atomic_fetch_and(&own[(uint32_t)fd / 64], ~(1ull << (uint32_t)fd % 64), __ATOMIC_RELAXED);
}

void ub_fds_close(int fd)
{
    if (!ub_fds_is_own(fd))
        return;
    give_up(fd);
    ub_raw1(SYS_close, fd);
}

void ub_fds_close_all(void)
{
    for (uint32_t i = 0; i < UB_ARRAY_LEN(own); i++) {
        for (uint64_t left = ub_load_relaxed(&own[i]); left; left &= left - 1)
            ub_fds_close((int)(i * 64 + (uint32_t)__builtin_ctzll(left)));
    }
}

static void close_in_children(void)
{
    pthread_atfork(NULL, NULL, ub_fds_close_all);
}

int ub_fds_duplicate(int fd)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    long high = ub_raw3(SYS_fcntl, fd, F_DUPFD_CLOEXEC, HIGH);

    pthread_once(&once, close_in_children);
    if (high < 0)
        high = ub_raw3(SYS_fcntl, fd, F_DUPFD_CLOEXEC, LOW);
    if (high >= (long)NUMBERS) {
        ub_raw1(SYS_close, high);
        return -1;
    }
    if (high < 0)
        return -1;
    __atomic_fetch_or(&own[high / 64], 1ull << high % 64, __ATOMIC_RELAXED);
    return (int)high;
}

int ub_fds_adopt(int fd)
{
    int high = fd < 0 ? -1 : ub_fds_duplicate(fd);

    if (fd >= 0)
        ub_raw1(SYS_close, fd);
    return high;
}

int ub_fds_keep(struct ub_job *job, int fd)
{
    struct stat st = {0};
    int kept = -1;

    if (fd < 0 || ub_raw2(SYS_fstat, fd, &st) < 0)
        return -1;
    job->check = true;
    job->named = fd;
    job->device = st.st_dev;
    job->inode = st.st_ino;
    if (S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode))
        kept = ub_fds_duplicate(fd);
    if (kept >= 0)
        job->word[0] = (uint64_t)kept;
    return kept;
}

enum {
    ID_dup2,
    ID_dup3,
    ID_close_range,
    ID_closefrom,
    ID___res_state,
    ID___res_init,
    ID_res_init,
    ID_siginterrupt,
    ID_alarm,
    ID_ualarm,
    ID_setitimer,
    ID_setsockopt,
    ID_freopen,
    ID_freopen64,
    IDS,
};
static void *original[IDS][UB_LOOP_COPIES];

/* Calls that use them come first. */
static void settle(unsigned first, unsigned last)
{
    ub_fdkind_forget_range(first, last);
    ub_suspend_settle_numbers(first, last);
    ub_pysteps_settle_numbers(first, last);
}

static bool is_ours(unsigned fd)
{
    return ub_fds_is_own((int)fd) || ub_inbox_owns((int)fd);
}

/* What is ours of them is the program's from now on. True: there was some, and `taken` is to be said afterwards. */
static bool give_way(unsigned first, unsigned last)
{
    bool some = false;

    settle(first, last);
    if (ub_raw0(SYS_getpid) != ub_process->pid) /* a child of vfork's, whose table is its own */
        return false;
    for (unsigned fd = first; fd <= last && fd < NUMBERS; fd++) {
        some |= is_ours(fd);
        give_up((int)fd);
    }
    ub_inbox_gives_up(first, last);
    return some;
}

static int hook_dup2(int from, int to)
{
    bool some = from != to && give_way((unsigned)to, (unsigned)to);
    int r = ((int (*)(int, int))original[ID_dup2][0])(from, to);

    if (some)
        ub_inbox_taken();
    return r;
}

static int hook_dup3(int from, int to, int flags)
{
    bool some = from != to && give_way((unsigned)to, (unsigned)to);
    int r = ((int (*)(int, int, int))original[ID_dup3][0])(from, to, flags);

    if (some)
        ub_inbox_taken();
    return r;
}

/*
 * What is suspended still needs ours: the range is closed in pieces, between them. False: there is none in it, or the
 * kernel (before 5.9) closes no ranges.
 */
static bool close_between(unsigned first, unsigned last)
{
    bool some = false;

    for (unsigned fd = first; fd <= last && fd < NUMBERS; fd++)
        some |= is_ours(fd);
    if (!some || ub_raw0(SYS_getpid) != ub_process->pid || ub_raw3(SYS_close_range, UINT32_MAX, UINT32_MAX, 0) < 0)
        return false;
    for (unsigned fd = first; fd <= last && fd < NUMBERS; fd++) {
        if (!is_ours(fd))
            ub_raw3(SYS_close_range, fd, fd, 0);
    }
    if (last >= NUMBERS)
        ub_raw3(SYS_close_range, first < NUMBERS ? NUMBERS : first, last, 0);
    return true;
}

/* With flags it closes nothing, or in a table of the thread's own. */
static int hook_close_range(unsigned first, unsigned last, int flags)
{
    if (!flags) {
        settle(first, last);
        if (close_between(first, last))
            return 0;
        give_way(first, last);
    }
    return ((int (*)(unsigned, unsigned, int))original[ID_close_range][0])(first, last, flags);
}

static void hook_closefrom(int low)
{
    unsigned first = low < 0 ? 0 : (unsigned)low;

    settle(first, UINT32_MAX);
    if (close_between(first, UINT32_MAX))
        return;
    give_way(first, UINT32_MAX);
    ((void (*)(int))original[ID_closefrom][0])(low);
}

/* The program sets up its own thread's resolver. */
static void *hook_res_state(void)
{
    ub_store_relaxed(&ub_block_resolver_touched, true);
    return ((void *(*)(void))original[ID___res_state][0])();
}

static int hook___res_init(void)
{
    ub_store_relaxed(&ub_block_resolver_touched, true);
    return ((int (*)(void))original[ID___res_init][0])();
}

static int hook_res_init(void)
{
    ub_store_relaxed(&ub_block_resolver_touched, true);
    return ((int (*)(void))original[ID_res_init][0])();
}

static int hook_siginterrupt(int sig, int flag)
{
    int ret = ((int (*)(int, int))original[ID_siginterrupt][0])(sig, flag);

    ub_signals_changed();
    return ret;
}

static unsigned hook_alarm(unsigned seconds)
{
    unsigned ret = ((unsigned (*)(unsigned))original[ID_alarm][0])(seconds);

    ub_signals_changed();
    return ret;
}

static useconds_t hook_ualarm(useconds_t us, useconds_t again)
{
    useconds_t ret = ((useconds_t(*)(useconds_t, useconds_t))original[ID_ualarm][0])(us, again);

    ub_signals_changed();
    return ret;
}

static int hook_setitimer(int which, const struct itimerval *time, struct itimerval *old)
{
    int ret = ((int (*)(int, const struct itimerval *, struct itimerval *))original[ID_setitimer][0])(which, time, old);

    ub_signals_changed();
    return ret;
}

/* Whatever other numbers the socket has. */
static int hook_setsockopt(int fd, int level, int option, const void *value, socklen_t len)
{
    int r =
        ((int (*)(int, int, int, const void *, socklen_t))original[ID_setsockopt][0])(fd, level, option, value, len);

    if (level == SOL_SOCKET && option == SO_RCVLOWAT)
        ub_fdkind_forget_range(0, UINT32_MAX);
    return r;
}

/* The stream's number is another file's then. */
static FILE *reopen(uint32_t id, const char *path, const char *how, FILE *stream)
{
    if (stream)
        ub_fdkind_forget(fileno_unlocked(stream));
    return ((FILE * (*)(const char *, const char *, FILE *)) original[id][0])(path, how, stream);
}

static FILE *hook_freopen(const char *path, const char *how, FILE *stream)
{
    return reopen(ID_freopen, path, how, stream);
}

static FILE *hook_freopen64(const char *path, const char *how, FILE *stream)
{
    return reopen(ID_freopen64, path, how, stream);
}

static const struct ub_loop_hook hooks[] = {
    {"dup2", {(void *)hook_dup2, NULL}, UB_HOOK_OTHERS},
    {"dup3", {(void *)hook_dup3, NULL}, UB_HOOK_OTHERS},
    {"close_range", {(void *)hook_close_range, NULL}, UB_HOOK_OTHERS},
    {"closefrom", {(void *)hook_closefrom, NULL}, UB_HOOK_OTHERS},
    {"__res_state", {(void *)hook_res_state, NULL}, UB_HOOK_OTHERS},
    {"__res_init", {(void *)hook___res_init, NULL}, UB_HOOK_OTHERS},
    {"res_init", {(void *)hook_res_init, NULL}, UB_HOOK_OTHERS},
    {"siginterrupt", {(void *)hook_siginterrupt, NULL}, UB_HOOK_OTHERS},
    {"alarm", {(void *)hook_alarm, NULL}, UB_HOOK_OTHERS},
    {"ualarm", {(void *)hook_ualarm, NULL}, UB_HOOK_OTHERS},
    {"setitimer", {(void *)hook_setitimer, NULL}, UB_HOOK_OTHERS},
    {"setsockopt", {(void *)hook_setsockopt, NULL}, UB_HOOK_OTHERS},
    {"freopen", {(void *)hook_freopen, NULL}, UB_HOOK_OTHERS},
    {"freopen64", {(void *)hook_freopen64, NULL}, UB_HOOK_OTHERS},
};
_Static_assert(UB_ARRAY_LEN(hooks) == IDS, "one original a hook");

static const char *const files[] = {"libc.so.", NULL};

const struct ub_loop_ops ub_offload_libc = {
    .files = files, .prefix = "", .hooks = hooks, .count = IDS, .originals = original};
