/*
 * GOT patching: which modules there are, which of their slots are a loop
 * library's, asyncio's or a lock's, and what is written into them.
 *
 * Longer than most files here: finding a module's tables, opening its pages and
 * writing its slots share one picture of the module, and none of it is of use alone.
 */
#include "patch_impl.h"

#include "loops/loop.h"
#include "module.h"
#include "offload/decide.h"
#include "offload/fiber.h"
#include "often.h"
#include "raw.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

#define PAGE 4096ul

/* A module that takes so many looks to be loaded (its constructor runs a loop?) waits for the next one to be. */
#define UB_UNSETTLED_MAX 64u

/* Another thread is not hooking for so many waits of a loop: it is left behind by a fork. */
#define UB_IN_VAIN_MAX 1000u

static const uint32_t nothing_to_count;
UB_OFTEN __attribute__((no_reorder, aligned(1024))) const uint32_t *ub_patch_modules =
    &nothing_to_count; /* with them it begins */
UB_OFTEN __attribute__((no_reorder)) uint32_t ub_patch_seen = 0;
bool ub_patch_is_late;

/* One copy of a library in the process. */
struct copy {
    uintptr_t base; /* load address; 0 and not `there`: none */
    uintptr_t size; /* from there to its end */
    const ElfW(Phdr) * phdr;
    uint16_t phdrs;
    bool there, seen;
};

static struct {
    uint32_t busy; /* one thread at a time; the others pass by */
    bool on, complete;
    bool libc;          /* attached: libc's names are hooked in the slots, too */
    uint32_t unsettled; /* times in a row */
    struct copy copy[UB_LOOPS_MAX][UB_LOOP_COPIES];
    uintptr_t low, high;        /* all copies lie between them */
    bool foreign[UB_LOOPS_MAX]; /* another module defines its names, too (a program that was linked to it statically) */
} patch;

/* A module's dynamic section, as far as it matters. */
struct module {
    uintptr_t base;
    const char *name; /* file name without folders */
    const ElfW(Phdr) * phdr;
    uint16_t phdrs;
    const ElfW(Dyn) * dynamic;
    const ElfW(Sym) * symbols;
    const char *strings;
    size_t strings_size;
    const uint32_t *gnu_hash;
    const ElfW(Rela) * rela, *plt;
    size_t relas, plts;
    bool bound; /* all of it, when it was loaded */
    uintptr_t relro, relro_end;
    bool opened; /* the pages between them are writable until close_relro() */
};

/* ---- modules --------------------------------------------------------------------- */

/* The loader has relocated these addresses in place, except where the section is read-only. */
static uintptr_t address_in(const struct module *m, uintptr_t value)
{
    return value < m->base ? value + m->base : value;
}

static void read_dynamic(struct module *m)
{
    bool plt_is_rela = false;
    size_t relative = 0;

    for (const ElfW(Dyn) *d = m->dynamic; d->d_tag != DT_NULL; d++) {
        uintptr_t at = address_in(m, d->d_un.d_ptr);

        switch (d->d_tag) {
        case DT_SYMTAB:
            m->symbols = (const void *)at;
            break;
        case DT_STRTAB:
            m->strings = (const void *)at;
            break;
        case DT_STRSZ:
            m->strings_size = d->d_un.d_val;
            break;
        case DT_GNU_HASH:
            m->gnu_hash = (const void *)at;
            break;
        case DT_RELA:
            m->rela = (const void *)at;
            break;
        case DT_RELASZ:
            m->relas = d->d_un.d_val / sizeof(ElfW(Rela));
            break;
        case DT_RELACOUNT:
            relative = d->d_un.d_val;
            break;
        case DT_JMPREL:
            m->plt = (const void *)at;
            break;
        case DT_PLTRELSZ:
            m->plts = d->d_un.d_val / sizeof(ElfW(Rela));
            break;
        case DT_BIND_NOW:
            m->bound = true;
            break;
        case DT_FLAGS:
            m->bound |= (d->d_un.d_val & DF_BIND_NOW) != 0;
            break;
        case DT_FLAGS_1:
            m->bound |= (d->d_un.d_val & DF_1_NOW) != 0;
            break;
        case DT_PLTREL:
            plt_is_rela = d->d_un.d_val == DT_RELA;
            break;
        }
    }
    if (!plt_is_rela)
        m->plts = 0;
    if (relative <= m->relas) { /* those come first, have no symbol, and may be ten times as many as the others */
        m->rela += relative;
        m->relas -= relative;
    }
}

static bool read_module(const struct dl_phdr_info *info, struct module *m)
{
    const char *slash = info->dlpi_name ? strrchr(info->dlpi_name, '/') : NULL;

    *m = (struct module){.base = info->dlpi_addr,
                         .name = slash             ? slash + 1
                                 : info->dlpi_name ? info->dlpi_name
                                                   : "",
                         .phdr = info->dlpi_phdr,
                         .phdrs = info->dlpi_phnum};
    for (uint16_t i = 0; i < m->phdrs; i++) {
        const ElfW(Phdr) *p = &m->phdr[i];

        if (p->p_type == PT_DYNAMIC)
            m->dynamic = (const void *)(m->base + p->p_vaddr);
        if (p->p_type == PT_GNU_RELRO) { /* as the loader rounds it */
            m->relro = (m->base + p->p_vaddr) & ~(PAGE - 1);
            m->relro_end = (m->base + p->p_vaddr + p->p_memsz) & ~(PAGE - 1);
        }
    }
    if (!m->dynamic || strncmp(m->name, "linux-vdso", 10) == 0 || strncmp(m->name, "ld-linux", 8) == 0)
        return false;
    read_dynamic(m);
    return m->symbols && m->strings;
}

/* Whether the loader is done with it: it may still be relocating a module that another thread has just asked for. */
static bool is_settled(const struct module *m)
{
    return !patch.complete || ub_module_name(m->dynamic) != NULL;
}

static uint32_t gnu_hash(const char *name)
{
    uint32_t h = 5381;

    while (*name)
        h = h * 33 + (uint8_t)*name++;
    return h;
}

/* The address of what the module defines under this name; NULL: nothing. */
static void *defined(const struct module *m, const char *name)
{
    uint32_t hash = gnu_hash(name), buckets, offset, bloom, i;
    const uint32_t *bucket, *chain;

    if (!m->gnu_hash)
        return NULL;
    buckets = m->gnu_hash[0];
    offset = m->gnu_hash[1];
    bloom = m->gnu_hash[2];
    bucket = m->gnu_hash + 4 + bloom * (sizeof(ElfW(Addr)) / sizeof(uint32_t));
    chain = bucket + buckets;
    i = buckets ? bucket[hash % buckets] : 0;
    if (i < offset || i == 0)
        return NULL;
    for (;; i++) {
        const ElfW(Sym) *s = &m->symbols[i];
        uint32_t h = chain[i - offset];

        if ((h | 1) == (hash | 1) && strcmp(m->strings + s->st_name, name) == 0) {
            uint32_t type = ELF64_ST_TYPE(s->st_info);

            return s->st_shndx != SHN_UNDEF && (type == STT_FUNC || type == STT_OBJECT)
                       ? (void *)(m->base + s->st_value)
                       : NULL;
        }
        if (h & 1)
            return NULL;
    }
}

static bool begins_with_one(const char *name, const char *const *list)
{
    for (; *list; list++) {
        if (strncmp(name, *list, strlen(*list)) == 0)
            return true;
    }
    return false;
}

/* The program has no name here. */
static bool is_file_of(const struct ub_loop_ops *ops, const char *name)
{
    return begins_with_one(name, ops->files) || (ops->program && !*name);
}

/* Whether calls that the module makes are hooked (those of some functions also when the library itself makes them). */
static bool is_caller(const struct ub_loop_ops *ops, const struct ub_loop_hook *hook, const char *name)
{
    if (ops->callers)
        return begins_with_one(name, ops->callers);
    if (is_file_of(ops, name))
        return hook->calls == UB_HOOK_ALL || hook->calls == UB_HOOK_OWN;
    return hook->calls != UB_HOOK_OWN;
}

static bool contains(const struct module *m, uintptr_t address)
{
    for (uint16_t i = 0; i < m->phdrs; i++) {
        const ElfW(Phdr) *p = &m->phdr[i];

        if (p->p_type == PT_LOAD && address - m->base - p->p_vaddr < p->p_memsz)
            return true;
    }
    return false;
}

/* ---- writing ---------------------------------------------------------------------- */

/* RELRO pages: those the loader has made read-only after relocating. Opened once a module, not once a slot. */
static bool open_relro(struct module *m)
{
    if (m->opened)
        return true;
    if (ub_process_quiet() != UB_QUIET_NOT ||
        ub_raw3(SYS_mprotect, m->relro, m->relro_end - m->relro, PROT_READ | PROT_WRITE) < 0)
        return false;
    return m->opened = true;
}

static void close_relro(struct module *m)
{
    if (m->opened)
        ub_raw3(SYS_mprotect, m->relro, m->relro_end - m->relro, PROT_READ);
    m->opened = false;
}

static bool may_write(struct module *m, void **at)
{
    return (uintptr_t)at < m->relro || (uintptr_t)at >= m->relro_end || open_relro(m);
}

/* Whatever it holds. */
static bool write_slot(struct module *m, void **at, void *value)
{
    if (!may_write(m, at))
        return false;
    __atomic_store_n(at, value, __ATOMIC_RELEASE);
    return true;
}

/* Only if it still holds `old`: the loader may just be binding it, on another thread. */
static void exchange_slot(struct module *m, void **at, void *old, void *value)
{
    if (may_write(m, at))
        __atomic_compare_exchange_n(at, &old, value, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
}

struct place {
    void **at;
    struct module module;
    bool found, writable;
};

static int find_place(struct dl_phdr_info *info, size_t size, void *data)
{
    struct place *place = data;
    uintptr_t at = (uintptr_t)place->at;

    for (uint16_t i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];

        if (p->p_type != PT_LOAD || at - info->dlpi_addr - p->p_vaddr >= p->p_memsz)
            continue;
        place->writable = p->p_flags & PF_W;
        place->found = read_module(info, &place->module);
        return 1;
    }
    return 0;
}

bool ub_patch_pointer(void **at, void *value)
{
    struct place place = {.at = at};
    struct iovec local = {&value, sizeof(value)}, remote = {at, sizeof(value)};

    dl_iterate_phdr(find_place, &place);
    if (place.found) {
        bool written = place.writable && write_slot(&place.module, at, value);

        close_relro(&place.module);
        return written;
    }
    /* Heap or stack, most likely; written in a way that cannot fault. */
    return ub_process_quiet() == UB_QUIET_NOT && ub_raw6(SYS_process_vm_writev, ub_raw0(SYS_getpid), (long)&local, 1,
                                                         (long)&remote, 1, 0) == (long)sizeof(value);
}

/* ---- copies of the libraries -------------------------------------------------------- */

static uintptr_t size_of(const struct module *m)
{
    uintptr_t size = 0;

    for (uint16_t i = 0; i < m->phdrs; i++) {
        const ElfW(Phdr) *p = &m->phdr[i];

        if (p->p_type == PT_LOAD && p->p_vaddr + p->p_memsz > size)
            size = p->p_vaddr + p->p_memsz;
    }
    return size;
}

static void take_copy(uint32_t loop, uint32_t n, const struct module *m)
{
    const struct ub_loop_ops *ops = ub_loops[loop];
    void *data[UB_LOOP_DATA_MAX] = {NULL};

    patch.copy[loop][n] = (struct copy){
        .base = m->base, .size = size_of(m), .phdr = m->phdr, .phdrs = m->phdrs, .there = true, .seen = true};
    if (patch.high == 0 || m->base < patch.low)
        patch.low = m->base;
    if (m->base + size_of(m) > patch.high)
        patch.high = m->base + size_of(m);
    for (uint32_t i = 0; i < ops->count; i++)
        ops->originals[i][n] = defined(m, ops->hooks[i].name);
    for (uint32_t i = 0; ops->data && ops->data[i] && i < UB_LOOP_DATA_MAX; i++)
        data[i] = defined(m, ops->data[i]);
    if (ops->found)
        ops->found(n, data);
}

static bool defines_some(const struct module *m, const struct ub_loop_ops *ops)
{
    return defined(m, ops->hooks[0].name) || defined(m, ops->hooks[1].name);
}

/* Some libraries come in several files; and what an interpreter calls its functions changes. */
static bool has_part(const struct module *m, const struct ub_loop_ops *ops)
{
    return ops->program ? defines_some(m, ops) : defined(m, ops->hooks[0].name) != NULL;
}

struct look {
    bool first;     /* at the modules that were there before us */
    bool back;      /* what was in the slots is put back, */
    bool but_waits; /* except that of wait calls: at those we come by to go on */
    bool unsettled; /* some module is still being loaded */
    uint32_t lazy;  /* slots met that are bound when they are first used */
    bool piece;     /* only what is left, until `until_ns` */
    uint64_t until_ns;
    bool some;       /* one of them is done */
    uint32_t module; /* met so far */
};

/* Where a running process is entered: modules that have been done, and the loader's counts then. */
static struct {
    unsigned long long adds, subs;
    uint32_t modules;
    uint32_t lazy; /* slots of theirs that are bound when they are first used */
} entered;

/*
 * Which of the lazily bound slots have a name that is hooked, numbered in the order of modules and tables: known
 * beforehand, so that entering a running process need not look at thousands of names while its loop waits.
 */
#define UB_LAZY_MAX 32768u /* those beyond are looked at each time */

static struct {
    unsigned long long adds, subs; /* the loader's counts: the modules are still the same */
    uint32_t modules, slots;       /* looked at so far */
    bool complete;
    uint64_t hooked[UB_LAZY_MAX / 64];
} lazy;

static int meet_library(struct dl_phdr_info *info, size_t size, void *data)
{
    struct look *look = data;
    struct module m;

    if (!read_module(info, &m))
        return 0;
    for (uint32_t loop = 0; loop < ub_loops_count; loop++) {
        struct copy *copy = patch.copy[loop];
        uint32_t n;

        if (!is_file_of(ub_loops[loop], m.name)) {
            patch.foreign[loop] |= look->first && defines_some(&m, ub_loops[loop]);
            continue;
        }
        for (n = 0; n < UB_LOOP_COPIES; n++) {
            if (copy[n].there && copy[n].base == m.base && copy[n].phdr == m.phdr)
                break;
        }
        if (n < UB_LOOP_COPIES) {
            copy[n].seen = true;
            continue;
        }
        if (!is_settled(&m)) {
            look->unsettled = true;
            continue;
        }
        if (!has_part(&m, ub_loops[loop]))
            continue;
        for (n = 0; n < UB_LOOP_COPIES && copy[n].there; n++)
            ;
        if (n < UB_LOOP_COPIES)
            take_copy(loop, n, &m);
        else if (ub_process->arena)
            __atomic_fetch_add(&ub_process->arena->h.copies_full, 1, __ATOMIC_RELAXED);
    }
    return 0;
}

/* Unloaded copies: no module that was bound to them is left either. */
static void forget_copies(void)
{
    for (uint32_t loop = 0; loop < ub_loops_count; loop++) {
        for (uint32_t n = 0; n < UB_LOOP_COPIES; n++) {
            if (!patch.copy[loop][n].seen)
                patch.copy[loop][n] = (struct copy){0};
        }
    }
}

/* ---- slots --------------------------------------------------------------------------- */

static bool needs(const struct module *m, const struct ub_loop_ops *ops)
{
    for (const ElfW(Dyn) *d = m->dynamic; d->d_tag != DT_NULL; d++) {
        if (d->d_tag == DT_NEEDED && is_file_of(ops, m->strings + d->d_un.d_val))
            return true;
    }
    return false;
}

/*
 * Which copy a slot is bound to; -1: none of them, or it cannot be told. One
 * that the loader has not bound yet still leads into the module itself. It will
 * be the only copy there is, for a module that was linked to it; with several,
 * for a module of the program's start, the first of them (the order in which they
 * were loaded is that of the search). Where that is not certain the slot is left
 * alone until the loader has bound it.
 */
static int copy_of(const struct module *m, uint32_t loop, uint32_t hook, uintptr_t value)
{
    const struct ub_loop_ops *ops = ub_loops[loop];
    int first = -1;
    bool several = false;

    for (uint32_t n = 0; n < UB_LOOP_COPIES; n++) {
        if (!patch.copy[loop][n].there || !ops->originals[hook][n])
            continue;
        if (value == (uintptr_t)ops->originals[hook][n])
            return (int)n;
        several = first >= 0;
        first = several ? first : (int)n;
    }
    if (first < 0 || patch.foreign[loop] || !contains(m, value) || (several && patch.complete))
        return -1;
    return several || ops->callers || needs(m, ops) || is_file_of(ops, m->name) ? first : -1;
}

/* The next one after `last`, NULL: the first. The library's own calls may have another one than those of others. */
static const struct ub_loop_hook *hook_named(const struct ub_loop_ops *ops, const char *name,
                                             const struct ub_loop_hook *last)
{
    if (strncmp(name, ops->prefix, strlen(ops->prefix)) != 0)
        return NULL;
    for (uint32_t i = last ? (uint32_t)(last - ops->hooks) + 1 : 0; i < ops->count; i++) {
        if (strcmp(name, ops->hooks[i].name) == 0)
            return &ops->hooks[i];
    }
    return NULL;
}

/* For calls of this module. */
static const struct ub_loop_hook *hook_for(const struct ub_loop_ops *ops, const char *name, const char *module)
{
    const struct ub_loop_hook *h = hook_named(ops, name, NULL);

    while (h && !is_caller(ops, h, module))
        h = hook_named(ops, name, h);
    return h;
}

static bool has_copy(uint32_t loop)
{
    for (uint32_t n = 0; n < UB_LOOP_COPIES; n++) {
        if (patch.copy[loop][n].there)
            return true;
    }
    return false;
}

/* What is to stand in a slot in place of `value`; NULL: leave it. */
static void *instead(const struct module *m, const char *name, uintptr_t value)
{
    void *hook = patch.libc ? ub_patch_libc_hook(name, value, contains(m, value)) : NULL;

    for (uint32_t loop = 0; !hook && loop < ub_loops_count; loop++) {
        const struct ub_loop_ops *ops = ub_loops[loop];
        const struct ub_loop_hook *h = has_copy(loop) ? hook_for(ops, name, m->name) : NULL;
        int copy;

        if (!h)
            continue;
        copy = copy_of(m, loop, (uint32_t)(h - ops->hooks), value);
        if (copy >= 0 && h->hook[copy]) /* another backend may hook what this one only calls */
            return h->hook[copy];
    }
    return hook;
}

/* What stood there before one of our hooks did; NULL: `value` is none. */
static void *before(const char *name, uintptr_t value)
{
    void *original = patch.libc ? ub_patch_libc_original(name, value) : NULL;

    for (uint32_t loop = 0; !original && loop < ub_loops_count; loop++) {
        const struct ub_loop_ops *ops = ub_loops[loop];
        const struct ub_loop_hook *h = NULL;

        while ((h = hook_named(ops, name, h)) != NULL) {
            for (uint32_t n = 0; h->calls != UB_HOOK_STAYS && n < UB_LOOP_COPIES; n++) {
                if (value == (uintptr_t)h->hook[n])
                    original = ops->originals[h - ops->hooks][n];
            }
        }
    }
    return original;
}

bool ub_patch_library_at(uintptr_t address, uint32_t *ret_loop, uint32_t *ret_copy)
{
    if (address - patch.low >= patch.high - patch.low)
        return false;
    for (uint32_t loop = 0; loop < ub_loops_count; loop++) {
        for (uint32_t n = 0; n < UB_LOOP_COPIES; n++) {
            if (patch.copy[loop][n].there && address - patch.copy[loop][n].base < patch.copy[loop][n].size) {
                *ret_loop = loop;
                *ret_copy = n;
                return true;
            }
        }
    }
    return false;
}

static bool is_in_library(uintptr_t value)
{
    uint32_t loop, copy;

    return ub_patch_library_at(value, &loop, &copy);
}

/*
 * By what is in the slot. A program has thousands of them; their names lie all over its memory, and looking at each
 * took ten times as long as this.
 */
static bool may_matter(const struct module *m, uintptr_t value, bool may_be_unbound, bool back)
{
    if (back)
        return ub_module_is_own(value);
    return (patch.libc && ub_patch_libc_is_function(value)) || is_in_library(value) ||
           (may_be_unbound && contains(m, value));
}

/* With those of locks, whether they are wanted this time or not: it is kept for the next time. */
static bool is_hooked_name(const char *name)
{
    if (ub_patch_libc_knows(name))
        return true;
    for (uint32_t loop = 0; loop < ub_loops_and_looks; loop++) {
        if (hook_named(ub_loops[loop], name, NULL))
            return true;
    }
    return false;
}

struct learn {
    uint32_t module;
    uint64_t until_ns;
};

static int learn_module(struct dl_phdr_info *info, size_t size, void *data)
{
    struct learn *learn = data;
    struct module m;

    if (learn->module == 0 && (lazy.adds != info->dlpi_adds || lazy.subs != info->dlpi_subs)) {
        memset(&lazy, 0, sizeof(lazy));
        lazy.adds = info->dlpi_adds;
        lazy.subs = info->dlpi_subs;
    }
    if (learn->module++ < lazy.modules)
        return 0;
    lazy.modules++;
    if (!read_module(info, &m) || m.bound)
        return 0;
    for (size_t i = 0; i < m.plts && lazy.slots + i < UB_LAZY_MAX; i++) {
        const char *name = m.strings + m.symbols[ELF64_R_SYM(m.plt[i].r_info)].st_name;

        if (is_hooked_name(name))
            lazy.hooked[(lazy.slots + i) / 64] |= 1ull << ((lazy.slots + i) % 64);
    }
    lazy.slots += m.plts;
    return ub_clock_monotonic_ns() > learn->until_ns;
}

bool ub_patch_learn(uint64_t until_ns)
{
    struct learn learn = {.until_ns = until_ns};
    uint32_t idle = 0;

    if (!__atomic_compare_exchange_n(&patch.busy, &idle, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return true;
    lazy.complete = dl_iterate_phdr(learn_module, &learn) == 0;
    ub_store_release(&patch.busy, 0);
    return lazy.complete;
}

/* Slot `i` of the module's table, whose first one has the number `first`. */
static bool is_known_to_be_nobodys(const struct dl_phdr_info *info, uint32_t first, size_t i)
{
    return lazy.complete && lazy.adds == info->dlpi_adds && lazy.subs == info->dlpi_subs && first + i < lazy.slots &&
           first + i < UB_LAZY_MAX && !(lazy.hooked[(first + i) / 64] >> ((first + i) % 64) & 1);
}

/* By whose hooks a loop comes to us. */
static bool is_wait_name(const char *name)
{
    static const char *const waits[] = {"epoll_", "poll",     "__poll",  "ppoll",  "__ppoll",
                                        "select", "__select", "pselect", "syscall"};

    for (uint32_t i = 0; i < UB_ARRAY_LEN(waits); i++) {
        if (strncmp(name, waits[i], strlen(waits[i])) == 0)
            return true;
    }
    return false;
}

static void patch_slot(struct module *m, const ElfW(Rela) * rela, bool may_be_unbound, const struct look *look)
{
    void **at = (void **)(m->base + rela->r_offset), *old = __atomic_load_n(at, __ATOMIC_RELAXED), *value;
    const char *name;

    if (!may_matter(m, (uintptr_t)old, may_be_unbound, look->back))
        return;
    name = m->strings + m->symbols[ELF64_R_SYM(rela->r_info)].st_name;
    if (look->but_waits && is_wait_name(name))
        return;
    value = look->back ? before(name, (uintptr_t)old) : instead(m, name, (uintptr_t)old);
    if (value)
        exchange_slot(m, at, old, value);
}

static void patch_table(struct module *m, const ElfW(Rela) * rela, size_t count, const struct look *look)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t type = ELF64_R_TYPE(rela[i].r_info);

        if (type == R_X86_64_JUMP_SLOT || type == R_X86_64_GLOB_DAT)
            patch_slot(m, &rela[i], type == R_X86_64_JUMP_SLOT && !m->bound, look);
    }
}

static void patch_lazy(struct module *m, const struct dl_phdr_info *info, struct look *look, uint32_t first)
{
    for (size_t i = 0; i < m->plts; i++) {
        if (ELF64_R_TYPE(m->plt[i].r_info) == R_X86_64_JUMP_SLOT)
            patch_slot(m, &m->plt[i], !is_known_to_be_nobodys(info, first, i), look);
    }
}

/* Any library in there at all, whose callers the module may be one of? */
static bool any_copy(const struct module *m)
{
    for (uint32_t loop = 0; loop < ub_loops_count; loop++) {
        const struct ub_loop_ops *ops = ub_loops[loop];

        for (uint32_t n = 0; n < UB_LOOP_COPIES; n++) {
            if (patch.copy[loop][n].there && (!ops->callers || begins_with_one(m->name, ops->callers)))
                return true;
        }
    }
    return false;
}

bool ub_patch_runtime, ub_patch_stacks;
int (*ub_patch_python)(void);
struct ub_fiber_exceptions *(*ub_runtime_exceptions)(void);

/* Interpreters, virtual machines, collectors: by a function that each of them exports, wherever it is linked to. */
static void look_for_runtime(const struct module *m)
{
    static const char told[] = "__asan_init"; /* sanitizers: they take locks past our hooks */
    static const char *const names[] = {
        "Py_Initialize",
        "lua_newstate",
        "perl_alloc",
        "ruby_init",
        "Tcl_CreateInterp",
        "GC_init",
        "JNI_CreateJavaVM",
        "mono_jit_init",
        "JS_NewContext",
        "scm_init_guile",
        "php_embed_init",
        "coreclr_initialize",
        "_ZN2v82V810InitializeEi",
        told,
        "__tsan_init",
    };
    void *exceptions = defined(m, "__cxa_get_globals"), *python;

    for (uint32_t i = 0; i < UB_ARRAY_LEN(names); i++) {
        if (!defined(m, names[i]) || (names[i] == told && ub_fiber_tells()))
            continue;
        python = i == 0 && !patch.complete ? defined(m, "Py_IsInitialized") : NULL; /* later ones may be unloaded */
        if (python)
            memcpy(&ub_patch_python, &python, sizeof(python));
        else
            ub_patch_runtime = true;
        ub_patch_stacks |= i > 0;
    }
    ub_patch_stacks |= defined(m, "PyInit__greenlet") != NULL; /* it copies parts of stacks to where they were */
    if (exceptions)
        memcpy(&ub_runtime_exceptions, &exceptions, sizeof(exceptions));
}

static int patch_module(struct dl_phdr_info *info, size_t size, void *data)
{
    struct look *look = data;
    struct module m;
    uint32_t first;

    if (look->piece && look->module == 0 && (entered.adds != info->dlpi_adds || entered.subs != info->dlpi_subs)) {
        entered.modules = 0;
        entered.adds = info->dlpi_adds;
        entered.subs = info->dlpi_subs;
    }
    look->module++;
    if (look->piece && look->module <= entered.modules) { /* not even looked at: with many modules that took the time */
        look->lazy = entered.lazy;
        return 0;
    }
    if (!read_module(info, &m))
        return 0;
    if (look->piece && look->some && ub_clock_monotonic_ns() > look->until_ns)
        return 1;
    look->some = true;
    first = look->lazy;
    look->lazy += m.bound ? 0 : (uint32_t)m.plts;
    entered.modules = look->module;
    entered.lazy = look->lazy;
    if (m.dynamic == _DYNAMIC || (!patch.libc && !look->back && !any_copy(&m)) ||
        (patch.libc && strncmp(m.name, "libc.so.", 8) == 0))
        return 0;
    if (!is_settled(&m)) {
        look->unsettled = true;
        return 0;
    }
    if (ub_offload_mode != UB_OFFLOAD_OFF)
        look_for_runtime(&m);
    if (m.bound)
        patch_table(&m, m.plt, m.plts, look);
    else
        patch_lazy(&m, info, look, first);
    patch_table(&m, m.rela, m.relas, look);
    close_relro(&m);
    return 0;
}

static void patch_others(bool back)
{
    for (uint32_t loop = 0; loop < ub_loops_count; loop++) {
        for (uint32_t n = 0; ub_loops[loop]->other && n < UB_LOOP_COPIES; n++) {
            if (patch.copy[loop][n].there)
                ub_loops[loop]->other(n, back);
        }
    }
}

static void meet_libraries(struct look *look)
{
    for (uint32_t loop = 0; loop < ub_loops_count; loop++) {
        for (uint32_t n = 0; n < UB_LOOP_COPIES; n++)
            patch.copy[loop][n].seen = false;
    }
    dl_iterate_phdr(meet_library, look);
    forget_copies();
}

/* True: some module is still being loaded. */
static bool look_around(bool first)
{
    struct look look = {.first = first};

    meet_libraries(&look);
    dl_iterate_phdr(patch_module, &look);
    patch_others(false);
    return look.unsettled;
}

/*
 * The loader's own count of modules: a private variable of its, which is read
 * only if it looks as it has since 2005. Otherwise libraries that are loaded
 * late are noticed where a loop makes its descriptor.
 */
static void find_counter(void)
{
    struct {
        const struct link_map *loaded;
        uint32_t count;
    } const *spaces = dlsym(RTLD_DEFAULT, "_rtld_global");
    const struct r_debug *debug = dlsym(RTLD_DEFAULT, "_r_debug");
    uint32_t count = 0;

    if (!spaces || !debug || spaces->loaded != debug->r_map)
        return;
    for (const struct link_map *l = debug->r_map; l; l = l->l_next)
        count++;
    if (spaces->count == count)
        ub_patch_modules = &spaces->count;
}

void ub_patch_start(void)
{
    patch.on = true;
    find_counter();
    ub_store_relaxed(&ub_patch_seen, ub_load_relaxed(ub_patch_modules));
    look_around(true);
    patch.complete = true;
}

void ub_patch_again(void)
{
    uint32_t idle = 0, count;

    if (!patch.on || !__atomic_compare_exchange_n(&patch.busy, &idle, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return;
    count = ub_load_relaxed(ub_patch_modules);
    patch.unsettled = look_around(false) ? patch.unsettled + 1 : 0;
    if (patch.unsettled % UB_UNSETTLED_MAX == 0)
        ub_store_relaxed(&ub_patch_seen, count);
    ub_store_release(&patch.busy, 0);
}

/* True: nothing is left to do. */
static bool patch_piece(uint64_t until_ns)
{
    struct look look = {.piece = true, .until_ns = until_ns};
    uint32_t count = ub_load_relaxed(ub_patch_modules);

    if (dl_iterate_phdr(patch_module, &look) != 0)
        return false;
    patch.unsettled = look.unsettled;
    if (patch.unsettled) /* the next wait looks again */
        ub_store_relaxed(&ub_patch_seen, count - 1);
    return true;
}

bool ub_patch_attach(bool libc, uint64_t until_ns)
{
    struct look look = {.first = true};
    uint32_t idle = 0;
    bool done;

    if (!__atomic_compare_exchange_n(&patch.busy, &idle, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return true;
    patch.libc |= libc;
    patch.on = patch.complete = ub_patch_is_late = true;
    entered.modules = 0;
    find_counter();
    /* Waits that are hooked from now on leave what is not done yet to us. */
    ub_store_relaxed(&ub_patch_seen, ub_load_relaxed(ub_patch_modules));
    meet_libraries(&look);
    patch_others(false);
    done = patch_piece(until_ns);
    ub_store_release(&patch.busy, 0);
    return done;
}

bool ub_patch_attach_more(uint64_t until_ns)
{
    uint32_t idle = 0;
    bool done;

    if (!patch.on || !__atomic_compare_exchange_n(&patch.busy, &idle, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return true;
    done = patch_piece(until_ns);
    ub_store_release(&patch.busy, 0);
    return done;
}

bool ub_patch_detach(bool first, uint64_t until_ns)
{
    static uint32_t in_vain;
    struct look look = {.back = true, .but_waits = true, .piece = true, .until_ns = until_ns};
    uint32_t idle = 0;
    bool done;

    if (first) {
        patch.on = false;
        in_vain = 0;
    }
    if (!__atomic_compare_exchange_n(&patch.busy, &idle, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return ++in_vain > UB_IN_VAIN_MAX;
    if (first || in_vain) /* where another thread was just hooking, too */
        entered.modules = 0;
    in_vain = 0;
    done = dl_iterate_phdr(patch_module, &look) == 0;
    if (done) { /* the waits, all at once: whose is put back does not come by any more */
        look = (struct look){.back = true};
        dl_iterate_phdr(patch_module, &look);
        patch_others(true);
        ub_store_relaxed(&ub_patch_seen, ub_load_relaxed(ub_patch_modules));
    }
    ub_store_release(&patch.busy, 0);
    return done;
}
