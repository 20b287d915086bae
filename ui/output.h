/*
 * Where a command writes what it was asked for: standard output, or the FILE of
 * -o. Trouble is told here.
 */
#ifndef UB_UI_OUTPUT_H
#define UB_UI_OUTPUT_H

#include "input.h"

struct ub_output {
    const char *command;
    const char *path; /* NULL and "-": standard output */
    FILE *file;
};

/* Refuses to overwrite one of the recordings that were read. 0 or -errno. */
int ub_output_open(struct ub_output *out, const char *command, const char *path, const struct ub_input *in);
/*
 * A file of mode 0600 that must not exist yet, unless `force`: pipes and devices
 * are written to as they are. 0 or -errno.
 */
int ub_output_create(struct ub_output *out, const char *command, const char *path, bool force);
/* Also tells of a write that failed before. 0 or -errno. */
int ub_output_close(struct ub_output *out);

/* Says why `path` cannot be written ("the recording " before it, or "") and what helps; `append`: --append does, too.
 */
void ub_output_refused(const char *command, const char *what, const char *path, int error, bool append);

#endif
