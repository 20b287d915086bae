#include "module.h"

#include <dlfcn.h>
#include <link.h>
#include <string.h>

/* The linker's: where this library begins and ends. */
extern const char __ehdr_start[] __attribute__((visibility("hidden")));
extern const char _end[] __attribute__((visibility("hidden")));

extern __typeof__(_dl_find_object) _dl_find_object __attribute__((weak));

const char *ub_module_name(const void *address)
{
    struct dl_find_object found;

    if (!_dl_find_object || _dl_find_object((void *)address, &found) != 0)
        return NULL;
    return found.dlfo_link_map->l_name;
}

static const char *basename_of(const void *address)
{
    const char *name = ub_module_name(address);
    const char *slash = name ? strrchr(name, '/') : NULL;

    return slash ? slash + 1 : name;
}

bool ub_module_is_own(uintptr_t address)
{
    return address - (uintptr_t)__ehdr_start < (uintptr_t)(_end - __ehdr_start);
}

bool ub_module_is_libc(const void *address)
{
    const char *name = basename_of(address);

    return name && strncmp(name, "libc.so", 7) == 0;
}

bool ub_module_is_loop_library(const void *address)
{
    static const char *const library[] = {
        "libglib-2.0.", "libuv.",      "libevent-",          "libevent_core-",
        "libev.",       "libsystemd.", "libsystemd-shared-", "libQt5Core.",
        "libQt6Core.",  "libtevent.",  "libverto",           "libwayland-server.",
        "libtcl",
    };
    const char *name = basename_of(address);

    for (size_t i = 0; name && i < UB_ARRAY_LEN(library); i++) {
        if (strncmp(name, library[i], strlen(library[i])) == 0)
            return true;
    }
    return false;
}

bool ub_module_is_injected(const void *address)
{
    static const char folder[] = "/proc/self/fd/";
    Dl_info info;

    return dladdr(address, &info) != 0 && info.dli_fname && strncmp(info.dli_fname, folder, sizeof(folder) - 1) == 0;
}
