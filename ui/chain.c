/*
 * Merging: every stack is first cut down to what is shown. Then, from the
 * outside in, the function that most samples went through is followed; samples
 * that went elsewhere are counted where they ended ("also").
 *
 * Functions are compared, not lines: a loop sampled on three of its lines is
 * one place, shown at the line that was seen most.
 */
#include "chain.h"
#include "text_frames.h"

#include <errno.h>
#include <stdlib.h>

#define DEPTH_MAX     256
#define FOREIGN_DEPTH 8 /* frames shown of stacks without user frames */

struct cut {
    struct ub_site_stack stack; /* borrowed */
    struct ub_chain_link *link; /* outermost first */
    uint32_t count;
    bool foreign;
    bool on; /* still on the chain */
};

/* ---- one stack ------------------------------------------------------- */

/* Index of the outermost frame to show. */
static size_t find_limit(const json_t *frames, const uint8_t *class, size_t depth, const char *callback)
{
    bool user = false;
    size_t i;

    for (i = depth; callback && i-- > 0;) {
        const char *function = ub_json_string(json_array_get(frames, i), "function");

        if (class[i] == UB_SHOWN_USER && function && strcmp(function, callback) == 0)
            return i;
    }
    for (i = 0; i < depth; i++) {
        if (class[i] == UB_SHOWN_LOOP && user)
            return i - 1;
        if (class[i] == UB_SHOWN_USER)
            user = true;
    }
    return depth - 1;
}

/* What the frames are reduced to: the user's; else Python's libraries; else all but libc's; else all. */
enum detail { ONLY_USER, ONLY_PYTHON, NO_LIBC, EVERYTHING };

static bool is_python(const json_t *frame)
{
    return ub_json_is(frame, "language", "python");
}

static enum detail choose_detail(const json_t *frames, const uint8_t *class, size_t limit)
{
    enum detail detail = EVERYTHING;
    size_t i;

    for (i = 0; i <= limit; i++) {
        if (class[i] == UB_SHOWN_USER)
            return ONLY_USER;
        if (class[i] == UB_SHOWN_LIBRARY && is_python(json_array_get(frames, i)))
            detail = ONLY_PYTHON;
        else if (class[i] != UB_SHOWN_LIBC && detail == EVERYTHING)
            detail = NO_LIBC;
    }
    return detail;
}

static bool is_shown(const json_t *frame, enum ub_shown class, enum detail detail)
{
    switch (detail) {
    case ONLY_USER:
        return class == UB_SHOWN_USER;
    case ONLY_PYTHON:
        return class == UB_SHOWN_LIBRARY && is_python(frame);
    case NO_LIBC:
        return class != UB_SHOWN_LIBC;
    case EVERYTHING:
        break;
    }
    return true;
}

static int cut_stack(struct cut *cut, const char *exe, const char *callback)
{
    const json_t *frames = cut->stack.frames;
    size_t depth = json_array_size(frames), limit, i;
    uint8_t class[DEPTH_MAX];
    enum detail detail;

    if (depth > DEPTH_MAX)
        depth = DEPTH_MAX;
    if (depth == 0)
        return 0;
    for (i = 0; i < depth; i++)
        class[i] = (uint8_t)ub_text_frame_class(json_array_get(frames, i), exe);
    limit = find_limit(frames, class, depth, callback);
    detail = choose_detail(frames, class, limit);
    cut->foreign = detail != ONLY_USER;
    cut->link = calloc(limit + 1, sizeof(*cut->link));
    if (!cut->link)
        return -ENOMEM;
    for (i = limit + 1; i-- > 0;) {
        const json_t *frame = json_array_get(frames, i);

        if (is_shown(frame, class[i], detail)) {
            if (cut->count > 0 && ub_text_frame_generated(frame) &&
                ub_text_frame_generated(cut->link[cut->count - 1].frame))
                continue;
            cut->link[cut->count++] = (struct ub_chain_link){.frame = frame};
        } else if (class[i] == UB_SHOWN_LIBRARY && cut->count > 0) {
            struct ub_chain_link *link = &cut->link[cut->count - 1];

            if (link->folded++ == 0)
                link->library = frame;
        }
    }
    return 0;
}

/* ---- merging --------------------------------------------------------- */

/* Samples that are on the chain and stand in the function of `frame` at `depth`. */
static uint64_t count_same(const struct cut *cut, size_t cuts, uint32_t depth, const json_t *frame, bool exact)
{
    uint64_t n = 0;
    size_t i;

    for (i = 0; i < cuts; i++) {
        const json_t *other;

        if (!cut[i].on || cut[i].count <= depth)
            continue;
        other = cut[i].link[depth].frame;
        if (exact ? other == frame : ub_text_frame_same(other, frame))
            n += cut[i].stack.samples;
    }
    return n;
}

static uint64_t count_ended(const struct cut *cut, size_t cuts, uint32_t depth)
{
    uint64_t n = 0;
    size_t i;

    for (i = 0; i < cuts; i++)
        if (cut[i].on && cut[i].count == depth)
            n += cut[i].stack.samples;
    return n;
}

/* The function most samples went through at `depth`, at the line seen most; NULL where most samples end. */
static const struct ub_chain_link *choose(const struct cut *cut, size_t cuts, uint32_t depth, uint64_t *ret_samples)
{
    const struct ub_chain_link *best = NULL;
    uint64_t best_same = 0, best_exact = 0;
    size_t i;

    for (i = 0; i < cuts; i++) {
        uint64_t same, exact;

        if (!cut[i].on || cut[i].count <= depth)
            continue;
        same = count_same(cut, cuts, depth, cut[i].link[depth].frame, false);
        exact = count_same(cut, cuts, depth, cut[i].link[depth].frame, true);
        if (same > best_same || (same == best_same && exact > best_exact)) {
            best = &cut[i].link[depth];
            best_same = same;
            best_exact = exact;
        }
    }
    if (depth > 0 && count_ended(cut, cuts, depth) > best_same)
        return NULL;
    *ret_samples = best_same;
    return best;
}

static void add_also(struct ub_chain *chain, const struct cut *cut)
{
    const json_t *frame = cut->link[cut->count - 1].frame;
    uint32_t i;

    chain->also_samples += cut->stack.samples;
    for (i = 0; i < chain->also_count; i++) {
        if (ub_text_frame_same(chain->also[i].frame, frame)) {
            chain->also[i].samples += cut->stack.samples;
            break;
        }
    }
    if (i == chain->also_count) {
        if (i == UB_CHAIN_ALSO_MAX)
            return;
        chain->also[chain->also_count++] = (struct ub_chain_also){
            .frame = frame,
            .caller = cut->count > 1 ? cut->link[cut->count - 2].frame : NULL,
            .samples = cut->stack.samples,
        };
    }
    for (; i > 0 && chain->also[i - 1].samples < chain->also[i].samples; i--) {
        struct ub_chain_also swap = chain->also[i];

        chain->also[i] = chain->also[i - 1];
        chain->also[i - 1] = swap;
    }
}

/* Leaves on the chain only the cuts that stand in `frame` at `depth`; `frame` NULL: those that end there. */
static void leave_others(struct ub_chain *chain, struct cut *cut, size_t cuts, uint32_t depth, const json_t *frame)
{
    size_t i;

    for (i = 0; i < cuts; i++) {
        bool stays;

        if (!cut[i].on)
            continue;
        if (frame)
            stays = cut[i].count > depth && ub_text_frame_same(cut[i].link[depth].frame, frame);
        else
            stays = cut[i].count == depth;
        if (!stays) {
            cut[i].on = false;
            add_also(chain, &cut[i]);
        }
    }
}

static void reverse(struct ub_chain_link *link, uint32_t count)
{
    uint32_t i;

    for (i = 0; i < count / 2; i++) {
        struct ub_chain_link swap = link[i];

        link[i] = link[count - 1 - i];
        link[count - 1 - i] = swap;
    }
}

static int merge(struct cut *cut, size_t cuts, struct ub_chain *chain)
{
    const struct ub_chain_link *next;
    uint32_t depth = 0;
    uint64_t samples;

    chain->link = calloc(DEPTH_MAX, sizeof(*chain->link));
    if (!chain->link)
        return -ENOMEM;
    while (depth < DEPTH_MAX && (next = choose(cut, cuts, depth, &samples)) != NULL) {
        chain->link[depth] = *next;
        chain->link[depth].samples = samples;
        leave_others(chain, cut, cuts, depth, next->frame);
        depth++;
    }
    leave_others(chain, cut, cuts, depth, NULL);
    reverse(chain->link, depth);
    chain->count = depth;
    return 0;
}

static int build(struct cut *cut, size_t cuts, const char *exe, const char *callback, struct ub_chain *chain)
{
    size_t i, n = 0;
    int r = 0;

    for (i = 0; i < cuts && r == 0; i++)
        r = cut_stack(&cut[i], exe, callback);
    for (i = 0; i < cuts && r == 0; i++) {
        chain->samples += cut[i].stack.samples;
        chain->unproven += cut[i].stack.unproven;
        chain->incomplete += cut[i].stack.incomplete;
        cut[i].on = cut[i].count > 0;
        n += cut[i].on;
    }
    if (r == 0 && n > 0)
        r = merge(cut, cuts, chain);
    for (i = 0; i < cuts; i++)
        if (cut[i].on)
            chain->foreign = cut[i].foreign;
    if (chain->foreign && chain->count > FOREIGN_DEPTH) /* not before: stacks are merged from the outside */
        chain->count = FOREIGN_DEPTH;
    for (i = 0; i < cuts; i++)
        free(cut[i].link);
    if (r < 0)
        ub_chain_clear(chain);
    return r;
}

/* ---- where the stacks come from -------------------------------------- */

static const char *callback_of(const json_t *slow)
{
    return ub_json_string(json_object_get(slow, "callback"), "function");
}

int ub_chain_of_record(const struct ub_model *m, const json_t *slow, struct ub_chain *ret)
{
    struct cut cut[UB_SITE_STACKS_MAX] = {0};
    const json_t *sample;
    size_t cuts = 0, i, k;

    *ret = (struct ub_chain){0};
    json_array_foreach (json_object_get(slow, "samples"), i, sample) {
        const json_t *id = json_object_get(sample, "stack");
        json_t *frames = json_is_integer(id) ? ub_model_stack(m, json_integer_value(id)) : NULL;

        if (!frames) {
            ret->no_stack++;
            continue;
        }
        for (k = 0; k < cuts && cut[k].stack.frames != frames; k++)
            ;
        if (k == UB_SITE_STACKS_MAX)
            continue;
        if (k == cuts)
            cut[cuts++].stack.frames = frames;
        cut[k].stack.samples++;
        cut[k].stack.unproven += ub_json_is(sample, "proof", "unproven");
        cut[k].stack.incomplete += json_is_false(json_object_get(sample, "complete"));
    }
    return build(cut, cuts, ub_model_exe(m, ub_json_u64_or(slow, "pid", 0)), callback_of(slow), ret);
}

int ub_chain_of_site(const struct ub_site *site, struct ub_chain *ret)
{
    struct cut cut[UB_SITE_STACKS_MAX] = {0};
    size_t cuts = 0;
    uint32_t i;

    *ret = (struct ub_chain){.no_stack = site->samples_no_stack};
    for (i = 0; i < site->stacks; i++)
        if (site->stack[i].samples > 0)
            cut[cuts++].stack = site->stack[i];
    return build(cut, cuts, site->exe, callback_of(site->worst), ret);
}

void ub_chain_clear(struct ub_chain *chain)
{
    free(chain->link);
    *chain = (struct ub_chain){0};
}
