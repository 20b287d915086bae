/* The event-loop libraries whose callbacks are timed; behind them, and only if offload is asked for, the locks and what
 * else it hooks. */
#include "../offload/eventhost.h"
#include "../offload/evhost.h"
#include "../offload/fds.h"
#include "../offload/glibhost.h"
#include "../offload/locks.h"
#include "../offload/pylocks.h"
#include "../offload/pysqlite.h"
#include "../offload/sdhost.h"
#include "../offload/pyunits.h"
#include "../offload/uvhost.h"
#include "../offload/waits.h"

const struct ub_loop_ops *const ub_loops[] = {
    &ub_loop_uv,          &ub_loop_libevent, &ub_loop_libev,     &ub_loop_glib,           &ub_loop_sd_event,
    &ub_loop_asyncio,     &ub_loop_uvloop,   &ub_locks_libc,     &ub_locks_glib,          &ub_pysqlite,
    &ub_pysqlite_methods, &ub_offload_uv,    &ub_pysteps_locks,  &ub_offload_libc,        &ub_waits_libc,
    &ub_waits_glib,       &ub_offload_event, &ub_offload_evhttp, &ub_offload_bufferevent, &ub_offload_glib,
    &ub_offload_gio,      &ub_offload_sd,    &ub_offload_ev,     &ub_pyunits_pq,          &ub_pyunits_odbc,
    &ub_pyunits_ldap,     &ub_pyunits_mysql, &ub_pyodbc_handles,
};
const uint32_t ub_loops_and_looks = UB_ARRAY_LEN(ub_loops) - UB_LOOPS_OF_MOVES;
uint32_t ub_loops_count = UB_ARRAY_LEN(ub_loops) - UB_LOOPS_OF_LOOKS - UB_LOOPS_OF_MOVES;
_Static_assert(UB_ARRAY_LEN(ub_loops) <= UB_LOOPS_MAX, "patch.c has room for so many");
