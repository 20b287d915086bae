/*
 * Text without libc: no locale, no allocation. Signal-safe, all of it.
 */
#ifndef UB_AGENT_TEXT_H
#define UB_AGENT_TEXT_H

#include "../common/base.h"

/* A decimal number that `end` follows. *text is moved behind `end` (onto it, when that is the NUL). */
static inline bool ub_text_number(const char **text, uint64_t *ret, char end)
{
    uint64_t n = 0;
    const char *p = *text;

    if (*p < '0' || *p > '9')
        return false;
    for (; *p >= '0' && *p <= '9'; p++) {
        if (n > UINT64_MAX / 10 - 1)
            return false;
        n = n * 10 + (uint64_t)(*p - '0');
    }
    if (*p != end)
        return false;
    *text = end ? p + 1 : p;
    *ret = n;
    return true;
}

/* Both write a NUL and return where it is. */
static inline char *ub_text_put_number(char *p, uint64_t n)
{
    char digits[20];
    int count = 0;

    do
        digits[count++] = (char)('0' + n % 10);
    while ((n /= 10) != 0);
    while (count > 0)
        *p++ = digits[--count];
    *p = '\0';
    return p;
}

static inline char *ub_text_put(char *p, const char *text)
{
    while (*text)
        *p++ = *text++;
    *p = '\0';
    return p;
}

#endif
