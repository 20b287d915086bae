/*
 * Whether anything in a process still leads into a module. The module's own memory apart, a way into it is a pointer
 * that somebody has: in a register, on a stack, in writable memory. Where all threads are stopped, and no such word is
 * anywhere, there is none to be copied either: the question is answered for good, whatever they do afterwards.
 *
 * Each word that could be such a pointer counts as one, also in memory that was freed; so do those that glibc keeps
 * mangled (atexit, setjmp). What lies below the stack pointer of a thread does not. Where an answer is not
 * to be had in this way (code that is made at run time, where pointers are parts of instructions; threads that may not
 * be interrupted; more memory than can be read in the time) there is none.
 *
 * Longer than most files here: the ways in which a word can be held, and the one answer that they make together.
 */
#include "inject_impl.h"

#include "capture.h"

#include "../common/clock.h"

#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE         4096ul
#define RED_ZONE     128u
#define CHUNK        (256ul << 10)
#define THREADS_MAX  256u
#define LOADERS_MAX  64u
#define FOUND_MAX    256u
#define SHARED_MAX   (64ul << 20) /* of shared memory that is read */
#define TOP_OF_STACK (2 * PAGE)   /* a thread's own structure lies there */

#define PAGE_PRESENT (1ull << 63)
#define PAGE_SWAPPED (1ull << 62)
#define PAGE_OF_FILE (1ull << 61) /* or shared: as it is in the file */

struct range {
    uint64_t start, end; /* [start, end) */
};

struct proof {
    const struct ub_room *room;
    struct ub_maps *maps;
    struct range module, code;
    uint64_t handle, entry, headers;  /* the loader's structure for it; two addresses that are in there side by side */
    struct range loader[LOADERS_MAX]; /* what the loader itself keeps pointers to: none of it is ever called */
    uint32_t loaders;
    ino_t file;

    struct ub_hold thread[THREADS_MAX];
    bool held[THREADS_MAX], late_stop[THREADS_MAX]; /* the latter will stop yet */
    struct range dead[THREADS_MAX];                 /* of its stack: what lies below its pointer */
    struct range live[THREADS_MAX];                 /* and above */
    struct ub_capture *stack[THREADS_MAX];          /* where words were found on it */
    uint32_t threads;
    bool stopped;   /* all of them are */
    uint64_t guard; /* what glibc mangles pointers with; 0: not known */

    uint64_t until_ns; /* the look is given up then; 0: never */
    bool late, unreadable;
    uint64_t shared; /* bytes of it, so far */
    uint64_t *words; /* CHUNK bytes */
    int pagemap, memory;
    uint64_t hits, first; /* how many, where */
    struct {
        uint64_t at, word;
        uint32_t thread;
    } found[FOUND_MAX]; /* on stacks: perhaps only left behind (inject_stack.c) */
    uint32_t founds;
    uint64_t eh_frame_header;
    char *why;
};

static bool is_in(const struct range *r, uint64_t at)
{
    return at - r->start < r->end - r->start;
}

/* ---- the module --------------------------------------------------------------------- */

static void add_loaders(struct proof *p, uint64_t start, uint64_t end)
{
    if (p->loaders < LOADERS_MAX)
        p->loader[p->loaders++] = (struct range){start, end};
}

static int read_module(struct proof *p, uint64_t base)
{
    Elf64_Ehdr eh;
    Elf64_Phdr ph[16];
    const struct ub_map *m = ub_maps_find(p->maps, base);

    if (!m || ub_room_read(p->room, base, &eh, sizeof(eh)) < 0 || memcmp(eh.e_ident, ELFMAG, SELFMAG) != 0 ||
        eh.e_phnum > UB_ARRAY_LEN(ph) || ub_room_read(p->room, base + eh.e_phoff, ph, eh.e_phnum * sizeof(*ph)) < 0)
        return -ENOEXEC;
    p->file = m->ino;
    p->module = (struct range){base, base};
    p->entry = base + eh.e_entry;
    p->headers = base + eh.e_phoff;
    for (uint16_t i = 0; i < eh.e_phnum; i++) {
        uint64_t start = base + ph[i].p_vaddr, end = start + ph[i].p_memsz, whole = (end + PAGE - 1) & ~(PAGE - 1);

        if (ph[i].p_type == PT_LOAD) {
            if (whole > p->module.end)
                p->module.end = whole;
            if (ph[i].p_flags & PF_X) {
                p->code = (struct range){start, whole};
                add_loaders(p, whole, whole + 1);
            }
            if (ph[i].p_flags & PF_W)
                add_loaders(p, end, end + 1);
            else if (ph[i].p_offset == 0)
                add_loaders(p, start, end); /* headers, symbols, relocations */
        } else if (ph[i].p_type == PT_DYNAMIC) {
            add_loaders(p, start, end);
        } else if (ph[i].p_type == PT_GNU_EH_FRAME || ph[i].p_type == PT_TLS) {
            add_loaders(p, start, start + 1);
            if (ph[i].p_type == PT_GNU_EH_FRAME)
                p->eh_frame_header = start;
        }
    }
    return p->code.end ? 0 : -ENOEXEC;
}

/* ---- memory --------------------------------------------------------------------------- */

static uint64_t unmangled(const struct proof *p, uint64_t word)
{
    return (word >> 17 | word << 47) ^ p->guard;
}

static bool leads_in(const struct proof *p, uint64_t word)
{
    if (p->guard && is_in(&p->code, unmangled(p, word)))
        return true;
    if (!is_in(&p->module, word))
        return false;
    for (uint32_t i = 0; i < p->loaders && !is_in(&p->code, word); i++) {
        if (is_in(&p->loader[i], word))
            return false;
    }
    return true;
}

/* The loader itself calls it for programs only. */
static bool is_loaders_entry(const struct proof *p, uint64_t at, uint64_t word)
{
    uint64_t before;

    return word == p->entry && at - p->handle < PAGE && ub_room_read(p->room, at - 8, &before, 8) == 0 &&
           before == p->headers;
}

static bool is_dead(const struct proof *p, uint64_t at)
{
    for (uint32_t i = 0; i < p->threads; i++) {
        if (is_in(&p->dead[i], at))
            return true;
    }
    return false;
}

static void count_hit(struct proof *p, uint64_t at)
{
    if (p->hits++ == 0)
        p->first = at;
}

/* What is on the stack of a thread is judged when they all go on again. */
static bool keep_for_later(struct proof *p, uint64_t at, uint64_t word)
{
    if (!is_in(&p->code, word) || p->founds == FOUND_MAX)
        return false;
    for (uint32_t i = 0; i < p->threads; i++) {
        if (!is_in(&p->live[i], at))
            continue;
        p->found[p->founds].at = at;
        p->found[p->founds].word = word;
        p->found[p->founds++].thread = i;
        return true;
    }
    return false;
}

static void look_at_words(struct proof *p, uint64_t at, const uint64_t *words, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        /* Nearly all of them are none. */
        if (ub_likely(!is_in(&p->module, words[i]) && !(p->guard && is_in(&p->code, unmangled(p, words[i])))))
            continue;
        if (leads_in(p, words[i]) && !is_dead(p, at + i * 8) && !is_loaders_entry(p, at + i * 8, words[i]) &&
            !keep_for_later(p, at + i * 8, words[i]))
            count_hit(p, at + i * 8);
    }
}

static void read_words(struct proof *p, uint64_t start, uint64_t end)
{
    while (start < end && !p->late) {
        size_t n = end - start < CHUNK ? end - start : CHUNK;
        struct iovec local = {p->words, n}, remote = {(void *)(uintptr_t)start, n};

        if (process_vm_readv(p->room->pid, &local, 1, &remote, 1, 0) != (ssize_t)n &&
            pread(p->memory, p->words, n, (off_t)start) != (ssize_t)n) { /* also what it may not read itself */
            p->unreadable |= p->stopped;
            return; /* or unmapped meanwhile */
        }
        look_at_words(p, start, p->words, n / 8);
        start += n;
        p->late = p->until_ns && ub_clock_monotonic_ns() > p->until_ns;
    }
}

/* Of private memory that only which has ever been written to. */
static void read_touched(struct proof *p, const struct ub_map *m)
{
    uint64_t page[512], run = 0;

    for (uint64_t at = m->start; at < m->end && !p->late;) {
        uint64_t count = (m->end - at) / PAGE;
        ssize_t n;

        if (count > UB_ARRAY_LEN(page))
            count = UB_ARRAY_LEN(page);
        n = pread(p->pagemap, page, count * 8, (off_t)(at / PAGE * 8));
        if (n < 8) {
            p->unreadable = true;
            return;
        }
        for (uint64_t i = 0; i < (uint64_t)n / 8; i++, at += PAGE) {
            bool touched = (page[i] & (PAGE_PRESENT | PAGE_SWAPPED)) && !(page[i] & PAGE_OF_FILE);

            if (touched && !run)
                run = at;
            if (!touched && run) {
                read_words(p, run, at);
                run = 0;
            }
        }
        p->late |= p->until_ns && ub_clock_monotonic_ns() > p->until_ns;
    }
    if (run)
        read_words(p, run, m->end);
}

/* Where a thread's stack may be: below it is a page that nobody may touch. */
static bool is_stack(const struct proof *p, const struct ub_map *m)
{
    return m->kind == UB_MAP_STACK ||
           (m->kind == UB_MAP_ANON && m > p->maps->map && m[-1].end == m->start && m[-1].prot == PROT_NONE);
}

/*
 * Reading shared memory makes pages of what nobody has touched, at its owner's expense; and behind a device's mapping
 * may be registers, which reading changes.
 */
static bool may_be_read(struct proof *p, const struct ub_map *m)
{
    p->shared += m->end - m->start;
    return p->shared <= SHARED_MAX && strncmp(m->path, "/sys/", 5) != 0 &&
           (strncmp(m->path, "/dev/", 5) != 0 || strncmp(m->path, "/dev/shm/", 9) == 0 ||
            strncmp(m->path, "/dev/zero", 9) == 0);
}

static void look_at_memory(struct proof *p)
{
    const struct range room = {p->room->at, p->room->at + UB_ROOM_BYTES};

    p->shared = 0;
    for (uint32_t i = 0; i < p->maps->count && !p->late; i++) {
        const struct ub_map *m = &p->maps->map[i];

        if (strncmp(m->path, "[v", 2) == 0 || is_in(&p->module, m->start) || is_in(&room, m->start) ||
            (m->prot & PROT_EXEC) || (m->shared && !(m->prot & PROT_WRITE)) || (!p->stopped && is_stack(p, m)))
            continue;
        if (m->shared && !may_be_read(p, m))
            p->unreadable = true;
        else if (m->shared)
            read_words(p, m->start, m->end);
        else
            read_touched(p, m);
    }
}

/* ---- what cannot be known ----------------------------------------------------------------- */

/* Pointers in instructions are at any byte, or a part of one. */
static bool makes_code(const struct proof *p)
{
    for (uint32_t i = 0; i < p->maps->count; i++) {
        const struct ub_map *m = &p->maps->map[i];

        if (!(m->prot & PROT_EXEC) || m->start == p->room->at || is_in(&p->module, m->start))
            continue;
        if (m->kind == UB_MAP_ANON || m->kind == UB_MAP_HEAP || m->kind == UB_MAP_STACK || m->shared ||
            (m->prot & PROT_WRITE) || strncmp(m->path, "/memfd:", 7) == 0)
            return true;
    }
    return false;
}

static bool has_same_module(const struct proof *p, const char *pid)
{
    char path[300], line[512];
    bool found = false;
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%s/maps", pid);
    f = fopen(path, "re");
    while (f && !found && fgets(line, sizeof(line), f)) {
        unsigned long long inode = 0;

        /* As code: for names of functions we map it, too. */
        found = strstr(line, " r-xp ") && strstr(line, "/memfd:" UB_ATTACH_LIBRARY) &&
                sscanf(line, "%*s %*s %*s %*s %llu", &inode) == 1 && inode == p->file;
    }
    if (f)
        fclose(f);
    return found;
}

/* One that was forked meanwhile has the agent at the same place, and may write what it finds there into memory of both.
 */
static pid_t find_sharer(const struct proof *p)
{
    const struct dirent *entry;
    bool shares = false;
    pid_t found = 0;
    DIR *dir;

    for (uint32_t i = 0; i < p->maps->count; i++)
        shares |= p->maps->map[i].shared && (p->maps->map[i].prot & PROT_WRITE);
    dir = shares ? opendir("/proc") : NULL;
    while (dir && !found && (entry = readdir(dir))) {
        pid_t pid = atoi(entry->d_name);

        if (pid > 0 && pid != p->room->pid && has_same_module(p, entry->d_name))
            found = pid;
    }
    if (dir)
        closedir(dir);
    return found;
}

/* ---- threads ------------------------------------------------------------------------------- */

static int add_thread(struct proof *p, pid_t tid)
{
    uint32_t i = 0;
    int r;

    while (i < p->threads && p->thread[i].tid != tid)
        i++;
    if (i < p->threads)
        return 0;
    if (i == THREADS_MAX) {
        snprintf(p->why, UB_INJECT_WHY, "it has more than %u threads", THREADS_MAX);
        return -EBUSY;
    }
    p->thread[i] = (struct ub_hold){.pid = p->room->pid, .tid = tid};
    r = ub_hold_look(&p->thread[i]);
    if (r == -EINTR) {
        snprintf(p->why, UB_INJECT_WHY,
                 "its thread %d sleeps in a system call (number %d) that should not be interrupted", (int)tid,
                 (int)p->thread[i].regs.orig_rax);
        return -EAGAIN;
    }
    if (r == 0)
        p->threads++;
    return r == -ESRCH ? 0 : r; /* it has ended */
}

static int add_threads(struct proof *p)
{
    const struct dirent *entry;
    char path[64];
    int r = 0;
    DIR *dir;

    snprintf(path, sizeof(path), "/proc/%d/task", (int)p->room->pid);
    dir = opendir(path);
    if (!dir)
        return -ESRCH;
    while (r == 0 && (entry = readdir(dir))) {
        if (atoi(entry->d_name) > 0)
            r = add_thread(p, atoi(entry->d_name));
    }
    closedir(dir);
    return r;
}

static int stop_threads(struct proof *p, uint32_t from)
{
    for (uint32_t i = from; i < p->threads; i++) {
        int r = ub_hold_stop(&p->thread[i]);

        p->held[i] = r == 0;
        if (r < 0 && r != -ESRCH) {
            snprintf(p->why, UB_INJECT_WHY, "its thread %d may not be stopped", (int)p->thread[i].tid);
            return r; /* those behind it are not held */
        }
    }
    return 0;
}

/* For each of them, whatever becomes of the others: one that is about to stop cannot be released. */
static int wait_for_stops(struct proof *p, uint32_t from)
{
    int ret = 0;

    for (uint32_t i = from; i < p->threads; i++) {
        int r = p->held[i] ? ub_hold_stopped(&p->thread[i], p->until_ns) : 0;

        p->late_stop[i] = r == -ETIMEDOUT;
        if (r < 0)
            p->held[i] = false;
        if (r == -ETIMEDOUT) {
            snprintf(p->why, UB_INJECT_WHY, "its thread %d does not stop in the time that the others may be held for",
                     (int)p->thread[i].tid);
            r = -EAGAIN;
            ret = r;
            continue;
        }
        if (r == -EAGAIN)
            snprintf(p->why, UB_INJECT_WHY, "a signal came to its thread %d", (int)p->thread[i].tid);
        if (r < 0 && r != -ESRCH)
            ret = r;
    }
    return ret;
}

/* Also those that the last ones to go on have made meanwhile. */
static int stop_all(struct proof *p)
{
    uint32_t from = 0;
    int r = 0;

    while (r == 0 && from < p->threads) {
        uint32_t to = p->threads;

        int stopped;

        r = stop_threads(p, from);
        stopped = wait_for_stops(p, from);
        r = r == 0 ? stopped : r;
        from = to;
        if (r == 0)
            r = add_threads(p);
    }
    return r;
}

static void release_all(struct proof *p)
{
    for (uint32_t i = 0; i < p->threads; i++) {
        if (p->held[i])
            ub_hold_drop(&p->thread[i]);
        p->held[i] = false;
    }
    /* Only now: nobody else stands still for it. */
    for (uint32_t i = 0; i < p->threads; i++) {
        if (p->late_stop[i] && ub_hold_stopped(&p->thread[i], 0) == 0)
            ub_hold_drop(&p->thread[i]);
        p->late_stop[i] = false;
    }
}

/*
 * Below its pointer. That this is a stack, and nothing else lies in the same mapping, is certain of the first thread's,
 * and of those that glibc has mapped: an inaccessible page below, the thread's own structure at the top.
 */
static void look_at_stack(struct proof *p, uint32_t i)
{
    const struct user_regs_struct *regs = &p->thread[i].regs;
    const struct ub_map *m = ub_maps_find(p->maps, regs->rsp);

    if (m && is_stack(p, m) &&
        (m->kind == UB_MAP_STACK ||
         (regs->fs_base > regs->rsp && regs->fs_base < m->end && m->end - regs->fs_base <= TOP_OF_STACK))) {
        p->dead[i] = (struct range){m->start, regs->rsp - RED_ZONE};
        p->live[i] = (struct range){regs->rsp - RED_ZONE, m->end};
    }
}

/* General and vector registers. False: a pointer is among them. */
static bool are_registers_free(struct proof *p, uint32_t i)
{
    const struct ub_hold *h = &p->thread[i];
    struct iovec state = {p->words, CHUNK};
    uint64_t before = p->hits;

    look_at_words(p, 0, (const uint64_t *)&h->regs, sizeof(h->regs) / 8);
    if (ptrace(PTRACE_GETREGSET, h->tid, (void *)NT_X86_XSTATE, &state) < 0) {
        p->unreadable = true;
        return true;
    }
    look_at_words(p, 0, p->words, state.iov_len / 8);
    return p->hits == before;
}

/* ---- the look ------------------------------------------------------------------------------ */

static int explain_hits(const struct proof *p)
{
    const struct ub_map *m = ub_maps_find(p->maps, p->first);
    const char *where = m && m->path[0] ? m->path : "memory of its own";

    for (uint32_t i = 0; i < p->threads; i++) {
        const struct ub_map *stack = ub_maps_find(p->maps, p->thread[i].regs.rsp);

        if (p->stopped && m && stack == m) {
            snprintf(p->why, UB_INJECT_WHY,
                     "its thread %d is still inside, or was lately: %" PRIu64
                     " words on its stack and elsewhere could lead back, the first at %#" PRIx64,
                     (int)p->thread[i].tid, p->hits, p->first);
            return -EAGAIN;
        }
    }
    snprintf(p->why, UB_INJECT_WHY, "%" PRIu64 " pointer%s into it remain%s, the first at %#" PRIx64 " in %s", p->hits,
             p->hits == 1 ? "" : "s", p->hits == 1 ? "s" : "", p->first, where);
    return -EAGAIN;
}

static int conclude(const struct proof *p, uint64_t hold_max_ns)
{
    if (p->late) {
        snprintf(p->why, UB_INJECT_WHY, "its memory cannot be looked through in the %g ms that it may be held for",
                 (double)hold_max_ns / 1e6);
        return -EAGAIN;
    }
    if (p->hits)
        return explain_hits(p);
    if (p->unreadable) {
        snprintf(p->why, UB_INJECT_WHY,
                 "some of its memory cannot be read, or should not be (a device's, much that is shared)");
        return -EBUSY;
    }
    return 0;
}

/* While it runs: nothing is proven by that, but most that stands in the way is found without stopping anybody. */
static int look_before(struct proof *p, uint64_t hold_max_ns)
{
    pid_t sharer;

    if (makes_code(p)) {
        snprintf(p->why, UB_INJECT_WHY, "it makes code while it runs (a JIT), in which pointers cannot be found");
        return -EBUSY;
    }
    sharer = find_sharer(p);
    if (sharer) {
        snprintf(p->why, UB_INJECT_WHY,
                 "process %d, forked from it meanwhile, has the same agent and shares memory with it", (int)sharer);
        return -EBUSY;
    }
    p->until_ns = ub_clock_monotonic_ns() +
                  2 * hold_max_ns; /* it gets no quicker when nobody takes its CPU: some, but not twice */
    look_at_memory(p);
    return conclude(p, hold_max_ns);
}

static int look_stopped(struct proof *p)
{
    struct ub_maps *maps;
    int r = ub_maps_load(p->room->pid, p->maps, &maps);

    if (r < 0)
        return r;
    ub_maps_unref(p->maps);
    p->maps = maps;
    p->stopped = true;
    for (uint32_t i = 0; i < p->threads; i++) {
        if (!p->held[i])
            continue;
        if (!p->guard && p->thread[i].regs.fs_base)
            ub_room_read(p->room, p->thread[i].regs.fs_base + 0x30, &p->guard, sizeof(p->guard));
        look_at_stack(p, i);
        if (!are_registers_free(p, i)) {
            snprintf(p->why, UB_INJECT_WHY, "its thread %d has a pointer into it in a register", (int)p->thread[i].tid);
            return -EAGAIN;
        }
    }
    look_at_memory(p);
    for (uint32_t i = 0; i < p->founds; i++) {
        struct ub_capture **stack = &p->stack[p->found[i].thread];

        if (!*stack && (*stack = malloc(sizeof(**stack))))
            ub_inject_keep_stack(&p->thread[p->found[i].thread], p->maps, *stack);
    }
    return 0;
}

static void judge_found(struct proof *p)
{
    bool outside[THREADS_MAX] = {false};

    for (uint32_t i = 0; i < p->threads; i++)
        outside[i] = p->stack[i] && ub_inject_is_outside(p->maps, p->stack[i], p->module.start, p->module.end);
    for (uint32_t i = 0; i < p->founds; i++) {
        if (!outside[p->found[i].thread] || !ub_inject_is_return_address(p->room, p->eh_frame_header, p->found[i].word))
            count_hit(p, p->found[i].at);
    }
}

static int prove(struct proof *p, uint64_t hold_max_ns, uint64_t *ret_held_ns)
{
    int r = look_before(p, hold_max_ns);
    uint64_t begun;

    if (r < 0)
        return r;
    r = add_threads(p);
    if (r < 0)
        return r;
    begun = ub_clock_monotonic_ns();
    p->until_ns = begun + hold_max_ns;
    r = stop_all(p);
    if (r == 0)
        r = look_stopped(p);
    release_all(p);
    *ret_held_ns = ub_clock_monotonic_ns() - begun;
    if (r == 0)
        judge_found(p);
    return r == 0 ? conclude(p, hold_max_ns) : r;
}

static int open_memory(struct proof *p)
{
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)p->room->pid);
    p->pagemap = open(path, O_RDONLY | O_CLOEXEC);
    snprintf(path, sizeof(path), "/proc/%d/mem", (int)p->room->pid);
    p->memory = open(path, O_RDONLY | O_CLOEXEC);
    p->words = malloc(CHUNK);
    if (p->pagemap >= 0 && p->memory >= 0 && p->words)
        return 0;
    snprintf(p->why, UB_INJECT_WHY, "its memory cannot be read");
    return -EBUSY;
}

int ub_inject_prove(const struct ub_room *room, uint64_t base, uint64_t handle, uint64_t hold_max_ns,
                    uint64_t *ret_held_ns, char *why)
{
    struct proof *p = calloc(1, sizeof(*p));
    int r = p ? ub_maps_load(room->pid, NULL, &p->maps) : -ENOMEM;

    *ret_held_ns = 0;
    if (r < 0) {
        free(p);
        return r;
    }
    p->room = room;
    p->handle = handle;
    p->why = why;
    p->pagemap = p->memory = -1;
    r = read_module(p, base);
    if (r == 0)
        r = open_memory(p);
    if (r == 0)
        r = prove(p, hold_max_ns, ret_held_ns);
    if (p->pagemap >= 0)
        close(p->pagemap);
    if (p->memory >= 0)
        close(p->memory);
    free(p->words);
    for (uint32_t i = 0; i < p->threads; i++)
        free(p->stack[i]);
    ub_maps_unref(p->maps);
    free(p);
    return r;
}
