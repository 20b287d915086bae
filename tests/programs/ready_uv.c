/*
 * Callbacks of a libuv loop that wait for descriptors: ready_uv CASE. What each call said, in the order of the
 * callbacks, on stdout, the same with calls moved and without; on stderr how many threads there were at the most, and
 * the CPU time in ms.
 */
// libs: -luv
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/net_tstamp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stdbool.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <uv.h>

#define MANY 200
#define BIG  (4 << 20)

/* One callback's call. */
struct one {
    uv_timer_t timer;
    long (*call)(struct one *o);
    int fd, other;
    pid_t child;
    long result;
    int error;
    char text[16];
};

static struct one one[MANY];
static int count, warm, most_threads, signals;
static int begun; /* calls */
static bool is_over[1000];
static uv_timer_t warmer;
static char *big;
static struct sockaddr_in listener;

static int threads(void)
{
    DIR *d = opendir("/proc/self/task");
    int n = -2;

    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static void rest(int ms)
{
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000L};

    while (syscall(230 /* clock_nanosleep: not for the agent */, CLOCK_MONOTONIC, 0, &ts, &ts) < 0)
        ;
}

/* ---- calls ---- */

static long recvs(struct one *o)
{
    return recv(o->fd, o->text, 4, 0);
}

static long reads(struct one *o)
{
    return read(o->fd, o->text, 4);
}

static long readvs(struct one *o)
{
    struct iovec v[2] = {{o->text, 2}, {o->text + 2, 2}};

    return readv(o->fd, v, 2);
}

static long recvmsgs(struct one *o)
{
    struct iovec v = {o->text, 4};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
    long r = recvmsg(o->fd, &m, 0);

    return r < 0 ? r : r + m.msg_flags * 1000;
}

static long recvfroms(struct one *o)
{
    struct sockaddr_in from = {0};
    socklen_t len = sizeof(from);
    long r = recvfrom(o->fd, o->text, 4, 0, (struct sockaddr *)&from, &len);

    return r < 0 ? r : r + (from.sin_family == AF_INET) * 1000;
}

static long accepts(struct one *o)
{
    int fd = accept(o->fd, NULL, NULL);

    return fd < 0 ? -1 : recv(fd, o->text, 4, 0);
}

static long waits(struct one *o)
{
    int status = 0;
    pid_t pid = waitpid(o->child, &status, 0);

    return pid < 0 ? -1 : (pid == o->child) * 1000 + WEXITSTATUS(status);
}

/* Without flags it tells its tracer of its stops, too. */
static long waits_for_traced(struct one *o)
{
    int status = 0;
    long stopped = waitpid(o->child, &status, 0) == o->child && WIFSTOPPED(status);

    ptrace(PTRACE_CONT, o->child, 0, 0);
    return stopped * 10000 + waits(o);
}

/* By a thread. */
static long recvs_all(struct one *o)
{
    return recv(o->fd, o->text, 4, MSG_WAITALL);
}

/* All of it, though the other side takes it slowly. */
static long sends(struct one *o)
{
    return send(o->fd, big, BIG, 0);
}

static long writes(struct one *o)
{
    return write(o->fd, big, BIG);
}

/* A part, if nobody takes any. */
static long sends_some(struct one *o)
{
    long r = send(o->fd, big, BIG, 0);

    return r > 0 && r < BIG ? 1 : r;
}

/* Whatever duplicates of the others' descriptors there are. */
static long dups_over(struct one *o)
{
    int null = open("/dev/null", O_RDWR);
    char path[32];

    rest(50);
    for (int i = 600; i < 1000; i++) {
        char to[32] = "";

        snprintf(path, sizeof(path), "/proc/self/fd/%d", i);
        if (readlink(path, to, sizeof(to)) > 6 &&
            (memcmp(to, "socket", 6) == 0 || memcmp(to, "pipe", 4) == 0 || memcmp(to, "anon_inode:[pidfd", 17) == 0))
            is_over[dup2(null, i)] = true;
    }
    return 0;
}

/* Of the numbers that the program has put something over. */
static int lost(void)
{
    int n = 0;

    for (int i = 0; i < 1000; i++)
        n += is_over[i] && fcntl(i, F_GETFD) < 0;
    return n;
}

static long closes_high(struct one *o)
{
    rest(50);
    close_range(600, 100000, 0);
    return 0;
}

static uv_timer_t ticker;
static uv_check_t checker;
static int ticks, turns;

static void on_turn(uv_check_t *c)
{
    turns++;
}

static void on_tick(uv_timer_t *t)
{
    if (++ticks < 5)
        return;
    printf("%s turns\n", turns < 200 ? "few" : "many"); /* the timer's, and those of a heartbeat */
    fflush(stdout);
    _exit(0);
}

/* A daemon: the child goes on in the loop, and what the other callback waits for is over once the parent is gone. */
static long becomes_daemon(struct one *o)
{
    struct timespec ts = {.tv_nsec = 50000000};

    nanosleep(&ts, NULL); /* the other one is waiting by then */
    if (fork() > 0)
        _exit(0);
    uv_loop_fork(uv_default_loop());
    close(one[0].other);
    rest(200);
    uv_check_init(uv_default_loop(), &checker);
    uv_check_start(&checker, on_turn);
    uv_timer_init(uv_default_loop(), &ticker);
    uv_timer_start(&ticker, on_tick, 100, 100);
    return 0;
}

/* An error is told of the socket from now on, which is none of recv's. */
static long brings_error(struct one *o)
{
    int flags = SOF_TIMESTAMPING_TX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE;
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

    rest(50);
    setsockopt(o->fd, SOL_SOCKET, SO_TIMESTAMPING, &flags, sizeof(flags));
    return sendto(o->fd, "x", 1, 0, (struct sockaddr *)&there, sizeof(there));
}

/* ---- the loop ---- */

static void on_one(uv_timer_t *t)
{
    struct one *o = (struct one *)t;
    int n;

    errno = 77;
    __atomic_fetch_add(&begun, 1, __ATOMIC_RELAXED);
    o->result = o->call(o);
    o->error = errno;
    n = threads();
    if (n > most_threads)
        most_threads = n;
}

static struct one *add(long (*call)(struct one *), int fd, int other)
{
    struct one *o = &one[count++];

    o->call = call;
    o->fd = fd;
    o->other = other;
    return o;
}

static void on_warm(uv_timer_t *t)
{
    if (++warm < 15)
        return;
    uv_timer_stop(t);
    for (int i = 0; i < count; i++) {
        uv_timer_init(t->loop, &one[i].timer);
        uv_timer_start(&one[i].timer, on_one, (uint64_t)(1 + i / 50), 0);
    }
}

/* ---- cases ---- */

static struct one *pair(long (*call)(struct one *), int type)
{
    int p[2] = {-1, -1};

    if (type < 0 ? pipe(p) : socketpair(AF_UNIX, type, 0, p))
        abort();
    return add(call, p[0], p[1]);
}

static int inet(int type, struct sockaddr_in *ret)
{
    socklen_t len = sizeof(*ret);
    int fd = socket(AF_INET, type, 0);

    *ret = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(fd, (struct sockaddr *)ret, len) || getsockname(fd, (struct sockaddr *)ret, &len))
        abort();
    if (type == SOCK_STREAM)
        listen(fd, 5);
    return fd;
}

static void connected(long (*call)(struct one *), int type)
{
    struct sockaddr_in there;
    int fd = inet(type, &there), other = socket(AF_INET, type, 0);

    if (connect(other, (struct sockaddr *)&there, sizeof(there)))
        abort();
    add(call, fd, other);
}

static void child_of(int status)
{
    struct one *o = add(waits, -1, -1);

    o->child = fork();
    if (o->child == 0) {
        rest(300);
        _exit(status);
    }
}

static void traced(void)
{
    struct one *o = add(waits_for_traced, -1, -1);

    o->child = fork();
    if (o->child == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        rest(300);
        raise(SIGSTOP);
        rest(100);
        _exit(3);
    }
}

static void limited(struct one *o, int option, int ms)
{
    struct timeval limit = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};

    setsockopt(o->fd, SOL_SOCKET, option, &limit, sizeof(limit));
}

static void on_pipe(int sig)
{
    signals++;
}

static void prepare(const char *name)
{
    if (strcmp(name, "many") == 0) {
        for (int i = 0; i < MANY; i++)
            pair(i % 3 == 1 ? recvs : reads, i % 3 ? SOCK_STREAM : -1);
    } else if (strcmp(name, "kinds") == 0) {
        pair(reads, -1);
        pair(readvs, SOCK_STREAM);
        pair(readvs, -1);
        pair(recvmsgs, SOCK_SEQPACKET);
        pair(reads, SOCK_DGRAM);
        connected(recvfroms, SOCK_DGRAM);
        add(accepts, inet(SOCK_STREAM, &listener), socket(AF_INET, SOCK_STREAM, 0));
    } else if (strcmp(name, "children") == 0) {
        for (int i = 0; i < 50; i++)
            child_of(i);
    } else if (strcmp(name, "reaped") == 0) {
        signal(SIGCHLD, SIG_IGN);
        child_of(3);
    } else if (strcmp(name, "limits") == 0) {
        limited(pair(recvs, SOCK_STREAM), SO_RCVTIMEO, 150);
        limited(pair(sends_some, SOCK_STREAM), SO_SNDTIMEO, 150);
        limited(add(accepts, inet(SOCK_STREAM, &(struct sockaddr_in){0}), -1), SO_RCVTIMEO, 150);
        for (int i = 0; i < count; i++)
            one[i].other = -1;
    } else if (strcmp(name, "long") == 0) {
        limited(pair(recvs, SOCK_STREAM), SO_RCVTIMEO, 12000);
        one[0].other = -1;
    } else if (strcmp(name, "sends") == 0) {
        pair(sends, SOCK_STREAM);
        pair(writes, SOCK_STREAM);
    } else if (strcmp(name, "broken") == 0) {
        struct sigaction act = {.sa_handler = on_pipe, .sa_flags = SA_RESTART};

        sigaction(SIGPIPE, &act, NULL);
        pair(sends_some, SOCK_STREAM);
        pair(sends, SOCK_STREAM);
        setsockopt(one[1].fd, SOL_SOCKET, SO_SNDBUF, &(int){4096}, sizeof(int));
        while (send(one[1].fd, big, 4096, MSG_DONTWAIT) > 0)
            ; /* not a byte of its own will go */
    } else if (strcmp(name, "shut") == 0) {
        struct sigaction act = {.sa_handler = on_pipe, .sa_flags = SA_RESTART};

        sigaction(SIGPIPE, &act, NULL);
        pair(sends, SOCK_STREAM);
        pair(sends_some, SOCK_STREAM);
        while (send(one[0].fd, big, 4096, MSG_DONTWAIT) > 0)
            ; /* not a byte of its own will go */
    } else if (strcmp(name, "traced") == 0) {
        traced();
    } else if (strcmp(name, "taken") == 0) {
        pair(recvs, SOCK_STREAM);
        pair(reads, -1);
        child_of(3);
    } else if (strcmp(name, "kept") == 0) {
        pair(recvs_all, SOCK_STREAM);
        add(dups_over, -1, -1);
    } else if (strcmp(name, "same") == 0) {
        struct one *o = pair(recvs, SOCK_STREAM);

        add(recvs, dup(o->fd), -1);
        add(recvs, o->fd, -1);
    } else if (strcmp(name, "over") == 0 || strcmp(name, "closes") == 0) {
        pair(recvs, SOCK_STREAM);
        pair(reads, -1);
        add(strcmp(name, "over") == 0 ? dups_over : closes_high, -1, -1);
    } else if (strcmp(name, "daemon") == 0) {
        add(becomes_daemon, -1, -1);
        pair(reads, -1);
        one[0].other = one[1].other;
    } else if (strcmp(name, "error") == 0) {
        struct sockaddr_in there;
        int fd = inet(SOCK_DGRAM, &there), other = socket(AF_INET, SOCK_DGRAM, 0);

        if (connect(other, (struct sockaddr *)&there, sizeof(there)))
            abort();
        add(recvs, fd, other);
        add(brings_error, fd, -1);
    }
}

/* The other side, some time after all calls were begun (or, alone, while the first one blocks). */
static void *feed(void *name)
{
    int before;

    rest(300);
    if (strcmp(name, "many") == 0) { /* where others have the CPUs that takes a while */
        do {
            before = __atomic_load_n(&begun, __ATOMIC_RELAXED);
            rest(300);
        } while (before < __atomic_load_n(&begun, __ATOMIC_RELAXED));
    }
    if (strcmp(name, "daemon") == 0)
        return NULL;
    if (strcmp(name, "same") == 0) {
        for (const char *s = "aaaabbbbcccc"; *s; s += 4) {
            if (write(one[0].other, s, 4) != 4)
                abort();
            rest(30);
        }
        return NULL;
    }
    if (strcmp(name, "shut") == 0) {
        shutdown(one[0].other, SHUT_RD);
        rest(50);
        shutdown(one[1].other, SHUT_RD);
        return NULL;
    }
    if (strcmp(name, "taken") == 0) {
        dups_over(NULL);
        write(one[0].other, "0000", 4); /* told at once; the other one's loss is seen */
        rest(500);
    }
    if (strcmp(name, "broken") == 0) {
        close(one[0].other);
        rest(50);
        close(one[1].other);
        return NULL;
    }
    if (strcmp(name, "kinds") == 0 && connect(one[count - 1].other, (struct sockaddr *)&listener, sizeof(listener)))
        abort();
    for (int k = 0; k < count; k++) {
        int i = strcmp(name, "many") == 0 ? (k * 7 + 3) % count : k; /* in another order */
        char text[16];

        snprintf(text, sizeof(text), "%04d", i);
        if (strcmp(name, "sends") == 0) {
            static char got[65536];
            long n = 0, r;

            while (n < BIG && (r = read(one[i].other, got, sizeof(got))) > 0)
                n += r;
        } else if (one[i].other >= 0 && (i || strcmp(name, "taken")) && write(one[i].other, text, 4) != 4) {
            abort();
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    struct rusage usage;
    pthread_t feeder;

    big = calloc(1, BIG);
    prepare(argv[1]);
    uv_timer_init(uv_default_loop(), &warmer);
    uv_timer_start(&warmer, on_warm, 1, 1);
    pthread_create(&feeder, NULL, feed, argv[1]);
    uv_run(uv_default_loop(), UV_RUN_DEFAULT);
    pthread_join(feeder, NULL);
    for (int i = 0; i < count; i++)
        printf("%ld %d %.4s\n", one[i].result, one[i].error, one[i].text);
    printf("signals %d, lost %d\n", signals, lost());
    getrusage(RUSAGE_SELF, &usage);
    fprintf(stderr, "{\"threads\": %d, \"cpu_ms\": %ld}\n", most_threads,
            (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000 +
                (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1000);
    return 0;
}
