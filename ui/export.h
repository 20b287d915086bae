/*
 * The formats that `report` and `check` write: one const struct each, in a file
 * of its own, and one table (export.c).
 */
#ifndef UB_UI_EXPORT_H
#define UB_UI_EXPORT_H

#include "findings.h"
#include "timeline.h"

#include <stdio.h>

struct ub_export_job {
    const struct ub_model *m;
    const struct ub_findings *findings; /* of formats with `check` */
    const struct ub_timeline *timeline; /* of formats with `needs_timeline` */
    bool colour;
};

struct ub_export {
    const char *name;
    bool needs_timeline;
    bool check; /* `check` offers it; it reads the findings */
    void (*write)(FILE *out, const struct ub_export_job *job);
};

extern const struct ub_export *const ub_exports[]; /* ends with NULL */

/* Their names, for the option --format, in the order of the table; `check`: only those that `check` offers. */
const char *const *ub_export_names(bool check);
const struct ub_export *ub_export_find(const char *name);

extern const struct ub_export ub_export_text, ub_export_json, ub_export_folded, ub_export_speedscope,
    ub_export_prometheus, ub_export_html, ub_export_chrome, ub_export_pprof, ub_export_junit, ub_export_github,
    ub_export_sarif, ub_export_otlp, ub_export_otlp_metrics;

/* The file of a frame as CI knows it: relative to the folder that the job runs in, where it lies below it. */
const char *ub_export_file(const json_t *frame);

#endif
