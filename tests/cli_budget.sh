# Budgets measured from outside, in control groups: the short fixed run of bench/budget.sh, and a stack of
# random codes resized between its smallest and its largest size beside fresh starts.  Skipped where no
# control group can be made, and under a sanitizer, whose own memory is many times ours.
set -u
BIN=$(realpath "${1:?the binary}")
case "$BIN" in */build/*) echo "skipped: a sanitizer takes more than any budget"; exit 77 ;; esac
B=build/release/bench
make -s $B/confined $B/gen_model $B/gen_stack $B/stack_resize >/dev/null 2>&1
BIN=$BIN bash bench/budget.sh -n 16 -s 3 || exit $?
T=$(mktemp -d)
trap 'rm -rf "$T"' EXIT
$B/gen_model "$T/f16.gguf" --tiny --byte-vocab --ctx 512 --type F16 --embd 512 --ff 512 --head-dim 64 --experts 8 --layers 3 2>/dev/null &&
    $B/gen_stack "$T/f16.gguf" "$T/stack.gguf" && $B/stack_resize "$T/stack.gguf" -n 12
