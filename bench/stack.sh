#!/bin/sh
# Perplexity against bytes: one stack at many sizes beside files of one weight type each.
#
#   bench/stack.sh --stack STACK.gguf --model F16.gguf --imatrix FILE --text FILE --llama-quantize PATH
#       [--paper STACK.gguf] [--chunks N] [--types "T T.."] [--step PERCENT] [--files DIR] [--tessera PROGRAM]
#       [-t N] [--out NAME]
#
# Bytes are those of all weights in memory, as `tessera plan` counts them.  The stack is cut to the largest
# size that is not above each file's, and to sizes --step percent (2.5) apart from its smallest to its
# largest.  --paper: a stack of the factored codec, at the same sizes as far as it has them.
# Types that tessera cannot write are written by llama-quantize; all are run by tessera; --files keeps
# them in a folder, where another run finds them.  Beside every perplexity stands the mean
# Kullback-Leibler divergence from the model, which has less noise.
#
# Prints a table; writes NAME.csv and a picture, NAME.svg (default bench/results/stack-MODEL-DATE; - writes
# none).  Says BROKEN where a size is more than 0.5 % worse than a smaller one, where sizes at most 3 %
# apart differ by more than 5 %, where the stack is not below a file of up to 3.5 bits per weight, or more
# than 0.5 % above one of 4.25 and more; and exits 1 then.
set -eu

die() { echo "stack.sh: $1" >&2; exit "${2:-1}"; }

root=$(cd "$(dirname "$0")/.." && pwd)
tessera=$root/tessera stack='' paper='' model='' imatrix='' keep='' text='' quantize='' out='' chunks=40 step=2.5 threads=''
types='IQ2_XXS IQ2_XS IQ2_S IQ3_XXS Q2_K Q3_K_M IQ4_XS Q4_K_M Q5_K_M Q6_K'
while [ $# -gt 0 ]; do
    case $1 in -h | --help) sed -n '2,20s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
    [ $# -ge 2 ] || die "$1 wants a value" 2
    case $1 in
    --tessera) tessera=$2 ;;
    --stack) stack=$2 ;;
    --paper) paper=$2 ;;
    --model) model=$2 ;;
    --imatrix) imatrix=$2 ;;
    --text) text=$2 ;;
    --types) types=$2 ;;
    --chunks) chunks=$2 ;;
    --step) step=$2 ;;
    --files) keep=$2 ;;
    --llama-quantize) quantize=$2 ;;
    -t) threads=$2 ;;
    --out) out=$2 ;;
    *) die "unknown option $1" 2 ;;
    esac
    shift 2
done
for f in "$stack" "$model" "$imatrix" "$text" ${paper:+"$paper"}; do [ -r "$f" ] || die "cannot read '$f'" 2; done
threads=${threads:-$(lscpu -p=CORE,SOCKET | grep -v '^#' | sort -u | wc -l)}
when=$(date -u +%Y-%m-%d)
name=$(basename "$model" .gguf)
out=${out:-$root/bench/results/stack-$name-$when}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM

weights() # FILE: bytes of weights in memory
{
    "$tessera" plan -m "$1" -c 512 -t "$threads" --json 2>/dev/null |
        sed -n 's/^.*"weights":[^0-9]*\([0-9]*\),*$/\1/p' | head -n 1
}

score() # FILE: bytes, perplexity, divergence
{
    "$tessera" perplexity -m "$1" -f "$text" -c 512 -t "$threads" --chunks "$chunks" --kl-divergence \
        --kl-divergence-base "$tmp/base" >"$tmp/score" 2>/dev/null || die "cannot run $1"
    echo "$(weights "$1") $(sed -n 's/^Final estimate: PPL = \([0-9.naif]*\).*/\1/p' "$tmp/score")" \
        "$(sed -n 's/^Mean *KLD: *\([-0-9.naif]*\).*/\1/p' "$tmp/score")"
}

# FILE cut so that it has at most so many bytes of weights: to $tmp/s.gguf; not below its smallest.
cut_to() # FILE BYTES
{
    size=$(($(stat -c %s "$1") - $(weights "$1") + $2))
    [ "$size" -gt 0 ] || size=1
    "$tessera" stack --cut "$size" "$1" "$tmp/s.gguf" 2>"$tmp/log" ||
        "$tessera" stack --cut "$(sed -n 's/.*smallest is \([0-9]*\).*/\1/p' "$tmp/log")" "$1" "$tmp/s.gguf" 2>/dev/null
}

# FILE at sizes a step apart, from its smallest to its largest or to BYTES: rows "KIND bytes ppl kl".
sweep() # KIND FILE BYTES
{
    cut_to "$2" 0
    at=$(weights "$tmp/s.gguf") end=$(weights "$2") last=0
    [ "$end" -le "$3" ] || end=$3
    while :; do
        cut_to "$2" "$at"
        row=$(score "$tmp/s.gguf")
        [ "${row%% *}" = "$last" ] || echo "$1 $row"
        last=${row%% *}
        [ "$at" -lt "$end" ] || break
        at=$(awk -v a="$at" -v e="$end" -v s="$step" 'BEGIN { a *= 1 + s / 100; printf "%d", a < e ? a : e }')
    done
}

n_weights=$("$tessera" info --json "$model" | sed -n 's/^.*"parameters": *\([0-9]*\),.*$/\1/p' | head -n 1)
"$tessera" perplexity -m "$model" -f "$text" -c 512 -t "$threads" --chunks "$chunks" --save-all-logits "$tmp/base" \
    >"$tmp/score" 2>/dev/null || die "cannot run $model"
full=$(sed -n 's/^Final estimate: PPL = \([0-9.naif]*\).*/\1/p' "$tmp/score")

# Rows: what, bytes, perplexity, divergence; then, behind a file's, the stack's at no more bytes.
for t in $types; do
    q=${keep:-$tmp}/$name-$t.gguf
    [ -s "$q" ] || "$tessera" quantize --imatrix "$imatrix" -t "$threads" "$model" "$q" "$t" >/dev/null 2>&1 ||
        "$quantize" --imatrix "$imatrix" "$model" "$q" "$t" "$threads" >/dev/null 2>&1 || die "cannot write $t"
    row=$(score "$q")
    cut_to "$stack" "${row%% *}"
    echo "$t $row $(score "$tmp/s.gguf")"
done >"$tmp/files"
sweep stack "$stack" "$(weights "$stack")" >"$tmp/stack"
[ -z "$paper" ] || sweep paper "$paper" "$(weights "$stack")" >"$tmp/paper"
[ -n "$paper" ] || : >"$tmp/paper"

sort -k2n "$tmp/files" | awk -v w="$n_weights" '
    { bits = 8 * $2 / w; ok = ""
      if (bits <= 3.5 && !($6 < $3)) ok = "BROKEN"
      if (bits >= 4.25 && !($6 <= 1.005 * $3)) ok = "BROKEN"
      printf "%s %d %.3f %s %s %d %.3f %s %s %s\n", $1, $2, bits, $3, $4, $5, 8 * $5 / w, $6, $7, ok }' >"$tmp/files.all"
sort -k2n "$tmp/stack" | awk -v w="$n_weights" '
    { ok = ""
      if (NR > 1 && $3 > 1.005 * least) ok = "BROKEN"
      if (NR > 1 && $2 <= 1.03 * bytes && $3 < last / 1.05) ok = "BROKEN"
      if (NR > 1 && $3 / least - 1 > rise) rise = $3 / least - 1
      if (NR == 1 || $3 < least) least = $3
      printf "%s %d %.3f %s %s %s\n", $1, $2, 8 * $2 / w, $3, $4, ok
      last = $3; bytes = $2 }
    END { printf "# at most worse than a smaller size: %.2f %%\n", 100 * rise }' >"$tmp/stack.all"
sort -k2n "$tmp/paper" | awk -v w="$n_weights" '{ printf "%s %d %.3f %s %s\n", $1, $2, 8 * $2 / w, $3, $4 }' >"$tmp/paper.all"

echo "$name, $chunks chunks of $(basename "$text"): the model itself has a perplexity of $full"
echo
echo "| type | bytes | bits per weight | perplexity | divergence | stack's bytes | bits | perplexity | divergence | |"
echo "|---|---|---|---|---|---|---|---|---|---|"
awk '{ printf "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", $1, $2, $3, $4, $5, $6, $7, $8, $9, $10 }' "$tmp/files.all"
for k in stack paper; do
    [ -s "$tmp/$k" ] || continue
    echo
    echo "| $k | bytes | bits per weight | perplexity | divergence | |"
    echo "|---|---|---|---|---|---|"
    awk '!/^#/ { printf "| | %s | %s | %s | %s | %s |\n", $2, $3, $4, $5, $6 } /^#/ { sub(/^# /, ""); print "\n" $0 }' "$tmp/$k.all"
done

# Perplexity against bits per weight, both in proportion to their logarithms.
picture()
{
    cat "$tmp/files.all" "$tmp/stack.all" "$tmp/paper.all" | awk -v full="$full" -v title="$name, $chunks chunks of $(basename "$text")" '
        function x(b) { return 70 + 680 * log(b / x0) / log(x1 / x0) }
        function y(p) { return 430 - 390 * log(p / y0) / log(y1 / y0) }
        /^#/ { next }
        { n++; kind[n] = $1; bits[n] = $3; ppl[n] = $4
          if (!x0 || $3 < x0) x0 = $3
          if ($3 > x1) x1 = $3
          if ($4 > y1 && ($1 != "paper" || $4 < 2 * full)) y1 = $4 }
        END {
            x0 *= 0.97; x1 *= 1.03; y0 = full * 0.99; y1 *= 1.02
            print "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 800 490\" font-family=\"sans-serif\" font-size=\"12\">"
            print "<rect width=\"800\" height=\"490\" fill=\"#fff\"/>"
            printf "<text x=\"70\" y=\"24\" font-size=\"15\">Perplexity against bits per weight: %s</text>\n", title
            for (b = 2; b < 9; b += 0.5) if (b > x0 && b < x1)
                printf "<path d=\"M%.1f 40V430\" stroke=\"#eee\"/><text x=\"%.1f\" y=\"448\" text-anchor=\"middle\">%g</text>\n", x(b), x(b), b
            for (i = 0; i <= 6; i++) { p = y0 * exp(log(y1 / y0) * i / 6)
                printf "<path d=\"M70 %.1fH750\" stroke=\"#eee\"/><text x=\"64\" y=\"%.1f\" text-anchor=\"end\">%.2f</text>\n", y(p), y(p) + 4, p }
            printf "<path d=\"M70 %.1fH750\" stroke=\"#999\" stroke-dasharray=\"4 4\"/>\n", y(full)
            colour["stack"] = "#1b6ac9"; colour["paper"] = "#c0392b"
            for (k in colour) { d = ""
                for (i = 1; i <= n; i++) if (kind[i] == k && ppl[i] <= y1)
                    d = d sprintf("%s%.1f %.1f", d == "" ? "M" : "L", x(bits[i]), y(ppl[i]))
                if (d != "") printf "<path d=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"/>\n", d, colour[k] }
            for (i = 1; i <= n; i++) if (!(kind[i] in colour))
                printf "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"#333\"/><text x=\"%.1f\" y=\"%.1f\" font-size=\"11\">%s</text>\n",
                    x(bits[i]), y(ppl[i]), x(bits[i]) + 6, y(ppl[i]) - 4, kind[i]
            print "<text x=\"410\" y=\"474\" text-anchor=\"middle\">blue: one stack; red: the paper&#8217;s codec; points: files of one recipe; dashes: the model itself</text>"
            print "</svg>" }'
}
if [ "$out" != - ]; then
    mkdir -p "$(dirname "$out")"
    { echo "date,model,chunks,what,bytes,bits,perplexity,divergence,stack_bytes,stack_bits,stack_perplexity,stack_divergence,verdict"
      cat "$tmp/files.all" | awk -v p="$when,$name,$chunks" '{ printf "%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s\n", p, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10 }'
      cat "$tmp/stack.all" "$tmp/paper.all" | awk -v p="$when,$name,$chunks" '!/^#/ { printf "%s,%s,%s,%s,%s,%s,,,,,%s\n", p, $1, $2, $3, $4, $5, $6 }'
    } >"$out.csv"
    picture >"$out.svg"
    echo
    echo "written: $out.csv, $out.svg"
fi
! grep -q 'BROKEN$' "$tmp/files.all" "$tmp/stack.all" || die "A BOUND IS BROKEN"
echo "all bounds hold"
