/* Advice: what is said to which stall, and the rules that all of it keeps. */
#include "ui_check.h"

#include "../../ui/advice.h"

/* A stall as a query; `functions` are on its stack, innermost first, separated by spaces. */
static const struct ub_advice *advise(const char *program, const char *cause, const char *call, const char *fd_path,
                                      const char *functions)
{
    struct ub_advice_query query = {.program = program, .loop = "turn", .cause = ub_model_cause_parse(cause)};
    json_t *frames = json_array(), *call_json = json_object();
    char *copy = strdup(functions), *save, *word;
    const struct ub_advice *advice;

    for (word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save))
        json_array_append_new(frames, json_pack("{s:s}", strchr(word, '/') ? "module" : "function", word));
    if (call)
        json_object_set_new(call_json, "name", json_string(call));
    if (fd_path)
        json_object_set_new(call_json, "fd_path", json_string(fd_path));
    query.call = call_json;
    query.stack[0] = frames;
    query.stacks = 1;
    advice = ub_advice_find(&query);
    free(copy);
    json_decref(frames);
    json_decref(call_json);
    return advice;
}

static void test_what_is_advised(void **state)
{
    static const struct {
        const char *program, *cause, *call, *fd_path, *functions, *title, *words;
    } cases[] = {
        {"redis-server", "call", "clock_nanosleep", NULL, "debugCommand call main", "DEBUG SLEEP", "ACL -debug"},
        {"redis-server", "cpu", NULL, NULL, "dictNext keysCommand call processCommand", "KEYS", "SCAN"},
        {"valkey-server", "cpu", NULL, NULL, "rdbSave saveCommand call", "SAVE", "BGSAVE"},
        {"redis-server", "call", "fdatasync", "/a", "flushAppendOnlyFile beforeSleep", "AOF fsync",
         "appendfsync everysec"},
        {"redis-server", "call", "write", "/a", "flushAppendOnlyFile beforeSleep", "AOF write",
         "no-appendfsync-on-rewrite"},
        {"redis-server", "cpu", NULL, NULL, "delGenericCommand call", "DEL", "lazyfree-lazy-user-del"},
        {"redis-server", "cpu", NULL, NULL, "activeExpireCycle", "expiry", "lazyfree-lazy-expire"},
        {"redis-server", "cpu", NULL, NULL, "x call processCommand", NULL, "SLOWLOG GET"},
        {"nginx", "call", "pread64", "/srv/big", "ngx_read_file", "cold file", "aio threads"},
        {"nginx", "call", "openat", NULL, "ngx_open_cached_file", "opening a file", "open_file_cache"},
        {"nginx", "call", "poll", NULL, "getaddrinfo ngx_inet_resolve_host", "name look-up", "resolver"},
        {"memcached", "pagefault", NULL, NULL, "", NULL, "-k"},
        {"node", "call", "fsync", "/a", "node::fs::Fsync(v8::FunctionCallbackInfo<v8::Value>&)",
         "synchronous file call", "fs.promises"},
        {"node", "call", "epoll_wait", NULL, "node::SyncProcessRunner::Run(x)", "spawnSync", "child_process.spawn"},
        {"node", "cpu", NULL, NULL, "Builtins_X", NULL, "worker_threads"},
        {"python3.11", "call", "clock_nanosleep", NULL, "time_sleep", "time.sleep", "asyncio.sleep"},
        {"python3", "call", "connect", "socket 1.2.3.4:443", "sock_connect", "blocking network call",
         "asyncio.to_thread"},
        {"python3", "cpu", NULL, NULL, "_PyEval_EvalFrameDefault", NULL, "ProcessPoolExecutor"},
        {"python3", "lock", "futex", NULL, "take_gil", "GIL", "is not known"},
        {"app", "call", "fsync", "/a", "x /usr/lib/libuv.so.1", NULL, "uv_fs_fsync(loop, req, fd, cb)"},
        {"app", "call", "fsync", "/a", "x uv_run", NULL, "uv_fs_fsync(loop, req, fd, cb)"},
        {"app", "call", "fsync", "/a", "x main", NULL, "worker thread"},
        {"app", "call", "nanosleep", NULL, "x event_base_loop", NULL, "evtimer_add"},
        {"app", "call", "nanosleep", NULL, "x ev_run", NULL, "ev_timer_start"},
        {"app", "call", "nanosleep", NULL, "x g_main_loop_run", NULL, "g_timeout_add"},
        {"app", "call", "nanosleep", NULL, "x sd_event_loop", NULL, "sd_event_add_time_relative"},
        {"app", "call", "sendto", NULL, "__res_context_send getaddrinfo x uv_run", "name look-up", "uv_getaddrinfo"},
        {"app", "call", "poll", NULL, "gethostbyname_r x", "name look-up", "c-ares"},
        {"app", "call", "recvfrom", "socket 1.2.3.4:80", "x", NULL, "O_NONBLOCK"},
        {"app", "call", "read", "pipe", "x", NULL, "readable"},
        {"app", "call", "read", "/var/x", "x", NULL, "readahead"},
        {"app", "call", "write", "/dev/pts/3", "x", NULL, "terminal"},
        {"app", "call", "write", "pipe", "x", NULL, "reader of the pipe"},
        {"app", "call", "flock", "/x", "x", NULL, "LOCK_NB"},
        {"app", "call", "wait4", NULL, "x", NULL, "WNOHANG"},
        {"app", "call", "wait4", NULL, "do_system system x", "system", "posix_spawn"},
        {"app", "lock", "futex", NULL, "__lll_lock_wait pthread_mutex_lock x", NULL, "trylock"},
        {"app", "lock", "futex", NULL, "pthread_cond_wait x", NULL, "eventfd"},
        {"app", "call", "futex", NULL, "__pthread_clockjoin_ex x", NULL, "join"},
        {"app", "pagefault", NULL, NULL, "x", NULL, "mlock"},
        {"app", "runqueue", NULL, NULL, "x", NULL, "nr_throttled"},
        {"app", "cpu", NULL, NULL, "x", NULL, "worker thread"},
    };
    size_t i;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct ub_advice *a =
            advise(cases[i].program, cases[i].cause, cases[i].call, cases[i].fd_path, cases[i].functions);

        if (!a || !strstr(a->text, cases[i].words))
            fail_msg("case %zu (%s %s): got '%s', expected ...%s...", i, cases[i].program, cases[i].functions,
                     a ? a->text : "nothing", cases[i].words);
        if (cases[i].title && (!a->title || strcmp(a->title, cases[i].title) != 0))
            fail_msg("case %zu: title '%s', expected '%s'", i, a->title ? a->title : "none", cases[i].title);
    }
}

static void test_nothing_to_say(void **state)
{
    assert_null(advise("app", "stopped", "nanosleep", NULL, "x"));
    assert_null(advise("app", "unknown", NULL, NULL, "x"));
    assert_null(advise("app", "call", "syscall_999", NULL, "x"));
    assert_null(advise(NULL, "call", NULL, NULL, ""));
}

/* One look in four at a collection says nothing of the loop around it; two do. */
static void test_a_single_look_says_little(void **state)
{
    struct ub_advice_query query = {.program = "node", .loop = "turn", .cause = UB_CAUSE_CPU, .stacks = 4};
    json_t *loop = json_of("[{'function':'Builtins_JSEntry'}]");
    json_t *collection = json_of("[{'function':'v8::internal::Heap::CollectGarbage'}]");

    query.stack[0] = query.stack[1] = query.stack[2] = loop;
    query.stack[3] = collection;
    assert_null(ub_advice_find(&query)->title);
    query.stack[2] = collection;
    assert_string_equal(ub_advice_find(&query)->title, "garbage collection");
    json_decref(loop);
    json_decref(collection);
}

/* A nearest symbol is no proof that the function is on the stack. */
static void test_guessed_names_do_not_count(void **state)
{
    struct ub_advice_query query = {.program = "redis-server", .loop = "turn", .cause = UB_CAUSE_UNKNOWN};
    json_t *frames = json_of("[{'function':'keysCommand','nearest':true}]");

    query.stack[0] = frames;
    query.stacks = 1;
    assert_null(ub_advice_find(&query));
    json_object_del(json_array_get(frames, 0), "nearest");
    assert_non_null(ub_advice_find(&query));
    json_decref(frames);
}

/* What the library function was called that led to the system call. */
static void test_call_by_its_library_name(void **state)
{
    json_t *call = json_of("{'name':'syscall_999','via':'usleep'}");
    struct ub_advice_query query = {.program = "app", .loop = "glib", .cause = UB_CAUSE_CALL, .call = call};

    assert_non_null(strstr(ub_advice_find(&query)->text, "g_timeout_add"));
    json_decref(call);
}

static void test_rules_of_the_table(void **state)
{
    size_t i, k;

    for (i = 0; i < ub_advice_rows; i++) {
        const struct ub_advice *row = &ub_advice_table[i];

        assert_non_null(row->text);
        assert_true(strlen(row->text) <= 140);
        assert_true(row->program || row->loop || row->cause || row->call || row->function);
        for (k = 0; row->text[k]; k++) /* one line of plain text */
            assert_in_range(row->text[k], ' ', '~');
        assert_null(strstr(row->text, "--offload")); /* does not exist yet */
        assert_null(strstr(row->text, "safe"));      /* never claimed */
    }
}

/* A stall of a Python program: `slow` may hold task and gil, `frames` are innermost first. */
static void expect_words(const char *cause, const char *call, const char *slow, const char *frames, const char *words)
{
    struct ub_advice_query query = {
        .program = "python3.11", .loop = "asyncio", .cause = ub_model_cause_parse(cause), .stacks = 1};
    json_t *record = json_of(slow), *stack = json_of(frames), *call_json = json_pack("{s:s*}", "name", call);
    char buf[UB_ADVICE_WORDS_MAX];
    const struct ub_advice *row;

    query.slow = record;
    query.call = call_json;
    query.stack[0] = stack;
    row = ub_advice_find(&query);
    assert_non_null(row);
    assert_string_equal(ub_advice_words(&query, row, buf, sizeof(buf)), words);
    json_decref(record);
    json_decref(stack);
    json_decref(call_json);
}

#define PY(function, file, line) "{'language':'python','function':'" function "','file':'" file "','line':" line "},"
#define TASK                                                                                                           \
    "{'task':{'await':[{'function':'App.run','file':'/usr/lib/python3/dist-packages/app.py','line':1},"                \
    "{'function':'handle','file':'/srv/api.py','line':31}]}}"
#define END    "{'function':'PyObject_Call','module':'/usr/bin/python3.11'}"
#define HANDLE PY("handle", "/srv/api.py", "31") END

/* The line to change is the innermost coroutine of the user's own; the function is what it called. */
static void test_a_turn_of_many_steps(void **state)
{
    struct ub_advice_query query = {.program = "python3.11", .loop = "asyncio", .cause = ub_model_cause_parse("cpu")};
    json_t *slow = json_pack("{s:[]}", "callbacks");

    query.slow = slow;
    assert_non_null(strstr(ub_advice_find(&query)->text, "asyncio.Semaphore"));
    json_object_del(slow, "callbacks");
    assert_null(strstr(ub_advice_find(&query)->text, "asyncio.Semaphore"));
    json_decref(slow);
}

static void test_python_names(void **state)
{
    const char *callback = "{'callback':{'function':'on_tick','file':'/srv/api.py','line':7}}";

    expect_words("call", "recvfrom", TASK, "[" PY("charge", "/srv/api.py", "9") HANDLE "]",
                 "api.py:31: await asyncio.to_thread(charge, ...), or an asyncio client");
    expect_words("call", "recvfrom", TASK,
                 "[" PY("post", "/x/site-packages/requests/api.py", "99") PY("Pay.charge", "/srv/pay.py", "9") HANDLE
                 "]",
                 "api.py:31: await asyncio.to_thread(pay.Pay.charge, ...), or an asyncio client (aiohttp, "
                 "httpx.AsyncClient)");
    expect_words("call", "recvfrom", TASK, "[" PY("urlopen", "/usr/lib/python3.11/urllib/request.py", "216") HANDLE "]",
                 "api.py:31: await asyncio.to_thread(urllib.request.urlopen, ...), or an asyncio client (aiohttp, "
                 "httpx.AsyncClient)");
    expect_words("call", "clock_nanosleep", TASK, "[" HANDLE "]",
                 "api.py:31: await asyncio.sleep(...) instead of time.sleep(...)");
    expect_words("call", "fsync", TASK, "[" PY("App.run", "/usr/lib/python3/dist-packages/app.py", "1") HANDLE "]",
                 "api.py:31: await asyncio.to_thread(f, ...)"); /* a coroutine cannot be handed to a thread */
    expect_words("call", "fsync", callback,
                 "[" PY("make.<locals>.save", "/srv/api.py", "3") PY("on_tick", "/srv/api.py", "7") END "]",
                 "api.py:7: loop.run_in_executor(None, save, ...)");
    expect_words("call", "fsync", TASK,
                 "[" PY("save", "/srv/api.py", "3") HANDLE "," PY("x", "/usr/lib/python3.8/asyncio/events.py", "1") END
                 "]",
                 "api.py:31: await loop.run_in_executor(None, save, ...)");
}

static void test_python_gil(void **state)
{
    json_t *task = json_of(TASK);
    char *held, *released;

    json_object_set_new(task, "gil", json_of("{'held':2,'released':0}"));
    held = json_dumps(task, 0);
    json_object_set_new(task, "gil", json_of("{'held':0,'released':2}"));
    released = json_dumps(task, 0);
    expect_words("cpu", NULL, held, "[" PY("crunch", "/srv/api.py", "9") HANDLE "]",
                 "api.py:31: await loop.run_in_executor(pool, crunch, ...) with a ProcessPoolExecutor");
    expect_words("cpu", NULL, released, "[" PY("crunch", "/srv/api.py", "9") HANDLE "]",
                 "api.py:31: await asyncio.to_thread(crunch, ...)");
    expect_words(
        "gil", "futex", "{'gil':{'holder':{'function':'hog','file':'/srv/jobs.py','line':23}}}", "[" HANDLE "]",
        "hog (jobs.py:23) held the GIL: computation belongs into a process (ProcessPoolExecutor); a thread stops "
        "the loop too");
    free(held);
    free(released);
    json_decref(task);
}

/* A row behind a more general one would never be given. */
static void test_no_row_hides_another(void **state)
{
    size_t i, k;

    for (i = 0; i < ub_advice_rows; i++) {
        for (k = 0; k < i; k++) {
            const struct ub_advice *a = &ub_advice_table[k], *b = &ub_advice_table[i];
#define WIDER(field) (!a->field || (b->field && strcmp(a->field, b->field) == 0))
            if (WIDER(program) && WIDER(loop) && WIDER(cause) && WIDER(call) && WIDER(function) && WIDER(package) &&
                (a->fd == UB_ADVICE_FD_ANY || a->fd == b->fd) && a->script <= b->script && a->yields <= b->yields &&
                a->whole <= b->whole)
                fail_msg("row '%s' is hidden by '%s'", b->text, a->text);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_advised),           cmocka_unit_test(test_nothing_to_say),
        cmocka_unit_test(test_a_single_look_says_little), cmocka_unit_test(test_guessed_names_do_not_count),
        cmocka_unit_test(test_call_by_its_library_name),  cmocka_unit_test(test_python_names),
        cmocka_unit_test(test_a_turn_of_many_steps),      cmocka_unit_test(test_python_gil),
        cmocka_unit_test(test_rules_of_the_table),        cmocka_unit_test(test_no_row_hides_another),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
