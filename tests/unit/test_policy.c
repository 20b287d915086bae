/* Offload policies: what they may say, what is wrong with others, which rule fits. */
#include "unit.h"

#include "../../common/calls.h"
#include "../../tracer/policy_file.h"
#include "../../tracer/policy_table.h"
#include "../../tracer/timed_calls.h"
#include "folder_check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct told {
    uint32_t lines[64], count;
    char text[4096];
};

static void tell(void *self, const char *path, uint32_t line, const char *what)
{
    struct told *t = self;
    size_t used = strlen(t->text);

    if (t->count < 64)
        t->lines[t->count] = line;
    t->count++;
    snprintf(t->text + used, sizeof(t->text) - used, "%u: %s\n", line, what);
}

static int read_bytes(const char *text, size_t len, struct ub_policy_file *ret, struct told *t)
{
    char folder[64], path[128];
    FILE *f;
    int r;

    *t = (struct told){0};
    snprintf(path, sizeof(path), "%s/p.ini", folder_make(folder));
    f = fopen(path, "w");
    fwrite(text, 1, len, f);
    fclose(f);
    r = ub_policy_read(path, tell, t, ret);
    folder_remove(folder);
    return r;
}

static struct ub_policy_file good(const char *text)
{
    struct ub_policy_file p;
    struct told t;

    if (read_bytes(text, strlen(text), &p, &t) != 0)
        fail_msg("%s", t.text);
    assert_int_equal(t.count, 0);
    return p;
}

static void test_what_is_kept(void **state)
{
    struct ub_policy_file p = good("# written from server.jsonl\r\n"
                                   "[offload]\n"
                                   "fsync   in wal_commit   = move lane=files limit=4   # 118 x 290 ms\n"
                                   "fsync   in db.c:*       = inline  # lock held\n"
                                   "getaddrinfo=move\n"
                                   "send in ns::operator==(a, b) = move lane=wait\n"
                                   " [ python ] \n"
                                   "pickle.dump = fork # large\n"
                                   "jobs.is_prime = process(3)\n"
                                   "requests.post = thread ( 8 )\n"
                                   "a.* = thread\n"
                                   "[yield]\n"
                                   "jobs.* = 5ms\n"
                                   "x.y = 0.25s\n"
                                   "[except]\n"
                                   "billing.* = inline\n"
                                   "fsync in log#1.c:f = inline");

    assert_int_equal(p.count, 12);
    assert_string_equal(p.rule[0].call, "fsync");
    assert_string_equal(p.rule[0].place, "wal_commit");
    assert_int_equal(p.rule[0].action, UB_POLICY_MOVE);
    assert_int_equal(p.rule[0].lane, UB_EXECUTOR_FILES);
    assert_int_equal(p.rule[0].limit, 4);
    assert_int_equal(p.rule[0].line, 3);
    assert_string_equal(p.rule[0].text, "fsync   in wal_commit   = move lane=files limit=4");
    assert_int_equal(p.rule[1].action, UB_POLICY_INLINE);
    assert_string_equal(p.rule[1].place, "db.c:*");
    assert_string_equal(p.rule[2].call, "getaddrinfo");
    assert_null(p.rule[2].place);
    assert_string_equal(p.rule[3].place, "ns::operator==(a, b)");
    assert_int_equal(p.rule[3].lane, UB_EXECUTOR_WAIT);
    assert_int_equal(p.rule[4].action, UB_POLICY_FORK);
    assert_null(p.rule[4].call);
    assert_int_equal(p.rule[5].action, UB_POLICY_PROCESS);
    assert_int_equal(p.rule[5].workers, 3);
    assert_int_equal(p.rule[6].action, UB_POLICY_THREAD);
    assert_int_equal(p.rule[6].workers, 8);
    assert_int_equal(p.rule[7].workers, 0);
    assert_int_equal(p.rule[8].action, UB_POLICY_GIVE_WAY);
    assert_int_equal(p.rule[8].period_ns, 5000000);
    assert_int_equal(p.rule[9].period_ns, 250000000);
    assert_int_equal(p.rule[10].section, UB_POLICY_EXCEPT);
    assert_string_equal(p.rule[11].call, "fsync");
    assert_string_equal(p.rule[11].place, "log#1.c:f");
    ub_policy_clear(&p);
    p = good("");
    assert_int_equal(p.count, 0);
    assert_false(p.predicted);
    ub_policy_clear(&p);
    p = good("[predicted]\np99 = 0.2ms # was 97 ms\nlongest = 2100us\n");
    assert_int_equal(p.count, 0);
    assert_true(p.predicted);
    assert_int_equal(p.predicted_p99_ns, 200000);
    assert_int_equal(p.predicted_longest_ns, 2100000);
    ub_policy_clear(&p);
}

/* Each with the line that is named and words that must be in the message. */
static void test_what_is_wrong(void **state)
{
    static const struct {
        const char *text;
        uint32_t line;
        const char *words[3];
    } cases[] = {
        {"fsync = move", 1, {"fsync = move", "no section", "[offload]"}},
        {"\n[ofload]\nfsync = move", 2, {"ofload", "did you mean offload?"}},
        {"[offload\n", 1, {"ends with ]"}},
        {"[]\n", 1, {"[offload], [python], [yield], [except] and [predicted]"}},
        {"[offload]\nfsnyc = move", 2, {"no call is named 'fsnyc'", "did you mean fsync?"}},
        {"[offload]\nqqqqqqqqq = move", 2, {"no call is named 'qqqqqqqqq'"}},
        {"[offload]\nfsync", 2, {"fsync", "NAME = ACTION"}},
        {"[offload]\nfsync =", 2, {"the action is missing"}},
        {"[offload]\n= move", 2, {"the name is missing"}},
        {"[offload]\nfsync = mvoe", 2, {"mvoe", "did you mean move?"}},
        {"[offload]\nfsync = move lane=fils", 2, {"the lane 'fils'", "did you mean files?"}},
        {"[offload]\nfsync = move lnae=files", 2, {"the option 'lnae'", "did you mean lane?"}},
        {"[offload]\nfsync = move fast", 2, {"the option 'fast'", "limit=N"}},
        {"[offload]\nfsync = move limit=0", 2, {"limit", "1 to 1024", "'0'"}},
        {"[offload]\nfsync = move limit=", 2, {"limit", "1 to 1024"}},
        {"[offload]\nfsync = move limit=99999999999999999999", 2, {"1 to 1024"}},
        {"[offload]\nfsync = inline limit=3", 2, {"inline takes no options", "limit=3"}},
        {"[offload]\nepoll_wait = move", 2, {"epoll_wait is never moved"}},
        {"[offload]\nsqlite3_step = move unit", 2, {"sqlite3_step", "not moved yet"}},
        {"[offload]\nfsync on f = move", 2, {"fsync on f", "CALL in PLACE"}},
        {"[offload]\nfsync in db.c:120 = move", 2, {"db.c:120", "db.c:*"}},
        {"[offload]\nfsync in db.c: = move", 2, {"FILE:FUNCTION"}},
        {"[predicted]\np99 = fast", 2, {"p99 = fast", "p99 = TIME"}},
        {"[predicted]\np98 = 1ms", 2, {"p98 = 1ms", "longest = TIME"}},
        {"[offload]\nfsync in 0x4013f0 = move", 2, {"0x4013f0", "name the function"}},
        {"[offload]\nfsync in [ab = move", 2, {"[ab", "without its ]"}},
        {"[offload]\nfsync = move\nfsync in f = inline", 3, {"never reached", "line 2"}},
        {"[offload]\nf*sync = move\nfsync = inline", 3, {"never reached", "line 2"}},
        {"[python]\njobs.f = thred", 2, {"thred", "did you mean thread?"}},
        {"[python]\njobs.f = thread(0)", 2, {"thread takes a number from 1 to 1024"}},
        {"[python]\njobs.f = thread(x)", 2, {"thread takes a number", "'x'"}},
        {"[python]\njobs.f = thread(", 2, {"thread(", "parentheses"}},
        {"[python]\njobs.f = thread 8", 2, {"thread 8", "parentheses"}},
        {"[python]\njobs.f = fork(2)", 2, {"fork takes no number"}},
        {"[python]\nis_prime = thread", 2, {"'is_prime' has no module", "*.is_prime"}},
        {"[python]\na b = thread", 2, {"'a b' is no dotted name"}},
        {"[python]\njobs. = thread", 2, {"a dot with nothing beside it"}},
        {"[python]\nx.f = move", 2, {"move", "thread(N)"}},
        {"[yield]\njobs.* = 5", 2, {"'5' is not a time", "5ms"}},
        {"[yield]\njobs.* = ms", 2, {"'ms' is not a time"}},
        {"[yield]\njobs.* = 1.2.3ms", 2, {"is not a time"}},
        {"[yield]\njobs.* = 1us", 2, {"out of bounds"}},
        {"[yield]\njobs.* = 999999999s", 2, {"out of bounds"}},
        {"[except]\nbilling.* = move", 2, {"stays inline", "'move'"}},
        {"[except]\nfnsyc in f = inline", 2, {"fnsyc", "fsync"}},
    };

    for (size_t i = 0; i < UB_ARRAY_LEN(cases); i++) {
        struct ub_policy_file p;
        struct told t;

        assert_int_equal(read_bytes(cases[i].text, strlen(cases[i].text), &p, &t), -22);
        assert_int_equal(p.count, 0);
        assert_null(p.rule);
        if (t.count != 1 || t.lines[0] != cases[i].line)
            fail_msg("%s\n-> %u mistakes\n%s", cases[i].text, t.count, t.text);
        for (size_t k = 0; k < 3 && cases[i].words[k]; k++) {
            if (!strstr(t.text, cases[i].words[k]))
                fail_msg("%s\nsays\n%snot '%s'", cases[i].text, t.text, cases[i].words[k]);
        }
    }
}

static void test_every_mistake_is_told(void **state)
{
    struct ub_policy_file p;
    struct told t;
    char many[4000] = "[offload]\n";

    static const char three[] = "[offload]\nfoo = move\nfsync = move\n[pyton]\nx = y\n[yield]\nq.* = 3\n";

    assert_int_equal(read_bytes(three, strlen(three), &p, &t), -22);
    assert_int_equal(t.count, 3); /* what stands in an unknown section is no further mistake */
    assert_int_equal(t.lines[0], 2);
    assert_int_equal(t.lines[1], 4);
    assert_int_equal(t.lines[2], 7);
    for (int i = 0; i < 100; i++)
        strcat(many, "nosuchcallatall = move\n");
    assert_int_equal(read_bytes(many, strlen(many), &p, &t), -22);
    assert_int_equal(t.count, 21); /* and the last word: there may be more */
    assert_non_null(strstr(t.text, "not read"));
}

static void test_files_that_are_none(void **state)
{
    struct ub_policy_file p;
    struct told t = {0};

    assert_int_equal(ub_policy_read("/nonexistent/p.ini", tell, &t, &p), -2);
    assert_int_equal(t.count, 1);
    assert_int_equal(t.lines[0], 0);
    assert_int_equal(ub_policy_read("/", tell, &t, &p), -21);
    assert_int_equal(ub_policy_read("/nonexistent/p.ini", NULL, NULL, &p), -2);
}

static bool fits(const char *rule, const char *call, struct ub_policy_names names)
{
    char text[256];
    struct ub_policy_file p;
    bool yes;

    snprintf(text, sizeof(text), "[offload]\n%s = move\n", rule);
    p = good(text);
    yes = ub_policy_fits_call(&p.rule[0], call) && ub_policy_fits_place(&p.rule[0], &names);
    ub_policy_clear(&p);
    return yes;
}

static void test_what_fits(void **state)
{
    const struct ub_policy_names none = {0},
                                 c = {.function = "wal_commit",
                                      .file = "/src/db/wal.c",
                                      .module = "/opt/app/prog-2.so"},
                                 cc = {.function = "db::Log::commit(int, char const*)", .file = "log.cc"},
                                 py = {.function = "Jobs.run", .file = "/srv/app/jobs/mail.py", .python = true},
                                 package = {.function = "f", .file = "/srv/jobs/__init__.py", .python = true},
                                 script = {.function = "f", .file = "run.py", .python = true};

    assert_true(fits("fsync", "fsync", none));
    assert_false(fits("fsync", "fdatasync", none));
    assert_true(fits("f*sync", "fdatasync", none));
    assert_true(fits("read", "__read_chk", none));
    assert_true(fits("open", "open64", none));
    assert_true(fits("open", "__open_2", none));
    assert_true(fits("pread", "__pread64_chk", none));
    assert_false(fits("open", "openat", none));
    assert_true(fits("open64", "open64", none));
    assert_true(fits("sem_wait", "sem_wait", none));
    assert_false(fits("fsync in f", "fsync", none));
    assert_true(fits("fsync in wal_*", "fsync", c));
    assert_false(fits("fsync in wal", "fsync", c));
    assert_true(fits("fsync in wal.c:*", "fsync", c));
    assert_true(fits("fsync in wal.c:wal_commit", "fsync", c));
    assert_false(fits("fsync in wal.c:other", "fsync", c));
    assert_true(fits("fsync in */db/wal.c:*", "fsync", c));
    assert_false(fits("fsync in db.c:*", "fsync", c));
    assert_true(fits("fsync in prog-*.so", "fsync", c));
    assert_true(fits("fsync in /opt/app/*", "fsync", c));
    assert_false(fits("fsync in /usr/*", "fsync", c));
    assert_true(fits("fsync in db::Log::commit", "fsync", cc));
    assert_true(fits("fsync in commit", "fsync", cc));
    assert_true(fits("fsync in db::*", "fsync", cc));
    assert_true(fits("fsync in log.cc:commit", "fsync", cc));
    assert_false(fits("fsync in Log", "fsync", cc));
    assert_true(fits("recv in mail.Jobs.run", "recv", py));
    assert_true(fits("recv in jobs.mail.*", "recv", py));
    assert_true(fits("recv in app.jobs.mail.Jobs.run", "recv", py));
    assert_false(fits("recv in obs.mail.*", "recv", py));
    assert_false(fits("recv in jobs.Jobs.run", "recv", py));
    assert_true(fits("recv in mail.py:Jobs.*", "recv", py));
    assert_true(fits("recv in jobs.f", "recv", package));
    assert_true(fits("recv in run.f", "recv", script));
}

static void test_dotted(void **state)
{
    struct ub_policy_file p = good("[python]\njobs.light = inline\njobs.* = thread(2)\n*.slow = fork\n[yield]\n"
                                   "jobs.* = 5ms\n[except]\nbilling.* = inline\n");

    assert_null(ub_policy_find_dotted(&p, UB_POLICY_PYTHON, "jobs.light"));
    assert_int_equal(ub_policy_find_dotted(&p, UB_POLICY_PYTHON, "jobs.x")->workers, 2);
    assert_int_equal(ub_policy_find_dotted(&p, UB_POLICY_PYTHON, "a.b.slow")->action, UB_POLICY_FORK);
    assert_null(ub_policy_find_dotted(&p, UB_POLICY_PYTHON, "a.b"));
    assert_null(ub_policy_find_dotted(&p, UB_POLICY_PYTHON, "billing.slow"));
    assert_int_equal(ub_policy_find_dotted(&p, UB_POLICY_YIELD, "jobs.x")->period_ns, 5000000);
    assert_int_equal(p.rule[0].fitted, 1);
    assert_int_equal(p.rule[4].fitted, 1);
    ub_policy_clear(&p);
}

static enum ub_policy_verdict verdict_of(const char *rules, const char *call, struct ub_policy_names names)
{
    struct ub_policy_file p = good(rules);
    const struct ub_policy_rule *rule = ub_policy_judge(&p, call, &names, 1);
    uint8_t table[UB_POLICY_CALLS];
    enum ub_policy_verdict said = rule && rule->action == UB_POLICY_MOVE ? UB_POLICY_ALLOW : UB_POLICY_DENY;

    ub_policy_compile(&p, table);
    for (uint32_t id = 0; id < UB_CALL_IDS; id++) {
        if (strcmp(ub_timed_call_name(id), call) == 0 && table[id] != UB_POLICY_WATCH)
            assert_int_equal(table[id], said); /* what is said without a place holds for each */
    }
    ub_policy_clear(&p);
    return said;
}

static void test_verdicts(void **state)
{
    const struct ub_policy_names here = {.function = "here", .file = "a.c"}, there = {.function = "there"};
    uint8_t table[UB_POLICY_CALLS];
    struct ub_policy_file p;

    assert_int_equal(verdict_of("[offload]\nfsync = move\n", "fsync", here), UB_POLICY_ALLOW);
    assert_int_equal(verdict_of("[offload]\nfsync = move\n", "fdatasync", here), UB_POLICY_DENY);
    assert_int_equal(verdict_of("[offload]\nfsync in here = inline\nfsync = move\n", "fsync", here), UB_POLICY_DENY);
    assert_int_equal(verdict_of("[offload]\nfsync in here = inline\nfsync = move\n", "fsync", there), UB_POLICY_ALLOW);
    assert_int_equal(verdict_of("[offload]\nfsync in here = move\n", "fsync", there), UB_POLICY_DENY);
    assert_int_equal(verdict_of("[offload]\nfsync = move\n[except]\nhere = inline\n", "fsync", here), UB_POLICY_DENY);
    assert_int_equal(verdict_of("[offload]\nfsync = move\n[except]\nhere = inline\n", "fsync", there), UB_POLICY_ALLOW);
    assert_int_equal(verdict_of("[offload]\nfsync = move limit=2\n", "fsync", there), UB_POLICY_ALLOW);
    p = good("[offload]\nfsync = move\nread = move limit=3\nwrite in f = move\nsem_wait = inline\n* = inline\n");
    ub_policy_compile(&p, table);
    assert_int_equal(table[UB_CALL_ID_fsync], UB_POLICY_ALLOW);
    assert_int_equal(table[UB_CALL_ID___read_chk], UB_POLICY_WATCH);
    assert_int_equal(table[UB_CALL_ID_write], UB_POLICY_WATCH);
    assert_int_equal(table[UB_CALL_ID_epoll_wait], UB_POLICY_DENY);
    assert_int_equal(table[UB_CALL_IDS], UB_POLICY_WATCH);
    ub_policy_clear(&p);
}

/* Whatever the bytes: told or kept, never more. */
static void test_hostile(void **state)
{
    static const char *const pieces[] = {"[offload]", "[python]", "[yield]", "[except]", "\n",     "\r",
                                         " = ",       "=",        "#",       " ",        "fsync",  "in",
                                         "move",      "inline",   "lane=",   "files",    "limit=", "9",
                                         "thread(",   ")",        "jobs.*",  "[",        "]",      "*",
                                         "?",         ":",        "::",      "\xff",     "5ms",    "process",
                                         ".",         "unit",     "fork",    "\t",       "0x",     "db.c:1"};
    unsigned seed = 7;
    uint32_t kept = 0, refused = 0;

    for (int i = 0; i < 3000; i++) {
        char text[2000] = "";
        struct ub_policy_file p;
        struct told t;
        size_t len = 0;

        for (int k = rand_r(&seed) % 60; k > 0; k--) {
            const char *piece = pieces[rand_r(&seed) % UB_ARRAY_LEN(pieces)];

            memcpy(text + len, piece, strlen(piece));
            len += strlen(piece);
            if (rand_r(&seed) % 300 == 0)
                text[len++] = '\0';
        }
        if (read_bytes(text, len, &p, &t) == 0) {
            assert_int_equal(t.count, 0);
            for (uint32_t n = 0; n < p.count; n++)
                ub_policy_fits_place(&p.rule[n],
                                     &(struct ub_policy_names){.function = "f", .file = "/a/b.py", .python = true});
            kept++;
        } else {
            assert_true(t.count > 0);
            assert_int_equal(p.count, 0);
            refused++;
        }
        ub_policy_clear(&p);
    }
    assert_true(kept > 30 && refused > 300);
}

static void test_too_long(void **state)
{
    char *text = malloc(200000);
    struct ub_policy_file p;
    struct told t;
    size_t len;

    memset(text, 'a', 200000);
    assert_int_equal(read_bytes(text, 200000, &p, &t), -22);
    assert_int_equal(t.count, 1);
    assert_non_null(strstr(t.text, "longer than 1024"));
    len = (size_t)sprintf(text, "[python]\n");
    for (uint32_t i = 0; i <= UB_POLICY_RULES_MAX; i++)
        len += (size_t)sprintf(text + len, "m.f%u = thread\n", i);
    assert_int_equal(read_bytes(text, len, &p, &t), -22);
    assert_non_null(strstr(t.text, "more than 1000 rules"));
    assert_int_equal(read_bytes("a\0b", 3, &p, &t), -22);
    assert_non_null(strstr(t.text, "zero byte"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_kept),
        cmocka_unit_test(test_what_is_wrong),
        cmocka_unit_test(test_every_mistake_is_told),
        cmocka_unit_test(test_files_that_are_none),
        cmocka_unit_test(test_what_fits),
        cmocka_unit_test(test_dotted),
        cmocka_unit_test(test_verdicts),
        cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_too_long),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
