/* From an instruction's offset to its line, by the three formats that CPython has had since 3.8. */
#include "python_layout.h"
#include "python.h"

/* Pairs (bytes of code, lines) as unsigned, signed. */
static int lnotab(const uint8_t *t, uint32_t size, int line, int32_t offset)
{
    int32_t at = 0;

    for (uint32_t i = 0; i + 1 < size; i += 2) {
        at += t[i];
        if (at > offset)
            break;
        line += (int8_t)t[i + 1];
    }
    return line;
}

/* Pairs too, but the lines come first into force; -128: these instructions have no line. */
static int linetable(const uint8_t *t, uint32_t size, int first, int32_t offset)
{
    int line = first, seen = first;
    int32_t end = 0;

    for (uint32_t i = 0; i + 1 < size; i += 2) {
        int delta = (int8_t)t[i + 1];

        if (delta != -128) {
            line += delta;
            seen = line;
        }
        end += t[i];
        if (offset < end)
            return seen;
    }
    return seen;
}

static int signed_varint(const uint8_t *t, uint32_t size, uint32_t i)
{
    uint32_t value = 0, shift = 0;

    for (; i < size && shift < 30; i++, shift += 6) {
        value |= (uint32_t)(t[i] & 0x3f) << shift;
        if (!(t[i] & 0x40))
            break;
    }
    return value & 1 ? -(int)(value >> 1) : (int)(value >> 1);
}

/* Entries that begin with a byte above 127: kind, length in code units; what follows depends on the kind. */
static int64_t locations(const uint8_t *t, uint32_t size, int first, int32_t offset)
{
    int64_t line = first, seen = first; /* a hostile table may run far */
    int32_t end = 0;
    uint32_t i = 0;

    while (i < size) {
        uint32_t kind = t[i] >> 3 & 15;

        end += 2 * ((t[i] & 7) + 1);
        i++;
        if (kind == 13 || kind == 14)
            line += signed_varint(t, size, i);
        else if (kind >= 10 && kind <= 12)
            line += (int)kind - 10;
        if (kind != 15) /* no line: the one before stands for it */
            seen = line;
        if (offset < end)
            return seen;
        while (i < size && !(t[i] & 0x80))
            i++;
    }
    return seen;
}

int ub_python_lines_find(int kind, const uint8_t *table, uint32_t size, int first_line, int32_t offset)
{
    int64_t line;

    if (!table || offset < 0)
        return first_line;
    switch ((enum ub_python_lines)kind) {
    case UB_PYTHON_LNOTAB:
        return lnotab(table, size, first_line, offset);
    case UB_PYTHON_LINETABLE:
        return linetable(table, size, first_line, offset);
    case UB_PYTHON_LOCATIONS:
        line = locations(table, size, first_line, offset);
        return line > 0 && line < INT32_MAX ? (int)line : first_line;
    }
    return first_line;
}

uint32_t ub_python_line(const struct ub_python_frame *frame)
{
    const struct ub_python_code *c = frame->code;
    int line;

    if (!c || c->first_line <= 0)
        return 0;
    line = ub_python_lines_find((int)c->layout->lines, c->lines, c->lines_size, c->first_line, frame->offset);
    return line > 0 ? (uint32_t)line : 0;
}
