/*
 * Callbacks, each timed by itself. A thread's turn is a chain of segments
 * without gaps (common/callbacks.h): where a callback begins or ends, one
 * segment ends and the next begins. Two readings of the clock a callback; the
 * loop's own code between callbacks is never counted to one of them (with one
 * reading, the end of one callback being the start of the next, a slow `prepare`
 * of the loop would be reported under the name of the callback after it).
 *
 * Callbacks nest (a loop run inside a callback); each level keeps the address of
 * the frame that will see its end. A frame that is gone (longjmp, an exception,
 * pthread_cancel) is noticed where the next callback begins or the turn ends.
 */
#ifndef UB_AGENT_SPAN_H
#define UB_AGENT_SPAN_H

#include "process.h"

/* Where the things that name a callback are found among its arguments. */
enum ub_shape_fd {
    UB_FD_NONE,
    UB_FD_ARGUMENT, /* argument fd_at */
    UB_FD_MEMBER,   /* an int at fd_at in the object */
};

struct ub_shape {
    uint8_t kind;     /* enum ub_callback_kind */
    uint8_t library;  /* enum ub_loop_library */
    uint8_t object;   /* which argument is the handle, source, watcher ... */
    uint8_t function; /* which argument is the program's function, plus one; 0: the function that is called itself */
    uint8_t fd;       /* enum ub_shape_fd */
    uint16_t fd_at;
    /* The object's name, or NULL. Called only after a slow callback, while the library still holds the object. */
    const char *(*name)(uint64_t object);
    const char *(*version)(void); /* of the library, or NULL */
    void (*before)(void);         /* called before each callback, timed or not; or NULL */
};

/* False: not timed; ub_span_end must not be called. `sp`: the caller's frame. Signal-safe; leaves errno alone. */
bool ub_span_begin(struct ub_thread *t, uintptr_t sp, uint64_t function, const struct ub_shape *shape,
                   const uint64_t argument[3]);
void ub_span_end(struct ub_thread *t, uintptr_t sp, const struct ub_shape *shape);

/* The callback that runs turns out to be this one. Signal-safe. */
void ub_span_rename(struct ub_thread *t, enum ub_callback_kind kind, uint64_t function, uint64_t object);

/* The turn of a thread with callbacks ends. Returns its whole length in ticks. Signal-safe. */
uint64_t ub_span_turn_close(struct ub_thread *t, uint64_t now);

#endif
