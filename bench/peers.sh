#!/bin/sh
# Speed beside llama.cpp and ik_llama.cpp: the same files, the same machine, one engine after the
# other in every round, so that a machine whose memory slows down and recovers treats all alike.
#
#   bench/peers.sh --llama .../llama-bench --ik .../llama-bench --models "a.gguf b.gguf"
#
# Every round starts each engine once (load, its own warm-up, one prompt test, one generation test)
# and measures the memory with `tessera doctor`; the medians over the rounds are printed as a table
# with ratios and written as CSV.  ik_llama.cpp runs twice: as it is by default (-fa 1 -fmoe 1), and
# with its weights repacked at load time as well (-rtr 1).  One peer alone is enough.
#
# --curves MODEL adds how the same engines behave on one model when something grows: tokens in the
# context (generation), rows of one forward pass (a batch of that many tokens), threads (both tests).
set -eu

usage()
{
    cat <<'END'
bench/peers.sh --models "A.gguf B.gguf" [--llama PATH] [--ik PATH] [options]

  --tessera PATH        the tessera to measure (default: ./tessera of this tree)
  --llama PATH          llama.cpp's llama-bench     (or $LLAMA_BENCH)
  --ik PATH             ik_llama.cpp's llama-bench  (or $IK_BENCH)
  --llama-commit ID     their commits, where the binary does not know its own
  --ik-commit ID
  --tessera-commit ID   default: what git says about this tree, or `tessera --version`
  --models "A B"        model files                 (or $MODELS)
  --reps N              rounds (default 5)
  -t N                  threads (default: the physical cores)
  -p N                  prompt tokens (default 512)
  -n N                  generated tokens (default 64)
  --curves MODEL        afterwards, on this model: depths, batches, threads
  --depths "N ..."      tokens in the context (default "0 4096 16384"); filling them takes its time
  --batches "N ..."     rows of a pass (default "1 2 4 8")
  --curve-threads "N ..."  default: 1 and -t
  --curve-reps N        rounds of batches and threads (default 3); depths have one round
  --wrap "CMD ..."      put before every engine, numactl for example
  --out FILE            the CSV (default: bench/results/<cpu>-<cores>c-<date>.csv; - = none)

Exit code 0; 1 when an engine fails; 2 for bad arguments.
END
}

die() { echo "peers.sh: $1" >&2; exit "${2:-1}"; }

root=$(cd "$(dirname "$0")/.." && pwd)
tessera=$root/tessera llama=${LLAMA_BENCH:-} ik=${IK_BENCH:-} models=${MODELS:-}
llama_commit='' ik_commit='' tessera_commit='' threads='' wrap='' out='' reps=5 np=512 ng=64
curves='' depths='0 4096 16384' batches='1 2 4 8' curve_threads='' curve_reps=3
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage; exit 0 ;;
    --tessera | --llama | --ik | --llama-commit | --ik-commit | --tessera-commit | --models | \
        --reps | -t | -p | -n | --wrap | --out | --curves | --depths | --batches | \
        --curve-threads | --curve-reps)
        [ $# -ge 2 ] || die "$1 wants a value" 2 ;;
    *) die "unknown option $1 (--help lists them)" 2 ;;
    esac
    case $1 in
    --tessera) tessera=$2 ;;
    --llama) llama=$2 ;;
    --ik) ik=$2 ;;
    --llama-commit) llama_commit=$2 ;;
    --ik-commit) ik_commit=$2 ;;
    --tessera-commit) tessera_commit=$2 ;;
    --models) models=$2 ;;
    --reps) reps=$2 ;;
    -t) threads=$2 ;;
    -p) np=$2 ;;
    -n) ng=$2 ;;
    --wrap) wrap=$2 ;;
    --curves) curves=$2 ;;
    --depths) depths=$2 ;;
    --batches) batches=$2 ;;
    --curve-threads) curve_threads=$2 ;;
    --curve-reps) curve_reps=$2 ;;
    --out) out=$2 ;;
    esac
    shift 2
done
[ -n "$models$curves" ] || die "--models and --curves are missing (--help)" 2
[ -n "$llama$ik" ] || die "give --llama, --ik or both (--help)" 2
for n in $reps $np $ng $curve_reps ${threads:-1} $batches $curve_threads; do
    case $n in '' | *[!0-9]* | 0) die "'$n' is not a number above 0" 2 ;; esac
done
for f in "$tessera" ${llama:+"$llama"} ${ik:+"$ik"}; do [ -x "$f" ] || die "cannot run $f" 2; done
for m in $models $curves; do [ -r "$m" ] || die "cannot read $m" 2; done

if [ -z "$tessera_commit" ] && [ "$tessera" = "$root/tessera" ]; then
    tessera_commit=$(git -C "$root" describe --always --dirty 2>/dev/null || true)
fi

# ---- the machine ----

cpu=$(lscpu | sed -n 's/^Model name: *//p' | head -n 1)
family=$(lscpu | sed -n 's/^CPU family: *//p' | head -n 1)
model_nr=$(lscpu | sed -n 's/^Model: *//p' | head -n 1)
cores=$(lscpu -p=CORE,SOCKET | grep -v '^#' | sort -u | wc -l)
ram=$(awk '/^MemTotal/ { printf "%.0f", $2 / 1048576 }' /proc/meminfo)
when=$(date -u +%Y-%m-%d)
threads=${threads:-$cores}
[ -n "$curve_threads" ] || curve_threads=$([ "$threads" = 1 ] || echo 1) curve_threads="$curve_threads $threads"
slug=$(printf '%s' "$cpu" | tr '[:upper:]' '[:lower:]' | tr -cs '[:lower:][:digit:]' '-' | sed 's/^-//; s/-$//')
[ -n "$out" ] || out=$root/bench/results/$slug-${cores}c-$when.csv
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM

# ---- running ----

# Tests in an engine's JSON, as lines "pp512 123.4"; and the commit it names, as "commit ID".
parse()
{
    awk '
    { gsub(/[",]/, "") }
    $1 == "build_commit:" && $2 != "unknown" { print "commit", $2 }
    $1 == "n_prompt:" { p = $2 }
    $1 == "n_gen:" { g = $2 }
    $1 == "avg_ts:" { print (g > 0 ? "tg" g : "pp" p), $2 }' "$1"
}

# run LABEL BINARY [option ...]: one round of one engine on $model.
run()
{
    label=$1 bin=$2
    shift 2
    # A prefix of several words is meant.
    # shellcheck disable=SC2086
    if ! $wrap "$bin" "$@" -m "$model" -p "$np" -n "$ng" -t "$threads" -r 1 -o json \
        >"$tmp/json" 2>"$tmp/log"; then
        tail -n 5 "$tmp/log" >&2
        die "$label failed on $model"
    fi
    parse "$tmp/json" >"$tmp/tests"
    sed -n 's/^commit //p' "$tmp/tests" | head -n 1 >"$tmp/commit.$label"
    for test in pp$np tg$ng; do
        v=$(awk -v t="$test" '$1 == t { print $2 }' "$tmp/tests")
        [ -n "$v" ] || die "$label printed no $test for $model"
        echo "$name $label $test $v" >>"$tmp/samples"
    done
}

# Calls FUNCTION LABEL BINARY [option ...] for every engine.
engines()
{
    "$1" tessera "$tessera" bench
    [ -z "$llama" ] || "$1" llama.cpp "$llama"
    [ -z "$ik" ] || "$1" ik "$ik" -fa 1 -fmoe 1
    [ -z "$ik" ] || "$1" ik-rtr "$ik" -fa 1 -fmoe 1 -rtr 1
}

# point LABEL BINARY [option ...]: one engine at $x of $curve.  An engine that fails there (no such
# option, no memory) leaves the cell empty.
point()
{
    label=$1 bin=$2 n_threads=$threads n_reps=1
    shift 2
    case $curve,$label,$x in
    depth,*,0) set -- "$@" -p 0 -n "$ng" ;;
    depth,ik*) set -- "$@" -p 0 -n 0 -gp "$x,$ng" ;; # it has no -d
    depth,*) set -- "$@" -p 0 -n "$ng" -d "$x" ;;
    batch,*) n_reps=20; set -- "$@" -p "$x" -n 0 ;; # one pass of x rows
    threads,*) n_threads=$x; set -- "$@" -p "$np" -n "$ng" ;;
    esac
    # shellcheck disable=SC2086
    if ! $wrap "$bin" "$@" -m "$curves" -t "$n_threads" -r $n_reps -o json \
        >"$tmp/json" 2>"$tmp/log"; then
        echo "$label failed at $curve $x: $(tail -n 1 "$tmp/log")" >&2
        return 0
    fi
    parse "$tmp/json" | awk -v m="$(basename "$curves" .gguf)" -v e="$label" -v c="$curve" -v x="$x" '
        $1 != "commit" { print m, e, (c == "batch" ? "batch" : $1 (c == "depth" ? "@d" : "@t")) x, $2 }' \
        >>"$tmp/samples"
}

memory()
{
    # shellcheck disable=SC2086
    v=$($wrap "$tessera" doctor --fresh -t "$threads" 2>/dev/null |
        sed -n 's/^memory read.*, \([0-9.]*\) GB\/s with [0-9]*$/\1/p')
    [ -n "$v" ] || # one thread: the line has one number
        v=$("$tessera" doctor --fresh -t "$threads" 2>/dev/null | sed -n 's/^memory read  *\([0-9.]*\).*/\1/p')
    echo "$name memory GB/s ${v:-0}" >>"$tmp/samples"
}

for model in $models; do
    name=$(basename "$model" .gguf)
    bytes=$(wc -c <"$model")
    echo "$name $bytes" >>"$tmp/models"
    r=1
    while [ "$r" -le "$reps" ]; do
        echo "$name: round $r of $reps" >&2
        memory
        engines run
        r=$((r + 1))
    done
done

# sweep CURVE ROUNDS X ...
sweep()
{
    curve=$1 rounds=$2
    shift 2
    for x in "$@"; do
        r=1
        while [ "$r" -le "$rounds" ]; do
            echo "$curve $x: round $r of $rounds" >&2
            engines point
            r=$((r + 1))
        done
    done
}

if [ -n "$curves" ]; then
    name=$(basename "$curves" .gguf)
    memory
    # Lists of numbers are meant.
    # shellcheck disable=SC2086
    { sweep batch "$curve_reps" $batches; sweep threads "$curve_reps" $curve_threads; sweep depth 1 $depths; }
    echo "$(basename "$curves" .gguf) $(wc -c <"$curves")" >>"$tmp/models"
fi

# ---- the report ----

commit()
{
    case $1 in
    tessera) c=${tessera_commit:-$("$tessera" --version | sed -n '1s/.*(\(.*\))$/\1/p')} ;;
    llama.cpp) c=${llama_commit:-$(cat "$tmp/commit.$1")} ;;
    *) c=${ik_commit:-$(cat "$tmp/commit.$1")} ;;
    esac
    echo "commit $1 ${c:-unknown}"
}
for l in tessera ${llama:+llama.cpp} ${ik:+ik ik-rtr}; do commit "$l"; done >"$tmp/commits"

# Medians and extremes of every (model, engine, test), in the order of their first sample.
awk '
function median(s,   v, n, i, j, t) {
    n = split(s, v, " ")
    for (i = 2; i <= n; i++)
        for (j = i; j > 1 && v[j - 1] + 0 > v[j] + 0; j--) { t = v[j]; v[j] = v[j - 1]; v[j - 1] = t }
    low = v[1]; high = v[n]
    return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
}
{ k = $1 " " $2 " " $3; if (!(k in s)) order[++m] = k; s[k] = s[k] (s[k] == "" ? "" : " ") $4 }
END {
    for (i = 1; i <= m; i++) {
        k = order[i]; v = median(s[k]); all = s[k]; gsub(" ", ";", all)
        printf "%s %.3f %.3f %.3f %s\n", k, v, low, high, all
    }
}' "$tmp/samples" >"$tmp/medians"

# The table: a line per model and test; ratios are Tessera's speed over the peer's.
awk -v np="$np" -v ng="$ng" -v cpu="$cpu" -v cores="$cores" -v threads="$threads" -v ram="$ram" \
    -v reps="$reps" -v when="$when" '
FILENAME ~ /commits$/ { who = who (who == "" ? "" : ", ") $2 " " $3; next }
FILENAME ~ /models$/ { model[++n] = $1; size[$1] = $2; next }
{ med[$1, $2, $3] = $4; lo[$1, $2, $3] = $5; hi[$1, $2, $3] = $6
  if ($2 == "tessera" && $3 !~ /^(pp|tg)[0-9]*$/) { curve[++n_curve] = $3; of[n_curve] = $1 } }
function cell(m, e, t) { return (m, e, t) in med ? sprintf("%.1f", med[m, e, t]) : "-" }
function ratio(m, e, t) {
    return (m, e, t) in med ? sprintf("%.2f", med[m, "tessera", t] / med[m, e, t]) : "-"
}
END {
    printf "%s, %d cores, %d GiB, %d threads, %s, medians of %d rounds\n%s\n\n", cpu, cores, ram,
        threads, when, reps, who
    print "| model | test | memory GB/s | tessera | llama.cpp | ik | ik -rtr 1 | of llama.cpp | of the better ik |"
    print "|---|---|---|---|---|---|---|---|---|"
    for (i = 1; i <= n; i++)
        for (k = 0; k < 2; k++) {
            m = model[i]; t = k ? "tg" ng : "pp" np
            if (!((m, "tessera", t) in med) || said[m, t]++) continue
            line(m, t, sprintf("%.0f (%.0f-%.0f)", med[m, "memory", "GB/s"],
                lo[m, "memory", "GB/s"], hi[m, "memory", "GB/s"]))
        }
    if (!n_curve) exit
    print "\nWhen something grows: batchN = one pass of N rows, @tN = N threads, @dN = behind N tokens.\n"
    print "| model | test | | tessera | llama.cpp | ik | ik -rtr 1 | of llama.cpp | of the better ik |"
    print "|---|---|---|---|---|---|---|---|---|"
    for (i = 1; i <= n_curve; i++) line(of[i], curve[i], "")
}
function line(m, t, memory,   best) {
    best = "ik"
    if ((m, "ik-rtr", t) in med && med[m, "ik-rtr", t] > med[m, "ik", t]) best = "ik-rtr"
    printf "| %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", m, t, memory,
        cell(m, "tessera", t), cell(m, "llama.cpp", t), cell(m, "ik", t),
        cell(m, "ik-rtr", t), ratio(m, "llama.cpp", t), ratio(m, best, t)
}' "$tmp/commits" "$tmp/models" "$tmp/medians"

[ "$out" = - ] && exit 0
mkdir -p "$(dirname "$out")"
awk -v cpu="$cpu (family $family model $model_nr)" -v cores="$cores" -v threads="$threads" \
    -v ram="$ram" -v when="$when" '
BEGIN {
    print "date,cpu,cores,ram_gib,threads,memory_gb_s,model,model_bytes,engine,options,commit," \
        "test,tokens_per_s,lowest,highest,samples"
    option["ik"] = "-fa 1 -fmoe 1"; option["ik-rtr"] = "-fa 1 -fmoe 1 -rtr 1"
}
FILENAME ~ /commits$/ { commit[$2] = $3; next }
FILENAME ~ /models$/ { size[$1] = $2; next }
$2 == "memory" { memory[$1] = $4; next }
{
    e = $2; sub("-rtr", "", e)
    printf "%s,\"%s\",%d,%d,%d,%.1f,%s,%s,%s,%s,%s,%s,%.2f,%.2f,%.2f,%s\n", when, cpu, cores, ram,
        threads, memory[$1], $1, size[$1], e, option[$2], commit[$2], $3, $4, $5, $6, $7
}' "$tmp/commits" "$tmp/models" "$tmp/medians" >"$out.new"
mv "$out.new" "$out"
echo
echo "written: $out"
