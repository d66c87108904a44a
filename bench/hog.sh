#!/usr/bin/env bash
# An automatic budget beside a process that eats memory: both in one control group.
#
#   bench/hog.sh MODEL [LIMIT_MIB] [HOG_MIB] [TOKENS]
#
# Runs the model with --mem auto in a group of LIMIT_MIB (default 1536); after some seconds another
# process in the group takes HOG_MIB (default a third of it) for ten seconds and goes again.  Nothing may be killed, and the
# text must be that of a run without a limit.  Exit code: 0 held, 1 did not, 77 no group can be made.
set -u
cd "$(dirname "$0")/.."
M=${1:?a model} LIMIT=${2:-1536} BIN=${BIN:-./tessera}
HOG=${3:-$((LIMIT / 3))} N=${4:-400}
V=1 G=/sys/fs/cgroup/memory/tessera-hog
mkdir $G 2>/dev/null || { V=2; G=/sys/fs/cgroup/tessera-hog; mkdir $G 2>/dev/null; } || { echo "skipped: no group"; exit 77; }
T=$(mktemp -d)
trap 'rmdir $G; rm -rf "$T"' EXIT
if [ $V = 1 ]; then echo $((LIMIT << 20)) >$G/memory.limit_in_bytes; else echo $((LIMIT << 20)) >$G/memory.max; fi
ask=(run -m "$M" --ids 1,2,3,4,5 -c 1024 -n "$N" --temp 0.8 -s 7 --ignore-eos)
"$BIN" "${ask[@]}" --mem 100% >"$T/want" 2>"$T/err" || { cat "$T/err"; exit 1; }
(echo $BASHPID >$G/cgroup.procs; exec "$BIN" "${ask[@]}" --analyze >"$T/got" 2>"$T/err") &
pid=$!
sleep 4
# tail keeps what it has read until the reader takes it.
(echo $BASHPID >$G/cgroup.procs; head -c ${HOG}M /dev/zero | tail -c ${HOG}M | (sleep 10; cat >/dev/null))
wait $pid
rc=$?
grep -E "getting short|tokens/s" "$T/err"
kills=$(cat $G/memory.oom_control $G/memory.events 2>/dev/null | awk '$1 == "oom_kill" { print $2 }')
echo "exit code $rc, killed ${kills:-?}, text $(cmp -s "$T/want" "$T/got" && echo the same || echo another)"
[ $rc = 0 ] && [ "${kills:-0}" = 0 ] && cmp -s "$T/want" "$T/got"
