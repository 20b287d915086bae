#include "preamble.h"

#include "../common/clock.h"
#include "mask.h"
#include "procfile.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define ARGUMENT_MAX  1024 /* a longer one is cut: programs are given whole scripts */
#define ARGUMENTS_MAX 16384

static void now_text(char *buf, size_t size)
{
    struct timespec ts;
    struct tm tm;
    size_t len;

    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    len = strftime(buf, size, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(buf + len, size - len, ".%06ldZ", ts.tv_nsec / 1000);
}

json_t *ub_preamble_string(const char *text)
{
    char buf[4096];
    struct ub_line line;

    ub_line_begin(&line, buf, sizeof(buf));
    ub_line_escape(&line, text, strlen(text), 0);
    return json_string(buf);
}

/* Appends one argument to the list; `previous` may announce that it is a secret. */
static void add_argument(json_t *list, const char *previous, const char *argument, bool redact)
{
    char buf[ARGUMENT_MAX];
    struct ub_line line;

    ub_line_begin(&line, buf, sizeof(buf));
    if (previous == NULL)
        ub_line_escape(&line, argument, strlen(argument), 0);
    else if (redact)
        ub_line_printf(&line, "(redacted)");
    else if (ub_mask_next(previous) && *argument != '-')
        ub_line_printf(&line, "***");
    else
        ub_mask_text(&line, argument);
    json_array_append_new(list, json_string(buf));
}

const char *ub_preamble_offload(uint32_t mode)
{
    static const char *const modes[] = {"off", "dry-run", "flagged", "eager", "policy"}; /* enum ub_offload_mode */

    return modes[mode < UB_ARRAY_LEN(modes) ? mode : 0];
}

json_t *ub_preamble_header(const char *source, uint64_t threshold_ns, int argc, char *const *argv, bool redact,
                           uint32_t offload)
{
    char started[48], host[256] = "";
    json_t *command = json_array();

    for (int i = 0; i < argc; i++)
        add_argument(command, i > 0 ? argv[i - 1] : NULL, argv[i], redact);
    gethostname(host, sizeof(host) - 1);
    now_text(started, sizeof(started));
    return json_pack("{s:s, s:s, s:i, s:s, s:s, s:I, s:o, s:o, s:I, s:s, s:s}", "type", "header", "schema",
                     "unblock-recording", "version", 1, "tool", "unblock " UB_VERSION, "started", started,
                     "monotonic_ns", (json_int_t)ub_clock_monotonic_ns(), "host", ub_preamble_string(host), "command",
                     command, "threshold_ns", (json_int_t)threshold_ns, "source", source, "offload",
                     ub_preamble_offload(offload));
}

json_t *ub_preamble_predicted(const char *from, uint64_t p99_ns, uint64_t longest_ns)
{
    return json_pack("{s:o, s:I, s:I}", "from", ub_preamble_string(from), "p99_ns", (json_int_t)p99_ns, "longest_ns",
                     (json_int_t)longest_ns);
}

static json_t *arguments_of(pid_t pid, bool redact)
{
    char text[ARGUMENTS_MAX];
    const char *previous = NULL;
    json_t *list = json_array();
    size_t len;

    len = ub_procfile_read(text, sizeof(text), "/proc/%d/cmdline", (int)pid);
    while (len > 0 && text[len - 1] == '\0') /* setproctitle() leaves the rest of the old arguments as NULs */
        len--;
    for (size_t at = 0; at < len; at += strlen(text + at) + 1) {
        add_argument(list, previous, text + at, redact);
        previous = text + at;
    }
    return list;
}

json_t *ub_preamble_process(pid_t pid, pid_t ppid, const char *exe, const char *how, bool redact)
{
    json_t *line = json_pack("{s:s, s:i, s:i, s:o, s:o}", "type", "process", "pid", (int)pid, "ppid", (int)ppid, "exe",
                             ub_preamble_string(exe != NULL ? exe : "?"), "args", arguments_of(pid, redact));

    if (line != NULL && how != NULL)
        json_object_set_new(line, "how", json_string(how));
    return line;
}

void ub_preamble_thread_name(pid_t pid, pid_t tid, char *buf, size_t size)
{
    char text[64];
    struct ub_line line;
    size_t len;

    len = ub_procfile_read(text, sizeof(text), "/proc/%d/task/%d/comm", (int)pid, (int)tid);
    ub_line_begin(&line, buf, size);
    ub_line_escape(&line, text, len > 0 ? len - 1 : 0, 0); /* the kernel adds a newline, the name may hold more */
}
