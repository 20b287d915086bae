/*
 * Whose connection a statement of ODBC's is: nothing of ODBC's says it later, so it is noted when the statement is
 * made. A statement that is not here (made before we came, or where there was no room) may be any connection's.
 */
#include "pyunits.h"

#define HANDLE_CONNECTION 2 /* SQL_HANDLE_DBC */
#define HANDLE_STATEMENT  3 /* SQL_HANDLE_STMT */
#define FAILED            (-1)
#define PLACES            1024u /* a power of two */
#define TRIES             8u

/* A statement is made, used and freed by one thread at a time; different ones by different threads at once. */
static struct place {
    uintptr_t statement, connection; /* a freed one's `connection` stays */
} places[PLACES];

static struct place *place_of(uintptr_t statement, uint32_t i)
{
    return &places[((statement * 0x9e3779b97f4a7c15ull >> 32) + i) % PLACES];
}

static struct place *find(uintptr_t statement)
{
    for (uint32_t i = 0; i < TRIES; i++) {
        struct place *p = place_of(statement, i);

        if (__atomic_load_n(&p->statement, __ATOMIC_ACQUIRE) == statement)
            return p;
    }
    return NULL;
}

static void put(uintptr_t statement, uintptr_t connection)
{
    struct place *p = find(statement); /* one that went with its connection */

    for (uint32_t i = 0; !p && i < TRIES; i++) {
        struct place *q = place_of(statement, i);
        uintptr_t none = 0;

        if (__atomic_compare_exchange_n(&q->statement, &none, statement, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
            p = q;
    }
    if (p)
        __atomic_store_n(&p->connection, connection, __ATOMIC_RELEASE);
}

static void drop(struct place *p)
{
    __atomic_store_n(&p->statement, 0, __ATOMIC_RELEASE);
}

const void *ub_pyodbc_connection(uint64_t statement)
{
    const struct place *p = find(statement);

    return p ? ub_pyodbc_unit(__atomic_load_n(&p->connection, __ATOMIC_ACQUIRE)) : UB_UNIT_ANY;
}

/* ---- the module's calls ------------------------------------------------------------------------ */

enum { ALLOCATE, FREE, IDS };
static void *original[IDS][UB_LOOP_COPIES];

static int16_t allocate(uint32_t copy, int16_t type, uintptr_t of, uintptr_t *made)
{
    int16_t r = ((int16_t(*)(int16_t, uintptr_t, uintptr_t *))original[ALLOCATE][copy])(type, of, made);

    if (type == HANDLE_STATEMENT && r > FAILED && made && *made)
        put(*made, of);
    return r;
}

/* Before it is one, since its address may be another's at once. */
static int16_t release(uint32_t copy, int16_t type, uintptr_t handle)
{
    struct place *p = type == HANDLE_STATEMENT ? find(handle) : NULL;

    if (p)
        drop(p);
    for (uint32_t i = 0; type == HANDLE_CONNECTION && i < PLACES; i++) { /* its statements have gone with it */
        if (__atomic_load_n(&places[i].connection, __ATOMIC_ACQUIRE) == handle)
            drop(&places[i]);
    }
    return ((int16_t(*)(int16_t, uintptr_t))original[FREE][copy])(type, handle);
}

/* clang-format off */
#define HOOKS(copy) \
    static int16_t hook##copy##_allocate(int16_t type, uintptr_t of, uintptr_t *made) { return allocate(copy, type, of, made); } \
    static int16_t hook##copy##_release(int16_t type, uintptr_t handle) { return release(copy, type, handle); }
HOOKS(0) HOOKS(1)
    /* clang-format on */

    static const struct ub_loop_hook hooks[] = {
        [ALLOCATE] = {"SQLAllocHandle", {(void *)hook0_allocate, (void *)hook1_allocate}, UB_HOOK_OTHERS},
        [FREE] = {"SQLFreeHandle", {(void *)hook0_release, (void *)hook1_release}, UB_HOOK_OTHERS},
};
static const char *const files[] = {"libodbc.so.", NULL};
static const char *const callers[] = {"pyodbc.", NULL};

const struct ub_loop_ops ub_pyodbc_handles = {
    .files = files, .callers = callers, .prefix = "SQL", .hooks = hooks, .count = IDS, .originals = original};
