#!/usr/bin/env bash
# The house rule: who may include whom.  Reads every #include of our own headers and checks it
# against the floors below; also that each header compiles alone and file names are unique.
set -u
cd "$(dirname "$0")/.."
bad=0
fail() { echo "$1"; bad=1; }

# room -> extended regular expression of what it may include
allowed() {
    case "$1" in
        moe/base/*) echo '^moe/base/' ;;
        quant/build/*) echo '.' ;;
        quant/*) echo '^(moe/base|quant)/' ;;
        moe/load/*) echo '^(moe/base|quant|moe/load)/' ;;
        moe/compute/*) echo '^(moe/base|quant|moe/compute)/' ;;
        routing/fit/*) echo '.' ;;
        routing/*) echo '^(moe/base/|routing/|moe/compute/(elem|op)\.h)' ;;
        offload/*) echo '^(moe/base/|quant/|offload/|moe/load/(weights|gguf)\.h|moe/compute/dev\.h)' ;;
        moe/plan/*) echo '^(moe/base/|quant/(qtype|mm)\.h|moe/plan/|moe/compute/(op|dev|elem)\.h|moe/load/(weights|gguf)\.h)' ;;
        models/*) echo '^(moe/base/|moe/load/|moe/plan/|models/)' ;;
        moe/run/* | moe/tessera.h) echo '^(moe/|quant/|routing/|offload/|models/)' ;;
        *) echo '.' ;;
    esac
}

files=$(git ls-files --cached --others --exclude-standard '*.c' '*.h')
for f in $files; do
    rule=$(allowed "$f")
    grep -oE '^#include "[^"]+"' "$f" | sed 's/.*"\(.*\)"/\1/' | while read -r inc; do
        [ -f "$inc" ] || { echo "$f includes \"$inc\", which is not a path from the root"; continue; }
        echo "$inc" | grep -qE "$rule" || echo "$f may not include $inc"
        case "$inc" in
            *_int.h) [ "$(dirname "$inc")" = "$(dirname "$f")" ] || case "$f" in tests/*) ;; *)
                echo "$f includes the private header $inc" ;; esac ;;
        esac
    done
done > build/includes.txt
[ -s build/includes.txt ] && fail "$(cat build/includes.txt)"

flags="-std=c11 -D_POSIX_C_SOURCE=200809L -D_DEFAULT_SOURCE -I. -Itests/cuda_emu -Wall -Wextra -Werror"
flags="$flags $(pkg-config --cflags libcjson libedit hwloc cmocka)"
for h in $(git ls-files --cached --others --exclude-standard '*.h' | grep -vE '_body\.h$|^tests/'); do
    # shellcheck disable=SC2086
    echo "#include \"$h\"" | gcc $flags -fsyntax-only -x c - 2>/dev/null ||
        fail "$h does not compile alone"
done

twice=$(for f in $files; do basename "$f"; done | sort | uniq -d)
[ -n "$twice" ] && fail "file names used twice: $twice"

exits=$(git grep -nE '(^|[^a-z_])exit\(' -- moe routing offload quant models ':!*.md' | grep -v '_exit' || true)
[ -n "$exits" ] && fail "exit outside cli/: $exits"
[ $bad = 0 ] && echo "include rule holds"
exit $bad
