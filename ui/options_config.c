/*
 * Options from files, INI with the long names of the options:
 *
 *     color = never           before any section: every command that has it
 *     [run]
 *     threshold = 20ms
 *
 * The user's ($XDG_CONFIG_HOME/unblock.ini), then the project's (./.unblock.ini,
 * which wins). Someone else's .unblock.ini in a folder that one happens to stand
 * in is not obeyed.
 */
#include "options_private.h"
#include "say.h"

#include <errno.h>
#include <fcntl.h>
#include <ini.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_MAX_BYTES (64 << 10)

struct config {
    const struct ub_options *options;
    const char *path;
    char command[32];
    char *why;
    int r;
};

const char *ub_options_command_name(const struct ub_options *options, char buf[32])
{
    const char *p = options->usage != NULL ? options->usage : "";

    *buf = 0;
    if (strncmp(p, "unblock ", 8) == 0)
        snprintf(buf, 32, "%.*s", (int)strcspn(p + 8, " "), p + 8);
    return buf;
}

/* Texts live as long as the process: options refer to them. */
struct kept {
    struct kept *next;
    char text[];
};

static struct kept *all_kept;

static const char *keep(const char *text)
{
    struct kept *kept = malloc(sizeof(*kept) + strlen(text) + 1);

    if (kept == NULL)
        return NULL;
    memcpy(kept->text, text, strlen(text) + 1);
    kept->next = all_kept;
    all_kept = kept;
    return kept->text;
}

static int take_value(struct config *c, const struct ub_option *o, const char *text)
{
    char source[200];

    if (o->kind == UB_OPTION_TEXT)
        text = keep(text);
    if (text == NULL)
        return -ENOMEM;
    snprintf(source, sizeof(source), "%.120s: %s", c->path, o->name);
    return ub_option_set(o, source, text, c->why);
}

static int take_line(void *user, const char *section, const char *name, const char *value)
{
    struct config *c = user;
    const struct ub_option *o;

    if (c->r < 0 || (*section != 0 && strcmp(section, c->command) != 0))
        return 1;
    o = ub_option_find(c->options, name, strlen(name));
    if (o != NULL) {
        c->r = take_value(c, o, value != NULL ? value : "");
    } else if (*section != 0) {
        snprintf(c->why, UB_WHY_MAX, "%.200s: [%s] has '%.64s', which is no option of unblock %s (see --help)", c->path,
                 section, name, c->command);
        c->r = -EINVAL;
    }
    return 1;
}

static int read_file(struct config *c, FILE *file)
{
    int line = ini_parse_file(file, take_line, c);

    if (c->r < 0)
        return c->r;
    if (line == 0)
        return 0;
    snprintf(c->why, UB_WHY_MAX, "%.200s:%d: neither [section] nor name = value", c->path, line > 0 ? line : 0);
    return -EINVAL;
}

/* Not there is fine; there but not for us is said once and passed over. */
static int read_config(const struct ub_options *options, const char *path, char *why)
{
    struct config c = {.options = options, .path = path, .why = why};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK), r = 0;
    struct stat st;
    FILE *file;

    if (fd < 0)
        return 0;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return 0;
    }
    if (st.st_uid != geteuid() || st.st_size > FILE_MAX_BYTES) {
        ub_say(ub_options_command_name(options, c.command), "warning: %s is %s: not read", path,
               st.st_size > FILE_MAX_BYTES ? "too large" : "another user's");
        close(fd);
        return 0;
    }
    ub_options_command_name(options, c.command);
    file = fdopen(fd, "r");
    if (file == NULL) {
        close(fd);
        return 0;
    }
    r = read_file(&c, file);
    fclose(file);
    return r;
}

int ub_options_config(const struct ub_options *options, char *why)
{
    const char *home = getenv("HOME"), *config = getenv("XDG_CONFIG_HOME");
    char path[4096];
    int r = 0;

    if (config != NULL && *config == '/')
        snprintf(path, sizeof(path), "%s/unblock.ini", config);
    else if (home != NULL && *home == '/')
        snprintf(path, sizeof(path), "%s/.config/unblock.ini", home);
    else
        path[0] = 0;
    if (path[0] != 0)
        r = read_config(options, path, why);
    if (r == 0)
        r = read_config(options, "./.unblock.ini", why);
    return r;
}
