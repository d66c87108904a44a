#!/usr/bin/env bash
# oracle from outside: the three searches, the same report twice and after an interruption, and errors.
. "$(dirname "$0")/clilib.sh"
begin
input ''
O="oracle -m $M -t 1"
for i in $(seq 60); do echo "the hat in the inn and a rat, $i"; done >"$DIR/text"

# ---- routes ----
t $O -p 'the cat and the hat in the inn'
expect 0 'candidates'
ok "no tokens" "$(grep -c '^[0-9]* tokens; loss as the model is [0-9.]* .*everything was tried' "$DIR/out")" = 1
ok "not three numbers of layers" "$(grep -c '^ *[012] .*%' "$DIR/out")" = 3
cp "$DIR/out" "$DIR/first"
t $O -p 'the cat and the hat in the inn' -t 2
expect 0
ok "another report" "$(cmp "$DIR/out" "$DIR/first" && echo same)" = same
for u in ffn part; do
    t $O -p 'the cat and the hat in the inn' --unit $u
    expect 0
done
ok "no four parts" "$(grep -c 'of 4 attentions' "$DIR/out")" = 1
cp "$DIR/out" "$DIR/all"
t $O -p 'the cat and the hat in the inn' --unit part --all 15 --beam 6
expect 0
ok "a beam that is wide enough finds something else" \
    "$(diff <(sed 's/;[^;]*$//' "$DIR/out") <(sed 's/;[^;]*$//' "$DIR/all") >/dev/null && echo same)" = same
t $O -p 'the cat and the hat in the inn' --json --skips 1
expect 0
if command -v python3 >/dev/null; then
    ok "no JSON" "$(python3 -c "
import json
r = json.load(open('$DIR/out'))
print(r['what'] == 'routes' and len(r['per_token']) == r['tokens'] and r['best'] <= r['loss'] and
      all(x['values'][0] is None and len(x['values']) == 9 for x in r['per_token']))")" = True
fi

# ---- experts ----
t $O -p 'the cat and the hat in the inn' --what experts
expect 0
ok "no two layers" "$(grep -c '^ *[01] .*[0-9.]* *=*$' "$DIR/out")" = 2
t $O -p 'the cat and the hat in the inn' --what experts --all 10 --rounds 3
expect 0
ok "swaps that try all" "$(grep -c 'not everything was tried' "$DIR/out")" = 1

# ---- pictures ----
for w in routes experts; do
    t $O -p 'the <cat> & the hat in the inn' --what $w --html "$DIR/$w.html"
    expect 0
    page "$DIR/$w.html" 3
    ok "text that is not escaped" "$(grep -c '<cat\|& ' "$DIR/$w.html")" = 0
done

# ---- depth ----
for m in mor-token mor-expert; do
    t oracle -m "tests/depth/$m.gguf" --ids 1,2,3,4,5,6,7,8,9,10 --what depth
    expect 0
    ok "no mean depth" "$(grep -c '^mean depth of the router' "$DIR/out")" = 1
done
t oracle -m tests/depth/ouro.gguf --ids 1,2,3,4,5,6,7,8,9,10 --what depth --exit 0.5
expect 0
t oracle -m tests/depth/ouro.gguf --ids 1,2,3,4,5,6 --what depth
refuse 1 'need --exit'
t oracle -m tests/depth/mor-token.gguf --ids 1,2,3,4,5,6
refuse 1 'not all rows go through its layers'
t $O -p 'the cat' --what depth
refuse 1 'equally deep'

# ---- schedules ----
"$GEN" "$DIR/choice.gguf" --arch ecdlm --tiny --byte-vocab --ctx 512 2>/dev/null
S="oracle --what schedule -m $DIR/choice.gguf --ids $(seq -s, 1 30) --steps 4"
t $S
expect 0 '4 passes in'
ok "not four passes" "$(grep -cE '^ *[1-4] +[0-9.]+ % ' "$DIR/out")" = 4
ok "something is better than the best" "$(awk '/^(the model|always)/ && $(NF-4) != "-" && $(NF-4) < $(NF-3) {n++} END {print n + 0}' "$DIR/out")" = 0
cp "$DIR/out" "$DIR/whole"
t $S -t 1 -o "$DIR/s.gguf" --html "$DIR/s.html"
expect 0
page "$DIR/s.html" 2
ok "another report" "$(cmp "$DIR/out" "$DIR/whole" && echo same)" = same
t $S -o "$DIR/s.gguf" --json
expect 0 '4 of 4 passes were there'
if command -v python3 >/dev/null; then
    ok "no brute force" "$(python3 -c "
import itertools, json
r = json.load(open('$DIR/out'))
p = r['passes']
total = sum(x['own'] for x in p)
least = min(sum(x['loss'][k] for x, k in zip(p, c)) for c in itertools.product(range(len(p[0]['loss'])), repeat=4)
            if sum(c) + 4 <= total)
print(abs(least / 4 - r['best']) < 1e-5 and sum(x['best'] for x in p) <= total and r['best'] <= r['loss'])")" = True
fi
t oracle --what schedule -m "$M" -p 'the cat'
refuse 1 'experts do not choose their tokens'
t oracle --what routes -m "$DIR/choice.gguf" --ids 1,2,3,4
refuse 1 'about the next token'

# ---- interrupted, and going on ----
t $O -f "$DIR/text" --what experts --tokens 900
expect 0
cp "$DIR/out" "$DIR/whole"
"$BIN" $O -f "$DIR/text" --what experts --tokens 900 -o "$DIR/r.gguf" >/dev/null 2>"$DIR/err" &
pid=$!
sleep 0.5
kill -INT $pid 2>/dev/null
wait $pid
RC=$?
ok "neither done nor interrupted" "$RC" = 0 -o "$RC" = 130
ok "no result to go on from" -s "$DIR/r.gguf" -o "$RC" = 130
t $O -f "$DIR/text" --what experts --tokens 900 -o "$DIR/r.gguf"
expect 0
ok "another report after an interruption" "$(cmp "$DIR/out" "$DIR/whole" && echo same)" = same
t $O -f "$DIR/text" --what experts --tokens 900 -o "$DIR/r.gguf"
expect 0 '900 of 900 tokens were there'
ok "another report from the file" "$(cmp "$DIR/out" "$DIR/whole" && echo same)" = same
t $O -f "$DIR/text" --what experts --tokens 900 -o "$DIR/r.gguf" --seed 2
refuse 1 'another search than .* -s 2 '
t $O -p 'the hat in the inn and a rat' --what experts --tokens 900 -o "$DIR/r.gguf"
refuse 1 'another text'
"$GEN" "$DIR/three.gguf" --tiny --byte-vocab --ctx 512 --layers 3 2>/dev/null
t oracle -m "$DIR/three.gguf" -p 'the hat' -o "$DIR/none/r.gguf"
refuse 1 'cannot write .*none/r.gguf'
t oracle -m "$DIR/three.gguf" -p 'the hat' --html "$DIR/none/r.html"
refuse 1 'cannot write .*none/r.html'
t oracle -m "$DIR/three.gguf" -f "$DIR/text" --what experts --tokens 900 -o "$DIR/text"
refuse 1 'is there and no result of an oracle'
t oracle -m "$DIR/three.gguf" -f "$DIR/text" --what experts --tokens 900 -o "$DIR/r.gguf"
refuse 1 'another model'
head -c $(($(size "$DIR/r.gguf") - 100)) "$DIR/r.gguf" >"$DIR/cut.gguf"
t $O -f "$DIR/text" --what experts --tokens 900 -o "$DIR/cut.gguf"
refuse 1 'cut.gguf'
t $O -p x -o "$DIR/text"
refuse 1 'text'
t $O -p 'the hat' -o "$DIR/text" --fresh
refuse 1 'is there and no result of an oracle'
t $O -p 'the hat' -o "$DIR/three.gguf" --fresh
refuse 1 'it is left alone'
t $O -p 'the hat' -o "$DIR/r.gguf" --fresh
expect 0
ok "the text was overwritten" "$(head -c 7 "$DIR/text")" = 'the hat'

# ---- errors ----
"$GEN" "$DIR/dense.gguf" --tiny --arch llama --experts 0 2>/dev/null
t oracle -m "$DIR/dense.gguf" --ids 1,2,3 --what experts
refuse 1 'no routers that choose experts'
t oracle -m "$DIR/dense.gguf" --ids 1,2,3
expect 0
t $O -p ''
refuse 1 'the text has'
t $O --ids 5
refuse 1 'another behind it'
t $O --ids 5,999999
refuse 1 'outside the vocabulary'
t $O
refuse 2 'one of -p, -f and --ids'
t $O -p x --what fish
refuse 2 'routes, experts, depth or schedule'
t $O -p x --unit fish
refuse 2 'layer, ffn or part'
t oracle -p x
refuse 2 'which model'
"$GEN" "$DIR/wide.gguf" --tiny --embd 512 --ff 512 --layers 3 --experts 24 --used 3 --byte-vocab 2>/dev/null
t oracle -m "$DIR/wide.gguf" -p 'a hat' -c 64 --mem 1M
expect 3 '--mem'
least=$(sed -n 's/.*--mem \([0-9]*\)[0-9.]*M.*/\1/p' "$DIR/err")
t oracle -m "$DIR/wide.gguf" -p 'a hat' -c 64 --mem $((least + 10))M
refuse 3 'whole model in memory'
t $O -p 'a hat' -c 64 --mem 60M --all 1
expect 0
t $O -p 'a hat' -c 64 --mem 60M --all 1 --random 60000
refuse 3 'it needs [0-9.]*M or more'
finish
