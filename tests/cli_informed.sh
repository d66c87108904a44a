#!/usr/bin/env bash
# Informed routing from outside: forecasters fitted, the same bits however a text is cut and computed, what
# is said of it, memory that experts do not fit, and errors.
. "$(dirname "$0")/clilib.sh"
begin
input ''
for i in $(seq 120); do echo "the hat in the inn and a rat, $i; the cat sat $((i * 7 % 50))"; done >"$DIR/text"
F=$DIR/f.gguf
IDS=$(seq -s, 30 80)

t trace --fit-forecasters -m "$M" -f "$DIR/text" -o "$F" -c 128
expect 0
ok "no prices" "$(grep -c '^judged *25 %' "$DIR/out")" = 1
ok "nothing beside them" "$(grep -cE "^(left out|forecast) by lot|^least gate weight" "$DIR/out")" = 12
ok "no KL that rises" "$(awk '$1 == "judged" {k = $6; if (k < last) bad = 1; last = k} END {print bad + 0}' "$DIR/out")" = 0
cp "$F" "$DIR/again"
t trace --fit-forecasters -m "$M" -f "$DIR/text" -o "$F" -c 128 -t 1
expect 0
ok "another fit" "$(cmp "$F" "$DIR/again" && echo same)" = same

# ---- the same bits in every cut ----
t logits -m "$M" --ids "$IDS" -o "$DIR/plain"
expect 0
A="--forecasters $F --approximate 40%"
t logits -m "$M" --ids "$IDS" -o "$DIR/whole" $A
expect 0 'approximated [0-9.]* % of feed-forwards .40 % asked for., 0 did not run; price'
ok "nothing was approximated" "$(cmp -s "$DIR/whole" "$DIR/plain" || echo differs)" = differs
for how in '-ub 7' '--decode' '-t 1 -ub 16' '-b 32 -ub 8'; do
    t logits -m "$M" --ids "$IDS" -o "$DIR/cut" $A $how
    expect 0
    ok "other bits with $how" "$(cmp "$DIR/cut" "$DIR/whole" && echo same)" = same
done
t logits -m "$M" --ids "$IDS" -o "$DIR/cut" $A --decode
expect 0 ', [1-9][0-9]* did not run'
t logits -m "$M" --ids "$IDS" -o "$DIR/cut" --forecasters "$F" --approximate 0%
expect 0
ok "0 % is not the model as it is" "$(cmp "$DIR/cut" "$DIR/plain" && echo same)" = same
t run -m "$M" -p 'the cat' -n 12 --temp 0 $A
expect 0 'approximated'

# ---- experts that are not in memory are not read ----
"$GEN" "$DIR/wide.gguf" --tiny --embd 256 --ff 512 --layers 3 --experts 24 --used 3 --byte-vocab 2>/dev/null
head -n 20 "$DIR/text" >"$DIR/short"
t trace --fit-forecasters -m "$DIR/wide.gguf" -f "$DIR/short" -o "$DIR/w.gguf" -c 64
expect 0
t logits -m "$DIR/wide.gguf" --ids 7 -o "$DIR/x" -c 64 --mem 1M
expect 3 '--mem'
least=$(sed -n 's/.*--mem \([0-9]*\)[0-9.]*M.*/\1/p' "$DIR/err")
process() { # ARGS...: its bytes in a plan with them
    "$BIN" plan -m "$DIR/wide.gguf" -c 64 --mem 40M --json "$@" | sed -n 's/.*"process":[^0-9]*\([0-9]*\).*/\1/p'
}
with=$(process --forecasters "$DIR/w.gguf" --approximate 50%)
ok "the plan does not know of the forecasters" "$((with > $(process)))" = 1
t logits -m "$DIR/wide.gguf" --ids "$IDS" -c 64 --decode -o "$DIR/home" --forecasters "$DIR/w.gguf" --approximate 50%
expect 0
t logits -m "$DIR/wide.gguf" --ids "$IDS" -c 64 --decode -o "$DIR/away" --forecasters "$DIR/w.gguf" --approximate 50% \
    --mem $((least + 10))M
expect 0 ', [1-9][0-9]* did not run'
ok "other bits from disk" "$(cmp "$DIR/home" "$DIR/away" && echo same)" = same

# ---- errors ----
t run -m "$M" -p x -n 1 --approximate 25%
refuse 2 'go together'
t run -m "$M" -p x -n 1 --forecasters "$F" --approximate much
refuse 2 '25%, say'
t run -m "$M" -p x -n 1 --forecasters "$F" --approximate 101%
refuse 2 '25%, say'
t run -m "$DIR/wide.gguf" -p x -n 1 $A
refuse 1 'another model'
t run -m "$M" -p x -n 1 --forecasters "$M" --approximate 25%
refuse 1 'no forecasters'
t run -m "$M" -p x -n 1 --forecasters "$DIR/text" --approximate 25%
refuse 1 'holds no forecasters, or is damaged: .tessera trace --fit-forecasters'
head -c $(($(size "$F") - 64)) "$F" >"$DIR/cut.gguf"
t run -m "$M" -p x -n 1 --forecasters "$DIR/cut.gguf" --approximate 25%
refuse 1 'cut.gguf'
t trace --fit-forecasters -m "$M" -p 'too short' -o "$DIR/x.gguf"
refuse 1 'too few|too short'
t trace --fit-forecasters -m "$M" -f "$DIR/text"
refuse 2 'takes a model'
t trace --fit-forecasters -m tests/depth/mor-token.gguf --ids 1,2,3,4,5,6,7,8,9,10,11,12 -o "$DIR/x.gguf"
refuse 1 'not all rows go through its layers'
ok "something was left behind" ! -e "$DIR/x.gguf"

# ---- experts that choose a prompt's tokens ----
R='--routing expert-choice'
t run -m "$M" -p 'the cat sat in the inn and a rat' -n 12 --temp 0 $R --analyze
expect 0 'routing expert-choice: KL 0[.][0-9]* nats per token from the model.s own routing, on 12 tokens'
ok "a plan that does not say what is lossy" "$(grep -c '^routing lossy: experts choose' "$DIR/err")" = 1
cp "$DIR/out" "$DIR/chosen"
t run -m "$M" -p 'the cat sat in the inn and a rat' -n 12 --temp 0 $R
expect 0
ok "measuring changes the text" "$(cmp "$DIR/out" "$DIR/chosen" && echo same)" = same
t logits -m "$M" --ids "$IDS" -o "$DIR/cut" $R
expect 0
ok "experts did not choose" "$(cmp -s "$DIR/cut" "$DIR/plain" || echo differs)" = differs
t logits -m "$M" --ids "$IDS" -o "$DIR/cut" $R --decode
expect 0
ok "decoded tokens did not choose" "$(cmp "$DIR/cut" "$DIR/plain" && echo same)" = same
t logits -m "$M" --ids "$IDS" -o "$DIR/cut" --routing own
expect 0
ok "its own routing is another" "$(cmp "$DIR/cut" "$DIR/plain" && echo same)" = same
t plan -m "$M" $R --json
expect 0
ok "no word of it in JSON" "$(tr -d ' \t\n' <"$DIR/out" | grep -c '"routing":{"prompts":"expert_choice","lossy":true}')" = 1
t plan -m "$M"
ok "lossy without being asked" "$(grep -c lossy "$DIR/out")" = 0
t run -m "$M" -p x -n 1 --routing lots
refuse 2 'own and expert-choice are known'
t run -m "$M" -p x -n 1 $R --deterministic
refuse 2 'refuses what is lossy'
finish
