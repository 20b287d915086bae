/*
 * Inside of the model: model.c (lines, runs), model_stack.c (stacks),
 * model_site.c (stalls), model_loop.c (loops), model_json.c. Nobody else
 * includes this.
 */
#ifndef UB_UI_MODEL_PRIVATE_H
#define UB_UI_MODEL_PRIVATE_H

#include "model.h"
#include "hash.h"
#include "json_get.h"

#include <stdlib.h>

/* Upper limits: far above any honest recording, they bound the memory that a hostile one can ask for. */
#define UB_MODEL_RUNS_MAX        4096
#define UB_MODEL_FRAMES_MAX      ((size_t)128 << 10) /* distinct frames */
#define UB_MODEL_FRAME_BYTES_MAX ((size_t)64 << 20)
#define UB_MODEL_CELLS_MAX       ((size_t)2 << 20) /* frames of all distinct stacks */
#define UB_MODEL_STACK_DEPTH_MAX 256
#define UB_MODEL_STACK_IDS_MAX   ((size_t)256 << 10)
#define UB_MODEL_SITES_MAX       16384
#define UB_MODEL_ONGOING_MAX     65536
#define UB_MODEL_LOOPS_MAX       4096
#define UB_MODEL_PROCESSES_MAX   65536
#define UB_MODEL_NOTES_MAX       200
#define UB_MODEL_OFFLOAD_MAX     4096
#define UB_MODEL_THREADS_MAX     4096
#define UB_MODEL_POOLS_MAX       256
#define UB_MODEL_KINDS_MAX       1024 /* kinds of callbacks of all loops */
#define UB_MODEL_LINTS_MAX       256
#define UB_MODEL_PENDING_MAX     ((size_t)32 << 10) /* bytes of a stats line that are kept for later */
#define UB_MODEL_NAME_MAX        256                /* bytes of a site id */

/* A frame of any stack, once. */
struct ub_frame_entry {
    char *key; /* its text */
    json_t *frame;
    UT_hash_handle hh;
};

/* A stack of any recording, once: its key is the sequence of its (interned) frames. */
struct ub_stack_entry {
    json_t **key;
    json_t *frames;
    UT_hash_handle hh;
};

/* What a stack id means in one run. */
struct ub_stack_id {
    json_int_t id;
    json_t *frames; /* of a ub_stack_entry */
    UT_hash_handle hh;
};

struct ub_process_entry {
    uint64_t pid;
    char *exe;
    char *started_as; /* or NULL */
    UT_hash_handle hh;
};

struct ub_run_entry {
    struct ub_run run;
    struct ub_stack_id *stack;
    struct ub_process_entry *process;
};

struct ub_site_entry {
    struct ub_site site;
    char *key; /* class and id */
    UT_hash_handle hh;
};

struct ub_ongoing_key {
    uint64_t run, pid, id;
};

/* A stall that was not over when it was last heard of. Its record is kept to be taken back when the next one comes. */
struct ub_ongoing {
    struct ub_ongoing_key key;
    struct ub_site_entry *site; /* NULL: there were too many sites */
    json_t *record;
    UT_hash_handle hh;
};

struct ub_loop_key {
    uint64_t run, pid, tid;
};

struct ub_loop_entry {
    struct ub_loop_key key;
    struct ub_loop loop;
    /* Figures of earlier threads or images with the same ids: theirs are complete. */
    uint64_t base_callbacks, base_turns, base_busy_ns;
    struct ub_distribution base;
    struct ub_kinds base_kinds;
    uint64_t last_callbacks; /* of the newest stats line */
    uint32_t last_part;      /* headers seen when it came */
    char *pending;           /* text of a stats line whose figures were not looked at yet */
    size_t pending_len, pending_size;
    uint32_t pending_shape;
    UT_hash_handle hh;
};

struct ub_model {
    struct ub_run_entry *run;
    uint32_t runs, runs_size;
    uint32_t current; /* index; meaningful when runs > 0 */
    uint32_t parts;   /* headers seen */

    struct ub_frame_entry *frame;
    size_t frame_bytes;
    struct ub_stack_entry *stack;
    size_t stack_cells, stack_ids;

    struct ub_site_entry *site;
    struct ub_ongoing *ongoing;
    struct ub_stall_totals totals[UB_STALL_CLASSES];
    void (*hear)(void *self, const struct ub_stall *stall, const struct ub_site *site, uint32_t run);
    void *hear_self;

    struct ub_loop_entry *loop;
    size_t processes;
    uint32_t kinds; /* of all loops */

    json_t *notes;
    json_t *note_index; /* text -> its entry of notes */
    json_t *lints;      /* "run/pid/tid/lint/function" -> its last `lint` record */
    json_t *pools;      /* "run/pid" -> its last `pool` record, with `program` */
    json_t *threads;
    json_t *offload; /* lines by call site, as they are */
    json_t *python;  /* likewise, of coroutines and functions */
    struct ub_model_file *file;
    uint32_t files;
    struct ub_model_dropped dropped;
    enum ub_sort sort;
};

struct ub_run_entry *ub_model_this_run(struct ub_model *m); /* NULL: no memory */
void ub_model_touch(struct ub_model *m, uint64_t ns);       /* a line speaks of this moment */

/* model_stack.c */
void ub_model_stack_line(struct ub_model *m, const json_t *record);
void ub_model_stacks_free(struct ub_model *m);
void ub_model_run_stacks_free(struct ub_run_entry *run);

/* model_site.c */
void ub_model_slow_line(struct ub_model *m, json_t *record);
bool ub_model_take_stall(struct ub_model *m, const struct ub_stall *stall);
void ub_model_sites_free(struct ub_model *m);

/* model_loop.c */
void ub_model_loop_line(struct ub_model *m, const json_t *record);
void ub_model_stats_line(struct ub_model *m, const json_t *record);
bool ub_model_take_stats(struct ub_model *m, const struct ub_stats_line *stats);
void ub_model_loops_settle(struct ub_model *m);
void ub_model_loops_free(struct ub_model *m);
void ub_model_histogram(struct ub_distribution *d, const json_t *histogram); /* added to it */

/* model_kinds.c: the kinds of a `stats` line, and of `from`, added to the others; none. */
void ub_model_kinds_read(struct ub_model *m, struct ub_kinds *kinds, const json_t *record);
void ub_model_kinds_merge(struct ub_model *m, struct ub_kinds *to, const struct ub_kinds *from);
void ub_model_kinds_clear(struct ub_model *m, struct ub_kinds *kinds);

#endif
