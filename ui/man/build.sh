#!/bin/sh
# Man pages of all commands, from their tables of options: ui/man/build.sh UNBLOCK FOLDER
set -eu
unblock=$1
folder=$2
mkdir -p "$folder"
scdoc <"$(dirname "$0")/unblock.1.scd" >"$folder/unblock.1"
scdoc <"$(dirname "$0")/unblock-policy.5.scd" >"$folder/unblock-policy.5"
"$unblock" --help=table | while IFS="$(printf '\t')" read -r command _; do
    "$unblock" "$command" --help=man | scdoc >"$folder/unblock-$command.1"
done
