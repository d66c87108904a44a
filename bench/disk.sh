#!/bin/bash
# A model larger than its memory: Tessera, llama.cpp with a mapped file, and BigMoeOnEdge, one after
# another in a memory control group of the same size, the page cache inside of it, beside how fast the
# drive is before and after.
#
#   bench/disk.sh --models "A.gguf B.gguf" --mem 2G --llama LLAMA_CPP/llama-bench [--bmoe bmoe-cli]
#
# Before every run what the system has cached of the file is dropped, so that all of it is charged to the
# group that reads it.  Prints CSV: model, engine, prompt tokens per second, generated ones, the largest
# charge of the group, the exit code (137: killed).
set -u

usage()
{
    cat <<'END'
bench/disk.sh --models "FILE FILE" [options]

  --mem SIZE         of the group, and Tessera's budget: 2G (default), 1500M
  --llama PATH       llama-bench
  --bmoe PATH        bmoe-cli of BigMoeOnEdge; the prompt is [0][1]..., as trace-carrying models read it
  --tessera PATH     default: ./tessera of this tree
  -p N, -n N         prompt and generated tokens (default 256 and 32; a quarter of them for the others)
  --rounds N         default 2
END
}

root=$(cd "$(dirname "$0")/.." && pwd)
tessera=$root/tessera confined=$root/build/release/bench/confined models='' mem=2G llama='' bmoe='' p=256 n=32
rounds=2
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage; exit 0 ;;
    --models) models=$2 ;;
    --mem) mem=$2 ;;
    --llama) llama=$2 ;;
    --bmoe) bmoe=$2 ;;
    --tessera) tessera=$2 ;;
    -p) p=$2 ;;
    -n) n=$2 ;;
    --rounds) rounds=$2 ;;
    *) usage >&2; exit 2 ;;
    esac
    shift 2 || exit 2
done
[ -n "$models" ] || { usage >&2; exit 2; }
case $mem in *G) bytes=$((${mem%G} << 30)) ;; *M) bytes=$((${mem%M} << 20)) ;; *) usage >&2; exit 2 ;; esac
"$confined" 0 true 2>/dev/null || { echo "skipped: no control group for memory can be made here"; exit 77; }
out=$(mktemp)
trap 'rm -f "$out"' EXIT

drive() { "$tessera" doctor --fresh -m "$1" 2>/dev/null | sed -n 's/^disk read  */# /p'; }

# run MODEL ENGINE COMMAND...: in the group; speeds are in the last columns of a Markdown table
run()
{
    local model=$1 engine=$2
    shift 2
    sync "$model" && dd if="$model" iflag=nocache count=0 2>/dev/null
    timeout 600 "$confined" "$bytes" "$@" >"$out" 2>&1
    awk -F'|' -v model="$(basename "$model")" -v engine="$engine" '
        function speed(s) { sub(/±.*/, "", s); gsub(/ /, "", s); return s }
        $0 ~ /\| *pp[0-9]+ *\|/ { pp = speed($(NF - 1)) }
        $0 ~ /\| *tg[0-9]+ *\|/ { tg = speed($(NF - 1)) }
        /^confined / { split($0, w, /[ =]/); for (i in w) if (w[i] == "peak") peak = w[i + 1]
                       for (i in w) if (w[i] == "rc") rc = w[i + 1] }
        END { printf "%s,%s,%s,%s,%s,%s\n", model, engine, pp, tg, peak, rc }' "$out"
}

echo "model,engine,prompt_tokens_per_s,generated_tokens_per_s,peak_bytes,exit_code"
for m in $models; do
    text=$(for i in $(seq 0 $((p / 4))); do printf '[%d]' "$i"; done)
    drive "$m"
    for round in $(seq "$rounds"); do
        run "$m" tessera "$tessera" bench -m "$m" -p "$p" -n "$n" -r 2 --mem "$mem"
        [ -z "$llama" ] || run "$m" llama.cpp "$llama" -m "$m" -p "$p" -n $((n / 4)) -r 1 -o md # it is slow
        [ -z "$bmoe" ] || run "$m" BigMoeOnEdge "$bmoe" -m "$m" --moe-stream --cache-mb 1500 -c 2048 \
            --ubatch 256 -p "$text" -n $((n / 4))
    done
    drive "$m"
done
