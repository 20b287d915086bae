#include "static_pool.h"

#include "symbols.h"

#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#define THREADS_MOST 1024u
#define QUEUE_MOST   64u   /* entries that are counted: each is a read of the process's memory */
#define TOGETHER     4096u /* bytes: the variables of one source file lie together */

static bool find(struct ub_elf *elf, const char *name, uint64_t size, uint64_t *ret)
{
    uint64_t found_size;

    return ub_symbols_lookup_data(elf, name, ret, &found_size) == 0 && *ret != 0 && found_size == size;
}

/* All of them, and near one another: other libraries have an `nthreads`, too. */
static bool find_all(struct ub_elf *elf, struct ub_static_pool *ret)
{
    uint64_t address, size;

    if (ub_symbols_lookup(elf, "uv__work_submit", &address, &size) < 0 ||
        !find(elf, "nthreads", sizeof(uint32_t), &ret->threads) ||
        !find(elf, "idle_threads", sizeof(uint32_t), &ret->idle) || !find(elf, "wq", 2 * sizeof(uint64_t), &ret->queue))
        return false;
    if (!find(elf, "run_slow_work_message", 2 * sizeof(uint64_t), &ret->token))
        ret->token = 0;
    return ret->idle - ret->threads + TOGETHER < 2 * TOGETHER && ret->queue - ret->threads + TOGETHER < 2 * TOGETHER;
}

void ub_static_pool_find(struct ub_process *p)
{
    struct ub_maps *maps = p->exe ? ub_process_maps(p) : NULL;
    struct ub_static_pool pool = {0}, *kept;
    const struct ub_map *map = NULL;

    for (uint32_t i = 0; maps && i < maps->count && !map; i++) {
        if (maps->map[i].elf && strcmp(maps->map[i].path, p->exe) == 0)
            map = &maps->map[i];
    }
    kept = map && find_all(map->elf, &pool) ? malloc(sizeof(*kept)) : NULL;
    if (kept) {
        *kept = (struct ub_static_pool){.threads = map->bias + pool.threads,
                                        .idle = map->bias + pool.idle,
                                        .queue = map->bias + pool.queue,
                                        .token = pool.token ? map->bias + pool.token : 0};
        ub_store_release(&p->static_pool, kept);
    }
    ub_maps_unref(maps);
}

static bool read_at(pid_t pid, uint64_t address, void *to, size_t size)
{
    struct iovec local = {to, size}, remote = {(void *)(uintptr_t)address, size};

    return process_vm_readv(pid, &local, 1, &remote, 1, 0) == (ssize_t)size;
}

/* The ring changes under our hands: what it leads to is only counted. */
static uint32_t queued(pid_t pid, const struct ub_static_pool *at)
{
    uint64_t entry = at->queue;
    uint32_t count = 0;

    for (uint32_t i = 0; i < QUEUE_MOST; i++) {
        if (!read_at(pid, entry, &entry, sizeof(entry)) || entry == at->queue || entry == 0)
            break;
        count += entry != at->token;
    }
    return count;
}

bool ub_static_pool_read(const struct ub_process *p, struct ub_uv_pool_now *ret)
{
    const struct ub_static_pool *at = ub_load_acquire(&p->static_pool);
    uint32_t threads, idle;

    if (!at || !read_at(p->pid, at->threads, &threads, sizeof(threads)) ||
        !read_at(p->pid, at->idle, &idle, sizeof(idle)) || threads == 0 || threads > THREADS_MOST || idle > threads)
        return false;
    *ret = (struct ub_uv_pool_now){.threads = threads, .busy = threads - idle};
    if (idle == 0) /* else what is in the queue is just being taken up */
        ret->queued = queued(p->pid, at);
    return true;
}
