/* A folder of a test's own, as cmocka's setup and teardown make and remove it. */
#ifndef FOLDER_CHECK_H
#define FOLDER_CHECK_H

#include "ui_check.h"

static char folder[64];

static inline int setup(void **state)
{
    folder_make(folder);
    return 0;
}

static inline int teardown(void **state)
{
    folder_remove(folder);
    return 0;
}

/* A file last changed at the start of 2025: before the recordings here began. */
static inline void make_source(const char *name, const char *text, char *path, size_t size)
{
    struct timespec old[2] = {{.tv_sec = 1735689600}, {.tv_sec = 1735689600}};
    FILE *f;

    snprintf(path, size, "%s/%s", folder, name);
    f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    assert_int_equal(utimensat(AT_FDCWD, path, old, 0), 0);
}

#endif
