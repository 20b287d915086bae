#include "text_frames.h"
#include "../tracer/dispatchers.h"
#include "../tracer/python.h"

#include <inttypes.h>
#include <stdio.h>

static bool starts_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* Interpreters: their own functions mean nothing to somebody who wrote a script. */
static bool is_interpreter(const char *module)
{
    static const char *const names[] = {"node", "ruby", "libruby", "perl", "libperl", "php", "lua", "libv8"};
    size_t i;

    for (i = 0; i < UB_ARRAY_LEN(names); i++)
        if (starts_with(module, names[i]))
            return true;
    return false;
}

/* A shared library where the system keeps them; a plugin of the program's own elsewhere is the user's. */
static bool is_system_library(const char *path)
{
    static const char *const folders[] = {"/lib", "/usr/lib", "/usr/local/lib", "/nix/store/", "/snap/"};
    size_t i;

    if (!strstr(ub_path_base(path), ".so"))
        return false;
    for (i = 0; i < UB_ARRAY_LEN(folders); i++)
        if (starts_with(path, folders[i]))
            return true;
    return false;
}

static enum ub_shown python_class(const json_t *frame)
{
    switch (ub_python_owner_of(ub_json_string(frame, "file"), ub_json_string(frame, "function"))) {
    case UB_PYTHON_LOOP:
        return UB_SHOWN_LOOP;
    case UB_PYTHON_LIBRARY:
        return UB_SHOWN_LIBRARY;
    case UB_PYTHON_USER:
        break;
    }
    return UB_SHOWN_USER;
}

/* Scripts: files of the language's own library and of installed packages. */
static enum ub_shown script_class(const char *file)
{
    static const char *const foreign[] = {"node:", "/node_modules/"};
    size_t i;

    for (i = 0; file && i < UB_ARRAY_LEN(foreign); i++)
        if (strstr(file, foreign[i]))
            return UB_SHOWN_LIBRARY;
    return UB_SHOWN_USER;
}

bool ub_text_frame_generated(const json_t *frame)
{
    return !ub_json_string(frame, "function") && !ub_json_string(frame, "module") && !ub_json_string(frame, "file");
}

enum ub_shown ub_text_frame_class(const json_t *frame, const char *exe)
{
    const char *module = ub_json_string(frame, "module"), *function = ub_json_string(frame, "function");
    const char *base = module ? ub_path_base(module) : "";
    bool libc = false;

    if (ub_text_frame_generated(frame))
        return UB_SHOWN_RUNTIME;
    if (ub_json_is(frame, "language", "python"))
        return python_class(frame);
    if (ub_json_is(frame, "language", "js"))
        return script_class(ub_json_string(frame, "file"));
    if (ub_json_is(frame, "language", "kernel"))
        return UB_SHOWN_LIBC;
    switch (ub_dispatchers_role(base, ub_json_true(frame, "nearest") ? NULL : function, &libc)) {
    case UB_ROLE_LOOP:
        return UB_SHOWN_LOOP;
    case UB_ROLE_RUNTIME:
        return UB_SHOWN_RUNTIME;
    case UB_ROLE_LIBRARY:
        return libc || (function && strcmp(function, "_start") == 0) ? UB_SHOWN_LIBC : UB_SHOWN_LIBRARY;
    case UB_ROLE_USER:
        break;
    }
    if (module && ub_dispatchers_path_role(module) == UB_ROLE_LOOP)
        return UB_SHOWN_LOOP;
    if (module && ub_dispatchers_path_role(module) == UB_ROLE_LIBRARY)
        return UB_SHOWN_RUNTIME;
    if (is_interpreter(base))
        return UB_SHOWN_RUNTIME;
    if (module && (!exe || strcmp(module, exe) != 0) && is_system_library(module))
        return UB_SHOWN_LIBRARY;
    return UB_SHOWN_USER;
}

/* Of a function in the program itself the module says nothing new. */
const char *ub_text_frame_place(const json_t *frame, char *buf, size_t size)
{
    const char *file = ub_json_string(frame, "file"), *module = ub_json_string(frame, "module");
    const char *base = module ? ub_path_base(module) : "";
    bool named = ub_json_string(frame, "function") != NULL;
    uint64_t line = ub_json_u64_or(frame, "line", 0), offset;

    if (file && line > 0)
        snprintf(buf, size, "%s:%" PRIu64, ub_path_base(file), line);
    else if (file)
        snprintf(buf, size, "%s", ub_path_base(file));
    else if (!named && module && ub_json_u64(frame, "offset", &offset))
        snprintf(buf, size, "%s+0x%" PRIx64, base, offset);
    else
        snprintf(buf, size, "%s", !named || strstr(base, ".so") || *base == '[' ? base : "");
    return buf;
}

/* Where the argument list begins that ends at `end`; NULL when it is none. */
static char *find_arguments(char *text, char *end)
{
    int depth = 0;
    char *p;

    for (p = end; p > text; p--) {
        depth += (*p == ')') - (*p == '(');
        if (depth == 0)
            return starts_with(p, "(anonymous namespace)") ? NULL : p;
    }
    return NULL;
}

const char *ub_text_frame_plain(const char *function, char *buf, size_t size)
{
    char *end, *arguments;

    snprintf(buf, size, "%s", function);
    end = strrchr(buf, ')');
    if (!end || end - buf < 2 || (end[1] && strcmp(end + 1, " const") != 0))
        return buf;
    if (end[-1] == '(') { /* no arguments, but perhaps operator() */
        if (end - buf < 9 || strncmp(end - 9, "operator()", 10) != 0)
            end[-1] = 0;
        return buf;
    }
    arguments = find_arguments(buf, end);
    if (arguments)
        *arguments = 0;
    return buf;
}

/* A nearest symbol is a guess, and said to be one; its offset tells how good it is. */
const char *ub_text_frame_function(const json_t *frame, char *buf, size_t size)
{
    const char *function = ub_json_string(frame, "function");
    char plain[1024];
    uint64_t offset;

    if (function)
        function = ub_text_frame_plain(function, plain, sizeof(plain));
    if (!function)
        snprintf(buf, size, "%s", ub_text_frame_generated(frame) ? "(generated code)" : "");
    else if (!ub_json_true(frame, "nearest"))
        snprintf(buf, size, "%s", function);
    else if (ub_json_u64(frame, "offset", &offset))
        snprintf(buf, size, "near %s+0x%" PRIx64 " (nearest symbol)", function, offset);
    else
        snprintf(buf, size, "near %s (nearest symbol)", function);
    return buf;
}

static bool same_text(const json_t *a, const json_t *b, const char *key)
{
    const char *x = ub_json_string(a, key), *y = ub_json_string(b, key);

    return x == y || (x && y && strcmp(x, y) == 0);
}

bool ub_text_frame_same(const json_t *a, const json_t *b)
{
    if (a == b || (ub_text_frame_generated(a) && ub_text_frame_generated(b)))
        return true;
    if (!same_text(a, b, "function") || !same_text(a, b, "module") || !same_text(a, b, "file"))
        return false;
    return ub_json_string(a, "function") || json_equal(json_object_get(a, "offset"), json_object_get(b, "offset"));
}
