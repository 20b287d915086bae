/*
 * write(2) until everything is out. Short writes, EINTR and non-blocking
 * descriptors are dealt with; a closed pipe is an error, never a SIGPIPE.
 */
#ifndef UB_UI_WRITE_ALL_H
#define UB_UI_WRITE_ALL_H

#include "../common/base.h"

/*
 * 0 or -errno of the write that failed; *ret_written (may be NULL) tells how
 * many bytes are out in either case. -EAGAIN: the reader of a non-blocking
 * descriptor took nothing for a second. `regular`: the descriptor is known to
 * be a regular file, which saves three system calls.
 * Thread-safe: SIGPIPE is held back in the calling thread only.
 */
int ub_write_all(int fd, const void *bytes, size_t len, bool regular, size_t *ret_written);

#endif
