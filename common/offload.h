/*
 * Offload: what agent and tracer call its modes, and the reasons for which a call
 * stays where it is.
 */
#ifndef UB_OFFLOAD_H
#define UB_OFFLOAD_H

/* The recording's `offload` of the header. */
enum ub_offload_mode {
    UB_OFFLOAD_OFF = 0,
    UB_OFFLOAD_DRY_RUN = 1, /* nothing moves; each slow call is judged as it returns */
    UB_OFFLOAD_FLAGGED = 2, /* a call is moved if one from the same place has blocked before */
    UB_OFFLOAD_EAGER = 3,   /* and one that is sure to block, the first time */
    UB_OFFLOAD_POLICY = 4,  /* a call is moved where a rule says so */
};

/* The recording's `reason`. Each is a rule of agent/offload/README.md. */
#define UB_PIN_LIST(X)                                                                                                 \
    X(UNKNOWN, "")                                                                                                     \
    X(MOVABLE, "")                                                                                                     \
    X(LOOP, "loop")         /* not in a callback of a loop library: a loop written by hand, Python's, a static one */  \
    X(LIBRARY, "library")   /* callbacks of this library are not moved yet */                                          \
    X(KIND, "kind")         /* callbacks of this kind never are */                                                     \
    X(NESTED, "nested")     /* a loop inside a callback */                                                             \
    X(SIGNAL, "signal")     /* in a signal handler */                                                                  \
    X(STACK, "stack")       /* on a stack of the program's own making (a coroutine, an alternate signal stack) */      \
    X(SECCOMP, "seccomp")   /* a filter: what a thread of ours may do is not known */                                  \
    X(RUNTIME, "runtime")   /* an interpreter or a collector that knows its own stacks only */                         \
    X(EINTR, "eintr")       /* the program wants its calls interrupted by signals */                                   \
    X(LOCK, "lock")         /* this thread holds a lock */                                                             \
    X(IDENTITY, "identity") /* this thread has credentials, namespaces or a folder of its own */                       \
    X(CALLER, "caller")     /* made by an extension module or a library that may keep state by thread */               \
    X(IMPORT, "import")     /* a Python module is being imported */                                                    \
    X(TRANSACTION, "transaction") /* of a database is open */                                                          \
    X(GIL, "gil")                 /* made with the interpreter's lock held */                                          \
    X(CONNECTION, "connection")   /* SQLite's: not one that a thread of ours may use */                                \
    X(POLICY, "policy")           /* no rule moves it, or one says inline */                                           \
    X(CALL, "call")               /* this call is not on the list of those that may move */

enum ub_pin {
#define X(name, text) UB_PIN_##name,
    UB_PIN_LIST(X)
#undef X
        UB_PINS
};

/* The recording's `executor`: who would wait in the loop's place. */
#define UB_EXECUTOR_LIST(X)                                                                                            \
    X(NONE, "")                                                                                                        \
    X(TIMER, "timer")         /* a timer beside the loop */                                                            \
    X(READINESS, "readiness") /* the descriptor is waited for beside the loop, then the call is made */                \
    X(FILES, "files")         /* a thread of the lane for what a disk ends */                                          \
    X(WAIT, "wait")           /* a thread of the lane for what somebody else ends */

enum ub_executor {
#define X(name, text) UB_EXECUTOR_##name,
    UB_EXECUTOR_LIST(X)
#undef X
        UB_EXECUTORS
};

#endif
