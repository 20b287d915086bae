#include "write_all.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#define PATIENCE_MS 1000

static int write_loop(int fd, const char *bytes, size_t len, size_t *done)
{
    while (*done < len) {
        ssize_t n = write(fd, bytes + *done, len - *done);

        if (n > 0) {
            *done += (size_t)n;
        } else if (n == 0) {
            return -EIO;
        } else if (errno == EAGAIN) {
            struct pollfd p = {.fd = fd, .events = POLLOUT};

            if (poll(&p, 1, PATIENCE_MS) == 0)
                return -EAGAIN;
        } else if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}

/*
 * A disposition is a property of the process and inherited by the child that
 * we run, so SIGPIPE is not ignored but blocked here, and the one that our own
 * write raised is taken back.
 */
static int write_no_sigpipe(int fd, const char *bytes, size_t len, size_t *done)
{
    const struct timespec now = {0};
    sigset_t pipe_set, old, pending;
    bool was_pending;
    int r;

    sigemptyset(&pipe_set);
    sigaddset(&pipe_set, SIGPIPE);
    sigpending(&pending);
    was_pending = sigismember(&pending, SIGPIPE) == 1;
    if (pthread_sigmask(SIG_BLOCK, &pipe_set, &old))
        return write_loop(fd, bytes, len, done);
    r = write_loop(fd, bytes, len, done);
    if (r == -EPIPE && !was_pending)
        while (sigtimedwait(&pipe_set, NULL, &now) < 0 && errno == EINTR)
            ;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return r;
}

int ub_write_all(int fd, const void *bytes, size_t len, bool regular, size_t *ret_written)
{
    size_t done = 0;
    int r = regular ? write_loop(fd, bytes, len, &done) : write_no_sigpipe(fd, bytes, len, &done);

    if (ret_written)
        *ret_written = done;
    return r;
}
