/*
 * Live text of `run`: which stalls are shown, and how fully. All of them are
 * in the recording; a terminal that scrolls for ever helps nobody.
 */
#include "text_private.h"
#include "hash.h"
#include "write_all.h"
#include "../common/clock.h"

#include <stdlib.h>
#include <unistd.h>

#define SHOWN_A_MINUTE 60
#define SITES_MAX      16384
#define GOING_MAX      256
#define SLACK_NS       50000000ull    /* the records at 1 s and 10 s come a little early or late */
#define GOING_FIRST_NS 1000000000ull  /* a stall this long is shown while it lasts */
#define GOING_AGAIN_NS 10000000000ull /* and again from here on, on one line */

struct shown_site {
    char *key;
    uint64_t next; /* shown in full when this many stalls are reached */
    uint64_t worst_ns;
    UT_hash_handle hh;
};

struct ub_text_live {
    int fd;
    enum ub_live mode;
    bool colour;
    struct ub_model *model;
    struct shown_site *sites;
    json_t *going;      /* "pid/id" of stalls shown while they last */
    uint64_t minute_ns; /* start of the minute that is being counted */
    uint32_t shown;     /* in it */
    uint64_t left_out;
};

struct ub_text_live *ub_text_live_new(int fd, enum ub_live mode, bool colour, struct ub_model *model)
{
    struct ub_text_live *t = calloc(1, sizeof(*t));

    if (!t)
        return NULL;
    t->fd = fd;
    t->mode = mode;
    t->colour = colour;
    t->model = model;
    t->going = json_object();
    if (!t->going) {
        free(t);
        return NULL;
    }
    return t;
}

/* ---- output ---------------------------------------------------------- */

enum form { NOTHING, LINE, BLOCK };

static void put_left_out(FILE *out, struct ub_text_live *t)
{
    if (t->left_out > 0)
        fprintf(out, "unblock: %" PRIu64 " more stall%s not shown (at most %d a minute)\n", t->left_out,
                t->left_out == 1 ? " was" : "s were", SHOWN_A_MINUTE);
    t->left_out = 0;
}

/* Everything of one stall goes out in one piece, so that the program's own output does not mix with it. */
static void show(struct ub_text_live *t, const json_t *slow, enum form form)
{
    struct ub_text_view view;
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);

    if (!out)
        return;
    put_left_out(out, t);
    if (slow) {
        ub_text_view_init(&view, out, t->model, t->colour);
        if (form == BLOCK)
            ub_text_block(&view, slow);
        else
            ub_text_line(&view, slow);
        fputc('\n', out);
    }
    if (fclose(out) == 0)
        ub_write_all(t->fd, text, size, false, NULL);
    free(text);
}

/* ---- which are shown ------------------------------------------------- */

static struct shown_site *site_of(struct ub_text_live *t, const struct ub_site *site)
{
    struct shown_site *shown;
    char key[300];

    snprintf(key, sizeof(key), "%d %s", (int)site->class, site->id);
    HASH_FIND_STR(t->sites, key, shown);
    if (shown || HASH_COUNT(t->sites) >= SITES_MAX)
        return shown;
    shown = calloc(1, sizeof(*shown));
    if (!shown)
        return NULL;
    shown->key = strdup(key);
    shown->next = 1;
    if (shown->key)
        HASH_ADD_KEYPTR(hh, t->sites, shown->key, strlen(shown->key), shown);
    if (!UB_HASHED(shown)) {
        free(shown->key);
        free(shown);
        return NULL;
    }
    return shown;
}

static void note_worst(struct ub_text_live *t, const json_t *slow)
{
    const struct ub_site *site = ub_model_site_of(t->model, slow);
    struct shown_site *shown = site ? site_of(t, site) : NULL;
    uint64_t duration = ub_json_u64_or(slow, "duration_ns", 0);

    if (shown && duration > shown->worst_ns)
        shown->worst_ns = duration;
}

/* The 1st, 10th, 100th ... stall of its site, or one twice as long as any that was shown. */
static bool deserves_block(struct ub_text_live *t, const json_t *slow)
{
    const struct ub_site *site = ub_model_site_of(t->model, slow);
    struct shown_site *shown = site ? site_of(t, site) : NULL;
    uint64_t duration = ub_json_u64_or(slow, "duration_ns", 0);

    if (!shown)
        return true;
    if (site->durations.count < shown->next && duration / 2 < shown->worst_ns)
        return false;
    while (shown->next <= site->durations.count && shown->next < UINT64_MAX / 10)
        shown->next *= 10;
    note_worst(t, slow);
    return true;
}

static bool going_key(const json_t *slow, char *buf, size_t size)
{
    uint64_t pid, id;

    if (!ub_json_u64(slow, "pid", &pid) || !ub_json_u64(slow, "id", &id))
        return false;
    snprintf(buf, size, "%" PRIu64 "/%" PRIu64, pid, id);
    return true;
}

static enum form choose_going(struct ub_text_live *t, const json_t *slow)
{
    uint64_t duration = ub_json_u64_or(slow, "duration_ns", 0);
    char key[64];

    if (duration + SLACK_NS < GOING_FIRST_NS || !going_key(slow, key, sizeof(key)))
        return NOTHING;
    if (t->mode == UB_LIVE_LINE || json_object_get(t->going, key))
        return LINE;
    if (!deserves_block(t, slow) && duration + SLACK_NS < GOING_AGAIN_NS)
        return NOTHING;
    if (json_object_size(t->going) >= GOING_MAX)
        json_object_del(t->going, json_object_iter_key(json_object_iter(t->going)));
    json_object_set_new(t->going, key, json_true());
    return BLOCK;
}

static enum form choose(struct ub_text_live *t, const json_t *slow)
{
    char key[64];

    if (ub_json_true(slow, "ongoing"))
        return choose_going(t, slow);
    if (t->mode == UB_LIVE_LINE)
        return LINE;
    if (going_key(slow, key, sizeof(key)) && json_object_del(t->going, key) == 0) {
        note_worst(t, slow);
        return LINE; /* the block was shown while it lasted; now its length */
    }
    return deserves_block(t, slow) ? BLOCK : NOTHING;
}

static bool within_limit(struct ub_text_live *t)
{
    uint64_t now = ub_clock_monotonic_ns();

    if (now - t->minute_ns >= 60000000000ull) {
        t->minute_ns = now;
        t->shown = 0;
    }
    if (t->shown >= SHOWN_A_MINUTE)
        return false;
    t->shown++;
    return true;
}

static void sink_line(void *self, json_t *record)
{
    struct ub_text_live *t = self;
    enum form form;

    if (t->mode == UB_LIVE_NONE || !ub_json_is(record, "type", "slow") || ub_json_true(record, "unclear"))
        return;
    form = choose(t, record);
    if (form == NOTHING)
        return;
    if (within_limit(t))
        show(t, record, form);
    else
        t->left_out++;
}

struct ub_sink ub_text_live_sink(struct ub_text_live *t)
{
    return (struct ub_sink){.line = sink_line, .self = t};
}

static void shown_free(struct shown_site *shown)
{
    free(shown->key);
    free(shown);
}

void ub_text_live_free(struct ub_text_live *t)
{
    if (!t)
        return;
    if (t->left_out > 0)
        show(t, NULL, LINE);
    UB_HASH_DESTROY(struct shown_site, t->sites, shown_free);
    json_decref(t->going);
    free(t);
}
