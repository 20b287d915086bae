/*
 * Looking at a thread from outside, and copying the stack of one that sleeps.
 * Why each step is what it is: README.md "Capture".
 */
#include "capture_impl.h"

#include "arch.h"
#include "../common/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* A thread that wakes every few microseconds is never still: then it is not blocked, and sampling is for it. */
#define TRIES 6

#define STACK_SIZE_MAX (1ull << 32) /* of an alternate stack; a larger number is no size */

/* What a second region may take at least: the first one is usually a handler's few hundred bytes. */
#define SECOND_MIN (16u * 1024u)

enum ub_capture_proof_by ub_capture_proof_by = UB_PROOF_BY_AUTO;

void ub_capture_reset(struct ub_capture *ret)
{
    memset(ret, 0, offsetof(struct ub_capture, bytes));
    ret->nr = -1;
}

uint64_t ub_capture_parse_hex(const char **text)
{
    const char *p = *text;
    uint64_t v = 0;

    while (*p == ' ' || *p == '\t')
        p++;
    if (p[0] == '0' && p[1] == 'x')
        p += 2;
    for (;; p++) {
        if (*p >= '0' && *p <= '9')
            v = v << 4 | (uint64_t)(*p - '0');
        else if (*p >= 'a' && *p <= 'f')
            v = v << 4 | (uint64_t)(*p - 'a' + 10);
        else
            break;
    }
    *text = p;
    return v;
}

static uint64_t parse_decimal(const char **text)
{
    const char *p = *text;
    uint64_t v = 0;

    while (*p == ' ')
        p++;
    for (; *p >= '0' && *p <= '9'; p++)
        v = v * 10 + (uint64_t)(*p - '0');
    *text = p;
    return v;
}

/* ---- what the thread does ---- */

char ub_capture_state_letter(struct ub_thread_files *f)
{
    char buf[512];
    const char *p;

    if (ub_thread_files_read(f, UB_THREAD_FILE_STAT, buf, sizeof(buf)) < 0)
        return 0;
    p = strrchr(buf, ')'); /* the name before it may contain anything */
    return p && p[1] == ' ' ? p[2] : 0;
}

static enum ub_thread_state state_of_letter(char letter, enum ub_thread_state sleeping)
{
    switch (letter) {
    case 'R':
        return UB_THREAD_RUNNING;
    case 'T':
    case 't':
        return UB_THREAD_STOPPED;
    case 'Z':
    case 'X':
    case 'x':
        return UB_THREAD_DEAD;
    default:
        return sleeping;
    }
}

static void set_reg(struct ub_capture *c, uint32_t i, uint64_t value)
{
    c->reg[i] = value;
    c->reg_known |= UB_REG_BIT(i);
}

/*
 * "running", or "NR 0xARG*6 0xSP 0xPC", or "-1 0xSP 0xPC" for a thread that is
 * off the CPU outside any call: a page fault, a stop, an exit. That one is rare
 * enough to ask a second file which of them.
 */
static void parse_syscall(struct ub_thread_files *f, const char *text, struct ub_capture *ret)
{
    if (text[0] == 'r') {
        ret->state = UB_THREAD_RUNNING;
        return;
    }
    ret->state = UB_THREAD_BLOCKED;
    if (text[0] != '-') {
        ret->nr = (int64_t)parse_decimal(&text);
        for (int i = 0; i < 6; i++)
            ret->arg[i] = ub_capture_parse_hex(&text);
    } else {
        text += 2;
    }
    set_reg(ret, UB_REG_RSP, ub_capture_parse_hex(&text));
    set_reg(ret, UB_REG_RIP, ub_capture_parse_hex(&text));
    if (ret->nr < 0 || ret->nr == SYS_exit || ret->nr == SYS_exit_group) {
        ret->proc_state = ub_capture_state_letter(f);
        ret->state = state_of_letter(ret->proc_state, ret->nr < 0 ? UB_THREAD_FAULT : UB_THREAD_BLOCKED);
    }
    if (ret->state == UB_THREAD_RUNNING || ret->state == UB_THREAD_DEAD || ret->reg[UB_REG_RSP] == 0)
        ret->reg_known = 0;
}

static int look(struct ub_thread_files *f, struct ub_capture *ret)
{
    char buf[256];
    int r;

    ub_capture_reset(ret);
    r = ub_thread_files_read(f, UB_THREAD_FILE_SYSCALL, buf, sizeof(buf));
    if (r >= 0) {
        parse_syscall(f, buf, ret);
        return 0;
    }
    ret->error = r;
    if (r == -ESRCH) {
        ret->state = UB_THREAD_DEAD;
        return r;
    }
    ret->proc_state = ub_capture_state_letter(f);
    ret->state = state_of_letter(ret->proc_state, UB_THREAD_BLOCKED);
    return r;
}

int ub_capture_peek(pid_t pid, pid_t tid, struct ub_capture *ret)
{
    UB_CLEANUP(ub_thread_files_put) struct ub_thread_files f;

    ub_thread_files_take(pid, tid, &f);
    return look(&f, ret);
}

/* ---- the proof that it stood still ---- */

bool ub_schedstat_parse(const char *text, struct ub_schedstat *ret)
{
    ret->run_ns = parse_decimal(&text);
    ret->wait_ns = parse_decimal(&text);
    ret->slices = parse_decimal(&text);
    return ret->run_ns || ret->wait_ns || ret->slices;
}

int ub_capture_schedstat(pid_t pid, pid_t tid, struct ub_schedstat *ret)
{
    UB_CLEANUP(ub_thread_files_put) struct ub_thread_files f;
    struct ub_schedstat s;
    char buf[96];
    int r;

    ub_thread_files_take(pid, tid, &f);
    r = ub_thread_files_read(&f, UB_THREAD_FILE_SCHEDSTAT, buf, sizeof(buf));
    if (r == -ENOENT || (r >= 0 && !ub_schedstat_parse(buf, &s)))
        return -ENOTSUP;
    if (r < 0)
        return r;
    *ret = s;
    return 0;
}

/* Two of them, equal, around a copy: the thread was not on a CPU in between. */
struct stamp {
    enum ub_proof proof; /* what equality of two such stamps proves */
    bool has_sched;
    struct ub_schedstat sched;
    char text[96];
};

/* "voluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3\n" ends the file. */
static int stamp_switches(struct ub_thread_files *f, struct stamp *ret)
{
    const char *line;
    char buf[4096];
    int r = ub_thread_files_read(f, UB_THREAD_FILE_STATUS, buf, sizeof(buf));

    if (r < 0)
        return r;
    line = strstr(buf, "\nvoluntary_ctxt_switches:");
    ret->proof = line ? UB_PROOF_STILL : UB_PROOF_UNPROVEN;
    snprintf(ret->text, sizeof(ret->text), "%s", line ? line : "");
    return 0;
}

static int stamp_read(struct ub_thread_files *f, struct stamp *ret)
{
    int r;

    *ret = (struct stamp){.proof = UB_PROOF_UNPROVEN};
    if (ub_capture_proof_by == UB_PROOF_BY_NOTHING)
        return 0;
    if (ub_capture_proof_by == UB_PROOF_BY_AUTO) {
        r = ub_thread_files_read(f, UB_THREAD_FILE_SCHEDSTAT, ret->text, sizeof(ret->text));
        if (r == -ESRCH)
            return r;
        ret->has_sched = r >= 0 && ub_schedstat_parse(ret->text, &ret->sched);
        if (ret->has_sched) {
            ret->proof = UB_PROOF_STILL;
            return 0;
        }
    }
    return stamp_switches(f, ret);
}

/*
 * schedstat counts when a thread comes ONTO a CPU, so a second look at the
 * counter is enough. The switch counters count when it LEAVES one: there it must
 * also be seen blocked afterwards, or it could have woken and still be running.
 */
static int prove(struct ub_thread_files *f, const struct stamp *before, struct ub_capture *c)
{
    struct stamp after;
    int r;

    if (!before->has_sched) {
        char buf[256];

        r = ub_thread_files_read(f, UB_THREAD_FILE_SYSCALL, buf, sizeof(buf));
        if (r < 0)
            return r;
        if (buf[0] == 'r' && ub_capture_proof_by != UB_PROOF_BY_NOTHING)
            return -EAGAIN;
    }
    r = stamp_read(f, &after);
    if (r < 0)
        return r;
    c->has_sched = after.has_sched;
    c->sched = after.sched;
    if (after.proof != before->proof || strcmp(after.text, before->text) != 0)
        return -EAGAIN;
    c->proof = after.proof;
    return 0;
}

/* ---- the copy ---- */

uint64_t ub_capture_stack_end(const struct ub_maps *maps, uint64_t sp)
{
    const struct ub_map *m = maps ? ub_maps_find(maps, sp) : NULL;

    if (m)
        return m->end;
    for (uint32_t i = 0; maps && i < maps->count; i++) /* the main stack grows below what the snapshot knew */
        if (maps->map[i].kind == UB_MAP_STACK && sp < maps->map[i].start && maps->map[i].start - sp < (8u << 20) &&
            (i == 0 || sp >= maps->map[i - 1].end))
            return maps->map[i].end;
    return 0;
}

/* Where process_vm_readv is filtered, the same bytes come from a file. Never kept open: it would hold the old memory
 * across exec. */
static ssize_t read_mem_file(pid_t pid, uint64_t address, void *buf, size_t len)
{
    char path[40];
    ssize_t n;
    int fd, saved;

    snprintf(path, sizeof(path), "/proc/%d/mem", (int)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    n = pread(fd, buf, len, (off_t)address);
    saved = errno;
    close(fd);
    errno = n < 0 && saved == EIO ? EFAULT : saved;
    return n;
}

int ub_capture_memory(pid_t pid, uint64_t address, void *buf, uint32_t len)
{
    struct iovec local = {buf, len}, remote = {(void *)(uintptr_t)address, len};
    ssize_t n = process_vm_readv(pid, &local, 1, &remote, 1, 0);

    if (n < 0 && (errno == EPERM || errno == EACCES || errno == ENOSYS))
        n = read_mem_file(pid, address, buf, len);
    if (n >= 0)
        return (int)n;
    return errno == EPERM ? -EACCES : -errno;
}

/* Appends [sp, end of its mapping) as a region, at most `max` bytes. -EFAULT when there is no memory. */
static int copy_region(pid_t pid, const struct ub_maps *maps, uint64_t sp, uint32_t offset, uint32_t max,
                       struct ub_capture *c)
{
    uint64_t end = ub_capture_stack_end(maps, sp);
    uint32_t len = end ? max : UB_STACK_COPY_FIRST;
    int n;

    if (len > max)
        len = max;
    if (end && end - sp < len)
        len = (uint32_t)(end - sp);
    n = ub_capture_memory(pid, sp, c->bytes + offset, len);
    if (n <= 0)
        return n == 0 ? -EFAULT : n;
    c->region[c->region_count++] = (struct ub_stack_region){sp, (uint32_t)n, offset};
    return 0;
}

/*
 * A handler on an alternate stack: the frame that the kernel pushed there says
 * where that stack lies and where the interrupted one is. Found by its shape,
 * since nothing else tells (the unwinder would, but a second copy must fall
 * inside the same proof). Returns the interrupted stack pointer, and the length
 * of the first region up to the end of the frame.
 */
static uint64_t find_interrupted_sp(const struct ub_capture *c, uint32_t *ret_len)
{
    const struct ub_stack_region *r = &c->region[0];
    uint64_t w[UB_UC_WORDS];

    for (uint32_t at = 0; at + sizeof(w) <= r->len; at += 8) {
        uint64_t sp, stack, size;

        if (c->bytes[at] > 15) /* the flags: nearly every word is dismissed by its first byte */
            continue;
        memcpy(w, c->bytes + at, sizeof(w));
        if (!ub_arch_is_ucontext(w))
            continue;
        sp = w[UB_UC_RSP];
        stack = w[UB_UC_STACK_SP];
        size = w[UB_UC_STACK_SIZE];
        if (size < 1024 || size > STACK_SIZE_MAX || r->address - stack >= size || r->address + at - stack >= size)
            continue;
        if (sp == 0 || sp % 8 || sp - stack < size)
            continue;
        *ret_len = at + (uint32_t)sizeof(w);
        return sp;
    }
    return 0;
}

static int copy_stack(pid_t pid, const struct ub_maps *maps, struct ub_capture *c)
{
    const struct ub_map *m = maps ? ub_maps_find(maps, c->reg[UB_REG_RSP]) : NULL;
    uint64_t sp;
    uint32_t len;
    int r = copy_region(pid, maps, c->reg[UB_REG_RSP], 0, UB_STACK_COPY_MAX, c);

    if (r < 0 || (m && m->kind == UB_MAP_STACK))
        return r;
    sp = find_interrupted_sp(c, &len);
    if (sp == 0)
        return 0;
    if (c->region[0].len > UB_STACK_COPY_MAX - SECOND_MIN)
        c->region[0].len = len > UB_STACK_COPY_MAX - SECOND_MIN ? UB_STACK_COPY_MAX - SECOND_MIN : len;
    len = (c->region[0].len + 7) & ~7u;
    (void)copy_region(pid, maps, sp, len, UB_STACK_COPY_MAX - len, c); /* without it the trace ends at the handler */
    return 0;
}

/* One attempt. -EAGAIN: it ran. -EFAULT stays in c->error: registers without a stack are still worth something. */
static int attempt(struct ub_thread_files *f, const struct ub_maps *maps, struct ub_capture *c)
{
    struct stamp before;
    int r = stamp_read(f, &before);

    if (r < 0)
        return r;
    r = look(f, c);
    if (r < 0)
        return r;
    if (c->state == UB_THREAD_RUNNING)
        return -EAGAIN;
    if (c->state == UB_THREAD_DEAD)
        return -ESRCH;
    if (!(c->reg_known & UB_REG_BIT(UB_REG_RSP)))
        return -EAGAIN;
    r = copy_stack(f->pid, maps, c);
    if (r == -ESRCH)
        return r;
    c->at_ns = ub_clock_monotonic_ns();
    if (r < 0) {
        c->error = r;
        c->region_count = 0;
    }
    r = prove(f, &before, c);
    return r < 0 || c->error == -EFAULT ? r : c->error;
}

int ub_capture_blocked(pid_t pid, pid_t tid, const struct ub_maps *maps, struct ub_capture *ret)
{
    UB_CLEANUP(ub_thread_files_put) struct ub_thread_files f;
    int r = -EAGAIN;

    ub_thread_files_take(pid, tid, &f);
    for (int i = 0; i < TRIES && r == -EAGAIN; i++) {
        r = attempt(&f, maps, ret);
        if (i == 0 && ret->state == UB_THREAD_RUNNING)
            break; /* simply running: sampling is for it */
    }
    if (r < 0) {
        ret->proof = UB_PROOF_NONE;
        ret->region_count = 0;
        if (r != -EAGAIN)
            ret->error = r;
    }
    return r;
}
