// flags: -O2 -fno-reorder-blocks-and-partition -fexceptions
/* chain.c with as much alloca and variable-length arrays as it has to offer. */
#define CHAIN_ALLOCA
#include "chain.c"
