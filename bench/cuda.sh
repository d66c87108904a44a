#!/usr/bin/env bash
# Everything that only a machine with a GPU can tell, in one run of under ten minutes, as a CSV.
#
#   bench/cuda.sh [--out FILE] [--models DIR] [--peer LLAMA-BENCH] [--bundle DIR] [--seconds N]
#   bench/cuda.sh --make-bundle DIR
#
# In this order, most important first; what no time is left for is a line "skipped":
#   check      every kernel against the CPU's, bit by bit
#   kernels    their speed, beside the card's own copy
#   decode     all, 75, 50 and 25 % of the experts on the card: ms per token, beside the two-sided bound of
#              bytes and measured rates, and beside llama.cpp's best -ncmoe in the same memory (--peer)
#   long       prompts, and tokens behind a context, everything on the card; beside llama.cpp (--peer)
#   budget     --vram 2G while it decodes: what nvidia-smi sees beyond what was in use before
#   models     architectures (DIR/*moe*.gguf; --models): logits with the card, bit by bit
#   sanitize   compute-sanitizer's four tools over some of the kernels
#
# It builds for the card's architecture when it can.  A machine without our libraries and compilers gets
# a bundle, made elsewhere by --make-bundle (after `make && make cuda tools`): program, plugin, checker,
# model writer and the shared libraries they need, in one folder.
set -u
cd "$(dirname "$0")/.." || exit 1
out=bench/results/cuda.csv models=../shared/reference/architectures peer='' bundle='' make_bundle='' limit=540
usage() { sed -n '2,21s/^# \{0,1\}//p' "$0"; exit "$1"; }
while [ $# -gt 0 ]; do
    case $1 in -h | --help) usage 0 ;; --out | --models | --peer | --bundle | --make-bundle | --seconds) ;; *) usage 2 ;; esac
    [ $# -ge 2 ] || usage 2
    case $1 in
    --out) out=$2 ;; --models) models=$2 ;; --peer) peer=$2 ;; --bundle) bundle=$2 ;;
    --make-bundle) make_bundle=$2 ;; --seconds) limit=$2 ;;
    esac
    shift 2
done

if [ -n "$make_bundle" ]; then
    mkdir -p "$make_bundle/lib" || exit 1
    cp tessera tessera_cuda.so build/cuda/check_cuda build/release/bench/gen_model "$make_bundle/" || exit 1
    for p in tessera check_cuda gen_model; do
        ldd "$make_bundle/$p" | awk '$3 ~ /^\// {print $3}'
    done | sort -u | grep -vE '/(libc|libm|libdl|librt|libpthread|ld-linux[^/]*)\.so' |
        while read -r so; do cp -L "$so" "$make_bundle/lib/"; done
    du -sh "$make_bundle"
    exit 0
fi

start=$(date +%s)
left() { echo $((limit - $(date +%s) + start)); }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$(dirname "$out")"
echo 'part,what,value,unit' >"$out"
failed=0
row() { printf '%s,%s,%s,%s\n' "$1" "$2" "$3" "$4" >>"$out"; printf '%-9s %-44s %12s %s\n' "$1" "$2" "$3" "$4"; }
bad() { failed=$((failed + 1)); row "$@"; }
# enough PART SECONDS: whether there is time for a part.
enough() { [ "$(left)" -gt "$2" ] || { bad "$1" skipped "$(left)" 's left'; return 1; }; }

command -v nvidia-smi >/dev/null || { echo 'cuda.sh: there is no nvidia-smi here: no GPU?' >&2; exit 77; }
smi() { nvidia-smi --query-gpu="$1" --format=csv,noheader,nounits -i 0 | head -n 1 | tr -d ' '; }
arch=$(smi compute_cap | tr -d .)
row machine "$(smi name)" "$arch" sm
row machine driver "$(smi driver_version)" ''
row machine memory "$(smi memory.total)" MiB
row machine cores "$(nproc)" ''

if [ -n "$bundle" ]; then
    export LD_LIBRARY_PATH=$bundle/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} TESSERA_PLUGINS=$bundle
    tessera=$bundle/tessera check=$bundle/check_cuda gen=$bundle/gen_model
else
    make -j"$(nproc)" tessera build/release/bench/gen_model >"$work/make" 2>&1 &&
        make -j"$(nproc)" cuda CUDA_ARCH="$arch" >>"$work/make" 2>&1 || {
        tail -n 20 "$work/make" >&2
        echo 'cuda.sh: it does not build here (--make-bundle elsewhere, --bundle here)' >&2
        exit 1
    }
    tessera=./tessera check=build/cuda/check_cuda gen=build/release/bench/gen_model
fi
row build 'seconds until here' $(($(date +%s) - start)) s

# ---- check ----
if "$check" >"$work/check" 2>&1; then row check "$(tail -n 1 "$work/check" | tr , ';')" ok ''
else bad check "$(grep -m 1 -E 'FAIL|check_cuda:' "$work/check" | tr , ';')" FAILED ''; cat "$work/check" >&2; fi

# ---- kernels ----
"$check" --bench >"$work/bench" 2>&1 || bad kernels 'check_cuda --bench' FAILED ''
copy=$(awk '/^bench device copy/ {print $4}' "$work/bench")
row kernels 'device copy, read and written' "${copy:-0}" GB/s
awk '/^bench cuda\./ {print $2, $3, $5, $7, $8}' "$work/bench" | while read -r what n us rate unit; do
    row kernels "$what, $n" "$us" us
    row kernels "$what, $n" "$rate" "$unit"
done

# ---- decode: the model, and what it takes ----
model=$work/m.gguf
"$gen" "$model" --type Q4_K_M --ctx 8192 >/dev/null 2>&1 || bad decode 'gen_model' FAILED ''
layers=8 used=8
plan() { "$tessera" plan -m "$model" -c 512 -dev cuda --vram "$1" --json 2>"$work/plan.err"; }
field() { awk -v k="\"$1\":" '$1 == k {gsub(/[,"]/, "", $2); print $2; exit}'; }

run() # VRAM TOKENS: ms per token, share on the device
{
    "$tessera" run -m "$model" -c 512 -p 'ab' -n "$2" --ignore-eos --temp 0 --analyze -dev cuda --vram "$1" \
        >"$work/text" 2>"$work/run.err"
    awk '/time per token/ {for (i = 1; i <= NF; i++) if ($i == "ms,") ms = $(i - 1)}
         /on the device/ {for (i = 1; i <= NF; i++) if ($i == "%,") share = $(i - 1)}
         END {print ms + 0, share + 0}' "$work/run.err"
}

if enough decode 60; then
    "$tessera" doctor -m "$model" -o "$work/machine" >/dev/null 2>&1
    host=$(awk '$1 == "ram_read_n_gb_s" {print $2; exit}' "$work/machine")
    row decode 'host memory' "${host:-0}" GB/s
    "$tessera" run -m "$model" -c 512 -p 'ab' -n 64 --ignore-eos --temp 0 --analyze >"$work/cpu.text" 2>"$work/run.err"
    cpu_ms=$(awk '/time per token/ {for (i = 1; i <= NF; i++) if ($i == "ms,") print $(i - 1)}' "$work/run.err")
    row decode 'CPU alone' "${cpu_ms:-0}" ms/token
    # What the context takes, and what is not experts: from what the plans say.
    plan 8G >"$work/p"
    all=$(field expert_bytes <"$work/p")
    plan 2G >"$work/p"
    some=$(field device_expert_bytes <"$work/p")
    dense=$(($(field token_memory_bytes <"$work/p") - all / 128 * used))
    beside=$((2147483648 - ${some:-0}))
    row decode 'the context and what is not experts' $((beside >> 20)) MiB
    [ "${some:-0}" -gt 0 ] && [ "$some" -lt "$all" ] || bad decode '2G hold no experts, or all of them' FAILED ''
    for pct in 100 75 50 25; do
        enough decode 40 || break
        vram=$(((beside + all * pct / 100 + (pct == 100 ? 268435456 : 0)) >> 20))
        read -r ms share <<<"$(run "${vram}M" 512)"
        head -c "$(wc -c <"$work/cpu.text")" "$work/text" | cmp -s - "$work/cpu.text" || bad decode "$pct % text differs" FAILED ''
        row decode "$pct % resident, --vram ${vram}M" "$ms" ms/token
        row decode "$pct %: ran on the card" "$share" %
        plan "${vram}M" >"$work/p" # all but experts is on the card, or on the host
        row decode "$pct %: two-sided bound" "$(awk -v d=$((all / 128 * used)) -v a="$dense" -v s="$share" \
            -v there="$(field device_dense_bytes <"$work/p")" \
            -v g="${copy:-0}" -v h="${host:-0}" 'BEGIN {if (g * h == 0) {print "?"; exit}
             v = (d * s / 100 + (there > 0 ? a : 0)) / g / 1e6
             r = (d * (1 - s / 100) + (there > 0 ? 0 : a)) / h / 1e6
             printf "%.3f", (v > r ? v : r)}')" ms/token
        grep -q 'given up\|not used' "$work/run.err" && bad decode "$(grep -m 1 'given up\|not used' "$work/run.err" | tr , ';')" FAILED ''
        [ -n "$peer" ] && [ -x "$peer" ] && for n in 0 1 2 3 4 5 6 7 8; do
            # the fewest layers on the CPU that fit the same memory
            [ $((layers - n)) -gt $((layers * pct / 100)) ] && continue
            ts=$("$peer" -m "$model" -p 0 -n 64 -r 2 -ngl 99 -ncmoe "$n" -o csv 2>/dev/null | tail -n 1 |
                awk -F '","' '{print $(NF - 1)}')
            row decode "$pct %: llama.cpp -ncmoe $n" "${ts:-0}" tokens/s
            break
        done
    done
fi

# ---- long ----
speeds() # WHO PROGRAM ARGS...: tokens per second of each of its tests
{
    local who=$1
    shift
    "$@" -m "$model" -p 512,2048 -n 32 -d 0,4096 -r 2 -o csv 2>"$work/run.err" >"$work/csv"
    [ "$(wc -l <"$work/csv")" -gt 1 ] || { bad long "$who: $(tail -n 1 "$work/run.err" | tr , ';')" FAILED ''; return; }
    awk -F '","' 'NR == 1 {n = split($0, name, ","); for (i = 1; i <= n; i++) {gsub(/"/, "", name[i]); at[name[i]] = i}; next}
         {p = $at["n_prompt"] + 0; d = $at["n_depth"] + 0
          print (p ? "prompt-of-" p : "token") "-behind-" d, $at["avg_ts"] + 0}' "$work/csv" |
        while read -r what ts; do row long "$who: ${what//-/ }" "$ts" tokens/s; done
}
if enough long 60; then
    speeds Tessera "$tessera" bench -c 8192 -dev cuda
    grep -q 'given up\|not used' "$work/run.err" && bad long "$(grep -m 1 'given up\|not used' "$work/run.err" | tr , ';')" FAILED ''
    [ -n "$peer" ] && [ -x "$peer" ] && speeds llama.cpp "$peer" -ngl 99 -fa 1
fi

# ---- budget ----
if enough budget 30; then
    before=$(smi memory.used) most=0
    "$tessera" run -m "$model" -c 512 -p ab -n 400 --ignore-eos -dev cuda --vram 2G >/dev/null 2>"$work/run.err" &
    pid=$!
    while kill -0 $pid 2>/dev/null; do
        now=$(($(smi memory.used) - before))
        [ $now -gt $most ] && most=$now
        sleep 0.1
    done
    if [ $most -gt 0 ] && [ $most -le 2048 ]; then row budget '--vram 2G: most in use' $most MiB
    else bad budget '--vram 2G: most in use' $most MiB; fi
fi

# ---- models ----
for m in "$models"/*moe*.gguf models/zoo/*.gguf; do
    [ -f "$m" ] && enough models 30 || continue
    name=$(basename "$m" .gguf)
    ids=$(seq -s, 1 48)
    [ -f "$m.ids" ] && ids=$(cat "$m.ids")
    "$tessera" logits -m "$m" --ids "$ids" -o "$work/a" 2>"$work/err" &&
        "$tessera" logits -m "$m" --ids "$ids" -o "$work/b" --decode -dev cuda 2>"$work/err" || {
        if grep -q 'is not known' "$work/err"; then row models "$name: not known" left ''
        else bad models "$name: $(tail -n 1 "$work/err" | tr , ';')" FAILED ''; fi
        continue
    }
    said=$(grep -m 1 'device cuda' "$work/err" | tr , ';')
    if ! cmp -s "$work/a" "$work/b"; then bad models "$name" DIFFERS ''
    else row models "$name${said:+: $said}" same bits; fi
done

# ---- sanitize ----
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck initcheck synccheck; do
        enough sanitize 45 || break
        if timeout 120 compute-sanitizer --tool $tool --error-exitcode 9 "$check" --filter q4_k >"$work/san" 2>&1 &&
            timeout 60 compute-sanitizer --tool $tool --error-exitcode 9 "$check" --filter glu.q8_32 >"$work/san" 2>&1
        then row sanitize $tool clean ''
        else bad sanitize "$tool: $(grep -m 1 '=====.*[A-Z]' "$work/san" | tr , ';')" FAILED ''; fi
    done
else
    bad sanitize 'no compute-sanitizer here' skipped ''
fi

row all 'seconds' $(($(date +%s) - start)) s
row all 'failed or skipped' $failed ''
[ $failed = 0 ]
