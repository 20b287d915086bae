#include "findings.h"
#include "text_frames.h"
#include "text_private.h"

#include <errno.h>
#include <stdlib.h>

/* What one of the writers of text_call.c says of a site, as a string. */
static char *words_of(const struct ub_model *m, const struct ub_site *site, const struct ub_chain *chain, bool why)
{
    struct ub_text_view view;
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);

    if (!out)
        return NULL;
    ub_text_view_init(&view, out, m, false);
    if (why)
        ub_text_why(&view, site->worst);
    else
        ub_text_what(&view, site->worst, chain, ub_advice_of_site(site), false);
    if (fclose(out) == 0)
        return text;
    free(text);
    return NULL;
}

static const json_t *own_frame(const struct ub_chain *chain)
{
    return chain->count > 0 && !chain->foreign ? chain->link[0].frame : NULL;
}

static enum ub_finding_state judge(const struct ub_site *site, const struct ub_rule *rule)
{
    if (!rule)
        return UB_FINDING_FAILS;
    if (rule->expired)
        return UB_FINDING_EXPIRED;
    return rule->max_ns && site->durations.max_ns > rule->max_ns ? UB_FINDING_TOO_LONG : UB_FINDING_ALLOWED;
}

bool ub_finding_fails(const struct ub_finding *finding)
{
    return finding->state != UB_FINDING_ALLOWED;
}

static int add(const struct ub_model *m, const struct ub_site *site, struct ub_rules *allow, struct ub_findings *f)
{
    UB_CLEANUP(ub_chain_clear) struct ub_chain chain;
    struct ub_finding *finding = &f->finding[f->count];

    ub_chain_of_site(site, &chain);
    *finding = (struct ub_finding){
        .site = site,
        .rule = allow ? ub_rules_find(allow, site) : NULL,
        .what = words_of(m, site, &chain, false),
        .why = words_of(m, site, &chain, true),
        .frame = own_frame(&chain),
    };
    finding->state = judge(site, finding->rule);
    f->count++;
    f->failed += ub_finding_fails(finding);
    return finding->what && finding->why ? 0 : -ENOMEM;
}

static int make(const struct ub_model *m, uint64_t limit_ns, enum ub_sort sort, struct ub_rules *allow,
                struct ub_findings *ret)
{
    size_t count, i;
    const struct ub_site **sites = ub_model_sites(m, UB_STALL_COUNTED, sort, &count);
    int r = 0;

    *ret = (struct ub_findings){.limit_ns = limit_ns};
    ret->finding = calloc(count + 1, sizeof(*ret->finding));
    if (!ret->finding)
        r = -ENOMEM;
    for (i = 0; sites && i < count && r == 0; i++)
        if (sites[i]->durations.max_ns >= limit_ns)
            r = add(m, sites[i], allow, ret);
    free(sites);
    if (r < 0)
        ub_findings_clear(ret);
    return r;
}

int ub_findings_make(const struct ub_model *m, uint64_t limit_ns, struct ub_rules *allow, struct ub_findings *ret)
{
    return make(m, limit_ns, UB_SORT_TOTAL, allow, ret);
}

int ub_findings_make_sorted(const struct ub_model *m, enum ub_sort sort, struct ub_findings *ret)
{
    return make(m, 0, sort, NULL, ret);
}

void ub_findings_clear(struct ub_findings *f)
{
    size_t i;

    for (i = 0; i < f->count; i++) {
        free(f->finding[i].what);
        free(f->finding[i].why);
    }
    free(f->finding);
    *f = (struct ub_findings){0};
}

const char *ub_finding_figures(const struct ub_finding *finding, char *buf)
{
    const struct ub_distribution *d = &finding->site->durations;
    char total[UB_TEXT_DURATION_MAX], max[UB_TEXT_DURATION_MAX];

    snprintf(buf, UB_FINDING_FIGURES_MAX, "%" PRIu64 " stall%s, %s lost, longest %s", d->count,
             d->count == 1 ? "" : "s", ub_text_duration(d->total_ns, total, sizeof(total)),
             ub_text_duration(d->max_ns, max, sizeof(max)));
    return buf;
}
