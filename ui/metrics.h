/*
 * --metrics: the model as Prometheus metrics while it is being fed, in a file
 * (rewritten every 10 s and at the end, for node_exporter's textfile collector)
 * or served over HTTP on a loopback port or a unix socket.
 *
 * Has one thread of its own. It reads the model under a lock that the sink takes.
 */
#ifndef UB_UI_METRICS_H
#define UB_UI_METRICS_H

#include "model.h"

struct ub_metrics;

/*
 * `where`: "FILE", ":9464", "127.0.0.1:9464", "[::1]:9464" or "unix:PATH". 0, or
 * -errno with `why` (UB_WHY_MAX bytes). Only loopback addresses: there is no
 * password. `model` must outlive it.
 */
int ub_metrics_start(const char *where, struct ub_model *model, struct ub_metrics **ret, char *why);

/* Feeds the model, in the place of ub_model_sink. */
struct ub_sink ub_metrics_sink(struct ub_metrics *x);

/* The feeding is over. Writes the file a last time; afterwards nothing is served. NULL is fine. */
void ub_metrics_stop(struct ub_metrics *x);

#endif
