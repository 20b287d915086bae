/*
 * What the tracer tells the world: JSON objects, exactly the lines of the
 * recording (see ui/recording.schema.json and README "The recording"). One
 * representation serves the file, the live text and the reports.
 */
#ifndef UB_TRACER_RECORD_H
#define UB_TRACER_RECORD_H

#include "../common/base.h"

#include <jansson.h>

/*
 * Called once for each line, in order, from one thread (the explaining
 * thread). `record` is borrowed: take a reference to keep it, do not change it.
 * A sink must not block for long and must not fail: it deals with its own trouble.
 */
struct ub_sink {
    void (*line)(void *self, json_t *record);
    void *self;
};

#endif
