#include "policy_impl.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define WORKERS_MAX   1024u
#define PERIOD_MIN_NS 1000000ull /* less is spent on giving way, not on the work */
#define PERIOD_MAX_NS 10000000000ull
#define WRONGS_MAX    20u
#define SHOWN         100 /* of a word in a message */

const char *const ub_policy_section_names[UB_POLICY_SECTIONS + 1] = {"offload", "python",    "yield",
                                                                     "except",  "predicted", NULL};

struct reader {
    const char *path;
    ub_policy_wrong *wrong;
    void *self;
    uint32_t line;
    uint32_t wrongs;
    enum ub_policy_section section;
    bool unknown_section; /* told once */
    struct ub_policy_file *file;
};

static __attribute__((format(printf, 2, 3))) int wrong(struct reader *r, const char *format, ...)
{
    char text[UB_POLICY_WHY_MAX];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    r->wrongs++;
    if (r->wrong)
        r->wrong(r->self, r->path, r->line, text);
    return -EINVAL;
}

/* "'lane=fles' is not known", and what it may have meant, or what there is. */
static int unknown(struct reader *r, const char *what, const char *word, const char *const *names, const char *all)
{
    const char *nearest = ub_nearest(word, names);

    if (nearest)
        return wrong(r, "%s '%.*s' is not known: did you mean %s?", what, SHOWN, word, nearest);
    return wrong(r, "%s '%.*s' is not known: there is %s", what, SHOWN, word, all);
}

static char *trim(char *text)
{
    size_t len;

    text += strspn(text, " \t");
    for (len = strlen(text); len > 0 && strchr(" \t", text[len - 1]); len--)
        text[len - 1] = '\0';
    return text;
}

/* ---- values ------------------------------------------------------------------------------------ */

static int number(struct reader *r, const char *what, const char *text, size_t len, uint32_t *ret)
{
    uint32_t n = 0;
    size_t i;

    for (i = 0; i < len && isdigit((unsigned char)text[i]) && n <= WORKERS_MAX; i++)
        n = n * 10 + (uint32_t)(text[i] - '0');
    if (i < len || len == 0 || n == 0 || n > WORKERS_MAX)
        return wrong(r, "%s takes a number from 1 to %u, not '%.*s'", what, WORKERS_MAX,
                     (int)(len < SHOWN ? len : SHOWN), text);
    *ret = n;
    return 0;
}

static int set_lane(struct reader *r, struct ub_policy_rule *rule, const char *lane)
{
    static const char *const lanes[] = {"files", "wait", NULL};

    if (strcmp(lane, "files") == 0)
        rule->lane = UB_EXECUTOR_FILES;
    else if (strcmp(lane, "wait") == 0)
        rule->lane = UB_EXECUTOR_WAIT;
    else
        return unknown(r, "the lane", lane, lanes, "files and wait");
    return 0;
}

static int set_option(struct reader *r, struct ub_policy_rule *rule, const char *word)
{
    static const char *const names[] = {"lane", "limit", "unit", NULL};
    const char *equals = strchr(word, '=');
    size_t len = equals ? (size_t)(equals - word) : strlen(word);
    char name[SHOWN];

    if (strcmp(word, "unit") == 0) {
        rule->unit = true;
        return 0;
    }
    if (equals && len == 4 && strncmp(word, "lane", 4) == 0)
        return set_lane(r, rule, equals + 1);
    if (equals && len == 5 && strncmp(word, "limit", 5) == 0)
        return number(r, "limit", equals + 1, strlen(equals + 1), &rule->limit);
    snprintf(name, sizeof(name), "%.*s", (int)(len < SHOWN ? len : SHOWN - 1), word);
    return unknown(r, "the option", name, names, "lane=files, lane=wait, limit=N and unit");
}

static int set_call_action(struct reader *r, struct ub_policy_rule *rule, char *value)
{
    static const char *const names[] = {"move", "inline", NULL};
    char *state, *word = strtok_r(value, " \t", &state);
    int e = 0;

    if (strcmp(word, "inline") == 0)
        rule->action = UB_POLICY_INLINE;
    else if (strcmp(word, "move") == 0)
        rule->action = UB_POLICY_MOVE;
    else
        return unknown(r, "the action", word, names, "move and inline");
    while (e == 0 && (word = strtok_r(NULL, " \t", &state)) != NULL) {
        if (rule->action == UB_POLICY_INLINE)
            return wrong(r, "inline takes no options, and there is '%.*s'", SHOWN, word);
        e = set_option(r, rule, word);
    }
    return e;
}

/* thread thread(8) process process(3) fork inline */
static int set_python_action(struct reader *r, struct ub_policy_rule *rule, char *value)
{
    static const char *const names[] = {"thread", "process", "fork", "inline", NULL};
    static const enum ub_policy_action action[] = {UB_POLICY_THREAD, UB_POLICY_PROCESS, UB_POLICY_FORK,
                                                   UB_POLICY_INLINE};
    size_t len = strcspn(value, "( \t"), rest = strlen(value);
    char *open = value + len + strspn(value + len, " \t"), *close = rest ? value + rest - 1 : value, word[SHOWN];
    size_t i;

    snprintf(word, sizeof(word), "%.*s", (int)(len < SHOWN ? len : SHOWN - 1), value);
    for (i = 0; names[i] && strcmp(names[i], word) != 0; i++)
        ;
    if (!names[i])
        return unknown(r, "the action", word, names, "thread, thread(N), process, process(N), fork and inline");
    rule->action = action[i];
    if (*open == '\0')
        return 0;
    if (*open != '(' || *close != ')')
        return wrong(r, "'%.*s' is not understood: a number of workers goes into parentheses, as in thread(8)", SHOWN,
                     value);
    if (rule->action == UB_POLICY_FORK || rule->action == UB_POLICY_INLINE)
        return wrong(r, "%s takes no number", word);
    *close = '\0';
    open = trim(open + 1);
    return number(r, word, open, strlen(open), &rule->workers);
}

static int set_period(struct reader *r, struct ub_policy_rule *rule, const char *value)
{
    double ns;

    if (!ub_policy_time(value, &ns))
        return wrong(r, "'%.*s' is not a time: write 5ms, with the unit (us, ms, s)", SHOWN, value);
    if (ns < PERIOD_MIN_NS || ns > PERIOD_MAX_NS)
        return wrong(r, "'%.*s' is out of bounds: from 1ms to 10s", SHOWN, value);
    rule->action = UB_POLICY_GIVE_WAY;
    rule->period_ns = (uint64_t)(ns + 0.5);
    return 0;
}

static int set_exception(struct reader *r, struct ub_policy_rule *rule, const char *value)
{
    if (strcmp(value, "inline") != 0)
        return wrong(r, "an exception stays inline, there is no '%.*s'", SHOWN, value);
    rule->action = UB_POLICY_INLINE;
    return 0;
}

/* ---- names ------------------------------------------------------------------------------------- */

/* A `[` without its `]` fits nothing but itself, and was hardly meant so. */
static int check_pattern(struct reader *r, const char *pattern)
{
    const char *open = strchr(pattern, '[');

    if (open && !strchr(open + 1, ']'))
        return wrong(r, "'%.*s': a [ without its ]", SHOWN, pattern);
    return 0;
}

static int check_place(struct reader *r, const char *place)
{
    const char *colon = ub_policy_colon(place);

    if (colon && (colon == place || colon[1] == '\0'))
        return wrong(r, "'%.*s': a place with a colon is FILE:FUNCTION, as in db.c:*", SHOWN, place);
    if (colon && strspn(colon + 1, "0123456789") == strlen(colon + 1))
        return wrong(r, "'%.*s': lines change with every edit: name the function, as in %.*s:*", SHOWN, place,
                     (int)(colon - place < SHOWN ? colon - place : SHOWN), place);
    if (strncmp(place, "0x", 2) == 0)
        return wrong(r, "'%.*s': addresses change with every build: name the function", SHOWN, place);
    return check_pattern(r, place);
}

static int check_call(struct reader *r, const struct ub_policy_rule *rule)
{
    bool moves;
    const char *nearest;

    if (check_pattern(r, rule->call) < 0)
        return -EINVAL;
    if (rule->unit)
        return wrong(r, "'%.*s': whole calls of client libraries are not moved yet", SHOWN, rule->call);
    if (!ub_policy_any_call(rule, &moves)) {
        nearest = ub_policy_nearest_call(rule->call);
        return nearest ? wrong(r, "no call is named '%.*s': did you mean %s?", SHOWN, rule->call, nearest)
                       : wrong(r, "no call is named '%.*s'", SHOWN, rule->call);
    }
    if (rule->action == UB_POLICY_MOVE && !moves)
        return wrong(r, "%.*s is never moved (see the list of calls in the documentation of offload)", SHOWN,
                     rule->call);
    return 0;
}

/* `CALL`, `CALL in PLACE` */
static int set_call(struct reader *r, struct ub_policy_rule *rule, const char *key)
{
    size_t len = strcspn(key, " \t"), space = strspn(key + len, " \t");
    const char *in = key + len + space;

    rule->call = strndup(key, len);
    if (*in == '\0')
        return rule->call ? 0 : -ENOMEM;
    if (strncmp(in, "in", 2) != 0 || (in[2] != ' ' && in[2] != '\t'))
        return wrong(r, "'%.*s' is not understood: write CALL, or CALL in PLACE", SHOWN, key);
    in += 2;
    rule->place = strdup(in + strspn(in, " \t"));
    return !rule->call || !rule->place ? -ENOMEM : check_place(r, rule->place);
}

/* A dotted name, or a pattern for some. */
static int set_dotted(struct reader *r, struct ub_policy_rule *rule, const char *key)
{
    rule->place = strdup(key);
    if (!rule->place)
        return -ENOMEM;
    if (key[strcspn(key, " \t:/(")] != '\0')
        return wrong(r, "'%.*s' is no dotted name: write MODULE.FUNCTION, as in jobs.is_prime", SHOWN, key);
    if (!strpbrk(key, ".*"))
        return wrong(r, "'%.*s' has no module: write MODULE.%.*s, or *.%.*s for any", SHOWN, key, SHOWN, key, SHOWN,
                     key);
    if (*key == '.' || key[strlen(key) - 1] == '.' || strstr(key, ".."))
        return wrong(r, "'%.*s': a dot with nothing beside it", SHOWN, key);
    return check_pattern(r, key);
}

/* A place; `CALL in PLACE`. */
static int set_except(struct reader *r, struct ub_policy_rule *rule, const char *key)
{
    size_t len = strcspn(key, " \t");
    const char *in = key + len + strspn(key + len, " \t");

    if (strncmp(in, "in", 2) == 0 && (in[2] == ' ' || in[2] == '\t'))
        return set_call(r, rule, key);
    rule->place = strdup(key);
    return rule->place ? check_place(r, key) : -ENOMEM;
}

/* ---- lines ------------------------------------------------------------------------------------- */

static void cut_comment(char *text)
{
    for (char *c = text; (c = strchr(c, '#')) != NULL; c++) {
        if (c == text || c[-1] == ' ' || c[-1] == '\t') {
            *c = '\0';
            return;
        }
    }
}

static int take_section(struct reader *r, char *text)
{
    size_t len = strlen(text);

    r->section = UB_POLICY_NO_SECTION;
    r->unknown_section = true;
    if (text[len - 1] != ']')
        return wrong(r, "'%.*s': a section ends with ]", SHOWN, text);
    text[len - 1] = '\0';
    text = trim(text + 1);
    for (uint32_t i = 0; i < UB_POLICY_SECTIONS; i++) {
        if (strcmp(text, ub_policy_section_names[i]) == 0) {
            r->section = (enum ub_policy_section)i;
            r->unknown_section = false;
            return 0;
        }
    }
    return unknown(r, "the section", text, ub_policy_section_names,
                   "[offload], [python], [yield], [except] and [predicted]");
}

static int check_reached(struct reader *r, const struct ub_policy_rule *rule)
{
    for (uint32_t i = 0; i < r->file->count; i++) {
        const struct ub_policy_rule *first = &r->file->rule[i];

        if (ub_policy_covers(first, rule))
            return wrong(r, "'%.*s' is never reached: line %u fits all of it, and the first rule that fits counts",
                         SHOWN, rule->text, first->line);
    }
    return 0;
}

static int take_names(struct reader *r, struct ub_policy_rule *rule, const char *key)
{
    switch (rule->section) {
    case UB_POLICY_OFFLOAD:
        return set_call(r, rule, key);
    case UB_POLICY_EXCEPT:
        return set_except(r, rule, key);
    default:
        return set_dotted(r, rule, key);
    }
}

static int take_value(struct reader *r, struct ub_policy_rule *rule, char *value)
{
    switch (rule->section) {
    case UB_POLICY_OFFLOAD:
        return set_call_action(r, rule, value);
    case UB_POLICY_PYTHON:
        return set_python_action(r, rule, value);
    case UB_POLICY_YIELD:
        return set_period(r, rule, value);
    default:
        return set_exception(r, rule, value);
    }
}

static int fill_rule(struct reader *r, struct ub_policy_rule *rule, char *text)
{
    char *equals = ub_policy_equals(text), *key, *value;
    int e;

    rule->text = strdup(text);
    if (!rule->text)
        return -ENOMEM;
    if (!equals)
        return wrong(r, "'%.*s' is not understood: write NAME = ACTION", SHOWN, text);
    *equals = '\0';
    key = trim(text);
    value = trim(equals + 1);
    if (*key == '\0' || *value == '\0')
        return wrong(r, "'%.*s': %s is missing: write NAME = ACTION", SHOWN, rule->text,
                     *key ? "the action" : "the name");
    if (rule->section == UB_POLICY_PREDICTED)
        return ub_policy_set_predicted(r->file, key, value)
                   ? 0
                   : wrong(r, "'%.*s' is no prediction: write p99 = TIME or longest = TIME", SHOWN, rule->text);
    e = take_names(r, rule, key);
    if (e == 0)
        e = take_value(r, rule, value);
    if (e == 0 && rule->call)
        e = check_call(r, rule);
    return e ? e : check_reached(r, rule);
}

static void clear_rule(struct ub_policy_rule *rule)
{
    free(rule->text);
    free(rule->call);
    free(rule->place);
}

static int take_rule(struct reader *r, char *text)
{
    struct ub_policy_rule rule = {.section = r->section, .line = r->line}, *all;
    int e;

    if (r->section == UB_POLICY_NO_SECTION)
        return r->unknown_section ? 0 : wrong(r, "'%.*s' stands in no section: begin with [offload]", SHOWN, text);
    if (r->file->count == UB_POLICY_RULES_MAX)
        return wrong(r, "more than %u rules", UB_POLICY_RULES_MAX);
    e = fill_rule(r, &rule, text);
    if (e == 0 && rule.section == UB_POLICY_PREDICTED) {
        clear_rule(&rule);
        return 0;
    }
    all = e == 0 ? realloc(r->file->rule, (r->file->count + 1) * sizeof(*all)) : NULL;
    if (!all) {
        clear_rule(&rule);
        return e ? e : -ENOMEM;
    }
    r->file->rule = all;
    all[r->file->count++] = rule;
    return 0;
}

static int take_line(struct reader *r, char *text, size_t len)
{
    if (memchr(text, '\0', len) || len > UB_POLICY_LINE_MAX)
        return wrong(r, len > UB_POLICY_LINE_MAX ? "the line is longer than %u bytes" : "a zero byte: this is no text",
                     UB_POLICY_LINE_MAX);
    text[strcspn(text, "\r\n")] = '\0';
    cut_comment(text);
    text = trim(text);
    if (*text == '\0')
        return 0;
    return *text == '[' && !ub_policy_equals(text) ? take_section(r, text) : take_rule(r, text);
}

/* Into `ret`, cut; how long it is with its end. -1: there is no more. */
static ssize_t read_line(FILE *f, char ret[UB_POLICY_LINE_MAX + 1])
{
    size_t len = 0;
    int c;

    while ((c = getc_unlocked(f)) != EOF) {
        if (len < UB_POLICY_LINE_MAX)
            ret[len] = (char)c;
        len++;
        if (c == '\n')
            break;
    }
    ret[len < UB_POLICY_LINE_MAX ? len : UB_POLICY_LINE_MAX] = '\0';
    return len ? (ssize_t)len : -1;
}

static int read_lines(struct reader *r, FILE *f)
{
    char text[UB_POLICY_LINE_MAX + 1];
    ssize_t len;
    int e = 0;

    while (e != -ENOMEM && r->wrongs < WRONGS_MAX && (len = read_line(f, text)) >= 0) {
        r->line++;
        e = take_line(r, text, (size_t)len);
    }
    r->line = 0;
    if (e == -ENOMEM || ferror(f)) {
        e = e == -ENOMEM ? -ENOMEM : -EIO;
        wrong(r, "%s", strerror(-e));
        return e;
    }
    if (r->wrongs == WRONGS_MAX)
        wrong(r, "there may be more, the rest was not read");
    return r->wrongs ? -EINVAL : 0;
}

int ub_policy_read(const char *path, ub_policy_wrong *tell, void *self, struct ub_policy_file *ret)
{
    struct reader r = {.path = path, .wrong = tell, .self = self, .file = ret, .section = UB_POLICY_NO_SECTION};
    struct stat st;
    FILE *f = fopen(path, "re");
    int e;

    *ret = (struct ub_policy_file){0};
    if (!f || fstat(fileno(f), &st) < 0 || S_ISDIR(st.st_mode)) {
        e = f && S_ISDIR(st.st_mode) ? -EISDIR : -errno;
        wrong(&r, "%s", strerror(-e));
        if (f)
            fclose(f);
        return e;
    }
    ret->path = strdup(path);
    e = ret->path ? read_lines(&r, f) : -ENOMEM;
    fclose(f);
    if (e < 0)
        ub_policy_clear(ret);
    return e;
}

bool ub_policy_takes(enum ub_policy_section section, const char *key, const char *action)
{
    char text[UB_POLICY_LINE_MAX + 1];
    struct ub_policy_file file = {0};
    struct reader r = {.section = section, .file = &file};
    int len = snprintf(text, sizeof(text), "%s = %s", key, action);
    bool takes = len > 0 && !strpbrk(key, "\r\n") && take_line(&r, text, (size_t)len) == 0 && file.count == 1;

    ub_policy_clear(&file);
    return takes;
}

void ub_policy_clear(struct ub_policy_file *p)
{
    for (uint32_t i = 0; i < p->count; i++)
        clear_rule(&p->rule[i]);
    free(p->rule);
    free(p->path);
    *p = (struct ub_policy_file){0};
}
