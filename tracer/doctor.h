/*
 * What works here and what does not: each fact tried where it can be tried, not
 * concluded from settings. Nothing is changed, nobody is signalled but a child
 * of our own.
 */
#ifndef UB_TRACER_DOCTOR_H
#define UB_TRACER_DOCTOR_H

#include "../common/base.h"

#include <sys/types.h>

enum ub_health {
    UB_HEALTH_OK,
    UB_HEALTH_INFO,    /* neither good nor bad: which Python, which namespace */
    UB_HEALTH_LIMITED, /* works in part: `text` says which */
    UB_HEALTH_FAILED,
};

/* Where the mend has to be made. */
enum ub_place { UB_PLACE_HOST, UB_PLACE_DOCKER, UB_PLACE_KUBERNETES, UB_PLACES };

struct ub_finding {
    const char *what; /* a word for programs: "yama", "perf" ... */
    enum ub_health health;
    char text[256];              /* one line, valid UTF-8 */
    const char *mend[UB_PLACES]; /* one line each, NULL where nothing is to be done */
};

/* Called once a finding. */
typedef void ub_doctor_tell(void *self, const struct ub_finding *finding);

/* Where we run, by the marks that container runtimes leave. */
enum ub_place ub_doctor_place(void);

/* This host, for this user. `agent`: path of the agent's library, NULL when it was not found (`why`). */
void ub_doctor_host(const char *agent, const char *why, ub_doctor_tell *tell, void *self);

/* One process. -ESRCH: there is none. */
int ub_doctor_process(pid_t pid, ub_doctor_tell *tell, void *self);

/* Shared by the two files. */
void ub_doctor_say(ub_doctor_tell *tell, void *self, const char *what, enum ub_health health,
                   const char *const mend[UB_PLACES], const char *format, ...) __attribute__((format(printf, 6, 7)));

#endif
