/*
 * libFuzzer: any bytes as a recording, through everything that reads one.
 * Besides crashes: the quick way of reading (recording_scan.c) must come to the
 * same as the JSON library, and no control character may reach a terminal.
 */
#include "../../ui/filter.h"
#include "../../ui/model.h"
#include "../../ui/recording.h"
#include "../../ui/text.h"

#include <stdlib.h>

static void check_text(const char *text)
{
    for (const char *p = text; *p; p++) {
        unsigned char c = (unsigned char)*p;

        if ((c < 0x20 && c != '\n') || c == 0x7f || (c == 0xc2 && (unsigned char)p[1] < 0xa0))
            abort();
    }
}

static struct ub_model *read_it(const uint8_t *data, size_t size, bool quick, int *ret)
{
    struct ub_model *m = ub_model_new();
    struct ub_sink sink = ub_model_sink(m);
    struct ub_taker taker = ub_model_taker(m);
    struct ub_recording_stats stats;
    FILE *f = fmemopen((void *)(uintptr_t)data, size, "r");

    *ret = ub_recording_read_fast(f, &sink, quick ? &taker : NULL, &stats);
    fclose(f);
    ub_model_file_read(m, "fuzz", &stats);
    return m;
}

static char *json_text(const struct ub_model *m)
{
    json_t *json = ub_model_json(m);
    char *text = json_dumps(json, JSON_SORT_KEYS);

    json_decref(json);
    return text;
}

static void write_report(const struct ub_model *m)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);

    ub_text_report(out, m, false);
    ub_text_verdict(out, m, "x", false);
    fclose(out);
    check_text(text);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ub_model *thorough, *quick;
    char *a, *b;
    int ra, rb;

    if (size == 0)
        return 0;
    thorough = read_it(data, size, false, &ra);
    quick = read_it(data, size, true, &rb);
    a = json_text(thorough);
    b = json_text(quick);
    if (ra != rb || !a || !b || strcmp(a, b) != 0)
        abort();
    write_report(quick);
    free(a);
    free(b);
    ub_model_free(thorough);
    ub_model_free(quick);
    return 0;
}
