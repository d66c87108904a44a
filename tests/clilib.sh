# What the scripted tests of the command line share: source it, call `begin`, end with `finish`.
#
# A test runs from the repository's root with the binary as $1 and makes its models itself
# (bench/gen_model, built by `make tools`); exit 0 = passed, 1 = failed, 77 = nothing to test with.
# Every check prints one line when it fails and nothing when it passes.

set -u
BIN=$(realpath "${1:?the binary}")
FAILED=0
CHECKS=0
unset TESSERA_CPU NO_COLOR
export XDG_STATE_HOME=/dev/null/none XDG_CACHE_HOME=/dev/null/none

begin() {
    DIR=$(mktemp -d)
    trap '[ $BASHPID != $$ ] || rm -rf "$DIR"' EXIT
    GEN=${GEN:-build/release/bench/gen_model}
    [ -x "$GEN" ] || make -s "$GEN" >/dev/null 2>&1
    if [ ! -x "$GEN" ]; then
        echo "skipped: $GEN cannot be built"
        exit 77
    fi
    "$GEN" "$DIR/tiny.gguf" --tiny --byte-vocab --ctx 512 2>/dev/null &&
        "$GEN" "$DIR/long.gguf" --tiny --byte-vocab --ctx 60000 2>/dev/null &&
        "$GEN" "$DIR/notok.gguf" --tiny --n-vocab 300 2>/dev/null || {
        echo "FAILED: gen_model cannot make the test models"
        exit 1
    }
    M=$DIR/tiny.gguf
}

finish() {
    echo "$(basename "$0" .sh): $CHECKS checks, $FAILED failed"
    [ "$FAILED" = 0 ]
    exit
}

# fail TEXT: counts and shows the last run.
fail() {
    FAILED=$((FAILED + 1))
    echo "FAILED: $1"
    [ -s "$DIR/err" ] && sed 's/^/    stderr: /' "$DIR/err" | head -5
}

# t ARGS...: runs the binary; stdout to $DIR/out, stderr to $DIR/err, exit code to $RC.  Input is
# $DIR/in when a test put something there with `input`.
t() {
    LAST="tessera $*"
    timeout 60 "$BIN" "$@" <"$DIR/in" >"$DIR/out" 2>"$DIR/err"
    RC=$?
}
input() { printf "$@" >"$DIR/in"; }

# interrupt ARGS...: the same, and SIGINT as soon as something came out.
interrupt() {
    LAST="tessera $*, interrupted"
    rm -f "$DIR/out"
    "$BIN" "$@" <"$DIR/in" >"$DIR/out" 2>"$DIR/err" &
    local pid=$!
    for _ in {1..500}; do
        [ -s "$DIR/out" ] && break
        sleep 0.01
    done
    kill -INT $pid
    wait $pid
    RC=$?
}

# expect RC [PATTERN-IN-STDERR]
expect() {
    CHECKS=$((CHECKS + 1))
    [ "$RC" = "$1" ] || fail "$LAST: exit code $RC, not $1"
    [ $# -lt 2 ] || grep -qE -- "$2" "$DIR/err" || fail "$LAST: no '$2' on stderr"
}
# The same, and nothing on stdout.
refuse() {
    expect "$@"
    [ ! -s "$DIR/out" ] || fail "$LAST: something on stdout"
}
# ok TEXT CONDITION...: a condition of `test`.
ok() {
    CHECKS=$((CHECKS + 1))
    local what=$1
    shift
    test "$@" || fail "$LAST: $what"
}
# page FILE FIGURES: a page that is whole, has so many figures, and needs nothing from elsewhere.
page() {
    ok "$1 is no whole page" "$(head -c 15 "$1")$(tail -n 1 "$1")" = '<!doctype html></html>'
    ok "figures in $1" "$(grep -c '<svg class="figure"' "$1")" = "$2"
    ok "$1 needs something from elsewhere" "$(grep -cE 'https?:|<script|src=|@import|url\(' "$1")" = 0
    ok "tags of $1" "$(grep -o '<svg' "$1" | wc -l)" = "$(grep -o '</svg' "$1" | wc -l)"
}
size() { stat -c %s "$1"; }
lines() { wc -l <"$1"; }
