#include "fds.h"

#include "suspend.h"

enum {
    ID_dup2,
    ID_dup3,
    ID_close_range,
    ID_closefrom,
    IDS,
};
static void *original[IDS][UB_LOOP_COPIES];

static int hook_dup2(int from, int to)
{
    if (from != to)
        ub_suspend_settle_numbers((unsigned)to, (unsigned)to);
    return ((int (*)(int, int))original[ID_dup2][0])(from, to);
}

static int hook_dup3(int from, int to, int flags)
{
    if (from != to)
        ub_suspend_settle_numbers((unsigned)to, (unsigned)to);
    return ((int (*)(int, int, int))original[ID_dup3][0])(from, to, flags);
}

/* With flags it closes nothing, or in a table of the thread's own. */
static int hook_close_range(unsigned first, unsigned last, int flags)
{
    if (!flags)
        ub_suspend_settle_numbers(first, last);
    return ((int (*)(unsigned, unsigned, int))original[ID_close_range][0])(first, last, flags);
}

static void hook_closefrom(int low)
{
    ub_suspend_settle_numbers(low < 0 ? 0 : (unsigned)low, UINT32_MAX);
    ((void (*)(int))original[ID_closefrom][0])(low);
}

static const struct ub_loop_hook hooks[] = {
    {"dup2", {(void *)hook_dup2, NULL}, UB_HOOK_OTHERS},
    {"dup3", {(void *)hook_dup3, NULL}, UB_HOOK_OTHERS},
    {"close_range", {(void *)hook_close_range, NULL}, UB_HOOK_OTHERS},
    {"closefrom", {(void *)hook_closefrom, NULL}, UB_HOOK_OTHERS},
};
_Static_assert(UB_ARRAY_LEN(hooks) == IDS, "one original a hook");

static const char *const files[] = {"libc.so.", NULL};

const struct ub_loop_ops ub_offload_libc = {
    .files = files, .prefix = "", .hooks = hooks, .count = IDS, .originals = original};
