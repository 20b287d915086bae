/*
 * Where CPython keeps what is read from outside: byte offsets, one table a
 * minor version, each in a file of its own (python_3_11.c ...). Facts, taken
 * from the real headers and debug information; tests/e2e/test_python_layouts.py
 * checks them against every interpreter whose headers are installed, and
 * python_find.c against each process.
 *
 * A new minor version: see tracer/README.md, "Python".
 */
#ifndef UB_TRACER_PYTHON_LAYOUT_H
#define UB_TRACER_PYTHON_LAYOUT_H

#include "../common/base.h"

#define UB_PYTHON_NONE UINT32_MAX /* this version has no such field */

enum ub_python_lines {
    UB_PYTHON_LNOTAB,    /* 3.8, 3.9: co_lnotab */
    UB_PYTHON_LINETABLE, /* 3.10: co_linetable of deltas */
    UB_PYTHON_LOCATIONS, /* 3.11 and later: co_linetable of location entries */
};

/* How one interpreter frame says which instruction it executes. */
enum ub_python_instruction {
    UB_PYTHON_LASTI_BYTES, /* 3.8, 3.9: an int, bytes */
    UB_PYTHON_LASTI_UNITS, /* 3.10: an int, code units */
    UB_PYTHON_POINTER,     /* 3.11 and later: an address in the code object */
};

/* Where an instance keeps its attributes. */
enum ub_python_instance {
    UB_PYTHON_DICT_AT,       /* to 3.10: a dict, at tp_dictoffset */
    UB_PYTHON_VALUES_BEFORE, /* 3.11: before the object: values, dict */
    UB_PYTHON_TAGGED_BEFORE, /* 3.12: before the object, one word: values - 1, or a dict */
    UB_PYTHON_INLINE,        /* 3.13: values behind the object; a dict before it, if there is one */
};

/* Name of the field, then what it is in CPython's own terms ("|": versions differ). */
#define UB_PYTHON_FIELDS(X)                                                                                            \
    X(runtime_interpreters)  /* _PyRuntimeState.interpreters.head */                                                   \
    X(runtime_gil)           /* _PyRuntimeState.ceval.gil, where there is one GIL for all interpreters */              \
    X(runtime_gc_collecting) /* _PyRuntimeState.gc.collecting */                                                       \
    X(interp_next)           /* PyInterpreterState.next */                                                             \
    X(interp_threads)        /* .tstate_head | .threads.head */                                                        \
    X(interp_modules)        /* .modules | .imports.modules: sys.modules */                                            \
    X(interp_gil)            /* .ceval.gil, a pointer */                                                               \
    X(interp_gc_collecting)  /* .gc.collecting */                                                                      \
    X(gil_last_holder)       /* struct _gil_runtime_state.last_holder */                                               \
    X(gil_locked)            /* .locked */                                                                             \
    X(gil_cond)              /* .cond; from here to gil_end lie the condition and the mutex that waiters sleep on */   \
    X(gil_end)               /* its size */                                                                            \
    X(thread_next)           /* PyThreadState.next */                                                                  \
    X(thread_interp)         /* .interp */                                                                             \
    X(thread_pthread)        /* .thread_id: pthread_self() */                                                          \
    X(thread_tid)            /* .native_thread_id */                                                                   \
    X(thread_frame)          /* .frame | .cframe | .current_frame */                                                   \
    X(cframe_current)        /* _PyCFrame.current_frame: one more step to it */                                        \
    X(frame_code)            /* PyFrameObject.f_code | _PyInterpreterFrame.f_code | .f_executable */                   \
    X(frame_back)            /* .f_back | .previous */                                                                 \
    X(frame_instruction)     /* .f_lasti | .prev_instr | .instr_ptr */                                                 \
    X(frame_owner)           /* .owner */                                                                              \
    X(frame_entry)           /* .is_entry */                                                                           \
    X(frame_generator)       /* PyFrameObject.f_gen */                                                                 \
    X(frame_stack_top)       /* .f_stacktop | .f_stackdepth | .stacktop */                                             \
    X(frame_stack)           /* PyFrameObject.f_valuestack */                                                          \
    X(frame_locals)          /* .f_localsplus | .localsplus */                                                         \
    X(frame_size)            /* what must be read of a frame */                                                        \
    X(code_name)             /* PyCodeObject.co_name */                                                                \
    X(code_qualname)         /* .co_qualname */                                                                        \
    X(code_filename)         /* .co_filename */                                                                        \
    X(code_first_line)       /* .co_firstlineno */                                                                     \
    X(code_flags)            /* .co_flags */                                                                           \
    X(code_lines)            /* .co_lnotab | .co_linetable */                                                          \
    X(code_bytes)            /* .co_code_adaptive */                                                                   \
    X(code_size)             /* sizeof PyCodeObject */                                                                 \
    X(string_length)         /* PyASCIIObject.length */                                                                \
    X(string_state)          /* .state */                                                                              \
    X(string_ascii)          /* sizeof PyASCIIObject: where the characters of a compact ASCII string are */            \
    X(string_compact)        /* sizeof PyCompactUnicodeObject: ... of any other compact string */                      \
    X(bytes_data)            /* PyBytesObject.ob_sval */                                                               \
    X(generator_frame)       /* PyCoroObject.cr_frame | .cr_iframe */                                                  \
    X(generator_state)       /* .cr_frame_state */                                                                     \
    X(generator_running)     /* .cr_running */                                                                         \
    X(frame_state)           /* PyFrameObject.f_state */                                                               \
    X(generator_name)        /* .cr_qualname */                                                                        \
    X(dict_keys)             /* PyDictObject.ma_keys */                                                                \
    X(dict_values)           /* .ma_values */                                                                          \
    X(values_first)          /* PyDictValues.values */                                                                 \
    X(keys_size)             /* PyDictKeysObject.dk_size | .dk_log2_size */                                            \
    X(keys_index_bytes)      /* .dk_log2_index_bytes */                                                                \
    X(keys_kind)             /* .dk_kind */                                                                            \
    X(keys_entries)          /* .dk_nentries */                                                                        \
    X(keys_indices)          /* .dk_indices */                                                                         \
    X(task_coroutine)        /* TaskObj.task_coro, of Modules/_asynciomodule.c */                                      \
    X(task_name)             /* .task_name */                                                                          \
    X(task_waiter)           /* .task_fut_waiter */                                                                    \
    X(future_source)         /* FutureObj.fut_source_tb */                                                             \
    X(future_state)          /* .fut_state */                                                                          \
    X(summary_file)          /* traceback.FrameSummary.filename; lineno follows */                                     \
    X(type_keys)             /* PyHeapTypeObject.ht_cached_keys: names of instances' attributes */                     \
    X(queue_list)            /* simplequeueobject.lst, of Modules/_queuemodule.c */                                    \
    X(queue_first)           /* .lst_pos */                                                                            \
    X(queue_count)           /* .buf.num_items */                                                                      \
    X(code_locals)           /* PyCodeObject.co_varnames | .co_localsplusnames */

struct ub_python_layout {
    uint32_t version; /* 0x030b: 3.11 */
    enum ub_python_lines lines;
    enum ub_python_instruction instruction;
    enum ub_python_instance instance;
    int8_t owner_generator; /* values of frame_owner; -1: none */
    int8_t owner_c;         /* no Python code: where the interpreter was entered from C */
#define X(name) uint32_t name;
    UB_PYTHON_FIELDS(X)
#undef X
};

extern const struct ub_python_layout ub_python_3_8, ub_python_3_9, ub_python_3_10, ub_python_3_11, ub_python_3_12,
    ub_python_3_13, ub_python_3_14;

/* The same in every version that is known. */
#define UB_PYTHON_OBJECT_TYPE  8u  /* PyObject.ob_type */
#define UB_PYTHON_VAR_SIZE     16u /* PyVarObject.ob_size */
#define UB_PYTHON_TYPE_NAME    24u /* PyTypeObject.tp_name */
#define UB_PYTHON_TYPE_SIZE_AT 32u /* .tp_basicsize */
#define UB_PYTHON_TYPE_FLAGS   168u
#define UB_PYTHON_TYPE_MEMBERS 240u /* .tp_members */
#define UB_PYTHON_TYPE_BASE    256u
#define UB_PYTHON_TYPE_DICT_AT 288u /* .tp_dictoffset */
#define UB_PYTHON_MODULE_DICT  16u  /* PyModuleObject.md_dict */
#define UB_PYTHON_LIST_ITEMS   24u  /* PyListObject.ob_item */
#define UB_PYTHON_SET_MASK     32u  /* PySetObject.mask */
#define UB_PYTHON_SET_TABLE    40u  /* .table */
#define UB_PYTHON_WEAKREF_TO   16u  /* PyWeakReference.wr_object */
#define UB_PYTHON_TUPLE_ITEMS  24u  /* PyTupleObject.ob_item */
#define UB_PYTHON_CELL_TO      16u  /* PyCellObject.ob_ref */
#define UB_PYTHON_FUTURE_LOOP  16u  /* FutureObj.fut_loop */

#endif
