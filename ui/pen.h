/*
 * A pen writes coloured text. Colours are named by what they mean; which
 * colour that is stands in one table, pen.c.
 */
#ifndef UB_UI_PEN_H
#define UB_UI_PEN_H

#include "../common/base.h"

#include <stdio.h>

enum ub_ink {
    UB_INK_PLAIN,
    UB_INK_STALL,    /* the bad news: BLOCKED, the time lost */
    UB_INK_GOOD,     /* the good news: no stall */
    UB_INK_WARNING,  /* the figures are not the whole truth */
    UB_INK_LABEL,    /* why where cost do site */
    UB_INK_CAUSE,    /* the blocking call */
    UB_INK_FUNCTION, /* a function of the user's */
    UB_INK_POINTER,  /* the arrow at the line to look at */
    UB_INK_ADVICE,
    UB_INK_FAINT, /* what is there for completeness */
    UB_INKS,
};

struct ub_pen {
    FILE *out;
    bool colour;
};

void ub_pen_take(const struct ub_pen *pen, enum ub_ink ink);
void ub_pen_drop(const struct ub_pen *pen); /* back to plain */

/* printf in an ink; for text of our own (what strangers wrote goes through ub_pen_put). Returns the columns used. */
size_t ub_pen_printf(const struct ub_pen *pen, enum ub_ink ink, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Escaped text (text_escape.h) in an ink. */
size_t ub_pen_put(const struct ub_pen *pen, enum ub_ink ink, const char *text, size_t columns);

void ub_pen_spaces(const struct ub_pen *pen, size_t count);

/* "      why    ": a label of a block, with its indent. */
void ub_pen_label(const struct ub_pen *pen, const char *label);

#endif
