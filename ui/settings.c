#include "settings.h"

#include "rules.h"
#include "text.h"

#include <string.h>

#define MAX_SIZE_DEFAULT (256ull << 20)
#define DURATION_MAX_NS  (30ull * 86400 * 1000000000)

static const char *const live_choices[] = {"full", "line", "none", NULL}; /* enum ub_live */

void ub_settings_init(struct ub_settings *s)
{
    *s = (struct ub_settings){
        .threshold_ns = UB_THRESHOLD_DEFAULT_NS, .max_size = MAX_SIZE_DEFAULT, .colour = UB_COLOUR_AUTO};
}

uint32_t ub_settings_options(struct ub_settings *o, struct ub_option *ret)
{
    const struct ub_option option[] = {
        {.letter = 't',
         .name = "threshold",
         .kind = UB_OPTION_TIME,
         .value = &o->threshold_ns,
         .argument = "TIME",
         .help = "report turns longer than TIME (unit needed: us ms s;\n100us to 1h, default 50ms)",
         .env = "UNBLOCK_THRESHOLD",
         .min = UB_THRESHOLD_MIN_NS,
         .max = UB_THRESHOLD_MAX_NS,
         .given = &o->threshold_given},
        {.letter = 'o',
         .name = "output",
         .kind = UB_OPTION_TEXT,
         .value = &o->output,
         .argument = "FILE",
         .help = "the recording: %p pid, %t time, %h host, - standard\noutput (default unblock-CMD-%p-%t.jsonl)",
         .env = "UNBLOCK_OUTPUT"},
        {.name = "force", .kind = UB_OPTION_FLAG, .value = &o->force, .help = "replace an existing recording"},
        {.name = "append", .kind = UB_OPTION_FLAG, .value = &o->append, .help = "add to an existing recording"},
        {.name = "max-size",
         .kind = UB_OPTION_SIZE,
         .value = &o->max_size,
         .argument = "SIZE",
         .help = "go on in FILE.1, FILE.2 ... at this size (k M G;\ndefault 256M, 0: never)",
         .env = "UNBLOCK_MAX_SIZE",
         .min = 64 << 10},
        {.letter = 'q',
         .name = "quiet",
         .kind = UB_OPTION_FLAG,
         .value = &o->quiet,
         .help = "no text while it runs, no verdict at the end"},
        {.name = "live",
         .kind = UB_OPTION_CHOICE,
         .value = &o->live,
         .argument = "HOW",
         .help = "text while it runs: full, line (a line a stall, for\nlogs), none (default: full on a terminal, else "
                 "line)",
         .env = "UNBLOCK_LIVE",
         .choices = live_choices,
         .given = &o->live_given},
        {.name = "redact",
         .kind = UB_OPTION_FLAG,
         .value = &o->redact,
         .help = "record no arguments, paths or peers",
         .env = "UNBLOCK_REDACT"},
        {.name = "fail-on",
         .kind = UB_OPTION_TIME,
         .value = &o->fail_on_ns,
         .argument = "TIME",
         .help = "exit 1 if a stall reached TIME and CMD ended with 0",
         .env = "UNBLOCK_FAIL_ON",
         .min = UB_THRESHOLD_MIN_NS,
         .max = UB_THRESHOLD_MAX_NS},
        {.name = "duration",
         .kind = UB_OPTION_TIME,
         .value = &o->duration_ns,
         .argument = "TIME",
         .help = "watch for TIME; CMD goes on unwatched to its end",
         .env = "UNBLOCK_DURATION",
         .min = 1000000,
         .max = DURATION_MAX_NS},
        {.name = "metrics",
         .kind = UB_OPTION_TEXT,
         .value = &o->metrics,
         .argument = "WHERE",
         .help = "Prometheus metrics: FILE, :PORT (loopback only) or\nunix:PATH",
         .env = "UNBLOCK_METRICS"},
        UB_OPTION_SUPPRESS(&o->suppress),
        UB_OPTION_COLOUR(&o->colour),
        {.letter = 'v',
         .name = "verbose",
         .kind = UB_OPTION_FLAG,
         .value = &o->verbose,
         .help = "say what is loaded and where it is recorded"},
    };

    _Static_assert(UB_ARRAY_LEN(option) <= UB_SETTINGS_MAX, "callers provide so many");
    memcpy(ret, option, sizeof(option));
    return UB_ARRAY_LEN(option);
}
