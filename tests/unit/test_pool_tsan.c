/* test_pool.c once more, under ThreadSanitizer. */
// flags: -fsanitize=thread
#define UNDER_TSAN
#include "../../agent/offload/pool.c"
#include "../../agent/offload/inbox.c"
#include "test_pool.c"
