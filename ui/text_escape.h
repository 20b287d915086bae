/*
 * Text of strangers (names, paths, source lines) on its way to a terminal or a
 * log. Control characters, characters that reorder or hide text (bidi
 * overrides, zero-width) and bytes that are not UTF-8 come out as \x1b, \u202e
 * and \xff.
 */
#ifndef UB_UI_TEXT_ESCAPE_H
#define UB_UI_TEXT_ESCAPE_H

#include "../common/base.h"

#include <stdio.h>

/*
 * Writes `text` in at most `columns` columns (0: no limit); what is too long
 * is cut and ends in "...". Returns the columns used: one for each character.
 */
size_t ub_escape_put(FILE *out, const char *text, size_t columns);

/* The same for `len` bytes, NULs included. */
size_t ub_escape_put_bytes(FILE *out, const char *bytes, size_t len, size_t columns);

/* Like ub_escape_put, but cuts the middle out: for paths, whose end says most. */
size_t ub_escape_put_path(FILE *out, const char *path, size_t columns);

/* Columns that ub_escape_put would use without a limit. */
size_t ub_escape_columns(const char *text);

#endif
