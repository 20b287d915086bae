/* The page of the HTML report (ui/html/), part of the program. */
#ifndef UB_UI_HTML_PAGE_H
#define UB_UI_HTML_PAGE_H

extern const char ub_html_page[]; /* with %MARKS% where the others go, see export_html.c */
extern const char ub_html_style[], ub_html_script[];

#endif
