#include "text_escape.h"
#include "utf8.h"

#include <string.h>

/* One unit of output: a character as it is, or an escape in its place. */
struct unit {
    char text[16];
    size_t columns;
};

/* Characters that are not what they seem: invisible, or changing the order of others. */
static bool is_deceptive(uint32_t c)
{
    return c == 0xad || c == 0x61c || c == 0x180e || (c >= 0x200b && c <= 0x200f) || (c >= 0x2028 && c <= 0x202e) ||
           (c >= 0x2060 && c <= 0x206f) || c == 0xfeff || (c >= 0xfff9 && c <= 0xfffb) ||
           (c >= 0xe0000 && c <= 0xe0fff);
}

static void set_unit(struct unit *u, const char *format, uint32_t value)
{
    u->columns = (size_t)snprintf(u->text, sizeof(u->text), format, value);
}

/* Takes one character from `bytes` and returns its length. */
static size_t next_unit(const char *bytes, size_t len, struct unit *u)
{
    uint32_t c = 0;
    size_t n = ub_utf8_decode((const unsigned char *)bytes, len, &c);

    if (n == 0)
        set_unit(u, "\\x%02x", (unsigned char)*bytes);
    else if (c == '\n')
        set_unit(u, "\\n", 0);
    else if (c == '\t')
        set_unit(u, "\\t", 0);
    else if (c < 0x20 || (c >= 0x7f && c < 0xa0))
        set_unit(u, "\\x%02x", c);
    else if (is_deceptive(c))
        set_unit(u, c > 0xffff ? "\\U%08x" : "\\u%04x", c);
    else {
        memcpy(u->text, bytes, n);
        u->text[n] = 0;
        u->columns = 1;
    }
    return n ? n : 1;
}

static size_t count_columns(const char *bytes, size_t len)
{
    size_t columns = 0;

    while (len > 0) {
        struct unit u;
        size_t n = next_unit(bytes, len, &u);

        columns += u.columns;
        bytes += n;
        len -= n;
    }
    return columns;
}

/* Writes the units that lie within columns [from, to). */
static size_t put_range(FILE *out, const char *bytes, size_t len, size_t from, size_t to)
{
    size_t at = 0, written = 0;

    while (len > 0) {
        struct unit u;
        size_t n = next_unit(bytes, len, &u);

        if (at + u.columns > to)
            break;
        if (at >= from) {
            fputs(u.text, out);
            written += u.columns;
        }
        at += u.columns;
        bytes += n;
        len -= n;
    }
    return written;
}

static size_t put(FILE *out, const char *bytes, size_t len, size_t columns, size_t tail)
{
    size_t all = count_columns(bytes, len), written;

    if (columns == 0 || all <= columns)
        return put_range(out, bytes, len, 0, SIZE_MAX);
    if (columns <= 3 + tail)
        return put_range(out, bytes, len, 0, columns);
    written = put_range(out, bytes, len, 0, columns - 3 - tail);
    fputs("...", out);
    return written + 3 + (tail ? put_range(out, bytes, len, all - tail, SIZE_MAX) : 0);
}

size_t ub_escape_put_bytes(FILE *out, const char *bytes, size_t len, size_t columns)
{
    return put(out, bytes, len, columns, 0);
}

size_t ub_escape_put(FILE *out, const char *text, size_t columns)
{
    return put(out, text, strlen(text), columns, 0);
}

size_t ub_escape_put_path(FILE *out, const char *path, size_t columns)
{
    return put(out, path, strlen(path), columns, columns / 2);
}

size_t ub_escape_columns(const char *text)
{
    return count_columns(text, strlen(text));
}
