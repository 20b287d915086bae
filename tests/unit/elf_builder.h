/*
 * Small ELF files made to measure, and a directory of our own to put them in.
 * Included by the tests of the tracer's ELF, maps and symbols code.
 */
#ifndef UB_TESTS_ELF_BUILDER_H
#define UB_TESTS_ELF_BUILDER_H

#include "unit.h"

#include <elf.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUILT_TEXT_OFFSET 0x1000u
#define BUILT_TEXT_SIZE   0x1000u
#define BUILT_DATA_OFFSET 0x2000u
#define BUILT_DATA_SIZE   0x800u
#define BUILT_MAX         0x8000u

struct built_symbol {
    const char *name;
    uint64_t value, size;
    uint8_t type, bind;
};

/* Headers at `base`, .text at `text`, data at `data` (virtual addresses). */
struct built_elf {
    uint16_t type;
    uint64_t base, text, data;
    uint32_t table; /* SHT_SYMTAB, SHT_DYNSYM or 0 */
    const struct built_symbol *symbol;
    size_t symbol_count;
    /* filled in */
    size_t size;
    uint8_t bytes[BUILT_MAX];
};

static inline void build_header(struct built_elf *e, uint64_t sections_at)
{
    Elf64_Ehdr h = {.e_type = e->type,
                    .e_machine = EM_X86_64,
                    .e_version = EV_CURRENT,
                    .e_phoff = sizeof(Elf64_Ehdr),
                    .e_shoff = sections_at,
                    .e_ehsize = sizeof(Elf64_Ehdr),
                    .e_phentsize = sizeof(Elf64_Phdr),
                    .e_phnum = 3,
                    .e_shentsize = sizeof(Elf64_Shdr),
                    .e_shnum = 5,
                    .e_shstrndx = 4};
    Elf64_Phdr p[3] = {
        {PT_LOAD, PF_R, 0, e->base, e->base, 0x400, 0x400, 0x1000},
        {PT_LOAD, PF_R | PF_X, BUILT_TEXT_OFFSET, e->text, e->text, BUILT_TEXT_SIZE, BUILT_TEXT_SIZE, 0x1000},
        {PT_LOAD, PF_R | PF_W, BUILT_DATA_OFFSET, e->data, e->data, BUILT_DATA_SIZE, BUILT_DATA_SIZE + 0x1000, 0x1000},
    };

#if defined(__aarch64__)
    h.e_machine = EM_AARCH64;
#endif
    memcpy(h.e_ident, ELFMAG, SELFMAG);
    h.e_ident[EI_CLASS] = ELFCLASS64;
    h.e_ident[EI_DATA] = ELFDATA2LSB;
    h.e_ident[EI_VERSION] = EV_CURRENT;
    memcpy(e->bytes, &h, sizeof(h));
    memcpy(e->bytes + sizeof(h), p, sizeof(p));
}

static inline void build_elf(struct built_elf *e)
{
    static const char section_names[] = "\0.text\0.symtab\0.strtab\0.shstrtab";
    uint64_t symbols_at = 0x3000, at = symbols_at + sizeof(Elf64_Sym), names_at = 0x5000, names = 1;
    uint64_t section_names_at = 0x7000, sections_at = 0x7100;

    for (size_t i = 0; i < e->symbol_count; i++, at += sizeof(Elf64_Sym)) {
        const struct built_symbol *b = &e->symbol[i];
        Elf64_Sym s = {(Elf64_Word)names, ELF64_ST_INFO(b->bind, b->type), 0, 1, b->value, b->size};

        memcpy(e->bytes + at, &s, sizeof(s));
        strcpy((char *)e->bytes + names_at + names, b->name);
        names += strlen(b->name) + 1;
    }
    memcpy(e->bytes + section_names_at, section_names, sizeof(section_names));
    Elf64_Shdr s[5] = {
        {0},
        {1, SHT_PROGBITS, SHF_ALLOC | SHF_EXECINSTR, e->text, BUILT_TEXT_OFFSET, BUILT_TEXT_SIZE, 0, 0, 16, 0},
        {7, e->table ? e->table : SHT_PROGBITS, 0, 0, symbols_at, at - symbols_at, 3, 1, 8, sizeof(Elf64_Sym)},
        {15, SHT_STRTAB, 0, 0, names_at, names, 0, 0, 1, 0},
        {23, SHT_STRTAB, 0, 0, section_names_at, sizeof(section_names), 0, 0, 1, 0},
    };
    memcpy(e->bytes + sections_at, s, sizeof(s));
    build_header(e, sections_at);
    e->size = sections_at + sizeof(s);
}

/* ---- files ---- */

static char test_dir[64];

static inline int make_test_dir(void **state)
{
    strcpy(test_dir, "/tmp/unblock-test-XXXXXX");
    return mkdtemp(test_dir) ? 0 : -1;
}

static inline int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

static inline int remove_test_dir(void **state)
{
    return nftw(test_dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* A path in the test's directory; one of eight buffers in turn. */
static inline const char *in_dir(const char *name)
{
    static char paths[8][512];
    static unsigned next;
    char *path = paths[next++ % 8];

    snprintf(path, sizeof(paths[0]), "%s/%s", test_dir, name);
    return path;
}

static inline void write_file(const char *path, const void *bytes, size_t size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, size), size);
    close(fd);
}

/* The whole file, allocated. */
static inline uint8_t *read_file(const char *path, size_t *ret_size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    uint8_t *bytes;

    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    bytes = malloc((size_t)st.st_size);
    assert_non_null(bytes);
    assert_int_equal(read(fd, bytes, (size_t)st.st_size), st.st_size);
    close(fd);
    *ret_size = (size_t)st.st_size;
    return bytes;
}

static inline void copy_file(const char *from, const char *to)
{
    size_t size;
    uint8_t *bytes = read_file(from, &size);

    write_file(to, bytes, size);
    free(bytes);
}

#endif
