/*
 * A captured stack with names, and what the frames are: the program's own, a
 * library's, an event loop's dispatcher.
 */
#ifndef UB_TRACER_FRAMES_H
#define UB_TRACER_FRAMES_H

#include "record.h"
#include "symbols.h"
#include "unwind.h"

enum ub_role {
    UB_ROLE_USER,    /* the program's own code */
    UB_ROLE_LIBRARY, /* libc and other system libraries */
    UB_ROLE_LOOP,    /* an event-loop library, or a function known to dispatch */
    UB_ROLE_RUNTIME, /* an interpreter or language runtime */
};

struct ub_named_frame {
    struct ub_symbol symbol;
    const struct ub_map *map; /* valid as long as the maps of ub_named_stack */
    uint64_t pc, cfa;         /* of the physical frame */
    enum ub_role role;
    bool libc;
    uint16_t python; /* a Python frame: its index in the look, plus one (python_merge.h) */
};

#define UB_NAMED_MAX 384

struct ub_named_stack {
    struct ub_maps *maps; /* one reference */
    uint64_t hash;        /* equal stacks (same code, not merely same addresses) have equal hashes */
    bool complete;
    uint32_t count;
    struct ub_named_frame frame[UB_NAMED_MAX];
};

/* Names every frame, inlined functions included. Replaces what `ret` held; takes a reference on `maps`. */
void ub_frames_name(struct ub_maps *maps, const struct ub_stack *stack, struct ub_named_stack *ret);
void ub_frames_clear(struct ub_named_stack *s);

/* For `hash`: one more value. */
uint64_t ub_frames_mix(uint64_t hash, uint64_t value);

/* The `frames` array of a `stack` line. `redact` leaves out paths but for the last component. */
json_t *ub_frames_json(const struct ub_named_stack *s, bool redact);

/* {function, file, line, module} of one frame. */
json_t *ub_frame_place(const struct ub_named_frame *f, bool redact);

/* Function names without what compilers add (.isra.0, .constprop.1, .cold, .part.2) into buf. */
void ub_frame_plain_name(const char *function, char *buf, size_t size);

#endif
