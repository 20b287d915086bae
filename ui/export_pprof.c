/*
 * pprof's profile.proto, uncompressed (every reader takes that, too): samples of
 * time lost with the labels site, cause and program. The encoder below is all of
 * protobuf that is needed: varints and length-delimited fields.
 */
#include "export.h"
#include "hash.h"
#include "lost.h"
#include "wall_time.h"

#include <stdlib.h>

struct buffer {
    uint8_t *bytes;
    size_t len, size;
};

static void put_byte(struct buffer *b, uint8_t byte)
{
    if (b->len == b->size) {
        size_t size = b->size ? b->size * 2 : 256;
        uint8_t *bytes = realloc(b->bytes, size);

        if (!bytes)
            return;
        b->bytes = bytes;
        b->size = size;
    }
    b->bytes[b->len++] = byte;
}

static void put_varint(struct buffer *b, uint64_t value)
{
    for (; value >= 0x80; value >>= 7)
        put_byte(b, (uint8_t)(value | 0x80));
    put_byte(b, (uint8_t)value);
}

static void put_number(struct buffer *b, uint32_t field, uint64_t value)
{
    if (value == 0) /* the default */
        return;
    put_varint(b, field << 3);
    put_varint(b, value);
}

static void put_bytes(struct buffer *b, uint32_t field, const void *bytes, size_t len)
{
    size_t i;

    put_varint(b, field << 3 | 2);
    put_varint(b, len);
    for (i = 0; i < len; i++)
        put_byte(b, ((const uint8_t *)bytes)[i]);
}

/* A message within the message; `inner` is given up. */
static void put_message(struct buffer *b, uint32_t field, struct buffer *inner)
{
    put_bytes(b, field, inner->bytes, inner->len);
    free(inner->bytes);
    *inner = (struct buffer){0};
}

struct string_entry {
    char *text;
    uint64_t index;
    UT_hash_handle hh;
};

/* A frame is a location and a function of its own: the number is that of both. */
struct frame_entry {
    const json_t *frame;
    uint64_t id;
    UT_hash_handle hh;
};

struct builder {
    struct buffer out, strings;
    struct string_entry *string;
    struct frame_entry *frame;
    uint64_t string_count;
};

static uint64_t string_index(struct builder *b, const char *text)
{
    struct string_entry *entry;
    size_t len = strlen(text);

    HASH_FIND(hh, b->string, text, len, entry);
    if (entry)
        return entry->index;
    entry = calloc(1, sizeof(*entry));
    if (!entry)
        return 0;
    entry->text = strdup(text);
    if (!entry->text) {
        free(entry);
        return 0;
    }
    entry->index = b->string_count++;
    put_bytes(&b->strings, 6, text, len);
    HASH_ADD_KEYPTR(hh, b->string, entry->text, len, entry);
    return entry->index; /* NOLINT(clang-analyzer-unix.Malloc): the table has it */
}

static void put_function(struct builder *b, const struct frame_entry *entry)
{
    const char *file = ub_json_string(entry->frame, "file");
    uint64_t line = ub_json_u64_or(entry->frame, "line", 0);
    struct buffer function = {0}, location = {0}, place = {0};
    char name[1024];

    put_number(&function, 1, entry->id);
    put_number(&function, 2,
               string_index(b, entry->frame ? ub_lost_frame_name(entry->frame, name, sizeof(name)) : "(no stack)"));
    if (file)
        put_number(&function, 4, string_index(b, file));
    put_message(&b->out, 5, &function);
    put_number(&place, 1, entry->id);
    put_number(&place, 2, line);
    put_number(&location, 1, entry->id);
    put_message(&location, 4, &place);
    put_message(&b->out, 4, &location);
}

static uint64_t frame_id(struct builder *b, const json_t *frame)
{
    struct frame_entry *entry;

    HASH_FIND_PTR(b->frame, &frame, entry);
    if (entry)
        return entry->id;
    entry = calloc(1, sizeof(*entry));
    if (!entry)
        return 0;
    entry->frame = frame;
    entry->id = HASH_COUNT(b->frame) + 1;
    HASH_ADD_PTR(b->frame, frame, entry);
    put_function(b, entry);
    return entry->id;
}

static void put_label(struct builder *b, struct buffer *sample, const char *key, const char *value)
{
    struct buffer label = {0};

    put_number(&label, 1, string_index(b, key));
    put_number(&label, 2, string_index(b, value ? value : "?"));
    put_message(sample, 3, &label);
}

static void take(void *self, const struct ub_lost_stack *stack)
{
    struct builder *b = self;
    struct buffer sample = {0}, ids = {0}, values = {0};
    const json_t *frame;
    size_t i;

    json_array_foreach (stack->frames, i, frame) /* innermost first, as here */
        put_varint(&ids, frame_id(b, frame));
    if (ids.len == 0)
        put_varint(&ids, frame_id(b, NULL));
    put_varint(&values, stack->samples);
    put_varint(&values, stack->ns);
    put_message(&sample, 1, &ids);
    put_message(&sample, 2, &values);
    put_label(b, &sample, "site", stack->site->id);
    put_label(b, &sample, "program", stack->site->program);
    put_label(b, &sample, "cause", ub_model_cause_name(ub_model_site_cause(stack->site)));
    put_message(&b->out, 2, &sample);
}

static void put_value_type(struct builder *b, const char *type, const char *unit)
{
    struct buffer value = {0};

    put_number(&value, 1, string_index(b, type));
    put_number(&value, 2, string_index(b, unit));
    put_message(&b->out, 1, &value);
}

static void put_times(struct builder *b, const struct ub_model *m)
{
    const struct ub_run *run = ub_model_runs(m) > 0 ? ub_model_run(m, 0) : NULL;
    const char *started = run ? ub_json_string(run->header, "started") : NULL;
    uint64_t begin = run ? ub_json_u64_or(run->header, "monotonic_ns", 0) : 0;
    int64_t wall;

    if (started && ub_wall_time_parse(started, &wall) == 0 && wall > 0)
        put_number(&b->out, 9, (uint64_t)wall);
    if (run && run->last_ns > begin)
        put_number(&b->out, 10, run->last_ns - begin);
}

static void string_free(struct string_entry *entry)
{
    free(entry->text);
    free(entry);
}

static void frame_free(struct frame_entry *entry)
{
    free(entry);
}

static void write_pprof(FILE *out, const struct ub_export_job *job)
{
    struct builder b = {0};

    string_index(&b, ""); /* the first one must be */
    put_value_type(&b, "samples", "count");
    put_value_type(&b, "lost", "nanoseconds");
    put_number(&b.out, 14, string_index(&b, "lost"));
    ub_lost_each(job->m, take, &b);
    put_times(&b, job->m);
    fwrite(b.out.bytes, 1, b.out.len, out);
    fwrite(b.strings.bytes, 1, b.strings.len, out);
    free(b.out.bytes);
    free(b.strings.bytes);
    UB_HASH_DESTROY(struct string_entry, b.string, string_free);
    UB_HASH_DESTROY(struct frame_entry, b.frame, frame_free);
}

const struct ub_export ub_export_pprof = {.name = "pprof", .write = write_pprof};
