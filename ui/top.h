/*
 * Inside of `top`: where the lines come from (top_source.c), who writes them where nobody did
 * (top_attach.c), what is shown (top_view.c), keys and screen (cmd_top.c). Nobody else includes this.
 */
#ifndef UB_UI_TOP_H
#define UB_UI_TOP_H

#include "model.h"
#include "pen.h"

#include <sys/types.h>

/* ---- source ------------------------------------------------------------- */

struct ub_top_source;

/*
 * A recording, which may grow and go on in further files; or, with `pid`, the one
 * that the watcher of that process writes, with its live figures. Tells what
 * stands in the way in `why` (UB_WHY_MAX bytes).
 */
int ub_top_open_file(const char *path, struct ub_top_source **ret, char *why);
int ub_top_open_pid(pid_t pid, struct ub_top_source **ret, char *why);
/* Reads what is new into the model; -errno (as ub_recording_read) or 0. */
int ub_top_read(struct ub_top_source *s);
struct ub_model *ub_top_model(struct ub_top_source *s);
/* `loops` of the watcher's status, or NULL. */
const json_t *ub_top_live_loops(const struct ub_top_source *s);
/* The program or its watcher has ended. */
bool ub_top_ended(const struct ub_top_source *s);
/* Time lost in each of the last `count` seconds of the loop, the newest last. */
void ub_top_recent(const struct ub_top_source *s, uint64_t pid, uint64_t tid, uint64_t *ret_ns, uint32_t count);
const char *ub_top_name(const struct ub_top_source *s);
void ub_top_close(struct ub_top_source *s);

/* ---- a process that nobody watches -------------------------------------- */

/*
 * An `unblock attach` of our own, as a child that ends with us. Waits until the
 * process is watched. 0, or -errno and why.
 */
struct ub_top_attached;
int ub_top_attach(pid_t pid, struct ub_top_attached **ret, char *why);
/* Its recording has been opened: nothing of it is to be left behind, whatever ends us. */
void ub_top_forget_recording(struct ub_top_attached *a);
/* Ends it, and waits until the process has been left. */
void ub_top_detach(struct ub_top_attached *a);

/* ---- view --------------------------------------------------------------- */

#define UB_TOP_SITE_MAX 64

struct ub_top_row {
    char *text; /* UTF-8, nothing that a terminal would obey */
    enum ub_ink ink;
    bool chosen;
};

struct ub_top_view {
    /* what the user did */
    uint32_t width, height;
    enum ub_sort sort;
    char search[64];
    size_t chosen, first;              /* rows of the list of sites */
    char chosen_site[UB_TOP_SITE_MAX]; /* it stays chosen when the order changes */
    bool unicode, paused, details;
    size_t details_first;
    uint32_t refresh_ms;

    /* what is to be seen */
    struct ub_top_row *row;
    uint32_t rows, size;
    size_t sites;       /* that fit the search */
    uint32_t list_rows; /* of the screen, for the sites */
};

/* Builds the rows of the whole screen: `height` at the most. With height 0 all there is (--once). */
void ub_top_build(struct ub_top_view *v, struct ub_top_source *s);
void ub_top_view_clear(struct ub_top_view *v);

#endif
