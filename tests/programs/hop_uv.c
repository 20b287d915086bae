/*
 * What it costs to have a call made elsewhere, on libuv: hop_uv WHAT COUNT
 *
 *   call    fsync, of a file that has nothing to write, called in a callback: as it is, or moved
 *   work    the same by uv_queue_work
 *   hand    the same by a thread of the program's own, a queue, an eventfd and uv_poll
 *   read, recv, flock, sem, sleep  a call that does not block, in a callback, COUNT times
 *   sleepers  COUNT callbacks that sleep for two seconds, all at once: as they are, or moved
 *   threads   the same by uv_queue_work (UV_THREADPOOL_SIZE)
 *   timers    the same by a timer each
 *
 * Prints {"count", "p50_ns", "p99_ns"} of one call, from where it is wanted to where its result is; or {"count", "ns"}
 * of one call; or {"count", "resident_kb", "mapped_kb", "maps"}: what the process has more, while all of them sleep,
 * than before.
 */
// libs: -luv
#include "measure.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <uv.h>

#define WARM  30 /* turns until the loop is known to be one */
#define MOST  100000
#define SLEEP 2000 /* ms */

static uv_loop_t *loop;
static uv_timer_t driver;
static const char *what;
static int count, done, turns, file;
static uint64_t took[MOST], begun;

static bool is(const char *name)
{
    return !strcmp(what, name);
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* ---- one call after the other, each from a callback ------------------------------------------------------ */

static void next(void);

static void finish(void)
{
    took[done++] = now_ns() - begun;
    next();
}

static void on_call(uv_timer_t *t)
{
    begun = now_ns();
    if (fsync(file))
        die("fsync");
    finish();
}

static void work(uv_work_t *w)
{
    if (fsync(file))
        die("fsync");
}

static void after_work(uv_work_t *w, int status)
{
    finish();
}

static void on_queue(uv_timer_t *t)
{
    static uv_work_t w;

    begun = now_ns();
    uv_queue_work(loop, &w, work, after_work);
}

/* By hand. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t some = PTHREAD_COND_INITIALIZER;
static int wanted, told;
static uv_poll_t poller;

static void *own_thread(void *arg)
{
    uint64_t one = 1;

    for (;;) {
        pthread_mutex_lock(&lock);
        while (!wanted)
            pthread_cond_wait(&some, &lock);
        wanted--;
        pthread_mutex_unlock(&lock);
        work(NULL);
        if (write(told, &one, sizeof(one)) != sizeof(one))
            die("eventfd");
    }
    return NULL;
}

static void on_told(uv_poll_t *p, int status, int events)
{
    uint64_t n;

    if (read(told, &n, sizeof(n)) == sizeof(n))
        finish();
}

static void on_hand(uv_timer_t *t)
{
    begun = now_ns();
    pthread_mutex_lock(&lock);
    wanted++;
    pthread_cond_signal(&some);
    pthread_mutex_unlock(&lock);
}

static void prepare_hand(void)
{
    pthread_t thread;

    told = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    uv_poll_init(loop, &poller, told);
    uv_poll_start(&poller, UV_READABLE, on_told);
    pthread_create(&thread, NULL, own_thread, NULL);
}

static void next(void)
{
    uv_timer_cb how = is("call") ? on_call : is("work") ? on_queue : on_hand;

    if (done < count)
        uv_timer_start(&driver, how, 0, 0);
    else
        uv_stop(loop);
}

static void say_hops(void)
{
    qsort(took, (size_t)count, sizeof(*took), compare);
    printf("{\"count\": %d, \"p50_ns\": %llu, \"p99_ns\": %llu}\n", done, (unsigned long long)took[count / 2],
           (unsigned long long)took[count - 1 - count / 100]);
}

/* ---- calls that do not block ------------------------------------------------------------------------------- */

static int pair[2];
static sem_t sem;

static void refill(int to)
{
    static char much[4096];

    if (write(to, much, sizeof(much)) != sizeof(much))
        die("write");
}

static void one_call(void)
{
    struct timespec none = {0, 0};
    char c;
    long r = is("read")    ? read(pair[0], &c, 1) - 1
             : is("recv")  ? recv(pair[0], &c, 1, 0) - 1
             : is("flock") ? flock(file, LOCK_EX)
             : is("sem")   ? sem_wait(&sem)
                           : nanosleep(&none, NULL);

    if (r)
        die(what);
}

static void on_inline(uv_timer_t *t)
{
    if (is("read")   ? pipe(pair)
        : is("recv") ? socketpair(AF_UNIX, SOCK_STREAM, 0, pair)
                     : sem_init(&sem, 0, (unsigned)count))
        die("pair");
    for (; done < count; done++) {
        if (done % 4096 == 0 && (is("read") || is("recv")))
            refill(pair[1]);
        begun = now_ns();
        one_call();
        took[done] = now_ns() - begun;
    }
    qsort(took, (size_t)count, sizeof(*took), compare);
    printf("{\"count\": %d, \"ns\": %llu}\n", done, (unsigned long long)took[count / 2]);
    uv_stop(loop);
}

/* ---- many at once -------------------------------------------------------------------------------------------- */

struct usage {
    long resident_kb, mapped_kb, maps;
};

static struct usage before;
static uv_timer_t *sleeper;

static struct usage used(void)
{
    struct usage u = {0, 0, 0};
    char line[512];
    FILE *f = fopen("/proc/self/status", "re");

    while (fgets(line, sizeof(line), f)) {
        sscanf(line, "VmRSS: %ld", &u.resident_kb);
        sscanf(line, "VmSize: %ld", &u.mapped_kb);
    }
    fclose(f);
    f = fopen("/proc/self/maps", "re");
    while (fgets(line, sizeof(line), f))
        u.maps++;
    fclose(f);
    return u;
}

static void on_measure(uv_timer_t *t)
{
    struct usage now = used();

    printf("{\"count\": %d, \"at_once\": %d, \"resident_kb\": %ld, \"mapped_kb\": %ld, \"maps\": %ld", count,
           __atomic_load_n(&turns, __ATOMIC_RELAXED), now.resident_kb - before.resident_kb,
           now.mapped_kb - before.mapped_kb, now.maps - before.maps);
}

static void over(void)
{
    if (++done == count) {
        printf(", \"check\": %d}\n", done);
        uv_stop(loop);
    }
}

static void sleep_here(void)
{
    __atomic_add_fetch(&turns, 1, __ATOMIC_RELAXED);
    sleep_ns(SLEEP * 1000000ull);
    __atomic_sub_fetch(&turns, 1, __ATOMIC_RELAXED);
}

static void on_sleeper(uv_timer_t *t)
{
    sleep_here();
    over();
}

static void sleep_there(uv_work_t *w)
{
    sleep_here();
}

static void after_sleep(uv_work_t *w, int status)
{
    over();
}

static void on_end(uv_timer_t *t)
{
    turns--;
    over();
}

static void on_timed(uv_timer_t *t)
{
    turns++;
    uv_timer_start(t, on_end, SLEEP, 0);
}

static void start_sleepers(void)
{
    uv_work_t *w = is("threads") ? calloc((size_t)count, sizeof(*w)) : NULL;

    turns = 0;
    before = used();
    sleeper = calloc((size_t)count, sizeof(*sleeper));
    for (int i = 0; i < count; i++) {
        if (w) {
            uv_queue_work(loop, &w[i], sleep_there, after_sleep);
            continue;
        }
        uv_timer_init(loop, &sleeper[i]);
        uv_timer_start(&sleeper[i], is("timers") ? on_timed : on_sleeper, 1, 0);
    }
    uv_timer_start(&driver, on_measure, SLEEP / 2, 0);
}

static void on_warm(uv_timer_t *t)
{
    if (++turns < WARM)
        return;
    uv_timer_stop(t);
    if (is("hand"))
        prepare_hand();
    if (is("call") || is("work") || is("hand"))
        next();
    else if (is("sleepers") || is("threads") || is("timers"))
        start_sleepers();
    else
        uv_timer_start(&driver, on_inline, 0, 0);
}

int main(int argc, char **argv)
{
    char path[] = "/dev/shm/unblock-hop-XXXXXX";

    what = argc > 1 ? argv[1] : "call";
    count = argc > 2 ? atoi(argv[2]) : 1000;
    if (count > MOST)
        return 2;
    file = mkstemp(path);
    unlink(path);
    loop = uv_default_loop();
    uv_timer_init(loop, &driver);
    uv_timer_start(&driver, on_warm, 1, 1);
    uv_run(loop, UV_RUN_DEFAULT);
    if (is("call") || is("work") || is("hand"))
        say_hops();
    return 0;
}
