/*
 * One hook a call of common/units.def, in the modules of Python that are known to make it with the GIL released. All
 * have the same form: that of the longest, whose last words shorter ones leave alone.
 */
#include "pyunits.h"

#include "../../common/units.h"
#include "../calls/timing.h"

#include <errno.h>

#define SQL_HANDLE_DBC 2

#define WORDS(X)                                                                                                       \
    X(uint64_t a), X(uint64_t b), X(uint64_t c), X(uint64_t d), X(uint64_t e), X(uint64_t f), X(uint64_t g),           \
        X(uint64_t h), X(uint64_t i), X(uint64_t j), X(uint64_t k)
#define SAME(x) x

typedef uint64_t unit_function(WORDS(SAME));

struct unit {
    unit_function *function;
    uint64_t word[UB_UNIT_WORDS];
};

/* By a thread of the executor's. What it is about lies on the stack of the step, which waits. */
static int64_t call(uint64_t of, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h)
{
    const struct unit *u = (const struct unit *)of;
    const uint64_t *w = u->word;

    return (int64_t)u->function(w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10]);
}

/* Where a loop waits for it: the next one from there leaves (flagged, eager). */
static uint64_t call_here(uint32_t id, const struct unit *u)
{
    uint64_t begun = ub_timing_now(), ret = (uint64_t)call((uint64_t)u, 0, 0, 0, 0, 0, 0, 0);
    uint64_t spent = ub_timing_now() - begun;
    int saved = errno;

    if (ub_thread.start && spent >= ub_load_relaxed(&ub_process->arena->h.threshold))
        ub_sites_blocked(&ub_thread, id, spent);
    errno = saved;
    return ret;
}

/* ODBC's calls are made on a connection, on a statement of one, or end transactions of one or of all. */
static const void *odbc_connection_of(uint32_t id, const struct unit *u)
{
    if (id == UB_UNIT_ID_SQLEndTran)
        return (int16_t)u->word[0] == SQL_HANDLE_DBC ? ub_pyodbc_unit(u->word[1]) : UB_UNIT_ANY;
    return id == UB_UNIT_ID_SQLDisconnect ? ub_pyodbc_unit(u->word[0]) : ub_pyodbc_connection(u->word[0]);
}

/* What nobody else may use before the step is over that does. */
static const void *connection_of(uint32_t id, const struct unit *u)
{
    if (id == UB_UNIT_ID_PQconnectdb || id == UB_UNIT_ID_PQcancel)
        return NULL;
    if (id == UB_UNIT_ID_SQLDriverConnect || id == UB_UNIT_ID_SQLDriverConnectW)
        return NULL;
    return id >= UB_UNIT_ID_SQLDriverConnect && id <= UB_UNIT_ID_SQLDisconnect ? odbc_connection_of(id, u)
                                                                               : (const void *)u->word[0];
}

static uint64_t on_call(uint32_t id, uint32_t how, const struct unit *u, uintptr_t ra)
{
    const void *connection = connection_of(id, u);
    int64_t ret;

    if (!ub_pysteps_concerned())
        return (uint64_t)call((uint64_t)u, 0, 0, 0, 0, 0, 0, 0);
    ub_timing_place(&ub_thread, ra);
    if (ub_pysteps_unit(id, call, (uint64_t)u, connection, how, &ret))
        return (uint64_t)ret;
    return call_here(id, u);
}

#define RA ((uintptr_t)__builtin_return_address(0))

/* clang-format off */
#define HOOK(copy, name, eager, connects) \
    static uint64_t hook##copy##_##name(WORDS(SAME)) \
    { \
        struct unit u = {(unit_function *)original[UB_UNIT_ID_##name - UB_UNITS_BEGIN][copy], {a, b, c, d, e, f, g, h, i, j, k}}; \
        return on_call(UB_UNIT_ID_##name, ((eager) ? UB_UNIT_EAGER : 0) | ((connects) ? UB_UNIT_CONNECTS : 0), &u, RA); \
    }
#define HOOKS(name, eager, connects) HOOK(0, name, eager, connects) HOOK(1, name, eager, connects)
#define ROW(name, eager, connects) {#name, {(void *)hook0_##name, (void *)hook1_##name}, UB_HOOK_OTHERS},
static void *original[UB_UNITS_END - UB_UNITS_BEGIN][UB_LOOP_COPIES];
UB_UNITS_CLIENTS(HOOKS)

/* A library by the beginnings of its file's names, and of the modules' that call it; `first` of its functions. */
#define LIBRARY(name, first, names, files, callers) \
    static const struct ub_loop_hook name##_hooks[] = {UB_UNITS_##name(ROW)}; \
    const struct ub_loop_ops ub_pyunits_##name = { \
        files, callers, .prefix = names, .hooks = name##_hooks, .count = UB_ARRAY_LEN(name##_hooks), \
        .originals = &original[UB_UNIT_ID_##first - UB_UNITS_BEGIN]};
#define FILES(...) .files = (const char *const[]){__VA_ARGS__, NULL}
#define CALLERS(...) .callers = (const char *const[]){__VA_ARGS__, NULL}
LIBRARY(pq, PQconnectdb, "PQ", FILES("libpq.so."), CALLERS("_psycopg."))
LIBRARY(odbc, SQLDriverConnect, "SQL", FILES("libodbc.so."), CALLERS("pyodbc."))
LIBRARY(ldap, ldap_result, "ldap_", FILES("libldap-2.", "libldap.so.", "libldap_r-2."), CALLERS("_ldap."))
LIBRARY(mysql, mysql_real_connect, "mysql_", FILES("libmariadb.so.", "libmysqlclient.so."), CALLERS("_mysql."))
/* clang-format on */
