/*
 * See dump.h. Each thread is taken by itself, in the order of the task folder:
 * a dump is no snapshot of one moment, but each stack is right by itself.
 */
#include "dump.h"

#include "capture.h"
#include "fdinfo.h"
#include "frames.h"
#include "line.h"
#include "preamble.h"
#include "procfile.h"
#include "python_merge.h"
#include "sleeptime.h"
#include "syscalls.h"
#include "unwind.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define ATTEMPTS   20
#define SETTLE_NS  20000 /* a thread that seems to run may just be entering a call */
#define AGAIN_NS   1000000
#define TASKS_MAX  1000u
#define PF_KTHREAD 0x00200000u

struct seen_stack {
    uint64_t hash;
    json_int_t id;
};

struct dump {
    const struct ub_dump_options *options;
    pid_t pid;
    pid_t living; /* the main thread, or another one when that has ended: whose memory and files are read */
    struct ub_maps *maps;
    struct ub_unwinder *unwinder;
    struct ub_capture capture;
    struct ub_stack raw;
    struct ub_named_stack named;
    struct ub_python *python;
    struct ub_python_look look;
    struct seen_stack *seen;
    size_t seen_count;
    json_int_t last_stack;
};

/* ---- what it is ------------------------------------------------------ */

/* The text after "\nName:\t", or "". */
static const char *status_field(const char *status, const char *name)
{
    char key[32];
    const char *p;

    snprintf(key, sizeof(key), "\n%s:\t", name);
    p = strstr(status, key);
    return p != NULL ? p + strlen(key) : "";
}

static bool is_kernel_thread(pid_t pid)
{
    char stat[UB_STAT_MAX];
    unsigned flags = 0;

    ub_procfile_stat(pid, pid, stat);
    return sscanf(stat, "%*c %*d %*d %*d %*d %*d %u", &flags) == 1 && (flags & PF_KTHREAD);
}

int ub_dump_look(pid_t pid, struct ub_dump_target *ret)
{
    struct ub_capture *capture;
    char status[UB_STATUS_MAX];
    int r;

    *ret = (struct ub_dump_target){.pid = pid};
    if (ub_procfile_status(pid, pid, status) == 0)
        return access("/proc/self/stat", R_OK) == 0 ? -ESRCH : -ENOENT;
    ret->pid = atoi(status_field(status, "Tgid"));
    ret->uid = (uid_t)strtoul(status_field(status, "Uid"), NULL, 10);
    ub_preamble_thread_name(ret->pid, ret->pid, ret->name, sizeof(ret->name));
    if (is_kernel_thread(pid)) {
        ret->kind = UB_DUMP_KERNEL;
        return 0;
    }
    /* A main thread that has ended before the others is a zombie too, but the process is not. */
    if (*status_field(status, "State") == 'Z' && atoi(status_field(status, "Threads")) <= 1) {
        ret->kind = UB_DUMP_ZOMBIE;
        return 0;
    }
    capture = malloc(sizeof(*capture));
    if (capture == NULL)
        return -ENOMEM;
    r = ub_capture_peek(ret->pid, pid, capture);
    ret->access = r == -EACCES || r == -EPERM ? -EACCES : 0;
    free(capture);
    return r == -ESRCH ? r : 0;
}

/* ---- lines ----------------------------------------------------------- */

static void emit(const struct dump *d, json_t *line)
{
    if (line == NULL)
        return;
    for (uint32_t i = 0; i < d->options->sink_count; i++)
        d->options->sinks[i].line(d->options->sinks[i].self, line);
    json_decref(line);
}

static void emit_preamble(const struct dump *d)
{
    char path[64], exe[PATH_MAX], status[UB_STATUS_MAX];
    ssize_t n;

    emit(d, ub_preamble_header("dump", 0, d->options->argc, d->options->argv, d->options->redact, UB_OFFLOAD_OFF));
    snprintf(path, sizeof(path), "/proc/%d/exe", (int)d->living);
    n = readlink(path, exe, sizeof(exe) - 1);
    exe[n > 0 ? n : 0] = '\0';
    ub_procfile_status(d->pid, d->pid, status);
    emit(d,
         ub_preamble_process(d->pid, atoi(status_field(status, "PPid")), n > 0 ? exe : NULL, NULL, d->options->redact));
}

/* The id of the stack in d->named; writes its line the first time. */
static json_int_t stack_id(struct dump *d)
{
    struct seen_stack *grown;

    for (size_t i = 0; i < d->seen_count; i++)
        if (d->seen[i].hash == d->named.hash)
            return d->seen[i].id;
    emit(d, json_pack("{s:s, s:I, s:o}", "type", "stack", "id", ++d->last_stack, "frames",
                      ub_frames_json(&d->named, d->options->redact)));
    grown = realloc(d->seen, (d->seen_count + 1) * sizeof(*grown));
    if (grown != NULL) {
        d->seen = grown;
        d->seen[d->seen_count++] = (struct seen_stack){d->named.hash, d->last_stack};
    }
    return d->last_stack;
}

static json_t *call_json(const struct dump *d)
{
    const struct ub_capture *c = &d->capture;
    char name[UB_SYSCALL_NAME_MAX], text[UB_SYSCALL_ARGS_MAX];
    json_t *call = json_pack("{s:s}", "name", ub_syscall_name(c->nr, name));
    int arg = ub_syscall_fd_arg(c->nr);

    if (d->options->redact)
        return call;
    ub_syscall_format(d->living, c->nr, c->arg, text, sizeof(text));
    json_object_set_new(call, "args", json_string(text));
    if (arg < 0)
        return call;
    json_object_set_new(call, "fd", json_integer((int)c->arg[arg]));
    if (ub_fd_describe(d->living, (int)c->arg[arg], text, sizeof(text)) == 0)
        json_object_set_new(call, "fd_path", json_string(text));
    return call;
}

static const char *state_name(enum ub_thread_state state)
{
    switch (state) {
    case UB_THREAD_RUNNING:
        return "running";
    case UB_THREAD_BLOCKED:
        return "blocked";
    case UB_THREAD_FAULT:
        return "pagefault";
    case UB_THREAD_STOPPED:
        return "stopped";
    case UB_THREAD_DEAD:
        break;
    }
    return "ended";
}

static const char *proof_name(enum ub_proof proof)
{
    return proof == UB_PROOF_STILL ? "still" : proof == UB_PROOF_PERF ? "perf" : "unproven";
}

static const char *why_no_stack(int error, enum ub_thread_state state)
{
    if ((error == -EACCES || error == -EPERM) && state == UB_THREAD_RUNNING)
        return "it runs, and sampling it takes perf events: lower kernel.perf_event_paranoid to 2, or be root";
    if (error == -EACCES || error == -EPERM)
        return "no permission to read its memory";
    if (error == -EAGAIN)
        return "it never stood still long enough: try again";
    return strerror(-error);
}

/* A thread that was stopped in a call looks blocked in it. */
static bool is_stopped(const struct dump *d, pid_t tid)
{
    char stat[UB_STAT_MAX];

    ub_procfile_stat(d->pid, tid, stat);
    return *stat == 'T' || *stat == 't';
}

/* ---- Python ---------------------------------------------------------- */

/* The Python side of the thread that was just captured; false: there is none. */
static bool look_python(struct dump *d, pid_t tid)
{
    const struct ub_capture *c = &d->capture;
    uint64_t futex = c->state == UB_THREAD_BLOCKED && c->nr == SYS_futex ? c->arg[0] : 0;
    bool running = c->state == UB_THREAD_RUNNING;
    struct ub_schedstat now;
    uint32_t version;

    if (ub_python_update(d->living, d->maps, &d->python, &version) < 0 ||
        ub_python_look(d->python, tid, futex, running, &d->look) < 0)
        return false;
    if (!running &&
        !(c->proof == UB_PROOF_STILL && c->has_sched && ub_capture_schedstat(d->living, tid, &now) == 0 &&
          now.slices == c->sched.slices && now.run_ns == c->sched.run_ns) &&
        ub_python_look(d->python, tid, 0, true, &d->look) < 0)
        return false;
    return d->look.count > 0;
}

static const char *gil_name(enum ub_python_gil gil)
{
    switch (gil) {
    case UB_PYTHON_GIL_HELD:
        return "held";
    case UB_PYTHON_GIL_RELEASED:
        return "released";
    case UB_PYTHON_GIL_WAITED:
        return "waited";
    case UB_PYTHON_GIL_UNKNOWN:
        break;
    }
    return NULL;
}

static void set_python(struct dump *d, json_t *line)
{
    bool merged = ub_python_merge(&d->named, &d->look);
    json_t *task = ub_python_task_json(&d->look, d->options->redact);

    json_object_set_new(line, "python", json_string(ub_python_proof_name(&d->look, merged)));
    if (task)
        json_object_set_new(line, "task", task);
    if (gil_name(d->look.gil))
        json_object_set_new(line, "gil", json_string(gil_name(d->look.gil)));
}

static json_t *task_json(const struct dump *d, const struct ub_python_waiter *w)
{
    json_t *line = json_pack("{s:s, s:i, s:s}", "type", "task", "pid", (int)d->pid, "state",
                             w->running ? "running"
                             : w->waits ? "waiting"
                                        : "ready");
    json_t *chain = json_array();

    if (*w->name)
        json_object_set_new(line, "name", json_string(w->name));
    if (*w->waits_for)
        json_object_set_new(line, "waits_for", json_string(w->waits_for));
    for (uint32_t i = 0; i < w->count; i++)
        json_array_append_new(chain, ub_python_place(&w->frame[i], d->options->redact));
    json_object_set_new(line, "await", chain);
    return line;
}

static void dump_tasks(struct dump *d)
{
    struct ub_python_waiter *list = d->python ? calloc(TASKS_MAX, sizeof(*list)) : NULL;
    uint32_t count = list ? ub_python_tasks(d->python, list, TASKS_MAX) : 0;
    char text[128];

    for (uint32_t i = 0; i < count && i < TASKS_MAX; i++)
        emit(d, task_json(d, &list[i]));
    if (count > TASKS_MAX) {
        snprintf(text, sizeof(text), "%u of %u asyncio tasks are shown", TASKS_MAX, count);
        emit(d, json_pack("{s:s, s:s, s:s}", "type", "note", "level", "info", "text", text));
    }
    free(list);
}

static json_t *thread_json(struct dump *d, pid_t tid, int error, bool python)
{
    struct ub_capture *c = &d->capture;
    char name[64];
    uint64_t ns;
    json_t *line;

    if (is_stopped(d, tid))
        c->state = UB_THREAD_STOPPED;
    ub_preamble_thread_name(d->pid, tid, name, sizeof(name));
    line = json_pack("{s:s, s:i, s:i, s:s, s:s}", "type", "thread", "pid", (int)d->pid, "tid", (int)tid, "name", name,
                     "state", state_name(c->state));
    if (c->state != UB_THREAD_RUNNING && ub_sleep_time(d->pid, tid, &ns) == 0)
        json_object_set_new(line, "in_state_ns", json_integer((json_int_t)ns));
    if ((c->state == UB_THREAD_BLOCKED || c->state == UB_THREAD_STOPPED) && c->nr >= 0)
        json_object_set_new(line, "call", call_json(d));
    if (error == 0)
        error = ub_unwind(d->unwinder, d->maps, c, &d->raw);
    if (error < 0) {
        json_object_set_new(line, "error", json_string(why_no_stack(error, c->state)));
        return line;
    }
    ub_frames_name(d->maps, &d->raw, &d->named);
    if (python)
        set_python(d, line);
    json_object_set_new(line, "stack", json_integer(stack_id(d)));
    json_object_set_new(line, "proof", json_string(proof_name(c->proof)));
    json_object_set_new(line, "complete", json_boolean(d->raw.complete));
    return line;
}

/* ---- threads --------------------------------------------------------- */

static void pause_ns(long ns)
{
    nanosleep(&(struct timespec){0, ns}, NULL);
}

/* One look at a thread, whatever it does. 0; -EAGAIN: it changed its mind, look again; another -errno. */
static int look_once(struct dump *d, pid_t tid)
{
    struct ub_capture *c = &d->capture;
    int r = ub_capture_peek(d->living, tid, c);

    if (r == 0 && c->state == UB_THREAD_RUNNING) {
        pause_ns(SETTLE_NS);
        r = ub_capture_peek(d->living, tid, c);
    }
    if (r < 0)
        return r;
    if (c->state == UB_THREAD_DEAD)
        return -ESRCH;
    if (c->state == UB_THREAD_RUNNING)
        return ub_capture_perf(d->living, tid, d->maps, c);
    return ub_capture_blocked(d->living, tid, d->maps, c);
}

static int look(struct dump *d, pid_t tid)
{
    int r = -EAGAIN;

    for (int i = 0; r == -EAGAIN && i < ATTEMPTS; i++) {
        if (i > 0)
            pause_ns(AGAIN_NS);
        r = look_once(d, tid);
    }
    return r;
}

static int refresh_maps(struct dump *d)
{
    struct ub_maps *fresh;
    int r = ub_maps_load(d->living, d->maps, &fresh);

    if (r < 0)
        return r;
    ub_maps_unref(d->maps);
    d->maps = fresh;
    return 0;
}

/* A process lives on in its other threads when the main one has ended, but nothing can be read through that one then.
 */
static int find_living(struct dump *d, const pid_t *tids, size_t count)
{
    int r = -ESRCH;

    for (size_t i = 0; r < 0 && i < count; i++) {
        d->living = tids[i];
        r = refresh_maps(d);
    }
    return r;
}

static void dump_thread(struct dump *d, pid_t tid, struct ub_dump_result *result)
{
    json_t *line;
    int r;

    refresh_maps(d); /* a thread may have loaded something meanwhile; if not, the last ones stay */
    r = look(d, tid);
    if (r == -ESRCH)
        return;
    line = thread_json(d, tid, r, r == 0 && look_python(d, tid));
    result->threads++;
    result->without_stack += json_object_get(line, "stack") == NULL;
    emit(d, line);
}

static int by_number(const void *a, const void *b)
{
    pid_t x = *(const pid_t *)a, y = *(const pid_t *)b;

    return (x > y) - (x < y);
}

/* All threads there are now, the main one first. Caller frees. */
static size_t list_threads(pid_t pid, pid_t **ret)
{
    char path[64];
    struct dirent *entry;
    pid_t *list = NULL, *grown;
    size_t count = 0;
    DIR *dir;

    *ret = NULL;
    snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    dir = opendir(path);
    if (dir == NULL)
        return 0;
    while ((entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] < '1' || entry->d_name[0] > '9')
            continue;
        grown = realloc(list, (count + 1) * sizeof(*list));
        if (grown == NULL)
            break;
        list = grown;
        list[count++] = atoi(entry->d_name);
    }
    closedir(dir);
    if (count > 1)
        qsort(list, count, sizeof(*list), by_number);
    for (size_t i = 1; i < count; i++) { /* thread numbers wrap around */
        if (list[i] == pid) {
            memmove(list + 1, list, i * sizeof(*list));
            list[0] = pid;
        }
    }
    *ret = list;
    return count;
}

int ub_dump(const struct ub_dump_options *options, struct ub_dump_result *ret)
{
    struct dump *d = calloc(1, sizeof(*d));
    pid_t *tids = NULL;
    size_t count;
    int r;

    *ret = (struct ub_dump_result){0};
    if (d == NULL)
        return -ENOMEM;
    d->options = options;
    d->pid = options->target->pid;
    count = list_threads(d->pid, &tids);
    r = find_living(d, tids, count);
    if (r == 0)
        r = ub_unwinder_new(&d->unwinder);
    if (r == 0) {
        emit_preamble(d);
        for (size_t i = 0; i < count; i++)
            dump_thread(d, tids[i], ret);
        dump_tasks(d);
        ub_unwinder_free(d->unwinder);
        r = ret->threads > 0 ? 0 : -ESRCH;
    }
    if (r == 0)
        emit(d, json_pack("{s:s, s:i, s:{s:i, s:i, s:i}}", "type", "end", "slow", 0, "lost", "ring", 0, "rate_limited",
                          0, "torn", 0));
    free(tids);
    free(d->seen);
    ub_python_free(d->python);
    ub_frames_clear(&d->named);
    ub_maps_unref(d->maps);
    free(d);
    return r;
}
