/*
 * Recordings named on a command line, read into one model: what `report`,
 * `check`, `diff` and `top` share. Trouble is told here, in one line a file.
 */
#ifndef UB_UI_INPUT_H
#define UB_UI_INPUT_H

#include "filter.h"
#include "model.h"
#include "options.h"
#include "timeline.h"

#include <sys/stat.h>

struct ub_input {
    const char *command;                     /* for the messages */
    struct ub_filter_options filter_options; /* where ub_input_options lets the flags go */
    struct ub_filter filter;
    struct ub_sink model_sink, sink;
    struct ub_taker taker;
    struct ub_model *model;
    struct ub_timeline *timeline; /* to be filled as well, or NULL */
    struct stat *read;            /* identities of the files read so far */
    int read_count;
};

#define UB_INPUT_OPTIONS_MAX 8

/* The filters: fills `ret` (UB_INPUT_OPTIONS_MAX entries) and returns how many. */
uint32_t ub_input_options(struct ub_input *in, struct ub_option *ret);

/* Reads all, or tells what stands in the way: 0 or -errno. The model is there in both cases, unless memory was short.
 */
int ub_input_read(struct ub_input *in, char **files, int count);

/* Whether `path` is one of the files that were read. */
bool ub_input_has(const struct ub_input *in, const char *path);

void ub_input_clear(struct ub_input *in);

#endif
