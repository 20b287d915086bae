#include "fdkind.h"

#include "../process.h"
#include "../raw.h"

#include <sys/socket.h>
#include <sys/stat.h>

uint8_t ub_fdkinds[UB_FDKIND_NUMBERS];

static int option_of(int fd, int option)
{
    int value = 0;
    socklen_t len = sizeof(value);

    ub_raw6(SYS_getsockopt, fd, SOL_SOCKET, option, (long)&value, (long)&len, 0);
    return value;
}

static enum ub_fdkind ask(int fd)
{
    struct stat st = {0};

    if (ub_raw2(SYS_fstat, fd, &st) < 0)
        return UB_FDKIND_NONE;
    if (S_ISFIFO(st.st_mode))
        return UB_FDKIND_PIPE;
    if (!S_ISSOCK(st.st_mode))
        return S_ISREG(st.st_mode) || S_ISBLK(st.st_mode) ? UB_FDKIND_FILE : UB_FDKIND_OTHER;
    if (option_of(fd, SO_RCVLOWAT) > 1)
        return UB_FDKIND_LATE;
    return option_of(fd, SO_TYPE) == SOCK_STREAM ? UB_FDKIND_STREAM : UB_FDKIND_SOCKET;
}

enum ub_fdkind ub_fdkind_ask(int fd)
{
    enum ub_fdkind kind = ask(fd);

    /* A child of vfork's runs on its parent's memory, but its numbers are its own. */
    if ((uint32_t)fd < UB_FDKIND_NUMBERS && ub_raw0(SYS_getpid) == ub_process->pid)
        ub_store_relaxed(&ub_fdkinds[fd], (uint8_t)kind);
    return kind;
}

void ub_fdkind_forget(int fd)
{
    if ((uint32_t)fd < UB_FDKIND_NUMBERS && ub_load_relaxed(&ub_fdkinds[fd]) != UB_FDKIND_NONE)
        ub_store_relaxed(&ub_fdkinds[fd], (uint8_t)UB_FDKIND_NONE);
}

void ub_fdkind_forget_range(unsigned first, unsigned last)
{
    for (unsigned fd = first; fd < UB_FDKIND_NUMBERS && fd <= last; fd++)
        ub_fdkind_forget((int)fd);
}
