/*
 * Hosts: each thread has its own for each loop in which it has left a callback, until that loop is destroyed. Any
 * thread may do that, and the one that ran it may have ended by then.
 *
 * Who destroys a loop looks through the hosts of all threads while these go on making theirs. So a host's memory is
 * never given back, only used again, and who ends one has put BUSY in the place of its loop before.
 */
#include "suspend_impl.h"

#include <string.h>

#define BUSY     ((void *)1)
#define LOST_MAX 64u /* more of them: their descriptors stay */

/* Of threads that have ended, whose loops may still be there. */
static struct {
    void *loop; /* NULL: free */
    struct ub_host *host;
} lost[LOST_MAX];

/* Nobody's. */
static struct ub_host *spare[LOST_MAX];

static bool replace(void **at, void *from, void *to)
{
    return __atomic_compare_exchange_n(at, &from, to, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

static struct ub_host *new_host(void)
{
    struct ub_host *h = NULL;

    for (uint32_t i = 0; !h && i < LOST_MAX; i++)
        h = __atomic_exchange_n(&spare[i], NULL, __ATOMIC_ACQUIRE);
    return h ? h : ub_suspend_map(sizeof(*h));
}

/* True: it was the loop's, and is free. */
static bool end(struct ub_host *h, void *loop)
{
    if (!loop || !replace(&h->loop, loop, BUSY))
        return false;
    if (h->ops->detach)
        h->ops->detach(h);
    ub_inbox_close(&h->inbox);
    ub_store_release(&h->loop, NULL);
    return true;
}

struct ub_host *ub_suspend_host(void *loop, const struct ub_host_ops *ops, bool make)
{
    struct mine *m = ub_suspend_mine(make);
    struct ub_host *h, **free = NULL;

    for (uint32_t i = 0; m && i < UB_HOSTS_MAX; i++) {
        void *its = m->host[i] ? ub_load_acquire(&m->host[i]->loop) : NULL;

        if (its == loop)
            return m->host[i];
        if (!free && !its)
            free = &m->host[i];
    }
    if (!make || !free || !(h = *free ? *free : new_host()))
        return NULL;
    h->inbox = (struct ub_inbox){0};
    ub_inbox_open(&h->inbox);
    h->ops = ops;
    h->generation = ub_process->generation;
    h->held = false;
    h->suspended = NULL;
    h->count = h->pendings = 0;
    memset(h->room, 0, sizeof(h->room));
    ub_store_release(&h->loop, loop);
    ub_store_release(free, h);
    if (h->inbox.fd >= 0 && ops->attach(h))
        return h;
    end(h, loop);
    return NULL;
}

void ub_suspend_lose(struct ub_host **host)
{
    struct ub_host *h = *host;
    void *loop = ub_load_acquire(&h->loop);

    if (!loop || loop == BUSY) /* it is being ended, and can be used again here */
        return;
    for (uint32_t i = 0; i < LOST_MAX; i++) {
        if (replace(&lost[i].loop, NULL, BUSY)) {
            lost[i].host = h;
            ub_store_release(&lost[i].loop, loop);
            break;
        }
    }
    ub_store_release(host, NULL);
}

/* Of ended threads. Who has the entry's key has the host, but for who found it there while its thread's place was taken
 * over. */
static void end_lost(uint32_t i, void *loop)
{
    struct ub_host *h;

    if (!replace(&lost[i].loop, loop, BUSY))
        return;
    h = lost[i].host;
    if (end(h, loop)) {
        for (uint32_t k = 0; k < LOST_MAX && h; k++) {
            if (replace((void **)&spare[k], NULL, h))
                h = NULL;
        }
    }
    ub_store_release(&lost[i].loop, NULL);
}

void ub_suspend_gone(void *loop)
{
    for (uint32_t i = 0; loop && i < UB_SLOT_MAX; i++) {
        struct mine *m = ub_suspend_mine_at(i);

        for (uint32_t k = 0; m && k < UB_HOSTS_MAX; k++) {
            struct ub_host *h = ub_load_acquire(&m->host[k]);

            if (h)
                end(h, loop);
        }
    }
    for (uint32_t i = 0; loop && i < LOST_MAX; i++)
        end_lost(i, loop);
}
