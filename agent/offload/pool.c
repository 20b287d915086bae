#include "pool.h"

#include "../../common/arena.h"
#include "../raw.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define FILES_MAX 32u
#define WAIT_MAX  256u

/*
 * One lane. `lock` protects all of it and nests in nothing; no call of the
 * program's is made with it held. These are libc's own locks: the agent's hooks on
 * them are in the modules of the program, never in ours.
 */
static struct lane {
    pthread_mutex_t lock;
    pthread_cond_t more;    /* for the workers */
    pthread_cond_t settled; /* for ub_pool_settle */
    struct ub_job *head, **tail;
    uint32_t queued, idle, threads, most;
    uint32_t holding; /* running jobs that may hold a lock of libc's */
    uint32_t settling;
    uint64_t submitted, finished;
    struct ub_pool_totals totals;
} lanes[UB_LANES] = {
    {.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER, .settled = PTHREAD_COND_INITIALIZER},
    {.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER, .settled = PTHREAD_COND_INITIALIZER},
};

static int32_t some_thread;
static struct ub_pool_now own_now, *told = &own_now;

void ub_pool_tell(struct ub_pool_now *now)
{
    told = now;
}

/* With the lock held. */
static void count_queued(struct lane *lane, int by)
{
    lane->queued += (uint32_t)by;
    __atomic_fetch_add(&told->queued, (uint64_t)by, __ATOMIC_RELAXED);
}

int32_t ub_pool_thread(void)
{
    return ub_load_relaxed(&some_thread);
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* ---- a worker ------------------------------------------------------------------------- */

/*
 * The call has brought its thread a signal that was the loop's: blocked here, it is
 * taken out again, to be raised there.
 */
static int take_signal(int error)
{
    static const struct timespec at_once = {0, 0};
    sigset_t set;
    int sig = error == EPIPE ? SIGPIPE : error == EFBIG ? SIGXFSZ : 0;

    if (!sig)
        return 0;
    sigemptyset(&set);
    sigaddset(&set, sig);
    return ub_raw4(SYS_rt_sigtimedwait, &set, 0, &at_once, 8) == sig ? sig : 0;
}

void ub_pool_call_here(struct ub_job *job)
{
    const uint64_t *w = job->word;

    errno = job->error;
    job->result = job->function(w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]);
    job->error = errno;
}

static bool is_its_file(const struct ub_job *job, int fd)
{
    struct stat st = {0};

    return ub_raw2(SYS_fstat, fd, &st) == 0 && st.st_dev == job->device && st.st_ino == job->inode;
}

/* Another thread of the program may have closed the descriptor since, or have put another one in our duplicate's
 * place. */
bool ub_pool_is_still_there(struct ub_job *job)
{
    if (is_its_file(job, (int)job->word[0]))
        return true;
    if (!is_its_file(job, job->named))
        return false;
    job->word[0] = (uint64_t)job->named;
    return true;
}

static void call(struct ub_job *job)
{
    if (job->check && !ub_pool_is_still_there(job)) {
        job->result = -1;
        job->error = EBADF;
        return;
    }
    ub_pool_call_here(job);
    job->signal = take_signal(job->error);
}

/* With the lock held. */
static struct ub_job *next_job(struct lane *lane)
{
    struct ub_job *job;

    while (!lane->head) {
        lane->idle++;
        pthread_cond_wait(&lane->more, &lane->lock);
        lane->idle--;
    }
    job = lane->head;
    lane->head = job->next;
    if (!lane->head)
        lane->tail = &lane->head;
    count_queued(lane, -1);
    return job;
}

static void account(struct lane *lane, const struct ub_job *job)
{
    uint64_t waited = job->begun_ns - job->queued_ns;

    lane->totals.waited_ns += waited;
    lane->totals.busy_ns += job->ended_ns - job->begun_ns;
    __atomic_fetch_add(&told->busy_ns, job->ended_ns - job->begun_ns, __ATOMIC_RELAXED);
    if (waited > lane->totals.longest_wait_ns)
        lane->totals.longest_wait_ns = waited;
}

static void *work(void *of)
{
    struct lane *lane = of;

    ub_raw2(SYS_prctl, 15 /* PR_SET_NAME */, "unblock-pool");
    ub_store_relaxed(&some_thread, (int32_t)ub_raw0(SYS_gettid));
    pthread_mutex_lock(&lane->lock);
    for (;;) {
        struct ub_job *job = next_job(lane);
        bool holds = job->libc_lock;

        lane->holding += holds;
        pthread_mutex_unlock(&lane->lock);
        job->begun_ns = now_ns();
        call(job);
        job->ended_ns = now_ns();
        pthread_mutex_lock(&lane->lock);
        lane->holding -= holds;
        account(lane, job);
        lane->finished++;
        if (lane->settling)
            pthread_cond_broadcast(&lane->settled);
        pthread_mutex_unlock(&lane->lock);
        ub_pool_deliver(job);
        pthread_mutex_lock(&lane->lock);
    }
    return NULL;
}

/* ---- threads -------------------------------------------------------------------------- */

static bool start_thread(struct lane *lane)
{
    sigset_t all, saved;
    pthread_attr_t attr;
    pthread_t thread;
    int r;

    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &saved);
    r = pthread_create(&thread, &attr, work, lane);
    pthread_sigmask(SIG_SETMASK, &saved, NULL);
    pthread_attr_destroy(&attr);
    return r == 0;
}

/*
 * fork() copies libc's locks as they are just then. A job that may hold one (a name
 * that is looked up) would leave it held in the child for ever, so the fork waits for
 * those; for all others it does not, they hold nothing. Our own locks are taken so that
 * the child finds them free.
 */
static void before_fork(void)
{
    for (uint32_t i = 0; i < UB_LANES; i++) {
        struct lane *lane = &lanes[i];

        pthread_mutex_lock(&lane->lock);
        lane->settling++;
        while (lane->holding)
            pthread_cond_wait(&lane->settled, &lane->lock);
        lane->settling--;
    }
}

static void after_fork(void)
{
    for (uint32_t i = UB_LANES; i > 0; i--)
        pthread_mutex_unlock(&lanes[i - 1].lock);
}

/* The threads are the parent's, and so is what they were doing. */
static void in_child(void)
{
    ub_store_relaxed(&some_thread, 0);
    for (uint32_t i = 0; i < UB_LANES; i++) {
        uint32_t most = lanes[i].most;

        lanes[i] = (struct lane){
            .lock = PTHREAD_MUTEX_INITIALIZER,
            .more = PTHREAD_COND_INITIALIZER,
            .settled = PTHREAD_COND_INITIALIZER,
            .most = most,
        };
    }
}

static uint32_t cpus(void)
{
    uint64_t mask[128] = {0};
    long bytes = ub_raw3(SYS_sched_getaffinity, 0, sizeof(mask), mask);
    uint32_t n = 0;

    for (long i = 0; i < bytes / (long)sizeof(*mask); i++)
        n += (uint32_t)__builtin_popcountll(mask[i]);
    return n ? n : 1;
}

static void prepare(void)
{
    uint32_t files = cpus() + 4;

    if (!lanes[UB_LANE_FILES].most)
        lanes[UB_LANE_FILES].most = files < FILES_MAX ? files : FILES_MAX;
    if (!lanes[UB_LANE_WAIT].most)
        lanes[UB_LANE_WAIT].most = WAIT_MAX;
    pthread_atfork(before_fork, after_fork, in_child);
}

void ub_pool_limit(uint32_t threads)
{
    for (uint32_t i = 0; i < UB_LANES; i++)
        lanes[i].most = threads == UINT32_MAX ? 0 : threads;
}

void ub_pool_limit_to(const char *text)
{
    uint32_t threads = 0;

    while (text && *text >= '0' && *text <= '9' && threads < WAIT_MAX)
        threads = threads * 10 + (uint32_t)(*text++ - '0');
    if (text && !*text && threads)
        ub_pool_limit(threads < WAIT_MAX ? threads : WAIT_MAX);
}

/* ---- the loop's side -------------------------------------------------------------------- */

/* With the lock held, which it lets go of for a moment. False: there is no thread at all, and none can be had. */
static bool make_thread(struct lane *lane)
{
    bool started;

    lane->threads++;
    pthread_mutex_unlock(&lane->lock);
    started = start_thread(lane);
    pthread_mutex_lock(&lane->lock);
    lane->threads -= !started;
    if (lane->threads > lane->totals.threads)
        lane->totals.threads = lane->threads;
    return lane->threads > 0;
}

static int refuse(struct lane *lane)
{
    lane->totals.refused++;
    pthread_mutex_unlock(&lane->lock);
    return -EAGAIN;
}

static int submit(struct ub_job *job)
{
    struct lane *lane = &lanes[job->lane % UB_LANES];

    job->next = NULL;
    job->signal = 0;
    job->queued_ns = now_ns();
    pthread_mutex_lock(&lane->lock);
    if (!lane->tail)
        lane->tail = &lane->head;
    if (lane->queued >= UB_POOL_QUEUE)
        return refuse(lane);
    if (lane->queued + 1 > lane->idle && lane->threads < lane->most && !make_thread(lane))
        return refuse(lane);
    *lane->tail = job;
    lane->tail = &job->next;
    lane->submitted++;
    lane->totals.jobs++;
    count_queued(lane, 1);
    if (lane->queued > lane->totals.most_queued)
        lane->totals.most_queued = lane->queued;
    pthread_mutex_unlock(&lane->lock);
    pthread_cond_signal(&lane->more); /* not before: who wakes would only wait for the lock */
    return 0;
}

/* A handler of the program's that came in between and forked would wait for our lock for ever: none comes. */
int ub_pool_submit(struct ub_job *job)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    const uint64_t all = ~0ull;
    uint64_t saved;
    int r;

    pthread_once(&once, prepare);
    ub_raw4(SYS_rt_sigprocmask, SIG_SETMASK, (long)&all, (long)&saved, sizeof(all));
    r = submit(job);
    ub_raw4(SYS_rt_sigprocmask, SIG_SETMASK, (long)&saved, 0, sizeof(saved));
    return r;
}

int ub_pool_start(struct ub_job *job)
{
    return job->attempt && ub_inbox_watch(job) ? 0 : ub_pool_submit(job);
}

void ub_pool_totals(enum ub_lane lane, struct ub_pool_totals *ret)
{
    const struct ub_pool_totals *t = &lanes[lane].totals;

    /* Not under the lock, which a handler of a signal that forks would wait for. */
    *ret = (struct ub_pool_totals){.threads = ub_load_relaxed(&t->threads),
                                   .most_queued = ub_load_relaxed(&t->most_queued),
                                   .jobs = ub_load_relaxed(&t->jobs),
                                   .refused = ub_load_relaxed(&t->refused),
                                   .waited_ns = ub_load_relaxed(&t->waited_ns),
                                   .longest_wait_ns = ub_load_relaxed(&t->longest_wait_ns),
                                   .busy_ns = ub_load_relaxed(&t->busy_ns)};
}

int ub_pool_settle(uint64_t timeout_ns)
{
    struct timespec until;
    int r = 0;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += (time_t)(timeout_ns / 1000000000u);
    until.tv_nsec += (long)(timeout_ns % 1000000000u);
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    for (uint32_t i = 0; i < UB_LANES && r == 0; i++) {
        struct lane *lane = &lanes[i];
        uint64_t target;

        pthread_mutex_lock(&lane->lock);
        target = lane->submitted;
        lane->settling++;
        while (lane->finished < target && r == 0)
            r = pthread_cond_timedwait(&lane->settled, &lane->lock, &until);
        lane->settling--;
        pthread_mutex_unlock(&lane->lock);
    }
    return -r;
}
