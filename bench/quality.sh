#!/bin/sh
# Correctness beside llama.cpp: the same file in both engines.
#
#   bench/quality.sh --model F16.gguf --texts "wiki.txt stories.txt" \
#       --llama-perplexity PATH --llama-quantize PATH --greedy PATH
#
# 1. Perplexity of the F16 file and of its quantised forms (made by llama-quantize) on each text; the
#    two numbers may differ by 0.5 %.  A form is a weight type, which every matrix then has, or a
#    recipe such as Q4_K_M.
# 2. Greedy text: 64 tokens on 10 prompts in F16.  Both engines pick the same token everywhere, or,
#    where they part first, the two best logits differ by less than 0.02 (in llama.cpp's numbers).
#
# Prints tables, writes a CSV, exits 1 when a bound is broken.
set -eu

usage()
{
    cat <<'END'
bench/quality.sh --model F16.gguf [options]

  --tessera PATH           the tessera to check (default: ./tessera of this tree)
  --model FILE             a model in F16; a quantised one is widened to F16 first
  --texts "A B"            texts for the perplexity; without them only greedy text is checked
  --text-bytes N           only the first N bytes of each text (default: all)
  --ctx N                  tokens per chunk (default 512)
  --types "T T"            weight types (default "Q8_0 Q6_K Q4_K Q4_0"; "" = F16 only; "all")
  --recipes "R R"          recipes (default none; "all")
  --imatrix FILE           an importance matrix, for the forms that llama-quantize makes with one
                           only (IQ1 to IQ3_XXS, Q2_K_S): they are left out without
  --llama-perplexity PATH  llama.cpp's llama-perplexity
  --llama-quantize PATH    llama.cpp's llama-quantize
  --llama-args "A B"       more arguments for llama-perplexity
  --greedy PATH            a program of the peer, see below; without it greedy text is not checked
  --llama-commit ID        for the CSV
  --tessera-commit ID      default: what `tessera --version` says
  -t N                     threads (default: the physical cores)
  --out FILE               the CSV (default: bench/results/quality-<model>-<date>.csv; - = none)

--greedy PATH is called as `PATH MODEL N ID,ID,...` with the ids of a prompt.  It prints N lines
"ID GAP": the token with the largest logit after the prompt and the tokens printed so far, and how
far the second largest logit is below it.  It goes on past end tokens; ties go to the lower id.

Exit code 0; 1 when a bound is broken or a program fails; 2 for bad arguments.
END
}

die() { echo "quality.sh: $1" >&2; exit "${2:-1}"; }

BOUND=0.5 # per cent of perplexity
GAP=0.02  # between the two best logits where greedy texts part
N=64      # greedy tokens

root=$(cd "$(dirname "$0")/.." && pwd)
tessera=$root/tessera model='' texts='' text_bytes='' ctx=512 types='Q8_0 Q6_K Q4_K Q4_0'
recipes='' imatrix='' llama_args=''
perplexity='' quantize='' greedy='' llama_commit='' tessera_commit='' threads='' out=''
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage; exit 0 ;;
    -*) [ $# -ge 2 ] || die "$1 wants a value" 2 ;;
    esac
    case $1 in
    --tessera) tessera=$2 ;;
    --model) model=$2 ;;
    --texts) texts=$2 ;;
    --text-bytes) text_bytes=$2 ;;
    --ctx) ctx=$2 ;;
    --types) types=$2 ;;
    --recipes) recipes=$2 ;;
    --imatrix) imatrix=$2 ;;
    --llama-args) llama_args=$2 ;;
    --llama-perplexity) perplexity=$2 ;;
    --llama-quantize) quantize=$2 ;;
    --greedy) greedy=$2 ;;
    --llama-commit) llama_commit=$2 ;;
    --tessera-commit) tessera_commit=$2 ;;
    -t) threads=$2 ;;
    --out) out=$2 ;;
    *) die "unknown option $1 (--help lists them)" 2 ;;
    esac
    shift 2
done
[ -r "$model" ] || die "--model: cannot read '$model'" 2
[ -n "$texts$greedy" ] || die "give --texts, --greedy or both (--help)" 2
[ -z "$texts" ] || [ -x "$perplexity" ] || die "--llama-perplexity: cannot run '$perplexity'" 2
[ -z "$texts" ] || [ -z "$types$recipes" ] || [ -x "$quantize" ] ||
    die "--llama-quantize: cannot run '$quantize'" 2
[ -z "$greedy" ] || [ -x "$greedy" ] || die "--greedy: cannot run '$greedy'" 2
[ -x "$tessera" ] || die "cannot run $tessera" 2
for f in $texts $imatrix; do [ -r "$f" ] || die "cannot read $f" 2; done
[ "$types" != all ] || types='BF16 Q8_0 Q6_K Q5_K Q5_1 Q5_0 Q4_K Q4_1 Q4_0 IQ4_NL IQ4_XS MXFP4 NVFP4
    Q3_K IQ3_S IQ3_XXS Q2_K IQ2_S IQ2_XS IQ2_XXS IQ1_M IQ1_S'
[ "$recipes" != all ] || recipes='Q8_0 Q6_K Q5_K_M Q5_K_S Q5_1 Q5_0 Q4_K_M Q4_K_S Q4_1 Q4_0 IQ4_NL
    IQ4_XS MXFP4_MOE Q3_K_L Q3_K_M Q3_K_S IQ3_M IQ3_S IQ3_XS IQ3_XXS Q2_K Q2_K_S IQ2_M IQ2_S IQ2_XS
    IQ2_XXS IQ1_M IQ1_S'

cpu=$(lscpu | sed -n 's/^Model name: *//p' | head -n 1)
cores=$(lscpu -p=CORE,SOCKET | grep -v '^#' | sort -u | wc -l)
ram=$(awk '/^MemTotal/ { printf "%.0f", $2 / 1048576 }' /proc/meminfo)
when=$(date -u +%Y-%m-%d)
threads=${threads:-$cores}
tessera_commit=${tessera_commit:-$("$tessera" --version | sed -n '1s/.*(\(.*\))$/\1/p')}
name=$(basename "$model" .gguf)
out=${out:-$root/bench/results/quality-$name-$when.csv}
case $out in -) ;; /*) ;; *) out=$PWD/$out ;; esac
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM
broken=0

absolute() { case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }
model=$(absolute "$model")
imatrix=${imatrix:+$(absolute "$imatrix")}
sum=$(sha256sum "$model" | cut -c 1-16)
: >"$tmp/rows"

# ---- perplexity ----

# The number of "Final estimate: PPL = x +/- y".
final() { sed -n 's/.*Final estimate: PPL = *\([0-9.naif]*\).*/\1/p' "$1" | tail -n 1; }

perplexity_of() # FILE TYPE TEXT
{
    # llama.cpp's tools may leave a log in the folder that they run in.
    # shellcheck disable=SC2086
    (cd "$tmp" && "$perplexity" -m "$1" -f "$3" -c "$ctx" -t "$threads" $llama_args >peer.out 2>&1) ||
        true
    "$tessera" perplexity -m "$1" -f "$3" -c "$ctx" -t "$threads" >"$tmp/ours.out" 2>&1 || true
    theirs=$(final "$tmp/peer.out")
    ours=$(final "$tmp/ours.out")
    [ -n "$theirs" ] || { tail -n 3 "$tmp/peer.out" >&2; die "llama-perplexity gave no number"; }
    [ -n "$ours" ] || { tail -n 3 "$tmp/ours.out" >&2; die "tessera perplexity gave no number"; }
    awk -v a="$ours" -v b="$theirs" -v bound=$BOUND -v type="$2" \
        -v text="$(basename "$3" | sed 's/\.txt$//')" -v bytes="$(wc -c <"$3")" 'BEGIN {
        d = 100 * (a - b) / b; ok = d <= bound && d >= -bound   # not so for a NaN
        printf "perplexity %s %s(%d) %s %s %+.4f %s\n", type, text, bytes, a, b, d, ok ? "ok" : "BROKEN"
    }' >"$tmp/row"
    cat "$tmp/row" >>"$tmp/rows"
    awk '{ printf "| %s | %s | %s | %s | %s %% | %s |\n", $2, $3, $4, $5, $6, $7 }' "$tmp/row"
}

# Whether llama-quantize makes the form with an importance matrix only.
needs_imatrix() { case $1 in IQ1_* | IQ2_* | IQ3_XXS | IQ3_XS | Q2_K_S) ;; *) return 1 ;; esac; }

# The form of the model in $tmp/form.gguf; false when it has to be left out.  What has no importance
# of its own, the embedding, cannot have the types that need it.
make_form() # pure|recipe NAME
{
    with=''
    if needs_imatrix "$2"; then
        [ -n "$imatrix" ] || { echo "| $2 | left out: no --imatrix | | | | |"; return 1; }
        with="--imatrix $imatrix"
        [ "$1" = recipe ] || with="$with --token-embedding-type q6_K --output-tensor-type q6_K"
    fi
    last=$2
    [ "$1" = recipe ] || { with="$with --pure --tensor-type .*=$2"; last=Q8_0; }
    # shellcheck disable=SC2086
    (cd "$tmp" && set -f && "$quantize" $with "$model" form.gguf "$last" >quantize.out 2>&1) ||
        { tail -n 3 "$tmp/quantize.out" >&2; die "llama-quantize failed for $2"; }
}

# A quantised model is widened: every weight is what it was.
if "$tessera" info "$model" --tensors | awk 'NR > 3 && $2 !~ /^B?F(16|32)$/ { exit 1 }'; then :; else
    "$tessera" quantize --allow-requantize "$model" "$tmp/$name.gguf" F16 >"$tmp/widen.out" 2>&1 ||
        { tail -n 3 "$tmp/widen.out" >&2; die "the model cannot be widened"; }
    model=$tmp/$name.gguf
fi

if [ -n "$texts" ]; then
    echo "| form | text (bytes) | tessera | llama.cpp | difference | bound $BOUND % |"
    echo "|---|---|---|---|---|---|"
    n=0
    for f in $texts; do
        n=$((n + 1))
        mkdir "$tmp/$n"
        head -c "${text_bytes:-$(wc -c <"$f")}" "$f" >"$tmp/$n/$(basename "$f")"
    done
    for t in "$tmp"/[0-9]*/*; do perplexity_of "$model" F16 "$t"; done
    for type in $types; do
        make_form pure "$type" || continue
        for t in "$tmp"/[0-9]*/*; do perplexity_of "$tmp/form.gguf" "$type" "$t"; done
    done
    for recipe in $recipes; do
        make_form recipe "$recipe" || continue
        for t in "$tmp"/[0-9]*/*; do perplexity_of "$tmp/form.gguf" "$recipe-recipe" "$t"; done
    done
    rm -f "$tmp/form.gguf"
    echo
fi

# ---- greedy text ----

prompts()
{
    cat <<'END'
Once upon a time, there was a little girl named
One day, a big dog ran into the garden and
The sun was warm and the children wanted to
Tom and his mother went to the market because
"Can I play with you?" asked the rabbit. The fox
In a small house by the sea lived an old man who
Lily found a shiny key under the tree. She
The teacher smiled and said that everyone should
It was raining, so Ben stayed inside and
The history of the city began when
END
}

# Tessera's choice after each token, with the gap, from logits f32 [n][n_vocab].
choices() # FILE N_VOCAB
{
    od -An -v -tf4 -w$((4 * $2)) "$1" | awk '{
        a = 1
        for (i = 2; i <= NF; i++) if ($i + 0 > $a + 0) a = i
        b = a == 1 ? 2 : 1
        for (i = 1; i <= NF; i++) if (i != a && $i + 0 > $b + 0) b = i
        print a - 1, $a - $b
    }'
}

greedy_prompt() # NUMBER TEXT
{
    ids=$("$tessera" tokenize -m "$model" -p "$2") || die "cannot tokenise prompt $1"
    (cd "$tmp" && "$greedy" "$model" $N "$ids" >peer.ids 2>peer.err) ||
        { tail -n 3 "$tmp/peer.err" >&2; die "--greedy failed on prompt $1"; }
    [ "$(wc -l <"$tmp/peer.ids")" -eq $N ] || die "--greedy did not print $N lines"
    # Tessera reads the peer's text: as long as both agree, its choices are its own greedy text.
    all=$ids,$(awk -v n=$N 'NR < n { printf "%s%s", (NR > 1 ? "," : ""), $1 }' "$tmp/peer.ids")
    "$tessera" logits -m "$model" -t "$threads" --ids "$all" -o "$tmp/logits" 2>"$tmp/ours.err" ||
        { tail -n 3 "$tmp/ours.err" >&2; die "tessera logits failed on prompt $1"; }
    n_all=$(printf '%s' "$all" | tr ',' '\n' | grep -c .)
    n_vocab=$(($(wc -c <"$tmp/logits") / 4 / n_all))
    choices "$tmp/logits" $n_vocab | tail -n $N >"$tmp/our.ids"
    paste -d ' ' "$tmp/our.ids" "$tmp/peer.ids" | awk -v k="$1" -v n=$N -v bound=$GAP '
    $1 != $3 {
        printf "greedy prompt-%d parts-at-%d %d %d %.4f %s\n", k, NR, $1, $3, $4,
            $4 < bound ? "ok" : "BROKEN"
        parted = 1
        exit
    }
    END { if (!parted) printf "greedy prompt-%d equal-%d - - - ok\n", k, n }' >"$tmp/row"
    cat "$tmp/row" >>"$tmp/rows"
    awk '{ gsub("-", " ", $2); gsub("-", " ", $3)
           printf "| %s | %s | %s | %s | %s | %s |\n", $2, $3, $4, $5, $6, $7 }' "$tmp/row"
}

if [ -n "$greedy" ]; then
    echo "| F16, $N greedy tokens | result | tessera's id | llama.cpp's id | gap of its two best | bound $GAP |"
    echo "|---|---|---|---|---|---|"
    k=0
    prompts >"$tmp/prompts"
    while IFS= read -r line; do
        k=$((k + 1))
        greedy_prompt $k "$line"
    done <"$tmp/prompts"
    echo
fi

# ---- the end ----

! grep -q 'BROKEN$' "$tmp/rows" || broken=1
if [ "$out" != - ]; then
    mkdir -p "$(dirname "$out")"
    awk -v cpu="$cpu" -v cores="$cores" -v ram="$ram" -v when="$when" -v model="$name" \
        -v sum="$sum" -v tc="$tessera_commit" -v lc="$llama_commit" -v ctx="$ctx" '
    BEGIN {
        print "date,cpu,cores,ram_gib,model,sha256,tessera,llama_cpp,ctx,check,case,subject," \
            "tessera_value,llama_value,difference_or_gap,verdict"
    }
    { printf "%s,\"%s\",%d,%d,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s\n", when, cpu, cores, ram, model,
          sum, tc, lc, ctx, $1, $2, $3, $4, $5, $6, $7 }' "$tmp/rows" >"$out.new"
    mv "$out.new" "$out"
    echo "written: $out"
fi
[ $broken = 0 ] && echo "all bounds hold" || echo "A BOUND IS BROKEN"
exit $broken
