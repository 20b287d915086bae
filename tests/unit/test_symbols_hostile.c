/*
 * Damaged ELF and DWARF through everything that reads them. The seed is fixed;
 * each batch runs in a process of its own, so that a crash names its batch. Any
 * answer will do: this is for the sanitizers, and for walks that do not end.
 */
#include "unit.h"

#include "../../tracer/symbols.h"
#include "elf_builder.h"

#include <errno.h>
#include <sys/wait.h>

#define BATCHES       30
#define BATCH_SIZE    100
#define BATCH_SECONDS 60

static const char source[] =
    "static inline __attribute__((always_inline)) int add(int a, int b) { return a + b; }\n"
    "static inline __attribute__((always_inline)) int twice(int a) { for (int i = 0; i < 3; i++) { int x = i; a = "
    "add(a, x); } return a; }\n"
    "struct s { int a; union { int b; char c; }; };\n"
    "__attribute__((noinline)) int work(struct s *p) { return twice(p->a) + add(p->b, p->c); }\n"
    "__attribute__((cold, noinline)) int rare(int n) { int nested(int x) { return x + n; } return nested(n); }\n"
    "int main(int argc, char **argv) { struct s s = {argc, {2}}; return argc > 9 ? rare(argc) : work(&s); }\n";

struct sample {
    uint8_t *bytes;
    size_t size;
};

static struct sample compile(const char *name, const char *flags)
{
    struct sample sample = {0};
    char command[1024];
    int status;

    write_file(in_dir("sample.c"), source, sizeof(source) - 1);
    snprintf(command, sizeof(command), "cd %s && cc -w %s sample.c -o %s", test_dir, flags, name);
    status = system(command);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
        skip();
    assert_int_equal(status, 0);
    sample.bytes = read_file(in_dir(name), &sample.size);
    return sample;
}

/* Every 3rd byte of the code, and addresses that are nowhere. Returns how much there was to read. */
static size_t resolve_everywhere(struct ub_elf *elf)
{
    struct ub_map map = {.start = 0, .end = UINT64_MAX, .kind = UB_MAP_FILE, .path = elf->path, .elf = elf};
    struct ub_maps maps = {.refs = 1, .pid = getpid(), .count = 1, .map = &map};
    struct ub_symbol s[UB_INLINES_MAX];
    uint64_t vaddr, size;
    size_t letters = 0;

    for (uint64_t address = 0x1000; address < 0x1300; address += 3) {
        uint32_t n = ub_symbols_resolve(&maps, address, s, UB_INLINES_MAX);

        assert_in_range(n, 1, UB_INLINES_MAX);
        for (uint32_t i = 0; i < n; i++)
            letters += (s[i].function ? strlen(s[i].function) : 0) + (s[i].file ? strlen(s[i].file) : 0);
    }
    ub_symbols_resolve(&maps, UINT64_MAX - 1, s, 1);
    ub_symbols_lookup(elf, "main", &vaddr, &size);
    return letters;
}

/* Bytes anywhere, or numbers that are likely to hurt where offsets and sizes are kept. */
static void damage(uint8_t *bytes, size_t size)
{
    static const uint64_t numbers[] = {0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fffffff, 0xffffffff, 1ull << 63, UINT64_MAX};
    size_t sections = ((Elf64_Ehdr *)bytes)->e_shoff;

    for (long n = 1 + random() % 8; n > 0; n--) {
        size_t at = (size_t)random() % size;
        uint64_t number = numbers[(size_t)random() % UB_ARRAY_LEN(numbers)];

        if (random() % 3 == 0 && sections < size)
            at = sections + (size_t)random() % (size - sections);
        if (random() % 2)
            bytes[at] = (uint8_t)random();
        else if (at + 8 <= size)
            memcpy(bytes + at, &number, (size_t)1 << random() % 4);
    }
}

static void run_batch(const struct sample *sample, unsigned batch)
{
    uint8_t *bytes = malloc(sample->size);
    char name[32];

    alarm(BATCH_SECONDS);
    srandom(batch);
    snprintf(name, sizeof(name), "damaged-%u", batch);
    for (int i = 0; i < BATCH_SIZE; i++) {
        struct ub_elf *elf;

        memcpy(bytes, sample->bytes, sample->size);
        damage(bytes, sample->size);
        unlink(in_dir(name));
        write_file(in_dir(name), bytes, sample->size);
        if (ub_elf_open_file(in_dir(name), &elf) == 0)
            resolve_everywhere(elf);
    }
    free(bytes);
    _exit(0);
}

static void run_batches(struct sample sample, unsigned first)
{
    for (unsigned batch = first; batch < first + BATCHES; batch++) {
        pid_t pid = fork();
        int status;

        if (pid == 0)
            run_batch(&sample, batch);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        if (status != 0)
            fail_msg("batch %u ended with wait status %#x", batch, (unsigned)status);
    }
    free(sample.bytes);
}

static void test_undamaged(void **state)
{
    struct sample sample = compile("sound", "-O2 -g");
    uint64_t vaddr, size;
    struct ub_elf *elf;

    assert_int_equal(ub_elf_open_file(in_dir("sound"), &elf), 0);
    assert_int_equal(ub_symbols_lookup(elf, "work", &vaddr, &size), 0);
    assert_in_range(vaddr, 0x1000, 0x1300); /* where resolve_everywhere looks */
    assert_true(resolve_everywhere(elf) > 1000);
    free(sample.bytes);
}

static void test_dwarf5(void **state)
{
    run_batches(compile("dwarf5", "-O2 -g -gdwarf-5"), 0);
}

static void test_dwarf4(void **state)
{
    run_batches(compile("dwarf4", "-O2 -g -gdwarf-4 -fdebug-types-section"), 1000);
}

static void test_compressed(void **state)
{
    run_batches(compile("packed", "-O2 -g -gz=zlib"), 2000);
}

static void test_split(void **state)
{
    run_batches(compile("split", "-O2 -g -gsplit-dwarf"), 3000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_undamaged),  cmocka_unit_test(test_dwarf5), cmocka_unit_test(test_dwarf4),
        cmocka_unit_test(test_compressed), cmocka_unit_test(test_split),
    };

    setenv("UNBLOCK_DEBUG_PATH", "/nonexistent", 1);
    unsetenv("DEBUGINFOD_URLS");
    return cmocka_run_group_tests(tests, make_test_dir, remove_test_dir);
}
