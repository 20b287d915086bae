/*
 * Client libraries of databases and directories, as Python's modules call them: whole calls, made by the executor's
 * threads while the step waits.
 */
#ifndef UB_AGENT_PYUNITS_H
#define UB_AGENT_PYUNITS_H

#include "pysteps_impl.h"

extern const struct ub_loop_ops ub_pyunits_pq, ub_pyunits_odbc, ub_pyunits_ldap, ub_pyunits_mysql;

#endif
