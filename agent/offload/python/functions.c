/*
 * Functions that a policy has called elsewhere: how a call is caught, whatever the way by which the function is reached
 * (an import from, a kept method, super, partial, map), and what happens to it then. The threads
 * and processes that run them are functions.py's, and which functions those are is rules.py's.
 *
 * A Python function is caught by its vectorcall (3.12 on), or by other code in its place (3.11, and `__init__`, which
 * the interpreter comes to enter without asking); a function or method of C by the pointer in its definition, which all
 * its objects share.
 *
 * Longer than most files here: each way of calling in, and the one way out that they share.
 */
#include <Python.h>

#include "functions.h"
#include "own.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define EXPORT      __attribute__((visibility("default")))
#define OWN_FILE    "<unblock>"
#define ENTRIES     1024
#define PLACES      4096 /* of the table by function; a power of two */
#define DEFINITIONS 256

static const struct ub_python_functions_agent *agent;
static PyObject *loop_or_none; /* asyncio's */
static PyObject *stays_type;   /* of what functions.py gives for a call that was not made */
static PyObject *on_imported;  /* functions.py's */

/* One function that a rule has matched. They stay. */
struct entry {
    PyObject *object;   /* the function, the builtin, or the descriptor */
    PyObject *dispatch; /* functions.py's: (callable, arguments, names) */
    PyObject *clone;    /* with the function's own code, where that was replaced; NULL */
    vectorcallfunc own; /* the function's */
    PyMethodDef *definition;
    void *original; /* of the definition */
    bool threads;   /* also where no loop runs, but in the main thread */
    char name[UB_PYTHON_NAME];
    char label[UB_PYTHON_PLACE];
};
static struct entry entries[ENTRIES];
static int entry_count;
static struct entry *defined[DEFINITIONS];
static int definition_count;

#define inside ub_python_functions_inside
__thread int inside;
static __thread const struct entry *passes; /* the next call of this one is the real one */

/* ---- telling ----------------------------------------------------------------------------------- */

static void tell(enum ub_python_kind kind, const char *name, const char *place, const char *text, uint64_t ns)
{
    struct ub_python_row *row = ub_python_table_row(agent->table, kind, name, place, text);

    if (row)
        ub_python_row_add(row, ns);
}

/* ---- a call --------------------------------------------------------------------------------------- */

static bool runs_loop(void)
{
    PyObject *loop;
    bool runs;

    inside++;
    loop = PyObject_CallNoArgs(loop_or_none);
    inside--;
    if (!loop)
        PyErr_Clear();
    runs = loop != Py_None;
    Py_XDECREF(loop);
    return runs;
}

/* `*ret_why`: it would, but cannot here. */
static bool is_moved(const struct entry *e, const char **ret_why)
{
    *ret_why = NULL;
    switch (agent->where(ret_why)) {
    case UB_PYTHON_IN_STEP:
        return true;
    case UB_PYTHON_IN_THREAD:
        return e->threads && !runs_loop();
    default:
        return false;
    }
}

static bool is_ours(PyObject *traceback)
{
    PyCodeObject *code = PyFrame_GetCode(((PyTracebackObject *)traceback)->tb_frame);
    bool ours = PyUnicode_CompareWithASCIIString(code->co_filename, OWN_FILE) == 0;

    Py_DECREF(code);
    return ours;
}

/* An exception's traceback is that of the program's own frames. */
static void strip(void)
{
    PyObject *type, *value, *traceback, *next;

    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    while (traceback && PyTraceBack_Check(traceback) && is_ours(traceback)) {
        next = Py_XNewRef((PyObject *)((PyTracebackObject *)traceback)->tb_next);
        Py_DECREF(traceback);
        traceback = next;
    }
    if (value && PyExceptionInstance_Check(value)) {
        if (traceback)
            PyException_SetTraceback(value, traceback);
        else
            PyException_SetTraceback(value, Py_None);
    }
    PyErr_Restore(type, value, traceback);
}

/* As it is, and told for how long that took. */
static PyObject *stay(struct entry *e, PyObject *callable, PyObject *arguments, PyObject *names, const char *why)
{
    uint64_t begun = agent->now_ns();
    PyObject *result;

    if (!e->clone)
        passes = e;
    result = PyObject_Call(e->clone ? e->clone : callable, arguments, names);
    passes = NULL;
    tell(UB_PYTHON_STAYED, e->name, e->label, why, agent->now_ns() - begun);
    return result;
}

/* Takes over `arguments` and `names`, which are NULL if there was no memory for them. */
static PyObject *move(struct entry *e, PyObject *callable, PyObject *arguments, PyObject *names)
{
    uint64_t begun = agent->now_ns();
    PyObject *result;
    const char *why;

    if (!arguments || PyErr_Occurred()) {
        Py_XDECREF(arguments);
        Py_XDECREF(names);
        return NULL;
    }
    inside++;
    result = PyObject_CallFunctionObjArgs(e->dispatch, callable, arguments, names ? names : Py_None, NULL);
    inside--;
    if (result && (PyObject *)Py_TYPE(result) == stays_type) {
        why = PyUnicode_AsUTF8(result);
        if (!why)
            PyErr_Clear();
        Py_SETREF(result, stay(e, callable, arguments, names, why ? why : "?"));
    } else {
        if (!result)
            strip();
        tell(UB_PYTHON_MOVED, e->name, e->label, "", agent->now_ns() - begun);
    }
    Py_DECREF(arguments);
    Py_XDECREF(names);
    return result;
}

/* ---- arguments ------------------------------------------------------------------------------------ */

static PyObject *tuple_of(PyObject *first, PyObject *const *values, Py_ssize_t n)
{
    Py_ssize_t more = first != NULL;
    PyObject *tuple = PyTuple_New(n + more);

    if (tuple && first)
        PyTuple_SET_ITEM(tuple, 0, Py_NewRef(first));
    for (Py_ssize_t i = 0; tuple && i < n; i++)
        PyTuple_SET_ITEM(tuple, i + more, Py_NewRef(values[i]));
    return tuple;
}

static PyObject *names_of(PyObject *const *values, PyObject *names)
{
    PyObject *dict = names && PyTuple_GET_SIZE(names) ? PyDict_New() : NULL;

    for (Py_ssize_t i = 0; dict && i < PyTuple_GET_SIZE(names); i++) {
        if (PyDict_SetItem(dict, PyTuple_GET_ITEM(names, i), values[i]) < 0)
            Py_CLEAR(dict);
    }
    return dict;
}

/* ---- Python functions ----------------------------------------------------------------------------- */

/* Whether it goes its own way: the call itself is made, with what it takes when it has to stay. */
static bool stays(struct entry *e, const char **ret_why)
{
    *ret_why = NULL;
    if (passes == e) {
        passes = NULL;
        return true;
    }
    return inside || (!is_moved(e, ret_why) && !*ret_why);
}

#if PY_VERSION_HEX >= 0x030c0000
static uint16_t by_function[PLACES]; /* number of an entry, plus one */

static uint32_t place_of(const PyObject *function)
{
    return (uint32_t)((uintptr_t)function >> 4 ^ (uintptr_t)function >> 16) % PLACES;
}

static struct entry *entry_of(const PyObject *object)
{
    for (uint32_t i = place_of(object); by_function[i]; i = (i + 1) % PLACES) {
        if (entries[by_function[i] - 1].object == object)
            return &entries[by_function[i] - 1];
    }
    return NULL;
}

static PyObject *on_function(PyObject *function, PyObject *const *values, size_t n, PyObject *names)
{
    struct entry *e = entry_of(function);
    Py_ssize_t count = PyVectorcall_NARGS(n);
    uint64_t begun;
    PyObject *result;
    const char *why;

    if (!e) { /* none but ours are called this way */
        PyErr_BadInternalCall();
        return NULL;
    }
    if (stays(e, &why))
        return e->own(function, values, n, names);
    if (!why)
        return move(e, function, tuple_of(NULL, values, count), names_of(values + count, names));
    begun = agent->now_ns();
    result = e->own(function, values, n, names);
    tell(UB_PYTHON_STAYED, e->name, e->label, why, agent->now_ns() - begun);
    return result;
}
#endif

/* What a function with other code calls: (arguments, names). */
static PyObject *on_code(PyObject *self, PyObject *const *values, Py_ssize_t n)
{
    struct entry *e = PyCapsule_GetPointer(self, NULL);
    PyFunctionObject *f, *clone;
    const char *why;

    if (!e || n != 2)
        return NULL;
    f = (PyFunctionObject *)e->object;
    clone = (PyFunctionObject *)e->clone;
    if (clone->func_defaults != f->func_defaults &&
        PyFunction_SetDefaults(e->clone, f->func_defaults ? f->func_defaults : Py_None) < 0)
        return NULL;
    if (clone->func_kwdefaults != f->func_kwdefaults &&
        PyFunction_SetKwDefaults(e->clone, f->func_kwdefaults ? f->func_kwdefaults : Py_None) < 0)
        return NULL;
    if (stays(e, &why))
        return PyObject_Call(e->clone, values[0], values[1]);
    if (why)
        return stay(e, e->clone, values[0], values[1], why);
    return move(e, e->clone, Py_NewRef(values[0]), Py_NewRef(values[1]));
}

static PyMethodDef code_definition = {"unblock_call", (PyCFunction)(void (*)(void))on_code, METH_FASTCALL, NULL};

/* ---- functions of C ---------------------------------------------------------------------------------- */

typedef void *any_function(void *a, void *b, void *c, void *d, void *e);

/* What moved calls are made by: the same definition, for this very object. */
static PyObject *bound(struct entry *e, PyObject *self, PyObject *type)
{
    if (PyCFunction_Check(e->object) && PyCFunction_GET_SELF(e->object) == self)
        return Py_NewRef(e->object);
    if (Py_TYPE(e->object) == &PyMethodDescr_Type)
        return Py_NewRef(e->object); /* takes `self` as its first argument */
    return PyCMethod_New(e->definition, self, NULL, (PyTypeObject *)type);
}

static PyObject *move_definition(struct entry *e, PyObject *self, void *b, void *c, void *d, void *last,
                                 const char *why)
{
    int flags = e->definition->ml_flags & ~(METH_CLASS | METH_STATIC | METH_COEXIST);
    PyObject *first = Py_TYPE(e->object) == &PyMethodDescr_Type ? self : NULL, *type = NULL;
    PyObject *arguments, *names = NULL, *callable, *result;
    PyObject *const *values = b;

    if (flags == METH_NOARGS) {
        arguments = tuple_of(first, NULL, 0);
    } else if (flags == METH_O) {
        arguments = tuple_of(first, (PyObject *const *)&b, 1);
    } else if (flags & METH_VARARGS) {
        arguments = tuple_of(first, ((PyTupleObject *)b)->ob_item, PyTuple_GET_SIZE((PyObject *)b));
        names = flags & METH_KEYWORDS ? Py_XNewRef((PyObject *)c) : NULL;
    } else {
        if (flags & METH_METHOD) {
            type = b;
            values = c;
            c = d;
            d = last;
        }
        arguments = tuple_of(first, values, (Py_ssize_t)c);
        names = flags & METH_KEYWORDS ? names_of(values + (Py_ssize_t)c, (PyObject *)d) : NULL;
    }
    callable = bound(e, self, type);
    if (callable && !why) {
        result = move(e, callable, arguments, names);
    } else {
        result = callable && arguments && !PyErr_Occurred() ? stay(e, callable, arguments, names, why) : NULL;
        Py_XDECREF(arguments);
        Py_XDECREF(names);
    }
    Py_XDECREF(callable);
    return result;
}

static void *on_definition(int number, void *a, void *b, void *c, void *d, void *last)
{
    struct entry *e = defined[number];
    const char *why;

    if (stays(e, &why))
        return ((any_function *)e->original)(a, b, c, d, last);
    return move_definition(e, a, b, c, d, last, why);
}

/* One for each definition, which tells nobody who it is. A call with fewer arguments leaves the last ones unused. */
#define THUNK(n)                                                                                                       \
    static void *thunk_##n(void *a, void *b, void *c, void *d, void *e)                                                \
    {                                                                                                                  \
        return on_definition(0x##n, a, b, c, d, e);                                                                    \
    }
#define ROW(X, r)                                                                                                      \
    X(r##0)                                                                                                            \
    X(r##1)                                                                                                            \
    X(r##2) X(r##3) X(r##4) X(r##5) X(r##6) X(r##7) X(r##8) X(r##9) X(r##a) X(r##b) X(r##c) X(r##d) X(r##e) X(r##f)
#define ALL(X)                                                                                                         \
    ROW(X, 0)                                                                                                          \
    ROW(X, 1)                                                                                                          \
    ROW(X, 2)                                                                                                          \
    ROW(X, 3)                                                                                                          \
    ROW(X, 4)                                                                                                          \
    ROW(X, 5) ROW(X, 6) ROW(X, 7) ROW(X, 8) ROW(X, 9) ROW(X, a) ROW(X, b) ROW(X, c) ROW(X, d) ROW(X, e) ROW(X, f)
ALL(THUNK)
#define NAME_OF(n) thunk_##n,
static any_function *const thunks[DEFINITIONS] = {ALL(NAME_OF)};

/* ---- what functions.py calls ----------------------------------------------------------------------------- */

static PyObject *py_inline(PyObject *self, PyObject *unused)
{
    inside++;
    Py_RETURN_NONE;
}

static void free_ticket(PyObject *capsule)
{
    free(PyCapsule_GetPointer(capsule, "unblock.ticket"));
}

static PyObject *py_ticket(PyObject *self, PyObject *unused)
{
    struct ub_ticket *ticket = calloc(1, sizeof(*ticket));
    PyObject *capsule = ticket ? PyCapsule_New(ticket, "unblock.ticket", free_ticket) : PyErr_NoMemory();

    if (!capsule)
        free(ticket);
    return capsule;
}

static PyObject *py_done(PyObject *self, PyObject *capsule)
{
    struct ub_ticket *ticket = PyCapsule_GetPointer(capsule, "unblock.ticket");

    if (!ticket)
        return NULL;
    agent->done(ticket);
    Py_RETURN_NONE;
}

static PyObject *py_wait(PyObject *self, PyObject *capsule)
{
    struct ub_ticket *ticket = PyCapsule_GetPointer(capsule, "unblock.ticket");
    bool over;

    if (!ticket)
        return NULL;
    do {
        over = agent->wait(ticket);
        if (!over && PyErr_CheckSignals() < 0)
            return NULL;
    } while (!over);
    Py_RETURN_NONE;
}

/* (fd, whether to write, ms): whether it is ready. */
static PyObject *py_wait_fd(PyObject *self, PyObject *arguments)
{
    int fd, writes, ms;
    bool ready;

    if (!PyArg_ParseTuple(arguments, "ipi", &fd, &writes, &ms))
        return NULL;
    ready = agent->wait_fd(fd, writes ? POLLOUT : POLLIN, ms);
    if (!ready && PyErr_CheckSignals() < 0)
        return NULL;
    return PyBool_FromLong(ready);
}

/* The thread that waits for this child is the one that has forked it: when that ends, nobody wants the result. */
static void die_with(pid_t parent)
{
    pid_t now;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    now = getppid();
    if (now != parent && now != 0) /* it has ended before that; 0: it lives in another PID namespace */
        _exit(1);
}

/*
 * os.fork would warn of threads. The child calls `in_child`, and ends: whatever is raised on the way there, a handler
 * of a signal's for instance, it never goes on as the program.
 */
static PyObject *py_fork(PyObject *self, PyObject *in_child)
{
    pid_t pid, parent = getpid();
    int error;

    PyOS_BeforeFork();
    pid = fork();
    error = errno;
    if (pid == 0) {
        die_with(parent);
        inside++;
        PyOS_AfterFork_Child();
        Py_XDECREF(PyObject_CallNoArgs(in_child));
        _exit(1);
    }
    PyOS_AfterFork_Parent();
    errno = error;
    return pid < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(pid);
}

/* The step's own Context, not a copy; None: it has none. */
static PyObject *py_context(PyObject *self, PyObject *unused)
{
    PyObject *context = PyThreadState_Get()->context;

    return Py_NewRef(context ? context : Py_None);
}

static PyObject *py_rules(PyObject *self, PyObject *unused)
{
    uint32_t size = agent->table->rules_size;

    return PyUnicode_DecodeUTF8(agent->table->rules, size < UB_PYTHON_RULES ? size : UB_PYTHON_RULES, "replace");
}

/* (kind, name, place, text, so often) */
static PyObject *py_tell(PyObject *self, PyObject *arguments)
{
    static const char *const kinds[] = {
#define X(name, text) text,
        UB_PYTHON_KIND_LIST(X)
#undef X
    };
    const char *kind, *name, *place, *text;
    int count, i;

    if (!PyArg_ParseTuple(arguments, "ssssi", &kind, &name, &place, &text, &count))
        return NULL;
    for (i = 0; i < UB_PYTHON_KINDS && strcmp(kinds[i], kind) != 0; i++)
        ;
    while (i < UB_PYTHON_KINDS && count-- > 0)
        tell((enum ub_python_kind)i, name, place, text, 0);
    Py_RETURN_NONE;
}

/* The definition that a function of C is called by; NULL: it is another kind of object. */
static PyMethodDef *definition_of(PyObject *object)
{
    if (PyCFunction_Check(object))
        return ((PyCFunctionObject *)object)->m_ml;
    if (Py_TYPE(object) == &PyMethodDescr_Type || Py_TYPE(object) == &PyClassMethodDescr_Type)
        return ((PyMethodDescrObject *)object)->d_method;
    return NULL;
}

static struct entry *new_entry(PyObject *object, PyObject *dispatch, int threads, const char *name, const char *label)
{
    struct entry *e = &entries[entry_count];

    if (entry_count == ENTRIES)
        return NULL;
    *e = (struct entry){.object = Py_NewRef(object), .dispatch = Py_NewRef(dispatch), .threads = threads};
    ub_python_table_text(e->name, sizeof(e->name), name);
    ub_python_table_text(e->label, sizeof(e->label), label);
    entry_count++;
    return e;
}

static void hook_definition(struct entry *e, PyMethodDef *definition)
{
    any_function *thunk = thunks[definition_count];

    e->definition = definition;
    memcpy(&e->original, &definition->ml_meth, sizeof(e->original));
    defined[definition_count++] = e;
    memcpy(&definition->ml_meth, &thunk, sizeof(thunk));
}

/* (object, its definition's address or 0): where that is, so that functions.py sees whether it can be written. */
static PyObject *py_definition(PyObject *self, PyObject *object)
{
    return PyLong_FromVoidPtr(definition_of(object));
}

/*
 * (object, dispatch, threads, name, label, clone or None). True: calls of it are caught now; False: there is no
 * room. With a clone: a callable for the code that will take the function's place.
 */
static PyObject *py_hook(PyObject *self, PyObject *arguments)
{
    PyObject *object, *dispatch, *clone, *capsule, *callable;
    const char *name, *label;
    PyMethodDef *definition;
    struct entry *e;
    int threads;

    if (!PyArg_ParseTuple(arguments, "OOpssO", &object, &dispatch, &threads, &name, &label, &clone))
        return NULL;
    definition = definition_of(object);
    if ((definition && definition_count == DEFINITIONS) || !(e = new_entry(object, dispatch, threads, name, label)))
        Py_RETURN_FALSE;
    if (definition) {
        hook_definition(e, definition);
        Py_RETURN_TRUE;
    }
    if (clone != Py_None) {
        e->clone = Py_NewRef(clone);
        capsule = PyCapsule_New(e, NULL, NULL);
        callable = capsule ? PyCFunction_New(&code_definition, capsule) : NULL;
        Py_XDECREF(capsule);
        return callable;
    }
#if PY_VERSION_HEX >= 0x030c0000
    for (uint32_t i = place_of(object);; i = (i + 1) % PLACES) {
        if (!by_function[i]) {
            by_function[i] = (uint16_t)(e - entries + 1);
            break;
        }
    }
    e->own = ((PyFunctionObject *)object)->vectorcall;
    PyFunction_SetVectorcall((PyFunctionObject *)object, on_function);
    Py_RETURN_TRUE;
#else
    Py_RETURN_FALSE;
#endif
}

static PyMethodDef for_python[] = {{"inline", py_inline, METH_NOARGS, NULL},
                                   {"make_ticket", py_ticket, METH_NOARGS, NULL},
                                   {"done", py_done, METH_O, NULL},
                                   {"wait", py_wait, METH_O, NULL},
                                   {"wait_fd", py_wait_fd, METH_VARARGS, NULL},
                                   {"fork", py_fork, METH_O, NULL},
                                   {"context", py_context, METH_NOARGS, NULL},
                                   {"rules", py_rules, METH_NOARGS, NULL},
                                   {"tell", py_tell, METH_VARARGS, NULL},
                                   {"definition", py_definition, METH_O, NULL},
                                   {"hook", py_hook, METH_VARARGS, NULL}};

/* ---- its beginning ---------------------------------------------------------------------------------------- */

/* The assembler takes the files as they are; make knows that they are part of this. */
#define INCLUDE(name, file)                                                                                            \
    __asm__(".pushsection .rodata\n" #name ":\n.incbin \"agent/offload/python/" file "\"\n.byte 0\n.popsection\n");    \
    extern const char name[] __attribute__((visibility("hidden")))

INCLUDE(ub_functions_source, "functions.py");
INCLUDE(ub_rules_source, "rules.py");
INCLUDE(ub_worker_source, "worker.py");

void ub_python_functions_imported(void)
{
    int collects;
    PyObject *type, *value, *traceback;

    if (!on_imported)
        return;
    PyErr_Fetch(&type, &value, &traceback);
    collects = ub_own_begins(agent->own);
    inside++;
    Py_XDECREF(PyObject_CallNoArgs(on_imported));
    PyErr_Clear(); /* it has told of it */
    inside--;
    ub_own_ends(agent->own, collects);
    PyErr_Restore(type, value, traceback);
}

static PyObject *names_for_python(void)
{
    PyObject *names = PyDict_New(), *name = PyUnicode_InternFromString("unblock");
    PyObject *worker = PyUnicode_FromString(ub_worker_source);
    bool ok = names && name && worker && PyDict_SetItemString(names, "__builtins__", PyEval_GetBuiltins()) == 0 &&
              PyDict_SetItemString(names, "__name__", name) == 0 && PyDict_SetItemString(names, "WORKER", worker) == 0;

    for (size_t i = 0; ok && i < sizeof(for_python) / sizeof(*for_python); i++) {
        PyObject *function = PyCFunction_New(&for_python[i], NULL);

        ok = function && PyDict_SetItemString(names, for_python[i].ml_name, function) == 0;
        Py_XDECREF(function);
    }
    Py_XDECREF(name);
    Py_XDECREF(worker);
    if (!ok)
        Py_CLEAR(names);
    return names;
}

static bool has_rules(const struct ub_python_table *t)
{
    static const char *const words[] = {"thread ", "process ", "fork "};

    for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++) {
        if (memmem(t->rules, t->rules_size < UB_PYTHON_RULES ? t->rules_size : UB_PYTHON_RULES, words[i],
                   strlen(words[i])))
            return true;
    }
    return false;
}

static bool run(const char *source, PyObject *names)
{
    PyObject *code = Py_CompileString(source, OWN_FILE, Py_file_input);
    PyObject *done = code ? PyEval_EvalCode(code, names, names) : NULL;

    Py_XDECREF(code);
    Py_XDECREF(done);
    return done != NULL;
}

EXPORT bool ub_python_functions_start(const struct ub_python_functions_agent *caller)
{
    PyObject *names, *events;
    bool ok;

    agent = caller;
    if (!has_rules(agent->table))
        return true;
    inside++;
    events = PyImport_ImportModule("asyncio.events");
    loop_or_none = events ? PyObject_GetAttrString(events, "_get_running_loop") : NULL;
    names = loop_or_none ? names_for_python() : NULL;
    ok = names && run(ub_functions_source, names) && run(ub_rules_source, names);
    if (ok) {
        stays_type = Py_XNewRef(PyDict_GetItemString(names, "Stays"));
        on_imported = Py_XNewRef(PyDict_GetItemString(names, "imported"));
    }
    if (PyErr_Occurred()) {
        PyErr_Clear();
        tell(UB_PYTHON_NOTE, "", "", "rules of [python] cannot be followed", 0);
    }
    Py_XDECREF(names);
    Py_XDECREF(events);
    inside--;
    return ok;
}
