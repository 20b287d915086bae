/*
 * Where the interpreter calls us between two bytecodes, by way of a signal that nobody else uses: may what runs be set
 * aside just here, and for how long has it run?
 */
#include <Python.h>

#include "../../../common/clock.h"
#include "own.h"
#include "yield.h"

#include <fnmatch.h>
#include <opcode.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#define EXPORT     __attribute__((visibility("default")))
#define RULES_MAX  256
#define NAME       256
#define LONG_NS    2000000ull  /* in one function of C's, and */
#define LONG_TIMES 32          /* so often at a place where it looks for signals: it may be set aside there */
#define HELD_NS    20000000ull /* from the asking to the next bytecode: less is told of nobody */

EXPORT const uint64_t ub_python_build = UB_PYTHON_BUILD;

static const struct ub_python_yield_agent *agent;

struct rule {
    uint64_t slice_ns; /* 0: it must not be set aside */
    char pattern[NAME];
};
static struct rule rules[RULES_MAX];
static int rule_count;
static bool has_yields; /* else all yield, after the table's slice */

/* Half-done things of these would be seen by whoever runs next. */
static const char *const closed[] = {"asyncio",
                                     "uvloop",
                                     "importlib",
                                     "_frozen_importlib",
                                     "_frozen_importlib_external",
                                     "threading",
                                     "weakref",
                                     "_weakrefset",
                                     "logging",
                                     "queue",
                                     "concurrent.futures",
                                     "contextlib",
                                     "unblock"};

static bool is_in(const char *module, const char *package)
{
    size_t n = strlen(package);

    return strncmp(module, package, n) == 0 && (module[n] == '\0' || module[n] == '.');
}

static bool is_closed(const char *module)
{
    for (size_t i = 0; i < sizeof(closed) / sizeof(closed[0]); i++) {
        if (is_in(module, closed[i]))
            return true;
    }
    return false;
}

static void read_rules(const struct ub_python_table *t)
{
    const char *line = t->rules, *end = line + (t->rules_size < UB_PYTHON_RULES ? t->rules_size : UB_PYTHON_RULES);

    rule_count = 0;
    has_yields = false;
    while (line < end && rule_count < RULES_MAX) {
        const char *next = memchr(line, '\n', (size_t)(end - line));
        char text[NAME + 64], pattern[NAME];
        unsigned long long ns = 0;
        size_t n = (size_t)((next ? next : end) - line);

        if (n < sizeof(text)) {
            memcpy(text, line, n);
            text[n] = '\0';
            if (sscanf(text, "except %llu %255s", &ns, pattern) == 2 ||
                sscanf(text, "yield %llu %255s", &ns, pattern) == 2) {
                rules[rule_count].slice_ns = *text == 'y' ? ns : 0;
                has_yields |= *text == 'y';
                memcpy(rules[rule_count++].pattern, pattern, NAME);
            }
        }
        line = next ? next + 1 : end;
    }
}

/* ---- where we are ----------------------------------------------------------------------------- */

struct place {
    char name[NAME]; /* module and qualified name */
    char module[NAME];
    char alias[NAME]; /* the name as it would be were the program's file imported; "" for other modules */
    char at[UB_PYTHON_PLACE];
};

static const char *text_of(PyObject *s)
{
    const char *text = s && PyUnicode_Check(s) ? PyUnicode_AsUTF8(s) : NULL;

    if (!text)
        PyErr_Clear();
    return text ? text : "?";
}

static void look(PyFrameObject *frame, int line, struct place *ret)
{
    PyCodeObject *code = PyFrame_GetCode(frame);
    PyObject *globals = PyFrame_GetGlobals(frame);
    PyObject *module = PyDict_GetItemString(globals, "__name__");
    const char *file = text_of(code->co_filename), *slash = strrchr(file, '/');

    snprintf(ret->module, sizeof(ret->module), "%s", text_of(module));
    snprintf(ret->name, sizeof(ret->name), "%.100s.%.150s", ret->module, text_of(code->co_qualname));
    snprintf(ret->at, sizeof(ret->at), "%.28s:%d", slash ? slash + 1 : file, line ? line : code->co_firstlineno);
    ret->alias[0] = '\0';
    if (strcmp(ret->module, "__main__") == 0) {
        const char *stem = slash ? slash + 1 : file;

        snprintf(ret->alias, sizeof(ret->alias), "%.*s.%.150s", (int)strcspn(stem, "."), stem,
                 text_of(code->co_qualname));
    }
    Py_DECREF(globals);
    Py_DECREF(code);
}

/* As other rules of a policy do: pkg.jobs.run is known by jobs.run as well. */
static bool fits_name(const char *pattern, const struct place *p)
{
    const char *name = p->name, *module_end = name + strlen(p->module);

    while (name && name <= module_end) {
        if (fnmatch(pattern, name, 0) == 0)
            return true;
        name = strchr(name, '.');
        name = name ? name + 1 : NULL;
    }
    return p->alias[0] && fnmatch(pattern, p->alias, 0) == 0;
}

/* The slice of a function by its name: -1 there is no rule, 0 it must not be set aside. */
static int64_t slice_of(const struct place *p)
{
    for (int i = 0; i < rule_count; i++) {
        if (fits_name(rules[i].pattern, p))
            return (int64_t)rules[i].slice_ns;
    }
    return -1;
}

/* The next one outwards, or NULL. Takes the reference to `frame`. */
static PyFrameObject *outwards(PyFrameObject *frame)
{
    PyFrameObject *back = PyFrame_GetBack(frame);

    Py_DECREF(frame);
    return back;
}

static bool is_in_closed(PyFrameObject *frame)
{
    PyObject *globals = PyFrame_GetGlobals(frame);
    bool is = is_closed(text_of(PyDict_GetItemString(globals, "__name__")));

    Py_DECREF(globals);
    return is;
}

/* Of what runs, from the innermost frame outwards; 0: it must not. Somebody waits: names are made for rules only. */
static uint64_t slice_here(PyFrameObject *frame)
{
    uint64_t slice = has_yields ? 0 : agent->table->yield_ns;
    bool fits = !has_yields;

    if (is_in_closed(frame))
        return 0;
    if (!rule_count)
        return slice;
    for (PyFrameObject *f = (PyFrameObject *)Py_NewRef((PyObject *)frame); f; f = outwards(f)) {
        struct place place;
        int64_t own;

        look(f, 0, &place);
        own = slice_of(&place);
        if (own == 0) {
            Py_DECREF(f);
            return 0;
        }
        if (own > 0 && !(fits && has_yields)) {
            slice = (uint64_t)own;
            fits = true;
        }
    }
    return fits ? slice : 0;
}

/* The outermost: the task's coroutine. */
static void look_at_root(PyFrameObject *frame, struct place *ret)
{
    PyFrameObject *f = (PyFrameObject *)Py_NewRef((PyObject *)frame), *back;

    while ((back = PyFrame_GetBack(f)) != NULL) {
        Py_DECREF(f);
        f = back;
    }
    look(f, 0, ret);
    Py_DECREF(f);
}

/* ---- the call ------------------------------------------------------------------------------------ */

/* What a frame has just called, by the words of its source: "json.loads". */
static const char source[] =
    "def callee(code, last):\n"
    "    import dis\n"
    "    done = [i for i in dis.get_instructions(code) if i.offset <= last][-4:]\n"
    "    call = next((i for i in reversed(done) if i.opname.startswith('CALL')), None)\n"
    "    if call is None:\n"
    "        return ''\n"
    "    at, words = call.positions, []\n"
    "    for i in dis.get_instructions(code):\n"
    "        if i.offset >= call.offset:\n"
    "            break\n"
    "        if i.positions[0] == at[0] and i.positions[2] == at[2] and i.opname.startswith('LOAD_'):\n"
    "            words.append(str(i.argval))\n"
    "    return '.'.join(words)\n";
static PyObject *callee;

static PyObject *names_of(const char *text)
{
    PyObject *names = PyDict_New(), *name = PyUnicode_InternFromString("unblock"), *done = NULL;

    if (names && name && PyDict_SetItemString(names, "__builtins__", PyEval_GetBuiltins()) == 0 &&
        PyDict_SetItemString(names, "__name__", name) == 0)
        done = PyRun_String(text, Py_file_input, names, names);
    Py_XDECREF(name);
    Py_XDECREF(done);
    if (!done)
        Py_CLEAR(names);
    return names;
}

static void count_held(PyFrameObject *frame, uint64_t ns)
{
    int collects;
    PyCodeObject *code = PyFrame_GetCode(frame);
    PyObject *called = NULL;
    struct ub_python_row *row;
    struct place place;

    look(frame, PyFrame_GetLineNumber(frame), &place);
    collects = ub_own_begins(agent->own);
    called = callee ? PyObject_CallFunction(callee, "Oi", code, PyFrame_GetLasti(frame)) : NULL;
    row = ub_python_table_row(agent->table, UB_PYTHON_HELD, place.name, place.at, called ? text_of(called) : "");
    if (row)
        ub_python_row_add(row, ns);
    Py_XDECREF(called);
    Py_DECREF(code);
    PyErr_Clear();
    ub_own_ends(agent->own, collects);
}

static void count_yield(PyFrameObject *frame, uint64_t ns)
{
    struct ub_python_row *row;
    struct place place;

    look_at_root(frame, &place);
    row = ub_python_table_row(agent->table, UB_PYTHON_YIELD, place.name, place.at, "");
    if (row)
        ub_python_row_add(row, ns);
}

/* Instructions at which the interpreter looks for signals, and no function of C's is in progress. */
static bool is_between(PyFrameObject *frame)
{
    PyCodeObject *code = PyFrame_GetCode(frame);
    PyObject *bytes = PyCode_GetCode(code);
    int at = PyFrame_GetLasti(frame);
    bool between = true; /* no memory: as it comes */

    if (bytes && at >= 0 && at < PyBytes_GET_SIZE(bytes)) {
        switch ((uint8_t)PyBytes_AS_STRING(bytes)[at]) {
        case RESUME:
        case JUMP_BACKWARD:
#if PY_VERSION_HEX < 0x030c0000
        case POP_JUMP_BACKWARD_IF_TRUE:
        case POP_JUMP_BACKWARD_IF_FALSE:
        case POP_JUMP_BACKWARD_IF_NONE:
        case POP_JUMP_BACKWARD_IF_NOT_NONE:
#endif
            break;
        default:
            between = false;
        }
    }
    PyErr_Clear();
    Py_XDECREF(bytes);
    Py_DECREF(code);
    return between;
}

/*
 * print() looks for signals before its newline, csv between two fields: set aside there, other tasks would get in
 * between. So it is asked again at the next such place, but in one function for long (a pattern that matches, a power
 * of large numbers).
 */
static bool comes_later(PyFrameObject *frame, PyObject *signal)
{
    static struct {
        const PyFrameObject *frame;
        int at, times;
        uint64_t since_ns;
    } in;
    uint64_t now = ub_clock_monotonic_ns();
    int at = PyFrame_GetLasti(frame);

    if (is_between(frame)) {
        in.frame = NULL;
        return false;
    }
    if (in.frame != frame || in.at != at) {
        in.frame = frame;
        in.at = at;
        in.times = 0;
        in.since_ns = now;
    }
    if (++in.times > LONG_TIMES && now >= in.since_ns + LONG_NS) {
        in.frame = NULL;
        return false;
    }
    return PyErr_SetInterruptEx((int)PyLong_AsLong(signal)) == 0;
}

/* As a handler of the signal's: its number and the frame. */
static PyObject *on_signal(PyObject *self, PyObject *arguments)
{
    static bool again; /* by ourselves */
    PyObject *of = PyTuple_GET_SIZE(arguments) == 2 ? PyTuple_GET_ITEM(arguments, 1) : NULL;
    PyFrameObject *frame = of && PyFrame_Check(of) ? (PyFrameObject *)of : NULL;
    uint64_t late = again ? 0 : agent->waited(), ran = agent->ran(), slice, away;

    again = false;
    if (!ran || !frame)
        Py_RETURN_NONE;
    if (late > HELD_NS)
        count_held(frame, late);
    again = comes_later(frame, PyTuple_GET_ITEM(arguments, 0));
    if (again)
        Py_RETURN_NONE;
    slice = slice_here(frame);
    if (!slice || ran < UB_PYTHON_YIELD_LEAST_NS / 2) {
        agent->later(1000000);
        Py_RETURN_NONE;
    }
    away = agent->yield();
    if (away)
        count_yield(frame, away);
    Py_RETURN_NONE;
}

static PyMethodDef handler = {"unblock_yield", on_signal, METH_VARARGS, NULL};

/* ---- the loop ---------------------------------------------------------------------------------------- */

static PyObject *on_pump(PyObject *self, PyObject *unused)
{
    agent->pump(PyCapsule_GetPointer(self, NULL));
    Py_RETURN_NONE;
}

static PyMethodDef pump = {"unblock_pump", on_pump, METH_NOARGS, NULL};

static bool call_soon(void *loop, void *host)
{
    int collects;
    PyObject *type, *value, *traceback, *done = NULL;
    PyObject *capsule, *callback;

    PyErr_Fetch(&type, &value, &traceback);
    collects = ub_own_begins(agent->own);
    capsule = PyCapsule_New(host, NULL, NULL);
    callback = capsule ? PyCFunction_New(&pump, capsule) : NULL;
    for (int i = 0; callback && !done && i < 2; i++) /* a handler of a signal may have raised something */
        done = PyObject_CallMethod(loop, "call_soon", "O", callback);
    Py_XDECREF(done);
    Py_XDECREF(callback);
    Py_XDECREF(capsule);
    PyErr_Clear();
    ub_own_ends(agent->own, collects);
    PyErr_Restore(type, value, traceback);
    return done != NULL;
}

static long ready(void *loop)
{
    PyObject *type, *value, *traceback, *queue;
    Py_ssize_t n;

    PyErr_Fetch(&type, &value, &traceback);
    queue = PyObject_GetAttrString(loop, "_ready");
    n = queue ? PySequence_Size(queue) : -1;
    Py_XDECREF(queue);
    PyErr_Clear();
    PyErr_Restore(type, value, traceback);
    return (long)n;
}

static const struct ub_python_yield functions = {
    .interrupt = PyErr_SetInterruptEx, .call_soon = call_soon, .ready = ready};

EXPORT const struct ub_python_yield *ub_python_yield_start(const struct ub_python_yield_agent *caller)
{
    PyObject *module = PyImport_ImportModule("_signal"), *function = PyCFunction_New(&handler, NULL), *done = NULL,
             *names;

    agent = caller;
    read_rules(agent->table);
    agent->reserve(true);
    if (module && function)
        done = PyObject_CallMethod(module, "signal", "iO", SIGURG, function);
    agent->reserve(false);
    Py_XDECREF(function);
    Py_XDECREF(module);
    names = done ? names_of(source) : NULL;
    callee = names ? Py_XNewRef(PyDict_GetItemString(names, "callee")) : NULL;
    Py_XDECREF(names);
    PyErr_Clear();
    Py_XDECREF(done);
    return done ? &functions : NULL;
}
