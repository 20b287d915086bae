/*
 * Options of the commands: one table a command, from which parsing, the
 * environment (UNBLOCK_*), --help and the messages all come.
 *
 * Flags win over the environment, the environment over the defaults.
 * A failure is told in words in `why`, ready to be printed after "unblock CMD: ".
 */
#ifndef UB_UI_OPTIONS_H
#define UB_UI_OPTIONS_H

#include "../common/base.h"
#include "../tracer/nearest.h"

#include <stdio.h>
#include <sys/types.h>

#define UB_WHY_MAX 512

enum ub_option_kind {
    UB_OPTION_FLAG,   /* bool */
    UB_OPTION_TEXT,   /* const char * (borrowed from argv or the environment) */
    UB_OPTION_TIME,   /* uint64_t nanoseconds, within [min, max] */
    UB_OPTION_SIZE,   /* uint64_t bytes, within [min, max], or 0 */
    UB_OPTION_CHOICE, /* int: index into `choices` */
};

struct ub_option {
    char letter;      /* 0: long form only */
    const char *name; /* without the dashes */
    enum ub_option_kind kind;
    void *value;                /* where it goes, see enum ub_option_kind; holds the default before parsing */
    const char *argument;       /* word for the help: "TIME"; NULL for flags */
    const char *bare;           /* the value of the name alone; another one then needs "=". NULL: a value is a must */
    const char *help;           /* one line; more lines after '\n' */
    const char *env;            /* "UNBLOCK_THRESHOLD", or NULL */
    uint64_t min, max;          /* TIME and SIZE; max 0: no bound */
    const char *const *choices; /* CHOICE: NULL-terminated */
    bool *given;                /* set when it came from a flag or the environment; may be NULL */
};

struct ub_options {
    const char *usage; /* "unblock run [options] -- CMD [ARG...]" */
    const char *about; /* what the command does, wrapped text */
    const char *more;  /* after the options: examples, exit codes; may be NULL */
    bool stop_at_word; /* the first argument that is no option ends them (run) */
    const struct ub_option *option;
    uint32_t count;
};

#define UB_OPTIONS_HELP 1 /* -h or --help was met: print it and exit 0 */

/*
 * Reads the environment, then argv[1..]. Arguments that are no options are
 * moved to the end of argv in their order; *ret_first is the index of the
 * first of them (argc when there is none). 0, UB_OPTIONS_HELP, or -EINVAL with
 * `why` (UB_WHY_MAX bytes) filled in.
 */
int ub_options_parse(const struct ub_options *options, int argc, char **argv, int *ret_first, char *why);

/*
 * The environment alone, for a program that nobody is to be kept from running: a
 * value that is wrong is told to `wrong` and leaves the default in place, as is a
 * variable UNBLOCK_... that nobody knows.
 */
void ub_options_environment(const struct ub_options *options, void (*wrong)(void *self, const char *why), void *self);

/* The same, and prints the help where it was asked for. */
int ub_options_read(const struct ub_options *options, int argc, char **argv, int *ret_first, char *why);

/* The same for a command with no rules of its own: prints what is wrong, too. 0: go on; UB_OPTIONS_HELP: done; -EINVAL:
 * told. */
int ub_options_command(const char *command, const struct ub_options *options, int argc, char **argv, int *ret_first);

void ub_options_help(FILE *out, const struct ub_options *options);

/* "50ms" "1.5s" "100us": the unit is a must. 0 or -EINVAL with `why`. Bounds in ns; max 0: none. */
int ub_option_time(const char *text, uint64_t min_ns, uint64_t max_ns, uint64_t *ret_ns, char *why);
/* A process number. 0 or -EINVAL with `why`. */
int ub_option_pid(const char *text, pid_t *ret, char *why);
/* "64k" "256M" "1.5G" (powers of 1024), or 0. 0 or -EINVAL with `why`. */
int ub_option_size(const char *text, uint64_t min, uint64_t max, uint64_t *ret_bytes, char *why);

#define UB_THRESHOLD_MIN_NS     100000ull        /* 100 us */
#define UB_THRESHOLD_MAX_NS     3600000000000ull /* 1 h */
#define UB_THRESHOLD_DEFAULT_NS 50000000ull      /* 50 ms: half of asyncio's 100, because it already shows in a p99 */

enum ub_colour { UB_COLOUR_AUTO, UB_COLOUR_ALWAYS, UB_COLOUR_NEVER };
extern const char *const ub_colour_choices[]; /* "auto" "always" "never": for --color */

/* The option --color, which is the same everywhere; `target` is an int (enum ub_colour). */
#define UB_OPTION_COLOUR(target)                                                                                       \
    {                                                                                                                  \
        .name = "color", .kind = UB_OPTION_CHOICE, .value = (target), .argument = "WHEN",                              \
        .help = "auto (default), always or never", .env = "UNBLOCK_COLOR", .choices = ub_colour_choices                \
    }

/* Whether to colour what goes to `fd`: the choice, then NO_COLOR, CLICOLOR_FORCE, then whether it is a terminal. */
bool ub_colour_use(enum ub_colour choice, int fd);

#endif
