/*
 * The remote address space that libunwind walks in: memory from the copied stack
 * and the mapped ELF files, registers as far as they are known, one cache for
 * each layout of memory.
 */
#include "unwind_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define CACHE_ENTRIES 1024u /* rows of unwind tables that libunwind remembers for one address space */

/* ---- memory ---- */

const struct ub_map *ub_unwind_map(struct ub_unwinder *u, uint64_t address)
{
    if (!u->last_map || address < u->last_map->start || address >= u->last_map->end)
        u->last_map = u->maps ? ub_maps_find(u->maps, address) : NULL;
    return u->last_map;
}

bool ub_unwind_read_stack(const struct ub_capture *c, uint64_t address, void *buf, uint32_t len)
{
    for (uint32_t i = 0; i < c->region_count; i++) {
        const struct ub_stack_region *r = &c->region[i];

        if (r->len >= len && address - r->address <= r->len - len) {
            memcpy(buf, c->bytes + r->offset + (address - r->address), len);
            return true;
        }
    }
    return false;
}

bool ub_unwind_read_image(struct ub_unwinder *u, uint64_t address, void *buf, uint32_t len, bool writable_too)
{
    const struct ub_map *m = ub_unwind_map(u, address);
    const void *p = m && m->elf ? ub_elf_image(m->elf, address - m->bias, len, writable_too) : NULL;

    if (!p)
        return false;
    memcpy(buf, p, len);
    return true;
}

bool ub_unwind_read(struct ub_unwinder *u, uint64_t address, void *buf, uint32_t len)
{
    return ub_unwind_read_stack(u->capture, address, buf, len) || ub_unwind_read_image(u, address, buf, len, false);
}

enum ub_call ub_unwind_call_before(struct ub_unwinder *u, uint64_t address, uint64_t *ret_target)
{
    const struct ub_map *m = address > UB_ARCH_CALL_BYTES ? ub_unwind_map(u, address - 1) : NULL;
    uint32_t len;
    const uint8_t *p = NULL;

    if (!m || !m->elf || !(m->prot & PROT_EXEC))
        return UB_CALL_NONE;
    for (len = UB_ARCH_CALL_BYTES; len >= 2 && !p; len--)
        p = ub_elf_image(m->elf, address - len - m->bias, len, false);
    return p ? ub_arch_call_before(p, len + 1, address, ret_target) : UB_CALL_NONE;
}

/* ---- libunwind's accessors ---- */

static int access_mem(unw_addr_space_t as, unw_word_t address, unw_word_t *value, int write, void *arg)
{
    struct ub_unwinder *u = arg;

    if (write || u->budget == 0)
        return -UNW_EUNSPEC;
    u->budget--;
    if (ub_unwind_read_stack(u->capture, address, value, sizeof(*value)))
        return 0;
    if (address == UB_UNWIND_TABLE_ADDRESS && u->in_tables) {
        *value = u->table;
        return 0;
    }
    for (uint32_t i = 0; i < u->popped_count; i++)
        if (u->popped[i].address == address) {
            *value = u->popped[i].value;
            return 0;
        }
    /*
     * A CIE names its personality routine through a pointer in writable data. Its
     * value does not matter, but libunwind insists on reading it.
     */
    if (ub_unwind_read_image(u, address, value, sizeof(*value), u->in_tables))
        return 0;
    return -UNW_EINVAL;
}

static int access_reg(unw_addr_space_t as, unw_regnum_t reg, unw_word_t *value, int write, void *arg)
{
    struct ub_unwinder *u = arg;

    _Static_assert(UNW_X86_64_RBP == UB_REG_RBP && UNW_X86_64_RSP == UB_REG_RSP && UNW_X86_64_RIP == UB_REG_RIP,
                   "libunwind numbers registers as DWARF does");
    if (write || reg < 0 || reg >= UB_REG_COUNT)
        return -UNW_EBADREG;
    if (!(u->regs.known & UB_REG_BIT((uint32_t)reg))) {
        u->missing |= UB_REG_BIT((uint32_t)reg);
        return -UNW_EBADREG; /* unw_step fails then, rather than go on with a zero */
    }
    *value = u->regs.reg[reg];
    return 0;
}

static int access_fpreg(unw_addr_space_t as, unw_regnum_t reg, unw_fpreg_t *value, int write, void *arg)
{
    return -UNW_EBADREG;
}

static int no_dynamic_info(unw_addr_space_t as, unw_word_t *address, void *arg)
{
    return -UNW_ENOINFO;
}

static int no_resume(unw_addr_space_t as, unw_cursor_t *cursor, void *arg)
{
    return -UNW_EINVAL;
}

static int no_name(unw_addr_space_t as, unw_word_t address, char *buf, size_t size, unw_word_t *offset, void *arg)
{
    return -UNW_ENOINFO;
}

/* ---- address spaces ---- */

static unw_addr_space_t new_space(struct ub_unwinder *u, bool cache)
{
    unw_addr_space_t as = unw_create_addr_space(&u->accessors, 0);

    if (as && cache) {
        unw_set_caching_policy(as, UNW_CACHE_GLOBAL);
        unw_set_cache_size(as, CACHE_ENTRIES, 0);
    } else if (as) {
        unw_set_caching_policy(as, UNW_CACHE_NONE);
    }
    return as;
}

int ub_unwinder_new(struct ub_unwinder **ret)
{
    struct ub_unwinder *u = calloc(1, sizeof(*u));

    if (!u)
        return -ENOMEM;
    u->accessors = (unw_accessors_t){
        .find_proc_info = ub_unwind_find_proc_info,
        .put_unwind_info = ub_unwind_put_info,
        .get_dyn_info_list_addr = no_dynamic_info,
        .access_mem = access_mem,
        .access_reg = access_reg,
        .access_fpreg = access_fpreg,
        .resume = no_resume,
        .get_proc_name = no_name,
    };
    u->plain = new_space(u, false);
    if (!u->plain) {
        free(u);
        return -ENOMEM;
    }
    *ret = u;
    return 0;
}

void ub_unwinder_free(struct ub_unwinder *u)
{
    if (!u)
        return;
    for (uint32_t i = 0; i < UB_UNWIND_SPACES; i++) {
        if (u->space[i].as)
            unw_destroy_addr_space(u->space[i].as);
        ub_maps_unref(u->space[i].maps);
    }
    unw_destroy_addr_space(u->plain);
    ub_fde_index_free(u);
    free(u);
}

/* The same code at the same addresses: forked children share what was learnt about their parent. */
static bool same_layout(const struct ub_maps *a, const struct ub_maps *b)
{
    uint32_t i = 0, j = 0;

    if (a == b)
        return true;
    for (;; i++, j++) {
        while (i < a->count && !(a->map[i].prot & PROT_EXEC))
            i++;
        while (j < b->count && !(b->map[j].prot & PROT_EXEC))
            j++;
        if (i == a->count || j == b->count)
            return i == a->count && j == b->count;
        if (a->map[i].start != b->map[j].start || a->map[i].end != b->map[j].end || a->map[i].elf != b->map[j].elf ||
            a->map[i].bias != b->map[j].bias)
            return false;
    }
}

unw_addr_space_t ub_unwind_choose_space(struct ub_unwinder *u, struct ub_maps *maps)
{
    struct ub_unwind_space *s = &u->space[0];

    for (uint32_t i = 0; i < UB_UNWIND_SPACES; i++) {
        struct ub_unwind_space *candidate = &u->space[i];

        if (candidate->maps && same_layout(candidate->maps, maps)) {
            s = candidate;
            goto found;
        }
        if (candidate->used < s->used)
            s = candidate;
    }
    if (s->as)
        unw_flush_cache(s->as, 0, 0);
    else
        s->as = new_space(u, true);
found:
    if (s->maps != maps) {
        ub_maps_unref(s->maps);
        s->maps = ub_maps_ref(maps);
    }
    s->used = ++u->clock;
    return s->as ? s->as : u->plain;
}
