/*
 * Who waits while a thread blocks its loop: tasks of that loop that are ready to
 * go on, timers of it that are due. Executors with more work than workers: python_pools.c.
 *
 * Read in blocks: a loop may have thousands of tasks, and one call each would
 * take longer than the stall.
 */
#include "python_impl.h"

#include <math.h>
#include <stdlib.h>

#define TASKS_MAX  8192u
#define TIMERS_MAX 8192u
#define TASK_BYTES 192u /* up to the last field that is looked at */
#define DIGIT      24u  /* PyLongObject.ob_digit */

/* ---- tasks -------------------------------------------------------------- */

struct sight {
    uint64_t loop, current; /* the task that runs, 0 */
    uint64_t *address;
    uint8_t *bytes;
    uint32_t count;
};

/* Addresses of the tasks in a set, weakly held or not. */
static void collect(struct ub_python *py, uint64_t set, bool weak, struct sight *s)
{
    uint64_t mask, table, *entry;
    uint32_t first = s->count;

    if (!set || !ub_python_is(py, set, "set") || !ub_python_read_pointer(py, set + UB_PYTHON_SET_MASK, &mask) ||
        mask >= 4 * TASKS_MAX || !ub_python_read_pointer(py, set + UB_PYTHON_SET_TABLE, &table))
        return;
    entry = malloc((mask + 1) * 16);
    if (entry && ub_python_read(py, table, entry, (mask + 1) * 16)) {
        for (uint64_t i = 0; i <= mask && s->count < TASKS_MAX; i++) {
            if (entry[2 * i])
                s->address[s->count++] = entry[2 * i] + (weak ? UB_PYTHON_WEAKREF_TO : 0);
        }
        if (weak) {
            ub_python_read_many(py, s->address + first, s->count - first, 8, s->bytes);
            memcpy(s->address + first, s->bytes, 8 * (size_t)(s->count - first));
        }
    }
    free(entry);
}

/* What a task waits for is done: it is about to be resumed. */
static uint32_t count_woken(struct ub_python *py, uint64_t *waiter, uint32_t count, uint8_t *bytes)
{
    uint32_t woken = 0;

    ub_python_read_many(py, waiter, count, TASK_BYTES, bytes);
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *future = bytes + (size_t)i * TASK_BYTES;

        if (ub_python_u32(future, TASK_BYTES, py->layout.future_state) != 0 &&
            (ub_python_derives(py, waiter[i], "_asyncio.Future") || ub_python_derives(py, waiter[i], "_asyncio.Task")))
            woken++;
    }
    return woken;
}

static uint32_t count_ready(struct ub_python *py, struct sight *s)
{
    const struct ub_python_layout *l = &py->layout;
    uint32_t ready = 0, waiters = 0;

    ub_python_read_many(py, s->address, s->count, TASK_BYTES, s->bytes);
    for (uint32_t i = 0; i < s->count; i++) {
        const uint8_t *task = s->bytes + (size_t)i * TASK_BYTES;
        uint64_t waiter = ub_python_u64(task, TASK_BYTES, l->task_waiter), at = s->address[i];

        if (at == s->current || ub_python_u64(task, TASK_BYTES, UB_PYTHON_FUTURE_LOOP) != s->loop ||
            ub_python_u32(task, TASK_BYTES, l->future_state) != 0)
            continue;
        if (waiter)
            s->address[waiters++] = waiter;
        else if (ub_python_derives(py, at, "_asyncio.Task"))
            ready++;
    }
    return ready + count_woken(py, s->address, waiters, s->bytes);
}

static void see_tasks(struct ub_python *py, uint64_t loop, uint64_t current, struct ub_python_waiting *ret)
{
    struct sight s = {.loop = loop, .current = current};
    uint64_t dict = ub_python_asyncio(py);

    s.address = malloc(TASKS_MAX * sizeof(*s.address));
    s.bytes = malloc((size_t)TASKS_MAX * TASK_BYTES);
    if (dict && s.address && s.bytes) {
        if (py->layout.version < 0x030c) {
            collect(py, ub_python_weak_set(py, ub_python_dict_get(py, dict, "_all_tasks")), true, &s);
        } else {
            collect(py, ub_python_weak_set(py, ub_python_dict_get(py, dict, "_scheduled_tasks")), true, &s);
            collect(py, ub_python_dict_get(py, dict, "_eager_tasks"), false, &s);
        }
        if (s.count < TASKS_MAX)
            ret->tasks = count_ready(py, &s);
    }
    free(s.address);
    free(s.bytes);
}

/* ---- timers ------------------------------------------------------------- */

/* asyncio's own loops keep a heap of TimerHandles: the first is due first. */
static void see_timers(struct ub_python *py, uint64_t loop, uint64_t now_ns, struct ub_python_waiting *ret)
{
    uint64_t list = ub_python_attribute(py, loop, "_scheduled"), size, items, type, *handle, *when;
    uint32_t when_at, cancelled_at, count = 0;
    uint8_t *bytes;

    if (!list || !ub_python_is(py, list, "list") || !ub_python_read_pointer(py, list + UB_PYTHON_VAR_SIZE, &size) ||
        size == 0 || size > TIMERS_MAX || !ub_python_read_pointer(py, list + UB_PYTHON_LIST_ITEMS, &items))
        return;
    handle = malloc(size * sizeof(*handle));
    when = malloc(size * sizeof(*when));
    bytes = malloc(size * 128);
    if (!handle || !when || !bytes || !ub_python_read(py, items, handle, size * sizeof(*handle)) ||
        !ub_python_read_pointer(py, handle[0] + UB_PYTHON_OBJECT_TYPE, &type))
        size = 0;
    when_at = size ? ub_python_slot(py, type, "_when") : 0;
    cancelled_at = size && when_at ? ub_python_base_slot(py, type, "_cancelled") : 0;
    if (!when_at || !cancelled_at || when_at > 120 || cancelled_at > 120)
        size = 0;
    ub_python_read_many(py, handle, (uint32_t)size, 128, bytes);
    for (uint32_t i = 0; i < size; i++) {
        uint64_t cancelled = ub_python_u64(bytes + 128ul * i, 128, cancelled_at);
        uint32_t digit = 1;

        if (ub_python_read(py, cancelled + DIGIT, &digit, sizeof(digit)) && digit == 0)
            when[count++] = ub_python_u64(bytes + 128ul * i, 128, when_at) + 16; /* PyFloatObject.ob_fval */
    }
    ub_python_read_many(py, when, count, 8, bytes);
    for (uint32_t i = 0; i < count; i++) {
        double seconds;

        memcpy(&seconds, bytes + 8ul * i, 8);
        if (!isfinite(seconds) || seconds <= 0 || seconds * 1e9 > (double)now_ns)
            continue;
        ret->timers++;
        if (!ret->due_ns || seconds * 1e9 < (double)ret->due_ns)
            ret->due_ns = (uint64_t)(seconds * 1e9);
    }
    free(handle);
    free(when);
    free(bytes);
}

/* ---- all ---------------------------------------------------------------- */

/* The loop that the thread runs: that of its task, else `self` of asyncio's own function that runs it. */
static uint64_t loop_of(struct ub_python *py, const struct ub_python_look *look)
{
    uint64_t self;

    if (look->task.known)
        return look->task.loop;
    for (uint32_t i = look->count; i-- > 0;) {
        const struct ub_python_code *code = look->frame[i].code;
        size_t len = strlen(code->function);

        if (code->owner == UB_PYTHON_LOOP && len >= 9 && strcmp(code->function + len - 9, "_run_once") == 0)
            return ub_python_read_pointer(py, look->frame[i].address + py->layout.frame_locals, &self) ? self : 0;
    }
    return 0;
}

void ub_python_see_waiting(struct ub_python *py, uint64_t now_ns, struct ub_python_look *look)
{
    uint64_t loop = look->count ? loop_of(py, look) : 0;

    if (!loop)
        return;
    see_tasks(py, loop, look->task.address, &look->waiting);
    if (ub_python_derives(py, loop, "BaseEventLoop"))
        see_timers(py, loop, now_ns, &look->waiting);
    ub_python_see_pools(py, &look->pool);
}
