/*
 * GLib, 2.x: a source's `dispatch` function stands in a table of functions. Those
 * of the built-in sources are exported variables of GLib; tables of the
 * program's own sources (GIO's among them) are seen where a source is made of one.
 * The thunk takes dispatch's place in the table itself: a copy of the table would
 * break programs that know their sources by its address.
 *
 * The callback is dispatch's second argument; a source without one is named by
 * its dispatch function. GLib calls it while it holds the source.
 */
#include "existing.h"
#include "loop.h"

#include "../module.h"
#include "../patch.h"

#include <string.h>

static const char *version(void);
static const char *name(uint64_t source);

#define SOURCE_SIZE 96 /* sizeof(GSource): what a built-in source has of its own begins there */
#define SHAPE(name_, kind_, ...)                                                                                       \
    static const struct ub_shape name_ = {.kind = UB_CALLBACK_##kind_,                                                 \
                                          .library = UB_LOOP_GLIB,                                                     \
                                          .version = version,                                                          \
                                          .name = name,                                                                \
                                          .function = 2,                                                               \
                                          __VA_ARGS__}
SHAPE(timeout, TIMER);
SHAPE(idle, IDLE);
SHAPE(io, IO, .fd = UB_FD_MEMBER, .fd_at = SOURCE_SIZE); /* GIOWatch and GUnixFDSource begin with it */
SHAPE(child, CHILD);
SHAPE(signal, SIGNAL);
SHAPE(source, SOURCE);

struct source_funcs {
    void *prepare, *check, *dispatch, *finalize;
};

static const char *const tables[] = {
    "g_timeout_funcs",     "g_idle_funcs", "g_io_watch_funcs", "g_unix_fd_source_funcs", "g_child_watch_funcs",
    "g_unix_signal_funcs", NULL,
};
static const struct ub_shape *const shape_of[] = {&timeout, &idle, &io, &io, &child, &signal};

/* A table that could not be written: asked for again and again, it is given up at once. */
static struct source_funcs *refused;

static void patch_table(struct source_funcs *funcs, const struct ub_shape *shape)
{
    void *dispatch, *thunk;

    if (!funcs || funcs == ub_load_relaxed(&refused))
        return;
    dispatch = ub_load_relaxed(&funcs->dispatch);
    if (!dispatch || ub_thunk_original(dispatch) != dispatch)
        return;
    thunk = ub_thunk(dispatch, shape);
    if (thunk != dispatch && !ub_patch_pointer(&funcs->dispatch, thunk))
        ub_store_relaxed(&refused, funcs);
}

/* clang-format off */
#define FUNCTIONS(X) \
    X(void *, g_source_new, (struct source_funcs *funcs, unsigned size), (seen(funcs), size)) \
    X(void, g_source_set_funcs, (void *s, struct source_funcs *funcs), (s, seen(funcs)))

enum { FUNCTIONS(UB_LOOP_ID) ID_name, ID_check_version, IDS };
static void *original[IDS][UB_LOOP_COPIES];

static struct source_funcs *seen(struct source_funcs *funcs)
{
    patch_table(funcs, &source);
    return funcs;
}

FUNCTIONS(UB_LOOP_HOOK_0)
FUNCTIONS(UB_LOOP_HOOK_1)

static const struct ub_loop_hook hooks[] = {
    FUNCTIONS(UB_LOOP_ROW)
    {"g_source_get_name", {NULL}, UB_HOOK_OTHERS},
    {"glib_check_version", {NULL}, UB_HOOK_OTHERS},
};
_Static_assert(UB_ARRAY_LEN(hooks) == IDS, "one original a hook");
/* clang-format on */

/* GLib has no function that says it; it answers to what it is asked. */
static const char *version(void)
{
    static char text[16];
    const char *(*check)(unsigned, unsigned, unsigned) = original[ID_check_version][0];
    unsigned minor = 0;

    if (!check || check(2, 0, 0))
        return NULL;
    while (minor < 999 && !check(2, minor + 1, 0))
        minor++;
    text[0] = '2';
    text[1] = '.';
    text[2] = (char)('0' + minor / 10 % 10);
    text[3] = (char)('0' + minor % 10);
    return text;
}

/*
 * With two copies it is not known whose the source is. GIO's names begin with
 * the way to its own source ("[gio, ../../../gio/gdbusconnection.c] call_in_idle_cb"), which is left out.
 */
static const char *name(uint64_t object)
{
    const char *(*call)(uint64_t) = original[ID_name][0];
    const char *text = call && !original[ID_name][1] ? call(object) : NULL;

    for (const char *up = text; up; up = strstr(up, "../")) {
        if (strncmp(up, "../", 3) == 0)
            text = up += 3;
    }
    return text;
}

static void found(uint32_t copy, void *const *data)
{
    for (uint32_t i = 0; i < UB_ARRAY_LEN(shape_of); i++)
        patch_table(data[i], shape_of[i]);
}

/* ---- sources that were there before us -------------------------------------------- */

/* Of GSource: its header has them, and its ABI has not changed since 2.0. */
#define SOURCE_FUNCS   16
#define SOURCE_CONTEXT 32
#define SOURCE_PREV    64
#define SOURCE_NEXT    72

/*
 * A context's sources are in lists by priority, and these in a list; where that begins in the context differs between
 * versions of GLib, so it is looked for.
 */
#define CONTEXT_WORDS 40u
#define SOURCES_MAX   1024u
#define STACK_MAX     (16u << 20)

struct list {
    uint64_t data, next, prev;
};

static bool is_code(const void *function)
{
    return !function || ub_module_name(function);
}

/* Only a constant of some module's: a table on the heap may be gone by now, as the context is not locked. */
static void wrap_table(uint64_t at)
{
    struct source_funcs funcs;

    if (ub_module_name((void *)(uintptr_t)at) && ub_existing_read(at, &funcs, sizeof(funcs)) && funcs.dispatch &&
        is_code(funcs.prepare) && is_code(funcs.check) && is_code(funcs.dispatch) && is_code(funcs.finalize))
        patch_table((struct source_funcs *)(uintptr_t)at, &source);
}

static bool source_word(uint64_t at, uint32_t offset, uint64_t *ret)
{
    return ub_existing_read(at + offset, ret, sizeof(*ret));
}

/* The sources from `at` on that are this context's; how many. */
static uint32_t wrap_sources(uint64_t at, uint64_t context)
{
    uint64_t of, funcs, next;
    uint32_t n = 0;

    for (; n < SOURCES_MAX && at && source_word(at, SOURCE_CONTEXT, &of) && of == context; n++, at = next) {
        if (!source_word(at, SOURCE_FUNCS, &funcs) || !source_word(at, SOURCE_NEXT, &next))
            break;
        wrap_table(funcs);
    }
    return n;
}

/* Where contexts, lists and sources are: neither in a module nor on this stack. */
static bool may_be_heap(uint64_t at)
{
    uint64_t from_here = at - (uintptr_t)__builtin_frame_address(0) + STACK_MAX / 2;

    return at > 65536 && at % 8 == 0 && at < 1ull << 47 && from_here > STACK_MAX &&
           !ub_module_name((void *)(uintptr_t)at);
}

/* `at` may be anything: it is a context if a list of its leads to sources that lead back to it. */
static bool adopt(uint32_t copy, uint64_t at, int epfd)
{
    uint64_t word[CONTEXT_WORDS], head, first_prev;
    uint32_t found = 0;
    struct list list;

    if (!may_be_heap(at) || !ub_existing_read(at, word, sizeof(word)))
        return false;
    for (uint32_t i = 0; i < CONTEXT_WORDS && found == 0; i++) {
        uint64_t next = word[i];

        for (uint32_t n = 0; may_be_heap(next) && n < SOURCES_MAX; n++) {
            if (!ub_existing_read(next, &list, sizeof(list)) || !may_be_heap(list.data) ||
                !source_word(list.data, 0, &head) || !may_be_heap(head) ||
                !source_word(head, SOURCE_PREV, &first_prev) || first_prev != 0 || wrap_sources(head, at) == 0)
                break;
            found++;
            next = list.next;
        }
    }
    return found > 0;
}

static const char *const files[] = {"libglib-2.0.", NULL};

const struct ub_loop_ops ub_loop_glib = {.files = files,
                                         .prefix = "g_source_",
                                         .hooks = hooks,
                                         .count = IDS,
                                         .originals = original,
                                         .data = tables,
                                         .found = found,
                                         .adopt = adopt};
