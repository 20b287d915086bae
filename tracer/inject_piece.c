/* How a piece of time that a thread was kept from its work divides, and what of it nobody but the scheduler could
 * shorten. */
#include "inject_impl.h"

#include "capture.h"

#include "../common/clock.h"

#include <sys/syscall.h>
#include <unistd.h>

/* Of a thread that the kernel keeps no books of all is zero, and stays so. */
static struct ub_schedstat books_of(pid_t pid, pid_t tid)
{
    struct ub_schedstat s = {0};

    ub_capture_schedstat(pid, tid, &s);
    return s;
}

static uint64_t own_wait_ns(void)
{
    return books_of(getpid(), (pid_t)syscall(SYS_gettid)).wait_ns;
}

static uint64_t since(uint64_t now, uint64_t before)
{
    return now > before ? now - before : 0;
}

static uint64_t less(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

void ub_piece_begin(struct ub_hold *h)
{
    h->piece = (struct ub_inject_piece){0};
    h->books.its = books_of(h->pid, h->tid);
    h->books.own_wait_ns = own_wait_ns();
    h->books.at_ns = ub_clock_monotonic_ns();
}

void ub_piece_sleep(struct ub_hold *h)
{
    h->books.own_wait_ns = own_wait_ns();
}

void ub_piece_part(struct ub_hold *h, enum ub_inject_part which)
{
    struct ub_inject_part_time *part = &h->piece.part[which];
    struct ub_schedstat its = books_of(h->pid, h->tid);
    uint64_t own = own_wait_ns(), now = ub_clock_monotonic_ns(), took = since(now, h->books.at_ns);

    if (which == UB_PART_FOLLOWED) /* between two system calls it does its own work */
        took -= less(took, since(its.run_ns, h->books.its.run_ns));
    part->took_ns += took;
    part->starved_ns += less(took, since(its.wait_ns, h->books.its.wait_ns) + since(own, h->books.own_wait_ns));
    h->books.its = its;
    h->books.own_wait_ns = own;
    h->books.at_ns = now;
}

void ub_piece_worked(struct ub_hold *h, uint64_t done_ns, uint64_t done_cpu_ns)
{
    struct ub_inject_part_time *part = &h->piece.part[UB_PART_WORKED];
    struct ub_schedstat its = books_of(h->pid, h->tid);
    uint64_t cpu = since(done_cpu_ns, h->books.its.run_ns);

    /* What it waits for after it was done is in its books, too, but was no work of ours then. */
    part->took_ns = since(done_ns, h->books.at_ns);
    part->starved_ns = less(since(part->took_ns, cpu), since(its.wait_ns, h->books.its.wait_ns));
}

uint64_t ub_inject_piece_ns(const struct ub_inject_piece *piece)
{
    uint64_t sum = 0;

    for (int i = 0; i < UB_PARTS; i++)
        sum += piece->part[i].took_ns;
    return sum;
}
