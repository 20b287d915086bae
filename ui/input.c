#include "input.h"
#include "say.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

uint32_t ub_input_options(struct ub_input *in, struct ub_option *ret)
{
    struct ub_filter_options *f = &in->filter_options;
    const struct ub_option option[] = {
        {.name = "since",
         .kind = UB_OPTION_TEXT,
         .value = &f->since,
         .argument = "TIME",
         .help = "stalls that ended after TIME: 10m (ago), +30s (after\nthe recording began) or 2025-11-21T03:05:00Z"},
        {.name = "site",
         .kind = UB_OPTION_TEXT,
         .value = &f->site,
         .argument = "ID",
         .help = "one call site, by its id or the first digits of it"},
        {.name = "loop",
         .kind = UB_OPTION_TEXT,
         .value = &f->loop,
         .argument = "LOOP",
         .help = "one kind of loop: libuv, glib, turn ..."},
        {.name = "thread",
         .kind = UB_OPTION_TEXT,
         .value = &f->thread,
         .argument = "THREAD",
         .help = "one thread, by its name or id"},
        {.name = "cause",
         .kind = UB_OPTION_TEXT,
         .value = &f->cause,
         .argument = "LIST",
         .help = "causes, with commas: call,lock,cpu,runqueue ..."},
        {.name = "min",
         .kind = UB_OPTION_TIME,
         .value = &f->min_ns,
         .argument = "TIME",
         .help = "stalls at least this long (unit needed: us ms s)"},
    };

    _Static_assert(UB_ARRAY_LEN(option) <= UB_INPUT_OPTIONS_MAX, "callers provide so many");
    memcpy(ret, option, sizeof(option));
    return UB_ARRAY_LEN(option);
}

static void say_unreadable(const char *command, const char *path, int error)
{
    switch (error) {
    case -ENODATA:
        ub_say(command, "%s is empty: nothing was recorded", path);
        break;
    case -EINVAL:
        ub_say(command, "%s is no recording: give the .jsonl file that unblock run wrote", path);
        break;
    case -EPROTONOSUPPORT:
        ub_say(command, "%s was written by a newer unblock: read it with that one", path);
        break;
    case -ENOENT:
        ub_say(command, "%s: no such file", path);
        break;
    case -EISDIR:
        ub_say(command, "%s is a folder: name the recordings in it: unblock %s %s/*.jsonl", path, command, path);
        break;
    case -EACCES:
        ub_say(command, "%s: permission denied: recordings are readable by the user who made them; sudo unblock %s ...",
               path, command);
        break;
    default:
        ub_say(command, "%s: %s", path, strerror(-error));
    }
}

static bool knows(const struct ub_input *in, const struct stat *st)
{
    int i;

    for (i = 0; i < in->read_count; i++)
        if (in->read[i].st_dev == st->st_dev && in->read[i].st_ino == st->st_ino)
            return true;
    return false;
}

bool ub_input_has(const struct ub_input *in, const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && knows(in, &st);
}

/* The same file twice (overlapping patterns) would count everything twice. */
static bool was_read(struct ub_input *in, FILE *file)
{
    struct stat st;

    if (fstat(fileno(file), &st) < 0 || !S_ISREG(st.st_mode))
        return false;
    if (knows(in, &st))
        return true;
    in->read[in->read_count++] = st;
    return false;
}

static int read_stream(struct ub_input *in, FILE *file, const char *name)
{
    struct ub_recording_stats stats;
    int r;

    if (was_read(in, file)) {
        ub_say(in->command, "%s is given twice: read once", name);
        return 0;
    }
    r = ub_recording_read_fast(file, &in->sink, &in->taker, &stats);
    if (r < 0)
        say_unreadable(in->command, name, r);
    else
        ub_model_file_read(in->model, name, &stats);
    return r;
}

static int read_file(struct ub_input *in, const char *path)
{
    FILE *file;
    int r;

    if (strcmp(path, "-") == 0)
        return read_stream(in, stdin, "standard input");
    file = fopen(path, "re");
    if (!file) {
        r = -errno;
        say_unreadable(in->command, path, r);
        return r;
    }
    r = read_stream(in, file, path);
    fclose(file);
    return r;
}

/* What was left out on request is said where the figures are read. */
static void note_filter(struct ub_input *in)
{
    json_t *note;

    if (!ub_filter_is_set(&in->filter))
        return;
    note =
        json_pack("{s:s, s:s, s:o*}", "type", "note", "level", "info", "text",
                  json_sprintf("filtered: %llu stall lines were left out as asked; the figures of the loops are of all",
                               (unsigned long long)in->filter.left_out));
    ub_model_line(in->model, note);
    json_decref(note);
}

int ub_input_read(struct ub_input *in, char **files, int count)
{
    char why[UB_WHY_MAX];
    int i, r;

    in->model = ub_model_new();
    in->read = calloc((size_t)count, sizeof(*in->read));
    if (!in->model || !in->read) {
        ub_say(in->command, "out of memory");
        return -ENOMEM;
    }
    in->model_sink = ub_model_sink(in->model);
    r = ub_filter_init(&in->filter, &in->filter_options, &in->model_sink, why);
    if (r < 0)
        ub_say(in->command, "%s", why);
    in->sink = ub_filter_sink(&in->filter);
    in->taker = ub_filter_taker(&in->filter, ub_model_taker(in->model));
    if (in->timeline)
        ub_timeline_follow(in->timeline, in->model);
    for (i = 0; i < count && r == 0; i++)
        r = read_file(in, files[i]);
    if (in->timeline)
        ub_timeline_finish(in->timeline, in->model);
    if (r == 0)
        note_filter(in);
    return r;
}

void ub_input_clear(struct ub_input *in)
{
    ub_model_free(in->model);
    free(in->read);
    in->model = NULL;
    in->read = NULL;
}
