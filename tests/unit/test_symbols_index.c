/* The pieces below symbol resolution: range tables, names, and the index of an ELF file's symbols. */
#include "unit.h"

#include "../../tracer/symbols_impl.h"
#include "elf_builder.h"

#include <errno.h>

/* ---- ranges ---- */

static void test_ranges_nested(void **state)
{
    struct ub_ranges r = {0};

    assert_int_equal(ub_ranges_add(&r, 100, 200, 0), 0);
    assert_int_equal(ub_ranges_add(&r, 120, 160, 1), 0);
    assert_int_equal(ub_ranges_add(&r, 130, 140, 2), 0);
    assert_int_equal(ub_ranges_add(&r, 300, 300, 3), 0); /* empty */
    assert_int_equal(ub_ranges_seal(&r), 0);
    assert_int_equal(ub_ranges_find(&r, 99), UB_RANGES_NONE);
    assert_int_equal(ub_ranges_find(&r, 100), 0);
    assert_int_equal(ub_ranges_find(&r, 119), 0);
    assert_int_equal(ub_ranges_find(&r, 120), 1);
    assert_int_equal(ub_ranges_find(&r, 130), 2);
    assert_int_equal(ub_ranges_find(&r, 140), 1);
    assert_int_equal(ub_ranges_find(&r, 160), 0);
    assert_int_equal(ub_ranges_find(&r, 199), 0);
    assert_int_equal(ub_ranges_find(&r, 200), UB_RANGES_NONE);
    assert_int_equal(ub_ranges_find(&r, 300), UB_RANGES_NONE);
    ub_ranges_free(&r);
}

/* Against an array that is painted over in the order of the ids. */
static void test_ranges_random(void **state)
{
    enum { SPACE = 500 };

    srandom(7);
    for (int round = 0; round < 200; round++) {
        uint32_t painted[SPACE];
        struct ub_ranges r = {0};
        uint32_t count = (uint32_t)(random() % 40);

        memset(painted, 0xff, sizeof(painted));
        for (uint32_t id = 0; id < count; id++) {
            uint64_t start = (uint64_t)(random() % SPACE), end = start + (uint64_t)(random() % 60);

            if (end > SPACE)
                end = SPACE;
            assert_int_equal(ub_ranges_add(&r, start, end, id), 0);
            for (uint64_t at = start; at < end; at++)
                painted[at] = id;
        }
        assert_int_equal(ub_ranges_seal(&r), 0);
        for (uint64_t at = 0; at < SPACE; at++)
            assert_int_equal(ub_ranges_find(&r, at), painted[at]);
        ub_ranges_free(&r);
    }
}

static void test_ranges_extremes(void **state)
{
    struct ub_ranges r = {0};

    assert_int_equal(ub_ranges_seal(&r), 0);
    assert_int_equal(ub_ranges_find(&r, 0), UB_RANGES_NONE);
    assert_int_equal(ub_ranges_add(&r, 0, UINT64_MAX, 0), 0);
    assert_int_equal(ub_ranges_add(&r, UINT64_MAX - 1, UINT64_MAX, 1), 0);
    assert_int_equal(ub_ranges_seal(&r), 0);
    assert_int_equal(ub_ranges_find(&r, 0), 0);
    assert_int_equal(ub_ranges_find(&r, UINT64_MAX - 1), 1);
    assert_int_equal(ub_ranges_find(&r, UINT64_MAX), UB_RANGES_NONE);
    ub_ranges_free(&r);
}

/* ---- names ---- */

static void check_name(const char *raw, const char *display, enum ub_language language)
{
    const struct ub_name *name = ub_names_get(raw, SIZE_MAX);

    assert_non_null(name);
    assert_string_equal(name->display, display);
    assert_int_equal(name->language, language);
    assert_int_equal(name->mangled, language != UB_LANGUAGE_UNKNOWN);
    assert_ptr_equal(ub_names_get(raw, SIZE_MAX), name);
}

static void test_names(void **state)
{
    check_name("main", "main", UB_LANGUAGE_UNKNOWN);
    check_name("_ZN3foo3barEi", "foo::bar(int)", UB_LANGUAGE_CXX);
    check_name("_ZNSt6vectorIiSaIiEE9push_backERKi", "std::vector<int, std::allocator<int> >::push_back(int const&)",
               UB_LANGUAGE_CXX);
    check_name("_ZN4core3fmt9Formatter3pad17h0123456789abcdefE", "core::fmt::Formatter::pad", UB_LANGUAGE_RUST);
    check_name("_RNvCskwGfYPst2Cb_3foo16example_function", "foo::example_function", UB_LANGUAGE_RUST);
    check_name("_Znot_a_mangled_name", "_Znot_a_mangled_name", UB_LANGUAGE_UNKNOWN);
    check_name("_", "_", UB_LANGUAGE_UNKNOWN);
    assert_null(ub_names_get("", SIZE_MAX));
    assert_null(ub_names_get(NULL, SIZE_MAX));
    assert_string_equal(ub_names_get("cut here", 3)->display, "cut");
    assert_string_equal(ub_names_keep("_ZN3foo3barEi", SIZE_MAX), "_ZN3foo3barEi");
}

/* Copies and parts of a function bear its name; versions are no part of a name; a stub is not the function. */
static void test_name_suffixes(void **state)
{
    check_name("compute.constprop.0", "compute", UB_LANGUAGE_UNKNOWN);
    check_name("compute.part.0.cold", "compute", UB_LANGUAGE_UNKNOWN);
    check_name("compute.isra.3", "compute", UB_LANGUAGE_UNKNOWN);
    check_name("_ZN3foo3barEi.cold", "foo::bar(int)", UB_LANGUAGE_CXX);
    check_name("main._omp_fn.0", "main._omp_fn.0", UB_LANGUAGE_UNKNOWN);
    check_name(".cold", ".cold", UB_LANGUAGE_UNKNOWN);
    check_name("memcpy@@GLIBC_2.14", "memcpy", UB_LANGUAGE_UNKNOWN);
    check_name("write@plt", "write@plt", UB_LANGUAGE_UNKNOWN);
    check_name("_ZN3foo3barEi@plt", "foo::bar(int)@plt", UB_LANGUAGE_CXX);
}

/* f(A<int, int>, A<A<int, int>, A<int, int>>, ...): each argument is twice the one before, the last 2^34 names long. */
static void test_name_bomb(void **state)
{
    static const char digits[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    char raw[1024] = "_Z1f1AIiiE";
    const struct ub_name *name;

    for (int i = 0; i < 34; i++)
        sprintf(raw + strlen(raw), "S_IS%c_S%c_E", digits[i], digits[i]);
    name = ub_names_get(raw, SIZE_MAX);
    assert_non_null(name);
    assert_true(strlen(name->display) < 4096);
    assert_memory_equal(name->display, "f(A<int, int>", 13);
    assert_string_equal(name->display + strlen(name->display) - 3, "...");
}

/* ---- the index of a built file ---- */

/* .text is [0x1000, 0x2000). */
static struct ub_index build_index(uint32_t table, const struct built_symbol *symbol, size_t count)
{
    struct built_elf *built = calloc(1, sizeof(*built));
    static unsigned number;
    struct ub_image none = {0};
    struct ub_index index = {0};
    struct ub_elf *elf;
    char name[32];

    *built = (struct built_elf){
        .type = ET_DYN, .text = 0x1000, .data = 0x3000, .table = table, .symbol = symbol, .symbol_count = count};
    build_elf(built);
    snprintf(name, sizeof(name), "index-%u", number++);
    write_file(in_dir(name), built->bytes, built->size);
    assert_int_equal(ub_elf_open_file(in_dir(name), &elf), 0);
    assert_int_equal(ub_index_build(elf, &none, &none, &index), 0);
    free(built);
    return index;
}

static void free_index(struct ub_index *index)
{
    free(index->entry);
    ub_ranges_free(&index->ranges);
}

/* `expected` NULL: nothing is known. A question mark at its end: the nearest. */
static void check_at(const struct ub_index *index, uint64_t vaddr, const char *expected)
{
    bool nearest = false;
    struct ub_entry *entry = ub_index_find(index, vaddr, &nearest);
    char found[256];

    if (!expected) {
        assert_null(entry);
        return;
    }
    assert_non_null(entry);
    snprintf(found, sizeof(found), "%.*s%s", (int)entry->raw_max, entry->raw, nearest ? "?" : "");
    assert_string_equal(found, expected);
}

static void test_index_sizes(void **state)
{
    static const struct built_symbol symbols[] = {
        {"second", 0x1100, 0x40, STT_FUNC, STB_GLOBAL},        {"first", 0x1010, 0x20, STT_FUNC, STB_GLOBAL},
        {"label_inside", 0x1110, 0, STT_NOTYPE, STB_LOCAL},    {"asm_start", 0x1200, 0, STT_NOTYPE, STB_GLOBAL},
        {"asm_next", 0x1300, 0, STT_FUNC, STB_GLOBAL},         {"outer", 0x1400, 0x100, STT_FUNC, STB_GLOBAL},
        {"inner", 0x1440, 0x10, STT_FUNC, STB_LOCAL},          {"huge", 0x1800, UINT64_MAX, STT_FUNC, STB_GLOBAL},
        {"resolver", 0x1600, 0x10, STT_GNU_IFUNC, STB_GLOBAL},
    };
    struct ub_index index = build_index(SHT_SYMTAB, symbols, UB_ARRAY_LEN(symbols));

    check_at(&index, 0x1000, NULL);
    check_at(&index, 0x1010, "first");
    check_at(&index, 0x102f, "first");
    check_at(&index, 0x1030, "first?");
    check_at(&index, 0x1120, "second");
    check_at(&index, 0x1140, "second?");
    check_at(&index, 0x1250, "asm_start");
    check_at(&index, 0x13ff, "asm_next");
    check_at(&index, 0x143f, "outer");
    check_at(&index, 0x1445, "inner");
    check_at(&index, 0x1450, "outer");
    check_at(&index, 0x1608, "resolver");
    check_at(&index, 0x1fff, "huge");
    check_at(&index, 0x2000, NULL);
    free_index(&index);
}

/* With exported symbols only, what follows one of them may be any function. */
static void test_index_stripped(void **state)
{
    static const struct built_symbol symbols[] = {
        {"exported", 0x1100, 0x40, STT_FUNC, STB_GLOBAL},
        {"unsized", 0x1200, 0, STT_FUNC, STB_GLOBAL},
    };
    struct ub_index index = build_index(SHT_DYNSYM, symbols, UB_ARRAY_LEN(symbols));

    check_at(&index, 0x10ff, NULL);
    check_at(&index, 0x113f, "exported");
    check_at(&index, 0x1140, "exported?");
    check_at(&index, 0x11ff, "exported?");
    check_at(&index, 0x1200, "unsized");
    check_at(&index, 0x1201, "unsized?");
    free_index(&index);
}

static void test_index_aliases(void **state)
{
    static const struct built_symbol symbols[] = {
        {"__wr", 0x1000, 0x40, STT_FUNC, STB_GLOBAL},     {"__GI___libc_write", 0x1000, 0x40, STT_FUNC, STB_LOCAL},
        {"write", 0x1000, 0x40, STT_FUNC, STB_WEAK},      {"open64", 0x1100, 0x40, STT_FUNC, STB_WEAK},
        {"open", 0x1100, 0x40, STT_FUNC, STB_WEAK},       {"label", 0x1200, 0, STT_NOTYPE, STB_GLOBAL},
        {"_function", 0x1200, 0x10, STT_FUNC, STB_LOCAL}, {"bbb", 0x1300, 0x10, STT_FUNC, STB_GLOBAL},
        {"aaa", 0x1300, 0x20, STT_FUNC, STB_GLOBAL},      {"zzz", 0x1400, 0x10, STT_FUNC, STB_GLOBAL},
        {"zz", 0x1400, 0x10, STT_FUNC, STB_LOCAL},
    };
    struct ub_index index = build_index(SHT_SYMTAB, symbols, UB_ARRAY_LEN(symbols));

    check_at(&index, 0x1010, "write");
    check_at(&index, 0x1110, "open");
    check_at(&index, 0x1208, "_function");
    check_at(&index, 0x1318, "aaa"); /* as large as the largest of them */
    check_at(&index, 0x1408, "zzz");
    free_index(&index);
}

static void test_index_ignores(void **state)
{
    static const struct built_symbol symbols[] = {
        {"object", 0x1000, 0x100, STT_OBJECT, STB_GLOBAL}, {"outside", 0x3000, 0x100, STT_FUNC, STB_GLOBAL},
        {"$x", 0x1000, 0, STT_NOTYPE, STB_LOCAL},          {"tls", 0x1000, 0x100, STT_TLS, STB_GLOBAL},
        {"", 0x1000, 0x100, STT_FUNC, STB_GLOBAL},
    };
    struct ub_index index = build_index(SHT_SYMTAB, symbols, UB_ARRAY_LEN(symbols));

    assert_int_equal(index.count, 0);
    check_at(&index, 0x1010, NULL);
    free_index(&index);
    index = build_index(0, NULL, 0);
    check_at(&index, 0x1010, NULL);
    free_index(&index);
}

static void test_lookup(void **state)
{
    static const struct built_symbol symbols[] = {
        {"twin", 0x1000, 0x10, STT_FUNC, STB_LOCAL},
        {"twin", 0x1100, 0x20, STT_FUNC, STB_GLOBAL},
        {"versioned@@V_1", 0x1200, 0x30, STT_FUNC, STB_GLOBAL},
    };
    struct built_elf *built = calloc(1, sizeof(*built));
    uint64_t vaddr = 0, size = 0;
    struct ub_elf *elf;

    *built = (struct built_elf){
        .type = ET_DYN, .text = 0x1000, .data = 0x3000, .table = SHT_SYMTAB, .symbol = symbols, .symbol_count = 3};
    build_elf(built);
    write_file(in_dir("lookup"), built->bytes, built->size);
    assert_int_equal(ub_elf_open_file(in_dir("lookup"), &elf), 0);
    assert_int_equal(ub_symbols_lookup(elf, "twin", &vaddr, &size), 0);
    assert_int_equal(vaddr, 0x1100);
    assert_int_equal(size, 0x20);
    assert_int_equal(ub_symbols_lookup(elf, "versioned", &vaddr, &size), 0);
    assert_int_equal(vaddr, 0x1200);
    assert_int_equal(ub_symbols_lookup(elf, "twi", &vaddr, &size), -ENOENT);
    assert_int_equal(ub_symbols_lookup(elf, "twins", &vaddr, &size), -ENOENT);
    assert_int_equal(vaddr, 0x1200);
    free(built);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranges_nested),   cmocka_unit_test(test_ranges_random),
        cmocka_unit_test(test_ranges_extremes), cmocka_unit_test(test_names),
        cmocka_unit_test(test_name_suffixes),   cmocka_unit_test(test_name_bomb),
        cmocka_unit_test(test_index_sizes),     cmocka_unit_test(test_index_stripped),
        cmocka_unit_test(test_index_aliases),   cmocka_unit_test(test_index_ignores),
        cmocka_unit_test(test_lookup),
    };

    return cmocka_run_group_tests(tests, make_test_dir, remove_test_dir);
}
