#!/bin/sh
# Quantising beside llama.cpp: the same recipe from the same file by both programs.
#
#   bench/encode.sh --model F16.gguf --imatrix FILE --llama-quantize PATH [--text FILE]
#
# For each recipe, without and with the importance matrix: the types that both give (they must be
# the same), the sum of (w - w')^2 over all quantised matrices, weighted where there is importance,
# tessera's over llama-quantize's; the worst such ratio of a single tensor; seconds of CPU time of
# both; and, with a text, how far both files' predictions are from the source's (mean KL divergence,
# as tessera computes it, and its uncertainty).  No tensor's error may be above 1.02 times the
# other's, and no file may have other types.
#
# Prints a table, writes a CSV, exits 1 when a bound is broken.
set -eu

usage()
{
    cat <<'END'
bench/encode.sh --model F16.gguf --llama-quantize PATH [options]

  --tessera PATH         the tessera to check (default: ./tessera of this tree)
  --encode-error PATH    default: build/release/bench/encode_error (make tools)
  --model FILE           a model in F16, BF16 or F32
  --imatrix FILE         an importance matrix; without it only plain encoding is checked
  --recipes "R R"        default: all that tessera writes by searching
  --args "A A"           more arguments for both (--pure)
  --text FILE            a text for the divergence (some 60 KB are enough)
  --ctx N                tokens per chunk (default 512)
  --llama-quantize PATH  llama.cpp's llama-quantize
  --llama-commit ID      for the CSV
  -t N                   threads (default: the physical cores)
  --out FILE             the CSV (default: bench/results/encode-<model>-<date>.csv; - = none)
END
}

die() { echo "encode.sh: $1" >&2; exit "${2:-1}"; }

BOUND=1.02
root=$(cd "$(dirname "$0")/.." && pwd)
tessera=$root/tessera error=$root/build/release/bench/encode_error model='' imatrix='' args=''
text='' ctx=512 quantize='' llama_commit='' threads='' out=''
recipes='Q6_K Q5_K_M Q5_K_S Q5_1 Q5_0 Q4_K_M Q4_K_S Q4_1 Q4_0 IQ4_NL IQ4_XS MXFP4_MOE Q3_K_L Q3_K_M
    Q3_K_S Q2_K Q2_K_S'
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage; exit 0 ;;
    -*) [ $# -ge 2 ] || die "$1 wants a value" 2 ;;
    esac
    case $1 in
    --tessera) tessera=$2 ;;
    --encode-error) error=$2 ;;
    --model) model=$2 ;;
    --imatrix) imatrix=$2 ;;
    --recipes) recipes=$2 ;;
    --args) args=$2 ;;
    --text) text=$2 ;;
    --ctx) ctx=$2 ;;
    --llama-quantize) quantize=$2 ;;
    --llama-commit) llama_commit=$2 ;;
    -t) threads=$2 ;;
    --out) out=$2 ;;
    *) die "unknown option $1 (--help lists them)" 2 ;;
    esac
    shift 2
done
for f in "$model" $imatrix $text; do [ -r "$f" ] || die "cannot read '$f'" 2; done
for f in "$tessera" "$error" "$quantize"; do [ -x "$f" ] || die "cannot run '$f'" 2; done
cpu=$(lscpu | sed -n 's/^Model name: *//p' | head -n 1)
cores=$(lscpu -p=CORE,SOCKET | grep -v '^#' | sort -u | wc -l)
threads=${threads:-$cores}
when=$(date -u +%Y-%m-%d)
commit=$("$tessera" --version | sed -n '1s/.*(\(.*\))$/\1/p')
name=$(basename "$model" .gguf)
out=${out:-$root/bench/results/encode-$name-$when.csv}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM
: >"$tmp/rows"

# Seconds of CPU time that a command takes; its output goes to $tmp/log.
cpu_seconds() # COMMAND...
{
    # shellcheck disable=SC2016
    sh -c '"$@" >"$0" 2>&1 || exit 1; times' "$tmp/log" "$@" >"$tmp/time" ||
        { tail -n 3 "$tmp/log" >&2; die "failed: $*"; }
    # The second line is what children took: 0m1.23s 0m0.04s.
    awk 'NR == 2 { gsub(/[ms]/, " "); print $1 * 60 + $2 + $3 * 60 + $4 }' "$tmp/time"
}

# "mean+-uncertainty" of the divergence from the source.
divergence_of() # FILE
{
    [ -n "$text" ] || { echo -; return; }
    "$tessera" perplexity -m "$1" -c "$ctx" -t "$threads" --kl-divergence \
        --kl-divergence-base "$tmp/base" 2>"$tmp/log" |
        sed -n 's/^Mean *KLD: *\([0-9.]*\) ± *\([0-9.]*\).*/\1+-\2/p'
}

echo "| recipe | importance | types | error, of llama-quantize's | worst tensor | CPU s | llama.cpp's | divergence | llama.cpp's |"
echo "|---|---|---|---|---|---|---|---|---|"
[ -z "$text" ] || "$tessera" perplexity -m "$model" -f "$text" -c "$ctx" -t "$threads" \
    --kl-divergence-base "$tmp/base" >"$tmp/log" 2>&1 || { tail -n 3 "$tmp/log" >&2; die "no base"; }
for r in $recipes; do
    for im in no ${imatrix:+yes}; do
        with=$args
        [ $im = no ] || with="$with --imatrix $imatrix"
        [ $im = yes ] || [ "$r" != Q2_K_S ] || continue # llama-quantize refuses
        # shellcheck disable=SC2086
        a=$(cpu_seconds "$tessera" quantize $with -t "$threads" "$model" "$tmp/a.gguf" "$r")
        # shellcheck disable=SC2086
        b=$(cpu_seconds "$quantize" $with "$model" "$tmp/b.gguf" "$r" "$threads")
        w=''
        [ $im = no ] || w=$imatrix
        # shellcheck disable=SC2086
        "$error" "$model" "$tmp/a.gguf" "$tmp/b.gguf" $w >"$tmp/errors" 2>"$tmp/differ"
        ok=ok
        [ ! -s "$tmp/differ" ] || ok=BROKEN
        awk -v r="$r" -v im=$im -v ok=$ok -v a="$a" -v b="$b" -v bound=$BOUND \
            -v pa="$(divergence_of "$tmp/a.gguf")" -v pb="$(divergence_of "$tmp/b.gguf")" '
        { x += $3; y += $4; if ($6 > worst) worst = $6; types = types (types ? "+" : "") $1 }
        END {
            if (!(worst <= bound)) ok = "BROKEN"
            printf "%s %s %s %.4f %.4f %s %s %s %s %s\n", r, im, types, x / y, worst, a, b, pa, pb, ok
        }' "$tmp/errors" >"$tmp/row"
        cat "$tmp/row" >>"$tmp/rows"
        awk '{ printf "| %s | %s | %s | %s | %s | %s | %s | %s | %s |%s\n", $1, $2, $3, $4, $5, $6, $7, $8, $9,
            $10 == "ok" ? "" : " BROKEN" }' "$tmp/row"
    done
done
if [ "$out" != - ]; then
    mkdir -p "$(dirname "$out")"
    awk -v cpu="$cpu" -v cores="$cores" -v when="$when" -v model="$name" -v tc="$commit" \
        -v lc="$llama_commit" -v t="$threads" -v args="$args" '
    BEGIN {
        print "date,cpu,cores,threads,model,tessera,llama_cpp,arguments,recipe,importance,types,error_ratio,worst_tensor," \
            "tessera_cpu_s,llama_cpu_s,tessera_divergence,llama_divergence,verdict"
    }
    { printf "%s,\"%s\",%d,%d,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s\n", when, cpu, cores, t, model, tc, lc, args,
          $1, $2, $3, $4, $5, $6, $7, $8, $9, $10 }' "$tmp/rows" >"$out.new"
    mv "$out.new" "$out"
    echo "written: $out"
fi
! grep -q 'BROKEN$' "$tmp/rows" || die "A BOUND IS BROKEN"
echo "all bounds hold"
