#include "mask.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

#define MASK "***"

static bool is_name_char(char c)
{
    return isalnum((unsigned char)c) || c == '_' || c == '-' || c == '.';
}

static bool contains(const char *name, size_t len, const char *word)
{
    size_t n = strlen(word);

    for (size_t i = 0; i + n <= len; i++)
        if (!strncasecmp(name + i, word, n))
            return true;
    return false;
}

static bool ends_in(const char *name, size_t len, const char *word)
{
    size_t n = strlen(word);

    return len >= n && !strncasecmp(name + len - n, word, n);
}

/* "key" is also the end of harmless words (monkey): only as a word of its own, or after what makes it a secret. */
static bool is_secret_name(const char *name, size_t len)
{
    static const char *const words[] = {"passw",      "passphrase", "secret",        "token",
                                        "credential", "apikey",     "authorization", "cookie"};

    for (size_t i = 0; i < UB_ARRAY_LEN(words); i++)
        if (contains(name, len, words[i]))
            return true;
    if (ends_in(name, len, "pass") || ends_in(name, len, "pwd"))
        return true;
    return ends_in(name, len, "key") && (len == 3 || !isalpha((unsigned char)name[len - 4]));
}

bool ub_mask_next(const char *argument)
{
    const char *name = argument + strspn(argument, "-");
    size_t len = strlen(name);

    if (name == argument || len == 0)
        return false;
    for (size_t i = 0; i < len; i++)
        if (!is_name_char(name[i]))
            return false;
    return is_secret_name(name, len);
}

/* Whether the '=' or ':' at `at` follows a secret-like name (quotes and spaces between them: JSON, HTTP headers). */
static bool follows_secret_name(const char *text, size_t at)
{
    size_t end = at, start;

    while (end > 0 && (text[end - 1] == ' ' || text[end - 1] == '"' || text[end - 1] == '\''))
        end--;
    for (start = end; start > 0 && is_name_char(text[start - 1]); start--)
        ;
    return is_secret_name(text + start, end - start);
}

/* Length of the user info before '@' in the authority at `text`, 0 when there is none. */
static size_t user_info(const char *text)
{
    size_t authority = strcspn(text, "/?# "), last = 0;

    for (size_t i = 0; i < authority; i++)
        if (text[i] == '@')
            last = i;
    return last;
}

void ub_mask_text(struct ub_line *line, const char *text)
{
    size_t done = 0, len = strlen(text);

    for (size_t i = 0; i < len; i++) {
        size_t skip;

        if (!strncmp(text + i, "://", 3) && (skip = user_info(text + i + 3)) > 0) {
            i += 3;
        } else if ((text[i] == '=' || text[i] == ':') && follows_secret_name(text, i)) {
            i++;
            skip = strcspn(text + i, "&");
        } else {
            continue;
        }
        ub_line_escape(line, text + done, i - done, 0);
        if (skip > 0)
            ub_line_printf(line, MASK);
        done = i + skip;
        i = done - 1;
    }
    ub_line_escape(line, text + done, len - done, 0);
}
