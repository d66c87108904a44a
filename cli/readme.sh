#!/usr/bin/env bash
# Keeps the README's generated blocks equal to what the program prints.
#   cli/readme.sh           rewrites them
#   cli/readme.sh --check   exits 1 and shows the difference when they are out of date
# A block stands between "<!-- begin: COMMAND -->" and "<!-- end -->"; COMMAND is run from the root.
# Lines of a block that is no table are put into a code fence.
set -eu
cd "$(dirname "$0")/.."
new=$(mktemp)
trap 'rm -f "$new"' EXIT
inside=0
while IFS= read -r line; do
    case "$line" in
        '<!-- begin: '*)
            inside=1
            command=${line#<!-- begin: }
            command=${command% -->}
            out=$(bash -c "$command" 2>&1)
            printf '%s\n' "$line"
            case "$out" in '|'*) printf '%s\n' "$out" ;; *) printf '```\n%s\n```\n' "$out" ;; esac ;;
        '<!-- end -->') inside=0; printf '%s\n' "$line" ;;
        *) [ $inside = 1 ] || printf '%s\n' "$line" ;;
    esac
done <README.md >"$new"
if [ "${1:-}" = --check ]; then
    diff -u README.md "$new" && echo "README is up to date"
else
    cp "$new" README.md
fi
