/* Snapshots of /proc/PID/maps: parsing, load bias, identity, and what is opened. */
#include "unit.h"

#include "../../common/arena.h"
#include "../../tracer/maps.h"
#include "elf_builder.h"

#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/wait.h>

static struct ub_maps *load(pid_t pid, struct ub_maps *previous)
{
    struct ub_maps *maps = NULL;

    assert_int_equal(ub_maps_load(pid, previous, &maps), 0);
    assert_non_null(maps);
    return maps;
}

static const struct ub_map *find(const struct ub_maps *maps, const void *address)
{
    return ub_maps_find(maps, (uint64_t)(uintptr_t)address);
}

/* ---- our own address space ---- */

static void test_find(void **state)
{
    struct ub_maps *maps = load(getpid(), NULL);
    const struct ub_map *code = find(maps, (const void *)test_find), *stack = find(maps, &maps);

    assert_non_null(code);
    assert_int_equal(code->kind, UB_MAP_FILE);
    assert_true(code->prot & PROT_EXEC);
    assert_non_null(code->elf);
    assert_string_equal(code->elf->basename, program_invocation_short_name);
    assert_memory_equal(ub_elf_image(code->elf, (uint64_t)(uintptr_t)test_find - code->bias, 16, false),
                        (const void *)test_find, 16);
    assert_int_equal(stack->kind, UB_MAP_STACK);
    assert_null(ub_maps_find(maps, 0));
    assert_null(ub_maps_find(maps, UINT64_MAX));
    for (uint32_t i = 0; i < maps->count; i++) {
        const struct ub_map *m = &maps->map[i];

        assert_ptr_equal(ub_maps_find(maps, m->start), m);
        assert_ptr_equal(ub_maps_find(maps, m->end - 1), m);
        assert_ptr_not_equal(ub_maps_find(maps, m->end), m);
    }
    ub_maps_unref(maps);
}

/* The dynamic linker knows where it put each module: every mapping of it must say the same. */
static int check_module(struct dl_phdr_info *info, size_t size, void *data)
{
    const struct ub_maps *maps = data;

    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        const struct ub_map *first, *last;

        if (p->p_type != PT_LOAD || p->p_filesz == 0)
            continue;
        first = ub_maps_find(maps, info->dlpi_addr + p->p_vaddr);
        last = ub_maps_find(maps, info->dlpi_addr + p->p_vaddr + p->p_filesz - 1);
        assert_non_null(first);
        assert_non_null(first->elf);
        assert_int_equal(first->bias, info->dlpi_addr);
        assert_non_null(last);
        assert_non_null(last->elf);
        assert_int_equal(last->bias, info->dlpi_addr);
    }
    return 0;
}

static void test_bias_of_modules(void **state)
{
    struct ub_maps *maps = load(getpid(), NULL);

    assert_int_equal(dl_iterate_phdr(check_module, maps), 0);
    ub_maps_unref(maps);
}

static void test_vdso(void **state)
{
    uint64_t start = getauxval(AT_SYSINFO_EHDR);
    struct ub_maps *maps = load(getpid(), NULL);
    const struct ub_map *m = ub_maps_find(maps, start);

    if (!start)
        skip();
    assert_int_equal(m->kind, UB_MAP_VDSO);
    assert_non_null(m->elf);
    assert_true(m->elf->vdso);
    assert_int_equal(m->bias, start);
    ub_maps_unref(maps);
}

/* ---- layouts that the linker here does not make ---- */

/* Maps `size` bytes of a built file as a loader would. */
static void *map_built(const char *path, uint64_t offset, size_t size, int prot)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    void *at = mmap(NULL, size, prot, MAP_PRIVATE, fd, (off_t)offset);

    close(fd);
    assert_ptr_not_equal(at, MAP_FAILED);
    return at;
}

static void check_layout(const char *name, const struct built_elf *layout)
{
    struct built_elf *built = malloc(sizeof(*built));
    void *header, *text, *data;
    struct ub_maps *maps;

    *built = *layout;
    build_elf(built);
    write_file(in_dir(name), built->bytes, built->size);
    header = map_built(in_dir(name), 0, 0x1000, PROT_READ);
    text = map_built(in_dir(name), BUILT_TEXT_OFFSET, BUILT_TEXT_SIZE, PROT_READ | PROT_EXEC);
    data = map_built(in_dir(name), BUILT_DATA_OFFSET, 0x1000, PROT_READ | PROT_WRITE);
    maps = load(getpid(), NULL);
    assert_int_equal(find(maps, header)->bias, (uint64_t)(uintptr_t)header - layout->base);
    assert_int_equal(find(maps, text)->bias, (uint64_t)(uintptr_t)text - layout->text);
    assert_int_equal(find(maps, data)->bias, (uint64_t)(uintptr_t)data - layout->data);
    assert_ptr_equal(find(maps, text)->elf, find(maps, data)->elf);
    ub_maps_unref(maps);
    munmap(header, 0x1000);
    munmap(text, BUILT_TEXT_SIZE);
    munmap(data, 0x1000);
    free(built);
}

static void test_bias_of_layouts(void **state)
{
    check_layout("pie", &(struct built_elf){.type = ET_DYN, .base = 0, .text = 0x1000, .data = 0x3000});
    check_layout("prelinked",
                 &(struct built_elf){.type = ET_DYN, .base = 0x3a00000000, .text = 0x3a00001000, .data = 0x3a00203000});
    check_layout("exec", &(struct built_elf){.type = ET_EXEC, .base = 0x400000, .text = 0x401000, .data = 0x603000});
    check_layout("gap", &(struct built_elf){.type = ET_DYN, .base = 0, .text = 0x201000, .data = 0x903000});
}

/* One page of the file holds the end of a segment and the start of the next, on both sides of the code. */
static void test_bias_of_shared_page(void **state)
{
    struct built_elf *built = calloc(1, sizeof(*built));
    Elf64_Phdr *p = (Elf64_Phdr *)(built->bytes + sizeof(Elf64_Ehdr));
    struct ub_maps *maps;
    void *text, *data;
    int fd;

    *built = (struct built_elf){.type = ET_DYN, .base = 0, .text = 0x2000, .data = 0x4000};
    build_elf(built);
    p[0].p_filesz = p[0].p_memsz = 0x1200;
    p[1].p_filesz = p[1].p_memsz = 0x1400; /* text: file 0x1000 .. 0x2400 */
    p[2].p_offset = 0x2400;                /* data: right behind it, one page further in memory */
    p[2].p_vaddr = 0x4400;
    write_file(in_dir("shared"), built->bytes, built->size);
    fd = open(in_dir("shared"), O_RDONLY | O_CLOEXEC);
    text = mmap(NULL, 0x3000, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0x1000);
    data = mmap((char *)text + 0x2000, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0x2000);
    close(fd);
    assert_ptr_not_equal(data, MAP_FAILED);
    maps = load(getpid(), NULL);
    assert_int_equal(find(maps, text)->bias, (uint64_t)(uintptr_t)text - 0x2000);
    assert_int_equal(find(maps, data)->bias, (uint64_t)(uintptr_t)text - 0x2000);
    ub_maps_unref(maps);
    munmap(text, 0x3000);
    free(built);
}

/* ---- what is opened ---- */

static void test_data_files_stay_closed(void **state)
{
    struct built_elf *built = calloc(1, sizeof(*built));
    struct ub_maps *maps;
    void *data, *text;

    *built = (struct built_elf){.type = ET_DYN, .base = 0, .text = 0x1000, .data = 0x3000};
    build_elf(built);
    write_file(in_dir("data"), built->bytes, built->size);
    data = map_built(in_dir("data"), 0, 0x1000, PROT_READ);
    maps = load(getpid(), NULL);
    assert_int_equal(find(maps, data)->kind, UB_MAP_FILE);
    assert_string_equal(find(maps, data)->path, in_dir("data"));
    assert_null(find(maps, data)->elf);
    text = map_built(in_dir("data"), 0x1000, 0x1000, PROT_READ | PROT_EXEC);
    struct ub_maps *later = load(getpid(), maps);
    assert_non_null(find(later, data)->elf);
    assert_non_null(find(later, text)->elf);
    ub_maps_unref(maps);
    ub_maps_unref(later);
    munmap(data, 0x1000);
    munmap(text, 0x1000);
    free(built);
}

static void test_hostile_names(void **state)
{
    static const char *const names[] = {
        "two\nlines", "ends in (deleted)", "  spaces  ", "7f0000000000-7f0000001000 r-xp 00000000 fe:00 1 x", "\n",
    };
    struct built_elf *built = calloc(1, sizeof(*built));

    *built = (struct built_elf){.type = ET_DYN, .base = 0, .text = 0x1000, .data = 0x3000};
    build_elf(built);
    for (size_t i = 0; i < UB_ARRAY_LEN(names); i++) {
        struct ub_maps *maps;
        void *text;

        write_file(in_dir(names[i]), built->bytes, built->size);
        text = map_built(in_dir(names[i]), 0x1000, 0x1000, PROT_READ | PROT_EXEC);
        maps = load(getpid(), NULL);
        assert_string_equal(find(maps, text)->path, in_dir(names[i]));
        assert_non_null(find(maps, text)->elf);
        assert_string_equal(find(maps, text)->elf->basename, names[i]);
        ub_maps_unref(maps);
        munmap(text, 0x1000);
    }
    free(built);
}

static void test_deleted_after_load(void **state)
{
    struct built_elf *built = calloc(1, sizeof(*built));
    struct ub_maps *before, *after;
    struct ub_elf *elf;
    void *text;

    *built = (struct built_elf){.type = ET_DYN, .base = 0, .text = 0x1000, .data = 0x3000};
    build_elf(built);
    write_file(in_dir("deleted"), built->bytes, built->size);
    text = map_built(in_dir("deleted"), 0x1000, 0x1000, PROT_READ | PROT_EXEC);
    before = load(getpid(), NULL);
    elf = find(before, text)->elf;
    unlink(in_dir("deleted"));
    after = load(getpid(), NULL);
    assert_ptr_not_equal(before, after);
    assert_ptr_equal(find(after, text)->elf, elf);
    assert_string_equal(elf->path, in_dir("deleted"));
    ub_maps_unref(before);
    ub_maps_unref(after);
    munmap(text, 0x1000);
    free(built);
}

static void *map_memfd(const char *name)
{
    int fd = memfd_create(name, MFD_CLOEXEC);
    void *at;

    assert_int_equal(ftruncate(fd, 4096), 0);
    at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    assert_ptr_not_equal(at, MAP_FAILED);
    return at;
}

static void test_arena(void **state)
{
    void *other = map_memfd("not-" UB_ARENA_NAME), *arena;
    struct ub_maps *maps = load(getpid(), NULL);

    assert_false(maps->has_arena);
    ub_maps_unref(maps);
    arena = map_memfd(UB_ARENA_NAME);
    maps = load(getpid(), NULL);
    assert_true(maps->has_arena);
    ub_maps_unref(maps);
    munmap(other, 4096);
    munmap(arena, 4096);
}

/* ---- another process, and time ---- */

/* A child that opens a library at 'o', closes it at 'c' and ends at end of file; it answers each with a byte. */
struct child {
    pid_t pid;
    int to, from;
};

static void child_main(int in, int out)
{
    void *library = NULL;
    char c;

    while (read(in, &c, 1) == 1) {
        if (c == 'o')
            library = dlopen("libresolv.so.2", RTLD_NOW);
        else if (library)
            dlclose(library);
        c = library ? 'y' : 'n';
        if (write(out, &c, 1) != 1)
            break;
    }
    _exit(0);
}

static struct child start_child(void)
{
    int to[2], from[2];
    struct child child;

    assert_int_equal(pipe2(to, O_CLOEXEC), 0);
    assert_int_equal(pipe2(from, O_CLOEXEC), 0);
    child.pid = fork();
    if (child.pid == 0) {
        close(to[1]);
        child_main(to[0], from[1]);
    }
    assert_true(child.pid > 0);
    close(to[0]);
    close(from[1]);
    child.to = to[1];
    child.from = from[0];
    return child;
}

static char ask(const struct child *child, char c)
{
    assert_int_equal(write(child->to, &c, 1), 1);
    assert_int_equal(read(child->from, &c, 1), 1);
    return c;
}

static const struct ub_map *find_library(const struct ub_maps *maps)
{
    for (uint32_t i = 0; i < maps->count; i++) {
        if (strstr(maps->map[i].path, "libresolv") && maps->map[i].prot & PROT_EXEC)
            return &maps->map[i];
    }
    return NULL;
}

static void test_identity_and_dlopen(void **state)
{
    struct child child = start_child();
    struct ub_maps *first, *same, *opened, *closed;

    if (ask(&child, 'o') != 'y')
        skip();
    ask(&child, 'c');
    first = load(child.pid, NULL);
    same = load(child.pid, first);
    assert_ptr_equal(first, same);
    assert_int_equal(first->refs, 2);
    ub_maps_unref(same);
    assert_null(find_library(first));

    ask(&child, 'o');
    opened = load(child.pid, first);
    assert_ptr_not_equal(opened, first);
    assert_non_null(find_library(opened));
    assert_non_null(find_library(opened)->elf);
    assert_int_equal(first->refs, 1);

    ask(&child, 'c');
    closed = load(child.pid, opened);
    assert_ptr_not_equal(closed, opened);
    assert_null(find_library(closed));
    /* The old snapshot still stands, whatever became of the process. */
    close(child.to);
    waitpid(child.pid, NULL, 0);
    assert_non_null(find_library(opened)->elf->bytes);
    close(child.from);
    ub_maps_unref(first);
    ub_maps_unref(opened);
    ub_maps_unref(closed);
}

/* Another process's snapshot is no answer, even where the text is the same. */
static void test_previous_of_other_process(void **state)
{
    struct child a = start_child(), b = start_child();
    struct ub_maps *first = load(a.pid, NULL), *second = load(b.pid, first);

    assert_ptr_not_equal(first, second);
    assert_int_equal(second->pid, b.pid);
    ub_maps_unref(first);
    ub_maps_unref(second);
    close(a.to);
    close(b.to);
    waitpid(a.pid, NULL, 0);
    waitpid(b.pid, NULL, 0);
}

static void test_gone(void **state)
{
    struct ub_maps *maps = NULL;
    siginfo_t info;
    pid_t pid = fork();

    if (pid == 0)
        _exit(0);
    assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
    assert_int_equal(ub_maps_load(pid, NULL, &maps), -ESRCH); /* a zombie */
    waitpid(pid, NULL, 0);
    assert_int_equal(ub_maps_load(pid, NULL, &maps), -ESRCH);
    assert_null(maps);
    ub_maps_unref(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_find),
        cmocka_unit_test(test_bias_of_modules),
        cmocka_unit_test(test_vdso),
        cmocka_unit_test(test_bias_of_layouts),
        cmocka_unit_test(test_bias_of_shared_page),
        cmocka_unit_test(test_data_files_stay_closed),
        cmocka_unit_test(test_hostile_names),
        cmocka_unit_test(test_deleted_after_load),
        cmocka_unit_test(test_arena),
        cmocka_unit_test(test_identity_and_dlopen),
        cmocka_unit_test(test_previous_of_other_process),
        cmocka_unit_test(test_gone),
    };

    return cmocka_run_group_tests(tests, make_test_dir, remove_test_dir);
}
