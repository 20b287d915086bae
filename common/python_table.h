/*
 * What is asked of Python programs beyond their blocking calls, and what came of it: steps of tasks that yield by
 * themselves. In the arena: the tracer writes the rules before anybody maps
 * it; agents add rows, with the interpreter's own names, since they have them at hand. Rows stay for the run.
 *
 * Written by any thread of the programs, atomically; the tracer reads, and trusts nothing.
 */
#ifndef UB_PYTHON_TABLE_H
#define UB_PYTHON_TABLE_H

#include "base.h"

#include <string.h>

#define UB_PYTHON_RULES 16384u
#define UB_PYTHON_ROWS  512u
#define UB_PYTHON_NAME  104u
#define UB_PYTHON_PLACE 40u
#define UB_PYTHON_TEXT  64u

/* The recording's `kind` of a `python` line. */
#define UB_PYTHON_KIND_LIST(X)                                                                                         \
    X(YIELD, "yield") /* a coroutine's steps were set aside so often */                                                \
    X(HELD, "held")   /* what kept one from it: `ns` from the asking to the next bytecode */                           \
    X(MOVED,                                                                                                           \
      "moved") /* a function ran elsewhere (`place`) so often; `ns` from its calls to their callers' going on */       \
    X(STAYED, "stayed")   /* ... stayed where it was, since `text`, and took `ns` */                                   \
    X(RULE, "rule")       /* a rule (`function`: its pattern) fits this many functions */                              \
    X(NEAREST, "nearest") /* ... fits none by now; `text` is near */                                                   \
    X(REFUSED, "refused") /* ... fits something that cannot be called elsewhere, since `text` */                       \
    X(NOTE, "note")       /* `text` says it all */                                                                     \
    X(WOULD,                                                                                                           \
      "would-move") /* of a dry run, by the tracer: a function would run elsewhere (`place`, or "yield") so often */

enum ub_python_kind {
#define X(name, text) UB_PYTHON_##name,
    UB_PYTHON_KIND_LIST(X)
#undef X
        UB_PYTHON_KINDS
};

enum ub_python_row_state { UB_PYTHON_FREE = 0, UB_PYTHON_TAKING = 1, UB_PYTHON_LIVE = 2 };

struct ub_python_row {
    uint32_t state; /* enum ub_python_row_state */
    uint32_t kind;  /* enum ub_python_kind */
    uint64_t count;
    uint64_t ns, longest_ns; /* how long it was away; of HELD: see there */
    uint64_t reserved[2];
    char name[UB_PYTHON_NAME];
    char place[UB_PYTHON_PLACE]; /* "app.py:12" */
    char text[UB_PYTHON_TEXT];
};
_Static_assert(sizeof(struct ub_python_row) == 256, "rows: agent and tracer agree on it");

struct ub_python_table {
    uint64_t yield_ns;   /* the shortest slice of all rules; 0: nothing yields */
    uint32_t rules_size; /* bytes in `rules` */
    uint32_t full;       /* rows that found no room */
    uint64_t reserved[6];
    /*
     * Lines, in their order: "yield NS PATTERN", "except 0 PATTERN", and for functions "thread N PATTERN", "process N
     * PATTERN", "fork 0 PATTERN", "inline 0 PATTERN" (N: how many at once; 0: not said). The first that fits counts.
     */
    char rules[UB_PYTHON_RULES];
    struct ub_python_row row[UB_PYTHON_ROWS];
};

/* Whether steps of asyncio's tasks have to run on stacks of their own for it. */
static inline bool ub_python_table_wants_steps(const struct ub_python_table *t)
{
    return ub_load_relaxed(&t->yield_ns) != 0 || ub_load_relaxed(&t->rules_size) != 0;
}

/* Cut off between characters. */
static inline void ub_python_table_text(char *to, size_t size, const char *from)
{
    size_t n = 0;

    while (n < size - 1 && from[n])
        n++;
    while (n > 0 && ((unsigned char)from[n] & 0xc0) == 0x80)
        n--;
    memcpy(to, from, n);
    memset(to + n, 0, size - n);
}

/* The row of that name, or a new one; NULL: there is no room. */
static inline struct ub_python_row *ub_python_table_row(struct ub_python_table *t, enum ub_python_kind kind,
                                                        const char *name, const char *place, const char *text)
{
    struct ub_python_row wanted = {.kind = kind};

    ub_python_table_text(wanted.name, sizeof(wanted.name), name);
    ub_python_table_text(wanted.place, sizeof(wanted.place), place);
    ub_python_table_text(wanted.text, sizeof(wanted.text), text);
    for (uint32_t i = 0; i < UB_PYTHON_ROWS; i++) {
        struct ub_python_row *row = &t->row[i];
        uint32_t free = UB_PYTHON_FREE;

        if (ub_load_acquire(&row->state) == UB_PYTHON_LIVE) {
            if (row->kind == kind && memcmp(row->name, wanted.name, sizeof(row->name)) == 0 &&
                memcmp(row->place, wanted.place, sizeof(row->place)) == 0 &&
                memcmp(row->text, wanted.text, sizeof(row->text)) == 0)
                return row;
            continue;
        }
        if (!__atomic_compare_exchange_n(&row->state, &free, UB_PYTHON_TAKING, false, __ATOMIC_ACQUIRE,
                                         __ATOMIC_RELAXED))
            continue; /* another thread: perhaps for the same; a second one does no harm */
        row->kind = kind;
        memcpy(row->name, wanted.name, sizeof(row->name));
        memcpy(row->place, wanted.place, sizeof(row->place));
        memcpy(row->text, wanted.text, sizeof(row->text));
        ub_store_release(&row->state, UB_PYTHON_LIVE);
        return row;
    }
    __atomic_fetch_add(&t->full, 1, __ATOMIC_RELAXED);
    return NULL;
}

static inline void ub_python_row_add(struct ub_python_row *row, uint64_t ns)
{
    uint64_t longest = ub_load_relaxed(&row->longest_ns);

    __atomic_fetch_add(&row->count, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&row->ns, ns, __ATOMIC_RELAXED);
    while (longest < ns &&
           !__atomic_compare_exchange_n(&row->longest_ns, &longest, ns, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
}

#endif
