/*
 * A native stack and the Python frames of the same look as one stack, and what
 * the recording says about its Python side.
 */
#ifndef UB_TRACER_PYTHON_MERGE_H
#define UB_TRACER_PYTHON_MERGE_H

#include "frames.h"
#include "python.h"

/*
 * Puts the Python frames in the place of the interpreter's frames that execute
 * them. Strings belong to the look's process. false: both do not fit together
 * (they are of different moments), so that the look proves less than it says.
 */
bool ub_python_merge(struct ub_named_stack *s, const struct ub_python_look *look);

/*
 * Index of the frame that is the callback: the outermost one of the user's own
 * below the loop. `wait`: the Python side of the loop's thread while it waited,
 * or NULL. -ENOENT: there is none.
 */
int ub_python_callback(const struct ub_named_stack *s, const struct ub_python_look *look,
                       const struct ub_python_look *wait);

/* The recording's name of the loop, NULL when this is none of Python's. */
const char *ub_python_loop(const struct ub_named_stack *s);

/* An import is under way. */
bool ub_python_importing(const struct ub_python_look *look);

/* The wait is a synchronous one of Python's library (subprocess.communicate), however often it comes. NULL: false. */
bool ub_python_synchronous(const struct ub_python_look *look);

/* `task` of a slow line, NULL: no task was seen. */
json_t *ub_python_task_json(const struct ub_python_look *look, bool redact);

/* {function, file, line} */
json_t *ub_python_place(const struct ub_python_frame *frame, bool redact);

/* The same of a function that is not known to be at any line: its first. */
json_t *ub_python_code_place(const struct ub_python_code *code, bool redact);

/* The recording's `python` of a sample. */
const char *ub_python_proof_name(const struct ub_python_look *look, bool merged);

#endif
