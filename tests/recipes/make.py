#!/usr/bin/env python3
"""What llama-quantize gives to every tensor: the tables that tests/test_recipe.c compares with.

    tests/recipes/make.py LLAMA_CPP/llama-quantize IMATRIX > tests/recipes/tables.txt

IMATRIX is any importance matrix that llama-quantize reads (dry runs only look whether there is one).
The models are files of a header and a hole: shapes of popular kinds at odd numbers of layers, and
the small ones of tests/awkward.  Needs nothing but Python.

tables.txt:

    model NAME KEY=VALUE ...       the keys of the header, integers ("f:" floats, "s:" strings)
    t KIND TYPE DIMS LAYERS        tensors: "blk.*.x.weight", "4096x1024", first-last or "-"
    file PATH                      or: a model that is there, relative to tests/
    t KIND                         and what is in it
    case ARGUMENTS                 of llama-quantize, behind --dry-run
    r LETTERS N,N,...              what the tensors of the kinds numbered N (in t's order, from 0)
                                   become, a letter per layer that has one; "x*" = the same in all;
                                   kinds that are nowhere listed stay as they are
"""
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

LETTER = {"f32": "F", "f16": "H", "bf16": "B", "q8_0": "8", "q6_K": "6", "q5_K": "5", "q4_K": "4",
          "q3_K": "3", "q2_K": "2", "q4_0": "a", "q4_1": "b", "q5_0": "c", "q5_1": "d",
          "iq4_nl": "n", "iq4_xs": "x", "mxfp4": "m"}
IDS = {"F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2), "Q8_0": (8, 32, 34)}
RECIPES = ("Q2_K Q2_K_S Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K Q8_0 Q4_0 Q4_1 "
           "Q5_0 Q5_1 IQ4_NL IQ4_XS MXFP4_MOE F16 BF16 F32").split()
WEIGHED = "Q4_0 Q5_0 IQ4_NL IQ4_XS Q4_K_M Q2_K_S".split()
OPTIONS = [
    "--pure Q4_K_M", "--pure MXFP4_MOE", "--output-tensor-type Q8_0 Q3_K_M",
    "--token-embedding-type Q5_K Q4_K_M", "--leave-output-tensor Q4_K_S",
    "--tensor-type attn_v=Q8_0 --tensor-type ffn_(up|gate)=IQ4_XS Q4_K_M",
    r"--tensor-type blk\.[0-3]\.ffn_down=Q6_K --tensor-type ffn_down=Q2_K Q3_K_L",
    "--token-embedding-type Q8_0 --output-tensor-type F16 F16",
    "--tensor-type attn=Q8_0 F16", "--tensor-type ATTN_K=Q8_0 Q2_K",
]


def attention(embd, q, kv, layers, biases=False):
    t = [("attn_norm.weight", "F32", (embd,)), ("attn_q.weight", "F16", (embd, q)),
         ("attn_k.weight", "F16", (embd, kv)), ("attn_v.weight", "F16", (embd, kv)),
         ("attn_output.weight", "F16", (q, embd)), ("ffn_norm.weight", "F32", (embd,))]
    if biases:
        t += [("attn_q.bias", "F32", (q,)), ("attn_output.bias", "F32", (embd,))]
    return [("blk.*." + n, ty, d, layers) for n, ty, d in t]


def dense(embd, ff, layers):
    return [("blk.*.ffn_gate.weight", "F16", (embd, ff), layers),
            ("blk.*.ffn_up.weight", "F16", (embd, ff), layers),
            ("blk.*.ffn_down.weight", "F16", (ff, embd), layers)]


def experts(embd, ff, n, layers, kind="exps"):
    dims = lambda a, b: (a, b, n) if kind == "exps" else (a, b)
    t = [(f"blk.*.ffn_gate_{kind}.weight", "F16", dims(embd, ff), layers),
         (f"blk.*.ffn_up_{kind}.weight", "F16", dims(embd, ff), layers),
         (f"blk.*.ffn_down_{kind}.weight", "F16", dims(ff, embd), layers)]
    if kind == "exps":
        t.insert(0, ("blk.*.ffn_gate_inp.weight", "F32", (embd, n), layers))
    return t


def ends(embd, vocab, tied=False):
    t = [("token_embd.weight", "F16", (embd, vocab), None), ("output_norm.weight", "F32", (embd,), None)]
    return t if tied else t + [("output.weight", "F16", (embd, vocab), None)]


def keys(arch, layers, embd, ff, heads, kv, **more):
    k = {"block_count": layers, "context_length": 4096, "embedding_length": embd,
         "feed_forward_length": ff, "attention.head_count": heads, "attention.head_count_kv": kv,
         "attention.key_length": 128, "attention.value_length": 128,
         "attention.layer_norm_rms_epsilon": 1e-6, "vocab_size": 1024}
    k.update({a.replace("__", "."): v for a, v in more.items()})
    return {"general.architecture": arch, **{f"{arch}.{a}": v for a, v in k.items()}}


def moe(arch, layers, embd, ff, heads, kv, n, used=2, **more):
    return keys(arch, layers, embd, ff, heads, kv, expert_count=n, expert_used_count=used,
                expert_feed_forward_length=ff, **more)


def models():
    V = 1024
    a = lambda n: (0, n - 1)
    yield ("qwen3moe-48x128", moe("qwen3moe", 48, 2048, 768, 32, 4, 128, 8),
           ends(2048, V) + attention(2048, 4096, 512, a(48)) + experts(2048, 768, 128, a(48)))
    yield ("qwen3moe-17x8-tied", moe("qwen3moe", 17, 512, 256, 8, 4, 8),
           ends(512, V, True) + attention(512, 1024, 512, a(17)) + experts(512, 256, 8, a(17)))
    yield ("qwen3moe-9x64-odd", moe("qwen3moe", 9, 768, 352, 12, 6, 64),
           ends(768, V) + attention(768, 1536, 768, a(9)) + experts(768, 352, 64, a(9)))
    yield ("llama-32", keys("llama", 32, 4096, 11008, 32, 32),
           ends(4096, V) + attention(4096, 4096, 4096, a(32)) + dense(4096, 11008, a(32)))
    yield ("llama-80", keys("llama", 80, 8192, 28672, 64, 8),
           ends(8192, V) + attention(8192, 8192, 1024, a(80)) + dense(8192, 28672, a(80)))
    yield ("llama-16-tied", keys("llama", 16, 2048, 8192, 32, 8),
           ends(2048, V, True) + attention(2048, 4096, 1024, a(16)) + dense(2048, 8192, a(16)))
    yield ("mixtral-32x8", moe("llama", 32, 4096, 14336, 32, 8, 8),
           ends(4096, V) + attention(4096, 4096, 1024, a(32)) + experts(4096, 14336, 8, a(32)))
    yield ("qwen2-80", keys("qwen2", 80, 8192, 29568, 64, 8),
           ends(8192, V) + attention(8192, 8192, 1024, a(80)) + dense(8192, 29568, a(80)))
    glm = moe("glm4moe", 47, 4096, 1408, 96, 8, 128, 8, expert_shared_count=1,
              leading_dense_block_count=1, nextn_predict_layers=1, expert_gating_func=2,
              expert_weights_scale=1.0, rope__dimension_count=64)
    yield ("glm4moe-47", glm,
           ends(4096, V) + attention(4096, 12288, 1024, a(47), True) + dense(4096, 10944, (0, 0)) +
           experts(4096, 1408, 128, (1, 46)) + experts(4096, 1408, 0, (1, 46), "shexp") +
           [("blk.*.nextn.eh_proj.weight", "F16", (8192, 4096), (46, 46)),
            ("blk.*.nextn.embed_tokens.weight", "F16", (4096, V), (46, 46)),
            ("blk.*.nextn.shared_head_head.weight", "F16", (4096, V), (46, 46))])
    lite = moe("deepseek2", 27, 2048, 1408, 16, 16, 64, 6, expert_shared_count=2,
               leading_dense_block_count=1, expert_weights_scale=1.0, attention__kv_lora_rank=512,
               rope__dimension_count=64, expert_gating_func=1)
    mla = [("attn_norm.weight", "F32", (2048,)), ("attn_q.weight", "F16", (2048, 3072)),
           ("attn_kv_a_mqa.weight", "F16", (2048, 576)), ("attn_kv_a_norm.weight", "F32", (512,)),
           ("attn_kv_b.weight", "F16", (512, 4096)), ("attn_output.weight", "F16", (2048, 2048)),
           ("ffn_norm.weight", "F32", (2048,))]
    yield ("deepseek2-27", lite,
           ends(2048, V) + [("blk.*." + n, ty, d, a(27)) for n, ty, d in mla] +
           dense(2048, 10944, (0, 0)) + experts(2048, 1408, 64, (1, 26)) +
           experts(2048, 2816, 0, (1, 26), "shexp"))
    v3 = moe("deepseek2", 12, 1792, 512, 16, 1, 32, 8, expert_shared_count=1,
             leading_dense_block_count=3, expert_weights_scale=2.5, attention__kv_lora_rank=512,
             attention__q_lora_rank=384, rope__dimension_count=64, expert_gating_func=2,
             attention__key_length_mla=192, attention__value_length_mla=128)
    mla = [("attn_q_a.weight", "F16", (1792, 384)), ("attn_q_a_norm.weight", "F32", (384,)),
           ("attn_q_b.weight", "F16", (384, 3072)), ("attn_kv_a_mqa.weight", "F16", (1792, 576)),
           ("attn_k_b.weight", "F16", (128, 512, 16)), ("attn_v_b.weight", "F16", (512, 128, 16)),
           ("attn_output.weight", "F16", (2048, 1792))]
    yield ("deepseek2-v3", v3,
           ends(1792, V) + [("blk.*." + n, ty, d, a(12)) for n, ty, d in mla] +
           dense(1792, 2048, (0, 2)) + experts(1792, 512, 32, (3, 11)) +
           experts(1792, 512, 0, (3, 11), "shexp"))
    oss = moe("gpt-oss", 24, 2880, 2880, 64, 8, 32, 4, attention__sliding_window=128)
    yield ("gpt-oss-24", oss,
           ends(2880, V) + attention(2880, 4096, 512, a(24), True) +
           [("blk.*.attn_sinks.weight", "F32", (64,), a(24)),
            ("blk.*.ffn_gate_exps.bias", "F32", (2880, 32), a(24)),
            ("blk.*.ffn_down_exps.bias", "F32", (2880, 32), a(24))] +
           experts(2880, 2880, 32, a(24)))
    yield ("qwen2moe-24x60", moe("qwen2moe", 24, 2048, 1408, 16, 16, 60, 4,
                                 expert_shared_feed_forward_length=5632),
           ends(2048, V) + attention(2048, 2048, 2048, a(24), True) + experts(2048, 1408, 60, a(24)) +
           experts(2048, 5632, 0, a(24), "shexp") +
           [("blk.*.ffn_gate_inp_shexp.weight", "F32", (2048,), a(24))])
    yield ("qwen3-5-odd", keys("qwen3", 5, 256, 1000, 4, 2),
           ends(256, V) + attention(256, 512, 256, a(5)) + dense(256, 1000, a(5)))


def string(s):
    return struct.pack("<Q", len(s)) + s.encode()


def header(kv, tensors):
    out, at = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(kv)), 0
    for k, v in kv.items():
        out += string(k)
        if isinstance(v, str):
            out += struct.pack("<I", 8) + string(v)
        elif isinstance(v, float):
            out += struct.pack("<If", 6, v)
        else:
            out += struct.pack("<II", 4, v)
    for name, ty, dims in tensors:
        code, block, size = IDS[ty]
        n = 1
        for d in dims:
            n *= d
        out += string(name) + struct.pack("<I", len(dims))
        out += b"".join(struct.pack("<Q", d) for d in dims) + struct.pack("<IQ", code, at)
        at = (at + n // block * size + 31) // 32 * 32
    return out + b"\0" * (-len(out) % 32), at


def expand(kinds):
    for kind, ty, dims, layers in kinds:
        for l in range(layers[0], layers[1] + 1) if layers else [None]:
            yield kind if l is None else kind.replace("*", str(l)), ty, dims


def dry_run(quantize, imatrix, path, args):
    words = [imatrix if w == "IMATRIX" else w for w in args.split()]
    p = subprocess.run([quantize, "--dry-run", *words[:-1], path, words[-1]], capture_output=True,
                       text=True)
    rows = re.findall(r"^\[ *\d+/ *\d+\] (\S+) +- \[ *(\d+)[^\]]*\], type = +(\S+), .*?(?:\((\S+)\))?$",
                      p.stdout + p.stderr, re.M)
    return rows if p.returncode == 0 else None


def kind_of(name):
    return re.sub(r"^blk\.\d+\.", "blk.*.", name)


def possible(rows):
    """Whether blocks divide the columns: types that the user gives are not checked in a dry run."""
    block = lambda ty: 256 if ty.endswith("_K") or ty == "iq4_xs" else 1 if ty[-2] in "136" else 32
    return all(int(cols) % block(now or was) == 0 for _, cols, was, now in rows)


def print_case(args, rows, number):
    letters, changed = {}, set()
    layer = lambda row: int((re.match(r"blk\.(\d+)\.", row[0]) or [0, 0])[1])
    for name, _, was, now in sorted(rows, key=layer):
        k = number[kind_of(name)]
        letters[k] = letters.get(k, "") + LETTER[now or was]
        if now:
            changed.add(k)
    print("case", args)
    groups = {}
    for k in sorted(changed):
        s = letters[k]
        groups.setdefault(s[0] + "*" if len(set(s)) == 1 else s, []).append(str(k))
    for s, ks in groups.items():
        print("r", s, ",".join(ks))


def main():
    quantize, imatrix = sys.argv[1:3]
    print("# Made by tests/recipes/make.py, which says what this is, with llama-quantize (llama.cpp with ggml 0.18.1).")
    for name, kv, kinds in models():
        tensors = list(expand(kinds))
        head, size = header(kv, tensors)
        form = lambda v: f"f:{v}" if isinstance(v, float) else f"s:{v}" if isinstance(v, str) else v
        print("model", name, *(f"{k}={form(v)}" for k, v in kv.items()))
        for kind, ty, dims, layers in kinds:
            print("t", kind, ty, "x".join(map(str, dims)), f"{layers[0]}-{layers[1]}" if layers else "-")
        with tempfile.NamedTemporaryFile(suffix=".gguf") as f:
            f.write(head)
            f.flush()
            f.truncate(len(head) + size)
            cases = RECIPES + ["--imatrix IMATRIX " + r for r in WEIGHED] + OPTIONS
            for args in cases:
                rows = dry_run(quantize, imatrix, f.name, args)
                if rows is None or not possible(rows):
                    print(f"{name}: llama-quantize cannot do {args}", file=sys.stderr)
                else:
                    assert len(rows) == len(tensors), (name, args, len(rows), len(tensors))
                    print_case(args, rows, {k[0]: i for i, k in enumerate(kinds)})
    here = Path(__file__).resolve().parent.parent
    for path in sorted((here / "awkward").glob("*.gguf")):
        print("file", path.relative_to(here))
        number = {}
        for name, *_ in dry_run(quantize, imatrix, str(path), "F16"):
            number.setdefault(kind_of(name), len(number))
        for kind in number:
            print("t", kind)
        for args in ["Q2_K", "Q3_K_M", "Q4_K_M", "IQ4_XS", "MXFP4_MOE"]:
            rows = dry_run(quantize, imatrix, str(path), args)
            if rows is None or not possible(rows):
                print(f"{path.name}: llama-quantize cannot do {args}", file=sys.stderr)
            else:
                print_case(args, rows, number)


if __name__ == "__main__":
    main()
