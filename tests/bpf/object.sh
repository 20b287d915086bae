#!/usr/bin/env bash
# Whether the committed BPF object is what its source gives. Compilers differ: only the one that made it is asked
# (tracer/bpf/compiler), and without clang nothing can be said.
set -eu
cd "$(dirname "$0")/../.."
object=tracer/bpf/unblock.bpf.o
made_by=$(cat tracer/bpf/compiler)
here=$(clang --version 2>/dev/null | head -n 1 || true)
if [ "$made_by" != "$here" ]; then
    echo "skipped: $object is not compared with its source (made by $made_by, here: ${here:-no clang})"
    exit 0
fi
new=$(mktemp)
trap 'rm -f "$new"' EXIT
make -s bpf-object BPF_OUTPUT="$new"
if ! cmp -s "$new" $object; then
    echo "$object is not what tracer/bpf/unblock.bpf.c gives: make bpf, and commit it" >&2
    exit 1
fi
