/*
 * What the kernel saw of a turn (tracer/bpf), in the words of the recording:
 * where the time went to the nanosecond, the longest calls, who held the lock,
 * who had the CPU.
 */
#include "explain_impl.h"

#include "fdinfo.h"
#include "preamble.h"
#include "syscalls.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define UB_UNCLEAR_MIN_NS 1000000u /* what is clear to the millisecond needs no word */

#define UB_CALL_SHARE 20 /* a call that took less than 1/20 of the turn is not why it was slow */

void ub_reasons_shares(const struct ub_reasons *r, struct ub_shares *ret)
{
    const struct ub_bpf_accounts *a = &r->turn.accounts;

    *ret = (struct ub_shares){.known = true,
                              .window_ns = r->turn.end - r->turn.start,
                              .cpu_ns = a->cpu_ns,
                              .runqueue_ns = a->runqueue_ns,
                              .blocked_ns = a->blocked_ns + a->fault_ns + a->stopped_ns,
                              .majflt = a->major_faults};
}

/* The calls that blocked longest come first; those that only burned CPU after them. */
static uint64_t weight(const struct ub_bpf_call *c)
{
    return c->blocked_ns ? c->blocked_ns : c->total_ns / 4;
}

static const struct ub_bpf_call *dominant(const struct ub_bpf_turn *t)
{
    const struct ub_bpf_call *best = NULL;

    for (uint32_t i = 0; i < t->call_count && i < UB_BPF_CALLS; i++) {
        if (t->call[i].count && (!best || weight(&t->call[i]) > weight(best)))
            best = &t->call[i];
    }
    return best && best->total_ns >= (t->end - t->start) / UB_CALL_SHARE ? best : NULL;
}

/*
 * A futex wait whose stack was seen, is in no lock, and that no other thread ended, is a call like any other.
 * Where the kernel knows no call that was most of it, the looks are all there is.
 */
static bool is_lock(const struct ub_bpf_call *c, const struct ub_seen *seen, uint32_t count)
{
    bool other = !c;

    if (c && c->nr != SYS_futex)
        return false;
    if (c && c->waker_how == UB_BPF_WAKER_FUTEX)
        return true;
    for (uint32_t i = 0; i < count; i++) {
        if (seen[i].lock)
            return true;
        other |= seen[i].stack && seen[i].nr == SYS_futex;
    }
    return !other;
}

const char *ub_reasons_cause(const struct ub_reasons *r, const struct ub_seen *seen, uint32_t count,
                             const char *by_looks)
{
    static const char *const inside[] = {"gil", "gc", "import"}; /* the kernel knows nothing of these */
    const struct ub_bpf_accounts *a = &r->turn.accounts;
    uint64_t blocked = a->blocked_ns + a->fault_ns;

    for (size_t i = 0; i < UB_ARRAY_LEN(inside); i++) {
        if (strcmp(by_looks, inside[i]) == 0)
            return inside[i];
    }
    if (a->stopped_ns > a->cpu_ns && a->stopped_ns > blocked && a->stopped_ns > a->runqueue_ns)
        return "stopped";
    if (a->runqueue_ns > a->cpu_ns && a->runqueue_ns > blocked)
        return "runqueue";
    if (a->cpu_ns >= blocked)
        return "cpu";
    if (a->fault_ns > a->blocked_ns)
        return "pagefault";
    return is_lock(dominant(&r->turn), seen, count) ? "lock" : "call";
}

/* ---- calls ---- */

static bool same_file(pid_t pid, int fd, uint64_t inode)
{
    char path[64];
    struct stat st;

    snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, fd);
    return inode != 0 && stat(path, &st) == 0 && st.st_ino == inode;
}

static char *arguments(const struct ub_bpf_call *c)
{
    int pointer = ub_syscall_pointer_arg(c->nr);
    uint64_t arg[6];
    struct ub_syscall_memory memory = {
        .address = pointer >= 0 ? c->arg[pointer] : 0, .bytes = c->text, .len = sizeof(c->text)};
    char buf[UB_SYSCALL_ARGS_MAX];

    memcpy(arg, c->arg, sizeof(arg));
    ub_syscall_format_copied(&memory, c->nr, arg, buf, sizeof(buf));
    return strdup(buf);
}

static void set_descriptor(json_t *o, pid_t pid, const struct ub_bpf_call *c)
{
    int arg = ub_syscall_fd_arg(c->nr), fd;
    char path[UB_FD_TEXT_MAX];

    if (arg < 0)
        return;
    fd = (int)c->arg[arg];
    json_object_set_new(o, "fd", json_integer(fd));
    if (same_file(pid, fd, c->inode) && ub_fd_describe(pid, fd, path, sizeof(path)) == 0)
        json_object_set_new(o, "fd_path", json_string(path));
}

static json_t *call_json(const struct ub_explain *x, pid_t pid, const struct ub_bpf_call *c)
{
    char name[UB_SYSCALL_NAME_MAX];
    json_t *o = json_pack("{s:s, s:I, s:I}", "name", ub_syscall_name(c->nr, name), "duration_ns",
                          (json_int_t)c->total_ns, "count", (json_int_t)c->count);

    if (c->blocked_ns)
        json_object_set_new(o, "blocked_ns", json_integer((json_int_t)c->blocked_ns));
    if (c->detailed && c->count > 1)
        json_object_set_new(o, "max_ns", json_integer((json_int_t)c->longest_ns));
    if (c->detailed && c->ret < 0 && c->ret > -4096 && strerrorname_np((int)-c->ret))
        json_object_set_new(o, "error", json_string(strerrorname_np((int)-c->ret)));
    if (c->detailed && !x->w->redact) {
        char *args = arguments(c);

        if (args)
            json_object_set_new(o, "args", json_string(args));
        free(args);
        set_descriptor(o, pid, c);
    }
    return o;
}

/* ---- who ---- */

static json_t *who_json(const struct ub_bpf_who *who)
{
    char name[UB_BPF_COMM + 1];
    json_t *o;

    memcpy(name, who->comm, UB_BPF_COMM);
    name[UB_BPF_COMM] = '\0';
    o = json_pack("{s:o}", "thread", ub_preamble_string(name));
    if (who->pid)
        json_object_set_new(o, "pid", json_integer(who->pid));
    if (who->tid)
        json_object_set_new(o, "tid", json_integer(who->tid));
    return o;
}

/* The stack of the holder when it let go, and the innermost function of the program's own in it. */
static void set_holder_stack(struct ub_explain *x, const struct ub_event *e, json_t *holder, int tid)
{
    const struct ub_reasons *r = e->reasons;
    struct ub_maps *maps = ub_process_maps(e->process);

    for (uint32_t i = 0; maps && i < r->stack_count; i++) {
        if (r->stack[i].why != UB_BPF_STACK_HOLDER || r->stack[i].tid != tid || r->stack[i].pid != e->pid ||
            ub_unwind(x->unwinder, maps, r->stack[i].capture, &x->raw) < 0)
            continue;
        ub_frames_name(maps, &x->raw, &x->named);
        json_object_set_new(holder, "stack", json_integer(ub_explain_stack(x, &x->named)));
        for (uint32_t k = 0; k < x->named.count; k++) {
            if (x->named.frame[k].role == UB_ROLE_USER && x->named.frame[k].symbol.function) {
                json_t *place = ub_frame_place(&x->named.frame[k], x->w->redact);

                json_object_update(holder, place);
                json_decref(place);
                break;
            }
        }
        break;
    }
    ub_maps_unref(maps);
}

static void set_holder(struct ub_explain *x, const struct ub_event *e, const struct ub_bpf_call *c, json_t *call)
{
    json_t *holder;

    if (c->nr != SYS_futex || c->waker_how != UB_BPF_WAKER_FUTEX)
        return;
    holder = who_json(&c->waker);
    set_holder_stack(x, e, holder, c->waker.tid);
    json_object_set_new(call, "holder", holder);
}

/* A look saw the file while the call went on; it may have been closed since. */
static void take_path(json_t *o, const json_t *seen_call)
{
    json_t *fd = json_object_get(seen_call, "fd"), *path = json_object_get(seen_call, "fd_path");

    if (path && !json_object_get(o, "fd_path") && json_equal(fd, json_object_get(o, "fd")))
        json_object_set(o, "fd_path", path);
}

/* ---- the line ---- */

static void set_calls(struct ub_explain *x, const struct ub_event *e, const char *cause, const json_t *seen_call,
                      json_t *line)
{
    const struct ub_bpf_turn *t = &e->reasons->turn;
    const struct ub_bpf_call *main_call = dominant(t);
    json_t *list = json_array(), *via = json_object_get(seen_call, "via");
    uint64_t least = (t->end - t->start) / 100;

    for (uint32_t i = 0; i < t->call_count && i < UB_BPF_CALLS; i++) {
        const struct ub_bpf_call *c = &t->call[i];
        json_t *o;

        if (!c->count || (c != main_call && c->total_ns < least))
            continue;
        o = call_json(x, e->pid, c);
        if (c == main_call) {
            const char *name = json_string_value(json_object_get(o, "name"));
            const char *seen = json_string_value(json_object_get(seen_call, "name"));

            if (via && seen && strcmp(seen, name) == 0)
                json_object_set(o, "via", via);
            if (seen && strcmp(seen, name) == 0)
                take_path(o, seen_call);
            set_holder(x, e, c, o);
            if (strcmp(cause, "cpu") != 0)
                json_object_set(line, "call", o);
        }
        json_array_append_new(list, o);
    }
    if (json_array_size(list))
        json_object_set_new(line, "calls", list);
    else
        json_decref(list);
}

void ub_reasons_write(struct ub_explain *x, const struct ub_event *e, const char *cause, const json_t *seen_call,
                      json_t *line)
{
    const struct ub_bpf_turn *t = &e->reasons->turn;
    const struct ub_bpf_accounts *a = &t->accounts;

    set_calls(x, e, cause, seen_call, line);
    json_object_set_new(line, "syscalls", json_integer((json_int_t)a->syscalls));
    if (a->fault_ns || a->major_faults)
        json_object_set_new(
            line, "pagefaults",
            json_pack("{s:I, s:I}", "blocked_ns", (json_int_t)a->fault_ns, "major", (json_int_t)a->major_faults));
    if (a->stopped_ns)
        json_object_set_new(line, "stopped_ns", json_integer((json_int_t)a->stopped_ns));
    if (t->unclear_ns >= UB_UNCLEAR_MIN_NS && x->w->agentless) /* an agent knows when its turns begin */
        json_object_set_new(line, "unclear_start_ns", json_integer((json_int_t)t->unclear_ns));
    if (t->certain_ns < x->w->threshold_ns && x->w->agentless && t->unclear_ns)
        json_object_set_new(line, "unclear", json_true());
    if (t->neighbour_ns && t->neighbour.tid) {
        json_t *who = who_json(&t->neighbour);

        json_object_set_new(who, "waited_ns", json_integer((json_int_t)t->neighbour_ns));
        json_object_set_new(line, "neighbour", who);
    }
}

/* A stack of the kernel's as if it had been a look, with what is known of the call. */
bool ub_reasons_as_look(const struct ub_explain *x, const struct ub_event *e, uint32_t i, struct ub_event *ret)
{
    const struct ub_reasons *r = e->reasons;
    const struct ub_capture *c = r->stack[i].capture;

    if (r->stack[i].why == UB_BPF_STACK_HOLDER)
        return false;
    *ret = *e;
    ret->kind = UB_EVENT_SAMPLE;
    ret->capture = r->stack[i].capture;
    ret->args = ret->fd_link = NULL;
    ret->fd = -1;
    for (uint32_t k = 0; k < r->turn.call_count && k < UB_BPF_CALLS && !x->w->redact; k++) {
        const struct ub_bpf_call *call = &r->turn.call[k];
        int arg = ub_syscall_fd_arg(call->nr);

        if (c->nr != (int64_t)call->nr || !call->detailed || memcmp(c->arg, call->arg, sizeof(c->arg)) != 0)
            continue;
        ret->args = arguments(call);
        ret->fd = arg >= 0 ? (int)call->arg[arg] : -1;
        if (arg >= 0 && same_file(e->pid, ret->fd, call->inode))
            ret->fd_link = ub_fd_link(e->pid, ret->fd);
        break;
    }
    return true;
}

void ub_reasons_tell_losses(struct ub_explain *x,
                            void (*note)(struct ub_explain *x, const char *level, const char *text))
{
    struct ub_bpf_losses lost;
    char text[256];

    ub_bpf_losses(x->w->bpf, &lost);
    if (lost.no_slot || lost.threads) {
        snprintf(text, sizeof(text),
                 "%u threads were not watched from the kernel: all %u slots were taken, or no memory",
                 lost.no_slot + lost.threads, (unsigned)UB_BPF_SLOTS);
        note(x, "warning", text);
    }
    if (lost.records) {
        snprintf(text, sizeof(text),
                 "%llu records of the kernel did not fit the ring buffer: some stalls lack their reasons",
                 (unsigned long long)lost.records);
        note(x, "warning", text);
    }
    if (lost.unclear && x->w->agentless) {
        snprintf(text, sizeof(text),
                 "%llu times a loop worked for longer than the threshold without a pause, perhaps in several short "
                 "turns: its "
                 "system calls were not looked at in time to tell. No stall is counted for these (unclear)",
                 (unsigned long long)lost.unclear);
        note(x, "warning", text);
    }
}
