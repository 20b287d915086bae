/*
 * .gnu_debugdata, the "MiniDebugInfo" of Fedora and its kin: an xz-compressed
 * ELF file with the symbols that .dynsym lacks. liblzma is in every process
 * that has libdw; it is asked for by name so that building needs no header of it.
 */
#include "symbols_impl.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>

#define UNPACKED_FIRST     (4u << 20)
#define UNPACKED_MAX       (256u << 20) /* a few hundred bytes can unpack to terabytes */
#define DECODER_MEMORY_MAX (256u << 20)

/* From <lzma/base.h> and <lzma/container.h>: part of liblzma.so.5's ABI. */
#define LZMA_OK        0
#define LZMA_BUF_ERROR 10
typedef int decode_fn(uint64_t *memlimit, uint32_t flags, const void *allocator, const uint8_t *in, size_t *in_pos,
                      size_t in_size, uint8_t *out, size_t *out_pos, size_t out_size);

static decode_fn *find_decoder(void)
{
    static void *library; /* under the lock of symbols.c; never closed */

    if (!library)
        library = dlopen("liblzma.so.5", RTLD_NOW | RTLD_LOCAL);
    return library ? (decode_fn *)dlsym(library, "lzma_stream_buffer_decode") : NULL;
}

int ub_debugdata_load(const struct ub_image *image, struct ub_image *ret)
{
    decode_fn *decode;
    struct ub_section packed;

    if (!ub_image_find_section(image, ".gnu_debugdata", &packed) || !packed.data)
        return -ENOENT;
    decode = find_decoder();
    if (!decode)
        return -ENOTSUP;
    for (size_t room = UNPACKED_FIRST; room <= UNPACKED_MAX; room *= 4) {
        uint64_t memory = DECODER_MEMORY_MAX;
        size_t in_pos = 0, out_pos = 0;
        uint8_t *out = malloc(room);
        int status;

        if (!out)
            return -ENOMEM;
        status = decode(&memory, 0, NULL, packed.data, &in_pos, packed.header.sh_size, out, &out_pos, room);
        if (status == LZMA_OK) {
            uint8_t *fitted = realloc(out, out_pos ? out_pos : 1);

            *ret = (struct ub_image){fitted ? fitted : out, out_pos};
            return 0;
        }
        free(out);
        if (status != LZMA_BUF_ERROR)
            break;
    }
    return -EBADMSG;
}
