#!/bin/bash
# `tessera run` as a user and a script meet it: output, exit codes, messages, bad input.
. tests/clilib.sh
begin
input ''

# ---- what is printed
t run -m "$M" -p 'Hello' -n 12 --temp 0; expect 0 'tokens/s'
cp "$DIR/out" "$DIR/greedy"
ok 'text came' "$(size "$DIR/out")" -gt 0
t run -m "$M" -p 'Hello' -n 12 --temp 0 -t 1 -ub 2; expect 0
ok 'the same text with one thread and small steps' "$(cmp "$DIR/out" "$DIR/greedy" 2>&1)" = ''
printf 'Hello\n' >"$DIR/prompt"
t run -m "$M" -f "$DIR/prompt" -n 12 --temp 0; expect 0
ok 'the same text from a file' "$(cmp "$DIR/out" "$DIR/greedy" 2>&1)" = ''
input 'Hello\n'
t run -m "$M" -p - -n 12 --temp 0; expect 0
ok 'the same text from stdin' "$(cmp "$DIR/out" "$DIR/greedy" 2>&1)" = ''
input ''
t run -m "$M" -p 'Hell\x6f' -n 12 --temp=0; expect 0
ok 'escapes are resolved' "$(cmp "$DIR/out" "$DIR/greedy" 2>&1)" = ''
t run -m "$M" -p 'Hello' -n 30 --seed 7; expect 0 'seed 7'
cp "$DIR/out" "$DIR/seven"
t run -m "$M" -p 'Hello' -n 30 -s 7; expect 0
ok 'a seed repeats' "$(cmp "$DIR/out" "$DIR/seven" 2>&1)" = ''
t run -m "$M" -p 'Hello' -n 0; refuse 0
t run -m "$M" -p 'Hello' --temp 0 --ignore-eos; expect 0 'context of 512 tokens is full'
stop=$(dd if="$DIR/greedy" bs=1 skip=4 count=2 2>/dev/null | tr -d '\0')
t run -m "$M" -p 'Hello' -n 12 --temp 0 --stop "$stop" --no-escape; expect 0
ok 'a stop string is cut off' "$(size "$DIR/out")" -lt "$(size "$DIR/greedy")"
t run -m "$M" -p "$(printf 'a\xff\xfe\xc3b')" -n 4 --temp 0; expect 0
t run -m "$M" --ids 1,2,3 -n 4 --temp 0; expect 0
t run -m "$DIR/notok.gguf" --ids 1,2,3 -n 4 --temp 0; expect 0
ok 'ids come out' "$(grep -cE '^[0-9]+(,[0-9]+){3}$' "$DIR/out")" = 1
t run -m "$M" -p x -n 2 --temp 0 --analyze; expect 0
t run -m "$M" -p x -n 2 -ctk f16 -c 64 -b 8; expect 0 'context 64'

# ---- llama.cpp's flags that mean nothing here
t run -m "$M" -p x -n 1 -ngl 99 -fa on --no-mmap -ncmoe 3 -ot 'exps=CPU' -fit -fa; expect 0 '-ngl'
ok 'one line each' "$(grep -c 'is not needed' "$DIR/err")" = 7

# ---- wrong before a file is opened: 2
t; refuse 2 'tessera chat'
t rnu; refuse 2 'did you mean run'
t "$M"; refuse 2 'which command'
t run; refuse 2 'which model'
t run -m "$M"; refuse 2 'no prompt'
t run -m nope -p x --tmep 1; refuse 2 'did you mean --temp'
t run -m nope -p x -prompt y; refuse 2 'did you mean --prompt'
t run -m nope -p x --qqqqqq; refuse 2 'unknown flag --qqqqqq'
t run -m nope -p x --system-prompt y; refuse 2 'other commands'
t run -m nope -p x -n; refuse 2 'wants a value'
for bad in '-n 3x' '-n -3' '-c -1' '-ub 0' '--temp -1' '--temp nan' '--top-p 2' '-t -2' '-s -2' \
    '--repeat-penalty 0' '-n 99999999999' '-ctk q3_k' '--parallel 0' '-n 1e3'; do
    t run -m nope -p x $bad; refuse 2 "${bad%% *}"
done
for bad in 8Q -1G '' G 101% 0 1e400 0x10 '8 G' 99999999T nan; do
    t run -m nope -p x --mem "$bad"; refuse 2 'wants a size'
done
t run -m nope -p x -f y; refuse 2 'give one'
t run -m nope -p x --ids 1; refuse 2 'give one'
t run -m nope --ids 1,,2; refuse 2 'ids'
t run -m nope --ids 1,-2; refuse 2 'ids'
t run -m nope -p x -ctk f16 -ctv q8_0; refuse 2 'same'
t run -m nope -p x stray; refuse 2 "'stray'"

# ---- wrong files: 1
t run -m "$DIR/nope.gguf" -p x; refuse 1 'nope.gguf.*No such file'
t run -m "$DIR" -p x; refuse 1 'is a directory'
t run -m /dev/null -p x; refuse 1 'regular file'
t run -m Makefile -p x; refuse 1 'Makefile'
: >"$DIR/empty"
t run -m "$DIR/empty" -p x; refuse 1 'empty'
head -c 3000 "$M" >"$DIR/cut"
t run -m "$DIR/cut" -p x; refuse 1
t run -m "$M" -f "$DIR/nope.txt"; refuse 1 'nope.txt'
t run -m "$DIR/notok.gguf" -p x; refuse 1 'tokenizer.*--ids'
t run -m "$M" --ids 1,99999; refuse 1 '99999'
t run -m "$M" -p "$(printf 'ab%.0s' {1..700})"; refuse 1 '512'
t run -m "$M" -p x -c 100000000 -n 1; refuse 1 '512'
t run -m "$M" -p x --mem 1M; refuse 3
t run -m "$M" -p '' -n 3 --temp 0
ok 'an empty prompt is a clear error, or BOS' "$RC" -le 1

# ---- stdout that ends early
"$BIN" run -m "$DIR/long.gguf" -p x -n -1 --ignore-eos 2>"$DIR/err" <"$DIR/in" |
    head -c 10 >"$DIR/out"
RC=${PIPESTATUS[0]}; LAST='run | head -c 10'
expect 0
ok 'quiet' "$(grep -c 'tessera:' "$DIR/err")" = 0
if [ -w /dev/full ]; then
    "$BIN" run -m "$M" -p x -n 3 >/dev/full 2>"$DIR/err" </dev/null
    RC=$?; LAST='run > /dev/full'
    expect 1 'No space left'
fi
"$BIN" run -m "$M" -p x -n 3 >&- 2>"$DIR/err" </dev/null
RC=$?; LAST='run >&-'
expect 1 'standard output'

# ---- interrupted
interrupt run -m "$DIR/long.gguf" -p x -n -1 --ignore-eos
expect 130 'tokens/s'
ok 'what came stays' "$(size "$DIR/out")" -gt 0

# ---- help and version
t --version; expect 0
ok 'version' "$(grep -c '^tessera [0-9]' "$DIR/out")" = 1
t help; expect 0
t help run; expect 0
ok 'help names flags' "$(grep -c -- '--repeat-penalty' "$DIR/out")" = 1
t run --help; expect 0
finish
