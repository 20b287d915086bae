/*
 * Callbacks that do random things which block, and check all that comes back: stress CALLBACKS [SEED [ACTORS]]
 *
 * Each actor is one handle of the loop library (-DLIBEVENT, -DGLIB, -DLIBEV, -DSD_EVENT, else libuv) whose callback
 * makes one random call, while others stop it, close it, free it or fork. Of every call it is known what must come back
 * (a number that was sent to it alone, or to the k-th caller), of every callback that it runs alone on its handle and
 * not after it was stopped, of every handle that nothing uses it once it is said to be closed. Ends with one line "done
 * ..." and status 0; anything wrong is a line "BAD ..." and status 1. Descriptors, mappings and memory are counted twice
 * at rest: what grew in between is a leak.
 *
 * Built by tests/e2e/test_offload_stress.py, as it is and with sanitizers. Longer than most: it is one experiment.
 */
#include <arpa/inet.h>
#include <atomic>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <functional>
#include <malloc.h>
#include <map>
#include <mutex>
#include <netdb.h>
#include <netinet/in.h>
#include <semaphore.h>
#include <set>
#include <stdexcept>
#include <string>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <thread>
#include <time.h>
#include <unistd.h>
#include <vector>
#if defined(LIBEVENT)
#include <event2/event.h>
#include <event2/thread.h>
#elif defined(GLIB)
#include <glib-unix.h>
#include <glib.h>
#elif defined(LIBEV)
#include <ev.h>
#elif defined(SD_EVENT)
#include <systemd/sd-event.h>
#else
#include <uv.h>
#endif

#define WARM 20 /* turns until a loop is known to be one */

static int wanted, begun, ended, killed, stopped, forks, thrown;
static unsigned seed;
static std::atomic<int> bad_ones;

static void bad(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void bad(const char *format, ...)
{
    char text[256];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (bad_ones++ < 20)
        dprintf(1, "BAD %s\n", text);
}

static unsigned dice(unsigned n)
{
    seed = seed * 1103515245 + 12345;
    return (seed >> 8) % n;
}

static uint64_t now_ns()
{
    timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* ---- the other side: a thread that does what calls wait for, a little later -------------------------- */

static std::mutex later_lock;
static std::condition_variable later_more;
static std::multimap<uint64_t, std::function<void()>> later_what;

static void later(unsigned us, std::function<void()> what)
{
    std::lock_guard<std::mutex> hold(later_lock);

    later_what.emplace(now_ns() + us * 1000ull, std::move(what));
    later_more.notify_one();
}

static void serve_later()
{
    std::unique_lock<std::mutex> hold(later_lock);

    for (;;) {
        if (later_what.empty()) {
            later_more.wait(hold);
            continue;
        }
        auto first = later_what.begin();
        uint64_t now = now_ns();
        if (first->first > now) {
            later_more.wait_for(hold, std::chrono::nanoseconds(first->first - now));
            continue;
        }
        auto what = std::move(first->second);
        later_what.erase(first);
        hold.unlock();
        what();
        hold.lock();
    }
}

static void put(int fd, uint64_t token)
{
    if (write(fd, &token, sizeof(token)) != sizeof(token))
        bad("write: %s", strerror(errno));
}

static unsigned soon_us()
{
    return 800 + dice(2500);
}

/* ---- what blocks: the name of what was wrong, or nothing ---------------------------------------------- */

static uint64_t tokens;
static int shared_pipe[2], sender[2], file_fd = -1, lock_fd = -1, held_fd = -1;
static std::atomic<uint64_t> shared_sent;
static uint64_t shared_asked, messages;
static std::set<int> closable;
static sockaddr_in listener;
static const char *what_now = "";

#define KEPT_ERRNO 77 /* a call that succeeds leaves it alone */

static void check_errno()
{
    if (errno != KEPT_ERRNO)
        bad("%s: errno is %d", what_now, errno);
}

static void do_sleep()
{
    unsigned us = 1000 + dice(3000);
    timespec ts = {0, (long)us * 1000};
    uint64_t from = now_ns();
    unsigned how = dice(3);

    errno = KEPT_ERRNO;
    if ((how == 0 ? nanosleep(&ts, nullptr) : how == 1 ? usleep(us) : clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, nullptr)))
        bad("sleep failed: %d", errno);
    check_errno();
    if (now_ns() - from < us * 1000ull)
        bad("slept %llu ns of %u us", (unsigned long long)(now_ns() - from), us);
}

static void read_token(int fd, uint64_t expected, const char *what)
{
    uint64_t token = 0;

    errno = KEPT_ERRNO;
    iovec v = {&token, sizeof(token)};
    ssize_t n = dice(2) ? read(fd, &token, sizeof(token)) : readv(fd, &v, 1);
    if (n != sizeof(token) || token != expected)
        bad("%s: %zd bytes, %llu for %llu", what, n, (unsigned long long)token, (unsigned long long)expected);
    check_errno();
}

/* A pipe of its own; the number may be closed by somebody else meanwhile, who then waits for this. */
static void do_pipe()
{
    int p[2];
    uint64_t token = ++tokens;

    if (pipe2(p, O_CLOEXEC))
        return bad("pipe: %s", strerror(errno));
    closable.insert(p[0]);
    later(soon_us(), [=] { put(p[1], token); });
    read_token(p[0], token, "pipe");
    if (closable.erase(p[0]))
        close(p[0]);
    close(p[1]);
}

/* One pipe for all: the k-th who asks gets the k-th number. */
static void do_shared()
{
    uint64_t mine = ++shared_asked;

    later(soon_us(), [] { put(shared_pipe[1], ++shared_sent); });
    read_token(shared_pipe[0], mine, "shared pipe");
}

static void do_close()
{
    if (closable.empty())
        return do_sleep();
    int fd = *closable.begin();

    closable.erase(fd);
    if (close(fd))
        bad("close %d: %s", fd, strerror(errno));
}

static void do_recv()
{
    int s[2];
    uint64_t token = ++tokens, got = 0;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s))
        return bad("socketpair: %s", strerror(errno));
    later(soon_us(), [=] { put(s[1], token); });
    errno = KEPT_ERRNO;
    if (recv(s[0], &got, sizeof(got), dice(2) ? MSG_WAITALL : 0) != sizeof(got) || got != token)
        bad("recv: %llu for %llu", (unsigned long long)got, (unsigned long long)token);
    check_errno();
    close(s[0]);
    close(s[1]);
}

/* Messages of some 100 KB into one socket: each arrives whole, in the order in which they were sent. */
#define MESSAGE_WORDS 16384u

static void drain()
{
    uint64_t next = 1, got[256];
    size_t at = 0; /* words of the message that is on its way */
    ssize_t n;

    while ((n = recv(sender[1], got, sizeof(got), MSG_WAITALL)) > 0) {
        for (size_t i = 0; i < (size_t)n / 8; i++) {
            if (got[i] != (next << 32 | at))
                return bad("message %llu, word %zu: %llx", (unsigned long long)next, at, (unsigned long long)got[i]);
            if (++at == MESSAGE_WORDS) {
                at = 0;
                next++;
            }
        }
        if (at % 4096 == 0)
            std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
}

static void do_send()
{
    std::vector<uint64_t> words(MESSAGE_WORDS);
    uint64_t mine = ++messages;
    ssize_t n;

    for (size_t i = 0; i < MESSAGE_WORDS; i++)
        words[i] = mine << 32 | i;
    errno = KEPT_ERRNO;
    n = dice(2) ? send(sender[0], words.data(), MESSAGE_WORDS * 8, 0) : write(sender[0], words.data(), MESSAGE_WORDS * 8);
    if (n != MESSAGE_WORDS * 8)
        bad("send: %zd, %s", n, strerror(errno));
    check_errno();
}

/* `held_fd` is another open file: as another process's. One at a time holds it. */
static std::atomic<int> holders;

static void do_flock()
{
    if (holders.exchange(1) == 0) {
        flock(held_fd, LOCK_EX | LOCK_NB);
        later(soon_us(), [] {
            flock(held_fd, LOCK_UN);
            holders = 0;
        });
    }
    errno = KEPT_ERRNO;
    if (flock(lock_fd, LOCK_EX))
        bad("flock: %s", strerror(errno));
    check_errno();
    flock(lock_fd, LOCK_UN);
}

static void do_record_lock()
{
    struct flock lock = {};
    off_t at = 8 * (off_t)(++tokens);
    int other = held_fd;

    lock.l_type = F_WRLCK;
    lock.l_start = at;
    lock.l_len = 8;
    if (fcntl(other, F_OFD_SETLK, &lock))
        bad("lock: %s", strerror(errno));
    later(soon_us(), [=]() mutable {
        lock.l_type = F_UNLCK;
        fcntl(other, F_OFD_SETLK, &lock);
    });
    errno = KEPT_ERRNO;
    if (fcntl(lock_fd, F_OFD_SETLKW, &lock))
        bad("lock: %s", strerror(errno));
    check_errno();
    lock.l_type = F_UNLCK;
    fcntl(lock_fd, F_OFD_SETLK, &lock);
}

static void do_file()
{
    off_t at = 8 * (off_t)dice(512);
    uint64_t token = ++tokens, got = 0;

    if (pwrite(file_fd, &token, sizeof(token), at) != sizeof(token))
        bad("pwrite: %s", strerror(errno));
    if (pread(file_fd, &got, sizeof(got), at) != sizeof(got) || got < token) /* who came later may have been there */
        bad("pread: %llu, %llu was written", (unsigned long long)got, (unsigned long long)token);
    errno = KEPT_ERRNO;
    if (dice(2) ? fsync(file_fd) : fdatasync(file_fd))
        bad("fsync: %s", strerror(errno));
    check_errno();
}

static void do_child()
{
    int status = 0, code = 1 + (int)dice(100);
    unsigned us = soon_us();
    pid_t pid = fork();

    if (pid == 0) {
        usleep(us);
        _exit(code);
    }
    forks++;
    errno = KEPT_ERRNO;
    if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status) != code)
        bad("child: %x for %d, %s", status, code, strerror(errno));
    check_errno();
}

static void do_semaphore()
{
    sem_t s;

    sem_init(&s, 0, 0);
    later(soon_us(), [&s] { sem_post(&s); });
    errno = KEPT_ERRNO;
    if (sem_wait(&s))
        bad("sem_wait: %s", strerror(errno));
    check_errno();
    /* The thread that posted may still be about to leave sem_post. */
    later(0, [] {});
    usleep(1000);
    sem_destroy(&s);
}

static void do_connect()
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    errno = KEPT_ERRNO;
    if (connect(fd, (sockaddr *)&listener, sizeof(listener)))
        bad("connect: %s", strerror(errno));
    close(fd);
}

static void do_name()
{
    addrinfo *list = nullptr, hints = {};

    hints.ai_family = AF_INET;
    int r = getaddrinfo("localhost", "80", &hints, &list);
    if (r || !list || ((sockaddr_in *)list->ai_addr)->sin_addr.s_addr != htonl(INADDR_LOOPBACK))
        bad("getaddrinfo: %d", r);
    if (list)
        freeaddrinfo(list);
}

/* Two frames deep in exceptions, which every other callback is meanwhile, too. */
static void do_throw()
{
    int mine = (int)++tokens;

    thrown++;
    try {
        try {
            throw std::runtime_error(std::to_string(mine));
        } catch (const std::runtime_error &e) {
            do_sleep();
            if (e.what() != std::to_string(mine))
                bad("the exception is %s, not %d", e.what(), mine);
            throw;
        }
    } catch (const std::exception &e) {
        if (e.what() != std::to_string(mine) || std::uncaught_exceptions() != 0)
            bad("the exception is %s, not %d", e.what(), mine);
    }
}

struct Unwinds {
    ~Unwinds() { do_sleep(); }
};

/* Blocks while an exception is on its way. */
static void do_unwind()
{
    int mine = (int)++tokens;

    thrown++;
    try {
        Unwinds u;
        throw mine;
    } catch (int got) {
        if (got != mine)
            bad("caught %d, not %d", got, mine);
    }
}

#ifndef SANITIZED
/* Stays; what is suspended goes on above it. */
static std::mutex held;

static void do_locked()
{
    std::lock_guard<std::mutex> hold(held);

    dice(4) ? do_sleep() : do_pipe();
}
#endif

static const struct {
    const char *name;
    unsigned weight;
    void (*function)();
} kinds[] = {
    {"sleep", 10, do_sleep},   {"pipe", 14, do_pipe},     {"shared", 12, do_shared},   {"close", 4, do_close},
    {"recv", 10, do_recv},     {"send", 4, do_send},      {"flock", 6, do_flock},      {"lock", 6, do_record_lock},
    {"file", 5, do_file},      {"child", 3, do_child},    {"semaphore", 8, do_semaphore},
    {"connect", 4, do_connect}, {"name", 2, do_name},     {"throw", 6, do_throw},      {"unwind", 4, do_unwind},
#ifndef SANITIZED /* there they are taken past our hooks, for which reason nothing moves in such programs else */
    {"locked", 1, do_locked},
#endif
};

static void do_something()
{
    unsigned sum = 0, at;

    for (const auto &kind : kinds)
        sum += kind.weight;
    at = dice(sum);
    for (const auto &kind : kinds) {
        if (at < kind.weight) {
            std::string local(40 + dice(200), 'x'); /* what is on the stack and on the heap stays the callback's */
            what_now = kind.name;
            kind.function();
            if (local.find_first_not_of('x') != std::string::npos)
                bad("%s: the callback's own string has changed", kind.name);
            return;
        }
        at -= kind.weight;
    }
}

/* ---- actors ------------------------------------------------------------------------------------------ */

struct Actor {
    int inside = 0, kind = 0, p[2] = {-1, -1};
    bool halted = false, gone = false, armed = false;
    uint32_t alive = 0x600d;
#if defined(LIBEVENT)
    event *handle = nullptr;
#elif defined(GLIB)
    GSource *handle = nullptr;
#elif defined(SD_EVENT)
    sd_event_source *handle = nullptr;
#elif defined(LIBEV)
    union {
        ev_watcher any;
        ev_timer timer;
        ev_periodic periodic;
        ev_async async;
        ev_io io;
    } h;
#else
    union {
        uv_timer_t timer;
        uv_async_t async;
        uv_fs_t fs;
        uv_work_t work;
    } h;
#endif
};

static std::vector<Actor *> actors;
static bool resting;
static void arm(Actor *a);
static void disarm(Actor *a);
static void close_it(Actor *a);
static bool may_be_stopped(const Actor *a);
static bool may_be_closed(const Actor *a);
static void open_it(Actor *a);
static void quit();

static Actor *new_actor()
{
    Actor *a = new Actor;

    open_it(a);
    return a;
}

static void replace(Actor *a)
{
    if (a->inside || !a->gone)
        bad("a handle was closed with its callback inside (%d)", a->inside);
    for (auto &one : actors) {
        if (one == a) {
            one = new_actor();
            if (!resting)
                arm(one);
        }
    }
    for (int fd : a->p) {
        if (fd >= 0)
            close(fd);
    }
    a->alive = 0xdead;
    delete a;
}

static void disturb(Actor *self)
{
    Actor *a = actors[dice((unsigned)actors.size())];
    unsigned how = dice(16);

    if (a->gone)
        return;
    if (how == 0 && may_be_closed(a)) {
        a->gone = true;
        killed++;
        close_it(a);
    } else if (how == 1 && a != self && may_be_stopped(a)) {
        disarm(a);
        a->halted = true;
        stopped++;
    } else if (how == 2 && dice(3) == 0) { /* a child in the midst of it, with others suspended */
        int status = 0, local = (int)dice(1000), copy = local;
        pid_t pid = fork();

        if (pid == 0)
            _exit(self->alive == 0x600d && copy == local ? 42 : 1);
        forks++;
        if (waitpid(pid, &status, 0) != pid || WEXITSTATUS(status) != 42)
            bad("a forked child ended with %x", status);
    }
}

static int inside()
{
    int n = 0;

    for (const auto *a : actors)
        n += a->inside;
    return n;
}

/* All at once in the beginning, so that there are as many stacks as there will ever be. Alone there is no waiting. */
static bool gathered;

static void gather()
{
    for (int i = 0; i < 400 && !gathered; i++) {
        usleep(5000);
        gathered = gathered || inside() == (int)actors.size();
    }
    gathered = true;
}

/* Begins with each callback of an actor. True: it is to be armed again. */
static bool act(Actor *a)
{
    if (a->alive != 0x600d)
        bad("a handle that is closed fires");
    if (a->gone || a->halted)
        bad("a handle that was %s fires", a->gone ? "closed" : "stopped");
    if (a->inside++)
        bad("a callback runs inside itself");
    begun++;
    gather();
    disturb(a);
    do_something();
    disturb(a);
    if (a->alive != 0x600d)
        bad("a handle is gone under its callback");
    a->inside--;
    ended++;
    return !a->gone && !a->halted && !resting;
}

/* ---- the library's side ------------------------------------------------------------------------------ */

#if defined(LIBEVENT)
static event_base *base;
enum { ONCE, REPEATED, READABLE, KINDS };

static void on_fire(int fd, short what, void *arg)
{
    auto *a = (Actor *)arg;
    bool again = act(a);
    char c;

    if (a->gone) /* event_free has no word of its own for its end */
        return replace(a);
    if (a->kind == READABLE && read(a->p[0], &c, 1) != 1)
        bad("its own byte is gone");
    if (again && a->kind != REPEATED)
        arm(a);
}

static void open_it(Actor *a)
{
    a->kind = (int)dice(KINDS);
    if (a->kind == READABLE && pipe2(a->p, O_CLOEXEC | O_NONBLOCK))
        abort();
    a->handle = event_new(base, a->p[0], a->kind == READABLE ? EV_READ | EV_PERSIST : a->kind == REPEATED ? EV_PERSIST : 0,
                          on_fire, a);
    if (a->kind == READABLE)
        event_add(a->handle, nullptr);
}

static void arm(Actor *a)
{
    timeval tv = {0, (int)(1 + dice(3)) * 1000};
    char c = 0;

    if (a->kind != READABLE)
        event_add(a->handle, &tv);
    else if (event_add(a->handle, nullptr) || (read(a->p[0], &c, 1) != 1 && errno != EAGAIN) || write(a->p[1], "x", 1) != 1)
        bad("its own pipe: %s", strerror(errno));
}

static void disarm(Actor *a) { event_del(a->handle); }
static bool may_be_stopped(const Actor *) { return true; }
static bool may_be_closed(const Actor *) { return true; }

static void close_it(Actor *a)
{
    event_free(a->handle);
    if (!a->inside)
        replace(a);
}

static void each_ms(std::function<bool()> *what)
{
    timeval tv = {0, 1000};

    event_add(event_new(base, -1, EV_PERSIST, [](int, short, void *w) { (*(std::function<bool()> *)w)(); }, what), &tv);
}

static void quit() { event_base_loopbreak(base); }

static void run(std::function<bool()> tick)
{
    event_base_dispatch((each_ms(&tick), base));
}

static void init()
{
    evthread_use_pthreads();
    base = event_base_new();
}
#elif defined(GLIB)
static GMainLoop *loop;
enum { ONCE, REPEATED, IDLE, READABLE, KINDS };

static int fire(Actor *a)
{
    bool again = act(a);
    char c;

    if (!a->gone && a->kind == READABLE && read(a->p[0], &c, 1) != 1)
        bad("its own byte is gone");
    a->armed = again && a->kind == REPEATED;
    if (again && a->kind == READABLE) {
        arm(a);
        return G_SOURCE_CONTINUE;
    }
    if (again && a->kind != REPEATED && dice(2)) { /* stays as it is: it comes again by itself */
        a->armed = true;
        return G_SOURCE_CONTINUE;
    }
    if (again && a->kind != REPEATED)
        arm(a);
    return a->kind == REPEATED && again;
}

static int on_timeout(void *arg) { return fire((Actor *)arg); }
static int on_readable(int, GIOCondition, void *arg) { return fire((Actor *)arg); }

/* The source is over; the actor with it, if it was closed. */
static void on_gone(void *arg)
{
    auto *a = (Actor *)arg;

    if (a->alive != 0x600d)
        bad("a destroy notify came twice");
    if (a->gone)
        replace(a);
}

static void open_it(Actor *a)
{
    a->kind = (int)dice(KINDS);
    if (a->kind == READABLE && pipe2(a->p, O_CLOEXEC | O_NONBLOCK))
        abort();
}

static void forget(Actor *a)
{
    if (a->handle)
        g_source_unref(a->handle);
    a->handle = nullptr;
}

static void arm(Actor *a)
{
    bool readable = a->kind == READABLE;
    char c;

    if (readable && ((read(a->p[0], &c, 1) != 1 && errno != EAGAIN) || write(a->p[1], "x", 1) != 1))
        bad("its own pipe: %s", strerror(errno));
    if (readable && a->handle && !g_source_is_destroyed(a->handle))
        return;
    forget(a);
    a->handle = readable            ? g_unix_fd_source_new(a->p[0], G_IO_IN)
                : a->kind == IDLE ? g_idle_source_new()
                                  : g_timeout_source_new(1 + dice(3));
    g_source_set_callback(a->handle, readable ? (GSourceFunc)(void (*)())on_readable : on_timeout, a, on_gone);
    g_source_attach(a->handle, nullptr);
}

static void disarm(Actor *a)
{
    if (a->handle)
        g_source_destroy(a->handle);
    forget(a);
}

static bool may_be_stopped(const Actor *) { return true; }
static bool may_be_closed(const Actor *) { return true; }

static void close_it(Actor *a)
{
    GSource *handle = a->handle;

    a->handle = nullptr;
    if (!handle || g_source_is_destroyed(handle)) {
        a->gone = a->inside > 0; /* its last source's notify is still to come, or has been */
        killed -= !a->gone;
    } else {
        g_source_destroy(handle);
    }
    if (handle)
        g_source_unref(handle);
}

static void quit() { g_main_loop_quit(loop); }

static void run(std::function<bool()> tick)
{
    guint id = g_timeout_add(1, [](void *w) -> int { return (*(std::function<bool()> *)w)(), G_SOURCE_CONTINUE; }, &tick);

    g_main_loop_run(loop);
    g_source_remove(id);
}

static void init() { loop = g_main_loop_new(nullptr, FALSE); }
#elif defined(LIBEV)
static struct ev_loop *loop;
enum { ONCE, REPEATED, PERIODIC, ASYNC, READABLE, KINDS };

static void fire(Actor *a)
{
    bool again = act(a);
    char c;

    if (a->gone) /* it is stopped, and its memory is ours alone */
        return replace(a);
    if (a->kind == READABLE && read(a->p[0], &c, 1) != 1)
        bad("its own byte is gone");
    if (again && a->kind != REPEATED)
        arm(a);
}

static void on_timer(struct ev_loop *, ev_timer *w, int) { fire((Actor *)w->data); }
static void on_periodic(struct ev_loop *, ev_periodic *w, int) { fire((Actor *)w->data); }
static void on_async(struct ev_loop *, ev_async *w, int) { fire((Actor *)w->data); }

static void on_io(struct ev_loop *, ev_io *w, int)
{
    if (!ev_is_active(w))
        bad("a watcher that is not active is ready");
    fire((Actor *)w->data);
}

static void open_it(Actor *a)
{
    a->kind = (int)dice(KINDS);
    if (a->kind == READABLE && pipe2(a->p, O_CLOEXEC | O_NONBLOCK))
        abort();
    if (a->kind == READABLE)
        ev_io_init(&a->h.io, on_io, a->p[0], EV_READ);
    else if (a->kind == ASYNC)
        ev_async_init(&a->h.async, on_async);
    else if (a->kind == PERIODIC)
        ev_periodic_init(&a->h.periodic, on_periodic, 0, 0, nullptr);
    else
        ev_timer_init(&a->h.timer, on_timer, 0, 0);
    a->h.any.data = a;
}

static void arm(Actor *a)
{
    double after = (1 + dice(3)) / 1e3;
    char c;

    if (a->kind == READABLE) {
        ev_io_start(loop, &a->h.io);
        if ((read(a->p[0], &c, 1) != 1 && errno != EAGAIN) || write(a->p[1], "x", 1) != 1)
            bad("its own pipe: %s", strerror(errno));
    } else if (a->kind == ASYNC) {
        ev_async_start(loop, &a->h.async);
        ev_async_send(loop, &a->h.async);
    } else if (a->kind == PERIODIC) {
        ev_periodic_set(&a->h.periodic, ev_time() + after, 0, nullptr);
        ev_periodic_start(loop, &a->h.periodic);
    } else {
        ev_timer_set(&a->h.timer, after, a->kind == REPEATED ? 0.002 : 0);
        ev_timer_start(loop, &a->h.timer);
    }
}

static void disarm(Actor *a)
{
    if (a->kind == READABLE)
        ev_io_stop(loop, &a->h.io);
    else if (a->kind == ASYNC)
        ev_async_stop(loop, &a->h.async);
    else if (a->kind == PERIODIC)
        ev_periodic_stop(loop, &a->h.periodic);
    else
        ev_timer_stop(loop, &a->h.timer);
}

static bool may_be_stopped(const Actor *) { return true; }
static bool may_be_closed(const Actor *) { return true; }

static void close_it(Actor *a)
{
    disarm(a);
    if (!a->inside)
        replace(a);
}

static void quit() { ev_break(loop, EVBREAK_ALL); }

static void run(std::function<bool()> tick)
{
    static ev_timer t;

    ev_timer_init(&t, [](struct ev_loop *, ev_timer *w, int) { (*(std::function<bool()> *)w->data)(); }, 0.001, 0.001);
    t.data = &tick;
    ev_timer_start(loop, &t);
    ev_run(loop, 0);
}

static void init() { loop = ev_loop_new(0); }
#elif defined(SD_EVENT)
static sd_event *loop;
enum { TIME, DEFER, KEPT, READABLE, KINDS };

static int fire(Actor *a)
{
    bool again = act(a);
    char c;

    if (a->gone)
        return 0;
    if (a->kind == READABLE && read(a->p[0], &c, 1) != 1)
        bad("its own byte is gone");
    if (again && dice(16) == 0) { /* that switches it off */
        a->halted = true;
        return -EIO;
    }
    if (!again && a->kind == KEPT)
        disarm(a);
    if (again && a->kind != KEPT)
        arm(a);
    return 0;
}

static int on_time(sd_event_source *, uint64_t, void *a) { return fire((Actor *)a); }
static int on_defer(sd_event_source *, void *a) { return fire((Actor *)a); }
static int on_io(sd_event_source *, int, uint32_t, void *a) { return fire((Actor *)a); }
static void on_gone(void *a) { replace((Actor *)a); }

static void open_it(Actor *a)
{
    int r;

    a->kind = (int)dice(KINDS);
    if (a->kind == READABLE && pipe2(a->p, O_CLOEXEC | O_NONBLOCK))
        abort();
    r = a->kind == READABLE ? sd_event_add_io(loop, &a->handle, a->p[0], EPOLLIN, on_io, a)
        : a->kind == TIME   ? sd_event_add_time(loop, &a->handle, CLOCK_MONOTONIC, 0, 1, on_time, a)
                            : sd_event_add_defer(loop, &a->handle, on_defer, a);
    if (r < 0)
        bad("sd-event: %s", strerror(-r));
    sd_event_source_set_enabled(a->handle, SD_EVENT_OFF);
    sd_event_source_set_destroy_callback(a->handle, on_gone);
}

static void arm(Actor *a)
{
    bool on = a->kind == READABLE || a->kind == KEPT;
    char c;

    if (a->kind == READABLE && ((read(a->p[0], &c, 1) != 1 && errno != EAGAIN) || write(a->p[1], "x", 1) != 1))
        bad("its own pipe: %s", strerror(errno));
    if (a->kind == TIME)
        sd_event_source_set_time_relative(a->handle, (1 + dice(3)) * 1000);
    sd_event_source_set_enabled(a->handle, on ? SD_EVENT_ON : SD_EVENT_ONESHOT);
    if (sd_event_source_get_enabled(a->handle, nullptr) != 1)
        bad("a source that was switched on is not");
}

static void disarm(Actor *a)
{
    sd_event_source_set_enabled(a->handle, SD_EVENT_OFF);
    if (sd_event_source_get_enabled(a->handle, nullptr) != 0)
        bad("a source that was switched off is not");
}

static bool may_be_stopped(const Actor *) { return true; }
static bool may_be_closed(const Actor *) { return true; }
static void close_it(Actor *a) { sd_event_source_disable_unref(a->handle); }
static void quit() { sd_event_exit(loop, 0); }

static int on_tick(sd_event_source *s, uint64_t, void *tick)
{
    (*(std::function<bool()> *)tick)();
    sd_event_source_set_time_relative(s, 1000);
    return sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
}

static void run(std::function<bool()> tick)
{
    sd_event_add_time_relative(loop, nullptr, CLOCK_MONOTONIC, 1000, 1, on_tick, &tick);
    sd_event_loop(loop);
}

static void init() { sd_event_new(&loop); }
#else
static uv_loop_t *loop;
enum { ONCE, REPEATED, ASYNC, FS, WORK, KINDS };

static void fire(Actor *a)
{
    bool again = act(a);

    if (again && a->kind != REPEATED)
        arm(a);
}

static void on_timer(uv_timer_t *t) { fire((Actor *)t->data); }
static void on_async(uv_async_t *t) { fire((Actor *)t->data); }
static void on_work(uv_work_t *t, int) { fire((Actor *)t->data); }
static void do_work(uv_work_t *) {}

static void on_fs(uv_fs_t *t)
{
    uv_fs_req_cleanup(t);
    fire((Actor *)t->data);
}

static void open_it(Actor *a)
{
    a->kind = (int)dice(KINDS);
    if (a->kind <= REPEATED)
        uv_timer_init(loop, &a->h.timer);
    if (a->kind == ASYNC)
        uv_async_init(loop, &a->h.async, on_async);
    ((uv_handle_t *)&a->h)->data = a; /* of requests, too: it comes first */
}

static void arm(Actor *a)
{
    int r = a->kind <= REPEATED ? uv_timer_start(&a->h.timer, on_timer, 1 + dice(3), a->kind == REPEATED ? 2 : 0)
            : a->kind == ASYNC  ? uv_async_send(&a->h.async)
            : a->kind == FS     ? uv_fs_stat(loop, &a->h.fs, "/", on_fs)
                                : uv_queue_work(loop, &a->h.work, do_work, on_work);

    if (r)
        bad("libuv: %s", uv_strerror(r));
}

static void disarm(Actor *a)
{
    uv_timer_stop(&a->h.timer);
}

static bool may_be_stopped(const Actor *a) { return a->kind <= REPEATED; }
static bool may_be_closed(const Actor *a) { return a->kind <= ASYNC; }

static void close_it(Actor *a)
{
    uv_close((uv_handle_t *)&a->h, [](uv_handle_t *h) { replace((Actor *)h->data); });
}

static void quit() { uv_stop(loop); }

static void run(std::function<bool()> tick)
{
    static uv_timer_t t;

    uv_timer_init(loop, &t);
    t.data = &tick;
    uv_timer_start(&t, [](uv_timer_t *one) { (*(std::function<bool()> *)one->data)(); }, 1, 1);
    uv_run(loop, UV_RUN_DEFAULT);
}

static void init() { loop = uv_default_loop(); }
#endif

/* ---- the whole ----------------------------------------------------------------------------------------- */

struct Counted {
    size_t descriptors = 0, mappings = 0, memory = 0;
};

static Counted count()
{
    Counted c;
    DIR *dir = opendir("/proc/self/fd");
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];

    while (readdir(dir))
        c.descriptors++;
    closedir(dir);
    dir = opendir("/proc/self/task");
    while (fgets(line, sizeof(line), maps))
        c.mappings++;
    while (readdir(dir)) /* the executor may have needed more of them: a stack and its guard each */
        c.mappings -= 2;
    closedir(dir);
    for (const auto *a : actors) /* not all have some of their own */
        c.descriptors -= a->p[0] >= 0 ? 2 : 0;
    fclose(maps);
    c.memory = mallinfo2().uordblks;
    return c;
}

static void prepare()
{
    char path[] = "/tmp/unblock-stress-XXXXXX";
    socklen_t len = sizeof(listener);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    file_fd = mkostemp(path, O_CLOEXEC);
    lock_fd = open(path, O_RDWR | O_CLOEXEC);
    held_fd = open(path, O_RDWR | O_CLOEXEC);
    unlink(path);
    listener.sin_family = AF_INET;
    listener.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (pipe2(shared_pipe, O_CLOEXEC) || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sender) ||
        bind(fd, (sockaddr *)&listener, len) || listen(fd, 64) || getsockname(fd, (sockaddr *)&listener, &len))
        abort();
    std::thread(serve_later).detach();
    std::thread(drain).detach();
    std::thread([fd] {
        for (int one; (one = accept4(fd, nullptr, nullptr, SOCK_CLOEXEC)) >= 0;)
            close(one);
    }).detach();
}

int main(int argc, char **argv)
{
    size_t count_of_actors = argc > 3 ? (size_t)atoi(argv[3]) : 24;
    Counted early, late;
    int turns = 0, rest = 0, target;

    wanted = argc > 1 ? atoi(argv[1]) : 1000;
    seed = argc > 2 ? (unsigned)atoi(argv[2]) : 1;
    target = wanted / 2;
    mallopt(M_ARENA_MAX, 2);
    prepare();
    init();
    run([&] {
        if (++turns <= WARM) { /* until the loop is known to be one */
            if (turns == WARM) {
                for (size_t i = 0; i < count_of_actors; i++)
                    actors.push_back(new_actor());
                for (auto *a : actors)
                    arm(a);
            }
            return true;
        }
        if (ended >= target)
            resting = true;
        if (!resting) { /* who was stopped goes on some time */
            for (auto *a : actors) {
                if (a->halted && !a->inside && !a->gone && dice(4) == 0) {
                    a->halted = false;
                    arm(a);
                }
            }
            return true;
        }
        for (auto *a : actors) {
            if (!a->inside && !a->gone && !a->halted && may_be_stopped(a)) {
                disarm(a);
                a->halted = true;
            }
        }
        rest = inside() || begun != ended ? 0 : rest + 1;
        if (rest < 100)
            return true;
        if (target < wanted) { /* half of it: the rest must not need more of anything */
            early = count();
            target = wanted;
            resting = false;
            rest = 0;
            for (auto *a : actors) {
                if (a->halted || !may_be_stopped(a)) {
                    a->halted = false;
                    arm(a);
                }
            }
            return true;
        }
        late = count();
        quit();
        return true;
    });
    if (begun != ended)
        bad("%d callbacks begun, %d ended", begun, ended);
    if (shared_sent != shared_asked)
        bad("%llu sent, %llu asked for", (unsigned long long)shared_sent, (unsigned long long)shared_asked);
    if (late.descriptors != early.descriptors)
        bad("descriptors: %zu, later %zu", early.descriptors, late.descriptors);
#ifdef SANITIZED
    const size_t more = 64; /* a thread that is late has more of them */
#else
    const size_t more = 6;
#endif
    if (late.mappings > early.mappings + more)
        bad("mappings: %zu, later %zu", early.mappings, late.mappings);
    if (late.memory > early.memory + (64 << 10))
        bad("memory: %zu, later %zu", early.memory, late.memory);
    printf("done %d callbacks, %d closed, %d stopped, %d forks, %d exceptions; descriptors %zu %zu, mappings %zu %zu, "
           "memory %zu %zu\n",
           ended, killed, stopped, forks, thrown, early.descriptors, late.descriptors, early.mappings, late.mappings,
           early.memory, late.memory);
    fflush(stdout);
    _exit(bad_ones != 0); /* threads may be anywhere */
}
