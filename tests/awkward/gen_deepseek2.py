#!/usr/bin/env python3
"""Writes the awkward deepseek2 models of tests/test_deepseek2.c: random weights, small, every choice
a rare one.  One seed gives one file.  Needs numpy and gguf (pip).
  gen_deepseek2.py DIR [TOOL]
The logits beside them are llama.cpp's (F32 cache, no flash attention), for N_POS positions only,
i * (n - 1) / (N_POS - 1).  TOOL MODEL OUT @IDS writes them all, f32 [n][n_vocab].

What is not an expert is F32: llama.cpp rounds what meets F16 matrices, and in a random model that
noise alone is near the bounds.  What joins the residual is kept small, because a rounded activation
that falls the other way in a quantised product is a large error in a model this narrow."""
import os
import subprocess
import sys
import numpy as np
from gguf import GGUFWriter, GGMLQuantizationType as Q, quants

N_IDS, N_POS = 300, 16
LITE = dict(
    # DeepSeek-V2-Lite's way: a plain query, the old attn_kv_b, softmax, weights as they are, fused
    # gate and up; K heads of 32 and V heads of 24; YaRN without its multiplier.
    name="deepseek2-lite", seed=11, vocab=64, embd=32, layers=3, heads=3, q_rank=0, kv_rank=24,
    nope=20, rot=12, v=24, ff=40, ff_exp=32, experts=7, used=3, shared=2, dense=1, latent=False,
    fused=True, keys=dict(rope_base=5000.0, factor=3.0, orig=96),
    types=dict(exps=Q.Q8_0, down_exps=Q.Q4_0))
V3 = dict(
    # DeepSeek-V3's way: a query by way of a latent, attn_k_b and attn_v_b, sigmoid with a bias for
    # choosing, 2 of 4 groups, weights normalised and scaled; KV rows of 32 + 12 values.
    name="deepseek2-v3", seed=23, vocab=64, embd=32, layers=3, heads=3, q_rank=24, kv_rank=32,
    nope=20, rot=12, v=16, ff=56, ff_exp=32, experts=8, used=3, shared=2, dense=1, latent=True,
    fused=False, keys=dict(rope_base=10000.0, factor=4.0, orig=80, log_mul=0.0707, gate=2,
                           groups=4, groups_used=2, scale=2.5, norm=True),
    types=dict(exps=Q.Q4_0, down_exps=Q.Q8_0))


class Model:
    def __init__(self, path, s):
        self.s, self.w = s, GGUFWriter(path, "deepseek2")
        self.rng = np.random.default_rng(s["seed"])

    def put(self, name, shape, qtype, std=None, mean=0.0):
        """shape as numpy has it: rows first."""
        if std is None:
            std = (0.25 if "_down" in name or "_output" in name else 1.0) / np.sqrt(shape[-1])
        x = (mean + std * self.rng.standard_normal(shape)).astype(np.float32)
        data = x if qtype == Q.F32 else quants.quantize(x, qtype)
        self.w.add_tensor(name, data, raw_dtype=qtype)

    def norm(self, name, n):
        self.put(name, (n,), Q.F32, 0.2, 1.0)

    def keys(self):
        s, w, k = self.s, self.w, self.s["keys"]
        u, f, a = w.add_uint32, w.add_float32, "deepseek2."
        w.add_name("awkward " + s["name"])
        w.add_tokenizer_model("no_vocab")
        ints = {
            "vocab_size": s["vocab"], "context_length": 512, "embedding_length": s["embd"],
            "block_count": s["layers"], "leading_dense_block_count": s["dense"],
            "feed_forward_length": s["ff"], "expert_feed_forward_length": s["ff_exp"],
            "expert_count": s["experts"], "expert_used_count": s["used"],
            "expert_shared_count": s["shared"], "attention.head_count": s["heads"],
            "attention.head_count_kv": 1 if s["latent"] else s["heads"],
            "attention.q_lora_rank": s["q_rank"], "attention.kv_lora_rank": s["kv_rank"],
            "rope.dimension_count": s["rot"],
            "rope.scaling.original_context_length": k["orig"],
        }
        head = (s["nope"] + s["rot"], s["v"])
        row = (s["kv_rank"] + s["rot"], s["kv_rank"]) if s["latent"] else head
        ints["attention.key_length"], ints["attention.value_length"] = row
        if s["latent"]:
            ints["attention.key_length_mla"], ints["attention.value_length_mla"] = head
        if "gate" in k:
            ints["expert_gating_func"] = k["gate"]
        if "groups" in k:
            ints["expert_group_count"], ints["expert_group_used_count"] = k["groups"], k["groups_used"]
        for name, v in ints.items():
            u(a + name, v)
        f(a + "attention.layer_norm_rms_epsilon", 1e-6)
        f(a + "rope.freq_base", k["rope_base"])
        w.add_string(a + "rope.scaling.type", "yarn")
        f(a + "rope.scaling.factor", k["factor"])
        if "log_mul" in k:
            f(a + "rope.scaling.yarn_log_multiplier", k["log_mul"])
        f(a + "expert_weights_scale", k.get("scale", 1.0))
        w.add_bool(a + "expert_weights_norm", k.get("norm", False))

    def attention(self, b):
        s, other = self.s, Q.F32
        embd, heads, kv, nope, rot, v = (s[x] for x in ("embd", "heads", "kv_rank", "nope", "rot", "v"))
        nq = heads * (nope + rot)
        self.norm(b + "attn_norm.weight", embd)
        if s["q_rank"]:
            self.put(b + "attn_q_a.weight", (s["q_rank"], embd), other)
            self.norm(b + "attn_q_a_norm.weight", s["q_rank"])
            self.put(b + "attn_q_b.weight", (nq, s["q_rank"]), other)
        else:
            self.put(b + "attn_q.weight", (nq, embd), other)
        self.put(b + "attn_kv_a_mqa.weight", (kv + rot, embd), other)
        self.norm(b + "attn_kv_a_norm.weight", kv)
        if s["latent"]:
            self.put(b + "attn_k_b.weight", (heads, kv, nope), other)
            self.put(b + "attn_v_b.weight", (heads, v, kv), other)
        else:
            self.put(b + "attn_kv_b.weight", (heads * (nope + v), kv), other)
        self.put(b + "attn_output.weight", (embd, heads * v), other)

    def feed_forward(self, b, layer):
        s, t = self.s, self.s["types"]
        embd, ne, ff = s["embd"], s["experts"], s["ff_exp"]
        self.norm(b + "ffn_norm.weight", embd)
        if layer < s["dense"]:
            self.put(b + "ffn_gate.weight", (s["ff"], embd), Q.F32)
            self.put(b + "ffn_up.weight", (s["ff"], embd), Q.F32)
            self.put(b + "ffn_down.weight", (embd, s["ff"]), Q.F32)
            return
        self.put(b + "ffn_gate_inp.weight", (ne, embd), Q.F32)
        if "gate" in s["keys"]:
            self.put(b + "exp_probs_b.bias", (ne,), Q.F32, 0.3)
        if s["fused"]:
            self.put(b + "ffn_gate_up_exps.weight", (ne, 2 * ff, embd), t["exps"])
        else:
            self.put(b + "ffn_gate_exps.weight", (ne, ff, embd), t["exps"])
            self.put(b + "ffn_up_exps.weight", (ne, ff, embd), t["exps"])
        self.put(b + "ffn_down_exps.weight", (ne, embd, ff), t["down_exps"])
        wide = s["shared"] * ff
        self.put(b + "ffn_gate_shexp.weight", (wide, embd), t["exps"])
        self.put(b + "ffn_up_shexp.weight", (wide, embd), t["exps"])
        self.put(b + "ffn_down_shexp.weight", (embd, wide), Q.Q8_0)

    def write(self):
        s = self.s
        self.keys()
        self.put("token_embd.weight", (s["vocab"], s["embd"]), Q.F16, 1.0)
        for layer in range(s["layers"]):
            self.attention(f"blk.{layer}.")
            self.feed_forward(f"blk.{layer}.", layer)
        self.norm("output_norm.weight", s["embd"])
        self.put("output.weight", (s["vocab"], s["embd"]), Q.F32)
        self.w.write_header_to_file()
        self.w.write_kv_data_to_file()
        self.w.write_tensors_to_file()
        self.w.close()


for spec in (LITE, V3):
    base = f"{sys.argv[1]}/{spec['name']}"
    Model(base + ".gguf", spec).write()
    ids = np.random.default_rng(spec["seed"] + 1).integers(0, spec["vocab"], N_IDS)
    with open(base + ".ids", "w", encoding="ascii") as out:
        out.write(",".join(map(str, ids)) + "\n")
    if len(sys.argv) > 2:
        env = dict(os.environ, KV="f32", FA="0", THREADS="1")
        subprocess.run([sys.argv[2], base + ".gguf", base + ".all", "@" + base + ".ids"], env=env,
                       check=True, stdout=subprocess.DEVNULL)
        logits = np.fromfile(base + ".all", "<f4").reshape(N_IDS, -1)
        os.remove(base + ".all")
        logits[[i * (N_IDS - 1) // (N_POS - 1) for i in range(N_POS)]].tofile(base + ".logits.f32")
