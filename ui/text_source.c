#include "text_source.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SCAN_MAX ((size_t)4 << 20)

static void file_close(FILE **f)
{
    if (*f)
        fclose(*f);
}

static bool named_like_source(const char *file)
{
    static const char *const endings[] = {
        ".c", ".h", ".cc", ".cpp", ".cxx", ".C", ".hh", ".hpp", ".hxx", ".inc", ".ipp", ".tcc", ".def", ".y",   ".l",
        ".s", ".S", ".rs", ".go",  ".zig", ".m", ".mm", ".py",  ".pyx", ".js",  ".mjs", ".cjs", ".ts",  ".tsx", ".jsx"};
    const char *dot = strrchr(file, '.');
    size_t i;

    for (i = 0; dot && i < UB_ARRAY_LEN(endings); i++)
        if (strcmp(dot, endings[i]) == 0)
            return true;
    return false;
}

static int open_source(const char *file, time_t not_after, FILE **ret)
{
    struct stat st;
    int fd;

    if (*file != '/' || !named_like_source(file)) /* a relative path means another file in every folder */
        return -EPERM;
    fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); /* O_NONBLOCK: a FIFO must not hold us */
    if (fd < 0)
        return -errno;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return -EPERM;
    }
    if (not_after > 0 && st.st_mtime > not_after) {
        close(fd);
        return -ESTALE;
    }
    *ret = fdopen(fd, "r");
    if (!*ret) {
        close(fd);
        return -ENOMEM;
    }
    return 0;
}

/* Skips to the line; false when the file has no such line within the bound. */
static bool seek_line(FILE *f, uint64_t line)
{
    size_t scanned = 0;
    int c = 0;

    while (line > 1 && scanned++ < SCAN_MAX && (c = getc_unlocked(f)) != EOF)
        if (c == '\n')
            line--;
    return line == 1;
}

int ub_text_source(const char *file, uint64_t line, time_t not_after, char *buf, size_t size)
{
    UB_CLEANUP(file_close) FILE *f = NULL;
    size_t len = 0;
    int c, r;

    if (line == 0)
        return -ENOENT;
    r = open_source(file, not_after, &f);
    if (r < 0)
        return r;
    if (!seek_line(f, line))
        return -ENOENT;
    while (len + 1 < size && (c = getc_unlocked(f)) != EOF && c != '\n') {
        if (len == 0 && (c == ' ' || c == '\t'))
            continue;
        if (c != 0)
            buf[len++] = (char)(c == '\t' ? ' ' : c);
    }
    while (len > 0 && (buf[len - 1] == ' ' || buf[len - 1] == '\r'))
        len--;
    buf[len] = 0;
    return len ? 0 : -ENOENT;
}
