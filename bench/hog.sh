#!/usr/bin/env bash
# An automatic budget beside a process that eats memory: both in one control group.
#
#   bench/hog.sh MODEL [LIMIT_MIB] [HOG_MIB] [TOKENS]
#
# Runs the model with --mem auto in a group of LIMIT_MIB (default 1536; needs `make tools`); after some
# seconds another process in the group takes HOG_MIB (default a third of it) for ten seconds and goes
# again.  Nothing may be killed, and the text must be that of a run without a limit.
# Exit code: 0 held, 1 did not, 77 no group can be made.
set -u
cd "$(dirname "$0")/.."
M=${1:?a model} LIMIT=${2:-1536} BIN=${BIN:-./tessera} CONFINED=${CONFINED:-build/release/bench/confined}
HOG=${3:-$((LIMIT / 3))} N=${4:-400}
"$CONFINED" 0 true 2>/dev/null || { echo "skipped: no control group for memory can be made here"; exit 77; }
T=$(mktemp -d)
trap 'rm -rf "$T"' EXIT
ask=(run -m "$M" --ids 1,2,3,4,5 -c 1024 -n "$N" --temp 0.8 -s 7 --ignore-eos)
"$BIN" "${ask[@]}" --mem 100% >"$T/want" 2>"$T/err" || { cat "$T/err"; exit 1; }
# tail keeps what it has read until the reader takes it.
"$CONFINED" $((LIMIT << 20)) bash -c '
    hog=$1; shift
    "$@" & pid=$!
    sleep 4
    head -c "${hog}M" /dev/zero | tail -c "${hog}M" | (sleep 10; cat >/dev/null)
    wait $pid' hog "$HOG" "$BIN" "${ask[@]}" --analyze >"$T/got" 2>"$T/err"
rc=$?
grep -E "getting short|tokens/s|^confined" "$T/err"
echo "exit code $rc, text $(cmp -s "$T/want" "$T/got" && echo the same || echo another)"
[ $rc = 0 ] && grep -q '^confined .* killed=0$' "$T/err" && cmp -s "$T/want" "$T/got"
