/*
 * Sampling a running thread through the agent's SIGURG handler. Everything read
 * from the sample is the program's memory: checked, never trusted.
 */
#include "capture_impl.h"
#include "procfile.h"

#include "arch.h"
#include "../common/clock.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SAMPLE_SIGNAL SIGURG /* its default action is to be ignored: it harms nobody who has just exec'ed */

#define LEAVE_FIRST_NS 20000
#define LEAVE_LAST_NS  640000

#define SPIN_NS       20000
#define POLL_FIRST_NS 4000
#define POLL_MAX_NS   100000
#define POLL_TOTAL_NS 2000000

struct signal_state {
    char letter;
    bool caught, blocked, pending;
};

static uint64_t mask_after(const char *status, const char *name)
{
    const char *p = strstr(status, name);

    if (!p)
        return 0;
    p += strlen(name);
    return ub_capture_parse_hex(&p);
}

/* One read tells whether it still runs and whether the signal would reach the handler at once. */
static int read_signal_state(struct ub_thread_files *f, struct signal_state *ret)
{
    uint64_t bit = 1ull << (SAMPLE_SIGNAL - 1);
    char buf[UB_STATUS_MAX];
    const char *p;
    int r = ub_thread_files_read(f, UB_THREAD_FILE_STATUS, buf, sizeof(buf));

    if (r < 0)
        return r;
    if (!strstr(buf, "\nSigCgt:\t") && ub_procfile_status(f->pid, f->tid, buf) == 0) /* it has many groups */
        return -ESRCH;
    p = strstr(buf, "\nState:\t");
    ret->letter = p ? p[8] : 0;
    ret->pending = mask_after(buf, "\nSigPnd:\t") & bit;
    ret->blocked = mask_after(buf, "\nSigBlk:\t") & bit;
    ret->caught = mask_after(buf, "\nSigCgt:\t") & bit;
    return 0;
}

static void fill(const struct ub_sample *sample, uint64_t (*ticks_to_ns)(uint64_t), struct ub_capture *ret)
{
    uint32_t bytes = ub_load_relaxed(&sample->bytes);

    ub_capture_reset(ret);
    if (bytes > UB_SAMPLE_BYTES)
        bytes = 0;
    ret->state = UB_THREAD_RUNNING;
    ret->proof = UB_PROOF_SIGNAL;
    ret->at_ns = ticks_to_ns(ub_load_relaxed(&sample->at));
    for (int i = 0; i < UB_REG_COUNT; i++)
        ret->reg[i] = ub_load_relaxed(&sample->reg[i]);
    ret->reg_known = UB_REG_ALL;
    if (bytes) {
        memcpy(ret->bytes, sample->stack, bytes);
        ret->region[0] = (struct ub_stack_region){ret->reg[UB_REG_RSP], bytes, 0};
        ret->region_count = 1;
    }
}

int ub_capture_signal_collect(struct ub_sample *sample, uint64_t (*ticks_to_ns)(uint64_t ticks), struct ub_capture *ret)
{
    uint32_t request = ub_load_relaxed(&sample->request);

    if (request == 0)
        return -ENOENT;
    if (ub_sample_open(request, ub_load_acquire(&sample->done)))
        return -EAGAIN;
    fill(sample, ticks_to_ns, ret);
    ub_store_release(&sample->request, 0);
    return 0;
}

/*
 * Watches for a moment without giving the CPU away, since a sleep of a few
 * microseconds takes longer than the answer; then looks ever more seldom, which
 * also lets the thread run when it shares our CPU. No futex: it would cost the
 * program a system call in its handler.
 */
static int await(struct ub_sample *sample, uint64_t (*ticks_to_ns)(uint64_t ticks), struct ub_capture *ret)
{
    uint64_t begin = ub_clock_monotonic_ns(), waited = 0;
    long ns = POLL_FIRST_NS;
    int r;

    while ((r = ub_capture_signal_collect(sample, ticks_to_ns, ret)) == -EAGAIN && waited < POLL_TOTAL_NS) {
        if (waited >= SPIN_NS) {
            struct timespec ts = {0, ns};

            nanosleep(&ts, NULL);
            ns = ns < POLL_MAX_NS ? 2 * ns : ns;
        }
        waited = ub_clock_monotonic_ns() - begin;
    }
    return r;
}

/*
 * Blocked, but it has answered before: most likely it is still on its way out of
 * the handler, where every signal is blocked, and may be waiting for a CPU there.
 */
static int wait_while_leaving(struct ub_thread_files *f, const struct ub_sample *sample, struct signal_state *s)
{
    int r = 0;

    for (long ns = LEAVE_FIRST_NS; r == 0 && ns <= LEAVE_LAST_NS && s->caught && s->blocked; ns *= 2) {
        struct timespec ts = {0, ns};

        if (ub_load_relaxed(&sample->done) == 0)
            break;
        nanosleep(&ts, NULL);
        r = read_signal_state(f, s);
    }
    return r;
}

static uint32_t fresh_number(const struct ub_sample *sample)
{
    uint32_t open = ub_load_relaxed(&sample->request) & ~UB_SAMPLE_FLAGS, done = ub_load_relaxed(&sample->done);
    uint32_t n = (open ? open : done) + UB_SAMPLE_FLAGS + 1;

    return n ? n : UB_SAMPLE_FLAGS + 1;
}

int ub_capture_signal_ready(pid_t pid, pid_t tid, const struct ub_sample *sample)
{
    UB_CLEANUP(ub_thread_files_put) struct ub_thread_files f;
    uint32_t request = ub_load_relaxed(&sample->request);
    struct signal_state s;
    int r;

    ub_thread_files_take(pid, tid, &f);
    r = read_signal_state(&f, &s);
    if (r == 0)
        r = wait_while_leaving(&f, sample, &s);
    if (r < 0)
        return r;
    if (s.letter != 'R')
        return -EAGAIN;
    if (!s.caught || s.blocked)
        return -ENOTSUP;
    /*
     * The buffer may be handed over when the request of before was answered, or
     * its signal is gone for good (it came when the program had just taken the
     * signal away, or in the last moment of an image).
     */
    if (ub_sample_open(request, ub_load_acquire(&sample->done)) && s.pending)
        return -EAGAIN;
    return 0;
}

void ub_capture_signal_ask(struct ub_sample *sample)
{
    uint32_t request = ub_load_acquire(&sample->request);

    /* One that nobody has taken up, or that the thread itself answers when its call is over, stays what it is. */
    if (!ub_sample_open(request, ub_load_acquire(&sample->done)) || (request & UB_SAMPLE_SENT))
        __atomic_store_n(&sample->request, fresh_number(sample), __ATOMIC_SEQ_CST);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

void ub_capture_signal_withdraw(struct ub_sample *sample)
{
    uint32_t request = ub_load_acquire(&sample->request);

    while (request && !(request & UB_SAMPLE_SENT) &&
           !__atomic_compare_exchange_n(&sample->request, &request, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        ;
}

/* The thread is in no call, and if it enters one now it knows that a signal comes. */
static bool may_send(struct ub_sample *sample, uint64_t start)
{
    uint32_t request = ub_load_acquire(&sample->request);
    uint64_t call = ub_load_acquire(&sample->call);

    if (!ub_sample_open(request, ub_load_acquire(&sample->done)) || (request & UB_SAMPLE_FLAGS) ||
        (call && (int64_t)(call - start) >= 0))
        return false;
    return __atomic_compare_exchange_n(&sample->request, &request, request | UB_SAMPLE_SENT, false, __ATOMIC_SEQ_CST,
                                       __ATOMIC_SEQ_CST);
}

int ub_capture_signal_send(pid_t pid, pid_t tid, struct ub_sample *sample, uint64_t start,
                           uint64_t (*ticks_to_ns)(uint64_t ticks), struct ub_capture *ret)
{
    int r;

    ub_capture_reset(ret);
    if (!may_send(sample, start)) {
        r = ub_capture_signal_collect(sample, ticks_to_ns, ret);
        if (r == 0)
            ret->proc_state = 'R';
        return r;
    }
    if (syscall(SYS_tgkill, pid, tid, SAMPLE_SIGNAL) < 0) {
        r = -errno;
        ub_store_release(&sample->request, 0);
        return ret->error = r;
    }
    r = await(sample, ticks_to_ns, ret);
    if (r == 0)
        ret->proc_state = 'R';
    return r;
}

static void spin(uint64_t ns)
{
    uint64_t begin = ub_clock_monotonic_ns();

    while (ub_clock_monotonic_ns() - begin < ns)
        ;
}

int ub_capture_signal(pid_t pid, pid_t tid, struct ub_sample *sample, uint64_t (*ticks_to_ns)(uint64_t ticks),
                      struct ub_capture *ret)
{
    uint32_t request = ub_load_acquire(&sample->request);
    bool sent = (request & UB_SAMPLE_SENT) && ub_sample_open(request, ub_load_acquire(&sample->done));
    int r;

    if (!sent)
        ub_capture_signal_ask(sample);
    r = ub_capture_signal_ready(pid, tid, sample);
    if (r < 0) {
        ub_capture_signal_withdraw(sample);
        ub_capture_reset(ret);
        if (r != -EAGAIN && r != -ENOTSUP)
            ret->error = r;
        return r;
    }
    if (sent) { /* that one is lost */
        ub_capture_signal_ask(sample);
        spin(UB_CAPTURE_ASK_NS);
    }
    return ub_capture_signal_send(pid, tid, sample, 0, ticks_to_ns, ret);
}
