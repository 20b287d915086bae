/*
 * libFuzzer: any bytes as a list of known stalls (--allow, --suppress) and as a
 * .unblock.ini, and as an offload policy. What is accepted is used once.
 */
#include "../../tracer/policy_file.h"
#include "../../ui/options.h"
#include "../../ui/rules.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use_rules(const char *path)
{
    struct ub_rules rules;
    char why[UB_WHY_MAX];
    json_t *slow = json_pack("{s:s, s:{s:s}, s:s, s:{s:s}, s:i}", "site", "7f3a91c2", "callback", "function",
                             "on_flush", "thread", "main", "call", "name", "fsync", "duration_ns", 5);
    struct ub_model *m = ub_model_new();

    memset(why, 'x', sizeof(why));
    if (ub_rules_read(path, 1700000000, &rules, why) == 0)
        ub_rules_fit_record(&rules, m, slow);
    else if (!memchr(why, 0, sizeof(why)))
        abort();
    ub_rules_clear(&rules);
    ub_model_free(m);
    json_decref(slow);
}

static void use_config(const char *home)
{
    static const char *const choices[] = {"a", "b", NULL};
    const char *text = NULL;
    bool flag = false;
    uint64_t time_ns = 0, size = 0;
    int choice = 0, first;
    const struct ub_option option[] = {
        {.name = "flag", .kind = UB_OPTION_FLAG, .value = &flag, .help = ""},
        {.name = "text", .kind = UB_OPTION_TEXT, .value = &text, .argument = "T", .help = ""},
        {.name = "time", .kind = UB_OPTION_TIME, .value = &time_ns, .argument = "T", .help = "", .max = 1000000000},
        {.name = "size", .kind = UB_OPTION_SIZE, .value = &size, .argument = "S", .help = ""},
        {.name = "choice", .kind = UB_OPTION_CHOICE, .value = &choice, .argument = "C", .help = "", .choices = choices},
    };
    const struct ub_options options = {
        .usage = "unblock run", .about = "", .option = option, .count = sizeof(option) / sizeof(option[0])};
    char *argv[] = {(char *)"run", NULL}, why[UB_WHY_MAX];

    setenv("XDG_CONFIG_HOME", home, 1);
    memset(why, 'x', sizeof(why));
    if (ub_options_parse(&options, 1, argv, &first, why) < 0 && !memchr(why, 0, sizeof(why)))
        abort();
    if (choice < 0 || choice > 1 || time_ns > 1000000000)
        abort();
}

static void use_policy(const char *path)
{
    const struct ub_policy_names names = {.function = "a::b(c)", .file = "/x/y.py", .module = "/z.so", .python = true};
    struct ub_policy_file p;

    ub_policy_read(path, NULL, NULL, &p);
    for (uint32_t i = 0; i < p.count; i++) {
        ub_policy_fits_call(&p.rule[i], "fsync");
        ub_policy_fits_place(&p.rule[i], &names);
        ub_policy_find_dotted(&p, UB_POLICY_PYTHON, p.rule[i].text);
    }
    ub_policy_clear(&p);
}

static char folder[] = "/tmp/unblock-fuzz-XXXXXX";

static void remove_folder(void)
{
    rmdir(folder);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char path[64];
    FILE *f;

    if (!*path) {
        if (!mkdtemp(folder))
            abort();
        atexit(remove_folder);
        snprintf(path, sizeof(path), "%s/unblock.ini", folder);
    }
    f = fopen(path, "w");
    if (!f || fwrite(data, 1, size, f) != size)
        abort();
    fclose(f);
    use_rules(path);
    use_config(folder);
    use_policy(path);
    unlink(path);
    return 0;
}
