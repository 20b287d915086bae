/*
 * As much of cmocka as tests/unit/test_fiber.c asks for, for another CPU, whose
 * libcmocka the machine has only once its package lists know that architecture.
 */
#ifndef UB_TESTS_AARCH64_CMOCKA_H
#define UB_TESTS_AARCH64_CMOCKA_H

#include <stdio.h>
#include <stdlib.h>

struct CMUnitTest {
    const char *name;
    void (*test)(void **state);
    int (*set_up)(void **state), (*tear_down)(void **state);
};

#define cmocka_unit_test_setup_teardown(f, up, down)                                                                   \
    {                                                                                                                  \
#f, (f), (up), (down)                                                                                          \
    }
#define cmocka_run_group_tests(tests, up, down) run_all((tests), sizeof(tests) / sizeof((tests)[0]))

#define check(what, text)                                                                                              \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, (text));                                                \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define assert_true(a)              check((a), #a)
#define assert_false(a)             check(!(a), "not " #a)
#define assert_non_null(a)          check((a) != NULL, #a)
#define assert_null(a)              check((a) == NULL, "no " #a)
#define assert_int_equal(a, b)      check((long long)(a) == (long long)(b), #a " == " #b)
#define assert_ptr_equal(a, b)      check((const void *)(a) == (const void *)(b), #a " == " #b)
#define assert_in_range(a, low, up) check((a) >= (low) && (a) <= (up), #a " in [" #low ", " #up "]")

/* Like cmocka's: one line a test; here the first failure ends it all. */
static inline int run_all(const struct CMUnitTest *test, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        void *state = NULL;

        printf("[ RUN      ] %s\n", test[i].name);
        fflush(stdout);
        test[i].set_up(&state);
        test[i].test(&state);
        test[i].tear_down(&state);
    }
    printf("[  PASSED  ] %zu test(s).\n", count);
    return 0;
}

#endif
