/*
 * What a command tells its user on standard error: one line that says what
 * happened, to what, and what to do.
 */
#ifndef UB_UI_SAY_H
#define UB_UI_SAY_H

/*
 * "unblock COMMAND: TEXT\n" in one write(2); COMMAND may be NULL. What the text
 * holds of other people's names is escaped like everything else. Never fails.
 */
void ub_say(const char *command, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
