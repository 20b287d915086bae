#include "options.h"
#include "say.h"

int ub_options_read(const struct ub_options *options, int argc, char **argv, int *ret_first, char *why)
{
    int r = ub_options_parse(options, argc, argv, ret_first, why);

    if (r == UB_OPTIONS_HELP)
        ub_options_help(stdout, options);
    return r;
}

int ub_options_command(const char *command, const struct ub_options *options, int argc, char **argv, int *ret_first)
{
    char why[UB_WHY_MAX];
    int r = ub_options_read(options, argc, argv, ret_first, why);

    if (r < 0)
        ub_say(command, "%s", why);
    return r;
}
