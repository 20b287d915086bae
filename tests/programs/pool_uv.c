// libs: -luv
/*
 * Work for libuv's pool of threads that has to wait for one: pool_uv MODE PIECES
 *
 *   work    uv_queue_work: the first ones hold all threads until the rest is handed in and the loop was blocked 60 ms
 *   fs      the same with files: reads of an empty pipe hold the threads, the rest are uv_fs_fstat
 *   cancel  as work, but every second one of the rest is taken back before a thread can have it
 *   names   uv_getaddrinfo only
 *   fork    as work, in a forked child; the parent had used its pool before
 *   few     PIECES pieces, one after the other: nothing waits
 *
 * Prints {"threads": , "pieces": , "waited": , and what the waits were together: "least_ns": , "most_ns": ,
 * "longest_least_ns": , "longest_most_ns": }; how long each waited lies between what was read before and after. A first
 * piece, for warming up, is among them.
 */
#include "measure.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <sys/wait.h>
#include <unistd.h>
#include <uv.h>

#define PIECES_MAX 1024

struct piece {
    uv_work_t work;
    uv_fs_t fs;
    uv_getaddrinfo_t name;
    uint64_t handed_first, handed_last, begun, ended;
    bool holds, cancelled;
};

static struct piece piece[PIECES_MAX];
static int pieces, threads, done, gate[2];
static uint64_t ends[PIECES_MAX];
static atomic_int ended;
static uv_loop_t *loop;

static void on_work(uv_work_t *w)
{
    struct piece *p = w->data;
    char c;

    p->begun = now_ns();
    if (p->holds && read(gate[0], &c, 1) != 1)
        exit(1);
    usleep(2000);
    p->ended = now_ns();
    ends[atomic_fetch_add(&ended, 1)] = p->ended;
}

static void after_work(uv_work_t *w, int status)
{
    struct piece *p = w->data;

    done++;
    if (p->cancelled != (status == UV_ECANCELED))
        exit(1);
}

static void after_fs(uv_fs_t *fs)
{
    struct piece *p = fs->data;

    done++;
    p->begun = now_ns(); /* later than it was */
    if (fs->result < 0)
        exit(1);
    uv_fs_req_cleanup(fs);
}

static void after_name(uv_getaddrinfo_t *name, int status, struct addrinfo *result)
{
    (void)name;
    (void)status;
    uv_freeaddrinfo(result);
    done++;
}

static void hand_in(struct piece *p, const char *mode)
{
    static char c[PIECES_MAX];
    static const struct addrinfo hints = {.ai_flags = AI_NUMERICHOST};
    uv_buf_t buf = uv_buf_init(&c[p - piece], 1);
    int r;

    p->work.data = p->fs.data = p;
    p->handed_first = now_ns();
    if (!strcmp(mode, "names"))
        r = uv_getaddrinfo(loop, &p->name, after_name, "127.0.0.1", NULL, &hints);
    else if (strcmp(mode, "fs") != 0)
        r = uv_queue_work(loop, &p->work, on_work, after_work);
    else if (p->holds)
        r = uv_fs_read(loop, &p->fs, gate[0], &buf, 1, -1, after_fs);
    else
        r = uv_fs_fstat(loop, &p->fs, gate[0], after_fs);
    p->handed_last = now_ns();
    if (r < 0)
        exit(1);
}

static void block_then_open(uv_timer_t *timer)
{
    static char bytes[PIECES_MAX];

    usleep(60000);
    if (write(gate[1], bytes, (size_t)threads) != threads)
        exit(1);
    uv_close((uv_handle_t *)timer, NULL);
}

static void nothing(uv_timer_t *timer)
{
    static int turns;

    if (++turns % 20 == 0)
        uv_close((uv_handle_t *)timer, NULL);
}

/* Some turns, since only a loop is watched; and a first piece, since a pool is believed in when it has ended one. */
static void warm_up(void)
{
    static uv_timer_t timer;
    static struct piece first;

    uv_timer_init(loop, &timer);
    uv_timer_start(&timer, nothing, 1, 1);
    uv_run(loop, UV_RUN_DEFAULT);
    first = (struct piece){.work.data = &first};
    uv_queue_work(loop, &first.work, on_work, after_work);
    uv_run(loop, UV_RUN_DEFAULT);
    atomic_store(&ended, 0);
    done = 0;
}

static void run_all(const char *mode)
{
    static uv_timer_t timer;
    bool holds = strcmp(mode, "names") && strcmp(mode, "few");

    for (int i = 0; i < pieces; i++) {
        piece[i].holds = holds && i < threads;
        hand_in(&piece[i], mode);
        if (!strcmp(mode, "few"))
            uv_run(loop, UV_RUN_DEFAULT);
    }
    for (int i = threads; !strcmp(mode, "cancel") && i < pieces; i += 2)
        piece[i].cancelled = uv_cancel((uv_req_t *)&piece[i].work) == 0;
    if (holds) {
        uv_timer_init(loop, &timer);
        uv_timer_start(&timer, block_then_open, 1, 0);
    }
    uv_run(loop, UV_RUN_DEFAULT);
}

static uint64_t most(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* With a thread for each of the first ones, piece k begins when k - threads + 1 have ended. */
static void tell(const char *mode)
{
    uint64_t least = 0, all = 0, longest_least = 0, longest_most = 0;
    int waited = 0;

    for (int i = threads; i < pieces && strcmp(mode, "few") != 0 && strcmp(mode, "names") != 0; i++) {
        uint64_t shortest = strcmp(mode, "fs") ? ends[i - threads] - piece[i].handed_last : 0;
        uint64_t longest = piece[i].begun - piece[i].handed_first;

        waited++;
        least += shortest;
        all += longest;
        longest_least = most(longest_least, shortest);
        longest_most = most(longest_most, longest);
    }
    printf("{\"threads\": %d, \"pieces\": %d, \"waited\": %d, \"least_ns\": %lu, \"most_ns\": %lu, "
           "\"longest_least_ns\": %lu, \"longest_most_ns\": %lu}\n",
           threads, pieces + 1, waited, least, all, longest_least, longest_most);
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "", *size = getenv("UV_THREADPOOL_SIZE");
    bool in_child = !strcmp(mode, "fork");
    int status = 0;

    pieces = argc > 2 ? atoi(argv[2]) : 0;
    threads = size ? atoi(size) : 4;
    if (pieces <= threads || pieces > PIECES_MAX || pipe(gate))
        return 2;
    loop = uv_default_loop();
    warm_up();
    if (in_child) {
        run_all("few");
        memset(piece, 0, sizeof(piece));
        if (fork() > 0)
            return wait(&status) < 0 || status != 0;
        uv_loop_fork(loop);
        warm_up();
        mode = "work";
    }
    run_all(mode);
    if (done != pieces)
        return 1;
    if (strcmp(mode, "cancel"))
        tell(mode);
    else
        puts("{}");
    return 0;
}
