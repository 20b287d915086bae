/*
 * The compiled BPF program, as it is committed: clang is needed only by who
 * changes it (make bpf).
 */
#include "object.h"

__asm__(".section .rodata\n"
        ".balign 16\n"
        ".globl ub_bpf_object\n"
        "ub_bpf_object:\n"
        ".incbin \"tracer/bpf/unblock.bpf.o\"\n"
        "ub_bpf_object_end:\n"
        ".balign 8\n"
        ".globl ub_bpf_object_size\n"
        "ub_bpf_object_size:\n"
        ".quad ub_bpf_object_end - ub_bpf_object\n"
        ".previous\n");
