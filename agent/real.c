#include "real.h"

#include "module.h"
#include "often.h"
#include "raw.h"

#include <dlfcn.h>
#include <errno.h>
#include <string.h>

/*
 * A hook can run before our constructor (an IFUNC resolver, a preinit_array of
 * the executable). So each original starts as a function that resolves all of
 * them and goes on; a name that this libc lacks ends as one that says ENOSYS.
 */
#define UB_HOOK(type, name, params, args)                                                                              \
    static type first_##name params                                                                                    \
    {                                                                                                                  \
        ub_real_resolve();                                                                                             \
        return ub_real.name args;                                                                                      \
    }                                                                                                                  \
    static type missing_##name params                                                                                  \
    {                                                                                                                  \
        errno = ENOSYS;                                                                                                \
        return (type)-1;                                                                                               \
    }
#define UB_EXPORT(name)
#include "hooks.def"
#undef UB_EXPORT
#undef UB_HOOK

UB_OFTEN __attribute__((aligned(UB_CACHE_LINE))) struct ub_real ub_real = {
#define UB_HOOK(type, name, params, args) .name = first_##name,
#define UB_EXPORT(name)
#include "hooks.def"
#undef UB_EXPORT
#undef UB_HOOK
};
long (*ub_real_syscall_pointer)(long nr, ...) = ub_raw_syscall;

static void *where = RTLD_NEXT;

/*
 * What programs built with a glibc before 2.34 call is still in libc, under the old version alone: dlsym passes it
 * over, and a look-up that finds nothing allocates.
 */
static bool is_old_name(const char *name)
{
    return strncmp(name, "__res_", 6) == 0;
}

static void *next(const char *name, void *missing)
{
    void *f = is_old_name(name) ? dlvsym(where, name, "GLIBC_2.2.5") : dlsym(where, name);

    return f ? f : missing;
}

/*
 * glibc's syscall() loses the number of an interrupted call, ours keeps it for
 * the sampling handler: so ours stands in for libc's, but not for a third
 * library's that also hooks it.
 */
static void resolve_syscall(void)
{
    void *f = dlsym(where, "syscall");

    if (f && !ub_module_is_libc(f))
        memcpy(&ub_real_syscall_pointer, &f, sizeof(f));
}

void ub_real_resolve(void)
{
    void *f;

#define UB_HOOK(type, name, params, args)                                                                              \
    f = next(#name, (void *)missing_##name);                                                                           \
    memcpy(&ub_real.name, &f, sizeof(f));
#define UB_EXPORT(name)
#include "hooks.def"
#undef UB_EXPORT
#undef UB_HOOK
    resolve_syscall();
}

void ub_real_resolve_in(void *libc)
{
    where = libc;
    ub_real_resolve();
}
