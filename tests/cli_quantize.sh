#!/bin/bash
# `tessera quantize` and `tessera imatrix` from outside: tables, types, files that run, exit codes, bad
# input, nothing half-written.  The choice of types and the encoders have tests of their own
# (test_recipe.c, test_quant.c, test_imatrix.c).
. tests/clilib.sh
begin
input ''
F=$DIR/f16.gguf
"$GEN" "$F" --tiny --byte-vocab --ctx 512 --type F16 --embd 256 --ff 256 --head-dim 64 --experts 3 --layers 1 2>/dev/null ||
    fail 'gen_model cannot make the model'
for ((i = 0; i < 60; i++)); do
    echo "The cat sat on the mat and the dog ran in the garden, number $i of them."
done >"$DIR/text"
types() { awk -F'|' 'NR > 2 { gsub(/ /, "", $5); print $5 }' "$DIR/out" | sort -u | tr '\n' ' '; }
gone() { CHECKS=$((CHECKS + 1)); [ ! -e "$1" ] && [ ! -e "$1.part" ] || fail "$LAST: $1 was left behind"; }

# ---- what is written runs, and the table says what it is
for type in F32 BF16 Q8_0 Q6_K Q5_K_M Q5_0 Q4_K_M Q4_1 IQ4_NL IQ4_XS MXFP4_MOE Q3_K_S Q2_K; do
    t quantize "$F" "$DIR/q.gguf" $type -t 2; expect 0 'bits per weight'
    awk -F' *[|] *' 'NR > 2 { split($5, a, " "); print $2, a[1] }' "$DIR/out" | sort >"$DIR/table"
    t info "$DIR/q.gguf" --tensors; expect 0
    awk 'NR > 3 { print $1, $2 }' "$DIR/out" | sort >"$DIR/is"
    ok "the file has the types of the table ($type)" "$(diff "$DIR/is" "$DIR/table" | head -3)" = ''
    t perplexity -m "$DIR/q.gguf" -f "$DIR/text" -c 64 --chunks 2; expect 0
done
t quantize "$F" "$DIR/q.gguf" Q4_K_M; expect 0
ok 'general.file_type' "$("$BIN" info "$DIR/q.gguf" --kv | grep -c 'general.file_type *= 15')" = 1
cp "$DIR/q.gguf" "$DIR/one"
t quantize "$F" "$DIR/q.gguf" Q4_K_M -t 3; expect 0
ok 'the same file with any threads' "$(cmp "$DIR/one" "$DIR/q.gguf" 2>&1)" = ''
TESSERA_CPU=ref t quantize "$F" "$DIR/q.gguf" Q4_K_M; expect 0
ok 'the same file in any tier' "$(cmp "$DIR/one" "$DIR/q.gguf" 2>&1)" = ''
t quantize "$F" "$DIR/q.gguf" q4_k; expect 0
ok 'Q4_K means Q4_K_M, in any case' "$(cmp "$DIR/one" "$DIR/q.gguf" 2>&1)" = ''

# ---- options
rm -f "$DIR/q.gguf"
t quantize --dry-run "$F" Q4_K_M; expect 0 'bits per weight'
ok 'a dry run prints the table' "$(lines "$DIR/out")" -gt 12
t quantize --dry-run "$F" "$DIR/q.gguf" Q4_K_M; expect 0
gone "$DIR/q.gguf"
t quantize --pure "$F" "$DIR/q.gguf" Q4_K_M; expect 0
ok '--pure' "$(types)" = 'F32 Q4_K '
t quantize "$F" "$DIR/q.gguf" Q4_K_M --tensor-type 'ffn_.*_exps=Q2_K' --tensor-type 'attn=IQ4_XS' \
    --token-embedding-type Q8_0 --output-tensor-type Q5_K; expect 0
ok 'types by hand' "$(types)" = 'F32 IQ4_XS Q2_K Q5_K Q8_0 '
t quantize "$F" "$DIR/q.gguf" Q4_0 --leave-output-tensor; expect 0
ok '--leave-output-tensor' "$(grep -c 'output.weight .* F16 | F16' "$DIR/out")" = 1

# ---- importance matrices: made, added up, used
t imatrix -m "$F" -f "$DIR/text" -c 64 -o "$DIR/im"; expect 0 '8 tensors'
ok 'the perplexity on the way' "$(tail -n 1 "$DIR/out" | grep -c '^Final estimate: PPL = ')" = 1
cp "$DIR/out" "$DIR/ppl"
t perplexity -m "$F" -f "$DIR/text" -c 64; expect 0
ok 'which is that of perplexity' "$(cmp "$DIR/out" "$DIR/ppl" 2>&1)" = ''
t imatrix -m "$F" -f "$DIR/text" -c 64 -o "$DIR/a" --chunks 3; expect 0 '3 chunks of 64'
t imatrix -m "$F" -f "$DIR/text" -c 64 -o "$DIR/b" --chunk 3 --in-file "$DIR/a" -ub 9; expect 0
t imatrix --in-file "$DIR/b" -o "$DIR/c"; expect 0
ok 'in two parts the same counts' "$("$BIN" info "$DIR/c" | grep -c chunk_count)" = \
    "$("$BIN" info "$DIR/im" | grep -c chunk_count)"
t imatrix -m "$F" -f "$DIR/text" -c 64 -o "$DIR/d" --chunks 2 --process-output; expect 0 '9 tensors'
t quantize --imatrix "$DIR/im" "$F" "$DIR/q.gguf" Q4_K_M; expect 0
ok 'the header names it' "$("$BIN" info "$DIR/q.gguf" --kv | grep -c 'quantize.imatrix')" = 4
ok 'it changes the weights' "$(cmp -s "$DIR/one" "$DIR/q.gguf"; echo $?)" = 1
t perplexity -m "$DIR/q.gguf" -f "$DIR/text" -c 64 --chunks 2; expect 0
t quantize "$F" "$DIR/q.gguf" Q2_K_S; expect 0 'Q2_K_S without --imatrix'
t quantize --imatrix "$DIR/im" "$F" "$DIR/q.gguf" Q2_K_S; expect 0 'nothing for .* token_embd|bits per weight'

# ---- what is refused, before and after files are opened
rm -f "$DIR/q.gguf"
t quantize; refuse 2
t quantize "$F" Q4_K_M; refuse 2 'which file shall be written'
t quantize "$F" "$DIR/q.gguf" Q4_K_N; refuse 2 'did you mean Q4_K_M'
t quantize "$F" "$DIR/q.gguf" IQ2_XS; refuse 2
t quantize "$F" "$F" Q4_K_M; refuse 2 'replace the input'
ln -s "$F" "$DIR/link"
t quantize "$F" "$DIR/link" Q4_K_M; refuse 2 'replace the input'
t quantize "$F" "$DIR/q.gguf" Q4_K_M --tensor-type attn; refuse 2 'PATTERN=TYPE'
t quantize "$F" "$DIR/q.gguf" Q4_K_M --tensor-type attn=Q9; refuse 2 "called 'Q9'"
t quantize "$F" "$DIR/q.gguf" Q4_K_M --tensor-type 'attn_(q|k=Q8_0'; refuse 2 'no regular expression'
t quantize "$F" "$DIR/q.gguf" Q4_K_M --token-embedding-type IQ1_S; refuse 2 IQ1_S
t quantize "$F" "$DIR/q.gguf" Q4_K_M --output-tensor-type x; refuse 2 output-tensor-type
t quantize "$DIR/none" "$DIR/q.gguf" Q4_K_M; refuse 1 'No such file'
t quantize "$DIR/text" "$DIR/q.gguf" Q4_K_M; refuse 1
t quantize --imatrix "$DIR/none" "$F" "$DIR/q.gguf" Q4_K_M; refuse 1 'No such file'
t quantize --imatrix "$DIR/text" "$F" "$DIR/q.gguf" Q4_K_M; refuse 1 'no importance matrix'
t quantize --imatrix tests/imatrix/gpt-oss.gguf "$F" "$DIR/q.gguf" Q4_K_M; refuse 1 'another model'
t quantize "$DIR/one" "$DIR/q.gguf" Q4_0; refuse 1 'allow-requantize'
t quantize "$F" "$DIR/no/q.gguf" Q4_K_M; refuse 1 'No such file'
t quantize "$F" /dev/full Q4_K_M; refuse 1 'No space left'
gone "$DIR/q.gguf"
t quantize --dry-run "$DIR/one" Q4_0; expect 0 'is Q4_K already'
t quantize --allow-requantize "$DIR/one" "$DIR/q.gguf" Q4_0; expect 0
t imatrix; refuse 2 'text with -f'
t imatrix -f "$DIR/text"; refuse 2 'which model'
t imatrix -m "$F" -f "$DIR/text" -c 2; refuse 2
t imatrix -m "$F" -p short -c 64 -o "$DIR/x"; refuse 1 'at least 128'
t imatrix -m "$F" -f "$DIR/text" -c 64 --chunk 99 -o "$DIR/x"; refuse 1 'none is left'
t imatrix -m "$F" -f "$DIR/text" -c 64 --in-file "$DIR/text" -o "$DIR/x"; refuse 1 'no importance matrix'
t imatrix -m "$F" -f "$DIR/text" -c 64 --chunks 1 --in-file tests/imatrix/gpt-oss.gguf -o "$DIR/x"; expect 1 'do not go with'
t imatrix -m "$F" -f "$DIR/text" -c 64 --mem 1M -o "$DIR/x"; refuse 3
t imatrix -m "$DIR/notok.gguf" -f "$DIR/text" -c 64 -o "$DIR/x"; refuse 1 tokenizer
t imatrix -m "$F" -f "$DIR/text" -c 64 --chunks 2 -o /dev/full; expect 1 'No space left'
gone "$DIR/x"
finish
