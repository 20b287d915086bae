/* The cost of an sd-event callback: cost.h. */
// libs: -lsystemd
#include "cost.h"

#include <systemd/sd-event.h>

static const char cost_library[] = "sd-event";
static sd_event *event;

static NOINLINE int on_cost(sd_event_source *source, void *data)
{
    cost_work();
    return 0;
}

static void cost_prepare(void)
{
    sd_event_source *source;

    if (sd_event_default(&event) < 0)
        die("sd-event");
    for (int i = 0; i < CALLBACKS; i++)
        if (sd_event_add_defer(event, &source, on_cost, NULL) < 0 ||
            sd_event_source_set_enabled(source, SD_EVENT_ON) < 0)
            die("sd-event");
}

/* It runs one callback a turn. */
static void cost_round(void)
{
    for (int i = 0; i < CALLBACKS; i++)
        if (sd_event_run(event, 0) < 0)
            die("sd_event_run");
}
