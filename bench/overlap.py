#!/usr/bin/env python3
"""How fast a token can be at most whose absent experts come from a drive, by what is known when.

    tessera trace -m MODEL -p '[0]' --decode 160 --mem 2G --predictor none --export routes.csv
    bench/overlap.py routes.csv --expert-mib 4.78 --layer-ms 0.95 --expert-ms 0.2 --drive 1.0,1.4,2.0

Takes the experts that each layer missed from a recording (columns tier_*: 0 = on disk) and prints, in milliseconds
per token, for each speed of the drive in GB/s: the drive alone; the larger of the drive's and the processors'
time, token by token (nothing can be faster); and the same when a layer's reads can only begin once its router,
or that of the layer 1, 2, ... before it, has run, every guess being right.  --layer-ms is all that a layer does
before its experts, --rest-ms what a token does outside of layers (default 0.4).  The first tokens (--skip) fill
the cache and are left out."""
import argparse
import csv


def missed(path, skip):
    steps = {}
    with open(path) as f:
        for row in csv.DictReader(f):
            tiers = [row[k] for k in row if k.startswith("tier_") and row[k] != ""]
            steps.setdefault(int(row["step"]), []).append((len(tiers), sum(t == "0" for t in tiers)))
    return [steps[s] for s in sorted(steps)][skip:]


def walk(tokens, a, read_ms, ahead):
    """Event by event: the drive reads in the order of asking, the processors run what has arrived."""
    now = drive = 0.0
    for layers in tokens:
        arrive = [[] for _ in layers]
        asked = 0
        for i, (used, absent) in enumerate(layers):
            now += a.layer_ms
            for k in range(asked, min(len(layers), i + 1 + ahead)):
                for _ in range(layers[k][1]):
                    drive = max(drive, now) + read_ms
                    arrive[k].append(drive)
                asked = k + 1
            now += (used - absent) * a.expert_ms
            for t in arrive[i]:
                now = max(now, t) + a.expert_ms
        now += a.rest_ms
    return now / len(tokens)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("routes")
    p.add_argument("--expert-mib", type=float, required=True)
    p.add_argument("--layer-ms", type=float, required=True)
    p.add_argument("--expert-ms", type=float, required=True)
    p.add_argument("--rest-ms", type=float, default=0.4)
    p.add_argument("--drive", default="1.0,1.4,2.0")
    p.add_argument("--skip", type=int, default=1)
    a = p.parse_args()
    tokens = missed(a.routes, a.skip)
    n_layers = max(len(t) for t in tokens)
    ahead = [0, 1, 2, n_layers - 1]
    print("%d tokens, %.1f experts missed by each" % (len(tokens), sum(m for t in tokens for _, m in t) / len(tokens)))
    print("GB/s,drive alone,overlap,its own router," + ",".join("%d ahead" % k for k in ahead[1:]))
    for speed in map(float, a.drive.split(",")):
        read_ms = a.expert_mib * 2**20 / speed / 1e6
        each = [(sum(m for _, m in t) * read_ms, len(t) * a.layer_ms + sum(u for u, _ in t) * a.expert_ms + a.rest_ms)
                for t in tokens]
        print("%.2f,%.1f,%.1f," % (speed, sum(d for d, _ in each) / len(each), sum(map(max, each)) / len(each)) +
              ",".join("%.1f" % walk(tokens, a, read_ms, k) for k in ahead))


if __name__ == "__main__":
    main()
