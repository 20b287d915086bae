/* What tests/programs/frames.c tells about the stack it stands on. For tests/unit/test_unwind.c. */
#ifndef FRAMES_H
#define FRAMES_H

#include <stdint.h>

#define FRAMES_MAX 24

struct frames_shared {
    uint32_t ready;
    int32_t tid;
    uint32_t known_count;
    uint64_t known[FRAMES_MAX]; /* addresses of the program's functions */
    uint32_t count;
    uint64_t expected[FRAMES_MAX]; /* innermost first: those of them that are on the stack */
};

#endif
