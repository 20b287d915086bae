/* The text of one stall: whole blocks, why, the line of a log. */
#include "folder_check.h"

#include "../../ui/text_private.h"

/* ---- blocks ---------------------------------------------------------- */

static char *block_of(const struct ub_model *m, const json_t *stall, bool colour)
{
    struct ub_text_view view;
    struct text t;

    text_begin(&t);
    ub_text_view_init(&view, t.out, m, colour);
    ub_text_block(&view, stall);
    return text_end(&t);
}

/* Feeds the stall and compares its block. */
static void expect_block(struct ub_model *m, json_t *stall, const char *expected)
{
    char *got;

    ub_model_line(m, stall);
    got = block_of(m, stall, false);
    assert_text(got, expected);
    free(got);
    json_decref(stall);
}

static void feed_wal_stack(struct ub_model *m, const char *path)
{
    feed(m, json_of("{'type':'stack','id':1,'frames':["
                    "{'function':'fsync','module':'/usr/lib/x86_64-linux-gnu/libc.so.6','file':'fsync.c','line':1},"
                    "{'function':'wal_commit','file':'%s','line':2,'module':'/opt/app/prog'},"
                    "{'function':'on_flush','file':'/src/server.c','line':91,'module':'/opt/app/prog'},"
                    "{'function':'uv__run_timers','module':'/usr/lib/x86_64-linux-gnu/libuv.so.1.0.0'},"
                    "{'function':'uv_run','module':'/usr/lib/x86_64-linux-gnu/libuv.so.1.0.0'},"
                    "{'function':'main','file':'/src/server.c','line':200,'module':'/opt/app/prog'}]}",
                    path));
}

#define FSYNC                                                                                                          \
    ",'call':{'name':'fsync','args':'7','fd':7,'fd_path':'/var/lib/app/wal.log','duration_ns':309800000}"              \
    ",'callback':{'function':'on_flush'},'samples':[{'at_ns':1,'stack':1,'state':'blocked','proof':'still',"           \
    "'complete':true},{'at_ns':2,'stack':1,'state':'blocked','proof':'still','complete':true}]"

static json_t *fsync_stall(int id, long ms, const char *more)
{
    json_t *stall = slow(id, "7f3a91c2", ms, "");
    json_t *change = json_of("{'cause':'call','loop':'libuv','kind':'timer'" FSYNC ",'waiting':{'ready':3}%s}", more);

    json_object_update(stall, change);
    json_decref(change);
    return stall;
}

static void test_block_of_a_call(void **state)
{
    struct ub_model *m = new_model();
    char path[128];

    make_source("wal.c", "{\n    fsync(w->fd);\n}\n", path, sizeof(path));
    feed_wal_stack(m, path);
    expect_block(m, fsync_stall(1, 312, ""),
                 "unblock: BLOCKED 312 ms  on_flush()  libuv timer  prog pid 42\n"
                 "  why    fsync(7 = /var/lib/app/wal.log) 310 ms\n"
                 "  where  wal.c:2      wal_commit  fsync(w->fd);   <- 2 of 2 samples\n"
                 "         server.c:91  on_flush\n"
                 "  cost   3 descriptors were ready in this turn\n"
                 "  do     uv_fs_fsync(loop, req, fd, cb)\n"
                 "  site   7f3a91c2\n");
    expect_block(m, fsync_stall(2, 390, ",'cpu_ns':50000000,'runqueue_ns':1000000,'blocked_ns':309800000,'tid':45"),
                 "unblock: BLOCKED 390 ms  on_flush()  libuv timer  prog pid 42 thread prog tid 45\n"
                 "  why    fsync(7 = /var/lib/app/wal.log) 310 ms, cpu 50 ms\n"
                 "  where  wal.c:2      wal_commit  fsync(w->fd);   <- 2 of 2 samples\n"
                 "         server.c:91  on_flush\n"
                 "  cost   3 descriptors were ready in this turn; 2nd time, 702 ms in all\n"
                 "  do     uv_fs_fsync(loop, req, fd, cb)\n"
                 "  site   7f3a91c2\n");
    ub_model_free(m);
}

/* The file was changed after the recording began: its line may say something else now. */
static void test_changed_source_is_not_shown(void **state)
{
    struct ub_model *m = new_model();
    struct timespec now[2] = {{.tv_sec = 2000000000}, {.tv_sec = 2000000000}};
    char path[128], *got;
    json_t *stall = fsync_stall(1, 312, "");

    make_source("wal.c", "{\n    fsync(w->fd);\n}\n", path, sizeof(path));
    assert_int_equal(utimensat(AT_FDCWD, path, now, 0), 0);
    feed_wal_stack(m, path);
    got = block_of(m, stall, false);
    assert_non_null(strstr(got, "  where  wal.c:2      wal_commit   <- 2 of 2 samples\n"));
    free(got);
    json_decref(stall);
    ub_model_free(m);
}

static void test_block_while_it_lasts(void **state)
{
    struct ub_model *m = new_model();

    feed_wal_stack(m, "/nowhere/wal.c");
    expect_block(m, fsync_stall(1, 10002, ",'ongoing':true,'startup':true,'waiting':{}"),
                 "unblock: STILL BLOCKED 10 s  on_flush()  libuv timer  prog pid 42  (at start-up, not counted)\n"
                 "  why    fsync(7 = /var/lib/app/wal.log) 310 ms\n"
                 "  where  wal.c:2      wal_commit   <- 2 of 2 samples\n"
                 "         server.c:91  on_flush\n"
                 "  do     uv_fs_fsync(loop, req, fd, cb)\n"
                 "  site   7f3a91c2\n");
    expect_block(
        m, fsync_stall(3, 390, ",'unclear_start_ns':100000000"),
        "unblock: BLOCKED 390 ms  on_flush()  libuv timer  prog pid 42  (its first 100 ms may be turns before it)\n"
        "  why    fsync(7 = /var/lib/app/wal.log) 310 ms\n"
        "  where  wal.c:2      wal_commit   <- 2 of 2 samples\n"
        "         server.c:91  on_flush\n"
        "  cost   3 descriptors were ready in this turn\n"
        "  do     uv_fs_fsync(loop, req, fd, cb)\n"
        "  site   7f3a91c2\n");
    expect_block(
        m, fsync_stall(2, 312, ",'unclear':true,'unclear_start_ns':311000000"),
        "unblock: BLOCKED 312 ms  on_flush()  libuv timer  prog pid 42  (perhaps several short turns, not counted)\n"
        "  why    fsync(7 = /var/lib/app/wal.log) 310 ms\n"
        "  where  wal.c:2      wal_commit   <- 2 of 2 samples\n"
        "         server.c:91  on_flush\n"
        "  cost   3 descriptors were ready in this turn\n"
        "  do     uv_fs_fsync(loop, req, fd, cb)\n"
        "  site   7f3a91c2\n");
    ub_model_free(m);
}

/* Samples that differ: the way most took, how many took it, and where the others were. Libraries are one row. */
static void test_block_of_several_stacks(void **state)
{
    struct ub_model *m = new_model();
    json_t *stall = slow(1, "ab", 1840, ",'cpu_ns':1830000000,'runqueue_ns':11000000,'blocked_ns':0");
    json_t *samples = json_of("[{'at_ns':1,'stack':1,'state':'running','proof':'signal','complete':true},"
                              "{'at_ns':2,'stack':1,'state':'running','proof':'unproven','complete':true},"
                              "{'at_ns':3,'stack':2,'state':'running','proof':'signal','complete':true},"
                              "{'at_ns':4,'stack':3,'state':'running','proof':'signal','complete':false},"
                              "{'at_ns':5,'stack':9,'state':'running'}]");

    feed(m, json_of("{'type':'stack','id':1,'frames':["
                    "{'module':'/usr/lib/x86_64-linux-gnu/libsqlite3.so.0.8.6','offset':4660},"
                    "{'function':'sqlite3_step','module':'/usr/lib/x86_64-linux-gnu/libsqlite3.so.0.8.6'},"
                    "{'function':'query','file':'/src/db.c','line':77,'module':'/opt/app/prog'},"
                    "{'function':'work','file':'/src/jobs.c','line':20,'module':'/opt/app/prog'},"
                    "{'function':'main','module':'/opt/app/prog'}]}"));
    feed(m, json_of("{'type':'stack','id':2,'frames':["
                    "{'function':'query','file':'/src/db.c','line':79,'module':'/opt/app/prog'},"
                    "{'function':'work','file':'/src/jobs.c','line':20,'module':'/opt/app/prog'},"
                    "{'function':'main','module':'/opt/app/prog'}]}"));
    feed(m, json_of("{'type':'stack','id':3,'frames':["
                    "{'function':'log_line','module':'/opt/app/prog','nearest':true,'offset':291},"
                    "{'function':'work','file':'/src/jobs.c','line':23,'module':'/opt/app/prog'},"
                    "{'function':'main','module':'/opt/app/prog'}]}"));
    json_object_set_new(stall, "samples", samples);
    expect_block(m, stall,
                 "unblock: BLOCKED 1.84 s  turn  prog pid 42\n"
                 "  why    cpu 1.83 s, run queue 11 ms\n"
                 "  where  libsqlite3.so.0.8.6  sqlite3_step  (and 1 more inside)\n"
                 "         db.c:77              query   <- 3 of 4 samples\n"
                 "         jobs.c:20            work   4 of 4\n"
                 "  also   1 of 4  near log_line+0x123 (nearest symbol) in work\n"
                 "         unproven: 1 of 4 stacks; the thread may have run while it was copied\n"
                 "         cut short: 1 of 4 stacks lack their outer frames\n"
                 "  do     computation: a worker thread, or pieces with a turn of the loop between\n"
                 "  site   ab\n");
    ub_model_free(m);
}

static void test_deep_stacks_are_folded(void **state)
{
    struct ub_model *m = new_model();
    json_t *frames = json_array();
    int i;

    for (i = 0; i < 40; i++)
        json_array_append_new(frames, json_of("{'function':'f%d','module':'/opt/app/prog','offset':1}", i));
    feed(m, json_pack("{s:s, s:i, s:o}", "type", "stack", "id", 1, "frames", frames));
    expect_block(m, slow(1, "ab", 50, ",'samples':[{'at_ns':1,'stack':1,'state':'running','proof':'perf'}]"),
                 "unblock: BLOCKED 50 ms  turn  prog pid 42\n"
                 "  why    ran on the CPU\n"
                 "  where  f0   <- 1 of 1 sample\n"
                 "         f1\n         f2\n         f3\n         f4\n         f5\n         f6\n         f7\n"
                 "         f8\n         f9\n"
                 "         ... 28 more frames\n"
                 "         f38\n         f39\n"
                 "  do     computation: a worker thread, or pieces with a turn of the loop between\n"
                 "  site   ab\n");
    ub_model_free(m);
}

static void test_block_without_frames_of_the_program(void **state)
{
    struct ub_model *m = new_model();

    feed(m, json_of("{'type':'process','pid':42,'exe':'/usr/bin/python3.11'}"));
    feed(m, json_of("{'type':'stack','id':1,'frames':["
                    "{'function':'clock_nanosleep','module':'/usr/lib/x86_64-linux-gnu/libc.so.6'},"
                    "{'function':'time_sleep','module':'/usr/bin/python3.11'},"
                    "{'function':'_PyEval_EvalFrameDefault','module':'/usr/bin/python3.11'}]}"));
    expect_block(m,
                 slow(1, "ab", 50,
                      ",'cause':'call','call':{'name':'clock_nanosleep','args':'50 ms'},'samples':[{'at_ns':1,"
                      "'stack':1,'state':'blocked','proof':'still','complete':true}]"),
                 "unblock: BLOCKED 50 ms  turn  python3.11 pid 42\n"
                 "  why    clock_nanosleep(50 ms)\n"
                 "  where  time_sleep   <- 1 of 1 sample\n"
                 "         _PyEval_EvalFrameDefault\n"
                 "         (no frame of the program's own code is known)\n"
                 "  do     await asyncio.sleep(...) instead of time.sleep(...)\n"
                 "  site   ab\n");
    ub_model_free(m);
}

/* ---- why ------------------------------------------------------------- */

static void expect_why(const char *more, const char *expected)
{
    struct ub_model *m = new_model();
    json_t *stall = slow(1, "ab", 100, more);
    struct ub_text_view view;
    struct text t;
    char *got;

    text_begin(&t);
    ub_text_view_init(&view, t.out, m, false);
    ub_text_why(&view, stall);
    got = text_end(&t);
    assert_text(got, expected);
    free(got);
    json_decref(stall);
    ub_model_free(m);
}

#define TIMES(cpu, wait, blocked) ",'cpu_ns':" cpu ",'runqueue_ns':" wait ",'blocked_ns':" blocked

static void test_why(void **state)
{
    expect_why(",'cause':'cpu'" TIMES("90000000", "10000000", "0"), "cpu 90 ms, run queue 10 ms");
    expect_why(",'cause':'cpu'" TIMES("30000000", "5000000", "0") ",'accounted_ns':35000000",
               "cpu 30 ms, run queue 5 ms (of the 35 ms accounted for)");
    expect_why(",'cause':'cpu'", "ran on the CPU");
    expect_why(",'cause':'call','call':{'name':'poll','args':'3 fds','count':12}" TIMES("0", "0", "70000000"),
               "poll(3 fds) 12 times: blocked 70 ms");
    expect_why(",'cause':'call'" TIMES("0", "0", "70000000"), "a blocking call, not known which: blocked 70 ms");
    expect_why(",'cause':'call','call':{'name':'recvfrom','args':'5, 4096','fd':5,'fd_path':'socket 10.0.0.1:443',"
               "'via':'getaddrinfo'}",
               "recvfrom(5 = socket 10.0.0.1:443, 4096) from getaddrinfo");
    expect_why(",'cause':'call','call':{'name':'mmap','args':'70, 7','fd':7,'fd_path':'/x'}", "mmap(70, 7)");
    expect_why(",'cause':'lock','call':{'name':'futex','args':'0x1, FUTEX_WAIT','duration_ns':99000000}",
               "waits for a lock: futex(0x1, FUTEX_WAIT) 99 ms");
    expect_why(",'cause':'runqueue'" TIMES("10000000", "90000000", "0"),
               "wanted to run and got no CPU: run queue 90 ms, cpu 10 ms");
    expect_why(",'cause':'pagefault'" TIMES("1000000", "0", "99000000"),
               "page fault, outside any system call: cpu 1 ms, blocked 99 ms");
    expect_why(",'cause':'stopped'", "stopped: by a signal, a debugger, or the machine slept; not the program's doing");
    expect_why(",'cause':'unknown'", "not known: it was not caught in the act");
    expect_why(",'cause':'cpu','gil':{'held_ns':90,'released_ns':1}" TIMES("90000000", "0", "0"),
               "cpu 90 ms; GIL held: a thread does not help");
    expect_why(",'cause':'cpu','gil':{'held':2,'released':1,'waited':0}" TIMES("90000000", "0", "0"),
               "cpu 90 ms; GIL held: a thread does not help");
    expect_why(",'cause':'cpu','gil':{'held':0,'released':3,'waited':0}" TIMES("90000000", "0", "0"),
               "cpu 90 ms; GIL released: a thread helps");
    expect_why(",'cause':'cpu','gil':{'held':0,'released':0,'waited':1}" TIMES("90000000", "0", "0"), "cpu 90 ms");
    expect_why(",'cause':'gil','gil':{'held':0,'released':0,'waited':3,'holder':{'tid':43,'thread':'pool',"
               "'function':'crunch','file':'/srv/jobs.py','line':12}}" TIMES("0", "0", "90000000"),
               "waited for Python's GIL: blocked 90 ms; held by thread pool (tid 43) in crunch() jobs.py:12");
}

/* Coroutines innermost first; a framework's between are left out. */
static void test_chain_of_coroutines(void **state)
{
#define AT(f, file) "{'function':'" f "','file':'" file "','line':3},"
    static const char *const chain =
        ",'callback':{},'task':{'name':'Task-2','created':{'file':'/srv/app.py','line':9},"
        "'await':[" AT("run", "/x/site-packages/web.py") AT("call", "/x/site-packages/mw.py")
            AT("handle", "/srv/app.py") "{'function':'charge','file':'/srv/pay.py'}]}";
    struct ub_model *m = new_model();
    json_t *stall = fsync_stall(1, 312, chain);
    char *got;

    feed_wal_stack(m, "/nowhere/wal.c");
    ub_model_line(m, stall);
    got = block_of(m, stall, false);
    assert_non_null(strstr(got, "\n  await  charge <- handle <- ... <- run; task made at app.py:9\n"));
    free(got);
    json_decref(stall);
    ub_model_free(m);
}

/* ---- the line of a log ----------------------------------------------- */

static void test_line(void **state)
{
    struct ub_model *m = new_model();
    json_t *stall = fsync_stall(1, 312, ",'repeats':4,'repeats_ns':90");
    struct ub_text_view view;
    struct text t;
    char *got;

    feed_wal_stack(m, "/nowhere/wal.c");
    text_begin(&t);
    ub_text_view_init(&view, t.out, m, false);
    ub_text_line(&view, stall);
    got = text_end(&t);
    assert_text(got, "unblock: BLOCKED 312 ms prog pid 42: fsync(7 = /var/lib/app/wal.log) in wal_commit wal.c:2, "
                     "and 4 more, site 7f3a91c2");
    free(got);
    json_decref(stall);
    ub_model_free(m);
}

/* Names from strangers reach the terminal harmless, with and without colour. */
static void test_hostile_names(void **state)
{
    struct ub_model *m = new_model();
    json_t *stall = slow(1, "\\u001b]0;x\\u0007", 50,
                         ",'samples':[{'at_ns':1,'stack':1,'state':'blocked'}],'thread':'\\u202e','tid':7,"
                         "'callback':{'function':'\\u0007'},'loop':'\\n','cause':'call','call':{'name':'\\u009b1m',"
                         "'args':'7, \\r','fd':7,'fd_path':'/\\u001b[2J'}");
    char *got, *p;

    feed(m, json_of("{'type':'process','pid':42,'exe':'/\\u001b[31m'}"));
    feed(m, json_of("{'type':'stack','id':1,'frames':[{'function':'\\u001bc','file':'/\\u0085','line':1,"
                    "'module':'/\\u200f'}]}"));
    ub_model_line(m, stall);
    got = block_of(m, stall, true);
    for (p = got; *p; p++) {
        unsigned char c = (unsigned char)*p;

        if (c == 0x1b) { /* only colours of our own: ESC [ digits and semicolons, m */
            assert_int_equal(p[1], '[');
            assert_int_equal(p[2 + strspn(p + 2, "0123456789;")], 'm');
        } else {
            assert_true(c == '\n' || (c >= 0x20 && c < 0x7f));
        }
    }
    assert_non_null(strstr(got, "\033[1;31mBLOCKED 50 ms\033[0m"));
    assert_null(strstr(got, "\033[31m"));
    free(got);
    json_decref(stall);
    ub_model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_block_of_a_call, setup, teardown),
        cmocka_unit_test_setup_teardown(test_changed_source_is_not_shown, setup, teardown),
        cmocka_unit_test(test_block_while_it_lasts),
        cmocka_unit_test(test_block_of_several_stacks),
        cmocka_unit_test(test_deep_stacks_are_folded),
        cmocka_unit_test(test_block_without_frames_of_the_program),
        cmocka_unit_test(test_why),
        cmocka_unit_test(test_chain_of_coroutines),
        cmocka_unit_test(test_line),
        cmocka_unit_test(test_hostile_names),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
