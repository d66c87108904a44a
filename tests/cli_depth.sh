# Recursive and looped models on the command line: what the plan, the speed line, /stats and
# /show depth say of depths, and what is refused.
. "$(dirname "$0")/clilib.sh"
begin
input ''
"$GEN" "$DIR/mor.gguf" --arch mor --tiny --byte-vocab --experts 0 --layers 4 --repeats 3 --ctx 512 \
    --router-spread 100 2>/dev/null &&
    "$GEN" "$DIR/ouro.gguf" --arch ouro --tiny --byte-vocab --experts 0 --repeats 4 --ctx 512 \
        2>/dev/null || fail "gen_model cannot make the models"

t plan -m "$DIR/mor.gguf"
expect 0
ok "no line of depths" "$(grep -c '^depth   0 to 3, 2.00 expected; of all tokens go 100 % into rec1, 67 % into rec2, 33 % into rec3$' "$DIR/out")" = 1
ok "no expected KV cache" "$(grep -c '^    expected .*75 %$' "$DIR/out")" = 1
ok "no step on a row set" "$(grep -c '^  cpu  attention  attention     rec3 ' "$DIR/out")" -ge 2
t plan -m "$DIR/mor.gguf" --json
expect 0
ok "no depth in the JSON" "$(grep -c '"share_expected"' "$DIR/out")" = 3
t plan -m "$DIR/ouro.gguf" --exit 0.7
expect 0
ok "an approximate plan does not say so" "$(grep -c '^depth   1 to 4, no forecast; approximate' "$DIR/out")" = 1
t plan -m "$DIR/ouro.gguf"
expect 0
ok "a plain loop has depths" "$(grep -c '^depth' "$DIR/out")" = 0

t run -m "$DIR/mor.gguf" -p 'Once upon' -n 20 --temp 0 --ignore-eos
expect 0 'depth [0-3]\.[0-9]* of 3'
cp "$DIR/out" "$DIR/first"
t run -m "$DIR/mor.gguf" -p 'Once upon' -n 20 --temp 0 --ignore-eos -ub 1 --analyze
expect 0 'mean [0-3]\.[0-9]* of 3; '
ok "another answer token by token" "$(cat "$DIR/out")" = "$(cat "$DIR/first")"
for exit in '0.5 1' '0.75 2' '0.87 3' '0.9 4'; do # chances of a half: 1/2, 3/4, 7/8
    t run -m "$DIR/ouro.gguf" -p 'Once upon' -n 8 --temp 0 --ignore-eos --exit "${exit% *}"
    expect 0 "depth ${exit#* }.00 of 4"
done

input '/stats\n/show depth\nHello\n/stats\n/show depth\n/show width\n'
t chat -m "$DIR/mor.gguf" -n 8 --temp 0
expect 0 'depth +mean [0-3]\.[0-9]* of 3; '
ok "no bytes saved" "$(grep -c 'of weights, .* not needed ([0-9]* %); products [0-9]* % less' "$DIR/err")" = 1
ok "no time saved" "$(grep -c 's less than at full depth' "$DIR/err")" = 1
ok "the colours are not told" "$(grep -c 'depth of the pass that gave each token: shown; 0 1 2 3 (colours: on a terminal only)' "$DIR/err")" = 1
ok "they cannot be switched off" "$(grep -c 'each token: not shown' "$DIR/err")" = 1
ok "/show takes anything" "$(grep -c '/show alone, /show depth or /show concepts' "$DIR/err")" = 1
input '/show depth\n'
t chat -m "$DIR/ouro.gguf"
expect 0 'all tokens go equally deep'
input ''

t logits -m "$DIR/mor.gguf" --ids 5,6,7,8,9 --depth-exact -o "$DIR/a.f32"
expect 0
t logits -m "$DIR/mor.gguf" --ids 5,6,7,8,9 --depth-exact -ub 3 -o "$DIR/a.f32"
refuse 2 'one step'
t run -m "$DIR/mor.gguf" -p x -n 1 --loops 2
refuse 2 'mor has no loops'
t run -m "$DIR/ouro.gguf" -p x -n 1 --loops 5
refuse 2 'ouro runs 1 to 4 loops, not 5'
t run -m "$DIR/ouro.gguf" -p x -n 1 --exit 1.5
refuse 2
t run -m "$DIR/ouro.gguf" -p x -n 1 --exit 0.5 --exit-weighted
refuse 2 'or weighted'
t run -m "$M" -p x -n 1 --exit 0.5
refuse 2 'no exit gate'
t run -m "$M" -p x -n 1 --depth-exact
refuse 2 'no recursions'

# Routers keep their floats.
t quantize "$DIR/mor.gguf" "$DIR/q.gguf" Q8_0
expect 0
t run -m "$DIR/q.gguf" -p 'Once upon' -n 4 --temp 0
expect 0 'of 3'
finish
