#include "timeline.h"
#include "hash.h"
#include "wall_time.h"

#include <stdlib.h>

#define LOOPS_MAX 4096

struct key_data {
    uint64_t run, pid, tid;
};

struct ub_timeline_key {
    struct key_data data;
    uint32_t index;
    UT_hash_handle hh;
};

static uint32_t add_loop(struct ub_timeline *t, const struct key_data *data, const struct ub_stall *stall,
                         const struct ub_site *site)
{
    struct ub_timeline_loop *loop;
    struct ub_timeline_key *key;

    if (t->loops == LOOPS_MAX)
        return LOOPS_MAX - 1; /* no honest recording has so many: the last one takes the rest */
    loop = realloc(t->loop, (t->loops + 1) * sizeof(*loop));
    key = loop ? calloc(1, sizeof(*key)) : NULL;
    if (loop)
        t->loop = loop;
    if (!key)
        return UINT32_MAX;
    key->data = *data;
    key->index = t->loops;
    HASH_ADD(hh, t->key, data, sizeof(key->data), key); /* NOLINT(clang-analyzer-core.UndefinedBinaryOperatorResult) */
    if (!UB_HASHED(key)) {
        free(key);
        return UINT32_MAX;
    }
    loop += t->loops;
    *loop = (struct ub_timeline_loop){
        .run = (uint32_t)data->run, .pid = data->pid, .tid = data->tid, .program = site->program};
    snprintf(loop->kind, sizeof(loop->kind), "%.*s", (int)(stall->loop.len < 23 ? stall->loop.len : 23),
             stall->loop.text ? stall->loop.text : "");
    snprintf(loop->thread, sizeof(loop->thread), "%.*s", (int)(stall->thread.len < 31 ? stall->thread.len : 31),
             stall->thread.text ? stall->thread.text : "");
    return t->loops++;
}

static uint32_t find_loop(struct ub_timeline *t, uint32_t run, const struct ub_stall *stall, const struct ub_site *site)
{
    struct key_data data = {run, stall->pid, stall->tid};
    struct ub_timeline_key *key;

    HASH_FIND(hh, t->key, &data, sizeof(data), key); /* NOLINT(clang-analyzer-core.UndefinedBinaryOperatorResult) */
    return key ? key->index : add_loop(t, &data, stall, site);
}

static int longest_first(const void *a, const void *b)
{
    const struct ub_timeline_stall *x = a, *y = b;

    return x->duration_ns < y->duration_ns ? 1 : x->duration_ns > y->duration_ns ? -1 : 0;
}

/* Half of the room is made free, rarely. */
static void make_room(struct ub_timeline *t)
{
    size_t i, keep = t->count / 2;

    qsort(t->stall, t->count, sizeof(*t->stall), longest_first);
    if (t->stall[keep].duration_ns > t->shortest_ns)
        t->shortest_ns = t->stall[keep].duration_ns;
    for (i = keep; i < t->count; i++) {
        t->left_out++;
        t->left_out_ns = ub_add_saturated(t->left_out_ns, t->stall[i].duration_ns);
    }
    t->count = keep;
}

static bool reserve(struct ub_timeline *t)
{
    size_t size = t->size ? t->size * 2 : 1024;
    struct ub_timeline_stall *stall;

    if (t->count < t->size)
        return true;
    if (t->size >= UB_TIMELINE_MAX) {
        make_room(t);
        return true;
    }
    stall = realloc(t->stall, size * sizeof(*stall));
    if (!stall)
        return false;
    t->stall = stall;
    t->size = size;
    return true;
}

bool ub_timeline_offset(const struct ub_run *run, int64_t *ret_ns)
{
    const char *started = ub_json_string(run->header, "started");
    uint64_t begin = ub_json_u64_or(run->header, "monotonic_ns", 0);
    int64_t wall;

    return started && ub_wall_time_parse(started, &wall) == 0 && !__builtin_sub_overflow(wall, (int64_t)begin, ret_ns);
}

static void set_wall_times(struct ub_timeline *t, const struct ub_model *m)
{
    int64_t offset = 0;
    uint32_t run = UINT32_MAX;
    size_t i;

    for (i = 0; i < t->count; i++) {
        struct ub_timeline_stall *s = &t->stall[i];

        if (t->loop[s->loop].run != run) {
            run = t->loop[s->loop].run;
            if (!ub_timeline_offset(ub_model_run(m, run), &offset))
                offset = 0;
        }
        if (__builtin_add_overflow(s->at_ns, offset, &s->at_ns))
            s->at_ns = 0;
    }
}

static void add(void *self, const struct ub_stall *stall, const struct ub_site *site, uint32_t run)
{
    struct ub_timeline *t = self;
    uint32_t loop;

    if (stall->duration_ns < t->shortest_ns) {
        t->left_out++;
        t->left_out_ns = ub_add_saturated(t->left_out_ns, stall->duration_ns);
        return;
    }
    loop = find_loop(t, run, stall, site);
    if (loop == UINT32_MAX || !reserve(t))
        return;
    t->stall[t->count++] = (struct ub_timeline_stall){
        .at_ns = (int64_t)stall->start_ns,
        .duration_ns = stall->duration_ns,
        .site = site,
        .loop = loop,
        .ongoing = stall->ongoing,
        .nested = stall->nested,
        .cause = (uint8_t)ub_model_cause_of(stall->cause),
    };
}

void ub_timeline_follow(struct ub_timeline *t, struct ub_model *m)
{
    ub_model_follow(m, add, t);
}

static int by_loop(const void *a, const void *b)
{
    const struct ub_timeline_stall *x = a, *y = b;

    if (x->loop != y->loop)
        return x->loop < y->loop ? -1 : 1;
    if (x->at_ns != y->at_ns)
        return x->at_ns < y->at_ns ? -1 : 1;
    return x->duration_ns < y->duration_ns ? 1 : x->duration_ns > y->duration_ns ? -1 : 0; /* outer ones first */
}

void ub_timeline_finish(struct ub_timeline *t, struct ub_model *m)
{
    ub_model_follow_ongoing(m);
    ub_model_follow(m, NULL, NULL);
    if (t->count > 0)
        qsort(t->stall, t->count, sizeof(*t->stall), by_loop);
    set_wall_times(t, m);
}

static void key_free(struct ub_timeline_key *key)
{
    free(key);
}

void ub_timeline_clear(struct ub_timeline *t)
{
    UB_HASH_DESTROY(struct ub_timeline_key, t->key, key_free);
    free(t->stall);
    free(t->loop);
    *t = (struct ub_timeline){0};
}
