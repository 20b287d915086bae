/* Shared by the files python_*.c; nobody else includes it. */
#ifndef UB_TRACER_PYTHON_IMPL_H
#define UB_TRACER_PYTHON_IMPL_H

#include "python.h"
#include "python_layout.h"

#include <string.h>
#include <uthash.h>

#define UB_PYTHON_THREADS_MAX 4096u
#define UB_PYTHON_TYPES_MAX   64u
#define UB_PYTHON_TYPE_SIZE   48u
#define UB_PYTHON_CODES_MAX   32768u

/* The name of a type, read once: types do not move, and a wrong one only leads to checked reads. */
struct ub_python_type {
    uint64_t address;
    char name[UB_PYTHON_TYPE_SIZE];
};

struct ub_python_known {
    uint64_t address;
    uint64_t key[4]; /* of the code object: what tells it from another one at the same address */
    struct ub_python_code code;
    struct ub_python_known *older; /* no longer at that address, but looks may refer to it */
    UT_hash_handle hh;
};

struct ub_python_thread {
    pid_t tid;
    uint64_t state; /* PyThreadState */
};

struct ub_python {
    struct ub_python *older; /* of the program that the process executed before: looks refer to its code */
    bool gone;
    pid_t pid;
    bool foreign; /* it lives in another PID namespace: its threads know other numbers of themselves */
    struct ub_elf *elf;
    uint64_t bias;
    uint64_t runtime;               /* _PyRuntime */
    struct ub_python_layout layout; /* a copy: some of it may come from the process itself */
    uint32_t tid_in_pthread;        /* offset of the tid in struct pthread, where PyThreadState has none */
    struct ub_python_type type[UB_PYTHON_TYPES_MAX];
    uint32_t type_count;
    struct ub_python_known *codes;
    uint32_t code_count;
    uint64_t code_bytes;
    struct ub_python_thread thread[64]; /* found lately */
    uint32_t thread_next;
    uint64_t current_tasks;      /* asyncio's dict of loop to running task, 0 */
    uint64_t asyncio;            /* dict of module _asyncio, 0: not found yet */
    uint64_t modules_seen;       /* entries of sys.modules when _asyncio was last looked for */
    uint64_t executor_modules;   /* likewise the modules of executors; what is known of those, 0: */
    uint64_t thread_queues;      /* _threads_queues of concurrent.futures.thread */
    uint64_t process_wakeups;    /* _threads_wakeups of concurrent.futures.process */
    struct ub_python_look again; /* scratch: the second reading of a thread that runs */
};

/* python_memory.c */

/* All of it or nothing. */
bool ub_python_read(const struct ub_python *py, uint64_t address, void *buf, size_t len);

static inline bool ub_python_read_pointer(const struct ub_python *py, uint64_t address, uint64_t *ret)
{
    return ub_python_read(py, address, ret, sizeof(*ret));
}

/* A field of a structure that was read; `size` is how much of it was. 0 where there is no such field. */
static inline uint64_t ub_python_u64(const uint8_t *bytes, size_t size, uint32_t at)
{
    uint64_t value = 0;

    if ((uint64_t)at + sizeof(value) <= size)
        memcpy(&value, bytes + at, sizeof(value));
    return value;
}

static inline uint32_t ub_python_u32(const uint8_t *bytes, size_t size, uint32_t at)
{
    uint32_t value = 0;

    if ((uint64_t)at + sizeof(value) <= size)
        memcpy(&value, bytes + at, sizeof(value));
    return value;
}

/* `size` bytes at each of the addresses; zeros where they cannot be read, all of them or some. */
void ub_python_read_many(const struct ub_python *py, const uint64_t *address, uint32_t count, uint32_t size,
                         uint8_t *buf);

/* Name of a type object, "" when it has none. */
const char *ub_python_type_name(struct ub_python *py, uint64_t type);

/* The type of the object at `address` is called `name`. */
bool ub_python_is(struct ub_python *py, uint64_t address, const char *name);

/* A str as UTF-8, cut with "..." where it is too long. false: it is none. */
bool ub_python_string(struct ub_python *py, uint64_t address, char *buf, size_t size);

/* Up to `max` bytes of a bytes object, allocated. NULL: it is none, or empty, or longer. */
uint8_t *ub_python_bytes(struct ub_python *py, uint64_t address, uint32_t max, uint32_t *ret_size);

/* python_dict.c */

struct ub_python_entry {
    uint64_t key, value;
};

/* The entries of a dict, allocated; at most `max`. NULL: it is none, or empty. */
struct ub_python_entry *ub_python_dict(struct ub_python *py, uint64_t dict, uint32_t max, uint32_t *ret_count);

/* The value under a str key, 0. */
uint64_t ub_python_dict_get(struct ub_python *py, uint64_t dict, const char *key);

/* The object is a str, namely that one. */
bool ub_python_text_is(struct ub_python *py, uint64_t string, const char *text);

/* Which of a table's keys is that str, -1. */
int ub_python_keys_find(struct ub_python *py, uint64_t keys, const char *key);

/* python_attribute.c */

/* An instance's attribute (not its type's), 0. */
uint64_t ub_python_attribute(struct ub_python *py, uint64_t object, const char *name);

/* Offset of a slot in instances of the type (`base`: or in those of a type that it is derived from), 0. */
uint32_t ub_python_slot(struct ub_python *py, uint64_t type, const char *name);
uint32_t ub_python_base_slot(struct ub_python *py, uint64_t type, const char *name);

/* python_code.c: NULL when it is no code object. */
const struct ub_python_code *ub_python_code(struct ub_python *py, uint64_t address, uint64_t *ret_bytes);
void ub_python_codes_free(struct ub_python *py);

/* python_frames.c */

/* The innermost interpreter frame of a thread, 0. */
uint64_t ub_python_innermost(struct ub_python *py, uint64_t state);
/* Frames from `frame` outwards. */
uint32_t ub_python_walk(struct ub_python *py, uint64_t frame, struct ub_python_frame *ret, uint32_t max,
                        bool *ret_complete);
/* The state of each thread in each interpreter, some thousands at most. */
void ub_python_each_thread(struct ub_python *py, void (*see)(struct ub_python *py, uint64_t state, void *arg),
                           void *arg);
/* PyThreadState of a thread, 0. */
uint64_t ub_python_thread(struct ub_python *py, pid_t tid);
/* The thread's number as it knows it itself: in another PID namespace not ours. */
pid_t ub_python_thread_tid(const struct ub_python *py, uint64_t state);

/* python_task.c */
void ub_python_task(struct ub_python *py, struct ub_python_look *look);
void ub_python_task_name(struct ub_python *py, uint64_t address, char *buf, size_t size);
bool ub_python_derives(struct ub_python *py, uint64_t address, const char *type);
uint64_t ub_python_modules(struct ub_python *py); /* sys.modules of the main interpreter, 0 */
uint64_t ub_python_module(struct ub_python *py, const char *name);
uint64_t ub_python_asyncio(struct ub_python *py); /* the dict of module _asyncio, 0: not imported */

/* python_pools.c: an executor that has more work than workers; *ret as it was where there is none. */
void ub_python_see_pools(struct ub_python *py, struct ub_python_pool *ret);

/* python_tasks.c: the set inside a WeakSet, 0. */
uint64_t ub_python_weak_set(struct ub_python *py, uint64_t object);

/* python_gil.c */
void ub_python_gil(struct ub_python *py, uint64_t state, uint64_t futex, struct ub_python_look *look);

/* python_find.c: the layout of that version, with what the process says of itself (py->runtime). 0; -ENOTSUP; -EBADMSG.
 */
int ub_python_settle(struct ub_python *py, uint32_t version);

#endif
