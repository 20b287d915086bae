/*
 * The reader. It streams: a line is judged where it was read; one that reaches
 * into the next chunk is put together in a buffer that never grows beyond
 * UB_RECORDING_LINE_MAX. A line too long is passed over without being stored.
 */
#include "recording.h"
#include "json_get.h"
#include "recording_scan.h"

#include <errno.h>
#include <stdlib.h>

#define CHUNK      ((size_t)256 << 10)
#define LINE_FIRST ((size_t)64 << 10)

struct ub_recording_reader {
    const struct ub_sink *sink;
    const struct ub_taker *taker; /* or NULL */
    struct ub_recording_stats stats;
    bool first;    /* no line was judged yet */
    bool readable; /* the last header was of a version we know */

    char *line; /* what the last chunk held of a line that goes on */
    size_t len, size;
    bool overlong;

    struct ub_stall stall;
    char chunk[CHUNK + UB_SCAN_PAD];
};

static void reader_free(struct ub_recording_reader **r)
{
    if (*r)
        free((*r)->line);
    free(*r);
}

static int line_append(struct ub_recording_reader *r, const char *bytes, size_t len)
{
    if (r->overlong || len == 0)
        return 0;
    if (len > UB_RECORDING_LINE_MAX - r->len) {
        r->overlong = true;
        return r->first ? -EINVAL : 0; /* no recording begins like this; /dev/zero would never end */
    }
    if (r->size - r->len < len) {
        size_t size = r->size ? r->size : LINE_FIRST;
        char *line;

        while (size - r->len < len)
            size *= 2;
        line = realloc(r->line, size + UB_SCAN_PAD);
        if (!line)
            return -ENOMEM;
        r->line = line;
        r->size = size;
    }
    memcpy(r->line + r->len, bytes, len);
    r->len += len;
    return 0;
}

/* 0: a header that we can read. */
static int check_header(const json_t *record)
{
    uint64_t version;

    if (!ub_json_is(record, "type", "header") || !ub_json_is(record, "schema", UB_RECORDING_SCHEMA))
        return -EINVAL;
    if (!ub_json_u64(record, "version", &version) || version == 0)
        return -EINVAL;
    return version > UB_RECORDING_VERSION ? -EPROTONOSUPPORT : 0;
}

static int deliver(struct ub_recording_reader *r, json_t *record)
{
    if (r->first || ub_json_is(record, "type", "header")) {
        int error = check_header(record);

        if (error && r->first)
            return error;
        r->first = false;
        r->readable = error == 0; /* joined files may be of different versions */
    }
    if (!r->readable) {
        r->stats.skipped++;
        return 0;
    }
    if (ub_json_is(record, "type", "end"))
        r->stats.ended = true;
    r->stats.lines++;
    r->sink->line(r->sink->self, record);
    return 0;
}

static bool is_blank(const char *line, size_t len)
{
    size_t i;

    for (i = 0; i < len; i++)
        if (!strchr(" \t\r", line[i]) || line[i] == 0)
            return false;
    return true;
}

/* Most lines of a large recording: figures are all that is wanted of them. */
static bool take_figures(struct ub_recording_reader *r, const char *line, size_t len)
{
    const struct ub_taker *taker = r->taker;
    struct ub_stats_line stats;
    bool taken = false;

    if (!taker || !r->readable)
        return false;
    if (ub_scan_slow(line, len, &r->stall))
        taken = taker->stall(taker->self, &r->stall);
    else if (taker->stats && ub_scan_stats(line, len, &stats))
        taken = taker->stats(taker->self, &stats);
    r->stats.lines += taken;
    return taken;
}

/* `last`: the stream ended where a newline should be. */
static int judge(struct ub_recording_reader *r, const char *line, size_t len, bool last)
{
    UB_CLEANUP(ub_json_drop) json_t *record = NULL;

    if (!r->overlong) {
        if (take_figures(r, line, len))
            return 0;
        if (is_blank(line, len))
            return 0;
        /* jansson refuses invalid UTF-8, nesting beyond 2048, and \u0000 */
        record = json_loadb(line, len, 0, NULL);
    }
    if (json_is_object(record))
        return deliver(r, record);
    if (r->first)
        return -EINVAL;
    if (last)
        r->stats.torn++;
    else
        r->stats.skipped++;
    return 0;
}

/* The line that began in an earlier chunk ends with these bytes. */
static int judge_joined(struct ub_recording_reader *r, const char *bytes, size_t len)
{
    int error = line_append(r, bytes, len);

    if (!error)
        error = judge(r, r->line, r->len, false);
    r->len = 0;
    r->overlong = false;
    return error;
}

static int take_chunk(struct ub_recording_reader *r, const char *bytes, size_t len)
{
    while (len > 0) {
        const char *newline = memchr(bytes, '\n', len);
        size_t part = newline ? (size_t)(newline - bytes) : len;
        int error;

        if (!newline)
            return line_append(r, bytes, part);
        error = r->len > 0 || r->overlong ? judge_joined(r, bytes, part) : judge(r, bytes, part, false);
        if (error)
            return error;
        bytes += part + 1;
        len -= part + 1;
    }
    return 0;
}

struct ub_recording_reader *ub_recording_reader_new(const struct ub_sink *sink, const struct ub_taker *taker)
{
    struct ub_recording_reader *r = calloc(1, sizeof(*r));

    if (!r)
        return NULL;
    r->sink = sink;
    r->taker = taker;
    r->first = true;
    return r;
}

int ub_recording_reader_read(struct ub_recording_reader *r, FILE *file)
{
    errno = 0;
    for (;;) {
        size_t n = fread(r->chunk, 1, CHUNK, file);
        int error = take_chunk(r, r->chunk, n);

        if (error)
            return error;
        if (ferror(file))
            return errno > 0 ? -errno : -EIO;
        if (n < CHUNK && feof(file))
            return 0;
    }
}

int ub_recording_reader_end(struct ub_recording_reader *r, struct ub_recording_stats *ret_stats)
{
    int error = r->len > 0 || r->overlong ? judge(r, r->line, r->len, true) : 0;

    *ret_stats = r->stats;
    if (error)
        return error;
    return r->first ? -ENODATA : 0;
}

int ub_recording_read(FILE *file, const struct ub_sink *sink, struct ub_recording_stats *ret_stats)
{
    return ub_recording_read_fast(file, sink, NULL, ret_stats);
}

int ub_recording_read_fast(FILE *file, const struct ub_sink *sink, const struct ub_taker *taker,
                           struct ub_recording_stats *ret_stats)
{
    UB_CLEANUP(reader_free) struct ub_recording_reader *r = ub_recording_reader_new(sink, taker);
    int error;

    if (!r)
        return -ENOMEM;
    error = ub_recording_reader_read(r, file);
    if (error) {
        *ret_stats = r->stats;
        return error;
    }
    return ub_recording_reader_end(r, ret_stats);
}

void ub_recording_reader_free(struct ub_recording_reader *r)
{
    reader_free(&r);
}
