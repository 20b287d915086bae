/*
 * Parsing of options from one table: flags, environment, help, messages.
 */
#include "options.h"
#include "options_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Where a value came from, for the messages: "--threshold", "-t" or "UNBLOCK_THRESHOLD". */
#define SOURCE_MAX 64

static int set_choice(const struct ub_option *o, const char *source, const char *text, char *why)
{
    size_t used;

    for (int i = 0; o->choices[i] != NULL; i++) {
        if (!strcmp(text, o->choices[i])) {
            *(int *)o->value = i;
            return 0;
        }
    }
    used = (size_t)snprintf(why, UB_WHY_MAX, "%s: '%.64s' is none of", source, text);
    for (int i = 0; o->choices[i] != NULL && used < UB_WHY_MAX; i++)
        used += (size_t)snprintf(why + used, UB_WHY_MAX - used, "%s %s", i == 0 ? "" : ",", o->choices[i]);
    return -EINVAL;
}

/* A flag in the environment: 1 or 0, in the usual spellings. */
static int set_flag(const struct ub_option *o, const char *source, const char *text, char *why)
{
    static const char *const yes[] = {"1", "yes", "on", "true", NULL}, *const no[] = {"",    "0",     "no",
                                                                                      "off", "false", NULL};

    for (int i = 0; yes[i] != NULL; i++) {
        if (!strcmp(text, yes[i])) {
            *(bool *)o->value = true;
            return 0;
        }
    }
    for (int i = 0; no[i] != NULL; i++) {
        if (!strcmp(text, no[i])) {
            *(bool *)o->value = false; /* a file may have said yes */
            return 0;
        }
    }
    snprintf(why, UB_WHY_MAX, "%s: '%.64s' is neither 1 nor 0", source, text);
    return -EINVAL;
}

int ub_option_set(const struct ub_option *o, const char *source, const char *text, char *why)
{
    char reason[UB_WHY_MAX];
    int r = 0;

    if (o->given != NULL)
        *o->given = true;
    switch (o->kind) {
    case UB_OPTION_FLAG:
        return set_flag(o, source, text, why);
    case UB_OPTION_TEXT:
        *(const char **)o->value = text;
        return 0;
    case UB_OPTION_CHOICE:
        return set_choice(o, source, text, why);
    case UB_OPTION_TIME:
        r = ub_option_time(text, o->min, o->max, o->value, reason);
        break;
    case UB_OPTION_SIZE:
        r = ub_option_size(text, o->min, o->max, o->value, reason);
        break;
    }
    if (r < 0)
        snprintf(why, UB_WHY_MAX, "%s: %.*s", source, UB_WHY_MAX - SOURCE_MAX - 4, reason);
    return r;
}

static int read_environment(const struct ub_options *options, char *why)
{
    for (uint32_t i = 0; i < options->count; i++) {
        const struct ub_option *o = &options->option[i];
        const char *text = o->env == NULL ? NULL : getenv(o->env);
        int r;

        /* An empty variable is a variable that is not set: `UNBLOCK_OUTPUT= unblock run ...` goes back to the default.
         */
        if (text == NULL || *text == '\0')
            continue;
        r = ub_option_set(o, o->env, text, why);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Of which no command has an option. */
static const char *const other_variables[] = {"UNBLOCK_OFFLOAD", "UNBLOCK_ARENA",      "UNBLOCK_AGENT",
                                              "UNBLOCK_HELPER",  "UNBLOCK_DEBUG_PATH", "UNBLOCK_POOL"};

static void check_name(const struct ub_options *options, const char *assignment,
                       void (*wrong)(void *self, const char *why), void *self)
{
    const char *names[64], *nearest;
    char word[64], why[UB_WHY_MAX];
    uint32_t n = 0;

    snprintf(word, sizeof(word), "%.*s", (int)strcspn(assignment, "="), assignment);
    for (uint32_t i = 0; i < options->count && n < UB_ARRAY_LEN(names) - 1; i++)
        if (options->option[i].env != NULL)
            names[n++] = options->option[i].env;
    names[n] = NULL;
    for (uint32_t i = 0; i < n; i++)
        if (!strcmp(word, names[i]))
            return;
    for (uint32_t i = 0; i < UB_ARRAY_LEN(other_variables); i++)
        if (!strcmp(word, other_variables[i]))
            return;
    nearest = ub_nearest(word, names);
    snprintf(why, sizeof(why), nearest != NULL ? "%s is not known: did you mean %s?" : "%s is not known", word,
             nearest);
    wrong(self, why);
}

void ub_options_environment(const struct ub_options *options, void (*wrong)(void *self, const char *why), void *self)
{
    char why[UB_WHY_MAX];

    for (uint32_t i = 0; i < options->count; i++) {
        const struct ub_option *o = &options->option[i];
        const char *text = o->env == NULL ? NULL : getenv(o->env);

        if (text == NULL || *text == '\0' || ub_option_set(o, o->env, text, why) == 0)
            continue;
        if (o->given != NULL)
            *o->given = false;
        wrong(self, why);
    }
    for (char **e = environ; e != NULL && *e != NULL; e++)
        if (!strncmp(*e, "UNBLOCK_", 8))
            check_name(options, *e, wrong, self);
}

const struct ub_option *ub_option_find(const struct ub_options *options, const char *name, size_t len)
{
    for (uint32_t i = 0; i < options->count; i++)
        if (strlen(options->option[i].name) == len && !strncmp(options->option[i].name, name, len))
            return &options->option[i];
    return NULL;
}

static const struct ub_option *find_letter(const struct ub_options *options, char letter)
{
    for (uint32_t i = 0; i < options->count; i++)
        if (options->option[i].letter == letter)
            return &options->option[i];
    return NULL;
}

static int unknown_option(const struct ub_options *options, const char *name, size_t len, char *why)
{
    const char *names[64], *nearest;
    char word[64];
    uint32_t n = 0;

    snprintf(word, sizeof(word), "%.*s", (int)(len < sizeof(word) ? len : sizeof(word) - 1), name);
    for (; n < options->count && n < UB_ARRAY_LEN(names) - 2; n++)
        names[n] = options->option[n].name;
    names[n++] = "help";
    names[n] = NULL;
    nearest = ub_nearest(word, names);
    if (nearest != NULL)
        snprintf(why, UB_WHY_MAX, "unknown option --%s: did you mean --%s?", word, nearest);
    else
        snprintf(why, UB_WHY_MAX, "unknown option --%s (see --help)", word);
    return -EINVAL;
}

/* argv[*i] is "--name", "--name=value" or "--name" "value". */
static int parse_long(const struct ub_options *options, int argc, char **argv, int *i, char *why)
{
    const char *name = argv[*i] + 2, *equals = strchr(name, '=');
    size_t len = equals != NULL ? (size_t)(equals - name) : strlen(name);
    const struct ub_option *o = ub_option_find(options, name, len);
    char source[SOURCE_MAX];

    if (o == NULL) {
        if (!strcmp(name, "help"))
            return UB_OPTIONS_HELP;
        return unknown_option(options, name, len, why);
    }
    snprintf(source, sizeof(source), "--%s", o->name);
    if (o->kind == UB_OPTION_FLAG) {
        if (equals != NULL) {
            snprintf(why, UB_WHY_MAX, "%s takes no value", source);
            return -EINVAL;
        }
        return ub_option_set(o, source, "1", why);
    }
    if (equals != NULL)
        return ub_option_set(o, source, equals + 1, why);
    if (o->bare != NULL)
        return ub_option_set(o, source, o->bare, why);
    if (*i + 1 >= argc) {
        snprintf(why, UB_WHY_MAX, "%s needs a value: --%s %s", source, o->name, o->argument);
        return -EINVAL;
    }
    return ub_option_set(o, source, argv[++*i], why);
}

/* argv[*i] is "-x", "-xyz" (flags together), "-tVALUE" or "-t" "VALUE". */
static int parse_letters(const struct ub_options *options, int argc, char **argv, int *i, char *why)
{
    for (const char *p = argv[*i] + 1; *p != '\0'; p++) {
        const struct ub_option *o = find_letter(options, *p);
        const char source[] = {'-', *p, '\0'};
        int r;

        if (o == NULL && *p == 'h')
            return UB_OPTIONS_HELP;
        if (o == NULL) {
            snprintf(why, UB_WHY_MAX, "unknown option -%c (see --help)", *p >= ' ' && *p <= '~' ? *p : '?');
            return -EINVAL;
        }
        if (o->kind != UB_OPTION_FLAG) {
            if (p[1] != '\0')
                return ub_option_set(o, source, p + 1, why);
            if (*i + 1 >= argc) {
                snprintf(why, UB_WHY_MAX, "%s needs a value: %s %s", source, source, o->argument);
                return -EINVAL;
            }
            return ub_option_set(o, source, argv[++*i], why);
        }
        r = ub_option_set(o, source, "1", why);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Moves argv[from .. to) behind argv[to .. end), keeping both orders. */
static void rotate(char **argv, int from, int to, int end)
{
    for (; to < end; from++, to++) {
        char *moved = argv[to];

        memmove(&argv[from + 1], &argv[from], (size_t)(to - from) * sizeof(*argv));
        argv[from] = moved;
    }
}

int ub_options_parse(const struct ub_options *options, int argc, char **argv, int *ret_first, char *why)
{
    int words = 1; /* argv[words .. i) are words met so far, moved up behind the options */
    int i = 1, r;

    /* Help is asked for by people whose settings may be wrong: it comes before the environment. */
    for (int k = 1; k < argc && strcmp(argv[k], "--") != 0 && !(options->stop_at_word && argv[k][0] != '-'); k++)
        if (!strcmp(argv[k], "--help") || ub_options_form_take(argv[k]))
            return UB_OPTIONS_HELP;
    r = ub_options_config(options, why);
    if (r == 0)
        r = read_environment(options, why);
    while (r == 0 && i < argc) {
        int start = i;

        if (!strcmp(argv[i], "--")) {
            rotate(argv, words, i, i + 1);
            words++;
            break;
        }
        if (argv[i][0] != '-' || argv[i][1] == '\0') {
            if (options->stop_at_word)
                break;
            i++;
            continue;
        }
        r = argv[i][1] == '-' ? parse_long(options, argc, argv, &i, why) : parse_letters(options, argc, argv, &i, why);
        i++;
        if (r == 0) {
            rotate(argv, words, start, i);
            words += i - start;
        }
    }
    if (r == 0)
        *ret_first = words;
    return r;
}

static void print_indented(FILE *out, const char *text, int indent)
{
    for (const char *line = text; line != NULL;) {
        const char *end = strchr(line, '\n');

        fprintf(out, "%.*s\n", end != NULL ? (int)(end - line) : (int)strlen(line), line);
        line = end != NULL ? end + 1 : NULL;
        if (line != NULL)
            fprintf(out, "%*s", indent, "");
    }
}

#define HELP_COLUMN 28
#define HELP_WIDTH  80

static void print_option(FILE *out, char letter, const char *name, const char *argument, bool bare, const char *help)
{
    char left[64], dash[4] = "";

    if (letter != 0)
        snprintf(dash, sizeof(dash), "-%c,", letter);
    snprintf(left, sizeof(left), "  %3s --%s%s%s%s", dash, name,
             bare               ? "[="
             : argument != NULL ? " "
                                : "",
             argument != NULL ? argument : "", bare ? "]" : "");
    fprintf(out, "%-*s", HELP_COLUMN, left);
    if (strlen(left) >= HELP_COLUMN)
        fprintf(out, "\n%*s", HELP_COLUMN, "");
    print_indented(out, help, HELP_COLUMN);
}

/* The help and, where it fits on its last line or else below, the variable. */
static void add_variable(const struct ub_option *o, char *buf, size_t size)
{
    const char *last = strrchr(o->help, '\n');
    size_t column = HELP_COLUMN + strlen(last != NULL ? last + 1 : o->help);

    if (o->env == NULL)
        snprintf(buf, size, "%s", o->help);
    else
        snprintf(buf, size, "%s%c[%s]", o->help, column + strlen(o->env) + 3 > HELP_WIDTH ? '\n' : ' ', o->env);
}

void ub_options_help(FILE *out, const struct ub_options *options)
{
    if (ub_options_form_print(out, options))
        return;
    fprintf(out, "Usage: %s\n\n%s\n", options->usage, options->about);
    fprintf(out, "\nOptions (the variable in brackets sets the same; an option wins over it):\n");
    for (uint32_t i = 0; i < options->count; i++) {
        const struct ub_option *o = &options->option[i];
        char help[640];

        add_variable(o, help, sizeof(help));
        print_option(out, o->letter, o->name, o->argument, o->bare != NULL, help);
    }
    print_option(out, 'h', "help", NULL, false, "this text");
    if (options->more != NULL)
        fprintf(out, "\n%s", options->more);
}
