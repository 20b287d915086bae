#!/usr/bin/env bash
# Every linter over the project's own files; says what each found and fails if any did.
# tests/lint.sh [clang-format|clang-tidy|cppcheck|shellcheck|python]...
set -u
cd "$(dirname "$0")/.." || exit 2

mapfile -t sources < <(git ls-files 'agent/*.c' 'agent/*.h' 'common/*.h' 'tracer/*.c' 'tracer/*.h' 'ui/*.c' 'ui/*.h' \
    'tests/unit/*.c' 'tests/unit/*.h' 'tests/programs/*.c' 'tests/programs/*.h')
mapfile -t units < <(git ls-files 'agent/*.c' 'tracer/*.c' 'ui/*.c' ':!*.bpf.c') # that one is for another machine
mapfile -t scripts < <(git ls-files '*.sh' .ci/run)
mapfile -t python < <(git ls-files '*.py')

read -r -a libraries <<<"$(pkg-config --cflags libunwind libelf libdw jansson libzstd 2>/dev/null)"
flags=(-std=gnu17 -D_GNU_SOURCE -Wno-unknown-attributes -I/usr/include/libiberty -isystem /usr/include/python3.11 "${libraries[@]}")

lint_clang-format() {
    clang-format --dry-run -Werror "${sources[@]}"
}

lint_clang-tidy() {
    # The count of suppressed warnings of system headers is noise.
    clang-tidy --quiet --warnings-as-errors='*' "${units[@]}" -- "${flags[@]}" 2> >(grep -v ' warnings\? generated' >&2)
}

lint_cppcheck() {
    # comparePointers: the ends of assembly and of ourselves are symbols, not objects. missingReturn: Py_RETURN_NONE returns. legacyUninitvar: the kernel fills it.
    cppcheck --quiet --std=c11 --language=c --enable=warning,portability --inline-suppr --error-exitcode=1 \
        --suppress=missingIncludeSystem --suppress=unknownMacro --suppress=ctuuninitvar \
        --suppress=legacyUninitvar:agent/offload/decide.c --suppress='comparePointers:tracer/inject*' --suppress=comparePointers:agent/patch.c \
        --suppress=comparePointers:agent/module.c --suppress='missingReturn:agent/offload/python/*' --suppress='nullPointerRedundantCheck:agent/*' --suppress='nullPointerArithmeticRedundantCheck:agent/*' \
        -D__x86_64__ -D_GNU_SOURCE -DPY_VERSION_HEX=0x030b0000 "${units[@]}"
}

lint_shellcheck() {
    shellcheck "${scripts[@]}"
}

lint_python() {
    local file bad=0
    for file in "${python[@]}"; do
        "${PYTHON:-/usr/bin/python3}" -c 'import ast, sys; ast.parse(open(sys.argv[1]).read(), sys.argv[1])' "$file" || bad=1
    done
    return $bad
}

failed=()
for linter in "${@:-clang-format clang-tidy cppcheck shellcheck python}"; do
    for one in $linter; do
        echo "== $one"
        "lint_$one" || failed+=("$one")
    done
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "lint: failed: ${failed[*]}"
    exit 1
fi
echo "lint: clean"
