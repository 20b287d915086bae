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
#define METHODS(X) X(write) X(flush) X(read) X(readline) X(seek) X(truncate) X(close) X(detach)
#define METHOD(name) \
    static any_method *original_##name; \
    static PyObject *text_##name(PyObject *self, void *b, void *c, void *d, void *e) \
    { \
        const void *before = agent->text_begins(self); \
        PyObject *result = original_##name(self, b, c, d, e); \
        agent->text_ends(before); \
        return result; \
    }
METHODS(METHOD)
/* clang-format on */

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
    Py_XDECREF(type);
    Py_XDECREF(module);
    PyErr_Clear();
    return original_write && original_flush;
}
