#!/bin/bash
# ExpertFlow as we read it (predictive caching "plec" with a routing-path predictor learned from token
# ids), beside LRU and the engine's default, on one model at equal slots; everything in the engine, with
# real reads.
#
#   bench/expertflow.sh --model M.gguf --train A.txt --held B.txt --mem "30M 40M"
#
# Records the model's routes on A and fits a predictor; records B token by token (what an oracle
# knows).  Then, for every budget, B is decoded under each pair of policy and predictor, ROUNDS times in
# turn, always reading ahead what is named.  Prints Markdown and, with --csv, every run: slots, the share
# of experts that were in memory when asked for, how many the predictor named (of all; of those not in
# memory otherwise), MiB per token read in all, on guesses, and for nothing, and milliseconds per token
# that the engine waited: medians.
set -eu

usage()
{
    cat <<'END'
bench/expertflow.sh --model FILE --train TEXT --held TEXT --mem "SIZE SIZE" [options]

  --tessera PATH     default: ./tessera of this tree
  --rounds N         default 3
  --passes N         over the training text (default 4)
  -c N               context, so that budgets are comparable (default 512)
  --special          the texts hold special tokens
  --csv FILE         every run, appended to
  --dir DIR          keeps traces and predictor there, and takes those that it finds
END
}

die() { echo "expertflow.sh: $1" >&2; exit "${2:-1}"; }

root=$(cd "$(dirname "$0")/.." && pwd)
tessera=$root/tessera model='' train='' held='' mem='' passes=4 rounds=3 ctx=512 special='' csv='' dir=''
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage; exit 0 ;;
    --special) special=--special; shift; continue ;;
    -*) [ $# -ge 2 ] || die "$1 wants a value" 2 ;;
    esac
    case $1 in
    --tessera) tessera=$2 ;;
    --model) model=$2 ;;
    --train) train=$2 ;;
    --held) held=$2 ;;
    --mem) mem=$2 ;;
    --rounds) rounds=$2 ;;
    --passes) passes=$2 ;;
    -c) ctx=$2 ;;
    --csv) csv=$2 ;;
    --dir) dir=$2 ;;
    *) usage >&2; exit 2 ;;
    esac
    shift 2
done
[ -n "$model" ] && [ -n "$train" ] && [ -n "$held" ] && [ -n "$mem" ] || { usage >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ -n "$dir" ] || dir=$work
mkdir -p "$dir"

[ -f "$dir/train.gguf" ] || "$tessera" trace -m "$model" -f "$train" $special -o "$dir/train.gguf" 2>/dev/null
[ -f "$dir/predictor.gguf" ] ||
    "$tessera" trace --train "$dir/train.gguf" -o "$dir/predictor.gguf" --passes "$passes" 2>/dev/null
[ -f "$dir/oracle.gguf" ] ||
    "$tessera" trace -m "$model" -f "$held" $special --one-by-one -c "$ctx" -o "$dir/oracle.gguf" 2>/dev/null

# number WORDS...: the number in front of these words on stderr, a size in bytes
number()
{
    grep -o "[0-9.]* [KMG]*i*B* *$1" "$work/err" | head -1 | awk '
        { x = $1; if ($2 ~ /^K/) x *= 1024; if ($2 ~ /^M/) x *= 1048576; if ($2 ~ /^G/) x *= 1073741824
          printf "%.0f", $2 ~ /^[KMG]*i*B$/ ? x : $1 * 10 }'
}

arms='lru:none lrfu:none lrfu:gate plec:previous plec:learned plec:oracle lrfu:learned lrfu:oracle'
for m in $mem; do
    slots=$("$tessera" plan -m "$model" -c "$ctx" --mem "$m" 2>/dev/null |
        sed -n 's/.* \([0-9]*\) slots for .*/\1/p' | head -1)
    for round in $(seq "$rounds"); do
        for arm in $arms; do
            policy=${arm%:*} name=${arm#*:}
            case $name in
            learned) which=$dir/predictor.gguf,always ;;
            oracle) which=$dir/oracle.gguf,always ;;
            none) which=none ;;
            *) which=$name,always ;;
            esac
            "$tessera" trace -m "$model" -f "$held" $special --one-by-one -c "$ctx" --mem "$m" \
                --policy "$policy" --predictor "$which" -o "$work/t.gguf" 2>"$work/err" ||
                die "$(tail -1 "$work/err")"
            "$tessera" replay "$work/t.gguf" --slots 100% --predictor none --policy lru --json >"$work/json"
            awk -v line="$m,$slots,$policy,$name,$round" -v read="$(number 'read in all')" \
                -v guess="$(number 'read, ')" -v waste="$(number 'for nothing')" \
                -v named="$(number '% of the experts, ')" -v missed="$(number '% of those not')" \
                -F '[:,}]' '
                { for (i = 1; i < NF; i++) if ($i ~ /recorded_/) { gsub(/[" ]/, "", $i); x[$i] = $(i + 1) } }
                END {
                    n = x["recorded_tokens"]
                    printf "%s,%d,%.2f,%s,%s,%.4f,%.4f,%.4f,%.3f\n", line, n,
                        100 * x["recorded_hits"] / x["recorded_uses"], named / 10, missed / 10,
                        read / n / 1048576, guess / n / 1048576, waste / n / 1048576,
                        1000 * x["recorded_wait_seconds"] / n
                }' "$work/json" >>"$work/all.csv"
        done
    done
done

head='mem,slots,policy,predictor,round,tokens,hits_pct,named_pct,named_of_missing_pct,read_mib,guess_mib,wasted_mib,wait_ms'
if [ -n "$csv" ]; then
    [ -f "$csv" ] || echo "$head" >"$csv"
    cat "$work/all.csv" >>"$csv"
fi
printf '| slots | policy + predictor | in memory, %% | named, %% | of the absent, %% | read, MiB/token | on guesses | for nothing | waited, ms/token |\n'
printf '|---|---|---|---|---|---|---|---|---|\n'
for m in $mem; do
    for arm in $arms; do
        grep "^$m,[0-9]*,${arm%:*},${arm#*:}," "$work/all.csv" | sort -t, -k13 -n |
            awk -F, -v n="$rounds" -v arm="${arm%:*} + ${arm#*:}" '
                NR == int((n + 1) / 2) {
                    none = $4 == "none"
                    printf "| %s | %s | %.1f | %s | %s | %.2f | %s | %s | %.2f |\n", $2, none ? $3 : arm, $7,
                        none ? "-" : sprintf("%.1f", $8), none ? "-" : sprintf("%.1f", $9), $10,
                        none ? "-" : sprintf("%.2f", $11), none ? "-" : sprintf("%.2f", $12), $13
                }'
    done
done
