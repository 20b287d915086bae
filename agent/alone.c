#include "alone.h"

#include "arena.h"
#include "calls/timing.h"
#include "helper.h"
#include "raw.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <time.h>

#define THRESHOLD_DEFAULT_NS 50000000u
#define THRESHOLD_MIN_NS     100000u
#define THRESHOLD_MAX_NS     3600000000000u
#define SIZE_DEFAULT         (256ull << 20)
#define SIZE_MIN             (64ull << 10)
#define PARTS_MAX            1000u
#define PREAMBLE_MAX         8192
#define PATH_BYTES           (PATH_MAX - 8) /* ".999" may follow */

/* Settled once, before the first loop; a forked child goes on with its parent's. */
static struct {
    char path[PATH_MAX];
    char program[64]; /* base name of the executable, as JSON wants it */
    uint64_t threshold_ns, max_size;
    uint32_t part;
    int32_t introduced; /* the process (pid) that has a `process` line; 0: none */
} alone;

/* ---- the variables --------------------------------------------------------- */

struct unit {
    const char *name;
    uint64_t factor;
};

/* "50ms", "1.5s": as the options of `unblock run`. 0 when it is none. */
static uint64_t parse(const char *text, const struct unit *unit, size_t units)
{
    uint64_t whole = 0, part = 0, scale = 1;
    size_t i;

    if (*text < '0' || *text > '9')
        return 0;
    for (; *text >= '0' && *text <= '9' && whole < 1000000000; text++)
        whole = whole * 10 + (uint64_t)(*text - '0');
    for (text += *text == '.'; *text >= '0' && *text <= '9' && scale < 1000000; text++, scale *= 10)
        part = part * 10 + (uint64_t)(*text - '0');
    for (i = 0; i < units && strcmp(text, unit[i].name) != 0; i++)
        ;
    return i < units ? whole * unit[i].factor + part * unit[i].factor / scale : 0;
}

static uint64_t value(const char *name, const struct unit *unit, size_t units, uint64_t min, uint64_t max,
                      uint64_t otherwise)
{
    const char *text = ub_helper_variable(name);
    uint64_t v = text ? parse(text, unit, units) : 0;

    return v >= min && v <= max ? v : otherwise;
}

static void read_variables(void)
{
    static const struct unit times[] = {{"us", 1000}, {"ms", 1000000}, {"s", 1000000000}};
    static const struct unit sizes[] = {{"", 1}, {"k", 1u << 10}, {"K", 1u << 10}, {"M", 1u << 20}, {"G", 1u << 30}};

    alone.threshold_ns = value("UNBLOCK_THRESHOLD", times, UB_ARRAY_LEN(times), THRESHOLD_MIN_NS, THRESHOLD_MAX_NS,
                               THRESHOLD_DEFAULT_NS);
    alone.max_size = value("UNBLOCK_MAX_SIZE", sizes, UB_ARRAY_LEN(sizes), SIZE_MIN, UINT64_MAX, SIZE_DEFAULT);
}

/* ---- time and names ---------------------------------------------------------- */

static char *put_padded(char *p, uint64_t n, int width)
{
    for (uint64_t limit = 10; width > 1; width--, limit *= 10) {
        if (n < limit) {
            for (; width > 1; width--)
                *p++ = '0';
            break;
        }
    }
    return ub_text_put_number(p, n);
}

/* Days since 1970 to a date (Howard Hinnant's algorithm, as in C++20's chrono). */
static void civil(uint64_t days, uint64_t *ret_year, uint64_t *ret_month, uint64_t *ret_day)
{
    uint64_t z = days + 719468, era = z / 146097, doe = z - era * 146097;
    uint64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365, doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    uint64_t mp = (5 * doy + 2) / 153;

    *ret_day = doy - (153 * mp + 2) / 5 + 1;
    *ret_month = mp < 10 ? mp + 3 : mp - 9;
    *ret_year = yoe + era * 400 + (*ret_month <= 2);
}

/* "2026-11-21T06:51:37Z", or "20261121T065137Z" for names. */
static char *put_time(char *p, bool name)
{
    struct timespec now = {0};
    uint64_t year, month, day, s;

    clock_gettime(CLOCK_REALTIME, &now);
    s = (uint64_t)now.tv_sec % 86400;
    civil((uint64_t)now.tv_sec / 86400, &year, &month, &day);
    p = put_padded(p, year, 4);
    p = put_padded(ub_text_put(p, name ? "" : "-"), month, 2);
    p = put_padded(ub_text_put(p, name ? "" : "-"), day, 2);
    p = put_padded(ub_text_put(p, "T"), s / 3600, 2);
    p = put_padded(ub_text_put(p, name ? "" : ":"), s / 60 % 60, 2);
    p = put_padded(ub_text_put(p, name ? "" : ":"), s % 60, 2);
    return ub_text_put(p, "Z");
}

/* At most `max` bytes, of which JSON and file names can bear each; anything else becomes '_'. */
static char *put_plain(char *p, const char *text, size_t max)
{
    for (; *text && max > 0; text++, max--) {
        char c = *text;
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || strchr("._+-", c);

        *p++ = plain ? c : '_';
    }
    *p = '\0';
    return p;
}

static void read_program(void)
{
    char path[PATH_MAX];
    long n = ub_raw3(SYS_readlink, "/proc/self/exe", path, sizeof(path) - 1);
    const char *slash;

    path[n > 0 ? n : 0] = '\0';
    slash = strrchr(path, '/');
    put_plain(alone.program, slash ? slash + 1 : "program", sizeof(alone.program) - 1);
}

static char *put_host(char *p)
{
    struct utsname name = {0};

    ub_raw1(SYS_uname, &name);
    return put_plain(p, name.nodename, sizeof(name.nodename));
}

/* %p %t %h. False: too long. */
static bool expand(const char *template)
{
    char *p = alone.path, *end = alone.path + PATH_BYTES - sizeof(struct utsname);

    if (*template != '/') {
        long n = ub_raw2(SYS_getcwd, p, PATH_BYTES / 2);

        if (n <= 1 || *p != '/')
            return false;
        p = ub_text_put(p + n - 1, "/");
    }
    for (; *template && p < end; template ++) {
        if (template[0] == '%' && template[1] == 'p')
            p = ub_text_put_number(p, (uint64_t)ub_raw0(SYS_getpid));
        else if (template[0] == '%' && template[1] == 't')
            p = put_time(p, true);
        else if (template[0] == '%' && template[1] == 'h')
            p = put_host(p);
        else if (template[0] == '%' && template[1] == '%')
            *p++ = '%';
        else {
            *p++ = *template;
            continue;
        }
        template ++;
    }
    *p = '\0';
    return !*template;
}

/* A folder of this user's own that nobody else may write to, made when missing with those above it. */
static bool folder_is_usable(char *path)
{
    struct stat st = {0};

    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        ub_raw2(SYS_mkdir, path, 0700);
        *slash = '/';
    }
    ub_raw2(SYS_mkdir, path, 0700);
    return ub_raw4(SYS_newfstatat, AT_FDCWD, path, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode) &&
           st.st_uid == (uid_t)ub_raw0(SYS_geteuid) && !(st.st_mode & (S_IWGRP | S_IWOTH)) &&
           ub_raw3(SYS_faccessat, AT_FDCWD, path, 2 /* W_OK */) == 0;
}

static bool try_folder(const char *base, const char *rest)
{
    char *p;

    if (!base || *base != '/' || strlen(base) > PATH_BYTES / 2)
        return false;
    p = ub_text_put(ub_text_put(alone.path, base), rest);
    if (!folder_is_usable(alone.path))
        return false;
    p = put_plain(ub_text_put(p, "/unblock-"), alone.program, sizeof(alone.program));
    p = ub_text_put_number(ub_text_put(p, "-"), (uint64_t)ub_raw0(SYS_getpid));
    ub_text_put(put_time(ub_text_put(p, "-"), true), ".jsonl");
    return true;
}

bool ub_alone_prepare(void)
{
    const char *output = ub_helper_variable("UNBLOCK_OUTPUT");

    read_program();
    read_variables();
    if (output && *output && strcmp(output, "-") != 0)
        return expand(output);
    return (ub_raw0(SYS_geteuid) == 0 && try_folder("/var/log", "/unblock")) ||
           try_folder(ub_helper_variable("XDG_STATE_HOME"), "/unblock") ||
           try_folder(ub_helper_variable("HOME"), "/.local/state/unblock");
}

struct ub_arena *ub_alone_arena(void)
{
    struct ub_arena *arena = ub_arena_alone();

    if (arena) {
        arena->h.threshold = alone.threshold_ns;
        ub_arena_set_floor(&arena->h, alone.threshold_ns, 100000);
    }
    return arena;
}

/* ---- lines ------------------------------------------------------------------- */

static char *put_field(char *p, const char *name, uint64_t n)
{
    return ub_text_put_number(ub_text_put(ub_text_put(ub_text_put(p, ",\""), name), "\":"), n);
}

static char *put_header(char *p)
{
    p = ub_text_put(p,
                    "{\"type\":\"header\",\"schema\":\"unblock-recording\",\"version\":1,\"tool\":\"unblock " UB_VERSION
                    "\",\"started\":\"");
    p = put_time(p, false);
    p = ub_text_put(p, "\"");
    p = put_field(p, "monotonic_ns", ub_clock_monotonic_ns());
    p = put_host(ub_text_put(p, ",\"host\":\""));
    p = ub_text_put(ub_text_put(ub_text_put(p, "\",\"command\":[\""), alone.program), "\"]");
    p = put_field(p, "threshold_ns", alone.threshold_ns);
    if (alone.part)
        p = put_field(p, "part", alone.part);
    return ub_text_put(p, ",\"source\":\"agent\",\"offload\":\"off\"}\n");
}

static const char *reason(const struct ub_tree *tree)
{
    switch (ub_load_relaxed(&tree->reason)) {
    case UB_TREE_PID1:
        return "the program is pid 1 and would be the helper's parent: start it with `unblock run`, or under an init";
    case UB_TREE_SUBREAPER:
        return "the program adopts orphans and would be the helper's parent: start it with `unblock run`";
    case UB_TREE_INIT:
        return "pid 1 of the container is preloaded, too, and would be the helper's parent: start that one with "
               "`unblock run`";
    case UB_TREE_EXEC:
        return "the helper could not be executed: set UNBLOCK_HELPER to a path of unblock that the program's user may "
               "execute";
    }
    return "a helper could not be started";
}

static char *put_note(char *p, const struct ub_tree *tree)
{
    p = ub_text_put(p, "{\"type\":\"note\",\"level\":\"warning\",\"text\":\"no watcher beside the program: stalls are "
                       "recorded when they are over, without stack and callback, and this recording has no end; ");
    return ub_text_put(ub_text_put(p, reason(tree)), "\"}\n");
}

static char *put_process(char *p, int32_t pid, int32_t tid)
{
    p = put_field(ub_text_put(p, "{\"type\":\"process\""), "pid", (uint64_t)pid);
    p = put_field(p, "ppid", (uint64_t)ub_raw0(SYS_getppid));
    p = ub_text_put(ub_text_put(ub_text_put(p, ",\"exe\":\""), alone.program), "\",\"how\":\"preloaded\"}\n");
    p = put_field(ub_text_put(p, "{\"type\":\"loop\""), "pid", (uint64_t)pid);
    p = put_field(p, "tid", (uint64_t)tid);
    return ub_text_put(p, ",\"loop\":\"turn\",\"identity\":\"turn\"}\n");
}

static char *put_call(char *p, const struct ub_timed_call *c)
{
    p = ub_text_put(ub_text_put(p, "{\"name\":\""), ub_timing_syscall(c->id));
    p = ub_text_put(ub_text_put(ub_text_put(p, "\",\"via\":\""), ub_timing_name(c->id)), "\"");
    p = put_field(p, "duration_ns", c->total);
    if (c->count > 1)
        p = put_field(put_field(p, "count", c->count), "max_ns", c->longest);
    return ub_text_put(p, "}");
}

static const struct ub_timed_call *longest_of(const struct ub_call_report *report)
{
    const struct ub_timed_call *longest = &report->call[0];

    for (uint32_t i = 1; i < report->count; i++) {
        if (report->call[i].total > longest->total)
            longest = &report->call[i];
    }
    return longest;
}

/* What the thread has timed itself is all that is known of the why. `call` is set when they were most of the stall. */
static char *put_calls(char *p, const struct ub_call_report *report, uint64_t duration,
                       const struct ub_timed_call **ret_call)
{
    const struct ub_timed_call *longest = longest_of(report);
    uint64_t sum = 0;

    for (uint32_t i = 0; i < report->count; i++)
        sum += report->call[i].total;
    if (sum >= duration / 2) {
        *ret_call = longest;
        p = put_call(ub_text_put(p, ",\"call\":"), longest);
    }
    p = ub_text_put(p, ",\"calls\":[");
    for (uint32_t i = 0; i < report->count; i++)
        p = put_call(ub_text_put(p, i ? "," : ""), &report->call[i]);
    return ub_text_put(p, "]");
}

static uint32_t mix(uint32_t hash, const char *text)
{
    for (; *text; text++)
        hash = (hash ^ (uint8_t)*text) * 16777619u;
    return hash;
}

/* Only their call tells stalls apart: one site for each, and one for all others of the program. */
static char *put_site(char *p, const struct ub_timed_call *call)
{
    uint32_t hash = mix(mix(2166136261u, alone.program), call ? ub_timing_name(call->id) : "");

    for (int shift = 28; shift >= 0; shift -= 4)
        *p++ = "0123456789abcdef"[hash >> shift & 15];
    *p = '\0';
    return p;
}

static char *put_slow(char *p, const struct ub_record *r, uint64_t id, int32_t pid, int32_t tid)
{
    const struct ub_call_report *report = ub_timing_report(&ub_thread, r->start);
    const struct ub_timed_call *call = NULL;

    p = put_field(ub_text_put(p, "{\"type\":\"slow\""), "id", id);
    p = put_field(p, "pid", (uint64_t)pid);
    p = put_field(p, "tid", (uint64_t)tid);
    p = ub_text_put(p, ",\"loop\":\"turn\",\"kind\":\"turn\",\"callback\":{}");
    p = put_field(p, "start_ns", r->start);
    p = put_field(p, "duration_ns", r->end - r->start);
    p = put_field(p, "threshold_ns", alone.threshold_ns);
    if (r->flags & UB_RECORD_STARTUP)
        p = ub_text_put(p, ",\"startup\":true");
    if (report)
        p = put_calls(p, report, r->end - r->start, &call);
    p = ub_text_put(ub_text_put(p, ",\"cause\":\""), call ? "call" : "unknown");
    p = ub_text_put(p, "\",\"samples\":[],\"site\":\"");
    return ub_text_put(put_site(p, call), "\"}\n");
}

/* ---- the file ------------------------------------------------------------------ */

/* The part that has room, or -errno; *ret_size: what is in it already. */
static int open_part(uint64_t *ret_size)
{
    char path[PATH_MAX], *end = ub_text_put(path, alone.path);

    for (;; alone.part++) {
        struct stat st = {0};
        int fd;

        if (alone.part > PARTS_MAX)
            return -EFBIG;
        if (alone.part)
            ub_text_put_number(ub_text_put(end, "."), alone.part);
        fd = (int)ub_raw4(SYS_openat, AT_FDCWD, path,
                          O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_NOFOLLOW, 0600);
        if (fd < 0)
            return fd;
        if (ub_raw2(SYS_fstat, fd, &st) == 0 && S_ISREG(st.st_mode) && (uint64_t)st.st_size < alone.max_size) {
            *ret_size = (uint64_t)st.st_size;
            return fd;
        }
        ub_raw1(SYS_close, fd);
        if (!S_ISREG(st.st_mode)) /* a write to a pipe could bring the program SIGPIPE */
            return -EINVAL;
    }
}

/* A write beyond the limit would bring the program SIGXFSZ. */
static bool limit_allows(uint64_t size)
{
    struct rlimit limit = {0};

    return ub_raw4(SYS_prlimit64, 0, RLIMIT_FSIZE, 0, &limit) == 0 && limit.rlim_cur >= size;
}

static int append(const struct ub_tree *tree, const struct ub_record *record, uint64_t id)
{
    int32_t pid = (int32_t)ub_raw0(SYS_getpid), tid = (int32_t)ub_raw0(SYS_gettid);
    char text[PREAMBLE_MAX], *p = text;
    uint64_t size;
    int fd = open_part(&size);
    long n;

    if (fd < 0)
        return fd;
    if (size == 0)
        p = put_note(put_header(p), tree);
    if (size == 0 || alone.introduced != pid)
        p = put_process(p, pid, tid);
    p = put_slow(p, record, id, pid, tid);
    n = limit_allows(size + (uint64_t)(p - text)) ? ub_raw3(SYS_write, fd, text, p - text) : -EFBIG;
    ub_raw1(SYS_close, fd);
    if (n != p - text)
        return n < 0 ? (int)n : -ENOSPC;
    alone.introduced = pid;
    return 0;
}

void ub_alone_record(struct ub_tree *tree, const struct ub_arena *arena, const struct ub_record *record)
{
    static int32_t writing; /* pid of the process in which a thread is at it; a forked child inherits it in vain */
    int32_t pid = (int32_t)ub_raw0(SYS_getpid), at_it = ub_load_relaxed(&writing);
    int r = -EBUSY;

    if (arena->h.mode != UB_ARENA_ALONE || !(record->flags & UB_RECORD_QUALIFIED))
        return;
    if (at_it != pid && __atomic_compare_exchange_n(&writing, &at_it, pid, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
        r = append(tree, record, __atomic_add_fetch(&tree->written, 1, __ATOMIC_RELAXED));
        ub_store_release(&writing, 0);
        if (r == 0)
            return;
        __atomic_sub_fetch(&tree->written, 1, __ATOMIC_RELAXED);
    }
    __atomic_add_fetch(&tree->lost, 1, __ATOMIC_RELAXED);
    if (!ub_load_relaxed(&tree->write_error))
        ub_store_relaxed(&tree->write_error, -r);
}
