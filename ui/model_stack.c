/*
 * Stacks. Every distinct frame and every distinct stack is kept once, whatever
 * recording and id it came under, so that equal stacks are equal pointers.
 */
#include "model_private.h"

#include <stdio.h>

static json_t *intern_frame(struct ub_model *m, json_t *frame)
{
    char *key = json_dumps(frame, JSON_COMPACT | JSON_SORT_KEYS);
    struct ub_frame_entry *entry;
    size_t len;

    if (!key)
        return NULL;
    len = strlen(key);
    HASH_FIND(hh, m->frame, key, len, entry);
    if (entry || HASH_COUNT(m->frame) >= UB_MODEL_FRAMES_MAX || m->frame_bytes + len > UB_MODEL_FRAME_BYTES_MAX) {
        free(key);
        return entry ? entry->frame : NULL;
    }
    entry = calloc(1, sizeof(*entry));
    if (!entry) {
        free(key);
        return NULL;
    }
    entry->key = key;
    entry->frame = json_incref(frame);
    HASH_ADD_KEYPTR(hh, m->frame, entry->key, len, entry);
    if (!UB_HASHED(entry)) {
        json_decref(entry->frame);
        free(entry->key);
        free(entry);
        return NULL;
    }
    m->frame_bytes += len;
    return frame;
}

/* Takes over `key`. */
static json_t *intern_stack(struct ub_model *m, json_t **key, size_t depth)
{
    struct ub_stack_entry *entry;
    size_t i;

    HASH_FIND(hh, m->stack, key, depth * sizeof(*key), entry); /* NOLINT(bugprone-sizeof-expression) */
    if (entry || m->stack_cells + depth + 8 > UB_MODEL_CELLS_MAX) {
        free(key);
        return entry ? entry->frames : NULL;
    }
    entry = calloc(1, sizeof(*entry));
    if (!entry) {
        free(key);
        return NULL;
    }
    entry->key = key;
    entry->frames = json_array();
    for (i = 0; i < depth; i++)
        json_array_append(entry->frames, key[i]);
    HASH_ADD_KEYPTR(hh, m->stack, entry->key, depth * sizeof(*key), entry); /* NOLINT(bugprone-sizeof-expression) */
    if (!UB_HASHED(entry) || json_array_size(entry->frames) != depth) {
        if (UB_HASHED(entry))
            HASH_DEL(m->stack, entry);
        json_decref(entry->frames);
        free(entry->key);
        free(entry);
        return NULL;
    }
    m->stack_cells += depth + 8; /* an entry costs something too */
    return entry->frames;
}

static json_t *intern(struct ub_model *m, const json_t *frames)
{
    size_t size = json_array_size(frames), depth = 0, i;
    json_t **key = calloc(size && size < UB_MODEL_STACK_DEPTH_MAX ? size : UB_MODEL_STACK_DEPTH_MAX,
                          sizeof(*key)); /* NOLINT(bugprone-sizeof-expression) */
    json_t *frame;

    if (!key)
        return NULL;
    json_array_foreach (frames, i, frame) {
        if (depth == UB_MODEL_STACK_DEPTH_MAX)
            break;
        if (!json_is_object(frame))
            continue;
        key[depth] = intern_frame(m, frame);
        if (!key[depth]) {
            free(key);
            return NULL;
        }
        depth++;
    }
    if (depth == 0) {
        free(key);
        return NULL;
    }
    return intern_stack(m, key, depth);
}

static struct ub_stack_id *find_id(const struct ub_model *m, json_int_t id)
{
    struct ub_stack_id *entry;

    if (m->runs == 0)
        return NULL;
    HASH_FIND(hh, m->run[m->current].stack, &id, sizeof(id), entry);
    return entry;
}

static void name_stack(struct ub_model *m, struct ub_run_entry *run, json_int_t id, json_t *frames)
{
    struct ub_stack_id *entry = find_id(m, id);

    if (entry) { /* repeated at the start of a part, or after --append */
        entry->frames = frames;
        return;
    }
    entry = m->stack_ids < UB_MODEL_STACK_IDS_MAX ? calloc(1, sizeof(*entry)) : NULL;
    if (!entry) {
        m->dropped.stacks++;
        return;
    }
    entry->id = id;
    entry->frames = frames;
    HASH_ADD(hh, run->stack, id, sizeof(entry->id), entry);
    if (!UB_HASHED(entry))
        free(entry);
    else
        m->stack_ids++;
}

void ub_model_stack_line(struct ub_model *m, const json_t *record)
{
    struct ub_run_entry *run = ub_model_this_run(m);
    const json_t *id = json_object_get(record, "id"), *frames = json_object_get(record, "frames");
    json_t *stack;

    if (!run || !json_is_integer(id) || !json_is_array(frames)) {
        m->dropped.malformed++;
        return;
    }
    stack = intern(m, frames);
    if (stack)
        name_stack(m, run, json_integer_value(id), stack);
    else if (json_array_size(frames) > 0)
        m->dropped.stacks++;
}

json_t *ub_model_stack(const struct ub_model *m, json_int_t id)
{
    const struct ub_stack_id *entry = find_id(m, id);

    return entry ? entry->frames : NULL;
}

static void id_free(struct ub_stack_id *entry)
{
    free(entry);
}

void ub_model_run_stacks_free(struct ub_run_entry *run)
{
    UB_HASH_DESTROY(struct ub_stack_id, run->stack, id_free);
}

static void stack_free(struct ub_stack_entry *stack)
{
    json_decref(stack->frames);
    free(stack->key);
    free(stack);
}

static void frame_free(struct ub_frame_entry *frame)
{
    json_decref(frame->frame);
    free(frame->key);
    free(frame);
}

void ub_model_stacks_free(struct ub_model *m)
{
    UB_HASH_DESTROY(struct ub_stack_entry, m->stack, stack_free);
    UB_HASH_DESTROY(struct ub_frame_entry, m->frame, frame_free);
}
