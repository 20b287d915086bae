/* The BPF object file inside this program. */
#ifndef UB_BPF_OBJECT_H
#define UB_BPF_OBJECT_H

#include <stdint.h>

extern const char ub_bpf_object[];
extern const uint64_t ub_bpf_object_size;

#endif
