/*
 * `slow` and `stats` lines read from their text, without building the JSON object. Only the
 * plain form that our own writer makes is understood, and all of the line is
 * checked; of anything else it says nothing, and the JSON library judges.
 */
#ifndef UB_UI_RECORDING_SCAN_H
#define UB_UI_RECORDING_SCAN_H

#include "stall.h"

/* `line` may be read UB_SCAN_PAD bytes beyond its end, whatever stands there. */
#define UB_SCAN_PAD 16

/* True: it is a `slow` line in good order, and *ret is what ub_stall_read would say of it. */
bool ub_scan_slow(const char *line, size_t len, struct ub_stall *ret);

/* The same for a `stats` line. */
bool ub_scan_stats(const char *line, size_t len, struct ub_stats_line *ret);

#endif
