// flags: -O2 -fno-omit-frame-pointer -fno-reorder-blocks-and-partition -fexceptions
/* chain.c as distributions build everything of late: optimised, with frame pointers. */
#include "chain.c"
