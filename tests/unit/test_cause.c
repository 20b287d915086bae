/* Cause, call site and dispatcher, decided on looks and stacks made by hand. */
#include "unit.h"

#include "../../tracer/cause.h"
#include "../../tracer/dispatchers.h"
#include "../../tracer/site.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>

#define MS 1000000ull

static struct ub_accounting account(uint64_t at, uint64_t run, uint64_t wait)
{
    return (struct ub_accounting){.sched = {run, wait, 1}, .at_ns = at};
}

static const char *cause(const struct ub_seen *seen, uint32_t count, uint64_t cpu, uint64_t wait, uint64_t window)
{
    struct ub_accounting from = account(1000 * MS, 0, 0), to = account(1000 * MS + window, cpu, wait);
    struct ub_shares shares;

    ub_cause_shares(&from, &to, 1000 * MS + window, &shares);
    return ub_cause_name(seen, count, &shares, window, 0);
}

static const struct ub_seen running = {.state = UB_THREAD_RUNNING, .nr = -1};
static const struct ub_seen fsync_call = {.state = UB_THREAD_BLOCKED, .nr = SYS_fsync};
static const struct ub_seen lock = {.state = UB_THREAD_BLOCKED, .nr = SYS_futex, .lock = true};
static const struct ub_seen fault = {.state = UB_THREAD_FAULT, .nr = -1};
static const struct ub_seen stopped = {.state = UB_THREAD_STOPPED, .nr = -1, .stopped = true};

static void the_accounts_decide(void **state)
{
    assert_string_equal(cause(&running, 1, 90 * MS, 5 * MS, 100 * MS), "cpu");
    assert_string_equal(cause(&fsync_call, 1, 1 * MS, 1 * MS, 100 * MS), "call");
    assert_string_equal(cause(&lock, 1, 1 * MS, 1 * MS, 100 * MS), "lock");
    assert_string_equal(cause(&fault, 1, 1 * MS, 1 * MS, 100 * MS), "pagefault");
    assert_string_equal(cause(&running, 1, 20 * MS, 75 * MS, 100 * MS), "runqueue");
    /* Seen running once, but the time went elsewhere: the accounts know better than one look. */
    assert_string_equal(cause((struct ub_seen[]){fsync_call, running}, 2, 5 * MS, 0, 100 * MS), "call");
}

static void what_python_was_doing(void **state)
{
    struct ub_seen gil = lock, collecting = running, importing = running;

    gil.gil = UB_PYTHON_GIL_WAITED;
    collecting.collecting = true;
    importing.importing = true;
    assert_string_equal(cause(&gil, 1, 1 * MS, 1 * MS, 100 * MS), "gil");
    assert_string_equal(cause((struct ub_seen[]){gil, lock, lock}, 3, 1 * MS, 1 * MS, 100 * MS), "lock");
    assert_string_equal(cause(&gil, 1, 90 * MS, 1 * MS, 100 * MS), "cpu");
    assert_string_equal(cause(&collecting, 1, 90 * MS, 1 * MS, 100 * MS), "gc");
    assert_string_equal(cause((struct ub_seen[]){collecting, running, running}, 3, 90 * MS, 0, 100 * MS), "cpu");
    assert_string_equal(cause(&importing, 1, 90 * MS, 1 * MS, 100 * MS), "import");
    assert_string_equal(cause(&importing, 1, 10 * MS, 80 * MS, 100 * MS), "runqueue"); /* the machine's fault */
}

static void looks_decide_where_accounts_are_too_coarse(void **state)
{
    assert_string_equal(cause(&running, 1, 0, 0, 2 * MS), "cpu");
    assert_string_equal(cause(&fsync_call, 1, 2 * MS, 0, 2 * MS), "call");
    assert_string_equal(cause(NULL, 0, 0, 0, 2 * MS), "unknown");
    assert_string_equal(cause(NULL, 0, 0, 6 * MS, 8 * MS), "runqueue"); /* nobody looked, but that time is exact */
    assert_string_equal(cause(NULL, 0, 0, 3 * MS, 8 * MS), "unknown");
}

static void stopped_is_neither_call_nor_cpu(void **state)
{
    struct ub_shares none = {0};

    assert_string_equal(cause((struct ub_seen[]){running, stopped}, 2, 90 * MS, 0, 100 * MS), "stopped");
    assert_string_equal(ub_cause_name(&running, 1, &none, 100 * MS, 90 * MS), "stopped"); /* the watcher slept too */
    assert_string_equal(ub_cause_name(&running, 1, &none, 100 * MS, 10 * MS), "cpu");
}

static void shares_end_with_the_turn(void **state)
{
    struct ub_accounting from = account(1000 * MS, 10 * MS, 0), to = account(1150 * MS, 30 * MS, 5 * MS);
    struct ub_shares shares;

    ub_cause_shares(&from, &to, 1100 * MS, &shares); /* the second reading came 50 ms after the end */
    assert_true(shares.known);
    assert_int_equal(shares.window_ns, 100 * MS);
    assert_int_equal(shares.cpu_ns, 20 * MS);
    assert_int_equal(shares.runqueue_ns, 5 * MS);
    assert_int_equal(shares.blocked_ns, 75 * MS);
    ub_cause_shares(&from, &(struct ub_accounting){0}, 1100 * MS, &shares);
    assert_false(shares.known);
}

static struct ub_named_frame named(const char *function, enum ub_role role, uint64_t cfa)
{
    return (struct ub_named_frame){.symbol = {.function = function}, .role = role, .cfa = cfa};
}

static struct ub_named_stack stall, other;
static struct ub_stack raw, wait_stack;

/* fsync <- commit <- on_timer <- step <- main, where step() also calls the wait. */
static void build(void)
{
    memset(&stall, 0, sizeof(stall));
    memset(&raw, 0, sizeof(raw));
    memset(&wait_stack, 0, sizeof(wait_stack));
    stall.count = raw.count = 5;
    stall.frame[0] = named("fsync", UB_ROLE_LIBRARY, 100);
    stall.frame[1] = named("commit", UB_ROLE_USER, 200);
    stall.frame[2] = named("on_timer", UB_ROLE_USER, 300);
    stall.frame[3] = named("step", UB_ROLE_USER, 400);
    stall.frame[4] = named("main", UB_ROLE_LOOP, 500);
    for (uint32_t i = 0; i < 5; i++)
        raw.frame[i] = (struct ub_frame){.pc = 10 * (i + 1), .cfa = 100 * (i + 1)};
    raw.complete = wait_stack.complete = true;
    wait_stack.count = 3;
    wait_stack.frame[0] = (struct ub_frame){.pc = 1, .cfa = 300}; /* epoll_wait's frame: where on_timer stands now */
    wait_stack.frame[1] = (struct ub_frame){.pc = 41, .cfa = 400};
    wait_stack.frame[2] = (struct ub_frame){.pc = 50, .cfa = 500};
}

static void the_wait_stack_tells_loop_from_callback(void **state)
{
    build();
    assert_int_equal(ub_dispatchers_callback(&stall, &raw, &wait_stack), 2); /* on_timer, not step */
    assert_int_equal(ub_dispatchers_callback(&stall, &raw, NULL), 3); /* unknown loop: as far out as user code goes */
    wait_stack.complete = false;
    assert_int_equal(ub_dispatchers_callback(&stall, &raw, &wait_stack), 3);
}

static void no_user_frame_is_no_callback(void **state)
{
    build();
    for (uint32_t i = 0; i < stall.count; i++)
        stall.frame[i].role = UB_ROLE_LIBRARY;
    assert_int_equal(ub_dispatchers_callback(&stall, &raw, NULL), -ENOENT);
}

static void inlined_callbacks_are_found(void **state)
{
    build();
    /* on_timer was inlined into step: they share a physical frame. */
    stall.frame[2].cfa = 400;
    stall.frame[2].symbol.inlined = true;
    assert_int_equal(ub_dispatchers_callback(&stall, &raw, &wait_stack), 2);
}

static void roles_by_module_and_name(void **state)
{
    bool libc;

    assert_int_equal(ub_dispatchers_role("libc.so.6", "read", &libc), UB_ROLE_LIBRARY);
    assert_true(libc);
    assert_int_equal(ub_dispatchers_role("libuv.so.1.0.0", "uv_run", &libc), UB_ROLE_LOOP);
    assert_false(libc);
    assert_int_equal(ub_dispatchers_role("redis-check-rdb", "aeProcessEvents", &libc), UB_ROLE_LOOP);
    assert_int_equal(ub_dispatchers_role("server", "on_flush", &libc), UB_ROLE_USER);
    assert_int_equal(ub_dispatchers_role("server", NULL, &libc), UB_ROLE_USER);
    assert_int_equal(ub_dispatchers_role("server", "clock_gettime@plt", &libc),
                     UB_ROLE_LIBRARY); /* what called it is the user's */
    assert_int_equal(ub_dispatchers_role("server", "@plt", &libc), UB_ROLE_USER);
    assert_int_equal(ub_dispatchers_role("libconfuse.so", "parse", &libc), UB_ROLE_USER); /* not libc */
}

static void sites_are_stable(void **state)
{
    char a[UB_SITE_SIZE], b[UB_SITE_SIZE];

    build();
    other = stall;
    ub_site_hash(&stall, 2, "fsync", "call", "server", a);
    /* A rebuild: other addresses, lines and compiler suffixes. */
    other.frame[1].symbol.function = "commit.isra.0";
    other.frame[1].symbol.line = 99;
    other.frame[2].pc = 7777;
    ub_site_hash(&other, 2, "fsync", "call", "server", b);
    assert_string_equal(a, b);
    ub_site_hash(&stall, 2, "fdatasync", "call", "server", b);
    assert_string_not_equal(a, b);
    other.frame[2].symbol.function = "on_signal";
    ub_site_hash(&other, 2, "fsync", "call", "server", b);
    assert_string_not_equal(a, b);
}

static void locks_are_known_by_libc_s_names_only(void **state)
{
    build();
    stall.frame[0] = named("pthread_mutex_lock", UB_ROLE_LIBRARY, 100);
    stall.frame[0].libc = true;
    assert_true(ub_cause_is_lock(&stall));
    stall.frame[0].symbol.nearest = true; /* a guess is no evidence */
    assert_false(ub_cause_is_lock(&stall));
    stall.frame[0] = named("pthread_mutex_lock", UB_ROLE_USER, 100);
    assert_false(ub_cause_is_lock(&stall));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_accounts_decide),
        cmocka_unit_test(what_python_was_doing),
        cmocka_unit_test(looks_decide_where_accounts_are_too_coarse),
        cmocka_unit_test(stopped_is_neither_call_nor_cpu),
        cmocka_unit_test(shares_end_with_the_turn),
        cmocka_unit_test(the_wait_stack_tells_loop_from_callback),
        cmocka_unit_test(no_user_frame_is_no_callback),
        cmocka_unit_test(inlined_callbacks_are_found),
        cmocka_unit_test(roles_by_module_and_name),
        cmocka_unit_test(sites_are_stable),
        cmocka_unit_test(locks_are_known_by_libc_s_names_only),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
