/* Demangling (libiberty: C++, Rust) and the table of names that live as long as the tracer. */
#include "symbols_impl.h"

#include <demangle.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#define RAW_MAX     65536u /* no linker name is longer; what is, is cut */
#define DISPLAY_MAX 4096u  /* demangled names of heavy templates reach hundreds of kilobytes */

struct interned {
    struct interned *next;
    uint32_t hash;
    bool plain; /* not a linker name */
    struct ub_name name;
    size_t raw_len;
    char *raw;
};

/* Under the lock of symbols.c. */
static struct interned **table;
static size_t bucket_count, name_count;

/* ---- demangling ---- */

struct output {
    jmp_buf full;
    size_t len;
    char text[DISPLAY_MAX];
};

/*
 * A hundred bytes of mangled name can stand for gigabytes. libiberty's printers
 * keep their state on the stack and cannot be told to stop: so jump out of them.
 */
static void collect(const char *piece, size_t len, void *data)
{
    struct output *out = data;
    size_t room = sizeof(out->text) - 4 - out->len;

    if (len > room) {
        memcpy(out->text + out->len, piece, room);
        out->len += room;
        longjmp(out->full, 1);
    }
    memcpy(out->text + out->len, piece, len);
    out->len += len;
}

static bool run_demangler(const char *raw, struct output *out,
                          int (*demangler)(const char *, int, demangle_callbackref, void *))
{
    out->len = 0;
    if (setjmp(out->full) == 0) {
        if (!demangler(raw, DMGL_PARAMS | DMGL_ANSI, collect, out) || out->len == 0)
            return false;
    } else {
        memcpy(out->text + out->len, "...", 3);
        out->len += 3;
    }
    out->text[out->len] = '\0';
    return true;
}

/* Rust first: its older scheme is C++'s with a hash at the end. */
static enum ub_language demangle(const char *raw, struct output *out)
{
    if (run_demangler(raw, out, rust_demangle_callback))
        return UB_LANGUAGE_RUST;
    if (strncmp(raw, "_Z", 2) == 0 && run_demangler(raw, out, cplus_demangle_v3_callback))
        return UB_LANGUAGE_CXX;
    return UB_LANGUAGE_UNKNOWN;
}

/* ---- suffixes ---- */

/* Parts and copies that GCC and LLVM make of a function: the same function to a reader, and in every build. */
static const char *const clone_suffixes[] = {
    ".cold", ".part.", ".isra.", ".constprop.", ".lto_priv.", ".localalias", ".llvm.", ".__uniq.",
};

static size_t len_without_clones(const char *raw, size_t len)
{
    size_t end = len;

    for (size_t i = 0; i < UB_ARRAY_LEN(clone_suffixes); i++) {
        const char *at = memmem(raw, end, clone_suffixes[i], strlen(clone_suffixes[i]));

        if (at && at > raw)
            end = (size_t)(at - raw);
    }
    return end;
}

/* memcpy@@GLIBC_2.14 is memcpy. */
static size_t len_without_version(const char *raw, size_t len)
{
    const char *at = memchr(raw, '@', len);

    return at && at > raw ? (size_t)(at - raw) : len;
}

/* Fills `name`; the display string is allocated. */
static bool make_name(const char *raw, size_t len, struct ub_name *name)
{
    size_t plt = len > 4 && memcmp(raw + len - 4, "@plt", 4) == 0 ? 4 : 0;
    char *clean = strndup(raw, len_without_clones(raw, len_without_version(raw, len - plt)));
    struct output out;
    char *display;
    int r;

    if (!clean)
        return false;
    name->language = demangle(clean, &out);
    name->mangled = name->language != UB_LANGUAGE_UNKNOWN;
    r = asprintf(&display, "%s%s", name->mangled ? out.text : clean, plt ? "@plt" : "");
    free(clean);
    if (r < 0)
        return false;
    name->display = display;
    return true;
}

static bool make_plain(const char *text, size_t len, struct ub_name *name)
{
    *name = (struct ub_name){.display = strndup(text, len)};
    return name->display != NULL;
}

/* ---- interning ---- */

static uint32_t hash_of(const char *raw, size_t len)
{
    uint32_t hash = 2166136261u;

    for (size_t i = 0; i < len; i++)
        hash = (hash ^ (uint8_t)raw[i]) * 16777619u;
    return hash;
}

static void grow(void)
{
    size_t larger_count = bucket_count ? bucket_count * 4 : 1024;
    struct interned **larger = calloc(larger_count, sizeof(struct interned *));

    if (!larger)
        return; /* longer chains, nothing worse */
    for (size_t i = 0; i < bucket_count; i++) {
        for (struct interned *n = table[i], *next; n; n = next) {
            struct interned **head = &larger[n->hash & (larger_count - 1)];

            next = n->next;
            n->next = *head;
            *head = n;
        }
    }
    free(table);
    table = larger;
    bucket_count = larger_count;
}

static struct interned *add_name(const char *raw, size_t len, bool plain, uint32_t hash)
{
    struct interned *n;

    if (name_count >= bucket_count)
        grow();
    n = bucket_count ? calloc(1, sizeof(*n)) : NULL;
    if (!n)
        return NULL;
    n->raw = malloc(len);
    if (!n->raw || !(plain ? make_plain(raw, len, &n->name) : make_name(raw, len, &n->name))) {
        free(n->raw);
        free(n);
        return NULL;
    }
    memcpy(n->raw, raw, len);
    n->raw_len = len;
    n->plain = plain;
    n->hash = hash;
    n->next = table[hash & (bucket_count - 1)];
    table[hash & (bucket_count - 1)] = n;
    name_count++;
    return n;
}

static const struct ub_name *intern(const char *raw, size_t max, bool plain)
{
    size_t len = raw ? strnlen(raw, max < RAW_MAX ? max : RAW_MAX) : 0;
    struct interned *n = NULL;
    uint32_t hash;

    if (len == 0)
        return NULL;
    hash = hash_of(raw, len);
    if (bucket_count)
        n = table[hash & (bucket_count - 1)];
    while (n && (n->hash != hash || n->plain != plain || n->raw_len != len || memcmp(n->raw, raw, len) != 0))
        n = n->next;
    if (!n)
        n = add_name(raw, len, plain, hash);
    return n ? &n->name : NULL;
}

const struct ub_name *ub_names_get(const char *raw, size_t max)
{
    return intern(raw, max, false);
}

const char *ub_names_keep(const char *text, size_t max)
{
    const struct ub_name *name = intern(text, max, true);

    return name ? name->display : NULL;
}
