/*
 * Folded stacks (flamegraph.pl, inferno, speedscope): "program;main;...;fsync 309800000",
 * outermost first, nanoseconds lost.
 */
#include "export.h"
#include "lost.h"
#include "text_escape.h"

#include <inttypes.h>

/* ';' separates frames, and the weight is behind the last space. */
static void put_name(FILE *out, const char *name)
{
    char text[1024];
    size_t i;

    snprintf(text, sizeof(text), "%s", name);
    for (i = 0; text[i]; i++)
        if (text[i] == ';' || text[i] == '\n')
            text[i] = ':';
    ub_escape_put(out, text, 0);
}

static void put_stack(void *self, const struct ub_lost_stack *stack)
{
    size_t i = json_array_size(stack->frames);
    char name[1024];
    FILE *out = self;

    put_name(out, stack->site->program ? stack->site->program : "?");
    if (i == 0)
        fputs(";(no stack)", out);
    while (i-- > 0) {
        fputc(';', out);
        put_name(out, ub_lost_frame_name(json_array_get(stack->frames, i), name, sizeof(name)));
    }
    fprintf(out, " %" PRIu64 "\n", stack->ns);
}

static void write_folded(FILE *out, const struct ub_export_job *job)
{
    ub_lost_each(job->m, put_stack, out);
}

const struct ub_export ub_export_folded = {.name = "folded", .write = write_folded};
