/*
 * Offload policies: what names the rules fit.
 */
#include "policy_impl.h"

#include "../common/units.h"

#include <ctype.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DOTTED_MAX 512
#define NAME_MAX_  160u

/* Those of which the agent has hooks that move (agent/offload/moves.c); a test compares the lists. */
static const char *const movable[] = {
    "read",        "readv",   "write",  "writev",      "recv",     "recvfrom", "recvmsg",   "accept",
    "accept4",     "send",    "flock",  "fcntl",       "sleep",    "usleep",   "nanosleep", "clock_nanosleep",
    "waitpid",     "connect", "fsync",  "getaddrinfo", "syncfs",   "pread",    "fdatasync", "pwrite",
    "ftruncate",   "open",    "openat", "fallocate",   "sem_wait", "stat",     "lstat",     "posix_fallocate",
    "unlink",      "rename",  "poll",   "select",
#define NAME(name, ...) #name,
    UB_UNITS(NAME)};

static const char *const all[] = {
#define UB_CALL(type, name, params, args, syscall, letters, ...) #name,
#define UB_CALLV(type, name, params, args, syscall, letters)     #name,
#include "../common/calls.def"
#undef UB_CALL
#undef UB_CALLV
    "sem_wait", UB_UNITS(NAME) NULL};
#undef NAME

static bool is_known(const char *name)
{
    for (size_t i = 0; all[i]; i++) {
        if (strcmp(all[i], name) == 0)
            return true;
    }
    return false;
}

static bool cut_end(char *name, const char *end)
{
    size_t len = strlen(name), n = strlen(end);

    if (len <= n || strcmp(name + len - n, end) != 0)
        return false;
    name[len - n] = '\0';
    return true;
}

void ub_policy_call_name(const char *name, char *ret, size_t size)
{
    char shorter[64];

    name += strncmp(name, "__", 2) == 0 && name[2] ? 2 : 0;
    snprintf(ret, size, "%s", name);
    if (!cut_end(ret, "_chk"))
        cut_end(ret, "_2");
    snprintf(shorter, sizeof(shorter), "%s", ret);
    if (cut_end(shorter, "64") && is_known(shorter))
        snprintf(ret, size, "%s", shorter);
}

bool ub_policy_may_move(const char *call)
{
    char name[64];

    ub_policy_call_name(call, name, sizeof(name));
    for (size_t i = 0; i < UB_ARRAY_LEN(movable); i++) {
        if (strcmp(movable[i], name) == 0)
            return true;
    }
    return false;
}

bool ub_policy_fits_call(const struct ub_policy_rule *rule, const char *call)
{
    char name[64];

    if (!rule->call)
        return true;
    ub_policy_call_name(call, name, sizeof(name));
    return fnmatch(rule->call, name, 0) == 0 || fnmatch(rule->call, call, 0) == 0;
}

bool ub_policy_any_call(const struct ub_policy_rule *rule, bool *ret_movable)
{
    bool any = false;

    *ret_movable = false;
    for (size_t i = 0; all[i]; i++) {
        if (ub_policy_fits_call(rule, all[i])) {
            any = true;
            *ret_movable |= ub_policy_may_move(all[i]);
        }
    }
    return any;
}

const char *ub_policy_nearest_call(const char *call)
{
    return ub_nearest(call, all);
}

/* The `:` between file and function; a pair of them belongs to a name of C++. */
const char *ub_policy_colon(const char *place)
{
    for (const char *c = place; (c = strchr(c, ':')) != NULL; c++) {
        if (c[1] != ':')
            return c;
        c++;
    }
    return NULL;
}

/* The `=` with a space before it, since C++ has operator==; else the first one. */
char *ub_policy_equals(char *text)
{
    for (char *c = text; (c = strchr(c, '=')) != NULL; c++) {
        if (c > text && (c[-1] == ' ' || c[-1] == '\t'))
            return c;
    }
    return strchr(text, '=');
}

static const char *base(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

void ub_policy_put_name(char *to, size_t size, const char *name)
{
    size_t used = strlen(to), i;

    for (i = 0; i < NAME_MAX_ && name[i] && used + 2 < size; i++) {
        bool plain = (unsigned char)name[i] >= ' ' && (unsigned char)name[i] != 0x7f && !strchr("[]\\*?=#", name[i]);

        to[used++] = plain ? name[i] : '?';
    }
    if (name[i] && used + 1 < size)
        to[used++] = '*';
    to[used] = '\0';
}

bool ub_policy_dotted(const char *file, const char *function, char *ret, size_t size)
{
    const char *name, *slash;
    char module[128];

    *ret = '\0';
    if (!file || !function || *function == '<')
        return false;
    name = base(file);
    if (strcmp(name, "__init__.py") == 0 && name > file + 1) { /* the package's name */
        for (slash = name - 2; slash > file && slash[-1] != '/'; slash--)
            ;
        snprintf(module, sizeof(module), "%.*s", (int)(name - 1 - slash), slash);
    } else {
        snprintf(module, sizeof(module), "%.*s", (int)strcspn(name, "."), name);
    }
    for (const unsigned char *c = (const unsigned char *)module; *c; c++) {
        if (!isalnum(*c) && *c != '_' && *c < 0x80)
            return false; /* "<stdin>", "a-script": no module */
    }
    ub_policy_put_name(ret, size, module);
    if (!*ret || strlen(ret) + 2 >= size)
        return false;
    strncat(ret, ".", size - strlen(ret) - 1);
    ub_policy_put_name(ret, size, function);
    return !strpbrk(ret, " :/(") && !strstr(ret, "..");
}

/* Paths by their last part, unless the pattern has folders. */
static bool fits_path(const char *pattern, const char *path)
{
    return path && fnmatch(pattern, strchr(pattern, '/') ? path : base(path), 0) == 0;
}

/* "f(int)" is also "f", and "ns::f" also "f". */
static bool fits_function(const char *pattern, const char *function)
{
    char name[DOTTED_MAX];
    const char *bare, *parenthesis = function ? strchr(function, '(') : NULL;

    if (!function)
        return false;
    if (fnmatch(pattern, function, 0) == 0)
        return true;
    snprintf(name, sizeof(name), "%.*s", parenthesis > function ? (int)(parenthesis - function) : DOTTED_MAX, function);
    if (fnmatch(pattern, name, 0) == 0)
        return true;
    bare = strrchr(name, ':');
    return bare && bare > name && bare[-1] == ':' && fnmatch(pattern, bare + 1, 0) == 0;
}

/*
 * Which module a source file is depends on where Python began to look: /srv/app/jobs/mail.py is jobs.mail,
 * app.jobs.mail or mail. Each of them will do.
 */
static bool fits_python(const char *pattern, const struct ub_policy_names *n)
{
    char path[DOTTED_MAX], dotted[2 * DOTTED_MAX];
    size_t len;

    if (!n->function || !n->file || strlen(n->file) >= sizeof(path))
        return false;
    snprintf(path, sizeof(path), "%s", n->file);
    cut_end(path, ".py");
    cut_end(path, "/__init__");
    len = strlen(path);
    for (char *c = path; *c; c++)
        *c = *c == '/' ? '.' : *c;
    for (size_t at = len; at > 0; at--) {
        if (path[at - 1] != '.' && at > 1)
            continue;
        snprintf(dotted, sizeof(dotted), "%s.%s", path + (path[at - 1] == '.' ? at : at - 1), n->function);
        if (fnmatch(pattern, dotted, 0) == 0)
            return true;
    }
    return false;
}

bool ub_policy_fits_place(const struct ub_policy_rule *rule, const struct ub_policy_names *n)
{
    const char *colon = rule->place ? ub_policy_colon(rule->place) : NULL;
    char file[UB_POLICY_LINE_MAX];

    if (!rule->place)
        return true;
    if (colon) {
        snprintf(file, sizeof(file), "%.*s", (int)(colon - rule->place), rule->place);
        return fits_path(file, n->file) && fits_function(colon + 1, n->function);
    }
    return fits_function(rule->place, n->function) || fits_path(rule->place, n->module) ||
           (n->python && fits_python(rule->place, n));
}

bool ub_policy_covers(const struct ub_policy_rule *first, const struct ub_policy_rule *rule)
{
    return first->section == rule->section &&
           (!first->call || (rule->call && fnmatch(first->call, rule->call, 0) == 0)) &&
           (!first->place || (rule->place && strcmp(first->place, rule->place) == 0));
}

bool ub_policy_fits_dotted(const struct ub_policy_rule *rule, const char *dotted)
{
    return !rule->call && rule->place && fnmatch(rule->place, dotted, 0) == 0;
}

struct ub_policy_rule *ub_policy_find_dotted(struct ub_policy_file *p, enum ub_policy_section section,
                                             const char *dotted)
{
    struct ub_policy_rule *found = NULL;

    for (uint32_t i = 0; i < p->count; i++) {
        struct ub_policy_rule *rule = &p->rule[i];

        if (!ub_policy_fits_dotted(rule, dotted))
            continue;
        if (rule->section == UB_POLICY_EXCEPT) {
            rule->fitted++;
            return NULL;
        }
        if (rule->section == section && !found)
            found = rule;
    }
    if (found)
        found->fitted++;
    return found && found->action != UB_POLICY_INLINE ? found : NULL;
}
