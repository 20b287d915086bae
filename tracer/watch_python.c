/*
 * The Python side of a look: what a Python thread's frames, task and GIL say
 * vanishes like its stack, so it is read here, right after that.
 */
#include "watch_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>

/*
 * The stack of a running thread and its Python frames are of two moments; a
 * watcher that got no CPU between makes them of two things.
 */
#define TOGETHER_NS 1000000u

static void tell(struct ub_watch *w, struct ub_process *p, int error, uint32_t version)
{
    if (p->python_told || error == -EAGAIN || error == -ENOENT || error == -EACCES || error == -ENOMEM)
        return;
    p->python_told = true;
    if (error == -ENOTSUP && version >= 0x0308 && version <= 0x030e)
        ub_watch_note(w, "info", "pid %d: a free-threaded Python %u.%u: only its native stacks are shown", (int)p->pid,
                      version >> 8, version & 0xff);
    else if (error == -ENOTSUP && version)
        ub_watch_note(w, "info",
                      "pid %d: Python %u.%u is not one whose frames can be read (3.8 to 3.14 are): only its native "
                      "stacks are shown",
                      (int)p->pid, version >> 8, version & 0xff);
    else
        ub_watch_note(w, "warning",
                      "pid %d: its Python does not look as Python %u.%u does: only its native stacks are shown",
                      (int)p->pid, version >> 8, version & 0xff);
}

static struct ub_python *python_of(struct ub_watch *w, struct ub_process *p)
{
    struct ub_maps *maps = ub_process_maps(p);
    uint32_t version;
    int r = -ENOENT;

    if (!maps)
        return NULL;
    if (maps->hash != p->python_maps) {
        r = ub_python_update(p->pid, maps, &p->python, &version);
        if (r != -EAGAIN)
            p->python_maps = maps->hash;
        if (r < 0)
            tell(w, p, r, version);
    }
    ub_maps_unref(maps);
    return p->python;
}

bool ub_watch_is_python(struct ub_watch *w, struct ub_watched *t)
{
    return t->process && python_of(w, t->process);
}

const struct ub_python_code *ub_watch_python_code(struct ub_watch *w, struct ub_watched *t, uint64_t address)
{
    struct ub_python *py = t->process ? python_of(w, t->process) : NULL;

    return py ? ub_python_code_at(py, address) : NULL;
}

static bool was_still(const struct ub_capture *c)
{
    return c->has_sched && c->proof == UB_PROOF_STILL;
}

/* The thread has not been on a CPU since its stack was taken. */
static bool still(struct ub_watched *t, const struct ub_capture *c)
{
    struct ub_accounting now;

    if (!was_still(c))
        return false;
    ub_watch_account(t, false, &now);
    return now.at_ns && now.sched.slices == c->sched.slices && now.sched.run_ns == c->sched.run_ns;
}

/* Some 10 KB that most looks use a tenth of. */
static struct ub_python_look *trimmed(struct ub_python_look *look)
{
    struct ub_python_look *small =
        realloc(look, offsetof(struct ub_python_look, frame) + (look->count + 1) * sizeof(look->frame[0]));

    if (!small)
        return look;
    return small;
}

struct ub_python_look *ub_watch_python(struct ub_watch *w, struct ub_watched *t, const struct ub_capture *c, bool late)
{
    struct ub_python *py = python_of(w, t->process);
    bool running = late || c->state == UB_THREAD_RUNNING;
    uint64_t futex = c->state == UB_THREAD_BLOCKED && c->nr == SYS_futex ? c->arg[0] : 0;
    struct ub_python_look *look;
    int r;

    if (!py)
        return NULL;
    look = malloc(sizeof(*look));
    if (!look)
        return NULL;
    r = ub_python_look(py, t->tid, futex, running, look);
    if (!running && !still(t, c)) { /* the kernel cannot tell, or it woke meanwhile: its stack is that of the sleep */
        late |= was_still(c);
        running = true;
        r = ub_python_look(py, t->tid, 0, true, look);
    }
    if (r < 0) {
        free(look);
        return NULL;
    }
    if (late || (running && ub_clock_monotonic_ns() - c->at_ns > TOGETHER_NS))
        look->proof = UB_PYTHON_UNPROVEN;
    return trimmed(look);
}

void ub_watch_python_frame(struct ub_watch *w, struct ub_watched *t, uint64_t code, uint64_t instruction,
                           struct ub_call_frame *ret)
{
    struct ub_python *py = t->process ? python_of(w, t->process) : NULL;

    if (py)
        ub_python_make_frame(py, code, instruction, ret);
}

struct ub_python_look *ub_watch_python_own(struct ub_watch *w, struct ub_watched *t, const struct ub_call_frame *frame,
                                           uint32_t count)
{
    struct ub_python *py = t->process ? python_of(w, t->process) : NULL;
    struct ub_python_look *look = py ? malloc(sizeof(*look)) : NULL;

    if (look && ub_python_own(py, frame, count, look) > 0)
        return trimmed(look);
    free(look);
    return NULL;
}

void ub_watch_python_more(struct ub_watch *w, struct ub_watched *t, struct ub_python_look *look)
{
    struct ub_python *py = python_of(w, t->process);

    if (!py)
        return;
    ub_python_see_request(py, look);
    ub_python_see_work(py, look);
    ub_python_see_waiting(py, ub_clock_monotonic_ns(), look);
}
