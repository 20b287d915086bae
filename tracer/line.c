#include "line.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define CUT "..."

void ub_line_begin(struct ub_line *line, char *buf, size_t size)
{
    *line = (struct ub_line){.buf = buf, .size = size};
    if (size > 0)
        buf[0] = '\0';
}

/* Marks the end of a text that did not fit, without cutting a UTF-8 sequence in two. */
static void cut_here(struct ub_line *line)
{
    size_t at;

    line->cut = true;
    if (line->size <= sizeof(CUT))
        return;
    at = line->len < line->size - sizeof(CUT) ? line->len : line->size - sizeof(CUT);
    while (at > 0 && ((uint8_t)line->buf[at] & 0xc0) == 0x80)
        at--;
    memcpy(line->buf + at, CUT, sizeof(CUT));
    line->len = at + sizeof(CUT) - 1;
}

static void append(struct ub_line *line, const char *text, size_t len)
{
    if (line->cut)
        return;
    if (len >= line->size - line->len) {
        cut_here(line);
        return;
    }
    memcpy(line->buf + line->len, text, len);
    line->len += len;
    line->buf[line->len] = '\0';
}

void ub_line_printf(struct ub_line *line, const char *format, ...)
{
    char text[256];
    va_list ap;
    int n;

    va_start(ap, format);
    n = vsnprintf(text, sizeof(text), format, ap);
    va_end(ap);
    if (n > 0)
        append(line, text, (size_t)n < sizeof(text) ? (size_t)n : sizeof(text) - 1);
}

/* Code point of a valid sequence. */
static uint32_t decode(const char *text, size_t len)
{
    static const uint8_t mask[] = {0, 0x7f, 0x1f, 0x0f, 0x07};
    uint32_t c = (uint8_t)text[0] & mask[len];

    for (size_t i = 1; i < len; i++)
        c = c << 6 | ((uint8_t)text[i] & 0x3f);
    return c;
}

size_t ub_utf8_length(const char *text, size_t len)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    uint8_t first = (uint8_t)text[0];
    size_t n = first < 0x80                    ? 1
               : first >= 0xc2 && first < 0xe0 ? 2
               : (first & 0xf0) == 0xe0        ? 3
               : first >= 0xf0 && first < 0xf5 ? 4
                                               : 0;
    uint32_t c;

    if (n == 0 || n > len)
        return 0;
    for (size_t i = 1; i < n; i++)
        if (((uint8_t)text[i] & 0xc0) != 0x80)
            return 0;
    c = decode(text, n);
    return c >= least[n] && c <= 0x10ffff && !(c >= 0xd800 && c <= 0xdfff) ? n : 0;
}

static bool is_unprintable(uint32_t c)
{
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x061c || (c >= 0x200b && c <= 0x200f) ||
           (c >= 0x2028 && c <= 0x202e) || (c >= 0x2060 && c <= 0x206f) || c == 0xfeff;
}

static void append_escaped(struct ub_line *line, const char *bytes, size_t len)
{
    char text[4 * 4 + 1];
    size_t used = 0;

    if (len == 1 && (*bytes == '\n' || *bytes == '\t' || *bytes == '\r')) {
        text[used++] = '\\';
        text[used++] = *bytes == '\n' ? 'n' : *bytes == '\t' ? 't' : 'r';
    } else {
        for (size_t i = 0; i < len; i++)
            used += (size_t)snprintf(text + used, sizeof(text) - used, "\\x%02x", (uint8_t)bytes[i]);
    }
    append(line, text, used);
}

void ub_line_escape(struct ub_line *line, const char *text, size_t len, char quote)
{
    for (size_t i = 0; i < len && !line->cut;) {
        size_t n = ub_utf8_length(text + i, len - i);

        if (n == 0 || is_unprintable(decode(text + i, n))) {
            n = n == 0 ? 1 : n;
            append_escaped(line, text + i, n);
        } else {
            if (quote != 0 && (text[i] == quote || text[i] == '\\'))
                append(line, "\\", 1);
            append(line, text + i, n);
        }
        i += n;
    }
}
