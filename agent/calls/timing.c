/*
 * A blocking call has returned that took long: it goes into its turn's report
 * (common/calls.h), the longest one with a copy of its stack.
 */
#include "timing.h"

#include "../offload/sites.h"
#include "../offload/suspend.h"
#include "../python/stack.h"
#include "../raw.h"

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>

uint64_t ub_timing_stream(FILE *stream)
{
    return stream ? (uint64_t)fileno(stream) : UINT64_MAX; /* takes no lock, and is no hook */
}

/* The letters are those of each call's values, as calls.def explains them. */
static const struct {
    const char *name, *syscall, *letters;
} table[UB_CALL_IDS] = {
#define UB_CALL(type, name, params, args, syscall, letters, ...) {#name, #syscall, letters},
#define UB_CALLV(type, name, params, args, syscall, letters)     {#name, #syscall, letters},
#include "../../common/calls.def"
#undef UB_CALL
#undef UB_CALLV
};

const char *ub_timing_name(uint32_t id)
{
    return table[id].name;
}

const char *ub_timing_syscall(uint32_t id)
{
    return table[id].syscall;
}

const struct ub_call_report *ub_timing_report(const struct ub_thread *t, uint64_t turn)
{
    const struct ub_calls *calls = &t->cold->calls;
    const struct ub_call_report *r = &calls->report[calls->last % UB_CALLS_REPORTS];

    return turn && r->turn == turn && r->count > 0 ? r : NULL;
}

uint32_t ub_timing_copy(void *to, uint64_t from, size_t size)
{
    const struct ub_process *page = ub_process;
    struct iovec local = {to, size}, remote[2];
    size_t first = 4096 - (from & 4095);
    long n;

    if (page->quiet || !from)
        return 0;
    if (first > size)
        first = size;
    remote[0] = (struct iovec){(void *)from, first};
    remote[1] = (struct iovec){(void *)(from + first), size - first};
    n = ub_raw6(SYS_process_vm_readv, page->pid, (long)&local, 1, (long)remote, first < size ? 2 : 1, 0);
    return n > 0 ? (uint32_t)n : 0;
}

/* What the descriptor is just now, as /proc has it: later the number may mean another file. */
static uint32_t copy_link(void *to, uint64_t fd, size_t size)
{
    char path[32] = "/proc/self/fd/", digits[12], *p = path + 14;
    int n = 0;
    long len;

    if (ub_process->quiet || fd > INT32_MAX)
        return 0;
    do
        digits[n++] = (char)('0' + fd % 10);
    while ((fd /= 10) > 0);
    while (n > 0)
        *p++ = digits[--n];
    *p = '\0';
    len = ub_raw4(SYS_readlinkat, AT_FDCWD, path, to, size);
    return len > 0 ? (uint32_t)len : 0;
}

/* Of an array of pollfds with a single entry. UINT64_MAX: it has several, none, or cannot be read. */
static uint64_t single_descriptor(uint64_t fds, uint64_t count)
{
    struct pollfd only;

    if (count != 1 || ub_timing_copy(&only, fds, sizeof(only)) != sizeof(only) || only.fd < 0)
        return UINT64_MAX;
    return (uint64_t)only.fd;
}

/* What takes system calls: strings, times, links of descriptors. That may be more than the call took. */
static void fill(struct ub_timed_call *c, const uint64_t *value)
{
    const char *letters = c->id < UB_CALL_IDS ? table[c->id].letters : "";
    uint32_t text = 0, count = (uint32_t)strlen(letters);

    memcpy(c->value, value, sizeof(c->value));
    memset(c->text_len, 0, sizeof(c->text_len));
    for (uint32_t i = 0; i < count; i++) {
        struct timespec time = {0};

        if (letters[i] == 'q')
            c->value[i] = single_descriptor(value[i], value[i + 1]);
        if ((letters[i] == 'f' || letters[i] == 'q') && text < UB_CALLS_TEXTS) {
            c->text_len[text] = copy_link(c->text[text], c->value[i], UB_CALLS_TEXT);
            text++;
        }
        if ((letters[i] == 'p' || letters[i] == 'a') && text < UB_CALLS_TEXTS) {
            c->text_len[text] = ub_timing_copy(c->text[text], value[i], UB_CALLS_TEXT);
            text++;
        }
        if (letters[i] == 't')
            c->value[i] = ub_timing_copy(&time, value[i], sizeof(time)) == sizeof(time)
                              ? (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec
                              : UINT64_MAX;
    }
}

/* This turn's report: the last one, or the oldest taken anew. */
static struct ub_call_report *report_of(struct ub_calls *calls, uint64_t turn)
{
    struct ub_call_report *r = &calls->report[calls->last % UB_CALLS_REPORTS];

    if (r->turn != turn) {
        ub_store_relaxed(&calls->last, (calls->last + 1) % UB_CALLS_REPORTS);
        r = &calls->report[calls->last % UB_CALLS_REPORTS];
    }
    ub_store_relaxed(&r->seq, r->seq | 1);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    if (r->turn != turn) {
        r->turn = turn;
        r->count = r->others = r->stack = 0;
        r->others_total = r->stack_call = 0;
    }
    return r;
}

/* What ran inside this call (a resolver's own reads) is part of it and not told twice. */
static void drop_inner(struct ub_call_report *r, uint64_t begun)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < r->count; i++) {
        if (r->call[i].first >= begun)
            continue;
        if (kept != i)
            r->call[kept] = r->call[i];
        kept++;
    }
    r->count = kept;
}

/* The entry for this function and place; the shortest makes room. NULL: this call is shorter than all there are. */
static struct ub_timed_call *entry_of(struct ub_call_report *r, uint32_t id, uint64_t ra, uint64_t spent)
{
    struct ub_timed_call *shortest = &r->call[0];

    for (uint32_t i = 0; i < r->count; i++) {
        if (r->call[i].id == id && r->call[i].ra == ra)
            return &r->call[i];
        if (r->call[i].longest < shortest->longest)
            shortest = &r->call[i];
    }
    if (r->count < UB_CALLS_KEPT) {
        shortest = &r->call[r->count++];
    } else if (shortest->longest < spent) {
        r->others += shortest->count;
        r->others_total += shortest->total;
    } else {
        return NULL;
    }
    memset(shortest, 0, offsetof(struct ub_timed_call, text)); /* and no line more than is needed */
    shortest->id = id;
    shortest->ra = ra;
    return shortest;
}

/* The place in the pool that this turn has already, or the next one. NULL: somebody is just writing there. */
static struct ub_call_stack *claim(struct ub_call_report *r, int32_t tid)
{
    struct ub_arena *arena = ub_process->arena;

    for (int tries = 0; tries < 2; tries++) {
        struct ub_call_stack *s;
        uint32_t seq;

        if (!r->stack)
            r->stack = 1 + __atomic_fetch_add(&arena->h.call_stacks, 1, __ATOMIC_RELAXED) % UB_CALLS_STACKS;
        s = &arena->call_stack[(r->stack - 1) % UB_CALLS_STACKS];
        seq = ub_load_relaxed(&s->seq);
        if (!(seq & 1) &&
            __atomic_compare_exchange_n(&s->seq, &seq, seq + 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
            if (tries || s->turn == 0 || (s->turn == r->turn && s->tid == tid) || r->stack_call == 0)
                return s;
            ub_store_release(&s->seq, seq + 2); /* it went to another turn in the meantime */
        }
        r->stack = 0;
        r->stack_call = 0;
    }
    return NULL;
}

/*
 * Registers and stack of this very place. The tracer unwinds through our own
 * frames, and so finds what the callers keep in registers. Not inlined: the
 * frame that is captured must be a call's.
 */
static __attribute__((noinline)) void capture(struct ub_call_stack *s)
{
    uint64_t *reg = s->reg;

    memset(s->reg, 0, sizeof(s->reg));
    __asm__ volatile("lea 0(%%rip), %%rax\n\t"
                     "mov %%rax, 16*8(%0)\n\t"
                     "mov %%rsp, 7*8(%0)\n\t"
                     "mov %%rbp, 6*8(%0)\n\t"
                     "mov %%rbx, 3*8(%0)\n\t"
                     "mov %%r12, 12*8(%0)\n\t"
                     "mov %%r13, 13*8(%0)\n\t"
                     "mov %%r14, 14*8(%0)\n\t"
                     "mov %%r15, 15*8(%0)\n\t"
                     :
                     : "r"(reg)
                     : "rax", "memory");
    s->bytes = ub_timing_copy(s->stack, s->reg[7], sizeof(s->stack));
}

static void keep_stack(struct ub_call_report *r, int32_t tid, uint64_t begun)
{
    struct ub_call_stack *s = claim(r, tid);

    if (!s)
        return;
    s->turn = r->turn;
    s->tid = tid;
    capture(s);
    s->frames = ub_python_stack(s->frame, UB_CALLS_FRAMES);
    r->stack_call = begun;
    ub_store_release(&s->seq, s->seq + 1);
}

static bool is_longest(const struct ub_call_report *r, const struct ub_timed_call *c)
{
    for (uint32_t i = 0; i < r->count; i++) {
        if (&r->call[i] != c && r->call[i].longest >= c->longest)
            return false;
    }
    return true;
}

/* Where calls may move, its place is remembered if it blocked for as long as a stall is. */
static void judge(const struct ub_thread *t, uint32_t id, uint64_t spent, uintptr_t ra, const uint64_t *value,
                  struct ub_verdict *ret)
{
    uintptr_t sp = (uintptr_t)__builtin_frame_address(0);

    t->cold->spans.call_ra = ra; /* the dry run has not set it, and another call may have come since */
    ub_decide(t, id, value, sp, ub_suspend_stack(sp), ret);
    if (ret->pin == UB_PIN_MOVABLE && ub_sites_denies(t, id))
        ret->pin = UB_PIN_POLICY;
    if (ub_offload_now() > UB_OFFLOAD_DRY_RUN && ret->pin == UB_PIN_MOVABLE &&
        spent >= ub_load_relaxed(&ub_process->arena->h.threshold))
        ub_sites_blocked(t, id, spent);
}

/* `known`: NULL, or what its caller has found out. */
static void add(struct ub_thread *t, struct ub_call_report *r, uint32_t id, uint64_t begun, uint64_t spent,
                uintptr_t ra, const uint64_t *value, const struct ub_verdict *known)
{
    uint64_t threshold = ub_load_relaxed(&ub_process->arena->h.threshold);
    struct ub_verdict verdict = known ? *known : (struct ub_verdict){.pin = UB_PIN_UNKNOWN};
    struct ub_timed_call *c;
    bool longest;

    drop_inner(r, begun);
    c = entry_of(r, id, ra, spent);
    /* A dozen questions to the kernel: not for what is nothing, nor adds up to something. */
    if (!known && ub_offload_now() != UB_OFFLOAD_OFF &&
        (spent >= threshold / 64 || (c && c->total + spent >= threshold / 16)))
        judge(t, id, spent, ra, value, &verdict);
    if (!c) {
        r->others++;
        r->others_total += spent;
        return;
    }
    if (c->count++ == 0)
        c->first = begun;
    c->total += spent;
    if (verdict.pin == UB_PIN_MOVABLE)
        c->movable =
            c->pin == UB_PIN_UNKNOWN ? c->total : c->movable + spent; /* with those before that were not asked about */
    if (c->pin == UB_PIN_UNKNOWN)
        c->pin = verdict.pin;
    longest = spent >= c->longest;
    if (longest) {
        c->longest = spent;
        c->pin = verdict.pin;
        c->executor = verdict.executor;
        c->lock = verdict.lock;
        c->start = begun;
        memcpy(c->value, value, sizeof(c->value));
        memset(c->text_len, 0, sizeof(c->text_len));
    }
    /* Little is spent on what will hardly be told: a send that was a moment without a CPU is no stall. */
    if ((longest || !c->told) && c->total >= threshold >> UB_CALLS_TOLD) {
        c->told = 1;
        fill(c, value);
    }
    if (longest && spent >= threshold / 2 && id < UB_CALL_IDS && is_longest(r, c))
        keep_stack(r, t->slot->tid, begun);
}

/* A child of vfork runs on its parent's memory, thread block included: nothing is told of what it does. */
static bool in_vfork_child(const struct ub_process *page)
{
    return page->quiet != UB_QUIET_STRICT && ub_raw0(SYS_getpid) != page->pid;
}

uint64_t ub_timing_now(void)
{
    return ub_clock_ticks(ub_process->clock);
}

UB_HOT void ub_timing_place(const struct ub_thread *t, uintptr_t ra)
{
    if (t->generation == ub_process->generation) /* in a forked child the slot is its parent's */
        t->cold->spans.call_ra = ra;
}

uint64_t ub_timing_begin(const struct ub_thread *t, uintptr_t ra)
{
    if (ub_offload_mode > UB_OFFLOAD_DRY_RUN)
        ub_timing_place(t, ra);
    return ub_timing_now();
}

/* False: the process forked or the turn ended while we were in it (a signal handler did), or it was not so long. */
static bool is_slow(const struct ub_thread *t, uint64_t begun, uint64_t ended)
{
    uint64_t floor = t->call_floor;

    if (t->generation != ub_process->generation || !t->start || t->start > begun)
        return false;
    if (floor == 0 || floor >= UB_FLOOR_MOST)
        floor = ub_load_relaxed(&ub_process->arena->h.call_floor);
    return ended - begun >= floor;
}

/* Where the machine is busy, most of them were a moment without a CPU: it need not be small, but quick. */
static __attribute__((noinline)) void note_slow(struct ub_thread *t, uint32_t id, uint64_t begun, uint64_t ended,
                                                uintptr_t ra, const uint64_t *value, const struct ub_verdict *known)
{
    struct ub_calls *calls = &t->cold->calls;
    struct ub_call_report *r;

    if (!is_slow(t, begun, ended) || in_vfork_child(ub_process))
        return;
    if (calls->writing == t->start) { /* we are in a signal handler that came in the midst of this */
        ub_store_relaxed(&calls->lost, calls->lost + 1);
        return;
    }
    calls->writing = t->start;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    r = report_of(calls, t->start);
    add(t, r, id, begun, ended - begun, ra, value, known);
    ub_store_release(&r->seq, (r->seq | 1) + 1);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    calls->writing = 0;
}

void ub_timing_slow(struct ub_thread *t, uint32_t id, uint64_t begun, uint64_t ended, uintptr_t ra,
                    const uint64_t *value)
{
    note_slow(t, id, begun, ended, ra, value, NULL);
}

void ub_timing_unit(struct ub_thread *t, uint32_t id, uint64_t begun, uint64_t ended, uintptr_t ra,
                    const struct ub_verdict *verdict)
{
    static const uint64_t none[UB_CALLS_VALUES];

    note_slow(t, id, begun, ended, ra, none, verdict);
}
