/*
 * unblock policy: what may leave the loops and what may not, as a file that a person can
 * read, edit, and have checked.
 */
#include "command.h"
#include "input.h"
#include "options.h"
#include "output.h"
#include "policy_write.h"
#include "say.h"

#include "../tracer/policy_file.h"

#include <errno.h>
#include <stdio.h>

static const char about[] = "Writes an offload policy from recordings: a rule for each place whose blocking calls\n"
                            "moved, or would have (record with --offload), a comment for each that has to stay,\n"
                            "with the reason. A person reads and edits it; `unblock run --offload=POLICY` follows\n"
                            "it. --check says whether what is in such a file makes sense.";

static const char more[] = "A policy, in which the first rule of a section that fits counts:\n"
                           "\n"
                           "  [offload]                                   # calls into libc\n"
                           "  fsync in wal_commit = move lane=files limit=4\n"
                           "  fsync in db.c:*     = inline                # FILE:FUNCTION\n"
                           "  getaddrinfo         = move                  # from anywhere\n"
                           "  [python]                                    # functions\n"
                           "  jobs.is_prime       = process(3)            # thread, process, fork\n"
                           "  [yield]\n"
                           "  jobs.*              = 5ms\n"
                           "  [except]                                    # stronger than all others\n"
                           "  billing.*           = inline\n"
                           "\n"
                           "Exit status: 0 written, or the policy is good; 2 it is not (each mistake is told with\n"
                           "file and line), wrong use, or an unreadable recording\n";

struct policy_settings {
    bool check;
    const char *output;
    struct ub_input in;
    char **file;
    int files;
};

static int parse(int argc, char **argv, struct policy_settings *s, char *why)
{
    const struct ub_option option[] = {
        {.name = "check", .kind = UB_OPTION_FLAG, .value = &s->check, .help = "say what is wrong with the policy FILE"},
        {.letter = 'o',
         .name = "output",
         .kind = UB_OPTION_TEXT,
         .value = &s->output,
         .argument = "FILE",
         .help = "write there, not to standard output"},
    };
    const struct ub_options options = {.usage = "unblock policy [-o FILE] RECORDING...\n"
                                                "       unblock policy --check FILE",
                                       .about = about,
                                       .more = more,
                                       .option = option,
                                       .count = UB_ARRAY_LEN(option)};
    int first, r = ub_options_read(&options, argc, argv, &first, why);

    if (r != 0)
        return r;
    if (first == argc || (s->check && argc - first > 1)) {
        snprintf(why, UB_WHY_MAX,
                 first < argc ? "--check takes one policy at a time"
                              : "no file named: unblock policy RECORDING, or --check FILE");
        return -EINVAL;
    }
    s->file = argv + first;
    s->files = argc - first;
    return 0;
}

static void tell(void *self, const char *path, uint32_t line, const char *what)
{
    if (line)
        ub_say("policy", "%s:%u: %s", path, line, what);
    else
        ub_say("policy", "%s: %s", path, what);
}

/* "p.ini is good: 3 rules for calls, 1 for Python functions" */
static int check(const char *path)
{
    static const char *const words[UB_POLICY_SECTIONS] = {"for calls", "for Python functions", "to give way",
                                                          "of exception"};
    uint32_t count[UB_POLICY_SECTIONS] = {0};
    struct ub_policy_file policy;
    const char *between = ": ";

    if (ub_policy_read(path, tell, NULL, &policy) < 0)
        return UB_EXIT_USAGE;
    for (uint32_t i = 0; i < policy.count; i++)
        count[policy.rule[i].section]++;
    printf("%s is good", path);
    if (policy.count == 0)
        fputs(", and has no rules", stdout);
    for (uint32_t i = 0; i < UB_POLICY_SECTIONS; i++) {
        if (count[i] == 0)
            continue;
        printf("%s%u %s %s", between, count[i], count[i] == 1 ? "rule" : "rules", words[i]);
        between = ", ";
    }
    putchar('\n');
    ub_policy_clear(&policy);
    return 0;
}

static int write_policy(struct policy_settings *s)
{
    struct ub_policy_written told;
    struct ub_output out = {0};
    int r = ub_input_read(&s->in, s->file, s->files);

    if (r == 0)
        r = ub_output_open(&out, "policy", s->output, &s->in);
    if (r < 0)
        return UB_EXIT_USAGE;
    ub_policy_write(s->in.model, s->file[0], out.file, false, &told);
    if (told.rules == 0 && told.comments == 0)
        ub_say("policy", "nothing in %s blocked a loop in a call", s->file[0]);
    else if (told.calls > 0 && told.judged == 0)
        ub_say("policy", "nobody has judged these calls: record with --offload to know which of them may move");
    return ub_output_close(&out) < 0 ? UB_EXIT_USAGE : 0;
}

int ub_cmd_policy(int argc, char **argv)
{
    struct policy_settings s = {.in.command = "policy"};
    char why[UB_WHY_MAX];
    int r = parse(argc, argv, &s, why);

    if (r == UB_OPTIONS_HELP)
        return 0;
    if (r < 0) {
        ub_say("policy", "%s", why);
        return UB_EXIT_USAGE;
    }
    if (s.check)
        return check(s.file[0]);
    r = write_policy(&s);
    ub_input_clear(&s.in);
    return r;
}
