/*
 * A recording turned into totals: loops, call sites, the verdict. Fed line by
 * line, live or from a file, so memory grows with call sites, not with stalls.
 */
#ifndef UB_UI_MODEL_H
#define UB_UI_MODEL_H

#include "../tracer/record.h"

struct ub_model;

struct ub_model *ub_model_new(void);
void ub_model_free(struct ub_model *m);
void ub_model_line(struct ub_model *m, json_t *record); /* any line of any recording; several recordings may follow one another */
struct ub_sink ub_model_sink(struct ub_model *m);

/* The frames (json array) of stack `id` of the recording that is being read, or NULL. */
json_t *ub_model_stack(const struct ub_model *m, json_int_t id);

/* The whole model as one JSON document (the output of `report --format json`). Caller owns. */
json_t *ub_model_json(const struct ub_model *m);

#endif
