/*
 * Text files (io.TextIOWrapper): what waits to be written, or to be read on, stands in the object, which nobody but the
 * GIL keeps from being changed by two at once. A step that is left in the midst of one of its functions (a print to a
 * pipe that is full) has it to itself until it is out of it: others lost text there, and wrote memory that was not
 * theirs. Likewise binary files that are read (io.BufferedReader): some of their functions look at what is there before
 * they take the file's lock, and throw it away when they have that: what another had read meanwhile was lost.
 *
 * And print and input use sys.stdout and its kin without a reference of their own: with those replaced by another step,
 * while one is left in the midst of a print, they went on with memory that was free.
 */
#include <Python.h>

#include "python.h"

#include <string.h>

/* With as many arguments as any kind of method has: the original looks at its own. */
typedef PyObject *any_method(PyObject *self, void *b, void *c, void *d, void *e);

static const struct ub_python_agent *agent;

/* Of one type; `next`: what `for line in file` calls, no method, but a slot of which each derived type has a copy. */
struct file_type {
    const char *name;
    iternextfunc next, with;
};

#define STANDARD 3

/* sys.stdin, sys.stdout and sys.stderr; NULL: the program has deleted it. */
static void hold_standard(PyObject *ret[STANDARD])
{
    static const char *const name[STANDARD] = {"stdin", "stdout", "stderr"};

    for (int i = 0; i < STANDARD; i++) {
        ret[i] = PySys_GetObject(name[i]);
        Py_XINCREF(ret[i]);
    }
}

/* The last one closes its file, which may call anything: what the builtin has raised stays raised. */
static void drop_standard(PyObject *file[STANDARD])
{
    for (int i = 0; i < STANDARD; i++)
        Py_XDECREF(file[i]);
}

/* clang-format off */
#define METHOD(of, name) \
    static any_method *original_##of##_##name; \
    static PyObject *of##_##name(PyObject *self, void *b, void *c, void *d, void *e) \
    { \
        struct ub_python_file use; \
        PyObject *result; \
        agent->file_begins(&use, self); \
        result = original_##of##_##name(self, b, c, d, e); \
        agent->file_ends(&use); \
        return result; \
    }
#define NEXT(of, named) \
    static PyObject *of##_next(PyObject *self); \
    static struct file_type of##_type = {.name = named, .with = of##_next}; \
    static PyObject *of##_next(PyObject *self) \
    { \
        struct ub_python_file use; \
        PyObject *line; \
        agent->file_begins(&use, self); \
        line = of##_type.next(self); \
        agent->file_ends(&use); \
        return line; \
    }
#define TEXT(X) \
    X(text, write) X(text, flush) X(text, read) X(text, readline) X(text, seek) X(text, tell) X(text, truncate) \
    X(text, reconfigure) X(text, close) X(text, detach)
#define READER(X, t) \
    X(t, read) X(t, read1) X(t, readinto) X(t, readinto1) X(t, readline) X(t, peek) X(t, seek) X(t, tell) X(t, close) X(t, detach)
#define READERS(X) READER(X, reader)
#define RANDOMS(X) READER(X, random) X(random, write) X(random, flush) X(random, truncate)
#define HOLDS(name) \
    static any_method *original_##name; \
    static PyObject *builtin_##name(PyObject *self, void *b, void *c, void *d, void *e) \
    { \
        PyObject *file[STANDARD], *result; \
        hold_standard(file); \
        result = original_##name(self, b, c, d, e); \
        drop_standard(file); \
        return result; \
    }
#define BUILTINS(X) X(print) X(input)
BUILTINS(HOLDS) TEXT(METHOD) NEXT(text, "TextIOWrapper")
READERS(METHOD) NEXT(reader, "BufferedReader")
RANDOMS(METHOD) NEXT(random, "BufferedRandom")
    /* clang-format on */

    static void replace_next(PyTypeObject *type, const struct file_type *t)
{
    PyObject *derived = PyObject_CallMethod((PyObject *)type, "__subclasses__", NULL);

    if (type->tp_iternext == t->next)
        type->tp_iternext = t->with;
    for (Py_ssize_t i = 0; derived && i < PyList_GET_SIZE(derived); i++)
        replace_next((PyTypeObject *)PyList_GET_ITEM(derived, i), t);
    Py_XDECREF(derived);
}

/* And its __next__, for who asks for it by name. */
static void hook_next(PyTypeObject *type, struct file_type *t)
{
    PyObject *descriptor = PyObject_GetAttrString((PyObject *)type, "__next__");

    t->next = type->tp_iternext;
    if (descriptor && Py_TYPE(descriptor) == &PyWrapperDescr_Type && PyDescr_TYPE(descriptor) == type)
        memcpy(&((PyWrapperDescrObject *)descriptor)->d_wrapped, &t->with, sizeof(t->with));
    Py_XDECREF(descriptor);
    replace_next(type, t);
}

static void replace_definition(PyMethodDef *definition, any_method **original, any_method *with)
{
    memcpy(original, &definition->ml_meth, sizeof(*original));
    memcpy(&definition->ml_meth, &with, sizeof(with));
}

static void replace(PyObject *type, const char *name, any_method **original, any_method *with)
{
    PyObject *descriptor = PyObject_GetAttrString(type, name);

    if (descriptor && Py_TYPE(descriptor) == &PyMethodDescr_Type && (PyObject *)PyDescr_TYPE(descriptor) == type)
        replace_definition(((PyMethodDescrObject *)descriptor)->d_method, original, with);
    Py_XDECREF(descriptor);
    PyErr_Clear();
}

/* Where it is the interpreter's own still: what the program has put there holds what it uses. */
static void replace_builtin(PyObject *builtins, const char *name, any_method **original, any_method *with)
{
    PyObject *f = builtins ? PyObject_GetAttrString(builtins, name) : NULL;

    if (f && PyCFunction_CheckExact(f) && PyCFunction_GET_SELF(f) == builtins)
        replace_definition(((PyCFunctionObject *)f)->m_ml, original, with);
    Py_XDECREF(f);
    PyErr_Clear();
}

static void hook_builtins(void)
{
    PyObject *builtins = PyImport_ImportModule("builtins");

#define REPLACE_BUILTIN(name) replace_builtin(builtins, #name, &original_##name, builtin_##name);
    BUILTINS(REPLACE_BUILTIN)
    Py_XDECREF(builtins);
    PyErr_Clear();
}

static bool hook_type(PyObject *module, struct file_type *t)
{
    PyObject *type = module ? PyObject_GetAttrString(module, t->name) : NULL;
    bool there = type && PyType_Check(type) && ((PyTypeObject *)type)->tp_iternext;

    if (there) {
#define REPLACE(of, name)                                                                                              \
    if (t == &of##_type)                                                                                               \
        replace(type, #name, &original_##of##_##name, of##_##name);
        TEXT(REPLACE)
        READERS(REPLACE)
        RANDOMS(REPLACE)
        hook_next((PyTypeObject *)type, t);
    }
    Py_XDECREF(type);
    PyErr_Clear();
    return there;
}

bool ub_python_hook_files(const struct ub_python_agent *caller)
{
    PyObject *module = PyImport_ImportModule("_io");
    bool ok;

    agent = caller;
    ok = hook_type(module, &text_type) && hook_type(module, &reader_type) && hook_type(module, &random_type);
    hook_builtins();
    Py_XDECREF(module);
    PyErr_Clear();
    return ok && original_text_write && original_text_flush && original_reader_read1 && original_random_read1;
}
