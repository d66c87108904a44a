#!/usr/bin/env python3
"""Importance matrices that llama-imatrix makes of models in tests/awkward: what tests/test_imatrix.c
compares with.

    tests/imatrix/make.py LLAMA_CPP/llama-imatrix

The models have no vocabulary, and llama-imatrix wants a text: so each gets one of single letters for
the occasion, and the text is written in it.  All weights are widened to F32, as the test does, because
for others llama.cpp rounds activations in a way of its own.  The tokens are 2 chunks of 64: s = 1103515245 s + 12345
(mod 2^31, from s = 1), token = 4 + (s >> 16) % 24.  Needs nothing but Python.
"""
import struct
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODELS = "deepseek2-v3 dots1 glm4moe gpt-oss lfm2moe qwen2moe qwen3moe qwen35moe".split()
DAT = "qwen3moe"  # also in the older format
CHUNKS, CTX = 2, 64
F32, F16, Q4_0, Q8_0 = 0, 1, 2, 8
FIXED = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def tokens():
    s = 1
    for _ in range(CHUNKS * CTX):
        s = (1103515245 * s + 12345) % 2**31
        yield 4 + (s >> 16) % 24


class Reader:
    def __init__(self, data):
        self.b, self.p = data, 4

    def take(self, form):
        v = struct.unpack_from("<" + form, self.b, self.p)[0]
        self.p += struct.calcsize(form)
        return v

    def string(self):
        n = self.take("Q")
        self.p += n
        return self.b[self.p - n:self.p]

    def skip(self, kind):
        if kind == 8:
            self.string()
        elif kind == 9:
            kind, n = self.take("I"), self.take("Q")
            for _ in range(n):
                self.skip(kind)
        else:
            self.p += FIXED[kind]


def string(s):
    s = s.encode() if isinstance(s, str) else s
    return struct.pack("<Q", len(s)) + s


def vocabulary(n):
    """Tokens 4.. are letters; tokens 2 and 3 merge to token 1, so that there is a merge."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [chr(c) for c in range(ord("A"), ord("Z") + 1)]
    names = (["<e>", "!?", "!", "?"] + letters)[:n]
    return names + [f"<u{i}>" for i in range(n - len(names))]


def widen(kind, data, at, n):
    """The bytes of n weights from byte `at` as F32."""
    if kind == F32:
        return data[at:at + 4 * n]
    if kind == F16:
        return struct.pack(f"<{n}f", *struct.unpack_from(f"<{n}e", data, at))
    assert kind in (Q4_0, Q8_0)
    out = []
    for b in range(at, at + n // 32 * (18 if kind == Q4_0 else 34), 18 if kind == Q4_0 else 34):
        d = struct.unpack_from("<e", data, b)[0]
        if kind == Q8_0:
            out += [d * q for q in struct.unpack_from("<32b", data, b + 2)]
        else:
            q = data[b + 2:b + 18]
            out += [d * ((v & 15) - 8) for v in q] + [d * ((v >> 4) - 8) for v in q]
    return struct.pack(f"<{n}f", *out)


def with_vocabulary(data):
    r = Reader(data)
    version, n_tensors, n_keys = r.take("I"), r.take("Q"), r.take("Q")
    keys = []
    for _ in range(n_keys):
        at = r.p
        name = r.string()
        r.skip(r.take("I"))
        if not name.startswith(b"tokenizer."):
            keys.append(data[at:r.p])
    tensors = []
    for _ in range(n_tensors):
        name = r.string()
        dims = [r.take("Q") for _ in range(r.take("I"))]
        tensors.append((name, dims, r.take("I"), r.take("Q")))
    directory, body, start = b"", b"", (r.p + 31) // 32 * 32
    for name, dims, kind, offset in tensors:
        raw = widen(kind, data, start + offset, prod(dims))
        directory += string(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        directory += struct.pack("<IQ", F32, len(body))
        body += raw + b"\0" * (-len(raw) % 32)
        if name == b"token_embd.weight":
            n_vocab = dims[1]
    names = vocabulary(n_vocab)
    array = lambda key, kind, items: string(key) + struct.pack("<IIQ", 9, kind, len(items)) + b"".join(items)
    keys += [
        string("tokenizer.ggml.model") + struct.pack("<I", 8) + string("gpt2"),
        string("tokenizer.ggml.pre") + struct.pack("<I", 8) + string("gpt-2"),
        array("tokenizer.ggml.tokens", 8, [string(t) for t in names]),
        array("tokenizer.ggml.token_type", 5, [struct.pack("<i", 3 if t[0] == "<" else 1) for t in names]),
        array("tokenizer.ggml.merges", 8, [string("! ?")]),
        string("tokenizer.ggml.eos_token_id") + struct.pack("<II", 4, 0),
        string("tokenizer.ggml.bos_token_id") + struct.pack("<II", 4, 0),
        string("tokenizer.ggml.add_bos_token") + struct.pack("<IB", 7, 0),
    ]
    head = b"GGUF" + struct.pack("<IQQ", version, n_tensors, len(keys)) + b"".join(keys) + directory
    return head + b"\0" * (-len(head) % 32) + body, names


def main():
    with tempfile.TemporaryDirectory() as tmp:
        for name in MODELS:
            data, names = with_vocabulary((HERE.parent / "awkward" / f"{name}.gguf").read_bytes())
            model, text = Path(tmp, "model.gguf"), Path(tmp, "text")
            model.write_bytes(data)
            text.write_text("".join(names[t] for t in tokens()))
            for form in ["gguf", "dat"] if name == DAT else ["gguf"]:
                subprocess.run([sys.argv[1], "-m", model, "-f", "text", "-c", str(CTX), "-b", str(CTX), "-fa",
                                "off", "-ctk", "f32", "-ctv", "f32", "--no-repack", "--process-output",
                                "--output-format", form, "-o", HERE / f"{name}.{form}"], check=True, cwd=tmp)


if __name__ == "__main__":
    main()
