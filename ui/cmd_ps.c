/*
 * unblock ps: who is watched on this host, by whom, and who is not although the
 * agent was loaded into it.
 */
#include "command.h"
#include "control.h"
#include "json_get.h"
#include "options.h"
#include "preloaded.h"
#include "say.h"
#include "text.h"
#include "text_escape.h"

#include <ctype.h>
#include <dirent.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum format { FORMAT_TEXT, FORMAT_JSON };

static const char *const format_choices[] = {"text", "json", NULL};

static const char about[] = "Shows what is being watched on this host: the watcher, its mode (run, trace, or\n"
                            "preload where only LD_PRELOAD was set), the program, its loops, how many stalls\n"
                            "there were, what was lost and where it is recorded; and the processes that\n"
                            "loaded the agent but are not watched, with the reason.";

static const char more[] = "Your own are shown; everybody's when you are root.\n"
                           "\n"
                           "Exit status: 0, also when nothing is watched; 2 wrong use.\n";

struct ps {
    int format;
    bool all;
    json_t *watchers;
    json_t *unwatched;
    uint32_t silent; /* sockets that did not answer */
};

static bool ask(void *self, const char *path, uid_t owner)
{
    struct ps *ps = self;
    struct ub_control_client *c;
    json_t *status = NULL;
    int r = ub_control_connect(path, owner, &c);

    if (r < 0) /* stale as a rule: the next watcher removes it */
        return true;
    r = ub_control_request(c, "status", &status);
    ub_control_hang_up(c);
    if (r == 0 && ub_json_is(status, "type", "status")) {
        json_object_set_new(status, "uid", json_integer((json_int_t)owner));
        json_array_append(ps->watchers, status);
    } else {
        ps->silent++;
    }
    json_decref(status);
    return true;
}

static void add_unwatched(struct ps *ps, const struct ub_preloaded *p)
{
    char why[UB_PRELOADED_WHY], *program = NULL;
    size_t len;
    FILE *out = open_memstream(&program, &len);

    if (out == NULL)
        return;
    ub_escape_put(out, p->program, 0); /* a name may be any bytes: JSON wants UTF-8 */
    fclose(out);
    ub_preloaded_why(p, why);
    json_array_append_new(ps->unwatched, json_pack("{s:i, s:s, s:b, s:s}", "pid", (int)p->pid, "program", program,
                                                   "waiting", p->state <= UB_TREE_READY, "why", why));
    free(program);
}

static void find_unwatched(struct ps *ps)
{
    DIR *proc = opendir("/proc");
    const struct dirent *entry;

    while (proc != NULL && (entry = readdir(proc)) != NULL) {
        struct ub_preloaded p;

        if (isdigit((unsigned char)entry->d_name[0]) &&
            ub_preloaded_look((pid_t)strtol(entry->d_name, NULL, 10), &p) == 1)
            add_unwatched(ps, &p);
    }
    if (proc != NULL)
        closedir(proc);
}

/* ---- text -------------------------------------------------------------- */

static uint64_t all_lost(const json_t *watcher)
{
    const json_t *value, *lost = json_object_get(watcher, "lost");
    uint64_t sum = 0;
    const char *key;

    json_object_foreach ((json_t *)lost, key, value) {
        if (json_is_integer(value) && json_integer_value(value) > 0 && strcmp(key, "rate_limited") != 0)
            sum = ub_add_saturated(sum, (uint64_t)json_integer_value(value));
    }
    return sum;
}

static void put_duration(uint64_t ns)
{
    char text[UB_TEXT_DURATION_MAX];

    ub_text_duration(ns, text, sizeof(text));
    printf("  %9s", text);
}

/* The command of `trace` is unblock's own: then what runs the first loop. */
static const char *program_of(const json_t *w)
{
    const char *loop = ub_json_string(json_array_get(json_object_get(w, "loops"), 0), "program");
    const char *command = json_string_value(json_array_get(json_object_get(w, "command"), 0));

    return loop != NULL && ub_json_is(w, "mode", "trace") ? loop : command != NULL ? ub_path_base(command) : "?";
}

static void put_watcher(const json_t *w)
{
    const char *recording = ub_json_string(w, "recording"), *error = ub_json_string(w, "recording_error");
    const char *mode = ub_json_string(w, "mode");
    size_t used;

    printf("%7" PRIu64 "  ", ub_json_u64_or(w, "pid", 0));
    used = ub_escape_put(stdout, program_of(w), 16);
    printf("%*s  ", (int)(used < 16 ? 16 - used : 0), "");
    used = ub_escape_put(stdout, mode != NULL ? mode : "?", 7);
    printf("%*s  %7" PRIu64 "  %5zu", (int)(used < 7 ? 7 - used : 0), "", ub_json_u64_or(w, "watcher", 0),
           json_array_size(json_object_get(w, "loops")));
    put_duration(ub_json_u64_or(w, "threshold_ns", 0));
    printf("  %6" PRIu64, ub_json_u64_or(w, "slow", 0));
    put_duration(ub_json_u64_or(w, "worst_ns", 0));
    printf("  %5" PRIu64 "  ", all_lost(w));
    if (recording != NULL) {
        ub_escape_put_path(stdout, recording, 0);
    } else {
        fputs("none: ", stdout);
        ub_escape_put(stdout, error != NULL ? error : "it could not be opened", 0);
    }
    putchar('\n');
}

static void put_text(const struct ps *ps)
{
    const json_t *one;
    size_t i, hidden = 0;

    if (json_array_size(ps->watchers) == 0)
        puts("nothing is being watched");
    else
        printf("%7s  %-16s  %-7s  %7s  %5s  %9s  %6s  %9s  %5s  %s\n", "PID", "PROGRAM", "MODE", "WATCHER", "LOOPS",
               "THRESHOLD", "SLOW", "WORST", "LOST", "RECORDING");
    json_array_foreach (ps->watchers, i, one) {
        put_watcher(one);
    }
    json_array_foreach (ps->unwatched, i, one) {
        if (ub_json_true(one, "waiting") && !ps->all) {
            hidden++;
            continue;
        }
        printf("%7" PRIu64 "  %-16s  not watched: %s\n", ub_json_u64_or(one, "pid", 0), ub_json_string(one, "program"),
               ub_json_string(one, "why"));
    }
    if (hidden > 0)
        printf("and %zu process%s with the agent but no event loop of their own (--all shows them)\n", hidden,
               hidden == 1 ? "" : "es");
    if (ps->silent > 0)
        printf("%u watcher%s did not answer: stopped, or of another version\n", ps->silent, ps->silent == 1 ? "" : "s");
}

static void put_json(const struct ps *ps)
{
    json_t *all =
        json_pack("{s:O, s:O, s:i}", "watchers", ps->watchers, "unwatched", ps->unwatched, "silent", (int)ps->silent);

    json_dumpf(all, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(all);
}

int ub_cmd_ps(int argc, char **argv)
{
    struct ps ps = {0};
    const struct ub_option option[] = {
        {.letter = 'a',
         .name = "all",
         .kind = UB_OPTION_FLAG,
         .value = &ps.all,
         .help = "also processes that have no event loop of their own"},
        {.name = "format",
         .kind = UB_OPTION_CHOICE,
         .value = &ps.format,
         .argument = "FORMAT",
         .help = "text or json",
         .choices = format_choices},
    };
    const struct ub_options options = {.usage = "unblock ps [OPTION...]",
                                       .about = about,
                                       .more = more,
                                       .option = option,
                                       .count = UB_ARRAY_LEN(option)};
    char why[UB_WHY_MAX];
    int first, r = ub_options_read(&options, argc, argv, &first, why);

    if (r == UB_OPTIONS_HELP)
        return 0;
    if (r == 0 && first < argc) {
        snprintf(why, sizeof(why), "no arguments are taken: unblock ps [OPTION...]");
        r = -1;
    }
    if (r < 0) {
        ub_say("ps", "%s", why);
        return UB_EXIT_USAGE;
    }
    ps.watchers = json_array();
    ps.unwatched = json_array();
    ub_control_each(ask, &ps);
    find_unwatched(&ps);
    if (ps.format == FORMAT_JSON)
        put_json(&ps);
    else
        put_text(&ps);
    json_decref(ps.watchers);
    json_decref(ps.unwatched);
    return 0;
}
