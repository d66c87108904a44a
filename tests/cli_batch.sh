#!/bin/bash
# `tessera run --batch`: order, agreement with single runs, malformed lines.
. tests/clilib.sh
begin
input ''

cat >"$DIR/b" <<'LINES'
{"id": "a", "prompt": "Hello", "n": 12, "temp": 0}
{"prompt": "second \"q\" \\ line\n", "n": 5, "seed": 3}

{"id": 7, "prompt": "third", "n": 0}
{"id": "ü", "prompt": "Ünï <|im_start|>", "n": 40, "temp": 0}
{"id": "z", "prompt": "zzz", "n": 3, "temp": 0.5, "seed": 9}
LINES
for p in 1 2 4; do
    t run -m "$M" --batch "$DIR/b" --parallel $p --seed 1; expect 0 '5 of 5 lines'
    ok 'a line each' "$(lines "$DIR/out")" = 5
    cp "$DIR/out" "$DIR/out.$p"
done
ok 'parallel 1 = 4' "$(cmp "$DIR/out.1" "$DIR/out.4" 2>&1)" = ''
ok 'parallel 2 = 4' "$(cmp "$DIR/out.2" "$DIR/out.4" 2>&1)" = ''
t run -m "$M" --batch "$DIR/b" -ub 3 --seed 1; expect 0
ok 'small steps change nothing' "$(cmp "$DIR/out" "$DIR/out.4" 2>&1)" = ''
ok 'order' "$(grep -oE '^\{"id":("[^"]*"|[0-9]+)' "$DIR/out" | tr -d '\n')" = \
    '{"id":"a"{"id":2{"id":7{"id":"ü"{"id":"z"'
ok 'fields' "$(grep -cE '"n_prompt":[0-9]+,"n_gen":[0-9]+,"stop":"(end|length|full)"\}$' \
    "$DIR/out")" = 5
t run -m "$M" -p zzz -n 3 --temp 0.5 -s 9; expect 0
if ! grep -q '[^ -~]' "$DIR/out"; then
    ok 'as alone' "$(sed -n 5p "$DIR/out.4" | grep -cF "\"text\":\"$(cat "$DIR/out")\"")" = 1
fi
cp "$DIR/b" "$DIR/in"
t run -m "$M" --batch - --seed 1; expect 0
ok 'from stdin' "$(cmp "$DIR/out" "$DIR/out.4" 2>&1)" = ''
input ''

# ---- a prompt that cannot be run: the others go on
printf '{"prompt": "%s", "n": 1}\n{"prompt": "b", "n": 1}\n' "$(printf 'ab%.0s' {1..700})" >"$DIR/b"
t run -m "$M" --batch "$DIR/b"; expect 1 'b:1: '
ok 'both lines' "$(lines "$DIR/out")" = 2
ok 'the error is named' "$(sed -n 1p "$DIR/out" | grep -c '"stop":"error","error":"')" = 1

# ---- malformed: nothing is printed, the line is named
bad() {
    { printf '{"prompt": "a"}\n'; printf "$1"; printf '\n'; } >"$DIR/b"
    t run -m "$DIR/nope.gguf" --batch "$DIR/b"; refuse 1 "b:2: .*$2"
}
bad '{"prompt": "x",}' 'not JSON'
bad '{"prompt": "x"} {' 'not JSON'
bad 'hello' 'not JSON'
bad '["x"]' 'not a JSON object'
bad '{"id": 1}' 'prompt'
bad '{"prompt": 3}' 'prompt'
bad '{"prompt": "x", "n": "3"}' 'n" wants'
bad '{"prompt": "x", "n": 1.5}' 'n" wants'
bad '{"prompt": "x", "n": -3}' 'n" wants'
bad '{"prompt": "x", "seed": -1}' 'seed" wants'
bad '{"prompt": "x", "temp": 1e999}' 'temp" wants'
bad '{"prompt": "x", "id": {}}' 'id" wants'
bad '{"prompt": "a\\u0000b"}' 'u0000'
bad '{"prompt": "a\000b"}' 'zero byte'
t run -m "$M" --batch "$DIR/nope"; refuse 1 'nope'
: >"$DIR/b"
t run -m "$M" --batch "$DIR/b"; refuse 0
printf '{"prompt": "a", "n": 1, "tmep": 1}\n' >"$DIR/b"
t run -m "$M" --batch "$DIR/b"; expect 0 '"tmep" is not known'
t run -m "$DIR/notok.gguf" --batch "$DIR/b"; refuse 1 'tokenizer'

# ---- interrupted
for i in {1..3000}; do echo '{"prompt": "a", "n": 400}'; done >"$DIR/b"
interrupt run -m "$M" --ignore-eos --batch "$DIR/b"
expect 130 'interrupted'
"$BIN" run -m "$M" --ignore-eos --batch "$DIR/b" 2>"$DIR/err" | head -n 1 >"$DIR/out"
RC=${PIPESTATUS[0]}; LAST='batch | head'
expect 0
finish
