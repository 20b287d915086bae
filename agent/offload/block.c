#include "block.h"

#include "../process.h"
#include "../raw.h"
#include "suspend.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum what {
    OTHER,
    SLEEP,
    READS,
    WRITES,
    SENDS,
    FLOCK,
    FCNTL,
    WAITS,
    CLOSE,
};

/* clang-format off */
static const uint8_t what_of[UB_CALL_IDS] = {
#define ONE(what, name) [UB_CALL_ID_##name] = what,
    ONE(SLEEP, sleep) ONE(SLEEP, usleep) ONE(SLEEP, nanosleep) ONE(SLEEP, __nanosleep) ONE(SLEEP, clock_nanosleep)
    ONE(READS, read) ONE(READS, __read) ONE(READS, __read_chk) ONE(READS, readv)
    ONE(READS, recv) ONE(READS, __recv_chk) ONE(READS, recvfrom) ONE(READS, recvmsg)
    ONE(READS, accept) ONE(READS, accept4)
    ONE(WRITES, write) ONE(WRITES, __write) ONE(WRITES, writev)
    ONE(SENDS, send)
    ONE(FLOCK, flock)
    ONE(FCNTL, fcntl) ONE(FCNTL, fcntl64)
    ONE(WAITS, waitpid) ONE(WAITS, __waitpid)
    ONE(CLOSE, close) ONE(CLOSE, __close)
};
/* clang-format on */

void ub_block_look(uint32_t id, const uint64_t word[UB_POOL_WORDS], struct ub_block *ret)
{
    *ret = (struct ub_block){.fd = -1, .may_move = true};
    switch ((enum what)what_of[id]) {
    case OTHER:
        ret->may_move = false;
        return;
    case SLEEP:
    case WAITS:
        return;
    case READS:
        ret->direction = UB_DIRECTION_READ;
        break;
    case WRITES:
    case SENDS:
        ret->direction = UB_DIRECTION_WRITE;
        break;
    case FLOCK:
        ret->direction = UB_DIRECTION_LOCK;
        break;
    case FCNTL:
        if (word[1] != F_SETLKW && word[1] != F_OFD_SETLKW) {
            ret->may_move = false;
            return;
        }
        ret->direction = UB_DIRECTION_LOCK;
        break;
    case CLOSE:
        ret->may_move = false;
        ret->direction = UB_DIRECTION_ALL;
        break;
    }
    ret->fd = (int)word[0];
}

/* ---- sleeps -------------------------------------------------------------------------------- */

/* From now; a wall clock that is set meanwhile would move the end: the call's own affair. */
static uint64_t until(const uint64_t *word, const struct timespec *ts)
{
    uint64_t end = (uint64_t)ts->tv_sec * 1000000000u + (uint64_t)ts->tv_nsec, now = ub_clock_monotonic_ns();

    return (int)word[0] == CLOCK_MONOTONIC && end > now ? end - now : 0;
}

/* How long, in ns; 0: that cannot be told, or it is not for a timer of ours. Reads the program's own memory, as the
 * call would. */
static uint64_t sleep_ns(uint32_t id, const uint64_t *word)
{
    struct timespec time, *ts = NULL;
    struct iovec local = {&time, sizeof(time)}, remote = {NULL, sizeof(time)};

    switch (id) {
    case UB_CALL_ID_sleep:
        return (uint32_t)word[0] * 1000000000ull;
    case UB_CALL_ID_usleep:
        return (uint32_t)word[0] * 1000ull;
    case UB_CALL_ID_clock_nanosleep:
        if (((int)word[1] & ~TIMER_ABSTIME) || ((int)word[0] != CLOCK_MONOTONIC && (int)word[0] != CLOCK_REALTIME))
            return 0;
        remote.iov_base = (void *)word[2];
        break;
    default:
        remote.iov_base = (void *)word[0];
    }
    if (ub_raw6(SYS_process_vm_readv, ub_process->pid, (long)&local, 1, (long)&remote, 1, 0) == (long)sizeof(time))
        ts = &time; /* else the call itself says what is wrong with the pointer */
    if (!ts || ts->tv_sec < 0 || ts->tv_sec > 1000000000 || (unsigned long)ts->tv_nsec > 999999999)
        return 0;
    if (id == UB_CALL_ID_clock_nanosleep && (int)word[1] == TIMER_ABSTIME)
        return until(word, ts);
    return (uint64_t)ts->tv_sec * 1000000000u + (uint64_t)ts->tv_nsec;
}

static bool sleeps_long(uint32_t id, const uint64_t *word, struct ub_block *b)
{
    uint64_t ns = sleep_ns(id, word), least = ub_load_relaxed(&ub_process->arena->h.offload_least_us) * 1000ull;

    if (ns == 0 || ns < least)
        return false;
    b->deadline_ns = ub_clock_monotonic_ns() + ns;
    return true;
}

/* ---- descriptors --------------------------------------------------------------------------- */

static bool is_ready(int fd, short events)
{
    struct pollfd p = {.fd = fd, .events = events};
    struct timespec none = {0, 0};

    return ub_raw6(SYS_ppoll, (long)&p, 1, (long)&none, 0, 0, 0) != 0;
}

/* A pipe or a socket in blocking mode: others are not waited for, or not in a way that can be asked for. */
static bool may_block(int fd)
{
    struct stat st = {0};
    long flags = ub_raw3(SYS_fcntl, fd, F_GETFL, 0);

    return flags >= 0 && !(flags & O_NONBLOCK) && ub_raw2(SYS_fstat, fd, &st) == 0 &&
           (S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode));
}

static int flags_of(uint32_t id, const uint64_t *word)
{
    switch (id) {
    case UB_CALL_ID_recv:
    case UB_CALL_ID_recvfrom:
        return (int)word[3];
    case UB_CALL_ID___recv_chk:
        return (int)word[4];
    case UB_CALL_ID_recvmsg:
        return (int)word[2];
    }
    return 0;
}

/* The rest of a send of which a part is on its way. What the program gets is what one call would have said. */
static int64_t send_rest(uint64_t fd, uint64_t buf, uint64_t n, uint64_t flags, uint64_t done, uint64_t f, uint64_t g,
                         uint64_t h)
{
    ssize_t r = sendto((int)fd, (const char *)buf + done, n - done, (int)flags, NULL, 0);

    if (r < 0)
        return done ? (int64_t)done : -1;
    return (int64_t)done + r;
}

/* Sends what there is room for: a socket that is ready may still block for what is more. */
static bool send_blocks(const uint64_t *word, struct ub_block *b, int64_t *ret)
{
    long r;

    if ((int)word[3] & MSG_DONTWAIT || !may_block(b->fd))
        return false;
    r = ub_raw6(SYS_sendto, b->fd, (long)word[1], (long)word[2], (long)(int)word[3] | MSG_DONTWAIT | MSG_NOSIGNAL, 0,
                0);
    if (r == (long)word[2] || (r < 0 && r != -EAGAIN)) {
        b->made = r >= 0; /* an error is the call's own to bring about, with its signal */
        *ret = r;
        return false;
    }
    b->function = send_rest;
    for (int i = 0; i < 4; i++)
        b->word[i] = word[i];
    b->word[4] = r > 0 ? (uint64_t)r : 0;
    return true;
}

/* ---- locks, children ------------------------------------------------------------------------ */

static bool answer(long r, struct ub_block *b, int64_t *ret)
{
    b->made = true;
    if (r < 0)
        errno = (int)-r;
    *ret = r < 0 ? -1 : r;
    return false;
}

static bool flock_blocks(const uint64_t *word, struct ub_block *b, int64_t *ret)
{
    int operation = (int)word[1];
    long r;

    if (operation != LOCK_EX && operation != LOCK_SH)
        return false;
    r = ub_raw2(SYS_flock, b->fd, operation | LOCK_NB);
    return r == -EWOULDBLOCK ? true : answer(r, b, ret);
}

static bool fcntl_blocks(const uint64_t *word, struct ub_block *b, int64_t *ret)
{
    long r = ub_raw3(SYS_fcntl, b->fd, word[1] == F_SETLKW ? F_SETLK : F_OFD_SETLK, word[2]);

    return r == -EAGAIN || r == -EACCES ? true : answer(r, b, ret);
}

static bool wait_blocks(const uint64_t *word, struct ub_block *b, int64_t *ret)
{
    int flags = (int)word[2];
    long r;

    if (flags & (WNOHANG | __WNOTHREAD))
        return false;
    r = ub_raw4(SYS_wait4, (int)word[0], word[1], flags | WNOHANG, 0);
    return r == 0 ? true : answer(r, b, ret);
}

bool ub_block_proven(uint32_t id, const uint64_t word[UB_POOL_WORDS], struct ub_block *b, int64_t *ret)
{
    switch ((enum what)what_of[id]) {
    case SLEEP:
        return sleeps_long(id, word, b);
    case READS:
        if (flags_of(id, word) & (MSG_DONTWAIT | MSG_ERRQUEUE))
            return false;
        return may_block(b->fd) && !is_ready(b->fd, POLLIN);
    case WRITES:
        return may_block(b->fd) && !is_ready(b->fd, POLLOUT);
    case SENDS:
        return send_blocks(word, b, ret);
    case FLOCK:
        return flock_blocks(word, b, ret);
    case FCNTL:
        return fcntl_blocks(word, b, ret);
    case WAITS:
        return wait_blocks(word, b, ret);
    case CLOSE:
    case OTHER:
        break;
    }
    return false;
}
