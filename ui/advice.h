/*
 * What to do about a stall: advice for what was seen (call, cause, functions on
 * the stack) in what (program, event-loop library). The advice itself is one
 * table, advice_table.c; the first row that fits is given.
 */
#ifndef UB_UI_ADVICE_H
#define UB_UI_ADVICE_H

#include "model.h"

/* What a descriptor is, as its `fd_path` tells. */
enum ub_advice_fd {
    UB_ADVICE_FD_ANY,
    UB_ADVICE_FD_FILE,
    UB_ADVICE_FD_SOCKET,
    UB_ADVICE_FD_PIPE,
    UB_ADVICE_FD_TERMINAL,
};

/*
 * A row fits when every field that is set fits. Lists are words between '|'; a
 * '*' at the end of a word stands for anything.
 */
struct ub_advice {
    const char *program;  /* base names of executables */
    const char *loop;     /* "libuv|uvloop" */
    const char *cause;    /* "call|lock" */
    const char *call;     /* system calls or libc functions */
    const char *function; /* one of these is on the stack */
    enum ub_advice_fd fd;
    const char *title; /* what this is called in the program's own world ("DEBUG SLEEP"), or NULL */
    const char *text;  /* what to do, one line */
    /*
     * Where Python frames are known: {at} is the line to change, {f} the function
     * it calls, {thread} and {process} the call that moves {f} there, {holder}
     * who holds the GIL, {yields} how often the step's function gave way. python_direct: no Python function is called
     * there.
     */
    const char *python, *python_direct;
    const char *package; /* one of these Python packages is on the stack */
    bool script;         /* functions of JavaScript are known by name */
    bool yields;         /* the function has given way by sleep(0) before: {yields} times */
    bool whole;          /* a turn that was slow although no callback in it was */
};

extern const struct ub_advice ub_advice_table[];
extern const size_t ub_advice_rows;

#define UB_ADVICE_STACKS_MAX 8

struct ub_advice_query {
    const char *program; /* base name, or NULL */
    const char *loop;    /* as recorded, or NULL */
    enum ub_cause cause;
    const json_t *call;                        /* `call` of the slow record, or NULL */
    const json_t *stack[UB_ADVICE_STACKS_MAX]; /* frames, innermost first */
    uint32_t stacks;
    const json_t *slow; /* the whole record, or NULL */
};

/* The query for one stall, or for a site by its longest stall and all its stacks. */
void ub_advice_query_record(const struct ub_model *m, const json_t *slow, struct ub_advice_query *ret);
void ub_advice_query_site(const struct ub_site *site, struct ub_advice_query *ret);

/* What the row says to this stall, with the program's own names where they are known: `buf` or a constant. */
#define UB_ADVICE_WORDS_MAX 1024
const char *ub_advice_site_words(const struct ub_site *site, char *buf, size_t size); /* NULL: nothing to say */
const char *ub_advice_words(const struct ub_advice_query *query, const struct ub_advice *row, char *buf, size_t size);

/* Never reads more than the query; NULL: nothing to say. */
const struct ub_advice *ub_advice_find(const struct ub_advice_query *query);

/* The advice for one stall, or for a site by its longest stall and all its stacks. */
const struct ub_advice *ub_advice_of_record(const struct ub_model *m, const json_t *slow);
const struct ub_advice *ub_advice_of_site(const struct ub_site *site);

#endif
