#!/usr/bin/env bash
# trace and replay from outside: recording, fitting, what-ifs, a model that replays a record, errors.
. "$(dirname "$0")/clilib.sh"
begin
input ''
T=$DIR/t.gguf

# ---- recording ----
t trace -m "$M" -p 'the cat and the hat' -o "$T" --decode 20
expect 0 'tokens in 21 steps, 2 layers, 2 of 8 experts'
ok "something on stdout" ! -s "$DIR/out"
cp "$T" "$DIR/again.gguf"
t trace -m "$M" -p 'the cat and the hat' -o "$T" --decode 20
expect 0
ok "two runs differ" "$(cmp "$T" "$DIR/again.gguf" && echo same)" = same
t trace -m "$M" --ids 265,266,267 -o "$DIR/one.gguf" --one-by-one
expect 0 '3 tokens in 3 steps'
t trace -m "$DIR/notok.gguf" --ids 1,2,3 -o "$DIR/notok-trace.gguf" --decode 4
expect 0 '7 tokens in 5 steps'
for i in $(seq 200); do echo "the hat in the inn and a rat, $i"; done >"$DIR/text"
t trace -m "$M" -f "$DIR/text" -o "$DIR/long-trace.gguf" -c 128 -ub 64
expect 0
t info "$T"
expect 0
ok "no type in info" "$(grep -c 'tessera.trace' "$DIR/out")" -gt 3

t trace -m "$M" -p x
refuse 2 '-o FILE is missing'
t trace -m "$M" -o "$DIR/x"
refuse 2 'one of -p, -f and --ids'
t trace -p x -o "$DIR/x"
refuse 2 'which model'
t trace -m "$M" -p x -o "$DIR/x" stray
refuse 2 'stray'
t trace -m "$M" --ids 999999 -o "$DIR/x"
refuse 1 'outside the vocabulary'
t trace -m "$DIR/notok.gguf" -p x -o "$DIR/x"
refuse 1 'use --ids'
t trace -m "$M" -p x -o "$DIR/x" -c 32 --decode 40
refuse 1 'leaves no room'
"$GEN" "$DIR/dense.gguf" --tiny --arch llama --experts 0 2>/dev/null
t trace -m "$DIR/dense.gguf" --ids 1 -o "$DIR/x"
refuse 1 'no experts'
ok "something was left behind" ! -e "$DIR/x"

# ---- for other programs ----
for f in csv jsonl npy; do
    t trace "$T" --export "$DIR/x.$f"
    expect 0 '68 records'
    t trace -m "$M" -p 'the cat and the hat' --decode 20 --norms --export "$DIR/y.$f" \
        --activations "blk.1.ffn_norm.weight=$DIR/norm.npy"
    expect 0 'tokens in 21 steps'
done
t trace "$DIR/long-trace.gguf" --export "$DIR/long.csv"
expect 0
ok "lines of the long one" "$(lines "$DIR/long.csv")" -gt 10000
PY=${PYTHON:-python3}
if "$PY" -c 'import numpy, pandas' 2>/dev/null; then
    ok "NumPy and pandas read something else" "$(cd "$DIR" && "$PY" -c "
import numpy as np, pandas as pd
a = pd.read_csv('x.csv'); b = pd.read_json('x.jsonl', lines=True); c = pd.DataFrame(np.load('x.npy'))
y = pd.read_csv('y.csv'); n = np.load('norm.npy')
assert a.shape == c.shape and list(a.columns) == list(c.columns) and len(a) == len(b)
assert (a.expert_1 == c.expert_1).all() and ([x[1] for x in b.experts] == a.expert_1).all()
assert (a.weight_0.astype('f4') == c.weight_0).all()
assert np.allclose(np.linalg.norm(n, axis=1), y.norm[y.layer == 1])
print(int(a.step.iloc[-1]) == 20)")" = True
else
    echo "cli_trace: no numpy and pandas for $PY: what they read of exports is not tested"
fi
t trace "$T" --export "$DIR/x.txt"
refuse 2 '.csv, .jsonl or .npy'
t trace "$T" "$T" --export "$DIR/x2.csv"
refuse 2 'one trace at a time'
t trace "$T" --export "$DIR/x2.csv" --norms
refuse 2 'takes no'
t trace -m "$M" -p x --export "$DIR/x2.csv" --activations nothing
refuse 2 'TENSOR=FILE.npy'
t trace -m "$M" -p x --export "$DIR/x2.csv" --activations "blk.9.x=$DIR/x2.npy"
refuse 1 'no tensor blk.9.x'
t trace -m "$M" -p x --export "$DIR/x2.csv" --activations "blk.0.ffn_up_exps.weight=$DIR/x2.npy"
refuse 1 'rows of its own'
head -c 1500 "$T" >"$DIR/short.gguf"
t trace "$DIR/short.gguf" --export "$DIR/x3.csv"
refuse 1 'short.gguf'
ok "something was left behind" ! -e "$DIR/x3.csv"
ok "something was left behind" ! -e "$DIR/x3.csv.part"

# ---- pictures ----
t trace "$T" --html "$DIR/t.html"
expect 0
page "$DIR/t.html" 8
t trace "$T" -m "$M" --html "$DIR/t.html" --machine /dev/null
refuse 1 'no measured'
t trace -m "$M" -p 'the <cat> & the hat' --decode 20 --html "$DIR/r.html"
expect 0 'tokens in 21 steps'
page "$DIR/r.html" 10
ok "text that is not escaped" "$(grep -c '<cat\|& ' "$DIR/r.html")" = 0
t trace "$T" "$DIR/again.gguf" -m "$M" --html "$DIR/two.html"
expect 0
page "$DIR/two.html" 21
ok "a trace that does not agree with itself" "$(grep -c '34 of A&quot\|34 of A.s 34 tokens .* 100.0 % are chosen by both' "$DIR/two.html")" = 1
t trace "$T" --html "$DIR/t.html" -o "$DIR/x"
refuse 2 'takes no -o'
t trace "$T" "$T" "$T" --html "$DIR/t.html"
refuse 2 'one trace, or of two'
t trace "$T" --html "$DIR/x.html" --export "$DIR/x.csv"
refuse 2 'one at a time'
t trace "$T" --html "$DIR/x.html" --norms
refuse 2 'nothing that is recorded'
t trace "$T" --train -o "$DIR/x" --html "$DIR/x.html"
refuse 2 'no other files'
t trace "$T" -m "$DIR/notok.gguf" --html "$DIR/x.html"
refuse 1 'no tokenizer'
t trace "$DIR/text" --html "$DIR/x.html"
refuse 1 'text'
ok "something was left behind" ! -e "$DIR/x.html"

# In a budget that not all experts fit, where they were and how long they were waited for is recorded.
"$GEN" "$DIR/wide.gguf" --tiny --embd 512 --ff 512 --layers 3 --experts 24 --used 3 --byte-vocab 2>/dev/null
t trace -m "$DIR/wide.gguf" -p 'a hat' --decode 12 -c 64 --mem 1M -o "$DIR/x"
expect 3 '--mem'
least=$(sed -n 's/.*--mem \([0-9]*\)[0-9.]*M.*/\1/p' "$DIR/err")
t trace -m "$DIR/wide.gguf" -p 'a hat' --decode 12 -c 64 --mem $((least + 10))M -o "$DIR/wide-trace.gguf"
expect 0
# Other weights under the same header are another model.
"$GEN" "$DIR/twin.gguf" --tiny --embd 512 --ff 512 --layers 3 --experts 24 --used 3 --byte-vocab --seed 2 2>/dev/null
ok "the twin is no twin" "$(stat -c %s "$DIR/twin.gguf")" = "$(stat -c %s "$DIR/wide.gguf")"
t run -m "$DIR/wide.gguf" -p x -n 1 -c 64 --routes "$DIR/wide-trace.gguf"
expect 0
t run -m "$DIR/twin.gguf" -p x -n 1 -c 64 --routes "$DIR/wide-trace.gguf"
refuse 1 'another model'
t replay "$DIR/wide-trace.gguf"
expect 0
ok "nothing recorded of memory" "$(grep -c '^recorded: [0-9.]* % of the experts in memory, [0-9.]* ms' "$DIR/out")" = 1
t replay "$DIR/wide-trace.gguf" --json
expect 0
ok "nothing recorded in JSON" "$(grep -c '"recorded_uses": 108' "$DIR/out")" = 1

# ---- replay ----
t replay "$T" --slots 25%,50%,100%
expect 0
for p in lru lfu lrfu static 'plec + previous' min 'nothing read twice'; do
    ok "no $p in the table" "$(grep -c "^$p " "$DIR/out")" -ge 1
done
t replay "$T" --policy lru,min --slots 4,8 --predictor oracle --ahead 2
expect 0
ok "an unwanted policy" "$(grep -c '^lfu' "$DIR/out")" = 0
ok "an oracle that is wrong" "$(grep '^of all, k' "$DIR/out" | grep -c '100.0 *100.0')" = 1
t replay "$T" --slots 1
expect 0
ok "a size that does not fit is a dash" "$(grep '^lru' "$DIR/out" | head -1 | grep -c -- '-$')" = 1
t replay "$T" "$DIR/one.gguf" --json
expect 0
if command -v python3 >/dev/null; then
    ok "no JSON" "$(python3 -c "
import json
r = json.load(open('$DIR/out'))
assert all(x['recall'] <= x['recall_2k'] for x in r if 'recall' in x)
r = [x for x in r if 'policy' in x]
best = {x['size']: x['hits'] for x in r if x['policy'] == 'min' and x['trace'].endswith('/t.gguf')}
print(all(0 <= x['hits'] <= x['uses'] and x['reads'] + x['hits'] == x['uses'] for x in r) and
      all(x['hits'] <= best[x['size']] for x in r if x['trace'].endswith('/t.gguf') and not x['ahead']))")" = True
fi
t replay "$DIR/one.gguf"
expect 0 'no prompt to take frequencies from'
ok "static without frequencies" "$(grep -c '^static' "$DIR/out")" = 0
t replay "$T" --selective --margin 2
expect 0
ok "no uploads" "$(grep -c '^admitted' "$DIR/out")" = 1
printf 'ram_read_n_gb_s 10\ndisk_random_gb_s 1\n' >"$DIR/machine"
t replay "$T" --machine "$DIR/machine" --slots curve --pins 5
expect 0
ok "no speeds" "$(grep -c '^modelled tokens/s' "$DIR/out")" = 1
ok "a curve of 16 sizes" "$(grep -m1 -c '1%.* 80%$' "$DIR/out")" = 1
ok "not five pins" "$(grep '^layer' "$DIR/out" | cut -c11- | wc -w)" = 5
t replay "$T" --json --pins 3
expect 0
ok "no pins in JSON" "$(grep -c '"pins": \[\[[0-9]*, [0-9]*, [0-9]*\], ' "$DIR/out")" = 1
t replay "$T" --machine "$DIR/machine"
expect 0
ok "no modelled times" "$(grep -c '^modelled ms' "$DIR/out")" = 1

t replay
refuse 2 'something is missing'
t replay "$T" --slots 5x
refuse 2 'neither a share nor a number'
t replay "$T" --slots 0%
refuse 2 'no share'
t replay "$T" --policy mru
refuse 2 "unknown policy 'mru'"
t replay "$DIR/none"
refuse 1 'No such file'
t replay "$M"
refuse 1 'not a trace'
t replay "$T" --predictor "$M"
refuse 1 'not a predictor'
: >"$DIR/nothing"
t replay "$T" --machine "$DIR/nothing"
refuse 1 'no measured'

# ---- fitting ----
t trace --train "$DIR/long-trace.gguf" -o "$DIR/p.gguf" --passes 2
expect 0 'pass 2 of 2'
t replay "$T" --predictor "$DIR/p.gguf"
expect 0
ok "no path predictor" "$(grep -c '^plec + path' "$DIR/out")" -ge 2
t replay "$DIR/notok-trace.gguf" --predictor "$DIR/p.gguf"
refuse 1 'another model'
t trace --train "$DIR/long-trace.gguf" "$DIR/notok-trace.gguf" -o "$DIR/x"
refuse 1 'another model'
t trace --train -o "$DIR/x"
refuse 2 'the traces to learn from'
t trace --train -m "$M" "$T" -o "$DIR/x"
refuse 2 'no model'
ok "something was left behind" ! -e "$DIR/x"

# ---- a model that replays the record ----
"$GEN" "$DIR/carry.gguf" --tiny --embd 128 --trace "$T" 2>/dev/null || fail "gen_model --trace"
t run -m "$DIR/carry.gguf" -p '[3]' -n 8 --temp 0
expect 0
ok "it does not walk through the trace" "$(cat "$DIR/out")" = '[4][5][6][7][8][9][10][11]'
# row 0 has id 261; everything from the start, one token at a time, must route as the record
n=$(("$("$BIN" replay "$T" --slots 8 --policy lru --json | sed -n 's/.*"tokens": \([0-9]*\).*/\1/p')"))
t trace -m "$DIR/carry.gguf" --ids 261 --decode $((n + 5)) -o "$DIR/carried.gguf"
expect 0
"$GEN" "$DIR/bad.gguf" --tiny --trace "$DIR/text" 2>/dev/null && fail "a text as a trace"
"$GEN" "$DIR/bad.gguf" --tiny --embd 128 --experts 16 --trace "$T" 2>/dev/null && fail "another shape"
ok "something was left behind" ! -e "$DIR/bad.gguf"
finish
