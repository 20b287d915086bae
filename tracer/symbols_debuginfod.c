/*
 * debuginfod: the distribution's debug files over HTTP. Only when the user set
 * DEBUGINFOD_URLS, and through elfutils' own client, so that its cache, time-outs
 * (DEBUGINFOD_TIMEOUT) and progress (DEBUGINFOD_PROGRESS) work as everywhere.
 * Opened by name: neither building nor running needs it.
 */
#include "symbols_impl.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>

/* From <elfutils/debuginfod.h>: part of libdebuginfod.so.1's ABI. */
struct client {
    void *(*begin)(void);
    int (*find_debuginfo)(void *client, const unsigned char *build_id, int build_id_len, char **path);
    void (*end)(void *client);
};

static const struct client *load_client(void)
{
    static struct client client; /* under the lock of symbols.c */
    static bool tried;

    if (!tried) {
        void *library = dlopen("libdebuginfod.so.1", RTLD_NOW | RTLD_LOCAL);

        tried = true;
        if (library) {
            client.begin = (void *(*)(void))dlsym(library, "debuginfod_begin");
            client.find_debuginfo =
                (int (*)(void *, const unsigned char *, int, char **))dlsym(library, "debuginfod_find_debuginfo");
            client.end = (void (*)(void *))dlsym(library, "debuginfod_end");
        }
    }
    return client.begin && client.find_debuginfo && client.end ? &client : NULL;
}

int ub_debuginfod_find(const uint8_t *build_id, uint32_t len)
{
    const char *urls = getenv("DEBUGINFOD_URLS");
    const struct client *client;
    void *handle;
    int fd;

    if (!urls || !*urls || len == 0)
        return -ENOENT;
    client = load_client();
    if (!client)
        return -ENOTSUP;
    handle = client->begin();
    if (!handle)
        return -ENOMEM;
    fd = client->find_debuginfo(handle, build_id, (int)len, NULL);
    client->end(handle);
    return fd < 0 && fd > -4096 ? fd : fd < 0 ? -EIO : fd;
}
