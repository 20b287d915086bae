/*
 * Which calls leave their loops, and what became of them: by call site (function called, place that calls it, callback)
 * and program image. In the arena: a fixed table that is probed by a hash. An agent adds a site
 * when a call blocks there, or leaves; the tracer gives it names. Entries stay for the run. In Python the place is the
 * innermost frame's instruction, and the callback the task's coroutine: code objects both.
 *
 * Written by any thread of the programs, atomically; the tracer reads, and trusts nothing. Signal-safe.
 */
#ifndef UB_POLICY_H
#define UB_POLICY_H

#include "base.h"

#define UB_POLICY_SITES  1024u
#define UB_POLICY_TRIES  16u
#define UB_POLICY_CALLS  512u  /* more than there are numbers of calls */
#define UB_POLICY_LIMITS 1024u /* more than a policy has rules */

/* Of the first call from a place in Python: 12 are those of urllib. */
#define UB_POLICY_FRAMES 24u

/* Functions of callbacks that ran while calls of a site were away: told apart, the first ones that were seen. */
#define UB_POLICY_MEANWHILE 8u

enum ub_policy_state {
    UB_POLICY_FREE = 0,
    UB_POLICY_TAKING = 1,
    UB_POLICY_LIVE = 2,
};

/*
 * What the rules of a policy (tracer/policy_file.h) say of a call, or of a place. Rules with places need names, which
 * only the tracer has: it answers once for each place.
 */
enum ub_policy_verdict {
    UB_POLICY_DENY = 0,  /* of a call: no rule moves it from anywhere */
    UB_POLICY_WATCH = 1, /* it depends on the place; of a place: the tracer has not answered yet */
    UB_POLICY_ALLOW = 2, /* moved */
};

struct ub_policy_site {
    uint32_t state; /* enum ub_policy_state */
    uint32_t
        learned; /* it has blocked its loop for the threshold or longer: from then on it may leave (flagged, eager) */
    uint64_t image; /* of which program image the addresses are */
    uint64_t ra, function;
    uint32_t id;                          /* enum ub_call_id; UB_CALL_IDS: sem_wait */
    int32_t pid;                          /* who came first */
    uint64_t moved, moved_ns, longest_ns; /* calls that left, from the call to the callback's going on */
    uint64_t pool_ns;                     /* of moved_ns: until a thread took it up, and from its end to the going on */
    uint64_t blocked, blocked_ticks; /* calls that stayed and took the threshold or longer, before it was learned */
    uint64_t frames;                 /* of Python's in `frame`: how many */
    uint32_t verdict;                /* enum ub_policy_verdict, if `version` is that of the rules: the tracer's */
    uint32_t version;                /* futex */
    uint16_t lane;                   /* enum ub_executor; NONE: that of the call */
    uint16_t limit;                  /* so many at once of one process, 0: any number; */
    uint32_t rule;                   /* counted together by this number */
    uint32_t waited;                 /* a call has waited for the answer: no other does */
    uint64_t beside, beside_most;    /* callbacks that ran while such calls were away: all, and in one */
    uint64_t others;                 /* of `beside`: those that `meanwhile` does not name */
};
_Static_assert(sizeof(struct ub_policy_site) == 144, "policy: agent and tracer agree on it");

/* One function whose callbacks ran while calls of a site were away. */
struct ub_policy_meanwhile {
    uint32_t state; /* enum ub_policy_state */
    int32_t pid;    /* where it was first */
    uint64_t function, count;
    uint8_t kind, library; /* enum ub_callback_kind, ub_loop_library */
    uint8_t reserved[6];
};
_Static_assert(sizeof(struct ub_policy_meanwhile) == 32, "policy: agent and tracer agree on it");

struct ub_policy {
    uint32_t full;  /* sites that found no room: their calls are not told of, and are moved only where that is proven */
    uint32_t fresh; /* sites ever added, and functions in `meanwhile` */
    uint32_t version; /* of the rules: each change of them is one more; 0: there are none */
    uint32_t limited; /* calls that stayed because of a limit */
    uint64_t reserved[6];
    uint8_t call[UB_POLICY_CALLS]; /* enum ub_policy_verdict. Written by the tracer */
    struct ub_policy_site site[UB_POLICY_SITES];
    uint64_t frame[UB_POLICY_SITES][UB_POLICY_FRAMES]; /* innermost first, each as ub_policy_place says */
    struct ub_policy_meanwhile meanwhile[UB_POLICY_SITES][UB_POLICY_MEANWHILE];
};

/* A code object, and which of its instructions (of two bytes). */
static inline uint64_t ub_policy_place(uint64_t code, uint64_t instruction)
{
    return code | (instruction - code) / 2 << 48;
}

static inline uint64_t ub_policy_code(uint64_t place)
{
    return place & ((1ull << 48) - 1);
}

static inline uint64_t ub_policy_instruction(uint64_t place)
{
    return ub_policy_code(place) + (place >> 48) * 2;
}

/* The entry of a site, or (`make`) a new one, with these Python frames; NULL: there is none, or no room. */
static inline struct ub_policy_site *ub_policy_find(struct ub_policy *p, uint64_t image, uint32_t id, uint64_t ra,
                                                    uint64_t function, int32_t pid, const uint64_t *frame,
                                                    uint32_t frames, bool make)
{
    uint64_t hash = (image ^ ra * 0x9e3779b97f4a7c15ull ^ function << 17 ^ id) * 0xff51afd7ed558ccdull;

    for (uint32_t i = 0; i < UB_POLICY_TRIES; i++) {
        struct ub_policy_site *s = &p->site[((hash >> 40) + i) % UB_POLICY_SITES];
        uint32_t free = UB_POLICY_FREE;

        if (ub_load_acquire(&s->state) == UB_POLICY_LIVE) {
            if (s->image == image && s->ra == ra && s->function == function && s->id == id)
                return s;
            continue;
        }
        if (!make)
            return NULL;
        if (!__atomic_compare_exchange_n(&s->state, &free, UB_POLICY_TAKING, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
            continue; /* another thread: perhaps for the same; a second one does no harm */
        s->image = image;
        s->ra = ra;
        s->function = function;
        s->id = id;
        s->pid = pid;
        s->frames = frames < UB_POLICY_FRAMES ? frames : UB_POLICY_FRAMES;
        for (uint32_t k = 0; k < s->frames; k++)
            p->frame[s - p->site][k] = frame[k];
        ub_store_release(&s->state, UB_POLICY_LIVE);
        __atomic_fetch_add(&p->fresh, 1, __ATOMIC_RELEASE);
        return s;
    }
    if (make)
        __atomic_fetch_add(&p->full, 1, __ATOMIC_RELAXED);
    return NULL;
}

/* `count` callbacks of a function ran while a call of the site was away. */
static inline void ub_policy_count_meanwhile(struct ub_policy *p, struct ub_policy_site *site, uint64_t function,
                                             uint32_t kind, uint32_t library, int32_t pid, uint64_t count)
{
    for (uint32_t i = 0; function && i < UB_POLICY_MEANWHILE; i++) {
        struct ub_policy_meanwhile *w = &p->meanwhile[site - p->site][i];
        uint32_t free = UB_POLICY_FREE;

        if (ub_load_acquire(&w->state) == UB_POLICY_LIVE) {
            if (w->function != function || w->kind != kind || w->library != library)
                continue;
            __atomic_fetch_add(&w->count, count, __ATOMIC_RELAXED);
            return;
        }
        if (!__atomic_compare_exchange_n(&w->state, &free, UB_POLICY_TAKING, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
            continue; /* as above */
        w->pid = pid;
        w->function = function;
        w->kind = (uint8_t)kind;
        w->library = (uint8_t)library;
        ub_store_relaxed(&w->count, count);
        ub_store_release(&w->state, UB_POLICY_LIVE);
        __atomic_fetch_add(&p->fresh, 1, __ATOMIC_RELEASE);
        return;
    }
    __atomic_fetch_add(&site->others, count, __ATOMIC_RELAXED);
}

#endif
