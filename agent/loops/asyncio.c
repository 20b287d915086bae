/*
 * asyncio, CPython 3.8 and later: each step of a task, by the function of its
 * coroutine. uvloop runs the same tasks.
 *
 * The interpreter is not entered. The C task (module _asyncio) resumes its
 * coroutine by a call into the interpreter, PyIter_Send (3.8 and 3.9: _PyGen_Send),
 * through its own GOT like any other module: that one slot is hooked, and from
 * call to return is one step. Nothing of it can be seen from Python, no lock
 * is taken, no reference counted, and the GIL is had by whoever makes the call. What
 * is read is two words of the coroutine that is passed. An exception is thrown into it (a
 * cancelled task) by a call of its method, PyObject_VectorcallMethod, since 3.9.
 * What else a loop runs: asyncio_handle.c.
 */
#include "../offload/decide.h"
#include "../offload/pysteps.h"
#include "asyncio_handle.h"
#include "asyncio_layout.h"

#include "../python/stack.h"
#include "../python/unawaited.h"

/* The interpreter in a process that this copy is of. */
static struct {
    const void *coroutine, *generator; /* types */
    const void *none;
    uint32_t code_at; /* 0: not known */
} python[UB_LOOP_COPIES];

static const struct ub_shape step = {.kind = UB_CALLBACK_TASK, .library = UB_LOOP_ASYNCIO};

/*
 * Address of the coroutine's code object, 0 where it is none of the interpreter's
 * own (compiled by Cython ...) or of a version that is not known. Builds whose objects
 * begin differently (free-threaded ones) fail the comparison of types.
 */
static uint64_t code_of(uint32_t copy, uintptr_t coroutine)
{
    const void *type = *(const void *const *)(coroutine + UB_OBJECT_TYPE);

    if (!python[copy].code_at || !type || (type != python[copy].coroutine && type != python[copy].generator))
        return 0;
    return *(const uint64_t *)(coroutine + python[copy].code_at);
}

/* Whose end a step's is. */
enum ends { ENDS_NOWHERE, ENDS_ITSELF, ENDS_WITH_HANDLE };

static enum ends begin(uint32_t copy, uintptr_t sp, uintptr_t coroutine, uint64_t *ret_code)
{
    const uint64_t argument[3] = {coroutine, 0, 0};
    struct ub_thread *t = &ub_thread;

    if (!ub_likely(t->start && t->generation == ub_process->generation))
        return ENDS_NOWHERE;
    *ret_code = code_of(copy, coroutine);
    if (ub_handle_is_step(t, copy, sp, *ret_code, coroutine))
        return ENDS_WITH_HANDLE;
    return ub_span_begin(t, sp, *ret_code, &step, argument) ? ENDS_ITSELF : ENDS_NOWHERE;
}

/* `bare`: with a bare yield. */
static void finish(enum ends ends, uintptr_t sp, uint64_t code, bool bare)
{
    struct ub_thread *t = &ub_thread;
    uint64_t own;

    if (bare && t->start && t->generation == ub_process->generation)
        ub_handle_yielded(t, code); /* a record of the step counts it */
    if (ends == ENDS_WITH_HANDLE)
        return;
    own = ub_span_end(t, sp, &step);
    if (bare)
        ub_handle_yield_took(t, own);
}

/* PyIter_Send says how it ended and where the value is; _PyGen_Send returns that. */
static bool is_bare(uint32_t copy, uint64_t ret, uint64_t result)
{
    if (!python[copy].none)
        return false;
    return result ? (int32_t)ret == 1 && *(const uint64_t *)(uintptr_t)result == (uintptr_t)python[copy].none
                  : ret == (uintptr_t)python[copy].none;
}

/* The interpreter's, or (where calls move) the way round by a fiber. */
static uint64_t resume(uint64_t (*call)(uintptr_t, uint64_t, uint64_t), uintptr_t coroutine, uint64_t code, uint64_t a,
                       uint64_t b)
{
    if (ub_unlikely(ub_offload_mode != UB_OFFLOAD_OFF))
        return ub_pysteps_run(call, coroutine, code, a, b);
    return call(coroutine, a, b);
}

/* The call needs its result kept across the end of the span: both have three words of arguments at most. */
static uint64_t send(uint64_t (*call)(uintptr_t, uint64_t, uint64_t), uint32_t copy, uintptr_t coroutine, uint64_t a,
                     uint64_t b)
{
    uintptr_t sp = (uintptr_t)__builtin_frame_address(0);
    uint64_t ret, code = 0;
    enum ends ends = begin(copy, sp, coroutine, &code);

    if (ends == ENDS_NOWHERE)
        return resume(call, coroutine, code, a, b);
    ret = resume(call, coroutine, code, a, b);
    finish(ends, sp, code, is_bare(copy, ret, b));
    return ret;
}

/* A method of a coroutine's: the C task calls throw(), and nothing else. */
static uint64_t call_method(uint64_t (*call)(uint64_t, const uintptr_t *, uint64_t, uint64_t), uint32_t copy,
                            uint64_t name, const uintptr_t *args, uint64_t count, uint64_t names)
{
    uintptr_t sp = (uintptr_t)__builtin_frame_address(0);
    uint64_t ret, code = 0;
    enum ends ends;

    if ((count & ~(1ull << 63)) == 0 || code_of(copy, args[0]) == 0)
        return call(name, args, count, names);
    ends = begin(copy, sp, args[0], &code);
    if (ends == ENDS_NOWHERE)
        return call(name, args, count, names);
    ret = call(name, args, count, names);
    finish(ends, sp, code, is_bare(copy, ret, 0));
    return ret;
}

/* clang-format off */
#define FUNCTIONS(X) \
    X(uint64_t, PyIter_Send, (uintptr_t coroutine, uint64_t value, uint64_t result), (coroutine, value, result)) \
    X(uint64_t, _PyGen_Send, (uintptr_t coroutine, uint64_t value), (coroutine, value, 0))

enum { FUNCTIONS(UB_LOOP_ID) ID_PyObject_VectorcallMethod, IDS };
static void *original[IDS][UB_LOOP_COPIES];

#define ARGUMENTS(...) __VA_ARGS__
#define HOOK(copy, type, name, params, args)                                                                           \
    static type hook##copy##_##name params                                                                             \
    {                                                                                                                  \
        return send((uint64_t(*)(uintptr_t, uint64_t, uint64_t))original[ID_##name][copy], copy, ARGUMENTS args);      \
    }
#define HOOK_0(type, name, params, args) HOOK(0, type, name, params, args)
#define HOOK_1(type, name, params, args) HOOK(1, type, name, params, args)

FUNCTIONS(HOOK_0)
FUNCTIONS(HOOK_1)

#define HOOK_METHOD(copy)                                                                                              \
    static uint64_t hook##copy##_PyObject_VectorcallMethod(uint64_t name, const uintptr_t *args, uint64_t count,       \
                                                           uint64_t names)                                             \
    {                                                                                                                  \
        return call_method((uint64_t(*)(uint64_t, const uintptr_t *, uint64_t, uint64_t))                              \
                               original[ID_PyObject_VectorcallMethod][copy],                                           \
                           copy, name, args, count, names);                                                            \
    }
HOOK_METHOD(0)
HOOK_METHOD(1)

static const struct ub_loop_hook hooks[] = {
    FUNCTIONS(UB_LOOP_ROW)
    UB_LOOP_ROW(uint64_t, PyObject_VectorcallMethod, (), ())
};
/* clang-format on */

enum {
    DATA_VERSION,
    DATA_COROUTINE,
    DATA_GENERATOR,
    DATA_STATE,
    DATA_NONE,
    DATA_CONTEXT,
    DATA_TYPE,
    DATA_FUNCTION,
    DATA_METHOD,
    DATA_C_FUNCTION,
    DATA_CURRENT, /* until 3.12, and since */
    DATA_CURRENT_3_13
};
static const char *const data[] = {"Py_Version",
                                   "PyCoro_Type",
                                   "PyGen_Type",
                                   "PyGILState_GetThisThreadState",
                                   "_Py_NoneStruct",
                                   "PyContext_Type",
                                   "PyType_Type",
                                   "PyFunction_Type",
                                   "PyMethod_Type",
                                   "PyCFunction_Type",
                                   "_PyThreadState_UncheckedGet",
                                   "PyThreadState_GetUnchecked",
                                   NULL};
_Static_assert(UB_ARRAY_LEN(data) <= UB_LOOP_DATA_MAX + 1, "patch.c has room for so many");

/* Py_Version is there since 3.11. */
static uint32_t code_at(uint32_t copy, const unsigned long *version)
{
    if (!version) /* 3.8 and 3.9 are alike */
        return original[ID_PyIter_Send][copy] ? UB_CORO_CODE_3_10 : UB_CORO_CODE_3_9;
    switch (*version >> 16) {
    case 0x030b:
        return UB_CORO_CODE_3_11;
    case 0x030c:
        return UB_CORO_CODE_3_12;
    case 0x030d:
        return UB_CORO_CODE_3_13;
    }
    return 0;
}

static void found(uint32_t copy, void *const *values)
{
    const unsigned long *version = values[DATA_VERSION];
    const struct ub_handle_types types = {.context = values[DATA_CONTEXT],
                                          .type = values[DATA_TYPE],
                                          .function = values[DATA_FUNCTION],
                                          .method = values[DATA_METHOD],
                                          .c_function = values[DATA_C_FUNCTION],
                                          .coroutine = values[DATA_COROUTINE],
                                          .generator = values[DATA_GENERATOR],
                                          .function_code = original[ID_PyIter_Send][copy] ? UB_FUNCTION_CODE_3_10
                                                                                          : UB_FUNCTION_CODE_3_9};

    python[copy].coroutine = values[DATA_COROUTINE];
    python[copy].generator = values[DATA_GENERATOR];
    python[copy].none = values[DATA_NONE];
    python[copy].code_at = code_at(copy, values[DATA_VERSION]);
    ub_python_stack_found(copy, version ? (uint32_t)(*version >> 16) : 0, values[DATA_STATE],
                          values[DATA_CURRENT] ? values[DATA_CURRENT] : values[DATA_CURRENT_3_13]);
    ub_handle_found(copy, &types);
    ub_unawaited_found(copy,
                       version                          ? (uint32_t)(*version >> 16)
                       : original[ID_PyIter_Send][copy] ? 0x030a
                                                        : 0x0309,
                       values[DATA_COROUTINE], values[DATA_TYPE], python[copy].code_at);
    if (version && copy == 0)
        ub_pysteps_found(*version);
}

static void other(uint32_t copy, bool back)
{
    ub_handle_hook(copy, back);
    ub_unawaited_hook(copy, back);
}

static const char *const files[] = {"libpython", "python", NULL};
static const char *const callers[] = {"_asyncio.", NULL};

const struct ub_loop_ops ub_loop_asyncio = {.files = files,
                                            .program = true,
                                            .callers = callers,
                                            .prefix = "",
                                            .hooks = hooks,
                                            .count = IDS,
                                            .originals = original,
                                            .data = data,
                                            .found = found,
                                            .other = other};
_Static_assert(UB_CORO_CODE_3_8 == UB_CORO_CODE_3_9, "nothing tells them apart");
