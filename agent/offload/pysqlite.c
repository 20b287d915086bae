#include "pysqlite.h"

#include "../module.h"
#include "locks.h"

#include <string.h>

#define TXN_NONE 0 /* SQLITE_TXN_NONE */

/* ---- transactions ---------------------------------------------------------------------------- */

static void put(struct mine *m, const void *connection, uintptr_t coroutine)
{
    struct ub_transaction *to = NULL;

    for (uint32_t i = 0; i < UB_TRANSACTIONS_MAX; i++) {
        struct ub_transaction *t = &m->transaction[i];

        if (t->connection == connection || (!to && !t->connection))
            to = t;
        if (t->connection == connection)
            break;
    }
    if (!to) /* more of them than there is room for: the oldest is as good as any */
        to = &m->transaction[0];
    m->transactions += to->connection == NULL;
    *to = (struct ub_transaction){connection, coroutine};
}

static void take(struct mine *m, struct ub_transaction *t)
{
    t->connection = NULL;
    m->transactions--;
}

static void drop(struct mine *m, const void *connection)
{
    for (uint32_t i = 0; m->transactions && i < UB_TRANSACTIONS_MAX; i++) {
        if (m->transaction[i].connection == connection)
            take(m, &m->transaction[i]);
    }
}

void ub_pysqlite_forget(struct mine *m, uintptr_t coroutine)
{
    for (uint32_t i = 0; m->transactions && i < UB_TRANSACTIONS_MAX; i++) {
        if (m->transaction[i].connection && m->transaction[i].coroutine == coroutine)
            take(m, &m->transaction[i]);
    }
}

bool ub_pysqlite_in_transaction(const struct mine *m, const struct step *s)
{
    for (uint32_t i = 0; m->transactions && i < UB_TRANSACTIONS_MAX; i++) {
        if (m->transaction[i].connection && m->transaction[i].coroutine == s->coroutine)
            return true;
    }
    return false;
}

/* ---- the module's calls ------------------------------------------------------------------------ */

/* clang-format off */
#define CALLS(X) \
    X(sqlite3_step, (void *of), (of), connection_of(of, copy)) \
    X(sqlite3_reset, (void *of), (of), connection_of(of, copy)) \
    X(sqlite3_exec, (void *of, void *sql, void *function, void *argument, void *error), (of, sql, function, argument, error), of) \
    X(sqlite3_prepare_v2, (void *of, void *sql, int n, void *statement, void *tail), (of, sql, n, statement, tail), of) \
    X(sqlite3_blob_open, (void *of, void *schema, void *table, void *column, int64_t row, int flags, void *blob), \
      (of, schema, table, column, row, flags, blob), of)
/* After these the connection is asked again (ENDS), or no more (CLOSES). */
#define ENDS(X) X(sqlite3_finalize, connection_of(of, copy)) X(sqlite3_blob_close, NULL) X(sqlite3_backup_finish, NULL)
#define CLOSES(X) X(sqlite3_close) X(sqlite3_close_v2)
#define ASKED(X) X(sqlite3_txn_state) X(sqlite3_db_handle)
#define ID(name, ...) ID_##name,
enum { CALLS(ID) ENDS(ID) CLOSES(ID) ASKED(ID) IDS };
static void *original[IDS][UB_LOOP_COPIES];
/* clang-format on */

static void *connection_of(void *statement, uint32_t copy)
{
    return statement ? ((void *(*)(void *))original[ID_sqlite3_db_handle][copy])(statement) : NULL;
}

/* Whether it has nothing open. A library that cannot say (before 3.34) is as though it had. */
static bool is_idle(void *connection, uint32_t copy)
{
    int (*state)(void *, const char *) = (int (*)(void *, const char *))original[ID_sqlite3_txn_state][copy];

    return state && state(connection, NULL) == TXN_NONE;
}

static struct mine *here(void)
{
    return ub_pysteps_python ? ub_pysteps_mine(false) : NULL;
}

static void note(struct mine *m, void *connection, uint32_t copy)
{
    if (is_idle(connection, copy))
        drop(m, connection);
    else if (m->current)
        put(m, connection, m->current->coroutine);
}

/* Which connection this step is busy with: whether it sleeps, and may be left, depends on its state. */
static void *begin(struct mine *m, void *connection, uint32_t copy)
{
    void *outer = NULL;

    if (m->current) {
        outer = m->current->connection;
        m->current->connection = connection;
        m->current->sqlite = copy;
    }
    return outer;
}

static void end(struct mine *m, void *connection, void *outer, uint32_t copy)
{
    if (m->current)
        m->current->connection = outer;
    note(m, connection, copy);
}

/* A handle is gone whose connection is not known: each is asked. */
static void ask_all(struct mine *m, uint32_t copy)
{
    for (uint32_t i = 0; m->transactions && i < UB_TRANSACTIONS_MAX; i++) {
        struct ub_transaction *t = &m->transaction[i];

        if (t->connection && is_idle((void *)t->connection, copy))
            take(m, t);
    }
}

/* clang-format off */
#define CALL(number, name, params, args, of_which) \
    static int hook##number##_##name params \
    { \
        const uint32_t copy = number; \
        struct mine *m = here(); \
        void *connection = m ? of_which : NULL, *outer; \
        int r; \
        if (!connection) \
            return ((int (*) params)original[ID_##name][copy])args; \
        outer = begin(m, connection, copy); \
        r = ((int (*) params)original[ID_##name][copy])args; \
        end(m, connection, outer, copy); \
        return r; \
    }
#define END(number, name, of_which) \
    static int hook##number##_##name(void *of) \
    { \
        const uint32_t copy = number; \
        struct mine *m = here(); \
        void *connection = m && m->transactions ? of_which : NULL; \
        int r = ((int (*)(void *))original[ID_##name][copy])(of); \
        if (connection) \
            note(m, connection, copy); \
        else if (m) \
            ask_all(m, copy); \
        return r; \
    }
#define CLOSE(number, name) \
    static int hook##number##_##name(void *of) \
    { \
        struct mine *m = here(); \
        if (m) \
            drop(m, of); \
        return ((int (*)(void *))original[ID_##name][number])(of); \
    }
#define CALL_0(...) CALL(0, __VA_ARGS__)
#define CALL_1(...) CALL(1, __VA_ARGS__)
#define END_0(...) END(0, __VA_ARGS__)
#define END_1(...) END(1, __VA_ARGS__)
#define CLOSE_0(name) CLOSE(0, name)
#define CLOSE_1(name) CLOSE(1, name)
CALLS(CALL_0) CALLS(CALL_1) ENDS(END_0) ENDS(END_1) CLOSES(CLOSE_0) CLOSES(CLOSE_1)

#define ROW(name, ...) {#name, {(void *)hook0_##name, (void *)hook1_##name}, UB_HOOK_OTHERS},
#define ASKED_ROW(name) {#name, {NULL}, UB_HOOK_OTHERS},
static const struct ub_loop_hook hooks[] = {CALLS(ROW) ENDS(ROW) CLOSES(ROW) ASKED(ASKED_ROW)};
_Static_assert(UB_ARRAY_LEN(hooks) == IDS, "one original a hook");
/* clang-format on */

/* ---- its sleeps ----------------------------------------------------------------------------------- */

static bool is_sqlite(uintptr_t at)
{
    const char *path = ub_module_name((const void *)at), *name = path ? strrchr(path, '/') : NULL;

    return name && strncmp(name, "/libsqlite3.", 12) == 0;
}

bool ub_pysqlite_may_nap(const struct step *s, uint32_t id, uintptr_t from, const void **mutex)
{
    uint64_t ra;

    *mutex = NULL;
    if (!ub_block_is_sleep(id) || !is_sqlite(from))
        return false;
    if (!ub_locks_held(&ra)) /* sqlite3_sleep */
        return true;
    *mutex = ub_locks_only_one(&ra);
    return *mutex && is_sqlite(ra) && s->connection && is_idle(s->connection, s->sqlite);
}

static const char *const files[] = {"libsqlite3.so.", NULL};
static const char *const callers[] = {"_sqlite3.", NULL};

const struct ub_loop_ops ub_pysqlite = {
    .files = files, .callers = callers, .prefix = "sqlite3_", .hooks = hooks, .count = IDS, .originals = original};
