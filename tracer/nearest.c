#include "nearest.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define WORD_MAX 64

static uint32_t min3(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t m = a < b ? a : b;

    return m < c ? m : c;
}

/* Edits (insert, delete, replace, swap of neighbours) from one word to the other; both at most WORD_MAX long. */
static uint32_t distance(const char *a, const char *b)
{
    uint32_t row[3][WORD_MAX + 1];
    size_t la = strlen(a), lb = strlen(b);

    for (size_t j = 0; j <= lb; j++)
        row[0][j] = (uint32_t)j;
    for (size_t i = 1; i <= la; i++) {
        uint32_t *now = row[i % 3], *before = row[(i + 2) % 3], *two_before = row[(i + 1) % 3];

        now[0] = (uint32_t)i;
        for (size_t j = 1; j <= lb; j++) {
            now[j] = min3(before[j] + 1, now[j - 1] + 1, before[j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && two_before[j - 2] + 1 < now[j])
                now[j] = two_before[j - 2] + 1;
        }
    }
    return row[la % 3][lb];
}

const char *ub_nearest(const char *word, const char *const *names)
{
    const char *best = NULL;
    uint32_t best_distance = UINT32_MAX;
    size_t len = strlen(word);

    if (len == 0 || len > WORD_MAX)
        return NULL;
    for (; *names != NULL; names++) {
        size_t name_len = strlen(*names);
        uint32_t d;

        if (name_len > WORD_MAX)
            continue;
        d = len >= 2 && !strncmp(word, *names, len) ? 0 : distance(word, *names);
        if (d < best_distance && d <= (len + 2) / 3) {
            best_distance = d;
            best = *names;
        }
    }
    return best;
}
