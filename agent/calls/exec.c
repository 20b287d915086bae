/*
 * Every libc name that executes a program. Each goes straight on unless the
 * agent is in the environment and the program cannot bear it: then it gets an
 * environment without (../successor.h). The copy lies in the hook's own frame,
 * which a vfork child may use: it ends with the exec or returns here.
 *
 * system() and popen() are not here: what they execute is the shell.
 */
#include "../real.h"
#include "../successor.h"

#include <fcntl.h>
#include <stdarg.h>
#include <unistd.h>

/* Replaces `environment` by a copy on this function's stack, if `refused` says so. */
#define WITHOUT_US(environment, refused)                                                                               \
    do {                                                                                                               \
        struct ub_successor_room room_ = ub_successor_room(environment);                                               \
                                                                                                                       \
        if (ub_unlikely(room_.count) && (refused)) {                                                                   \
            char **copy_ = __builtin_alloca(room_.count * sizeof(*copy_));                                             \
                                                                                                                       \
            ub_successor_environment(environment, copy_, __builtin_alloca(room_.bytes));                               \
            (environment) = copy_;                                                                                     \
        }                                                                                                              \
    } while (0)

/* Makes `argv` of a variable argument list that began with `first`, as libc does: on the stack. */
#define GATHER(argv, ap, first)                                                                                        \
    do {                                                                                                               \
        va_list count_;                                                                                                \
        size_t n_ = 1;                                                                                                 \
                                                                                                                       \
        va_copy(count_, ap);                                                                                           \
        while (va_arg(count_, const char *))                                                                           \
            n_++;                                                                                                      \
        va_end(count_);                                                                                                \
        (argv) = __builtin_alloca((n_ + 1) * sizeof(char *));                                                          \
        (argv)[0] = (char *)(first);                                                                                   \
        for (size_t i_ = 1; i_ <= n_; i_++)                                                                            \
            (argv)[i_] = va_arg(ap, char *);                                                                           \
    } while (0)

/* From here on: what the program calls. Everything else in the agent is hidden (-fvisibility=hidden). */
#pragma GCC visibility push(default)

int execve(const char *path, char *const argv[], char *const environment[])
{
    WITHOUT_US(environment, ub_successor_refuses(AT_FDCWD, path));
    return ub_real.execve(path, argv, environment);
}

int execv(const char *path, char *const argv[])
{
    char *const *environment = environ;

    WITHOUT_US(environment, ub_successor_refuses(AT_FDCWD, path));
    return environment == environ ? ub_real.execv(path, argv) : ub_real.execve(path, argv, environment);
}

int execvpe(const char *name, char *const argv[], char *const environment[])
{
    WITHOUT_US(environment, ub_successor_refuses_name(name));
    return ub_real.execvpe(name, argv, environment);
}

int execvp(const char *name, char *const argv[])
{
    char *const *environment = environ;

    WITHOUT_US(environment, ub_successor_refuses_name(name));
    return environment == environ ? ub_real.execvp(name, argv) : ub_real.execvpe(name, argv, environment);
}

int fexecve(int fd, char *const argv[], char *const environment[])
{
    WITHOUT_US(environment, ub_successor_refuses(fd, ""));
    return ub_real.fexecve(fd, argv, environment);
}

int execveat(int dirfd, const char *path, char *const argv[], char *const environment[], int flags)
{
    WITHOUT_US(environment, ub_successor_refuses(dirfd, path));
    return ub_real.execveat(dirfd, path, argv, environment, flags);
}

int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attr,
                char *const argv[], char *const environment[])
{
    WITHOUT_US(environment, ub_successor_refuses(AT_FDCWD, path));
    return ub_real.posix_spawn(pid, path, actions, attr, argv, environment);
}

int posix_spawnp(pid_t *pid, const char *name, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attr,
                 char *const argv[], char *const environment[])
{
    WITHOUT_US(environment, ub_successor_refuses_name(name));
    return ub_real.posix_spawnp(pid, name, actions, attr, argv, environment);
}

int execl(const char *path, const char *first, ...)
{
    char **argv;
    va_list ap;

    va_start(ap, first);
    GATHER(argv, ap, first);
    va_end(ap);
    return execv(path, argv);
}

int execlp(const char *name, const char *first, ...)
{
    char **argv;
    va_list ap;

    va_start(ap, first);
    GATHER(argv, ap, first);
    va_end(ap);
    return execvp(name, argv);
}

int execle(const char *path, const char *first, ...)
{
    char *const *environment;
    char **argv;
    va_list ap;

    va_start(ap, first);
    GATHER(argv, ap, first);
    environment = va_arg(ap, char *const *);
    va_end(ap);
    return execve(path, argv, environment);
}

#pragma GCC visibility pop
