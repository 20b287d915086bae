/*
 * What a program is, as far as its loop's waits depend on it.
 */
#include "bpf_impl.h"

#include "../elffile.h"

#include <elf.h>
#include <fcntl.h>
#include <gelf.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define TRAIT_PARKS 1u

/* Go's linker always leaves this section, also in stripped programs. */
static bool is_go(int fd)
{
    Elf *elf;
    Elf_Scn *scn = NULL;
    size_t names;
    bool found = false;

    elf_version(EV_CURRENT);
    elf = elf_begin(fd, ELF_C_READ, NULL);
    if (!elf)
        return false;
    while (elf_kind(elf) == ELF_K_ELF && elf_getshdrstrndx(elf, &names) == 0 && (scn = elf_nextscn(elf, scn))) {
        GElf_Shdr shdr;
        const char *name = gelf_getshdr(scn, &shdr) ? elf_strptr(elf, names, shdr.sh_name) : NULL;

        found |= name && strcmp(name, ".go.buildinfo") == 0;
    }
    elf_end(elf);
    return found;
}

uint32_t ub_bpf_traits(pid_t pid)
{
    uint32_t traits = 0;
    char path[40];
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/exe", (int)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    if (is_go(fd))
        traits |= TRAIT_PARKS;
    close(fd);
    return traits;
}
