/*
 * The first lines of every recording, whoever writes it: `header` and `process`.
 * Each function returns a new reference, or NULL when out of memory.
 */
#ifndef UB_TRACER_PREAMBLE_H
#define UB_TRACER_PREAMBLE_H

#include "record.h"

#include <sys/types.h>

/* The recording's word for enum ub_offload_mode. */
const char *ub_preamble_offload(uint32_t mode);

/* `source`: "agent", "dump" ...; threshold_ns 0: nothing is measured. Secrets in the command are masked, see mask.h. */
json_t *ub_preamble_header(const char *source, uint64_t threshold_ns, int argc, char *const *argv, bool redact,
                           uint32_t offload);

/* The header's `predicted`: the lag that was predicted for this run, and by which file. */
json_t *ub_preamble_predicted(const char *from, uint64_t p99_ns, uint64_t longest_ns);

/* `how`: "preloaded", "attached", "traced", or NULL. Arguments come from /proc/PID/cmdline. */
json_t *ub_preamble_process(pid_t pid, pid_t ppid, const char *exe, const char *how, bool redact);

/* The name of a thread, valid UTF-8; "" when it is gone. */
void ub_preamble_thread_name(pid_t pid, pid_t tid, char *buf, size_t size);

/* A JSON string of any bytes: escaped like everything from strangers (line.h). */
json_t *ub_preamble_string(const char *text);

#endif
