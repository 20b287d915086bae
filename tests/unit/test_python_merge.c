/* Native and Python frames of one look made one stack; callback and task of it. */
#include "unit.h"

#include "../../tracer/python_layout.h"
#include "../../tracer/python_merge.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define EVAL "_PyEval_EvalFrameDefault"

static struct ub_named_stack stack;
static struct ub_python_look look, wait;

static const struct ub_python_code code[] = {
    {"inner", "/srv/app.py", UB_PYTHON_USER, 0, 10, &ub_python_3_11, NULL, 0},
    {"handler", "/srv/app.py", UB_PYTHON_USER, UB_PYTHON_CO_COROUTINE, 20, &ub_python_3_11, NULL, 0},
    {"outer", "/srv/app.py", UB_PYTHON_USER, UB_PYTHON_CO_COROUTINE, 30, &ub_python_3_11, NULL, 0},
    {"Handle._run", "/usr/lib/python3.11/asyncio/events.py", UB_PYTHON_LOOP, 0, 40, &ub_python_3_11, NULL, 0},
    {"<module>", "/srv/app.py", UB_PYTHON_USER, 0, 1, &ub_python_3_11, NULL, 0},
};

static void native(const char *functions, bool complete)
{
    char *copy = strdup(functions), *save, *word;

    memset(&stack, 0, sizeof(stack));
    stack.complete = complete;
    for (word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        stack.frame[stack.count].role = UB_ROLE_RUNTIME;
        stack.frame[stack.count++].symbol.function = strcmp(word, "EVAL") == 0 ? EVAL : strdup(word);
    }
    free(copy);
}

/* "0 1. 2.": frames of `code`, innermost first; '.': the interpreter was entered for it. */
static void python(struct ub_python_look *l, const char *frames, bool complete)
{
    memset(l, 0, sizeof(*l));
    l->complete = complete;
    l->proof = UB_PYTHON_STILL;
    for (; *frames; frames++) {
        if (*frames == '.')
            l->frame[l->count - 1].entry = true;
        else if (*frames != ' ') {
            l->frame[l->count].code = &code[*frames - '0'];
            l->frame[l->count].address = 0x1000u * (uint64_t)(16 - (*frames - '0'));
            l->frame[l->count].generator = l->frame[l->count].code->flags ? l->frame[l->count].address : 0;
            l->count++;
        }
    }
}

static void expect(const char *functions)
{
    char got[512] = "";

    for (uint32_t i = 0; i < stack.count; i++) {
        strcat(got, i ? " " : "");
        strcat(got, stack.frame[i].symbol.function);
    }
    assert_string_equal(got, functions);
}

/* From 3.11 on one run of the interpreter executes several frames. */
static void test_runs_of_several_frames(void **state)
{
    native("nanosleep time_sleep EVAL gen_send task_step EVAL main", true);
    python(&look, "0 1 2. 3 4.", true);
    assert_true(ub_python_merge(&stack, &look));
    expect("nanosleep time_sleep inner handler outer gen_send task_step Handle._run <module> main");
    assert_int_equal(stack.frame[2].role, UB_ROLE_USER);
    assert_int_equal(stack.frame[2].symbol.line, 10);
    assert_int_equal(stack.frame[7].role, UB_ROLE_LOOP);
}

static void test_one_frame_a_run(void **state)
{
    native("read EVAL call EVAL EVAL main", true);
    python(&look, "0. 1. 4.", true);
    assert_true(ub_python_merge(&stack, &look));
    expect("read inner call handler <module> main");
}

/* Cut off outside: what is missing of the native stack does not move the Python frames inside. */
static void test_a_native_stack_that_was_cut_short(void **state)
{
    native("read EVAL call", false);
    python(&look, "0. 1. 4.", true);
    assert_true(ub_python_merge(&stack, &look));
    expect("read inner call handler <module>");
}

/* Of a running thread the inner frames may be missing: the outer ones stay with the outer runs, and it is told. */
static void test_python_frames_that_are_missing(void **state)
{
    native("f EVAL call EVAL EVAL main", true);
    python(&look, "1. 4.", true);
    assert_false(ub_python_merge(&stack, &look));
    expect("f call handler <module> main");
    native("f EVAL main", true);
    python(&look, "0. 1. 4.", true);
    assert_false(ub_python_merge(&stack, &look));
}

static void test_no_python(void **state)
{
    native("f EVAL main", true);
    python(&look, "", false);
    assert_true(ub_python_merge(&stack, &look));
    expect("f " EVAL " main");
}

static int callback(const char *frames, const char *waiting, int moved)
{
    native("f EVAL g EVAL main", true);
    python(&look, frames, true);
    python(&wait, waiting ? waiting : "", true);
    if (moved >= 0)
        look.frame[moved].offset = 100;
    ub_python_merge(&stack, &look);
    return ub_python_callback(&stack, &look, waiting ? &wait : NULL);
}

static void test_callback(void **state)
{
    /* The outermost frame of the program's own inside asyncio's. */
    assert_string_equal(stack.frame[callback("0 1 2. 3 4.", NULL, -1)].symbol.function, "outer");
    /* A loop written in Python: the frame that called the wait then is the dispatcher. */
    assert_string_equal(stack.frame[callback("0 1. 2 4.", "2 4.", 2)].symbol.function, "handler");
    /* Nothing of the program's own inside. */
    assert_int_equal(callback("3. 3.", NULL, -1), -ENOENT);
}

static void test_task(void **state)
{
    json_t *task;

    python(&look, "0 1 2. 3 4.", true);
    assert_null(ub_python_task_json(&look, false));
    look.task.known = true;
    look.task.coroutine = 2;
    strcpy(look.task.name, "Task-7");
    task = ub_python_task_json(&look, true);
    assert_string_equal(json_string_value(json_object_get(task, "name")), "Task-7");
    assert_string_equal(json_string_value(json_object_get(task, "coroutine")), "outer");
    assert_int_equal(json_array_size(json_object_get(task, "await")), 2);
    assert_string_equal(
        json_string_value(json_object_get(json_array_get(json_object_get(task, "await"), 1), "function")), "handler");
    assert_string_equal(json_string_value(json_object_get(json_array_get(json_object_get(task, "await"), 1), "file")),
                        "app.py");
    json_decref(task);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_runs_of_several_frames),
        cmocka_unit_test(test_one_frame_a_run),
        cmocka_unit_test(test_a_native_stack_that_was_cut_short),
        cmocka_unit_test(test_python_frames_that_are_missing),
        cmocka_unit_test(test_no_python),
        cmocka_unit_test(test_callback),
        cmocka_unit_test(test_task),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
