/* Section headers of an ELF file in memory. Copied before use: a hostile file aligns nothing. */
#include "elffile_impl.h"
#include "symbols_impl.h"

#include <string.h>

static bool read_header(const struct ub_image *image, Elf64_Ehdr *ret)
{
    if (image->size < sizeof(*ret))
        return false;
    memcpy(ret, image->bytes, sizeof(*ret));
    return memcmp(ret->e_ident, ELFMAG, SELFMAG) == 0 && ret->e_ident[EI_CLASS] == ELFCLASS64 &&
           ret->e_ident[EI_DATA] == ELFDATA2LSB && ret->e_shentsize == sizeof(Elf64_Shdr) && ret->e_shoff != 0 &&
           ret->e_shoff <= image->size;
}

static bool read_section_header(const struct ub_image *image, const Elf64_Ehdr *h, uint32_t index, Elf64_Shdr *ret)
{
    if (index >= (image->size - h->e_shoff) / sizeof(*ret))
        return false;
    memcpy(ret, image->bytes + h->e_shoff + (uint64_t)index * sizeof(*ret), sizeof(*ret));
    return true;
}

static const uint8_t *section_data(const struct ub_image *image, const Elf64_Shdr *sh)
{
    if (sh->sh_type == SHT_NOBITS || sh->sh_offset > image->size || sh->sh_size > image->size - sh->sh_offset)
        return NULL;
    return image->bytes + sh->sh_offset;
}

/* Files with 65,280 sections or more keep the true numbers in section 0. */
static uint32_t section_count(const struct ub_image *image, const Elf64_Ehdr *h)
{
    uint64_t most = (image->size - h->e_shoff) / sizeof(Elf64_Shdr), n = h->e_shnum;
    Elf64_Shdr first;

    if (n == 0 && read_section_header(image, h, 0, &first))
        n = first.sh_size;
    return (uint32_t)(n < most ? n : most);
}

static const char *section_name(const struct ub_image *image, const Elf64_Ehdr *h, uint32_t offset)
{
    uint32_t index = h->e_shstrndx;
    const uint8_t *names;
    Elf64_Shdr sh;

    if (index == SHN_XINDEX && read_section_header(image, h, 0, &sh))
        index = sh.sh_link;
    if (!read_section_header(image, h, index, &sh))
        return "";
    names = section_data(image, &sh);
    if (!names || offset >= sh.sh_size || !memchr(names + offset, '\0', sh.sh_size - offset))
        return "";
    return (const char *)names + offset;
}

uint32_t ub_image_section_count(const struct ub_image *image)
{
    Elf64_Ehdr h;

    return read_header(image, &h) ? section_count(image, &h) : 0;
}

bool ub_image_section(const struct ub_image *image, uint32_t index, struct ub_section *ret)
{
    Elf64_Ehdr h;

    if (!read_header(image, &h) || index >= section_count(image, &h) ||
        !read_section_header(image, &h, index, &ret->header))
        return false;
    ret->name = section_name(image, &h, ret->header.sh_name);
    ret->data = section_data(image, &ret->header);
    return true;
}

bool ub_image_find_section(const struct ub_image *image, const char *name, struct ub_section *ret)
{
    uint32_t count = ub_image_section_count(image);

    for (uint32_t i = 1; i < count; i++) {
        if (ub_image_section(image, i, ret) && strcmp(ret->name, name) == 0)
            return true;
    }
    return false;
}

bool ub_image_find_section_type(const struct ub_image *image, uint32_t type, struct ub_section *ret)
{
    uint32_t count = ub_image_section_count(image);

    for (uint32_t i = 1; i < count; i++) {
        if (ub_image_section(image, i, ret) && ret->header.sh_type == type)
            return true;
    }
    return false;
}

uint32_t ub_image_build_id(const struct ub_image *image, uint8_t ret_id[UB_BUILD_ID_MAX])
{
    uint32_t count = ub_image_section_count(image);
    struct ub_section s;

    for (uint32_t i = 1; i < count; i++) {
        uint32_t len = 0;

        if (ub_image_section(image, i, &s) && s.header.sh_type == SHT_NOTE && s.data)
            len = ub_elf_parse_build_id(s.data, s.header.sh_size, s.header.sh_addralign, ret_id);
        if (len)
            return len;
    }
    return 0;
}
