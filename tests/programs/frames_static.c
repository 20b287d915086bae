// flags: -O2 -static -fno-optimize-sibling-calls -fno-reorder-blocks-and-partition
/* frames.c in one piece, at fixed addresses. */
#include "frames.c"
