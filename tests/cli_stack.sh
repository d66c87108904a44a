#!/bin/bash
# `tessera stack` from outside: a stack is built, measured, reported, cut and run at several budgets; exit
# codes and bad input; nothing half-written.  The format and the arithmetic have tests of their own
# (test_stack.c, check_stack.c).
. tests/clilib.sh
begin
input ''
F=$DIR/f16.gguf
"$GEN" "$F" --tiny --byte-vocab --ctx 512 --type F16 --embd 256 --ff 128 --head-dim 64 --experts 4 --layers 2 2>/dev/null ||
    fail 'gen_model cannot make the model'
for ((i = 0; i < 60; i++)); do
    echo "The cat sat on the mat and the dog ran in the garden, number $i of them."
done >"$DIR/text"
gone() { CHECKS=$((CHECKS + 1)); [ ! -e "$1" ] && [ ! -e "$1.part" ] && [ ! -e "$1.work.part" ] || fail "$LAST: $1 was left behind"; }

# ---- built with a text: activations, order and curve are measured
t stack "$F" "$DIR/s.gguf" -f "$DIR/text" -c 64 --chunks 2 -t 2; expect 0
gone "$DIR/s.gguf.x"
t stack --report "$DIR/s.gguf"; expect 0
ok 'the report has the whole curve' "$(lines "$DIR/out")" = 26
t plan -m "$DIR/s.gguf" --mem 200M; expect 0
ok 'the plan says how deep each kind is' "$(grep -c 'bits per weight' "$DIR/out")" -ge 6
ok 'the plan says what to expect' "$(grep -c 'expected perplexity' "$DIR/out")" = 1
t perplexity -m "$DIR/s.gguf" -f "$DIR/text" -c 64 --chunks 2 -t 1; expect 0
cp "$DIR/out" "$DIR/one"
t perplexity -m "$DIR/s.gguf" -f "$DIR/text" -c 64 --chunks 2 -t 3; expect 0
ok 'the same with any threads' "$(cmp "$DIR/one" "$DIR/out" 2>&1)" = ''
TESSERA_CPU=ref t perplexity -m "$DIR/s.gguf" -f "$DIR/text" -c 64 --chunks 2; expect 0
ok 'the same in any tier' "$(cmp "$DIR/one" "$DIR/out" 2>&1)" = ''
cp "$DIR/s.gguf" "$DIR/one"
t stack "$F" "$DIR/s.gguf" -f "$DIR/text" -c 64 --chunks 2 -t 1; expect 0
ok 'the same file with any threads' "$(cmp "$DIR/one" "$DIR/s.gguf" 2>&1)" = ''

# ---- with an importance matrix alone
t imatrix -m "$F" -f "$DIR/text" -c 64 --chunks 2 -o "$DIR/im.gguf"; expect 0
t stack "$F" "$DIR/i.gguf" --imatrix "$DIR/im.gguf"; expect 0
t stack --report "$DIR/i.gguf"; expect 0 'no curve'
t run -m "$DIR/i.gguf" -p 'The cat' -n 8 --temp 0; expect 0
t stack "$F" "$DIR/f.gguf" --codec factored --rank 2 --levels 2 --imatrix "$DIR/im.gguf"; expect 0
t run -m "$DIR/f.gguf" -p 'The cat' -n 8 --temp 0; expect 0

# ---- a smaller file
size=$(stat -c %s "$DIR/s.gguf")
t stack --cut $((size - 20000)) "$DIR/s.gguf" "$DIR/c.gguf"; expect 0 'levels'
ok 'it is as small as asked for' "$(stat -c %s "$DIR/c.gguf")" -le $((size - 20000))
t run -m "$DIR/c.gguf" -p 'The cat' -n 8 --temp 0; expect 0 'was cut'
rm -f "$DIR/c.gguf"
t stack --cut 1000 "$DIR/s.gguf" "$DIR/c.gguf"; expect 1 'its smallest is'
gone "$DIR/c.gguf"
t stack --cut 1M "$F" "$DIR/c.gguf"; expect 1 'is no stack'

# ---- errors
head -c $((size - 100)) "$DIR/s.gguf" >"$DIR/t.gguf"
t run -m "$DIR/t.gguf" -p 'The cat' -n 1; expect 1 'truncated inside of unit'
t stack "$F" "$DIR/n.gguf"; expect 2 'give a text'
t stack "$F"; expect 2 'which file'
t stack "$F" "$F" -f "$DIR/text"; expect 2 'replace the input'
t stack "$F" "$DIR/n.gguf" -f "$DIR/text" --codec zip; expect 2 'nested or factored'
t stack "$DIR/s.gguf" "$DIR/n.gguf" --imatrix "$DIR/im.gguf"; expect 1
echo 'too short' >"$DIR/short"
t stack "$F" "$DIR/n.gguf" -f "$DIR/short"; expect 1 'needs at least'
gone "$DIR/n.gguf"
t stack "$F" "$DIR/none/n.gguf" --imatrix "$DIR/im.gguf"; expect 1 'cannot create'
finish
