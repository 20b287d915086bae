#include "text.h"

#include <string.h>

struct unit {
    uint64_t from_ns; /* used from here on */
    uint64_t ns;
    const char *name;
};

#define SECOND 1000000000ull

/* Minutes start at two: "95 s" reads better than "1.58 min". */
static const struct unit units[] = {
    {SECOND * 86400 * 3, SECOND * 86400, "d"},
    {SECOND * 3600 * 2, SECOND * 3600, "h"},
    {SECOND * 120, SECOND * 60, "min"},
    {SECOND, SECOND, "s"},
    {1000000, 1000000, "ms"},
    {1000, 1000, "us"},
    {0, 1, "ns"},
};

/* Three significant digits, without zeros that say nothing. */
static void format(double value, char *buf, size_t size)
{
    int decimals = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
    char *end;

    snprintf(buf, size, "%.*f", decimals, value);
    if (decimals == 0)
        return;
    for (end = buf + strlen(buf) - 1; *end == '0'; end--)
        *end = 0;
    if (*end == '.')
        *end = 0;
}

const char *ub_text_duration(uint64_t ns, char *buf, size_t size)
{
    char number[32];
    size_t i = 0;

    while (ns < units[i].from_ns)
        i++;
    format((double)ns / (double)units[i].ns, number, sizeof(number));
    if (i > 0 && strcmp(number, "1000") == 0) { /* 999.7 ms is not "1000 ms" */
        i--;
        format((double)ns / (double)units[i].ns, number, sizeof(number));
    }
    snprintf(buf, size, "%s %s", number, units[i].name);
    return buf;
}
