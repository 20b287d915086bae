/* What the tests of ui/ share: models fed from text, text caught in a string, folders of their own. */
#ifndef UI_CHECK_H
#define UI_CHECK_H

#include "../../ui/model.h"
#include "../../ui/recording.h"
#include "../../ui/text.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define SAMPLE "tests/data/sample.jsonl" /* unit tests run in the root of the tree */

#define HEADER                                                                                                         \
    "{\"type\":\"header\",\"schema\":\"unblock-recording\",\"version\":1,\"tool\":\"t\","                              \
    "\"started\":\"2025-11-21T03:05:12Z\",\"monotonic_ns\":1000,\"host\":\"h\",\"command\":[\"prog\"],"                \
    "\"threshold_ns\":20000000,\"source\":\"agent\"}"
#define PROCESS "{\"type\":\"process\",\"pid\":42,\"exe\":\"/opt/app/prog\"}"

/* One object from printf text in which ' stands for ". */
static inline json_t *json_of(const char *format, ...)
{
    char text[16384];
    va_list ap;
    json_t *json;

    va_start(ap, format);
    vsnprintf(text, sizeof(text), format, ap);
    va_end(ap);
    for (char *p = text; *p; p++)
        if (*p == '\'')
            *p = '"';
    json = json_loads(text, 0, NULL);
    if (!json)
        fail_msg("not JSON: %s", text);
    return json;
}

static inline void feed(struct ub_model *m, json_t *line)
{
    ub_model_line(m, line);
    json_decref(line);
}

/* A model that has read a header and the process 42 /opt/app/prog. */
static inline struct ub_model *new_model(void)
{
    struct ub_model *m = ub_model_new();

    assert_non_null(m);
    feed(m, json_loads(HEADER, 0, NULL));
    feed(m, json_loads(PROCESS, 0, NULL));
    return m;
}

/* A stall of site `site` with the further fields `more` ("" or ", 'key': value"). */
static inline json_t *slow(int id, const char *site, long ms, const char *more)
{
    return json_of("{'type':'slow','id':%d,'pid':42,'tid':42,'thread':'prog','loop':'turn','kind':'turn','callback':{},"
                   "'start_ns':5000,'duration_ns':%ld000000,'threshold_ns':20000000,'cause':'cpu','samples':[],"
                   "'site':'%s'%s}",
                   id, ms, site, more);
}

static inline struct ub_model *model_of_file(const char *path, struct ub_recording_stats *ret_stats)
{
    struct ub_model *m = ub_model_new();
    struct ub_sink sink = ub_model_sink(m);
    FILE *f = fopen(path, "r");

    assert_non_null(f);
    assert_int_equal(ub_recording_read(f, &sink, ret_stats), 0);
    fclose(f);
    return m;
}

/* Text that was written to a memory stream. Call text_begin, write, then text_end; free the result. */
struct text {
    FILE *out;
    char *text;
    size_t size;
};

static inline void text_begin(struct text *t)
{
    t->text = NULL;
    t->out = open_memstream(&t->text, &t->size);
    assert_non_null(t->out);
}

static inline char *text_end(struct text *t)
{
    assert_int_equal(fclose(t->out), 0);
    return t->text;
}

static inline char *report_of(const struct ub_model *m)
{
    struct text t;

    text_begin(&t);
    ub_text_report(t.out, m, false);
    return text_end(&t);
}

/* Whole texts are compared; on a difference both are shown whole. */
static inline void assert_text(const char *got, const char *expected)
{
    if (strcmp(got, expected) == 0)
        return;
    fprintf(stderr, "got:\n%s\nexpected:\n%s\n", got, expected); /* cmocka's own messages are cut */
    fail();
}

/* A folder of the test's own; removed with everything directly in it. */
static inline char *folder_make(char path[64])
{
    strcpy(path, "/tmp/unblock-ui-XXXXXX");
    assert_non_null(mkdtemp(path));
    return path;
}

static inline void folder_remove(const char *path)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -rf '%s'", path);
    assert_int_equal(system(command), 0);
}

/* The whole of a file; free the result. */
static inline char *slurp(const char *path, size_t *ret_len)
{
    FILE *f = fopen(path, "r");
    char *text = NULL;
    size_t len = 0, n;

    assert_non_null(f);
    do {
        text = realloc(text, len + 65537);
        n = fread(text + len, 1, 65536, f);
        len += n;
    } while (n > 0);
    text[len] = 0;
    fclose(f);
    if (ret_len)
        *ret_len = len;
    return text;
}

#endif
