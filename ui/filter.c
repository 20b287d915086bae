#include "filter.h"
#include "json_get.h"
#include "model.h"
#include "options.h"
#include "wall_time.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <time.h>

#define SECOND_NS 1000000000.0

/* ---- options --------------------------------------------------------- */

/* "90s", "10m", "1.5h": coarser than the times of options.h. */
static bool parse_span(const char *text, double *ret_ns)
{
    static const struct {
        const char *name;
        double ns;
    } units[] = {{"ms", 1e6}, {"s", 1e9}, {"m", 60e9}, {"min", 60e9}, {"h", 3600e9}, {"d", 86400e9}};
    char *end;
    double value;
    size_t i;

    if (*text < '0' || *text > '9')
        return false;
    value = strtod(text, &end);
    for (i = 0; i < UB_ARRAY_LEN(units); i++) {
        if (strcmp(end, units[i].name) == 0 && value * units[i].ns < 9e18) {
            *ret_ns = value * units[i].ns;
            return true;
        }
    }
    return false;
}

static int parse_since(struct ub_filter *filter, char *why)
{
    const char *text = filter->options.since;
    struct timespec now;
    double ns;

    filter->since_start_ns = UINT64_MAX;
    if (!text)
        return 0;
    if (*text == '+' && parse_span(text + 1, &ns)) {
        filter->since_start_ns = (uint64_t)ns;
        return 0;
    }
    if (parse_span(text, &ns)) {
        clock_gettime(CLOCK_REALTIME, &now);
        filter->since_ns = (int64_t)((double)now.tv_sec * SECOND_NS + (double)now.tv_nsec - ns);
        return 0;
    }
    if (ub_wall_time_parse(text, &filter->since_ns) == 0)
        return 0;
    snprintf(why, UB_WHY_MAX,
             "--since: '%.64s' is no time: write 2025-11-21T03:05:00Z, 10m (ago) or +30s (after the recording began)",
             text);
    return -EINVAL;
}

static int parse_causes(struct ub_filter *filter, char *why)
{
    const char *list = filter->options.cause;
    size_t used;
    int i;

    while (list && *list) {
        size_t len = strcspn(list, ",");
        char word[32];

        snprintf(word, sizeof(word), "%.*s", len < sizeof(word) ? (int)len : 0, list);
        for (i = 0; i < UB_CAUSES && strcmp(word, ub_model_cause_name((enum ub_cause)i)) != 0; i++)
            ;
        if (i == UB_CAUSES) {
            used = (size_t)snprintf(why, UB_WHY_MAX, "--cause: '%.*s' is none of", len < 64 ? (int)len : 64, list);
            for (i = 0; i < UB_CAUSES; i++)
                used += (size_t)snprintf(why + used, UB_WHY_MAX - used, "%s %s", i ? "," : "",
                                         ub_model_cause_name((enum ub_cause)i));
            return -EINVAL;
        }
        filter->causes |= 1u << i;
        list += len + (list[len] == ',');
    }
    return 0;
}

int ub_filter_init(struct ub_filter *filter, const struct ub_filter_options *options, const struct ub_sink *to,
                   char *why)
{
    int r;

    *filter = (struct ub_filter){.options = *options, .to = to};
    r = parse_since(filter, why);
    return r < 0 ? r : parse_causes(filter, why);
}

bool ub_filter_is_set(const struct ub_filter *filter)
{
    const struct ub_filter_options *o = &filter->options;

    return o->since || o->site || o->loop || o->thread || o->cause || o->min_ns;
}

/* ---- lines ----------------------------------------------------------- */

static void read_header(struct ub_filter *filter, const json_t *header)
{
    const char *started = ub_json_string(header, "started");

    filter->monotonic_ns = ub_json_u64_or(header, "monotonic_ns", 0);
    if (!started || ub_wall_time_parse(started, &filter->started_ns) < 0)
        filter->started_ns = 0;
}

/* A stall counts by its end: one that reaches into the time asked for is of interest. */
static bool passes_since(const struct ub_filter *filter, const struct ub_stall *stall)
{
    uint64_t end = ub_add_saturated(stall->start_ns, stall->duration_ns);
    uint64_t after = end > filter->monotonic_ns ? end - filter->monotonic_ns : 0;

    if (filter->since_start_ns != UINT64_MAX && after < filter->since_start_ns)
        return false;
    if (filter->since_ns == 0)
        return true;
    return (double)filter->started_ns + (double)after >= (double)filter->since_ns;
}

static bool passes_thread(const char *wanted, const struct ub_stall *stall)
{
    char tid[24];

    if (!wanted || ub_slice_is(stall->thread, wanted))
        return true;
    snprintf(tid, sizeof(tid), "%" PRIu64, stall->tid);
    return strcmp(tid, wanted) == 0;
}

static bool passes_site(const char *wanted, struct ub_slice site)
{
    return !wanted || (site.text && site.len >= strlen(wanted) && memcmp(site.text, wanted, strlen(wanted)) == 0);
}

static bool passes_cause(const struct ub_filter *filter, struct ub_slice cause)
{
    char name[24];

    if (!filter->options.cause)
        return true;
    snprintf(name, sizeof(name), "%.*s", cause.len < sizeof(name) ? (int)cause.len : 0, cause.text ? cause.text : "");
    return filter->causes & 1u << ub_model_cause_parse(name);
}

static bool passes(const struct ub_filter *filter, const struct ub_stall *stall)
{
    const struct ub_filter_options *o = &filter->options;

    if (stall->duration_ns < o->min_ns && (stall->repeats == 0 || stall->repeats_max_ns < o->min_ns))
        return false;
    if (o->loop && !ub_slice_is(stall->loop, o->loop))
        return false;
    return passes_site(o->site, stall->site) && passes_cause(filter, stall->cause) && passes_thread(o->thread, stall) &&
           passes_since(filter, stall);
}

/* Whether a stall is left out; counted once, however often its line comes while it goes on. */
static bool leaves_out(struct ub_filter *filter, const struct ub_stall *stall)
{
    if (passes(filter, stall))
        return false;
    if (!stall->ongoing)
        filter->left_out++;
    return true;
}

static bool take_stats(void *self, const struct ub_stats_line *stats)
{
    struct ub_filter *filter = self;

    if (filter->options.loop && !ub_slice_is(stats->loop, filter->options.loop))
        return true;
    return filter->taker_to.stats(filter->taker_to.self, stats);
}

/* A loop's lines go on when it is of the kind asked for. Its thread may not be named in them. */
static bool passes_loop_line(const struct ub_filter *filter, const json_t *record)
{
    if (!ub_json_is(record, "type", "loop") && !ub_json_is(record, "type", "stats"))
        return true;
    return !filter->options.loop || ub_json_is(record, "loop", filter->options.loop);
}

static void sink_line(void *self, json_t *record)
{
    struct ub_filter *filter = self;
    struct ub_stall stall;

    if (ub_json_is(record, "type", "header"))
        read_header(filter, record);
    if (ub_json_is(record, "type", "slow") && ub_stall_read(record, &stall) && leaves_out(filter, &stall))
        return;
    if (passes_loop_line(filter, record))
        filter->to->line(filter->to->self, record);
}

static bool take_stall(void *self, const struct ub_stall *stall)
{
    struct ub_filter *filter = self;

    return leaves_out(filter, stall) || filter->taker_to.stall(filter->taker_to.self, stall);
}

struct ub_taker ub_filter_taker(struct ub_filter *filter, struct ub_taker to)
{
    filter->taker_to = to;
    return (struct ub_taker){.stall = take_stall, .stats = to.stats ? take_stats : NULL, .self = filter};
}

struct ub_sink ub_filter_sink(struct ub_filter *filter)
{
    return (struct ub_sink){.line = sink_line, .self = filter};
}
