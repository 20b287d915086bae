// flags: -O0 -fexceptions -Wno-cpp
/* chain.c without optimisation: every function has a frame pointer. */
#include "chain.c"
