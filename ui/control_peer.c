#include "control_peer.h"
#include "json_get.h"
#include "options.h"

#include "../common/clock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- a client's queue ---------------------------------------------------- */

static bool room_for(struct ub_control_peer *k, size_t more)
{
    if (k->sent > 0 && k->size - k->len < more) {
        memmove(k->queue, k->queue + k->sent, k->len - k->sent);
        k->len -= k->sent;
        k->sent = 0;
    }
    if (k->len + more > UB_CONTROL_QUEUE_MAX)
        return false;
    if (k->size - k->len < more) {
        size_t size = (k->len + more) * 2 < UB_CONTROL_QUEUE_MAX ? (k->len + more) * 2 : UB_CONTROL_QUEUE_MAX;
        char *queue = realloc(k->queue, size);

        if (queue == NULL)
            return false;
        k->queue = queue;
        k->size = size;
    }
    return true;
}

/* Whole lines or nothing: what does not fit is counted, and told when there is room again. */
static bool put(struct ub_control_peer *k, const char *text, size_t len)
{
    if (!room_for(k, len + 1)) {
        k->dropped++;
        return false;
    }
    memcpy(k->queue + k->len, text, len);
    k->queue[k->len + len] = '\n';
    if (k->len == k->sent)
        k->waits_ns = ub_clock_monotonic_ns();
    k->len += len + 1;
    return true;
}

static void put_json(struct ub_control_peer *k, json_t *line)
{
    char *text = line != NULL ? json_dumps(line, JSON_COMPACT) : NULL;

    if (text != NULL)
        put(k, text, strlen(text));
    free(text);
    json_decref(line);
}

static void tell_dropped(struct ub_control_peer *k)
{
    uint64_t dropped = k->dropped;
    char text[96];

    if (dropped == 0 || k->len - k->sent > UB_CONTROL_QUEUE_MAX / 2)
        return;
    snprintf(text, sizeof(text), "{\"type\":\"dropped\",\"lines\":%llu}", (unsigned long long)dropped);
    if (put(k, text, strlen(text)))
        k->dropped -= dropped;
}

static void put_stack(struct ub_control_peer *k, const struct ub_control_state *s, const json_t *id)
{
    const json_t *text;
    char key[32];

    if (!json_is_integer(id))
        return;
    snprintf(key, sizeof(key), "%lld", (long long)json_integer_value(id));
    text = json_object_get(s->stacks, key);
    if (text == NULL || json_object_get(k->stacks, key))
        return;
    if (put(k, json_string_value(text), json_string_length(text)))
        json_object_set_new(k->stacks, key, json_true());
}

/* The stacks that a line refers to come before it, once a client. */
static void put_stacks_of(struct ub_control_peer *k, const struct ub_control_state *s, const json_t *record)
{
    const json_t *sample;
    size_t i;

    put_stack(k, s, json_object_get(record, "stack"));
    json_array_foreach (json_object_get(record, "samples"), i, sample) {
        put_stack(k, s, json_object_get(sample, "stack"));
    }
}

/* ---- requests ------------------------------------------------------------- */

static void refuse(struct ub_control_peer *k, const char *why)
{
    put_json(k, json_pack("{s:s, s:s}", "type", "error", "text", why));
    k->closing = true;
}

static void follow(struct ub_control_peer *k, const struct ub_control_state *s)
{
    const json_t *slow;
    size_t i;

    if (k->following)
        return;
    k->following = true;
    json_array_foreach (s->stalls, i, slow) {
        put_stacks_of(k, s, slow);
    }
}

static void switch_offload(struct ub_control_peer *k, const struct ub_control_source *from, const char *mode)
{
    char why[UB_WHY_MAX] = "this watcher cannot switch: calls are moved under `unblock run --offload=...` only";
    int r = -EINVAL;

    if (mode != NULL && from->options->offload != NULL && from->watch != NULL)
        r = from->options->offload(from->options->self, mode, why);
    if (r < 0)
        refuse(k, why);
    else
        put_json(k, json_pack("{s:s}", "type", "ok"));
}

static void answer(struct ub_control_peer *k, const struct ub_control_source *from, const char *text, size_t len)
{
    UB_CLEANUP(ub_json_drop) json_t *request = json_loadb(text, len, 0, NULL);
    const char *name = ub_json_string(request, "request");

    if (name == NULL) {
        refuse(k, "a request is one line: {\"request\":\"status\"}");
    } else if (!strcmp(name, "status") || !strcmp(name, "follow")) {
        put_json(k, ub_control_state_status(from->state, from->options, from->watch));
        if (!strcmp(name, "follow"))
            follow(k, from->state);
    } else if (!strcmp(name, "offload")) {
        switch_offload(k, from, ub_json_string(request, "mode"));
    } else if (!strcmp(name, "detach") && from->options->detach != NULL) {
        put_json(k, json_pack("{s:s}", "type", "ok"));
        k->closing = true;
        from->options->detach(from->options->self);
    } else {
        refuse(k, "unknown request: this watcher knows status, follow, offload and detach (a helper and attach only)");
    }
}

void ub_control_peer_got(struct ub_control_peer *k, const struct ub_control_source *from, size_t n)
{
    char *end;

    if (k->request_len == 0)
        k->waits_ns = ub_clock_monotonic_ns();
    k->request_len += n;
    while (!k->closing && (end = memchr(k->request, '\n', k->request_len)) != NULL) {
        answer(k, from, k->request, (size_t)(end - k->request));
        k->request_len -= (size_t)(end + 1 - k->request);
        memmove(k->request, end + 1, k->request_len);
    }
    if (k->request_len == UB_CONTROL_REQUEST_MAX)
        refuse(k, "the request is too long");
    if (k->closing)
        k->request_len = 0;
}

void ub_control_peer_tell(struct ub_control_peer *k, const struct ub_control_state *s, const json_t *record,
                          const char *text)
{
    tell_dropped(k);
    put_stacks_of(k, s, record);
    put(k, text, strlen(text));
}

/* ---- life ------------------------------------------------------------------ */

int ub_control_peer_init(struct ub_control_peer *k, int fd)
{
    *k = (struct ub_control_peer){.fd = fd, .waits_ns = ub_clock_monotonic_ns(), .stacks = json_object()};
    if (k->stacks != NULL)
        return 0;
    k->fd = -1;
    return -ENOMEM;
}

void ub_control_peer_clear(struct ub_control_peer *k)
{
    free(k->queue);
    json_decref(k->stacks);
    *k = (struct ub_control_peer){.fd = -1};
}
