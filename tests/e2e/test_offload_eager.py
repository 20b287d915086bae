"""Offload, eager: calls that are sure to block leave a libuv loop.

Each program says the same without unblock, and with it; and in the latter case calls were moved (or, where a rule keeps
them, were not). Checked that it can fail: its case does with each of these rules taken out: the queue of a handle, what
is put off being dropped when its handle is stopped, the held close, our handles hidden from uv_walk, the drain of uv_run, the swap of
exceptions, errno's seed, the signal raised again, the rest of a send at exit, EINTR. Not so, as something else catches it: the
hold on the loop (the drain does), the order of reads on a pipe (the kernel keeps it), a fiber that was left (it leaks),
the wait of a close for the read on its descriptor (the words are the same in either order).
"""

import json
import os
import subprocess

import pytest

import helpers
import oracle
from offload_hosts import slow  # noqa: F401

PROGRAM = r"""
#include <uv.h>
#include <algorithm>
#include <cerrno>
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <exception>
#include <stdexcept>
#include <string>
#include <fcntl.h>
#include <netdb.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *mode;
static uv_loop_t *loop;
static uv_timer_t warm, a, b, c, *heap;
static int n, inside, most, order_n;
static std::string said;
static int p[2], number;
static pthread_t main_thread;
static void say(const std::string &s) { said += s + " "; }
static int rest(int ms) { timespec ts = {ms / 1000, ms % 1000 * 1000000L}; return nanosleep(&ts, nullptr); }
static void begin();
static void on_warm(uv_timer_t *t) { if (++n == 15) { uv_timer_stop(t); begin(); } }
static void start(uv_timer_t *t, uv_timer_cb cb, int ms, int repeat) { uv_timer_init(loop, t); uv_timer_start(t, cb, ms, repeat); }

// ---- queue: a repeating timer that blocks longer than its period is never inside itself, and fires once for all it missed
static int fired;
static void on_slow(uv_timer_t *t)
{
    if (++inside > most) most = inside;
    rest(80);
    inside--;
    if (++fired == 4) { uv_timer_stop(t); say("fired 4 most " + std::to_string(most)); }
}
// ---- stopped: what another callback has stopped meanwhile does not fire again
static void on_stopped(uv_timer_t *t) { fired++; rest(250); }
static void on_stopper(uv_timer_t *t) { uv_timer_stop(&a); }
static void on_tell(uv_timer_t *t) { say("fired " + std::to_string(fired)); }
// ---- close: the close callback comes after the callback that uses the handle
static void on_closed(uv_handle_t *h) { say("closed"); memset((void *)h, 0xee, sizeof(uv_timer_t)); free(h); }
static void on_use(uv_timer_t *t)
{
    for (int i = 0; i < 3; i++) rest(60);
    say(t->data == (void *)42 ? "used" : "GONE");
}
static void on_closer(uv_timer_t *t) { if (!uv_is_closing((uv_handle_t *)heap)) uv_close((uv_handle_t *)heap, on_closed); }
// ---- self: a callback that closes its own handle and goes on
static void on_self(uv_timer_t *t)
{
    uv_close((uv_handle_t *)t, on_closed);
    rest(100);
    say(t->data == (void *)42 ? "used" : "GONE");
}
// ---- alive: nothing else keeps the loop; afterwards it can be closed, and nobody sees handles of ours
static void count(uv_handle_t *h, void *to) { ++*(int *)to; }
static void on_last(uv_timer_t *t) { rest(150); int handles = 0; uv_walk(loop, count, &handles); say("last " + std::to_string(handles)); }
// ---- stop: uv_run returns when what runs is over
static void on_long(uv_timer_t *t) { rest(200); say("over"); }
static void on_stop(uv_timer_t *t) { uv_stop(loop); }
// ---- catch: two callbacks in their catch blocks
static void on_catch(uv_timer_t *t)
{
    try { throw std::runtime_error(t == &a ? "A" : "B"); }
    catch (const std::exception &) {
        rest(t == &a ? 100 : 150);
        try { throw; } catch (const std::exception &e) { say(e.what()); }
    }
}
// ---- throw: out of the loop, after it was left
static void on_throw(uv_timer_t *t) { rest(80); throw std::logic_error("thrown"); }
// ---- jump
static jmp_buf out;
static void on_jump(uv_timer_t *t) { rest(80); longjmp(out, 1); }
// ---- fork, while another callback is suspended: the child is alone
static void on_fork(uv_timer_t *t)
{
    pid_t pid = fork();
    int status = 0;
    if (pid == 0) { rest(20); _exit(said.empty() ? 5 : 6); }
    while (waitpid(pid, &status, 0) < 0) ;
    say("child " + std::to_string(WEXITSTATUS(status) >= 5));
}
// ---- reads: of one pipe, in the order in which they were asked for
static char buf[4][8];
static void on_read(uv_timer_t *t)
{
    int i = order_n++;
    ssize_t r = read(p[0], buf[i], 2);
    say(std::to_string(i) + ":" + std::string(buf[i], r > 0 ? r : 0));
}
static void *feeder(void *) { for (const char *s = "aabbcc"; *s; s += 2) { usleep(100000); if (write(p[1], s, 2) != 2) abort(); } return nullptr; }
// ---- closefd: a descriptor is closed only when the read that waits for it is over
static void on_closefd(uv_timer_t *t) { int r = close(p[0]); say("close " + std::to_string(r)); }
// ---- dup2 and its kin: a number gets another meaning only when the reads that were asked for are over, the one that waits
// behind the other included
static void on_read_number(uv_timer_t *t)
{
    int i = order_n++;
    ssize_t r = read(number, buf[i], 2);
    say(std::to_string(i) + ":" + std::string(buf[i], r > 0 ? r : 0));
}
static void on_replace(uv_timer_t *t)
{
    char path[] = "/tmp/unblock-other-XXXXXX";
    int other = mkstemp(path), r = -1;
    unlink(path);
    if (write(other, "ZZZZ", 4) != 4 || lseek(other, 0, SEEK_SET)) abort();
    if (!strcmp(mode, "dup2")) r = dup2(other, number);
    if (!strcmp(mode, "dup3")) r = dup3(other, number, O_CLOEXEC);
    if (!strcmp(mode, "close_range")) { close_range(number, number, 0); r = fcntl(other, F_DUPFD, number); }
    if (!strcmp(mode, "closefrom")) { closefrom(number); r = fcntl(other, F_DUPFD, number); }
    say("replaced " + std::to_string(r == number));
}
// ---- unshared: the thread's folder is its own from now on; what another thread opened would be another file
static void on_sync(uv_timer_t *t)
{
    char path[] = "/tmp/unblock-sync-XXXXXX";
    int fd = mkstemp(path);
    if (fsync(fd)) abort();
    unlink(path);
}
static void on_unshare(uv_timer_t *t) { if (unshare(strcmp(mode, "unshared") ? CLONE_NEWNS : CLONE_FS)) abort(); on_read(t); }
// ---- network: what makes sockets would make them in another namespace
static void on_network(uv_timer_t *t)
{
    addrinfo *list = nullptr;
    if (unshare(CLONE_NEWNET)) abort();
    int r = getaddrinfo("localhost", "80", nullptr, &list);
    say("found " + std::to_string(r) + std::to_string(list != nullptr));
    if (list) freeaddrinfo(list);
}
// ---- restart: a sleep is cut short by any handler, SA_RESTART or not
static void *kicker(void *) { usleep(60000); pthread_kill(main_thread, SIGUSR2); return nullptr; }
static void on_cut(uv_timer_t *t) { int r = rest(300); say("cut " + std::to_string(r) + " " + std::to_string(errno == EINTR)); }
// ---- installed: a handler that is installed between two calls, the first of which has moved
static void on_alarm(int);
static void *feed_and_kick(void *)
{
    usleep(3000); if (write(p[1], "a", 1) != 1) abort();
    usleep(100000); pthread_kill(main_thread, SIGUSR2);
    usleep(300000); if (write(p[1], "b", 1) != 1) abort();
    return nullptr;
}
static void on_installed(uv_timer_t *t)
{
    pthread_t helper; struct sigaction act = {}; char c;
    pthread_create(&helper, nullptr, feed_and_kick, nullptr);
    int64_t begun = uv_hrtime();
    if (read(p[0], &c, 1) != 1) abort();
    act.sa_handler = on_alarm; sigaction(SIGUSR2, &act, nullptr);
    fprintf(stderr, "between_us %d\n", (int)((uv_hrtime() - begun) / 1000));
    ssize_t r = read(p[0], &c, 1);
    say("installed " + std::to_string(r) + " " + std::to_string(errno == EINTR));
}
// ---- armed: an alarm whose handler leaves the call; just before, a call was moved
static sigjmp_buf way_out;
static void on_way_out(int) { siglongjmp(way_out, 1); }
static void on_armed(uv_timer_t *t)
{
    static int way, worst; static int64_t begun;
    char path[] = "/tmp/unblock-armed-XXXXXX", c;
    static int fd; fd = mkstemp(path); unlink(path);
    for (way = 0; way < 3; way++) {
        begun = uv_hrtime();
        if (fsync(fd)) abort();
        if (sigsetjmp(way_out, 1) == 0) {
            itimerval it = {{0, 0}, {0, 60000}};
            if (way == 0) ualarm(60000, 0); else if (way == 1) setitimer(ITIMER_REAL, &it, nullptr); else alarm(1);
            worst = std::max(worst, (int)((uv_hrtime() - begun) / 1000));
            read(p[0], &c, 1);
            say("READ");
        } else
            say("out");
    }
    close(fd);
    fprintf(stderr, "between_us %d\n", worst);
}
// ---- records: a moved fsync leaves the process's record locks on the file alone
static void on_records(uv_timer_t *t)
{
    char path[] = "/tmp/unblock-records-XXXXXX";
    int fd = mkstemp(path), status = 0;
    struct flock lock = {};
    lock.l_type = F_WRLCK; lock.l_whence = SEEK_SET;
    if (fcntl(fd, F_SETLK, &lock)) abort();
    int r = fsync(fd);
    pid_t pid = fork();
    if (pid == 0) { _exit(fcntl(fd, F_SETLK, &lock) == 0); }
    while (waitpid(pid, &status, 0) < 0) ;
    say("records " + std::to_string(r) + std::to_string(WEXITSTATUS(status)));
    unlink(path);
}
// ---- reuse: another thread closes the number, and opens a file under it, while a read waits behind another one
static void *reuser(void *)
{
    usleep(50000);
    char path[] = "/tmp/unblock-other-XXXXXX";
    int other = mkstemp(path);
    unlink(path);
    if (write(other, "ZZZZ", 4) != 4 || lseek(other, 0, SEEK_SET)) abort();
    syscall(SYS_dup2, other, number);
    return feeder(nullptr);
}
// ---- eof: a child that is forked meanwhile holds none of the pipe's ends for us
static pid_t holder;
static void on_full(uv_timer_t *t)
{
    static char much[1 << 18];
    say("wrote " + std::to_string(write(p[1], much, sizeof(much))));
    close(p[1]);
}
static void on_fork_holder(uv_timer_t *t) { holder = fork(); if (holder == 0) { close(p[1]); close(p[0]); usleep(1500000); _exit(0); } }
static void *drainer(void *)
{
    static char some[1 << 16];
    usleep(150000);
    while (read(p[0], some, sizeof(some)) > 0) ;
    said += waitpid(holder, nullptr, WNOHANG) == 0 ? "end " : "LATE ";
    return nullptr;
}
// ---- semaphore: what one callback gives after a sleep the next one waits for
static sem_t sem;
static void on_give(uv_timer_t *t) { rest(120); sem_post(&sem); say("gave"); }
static void on_take(uv_timer_t *t) { int r = sem_wait(&sem); say("took " + std::to_string(r)); }
// ---- own: a number that the program never had is not its to close
static void on_close_all(uv_timer_t *t) { int n = 0; for (int fd = 100; fd < 1100; fd++) n += close(fd) == 0; say(n == 0 ? "none" : "SOME"); }
// ---- sigpipe: where the call was made, and its errno
static volatile int pipes;
static void on_sigpipe(int) { pipes += pthread_equal(pthread_self(), main_thread) ? 1 : 100; }
static void on_write(uv_timer_t *t)
{
    static char much[1 << 16];
    ssize_t r;
    do r = write(p[1], much, sizeof(much)); while (r > 0); // fills the pipe, then waits until its reader goes
    say("write " + std::to_string(r) + " " + std::to_string(errno == EPIPE) + " " + std::to_string(pipes));
}
static void *reader_goes(void *) { usleep(150000); close(p[0]); return nullptr; }
// ---- alarm: a program that wants its sleep interrupted
static void on_alarm(int) {}
static void on_sleep(uv_timer_t *t)
{
    itimerval it = {{0, 0}, {0, 100000}};
    setitimer(ITIMER_REAL, &it, nullptr);
    int r = rest(2000);
    say("sleep " + std::to_string(r) + " " + std::to_string(errno == EINTR));
}
// ---- lost: the program closes descriptors that are not its own, and opens files
static int files[200];
static void on_lose(uv_timer_t *t)
{
    for (int fd = 100; fd < 1100; fd++) close(fd);
    for (int i = 0; i < 200; i++) { char path[] = "/tmp/unblock-lost-XXXXXX"; int fd = mkstemp(path); unlink(path); files[i] = fcntl(fd, F_DUPFD, 880 + i); close(fd); }
}
static void on_lost(uv_timer_t *t)
{
    rest(300);
    off_t bytes = 0;
    for (int i = 0; i < 200; i++) bytes += lseek(files[i], 0, SEEK_END);
    say("lost " + std::to_string((long)bytes));
}
// ---- big: what fitted onto the stack before
static void on_big(uv_timer_t *t)
{
    volatile char big[2 << 20];
    big[0] = 1; big[sizeof(big) - 1] = 2;
    rest(80);
    say("big " + std::to_string(big[0] + big[sizeof(big) - 1]));
}
// ---- errno: a call that succeeds leaves it; one that fails says why; a bad pointer is the call's own to judge
static void on_errno(uv_timer_t *t)
{
    errno = E2BIG; rest(80);
    std::string s = std::to_string(errno == E2BIG);
    s += std::to_string(read(9999, buf[0], 1) == -1 && errno == EBADF);
    s += std::to_string(nanosleep((timespec *)8, nullptr) == -1 && errno == EFAULT);
    s += std::to_string(waitpid(999999, nullptr, 0) == -1 && errno == ECHILD);
    timespec bad = {0, 1000000000}; s += std::to_string(nanosleep(&bad, nullptr) == -1 && errno == EINVAL);
    say(s);
}
// ---- async and work and fs
static uv_async_t async_;
static uv_work_t work;
static uv_fs_t fs;
static void on_async(uv_async_t *h) { if (++inside > most) most = inside; rest(60); inside--; if (++fired == 2) { say("async " + std::to_string(most)); uv_close((uv_handle_t *)h, nullptr); } }
static void on_send(uv_timer_t *t) { uv_async_send(&async_); }
static void do_work(uv_work_t *w) {}
static void on_work(uv_work_t *w, int status) { rest(80); say("work " + std::to_string(status)); }
static void on_fs(uv_fs_t *f) { rest(120); say("fs " + std::to_string(f->result >= 0)); uv_fs_req_cleanup(f); }
// ---- many
static int left_ = 2000;
static long total;
struct One { uv_timer_t t; int i; char mark[64]; };
static void on_one(uv_timer_t *t)
{
    One *o = (One *)t;
    char mark[64];
    snprintf(mark, sizeof(mark), "%d", o->i);
    rest(50 + o->i % 7);
    if (strcmp(mark, o->mark)) { say("WRONG"); abort(); }
    total += o->i;
    if (--left_ == 0) say("total " + std::to_string(total));
    uv_close((uv_handle_t *)t, [](uv_handle_t *h) { free(h); });
}

// ---- exit: what was being sent is sent
static int pair_[2];
static void on_send_much(uv_timer_t *t) { char *much = (char *)calloc(1, 1 << 20); send(pair_[0], much, 1 << 20, 0); free(much); }
static void on_exit_(uv_timer_t *t) { exit(0); }
static void fork_reader()
{
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair_)) abort();
    if (fork() == 0) {
        long all = 0, r; static char big[1 << 16];
        close(pair_[0]);
        usleep(250000);
        while ((r = read(pair_[1], big, sizeof(big))) > 0) all += r;
        printf("got %ld\n", all); fflush(stdout); _exit(0);
    }
    close(pair_[1]);
}
static bool is(const char *m) { return !strcmp(mode, m); }
static pthread_t drain;
static void begin()
{
    pthread_t helper;
    if (is("queue")) start(&a, on_slow, 1, 20);
    if (is("stopped")) { start(&a, on_stopped, 1, 30); start(&b, on_stopper, 60, 0); start(&c, on_tell, 550, 0); }
    if (is("close")) { heap = (uv_timer_t *)malloc(sizeof(*heap)); heap->data = (void *)42; start(heap, on_use, 1, 0); heap->data = (void *)42; start(&b, on_closer, 30, 0); }
    if (is("self")) { heap = (uv_timer_t *)malloc(sizeof(*heap)); start(heap, on_self, 1, 0); heap->data = (void *)42; }
    if (is("alive")) start(&a, on_last, 1, 0);
    if (is("stop")) { start(&a, on_long, 1, 0); start(&b, on_stop, 40, 0); }
    if (is("catch")) { start(&a, on_catch, 1, 0); start(&b, on_catch, 2, 0); }
    if (is("throw")) start(&a, on_throw, 1, 0);
    if (is("jump")) start(&a, on_jump, 1, 0);
    if (is("fork")) { start(&a, on_long, 1, 0); start(&b, on_fork, 40, 0); }
    if (is("reads")) { pthread_create(&helper, nullptr, feeder, nullptr); start(&a, on_read, 1, 0); start(&b, on_read, 2, 0); start(&c, on_read, 3, 0); }
    if (is("dup2") || is("dup3") || is("close_range") || is("closefrom")) {
        number = fcntl(p[0], F_DUPFD, 800);
        pthread_create(&helper, nullptr, feeder, nullptr);
        start(&a, on_read_number, 1, 0); start(&b, on_read_number, 2, 0); start(&c, on_replace, 40, 0);
    }
    if (is("network")) { start(&c, on_sync, 1, 0); start(&a, on_network, 100, 0); }
    if (is("unshared") || is("mounts")) { pthread_create(&helper, nullptr, feeder, nullptr); start(&c, on_sync, 1, 0); start(&a, on_read, 2, 0); start(&b, on_unshare, 130, 0); }
    if (is("faults")) { struct sigaction sa = {}; sa.sa_handler = on_alarm; sigaction(SIGSEGV, &sa, nullptr); start(&a, on_last, 1, 0); }
    if (is("restart")) { signal(SIGUSR2, on_alarm); pthread_create(&helper, nullptr, kicker, nullptr); start(&a, on_cut, 1, 0); }
    if (is("installed")) start(&a, on_installed, 1, 0);
    if (is("armed")) { signal(SIGALRM, on_way_out); start(&a, on_armed, 1, 0); }
    if (is("records")) start(&a, on_records, 1, 0);
    if (is("reuse")) { number = fcntl(p[0], F_DUPFD, 800); pthread_create(&helper, nullptr, reuser, nullptr); start(&a, on_read_number, 1, 0); start(&b, on_read_number, 2, 0); }
    if (is("eof")) { pthread_create(&drain, nullptr, drainer, nullptr); start(&a, on_full, 1, 0); start(&b, on_fork_holder, 40, 0); }
    if (is("semaphore")) { sem_init(&sem, 0, 0); start(&a, on_give, 1, 0); start(&b, on_take, 2, 0); }
    if (is("own")) { pthread_create(&helper, nullptr, feeder, nullptr); start(&a, on_read, 1, 0); start(&b, on_close_all, 40, 0); }
    if (is("closefd")) { pthread_create(&helper, nullptr, feeder, nullptr); start(&a, on_read, 1, 0); start(&b, on_closefd, 30, 0); }
    if (is("sigpipe")) { signal(SIGPIPE, on_sigpipe); pthread_create(&helper, nullptr, reader_goes, nullptr); start(&a, on_write, 1, 0); }
    if (is("alarm")) { signal(SIGALRM, on_alarm); start(&a, on_sleep, 1, 0); }
    if (is("handler")) { struct sigaction act = {}; act.sa_handler = on_alarm; sigaction(SIGUSR2, &act, nullptr); start(&a, on_long, 1, 0); }
    if (is("lost")) { start(&a, on_lost, 1, 0); start(&b, on_lose, 40, 0); }
    if (is("big")) start(&a, on_big, 1, 0);
    if (is("errno")) start(&a, on_errno, 1, 0);
    if (is("async")) { uv_async_init(loop, &async_, on_async); uv_async_send(&async_); start(&b, on_send, 30, 0); }
    if (is("work")) { uv_queue_work(loop, &work, do_work, on_work); uv_fs_stat(loop, &fs, "/", on_fs); }
    if (is("exit")) { fork_reader(); start(&a, on_send_much, 1, 0); start(&b, on_exit_, 60, 0); }
    if (is("many")) for (int i = 0; i < left_; i++) { One *o = (One *)calloc(1, sizeof(*o)); o->i = i; snprintf(o->mark, sizeof(o->mark), "%d", i); start(&o->t, on_one, 1 + i % 400, 0); }
}
int main(int, char **argv)
{
    mode = argv[1];
    main_thread = pthread_self();
    loop = uv_default_loop();
    if (pipe(p)) abort();
    start(&warm, on_warm, 2, 2);
    try {
        if (is("once")) { // when uv_run returns, callbacks are over, in every mode
            start(&a, on_long, 60, 0);
            while (n < 15) uv_run(loop, UV_RUN_ONCE);
            for (std::string before = said; said == before; ) { uv_run(loop, UV_RUN_ONCE); if (uv_is_active((uv_handle_t *)&a)) continue; say(said == before ? "NOT OVER" : "in time"); }
        } else if (setjmp(out) == 0) uv_run(loop, UV_RUN_DEFAULT);
        else say("jumped");
    } catch (const std::logic_error &e) { say(e.what()); }
    if (is("throw") || is("jump")) { start(&a, on_long, 1, 0); uv_run(loop, UV_RUN_DEFAULT); } // it still works
    if (is("alive")) {
        uv_close((uv_handle_t *)&warm, nullptr); uv_close((uv_handle_t *)&a, nullptr); uv_run(loop, UV_RUN_DEFAULT);
        say("closed " + std::to_string(uv_loop_close(loop)));
    }
    if (is("eof")) pthread_join(drain, nullptr);
    say(std::to_string(std::uncaught_exceptions()));
    std::puts(said.c_str());
}
"""

MOVES = {"queue": 4, "stopped": 1, "close": 3, "self": 1, "alive": 1, "stop": 1, "catch": 2, "throw": 2, "jump": 2, "fork": 1,
         "reads": 3, "dup2": 2, "dup3": 2, "close_range": 2, "closefrom": 2, "unshared": 2, "mounts": 2, "network": 1, "installed": 1, "armed": 3, "closefd": 1, "sigpipe": 1, "lost": 1, "big": 1, "errno": 1, "async": 2, "work": 2, "many": 2000, "exit": 0, "once": 1,
         "faults": 1, "records": 1, "reuse": 2, "eof": 1, "semaphore": 2, "own": 1}
STAYS = ["alarm", "handler", "restart"]


@pytest.fixture(scope="module")
def hazards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hazards")
    (folder / "hazards.cc").write_text(PROGRAM)
    built = subprocess.run([*helpers.COMPILER, "-std=c++17", "-O1", "-g", folder / "hazards.cc", "-o", folder / "hazards", "-luv",
                            "-lpthread"], capture_output=True, text=True, check=False)
    if "uv.h: No such file" in built.stderr:
        pytest.skip("libuv's headers are not installed")
    assert built.returncode == 0, built.stderr
    return folder / "hazards"


def eager(tmp_path, *command, threshold="40ms", timeout=60, **env):
    with oracle.Sentinel() as sentinel:
        done, recording = helpers.record(tmp_path, *command, threshold=threshold, options=("--offload=eager",),
                                         timeout=timeout, env=helpers.clean_environment(**env))
    return done, recording, sentinel


class Alone:
    """The program without unblock, at the same time: neither knows of the other, and they mostly sleep."""

    def __init__(self, command, **env):
        self.process = subprocess.Popen(command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        if failure[0]:
            self.process.kill()
        self.stdout, self.stderr = self.process.communicate(timeout=60)
        self.returncode = self.process.returncode


# What callbacks run in between is what offload changes: there the order of words may differ, the words may not.
FREE = {"semaphore", "own", "eof", "dup2", "dup3", "close_range", "closefrom", "stop", "fork", "work", "closefd"}
# Alone it would take two minutes; the other: a callback in between has stopped the timer before it fired again.
EXPECTED = {"many": f"total {sum(range(2000))} 0 \n", "stopped": "fired 1 0 \n", "reuse": "0:aa 1:bb 0 \n", "eof": "wrote 262144 end 0 \n"}


# The thread becomes another than those of the pool: what comes after that stays.
AS_ONE = {"unshared", "mounts", "network"}


@pytest.mark.parametrize("mode", [*MOVES, *STAYS])
def test_the_same_as_without(tmp_path, hazards, mode):
    if mode in AS_ONE - {"unshared"} and os.getuid() != 0:
        pytest.skip("a namespace needs root")
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        with Alone([hazards, mode] if mode not in EXPECTED else ["printf", "%s", EXPECTED[mode]]) as alone:
            done, recording, _ = eager(folder, hazards, mode, timeout=90)
        # After 10 ms what handlers and alarms there are is asked anew: then it is not the hooks that are tested.
        if mode not in ("installed", "armed") or int(done.stderr.split("between_us ")[1].split()[0]) < 8000:
            break
    assert alone.returncode == 0, alone.stderr
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    if mode in FREE:
        assert sorted(done.stdout.split()) == sorted(alone.stdout.split())
    else:
        assert done.stdout == alone.stdout
    moved = recording.end["offload"]["moved"]
    if mode in STAYS:
        assert moved == 0
    elif mode in AS_ONE:
        assert moved == MOVES[mode]  # the sync, which takes a thread, and the first read
    else:
        assert moved >= MOVES[mode], recording.end


CASES = {"nanosleep": 1, "unlocked": 1, "pipe_read": 1, "recv": 1, "send": 1, "flock": 1, "waitpid": 1, "sem_wait": 1,
         "fsync": 1, "connect": 1, "getaddrinfo": 1,
         "locked": 0, "rwlocked": 0, "handler": 0, "nested": 0, "context": 0, "prepare": 0, "close": 0}


@pytest.mark.parametrize("case", CASES)
def test_matrix(tmp_path, slow, case):
    """A ticker of 10 ms beside a callback that blocks for 300: results as without, the ticker goes on."""
    program = helpers.program("offload_uv")
    env = slow if case in ("fsync", "getaddrinfo") else {}
    with Alone([program, case, "300"], **env) as without:
        done, recording, sentinel = eager(tmp_path, program, case, 300, **env)
    assert done.returncode == 0, done.stderr
    alone = json.loads(without.stdout)
    truth = json.loads(done.stdout)
    assert (truth["result"], truth["errno"]) == (alone["result"], alone["errno"])
    assert truth["order"].replace("tick ", "") == alone["order"]
    if not CASES[case]:
        assert truth["inside"] == 0 and recording.end["offload"]["moved"] == 0
        return
    assert recording.end["offload"]["moved"] >= 1
    assert truth["inside"] >= 10
    if truth["max_gap_ms"] > 100:
        assert sum(b - a for a, b in sentinel.late) > 50_000_000, truth
    stalls = [s for s in recording.slow if s["duration_ns"] > 240_000_000
              and not sentinel.busy(s["start_ns"], s["start_ns"] + s["duration_ns"])]
    assert not stalls, stalls


def test_header_and_end(tmp_path, hazards):
    done, recording, _ = eager(tmp_path, hazards, "alive")
    assert recording.header["offload"] == "eager"
    assert recording.end["offload"]["saved_ns"] >= 140_000_000
    assert os.path.exists(recording.path) and done.returncode == 0


RUNTIME = r"""
#include <stdio.h>
#include <time.h>
#include <uv.h>
static char *top;
static int n, far;
#ifdef RUNTIME
void lua_newstate(void) {}
#endif
#ifdef PYTHON
void Py_Initialize(void) {}
int Py_IsInitialized(void) { return PYTHON; }
#endif
static void on_timer(uv_timer_t *t)
{
    char here;
    struct timespec ts = {0, 60000000};

    if (++n < 15) return;
    far += &here > top || top - &here > 1 << 20;
    nanosleep(&ts, NULL);
    if (n == 17) uv_stop(t->loop);
}
int main(void)
{
    char here;
    uv_timer_t t;

    top = &here;
    uv_timer_init(uv_default_loop(), &t);
    uv_timer_start(&t, on_timer, 5, 5);
    uv_run(uv_default_loop(), UV_RUN_DEFAULT);
    printf("%d\n", far);
    return 0;
}
"""


@pytest.mark.parametrize("flags,moves", [([], True), (["-DRUNTIME", "-rdynamic"], False), (["-DPYTHON=1", "-rdynamic"], False),
                                         (["-DPYTHON=0", "-rdynamic"], True), (["-fsanitize=address", "-static-libasan"], False)])
def test_an_interpreter_keeps_its_stack(tmp_path, flags, moves):
    """Where an interpreter is in the process callbacks run on the thread's own stack, and nothing moves; one of CPython's has to be
    started first. A sanitizer that is linked statically takes locks past our hooks."""
    (tmp_path / "runtime.c").write_text(RUNTIME)
    subprocess.run(["cc", "-g", "-w", tmp_path / "runtime.c", "-o", tmp_path / "runtime", "-luv", *flags], check=True)
    done, recording, _ = eager(tmp_path, tmp_path / "runtime")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == recording.end["offload"]["moved"] and (int(done.stdout) >= 2) == moves


def test_words(tmp_path, hazards):
    """Verdict and report: how many, from where."""
    done, recording, _ = eager(tmp_path, hazards, "close")
    lines = [line for line in recording.of("offload") if line["moved"]]
    assert len(lines) == 1 and lines[0]["moved"] == 3 and lines[0]["call"] == "nanosleep", recording.of("offload")
    assert lines[0]["caller"]["function"].startswith("rest") and lines[0]["callback"]["function"].startswith("on_use")
    assert 3 * 59_000_000 <= lines[0]["saved_ns"] and 59_000_000 <= lines[0]["longest_ns"] <= lines[0]["saved_ns"]
    assert lines[0]["wait_ns"] <= lines[0]["saved_ns"] - 3 * 59_000_000
    assert recording.end["offload"]["stack_bytes"] >= 4096
    for text in (done.stderr, helpers.unblock("report", recording.path).stdout):
        assert "offload eager: 3 calls moved, " in text
        assert "nanosleep in rest" in text and ": 3 moved, " in text
