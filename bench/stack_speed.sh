#!/bin/sh
# Speed of stacks: reading a prompt and generating with 2 to 6 bits per weight of the default codec and with
# the paper's, beside Q4_K, on random weights of at least 1 GiB in Q8_0.
#
#   bench/stack_speed.sh DIR [-r ROUNDS] [-t THREADS] [-p TOKENS] [-n TOKENS] [--tessera PROGRAM] [--out FILE]
#
# Files are made in DIR where they are not there yet (6 GB; yours to delete; -r 0 does no more).  In every
# round the memory is measured and every file runs once, one after the other; medians go to a table and to FILE
# (default bench/results/stack-speed-CPU-DATE.csv; - writes none).  Limit: what the memory gave, all threads
# reading, in the same rounds, over the bytes that a token needs.  For the paper's codec also sign bits times
# weights per cycle and core, the unit of its usual models.
#
# Says BROKEN where the default codec at 2.125 to 4.125 bits generates at less than 80 % of the limit, or a
# prompt takes more than 1.3 times as long as in Q4_K; and exits 1 then.
set -eu

die() { echo "stack_speed.sh: $1" >&2; exit "${2:-1}"; }

root=$(cd "$(dirname "$0")/.." && pwd)
tessera=$root/tessera gen=$root/build/release/bench rounds=5 np=512 ng=64 out='' threads=''
case ${1:-} in -h | --help) sed -n '2,16s/^# \{0,1\}//p' "$0"; exit 0 ;; '' | -*) die "which folder" 2 ;; esac
dir=$1
shift
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || die "$1 wants a value" 2
    case $1 in
    -r) rounds=$2 ;;
    -t) threads=$2 ;;
    -p) np=$2 ;;
    -n) ng=$2 ;;
    --tessera) tessera=$2 ;;
    --out) out=$2 ;;
    *) die "unknown option $1" 2 ;;
    esac
    shift 2
done
threads=${threads:-$(lscpu -p=CORE,SOCKET | grep -v '^#' | sort -u | wc -l)}
cpu=$(lscpu | sed -n 's/^Model name: *//p' | head -n 1)
when=$(date -u +%Y-%m-%d)
out=${out:-$root/bench/results/stack-speed-$(echo "$cpu" | sed 's/(R)//g; s/ Processor.*//' | tr 'A-Z ' 'a-z-')-${threads}c-$when.csv}
mkdir -p "$dir"

made() { [ -s "$dir/$1.gguf" ] || { echo "making $dir/$1.gguf" >&2; return 1; }; }
made source || "$gen/gen_model" "$dir/source.gguf" --type Q8_0 --layers 2 --byte-vocab --ctx 1024 2>/dev/null
made Q4_K || "$gen/gen_model" "$dir/Q4_K.gguf" --type Q4_K --layers 2 --byte-vocab --ctx 1024 2>/dev/null
files=Q4_K
for l in 0 1 2 3 4; do
    made "nested-$l" || "$gen/gen_stack" "$dir/source.gguf" "$dir/nested-$l.gguf" --levels $l
    files="$files nested-$l"
done
for l in 1 3; do
    made "factored-$l" || "$gen/gen_stack" "$dir/source.gguf" "$dir/factored-$l.gguf" --levels $l --rank 16
    files="$files factored-$l"
done
[ "$rounds" -gt 0 ] || exit 0
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM

bench() { "$tessera" bench -m "$dir/$1.gguf" -t "$threads" -p "$2" -n "$3" -r 1 -o json 2>/dev/null |
    sed -n 's/^ *"avg_ts": \([0-9.]*\),$/\1/p'; }

: >"$tmp/rows"
for round in $(seq "$rounds"); do
    gb=$("$tessera" doctor --fresh -t "$threads" 2>/dev/null |
        sed -n 's/^memory read .*, \([0-9.]*\) GB\/s with [0-9]*$/\1/p; s/^memory read  *\([0-9.]*\) GB\/s with 1 thread$/\1/p')
    echo "memory $gb 0" >>"$tmp/rows"
    for f in $files; do # shellcheck disable=SC2046
        echo "$f" $(bench "$f" "$np" "$ng") >>"$tmp/rows"
    done
done
# Bytes and multiply-adds of a token: "name MB GMAC".
for f in $files; do
    "$tessera" bench -m "$dir/$f.gguf" -t "$threads" -p 0 -n 8 -r 1 --roofline 2>/dev/null |
        awk -F'|' -v f="$f" '$2 ~ /^ all / { print f, $7, $9 }'
done >"$tmp/token"

mhz=$(awk '/^cpu MHz/ { print $4; exit }' /proc/cpuinfo)
awk -v cores="$threads" -v mhz="$mhz" '
    function median(k, c, i, j, t, n) {
        n = count[k]
        for (i = 1; i <= n; i++) v[i] = at[k, c, i]
        for (i = 2; i <= n; i++) { t = v[i]; for (j = i - 1; j > 0 && v[j] > t; j--) v[j + 1] = v[j]; v[j + 1] = t }
        return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2 }
    FNR == NR { mb[$1] = $2; gmac[$1] = $3; next }
    { if (!count[$1]++) name[++n] = $1; at[$1, 1, count[$1]] = $2; at[$1, 2, count[$1]] = $3 }
    END {
        memory = median("memory", 1)
        for (i = 1; i <= n; i++) { f = name[i]
            if (f == "memory") continue
            pp = median(f, 1); tg = median(f, 2); share = tg * mb[f] / 1000 / memory; ok = "ok"
            level = substr(f, length(f)) + 0
            if (f == "Q4_K") q4 = pp
            if (f ~ /^nested/ && level <= 2 && share < 0.8) ok = "BROKEN"
            if (f ~ /^nested/ && q4 > 1.3 * pp) ok = "BROKEN"
            wb = f ~ /^factored/ ? sprintf("%.2f", gmac[f] * 1000 * (level + 1) * tg / cores / mhz) : "-"
            printf "%s %.1f %.2f %.1f %.2f %.1f %.1f %.3f %s %s\n", f, pp, q4 / pp, mb[f], tg, tg * mb[f] / 1000, memory, share, wb, ok }
    }' "$tmp/token" "$tmp/rows" >"$tmp/all"
echo "$cpu, $threads threads, $rounds rounds"
echo
echo "| file | prompt, tokens/s | its time beside Q4_K's | MB a token | generating, tokens/s | GB/s | memory, GB/s | share of the limit | sign bits per cycle and core | |"
echo "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|"
sed 's/ ok$/ /; s/^/| /; s/ / | /2; s/ / | /4; s/ / | /6; s/ / | /8; s/ / | /10; s/ / | /12; s/ / | /14; s/ / | /16; s/ / | /18; s/$/ |/' "$tmp/all"
if [ "$out" != - ]; then
    { echo "date,cpu,threads,rounds,file,prompt_tps,time_over_q4k,mb_per_token,gen_tps,gb_s,memory_gb_s,share,bits_per_cycle,verdict"
      awk -v p="$when,$cpu,$threads,$rounds" '{ gsub(/ /, ","); print p "," $0 }' "$tmp/all"; } >"$out"
    echo
    echo "written: $out"
fi
! grep -q 'BROKEN$' "$tmp/all" || die "A BOUND IS BROKEN"
echo "all bounds hold"
