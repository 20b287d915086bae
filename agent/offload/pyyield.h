/*
 * Steps of asyncio's tasks that compute for longer than their slice are set aside between two bytecodes, and go
 * on when their loop has nothing better to do. In the main thread only: nowhere else does CPython look for signals.
 */
#ifndef UB_AGENT_PYYIELD_H
#define UB_AGENT_PYYIELD_H

#include "../../common/base.h"

/* In SIGURG's handler, of thread `tid`: true, if it came for us. Signal-safe; leaves errno alone. */
bool ub_pyyield_signalled(int32_t tid);

#endif
