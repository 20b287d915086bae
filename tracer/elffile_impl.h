/* Between elffile.c (files and their cache) and elffile_parse.c (headers). Private to these. */
#ifndef UB_TRACER_ELFFILE_IMPL_H
#define UB_TRACER_ELFFILE_IMPL_H

#include "elffile.h"

/*
 * Fills the header fields of `elf` from elf->bytes, elf->size. -ENOEXEC when
 * it is not an executable or shared object of this machine.
 */
int ub_elf_parse(struct ub_elf *elf);

/*
 * The GNU build-id among the notes in [notes, notes + len): copies it and
 * returns its length, 0 when there is none (or one longer than UB_BUILD_ID_MAX).
 */
uint32_t ub_elf_parse_build_id(const uint8_t *notes, uint64_t len, uint64_t align, uint8_t *ret_id);

#endif
