/*
 * An event-loop library: what the agent must know of it to time its callbacks.
 * One file a library; loops.c has the list.
 *
 * The functions that take callbacks are hooked in the GOT of each module that
 * calls them (patch.c); they are never exported: a program that brings its own
 * copy, loads the library privately or only asks whether it is there must find
 * what it would find without us.
 */
#ifndef UB_AGENT_LOOP_H
#define UB_AGENT_LOOP_H

#include "../thunk.h"

/* Of one library in a process. A module binds to one of them, and its hooks call that one's originals. */
#define UB_LOOP_COPIES 2u

/* Whose calls are hooked. */
enum ub_hook_calls {
    UB_HOOK_OTHERS, /* all but the library's own */
    UB_HOOK_ALL,
    UB_HOOK_OWN,   /* the library's own only */
    UB_HOOK_STAYS, /* as OTHERS, also when we have left: it knows the callbacks that the library has thunks for */
};

struct ub_loop_hook {
    const char *name;
    void *hook[UB_LOOP_COPIES];
    uint8_t calls; /* enum ub_hook_calls */
};

struct ub_loop_ops {
    const char *const *files;   /* beginnings of its file names, NULL-terminated */
    const char *const *callers; /* likewise of the modules whose calls are hooked; NULL: all but its own */
    bool program;               /* the program itself may have it linked in */
    const char *prefix;         /* of all names in `hooks` */
    const struct ub_loop_hook *hooks;
    uint32_t count;
    void *(*originals)[UB_LOOP_COPIES]; /* by hook: filled in before the first is patched */
    const char *const *data;            /* variables it wants to know, NULL-terminated; or NULL */
    /* A copy is there; `data` are the addresses of the variables, each NULL when it has none. */
    void (*found)(uint32_t copy, void *const *data);
    /* Hooks what is in no GOT, or puts back what was there; may be asked for what has been done. NULL: nothing is. */
    void (*other)(uint32_t copy, bool back);
    /*
     * Whether `at`, which may be anything, is a loop of the library that waits for `epfd` (-1: in poll or select). Then
     * what is registered with it gets thunks. On the loop's thread, at its wait. NULL: what is there stays unknown.
     */
    bool (*adopt)(uint32_t copy, uint64_t at, int epfd);
};

extern const struct ub_loop_ops *const ub_loops[];
extern uint32_t ub_loops_count; /* fixed while anything is hooked */
extern const uint32_t ub_loops_and_looks;
#define UB_LOOPS_OF_LOOKS 4u  /* behind the libraries: what the dry run has to see: locks, SQLite */
#define UB_LOOPS_OF_MOVES 17u /* behind these: what is hooked only where calls move */
#define UB_LOOPS_MAX      32u
#define UB_LOOP_DATA_MAX  12u

extern const struct ub_loop_ops ub_loop_uv, ub_loop_libevent, ub_loop_libev, ub_loop_glib, ub_loop_sd_event,
    ub_loop_asyncio, ub_loop_uvloop;

/*
 * A backend lists its functions once, X(type, name, (parameters), (arguments)):
 * `arguments` with ub_thunk() around the callbacks. The originals are called
 * through `original[NAME][copy]`.
 */
#define UB_LOOP_ID(type, name, params, args) ID_##name,
#define UB_LOOP_HOOKS(copy, type, name, params, args)                                                                  \
    static type hook##copy##_##name params                                                                             \
    {                                                                                                                  \
        return ((type(*) params)original[ID_##name][copy])args;                                                        \
    }
#define UB_LOOP_HOOK_0(type, name, params, args) UB_LOOP_HOOKS(0, type, name, params, args)
#define UB_LOOP_HOOK_1(type, name, params, args) UB_LOOP_HOOKS(1, type, name, params, args)
#define UB_LOOP_ROW(type, name, params, args)    {#name, {(void *)hook0_##name, (void *)hook1_##name}, UB_HOOK_OTHERS},

#endif
