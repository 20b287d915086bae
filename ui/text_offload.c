/*
 * What offload did, would have done, or would not do: for one stall, and for a run.
 */
#include "figures.h"
#include "policy_write.h"
#include "text_private.h"
#include "text_escape.h"
#include "text_frames.h"

#define LIVE_PINS 3 /* shown; a screen is small */

/* What a pin means, to a person. Its rule: agent/offload/README.md. */
static const struct {
    const char *reason, *words;
} pins[] = {
    {"loop", "not in a callback of a loop library that can be moved"},
    {"library", "callbacks of this loop library are not moved"},
    {"kind", "callbacks of this kind are never moved"},
    {"nested", "a loop runs inside a callback"},
    {"signal", "in a signal handler"},
    {"stack", "on a stack of the program's own making"},
    {"seccomp", "the program runs under a seccomp filter"},
    {"runtime", "an interpreter or collector in the process knows its own stacks only"},
    {"eintr", "the program wants its calls interrupted by signals"},
    {"lock", "a lock is held"},
    {"identity", "this thread has credentials, namespaces or a folder of its own"},
    {"caller", "made by an extension module or library that may keep state by thread"},
    {"import", "a module is being imported"},
    {"transaction", "a transaction of a database is open"},
    {"connection", "no thread of ours may use its connection"},
    {"gil", "made with the interpreter's lock held"},
    {"policy", "no rule of the policy moves it"},
    {"call", "this call is not on the list of those that may move"},
};

const char *ub_text_offload_reason(const char *reason)
{
    for (size_t i = 0; i < UB_ARRAY_LEN(pins); i++) {
        if (reason && strcmp(reason, pins[i].reason) == 0)
            return pins[i].words;
    }
    return reason ? reason : "not known why";
}

/* ", taken at db.c:70 in txn_begin()" */
static void put_lock(const struct ub_text_view *view, const json_t *lock)
{
    const char *function = ub_json_string(lock, "function");
    char place[256], name[1026];

    if (!lock)
        return;
    fputs(", taken", view->pen.out);
    if (*ub_text_frame_place(lock, place, sizeof(place))) {
        fputs(" at ", view->pen.out);
        ub_escape_put_path(view->pen.out, place, UB_TEXT_PLACE_COLUMNS);
    }
    if (function) {
        fputs(" in ", view->pen.out);
        ub_pen_put(&view->pen, UB_INK_FUNCTION, ub_text_function_name(function, name, sizeof(name)),
                   UB_TEXT_NAME_COLUMNS);
    }
}

/* Of a stall that nothing else says it of: "sqlite3_step " */
static void put_whole_call(const struct ub_text_view *view, const json_t *offload)
{
    const char *call = ub_json_string(offload, "call");

    if (!call)
        return;
    ub_pen_put(&view->pen, UB_INK_FUNCTION, call, UB_TEXT_NAME_COLUMNS);
    fputc(' ', view->pen.out);
}

/* No lock was seen is what is known: there are kinds that nobody sees. */
static void put_would_move(const struct ub_text_view *view, const json_t *offload)
{
    const char *executor = ub_json_string(offload, "executor");

    put_whole_call(view, offload);
    fputs("would move", view->pen.out);
    if (executor && strcmp(executor, "timer") == 0)
        fputs(" to a timer", view->pen.out);
    else if (executor && strcmp(executor, "readiness") == 0)
        fputs(" (waits for the descriptor beside the loop)", view->pen.out);
    else if (executor)
        fputs(" to a thread", view->pen.out);
    fputs(", saves ", view->pen.out);
    ub_text_put_duration(view, UB_INK_GOOD, ub_json_u64_or(offload, "saved_ns", 0));
    fputs("; no lock seen held", view->pen.out);
}

void ub_text_offload(const struct ub_text_view *view, const json_t *slow)
{
    const json_t *offload = json_object_get(slow, "offload");
    const char *state = ub_json_string(offload, "state");

    if (!state)
        return;
    ub_pen_label(&view->pen, "move");
    if (strcmp(state, "would-move") == 0) {
        put_would_move(view, offload);
    } else if (strcmp(state, "first") == 0) {
        fputs("the first from this place: it might have left the loop, and the next one will", view->pen.out);
    } else if (strcmp(state, "pinned") == 0) {
        put_whole_call(view, offload);
        fputs("pinned: ", view->pen.out);
        ub_escape_put(view->pen.out, ub_text_offload_reason(ub_json_string(offload, "reason")), UB_TEXT_LINE_COLUMNS);
        put_lock(view, json_object_get(offload, "lock"));
    } else {
        ub_escape_put(view->pen.out, state, UB_TEXT_NAME_COLUMNS);
    }
    fputc('\n', view->pen.out);
}

bool ub_text_is_dry_run(const struct ub_model *m)
{
    for (uint32_t i = 0; i < ub_model_runs(m); i++) {
        if (ub_json_is(ub_model_run(m, i)->header, "offload", "dry-run"))
            return true;
    }
    return false;
}

/* A policy's rule for it, not more: nobody has looked at what the function shares with others. */
void ub_text_proposed(const struct ub_text_view *view, const struct ub_site *site)
{
    struct ub_policy_proposal p;

    if (!ub_text_is_dry_run(view->m) || !ub_policy_propose(site, &p) || !p.action)
        return;
    ub_pen_label(&view->pen, "move");
    if (p.yields)
        fputs("would yield: ", view->pen.out);
    else
        fprintf(view->pen.out, "would go to a %s: ", p.action);
    ub_escape_put(view->pen.out, p.name, UB_TEXT_NAME_COLUMNS);
    fprintf(view->pen.out, " = %s, saves ", p.action);
    ub_text_put_duration(view, UB_INK_GOOD, p.saved_ns);
    fputs(" (a rule that unblock policy writes)\n", view->pen.out);
}

/* ---- a run --------------------------------------------------------------------------------- */

struct sums {
    uint64_t sites, moves, saved_ns, pinned, pinned_ns;
    json_t *reasons; /* owned: reason -> count */
};

static void sum_up(const struct ub_text_view *view, struct sums *s)
{
    const json_t *line, *n;
    const char *reason;
    size_t i;

    *s = (struct sums){.reasons = json_object()};
    json_array_foreach (ub_model_offload(view->m), i, line) {
        uint64_t moves = ub_json_u64_or(line, "would_move", 0);

        s->sites += moves > 0;
        s->moves = ub_add_saturated(s->moves, moves);
        s->saved_ns = ub_add_saturated(s->saved_ns, ub_json_u64_or(line, "saved_ns", 0));
        s->pinned_ns = ub_add_saturated(s->pinned_ns, ub_json_u64_or(line, "pinned_ns", 0));
        json_object_foreach (json_object_get(line, "pinned"), reason, n) {
            uint64_t count = ub_json_u64_or(json_object_get(line, "pinned"), reason, 0);

            s->pinned = ub_add_saturated(s->pinned, count);
            json_object_set_new(s->reasons, reason,
                                json_integer((json_int_t)(ub_json_u64_or(s->reasons, reason, 0) + count)));
        }
    }
}

static void put_pins(const struct ub_text_view *view, const struct sums *s)
{
    const char *reason, *comma = "";
    const json_t *n;

    if (s->pinned == 0)
        return;
    fprintf(view->pen.out, "; %" PRIu64 " pinned (", s->pinned);
    json_object_foreach (s->reasons, reason, n) {
        fputs(comma, view->pen.out);
        ub_escape_put(view->pen.out, reason, UB_TEXT_NAME_COLUMNS);
        fprintf(view->pen.out, " %" PRIu64, ub_json_u64_or(s->reasons, reason, 0));
        comma = ", ";
    }
    fputs("), ", view->pen.out);
    ub_text_put_duration(view, UB_INK_STALL, s->pinned_ns);
}

/* A recording may come from a stranger, and have none there. */
static void put_string(const struct ub_text_view *view, const json_t *record, const char *key)
{
    const char *s = ub_json_string(record, key);

    ub_escape_put(view->pen.out, s ? s : "?", UB_TEXT_NAME_COLUMNS);
}

static void put_name(const struct ub_text_view *view, const json_t *place)
{
    const char *function = ub_json_string(place, "function");
    char name[1026], text[256];

    ub_pen_put(&view->pen, UB_INK_FUNCTION, function ? ub_text_function_name(function, name, sizeof(name)) : "?",
               UB_TEXT_NAME_COLUMNS);
    if (*ub_text_frame_place(place, text, sizeof(text))) {
        fputs(" (", view->pen.out);
        ub_escape_put_path(view->pen.out, text, UB_TEXT_PLACE_COLUMNS);
        fputc(')', view->pen.out);
    }
}

/* "    on_tick() (app.c:30), timer: 9; on_read() (app.c:44), io: 2; and 1 other" */
static void put_meanwhile(const struct ub_text_view *view, const json_t *line, const char *prefix)
{
    const json_t *list = json_object_get(line, "meanwhile"), *one;
    uint64_t others = ub_json_u64_or(line, "meanwhile_others", 0);
    const char *comma = "";
    size_t i;

    if (json_array_size(list) == 0)
        return;
    fprintf(view->pen.out, "%s    ", prefix);
    json_array_foreach (list, i, one) {
        uint64_t count = ub_json_u64_or(one, "count", 0);

        if (i >= UB_TEXT_MEANWHILE) {
            others += count;
            continue;
        }
        fputs(comma, view->pen.out);
        put_name(view, one);
        fputs(", ", view->pen.out);
        put_string(view, one, "kind");
        fprintf(view->pen.out, ": %" PRIu64, count);
        comma = "; ";
    }
    if (others) {
        fputs("; and ", view->pen.out);
        ub_text_count(view, UB_INK_PLAIN, others, "other", "others");
    }
    fputc('\n', view->pen.out);
}

/* "  nanosleep in on_timer() (app.c:12): 3 moved, 450 ms, the longest 150 ms; 1 first, 151 ms" */
static void put_site(const struct ub_text_view *view, const json_t *line, const char *prefix)
{
    uint64_t first = ub_json_u64_or(line, "first", 0), beside = ub_json_u64_or(line, "beside", 0);

    fprintf(view->pen.out, "%s  ", prefix);
    put_string(view, line, "call");
    fputs(" in ", view->pen.out);
    put_name(view, json_object_get(line, "caller"));
    fprintf(view->pen.out, ": %" PRIu64 " moved, ", ub_json_u64_or(line, "moved", 0));
    ub_text_put_duration(view, UB_INK_GOOD, ub_json_u64_or(line, "saved_ns", 0));
    fputs(", the longest ", view->pen.out);
    ub_text_put_duration(view, UB_INK_PLAIN, ub_json_u64_or(line, "longest_ns", 0));
    if (beside) {
        fputs("; meanwhile ", view->pen.out);
        ub_text_count(view, UB_INK_PLAIN, beside, "callback", "callbacks");
        fprintf(view->pen.out, " ran, %" PRIu64 " at most", ub_json_u64_or(line, "beside_max", 0));
    }
    if (first) {
        fprintf(view->pen.out, "; %" PRIu64 " before that, ", first);
        ub_text_put_duration(view, UB_INK_STALL, ub_json_u64_or(line, "first_ns", 0));
    }
    fputc('\n', view->pen.out);
    put_meanwhile(view, line, prefix);
}

static void put_lag_pair(const struct ub_text_view *view, const struct ub_loop_lag *lag, enum ub_ink ink)
{
    fputs("p99 ", view->pen.out);
    ub_text_put_duration(view, ink, lag->p99_ns);
    fputs(", longest ", view->pen.out);
    ub_text_put_duration(view, ink, lag->longest_ns);
}

/*
 * "  the loop's lag: p99 97 ms, longest 103 ms; about p99 0.2 ms, longest 2.1 ms if they move"
 * "  the loop's lag: p99 0.2 ms, longest 14 ms; predicted p99 0.2 ms, longest 2.1 ms (server.jsonl)"
 */
static void put_lag(const struct ub_text_view *view, const struct ub_run *run, const char *prefix)
{
    const struct ub_loop *loop = ub_model_slowest_loop(view->m);
    const json_t *before = json_object_get(run->header, "predicted");
    struct ub_loop_lag predicted = ub_model_lag(before);
    const char *from = ub_json_string(before, "from");

    if (!loop)
        return;
    fprintf(view->pen.out, "%s  the loop's lag: ", prefix);
    put_lag_pair(view, &loop->lag, loop->predicted.known || loop->predicted_policy.known ? UB_INK_STALL : UB_INK_PLAIN);
    if (loop->predicted.known) {
        fputs("; about ", view->pen.out);
        put_lag_pair(view, &loop->predicted, UB_INK_GOOD);
        fputs(" if they move", view->pen.out);
    }
    if (loop->predicted_policy.known) {
        fputs("; about ", view->pen.out);
        put_lag_pair(view, &loop->predicted_policy, UB_INK_GOOD);
        fputs(" with the rules for functions that unblock policy writes", view->pen.out);
    } else if (!loop->predicted.known && predicted.known) {
        fputs("; predicted ", view->pen.out);
        put_lag_pair(view, &predicted, UB_INK_PLAIN);
        fputs(" (", view->pen.out);
        ub_escape_put_path(view->pen.out, from ? from : "?", UB_TEXT_PLACE_COLUMNS);
        fputc(')', view->pen.out);
    }
    fputc('\n', view->pen.out);
}

/* "3 threads, busy 1.2 s, 2 calls queued at most (1 now); " */
static void put_threads(const struct ub_text_view *view, const json_t *o, uint64_t threads)
{
    uint64_t queued, busy;

    ub_text_count(view, UB_INK_PLAIN, threads, "thread", "threads");
    if (ub_json_u64(o, "busy_ns", &busy)) {
        fputs(", busy ", view->pen.out);
        ub_text_put_duration(view, UB_INK_PLAIN, busy);
    }
    fputs(", ", view->pen.out);
    ub_text_count(view, UB_INK_PLAIN, ub_json_u64_or(o, "queued_max", 0), "call", "calls");
    fputs(" queued at most", view->pen.out);
    if (ub_json_u64(o, "queued", &queued))
        fprintf(view->pen.out, " (%" PRIu64 " now)", queued);
    fputs("; ", view->pen.out);
}

/* "  executor: 3 threads ...; 1.2 ms of waiting for a thread or the loop; stacks up to 14 kB; 9 callbacks ran
 * meanwhile" */
static void put_executor(const struct ub_text_view *view, const json_t *o, const char *prefix)
{
    uint64_t threads = ub_json_u64_or(o, "threads", 0), stack = ub_json_u64_or(o, "stack_bytes", 0);
    uint64_t beside = ub_json_u64_or(o, "beside", 0), away = ub_json_u64_or(o, "away", 0);

    if (threads == 0 && stack == 0 && beside == 0 && away == 0)
        return;
    fprintf(view->pen.out, "%s  executor: ", prefix);
    if (ub_json_u64(o, "away", &away))
        fprintf(view->pen.out, "%" PRIu64 " away now; ", away);
    if (threads > 0)
        put_threads(view, o, threads);
    ub_text_put_duration(view, UB_INK_PLAIN, ub_json_u64_or(o, "wait_ns", 0));
    fputs(" of waiting for a thread or the loop", view->pen.out);
    if (stack > 0)
        fprintf(view->pen.out, "; stacks up to %" PRIu64 " kB", (stack + 1023) / 1024);
    if (beside > 0) {
        fputs("; ", view->pen.out);
        ub_text_count(view, UB_INK_PLAIN, beside, "callback", "callbacks");
        fputs(" ran meanwhile", view->pen.out);
    }
    fputc('\n', view->pen.out);
}

/* While it goes on: "  pinned: 3 (lock, taken at db.c:70 txn_begin()) 600 ms; 1 (kind) 20 ms; and 2 kinds more" */
static void put_live_pins(const struct ub_text_view *view)
{
    json_t *kept = ub_figures_pins(view->m);
    const json_t *pin;
    size_t i;

    json_array_foreach (kept, i, pin) {
        const char *lock = ub_json_string(pin, "lock");

        if (i == LIVE_PINS)
            break;
        fprintf(view->pen.out, i == 0 ? "  pinned: %" PRIu64 " (" : "; %" PRIu64 " (", ub_json_u64_or(pin, "count", 0));
        put_string(view, pin, "reason");
        if (lock && *lock) {
            fputs(", taken at ", view->pen.out);
            ub_escape_put(view->pen.out, lock, UB_TEXT_NAME_COLUMNS);
        }
        fputs(") ", view->pen.out);
        ub_text_put_duration(view, UB_INK_STALL, ub_json_u64_or(pin, "total_ns", 0));
    }
    if (json_array_size(kept) > LIVE_PINS)
        fprintf(view->pen.out, "; and %zu more", json_array_size(kept) - LIVE_PINS);
    if (json_array_size(kept) > 0)
        fputc('\n', view->pen.out);
    json_decref(kept);
}

bool ub_text_offload_live(const struct ub_text_view *view)
{
    const struct ub_run *run = ub_model_current_run(view->m);
    const char *mode = run ? ub_json_string(run->header, "offload") : NULL;
    const json_t *now;
    struct sums s;

    if (!mode || strcmp(mode, "off") == 0)
        return false;
    now = json_object_get(run->end, "offload");
    now = now ? now : run->executor;
    sum_up(view, &s);
    fputs("offload ", view->pen.out);
    ub_escape_put(view->pen.out, mode, UB_TEXT_NAME_COLUMNS);
    fputs(": ", view->pen.out);
    if (strcmp(mode, "dry-run") == 0) {
        ub_text_count(view, UB_INK_PLAIN, s.moves, "stall", "stalls");
        fputs(" would have moved", view->pen.out);
    } else {
        ub_text_count(view, UB_INK_PLAIN, ub_json_u64_or(now, "moved", 0), "call", "calls");
        fputs(" moved, ", view->pen.out);
        ub_text_put_duration(view, UB_INK_GOOD, ub_json_u64_or(now, "saved_ns", 0));
    }
    put_pins(view, &s);
    fputc('\n', view->pen.out);
    put_executor(view, now, "");
    put_live_pins(view);
    ub_text_python_live(view);
    json_decref(s.reasons);
    return true;
}

/* "offload eager: 12 calls moved, 3.2 s off the loop; 1 pinned (lock 1), 600 ms", and the places. */
static void put_moved(const struct ub_text_view *view, const struct ub_run *run, const char *mode, const char *prefix)
{
    const json_t *line, *end = json_object_get(run->end, "offload");
    struct sums s;
    size_t i;

    sum_up(view, &s);
    fprintf(view->pen.out, "%soffload ", prefix);
    ub_escape_put(view->pen.out, mode, UB_TEXT_NAME_COLUMNS);
    fputs(": ", view->pen.out);
    ub_text_count(view, UB_INK_PLAIN, ub_json_u64_or(end, "moved", 0), "call", "calls");
    fputs(" moved, ", view->pen.out);
    ub_text_put_duration(view, UB_INK_GOOD, ub_json_u64_or(end, "saved_ns", 0));
    fputs(" off the loop", view->pen.out);
    put_pins(view, &s);
    fputc('\n', view->pen.out);
    json_array_foreach (ub_model_offload(view->m), i, line) {
        if (json_object_get(line, "first"))
            put_site(view, line, prefix);
    }
    put_executor(view, end, prefix);
    put_lag(view, run, prefix);
    json_decref(s.reasons);
}

static bool predicted_policy(const struct ub_model *m)
{
    const struct ub_loop *loop = ub_model_slowest_loop(m);

    return loop && loop->predicted_policy.known;
}

/* One line: "dry run: 3 stalls would have moved from 2 call sites, 900 ms off the loop; 2 pinned (lock 2), 600 ms" */
bool ub_text_offload_run(const struct ub_text_view *view, const char *prefix)
{
    const struct ub_run *run = ub_model_current_run(view->m);
    const char *mode = run ? ub_json_string(run->header, "offload") : NULL;
    struct sums s;

    if (mode && strcmp(mode, "off") != 0 && strcmp(mode, "dry-run") != 0) {
        put_moved(view, run, mode, prefix);
        return true;
    }
    if (!mode || strcmp(mode, "dry-run") != 0)
        return false;
    sum_up(view, &s);
    fprintf(view->pen.out, "%soffload dry run: ", prefix);
    ub_text_count(view, UB_INK_PLAIN, s.moves, "stall", "stalls");
    fputs(" would have moved", view->pen.out);
    if (s.moves > 0) {
        fputs(" from ", view->pen.out);
        ub_text_count(view, UB_INK_PLAIN, s.sites, "call site", "call sites");
        fputs(", ", view->pen.out);
        ub_text_put_duration(view, UB_INK_GOOD, s.saved_ns);
        fputs(" off the loop", view->pen.out);
    }
    put_pins(view, &s);
    fputc('\n', view->pen.out);
    if (s.moves > 0 || predicted_policy(view->m))
        put_lag(view, run, prefix);
    json_decref(s.reasons);
    return true;
}
