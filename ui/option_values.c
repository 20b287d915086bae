/*
 * Values of options: times and sizes with a mandatory unit, colour, and the
 * nearest known word to one that is not known.
 */
#include "options.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *const ub_colour_choices[] = {"auto", "always", "never", NULL};

struct unit {
    const char *name;
    uint64_t factor;
};

static const struct unit time_units[] = {{"us", 1000}, {"ms", 1000000}, {"s", 1000000000}};
static const struct unit size_units[] = {{"k", 1ull << 10}, {"K", 1ull << 10}, {"m", 1ull << 20},
                                         {"M", 1ull << 20}, {"g", 1ull << 30}, {"G", 1ull << 30}};

/*
 * "123" or "123.45" in millionths, without floating point so that 0.1ms is
 * exactly 100us. Returns what follows the number, or NULL when none begins here
 * or it is too large to be meant.
 */
static const char *parse_millionths(const char *text, uint64_t *ret)
{
    uint64_t value = 0, scale = 1000000;
    const char *p = text;

    if (*p < '0' || *p > '9')
        return NULL;
    for (; *p >= '0' && *p <= '9'; p++) {
        value = value * 10 + (uint64_t)(*p - '0');
        if (value > 1000000000000ull)
            return NULL;
    }
    value *= scale;
    if (*p == '.') {
        if (p[1] < '0' || p[1] > '9')
            return NULL;
        for (p++; *p >= '0' && *p <= '9'; p++) {
            scale /= 10;
            value += scale * (uint64_t)(*p - '0');
        }
    }
    *ret = value;
    return p;
}

static const struct unit *find_unit(const char *name, const struct unit *units, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (!strcmp(name, units[i].name))
            return &units[i];
    return NULL;
}

/* value (millionths) * factor / 10^6, or UINT64_MAX when it does not fit. */
static uint64_t scaled(uint64_t millionths, uint64_t factor)
{
    __uint128_t product = (__uint128_t)millionths * factor / 1000000;

    return product > UINT64_MAX ? UINT64_MAX : (uint64_t)product;
}

static void format_time(uint64_t ns, char *buf, size_t size)
{
    if (ns >= 3600000000000ull && ns % 3600000000000ull == 0)
        snprintf(buf, size, "%llu h", (unsigned long long)(ns / 3600000000000ull));
    else if (ns >= 1000000000 && ns % 1000000000 == 0)
        snprintf(buf, size, "%llus", (unsigned long long)(ns / 1000000000));
    else if (ns >= 1000000 && ns % 1000000 == 0)
        snprintf(buf, size, "%llums", (unsigned long long)(ns / 1000000));
    else
        snprintf(buf, size, "%lluus", (unsigned long long)(ns / 1000));
}

static void format_size(uint64_t bytes, char *buf, size_t size)
{
    if (bytes >= 1 << 30 && bytes % (1 << 30) == 0)
        snprintf(buf, size, "%lluG", (unsigned long long)(bytes >> 30));
    else if (bytes >= 1 << 20 && bytes % (1 << 20) == 0)
        snprintf(buf, size, "%lluM", (unsigned long long)(bytes >> 20));
    else
        snprintf(buf, size, "%lluk", (unsigned long long)(bytes >> 10));
}

/* What both kinds of value share. `example` is the unit to propose for a bare number. */
static int parse_value(const char *text, const struct unit *units, uint32_t count, const char *unit_names,
                       const char *example, uint64_t *ret, char *why)
{
    uint64_t millionths;
    const char *rest = *text == '-' ? NULL : parse_millionths(text, &millionths);
    const struct unit *unit;

    if (*text == '-' && text[1] >= '0' && text[1] <= '9')
        snprintf(why, UB_WHY_MAX, "%.64s is negative", text);
    else if (rest == NULL)
        snprintf(why, UB_WHY_MAX, "'%.64s' is not a number with a unit: write for example 50%s", text, example);
    else if (*rest == '\0')
        snprintf(why, UB_WHY_MAX, "%.64s has no unit: write %.64s%s", text, text, example);
    else if ((unit = find_unit(rest, units, count)) == NULL)
        snprintf(why, UB_WHY_MAX, "%.64s has the unit '%.32s', known are %s: write for example 50%s", text, rest,
                 unit_names, example);
    else {
        *ret = scaled(millionths, unit->factor);
        return 0;
    }
    return -EINVAL;
}

static int check_bounds(const char *text, uint64_t value, uint64_t min, uint64_t max,
                        void (*format)(uint64_t, char *, size_t), char *why)
{
    char low[32], high[32];

    if (value >= min && (max == 0 || value <= max) && value != UINT64_MAX)
        return 0;
    format(min, low, sizeof(low));
    if (max == 0) {
        snprintf(why, UB_WHY_MAX, "%.64s is out of range: from %s", text, low);
    } else {
        format(max, high, sizeof(high));
        snprintf(why, UB_WHY_MAX, "%.64s is out of range: from %s to %s", text, low, high);
    }
    return -EINVAL;
}

int ub_option_time(const char *text, uint64_t min_ns, uint64_t max_ns, uint64_t *ret_ns, char *why)
{
    uint64_t ns;
    int r = parse_value(text, time_units, UB_ARRAY_LEN(time_units), "us, ms and s", "ms", &ns, why);

    if (r == 0)
        r = check_bounds(text, ns, min_ns, max_ns, format_time, why);
    if (r == 0)
        *ret_ns = ns;
    return r;
}

int ub_option_size(const char *text, uint64_t min, uint64_t max, uint64_t *ret_bytes, char *why)
{
    uint64_t bytes;
    int r;

    if (!strcmp(text, "0")) {
        *ret_bytes = 0;
        return 0;
    }
    r = parse_value(text, size_units, UB_ARRAY_LEN(size_units), "k, M and G", "M", &bytes, why);
    if (r == 0)
        r = check_bounds(text, bytes, min, max, format_size, why);
    if (r == 0)
        *ret_bytes = bytes;
    return r;
}

bool ub_colour_use(enum ub_colour choice, int fd)
{
    const char *no = getenv("NO_COLOR"), *force = getenv("CLICOLOR_FORCE"), *term = getenv("TERM");

    if (choice != UB_COLOUR_AUTO)
        return choice == UB_COLOUR_ALWAYS;
    if (no != NULL && *no != '\0')
        return false;
    if (force != NULL && *force != '\0' && strcmp(force, "0") != 0)
        return true;
    return isatty(fd) && term != NULL && strcmp(term, "dumb") != 0;
}

int ub_option_pid(const char *text, pid_t *ret, char *why)
{
    char *end;
    long pid;

    errno = 0;
    pid = strtol(text, &end, 10);
    if (*end != '\0' || end == text || errno != 0 || pid <= 0 || pid > INT_MAX) {
        snprintf(why, UB_WHY_MAX, "'%.64s' is not a process number: take it from ps or pgrep", text);
        return -EINVAL;
    }
    *ret = (pid_t)pid;
    return 0;
}
