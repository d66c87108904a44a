#!/usr/bin/env bash
# Runs every test given as an argument: a program, or a script that gets the tessera binary ($BIN).
# Prints one line per test and the output of those that fail; ends in one summary line.
# Exit codes of a test: 0 passed, 77 skipped, anything else failed.
set -u
passed=0 failed=0 skipped=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for t in "$@"; do
    start=$(date +%s.%N)
    case "$t" in
        *.sh) bash "$t" "$BIN" >"$log" 2>&1 </dev/null ;;
        *) $t >"$log" 2>&1 </dev/null ;; # may carry arguments
    esac
    code=$?
    took=$(printf '%5.1f' "$(echo "$(date +%s.%N) $start" | awk '{print $1 - $2}')")
    case $code in
        0) passed=$((passed + 1)); echo "  ok    ${took}s  $t"; grep -h '  NOTE  ' "$log" | sed 's/^/          /' ;;
        77) skipped=$((skipped + 1)); echo "  skip  ${took}s  $t: $(tail -n 1 "$log")" ;;
        *) failed=$((failed + 1)); echo "  FAIL  ${took}s  $t (exit $code)"; sed 's/^/      | /' "$log" | tail -n 60 ;;
    esac
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
