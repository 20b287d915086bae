#include "recording.h"
#include "json_get.h"

#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define PROGRAM_MAX 64

/* File names that need no quoting in a shell and cannot leave the folder. */
static void put_program(FILE *out, const char *program)
{
    const char *base = ub_path_base(program);
    size_t i;

    if (*base == '.')
        fputc('_', out);
    for (i = 0; i < PROGRAM_MAX && base[i]; i++) {
        char c = base[i];
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || strchr("._+-", c);

        fputc(plain ? c : '_', out);
    }
}

static void put_time(FILE *out)
{
    time_t now = time(NULL);
    char text[32];
    struct tm tm;

    if (gmtime_r(&now, &tm) && strftime(text, sizeof(text), "%Y%m%dT%H%M%SZ", &tm) > 0)
        fputs(text, out);
}

static void put_host(FILE *out)
{
    char host[256] = "";

    if (gethostname(host, sizeof(host) - 1) == 0)
        put_program(out, host);
}

static void expand(FILE *out, const char *template, long pid)
{
    for (; *template; template ++) {
        if (*template != '%') {
            fputc(*template, out);
            continue;
        }
        switch (template[1]) {
        case 'p':
            fprintf(out, "%ld", pid);
            break;
        case 't':
            put_time(out);
            break;
        case 'h':
            put_host(out);
            break;
        case '%':
            fputc('%', out);
            break;
        default:
            fputc('%', out);
            continue;
        }
        template ++;
    }
}

char *ub_recording_name(const char *template, const char *program, long pid)
{
    char *name = NULL;
    size_t size;
    FILE *out = open_memstream(&name, &size);

    if (!out)
        return NULL;
    if (template) {
        expand(out, template, pid);
    } else {
        fputs("unblock-", out);
        put_program(out, program);
        fprintf(out, "-%ld-", pid);
        put_time(out);
        fputs(".jsonl", out);
    }
    if (fclose(out) != 0) {
        free(name);
        return NULL;
    }
    return name;
}
