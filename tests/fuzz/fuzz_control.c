/*
 * libFuzzer: any bytes as what a client says on the control socket, cut into
 * pieces, while the recording's lines go to it. The first bytes say how: each
 * piece is preceded by its length; one of length 0 is a line of the recording
 * (as far as the next line's end), one of length 1 the client reading all it got.
 */
#include "../../ui/control_peer.h"
#include "../../ui/json_get.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint32_t detached;

static void on_detach(void *self)
{
    detached++;
    (void)self;
}

/* Nothing but whole objects, one a line, is ever sent. */
static void read_all(struct ub_control_peer *k)
{
    while (k->sent < k->len) {
        char *at = k->queue + k->sent, *end = memchr(at, '\n', k->len - k->sent);
        json_t *line = end ? json_loadb(at, (size_t)(end - at), JSON_ALLOW_NUL, NULL) : NULL;

        if (!json_is_object(line))
            abort();
        json_decref(line);
        k->sent = (size_t)(end + 1 - k->queue);
    }
    k->sent = k->len = 0;
}

static void check(const struct ub_control_peer *k)
{
    if (k->request_len >= sizeof(k->request) || (k->closing && k->request_len) || k->sent > k->len ||
        k->len > k->size || k->size > UB_CONTROL_QUEUE_MAX || memchr(k->request, '\n', k->request_len))
        abort();
}

static size_t record(struct ub_control_state *s, struct ub_control_peer *k, const uint8_t *data, size_t size)
{
    const uint8_t *end = memchr(data, '\n', size);
    size_t len = end ? (size_t)(end - data) : size;
    json_t *line = json_loadb((const char *)data, len, JSON_ALLOW_NUL, NULL);
    char *text = json_dumps(line, JSON_COMPACT);

    if (text && json_is_object(line)) {
        ub_control_state_line(s, line);
        if (k->following)
            ub_control_peer_tell(k, s, line, text);
    }
    free(text);
    json_decref(line);
    return len + (end != NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct ub_control_options options = {.mode = "preload", .pid = 42, .detach = on_detach};
    struct ub_control_state s = {0};
    const struct ub_control_source source = {&options, &s, NULL};
    static struct ub_control_peer k;

    detached = 0;
    if (ub_control_state_init(&s) < 0 || ub_control_peer_init(&k, 7) < 0)
        abort();
    while (size > 0 && !k.closing) {
        size_t n = *data++;

        size--;
        if (n == 0) {
            n = record(&s, &k, data, size);
        } else if (n == 1) {
            read_all(&k);
            n = 0;
        } else {
            n = n < size ? n : size;
            n = n < sizeof(k.request) - k.request_len ? n : sizeof(k.request) - k.request_len;
            memcpy(k.request + k.request_len, data, n);
            ub_control_peer_got(&k, &source, n);
        }
        data += n;
        size -= n;
        check(&k);
    }
    if (detached > 1 || (detached && !k.closing))
        abort();
    read_all(&k);
    ub_control_peer_clear(&k);
    ub_control_state_clear(&s);
    return 0;
}
