#include "lost.h"
#include "text_frames.h"

#include <stdio.h>
#include <stdlib.h>

static int by_samples(const void *a, const void *b)
{
    const struct ub_site_stack *x = *(const struct ub_site_stack *const *)a,
                               *y = *(const struct ub_site_stack *const *)b;

    if (x->samples != y->samples)
        return x->samples < y->samples ? 1 : -1;
    return x < y ? -1 : x > y;
}

/* What rounding leaves over goes to the stack with most samples. */
static void spread(const struct ub_site *site, void (*take)(void *self, const struct ub_lost_stack *stack), void *self)
{
    const struct ub_site_stack *order[UB_SITE_STACKS_MAX];
    uint64_t samples = 0, rest = site->own.total_ns;
    uint32_t i, n = 0;

    for (i = 0; i < site->stacks; i++) {
        if (site->stack[i].samples == 0)
            continue;
        order[n++] = &site->stack[i];
        samples += site->stack[i].samples;
    }
    if (n == 0) {
        take(self, &(struct ub_lost_stack){.site = site, .ns = rest});
        return;
    }
    qsort(order, n, sizeof(order[0]), by_samples); /* NOLINT(bugprone-sizeof-expression) */
    for (i = n; i-- > 0;) {
        __uint128_t share = (__uint128_t)site->own.total_ns * order[i]->samples / samples;
        uint64_t ns = i == 0 ? rest : (uint64_t)share;

        rest -= ns;
        take(self,
             &(struct ub_lost_stack){.site = site, .frames = order[i]->frames, .ns = ns, .samples = order[i]->samples});
    }
}

void ub_lost_each(const struct ub_model *m, void (*take)(void *self, const struct ub_lost_stack *stack), void *self)
{
    size_t count, i;
    const struct ub_site **sites = ub_model_sites(m, UB_STALL_COUNTED, ub_model_sorted(m), &count);

    for (i = 0; i < count; i++)
        if (sites[i]->own.total_ns > 0)
            spread(sites[i], take, self);
    free(sites);
}

const char *ub_lost_frame_name(const json_t *frame, char *buf, size_t size)
{
    const char *function = ub_json_string(frame, "function");
    char plain[1024];

    if (function)
        snprintf(buf, size, "%s%s", ub_json_true(frame, "nearest") ? "near " : "",
                 ub_text_frame_plain(function, plain, sizeof(plain)));
    else if (!*ub_text_frame_place(frame, buf, size))
        snprintf(buf, size, "%s", ub_text_frame_generated(frame) ? "(generated code)" : "?");
    return buf;
}
