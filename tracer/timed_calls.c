#include "timed_calls.h"

#include "line.h"
#include "syscalls.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>

static const struct {
    const char *name, *syscall, *letters;
} table[UB_CALL_IDS] = {
#define UB_CALL(type, name, params, args, syscall, letters, ...) {#name, #syscall, letters},
#define UB_CALLV(type, name, params, args, syscall, letters)     {#name, #syscall, letters},
#include "../common/calls.def"
#undef UB_CALL
#undef UB_CALLV
};

const char *ub_timed_call_name(uint32_t id)
{
    return id < UB_CALL_IDS ? table[id].name : NULL;
}

const char *ub_moved_call_name(uint32_t id)
{
    static const char *const more[] = {"sem_wait",
#define NAME(name, ...) #name,
                                       UB_UNITS(NAME)
#undef NAME
    };

    return id < UB_CALL_IDS ? table[id].name : id < UB_UNITS_END ? more[id - UB_CALL_IDS] : NULL;
}

int64_t ub_timed_call_syscall(uint32_t id)
{
    return id < UB_CALL_IDS ? ub_syscall_number(table[id].syscall) : -1;
}

/* The texts are in the order of their letters: which one belongs to letter `at`; NULL: none. */
static const char *text_of(const struct ub_timed_call *call, const char *letters, uint32_t at, uint32_t *ret_len)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < at; i++)
        n += strchr("fqpa", letters[i]) != NULL;
    if (n >= UB_CALLS_TEXTS || call->text_len[n] == 0)
        return NULL;
    *ret_len = call->text_len[n] < UB_CALLS_TEXT ? call->text_len[n] : UB_CALLS_TEXT;
    return (const char *)call->text[n];
}

void ub_timed_call_forget_pointers(struct ub_timed_call *call)
{
    const char *letters = call->id < UB_CALL_IDS ? table[call->id].letters : "";

    for (uint32_t i = 0; !call->told && i < strlen(letters); i++) {
        if (letters[i] == 't' || letters[i] == 'q')
            call->value[i] = UINT64_MAX;
    }
}

int ub_timed_call_fd(const struct ub_timed_call *call, char ret_link[UB_CALLS_TEXT + 1])
{
    const char *letters = call->id < UB_CALL_IDS ? table[call->id].letters : "", *text;
    const char *f = strpbrk(letters, "fq");
    uint32_t len = 0;

    ret_link[0] = '\0';
    if (!f || (int32_t)call->value[f - letters] < 0)
        return -1;
    text = text_of(call, letters, (uint32_t)(f - letters), &len);
    if (text) {
        memcpy(ret_link, text, len);
        ret_link[len] = '\0';
    }
    return (int32_t)call->value[f - letters];
}

static void add_string(struct ub_line *line, const char *text, uint32_t len, uint64_t address)
{
    size_t end = text ? strnlen(text, len) : 0;

    if (!text) {
        ub_line_printf(line, address ? "0x%llx" : "NULL", (unsigned long long)address);
        return;
    }
    ub_line_printf(line, "\"");
    ub_line_escape(line, text, end, '"');
    ub_line_printf(line, end == len ? "\"..." : "\"");
}

static void add_address(struct ub_line *line, const char *text, uint32_t len, uint64_t address)
{
    struct sockaddr_in in = {0};
    struct sockaddr_in6 in6 = {0};
    char host[INET6_ADDRSTRLEN];
    sa_family_t family = AF_UNSPEC;

    if (text && len >= sizeof(family))
        memcpy(&family, text, sizeof(family));
    if (family == AF_INET && len >= sizeof(in)) {
        memcpy(&in, text, sizeof(in));
        ub_line_printf(line, "%s:%u", inet_ntop(AF_INET, &in.sin_addr, host, sizeof(host)), ntohs(in.sin_port));
    } else if (family == AF_INET6 && len >= sizeof(in6)) {
        memcpy(&in6, text, sizeof(in6));
        ub_line_printf(line, "[%s]:%u", inet_ntop(AF_INET6, &in6.sin6_addr, host, sizeof(host)), ntohs(in6.sin6_port));
    } else if (family == AF_UNIX) {
        text += sizeof(family);
        len -= (uint32_t)sizeof(family);
        ub_line_printf(line, *text ? "" : "@");
        text += *text == '\0';
        ub_line_escape(line, text, strnlen(text, len - 1), 0);
    } else if (text) {
        ub_line_printf(line, "address family %u", family);
    } else {
        ub_line_printf(line, "0x%llx", (unsigned long long)address);
    }
}

static void add_span(struct ub_line *line, uint64_t ns)
{
    if (ns == UINT64_MAX)
        ub_line_printf(line, "no timeout");
    else if (ns < 1000000)
        ub_line_printf(line, "%g us", (double)ns / 1e3);
    else if (ns < 1000000000)
        ub_line_printf(line, "%g ms", (double)ns / 1e6);
    else
        ub_line_printf(line, "%g s", (double)ns / 1e9);
}

static void add_lock(struct ub_line *line, uint64_t op)
{
    const char *name = (op & ~(uint64_t)LOCK_NB) == LOCK_SH   ? "LOCK_SH"
                       : (op & ~(uint64_t)LOCK_NB) == LOCK_EX ? "LOCK_EX"
                       : (op & ~(uint64_t)LOCK_NB) == LOCK_UN ? "LOCK_UN"
                                                              : "?";

    ub_line_printf(line, "%s%s", name, op & LOCK_NB ? "|LOCK_NB" : "");
}

static void add_value(struct ub_line *line, const struct ub_timed_call *call, const char *letters, uint32_t i)
{
    uint64_t value = call->value[i];
    uint32_t len = 0;
    const char *text = text_of(call, letters, i, &len);

    switch (letters[i]) {
    case 'p':
        add_string(line, text, len, value);
        break;
    case 'a':
        add_address(line, text, len, value);
        break;
    case 's':
        ub_line_printf(line, "%llu s", (unsigned long long)value);
        break;
    case 'u':
        add_span(line, value * 1000);
        break;
    case 't':
        add_span(line, value);
        break;
    case 'm':
        add_span(line, (int)value < 0 ? UINT64_MAX : value * 1000000);
        break;
    case 'n':
        ub_line_printf(line, "%llu fds", (unsigned long long)value);
        break;
    case 'N':
        ub_line_printf(line, "fds below %d", (int)value);
        break;
    case 'L':
        add_lock(line, value);
        break;
    case 'C':
        ub_line_printf(line,
                       value == F_SETLKW       ? "F_SETLKW"
                       : value == F_OFD_SETLKW ? "F_OFD_SETLKW"
                                               : "%d",
                       (int)value);
        break;
    case 'O':
        ub_syscall_open_flags(line, value);
        break;
    case 'x':
        ub_line_printf(line, value ? "0x%llx" : "0", (unsigned long long)value);
        break;
    case 'z':
    case 'o':
        ub_line_printf(line, "%lld", (long long)value);
        break;
    default: /* f q d i */
        ub_line_printf(line, "%d", (int)value);
        break;
    }
}

void ub_timed_call_format(const struct ub_timed_call *call, char *buf, size_t size)
{
    const char *letters = call->id < UB_CALL_IDS ? table[call->id].letters : "";
    struct ub_line line;

    ub_line_begin(&line, buf, size);
    for (uint32_t i = 0; i < UB_CALLS_VALUES && letters[i]; i++) {
        if ((letters[i] == 'd' && (int)call->value[i] == AT_FDCWD) || (letters[i] == 'q' && (int)call->value[i] < 0))
            continue;
        if (line.len > 0)
            ub_line_printf(&line, ", ");
        add_value(&line, call, letters, i);
    }
}
