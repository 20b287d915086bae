/*
 * The Python reader on memory that this test made up: right frames from right
 * structures, and neither crash nor endless loop from broken ones. (Real
 * interpreters: tests/e2e/test_python_*.py.)
 */
#include "unit.h"

#include "../../tracer/python_impl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* ---- line tables ------------------------------------------------------ */

/* Tables that CPython made of:  def f(x):\n    a = x\n    b = (a +\n         x)\n    return b   (first line 10) */
static void test_lines(void **state)
{
    static const uint8_t lnotab[] = {0, 1, 4, 1, 2, 1, 2, 255, 4, 2};
    static const uint8_t linetable[] = {4, 1, 2, 1, 2, 1, 4, 255, 4, 2};
    /* 3.11: short forms, one with a long line delta, one without a line. */
    static const uint8_t locations[] = {0x80 | 10 << 3 | 0, 0x00, 0x00,             /* +0, 1 unit */
                                        0x80 | 11 << 3 | 1, 0x04, 0x05,             /* +1, 2 units */
                                        0x80 | 15 << 3 | 0,                         /* none, 1 unit */
                                        0x80 | 13 << 3 | 0, 0x06,                   /* +3, 1 unit */
                                        0x80 | 14 << 3 | 0, 0x05, 0x01, 0x02, 0x03, /* -2 */
                                        0x80 | 0 << 3 | 7,  0x11};                  /* same, 8 units */

    assert_int_equal(ub_python_lines_find(UB_PYTHON_LNOTAB, lnotab, sizeof(lnotab), 10, 0), 11);
    assert_int_equal(ub_python_lines_find(UB_PYTHON_LNOTAB, lnotab, sizeof(lnotab), 10, 4), 12);
    assert_int_equal(ub_python_lines_find(UB_PYTHON_LNOTAB, lnotab, sizeof(lnotab), 10, 6), 13);
    assert_int_equal(ub_python_lines_find(UB_PYTHON_LNOTAB, lnotab, sizeof(lnotab), 10, 8), 12);
    assert_int_equal(ub_python_lines_find(UB_PYTHON_LNOTAB, lnotab, sizeof(lnotab), 10, 99), 14);
    assert_int_equal(ub_python_lines_find(UB_PYTHON_LINETABLE, linetable, sizeof(linetable), 10, 2), 11);
    assert_int_equal(ub_python_lines_find(UB_PYTHON_LINETABLE, linetable, sizeof(linetable), 10, 4), 12);
    assert_int_equal(ub_python_lines_find(UB_PYTHON_LINETABLE, linetable, sizeof(linetable), 10, 6), 13);
    assert_int_equal(ub_python_lines_find(UB_PYTHON_LINETABLE, linetable, sizeof(linetable), 10, 8), 12);
    assert_int_equal(ub_python_lines_find(UB_PYTHON_LINETABLE, linetable, sizeof(linetable), 10, 15), 14);
    assert_int_equal(ub_python_lines_find(UB_PYTHON_LOCATIONS, locations, sizeof(locations), 10, 0), 10);
    assert_int_equal(ub_python_lines_find(UB_PYTHON_LOCATIONS, locations, sizeof(locations), 10, 2), 11);
    assert_int_equal(ub_python_lines_find(UB_PYTHON_LOCATIONS, locations, sizeof(locations), 10, 5), 11);
    assert_int_equal(ub_python_lines_find(UB_PYTHON_LOCATIONS, locations, sizeof(locations), 10, 6), 11);
    assert_int_equal(ub_python_lines_find(UB_PYTHON_LOCATIONS, locations, sizeof(locations), 10, 8), 14);
    assert_int_equal(ub_python_lines_find(UB_PYTHON_LOCATIONS, locations, sizeof(locations), 10, 10), 12);
    assert_int_equal(ub_python_lines_find(UB_PYTHON_LOCATIONS, locations, sizeof(locations), 10, 12), 12);
    /* Before the first instruction (a frame that is being made) stands the function's own line. */
    assert_int_equal(ub_python_lines_find(UB_PYTHON_LOCATIONS, locations, sizeof(locations), 10, -2), 10);
    assert_int_equal(ub_python_lines_find(UB_PYTHON_LOCATIONS, NULL, 0, 10, 4), 10);
}

static void test_any_line_table(void **state)
{
    uint8_t table[4096];

    srand(7);
    for (int i = 0; i < 20000; i++) {
        uint32_t size = (uint32_t)rand() % sizeof(table);

        for (uint32_t k = 0; k < 64 && k < size; k++)
            table[k] = (uint8_t)rand();
        for (int kind = UB_PYTHON_LNOTAB; kind <= UB_PYTHON_LOCATIONS; kind++)
            ub_python_lines_find(kind, table, size, rand(), rand() % 10000);
    }
}

/* ---- whose code it is ------------------------------------------------- */

static void test_owner(void **state)
{
    assert_int_equal(ub_python_owner_of("/srv/app/api.py", "handle"), UB_PYTHON_USER);
    assert_int_equal(ub_python_owner_of("/usr/lib/python3.11/json/decoder.py", "decode"), UB_PYTHON_LIBRARY);
    assert_int_equal(ub_python_owner_of("/srv/venv/lib/python3.12/site-packages/requests/api.py", "get"),
                     UB_PYTHON_LIBRARY);
    assert_int_equal(ub_python_owner_of("/usr/lib/python3/dist-packages/aiohttp/web.py", "run_app"), UB_PYTHON_LIBRARY);
    assert_int_equal(ub_python_owner_of("<frozen importlib._bootstrap>", "_find_and_load"), UB_PYTHON_LIBRARY);
    assert_int_equal(ub_python_owner_of("<string>", "<module>"), UB_PYTHON_USER);
    assert_int_equal(ub_python_owner_of("/usr/lib/python3.11/asyncio/events.py", "Handle._run"), UB_PYTHON_LOOP);
    assert_int_equal(ub_python_owner_of("/x/lib/python3.8/asyncio/events.py", "_run"), UB_PYTHON_LOOP);
    assert_int_equal(ub_python_owner_of("/usr/lib/python3.11/asyncio/locks.py", "Lock.acquire"), UB_PYTHON_LIBRARY);
    assert_int_equal(ub_python_owner_of("/srv/app/asyncio/events.py", "Handle._run"), UB_PYTHON_USER);
    assert_int_equal(ub_python_owner_of(NULL, NULL), UB_PYTHON_USER);
}

/* ---- a made-up interpreter (the layout of 3.11) ------------------------ */

#define MEMORY_SIZE (64u * 1024u)

enum {
    TYPE_CODE = 0x200,
    TYPE_STR = 0x400,
    TYPE_BYTES = 0x600,
    TYPE_DICT = 0x800,
    TYPE_TASK = 0xa00,
    NAMES = 0xc00,
    RUNTIME = 0x1000,
    INTERP = 0x3000,
    STATE = 0x4000,
    CFRAME = 0x4400,
    FRAMES = 0x5000,
    CODE = 0x6000,
    STRINGS = 0x7000,
    TABLE = 0x7800,
    COROUTINE = 0x8000,
    TASK = 0x9000,
    TASKS = 0xa000,
    KEYS = 0xa100,
    GIL_END = 0xb000
};

static uint8_t *memory;
static struct ub_python *py;

static uint64_t at(uint32_t offset)
{
    return (uint64_t)(uintptr_t)(memory + offset);
}

static void put(uint32_t offset, uint64_t value)
{
    memcpy(memory + offset, &value, sizeof(value));
}

static void make_type(uint32_t offset, uint32_t name, const char *text)
{
    put(offset + UB_PYTHON_TYPE_NAME, at(name));
    strcpy((char *)memory + name, text);
}

static void make_string(uint32_t offset, const char *text)
{
    put(offset + 8, at(TYPE_STR));
    put(offset + 16, strlen(text));
    put(offset + 32, 0x20 | 0x40 | 1 << 2); /* compact, ASCII, one byte a character */
    strcpy((char *)memory + offset + 48, text);
}

static void make_frame(uint32_t i, uint64_t back, bool generator)
{
    uint32_t f = generator ? COROUTINE + ub_python_3_11.generator_frame : FRAMES + i * 0x100;

    put(f + 32, at(CODE));
    put(f + 48, back);
    put(f + 56, at(CODE) + 184 + 4);
    memory[f + 68] = 1;
    memory[f + 69] = generator;
}

/* Frames 0 <- coroutine <- 1, all of one code object; a task runs the coroutine. */
static void make_interpreter(void)
{
    static const uint8_t table[] = {0x80 | 10 << 3 | 1, 0, 0, 0x80 | 12 << 3 | 7, 0, 0};

    memset(memory, 0, MEMORY_SIZE);
    make_type(TYPE_CODE, NAMES, "code");
    make_type(TYPE_STR, NAMES + 32, "str");
    make_type(TYPE_BYTES, NAMES + 64, "bytes");
    make_type(TYPE_DICT, NAMES + 96, "dict");
    make_type(TYPE_TASK, NAMES + 128, "_asyncio.Task");
    put(RUNTIME + ub_python_3_11.runtime_interpreters, at(INTERP));
    put(RUNTIME + ub_python_3_11.runtime_gil + 8, at(STATE));
    memory[RUNTIME + ub_python_3_11.runtime_gil + 16] = 1;
    put(INTERP + 16, at(STATE));
    put(STATE + 16, at(INTERP));
    put(STATE + 160, (uint64_t)syscall(SYS_gettid));
    put(STATE + 56, at(CFRAME));
    put(CFRAME + 8, at(FRAMES));
    make_frame(0, at(COROUTINE) + 80, false);
    make_frame(0, at(FRAMES) + 0x100, true);
    make_frame(1, 0, false);
    put(CODE + 8, at(TYPE_CODE));
    put(CODE + 128, at(STRINGS));
    put(CODE + 120, at(STRINGS));
    put(CODE + 112, at(STRINGS) + 0x100);
    put(CODE + 136, at(TABLE));
    put(CODE + 72, 40);
    put(CODE + 48, UB_PYTHON_CO_COROUTINE);
    make_string(STRINGS, "App.handle");
    make_string(STRINGS + 0x100, "/srv/app.py");
    make_string(STRINGS + 0x200, "the task");
    put(TABLE + 8, at(TYPE_BYTES));
    put(TABLE + 16, sizeof(table));
    memcpy(memory + TABLE + 32, table, sizeof(table));
    put(TASK + 8, at(TYPE_TASK));
    put(TASK + ub_python_3_11.task_coroutine, at(COROUTINE));
    put(TASK + ub_python_3_11.task_name, at(STRINGS) + 0x200);
    put(TASKS + 8, at(TYPE_DICT));
    put(TASKS + 32, at(KEYS));
    memory[KEYS + 8] = 3; /* eight slots, one byte of index each, a general table */
    memory[KEYS + 9] = 3;
    put(KEYS + 24, 1);
    put(KEYS + 32 + 8 + 8, at(INTERP));
    put(KEYS + 32 + 8 + 16, at(TASK));
}

static int set_up(void **state)
{
    memory = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED;
}

static int new_reader(void **state)
{
    py = calloc(1, sizeof(*py));
    py->pid = getpid();
    py->runtime = at(RUNTIME);
    py->layout = ub_python_3_11;
    py->current_tasks = at(TASKS);
    make_interpreter();
    return 0;
}

static int drop_reader(void **state)
{
    ub_python_free(py);
    return 0;
}

static void test_a_look(void **state)
{
    static struct ub_python_look look;

    for (int running = 0; running < 2; running++) {
        assert_int_equal(ub_python_look(py, (pid_t)syscall(SYS_gettid), 0, running, &look), 0);
        assert_int_equal(look.count, 3);
        assert_true(look.complete);
        assert_int_equal(look.proof, running ? UB_PYTHON_TWICE : UB_PYTHON_STILL);
        assert_int_equal(look.gil, UB_PYTHON_GIL_HELD);
        assert_string_equal(look.frame[0].code->function, "App.handle");
        assert_string_equal(look.frame[0].code->file, "/srv/app.py");
        assert_int_equal(ub_python_line(&look.frame[0]), 42);
        assert_true(look.frame[0].code == look.frame[2].code);
        assert_true(look.task.known);
        assert_int_equal(look.task.coroutine, 1);
        assert_string_equal(look.task.name, "the task");
    }
    assert_int_equal(ub_python_look(py, 1, 0, false, &look), -ENOENT);
}

/* 3.14 as it describes itself: the same made-up interpreter, its offsets told by its own table, references tagged. */
static void test_a_process_that_describes_itself(void **state)
{
    static struct ub_python_look look;
    uint64_t *o = (uint64_t *)(void *)(memory + RUNTIME);
    uint64_t table[] = {
        0,     0x030e00f0, 0,                                          /* cookie, version, free-threaded */
        0,     0,          0x800,                                      /* runtime */
        0,     0,          0x40,  16,    0,   0x100, 0x48, 0, 0, 0x50, /* interpreter: next, threads, gc, modules, GIL
                                                                        */
        0x200, 0,          0x210, 0x208, 0,   0,                       /* its GIL: locked, holder */
        0,     0,          8,     16,    56,  152,   160,  0, 0,       /* thread */
        0,     48,         32,    56,    72,  69,    0,    0,          /* frame */
        192,   112,        120,   128,   136, 72,    52,   0, 0, 184,  0, /* code */
        16,    8,          0,     0,     0,   0,     0,    0, 0, 0,    0,
        0,     0,          0,     0,     0,   0,     0,    0, 0, /* object, type, tuple, list, set, dict ... */
        0,     0,          0,     0,                             /* ... number, integer */
        0,     16,         32,                                   /* bytes */
        0,     32,         16,    48,                            /* string */
        0,     8,                                                /* collector */
        0,     0,          80,    75,                            /* generator */
    };

    memcpy(table, "xdebugpy", 8);
    memcpy(o, table, sizeof(table));
    put(RUNTIME + 0x800, at(INTERP));
    put(INTERP + 0x50, at(RUNTIME) + 0xa00);
    put(RUNTIME + 0xa00 + 8, at(STATE));
    put(RUNTIME + 0xa00 + 16, 1);
    put(STATE + 56, at(FRAMES));
    put(FRAMES + 32, at(CODE) | 1);
    put(FRAMES + 0x100 + 32, at(CODE) | 3);
    put(FRAMES + 0x100 + 48, at(FRAMES) + 0x200); /* the entry from C, and what lies below it */
    put(FRAMES + 0x200 + 48, 0);
    memory[FRAMES + 0x200 + 69] = 4;
    py->current_tasks = 0;
    assert_int_equal(ub_python_settle(py, 0x030e), 0);
    assert_int_equal(ub_python_look(py, (pid_t)syscall(SYS_gettid), 0, false, &look), 0);
    assert_int_equal(look.count, 3);
    assert_true(look.complete);
    assert_string_equal(look.frame[0].code->function, "App.handle");
    assert_int_equal(ub_python_line(&look.frame[0]), 42);
    assert_int_equal(look.frame[0].code->flags, UB_PYTHON_CO_COROUTINE);
    assert_int_equal(look.frame[1].generator, at(COROUTINE));
    assert_true(look.frame[2].entry);
    assert_int_equal(look.gil, UB_PYTHON_GIL_HELD);
    assert_false(look.task.known); /* they are kept elsewhere there */

    o[1] = 0x030d00f0; /* the table of another version */
    assert_int_equal(ub_python_settle(py, 0x030e), -EBADMSG);
    o[1] = 0x030e00f0;
    o[2] = 1;
    assert_int_equal(ub_python_settle(py, 0x030e), -ENOTSUP);
    assert_int_equal(ub_python_settle(py, 0x030f), -ENOTSUP); /* newer than anybody has told us of */
}

static void test_gil(void **state)
{
    static struct ub_python_look look;
    uint64_t cond = at(RUNTIME) + ub_python_3_11.runtime_gil + ub_python_3_11.gil_cond;
    pid_t tid = (pid_t)syscall(SYS_gettid);

    put(STATE + 0x200 + 160, 4242);
    put(STATE + 0x200 + 56, at(CFRAME));
    put(RUNTIME + ub_python_3_11.runtime_gil + 8, at(STATE) + 0x200);
    assert_int_equal(ub_python_look(py, tid, cond + 8, false, &look), 0);
    assert_int_equal(look.gil, UB_PYTHON_GIL_WAITED);
    assert_int_equal(look.holder, 4242);
    assert_string_equal(look.holder_frame.code->function, "App.handle");
    assert_int_equal(ub_python_look(py, tid, cond + 4096, false, &look), 0);
    assert_int_equal(look.gil, UB_PYTHON_GIL_RELEASED);
    assert_int_equal(look.holder, 0);
}

/* A code object whose memory now holds another one is not taken for the first. */
static void test_code_that_changed(void **state)
{
    static struct ub_python_look look;
    const struct ub_python_code *before;
    pid_t tid = (pid_t)syscall(SYS_gettid);

    assert_int_equal(ub_python_look(py, tid, 0, false, &look), 0);
    before = look.frame[0].code;
    make_string(STRINGS + 0x300, "other");
    put(CODE + 128, at(STRINGS) + 0x300);
    put(CODE + 120, at(STRINGS) + 0x300);
    assert_int_equal(ub_python_look(py, tid, 0, false, &look), 0);
    assert_string_equal(look.frame[0].code->function, "other");
    assert_string_equal(before->function, "App.handle"); /* earlier looks still refer to it */
}

static void keep_frames(struct ub_call_frame *frame)
{
    uint64_t from[3] = {at(FRAMES), at(COROUTINE) + 80, at(FRAMES) + 0x100};

    for (uint32_t i = 0; i < 3; i++) {
        frame[i].address = from[i];
        memcpy(frame[i].bytes, (const void *)(uintptr_t)from[i], sizeof(frame[i].bytes));
    }
}

/* What a thread has kept of a call is read as a look is; any bytes may stand there. */
static void test_kept_frames(void **state)
{
    static struct ub_call_frame frame[UB_CALLS_FRAMES];
    static struct ub_python_look look;

    keep_frames(frame);
    assert_int_equal(ub_python_own(py, frame, 3, &look), 3);
    assert_true(look.complete);
    assert_string_equal(look.frame[2].code->function, "App.handle");
    assert_int_equal(ub_python_line(&look.frame[0]), 42);
    assert_int_equal(look.frame[1].generator, at(COROUTINE));
    assert_int_equal(ub_python_own(py, frame, 2, &look), 2);
    assert_false(look.complete); /* it goes on, but no more was kept */
    put(CODE + 8, at(TYPE_STR)); /* the code object is gone by now */
    assert_int_equal(ub_python_own(py, frame, 3, &look), 0);
    put(CODE + 8, at(TYPE_CODE));
    py->layout.frame_owner = UB_CALLS_FRAME; /* as a process may describe itself */
    assert_int_equal(ub_python_own(py, frame, 3, &look), 0);
    py->layout.frame_owner = ub_python_3_11.frame_owner;
    srand(5);
    for (int i = 0; i < 20000; i++) {
        keep_frames(frame);
        for (int k = 0; k < 8; k++)
            frame[rand() % 3].bytes[rand() % (int)UB_CALLS_FRAME] = (uint8_t)rand();
        assert_true(ub_python_own(py, frame, 3, &look) <= 3);
    }
}

static double seconds(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static void test_rings_end(void **state)
{
    static struct ub_python_look look;
    pid_t tid = (pid_t)syscall(SYS_gettid);

    put(FRAMES + 0x100 + 48, at(FRAMES)); /* frames */
    assert_int_equal(ub_python_look(py, tid, 0, false, &look), 0);
    assert_int_equal(look.count, UB_PYTHON_FRAMES_MAX);
    assert_false(look.complete);
    put(STATE + 160, 1); /* threads */
    put(STATE + 8, at(STATE));
    assert_int_equal(ub_python_look(py, tid, 0, false, &look), -ENOENT);
    put(INTERP, at(INTERP)); /* interpreters */
    assert_int_equal(ub_python_look(py, tid, 0, false, &look), -ENOENT);
}

static uint64_t anywhere(void)
{
    return at((uint32_t)rand() % MEMORY_SIZE & ~7u);
}

/* What is read of what a look has found, wherever that may lead. */
static void look_further(struct ub_python_look *look)
{
    static const char *const names[] = {"_scheduled", "data", "path", ""};

    py->asyncio = rand() % 2 ? anywhere() : 0;
    py->thread_queues = anywhere();
    py->process_wakeups = anywhere();
    py->executor_modules = 0;
    look->task.known = rand() % 2;
    look->task.loop = anywhere();
    ub_python_see_request(py, look);
    ub_python_see_waiting(py, (uint64_t)rand() << 20, look);
    assert_true(look->request.path[sizeof(look->request.path) - 1] == '\0');
    for (size_t i = 0; i < UB_ARRAY_LEN(names); i++) {
        ub_python_attribute(py, anywhere(), names[i]);
        ub_python_base_slot(py, anywhere(), names[i]);
        ub_python_code_at(py, anywhere());
    }
    py->asyncio = 0;
}

/* Any word, anywhere, as a pointer to anything else: what counts is that it comes back, soon. */
static void test_hostile_memory(void **state)
{
    static struct ub_python_look look;
    static struct ub_python_waiter waiter[8];
    pid_t tid = (pid_t)syscall(SYS_gettid);
    double worst = 0;

    srand(11);
    for (int i = 0; i < 30000; i++) {
        double begun = seconds();

        if (i % 50 == 0) {
            make_interpreter();
            py->modules_seen = 0;
            py->type_count = 0;
            if (i % 100 == 0) {
                ub_python_codes_free(py);
                py->codes = NULL;
                py->code_count = 0;
                py->code_bytes = 0;
            }
        }
        for (int k = rand() % 4; k >= 0; k--) {
            uint32_t where = ((uint32_t)rand() % (KEYS + 0x100)) & ~7u;

            switch (rand() % 4) {
            case 0:
                put(where, at((uint32_t)rand() % MEMORY_SIZE));
                break;
            case 1:
                put(where, at(((uint32_t)rand() % MEMORY_SIZE) & ~15u));
                break;
            case 2:
                put(where, (uint64_t)rand() << 33 ^ (uint64_t)rand());
                break;
            default:
                memory[where + (uint32_t)rand() % 8] = (uint8_t)rand();
            }
        }
        py->current_tasks = rand() % 4 ? at(TASKS) : 0;
        ub_python_look(py, tid, at((uint32_t)rand() % MEMORY_SIZE), rand() % 2, &look);
        ub_python_tasks(py, waiter, UB_ARRAY_LEN(waiter));
        if (i % 8 == 0)
            look_further(&look);
        if (seconds() - begun > worst)
            worst = seconds() - begun;
    }
    assert_true(worst < 2.0); /* a walk without an end would take for ever; a busy machine does not take this long */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_any_line_table),
        cmocka_unit_test(test_owner),
        cmocka_unit_test_setup_teardown(test_a_look, new_reader, drop_reader),
        cmocka_unit_test_setup_teardown(test_a_process_that_describes_itself, new_reader, drop_reader),
        cmocka_unit_test_setup_teardown(test_gil, new_reader, drop_reader),
        cmocka_unit_test_setup_teardown(test_code_that_changed, new_reader, drop_reader),
        cmocka_unit_test_setup_teardown(test_kept_frames, new_reader, drop_reader),
        cmocka_unit_test_setup_teardown(test_rings_end, new_reader, drop_reader),
        cmocka_unit_test_setup_teardown(test_hostile_memory, new_reader, drop_reader),
    };

    return cmocka_run_group_tests(tests, set_up, NULL);
}
