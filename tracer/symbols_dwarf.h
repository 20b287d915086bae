/* Between symbols_dwarf.c (units and lines) and symbols_inlines.c (functions). Private to these. */
#ifndef UB_TRACER_SYMBOLS_DWARF_H
#define UB_TRACER_SYMBOLS_DWARF_H

#include "symbols_impl.h"

#include <elfutils/libdw.h>

/* A function inlined into a function, or into such a one. */
struct ub_inlined {
    Dwarf_Die die;
    uint64_t start;  /* lowest address */
    uint32_t parent; /* another ub_inlined; UB_RANGES_NONE: the function itself */
    bool named;      /* the three below are filled in */
    const struct ub_name *name;
    const char *call_file; /* where in the parent it was called; NULL: unknown */
    uint32_t call_line;
};

struct ub_subprogram {
    Dwarf_Die die;
    uint64_t start;
    bool named;
    const struct ub_name *name;
    bool walked;             /* the inlined ones are filled in */
    struct ub_ranges ranges; /* ids are indexes of `inlined` */
    struct ub_inlined *inlined;
    uint32_t count, capacity;
};

/* A compilation unit. */
struct ub_unit {
    Dwarf_CU *cu;
    Dwarf_Die die;  /* has the lines */
    Dwarf_Die body; /* has the functions: the same, or its other half in a .dwo file */
    uint64_t bytes; /* of DWARF: no walk visits more DIEs than this */
    bool skeleton;
    bool opened; /* `body` and `language` are filled in */
    enum ub_language language;
    bool walked, walked_deep;
    struct ub_ranges ranges; /* ids are indexes of `subprogram` */
    struct ub_subprogram *subprogram;
    uint32_t count, capacity;
};

/*
 * As ub_dwarf_resolve, but for the language. The line of `vaddr` is in ret[0]
 * already. 0: no function there.
 */
uint32_t ub_unit_resolve(struct ub_unit *unit, uint64_t vaddr, struct ub_symbol *ret, uint32_t max, bool *ret_mangled);

#endif
