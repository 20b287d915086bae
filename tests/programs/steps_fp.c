// flags: -O2 -fno-omit-frame-pointer -fno-reorder-blocks-and-partition
/* steps.c with frame pointers. */
#include "steps.c"
