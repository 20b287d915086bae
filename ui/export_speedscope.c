/* https://www.speedscope.app/file-format-schema.json: one profile of time lost for each program. */
#include "export.h"
#include "lost.h"
#include "places.h"

#include <stdlib.h>

struct profile {
    const char *program;
    json_t *samples, *weights;
    uint64_t total_ns;
};

struct builder {
    json_t *frames;
    struct ub_places *frame;
    struct profile *profile;
    size_t profiles;
    json_int_t no_stack; /* index of the frame that stands for it; -1: not there yet */
};

static json_int_t add_frame(struct builder *b, const json_t *frame)
{
    char name[1024];
    json_t *o = json_object();

    json_object_set_new(o, "name", json_string(frame ? ub_lost_frame_name(frame, name, sizeof(name)) : "(no stack)"));
    if (!json_object_get(o, "name")) /* cut in the middle of a character */
        json_object_set_new(o, "name", json_string("?"));
    if (ub_json_string(frame, "file"))
        json_object_set(o, "file", json_object_get(frame, "file"));
    if (json_is_integer(json_object_get(frame, "line")))
        json_object_set(o, "line", json_object_get(frame, "line"));
    json_array_append_new(b->frames, o);
    return (json_int_t)json_array_size(b->frames) - 1;
}

static json_int_t frame_index(struct builder *b, const json_t *frame)
{
    json_int_t index = ub_places_find(b->frame, frame);

    if (index >= 0)
        return index;
    index = add_frame(b, frame);
    ub_places_add(&b->frame, frame, index);
    return index;
}

static struct profile *find_profile(struct builder *b, const char *program)
{
    struct profile *all;
    size_t i;

    for (i = 0; i < b->profiles; i++)
        if (strcmp(b->profile[i].program, program) == 0)
            return &b->profile[i];
    all = realloc(b->profile, (b->profiles + 1) * sizeof(*all));
    if (!all)
        return NULL;
    b->profile = all;
    all += b->profiles++;
    *all = (struct profile){.program = program, .samples = json_array(), .weights = json_array()};
    return all;
}

static void take(void *self, const struct ub_lost_stack *stack)
{
    struct builder *b = self;
    struct profile *p = find_profile(b, stack->site->program ? stack->site->program : "?");
    size_t i = json_array_size(stack->frames);
    json_t *sample = json_array();

    if (!p) {
        json_decref(sample);
        return;
    }
    if (i == 0)
        json_array_append_new(sample, json_integer(b->no_stack < 0 ? (b->no_stack = add_frame(b, NULL)) : b->no_stack));
    while (i-- > 0) /* outermost first */
        json_array_append_new(sample, json_integer(frame_index(b, json_array_get(stack->frames, i))));
    json_array_append_new(p->samples, sample);
    json_array_append_new(p->weights, json_integer((json_int_t)stack->ns));
    p->total_ns += stack->ns;
}

static json_t *profiles_json(struct builder *b)
{
    json_t *list = json_array();
    size_t i;

    if (b->profiles == 0) /* the format wants one */
        find_profile(b, "no stalls");
    for (i = 0; i < b->profiles; i++) {
        struct profile *p = &b->profile[i];

        json_array_append_new(list, json_pack("{s:s, s:o, s:s, s:i, s:I, s:o, s:o}", "type", "sampled", "name",
                                              json_sprintf("%s: time lost", p->program), "unit", "nanoseconds",
                                              "startValue", 0, "endValue", (json_int_t)p->total_ns, "samples",
                                              p->samples, "weights", p->weights));
    }
    return list;
}

static void write_speedscope(FILE *out, const struct ub_export_job *job)
{
    struct builder b = {.frames = json_array(), .no_stack = -1};
    json_t *o;

    ub_lost_each(job->m, take, &b);
    o = json_pack("{s:s, s:s, s:s, s:i, s:{s:o}, s:o}", "$schema", "https://www.speedscope.app/file-format-schema.json",
                  "exporter", "unblock " UB_VERSION, "name", "unblock: time lost", "activeProfileIndex", 0, "shared",
                  "frames", b.frames, "profiles", profiles_json(&b));
    json_dumpf(o, out, JSON_COMPACT);
    fputc('\n', out);
    json_decref(o);
    ub_places_clear(&b.frame);
    free(b.profile);
}

const struct ub_export ub_export_speedscope = {.name = "speedscope", .write = write_speedscope};
