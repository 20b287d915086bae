/*
 * Callbacks of event-loop libraries: what a watched thread says of the one that
 * runs now, and the sums of those that ended. One writer: the thread itself. The
 * tracer reads all of it and trusts nothing.
 *
 * Signal-safe.
 */
#ifndef UB_CALLBACKS_H
#define UB_CALLBACKS_H

#include "base.h"
#include "calls.h"
#include "histogram.h"

/* The recording's `kind`. */
#define UB_CALLBACK_KIND_LIST(X)                                                                                       \
    X(TURN, "turn")                                                                                                    \
    X(TIMER, "timer")                                                                                                  \
    X(IO, "io")                                                                                                        \
    X(IDLE, "idle")                                                                                                    \
    X(PREPARE, "prepare")                                                                                              \
    X(CHECK, "check")                                                                                                  \
    X(ASYNC, "async")                                                                                                  \
    X(SIGNAL, "signal")                                                                                                \
    X(CHILD, "child")                                                                                                  \
    X(READ, "read")                                                                                                    \
    X(WRITE, "write")                                                                                                  \
    X(CONNECT, "connect")                                                                                              \
    X(LISTENER, "listener")                                                                                            \
    X(UDP, "udp")                                                                                                      \
    X(FS, "fs")                                                                                                        \
    X(FS_EVENT, "fs_event")                                                                                            \
    X(FS_POLL, "fs_poll")                                                                                              \
    X(DNS, "dns")                                                                                                      \
    X(WORK, "work")                                                                                                    \
    X(CLOSE, "close")                                                                                                  \
    X(PROCESS, "process")                                                                                              \
    X(DEFER, "defer")                                                                                                  \
    X(POST, "post")                                                                                                    \
    X(EXIT, "exit")                                                                                                    \
    X(INOTIFY, "inotify")                                                                                              \
    X(BUFFEREVENT, "bufferevent")                                                                                      \
    X(EVBUFFER, "evbuffer")                                                                                            \
    X(SOURCE, "source")                                                                                                \
    X(TASK, "task")                                                                                                    \
    X(CALLBACK, "callback")

enum ub_callback_kind {
#define X(name, text) UB_CALLBACK_##name,
    UB_CALLBACK_KIND_LIST(X)
#undef X
        UB_CALLBACK_KINDS
};

/* The recording's `loop`. */
#define UB_LOOP_LIST(X)                                                                                                \
    X(NONE, "turn")                                                                                                    \
    X(LIBUV, "libuv")                                                                                                  \
    X(LIBEVENT, "libevent")                                                                                            \
    X(LIBEV, "libev")                                                                                                  \
    X(GLIB, "glib")                                                                                                    \
    X(SD_EVENT, "sd-event")                                                                                            \
    X(ASYNCIO, "asyncio")

enum ub_loop_library {
#define X(name, text) UB_LOOP_##name,
    UB_LOOP_LIST(X)
#undef X
        UB_LOOP_LIBRARIES
};

#define UB_SPAN_LEVELS      8u  /* callbacks inside one another; deeper ones run untimed */
#define UB_SPAN_BIGGEST     8u  /* callbacks of a turn that are told when none of them was slow by itself */
#define UB_SPAN_NAME        48u /* bytes of a source's name, cut */
#define UB_SPAN_HISTOGRAMS  8u  /* of a thread: kinds beyond that have sums only */
#define UB_SPAN_YIELDS      8u  /* functions whose steps end with a bare yield; those of further ones are not counted */
#define UB_SPAN_YIELDS_TOLD 64u /* times, then the tracer is told of such a function */
#define UB_SPAN_LATE        6u  /* histograms of delays, likewise */
#define UB_SPAN_UNAWAITED   8u  /* functions whose coroutines were let go of; further ones are not told */
#define UB_SPAN_WAITED      16u /* timers that waited, told apart by their objects; further ones are only counted */

struct ub_callback {
    uint64_t function; /* address of the program's function; TASK: of its coroutine's code object */
    uint64_t object;   /* handle, source, watcher, coroutine ... */
    int32_t fd;        /* -1: none */
    uint8_t kind;      /* enum ub_callback_kind */
    uint8_t library;   /* enum ub_loop_library */
    uint16_t moves;    /* its calls may be moved, though not those of others of its kind */
};
_Static_assert(sizeof(struct ub_callback) == 24, "callbacks: agent and tracer agree on it");

struct ub_span_level {
    uintptr_t sp; /* of the frame that will see it end: a level is over when its frame is */
    uint64_t own; /* ticks so far, those of callbacks and turns inside it not counted */
    struct ub_callback callback;
};

/* All callbacks of one function and kind in a turn. */
struct ub_span_big {
    uint64_t function;
    uint64_t total; /* ticks */
    uint32_t count;
    int32_t fd;
    uint8_t kind, library;
    uint8_t reserved[6];
};

struct ub_span_sum {
    uint64_t count, total, max; /* ticks */
    uint32_t histogram;         /* one more than its place; 0: none (yet), UINT32_MAX: none was left */
    uint32_t reserved;
};

/*
 * What a stall kept waiting is seen when it is over: the timers that run, and
 * the descriptors that are ready, until the loop has come round once.
 */
struct ub_span_after {
    uint64_t start; /* ticks: of the stall; 0: there was none lately */
    uint64_t who;   /* whose callback it was: its own timer is not among those that waited */
    uint64_t left;  /* ticks: when the stall's turn ended; 0: not yet */
    uint64_t last;  /* ticks: when the last of the timers was begun; 0: none */
    uint64_t turns; /* of the slot, then */
    uint32_t round; /* the loop has come round, and its wait reported ... */
    uint32_t ready; /* so many at once */
    uint64_t back;  /* ticks: when that wait returned; 0: it reported none at once */
    uint32_t timers;
    uint32_t told_apart; /* of them, those in `timer` */
    uint32_t others;     /* callbacks of other kinds that waited: those in `other` */
    uint32_t reserved;
    uint64_t timer[UB_SPAN_WAITED];
    uint64_t other[UB_SPAN_WAITED];
};

/* asyncio, uvloop: the handle that was begun last. Written and read by the thread alone. */
struct ub_span_handle {
    uint64_t sp;    /* of the frame that runs it */
    uint64_t frame; /* the innermost Python frame then; 0: it is over, or known to be a step */
    uint64_t code;  /* that frame's code object, 0: it was not Python that ran it */
    uint64_t yield; /* which of the functions that give way has just done so, plus one; its time is still to come */
};

/* Steps of a coroutine function that ended with a bare yield, asyncio.sleep(0). */
struct ub_span_yield {
    uint64_t function;          /* address of its code object; 0: none */
    uint64_t count, total, max; /* ticks */
};

/* A coroutine that never ran. Written once. */
struct ub_span_unawaited {
    uint64_t function;          /* address of its code object; 0: none yet */
    uint64_t by;                /* that of who let go of it, */
    struct ub_call_frame frame; /* and the Python frame */
};

/*
 * A turn is a chain of segments without gaps: the loop's own code, a callback,
 * the loop's own code ... The slot's `start` is that of the running segment, so
 * every deadline is that of the callback where there is one.
 */
struct ub_spans {
    uint64_t segment;    /* start of the segment that was begun here last; 0: being written, or over */
    uint64_t turn;       /* start of the turn that it belongs to */
    uint64_t call_ra;    /* where the blocking call that was begun last is made from */
    uint64_t reported;   /* ticks of that turn that were reported as slow segments */
    uint64_t floor;      /* ticks: shorter callbacks are not looked at for `big` */
    uint32_t depth;      /* levels; the last of them is what the segment runs, none: the loop's own code */
    uint32_t callbacks;  /* in the turn */
    uint32_t library;    /* enum ub_loop_library: of the thread's first callback */
    uint32_t histograms; /* taken */
    char version[16];    /* of that library, "" where it does not say */
    struct ub_span_after after;
    struct ub_span_handle handle;
    struct ub_span_yield yield[UB_SPAN_YIELDS];
    struct ub_span_unawaited unawaited[UB_SPAN_UNAWAITED];
    struct ub_span_big big[UB_SPAN_BIGGEST];
    struct ub_span_level level[UB_SPAN_LEVELS];
    struct ub_span_sum sum[UB_CALLBACK_KINDS];
    struct ub_span_sum late[UB_CALLBACK_KINDS]; /* those that stalls made late, and by how much (agent/after.c) */
    uint32_t late_histograms;                   /* taken */
    uint32_t reserved;
    struct ub_histogram histogram[UB_SPAN_HISTOGRAMS]; /* by kind, in the order of their first callbacks */
    struct ub_coarse_histogram late_histogram[UB_SPAN_LATE];
};

#endif
