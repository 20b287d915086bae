/*
 * What a descriptor of another process is, in words: the recording's `fd_path`.
 *
 *     /var/lib/app/wal.log            a path, " (deleted)" kept
 *     socket 10.0.0.1:443             connected; the peer
 *     socket [2001:db8::1]:443        the same for IPv6
 *     socket listening 0.0.0.0:80     not connected: its own address
 *     socket udp 0.0.0.0:53, socket unix /run/x.sock, socket unix, socket netlink
 *     pipe, eventfd, eventpoll, timerfd, inotify, signalfd, pidfd ...
 *
 * Everything comes from /proc/PID (so from the network namespace of the
 * process); nothing is done to it. The text is valid UTF-8 without control
 * characters.
 *
 * Thread-safe; not signal-safe. The socket tables of /proc are read up to a
 * bound (a host with very many sockets: "socket" alone is said).
 */
#ifndef UB_TRACER_FDINFO_H
#define UB_TRACER_FDINFO_H

#include "../common/base.h"

#include <sys/types.h>

#define UB_FD_TEXT_MAX 512 /* a size that fits nearly all of them; a longer one is cut and ends in "..." */

/*
 * 0; -EBADF: the process has no such descriptor; -EACCES/-EPERM: not ours to
 * look at; -ESRCH: gone. `buf` always ends in NUL and is "" on failure.
 */
int ub_fd_describe(pid_t pid, int fd, char *buf, size_t size);

/* What /proc says that the descriptor is ("socket:[1234]", a path ...), one readlink. Caller frees; NULL: not to be
 * had. */
char *ub_fd_link(pid_t pid, int fd);

#endif
