/*
 * The watching thread: sleeps until the oldest running turn is overdue, looks,
 * and goes back to sleep. While nothing runs for some rounds it sleeps deeply:
 * it says so in the arena, makes sure by a process-wide memory barrier that no
 * target can have missed it, and waits for the doorbell without a timeout.
 *
 * A little long for one file: meeting, visiting and retiring a slot change its
 * state together, and are read together.
 */
#include "pidns.h"
#include "procfile.h"
#include "punctual.h"
#include "watch_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define UB_QUIET_ROUNDS    8u
#define UB_EAGER_ROUNDS    3u /* after a pause: at 0.5, 2 and 8 ms, see after_a_pause() */
#define UB_EAGER_FIRST_NS  500000u
#define UB_EARLY_MIN_NS    60000u
#define UB_EARLY_MAX_NS    250000u
#define UB_EARLY_PART      10u /* of the threshold, at most: turns that long are spun for although they end in time */
#define UB_PREPARE_NS      40000u /* a look's own preparations, before the thread is touched */
#define UB_HOUSEKEEPING_NS 1000000000u
#define UB_DOZE_SECONDS    1u
#define UB_POLL_MIN_NS     1000000u     /* without deep sleep: not more often than this */
#define UB_LOOP_TRIES      64u          /* rounds in which a loop is looked for in its wait, to know its stack there */
#define UB_JUDGE_TRIES     4096u        /* the same where that stack says whether it is a loop at all */
#define UB_TURN_TRIES      6u           /* to meet a turn of short segments in one of them */
#define UB_LOOKS_MAX       20u          /* doublings; an hour's threshold shifted by more would overflow */
#define UB_LOOK_FAR_NS     60000000000u /* beyond this doubling stops: a look a minute */

static int futex_wait_until(uint32_t *word, uint32_t value, uint64_t until_ns)
{
    struct timespec ts = {(time_t)(until_ns / 1000000000u), (long)(until_ns % 1000000000u)};

    return (int)syscall(SYS_futex, word, FUTEX_WAIT_BITSET, value, until_ns == UINT64_MAX ? NULL : &ts, NULL,
                        FUTEX_BITSET_MATCH_ANY);
}

static bool is_filtered(void)
{
    char status[UB_STATUS_MAX];
    const char *seccomp;

    if (ub_procfile_status(getpid(), getpid(), status) == 0)
        return false;
    seccomp = strstr(status, "\nSeccomp:\t");
    return seccomp && seccomp[10] != '0';
}

static uint64_t own_wait_ns(void)
{
    struct ub_schedstat sched;

    return ub_capture_schedstat(getpid(), (pid_t)syscall(SYS_gettid), &sched) == 0 ? sched.wait_ns : 0;
}

static void forget(struct ub_watched *t)
{
    ub_process_unref(t->process);
    if (t->schedstat_fd >= 0)
        close(t->schedstat_fd);
    memset(t, 0, sizeof(*t));
    t->schedstat_fd = -1;
}

/*
 * The arena is written by the targets, and a hostile one could name a stranger's
 * pid to have it sampled: only a process that really maps this arena is met.
 * (Where the maps may not be read, neither may anything else be done to it.)
 */
static bool maps_our_arena(const struct ub_watch *w, struct ub_process *p)
{
    struct ub_maps *maps;
    bool ours = false;

    if (ub_process_refresh(p) < 0)
        return true;
    maps = ub_process_maps(p);
    for (uint32_t i = 0; maps && i < maps->count; i++)
        ours |= maps->map[i].ino == w->arena_inode && strstr(maps->map[i].path, UB_ARENA_NAME);
    ub_maps_unref(maps);
    return ours;
}

/* Of those who are watched already, or of all. */
pid_t ub_watch_number(const struct ub_watch *w, pid_t slot_pid)
{
    if (!w->foreign)
        return slot_pid;
    for (uint32_t i = 0; i < UB_SLOT_MAX; i++) {
        const struct ub_watched *t = &w->watched[i];

        if (t->process && t->slot_pid == slot_pid && !ub_process_ended(t->process))
            return t->process->pid;
    }
    return ub_pidns_process(w->foreign, slot_pid);
}

/* Threads of one process share its entry. -ESRCH: it is gone; -EPERM: it is not one of ours. */
static int find_process(struct ub_watch *w, pid_t slot_pid, struct ub_process **ret)
{
    pid_t pid = ub_watch_number(w, slot_pid), ppid;
    uint64_t started;
    int r = pid > 0 ? ub_process_start_time(pid, &started, &ppid) : -ESRCH;

    if (pid <= 0)
        return r;

    if (r < 0)
        return kill(pid, 0) < 0 && errno == ESRCH ? -ESRCH : -EAGAIN;
    for (uint32_t i = 0; i < UB_SLOT_MAX; i++) {
        struct ub_process *other = w->watched[i].process;

        if (other && other->pid == pid && other->started == started) {
            *ret = ub_process_ref(other);
            return 0;
        }
    }
    r = ub_process_open(pid, ret);
    if (r == 0 && !w->agentless && !maps_our_arena(w, *ret)) {
        ub_process_unref(*ret);
        *ret = NULL;
        return -EPERM;
    }
    return r;
}

/* 0: the slot's owner is known; else as find_process, and it is looked for again next time unless it is a stranger. */
static int meet(struct ub_watch *w, uint32_t index)
{
    struct ub_watched *t = &w->watched[index];
    const struct ub_slot *slot = &w->arena->slot[index];
    pid_t pid = ub_load_relaxed(&slot->pid), tid = ub_load_relaxed(&slot->tid);
    int r;

    if (t->slot_pid == pid && t->slot_tid == tid)
        return t->process ? 0 : -EPERM;
    forget(t);
    ub_store_relaxed(&w->met[index], 0);
    if (pid <= 0 || tid <= 0)
        return -EPERM;
    r = find_process(w, pid, &t->process);
    if (r == 0 && w->foreign) {
        t->pid = t->process->pid;
        t->tid = ub_pidns_thread(t->pid, tid);
        if (!t->tid) {
            forget(t);
            return -ESRCH;
        }
        ub_store_relaxed(&w->met[index], (uint64_t)t->pid << 32 | (uint32_t)t->tid);
    }
    if (r == 0 || r == -EPERM) {
        t->slot_pid = pid;
        t->slot_tid = tid;
        t->pid = w->foreign ? t->pid : pid;
        t->tid = w->foreign ? t->tid : tid;
    }
    return r;
}

/* An event of the thread that owns the slot, which has been met. */
static struct ub_event *new_event(struct ub_watched *t, uint32_t index, enum ub_event_kind kind)
{
    struct ub_event *e = ub_event_new(kind);

    if (!e)
        return NULL;
    e->slot = index;
    e->pid = t->pid;
    e->tid = t->tid;
    e->process = ub_process_ref(t->process);
    return e;
}

static void queue_stats(struct ub_watch *w, uint32_t index)
{
    struct ub_watched *t = &w->watched[index];
    const struct ub_slot *slot = &w->arena->slot[index];
    struct ub_event *e;

    if (w->outside) /* of turns it knows only those that it tells */
        return;
    if (!t->loop_announced || !t->process || !(e = new_event(t, index, UB_EVENT_STATS)))
        return;
    e->stats = malloc(sizeof(*e->stats));
    if (!e->stats) {
        ub_event_free(e);
        return;
    }
    if (w->agentless)
        ub_bpf_histogram(w->bpf, index, &w->arena->cold[index].turns);
    e->stats->turns = ub_load_relaxed(&slot->turns);
    e->stats->busy_ticks = ub_load_relaxed(&slot->busy);
    e->stats->max_ticks = ub_load_relaxed(&slot->max);
    memcpy(&e->stats->histogram, &w->arena->cold[index].turns, sizeof(e->stats->histogram));
    e->stats->kind = NULL;
    e->stats->kinds = 0;
    ub_watch_library(w, index, e);
    if (e->library)
        ub_watch_kinds(w, index, e->stats);
    ub_watch_yields(w, index, e->stats);
    ub_watch_account(t, false, &e->account);
    e->stats->cpu_ns = e->account.at_ns ? e->account.sched.run_ns : 0;
    ub_watch_queue(w, e);
}

/* How much of a turn (ticks) this process was stopped, as far as it knows itself. */
static uint64_t stopped_ns(const struct ub_watch *w, uint64_t start, uint64_t end)
{
    uint64_t from = ub_load_acquire(&w->stop_from_ns), to = ub_load_acquire(&w->stop_to_ns);
    uint64_t start_ns = ub_ticks_to_ns(start), end_ns = ub_ticks_to_ns(end);

    if (from < start_ns)
        from = start_ns;
    if (to > end_ns)
        to = end_ns;
    return to > from ? to - from : 0;
}

/* From when the turn was first seen to now. Nothing where it never was: the watcher came late. */
static void set_accounts(struct ub_watched *t, const struct ub_record *record, struct ub_event *e)
{
    bool whole = record->flags & UB_RECORD_WHOLE;

    memset(&e->baseline, 0, sizeof(e->baseline));
    if (record->start != (whole ? t->turn : t->start))
        return;
    e->baseline = whole ? t->turn_baseline : t->baseline;
    ub_watch_account(t, true, &e->account);
}

/*
 * The watcher did not run for w->blind_ns before this round. If the target was
 * stopped with it, one turn has all of that in it; shorter ones that ended
 * meanwhile show that the target ran, and only the watcher was kept from it.
 */
static uint64_t stopped_with_us(const struct ub_record *record, uint64_t blind_ns)
{
    return ub_ticks_span_to_ns(record->end - record->start) >= blind_ns - blind_ns / 5 ? blind_ns : 0;
}

static void queue_end(struct ub_watch *w, uint32_t index, const struct ub_record *record)
{
    struct ub_watched *t = &w->watched[index];
    struct ub_event *e;

    if (t->start == record->start) {
        ub_watch_collect(w, index, record->start, record->end);
        ub_capture_signal_withdraw(&w->arena->cold[index].sample); /* or the next turn's first call answers it */
    }
    e = new_event(t, index, UB_EVENT_END);
    if (!e)
        return;
    e->flags = record->flags;
    e->start = record->start;
    e->end = record->end;
    e->ready = record->ready;
    e->blind_ns = stopped_with_us(record, w->blind_ns);
    ub_watch_callback_record(w, t, record, e);
    ub_watch_yields_of(w, index, e);
    if (!(record->flags & UB_RECORD_WHOLE)) /* its calls were its callbacks' */
        ub_watch_calls(w, index, record->start, e);
    set_accounts(t, record, e);
    if (w->bpf)
        ub_watch_kernel_reasons(w, e);
    if (e->blind_ns < stopped_ns(w, record->start, record->end))
        e->blind_ns = stopped_ns(w, record->start, record->end);
    ub_watch_hold(w, e);
}

/* A ring's worth at most: a writer that never stops must not hold the watcher. */
void ub_watch_drain(struct ub_watch *w, uint32_t index)
{
    struct ub_ring *ring = &w->arena->cold[index].ring;
    struct ub_record record;

    for (uint32_t i = 0; i < UB_RING_RECORDS && ub_ring_get(ring, &record) == 0; i++) {
        if (record.kind == UB_RECORD_TURN || record.kind == UB_RECORD_CALLBACK)
            queue_end(w, index, &record);
        else if (record.kind == UB_RECORD_BIG)
            ub_watch_keep_big(w, &w->watched[index], &record);
        else if (record.kind == UB_RECORD_WAITED)
            ub_watch_waited(w, index, &record);
        else if (record.kind == UB_RECORD_YIELDS)
            ub_watch_yields_told(w, index, &record);
        else if (record.kind == UB_RECORD_UNAWAITED)
            ub_watch_unawaited(w, index, &record);
    }
}

/*
 * A thread now counts as a loop. Its stack while it waits tells later which
 * frames of a stall belong to the loop and which to the callback; a loop too
 * busy to be met in its wait is announced without. In a Python program that
 * polls, that look also tells the loop from subprocess.communicate: a starved
 * watcher must not guess it, so it tries on for longer.
 */
static void announce_loop(struct ub_watch *w, uint32_t index, uint64_t start, uint64_t now)
{
    struct ub_watched *t = &w->watched[index];
    bool judged = ub_load_relaxed(&w->arena->slot[index].flags) & UB_SLOT_EPOLL || !ub_watch_is_python(w, t);
    uint32_t tries = judged ? UB_LOOP_TRIES : UB_JUDGE_TRIES;
    struct ub_event *e;

    t->loop_tries++;
    if (start == 0) {
        t->start = 0;
        t->loop_announced = ub_watch_look(w, index, UB_EVENT_LOOP, now, false) == 0;
    }
    if (t->loop_announced || t->loop_tries < tries)
        return;
    t->loop_announced = true;
    e = new_event(t, index, UB_EVENT_LOOP);
    if (!e)
        return;
    ub_watch_library(w, index, e);
    ub_watch_queue(w, e);
}

/* The owner is gone: what it left is read, then the slot is wiped and free again. */
static void retire(struct ub_watch *w, uint32_t index)
{
    struct ub_watched *t = &w->watched[index];
    struct ub_slot *slot = &w->arena->slot[index];
    struct ub_ring *ring = &w->arena->cold[index].ring;
    struct ub_event *e;

    if (ub_watch_from_kernel(w))
        ub_watch_kernel_poll(w); /* its last turns: a late watcher learns first that it is gone */
    if (t->process) {
        ub_watch_drain(w, index);
        ub_watch_release(w, index);
        if (!t->loop_announced && ub_load_relaxed(&slot->flags) & UB_SLOT_QUALIFIED) {
            t->loop_tries = UB_JUDGE_TRIES; /* over before it was met: announced late rather than never */
            announce_loop(w, index, 1, 0);
        }
        queue_stats(w, index);
        e = new_event(t, index, UB_EVENT_GONE);
        if (e) {
            e->start = t->start;
            e->end = t->alive_at > t->start ? t->alive_at : t->start;
            ub_watch_calls(w, index, t->start, e);
            ub_watch_queue(w, e);
        }
    } else {
        uint32_t unread = ub_load_relaxed(&ring->head) - ub_load_relaxed(&ring->tail);

        w->lost += unread < UB_RING_RECORDS ? unread : UB_RING_RECORDS; /* nobody knows whose they are */
    }
    w->lost += ub_load_relaxed(&ring->lost);
    forget(t);
    fallocate(w->arena_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
              (off_t)(offsetof(struct ub_arena, cold) + index * sizeof(struct ub_slot_cold)),
              sizeof(struct ub_slot_cold));
    ub_store_relaxed(&slot->start, 0);
    ub_store_release(&slot->state, UB_SLOT_FREE);
    if (ub_watch_from_kernel(w))
        ub_bpf_free_slot(w->bpf, index);
}

static bool thread_exists(const struct ub_watched *t)
{
    return t->process && !ub_process_ended(t->process) &&
           (syscall(SYS_tgkill, t->pid, t->tid, 0) == 0 || errno == EPERM);
}

static bool may_capture(struct ub_watch *w, uint64_t now_ns)
{
    if (w->tokens_at)
        w->tokens += (double)(now_ns - w->tokens_at) * 1e-9 * w->captures_per_s;
    if (w->tokens > w->captures_per_s)
        w->tokens = w->captures_per_s;
    w->tokens_at = now_ns;
    if (w->tokens < 1) {
        w->rate_limited++;
        return false;
    }
    w->tokens -= 1;
    return true;
}

/* Looks at 1, 2, 4 ... thresholds, and for long stalls each minute. */
static uint64_t next_look(const struct ub_watch *w, const struct ub_watched *t)
{
    uint64_t far = ub_ticks_from_span_ns(UB_LOOK_FAR_NS);
    uint64_t after = w->threshold << (t->looks < UB_LOOKS_MAX ? t->looks : UB_LOOKS_MAX);

    if (t->looks && after > far + (w->threshold << (t->looks - 1 < UB_LOOKS_MAX ? t->looks - 1 : UB_LOOKS_MAX)))
        return t->next + far;
    return t->start + after;
}

/* No look, but a sign of life. Not before it is due: the end of a turn that never was is told by nobody. */
static void queue_going(struct ub_watch *w, uint32_t index)
{
    struct ub_watched *t = &w->watched[index];
    bool still = ub_watch_still(&w->arena->slot[index], t->start, t->next);
    struct ub_event *e = still ? new_event(t, index, UB_EVENT_GOING) : NULL;

    if (!e)
        return;
    e->start = t->start;
    e->end = ub_ticks_now();
    e->flags = ub_load_relaxed(&w->arena->slot[index].flags);
    e->ready = ub_load_relaxed(&w->arena->slot[index].ready);
    e->loop_over = ub_watch_loop_over(e->pid, &w->arena->slot[index]);
    ub_watch_callback(w, index, t->start, e);
    e->baseline = t->baseline;
    ub_watch_queue(w, e);
}

/*
 * A turn may be overdue although no segment of it is. Its looks are given up where
 * segments are too short to be met in. Returns the moment of the next.
 */
static uint64_t visit_turn(struct ub_watch *w, uint32_t index, uint64_t now)
{
    struct ub_watched *t = &w->watched[index];
    uint64_t reported, turn = ub_watch_turn(w, index, t->start, &reported);

    if (turn != t->turn) {
        t->turn = turn;
        t->turn_looks = t->turn_tries = 0;
        t->turn_next = turn + w->threshold;
        t->turn_baseline = t->baseline; /* it begins with a segment that is as new to us */
    }
    /* Looks at the segment itself will do. They come a little before `now` says so, and a stall is told in one go. */
    if (turn == t->start || t->looks || now - t->start >= w->threshold)
        return UINT64_MAX;
    if (t->turn_next < turn + reported + w->threshold)
        t->turn_next = turn + reported + w->threshold;
    if (t->turn_tries == UB_TURN_TRIES)
        return UINT64_MAX;
    if ((int64_t)(now - t->turn_next) < 0)
        return t->turn_next;
    t->turn_tries++;
    if (may_capture(w, ub_clock_monotonic_ns()) && ub_watch_look(w, index, UB_EVENT_SAMPLE, t->turn_next, true) == 0) {
        t->turn_looks++;
        t->turn_tries = 0;
    }
    t->turn_next = now + (t->turn_tries                  ? w->threshold / 8
                          : t->turn_looks < UB_LOOKS_MAX ? w->threshold << t->turn_looks
                                                         : w->threshold << UB_LOOKS_MAX);
    return t->turn_next;
}

/* Returns the moment (ticks) at which this slot wants the next look, or UINT64_MAX. */
static uint64_t visit(struct ub_watch *w, uint32_t index, uint64_t now, bool *ret_busy)
{
    struct ub_watched *t = &w->watched[index];
    struct ub_slot *slot = &w->arena->slot[index];
    uint64_t start, turns, turn_next;
    int r;

    r = meet(w, index);
    if (r == -ESRCH)
        retire(w, index); /* ended before it was met */
    if (r < 0)
        return UINT64_MAX;
    ub_watch_drain(w, index);
    turns = ub_load_relaxed(&slot->turns);
    start = ub_load_acquire(&slot->start);
    *ret_busy |= start != 0 || turns != t->seen_turns;
    t->seen_turns = turns;
    if (!t->loop_announced && ub_load_relaxed(&slot->flags) & UB_SLOT_QUALIFIED)
        announce_loop(w, index, start, now);
    if (t->sampled && start != t->start) {
        ub_bpf_stop_sampling(w->bpf, index);
        t->sampled = false;
    }
    if (start == 0) {
        t->start = 0;
        return UINT64_MAX;
    }
    if (start != t->start) {
        t->start = start;
        t->looks = 0;
        t->next = start + w->threshold;
        ub_watch_account(t, false, &t->baseline);
    }
    ub_watch_collect(w, index, start, now);
    if ((int64_t)(now + ub_ticks_from_span_ns(w->early_ns) - t->next) >= 0) {
        r = may_capture(w, ub_clock_monotonic_ns()) ? ub_watch_look(w, index, UB_EVENT_SAMPLE, t->next, false) : -EBUSY;
        if (r == -ESRCH && !thread_exists(t)) {
            w->tokens += 1;
            retire(w, index);
            return UINT64_MAX;
        }
        if (r == -EBUSY)
            queue_going(w, index);
        else
            t->alive_at = now;
        t->looks++;
        t->next = next_look(w, t);
    }
    turn_next = visit_turn(w, index, now);
    return turn_next < t->next ? turn_next : t->next;
}

static void housekeep(struct ub_watch *w, uint32_t high)
{
    static uint32_t rounds;
    bool stats = ++rounds % 10 == 0;

    ub_ticks_adjust();
    w->own_wait_ns = own_wait_ns();
    for (uint32_t i = 0; i < high; i++) {
        if (ub_load_acquire(&w->arena->slot[i].state) != UB_SLOT_LIVE || meet(w, i) < 0)
            continue;
        if (!thread_exists(&w->watched[i]) || ub_load_relaxed(&w->watched[i].process->left)) {
            retire(w, i);
            continue;
        }
        w->watched[i].alive_at = ub_ticks_now();
        if (ub_watch_from_kernel(w))
            ub_bpf_histogram(w->bpf, i, &w->arena->cold[i].turns);
        if (stats)
            queue_stats(w, i);
    }
    ub_watch_pools(w, false);
}

/* One round over all slots. Returns when to be back (ticks). */
static uint64_t round_of_slots(struct ub_watch *w, uint32_t high, bool *ret_busy, bool *ret_can_sleep)
{
    uint64_t now = ub_ticks_now();
    uint64_t deadline = now + w->threshold;

    *ret_busy = false;
    *ret_can_sleep = true;
    for (uint32_t i = 0; i < high; i++) {
        struct ub_slot *slot = &w->arena->slot[i];
        uint32_t state = ub_load_acquire(&slot->state);
        uint64_t next, held;

        if (state == UB_SLOT_RELEASED)
            retire(w, i);
        if (state != UB_SLOT_LIVE)
            continue;
        next = visit(w, i, now, ret_busy);
        held = ub_watch_held_until(w, i, now);
        *ret_busy |= held != UINT64_MAX;
        if (held < next)
            next = held;
        if (next < deadline)
            deadline = next;
        if (!w->agentless && !(ub_load_relaxed(&slot->flags) & UB_SLOT_BARRIER))
            *ret_can_sleep = false;
    }
    ub_watch_sites(w);
    return deadline;
}

/*
 * A loop that wakes from a pause often makes a short turn or two before the
 * slow one. Looking again soon sees that one early in its life, and so nearly
 * all of it is accounted for; a steadily busy loop costs no extra rounds.
 */
static uint64_t after_a_pause(uint64_t deadline, uint32_t *eager)
{
    uint64_t soon;

    if (*eager == 0)
        return deadline;
    soon = ub_ticks_now() + ub_ticks_from_span_ns((uint64_t)UB_EAGER_FIRST_NS << (2 * (UB_EAGER_ROUNDS - *eager)));
    --*eager;
    return soon < deadline ? soon : deadline;
}

static uint32_t slots_high(const struct ub_watch *w)
{
    uint32_t high = ub_load_acquire(&w->arena->h.slots_high);

    return high < UB_SLOT_MAX ? high : UB_SLOT_MAX;
}

bool ub_watch_any_running(const struct ub_watch *w)
{
    for (uint32_t i = 0; i < slots_high(w); i++) {
        const struct ub_slot *slot = &w->arena->slot[i];

        if (ub_load_relaxed(&slot->state) == UB_SLOT_LIVE && ub_load_relaxed(&slot->start) != 0)
            return true;
    }
    return false;
}

/*
 * The kernel's programs wake us when a turn begins. After a second without one
 * the calls of the machine are not looked at any more, until there is.
 */
static void sleep_until_the_kernel_wakes(struct ub_watch *w)
{
    uint64_t until = ub_clock_monotonic_ns() + UB_HOUSEKEEPING_NS;

    ub_bpf_ask_to_be_woken(w->bpf, true);
    if (w->quiet_seconds >= UB_DOZE_SECONDS)
        ub_watch_kernel_doze(w);
    if (!ub_watch_any_running(w))
        ub_bpf_sleep(w->bpf, until);
    if (ub_clock_monotonic_ns() >= until) {
        w->quiet_seconds++;
    } else {
        w->quiet_seconds = 0;
        ub_watch_kernel_end_doze(w);
    }
    ub_bpf_ask_to_be_woken(w->bpf, false);
}

/*
 * Every registered target's stores of `start` before the barrier are visible to
 * the second look, and its loads of `asleep` after it see the flag: no turn can
 * begin unnoticed.
 */
static void sleep_deeply(struct ub_watch *w, uint32_t bell)
{
    bool looks = w->bpf && ub_watch_kernel_looks(w);
    uint64_t until = looks ? ub_clock_monotonic_ns() + UB_HOUSEKEEPING_NS : UINT64_MAX;

    if (ub_watch_from_kernel(w)) {
        sleep_until_the_kernel_wakes(w);
        return;
    }
    ub_store_relaxed(&w->arena->h.asleep, 1);
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0) == 0 && !ub_watch_any_running(w))
        futex_wait_until(&w->arena->h.doorbell, bell, until);
    ub_store_relaxed(&w->arena->h.asleep, 0);
    if (looks && ub_clock_monotonic_ns() >= until)
        ub_watch_kernel_doze(w);
    else if (w->bpf)
        ub_watch_kernel_end_doze(w);
}

/*
 * A timed sleep ends late: 10 us on a good machine, 50 to 150 in a virtual one.
 * So it is set to end as much earlier as nearly all sleeps of late were late,
 * and what is left is spun, only for a turn still running by then.
 */
static void learn_lateness(struct ub_watch *w, uint64_t late)
{
    uint64_t most = w->threshold_ns / UB_EARLY_PART;

    if (late > w->late_ns)
        w->late_ns += (late - w->late_ns) / 8;
    else
        w->late_ns -= (w->late_ns - late) / 128;
    w->early_ns = w->late_ns + UB_PREPARE_NS;
    if (w->early_ns > UB_EARLY_MAX_NS)
        w->early_ns = UB_EARLY_MAX_NS;
    if (w->early_ns > most)
        w->early_ns = most;
    if (w->early_ns < UB_EARLY_MIN_NS)
        w->early_ns = UB_EARLY_MIN_NS;
}

/*
 * Sleeps until `deadline`. Returns by how much longer it slept when that was
 * not the run queue's doing: this process was stopped or the machine suspended,
 * and so, most likely, were the targets.
 */
static uint64_t sleep_until(struct ub_watch *w, uint32_t bell, uint64_t deadline)
{
    uint64_t until = ub_ticks_to_ns(deadline) - w->early_ns, now, late;

    if (ub_watch_from_kernel(w))
        ub_bpf_sleep(w->bpf, until);
    else
        futex_wait_until(&w->arena->h.doorbell, bell, until);
    now = ub_clock_monotonic_ns();
    late = now > until ? now - until : 0;
    w->last_late_ns = late;
    if (late && late < 1000000u)
        learn_lateness(w, late);
    if (late < w->threshold_ns || late < 100000000u)
        return 0;
    return own_wait_ns() - w->own_wait_ns > late / 2 ? 0 : late;
}

static void finish(struct ub_watch *w)
{
    w->blind_ns = 0;
    if (w->bpf) {
        ub_bpf_see_no_more(w->bpf);
        ub_watch_kernel_poll(w);
    }
    for (uint32_t i = 0; i < slots_high(w); i++) {
        if (ub_load_acquire(&w->arena->slot[i].state) == UB_SLOT_LIVE && meet(w, i) == 0)
            ub_watch_drain(w, i);
        ub_watch_sites(w);
        if (w->watched[i].process) {
            w->watched[i].alive_at = ub_ticks_now();
            w->left_running += thread_exists(&w->watched[i]);
            retire(w, i);
        }
    }
    ub_watch_pools(w, true);
}

void *ub_watch_loop(void *watch)
{
    struct ub_watch *w = watch;
    uint32_t quiet = 0, eager = 0;

    ub_punctual_begin(NULL);
    w->early_ns = UB_EARLY_MIN_NS;
    w->filtered = is_filtered();
    while (!ub_load_acquire(&w->stopping)) {
        uint32_t bell = ub_load_acquire(&w->arena->h.doorbell), high = slots_high(w);
        uint64_t now_ns = ub_clock_monotonic_ns(), deadline;
        bool busy, can_sleep;

        if (now_ns - w->housekeeping_at >= UB_HOUSEKEEPING_NS) {
            w->housekeeping_at = now_ns;
            housekeep(w, high);
        }
        if (w->bpf)
            ub_watch_kernel_poll(w);
        deadline = round_of_slots(w, high, &busy, &can_sleep);
        if (w->bpf)
            deadline = ub_watch_kernel_see(w, high, deadline);
        w->blind_ns = 0;
        if (busy && quiet > 0)
            eager = UB_EAGER_ROUNDS;
        quiet = busy ? 0 : quiet + 1;
        deadline = after_a_pause(deadline, &eager);
        if (high > 0 && quiet < UB_QUIET_ROUNDS)
            w->blind_ns = sleep_until(w, bell, deadline);
        else if (can_sleep && !w->filtered && !ub_load_acquire(&w->stopping))
            sleep_deeply(w, bell);
        else
            w->blind_ns = sleep_until(w, bell, deadline + ub_ticks_from_span_ns(UB_POLL_MIN_NS));
    }
    finish(w);
    return NULL;
}
