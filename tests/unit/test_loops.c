/* What the agent assumes of the loop libraries' own structures, beside their headers. */
#include "unit.h"

#include "../../agent/loops/uv_layout.h"

#include <uv.h>

static void libuv_handles(void **state)
{
    assert_int_equal(offsetof(uv_tcp_t, io_watcher.fd), UB_UV_STREAM_FD);
    assert_int_equal(offsetof(uv_pipe_t, io_watcher.fd), UB_UV_STREAM_FD);
    assert_int_equal(offsetof(uv_tty_t, io_watcher.fd), UB_UV_STREAM_FD);
    assert_int_equal(offsetof(uv_udp_t, io_watcher.fd), UB_UV_UDP_FD);
    assert_int_equal(offsetof(uv_poll_t, io_watcher.fd), UB_UV_POLL_FD);
}

static void libuv_loops(void **state)
{
    assert_int_equal(offsetof(uv_handle_t, loop), UB_UV_HANDLE_LOOP);
    assert_int_equal(offsetof(uv_handle_t, flags), UB_UV_HANDLE_FLAGS);
    assert_int_equal(offsetof(uv_fs_t, loop), UB_UV_FS_LOOP);
    assert_int_equal(offsetof(uv_work_t, loop), UB_UV_WORK_LOOP);
    assert_int_equal(offsetof(uv_getaddrinfo_t, loop), UB_UV_WORK_LOOP);
    assert_int_equal(offsetof(uv_getnameinfo_t, loop), UB_UV_WORK_LOOP);
    assert_int_equal(offsetof(uv_random_t, loop), UB_UV_WORK_LOOP);
    assert_true(sizeof(uv_poll_t) <= 256 && sizeof(uv_timer_t) <= 256); /* room in struct ub_host */
}

static void libuv_process_options(void **state)
{
    assert_int_equal(offsetof(uv_process_options_t, exit_cb), 0);
    assert_int_equal(sizeof(uv_process_options_t), UB_UV_PROCESS_OPTIONS_WORDS * sizeof(void *));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(libuv_handles),
        cmocka_unit_test(libuv_loops),
        cmocka_unit_test(libuv_process_options),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
