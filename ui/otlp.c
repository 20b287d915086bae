#include "otlp.h"

#include <inttypes.h>

static void add(json_t *to, const char *key, const char *type, json_t *value)
{
    if (value)
        json_array_append_new(to, json_pack("{s:s, s:{s:o}}", "key", key, "value", type, value));
}

void ub_otlp_text(json_t *to, const char *key, const char *value)
{
    if (value && *value)
        add(to, key, "stringValue", json_string(value));
}

json_t *ub_otlp_u64(uint64_t value)
{
    return json_sprintf("%" PRIu64, value);
}

void ub_otlp_number(json_t *to, const char *key, uint64_t value)
{
    add(to, key, "intValue", ub_otlp_u64(value > INT64_MAX ? INT64_MAX : value));
}

void ub_otlp_true(json_t *to, const char *key)
{
    add(to, key, "boolValue", json_true());
}

json_t *ub_otlp_resource(const char *program, const char *host)
{
    json_t *attributes = json_array();

    ub_otlp_text(attributes, "service.name", program);
    ub_otlp_text(attributes, "host.name", host);
    return attributes;
}

void ub_otlp_line(FILE *out, const struct ub_otlp_words *words, json_t *attributes, json_t *list)
{
    json_t *request =
        json_pack("{s:[{s:{s:o}, s:[{s:{s:s, s:s}, s:o}]}]}", words->resources, "resource", "attributes", attributes,
                  words->scopes, "scope", "name", "unblock", "version", UB_VERSION, words->list, list);

    json_dumpf(request, out, JSON_COMPACT | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(15));
    fputc('\n', out);
    json_decref(request);
}
