/*
 * The recording's `pool` lines, and the warning when work waited in a program's
 * own pool for longer than the threshold: no loop is blocked then, but what the
 * loop hands in is late all the same.
 */
#include "explain_impl.h"

#include <stdio.h>

static json_t *waits_json(const struct ub_uv_pool *p)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < UB_UV_POOL_BUCKETS; i++) {
        if (p->histogram[i])
            json_array_append_new(list, json_pack("[I, I]", (json_int_t)ub_ticks_span_to_ns(ub_uv_pool_upper(i)),
                                                  (json_int_t)p->histogram[i]));
    }
    return list;
}

static void warn_once(struct ub_explain *x, const struct ub_event *e, uint64_t max_ns)
{
    char text[256];

    for (uint32_t i = 0; i < x->pools_warned; i++) {
        if (x->pool_warned[i] == e->pid)
            return;
    }
    if (x->pools_warned == UB_ARRAY_LEN(x->pool_warned))
        return;
    x->pool_warned[x->pools_warned++] = e->pid;
    snprintf(
        text, sizeof(text),
        "process %d: work for libuv's pool waited for one of its %u threads, up to %llu ms: UV_THREADPOOL_SIZE sets "
        "how many there are",
        (int)e->pid, e->pool->threads, (unsigned long long)(max_ns / 1000000));
    ub_explain_emit(x, json_pack("{s:s, s:s, s:s}", "type", "note", "level", "warning", "text", text));
}

void ub_explain_pool(struct ub_explain *x, const struct ub_event *e)
{
    const struct ub_uv_pool *p = e->pool;
    uint64_t max_ns;

    if (!p || (uint32_t)p->word == 0)
        return;
    max_ns = p->waited ? ub_ticks_span_to_ns(p->max) : 0;
    ub_explain_emit(x,
                    json_pack("{s:s, s:i, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:I}", "type", "pool", "pid",
                              (int)e->pid, "kind", "libuv", "threads", (json_int_t)p->threads, "pieces",
                              (json_int_t)(uint32_t)p->word, "inside", (json_int_t)ub_uv_pool_inside(p->word, p->done),
                              "queued_max", (json_int_t)p->peak, "waited", (json_int_t)p->waited, "wait_ns",
                              (json_int_t)ub_ticks_span_to_ns(p->total), "max_wait_ns", (json_int_t)max_ns, "waits",
                              waits_json(p), "at_ns", (json_int_t)ub_clock_monotonic_ns()));
    if (max_ns >= x->w->threshold_ns)
        warn_once(x, e, max_ns);
}

json_t *ub_uv_pool_now_json(const struct ub_uv_pool_now *now)
{
    return json_pack("{s:s, s:I, s:I, s:I}", "kind", "libuv", "threads", (json_int_t)now->threads, "busy",
                     (json_int_t)now->busy, "queued", (json_int_t)now->queued);
}
