#!/usr/bin/env python3
"""How large llama-quantize's errors are on rows that tests/test_quant.c makes again.

    tests/encode/make.py LLAMA_CPP/llama-quantize build/release/bench/encode_error > tests/encode/errors.txt

96 rows of 512 weights, and how much each column matters: three generators of one kind,
s = 1103515245 s + 12345 (mod 2^31), u = s / 2^31.  A weight is a sum of four u, less 2, times 0.02,
every 53rd six times as large.  A column matters exp(2 z), z a sum of four u, less 2 (scaled to a mean
of 1 by whoever reads it).  Each line: type, sum of squared errors without importance, the weighted
sum with it.  Needs nothing but Python.
"""
import math
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

ROWS, COLS = 96, 512
TYPES = "Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4_MOE".split()


def uniform(seed):
    s = seed
    while True:
        s = (1103515245 * s + 12345) % 2**31
        yield s / 2**31


def weights():
    u = uniform(7)
    for i in range(ROWS * COLS):
        yield (sum(next(u) for _ in range(4)) - 2) * 0.02 * (6 if i % 53 == 0 else 1)


def importance():
    u = uniform(11)
    for _ in range(COLS):
        yield math.exp(2 * (sum(next(u) for _ in range(4)) - 2))


def string(s):
    return struct.pack("<Q", len(s)) + s.encode()


NAME = "blk.0.ffn_up.weight"


def model():
    ints = {"block_count": 1, "context_length": 64, "embedding_length": COLS, "feed_forward_length": ROWS,
            "attention.head_count": 4}
    keys = [string("general.architecture") + struct.pack("<I", 8) + string("llama"),
            string("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-6)]
    keys += [string("llama." + k) + struct.pack("<II", 4, v) for k, v in ints.items()]
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys)) + b"".join(keys)
    head += string(NAME) + struct.pack("<IQQIQ", 2, COLS, ROWS, 0, 0)
    return head + b"\0" * (-len(head) % 32) + b"".join(struct.pack("<f", x) for x in weights())


def main():
    quantize, error = sys.argv[1:3]
    with tempfile.TemporaryDirectory() as tmp:
        source, out, dat = (Path(tmp, n) for n in ("m.gguf", "q.gguf", "i.dat"))
        source.write_bytes(model())
        values = list(importance())
        dat.write_bytes(struct.pack("<ii", 1, len(NAME)) + NAME.encode() + struct.pack("<ii", 1, COLS) +
                        struct.pack(f"<{COLS}f", *values))
        print("# Made by tests/encode/make.py, which says what this is, with llama-quantize (llama.cpp with ggml 0.18.1).")
        for t in TYPES:
            line = []
            for extra in [], ["--imatrix", dat]:
                subprocess.run([quantize, "--pure", *extra, source, out, t], check=True, capture_output=True)
                r = subprocess.run([error, source, out, out, *extra[1:]], check=True, capture_output=True, text=True)
                line.append(r.stdout.split()[3])
            print(r.stdout.split()[0], *line)


if __name__ == "__main__":
    main()
