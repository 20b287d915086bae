/*
 * What this machine takes for the mechanisms that the watcher is made of, with
 * nothing of unblock in it:
 *
 *   bare wake US COUNT    a sleep of US microseconds on a futex, COUNT times: how late it ends, what it costs
 *   bare signal COUNT     a signal to a computing process on another CPU: until its empty handler runs, and how
 *                         long that process stood still
 *
 * One JSON object: {"late_ns": [...], "cpu_ns": of one wake} or {"arrived_ns": [...], "pause_ns": [...]}.
 */
#include "measure.h"

#include <linux/futex.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define COUNT_MAX 10000

static struct shared {
    volatile uint64_t sent, arrived, pause;
    volatile uint32_t ready;
} * shared;

static uint64_t result[2][COUNT_MAX];

static void print_list(const char *name, const uint64_t *list, int count)
{
    printf("\"%s\": [", name);
    for (int i = 0; i < count; i++)
        printf("%s%llu", i ? ", " : "", (unsigned long long)list[i]);
    printf("]");
}

static uint64_t cpu_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int wake(uint64_t us, int count)
{
    uint32_t word = 0;
    uint64_t cpu;

    prctl(PR_SET_TIMERSLACK, 1UL);
    cpu = cpu_ns();
    for (int i = 0; i < count; i++) {
        uint64_t until = now_ns() + us * 1000, now;
        struct timespec ts = {(time_t)(until / 1000000000u), (long)(until % 1000000000u)};

        syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, 0, &ts, NULL, FUTEX_BITSET_MATCH_ANY);
        now = now_ns();
        result[0][i] = now > until ? now - until : 0;
    }
    cpu = cpu_ns() - cpu;
    printf("{");
    print_list("late_ns", result[0], count);
    printf(", \"cpu_ns\": %llu}\n", (unsigned long long)(cpu / (uint64_t)count));
    return 0;
}

static void on_signal(int sig)
{
    shared->arrived = now_ns();
}

/* The longest of the three readings around the signal: it may come before, in or after the one that noticed it. */
static void compute(void)
{
    uint64_t seen = 0, last = now_ns(), gap[2] = {0, 0};

    for (;;) {
        uint64_t now = now_ns(), g = now - last, arrived = shared->arrived;

        last = now;
        if (arrived != seen && now > arrived + 1000) {
            uint64_t longest = g > gap[0] ? g : gap[0];

            shared->pause = longest > gap[1] ? longest : gap[1];
            shared->ready++;
            seen = arrived;
        }
        gap[1] = gap[0];
        gap[0] = g;
    }
}

static int send_signals(int count)
{
    struct sigaction act = {.sa_handler = on_signal, .sa_flags = SA_RESTART | SA_ONSTACK};
    pid_t child;

    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    sigfillset(&act.sa_mask);
    sigaction(SIGURG, &act, NULL);
    child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        compute();
    }
    for (int i = 0; i < count; i++) {
        uint32_t ready = shared->ready;
        uint64_t sent;

        sleep_ns(5000000);
        sent = now_ns() + 100000; /* the watcher, too, is awake before it sends */
        while (now_ns() < sent)
            ;
        syscall(SYS_tgkill, child, child, SIGURG);
        while (shared->ready == ready)
            ;
        result[0][i] = shared->arrived - sent;
        result[1][i] = shared->pause;
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    printf("{");
    print_list("arrived_ns", result[0], count);
    printf(", ");
    print_list("pause_ns", result[1], count);
    printf("}\n");
    return 0;
}

int main(int argc, char **argv)
{
    int count = argc > 2 ? atoi(argv[argc - 1]) : 0;

    if (count < 1 || count > COUNT_MAX)
        return 99;
    return strcmp(argv[1], "wake") == 0 && argc > 3 ? wake(strtoull(argv[2], NULL, 10), count) : send_signals(count);
}
