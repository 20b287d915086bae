/*
 * What each listed call does when it is made on a fiber: asks whether it would wait, and if so leaves the loop.
 * A little long for one file: the calls share how a descriptor is asked and how a result is brought back.
 */
#include "block.h"

#include "../process.h"
#include "../raw.h"
#include "fdkind.h"
#include "ready.h"
#include "suspend.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <semaphore.h>
#include <stddef.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/select.h>
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
    CONNECT,
    NAME,
    SYNC,
    LOOK,   /* a positional read */
    CHANGE, /* a positional write, a length */
    PATH,   /* names in folders */
    SEM,
    POLL,
    SELECT,
    EPOLL,
};

/* clang-format off */
static const uint8_t what_of[UB_BLOCK_CALLS] = {
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
    ONE(CONNECT, connect) ONE(CONNECT, __connect)
    ONE(NAME, getaddrinfo)
    ONE(SYNC, fsync) ONE(SYNC, fdatasync) ONE(SYNC, syncfs)
    ONE(LOOK, pread) ONE(LOOK, pread64) ONE(LOOK, __pread64)
    ONE(CHANGE, pwrite) ONE(CHANGE, pwrite64) ONE(CHANGE, __pwrite64)
    ONE(CHANGE, ftruncate) ONE(CHANGE, ftruncate64) ONE(CHANGE, fallocate) ONE(CHANGE, fallocate64)
    ONE(CHANGE, posix_fallocate) ONE(CHANGE, posix_fallocate64)
    ONE(PATH, open) ONE(PATH, open64) ONE(PATH, openat) ONE(PATH, openat64)
    ONE(PATH, stat) ONE(PATH, stat64) ONE(PATH, lstat) ONE(PATH, lstat64)
    ONE(PATH, unlink) ONE(PATH, rename)
    ONE(POLL, poll) ONE(POLL, __poll_chk)
    ONE(SELECT, select) ONE(SELECT, __select)
    ONE(EPOLL, epoll_wait)
    [UB_BLOCK_SEM_WAIT] = SEM,
};
/* clang-format on */

#define READ_WRITE (UB_DIRECTION_READ | UB_DIRECTION_WRITE)

/* What it does, and what must not overtake it. */
static const struct {
    uint8_t direction, holds_up, lane;
    bool likely;
} order_of[] = {
    [SLEEP] = {0, 0, UB_LANE_WAIT, false},
    [WAITS] = {0, 0, UB_LANE_WAIT, false},
    [READS] = {UB_DIRECTION_READ, UB_DIRECTION_READ, UB_LANE_WAIT, false},
    [WRITES] = {UB_DIRECTION_WRITE, UB_DIRECTION_WRITE | UB_DIRECTION_SYNC, UB_LANE_WAIT, false},
    [SENDS] = {UB_DIRECTION_WRITE, UB_DIRECTION_WRITE, UB_LANE_WAIT, false},
    [FLOCK] = {UB_DIRECTION_LOCK, UB_DIRECTION_LOCK, UB_LANE_WAIT, false},
    [FCNTL] = {UB_DIRECTION_LOCK, UB_DIRECTION_LOCK, UB_LANE_WAIT, false},
    [CLOSE] = {UB_DIRECTION_ALL, 0, UB_LANE_WAIT, false},
    [CONNECT] = {READ_WRITE, READ_WRITE, UB_LANE_WAIT, true},
    [NAME] = {0, 0, UB_LANE_WAIT, true},
    [SYNC] = {UB_DIRECTION_SYNC, 0, UB_LANE_FILES, true},
    [LOOK] = {UB_DIRECTION_LOOK, UB_DIRECTION_CHANGE | UB_DIRECTION_WRITE, UB_LANE_FILES, false},
    [CHANGE] = {UB_DIRECTION_CHANGE, UB_DIRECTION_CHANGE | UB_DIRECTION_LOOK | UB_DIRECTION_SYNC | READ_WRITE,
                UB_LANE_FILES, false},
    [PATH] = {UB_DIRECTION_CHANGE, UB_DIRECTION_CHANGE, UB_LANE_WAIT, false},
    [SEM] = {0, 0, UB_LANE_WAIT, false},
    [POLL] = {0, 0, UB_LANE_WAIT, false},
    [SELECT] = {0, 0, UB_LANE_WAIT, false},
    [EPOLL] = {0, 0, UB_LANE_WAIT, false},
};

static bool is_for_several(enum what what)
{
    return what == POLL || what == SELECT || what == EPOLL;
}

void ub_block_look(uint32_t id, const uint64_t word[UB_POOL_WORDS], struct ub_block *ret)
{
    enum what what = (enum what)what_of[id];

    memset(ret, 0, offsetof(struct ub_block, word)); /* `word` goes with `function` */
    ret->fd = -1;
    ret->may_move = what != OTHER && what != CLOSE;
    if (what == OTHER || (what == FCNTL && word[1] != F_SETLKW && word[1] != F_OFD_SETLKW)) {
        ret->may_move = false;
        return;
    }
    ret->direction = order_of[what].direction;
    ret->holds_up = order_of[what].holds_up;
    ret->lane = order_of[what].lane;
    ret->likely = order_of[what].likely;
    ret->libc_lock = what == NAME;
    ret->stays = what == EPOLL;
    if (what == PATH)
        ret->fd = UB_BLOCK_PATHS; /* which of them name the same thing nobody can tell beforehand */
    else if (what != SLEEP && what != WAITS && what != NAME && what != SEM && !is_for_several(what))
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

    /* An absolute time is a little nearer by now than what the program asked for. */
    if (ns == 0 || (ns < least - least / 16 && !b->any_sleep))
        return false;
    b->deadline_ns = ub_clock_monotonic_ns() + ns;
    return true;
}

/* ---- descriptors --------------------------------------------------------------------------- */

/*
 * How many of them are. A signal that is just coming (a look's, too) makes the kernel say EINTR even to who would not
 * wait: taken for an answer, it let calls block that were to be waited for elsewhere, and some for ever.
 */
static long count_ready(uint64_t fds, uint64_t count)
{
    long r;

    do {
        struct timespec none = {0, 0};

        r = ub_raw6(SYS_ppoll, (long)fds, (long)count, (long)&none, 0, 0, 0);
    } while (r == -EINTR);
    return r;
}

static bool is_ready(int fd, short events)
{
    struct pollfd p = {.fd = fd, .events = events};

    return count_ready((uintptr_t)&p, 1) != 0;
}

/* A pipe or a socket in blocking mode: others are not waited for, or not in a way that can be asked for. */
static bool may_block(int fd)
{
    enum ub_fdkind kind = ub_fdkind(fd);
    long flags;

    if (!ub_fdkind_is_awaited(kind))
        return false;
    flags = ub_raw3(SYS_fcntl, fd, F_GETFL, 0);
    return flags >= 0 && !(flags & O_NONBLOCK);
}

static bool answer(long r, struct ub_block *b, int64_t *ret)
{
    b->made = true;
    if (r < 0)
        errno = (int)-r;
    *ret = r < 0 ? -1 : r;
    return false;
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

UB_HOT bool ub_block_receive(uint32_t id, const uint64_t word[UB_POOL_WORDS], int64_t *ret)
{
    enum ub_fdkind kind;

    if (what_of[id] != READS || flags_of(id, word) & (MSG_DONTWAIT | MSG_ERRQUEUE))
        return false;
    kind = ub_fdkind((int)word[0]);
    return ub_fdkind_is_awaited(kind) && kind != UB_FDKIND_LATE &&
           ub_ready_receive(id, word, kind != UB_FDKIND_PIPE, ret);
}

static bool read_blocks(uint32_t id, const uint64_t *word, struct ub_block *b, int64_t *ret)
{
    if (flags_of(id, word) & (MSG_DONTWAIT | MSG_ERRQUEUE))
        return false;
    b->made = !b->asked && ub_block_receive(id, word, ret);
    return !b->made && may_block(b->fd) && !is_ready(b->fd, POLLIN);
}

/*
 * Sends what there is room for: a socket that is ready may still block for what is more. What it says of a broken
 * connection it says once; but with a signal that is the call's own to bring about.
 */
static bool send_blocks(const uint64_t *word, int flags, struct ub_block *b, int64_t *ret)
{
    long r;

    if (flags & MSG_DONTWAIT)
        return false;
    r = ub_raw6(SYS_sendto, b->fd, (long)word[1], (long)word[2], (long)flags | MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0);
    if (r == -ENOTSOCK) /* as ub_ready_receive */
        ub_fdkind_forget(b->fd);
    if (r == -EPIPE || r == -EINTR || r == -ENOTSOCK || r == -EINPROGRESS) /* the last: connecting, who waits waits */
        return false;
    if (r == (long)word[2] || (r < 0 && r != -EAGAIN) || !may_block(b->fd))
        return answer(r, b, ret);
    b->function = ub_ready_send_rest;
    for (int i = 0; i < 3; i++)
        b->word[i] = word[i];
    b->word[3] = (uint64_t)flags;
    b->word[4] = r > 0 ? (uint64_t)r : 0;
    return true;
}

/* More than there is room for, or no room at all. A pipe that is said to be ready may still keep who writes more. */
static bool pipe_blocks(uint64_t n, int fd)
{
    int full = 0;
    long size; /* negative: a socket's */

    if (!is_ready(fd, POLLOUT))
        return true;
    size = ub_raw3(SYS_fcntl, fd, F_GETPIPE_SZ, 0);
    return size > 0 && ub_raw3(SYS_ioctl, fd, FIONREAD, (long)&full) == 0 && n > (uint64_t)(size - full);
}

static bool write_blocks(uint32_t id, const uint64_t *word, struct ub_block *b, int64_t *ret)
{
    bool several = id == UB_CALL_ID_writev;

    if (!several && word[2] > 0 && ub_fdkind(b->fd) == UB_FDKIND_STREAM)
        return send_blocks(word, 0, b, ret);
    return may_block(b->fd) && pipe_blocks(several ? 0 : word[2], b->fd);
}

/* ---- locks, children ------------------------------------------------------------------------ */

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

static bool sem_blocks(const uint64_t *word, struct ub_block *b, int64_t *ret)
{
    int saved = errno;

    if (sem_trywait((sem_t *)word[0]) == 0)
        return answer(0, b, ret);
    if (errno != EAGAIN)
        return answer(-errno, b, ret);
    errno = saved;
    return true;
}

/* ---- what nobody can say beforehand ------------------------------------------------------------ */

static bool is_file(int fd)
{
    return ub_fdkind(fd) == UB_FDKIND_FILE;
}

static bool copy(void *to, uint64_t from, size_t size)
{
    struct iovec local = {to, size}, remote = {(void *)from, size};

    return ub_raw6(SYS_process_vm_readv, ub_process->pid, (long)&local, 1, (long)&remote, 1, 0) == (long)size;
}

/* To another host. A unix socket connects at once, or waits for room with its listener. */
static bool connect_may_block(const uint64_t *word, int fd)
{
    uint16_t family = 0;
    int type = 0;
    socklen_t len = sizeof(type);
    long flags = ub_raw3(SYS_fcntl, fd, F_GETFL, 0);

    return copy(&family, word[1], sizeof(family)) && (family == AF_INET || family == AF_INET6) && flags >= 0 &&
           !(flags & O_NONBLOCK) && ub_raw6(SYS_getsockopt, fd, SOL_SOCKET, SO_TYPE, (long)&type, (long)&len, 0) == 0 &&
           type == SOCK_STREAM;
}

/* A name that has to be looked up: a number needs not. */
static bool is_name(uint64_t text)
{
    char name[64] = {0};
    size_t n = 4096 - (text & 4095) < sizeof(name) ? 4096 - (text & 4095) : sizeof(name);

    if (!copy(name, text, n))
        return false;
    for (size_t i = 0; i < n && name[i]; i++) {
        if (name[i] == ':')
            return false;
        if (!(name[i] >= '0' && name[i] <= '9') && name[i] != '.')
            return true;
    }
    return n < sizeof(name); /* at the end of a page: not known to be a number */
}

bool ub_block_resolver_touched;

/* Names that are converted by the calling thread's locale stay, and so do all where the program has changed how its
 * own thread asks: another one would ask otherwise. */
static bool name_may_block(const uint64_t *word)
{
    struct addrinfo hints = {0};

    if (!word[0] || ub_load_relaxed(&ub_block_resolver_touched) || (word[2] && !copy(&hints, word[2], sizeof(hints))))
        return false;
    return !(hints.ai_flags & (AI_NUMERICHOST | AI_IDN | AI_CANONIDN)) && is_name(word[0]);
}

/* ---- waits for descriptors --------------------------------------------------------------------- */

/* The program's own memory, as the call would read it. */
static bool read_polled(const uint64_t *word, struct pollfd *ret)
{
    struct iovec local = {ret, sizeof(*ret)}, remote = {(void *)word[0], sizeof(*ret)};

    return ub_raw6(SYS_process_vm_readv, ub_process->pid, (long)&local, 1, (long)&remote, 1, 0) == (long)sizeof(*ret);
}

/* Who calls select asks for a copy of its sets here: they are its result as well. */
static bool is_any_selected(const uint64_t *word)
{
    fd_set sets[3], *asked[3];
    size_t size = ((word[0] & 0xffffffff) + 63) / 64 * 8;
    long r;

    if (size > sizeof(sets[0]))
        return true; /* the call's own affair */
    for (int i = 0; i < 3; i++) {
        asked[i] = word[i + 1] ? &sets[i] : NULL;
        if (asked[i] && !copy(asked[i], word[i + 1], size))
            return true;
    }
    do {
        struct timespec none = {0, 0};

        r = ub_raw6(SYS_pselect6, (int)word[0], (long)asked[0], (long)asked[1], (long)asked[2], (long)&none, 0);
    } while (r == -EINTR);
    return r != 0;
}

static bool is_any_ready(enum what what, const uint64_t *word)
{
    if (what == SELECT)
        return is_any_selected(word);
    return what == EPOLL ? is_ready((int)word[0], POLLIN) : count_ready(word[0], word[1]) != 0;
}

/* How long it waits for descriptors, in ns; UINT64_MAX: for ever. */
static uint64_t limit_of(enum what what, const uint64_t *word)
{
    int ms = (int)word[what == EPOLL ? 3 : 2];
    struct timeval time;

    if (what != SELECT)
        return ms < 0 ? UINT64_MAX : (uint64_t)ms * 1000000u;
    if (!word[4])
        return UINT64_MAX;
    if (!copy(&time, word[4], sizeof(time)) || time.tv_sec < 0 || time.tv_usec < 0 || time.tv_sec > 1000000000)
        return 0;
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_usec * 1000u;
}

/* What is ready makes it return at once; its result is written again by the call itself. A single descriptor is known
 * by its number, so that closing it waits. */
static bool set_blocks(enum what what, const uint64_t *word, struct ub_block *b)
{
    uint64_t least = ub_load_relaxed(&ub_process->arena->h.offload_least_us) / 1000 * 1000000ull;
    struct pollfd one;

    if (limit_of(what, word) < least || (what == POLL && (word[1] == 0 || !read_polled(word, &one))))
        return false;
    if (what == POLL && word[1] == 1) {
        b->fd = one.fd < 0 ? -1 : one.fd;
        b->events = one.events;
    }
    if (what == EPOLL) {
        b->fd = (int)word[0];
        b->events = POLLIN;
    }
    return !is_any_ready(what, word);
}

int64_t ub_block_rest(uint32_t id, const uint64_t word[UB_POOL_WORDS], uint64_t until_ns)
{
    uint64_t now = ub_clock_monotonic_ns(), left = until_ns > now ? until_ns - now : 0;
    struct timespec t = {.tv_sec = (time_t)(left / 1000000000), .tv_nsec = (long)(left % 1000000000)};
    long r;

    switch ((enum what)what_of[id]) {
    case SELECT:
        r = ub_raw6(SYS_pselect6, (int)word[0], (long)word[1], (long)word[2], (long)word[3], (long)&t, 0);
        break;
    case EPOLL:
        r = ub_raw6(SYS_epoll_pwait, (int)word[0], (long)word[1], (int)word[2], (long)((left + 999999) / 1000000), 0,
                    0);
        break;
    default:
        r = ub_raw6(SYS_ppoll, (long)word[0], (long)word[1], (long)&t, 0, 0, 0);
    }
    if (r < 0)
        errno = (int)-r;
    return r < 0 ? -1 : r;
}

bool ub_block_never(uint32_t id, const uint64_t word[UB_POOL_WORDS])
{
    enum what what = (enum what)what_of[id];
    long flags;

    if (what != READS && what != WRITES && what != SENDS)
        return false;
    flags = ub_raw3(SYS_fcntl, (int)word[0], F_GETFL, 0);
    return flags >= 0 && flags & O_NONBLOCK;
}

bool ub_block_proven(uint32_t id, const uint64_t word[UB_POOL_WORDS], struct ub_block *b, int64_t *ret)
{
    switch ((enum what)what_of[id]) {
    case SLEEP:
        return sleeps_long(id, word, b);
    case READS:
        return read_blocks(id, word, b, ret);
    case WRITES:
        return write_blocks(id, word, b, ret);
    case SENDS:
        return send_blocks(word, (int)word[3], b, ret);
    case FLOCK:
        return flock_blocks(word, b, ret);
    case FCNTL:
        return fcntl_blocks(word, b, ret);
    case WAITS:
        return wait_blocks(word, b, ret);
    case SEM:
        return sem_blocks(word, b, ret);
    case POLL:
    case SELECT:
    case EPOLL:
        return set_blocks((enum what)what_of[id], word, b);
    default: /* nobody says beforehand what has to be written, fetched or asked for */
        return false;
    }
}

bool ub_block_expected(uint32_t id, const uint64_t word[UB_POOL_WORDS], struct ub_block *b)
{
    switch ((enum what)what_of[id]) {
    case CONNECT:
        return connect_may_block(word, b->fd);
    case NAME:
        return name_may_block(word);
    case SYNC:
    case LOOK:
    case CHANGE:
        return is_file(b->fd);
    case PATH:
        return true;
    default:
        return false;
    }
}

bool ub_block_may_queue(uint32_t id, const struct ub_block *b)
{
    switch ((enum what)what_of[id]) {
    case READS:
    case WRITES: /* a file's position is also moved by what is not seen */
        return !is_file(b->fd);
    case SYNC:
    case LOOK:
    case CHANGE:
        return is_file(b->fd);
    default:
        return true;
    }
}

/* ---- calls that stay where they are -------------------------------------------------------------- */

bool ub_block_would(int fd, short events)
{
    return may_block(fd) && !is_ready(fd, events);
}

bool ub_block_is_awaited(uint32_t id)
{
    enum what what = (enum what)what_of[id];

    return what == READS || what == WRITES || what == SENDS || what == FLOCK || what == FCNTL || what == WAITS ||
           what == SEM || is_for_several(what);
}

uint64_t ub_block_until(uint32_t id, const uint64_t word[UB_POOL_WORDS])
{
    enum what what = (enum what)what_of[id];
    uint64_t limit = is_for_several(what) ? limit_of(what, word) : UINT64_MAX;

    return limit == UINT64_MAX ? 0 : ub_clock_monotonic_ns() + limit;
}

int ub_block_ready_on(uint32_t id, const struct ub_block *b, short *ret_events)
{
    enum what what = (enum what)what_of[id];

    *ret_events = is_for_several(what) ? b->events : what == READS ? POLLIN : POLLOUT;
    return what == READS || what == WRITES || what == SENDS || is_for_several(what) ? b->fd : -1;
}

/* Some more of what ub_ready_send_rest is for. */
static bool send_waits(struct ub_block *b, int64_t *ret)
{
    long r = ub_raw6(SYS_sendto, b->fd, (long)(b->word[1] + b->word[4]), (long)(b->word[2] - b->word[4]),
                     (long)b->word[3] | MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0);

    if (r > 0)
        b->word[4] += (uint64_t)r;
    if (b->word[4] == b->word[2]) {
        b->made = true;
        *ret = (int64_t)b->word[2];
    }
    return !b->made && (r > 0 || r == -EAGAIN); /* an error is the call's own to bring about */
}

bool ub_block_waits(uint32_t id, const uint64_t word[UB_POOL_WORDS], struct ub_block *b, int64_t *ret)
{
    if (b->made)
        return false;
    if (b->function)
        return send_waits(b, ret);
    if (is_for_several((enum what)what_of[id]))
        return !is_any_ready((enum what)what_of[id], word);
    return ub_block_is_awaited(id) && ub_block_proven(id, word, b, ret);
}

bool ub_block_is_sleep(uint32_t id)
{
    return what_of[id] == SLEEP;
}

bool ub_block_is_child(uint32_t id)
{
    return what_of[id] == WAITS;
}

bool ub_block_is_listed(uint32_t id)
{
    return id < UB_BLOCK_CALLS && what_of[id] != OTHER && what_of[id] != CLOSE;
}
