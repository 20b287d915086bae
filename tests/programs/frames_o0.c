// flags: -O0 -fno-optimize-sibling-calls -fno-reorder-blocks-and-partition
/* frames.c without optimisation. */
#include "frames.c"
