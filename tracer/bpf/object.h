/* The BPF object file inside this program. */
#ifndef UB_BPF_OBJECT_H
#define UB_BPF_OBJECT_H

extern const char ub_bpf_object[], ub_bpf_object_end[];

#endif
