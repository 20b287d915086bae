#include "figures.h"

const char *const ub_figures_class[UB_STALL_CLASSES] = {
    [UB_STALL_COUNTED] = "counted",       [UB_STALL_STARTUP] = "startup", [UB_STALL_STOPPED] = "stopped",
    [UB_STALL_SUPPRESSED] = "suppressed", [UB_STALL_UNCLEAR] = "unclear",
};

const struct ub_figures_edge ub_figures_edge[] = {
    {100000, "0.0001"},  {1000000, "0.001"},  {5000000, "0.005"},    {10000000, "0.01"}, {25000000, "0.025"},
    {50000000, "0.05"},  {100000000, "0.1"},  {250000000, "0.25"},   {500000000, "0.5"}, {1000000000, "1.0"},
    {2500000000, "2.5"}, {5000000000, "5.0"}, {10000000000, "10.0"}, {0, NULL},
};

uint64_t ub_figures_count_up_to(const struct ub_distribution *d, uint64_t ns)
{
    uint64_t n = 0;
    uint32_t i;

    for (i = 0; i < d->used; i++)
        if (d->bucket[i].count > 0 && d->bucket[i].sum_ns / d->bucket[i].count <= ns)
            n += d->bucket[i].count;
    return n;
}

const char *const ub_figures_loss[] = {"ring", "rate_limited", "queue", "torn", NULL};

uint64_t ub_figures_lost(const struct ub_model *m, const char *loss)
{
    uint64_t lost = 0;
    uint32_t i;

    for (i = 0; i < ub_model_runs(m); i++)
        lost = ub_add_saturated(lost, ub_json_u64_or(json_object_get(ub_model_run(m, i)->end, "lost"), loss, 0));
    return lost;
}

static void raise_to(uint64_t *most, uint64_t n)
{
    *most = n > *most ? n : *most;
}

bool ub_figures_offload(const struct ub_model *m, struct ub_figures_offload *ret)
{
    bool any = false;

    *ret = (struct ub_figures_offload){0};
    for (uint32_t i = 0; i < ub_model_runs(m); i++) {
        const struct ub_run *run = ub_model_run(m, i);
        const json_t *end = json_object_get(run->end, "offload"), *o = end ? end : run->executor;

        any |= o != NULL;
        ret->moved = ub_add_saturated(ret->moved, ub_json_u64_or(o, "moved", 0));
        ret->saved_ns = ub_add_saturated(ret->saved_ns, ub_json_u64_or(o, "saved_ns", 0));
        ret->wait_ns = ub_add_saturated(ret->wait_ns, ub_json_u64_or(o, "wait_ns", 0));
        raise_to(&ret->threads, ub_json_u64_or(o, "threads", 0));
        raise_to(&ret->queued, ub_json_u64_or(o, "queued_max", 0));
        ret->beside = ub_add_saturated(ret->beside, ub_json_u64_or(o, "beside", 0));
        ret->away = ub_add_saturated(ret->away, ub_json_u64_or(o, "away", 0));
        raise_to(&ret->stack_bytes, ub_json_u64_or(o, "stack_bytes", 0));
    }
    return any;
}
