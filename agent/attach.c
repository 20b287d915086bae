/*
 * Entering and leaving a running process: what the injector calls, on a loop's
 * thread that it met in a wait call, on a stack of the injector's. The entry
 * point of the file, so that no name need be exported.
 *
 * All signals are blocked, the registers are somebody else's to restore, and so
 * is errno. The thread may hold no lock of libc's: that is what the wait call is for.
 */
#include "module.h"
#include "offload/decide.h"
#include "patch.h"
#include "process.h"
#include "raw.h"
#include "real.h"
#include "sample.h"

#include <dlfcn.h>
#include <errno.h>

int ub_attach_entry(struct ub_attach *a);

/* Brought in by the injector: the loader binds nothing to us. */
static bool is_injected(void)
{
    return ub_module_is_injected((const void *)ub_attach_entry);
}

/* Once: libc stays what it is. */
static int prepare(void)
{
    static bool prepared;
    void *libc, *program;

    if (prepared || !is_injected())
        return 0;
    libc = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
    program = dlopen(NULL, RTLD_LAZY | RTLD_NOLOAD);
    if (!libc || !program)
        return -ENOEXEC;
    ub_real_resolve_in(libc);
    ub_patch_libc_prepare(libc, program);
    dlclose(program);
    dlclose(libc);
    prepared = true;
    return 0;
}

static uint64_t piece_ends(void)
{
    return ub_clock_monotonic_ns() + UB_ATTACH_PIECE_NS;
}

/* Not for long at once. */
static int prepare_some(void)
{
    uint64_t until = piece_ends();
    int r = prepare();

    return r == 0 && is_injected() && !ub_patch_learn(until) ? UB_ATTACH_MORE : r;
}

static int enter(struct ub_attach *a)
{
    uint64_t until = piece_ends();
    int r = prepare();

    return r == 0 ? ub_process_attach(a, is_injected(), until) : r;
}

/* Whether the kernel would call us for some signal. */
static bool has_handler(void)
{
    struct {
        uintptr_t handler, flags, restorer;
        uint64_t mask;
    } action = {0};

    for (int sig = 1; sig <= 64; sig++) {
        if (ub_raw4(SYS_rt_sigaction, sig, 0, (long)&action, sizeof(action.mask)) == 0 &&
            (ub_module_is_own(action.handler) || ub_module_is_own(action.restorer)))
            return true;
    }
    return false;
}

static int forget(void)
{
    if (!is_injected())
        return UB_ATTACH_KEPT_PRELOADED;
    return has_handler() ? UB_ATTACH_KEPT_HANDLER : ub_process_forget();
}

static int obey(struct ub_attach *a)
{
    int r;

    if (a->magic != UB_ATTACH_MAGIC || a->version != UB_ATTACH_VERSION)
        return -EPROTO;
    switch (a->verb) {
    case UB_ATTACH_LOAD:
        return 0; /* it has happened */
    case UB_ATTACH_PREPARE:
        r = prepare_some();
        a->prepared |= r == 0;
        return r;
    case UB_ATTACH_ENTER:
        return enter(a);
    case UB_ATTACH_PATCH:
        return ub_patch_attach_more(piece_ends()) ? 0 : UB_ATTACH_MORE;
    case UB_ATTACH_ADOPTED:
        ub_process_hands_over();
        return 0;
    case UB_ATTACH_LEAVE:
        r = ub_process_leave(piece_ends());
        return ub_offload_mode > UB_OFFLOAD_DRY_RUN ? 0 : r; /* there it goes later, by itself */
    case UB_ATTACH_FORGET:
        return forget();
    default:
        return -EPROTO;
    }
}

__attribute__((used)) int ub_attach_entry(struct ub_attach *a)
{
    struct timespec cpu;
    int r = obey(a);

    if (ub_sample_is_installed()) /* a sample that is on its way is no reason for the program's wait to end */
        a->caught &= ~(1ull << (UB_SAMPLE_SIGNAL - 1));
    if (ub_raw2(SYS_clock_gettime, CLOCK_THREAD_CPUTIME_ID, &cpu) == 0)
        a->done_cpu_ns = (uint64_t)cpu.tv_sec * 1000000000u + (uint64_t)cpu.tv_nsec;
    a->done_ns = ub_clock_monotonic_ns();
    return r;
}
