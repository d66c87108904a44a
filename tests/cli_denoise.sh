# Models that see both sides on the command line: run, chat, batches and plans, the ways to write, a
# budget below the model's size, and what is refused.
. "$(dirname "$0")/clilib.sh"
begin
input ''
D=$DIR/d.gguf
"$GEN" "$D" --arch ecdlm --tiny --byte-vocab --ctx 512 2>/dev/null &&
    "$GEN" "$DIR/big.gguf" --arch ecdlm --layers 3 --embd 256 --ff 256 --heads 4 --kv-heads 2 \
        --head-dim 64 --experts 48 --used 4 --type Q8_0 --byte-vocab --ctx 256 2>/dev/null ||
    fail "gen_model cannot make the models"

t run -m "$D" -p 'Once upon' -n 24 --ignore-eos
expect 0 '10 [+] 24 tokens in 24 passes \(1.00 each\)'
cp "$DIR/out" "$DIR/first"
t run -m "$D" -p 'Once upon' -n 24 --ignore-eos -t 1 -s 7 --block 32 --alg low_confidence --steps 24 -ub 32
ok "another text by the same way" "$(cmp "$DIR/out" "$DIR/first" && echo same)" = same
t run -m "$D" -p 'Once upon' -n 24 --ignore-eos --steps 6
expect 0 'in 6 passes \(4.00 each\)'
t run -m "$D" -p 'Once upon' -n 24 --ignore-eos --threshold 0.000001
expect 0 'in 1 passes'
for seed in 3 3 4; do
    t run -m "$D" -p 'Once upon' -n 24 --ignore-eos --alg random -s $seed
    expect 0 'in 24 passes'
    cp "$DIR/out" "$DIR/random$seed"
    [ -e "$DIR/again" ] && [ $seed = 3 ] && ok "a seed that does not repeat" "$(cmp "$DIR/out" "$DIR/again" && echo same)" = same
    cp "$DIR/out" "$DIR/again"
done
ok "two seeds, one text" "$(cmp -s "$DIR/random3" "$DIR/random4" || echo differ)" = differ
for alg in maskgit_plus topk_margin entropy origin; do
    t run -m "$D" -p 'Once upon' -n 12 --ignore-eos --alg $alg --block -1 --temp 0.5 --top-p 0.9 --alg-temp 0.1 -s 1
    expect 0 'in [0-9]* passes'
done
t run -m "$D" -p 'Once upon' -n 64 --ignore-eos --block 16 --cache dual --analyze
expect 0 'cache dual: KL [0-9.e-]* nats from whole passes on average, on 480 places'
t run -m "$D" -p 'Once upon' -n 16 --ignore-eos --cfg-scale 1
expect 0 'in 32 passes'
t run -m "$D" --ids 5,6,7 -n 3 --ignore-eos
expect 0

# The experts in less memory than they are: the same text.
t run -m "$DIR/big.gguf" -p 'Once upon' -n 40 --ignore-eos
expect 0
cp "$DIR/out" "$DIR/first"
t run -m "$DIR/big.gguf" -p 'Once upon' -n 40 --ignore-eos --mem 26M
expect 0 'of the experts'
ok "another text with experts on disk" "$(cmp "$DIR/out" "$DIR/first" && echo same)" = same

printf '{"prompt": "Once upon", "n": 8}\n{"prompt": "a", "n": 3, "temp": 1, "seed": 5}\n' >"$DIR/lines"
t run -m "$D" --batch "$DIR/lines" --ignore-eos
expect 0
ok "lines of a batch" "$(grep -c '"n_gen":[83],"stop":"length"' "$DIR/out")" = 2

# Which experts chose each token, in every pass: 8 experts, each its share of the rows, 2 per row.
t trace -m "$D" -p 'Once upon' --decode 6 -o "$DIR/tr.gguf" --export "$DIR/tr.csv"
expect 0 'tr.gguf: [0-9]* tokens in 7 steps, 2 layers, up to 8 of 8 experts'
ok "experts that do not take their share" "$(awk -F, 'NR > 1 {
        k = $1 "," $5; rows[k]++; for (i = 6; i <= 13; i++) { pairs[k] += $i >= 0; if ($i >= 0) took[k "," $i]++ }
    } END {
        for (k in rows) { c = int(rows[k] * 2 / 8); if (c < 1) c = 1; bad += pairs[k] != 8 * c; n++
            for (e = 0; e < 8; e++) bad += took[k "," e] != c }
        print n, bad + 0 }' "$DIR/tr.csv")" = '14 0'
t trace "$DIR/tr.gguf" --html "$DIR/tr.html"
expect 0
t trace -m "$D" -p 'Once upon' --one-by-one -o "$DIR/x"
refuse 1 'no --one-by-one'

input 'Hello there\n'
t chat -m "$D" -n 12 -s 1
expect 0 'in [0-9]* passes'
input ''
t plan -m "$D"
expect 0
ok "the plan does not say what a row sees" "$(grep -c '^sees    the whole text: .* exact; --cache .* approximate$' "$DIR/out")" = 1
ok "no step in which experts choose" "$(grep -c '^  cpu  choose     ffn_route ' "$DIR/out")" -ge 2
t logits -m "$D" --ids 5,6,7,8,9,10,11 -o "$DIR/a.f32"
expect 0
t logits -m "$D" --ids 5,6,7,8,9,10,11 -ub 3 -o "$DIR/b.f32"
ok "pieces of a text that is seen whole" "$(cmp "$DIR/a.f32" "$DIR/b.f32" && echo same)" = same

t logits -m "$D" --ids 5,6,7 --decode -o "$DIR/c.f32"
refuse 1 'sees a text as a whole'
t perplexity -m "$D" -f "$0" -c 64
refuse 1 'perplexity is about the next token'
for i in 1 2 3 4 5 6 7 8; do printf 'the hat in the inn and a rat '; done >"$DIR/text"
t imatrix -m "$D" -f "$DIR/text" -c 32 -o "$DIR/im.gguf"
expect 0
ok "a perplexity of a model that sees the token that it is of" "$(grep -c PPL "$DIR/out")" = 0
t bench -m "$D" -p 8 -n 8 -r 1
refuse 1 'about the next token'
t bench -m "$D" -p 8 -n 0 -r 1
expect 0
t run -m "$D" -p x -n 4 --alg best
refuse 2 'low_confidence, random, origin'
t run -m "$D" -p x -n 4 --cache all
refuse 2 'none, prefix and dual'
t run -m "$D" -p x -n 4 --threshold 2
refuse 2
t run -m "$D" -p x -n 4 --alg entropy --threshold 0.5
refuse 2 'low_confidence and maskgit_plus'
t run -m "$D" -p x -n 4 --repeat-penalty 1.1
refuse 2 'repetition penalty'
t run -m "$D" -p x -n 9 --block 3 --steps 2
refuse 2 '2 steps for 3 blocks'
t run -m "$D" -p x -n 600
refuse 1 'written as a whole'
t run -m "$D" -p x -n 4 -c 20000
refuse 1 'rows at most'
t run -m "$M" -p x -n 4 --steps 4
refuse 2 'writes token by token'
finish
