#include "ready.h"

#include "../../common/calls.h"
#include "../../common/clock.h"
#include "../raw.h"
#include "fdkind.h"
#include "fds.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NO_WAIT   0x8          /* RWF_NOWAIT */
#define AT_A_TIME (256u << 10) /* of what is sent: the loop has other things to do */
#define POLL_MAX  64u
#define POLL_BITS 0x23df /* what poll and epoll call by the same numbers */

/* Flags under which a call without MSG_DONTWAIT differs from one with it in nothing but the wait. */
#define RECV_FLAGS (MSG_PEEK | MSG_TRUNC | MSG_NOSIGNAL | MSG_CMSG_CLOEXEC)
#define SEND_FLAGS (MSG_NOSIGNAL | MSG_MORE | MSG_DONTROUTE)

/* ---- attempts ------------------------------------------------------------------------------ */

static enum ub_attempt answer(struct ub_job *job, long r)
{
    job->result = r < 0 ? -1 : r;
    if (r < 0)
        job->error = (int)-r;
    return UB_ATTEMPT_OVER;
}

/* Of what says EAGAIN where it would wait. `error` is as before then: a call that succeeds leaves errno alone. */
static enum ub_attempt unless_again(struct ub_job *job, long r)
{
    if (r == -EOPNOTSUPP) /* this kernel does not know how not to wait there */
        return UB_ATTEMPT_THREAD;
    if (r != -EAGAIN && r != -EINTR)
        return answer(job, r);
    job->result = -1;
    return UB_ATTEMPT_NOT_YET;
}

static long read_vector(const uint64_t *w, const struct iovec *v, long count)
{
    return ub_raw6(SYS_preadv2, (long)w[0], (long)v, count, -1, -1, NO_WAIT);
}

/* By a way that does not wait. -errno; -EOPNOTSUPP: there is none. `socket`: it is one; that costs less. */
static inline __attribute__((always_inline)) long receive(uint32_t id, const uint64_t *w, bool socket)
{
    const struct iovec v = {(void *)w[1], w[2]};
    long flags = MSG_DONTWAIT;

    switch (id) {
    case UB_CALL_ID_recv:
    case UB_CALL_ID_recvfrom:
        return ub_raw6(SYS_recvfrom, (long)w[0], (long)w[1], (long)w[2], (long)w[3] | flags, (long)w[4], (long)w[5]);
    case UB_CALL_ID___recv_chk: /* its third length is that of the buffer */
        return ub_raw6(SYS_recvfrom, (long)w[0], (long)w[1], (long)w[2], (long)w[4] | flags, 0, 0);
    case UB_CALL_ID_recvmsg:
        return ub_raw3(SYS_recvmsg, w[0], w[1], (int)w[2] | flags);
    case UB_CALL_ID_readv:
        return read_vector(w, (const struct iovec *)w[1], (int)w[2]);
    default:
        return socket ? ub_raw6(SYS_recvfrom, (long)w[0], (long)w[1], (long)w[2], flags, 0, 0) : read_vector(w, &v, 1);
    }
}

static enum ub_attempt receive_now(struct ub_job *job)
{
    return unless_again(job, receive(job->id, job->word, false));
}

static long poll_now(uint64_t fds, uint64_t count)
{
    const struct timespec none = {0, 0};
    struct timespec at_once;
    long r;

    do { /* a signal that is just coming makes it say EINTR even to who would not wait */
        at_once = none;
        r = ub_raw6(SYS_ppoll, (long)fds, (long)count, (long)&at_once, 0, 0, 0);
    } while (r == -EINTR);
    return r;
}

/* Another process may take the connection first, and no flag says that this one is not to wait for the next. */
static enum ub_attempt accept_now(struct ub_job *job)
{
    struct pollfd p = {.fd = (int)job->word[0], .events = POLLIN};

    job->result = -1;
    return poll_now((uintptr_t)&p, 1) != 0 ? UB_ATTEMPT_THREAD : UB_ATTEMPT_NOT_YET;
}

static enum ub_attempt poll_all_now(struct ub_job *job)
{
    long r = poll_now(job->word[0], job->word[1]);

    if (r != 0)
        return answer(job, r);
    job->result = 0;
    return UB_ATTEMPT_NOT_YET;
}

/* Its tracer is told of a child's stops, too, which its pidfd is silent about. */
static enum ub_attempt wait_now(struct ub_job *job)
{
    struct pollfd p = {.fd = job->wait_fd, .events = POLLIN};
    bool ended = poll_now((uintptr_t)&p, 1) != 0; /* before the look: what ends in between is seen by that */
    long r = ub_raw4(SYS_wait4, (int)job->word[0], job->word[1], (int)job->word[2] | WNOHANG, 0);

    if (r != 0)
        return answer(job, r);
    job->result = -1;
    return ended ? UB_ATTEMPT_THREAD : UB_ATTEMPT_NOT_YET;
}

/* An integer; -1: it is no socket. */
static int option_of(int fd, int option)
{
    int value = -1;
    socklen_t len = sizeof(value);

    return ub_raw6(SYS_getsockopt, fd, SOL_SOCKET, option, (long)&value, (long)&len, 0) < 0 ? -1 : value;
}

/* What the program gets is what one call would have said: an error after a part has gone is the next call's. */
static enum ub_attempt send_now(struct ub_job *job)
{
    uint64_t *w = job->word, left = w[2] - w[4];
    long r = ub_raw6(SYS_sendto, (long)w[0], (long)(w[1] + w[4]), (long)(left < AT_A_TIME ? left : AT_A_TIME),
                     (long)w[3] | MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0);
    int error;

    if (r > 0) {
        w[4] += (uint64_t)r;
        job->vain = 0;
    }
    job->result = w[4] ? (int64_t)w[4] : -1;
    if (w[4] == w[2])
        return UB_ATTEMPT_OVER;
    if (r >= 0 || r == -EAGAIN || r == -EINTR)
        return UB_ATTEMPT_NOT_YET;
    if (w[4])
        return UB_ATTEMPT_OVER;
    /* Who waits in a call is told why it is broken, who begins one not always; and of a local one without a signal. */
    if (r == -EPIPE && (error = option_of((int)w[0], SO_ERROR)) > 0)
        return answer(job, -error);
    if (r == -EPIPE && !((int)w[3] & MSG_NOSIGNAL) && option_of((int)w[0], SO_DOMAIN) != AF_UNIX)
        job->signal = SIGPIPE;
    return answer(job, r);
}

int64_t ub_ready_send_rest(uint64_t fd, uint64_t buf, uint64_t n, uint64_t flags, uint64_t done, uint64_t f, uint64_t g,
                           uint64_t h)
{
    ssize_t r = sendto((int)fd, (const char *)buf + done, n - done, (int)flags | (done ? MSG_NOSIGNAL : 0), NULL, 0);

    if (r < 0)
        return done ? (int64_t)done : -1;
    return (int64_t)done + r;
}

/* ---- which calls --------------------------------------------------------------------------- */

/* Of a socket; 0: none, or it is no socket. */
static uint64_t limit_of(int fd, int option)
{
    struct timeval time = {0};
    socklen_t len = sizeof(time);

    if (ub_raw6(SYS_getsockopt, fd, SOL_SOCKET, option, (long)&time, (long)&len, 0) < 0)
        return 0;
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_usec * 1000u;
}

/* A socket may be told to wait for more than the first byte: only a call that waits does. */
static bool waits_for_more(int fd)
{
    return option_of(fd, SO_RCVLOWAT) > 1;
}

/* The program may ask for nothing: that waits for nothing, whatever the descriptor says. */
static bool has_room(const uint64_t *word)
{
    struct iovec v[16] = {0};
    size_t count = word[2] < UB_ARRAY_LEN(v) ? word[2] : UB_ARRAY_LEN(v), sum = 0;
    struct iovec local = {v, count * sizeof(*v)}, remote = {(void *)word[1], count * sizeof(*v)};

    if (ub_raw6(SYS_process_vm_readv, ub_raw0(SYS_getpid), (long)&local, 1, (long)&remote, 1, 0) !=
        (long)(count * sizeof(*v)))
        return false;
    for (size_t i = 0; i < count; i++)
        sum += v[i].iov_len;
    return sum > 0;
}

/* As far as the arguments say. */
static bool can_receive(uint32_t id, const uint64_t *w)
{
    switch (id) {
    case UB_CALL_ID_recv:
    case UB_CALL_ID_recvfrom:
        return w[2] && !((int)w[3] & ~RECV_FLAGS);
    case UB_CALL_ID___recv_chk:
        return w[2] && w[2] <= w[3] && !((int)w[4] & ~RECV_FLAGS);
    case UB_CALL_ID_recvmsg:
        return !((int)w[2] & ~RECV_FLAGS);
    case UB_CALL_ID_read:
    case UB_CALL_ID___read:
        return w[2] != 0;
    case UB_CALL_ID___read_chk:
        return w[2] && w[2] <= w[3];
    case UB_CALL_ID_readv:
        return has_room(w);
    default:
        return false;
    }
}

UB_HOT bool ub_ready_receive(uint32_t id, const uint64_t word[UB_POOL_WORDS], bool socket, int64_t *ret)
{
    long r = can_receive(id, word) ? receive(id, word, socket) : -EAGAIN;

    if (r == -ENOTSOCK) /* its number may be another's by now: the call itself says so, if it is so */
        ub_fdkind_forget((int)word[0]);
    if (r == -EAGAIN || r == -EINTR || r == -EOPNOTSUPP || r == -ENOTSOCK)
        return false;
    *ret = r < 0 ? -1 : r;
    if (r < 0)
        errno = (int)-r;
    return true;
}

static bool is_accept(uint32_t id)
{
    return id == UB_CALL_ID_accept || id == UB_CALL_ID_accept4;
}

static int prepare_receive(uint32_t id, struct ub_job *job, int fd)
{
    if (!is_accept(id) && !can_receive(id, job->word))
        return fd;
    job->id = id;
    job->attempt = is_accept(id) ? accept_now : receive_now;
    if (waits_for_more(fd))
        job->attempt = NULL;
    job->limit_ns = limit_of(fd, SO_RCVTIMEO);
    job->wait_fd = fd;
    job->wait_events = EPOLLIN;
    return fd;
}

/* Of a stream; `flags`: where write has none. */
static int prepare_send(struct ub_job *job, int fd, uint64_t flags)
{
    if (option_of(fd, SO_TYPE) != SOCK_STREAM || !job->word[2] || (int)flags & ~SEND_FLAGS)
        return fd;
    job->unsure = option_of(fd, SO_DOMAIN) == AF_UNIX; /* full, it does not tell that the other side reads no more */
    if (job->function != ub_ready_send_rest) {
        job->function = ub_ready_send_rest;
        job->word[3] = flags;
        job->word[4] = 0;
    }
    job->attempt = send_now;
    job->limit_ns = limit_of(fd, SO_SNDTIMEO);
    job->wait_fd = fd;
    job->wait_events = EPOLLOUT;
    return fd;
}

/* One child, and its end only. */
static int prepare_wait(struct ub_job *job)
{
    long fd = (int)job->word[0] > 0 && (int)job->word[2] == 0 ? ub_raw2(SYS_pidfd_open, (int)job->word[0], 0) : -1;

    job->wait_fd = ub_fds_adopt((int)fd);
    job->wait_events = EPOLLIN;
    job->attempt = job->wait_fd >= 0 ? wait_now : NULL;
    job->unsure = true;
    return job->wait_fd;
}

/* An epoll with all of them; -1. Each has its own, since one descriptor may be waited for by several. */
static int set_of(const struct pollfd *fds, uint64_t count)
{
    int set = ub_fds_adopt((int)ub_raw1(SYS_epoll_create1, EPOLL_CLOEXEC));

    for (uint64_t i = 0; set >= 0 && i < count; i++) {
        struct epoll_event e = {.events = (uint32_t)fds[i].events & POLL_BITS};

        if (fds[i].fd >= 0 && ub_raw4(SYS_epoll_ctl, set, EPOLL_CTL_ADD, fds[i].fd, &e) < 0) {
            ub_fds_close(set); /* the same one twice, or none that an epoll knows */
            set = -1;
        }
    }
    return set;
}

static int prepare_poll(struct ub_job *job)
{
    const struct pollfd *fds = (const struct pollfd *)job->word[0]; /* it has just been polled there */
    int timeout = (int)job->word[2];

    if (job->word[1] == 0 || job->word[1] > POLL_MAX)
        return -1;
    job->wait_fd = set_of(fds, job->word[1]);
    job->wait_events = EPOLLIN;
    job->limit_ns = timeout < 0 ? 0 : (uint64_t)timeout * 1000000u;
    job->attempt = job->wait_fd >= 0 ? poll_all_now : NULL;
    return job->wait_fd;
}

void ub_ready_make_way(struct ub_job *job, int *own_fd, unsigned first, unsigned last)
{
    int fresh, old = *own_fd;

    if (!job->watched || old < 0 || (unsigned)old < first || (unsigned)old > last ||
        (fresh = ub_fds_duplicate(old)) < 0)
        return;
    if (job->check)
        job->word[0] = (uint64_t)fresh;
    ub_inbox_move(job, fresh);
    ub_fds_close(old);
    *own_fd = fresh;
}

int ub_ready_prepare(uint32_t id, struct ub_job *job, int own_fd)
{
    if (id == UB_CALL_ID_waitpid || id == UB_CALL_ID___waitpid)
        return prepare_wait(job);
    if (id == UB_CALL_ID_poll || id == UB_CALL_ID___poll_chk)
        return prepare_poll(job);
    if (own_fd < 0 || ub_raw3(SYS_fcntl, own_fd, F_GETFL, 0) & O_NONBLOCK)
        return own_fd;
    switch (id) {
    case UB_CALL_ID_write:
    case UB_CALL_ID___write:
        return prepare_send(job, own_fd, 0);
    case UB_CALL_ID_send:
        return prepare_send(job, own_fd, job->word[3]);
    default:
        return prepare_receive(id, job, own_fd);
    }
}
