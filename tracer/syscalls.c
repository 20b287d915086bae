/*
 * Names and arguments of system calls; the table is syscalls.def.
 */
#include "syscalls.h"

#include "line.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

struct syscall_entry {
    const char *name;
    const char *args; /* one letter an argument, see syscalls.def */
};

static const struct syscall_entry table[] = {
#define X(nr, name, args) [nr] = {#name, args},
#include "syscalls.def"
#undef X
};

static const struct syscall_entry *find(int64_t nr)
{
    if (nr < 0 || nr >= (int64_t)UB_ARRAY_LEN(table) || table[nr].name == NULL)
        return NULL;
    return &table[nr];
}

const char *ub_syscall_name(int64_t nr, char *buf)
{
    const struct syscall_entry *e = find(nr);

    if (e != NULL)
        return e->name;
    if (nr < 0 || nr > 9999999)
        snprintf(buf, UB_SYSCALL_NAME_MAX, "syscall_?");
    else
        snprintf(buf, UB_SYSCALL_NAME_MAX, "syscall_%d", (int)nr);
    return buf;
}

int64_t ub_syscall_number(const char *name)
{
    for (size_t nr = 0; nr < UB_ARRAY_LEN(table); nr++)
        if (table[nr].name != NULL && !strcmp(table[nr].name, name))
            return (int64_t)nr;
    return -ENOENT;
}

int ub_syscall_fd_arg(int64_t nr)
{
    const struct syscall_entry *e = find(nr);
    const char *f = e == NULL ? NULL : strchr(e->args, 'f');

    return f == NULL ? -1 : (int)(f - e->args);
}

int ub_syscall_pointer_arg(int64_t nr)
{
    const struct syscall_entry *e = find(nr);
    size_t at = e == NULL ? 0 : strcspn(e->args, "patvT");

    return e == NULL || e->args[at] == '\0' ? -1 : (int)at;
}

int ub_syscall_arg_count(int64_t nr)
{
    const struct syscall_entry *e = find(nr);

    return e == NULL ? 6 : (int)strlen(e->args);
}

/* Up to `size` bytes at `address`; what is readable before the first hole. 0 or less: nothing. */
static ssize_t peek(const struct ub_syscall_memory *m, uint64_t address, void *buf, size_t size)
{
    struct iovec local = {buf, size}, remote[2];
    size_t first = 4096 - (address & 4095);

    if (m->pid == 0) {
        if (address != m->address || m->len == 0)
            return 0;
        memcpy(buf, m->bytes, size < m->len ? size : m->len);
        return (ssize_t)(size < m->len ? size : m->len);
    }
    /* A range that runs into an unmapped page fails as one piece only up to the piece: one piece a page. */
    if (first > size)
        first = size;
    remote[0] = (struct iovec){(void *)(uintptr_t)address, first};
    remote[1] = (struct iovec){(void *)(uintptr_t)(address + first), size - first};
    return process_vm_readv(m->pid, &local, 1, remote, first < size ? 2 : 1, 0);
}

/*
 * The call works on the process's memory while we read it: what we print is
 * what the memory holds now, which for a blocked call is what it was given,
 * unless another thread changed it.
 */
static void add_string(struct ub_line *line, const struct ub_syscall_memory *m, uint64_t address)
{
    char text[UB_SYSCALL_STRING_MAX];
    ssize_t n = address == 0 ? 0 : peek(m, address, text, sizeof(text));
    size_t len;

    if (n <= 0) {
        ub_line_printf(line, address == 0 ? "NULL" : "0x%llx", (unsigned long long)address);
        return;
    }
    len = strnlen(text, (size_t)n);
    ub_line_printf(line, "\"");
    ub_line_escape(line, text, len, '"');
    ub_line_printf(line, len == (size_t)n ? "\"..." : "\"");
}

static void add_address(struct ub_line *line, const struct ub_syscall_memory *m, uint64_t address, uint64_t len)
{
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
        struct sockaddr_un un;
        char bytes[sizeof(struct sockaddr_un) + 1];
    } sa = {.any.sa_family = AF_UNSPEC};
    char text[INET6_ADDRSTRLEN];
    ssize_t n = peek(m, address, &sa, len < sizeof(struct sockaddr_un) ? len : sizeof(struct sockaddr_un));
    size_t path_len;

    if (n < (ssize_t)sizeof(sa.any.sa_family)) {
        ub_line_printf(line, "0x%llx", (unsigned long long)address);
    } else if (sa.any.sa_family == AF_INET && n >= (ssize_t)sizeof(sa.in)) {
        ub_line_printf(line, "%s:%u", inet_ntop(AF_INET, &sa.in.sin_addr, text, sizeof(text)), ntohs(sa.in.sin_port));
    } else if (sa.any.sa_family == AF_INET6 && n >= (ssize_t)offsetof(struct sockaddr_in6, sin6_scope_id)) {
        ub_line_printf(line, "[%s]:%u", inet_ntop(AF_INET6, &sa.in6.sin6_addr, text, sizeof(text)),
                       ntohs(sa.in6.sin6_port));
    } else if (sa.any.sa_family == AF_UNIX) {
        path_len = (size_t)n - offsetof(struct sockaddr_un, sun_path);
        if (path_len > 0 && sa.un.sun_path[0] == '\0')
            sa.un.sun_path[0] = '@';
        ub_line_escape(line, sa.un.sun_path, strnlen(sa.un.sun_path, path_len), 0);
    } else {
        ub_line_printf(line, "address family %u", sa.any.sa_family);
    }
}

static void add_duration(struct ub_line *line, int64_t sec, int64_t nsec)
{
    if (sec == 0 && nsec < 1000000)
        ub_line_printf(line, "%g us", (double)nsec / 1e3);
    else if (sec == 0)
        ub_line_printf(line, "%g ms", (double)nsec / 1e6);
    else
        ub_line_printf(line, "%g s", (double)sec + (double)nsec / 1e9);
}

/* A timeout in memory; `micro`: a struct timeval. Linux writes what is left back only when the call returns. */
static void add_timeout(struct ub_line *line, const struct ub_syscall_memory *m, uint64_t address, bool micro)
{
    int64_t value[2];

    if (address == 0)
        ub_line_printf(line, "no timeout");
    else if (peek(m, address, value, sizeof(value)) == (ssize_t)sizeof(value))
        add_duration(line, value[0], micro ? value[1] * 1000 : value[1]);
    else
        ub_line_printf(line, "0x%llx", (unsigned long long)address);
}

static void add_clock_nanosleep(struct ub_line *line, const struct ub_syscall_memory *m, const uint64_t arg[6])
{
    int64_t until[2];

    if (!(arg[1] & TIMER_ABSTIME) || peek(m, arg[2], until, sizeof(until)) != (ssize_t)sizeof(until)) {
        add_timeout(line, m, arg[2], false);
        return;
    }
    ub_line_printf(line, "until %lld.%09lld", (long long)until[0], (long long)until[1]);
}

static void add_flag_names(struct ub_line *line, uint64_t value, const char *const *names, const uint64_t *bits,
                           uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if ((value & bits[i]) == bits[i]) {
            ub_line_printf(line, "|%s", names[i]);
            value &= ~bits[i];
        }
    }
    if (value != 0)
        ub_line_printf(line, "|0x%llx", (unsigned long long)value);
}

void ub_syscall_open_flags(struct ub_line *line, uint64_t flags)
{
    static const char *const access[] = {"O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE"};
    static const char *const names[] = {"O_CREAT",   "O_EXCL",    "O_TRUNC",  "O_APPEND",    "O_NONBLOCK",
                                        "O_SYNC",    "O_DSYNC",   "O_DIRECT", "O_DIRECTORY", "O_NOFOLLOW",
                                        "O_CLOEXEC", "O_TMPFILE", "O_PATH"};
    /* O_TMPFILE contains O_DIRECTORY, so the name that says less must not come first; O_LARGEFILE is noise on 64 bits.
     */
    static const uint64_t bits[] = {O_CREAT,  O_EXCL,      O_TRUNC,    O_APPEND,  O_NONBLOCK, O_SYNC, O_DSYNC,
                                    O_DIRECT, O_DIRECTORY, O_NOFOLLOW, O_CLOEXEC, O_TMPFILE,  O_PATH};

    ub_line_printf(line, "%s", access[flags & O_ACCMODE]);
    flags &= ~(uint64_t)(O_ACCMODE | 0100000);
    if ((flags & O_TMPFILE) == O_TMPFILE) {
        ub_line_printf(line, "|O_TMPFILE");
        flags &= ~(uint64_t)O_TMPFILE;
    }
    add_flag_names(line, flags, names, bits, UB_ARRAY_LEN(bits));
}

static void add_futex_operation(struct ub_line *line, uint64_t op)
{
    static const char *const names[] = {"FUTEX_WAIT",           "FUTEX_WAKE",        "FUTEX_FD",
                                        "FUTEX_REQUEUE",        "FUTEX_CMP_REQUEUE", "FUTEX_WAKE_OP",
                                        "FUTEX_LOCK_PI",        "FUTEX_UNLOCK_PI",   "FUTEX_TRYLOCK_PI",
                                        "FUTEX_WAIT_BITSET",    "FUTEX_WAKE_BITSET", "FUTEX_WAIT_REQUEUE_PI",
                                        "FUTEX_CMP_REQUEUE_PI", "FUTEX_LOCK_PI2"};
    uint64_t command = op & FUTEX_CMD_MASK & 0xff;

    if (command < UB_ARRAY_LEN(names))
        ub_line_printf(line, "%s", names[command]);
    else
        ub_line_printf(line, "0x%llx", (unsigned long long)op);
}

static void add_fcntl_command(struct ub_line *line, uint64_t command)
{
    static const struct {
        int command;
        const char *name;
    } names[] = {{F_DUPFD, "F_DUPFD"},
                 {F_GETFD, "F_GETFD"},
                 {F_SETFD, "F_SETFD"},
                 {F_GETFL, "F_GETFL"},
                 {F_SETFL, "F_SETFL"},
                 {F_GETLK, "F_GETLK"},
                 {F_SETLK, "F_SETLK"},
                 {F_SETLKW, "F_SETLKW"},
                 {F_SETOWN, "F_SETOWN"},
                 {F_SETSIG, "F_SETSIG"},
                 {F_OFD_SETLK, "F_OFD_SETLK"},
                 {F_OFD_SETLKW, "F_OFD_SETLKW"},
                 {F_OFD_GETLK, "F_OFD_GETLK"},
                 {F_SETLEASE, "F_SETLEASE"},
                 {F_SETPIPE_SZ, "F_SETPIPE_SZ"},
                 {F_ADD_SEALS, "F_ADD_SEALS"},
                 {F_DUPFD_CLOEXEC, "F_DUPFD_CLOEXEC"}};

    for (uint32_t i = 0; i < UB_ARRAY_LEN(names); i++) {
        if ((uint64_t)names[i].command == command) {
            ub_line_printf(line, "%s", names[i].name);
            return;
        }
    }
    ub_line_printf(line, "%lld", (long long)command);
}

static void add_flock_operation(struct ub_line *line, uint64_t op)
{
    const char *name = (op & ~(uint64_t)LOCK_NB) == LOCK_SH   ? "LOCK_SH"
                       : (op & ~(uint64_t)LOCK_NB) == LOCK_EX ? "LOCK_EX"
                       : (op & ~(uint64_t)LOCK_NB) == LOCK_UN ? "LOCK_UN"
                                                              : "?";

    ub_line_printf(line, "%s%s", name, op & LOCK_NB ? "|LOCK_NB" : "");
}

static void add_signal(struct ub_line *line, uint64_t sig)
{
    const char *name = sig < NSIG ? sigabbrev_np((int)sig) : NULL;

    if (name != NULL)
        ub_line_printf(line, "SIG%s", name);
    else
        ub_line_printf(line, "%lld", (long long)sig);
}

static void add_argument(struct ub_line *line, const struct ub_syscall_memory *m, char kind, const uint64_t *arg, int i)
{
    switch (kind) {
    case 'p':
        add_string(line, m, arg[i]);
        break;
    case 'a':
        add_address(line, m, arg[i], arg[i + 1]);
        break;
    case 'm':
        if ((int)arg[i] < 0)
            ub_line_printf(line, "no timeout");
        else
            ub_line_printf(line, "%d ms", (int)arg[i]);
        break;
    case 't':
    case 'v':
        add_timeout(line, m, arg[i], kind == 'v');
        break;
    case 'T':
        add_clock_nanosleep(line, m, arg);
        break;
    case 'n':
        ub_line_printf(line, "%u fds", (unsigned)arg[i]);
        break;
    case 'N':
        ub_line_printf(line, "fds below %u", (unsigned)arg[i]);
        break;
    case 'o':
        ub_line_printf(line, "%lld", (long long)arg[i]);
        break;
    case 'z':
        ub_line_printf(line, "%llu", (unsigned long long)arg[i]);
        break;
    case 'x':
        ub_line_printf(line, arg[i] == 0 ? "0" : "0x%llx", (unsigned long long)arg[i]);
        break;
    case 'O':
        ub_syscall_open_flags(line, arg[i]);
        break;
    case 'F':
        add_futex_operation(line, arg[i]);
        break;
    case 'C':
        add_fcntl_command(line, arg[i]);
        break;
    case 'L':
        add_flock_operation(line, arg[i]);
        break;
    case 'S':
        add_signal(line, arg[i]);
        break;
    default: /* 'f' 'd' 'i': the kernel reads an int, the register may hold more */
        ub_line_printf(line, "%d", (int)arg[i]);
        break;
    }
}

/* Left out: what says nothing, the current folder, and a destination that is not given (sendto on a connected socket).
 */
static bool is_silent(char kind, uint64_t value)
{
    return kind == '-' || (kind == 'd' && (int)value == AT_FDCWD) || (kind == 'a' && value == 0);
}

void ub_syscall_format_copied(const struct ub_syscall_memory *m, int64_t nr, const uint64_t arg[6], char *buf,
                              size_t size)
{
    const struct syscall_entry *e = find(nr);
    const char *kinds = e == NULL ? "xxxxxx" : e->args;
    struct ub_line line;

    ub_line_begin(&line, buf, size);
    for (int i = 0; kinds[i] != '\0'; i++) {
        if (is_silent(kinds[i], arg[i]))
            continue;
        if (line.len > 0)
            ub_line_printf(&line, ", ");
        add_argument(&line, m, kinds[i], arg, i);
    }
}

void ub_syscall_format(pid_t pid, int64_t nr, const uint64_t arg[6], char *buf, size_t size)
{
    const struct ub_syscall_memory memory = {.pid = pid};

    ub_syscall_format_copied(&memory, nr, arg, buf, size);
}
