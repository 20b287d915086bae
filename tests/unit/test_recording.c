/* Writing recordings: one line one write, modes, refusals, full disks, rotation. Reading them: whatever is in the file.
 */
#include "folder_check.h"

#include <sys/socket.h>

static const char *in_folder(const char *name)
{
    static char path[4][192];
    static int next;
    char *p = path[next++ % 4];

    snprintf(p, sizeof(path[0]), "%s/%s", folder, name);
    return p;
}

static void put_text(const char *path, const char *text, size_t len)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
}

/* ---- writing --------------------------------------------------------- */

static struct ub_recording_writer *create(const char *path, bool force, bool append, uint64_t max_size)
{
    struct ub_recording_options options = {.path = path, .force = force, .append = append, .max_size = max_size};
    struct ub_recording_writer *w = NULL;

    assert_int_equal(ub_recording_create(&options, &w), 0);
    return w;
}

static void write_line(struct ub_recording_writer *w, json_t *line)
{
    struct ub_sink sink = ub_recording_sink(w);

    assert_non_null(line);
    sink.line(sink.self, line);
    json_decref(line);
}

static void test_written_lines_come_back(void **state)
{
    const char *path = in_folder("a.jsonl");
    struct ub_recording_writer *w = create(path, false, false, 0);
    struct ub_recording_stats stats;
    struct ub_model *m;
    struct stat st;
    char *text;

    write_line(w, json_loads(HEADER, 0, NULL));
    write_line(w, slow(1, "s", 30, ", 'note':'\\u001b\\n\xc3\xa4'"));
    write_line(w, json_of("{'type':'end','exit':0}"));
    assert_int_equal(ub_recording_close(w, NULL), 0);

    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    text = slurp(path, NULL);
    assert_memory_equal(text, HEADER "\n{\"type\":\"slow\"", sizeof(HEADER) + 14);
    free(text);
    m = model_of_file(path, &stats);
    assert_int_equal(stats.lines, 3);
    assert_int_equal(stats.torn + stats.skipped, 0);
    assert_true(stats.ended);
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->count, 1);
    ub_model_free(m);
}

static void test_existing_file_is_refused(void **state)
{
    const char *path = in_folder("a.jsonl");
    struct ub_recording_options options = {.path = path};
    struct ub_recording_writer *w = NULL;
    char *text;

    put_text(path, "precious", 8);
    assert_int_equal(ub_recording_create(&options, &w), -EEXIST);
    assert_null(w);
    text = slurp(path, NULL);
    assert_string_equal(text, "precious");
    free(text);
    options.path = in_folder("no/such/folder");
    assert_int_equal(ub_recording_create(&options, &w), -ENOENT);
}

/* A planted symbolic link must not lead --force to another file; a reader of the old one is not disturbed. */
static void test_force_replaces(void **state)
{
    const char *path = in_folder("a.jsonl"), *victim = in_folder("victim");
    struct ub_recording_writer *w;
    char *text;

    put_text(victim, "precious", 8);
    assert_int_equal(symlink(victim, path), 0);
    w = create(path, true, false, 0);
    write_line(w, json_loads(HEADER, 0, NULL));
    assert_int_equal(ub_recording_close(w, NULL), 0);
    text = slurp(victim, NULL);
    assert_string_equal(text, "precious");
    free(text);
    text = slurp(path, NULL);
    assert_string_equal(text, HEADER "\n");
    free(text);
}

static void test_append_after_torn_line(void **state)
{
    const char *path = in_folder("a.jsonl");
    static const char before[] = HEADER "\n{\"type\":\"slow\",\"id\":1,\"pi";
    struct ub_recording_writer *w;
    struct ub_recording_stats stats;
    struct ub_model *m;

    put_text(path, before, sizeof(before) - 1);
    w = create(path, false, true, 0);
    write_line(w, json_loads(HEADER, 0, NULL));
    write_line(w, slow(1, "s", 30, ""));
    assert_int_equal(ub_recording_close(w, NULL), 0);
    m = model_of_file(path, &stats);
    assert_int_equal(stats.lines, 3);
    assert_int_equal(stats.skipped, 1);
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->count, 1);
    ub_model_free(m);
}

static void test_devices_need_no_force(void **state)
{
    struct ub_recording_writer *w = create("/dev/null", false, false, 0);
    uint64_t lost;

    write_line(w, json_loads(HEADER, 0, NULL));
    assert_int_equal(ub_recording_close(w, &lost), 0);
    assert_int_equal(lost, 0);
}

static void test_full_disk_is_counted(void **state)
{
    struct ub_recording_writer *w = create("/dev/full", false, false, 0);
    uint64_t lost;

    write_line(w, json_loads(HEADER, 0, NULL));
    write_line(w, json_of("{'type':'end'}"));
    assert_int_equal(ub_recording_close(w, &lost), -ENOSPC);
    assert_int_equal(lost, 2);
}

/* Standard output replaced by a packet socket: every write(2) is a packet of its own. */
static void test_one_write_a_line(void **state)
{
    struct ub_recording_writer *w;
    int saved = dup(1), pair[2];
    char packet[4096];
    uint64_t lost;

    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
    w = create("-", false, false, 1);
    assert_int_equal(dup2(pair[1], 1), 1);
    write_line(w, json_loads(HEADER, 0, NULL));
    write_line(w, json_of("{'type':'end'}"));
    assert_int_equal(read(pair[0], packet, sizeof(packet)), sizeof(HEADER));
    assert_memory_equal(packet, HEADER "\n", sizeof(HEADER));
    assert_int_equal(read(pair[0], packet, sizeof(packet)), strlen("{\"type\":\"end\"}\n"));

    /* The reader is gone: an error that is counted, no SIGPIPE. */
    close(pair[0]);
    write_line(w, json_of("{'type':'end'}"));
    assert_int_equal(dup2(saved, 1), 1);
    assert_int_equal(ub_recording_close(w, &lost), -EPIPE);
    assert_int_equal(lost, 1);
    close(saved);
    close(pair[1]);
}

/* ---- rotation -------------------------------------------------------- */

struct part {
    int slow, stacks, ends, unknown_stacks, processes;
    json_t *known;
    char next[64];
};

static void part_line(void *self, json_t *record)
{
    struct part *p = self;
    const char *type = json_string_value(json_object_get(record, "type"));
    const char *next = json_string_value(json_object_get(record, "next"));
    char id[32];

    if (strcmp(type, "stack") == 0) {
        snprintf(id, sizeof(id), "%d", (int)json_integer_value(json_object_get(record, "id")));
        json_object_set_new(p->known, id, json_true());
        p->stacks++;
    } else if (strcmp(type, "slow") == 0) {
        json_t *sample = json_array_get(json_object_get(record, "samples"), 0);

        snprintf(id, sizeof(id), "%d", (int)json_integer_value(json_object_get(sample, "stack")));
        p->slow++;
        p->unknown_stacks += !json_object_get(p->known, id);
    }
    p->processes += strcmp(type, "process") == 0;
    p->ends += strcmp(type, "end") == 0;
    if (next)
        snprintf(p->next, sizeof(p->next), "%s", next);
}

static struct part read_part(const char *path)
{
    struct part p = {.known = json_object()};
    struct ub_sink sink = {.line = part_line, .self = &p};
    struct ub_recording_stats stats;
    FILE *f = fopen(path, "r");

    assert_non_null(f);
    assert_int_equal(ub_recording_read(f, &sink, &stats), 0);
    assert_int_equal(stats.torn + stats.skipped, 0);
    fclose(f);
    json_decref(p.known);
    return p;
}

static void write_run(struct ub_recording_writer *w, int stalls)
{
    write_line(w, json_loads(HEADER, 0, NULL));
    write_line(w, json_loads(PROCESS, 0, NULL));
    write_line(w, json_of("{'type':'loop','pid':42,'tid':42,'loop':'turn'}"));
    for (int i = 0; i < stalls; i++) {
        char more[64];

        if (i < 3) /* all stacks are in the first part */
            write_line(
                w, json_of("{'type':'stack','id':%d,'frames':[{'function':'f%d','module':'/opt/app/prog'}]}", i, i));
        snprintf(more, sizeof(more), ", 'samples':[{'at_ns':1,'stack':%d,'state':'running'}]", i % 3);
        write_line(w, slow(i, "s", 30, more));
    }
    write_line(w, json_of("{'type':'end','exit':0}"));
}

static void test_each_part_stands_alone(void **state)
{
    const char *path = in_folder("r.jsonl");
    struct ub_recording_writer *w = create(path, false, false, 4000);
    struct ub_recording_stats stats;
    struct ub_model *m = ub_model_new();
    struct ub_sink sink = ub_model_sink(m);
    int parts = 0, slow_lines = 0;
    char name[192];

    write_run(w, 60);
    assert_int_equal(ub_recording_close(w, NULL), 0);
    for (;; parts++) {
        struct part p;
        FILE *f;

        snprintf(name, sizeof(name), parts ? "%s.%d" : "%s", path, parts);
        if (access(name, F_OK) < 0)
            break;
        p = read_part(name);
        assert_int_equal(p.unknown_stacks, 0);
        assert_int_equal(p.processes, 1);
        assert_true(p.stacks <= 3);
        assert_true(p.ends || strlen(p.next) > 0);
        slow_lines += p.slow;
        f = fopen(name, "r");
        assert_int_equal(ub_recording_read(f, &sink, &stats), 0);
        fclose(f);
    }
    assert_true(parts > 3);
    assert_int_equal(slow_lines, 60);

    /* Together they are one run. */
    assert_int_equal(ub_model_runs(m), 1);
    assert_non_null(ub_model_run(m, 0)->end);
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->count, 60);
    ub_model_free(m);
}

static void test_old_parts_are_not_overwritten(void **state)
{
    const char *path = in_folder("r.jsonl"), *old = in_folder("r.jsonl.1");
    struct ub_recording_writer *w;
    char *text;

    put_text(old, "precious", 8);
    w = create(path, false, false, 4000);
    write_run(w, 20);
    assert_int_equal(ub_recording_close(w, NULL), 0);
    text = slurp(old, NULL);
    assert_string_equal(text, "precious");
    free(text);
    assert_int_equal(access(in_folder("r.jsonl.2"), F_OK), 0);
}

/* The folder vanishes: nothing stops, everything stays in the part that is open. */
static void test_rotation_that_fails(void **state)
{
    const char *path = in_folder("gone/r.jsonl");
    struct ub_recording_writer *w;
    uint64_t lost;

    assert_int_equal(mkdir(in_folder("gone"), 0700), 0);
    w = create(path, false, false, 4000);
    assert_int_equal(rename(in_folder("gone"), in_folder("elsewhere")), 0);
    write_run(w, 60);
    assert_int_equal(ub_recording_close(w, &lost), -ENOENT);
    assert_int_equal(lost, 0);
    assert_int_equal(read_part(in_folder("elsewhere/r.jsonl")).slow, 60);
}

static void test_names(void **state)
{
    char *name = ub_recording_name("a%%b-%p-%q%", "x", 42), expected[300], host[256] = "";

    assert_string_equal(name, "a%b-42-%q%");
    free(name);
    gethostname(host, sizeof(host) - 1);
    name = ub_recording_name("%h", "x", 1);
    snprintf(expected, sizeof(expected), "%.64s", host);
    assert_string_equal(name, expected);
    free(name);
    name = ub_recording_name(NULL, "/usr/bin/we ird/../\x1b\xff.sh", 7);
    assert_memory_equal(name, "unblock-__.sh-7-20", 18);
    assert_null(strchr(name, '/'));
    assert_string_equal(name + strlen(name) - 7, "Z.jsonl");
    free(name);
}

/* ---- reading --------------------------------------------------------- */

struct seen {
    int lines;
};

static void count_line(void *self, json_t *record)
{
    assert_true(json_is_object(record));
    ((struct seen *)self)->lines++;
}

static int read_bytes(const char *text, size_t len, struct ub_recording_stats *stats)
{
    struct seen seen = {0};
    struct ub_sink sink = {.line = count_line, .self = &seen};
    FILE *f = len ? fmemopen((void *)text, len, "r") : fopen("/dev/null", "r");
    int r;

    assert_non_null(f);
    r = ub_recording_read(f, &sink, stats);
    fclose(f);
    assert_int_equal(seen.lines, stats->lines);
    return r;
}

#define READ(text, stats) read_bytes(text, sizeof(text) - 1, stats)

static void test_what_is_no_recording(void **state)
{
    struct ub_recording_stats stats;
    struct ub_sink sink = {.line = count_line, .self = &(struct seen){0}};
    FILE *f;

    assert_int_equal(READ("", &stats), -ENODATA);
    assert_int_equal(READ("\n\n", &stats), -ENODATA);
    assert_int_equal(READ("hello\n", &stats), -EINVAL);
    assert_int_equal(READ("{\"type\":\"slow\"}\n" HEADER "\n", &stats), -EINVAL);
    assert_int_equal(READ("[]\n" HEADER "\n", &stats), -EINVAL);
    assert_int_equal(READ("{\"type\":\"header\",\"schema\":\"other\",\"version\":1}\n", &stats), -EINVAL);
    assert_int_equal(READ("{\"type\":\"header\",\"schema\":\"unblock-recording\",\"version\":\"1\"}\n", &stats),
                     -EINVAL);
    assert_int_equal(READ("{\"type\":\"header\",\"schema\":\"unblock-recording\",\"version\":2}\n", &stats),
                     -EPROTONOSUPPORT);
    assert_int_equal(stats.lines, 0);
    f = fopen("/dev/zero", "r"); /* has no end */
    assert_int_equal(ub_recording_read(f, &sink, &stats), -EINVAL);
    fclose(f);
    f = fopen("/", "r");
    assert_int_equal(ub_recording_read(f, &sink, &stats), -EISDIR);
    fclose(f);
}

static void test_broken_lines_are_counted(void **state)
{
    static const char text[] = HEADER "\n"
                                      "{\"type\":\"a\"}\r\n"
                                      "\n  \n"
                                      "[1]\n\"x\"\n42\n"
                                      "{\"type\":\"\xff\"}\n"
                                      "{\"type\":\"\\u0000\"}\n"
                                      "{\"a\":1}\0\n"
                                      "{\"n\":99999999999999999999}\n"
                                      "{\"type\":42,\"x\":{\"y\":[]}}\n"
                                      "{\"type\":\"end\"";
    struct ub_recording_stats stats;

    assert_int_equal(READ(text, &stats), 0);
    assert_int_equal(stats.lines, 3);
    assert_int_equal(stats.skipped, 7);
    assert_int_equal(stats.torn, 1);
    assert_false(stats.ended);
}

static void test_last_line_without_newline_counts(void **state)
{
    struct ub_recording_stats stats;

    assert_int_equal(READ(HEADER "\n{\"type\":\"end\"}", &stats), 0);
    assert_int_equal(stats.lines, 2);
    assert_int_equal(stats.torn, 0);
    assert_true(stats.ended);
}

/* What a power cut leaves: a tail of NULs. */
static void test_nul_tail_is_torn(void **state)
{
    struct ub_recording_stats stats;

    assert_int_equal(READ(HEADER "\n\0\0\0\0", &stats), 0);
    assert_int_equal(stats.lines, 1);
    assert_int_equal(stats.torn, 1);
}

static void test_huge_and_deep_lines(void **state)
{
    size_t huge = UB_RECORDING_LINE_MAX + 1000, deep = 100000, len = 0;
    char *text = malloc(huge + deep + 4096);
    struct ub_recording_stats stats;

    len += (size_t)sprintf(text + len, HEADER "\n{\"x\":\"");
    memset(text + len, 'a', huge);
    len += huge;
    len += (size_t)sprintf(text + len, "\"}\n{\"x\":");
    memset(text + len, '[', deep);
    len += deep;
    len += (size_t)sprintf(text + len, "\n{\"type\":\"end\"}\n");
    assert_int_equal(read_bytes(text, len, &stats), 0);
    assert_int_equal(stats.lines, 2);
    assert_int_equal(stats.skipped, 2);
    assert_true(stats.ended);
    free(text);
}

/* Joined files: a part in a newer version is passed over, the rest is read. */
static void test_joined_with_a_newer_one(void **state)
{
    static const char newer[] =
        "{\"type\":\"header\",\"schema\":\"unblock-recording\",\"version\":9}\n{\"type\":\"slow\"}\n";
    struct ub_recording_stats stats;
    char text[4096];
    int len = snprintf(text, sizeof(text), HEADER "\n{\"type\":\"a\"}\n%s" HEADER "\n{\"type\":\"end\"}\n", newer);

    assert_int_equal(read_bytes(text, (size_t)len, &stats), 0);
    assert_int_equal(stats.lines, 4);
    assert_int_equal(stats.skipped, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_written_lines_come_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_existing_file_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_force_replaces, setup, teardown),
        cmocka_unit_test_setup_teardown(test_append_after_torn_line, setup, teardown),
        cmocka_unit_test(test_devices_need_no_force),
        cmocka_unit_test(test_full_disk_is_counted),
        cmocka_unit_test(test_one_write_a_line),
        cmocka_unit_test_setup_teardown(test_each_part_stands_alone, setup, teardown),
        cmocka_unit_test_setup_teardown(test_old_parts_are_not_overwritten, setup, teardown),
        cmocka_unit_test_setup_teardown(test_rotation_that_fails, setup, teardown),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_what_is_no_recording),
        cmocka_unit_test(test_broken_lines_are_counted),
        cmocka_unit_test(test_last_line_without_newline_counts),
        cmocka_unit_test(test_nul_tail_is_torn),
        cmocka_unit_test(test_huge_and_deep_lines),
        cmocka_unit_test(test_joined_with_a_newer_one),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
