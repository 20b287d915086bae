/*
 * Starts tests/programs/chain*, and judges stacks taken from it by what the
 * program itself published (tests/programs/chain.h).
 */
#ifndef CHAIN_CHECK_H
#define CHAIN_CHECK_H

#include "../programs/chain.h"
#include "../../common/clock.h"
#include "../../tracer/unwind.h"

#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

struct chain {
    pid_t pid, tid;
    struct chain_shared *shared;
    struct ub_maps *maps;
    uint64_t text, text_end; /* the program's own code */
    uint64_t entry;          /* address of _start */
    uint32_t explained;      /* wrong stacks printed so far: the first few say enough */
};

enum verdict {
    CHAIN_RIGHT,
    CHAIN_WRONG,
    CHAIN_SKIPPED, /* cannot be judged: between two chains, or the plan is overwritten by now */
};

/* build/tests/unit/test_x -> build/tests/programs/NAME */
static inline void chain_program(const char *name, char *ret, size_t size)
{
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

    self[n > 0 ? n : 0] = '\0';
    if ((size_t)snprintf(ret, size, "%s/../programs/%s", dirname(self), name) >= size)
        abort();
}

static inline void chain_find_text(struct chain *c)
{
    const struct ub_map *m = ub_maps_find(c->maps, c->shared->function[0].address);

    if (!m || !m->elf)
        abort();
    c->text = m->start;
    c->text_end = m->end;
    c->entry = m->bias + m->elf->entry;
}

static inline void chain_start(struct chain *c, const char *name, const char *mode, const char *where, unsigned seed,
                               bool nosend)
{
    char path[PATH_MAX], file[64], seed_text[16];
    int fd = memfd_create("chain", 0);

    if (fd < 0 || ftruncate(fd, sizeof(*c->shared)) < 0)
        abort();
    chain_program(name, path, sizeof(path));
    c->shared = mmap(NULL, sizeof(*c->shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (c->shared == MAP_FAILED)
        abort();
    c->shared->clock = UB_CLOCK_VDSO;
    snprintf(file, sizeof(file), "/proc/self/fd/%d", fd);
    snprintf(seed_text, sizeof(seed_text), "%u", seed);
    c->pid = fork();
    if (c->pid == 0) {
        execl(path, path, file, mode, where, seed_text, nosend ? "nosend" : (char *)NULL, (char *)NULL);
        fprintf(stderr, "%s: cannot be started\n", path);
        _exit(127);
    }
    close(fd);
    while (!ub_load_acquire(&c->shared->ready) && waitpid(c->pid, NULL, WNOHANG) == 0)
        usleep(1000);
    if (!ub_load_acquire(&c->shared->ready))
        abort();
    c->tid = c->shared->tid;
    c->explained = 0;
    c->maps = NULL;
    if (ub_maps_load(c->pid, NULL, &c->maps) < 0)
        abort();
    chain_find_text(c);
}

/* Lets the program end by itself, so that its last call is not one that we cut off. */
static inline void chain_stop(struct chain *c)
{
    __atomic_store_n(&c->shared->stop, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < 2000 && waitpid(c->pid, NULL, WNOHANG) == 0; i++)
        usleep(1000);
    kill(c->pid, SIGKILL);
    waitpid(c->pid, NULL, 0);
    ub_maps_unref(c->maps);
    munmap(c->shared, sizeof(*c->shared));
}

static inline bool chain_read(const struct ub_capture *capture, uint64_t address, void *buf, uint32_t len)
{
    for (uint32_t i = 0; i < capture->region_count; i++) {
        const struct ub_stack_region *r = &capture->region[i];

        if (address >= r->address && address + len <= r->address + r->len) {
            memcpy(buf, capture->bytes + r->offset + (address - r->address), len);
            return true;
        }
    }
    return false;
}

/* Nearest published function at or below the pc; -1: not the program's code, or _start. */
static inline int chain_function_of(const struct chain *c, const struct ub_frame *f)
{
    uint64_t pc = f->pc - (f->is_call ? 1 : 0);
    int best = -1;

    if (pc < c->text || pc >= c->text_end || (pc >= c->entry && pc < c->entry + 48))
        return -1;
    for (uint32_t i = 0; i < c->shared->count && i < CHAIN_TABLE_MAX; i++)
        if (c->shared->function[i].address <= pc &&
            (best < 0 || c->shared->function[i].address > c->shared->function[best].address))
            best = (int)i;
    return best;
}

static inline int chain_table_index(const struct chain *c, uint32_t kind, uint32_t index)
{
    for (uint32_t i = 0; i < c->shared->count && i < CHAIN_TABLE_MAX; i++)
        if (c->shared->function[i].kind == kind && c->shared->function[i].index == index)
            return (int)i;
    return -2;
}

/* The program's frames that must be there, outermost first. */
static inline uint32_t chain_expected(const struct chain *c, const struct chain_plan *plan, int *ret)
{
    uint32_t n = 0;

    if (c->tid == c->pid)
        ret[n++] = chain_table_index(c, CHAIN_BASE, 1);
    ret[n++] = chain_table_index(c, CHAIN_BASE, 0);
    ret[n++] = chain_table_index(c, CHAIN_ROOT, 0);
    for (uint32_t i = 0; i < plan->depth && i < CHAIN_DEPTH_MAX; i++) {
        ret[n++] = chain_table_index(c, CHAIN_F, plan->fn[i]);
        if (plan->fn[i] < CHAIN_FUNCTIONS && c->shared->via[plan->fn[i]])
            ret[n++] = chain_table_index(c, CHAIN_VIA, plan->fn[i]);
    }
    ret[n++] = chain_table_index(c, CHAIN_WAIT, plan->wait);
    return n;
}

#define CHAIN_EXPECTED_MAX (2 * CHAIN_DEPTH_MAX + 8)

static inline void chain_explain(const struct chain *c, const struct ub_stack *stack, const int *expected,
                                 uint32_t count)
{
    printf("  expected, outermost first:");
    for (uint32_t i = 0; i < count; i++)
        printf(" %c%u", "fvwrb"[c->shared->function[expected[i]].kind], c -> shared -> function[expected[i]].index);
    printf("\n  got:");
    for (uint32_t i = stack->count; i-- > 0;) {
        int f = chain_function_of(c, &stack->frame[i]);

        if (f >= 0)
            printf(" %c%u", "fvwrb"[c->shared->function[f].kind], c -> shared -> function[f].index);
        else
            printf(" -");
        printf("%s", stack->frame[i].how == UB_FRAME_RBP ? "!" : "");
    }
    printf(" (%scomplete)\n", stack->complete ? "" : "in");
}

/*
 * A blocked thread stands in its wait: the trace must be the whole plan, or its
 * innermost part when it is not complete. A running one may be anywhere on its
 * way in or out: the first part of the plan.
 */
static inline enum verdict chain_judge(struct chain *c, const struct ub_capture *capture, const struct ub_stack *stack,
                                       uint64_t *ret_plan)
{
    int expected[CHAIN_EXPECTED_MAX], got[UB_FRAMES_MAX];
    uint32_t count, n = 0;
    bool whole = capture->state == UB_THREAD_BLOCKED;
    struct chain_mark mark;
    struct chain_plan plan;
    const struct chain_plan *source;

    if (!chain_read(capture, c->shared->mark, &mark, sizeof(mark)))
        return CHAIN_SKIPPED;
    if (mark.magic != CHAIN_MAGIC)
        return CHAIN_WRONG;
    source = &c->shared->plan[mark.id % CHAIN_PLANS];
    if (mark.id == 0 || __atomic_load_n(&source->id, __ATOMIC_SEQ_CST) != mark.id)
        return CHAIN_SKIPPED;
    plan = *source;
    if (__atomic_load_n(&source->id, __ATOMIC_SEQ_CST) != mark.id)
        return CHAIN_SKIPPED;
    *ret_plan = plan.id;
    count = chain_expected(c, &plan, expected);
    for (uint32_t i = stack->count; i-- > 0;) {
        int f = chain_function_of(c, &stack->frame[i]);

        if (f >= 0)
            got[n++] = f;
    }
    if (whole && plan.wait == CHAIN_WAIT_RAW && capture->arg[5] != plan.id) {
        printf("WRONG: the call belongs to plan %lu, the stack to %lu\n", (unsigned long)capture->arg[5],
               (unsigned long)plan.id);
        return CHAIN_WRONG;
    }
    if (n <= count && (!whole || !stack->complete || n == count) && (n == count || stack->complete || whole)) {
        uint32_t from = stack->complete ? 0 : whole ? count - n : 0;

        if (memcmp(got, expected + from, n * sizeof(got[0])) == 0)
            return CHAIN_RIGHT;
    } else if (!whole && !stack->complete) {
        for (uint32_t from = 0; from + n <= count; from++)
            if (memcmp(got, expected + from, n * sizeof(got[0])) == 0)
                return CHAIN_RIGHT;
    }
    if (c->explained++ >= 3)
        return CHAIN_WRONG;
    printf("WRONG: state %d nr %ld proof %d, plan %lu\n", capture->state, (long)capture->nr, capture->proof,
           (unsigned long)mark.id);
    chain_explain(c, stack, expected, count);
    return CHAIN_WRONG;
}

#endif
