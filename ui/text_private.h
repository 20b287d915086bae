/*
 * Pieces of text that the block of one stall, the report, the verdict and the
 * dump share. Inside of text_*.c; nobody else includes this.
 */
#ifndef UB_UI_TEXT_PRIVATE_H
#define UB_UI_TEXT_PRIVATE_H

#include "advice.h"
#include "chain.h"
#include "json_get.h"
#include "pen.h"
#include "text.h"

#include <inttypes.h>

#include <time.h>

#define UB_TEXT_NAME_COLUMNS   60 /* of a function */
#define UB_TEXT_PLACE_COLUMNS  40 /* of file:line */
#define UB_TEXT_SOURCE_COLUMNS 80
#define UB_TEXT_PATH_COLUMNS   100
#define UB_TEXT_LINE_COLUMNS   400 /* of anything else: notes, arguments */

/* Named of what ran while calls of one place were away; the rest is counted. */
#define UB_TEXT_MEANWHILE 4

struct ub_text_view {
    struct ub_pen pen;
    const struct ub_model *m;
    time_t not_after; /* source files changed since are not shown; 0: no limit */
};

void ub_text_view_init(struct ub_text_view *view, FILE *out, const struct ub_model *m, bool colour);

/* text_call.c: the words for one stall */

/* "fsync(7 = /var/lib/app/wal.log)" */
void ub_text_call(const struct ub_text_view *view, const json_t *call);
/* "AOF fsync: fsync(7 = /x) in flushAppendOnlyFile"; `args` false leaves out what is between the parentheses. */
void ub_text_what(const struct ub_text_view *view, const json_t *slow, const struct ub_chain *chain,
                  const struct ub_advice *advice, bool args);
/* "fsync(7 = /x) 309.8 ms", "cpu 1.83 s, run queue 11 ms" */
void ub_text_why(const struct ub_text_view *view, const json_t *slow);
/* A duration in an ink. */
void ub_text_put_duration(const struct ub_text_view *view, enum ub_ink ink, uint64_t ns);
/* "on_flush()": the name of a function with its parentheses, or "". */
const char *ub_text_function_name(const char *function, char *buf, size_t size);
/* "1 stall", "1,234 stalls" */
void ub_text_count(const struct ub_text_view *view, enum ub_ink ink, uint64_t count, const char *one, const char *many);

/* text_where.c: stacks */

/* The labels `where` and `also` with their rows. */
void ub_text_where(const struct ub_text_view *view, const struct ub_chain *chain);
/* Every frame of a stack, innermost first. */
void ub_text_stack(const struct ub_text_view *view, const json_t *frames, const char *exe);

/* text_turn.c: a turn that was slow although no callback in it was */

bool ub_text_is_whole_turn(const json_t *slow);
/* The label `turn`, and its biggest callbacks; nothing for other stalls. */
void ub_text_turn(const struct ub_text_view *view, const json_t *slow);

/* text_block.c: one stall */

void ub_text_block(const struct ub_text_view *view, const json_t *slow);
/* The same on one line, without the newline. */
void ub_text_line(const struct ub_text_view *view, const json_t *slow);
/* "  do     ..." when there is advice. */
void ub_text_do(const struct ub_text_view *view, const struct ub_advice_query *query);
/* "  serves GET /items/{id}" when the request is known. */
void ub_text_request(const struct ub_text_view *view, const json_t *slow);
void ub_text_kinds(const struct ub_text_view *view); /* the table of callbacks by kind, when there are any */
void ub_text_input(const struct ub_text_view *view, const json_t *slow);
/* "  await  ..." when a chain of coroutines is known. */
void ub_text_await(const struct ub_text_view *view, const json_t *slow);

/* text_report.c: one call site, as in the report */
void ub_text_site(const struct ub_text_view *view, const struct ub_site *site);

/* text_cost.c: who paid */

/* The label `cost` for a stall of `site` (may be NULL), and for the longest of a site; nothing where nothing is known.
 */
void ub_text_cost(const struct ub_text_view *view, const json_t *slow, const struct ub_site *site);
void ub_text_cost_of_longest(const struct ub_text_view *view, const struct ub_site *site);
/* The label `pool`: the state of the program's own executor. */
void ub_text_pool(const struct ub_text_view *view, const json_t *slow);

/* text_offload.c: the label `move` for a stall, and one line for a run; nothing (and false) where offload was off. */
const char *ub_text_offload_reason(const char *reason); /* a pin, in words */
bool ub_text_is_dry_run(const struct ub_model *m);      /* of one of its runs, at least */
void ub_text_offload(const struct ub_text_view *view, const json_t *slow);
void ub_text_proposed(const struct ub_text_view *view, const struct ub_site *site); /* a dry run's, where it computes */
void ub_text_python_live(const struct ub_text_view *view);                          /* functions elsewhere, so far */
bool ub_text_python_run(const struct ub_text_view *view, const char *prefix);       /* text_python.c: likewise */
bool ub_text_offload_run(const struct ub_text_view *view, const char *prefix);

/* What it has come to so far, in one or two lines. False: it is off, and nothing was written. */
bool ub_text_offload_live(const struct ub_text_view *view);
/* The programs' own pools in which work had to wait for a thread. */
void ub_text_pools(const struct ub_text_view *view);

/* text_lint.c: habits that cost, one a line. Returns how many lines were written. */
uint32_t ub_text_lints(const struct ub_text_view *view, const char *prefix);

/* text_end.c: what a reader must know about the recording itself, one fact a line */

/* `prefix` goes before each line. Returns how many lines were written. */
uint32_t ub_text_end(const struct ub_text_view *view, const char *prefix);
/* Why there may be no event loop in it; one line. */
void ub_text_no_loop(const struct ub_text_view *view, const char *prefix);
/* The program's name for headlines: of the busiest loop, else of the command. NULL: not known. */
char *ub_text_program(const struct ub_text_view *view);

#endif
