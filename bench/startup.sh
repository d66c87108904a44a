#!/bin/sh
# From exec to the first token, with the model in the page cache, beside the least that it can take:
# reading the bytes that the first token needs, from that page cache, with as many threads.
#
#   bench/startup.sh --models "a.gguf b.gguf"
#
# The promise is at most 150 ms + 1.3 times that reading.  Medians; exit code 1 when one is broken.
set -eu

usage()
{
    cat <<'END'
bench/startup.sh --models "A.gguf B.gguf" [options]

  --models "A B"        model files                 (or $MODELS)
  --tessera PATH        the tessera to measure (default: ./tessera of this tree)
  --reps N              rounds (default 5)
  -t N                  threads (default: the physical cores)
  -p TEXT               the prompt (default: "x", one token)

Exit code 0; 1 when a promise is broken; 2 for bad arguments.
END
}

die() { echo "startup.sh: $1" >&2; exit "${2:-1}"; }

root=$(cd "$(dirname "$0")/.." && pwd)
tessera=$root/tessera tool=$root/build/release/bench/startup
models=${MODELS:-} reps=5 prompt=x threads=$(lscpu -p=CORE,SOCKET | grep -v '^#' | sort -u | wc -l)
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage; exit 0 ;;
    --models | --tessera | --reps | -t | -p) [ $# -ge 2 ] || die "$1 wants a value" 2 ;;
    *) die "unknown option $1 (--help lists them)" 2 ;;
    esac
    case $1 in
    --models) models=$2 ;;
    --tessera) tessera=$2 ;;
    --reps) reps=$2 ;;
    -t) threads=$2 ;;
    -p) prompt=$2 ;;
    esac
    shift 2
done
[ -n "$models" ] || die "--models is missing (--help)" 2
for f in "$tessera" "$tool"; do [ -x "$f" ] || die "cannot run $f (make tools)" 2; done
for m in $models; do [ -r "$m" ] || die "cannot read $m" 2; done

median() { sort -n | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM
broken=0
echo "| model | first token needs | reading it | promise | exec to first token | of the promise |"
echo "|---|---|---|---|---|---|"
for m in $models; do
    bytes=$("$tessera" plan -m "$m" -t "$threads" --json |
        sed -n 's/.*"token_memory_bytes":[^0-9]*\([0-9]*\).*/\1/p')
    [ -n "$bytes" ] || die "no plan for $m"
    cat "$m" >/dev/null
    i=0
    : >"$tmp/all"
    while [ "$i" -lt "$reps" ]; do
        "$tool" "$m" "$bytes" "$threads" \
            timeout 60 "$tessera" run -m "$m" -t "$threads" -p "$prompt" -n 1 --temp 0 --ignore-eos \
            >>"$tmp/all" 2>"$tmp/log" || { tail -n 3 "$tmp/log" >&2; die "failed on $m"; }
        i=$((i + 1))
    done
    reading=$(awk '{ print $1 }' "$tmp/all" | median)
    first=$(awk '{ print $2 }' "$tmp/all" | median)
    awk -v m="$(basename "$m" .gguf)" -v b="$bytes" -v r="$reading" -v f="$first" 'BEGIN {
        most = 150 + 1.3 * r
        printf "| %s | %.0f MB | %.0f ms | %.0f ms | %.0f ms | %.2f |\n", m, b / 1e6, r, most, f, f / most
        exit f > most
    }' || broken=1
done
exit $broken
