/*
 * What a policy could do about a stall in which a task of Python's computed: the `elsewhere` of a `slow` line. A
 * function that the innermost coroutine has called can be called in a thread, where the interpreter's lock was let go
 * of, in a process, where what it is called with is small, or in a fork, where it writes large data down; everything
 * else can yield.
 */
#include "explain_impl.h"

#include "policy_file.h"

#include <stdlib.h>
#include <string.h>

#define LARGE   50000u   /* objects: some ms to pickle, with the loop waiting */
#define GIVE_NS 5000000u /* a slice of a step that yields */

static bool is_coroutine(const struct ub_python_frame *f)
{
    return f->code->flags & (UB_PYTHON_CO_COROUTINE | UB_PYTHON_CO_ITERABLE | UB_PYTHON_CO_ASYNC_GENERATOR);
}

/* pickle and its like: what they write is large, or they would not be here. "pickle.dump*", or NULL. */
static const char *serialiser(const struct ub_python_look *look, uint32_t coroutine)
{
    static const struct {
        const char *file, *function, *name;
    } known[] = {
        {"/json/__init__.py", "dump", "json.dump*"},
        {"/pickle.py", "dump", "pickle.dump*"},
        {"/copy.py", "deepcopy", "copy.deepcopy"},
        {"/json/encoder.py", "", "json.dump*"},
    };

    if (strncmp(look->called, "pickle.dump", 11) == 0 || strncmp(look->called, "marshal.dump", 12) == 0)
        return look->called[0] == 'p' ? "pickle.dump*" : "marshal.dump*";
    for (uint32_t i = 0; i < coroutine; i++) {
        const struct ub_python_code *code = look->frame[i].code;
        size_t size = strlen(code->file);

        for (size_t k = 0; k < UB_ARRAY_LEN(known); k++) {
            size_t len = strlen(known[k].file);

            if (size > len && strcmp(code->file + size - len, known[k].file) == 0 &&
                strncmp(code->function, known[k].function, strlen(known[k].function)) == 0)
                return known[k].name;
        }
    }
    return NULL;
}

/* The outermost function that the coroutine has called; not one made later (a closure, a comprehension): no rule finds
 * those. */
static bool function_of(const struct ub_python_look *look, uint32_t coroutine, char *ret, size_t size)
{
    for (uint32_t i = coroutine; i-- > 0;) {
        const struct ub_python_code *code = look->frame[i].code;

        if (!strchr(code->function, '<') && ub_policy_dotted(code->file, code->function, ret, size))
            return true;
    }
    return false;
}

/* What one look says. False: nothing. */
static bool see(const struct ub_python_look *look, struct ub_elsewhere *ret)
{
    uint32_t c;
    const char *fork;

    for (c = 0; c < look->count && !is_coroutine(&look->frame[c]); c++)
        ;
    *ret = (struct ub_elsewhere){.looks = 1,
                                 .code = look->frame[0].code,
                                 .offset = look->frame[0].offset,
                                 .locals = look->locals,
                                 .large = look->data > LARGE};
    if (c == look->count)
        return false;
    fork = serialiser(look, c);
    if (fork) {
        ret->how = UB_ELSEWHERE_FORK;
        strncat(ret->name, fork, sizeof(ret->name) - 1);
        return true;
    }
    if (function_of(look, c, ret->name, sizeof(ret->name))) {
        ret->how = UB_ELSEWHERE_FUNCTION;
        return true;
    }
    if (c == 0 && look->proof == UB_PYTHON_UNPROVEN && !look->called[0])
        return false; /* inner frames may be missing */
    ret->how = UB_ELSEWHERE_COROUTINE;
    memcpy(ret->called, look->called, sizeof(ret->called));
    return ub_policy_dotted(look->frame[c].code->file, look->frame[c].code->function, ret->name, sizeof(ret->name));
}

_Static_assert(sizeof(((struct ub_elsewhere *)0)->called) == sizeof(((struct ub_python_look *)0)->called),
               "a whole name");

/* Not in the same call of the same function. */
static bool stands_elsewhere(const struct ub_elsewhere *a, const struct ub_elsewhere *b)
{
    return a->code != b->code || a->offset != b->offset || (a->locals && b->locals && a->locals != b->locals);
}

void ub_elsewhere_look(struct ub_stall *s, const struct ub_python_look *look)
{
    struct ub_elsewhere found;

    if (!look || look->count == 0)
        return;
    s->python_looks++;
    if (!see(look, &found))
        return;
    for (uint32_t i = 0; i < UB_ARRAY_LEN(s->elsewhere); i++) {
        struct ub_elsewhere *e = &s->elsewhere[i];

        if (e->looks && (e->how != found.how || strcmp(e->name, found.name) != 0))
            continue;
        if (e->looks) {
            found.goes_on = e->goes_on || stands_elsewhere(e, &found);
            if (found.goes_on || strcmp(e->called, found.called) != 0)
                found.called[0] = '\0'; /* not in one call all the time: what lies on its stack may be old */
        }
        found.looks += e->looks;
        found.large |= e->large;
        *e = found;
        return;
    }
}

/*
 * What would let the loop go on; "stays": nothing does; NULL: nobody knows. One call into C cannot yield, and it may
 * change what it is called with (heapq.heapify), which a process would lose. One look cannot tell; to yield does no
 * harm where it cannot be done.
 */
static const char *how(const struct ub_stall *s, const struct ub_elsewhere *e)
{
    if (e->how == UB_ELSEWHERE_FORK)
        return "fork";
    if (s->gil_released > s->gil_held)
        return e->how == UB_ELSEWHERE_FUNCTION || (e->called[0] && e->looks > 1) ? "thread" : NULL;
    if (!e->goes_on)
        return e->looks > 1 ? "stays" : e->called[0] || s->python_looks > 2 ? NULL : "yield";
    return e->how == UB_ELSEWHERE_FUNCTION && !e->large ? "process" : "yield";
}

json_t *ub_elsewhere_json(const struct ub_stall *s, const char *cause, uint64_t duration_ns)
{
    const struct ub_elsewhere *most = &s->elsewhere[0];
    const char *way;
    uint64_t saved;

    for (uint32_t i = 1; i < UB_ARRAY_LEN(s->elsewhere); i++)
        most = s->elsewhere[i].looks > most->looks ? &s->elsewhere[i] : most;
    if (most->looks == 0 || s->gil_held + s->gil_released == 0 ||
        (strcmp(cause, "cpu") != 0 && strcmp(cause, "runqueue") != 0))
        return NULL;
    way = how(s, most);
    if (!way)
        return NULL;
    saved = duration_ns / s->python_looks * most->looks;
    if (strcmp(way, "yield") == 0)
        saved = saved > GIVE_NS ? saved - GIVE_NS : 0;
    else if (strcmp(way, "stays") == 0)
        saved = 0;
    return json_pack("{s:s, s:s, s:I}", "function", most->called[0] ? most->called : most->name, "how", way, "saved_ns",
                     (json_int_t)saved);
}

/* ---- at the end of a dry run ----------------------------------------------------------------- */

static uint64_t number(const json_t *o, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(o, key));
}

void ub_elsewhere_count(struct ub_explain *x, const json_t *line)
{
    const json_t *elsewhere = json_object_get(line, "elsewhere");
    const char *function = json_string_value(json_object_get(elsewhere, "function"));
    uint64_t saved = number(elsewhere, "saved_ns");
    json_t *o;

    if (x->w->offload != UB_OFFLOAD_DRY_RUN || !function || saved == 0 || json_object_get(line, "startup") ||
        json_object_get(line, "unclear"))
        return;
    if (!x->elsewhere)
        x->elsewhere = json_object();
    o = json_object_get(x->elsewhere, function);
    if (!o) {
        o = json_pack("{s:s, s:s, s:s, s:O, s:i, s:i, s:i}", "type", "python", "kind", "would-move", "function",
                      function, "place", json_object_get(elsewhere, "how"), "count", 0, "ns", 0, "longest_ns", 0);
        json_object_set_new(x->elsewhere, function, o);
    }
    json_object_set_new(o, "count", json_integer((json_int_t)number(o, "count") + 1));
    json_object_set_new(o, "ns", json_integer((json_int_t)(number(o, "ns") + saved)));
    if (saved > number(o, "longest_ns")) {
        json_object_set_new(o, "longest_ns", json_integer((json_int_t)saved));
        json_object_set(o, "place", json_object_get(elsewhere, "how"));
    }
}

void ub_elsewhere_finish(struct ub_explain *x)
{
    const char *function;
    json_t *o;

    json_object_foreach (x->elsewhere, function, o)
        ub_explain_emit(x, json_incref(o));
    json_decref(x->elsewhere);
    x->elsewhere = NULL;
}
