/*
 * unblock completion: scripts for shells. They ask the command itself
 * (--help=table) when Tab is pressed, so they never fall behind it.
 */
#include "command.h"
#include "options.h"
#include "say.h"

#include <stdio.h>
#include <string.h>

static const char bash[] =
    "# bash: eval \"$(unblock completion bash)\"\n"
    "_unblock() {\n"
    "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} cmd=${COMP_WORDS[1]} i table choices\n"
    "    COMPREPLY=()\n"
    "    if [ \"$COMP_CWORD\" = 1 ]; then\n"
    "        COMPREPLY=($(compgen -W \"$(unblock --help=table | cut -f1) help --help --version\" -- \"$cur\"))\n"
    "        return\n"
    "    fi\n"
    "    for ((i = 2; i < COMP_CWORD; i++)); do\n"
    "        if [ \"${COMP_WORDS[i]}\" = -- ]; then\n"
    "            [ $((i + 1)) = \"$COMP_CWORD\" ] && COMPREPLY=($(compgen -c -- \"$cur\")) || COMPREPLY=($(compgen -f "
    "-- \"$cur\"))\n"
    "            return\n"
    "        fi\n"
    "    done\n"
    "    [ \"$cmd\" = completion ] && { COMPREPLY=($(compgen -W 'bash zsh fish' -- \"$cur\")); return; }\n"
    "    [ \"$cmd\" = help ] && { COMPREPLY=($(compgen -W \"$(unblock --help=table | cut -f1)\" -- \"$cur\")); return; "
    "}\n"
    "    table=$(unblock \"$cmd\" --help=table 2>/dev/null) || return\n"
    "    case $prev in\n"
    "    -?*)\n"
    "        choices=$(awk -F'\\t' -v o=\"$prev\" '(o == \"--\" $2 || o == \"-\" $1) && $3 != \"-\" { print $4 == "
    "\"-\" ? \"@\" $3 : $4 }' <<<\"$table\")\n"
    "        case $choices in\n"
    "        @FILE) COMPREPLY=($(compgen -f -- \"$cur\")); return ;;\n"
    "        @*) return ;;\n"
    "        ?*) COMPREPLY=($(compgen -W \"$choices\" -- \"$cur\")); return ;;\n"
    "        esac ;;\n"
    "    esac\n"
    "    case $cur in\n"
    "    -*) COMPREPLY=($(compgen -W \"$(awk -F'\\t' '{ print \"--\" $2 }' <<<\"$table\")\" -- \"$cur\")) ;;\n"
    "    *) case $cmd in\n"
    "       run) COMPREPLY=($(compgen -c -- \"$cur\")) ;;\n"
    "       dump | top | trace | attach | detach | offload | doctor)\n"
    "           COMPREPLY=($(compgen -W \"$(ps -eo pid=)\" -- \"$cur\") $(compgen -f -- \"$cur\")) ;;\n"
    "       *) COMPREPLY=($(compgen -f -- \"$cur\")) ;;\n"
    "       esac ;;\n"
    "    esac\n"
    "}\n"
    "complete -o filenames -F _unblock unblock\n";

static const char zsh[] =
    "#compdef unblock\n"
    "# zsh: eval \"$(unblock completion zsh)\", or as _unblock in a folder of $fpath\n"
    "_unblock() {\n"
    "    local -a commands options line choices\n"
    "    local row cmd=$words[2] prev=$words[CURRENT-1]\n"
    "    if (( CURRENT == 2 )); then\n"
    "        for row in ${(f)\"$(unblock --help=table)\"}; do commands+=(\"${row%%$'\\t'*}:${row#*$'\\t'}\"); done\n"
    "        _describe command commands\n"
    "        return\n"
    "    fi\n"
    "    if (( ${words[(i)--]} < CURRENT )); then _normal -p unblock; return; fi\n"
    "    [[ $cmd == completion ]] && { compadd bash zsh fish; return; }\n"
    "    for row in ${(f)\"$(unblock $cmd --help=table 2>/dev/null)\"}; do\n"
    "        line=(\"${(@ps:\\t:)row}\")\n"
    "        if [[ $prev == --$line[2] || $prev == -$line[1] ]] && [[ $line[3] != - ]]; then\n"
    "            if [[ $line[4] != - ]]; then choices=(${=line[4]}); compadd -a choices; return; fi\n"
    "            [[ $line[3] == FILE ]] && { _files; return; }\n"
    "            return\n"
    "        fi\n"
    "        options+=(\"--$line[2]:$line[5]\")\n"
    "    done\n"
    "    if [[ $PREFIX == -* ]]; then _describe option options; return; fi\n"
    "    case $cmd in\n"
    "    run) _command_names -e ;;\n"
    "    dump|top|trace|attach|detach|offload|doctor) _alternative 'pids:process:_pids' 'files:recording:_files' ;;\n"
    "    *) _files ;;\n"
    "    esac\n"
    "}\n"
    "if [[ $funcstack[1] == _unblock ]]; then _unblock \"$@\"; else compdef _unblock unblock; fi\n";

static const char fish[] =
    "# fish: unblock completion fish | source\n"
    "function __unblock_first; test (count (commandline -opc)) -eq 1; end\n"
    "function __unblock_options\n"
    "    set -l words (commandline -opc)\n"
    "    contains -- -- $words; and return\n"
    "    set -l table (unblock $words[2] --help=table 2>/dev/null)\n"
    "    for row in $table\n"
    "        set -l f (string split \\t -- $row)\n"
    "        if test \"$words[-1]\" = \"--$f[2]\" -o \"$words[-1]\" = \"-$f[1]\"; and test \"$f[3]\" != -\n"
    "            test \"$f[4]\" != -; and string split ' ' -- $f[4]\n"
    "            return\n"
    "        end\n"
    "    end\n"
    "    for row in $table\n"
    "        set -l f (string split \\t -- $row)\n"
    "        printf '--%s\\t%s\\n' $f[2] $f[5]\n"
    "    end\n"
    "end\n"
    "complete -c unblock -n __unblock_first -f -a '(unblock --help=table)'\n"
    "complete -c unblock -n 'not __unblock_first' -a '(__unblock_options)'\n"
    "complete -c unblock -n 'contains completion (commandline -opc)' -f -a 'bash zsh fish'\n";

static const struct {
    const char *shell, *script;
} scripts[] = {{"bash", bash}, {"zsh", zsh}, {"fish", fish}};

static const char about[] = "Prints the completion for a shell. It is found by itself when it is installed;\n"
                            "otherwise put the line below into the shell's start-up file.";

static const char more[] = "  bash   eval \"$(unblock completion bash)\"\n"
                           "  zsh    eval \"$(unblock completion zsh)\"        after compinit\n"
                           "  fish   unblock completion fish | source\n"
                           "\n"
                           "Exit status: 0, or 2 for wrong use.\n";

int ub_cmd_completion(int argc, char **argv)
{
    const struct ub_options options = {.usage = "unblock completion bash|zsh|fish", .about = about, .more = more};
    int first, r = ub_options_command("completion", &options, argc, argv, &first);

    if (r != 0)
        return r < 0 ? UB_EXIT_USAGE : 0;
    for (size_t i = 0; argc - first == 1 && i < UB_ARRAY_LEN(scripts); i++) {
        if (!strcmp(argv[first], scripts[i].shell)) {
            fputs(scripts[i].script, stdout);
            return fflush(stdout) == 0 ? 0 : UB_EXIT_USAGE;
        }
    }
    ub_say("completion", "which shell? unblock completion bash, zsh or fish");
    return UB_EXIT_USAGE;
}
