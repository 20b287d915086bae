#include "html_data.h"
#include "text_escape.h"

#include <stdlib.h>

json_t *ub_html_text(const char *text, size_t columns)
{
    char *safe = NULL;
    size_t size;
    FILE *out = open_memstream(&safe, &size);
    json_t *s = NULL;

    if (out) {
        ub_escape_put(out, text ? text : "", columns);
        if (fclose(out) == 0)
            s = json_string(safe);
        free(safe);
    }
    return s ? s : json_string("?");
}

json_t *ub_html_number(uint64_t n)
{
    return json_integer(n > INT64_MAX ? INT64_MAX : (json_int_t)n);
}
