/*
 * The calls of suspended callbacks, in their order: which of them may be made already, which must wait for an earlier
 * one on the same file, and which are over. For suspend.c, leave.c and drive.c, on the loop's thread.
 */
#ifndef UB_AGENT_ORDER_H
#define UB_AGENT_ORDER_H

#include "suspend_impl.h"

/* What a call is about. */
struct ub_place {
    int fd;             /* -1: nothing that another call could be about, too */
    uint64_t object;    /* the file, by whatever number; 0: by its number only */
    uint32_t direction; /* enum ub_direction */
};

/* `object` is asked for only if there are callbacks whose calls it could be compared with. */
struct ub_place ub_order_place(const struct mine *m, int fd, uint32_t direction);

/* The object of a call once what its number means is kept. */
uint64_t ub_order_object(const struct ub_job *job, uint32_t direction);

/* The loop in which an earlier call on the same file is not over; NULL: there is none. */
struct ub_host *ub_order_busy(const struct mine *m, struct ub_place p);

/* Earlier calls on this file have to be over before one that stays: waits as the loop would have without us. Leaves
 * errno alone. */
void ub_order_settle(struct ub_host *h, struct ub_place p);

/* Starts what waits for nothing any more, in order. A full pool: the call is made here and now, as without us. */
void ub_order_start(struct ub_host *h);

/* Until something of the loop may be over, or for a moment. */
void ub_order_wait(const struct ub_host *h);

#endif
