/*
 * Executes a program under a seccomp filter like the one of Docker: filtered CMD...
 * What its default profile refuses without capabilities is refused (EPERM), all else allowed.
 */
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REFUSE(nr)                                                                                                     \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 1 /* EPERM */)

int main(int argc, char **argv)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        REFUSE(SYS_acct),
        REFUSE(SYS_add_key),
        REFUSE(SYS_bpf),
        REFUSE(SYS_clock_settime),
        REFUSE(SYS_delete_module),
        REFUSE(SYS_finit_module),
        REFUSE(SYS_init_module),
        REFUSE(SYS_io_uring_setup),
        REFUSE(SYS_io_uring_enter),
        REFUSE(SYS_io_uring_register),
        REFUSE(SYS_ioperm),
        REFUSE(SYS_iopl),
        REFUSE(SYS_kcmp),
        REFUSE(SYS_kexec_load),
        REFUSE(SYS_keyctl),
        REFUSE(SYS_mount),
        REFUSE(SYS_move_pages),
        REFUSE(SYS_name_to_handle_at),
        REFUSE(SYS_open_by_handle_at),
        REFUSE(SYS_perf_event_open),
        REFUSE(SYS_pivot_root),
        REFUSE(SYS_quotactl),
        REFUSE(SYS_reboot),
        REFUSE(SYS_request_key),
        REFUSE(SYS_setns),
        REFUSE(SYS_settimeofday),
        REFUSE(SYS_swapon),
        REFUSE(SYS_umount2),
        REFUSE(SYS_unshare),
        REFUSE(SYS_userfaultfd),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof(code) / sizeof(code[0]), code};

    if (argc < 2 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        return 77;
    execvp(argv[1], argv + 1);
    perror(argv[1]);
    return 127;
}
