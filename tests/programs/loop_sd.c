/* The stalls of stalls.h in an sd-event descriptor source. loop_sd TRUTH [STALLS [ROUNDS [SEED]]] */
// libs: -lsystemd
#include "stalls.h"

#include <sys/timerfd.h>
#include <systemd/sd-event.h>

static NOINLINE int on_tick(sd_event_source *source, int fd, uint32_t events, void *s)
{
    uint64_t count;

    if (read(fd, &count, sizeof(count)) < 0)
        return 0;
    if (stalls_tick(s))
        sd_event_exit(sd_event_source_get_event(source), 0);
    return 0;
}

int main(int argc, char **argv)
{
    struct stalls *s = stalls_new(argc, argv);
    struct itimerspec every = {.it_interval.tv_nsec = STALLS_TICK_NS, .it_value.tv_nsec = STALLS_TICK_NS};
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    sd_event *event;

    timerfd_settime(timer, 0, &every, NULL);
    if (sd_event_default(&event) < 0 || sd_event_add_io(event, NULL, timer, EPOLLIN, on_tick, s) < 0)
        die("sd-event");
    return sd_event_loop(event) < 0;
}
