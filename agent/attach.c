/*
 * Entering and leaving a running process: what the injector calls, on a loop's
 * thread that it met in a wait call, on a stack of the injector's. The entry
 * point of the file, so that no name need be exported.
 *
 * All signals are blocked, the registers are somebody else's to restore, and so
 * is errno. The thread may hold no lock of libc's: that is what the wait call is for.
 */
#include "module.h"
#include "process.h"
#include "raw.h"
#include "real.h"

#include <dlfcn.h>
#include <errno.h>

#define ADOPTION_NS 4000000u /* that long the program is held at the most for the injector to take the arena */

int ub_attach_entry(struct ub_attach *a);

/* The descriptor is gone again before the program runs on: it may count them, or close what it does not know. */
static int hand_over(struct ub_attach *a)
{
    uint64_t until = ub_clock_monotonic_ns() + ADOPTION_NS;

    while (!ub_load_acquire(&a->adopted) && ub_clock_monotonic_ns() < until)
        ub_raw0(SYS_sched_yield);
    ub_raw1(SYS_close, a->arena_fd);
    if (ub_load_acquire(&a->adopted))
        return 0;
    ub_process_leave();
    return -ETIMEDOUT;
}

static int enter(struct ub_attach *a)
{
    bool injected = ub_module_is_injected((const void *)ub_attach_entry);
    void *libc = NULL;
    int r;

    if (injected) {
        libc = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
        if (!libc)
            return -ENOEXEC;
        ub_real_resolve_in(libc);
    }
    r = ub_process_attach(a, libc);
    if (libc)
        dlclose(libc);
    return r == 0 ? hand_over(a) : r;
}

__attribute__((used)) int ub_attach_entry(struct ub_attach *a)
{
    int r = -EPROTO;

    if (a->magic == UB_ATTACH_MAGIC && a->version == UB_ATTACH_VERSION && a->verb == UB_ATTACH_ENTER)
        r = enter(a);
    else if (a->magic == UB_ATTACH_MAGIC && a->version == UB_ATTACH_VERSION && a->verb == UB_ATTACH_LEAVE) {
        ub_process_leave();
        r = 0;
    }
    a->done_ns = ub_clock_monotonic_ns();
    return r;
}
