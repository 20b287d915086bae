#include "procfile.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

size_t ub_procfile_read(char *buf, size_t size, const char *format, ...)
{
    char path[64];
    size_t len = 0;
    ssize_t n;
    va_list ap;
    int fd;

    va_start(ap, format);
    vsnprintf(path, sizeof(path), format, ap);
    va_end(ap);
    buf[0] = '\0';
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    while (len < size - 1 && (n = read(fd, buf + len, size - 1 - len)) > 0)
        len += (size_t)n;
    close(fd);
    buf[len] = '\0';
    return len;
}

size_t ub_procfile_status(pid_t pid, pid_t tid, char buf[UB_STATUS_MAX])
{
    size_t len = 0, room = 0;
    char path[64], *line = NULL;
    ssize_t n;
    FILE *f;

    buf[0] = '\0';
    snprintf(path, sizeof(path), "/proc/%d/task/%d/status", (int)pid, (int)tid);
    f = fopen(path, "re");
    if (!f)
        return 0;
    while ((n = getline(&line, &room, f)) > 0) {
        if (strncmp(line, "Groups:", 7) == 0)
            continue;
        if (len + (size_t)n >= UB_STATUS_MAX)
            break;
        memcpy(buf + len, line, (size_t)n + 1);
        len += (size_t)n;
    }
    free(line);
    fclose(f);
    return len;
}

void ub_procfile_stat(pid_t pid, pid_t tid, char buf[UB_STAT_MAX])
{
    char text[UB_STAT_MAX], *p;

    ub_procfile_read(text, sizeof(text), "/proc/%d/task/%d/stat", (int)pid, (int)tid);
    p = strrchr(text, ')');
    snprintf(buf, UB_STAT_MAX, "%s", p != NULL && p[1] == ' ' ? p + 2 : "");
}
