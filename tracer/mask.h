/*
 * Secrets in command lines: what a recording must not spread.
 *
 *   --password=x, token: x, API_KEY=x   ->  --password=***
 *   --secret x (two arguments)          ->  --secret ***
 *   URL with user:pw@host               ->  ***@host
 *   /cb?a=1&token=x&b=2                 ->  /cb?a=1&token=***&b=2
 *
 * By the look of names, so neither complete nor free of false alarms (a file
 * named after --key is masked too): --redact leaves arguments out altogether.
 */
#ifndef UB_TRACER_MASK_H
#define UB_TRACER_MASK_H

#include "line.h"

/* Appends `text`, escaped, with the values after secret-like names masked. */
void ub_mask_text(struct ub_line *line, const char *text);

/* Whether the argument after this one is a secret: "--password", "-token". */
bool ub_mask_next(const char *argument);

#endif
