/* One client of the control socket: what its bytes come to, however they are cut. */
#include "ui_check.h"

#include "../../ui/control_peer.h"
#include "../../ui/json_get.h"

static struct ub_control_state state;
static int detached;

static void on_detach(void *self)
{
    assert_ptr_equal(self, &detached);
    detached++;
}

static const struct ub_control_options run = {.mode = "run", .pid = 42},
                                       helper = {.mode = "preload", .pid = 42, .detach = on_detach, .self = &detached};

static int begin(void **test)
{
    *test = calloc(1, sizeof(struct ub_control_peer));
    state = (struct ub_control_state){0};
    detached = 0;
    return ub_control_state_init(&state) || ub_control_peer_init(*test, 7);
}

static int finish(void **test)
{
    ub_control_peer_clear(*test);
    ub_control_state_clear(&state);
    free(*test);
    return 0;
}

static void send_bytes(struct ub_control_peer *k, const struct ub_control_options *options, const char *bytes,
                       size_t len)
{
    const struct ub_control_source source = {options, &state, NULL};

    assert_true(k->request_len + len <= sizeof(k->request));
    memcpy(k->request + k->request_len, bytes, len);
    ub_control_peer_got(k, &source, len);
}

static void send_text(struct ub_control_peer *k, const struct ub_control_options *options, const char *text)
{
    send_bytes(k, options, text, strlen(text));
}

/* Takes one line from the queue as the socket would. NULL: there is none. */
static json_t *receive(struct ub_control_peer *k)
{
    char *end = k->len > k->sent ? memchr(k->queue + k->sent, '\n', k->len - k->sent) : NULL;
    json_t *line;

    if (!end)
        return NULL;
    line = json_loadb(k->queue + k->sent, (size_t)(end - k->queue) - k->sent, 0, NULL);
    assert_true(json_is_object(line));
    k->sent = (size_t)(end + 1 - k->queue);
    return line;
}

static void expect_type(struct ub_control_peer *k, const char *type)
{
    json_t *line = receive(k);

    assert_non_null(line);
    assert_string_equal(ub_json_string(line, "type"), type);
    json_decref(line);
}

static void expect_nothing(struct ub_control_peer *k)
{
    assert_int_equal(k->sent, k->len);
}

static void test_status(void **test)
{
    struct ub_control_peer *k = *test;
    json_t *line = json_loads(HEADER, 0, NULL);

    ub_control_state_line(&state, line);
    json_decref(line);
    line = slow(1, "7f3a91c2", 90, "");
    ub_control_state_line(&state, line);
    json_decref(line);
    send_text(k, &run, "{\"request\":\"status\"}\n");
    line = receive(k);
    assert_string_equal(ub_json_string(line, "type"), "status");
    assert_string_equal(ub_json_string(line, "mode"), "run");
    assert_int_equal(ub_json_u64_or(line, "pid", 0), 42);
    assert_int_equal(ub_json_u64_or(line, "slow", 0), 1);
    assert_int_equal(ub_json_u64_or(line, "worst_ns", 0), 90000000);
    assert_int_equal(json_array_size(json_object_get(line, "sites")), 1);
    json_decref(line);
    expect_nothing(k);
    assert_false(k->closing);
}

/* Every way to cut two requests into three pieces comes to the same two answers. */
static void test_cut_anywhere(void **test)
{
    static const char text[] = "{\"request\":\"status\"}\n{ \"request\" : \"status\", \"more\": [1] }\n";
    const size_t len = sizeof(text) - 1;
    struct ub_control_peer *k = *test;

    for (size_t i = 0; i <= len; i++) {
        for (size_t j = i; j <= len; j++) {
            send_bytes(k, &run, text, i);
            send_bytes(k, &run, text + i, j - i);
            send_bytes(k, &run, text + j, len - j);
            expect_type(k, "status");
            expect_type(k, "status");
            expect_nothing(k);
            assert_int_equal(k->request_len, 0);
            assert_false(k->closing);
        }
    }
}

static void refused(const struct ub_control_options *options, const char *bytes, size_t len)
{
    struct ub_control_peer k;

    assert_int_equal(ub_control_peer_init(&k, 7), 0);
    send_bytes(&k, options, bytes, len);
    expect_type(&k, "error");
    expect_nothing(&k);
    assert_true(k.closing && k.request_len == 0);
    /* What comes behind it is not looked at. */
    send_text(&k, options, "{\"request\":\"status\"}\n");
    expect_nothing(&k);
    ub_control_peer_clear(&k);
}

static void test_nonsense(void **test)
{
    static const char *const lines[] = {"\n",
                                        " \n",
                                        "{}\n",
                                        "[]\n",
                                        "1\n",
                                        "null\n",
                                        "\"status\"\n",
                                        "{\"request\":1}\n",
                                        "{\"request\":null}\n",
                                        "{\"request\":[\"status\"]}\n",
                                        "{\"request\":\"\"}\n",
                                        "{\"request\":\"Status\"}\n",
                                        "{\"request\":\"status\"} x\n",
                                        "{\"request\":\"status\"\n",
                                        "{\"request\":\"stat\\u0000us\"}\n",
                                        "GET / HTTP/1.1\r\n",
                                        "{\"request\":\"status\",\"request\n",
                                        "\xff\xfe{}\n",
                                        "{\"request\":\"\xc3\"}\n"};
    char nested[UB_CONTROL_REQUEST_MAX];

    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++)
        refused(&helper, lines[i], strlen(lines[i]));
    refused(&helper, "{\"request\":\"status\"\0}\n", 22);
    memset(nested, '[', sizeof(nested));
    nested[sizeof(nested) - 1] = '\n';
    refused(&helper, nested, sizeof(nested));
    assert_int_equal(detached, 0);
    (void)test;
}

static void test_too_long(void **test)
{
    struct ub_control_peer *k = *test;
    char text[UB_CONTROL_REQUEST_MAX];

    memset(text, ' ', sizeof(text));
    send_bytes(k, &run, text, sizeof(text) - 1);
    expect_nothing(k);
    assert_false(k->closing);
    send_bytes(k, &run, text, 1);
    expect_type(k, "error");
    assert_true(k->closing && k->request_len == 0);
    /* One byte less is a request like any other. */
    memcpy(text, "{\"request\":\"status\"}", 20);
    text[sizeof(text) - 1] = '\n';
    ub_control_peer_clear(k);
    assert_int_equal(ub_control_peer_init(k, 7), 0);
    send_bytes(k, &run, text, sizeof(text));
    expect_type(k, "status");
    assert_false(k->closing);
}

static void test_detach(void **test)
{
    struct ub_control_peer *k = *test;

    refused(&run, "{\"request\":\"detach\"}\n", 21); /* `run` has nothing to detach */
    send_text(k, &helper, "{\"request\":\"detach\"}\n{\"request\":\"detach\"}\n");
    expect_type(k, "ok");
    expect_nothing(k);
    assert_true(k->closing);
    assert_int_equal(detached, 1);
}

static void tell(struct ub_control_peer *k, json_t *line)
{
    char *text = json_dumps(line, JSON_COMPACT);

    ub_control_state_line(&state, line);
    ub_control_peer_tell(k, &state, line, text);
    free(text);
    json_decref(line);
}

/* Stacks come before the line that refers to them, each once, whether they were there before the client or not. */
static void test_follow(void **test)
{
    struct ub_control_peer *k = *test;
    json_t *line;

    for (int i = 1; i <= 3; i++) {
        line = json_of("{'type':'stack','id':%d,'frames':[]}", i);
        ub_control_state_line(&state, line);
        json_decref(line);
    }
    line = json_of("{'type':'slow','id':1,'duration_ns':5,'samples':[{'stack':1},{'stack':99},{'stack':'1'},{}]}");
    ub_control_state_line(&state, line);
    json_decref(line);
    send_text(k, &run, "{\"request\":\"follow\"}\n{\"request\":\"follow\"}\n");
    expect_type(k, "status");
    expect_type(k, "stack");
    expect_type(k, "status");
    expect_nothing(k);
    assert_true(k->following);
    tell(k, json_of("{'type':'slow','id':2,'duration_ns':5,'samples':[{'stack':1},{'stack':2},{'stack':2}]}"));
    line = receive(k);
    assert_string_equal(ub_json_string(line, "type"), "stack");
    assert_int_equal(ub_json_u64_or(line, "id", 0), 2);
    json_decref(line);
    expect_type(k, "slow");
    expect_nothing(k);
}

/* Who does not read loses lines, is told how many, and never costs more than the bound. */
static void test_does_not_read(void **test)
{
    struct ub_control_peer *k = *test;
    uint64_t told = 0, got = 0, lost = 0;
    json_t *line;

    send_text(k, &run, "{\"request\":\"follow\"}\n");
    for (int i = 0; i < 4000; i++) {
        tell(k, json_of("{'type':'note','level':'info','text':'%01000d'}", i));
        told++;
        assert_true(k->len <= UB_CONTROL_QUEUE_MAX && k->size <= UB_CONTROL_QUEUE_MAX);
    }
    assert_true(k->dropped > 1000);
    expect_type(k, "status");
    while ((line = receive(k)) != NULL) {
        got++;
        json_decref(line);
    }
    tell(k, json_of("{'type':'note','level':'info','text':'read again'}"));
    line = receive(k);
    assert_string_equal(ub_json_string(line, "type"), "dropped");
    lost = ub_json_u64_or(line, "lines", 0);
    json_decref(line);
    assert_int_equal(got + lost, told);
    expect_type(k, "note");
    expect_nothing(k);
    tell(k, json_of("{'type':'note','level':'info','text':'again'}")); /* it is told once */
    expect_type(k, "note");
    expect_nothing(k);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, finish)
    const struct CMUnitTest tests[] = {
        TEST(test_status), TEST(test_cut_anywhere), TEST(test_nonsense),      TEST(test_too_long),
        TEST(test_detach), TEST(test_follow),       TEST(test_does_not_read),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
