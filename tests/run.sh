#!/usr/bin/env bash
# Runs every test given as an argument: a program, or a script that gets the tessera binary ($BIN).
# $JOBS of them run at a time (default: one per core), so a test may count on nothing but its own
# files and never on speed.  Prints one line per test when it ends, and the output of those that
# fail; ends in one summary line.
# Exit codes of a test: 0 passed, 77 skipped, anything else failed.
set -u
jobs=${JOBS:-$(nproc)}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
trap 'exit 130' INT TERM

run_one() # NUMBER TEST
{
    local log=$logs/$1 start code took
    start=$(date +%s.%N)
    case "$2" in
        *.sh) bash "$2" "$BIN" >"$log" 2>&1 </dev/null ;;
        *) $2 >"$log" 2>&1 </dev/null ;; # may carry arguments
    esac
    code=$?
    took=$(printf '%5.1f' "$(echo "$(date +%s.%N) $start" | awk '{print $1 - $2}')")
    { # one write, so that lines of two tests do not mix
        case $code in
            0) echo "  ok    ${took}s  $2"; grep -h '  NOTE  ' "$log" | sed 's/^/          /' ;;
            77) echo "  skip  ${took}s  $2: $(tail -n 1 "$log")" ;;
            *) echo "  FAIL  ${took}s  $2 (exit $code)"
                # What cmocka says of the tests that passed would hide the one that did not.
                grep -av '^\[ *\(RUN\|OK\) ' "$log" | sed 's/^/      | /' | tail -n 60 ;;
        esac
    } >"$log.line"
    cat "$log.line"
    echo "$code" >"$log.code"
}

n=0
for t in "$@"; do
    [ "$(jobs -rp | wc -l)" -lt "$jobs" ] || wait -n
    run_one $n "$t" &
    n=$((n + 1))
done
wait
passed=0 failed=0 skipped=0
for ((i = 0; i < n; i++)); do
    case $(cat "$logs/$i.code" 2>/dev/null) in
        0) passed=$((passed + 1)) ;;
        77) skipped=$((skipped + 1)) ;;
        *) failed=$((failed + 1)) ;;
    esac
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
