/*
 * Getting hold of an arena: another's by its address, or a new one.
 */
#ifndef UB_AGENT_ARENA_H
#define UB_AGENT_ARENA_H

#include "../common/arena.h"

#include <sys/types.h>

/*
 * Maps the arena at `address` ("PID:FD:INODE", ":helper" may follow). 0 with
 * the watcher's pid; -ENOENT: nobody is there any more, -EACCES: it is another
 * user's, -EINVAL: it is no arena of ours, -EXDEV: another PID namespace's;
 * other -errno. Slow path only; signal-safe.
 */
int ub_arena_map(const char *address, struct ub_arena **ret, pid_t *ret_watcher);

/* Whether `address` is that of a helper: a watcher that nobody but an agent asked for. */
bool ub_arena_is_helpers(const char *address);

/*
 * Attached, beside another process: maps the arena that the injector hands out at the abstract socket `name` (behind
 * the first zero; none: over a pair of sockets, one of which is told in *told), whose file is `inode`. Waits for it a
 * little. 0; -EAGAIN: nobody gave it; other -errno. Slow path only.
 */
int ub_arena_join(const char *name, int32_t *told, uint64_t inode, struct ub_arena **ret);

/* Inode of /proc/self/ns/pid, 0: not known. */
uint64_t ub_arena_pid_namespace(void);

/*
 * A new arena for a helper that is to be started; *ret_fd is close-on-exec. 0 or -errno.
 * Slow path only; signal-safe.
 */
int ub_arena_create(struct ub_arena **ret, int *ret_fd, uint64_t *ret_inode);

/* A new arena without a watcher, in nanoseconds. NULL: no memory. Slow path only; signal-safe. */
struct ub_arena *ub_arena_alone(void);

/*
 * Under a seccomp filter that came with exec nothing may be mapped later: from
 * now on arenas are mapped as a whole. Before the first one. Slow path only.
 */
void ub_arena_map_whole(void);

/*
 * The cold part of a slot that the caller has taken; mapped at its first use in
 * this process, and then for good. NULL: no memory. Slow path only; signal-safe.
 */
struct ub_slot_cold *ub_arena_cold(struct ub_arena *arena, uint32_t index);

void ub_arena_unmap(struct ub_arena *arena);

/*
 * Nobody watches any more: private empty memory takes the place of what was
 * shared, for threads that are just writing to it; the next arena is mapped
 * over it. Slow path only; signal-safe.
 */
void ub_arena_leave(struct ub_arena *arena);

/* No thread writes to it any more: unmaps what was left. Slow path only. */
void ub_arena_forget(void);

/* "PID:FD:INODE:helper" in `buf` (64 bytes). */
void ub_arena_address(char *buf, pid_t pid, int fd, uint64_t inode);

#endif
