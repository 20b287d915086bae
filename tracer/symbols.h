/*
 * Addresses to names: function, inlined functions, file and line.
 *
 * Thread-safe (one lock; meant for the explaining thread). Indexes are built
 * once per ELF file: sorted symbols (.symtab, else .dynsym, plus
 * .gnu_debugdata), and from DWARF the inline tree and line table of the unit
 * that holds the address. Separate debug files by build-id and .gnu_debuglink;
 * debuginfod only when DEBUGINFOD_URLS is set.
 */
#ifndef UB_TRACER_SYMBOLS_H
#define UB_TRACER_SYMBOLS_H

#include "maps.h"

enum ub_language {
    UB_LANGUAGE_UNKNOWN,
    UB_LANGUAGE_C,
    UB_LANGUAGE_CXX,
    UB_LANGUAGE_RUST,
    UB_LANGUAGE_JS,
    UB_LANGUAGE_PYTHON,
};

struct ub_symbol {
    const char *function; /* demangled; NULL: unknown. Valid until the tracer ends */
    const char *file;     /* as in DWARF, joined with its directory; NULL: unknown */
    uint32_t line;        /* 0: unknown */
    uint64_t offset;      /* of the address from the start of the function */
    bool inlined;         /* this function was inlined into the next one in the array */
    bool nearest;         /* the address lies beyond the symbol's size, or the file is stripped and only an
                             exported symbol below the address is known: a guess, to be called "nearest" */
    enum ub_language language;
};

#define UB_INLINES_MAX 16

/*
 * Resolves `address` (in the process of `maps`; the caller has already
 * subtracted 1 from return addresses). Fills ret[0 .. n-1], innermost first,
 * and returns n >= 1; ret[0].function is NULL when nothing is known.
 * JIT code: /tmp/perf-PID.map, last matching entry.
 */
uint32_t ub_symbols_resolve(const struct ub_maps *maps, uint64_t address, struct ub_symbol *ret, uint32_t max);

/* Finds a function by its linker name; for tests and for tables of addresses. -ENOENT. */
int ub_symbols_lookup(struct ub_elf *elf, const char *name, uint64_t *ret_vaddr, uint64_t *ret_size);

/* Finds a variable by its linker name in the file's own symbol tables; no debug file is looked for. -ENOENT. */
int ub_symbols_lookup_data(struct ub_elf *elf, const char *name, uint64_t *ret_vaddr, uint64_t *ret_size);

#endif
