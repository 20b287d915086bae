/* Each stall of the list in an sd-event source of each kind. callbacks_sd TRUTH [STALLS [ROUNDS [SEED]]] */
// libs: -lsystemd
#include "stalls.h"

#include <sys/inotify.h>
#include <systemd/sd-event.h>

static sd_event *event;
static struct stalls *s;
static sd_event_source *timer, *post, *defer, *io;
static int io_pipe[2];
static char watched[512];

static NOINLINE int on_io(sd_event_source *source, int fd, uint32_t events, void *data)
{
    char c;

    if (read(fd, &c, 1) != 1)
        die("io pipe");
    stalls_here(s, "io");
    return 0;
}

static NOINLINE int on_signal(sd_event_source *source, const struct signalfd_siginfo *si, void *data)
{
    stalls_here(s, "signal");
    return 0;
}

static NOINLINE int on_child(sd_event_source *source, const siginfo_t *si, void *data)
{
    stalls_here(s, "child");
    return 0;
}

static NOINLINE int on_inotify(sd_event_source *source, const struct inotify_event *e, void *data)
{
    stalls_here(s, "inotify");
    return 0;
}

static NOINLINE int on_defer(sd_event_source *source, void *data)
{
    stalls_here(s, "defer");
    return 0;
}

static NOINLINE int on_post(sd_event_source *source, void *data)
{
    stalls_here(s, "post");
    return 0;
}

static NOINLINE int on_prepare(sd_event_source *source, void *data)
{
    sd_event_source_set_prepare(source, NULL);
    stalls_here(s, "prepare");
    return 0;
}

static NOINLINE int on_leave(sd_event_source *source, void *data)
{
    stalls_here(s, "exit");
    return 0;
}

static void kick_prepare(struct stalls *s_)
{
    sd_event_source_set_prepare(io, on_prepare);
}

/* Of another loop, which ends inside the ticker. */
static void kick_exit(struct stalls *s_)
{
    sd_event *other;

    if (sd_event_new(&other) < 0 || sd_event_add_exit(other, NULL, on_leave, NULL) < 0 || sd_event_exit(other, 0) < 0 ||
        sd_event_loop(other) < 0)
        die("another loop");
    sd_event_unref(other);
}

static void kick_io(struct stalls *s_)
{
    if (write(io_pipe[1], "x", 1) != 1)
        die("io pipe");
}

static void kick_signal(struct stalls *s_)
{
    kill(getpid(), SIGHUP);
}

static void kick_child(struct stalls *s_)
{
    pid_t pid = fork();

    if (pid == 0)
        _exit(0);
    if (sd_event_add_child(event, NULL, pid, WEXITED, on_child, NULL) < 0)
        die("child");
}

static void kick_file(struct stalls *s_)
{
    FILE *f = fopen(watched, "ae");

    fputs("x", f);
    fclose(f);
}

static void kick_defer(struct stalls *s_)
{
    sd_event_source_set_enabled(defer, SD_EVENT_ONESHOT);
}

static void kick_post(struct stalls *s_)
{
    sd_event_source_set_enabled(post, SD_EVENT_ONESHOT);
}

static const struct stalls_kind kinds[] = {
    {"timer", "on_time", NULL},           {"io", "on_io", kick_io},
    {"signal", "on_signal", kick_signal}, {"child", "on_child", kick_child},
    {"inotify", "on_inotify", kick_file}, {"defer", "on_defer", kick_defer},
    {"post", "on_post", kick_post},       {"prepare", "on_prepare", kick_prepare},
    {"exit", "on_leave", kick_exit},
};

static NOINLINE int on_time(sd_event_source *source, uint64_t usec, void *data)
{
    uint64_t now;

    if (stalls_tick(s))
        return sd_event_exit(event, 0);
    sd_event_now(event, CLOCK_MONOTONIC, &now);
    sd_event_source_set_time(source, now + STALLS_TICK_NS / 1000);
    return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

int main(int argc, char **argv)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGHUP);
    s = stalls_new(argc, argv);
    sigprocmask(SIG_BLOCK, &set, NULL); /* sd-event reads them from descriptors */
    stalls_kinds(s, kinds, sizeof(kinds) / sizeof(kinds[0]));
    snprintf(watched, sizeof(watched), "%s/watched", s->dir);
    kick_file(s);
    if (pipe2(io_pipe, O_CLOEXEC | O_NONBLOCK) || sd_event_default(&event) < 0 ||
        sd_event_add_time(event, &timer, CLOCK_MONOTONIC, 0, 1, on_time, NULL) < 0 ||
        sd_event_add_io(event, &io, io_pipe[0], EPOLLIN, on_io, NULL) < 0 ||
        sd_event_add_signal(event, NULL, SIGHUP, on_signal, NULL) < 0 ||
        sd_event_add_inotify(event, NULL, watched, IN_CLOSE_WRITE, on_inotify, NULL) < 0 ||
        sd_event_add_defer(event, &defer, on_defer, NULL) < 0 || sd_event_add_post(event, &post, on_post, NULL) < 0)
        die("sd-event");
    sd_event_source_set_enabled(defer, SD_EVENT_OFF);
    sd_event_source_set_enabled(post, SD_EVENT_OFF);
    sd_event_source_set_description(timer, "ticker of the test");
    return sd_event_loop(event) < 0;
}
