/*
 * The offload policy: a file that a person can read, and its rules.
 *
 *     [offload]                                   # calls into libc
 *     fsync in wal_commit = move lane=files limit=4
 *     fsync in db.c:*     = inline
 *     [python]                                    # functions, by dotted names
 *     jobs.is_prime       = process(3)
 *     [yield]
 *     jobs.*              = 5ms
 *     [except]                                    # stronger than all of the above
 *     billing.*           = inline
 *     [predicted]                                 # lag of the loop, by the dry run that this was written from
 *     p99                 = 0.2ms
 *     longest             = 2.1ms
 *
 * In each section the first rule that fits counts. Names are patterns (`*`, `?`, `[...]`); a comment begins with a `#`
 * at the beginning of a line or behind a space. Not libinih's: it takes the `:` of `db.c:*` for the end of the key.
 *
 * Not thread-safe: a rule counts what it fitted.
 */
#ifndef UB_TRACER_POLICY_FILE_H
#define UB_TRACER_POLICY_FILE_H

#include "../common/base.h"
#include "../common/offload.h"

#define UB_POLICY_RULES_MAX 1000u
#define UB_POLICY_LINE_MAX  1024u
#define UB_POLICY_WHY_MAX   512u

enum ub_policy_section {
    UB_POLICY_OFFLOAD,
    UB_POLICY_PYTHON,
    UB_POLICY_YIELD,
    UB_POLICY_EXCEPT,
    UB_POLICY_PREDICTED, /* no rules: see struct ub_policy_file */
    UB_POLICY_SECTIONS,
    UB_POLICY_NO_SECTION = UB_POLICY_SECTIONS
};

enum ub_policy_action {
    UB_POLICY_INLINE,  /* stays where it is */
    UB_POLICY_MOVE,    /* [offload] */
    UB_POLICY_THREAD,  /* [python] */
    UB_POLICY_PROCESS, /* [python] */
    UB_POLICY_FORK,    /* [python] */
    UB_POLICY_GIVE_WAY /* [yield] */
};

struct ub_policy_rule {
    enum ub_policy_section section;
    enum ub_policy_action action;
    uint32_t line;
    char *text;         /* the rule as it stands in the file, without its comment */
    char *call;         /* pattern of a call; NULL: any call ([except], [python], [yield]) */
    char *place;        /* pattern of a place or dotted name; NULL: anywhere */
    bool unit;          /* UB_POLICY_MOVE: the whole call of a client library */
    uint32_t lane;      /* UB_POLICY_MOVE: enum ub_executor, UB_EXECUTOR_NONE: as the call has it */
    uint32_t limit;     /* UB_POLICY_MOVE: at most so many at once; 0: any number */
    uint32_t workers;   /* UB_POLICY_THREAD, UB_POLICY_PROCESS: N of thread(N); 0: not said */
    uint64_t period_ns; /* UB_POLICY_GIVE_WAY */
    uint64_t fitted;    /* names that it was the first to fit; the user's to count */
};

struct ub_policy_file {
    char *path;
    struct ub_policy_rule *rule; /* in the order of the file */
    uint32_t count;
    bool predicted; /* the lag of the loop with these rules, as the dry run had it that they were written from */
    uint64_t predicted_p99_ns, predicted_longest_ns;
};

/* Something is wrong with a line; `line` 0: with the file. `what` is a sentence that names the thing. */
typedef void ub_policy_wrong(void *self, const char *path, uint32_t line, const char *what);

/*
 * 0; -EINVAL: at least one line was told to `wrong`; -errno of reading it, told likewise. *ret is
 * empty then. The caller clears it.
 */
int ub_policy_read(const char *path, ub_policy_wrong *wrong, void *self, struct ub_policy_file *ret);
void ub_policy_clear(struct ub_policy_file *p);

/* Whether "key = action" in that section is a rule, as ub_policy_read has it. For who writes one. */
bool ub_policy_takes(enum ub_policy_section section, const char *key, const char *action);

/* How a call is named in rules: open for open64, __open_2; read for __read_chk. Into `ret`, at most `size` bytes. */
void ub_policy_call_name(const char *name, char *ret, size_t size);

/* Whether some rule could move it. */
bool ub_policy_may_move(const char *call);

/* Whether a rule's `call` fits, by whichever of its names. */
bool ub_policy_fits_call(const struct ub_policy_rule *rule, const char *call);

/* By what a place is known; each may be NULL. */
struct ub_policy_names {
    const char *function; /* demangled, or Python's qualified name */
    const char *file;     /* of its source */
    const char *module;   /* path of the file mapped */
    bool python;          /* then `function` behind the modules that `file` can be is its dotted name */
};

/* Whether a rule's `place` is this one. */
bool ub_policy_fits_place(const struct ub_policy_rule *rule, const struct ub_policy_names *names);

/*
 * The dotted name of a function of Python's, "jobs.is_prime" of is_prime in /srv/jobs.py, as a pattern that fits it.
 * False: it has none that a rule could say.
 */
bool ub_policy_dotted(const char *file, const char *function, char *ret, size_t size);

/* A name as a pattern: what would be read as something else fits as any character. Added to `to`, of `size` bytes. */
void ub_policy_put_name(char *to, size_t size, const char *name);

/* Whether a dotted name fits a rule of [python], [yield] or [except]. */
bool ub_policy_fits_dotted(const struct ub_policy_rule *rule, const char *dotted);

/* The first rule of [python] or [yield] for a dotted name; NULL: none, or an exception comes first. */
struct ub_policy_rule *ub_policy_find_dotted(struct ub_policy_file *p, enum ub_policy_section section,
                                             const char *dotted);

/* "offload" "python" "yield" "except" "predicted" */
extern const char *const ub_policy_section_names[UB_POLICY_SECTIONS + 1];

#endif
