#include "ticks.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define UB_TICKS_FIRST_BASE_NS 2000000u

static struct {
    uint32_t clock;
    uint64_t base_ticks;
    uint64_t base_ns;
    uint64_t ns_per_tick_bits; /* a double, stored as one word so that it is read whole */
} ticks = {.clock = UB_CLOCK_VDSO};

static double slope(void)
{
    uint64_t bits = ub_load_relaxed(&ticks.ns_per_tick_bits);
    double d;

    memcpy(&d, &bits, sizeof(d));
    return d;
}

static void set_slope(double d)
{
    uint64_t bits;

    memcpy(&bits, &d, sizeof(bits));
    ub_store_relaxed(&ticks.ns_per_tick_bits, bits);
}

static bool file_has(const char *path, const char *const *words, size_t count)
{
    char text[8192];
    FILE *f = fopen(path, "re");
    size_t len;

    if (!f)
        return false;
    len = fread(text, 1, sizeof(text) - 1, f);
    fclose(f);
    text[len] = '\0';
    for (size_t i = 0; i < count; i++) {
        if (!strstr(text, words[i]))
            return false;
    }
    return true;
}

static bool tsc_is_trusted(void)
{
    static const char *const flags[] = {" constant_tsc", " nonstop_tsc"};
    static const char *const source[] = {"tsc"};

    return UB_CLOCK_HAS_TSC && file_has("/proc/cpuinfo", flags, 2) &&
           file_has("/sys/devices/system/clocksource/clocksource0/current_clocksource", source, 1);
}

/* Both clocks at one moment: of some tries the one with the least time between the two readings. */
static void read_pair(uint64_t *ret_ticks, uint64_t *ret_ns)
{
    uint64_t best = UINT64_MAX;

    for (int i = 0; i < 16; i++) {
        uint64_t before = ub_clock_tsc();
        uint64_t ns = ub_clock_monotonic_ns();
        uint64_t after = ub_clock_tsc();

        if (after - before < best) {
            best = after - before;
            *ret_ticks = before + best / 2;
            *ret_ns = ns;
        }
    }
}

static void start_tsc(void)
{
    struct timespec base = {0, UB_TICKS_FIRST_BASE_NS};

    read_pair(&ticks.base_ticks, &ticks.base_ns);
    clock_nanosleep(CLOCK_MONOTONIC, 0, &base, NULL);
    ticks.clock = UB_CLOCK_TSC;
    ub_ticks_adjust();
}

void ub_ticks_start(void)
{
    set_slope(1.0);
    if (tsc_is_trusted())
        start_tsc();
}

void ub_ticks_start_as(uint32_t clock)
{
    set_slope(1.0);
    if (UB_CLOCK_HAS_TSC && clock == UB_CLOCK_TSC)
        start_tsc();
}

uint32_t ub_ticks_clock(void)
{
    return ticks.clock;
}

void ub_ticks_adjust(void)
{
    uint64_t t, ns;

    if (ticks.clock != UB_CLOCK_TSC)
        return;
    read_pair(&t, &ns);
    if (ns > ticks.base_ns && t > ticks.base_ticks)
        set_slope((double)(ns - ticks.base_ns) / (double)(t - ticks.base_ticks));
}

uint64_t ub_ticks_now(void)
{
    return ub_clock_ticks(ticks.clock);
}

uint64_t ub_ticks_to_ns(uint64_t t)
{
    if (ticks.clock != UB_CLOCK_TSC)
        return t;
    return ticks.base_ns + (uint64_t)(int64_t)((double)(int64_t)(t - ticks.base_ticks) * slope());
}

uint64_t ub_ticks_span_to_ns(uint64_t t)
{
    return (uint64_t)((double)t * slope());
}

uint64_t ub_ticks_from_span_ns(uint64_t ns)
{
    return (uint64_t)((double)ns / slope());
}
