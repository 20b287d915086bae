/*
 * Stalls into call sites.
 *
 * A stall that does not end is told several times under one id, each time
 * longer. So that it counts at once and yet only once, its last record is kept
 * and taken back before the next one is added.
 */
#include "model_private.h"

#include <stdio.h>

static const char *const cause_names[UB_CAUSES] = {
    [UB_CAUSE_UNKNOWN] = "unknown",   [UB_CAUSE_CALL] = "call",
    [UB_CAUSE_CPU] = "cpu",           [UB_CAUSE_LOCK] = "lock",
    [UB_CAUSE_RUNQUEUE] = "runqueue", [UB_CAUSE_PAGEFAULT] = "pagefault",
    [UB_CAUSE_GIL] = "gil",           [UB_CAUSE_GC] = "gc",
    [UB_CAUSE_IMPORT] = "import",     [UB_CAUSE_STOPPED] = "stopped",
};

enum ub_cause ub_model_cause_of(struct ub_slice name)
{
    int i;

    for (i = 0; i < UB_CAUSES; i++)
        if (ub_slice_is(name, cause_names[i]))
            return (enum ub_cause)i;
    return UB_CAUSE_UNKNOWN;
}

enum ub_cause ub_model_cause_parse(const char *name)
{
    return ub_model_cause_of((struct ub_slice){name, name ? strlen(name) : 0});
}

const char *ub_model_cause_name(enum ub_cause cause)
{
    return cause_names[cause];
}

enum ub_cause ub_model_site_cause(const struct ub_site *site)
{
    enum ub_cause best = UB_CAUSE_UNKNOWN;
    int i;

    for (i = 0; i < UB_CAUSES; i++)
        if (site->cause[i] > site->cause[best])
            best = (enum ub_cause)i;
    return best;
}

static enum ub_stall_class classify(const struct ub_stall *stall)
{
    if (ub_slice_is(stall->cause, "stopped"))
        return UB_STALL_STOPPED;
    if (stall->startup)
        return UB_STALL_STARTUP;
    return stall->unclear ? UB_STALL_UNCLEAR : UB_STALL_COUNTED;
}

/* ---- the table ------------------------------------------------------- */

#define KEY_MAX (UB_MODEL_NAME_MAX + 16)

/* A record without a `site` is filed under what it says of itself, so that it is not lost. */
static size_t site_key(const json_t *slow, const struct ub_stall *stall, char *buf)
{
    const json_t *callback = json_object_get(slow, "callback"), *call = json_object_get(slow, "call");
    const char *function = ub_json_string(callback, "function"), *name = ub_json_string(call, "name");
    size_t len = stall->site.len < UB_MODEL_NAME_MAX ? stall->site.len : UB_MODEL_NAME_MAX;

    buf[0] = (char)('0' + classify(stall));
    buf[1] = ' ';
    if (len == 0)
        return 2 + (size_t)snprintf(buf + 2, KEY_MAX - 2, "?%.64s/%.64s", function ? function : "", name ? name : "");
    memcpy(buf + 2, stall->site.text, len);
    buf[2 + len] = 0;
    return 2 + len;
}

/* `slow` may be NULL when the stall names its site. */
static struct ub_site_entry *find_site(const struct ub_model *m, const json_t *slow, const struct ub_stall *stall)
{
    char key[KEY_MAX];
    size_t len = site_key(slow, stall, key);
    struct ub_site_entry *entry;

    HASH_FIND(hh, m->site, key, len, entry);
    return entry;
}

static void site_free(struct ub_site_entry *entry)
{
    uint32_t i;

    for (i = 0; i < entry->site.stacks; i++)
        json_decref(entry->site.stack[i].frames);
    free(entry->site.stack);
    free(entry->site.program);
    free(entry->site.exe);
    json_decref(entry->site.worst);
    ub_distribution_clear(&entry->site.durations);
    free(entry->key);
    free(entry);
}

static struct ub_site_entry *new_site(struct ub_model *m, const json_t *slow, const struct ub_stall *stall)
{
    struct ub_site_entry *entry = calloc(1, sizeof(*entry));
    const char *program = ub_model_program(m, stall->pid), *exe = ub_model_exe(m, stall->pid);
    char key[KEY_MAX];

    if (!entry)
        return NULL;
    site_key(slow, stall, key);
    entry->key = strdup(key);
    if (entry->key)
        HASH_ADD_KEYPTR(hh, m->site, entry->key, strlen(entry->key), entry);
    if (!UB_HASHED(entry)) {
        site_free(entry);
        return NULL;
    }
    entry->site.id = strchr(entry->key, ' ') + 1;
    entry->site.class = classify(stall);
    entry->site.program = program ? strdup(program) : NULL;
    entry->site.exe = exe ? strdup(exe) : NULL;
    return entry;
}

static struct ub_site_entry *get_site(struct ub_model *m, const json_t *slow, const struct ub_stall *stall)
{
    struct ub_site_entry *entry = find_site(m, slow, stall);

    if (!entry && HASH_COUNT(m->site) < UB_MODEL_SITES_MAX)
        entry = new_site(m, slow, stall);
    if (!entry)
        m->dropped.sites++;
    return entry;
}

const struct ub_site *ub_model_site_of(const struct ub_model *m, const json_t *slow)
{
    const struct ub_site_entry *entry;
    struct ub_stall stall;

    if (!ub_stall_read(slow, &stall))
        return NULL;
    entry = find_site(m, slow, &stall);
    return entry ? &entry->site : NULL;
}

/* ---- what one stall adds --------------------------------------------- */

static struct ub_site_stack *find_stack(struct ub_site *site, const json_t *frames)
{
    uint32_t i;

    for (i = 0; i < site->stacks; i++)
        if (site->stack[i].frames == frames)
            return &site->stack[i];
    return NULL;
}

static struct ub_site_stack *add_stack(struct ub_site *site, json_t *frames)
{
    struct ub_site_stack *stack;

    if (site->stacks == UB_SITE_STACKS_MAX)
        return NULL;
    stack = realloc(site->stack, (site->stacks + 1) * sizeof(*stack));
    if (!stack)
        return NULL;
    site->stack = stack;
    stack += site->stacks++;
    *stack = (struct ub_site_stack){.frames = json_incref(frames)};
    return stack;
}

static void step(uint64_t *count, int sign)
{
    if (sign > 0)
        (*count)++;
    else if (*count > 0)
        (*count)--;
}

static void apply_sample(struct ub_model *m, struct ub_site *site, const struct ub_stall_sample *sample, int sign)
{
    json_t *frames = sample->has_stack ? ub_model_stack(m, sample->stack) : NULL;
    struct ub_site_stack *stack;

    if (!frames) {
        step(&site->samples_no_stack, sign);
        return;
    }
    step(&site->samples, sign);
    stack = find_stack(site, frames);
    if (!stack && sign > 0)
        stack = add_stack(site, frames);
    if (!stack)
        return;
    step(&stack->samples, sign);
    if (sample->unproven)
        step(&stack->unproven, sign);
    if (sample->incomplete)
        step(&stack->incomplete, sign);
}

/* Is this, by its length, the stall that stands for its site? */
static bool is_worst(const struct ub_site *site, uint64_t duration_ns)
{
    return !site->worst || ub_json_u64_or(site->worst, "duration_ns", 0) <= duration_ns;
}

static void apply_site(struct ub_model *m, struct ub_site *site, const struct ub_stall *a, int sign)
{
    uint32_t i;

    if (sign > 0) {
        ub_distribution_add(&site->durations, 1, a->duration_ns);
        ub_distribution_add(&site->durations, a->repeats, a->repeats ? a->repeats_ns : 0);
        if (a->repeats && a->repeats_max_ns > site->durations.max_ns)
            site->durations.max_ns = a->repeats_max_ns;
    } else {
        ub_distribution_remove(&site->durations, 1, a->duration_ns);
        ub_distribution_remove(&site->durations, a->repeats, a->repeats ? a->repeats_ns : 0);
    }
    if (a->ongoing)
        step(&site->ongoing, sign);
    step(&site->cause[ub_model_cause_of(a->cause)], sign);
    for (i = 0; i < a->samples; i++)
        apply_sample(m, site, &a->sample[i], sign);
    for (i = 0; i < a->samples_beyond; i++)
        step(&site->samples_no_stack, sign);
}

static uint64_t subtract(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

static void apply_totals(struct ub_stall_totals *totals, const struct ub_stall *a, int sign)
{
    uint64_t count = ub_add_saturated(1, a->repeats);
    uint64_t sum = ub_add_saturated(a->duration_ns, a->repeats ? a->repeats_ns : 0);

    if (a->nested) /* counted by the turn or callback that contains it */
        return;
    totals->count = sign > 0 ? ub_add_saturated(totals->count, count) : subtract(totals->count, count);
    totals->total_ns = sign > 0 ? ub_add_saturated(totals->total_ns, sum) : subtract(totals->total_ns, sum);
    if (a->duration_ns > totals->max_ns)
        totals->max_ns = a->duration_ns;
    if (a->repeats && a->repeats_max_ns > totals->max_ns)
        totals->max_ns = a->repeats_max_ns;
    if (a->ongoing)
        step(&totals->ongoing, sign);
}

static void apply(struct ub_model *m, struct ub_site_entry *entry, const struct ub_stall *a, int sign)
{
    if (entry) {
        apply_site(m, &entry->site, a, sign);
        apply_totals(&entry->site.own, a, sign);
    }
    apply_totals(&m->totals[classify(a)], a, sign);
    if (m->hear && entry && sign > 0 && !a->ongoing)
        m->hear(m->hear_self, a, &entry->site, m->current);
}

/* ---- stalls that go on ----------------------------------------------- */

static struct ub_ongoing *find_ongoing(const struct ub_model *m, const struct ub_stall *stall)
{
    struct ub_ongoing_key key = {.run = m->current, .pid = stall->pid, .id = stall->id};
    struct ub_ongoing *going = NULL;
    const size_t size = sizeof(key);

    if (stall->has_pid && stall->has_id)
        HASH_FIND(hh, m->ongoing, &key, size, going); /* NOLINT(clang-analyzer-core.UndefinedBinaryOperatorResult) */
    return going;
}

static void ongoing_free(struct ub_ongoing *going)
{
    json_decref(going->record);
    free(going);
}

static void take_back(struct ub_model *m, struct ub_ongoing *going)
{
    struct ub_stall stall;

    if (ub_stall_read(going->record, &stall))
        apply(m, going->site, &stall, -1);
    HASH_DEL(m->ongoing, going);
    ongoing_free(going);
}

/* False: there are too many, or it has no id. Such a stall counts when it ends, not before. */
static bool remember_ongoing(struct ub_model *m, json_t *slow, const struct ub_stall *stall, struct ub_site_entry *site)
{
    struct ub_ongoing *going;

    if (HASH_COUNT(m->ongoing) >= UB_MODEL_ONGOING_MAX || !stall->has_pid || !stall->has_id)
        return false;
    going = calloc(1, sizeof(*going));
    if (!going)
        return false;
    going->key = (struct ub_ongoing_key){.run = m->current, .pid = stall->pid, .id = stall->id};
    HASH_ADD(hh, m->ongoing, key, sizeof(going->key), going);
    if (!UB_HASHED(going)) {
        free(going);
        return false;
    }
    going->site = site;
    going->record = json_incref(slow);
    return true;
}

static void keep_worst(struct ub_site *site, json_t *slow, uint64_t duration_ns)
{
    if (!is_worst(site, duration_ns))
        return;
    json_decref(site->worst);
    site->worst = json_incref(slow);
}

static void touch_end(struct ub_model *m, const struct ub_stall *stall)
{
    ub_model_touch(m, ub_add_saturated(stall->start_ns, stall->duration_ns));
}

void ub_model_slow_line(struct ub_model *m, json_t *slow)
{
    struct ub_site_entry *entry;
    struct ub_ongoing *before;
    struct ub_stall stall;

    if (!ub_model_this_run(m) || !ub_stall_read(slow, &stall)) {
        m->dropped.malformed++;
        return;
    }
    touch_end(m, &stall);
    before = find_ongoing(m, &stall);
    if (before)
        take_back(m, before);
    entry = get_site(m, slow, &stall);
    if (stall.ongoing && !remember_ongoing(m, slow, &stall, entry)) {
        m->dropped.ongoing++;
        return;
    }
    if (entry)
        keep_worst(&entry->site, slow, stall.duration_ns);
    apply(m, entry, &stall, 1);
}

/* A record must be kept of the longest stall of a site, and of each that goes on. The others are figures. */
bool ub_model_take_stall(struct ub_model *m, const struct ub_stall *stall)
{
    struct ub_site_entry *entry;

    if (m->runs == 0 || stall->ongoing || stall->site.len == 0)
        return false;
    entry = find_site(m, NULL, stall);
    if (!entry || is_worst(&entry->site, stall->duration_ns) || find_ongoing(m, stall))
        return false;
    touch_end(m, stall);
    apply(m, entry, stall, 1);
    return true;
}

void ub_model_follow(struct ub_model *m,
                     void (*hear)(void *self, const struct ub_stall *stall, const struct ub_site *site, uint32_t run),
                     void *self)
{
    m->hear = hear;
    m->hear_self = self;
}

void ub_model_follow_ongoing(struct ub_model *m)
{
    struct ub_ongoing *going;
    struct ub_stall stall;

    for (going = m->ongoing; going && m->hear; going = going->hh.next)
        if (going->site && ub_stall_read(going->record, &stall))
            m->hear(m->hear_self, &stall, &going->site->site, (uint32_t)going->key.run);
}

/* ---- reading it ------------------------------------------------------ */

const struct ub_stall_totals *ub_model_totals(const struct ub_model *m, enum ub_stall_class class)
{
    return &m->totals[class];
}

static uint64_t sort_key(const struct ub_site *site, enum ub_sort sort)
{
    switch (sort) {
    case UB_SORT_MAX:
        return site->durations.max_ns;
    case UB_SORT_COUNT:
        return site->durations.count;
    case UB_SORT_P99:
        return ub_distribution_percentile(&site->durations, 990);
    case UB_SORT_TOTAL:
    case UB_SORTS:
        break;
    }
    return site->durations.total_ns;
}

static int compare(const void *a, const void *b, void *sort)
{
    const struct ub_site *x = *(const struct ub_site *const *)a, *y = *(const struct ub_site *const *)b;
    uint64_t kx = sort_key(x, *(enum ub_sort *)sort), ky = sort_key(y, *(enum ub_sort *)sort);

    if (kx == ky) {
        kx = x->durations.max_ns;
        ky = y->durations.max_ns;
    }
    if (kx == ky)
        return strcmp(x->id, y->id);
    return kx < ky ? 1 : -1;
}

const struct ub_site **ub_model_sites(const struct ub_model *m, enum ub_stall_class class, enum ub_sort sort,
                                      size_t *ret_count)
{
    const struct ub_site **sites =
        calloc(HASH_COUNT(m->site) + 1, sizeof(*sites)); /* NOLINT(bugprone-sizeof-expression) */
    struct ub_site_entry *entry;
    size_t n = 0;

    *ret_count = 0;
    if (!sites)
        return NULL;
    for (entry = m->site; entry; entry = entry->hh.next)
        if (entry->site.class == class && entry->site.durations.count > 0)
            sites[n++] = &entry->site;
    if (n == 0) {
        free(sites);
        return NULL;
    }
    qsort_r(sites, n, sizeof(*sites), compare, &sort); /* NOLINT(bugprone-sizeof-expression) */
    *ret_count = n;
    return sites;
}

static void take_out(struct ub_model *m, struct ub_site *site)
{
    struct ub_stall_totals *from = &m->totals[site->class], *to = &m->totals[UB_STALL_SUPPRESSED];

    from->count = subtract(from->count, site->own.count);
    from->total_ns = subtract(from->total_ns, site->own.total_ns);
    from->ongoing = subtract(from->ongoing, site->own.ongoing);
    to->count = ub_add_saturated(to->count, site->own.count);
    to->total_ns = ub_add_saturated(to->total_ns, site->own.total_ns);
    to->ongoing = ub_add_saturated(to->ongoing, site->own.ongoing);
    site->class = UB_STALL_SUPPRESSED;
}

void ub_model_suppress(struct ub_model *m, bool (*choose)(void *self, const struct ub_site *site), void *self)
{
    struct ub_site_entry *entry;
    uint64_t max_ns = 0;
    bool any = false;

    for (entry = m->site; entry; entry = entry->hh.next) {
        if (entry->site.class != UB_STALL_COUNTED)
            continue;
        if (choose(self, &entry->site)) {
            take_out(m, &entry->site);
            any = true;
        } else if (entry->site.own.max_ns > max_ns) {
            max_ns = entry->site.own.max_ns;
        }
    }
    if (any) /* stalls of sites that did not fit the table cannot be told apart: what they had is lost with the rest */
        m->totals[UB_STALL_COUNTED].max_ns = max_ns;
}

void ub_model_sites_free(struct ub_model *m)
{
    UB_HASH_DESTROY(struct ub_ongoing, m->ongoing, ongoing_free);
    UB_HASH_DESTROY(struct ub_site_entry, m->site, site_free);
}

void ub_model_forget_stalls(struct ub_model *m)
{
    ub_model_sites_free(m);
    memset(m->totals, 0, sizeof(m->totals));
}
