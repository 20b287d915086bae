/*
 * What a thread works on when it computes: the function of C that its innermost frame has called, and how much data its
 * frames hold. Both are read from frames that may change meanwhile: a hint for who looks several times.
 */
#include "python_impl.h"

#include <stdio.h>
#include <stdlib.h>

#define STACK_MAX  24u /* values of a frame that are looked at */
#define LOCALS_MAX 8u
#define SAMPLE     2u /* of a container its first */
#define DEPTH_MAX  8
#define OBJECTS    150u /* that are read for one frame at the most */
#define FRAMES_MAX 3u   /* that the coroutine has called */
#define BYTES_EACH 64u  /* of a string or bytes, that weigh as much as one object */

/* PyTypeObject.tp_flags */
#define IS_LONG    (1ull << 24)
#define IS_LIST    (1ull << 25)
#define IS_TUPLE   (1ull << 26)
#define IS_BYTES   (1ull << 27)
#define IS_UNICODE (1ull << 28)
#define IS_DICT    (1ull << 29)

/* PyCFunctionObject */
#define FUNCTION_ML     16u
#define FUNCTION_MODULE 32u

/* Values of a frame from `first` on: its variables, then what it computes with. */
static bool read_values(const struct ub_python *py, const struct ub_python_frame *f, uint64_t first, uint64_t *values,
                        uint32_t count)
{
    return ub_python_read(py, f->address + py->layout.frame_locals + first * sizeof(*values), values,
                          count * sizeof(*values));
}

/* How many variables it has. */
static bool count_locals(const struct ub_python *py, const struct ub_python_frame *f, uint64_t *ret)
{
    uint64_t code, names;

    return f->address && py->layout.code_locals != UB_PYTHON_NONE &&
           ub_python_read_pointer(py, f->address + py->layout.frame_code, &code) &&
           ub_python_read_pointer(py, code + py->layout.code_locals, &names) &&
           ub_python_read_pointer(py, names + UB_PYTHON_VAR_SIZE, ret) && *ret < 1000;
}

/* ---- the function called ------------------------------------------------------------------------- */

/* "pickle.dump" of _pickle.dump. False: it is none of a module's, or one of the language. */
static bool name_function(struct ub_python *py, uint64_t function, char *ret, size_t size)
{
    char module[64], text[64];
    uint64_t ml, name, of;

    if (!ub_python_is(py, function, "builtin_function_or_method") ||
        !ub_python_read_pointer(py, function + FUNCTION_ML, &ml) || !ub_python_read_pointer(py, ml, &name) ||
        !ub_python_read_pointer(py, function + FUNCTION_MODULE, &of) || !of ||
        !ub_python_string(py, of, module, sizeof(module)) || strcmp(module, "builtins") == 0)
        return false;
    memset(text, 0, sizeof(text));
    for (size_t i = 0; i + 8 < sizeof(text) && ub_python_read(py, name + i, text + i, 8); i += 8) {
        if (memchr(text + i, 0, 8))
            break;
    }
    if (!*text || strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789") != strlen(text))
        return false;
    snprintf(ret, size, "%s.%s", module + (module[0] == '_'), text);
    return true;
}

/*
 * A call's function lies on the frame's stack until it returns, and what lies below waits for it. The lowest is taken:
 * what is above may be left over from earlier calls.
 */
static void see_called(struct ub_python *py, struct ub_python_look *look)
{
    uint64_t value[STACK_MAX], first;

    if (!count_locals(py, &look->frame[0], &first))
        return;
    for (uint32_t i = 0; i < STACK_MAX; i++) {
        if (!read_values(py, &look->frame[0], first + i, value + i, 1))
            return;
        if (value[i] && value[i] % 8 == 0 && name_function(py, value[i], look->called, sizeof(look->called)))
            return;
    }
}

/* ---- data ------------------------------------------------------------------------------------------ */

struct weigh {
    struct ub_python *py;
    uint32_t left; /* objects that may still be read */
};

static uint64_t weight_of(struct weigh *w, uint64_t object, int depth);

static uint64_t times(uint64_t count, uint64_t sum, uint32_t of)
{
    return of ? count * (1 + sum / of) : count;
}

static uint64_t weigh_items(struct weigh *w, uint64_t items, uint64_t count, int depth)
{
    uint64_t item[SAMPLE], sum = 0;
    uint32_t n = count < SAMPLE ? (uint32_t)count : SAMPLE;

    if (count > UINT32_MAX || !ub_python_read(w->py, items, item, n * sizeof(*item)))
        return 0;
    for (uint32_t i = 0; i < n; i++)
        sum += weight_of(w, item[i], depth + 1);
    return times(count, sum, n);
}

static uint64_t weigh_dict(struct weigh *w, uint64_t dict, uint64_t count, int depth)
{
    uint64_t sum = 0;
    uint32_t n = 0;
    struct ub_python_entry *entry = count > UINT32_MAX ? NULL : ub_python_dict(w->py, dict, SAMPLE, &n);

    for (uint32_t i = 0; i < n; i++)
        sum += weight_of(w, entry[i].value, depth + 1);
    free(entry);
    return times(count, sum, n);
}

/* About how many objects; the first of a container stand for all. 0: nobody knows. */
static uint64_t weight_of(struct weigh *w, uint64_t object, int depth)
{
    uint64_t type, flags, count, items;

    if (!object || object % 8 || depth > DEPTH_MAX || w->left == 0)
        return 0;
    w->left--;
    if (!ub_python_read_pointer(w->py, object + UB_PYTHON_OBJECT_TYPE, &type) ||
        !ub_python_read_pointer(w->py, type + UB_PYTHON_TYPE_FLAGS, &flags) ||
        !ub_python_read_pointer(w->py, object + UB_PYTHON_VAR_SIZE, &count))
        return 0;
    if (flags & (IS_BYTES | IS_UNICODE))
        return count > UINT32_MAX * 64ull ? 0 : 1 + count / BYTES_EACH;
    if (flags & IS_TUPLE)
        return weigh_items(w, object + UB_PYTHON_TUPLE_ITEMS, count, depth);
    if (flags & IS_LIST)
        return ub_python_read_pointer(w->py, object + UB_PYTHON_LIST_ITEMS, &items)
                   ? weigh_items(w, items, count, depth)
                   : 0;
    return flags & IS_DICT ? weigh_dict(w, object, count, depth) : 1;
}

/* A frame's first variables; how many, 0: none that can be read. */
static uint32_t read_locals(struct ub_python *py, const struct ub_python_frame *f, uint64_t value[LOCALS_MAX])
{
    uint64_t count;

    if (!count_locals(py, f, &count))
        return 0;
    count = count < LOCALS_MAX ? count : LOCALS_MAX;
    return read_values(py, f, 0, value, (uint32_t)count) ? (uint32_t)count : 0;
}

static uint64_t weigh_locals(struct ub_python *py, const struct ub_python_frame *f)
{
    struct weigh w = {.py = py, .left = OBJECTS};
    uint64_t value[LOCALS_MAX], weight = 0;
    uint32_t count = read_locals(py, f, value);

    for (uint32_t i = 0; i < count; i++)
        weight += weight_of(&w, value[i], 0);
    return weight;
}

/* Numbers by what they are: a loop that counts has the next where the last one was. */
static uint64_t mark_object(struct ub_python *py, uint64_t object)
{
    uint64_t type, flags, number[2];

    if (object && object % 8 == 0 && ub_python_read_pointer(py, object + UB_PYTHON_OBJECT_TYPE, &type) &&
        ub_python_read_pointer(py, type + UB_PYTHON_TYPE_FLAGS, &flags) && (flags & IS_LONG) &&
        ub_python_read(py, object + UB_PYTHON_VAR_SIZE, number, sizeof(number)))
        return number[0] ^ number[1];
    return object;
}

/* Of what the innermost frame's first variables are. */
static uint64_t mark_locals(struct ub_python *py, const struct ub_python_frame *f)
{
    uint64_t value[LOCALS_MAX], mark;
    uint32_t count = read_locals(py, f, value);

    mark = count > 0; /* 0: not known */
    for (uint32_t i = 0; i < count; i++)
        mark = (mark ^ mark_object(py, value[i])) * 0x9e3779b97f4a7c15ull;
    return mark;
}

void ub_python_see_work(struct ub_python *py, struct ub_python_look *look)
{
    uint32_t coroutine = 0;

    if (look->count == 0 || look->gil == UB_PYTHON_GIL_WAITED || py->layout.frame_locals == UB_PYTHON_NONE)
        return;
    see_called(py, look);
    look->locals = mark_locals(py, &look->frame[0]);
    while (coroutine < look->count && !(look->frame[coroutine].code->flags & UB_PYTHON_CO_COROUTINE))
        coroutine++;
    for (uint32_t i = coroutine; coroutine < look->count && i > 0 && coroutine - i < FRAMES_MAX; i--) {
        uint64_t weight = weigh_locals(py, &look->frame[i - 1]);

        look->data = weight > look->data ? weight : look->data;
    }
}
