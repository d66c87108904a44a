#!/usr/bin/env python3
"""Makes the tables of the nested codec (quant/nest_body.h): a Lloyd tree for Gaussian weights in blocks of
64 that share the best of the scales which the format can store.

    python3 tests/stack/tree.py          (NumPy; a minute)

Alternates: given the tables, the scale of each block that costs least, all depths together; given the
scaled magnitudes, the tree: the whole split in two by 2-means, each part again, five times.  Prints the
errors of every round, as shares of the energy, and the tables as integers up to 127.
"""
import numpy as np

BLOCK, BLOCKS, ROUNDS, DEPTHS = 64, 16000, 6, (2, 3, 4, 5, 6)
WEIGHT = {2: 1, 3: 1, 4: 1, 5: .5, 6: .5}  # how much a depth counts, against its own error
SCALES = (np.arange(1, 248, dtype=np.uint16) << 7).view(np.float16).astype(np.float64)


def tree(mag, weight):
    """Means of the cells of each depth, and the bounds of the deepest ones."""
    order = np.argsort(mag)
    a, w = mag[order], weight[order]
    cw = np.concatenate([[0], np.cumsum(w)])
    ca = np.concatenate([[0], np.cumsum(w * a)])
    cells, table = [(0, len(a))], {}
    for depth in DEPTHS:
        parts = []
        for lo, hi in cells:
            i = np.arange(lo + 1, hi)
            gain = (ca[i] - ca[lo]) ** 2 / (cw[i] - cw[lo]) + (ca[hi] - ca[i]) ** 2 / (cw[hi] - cw[i])
            m = i[np.argmax(gain)]
            parts += [(lo, m), (m, hi)]
        cells = parts
        table[depth] = np.array([(ca[h] - ca[l]) / (cw[h] - cw[l]) for l, h in cells])
    return table, np.array([a[l] for l, _ in cells[1:]])


def errors(x, s, code, table):
    return {p: ((np.abs(x) - s * table[p][code >> (6 - p)]) ** 2).sum() / (x * x).sum() for p in DEPTHS}


def choose(x, table, bounds, cost):
    """The scale of every block that costs least."""
    near = np.searchsorted(SCALES, np.sqrt((x * x).mean(1)))
    best, at = np.full(len(x), np.inf), np.zeros(len(x), int)
    for d in range(-8, 9):
        k = np.clip(near + d, 0, len(SCALES) - 1)
        s = SCALES[k][:, None]
        code = np.searchsorted(bounds, np.abs(x) / s)
        e = sum(c * ((np.abs(x) - s * table[p][code >> (6 - p)]) ** 2).sum(1) for p, c in cost.items())
        at[e < best], best = k[e < best], np.minimum(best, e)
    return SCALES[at][:, None]


def main():
    x = np.random.default_rng(7).standard_normal((BLOCKS, BLOCK))
    s = np.sqrt((x * x).mean(1, keepdims=True))
    for _ in range(ROUNDS):
        table, bounds = tree((np.abs(x) / s).ravel(), np.broadcast_to(s * s, x.shape).ravel())
        e = errors(x, s, np.searchsorted(bounds, np.abs(x) / s), table)
        s = choose(x, table, bounds, {p: WEIGHT[p] / e[p] for p in DEPTHS})
        e = errors(x, s, np.searchsorted(bounds, np.abs(x) / s), table)
        print({p: round(float(v), 5) for p, v in e.items()})
    for p in DEPTHS:
        print(p, np.rint(table[p] * 127 / table[6][-1]).astype(int).tolist())


main()
