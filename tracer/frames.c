#include "frames.h"

#include "dispatchers.h"

#include <stdio.h>
#include <string.h>

#define FNV_START 0xcbf29ce484222325ull
#define FNV_PRIME 0x100000001b3ull

uint64_t ub_frames_mix(uint64_t hash, uint64_t value)
{
    for (int i = 0; i < 8; i++) {
        hash = (hash ^ (value & 0xff)) * FNV_PRIME;
        value >>= 8;
    }
    return hash;
}

void ub_frames_clear(struct ub_named_stack *s)
{
    ub_maps_unref(s->maps);
    s->maps = NULL;
    s->count = 0;
}

/* node's own scripts, and V8's code without a place: what runs the program's, like its C++ parts. */
static enum ub_role script_role(const struct ub_symbol *symbol)
{
    if (!symbol->file || strncmp(symbol->file, "node:", 5) == 0)
        return UB_ROLE_RUNTIME;
    return strstr(symbol->file, "/node_modules/") ? UB_ROLE_LIBRARY : UB_ROLE_USER;
}

static void add(struct ub_named_stack *s, const struct ub_frame *raw, const struct ub_map *map,
                const struct ub_symbol *symbol)
{
    struct ub_named_frame *f = &s->frame[s->count++];
    const char *module = map && map->elf ? map->elf->basename : "";

    f->symbol = *symbol;
    f->map = map;
    f->pc = raw->pc;
    f->cfa = raw->cfa;
    f->role = ub_dispatchers_role(module, symbol->nearest ? NULL : symbol->function, &f->libc);
    if (f->role == UB_ROLE_USER && map && map->elf)
        f->role = ub_dispatchers_path_role(map->elf->path);
    if (symbol->language == UB_LANGUAGE_JS)
        f->role = script_role(symbol);
    f->python = 0;
}

void ub_frames_name(struct ub_maps *maps, const struct ub_stack *stack, struct ub_named_stack *ret)
{
    ub_frames_clear(ret);
    ret->maps = ub_maps_ref(maps);
    ret->complete = stack->complete;
    ret->hash = ub_frames_mix(FNV_START, stack->complete);
    for (uint32_t i = 0; i < stack->count; i++) {
        const struct ub_frame *raw = &stack->frame[i];
        uint64_t address = raw->pc - (raw->is_call ? 1 : 0);
        const struct ub_map *map = ub_maps_find(maps, address);
        struct ub_symbol symbol[UB_INLINES_MAX];
        uint32_t n = ub_symbols_resolve(maps, address, symbol, UB_INLINES_MAX);

        ret->hash = ub_frames_mix(ub_frames_mix(ret->hash, map && map->elf ? (uintptr_t)map->elf : 0),
                                  map && map->elf ? address - map->bias : address);
        for (uint32_t k = 0; k < n && ret->count < UB_NAMED_MAX; k++)
            add(ret, raw, map, &symbol[k]);
    }
}

static const char *language_name(enum ub_language language)
{
    switch (language) {
    case UB_LANGUAGE_C:
        return "c";
    case UB_LANGUAGE_CXX:
        return "c++";
    case UB_LANGUAGE_RUST:
        return "rust";
    case UB_LANGUAGE_JS:
        return "js";
    case UB_LANGUAGE_PYTHON:
        return "python";
    case UB_LANGUAGE_UNKNOWN:
        break;
    }
    return NULL;
}

/* Names come from strangers' files and may be any bytes; JSON wants UTF-8. */
static json_t *text(const char *s)
{
    json_t *j = json_string(s);

    return j ? j : json_string("(not UTF-8)");
}

static const char *last_component(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

static void set_build_id(json_t *o, const struct ub_elf *elf)
{
    char hex[2 * UB_BUILD_ID_MAX + 1] = "";

    for (uint32_t i = 0; i < elf->build_id_len && i < UB_BUILD_ID_MAX; i++)
        snprintf(hex + 2 * i, 3, "%02x", elf->build_id[i]);
    if (hex[0])
        json_object_set_new(o, "build_id", json_string(hex));
}

json_t *ub_frame_place(const struct ub_named_frame *f, bool redact)
{
    json_t *o = json_object();

    if (f->symbol.function)
        json_object_set_new(o, "function", text(f->symbol.function));
    if (f->symbol.file)
        json_object_set_new(o, "file", text(redact ? last_component(f->symbol.file) : f->symbol.file));
    if (f->symbol.line)
        json_object_set_new(o, "line", json_integer(f->symbol.line));
    if (f->map && f->map->elf)
        json_object_set_new(o, "module", text(redact ? f->map->elf->basename : f->map->elf->path));
    else if (f->map && f->map->path[0])
        json_object_set_new(o, "module", text(redact ? last_component(f->map->path) : f->map->path));
    return o;
}

static json_t *frame_json(const struct ub_named_frame *f, bool redact)
{
    json_t *o = ub_frame_place(f, redact);
    const char *language = language_name(f->symbol.language);

    if (f->symbol.language == UB_LANGUAGE_PYTHON)
        ; /* a line says it all */
    else if (f->symbol.function)
        json_object_set_new(o, "offset", json_integer((json_int_t)f->symbol.offset));
    else
        json_object_set_new(o, "offset",
                            json_integer((json_int_t)(f->map && f->map->elf ? f->pc - f->map->bias : f->pc)));
    if (f->map && f->map->elf)
        set_build_id(o, f->map->elf);
    if (language)
        json_object_set_new(o, "language", json_string(language));
    if (f->symbol.inlined)
        json_object_set_new(o, "inlined", json_true());
    if (f->symbol.nearest)
        json_object_set_new(o, "nearest", json_true());
    return o;
}

json_t *ub_frames_json(const struct ub_named_stack *s, bool redact)
{
    json_t *frames = json_array();

    for (uint32_t i = 0; i < s->count; i++)
        json_array_append_new(frames, frame_json(&s->frame[i], redact));
    return frames;
}

void ub_frame_plain_name(const char *function, char *buf, size_t size)
{
    static const char *const added[] = {".isra.", ".constprop.", ".part.", ".cold", ".lto_priv.", ".llvm."};

    snprintf(buf, size, "%s", function);
    for (size_t i = 0; i < UB_ARRAY_LEN(added); i++) {
        char *at = strstr(buf, added[i]);

        if (at)
            *at = '\0';
    }
}
