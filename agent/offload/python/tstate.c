/*
 * One minor version of CPython: what of a thread's state belongs to a stack, and the future that a
 * task waits for while its step is suspended. Built against that version's public headers.
 *
 * A suspended step looks to asyncio like one that awaits a future: so contexts, current_task, the order of
 * callbacks and uvloop are theirs to get right. Only cancelling differs: the coroutine is in the midst of a
 * call and takes no exception; the future remembers it, and the task is told when it goes on.
 */
#include <Python.h>

#include "python.h"

#if PY_VERSION_HEX >= 0x030d0000 || PY_VERSION_HEX < 0x030b0000 || defined(Py_GIL_DISABLED)
#error "not a version whose thread state is known here"
#endif

#define EXPORT __attribute__((visibility("default")))

/* What belongs to a stack. */
struct kept {
    _PyCFrame *cframe;
    _PyErr_StackItem *exc_info;
    PyObject *context;
    _PyStackChunk *chunk;
    PyObject **top, **limit;
    int tracing;
#if PY_VERSION_HEX < 0x030c0000
    int trash, recursion;
    PyObject *type, *value, *traceback;
#else
    int trash, recursion, c_recursion;
    PyObject *exception;
#endif
};

struct state {
    struct kept own, resumer;
    _PyCFrame root;
    _PyErr_StackItem exc_state;
};
_Static_assert(sizeof(struct state) <= sizeof(struct ub_python_state), "UB_PYTHON_STATE_WORDS");

static const struct ub_python_agent *agent;
static PyObject *get_loop, *make_wait, *resume_wait;

static struct state *state_of(struct ub_python_state *s)
{
    return (struct state *)s->word;
}

static void save(const PyThreadState *ts, struct kept *k)
{
    k->cframe = ts->cframe;
    k->exc_info = ts->exc_info;
    k->context = ts->context;
    k->chunk = ts->datastack_chunk;
    k->top = ts->datastack_top;
    k->limit = ts->datastack_limit;
    k->tracing = ts->tracing;
#if PY_VERSION_HEX < 0x030c0000
    k->trash = ts->trash_delete_nesting;
    k->recursion = ts->recursion_remaining;
    k->type = ts->curexc_type;
    k->value = ts->curexc_value;
    k->traceback = ts->curexc_traceback;
#else
    k->trash = ts->trash.delete_nesting;
    k->recursion = ts->py_recursion_remaining;
    k->c_recursion = ts->c_recursion_remaining;
    k->exception = ts->current_exception;
#endif
}

static void load(PyThreadState *ts, const struct kept *k)
{
    ts->cframe = k->cframe;
    ts->exc_info = k->exc_info;
    ts->context = k->context;
    ts->context_ver++;
    ts->datastack_chunk = k->chunk;
    ts->datastack_top = k->top;
    ts->datastack_limit = k->limit;
    ts->tracing = k->tracing;
#if PY_VERSION_HEX < 0x030c0000
    ts->trash_delete_nesting = k->trash;
    ts->recursion_remaining = k->recursion;
    ts->curexc_type = k->type;
    ts->curexc_value = k->value;
    ts->curexc_traceback = k->traceback;
#else
    ts->trash.delete_nesting = k->trash;
    ts->py_recursion_remaining = k->recursion;
    ts->c_recursion_remaining = k->c_recursion;
    ts->current_exception = k->exception;
#endif
}

static void first(struct ub_python_state *s)
{
    PyThreadState *ts = PyThreadState_Get();
    struct state *st = state_of(s);
    struct kept fresh;

    save(ts, &st->resumer);
    fresh = st->resumer;
    st->root = (_PyCFrame){.current_frame = NULL, .previous = &ts->root_cframe};
#if PY_VERSION_HEX < 0x030c0000
    st->root.use_tracing = ts->cframe->use_tracing;
#endif
    st->exc_state = (_PyErr_StackItem){0};
    fresh.cframe = &st->root;
    fresh.exc_info = &st->exc_state;
    Py_XINCREF(fresh.context);
    /* Of an earlier step on this fiber: its first chunk of the interpreter's own stack is never given back. */
    fresh.chunk = st->own.chunk;
    fresh.top = st->own.top;
    fresh.limit = st->own.limit;
    load(ts, &fresh);
}

static void leave(struct ub_python_state *s, bool over)
{
    PyThreadState *ts = PyThreadState_Get();
    struct state *st = state_of(s);

    save(ts, &st->own);
    if (over) { /* an exception that the step has raised goes to the task */
#if PY_VERSION_HEX < 0x030c0000
        st->resumer.type = st->own.type;
        st->resumer.value = st->own.value;
        st->resumer.traceback = st->own.traceback;
#else
        st->resumer.exception = st->own.exception;
#endif
    }
    load(ts, &st->resumer);
    if (over)
        Py_XDECREF(st->own.context);
}

static void enter(struct ub_python_state *s)
{
    PyThreadState *ts = PyThreadState_Get();
    struct state *st = state_of(s);

    save(ts, &st->resumer);
#if PY_VERSION_HEX < 0x030c0000
    st->own.cframe->use_tracing = ts->cframe->use_tracing;
#endif
    load(ts, &st->own);
}

static bool holds_gil(void)
{
    PyThreadState *ts = _PyThreadState_UncheckedGet();

    return ts && ts == PyGILState_GetThisThreadState();
}

/* A module that is being imported is locked by the thread's number: another step would see half of it. */
static bool is_importing(PyThreadState *ts)
{
    PyFrameObject *frame = PyThreadState_GetFrame(ts), *back;
    bool found = false;

    while (frame && !found) {
        PyCodeObject *code = PyFrame_GetCode(frame);
        const char *file = PyUnicode_AsUTF8(code->co_filename);

        found = file && strncmp(file, "<frozen importlib", 17) == 0;
        Py_DECREF(code);
        back = PyFrame_GetBack(frame);
        Py_DECREF(frame);
        frame = back;
    }
    Py_XDECREF(frame);
    PyErr_Clear();
    return found;
}

static void *begin_wait(void **ret_loop)
{
    PyThreadState *ts = PyGILState_GetThisThreadState();
    PyObject *future = NULL;

    if (!ts || !Py_IsInitialized())
        return NULL;
    PyEval_RestoreThread(ts);
    /* Tracers and profilers count on frames that end in order. */
    if (!PyErr_Occurred() && !ts->c_tracefunc && !ts->c_profilefunc && !is_importing(ts)) {
        *ret_loop = PyObject_CallNoArgs(get_loop);
        if (*ret_loop)
            future = PyObject_CallOneArg(make_wait, *ret_loop);
        if (!future) {
            Py_CLEAR(*ret_loop);
            PyErr_Clear();
        }
    }
    if (!future)
        PyEval_SaveThread();
    return future;
}

static void end_wait(void *future)
{
    Py_XDECREF((PyObject *)future);
    PyEval_SaveThread();
}

static PyObject *on_ready(PyObject *self, PyObject *arguments)
{
    agent->wake(PyCapsule_GetPointer(self, NULL));
    return Py_NewRef(Py_None);
}

static PyMethodDef ready = {"unblock_ready", on_ready, METH_NOARGS, NULL};

static bool watch(void *loop, int fd, void *host)
{
    PyObject *capsule = PyCapsule_New(host, NULL, NULL);
    PyObject *callback = capsule ? PyCFunction_New(&ready, capsule) : NULL;
    PyObject *done = callback ? PyObject_CallMethod(loop, "add_reader", "iO", fd, callback) : NULL;
    bool ok = done != NULL;

    Py_XDECREF(done);
    Py_XDECREF(callback);
    Py_XDECREF(capsule);
    PyErr_Clear();
    return ok;
}

static void unwatch(void *loop, int fd)
{
    Py_XDECREF(PyObject_CallMethod(loop, "remove_reader", "i", fd));
    PyErr_Clear();
}

static void set_done(void *future)
{
    Py_XDECREF(PyObject_CallMethod(future, "arrive", NULL));
    if (PyErr_Occurred()) /* a loop that is closed takes no callbacks: the step stays where it is */
        PyErr_WriteUnraisable(future);
}

static void resumed(void *future)
{
    Py_XDECREF(PyObject_CallOneArg(resume_wait, future));
    if (PyErr_Occurred())
        PyErr_WriteUnraisable(future);
    Py_DECREF((PyObject *)future);
}

static void hold(void *object)
{
    Py_INCREF((PyObject *)object);
}

static void drop(void *object)
{
    Py_DECREF((PyObject *)object);
}

/* The C task cannot be told to wait for less than a future. */
static const char source[] = "import asyncio\n"
                             "class UnblockWait(asyncio.Future):\n"
                             "    cancels = ()\n"
                             "    def cancel(self, msg=None):\n"
                             "        self.cancels += (msg,)\n"
                             "        return True\n"
                             "    def arrive(self):\n"
                             "        if not self.done():\n"
                             "            self.set_result(None)\n"
                             "def make(loop):\n"
                             "    wait = UnblockWait(loop=loop)\n"
                             "    wait._asyncio_future_blocking = True\n"
                             "    return wait\n"
                             "def resumed(wait):\n"
                             "    if wait.cancels:\n"
                             "        task = asyncio.current_task()\n"
                             "        task.cancel(wait.cancels[-1])\n" /* now that it runs: at its next await */
                             "        task.uncancel()\n"               /* counted once already */
                             "get_loop = asyncio.get_running_loop\n";

static const struct ub_python functions = {.holds_gil = holds_gil,
                                           .first = first,
                                           .leave = leave,
                                           .enter = enter,
                                           .begin_wait = begin_wait,
                                           .end_wait = end_wait,
                                           .watch = watch,
                                           .unwatch = unwatch,
                                           .set_done = set_done,
                                           .resumed = resumed,
                                           .hold = hold,
                                           .drop = drop};

static bool prepare(void)
{
    PyObject *names = PyDict_New(), *done = NULL;

    if (names && PyDict_SetItemString(names, "__builtins__", PyEval_GetBuiltins()) == 0 &&
        PyDict_SetItemString(names, "__name__", PyUnicode_InternFromString("unblock")) == 0)
        done = PyRun_String(source, Py_file_input, names, names);
    if (done) {
        get_loop = Py_XNewRef(PyDict_GetItemString(names, "get_loop"));
        make_wait = Py_XNewRef(PyDict_GetItemString(names, "make"));
        resume_wait = Py_XNewRef(PyDict_GetItemString(names, "resumed"));
    }
    Py_XDECREF(done);
    Py_XDECREF(names);
    PyErr_Clear();
    return get_loop && make_wait && resume_wait;
}

EXPORT const struct ub_python *ub_python_start(const struct ub_python_agent *caller)
{
    if (Py_Version >> 16 != PY_VERSION_HEX >> 16)
        return NULL;
    agent = caller;
    return prepare() ? &functions : NULL;
}
