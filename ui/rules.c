#include "rules.h"
#include "json_get.h"
#include "options.h"

#include <errno.h>
#include <fnmatch.h>
#include <stdlib.h>
#include <time.h>

#define RULES_MAX       10000
#define LINE_MAX_BYTES  4096
#define SITE_PREFIX_MIN 6

enum key { KEY_SITE, KEY_CALL, KEY_FUNCTION, KEY_PROGRAM, KEY_MODULE, KEY_THREAD, KEY_LOOP, KEYS };

static const char *const key_names[KEYS] = {"site", "call", "function", "program", "module", "thread", "loop"};

struct ub_rule_word {
    enum key key;
    char *pattern;
};

/* What a line is held against. */
struct subject {
    const char *site, *program;
    const json_t *slow;
    const json_t *stack[UB_SITE_STACKS_MAX];
    uint32_t stacks;
};

/* ---- reading --------------------------------------------------------- */

static int add_word(struct ub_rule *rule, const char *word, char *why)
{
    const char *colon = strchr(word, ':'), *pattern = colon ? colon + 1 : word;
    enum key key = KEY_SITE;
    struct ub_rule_word *words;

    if (colon) {
        for (key = 0; key < KEYS; key++)
            if (strlen(key_names[key]) == (size_t)(colon - word) &&
                strncmp(word, key_names[key], strlen(key_names[key])) == 0)
                break;
    }
    if (key == KEYS || *pattern == 0) {
        snprintf(why, UB_WHY_MAX,
                 "'%.64s' is no site and none of call: function: program: module: thread: loop: with a pattern", word);
        return -EINVAL;
    }
    if (key == KEY_SITE && strlen(pattern) < SITE_PREFIX_MIN) {
        snprintf(why, UB_WHY_MAX, "'%.64s' is too short for a site: give at least %d digits", word, SITE_PREFIX_MIN);
        return -EINVAL;
    }
    words = realloc(rule->word, (rule->words + 1) * sizeof(*words));
    if (!words)
        return -ENOMEM;
    rule->word = words;
    words[rule->words] = (struct ub_rule_word){key, strdup(pattern)};
    return words[rule->words++].pattern ? 0 : -ENOMEM;
}

static int set_until(struct ub_rule *rule, const char *word, int64_t now, char *why)
{
    struct tm tm = {0};
    const char *end = word ? strptime(word, "%Y-%m-%d", &tm) : NULL;

    if (!end || *end || strlen(word) != 10) {
        snprintf(why, UB_WHY_MAX, "until takes a day: until 2026-12-31");
        return -EINVAL;
    }
    snprintf(rule->until, sizeof(rule->until), "%s", word);
    rule->expired = now >= (int64_t)timegm(&tm) + 86400;
    return 0;
}

static int set_max(struct ub_rule *rule, const char *word, char *why)
{
    if (word)
        return ub_option_time(word, 1, 0, &rule->max_ns, why);
    snprintf(why, UB_WHY_MAX, "max takes a time: max 200ms");
    return -EINVAL;
}

/* `text` is cut up. */
static int parse_words(struct ub_rule *rule, char *text, int64_t now, char *why)
{
    static const char space[] = " \t\r\n";
    char *state, *word;
    int r = 0;

    for (word = strtok_r(text, space, &state); word && r == 0; word = strtok_r(NULL, space, &state)) {
        if (strcmp(word, "until") == 0)
            r = set_until(rule, strtok_r(NULL, space, &state), now, why);
        else if (strcmp(word, "max") == 0)
            r = set_max(rule, strtok_r(NULL, space, &state), why);
        else
            r = add_word(rule, word, why);
    }
    if (r == 0 && rule->words == 0) {
        snprintf(why, UB_WHY_MAX, "the line names no stall: begin it with a site, or call:NAME");
        r = -EINVAL;
    }
    return r;
}

static void rule_free(struct ub_rule *rule)
{
    uint32_t i;

    for (i = 0; i < rule->words; i++)
        free(rule->word[i].pattern);
    free(rule->word);
    free(rule->text);
}

void ub_rules_clear(struct ub_rules *rules)
{
    uint32_t i;

    for (i = 0; i < rules->count; i++)
        rule_free(&rules->rule[i]);
    free(rules->rule);
    free(rules->path);
    *rules = (struct ub_rules){0};
}

static void trim(char *text)
{
    size_t len;

    text[strcspn(text, "#\r\n")] = 0;
    for (len = strlen(text); len > 0 && strchr(" \t", text[len - 1]); len--)
        text[len - 1] = 0;
}

static int add_line(struct ub_rules *rules, char *text, uint32_t line, int64_t now, char *why)
{
    struct ub_rule rule = {.line = line}, *all;
    int r;

    trim(text);
    if (text[strspn(text, " \t")] == 0)
        return 0;
    if (rules->count == RULES_MAX) {
        snprintf(why, UB_WHY_MAX, "more than %d lines", RULES_MAX);
        return -EINVAL;
    }
    rule.text = strdup(text + strspn(text, " \t"));
    r = rule.text ? parse_words(&rule, text, now, why) : -ENOMEM;
    all = r == 0 ? realloc(rules->rule, (rules->count + 1) * sizeof(*all)) : NULL;
    if (!all) {
        rule_free(&rule);
        return r ? r : -ENOMEM;
    }
    rules->rule = all;
    all[rules->count++] = rule;
    return 0;
}

static int read_lines(struct ub_rules *rules, FILE *file, int64_t now, char *why)
{
    char buf[LINE_MAX_BYTES], reason[UB_WHY_MAX] = "out of memory";
    uint32_t line = 0;
    int r = 0;

    while (r == 0 && fgets(buf, sizeof(buf), file)) {
        line++;
        if (strlen(buf) == sizeof(buf) - 1 && buf[sizeof(buf) - 2] != '\n') {
            snprintf(reason, sizeof(reason), "the line is too long");
            r = -EINVAL;
        } else {
            r = add_line(rules, buf, line, now, reason);
        }
    }
    if (r == 0 && ferror(file)) {
        snprintf(why, UB_WHY_MAX, "%.200s: %s", rules->path, strerror(errno));
        return -EIO;
    }
    if (r < 0)
        snprintf(why, UB_WHY_MAX, "%.200s:%u: %.250s", rules->path, line, reason);
    return r;
}

int ub_rules_read(const char *path, int64_t now, struct ub_rules *ret, char *why)
{
    FILE *file = fopen(path, "re");
    int r;

    *ret = (struct ub_rules){0};
    if (!file) {
        r = -errno;
        snprintf(why, UB_WHY_MAX, "%.200s: %s", path, strerror(errno));
        return r;
    }
    ret->path = strdup(path);
    r = ret->path ? read_lines(ret, file, now, why) : -ENOMEM;
    fclose(file);
    if (r < 0)
        ub_rules_clear(ret);
    return r;
}

/* ---- fitting --------------------------------------------------------- */

static bool fits_text(const char *pattern, const char *text)
{
    return text && fnmatch(pattern, text, 0) == 0;
}

static bool fits_path(const char *pattern, const char *path)
{
    return fits_text(pattern, path) || (path && fits_text(pattern, ub_path_base(path)));
}

static bool fits_stack(const char *pattern, const struct subject *s, const char *key)
{
    const json_t *frame;
    uint32_t i;
    size_t k;

    for (i = 0; i < s->stacks; i++)
        json_array_foreach (s->stack[i], k, frame)
            if (fits_path(pattern, ub_json_string(frame, key)))
                return true;
    return false;
}

static bool fits_word(const struct ub_rule_word *word, const struct subject *s)
{
    const json_t *call = json_object_get(s->slow, "call"), *callback = json_object_get(s->slow, "callback");

    switch (word->key) {
    case KEY_SITE:
        return s->site && strncmp(s->site, word->pattern, strlen(word->pattern)) == 0;
    case KEY_CALL:
        return fits_text(word->pattern, ub_json_string(call, "name")) ||
               fits_text(word->pattern, ub_json_string(call, "via"));
    case KEY_FUNCTION:
        return fits_text(word->pattern, ub_json_string(callback, "function")) ||
               fits_stack(word->pattern, s, "function");
    case KEY_PROGRAM:
        return fits_path(word->pattern, s->program);
    case KEY_MODULE:
        return fits_stack(word->pattern, s, "module");
    case KEY_THREAD:
        return fits_text(word->pattern, ub_json_string(s->slow, "thread"));
    case KEY_LOOP:
        return fits_text(word->pattern, ub_json_string(s->slow, "loop"));
    case KEYS:
        break;
    }
    return false;
}

static const struct ub_rule *find(struct ub_rules *rules, const struct subject *s)
{
    struct ub_rule *expired = NULL;
    uint32_t i, k;

    for (i = 0; i < rules->count; i++) {
        struct ub_rule *rule = &rules->rule[i];

        for (k = 0; k < rule->words && fits_word(&rule->word[k], s); k++)
            ;
        if (k < rule->words)
            continue;
        rule->used = true;
        if (!rule->expired)
            return rule;
        expired = rule;
    }
    return expired;
}

const struct ub_rule *ub_rules_find(struct ub_rules *rules, const struct ub_site *site)
{
    struct subject s = {.site = site->id, .program = site->program, .slow = site->worst};

    for (; s.stacks < site->stacks; s.stacks++)
        s.stack[s.stacks] = site->stack[s.stacks].frames;
    return find(rules, &s);
}

bool ub_rules_fit_record(struct ub_rules *rules, const struct ub_model *m, const json_t *slow)
{
    struct subject s = {.site = ub_json_string(slow, "site"),
                        .program = ub_model_program(m, ub_json_u64_or(slow, "pid", 0)),
                        .slow = slow};
    const struct ub_rule *rule;
    const json_t *sample;
    size_t i;

    json_array_foreach (json_object_get(slow, "samples"), i, sample) {
        const json_t *id = json_object_get(sample, "stack");

        if (json_is_integer(id) && s.stacks < UB_SITE_STACKS_MAX)
            s.stack[s.stacks++] = ub_model_stack(m, json_integer_value(id));
    }
    rule = find(rules, &s);
    return rule && !rule->expired;
}

static bool is_suppressed(void *self, const struct ub_site *site)
{
    const struct ub_rule *rule = ub_rules_find(self, site);

    return rule && !rule->expired && (!rule->max_ns || site->durations.max_ns <= rule->max_ns);
}

void ub_rules_suppress(struct ub_rules *rules, struct ub_model *m)
{
    if (rules->count > 0)
        ub_model_suppress(m, is_suppressed, rules);
}
