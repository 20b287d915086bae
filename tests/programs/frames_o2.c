// flags: -O2 -fno-optimize-sibling-calls -fno-reorder-blocks-and-partition
/* frames.c as most programs are built. */
#include "frames.c"
