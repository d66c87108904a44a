#!/usr/bin/env bash
# Promised beside measured: time per decoded token on throttled variants of this machine.
#
#   bench/promise.sh [-o CSV] [-n TOKENS] [-d VARIANTS] CALIBRATION "PROMPT..." MODEL...
#
# The routes of the text file CALIBRATION and of its continuation are recorded (tessera trace); the
# continuations of the text files PROMPT, in turn, are timed; of the model nothing is in the page cache.
# VARIANTS is a file with one a line, "CPUS DISK MEM": processors, bytes per second of the drive (0 = as
# it is; needs a blkio or io control group), share of the model file in per cent that --mem has above the
# least.  Speeds are measured (tessera doctor) under the throttle right before each.
# Prints errors, their median and 90th percentile; exit code 77 where the drive cannot be throttled.
set -u
cd "$(dirname "$0")/.."
OUT= N=48 BIN=${BIN:-./tessera} LIST=
while getopts o:n:d: o; do case $o in o) OUT=$OPTARG ;; n) N=$OPTARG ;; d) LIST=$OPTARG ;; *) exit 2 ;; esac; done
shift $((OPTIND - 1))
[ $# -ge 3 ] || { sed -n '2,14p' "$0"; exit 2; }
A=$1
read -ra PROMPTS <<<"$2"
shift 2
VARIANTS=${LIST:+$(cat "$LIST")}
# Rates that bind: a control group lets bursts through while the mean of its time slice is below the rate.
VARIANTS=${VARIANTS:-"2 300000000 20
2 300000000 35
2 300000000 50
2 200000000 30
2 200000000 60
2 120000000 40
1 300000000 30
1 300000000 45
1 200000000 40
1 120000000 60"}
T=$(mktemp -d)
# The whole disk below the file system: what can be throttled.
DEV=$(lsblk -no MAJ:MIN,TYPE --inverse "$(df --output=source "$1" | tail -n 1)" 2>/dev/null | awk '$2 == "disk" { print $1; exit }')
G= V=
if mkdir /sys/fs/cgroup/blkio/tessera-promise 2>/dev/null; then G=/sys/fs/cgroup/blkio/tessera-promise V=1
elif mkdir /sys/fs/cgroup/tessera-promise 2>/dev/null; then G=/sys/fs/cgroup/tessera-promise V=2; fi
trap 'rmdir $G 2>/dev/null; rm -rf "$T"' EXIT
[ -n "$G" ] || { echo "skipped: no control group for the drive can be made here"; exit 77; }
throttle() { # BYTES_PER_SECOND
    if [ $V = 1 ]; then echo "$DEV $1" >$G/blkio.throttle.read_bps_device
    else echo "$DEV rbps=$([ "$1" = 0 ] && echo max || echo "$1")" >$G/io.max; fi
}
inside() { (echo $BASHPID >$G/cgroup.procs; exec "$@"); }
: >"$T/csv"
echo "model,cpus,disk_bytes_per_s,mem_mib,hit_promised,hit_measured,ms_promised,ms_measured,error_percent" >"$T/csv"
i=0
for M in "$@"; do
    throttle 0
    "$BIN" trace -m "$M" -f "$A" --one-by-one --decode 128 --temp 0.8 -o "$T/routes" 2>/dev/null || { echo "cannot record $M"; exit 1; }
    FILE=$(($(stat -c %s "$M") / 1048576))
    LEAST=$("$BIN" run -m "$M" -f "$A" -c 512 -n 1 --mem 1M 2>&1 | sed -n 's/.*--mem \([0-9]*\)[0-9.]*M or more.*/\1/p')
    while read -r cpus disk share; do
        [ -n "$cpus" ] || continue
        mem=$((LEAST + 1 + FILE * share / 100))
        set_cpus=(taskset -c "0-$((cpus - 1))")
        throttle "$disk" 2>/dev/null || { echo "skipped: the drive $DEV cannot be throttled"; exit 77; }
        B=${PROMPTS[i++ % ${#PROMPTS[@]}]}
        key=$T/machine
        XDG_CACHE_HOME=$T inside "${set_cpus[@]}" "$BIN" doctor --fresh -m "$M" -t "$cpus" -o "$key" >/dev/null 2>"$T/err" || { tail -3 "$T/err"; continue; }
        sync "$M" && dd if="$M" iflag=nocache count=0 2>/dev/null # what the system holds is not the drive
        inside "${set_cpus[@]}" "$BIN" run -m "$M" -f "$B" -c 512 -n "$N" --temp 0.8 -s $i --ignore-eos -t "$cpus" --mem ${mem}M \
            --machine "$key" --routes "$T/routes" --analyze >/dev/null 2>"$T/err" || { tail -3 "$T/err"; continue; }
        awk -v m="$(basename "$M")" -v c="$cpus" -v d="$disk" -v mem="$mem" '
            /^  experts in memory/ && NF >= 6 { h = $4; g = $6 }
            /^  time per token/ { p = $4; r = $6 }
            END { if (p > 0) printf "%s,%d,%d,%d,%s,%s,%s,%s,%.1f\n", m, c, d, mem, h, g, p, r, 100 * (p - r) / r }
        ' "$T/err" | tee -a "$T/csv"
    done <<<"$VARIANTS"
done
throttle 0
awk -F, 'NR > 1 { e = $9 < 0 ? -$9 : $9; print e }' "$T/csv" | sort -n | awk '
    { e[NR] = $1 } END { printf "%d variants: median error %.1f %%, 90 %% within %.1f %%\n", NR, (e[int((NR + 1) / 2)] + e[int(NR / 2) + 1]) / 2, e[int(NR * 0.9 + 0.999)] }'
[ -z "$OUT" ] || cp "$T/csv" "$OUT"
