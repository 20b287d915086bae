#include "output.h"
#include "say.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int ub_output_open(struct ub_output *out, const char *command, const char *path, const struct ub_input *in)
{
    int r;

    *out = (struct ub_output){.command = command, .path = path, .file = stdout};
    if (!path || strcmp(path, "-") == 0)
        return 0;
    if (in && ub_input_has(in, path)) {
        ub_say(command, "-o %s is the recording itself: choose another file", path);
        return -EINVAL;
    }
    out->file = fopen(path, "we");
    if (out->file)
        return 0;
    r = -errno;
    ub_output_refused(command, "", path, r, false);
    return r;
}

void ub_output_refused(const char *command, const char *what, const char *path, int error, bool append)
{
    if (error == -EEXIST)
        ub_say(command, "%s exists: --force replaces it, %sor choose another -o FILE", path,
               append ? "--append adds to it, " : "");
    else
        ub_say(command, "cannot write %s%s: %s: choose another -o FILE", what, path, strerror(-error));
}

static int create(struct ub_output *out, bool force)
{
    struct stat st;
    /* Only a file's contents can be lost. */
    bool lossless = force || (stat(out->path, &st) == 0 && !S_ISREG(st.st_mode));
    int fd = open(out->path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOCTTY | (lossless ? O_TRUNC : O_EXCL), 0600);

    if (fd < 0)
        return -errno;
    out->file = fdopen(fd, "w");
    if (out->file)
        return 0;
    close(fd);
    return -ENOMEM;
}

int ub_output_create(struct ub_output *out, const char *command, const char *path, bool force)
{
    int r = 0;

    *out = (struct ub_output){.command = command, .path = path, .file = stdout};
    if (path && strcmp(path, "-") != 0)
        r = create(out, force);
    if (r < 0)
        ub_output_refused(command, "", path, r, false);
    return r;
}

int ub_output_close(struct ub_output *out)
{
    bool failed = fflush(out->file) != 0 || ferror(out->file);
    int error = errno;

    if (out->file != stdout && fclose(out->file) != 0 && !failed) {
        failed = true;
        error = errno;
    }
    if (!failed)
        return 0;
    error = error ? error : EIO;
    if (out->file == stdout)
        ub_say(out->command, "cannot write to standard output: %s", strerror(error));
    else
        ub_output_refused(out->command, "", out->path, -error, false);
    return -error;
}
