#!/usr/bin/env bash
# Models whose tokens merge into concepts on the command line: what the plan, the speed line, /stats and
# /show concepts say, the page of tessera trace --html, and what is refused.
. "$(dirname "$0")/clilib.sh"
begin
input ''
"$GEN" "$DIR/c.gguf" --arch conceptmoe --tiny --byte-vocab --layers 6 --ctx 512 2>/dev/null &&
    "$GEN" "$DIR/q.gguf" --arch qwen3moe --tiny --byte-vocab --ctx 512 2>/dev/null ||
    fail "gen_model cannot make the models"

t plan -m "$DIR/c.gguf"
expect 0
ok "no line of rates" "$(grep -c "^rates   2.00 tokens to a concept, as aimed at; a text's own are measured$" "$DIR/out")" = 1
ok "no expected KV cache" "$(grep -c '^    expected .*67 %$' "$DIR/out")" = 1 # 2 of 6 layers whole, 4 by half
ok "no step on the concepts" "$(grep -c '^  cpu  attention  attention     chunk ' "$DIR/out")" -ge 4
t plan -m "$DIR/c.gguf" --json
expect 0
ok "no rates in the JSON" "$(grep -c '"share_expected":.*0.5' "$DIR/out")" = 1

# A concept begins where an odd id follows an even one or the other way round: 200 201 202 202 204 205.
ids=200,201,202,202,204,205,207,209
t trace -m "$DIR/c.gguf" --ids $ids --html "$DIR/page.html"
expect 0
ok "no ratio" "$(grep -c '8 tokens in 4 concepts: 2.00 to each (2.00 were aimed at); mean chance of a boundary 0.500' "$DIR/page.html")" = 1
ok "not the chances that were planted" "$(grep -o 'chance 1.000' "$DIR/page.html" | wc -l)" = 4
ok "not 3 lines" "$(grep -o '│' "$DIR/page.html" | wc -l)" = 3
ok "not the shares of 1, 2 and 3 tokens" "$(grep -o '<td>share of concepts</td>.*' "$DIR/page.html" | grep -o '[0-9.]* %' | head -3 | tr '\n' ' ')" = '50.0 % 0.0 % 50.0 % '
t trace -m "$DIR/c.gguf" -p 'Is 1 < 2 & "3"?' --decode 5 --one-by-one --html "$DIR/page.html" -o "$DIR/t.gguf"
expect 0
ok "no concepts beside a record" "$(grep -c '<h2>Concepts</h2>' "$DIR/page.html")" = 1
t trace -m "$DIR/q.gguf" --ids 5,6 --html "$DIR/no.html"
expect 0
ok "concepts of a model without" "$(grep -c Concepts "$DIR/no.html")" = 0

t run -m "$DIR/c.gguf" -p 'Once upon' -n 20 --temp 0 --ignore-eos
expect 0 '[1-9][0-9]*\.[0-9]* tokens to a concept'
cp "$DIR/out" "$DIR/first"
t run -m "$DIR/c.gguf" -p 'Once upon' -n 20 --temp 0 --ignore-eos -ub 1 --analyze
expect 0 'concepts +[1-9][0-9]*\.[0-9]* tokens to each'
ok "another answer token by token" "$(cat "$DIR/out")" = "$(cat "$DIR/first")"

input '/show concepts\nHello\n/stats\n/show concepts\n'
t chat -m "$DIR/c.gguf" -n 8 --temp 0
expect 0 'behind each token that closes a concept: shown'
ok "no marks" "$(grep -c '|' "$DIR/out")" -ge 1
ok "they cannot be switched off" "$(grep -c 'closes a concept: not shown' "$DIR/err")" = 1
ok "no ratio in /stats" "$(grep -cE 'concepts +[0-9.]+ tokens to each' "$DIR/err")" = 1
input '/show concepts\n'
t chat -m "$DIR/q.gguf"
expect 0 'merges no tokens'
input ''

# Routers keep their floats.
t quantize "$DIR/c.gguf" "$DIR/c8.gguf" Q8_0
expect 0
t run -m "$DIR/c8.gguf" -p "Once upon" -n 4 --temp 0
expect 0 "tokens to a concept"
finish
