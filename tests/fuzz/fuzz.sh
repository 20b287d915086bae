#!/usr/bin/env bash
# Runs fuzzers: tests/fuzz/fuzz.sh SECONDS BINARY...
# The corpus in the tree (tests/fuzz/corpus/NAME) is read, not written; what is new goes to build/fuzz/corpus/NAME,
# an input that fails to build/fuzz/NAME-crash-*.
set -eu
cd "$(dirname "$0")/../.."
seconds=$1
shift
export ASAN_OPTIONS=allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
for binary in "$@"; do
    name=${binary##*/fuzz_}
    mkdir -p "build/fuzz/corpus/$name"
    echo "== fuzz $name, $seconds s"
    options=()
    [ ! -f "tests/fuzz/$name.dict" ] || options=(-dict="tests/fuzz/$name.dict")
    "$binary" -max_total_time="$seconds" -max_len=65536 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="build/fuzz/$name-" "${options[@]}" \
        "build/fuzz/corpus/$name" "tests/fuzz/corpus/$name" 2>&1 | grep -vE '^#[0-9]+	(NEW|REDUCE|RELOAD|pulse)' | tail -n 40
    [ "${PIPESTATUS[0]}" = 0 ] || exit 1
done
