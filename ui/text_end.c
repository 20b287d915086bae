/*
 * What a reader must know about the recording itself: what is missing from it,
 * why that may be, and what to do.
 */
#include "text_private.h"
#include "text_escape.h"

#include <stdlib.h>

struct lines {
    const struct ub_text_view *view;
    const char *prefix;
    uint32_t count;
};

static void begin(struct lines *l)
{
    fputs(l->prefix, l->view->pen.out);
    l->count++;
}

#define LINE(l, ...)                                                                                                   \
    do {                                                                                                               \
        begin(l);                                                                                                      \
        ub_pen_printf(&(l)->view->pen, UB_INK_WARNING, __VA_ARGS__);                                                   \
        fputc('\n', (l)->view->pen.out);                                                                               \
    } while (0)

static void put_file(struct lines *l, const struct ub_model_file *file)
{
    const struct ub_recording_stats *s = &file->stats;

    if (s->torn == 0 && s->skipped == 0)
        return;
    begin(l);
    ub_pen_take(&l->view->pen, UB_INK_WARNING);
    ub_escape_put_path(l->view->pen.out, file->name, UB_TEXT_PATH_COLUMNS);
    if (s->torn > 0)
        fputs(": the last line is cut short (unblock was killed, or the disk was full); all before it counts",
              l->view->pen.out);
    if (s->skipped > 0)
        fprintf(l->view->pen.out, "%s %" PRIu64 " line%s could not be read and %s skipped: the file is damaged",
                s->torn > 0 ? ";" : ":", s->skipped, s->skipped == 1 ? "" : "s", s->skipped == 1 ? "was" : "were");
    ub_pen_drop(&l->view->pen);
    fputc('\n', l->view->pen.out);
}

static void put_no_end(struct lines *l, const struct ub_run *run)
{
    if (run->end || !run->header)
        return;
    begin(l);
    ub_pen_take(&l->view->pen, UB_INK_WARNING);
    if (run->next) {
        fputs("this is a part: the recording goes on in ", l->view->pen.out);
        ub_escape_put_path(l->view->pen.out, run->next, UB_TEXT_PATH_COLUMNS);
        fputs("; give all parts to one report", l->view->pen.out);
    } else {
        fputs("the recording has no end: unblock still runs or was killed; the figures of its loops may lack the last "
              "10 s",
              l->view->pen.out);
    }
    ub_pen_drop(&l->view->pen);
    fputc('\n', l->view->pen.out);
}

static void put_lost(struct lines *l, const struct ub_run *run)
{
    const json_t *lost = json_object_get(run->end, "lost");
    uint64_t ring = ub_json_u64_or(lost, "ring", 0), limited = ub_json_u64_or(lost, "rate_limited", 0),
             queue = ub_json_u64_or(lost, "queue", 0);

    if (ring > 0)
        LINE(l,
             "%" PRIu64
             " stall%s lost: they came faster than they could be written; a higher --threshold keeps all of them",
             ring, ring == 1 ? " was" : "s were");
    if (limited > 0)
        LINE(l, "%" PRIu64 " stack%s not taken: too many a second; their stalls count all the same", limited,
             limited == 1 ? " was" : "s were");
    if (queue > 0)
        LINE(l,
             "%" PRIu64
             " look%s left out: they came faster than they could be explained; their stalls count all the same",
             queue, queue == 1 ? " was" : "s were");
}

static void put_dropped(struct lines *l)
{
    const struct ub_model_dropped *d = ub_model_dropped(l->view->m);

    if (d->malformed > 0)
        LINE(l, "%" PRIu64 " line%s without the fields that %s type needs: written by something else?", d->malformed,
             d->malformed == 1 ? " is" : "s are", d->malformed == 1 ? "its" : "their");
    if (d->sites > 0)
        LINE(l, "%" PRIu64 " stalls are of call sites beyond the first 16384: they count in the sums only", d->sites);
    if (d->stacks > 0)
        LINE(l, "%" PRIu64 " stacks did not fit into memory's limit: their samples show no frames", d->stacks);
    if (d->loops + d->runs + d->ongoing + d->notes + d->threads + d->pools + d->kinds > 0)
        LINE(l,
             "not shown, beyond the limits: %" PRIu64 " loop, %" PRIu64 " run, %" PRIu64 " ongoing, %" PRIu64
             " note, %" PRIu64 " thread and %" PRIu64 " pool lines, %" PRIu64 " kinds of callbacks",
             d->loops, d->runs, d->ongoing, d->notes, d->threads, d->pools, d->kinds);
}

uint32_t ub_text_end(const struct ub_text_view *view, const char *prefix)
{
    struct lines l = {.view = view, .prefix = prefix};
    uint32_t i;

    for (i = 0; i < ub_model_files(view->m); i++)
        put_file(&l, ub_model_file(view->m, i));
    for (i = 0; i < ub_model_runs(view->m); i++) {
        put_no_end(&l, ub_model_run(view->m, i));
        put_lost(&l, ub_model_run(view->m, i));
    }
    put_dropped(&l);
    return l.count;
}

/* The recording itself may know the reason (a note); else these are the usual ones. */
void ub_text_no_loop(const struct ub_text_view *view, const char *prefix)
{
    if (json_array_size(ub_model_notes(view->m)) > 0)
        return;
    fprintf(view->pen.out,
            "%sno thread came back to one wait call (epoll, poll, select) often enough: it is no event loop, it was "
            "watched too "
            "briefly, or unblock was not loaded into it (statically linked, set-user-ID)\n",
            prefix);
}

char *ub_text_program(const struct ub_text_view *view)
{
    const struct ub_run *run = ub_model_current_run(view->m);
    const char *command = run ? json_string_value(json_array_get(json_object_get(run->header, "command"), 0)) : NULL;
    const struct ub_loop **loops;
    const char *name = NULL;
    char *program;
    size_t count;

    loops = ub_model_loops(view->m, &count);
    if (count > 0)
        name = loops[0]->program;
    if (!name && command && *command)
        name = ub_path_base(command);
    program = name ? strdup(name) : NULL;
    free(loops);
    return program;
}
