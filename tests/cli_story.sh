#!/usr/bin/env bash
# The bundled model says what its committed transcripts say, byte for byte: arithmetic and sampling
# are the same on every machine, so nothing less is expected of any of them.
#   tests/cli_story.sh BINARY [--update]
set -u
bin=$1
model=models/zoo/story-q8_0.gguf
want=models/zoo/transcripts.jsonl
[ -f "$model" ] || { echo "no bundled model in this tree"; exit 77; }
got=$(mktemp)
trap 'rm -f "$got"' EXIT
"$bin" run -m "$model" --batch models/zoo/prompts.jsonl >"$got" 2>/dev/null || exit 1
if [ "${2:-}" = --update ]; then cp "$got" "$want"; exit 0; fi
diff "$want" "$got" || { echo "the transcripts differ"; exit 1; }
# One session at a time and one thread: the same again.
"$bin" run -m "$model" --batch models/zoo/prompts.jsonl --parallel 1 -t 1 2>/dev/null |
    diff "$want" - || { echo "a batch of one differs"; exit 1; }
echo "20 transcripts equal"
