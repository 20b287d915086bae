/*
 * Executors of concurrent.futures that have more work than workers, while a thread blocks its loop.
 *
 * A ThreadPoolExecutor does not keep which of its workers are busy: its own count of idle ones runs ahead while work is
 * queued. So the workers themselves are asked: one whose innermost frame is its own loop waits for work (or is on its
 * way from one piece to the next); any other is busy with a piece.
 */
#include "python_impl.h"

#include <stdlib.h>

#define POOLS_MAX   64u
#define WORKERS_MAX 256u /* of all pools; the others' are not asked */
#define DICT_USED   16u  /* PyDictObject.ma_used */
#define INT_SIZE    16u  /* PyLongObject: its size, since 3.12 with three bits below it */
#define INT_DIGIT   24u

struct pool {
    uint64_t queue;
    uint32_t workers, queued, asked, busy;
};

struct worker {
    pid_t tid;
    struct pool *pool;
};

/* A module's variable, 0. */
static uint64_t global(struct ub_python *py, const char *module, const char *name)
{
    uint64_t object = ub_python_module(py, module), dict;

    return object && ub_python_read_pointer(py, object + UB_PYTHON_MODULE_DICT, &dict)
               ? ub_python_dict_get(py, dict, name)
               : 0;
}

/* Looked for again only when modules were imported since. */
static void find_executors(struct ub_python *py)
{
    uint64_t modules = ub_python_modules(py), used;

    if (!modules || !ub_python_read_pointer(py, modules + DICT_USED, &used) || used == py->executor_modules)
        return;
    py->executor_modules = used;
    py->thread_queues = global(py, "concurrent.futures.thread", "_threads_queues");
    py->process_wakeups = global(py, "concurrent.futures.process", "_threads_wakeups");
}

/* Items in a queue.SimpleQueue. */
static uint32_t queue_length(struct ub_python *py, uint64_t queue)
{
    const struct ub_python_layout *l = &py->layout;
    uint64_t list, size, first;

    if (!ub_python_is(py, queue, "_queue.SimpleQueue"))
        return 0;
    if (l->queue_count != UB_PYTHON_NONE)
        return ub_python_read_pointer(py, queue + l->queue_count, &size) && size < UINT32_MAX ? (uint32_t)size : 0;
    if (!ub_python_read_pointer(py, queue + l->queue_list, &list) || !ub_python_is(py, list, "list") ||
        !ub_python_read_pointer(py, list + UB_PYTHON_VAR_SIZE, &size) ||
        !ub_python_read_pointer(py, queue + l->queue_first, &first) || first > size || size - first > UINT32_MAX)
        return 0;
    return (uint32_t)(size - first);
}

static void keep_pool(const struct ub_python_pool *pool, struct ub_python_pool *ret)
{
    /*
     * A worker that has not woken yet leaves its item in the queue: that many say nothing, unless all workers are
     * known to be busy.
     */
    if (pool->workers && pool->queued > (pool->busy == pool->workers ? 0 : pool->workers) && pool->queued > ret->queued)
        *ret = *pool;
}

/* The kernel's id of a threading.Thread, 0. */
static pid_t native_id(struct ub_python *py, uint64_t thread)
{
    uint64_t number = ub_python_attribute(py, thread, "_native_id");
    uint8_t bytes[INT_DIGIT + 4 - INT_SIZE];
    uint64_t size;

    if (!number || !ub_python_is(py, number, "int") || !ub_python_read(py, number + INT_SIZE, bytes, sizeof(bytes)))
        return 0;
    size = ub_python_u64(bytes, sizeof(bytes), 0);
    /* One digit has 30 bits, more than any thread's id. A number of 8 digits, by the older form, is nobody's either. */
    return size == 1 || size == 1u << 3 ? (pid_t)ub_python_u32(bytes, sizeof(bytes), INT_DIGIT - INT_SIZE) : 0;
}

/* Whether a worker is at a piece of work. */
static bool is_busy(struct ub_python *py, uint64_t state)
{
    static const char file[] = "concurrent/futures/thread.py";
    struct ub_python_frame frame;
    size_t len;
    bool complete;

    if (ub_python_walk(py, ub_python_innermost(py, state), &frame, 1, &complete) != 1 || !frame.code)
        return false;
    len = strlen(frame.code->file);
    return strcmp(frame.code->function, "_worker") != 0 || len < sizeof(file) - 1 ||
           strcmp(frame.code->file + len - (sizeof(file) - 1), file) != 0;
}

struct asked {
    const struct worker *worker;
    uint32_t count;
};

static void ask(struct ub_python *py, uint64_t state, void *arg)
{
    const struct asked *a = arg;
    pid_t tid = ub_python_thread_tid(py, state);

    for (uint32_t i = 0; i < a->count; i++) {
        if (a->worker[i].tid != tid)
            continue;
        a->worker[i].pool->asked++;
        a->worker[i].pool->busy += is_busy(py, state);
        break;
    }
}

static struct pool *pool_of(struct pool *pool, uint32_t *count, uint64_t queue)
{
    for (uint32_t i = 0; i < *count; i++) {
        if (pool[i].queue == queue)
            return &pool[i];
    }
    if (*count == POOLS_MAX)
        return NULL;
    pool[*count] = (struct pool){.queue = queue};
    return &pool[(*count)++];
}

/* {thread: its executor's queue}. */
static void see_threads(struct ub_python *py, struct ub_python_pool *ret)
{
    uint64_t data = py->thread_queues ? ub_python_attribute(py, py->thread_queues, "data") : 0, thread;
    struct pool pool[POOLS_MAX], *p;
    struct worker worker[WORKERS_MAX];
    struct asked asked = {.worker = worker};
    uint32_t count = 0, pools = 0;
    struct ub_python_entry *list = data ? ub_python_dict(py, data, 4096, &count) : NULL;

    for (uint32_t i = 0; i < count; i++) {
        p = pool_of(pool, &pools, list[i].value);
        if (p && p->workers++ == 0)
            p->queued = queue_length(py, p->queue);
        if (!p || !p->queued || asked.count == WORKERS_MAX ||
            !ub_python_read_pointer(py, list[i].key + UB_PYTHON_WEAKREF_TO, &thread))
            continue;
        worker[asked.count++] = (struct worker){.tid = native_id(py, thread), .pool = p};
    }
    free(list);
    if (asked.count)
        ub_python_each_thread(py, ask, &asked);
    for (uint32_t i = 0; i < pools; i++) {
        p = &pool[i];
        keep_pool(&(struct ub_python_pool){.kind = "ThreadPoolExecutor",
                                           .workers = p->workers,
                                           .queued = p->queued,
                                           .busy = p->asked == p->workers ? p->busy : UB_PYTHON_BUSY_UNKNOWN},
                  ret);
    }
}

static uint32_t length_of(struct ub_python *py, uint64_t dict)
{
    uint64_t used;

    return ub_python_is(py, dict, "dict") && ub_python_read_pointer(py, dict + DICT_USED, &used) && used < UINT32_MAX
               ? (uint32_t)used
               : 0;
}

/* {thread that manages a pool: ...}; the thread has the pool's own tables (since 3.9). */
static void see_processes(struct ub_python *py, struct ub_python_pool *ret)
{
    uint64_t data = py->process_wakeups ? ub_python_attribute(py, py->process_wakeups, "data") : 0, thread;
    uint32_t count = 0;
    struct ub_python_entry *list = data ? ub_python_dict(py, data, POOLS_MAX, &count) : NULL;

    for (uint32_t i = 0; i < count; i++) {
        uint32_t workers, pending;

        if (!ub_python_read_pointer(py, list[i].key + UB_PYTHON_WEAKREF_TO, &thread))
            continue;
        workers = length_of(py, ub_python_attribute(py, thread, "processes"));
        pending = length_of(py, ub_python_attribute(py, thread, "pending_work_items"));
        if (pending > workers)
            keep_pool(&(struct ub_python_pool){.kind = "ProcessPoolExecutor",
                                               .workers = workers,
                                               .queued = pending - workers,
                                               .busy = UB_PYTHON_BUSY_UNKNOWN},
                      ret);
    }
    free(list);
}

void ub_python_see_pools(struct ub_python *py, struct ub_python_pool *ret)
{
    find_executors(py);
    see_threads(py, ret);
    see_processes(py, ret);
}
