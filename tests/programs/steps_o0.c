// flags: -O0
/* steps.c without optimisation. */
#include "steps.c"
