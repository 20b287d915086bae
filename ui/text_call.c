#include "text_private.h"
#include "text_escape.h"
#include "text_frames.h"
#include "wall_time.h"

#include <stdlib.h>

void ub_text_view_init(struct ub_text_view *view, FILE *out, const struct ub_model *m, bool colour)
{
    const struct ub_run *run = ub_model_current_run(m);
    const char *started = run ? ub_json_string(run->header, "started") : NULL;
    int64_t ns;

    *view = (struct ub_text_view){.pen = {.out = out, .colour = colour}, .m = m};
    if (started && ub_wall_time_parse(started, &ns) == 0 && ns > 0)
        view->not_after = (time_t)(ns / 1000000000);
}

void ub_text_put_duration(const struct ub_text_view *view, enum ub_ink ink, uint64_t ns)
{
    char buf[UB_TEXT_DURATION_MAX];

    ub_pen_printf(&view->pen, ink, "%s", ub_text_duration(ns, buf, sizeof(buf)));
}

void ub_text_count(const struct ub_text_view *view, enum ub_ink ink, uint64_t count, const char *one, const char *many)
{
    ub_pen_printf(&view->pen, ink, "%" PRIu64 " %s", count, count == 1 ? one : many);
}

const char *ub_text_function_name(const char *function, char *buf, size_t size)
{
    char plain[1024];

    ub_text_frame_plain(function, plain, sizeof(plain));
    snprintf(buf, size, "%s%s", plain, *plain ? "()" : "");
    return buf;
}

/* ---- the call -------------------------------------------------------- */

/* The descriptor is the first of the arguments: its number is followed by what it is. */
static const char *put_fd(const struct ub_text_view *view, const json_t *call, const char *args)
{
    const char *path = ub_json_string(call, "fd_path");
    char number[24];
    uint64_t fd;
    size_t len;

    if (!path || !ub_json_u64(call, "fd", &fd))
        return args;
    len = (size_t)snprintf(number, sizeof(number), "%" PRIu64, fd);
    if (*args && (strncmp(args, number, len) != 0 || (args[len] && args[len] != ',')))
        return args;
    fprintf(view->pen.out, "%s = ", number);
    ub_escape_put_path(view->pen.out, path, UB_TEXT_PATH_COLUMNS);
    return *args ? args + len : args;
}

/* libc's own wrappers of the system call of nearly the same name say nothing new. */
static bool says_more(const char *via, const char *name)
{
    return via && !strstr(via, name) && !strstr(name, via);
}

static void put_name(const struct ub_text_view *view, const json_t *call)
{
    const char *name = ub_json_string(call, "name");

    ub_escape_put(view->pen.out, name ? name : "system call", UB_TEXT_NAME_COLUMNS);
}

static void put_via(const struct ub_text_view *view, const json_t *call)
{
    const char *name = ub_json_string(call, "name"), *via = ub_json_string(call, "via");

    if (!name || !says_more(via, name))
        return;
    fputs(" from ", view->pen.out);
    ub_escape_put(view->pen.out, via, UB_TEXT_NAME_COLUMNS);
}

void ub_text_call(const struct ub_text_view *view, const json_t *call)
{
    const char *args = ub_json_string(call, "args");

    ub_pen_take(&view->pen, UB_INK_CAUSE);
    put_name(view, call);
    fputc('(', view->pen.out);
    args = put_fd(view, call, args ? args : "");
    ub_escape_put(view->pen.out, args, UB_TEXT_LINE_COLUMNS);
    fputc(')', view->pen.out);
    put_via(view, call);
    ub_pen_drop(&view->pen);
}

/* ---- what, in a few words -------------------------------------------- */

static const char *const cause_words[UB_CAUSES] = {
    [UB_CAUSE_UNKNOWN] = "not known what",
    [UB_CAUSE_CALL] = "a blocking call",
    [UB_CAUSE_CPU] = "cpu",
    [UB_CAUSE_LOCK] = "a lock",
    [UB_CAUSE_RUNQUEUE] = "run queue",
    [UB_CAUSE_PAGEFAULT] = "page fault",
    [UB_CAUSE_GIL] = "GIL",
    [UB_CAUSE_GC] = "garbage collection",
    [UB_CAUSE_IMPORT] = "import",
    [UB_CAUSE_STOPPED] = "stopped",
};

/* What follows "in"; "" when all that could be named is a guess inside somebody else's code. */
static const char *innermost_function(const json_t *slow, const struct ub_chain *chain, char *buf, size_t size)
{
    const char *callback = ub_json_string(json_object_get(slow, "callback"), "function");
    const json_t *frame = chain->count > 0 ? chain->link[0].frame : NULL;
    const char *function = frame ? ub_json_string(frame, "function") : callback;
    bool guessed = ub_json_true(frame, "nearest");
    char plain[1024];

    if (chain->foreign && (guessed || !function))
        function = "";
    if (function)
        snprintf(buf, size, "%s%s", guessed && *function ? "near " : "",
                 ub_text_frame_plain(function, plain, sizeof(plain)));
    else if (frame)
        ub_text_frame_place(frame, buf, size);
    else
        *buf = 0;
    return buf;
}

void ub_text_what(const struct ub_text_view *view, const json_t *slow, const struct ub_chain *chain,
                  const struct ub_advice *advice, bool args)
{
    enum ub_cause cause = ub_model_cause_parse(ub_json_string(slow, "cause"));
    const json_t *call = json_object_get(slow, "call");
    bool blocked = cause == UB_CAUSE_CALL || cause == UB_CAUSE_LOCK;
    char function[1024];

    if (advice && advice->title)
        fprintf(view->pen.out, "%s: ", advice->title);
    if (blocked && ub_json_string(call, "name")) {
        if (args) {
            ub_text_call(view, call);
        } else {
            put_name(view, call);
            put_via(view, call);
        }
    } else {
        fputs(cause_words[cause], view->pen.out);
    }
    if (!*innermost_function(slow, chain, function, sizeof(function)))
        return;
    fputs(" in ", view->pen.out);
    ub_pen_put(&view->pen, UB_INK_FUNCTION, function, UB_TEXT_NAME_COLUMNS);
}

/* ---- why ------------------------------------------------------------- */

struct share {
    const char *key, *words;
    bool hidden; /* the sentence has told it already */
};

/* The kernel's accounts hold for a part of the stall only. */
static bool is_partial(const json_t *slow, uint64_t *ret_window_ns)
{
    uint64_t duration = ub_json_u64_or(slow, "duration_ns", 0);

    *ret_window_ns = ub_json_u64_or(slow, "accounted_ns", duration);
    return *ret_window_ns < duration - duration / 10;
}

/* ", cpu 40 ms, run queue 11 ms" with `lead` in the place of the first comma. Shares below 0.5 % are left out. */
static void put_shares(const struct ub_text_view *view, const json_t *slow, const struct share share[3],
                       const char *lead)
{
    uint64_t window, ns;
    bool partial = is_partial(slow, &window), any = false;
    uint32_t i;

    for (i = 0; i < 3; i++) {
        if (share[i].hidden || !ub_json_u64(slow, share[i].key, &ns) || ns == 0 || ns < window / 200)
            continue;
        fprintf(view->pen.out, "%s%s ", any ? ", " : lead, share[i].words);
        ub_text_put_duration(view, UB_INK_PLAIN, ns);
        any = true;
    }
    if (partial && any) {
        fputs(" (of the ", view->pen.out);
        ub_text_put_duration(view, UB_INK_PLAIN, window);
        fputs(" accounted for)", view->pen.out);
    }
}

static void why_call(const struct ub_text_view *view, const json_t *slow, const char *before)
{
    const json_t *call = json_object_get(slow, "call");
    uint64_t ns, count = ub_json_u64_or(call, "count", 1);
    bool timed = ub_json_u64(call, "duration_ns", &ns);
    const struct share share[] = {
        {"blocked_ns", "blocked", timed}, {"cpu_ns", "cpu", false}, {"runqueue_ns", "run queue", false}};

    fputs(before, view->pen.out);
    if (ub_json_string(call, "name"))
        ub_text_call(view, call);
    else
        fputs("a blocking call, not known which", view->pen.out);
    if (count > 1)
        fprintf(view->pen.out, " %" PRIu64 " times", count);
    if (timed) {
        fputs(count > 1 ? ", " : " ", view->pen.out);
        ub_text_put_duration(view, UB_INK_PLAIN, ns);
    }
    put_shares(view, slow, share, timed ? ", " : ": ");
}

static const struct share time_shares[] = {
    {"cpu_ns", "cpu", false}, {"runqueue_ns", "run queue", false}, {"blocked_ns", "blocked", false}};

static const struct share wait_shares[] = {
    {"runqueue_ns", "run queue", false}, {"cpu_ns", "cpu", false}, {"blocked_ns", "blocked", false}};

/* What the words name comes first. */
static void why_time(const struct ub_text_view *view, const json_t *slow, const char *words)
{
    bool waited = ub_json_is(slow, "cause", "runqueue");

    ub_pen_printf(&view->pen, UB_INK_CAUSE, "%s", words);
    put_shares(view, slow, waited ? wait_shares : time_shares, ": ");
}

/* "cpu 1.83 s" needs no further words. */
static void why_cpu(const struct ub_text_view *view, const json_t *slow)
{
    uint64_t window;

    is_partial(slow, &window);
    if (ub_json_u64_or(slow, "cpu_ns", 0) < window / 100 + 1)
        why_time(view, slow, "ran on the CPU");
    else
        put_shares(view, slow, time_shares, "");
}

/* "; held by thread worker (tid 43) in crunch() jobs.py:12" */
static void put_holder(const struct ub_text_view *view, const json_t *holder)
{
    const char *thread = ub_json_string(holder, "thread"), *function = ub_json_string(holder, "function");
    char place[256], name[1026];

    fputs("; held by thread ", view->pen.out);
    if (thread) {
        ub_escape_put(view->pen.out, thread, UB_TEXT_NAME_COLUMNS);
        fputc(' ', view->pen.out);
    }
    fprintf(view->pen.out, "(tid %" PRIu64 ")", ub_json_u64_or(holder, "tid", 0));
    if (!function)
        return;
    fputs(" in ", view->pen.out);
    ub_pen_put(&view->pen, UB_INK_FUNCTION, ub_text_function_name(function, name, sizeof(name)), UB_TEXT_NAME_COLUMNS);
    if (!*ub_text_frame_place(holder, place, sizeof(place)))
        return;
    fputc(' ', view->pen.out);
    ub_escape_put_path(view->pen.out, ub_text_frame_place(holder, place, sizeof(place)), UB_TEXT_PLACE_COLUMNS);
}

/* "; redis-server (pid 42) had the CPU for 31 ms of it" */
static void put_neighbour(const struct ub_text_view *view, const json_t *who)
{
    const char *thread = ub_json_string(who, "thread");
    uint64_t pid, ns = ub_json_u64_or(who, "waited_ns", 0);

    if (!thread || ns == 0)
        return;
    fputs("; ", view->pen.out);
    ub_escape_put(view->pen.out, thread, UB_TEXT_NAME_COLUMNS);
    if (ub_json_u64(who, "pid", &pid))
        fprintf(view->pen.out, " (pid %" PRIu64 ")", pid);
    fputs(" had the CPU for ", view->pen.out);
    ub_text_put_duration(view, UB_INK_PLAIN, ns);
    fputs(" of it", view->pen.out);
}

static void put_gil(const struct ub_text_view *view, const json_t *slow)
{
    const json_t *gil = json_object_get(slow, "gil"), *holder = json_object_get(gil, "holder");
    uint64_t held, released;
    bool known = (ub_json_u64(gil, "held_ns", &held) && ub_json_u64(gil, "released_ns", &released)) ||
                 (ub_json_u64(gil, "held", &held) && ub_json_u64(gil, "released", &released));

    if (ub_json_is(slow, "cause", "gil")) {
        if (holder)
            put_holder(view, holder);
    } else if (known && held + released > 0) {
        fputs(released > held ? "; GIL released: a thread helps" : "; GIL held: a thread does not help", view->pen.out);
    }
}

void ub_text_why(const struct ub_text_view *view, const json_t *slow)
{
    switch (ub_model_cause_parse(ub_json_string(slow, "cause"))) {
    case UB_CAUSE_CALL:
        why_call(view, slow, "");
        break;
    case UB_CAUSE_LOCK:
        why_call(view, slow, "waits for a lock: ");
        if (json_object_get(json_object_get(slow, "call"), "holder"))
            put_holder(view, json_object_get(json_object_get(slow, "call"), "holder"));
        break;
    case UB_CAUSE_CPU:
        why_cpu(view, slow);
        break;
    case UB_CAUSE_RUNQUEUE:
        why_time(view, slow, "wanted to run and got no CPU");
        put_neighbour(view, json_object_get(slow, "neighbour"));
        break;
    case UB_CAUSE_PAGEFAULT:
        why_time(view, slow, "page fault, outside any system call");
        break;
    case UB_CAUSE_GIL:
        why_time(view, slow, "waited for Python's GIL");
        break;
    case UB_CAUSE_GC:
        why_time(view, slow, "garbage collection");
        break;
    case UB_CAUSE_IMPORT:
        why_time(view, slow, "import of a module");
        break;
    case UB_CAUSE_STOPPED:
        fputs("stopped: by a signal, a debugger, or the machine slept; not the program's doing", view->pen.out);
        break;
    case UB_CAUSE_UNKNOWN:
    case UB_CAUSES:
        why_time(view, slow, "not known: it was not caught in the act");
        break;
    }
    put_gil(view, slow);
}
