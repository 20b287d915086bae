#include "sample.h"

#include "process.h"
#include "raw.h"
#include "offload/pyyield.h"
#include "real.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <ucontext.h>

#if !defined(__x86_64__)
#error "x86-64 only so far: this file, agent/calls/syscall.S and agent/thunk_entry.S are what another CPU needs"
#endif

#define UB_MAIN_STACK_FREE (64ul << 20)

static uint32_t installed;
static bool reserving;

/* What the program set, or inherited: only ever SIG_DFL or SIG_IGN while `installed`. Kept as single words. */
static sighandler_t shadow_handler;
static int shadow_flags;

static void copy_registers(struct ub_sample *s, const greg_t *g)
{
    static const uint8_t order[UB_REG_COUNT] = {
        REG_RAX, REG_RDX, REG_RCX, REG_RBX, REG_RSI, REG_RDI, REG_RBP, REG_RSP, REG_R8,
        REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15, REG_RIP,
    };

    for (int i = 0; i < UB_REG_COUNT; i++)
        s->reg[i] = (uint64_t)g[order[i]];
}

static uintptr_t main_stack_top;

void ub_sample_main_stack(const void *top)
{
    main_stack_top = (uintptr_t)top;
}

/*
 * Straight from memory on the main stack, which is mapped from any stack pointer
 * up to argv; the kernel keeps 128 MB below it free of anything else. Elsewhere
 * (a thread, a fiber, an alternate stack) by a call that cannot fault: what
 * the tracer believes of mappings may be out of date, or of the image before an
 * exec, whose stack ended further up.
 */
static uint32_t copy_stack(struct ub_sample *s, uint64_t sp, const struct ub_process *page)
{
    struct iovec local = {s->stack, UB_SAMPLE_BYTES}, remote = {(void *)sp, UB_SAMPLE_BYTES};
    long n;

    if (sp < main_stack_top && main_stack_top - sp < UB_MAIN_STACK_FREE) {
        uint64_t above = main_stack_top - sp, len = above < UB_SAMPLE_BYTES ? above : UB_SAMPLE_BYTES;
        const void *from = (const void *)sp;
        void *to = s->stack;
        uint64_t count = len;

        __asm__ volatile("rep movsb" : "+S"(from), "+D"(to), "+c"(count) : : "memory");
        return (uint32_t)len;
    }
    if (page->quiet)
        return 0;
    n = ub_raw6(SYS_process_vm_readv, ub_raw0(SYS_getpid), (long)&local, 1, (long)&remote, 1, 0);
    return n > 0 ? (uint32_t)n : 0;
}

/* The kernel's struct sigaction, of which libc's is another. */
struct kernel_action {
    sighandler_t handler;
    unsigned long flags;
    void (*restorer)(void);
    uint64_t mask;
};

/* Ignored, or by default without effect on a call: it waits only because our handler blocks all signals. */
static bool is_nothing(int sig)
{
    struct kernel_action act = {0};

    if (ub_raw4(SYS_rt_sigaction, sig, 0, &act, sizeof(act.mask)) < 0)
        return false;
    if (act.handler == SIG_DFL)
        return sig == SIGCHLD || sig == SIGCONT || sig == SIGURG || sig == SIGWINCH;
    return act.handler == SIG_IGN;
}

/* A signal of the program's own waits behind ours: then EINTR is what it must see. */
static bool other_signal_pending(const ucontext_t *uc)
{
    uint64_t pending = 0, blocked;

    memcpy(&blocked, &uc->uc_sigmask, sizeof(blocked));
    if (ub_raw2(SYS_rt_sigpending, &pending, sizeof(pending)) < 0)
        return true;
    pending &= ~blocked & ~(1ull << (UB_SAMPLE_SIGNAL - 1));
    for (; pending; pending &= pending - 1) {
        if (!is_nothing(__builtin_ctzll(pending) + 1))
            return true;
    }
    return false;
}

/*
 * `mov disp8(%rsp), reg` that ends at `p`, and so where it begins; NULL when it
 * is none. Only bytes of p's own page are read.
 */
static const uint8_t *load_before(const uint8_t *p)
{
    if (((uintptr_t)p & 4095) < 5 || p[-4] != 0x8b || (p[-3] & 0xc7) != 0x44 || p[-2] != 0x24)
        return NULL;
    return (p[-5] & 0xf0) == 0x40 ? p - 5 : p - 4;
}

/*
 * The number of the interrupted call: from our own syscall(), or from the
 * `mov $nr,%eax` before the instruction. libc's cancellable calls in a process
 * with threads reload an argument or two in between (pselect, epoll_pwait,
 * epoll_pwait2, recvfrom, sendto, msgrcv ... of glibc 2.36).
 */
static long interrupted_number(const greg_t *g, const uint8_t *ip)
{
    const uint8_t *p = ip - 2;
    int32_t nr;

    if (ip == (const uint8_t *)ub_raw_syscall_return)
        return *(const long *)(g[REG_RSP] - 8);
    for (int loads = 0; p && loads <= 2; loads++, p = load_before(p)) {
        if (((uintptr_t)p & 4095) < 5)
            return -1;
        if (p[-5] != 0xb8)
            continue;
        memcpy(&nr, p - 4, sizeof(nr));
        return nr;
    }
    return -1;
}

/*
 * The thread entered a call between the tracer's look and our signal, and the
 * kernel ended it with EINTR, which the program must not see: go back to the
 * instruction. (Calls that SA_RESTART restarts have been set back already.) A
 * relative timeout starts again in full.
 */
static bool rewind_syscall(ucontext_t *uc)
{
    greg_t *g = uc->uc_mcontext.gregs;
    const uint8_t *ip = (const uint8_t *)g[REG_RIP];
    long nr;

    if (g[REG_RAX] != -EINTR || ((uintptr_t)ip & 4095) < 2 || ip[-2] != 0x0f || ip[-1] != 0x05)
        return false;
    nr = interrupted_number(g, ip);
    if (nr < 0 || nr > 1023 || other_signal_pending(uc))
        return false;
    g[REG_RIP] -= 2;
    g[REG_RAX] = nr;
    return true;
}

/*
 * The thread was stopped and continued inside a sleep, and we came before it
 * was back in user mode: it is about to issue restart_syscall, which our own
 * sigreturn makes answer EINTR. The call itself is put in its place.
 */
static bool restart_syscall(ucontext_t *uc)
{
    greg_t *g = uc->uc_mcontext.gregs;
    const uint8_t *ip = (const uint8_t *)g[REG_RIP];
    long nr;

    if (g[REG_RAX] != SYS_restart_syscall || ((uintptr_t)ip & 4095) > 4094 || ip[0] != 0x0f || ip[1] != 0x05)
        return false;
    nr = interrupted_number(g, ip + 2);
    if (nr < 0 || nr > 1023)
        return false;
    g[REG_RAX] = nr;
    return true;
}

static void copy(struct ub_sample *s, const struct ub_process *page, const ucontext_t *uc)
{
    s->at = ub_clock_ticks(page->clock);
    copy_registers(s, uc->uc_mcontext.gregs);
    s->bytes = copy_stack(s, s->reg[UB_REG_RSP], page);
}

/*
 * Signal-safe by construction: raw system calls, no libc, errno untouched, all signals blocked. Whoever sent it, and
 * be it that two came for one request: the program knows of no handler, so no call of its may be ended.
 */
static void on_sample(int sig, siginfo_t *info, void *context)
{
    struct ub_process *page = ub_process;
    struct ub_thread *t = &ub_thread;
    ucontext_t *uc = context;
    uint32_t request;
    struct ub_sample *s;

    if (!page->generation || t->generation != page->generation || !t->cold || info->si_code != SI_TKILL) {
        if (page->quiet == UB_QUIET_NOT && !rewind_syscall(uc))
            restart_syscall(uc);
        return;
    }
    s = &t->cold->sample;
    request = ub_sample_open(ub_load_acquire(&s->request), s->done);
    ub_pyyield_signalled(t->slot ? t->slot->tid : 0);
    if (request)
        copy(s, page, uc);
    if (rewind_syscall(uc) || restart_syscall(uc))
        ub_store_relaxed(&s->rewound, s->rewound + 1);
    if (request)
        ub_store_release(&s->done, request);
}

/*
 * Sends it to ourselves: it has been handled when this returns. Not where the program has blocked it: it would stay,
 * and be seen by who asks what is pending.
 */
static void answer(void)
{
    uint64_t blocked = 0;

    if (ub_raw4(SYS_rt_sigprocmask, SIG_BLOCK, 0, (long)&blocked, sizeof(blocked)) < 0 ||
        blocked & 1ull << (UB_SAMPLE_SIGNAL - 1))
        return;
    ub_raw3(SYS_tgkill, ub_raw0(SYS_getpid), ub_raw0(SYS_gettid), UB_SAMPLE_SIGNAL);
}

/* Whether it was not blocked before. */
static bool block(int how)
{
    uint64_t bit = 1ull << (UB_SAMPLE_SIGNAL - 1), old = 0;

    return ub_raw4(SYS_rt_sigprocmask, how, (long)&bit, (long)&old, sizeof(old)) == 0 && !(old & bit);
}

void ub_sample_before_call(struct ub_sample *s)
{
    uint32_t request = ub_load_acquire(&s->request), open = ub_sample_open(request, s->done);

    if (!open || !ub_load_relaxed(&ub_process->sampler) || ub_process->quiet)
        return;
    if (request == open && __atomic_compare_exchange_n(&s->request, &request, open | UB_SAMPLE_OWN, false,
                                                       __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        return;
    if (request == (open | UB_SAMPLE_SENT) && !s->shielded && block(SIG_BLOCK))
        s->shielded = 1;
}

void ub_sample_after_call(struct ub_sample *s)
{
    uint32_t request, open;

    if (s->shielded) {
        s->shielded = 0;
        block(SIG_UNBLOCK); /* if it has come meanwhile it is handled now */
    }
    request = ub_load_acquire(&s->request);
    open = ub_sample_open(request, s->done);
    if (!open || !ub_load_relaxed(&ub_process->sampler) || ub_process->quiet)
        return;
    if (request == (open | UB_SAMPLE_OWN) ||
        (request == open && __atomic_compare_exchange_n(&s->request, &request, open | UB_SAMPLE_OWN, false,
                                                        __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)))
        answer();
}

bool ub_sample_is_installed(void)
{
    return ub_load_acquire(&installed);
}

bool ub_sample_install(void)
{
    struct sigaction act = {.sa_sigaction = on_sample, .sa_flags = SA_RESTART | SA_SIGINFO | SA_ONSTACK}, old;
    int saved = errno;

    if (ub_load_relaxed(&installed))
        return true;
    sigfillset(&act.sa_mask);
    if (ub_real.sigaction(UB_SAMPLE_SIGNAL, NULL, &old) == 0 && old.sa_handler != SIG_DFL &&
        old.sa_handler != SIG_IGN) {
        errno = saved;
        return old.sa_sigaction == on_sample; /* another thread was quicker; else the program's own handler stays */
    }
    shadow_handler = old.sa_handler;
    shadow_flags = old.sa_flags;
    if (ub_real.sigaction(UB_SAMPLE_SIGNAL, &act, NULL) == 0)
        ub_store_release(&installed, 1);
    errno = saved;
    return ub_load_relaxed(&installed);
}

void ub_sample_reserve(bool on)
{
    reserving = on;
}

void ub_sample_uninstall(void)
{
    struct sigaction act = {.sa_handler = shadow_handler, .sa_flags = shadow_flags};
    int saved = errno;

    if (!ub_load_acquire(&installed))
        return;
    sigemptyset(&act.sa_mask);
    ub_real.sigaction(UB_SAMPLE_SIGNAL, &act, NULL);
    ub_store_release(&installed, 0);
    errno = saved;
}

static void tell_shadow(struct sigaction *old)
{
    memset(old, 0, sizeof(*old));
    old->sa_handler = shadow_handler;
    old->sa_flags = shadow_flags;
}

int ub_sample_sigaction(const struct sigaction *act, struct sigaction *old)
{
    struct sigaction wanted;
    int ret;

    if (!ub_load_acquire(&installed))
        return ub_real.sigaction(UB_SAMPLE_SIGNAL, act, old);
    if (reserving) {
        if (old)
            tell_shadow(old);
        return 0;
    }
    if (act)
        wanted = *act; /* act and old may be one object */
    if (!act || wanted.sa_handler == SIG_DFL || wanted.sa_handler == SIG_IGN) {
        if (old)
            tell_shadow(old);
        if (act) {
            shadow_handler = wanted.sa_handler;
            shadow_flags = wanted.sa_flags;
        }
        return 0;
    }
    ub_process_lose_sampler();
    ret = ub_real.sigaction(UB_SAMPLE_SIGNAL, &wanted, NULL);
    if (ret == 0) {
        if (old)
            tell_shadow(old);
        ub_store_release(&installed, 0);
    }
    return ret;
}
