/*
 * The functions of a unit, and what was inlined into each. Two walks over the
 * DIEs: the first reads the ranges of a unit's functions and goes into none of
 * them; the second goes through one function, when an address in it is asked for.
 */
#include "symbols_dwarf.h"

#include <dwarf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH_MAX 256 /* nesting of DIEs; a hostile file would exhaust the stack */

/* ---- steps ---- */

/* Every DIE takes at least a byte, so `budget` (bytes of the unit) ends only walks that go in circles. */
static bool first_child(Dwarf_Die *die, Dwarf_Die *ret, uint64_t *budget)
{
    return *budget && (*budget)-- && dwarf_child(die, ret) == 0;
}

/* DW_AT_sibling may point anywhere: it must point forward. */
static bool next_sibling(Dwarf_Die *die, uint64_t *budget)
{
    Dwarf_Die next;

    if (!*budget || dwarf_siblingof(die, &next) != 0 || next.addr <= die->addr)
        return false;
    (*budget)--;
    *die = next;
    return true;
}

/* Adds the ranges of `die` under `id`; `ret_start` becomes the lowest address. The number of ranges, or -ENOMEM. */
static int add_ranges(struct ub_ranges *ranges, Dwarf_Die *die, uint32_t id, uint64_t *ret_start)
{
    Dwarf_Addr base, start, end;
    ptrdiff_t at = 0;
    int n = 0;

    while ((at = dwarf_ranges(die, at, &base, &start, &end)) > 0) {
        if (start == 0 || start >= end)
            continue;
        if (ub_ranges_add(ranges, start, end, id) < 0)
            return -ENOMEM;
        if (n == 0 || start < *ret_start)
            *ret_start = start;
        n++;
    }
    return n;
}

/* Makes room for one more; -ENOMEM. */
static int reserve(void **items, uint32_t count, uint32_t *capacity, size_t size)
{
    uint32_t more = *capacity ? *capacity * 2 : 8;
    void *larger;

    if (count < *capacity)
        return 0;
    larger = reallocarray(*items, more, size);
    if (!larger)
        return -ENOMEM;
    *items = larger;
    *capacity = more;
    return 0;
}

/* ---- the functions of a unit ---- */

static int add_subprogram(struct ub_unit *unit, Dwarf_Die *die)
{
    struct ub_subprogram s = {.die = *die};
    int n = add_ranges(&unit->ranges, die, unit->count, &s.start);

    if (n <= 0)
        return n;
    n = reserve((void **)&unit->subprogram, unit->count, &unit->capacity, sizeof(s));
    if (n < 0)
        return n;
    unit->subprogram[unit->count++] = s;
    return 0;
}

/* `deep`: also where compilers seldom put functions: inside functions, blocks and types. */
static bool may_hold_functions(int tag, bool deep)
{
    switch (tag) {
    case DW_TAG_namespace:
    case DW_TAG_module:
        return true;
    case DW_TAG_subprogram:
    case DW_TAG_lexical_block:
    case DW_TAG_inlined_subroutine:
    case DW_TAG_structure_type:
    case DW_TAG_class_type:
    case DW_TAG_union_type:
    case DW_TAG_enumeration_type:
        return deep;
    default:
        return false;
    }
}

static int walk_unit(struct ub_unit *unit, Dwarf_Die *parent, bool deep, int depth, uint64_t *budget)
{
    Dwarf_Die die;

    if (depth == DEPTH_MAX || !first_child(parent, &die, budget))
        return 0;
    do {
        int tag = dwarf_tag(&die), r = 0;

        if (tag == DW_TAG_subprogram)
            r = add_subprogram(unit, &die);
        if (r == 0 && may_hold_functions(tag, deep))
            r = walk_unit(unit, &die, deep, depth + 1, budget);
        if (r < 0)
            return r;
    } while (next_sibling(&die, budget));
    return 0;
}

static void free_subprograms(struct ub_unit *unit)
{
    for (uint32_t i = 0; i < unit->count; i++) {
        ub_ranges_free(&unit->subprogram[i].ranges);
        free(unit->subprogram[i].inlined);
    }
    free(unit->subprogram);
    ub_ranges_free(&unit->ranges);
    unit->subprogram = NULL;
    unit->count = unit->capacity = 0;
}

static void read_subprograms(struct ub_unit *unit, bool deep)
{
    uint64_t budget = unit->bytes;

    free_subprograms(unit);
    unit->walked = true;
    unit->walked_deep = deep;
    if (walk_unit(unit, &unit->body, deep, 0, &budget) < 0 || ub_ranges_seal(&unit->ranges) < 0)
        free_subprograms(unit);
}

static struct ub_subprogram *find_subprogram(struct ub_unit *unit, uint64_t vaddr)
{
    uint32_t id;

    if (!unit->walked)
        read_subprograms(unit, unit->language == UB_LANGUAGE_RUST);
    id = ub_ranges_find(&unit->ranges, vaddr);
    if (id == UB_RANGES_NONE && !unit->walked_deep) {
        read_subprograms(unit, true);
        id = ub_ranges_find(&unit->ranges, vaddr);
    }
    return id == UB_RANGES_NONE ? NULL : &unit->subprogram[id];
}

/* ---- what was inlined into a function ---- */

static int walk_subprogram(struct ub_subprogram *s, Dwarf_Die *parent_die, uint32_t parent, int depth,
                           uint64_t *budget);

static int add_inlined(struct ub_subprogram *s, Dwarf_Die *die, uint32_t parent, int depth, uint64_t *budget)
{
    struct ub_inlined inlined = {.die = *die, .parent = parent};
    uint32_t id = s->count;
    int n = add_ranges(&s->ranges, die, id, &inlined.start);

    if (n <= 0)
        return n;
    n = reserve((void **)&s->inlined, s->count, &s->capacity, sizeof(inlined));
    if (n < 0)
        return n;
    s->inlined[s->count++] = inlined;
    return walk_subprogram(s, die, id, depth + 1, budget);
}

/* Inner ones get higher ids than those around them: where ranges overlap the innermost wins. */
static int walk_subprogram(struct ub_subprogram *s, Dwarf_Die *parent_die, uint32_t parent, int depth, uint64_t *budget)
{
    Dwarf_Die die;

    if (depth == DEPTH_MAX || !first_child(parent_die, &die, budget))
        return 0;
    do {
        int r = 0;

        switch (dwarf_tag(&die)) {
        case DW_TAG_inlined_subroutine:
            r = add_inlined(s, &die, parent, depth, budget);
            break;
        case DW_TAG_lexical_block:
        case DW_TAG_try_block:
        case DW_TAG_catch_block:
            r = walk_subprogram(s, &die, parent, depth + 1, budget);
            break;
        default:
            break;
        }
        if (r < 0)
            return r;
    } while (next_sibling(&die, budget));
    return 0;
}

static void read_inlined(struct ub_subprogram *s, uint64_t budget)
{
    s->walked = true;
    if (walk_subprogram(s, &s->die, UB_RANGES_NONE, 0, &budget) == 0 && ub_ranges_seal(&s->ranges) == 0)
        return;
    ub_ranges_free(&s->ranges);
    free(s->inlined);
    s->inlined = NULL;
    s->count = s->capacity = 0;
}

/* ---- names ---- */

static const struct ub_name *name_of(Dwarf_Die *die)
{
    static const unsigned attributes[] = {DW_AT_linkage_name, DW_AT_MIPS_linkage_name, DW_AT_name};

    for (size_t i = 0; i < UB_ARRAY_LEN(attributes); i++) {
        Dwarf_Attribute attribute;
        const char *text = NULL;

        if (dwarf_attr_integrate(die, attributes[i], &attribute))
            text = dwarf_formstring(&attribute);
        if (text)
            return ub_names_get(text, SIZE_MAX);
    }
    return NULL;
}

static void name_inlined(struct ub_unit *unit, struct ub_inlined *inlined)
{
    Dwarf_Attribute attribute;
    Dwarf_Files *files;
    Dwarf_Word value;
    size_t count;

    inlined->named = true;
    inlined->name = name_of(&inlined->die);
    if (dwarf_attr(&inlined->die, DW_AT_call_line, &attribute) && dwarf_formudata(&attribute, &value) == 0)
        inlined->call_line = (uint32_t)value;
    if (dwarf_attr(&inlined->die, DW_AT_call_file, &attribute) && dwarf_formudata(&attribute, &value) == 0 &&
        dwarf_getsrcfiles(&unit->body, &files, &count) == 0 && value < count)
        inlined->call_file = dwarf_filesrc(files, value, NULL, NULL);
}

static void fill(struct ub_symbol *ret, const struct ub_name *name, uint64_t start, uint64_t vaddr)
{
    ret->function = name ? name->display : NULL;
    ret->offset = vaddr - start;
}

/* ret[0] comes with the line of `vaddr`; that of ret[n] is where it called ret[n - 1]. */
uint32_t ub_unit_resolve(struct ub_unit *unit, uint64_t vaddr, struct ub_symbol *ret, uint32_t max, bool *ret_mangled)
{
    struct ub_subprogram *s = find_subprogram(unit, vaddr);
    uint32_t n = 0;

    if (!s)
        return 0;
    if (!s->walked)
        read_inlined(s, unit->bytes);
    if (!s->named) {
        s->name = name_of(&s->die);
        s->named = true;
    }
    for (uint32_t id = ub_ranges_find(&s->ranges, vaddr); id < s->count; id = s->inlined[id].parent) {
        struct ub_inlined *inlined = &s->inlined[id];

        if (!inlined->named)
            name_inlined(unit, inlined);
        /* Of a chain too long for the caller the outermost go; the function itself stays. */
        if (n + 1 < max) {
            fill(&ret[n], inlined->name, inlined->start, vaddr);
            ret[n].inlined = true;
            n++;
        }
        ret[n] = (struct ub_symbol){.file = inlined->call_file, .line = inlined->call_line};
    }
    fill(&ret[n], s->name, s->start, vaddr);
    *ret_mangled = s->name && s->name->mangled;
    return n + 1;
}
