/*
 * Which interpreter a process runs, and where: the version, its layout, the
 * address of _PyRuntime; and whether what is there looks as it should.
 */
#include "python_impl.h"

#include "pidns.h"

#include "symbols.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define PTHREAD_TID 720u /* glibc on x86-64, where its description for debuggers is missing */

static const struct ub_python_layout *const layouts[] = {
    &ub_python_3_8, &ub_python_3_9, &ub_python_3_10, &ub_python_3_11, &ub_python_3_12, &ub_python_3_13, &ub_python_3_14,
};

/* ---- which ----------------------------------------------------------- */

/* The number in "libpython3.11.so.1.0", "python3.11"; 0. */
static uint32_t version_in_name(const char *name)
{
    const char *p = strstr(name, "python");
    unsigned major, minor;

    return p && sscanf(p + 6, "%1u.%2u", &major, &minor) == 2 ? major << 8 | minor : 0;
}

/* Py_Version (since 3.11) is right whatever the file is called. */
static uint32_t version_of(struct ub_elf *elf)
{
    uint64_t vaddr, size;
    const void *image;
    uint32_t value;

    if (ub_symbols_lookup_data(elf, "Py_Version", &vaddr, &size) == 0 &&
        (image = ub_elf_image(elf, vaddr, sizeof(value), true)) != NULL) {
        memcpy(&value, image, sizeof(value));
        return value >> 16;
    }
    return version_in_name(elf->basename);
}

/*
 * Pythons with the runtime in a library are found by its name, static ones by
 * the program's; a program that has Python linked into it is the first file.
 */
static const struct ub_map *find_runtime(const struct ub_maps *maps, uint64_t *ret_vaddr, uint32_t *ret_version)
{
    const struct ub_elf *last = NULL;
    bool first = true;

    for (uint32_t i = 0; i < maps->count; i++) {
        const struct ub_map *map = &maps->map[i];
        bool program = first && map->elf;
        uint64_t size;

        if (!map->elf || map->elf == last)
            continue;
        last = map->elf;
        first = false;
        if (!program && strncmp(map->elf->basename, "libpython", 9) != 0 &&
            strncmp(map->elf->basename, "python", 6) != 0)
            continue;
        if (ub_symbols_lookup_data(map->elf, "_PyRuntime", ret_vaddr, &size) == 0) {
            *ret_version = version_of(map->elf);
            return map;
        }
        if (ub_symbols_lookup_data(map->elf, "_PyThreadState_Current", ret_vaddr, &size) == 0)
            *ret_version = version_of(map->elf); /* 2.7 to 3.6 */
    }
    return NULL;
}

/* ---- 3.13 and later describe themselves ------------------------------ */

/* _Py_DebugOffsets of 3.13; only what is used has a name. */
struct offsets_3_13 {
    char cookie[8];
    uint64_t version;
    uint64_t free_threaded;
    uint64_t runtime_size, finalizing, interpreters_head;
    uint64_t interp_size, id, next, threads_head, gc, imports_modules, sysdict, builtins, ceval_gil;
    uint64_t gil, gil_enabled, gil_locked, gil_holder;
    uint64_t thread_size, prev, thread_next, interp, current_frame, thread_id, native_thread_id, chunk, status;
    uint64_t frame_size, previous, executable, instr_ptr, localsplus, owner;
    uint64_t code_size, filename, name, qualname, linetable, firstlineno, argcount, names, kinds, adaptive;
    uint64_t objects[27];
    uint64_t gc_size, gc_collecting;
};

static int is_of(const char cookie[8], uint64_t version, uint64_t free_threaded, const struct ub_python_layout *l)
{
    if (memcmp(cookie, "xdebugpy", 8) != 0 || version >> 16 != l->version)
        return -EBADMSG;
    return free_threaded ? -ENOTSUP : 0;
}

/* What both versions tell by the same names, at places of their own. */
#define DESCRIBE_COMMON(o, l)                                                                                          \
    do {                                                                                                               \
        (l)->runtime_interpreters = (uint32_t)(o)->interpreters_head;                                                  \
        (l)->interp_next = (uint32_t)(o)->next;                                                                        \
        (l)->interp_threads = (uint32_t)(o)->threads_head;                                                             \
        (l)->interp_modules = (uint32_t)(o)->imports_modules;                                                          \
        (l)->interp_gil = (uint32_t)(o)->ceval_gil;                                                                    \
        (l)->thread_next = (uint32_t)(o)->thread_next;                                                                 \
        (l)->thread_interp = (uint32_t)(o)->interp;                                                                    \
        (l)->thread_frame = (uint32_t)(o)->current_frame;                                                              \
        (l)->thread_pthread = (uint32_t)(o)->thread_id;                                                                \
        (l)->thread_tid = (uint32_t)(o)->native_thread_id;                                                             \
        (l)->frame_back = (uint32_t)(o)->previous;                                                                     \
        (l)->frame_code = (uint32_t)(o)->executable;                                                                   \
        (l)->frame_instruction = (uint32_t)(o)->instr_ptr;                                                             \
        (l)->frame_owner = (uint32_t)(o)->owner;                                                                       \
        (l)->code_filename = (uint32_t)(o)->filename;                                                                  \
        (l)->code_name = (uint32_t)(o)->name;                                                                          \
        (l)->code_qualname = (uint32_t)(o)->qualname;                                                                  \
        (l)->code_lines = (uint32_t)(o)->linetable;                                                                    \
        (l)->code_first_line = (uint32_t)(o)->firstlineno;                                                             \
        (l)->code_bytes = (uint32_t)(o)->adaptive;                                                                     \
        (l)->interp_gc_collecting = (uint32_t)((o)->gc + (o)->gc_collecting);                                          \
    } while (0)

static int describe_3_13(const struct offsets_3_13 *o, struct ub_python_layout *l)
{
    int r = is_of(o->cookie, o->version, o->free_threaded, l);

    if (r < 0)
        return r;
    DESCRIBE_COMMON(o, l);
    return 0;
}

/* _Py_DebugOffsets of 3.14. */
struct offsets_3_14 {
    char cookie[8];
    uint64_t version;
    uint64_t free_threaded;
    uint64_t runtime_size, finalizing, interpreters_head;
    uint64_t interp_size, id, next, threads_head, threads_main, gc, imports_modules, sysdict, builtins, ceval_gil;
    uint64_t gil, gil_enabled, gil_locked, gil_holder, code_generation, tlbc_generation;
    uint64_t thread_size, prev, thread_next, interp, current_frame, thread_id, native_thread_id, chunk, status;
    uint64_t frame_size, previous, executable, instr_ptr, localsplus, owner, stackpointer, tlbc_index;
    uint64_t code_size, filename, name, qualname, linetable, firstlineno, argcount, names, kinds, adaptive, tlbc;
    uint64_t object[2], type[4], tuple[3], list[3], set[4], dict[3], number[2], integer[3];
    uint64_t bytes_size, bytes_length, bytes_value;
    uint64_t string_size, string_state, string_length, string_ascii;
    uint64_t gc_size, gc_collecting;
    uint64_t generator_size, generator_name, generator_frame, generator_state;
};

static int describe_3_14(const struct offsets_3_14 *o, struct ub_python_layout *l)
{
    int r = is_of(o->cookie, o->version, o->free_threaded, l);

    if (r < 0)
        return r;
    DESCRIBE_COMMON(o, l);
    l->gil_locked = (uint32_t)(o->gil_locked - o->gil);
    l->gil_last_holder = (uint32_t)(o->gil_holder - o->gil);
    l->frame_locals = (uint32_t)o->localsplus;
    l->frame_size = (uint32_t)(o->localsplus > 80 ? o->localsplus : 80);
    l->code_flags = (uint32_t)o->argcount - 4; /* which it stands before since 3.11 */
    l->code_size = (uint32_t)(o->code_size < 256 ? o->code_size : 256);
    l->bytes_data = (uint32_t)o->bytes_value;
    l->string_length = (uint32_t)o->string_length;
    l->string_state = (uint32_t)o->string_state;
    l->string_ascii = (uint32_t)o->string_ascii;
    l->string_compact = (uint32_t)o->string_ascii + 16; /* two words more */
    l->generator_frame = (uint32_t)o->generator_frame;
    l->generator_state = (uint32_t)o->generator_state;
    return 0;
}

/* ---- what it must look like ------------------------------------------ */

/* A frame's fields are read from a buffer of this layout's sizes: none may lie outside. */
static bool is_sane(const struct ub_python_layout *l)
{
    return l->frame_size <= 512 && (l->frame_owner == UB_PYTHON_NONE || l->frame_owner < 128) &&
           (l->frame_entry == UB_PYTHON_NONE || l->frame_entry < 128) && l->frame_size >= 80 && l->code_size <= 256;
}

static bool is_thread(const struct ub_python *py, pid_t tid)
{
    char path[64];

    if (py->foreign)
        return ub_pidns_thread(py->pid, tid) > 0;
    snprintf(path, sizeof(path), "/proc/%d/task/%d", (int)py->pid, (int)tid);
    return tid > 0 && access(path, F_OK) == 0;
}

/*
 * Some thread's state must point back to its interpreter and be of a thread
 * that exists. 0; -EAGAIN: there is none yet; -EBADMSG.
 */
static int self_check(const struct ub_python *py)
{
    const struct ub_python_layout *l = &py->layout;
    uint64_t interp, state, back;

    if (!is_sane(l) || !ub_python_read_pointer(py, py->runtime + l->runtime_interpreters, &interp))
        return -EBADMSG;
    if (!interp)
        return -EAGAIN;
    if (!ub_python_read_pointer(py, interp + l->interp_threads, &state))
        return -EBADMSG;
    if (!state)
        return -EAGAIN;
    for (int i = 0; state && i < 16; i++) {
        if (!ub_python_read_pointer(py, state + l->thread_interp, &back) || back != interp)
            return -EBADMSG;
        if (is_thread(py, ub_python_thread_tid(py, state)))
            return 0;
        if (!ub_python_read_pointer(py, state + l->thread_next, &state))
            return -EBADMSG;
    }
    return -EBADMSG;
}

/* glibc describes its struct pthread for debuggers: {bits, elements, offset}. */
static uint32_t tid_in_pthread(const struct ub_maps *maps)
{
    for (uint32_t i = 0; i < maps->count; i++) {
        struct ub_elf *elf = maps->map[i].elf;
        uint64_t vaddr, size;
        const void *image;
        uint32_t what[3];

        if (!elf || (i > 0 && elf == maps->map[i - 1].elf) ||
            (strncmp(elf->basename, "libc.so", 7) != 0 && strncmp(elf->basename, "libpthread", 10) != 0) ||
            ub_symbols_lookup_data(elf, "_thread_db_pthread_tid", &vaddr, &size) < 0)
            continue;
        image = ub_elf_image(elf, vaddr, sizeof(what), true);
        if (!image)
            continue;
        memcpy(what, image, sizeof(what));
        if (what[0] == 32 && what[2] < 4096)
            return what[2];
    }
    return PTHREAD_TID;
}

int ub_python_settle(struct ub_python *py, uint32_t version)
{
    struct offsets_3_13 offsets;
    struct offsets_3_14 newer;

    for (size_t i = 0; i < UB_ARRAY_LEN(layouts); i++) {
        if (layouts[i]->version != version)
            continue;
        py->layout = *layouts[i];
        if (version < 0x030d)
            return 0;
        if (version > 0x030d)
            return ub_python_read(py, py->runtime, &newer, sizeof(newer)) ? describe_3_14(&newer, &py->layout)
                                                                          : -EBADMSG;
        if (!ub_python_read(py, py->runtime, &offsets, sizeof(offsets)))
            return -EBADMSG;
        return describe_3_13(&offsets, &py->layout);
    }
    return -ENOTSUP;
}

int ub_python_find(pid_t pid, const struct ub_maps *maps, struct ub_python **ret, uint32_t *ret_version)
{
    struct ub_python *py;
    const struct ub_map *map;
    uint64_t vaddr;
    int r;

    *ret_version = 0;
    map = find_runtime(maps, &vaddr, ret_version);
    if (!map)
        return *ret_version ? -ENOTSUP : -ENOENT;
    py = calloc(1, sizeof(*py));
    if (!py)
        return -ENOMEM;
    py->pid = pid;
    py->foreign = ub_pidns_is_foreign(pid);
    py->elf = map->elf;
    py->bias = map->bias;
    py->runtime = map->bias + vaddr;
    r = ub_python_settle(py, *ret_version);
    if (r == 0 && py->layout.thread_tid == UB_PYTHON_NONE)
        py->tid_in_pthread = tid_in_pthread(maps);
    if (r == 0)
        r = self_check(py);
    if (r < 0) {
        free(py);
        return r;
    }
    *ret = py;
    return 0;
}

void ub_python_free(struct ub_python *py)
{
    while (py) {
        struct ub_python *older = py->older;

        ub_python_codes_free(py);
        free(py);
        py = older;
    }
}

static bool still_there(const struct ub_python *py, const struct ub_maps *maps)
{
    for (uint32_t i = 0; i < maps->count; i++) {
        if (maps->map[i].elf == py->elf && maps->map[i].bias == py->bias)
            return true;
    }
    return false;
}

int ub_python_update(pid_t pid, const struct ub_maps *maps, struct ub_python **py, uint32_t *ret_version)
{
    struct ub_python *fresh;
    int r;

    if (*py && !(*py)->gone && still_there(*py, maps)) {
        *ret_version = (*py)->layout.version;
        return 0;
    }
    if (*py)
        (*py)->gone = true;
    r = ub_python_find(pid, maps, &fresh, ret_version);
    if (r == 0) {
        fresh->older = *py;
        *py = fresh;
    }
    return r;
}

uint32_t ub_python_version(const struct ub_python *py)
{
    return py->layout.version;
}
