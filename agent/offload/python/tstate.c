/*
 * One minor version of CPython: what of a thread's state belongs to a stack, and the future that a
 * task waits for while its step is suspended. Built against that version's public headers.
 *
 * A suspended step looks to asyncio like one that awaits a future: so contexts, current_task, the order of
 * callbacks and uvloop are theirs to get right. Only cancelling differs: the coroutine is in the midst of a
 * call and takes no exception; the future remembers it, and the task is told when it goes on.
 *
 * Longer than most files here: all that is compiled against one version's headers stands in one object, so that the
 * rest of the agent depends on none.
 */
#include <Python.h>
#include <structmember.h>

#include "functions.h"
#include "own.h"
#include "python.h"

#include <semaphore.h>
#include <stddef.h>
#include <string.h>

#if PY_VERSION_HEX >= 0x030e0000 || PY_VERSION_HEX < 0x030b0000 || defined(Py_GIL_DISABLED)
#error "not a version whose thread state is known here"
#endif
#define IS_3_11 (PY_VERSION_HEX < 0x030c0000)
#define IS_3_13 (PY_VERSION_HEX >= 0x030d0000)

#define EXPORT __attribute__((visibility("default")))

/* What belongs to a stack. */
struct kept {
#if IS_3_13
    struct _PyInterpreterFrame *frame;
    PyObject *delete_later;
#else
    _PyCFrame *cframe;
    int trash;
#endif
#if IS_3_11
    int recursion;
    PyObject *type, *value, *traceback;
#else
    int recursion, c_recursion;
    PyObject *exception;
#endif
    _PyErr_StackItem *exc_info;
    PyObject *context;
    _PyStackChunk *chunk;
    PyObject **top, **limit;
    int tracing;
    int inside; /* ub_python_functions_inside */
};

struct state {
    struct kept own, resumer;
#if !IS_3_13
    _PyCFrame root;
#endif
    _PyErr_StackItem exc_state;
};
_Static_assert(sizeof(struct state) <= sizeof(struct ub_python_state), "UB_PYTHON_STATE_WORDS");

static const struct ub_python_agent *agent;
/* Of asyncio: functions in C, so that no handler of a signal runs in the midst of them; and the class of our futures.
 */
static PyObject *get_loop, *set_loop, *loop_or_none, *enter_task, *leave_task, *current_tasks, *wait_class;
static PyObject *start_code; /* of threading.Thread.start */

static struct state *state_of(struct ub_python_state *s)
{
    return (struct state *)s->word;
}

/* Both directions in one list: what is kept is what is loaded. */
#if IS_3_13
#define EACH_FRAME(X) X(frame, current_frame) X(delete_later, delete_later)
#elif IS_3_11
#define EACH_FRAME(X) X(cframe, cframe) X(trash, trash_delete_nesting)
#else
#define EACH_FRAME(X) X(cframe, cframe) X(trash, trash.delete_nesting)
#endif
#if IS_3_11
#define EACH_EXCEPTION(X)                                                                                              \
    X(recursion, recursion_remaining) X(type, curexc_type) X(value, curexc_value) X(traceback, curexc_traceback)
#else
#define EACH_EXCEPTION(X)                                                                                              \
    X(recursion, py_recursion_remaining) X(c_recursion, c_recursion_remaining) X(exception, current_exception)
#endif
#define EACH(X)                                                                                                        \
    EACH_FRAME(X)                                                                                                      \
    EACH_EXCEPTION(X)                                                                                                  \
    X(exc_info, exc_info)                                                                                              \
    X(context, context) X(chunk, datastack_chunk) X(top, datastack_top) X(limit, datastack_limit) X(tracing, tracing)

static void save(const PyThreadState *ts, struct kept *k)
{
#define SAVE(ours, theirs) k->ours = ts->theirs;
    EACH(SAVE)
    k->inside = ub_python_functions_inside;
}

static void load(PyThreadState *ts, const struct kept *k)
{
#define LOAD(ours, theirs) ts->theirs = k->ours;
    EACH(LOAD)
    ub_python_functions_inside = k->inside;
    ts->context_ver++;
}

static void first(struct ub_python_state *s)
{
    PyThreadState *ts = PyThreadState_Get();
    struct state *st = state_of(s);
    struct kept fresh;

    save(ts, &st->resumer);
    fresh = st->resumer;
#if IS_3_13
    fresh.frame = NULL;
    fresh.delete_later = NULL;
#else
    st->root = (_PyCFrame){.current_frame = NULL, .previous = &ts->root_cframe};
#if IS_3_11
    st->root.use_tracing = ts->cframe->use_tracing;
#endif
    fresh.cframe = &st->root;
#endif
    st->exc_state = (_PyErr_StackItem){0};
    fresh.exc_info = &st->exc_state;
    Py_XINCREF(fresh.context);
    /* Of an earlier step on this fiber: its first chunk of the interpreter's own stack is never given back. */
    fresh.chunk = st->own.chunk;
    fresh.top = st->own.top;
    fresh.limit = st->own.limit;
    load(ts, &fresh);
}

/* What was raised belongs to `to` now. */
static void move_exception(struct kept *from, struct kept *to)
{
#if IS_3_11
    to->type = from->type;
    to->value = from->value;
    to->traceback = from->traceback;
    from->type = from->value = from->traceback = NULL;
#else
    to->exception = from->exception;
    from->exception = NULL;
#endif
}

static void leave(struct ub_python_state *s, enum ub_python_leave how)
{
    PyThreadState *ts = PyThreadState_Get();
    struct state *st = state_of(s);

    save(ts, &st->own);
    if (how == UB_PYTHON_OVER)
        move_exception(&st->own, &st->resumer);
    load(ts, &st->resumer);
    if (how != UB_PYTHON_SUSPENDED)
        Py_CLEAR(st->own.context);
}

static void deliver(struct ub_python_state *s)
{
    PyThreadState *ts = PyThreadState_Get();
    struct kept now;

    save(ts, &now);
    move_exception(&state_of(s)->own, &now);
    load(ts, &now);
}

static void enter(struct ub_python_state *s)
{
    PyThreadState *ts = PyThreadState_Get();
    struct state *st = state_of(s);

    save(ts, &st->resumer);
#if IS_3_11
    st->own.cframe->use_tracing = ts->cframe->use_tracing;
#endif
    load(ts, &st->own);
}

static PyThreadState *current(void)
{
#if IS_3_13
    return PyThreadState_GetUnchecked();
#else
    return _PyThreadState_UncheckedGet();
#endif
}

static bool holds_gil(void)
{
    PyThreadState *ts = current();

    return ts && ts == PyGILState_GetThisThreadState();
}

/* The newest comes first. Whose state a thread has set aside while it blocks, nobody can tell. */
static bool alone(void)
{
    return PyInterpreterState_Head() == PyInterpreterState_Main();
}

static void take_gil(void)
{
    PyEval_RestoreThread(PyGILState_GetThisThreadState());
}

static void give_gil(void)
{
    PyEval_SaveThread();
}

/* ---- what handlers of signals raise ------------------------------------------------------------- */

/*
 * What we call in Python gives handlers of signals their chance, and what they raise is not for us: it is raised
 * again where the program's own code goes on.
 */
static struct {
    PyObject *type, *value, *traceback;
} put_off;

static int raise_again(void *unused)
{
    PyObject *type = put_off.type, *value = put_off.value, *traceback = put_off.traceback;

    if (!type)
        return 0;
    put_off.type = put_off.value = put_off.traceback = NULL;
    PyErr_Restore(type, value, traceback);
    return -1;
}

static void raise_later(PyObject *type, PyObject *value, PyObject *traceback)
{
    if (put_off.type || Py_AddPendingCall(raise_again, NULL) < 0) {
        PyErr_Restore(type, value, traceback);
        PyErr_WriteUnraisable(NULL);
        return;
    }
    put_off.type = type;
    put_off.value = value;
    put_off.traceback = traceback;
}

static bool interrupted(void)
{
    PyObject *type, *value, *traceback;

    if (PyErr_Occurred() || PyErr_CheckSignals() == 0)
        return false;
    PyErr_Fetch(&type, &value, &traceback);
    raise_later(type, value, traceback);
    return true;
}

/* May be called twice without harm. NULL with an exception: that is its own. Takes over `arguments`. */
static PyObject *insist(PyObject *callable, PyObject *arguments)
{
    PyObject *type = NULL, *value = NULL, *traceback = NULL;
    PyObject *result = callable && arguments ? PyObject_CallObject(callable, arguments) : NULL;

    if (!result && callable && arguments) {
        PyErr_Fetch(&type, &value, &traceback);
        result = PyObject_CallObject(callable, arguments);
    }
    Py_XDECREF(arguments);
    if (!type)
        return result;
    if (result) {
        raise_later(type, value, traceback);
        return result;
    }
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return NULL;
}

static PyObject *insist_on(PyObject *object, const char *method_name, PyObject *arguments)
{
    PyObject *bound = PyObject_GetAttrString(object, method_name);
    PyObject *result = insist(bound, arguments);

    if (!bound)
        Py_XDECREF(arguments);
    Py_XDECREF(bound);
    return result;
}

/* ---- the future ----------------------------------------------------------------------------------- */

/* The C task cannot be told to wait for less than a future. */
static const char source[] = "import asyncio\n"
                             "class UnblockWait(asyncio.Future):\n"
                             "    cancels = ()\n"
                             "    task = None\n"
                             "    def cancel(self, msg=None):\n"
                             "        self.cancels += (msg,)\n"
                             "        return True\n";

static PyObject *current_task(PyObject *loop)
{
    PyObject *task = PyDict_GetItemWithError(current_tasks, loop);

    return task ? task : Py_None; /* borrowed */
}

static void *wait_again(void *loop)
{
    int collects;
    PyObject *wait = NULL, *names = Py_BuildValue("{sO}", "loop", (PyObject *)loop), *none = PyTuple_New(0);

    collects = ub_own_begins(agent->own);
    for (int i = 0; names && none && !wait && i < 2; i++) { /* asyncio's debug mode runs Python here */
        PyObject *type, *value, *traceback;

        wait = PyObject_Call(wait_class, none, names);
        if (wait || i > 0)
            break;
        PyErr_Fetch(&type, &value, &traceback);
        raise_later(type, value, traceback);
    }
    Py_XDECREF(names);
    Py_XDECREF(none);
    if (wait && (PyObject_SetAttrString(wait, "task", current_task(loop)) < 0 ||
                 PyObject_SetAttrString(wait, "_asyncio_future_blocking", Py_True) < 0))
        Py_CLEAR(wait);
    ub_own_ends(agent->own, collects);
    return wait;
}

static bool is_asyncios(PyFrameObject *frame)
{
    PyCodeObject *code = PyFrame_GetCode(frame);
    PyObject *globals = PyFrame_GetGlobals(frame), *module = PyDict_GetItemString(globals, "__name__");
    const char *name = module && PyUnicode_Check(module) ? PyUnicode_AsUTF8(module) : NULL;
    bool is = name && strncmp(name, "asyncio.", 8) == 0 &&
              !(code->co_flags & (CO_COROUTINE | CO_ITERABLE_COROUTINE | CO_ASYNC_GENERATOR));

    PyErr_Clear();
    Py_DECREF(globals);
    Py_DECREF(code);
    return is;
}

/*
 * In debug mode each future and each handle looks at the stack, and reads files for it, in the midst of a function of
 * asyncio's: gather() would be told of tasks that it has not counted yet, and wait for ever. No lock is waited for in
 * that; who waits for one in other functions of asyncio's (run_in_executor) is left, since who has it may be below.
 */
static bool is_half_done(PyThreadState *ts, PyObject *loop)
{
    PyObject *debug = PyObject_CallMethod(loop, "get_debug", NULL);
    PyFrameObject *frame = debug == Py_True ? PyThreadState_GetFrame(ts) : NULL, *back;
    bool found = false;

    PyErr_Clear();
    Py_XDECREF(debug);
    for (; frame; frame = back) {
        found = found || is_asyncios(frame);
        back = PyFrame_GetBack(frame);
        Py_DECREF(frame);
    }
    return found;
}

/* The future and its loop. */
/*
 * Whether the thread's loop runs this coroutine's task. It does not where the step turns a loop of its own, between two
 * steps in that, or turns the same one once more.
 */
static bool is_its_task(PyObject *loop, uintptr_t coroutine)
{
    PyObject *task = current_task(loop), *of;
    bool is;

    if (task == Py_None)
        return false;
    of = PyObject_GetAttrString(task, "_coro");
    is = !of || of == (PyObject *)coroutine; /* a task of the program's own kind may not have it */
    Py_XDECREF(of);
    PyErr_Clear();
    return is;
}

static bool make(PyThreadState *ts, uintptr_t coroutine, bool lock, void **loop, void **future)
{
    bool may;

    *loop = PyObject_CallNoArgs(get_loop);
    may = *loop && is_its_task(*loop, coroutine) && (lock || !is_half_done(ts, *loop));
    if (may && !*future)
        *future = wait_again(*loop);
    if (may && *future)
        return true;
    Py_XDECREF((PyObject *)*loop);
    *loop = NULL;
    return false;
}

/* Thread.start waits for the new thread's first words, which come at once: not worth leaving a step in its midst. */
static bool starts_thread(PyThreadState *ts)
{
    PyFrameObject *frame = PyThreadState_GetFrame(ts), *back;
    bool found = false;

    for (int i = 0; frame && i < 4 && !found; i++) { /* below Event.wait, Condition.wait */
        PyCodeObject *code = PyFrame_GetCode(frame);

        found = (PyObject *)code == start_code;
        Py_DECREF(code);
        back = PyFrame_GetBack(frame);
        Py_DECREF(frame);
        frame = back;
    }
    Py_XDECREF(frame);
    return found;
}

static bool begin_wait(uintptr_t coroutine, bool gil, bool lock, void **ret_loop, void **future)
{
    PyThreadState *ts = PyGILState_GetThisThreadState();
    PyObject *type, *value, *traceback;
    int collects;
    bool ok;

    if (!ts || !Py_IsInitialized())
        return false;
    if (!gil)
        PyEval_RestoreThread(ts);
    PyErr_Fetch(&type, &value, &traceback);
    collects = ub_own_begins(agent->own);
    /* Tracers and profilers count on frames that end in order. */
    ok = !ts->c_tracefunc && !ts->c_profilefunc && !(lock && starts_thread(ts)) &&
         make(ts, coroutine, lock, ret_loop, future);
    ub_own_ends(agent->own, collects);
    PyErr_Restore(type, value, traceback);
    if (!ok && !gil)
        PyEval_SaveThread();
    return ok;
}

static void end_wait(bool gil, void *future)
{
    Py_XDECREF((PyObject *)future);
    if (!gil)
        PyEval_SaveThread();
}

/* Which task the loop believes to run, and which loop the thread. Neither is ours to lose an exception over. */
static void set_current(PyObject *loop, PyObject *task)
{
    PyObject *was = Py_NewRef(current_task(loop));

    if (was != Py_None)
        Py_XDECREF(PyObject_CallFunctionObjArgs(leave_task, loop, was, NULL));
    if (task != Py_None)
        Py_XDECREF(PyObject_CallFunctionObjArgs(enter_task, loop, task, NULL));
    Py_DECREF(was);
}

static void visit(void *future, struct ub_python_visit *v)
{
    int collects;
    PyObject *type, *value, *traceback, *loop, *task, *running;

    PyErr_Fetch(&type, &value, &traceback);
    collects = ub_own_begins(agent->own);
    loop = PyObject_CallMethod(future, "get_loop", NULL);
    task = PyObject_GetAttrString(future, "task");
    running = PyObject_CallNoArgs(loop_or_none);
    v->before = loop && task && running ? PyTuple_Pack(3, running, loop, current_task(loop)) : NULL;
    if (v->before) {
        Py_XDECREF(PyObject_CallOneArg(set_loop, loop));
        set_current(loop, task);
    }
    Py_XDECREF(loop);
    Py_XDECREF(task);
    Py_XDECREF(running);
    if (PyErr_Occurred())
        PyErr_WriteUnraisable(future);
    ub_own_ends(agent->own, collects);
    PyErr_Restore(type, value, traceback);
}

static void visited(struct ub_python_visit *v)
{
    int collects;
    PyObject *type, *value, *traceback, *before = v->before;

    if (!before)
        return;
    PyErr_Fetch(&type, &value, &traceback);
    collects = ub_own_begins(agent->own);
    set_current(PyTuple_GET_ITEM(before, 1), PyTuple_GET_ITEM(before, 2));
    Py_XDECREF(PyObject_CallOneArg(set_loop, PyTuple_GET_ITEM(before, 0)));
    if (PyErr_Occurred())
        PyErr_WriteUnraisable(before);
    Py_DECREF(before);
    ub_own_ends(agent->own, collects);
    PyErr_Restore(type, value, traceback);
}

/* Whether the loop (asyncio's own) is going to call this. */
static bool is_due(PyObject *loop, PyObject *callback)
{
    PyObject *ready = PyObject_GetAttrString(loop, "_ready");
    Py_ssize_t n = ready ? PySequence_Size(ready) : 0;
    bool found = !ready;

    for (Py_ssize_t i = n; i > 0 && !found; i--) {
        PyObject *handle = PySequence_GetItem(ready, i - 1);
        PyObject *its = handle ? PyObject_GetAttrString(handle, "_callback") : NULL;

        found = its == callback;
        Py_XDECREF(its);
        Py_XDECREF(handle);
    }
    Py_XDECREF(ready);
    PyErr_Clear();
    return found;
}

/* A handler of a signal raised something while the future's callback was on its way to the loop: was it lost? */
static void make_sure(PyObject *future, PyObject *callbacks)
{
    PyObject *loop = PyObject_CallMethod(future, "get_loop", NULL);
    PyObject *pair = PySequence_GetItem(callbacks, 0), *call = loop ? PyObject_GetAttrString(loop, "call_soon") : NULL;

    if (pair && call && PyTuple_GET_SIZE(pair) == 2 && !is_due(loop, PyTuple_GET_ITEM(pair, 0))) {
        PyObject *positional = PyTuple_Pack(2, PyTuple_GET_ITEM(pair, 0), future);
        PyObject *named = Py_BuildValue("{sO}", "context", PyTuple_GET_ITEM(pair, 1));

        Py_XDECREF(positional && named ? PyObject_Call(call, positional, named) : NULL);
        Py_XDECREF(positional);
        Py_XDECREF(named);
    }
    Py_XDECREF(call);
    Py_XDECREF(pair);
    Py_XDECREF(loop);
}

static void set_done(void *future)
{
    int collects;
    PyObject *type, *value, *traceback, *own_type, *own_value, *own_traceback;
    PyObject *done, *callbacks, *result = NULL;

    PyErr_Fetch(&type, &value, &traceback);
    collects = ub_own_begins(agent->own);
    done = PyObject_CallMethod(future, "done", NULL);
    callbacks = PyObject_GetAttrString(future, "_callbacks");
    if (done == Py_False)
        result = PyObject_CallMethod(future, "set_result", "O", Py_None);
    if (done == Py_False && !result) {
        PyErr_Fetch(&own_type, &own_value, &own_traceback);
        if (callbacks && callbacks != Py_None)
            make_sure(future, callbacks);
        if (PyErr_Occurred()) { /* a loop that is closed takes no callbacks: the step stays where it is */
            PyErr_WriteUnraisable(future);
            Py_XDECREF(own_type);
            Py_XDECREF(own_value);
            Py_XDECREF(own_traceback);
        } else {
            raise_later(own_type, own_value, own_traceback);
        }
    }
    Py_XDECREF(result);
    Py_XDECREF(callbacks);
    Py_XDECREF(done);
    ub_own_ends(agent->own, collects);
    PyErr_Restore(type, value, traceback);
}

static void resumed(void *future)
{
    int collects;
    PyObject *task = PyObject_GetAttrString(future, "task"), *cancels = PyObject_GetAttrString(future, "cancels");
    Py_ssize_t n = cancels ? PyTuple_Size(cancels) : 0;

    collects = ub_own_begins(agent->own);
    PyObject_SetAttrString(future, "task", Py_None);
    if (task && task != Py_None && n > 0) { /* now that it runs: at its next await; it was counted already */
        Py_XDECREF(PyObject_CallMethod(task, "cancel", "O", PyTuple_GET_ITEM(cancels, n - 1)));
        Py_XDECREF(PyObject_CallMethod(task, "uncancel", NULL));
    }
    Py_XDECREF(task);
    Py_XDECREF(cancels);
    if (PyErr_Occurred())
        PyErr_WriteUnraisable(future);
    Py_DECREF((PyObject *)future);
    ub_own_ends(agent->own, collects);
}

/* ---- the loop --------------------------------------------------------------------------------- */

static void *host_in(PyObject *capsule)
{
    return PyCapsule_GetPointer(capsule, NULL);
}

static PyObject *on_ready(PyObject *self, PyObject *unused)
{
    agent->wake(host_in(self));
    return Py_NewRef(Py_None);
}

static PyMethodDef ready = {"unblock_ready", on_ready, METH_NOARGS, NULL};

static void on_gone(PyObject *capsule)
{
    agent->stopped(host_in(capsule));
}

static PyObject *on_round(PyObject *self, PyObject *unused)
{
    return Py_NewRef(Py_None); /* that it is let go of is what counts */
}

static PyMethodDef came_round = {"unblock_came_round", on_round, METH_NOARGS, NULL};

static void tell_when_round(PyObject *loop, void *host)
{
    PyObject *capsule = PyCapsule_New(host, NULL, on_gone);
    PyObject *callback = capsule ? PyCFunction_New(&came_round, capsule) : NULL;

    if (callback)
        Py_XDECREF(insist_on(loop, "call_soon", PyTuple_Pack(1, callback)));
    Py_XDECREF(callback);
    Py_XDECREF(capsule);
    PyErr_Clear();
}

/* loop.stop(), as long as it watches for us. `self`: the capsule and the loop's own. */
static PyObject *on_stop(PyObject *self, PyObject *unused)
{
    PyObject *ret, *loop = Py_NewRef(PyTuple_GET_ITEM(self, 1)); /* which may let go of `self` */
    void *host = host_in(PyTuple_GET_ITEM(self, 0));

    if (agent->stop(host))
        tell_when_round(loop, host);
    ret = PyObject_CallMethod((PyObject *)Py_TYPE(loop), "stop", "O", loop);
    Py_DECREF(loop);
    return ret;
}

static PyMethodDef stop = {"stop", on_stop, METH_NOARGS, NULL};

/* By the program, on this very loop (a test's mock): what we give it to watch might be watched by nobody. */
static bool is_replaced(PyObject *loop)
{
    static const char *const names[] = {"add_reader", "_add_reader"};
    PyObject *own = PyObject_GetAttrString(loop, "__dict__");
    bool found = false;

    for (size_t i = 0; own && PyDict_Check(own) && i < sizeof(names) / sizeof(*names); i++)
        found |= PyDict_GetItemString(own, names[i]) != NULL;
    Py_XDECREF(own);
    PyErr_Clear();
    return found;
}

/* The program may have put one of its own in our place. */
static void give_stop_back(PyObject *loop)
{
    PyObject *now = PyObject_GetAttrString(loop, "stop");

    if (now && PyCFunction_Check(now) && PyCFunction_GET_FUNCTION(now) == on_stop)
        PyObject_SetAttrString(loop, "stop", NULL);
    Py_XDECREF(now);
    PyErr_Clear();
}

static bool watch_loop(void *loop, int fd, void *host)
{
    PyObject *capsule = PyCapsule_New(host, NULL, NULL);
    PyObject *callback = capsule ? PyCFunction_New(&ready, capsule) : NULL;
    PyObject *pair = capsule ? PyTuple_Pack(2, capsule, (PyObject *)loop) : NULL;
    PyObject *stops = pair ? PyCFunction_New(&stop, pair) : NULL;
    PyObject *done = callback ? insist_on(loop, "add_reader", Py_BuildValue("iO", fd, callback)) : NULL;
    bool ok = done && stops && PyObject_SetAttrString(loop, "stop", stops) == 0;

    PyErr_Clear();
    if (done && !ok) {
        Py_XDECREF(insist_on(loop, "remove_reader", Py_BuildValue("(i)", fd)));
        PyErr_Clear();
    }
    Py_XDECREF(done);
    Py_XDECREF(stops);
    Py_XDECREF(pair);
    Py_XDECREF(callback);
    Py_XDECREF(capsule);
    return ok;
}

static bool watch(void *loop, int fd, void *host)
{
    int collects;
    bool ok;

    collects = ub_own_begins(agent->own);
    ok = !is_replaced(loop) && watch_loop(loop, fd, host);
    ub_own_ends(agent->own, collects);
    return ok;
}

static void unwatch(void *loop, int fd)
{
    int collects;
    PyObject *type, *value, *traceback;

    PyErr_Fetch(&type, &value, &traceback);
    collects = ub_own_begins(agent->own);
    Py_XDECREF(insist_on(loop, "remove_reader", Py_BuildValue("(i)", fd)));
    PyErr_Clear();
    give_stop_back(loop);
    ub_own_ends(agent->own, collects);
    PyErr_Restore(type, value, traceback);
}

static void hold(void *object)
{
    Py_INCREF((PyObject *)object);
}

static void drop(void *object)
{
    Py_XDECREF((PyObject *)object);
}

/* ---- locks ------------------------------------------------------------------------------------- */

/* Of a lock object; an RLock has behind it its thread's number and how often it was taken. */
struct lock_object {
    PyObject ob_base;
    void *semaphore;
    uint64_t owner; /* of an RLock */
    unsigned long count;
};

typedef PyObject *method(PyObject *self, PyObject *arguments, PyObject *names);

static PyObject *acquire(method *original, PyObject *self, PyObject *arguments, PyObject *names, bool owned)
{
    struct lock_object *lock = (struct lock_object *)self;
    PyObject *result;

    agent->acquire();
    result = original(self, arguments, names);
    if (agent->acquired(lock->semaphore, owned ? &lock->owner : NULL, result && result != Py_False)) {
        Py_XDECREF(result);
        agent->acquire();
        result = original(self, arguments, names);
        agent->acquired(lock->semaphore, owned ? &lock->owner : NULL, result && result != Py_False);
    }
    return result;
}

/* clang-format off */
#define METHODS(X) \
    X(lock, acquire, false) X(lock, acquire_lock, false) X(lock, __enter__, false) \
    X(RLock, acquire, true) X(RLock, __enter__, true) X(RLock, _acquire_restore, true)
#define METHOD(type, name, owned) \
    static method *original_##type##_##name; \
    static PyObject *type##_##name(PyObject *self, PyObject *arguments, PyObject *names) \
    { \
        return acquire(original_##type##_##name, self, arguments, names, owned); \
    }
METHODS(METHOD)
/* clang-format on */

/* NULL: it is not what is expected; METH_KEYWORDS is, or is not, among its flags. */
static PyMethodDef *definition_of(PyObject *type, const char *name, int flags)
{
    PyObject *descriptor = PyObject_GetAttrString(type, name);
    PyMethodDef *found = NULL;

    if (descriptor && Py_TYPE(descriptor) == &PyMethodDescr_Type)
        found = ((PyMethodDescrObject *)descriptor)->d_method;
    Py_XDECREF(descriptor);
    PyErr_Clear();
    return found && (found->ml_flags & ~METH_KEYWORDS) == flags ? found : NULL;
}

/* In place: what is bound already, and what is looked up later. `original` and `with`: pointers to functions. */
static bool replace(PyMethodDef *definition, void *original, const void *with)
{
    if (!definition)
        return false;
    memcpy(original, &definition->ml_meth, sizeof(definition->ml_meth));
    memcpy(&definition->ml_meth, with, sizeof(definition->ml_meth));
    return true;
}

/* Whether lock objects are laid out as above. */
static bool locks_are_known(PyObject *lock, PyObject *rlock)
{
    struct lock_object *l = (struct lock_object *)lock, *r = (struct lock_object *)rlock;
    int before = -1, held = -1, free = -1;
    PyObject *done;
    bool ok;

    if (Py_TYPE(lock)->tp_basicsize < (Py_ssize_t)offsetof(struct lock_object, owner) ||
        Py_TYPE(rlock)->tp_basicsize < (Py_ssize_t)sizeof(struct lock_object) || !l->semaphore || !r->semaphore)
        return false;
    sem_getvalue(r->semaphore, &before);
    done = PyObject_CallMethod(rlock, "acquire", NULL);
    sem_getvalue(r->semaphore, &held);
    ok = done && before == 1 && held == 0 && r->owner == PyThread_get_thread_ident() && r->count == 1;
    Py_XDECREF(done);
    Py_XDECREF(PyObject_CallMethod(rlock, "release", NULL));
    sem_getvalue(l->semaphore, &free);
    PyErr_Clear();
    return ok && free == 1 && r->owner == 0;
}

static bool hook_locks(void)
{
    PyObject *module = PyImport_ImportModule("_thread");
    PyObject *lock = module ? PyObject_CallMethod(module, "allocate_lock", NULL) : NULL;
    PyObject *rlock = module ? PyObject_CallMethod(module, "RLock", NULL) : NULL;
    bool ok = lock && rlock && locks_are_known(lock, rlock);

#define REPLACE(type, name, owned)                                                                                     \
    ok = ok && replace(definition_of((PyObject *)Py_TYPE(owned ? rlock : lock), #name, METH_VARARGS),                  \
                       &original_##type##_##name, &(method *){type##_##name});
    METHODS(REPLACE)
    Py_XDECREF(rlock);
    Py_XDECREF(lock);
    Py_XDECREF(module);
    PyErr_Clear();
    return ok;
}

/* ---- multiprocessing's locks -------------------------------------------------------------------- */

/* Of a SemLock of its module of C, which is not in every program. */
struct shared_lock {
    PyObject ob_base;
    void *semaphore;
    uint64_t owner; /* its thread's number */
    int count, most, kind;
};

#define KIND_RECURSIVE 0 /* RECURSIVE_MUTEX; the other kind asks nobody who has it */

typedef PyObject *shared_acquire(PyObject *self, PyObject *const *values, Py_ssize_t n, PyObject *names);
typedef PyObject *shared_enter(PyObject *self, PyObject *unused);
static shared_acquire *original_shared_acquire;
static shared_enter *original_shared_enter;
static bool shared_is_hooked;

/* True: once more. */
static bool shared_acquired(PyObject *self, const PyObject *result)
{
    struct shared_lock *lock = (struct shared_lock *)self;
    bool got = result && result != Py_False;
    bool again = agent->acquired(lock->semaphore, lock->kind == KIND_RECURSIVE ? &lock->owner : NULL, got);

    if (got && lock->most != 1)
        agent->signalled(lock->semaphore);
    return again;
}

static PyObject *on_shared_acquire(PyObject *self, PyObject *const *values, Py_ssize_t n, PyObject *names)
{
    PyObject *result;

    agent->acquire();
    result = original_shared_acquire(self, values, n, names);
    if (!shared_acquired(self, result))
        return result;
    Py_XDECREF(result);
    agent->acquire();
    result = original_shared_acquire(self, values, n, names);
    shared_acquired(self, result);
    return result;
}

static PyObject *on_shared_enter(PyObject *self, PyObject *unused)
{
    PyObject *result;

    agent->acquire();
    result = original_shared_enter(self, unused);
    shared_acquired(self, result);
    return result;
}

/* Whether its objects are laid out as above, as far as its members tell: `owner` and `count` are between two of them.
 */
static bool shared_are_known(PyTypeObject *type)
{
    static const struct {
        const char *name;
        Py_ssize_t offset;
    } expected[] = {{"handle", offsetof(struct shared_lock, semaphore)},
                    {"maxvalue", offsetof(struct shared_lock, most)},
                    {"kind", offsetof(struct shared_lock, kind)}};
    size_t found = 0;

    for (const struct PyMemberDef *m = type->tp_members; m && m->name; m++) {
        for (size_t i = 0; i < sizeof(expected) / sizeof(*expected); i++)
            found += strcmp(m->name, expected[i].name) == 0 && m->offset == expected[i].offset;
    }
    return found == sizeof(expected) / sizeof(*expected);
}

/* Once its module is there. Where that is not as expected steps that have such a lock are not left. */
static void hook_shared_locks(void)
{
    PyObject *module = shared_is_hooked ? NULL : PyDict_GetItemString(PyImport_GetModuleDict(), "_multiprocessing");
    PyObject *type = module ? PyObject_GetAttrString(module, "SemLock") : NULL;
    PyMethodDef *acquires, *enters;

    if (type && PyType_Check(type)) {
        shared_is_hooked = true;
        acquires = definition_of(type, "acquire", METH_FASTCALL);
        enters = definition_of(type, "__enter__", METH_NOARGS);
        if (acquires && enters && shared_are_known((PyTypeObject *)type)) {
            replace(acquires, &original_shared_acquire, &(shared_acquire *){on_shared_acquire});
            replace(enters, &original_shared_enter, &(shared_enter *){on_shared_enter});
        }
    }
    Py_XDECREF(type);
    PyErr_Clear();
}

/* ---- imports and forks ---------------------------------------------------------------------------- */

static PyObject *find_and_load;

/* Modules are locked by the number of a thread. */
static PyObject *on_import(PyObject *self, PyObject *arguments)
{
    PyObject *result;

    agent->importing(1);
    result = PyObject_CallObject(find_and_load, arguments);
    agent->importing(-1);
    if (result) {
        hook_shared_locks();
        ub_python_functions_imported();
    }
    return result;
}

static PyMethodDef import = {"_find_and_load", on_import, METH_VARARGS, NULL};

static bool hook_imports(void)
{
    PyObject *module = PyImport_ImportModule("_frozen_importlib");
    PyObject *function = PyCFunction_New(&import, NULL);
    bool ok;

    find_and_load = module ? PyObject_GetAttrString(module, "_find_and_load") : NULL;
    ok = find_and_load && function && PyObject_SetAttrString(module, "_find_and_load", function) == 0;
    Py_XDECREF(function);
    Py_XDECREF(module);
    PyErr_Clear();
    hook_shared_locks();
    return ok;
}

static PyObject *on_fork(PyObject *self, PyObject *unused)
{
    agent->before_fork();
    return Py_NewRef(Py_None);
}

static PyMethodDef forks = {"unblock_before_fork", on_fork, METH_NOARGS, NULL};

static bool hook_forks(void)
{
    PyObject *os = PyImport_ImportModule("os"), *function = PyCFunction_New(&forks, NULL);
    PyObject *none = PyTuple_New(0), *names = function ? Py_BuildValue("{sO}", "before", function) : NULL;
    PyObject *reg = os ? PyObject_GetAttrString(os, "register_at_fork") : NULL;
    PyObject *done = reg && none && names ? PyObject_Call(reg, none, names) : NULL;
    bool ok = done != NULL;

    Py_XDECREF(done);
    Py_XDECREF(reg);
    Py_XDECREF(names);
    Py_XDECREF(none);
    Py_XDECREF(function);
    Py_XDECREF(os);
    PyErr_Clear();
    return ok;
}

static const struct ub_python functions = {.holds_gil = holds_gil,
                                           .alone = alone,
                                           .take_gil = take_gil,
                                           .give_gil = give_gil,
                                           .interrupted = interrupted,
                                           .first = first,
                                           .leave = leave,
                                           .enter = enter,
                                           .deliver = deliver,
                                           .begin_wait = begin_wait,
                                           .end_wait = end_wait,
                                           .wait_again = wait_again,
                                           .visit = visit,
                                           .visited = visited,
                                           .watch = watch,
                                           .unwatch = unwatch,
                                           .set_done = set_done,
                                           .resumed = resumed,
                                           .hold = hold,
                                           .drop = drop};

static PyObject *code_of_start(void)
{
    PyObject *module = PyImport_ImportModule("threading");
    PyObject *type = module ? PyObject_GetAttrString(module, "Thread") : NULL;
    PyObject *function = type ? PyObject_GetAttrString(type, "start") : NULL;
    PyObject *code = function ? PyObject_GetAttrString(function, "__code__") : NULL;

    Py_XDECREF(function);
    Py_XDECREF(type);
    Py_XDECREF(module);
    PyErr_Clear();
    return code;
}

static bool prepare(void)
{
    PyObject *names = PyDict_New(), *done = NULL, *events = PyImport_ImportModule("asyncio.events");
    PyObject *tasks = PyImport_ImportModule("asyncio.tasks"), *name = PyUnicode_InternFromString("unblock");
    bool ok;

    if (names && name && PyDict_SetItemString(names, "__builtins__", PyEval_GetBuiltins()) == 0 &&
        PyDict_SetItemString(names, "__name__", name) == 0)
        done = PyRun_String(source, Py_file_input, names, names);
    ok = done && events && tasks && (wait_class = Py_XNewRef(PyDict_GetItemString(names, "UnblockWait"))) != NULL &&
         (get_loop = PyObject_GetAttrString(events, "get_running_loop")) != NULL &&
         (set_loop = PyObject_GetAttrString(events, "_set_running_loop")) != NULL &&
         (loop_or_none = PyObject_GetAttrString(events, "_get_running_loop")) != NULL &&
         (enter_task = PyObject_GetAttrString(tasks, "_enter_task")) != NULL &&
         (leave_task = PyObject_GetAttrString(tasks, "_leave_task")) != NULL &&
         (current_tasks = PyObject_GetAttrString(tasks, "_current_tasks")) != NULL && PyDict_Check(current_tasks);
    start_code = code_of_start(); /* NULL: it is not what it was; left like any other */
    Py_XDECREF(name);
    Py_XDECREF(done);
    Py_XDECREF(names);
    Py_XDECREF(tasks);
    Py_XDECREF(events);
    PyErr_Clear();
    return ok;
}

EXPORT const struct ub_python *ub_python_start(const struct ub_python_agent *caller)
{
    if (Py_Version >> 16 != PY_VERSION_HEX >> 16)
        return NULL;
    agent = caller;
    return prepare() && hook_locks() && ub_python_hook_files(caller) && hook_imports() && hook_forks() ? &functions
                                                                                                       : NULL;
}
