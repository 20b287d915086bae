/*
 * libc's names after attaching: the loader binds nothing to an agent that came
 * late, so each module's slots are pointed at the hooks, and back at the end.
 *
 * Only slots that lead to libc's own function are taken. One that leads
 * elsewhere belongs to somebody who stands in for libc there (a preloaded
 * library, the program itself), and stays as it is.
 */
#include "patch_impl.h"

#include "real.h"

#include <dlfcn.h>
#include <string.h>

#define BUCKETS 1024u /* more than twice the names: a chain is an entry or two */

struct name {
    const char *name;
    void *hook;
    void *libc;    /* its function, NULL: this libc has none */
    bool as_usual; /* nobody else defines the name: the loader would bind it to libc's */
};

/*
 * Addresses of hooks, whatever their types; -Bsymbolic makes them ours. What
 * executes programs is left out: it looks after our entry in LD_PRELOAD, and
 * there is none.
 */
#define UB_HOOK(type, name, params, args) extern const char hook_##name[] __asm__(#name);
#define UB_EXPORT(name)
#include "hooks.def"
#undef UB_HOOK
extern const char hook_syscall[] __asm__("syscall");

static struct name names[] = {
#define UB_HOOK(type, name, params, args) {#name, (void *)hook_##name, NULL, false},
#include "hooks.def"
#undef UB_EXPORT
#undef UB_HOOK
    {"syscall", (void *)hook_syscall, NULL, false},
};

static uint16_t bucket[BUCKETS];    /* one more than the place in `names`; 0: free */
static uintptr_t function[BUCKETS]; /* libc's, by address; 0: free */
static bool prepared;

static uint32_t hash(const char *name)
{
    uint32_t h = 5381;

    while (*name)
        h = h * 33 + (uint8_t)*name++;
    return h % BUCKETS;
}

static uint32_t hash_address(uintptr_t at)
{
    return (uint32_t)(at * 0x9e3779b97f4a7c15ul >> 54);
}

static void keep_address(uintptr_t at)
{
    uint32_t b = hash_address(at);

    while (function[b] && function[b] != at)
        b = (b + 1) % BUCKETS;
    function[b] = at;
}

bool ub_patch_libc_is_function(uintptr_t value)
{
    for (uint32_t b = hash_address(value); function[b]; b = (b + 1) % BUCKETS) {
        if (function[b] == value)
            return true;
    }
    return false;
}

static bool executes(const char *name)
{
    return strncmp(name, "exec", 4) == 0 || strncmp(name, "fexec", 5) == 0 || strncmp(name, "posix_spawn", 11) == 0;
}

static struct name *find(const char *name)
{
    if (!prepared)
        return NULL;
    for (uint32_t b = hash(name); bucket[b]; b = (b + 1) % BUCKETS) {
        if (strcmp(names[bucket[b] - 1].name, name) == 0)
            return &names[bucket[b] - 1];
    }
    return NULL;
}

bool ub_patch_libc_knows(const char *name)
{
    return find(name) != NULL;
}

/*
 * Not when slots are written: that happens under one lock of the loader's, and dlsym takes another. What a name means
 * to everybody is asked of the program: for us (RTLD_DEFAULT) each means our own hook, as we are linked -Bsymbolic.
 */
void ub_patch_libc_prepare(void *libc, void *program)
{
    _Static_assert(UB_ARRAY_LEN(names) * 2 < BUCKETS && BUCKETS == 1u << (64 - 54), "short chains");

    for (size_t i = 0; i < UB_ARRAY_LEN(names) && !prepared; i++) {
        uint32_t b = hash(names[i].name);

        if (executes(names[i].name))
            continue;
        names[i].libc = dlsym(libc, names[i].name);
        names[i].as_usual = names[i].libc && dlsym(program, names[i].name) == names[i].libc;
        if (names[i].libc)
            keep_address((uintptr_t)names[i].libc);
        while (bucket[b])
            b = (b + 1) % BUCKETS;
        bucket[b] = (uint16_t)(i + 1);
    }
    prepared = true;
}

void *ub_patch_libc_hook(const char *name, uintptr_t value, bool unbound)
{
    const struct name *n = find(name);

    if (!n || !n->libc)
        return NULL;
    if (value == (uintptr_t)n->libc)
        return n->hook;
    return unbound && n->as_usual ? n->hook : NULL;
}

void *ub_patch_libc_original(const char *name, uintptr_t value)
{
    const struct name *n = find(name);

    return n && value == (uintptr_t)n->hook ? n->libc : NULL;
}
