#!/bin/sh
# What must hold of the linked agent, checked at every link:
# it needs libc only, exports nothing but hooks, uses at most 64 bytes of TLS, and no executable stack.
set -eu
so=$1
hooks=$(sed -n -e 's/^UB_HOOK([^,]*, \([A-Za-z0-9_]*\),.*/\1/p' -e 's/^UB_EXPORT(\(.*\))$/\1/p' \
    -e 's/^UB_CALL[A-Z_]*([^,]*, \([A-Za-z0-9_]*\),.*/\1/p' agent/hooks.def common/calls.def; echo syscall)
fail() { echo "agent/verify.sh: $so: $1" >&2; exit 1; }

needed=$(readelf -dW "$so" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | grep -v -e '^libc\.so' -e '^ld-linux' || true)
[ -z "$needed" ] || fail "needs more than libc: $needed"

extra=$(nm -D --defined-only "$so" | awk '{print $3}' | while read -r name; do
    echo "$hooks" | grep -qx "$name" || echo "$name"
done)
[ -z "$extra" ] || fail "exports what is no hook: $extra"

for name in $hooks; do
    nm -D --defined-only "$so" | grep -q " T $name\$" || fail "does not export the hook $name"
done

tls=$(readelf -lW "$so" | awk '$1 == "TLS" {print $6}')
if [ -z "$tls" ] || [ $((tls)) -gt 64 ]; then fail "TLS is $tls bytes, not 1 to 64"; fi

readelf -lW "$so" | awk '$1 == "GNU_STACK" && $7 ~ /E/ {exit 1}' || fail "wants an executable stack"
readelf -dW "$so" | grep -q TEXTREL && fail "has text relocations"
exit 0
