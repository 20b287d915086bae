/*
 * One character of UTF-8, strictly: no overlong forms, no surrogates, nothing
 * above U+10FFFF. Nothing else in the project decodes.
 */
#ifndef UB_UI_UTF8_H
#define UB_UI_UTF8_H

#include "../common/base.h"

/* The length of the character that begins at `p` (`len` bytes are there) and the character itself, or 0. */
static inline size_t ub_utf8_decode(const unsigned char *p, size_t len, uint32_t *ret)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    uint32_t c;
    size_t n, i;

    if (len == 0)
        return 0;
    if (*p < 0x80) {
        *ret = *p;
        return 1;
    }
    n = *p >= 0xf0 && *p < 0xf8 ? 4 : *p >= 0xe0 ? 3 : *p >= 0xc0 ? 2 : 0;
    if (n == 0 || n > len || *p >= 0xf8)
        return 0;
    c = *p & (0x7fu >> n);
    for (i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (p[i] & 0x3f);
    }
    if (c < least[n] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
        return 0;
    *ret = c;
    return n;
}

#endif
