/*
 * Pieces of the HTML report's data. All text of strangers goes through ub_html_text: escaped as for a terminal and cut.
 * What these make is the caller's.
 */
#ifndef UB_UI_HTML_DATA_H
#define UB_UI_HTML_DATA_H

#include "model.h"

#define UB_HTML_TEXT_MAX 400 /* columns of a name */

/* NULL is "". */
json_t *ub_html_text(const char *text, size_t columns);
/* At most INT64_MAX. */
json_t *ub_html_number(uint64_t n);

/* What moved off the loops, what stayed and why, and the lag. NULL: the recording has no `offload` line. */
json_t *ub_html_offload(const struct ub_model *m);

#endif
