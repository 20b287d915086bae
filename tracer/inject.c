/*
 * The order of things; see inject.h. A thread is asked several times to do something for us, each time at another wait:
 * to map memory, to load the agent, to have it look up libc (these the first time only), to let it go to work.
 *
 * A little long for one file: each of these steps has to be undone where a later one fails, in the order told here.
 */
#include "inject_impl.h"

#include "capture.h"
#include "pidns.h"
#include "punctual.h"
#include "symbols.h"

#include "../common/arena.h"
#include "../common/clock.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define POLL_MIN_NS     200000u
#define POLL_MAX_NS     10000000u
#define BUSY_AFTER_NS   100000000u /* nobody was met asleep for so long: it is busy, and followed */
#define BUSY_EVERY_NS   250000000u
#define SINGLE_AFTER_NS 300000000u /* then a wait for one descriptor will do: GLib's loops often have no more */
#define ANSWER_NS       10000000000u
#define ANSWER_LOOK_NS  100000
#define PAUSE_NS        500000 /* between two pieces the loop has some turns of its own */
#define TRIES           12     /* 1 s in all */
#define PIECES          60
#define MODULES_MAX     1000      /* pieces of at least one */
#define TURN_NS         20000000u /* a loop that turns has done so by then */
#define FINISH_NS       200000000u
#define PROVE_NS        1000000000u /* for so long threads are waited for that are still inside */
#define PROVE_PAUSE_NS  50000000
#define PROVE_STOPS     5
#define AGENT_MAX       (16 << 20)
#define PAGE            4096u

struct inject {
    const struct ub_inject_options *options;
    struct ub_inject_result *ret;
    struct ub_maps *maps;
    struct ub_room room;
    struct ub_attach ask;
    struct ub_attach arena; /* the answer that has told of the arena */
    uint8_t code[32];       /* of its dlopen */
    uint64_t deadline_ns;   /* 0: none */
    uint8_t *image;         /* the agent's file; NULL: it is in there already */
    size_t image_size;
    bool code_written;         /* the room\'s, without a thread in our hands */
    pid_t last;                /* the thread that was asked last; 0: none so far */
    struct ub_punctual before; /* the caller's thread, as it was */
    sigset_t mask;             /* likewise */
    int lock;
    bool joins;          /* another's arena */
    uint64_t watcher_ns; /* the PID namespace of who watches it now; 0: not known */
    int handout;         /* where a thread that is to join an arena asks for it; -1 */
};

static int fail(struct inject *x, int error, const char *what)
{
    snprintf(x->ret->why, sizeof(x->ret->why), "%s: %s", what, strerror(-error));
    return error;
}

/* One injector a process: the name of an abstract socket, which goes with us whatever happens. */
static int lock_target(struct inject *x)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int n = snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1, "unblock-attach-%d", (int)x->options->pid);

    x->lock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (x->lock >= 0 && bind(x->lock, (struct sockaddr *)&address,
                             (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n)) == 0)
        return 0;
    if (x->lock >= 0 && errno == EADDRINUSE) {
        snprintf(x->ret->why, sizeof(x->ret->why), "another unblock is just entering or leaving it: try again");
        return -EAGAIN;
    }
    return 0; /* no sockets here: two at a time are then our user's affair */
}

/* ---- what is known beforehand --------------------------------------------------------- */

static int find_functions(struct inject *x)
{
    static const char *const name[] = {"dlopen", "dlerror", "__errno_location", "dlclose"};
    const struct ub_map *libc = ub_inject_module(x->maps, "libc.so.6");
    uint64_t at[UB_ARRAY_LEN(name)], size;

    for (size_t i = 0; i < UB_ARRAY_LEN(name); i++) {
        if (!libc || ub_symbols_lookup(libc->elf, name[i], &at[i], &size) < 0) {
            snprintf(x->ret->why, sizeof(x->ret->why), "its libc has no %s that could be found", name[i]);
            return -ENOEXEC;
        }
        at[i] += libc->bias;
    }
    x->ask.dl_open = at[0];
    x->ask.dl_error = at[1];
    x->ask.errno_location = at[2];
    x->ask.dl_close = at[3];
    if (ub_room_read(&x->room, x->ask.dl_open, x->code, sizeof(x->code)) < 0)
        return -ESRCH;
    return 0;
}

/* The agent in the target, from an earlier time or preloaded. */
static bool find_agent(struct inject *x)
{
    const struct ub_map *m = ub_inject_module(x->maps, "memfd:" UB_ATTACH_LIBRARY);

    if (!m)
        m = ub_inject_module(x->maps, UB_ATTACH_LIBRARY);
    if (!m)
        return false;
    x->ask.base = m->bias;
    x->ask.entry = m->elf->entry;
    return true;
}

/*
 * Only what the loader maps: the rest (three quarters: debug information, the table of sections) would be written to
 * the memory file while the program's thread is with us.
 */
static void cut_image(struct inject *x, const struct ub_elf *elf)
{
    uint64_t end = 0;

    for (uint32_t i = 0; i < elf->segment_count; i++) {
        const struct ub_elf_segment *s = &elf->segment[i];

        if (s->offset + s->filesz > end)
            end = s->offset + s->filesz;
    }
    if (end > 0 && end < x->image_size)
        x->image_size = end;
}

/* The file says that it is never to be unloaded, for those that it is preloaded into. Here dlclose is to be had. */
static void allow_unloading(struct inject *x)
{
    const Elf64_Ehdr *eh = (const void *)x->image;
    const Elf64_Phdr *ph = (const void *)(x->image + eh->e_phoff);

    if (eh->e_phoff + eh->e_phnum * sizeof(*ph) > x->image_size)
        return;
    for (uint16_t i = 0; i < eh->e_phnum; i++) {
        Elf64_Dyn *dynamic = (void *)(x->image + ph[i].p_offset);

        if (ph[i].p_type != PT_DYNAMIC || ph[i].p_offset + ph[i].p_filesz > x->image_size)
            continue;
        for (size_t k = 0; k < ph[i].p_filesz / sizeof(*dynamic); k++) {
            if (dynamic[k].d_tag == DT_FLAGS_1)
                dynamic[k].d_un.d_val &= ~(Elf64_Xword)DF_1_NODELETE;
        }
    }
}

/* Who watches it, if anybody does: from another PID namespace than its own the agent cannot tell whether that one
 * lives. */
static void look_for_watcher(struct inject *x)
{
    struct ub_arena_header h;

    for (uint32_t i = 0; i < x->maps->count; i++) {
        const struct ub_map *m = &x->maps->map[i];

        if (m->offset != 0 || !strstr(m->path, "/memfd:" UB_ARENA_NAME) ||
            ub_room_read(&x->room, m->start, &h, sizeof(h)) < 0)
            continue;
        x->watcher_ns = h.watcher_namespace;
        x->ask.watcher_gone =
            h.watcher_namespace == ub_pidns_of(0) && h.watcher_pid > 0 && kill(h.watcher_pid, 0) < 0 && errno == ESRCH;
        return;
    }
}

static int read_agent(struct inject *x)
{
    int fd = open(x->options->agent, O_RDONLY | O_CLOEXEC);
    struct ub_elf *elf;
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0 || st.st_size <= 0 || st.st_size > AGENT_MAX) {
        int r = fd < 0 ? -errno : -EFBIG;

        if (fd >= 0)
            close(fd);
        return fail(x, r, x->options->agent);
    }
    x->image_size = (size_t)st.st_size;
    x->image = malloc(x->image_size);
    if (!x->image || read(fd, x->image, x->image_size) != st.st_size) {
        close(fd);
        return fail(x, -EIO, x->options->agent);
    }
    close(fd);
    if (ub_elf_open_file(x->options->agent, &elf) < 0)
        return fail(x, -ENOEXEC, x->options->agent);
    cut_image(x, elf);
    allow_unloading(x);
    x->ask.entry = elf->entry;
    return 0;
}

/* ---- what an earlier injector has left ------------------------------------------------- */

static uint64_t attach_at(const struct inject *x)
{
    return x->room.at + UB_ROOM_ATTACH;
}

static uint32_t state_of(const struct ub_attach *a)
{
    return a->state & UB_ATTACH_STATE_MASK;
}

/*
 * Whether a thread may be about to run, or running, what an earlier injector asked of it before it was killed. One that
 * sleeps outside of the room and has not begun was never sent there. `a` is what the room says, and is read again.
 */
static bool is_still_asked(const struct inject *x, struct ub_attach *a)
{
    struct ub_capture *c;
    bool elsewhere;
    int r;

    if (state_of(a) != UB_ATTACH_ASKED && state_of(a) != UB_ATTACH_IS_RUNNING)
        return false;
    c = malloc(sizeof(*c));
    if (!c)
        return true;
    /* A child forked meanwhile does not have that thread. */
    r = ub_capture_peek(x->options->pid, ub_pidns_thread(x->options->pid, a->tid), c);
    elsewhere = r == 0 && c->state == UB_THREAD_BLOCKED && c->reg[UB_REG_RIP] - x->room.at >= PAGE;
    free(c);
    if (r == -ESRCH || ub_room_read(&x->room, attach_at(x), a, sizeof(*a)) < 0)
        return false;
    return state_of(a) == UB_ATTACH_IS_RUNNING || (state_of(a) == UB_ATTACH_ASKED && !elsewhere);
}

static bool is_over(const struct inject *x, uint64_t now, int *ret)
{
    if (x->options->cancelled && x->options->cancelled(x->options->self))
        *ret = -ECANCELED;
    else if (x->deadline_ns && now >= x->deadline_ns)
        *ret = -ETIME;
    else
        return false;
    return true;
}

/* The process as it is once no thread of it is at what was asked earlier. */
static int load_maps(struct inject *x)
{
    struct ub_attach before;
    int r, old = 0;

    for (;;) {
        r = ub_maps_load(x->options->pid, NULL, &x->maps);
        if (r < 0)
            return r;
        ub_room_find(&x->room, x->maps);
        if (!x->room.at)
            return 0;
        if (ub_room_read(&x->room, attach_at(x), &before, sizeof(before)) < 0)
            return -ESRCH;
        x->ask.state = before.state;
        x->ask.prepared = before.prepared;
        x->ask.handle = before.handle;
        if (!is_still_asked(x, &before) && (!before.base || find_agent(x) || old++ > 1))
            return 0; /* loaded, but not in the maps: it has just happened */
        if (is_over(x, ub_clock_monotonic_ns(), &r))
            return r;
        ub_maps_unref(x->maps);
        x->maps = NULL;
        nanosleep(&(struct timespec){0, POLL_MAX_NS}, NULL);
    }
}

/* ---- holding a thread ---------------------------------------------------------------- */

static void count_hold(struct inject *x, const struct ub_hold *h, const char *what)
{
    uint64_t held = ub_inject_piece_ns(&h->piece);

    x->ret->holds++;
    x->ret->held_all_ns += held;
    if (x->ret->longest.what && held <= ub_inject_piece_ns(&x->ret->longest))
        return;
    x->ret->longest = h->piece;
    x->ret->longest.what = what;
}

/* Until a thread is held at a wait. 0; -ETIME, -ECANCELED, -ESRCH; -EPERM, -EACCES with `why`. */
static int hold_one(struct inject *x, struct ub_hold *h)
{
    uint64_t begun = ub_clock_monotonic_ns(), followed = begun, pause = POLL_MIN_NS;
    int r;

    for (;;) {
        uint64_t now = ub_clock_monotonic_ns();
        bool busy = now - begun > BUSY_AFTER_NS && now - followed > BUSY_EVERY_NS;

        *h = (struct ub_hold){.pid = x->options->pid,
                              .last = x->last,
                              .single = now - begun > SINGLE_AFTER_NS,
                              .cancelled = x->options->cancelled,
                              .self = x->options->self};
        if (busy)
            followed = now;
        r = ub_hold_find(h, busy);
        if (r == 0)
            r = ub_hold_take(h);
        x->ret->stops += h->stops;
        if (r == -EAGAIN && ub_inject_piece_ns(&h->piece) > 0)
            count_hold(x, h, "stopped in vain");
        if (r == -EPERM) {
            snprintf(x->ret->why, sizeof(x->ret->why),
                     "it may not be traced: another tracer holds it, or a security module (Yama, AppArmor, SELinux) "
                     "forbids it; unblock doctor %d tells which of them it is confined by",
                     (int)x->options->pid);
            return r;
        }
        if (r == -EACCES)
            snprintf(x->ret->why, sizeof(x->ret->why), "%s", ub_inject_obstacle_text(UB_INJECT_SECCOMP));
        if (r != -EAGAIN || is_over(x, now, &r))
            return r;
        nanosleep(&(struct timespec){0, (long)pause}, NULL);
        pause = pause * 2 < POLL_MAX_NS ? pause * 2 : POLL_MAX_NS;
    }
}

/* All that is known of it is out of date otherwise. Asked while a thread is held, which then executes nothing. */
static bool is_same_program(struct inject *x)
{
    uint8_t now[sizeof(x->code)];

    if (ub_room_read(&x->room, x->ask.dl_open, now, sizeof(now)) == 0 && memcmp(now, x->code, sizeof(now)) == 0)
        return true;
    snprintf(x->ret->why, sizeof(x->ret->why), "it has executed another program meanwhile");
    return false;
}

/* ---- the first thing asked: memory ------------------------------------------------------ */

static int map_room_once(struct inject *x)
{
    struct ub_hold h;
    uint64_t ip, mapped_ns = 0;
    int r = ub_room_plan(&x->room, x->maps, x->image_size, x->ret->why);

    if (r < 0)
        return r;
    r = hold_one(x, &h);
    if (r < 0)
        return r;
    if (!is_same_program(x)) {
        ub_hold_drop(&h);
        return -ESTALE;
    }
    r = ub_room_dig(&x->room, &h, &ip);
    if (r < 0) {
        ub_hold_drop(&h);
        return fail(x, r, "its code cannot be written");
    }
    x->last = h.tid;
    r = ub_hold_go(&h, ip, 0);
    if (r == 0)
        r = ub_room_wait(&x->room, &h, &mapped_ns);
    if (mapped_ns)
        ub_piece_worked(&h, mapped_ns, 0);
    count_hold(x, &h, "mapping memory");
    return r;
}

/* Where we wanted to be another thread may have mapped something meanwhile: then once more elsewhere. */
static int map_room(struct inject *x)
{
    uint64_t found = x->room.at;
    int r = map_room_once(x);

    for (int i = 0; i < 2 && (r == -ETIMEDOUT || r == -EAGAIN); i++) {
        struct ub_maps *fresh;

        x->room.at = found;
        if (ub_maps_load(x->options->pid, NULL, &fresh) < 0)
            return -ESRCH;
        ub_maps_unref(x->maps);
        x->maps = fresh;
        r = map_room_once(x);
    }
    if (r == -EACCES && !*x->ret->why)
        return fail(x, r, "it may not map executable memory (SELinux execmem, or the like)");
    if (r == -ETIMEDOUT || r == -EAGAIN)
        return fail(x, -ENOMEM, "no memory could be mapped in it (ulimit -v?)");
    return r;
}

static int prepare_room(struct inject *x)
{
    int r = 0;

    if (!x->room.at || x->image)
        r = map_room(x);
    if (r == 0 && x->image)
        r = ub_room_write(&x->room, x->room.image, x->image, x->image_size);
    /* Where that is not to be had without a thread in our hands they are written later. */
    x->code_written =
        r == 0 && ub_room_write_code(&x->room, 0, x->room.at, ub_stub_enter, ub_stub_enter_end - ub_stub_enter) == 0;
    return r;
}

/* ---- the second: the agent ---------------------------------------------------------------- */

static int take_arena(struct inject *x, const struct ub_attach *a)
{
    const struct {
        off_t at;
        size_t size;
        uint64_t value;
    } word[] = {
        {offsetof(struct ub_arena_header, watcher_namespace), 8, ub_pidns_of(0)},
        {offsetof(struct ub_arena_header, starter_pid), 4, (uint64_t)x->options->pid}, /* our number for it */
        {offsetof(struct ub_arena_header, watcher_pid), 4, (uint64_t)getpid()},        /* from now on it is ours */
    };
    struct stat st;
    char path[64];
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)x->options->pid, (int)a->arena_fd);
    fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (fstat(fd, &st) < 0 || st.st_ino != a->arena_inode) {
        close(fd);
        return -ENOENT;
    }
    for (size_t i = 0; i < UB_ARRAY_LEN(word); i++) {
        if (pwrite(fd, &word[i].value, word[i].size, word[i].at) == (ssize_t)word[i].size)
            continue;
        close(fd);
        return -EIO;
    }
    x->ret->arena_fd = fd;
    return 0;
}

/* ---- one arena for several processes: its descriptor goes through a socket ---- */

static bool same_network(pid_t pid)
{
    struct stat own, its;
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/ns/net", (int)pid);
    return stat("/proc/self/ns/net", &own) != 0 || stat(path, &its) != 0 || own.st_ino == its.st_ino;
}

static int open_handout(struct inject *x)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t size = sizeof(address);
    struct stat st;

    if (fstat(x->options->join_fd, &st) < 0)
        return -errno;
    x->ask.join_inode = st.st_ino;
    memset(x->ask.join_name, 0, sizeof(x->ask.join_name));
    x->joins = true;
    if (!same_network(x->options->pid))
        return 0; /* names of sockets are not the same there: see hand_into() */
    x->handout = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (x->handout < 0 || bind(x->handout, (struct sockaddr *)&address, sizeof(sa_family_t)) < 0 || /* any free name */
        listen(x->handout, 4) < 0 || getsockname(x->handout, (struct sockaddr *)&address, &size) < 0)
        return -errno;
    size -= offsetof(struct sockaddr_un, sun_path) + 1;
    if (size >= sizeof(x->ask.join_name))
        return -ENAMETOOLONG;
    memcpy(x->ask.join_name, address.sun_path + 1, size);
    return 0;
}

static void send_arena(const struct inject *x, int s)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    struct iovec byte = {(char *)"", 1};
    const struct msghdr message = {
        .msg_iov = &byte, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};

    memcpy(CMSG_DATA(&control.header), &x->options->join_fd, sizeof(int));
    sendmsg(s, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* Whoever comes, if it is the one that was asked. */
static void hand_out(const struct inject *x)
{
    struct ucred who = {0};
    socklen_t size = sizeof(who);
    int s = accept4(x->handout, NULL, NULL, SOCK_CLOEXEC);

    if (s < 0)
        return;
    if (getsockopt(s, SOL_SOCKET, SO_PEERCRED, &who, &size) == 0 && who.pid == x->options->pid)
        send_arena(x, s);
    close(s);
}

/* It waits at one end of a pair of sockets, and the other one is among its descriptors. True: it has been answered. */
static bool hand_into(const struct inject *x, const struct ub_attach *a)
{
    int pidfd, s = -1;

    if (state_of(a) != UB_ATTACH_IS_RUNNING || a->arena_fd < 0)
        return false;
    pidfd = (int)syscall(SYS_pidfd_open, x->options->pid, 0);
    if (pidfd >= 0) {
        s = (int)syscall(SYS_pidfd_getfd, pidfd, a->arena_fd, 0);
        close(pidfd);
    }
    if (s >= 0) {
        send_arena(x, s);
        close(s);
    }
    return true;
}

/* The thread is on its way. 0 with its last word in *ret. */
static int wait_for_answer(struct inject *x, struct ub_attach *ret)
{
    uint64_t until = ub_clock_monotonic_ns() + ANSWER_NS;

    bool handed = !x->joins || x->handout >= 0;

    do {
        if (x->handout >= 0)
            hand_out(x);
        nanosleep(&(struct timespec){0, ANSWER_LOOK_NS}, NULL); /* it may need our CPU */
        if (ub_room_read(&x->room, attach_at(x), ret, sizeof(*ret)) < 0)
            return -ESRCH;
        handed = handed || hand_into(x, ret);
    } while (state_of(ret) != UB_ATTACH_IS_DONE && ub_clock_monotonic_ns() < until);
    return state_of(ret) == UB_ATTACH_IS_DONE ? 0 : -ETIMEDOUT;
}

static const char *verb_name(enum ub_attach_verb verb)
{
    static const char *const name[] = {
        [UB_ATTACH_ENTER] = "entering",     [UB_ATTACH_LEAVE] = "leaving",    [UB_ATTACH_LOAD] = "loading",
        [UB_ATTACH_PREPARE] = "looking up", [UB_ATTACH_PATCH] = "patching",   [UB_ATTACH_ADOPTED] = "handing over",
        [UB_ATTACH_FORGET] = "unmapping",   [UB_ATTACH_UNLOAD] = "unloading",
    };

    return name[verb];
}

static int ask_once(struct inject *x, enum ub_attach_verb verb, struct ub_attach *ret)
{
    struct ub_hold h;
    int r = hold_one(x, &h);

    if (r < 0)
        return r;
    x->ask.magic = UB_ATTACH_MAGIC;
    x->ask.version = UB_ATTACH_VERSION;
    x->ask.state = ((x->ask.state & ~UB_ATTACH_STATE_MASK) + UB_ATTACH_NEXT) | UB_ATTACH_ASKED;
    x->ask.tid = h.inner;
    x->ask.verb = verb;
    x->ask.arena_fd = -1;
    x->ask.all_signals = UINT64_MAX;
    x->ask.resume_ax = h.resume_ax;
    x->ask.eintr_ip = h.eintr_ip;
    x->ask.caught = h.caught;
    x->ask.image = x->image ? x->room.image : 0;
    x->ask.image_size = x->image_size;
    memcpy(x->ask.name, UB_ATTACH_LIBRARY, sizeof(UB_ATTACH_LIBRARY));
    memcpy(x->ask.path, "/proc/self/fd/", sizeof("/proc/self/fd/"));
    if (!is_same_program(x)) {
        ub_hold_drop(&h);
        return -ESTALE;
    }
    r = ub_room_write(&x->room, attach_at(x), &x->ask, sizeof(x->ask));
    if (r == 0 && !x->code_written)
        r = ub_room_write_code(&x->room, h.tid, x->room.at, ub_stub_enter, (size_t)(ub_stub_enter_end - ub_stub_enter));
    if (r < 0) {
        ub_hold_drop(&h);
        return fail(x, r, "the memory mapped in it cannot be written");
    }
    x->ret->tid = x->last = h.tid;
    r = ub_hold_go(&h, x->room.at, x->ask.state);
    if (r == 0)
        r = wait_for_answer(x, ret);
    if (r == 0 && ret->done_ns)
        ub_piece_worked(&h, ret->done_ns, ret->done_cpu_ns);
    else
        ub_piece_worked(&h, ub_clock_monotonic_ns(), 0);
    count_hold(x, &h, verb_name(verb));
    return r;
}

/* With nobody to watch it: the agent goes out again when its loop turns. */
static void drop_arena(struct inject *x)
{
    static const size_t word[] = {offsetof(struct ub_arena_header, closed), offsetof(struct ub_arena_header, asleep)};
    const uint32_t yes = 1;

    if (x->ret->arena_fd < 0)
        return;
    for (size_t i = 0; i < UB_ARRAY_LEN(word); i++) {
        if (pwrite(x->ret->arena_fd, &yes, sizeof(yes), (off_t)word[i]) < 0)
            break; /* it cannot be told: the next one who enters finds that we are gone */
    }
    close(x->ret->arena_fd);
    x->ret->arena_fd = -1;
}

static int explain(struct inject *x, const struct ub_attach *a)
{
    static const char *const step[] = {
        "",          "no memory file for the agent", "the memory file for the agent", "the loader refuses the agent",
        "the agent", "the loader does not unload it"};

    x->ret->watcher = a->watcher;
    if (a->watcher > 0 && x->watcher_ns && x->watcher_ns != ub_pidns_of(0))
        x->ret->watcher = ub_pidns_process(x->watcher_ns, a->watcher);
    if (a->step == UB_ATTACH_STEP_LOAD)
        snprintf(x->ret->why, sizeof(x->ret->why), "%s: %.*s", step[a->step], (int)sizeof(a->text), a->text);
    else if (a->step == UB_ATTACH_STEP_FILE && a->result == -EACCES)
        snprintf(x->ret->why, sizeof(x->ret->why),
                 "sysctl vm.memfd_noexec of its PID namespace forbids code from memory files");
    else if (a->step == UB_ATTACH_STEP_AGENT && a->result == -EAGAIN)
        snprintf(x->ret->why, sizeof(x->ret->why), "another thread of it is just entering or leaving: try again");
    else if (a->step == UB_ATTACH_STEP_AGENT && a->result == -EXDEV)
        snprintf(x->ret->why, sizeof(x->ret->why),
                 "it lives in another PID namespace than the process that was entered first");
    else
        snprintf(x->ret->why, sizeof(x->ret->why), "%s: %s", step[a->step < UB_ARRAY_LEN(step) ? a->step : 0],
                 strerror(-a->result));
    return a->result;
}

static int ask(struct inject *x, enum ub_attach_verb verb)
{
    struct ub_attach answer = {0};
    long pause = PAUSE_NS;
    int r = -EAGAIN;

    for (int i = 0; i < TRIES && (r == -EAGAIN || r == -ETIMEDOUT); i++) {
        if (i > 0) { /* another thread of it is at the same, perhaps without a CPU */
            if (is_over(x, ub_clock_monotonic_ns(), &r))
                return r;
            nanosleep(&(struct timespec){pause / 1000000000, pause % 1000000000}, NULL);
            pause *= 2;
        }
        r = ask_once(x, verb, &answer);
        if (r < 0)
            return r == -ETIMEDOUT ? fail(x, r, "the thread does not answer") : r;
        r = answer.result < 0 ? explain(x, &answer) : answer.result;
        x->ask.prepared = answer.prepared;
        x->ask.handle = answer.handle;
        if (answer.base && x->image) { /* loaded, whatever it said then */
            x->ask.base = answer.base;
            x->ret->loaded = true;
            free(x->image);
            x->image = NULL;
            x->image_size = 0;
        }
    }
    if (r >= 0 && verb == UB_ATTACH_ENTER && !x->joins) {
        int taken = take_arena(x, &answer);

        if (taken < 0) /* it goes out again by itself */
            return fail(x, taken, "the agent's memory cannot be opened");
        x->arena = answer;
    }
    return r;
}

static bool is_handed_over(const struct inject *x)
{
    struct stat st;
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)x->options->pid, (int)x->arena.arena_fd);
    return stat(path, &st) != 0 || st.st_ino != x->arena.arena_inode;
}

/* The next turn of a loop closes the arena's descriptor in the process; an idle one is asked to, if it can be had soon.
 */
static void finish(struct inject *x)
{
    uint64_t now = ub_clock_monotonic_ns(), until = now + TURN_NS;

    while (!is_handed_over(x)) {
        nanosleep(&(struct timespec){0, 500000}, NULL);
        now = ub_clock_monotonic_ns();
        if (now < until)
            continue;
        x->deadline_ns = now + FINISH_NS;
        ask(x, UB_ATTACH_ADOPTED);
        return;
    }
}

/* What offload needs of an interpreter lies beside the agent's file, where its copy cannot look. */
static uint64_t python_objects(const char *agent)
{
    const char *slash = strrchr(agent, '/');
    uint64_t ret = 0;
    char path[PATH_MAX];

    for (unsigned minor = 0; slash && minor < 64; minor++) {
        snprintf(path, sizeof(path), "%.*s/python3.%u.so", (int)(slash - agent), agent, minor);
        if (access(path, R_OK) == 0)
            ret |= 1ull << minor;
    }
    return ret;
}

static int ask_after_pause(struct inject *x, enum ub_attach_verb verb)
{
    nanosleep(&(struct timespec){0, PAUSE_NS}, NULL);
    return ask(x, verb);
}

/* In its order: each in another wait of the loop, so that none is kept long. */
static int load_and_enter(struct inject *x)
{
    int r = x->image ? ask(x, UB_ATTACH_LOAD) : 0;

    /* A program that loads modules all the time makes it begin again each time: it can do without. */
    for (int i = 0; !x->ask.prepared && ((i == 0 && r == 0) || (i < PIECES && r == UB_ATTACH_MORE)); i++)
        r = ask_after_pause(x, UB_ATTACH_PREPARE);
    x->ask.offload = x->options->offload;
    x->ask.python_objects = x->options->offload ? python_objects(x->options->agent) : 0;
    if (r >= 0)
        r = ask_after_pause(x, UB_ATTACH_ENTER);
    for (int i = 0; i < MODULES_MAX && r == UB_ATTACH_MORE; i++)
        r = ask_after_pause(x, UB_ATTACH_PATCH);
    if (r >= 0)
        r = 0;
    if (r == 0 && !x->joins)
        finish(x);
    return r;
}

/* ---- both ------------------------------------------------------------------------------------ */

static int prepare(struct inject *x)
{
    sigset_t stops;
    int r;

    sigemptyset(&stops);
    sigaddset(&stops, SIGCHLD); /* see wait_for_stop() */
    pthread_sigmask(SIG_BLOCK, &stops, &x->mask);
    ub_punctual_begin(&x->before);
    r = lock_target(x);
    x->deadline_ns = x->options->deadline_ns;
    x->room.pid = x->options->pid;
    x->ret->arena_fd = -1;
    if (r == 0)
        r = load_maps(x);
    if (r == 0) {
        r = find_functions(x);
        find_agent(x);
        look_for_watcher(x);
    }
    return r;
}

static void clear(struct inject *x, int r)
{
    sigset_t stops;

    sigemptyset(&stops);
    sigaddset(&stops, SIGCHLD);
    if (r < 0)
        drop_arena(x);
    if (x->handout >= 0)
        close(x->handout);
    if (x->lock >= 0)
        close(x->lock);
    ub_maps_unref(x->maps);
    free(x->image);
    while (!sigismember(&x->mask, SIGCHLD) && sigtimedwait(&stops, NULL, &(struct timespec){0}) > 0)
        ; /* told after we had looked: nobody else's */
    pthread_sigmask(SIG_SETMASK, &x->mask, NULL);
    ub_punctual_end(&x->before);
}

int ub_inject_enter(const struct ub_inject_options *options, struct ub_inject_result *ret)
{
    struct inject x = {.options = options, .ret = ret, .lock = -1, .handout = -1};
    int r;

    memset(ret, 0, sizeof(*ret));
    r = prepare(&x);
    if (r == 0 && !x.ask.base)
        r = read_agent(&x);
    if (r == 0 && options->join_fd > 0) {
        r = open_handout(&x);
        if (r < 0)
            fail(&x, r, "no socket to hand the watched memory out at");
    }
    if (r == 0)
        r = prepare_room(&x);
    if (r == 0)
        r = load_and_enter(&x);
    clear(&x, r);
    return r;
}

static int leave(struct inject *x)
{
    int r;

    if (!x->ask.base)
        return -ENOENT;
    r = prepare_room(x);
    if (r == 0)
        r = ask(x, UB_ATTACH_LEAVE);
    for (int i = 0; i < MODULES_MAX && r == UB_ATTACH_MORE; i++)
        r = ask_after_pause(x, UB_ATTACH_LEAVE);
    return r;
}

int ub_inject_leave(const struct ub_inject_options *options, struct ub_inject_result *ret)
{
    struct inject x = {.options = options, .ret = ret, .lock = -1, .handout = -1};
    int r;

    memset(ret, 0, sizeof(*ret));
    r = prepare(&x);
    if (r == 0)
        r = leave(&x);
    clear(&x, r);
    return r < 0 ? r : 0;
}

/* Threads that are just inside come out, as a rule: then once more. */
static int prove(struct inject *x)
{
    uint64_t until = ub_clock_monotonic_ns() + PROVE_NS;
    int r;

    for (int stops = 0;;) {
        uint64_t now;

        r = ub_inject_prove(&x->room, x->ask.base, x->ask.handle, x->options->hold_max_ns, &x->ret->proof_ns,
                            x->ret->why);
        now = ub_clock_monotonic_ns();
        stops += x->ret->proof_ns > 0;
        if (r != -EAGAIN || now > until || stops >= PROVE_STOPS)
            return r == -EAGAIN ? -EBUSY : r;
        if (is_over(x, now, &r))
            return -EBUSY;
        nanosleep(&(struct timespec){0, PROVE_PAUSE_NS}, NULL);
    }
}

static bool is_loaded(struct inject *x)
{
    struct ub_maps *maps;
    bool loaded;

    if (ub_maps_load(x->options->pid, NULL, &maps) < 0)
        return false;
    loaded = ub_maps_find(maps, x->ask.base) && ub_inject_module(maps, "memfd:" UB_ATTACH_LIBRARY);
    ub_maps_unref(maps);
    return loaded;
}

/* FORGET has been refused. */
static int keep(struct inject *x, enum ub_attach_kept kept)
{
    static const char *const why[UB_ATTACH_KEPT_REASONS] = {
        "",
        "a signal handler of its is still in place",
        "somebody else has entered the process meanwhile",
        "it has not put everything back yet: try again",
        "it was loaded with the program (LD_PRELOAD)",
    };

    snprintf(x->ret->why, sizeof(x->ret->why), "%s", why[kept < UB_ATTACH_KEPT_REASONS ? kept : 0]);
    return -EBUSY;
}

static int unload(struct inject *x)
{
    int r = leave(x);

    if (r < 0)
        return r;
    if (!ub_inject_module(x->maps, "memfd:" UB_ATTACH_LIBRARY) || !x->ask.handle) {
        snprintf(x->ret->why, sizeof(x->ret->why), "it was %s",
                 ub_inject_module(x->maps, "memfd:" UB_ATTACH_LIBRARY) ? "brought in by another version of unblock"
                                                                       : "loaded with the program (LD_PRELOAD)");
        return -EBUSY;
    }
    r = prove(x);
    if (r == 0) {
        r = ask(x, UB_ATTACH_FORGET);
        if (r > 0)
            r = keep(x, (enum ub_attach_kept)r);
    }
    if (r == 0)
        r = ask_after_pause(x, UB_ATTACH_UNLOAD);
    if (r == 0 && is_loaded(x)) {
        snprintf(x->ret->why, sizeof(x->ret->why), "the loader keeps it");
        return -EBUSY;
    }
    return r;
}

int ub_inject_unload(const struct ub_inject_options *options, struct ub_inject_result *ret)
{
    struct inject x = {.options = options, .ret = ret, .lock = -1, .handout = -1};
    int r;

    memset(ret, 0, sizeof(*ret));
    r = prepare(&x);
    if (r == 0)
        r = unload(&x);
    clear(&x, r);
    return r < 0 ? r : 0;
}
