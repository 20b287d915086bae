#include "punctual.h"

#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SLICE_NS 100000u

/* The kernel's struct sched_attr; its header clashes with libc's <sched.h>. */
struct scheduling {
    uint32_t size;
    uint32_t policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

static bool set_slice(uint64_t ns, uint64_t *ret_before)
{
    struct scheduling attr = {0};

    if (syscall(SYS_sched_getattr, 0, &attr, sizeof(attr), 0) < 0 || attr.policy != 0) /* SCHED_OTHER */
        return false;
    if (ret_before)
        *ret_before = attr.runtime;
    attr.size = sizeof(attr);
    attr.runtime = ns;
    return syscall(SYS_sched_setattr, 0, &attr, 0) == 0;
}

void ub_punctual_begin(struct ub_punctual *ret_before)
{
    struct ub_punctual before = {0};
    int slack = prctl(PR_GET_TIMERSLACK);

    if (!set_slice(SLICE_NS, &before.slice_ns))
        before.slice_ns = 0;
    before.slack_ns = slack > 0 ? (uint64_t)slack : 0;
    prctl(PR_SET_TIMERSLACK, 1UL);
    if (ret_before)
        *ret_before = before;
}

void ub_punctual_end(const struct ub_punctual *before)
{
    if (before->slice_ns)
        set_slice(before->slice_ns, NULL);
    if (before->slack_ns)
        prctl(PR_SET_TIMERSLACK, (unsigned long)before->slack_ns);
}
