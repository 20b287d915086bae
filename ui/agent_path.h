/*
 * Where the agent is: beside this very command (../lib/unblock/libunblock.so,
 * in the build tree as when installed), or where UNBLOCK_AGENT says.
 */
#ifndef UB_UI_AGENT_PATH_H
#define UB_UI_AGENT_PATH_H

#include "../common/base.h"

/*
 * Absolute path into `path`. -EINVAL with `why` (UB_WHY_MAX bytes): there is
 * none, or it cannot be put in LD_PRELOAD; what to do about it is said.
 */
int ub_agent_path(char *path, size_t size, char *why);

#endif
