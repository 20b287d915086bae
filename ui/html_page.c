/* The assembler takes the files as they are; make knows that they are part of this. */
#include "html_page.h"

#define INCLUDE(name, file)                                                                                            \
    __asm__(".pushsection .rodata\n.global " #name "\n" #name ":\n.incbin \"ui/html/" file "\"\n.byte "                \
            "0\n.popsection\n")

INCLUDE(ub_html_page, "page.html");
INCLUDE(ub_html_style, "page.css");
INCLUDE(ub_html_script, "page.js");
