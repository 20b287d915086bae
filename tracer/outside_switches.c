#include "outside_switches.h"

#include "bpf/bpf.h"

#include <errno.h>
#include <linux/perf_event.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* 24 bytes a switch; an unprivileged user may lock 516 KB a CPU in all. */
#define PAGES 8u

/* What sample_type asks for, behind each record's header. */
struct switched {
    struct perf_event_header h;
    uint32_t pid, tid;
    uint64_t time_ns;
};

int ub_switches_open(pid_t tid, struct ub_switches *ret)
{
    struct perf_event_attr attr = {
        .type = PERF_TYPE_SOFTWARE,
        .size = sizeof(attr),
        .config = PERF_COUNT_SW_DUMMY,
        .sample_type = PERF_SAMPLE_TID | PERF_SAMPLE_TIME,
        .sample_id_all = 1,
        .context_switch = 1,
        .exclude_kernel = 1,
        .exclude_hv = 1,
        .use_clockid = 1,
        .clockid = CLOCK_MONOTONIC,
        .watermark = 1,
        .wakeup_watermark = UINT32_MAX, /* nobody waits for it */
    };
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *map;
    int fd;

    *ret = (struct ub_switches){.fd = -1};
    if (ub_bpf_forced_off("switches"))
        return -EPERM;
    fd = (int)syscall(SYS_perf_event_open, &attr, tid, -1, -1, PERF_FLAG_FD_CLOEXEC);
    if (fd < 0)
        return -errno;
    map = mmap(NULL, (PAGES + 1) * page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        int error = -errno;

        close(fd);
        return error;
    }
    ret->fd = fd;
    ret->map = map;
    return 0;
}

void ub_switches_close(struct ub_switches *s)
{
    if (s->fd < 0)
        return;
    munmap(s->map, (PAGES + 1) * (size_t)sysconf(_SC_PAGESIZE));
    close(s->fd);
    *s = (struct ub_switches){.fd = -1};
}

/* Records lie at any place of the ring, over its end too. */
static void copy_out(const uint8_t *data, uint64_t size, uint64_t at, void *to, size_t len)
{
    for (size_t i = 0; i < len; i++)
        ((uint8_t *)to)[i] = data[(at + i) % size];
}

static void take(struct ub_switches *s, const struct switched *r, uint64_t after_ns)
{
    if (r->h.misc & PERF_RECORD_MISC_SWITCH_OUT) {
        s->off_ns = r->time_ns;
        return;
    }
    s->off_ns = 0;
    if (s->on_ns == 0 && r->time_ns > after_ns)
        s->on_ns = r->time_ns;
}

void ub_switches_read(struct ub_switches *s, uint64_t after_ns)
{
    struct perf_event_mmap_page *control = (void *)s->map;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint64_t head, at;
    struct switched r;

    s->on_ns = 0;
    if (s->fd < 0)
        return;
    head = ub_load_acquire(&control->data_head);
    at = ub_load_relaxed(&control->data_tail);
    for (; at + sizeof(r.h) <= head; at += r.h.size) {
        copy_out(s->map + page, PAGES * page, at, &r.h, sizeof(r.h));
        if (r.h.size < sizeof(r.h))
            break;
        if (r.h.type == PERF_RECORD_SWITCH && r.h.size >= sizeof(r) && at + sizeof(r) <= head) {
            copy_out(s->map + page, PAGES * page, at, &r, sizeof(r));
            take(s, &r, after_ns);
        } else if (r.h.type == PERF_RECORD_LOST) {
            s->off_ns = 0;
        }
    }
    ub_store_release(&control->data_tail, head);
}
