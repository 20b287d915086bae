#include "say.h"

#include "../tracer/line.h"
#include "write_all.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void ub_say(const char *command, const char *format, ...)
{
    char text[4096], buf[8192];
    struct ub_line line;
    va_list ap;

    va_start(ap, format);
    vsnprintf(text, sizeof(text), format, ap);
    va_end(ap);
    ub_line_begin(&line, buf, sizeof(buf) - 1);
    ub_line_printf(&line, command != NULL ? "unblock %s: " : "unblock: ", command);
    ub_line_escape(&line, text, strlen(text), 0);
    buf[line.len] = '\n';
    ub_write_all(STDERR_FILENO, buf, line.len + 1, false, NULL);
}
