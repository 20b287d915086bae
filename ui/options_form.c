/*
 * The table of options in other forms than --help: for the completion of shells
 * and as the source of a man page, so that none of them can differ from it.
 */
#include "options_private.h"

#include <string.h>

static enum { FORM_HELP, FORM_TABLE, FORM_MAN } form;

bool ub_options_form_take(const char *word)
{
    if (!strcmp(word, "--help=table"))
        form = FORM_TABLE;
    else if (!strcmp(word, "--help=man"))
        form = FORM_MAN;
    return form != FORM_HELP;
}

/* ---- the table: letter, name, argument, choices, help ----------------------- */

static void put_flat(FILE *out, const char *text)
{
    for (; *text; text++)
        fputc(*text == '\n' || *text == '\t' ? ' ' : *text, out);
}

static void put_table(FILE *out, const struct ub_options *options)
{
    for (uint32_t i = 0; i < options->count; i++) {
        const struct ub_option *o = &options->option[i];

        fprintf(out, "%c\t%s\t%s\t", o->letter ? o->letter : '-', o->name,
                o->argument && !o->bare ? o->argument : "-"); /* alone it is a flag */
        for (int k = 0; o->choices && !o->bare && o->choices[k]; k++)
            fprintf(out, "%s%s", k ? " " : "", o->choices[k]);
        fputs(o->choices && !o->bare ? "\t" : "-\t", out);
        put_flat(out, o->help);
        fputc('\n', out);
    }
    fputs("h\thelp\t-\t-\tthis text\n", out);
}

/* ---- scdoc --------------------------------------------------------------------- */

static void put_plain(FILE *out, const char *text)
{
    for (; *text; text++) {
        if (strchr("\\*_<>#~[]|:", *text))
            fputc('\\', out);
        fputc(*text == '\n' ? ' ' : *text, out);
    }
}

static void put_option(FILE *out, const struct ub_option *o)
{
    if (o->letter)
        fprintf(out, "*-%c*, ", o->letter);
    fputs("*--", out);
    put_plain(out, o->name);
    fputc('*', out);
    if (o->argument)
        fprintf(out, o->bare ? "[=_%s_]" : " _%s_", o->argument);
    fputs("\n\t", out);
    put_plain(out, o->help);
    if (o->choices) {
        fputs(".++\nOne of:", out);
        for (int k = 0; o->choices[k]; k++)
            fprintf(out, "%s %s", k ? "," : "", o->choices[k]);
    }
    if (o->env)
        fprintf(out, ".++\nVariable: *%s*", o->env);
    fputs("\n\n", out);
}

/* Up to its end, or to where it goes into detail. */
static void put_sentence(FILE *out, const char *text)
{
    char sentence[256];

    snprintf(sentence, sizeof(sentence), "%.*s", (int)strcspn(text, ".:;"), text);
    put_plain(out, sentence);
}

static void put_man(FILE *out, const struct ub_options *options)
{
    char command[32];

    ub_options_command_name(options, command);
    fprintf(out, "unblock-%s(1)\n\n# NAME\n\nunblock-%s - ", command, command);
    put_sentence(out, options->about);
    fputs("\n\n# SYNOPSIS\n\n", out);
    put_plain(out, options->usage);
    fputs("\n\n# DESCRIPTION\n\n", out);
    put_plain(out, options->about);
    fputs("\n\n# OPTIONS\n\n", out);
    for (uint32_t i = 0; i < options->count; i++)
        put_option(out, &options->option[i]);
    fputs("*-h*, *--help*\n\tthis text\n\n", out);
    if (options->more)
        fprintf(out, "# NOTES\n\n```\n%s```\n\n", options->more);
    fputs("# SEE ALSO\n\n*unblock*(1)\n", out);
}

bool ub_options_form_print(FILE *out, const struct ub_options *options)
{
    if (form == FORM_TABLE)
        put_table(out, options);
    else if (form == FORM_MAN)
        put_man(out, options);
    return form != FORM_HELP;
}
