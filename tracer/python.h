/*
 * The Python side of a thread, read from outside: its frames, its asyncio task,
 * the GIL. Nothing is called in the process and no lock of it is taken; what is
 * read may be anything (a torn structure, a hostile program's), so every
 * pointer, length and count is checked, and a walk is bounded.
 *
 * One struct ub_python belongs to one thread at a time (the watching one); what
 * a look refers to (struct ub_python_code) does not change once made and lives
 * as long as the struct ub_python.
 */
#ifndef UB_TRACER_PYTHON_H
#define UB_TRACER_PYTHON_H

#include "maps.h"

#include "../common/calls.h"

struct ub_python;

/* Whose code it is, judged by its file. */
enum ub_python_owner {
    UB_PYTHON_USER,
    UB_PYTHON_LIBRARY, /* the standard library, installed packages, frozen modules */
    UB_PYTHON_LOOP,    /* the functions of asyncio that run callbacks */
};

/* co_flags */
#define UB_PYTHON_CO_GENERATOR       0x20u
#define UB_PYTHON_CO_COROUTINE       0x80u
#define UB_PYTHON_CO_ITERABLE        0x100u
#define UB_PYTHON_CO_ASYNC_GENERATOR 0x200u

struct ub_python_code {
    const char *function; /* qualified where the version keeps that; UTF-8 */
    const char *file;     /* absolute where that could be found out; UTF-8 */
    enum ub_python_owner owner;
    uint32_t flags; /* co_flags */
    int first_line;
    const struct ub_python_layout *layout;
    const uint8_t *lines; /* the line table */
    uint32_t lines_size;
    int scope, request; /* places among its local variables of those with that name, -1 */
};

#define UB_PYTHON_FRAMES_MAX 160
#define UB_PYTHON_NAME_MAX   128

struct ub_python_frame {
    const struct ub_python_code *code;
    uint64_t address;   /* of the interpreter's frame */
    uint64_t generator; /* the generator or coroutine object that it belongs to, 0 */
    int32_t offset;     /* of the instruction, bytes */
    bool entry;         /* the interpreter was entered from C for this frame */
};

enum ub_python_proof {
    UB_PYTHON_STILL,    /* the thread did not run while its frames were read */
    UB_PYTHON_TWICE,    /* it runs: read twice, the same frames both times */
    UB_PYTHON_UNPROVEN, /* it runs, and inner frames that changed while they were read are left out */
};

enum ub_python_gil {
    UB_PYTHON_GIL_UNKNOWN,
    UB_PYTHON_GIL_HELD,     /* by this thread */
    UB_PYTHON_GIL_RELEASED, /* not held by this thread, and not wanted */
    UB_PYTHON_GIL_WAITED,   /* this thread waits for it */
};

struct ub_python_task {
    bool known;
    uint32_t coroutine; /* index of its outermost frame */
    uint64_t address, loop;
    char name[UB_PYTHON_NAME_MAX];
    char created_file[512]; /* "": not known (asyncio keeps it in debug mode only) */
    int created_line;
};

/* Who waited at that moment. */
struct ub_python_waiting {
    uint32_t tasks;  /* ready to go on */
    uint32_t timers; /* due (asyncio's own loops only), */
    uint64_t due_ns; /* the first of them at that time, CLOCK_MONOTONIC */
};

#define UB_PYTHON_BUSY_UNKNOWN UINT32_MAX

/* An executor with work that waits for a worker; kind NULL: none. */
struct ub_python_pool {
    const char *kind;
    uint32_t workers, queued;
    uint32_t busy; /* of the workers, or UB_PYTHON_BUSY_UNKNOWN */
};

/* The HTTP request that is served; path "": none is known. */
struct ub_python_request {
    char method[32];
    char path[256]; /* "/items/{id}" where the route is known, else "/items/42" */
    bool is_route;
};

struct ub_python_look {
    enum ub_python_proof proof;
    bool complete;   /* the outermost frame was reached */
    bool collecting; /* the garbage collector is at work */
    enum ub_python_gil gil;
    pid_t holder; /* WAITED: the thread that held the GIL, 0: not known */
    struct ub_python_frame
        holder_frame; /* its innermost frame of the user's own, else its innermost; code NULL: none */
    struct ub_python_task task;
    struct ub_python_waiting waiting; /* ub_python_see_waiting */
    struct ub_python_pool pool;       /* likewise */
    struct ub_python_request request; /* ub_python_see_request */
    char called[80];                  /* ub_python_see_work */
    uint64_t data;                    /* likewise */
    uint64_t locals;                  /* likewise */
    uint32_t count;                   /* frames, innermost first */
    struct ub_python_frame frame[UB_PYTHON_FRAMES_MAX];
};

/*
 * The interpreter in a process. -ENOENT: there is none; -ENOTSUP: one whose
 * version is not known, or that is free-threaded; -EBADMSG: what was found does
 * not look as it should, so nothing is read; -EAGAIN: it has no thread yet;
 * -EACCES. `ret_version` (0x030b: 3.11; 0: not known) is set whenever there is one.
 */
int ub_python_find(pid_t pid, const struct ub_maps *maps, struct ub_python **ret, uint32_t *ret_version);
void ub_python_free(struct ub_python *py);

/*
 * Brings *py up to date with a new snapshot: a process may load an interpreter,
 * or execute another program. What earlier looks refer to stays valid. As ub_python_find; on error *py reads nothing.
 */
int ub_python_update(pid_t pid, const struct ub_maps *maps, struct ub_python **py, uint32_t *ret_version);

uint32_t ub_python_version(const struct ub_python *py);

/*
 * The Python frames of thread `tid`, the GIL and the task. `futex`: the address
 * that it sleeps on, 0 when it does not. `running`: it may run meanwhile, so
 * everything is read twice; else the caller has to prove that it did not.
 * 0; -ENOENT: the thread runs no Python; -EFAULT: what was read made no sense; -ESRCH.
 */
int ub_python_look(struct ub_python *py, pid_t tid, uint64_t futex, bool running, struct ub_python_look *ret);

/*
 * The frames that a thread itself has kept, innermost first, of a call that is over: as ub_python_look fills them in.
 * How many there are; 0: none made sense, or their code is gone.
 */
uint32_t ub_python_own(struct ub_python *py, const struct ub_call_frame *frame, uint32_t count,
                       struct ub_python_look *ret);

/* A frame for that, of which no more is known than its code object and instruction. */
void ub_python_make_frame(const struct ub_python *py, uint64_t code, uint64_t instruction, struct ub_call_frame *ret);

/* The code object at an address that the process itself has named, NULL: there is none. */
const struct ub_python_code *ub_python_code_at(struct ub_python *py, uint64_t address);

/* Adds to a look who waited for the thread's loop. `now_ns`: CLOCK_MONOTONIC. Nothing proves that it did not change. */
void ub_python_see_waiting(struct ub_python *py, uint64_t now_ns, struct ub_python_look *look);

/* Adds to a look the request that the thread serves. */
void ub_python_see_request(struct ub_python *py, struct ub_python_look *look);

/*
 * Adds to a look what it computes with. `called`: a function of a module written in C that the innermost frame may be
 * in
 * ("pickle.dump"), and is, if it has stood at one instruction for long; "": none. `data`: about how many objects the
 * variables of one frame hold, of those that the innermost coroutine has called. `locals`: another number where the
 * innermost frame's variables are others; 0: not known.
 */
void ub_python_see_work(struct ub_python *py, struct ub_python_look *look);

#define UB_PYTHON_CHAIN_MAX 32

/* A task that is not done. */
struct ub_python_waiter {
    char name[UB_PYTHON_NAME_MAX];
    bool running; /* some thread executes it; only its outer coroutine is here then */
    bool done;
    bool waits;                         /* for a future; else it is ready to go on */
    char waits_for[UB_PYTHON_NAME_MAX]; /* a task that it waits for; "": some other future */
    uint32_t count;                     /* coroutines, outermost first */
    struct ub_python_frame frame[UB_PYTHON_CHAIN_MAX];
};

/*
 * All tasks of asyncio that are not done, in no order; at most `max` are
 * filled in, all are counted. Nothing proves that they did not change meanwhile.
 */
uint32_t ub_python_tasks(struct ub_python *py, struct ub_python_waiter *list, uint32_t max);

/* The line that a frame is at; 0: not known. Thread-safe. */
uint32_t ub_python_line(const struct ub_python_frame *frame);

/* python_lines.c: the same from a table's bytes. */
int ub_python_lines_find(int kind, const uint8_t *table, uint32_t size, int first_line, int32_t offset);

/* Whose code a function of a file is. NULL is fine. */
enum ub_python_owner ub_python_owner_of(const char *file, const char *function);

#endif
