#include "kernel_view.h"

#include "say.h"

#include "../tracer/bpf/bpf.h"

void ub_kernel_view_option(bool *want, struct ub_option *ret)
{
    *ret = (struct ub_option){.name = "bpf",
                              .kind = UB_OPTION_FLAG,
                              .value = want,
                              .help = "add what the kernel knows of each stall (needs root): exact\ntimes, all "
                                      "long calls, who held the lock, who had\nthe CPU"};
}

struct ub_bpf *ub_kernel_view_open(const char *command, const struct ub_settings *set, pid_t pid)
{
    const struct ub_bpf_options options = {.threshold_ns = set->threshold_ns, .children = true, .beside_agents = true};
    char why[UB_BPF_WHY_MAX] = "";
    struct ub_bpf *bpf = NULL;
    int r = ub_bpf_open(&options, &bpf, why);

    if (r == 0 && ub_bpf_add(bpf, pid) == 0 && ub_bpf_find(bpf) == 0)
        return bpf;
    ub_say(command, "warning: without --bpf: %s", *why != '\0' ? why : "the kernel does not take the process");
    ub_bpf_close(bpf);
    return NULL;
}
