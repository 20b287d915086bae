/*
 * The `python` lines at the end of a run: which coroutines yielded, what kept them from it; and, while it runs, the
 * functions that are called elsewhere. The agents have written
 * them with the interpreter's names (common/python_table.h); nothing of it is trusted.
 */
#include "explain_impl.h"
#include "watch_impl.h"

#include <string.h>

static const char *const kinds[] = {
#define X(name, text) text,
    UB_PYTHON_KIND_LIST(X)
#undef X
};

/* A copy that ends, and is UTF-8 or shortened to what is. */
static json_t *text_json(const char *from, size_t size)
{
    char text[UB_PYTHON_NAME];
    json_t *ret = NULL;
    size_t n;

    memcpy(text, from, size);
    n = strnlen(text, size);
    while (!ret && !(ret = json_stringn(text, n)) && n > 0)
        n--;
    return ret ? ret : json_string("");
}

static json_t *row_json(const struct ub_python_row *row)
{
    json_t *o = json_object();

    json_object_set_new(o, "type", json_string("python"));
    json_object_set_new(o, "kind", json_string(kinds[ub_load_relaxed(&row->kind) % UB_PYTHON_KINDS]));
    json_object_set_new(o, "function", text_json(row->name, sizeof(row->name)));
    json_object_set_new(o, "place", text_json(row->place, sizeof(row->place)));
    json_object_set_new(o, "text", text_json(row->text, sizeof(row->text)));
    json_object_set_new(o, "count", json_integer((json_int_t)ub_load_relaxed(&row->count)));
    json_object_set_new(o, "ns", json_integer((json_int_t)ub_load_relaxed(&row->ns)));
    json_object_set_new(o, "longest_ns", json_integer((json_int_t)ub_load_relaxed(&row->longest_ns)));
    return o;
}

json_t *ub_python_elsewhere(const struct ub_explain *x, uint64_t *ret_calls)
{
    const struct ub_python_table *t = &x->w->arena->python;
    json_t *functions = NULL, *one;

    *ret_calls = 0;
    for (uint32_t i = 0; i < UB_PYTHON_ROWS; i++) {
        if (ub_load_acquire(&t->row[i].state) != UB_PYTHON_LIVE || ub_load_relaxed(&t->row[i].kind) != UB_PYTHON_MOVED)
            continue;
        one = row_json(&t->row[i]);
        json_object_del(one, "type");
        json_object_del(one, "kind");
        json_object_del(one, "text");
        *ret_calls += (uint64_t)json_integer_value(json_object_get(one, "count"));
        functions = functions ? functions : json_array();
        json_array_append_new(functions, one);
    }
    return functions;
}

void ub_python_finish(struct ub_explain *x)
{
    const struct ub_python_table *t = &x->w->arena->python;

    for (uint32_t i = 0; i < UB_PYTHON_ROWS; i++) {
        if (ub_load_acquire(&t->row[i].state) == UB_PYTHON_LIVE)
            ub_explain_emit(x, row_json(&t->row[i]));
    }
}
