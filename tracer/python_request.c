/*
 * The HTTP request that a thread serves: in the local variables of the frames
 * between the server and the handler. ASGI applications (starlette, FastAPI, Django
 * ...) have its dict `scope`, aiohttp's have its Request. The route is told where the
 * framework has it; else the path, without what comes after the question mark.
 */
#include "python_impl.h"

#include <stdio.h>
#include <stdlib.h>

/* What a frame's local variable refers to; 0: it has none, or not yet. */
static uint64_t local(struct ub_python *py, const struct ub_python_frame *f, int at)
{
    uint64_t value = 0;

    if (at >= 0 && ub_python_read_pointer(py, f->address + py->layout.frame_locals + 8 * (uint64_t)at, &value) &&
        value && ub_python_is(py, value, "cell")) /* a function inside uses it */
        ub_python_read_pointer(py, value + UB_PYTHON_CELL_TO, &value);
    return value;
}

static bool text(struct ub_python *py, uint64_t object, char *buf, size_t size)
{
    *buf = '\0';
    return object && ub_python_string(py, object, buf, size);
}

static bool from_scope(struct ub_python *py, uint64_t scope, struct ub_python_request *ret)
{
    uint64_t route = ub_python_dict_get(py, scope, "route");
    char type[32];

    if (!text(py, ub_python_dict_get(py, scope, "type"), type, sizeof(type)) ||
        (strcmp(type, "http") != 0 && strcmp(type, "websocket") != 0))
        return false;
    if (!text(py, ub_python_dict_get(py, scope, "method"), ret->method, sizeof(ret->method)))
        snprintf(ret->method, sizeof(ret->method), "%s", "GET"); /* a web socket begins with one */
    ret->is_route = route && text(py, ub_python_attribute(py, route, "path"), ret->path, sizeof(ret->path));
    return ret->is_route || text(py, ub_python_dict_get(py, scope, "path"), ret->path, sizeof(ret->path));
}

/* aiohttp: request._match_info._route._resource, which is a plain path or has a pattern. */
static bool from_aiohttp(struct ub_python *py, uint64_t request, struct ub_python_request *ret)
{
    uint64_t match = ub_python_attribute(py, request, "_match_info");
    uint64_t route = match ? ub_python_attribute(py, match, "_route") : 0;
    uint64_t resource = route ? ub_python_attribute(py, route, "_resource") : 0;

    if (!resource || !text(py, ub_python_attribute(py, request, "_method"), ret->method, sizeof(ret->method)))
        return false;
    ret->is_route = true;
    return text(py, ub_python_attribute(py, resource, "_formatter"), ret->path, sizeof(ret->path)) ||
           text(py, ub_python_attribute(py, resource, "_path"), ret->path, sizeof(ret->path));
}

void ub_python_see_request(struct ub_python *py, struct ub_python_look *look)
{
    for (uint32_t i = 0; i < look->count; i++) {
        const struct ub_python_frame *f = &look->frame[i];
        struct ub_python_request found = {.path = ""};
        uint64_t value;

        if (f->code->owner == UB_PYTHON_LOOP)
            return; /* what called it is no request's */
        value = local(py, f, f->code->scope);
        if (value && ub_python_is(py, value, "dict") && from_scope(py, value, &found)) {
            look->request = found;
            return;
        }
        value = local(py, f, f->code->request);
        if (value && ub_python_derives(py, value, "BaseRequest") && from_aiohttp(py, value, &found)) {
            look->request = found;
            return;
        }
    }
}
