/*
 * unblock doctor: what works here, what does not, and the line that mends it.
 */
#include "agent_path.h"
#include "command.h"
#include "options.h"
#include "pen.h"
#include "say.h"

#include "../tracer/doctor.h"

#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum format { FORMAT_TEXT, FORMAT_JSON };

static const char *const format_choices[] = {"text", "json", NULL};
static const char *const place_choices[] = {"here", "host", "docker", "kubernetes", NULL};
static const char *const place_names[UB_PLACES] = {"host", "docker", "kubernetes"};
static const char *const health_names[] = {"ok", "info", "limited", "failed"};

static const char about[] = "Tries what unblock needs on this machine, and with PID what stands between it and\n"
                            "one process. One line each; where something does not work, one more with what\n"
                            "mends it, on a bare host, in Docker or in Kubernetes.";

static const char more[] = "Examples:\n"
                           "  unblock doctor\n"
                           "  unblock doctor $(pgrep -o redis-server)\n"
                           "  unblock doctor --for kubernetes\n"
                           "  unblock doctor --format json | jq -r '.findings[] | select(.health != \"ok\").text'\n"
                           "\n"
                           "Exit status:\n"
                           "  0  everything works\n"
                           "  1  something works in part, or does not: it is said which\n"
                           "  2  wrong use, or no such process\n";

struct doctor {
    int format, place;
    json_t *findings;
    bool bad;
};

static void tell(void *self, const struct ub_finding *f)
{
    struct doctor *d = self;
    const char *mend = f->mend[d->place];
    json_t *o;

    d->bad |= f->health >= UB_HEALTH_LIMITED;
    if (d->format == FORMAT_TEXT) {
        printf("%-8s %-11s %s\n", health_names[f->health], f->what, f->text);
        if (mend && *mend)
            printf("%-8s %-11s -> %s\n", "", "", mend);
        return;
    }
    o = json_pack("{s:s, s:s, s:s}", "what", f->what, "health", health_names[f->health], "text", f->text);
    for (int i = 0; i < UB_PLACES; i++) {
        if (f->mend[i] && *f->mend[i]) {
            if (!json_object_get(o, "mend"))
                json_object_set_new(o, "mend", json_object());
            json_object_set_new(json_object_get(o, "mend"), place_names[i], json_string(f->mend[i]));
        }
    }
    json_array_append_new(d->findings, o);
}

static int parse(struct doctor *d, int argc, char **argv, int *ret_first, char *why)
{
    const struct ub_option option[] = {
        {.name = "format",
         .kind = UB_OPTION_CHOICE,
         .value = &d->format,
         .argument = "FORMAT",
         .help = "text or json (the mends of all places are in it)",
         .choices = format_choices},
        {.name = "for",
         .kind = UB_OPTION_CHOICE,
         .value = &d->place,
         .argument = "PLACE",
         .help = "mends for: here (found out), host, docker, kubernetes",
         .choices = place_choices},
    };
    const struct ub_options options = {.usage = "unblock doctor [OPTION...] [PID]",
                                       .about = about,
                                       .more = more,
                                       .option = option,
                                       .count = UB_ARRAY_LEN(option)};

    return ub_options_read(&options, argc, argv, ret_first, why);
}

static void look_at_host(struct doctor *d)
{
    char path[PATH_MAX], why[UB_WHY_MAX] = "";
    bool found = ub_agent_path(path, sizeof(path), why) == 0;

    ub_doctor_host(found ? path : NULL, why, tell, d);
}

static int finish(struct doctor *d, pid_t pid)
{
    json_t *all;

    if (d->format == FORMAT_JSON) {
        all = json_pack("{s:s, s:o}", "place", place_names[d->place], "findings", d->findings);
        if (pid)
            json_object_set_new(all, "pid", json_integer(pid));
        json_dumpf(all, stdout, JSON_INDENT(1));
        putchar('\n');
        json_decref(all);
    }
    if (fflush(stdout) != 0) {
        ub_say("doctor", "cannot write: %s", strerror(errno));
        return UB_EXIT_USAGE;
    }
    return d->bad ? UB_EXIT_FINDING : 0;
}

int ub_cmd_doctor(int argc, char **argv)
{
    struct doctor d = {0};
    char why[UB_WHY_MAX];
    pid_t pid = 0;
    int first, r = parse(&d, argc, argv, &first, why);

    if (r == UB_OPTIONS_HELP)
        return 0;
    if (r == 0 && argc - first > 1) {
        snprintf(why, sizeof(why), "one PID at a time");
        r = -EINVAL;
    }
    if (r == 0 && argc > first)
        r = ub_option_pid(argv[first], &pid, why);
    if (r < 0) {
        ub_say("doctor", "%s", why);
        return UB_EXIT_USAGE;
    }
    d.place = d.place == 0 ? (int)ub_doctor_place() : d.place - 1;
    d.findings = json_array();
    if (pid == 0)
        look_at_host(&d);
    else if (ub_doctor_process(pid, tell, &d) < 0) {
        ub_say("doctor", "there is no process %d, or it is hidden from us: take its number from ps or pgrep", (int)pid);
        json_decref(d.findings);
        return UB_EXIT_USAGE;
    }
    return finish(&d, pid);
}
