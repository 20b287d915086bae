/*
 * What a process runs, as far as its loop's waits depend on it: asked for by the
 * kernel's programs when a process comes or executes, answered into a map.
 */
#include "bpf_impl.h"

#include "../dispatchers.h"
#include "../maps.h"

#include <bpf/bpf.h>
#include <fcntl.h>
#include <gelf.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Go's linker always leaves this section, also in stripped programs. */
static bool is_go(pid_t pid)
{
    Elf_Scn *scn = NULL;
    bool found = false;
    char path[40];
    size_t names;
    Elf *elf;
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/exe", (int)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    elf_version(EV_CURRENT);
    elf = elf_begin(fd, ELF_C_READ, NULL);
    while (elf && elf_kind(elf) == ELF_K_ELF && elf_getshdrstrndx(elf, &names) == 0 && (scn = elf_nextscn(elf, scn))) {
        GElf_Shdr shdr;
        const char *name = gelf_getshdr(scn, &shdr) ? elf_strptr(elf, names, shdr.sh_name) : NULL;

        found |= name && strcmp(name, ".go.buildinfo") == 0;
    }
    elf_end(elf);
    close(fd);
    return found;
}

void ub_bpf_look_at_program(pid_t pid, struct ub_bpf_program *ret)
{
    struct ub_maps *maps;
    uint32_t count = 0;
    bool libc;

    memset(ret, 0, sizeof(*ret));
    if (is_go(pid))
        ret->traits |= UB_BPF_PARKS;
    if (ub_maps_load(pid, NULL, &maps) < 0)
        return;
    for (uint32_t i = 0; i < maps->count && count < UB_BPF_LIBRARIES; i++) {
        const struct ub_map *m = &maps->map[i];
        const char *slash = strrchr(m->path, '/');

        if (!slash || !(m->prot & PROT_EXEC) || ub_dispatchers_role(slash + 1, NULL, &libc) != UB_ROLE_LOOP)
            continue;
        ret->library[count].start = m->start;
        ret->library[count++].end = m->end;
    }
    ub_maps_unref(maps);
}

void ub_bpf_answer(struct ub_bpf *b, const struct ub_bpf_program_record *asked)
{
    struct ub_bpf_program program;
    int key = asked->tgid;

    b->program_at = ub_clock_monotonic_ns();
    if (asked->pid <= 0)
        return;
    ub_bpf_look_at_program(asked->pid, &program);
    bpf_map_update_elem(b->programs_fd, &key, &program, 0);
}
