# Budgets measured from outside, in control groups: the short fixed run of bench/budget.sh.  Skipped
# where no control group can be made, and under a sanitizer, whose own memory is many times ours.
set -u
BIN=$(realpath "${1:?the binary}")
case "$BIN" in */build/*) echo "skipped: a sanitizer takes more than any budget"; exit 77 ;; esac
make -s build/release/bench/confined build/release/bench/gen_model >/dev/null 2>&1
BIN=$BIN bash bench/budget.sh -n 16 -s 3
