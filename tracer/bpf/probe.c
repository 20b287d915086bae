/*
 * What loading needs, asked for before it is tried: the kernel's own answers
 * (EPERM, EINVAL) do not say which of five things is missing.
 */
#include "bpf.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#define BTF_FILE "/sys/kernel/btf/vmlinux"

bool ub_bpf_forced_off(const char *what)
{
    const char *without = getenv("UNBLOCK_BPF_WITHOUT");

    return without && strstr(without, what);
}

static bool have_capability(const struct __user_cap_data_struct data[2], int cap)
{
    return data[cap / 32].effective & (1u << (cap % 32));
}

static int probe_capabilities(char *why)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{0}};
    bool bpf, perfmon, ptrace;

    if (syscall(SYS_capget, &header, data) < 0)
        return 0; /* loading will tell */
    bpf = have_capability(data, CAP_SYS_ADMIN) || have_capability(data, CAP_BPF);
    perfmon = have_capability(data, CAP_SYS_ADMIN) || have_capability(data, CAP_PERFMON);
    ptrace = have_capability(data, CAP_SYS_PTRACE);
    if (bpf && perfmon && !ub_bpf_forced_off("capabilities"))
        return 0;
    snprintf(why, UB_BPF_WHY_MAX,
             "eBPF needs CAP_BPF and CAP_PERFMON%s, this process has %s: run it as root, or "
             "setcap cap_bpf,cap_perfmon,cap_sys_ptrace+ep on unblock",
             ptrace ? "" : ", and CAP_SYS_PTRACE for the stacks of others' processes",
             bpf && !ub_bpf_forced_off("capabilities")       ? "CAP_BPF only"
             : perfmon && !ub_bpf_forced_off("capabilities") ? "CAP_PERFMON only"
                                                             : "neither");
    return -EPERM;
}

static int probe_btf(char *why)
{
    struct utsname u;

    if (access(BTF_FILE, R_OK) == 0 && !ub_bpf_forced_off("btf"))
        return 0;
    uname(&u);
    snprintf(why, UB_BPF_WHY_MAX,
             "this kernel (%s) does not describe its types: " BTF_FILE
             " is missing; it takes one built with CONFIG_DEBUG_INFO_BTF, 5.15 or later",
             u.release);
    return -ENOTSUP;
}

int ub_bpf_probe(char *why)
{
    int r = probe_capabilities(why);

    return r < 0 ? r : probe_btf(why);
}
