/*
 * Executes a program in one of all ways: execs HOW NAME
 * The child gets the arguments NAME one two and the environment as it is. When
 * that fails: prints the error's number and ends with 1.
 */
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int wait_for(pid_t pid)
{
    int status;

    if (waitpid(pid, &status, 0) != pid)
        return 98;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int spawn(int (*how)(pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *,
                            char *const[], char *const[]),
                 char *name, char *const argv[])
{
    pid_t pid;
    int error = how(&pid, name, NULL, NULL, argv, environ);

    if (error == 0)
        exit(wait_for(pid));
    errno = error;
    return -1;
}

/* The child runs on the parent's memory and stack until it has executed. */
static int in_vfork(char *name, char *const argv[])
{
    volatile int error = 0;
    pid_t pid = vfork();

    if (pid == 0) {
        execve(name, argv, environ);
        error = errno;
        _exit(99);
    }
    if (error == 0)
        exit(wait_for(pid));
    wait_for(pid);
    errno = error;
    return -1;
}

int main(int argc, char **argv)
{
    const char *how = argc > 2 ? argv[1] : "";
    char *name = argc > 2 ? argv[2] : "", *args[] = {name, "one", "two", NULL};
    int saved;

    if (!strcmp(how, "execve"))
        execve(name, args, environ);
    else if (!strcmp(how, "execv"))
        execv(name, args);
    else if (!strcmp(how, "execvp"))
        execvp(name, args);
    else if (!strcmp(how, "execvpe"))
        execvpe(name, args, environ);
    else if (!strcmp(how, "execl"))
        execl(name, name, "one", "two", NULL);
    else if (!strcmp(how, "execlp"))
        execlp(name, name, "one", "two", NULL);
    else if (!strcmp(how, "execle"))
        execle(name, name, "one", "two", NULL, environ);
    else if (!strcmp(how, "fexecve"))
        fexecve(open(name, O_RDONLY | O_CLOEXEC), args, environ);
    else if (!strcmp(how, "fexecve_path"))
        fexecve(open(name, O_PATH | O_CLOEXEC), args, environ);
    else if (!strcmp(how, "execveat"))
        execveat(AT_FDCWD, name, args, environ, 0);
    else if (!strcmp(how, "posix_spawn"))
        spawn(posix_spawn, name, args);
    else if (!strcmp(how, "posix_spawnp"))
        spawn(posix_spawnp, name, args);
    else if (!strcmp(how, "vfork"))
        in_vfork(name, args);
    else if (!strcmp(how, "no_environment"))
        execve(name, args, NULL);
    else
        return 97;
    saved = errno;
    printf("error %d\n", saved);
    return 1;
}
