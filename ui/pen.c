#include "pen.h"
#include "text_escape.h"

#include <stdarg.h>

/* SGR parameters. Only the 8 basic colours and weights: they follow the user's own palette. */
static const char *const inks[UB_INKS] = {
    [UB_INK_PLAIN] = NULL,  [UB_INK_STALL] = "1;31", [UB_INK_GOOD] = "32",    [UB_INK_WARNING] = "33",
    [UB_INK_LABEL] = "36",  [UB_INK_CAUSE] = "33",   [UB_INK_FUNCTION] = "1", [UB_INK_POINTER] = "1;33",
    [UB_INK_ADVICE] = "32", [UB_INK_FAINT] = "2",
};

void ub_pen_take(const struct ub_pen *pen, enum ub_ink ink)
{
    if (pen->colour && inks[ink])
        fprintf(pen->out, "\033[%sm", inks[ink]);
}

void ub_pen_drop(const struct ub_pen *pen)
{
    if (pen->colour)
        fputs("\033[0m", pen->out);
}

static void drop_ink(const struct ub_pen *pen, enum ub_ink ink)
{
    if (inks[ink])
        ub_pen_drop(pen);
}

size_t ub_pen_printf(const struct ub_pen *pen, enum ub_ink ink, const char *format, ...)
{
    va_list args;
    int n;

    ub_pen_take(pen, ink);
    va_start(args, format);
    n = vfprintf(pen->out, format, args); /* NOLINT(clang-analyzer-valist.Uninitialized) */
    va_end(args);
    drop_ink(pen, ink);
    return n > 0 ? (size_t)n : 0;
}

size_t ub_pen_put(const struct ub_pen *pen, enum ub_ink ink, const char *text, size_t columns)
{
    size_t n;

    ub_pen_take(pen, ink);
    n = ub_escape_put(pen->out, text, columns);
    drop_ink(pen, ink);
    return n;
}

void ub_pen_spaces(const struct ub_pen *pen, size_t count)
{
    fprintf(pen->out, "%*s", (int)count, "");
}

void ub_pen_label(const struct ub_pen *pen, const char *label)
{
    fputs("  ", pen->out);
    ub_pen_printf(pen, *label ? UB_INK_LABEL : UB_INK_PLAIN, "%-7s", label);
}
