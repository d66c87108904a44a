#!/usr/bin/env python3
"""Vectors for the factored codec: BitStack's decomposition (arXiv 2410.23918), from its description.

    python3 tests/stack/factor.py > tests/stack/factor.bin          (NumPy)

Writes, all float32 little endian: rows, columns, rank, planes (as floats) | W [rows][columns] | the mean
squares of the columns' activations [columns] | for 1 .. planes planes: what W has become [rows][columns].

W D, D the root mean squares over their mean plus a thousandth, is taken apart plane by plane: signs, zero
counting as +, and the best approximation of rank k of the magnitudes, by a full singular value
decomposition.  Factors are rounded to halves as they are stored, and the residual is what is left then.
"""
import sys

import numpy as np

ROWS, COLUMNS, RANK, PLANES = 32, 64, 4, 4
r = np.random.default_rng(3)
w = (r.standard_normal((ROWS, COLUMNS)) * np.exp(r.standard_normal((1, COLUMNS)) * .5) *
     np.exp(r.standard_normal((ROWS, 1)) * .5) * .02).astype(np.float32)
square = np.exp(r.standard_normal(COLUMNS)).astype(np.float32)
root = np.sqrt(square.astype(np.float64))
d = (root / root.mean() + 1e-3).astype(np.float32)
left, sums, out = w * d, np.zeros_like(w), []
for _ in range(PLANES):
    sign = np.where(left >= 0, 1, -1).astype(np.float32)
    u, s, vt = np.linalg.svd(np.abs(left.astype(np.float64)), full_matrices=False)
    uk = (u[:, :RANK] * np.sqrt(s[:RANK])).astype(np.float16).astype(np.float32)
    vk = (np.sqrt(s[:RANK])[:, None] * vt[:RANK] / d).astype(np.float16).astype(np.float32)
    plane = sign * (uk @ vk)
    left, sums = left - plane * d, sums + plane
    out.append(sums)
head = np.array([ROWS, COLUMNS, RANK, PLANES], np.float32)
sys.stdout.buffer.write(b"".join(np.ascontiguousarray(a, "<f4").tobytes() for a in [head, w, square] + out))
