/*
 * Client libraries of databases and directories, as Python's modules call them: whole calls, made by the executor's
 * threads while the step waits.
 */
#ifndef UB_AGENT_PYUNITS_H
#define UB_AGENT_PYUNITS_H

#include "pysteps_impl.h"

extern const struct ub_loop_ops ub_pyunits_pq, ub_pyunits_odbc, ub_pyunits_ldap, ub_pyunits_mysql, ub_pyodbc_handles;

/* ODBC's connections are those of which it is not always known which one (pysteps.h: odd). */
static inline const void *ub_pyodbc_unit(uint64_t connection)
{
    return (const void *)(uintptr_t)(connection | 1);
}

/* The unit of a statement's connection; UB_UNIT_ANY, where that is not known. Any thread. */
const void *ub_pyodbc_connection(uint64_t statement);

#endif
