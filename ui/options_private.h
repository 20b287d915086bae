/* Inside of options*.c; nobody else includes this. */
#ifndef UB_UI_OPTIONS_PRIVATE_H
#define UB_UI_OPTIONS_PRIVATE_H

#include "options.h"

/* Sets the value of one option; `source` names where the text came from, for `why`. 0 or -EINVAL. */
int ub_option_set(const struct ub_option *o, const char *source, const char *text, char *why);
/* By its long name, without the dashes; NULL: there is none. */
const struct ub_option *ub_option_find(const struct ub_options *options, const char *name, size_t len);

/* "run" of "unblock run [OPTION...]"; "" for none. Returns `buf`. */
const char *ub_options_command_name(const struct ub_options *options, char buf[32]);

/* options_config.c: ./.unblock.ini and $XDG_CONFIG_HOME/unblock.ini. 0 or -EINVAL with `why`. */
int ub_options_config(const struct ub_options *options, char *why);

/* options_form.c: --help=table (for completion) and --help=man (for scdoc). */
bool ub_options_form_take(const char *word);                             /* it is one of these */
bool ub_options_form_print(FILE *out, const struct ub_options *options); /* false: the plain help is wanted */

#endif
