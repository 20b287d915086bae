/* What a policy could do about a stall, from looks made by hand. */
#include "unit.h"

#include "../../tracer/explain_impl.h"

#include <stdlib.h>

#define MS 1000000ull

static const struct ub_python_code coroutine = {
    .file = "/srv/app.py", .function = "main", .flags = UB_PYTHON_CO_COROUTINE};
static const struct ub_python_code function = {.file = "/srv/app.py", .function = "fix"};
static const struct ub_python_code inner = {.file = "/srv/app.py", .function = "inner"};

static struct ub_stall stall;

static int begin(void **state)
{
    stall = (struct ub_stall){0};
    return 0;
}

struct made {
    const struct ub_python_code *code[3]; /* innermost first */
    int32_t offset;                       /* of the innermost */
    const char *called;
    uint64_t data;
    enum ub_python_gil gil;
    uint64_t locals[3]; /* of the first looks */
};

static void looks(uint32_t count, struct made made, int32_t step)
{
    struct ub_python_look *look = calloc(1, sizeof(*look));

    for (uint32_t i = 0; i < count; i++) {
        look->proof = UB_PYTHON_TWICE;
        look->data = made.data;
        look->locals = i < 3 ? made.locals[i] : 0;
        strncpy(look->called, made.called ? made.called : "", sizeof(look->called) - 1);
        for (look->count = 0; look->count < 3 && made.code[look->count]; look->count++)
            look->frame[look->count].code = made.code[look->count];
        look->frame[0].offset = made.offset + step * (int32_t)i;
        ub_elsewhere_look(&stall, look);
        stall.gil_held += made.gil == UB_PYTHON_GIL_HELD;
        stall.gil_released += made.gil == UB_PYTHON_GIL_RELEASED;
    }
    free(look);
}

/* NULL: nothing may be proposed. */
static void is(const char *name, const char *how)
{
    json_t *o = ub_elsewhere_json(&stall, "cpu", 500 * MS);

    if (!how) {
        assert_null(o);
        return;
    }
    assert_non_null(o);
    assert_string_equal(json_string_value(json_object_get(o, "how")), how);
    assert_string_equal(json_string_value(json_object_get(o, "function")), name);
    assert_int_equal(json_integer_value(json_object_get(o, "saved_ns")) == 0, strcmp(how, "stays") == 0);
    json_decref(o);
}

static void a_coroutine_that_computes_yields(void **state)
{
    looks(4, (struct made){{&coroutine}, 10, NULL, 0, UB_PYTHON_GIL_HELD}, 2);
    is("app.main", "yield");
}

static void one_that_stands_in_a_call_cannot(void **state)
{
    looks(4, (struct made){{&coroutine}, 10, NULL, 0, UB_PYTHON_GIL_HELD}, 0);
    is("app.main", "stays");
    looks(1, (struct made){{&coroutine}, 12, NULL, 0, UB_PYTHON_GIL_HELD}, 0);
    is("app.main", "yield");
}

/* The same offset in another function is another place. */
static void offsets_are_those_of_one_code(void **state)
{
    looks(1, (struct made){{&inner, &function, &coroutine}, 10, NULL, 100000, UB_PYTHON_GIL_HELD}, 0);
    looks(1, (struct made){{&function, &coroutine}, 10, NULL, 100000, UB_PYTHON_GIL_HELD}, 0);
    is("app.fix", "yield");
}

/* Called again and again at one point, with something else each time. */
static void other_variables_are_another_call(void **state)
{
    looks(2, (struct made){{&coroutine}, 10, NULL, 0, UB_PYTHON_GIL_HELD, {7, 8}}, 0);
    is("app.main", "yield");
    stall = (struct ub_stall){0};
    looks(4, (struct made){{&coroutine}, 10, NULL, 0, UB_PYTHON_GIL_HELD, {7, 0, 7}}, 0);
    is("app.main", "stays");
}

static void what_was_called_at_other_points_is_not_named(void **state)
{
    looks(3, (struct made){{&coroutine}, 10, "heapq.heappush", 0, UB_PYTHON_GIL_HELD}, 2);
    is("app.main", "yield");
    looks(4, (struct made){{&coroutine}, 10, "heapq.heappush", 0, UB_PYTHON_GIL_RELEASED}, 2);
    is(NULL, NULL);
}

static void one_look_tells_little(void **state)
{
    looks(1, (struct made){{&function, &coroutine}, 10, NULL, 0, UB_PYTHON_GIL_HELD}, 0);
    is("app.fix", "yield");
    stall = (struct ub_stall){0};
    looks(1, (struct made){{&coroutine}, 10, "heapq.heapify", 0, UB_PYTHON_GIL_HELD}, 0);
    is(NULL, NULL);
    stall = (struct ub_stall){0};
    looks(1, (struct made){{&coroutine}, 10, "zlib.compress", 0, UB_PYTHON_GIL_RELEASED}, 0);
    is(NULL, NULL);
}

/* The others could not be read. */
static void one_look_of_many_tells_nothing(void **state)
{
    looks(1, (struct made){{&function, &coroutine}, 10, NULL, 0, UB_PYTHON_GIL_HELD}, 0);
    stall.python_looks = 8;
    is(NULL, NULL);
}

static void what_c_may_change_goes_to_no_process(void **state)
{
    looks(3, (struct made){{&coroutine}, 10, "heapq.heapify", 0, UB_PYTHON_GIL_HELD}, 0);
    is("heapq.heapify", "stays");
}

static void one_call_in_c_may_be_in_a_thread(void **state)
{
    looks(3, (struct made){{&coroutine}, 10, "zlib.compress", 0, UB_PYTHON_GIL_RELEASED}, 0);
    is("zlib.compress", "thread");
}

static void a_fork_writes_it_down(void **state)
{
    looks(3, (struct made){{&coroutine}, 10, "pickle.dumps", 0, UB_PYTHON_GIL_HELD}, 0);
    is("pickle.dump*", "fork");
}

static void a_function_by_its_data(void **state)
{
    looks(3, (struct made){{&function, &coroutine}, 10, NULL, 0, UB_PYTHON_GIL_HELD}, 2);
    is("app.fix", "process");
    stall = (struct ub_stall){0};
    looks(3, (struct made){{&function, &coroutine}, 10, NULL, 100000, UB_PYTHON_GIL_HELD}, 2);
    is("app.fix", "yield");
    stall = (struct ub_stall){0};
    looks(3, (struct made){{&function, &coroutine}, 10, NULL, 100000, UB_PYTHON_GIL_HELD}, 0);
    is("app.fix", "stays");
    stall = (struct ub_stall){0};
    looks(3, (struct made){{&function, &coroutine}, 10, NULL, 0, UB_PYTHON_GIL_HELD}, 0);
    is("app.fix", "stays");
    stall = (struct ub_stall){0};
    looks(3, (struct made){{&function, &coroutine}, 10, NULL, 100000, UB_PYTHON_GIL_RELEASED}, 0);
    is("app.fix", "thread");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_coroutine_that_computes_yields, begin),
        cmocka_unit_test_setup(one_that_stands_in_a_call_cannot, begin),
        cmocka_unit_test_setup(offsets_are_those_of_one_code, begin),
        cmocka_unit_test_setup(other_variables_are_another_call, begin),
        cmocka_unit_test_setup(what_was_called_at_other_points_is_not_named, begin),
        cmocka_unit_test_setup(one_look_tells_little, begin),
        cmocka_unit_test_setup(one_look_of_many_tells_nothing, begin),
        cmocka_unit_test_setup(what_c_may_change_goes_to_no_process, begin),
        cmocka_unit_test_setup(one_call_in_c_may_be_in_a_thread, begin),
        cmocka_unit_test_setup(a_fork_writes_it_down, begin),
        cmocka_unit_test_setup(a_function_by_its_data, begin),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
