/*
 * Opening and mapping files that a watched process named: nothing is opened
 * before it is known to be a regular file (a FIFO would block, a device could
 * act), and a file that shrinks while it is mapped yields zeros instead of a
 * SIGBUS (the idea is systemd's src/basic/sigbus.c).
 */
#ifndef UB_TRACER_FILEMAP_H
#define UB_TRACER_FILEMAP_H

#include "../common/base.h"

#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

/* For UB_CLEANUP on a descriptor; negative ones are ignored, errno is left alone. */
static inline void ub_filemap_close(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* Takes a descriptor away from its UB_CLEANUP. */
static inline int ub_filemap_keep(int *fd)
{
    int kept = *fd;

    *fd = -1;
    return kept;
}

/*
 * Finds the regular file at `path`, without opening it for reading: returns an
 * O_PATH descriptor and its stat. With `pid` > 0 the path is resolved inside
 * the root directory of that process, symbolic links included; with 0 in ours.
 * -EINVAL when it is not a regular file; another -errno from openat.
 *
 * Thread-safe.
 */
int ub_filemap_find(pid_t pid, const char *path, int *ret_fd, struct stat *ret_stat);

/* Opens what an O_PATH descriptor stands for, for reading. A descriptor or -errno. Thread-safe. */
int ub_filemap_open(int path_fd);

/*
 * Maps the whole file behind any descriptor (O_PATH will do): private and
 * read-only, for the life of the tracer. The first call installs a SIGBUS
 * handler that fills holes in these mappings and passes everything else on to
 * the handler found before.
 * -ENODATA when the file is empty; another -errno from open or mmap.
 *
 * Thread-safe.
 */
int ub_filemap_map(int fd, const uint8_t **ret_bytes, uint64_t *ret_size);

/*
 * Makes a mapping writable, for libraries that work in place; the file is not
 * changed. 0 or -errno. Thread-safe.
 */
int ub_filemap_make_writable(const uint8_t *bytes, uint64_t size);

/* Gives back what ub_filemap_map returned. Thread-safe. */
void ub_filemap_unmap(const uint8_t *bytes, uint64_t size);

#endif
