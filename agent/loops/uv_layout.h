/*
 * Where libuv's handles keep their descriptor: part of its ABI since 1.0
 * (tests/unit/test_loops.c compares it with uv.h). Offsets in bytes.
 */
#ifndef UB_AGENT_UV_LAYOUT_H
#define UB_AGENT_UV_LAYOUT_H

#define UB_UV_STREAM_FD    184 /* uv_tcp_t, uv_pipe_t, uv_tty_t */
#define UB_UV_UDP_FD       176
#define UB_UV_HANDLE_LOOP  8
#define UB_UV_HANDLE_FLAGS 88
#define UB_UV_FS_LOOP      72
#define UB_UV_WORK_LOOP    64 /* and of the requests of getaddrinfo, getnameinfo, random */
#define UB_UV_POLL_FD      152

/* uv_process_options_t: its first member is the callback, the rest is handed on as it is. */
#define UB_UV_PROCESS_OPTIONS_WORDS 8

/* What is found when a process is entered: the loop, and where handles keep the program's functions. */
#define UB_UV_LOOP_HANDLES    16 /* the head of its list of handles: next, previous */
#define UB_UV_LOOP_FD         64
#define UB_UV_HANDLE_CLOSE_CB 24
#define UB_UV_HANDLE_LIST     32
#define UB_UV_HANDLE_CB       96  /* timer, prepare, check, idle, async, poll, signal, process */
#define UB_UV_FS_EVENT_CB     104 /* behind the path */
#define UB_UV_STREAM_READ_CB  112
#define UB_UV_STREAM_LISTEN   224
#define UB_UV_UDP_RECV_CB     120
#define UB_UV_FS_POLL_CONTEXT 96
#define UB_UV_FS_POLL_CB      32 /* in that */

#endif
