/*
 * Whether the agent can enter a program, judged by its file: one dynamic
 * loader, one machine, one C library. Used by `unblock run` for the program it
 * starts and by the agent for those that a watched process executes.
 *
 * Nothing in the file is trusted. Signal-safe: no allocation, some 1.5 KB of
 * stack, only pread64 on the descriptor given.
 */
#ifndef UB_IMAGE_H
#define UB_IMAGE_H

#include "raw.h"

#include <elf.h>
#include <string.h>

enum ub_image {
    UB_IMAGE_FINE,      /* dynamic, our machine; or not known to be anything else */
    UB_IMAGE_STATIC,    /* no dynamic loader: LD_PRELOAD says nothing to it (its dynamic children may be entered) */
    UB_IMAGE_MACHINE,   /* 32-bit, or of another machine: its loader would complain about the agent */
    UB_IMAGE_LIBC,      /* another C library (musl): it would fail on an agent built for glibc */
    UB_IMAGE_SANITIZER, /* linked to the shared runtime of ASan or TSan, which must be the first library and aborts */
    UB_IMAGE_SECURE,    /* gains privileges: its loader ignores LD_PRELOAD. Only the caller can tell (see there) */
    UB_IMAGE_KINDS
};

#define UB_IMAGE_HEADERS_MAX 32u
#define UB_IMAGE_DYNAMIC_MAX 64u

static inline long ub_image_pread(int fd, void *buf, size_t size, uint64_t at)
{
    return ub_raw4(SYS_pread64, fd, buf, size, at);
}

/* Where in the file the loader would find address `at`; 0: nowhere. */
static inline uint64_t ub_image_offset(const Elf64_Phdr *ph, size_t count, uint64_t at)
{
    for (size_t i = 0; i < count; i++) {
        if (ph[i].p_type == PT_LOAD && at >= ph[i].p_vaddr && at - ph[i].p_vaddr < ph[i].p_filesz)
            return ph[i].p_offset + (at - ph[i].p_vaddr);
    }
    return 0;
}

static inline bool ub_image_is_sanitizer(const char *library)
{
    static const char *const runtime[] = {"libasan.so", "libtsan.so", "libhwasan.so", "libclang_rt.asan",
                                          "libclang_rt.tsan"};

    for (size_t i = 0; i < UB_ARRAY_LEN(runtime); i++) {
        if (strncmp(library, runtime[i], strlen(runtime[i])) == 0)
            return true;
    }
    return false;
}

static inline bool ub_image_needs_sanitizer(int fd, const Elf64_Phdr *ph, size_t count, const Elf64_Phdr *dynamic)
{
    Elf64_Dyn d[UB_IMAGE_DYNAMIC_MAX];
    size_t size = dynamic->p_filesz < sizeof(d) ? dynamic->p_filesz : sizeof(d);
    long n = ub_image_pread(fd, d, size, dynamic->p_offset);
    uint64_t strings = 0;

    n = n > 0 ? n / (long)sizeof(d[0]) : 0;
    for (long i = 0; i < n; i++) {
        if (d[i].d_tag == DT_STRTAB)
            strings = ub_image_offset(ph, count, d[i].d_un.d_ptr);
    }
    for (long i = 0; strings && i < n && d[i].d_tag != DT_NULL; i++) {
        char name[24] = "";

        if (d[i].d_tag == DT_NEEDED && ub_image_pread(fd, name, sizeof(name) - 1, strings + d[i].d_un.d_val) > 0 &&
            ub_image_is_sanitizer(name))
            return true;
    }
    return false;
}

/* The loader that the file asks for: glibc's for this machine, or whose? */
static inline enum ub_image ub_image_loader(int fd, const Elf64_Phdr *interp)
{
    static const char ours[] = "/ld-linux-x86-64.so.", musl[] = "/ld-musl";
    char loader[256] = "";
    size_t len = interp->p_filesz < sizeof(loader) ? interp->p_filesz : sizeof(loader) - 1;

    if (ub_image_pread(fd, loader, len, interp->p_offset) <= 0 || strstr(loader, ours))
        return UB_IMAGE_FINE;
    /* A loader under another name (nix, a patched build) is glibc's as a rule; musl and uClibc say who they are. */
    return strstr(loader, musl) || strstr(loader, "uClibc") || strstr(loader, "/linker64") ? UB_IMAGE_LIBC
                                                                                           : UB_IMAGE_FINE;
}

/* `eh`: the first bytes of the file, which are ELF's. Never UB_IMAGE_SECURE. */
static inline enum ub_image ub_image_look(int fd, const Elf64_Ehdr *eh)
{
    Elf64_Phdr ph[UB_IMAGE_HEADERS_MAX] = {0};
    const Elf64_Phdr *interp = NULL, *dynamic = NULL;
    size_t count = eh->e_phnum < UB_IMAGE_HEADERS_MAX ? eh->e_phnum : UB_IMAGE_HEADERS_MAX;
    enum ub_image image;
    long n;

    if (eh->e_ident[EI_CLASS] != ELFCLASS64 || eh->e_machine != EM_X86_64)
        return UB_IMAGE_MACHINE;
    if (eh->e_phentsize != sizeof(ph[0]))
        return UB_IMAGE_FINE;
    n = ub_image_pread(fd, ph, count * sizeof(ph[0]), eh->e_phoff);
    if (n < (long)sizeof(ph[0]))
        return UB_IMAGE_FINE;
    count = (size_t)n / sizeof(ph[0]);
    for (size_t i = 0; i < count; i++) {
        if (ph[i].p_type == PT_INTERP)
            interp = &ph[i];
        if (ph[i].p_type == PT_DYNAMIC)
            dynamic = &ph[i];
    }
    if (!interp)
        return UB_IMAGE_STATIC;
    image = ub_image_loader(fd, interp);
    if (image == UB_IMAGE_FINE && dynamic && ub_image_needs_sanitizer(fd, ph, count, dynamic))
        return UB_IMAGE_SANITIZER;
    return image;
}

/* The path after "#!" in the first line of `text`, as the kernel takes it. Its length, 0 when there is none. */
static inline size_t ub_image_interpreter(const char *text, const char **ret)
{
    if (strncmp(text, "#!", 2) != 0)
        return 0;
    *ret = text + 2 + strspn(text + 2, " \t");
    return strcspn(*ret, " \t\n");
}

/* Whether LD_PRELOAD does no harm there. */
static inline bool ub_image_may_preload(enum ub_image image)
{
    return image == UB_IMAGE_FINE || image == UB_IMAGE_STATIC;
}

#endif
