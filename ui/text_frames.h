/*
 * How a frame is shown: its place ("wal.c:212", "libz.so.1", "redis-server+0x4f2a1"), its
 * function, and whether it is the user's business. The classes of modules and
 * loop functions come from one table, tracer/dispatchers.c.
 */
#ifndef UB_UI_TEXT_FRAMES_H
#define UB_UI_TEXT_FRAMES_H

#include "json_get.h"

enum ub_shown {
    UB_SHOWN_USER,    /* shown, and candidate for the arrow */
    UB_SHOWN_LIBRARY, /* a library of the system: folded into one line that names what was called */
    UB_SHOWN_LOOP,    /* event loop: ends the stack for a reader */
    UB_SHOWN_RUNTIME, /* interior of an interpreter: left out */
    UB_SHOWN_LIBC,    /* left out: the `why` line already names the call */
};

/* `exe`: path of the program's executable, which is the user's wherever it lies; may be NULL. */
enum ub_shown ub_text_frame_class(const json_t *frame, const char *exe);

/*
 * Both return `buf`; the text is not escaped yet. "" when nothing is known; a
 * function of the program itself without debug information has no place.
 */
const char *ub_text_frame_place(const json_t *frame, char *buf, size_t size);
const char *ub_text_frame_function(const json_t *frame, char *buf, size_t size);

/*
 * A C++ or Rust function without its arguments: "Server::on_flush" of
 * "Server::on_flush(int, char const*) const". Returns `buf`.
 */
const char *ub_text_frame_plain(const char *function, char *buf, size_t size);

/* Code in no file and without a name: a JIT's. Its addresses mean nothing to a reader, so all of it is one. */
bool ub_text_frame_generated(const json_t *frame);

/* The same function (of one file and module), or without names the same address. */
bool ub_text_frame_same(const json_t *a, const json_t *b);

#endif
