/*
 * What a thread has read from last (common/inputs.h), out of the arena, while it
 * is slow. The thread may go on while we read, and may be hostile: entries that
 * change under our hands are dropped, and what an entry's descriptor is says
 * only /proc.
 */
#include "fdinfo.h"
#include "timed_calls.h"
#include "watch_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static bool copy_entry(const struct ub_input *from, struct ub_input *to)
{
    to->at = ub_load_acquire(&from->at);
    to->fd = ub_load_relaxed(&from->fd);
    to->call = ub_load_relaxed(&from->call);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return to->at != 0 && ub_load_relaxed(&from->at) == to->at;
}

/* Files are always ready: nobody waits for them, so they are not what the callback serves. */
static bool is_waited_for(pid_t pid, int fd)
{
    char path[64];
    struct stat st;

    snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, fd);
    return fd >= 0 && stat(path, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode) && !S_ISBLK(st.st_mode);
}

/* Newer entries come first: whether one of them is of this descriptor, too. */
static bool is_told(const struct ub_input *newer, uint32_t count, int fd)
{
    for (uint32_t i = 0; i < count; i++) {
        if (newer[i].fd == fd)
            return true;
    }
    return false;
}

/* Newest first: of which entry that is only its time tells. */
static uint32_t copy_all(const struct ub_inputs *from, struct ub_input *to)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < UB_INPUTS; i++) {
        struct ub_input e;
        uint32_t at = count;

        if (!copy_entry(&from->input[i], &e))
            continue;
        for (; at > 0 && (int64_t)(to[at - 1].at - e.at) < 0; at--)
            to[at] = to[at - 1];
        to[at] = e;
        count++;
    }
    return count;
}

void ub_watch_input(const struct ub_watch *w, uint32_t slot, uint64_t start, uint64_t end, struct ub_input_seen *ret)
{
    struct ub_input seen[UB_INPUTS];
    uint32_t count = copy_all(&w->arena->cold[slot].inputs, seen);
    pid_t pid = w->watched[slot].pid;

    for (uint32_t i = 0; i < count; i++) {
        const struct ub_input *e = &seen[i];

        if ((int64_t)(e->at - start) < 0)
            break; /* of an earlier turn, as all that come now */
        if ((int64_t)(end - e->at) < 0)
            continue; /* it went on after the look */
        if (is_told(seen, i, e->fd) || e->call & UB_INPUT_CLOSED || !ub_timed_call_name(e->call) ||
            !is_waited_for(pid, e->fd))
            continue;
        if (ret->input.at)
            ret->others++;
        else
            ret->input = *e;
    }
    if (ret->input.at)
        ret->link = ub_fd_link(pid, ret->input.fd);
}

/* Whether an entry still stands, and its descriptor is the same file: each close that came later stands beside it. */
static bool is_still(const struct ub_inputs *inputs, const struct ub_input *e)
{
    bool stands = false;

    for (uint32_t i = 0; i < UB_INPUTS; i++) {
        struct ub_input other;

        if (!copy_entry(&inputs->input[i], &other) || other.fd != e->fd)
            continue;
        if (other.call & UB_INPUT_CLOSED && (int64_t)(other.at - e->at) >= 0)
            return false;
        stands = stands || other.at == e->at;
    }
    return stands;
}

uint32_t ub_watch_reads(const struct ub_watch *w, uint32_t slot, uint64_t from, uint64_t to,
                        struct ub_socket_read ret[UB_INPUTS])
{
    const struct ub_inputs *inputs = &w->arena->cold[slot].inputs;
    struct ub_input seen[UB_INPUTS];
    uint32_t known = copy_all(inputs, seen), count = 0;
    pid_t pid = w->watched[slot].pid;

    for (uint32_t i = 0; i < known; i++) {
        const struct ub_input *e = &seen[i];
        char *link;

        if ((int64_t)(e->at - from) < 0)
            break;
        if ((int64_t)(to - e->at) < 0 || e->call & UB_INPUT_CLOSED || is_told(seen, i, e->fd))
            continue;
        link = ub_fd_link(pid, e->fd);
        if (link && strncmp(link, "socket:", 7) == 0 && is_still(inputs, e))
            ret[count++] = (struct ub_socket_read){.fd = e->fd, .link = link};
        else
            free(link);
    }
    return count;
}
