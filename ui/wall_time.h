/*
 * Wall-clock times as text. Thread-safe; nothing is allocated.
 */
#ifndef UB_UI_WALL_TIME_H
#define UB_UI_WALL_TIME_H

#include "../common/base.h"

/*
 * RFC 3339 ("2025-11-21T03:05:12.5Z", "...+01:00"), also with a space for the
 * T, and without zone (then local time) or seconds. Nanoseconds since 1970.
 * 0 or -EINVAL.
 */
int ub_wall_time_parse(const char *text, int64_t *ret_ns);

/* "2025-11-21 03:05:12 UTC" into `buf`, which is returned. */
const char *ub_wall_time_format(int64_t ns, char *buf, size_t size);

#endif
