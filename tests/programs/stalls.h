/*
 * Stalls of every cause at known moments, and the truth about them: the oracle
 * of tests/e2e. Each loop_*.c is one kind of event loop whose callback on_tick()
 * calls stalls_tick(); this file decides when to stall and how.
 *
 * stalls_do.h holds the stalls and their table, stalls_helper.h the helper process.
 *
 * Independent of the agent: the program itself measures each stall and writes
 * one JSON line for it:
 *
 *   {"stall": "flock", "cause": "call", "call": "flock", "function": "stall_flock", "callback": "on_tick",
 *    "pid": 1, "tid": 1, "start_ns": 1, "duration_ns": 1, "delay_ns": 1, "noise_ns": 1, "retry": false}
 *
 * `function` is the innermost function of the program itself that is on the
 * stack (inlined ones do not count). `call` lists every acceptable name (libc's
 * or the kernel's) between bars. delay_ns is how long the thread waited for a
 * CPU during the stall, by its own schedstat; noise_ns what its callback took
 * around the stall, or the same by schedstat: the turn may rightly be that much
 * longer. `retry`: shorter than wanted (a disk faster than expected); it comes
 * again.
 * A last line {"summary": ...} holds counts of calls that were interrupted or
 * came back short: 0 unless somebody disturbs the program.
 *
 * Whatever must happen elsewhere (somebody else holds the lock, the peer keeps
 * silent) happens in a helper process, so that the loop stays single-threaded.
 * A stall is prepared in earlier turns, and only carried out in its own.
 */
#ifndef STALLS_H
#define STALLS_H

#include "measure.h"

#include <linux/userfaultfd.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <resolv.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#define STALLS_WARM_UP 40 /* quiet turns before the first stall: the loop must have qualified as one */
#define STALLS_GAP     4  /* quiet turns between two stalls */
#define STALLS_TICK_NS 2000000

/* Shared with the helper process. */
struct stalls_shared {
    pthread_mutex_t mutex;
    pthread_mutex_t cond_mutex;
    pthread_cond_t cond;
    pthread_rwlock_t rwlock;
    sem_t sem;
    volatile int cond_flag;
    volatile int ready; /* the helper has prepared what was asked */
    volatile int done;  /* "stopped": the helper has continued us */
};

struct stalls_command {
    int what; /* index into stalls_table, -1: end */
    uint64_t ns;
    uint64_t bytes;
};

struct stalls;

/* A kind of callback, and how to make the loop run the one that there is of it, once. NULL: the ticker itself. */
struct stalls_kind {
    const char *name, *callback;
    void (*kick)(struct stalls *s);
};

struct stalls {
    FILE *truth;
    char dir[480];
    struct stalls_shared *shared;
    pid_t helper;
    int command[2];  /* commands to the helper */
    int go[2];       /* one byte: the stall begins now */
    int data_in[2];  /* pipe_read */
    int data_out[2]; /* pipe_write */
    int tcp[2];
    int listener;
    int unix_listener;
    struct sockaddr_in listener_address, dns_address;
    struct sockaddr_un unix_address;
    int dns;
    int uffd;
    char *fault_area;
    int fault_page;
    int wait_pipe[2];
    pid_t wait_pid;
    int schedstat;

    int queue[1024]; /* what to inject, in order */
    uint64_t queue_ns[1024];
    int queue_len, queue_at;
    enum { STALLS_QUIET, STALLS_PREPARING } state;
    int countdown;
    uint64_t ticks;
    uint64_t dirty_bytes;
    int fsync_tries;
    uint64_t interrupted, short_counts;
    unsigned seed;
    uint64_t base_ns;  /* shortest stall */
    const char *after; /* the file that is waited for; NULL: none */

    /* Programs with callbacks of many kinds: see stalls_kinds(). */
    const struct stalls_kind *kinds;
    int kind_count, kind;        /* the one in which the next stall is to happen */
    bool kicked;                 /* it was made to run, and has not yet */
    const char *callback, *runs; /* where the last stall was: function and kind */

    /* the stall whose line is still to be written */
    bool pending;
    bool retry; /* shorter than wanted, will be repeated; true all the same */
    int what;
    uint64_t ns; /* how long it is meant to be */
    uint64_t start_ns, end_ns, delay_before, delay_start, delay_end;
    uint64_t entered_ns, left_ns; /* its callback */
};

#include "stalls_do.h"

static bool stalls_is(int what, const char *name)
{
    return !strcmp(stalls_table[what].name, name);
}

static void helper_main(struct stalls *s)
{
    struct stalls_command command;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (read(s->command[0], &command, sizeof(command)) == sizeof(command) && command.what >= 0)
        stalls_table[command.what].help(s, &command);
    _exit(0);
}

static void stalls_truth(struct stalls *s)
{
    const struct stalls_row *row = &stalls_table[s->what];
    uint64_t all = runqueue_ns(&s->schedstat) - s->delay_before;
    uint64_t inside = s->delay_end - s->delay_start;
    uint64_t around = (s->left_ns - s->entered_ns) - (s->end_ns - s->start_ns);
    uint64_t waited = all > inside ? all - inside : 0, noise = waited > around ? waited : around;

    fprintf(
        s->truth,
        "{\"stall\": \"%s\", \"cause\": \"%s\", \"call\": \"%s\", \"function\": \"stall_%s\", \"callback\": "
        "\"%s\", \"kind\": \"%s\", "
        "\"pid\": %d, \"tid\": %d, \"start_ns\": %llu, \"duration_ns\": %llu, \"delay_ns\": %llu, \"noise_ns\": %llu, "
        "\"retry\": %s}\n",
        row->name, row->cause, row->call, row->name, s->callback, s->runs, (int)getpid(), (int)gettid(),
        (unsigned long long)s->start_ns, (unsigned long long)(s->end_ns - s->start_ns), (unsigned long long)inside,
        (unsigned long long)noise, s->retry ? "true" : "false");
    fflush(s->truth);
    s->pending = false;
}

static void stalls_skip(struct stalls *s, int what, const char *reason)
{
    fprintf(s->truth, "{\"skipped\": \"%s\", \"reason\": \"%s\"}\n", stalls_table[what].name, reason);
    fflush(s->truth);
}

/* Sends the command for queue[queue_at]; what needs no helper is ready at once. */
static void stalls_prepare(struct stalls *s)
{
    int what = s->queue[s->queue_at];
    struct stalls_command command = {.what = what, .ns = s->queue_ns[s->queue_at], .bytes = s->dirty_bytes};

    s->shared->ready = 0;
    if (stalls_is(what, "waitpid")) {
        if (pipe2(s->wait_pipe, O_CLOEXEC))
            die("pipe2");
        s->wait_pid = fork();
        if (s->wait_pid == 0) {
            char c;

            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (read(s->wait_pipe[0], &c, 1) == 1)
                sleep_ns(command.ns);
            _exit(0);
        }
    }
    if (!stalls_table[what].help)
        s->shared->ready = 1;
    else if (write(s->command[1], &command, sizeof(command)) != sizeof(command))
        die("helper");
    s->state = STALLS_PREPARING;
}

static void stalls_summary(struct stalls *s)
{
    struct stalls_command end = {.what = -1};

    fprintf(s->truth, "{\"summary\": \"%d stalls\", \"ticks\": %llu, \"interrupted\": %llu, \"short_counts\": %llu}\n",
            s->queue_len, (unsigned long long)s->ticks, (unsigned long long)s->interrupted,
            (unsigned long long)s->short_counts);
    fflush(s->truth);
    /* Not waited for: that would be one more stall. */
    if (write(s->command[1], &end, sizeof(end)) != sizeof(end))
        kill(s->helper, SIGKILL);
}

static void stalls_queue(struct stalls *s, int what, uint64_t ns);

/* The stall that is due happens here and now. */
static NOINLINE void stalls_run(struct stalls *s)
{
    int what;

    what = s->queue[s->queue_at];
    s->state = STALLS_QUIET;
    s->countdown = STALLS_GAP;
    s->what = what;
    s->ns = s->queue_ns[s->queue_at];
    if (s->uffd < 0 && stalls_is(what, "pagefault")) {
        stalls_skip(s, what, "userfaultfd is not permitted here");
        s->queue_at++;
        return;
    }
    s->entered_ns = now_ns();
    stalls_table[what].run(s);
    s->left_ns = now_ns();
    s->pending = true;
    s->queue_at++;
    s->retry = (stalls_is(what, "fsync") || stalls_is(what, "fdatasync")) && s->end_ns - s->start_ns < s->base_ns;
    if (s->retry) {
        /* This disk is faster than the data was large: more data, once more. */
        if (s->fsync_tries++ < 6) {
            s->dirty_bytes += s->dirty_bytes / 2;
            s->queue_at--;
        } else {
            stalls_skip(s, what, "the disk took everything at once");
        }
    }
}

/* In a callback of the kind, or of the function, `name`: if it is this one's turn, the stall happens. */
static inline void stalls_here(struct stalls *s, const char *name)
{
    const struct stalls_kind *kind = &s->kinds[s->kind];

    if (!s->kicked || (strcmp(kind->name, name) != 0 && strcmp(kind->callback, name) != 0))
        return;
    s->kicked = false;
    s->callback = kind->callback;
    s->runs = kind->name;
    s->delay_before = runqueue_ns(&s->schedstat);
    stalls_run(s);
    __asm__ volatile(""); /* no tail call: the callback stays on the stack */
}

/* One turn of the loop. True: everything has been injected, end the loop. */
static NOINLINE bool stalls_tick(struct stalls *s)
{
    s->ticks++;
    if (s->after && access(s->after, F_OK) != 0)
        return false;
    s->after = NULL;
    if (s->pending)
        stalls_truth(s);
    s->delay_before = runqueue_ns(&s->schedstat);
    if (s->countdown > 0) {
        s->countdown--;
        return false;
    }
    if (s->queue_at == s->queue_len) {
        stalls_summary(s);
        return true;
    }
    if (s->state == STALLS_QUIET) {
        stalls_prepare(s);
        return false;
    }
    if (!s->shared->ready)
        return false;

    if (s->kinds) {
        s->kind = s->queue_at / (s->queue_len / s->kind_count);
        if (!s->kicked) {
            s->kicked = true;
            if (s->kinds[s->kind].kick)
                s->kinds[s->kind].kick(s);
        }
        if (s->kinds[s->kind].kick)
            return false;
        stalls_here(s, s->kinds[s->kind].callback);
        return false;
    }
    stalls_run(s);
    return false;
}

/* A program with callbacks of many kinds: each stall of the list happens once in each of them. */
static inline void stalls_kinds(struct stalls *s, const struct stalls_kind *kinds, int count)
{
    int len = s->queue_len;

    s->kinds = kinds;
    s->kind_count = count;
    for (int k = 1; k < count; k++) {
        for (int i = 0; i < len; i++)
            stalls_queue(s, s->queue[i], 0);
    }
}

static uint64_t stalls_random_ns(struct stalls *s)
{
    return s->base_ns + (uint64_t)(rand_r(&s->seed) % 1000) * s->base_ns / 1000;
}

static void stalls_queue(struct stalls *s, int what, uint64_t ns)
{
    if (s->queue_len < (int)(sizeof(s->queue) / sizeof(s->queue[0]))) {
        s->queue[s->queue_len] = what;
        s->queue_ns[s->queue_len++] = ns ? ns : stalls_random_ns(s);
    }
}

/* "all", or names with an optional duration: "cpu,nanosleep@2000,flock". */
static void stalls_parse(struct stalls *s, const char *list)
{
    char copy[4096], *save = NULL;

    snprintf(copy, sizeof(copy), "%s", list);
    for (char *name = strtok_r(copy, ",", &save); name; name = strtok_r(NULL, ",", &save)) {
        char *at = strchr(name, '@');
        uint64_t ns = at ? strtoull(at + 1, NULL, 10) * 1000000u : 0;
        bool known = false;

        if (at)
            *at = 0;
        for (size_t i = 0; i < STALLS_ROWS; i++) {
            if (strcmp(name, "all") && strcmp(name, stalls_table[i].name))
                continue;
            stalls_queue(s, (int)i, ns);
            known = true;
        }
        if (!known) {
            fprintf(stderr, "no such stall: %s\n", name);
            exit(99);
        }
    }
}

static void stalls_shared_init(struct stalls_shared *shared)
{
    pthread_mutexattr_t mutex;
    pthread_condattr_t cond;
    pthread_rwlockattr_t rwlock;

    pthread_mutexattr_init(&mutex);
    pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&shared->mutex, &mutex);
    pthread_mutex_init(&shared->cond_mutex, &mutex);
    pthread_condattr_init(&cond);
    pthread_condattr_setpshared(&cond, PTHREAD_PROCESS_SHARED);
    pthread_cond_init(&shared->cond, &cond);
    pthread_rwlockattr_init(&rwlock);
    pthread_rwlockattr_setpshared(&rwlock, PTHREAD_PROCESS_SHARED);
    pthread_rwlock_init(&shared->rwlock, &rwlock);
    sem_init(&shared->sem, 1, 0);
}

static void stalls_userfault(struct stalls *s)
{
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register area = {.mode = UFFDIO_REGISTER_MODE_MISSING};
    size_t len = 4096 * 1024;

    s->fault_area = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    s->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    area.range.start = (uintptr_t)s->fault_area;
    area.range.len = len;
    if (s->uffd >= 0 && (ioctl(s->uffd, UFFDIO_API, &api) || ioctl(s->uffd, UFFDIO_REGISTER, &area))) {
        close(s->uffd);
        s->uffd = -1;
    }
}

/*
 * argv: TRUTH [STALLS [ROUNDS [SEED]]]; files go beside TRUTH. To be called
 * before the loop and any thread exists. Environment: STALLS_MS, the shortest
 * stall (25); stalls last between that and twice that. STALLS_AFTER, a file: until
 * it is there the loop turns without a stall.
 */
static struct stalls *stalls_new(int argc, char **argv)
{
    struct stalls *s = calloc(1, sizeof(*s));
    const char *ms = getenv("STALLS_MS");
    char path[520], *slash;
    sigset_t set;
    int rounds = argc > 3 ? atoi(argv[3]) : 1;

    if (argc < 2) {
        fprintf(stderr, "usage: %s TRUTH [STALL,STALL@MS...|all [ROUNDS [SEED]]]\n", argv[0]);
        exit(99);
    }
    s->truth = fopen(argv[1], "ae");
    if (!s->truth)
        die(argv[1]);
    snprintf(s->dir, sizeof(s->dir), "%s", argv[1]);
    slash = strrchr(s->dir, '/');
    snprintf(slash ? slash : s->dir, 2, slash ? "" : ".");
    s->seed = argc > 4 ? (unsigned)atoi(argv[4]) : 1;
    s->base_ns = (ms ? strtoull(ms, NULL, 10) : 25) * 1000000u;
    s->dirty_bytes = 96u << 20;
    s->after = getenv("STALLS_AFTER");
    s->schedstat = -1;
    s->countdown = STALLS_WARM_UP;
    s->callback = "on_tick";
    s->runs = "";
    for (int i = 0; i < rounds; i++)
        stalls_parse(s, argc > 2 ? argv[2] : "all");

    s->shared = mmap(NULL, sizeof(*s->shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    stalls_shared_init(s->shared);
    if (pipe2(s->command, O_CLOEXEC) || pipe2(s->go, O_CLOEXEC) || pipe2(s->data_in, O_CLOEXEC) ||
        pipe2(s->data_out, O_CLOEXEC))
        die("pipe2");
    s->listener = loopback_socket(SOCK_STREAM, &s->listener_address);
    s->dns = loopback_socket(SOCK_DGRAM, &s->dns_address);
    s->tcp[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(s->tcp[0], (struct sockaddr *)&s->listener_address, sizeof(s->listener_address)))
        die("connect");
    s->tcp[1] = accept(s->listener, NULL, NULL);

    s->unix_listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    s->unix_address.sun_family = AF_UNIX; /* an abstract name of our own */
    snprintf(s->unix_address.sun_path + 1, sizeof(s->unix_address.sun_path) - 1, "stalls-%d-%d", (int)getpid(), s->dns);
    if (bind(s->unix_listener, (struct sockaddr *)&s->unix_address, sizeof(s->unix_address)) ||
        listen(s->unix_listener, 0))
        die("unix listener");

    snprintf(path, sizeof(path), "%s/fifo", s->dir);
    if (mkfifo(path, 0600) && errno != EEXIST)
        die(path);
    snprintf(path, sizeof(path), "%s/lock", s->dir);
    close(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));

    sigemptyset(&set);
    sigaddset(&set, SIGUSR2); /* sigtimedwait waits for it, it never comes */
    sigprocmask(SIG_BLOCK, &set, NULL);
    stalls_userfault(s);

    s->helper = fork();
    if (s->helper == 0)
        helper_main(s);
    return s;
}

#endif
