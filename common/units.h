/*
 * Calls of client libraries that wait for a server, and that move as wholes, since what they keep is the connection's
 * or the calling thread's: their inner calls into libc stay (agent/offload/pyunits.c). Of each library X(name, whether
 * the mode `eager` moves it at first, whether it may connect: names are looked up and libraries loaded then, under
 * locks of libc's, for which a fork waits); others only from places that have blocked, or by a policy. Every parameter
 * is an integer or a pointer, UB_UNIT_WORDS at the most. A call's place here is its number in the shared memory, behind
 * those of calls.h and that of sem_wait: a change of a list needs a new UB_ARENA_VERSION.
 */
#ifndef UB_UNITS_H
#define UB_UNITS_H

#include "calls.h"

#define UB_UNIT_WORDS 11u

/* clang-format off */
#define UB_UNITS_pq(X) \
    X(PQconnectdb, 1, 1) X(PQexec, 1, 0) X(PQexecParams, 1, 0) X(PQexecPrepared, 1, 0) X(PQprepare, 1, 0) X(PQgetResult, 1, 0) \
    X(PQgetCopyData, 0, 0) X(PQputCopyData, 0, 0) X(PQputCopyEnd, 0, 0) X(PQcancel, 1, 0)
#define UB_UNITS_odbc(X) \
    X(SQLDriverConnect, 1, 1) X(SQLDriverConnectW, 1, 1) X(SQLExecDirect, 1, 0) X(SQLExecDirectW, 1, 0) X(SQLExecute, 1, 0) \
    X(SQLPrepare, 0, 0) X(SQLPrepareW, 0, 0) X(SQLFetch, 0, 0) X(SQLFetchScroll, 0, 0) X(SQLMoreResults, 0, 0) \
    X(SQLEndTran, 0, 0) X(SQLDisconnect, 0, 0)
#define UB_UNITS_ldap(X) \
    X(ldap_result, 1, 1) X(ldap_sasl_bind, 1, 1) X(ldap_sasl_bind_s, 1, 1) X(ldap_search_ext, 0, 1) X(ldap_start_tls_s, 1, 1) \
    X(ldap_whoami_s, 1, 1)
#define UB_UNITS_mysql(X) \
    X(mysql_real_connect, 1, 1) X(mysql_real_query, 1, 0) X(mysql_read_query_result, 1, 0) X(mysql_store_result, 0, 0) \
    X(mysql_next_result, 1, 0) X(mysql_change_user, 1, 1) X(mysql_select_db, 1, 0) X(mysql_autocommit, 1, 0) \
    X(mysql_commit, 1, 0) X(mysql_rollback, 1, 0) X(mysql_ping, 1, 1)
#define UB_UNITS_CLIENTS(X) UB_UNITS_pq(X) UB_UNITS_odbc(X) UB_UNITS_ldap(X) UB_UNITS_mysql(X)
/* No client, but alike (agent/offload/pysqlite.c). */
#define UB_UNITS_sqlite(X) X(sqlite3_step, 0, 0)
#define UB_UNITS(X) UB_UNITS_CLIENTS(X) UB_UNITS_sqlite(X)
/* clang-format on */

enum ub_unit_id {
    UB_UNITS_BEGIN = UB_CALL_IDS, /* that of sem_wait */
#define UB_UNIT(name, eager, connects) UB_UNIT_ID_##name,
    UB_UNITS(UB_UNIT)
#undef UB_UNIT
        UB_UNITS_END
};

#endif
