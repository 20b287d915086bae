/* The frames of a thread, from its innermost outwards. */
#include "python_impl.h"

#include "pidns.h"

#include <errno.h>
#include <stdio.h>

#define INTERPRETERS_MAX 64u
#define STATE_MAX        512u
#define FRAME_MAX        256u
#define STEPS_MAX        (4u * UB_PYTHON_FRAMES_MAX) /* frames of no code included */
#define READINGS         3

/* ---- threads --------------------------------------------------------- */

pid_t ub_python_thread_tid(const struct ub_python *py, uint64_t state)
{
    const struct ub_python_layout *l = &py->layout;
    uint64_t value;
    int tid;

    if (l->thread_tid != UB_PYTHON_NONE)
        return ub_python_read_pointer(py, state + l->thread_tid, &value) && value < INT32_MAX ? (pid_t)value : 0;
    if (!ub_python_read_pointer(py, state + l->thread_pthread, &value) ||
        !ub_python_read(py, value + py->tid_in_pthread, &tid, sizeof(tid)))
        return 0;
    return tid;
}

/*
 * A thread has a state in each interpreter that it has been in; it runs in the
 * one that has frames. Where several have, it is not known which one runs now.
 */
static uint64_t choose(struct ub_python *py, const uint64_t *state, uint32_t count)
{
    uint64_t chosen = 0;

    if (count == 1)
        return state[0];
    for (uint32_t i = 0; i < count; i++) {
        if (!ub_python_innermost(py, state[i]))
            continue;
        if (chosen)
            return 0;
        chosen = state[i];
    }
    return chosen;
}

void ub_python_each_thread(struct ub_python *py, void (*see)(struct ub_python *py, uint64_t state, void *arg),
                           void *arg)
{
    const struct ub_python_layout *l = &py->layout;
    uint64_t interp = 0, state = 0;
    uint32_t threads = 0;

    ub_python_read_pointer(py, py->runtime + l->runtime_interpreters, &interp);
    for (uint32_t i = 0; interp && i < INTERPRETERS_MAX; i++) {
        if (!ub_python_read_pointer(py, interp + l->interp_threads, &state))
            break;
        while (state && threads++ < UB_PYTHON_THREADS_MAX) {
            see(py, state, arg);
            if (!ub_python_read_pointer(py, state + l->thread_next, &state))
                break;
        }
        if (!ub_python_read_pointer(py, interp + l->interp_next, &interp))
            break;
    }
}

struct states {
    pid_t tid;
    uint32_t count;
    uint64_t state[8];
};

static void keep_state(struct ub_python *py, uint64_t state, void *arg)
{
    struct states *s = arg;

    if (s->count < UB_ARRAY_LEN(s->state) && ub_python_thread_tid(py, state) == s->tid)
        s->state[s->count++] = state;
}

/* With one interpreter a thread has one state. */
static bool is_only(const struct ub_python *py, uint64_t interp)
{
    uint64_t head, next;

    return ub_python_read_pointer(py, py->runtime + py->layout.runtime_interpreters, &head) && head == interp &&
           ub_python_read_pointer(py, interp + py->layout.interp_next, &next) && next == 0;
}

uint64_t ub_python_thread(struct ub_python *py, pid_t tid)
{
    struct ub_python_thread *slot;
    struct states found;
    uint64_t interp;

    if (py->foreign)
        tid = ub_pidns_inner(py->pid, tid);
    found = (struct states){.tid = tid};
    for (uint32_t i = 0; i < UB_ARRAY_LEN(py->thread); i++) {
        const struct ub_python_thread *t = &py->thread[i];

        /* Memory of a state that is gone may still look like it, but then the thread is gone too. */
        if (t->tid == tid && ub_python_thread_tid(py, t->state) == tid &&
            ub_python_read_pointer(py, t->state + py->layout.thread_interp, &interp) && is_only(py, interp) &&
            ub_python_innermost(py, t->state))
            return t->state;
    }
    ub_python_each_thread(py, keep_state, &found);
    slot = &py->thread[py->thread_next++ % UB_ARRAY_LEN(py->thread)];
    slot->tid = tid;
    slot->state = found.count ? choose(py, found.state, found.count) : 0;
    return slot->state;
}

uint64_t ub_python_innermost(struct ub_python *py, uint64_t state)
{
    uint64_t frame = 0;

    if (!state || !ub_python_read_pointer(py, state + py->layout.thread_frame, &frame) || !frame)
        return 0;
    if (py->layout.cframe_current != UB_PYTHON_NONE &&
        !ub_python_read_pointer(py, frame + py->layout.cframe_current, &frame))
        return 0;
    return frame;
}

/* ---- frames ---------------------------------------------------------- */

static int32_t offset_of(const struct ub_python_layout *l, const uint8_t *bytes, size_t size, uint64_t code_bytes)
{
    uint64_t at = ub_python_u64(bytes, size, l->frame_instruction);

    switch (l->instruction) {
    case UB_PYTHON_LASTI_BYTES:
        return (int32_t)at;
    case UB_PYTHON_LASTI_UNITS:
        return (int32_t)at > INT32_MAX / 2 || (int32_t)at < 0 ? -1 : 2 * (int32_t)at;
    case UB_PYTHON_POINTER:
        break;
    }
    return at >= code_bytes && at - code_bytes < INT32_MAX ? (int32_t)(at - code_bytes) : -1;
}

static uint64_t generator_of(const struct ub_python_layout *l, const uint8_t *bytes, size_t size, uint64_t address)
{
    if (l->frame_generator != UB_PYTHON_NONE)
        return ub_python_u64(bytes, size, l->frame_generator);
    if (l->frame_owner != UB_PYTHON_NONE && (int8_t)bytes[l->frame_owner] == l->owner_generator)
        return address - l->generator_frame;
    return 0;
}

#define TAGS 3ull /* 3.14: of the references in a frame; objects are aligned to more */

/* What one frame says. 1; 0: it is no frame of Python code, but where the interpreter was entered; -1: it makes no
 * sense. */
static int decode(struct ub_python *py, uint64_t address, const uint8_t *bytes, size_t size,
                  struct ub_python_frame *ret)
{
    const struct ub_python_layout *l = &py->layout;
    uint64_t code_bytes;

    if (l->owner_c >= 0 && (int8_t)bytes[l->frame_owner] >= l->owner_c)
        return 0;
    *ret = (struct ub_python_frame){.address = address, .generator = generator_of(l, bytes, size, address)};
    ret->code = ub_python_code(py, ub_python_u64(bytes, size, l->frame_code) & ~TAGS, &code_bytes);
    if (!ret->code)
        return -1;
    ret->offset = offset_of(l, bytes, size, code_bytes);
    ret->entry = l->owner_c < 0 && (l->frame_entry == UB_PYTHON_NONE || bytes[l->frame_entry]);
    return 1;
}

uint32_t ub_python_walk(struct ub_python *py, uint64_t frame, struct ub_python_frame *ret, uint32_t max,
                        bool *ret_complete)
{
    const struct ub_python_layout *l = &py->layout;
    uint8_t bytes[FRAME_MAX];
    size_t size = l->frame_size < sizeof(bytes) ? l->frame_size : sizeof(bytes);
    uint32_t count = 0;

    *ret_complete = false;
    for (uint32_t step = 0; frame && step < STEPS_MAX; step++) {
        int kind;

        if (count == max || frame % 8 || !ub_python_read(py, frame, bytes, size))
            return count;
        kind = decode(py, frame, bytes, size, &ret[count]);
        if (kind < 0)
            return count;
        if (kind == 0 && count > 0)
            ret[count - 1].entry = true;
        count += (uint32_t)kind;
        frame = ub_python_u64(bytes, size, l->frame_back);
    }
    *ret_complete = frame == 0;
    if (count > 0 && frame == 0)
        ret[count - 1].entry = true;
    return count;
}

_Static_assert(UB_CALLS_FRAMES < UB_PYTHON_FRAMES_MAX, "what a thread has kept fits a look");

uint32_t ub_python_own(struct ub_python *py, const struct ub_call_frame *frame, uint32_t count,
                       struct ub_python_look *ret)
{
    const struct ub_python_layout *l = &py->layout;
    size_t size = l->frame_size < UB_CALLS_FRAME ? l->frame_size : UB_CALLS_FRAME;
    uint64_t back = 0;

    memset(ret, 0, offsetof(struct ub_python_look, frame));
    ret->proof = UB_PYTHON_STILL;
    if ((l->frame_owner != UB_PYTHON_NONE && l->frame_owner >= size) ||
        (l->frame_entry != UB_PYTHON_NONE && l->frame_entry >= size))
        return 0;
    for (uint32_t i = 0; !py->gone && i < count; i++) {
        int kind = decode(py, frame[i].address, frame[i].bytes, size, &ret->frame[ret->count]);

        if (kind < 0)
            return ret->count;
        if (kind == 0 && ret->count > 0)
            ret->frame[ret->count - 1].entry = true;
        ret->count += (uint32_t)kind;
        back = ub_python_u64(frame[i].bytes, size, l->frame_back);
    }
    ret->complete = back == 0;
    if (ret->count > 0 && ret->complete)
        ret->frame[ret->count - 1].entry = true;
    return ret->count;
}

void ub_python_make_frame(const struct ub_python *py, uint64_t code, uint64_t instruction, struct ub_call_frame *ret)
{
    const struct ub_python_layout *l = &py->layout;

    if (py->gone || l->frame_code + sizeof(code) > UB_CALLS_FRAME ||
        l->frame_instruction + sizeof(instruction) > UB_CALLS_FRAME)
        return;
    memcpy(ret->bytes + l->frame_code, &code, sizeof(code));
    memcpy(ret->bytes + l->frame_instruction, &instruction, sizeof(instruction));
}

/* ---- a look ---------------------------------------------------------- */

/* How many outer frames both readings share. */
static uint32_t shared(const struct ub_python_look *a, const struct ub_python_look *b)
{
    uint32_t n = 0;

    while (n < a->count && n < b->count) {
        const struct ub_python_frame *x = &a->frame[a->count - 1 - n], *y = &b->frame[b->count - 1 - n];

        if (x->address != y->address || x->code != y->code)
            break;
        n++;
    }
    return n;
}

static uint32_t read_frames(struct ub_python *py, uint64_t state, struct ub_python_look *look)
{
    look->count =
        ub_python_walk(py, ub_python_innermost(py, state), look->frame, UB_PYTHON_FRAMES_MAX, &look->complete);
    return look->count;
}

/*
 * The frames of a thread that runs change while they are read. What two
 * readings in a row agree on was there all the time between them.
 */
static void read_running(struct ub_python *py, uint64_t state, struct ub_python_look *look)
{
    uint32_t same = 0;

    read_frames(py, state, look);
    for (int i = 0; i < READINGS; i++) {
        read_frames(py, state, &py->again);
        same = shared(look, &py->again);
        if (look->complete && same == look->count && same == py->again.count) {
            look->proof = UB_PYTHON_TWICE;
            return;
        }
        if (i + 1 < READINGS)
            memcpy(look, &py->again, sizeof(*look));
    }
    look->proof = UB_PYTHON_UNPROVEN;
    if (!look->complete || !py->again.complete)
        same = 0;
    memmove(look->frame, look->frame + (look->count - same), same * sizeof(look->frame[0]));
    look->count = same;
}

int ub_python_look(struct ub_python *py, pid_t tid, uint64_t futex, bool running, struct ub_python_look *ret)
{
    uint64_t state = py->gone ? 0 : ub_python_thread(py, tid);

    memset(ret, 0, offsetof(struct ub_python_look, frame));
    if (!state)
        return -ENOENT;
    if (running)
        read_running(py, state, ret);
    else
        read_frames(py, state, ret);
    ub_python_gil(py, state, futex, ret);
    if (ret->count == 0)
        return ret->gil == UB_PYTHON_GIL_UNKNOWN ? -EFAULT : 0;
    ub_python_task(py, ret);
    return 0;
}
