#!/usr/bin/env bash
# tessera convert from outside: results, exit codes, nothing half-written.
# usage: tests/cli_convert.sh BINARY    (from the repository's root; 0 passed, 1 failed, 77 skipped)
source tests/clilib.sh
begin
input ''
C=tests/convert
O=$DIR/out.gguf

# One command, and the file runs.
t convert $C/qwen3moe "$O" -t 2
expect 0 'qwen3moe: .* -> '
ok 'a table' "$(head -1 "$DIR/out")" = '| tensor | shape | from | as | to | bytes |'
ok 'a row for each tensor' "$(lines "$DIR/out")" = 29
ok 'nothing beside it' "$(ls "$DIR" | grep -c 'out\.gguf')" = 1
grep -q 'blk.1.ffn_up_exps.weight | 32 x 16 x 4 | .*experts.0.up_proj.weight and 3 more | BF16 | BF16' "$DIR/out"
ok 'stacked experts are one row' $? = 0
t run -m "$O" -p 'the rabbit' -n 4 -s 1 --temp 0
expect 0 'Qwen3moe|Qwen3Moe'
t info "$O" --kv
expect 0
grep -q 'general.file_type.*32' "$DIR/out"; ok 'bf16 is kept' $? = 0

# Types; a folder with a slash at its end; the name.
for type in f32 F16 bf16 q8_0 auto; do
    t convert $C/llama2/ "$O" --outtype $type --model-name 'Some name'
    expect 0
done
t info "$O" --kv
grep -q 'general.name.*Some name' "$DIR/out"; ok '--model-name' $? = 0
t convert $C/deepseek3 "$O"
expect 0 '2 tensors .* are left out'

# Errors: usage is 2, the rest 1; what was there stays.
cp "$O" "$DIR/before"
t convert $C/qwen3
refuse 2 'something is missing'
t convert $C/qwen3 "$O" --outtype q4_0
refuse 2 'auto, f32, f16, bf16 and q8_0'
t convert $C/qwen3 "$O" --outype f16
refuse 2 'did you mean --outtype'
t convert $C/qwen3 "$O" --pre nonsense
refuse 2 'tessera help support'
t convert "$DIR/none" "$O"
refuse 1 'config.json'
t convert "$O" "$O"
refuse 1 'config.json'
mkdir "$DIR/bad"
cp $C/llama3/* "$DIR/bad"
rm "$DIR/bad/model-00003-of-00003.safetensors"
t convert "$DIR/bad" "$O"
refuse 1 'model-00003'
head -c 3000 $C/llama3/model-00003-of-00003.safetensors >"$DIR/bad/model-00003-of-00003.safetensors"
t convert "$DIR/bad" "$O"
refuse 1 'not downloaded completely'
cp $C/llama3/* "$DIR/bad"
sed -i 's/"intermediate_size": 64/"intermediate_size": 96/' "$DIR/bad/config.json"
t convert "$DIR/bad" "$O"
refuse 1 'contradict the tensors'
cmp -s "$O" "$DIR/before"; ok 'the old file stays' $? = 0
ok 'nothing half-written' "$(ls "$DIR" | grep -c 'out\.gguf')" = 1
t convert $C/qwen3 /dev/full
refuse 1 'No space left'
t convert $C/qwen3 "$DIR/none/out.gguf"
refuse 1 'No such file'
t help convert
expect 0
grep -q 'GptOssForCausalLM' "$DIR/out"; ok 'help lists what can be converted' $? = 0
finish
