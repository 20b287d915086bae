/*
 * System calls of x86-64 by number: names, which argument is what, and a short
 * text of the arguments for people. The table is tracer/syscalls.def.
 *
 * Thread-safe; not signal-safe. Nothing is done to the process but reading
 * strings and structures of known small size from its memory.
 */
#ifndef UB_TRACER_SYSCALLS_H
#define UB_TRACER_SYSCALLS_H

#include "../common/base.h"

#include <sys/types.h>

#define UB_SYSCALL_NAME_MAX 16  /* for ub_syscall_name's buffer */
#define UB_SYSCALL_ARGS_MAX 512 /* a size that fits nearly all; longer texts are cut and end in "..." */

/* "fsync", or "syscall_1234" written into `buf` (UB_SYSCALL_NAME_MAX bytes) when the number is unknown. */
const char *ub_syscall_name(int64_t nr, char *buf);

/* The number of a call by its name, or -ENOENT. */
int64_t ub_syscall_number(const char *name);

/* Index of the argument that is the descriptor the call works on, or -1 (none, or AT_FDCWD-relative paths). */
int ub_syscall_fd_arg(int64_t nr);

/* Index of an argument that points to what a person wants to read (a path, an address, a timeout), or -1. */
int ub_syscall_pointer_arg(int64_t nr);

/* How many arguments the call takes; 6 when the number is unknown. */
int ub_syscall_arg_count(int64_t nr);

/*
 * The arguments as a person wants them, without name and parentheses:
 *
 *     fsync       "7"
 *     read        "7, 65536"
 *     openat      "\"/etc/app.conf\", O_RDONLY"
 *     connect     "14, 10.0.3.7:443"
 *     nanosleep   "1.5 s"
 *     poll        "3 fds, 1000 ms"
 *     futex       "0x7f30d0, FUTEX_WAIT"
 *
 * Descriptors are bare numbers: ub_fd_describe tells what they are. Pointers
 * that say nothing are left out. Strings are read from the process
 * (process_vm_readv, at most UB_SYSCALL_STRING_MAX bytes), quoted and escaped;
 * unreadable ones are shown as an address. Valid UTF-8 without control characters.
 */
#define UB_SYSCALL_STRING_MAX 256
void ub_syscall_format(pid_t pid, int64_t nr, const uint64_t arg[6], char *buf, size_t size);

/*
 * The same where the memory was copied while the call ran: `bytes` from
 * `address` on; anything else is shown as an address.
 */
struct ub_syscall_memory {
    pid_t pid; /* 0: only what is copied */
    uint64_t address;
    const void *bytes;
    size_t len;
};
void ub_syscall_format_copied(const struct ub_syscall_memory *memory, int64_t nr, const uint64_t arg[6], char *buf,
                              size_t size);

/* The flags of open: "O_RDONLY|O_CLOEXEC". */
struct ub_line;
void ub_syscall_open_flags(struct ub_line *line, uint64_t flags);

#endif
