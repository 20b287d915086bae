/*
 * The scanner: one pass, no allocation, no recursion beyond DEPTH_MAX. Every
 * function returns where it stopped, or NULL for "not for us": numbers that are
 * no plain integers, escapes by number, a field twice, deep nesting.
 *
 * tests/unit/test_scan.c and tests/fuzz compare it with the JSON library.
 *
 * Longer than most files here: one grammar, whose functions call each other.
 */
#include "recording_scan.h"
#include "utf8.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define DEPTH_MAX 32

struct scan {
    const char *end;
    struct ub_stall *out;
    struct ub_stats_line *stats;
    uint32_t seen; /* bit for each enum field */
};

enum field {
    FIELD_NONE,
    FIELD_TYPE,
    FIELD_ID,
    FIELD_PID,
    FIELD_TID,
    FIELD_START,
    FIELD_DURATION,
    FIELD_REPEATS,
    FIELD_REPEATS_NS,
    FIELD_MAX,
    FIELD_ONGOING,
    FIELD_STARTUP,
    FIELD_UNCLEAR,
    FIELD_PARENT,
    FIELD_SITE,
    FIELD_LOOP,
    FIELD_THREAD,
    FIELD_CAUSE,
    FIELD_SAMPLES,
    FIELD_STACK,
    FIELD_PROOF,
    FIELD_COMPLETE,
    FIELD_CALLBACKS,
    FIELD_TURNS,
    FIELD_BUSY,
    FIELD_TOTAL,
    FIELD_AT,
    FIELD_OBSERVED,
    FIELD_HISTOGRAM,
};

static const char *skip_space(const struct scan *s, const char *p)
{
    while (p < s->end && (*p == ' ' || *p == '\t' || *p == '\r'))
        p++;
    return p;
}

/* To the first byte of a string that is not plain: a quote, a backslash, a control character, or beyond ASCII. */
static const char *skip_plain(const char *p, const char *end)
{
#ifdef __SSE2__
    while (p < end) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)p);
        /* Signed: control characters and those beyond ASCII are both below a space. */
        __m128i low = _mm_cmplt_epi8(bytes, _mm_set1_epi8(' '));
        __m128i marks =
            _mm_or_si128(_mm_cmpeq_epi8(bytes, _mm_set1_epi8('"')), _mm_cmpeq_epi8(bytes, _mm_set1_epi8('\\')));
        int mask = _mm_movemask_epi8(_mm_or_si128(low, marks));

        if (mask)
            return p + __builtin_ctz((unsigned)mask);
        p += 16;
    }
#else
    while (p < end && (signed char)*p >= ' ' && *p != '"' && *p != '\\')
        p++;
#endif
    return p;
}

/* `p` stands behind the opening quote. *ret: what is between the quotes; its text is NULL when that has escapes. */
static const char *scan_string(const struct scan *s, const char *p, struct ub_slice *ret)
{
    const char *begin = p;
    bool escaped = false;
    uint32_t c;
    size_t n;

    for (;;) {
        p = skip_plain(p, s->end);
        if (p >= s->end)
            return NULL;
        if (*p == '"')
            break;
        if (*p == '\\') {
            if (p + 1 >= s->end || p[1] == 0 || !strchr("\"\\/bfnrt", p[1]))
                return NULL;
            escaped = true;
            p += 2;
            continue;
        }
        n = ub_utf8_decode((const unsigned char *)p, (size_t)(s->end - p), &c);
        if (n < 2)
            return NULL;
        p += n;
    }
    *ret = (struct ub_slice){escaped ? NULL : begin, (size_t)(p - begin)};
    return p + 1;
}

/* Digits of a plain integer: no sign, no leading zero, none that might not fit. */
static const char *scan_integer(const struct scan *s, const char *p, uint64_t *ret)
{
    const char *begin = p;
    uint64_t value = 0;

    for (; p < s->end && *p >= '0' && *p <= '9'; p++)
        value = value * 10 + (uint64_t)(*p - '0');
    if (p == begin || p - begin > 18 || (*begin == '0' && p - begin > 1))
        return NULL;
    if (p < s->end && (*p == '.' || *p == 'e' || *p == 'E'))
        return NULL;
    *ret = value;
    return p;
}

static const char *skip_word(const struct scan *s, const char *p, const char *word)
{
    size_t len = strlen(word);

    return (size_t)(s->end - p) >= len && memcmp(p, word, len) == 0 ? p + len : NULL;
}

static const char *skip_value(const struct scan *s, const char *p, int depth);

/* The members of an object or array whose content is not needed. `p` stands behind the opening bracket. */
static const char *skip_members(const struct scan *s, const char *p, char close, int depth)
{
    struct ub_slice key;

    if (depth == DEPTH_MAX)
        return NULL;
    p = skip_space(s, p);
    if (p < s->end && *p == close)
        return p + 1;
    for (;;) {
        p = skip_space(s, p);
        if (close == '}') {
            if (p >= s->end || *p != '"')
                return NULL;
            p = scan_string(s, p + 1, &key);
            if (!p)
                return NULL;
            p = skip_space(s, p);
            if (p >= s->end || *p++ != ':')
                return NULL;
        }
        p = skip_value(s, p, depth + 1);
        if (!p)
            return NULL;
        p = skip_space(s, p);
        if (p >= s->end)
            return NULL;
        if (*p == close)
            return p + 1;
        if (*p++ != ',')
            return NULL;
    }
}

static const char *skip_value(const struct scan *s, const char *p, int depth)
{
    struct ub_slice text;
    uint64_t number;

    p = skip_space(s, p);
    if (p >= s->end)
        return NULL;
    switch (*p) {
    case '"':
        return scan_string(s, p + 1, &text);
    case '{':
        return skip_members(s, p + 1, '}', depth);
    case '[':
        return skip_members(s, p + 1, ']', depth);
    case 't':
        return skip_word(s, p, "true");
    case 'f':
        return skip_word(s, p, "false");
    case 'n':
        return skip_word(s, p, "null");
    default:
        return scan_integer(s, p, &number);
    }
}

/* ---- the fields that count --------------------------------------------- */

#define KEY(name, value)                                                                                               \
    do {                                                                                                               \
        if (len == sizeof(name) - 1 && memcmp(key, name, sizeof(name) - 1) == 0)                                       \
            return value;                                                                                              \
    } while (0)

static enum field find_field(const char *key, size_t len)
{
    switch (*key) {
    case 'c':
        KEY("cause", FIELD_CAUSE);
        break;
    case 'd':
        KEY("duration_ns", FIELD_DURATION);
        break;
    case 'i':
        KEY("id", FIELD_ID);
        break;
    case 'l':
        KEY("loop", FIELD_LOOP);
        break;
    case 'm':
        KEY("max_ns", FIELD_MAX);
        break;
    case 'o':
        KEY("ongoing", FIELD_ONGOING);
        break;
    case 'p':
        KEY("pid", FIELD_PID);
        KEY("parent", FIELD_PARENT);
        break;
    case 'r':
        KEY("repeats", FIELD_REPEATS);
        KEY("repeats_ns", FIELD_REPEATS_NS);
        break;
    case 's':
        KEY("start_ns", FIELD_START);
        KEY("startup", FIELD_STARTUP);
        KEY("site", FIELD_SITE);
        KEY("samples", FIELD_SAMPLES);
        break;
    case 't':
        KEY("tid", FIELD_TID);
        KEY("type", FIELD_TYPE);
        KEY("thread", FIELD_THREAD);
        break;
    case 'u':
        KEY("unclear", FIELD_UNCLEAR);
        break;
    default:
        break;
    }
    return FIELD_NONE;
}

static enum field find_sample_field(const char *key, size_t len)
{
    KEY("stack", FIELD_STACK);
    KEY("proof", FIELD_PROOF);
    KEY("complete", FIELD_COMPLETE);
    return FIELD_NONE;
}

/* Text that is needed must be as it stands. */
static const char *scan_text(const struct scan *s, const char *p, struct ub_slice *ret)
{
    if (*p != '"')
        return NULL;
    p = scan_string(s, p + 1, ret);
    return p && ret->text ? p : NULL;
}

static const char *scan_flag(const struct scan *s, const char *p, bool *ret)
{
    *ret = *p == 't';
    return skip_word(s, p, *ret ? "true" : "false");
}

static const char *scan_number(const struct scan *s, const char *p, uint64_t *ret, bool *has)
{
    *has = true;
    return scan_integer(s, p, ret);
}

/* Reads the member that begins at `p`: the value is at the returned place, its key's slice in *ret. */
static const char *scan_key(const struct scan *s, const char *p, struct ub_slice *ret)
{
    p = skip_space(s, p);
    if (p >= s->end || *p != '"')
        return NULL;
    p = scan_string(s, p + 1, ret);
    if (!p || !ret->text || ret->len == 0) /* an escaped name could be any */
        return NULL;
    p = skip_space(s, p);
    if (p >= s->end || *p++ != ':')
        return NULL;
    p = skip_space(s, p);
    return p < s->end ? p : NULL;
}

/* `p` stands behind a value. At `close` *ret_more is false. */
static const char *scan_comma(const struct scan *s, const char *p, char close, bool *ret_more)
{
    p = skip_space(s, p);
    if (p >= s->end)
        return NULL;
    *ret_more = *p == ',';
    return *ret_more || *p == close ? p + 1 : NULL;
}

static const char *scan_sample(const struct scan *s, const char *p, struct ub_stall_sample *sample)
{
    struct ub_slice key, text;
    uint32_t seen = 0;
    uint64_t number;
    enum field field;
    bool flag, more = true;

    *sample = (struct ub_stall_sample){0};
    while (more) {
        p = scan_key(s, p, &key);
        if (!p)
            return NULL;
        field = find_sample_field(key.text, key.len);
        if (field != FIELD_NONE && seen & 1u << field)
            return NULL;
        seen |= 1u << field;
        switch (field) {
        case FIELD_STACK:
            p = scan_number(s, p, &number, &sample->has_stack);
            sample->stack = p ? (int64_t)number : 0;
            break;
        case FIELD_PROOF:
            p = scan_text(s, p, &text);
            sample->unproven = p && ub_slice_is(text, "unproven");
            break;
        case FIELD_COMPLETE:
            p = scan_flag(s, p, &flag);
            sample->incomplete = !flag;
            break;
        default:
            p = skip_value(s, p, 3);
        }
        if (p)
            p = scan_comma(s, p, '}', &more);
        if (!p)
            return NULL;
    }
    return p;
}

static const char *scan_samples(const struct scan *s, const char *p)
{
    bool more = true;

    if (*p != '[')
        return NULL;
    p = skip_space(s, p + 1);
    if (p < s->end && *p == ']')
        return p + 1;
    while (more) {
        p = skip_space(s, p);
        if (p >= s->end || *p != '{' || s->out->samples == UB_STALL_SAMPLES_MAX)
            return NULL;
        p = scan_sample(s, p + 1, &s->out->sample[s->out->samples++]);
        if (p)
            p = scan_comma(s, p, ']', &more);
        if (!p)
            return NULL;
    }
    return p;
}

static const char *scan_type(const struct scan *s, const char *p, const char *wanted)
{
    struct ub_slice type;

    p = scan_text(s, p, &type);
    return p && ub_slice_is(type, wanted) ? p : NULL;
}

static const char *scan_field(struct scan *s, const char *p, enum field field)
{
    struct ub_stall *out = s->out;
    bool has;

    if (field == FIELD_NONE)
        return skip_value(s, p, 1);
    if (s->seen & 1u << field)
        return NULL;
    s->seen |= 1u << field;
    switch (field) {
    case FIELD_TYPE:
        return scan_type(s, p, "slow");
    case FIELD_ID:
        return scan_number(s, p, &out->id, &out->has_id);
    case FIELD_PID:
        return scan_number(s, p, &out->pid, &out->has_pid);
    case FIELD_TID:
        return scan_number(s, p, &out->tid, &has);
    case FIELD_START:
        return scan_number(s, p, &out->start_ns, &has);
    case FIELD_DURATION:
        return scan_number(s, p, &out->duration_ns, &has);
    case FIELD_REPEATS:
        return scan_number(s, p, &out->repeats, &has);
    case FIELD_REPEATS_NS:
        return scan_number(s, p, &out->repeats_ns, &has);
    case FIELD_MAX:
        return scan_number(s, p, &out->repeats_max_ns, &has);
    case FIELD_ONGOING:
        return scan_flag(s, p, &out->ongoing);
    case FIELD_STARTUP:
        return scan_flag(s, p, &out->startup);
    case FIELD_UNCLEAR:
        return scan_flag(s, p, &out->unclear);
    case FIELD_PARENT:
        out->nested = true;
        return skip_value(s, p, 1);
    case FIELD_SITE:
        return scan_text(s, p, &out->site);
    case FIELD_LOOP:
        return scan_text(s, p, &out->loop);
    case FIELD_THREAD:
        return scan_text(s, p, &out->thread);
    case FIELD_CAUSE:
        return scan_text(s, p, &out->cause);
    case FIELD_SAMPLES:
        return scan_samples(s, p);
    default:
        return NULL;
    }
}

/* All members of a line; `take` reads the value of one, or passes over it. */
static bool scan_line(struct scan *s, const char *line, size_t len,
                      const char *(*take)(struct scan *s, const char *p, struct ub_slice key))
{
    const char *p = line;
    struct ub_slice key;
    bool more = true;

    s->end = line + len;
    p = skip_space(s, p);
    if (p >= s->end || *p != '{')
        return false;
    for (p++; more;) {
        p = scan_key(s, p, &key);
        if (p)
            p = take(s, p, key);
        if (p)
            p = scan_comma(s, p, '}', &more);
        if (!p)
            return false;
    }
    return skip_space(s, p) == s->end;
}

static const char *take_slow(struct scan *s, const char *p, struct ub_slice key)
{
    return scan_field(s, p, find_field(key.text, key.len));
}

bool ub_scan_slow(const char *line, size_t len, struct ub_stall *ret)
{
    struct scan s = {.out = ret};

    memset(ret, 0, offsetof(struct ub_stall, sample));
    return scan_line(&s, line, len, take_slow) && s.seen & 1u << FIELD_TYPE && s.seen & 1u << FIELD_DURATION;
}

/* ---- stats --------------------------------------------------------------- */

static enum field find_stats_field(const char *key, size_t len)
{
    KEY("type", FIELD_TYPE);
    KEY("pid", FIELD_PID);
    KEY("tid", FIELD_TID);
    KEY("loop", FIELD_LOOP);
    KEY("thread", FIELD_THREAD);
    KEY("callbacks", FIELD_CALLBACKS);
    KEY("turns", FIELD_TURNS);
    KEY("total_ns", FIELD_TOTAL);
    KEY("busy_ns", FIELD_BUSY);
    KEY("max_ns", FIELD_MAX);
    KEY("at_ns", FIELD_AT);
    KEY("observed_ns", FIELD_OBSERVED);
    KEY("histogram", FIELD_HISTOGRAM);
    return FIELD_NONE;
}

static const char *take_stats(struct scan *s, const char *p, struct ub_slice key)
{
    enum field field = find_stats_field(key.text, key.len);
    struct ub_stats_line *out = s->stats;
    uint64_t number;
    bool has;

    if (field == FIELD_NONE)
        return skip_value(s, p, 1);
    if (s->seen & 1u << field)
        return NULL;
    s->seen |= 1u << field;
    switch (field) {
    case FIELD_TYPE:
        return scan_type(s, p, "stats");
    case FIELD_PID:
        return scan_number(s, p, &out->pid, &has);
    case FIELD_TID:
        return scan_number(s, p, &out->tid, &has);
    case FIELD_LOOP:
        return scan_text(s, p, &out->loop);
    case FIELD_CALLBACKS:
        return scan_number(s, p, &out->callbacks, &has);
    case FIELD_MAX:
        return scan_number(s, p, &out->max_ns, &has);
    case FIELD_AT:
        return scan_number(s, p, &out->at_ns, &has);
    case FIELD_HISTOGRAM:
        return skip_value(s, p, 1);
    case FIELD_THREAD:
        return NULL; /* a name is news: the whole line counts */
    default:
        return scan_number(s, p, &number, &has);
    }
}

bool ub_scan_stats(const char *line, size_t len, struct ub_stats_line *ret)
{
    const uint32_t needed = 1u << FIELD_TYPE | 1u << FIELD_PID | 1u << FIELD_TID | 1u << FIELD_LOOP;
    struct scan s = {.stats = ret};

    *ret = (struct ub_stats_line){.text = {line, len}};
    if (!scan_line(&s, line, len, take_stats) || (s.seen & needed) != needed)
        return false;
    ret->shape = s.seen;
    return true;
}
