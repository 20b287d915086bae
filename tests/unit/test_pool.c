/* The executor. Run a second time under ThreadSanitizer (test_pool_tsan.c). */
// agent: offload/pool.o offload/inbox.o
#include "unit.h"

#include "../../agent/offload/pool.h"
#include "../../common/arena.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static struct ub_inbox inbox;

static int set_up(void **state)
{
    inbox = (struct ub_inbox){0};
    ub_inbox_open(&inbox);
    return inbox.fd < 0;
}

static int tear_down(void **state)
{
    ub_inbox_close(&inbox);
    return 0;
}

static struct ub_job job(ub_job_function *function, uint64_t a, uint64_t b, enum ub_lane lane)
{
    return (struct ub_job){.inbox = &inbox, .function = function, .word = {a, b, 3, 4, 5, 6, 7, 8}, .lane = lane};
}

/* Waits as a loop would: for the descriptor; then takes all that is done. */
static struct ub_job *wait_for_some(void)
{
    struct pollfd p = {.fd = inbox.fd, .events = POLLIN};

    assert_int_equal(poll(&p, 1, 20000), 1);
    return ub_pool_collect(&inbox);
}

static int64_t sum(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h)
{
    return (int64_t)(a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h);
}

static void one_job(void **state)
{
    struct ub_job j = job(sum, 1, 2, UB_LANE_FILES);

    j.error = E2BIG;
    assert_int_equal(ub_pool_submit(&j), 0);
    assert_ptr_equal(wait_for_some(), &j);
    assert_int_equal(j.result, 1 + 4 + 9 + 16 + 25 + 36 + 49 + 64);
    assert_int_equal(j.error, E2BIG); /* a call that succeeds leaves errno alone */
    assert_true(j.begun_ns >= j.queued_ns && j.ended_ns >= j.begun_ns);
    assert_null(ub_pool_collect(&inbox));
}

static int64_t fails(uint64_t fd, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h)
{
    return write((int)fd, "x", 1);
}

/* errno is the call's; the signal that came with it is not the worker's, nor lost. */
static void error_and_signal(void **state)
{
    struct ub_job j = job(fails, 0, 0, UB_LANE_FILES);
    int p[2];

    assert_int_equal(pipe(p), 0);
    close(p[0]);
    j.word[0] = (uint64_t)p[1];
    ub_pool_submit(&j);
    assert_ptr_equal(wait_for_some(), &j);
    assert_int_equal(j.result, -1);
    assert_int_equal(j.error, EPIPE);
    assert_int_equal(j.signal, SIGPIPE);
    close(p[1]);
    j = job(fails, 1000, 0, UB_LANE_FILES);
    ub_pool_submit(&j);
    wait_for_some();
    assert_int_equal(j.error, EBADF);
    assert_int_equal(j.signal, 0);
}

static int64_t all_blocked(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g,
                           uint64_t h)
{
    sigset_t set;

    pthread_sigmask(SIG_SETMASK, NULL, &set);
    for (int sig = 1; sig < 32; sig++) {
        if (sig != SIGKILL && sig != SIGSTOP && !sigismember(&set, sig))
            return sig;
    }
    return 0;
}

static void workers_take_no_signals(void **state)
{
    struct ub_job j = job(all_blocked, 0, 0, UB_LANE_WAIT);
    sigset_t before, after;

    pthread_sigmask(SIG_SETMASK, NULL, &before);
    ub_pool_submit(&j);
    wait_for_some();
    assert_int_equal(j.result, 0);
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    assert_memory_equal(&before, &after, 8); /* and the loop's own mask is as it was */
}

static int64_t waits(uint64_t sem, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h)
{
    while (sem_wait((sem_t *)sem) < 0)
        ;
    return 0;
}

/* A lane full of waiters does not keep the other from its work. */
static void two_lanes(void **state)
{
    enum { MANY = 300 }; /* more than there will be threads */
    struct ub_job *wait = calloc(MANY, sizeof(*wait)), file = job(sum, 1, 1, UB_LANE_FILES);
    struct ub_pool_totals totals;
    static struct ub_pool_now now; /* stays told to */
    uint32_t done = 0;
    sem_t sem;

    ub_pool_tell(&now);

    sem_init(&sem, 0, 0);
    for (int i = 0; i < MANY; i++) {
        wait[i] = job(waits, (uintptr_t)&sem, 0, UB_LANE_WAIT);
        assert_int_equal(ub_pool_submit(&wait[i]), 0);
    }
    while (ub_load_relaxed(&now.queued) > MANY - 100) /* threads are on their way */
        usleep(1000);
    assert_in_range(ub_load_relaxed(&now.queued), MANY - 256, MANY - 100);
    ub_pool_submit(&file);
    assert_ptr_equal(wait_for_some(), &file);
    for (int i = 0; i < MANY; i++)
        sem_post(&sem);
    while (done < MANY) {
        for (struct ub_job *j = wait_for_some(); j; j = j->next)
            done++;
    }
    ub_pool_totals(UB_LANE_WAIT, &totals);
    assert_in_range(totals.threads, 100, 256);
    assert_in_range(totals.most_queued, MANY - 256, MANY);
    assert_int_equal(ub_load_relaxed(&now.queued), 0);
    ub_pool_totals(UB_LANE_FILES, &totals);
    assert_true(ub_load_relaxed(&now.busy_ns) > 100 * (uint64_t)1000);
    free(wait);
}

/* Full: said at once, nothing is lost of what was taken. */
static void full(void **state)
{
    enum { MORE = 256 + UB_POOL_QUEUE + 50 };
    struct ub_job *wait = calloc(MORE, sizeof(*wait));
    uint32_t taken = 0, refused = 0, done = 0;
    sem_t sem;

    sem_init(&sem, 0, 0);
    for (int i = 0; i < MORE; i++) {
        wait[i] = job(waits, (uintptr_t)&sem, 0, UB_LANE_WAIT);
        if (ub_pool_submit(&wait[i]) == 0)
            taken++;
        else
            refused++;
    }
    assert_true(refused > 0);
    assert_true(taken >= UB_POOL_QUEUE);
    for (uint32_t i = 0; i < taken; i++)
        sem_post(&sem);
    while (done < taken) {
        for (struct ub_job *j = wait_for_some(); j; j = j->next)
            done++;
    }
    free(wait);
}

static int64_t counts(uint64_t to, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h)
{
    return (int64_t)__atomic_add_fetch((uint64_t *)to, 1, __ATOMIC_RELAXED);
}

struct loop {
    pthread_t thread;
    uint64_t counter;
};

/* One loop's thread: ever so many jobs, all of which come back, once. */
static void *stress(void *of)
{
    enum { JOBS = 200, ROUNDS = 20 };
    struct loop *loop = of;
    struct ub_inbox own = {0};
    struct ub_job *jobs = calloc(JOBS, sizeof(*jobs));

    ub_inbox_open(&own);
    for (int round = 0; round < ROUNDS; round++) {
        uint32_t taken = 0, back = 0;

        for (int i = 0; i < JOBS; i++) {
            jobs[i] = job(counts, (uintptr_t)&loop->counter, 0, (enum ub_lane)(i % UB_LANES));
            jobs[i].inbox = &own;
            taken += ub_pool_submit(&jobs[i]) == 0;
        }
        while (back < taken) {
            struct pollfd p = {.fd = own.fd, .events = POLLIN};

            if (poll(&p, 1, 20000) != 1)
                return "a completion was not told";
            for (struct ub_job *j = ub_pool_collect(&own), *next; j; j = next) {
                next = j->next;
                back++;
                j->next = NULL;
            }
        }
        if (taken != JOBS || back != taken || loop->counter != (uint64_t)JOBS * (uint64_t)(round + 1))
            return "lost or doubled";
    }
    ub_inbox_close(&own);
    free(jobs);
    return NULL;
}

static void many_loops(void **state)
{
    struct loop loop[4] = {0};

    for (int i = 0; i < 4; i++)
        pthread_create(&loop[i].thread, NULL, stress, &loop[i]);
    for (int i = 0; i < 4; i++) {
        void *wrong;

        pthread_join(loop[i].thread, &wrong);
        if (wrong)
            fail_msg("%s", (char *)wrong);
    }
}

static int64_t sleeps(uint64_t ms, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h)
{
    usleep((useconds_t)ms * 1000);
    return 0;
}

static void settles(void **state)
{
    struct ub_job a = job(sleeps, 200, 0, UB_LANE_FILES), b = job(sleeps, 100, 0, UB_LANE_WAIT);
    uint32_t done = 0;

    ub_pool_submit(&a);
    ub_pool_submit(&b);
    assert_int_equal(ub_pool_settle(1000000), -ETIMEDOUT);
    assert_int_equal(ub_pool_settle(20000000000u), 0);
    while (done < 2) {
        for (struct ub_job *j = wait_for_some(); j; j = j->next)
            done++;
    }
}

/* It is readable once the time has come, and until another is set; and once for what it was asked to at once. */
static void rings_in_time(void **state)
{
    struct pollfd p = {.fd = inbox.fd, .events = POLLIN};
    struct timespec now;
    uint64_t at;

    clock_gettime(CLOCK_MONOTONIC, &now);
    at = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec + 30000000;
    ub_inbox_arm(&inbox, at);
    assert_int_equal(poll(&p, 1, 0), 0);
    assert_int_equal(poll(&p, 1, 20000), 1);
    ub_inbox_arm(&inbox, at); /* it is over already */
    assert_null(ub_pool_collect(&inbox));
    assert_int_equal(poll(&p, 1, 0), 1);
    ub_inbox_arm(&inbox, 0);
    assert_int_equal(poll(&p, 1, 0), 0);
    ub_inbox_arm(&inbox, 1);
    assert_int_equal(poll(&p, 1, 0), 1);
    assert_null(ub_pool_collect(&inbox));
    assert_int_equal(poll(&p, 1, 0), 0);
}

/* Its descriptors are gone and their numbers are a file's by now: the file stays as it is. */
static void a_closed_descriptor(void **state)
{
    char path[] = "/tmp/unblock-pool-XXXXXX", text[16] = "";
    struct ub_job j = job(sum, 1, 1, UB_LANE_FILES);
    int fd = mkstemp(path);

    assert_int_equal(pwrite(fd, "precious", 8, 0), 8);
    dup2(fd, inbox.fd); /* closes them */
    dup2(fd, inbox.bell);
    dup2(fd, inbox.timer);
    ub_pool_submit(&j);
    assert_int_equal(ub_pool_settle(20000000000u), 0);
    usleep(50000);
    assert_int_equal(lseek(fd, 0, SEEK_END), 8);
    assert_int_equal(pread(fd, text, sizeof(text), 0), 8);
    assert_string_equal(text, "precious");
    while (!ub_pool_has_done(&inbox))
        ;
    assert_ptr_equal(ub_pool_collect(&inbox), &j); /* the job is there all the same */
    unlink(path);
    close(fd);
}

static int64_t writes(uint64_t fd, uint64_t text, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g,
                      uint64_t h)
{
    return pwrite((int)fd, (const char *)text, 3, 0);
}

/* The descriptor that a call is about has become another file's before a thread took it up. */
static void another_file(void **state)
{
    char path[] = "/tmp/unblock-pool-XXXXXX", other[] = "/tmp/unblock-pool-XXXXXX", text[16] = "";
    int fd = mkstemp(path), fd2 = mkstemp(other);
    struct ub_job j = job(writes, (uint64_t)fd, (uint64_t) "new", UB_LANE_FILES);
    struct stat st;

    assert_int_equal(pwrite(fd2, "old", 3, 0), 3);
    assert_int_equal(fstat(fd, &st), 0);
    j.check = true;
    j.device = st.st_dev;
    j.inode = st.st_ino;
    ub_pool_submit(&j);
    assert_ptr_equal(wait_for_some(), &j);
    assert_int_equal(j.result, 3);
    dup2(fd2, fd);
    ub_pool_submit(&j);
    assert_ptr_equal(wait_for_some(), &j);
    assert_int_equal(j.result, -1);
    assert_int_equal(j.error, EBADF);
    assert_int_equal(pread(fd2, text, sizeof(text), 0), 3);
    assert_string_equal(text, "old");
    unlink(path);
    unlink(other);
    close(fd);
    close(fd2);
}

/* ---- calls that wait for a descriptor ---- */

static enum ub_attempt takes_one(struct ub_job *j)
{
    char c;

    struct pollfd p = {.fd = (int)j->word[0], .events = POLLIN};

    j->result = -1;
    if (j->word[1] || poll(&p, 1, 0) == 0) /* or says that it would wait, whatever is there */
        return UB_ATTEMPT_NOT_YET;
    j->result = read((int)j->word[0], &c, 1);
    return UB_ATTEMPT_OVER;
}

static int64_t by_thread(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h)
{
    return -7;
}

static struct ub_job waiting(int fd, uint64_t ms, bool vainly)
{
    struct ub_job j = job(by_thread, (uint64_t)fd, vainly, UB_LANE_WAIT);

    j.attempt = takes_one;
    j.wait_fd = fd;
    j.wait_events = 1; /* EPOLLIN */
    j.limit_ns = ms * 1000000;
    return j;
}

/* As a loop does: until something is over. */
static struct ub_job *turn_until_some(void)
{
    struct ub_job *done = NULL;

    while (!done) {
        ub_inbox_arm(&inbox, 0);
        done = wait_for_some();
    }
    return done;
}

static void waits_for_descriptors(void **state)
{
    struct ub_job a, b, c;
    int p[2], q[2];

    assert_int_equal(pipe(p) | pipe(q), 0);
    a = waiting(p[0], 0, false);
    b = waiting(q[0], 30, false);
    assert_int_equal(ub_pool_start(&a), 0);
    assert_int_equal(ub_pool_start(&b), 0);
    assert_true(a.watched && b.watched);
    assert_null(ub_pool_collect(&inbox));
    assert_ptr_equal(turn_until_some(), &b); /* its time is over */
    assert_int_equal(b.result, -1);
    assert_int_equal(b.error, EAGAIN);
    assert_int_equal(write(p[1], "x", 1), 1);
    assert_ptr_equal(turn_until_some(), &a);
    assert_int_equal(a.result, 1);
    assert_false(a.watched || b.watched);
    c = waiting(p[0], 0, true); /* ready, and never to be had: a thread waits for what it is */
    assert_int_equal(write(p[1], "x", 1), 1);
    assert_int_equal(ub_pool_start(&c), 0);
    assert_ptr_equal(turn_until_some(), &c);
    assert_int_equal(c.result, -7);
    assert_null(inbox.watched);
    for (int i = 0; i < 2; i++)
        close(p[i]), close(q[i]);
}

/* What an epoll does not know, and an inbox that the program has closed: a thread. */
static void waits_by_thread(void **state)
{
    char path[] = "/tmp/unblock-pool-XXXXXX";
    int file = mkstemp(path), p[2];
    struct ub_job a = waiting(file, 0, false), b, *done;

    assert_int_equal(ub_pool_start(&a), 0);
    assert_false(a.watched);
    assert_ptr_equal(turn_until_some(), &a);
    assert_int_equal(a.result, -7);
    assert_int_equal(pipe(p), 0);
    b = waiting(p[0], 0, false);
    assert_int_equal(ub_pool_start(&b), 0);
    dup2(file, inbox.fd);
    ub_inbox_gives_up((unsigned)inbox.fd, (unsigned)inbox.fd);
    do { /* it is seen, and a thread begins */
        done = ub_pool_collect(&inbox);
        assert_false(b.watched);
    } while (!done);
    assert_ptr_equal(done, &b);
    assert_int_equal(b.result, -7);
    unlink(path);
    close(file);
    close(p[0]);
    close(p[1]);
}

#ifndef UNDER_TSAN /* which cannot follow a fork of a process with threads */
static pthread_mutex_t like_libc = PTHREAD_MUTEX_INITIALIZER;
static volatile int locked;

static int64_t locks(uint64_t ms, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h)
{
    pthread_mutex_lock(&like_libc);
    locked = 1;
    usleep((useconds_t)ms * 1000);
    pthread_mutex_unlock(&like_libc);
    return 0;
}

static void on_alarm(int sig)
{
    pid_t pid = fork();

    if (pid == 0)
        _exit(0);
    if (pid > 0)
        waitpid(pid, NULL, 0);
}

static void submit_for(int ms)
{
    struct sigaction act = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    struct itimerval often = {.it_interval = {.tv_usec = 15000}, .it_value = {.tv_usec = 15000}};
    struct timespec begun, now;

    sigaction(SIGALRM, &act, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    clock_gettime(CLOCK_MONOTONIC, &begun);
    do {
        struct ub_job j = job(sum, 1, 2, UB_LANE_FILES);

        if (ub_pool_submit(&j) == 0) {
            while (!ub_pool_collect(&inbox))
                ;
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - begun.tv_sec) * 1000 + (now.tv_nsec - begun.tv_nsec) / 1000000 < ms);
    setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
}

/* A handler that forks may come at any moment, but not while its own thread has our lock. */
static void a_handler_forks(void **state)
{
    pid_t pid = fork();
    int status = -1;

    if (pid == 0) {
        submit_for(500);
        _exit(0);
    }
    for (int i = 0; i < 500 && waitpid(pid, &status, WNOHANG) == 0; i++)
        usleep(10000);
    if (status != 0)
        kill(pid, SIGKILL);
    assert_int_equal(status, 0);
}

/* A fork waits for a job that holds a lock of libc's; the child has a pool of its own. */
static void forks(void **state)
{
    struct ub_job j = job(locks, 300, 0, UB_LANE_FILES), sleeping = job(sleeps, 2000, 0, UB_LANE_WAIT);
    struct ub_inbox *mine = &inbox;
    pid_t pid;
    int status;

    j.libc_lock = true;
    ub_pool_submit(&sleeping); /* holds nothing: is not waited for */
    ub_pool_submit(&j);
    while (!locked)
        usleep(1000);
    pid = fork();
    if (pid == 0) {
        struct ub_job own = job(sum, 1, 1, UB_LANE_WAIT);

        if (pthread_mutex_trylock(&like_libc) != 0)
            _exit(1);
        mine->done = NULL;
        mine->fd = -1;
        if (ub_pool_submit(&own) != 0 || ub_pool_settle(20000000000u) != 0)
            _exit(2);
        while (!ub_pool_has_done(mine))
            usleep(1000);
        _exit(own.result == 1 + 2 + 9 + 16 + 25 + 36 + 49 + 64 ? 0 : 3);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    for (uint32_t done = 0; done < 2;) {
        for (struct ub_job *d = wait_for_some(); d; d = d->next)
            done++;
    }
    assert_true(sleeping.ended_ns > j.ended_ns);
}
#endif

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(one_job),
        T(error_and_signal),
        T(workers_take_no_signals),
        T(two_lanes),
        T(full),
        T(many_loops),
        T(settles),
        T(rings_in_time),
        T(a_closed_descriptor),
        T(another_file),
        T(waits_for_descriptors),
        T(waits_by_thread),
#ifndef UNDER_TSAN
        T(forks),
        T(a_handler_forks),
#endif
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
