/* Addresses to names, from end to end: our own code, libc, stripped files and where their debug files lie. */
#include "unit.h"

#include "../../common/clock.h"
#include "../../tracer/symbols_impl.h"
#include "elf_builder.h"

#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/auxv.h>
#include <sys/socket.h>
#include <sys/wait.h>

/* ---- code to be found: three functions in one ---- */

/* An address inside the instruction itself. */
#if defined(__x86_64__)
#define READ_PC(pc) __asm__ volatile("lea 0(%%rip), %0\n\tsub $1, %0" : "=r"(pc))
#else
#define READ_PC(pc) __asm__ volatile("adr %0, ." : "=r"(pc))
#endif

enum { INNERMOST_LINE = __LINE__ + 4, MIDDLE_LINE = __LINE__ + 9, OUTERMOST_LINE = __LINE__ + 14 };
static inline __attribute__((always_inline)) uint64_t innermost(void)
{
    uint64_t pc;
    READ_PC(pc);
    return pc;
}
static inline __attribute__((always_inline)) uint64_t middle(void)
{
    return innermost();
}

static __attribute__((noinline, noclone)) uint64_t outermost(void)
{
    return middle();
}

static uint64_t own_vaddr(uint64_t address)
{
    struct ub_maps *maps;
    uint64_t vaddr;

    assert_int_equal(ub_maps_load(getpid(), NULL, &maps), 0);
    vaddr = address - ub_maps_find(maps, address)->bias;
    ub_maps_unref(maps);
    return vaddr;
}

/* Resolves a virtual address of an ELF file, as if it were mapped at its own addresses. */
static uint32_t resolve_in(struct ub_elf *elf, uint64_t vaddr, struct ub_symbol *ret, uint32_t max)
{
    struct ub_map map = {.start = 0, .end = UINT64_MAX, .kind = UB_MAP_FILE, .path = elf->path, .elf = elf};
    struct ub_maps maps = {.refs = 1, .pid = getpid(), .count = 1, .map = &map};

    return ub_symbols_resolve(&maps, vaddr, ret, max);
}

static uint32_t resolve_file(const char *path, uint64_t vaddr, struct ub_symbol *ret)
{
    struct ub_elf *elf;

    assert_int_equal(ub_elf_open_file(path, &elf), 0);
    return resolve_in(elf, vaddr, ret, UB_INLINES_MAX);
}

static void check_file(const struct ub_symbol *s, uint32_t line)
{
    assert_non_null(s->file);
    assert_string_equal(strrchr(s->file, '/'), "/test_symbols.c");
    assert_int_equal(s->line, line);
    assert_int_equal(s->language, UB_LANGUAGE_C);
}

static void check_all_three(const struct ub_symbol *s, uint32_t n)
{
    assert_int_equal(n, 3);
    assert_string_equal(s[0].function, "innermost");
    assert_string_equal(s[1].function, "middle");
    assert_string_equal(s[2].function, "outermost");
    assert_true(s[0].inlined && s[1].inlined && !s[2].inlined);
    check_file(&s[0], INNERMOST_LINE);
    check_file(&s[1], MIDDLE_LINE);
    check_file(&s[2], OUTERMOST_LINE);
    assert_false(s[2].nearest);
}

/* ---- our own process ---- */

static void test_own_code(void **state)
{
    struct ub_symbol s[UB_INLINES_MAX];
    uint64_t pc = outermost();
    struct ub_maps *maps;

    assert_int_equal(ub_maps_load(getpid(), NULL, &maps), 0);
    check_all_three(s, ub_symbols_resolve(maps, pc, s, UB_INLINES_MAX));
    assert_int_equal(s[2].offset, pc - (uint64_t)(uintptr_t)outermost);
    /* Of a chain that does not fit the function itself stays, with the line where it called what is left out. */
    assert_int_equal(ub_symbols_resolve(maps, pc, s, 2), 2);
    assert_string_equal(s[0].function, "innermost");
    assert_string_equal(s[1].function, "outermost");
    check_file(&s[1], OUTERMOST_LINE);
    assert_int_equal(ub_symbols_resolve(maps, pc, s, 1), 1);
    assert_string_equal(s[0].function, "outermost");
    check_file(&s[0], OUTERMOST_LINE);
    assert_int_equal(ub_symbols_resolve(maps, 0x10, s, UB_INLINES_MAX), 1);
    assert_null(s[0].function);
    assert_null(s[0].file);
    ub_maps_unref(maps);
}

/* Names that people write in their programs, not the C library's inner ones. */
static void test_libc_names(void **state)
{
    static const char *const names[] = {"read",       "write",           "open",       "poll",  "nanosleep",
                                        "epoll_wait", "connect",         "recvfrom",   "fsync", "pthread_mutex_lock",
                                        "sem_wait",   "clock_nanosleep", "getaddrinfo"};
    struct ub_symbol s[UB_INLINES_MAX];
    struct ub_maps *maps;

    assert_int_equal(ub_maps_load(getpid(), NULL, &maps), 0);
    for (size_t i = 0; i < UB_ARRAY_LEN(names); i++) {
        uint64_t address = (uint64_t)(uintptr_t)dlsym(RTLD_DEFAULT, names[i]);
        uint32_t n = ub_symbols_resolve(maps, address + 3, s, UB_INLINES_MAX);

        assert_string_equal(s[n - 1].function, names[i]);
        assert_int_equal(s[n - 1].offset, 3);
        assert_false(s[n - 1].nearest);
    }
    ub_maps_unref(maps);
}

static void test_vdso(void **state)
{
    uint64_t start = getauxval(AT_SYSINFO_EHDR), vaddr, size;
    struct ub_symbol s[UB_INLINES_MAX];
    struct ub_elf *elf = NULL;

    if (!start)
        skip();
    assert_int_equal(ub_elf_open_vdso(getpid(), start, start + 0x2000, &elf), 0);
    assert_int_equal(ub_symbols_lookup(elf, "__vdso_clock_gettime", &vaddr, &size), 0);
    assert_int_equal(resolve_in(elf, vaddr + 4, s, UB_INLINES_MAX), 1);
    assert_string_equal(s[0].function, "clock_gettime");
    assert_int_equal(s[0].offset, 4);
}

static void test_plt(void **state)
{
    struct ub_symbol s[UB_INLINES_MAX];
    struct ub_section plt;
    struct ub_elf *elf;
    bool found = false;

    assert_int_equal(ub_elf_open_file("/proc/self/exe", &elf), 0);
    struct ub_image image = {elf->bytes, elf->size};
    if (!ub_image_find_section(&image, ".plt.sec", &plt) && !ub_image_find_section(&image, ".plt", &plt))
        skip();
    for (uint64_t at = 0; at < plt.header.sh_size && !found; at += 16) {
        resolve_in(elf, plt.header.sh_addr + at + 8, s, UB_INLINES_MAX);
        found = s[0].function && strcmp(s[0].function, "mkdtemp@plt") == 0;
    }
    assert_true(found);
}

/* What a snapshot holds outlives the process. */
static void test_process_gone(void **state)
{
    struct ub_symbol s[UB_INLINES_MAX];
    uint64_t pc = outermost();
    struct ub_maps *maps;
    pid_t pid = fork();

    if (pid == 0) {
        pause();
        _exit(0);
    }
    assert_int_equal(ub_maps_load(pid, NULL, &maps), 0);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    check_all_three(s, ub_symbols_resolve(maps, pc, s, UB_INLINES_MAX));
    assert_int_equal(ub_symbols_resolve(maps, 0x10, s, UB_INLINES_MAX), 1);
    assert_null(s[0].function);
    ub_maps_unref(maps);
}

static void *resolve_often(void *data)
{
    uint64_t pc = outermost();
    struct ub_symbol s[UB_INLINES_MAX];

    for (int i = 0; i < 300; i++) {
        uint32_t n = ub_symbols_resolve(data, pc, s, UB_INLINES_MAX);

        if (n != 3 || strcmp(s[2].function, "outermost") != 0)
            return (void *)1;
    }
    return NULL;
}

static void test_threads(void **state)
{
    struct ub_maps *maps;
    pthread_t thread[4];
    void *result;

    assert_int_equal(ub_maps_load(getpid(), NULL, &maps), 0);
    for (size_t i = 0; i < UB_ARRAY_LEN(thread); i++)
        assert_int_equal(pthread_create(&thread[i], NULL, resolve_often, maps), 0);
    for (size_t i = 0; i < UB_ARRAY_LEN(thread); i++) {
        assert_int_equal(pthread_join(thread[i], &result), 0);
        assert_null(result);
    }
    ub_maps_unref(maps);
}

/* ---- stripped files ---- */

/* Runs a command line in the test's directory; skips the test when a tool is missing. */
#define run(...)                                                                                                       \
    do {                                                                                                               \
        char command_[1024];                                                                                           \
        int status_;                                                                                                   \
        snprintf(command_ + sprintf(command_, "cd %s && ", test_dir), 900, __VA_ARGS__);                               \
        status_ = system(command_);                                                                                    \
        if (WIFEXITED(status_) && WEXITSTATUS(status_) == 127)                                                         \
            skip();                                                                                                    \
        assert_int_equal(status_, 0);                                                                                  \
    } while (0)

static void unknown(const char *name)
{
    struct ub_symbol s[UB_INLINES_MAX];

    assert_int_equal(resolve_file(in_dir(name), own_vaddr(outermost()), s), 1);
    assert_true(!s[0].function || s[0].nearest);
    assert_null(s[0].file);
}

static void known(const char *name)
{
    struct ub_symbol s[UB_INLINES_MAX];

    check_all_three(s, resolve_file(in_dir(name), own_vaddr(outermost()), s));
}

static void test_stripped(void **state)
{
    run("objcopy --strip-all /proc/%d/exe bare", (int)getpid());
    unknown("bare");
}

static void test_debuglink(void **state)
{
    run("objcopy --only-keep-debug --remove-section=.note.gnu.build-id /proc/%d/exe own.debug", (int)getpid());
    run("objcopy --strip-all --add-gnu-debuglink=own.debug /proc/%d/exe linked", (int)getpid());
    known("linked");
    /* In the directories where it may lie; and not when it is another file. */
    run("mkdir -p beside/.debug && cp linked beside && mv own.debug beside/.debug");
    known("beside/linked");
    run("mkdir -p global%s/far far && cp linked far && cp beside/.debug/own.debug global%s/far", test_dir, test_dir);
    setenv("UNBLOCK_DEBUG_PATH", in_dir("global"), 1);
    known("far/linked");
    setenv("UNBLOCK_DEBUG_PATH", in_dir("nothing"), 1);
    run("mkdir -p wrong && cp linked wrong && cp beside/.debug/own.debug wrong && echo >> wrong/own.debug");
    unknown("wrong/linked");
    run("mkdir -p pipe && cp linked pipe && mkfifo pipe/own.debug");
    unknown("pipe/linked");
}

/* The path below a debug directory: .build-id/xx/xxxx.debug. */
static const char *build_id_path(const char *before, const char *between, const char *after)
{
    static char path[256];
    struct ub_elf *elf;
    int len;

    assert_int_equal(ub_elf_open_file("/proc/self/exe", &elf), 0);
    if (elf->build_id_len == 0)
        skip();
    len = sprintf(path, "%s%02x%s", before, elf->build_id[0], between);
    for (uint32_t i = 1; i < elf->build_id_len; i++)
        len += sprintf(path + len, "%02x", elf->build_id[i]);
    strcpy(path + len, after);
    return path;
}

static void test_build_id(void **state)
{
    char both[1100];

    run("mkdir -p debug-a $(dirname debug-b/%s)", build_id_path(".build-id/", "/", ""));
    run("objcopy --only-keep-debug /proc/%d/exe debug-b/%s", (int)getpid(), build_id_path(".build-id/", "/", ".debug"));
    run("objcopy --strip-all /proc/%d/exe by-id", (int)getpid());
    snprintf(both, sizeof(both), "%s:%s", in_dir("debug-a"), in_dir("debug-b"));
    setenv("UNBLOCK_DEBUG_PATH", both, 1);
    known("by-id");
    setenv("UNBLOCK_DEBUG_PATH", in_dir("nothing"), 1);
}

static void test_compressed(void **state)
{
    run("objcopy --compress-debug-sections=zlib-gabi /proc/%d/exe compressed", (int)getpid());
    known("compressed");
    run("objcopy --compress-debug-sections=zlib-gnu /proc/%d/exe compressed-gnu", (int)getpid());
    known("compressed-gnu");
}

/* Symbols without DWARF: the name, but neither lines nor what was inlined. */
static void test_symbols_only(void **state)
{
    struct ub_symbol s[UB_INLINES_MAX];

    run("objcopy --strip-debug /proc/%d/exe symbols", (int)getpid());
    assert_int_equal(resolve_file(in_dir("symbols"), own_vaddr(outermost()), s), 1);
    assert_string_equal(s[0].function, "outermost");
    assert_null(s[0].file);
    assert_int_equal(s[0].line, 0);
    assert_false(s[0].nearest);
}

static void test_minidebuginfo(void **state)
{
    struct ub_symbol s[UB_INLINES_MAX];

    run("objcopy --strip-debug /proc/%d/exe mini && xz -f mini && objcopy --strip-all "
        "--add-section .gnu_debugdata=mini.xz /proc/%d/exe minidebug",
        (int)getpid(), (int)getpid());
    assert_int_equal(resolve_file(in_dir("minidebug"), own_vaddr(outermost()), s), 1);
    assert_string_equal(s[0].function, "outermost");
    assert_false(s[0].nearest);
    run("head -c 1000 mini.xz > cut.xz && objcopy --strip-all --add-section .gnu_debugdata=cut.xz /proc/%d/exe cut",
        (int)getpid());
    unknown("cut");
}

static void test_debuginfod(void **state)
{
    if (!dlopen("libdebuginfod.so.1", RTLD_NOW))
        skip();
    run("mkdir -p %s", build_id_path("server/buildid/", "", ""));
    run("objcopy --only-keep-debug /proc/%d/exe %s", (int)getpid(), build_id_path("server/buildid/", "", "/debuginfo"));
    run("objcopy --strip-all /proc/%d/exe served && cp served unserved", (int)getpid());
    setenv("DEBUGINFOD_CACHE_PATH", in_dir("cache"), 1);
    unknown("unserved");
    assert_int_equal(access(in_dir("cache"), F_OK), -1); /* nobody asked for it: nothing was asked */
    char url[600];
    snprintf(url, sizeof(url), "file://%s/", in_dir("server"));
    setenv("DEBUGINFOD_URLS", url, 1);
    known("served");
    unsetenv("DEBUGINFOD_URLS");
}

/* ---- time ---- */

static double resolve_all(struct ub_elf *elf, const uint64_t *vaddr, size_t count, uint32_t *ret_frames)
{
    struct ub_symbol s[UB_INLINES_MAX];
    uint64_t start = ub_clock_monotonic_ns();

    *ret_frames = 0;
    for (size_t i = 0; i < count; i++)
        *ret_frames += resolve_in(elf, vaddr[i], s, UB_INLINES_MAX);
    return (double)(ub_clock_monotonic_ns() - start) / 1e6;
}

/* 1000 addresses all over a file's code. Only printed: how long it may take is `make bench`'s business. */
static void time_file(const char *path)
{
    uint64_t vaddr[1000];
    struct ub_section text;
    struct ub_elf *elf;
    double cold, warm;
    uint32_t frames;

    assert_int_equal(ub_elf_open_file(path, &elf), 0);
    struct ub_image image = {elf->bytes, elf->size};
    assert_true(ub_image_find_section(&image, ".text", &text));
    srandom(1);
    for (size_t i = 0; i < UB_ARRAY_LEN(vaddr); i++)
        vaddr[i] = text.header.sh_addr + (uint64_t)random() % text.header.sh_size;
    cold = resolve_all(elf, vaddr, UB_ARRAY_LEN(vaddr), &frames);
    warm = resolve_all(elf, vaddr, UB_ARRAY_LEN(vaddr), &frames);
    print_message("1000 addresses, %u frames of %s: %.1f ms cold, %.2f ms warm\n", frames, elf->basename, cold, warm);
    assert_true(cold < 5000);
    assert_true(warm < 200);
}

static void test_time(void **state)
{
    Dl_info info;

    unsetenv("UNBLOCK_DEBUG_PATH");
    time_file("/proc/self/exe");
    if (dladdr(dlsym(RTLD_DEFAULT, "read"), &info))
        time_file(info.dli_fname);
    if (access("/usr/bin/node", R_OK) == 0)
        time_file("/usr/bin/node");
    setenv("UNBLOCK_DEBUG_PATH", in_dir("nothing"), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_time),          cmocka_unit_test(test_own_code),   cmocka_unit_test(test_libc_names),
        cmocka_unit_test(test_vdso),          cmocka_unit_test(test_plt),        cmocka_unit_test(test_process_gone),
        cmocka_unit_test(test_threads),       cmocka_unit_test(test_stripped),   cmocka_unit_test(test_debuglink),
        cmocka_unit_test(test_build_id),      cmocka_unit_test(test_compressed), cmocka_unit_test(test_symbols_only),
        cmocka_unit_test(test_minidebuginfo), cmocka_unit_test(test_debuginfod),
    };

    unsetenv("DEBUGINFOD_URLS");
    return cmocka_run_group_tests(tests, make_test_dir, remove_test_dir);
}
