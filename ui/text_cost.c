/*
 * Who paid for a stall: what waited meanwhile, and whether the program's own
 * executor was the bottleneck.
 */
#include "text_private.h"
#include "text_escape.h"

#define THEN_READ_SHOWN 4u

static const char *ordinal(uint64_t n)
{
    if (n % 100 >= 11 && n % 100 <= 13)
        return "th";
    return n % 10 == 1 ? "st" : n % 10 == 2 ? "nd" : n % 10 == 3 ? "rd" : "th";
}

static void put_number(const struct ub_text_view *view, const char *before, uint64_t count, const char *thing)
{
    fprintf(view->pen.out, "%s%" PRIu64 " %s%s", before, count, thing, count == 1 ? "" : "s");
}

/* "10.0.0.5:41034, listening 0.0.0.0:80": whom the loop then read from; what else it served has no name. */
static void put_then_read(const struct ub_text_view *view, const json_t *sockets)
{
    const json_t *socket;
    size_t i;

    json_array_foreach (sockets, i, socket) {
        const char *name = json_string_value(socket);

        fputs(i ? ", " : "; then read: ", view->pen.out);
        if (name && strncmp(name, "socket ", 7) == 0)
            name += 7;
        ub_escape_put(view->pen.out, name ? name : "?", UB_TEXT_NAME_COLUMNS);
        if (i + 1 == THEN_READ_SHOWN && json_array_size(sockets) > i + 1) {
            fputs(" ...", view->pen.out);
            break;
        }
    }
}

/* "7 descriptors were ready in this turn; 3 descriptors, 31 timers waited, up to 309 ms". False: nothing is known. */
static bool put_waiting(const struct ub_text_view *view, const json_t *slow)
{
    const json_t *waiting = json_object_get(slow, "waiting");
    uint64_t ready = ub_json_u64_or(waiting, "ready", 0), timers = ub_json_u64_or(waiting, "timers", 0);
    uint64_t tasks = ub_json_u64_or(waiting, "tasks", 0), later = ub_json_u64_or(waiting, "became_ready", 0), delay;
    const char *comma = "";

    if (ready > 1) { /* one of them is the one that was being served */
        put_number(view, comma, ready, "descriptor");
        fputs(" were ready in this turn", view->pen.out);
        comma = "; ";
    }
    if (later > 0) {
        put_number(view, comma, later, "descriptor");
        comma = ", ";
    }
    if (tasks > 0) {
        put_number(view, comma, tasks, "task");
        comma = ", ";
    }
    if (timers > 0)
        put_number(view, comma, timers, "timer");
    if (later > 0 || tasks > 0 || timers > 0) {
        fputs(" waited", view->pen.out);
        comma = "; ";
    }
    if (ub_json_u64(waiting, "delay_ns", &delay)) {
        fprintf(view->pen.out, "%sup to ", *comma ? ", " : "");
        ub_text_put_duration(view, UB_INK_PLAIN, delay);
        comma = "; ";
    }
    if (later > 0)
        put_then_read(view, json_object_get(waiting, "then_read"));
    return *comma != 0;
}

static bool has_waiting(const json_t *slow)
{
    const json_t *waiting = json_object_get(slow, "waiting");

    return ub_json_u64_or(waiting, "ready", 0) > 1 || ub_json_u64_or(waiting, "timers", 0) > 0 ||
           ub_json_u64_or(waiting, "became_ready", 0) > 0 || ub_json_u64_or(waiting, "tasks", 0) > 0;
}

void ub_text_cost(const struct ub_text_view *view, const json_t *slow, const struct ub_site *site)
{
    bool again = site && site->durations.count > 1;

    if (!has_waiting(slow) && !again)
        return;
    ub_pen_label(&view->pen, "cost");
    if (has_waiting(slow) && put_waiting(view, slow) && again)
        fputs("; ", view->pen.out);
    if (again) {
        fprintf(view->pen.out, "%" PRIu64 "%s time, ", site->durations.count, ordinal(site->durations.count));
        ub_text_put_duration(view, UB_INK_PLAIN, site->durations.total_ns);
        fputs(" in all", view->pen.out);
    }
    fputc('\n', view->pen.out);
}

void ub_text_cost_of_longest(const struct ub_text_view *view, const struct ub_site *site)
{
    if (!has_waiting(site->worst))
        return;
    ub_pen_label(&view->pen, "cost");
    put_waiting(view, site->worst);
    fputs(site->durations.count > 1 ? "; the longest\n" : "\n", view->pen.out);
}

/* "libuv 4/4 busy, 12 queued, waited 900 ms" */
void ub_text_pool(const struct ub_text_view *view, const json_t *slow)
{
    const json_t *pool = json_object_get(slow, "pool");
    const char *kind = ub_json_string(pool, "kind");
    uint64_t threads, busy, queued, wait;

    if (!kind)
        return;
    ub_pen_label(&view->pen, "pool");
    ub_escape_put(view->pen.out, kind, UB_TEXT_NAME_COLUMNS);
    if (ub_json_u64(pool, "busy", &busy) &&
        (ub_json_u64(pool, "threads", &threads) || ub_json_u64(pool, "workers", &threads)))
        fprintf(view->pen.out, " %" PRIu64 "/%" PRIu64 " busy", busy, threads);
    else if (ub_json_u64(pool, "workers", &threads))
        fprintf(view->pen.out, " of %" PRIu64 " worker%s", threads, threads == 1 ? "" : "s");
    if (ub_json_u64(pool, "queued", &queued))
        fprintf(view->pen.out, ", %" PRIu64 " queued", queued);
    if (ub_json_u64(pool, "wait_ns", &wait)) {
        fputs(", waited ", view->pen.out);
        ub_text_put_duration(view, UB_INK_PLAIN, wait);
    }
    if (strcmp(kind, "libuv") == 0)
        fputs(": UV_THREADPOOL_SIZE sets its size", view->pen.out);
    else if (strstr(kind, "PoolExecutor"))
        fputs(": max_workers sets its size", view->pen.out);
    fputc('\n', view->pen.out);
}

/* The wait that `permille` of 1000 did not exceed; the buckets know it from above only. */
static uint64_t wait_of(const json_t *pool, uint64_t waited, uint32_t permille)
{
    uint64_t count = 0, max = ub_json_u64_or(pool, "max_wait_ns", 0);
    const json_t *bucket;
    size_t i;

    json_array_foreach (json_object_get(pool, "waits"), i, bucket) {
        const json_t *upper = json_array_get(bucket, 0), *n = json_array_get(bucket, 1);

        if (!json_is_integer(upper) || !json_is_integer(n) || json_integer_value(upper) < 0 ||
            json_integer_value(n) < 0)
            continue;
        count = ub_add_saturated(count, (uint64_t)json_integer_value(n));
        if (count >= waited / 1000 * permille + waited % 1000 * permille / 1000)
            return (uint64_t)json_integer_value(upper) < max ? (uint64_t)json_integer_value(upper) : max;
    }
    return max;
}

static void put_pool(const struct ub_text_view *view, const json_t *pool, uint64_t waited)
{
    uint64_t threads, pieces, queued;
    FILE *out = view->pen.out;
    const char *program = ub_json_string(pool, "program");

    ub_escape_put(out, program ? program : "?", UB_TEXT_NAME_COLUMNS);
    fprintf(out, " (%" PRIu64 "): ", ub_json_u64_or(pool, "pid", 0));
    ub_escape_put(out, ub_json_string(pool, "kind"), UB_TEXT_NAME_COLUMNS);
    fputs("'s pool", out);
    if (ub_json_u64(pool, "threads", &threads))
        fprintf(out, " of %" PRIu64 " threads", threads);
    fprintf(out, ": %" PRIu64, waited);
    if (ub_json_u64(pool, "pieces", &pieces))
        fprintf(out, " of %" PRIu64, pieces);
    fputs(" pieces of work waited for a thread, p50 ", out);
    ub_text_put_duration(view, UB_INK_PLAIN, wait_of(pool, waited, 500));
    fputs(", p99 ", out);
    ub_text_put_duration(view, UB_INK_PLAIN, wait_of(pool, waited, 990));
    fputs(", longest ", out);
    ub_text_put_duration(view, UB_INK_PLAIN, ub_json_u64_or(pool, "max_wait_ns", 0));
    if (ub_json_u64(pool, "queued_max", &queued))
        fprintf(out, ", up to %" PRIu64 " at once", queued);
    if (ub_json_is(pool, "kind", "libuv"))
        fputs(": UV_THREADPOOL_SIZE", out);
    fputc('\n', out);
}

void ub_text_pools(const struct ub_text_view *view)
{
    bool any = false;
    const char *key;
    json_t *pool;

    json_object_foreach ((json_t *)(uintptr_t)ub_model_pools(view->m), key, pool) {
        uint64_t waited = ub_json_u64_or(pool, "waited", 0);

        if (waited == 0)
            continue;
        put_pool(view, pool, waited);
        any = true;
    }
    if (any)
        fputc('\n', view->pen.out);
}
