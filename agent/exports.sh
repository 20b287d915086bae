#!/bin/sh
# Writes the linker's version script from the list of hooks. Anonymous: a named
# version node would keep the dynamic linker from binding anything to us.
set -eu
echo '{'
echo '  global:'
sed -n -e 's/^UB_HOOK([^,]*, \([A-Za-z0-9_]*\),.*/    \1;/p' -e 's/^UB_EXPORT(\(.*\))$/    \1;/p' \
    -e 's/^UB_CALL[A-Z_]*([^,]*, \([A-Za-z0-9_]*\),.*/    \1;/p' "$@"
echo '    syscall;'
echo '  local: *;'
echo '};'
