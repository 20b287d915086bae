#include "site.h"

#include <stdio.h>
#include <string.h>

/* Deeper frames of a CPU-bound callback differ from sample to sample. */
#define UB_SITE_CPU_FRAMES 6

static uint64_t add(uint64_t hash, const char *text)
{
    for (; *text; text++)
        hash = (hash ^ (uint8_t)*text) * 0x100000001b3ull;
    return (hash ^ 0xff) * 0x100000001b3ull;
}

static uint64_t add_frame(uint64_t hash, const struct ub_named_frame *f)
{
    char name[256] = "?";

    if (f->symbol.function)
        ub_frame_plain_name(f->symbol.function, name, sizeof(name));
    if (f->python && f->symbol.file)
        hash = add(hash, strrchr(f->symbol.file, '/') ? strrchr(f->symbol.file, '/') + 1 : f->symbol.file);
    else if (f->map && f->map->elf)
        hash = add(hash, f->map->elf->basename);
    return add(hash, name);
}

void ub_site_hash(const struct ub_named_stack *stack, int callback, const char *call, const char *cause,
                  const char *program, char ret[UB_SITE_SIZE])
{
    uint64_t hash = 0xcbf29ce484222325ull;
    /* What a Python function calls in C differs between builds: only its own frames count. */
    bool python = stack && callback >= 0 && stack->frame[callback].python;
    int frames = 0, most = call ? UB_NAMED_MAX : UB_SITE_CPU_FRAMES;

    hash = add(hash, call ? call : cause);
    if (!stack || callback < 0)
        hash = add(hash, program);
    for (int i = callback; stack && i >= 0 && frames < most; i--) {
        if (stack->frame[i].role != UB_ROLE_USER || (python && !stack->frame[i].python))
            continue;
        hash = add_frame(hash, &stack->frame[i]);
        frames++;
    }
    snprintf(ret, UB_SITE_SIZE, "%08x", (uint32_t)(hash ^ (hash >> 32)));
}
