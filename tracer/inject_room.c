/*
 * Memory in the target. The first piece of code has no memory of its own to lie
 * in: it is put behind the end of some module's code, into the zeroes that fill
 * up that segment's last page, and maps the room. It stays there: when a thread
 * that was sent there has surely gone on (a signal handler of the program's may
 * have come in between) is not to be known. What the kernel copies for that is
 * one private page.
 */
#include "inject_impl.h"

#include "capture.h"

#include "../common/clock.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define PAGE       4096ul
#define GUARD      (64 * PAGE) /* between the room and what is mapped above it */
#define FAR        (16ul << 30)
#define MAPPED_NS  2000000000u /* on a machine so busy that the thread gets no CPU for long */
#define STUB_BYTES ((size_t)(ub_stub_room_end - ub_stub_room))
#define WORDS_AT   ((size_t)(ub_stub_room_words - ub_stub_room))
#define STUB_WORDS 4

int ub_room_read(const struct ub_room *room, uint64_t at, void *buf, size_t size)
{
    int n = ub_capture_memory(room->pid, at, buf, (uint32_t)size);

    return n < 0 ? n : (size_t)n == size ? 0 : -EFAULT;
}

int ub_room_write(const struct ub_room *room, uint64_t at, const void *buf, size_t size)
{
    struct iovec local = {(void *)buf, size}, remote = {(void *)(uintptr_t)at, size};
    ssize_t n = process_vm_writev(room->pid, &local, 1, &remote, 1, 0);

    return n == (ssize_t)size ? 0 : n < 0 ? -errno : -EFAULT;
}

/* Word by word; the last one keeps what lies behind. */
static int poke(pid_t tid, uint64_t at, const uint8_t *buf, size_t size)
{
    for (size_t i = 0; i < size; i += sizeof(long)) {
        size_t n = size - i < sizeof(long) ? size - i : sizeof(long);
        long word;

        errno = 0;
        word = ptrace(PTRACE_PEEKTEXT, tid, (void *)(uintptr_t)(at + i), 0);
        if (errno)
            return -errno;
        memcpy(&word, buf + i, n);
        if (ptrace(PTRACE_POKETEXT, tid, (void *)(uintptr_t)(at + i), (void *)word) < 0)
            return -errno;
    }
    return 0;
}

static bool is_there(const struct ub_room *room, uint64_t at, const void *buf, size_t size)
{
    uint8_t now[PAGE];

    return size <= sizeof(now) && ub_room_read(room, at, now, size) == 0 && memcmp(now, buf, size) == 0;
}

int ub_room_write_code(const struct ub_room *room, pid_t tid, uint64_t at, const void *buf, size_t size)
{
    char path[64];
    ssize_t n;
    int fd;

    if (is_there(room, at, buf, size))
        return 0;
    snprintf(path, sizeof(path), "/proc/%d/mem", (int)room->pid);
    fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd >= 0) {
        n = pwrite(fd, buf, size, (off_t)at);
        close(fd);
        if (n == (ssize_t)size)
            return 0;
    }
    return tid ? poke(tid, at, buf, size) : -EACCES; /* a kernel that lets tracers only */
}

/* ---- places ------------------------------------------------------------------------ */

/* And its code is ours, or not written yet: a thread may still be on its way out of it, so it is never another's. */
static bool is_ours(const struct ub_room *room, uint64_t at)
{
    static const uint8_t none[64];
    struct ub_attach a;

    return ub_room_read(room, at + UB_ROOM_ATTACH, &a, sizeof(a)) == 0 && a.magic == UB_ATTACH_MAGIC &&
           a.version == UB_ATTACH_VERSION &&
           (is_there(room, at, ub_stub_enter, (size_t)(ub_stub_enter_end - ub_stub_enter)) ||
            is_there(room, at, none, sizeof(none)));
}

void ub_room_find(struct ub_room *room, const struct ub_maps *maps)
{
    for (uint32_t i = 0; i < maps->count; i++) {
        const struct ub_map *m = &maps->map[i];

        if (m->kind == UB_MAP_ANON && m->prot == (PROT_READ | PROT_EXEC) && m->end - m->start == PAGE &&
            is_ours(room, m->start)) {
            room->at = m->start;
            return;
        }
    }
}

/*
 * The end of the place for `size` bytes in the highest gap below `limit`; far
 * down in it, where there is space: what the program maps next goes to its top.
 */
static uint64_t gap_below(const struct ub_maps *maps, uint64_t limit, uint64_t size)
{
    for (uint32_t i = maps->count; i-- > 1;) {
        uint64_t top = maps->map[i].start, bottom = maps->map[i - 1].end;

        if (top <= limit && top - bottom > 4 * FAR)
            return top - FAR;
        if (top <= limit && top - bottom > size + 4 * GUARD)
            return top - GUARD;
    }
    return 0;
}

/* Zeroes, or what an earlier injector has left. */
static bool is_free(const uint8_t *bytes, size_t size)
{
    if (memcmp(bytes, ub_stub_room, WORDS_AT) == 0)
        return true;
    for (size_t i = 0; i < size; i++) {
        if (bytes[i])
            return false;
    }
    return true;
}

/* Between the end of the module's code and that of its page. 0: no room there. */
static uint64_t cave_in(const struct ub_room *room, const struct ub_map *m)
{
    uint8_t bytes[256];

    for (uint32_t i = 0; m->elf && i < m->elf->segment_count; i++) {
        const struct ub_elf_segment *s = &m->elf->segment[i];
        uint64_t end = (m->bias + s->vaddr + s->filesz + 15) & ~15ul;

        if ((s->flags & PF_X) && end > m->start && end < m->end && m->end - end >= STUB_BYTES &&
            STUB_BYTES <= sizeof(bytes) && ub_room_read(room, end, bytes, STUB_BYTES) == 0 &&
            is_free(bytes, STUB_BYTES))
            return end;
    }
    return 0;
}

int ub_room_plan(struct ub_room *room, const struct ub_maps *maps, uint64_t image_size, char *why)
{
    const struct ub_map *libc = ub_inject_module(maps, "libc.so.6");
    uint64_t end;

    room->image_size = (image_size + PAGE - 1) & ~(PAGE - 1);
    room->cave = 0;
    for (uint32_t i = 0; i < maps->count && !room->cave; i++) {
        if (maps->map[i].prot == (PROT_READ | PROT_EXEC) && maps->map[i].kind == UB_MAP_FILE)
            room->cave = cave_in(room, &maps->map[i]);
    }
    end = gap_below(maps, libc ? libc->start : UINT64_MAX, UB_ROOM_BYTES + room->image_size);
    if (!room->cave || !end) {
        snprintf(why, UB_INJECT_WHY, "there is no room in it for %s", room->cave ? "the agent" : "code of ours");
        return -ENOSPC;
    }
    room->image = end - room->image_size;
    if (!room->at)
        room->at = room->image - UB_ROOM_BYTES;
    return 0;
}

/* ---- mapping it -------------------------------------------------------------------- */

/* The room reaches up to the image, so both are mapped in one piece where both are new. */
static bool is_whole(const struct ub_room *room)
{
    return room->at + UB_ROOM_BYTES == room->image;
}

int ub_room_dig(struct ub_room *room, const struct ub_hold *h, uint64_t *ret_ip)
{
    uint8_t code[256];
    uint64_t data = is_whole(room) ? room->at + UB_ROOM_ATTACH : room->image;
    const uint64_t word[STUB_WORDS] = {room->at, is_whole(room) ? PAGE : 0 /* nothing is mapped then */, data,
                                       room->image + room->image_size - data};
    int r;

    memcpy(code, ub_stub_room, STUB_BYTES);
    memcpy(code + WORDS_AT, word, sizeof(word));
    r = ub_room_write_code(room, h->tid, room->cave, code, STUB_BYTES);
    *ret_ip = room->cave;
    return r;
}

static bool is_mapped(const struct ub_maps *maps, uint64_t start, uint64_t end, uint32_t prot)
{
    const struct ub_map *m = ub_maps_find(maps, start);

    return m && m->kind == UB_MAP_ANON && m->prot == prot && m->end >= end;
}

/* It sleeps again where it was interrupted: then it has been in the cave. */
static bool has_come_back(const struct ub_hold *h)
{
    struct ub_capture *c = malloc(sizeof(*c));
    bool back = c && h->waiting && ub_capture_peek(h->pid, h->tid, c) == 0 && c->state == UB_THREAD_BLOCKED &&
                c->reg[UB_REG_RIP] == h->eintr_ip && c->reg[UB_REG_RSP] == h->regs.rsp;

    free(c);
    return back;
}

int ub_room_wait(struct ub_room *room, const struct ub_hold *h, uint64_t *ret_when_ns)
{
    uint64_t until = ub_clock_monotonic_ns() + MAPPED_NS;
    /* An agent that was preloaded needs no image. */
    uint64_t last = room->image_size ? room->image : room->at + UB_ROOM_ATTACH;
    struct ub_maps *maps;
    uint8_t byte;
    int r;

    while (ub_room_read(room, last, &byte, 1) < 0) {
        if (has_come_back(h) && ub_room_read(room, last, &byte, 1) < 0)
            return -ETIMEDOUT;
        if (ub_clock_monotonic_ns() > until)
            return -ETIMEDOUT;
        nanosleep(&(struct timespec){0, 20000}, NULL);
    }
    *ret_when_ns = ub_clock_monotonic_ns();
    /* Another thread may have been quicker and mapped something of its own there: it must be what was asked for. */
    r = ub_maps_load(room->pid, NULL, &maps);
    if (r < 0)
        return r;
    if ((room->image_size && !is_mapped(maps, room->image, room->image + room->image_size, PROT_READ | PROT_WRITE)) ||
        (is_whole(room) && !is_mapped(maps, room->at + UB_ROOM_ATTACH, room->image, PROT_READ | PROT_WRITE)))
        r = -EAGAIN;
    else if (is_whole(room) && !is_mapped(maps, room->at, room->at + PAGE, PROT_READ | PROT_EXEC))
        r = -EACCES;
    ub_maps_unref(maps);
    return r;
}
