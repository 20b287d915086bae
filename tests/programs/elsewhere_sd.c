/* elsewhere.h on sd-event. */
// libs: -lsystemd
#include "elsewhere.h"

#include <systemd/sd-event.h>

static int on_timer(sd_event_source *s, uint64_t at, void *n)
{
    if (turn(n))
        return sd_event_exit(sd_event_source_get_event(s), 0);
    sd_event_source_set_time(s, at + 1000);
    return sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
}

static void *run_loop(void)
{
    sd_event *loop;
    int n = 0;

    sd_event_new(&loop);
    sd_event_add_time_relative(loop, NULL, CLOCK_MONOTONIC, 1000, 1, on_timer, &n);
    sd_event_loop(loop);
    return loop;
}

static void end_loop(void *loop)
{
    sd_event_unref(loop);
}
