/*
 * The chain of a thread's Python frames, by CPython's minor version: offsets in
 * bytes (tests/e2e/test_python_layouts.py compares them with the tracer's, and
 * those with the headers). What a frame says is the tracer's to read.
 */
#ifndef UB_AGENT_PYTHON_LAYOUT_H
#define UB_AGENT_PYTHON_LAYOUT_H

#include "../../common/base.h"

#define UB_PYTHON_NO_CFRAME   UINT32_MAX
#define UB_PYTHON_FRAME_LEAST 80u /* bytes that a frame has at least */

struct ub_python_chain {
    uint32_t frame;  /* PyThreadState.frame, .cframe, .current_frame */
    uint32_t cframe; /* _PyCFrame.current_frame */
    uint32_t back;   /* frame.previous, .f_back */
    uint32_t code;   /* frame.f_code, .f_executable */
    uint32_t next;   /* frame.prev_instr, .instr_ptr: an address; 0: it has a number */
    uint32_t owner;  /* frame.owner */
    int8_t entry;    /* its value where a frame has no Python code; -1: none */
};

/* clang-format off */
#define UB_PYTHON_CHAINS \
    UB_PYTHON_CHAIN(0,      24, UB_PYTHON_NO_CFRAME, 24, 32, 0,  0,  -1) /* 3.8 to 3.10: their version is in no symbol */ \
    UB_PYTHON_CHAIN(0x030b, 56, 8,                   48, 32, 56, 69, -1) \
    UB_PYTHON_CHAIN(0x030c, 56, 0,                   8,  0,  56, 70, 3) \
    UB_PYTHON_CHAIN(0x030d, 72, UB_PYTHON_NO_CFRAME, 8,  0,  56, 70, 3)
/* clang-format on */

/* Whether a coroutine has begun: by a byte of its own, or (state 0) by its frame's last instruction. */
struct ub_python_begun {
    uint32_t state;
    int8_t created; /* its value before */
    uint32_t frame, last;
};

/* clang-format off */
#define UB_PYTHON_BEGUNS \
    UB_PYTHON_BEGUN(0x0309, 0,  0,  16, 104) /* and 3.8: their version is in no symbol */ \
    UB_PYTHON_BEGUN(0x030a, 0,  0,  16, 96) /* likewise */ \
    UB_PYTHON_BEGUN(0x030b, 75, -2, 0,  0) \
    UB_PYTHON_BEGUN(0x030c, 67, -2, 0,  0) \
    UB_PYTHON_BEGUN(0x030d, 67, -3, 0,  0)
/* clang-format on */

/* The same in every version. */
#define UB_PYTHON_TYPE     8u   /* PyObject.ob_type */
#define UB_PYTHON_FINALIZE 392u /* PyTypeObject.tp_finalize */

#endif
