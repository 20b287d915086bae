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
/* Also tells of a write that failed before. 0 or -errno. */
int ub_output_close(struct ub_output *out);

#endif
