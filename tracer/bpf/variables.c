/*
 * Global variables of the BPF program by name, as its BTF lists them: what a
 * generated skeleton would know, without a generator.
 */
#include "bpf_impl.h"

#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <string.h>

int ub_bpf_variable(const struct bpf_object *object, const char *section, const char *name, uint32_t *ret_offset)
{
    const struct btf *btf = bpf_object__btf(object);
    int id = btf ? btf__find_by_name_kind(btf, section, BTF_KIND_DATASEC) : -ENOENT;
    const struct btf_type *type = id >= 0 ? btf__type_by_id(btf, (uint32_t)id) : NULL;
    const struct btf_var_secinfo *var;

    if (!type)
        return -ENOENT;
    var = btf_var_secinfos(type);
    for (uint32_t i = 0; i < btf_vlen(type); i++, var++) {
        const struct btf_type *v = btf__type_by_id(btf, var->type);

        if (v && strcmp(btf__name_by_offset(btf, v->name_off), name) == 0) {
            *ret_offset = var->offset;
            return 0;
        }
    }
    return -ENOENT;
}
