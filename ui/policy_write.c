#include "policy_write.h"

#include "json_get.h"
#include "text.h"
#include "text_private.h"
#include "text_escape.h"
#include "text_frames.h"

#include "../tracer/policy_file.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>

#define KEY_MAX     UB_POLICY_KEY_MAX
#define WHY_MAX     300u
#define RULES_MAX   500u
#define GIVE_WAY    "5ms"
#define RULE_COLUMN 48

/* One line of the policy. */
struct rule {
    enum ub_policy_section section;
    char key[KEY_MAX];
    const char *action; /* NULL: a comment */
    char why[WHY_MAX];
    uint64_t count, total_ns, max_ns;
};

struct writer {
    const struct ub_model *m;
    struct rule *rule;
    uint32_t count;
    struct ub_policy_written *told;
};

/* ---- names -------------------------------------------------------------------------------- */

static bool is_python(const json_t *place)
{
    const char *file = ub_json_string(place, "file");
    size_t len = file ? strlen(file) : 0;

    return ub_json_is(place, "language", "python") || (len > 3 && strcmp(file + len - 3, ".py") == 0);
}

/* "wal.c:wal_commit", "wal_commit", "jobs.fetch". False: nobody knows what to call it. */
static bool place_name(const json_t *place, char *ret, size_t size)
{
    const char *file = ub_json_string(place, "file"), *function = ub_json_string(place, "function");
    char plain[512];

    *ret = '\0';
    if (!function)
        return false;
    if (is_python(place))
        return ub_policy_dotted(file, function, ret, size);
    ub_text_frame_plain(function, plain, sizeof(plain));
    if (file && !strchr(ub_path_base(file), ':') && !strchr(ub_path_base(file), ' ')) {
        ub_policy_put_name(ret, size, ub_path_base(file));
        strncat(ret, ":", size - strlen(ret) - 1);
    }
    ub_policy_put_name(ret, size, plain);
    return *plain != '\0';
}

/* Where the call was made: the innermost frame outside libc; in Python the innermost of the program's own. */
static const json_t *caller_of(const struct ub_site *site)
{
    const json_t *frame, *found = NULL, *python = NULL;
    size_t i;

    if (site->stacks == 0)
        return NULL;
    json_array_foreach (site->stack[0].frames, i, frame) {
        enum ub_shown class = ub_text_frame_class(frame, site->exe);

        if (ub_json_is(frame, "language", "python") && class == UB_SHOWN_USER && !python)
            python = frame;
        if (!found && class != UB_SHOWN_LIBC && ub_json_string(frame, "function") &&
            !ub_json_is(frame, "language", "kernel"))
            found = frame;
    }
    return python ? python : found;
}

/* ---- rules ---------------------------------------------------------------------------------- */

static struct rule *add(struct writer *w, enum ub_policy_section section, const char *key, const char *action,
                        uint64_t count, uint64_t total_ns, uint64_t max_ns)
{
    struct rule *r, *all;

    for (uint32_t i = 0; i < w->count; i++) {
        r = &w->rule[i];
        if (r->section != section || strcmp(r->key, key) != 0)
            continue;
        if (!r->action && action) { /* pinned there at times: what counts is that it can move */
            r->action = action;
            *r->why = '\0';
        }
        r->count = ub_add_saturated(r->count, count);
        r->total_ns = ub_add_saturated(r->total_ns, total_ns);
        r->max_ns = r->max_ns > max_ns ? r->max_ns : max_ns;
        return r;
    }
    if (w->count == RULES_MAX || !(all = realloc(w->rule, (w->count + 1) * sizeof(*all))))
        return NULL;
    w->rule = all;
    r = &all[w->count++];
    *r = (struct rule){.section = section, .action = action, .count = count, .total_ns = total_ns, .max_ns = max_ns};
    snprintf(r->key, sizeof(r->key), "%s", key);
    return r;
}

/* "fsync in db.c:flush". False: a recording of a stranger's may say anything, and this is no call or place. */
static bool call_key(const char *call, const json_t *place, char ret[KEY_MAX])
{
    char name[64], plain[64] = "", where[KEY_MAX - 80];

    ub_policy_call_name(call, name, sizeof(name));
    ub_policy_put_name(plain, sizeof(plain), name);
    if (!*plain || strpbrk(plain, " ?*") || !place_name(place, where, sizeof(where)))
        return false;
    snprintf(ret, KEY_MAX, "read in %s", where);
    if (!ub_policy_takes(UB_POLICY_OFFLOAD, ret, "move"))
        return false;
    snprintf(ret, KEY_MAX, "%s in %s", plain, where);
    return true;
}

/* What moved in this run, by its place. */
static void add_moved(struct writer *w, const json_t *line)
{
    const char *call = ub_json_string(line, "call");
    uint64_t moved = ub_json_u64_or(line, "moved", 0), first = ub_json_u64_or(line, "first", 0);
    char key[KEY_MAX];
    struct rule *r;

    if (!call || moved + first == 0 || !ub_policy_may_move(call) ||
        !call_key(call, json_object_get(line, "caller"), key))
        return;
    w->told->judged++;
    r = add(w, UB_POLICY_OFFLOAD, key, "move", moved + first,
            ub_add_saturated(ub_json_u64_or(line, "saved_ns", 0), ub_json_u64_or(line, "first_ns", 0)),
            ub_json_u64_or(line, "longest_ns", 0));
    if (r)
        snprintf(r->why, sizeof(r->why), "%s", moved ? "moved" : "blocked once, the next would have moved");
}

static void add_call(struct writer *w, const struct ub_site *site, const char *call)
{
    const json_t *offload = json_object_get(site->worst, "offload"), *lock = json_object_get(offload, "lock");
    const char *state = ub_json_string(offload, "state"), *reason = ub_json_string(offload, "reason");
    bool moves = state && (strcmp(state, "would-move") == 0 || strcmp(state, "first") == 0);
    char key[KEY_MAX], where[200];
    struct rule *r;

    w->told->calls++;
    w->told->judged += state != NULL;
    if (!call_key(call, caller_of(site), key))
        return;
    moves = moves && ub_policy_may_move(call);
    r = add(w, UB_POLICY_OFFLOAD, key, moves ? "move" : NULL, site->durations.count, site->durations.total_ns,
            site->durations.max_ns);
    if (!r || *r->why || (r->action && !moves))
        return;
    if (moves)
        snprintf(r->why, sizeof(r->why), "no lock seen held");
    else if (!state)
        snprintf(r->why, sizeof(r->why), "not judged: record with --offload");
    else if (!reason)
        snprintf(r->why, sizeof(r->why), "%s is never moved", call);
    else
        snprintf(r->why, sizeof(r->why), "pinned: %s", ub_text_offload_reason(reason));
    if (r->action || !place_name(lock, where, sizeof(where)))
        return;
    snprintf(r->why + strlen(r->why), sizeof(r->why) - strlen(r->why), ", taken in %s", where);
}

/* ---- functions of Python ---------------------------------------------------------------------- */

static const struct {
    const char *how, *why;
} ways[] = {
    {"thread", "computes with the GIL released"},
    {"process", "computes with the GIL held: arguments and result must be small, and be pickled; what it changes in "
                "its arguments would be lost"},
    {"fork", "serialises live data: a fork has a consistent snapshot"},
    {"yield", "computes with the GIL held, on large data or in the coroutine itself"},
    {"stays", "one call into C with the GIL held: it cannot yield, and what it changes a process would lose"},
};

/* Of one function, or of some whose names begin alike ("pickle.dump*"): a recording of a stranger's may say anything.
 */
static bool is_name(const char *name)
{
    size_t len = strlen(name);

    for (size_t i = 0; i < len; i++) {
        bool last = i + 1 == len && i > 0 && name[i - 1] != '.';

        if (!isalnum((unsigned char)name[i]) && !strchr("_.<>", name[i]) && (unsigned char)name[i] < 0x80 &&
            !(name[i] == '*' && last))
            return false;
    }
    return strchr(name, '.') && len < KEY_MAX;
}

bool ub_policy_propose(const struct ub_site *site, struct ub_policy_proposal *ret)
{
    const json_t *elsewhere = json_object_get(site->worst, "elsewhere");
    const char *function = ub_json_string(elsewhere, "function");

    *ret = (struct ub_policy_proposal){.saved_ns = ub_json_u64_or(elsewhere, "saved_ns", 0)};
    if (!function || !is_name(function))
        return false;
    for (size_t i = 0; i < UB_ARRAY_LEN(ways); i++) {
        if (!ub_json_is(elsewhere, "how", ways[i].how))
            continue;
        ret->yields = strcmp(ways[i].how, "yield") == 0;
        ret->action = ret->yields ? GIVE_WAY : strcmp(ways[i].how, "stays") == 0 ? NULL : ways[i].how;
        ret->why = ways[i].why;
        snprintf(ret->name, sizeof(ret->name), "%s", function);
        return ub_policy_takes(ret->yields ? UB_POLICY_YIELD : UB_POLICY_PYTHON, ret->name,
                               ret->action ? ret->action : "inline");
    }
    return false;
}

/* Also where it wanted to, and the machine had no CPU for it. */
static bool computes(const struct ub_site *site)
{
    enum ub_cause cause = ub_model_site_cause(site);

    return cause == UB_CAUSE_CPU || cause == UB_CAUSE_RUNQUEUE;
}

/* What a rule can move of it, or NULL: a whole call that the agent has judged as one, or one into libc. */
static const char *call_of(const struct ub_site *site)
{
    const char *whole = ub_json_string(json_object_get(site->worst, "offload"), "call");
    const json_t *call = json_object_get(site->worst, "call");
    const char *name = ub_json_string(call, "via") ? ub_json_string(call, "via") : ub_json_string(call, "name");
    enum ub_cause cause = ub_model_site_cause(site);

    return whole ? whole : cause == UB_CAUSE_CALL || cause == UB_CAUSE_LOCK ? name : NULL;
}

static void add_function(struct writer *w, const struct ub_site *site)
{
    struct ub_policy_proposal p;
    struct rule *r;

    if (!ub_policy_propose(site, &p))
        return;
    r = add(w, p.yields ? UB_POLICY_YIELD : UB_POLICY_PYTHON, p.name, p.action, site->durations.count,
            site->durations.total_ns, site->durations.max_ns);
    if (r && !*r->why)
        snprintf(r->why, sizeof(r->why), "%s", p.why);
}

/* ---- the file ----------------------------------------------------------------------------------- */

static int by_total(const void *a, const void *b)
{
    const struct rule *x = a, *y = b;

    if (x->section != y->section)
        return x->section < y->section ? -1 : 1;
    if (!x->action != !y->action)
        return x->action ? -1 : 1;
    return x->total_ns < y->total_ns ? 1 : x->total_ns > y->total_ns ? -1 : strcmp(x->key, y->key);
}

static void put_rule(FILE *out, const struct rule *r)
{
    char longest[32];
    int n;

    fputs(r->action ? "" : "# ", out);
    n = (r->action ? 0 : 2) + (int)ub_escape_put(out, r->key, 0);
    n += fprintf(out, " = %s", r->action ? r->action : "inline");
    ub_text_duration(r->max_ns, longest, sizeof(longest));
    fprintf(out, "%*s # %" PRIu64 " x, the longest %s", n < RULE_COLUMN ? RULE_COLUMN - n : 0, "", r->count, longest);
    if (*r->why) {
        fputs("; ", out);
        ub_escape_put(out, r->why, WHY_MAX);
    }
    fputc('\n', out);
}

/* "p99 = 213us      # the loop's lag with these rules; it was 97 ms" */
static void put_time(FILE *out, const char *key, uint64_t ns, uint64_t was_ns)
{
    char was[32];
    int n = fprintf(out, "%s = %" PRIu64 "us", key, (ns + 500) / 1000);

    ub_text_duration(was_ns, was, sizeof(was));
    fprintf(out, "%*s # the loop's lag with these rules; it was %s\n", n < RULE_COLUMN ? RULE_COLUMN - n : 0, "", was);
}

/* What whoever follows it is told beside the lag that there was then. */
static void put_predicted(const struct writer *w, FILE *out, bool calls_only)
{
    const struct ub_loop *loop = ub_model_slowest_loop(w->m);
    const struct ub_loop_lag *lag = loop && !calls_only && loop->predicted_policy.known ? &loop->predicted_policy
                                    : loop                                              ? &loop->predicted
                                                                                        : NULL;

    if (!lag || !lag->known)
        return;
    fprintf(out, "\n[%s]\n", ub_policy_section_names[UB_POLICY_PREDICTED]);
    put_time(out, "p99", lag->p99_ns, loop->lag.p99_ns);
    put_time(out, "longest", lag->longest_ns, loop->lag.longest_ns);
}

static void collect(struct writer *w, bool calls_only)
{
    const json_t *line;
    const struct ub_site **sites;
    size_t i, count;

    json_array_foreach (ub_model_offload(w->m), i, line)
        add_moved(w, line);
    sites = ub_model_sites(w->m, UB_STALL_COUNTED, UB_SORT_TOTAL, &count);
    for (i = 0; i < count; i++) {
        const char *name = call_of(sites[i]);

        if (name)
            add_call(w, sites[i], name);
        else if (computes(sites[i]) && !calls_only)
            add_function(w, sites[i]);
    }
    free(sites);
}

void ub_policy_write(const struct ub_model *m, const char *name, FILE *out, bool calls_only,
                     struct ub_policy_written *ret)
{
    struct writer w = {.m = m, .told = ret};
    enum ub_policy_section section = UB_POLICY_NO_SECTION;

    *ret = (struct ub_policy_written){0};
    collect(&w, calls_only);
    if (w.count)
        qsort(w.rule, w.count, sizeof(*w.rule), by_total);
    fputs("# Written from ", out);
    ub_escape_put(out, name, 200);
    fputs(". Is it right for this program? Between the lines before and after a call that is\n"
          "# moved other callbacks run (agent/offload/README.md). Edit it, then: unblock policy --check FILE\n",
          out);
    for (uint32_t i = 0; i < w.count; i++) {
        if (w.rule[i].section != section) {
            section = w.rule[i].section;
            fprintf(out, "\n[%s]\n", ub_policy_section_names[section]);
        }
        put_rule(out, &w.rule[i]);
        ret->rules += w.rule[i].action != NULL;
        ret->comments += w.rule[i].action == NULL;
    }
    put_predicted(&w, out, calls_only);
    free(w.rule);
}
