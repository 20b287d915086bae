/*
 * Pieces of OTLP's JSON encoding (OpenTelemetry protocol): what logs and metrics
 * share. 64-bit integers are strings there, and a file holds one kind of data,
 * one request a line.
 */
#ifndef UB_UI_OTLP_H
#define UB_UI_OTLP_H

#include "model.h"

#include <stdio.h>

/* Each adds an attribute to the array `to`; what is NULL, empty or no UTF-8 adds nothing. */
void ub_otlp_text(json_t *to, const char *key, const char *value);
void ub_otlp_number(json_t *to, const char *key, uint64_t value);
void ub_otlp_true(json_t *to, const char *key);

/* A 64-bit number as the encoding wants it: a string. */
json_t *ub_otlp_u64(uint64_t value);

/* service.name and host.name of the program that a run watched; either may be NULL. */
json_t *ub_otlp_resource(const char *program, const char *host);

/*
 * One request on a line: {"resourceLogs":[{"resource":...,"scopeLogs":[{"scope":...,"logRecords":[...]}]}]}
 * for the words "resourceLogs", "scopeLogs", "logRecords". Takes `attributes` and `list`.
 */
struct ub_otlp_words {
    const char *resources, *scopes, *list;
};
void ub_otlp_line(FILE *out, const struct ub_otlp_words *words, json_t *attributes, json_t *list);

#endif
