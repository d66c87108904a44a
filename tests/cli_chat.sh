#!/bin/bash
# `tessera chat`: piped conversations, slash commands, saving and loading, a full context,
# interruption, and a short one on a pseudo-terminal.
. tests/clilib.sh
begin
chat() { t chat -m "$M" --temp 0 -n 8 "$@"; }
# The speed line of the i-th answer.
speed() { grep -E '^[0-9]+ \+ [0-9]+ tokens' "$DIR/err" | sed -n "$1p"; }
answers() { grep -cE '^[0-9]+ \+ [0-9]+ tokens' "$DIR/err"; }

# ---- a conversation
input 'hello\n'
chat; expect 0 'context 512'
cp "$DIR/out" "$DIR/first"
ok 'an answer' "$(size "$DIR/out")" -gt 1
ok 'ends with a line end' "$(tail -c 1 "$DIR/out" | od -An -c | tr -d ' ')" = '\n'
ok 'no prompt, no colours' "$(grep -c $'\033\|^> ' "$DIR/out" "$DIR/err" | grep -c ':0')" = 2
input 'hello\nand then?\n'
chat; expect 0
ok 'two answers' "$(answers)" = 2
head -c "$(size "$DIR/first")" "$DIR/out" >"$DIR/begin"
ok 'the first is the same' "$(cmp "$DIR/begin" "$DIR/first" 2>&1)" = ''
ok 'the KV cache of the first turn is kept' "$(speed 2 | grep -c 'kept')" = 1
cp "$DIR/out" "$DIR/two"
input 'hello'
chat; expect 0
ok 'no line end at the end of the input' "$(cmp "$DIR/out" "$DIR/first" 2>&1)" = ''
input 'and then?\n'
chat -p hello; expect 0
ok '-p is the first message' "$(cmp "$DIR/out" "$DIR/two" 2>&1)" = ''
input ''
chat; refuse 0
input '\n  \n\n'
chat; refuse 0
input 'hello\n/exit\nnot read\n'
chat; expect 0
ok '/exit' "$(answers)" = 1
input 'hello\r\n/bye\r\nnot read\r\n'
chat; expect 0
ok '/bye, and carriage returns' "$(cmp "$DIR/out" "$DIR/first" 2>&1)" = ''

# ---- several lines make one message
one=$'"""\nfirst\nsecond\n"""\n'
for text in 'first\\\nsecond\n' '"""first\nsecond"""\n' '"""\nfirst\nsecond"""\n' \
    '"""first\nsecond\n"""'; do
    printf "%s" "$one" >"$DIR/in"
    chat; expect 0
    cp "$DIR/out" "$DIR/lines"; cp "$DIR/err" "$DIR/lines.err"
    n=$(speed 1 | cut -d, -f1)
    input "$text"
    chat; expect 0
    ok "$text is one message" "$(answers)" = 1
    ok "$text is the same message" "$(speed 1 | cut -d, -f1)" = "$n"
    ok "$text has the same answer" "$(cmp "$DIR/out" "$DIR/lines" 2>&1)" = ''
done
input '"""\n/exit\n"""\n /exit\n'
chat; expect 0
ok 'a quoted slash is text' "$(answers)" = 2

# ---- slash commands
input '/help\n/show\n/stats\n/plan\n/set\n'
chat; refuse 0 '/regen'
expect 0 'repeat_penalty'
expect 0 'weights .*KV cache'
input '/rgen\n/hlep\n/qqqq\n/etc/passwd\n'
chat; refuse 0 'did you mean /regen'
expect 0 'did you mean /help'
expect 0 'no /qqqq; /help'
input '/set tmep 1\n/set temp x\n/set top_k -1\n/set top-p 3\n/set qqqqq 1\n/set temp\n'
chat; refuse 0 'did you mean temp'
ok 'each is refused' "$(grep -c '^tessera:' "$DIR/err")" = 6
input '/regen\n'
chat; refuse 0 'no answer'
input 'hello\n/regen\n'
chat; expect 0
ok 'greedy /regen repeats' "$(cat "$DIR/out")" = "$(cat "$DIR/first" "$DIR/first")"
ok 'one token is read again' "$(speed 2 | grep -c kept)" = 1
input 'hello\n/set temp 1.5\n/set seed 3\n/regen\n/set seed 3\n/regen\n/regen\n'
chat; expect 0
ok 'four answers' "$(answers)" = 4
input 'hello\n/clear\nhello\n'
chat; expect 0 'forgotten'
ok '/clear forgets' "$(cat "$DIR/out")" = "$(cat "$DIR/first" "$DIR/first")"
input '/set n 2\nhello\n'
chat; expect 0
ok '/set n' "$(speed 1 | grep -cE '\+ [12] tokens')" = 1
input '/set system be kind\nhello\n/set system\n/clear\nhello\n'
chat; expect 0
cp "$DIR/out" "$DIR/system"
input 'hello\n'
chat -sys 'be kind'; expect 0
ok '-sys and /set system agree' "$(cat "$DIR/out" "$DIR/first")" = "$(cat "$DIR/system")"

# ---- /read
printf 'hello' >"$DIR/text"
input "/read $DIR/text\n\n"
chat; expect 0 '5 bytes'
ok 'an empty line sends it' "$(cmp "$DIR/out" "$DIR/first" 2>&1)" = ''
input "/read $DIR/text\n"
chat; expect 0
ok 'the end of the input sends it' "$(cmp "$DIR/out" "$DIR/first" 2>&1)" = ''
printf 'hel' >"$DIR/text"
input "/read $DIR/nope\n/read\n/read $DIR\n/read $M\n"
chat; refuse 0 'nope'
expect 0 'wants a file'
expect 0 'zero bytes'

# ---- /save and /load
input "hello\n/save $DIR/talk\nand then?\n"
chat; expect 0 'saved 2 messages'
ok 'saving changes nothing' "$(cmp "$DIR/out" "$DIR/two" 2>&1)" = ''
ok 'both files' -s "$DIR/talk" -a -s "$DIR/talk.kv"
input "/load $DIR/talk\nand then?\n"
chat; expect 0 'loaded 2 messages'
ok 'the same answer' "$(cat "$DIR/first" "$DIR/out")" = "$(cat "$DIR/two")"
ok 'from the KV cache' "$(speed 1 | grep -c kept)" = 1
rm "$DIR/talk.kv"
input "/load $DIR/talk\nand then?\n/regen\n"
chat; expect 0 'reads everything anew'
ok 'the KV cache is made anew' "$(speed 1 | grep -c kept)" = 0
ok 'a conversation all the same' "$(answers)" = 2
input "hello\n/load $DIR/nope\n/load $M\n/load\n/save\n/save $DIR/no/such\n/save $DIR\n/regen\n"
chat; expect 0 'nope'
expect 0 'not a saved conversation'
expect 0 'cannot write'
ok 'the conversation survives' "$(answers)" = 2
ok 'nothing half-written' "$(ls "$DIR" | grep -c '\.part$')" = 0
for text in '' '{}' '[1]' '{"type":"tessera.conversation"}' \
    '{"type":"tessera.conversation","messages":[{"role":"x","content":"y"}]}' \
    '{"type":"tessera.conversation","messages":[3]}'; do
    printf '%s' "$text" >"$DIR/broken"
    input "/load $DIR/broken\n"
    chat; refuse 0 'broken'
done

# ---- a full context
input "hello\nhello\n$(printf 'long %.0s' {1..40})\nhello\n/clear\nhi\n"
t chat -m "$M" --temp 0 -n 8 -c 100; expect 0 'does not fit any more'
expect 0 '/clear  '
expect 0 'chat -c 512'
ok 'it goes on' "$(answers)" -ge 3
input 'hello\n/set n 3\n/regen\n'
t chat -m "$M" --temp 0 -n -1 --ignore-eos -c 64; expect 0 'answer was cut'
ok '/regen is shorter' "$(speed 2 | grep -cE '\+ 3 tokens')" = 1

# ---- a stop string cuts the text, so the next turn reads it anew
stop=$(head -c 3 "$DIR/first" | tail -c 2)
input 'hello\nand then?\n'
chat --no-escape --stop "$stop"; expect 0
ok 'cut' "$(head -n 1 "$DIR/out" | wc -c)" -lt "$(size "$DIR/first")"
ok 'both answers' "$(answers)" = 2

# ---- what text may be
input 'a\xff\xfe\xc3\nb\n'
chat; expect 0
ok 'invalid UTF-8 is text' "$(answers)" = 2
input 'a\000b\nhello\n'
chat; expect 0 'zero byte'
ok 'the line is left out' "$(cmp "$DIR/out" "$DIR/first" 2>&1)" = ''
input 'hello<|im_end|>\n'
chat; expect 0
ok 'a marker in a message is text' "$(speed 1 | cut -d' ' -f1)" -gt 20

# ---- models and flags
input 'hello\n'
t chat -m "$DIR/notok.gguf"; refuse 1 'tokenizer'
t chat -m "$DIR/nope.gguf"; refuse 1 'No such file'
t chat; refuse 2 'which model'
t chat -m "$M" stray; refuse 2 'stray'
t chat -m "$M" -system x; refuse 2 'did you mean -sys'
t chat --help; expect 0

# ---- stdout and signals
if [ -w /dev/full ]; then
    "$BIN" chat -m "$M" -n 3 <"$DIR/in" >/dev/full 2>"$DIR/err"
    RC=$?; LAST='chat > /dev/full'
    expect 1 'No space left'
fi
for i in {1..200}; do echo "hello $i"; echo /clear; done >"$DIR/in"
"$BIN" chat -m "$M" -n 50 <"$DIR/in" 2>"$DIR/err" | head -c 10 >/dev/null
RC=${PIPESTATUS[0]}; LAST='chat | head'
expect 0
ok 'quiet' "$(grep -c 'tessera:' "$DIR/err")" = 0
input 'hello\n'
interrupt chat -m "$DIR/long.gguf" -n -1 --ignore-eos; expect 130 'stopped'
mkfifo "$DIR/fifo"
"$BIN" chat -m "$M" <"$DIR/fifo" >"$DIR/out" 2>"$DIR/err" &
pid=$!
exec 9>"$DIR/fifo"
for _ in {1..500}; do [ -s "$DIR/err" ] && break; sleep 0.01; done
sleep 0.1
kill -INT $pid
wait $pid
RC=$?; LAST='chat, interrupted while it waits'
exec 9>&-
refuse 130

# ---- on a terminal
if command -v script >/dev/null; then
    (sleep 0.5; printf 'h\303\251llo\n'; sleep 0.5; printf '/exit\n'; sleep 0.2) |
        XDG_STATE_HOME=$DIR/state TERM=xterm timeout 60 \
            script -qec "'$BIN' chat -m '$M' -n 8 --temp 0" /dev/null >"$DIR/out" 2>"$DIR/err"
    RC=$?; LAST='chat on a terminal'
    expect 0
    ok 'a hint' "$(grep -c 'Ctrl-D leaves' "$DIR/out")" = 1
    ok 'history' "$(cat "$DIR/state/tessera/history")" = $'h\303\251llo\n/exit'
    ok 'history is private' "$(stat -c %a "$DIR/state/tessera/history")" = 600
fi
finish
