/*
 * offload_uv.c on sd-event: the same cases, "io", "defer" and "signal": other kinds of sources; "child", "post" and
 * "edge", which must stay.
 */
// libs: -lsystemd
#define OTHER_LOOP 1
#include "offload_uv.c"

#include <systemd/sd-event.h>

static sd_event *loop;
static int ready[2];

static int on_inner(sd_event_source *s, uint64_t at, void *own)
{
    sleep_ms();
    return sd_event_exit(own, 0);
}

static void nested(void)
{
    sd_event *own;

    sd_event_new(&own);
    sd_event_add_time_relative(own, NULL, CLOCK_MONOTONIC, 1000, 1, on_inner, own);
    sd_event_loop(own);
    sd_event_unref(own);
}

/* It would come again and again, were it not off while it is suspended. */
static void once(sd_event_source *s)
{
    if (entered++)
        note("AGAIN ");
    on_block();
    sd_event_source_set_enabled(s, SD_EVENT_OFF);
}

static int on_time(sd_event_source *s, uint64_t at, void *arg)
{
    once(s);
    return 0;
}

static int on_defer(sd_event_source *s, void *arg)
{
    once(s);
    return 0;
}

static int on_ready(sd_event_source *s, int fd, uint32_t what, void *arg)
{
    char c;

    once(s);
    if (read(fd, &c, 1) != 1)
        abort();
    if ((what & ~EPOLLET) != EPOLLIN)
        note(" WRONG");
    return 0;
}

static int on_signal(sd_event_source *s, const struct signalfd_siginfo *si, void *arg)
{
    once(s);
    if (si->ssi_signo != SIGUSR2 || si->ssi_pid != (uint32_t)getpid())
        note(" WRONG");
    return 0;
}

static int on_child(sd_event_source *s, const siginfo_t *si, void *arg)
{
    once(s);
    return 0;
}

static void start(void)
{
    sd_event_source *s;
    pid_t pid;

    if (is("io") || is("edge")) {
        if (pipe(ready) || write(ready[1], "x", 1) != 1)
            abort();
        sd_event_add_io(loop, &s, ready[0], EPOLLIN | (name[0] == 'e' ? EPOLLET : 0), on_ready, NULL);
    } else if (is("defer")) {
        sd_event_add_defer(loop, &s, on_defer, NULL);
        sd_event_source_set_enabled(s, SD_EVENT_ON);
    } else if (is("post")) {
        sd_event_add_post(loop, &s, on_defer, NULL);
    } else if (is("signal")) {
        sd_event_add_signal(loop, &s, SIGUSR2, on_signal, NULL);
        kill(getpid(), SIGUSR2);
    } else if (is("child")) {
        pid = fork();
        if (pid == 0)
            _exit(0);
        sd_event_add_child(loop, &s, pid, WEXITED, on_child, NULL);
    } else {
        sd_event_add_time_relative(loop, &s, CLOCK_MONOTONIC, 1000, 1, on_time, NULL);
        sd_event_source_set_enabled(s, SD_EVENT_ON);
    }
}

static void stop(void)
{
    sd_event_exit(loop, 0);
}

static int on_tick(sd_event_source *s, uint64_t at, void *arg)
{
    tick();
    sd_event_source_set_time(s, at + TICK_MS * 1000);
    return sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
}

static void run(void)
{
    sigset_t blocked;

    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR2);
    sigaddset(&blocked, SIGCHLD);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    sd_event_new(&loop);
    sd_event_add_time_relative(loop, NULL, CLOCK_MONOTONIC, TICK_MS * 1000, 1, on_tick, NULL);
    sd_event_loop(loop);
    sd_event_unref(loop);
}
