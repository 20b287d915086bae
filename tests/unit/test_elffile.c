/* Opening ELF files: which are taken, what is read from them, what happens when they change or lie. */
#include "unit.h"

#include "../../tracer/elffile.h"
#include "elf_builder.h"

#include <errno.h>
#include <link.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>

static const char *own_path;
int data_word = 0x12345678; /* initial contents of a writable segment */

static struct built_elf *new_built(void)
{
    struct built_elf *e = calloc(1, sizeof(*e));

    assert_non_null(e);
    *e = (struct built_elf){.type = ET_DYN, .base = 0, .text = 0x1000, .data = 0x3000};
    build_elf(e);
    return e;
}

static struct ub_elf *open_self(void)
{
    struct ub_elf *elf = NULL;

    assert_int_equal(ub_elf_open_file("/proc/self/exe", &elf), 0);
    return elf;
}

/* ---- what is read ---- */

struct own_note {
    const uint8_t *bytes;
    size_t len;
};

static int first_object_note(struct dl_phdr_info *info, size_t size, void *data)
{
    struct own_note *note = data;

    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        const uint8_t *bytes = (const uint8_t *)(info->dlpi_addr + p->p_vaddr);
        const ElfW(Nhdr) *n = (const void *)bytes;

        if (p->p_type != PT_NOTE || n->n_type != NT_GNU_BUILD_ID)
            continue;
        note->bytes = bytes + sizeof(*n) + 4;
        note->len = n->n_descsz;
    }
    return 1;
}

static int first_object_bias(struct dl_phdr_info *info, size_t size, void *data)
{
    *(uint64_t *)data = info->dlpi_addr;
    return 1;
}

static uint64_t own_bias(void)
{
    uint64_t bias = 0;

    dl_iterate_phdr(first_object_bias, &bias);
    return bias;
}

static void test_own_header(void **state)
{
    struct ub_elf *elf = open_self();
    struct own_note note = {0};
    bool executable = false;

    dl_iterate_phdr(first_object_note, &note);
    assert_int_equal(elf->build_id_len, note.len);
    if (note.len)
        assert_memory_equal(elf->build_id, note.bytes, note.len);
    for (uint32_t i = 0; i < elf->segment_count; i++)
        executable |= elf->segment[i].flags & PF_X;
    assert_true(executable);
    assert_true(elf->eh_frame_hdr != 0);
    assert_true(elf->eh_frame_hdr_size >= 12);
    assert_false(elf->vdso);
    assert_non_null(ub_elf_image(elf, elf->eh_frame_hdr, elf->eh_frame_hdr_size, false));
}

static void test_image(void **state)
{
    struct ub_elf *elf = open_self();
    uint64_t code = (uint64_t)(uintptr_t)test_image - own_bias();
    uint64_t data = (uint64_t)(uintptr_t)&data_word - own_bias();
    const int *word;

    assert_memory_equal(ub_elf_image(elf, code, 16, false), (const void *)test_image, 16);
    assert_null(ub_elf_image(elf, data, sizeof(data_word), false));
    word = ub_elf_image(elf, data, sizeof(data_word), true);
    assert_non_null(word);
    assert_int_equal(*word, 0x12345678);
    assert_null(ub_elf_image(elf, UINT64_MAX - 3, 8, true));
    assert_null(ub_elf_image(elf, code, UINT64_MAX, true));
}

static void test_image_borders(void **state)
{
    struct built_elf *built = new_built();
    struct ub_elf *elf;

    write_file(in_dir("borders"), built->bytes, built->size);
    assert_int_equal(ub_elf_open_file(in_dir("borders"), &elf), 0);
    assert_int_equal(elf->segment_count, 3);
    assert_non_null(ub_elf_image(elf, 0x1000, BUILT_TEXT_SIZE, false));
    assert_null(ub_elf_image(elf, 0x1000, BUILT_TEXT_SIZE + 1, false));
    assert_null(ub_elf_image(elf, 0x1fff, 2, false));
    assert_non_null(ub_elf_image(elf, 0x1fff, 1, false));
    assert_ptr_equal(ub_elf_image(elf, 0x3000, 1, true), elf->bytes + BUILT_DATA_OFFSET);
    /* .bss is not in the file */
    assert_null(ub_elf_image(elf, 0x3000 + BUILT_DATA_SIZE, 1, true));
    free(built);
}

/* ---- what is taken ---- */

static void test_cache(void **state)
{
    struct ub_elf *elf;

    assert_ptr_equal(open_self(), open_self());
    copy_file("/proc/self/exe", in_dir("copy"));
    assert_int_equal(ub_elf_open_file(in_dir("copy"), &elf), 0);
    assert_ptr_not_equal(elf, open_self());
    assert_string_equal(elf->basename, "copy");
    assert_string_equal(elf->path, in_dir("copy"));
}

static void test_refused(void **state)
{
    struct built_elf *built = new_built();
    struct ub_elf *elf = NULL;

    assert_int_equal(ub_elf_open_file(in_dir("nothing"), &elf), -ENOENT);
    assert_int_equal(ub_elf_open_file(test_dir, &elf), -EINVAL);
    assert_int_equal(mkfifo(in_dir("fifo"), 0600), 0);
    assert_int_equal(ub_elf_open_file(in_dir("fifo"), &elf), -EINVAL); /* and returns at all */
    assert_int_equal(ub_elf_open_file("/dev/null", &elf), -EINVAL);
    write_file(in_dir("empty"), "", 0);
    assert_int_equal(ub_elf_open_file(in_dir("empty"), &elf), -ENOEXEC);
    write_file(in_dir("text"), "#!/bin/sh\n", 10);
    assert_int_equal(ub_elf_open_file(in_dir("text"), &elf), -ENOEXEC);
    assert_int_equal(ub_elf_open_file(in_dir("text"), &elf), -ENOEXEC); /* from the cache */
    built->bytes[EI_CLASS] = ELFCLASS32;
    write_file(in_dir("class"), built->bytes, built->size);
    assert_int_equal(ub_elf_open_file(in_dir("class"), &elf), -ENOEXEC);
    built->bytes[EI_CLASS] = ELFCLASS64;
    ((Elf64_Ehdr *)built->bytes)->e_machine = EM_RISCV;
    write_file(in_dir("machine"), built->bytes, built->size);
    assert_int_equal(ub_elf_open_file(in_dir("machine"), &elf), -ENOEXEC);
    assert_null(elf);
    free(built);
}

/* A header cut anywhere, and program headers that point out of the file. */
static void test_cut_off(void **state)
{
    struct built_elf *built = new_built();
    Elf64_Ehdr *h = (Elf64_Ehdr *)built->bytes;
    Elf64_Phdr *text = (Elf64_Phdr *)(built->bytes + sizeof(*h)) + 1;
    struct ub_elf *elf;

    for (size_t size = 1; size < sizeof(*h) + 3 * sizeof(Elf64_Phdr); size += 7) {
        unlink(in_dir("cut"));
        write_file(in_dir("cut"), built->bytes, size);
        assert_int_equal(ub_elf_open_file(in_dir("cut"), &elf), -ENOEXEC);
    }
    /* Half of .text is missing: what is there can be used. */
    write_file(in_dir("half"), built->bytes, BUILT_TEXT_OFFSET + 0x800);
    assert_int_equal(ub_elf_open_file(in_dir("half"), &elf), 0);
    assert_non_null(ub_elf_image(elf, 0x1000, 0x800, false));
    assert_null(ub_elf_image(elf, 0x1000, 0x801, false));
    text->p_filesz = text->p_memsz = UINT64_MAX - 0x10;
    text->p_offset = 0x1000;
    write_file(in_dir("huge"), built->bytes, built->size);
    assert_int_equal(ub_elf_open_file(in_dir("huge"), &elf), 0);
    assert_null(ub_elf_image(elf, 0x1000, built->size, false));
    h->e_phoff = UINT64_MAX - 8;
    write_file(in_dir("phoff"), built->bytes, built->size);
    assert_int_equal(ub_elf_open_file(in_dir("phoff"), &elf), -ENOEXEC);
    free(built);
}

/* ---- files that change ---- */

static void test_rewritten_in_place(void **state)
{
    struct built_elf *built = new_built();
    struct ub_elf *first, *second;

    write_file(in_dir("rewritten"), built->bytes, built->size);
    assert_int_equal(ub_elf_open_file(in_dir("rewritten"), &first), 0);
    write_file(in_dir("rewritten"), built->bytes, built->size - 1);
    assert_int_equal(ub_elf_open_file(in_dir("rewritten"), &second), 0);
    assert_ptr_not_equal(first, second);
    free(built);
}

/* Returns 0 when reading what is no longer in the file gives zeros. */
static int read_shrunk(const char *path)
{
    const uint8_t *code;
    struct ub_elf *elf;

    if (ub_elf_open_file(path, &elf) < 0)
        return 1;
    code = ub_elf_image(elf, 0x1000, 16, false);
    if (!code || code[3] != 0x90 || truncate(path, 0) < 0)
        return 2;
    return code[3] == 0 ? 0 : 3;
}

/* In a program of its own: cmocka puts its own SIGBUS handler around every test. */
static void test_truncated_while_mapped(void **state)
{
    struct built_elf *built = new_built();
    char command[1024];

    memset(built->bytes + BUILT_TEXT_OFFSET, 0x90, BUILT_TEXT_SIZE);
    write_file(in_dir("shrinks"), built->bytes, built->size);
    snprintf(command, sizeof(command), "exec %s %s", own_path, in_dir("shrinks"));
    assert_int_equal(system(command), 0);
    free(built);
}

/* ---- as a process has them mapped ---- */

static int open_as_mapped(const char *path, const void *at, const struct stat *st, struct ub_elf **ret)
{
    uint64_t start = (uint64_t)(uintptr_t)at;

    return ub_elf_open(getpid(), path, start, start + 0x1000, st->st_dev, st->st_ino, ret);
}

static void test_replaced_file(void **state)
{
    struct built_elf *built = new_built();
    struct ub_elf *elf = NULL, *again = NULL;
    const char *path = in_dir("replaced");
    struct stat st;
    void *at;
    int fd;

    write_file(path, built->bytes, built->size);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_int_equal(fstat(fd, &st), 0);
    at = mmap(NULL, 0x1000, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    assert_int_equal(open_as_mapped(path, at, &st, &elf), 0);
    assert_string_equal(elf->path, path);

    /* Another file under the same name; then none. Ours is known by its inode. */
    unlink(path);
    write_file(path, built->bytes, built->size);
    assert_int_equal(open_as_mapped(path, at, &st, &again), 0);
    assert_ptr_equal(again, elf);
    unlink(path);
    munmap(at, 0x1000); /* no way round through map_files */
    assert_int_equal(open_as_mapped(path, at, &st, &again), 0);
    assert_ptr_equal(again, elf);
    free(built);
}

static void test_wrong_inode(void **state)
{
    struct built_elf *built = new_built();
    struct ub_elf *elf = NULL;
    struct stat st;

    write_file(in_dir("inode"), built->bytes, built->size);
    assert_int_equal(stat(in_dir("inode"), &st), 0);
    st.st_ino += 1000003;
    assert_int_equal(open_as_mapped(in_dir("inode"), built->bytes, &st, &elf), -ENOENT);
    assert_int_equal(open_as_mapped(in_dir("inode"), built->bytes, &st, &elf), -ENOENT);
    assert_null(elf);
    free(built);
}

/* Deleted before anybody looked at it: map_files, for those who may. */
static void test_deleted_unseen(void **state)
{
    struct built_elf *built = new_built();
    struct ub_elf *elf = NULL;
    char path[600];
    struct stat st;
    void *at;
    int fd, r;

    write_file(in_dir("unseen"), built->bytes, built->size);
    fd = open(in_dir("unseen"), O_RDONLY | O_CLOEXEC);
    assert_int_equal(fstat(fd, &st), 0);
    at = mmap(NULL, 0x1000, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    unlink(in_dir("unseen"));
    snprintf(path, sizeof(path), "%s (deleted)", in_dir("unseen"));
    r = open_as_mapped(path, at, &st, &elf);
    if (geteuid() == 0) {
        assert_int_equal(r, 0);
        assert_string_equal(elf->path, in_dir("unseen"));
    } else {
        assert_true(r == 0 || r == -ENOENT);
    }
    munmap(at, 0x1000);
    free(built);
}

static void test_vdso(void **state)
{
    uint64_t start = getauxval(AT_SYSINFO_EHDR);
    struct ub_elf *elf = NULL, *again = NULL;

    if (!start)
        skip();
    assert_int_equal(ub_elf_open_vdso(getpid(), start, start + 0x1000, &elf), 0);
    assert_true(elf->vdso);
    assert_string_equal(elf->path, "[vdso]");
    assert_memory_equal(elf->bytes, (const void *)(uintptr_t)start, 0x1000);
    assert_int_equal(ub_elf_open_vdso(getpid(), start, start + 0x1000, &again), 0);
    assert_ptr_equal(elf, again);
    assert_int_equal(ub_elf_open_vdso(getpid(), start, start, &again), -EINVAL);
    assert_true(ub_elf_open_vdso(getpid(), 0x1000, 0x2000, &again) < 0);
}

/* ---- lies ---- */

/* Headers with random bytes changed: any answer will do, as long as the sanitizers are content. */
static void test_mutations(void **state)
{
    struct built_elf *built = new_built();
    uint8_t bytes[BUILT_MAX];
    unsigned opened = 0;

    srandom(20240611);
    for (int i = 0; i < 3000; i++) {
        uint64_t vaddr = (uint64_t)random() << (random() % 34);
        struct ub_elf *elf;
        const char *name = in_dir("mutant");

        memcpy(bytes, built->bytes, built->size);
        for (int n = 1 + (int)(random() % 6); n > 0; n--)
            bytes[random() % 0x100] = (uint8_t)random();
        unlink(name);
        write_file(name, bytes, 0x1800);
        if (ub_elf_open_file(name, &elf) < 0)
            continue;
        opened++;
        for (uint32_t s = 0; s < elf->segment_count; s++) {
            const uint8_t *p = ub_elf_image(elf, elf->segment[s].vaddr, elf->segment[s].filesz, true);

            if (p && elf->segment[s].filesz)
                vaddr += p[0] + p[elf->segment[s].filesz - 1];
        }
        (void)ub_elf_image(elf, vaddr, vaddr, true);
    }
    assert_true(opened > 100);
    free(built);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_own_header),
        cmocka_unit_test(test_image),
        cmocka_unit_test(test_image_borders),
        cmocka_unit_test(test_cache),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_cut_off),
        cmocka_unit_test(test_rewritten_in_place),
        cmocka_unit_test(test_truncated_while_mapped),
        cmocka_unit_test(test_replaced_file),
        cmocka_unit_test(test_wrong_inode),
        cmocka_unit_test(test_deleted_unseen),
        cmocka_unit_test(test_vdso),
        cmocka_unit_test(test_mutations),
    };

    if (argc > 1)
        return read_shrunk(argv[1]);
    own_path = argv[0];
    return cmocka_run_group_tests(tests, make_test_dir, remove_test_dir);
}
