#include "python_merge.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define EVAL       "_PyEval_EvalFrameDefault"
#define COROUTINES (UB_PYTHON_CO_COROUTINE | UB_PYTHON_CO_ITERABLE | UB_PYTHON_CO_ASYNC_GENERATOR)

static bool is_eval(const struct ub_named_frame *f)
{
    char name[64];

    if (!f->symbol.function || f->symbol.nearest || f->symbol.inlined || strncmp(f->symbol.function, EVAL, 8) != 0)
        return false;
    ub_frame_plain_name(f->symbol.function, name, sizeof(name));
    return strcmp(name, EVAL) == 0;
}

static enum ub_role role_of(enum ub_python_owner owner)
{
    switch (owner) {
    case UB_PYTHON_USER:
        return UB_ROLE_USER;
    case UB_PYTHON_LOOP:
        return UB_ROLE_LOOP;
    case UB_PYTHON_LIBRARY:
        break;
    }
    return UB_ROLE_LIBRARY;
}

static bool add_python(struct ub_named_stack *s, const struct ub_python_look *look, uint32_t i, uint64_t cfa)
{
    const struct ub_python_frame *p = &look->frame[i];
    struct ub_named_frame *f;

    if (s->count == UB_NAMED_MAX)
        return false;
    f = &s->frame[s->count++];
    *f = (struct ub_named_frame){.cfa = cfa, .role = role_of(p->code->owner), .python = (uint16_t)(i + 1)};
    f->symbol.function = p->code->function;
    f->symbol.file = p->code->file;
    f->symbol.line = ub_python_line(p);
    f->symbol.language = UB_LANGUAGE_PYTHON;
    s->hash = ub_frames_mix(ub_frames_mix(s->hash, (uintptr_t)p->code), f->symbol.line);
    return true;
}

/* The frames that one run of the interpreter executes, from `i`; returns the first of the next run. */
static uint32_t add_run(struct ub_named_stack *s, const struct ub_python_look *look, uint32_t i, uint64_t cfa)
{
    while (i < look->count && add_python(s, look, i, cfa)) {
        if (look->frame[i++].entry)
            break;
    }
    return i;
}

static uint32_t count_runs(const struct ub_python_look *look)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < look->count; i++)
        n += look->frame[i].entry;
    return n;
}

/* Inner frames of a thread that runs may have been left out: then the first runs of the native stack have none. */
static uint32_t unmatched(const struct ub_named_stack *native, const struct ub_python_look *look)
{
    uint32_t evals = 0, runs = count_runs(look);

    for (uint32_t i = 0; i < native->count; i++)
        evals += is_eval(&native->frame[i]);
    return native->complete && look->complete && evals > runs ? evals - runs : 0;
}

bool ub_python_merge(struct ub_named_stack *s, const struct ub_python_look *look)
{
    struct ub_named_stack *native;
    uint32_t next = 0, skip;
    bool fits;

    if (look->count == 0)
        return true;
    native = malloc(sizeof(*native));
    if (!native)
        return false;
    memcpy(native, s, offsetof(struct ub_named_stack, frame) + s->count * sizeof(s->frame[0]));
    skip = unmatched(native, look);
    fits = skip == 0;
    s->count = 0;
    for (uint32_t i = 0; i < native->count && s->count < UB_NAMED_MAX; i++) {
        const struct ub_named_frame *f = &native->frame[i];

        if (is_eval(f) && skip > 0)
            skip--;
        else if (is_eval(f) && next < look->count)
            next = add_run(s, look, next, f->cfa);
        else
            s->frame[s->count++] = *f;
    }
    if (next < look->count && native->complete && native->count > 0)
        fits = false;
    while (next < look->count && s->count < UB_NAMED_MAX) /* the native stack was cut short, or is missing */
        next = add_run(s, look, next, 0);
    free(native);
    return fits;
}

/*
 * Both looks share their outer frames; the first one, from outside, that has
 * come to another instruction called the wait then and the callback now. Index
 * in `look` of it; look->count: they share nothing.
 */
static uint32_t dispatcher(const struct ub_python_look *look, const struct ub_python_look *wait)
{
    uint32_t at = look->count;

    for (uint32_t n = 0; wait && n < look->count && n < wait->count; n++) {
        const struct ub_python_frame *a = &look->frame[look->count - 1 - n], *b = &wait->frame[wait->count - 1 - n];

        if (a->address != b->address || a->code != b->code)
            break;
        at = look->count - 1 - n;
        if (a->offset != b->offset)
            break;
    }
    return at;
}

int ub_python_callback(const struct ub_named_stack *s, const struct ub_python_look *look,
                       const struct ub_python_look *wait)
{
    uint32_t limit = dispatcher(look, wait);
    int outermost = -ENOENT;

    for (uint32_t i = 0; i < s->count; i++) {
        const struct ub_named_frame *f = &s->frame[i];

        if (f->python > limit || (f->role == UB_ROLE_LOOP && outermost >= 0))
            break;
        if (f->python && f->role == UB_ROLE_USER)
            outermost = (int)i;
    }
    return outermost;
}

const char *ub_python_loop(const struct ub_named_stack *s)
{
    const char *loop = NULL;

    for (uint32_t i = 0; i < s->count; i++) {
        const struct ub_named_frame *f = &s->frame[i];

        if (f->map && f->map->elf && strstr(f->map->elf->path, "/uvloop/"))
            return "uvloop";
        if (f->python && f->role == UB_ROLE_LOOP)
            loop = "asyncio";
    }
    return loop;
}

bool ub_python_synchronous(const struct ub_python_look *look)
{
    static const struct {
        const char *file, *function;
    } waits[] = {
        {"/subprocess.py", "_communicate"},
        {"/multiprocessing/connection.py", "wait"},
    };

    for (uint32_t i = 0; look && i < look->count; i++) {
        const struct ub_python_code *code = look->frame[i].code;
        const char *last = strrchr(code->function, '.');

        for (size_t k = 0; k < UB_ARRAY_LEN(waits); k++) {
            size_t file = strlen(code->file), wanted = strlen(waits[k].file);

            if (strcmp(last ? last + 1 : code->function, waits[k].function) == 0 && file >= wanted &&
                strcmp(code->file + file - wanted, waits[k].file) == 0)
                return code->owner == UB_PYTHON_LIBRARY;
        }
        if (code->owner != UB_PYTHON_LIBRARY)
            return false;
    }
    return false;
}

bool ub_python_importing(const struct ub_python_look *look)
{
    for (uint32_t i = 0; i < look->count; i++) {
        const struct ub_python_code *code = look->frame[i].code;

        if (code->owner == UB_PYTHON_LOOP)
            return false;
        if (strcmp(code->function, "_find_and_load") == 0 && strncmp(code->file, "<frozen importlib", 17) == 0)
            return true;
    }
    return false;
}

static const char *last_component(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

static json_t *place(const struct ub_python_code *code, uint32_t line, bool redact)
{
    const char *file = redact ? last_component(code->file) : code->file;
    json_t *o = json_pack("{s:s, s:s}", "function", code->function, "file", file);

    if (o && line)
        json_object_set_new(o, "line", json_integer(line));
    return o;
}

json_t *ub_python_place(const struct ub_python_frame *frame, bool redact)
{
    return place(frame->code, ub_python_line(frame), redact);
}

json_t *ub_python_code_place(const struct ub_python_code *code, bool redact)
{
    return place(code, code->first_line > 0 ? (uint32_t)code->first_line : 0, redact);
}

json_t *ub_python_task_json(const struct ub_python_look *look, bool redact)
{
    const struct ub_python_task *task = &look->task;
    json_t *o, *chain;

    if (!task->known)
        return NULL;
    o = json_object();
    chain = json_array();
    if (*task->name)
        json_object_set_new(o, "name", json_string(task->name));
    json_object_set_new(o, "coroutine", json_string(look->frame[task->coroutine].code->function));
    if (*task->created_file)
        json_object_set_new(o, "created",
                            json_pack("{s:s, s:i}", "file",
                                      redact ? last_component(task->created_file) : task->created_file, "line",
                                      task->created_line));
    /* What awaits what: coroutines, without a function between. */
    for (uint32_t i = task->coroutine + 1;
         i-- > 0 && look->frame[i].code->flags & (COROUTINES | UB_PYTHON_CO_GENERATOR);)
        json_array_append_new(chain, ub_python_place(&look->frame[i], redact));
    json_object_set_new(o, "await", chain);
    return o;
}

const char *ub_python_proof_name(const struct ub_python_look *look, bool merged)
{
    if (!merged)
        return "unproven";
    switch (look->proof) {
    case UB_PYTHON_STILL:
        return "still";
    case UB_PYTHON_TWICE:
        return "twice";
    case UB_PYTHON_UNPROVEN:
        break;
    }
    return "unproven";
}
