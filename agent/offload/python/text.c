/*
 * Text files (io.TextIOWrapper): what waits to be written, or to be read on, stands in the object, which nobody but the
 * GIL keeps from being changed by two at once. A step that is left in the midst of one of its functions (a print to a
 * pipe that is full) has it to itself until it is out of it: others lost text there, and wrote memory that was not
 * theirs.
 */
#include <Python.h>

#include "python.h"

#include <string.h>

/* With as many arguments as any kind of method has: the original looks at its own. */
typedef PyObject *any_method(PyObject *self, void *b, void *c, void *d, void *e);

static const struct ub_python_agent *agent;

/* clang-format off */
#define METHODS(X) \
    X(write) X(flush) X(read) X(readline) X(seek) X(tell) X(truncate) X(reconfigure) X(close) X(detach)
#define METHOD(name) \
    static any_method *original_##name; \
    static PyObject *text_##name(PyObject *self, void *b, void *c, void *d, void *e) \
    { \
        struct ub_python_text use; \
        PyObject *result; \
        agent->text_begins(&use, self); \
        result = original_##name(self, b, c, d, e); \
        agent->text_ends(&use); \
        return result; \
    }
METHODS(METHOD)
/* clang-format on */

/* `for line in file`: no method, but a slot of the type's, which each type derived from it has a copy of. */
static iternextfunc original_next;

static PyObject *text_next(PyObject *self)
{
    struct ub_python_text use;
    PyObject *line;

    agent->text_begins(&use, self);
    line = original_next(self);
    agent->text_ends(&use);
    return line;
}

static void replace_next(PyTypeObject *type)
{
    PyObject *derived = PyObject_CallMethod((PyObject *)type, "__subclasses__", NULL);

    if (type->tp_iternext == original_next)
        type->tp_iternext = text_next;
    for (Py_ssize_t i = 0; derived && i < PyList_GET_SIZE(derived); i++)
        replace_next((PyTypeObject *)PyList_GET_ITEM(derived, i));
    Py_XDECREF(derived);
    PyErr_Clear();
}

/* And its __next__, as who asks for it by name has it. */
static void hook_next(PyTypeObject *type)
{
    PyObject *descriptor = PyObject_GetAttrString((PyObject *)type, "__next__");

    original_next = type->tp_iternext;
    if (descriptor && Py_TYPE(descriptor) == &PyWrapperDescr_Type && PyDescr_TYPE(descriptor) == type)
        ((PyWrapperDescrObject *)descriptor)->d_wrapped = (void *)text_next;
    Py_XDECREF(descriptor);
    PyErr_Clear();
    replace_next(type);
}

static void replace(PyObject *type, const char *name, any_method **original, any_method *with)
{
    PyObject *descriptor = PyObject_GetAttrString(type, name);

    if (descriptor && Py_TYPE(descriptor) == &PyMethodDescr_Type) {
        PyMethodDef *definition = ((PyMethodDescrObject *)descriptor)->d_method;

        memcpy(original, &definition->ml_meth, sizeof(*original));
        memcpy(&definition->ml_meth, &with, sizeof(with));
    }
    Py_XDECREF(descriptor);
    PyErr_Clear();
}

bool ub_python_hook_text(const struct ub_python_agent *caller)
{
    PyObject *module = PyImport_ImportModule("_io");
    PyObject *type = module ? PyObject_GetAttrString(module, "TextIOWrapper") : NULL;

    agent = caller;
#define REPLACE(name)                                                                                                  \
    if (type)                                                                                                          \
        replace(type, #name, &original_##name, text_##name);
    METHODS(REPLACE)
    if (type && PyType_Check(type) && ((PyTypeObject *)type)->tp_iternext)
        hook_next((PyTypeObject *)type);
    Py_XDECREF(type);
    Py_XDECREF(module);
    PyErr_Clear();
    return original_write && original_flush && original_next;
}
