#include "wall_time.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define SECOND_NS 1000000000ll

/* ".123" in ns; moves `*p` behind it. */
static int64_t parse_fraction(const char **p)
{
    int64_t ns = 0, unit = SECOND_NS / 10;

    if (**p != '.')
        return 0;
    for ((*p)++; **p >= '0' && **p <= '9'; (*p)++) {
        ns += (**p - '0') * unit;
        unit /= 10;
    }
    return ns;
}

/* "Z", "+01:00", "" (local). */
static int parse_zone(const char *p, struct tm *tm, time_t *ret)
{
    int hours, minutes, end = 0;
    time_t seconds;
    char sign;

    if (*p == 0) {
        tm->tm_isdst = -1;
        *ret = mktime(tm);
        return 0;
    }
    *ret = timegm(tm);
    if (strcmp(p, "Z") == 0 || strcmp(p, "z") == 0 || strcmp(p, " UTC") == 0)
        return 0;
    if (sscanf(p, "%c%2d:%2d%n", &sign, &hours, &minutes, &end) != 3 || p[end] || (sign != '+' && sign != '-') ||
        hours > 23 || minutes > 59 || hours < 0 || minutes < 0)
        return -EINVAL;
    seconds = (time_t)hours * 3600 + (time_t)minutes * 60;
    *ret += sign == '+' ? -seconds : seconds;
    return 0;
}

int ub_wall_time_parse(const char *text, int64_t *ret_ns)
{
    struct tm tm = {0};
    const char *p = strptime(text, "%Y-%m-%d", &tm);
    int64_t fraction = 0;
    time_t seconds;
    int r;

    if (!p || (*p != 'T' && *p != 't' && *p != ' '))
        return -EINVAL;
    p = strptime(p + 1, "%H:%M", &tm);
    if (!p)
        return -EINVAL;
    if (*p == ':') {
        p = strptime(p, ":%S", &tm);
        if (!p)
            return -EINVAL;
        fraction = parse_fraction(&p);
    }
    r = parse_zone(p, &tm, &seconds);
    if (r < 0)
        return r;
    if (__builtin_mul_overflow((int64_t)seconds, SECOND_NS, ret_ns) ||
        __builtin_add_overflow(*ret_ns, fraction, ret_ns))
        return -EINVAL;
    return 0;
}

const char *ub_wall_time_format(int64_t ns, char *buf, size_t size)
{
    time_t seconds = (time_t)(ns / SECOND_NS);
    struct tm tm;

    if (!gmtime_r(&seconds, &tm) || strftime(buf, size, "%Y-%m-%d %H:%M:%S UTC", &tm) == 0)
        snprintf(buf, size, "?");
    return buf;
}
