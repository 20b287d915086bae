/*
 * The writer. One line is one write(2), so a killed run leaves whole lines and
 * at most one torn one.
 *
 * Rotation: every part must stand alone. The header, processes and loops are
 * repeated at its start; a stack is repeated just before the first line of the
 * part that refers to it.
 */
#include "recording.h"
#include "json_get.h"
#include "write_all.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define KEPT_LINES_MAX  1024               /* processes and loops each */
#define KEPT_STACKS_MAX ((size_t)64 << 20) /* bytes; what is beyond is missing from later parts */
#define PARTS_MAX       100000
#define REPLACINGS      8

struct ub_recording_writer {
    int fd;
    bool owns_fd;
    bool regular;
    bool torn; /* the last write failed midway: the next line starts with a newline of its own */
    int error; /* the first one */
    uint64_t lost;

    char *path; /* of part 0 */
    bool force;
    uint64_t max_size; /* 0: no rotation, and nothing below is used */
    uint64_t size;     /* of this part */
    uint64_t rotate_at;
    unsigned part;

    json_t *header;
    json_t *processes; /* pid -> record */
    json_t *loops;     /* pid/tid -> record */
    json_t *stacks;    /* id -> the line's text */
    size_t stacks_bytes;
    json_t *written; /* id -> true: stacks that this part holds */

    char *line; /* the line being built; reused */
    size_t line_len, line_size;
};

static void note_error(struct ub_recording_writer *w, int error)
{
    if (w->error == 0)
        w->error = error;
}

/* ---- one line -------------------------------------------------------- */

static int line_append(const char *bytes, size_t len, void *data)
{
    struct ub_recording_writer *w = data;

    if (w->line_size - w->line_len < len) {
        size_t size = (w->line_len + len) * 2;
        char *line = realloc(w->line, size);

        if (!line)
            return -1;
        w->line = line;
        w->line_size = size;
    }
    memcpy(w->line + w->line_len, bytes, len);
    w->line_len += len;
    return 0;
}

static void line_write(struct ub_recording_writer *w)
{
    size_t skip = w->torn ? 0 : 1; /* the line is built with a newline in front */
    size_t done;
    int r = ub_write_all(w->fd, w->line + skip, w->line_len - skip, w->regular, &done);

    w->size += done;
    if (r == 0) {
        w->torn = false;
        return;
    }
    if (done > 0)
        w->torn = true;
    w->lost++;
    note_error(w, r);
}

static void put_text(struct ub_recording_writer *w, const char *text, size_t len)
{
    w->line_len = 0;
    if (line_append("\n", 1, w) || line_append(text, len, w) || line_append("\n", 1, w)) {
        w->lost++;
        note_error(w, -ENOMEM);
        return;
    }
    line_write(w);
}

static void put(struct ub_recording_writer *w, const json_t *record)
{
    w->line_len = 0;
    if (line_append("\n", 1, w) || json_dump_callback(record, line_append, w, JSON_COMPACT) ||
        line_append("\n", 1, w)) {
        w->lost++;
        note_error(w, -EBADMSG); /* only a record that is no valid UTF-8, or no memory */
        return;
    }
    line_write(w);
}

/* ---- opening --------------------------------------------------------- */

static int create_new(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY, 0600);

    return fd < 0 ? -errno : fd;
}

/*
 * Unlinking first never follows a symbolic link that somebody planted in a
 * shared folder, and leaves a reader of the old file alone. A file that cannot
 * be unlinked (mounted over, read-only folder) is emptied instead.
 */
static int create_replacing(const char *path)
{
    int fd = -EEXIST;

    for (int i = 0; fd == -EEXIST && i < REPLACINGS; i++) { /* another run may be just replacing it, too */
        if (unlink(path) != 0 && errno != ENOENT)
            break;
        fd = create_new(path);
    }
    if (fd != -EEXIST)
        return fd;
    fd = open(path, O_WRONLY | O_TRUNC | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY);
    if (fd < 0)
        return -errno;
    (void)fchmod(fd, 0600);
    return fd;
}

/* A file whose writer was killed may end in a torn line: ours must not be glued to it. */
static int open_appending(struct ub_recording_writer *w)
{
    int fd = open(w->path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, 0600);
    struct stat st;
    char last = '\n';

    if (fd < 0)
        return -errno;
    if (fstat(fd, &st) == 0 && st.st_size > 0) {
        w->size = (uint64_t)st.st_size;
        if (pread(fd, &last, 1, st.st_size - 1) == 1 && last != '\n')
            w->torn = true;
    }
    return fd;
}

static int open_first(struct ub_recording_writer *w, const struct ub_recording_options *options)
{
    struct stat st;
    int fd;

    if (strcmp(options->path, "-") == 0)
        return STDOUT_FILENO;
    if (stat(options->path, &st) == 0 && !S_ISREG(st.st_mode)) { /* a FIFO, /dev/null, /dev/stderr */
        fd = open(options->path, O_WRONLY | O_CLOEXEC | O_NOCTTY);
        return fd < 0 ? -errno : fd;
    }
    if (options->append)
        return open_appending(w);
    return options->force ? create_replacing(options->path) : create_new(options->path);
}

static void writer_free(struct ub_recording_writer *w)
{
    json_decref(w->header);
    json_decref(w->processes);
    json_decref(w->loops);
    json_decref(w->stacks);
    json_decref(w->written);
    free(w->line);
    free(w->path);
    free(w);
}

int ub_recording_create(const struct ub_recording_options *options, struct ub_recording_writer **ret)
{
    struct ub_recording_writer *w = calloc(1, sizeof(*w));
    struct stat st;

    if (!w)
        return -ENOMEM;
    w->path = strdup(options->path);
    w->processes = json_object();
    w->loops = json_object();
    w->stacks = json_object();
    w->written = json_object();
    if (!w->path || !w->processes || !w->loops || !w->stacks || !w->written) {
        writer_free(w);
        return -ENOMEM;
    }
    w->fd = open_first(w, options);
    if (w->fd < 0) {
        int r = w->fd;

        writer_free(w);
        return r;
    }
    w->owns_fd = w->fd != STDOUT_FILENO;
    if (options->lock && w->owns_fd && flock(w->fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
        close(w->fd);
        writer_free(w);
        return -EWOULDBLOCK;
    }
    w->regular = fstat(w->fd, &st) == 0 && S_ISREG(st.st_mode);
    w->force = options->force;
    w->max_size = w->regular && w->owns_fd ? options->max_size : 0;
    w->rotate_at = w->max_size;
    *ret = w;
    return 0;
}

/* ---- rotation -------------------------------------------------------- */

static int open_next_part(struct ub_recording_writer *w, char **ret_path)
{
    unsigned part;

    for (part = w->part + 1; part < PARTS_MAX; part++) {
        char *path;
        int fd;

        if (asprintf(&path, "%s.%u", w->path, part) < 0)
            return -ENOMEM;
        fd = w->force ? create_replacing(path) : create_new(path);
        if (fd == -EEXIST) { /* left by an earlier run */
            free(path);
            continue;
        }
        if (fd < 0) {
            free(path);
            return fd;
        }
        w->part = part;
        *ret_path = path;
        return fd;
    }
    return -EMFILE;
}

/* The last line of a finished part tells a reader that the run did not end here. */
static void put_continued(struct ub_recording_writer *w, const char *next)
{
    UB_CLEANUP(ub_json_drop)
    json_t *note = json_pack("{s:s, s:s, s:o*, s:s%}", "type", "note", "level", "info", "text",
                             json_sprintf("the recording goes on in %s", ub_path_base(next)), "next",
                             ub_path_base(next), strlen(ub_path_base(next)));

    if (note) /* NULL: a file name that is not UTF-8 */
        put(w, note);
}

static void put_all(struct ub_recording_writer *w, json_t *kept)
{
    const char *key;
    json_t *record;

    json_object_foreach (kept, key, record) {
        put(w, record);
    }
}

static void put_preamble(struct ub_recording_writer *w)
{
    UB_CLEANUP(ub_json_drop) json_t *header = w->header ? json_copy(w->header) : NULL;

    if (header) {
        json_object_set_new(header, "part", json_integer(w->part));
        put(w, header);
    }
    put_all(w, w->processes);
    put_all(w, w->loops);
}

static void rotate(struct ub_recording_writer *w)
{
    char *path;
    int fd = open_next_part(w, &path);

    if (fd < 0) { /* go on in this part, and try again much later */
        note_error(w, fd);
        w->rotate_at = ub_add_saturated(w->rotate_at, w->max_size);
        return;
    }
    put_continued(w, path);
    free(path);
    if (close(w->fd) != 0)
        note_error(w, -errno);
    w->fd = fd;
    w->size = 0;
    w->torn = false;
    json_object_clear(w->written);
    put_preamble(w);
    w->rotate_at = ub_add_saturated(w->size, w->max_size); /* a preamble beyond max_size must not rotate for ever */
}

static void keep(json_t *kept, const char *key, json_t *record)
{
    if (json_object_size(kept) >= KEPT_LINES_MAX && !json_object_get(kept, key))
        json_object_del(kept, json_object_iter_key(json_object_iter(kept)));
    json_object_set(kept, key, record);
}

/* The line buffer holds the record's text: called right after it was put. */
static void keep_stack(struct ub_recording_writer *w, const char *id)
{
    size_t len = w->line_len < 2 ? 0 : w->line_len - 2;

    json_object_set_new(w->written, id, json_true());
    if (w->stacks_bytes + len > KEPT_STACKS_MAX || json_object_get(w->stacks, id))
        return;
    w->stacks_bytes += len;
    json_object_set_new(w->stacks, id, json_stringn(w->line + 1, len));
}

static void put_missing_stack(struct ub_recording_writer *w, const json_t *id)
{
    char key[32];
    json_t *text;

    if (!json_is_integer(id))
        return;
    snprintf(key, sizeof(key), "%" JSON_INTEGER_FORMAT, json_integer_value(id));
    if (json_object_get(w->written, key))
        return;
    text = json_object_get(w->stacks, key);
    if (!text)
        return;
    put_text(w, json_string_value(text), json_string_length(text));
    json_object_set_new(w->written, key, json_true());
}

static void put_missing_stacks(struct ub_recording_writer *w, const json_t *record)
{
    const json_t *sample;
    size_t i;

    put_missing_stack(w, json_object_get(record, "stack"));
    json_array_foreach (json_object_get(record, "samples"), i, sample) {
        put_missing_stack(w, json_object_get(sample, "stack"));
    }
}

static void keep_for_rotation(struct ub_recording_writer *w, json_t *record)
{
    char key[64];

    if (ub_json_is(record, "type", "header") && !w->header) {
        w->header = json_incref(record);
    } else if (ub_json_is(record, "type", "process")) {
        snprintf(key, sizeof(key), "%" PRIu64, ub_json_u64_or(record, "pid", 0));
        keep(w->processes, key, record);
    } else if (ub_json_is(record, "type", "loop")) {
        snprintf(key, sizeof(key), "%" PRIu64 "/%" PRIu64, ub_json_u64_or(record, "pid", 0),
                 ub_json_u64_or(record, "tid", 0));
        keep(w->loops, key, record);
    } else if (ub_json_is(record, "type", "stack")) {
        snprintf(key, sizeof(key), "%" PRIu64, ub_json_u64_or(record, "id", 0));
        keep_stack(w, key);
    }
}

static void sink_line(void *self, json_t *record)
{
    struct ub_recording_writer *w = self;

    if (w->max_size == 0) {
        put(w, record);
        return;
    }
    if (w->size >= w->rotate_at && !ub_json_is(record, "type", "end"))
        rotate(w);
    put_missing_stacks(w, record);
    put(w, record);
    keep_for_rotation(w, record);
}

struct ub_sink ub_recording_sink(struct ub_recording_writer *w)
{
    return (struct ub_sink){.line = sink_line, .self = w};
}

uint64_t ub_recording_lost(const struct ub_recording_writer *w)
{
    return ub_load_relaxed(&w->lost);
}

int ub_recording_close(struct ub_recording_writer *w, uint64_t *ret_lost)
{
    int r;

    if (w->owns_fd && close(w->fd) != 0)
        note_error(w, -errno);
    r = w->error;
    if (ret_lost)
        *ret_lost = w->lost;
    writer_free(w);
    return r;
}
