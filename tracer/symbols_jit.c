/*
 * Code made at run time: /tmp/perf-PID.map, lines of "START SIZE NAME" in hex.
 * The runtime appends as it compiles and reuses addresses, so the last line that
 * holds an address is the one that counts.
 */
#include "filemap.h"
#include "symbols_impl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROCESSES_MAX 16             /* maps kept; the least recently used one goes */
#define FILE_MAX      (512ull << 20) /* what lies beyond is not read */
#define CHUNK         (256u << 10)
#define HEAD          64u  /* compared to notice a file that was begun anew */
#define TAIL_MIN      512u /* entries looked through one by one before the table is built again */

struct code {
    uint64_t start, end;
    size_t name; /* offset into `names` */
    uint32_t name_len;
};

struct jit {
    pid_t pid; /* 0: free */
    int fd;
    uint64_t used;
    uint64_t parsed; /* bytes of the file */
    char head[HEAD]; /* the file's first bytes */
    size_t head_len;
    struct code *code; /* in the order of the file */
    size_t count, capacity;
    char *names;
    size_t names_len, names_capacity;
    struct ub_ranges ranges; /* of code[0 .. sealed) */
    size_t sealed;
};

/* Under the lock of symbols.c. */
static struct jit jits[PROCESSES_MAX];
static uint64_t use_counter;

static void forget_contents(struct jit *jit)
{
    free(jit->code);
    free(jit->names);
    ub_ranges_free(&jit->ranges);
    *jit = (struct jit){.pid = jit->pid, .used = jit->used, .fd = jit->fd};
}

static struct jit *jit_of(pid_t pid)
{
    struct jit *oldest = &jits[0];

    for (size_t i = 0; i < PROCESSES_MAX; i++) {
        if (jits[i].pid == pid) {
            jits[i].used = ++use_counter;
            return &jits[i];
        }
        if (jits[i].used < oldest->used)
            oldest = &jits[i];
    }
    if (oldest->pid)
        ub_filemap_close(&oldest->fd);
    forget_contents(oldest);
    *oldest = (struct jit){.pid = pid, .used = ++use_counter, .fd = -1};
    return oldest;
}

/* ---- finding the file ---- */

/* The pid as the process itself knows it: the innermost of "NSpid:". */
static pid_t own_pid(pid_t pid)
{
    char name[40], line[256];
    pid_t own = pid;
    FILE *f;

    snprintf(name, sizeof(name), "/proc/%d/status", (int)pid);
    f = fopen(name, "re");
    if (!f)
        return pid;
    while (fgets(line, sizeof(line), f)) {
        const char *last = strrchr(line, '\t');

        if (strncmp(line, "NSpid:", 6) == 0 && last)
            own = (pid_t)strtol(last, NULL, 10);
    }
    fclose(f);
    return own;
}

/* /tmp is everybody's: only the process's user, ours or root may describe its code. */
static bool is_trusted(pid_t pid, const struct stat *map)
{
    struct stat process;
    char name[40];

    if (map->st_uid == 0 || map->st_uid == geteuid())
        return true;
    snprintf(name, sizeof(name), "/proc/%d", (int)pid);
    return stat(name, &process) == 0 && process.st_uid == map->st_uid;
}

static int open_map(pid_t pid)
{
    UB_CLEANUP(ub_filemap_close) int fd = -1;
    struct stat st;
    char path[48];
    int r;

    snprintf(path, sizeof(path), "/tmp/perf-%d.map", (int)own_pid(pid));
    r = ub_filemap_find(pid, path, &fd, &st);
    if (r < 0) {
        /* The process is gone, perhaps, and its root with it. */
        snprintf(path, sizeof(path), "/tmp/perf-%d.map", (int)pid);
        r = ub_filemap_find(0, path, &fd, &st);
    }
    if (r < 0)
        return r;
    return is_trusted(pid, &st) ? ub_filemap_open(fd) : -EACCES;
}

/* ---- parsing ---- */

static int reserve(void **items, size_t needed, size_t *capacity, size_t size)
{
    size_t more = *capacity ? *capacity : 1024;
    void *larger;

    if (needed <= *capacity)
        return 0;
    while (more < needed)
        more *= 2;
    larger = reallocarray(*items, more, size);
    if (!larger)
        return -ENOMEM;
    *items = larger;
    *capacity = more;
    return 0;
}

/* One line without its newline. What makes no sense is left out. */
static int parse_line(struct jit *jit, const char *line)
{
    struct code code = {.name = jit->names_len};
    char *end;
    size_t len;

    code.start = strtoull(line, &end, 16);
    if (end == line || *end != ' ')
        return 0;
    line = end + 1;
    code.end = code.start + strtoull(line, &end, 16);
    if (end == line || *end != ' ' || code.end <= code.start)
        return 0;
    len = strlen(end + 1);
    code.name_len = (uint32_t)len;
    if (reserve((void **)&jit->names, jit->names_len + len, &jit->names_capacity, 1) < 0 ||
        reserve((void **)&jit->code, jit->count + 1, &jit->capacity, sizeof(code)) < 0)
        return -ENOMEM;
    memcpy(jit->names + jit->names_len, end + 1, len);
    jit->names_len += len;
    jit->code[jit->count++] = code;
    return 0;
}

/* Parses the whole lines in text[0 .. len); returns the bytes used up, or -ENOMEM. */
static ssize_t parse_lines(struct jit *jit, char *text, size_t len)
{
    char *line = text, *newline;

    while ((newline = memchr(line, '\n', len - (size_t)(line - text)))) {
        *newline = '\0';
        if (parse_line(jit, line) < 0)
            return -ENOMEM;
        line = newline + 1;
    }
    return line - text;
}

static void read_appended(struct jit *jit, uint64_t size)
{
    char *text = malloc(CHUNK);

    while (text && jit->parsed < size) {
        ssize_t n = pread(jit->fd, text, CHUNK, (off_t)jit->parsed);
        ssize_t used = n > 0 ? parse_lines(jit, text, (size_t)n) : 0;

        /* A line still being written waits; one longer than the chunk is no line. */
        if (used <= 0)
            break;
        jit->parsed += (uint64_t)used;
    }
    free(text);
}

/* ---- keeping up with it ---- */

/* Begun anew, under the same name or in the same file: by another image of the process, or another process. */
static bool was_restarted(struct jit *jit, const struct stat *st)
{
    char head[HEAD];

    if ((uint64_t)st->st_size < jit->parsed)
        return true;
    return pread(jit->fd, head, jit->head_len, 0) != (ssize_t)jit->head_len ||
           memcmp(head, jit->head, jit->head_len) != 0;
}

static void remember_head(struct jit *jit)
{
    ssize_t n = jit->head_len < HEAD ? pread(jit->fd, jit->head, jit->parsed < HEAD ? jit->parsed : HEAD, 0) : 0;

    if (n > 0)
        jit->head_len = (size_t)n;
}

static void reopen(struct jit *jit)
{
    int fd = open_map(jit->pid);

    if (fd < 0)
        return;
    ub_filemap_close(&jit->fd);
    jit->fd = fd;
    forget_contents(jit);
}

static void refresh(struct jit *jit)
{
    struct stat st;

    if (jit->fd < 0 || (fstat(jit->fd, &st) == 0 && st.st_nlink == 0))
        reopen(jit);
    if (jit->fd < 0 || fstat(jit->fd, &st) < 0 || (uint64_t)st.st_size == jit->parsed)
        return;
    if (was_restarted(jit, &st))
        forget_contents(jit);
    read_appended(jit, (uint64_t)st.st_size < FILE_MAX ? (uint64_t)st.st_size : FILE_MAX);
    remember_head(jit);
}

/* ---- looking up ---- */

/* Sorting all entries at each new one would make every look-up slow while a runtime warms up. */
static void seal(struct jit *jit)
{
    size_t tail = jit->count - jit->sealed;

    if (tail < TAIL_MIN || tail < jit->sealed / 8)
        return;
    ub_ranges_free(&jit->ranges);
    jit->sealed = 0;
    for (size_t i = 0; i < jit->count && i < UB_RANGES_NONE; i++) {
        if (ub_ranges_add(&jit->ranges, jit->code[i].start, jit->code[i].end, (uint32_t)i) < 0)
            break;
    }
    if (ub_ranges_seal(&jit->ranges) == 0)
        jit->sealed = jit->count;
}

static const struct code *find_code(const struct jit *jit, uint64_t address)
{
    uint32_t id;

    for (size_t i = jit->count; i > jit->sealed; i--) {
        const struct code *code = &jit->code[i - 1];

        if (address >= code->start && address < code->end)
            return code;
    }
    id = ub_ranges_find(&jit->ranges, address);
    return id == UB_RANGES_NONE ? NULL : &jit->code[id];
}

/* ---- V8's names ---- */

/* Where "NAME PLACE" is cut: both may hold spaces, but a place begins like a path or a URL. */
static const char *find_place(const char *text)
{
    const char *last = NULL;

    for (const char *space = strchr(text, ' '); space; space = strchr(space + 1, ' ')) {
        size_t scheme = strspn(space + 1, "abcdefghijklmnopqrstuvwxyz");

        if (space[1] == '/' || (scheme && space[1 + scheme] == ':'))
            return space;
        last = space;
    }
    return last;
}

/* Cuts ":LINE:COLUMN" off `place`; the line, or 0. */
static uint32_t cut_line(char *place)
{
    unsigned long line = 0;

    for (int i = 0; i < 2; i++) {
        char *colon = strrchr(place, ':');

        if (!colon || colon[1] == '\0' || colon[1 + strspn(colon + 1, "0123456789")] != '\0')
            return 0;
        line = strtoul(colon + 1, NULL, 10);
        *colon = '\0';
    }
    return (uint32_t)line;
}

/* "JS:*name /path/file.js:12:34", the marker (~^*+) being the tier: the function and where it is defined. */
static bool fill_js(char *text, struct ub_symbol *ret)
{
    static const char *const tags[] = {"JS:", "LazyCompile:", "Function:", "Eval:", "Script:"};
    const char *place = NULL;
    size_t tag = 0;

    for (size_t i = 0; i < UB_ARRAY_LEN(tags) && !tag; i++) {
        if (strncmp(text, tags[i], strlen(tags[i])) == 0)
            tag = strlen(tags[i]);
    }
    if (!tag)
        return false;
    text += tag;
    text += strspn(text, "~^*+-");
    ret->language = UB_LANGUAGE_JS;
    place = find_place(text);
    if (place) {
        char *file = text + (place - text) + 1;

        text[place - text] = '\0';
        ret->line = cut_line(file);
        ret->file = ub_names_keep(strncmp(file, "file://", 7) == 0 ? file + 7 : file, SIZE_MAX);
    }
    ret->function = ub_names_keep(*text ? text : "(anonymous)", SIZE_MAX);
    return true;
}

bool ub_jit_resolve(pid_t pid, uint64_t address, struct ub_symbol *ret)
{
    struct jit *jit = jit_of(pid);
    const struct code *code;
    char *text;

    refresh(jit);
    seal(jit);
    code = find_code(jit, address);
    if (!code)
        return false;
    text = strndup(jit->names + code->name, code->name_len);
    if (!text)
        return false;
    *ret = (struct ub_symbol){.offset = address - code->start};
    if (!fill_js(text, ret))
        ret->function = ub_names_keep(text, SIZE_MAX);
    free(text);
    return ret->function != NULL;
}
