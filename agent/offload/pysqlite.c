/*
 * A little long for one file: transactions, connections, and the steps that compute are asked about together, by the
 * same hooks.
 */
#include "pysqlite.h"

#include "../../common/units.h"
#include "../calls/timing.h"
#include "../module.h"
#include "../python/stack.h"
#include "locks.h"

#include <errno.h>
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
    X(sqlite3_reset, (void *of), (of), connection_of(of, copy)) \
    X(sqlite3_exec, (void *of, void *sql, void *function, void *argument, void *error), (of, sql, function, argument, error), of) \
    X(sqlite3_prepare_v2, (void *of, void *sql, int n, void *statement, void *tail), (of, sql, n, statement, tail), of) \
    X(sqlite3_blob_open, (void *of, void *schema, void *table, void *column, int64_t row, int flags, void *blob), \
      (of, schema, table, column, row, flags, blob), of)
/* Of a backup: it has two. */
#define STEPS(X) X(sqlite3_backup_step, (void *of, int pages), (of, pages))
/* These only look, but at what a call that is away may change. */
#define LOOKS(X) X(sqlite3_get_autocommit) X(sqlite3_total_changes) X(sqlite3_changes) X(sqlite3_stmt_busy)
/* From then on the connection's calls may call Python. */
#define HANDLERS(X) \
    X(sqlite3_create_function_v2, \
      (void *of, void *name, int n, int code, void *data, void *function, void *step, void *final, void *destroy), \
      (of, name, n, code, data, function, step, final, destroy)) \
    X(sqlite3_create_window_function, \
      (void *of, void *name, int n, int code, void *data, void *step, void *final, void *value, void *inverse, void *destroy), \
      (of, name, n, code, data, step, final, value, inverse, destroy)) \
    X(sqlite3_create_collation_v2, (void *of, void *name, int code, void *data, void *function, void *destroy), \
      (of, name, code, data, function, destroy)) \
    X(sqlite3_set_authorizer, (void *of, void *function, void *data), (of, function, data)) \
    X(sqlite3_progress_handler, (void *of, int n, void *function, void *data), (of, n, function, data)) \
    X(sqlite3_trace, (void *of, void *function, void *data), (of, function, data)) \
    X(sqlite3_trace_v2, (void *of, unsigned mask, void *function, void *data), (of, mask, function, data)) \
    X(sqlite3_enable_load_extension, (void *of, int on), (of, on)) \
    X(sqlite3_load_extension, (void *of, void *file, void *entry, void *error), (of, file, entry, error))
/* After these the connection is asked again (ENDS), or no more (CLOSES). */
#define ENDS(X) X(sqlite3_finalize, connection_of(of, copy)) X(sqlite3_blob_close, NULL) X(sqlite3_backup_finish, NULL)
#define CLOSES(X) X(sqlite3_close) X(sqlite3_close_v2)
#define ASKED(X) X(sqlite3_txn_state) X(sqlite3_db_handle) X(sqlite3_db_mutex)
#define ID(name, ...) ID_##name,
enum { CALLS(ID) STEPS(ID) LOOKS(ID) HANDLERS(ID) ENDS(ID) CLOSES(ID) ASKED(ID) ID_sqlite3_step, ID_sqlite3_open_v2, IDS };
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

/* In the dry run, where no step is on a fiber, only what the thread's connections do is kept there. */
static struct mine *here(void)
{
    if (ub_offload_mode == UB_OFFLOAD_DRY_RUN)
        return ub_pysteps_mine(true);
    return ub_pysteps_python ? ub_pysteps_mine(false) : NULL;
}

/* Whose step runs; 0: nobody's. */
static uintptr_t coroutine_here(const struct mine *m)
{
    const struct ub_callback *step;

    if (m->current || ub_offload_mode != UB_OFFLOAD_DRY_RUN)
        return m->current ? m->current->coroutine : 0;
    step = ub_span_asyncio(&ub_thread.cold->spans);
    return step && step->kind == UB_CALLBACK_TASK ? step->object : 0;
}

void ub_pysqlite_ended(uintptr_t coroutine)
{
    struct mine *m = ub_pysteps_mine(false);

    if (m)
        ub_pysqlite_forget(m, coroutine);
}

static void note(struct mine *m, void *connection, uint32_t copy)
{
    uintptr_t coroutine;

    if (is_idle(connection, copy))
        drop(m, connection);
    else if ((coroutine = coroutine_here(m)) != 0)
        put(m, connection, coroutine);
}

/* While a call of another step's is made by a thread nobody else uses SQLite. */
static void queue_up(void)
{
    if (ub_unlikely(ub_load_relaxed(&ub_locks_away)))
        ub_pysteps_wait_for_mutex(UB_SQLITE_ANY);
}

/* ---- connections --------------------------------------------------------------------------------- */

#define OPEN_MAX     256u
#define CALLS_PYTHON 1u
#define CHECKED      2u
#define FLAGS        ((uintptr_t)3)

/* Those that were opened before our eyes; CALLS_PYTHON: a handler was ever set; CHECKED: see ident_hooks. By any
 * thread. */
static uintptr_t opened[OPEN_MAX];
static uint32_t unchecked; /* of them */

static uintptr_t *find_open(const void *connection)
{
    for (uint32_t i = 0; connection && i < OPEN_MAX; i++) {
        if ((__atomic_load_n(&opened[i], __ATOMIC_ACQUIRE) & ~FLAGS) == (uintptr_t)connection)
            return &opened[i];
    }
    return NULL;
}

static void note_open(const void *connection)
{
    struct mine *m = here();
    uintptr_t none = 0;

    if (m)
        m->sqlite_opens = true;
    for (uint32_t i = 0; i < OPEN_MAX; i++, none = 0) {
        if (!__atomic_compare_exchange_n(&opened[i], &none, (uintptr_t)connection, false, __ATOMIC_ACQ_REL,
                                         __ATOMIC_RELAXED))
            continue;
        __atomic_fetch_add(&unchecked, 1, __ATOMIC_RELAXED);
        return;
    }
}

static void forget_open(const void *connection)
{
    uintptr_t *o = find_open(connection);

    if (o && !(__atomic_exchange_n(o, 0, __ATOMIC_ACQ_REL) & CHECKED))
        __atomic_fetch_sub(&unchecked, 1, __ATOMIC_RELAXED);
}

static void calls_python(const void *connection)
{
    uintptr_t *o = find_open(connection);

    if (o)
        __atomic_fetch_or(o, CALLS_PYTHON, __ATOMIC_ACQ_REL);
}

static uint64_t python_place(void)
{
    uint64_t place;

    return ub_python_places(&place, 1) ? place : 0;
}

/* A method of the module's begins. Where a connection was just opened: that was to know whose it is. */
static void enter(struct mine *m)
{
    queue_up();
    m->sqlite_entered = m->sqlite_opens || !ub_load_relaxed(&unchecked) ? 0 : python_place();
    m->sqlite_opens = false;
}

/* The first call into the library after that, in the same call of a method: it was this connection's. */
static void see_entered(struct mine *m, const void *connection)
{
    uintptr_t *o = m->sqlite_entered ? find_open(connection) : NULL;

    if (o && m->sqlite_entered == python_place() && !(__atomic_fetch_or(o, CHECKED, __ATOMIC_ACQ_REL) & CHECKED))
        __atomic_fetch_sub(&unchecked, 1, __ATOMIC_RELAXED);
    m->sqlite_entered = 0;
}

/* Which connection this step is busy with: whether it sleeps, and may be left, depends on its state. */
static void *begin(struct mine *m, void *connection, uint32_t copy)
{
    void *outer = NULL;

    queue_up();
    see_entered(m, connection);
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

/* ---- a query that computes ------------------------------------------------------------------------ */

static bool others_have_transactions(const struct mine *m)
{
    uintptr_t own = m->transactions ? coroutine_here(m) : 0;

    for (uint32_t i = 0; m->transactions && i < UB_TRANSACTIONS_MAX; i++) {
        if (m->transaction[i].connection && m->transaction[i].coroutine != own)
            return true;
    }
    return m->transactions == UB_TRANSACTIONS_MAX; /* some may be missing */
}

static const char others_wait[] = "another task has a transaction open";

/* Why no thread may make this connection's calls; NULL: one may, and *mutex is what it then takes. */
static const char *why_here(const struct mine *m, void *connection, uint32_t copy, const void **mutex)
{
    void *(*mutex_of)(void *) = (void *(*)(void *))original[ID_sqlite3_db_mutex][copy];
    const uintptr_t *o = find_open(connection);

    *mutex = mutex_of ? mutex_of(connection) : NULL;
    if (!o)
        return "its connection was opened unseen, or is one of too many";
    if (*o & CALLS_PYTHON)
        return "a function, collation or handler of Python's may be called";
    if (!*mutex)
        return "its connection is not serialized";
    if (!(*o & CHECKED))
        return "its connection may be used by several threads";
    return others_have_transactions(m) ? others_wait : NULL;
}

static int64_t step_by_thread(uint64_t function, uint64_t of, uint64_t c, uint64_t d, uint64_t e, uint64_t f,
                              uint64_t g, uint64_t h)
{
    return ((int (*)(uint64_t))function)(of);
}

/* Its first slow one, from there or from anywhere; until then a row costs no look at the places. */
static bool was_slow;

static bool may_be_asked(void)
{
    const struct ub_policy *p = &ub_process->arena->policy;

    return ub_load_relaxed(&was_slow) ||
           (ub_load_relaxed(&p->version) && ub_load_relaxed(&p->call[UB_UNIT_ID_sqlite3_step]) != UB_POLICY_DENY);
}

/* `pin`: what was found out of the step itself, MOVABLE: it was not asked. */
static void judge_here(const char *why, enum ub_pin pin, struct ub_verdict *ret)
{
    static const uint64_t none[UB_CALLS_VALUES];

    *ret = (struct ub_verdict){.pin = (uint8_t)pin, .executor = UB_EXECUTOR_WAIT};
    if (why)
        ret->pin = why == others_wait ? UB_PIN_TRANSACTION : UB_PIN_CONNECTION;
    else if (pin == UB_PIN_MOVABLE)
        ub_decide(&ub_thread, UB_UNIT_ID_sqlite3_step, none, (uintptr_t)__builtin_frame_address(0), 0, ret);
    if (ret->pin == UB_PIN_MOVABLE && ub_sites_denies(&ub_thread, UB_UNIT_ID_sqlite3_step))
        ret->pin = UB_PIN_POLICY;
}

/* It took so long, in its loop's place. The next one from there is made by a thread, if it may be; the dry run tells
 * so. */
static void was_here(const char *why, const struct ub_verdict *v, uint64_t spent, uint64_t ns)
{
    struct ub_python_row *row;

    ub_store_relaxed(&was_slow, true);
    if (v->pin == UB_PIN_MOVABLE && ub_offload_now() > UB_OFFLOAD_DRY_RUN)
        ub_sites_blocked(&ub_thread, UB_UNIT_ID_sqlite3_step, spent);
    if (v->pin == UB_PIN_MOVABLE || v->pin == UB_PIN_POLICY)
        return;
    row = ub_python_table_row(&ub_process->arena->python, UB_PYTHON_STAYED, "sqlite3_step", "sqlite3",
                              why ? why : ub_pyfunctions_reason(v->pin));
    if (row)
        ub_python_row_add(row, ns);
}

/* Ticks; the threshold is known in both. */
static uint64_t ns_of(uint64_t spent, uint64_t threshold)
{
    uint64_t threshold_ns = ub_load_relaxed(&ub_process->arena->h.offload_least_us) * 1000ull;

    return (uint64_t)((unsigned __int128)spent * threshold_ns / threshold);
}

static int step_here(const struct mine *m, void *of, uint32_t copy, uintptr_t ra, const char *why, enum ub_pin pin)
{
    const struct step *s = m->current;
    uint64_t begun = ub_timing_now(), left_ns = s ? s->left_ns : 0, spent, threshold;
    struct ub_verdict verdict;
    int r = ((int (*)(void *))original[ID_sqlite3_step][copy])(of), saved = errno;

    spent = ub_timing_now() - begun;
    threshold = ub_load_relaxed(&ub_process->arena->h.threshold);
    if (ub_thread.start && spent >= threshold && threshold &&
        (!s || s->left_ns == left_ns)) { /* not: it slept, and was left */
        ub_timing_place(&ub_thread, ra);
        judge_here(why, pin, &verdict);
        was_here(why, &verdict, spent, ns_of(spent, threshold));
        ub_timing_unit(&ub_thread, UB_UNIT_ID_sqlite3_step, begun, begun + spent, ra, &verdict);
    }
    errno = saved;
    return r;
}

static int on_step(void *of, uint32_t copy, uintptr_t ra)
{
    struct mine *m = here();
    void *connection = m ? connection_of(of, copy) : NULL, *outer;
    const uint64_t word[UB_POOL_WORDS] = {(uintptr_t)original[ID_sqlite3_step][copy], (uintptr_t)of};
    enum ub_pin pin = UB_PIN_MOVABLE;
    const char *why = NULL;
    const void *mutex = NULL;
    int64_t ret = -1;
    bool in_step;

    if (!connection)
        return ((int (*)(void *))original[ID_sqlite3_step][copy])(of);
    outer = begin(m, connection, copy);
    in_step = coroutine_here(m) != 0;
    if (in_step)
        why = why_here(m, connection, copy, &mutex);
    ub_timing_place(&ub_thread, ra);
    if (!in_step)
        ret = ((int (*)(void *))original[ID_sqlite3_step][copy])(of);
    else if (why || !m->current || !may_be_asked() ||
             !ub_pysteps_computes(UB_UNIT_ID_sqlite3_step, step_by_thread, word, mutex, &pin, &ret))
        ret = step_here(m, of, copy, ra, why, pin);
    end(m, connection, outer, copy);
    return (int)ret;
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
        int r; \
        if (m) \
            queue_up(); \
        r = ((int (*)(void *))original[ID_##name][copy])(of); \
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
        if (m) { \
            queue_up(); \
            drop(m, of); \
        } \
        forget_open(of); \
        return ((int (*)(void *))original[ID_##name][number])(of); \
    }
#define STEP(number, name, params, args) \
    static int hook##number##_##name params \
    { \
        if (here()) \
            queue_up(); \
        return ((int (*) params)original[ID_##name][number])args; \
    }
#define LOOK(number, name) STEP(number, name, (void *of), (of))
#define HANDLER(number, name, params, args) \
    static int hook##number##_##name params \
    { \
        if (here()) \
            queue_up(); \
        calls_python(of); \
        return ((int (*) params)original[ID_##name][number])args; \
    }
#define COMPUTES(number) \
    static int hook##number##_sqlite3_step(void *of) \
    { \
        return on_step(of, number, (uintptr_t)__builtin_return_address(0)); \
    } \
    static int hook##number##_sqlite3_open_v2(void *file, void **ret, int flags, void *vfs) \
    { \
        int r = ((int (*)(void *, void **, int, void *))original[ID_sqlite3_open_v2][number])(file, ret, flags, vfs); \
        if (r == 0) \
            note_open(*ret); \
        return r; \
    }
#define STEP_0(...) STEP(0, __VA_ARGS__)
#define STEP_1(...) STEP(1, __VA_ARGS__)
#define LOOK_0(name) LOOK(0, name)
#define LOOK_1(name) LOOK(1, name)
#define HANDLER_0(...) HANDLER(0, __VA_ARGS__)
#define HANDLER_1(...) HANDLER(1, __VA_ARGS__)
#define CALL_0(...) CALL(0, __VA_ARGS__)
#define CALL_1(...) CALL(1, __VA_ARGS__)
#define END_0(...) END(0, __VA_ARGS__)
#define END_1(...) END(1, __VA_ARGS__)
#define CLOSE_0(name) CLOSE(0, name)
#define CLOSE_1(name) CLOSE(1, name)
COMPUTES(0) COMPUTES(1) STEPS(STEP_0) STEPS(STEP_1) LOOKS(LOOK_0) LOOKS(LOOK_1) HANDLERS(HANDLER_0) HANDLERS(HANDLER_1)
CALLS(CALL_0) CALLS(CALL_1) ENDS(END_0) ENDS(END_1) CLOSES(CLOSE_0) CLOSES(CLOSE_1)

#define ROW(name, ...) {#name, {(void *)hook0_##name, (void *)hook1_##name}, UB_HOOK_OTHERS},
#define ASKED_ROW(name) {#name, {NULL}, UB_HOOK_OTHERS},
static const struct ub_loop_hook hooks[] = {CALLS(ROW) STEPS(ROW) LOOKS(ROW) HANDLERS(ROW) ENDS(ROW) CLOSES(ROW) ASKED(ASKED_ROW)
    ROW(sqlite3_step) ROW(sqlite3_open_v2)};
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

/* ---- the module's methods --------------------------------------------------------------------------- */

/*
 * Where a connection is for one thread only (check_same_thread) each method of the module begins by asking which thread
 * it is in, before it has looked at anything: there it waits for who is in the midst of another. Further in it has
 * copies of what the other changes: a connection that is being closed has no handle any more.
 */
typedef unsigned long thread_ident(void);

static void *original_ident[1][UB_LOOP_COPIES];

#define IDENT(copy)                                                                                                    \
    static unsigned long hook##copy##_ident(void)                                                                      \
    {                                                                                                                  \
        struct mine *m = here();                                                                                       \
        if (m)                                                                                                         \
            enter(m);                                                                                                  \
        return ((thread_ident *)original_ident[0][copy])();                                                            \
    }
IDENT(0)
IDENT(1)

static const struct ub_loop_hook ident_hooks[] = {
    {"PyThread_get_thread_ident", {(void *)hook0_ident, (void *)hook1_ident}, UB_HOOK_OTHERS}};
static const char *const interpreters[] = {"libpython", "python", NULL};
static const char *const callers[] = {"_sqlite3.", NULL};

const struct ub_loop_ops ub_pysqlite_methods = {.files = interpreters,
                                                .callers = callers,
                                                .program = true,
                                                .prefix = "PyThread_get_thread_ident",
                                                .hooks = ident_hooks,
                                                .count = 1,
                                                .originals = original_ident};

static const char *const files[] = {"libsqlite3.so.", NULL};

const struct ub_loop_ops ub_pysqlite = {
    .files = files, .callers = callers, .prefix = "sqlite3_", .hooks = hooks, .count = IDS, .originals = original};
