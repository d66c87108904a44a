#!/usr/bin/env bash
# Devices from the command line: the same text with and without, one line where one cannot be used.
# The CUDA plugin runs on the emulated runtime ($EMU, tests/cuda_emu).
. "$(dirname "$0")/clilib.sh"
begin
EMU=${EMU:-build/release/cuda_emu}
[ -f "$EMU/tessera_cuda.so" ] || { echo "skipped: there is no $EMU/tessera_cuda.so"; exit 77; }
EMU=$(realpath "$EMU")
"$GEN" "$DIR/moe.gguf" --tiny --byte-vocab --ctx 512 --experts 8 --used 2 2>/dev/null || exit 1
RUN=(run -m "$DIR/moe.gguf" -p hello -n 24 --temp 0 --ignore-eos)
export TESSERA_PLUGINS=$EMU
unset TEST_CUDA
input ''

t "${RUN[@]}"
cp "$DIR/out" "$DIR/want"
CHECKS=$((CHECKS + 1))
[ $RC = 0 ] && [ -s "$DIR/want" ] || fail "without a device"

# same LINE ARGS...: the same text, and a line on stderr that says LINE ("" = nothing of a device).
same() {
    local line=$1
    shift
    t "${RUN[@]}" "$@"
    CHECKS=$((CHECKS + 1))
    [ $RC = 0 ] && cmp -s "$DIR/out" "$DIR/want" || fail "$LAST: another text, or exit code $RC"
    if [ -n "$line" ]; then
        [ "$(grep -c "$line" "$DIR/err")" = 1 ] || fail "$LAST: no line, or more than one, with: $line"
    elif grep -q 'device' "$DIR/err"; then
        fail "$LAST: it speaks of a device"
    fi
}

same '' -dev sim --vram 64M
same '' -dev cuda --vram 720M
same '' -dev auto
same '' -dev none
same 'context alone takes perhaps 640' -dev cuda --vram 64M
same 'vram is ignored' -dev none --vram 64M
TEST_CUDA=driver same 'driver version is insufficient' -dev cuda
TEST_CUDA=none same 'no CUDA-capable device' -dev auto
TEST_CUDA=image same 'no kernel image' -dev cuda
TEST_CUDA=lost=400 same 'device cuda is given up.*launch failure' -dev cuda --vram 720M
TESSERA_PLUGINS=$EMU/old same 'another version of Tessera' -dev cuda
TESSERA_PLUGINS=$DIR same 'device cuda is not used: there is no plugin' -dev cuda
TESSERA_PLUGINS=$DIR same '' -dev auto
echo 'not a shared object' >"$DIR/tessera_cuda.so"
TESSERA_PLUGINS=$DIR same 'its plugin does not load' -dev cuda
TESSERA_PLUGINS=$DIR same 'its plugin does not load' -dev auto

t run -m "$DIR/moe.gguf" -p hello -dev tpu
CHECKS=$((CHECKS + 1))
[ $RC = 2 ] && grep -q 'cuda, auto, sim and none' "$DIR/err" || fail "an unknown device"
finish
