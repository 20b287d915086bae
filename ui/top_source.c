#include "top.h"
#include "control.h"
#include "json_get.h"
#include "options.h"
#include "recording.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define RECENT_SECONDS 64
#define RECENT_LOOPS   256

/* Time lost by second, of the newest seconds. */
struct recent {
    uint64_t pid, tid;
    uint64_t second[RECENT_SECONDS]; /* which second a cell is of */
    uint64_t lost_ns[RECENT_SECONDS];
};

struct ub_top_source {
    char *name, *path; /* path: of the file that is read now */
    FILE *file;
    struct ub_model *m;
    struct ub_sink sink;
    struct ub_taker taker;
    struct ub_recording_reader *reader;
    struct ub_control_client *client; /* NULL: a file only */
    json_t *status;
    bool ended;
    struct recent recent[RECENT_LOOPS];
    uint32_t recents;
};

static struct recent *find_recent(struct ub_top_source *s, uint64_t pid, uint64_t tid)
{
    uint32_t i;

    for (i = 0; i < s->recents; i++)
        if (s->recent[i].pid == pid && s->recent[i].tid == tid)
            return &s->recent[i];
    if (s->recents == RECENT_LOOPS)
        return NULL;
    s->recent[s->recents] = (struct recent){.pid = pid, .tid = tid};
    return &s->recent[s->recents++];
}

/* A stall that lasts for seconds fills them all. */
static void hear(void *self, const struct ub_stall *stall, const struct ub_site *site, uint32_t run)
{
    struct ub_top_source *s = self;
    struct recent *r =
        site->class == UB_STALL_COUNTED && !stall->nested ? find_recent(s, stall->pid, stall->tid) : NULL;
    uint64_t end = ub_add_saturated(stall->start_ns, stall->duration_ns), at = stall->start_ns, oldest;

    if (!r)
        return;
    oldest = end / 1000000000 > RECENT_SECONDS ? (end / 1000000000 - RECENT_SECONDS + 1) * 1000000000 : 0;
    if (at < oldest)
        at = oldest;
    while (at < end) {
        uint64_t second = at / 1000000000, next = (second + 1) * 1000000000;
        uint32_t cell = (uint32_t)(second % RECENT_SECONDS);

        if (r->second[cell] != second) {
            r->second[cell] = second;
            r->lost_ns[cell] = 0;
        }
        r->lost_ns[cell] += (next < end ? next : end) - at;
        at = next;
    }
}

void ub_top_recent(const struct ub_top_source *s, uint64_t pid, uint64_t tid, uint64_t *ret_ns, uint32_t count)
{
    const struct ub_run *run = ub_model_current_run(s->m);
    uint64_t newest = run ? run->last_ns / 1000000000 : 0, live;
    uint32_t i, k;

    if (ub_json_u64(s->status, "now_ns", &live) && live / 1000000000 > newest)
        newest = live / 1000000000;
    for (k = 0; k < count; k++)
        ret_ns[k] = 0;
    for (i = 0; i < s->recents; i++) {
        if (s->recent[i].pid != pid || s->recent[i].tid != tid)
            continue;
        for (k = 0; k < count && k < RECENT_SECONDS && k <= newest; k++) {
            uint64_t second = newest - k;
            uint32_t cell = (uint32_t)(second % RECENT_SECONDS);

            if (s->recent[i].second[cell] == second)
                ret_ns[count - 1 - k] = s->recent[i].lost_ns[cell];
        }
    }
}

/* ---- files ---------------------------------------------------------------- */

/* A recording that is rotated goes on in the file that its last note names, in the same folder. */
static bool go_on(struct ub_top_source *s)
{
    const struct ub_run *run = ub_model_current_run(s->m);
    char *folder, *next = NULL;
    FILE *file;

    if (!run || !run->next || strcmp(ub_path_base(run->next), ub_path_base(s->path)) == 0)
        return false;
    folder = strdup(s->path);
    if (!folder || asprintf(&next, "%s/%s", dirname(folder), ub_path_base(run->next)) < 0)
        next = NULL;
    free(folder);
    file = next ? fopen(next, "re") : NULL;
    if (!file) {
        free(next);
        return false;
    }
    fclose(s->file);
    free(s->path);
    s->file = file;
    s->path = next;
    return true;
}

static void ask_status(struct ub_top_source *s)
{
    json_t *status = NULL;

    if (!s->client)
        return;
    if (ub_control_request(s->client, "status", &status) == 0 && ub_json_is(status, "type", "status")) {
        json_decref(s->status);
        s->status = status;
        return;
    }
    json_decref(status);
    ub_control_hang_up(s->client);
    s->client = NULL;
    json_decref(s->status); /* its figures are old now */
    s->status = NULL;
    s->ended = true;
}

int ub_top_read(struct ub_top_source *s)
{
    const struct ub_run *run;
    int r;

    ask_status(s);
    do {
        clearerr(s->file);
        r = ub_recording_reader_read(s->reader, s->file);
    } while (r == 0 && go_on(s));
    run = ub_model_current_run(s->m);
    if (run && run->end && !s->client)
        s->ended = true;
    ub_model_settle(s->m);
    return r;
}

/* ---- opening --------------------------------------------------------------- */

int ub_top_open_file(const char *path, struct ub_top_source **ret, char *why)
{
    struct ub_top_source *s = calloc(1, sizeof(*s));
    struct stat st;

    if (!s)
        return -ENOMEM;
    s->path = strdup(path);
    s->name = strdup(path);
    s->m = ub_model_new();
    s->file = fopen(path, "re");
    if (!s->file || (fstat(fileno(s->file), &st) == 0 && S_ISDIR(st.st_mode))) {
        int error = s->file ? EISDIR : errno;

        snprintf(why, UB_WHY_MAX, "%.300s: %s: give a recording, or the PID of a watched program", path,
                 strerror(error));
        ub_top_close(s);
        return -error;
    }
    if (s->m) {
        s->sink = ub_model_sink(s->m);
        s->taker = ub_model_taker(s->m);
        s->reader = ub_recording_reader_new(&s->sink, &s->taker);
        ub_model_follow(s->m, hear, s);
    }
    if (!s->reader || !s->path || !s->name) {
        ub_top_close(s);
        return -ENOMEM;
    }
    *ret = s;
    return 0;
}

int ub_top_open_pid(pid_t pid, struct ub_top_source **ret, char *why)
{
    struct ub_control_client *client;
    json_t *status = NULL;
    const char *path;
    int r = ub_control_find(pid, &client);

    if (r < 0) {
        if (kill(pid, 0) < 0 && errno == ESRCH)
            snprintf(why, UB_WHY_MAX, "there is no process %d: take its number from ps or pgrep", (int)pid);
        else
            snprintf(why, UB_WHY_MAX,
                     "nobody watches process %d: without --once it would be attached to; unblock trace %d watches from "
                     "outside (as root); unblock ps shows what is watched",
                     (int)pid, (int)pid);
        return r;
    }
    r = ub_control_request(client, "status", &status);
    path = ub_json_string(status, "recording");
    if (r < 0 || !path || *path != '/') {
        snprintf(why, UB_WHY_MAX, "the watcher of process %d %s", (int)pid,
                 r < 0 ? "does not answer" : "writes no recording file that could be shown");
        r = r < 0 ? r : -ENOENT;
    } else {
        r = ub_top_open_file(path, ret, why);
    }
    if (r < 0) {
        json_decref(status);
        ub_control_hang_up(client);
        return r;
    }
    (*ret)->client = client;
    (*ret)->status = status;
    return 0;
}

void ub_top_close(struct ub_top_source *s)
{
    if (s->client)
        ub_control_hang_up(s->client);
    if (s->file)
        fclose(s->file);
    json_decref(s->status);
    ub_recording_reader_free(s->reader);
    ub_model_free(s->m);
    free(s->path);
    free(s->name);
    free(s);
}

struct ub_model *ub_top_model(struct ub_top_source *s)
{
    return s->m;
}

const json_t *ub_top_live_loops(const struct ub_top_source *s)
{
    return json_object_get(s->status, "loops");
}

bool ub_top_ended(const struct ub_top_source *s)
{
    return s->ended;
}

const char *ub_top_name(const struct ub_top_source *s)
{
    return s->name;
}
