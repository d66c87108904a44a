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
expect 0 '8 tokens, 2.00 to a concept'
ok "not 4 spans" "$(grep -o 'class=c>' "$DIR/page.html" | wc -l)" = 4
ok "not 4 bold tokens" "$(grep -o 'class="t b"' "$DIR/page.html" | wc -l)" = 4
ok "not the chances that were planted" "$(grep -o 'chance 1.000' "$DIR/page.html" | wc -l)" = 4
ok "no ratio" "$(grep -c '<td>8<td>4<td>2.00<td>2.00<td>0.500' "$DIR/page.html")" = 1
ok "no end" "$(tail -1 "$DIR/page.html")" = '</body></html>'
t trace -m "$DIR/c.gguf" -p 'Is 1 < 2 & "3"?' --decode 5 --one-by-one --html "$DIR/page.html" -o "$DIR/t.gguf"
expect 0
ok "text as markup" "$(grep -c '&lt;.*&amp;.*&quot;' "$DIR/page.html")" = 1
ok "no record beside the page" "$([ -s "$DIR/t.gguf" ] && echo yes)" = yes
t trace -m "$DIR/q.gguf" --ids 5,6 --html "$DIR/no.html"
refuse 1 'merges no tokens'
ok "half a page" "$([ -e "$DIR/no.html" ] && echo yes)" = ''
t trace -m "$DIR/c.gguf" --ids 5,6 --html "$DIR/none/no.html"
refuse 1 'cannot write'
t trace -m "$DIR/c.gguf" --ids 5,6
refuse 2 '-o FILE is missing'

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
