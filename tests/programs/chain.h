/*
 * What tests/programs/chain.c tells about itself, in a file that both sides
 * map: which functions it has, which call chains it went through lately, and
 * what it saw of us. The truth of tests/unit/test_capture.c: independent of
 * unwind tables and symbols.
 */
#ifndef CHAIN_H
#define CHAIN_H

#include "../../common/slot.h"

#define CHAIN_DEPTH_MIN 3
#define CHAIN_DEPTH_MAX 40
#define CHAIN_FUNCTIONS 17
#define CHAIN_PLANS     8192u /* a power of two; the last ones, so that a checker may be late */
#define CHAIN_TABLE_MAX 64u
#define CHAIN_WAIT_RAW  11 /* waits[] of chain.c: ppoll whose sixth argument is the plan's id */
#define CHAIN_MAGIC     0x6b72616d6e696863ull

/*
 * One planned chain: root -> fn[0] -> ... -> fn[depth - 1] -> waits[wait].
 * `id` is written last and zeroed first: a reader that finds the same id before
 * and after has read a whole plan.
 */
struct chain_plan {
    uint64_t id;
    uint8_t depth;
    uint8_t wait;
    uint8_t fn[CHAIN_DEPTH_MAX];
};

/* On the stack of the root, which is never left: a copied stack says itself which plan it belongs to. */
struct chain_mark {
    uint64_t magic;
    uint64_t id; /* 0: between two chains */
};

enum chain_kind {
    CHAIN_F,    /* fn[index] */
    CHAIN_VIA,  /* what fn[index] is called through on its way (a callback of a libc function) */
    CHAIN_WAIT, /* the last one, which waits */
    CHAIN_ROOT,
    CHAIN_BASE, /* below the root: main or the thread's function */
};

struct chain_function {
    uint64_t address;
    uint32_t kind; /* enum chain_kind */
    uint32_t index;
};

struct chain_shared {
    uint32_t ready; /* 1: everything below is filled in */
    uint32_t stop;  /* set by the checker */
    int32_t pid, tid;
    uint64_t mark;  /* address of the struct chain_mark */
    uint64_t clock; /* enum ub_clock of the sample's stamp */
    uint32_t count;
    struct chain_function function[CHAIN_TABLE_MAX];
    uint32_t via[CHAIN_FUNCTIONS]; /* fn[i] has a CHAIN_VIA frame above it */

    /* What the thread saw. */
    uint64_t chains;
    uint64_t interrupted; /* EINTR */
    uint64_t short_counts;
    uint64_t wrong_results; /* a call that ended otherwise than it ever does */
    struct {                /* the last of any of these */
        uint32_t wait;
        int32_t result, error;
    } last_wrong;

    struct chain_plan plan[CHAIN_PLANS];
    struct ub_slot_cold cold __attribute__((aligned(4096))); /* for the agent's signal handler */
};

#endif
