/*
 * Strings from strangers (paths, arguments, names of a watched process) made
 * fit for JSON, terminals and logs: valid UTF-8, no control characters.
 */
#ifndef UB_TRACER_LINE_H
#define UB_TRACER_LINE_H

#include "../common/base.h"

/* A text being built in a caller's buffer: always NUL-terminated; what does not fit is cut and marked with "...". */
struct ub_line {
    char *buf;
    size_t size;
    size_t len;
    bool cut;
};

void ub_line_begin(struct ub_line *line, char *buf, size_t size);
void ub_line_printf(struct ub_line *line, const char *format, ...) __attribute__((format(printf, 2, 3)));

/*
 * Appends `len` bytes of `text`. Control characters (C0, C1, DEL, and the
 * bidirectional ones that turn a line around), bytes that are not UTF-8 and,
 * when `quote` is set, that character and '\\' are written as escapes: \n \t \xNN.
 */
void ub_line_escape(struct ub_line *line, const char *text, size_t len, char quote);

/* Length of the valid UTF-8 sequence at `text` (1..4), 0 when it is none. */
size_t ub_utf8_length(const char *text, size_t len);

#endif
