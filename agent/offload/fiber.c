#include "fiber.h"

#include "../raw.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#define PAGE 4096ul

/* As wide as the kernel's own below a stack: a function with a large frame must not step over it. */
#define GUARD (256 * PAGE)

/* A stack costs two mappings, of which a process has 65,530. */
#define FIBERS_MAX 16384u

/* Where the limit of stacks is none. */
#define STACK_UNLIMITED (64ul << 20)
#define STACK_LEAST     (256ul << 10)

#define ARCH_SHSTK_STATUS 0x5005
#define ARCH_SHSTK_SHSTK  1u

extern const char ub_fiber_root[];
void ub_fiber_main(struct ub_fiber *f);
int ub_fiber_personality(int version, int actions, uint64_t class, void *exception, void *context);

/* What ub_fiber_switch leaves on a stack, lowest address first. */
#if defined(__x86_64__)
struct frame {
    uint32_t mxcsr;
    uint16_t x87, reserved;
    uint64_t r15, r14, r13, r12, rbx, rbp, rip;
};
_Static_assert(sizeof(struct frame) == 64, "the CFI of ub_fiber_root has this number");
#define FRAME_FIBER   r12
#define FRAME_ADDRESS rip
#elif defined(__aarch64__)
struct frame {
    uint64_t fpcr, reserved;
    uint64_t x[12]; /* x19 to x30 */
    uint64_t d[8];
};
_Static_assert(sizeof(struct frame) == 176, "the CFI of ub_fiber_root has this number");
#define FRAME_FIBER   x[0]
#define FRAME_ADDRESS x[11]
#endif

bool ub_fiber_supported(void)
{
#if defined(__x86_64__)
    uint64_t features = 0;

    /* Kernels without shadow stacks (before 6.6) do not know the question. */
    return ub_raw2(SYS_arch_prctl, ARCH_SHSTK_STATUS, &features) < 0 || !(features & ARCH_SHSTK_SHSTK);
#else
    return false;
#endif
}

size_t ub_fiber_stack_size(void)
{
    struct rlimit limit = {0};
    pthread_attr_t attr;
    size_t size = 0;

    /* The first thread's may grow up to the limit; pthread_getattr_np would tell the same, by reading /proc. */
    if (ub_raw0(SYS_getpid) == ub_raw0(SYS_gettid)) {
        if (ub_raw4(SYS_prlimit64, 0, RLIMIT_STACK, 0, &limit) == 0)
            size = limit.rlim_cur == RLIM_INFINITY ? STACK_UNLIMITED : limit.rlim_cur;
    } else if (pthread_getattr_np(pthread_self(), &attr) == 0) {
        pthread_attr_getstacksize(&attr, &size);
        pthread_attr_destroy(&attr);
    }
    if (size < STACK_LEAST)
        size = STACK_LEAST;
    return (size + PAGE - 1) & ~(PAGE - 1);
}

/* Of all threads: never taken out again but by ub_fiber_pool_free. */
static struct ub_fiber_pool *pools;

static void introduce(struct ub_fiber_pool *pool)
{
    pool->next = ub_load_relaxed(&pools);
    while (!__atomic_compare_exchange_n(&pools, &pool->next, pool, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
        ;
}

/* Whose stack this is. */
static struct ub_fiber *find(uintptr_t sp)
{
    for (struct ub_fiber_pool *pool = ub_load_acquire(&pools); pool; pool = pool->next) {
        for (struct ub_fiber *f = ub_load_acquire(&pool->newest); f; f = f->older) {
            if (ub_fiber_contains(f, sp))
                return f;
        }
    }
    return NULL;
}

static struct ub_fiber *make(struct ub_fiber_pool *pool)
{
    size_t head = (pool->head + 63) & ~63ul, whole = GUARD + pool->size + ((head + PAGE - 1) & ~(PAGE - 1));
    struct ub_fiber *f;
    long at;

    if (pool->made >= FIBERS_MAX)
        return NULL;
    at = ub_raw6(SYS_mmap, 0, (long)whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (at < 0 && at > -4096)
        return NULL;
    if (ub_raw3(SYS_mprotect, (uintptr_t)at + GUARD, whole - GUARD, PROT_READ | PROT_WRITE) < 0) {
        ub_raw2(SYS_munmap, at, whole);
        return NULL;
    }
    f = (struct ub_fiber *)((uintptr_t)at + whole - head);
    f->low = (uintptr_t)at + GUARD;
    f->high = (uintptr_t)f;
    f->older = pool->newest;
    if (!pool->made++ && !f->older)
        introduce(pool);
    ub_store_release(&pool->newest, f);
    return f;
}

struct ub_fiber *ub_fiber_take(struct ub_fiber_pool *pool)
{
    struct ub_fiber *f = pool->free;

    if (ub_likely(f != NULL))
        pool->free = f->next;
    else if (!(f = make(pool)))
        return NULL;
    if (++pool->taken > pool->most)
        pool->most = pool->taken;
    return f;
}

void ub_fiber_give(struct ub_fiber_pool *pool, struct ub_fiber *f)
{
    f->state = UB_FIBER_FREE;
    f->next = pool->free;
    pool->free = f;
    pool->taken--;
}

void ub_fiber_start(struct ub_fiber *f, ub_fiber_function *function, const uint64_t word[UB_FIBER_WORDS])
{
    void **root = (void **)(f->high - 2 * sizeof(void *)); /* (%rsp) of ub_fiber_root, a multiple of 16 */
    struct frame *frame = (struct frame *)root - 1;

    root[0] = &f->caller;
    root[1] = NULL;
    memset(frame, 0, sizeof(*frame));
#if defined(__x86_64__)
    frame->mxcsr = __builtin_ia32_stmxcsr(); /* the caller's control words, as a called function has them */
    __asm__("fnstcw %0" : "=m"(frame->x87));
#elif defined(__aarch64__)
    __asm__("mrs %0, fpcr" : "=r"(frame->fpcr));
#endif
    frame->FRAME_FIBER = (uintptr_t)f;
    frame->FRAME_ADDRESS = (uintptr_t)ub_fiber_root;
    f->sp = frame;
    f->function = function;
    memcpy(f->word, word, sizeof(f->word));
    f->exceptions = (struct ub_fiber_exceptions){NULL, 0};
    f->state = UB_FIBER_READY;
}

/* The fiber's first function. What it calls is on a frame that unwinds into the resumer's. */
void ub_fiber_main(struct ub_fiber *f)
{
    void *gone;

    if (ub_fiber_tells())
        __sanitizer_finish_switch_fiber(NULL, &f->resumer.low, &f->resumer.size);
    f->result = f->function(f->word[0], f->word[1], f->word[2], f->word[3], f->word[4], f->word[5]);
    f->state = UB_FIBER_DONE;
    if (ub_fiber_tells()) /* it does not come back */
        __sanitizer_start_switch_fiber(NULL, f->resumer.low, f->resumer.size);
    ub_fiber_switch(&gone, f->caller);
    __builtin_unreachable();
}

void ub_fiber_tell_left(struct ub_fiber *f)
{
    if (!ub_fiber_tells())
        return;
    __sanitizer_start_switch_fiber(NULL, f->resumer.low, f->resumer.size);
    __sanitizer_finish_switch_fiber(f->resumer.fake, NULL, NULL);
}

/*
 * The personality of ub_fiber_root: an exception (or a cancellation, pthread_exit) leaves the fiber for
 * good, into the frames of who resumed it. A personality rather than a cleanup in ub_fiber_resume, which would
 * need _Unwind_Resume and with it libgcc. It runs on the very stack that is left; the one that is
 * on its way is the thread's own exception again.
 */
int ub_fiber_personality(int version, int actions, uint64_t class, void *exception, void *context)
{
    enum { CLEANUP_PHASE = 2, CONTINUE_UNWIND = 8 };
    struct ub_fiber *f = find((uintptr_t)__builtin_frame_address(0));

    if (!(actions & CLEANUP_PHASE) || !f)
        return CONTINUE_UNWIND;
    f->state = UB_FIBER_LEFT;
    ub_fiber_tell_left(f);
    if (f->thread) {
        f->thread->caught = f->callers.caught;
        f->thread->uncaught += f->callers.uncaught;
    }
    return CONTINUE_UNWIND;
}

/* Pages of a stack that exist lie without gaps at its top, but for a large frame of which only a part was touched. */
static size_t depth_of(const struct ub_fiber *f)
{
    uintptr_t top = (f->high + PAGE - 1) & ~(PAGE - 1);
    unsigned char there[256];

    for (uintptr_t at = f->low; at < top; at += sizeof(there) * PAGE) {
        size_t bytes = top - at < sizeof(there) * PAGE ? top - at : sizeof(there) * PAGE;

        if (ub_raw3(SYS_mincore, at, bytes, there) < 0)
            return 0;
        for (size_t i = 0; i < bytes / PAGE; i++) {
            if (there[i] & 1)
                return top - at - i * PAGE;
        }
    }
    return 0;
}

size_t ub_fiber_deepest(const struct ub_fiber_pool *pool)
{
    size_t deepest = 0;

    for (const struct ub_fiber *f = pool->newest; f; f = f->older) {
        size_t depth = depth_of(f);

        if (depth > deepest)
            deepest = depth;
    }
    return deepest;
}

void ub_fiber_pool_free(struct ub_fiber_pool *pool)
{
    size_t head = (pool->head + 63) & ~63ul, whole = GUARD + pool->size + ((head + PAGE - 1) & ~(PAGE - 1));
    struct ub_fiber *f = pool->newest, *older;
    struct ub_fiber_pool **link = &pools;

    while (*link && *link != pool)
        link = &(*link)->next;
    if (*link)
        *link = pool->next;
    for (; f; f = older) {
        older = f->older;
        if (f->state == UB_FIBER_FREE)
            ub_raw2(SYS_munmap, f->low - GUARD, whole);
    }
    pool->free = pool->newest = NULL;
    pool->made = pool->taken = 0;
}
