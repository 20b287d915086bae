/*
 * Sampling a running thread through perf_event_open: the kernel copies the user
 * registers and the stack at the next tick of a timer that counts the thread's
 * own CPU time. Needs no agent and no privilege: own processes at
 * perf_event_paranoid <= 2, since the kernel side is excluded.
 */
#include "capture_impl.h"

#include "arch.h"

#include <errno.h>
#include <linux/perf_event.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define STACK_BYTES (32ul * 1024ul) /* the kernel copies no more than there is */
#define PERIOD_NS   10000u          /* of CPU time; the event switches itself off after the first */
#define WAIT_MS     2
#define DATA_BYTES  (2ul * STACK_BYTES) /* a power of two that holds one record */

struct perf {
    int fd;
    uint8_t *map; /* one control page, then the data */
    size_t page, len;
};

static void perf_close(struct perf *p)
{
    if (p->map)
        munmap(p->map, p->len);
    if (p->fd >= 0)
        close(p->fd);
}

static uint64_t register_mask(void)
{
    uint64_t mask = 0;

    for (int i = 0; i < UB_REG_COUNT; i++)
        mask |= 1ull << ub_arch_perf_reg[i];
    return mask;
}

static int perf_open(pid_t tid, struct perf *ret)
{
    struct perf_event_attr attr = {
        .type = PERF_TYPE_SOFTWARE,
        .size = sizeof(attr),
        .config = PERF_COUNT_SW_TASK_CLOCK,
        .sample_period = PERIOD_NS,
        .sample_type = PERF_SAMPLE_TIME | PERF_SAMPLE_REGS_USER | PERF_SAMPLE_STACK_USER,
        .sample_regs_user = register_mask(),
        .sample_stack_user = STACK_BYTES,
        .disabled = 1,
        .exclude_kernel = 1,
        .exclude_hv = 1,
        .use_clockid = 1,
        .clockid = CLOCK_MONOTONIC,
        .wakeup_events = 1,
    };
    void *map;

    ret->page = (size_t)sysconf(_SC_PAGESIZE);
    ret->len = ret->page + DATA_BYTES;
    ret->fd = (int)syscall(SYS_perf_event_open, &attr, tid, -1, -1, PERF_FLAG_FD_CLOEXEC);
    if (ret->fd < 0)
        return errno == EACCES ? -EPERM : -errno;
    map = mmap(NULL, ret->len, PROT_READ | PROT_WRITE, MAP_SHARED, ret->fd, 0);
    if (map == MAP_FAILED)
        return -errno;
    ret->map = map;
    return ioctl(ret->fd, PERF_EVENT_IOC_REFRESH, 1) < 0 ? -errno : 0;
}

struct reader {
    const uint8_t *p, *end;
};

static uint64_t take64(struct reader *r)
{
    uint64_t v = 0;

    if (r->end - r->p >= 8) {
        memcpy(&v, r->p, 8);
        r->p += 8;
    } else {
        r->p = r->end;
    }
    return v;
}

/* time; abi, registers by ascending perf number; size, bytes, valid bytes. */
static int parse_sample(struct reader r, struct ub_capture *ret)
{
    uint64_t value[64] = {0}, size, bytes, mask = register_mask();
    const uint8_t *stack;

    ret->at_ns = take64(&r);
    if (take64(&r) != PERF_SAMPLE_REGS_ABI_64)
        return -ENOTSUP; /* no user registers (a kernel thread), or a 32-bit program */
    for (int i = 0; i < 64; i++)
        if (mask >> i & 1)
            value[i] = take64(&r);
    for (int i = 0; i < UB_REG_COUNT; i++)
        ret->reg[i] = value[ub_arch_perf_reg[i]];
    ret->reg_known = UB_REG_ALL;
    ret->state = UB_THREAD_RUNNING;
    ret->proof = UB_PROOF_PERF;
    size = take64(&r);
    if (size == 0 || size > STACK_BYTES || size + 8 > (uint64_t)(r.end - r.p))
        return 0;
    stack = r.p;
    r.p += size;
    bytes = take64(&r);
    if (bytes > 0 && bytes <= size) {
        memcpy(ret->bytes, stack, bytes);
        ret->region[0] = (struct ub_stack_region){ret->reg[UB_REG_RSP], (uint32_t)bytes, 0};
        ret->region_count = 1;
    }
    return 0;
}

/* The first sample among the records. The data does not wrap: it starts empty, and one record fills half of it. */
static int parse_records(const struct perf *p, struct ub_capture *ret)
{
    const struct perf_event_mmap_page *control = (const void *)p->map;
    const uint8_t *data = p->map + p->page;
    uint64_t head = ub_load_acquire(&control->data_head), at = 0;
    struct perf_event_header h;

    if (head > DATA_BYTES)
        head = DATA_BYTES;
    for (; at + sizeof(h) <= head; at += h.size) {
        memcpy(&h, data + at, sizeof(h));
        if (h.size < sizeof(h) || at + h.size > head)
            break;
        if (h.type == PERF_RECORD_SAMPLE)
            return parse_sample((struct reader){data + at + sizeof(h), data + at + h.size}, ret);
    }
    return -EAGAIN;
}

int ub_capture_perf(pid_t pid, pid_t tid, const struct ub_maps *maps, struct ub_capture *ret)
{
    UB_CLEANUP(perf_close) struct perf p = {.fd = -1};
    struct pollfd poll_fd;
    int r;

    ub_capture_reset(ret);
    r = perf_open(tid, &p);
    if (r < 0 || !p.map)
        return ret->error = r;
    poll_fd = (struct pollfd){.fd = p.fd, .events = POLLIN};
    if (poll(&poll_fd, 1, WAIT_MS) <= 0)
        return -EAGAIN;
    return parse_records(&p, ret);
}
