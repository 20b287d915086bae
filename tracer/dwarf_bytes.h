/*
 * Reading DWARF's numbers out of bytes that nobody has vouched for: whatever
 * runs over the end yields zeros and sets `bad`.
 */
#ifndef UB_TRACER_DWARF_BYTES_H
#define UB_TRACER_DWARF_BYTES_H

#include "../common/base.h"

#include <string.h>

struct ub_bytes {
    const uint8_t *p, *end;
    bool bad; /* ran over the end */
};

static inline uint64_t ub_bytes_take(struct ub_bytes *b, uint32_t n)
{
    uint64_t v = 0;

    if ((uint64_t)(b->end - b->p) < n) {
        b->bad = true;
        b->p = b->end;
        return 0;
    }
    memcpy(&v, b->p, n);
    b->p += n;
    return v;
}

static inline uint64_t ub_bytes_uleb(struct ub_bytes *b)
{
    uint64_t v = 0;
    uint8_t byte;
    uint32_t shift = 0;

    do {
        byte = (uint8_t)ub_bytes_take(b, 1);
        if (shift < 64)
            v |= (uint64_t)(byte & 0x7f) << shift;
        shift += 7;
    } while (byte & 0x80 && !b->bad);
    return v;
}

static inline int64_t ub_bytes_sleb(struct ub_bytes *b)
{
    uint64_t v = 0;
    uint8_t byte;
    uint32_t shift = 0;

    do {
        byte = (uint8_t)ub_bytes_take(b, 1);
        if (shift < 64)
            v |= (uint64_t)(byte & 0x7f) << shift;
        shift += 7;
    } while (byte & 0x80 && !b->bad);
    if (shift < 64 && byte & 0x40)
        v |= ~0ull << shift;
    return (int64_t)v;
}

static inline void ub_bytes_skip(struct ub_bytes *b, uint64_t n)
{
    if ((uint64_t)(b->end - b->p) < n) {
        b->bad = true;
        n = (uint64_t)(b->end - b->p);
    }
    b->p += n;
}

#endif
