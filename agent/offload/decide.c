#include "decide.h"

#include "../loops/loop.h"
#include "../patch.h"
#include "../raw.h"
#include "block.h"
#include "evhost.h"
#include "fds.h"
#include "fiber.h"
#include "glibhost.h"
#include "identity.h"
#include "locks.h"
#include "moves.h"
#include "pylocks.h"
#include "pysteps.h"
#include "sdhost.h"
#include "signals.h"
#include "waits.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>

uint32_t ub_offload_mode;
bool ub_offload_moves;

/* AddressSanitizer's, linked in: it takes locks that we do not see. */
static void look_for_sanitizer(void)
{
    if (ub_process_has_its_own((const void *)pthread_mutex_lock) && !ub_fiber_tells())
        ub_patch_runtime = ub_patch_stacks = true;
}

void ub_offload_start(uint32_t mode, bool steps)
{
    bool moves = mode > UB_OFFLOAD_DRY_RUN;

    if (steps && !moves)
        mode = UB_OFFLOAD_EAGER; /* what waits for a step that is set aside has to be seen */
    if (mode > UB_OFFLOAD_DRY_RUN && (!ub_fiber_supported() || ub_process_quiet() != UB_QUIET_NOT))
        mode = steps && !moves ? UB_OFFLOAD_OFF : UB_OFFLOAD_DRY_RUN;
    ub_offload_mode = mode;
    ub_offload_moves = moves && mode > UB_OFFLOAD_DRY_RUN;
    if (mode == UB_OFFLOAD_OFF)
        return;
    look_for_sanitizer();
    ub_loops_count += UB_LOOPS_OF_LOOKS;
    if (mode == UB_OFFLOAD_DRY_RUN)
        return;
    ub_pylocks_start();
    ub_loops_count += UB_LOOPS_OF_MOVES;
    ub_fds_start();
    ub_waits_start();
    ub_moves_start();
    ub_signals_start();
}

void ub_offload_attach(uint32_t mode)
{
    if (ub_offload_mode > UB_OFFLOAD_DRY_RUN)
        return;
    if (mode != ub_offload_mode)
        ub_loops_count += mode == UB_OFFLOAD_DRY_RUN ? UB_LOOPS_OF_LOOKS : -UB_LOOPS_OF_LOOKS;
    ub_offload_mode = mode;
    if (mode == UB_OFFLOAD_DRY_RUN)
        look_for_sanitizer();
}

/* ---- the callback ---------------------------------------------------------------------- */

#define KIND(name) (1u << UB_CALLBACK_##name)

/*
 * libuv: those that are told once of each thing that happened. Not: what comes with every turn (idle, prepare, check:
 * the loop would spin), what comes again until it is dealt with (poll, read, listen: it would have to be stopped
 * meanwhile), what is one of several kinds of one handle (write, connect), close (the handle's memory is on its way
 * out), and what has arguments on the loop's stack.
 */
static const uint32_t kinds_uv = KIND(TIMER) | KIND(ASYNC) | KIND(FS) | KIND(DNS) | KIND(WORK) | KIND(PROCESS);

/*
 * libevent: plain events, and (`moves`) requests of evhttp's clients. Not: signals (a pointer into the loop's stack),
 * listeners, bufferevents and evbuffers (locked meanwhile, and their buffers go on changing), what else evhttp and
 * evdns call (their objects are freed when it returns).
 */
static const uint32_t kinds_event = KIND(TIMER) | KIND(IO);

/* GLib: a source is blocked, as while it is dispatched, until its callback is over: nothing of it comes again. */
static const uint32_t kinds_glib = KIND(TIMER) | KIND(IDLE) | KIND(IO) | KIND(CHILD) | KIND(SIGNAL) | KIND(SOURCE);

/*
 * sd-event: a source is off until its callback is over. Not: children (reaped as soon as the callback returns), inotify
 * (a pointer to the loop's buffer), post (told of what is dispatched while it is off), prepare, exit.
 */
static const uint32_t kinds_sd = KIND(TIMER) | KIND(IO) | KIND(SIGNAL) | KIND(DEFER);

/*
 * libev: not children (their status stands in the watcher, where the next child's is written) and stat (likewise), nor
 * what comes with every turn.
 */
static const uint32_t kinds_ev = KIND(TIMER) | KIND(IO) | KIND(ASYNC) | KIND(SIGNAL);

static uint32_t kinds_of(uint32_t library)
{
    switch (library) {
    case UB_LOOP_LIBUV:
        return kinds_uv;
    case UB_LOOP_LIBEVENT:
        return kinds_event;
    case UB_LOOP_GLIB:
        return kinds_glib;
    case UB_LOOP_SD_EVENT:
        return kinds_sd;
    case UB_LOOP_LIBEV:
        return kinds_ev;
    }
    return 0;
}

static enum ub_pin judge_callback(const struct ub_spans *s)
{
    const struct ub_callback *c;

    if (s->depth == 0)
        return UB_PIN_LOOP;
    if (s->depth > 1)
        return UB_PIN_NESTED;
    c = &s->level[0].callback;
    if (!kinds_of(c->library))
        return UB_PIN_LIBRARY;
    if (c->library == UB_LOOP_GLIB && !ub_glib_may_leave(c->object))
        return UB_PIN_KIND;
    if (c->library == UB_LOOP_SD_EVENT && !ub_sd_may_leave(c->object))
        return UB_PIN_KIND;
    if (c->library == UB_LOOP_LIBEV && !ub_ev_may_leave())
        return UB_PIN_KIND;
    return c->moves || kinds_of(c->library) & 1u << c->kind ? UB_PIN_MOVABLE : UB_PIN_KIND;
}

/* ---- signal handlers --------------------------------------------------------------------- */

#define STACK_FAR  (8ul << 20)
#define SCAN_BYTES 2048ul

/* Where libc has every handler return to: the word at the top of each signal frame. 0: no handler is installed. */
static uintptr_t restorer(void)
{
    static uintptr_t known;

    for (int sig = 1; !ub_load_relaxed(&known) && sig <= 64; sig++) {
        struct ub_sigaction act = {0};

        if (ub_raw4(SYS_rt_sigaction, sig, 0, &act, sizeof(act.mask)) == 0 && act.handler > 1)
            ub_store_relaxed(&known, act.restorer);
    }
    return ub_load_relaxed(&known);
}

/* Of a stack that is known to be there. What AddressSanitizer keeps from being read is read, too. */
__attribute__((no_sanitize("address"))) static bool holds(uintptr_t at, uintptr_t end, uintptr_t wanted)
{
    for (; at < end; at += sizeof(uintptr_t)) {
        if (*(const uintptr_t *)at == wanted)
            return true;
    }
    return false;
}

/*
 * A handler's frame between us and the callback's. `known`: both lie on one stack, of ours; any other is read by a call
 * that cannot fault. A leftover of an earlier handler in some unused buffer is taken for one, too: an error in the
 * direction that does no harm.
 */
static enum ub_pin judge_stack(uintptr_t sp, uintptr_t end, bool known)
{
    uintptr_t word[SCAN_BYTES / sizeof(uintptr_t)], wanted = restorer();

    if (sp >= end || (!known && end - sp > STACK_FAR))
        return UB_PIN_STACK;
    if (known)
        return wanted && holds(sp & ~7ul, end, wanted) ? UB_PIN_SIGNAL : UB_PIN_MOVABLE;
    for (uintptr_t at = sp & ~7ul; wanted && at < end; at += sizeof(word)) {
        struct iovec local = {word, sizeof(word)}, remote = {(void *)at, sizeof(word)};
        long n = ub_raw6(SYS_process_vm_readv, ub_process->pid, (long)&local, 1, (long)&remote, 1, 0);

        if (n <= 0)
            return UB_PIN_STACK;
        if (holds((uintptr_t)word, (uintptr_t)word + (uintptr_t)(at + (uintptr_t)n < end ? (uintptr_t)n : end - at),
                  wanted))
            return UB_PIN_SIGNAL;
    }
    return UB_PIN_MOVABLE;
}

/* ---- the call ------------------------------------------------------------------------------ */

/* What a call waits for. */
enum kind {
    NO,    /* not known to be right elsewhere */
    SLEEP, /* for time */
    READ,  /* for what its descriptor says: data, a disk, a connection */
    WRITE, /* likewise, to be rid of data */
    FILES, /* for a disk */
    WAIT,  /* for somebody else */
    FCNTL, /* a lock, or nothing */
};

/*
 * Not here, and why: streams (locks of libc's own, held meanwhile), users, groups and hosts by
 * functions with static results, readdir (one position a folder), system and popen (the child's
 * death signal is tied to the thread that made it), sigwait, pause (the signals are this
 * thread's), terminals, close. Some of them can be made right, and are not yet.
 */
/* clang-format off */
static const uint8_t kind_of[UB_BLOCK_CALLS] = {
#define ONE(kind, name) [UB_CALL_ID_##name] = kind,
    ONE(SLEEP, sleep) ONE(SLEEP, usleep) ONE(SLEEP, nanosleep) ONE(SLEEP, __nanosleep) ONE(SLEEP, clock_nanosleep)
    ONE(SLEEP, thrd_sleep)
    ONE(READ, read) ONE(READ, __read) ONE(READ, __read_chk) ONE(READ, readv)
    ONE(READ, recv) ONE(READ, __recv_chk) ONE(READ, recvfrom) ONE(READ, __recvfrom_chk) ONE(READ, recvmsg)
    ONE(READ, accept) ONE(READ, accept4)
    ONE(WRITE, write) ONE(WRITE, __write) ONE(WRITE, writev)
    ONE(WRITE, send) ONE(WRITE, __send) ONE(WRITE, sendto) ONE(WRITE, sendmsg)
    ONE(WAIT, connect) ONE(WAIT, __connect)
    ONE(FILES, pread) ONE(FILES, pread64) ONE(FILES, __pread64) ONE(FILES, __pread_chk) ONE(FILES, __pread64_chk)
    ONE(FILES, pwrite) ONE(FILES, pwrite64) ONE(FILES, __pwrite64)
    ONE(FILES, preadv) ONE(FILES, preadv64) ONE(FILES, preadv2) ONE(FILES, preadv64v2)
    ONE(FILES, pwritev) ONE(FILES, pwritev64) ONE(FILES, pwritev2) ONE(FILES, pwritev64v2)
    ONE(FILES, fsync) ONE(FILES, fdatasync) ONE(FILES, syncfs) ONE(FILES, sync_file_range) ONE(FILES, sync)
    ONE(FILES, truncate) ONE(FILES, truncate64) ONE(FILES, ftruncate) ONE(FILES, ftruncate64)
    ONE(FILES, fallocate) ONE(FILES, fallocate64) ONE(FILES, posix_fallocate) ONE(FILES, posix_fallocate64)
    ONE(FILES, unlink) ONE(FILES, unlinkat) ONE(FILES, rename) ONE(FILES, renameat) ONE(FILES, renameat2)
    ONE(FILES, stat) ONE(FILES, stat64) ONE(FILES, lstat) ONE(FILES, lstat64) ONE(FILES, fstat) ONE(FILES, fstat64)
    ONE(FILES, copy_file_range)
    /* A FIFO's other end, a lease, a dead server: not the disk's lane. */
    ONE(WAIT, open) ONE(WAIT, open64) ONE(WAIT, openat) ONE(WAIT, openat64) ONE(WAIT, __open) ONE(WAIT, __open64)
    ONE(WAIT, __open_2) ONE(WAIT, __open64_2) ONE(WAIT, __openat_2) ONE(WAIT, __openat64_2)
    ONE(WAIT, flock) ONE(WAIT, lockf) ONE(WAIT, lockf64)
    ONE(WAIT, getaddrinfo) ONE(WAIT, getnameinfo)
    ONE(WAIT, waitpid) ONE(WAIT, __waitpid) ONE(WAIT, wait) ONE(WAIT, __wait) ONE(WAIT, wait3) ONE(WAIT, wait4)
    ONE(WAIT, msgrcv) ONE(WAIT, msgsnd) ONE(WAIT, semop) ONE(WAIT, semtimedop)
    ONE(WAIT, mq_receive) ONE(WAIT, mq_timedreceive) ONE(WAIT, mq_send) ONE(WAIT, mq_timedsend)
    ONE(FCNTL, fcntl) ONE(FCNTL, fcntl64) ONE(FCNTL, __fcntl)
    [UB_BLOCK_SEM_WAIT] = WAIT,
};
/* clang-format on */

/* With a timeout of its own a socket's call is the kernel's to end. */
static bool has_timeout(int fd, int option)
{
    struct timeval time = {0};
    socklen_t len = sizeof(time);

    return ub_raw6(SYS_getsockopt, fd, SOL_SOCKET, option, (long)&time, (long)&len, 0) == 0 &&
           (time.tv_sec || time.tv_usec);
}

/* Calls that a signal ends with EINTR in spite of SA_RESTART: on sockets with a timeout, System V's. */
static bool has_limit(uint32_t id, const uint64_t *value)
{
    switch (id) {
    case UB_CALL_ID_msgrcv:
    case UB_CALL_ID_msgsnd:
    case UB_CALL_ID_semop:
    case UB_CALL_ID_semtimedop:
        return true;
    }
    switch ((enum kind)kind_of[id]) {
    case READ:
        return has_timeout((int)value[0], SO_RCVTIMEO);
    case WRITE:
        return has_timeout((int)value[0], SO_SNDTIMEO);
    default:
        return (id == UB_CALL_ID_connect || id == UB_CALL_ID___connect) && has_timeout((int)value[0], SO_SNDTIMEO);
    }
}

/* `writes`: to a pipe there may be room for a part only, and for the rest it would wait. */
static enum ub_executor executor_of(int fd, bool writes)
{
    struct stat st = {0};

    if (ub_raw2(SYS_fstat, fd, &st) < 0 || (st.st_mode & S_IFMT) == S_IFCHR)
        return UB_EXECUTOR_NONE; /* closed meanwhile; terminals and devices */
    if (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode) || S_ISDIR(st.st_mode))
        return UB_EXECUTOR_NONE; /* its position is also moved by what is not seen (streams, sendfile) */
    return writes && !S_ISSOCK(st.st_mode) ? UB_EXECUTOR_WAIT : UB_EXECUTOR_READINESS;
}

static enum ub_executor judge_call(uint32_t id, const uint64_t *value)
{
    switch (ub_block_is_listed(id) ? (enum kind)kind_of[id] : NO) {
    case SLEEP:
        return UB_EXECUTOR_TIMER;
    case READ:
        return executor_of((int)value[0], false);
    case WRITE:
        return executor_of((int)value[0], true);
    case FILES:
        return UB_EXECUTOR_FILES;
    case WAIT:
        return UB_EXECUTOR_WAIT;
    case FCNTL:
        return value[1] == F_SETLKW || value[1] == F_OFD_SETLKW ? UB_EXECUTOR_WAIT : UB_EXECUTOR_NONE;
    case NO:
        break;
    }
    return UB_EXECUTOR_NONE;
}

/* Waits for descriptors are left in a task's step only: of a callback they may be a loop's. An epoll's stays there,
 * too. */
static enum ub_executor judge_call_of_step(uint32_t id, const uint64_t *value)
{
    if (id >= UB_BLOCK_CALLS) /* a whole one (common/units.h) */
        return UB_EXECUTOR_WAIT;
    switch (id) {
    case UB_CALL_ID_poll:
    case UB_CALL_ID___poll_chk:
        return UB_EXECUTOR_READINESS;
    case UB_CALL_ID_select:
    case UB_CALL_ID___select:
        return UB_EXECUTOR_WAIT;
    default:
        return judge_call(id, value);
    }
}

/* ---- all of it ------------------------------------------------------------------------------ */

static enum ub_pin judge(const struct ub_thread *t, uint32_t id, const uint64_t *value, uintptr_t sp, uintptr_t end,
                         struct ub_verdict *ret)
{
    const struct ub_spans *s = &t->cold->spans;
    enum ub_pin pin;

    if (ub_process->quiet != UB_QUIET_NOT)
        return UB_PIN_SECCOMP;
    if (ub_span_asyncio(s))
        return ub_pysteps_judge(t, id, value, sp, &ret->lock);
    if (ub_patch_has_runtime())
        return UB_PIN_RUNTIME;
    pin = judge_callback(s);
    if (pin == UB_PIN_MOVABLE)
        pin = judge_stack(sp, end ? end : s->level[0].sp, end != 0);
    if (pin != UB_PIN_MOVABLE)
        return pin;
    return ub_locks_held(&ret->lock) ? UB_PIN_LOCK : UB_PIN_MOVABLE;
}

bool ub_decide_shape_moves(const struct ub_shape *shape)
{
    return shape->special == UB_SHAPE_REQUEST || kinds_of(shape->library) & 1u << shape->kind;
}

bool ub_decide_is_interrupted(uint32_t id, const uint64_t *value)
{
    return has_limit(id, value) || ub_signals_interrupt(false);
}

bool ub_decide_makes_sockets(uint32_t id)
{
    return id == UB_CALL_ID_getaddrinfo || id >= UB_BLOCK_CALLS;
}

bool ub_decide_call_moves(uint32_t id)
{
    return id < UB_BLOCK_CALLS && kind_of[id] != NO;
}

void ub_decide(const struct ub_thread *t, uint32_t id, const uint64_t *value, uintptr_t sp, uintptr_t end,
               struct ub_verdict *ret)
{
    bool python;

    *ret = (struct ub_verdict){0};
    ret->pin = (uint8_t)judge(t, id, value, sp, end, ret);
    if (ret->pin != UB_PIN_MOVABLE)
        return;
    python = ub_span_asyncio(&t->cold->spans) != NULL;
    ret->executor = (uint8_t)(python ? judge_call_of_step(id, value) : judge_call(id, value));
    if (ret->executor == UB_EXECUTOR_NONE)
        ret->pin = UB_PIN_CALL;
    else if (python) /* it calls again what a signal has interrupted */
        ret->pin = ret->executor == UB_EXECUTOR_TIMER || ub_identity_is_the_pools(ub_decide_makes_sockets(id))
                       ? UB_PIN_MOVABLE
                       : UB_PIN_IDENTITY;
    else if (ub_signals_interrupt(ret->executor == UB_EXECUTOR_TIMER || has_limit(id, value)))
        ret->pin = UB_PIN_EINTR;
    else if (ret->executor != UB_EXECUTOR_TIMER && !ub_identity_is_the_pools(ub_decide_makes_sockets(id)))
        ret->pin = UB_PIN_IDENTITY;
}
