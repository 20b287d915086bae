/* Between maps.c (the snapshot) and maps_parse.c (its text). Private to these. */
#ifndef UB_TRACER_MAPS_IMPL_H
#define UB_TRACER_MAPS_IMPL_H

#include "maps.h"

/*
 * Parses the text of /proc/PID/maps into `maps->map` (allocated here), sorted
 * by start. maps->text is cut into strings: the paths point into it. A line
 * that makes no sense is left out. 0 or -ENOMEM.
 */
int ub_maps_parse(struct ub_maps *maps);

#endif
