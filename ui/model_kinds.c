/*
 * What a loop's `stats` lines say of its callbacks, by kind: how long they ran,
 * and how late stalls made them.
 */
#include "model_private.h"

#include <stdio.h>

static struct ub_loop_kind *kind_of(struct ub_model *m, struct ub_kinds *kinds, const char *name)
{
    struct ub_loop_kind *grown, *k;

    for (uint32_t i = 0; i < kinds->count; i++) {
        if (strcmp(kinds->kind[i].name, name) == 0)
            return &kinds->kind[i];
    }
    if (m->kinds >= UB_MODEL_KINDS_MAX || strlen(name) >= sizeof(k->name)) {
        m->dropped.kinds++;
        return NULL;
    }
    grown = realloc(kinds->kind, (kinds->count + 1) * sizeof(*grown));
    if (!grown)
        return NULL;
    kinds->kind = grown;
    k = &grown[kinds->count++];
    m->kinds++;
    memset(k, 0, sizeof(*k));
    snprintf(k->name, sizeof(k->name), "%s", name);
    return k;
}

static void read_times(struct ub_kind_times *t, const json_t *from)
{
    uint64_t max_ns = ub_json_u64_or(from, "max_ns", 0);

    t->count = ub_add_saturated(t->count, ub_json_u64_or(from, "callbacks", 0));
    t->total_ns = ub_add_saturated(t->total_ns, ub_json_u64_or(from, "total_ns", 0));
    if (max_ns > t->max_ns)
        t->max_ns = max_ns;
    ub_model_histogram(&t->distribution, json_object_get(from, "histogram"));
    if (t->distribution.used > 0)
        t->distribution.max_ns = t->max_ns; /* exact, where the histogram is not */
}

static void merge_times(struct ub_kind_times *to, const struct ub_kind_times *from)
{
    to->count = ub_add_saturated(to->count, from->count);
    to->total_ns = ub_add_saturated(to->total_ns, from->total_ns);
    if (from->max_ns > to->max_ns)
        to->max_ns = from->max_ns;
    ub_distribution_merge(&to->distribution, &from->distribution);
}

void ub_model_kinds_read(struct ub_model *m, struct ub_kinds *kinds, const json_t *record)
{
    json_t *from = json_object_get(record, "kinds"), *figures;
    const char *name;

    json_object_foreach (from, name, figures) {
        struct ub_loop_kind *k = kind_of(m, kinds, name);

        if (!k)
            continue;
        read_times(&k->ran, figures);
        read_times(&k->late, json_object_get(figures, "delayed"));
    }
}

void ub_model_kinds_merge(struct ub_model *m, struct ub_kinds *to, const struct ub_kinds *from)
{
    for (uint32_t i = 0; i < from->count; i++) {
        struct ub_loop_kind *k = kind_of(m, to, from->kind[i].name);

        if (!k)
            continue;
        merge_times(&k->ran, &from->kind[i].ran);
        merge_times(&k->late, &from->kind[i].late);
    }
}

void ub_model_kinds_clear(struct ub_model *m, struct ub_kinds *kinds)
{
    for (uint32_t i = 0; i < kinds->count; i++) {
        ub_distribution_clear(&kinds->kind[i].ran.distribution);
        ub_distribution_clear(&kinds->kind[i].late.distribution);
    }
    m->kinds -= kinds->count;
    free(kinds->kind);
    *kinds = (struct ub_kinds){0};
}
