#include "top.h"

#include "command.h"
#include "control.h"
#include "options.h"
#include "say.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LOOK_NS       20000000
#define TELL_AFTER    50 /* looks */
#define FOLDER_SUFFIX "/unblock-top-XXXXXX"

struct ub_top_attached {
    pid_t child;
    int err;           /* what it says */
    char folder[4000]; /* where its recording is, until it is open */
    char path[4096];
};

/* In the child. When top ends, however that comes, so does the watching. */
static void attach(const struct ub_top_attached *a, pid_t pid, int err, pid_t parent)
{
    char number[16];
    char *argv[] = {(char *)"unblock", (char *)"attach", (char *)"-q", (char *)"-o", (char *)a->path, number, NULL};
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    snprintf(number, sizeof(number), "%d", (int)pid);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() == parent && dup2(null, STDIN_FILENO) >= 0 && dup2(null, STDOUT_FILENO) >= 0 &&
        dup2(err, STDERR_FILENO) >= 0)
        execv("/proc/self/exe", argv);
    _exit(UB_EXIT_RUN_FAILED);
}

static int start(struct ub_top_attached *a, pid_t pid)
{
    const char *tmp = getenv("TMPDIR");
    pid_t self = getpid();
    int err[2];

    if (!tmp || *tmp != '/' || strlen(tmp) + sizeof(FOLDER_SUFFIX) > sizeof(a->folder))
        tmp = "/tmp";
    snprintf(a->folder, sizeof(a->folder), "%s" FOLDER_SUFFIX, tmp);
    if (!mkdtemp(a->folder) || pipe2(err, O_CLOEXEC) < 0)
        return -errno;
    snprintf(a->path, sizeof(a->path), "%s/top.jsonl", a->folder);
    a->child = fork();
    if (a->child == 0)
        attach(a, pid, err[1], self);
    close(err[1]);
    a->err = err[0];
    return a->child < 0 ? -errno : 0;
}

/* Its last line says why, in words for a person. */
static void say_why(const struct ub_top_attached *a, pid_t pid, char *why)
{
    static const char prefix[] = "unblock attach: ";
    char text[4096], *line;
    size_t len = 0;
    ssize_t n;

    while (len < sizeof(text) - 1 && (n = read(a->err, text + len, sizeof(text) - 1 - len)) > 0)
        len += (size_t)n;
    while (len > 0 && text[len - 1] == '\n')
        len--;
    text[len] = '\0';
    line = strrchr(text, '\n');
    line = line ? line + 1 : text;
    if (strncmp(line, prefix, sizeof(prefix) - 1) == 0)
        line += sizeof(prefix) - 1;
    if (*line)
        snprintf(why, UB_WHY_MAX, "%.500s", line);
    else
        snprintf(why, UB_WHY_MAX, "process %d could not be watched", (int)pid);
}

static bool is_watched(pid_t pid)
{
    struct ub_control_client *client;

    if (ub_control_find(pid, &client) < 0)
        return false;
    ub_control_hang_up(client);
    return true;
}

int ub_top_attach(pid_t pid, struct ub_top_attached **ret, char *why)
{
    struct ub_top_attached *a = calloc(1, sizeof(*a));
    int r;

    if (!a)
        return -ENOMEM;
    a->err = -1;
    r = start(a, pid);
    if (r < 0)
        snprintf(why, UB_WHY_MAX, "process %d could not be watched: %s", (int)pid, strerror(-r));
    for (int i = 0; r == 0 && !is_watched(pid); i++) {
        if (waitpid(a->child, NULL, WNOHANG) == a->child) {
            a->child = 0;
            say_why(a, pid, why);
            r = -ECHILD;
        } else if (i == TELL_AFTER) {
            ub_say("top", "waiting for an event loop of process %d to come round to its wait (Ctrl-C gives up)",
                   (int)pid);
        }
        nanosleep(&(struct timespec){0, LOOK_NS}, NULL);
    }
    if (r < 0) {
        ub_top_detach(a);
        return r;
    }
    *ret = a;
    return 0;
}

void ub_top_forget_recording(struct ub_top_attached *a)
{
    if (*a->path)
        unlink(a->path);
    if (*a->folder)
        rmdir(a->folder);
}

void ub_top_detach(struct ub_top_attached *a)
{
    ub_top_forget_recording(a);
    if (a->child > 0 && kill(a->child, SIGINT) == 0)
        waitpid(a->child, NULL, 0);
    if (a->err >= 0)
        close(a->err);
    free(a);
}
