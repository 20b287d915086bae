/* The page of the HTML report (ui/html/), part of the program. */
#ifndef UB_UI_HTML_PAGE_H
#define UB_UI_HTML_PAGE_H

#include "../common/base.h"

extern const char ub_html_head[],
    ub_html_head_end[]; /* head.html: up to the place of the data; marks: see export_html.c */
extern const char ub_html_style[], ub_html_style_end[];
extern const char ub_html_script[], ub_html_script_end[];

#endif
