#!/bin/sh
# Predictors of experts on one model: learned from some texts, judged on others that it has not seen.
#
#   bench/predict.sh --model M.gguf --train A.txt --held "B.txt C.txt"
#
# Records the model's routes on all texts (the held-out ones token by token, as when text is
# generated), fits a predictor to the first, and replays the others with it, with the previous
# token, with decayed frequency and with an oracle in its place.  Prints Markdown: recall among as
# many guesses as a token uses and twice as many, the same on what LRU misses; and, for LRU without
# reading ahead, the default (lrfu) with and without, and ExpertFlow's cache (plec), the share of a
# token's experts that is there when it is asked for, and the bytes read as a share of the bytes that
# tokens use: 100 is reading every expert every time.  Nothing here is timed.
set -eu

usage()
{
    cat <<'END'
bench/predict.sh --model FILE --train TEXT --held "TEXT TEXT" [options]

  --tessera PATH     default: ./tessera of this tree
  --slots LIST       as in `tessera replay` (default 5%,10%,20%,40%)
  --passes N         over the training text (default 4)
  --special          the texts hold special tokens
  --dir DIR          keeps traces and predictor there (default: a folder that is removed)
END
}

die() { echo "predict.sh: $1" >&2; exit "${2:-1}"; }

root=$(cd "$(dirname "$0")/.." && pwd)
tessera=$root/tessera model='' train='' held='' slots='5%,10%,20%,40%' passes=4 special='' dir=''
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
    --slots) slots=$2 ;;
    --passes) passes=$2 ;;
    --dir) dir=$2 ;;
    *) usage >&2; exit 2 ;;
    esac
    shift 2
done
[ -n "$model" ] && [ -n "$train" ] && [ -n "$held" ] || { usage >&2; exit 2; }
if [ -z "$dir" ]; then
    dir=$(mktemp -d)
    trap 'rm -rf "$dir"' EXIT
fi
mkdir -p "$dir"

"$tessera" trace -m "$model" -f "$train" $special -o "$dir/train.gguf" 2>/dev/null
"$tessera" trace --train "$dir/train.gguf" -o "$dir/predictor.gguf" --passes "$passes"

# field NAME: its value in the JSON line on stdin
field() { sed -n "s/.*\"$1\": \"\{0,1\}\([^,\"}]*\).*/\1/p"; }

for text in $held; do
    t=$dir/$(basename "$text").gguf
    "$tessera" trace -m "$model" -f "$text" $special --one-by-one -o "$t" 2>/dev/null
    used=$("$tessera" info "$t" --kv | awk '$2 == "tessera.trace.n_used" { print $4 }')
    "$tessera" replay "$t" --slots "$slots" --predictor none --policy lru,lrfu,min --json >"$dir/none"
    for p in previous frequency oracle "$dir/predictor.gguf"; do
        "$tessera" replay "$t" --slots "$slots" --predictor "$p" --ahead "$used" \
            --policy lru,lrfu,plec --json >"$dir/$(basename "$p" .gguf)"
    done
    printf '\n%s, %s tokens\n\n' "$(basename "$text")" "$(sed -n 2p "$dir/none" | field tokens)"
    printf '| predictor | recall | of 2k | on misses (%s) | of 2k |\n|---|---|---|---|---|\n' "$slots"
    for p in previous frequency predictor oracle; do
        awk -v p=$p -F '"' '
            /"recall"/ {
                for (i = 1; i < NF; i++) { v = $(i + 1); gsub(/[^0-9.]/, "", v); x[$i] = v }
                a = x["recall"]; b = x["recall_2k"]
                m = m sep sprintf("%.1f", 100 * x["recall_on_misses"])
                n = n sep sprintf("%.1f", 100 * x["recall_2k_on_misses"]); sep = ", "
            }
            END {
                sub(/predictor/, "learned", p)
                printf "| %s | %.1f | %.1f | %s | %s |\n", p, 100 * a, 100 * b, m, n
            }' "$dir/$p"
    done
    printf '\n| hits / read, %% | %s |\n|---|%s\n' "$(echo "$slots" | sed 's/,/ | /g')" \
        "$(echo "$slots" | sed 's/[^,]*,\{0,1\}/---|/g')"
    for row in none:lru none:lrfu none:min previous:plec frequency:plec predictor:plec oracle:plec \
        previous:lrfu frequency:lrfu predictor:lrfu oracle:lrfu; do
        p=${row%:*} k=${row#*:}
        awk -v p=$p -v k=$k -F '"' '
            $0 ~ "\"policy\": \"" k "\"" {
                for (i = 1; i < NF; i++) { v = $(i + 1); gsub(/[^0-9.]/, "", v); x[$i] = v }
                line = line sprintf(" %.1f / %.0f |", 100 * x["hits"] / x["uses"],
                                    100 * (x["read_bytes"] + x["ahead_bytes"]) / x["use_bytes"])
            }
            END {
                sub(/predictor/, "learned", p)
                printf "| %s%s |%s\n", k, p == "none" ? "" : " + " p, line
            }' "$dir/$p"
    done
done
