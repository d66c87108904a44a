#!/usr/bin/env python3
"""Writes the awkward models of tests/test_awkward.c: small, random weights, every choice a rare
one.  One seed gives one file.  Needs numpy and gguf (pip).

  make.py DIR [--only NAME,NAME] [--f32] [--logits TOOL]

Each model gets NAME.gguf and NAME.ids; with --logits also NAME.logits.f32, what llama.cpp says
(F32 cache, no flash attention) at N_POS positions, i * (n - 1) / (N_POS - 1).  TOOL MODEL OUT @IDS
writes the logits of all positions, f32 [n][n_vocab].  --f32 leaves nothing quantised: then only the
order of sums is between the two, and an error above 1e-7 is a mistake.

(gemma4's K and V are normed: there the F16 cache alone makes 3e-7.)

F16 weights are avoided, because llama.cpp rounds what meets them; what quantised products add to
the residual is kept small, because in a model this narrow a rounded activation that falls the other
way is a large error.
"""
import argparse
import os
import subprocess
import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFWriter, GGMLQuantizationType as Q, quants

N_IDS, N_POS = 300, 16

# Grouped heads, unequal counts everywhere.
BASE = dict(vocab=48, embd=32, layers=3, heads=6, kv=2, dim=12, ff=64, ff_exp=32, experts=8, used=3,
            ctx=512, other=Q.F32, exps=Q.Q8_0, down_exps=Q.Q4_0, keys={})
SQUARE = dict(heads=4, dim=8)  # where the heads must fill the embedding
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 80}
GROUPS = {"expert_group_count": 4, "expert_group_used_count": 2}
SIGMOID = {"expert_gating_func": 2, "expert_weights_scale": 2.5, "expert_weights_norm": True}
LEAD = {"leading_dense_block_count": 1}


def gemma4(windowed, **keys):
    """Keys of a gemma4 whose layers are windowed or not; K heads of 12 values, in full layers 20."""
    return {"attention.sliding_window_pattern": windowed, "attention.sliding_window": 24,
            "attention.key_length": 20, "attention.value_length": 20,
            "attention.key_length_swa": 12, "attention.value_length_swa": 12,
            "rope.dimension_count": 20, "rope.dimension_count_swa": 8, "rope.freq_base_swa": 400.0,
            "final_logit_softcapping": 3.0, "embedding_length_per_layer_input": 0, **keys}


T, F = True, False

SPECS = [
    # A llama 3.1: divisors of the angles, biases, a tied head, heads of 20.
    dict(name="llama", arch="llama", experts=0, dim=20, layers=2, qkv_bias=True, out_bias=True,
         ffn_bias=True, tied=True, rope_freqs=True,
         keys={"rope.scaling.factor": 2.0, "rope.freq_base": 5e5}),
    # A Mixtral in Q4_K: rows of 256.
    dict(name="mixtral", arch="llama", layers=2, vocab=32, embd=256, ff=32, heads=4, kv=1, dim=8,
         experts=3, used=2, exps=Q.Q4_K, down_exps=Q.Q4_0, tied=True, other=Q.Q8_0, keys=YARN),
    dict(name="qwen2", arch="qwen2", experts=0, ff=80, qkv_bias=True, output_bias=True, keys=YARN,
         **SQUARE),
    dict(name="qwen3", arch="qwen3", experts=0, dim=20, layers=2, qk_norm="head", tied=True,
         keys=YARN),
    dict(name="qwen2moe", arch="qwen2moe", qkv_bias=True, shared=64, shared_gate=True,
         keys={"expert_shared_feed_forward_length": 64, **YARN}, **SQUARE),
    dict(name="qwen3moe", arch="qwen3moe", dim=20, layers=2, qk_norm="head", tied=True,
         keys={**GROUPS, **YARN}),
    dict(name="olmoe", arch="olmoe", ff=32, heads=4, kv=4, dim=8, qk_norm="row",
         keys={**GROUPS, **YARN}),
    # Partial rotary, a dense layer first, a layer for the next token last, which must not matter.
    dict(name="glm4moe", arch="glm4moe", ff=48, heads=3, kv=1, qk_norm="head",
         qkv_bias=True, lead=1, nextn=1, layers=4, shared=64, choose_bias=True,
         ffn_norm="post_attention_norm",
         keys={"rope.dimension_count": 8, "expert_shared_count": 2, "nextn_predict_layers": 1,
               **LEAD, **SIGMOID, **GROUPS, **YARN}),
    # A window of 24, sinks, YaRN by 8, biases everywhere, clamped units that meet their clamp.
    dict(name="gpt-oss", arch="gpt-oss", layers=4, dim=8, experts=4, used=2, sinks=True,
         qkv_bias=True, out_bias=True, router_bias=True, expert_bias=True,
         ffn_norm="post_attention_norm",
         loud=True, down_exps=Q.Q8_0,
         keys={"attention.sliding_window": 24, **YARN, "rope.scaling.factor": 8.0}),
    dict(name="dots1", arch="dots1", heads=3, kv=3, ff=48, dim=16, qk_norm="head", lead=1,
         shared=64, choose_bias=True,
         keys={"expert_shared_count": 2, **LEAD, **SIGMOID, **GROUPS, **YARN}),
    dict(name="ernie4_5-moe", arch="ernie4_5-moe", lead=1, ff=48, shared=96, choose_bias=True,
         tied=True,
         keys={"expert_shared_feed_forward_length": 96, "interleave_moe_layer_step": 1, **LEAD,
               **GROUPS, **YARN}),
    dict(name="hunyuan-moe", arch="hunyuan-moe", ff=32, dim=20, heads=4, qk_norm="head", shared=96,
         layers=2, tied=True,
         keys={"expert_shared_feed_forward_length": 96, **GROUPS, **YARN}),
    dict(name="bailingmoe2", arch="bailingmoe2", layers=4, ff=48, fused_qkv=True, qk_norm="head",
         lead=1, nextn=1, shared=64, choose_bias=True, **SQUARE,
         keys={"rope.dimension_count": 4, "expert_shared_count": 2, "nextn_predict_layers": 1,
               **LEAD, **SIGMOID, **GROUPS, **YARN}),
    dict(name="minimax-m2", arch="minimax-m2", ff=32, heads=4, dim=20, layers=2, qk_norm="row",
         choose_bias=True,
         keys={"rope.dimension_count": 12, "expert_gating_func": 2, **GROUPS, **YARN}),
    dict(name="granitemoe", arch="granitemoe", ff=32, dim=8, shared=64, tied=True,
         keys={"expert_shared_feed_forward_length": 64, "logit_scale": 6.0, "residual_scale": 0.7,
               "embedding_scale": 1.5, "attention.scale": 0.21, **GROUPS, **YARN}),
    # LongRoPE with a context beyond the original one.
    dict(name="phimoe", arch="phimoe", ff=32, experts=6, used=2, qkv_bias=True, out_bias=True,
         norm_bias=True, output_bias=True, longrope=True,
         keys={"rope.scaling.attn_factor": 1.19, "rope.scaling.original_context_length": 128},
         **SQUARE),
    # Five layers: the first and the last see everything and are not rotated.
    dict(name="smallthinker", arch="smallthinker", layers=5, dim=8, experts=4, used=2, tied=True,
         keys={"attention.sliding_window": 4096, "expert_gating_func": 2, **YARN}),
    # Gemma 4 as 26B-A4B: two kinds of layers, a full one without attn_v, experts beside a unit.
    dict(name="gemma4", arch="gemma4", layers=4, tied=True, ff=32,
         keys=gemma4([T, T, F, T], **{"attention.head_count_kv": [3, 3, 2, 3]})),
    # As E2B: an input for every layer, and the last three look at K and V of the two before, although
    # one has tensors for its own.
    dict(name="gemma4-small", arch="gemma4", layers=5, experts=0, heads=4, tied=True, per_layer=8,
         ff=32, ff_late=64, spare_kv=4,
         keys=gemma4([T, F, T, F, T], **{"attention.shared_kv_layers": 3,
                                         "rope.scaling.type": "linear",
                                         "rope.scaling.factor": 2.0,
                                         "feed_forward_length": [32] * 2 + [64] * 3,
                                         "embedding_length_per_layer_input": 8})),
]


def q4_k(rng, rows, cols, std):
    """Valid random blocks with weights of that spread: half d, dmin, scales[12], 4-bit q[256]."""
    n = rows * cols // 256
    s = rng.integers(32, 64, (n, 8), dtype=np.uint8)
    lo = s[:, :4] | (s[:, 4:] >> 4) << 6
    hi = (s[:, 4:] & 15) | (s[:, 4:] & 15) << 4
    d = (std / (16 / np.sqrt(12) * 48) * rng.uniform(0.8, 1.2, (n, 1))).astype(np.float16)
    m = (7.5 * d).astype(np.float16)
    q = rng.integers(0, 256, (n, 128), dtype=np.uint8)
    parts = [d.view(np.uint8), m.view(np.uint8), lo, lo, hi, q]
    return np.concatenate(parts, axis=1).reshape(rows, cols // 256 * 144)


class Model:
    def __init__(self, path, spec, f32):
        self.s = {**BASE, **spec}
        self.f32 = f32
        self.w = GGUFWriter(path, spec["arch"])
        self.rng = np.random.default_rng(spec.get("seed", 7))

    def put(self, name, shape, qtype=Q.F32, std=None, mean=0.0):
        """shape as numpy has it: rows first."""
        if std is None:
            std = (0.25 if "_down" in name or "_output" in name else 1.0) / np.sqrt(shape[-1])
        if self.f32 or shape[-1] % GGML_QUANT_SIZES[qtype][0]:
            qtype = Q.F32
        if qtype == Q.Q4_K:
            data = q4_k(self.rng, int(np.prod(shape[:-1])), shape[-1], std)
            data = data.reshape(*shape[:-1], -1)
        else:
            x = (mean + std * self.rng.standard_normal(shape)).astype(np.float32)
            data = x if qtype == Q.F32 else quants.quantize(x, qtype)
        self.w.add_tensor(name, data, raw_dtype=qtype)

    def norm(self, name, n):
        self.put(name + ".weight", (n,), Q.F32, 0.2, 1.0)
        if self.s.get("norm_bias"):
            self.put(name + ".bias", (n,), Q.F32, 0.2)

    def bias(self, flag, name, shape, std=0.2):
        if self.s.get(flag):
            self.put(name + ".bias", shape, Q.F32, std)

    def keys(self):
        s, w, a = self.s, self.w, self.s["arch"] + "."
        w.add_name("awkward " + s["name"])
        w.add_tokenizer_model("no_vocab")
        keys = {
            "vocab_size": s["vocab"], "context_length": s["ctx"], "embedding_length": s["embd"],
            "block_count": s["layers"], "feed_forward_length": s["ff"],
            "attention.head_count": s["heads"], "attention.head_count_kv": s["kv"],
            "attention.key_length": s["dim"], "attention.value_length": s["dim"],
            "rope.dimension_count": s["dim"], "rope.freq_base": 8000.0,
            "attention.layer_norm_rms_epsilon": 1e-6,
        }
        if s["experts"]:
            keys.update({"expert_count": s["experts"], "expert_used_count": s["used"],
                         "expert_feed_forward_length": s["ff_exp"]})
        keys.update(s["keys"])
        put = {bool: w.add_bool, int: w.add_uint32, float: w.add_float32, str: w.add_string,
               list: w.add_array}
        for name, v in keys.items():
            put[type(v)](a + name, v)

    def attention(self, b):
        s = self.s
        embd, dim, other = s["embd"], s["dim"], s["other"]
        nq, nkv = s["heads"] * dim, s["kv"] * dim
        self.norm(b + "attn_norm", embd)
        if s.get("fused_qkv"):
            self.put(b + "attn_qkv.weight", (nq + 2 * nkv, embd), other)
        else:
            for stem, n in (("attn_q", nq), ("attn_k", nkv), ("attn_v", nkv)):
                self.put(b + stem + ".weight", (n, embd), other)
                self.bias("qkv_bias", b + stem, (n,), 0.5)
        if s.get("qk_norm"):
            row = s["qk_norm"] == "row"
            self.put(b + "attn_q_norm.weight", (nq if row else dim,), Q.F32, 0.3, 1.5)
            self.put(b + "attn_k_norm.weight", (nkv if row else dim,), Q.F32, 0.3, 1.5)
        if s.get("sinks"):
            self.put(b + "attn_sinks.weight", (s["heads"],), Q.F32, 1.0, 2.0)
        self.put(b + "attn_output.weight", (embd, nq), other)
        self.bias("out_bias", b + "attn_output", (embd,), 0.05)

    def unit(self, b, suffix, ff, kind):
        s = self.s
        self.put(b + f"ffn_gate{suffix}.weight", (ff, s["embd"]), kind)
        self.put(b + f"ffn_up{suffix}.weight", (ff, s["embd"]), kind)
        self.put(b + f"ffn_down{suffix}.weight", (s["embd"], ff), kind)
        for stem, n in (("gate", ff), ("up", ff), ("down", s["embd"])):
            self.bias("ffn_bias", b + f"ffn_{stem}{suffix}", (n,), 0.1)

    def experts(self, b):
        s = self.s
        embd, ne, ff = s["embd"], s["experts"], s["ff_exp"]
        std = 3.0 / np.sqrt(embd) if s.get("loud") else None
        self.put(b + "ffn_gate_inp.weight", (ne, embd), Q.F32, 2.0 / np.sqrt(embd))
        self.bias("router_bias", b + "ffn_gate_inp", (ne,), 0.5)
        if s.get("choose_bias"):
            self.put(b + "exp_probs_b.bias", (ne,), Q.F32, 0.3)
        self.put(b + "ffn_gate_exps.weight", (ne, ff, embd), s["exps"], std)
        self.put(b + "ffn_up_exps.weight", (ne, ff, embd), s["exps"], std)
        self.put(b + "ffn_down_exps.weight", (ne, embd, ff), s["down_exps"],
                 (0.02 if s.get("loud") else 0.1) / np.sqrt(ff))
        for stem, n in (("gate", ff), ("up", ff), ("down", embd)):
            self.bias("expert_bias", b + f"ffn_{stem}_exps", (ne, n), 0.2)
        if s.get("shared"):
            self.unit(b, "_shexp", s["shared"], Q.Q8_0)
        if s.get("shared_gate"):
            self.put(b + "ffn_gate_inp_shexp.weight", (embd,))

    def gemma4_attention(self, b, l):
        s, k = self.s, self.s["keys"]
        full = not k["attention.sliding_window_pattern"][l]
        own = l < s["layers"] - k.get("attention.shared_kv_layers", 0) or l == s.get("spare_kv")
        dim = k["attention.key_length" if full else "attention.key_length_swa"]
        kv = k.get("attention.head_count_kv", s["kv"])
        nq, nkv = s["heads"] * dim, (kv[l] if isinstance(kv, list) else kv) * dim
        self.norm(b + "attn_norm", s["embd"])
        self.put(b + "attn_q.weight", (nq, s["embd"]), s["other"])
        self.put(b + "attn_q_norm.weight", (dim,), Q.F32, 0.1, 0.5)
        if own:
            self.put(b + "attn_k.weight", (nkv, s["embd"]), s["other"])
            self.put(b + "attn_k_norm.weight", (dim,), Q.F32, 0.1, 0.5)
        if own and (s["experts"] == 0 or not full):
            self.put(b + "attn_v.weight", (nkv, s["embd"]), s["other"])
        self.put(b + "attn_output.weight", (s["embd"], nq), s["other"])
        self.norm(b + "post_attention_norm", s["embd"])

    def gemma4_layer(self, b, l):
        s = self.s
        late = l >= s["layers"] - s["keys"].get("attention.shared_kv_layers", 0)
        self.gemma4_attention(b, l)
        self.norm(b + "ffn_norm", s["embd"])
        self.unit(b, "", s["ff_late"] if late else s["ff"], Q.F32)
        self.put(b + "post_ffw_norm.weight", (s["embd"],), Q.F32, 0.1, 0.5)
        if s["experts"]:
            self.norm(b + "post_ffw_norm_1", s["embd"])
            self.norm(b + "pre_ffw_norm_2", s["embd"])
            self.put(b + "post_ffw_norm_2.weight", (s["embd"],), Q.F32, 0.05, 0.2)
            self.put(b + "ffn_gate_inp.scale", (s["embd"],), Q.F32, 1.0, 6.0)
            self.put(b + "ffn_down_exps.scale", (s["experts"],), Q.F32, 0.3, 1.0)
            self.experts(b)
        if s.get("per_layer"):
            self.put(b + "inp_gate.weight", (s["per_layer"], s["embd"]))
            self.put(b + "proj.weight", (s["embd"], s["per_layer"]))
            self.put(b + "post_norm.weight", (s["embd"],), Q.F32, 0.1, 0.5)
        self.put(b + "layer_output_scale.weight", (1,), Q.F32, 0.1, 0.9)

    def layer(self, l):
        b, s = f"blk.{l}.", self.s
        if s["arch"] == "gemma4":
            self.gemma4_layer(b, l)
            return
        self.attention(b)
        self.norm(b + s.get("ffn_norm", "ffn_norm"), s["embd"])
        if s["experts"] and l >= s.get("lead", 0):
            self.experts(b)
        else:
            self.unit(b, "", s["ff"], Q.F32)
        if l >= s["layers"] - s.get("nextn", 0):
            self.put(b + "nextn.eh_proj.weight", (s["embd"], 2 * s["embd"]), Q.Q8_0)
            for name in ("enorm", "hnorm", "shared_head_norm"):
                self.norm(b + "nextn." + name, s["embd"])
            if s["arch"] == "bailingmoe2":
                self.norm(b + "layer_output_norm", s["embd"])

    def write(self):
        s = self.s
        self.keys()
        half = s.get("keys", {}).get("rope.dimension_count", s["dim"]) // 2
        self.put("token_embd.weight", (s["vocab"], s["embd"]), Q.F32, 0.4 if s.get("tied") else 1.0)
        if s.get("rope_freqs"):
            self.w.add_tensor("rope_freqs.weight", np.linspace(1, 8, half, dtype=np.float32))
        if s["arch"] == "gemma4":  # the angles of three pairs, the others are not turned
            self.w.add_tensor("rope_freqs.weight",
                              np.where(np.arange(half) < 3, 1, 1e30).astype(np.float32))
        if s.get("per_layer"):
            n = s["per_layer"]
            self.put("per_layer_token_embd.weight", (s["vocab"], n * s["layers"]), Q.Q8_0)
            self.put("per_layer_model_proj.weight", (n * s["layers"], s["embd"]))
            self.put("per_layer_proj_norm.weight", (n,), Q.F32, 0.2, 1.0)
        if s.get("longrope"):
            self.w.add_tensor("rope_factors_long.weight", np.linspace(1, 9, half, dtype=np.float32))
            self.w.add_tensor("rope_factors_short.weight",
                              np.linspace(1, 1.3, half, dtype=np.float32))
        for l in range(s["layers"]):
            self.layer(l)
        self.norm("output_norm", s["embd"])
        if not s.get("tied"):
            self.put("output.weight", (s["vocab"], s["embd"]), Q.F32, 1 / np.sqrt(s["embd"]))
        self.bias("output_bias", "output", (s["vocab"],), 0.3)
        self.w.write_header_to_file()
        self.w.write_kv_data_to_file()
        self.w.write_tensors_to_file()
        self.w.close()


def logits(tool, base):
    env = dict(os.environ, KV="f32", FA="0", THREADS="1")
    subprocess.run([tool, base + ".gguf", base + ".all", "@" + base + ".ids"], env=env, check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    x = np.fromfile(base + ".all", "<f4").reshape(N_IDS, -1)
    os.remove(base + ".all")
    x[[i * (N_IDS - 1) // (N_POS - 1) for i in range(N_POS)]].tofile(base + ".logits.f32")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("dir")
    p.add_argument("--only", default="")
    p.add_argument("--f32", action="store_true")
    p.add_argument("--logits")
    a = p.parse_args()
    for spec in SPECS:
        if a.only and spec["name"] not in a.only.split(","):
            continue
        base = f"{a.dir}/{spec['name']}"
        Model(base + ".gguf", spec, a.f32).write()
        ids = np.random.default_rng(spec.get("seed", 7) + 1).integers(0, {**BASE, **spec}["vocab"],
                                                                      N_IDS)
        with open(base + ".ids", "w", encoding="ascii") as out:
            out.write(",".join(map(str, ids)) + "\n")
        if a.logits:
            logits(a.logits, base)


main()
