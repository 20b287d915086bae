/* Checked reads of a Python process: bytes, types, strings. */
#include "python_impl.h"

#include "capture.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/uio.h>

#define READ_MANY 512u

#define ADDRESS_END 0x800000000000ull /* of what user space may map on x86-64 */

bool ub_python_read(const struct ub_python *py, uint64_t address, void *buf, size_t len)
{
    if (address < 4096 || address > ADDRESS_END - len)
        return false;
    return ub_capture_memory(py->pid, address, buf, (uint32_t)len) == (int)len;
}

void ub_python_read_many(const struct ub_python *py, const uint64_t *address, uint32_t count, uint32_t size,
                         uint8_t *buf)
{
    struct iovec remote[READ_MANY], local;
    uint32_t done = 0;

    memset(buf, 0, (size_t)count * size);
    while (done < count) {
        uint32_t n = count - done < READ_MANY ? count - done : READ_MANY;
        ssize_t r;

        for (uint32_t i = 0; i < n; i++)
            remote[i] = (struct iovec){(void *)(uintptr_t)address[done + i], size};
        local = (struct iovec){buf + (size_t)done * size, (size_t)n * size};
        r = process_vm_readv(py->pid, &local, 1, remote, n, 0);
        if (r < 0 && errno != EFAULT)
            return;
        n = r < 0 ? 0 : (uint32_t)r / size;
        done += n;
        if (done < count && (r < 0 || n < READ_MANY)) /* that one cannot be read */
            memset(buf + (size_t)done++ * size, 0, size);
    }
}

static struct ub_python_type *read_type(struct ub_python *py, uint64_t address)
{
    struct ub_python_type *t;
    uint64_t name;
    char text[UB_PYTHON_TYPE_SIZE];
    uint32_t len = 0;

    if (!ub_python_read_pointer(py, address + UB_PYTHON_TYPE_NAME, &name))
        return NULL;
    /* A short name may stand at the end of its mapping. */
    while (len + 8 <= sizeof(text) && ub_python_read(py, name + len, text + len, 8)) {
        len += 8;
        if (memchr(text, '\0', len))
            break;
    }
    if (!memchr(text, '\0', len))
        return NULL;
    t = &py->type[py->type_count++ % UB_PYTHON_TYPES_MAX];
    t->address = address;
    memcpy(t->name, text, sizeof(t->name));
    t->name[sizeof(t->name) - 1] = '\0';
    return t;
}

const char *ub_python_type_name(struct ub_python *py, uint64_t type)
{
    uint32_t known = py->type_count < UB_PYTHON_TYPES_MAX ? py->type_count : UB_PYTHON_TYPES_MAX;
    struct ub_python_type *t;

    for (uint32_t i = 0; i < known; i++) {
        if (py->type[i].address == type)
            return py->type[i].name;
    }
    t = read_type(py, type);
    return t ? t->name : "";
}

bool ub_python_is(struct ub_python *py, uint64_t address, const char *name)
{
    uint64_t type;

    return ub_python_read_pointer(py, address + UB_PYTHON_OBJECT_TYPE, &type) &&
           strcmp(ub_python_type_name(py, type), name) == 0;
}

static size_t put_utf8(char *to, uint32_t c)
{
    if (c >= 0xd800 && c < 0xe000)
        c = '?'; /* half of a pair: how Python carries bytes that are not UTF-8 */
    if (c < 0x80) {
        to[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        to[0] = (char)(0xc0 | c >> 6);
        to[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        to[0] = (char)(0xe0 | c >> 12);
        to[1] = (char)(0x80 | (c >> 6 & 0x3f));
        to[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    if (c > 0x10ffff)
        return put_utf8(to, '?');
    to[0] = (char)(0xf0 | c >> 18);
    to[1] = (char)(0x80 | (c >> 12 & 0x3f));
    to[2] = (char)(0x80 | (c >> 6 & 0x3f));
    to[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

static uint32_t character(const uint8_t *data, uint64_t i, uint32_t width)
{
    uint32_t c = 0;

    memcpy(&c, data + i * width, width); /* little-endian, like the process */
    return c;
}

bool ub_python_string(struct ub_python *py, uint64_t address, char *buf, size_t size)
{
    const struct ub_python_layout *l = &py->layout;
    uint8_t head[40], data[4096];
    uint64_t length, shown;
    uint32_t state, width;
    size_t used = 0;

    if (size < 8 || !ub_python_read(py, address, head, sizeof(head)) ||
        strcmp(ub_python_type_name(py, ub_python_u64(head, sizeof(head), UB_PYTHON_OBJECT_TYPE)), "str") != 0)
        return false;
    length = ub_python_u64(head, sizeof(head), l->string_length);
    state = ub_python_u32(head, sizeof(head), l->string_state);
    width = state >> 2 & 7;
    if (!(state & 0x20) || (width != 1 && width != 2 && width != 4)) /* not compact: nothing that names code */
        return false;
    shown = length < size ? length : size;
    if (shown > sizeof(data) / width)
        shown = sizeof(data) / width;
    if (shown &&
        !ub_python_read(py, address + (state & 0x40 ? l->string_ascii : l->string_compact), data, shown * width))
        return false;
    for (uint64_t i = 0; i < shown && used + 8 < size; i++) {
        uint32_t c = character(data, i, width);

        used += put_utf8(buf + used, c ? c : '?');
        length--;
    }
    memcpy(buf + used, length ? "..." : "", length ? 4 : 1);
    return true;
}

uint8_t *ub_python_bytes(struct ub_python *py, uint64_t address, uint32_t max, uint32_t *ret_size)
{
    uint8_t head[24], *copy;
    uint64_t size;

    *ret_size = 0;
    if (!ub_python_read(py, address, head, sizeof(head)) ||
        strcmp(ub_python_type_name(py, ub_python_u64(head, sizeof(head), UB_PYTHON_OBJECT_TYPE)), "bytes") != 0)
        return NULL;
    size = ub_python_u64(head, sizeof(head), UB_PYTHON_VAR_SIZE);
    if (size == 0 || size > max)
        return NULL;
    copy = malloc(size);
    if (!copy || !ub_python_read(py, address + py->layout.bytes_data, copy, size)) {
        free(copy);
        return NULL;
    }
    *ret_size = (uint32_t)size;
    return copy;
}
