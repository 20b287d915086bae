#include "output.h"
#include "say.h"

#include <errno.h>
#include <string.h>

int ub_output_open(struct ub_output *out, const char *command, const char *path, const struct ub_input *in)
{
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
    ub_say(command, "-o %s: %s", path, strerror(errno));
    return -errno;
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
    ub_say(out->command, "the %s could not be written to %s: %s", out->command,
           out->file == stdout ? "standard output" : out->path, strerror(error));
    return error ? -error : -EIO;
}
