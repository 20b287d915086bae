/*
 * The tracer's part of a policy: each place that an agent asks about is given its names, and the answer of
 * the rules; at the end it is told which rules never had anything to say.
 */
#include "explain_impl.h"

#include "nearest.h"
#include "policy_table.h"
#include "timed_calls.h"

#include <limits.h>
#include <stdio.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NAMES_MAX 64u

/* The names of one place; the strings are its own. */
struct ub_site_names {
    uint32_t count;
    struct ub_policy_names name[NAMES_MAX];
};

static const char *own(const char *text)
{
    return text ? strdup(text) : NULL;
}

static void add_name(struct ub_site_names *n, const char *function, const char *file, const char *module, bool python)
{
    if (n->count < NAMES_MAX && (function || module))
        n->name[n->count++] = (struct ub_policy_names){
            .function = own(function), .file = own(file), .module = own(module), .python = python};
}

/* Functions inlined there as well. A symbol that is only near is no name. */
static void add_address(struct ub_site_names *n, struct ub_maps *maps, uint64_t address)
{
    const struct ub_map *map = maps && address ? ub_maps_find(maps, address) : NULL;
    struct ub_symbol symbol[UB_INLINES_MAX];
    const char *module = map && map->elf ? map->elf->path : NULL;
    uint32_t count = map ? ub_symbols_resolve(maps, address, symbol, UB_INLINES_MAX) : 0;

    for (uint32_t i = 0; i < count; i++)
        add_name(n, symbol[i].nearest ? NULL : symbol[i].function, symbol[i].file, module, false);
}

/* All frames of the first call from a place in Python: its caller may be any function of a library. */
static void add_python(struct ub_site_names *n, const struct ub_event *e)
{
    for (uint32_t i = 0; e->call_python && i < e->call_python->count; i++)
        add_name(n, e->call_python->frame[i].code->function, e->call_python->frame[i].code->file, NULL, true);
    if (e->code)
        add_name(n, e->code->function, e->code->file, NULL, true);
}

static void answer(struct ub_explain *x, uint32_t i)
{
    struct ub_policy *p = &x->w->arena->policy;
    struct ub_policy_site *site = &p->site[i];
    uint32_t id = ub_load_relaxed(&site->id);
    const char *call = ub_moved_call_name(id);
    const struct ub_policy_rule *rule;

    if (!x->policy || !x->names[i] || !call)
        return;
    rule = ub_policy_judge(x->policy, call, x->names[i]->name, x->names[i]->count);
    site->lane = rule ? (uint16_t)rule->lane : UB_EXECUTOR_NONE;
    site->limit = rule ? (uint16_t)rule->limit : 0;
    site->rule = rule ? (uint32_t)(rule - x->policy->rule) : 0;
    ub_store_relaxed(&site->verdict, rule && rule->action == UB_POLICY_MOVE ? UB_POLICY_ALLOW : UB_POLICY_DENY);
    ub_store_release(&site->version, ub_load_relaxed(&p->version));
    syscall(SYS_futex, &site->version, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void ub_explain_policy_site(struct ub_explain *x, const struct ub_event *e)
{
    uint32_t i = e->slot % UB_POLICY_SITES;
    const struct ub_policy_site *site = &x->w->arena->policy.site[i];
    struct ub_maps *maps;

    if (x->names[i] || !(x->names[i] = calloc(1, sizeof(*x->names[i]))))
        return;
    if (site->frames) {
        add_python(x->names[i], e);
    } else {
        ub_process_refresh(e->process);
        maps = ub_process_maps(e->process);
        add_address(x->names[i], maps, site->ra - 1);
        add_address(x->names[i], maps, site->function);
        ub_maps_unref(maps);
    }
    answer(x, i);
}

void ub_explain_policy(struct ub_explain *x, struct ub_policy_file *policy)
{
    struct ub_policy *p = &x->w->arena->policy;
    uint8_t call[UB_POLICY_CALLS] = {0};

    ub_explain_policy_tell(x);
    if (x->policy)
        ub_policy_clear(x->policy);
    free(x->policy);
    x->policy = policy;
    if (policy)
        ub_policy_compile(policy, call);
    for (uint32_t i = 0; i < UB_POLICY_CALLS; i++)
        ub_store_relaxed(&p->call[i], call[i]);
    ub_store_release(&p->version, policy ? ++x->policy_version : 0);
    for (uint32_t i = 0; policy && i < UB_POLICY_SITES; i++)
        answer(x, i);
}

/* ---- rules that never fitted -------------------------------------------------------------------- */

/* The name of the places that were seen which is nearest to what a rule says. */
static const char *nearest_place(const struct ub_explain *x, const char *place)
{
    const char *list[1025], *colon = strrchr(place, ':');
    uint32_t n = 0;

    place = colon ? colon + 1 : place;
    if (!colon && strrchr(place, '.') && strrchr(place, '.')[1])
        place = strrchr(place, '.') + 1;
    for (uint32_t i = 0; i < UB_POLICY_SITES; i++) {
        for (uint32_t k = 0; x->names[i] && k < x->names[i]->count && n < UB_ARRAY_LEN(list) - 1; k++) {
            if (x->names[i]->name[k].function)
                list[n++] = x->names[i]->name[k].function;
        }
    }
    list[n] = NULL;
    return ub_nearest(place, list);
}

/* A row of that kind about the rule; NULL: none. The agents cut names off. */
static const struct ub_python_row *python_row(const struct ub_explain *x, enum ub_python_kind kind,
                                              const struct ub_policy_rule *rule)
{
    const struct ub_python_table *t = &x->w->arena->python;
    const struct ub_python_row *found = NULL;
    char name[UB_PYTHON_NAME];

    ub_python_table_text(name, sizeof(name), rule->place);
    for (uint32_t i = 0; i < UB_PYTHON_ROWS; i++) {
        if (ub_load_acquire(&t->row[i].state) == UB_PYTHON_LIVE && ub_load_relaxed(&t->row[i].kind) == kind &&
            memcmp(t->row[i].name, name, sizeof(name)) == 0)
            found = &t->row[i];
    }
    return found;
}

/* Functions are found by the agent. False: what the rule names was found, or told of. */
static bool tell_function(struct ub_explain *x, const struct ub_policy_rule *rule)
{
    const struct ub_python_row *near = python_row(x, UB_PYTHON_NEAREST, rule);
    char text[1024], name[UB_PYTHON_TEXT] = "";

    if (rule->action == UB_POLICY_INLINE || python_row(x, UB_PYTHON_RULE, rule))
        return false;
    if (near)
        memcpy(name, near->text, sizeof(name) - 1);
    snprintf(text, sizeof(text), "%s:%u: '%s' fitted nothing: no such function was there while a task ran%s%s",
             x->policy->path, rule->line, rule->text, *name ? "; the nearest name was " : "", name);
    ub_explain_note(x, "warning", text);
    return true;
}

void ub_explain_policy_tell(struct ub_explain *x)
{
    uint32_t told = 0;

    if (x->w->offload != UB_OFFLOAD_POLICY) /* a recording's: what another run has learned */
        return;
    for (uint32_t i = 0; x->policy && i < x->policy->count; i++) {
        const struct ub_policy_rule *rule = &x->policy->rule[i];
        const char *nearest;
        char text[1024];

        if (rule->fitted || rule->section == UB_POLICY_YIELD || told == 20)
            continue;
        if (rule->section == UB_POLICY_PYTHON) {
            told += tell_function(x, rule);
            continue;
        }
        told++;
        if (rule->section == UB_POLICY_EXCEPT && rule->place && python_row(x, UB_PYTHON_RULE, rule))
            continue;
        nearest = rule->place ? nearest_place(x, rule->place) : NULL;
        snprintf(text, sizeof(text),
                 nearest       ? "%s:%u: '%s' fitted nothing: no such call came from there in a callback; the nearest "
                                 "name was %s"
                 : rule->place ? "%s:%u: '%s' fitted nothing: no such call came from there in a callback"
                               : "%s:%u: '%s' fitted nothing: no callback made such a call",
                 x->policy->path, rule->line, rule->text, nearest);
        ub_explain_note(x, "warning", text);
    }
}

void ub_explain_policy_free(struct ub_explain *x)
{
    for (uint32_t i = 0; i < UB_POLICY_SITES; i++) {
        for (uint32_t k = 0; x->names[i] && k < x->names[i]->count; k++) {
            free((char *)x->names[i]->name[k].function);
            free((char *)x->names[i]->name[k].file);
            free((char *)x->names[i]->name[k].module);
        }
        free(x->names[i]);
    }
    if (x->policy)
        ub_policy_clear(x->policy);
    free(x->policy);
    x->policy = NULL;
}
