/* --bpf of run and attach: what the kernel knows of the stalls that the agent sees. */
#ifndef UB_UI_KERNEL_VIEW_H
#define UB_UI_KERNEL_VIEW_H

#include "options.h"
#include "settings.h"

#include <sys/types.h>

struct ub_bpf;

void ub_kernel_view_option(bool *want, struct ub_option *ret);

/* NULL: there is none, and the user has been told why. It is watched in any case. Closed with ub_bpf_close. */
struct ub_bpf *ub_kernel_view_open(const char *command, const struct ub_settings *set, pid_t pid);

#endif
