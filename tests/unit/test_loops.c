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

static void libuv_callbacks(void **state)
{
    assert_int_equal(offsetof(uv_loop_t, handle_queue), UB_UV_LOOP_HANDLES);
    assert_int_equal(offsetof(uv_loop_t, backend_fd), UB_UV_LOOP_FD);
    assert_int_equal(offsetof(uv_handle_t, close_cb), UB_UV_HANDLE_CLOSE_CB);
    assert_int_equal(offsetof(uv_handle_t, handle_queue), UB_UV_HANDLE_LIST);
    assert_int_equal(offsetof(uv_timer_t, timer_cb), UB_UV_HANDLE_CB);
    assert_int_equal(offsetof(uv_prepare_t, prepare_cb), UB_UV_HANDLE_CB);
    assert_int_equal(offsetof(uv_check_t, check_cb), UB_UV_HANDLE_CB);
    assert_int_equal(offsetof(uv_idle_t, idle_cb), UB_UV_HANDLE_CB);
    assert_int_equal(offsetof(uv_async_t, async_cb), UB_UV_HANDLE_CB);
    assert_int_equal(offsetof(uv_poll_t, poll_cb), UB_UV_HANDLE_CB);
    assert_int_equal(offsetof(uv_signal_t, signal_cb), UB_UV_HANDLE_CB);
    assert_int_equal(offsetof(uv_process_t, exit_cb), UB_UV_HANDLE_CB);
    assert_int_equal(offsetof(uv_fs_event_t, cb), UB_UV_FS_EVENT_CB);
    assert_int_equal(offsetof(uv_fs_poll_t, poll_ctx), UB_UV_FS_POLL_CONTEXT);
    assert_int_equal(offsetof(uv_stream_t, read_cb), UB_UV_STREAM_READ_CB);
    assert_int_equal(offsetof(uv_stream_t, connection_cb), UB_UV_STREAM_LISTEN);
    assert_int_equal(offsetof(uv_udp_t, recv_cb), UB_UV_UDP_RECV_CB);
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
        cmocka_unit_test(libuv_callbacks),
        cmocka_unit_test(libuv_process_options),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
