#!/usr/bin/env bash
# One number for memory, obeyed: runs random combinations of model, format, budget, context, prompt,
# threads and resizes in the middle of a conversation, and measures each from outside.
#
#   bench/budget.sh [-n COMBINATIONS] [-s SEED] [-b BIG] [-d DIR] [-f FILE]
#
# COMBINATIONS (default 100) on small models, BIG (default 0) more of them on a file of at least 1 GiB
# (FILE, or one that is made in DIR) with less than half of it as budget.  For every one:
#   - the smallest budget is what the refusal says, and a tenth of a MiB less is refused with exit code 3;
#   - in an unlimited control group the peak charge stays under the budget, or, every second time,
#     in a group limited to the budget nothing is killed; the peak resident set stays under it.  Every start
#     is a cold one: program and libraries are copies of ours that are not in the page cache, so that the
#     group is charged for them, too;
#   - logits (or the text of a conversation) are those of a run without a limit, byte for byte.
# Prints what failed, then (or when it is interrupted) a summary with the largest shares of the budget that
# were used, and the least ones of the smallest budgets where the context was full.
# Exit code: 0 all held, 1 something did not, 77 no control group can be made here.
set -u
cd "$(dirname "$0")/.."
N=100 SEED=1 BIG=0 DIR= FILE= BIN=${BIN:-./tessera}
while getopts n:s:b:d:f: o; do
    case $o in n) N=$OPTARG ;; s) SEED=$OPTARG ;; b) BIG=$OPTARG ;; d) DIR=$OPTARG ;; f) FILE=$OPTARG ;; *) exit 2 ;; esac
done
GEN=${GEN:-build/release/bench/gen_model} CONFINED=${CONFINED:-build/release/bench/confined}
T=$(mktemp -d ${DIR:+-p "$DIR"})
C=$(mktemp -d build/cold-XXXXXX) # on a drive, which $T need not be
trap 'rm -rf "$T" "$C"' EXIT
"$CONFINED" 0 true 2>/dev/null || { echo "skipped: no control group for memory can be made here"; exit 77; }
RANDOM=$SEED
MIB=1048576 bad=0 done=0 best=0 floors=0 full=0

summary() {
    echo "$done combinations ($((done > N ? done - N : 0)) of them on a file of 1 GiB or more), seed $SEED: $bad failed"
    echo "largest share of a budget that was used: $best %"
    [ $full = 0 ] || sort -n "$T/shares" | awk -v n="$floors" '
        { used[NR] = $1; res[NR] = $2; if (NR == 1 || $2 < least) least = $2 }
        END { printf "of a smallest budget (%d runs, the context full in %d): %d %% at least, %d %% in the median; resident %d %% at least\n",
                     n, NR, used[1], used[int((NR + 1) / 2)], least }'
}
trap 'summary; exit 1' INT TERM

# cold LIMIT ARGS...: the program in a control group, nothing of it cached
cp -L $(ldd "$BIN" | grep -o '/[^ ]*') "$BIN" "$C/" && sync || exit 1
COLD=$PWD/$C/$(basename "$BIN")
cold() {
    local limit=$1 f
    shift
    for f in "$C"/*; do dd if="$f" iflag=nocache count=0 status=none; done
    "$CONFINED" "$limit" env LD_LIBRARY_PATH="$PWD/$C" "$COLD" "$@"
}
start=$(cold 0 --version 2>&1 >/dev/null | sed -n 's/.* peak=\([0-9]*\).*/\1/p')
[ "${start:-0}" -gt $((4 * MIB)) ] || echo "note: starts are not cold here: $((${start:-0} / 1024)) KiB charged"

below() { R=$(((RANDOM * 32768 + RANDOM) % $1)); } # 0 .. $1 - 1, in R
fail() { bad=$((bad + 1)); echo "FAILED: $*"; [ -s "$T/err" ] && tail -n 3 "$T/err" | sed 's/^/    /'; }

ARCHS=(qwen3moe olmoe mixtral dense)
TYPES=(Q8_0 Q4_0 Q4_K_M Q6_K F16)
# make_model ARCH TYPE: small, with a tokenizer of bytes; the path in M
make_model() {
    M=$T/$1-$2.gguf
    [ -f "$M" ] && return
    local a=(--arch "$1" --experts 24 --used 4)
    case $1 in olmoe) a+=(--kv-heads 16 --head-dim 32) ;; *) a+=(--kv-heads 4 --head-dim 64) ;; esac
    case $1 in mixtral) a[1]=llama ;; dense) a=(--arch llama --experts 0 --kv-heads 4 --head-dim 64) ;; esac
    "$GEN" "$M" --tiny --type "$2" --layers 4 --embd 512 --heads 16 --ff 512 --ctx 4096 --byte-vocab \
        "${a[@]}" 2>/dev/null || { echo "gen_model failed"; exit 1; }
}

# mem TENTHS: tenths of a MiB as --mem takes them, in SIZE
mem() { SIZE=$(($1 / 10)).$(($1 % 10))M; }

# smallest ARGS...: the number that a refusal names, in tenths of a MiB, in FLOOR
smallest() {
    "$BIN" "$@" --mem 1M >/dev/null 2>"$T/err"
    local rc=$?
    FLOOR=$(sed -n 's/.*--mem \([0-9]*\)\.*\([0-9]*\)M or more.*/\1 \2/p' "$T/err" | awk '{ print $1 * 10 + $2 }')
    [ $rc = 3 ] && [ -n "$FLOOR" ] || { fail "$*: --mem 1M: exit code $rc"; FLOOR=; return 1; }
    mem $((FLOOR - (FLOOR < 640 ? 1 : 10)))
    "$BIN" "$@" --mem $SIZE >/dev/null 2>"$T/err" </dev/null
    rc=$?
    [ $rc = 3 ] || { fail "$* --mem $SIZE, less than the smallest: exit code $rc"; return 1; }
}

# confined_run TENTHS ARGS...: stdout to $T/out; checks what was measured
confined_run() {
    local n=$(($1 * MIB / 10)) limit=0 rc line
    shift
    [ $((done % 2)) = 1 ] && limit=$n
    cold $limit "$@" >"$T/out" 2>"$T/err" <"$T/in"
    rc=$?
    line=$(grep '^confined ' "$T/err")
    # shellcheck disable=SC2086
    eval "$(echo ${line#confined } | sed 's/rc=/RC=/')"
    [ $rc = 0 ] || { fail "$*: exit code $rc, $line"; return 1; }
    [ "$killed" = 0 ] || { fail "$*: killed, $line"; return 1; }
    [ "$rss" -le $n ] || { fail "$*: $((rss / 1024)) KiB resident of $((n / 1024))"; return 1; }
    [ "$peak" -le $n ] || { fail "$*: $((peak / 1024)) KiB charged of $((n / 1024))"; return 1; }
    USED=$((peak * 100 / n)) RESIDENT=$((rss * 100 / n))
    [ $USED -gt $best ] && best=$USED
    return 0
}

# The budget between the smallest and what everything takes, in MEM; often the smallest itself.
choose_budget() {
    local top=$(($(stat -c %s "$M") * 10 / MIB + FLOOR))
    [ "$1" = half ] && top=$(($(stat -c %s "$M") * 5 / MIB))
    below 4
    if [ "$R" = 0 ]; then MEM=$FLOOR; else below $((top - FLOOR + 1)); MEM=$((FLOOR + R)); fi
}

logits_case() { # $1: half or all
    below 180; local n=$((R + 1)) ids=1 i
    for ((i = 1; i < n; i++)); do below 250; ids=$ids,$R; done
    # Half of the contexts are full at the end: of those the share of a smallest budget is told.
    below 3000; local c=$((R < 1500 ? n : n + R - 1500)); below 3; local t=$((R + 1)); below 60; local how=(-ub $((R + 1)))
    below 4; [ "$R" = 0 ] && [ $n -lt 60 ] && how=(--decode)
    below 3; [ "$R" = 0 ] && [ "$KVOK" = 1 ] && how+=(-ctk q8_0 -ctv q8_0)
    local a=(logits -m "$M" --ids "$ids" -c $c -t $t "${how[@]}")
    : >"$T/in"
    smallest "${a[@]}" -o "$T/x" || return
    choose_budget "$1"
    "$BIN" "${a[@]}" -o "$T/want" 2>"$T/err" || { fail "${a[*]}: without a limit"; return; }
    mem $MEM
    confined_run $MEM "${a[@]}" -o "$T/got" --mem $SIZE || return
    cmp -s "$T/want" "$T/got" || fail "${a[*]} --mem $SIZE: other logits"
    if [ $MEM = "$FLOOR" ]; then
        floors=$((floors + 1))
        [ $c = $n ] && { full=$((full + 1)); echo "$USED $RESIDENT" >>"$T/shares"; }
    fi
    return 0
}

chat_case() { # resizes between the answers; saved and loaded on the way
    below 600; local c=$((R + 300)) k to a
    below 3; a=(chat -m "$M" -c $c -n 12 --temp 0 -t $((R + 1)))
    smallest "${a[@]}" || return
    choose_budget "$1"; local first=$MEM most=$MEM
    printf "%*s\n/save $T/s\n/load $T/s\n" $(((c - 300) / 2)) hello | tee "$T/in" >"$T/plain"
    for k in 1 2 3; do
        # A resize keeps context and micro-batch, so its least may be more than the smallest budget.
        choose_budget "$1"; to=$((MEM > first ? MEM : first + 10 * k)); [ $to -gt $most ] && most=$to
        below 3; [ "$R" = 0 ] && to=$first
        mem $to; printf '/mem %s\nabc %d\n' $SIZE $k >>"$T/in"; printf 'abc %d\n' $k >>"$T/plain"
    done
    "$BIN" "${a[@]}" <"$T/plain" >"$T/want" 2>"$T/err" || { fail "${a[*]}: without a limit"; return; }
    mem $first
    confined_run $most "${a[@]}" --mem $SIZE || return
    mem $first
    cmp -s "$T/want" "$T/out" || fail "${a[*]} --mem $SIZE, then $(grep -o '/mem.*' "$T/in" | tr '\n' ' '): another text"
    grep -q 'tessera:' "$T/err" && fail "${a[*]} --mem $SIZE: a resize was refused"
}

for ((done = 0; done < N; done++)); do
    below 4; arch=${ARCHS[$R]}; below 5; make_model "$arch" "${TYPES[$R]}"; KVOK=1
    below 5; if [ "$R" = 0 ]; then chat_case all; else logits_case all; fi
done
if [ "$BIG" -gt 0 ]; then
    M=${FILE:-$T/big.gguf} KVOK=1
    [ -f "$M" ] || "$GEN" "$M" --layers 2 --byte-vocab --type Q8_0 2>/dev/null || { echo "gen_model failed"; exit 1; }
    [ "$(stat -c %s "$M")" -ge $((1 << 30)) ] || { echo "$M has less than 1 GiB"; exit 2; }
    for (( ; done < N + BIG; done++)); do
        below 8; if [ "$R" = 0 ]; then chat_case half; else logits_case half; fi
    done
fi
summary
[ $bad = 0 ]
