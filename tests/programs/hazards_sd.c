/*
 * What may happen to an sd-event source while its callback is suspended: hazards_sd CASE. Prints what happened, in
 * order. Each case says the same whether its calls are moved or not, unless the test says otherwise. Longer than most:
 * the cases have callbacks in common.
 */
// libs: -lsystemd
#include "hazards.h"

#include <errno.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/wait.h>
#include <systemd/sd-event.h>

static sd_event *loop;
static sd_event_source *victim, *second;

static void in(int ms, sd_event_time_handler_t call)
{
    sd_event_add_time_relative(loop, NULL, CLOCK_MONOTONIC, (uint64_t)ms * 1000, 1, call, NULL);
}

static void add_fd(sd_event_io_handler_t call, int enabled)
{
    sd_event_add_io(loop, &victim, p[0], EPOLLIN, call, NULL);
    sd_event_source_set_enabled(victim, enabled);
}

static int on_end(sd_event_source *s, uint64_t at, void *arg)
{
    say("end");
    return sd_event_exit(loop, 0);
}

static void say_enabled(const char *text, sd_event_source *s)
{
    static const char *const word[] = {"oneshot", "off", "on"};
    int enabled, r = sd_event_source_get_enabled(s, &enabled);

    say(text);
    say((r > 0) == (enabled != SD_EVENT_OFF) && sd_event_source_get_enabled(s, NULL) == r ? word[enabled + 1]
                                                                                          : "MIXED UP");
}

/* Three bytes, one each time: it has to come again, one at a time, until they are read. */
static int on_rearm(sd_event_source *s, int fd, uint32_t what, void *arg)
{
    enter();
    rest_quietly(60);
    get(fd);
    inside--;
    if (++fired == 3) {
        say("three");
        sd_event_exit(loop, 0);
    }
    return 0;
}

/* Comes once, however much there is; another callback may want it once more. */
static int on_oneshot(sd_event_source *s, int fd, uint32_t what, void *arg)
{
    enter();
    rest(120);
    get(fd);
    inside--;
    if (is("oneshot"))
        say_enabled("is", s);
    else
        say("once");
    return 0;
}

static int on_once_more(sd_event_source *s, uint64_t at, void *arg)
{
    sd_event_source_set_enabled(victim, SD_EVENT_ONESHOT);
    return 0;
}

/* Off meanwhile: it does not come again. */
static int on_disabled(sd_event_source *s, int fd, uint32_t what, void *arg)
{
    say(fired++ ? "AGAIN" : "once");
    rest(150);
    say_enabled("over", s);
    return 0;
}

static int on_disable(sd_event_source *s, uint64_t at, void *arg)
{
    sd_event_source_set_enabled(victim, SD_EVENT_OFF);
    return 0;
}

/* What it says of itself is what counts, before and after its call. */
static int on_enabled(sd_event_source *s, int fd, uint32_t what, void *arg)
{
    sd_event_source_set_enabled(s, fired ? SD_EVENT_OFF : SD_EVENT_ON);
    rest(60);
    if (sd_event_source_set_enabled(s, 7) != -EINVAL)
        say("TAKEN");
    say_enabled("is", s);
    sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
    say_enabled("is", s);
    if (fired++)
        sd_event_source_set_enabled(s, SD_EVENT_OFF);
    return 0;
}

/* Dropped meanwhile, and its descriptor closed and used anew: the source is there until its callback is over. */
static void on_destroy(void *arg)
{
    say(inside ? "DESTROYED TOO EARLY" : "destroyed");
}

static int on_dropped(sd_event_source *s, int fd, uint32_t what, void *arg)
{
    enter();
    if (is("dropped_kept"))
        sd_event_source_ref(s);
    rest(150);
    say(sd_event_source_get_io_fd(s) == fd ? "there" : "GONE");
    inside--;
    return 0;
}

static int on_other(sd_event_source *s, int fd, uint32_t what, void *arg)
{
    say("OTHER");
    return 0;
}

static int on_drop(sd_event_source *s, uint64_t at, void *arg)
{
    int fresh[2];

    victim = sd_event_source_disable_unref(victim);
    if (is("dropped_kept"))
        return 0;
    close(p[0]);
    if (pipe(fresh) || fresh[0] != p[0])
        abort();
    put(fresh[1], "x");
    if (sd_event_add_io(loop, &second, fresh[0], EPOLLIN, on_other, NULL) < 0)
        say("NOT ADDED");
    sd_event_source_set_enabled(second, SD_EVENT_OFF);
    return 0;
}

/* By itself: before its call, or after it. */
static int on_own_drop(sd_event_source *s, int fd, uint32_t what, void *arg)
{
    enter();
    if (is("drop_before"))
        sd_event_source_unref(s);
    rest(100);
    if (is("drop_after"))
        sd_event_source_unref(s);
    close(fd);
    say(sd_event_source_get_userdata(s) == &victim ? "there" : "GONE");
    inside--;
    return 0;
}

/* A failure switches it off, or ends the loop. */
static int on_failure(sd_event_source *s, int fd, uint32_t what, void *arg)
{
    rest(60);
    say(fired++ ? "AGAIN" : "fails");
    return -EIO;
}

static int on_look(sd_event_source *s, uint64_t at, void *arg)
{
    say_enabled("then", victim);
    return 0;
}

/* Over above another callback that waits for it with a lock held: what that one says then is said later. */
static sem_t driven;
static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;

static int on_driven(sd_event_source *s, int fd, uint32_t what, void *arg)
{
    rest(150);
    say(fired++ ? "again" : "fails");
    sem_post(&driven);
    return -EIO;
}

static int on_drives(sd_event_source *s, uint64_t at, void *arg)
{
    pthread_mutex_lock(&held);
    while (sem_wait(&driven))
        ;
    pthread_mutex_unlock(&held);
    say_enabled("is", victim);
    return sd_event_source_set_enabled(victim, SD_EVENT_ON);
}

/* The loop is told to end while it is suspended, by another or by itself: exit sources come after it. */
static int on_leaving(sd_event_source *s, void *arg)
{
    say("leaving");
    return 0;
}

static int on_before_exit(sd_event_source *s, int fd, uint32_t what, void *arg)
{
    rest(120);
    say("over");
    if (is("exit_after"))
        sd_event_exit(loop, 7);
    return 0;
}

static int on_exit_now(sd_event_source *s, uint64_t at, void *arg)
{
    sd_event_exit(loop, 3);
    rest(60);
    say("exit");
    return 0;
}

/* The loop is told to end by one that has made another wait for its descriptor. */
static int on_no_more(sd_event_source *s, int fd, uint32_t what, void *arg)
{
    say("NO MORE");
    return 0;
}

static int on_exit_behind(sd_event_source *s, int fd, uint32_t what, void *arg)
{
    sd_event_add_io(loop, &second, q[0], EPOLLIN, on_no_more, NULL);
    send_much();
    say("sent");
    return sd_event_exit(loop, 0);
}

/* The program lets go of all that it has while a callback is suspended. */
static int on_last(sd_event_source *s, uint64_t at, void *arg)
{
    sd_event_exit(loop, 0);
    victim = sd_event_source_unref(victim);
    loop = sd_event_unref(loop);
    return 0;
}

/* The thread's own loop, by its other name. */
static int on_exit_default(sd_event_source *s, uint64_t at, void *arg)
{
    return sd_event_exit(SD_EVENT_DEFAULT, 3);
}

static int on_now_default(sd_event_source *s, uint64_t at, void *arg)
{
    uint64_t before, after;

    sd_event_now(SD_EVENT_DEFAULT, CLOCK_MONOTONIC, &before);
    rest(60);
    sd_event_now(SD_EVENT_DEFAULT, CLOCK_MONOTONIC, &after);
    say(before == after ? "same" : "LATER");
    return sd_event_exit(loop, 0);
}

/* Its turn's time is what it sets its next time by. */
static int on_now(sd_event_source *s, uint64_t at, void *arg)
{
    uint64_t before, after, real[2], own;
    sd_event *another;

    sd_event_now(loop, CLOCK_MONOTONIC, &before);
    sd_event_now(loop, CLOCK_REALTIME, &real[0]);
    fired++;
    rest(60);
    sd_event_now(loop, CLOCK_MONOTONIC, &after);
    sd_event_now(loop, CLOCK_REALTIME, &real[1]);
    say(before == after && real[0] == real[1] ? "same" : "LATER");
    sd_event_new(&another);
    sd_event_now(another, CLOCK_MONOTONIC, &own);
    sd_event_unref(another);
    say(own >= before + 60000 ? "later" : "NOT ITS OWN");
    if (sd_event_now(loop, CLOCK_MONOTONIC, NULL) != -EINVAL)
        say("TAKEN");
    if (fired == 2)
        return sd_event_exit(loop, 0);
    sd_event_source_set_time(s, after + 110000);
    return sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
}

/* A callback goes on to what another source will be told of: that one has to wait, and still comes. */
static int on_second(sd_event_source *s, int fd, uint32_t what, void *arg)
{
    say(inside ? "TWO AT ONCE" : "ready");
    get(fd);
    return sd_event_exit(loop, 0);
}

static int on_direct(sd_event_source *s, int fd, uint32_t what, void *arg)
{
    inside++;
    sd_event_add_io(loop, &second, q[0], EPOLLIN, on_second, NULL);
    sd_event_source_set_enabled(second, is("direct_once") ? SD_EVENT_ONESHOT : SD_EVENT_ON);
    send_much();
    inside--;
    say("sent");
    return sd_event_source_set_enabled(s, SD_EVENT_OFF);
}

/* Signals that come meanwhile come once, afterwards. */
static int on_signal(sd_event_source *s, const struct signalfd_siginfo *si, void *arg)
{
    char text[64];

    enter();
    rest(150);
    snprintf(text, sizeof(text), "signal%d", si->ssi_int);
    say(text);
    inside--;
    return 0;
}

static int on_send(sd_event_source *s, uint64_t at, void *arg)
{
    union sigval value = {.sival_int = ++fired};

    sigqueue(getpid(), SIGUSR2, value);
    return 0;
}

/* More important sources keep the loop busy. */
static int on_busy(sd_event_source *s, void *arg)
{
    struct timespec until = {.tv_nsec = 1000000};

    clock_nanosleep(CLOCK_MONOTONIC, 0, &until, NULL);
    if (++fired == 600)
        sd_event_source_set_enabled(s, SD_EVENT_OFF);
    return 0;
}

static int on_meek(sd_event_source *s, uint64_t at, void *arg)
{
    sd_event_add_defer(loop, &second, on_busy, NULL);
    sd_event_source_set_priority(second, -100);
    sd_event_source_set_enabled(second, SD_EVENT_ON);
    rest(100);
    say(fired >= 600 ? "AFTER" : "before");
    return 0;
}

/* A loop inside a callback: what began before is over by then; afterwards the outer one goes on as before. */
static int on_before(sd_event_source *s, uint64_t at, void *arg)
{
    rest(100);
    say(fired++ ? "outer" : "before");
    return 0;
}

static int on_inner(sd_event_source *s, void *own)
{
    say(fired ? "after" : "TOO EARLY");
    return sd_event_exit(own, 0);
}

static int on_nest(sd_event_source *s, uint64_t at, void *arg)
{
    sd_event *own;

    sd_event_new(&own);
    sd_event_add_defer(own, NULL, on_inner, own);
    if (is("inner"))
        sd_event_loop(own);
    else
        sd_event_run(own, UINT64_MAX);
    sd_event_unref(own);
    return 0;
}

/* A loop that the program turns by itself returns when a callback is over. */
static int on_by_hand(sd_event_source *s, int fd, uint32_t what, void *arg)
{
    get(fd);
    rest(80);
    fired++;
    return 0;
}

static void turn(sd_event *e)
{
    if (is("run")) {
        sd_event_run(e, UINT64_MAX);
    } else if (sd_event_prepare(e) > 0 || sd_event_wait(e, UINT64_MAX) > 0) {
        sd_event_dispatch(e);
    }
}

static void by_hand(sd_event *e)
{
    sd_event_add_io(e, NULL, p[0], EPOLLIN, on_by_hand, NULL);
    for (int i = 0; i < 3; i++) {
        put(p[1], "x");
        while (fired == i) {
            inside = 0;
            turn(e);
        }
        say("turned");
    }
}

/* Left more than once; what is done goes on at once, not at the next heartbeat: that would take twice the time. */
static int on_asking(sd_event_source *s, int fd, uint32_t what, void *arg)
{
    if (!fired)
        ask_and_wait();
    get(fd);
    say(fired++ ? "again" : "prompt");
    return 0;
}

/* The program closes all that it does not know; one whose call takes longer than a heartbeat, and again. */
static int on_closed(sd_event_source *s, uint64_t at, void *arg)
{
    for (int i = 0; i < 3; i++)
        rest(80);
    say("over");
    return 0;
}

static int on_close(sd_event_source *s, uint64_t at, void *arg)
{
    if (close_range(64, ~0u, 0))
        abort();
    return 0;
}

/* In a callback that is never left, of a loop that does run. */
static int on_edge(sd_event_source *s, int fd, uint32_t what, void *arg)
{
    sd_event *own;

    sd_event_source_set_enabled(s, SD_EVENT_OFF);
    sd_event_new(&own);
    by_hand(own);
    sd_event_unref(own);
    return 0;
}

/* In a forked child nothing of the loop can be used. */
static int on_fork(sd_event_source *s, uint64_t at, void *arg)
{
    int status;
    pid_t pid = fork();

    if (pid == 0)
        _exit(sd_event_source_set_enabled(victim, SD_EVENT_OFF) == -ECHILD ? 5 : 6);
    while (waitpid(pid, &status, 0) < 0)
        ;
    say(WIFEXITED(status) && WEXITSTATUS(status) == 5 ? "child" : "NO CHILD");
    return 0;
}

/* Each of some threads has a loop of its own, one after the other. */
static int on_thread(sd_event_source *s, uint64_t at, void *arg)
{
    int *n = arg;

    if (++*n >= WARM)
        rest(60);
    if (*n == WARM + 2)
        return sd_event_exit(sd_event_source_get_event(s), 0);
    sd_event_source_set_time(s, at + 2000);
    return sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
}

static void *thread(void *arg)
{
    for (int i = 0; i < 6; i++) {
        sd_event *own;
        int n = 0;

        sd_event_new(&own);
        sd_event_add_time_relative(own, NULL, CLOCK_MONOTONIC, 1000, 1, on_thread, &n);
        sd_event_loop(own);
        say(n == WARM + 2 ? "loop" : "NO LOOP");
        sd_event_unref(own);
    }
    return NULL;
}

static void threads(void)
{
    pthread_t t[3];

    for (int i = 0; i < 3; i++)
        pthread_create(&t[i], NULL, thread, NULL);
    for (int i = 0; i < 3; i++)
        pthread_join(t[i], NULL);
}

static void begin(void)
{
    pthread_t t;

    if (is("rearm")) {
        put(p[1], "abc");
        add_fd(on_rearm, SD_EVENT_ON);
    } else if (is("oneshot") || is("once_more")) {
        put(p[1], "abc");
        add_fd(on_oneshot, SD_EVENT_ONESHOT);
        if (is("once_more"))
            in(60, on_once_more);
        in(900, on_end);
    } else if (is("disabled")) {
        put(p[1], "a");
        add_fd(on_disabled, SD_EVENT_ON);
        in(50, on_disable);
        in(400, on_end);
    } else if (is("enabled")) {
        put(p[1], "a");
        add_fd(on_enabled, SD_EVENT_ON);
        in(400, on_end);
    } else if (is("dropped") || is("dropped_kept")) {
        put(p[1], "a");
        add_fd(on_dropped, SD_EVENT_ON);
        sd_event_source_set_destroy_callback(victim, on_destroy);
        in(50, on_drop);
        in(400, on_end);
    } else if (is("drop_before") || is("drop_after")) {
        put(p[1], "a");
        add_fd(on_own_drop, SD_EVENT_ON);
        sd_event_source_set_userdata(victim, &victim);
        sd_event_source_set_destroy_callback(victim, on_destroy);
        in(400, on_end);
    } else if (is("failure") || is("failure_exits")) {
        put(p[1], "a");
        add_fd(on_failure, SD_EVENT_ON);
        sd_event_source_set_exit_on_failure(victim, is("failure_exits"));
        in(200, on_look);
        in(300, on_end);
    } else if (is("driven")) {
        sem_init(&driven, 0, 0);
        put(p[1], "a");
        add_fd(on_driven, SD_EVENT_ON);
        in(20, on_drives);
        in(500, on_end);
    } else if (is("exit") || is("exit_after")) {
        put(p[1], "a");
        add_fd(on_before_exit, SD_EVENT_ONESHOT);
        sd_event_add_exit(loop, NULL, on_leaving, NULL);
        in(is("exit") ? 50 : 400, on_exit_now);
    } else if (is("exit_behind")) {
        put(p[1], "a");
        add_fd(on_exit_behind, SD_EVENT_ON);
        pthread_create(&t, NULL, peer, NULL);
    } else if (is("last") || is("exit_default")) {
        put(p[1], "a");
        add_fd(on_before_exit, SD_EVENT_ONESHOT);
        if (is("exit_default"))
            sd_event_add_exit(loop, NULL, on_leaving, NULL);
        in(50, is("last") ? on_last : on_exit_default);
    } else if (is("now") || is("now_default")) {
        in(1, is("now") ? on_now : on_now_default);
    } else if (is("direct") || is("direct_once")) {
        put(p[1], "a");
        add_fd(on_direct, SD_EVENT_ON);
        pthread_create(&t, NULL, peer, NULL);
    } else if (is("signal")) {
        sd_event_add_signal(loop, &victim, SIGUSR2, on_signal, NULL);
        in(1, on_send);
        in(60, on_send);
        in(80, on_send);
        in(1000, on_end);
    } else if (is("priority")) {
        in(1, on_meek);
        in(1500, on_end);
    } else if (is("inner") || is("inner_run")) {
        in(1, on_before);
        in(40, on_nest);
        in(200, on_before);
        in(500, on_end);
    } else if (is("dispatch_inside")) {
        put(q[1], "x");
        sd_event_add_io(loop, NULL, q[0], EPOLLIN | EPOLLET, on_edge, NULL);
        in(600, on_end);
    } else if (is("prompt")) {
        put(p[1], "ab");
        add_fd(on_asking, SD_EVENT_ON);
        pthread_create(&t, NULL, answerer, NULL);
        in(660, on_end);
    } else if (is("closed")) {
        in(1, on_closed);
        in(40, on_close);
        in(600, on_end);
    } else if (is("fork")) {
        put(p[1], "a");
        add_fd(on_disabled, SD_EVENT_ONESHOT);
        in(50, on_fork);
        in(400, on_end);
    }
}

static int on_warm(sd_event_source *s, uint64_t at, void *arg)
{
    static int n;

    if (++n == WARM) {
        begin();
        return 0;
    }
    sd_event_source_set_time(s, at + 2000);
    return sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
}

int main(int argc, char **argv)
{
    sigset_t blocked;
    int r;

    name = argv[1];
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR2);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    if (pipe(p) || socketpair(AF_UNIX, SOCK_STREAM, 0, q))
        abort();
    if (is("exit_default") || is("now_default"))
        sd_event_default(&loop);
    else
        sd_event_new(&loop);
    if (is("threads")) {
        threads();
    } else if (is("run") || is("dispatch")) {
        by_hand(loop);
    } else {
        in(2, on_warm);
        r = sd_event_loop(is("now_default") ? SD_EVENT_DEFAULT : loop);
        printf("%d ", r);
    }
    if (is("exit_default"))
        sd_event_source_unref(victim);
    sd_event_unref(loop);
    if (sd_event_default(NULL) > 0)
        say("KEPT");
    puts(said);
    return 0;
}
