/*
 * Text for people: the live blocks of `run`, the report of a recording, the
 * threads of a dump. Names and paths come from strangers: control characters
 * and invalid UTF-8 are escaped before they reach a terminal.
 */
#ifndef UB_UI_TEXT_H
#define UB_UI_TEXT_H

#include "model.h"

#include <stdio.h>

enum ub_live {
    UB_LIVE_FULL, /* whole blocks */
    UB_LIVE_LINE, /* one line a stall, fit for a log */
    UB_LIVE_NONE,
};

struct ub_text_live;

/*
 * Live text to descriptor `fd`; each block is one write(2). `model` is fed by
 * its own sink before this one, and outlives it. NULL: out of memory.
 *
 * Full: a site prints in full at its 1st, 10th, 100th ... stall and when one is
 * at least twice the longest shown. A stall that lasts a second is shown while
 * it goes on. At most 60 blocks or lines a minute; how many were left out is said.
 */
struct ub_text_live *ub_text_live_new(int fd, enum ub_live mode, bool colour, struct ub_model *model);
struct ub_sink ub_text_live_sink(struct ub_text_live *t);
void ub_text_live_free(struct ub_text_live *t); /* says how many were left out since the last block */

/* The report: verdict first, then call sites as the model is sorted (by time lost). */
void ub_text_report(FILE *out, const struct ub_model *model, bool colour);

/* The few lines at the end of `run`: verdict, worst sites, where the recording is. `recording_path` may be NULL. */
void ub_text_verdict(FILE *out, const struct ub_model *model, const char *recording_path, bool colour);

/* One `thread` record of a dump. Its stack is looked up in `model`, unless the record has `frames` of its own. */
void ub_text_thread(FILE *out, const struct ub_model *model, json_t *thread, bool colour);
/* One asyncio task of a dump. */
void ub_text_task(FILE *out, const struct ub_model *model, json_t *task, bool colour);

/* "12.3 ms", "2.03 s", "750 us" into `buf`, which is returned. */
#define UB_TEXT_DURATION_MAX 32
const char *ub_text_duration(uint64_t ns, char *buf, size_t size);

#endif
