/*
 * A line of source text, where it can be read here.
 *
 * The path comes from a recording, maybe a stranger's: only regular files that
 * are named like source code are opened, and only a bounded part is read.
 */
#ifndef UB_UI_TEXT_SOURCE_H
#define UB_UI_TEXT_SOURCE_H

#include "../common/base.h"

#include <time.h>

/*
 * Line `line` (from 1) of `file` without its indent into `buf`. `not_after`:
 * when the recording began; a file changed since then may say something else
 * there and is not shown (0: no such limit). The text is not escaped.
 * 0; -ENOENT: no such file, line, or nothing on it; -EPERM: not a file we
 * show; -ESTALE: changed since; another -errno of open.
 */
int ub_text_source(const char *file, uint64_t line, time_t not_after, char *buf, size_t size);

#endif
