/*
 * asyncio's handles. Handle._run calls its callback by `self._context.run(...)`: that
 * method's entry in the method table of contextvars.Context is hooked, a
 * pointer in the interpreter's data like any slot of a GOT. Nothing of it can be
 * seen from Python, and every other caller passes straight through: whose call
 * it is says the code object of the frame that makes it.
 *
 * That object is not looked for by name. A task's step is a handle, too: when the C
 * task resumes a coroutine with no Python frame between itself and a call of
 * Context.run, the frame that made that call is Handle._run's. So a loop on which no task
 * has run yet has turns only.
 *
 * uvloop's handles enter their context themselves, by PyContext_Enter and _Exit in their own GOT; which function they
 * call nobody says, the stacks of a slow one do.
 */
#include "asyncio_handle.h"
#include "asyncio_layout.h"

#include "../module.h"
#include "../patch.h"
#include "../python/stack.h"

#include <string.h>

typedef void *context_run(void *context, void *const *args, long count, void *names);

/* PyMethodDef */
struct method {
    const char *name;
    context_run *call;
    int flags;
    const char *text;
};

#define FLAGS_OF_RUN 0x82 /* METH_FASTCALL | METH_KEYWORDS */
#define METHODS_MAX  32u
#define WRAPPED_MAX  4u /* partials of bound methods of partials ... */

static struct {
    struct ub_handle_types types;
    struct method *run; /* NULL: it is not as it should be, and is left alone */
    context_run *original;
    uint64_t handle; /* the code object of Handle._run, 0: not known yet */
    uint64_t opaque; /* a type whose objects have no code object: that of the C tasks' steps, mostly */
} python[UB_LOOP_COPIES];

static const char *name_of(uint64_t callable);

static const struct ub_shape shape = {.kind = UB_CALLBACK_CALLBACK, .library = UB_LOOP_ASYNCIO, .name = name_of};

static uint64_t word(uint64_t address)
{
    return *(const uint64_t *)(uintptr_t)address;
}

static const char *type_name(uint64_t type)
{
    return (const char *)(uintptr_t)word(type + UB_TYPE_NAME);
}

/* The code object that a callable will run, 0: it is none of Python's own. */
static uint64_t code_of(uint32_t copy, uint64_t callable)
{
    const struct ub_handle_types *types = &python[copy].types;

    for (uint32_t i = 0; i < WRAPPED_MAX && callable; i++) {
        uint64_t type = word(callable + UB_OBJECT_TYPE);

        if (type == ub_load_relaxed(&python[copy].opaque))
            break;
        if (type == (uintptr_t)types->function)
            return word(callable + types->function_code);
        if (type != (uintptr_t)types->method && strcmp(type_name(type), "functools.partial") != 0) {
            ub_store_relaxed(&python[copy].opaque, type);
            break;
        }
        callable = word(callable + UB_WRAPPED); /* of either */
    }
    return 0;
}

/* After a slow one: what has no code object has a name. The interpreter holds its arguments as long as the call. */
static const char *name_of(uint64_t callable)
{
    uint64_t type = callable ? word(callable + UB_OBJECT_TYPE) : 0;

    for (uint32_t i = 0; i < UB_LOOP_COPIES && type; i++) {
        const struct ub_handle_types *types = &python[i].types;

        if (type == (uintptr_t)types->c_function)
            return (const char *)(uintptr_t)word(word(callable + UB_C_FUNCTION_DEF));
        if (type == (uintptr_t)types->coroutine || type == (uintptr_t)types->generator)
            return NULL; /* it was a step */
    }
    return NULL;
}

/* ---- asyncio ---------------------------------------------------------------------- */

static inline bool concerned(const struct ub_thread *t)
{
    return ub_likely(t->start) && ub_likely(t->generation == ub_process->generation);
}

/* A handle that was timed, asyncio's or uvloop's. */
__attribute__((always_inline)) static inline void over(struct ub_thread *t, uintptr_t sp)
{
    uint64_t own = ub_span_end(t, sp, &shape);

    if (!concerned(t)) /* a forked child */
        return;
    t->cold->spans.handle.frame = 0;
    if (t->cold->spans.handle.yield)
        ub_handle_yield_took(t, own);
}

__attribute__((always_inline)) static inline void *run(uint32_t copy, void *context, void *const *args, long count,
                                                       void *names)
{
    uintptr_t sp = (uintptr_t)__builtin_frame_address(0);
    struct ub_thread *t = &ub_thread;
    uint64_t frame, code = 0;
    uint64_t argument[3] = {0};
    bool timed;
    void *ret;

    if (!concerned(t) || count < 1)
        return python[copy].original(context, args, count, names);
    frame = ub_python_innermost(copy, &code);
    timed = frame && code == ub_load_relaxed(&python[copy].handle);
    if (timed) {
        argument[0] = (uintptr_t)args[0];
        timed = ub_span_begin(t, sp, code_of(copy, argument[0]), &shape, argument);
    }
    t->cold->spans.handle.sp = sp;
    t->cold->spans.handle.frame = frame;
    t->cold->spans.handle.code = code;
    ret = python[copy].original(context, args, count, names);
    if (timed)
        over(t, sp);
    else if (concerned(t)) /* not a forked child */
        t->cold->spans.handle.frame = 0;
    return ret;
}

static void *run0(void *context, void *const *args, long count, void *names)
{
    return run(0, context, args, count, names);
}

static void *run1(void *context, void *const *args, long count, void *names)
{
    return run(1, context, args, count, names);
}

static context_run *const hook[UB_LOOP_COPIES] = {run0, run1};

bool ub_handle_is_step(struct ub_thread *t, uint32_t copy, uintptr_t sp, uint64_t code, uint64_t coroutine)
{
    struct ub_spans *s = &t->cold->spans;
    struct ub_span_handle *h = &s->handle;
    uint64_t unused;

    if (!h->frame || h->sp <= sp || h->frame != ub_python_innermost(copy, &unused))
        return false;
    h->frame = 0; /* no second one */
    if (s->depth && s->level[s->depth - 1].sp == h->sp && t->start == s->segment) {
        ub_span_rename(t, UB_CALLBACK_TASK, code, coroutine);
        return true;
    }
    if (h->code)
        ub_store_relaxed(&python[copy].handle, h->code);
    return false;
}

/* Context.run in the type's table, NULL: this interpreter's objects look otherwise. */
static struct method *find_run(const struct ub_handle_types *types)
{
    uint64_t context = (uintptr_t)types->context;
    struct method *m;
    const char *name;

    if (!context || !types->type || word(context + UB_OBJECT_TYPE) != (uintptr_t)types->type)
        return NULL; /* free-threaded builds, among others */
    name = type_name(context);
    if (!name || (strcmp(name, "Context") != 0 && strcmp(name, "_contextvars.Context") != 0))
        return NULL;
    m = (struct method *)(uintptr_t)word(context + UB_TYPE_METHODS);
    for (uint32_t i = 0; m && m->name && i < METHODS_MAX; i++, m++) {
        if (strcmp(m->name, "run") == 0)
            return m->flags == FLAGS_OF_RUN ? m : NULL;
    }
    return NULL;
}

void ub_handle_found(uint32_t copy, const struct ub_handle_types *types)
{
    python[copy].types = *types;
    python[copy].handle = 0;
    python[copy].run = ub_python_knows(copy) ? find_run(types) : NULL;
    if (python[copy].run)
        python[copy].original = python[copy].run->call;
}

void ub_handle_hook(uint32_t copy, bool back)
{
    context_run *from = back ? hook[copy] : python[copy].original, *to = back ? python[copy].original : hook[copy];
    void *value;

    if (!python[copy].run || ub_load_relaxed(&python[copy].run->call) != from)
        return;
    memcpy(&value, &to, sizeof(value));
    ub_patch_pointer((void **)&python[copy].run->call, value);
}

/* ---- sleep(0) --------------------------------------------------------------------- */

static __attribute__((noinline)) void tell_yields(struct ub_thread *t, uint64_t code)
{
    const struct ub_record record = {
        .kind = UB_RECORD_YIELDS, .function = code, .callback = UB_CALLBACK_TASK, .library = UB_LOOP_ASYNCIO, .fd = -1};

    ub_ring_put(&t->cold->ring, &record);
}

void ub_handle_yielded(struct ub_thread *t, uint64_t code)
{
    struct ub_span_yield *y = t->cold->spans.yield;
    uint32_t i;

    for (i = 0; i < UB_SPAN_YIELDS && y[i].function && y[i].function != code; i++)
        ;
    t->cold->spans.handle.yield = 0;
    if (!code || i == UB_SPAN_YIELDS)
        return;
    ub_store_relaxed(&y[i].function, code);
    ub_store_release(&y[i].count, y[i].count + 1);
    t->cold->spans.handle.yield = i + 1;
    if (y[i].count == UB_SPAN_YIELDS_TOLD) /* the tracer reads the name while the process is there */
        tell_yields(t, code);
}

void ub_handle_yield_took(struct ub_thread *t, uint64_t spent)
{
    uint64_t i = t->cold->spans.handle.yield - 1;
    struct ub_span_yield *y = &t->cold->spans.yield[i];

    t->cold->spans.handle.yield = 0;
    if (i >= UB_SPAN_YIELDS)
        return;
    ub_store_relaxed(&y->total, y->total + spent);
    if (spent > y->max)
        ub_store_relaxed(&y->max, spent);
}

/* ---- uvloop ------------------------------------------------------------------------- */

/* Whose GetThisThreadState that is: which interpreter of asyncio.c's. */
static const void *uv_state[UB_LOOP_COPIES];

/*
 * Modules are told by the beginning of their file's name, and "loop." may be anybody's. uvloop makes these calls
 * in a few places, so those that were found to be its own are kept: a look into the loader's tables costs as much as
 * the clock. No interpreter unloads its modules.
 */
static bool is_uvloop(const void *address)
{
    static const void *own[8]; /* any of the places, by their last bits */
    const void **kept = &own[((uintptr_t)address >> 2) % UB_ARRAY_LEN(own)];
    const char *name;

    if (ub_likely(ub_load_relaxed(kept) == address))
        return true;
    name = ub_module_name(address);
    if (!name || !strstr(name, "/uvloop/"))
        return false;
    ub_store_relaxed(kept, address);
    return true;
}

typedef int context_switch(void *context);

/* The handle's own frame calls both, Enter and Exit: the same `sp`. */
static void uv_begin(uint32_t copy, uintptr_t sp)
{
    static const uint64_t argument[3];
    struct ub_thread *t = &ub_thread;
    uint64_t code, frame;
    uint32_t of;

    if (!concerned(t))
        return;
    of = ub_python_copy_of(uv_state[copy]);
    frame = of < UB_LOOP_COPIES && python[of].run ? ub_python_innermost(of, &code) : 0;
    if (!frame || !ub_span_begin(t, sp, 0, &shape, argument))
        return;
    t->cold->spans.handle.sp = sp;
    t->cold->spans.handle.frame = frame;
    t->cold->spans.handle.code = 0;
}

static void uv_end(uintptr_t sp)
{
    struct ub_thread *t = &ub_thread;

    if (!concerned(t))
        return;
    if (t->cold->spans.depth)
        over(t, sp);
    else
        t->cold->spans.handle.frame = 0;
}

/* clang-format off */
#define FUNCTIONS(X) \
    X(int, PyContext_Enter, (void *context), (context)) \
    X(int, PyContext_Exit, (void *context), (context))
/* clang-format on */

enum { FUNCTIONS(UB_LOOP_ID) IDS };
static void *original[IDS][UB_LOOP_COPIES];

#define HOOK(copy)                                                                                                     \
    static int hook##copy##_PyContext_Enter(void *context)                                                             \
    {                                                                                                                  \
        int ret = ((context_switch *)original[ID_PyContext_Enter][copy])(context);                                     \
        if (ret == 0 && is_uvloop(__builtin_return_address(0)))                                                        \
            uv_begin(copy, (uintptr_t)__builtin_frame_address(0));                                                     \
        return ret;                                                                                                    \
    }                                                                                                                  \
    static int hook##copy##_PyContext_Exit(void *context)                                                              \
    {                                                                                                                  \
        if (is_uvloop(__builtin_return_address(0)))                                                                    \
            uv_end((uintptr_t)__builtin_frame_address(0));                                                             \
        return ((context_switch *)original[ID_PyContext_Exit][copy])(context);                                         \
    }

HOOK(0)
HOOK(1)

static const struct ub_loop_hook hooks[] = {FUNCTIONS(UB_LOOP_ROW)};

static const char *const data[] = {"PyGILState_GetThisThreadState", NULL};

static void found(uint32_t copy, void *const *values)
{
    uv_state[copy] = values[0];
}

static const char *const files[] = {"libpython", "python", NULL};
static const char *const callers[] = {"loop.", NULL};

const struct ub_loop_ops ub_loop_uvloop = {.files = files,
                                           .program = true,
                                           .callers = callers,
                                           .prefix = "PyContext_",
                                           .hooks = hooks,
                                           .count = IDS,
                                           .originals = original,
                                           .data = data,
                                           .found = found};
