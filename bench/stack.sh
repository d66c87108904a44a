#!/bin/sh
# Perplexity against bytes: one stack at many sizes beside files of one weight type each.
#
#   bench/stack.sh --stack STACK.gguf --model F16.gguf --imatrix FILE --text FILE --llama-quantize PATH
#
# Bytes are those of all weights in memory, as `tessera plan` counts them.  The stack is cut to the largest
# size that is not above each file's, and to --points sizes between its smallest and its largest.
# Types that tessera cannot write are written by llama-quantize; all are run by tessera.
#
# Prints a table and writes a CSV.  Says BROKEN where the stack's perplexity rises with its size by more
# than 0.5 %, where it is not below a file of up to 3.5 bits per weight, or more than 0.5 % above one of
# 4.25 and more; and exits 1 then.
set -eu

die() { echo "stack.sh: $1" >&2; exit "${2:-1}"; }

root=$(cd "$(dirname "$0")/.." && pwd)
tessera=$root/tessera stack='' model='' imatrix='' text='' quantize='' out='' chunks=40 points=16 threads=''
types='IQ2_XXS IQ2_XS IQ2_S IQ3_XXS Q2_K Q3_K_M IQ4_XS Q4_K_M Q5_K_M Q6_K'
while [ $# -gt 0 ]; do
    case $1 in -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
    [ $# -ge 2 ] || die "$1 wants a value" 2
    case $1 in
    --tessera) tessera=$2 ;;
    --stack) stack=$2 ;;
    --model) model=$2 ;;
    --imatrix) imatrix=$2 ;;
    --text) text=$2 ;;
    --types) types=$2 ;;
    --chunks) chunks=$2 ;;
    --points) points=$2 ;;
    --llama-quantize) quantize=$2 ;;
    -t) threads=$2 ;;
    --out) out=$2 ;;
    *) die "unknown option $1" 2 ;;
    esac
    shift 2
done
for f in "$stack" "$model" "$imatrix" "$text"; do [ -r "$f" ] || die "cannot read '$f'" 2; done
threads=${threads:-$(lscpu -p=CORE,SOCKET | grep -v '^#' | sort -u | wc -l)}
when=$(date -u +%Y-%m-%d)
name=$(basename "$model" .gguf)
out=${out:-$root/bench/results/stack-$name-$when.csv}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM

weights() # FILE: bytes of weights in memory
{
    "$tessera" plan -m "$1" -c 512 -t "$threads" --json 2>/dev/null |
        sed -n 's/^.*"weights":[^0-9]*\([0-9]*\),*$/\1/p' | head -n 1
}

ppl() # FILE
{
    "$tessera" perplexity -m "$1" -f "$text" -c 512 -t "$threads" --chunks "$chunks" 2>/dev/null |
        sed -n 's/^Final estimate: PPL = \([0-9.naif]*\).*/\1/p'
}

n_weights=$("$tessera" info --json "$model" | sed -n 's/^.*"parameters": *\([0-9]*\),.*$/\1/p' | head -n 1)

# The stack cut so that it has at most so many bytes of weights: to $tmp/s.gguf.
cut_to() # BYTES
{
    size=$(($(stat -c %s "$stack") - $(weights "$stack") + $1))
    "$tessera" stack --cut "$size" "$stack" "$tmp/s.gguf" 2>"$tmp/log" ||
        "$tessera" stack --cut "$(sed -n 's/.*smallest is \([0-9]*\).*/\1/p' "$tmp/log")" "$stack" "$tmp/s.gguf" 2>/dev/null
}

: >"$tmp/rows"
for t in $types; do
    "$tessera" quantize --imatrix "$imatrix" -t "$threads" "$model" "$tmp/q.gguf" "$t" >/dev/null 2>&1 ||
        "$quantize" --imatrix "$imatrix" "$model" "$tmp/q.gguf" "$t" "$threads" >/dev/null 2>&1 || die "cannot write $t"
    b=$(weights "$tmp/q.gguf") p=$(ppl "$tmp/q.gguf")
    cut_to "$b"
    echo "$t $b $p $(weights "$tmp/s.gguf") $(ppl "$tmp/s.gguf")" >>"$tmp/rows"
done
# Sizes of the stack alone: from its smallest to all of it.
cut_to 0
low=$(weights "$tmp/s.gguf")
high=$(weights "$stack")
i=0
while [ $i -lt "$points" ]; do
    cut_to "$(awk -v a="$low" -v b="$high" -v i=$i -v n="$points" 'BEGIN { printf "%d", a + (b - a) * i / (n - 1) }')"
    echo "- 0 0 $(weights "$tmp/s.gguf") $(ppl "$tmp/s.gguf")" >>"$tmp/rows"
    i=$((i + 1))
done
awk -v w="$n_weights" '
    { bits = 8 * $2 / w; ok = "ok"
      if ($1 != "-" && bits <= 3.5 && !($5 < $3)) ok = "BROKEN"
      if ($1 != "-" && bits >= 4.25 && !($5 <= 1.005 * $3)) ok = "BROKEN"
      printf "%s %d %.3f %s %d %.3f %s %s\n", $1, $2, bits, $3, $4, 8 * $4 / w, $5, ok }' "$tmp/rows" >"$tmp/all"
sort -k5n "$tmp/all" | awk '{ if (NR > 1 && $7 > 1.005 * last) $8 = "BROKEN"; last = $7; print }' >"$tmp/sorted"
echo "| type | bytes | bits per weight | perplexity | stack's bytes | bits | perplexity | |"
echo "|---|---|---|---|---|---|---|---|"
awk '{ printf "| %s | %s | %s | %s | %s | %s | %s | %s |\n", $1, $2 ? $2 : "", $2 ? $3 : "", $2 ? $4 : "", $5, $6, $7,
    $8 == "ok" ? "" : $8 }' "$tmp/sorted"
if [ "$out" != - ]; then
    mkdir -p "$(dirname "$out")"
    { echo "date,model,text_chunks,type,bytes,bits,perplexity,stack_bytes,stack_bits,stack_perplexity,verdict"
      awk -v when="$when" -v m="$name" -v c="$chunks" '{ printf "%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s\n", when, m, c, $1, $2, $3,
          $4, $5, $6, $7, $8 }' "$tmp/sorted"; } >"$out"
    echo "written: $out"
fi
! grep -q 'BROKEN$' "$tmp/sorted" || die "A BOUND IS BROKEN"
echo "all bounds hold"
