/*
 * Loading, attaching, and the maps.
 */
#include "bpf_impl.h"

#include "../syscalls.h"
#include "object.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/perf_event.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#define TICK_NS 1000000u /* a sample of an overdue turn is late by so much CPU time at the most */

/* Who works so long without a pause has its calls looked at: well before the threshold, if that is not too low. */
#define STRETCH_PART     4u
#define STRETCH_MAX_NS   5000000u
#define THRESHOLD_MIN_NS 8000000u

_Static_assert(sizeof(struct ub_bpf_slot) == sizeof(struct ub_slot), "the kernel writes struct ub_slot");
_Static_assert(offsetof(struct ub_bpf_slot, ready) == offsetof(struct ub_slot, ready), "field by field");
_Static_assert(offsetof(struct ub_bpf_slot, state) == offsetof(struct ub_slot, state), "field by field");
_Static_assert(UB_BPF_BUCKETS == UB_HISTOGRAM_BUCKETS, "the same histogram");
_Static_assert(UB_BPF_REGS == UB_REG_COUNT, "the same registers");
_Static_assert(UB_BPF_SLOTS <= UB_SLOT_MAX && UB_BPF_SLOTS * sizeof(struct ub_slot) % 4096 == 0, "whole pages");

/*
 * libbpf speaks through a callback; the last thing it said is the reason, if
 * nothing better is known. Its advice about RLIMIT_MEMLOCK is misleading (no
 * kernel that we work on counts that), and so are the verifier's pages of log.
 */
static char last_words[UB_BPF_WHY_MAX];

static int listen(enum libbpf_print_level level, const char *format, va_list ap)
{
    char text[UB_BPF_WHY_MAX];

    if (level != LIBBPF_WARN || last_words[0])
        return 0;
    vsnprintf(text, sizeof(text), format, ap);
    text[strcspn(text, "\n")] = '\0';
    if (!strstr(text, "MEMLOCK"))
        memcpy(last_words, text, sizeof(last_words));
    return 0;
}

static int fail(int error, const char *step, char *why)
{
    struct utsname u;

    uname(&u);
    if (error == -EPERM)
        snprintf(
            why, UB_BPF_WHY_MAX,
            "the kernel refuses BPF programs (%s): it takes CAP_BPF and CAP_PERFMON outside any user namespace, and "
            "no lockdown",
            step);
    else
        snprintf(why, UB_BPF_WHY_MAX,
                 "the BPF programs do not %s on this kernel (%.64s): %.64s%s%.256s; it takes 5.15 or later", step,
                 u.release, strerror(-error), last_words[0] ? ": " : "", last_words);
    return error == -EPERM ? -EPERM : -ENOTSUP;
}

/* Which arguments are worth keeping, from the table of system calls. */
static void fill_call_info(uint8_t *info)
{
    for (int nr = 0; nr < UB_BPF_CALL_TABLE; nr++) {
        int fd = ub_syscall_fd_arg(nr), pointer = ub_syscall_pointer_arg(nr);

        info[nr] = (uint8_t)((fd + 1) | (pointer + 1) << 4);
    }
}

static struct bpf_map *section_map(struct ub_bpf *b, const char *section)
{
    struct bpf_map *map = NULL, *m;

    bpf_object__for_each_map(m, b->object)
    {
        const char *found = strrchr(bpf_map__name(m), '.');

        if (found && strcmp(found, section) == 0)
            map = m;
    }
    return map;
}

/* A setting, before loading. The layout of .rodata is the compiler's; the names are ours. */
static void *setting(struct ub_bpf *b, const char *name)
{
    struct bpf_map *map = section_map(b, ".rodata");
    uint32_t offset;
    size_t size;
    char *base;

    if (!map || ub_bpf_variable(b->object, ".rodata", name, &offset) < 0)
        return NULL;
    base = (char *)bpf_map__initial_value(map, &size);
    return base && offset < size ? base + offset : NULL;
}

/*
 * A variable of the running programs. libbpf maps .bss for its skeletons only:
 * without one its "initial value" stays a private copy.
 */
static void *variable(struct ub_bpf *b, const char *name)
{
    uint32_t offset;

    if (ub_bpf_variable(b->object, ".bss", name, &offset) < 0 || offset >= b->bss_size)
        return NULL;
    return b->bss + offset;
}

static int map_bss(struct ub_bpf *b)
{
    struct bpf_map *map = section_map(b, ".bss");
    void *at;

    if (!map)
        return -ENOENT;
    b->bss_size = bpf_map__value_size(map);
    at = mmap(NULL, b->bss_size, PROT_READ | PROT_WRITE, MAP_SHARED, bpf_map__fd(map), 0);
    if (at == MAP_FAILED)
        return -errno;
    b->bss = at;
    return 0;
}

static int configure(struct ub_bpf *b, const struct ub_bpf_options *options)
{
    uint64_t *threshold = setting(b, "threshold_ns"), *stretch = setting(b, "stretch_ns");
    uint8_t *children = setting(b, "follow_children"), *info = setting(b, "call_info");
    uint8_t *read = setting(b, "slots_are_read");

    if (!threshold || !stretch || !children || !info || !read)
        return -EINVAL;
    *threshold = options->threshold_ns;
    b->stretch_ns = options->threshold_ns / STRETCH_PART;
    if (b->stretch_ns > STRETCH_MAX_NS)
        b->stretch_ns = STRETCH_MAX_NS;
    if (options->threshold_ns < THRESHOLD_MIN_NS)
        b->stretch_ns = 0;
    *stretch = b->stretch_ns;
    *children = options->children;
    *read = !options->beside_agents;
    fill_call_info(info);
    return 0;
}

static int map_fd(struct ub_bpf *b, const char *name)
{
    return bpf_object__find_map_fd_by_name(b->object, name);
}

static int use_maps(struct ub_bpf *b)
{
    int r;

    b->targets_fd = map_fd(b, "targets");
    b->programs_fd = map_fd(b, "programs");
    b->slots_fd = map_fd(b, "slots");
    b->histograms_fd = map_fd(b, "histograms");
    b->free_fd = map_fd(b, "free_slots");
    r = map_bss(b);
    if (r < 0)
        return r;
    b->asleep = variable(b, "asleep");
    b->dozing = variable(b, "dozing");
    b->no_slot = variable(b, "no_slot");
    b->lost_threads = variable(b, "lost_threads");
    b->lost_records = variable(b, "lost_records");
    b->calls_seen_ns = variable(b, "calls_seen_ns");
    b->stretch_at = variable(b, "stretch_at");
    b->long_turn_at = variable(b, "long_turn_at");
    b->unclear = variable(b, "unclear");
    if (b->targets_fd < 0 || b->programs_fd < 0 || b->slots_fd < 0 || b->histograms_fd < 0 || b->free_fd < 0 ||
        !b->asleep || !b->dozing || !b->no_slot || !b->lost_threads || !b->lost_records || !b->calls_seen_ns ||
        !b->stretch_at || !b->long_turn_at || !b->unclear)
        return -EINVAL;
    for (uint32_t i = UB_BPF_SLOTS; i-- > 0;) {
        if (bpf_map_update_elem(b->free_fd, NULL, &i, 0) < 0)
            return -errno;
    }
    for (uint32_t i = UB_BPF_THREADS; i-- > 0;) {
        if (bpf_map_update_elem(map_fd(b, "free_threads"), NULL, &i, 0) < 0)
            return -errno;
    }
    b->ring = ring_buffer__new(map_fd(b, "ring"), ub_bpf_record, b, NULL);
    return b->ring ? 0 : -errno;
}

int ub_bpf_open(const struct ub_bpf_options *options, struct ub_bpf **ret, char *why)
{
    struct rlimit memlock;
    struct ub_bpf *b;
    int r = ub_bpf_probe(why);

    if (r < 0)
        return r;
    b = calloc(1, sizeof(*b));
    if (!b)
        return -ENOMEM;
    b->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    last_words[0] = '\0';
    libbpf_set_print(listen);
    getrlimit(RLIMIT_MEMLOCK, &memlock);
    b->object = bpf_object__open_mem(ub_bpf_object, ub_bpf_object_size, NULL);
    if (!b->object)
        r = fail(-errno, "open", why);
    if (r == 0 && (r = configure(b, options)) < 0)
        r = fail(r, "take their settings", why);
    if (r == 0 && (r = bpf_object__load(b->object)) < 0)
        r = fail(r, "load", why);
    setrlimit(RLIMIT_MEMLOCK, &memlock); /* where libbpf finds no better it raises this process's limit */
    if (r == 0 && (r = use_maps(b)) < 0)
        r = fail(r, "give their maps", why);
    if (r == 0 && (r = ub_bpf_attach(b)) < 0)
        r = fail(r, "attach", why);
    if (r < 0) {
        ub_bpf_close(b);
        return r;
    }
    b->program_at = ub_clock_monotonic_ns();
    *ret = b;
    return 0;
}

void ub_bpf_close(struct ub_bpf *b)
{
    if (!b)
        return;
    ub_bpf_detach(b);
    for (uint32_t i = 0; i < UB_BPF_SLOTS; i++)
        bpf_link__destroy(b->sampler[i]);
    ring_buffer__free(b->ring);
    if (b->bss)
        munmap(b->bss, b->bss_size);
    bpf_object__close(b->object);
    for (uint32_t i = 0; i < UB_ARRAY_LEN(b->pending); i++)
        ub_reasons_free(b->pending[i]);
    if (b->wake_fd >= 0)
        close(b->wake_fd);
    free(b);
}

/* ---- who is watched ---- */

int ub_bpf_add(struct ub_bpf *b, pid_t pid)
{
    uint32_t one = 1;
    int key = pid;

    return bpf_map_update_elem(b->targets_fd, &key, &one, 0) < 0 ? -errno : 0;
}

int ub_bpf_find(struct ub_bpf *b)
{
    struct bpf_program *program = bpf_object__find_program_by_name(b->object, "ub_find_threads");
    struct bpf_link *link = program ? bpf_program__attach_iter(program, NULL) : NULL;
    char nothing[64];
    int fd, r = 0;

    if (!link)
        return program ? -errno : -ENOENT;
    fd = bpf_iter_create(bpf_link__fd(link));
    if (fd < 0)
        r = -errno;
    while (r == 0 && read(fd, nothing, sizeof(nothing)) > 0)
        ;
    if (fd >= 0)
        close(fd);
    bpf_link__destroy(link);
    ub_bpf_wake(b); /* it may doze, and what was found may run */
    return r;
}

/* ---- the slots ---- */

int ub_bpf_map_slots(struct ub_bpf *b, struct ub_arena *arena)
{
    void *at = mmap(arena->slot, UB_BPF_SLOTS * sizeof(struct ub_slot), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                    b->slots_fd, 0);

    if (at == MAP_FAILED)
        return -errno;
    ub_store_release(&arena->h.slots_high, UB_BPF_SLOTS);
    return 0;
}

/* An event of its own a thread, so that nobody else is interrupted. */
int ub_bpf_sample(struct ub_bpf *b, uint32_t slot, pid_t tid)
{
    struct bpf_program *program = bpf_object__find_program_by_name(b->object, "ub_tick");
    struct perf_event_attr attr = {.type = PERF_TYPE_SOFTWARE, .size = sizeof(attr), .config = PERF_COUNT_SW_CPU_CLOCK};
    struct bpf_link *link;
    int fd;

    if (slot >= UB_BPF_SLOTS || !program || b->sampler[slot])
        return -EINVAL;
    attr.sample_period = TICK_NS;
    fd = (int)syscall(SYS_perf_event_open, &attr, tid, -1, -1, PERF_FLAG_FD_CLOEXEC);
    if (fd < 0)
        return -errno;
    link = bpf_program__attach_perf_event(program, fd);
    if (!link) {
        int error = -errno;

        close(fd);
        return error;
    }
    b->sampler[slot] = link; /* closes the event with it */
    return 0;
}

void ub_bpf_stop_sampling(struct ub_bpf *b, uint32_t slot)
{
    bpf_link__destroy(b->sampler[slot]);
    b->sampler[slot] = NULL;
}

void ub_bpf_free_slot(struct ub_bpf *b, uint32_t slot)
{
    static const struct ub_histogram empty;

    ub_bpf_stop_sampling(b, slot);
    bpf_map_update_elem(b->histograms_fd, &slot, &empty, 0);
    bpf_map_update_elem(b->free_fd, NULL, &slot, 0);
}

void ub_bpf_histogram(struct ub_bpf *b, uint32_t slot, struct ub_histogram *ret)
{
    if (bpf_map_lookup_elem(b->histograms_fd, &slot, ret) < 0)
        memset(ret, 0, sizeof(*ret));
}

/* ---- sleeping ---- */

void ub_bpf_ask_to_be_woken(struct ub_bpf *b, bool please)
{
    __atomic_store_n(b->asleep, please, __ATOMIC_SEQ_CST);
}

void ub_bpf_sleep(struct ub_bpf *b, uint64_t until_ns)
{
    struct pollfd fds[2] = {{.fd = ring_buffer__epoll_fd(b->ring), .events = POLLIN},
                            {.fd = b->wake_fd, .events = POLLIN}};
    uint64_t now = ub_clock_monotonic_ns(), left = until_ns > now ? until_ns - now : 0, count;
    struct timespec ts = {(time_t)(left / 1000000000u), (long)(left % 1000000000u)};

    ppoll(fds, 2, &ts, NULL);
    if (fds[1].revents & POLLIN && read(b->wake_fd, &count, sizeof(count)) < 0)
        return;
}

void ub_bpf_wake(struct ub_bpf *b)
{
    uint64_t one = 1;

    if (write(b->wake_fd, &one, sizeof(one)) < 0)
        return; /* it is full: awake in any case */
}

uint64_t ub_bpf_stretch_ns(const struct ub_bpf *b)
{
    return b->stretch_ns;
}

uint64_t ub_bpf_stretched_ns(const struct ub_bpf *b)
{
    return ub_load_relaxed(b->stretch_at);
}

uint64_t ub_bpf_long_turn_ns(const struct ub_bpf *b)
{
    return ub_load_relaxed(b->long_turn_at);
}

uint64_t ub_bpf_program_ns(const struct ub_bpf *b)
{
    return b->program_at;
}

void ub_bpf_losses(const struct ub_bpf *b, struct ub_bpf_losses *ret)
{
    ret->records = ub_load_relaxed(b->lost_records);
    ret->no_slot = ub_load_relaxed(b->no_slot);
    ret->threads = ub_load_relaxed(b->lost_threads);
    ret->unclear = ub_load_relaxed(b->unclear);
}
