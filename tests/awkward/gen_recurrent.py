#!/usr/bin/env python3
"""Writes the awkward hybrids of tests/test_recurrent.c: random weights, small, every choice a rare
one.  One seed gives one file.  Needs numpy and gguf (pip).
  gen_recurrent.py DIR [TOOL]
The logits beside them are llama.cpp's (F32 cache, no flash attention), for N_POS positions only,
i * (n - 1) / (N_POS - 1).  TOOL MODEL OUT @IDS writes them all, f32 [n][n_vocab].

What is not an expert is F32, because llama.cpp rounds what meets F16 matrices.  The gates of the
recurrence are drawn so that states live for some to some hundred tokens."""
import os
import subprocess
import sys
import numpy as np
from gguf import GGUFWriter, GGMLQuantizationType as Q, quants

N_IDS, N_POS = 300, 16
DELTA = dict(vocab=64, embd=32, ff_exp=32, experts=5, used=3, base=3000.0, gate_up=Q.Q4_0,
             down=Q.Q8_0)
MODELS = [
    # The last layer is recurrent, heads of 12, three heads of v to one of k, layer 0 with the
    # interleaved tensors of old files, a convolution of 3, a fused gate and up in one layer.
    dict(DELTA, name="qwen3next", seed=5, layers=3, every=2, n_k=2, n_v=6, dim=12, taps=3,
         shared=24, heads=4, kv=2, head=16, rot=8, old=[0], fused=[1], nextn=0, tied=False),
    # Tiled heads of 18, a convolution of 5, tied head, a next-token layer behind the last one,
    # heads of attention that are padded in the cache.
    dict(dict(DELTA, experts=4), name="qwen35moe", seed=6, layers=3, every=3, n_k=2, n_v=4,
         dim=18, taps=5, shared=8, heads=2, kv=1, head=20, rot=8, old=[], fused=[0, 2, 3], nextn=1,
         tied=True, sections=[2, 1, 1, 0]),
    # Starts and ends with a convolution, two dense layers, one KV head.
    dict(name="lfm2moe", seed=7, vocab=64, embd=32, layers=5, attn=[1, 3], heads=2, kv=1, ff=40,
         ff_exp=32, experts=5, used=2, dense=2, taps=4, base=2000.0),
]


class Model:
    def __init__(self, path, s):
        self.s, self.w = s, GGUFWriter(path, s["name"])
        self.rng = np.random.default_rng(s["seed"])

    def put(self, name, shape, qtype=Q.F32, std=None, mean=0.0):
        """shape as numpy has it: rows first."""
        if std is None:
            std = (0.25 if "down" in name else 0.5 if "_out" in name else 1.0) / np.sqrt(shape[-1])
        x = (mean + std * self.rng.standard_normal(shape)).astype(np.float32)
        data = x if qtype == Q.F32 else quants.quantize(x, qtype)
        self.w.add_tensor(name, data, raw_dtype=qtype)

    def norm(self, name, n):
        self.put(name, (n,), Q.F32, 0.2, 1.0)

    def common_keys(self, n_layer, ff, head, rot):
        s, w, a = self.s, self.w, self.s["name"] + "."
        w.add_name("awkward " + s["name"])
        w.add_tokenizer_model("no_vocab")
        ints = {"vocab_size": s["vocab"], "context_length": 512, "embedding_length": s["embd"],
                "block_count": n_layer, "feed_forward_length": ff,
                "expert_feed_forward_length": s["ff_exp"], "expert_count": s["experts"],
                "expert_used_count": s["used"], "attention.head_count": s["heads"],
                "attention.key_length": head, "attention.value_length": head,
                "rope.dimension_count": rot}
        for k, v in ints.items():
            w.add_uint32(a + k, v)
        w.add_float32(a + "attention.layer_norm_rms_epsilon", 1e-5)
        w.add_float32(a + "rope.freq_base", s["base"])

    def ends(self, norm, tied):
        s = self.s
        self.put("token_embd.weight", (s["vocab"], s["embd"]), Q.F32, 1.0)
        self.norm(norm, s["embd"])
        if not tied:
            self.put("output.weight", (s["vocab"], s["embd"]))

    def attention(self, b, head, gate):
        s = self.s
        e, q, kv = s["embd"], s["heads"] * head, s["kv"] * head
        self.put(b + "attn_q.weight", (q * (2 if gate else 1), e))
        self.put(b + "attn_k.weight", (kv, e))
        self.put(b + "attn_v.weight", (kv, e))
        self.put(b + "attn_output.weight", (e, q))
        self.norm(b + "attn_q_norm.weight", head)
        self.norm(b + "attn_k_norm.weight", head)

    def experts(self, b, fused, gate_up, down):
        s = self.s
        e, f, n = s["embd"], s["ff_exp"], s["experts"]
        self.put(b + "ffn_gate_inp.weight", (n, e), Q.F32, 2.0 / np.sqrt(e))
        if fused:
            self.put(b + "ffn_gate_up_exps.weight", (n, 2 * f, e), gate_up)
        else:
            self.put(b + "ffn_gate_exps.weight", (n, f, e), gate_up)
            self.put(b + "ffn_up_exps.weight", (n, f, e), gate_up)
        self.put(b + "ffn_down_exps.weight", (n, e, f), down)

    def done(self):
        self.w.write_header_to_file()
        self.w.write_kv_data_to_file()
        self.w.write_tensors_to_file()
        self.w.close()


class Delta(Model):
    def keys(self):
        s, a = self.s, self.s["name"] + "."
        self.common_keys(s["layers"] + s["nextn"], 40, s["head"], s["rot"])
        ints = {"attention.head_count_kv": s["kv"], "full_attention_interval": s["every"],
                "expert_shared_feed_forward_length": s["shared"], "ssm.conv_kernel": s["taps"],
                "ssm.state_size": s["dim"], "ssm.group_count": s["n_k"],
                "ssm.time_step_rank": s["n_v"], "ssm.inner_size": s["n_v"] * s["dim"]}
        if s["nextn"]:
            ints["nextn_predict_layers"] = s["nextn"]
        for k, v in ints.items():
            self.w.add_uint32(a + k, v)
        if "sections" in s:
            self.w.add_array(a + "rope.dimension_sections", s["sections"])

    def delta(self, l):
        s, b = self.s, "blk.%d." % l
        e, keys, vals = s["embd"], s["n_k"] * s["dim"], s["n_v"] * s["dim"]
        if l in s["old"]:
            self.put(b + "ssm_in.weight", (2 * keys + 2 * vals, e))
        else:
            self.put(b + "attn_qkv.weight", (2 * keys + vals, e))
            self.put(b + "attn_gate.weight", (vals, e))
        if s["name"] == "qwen3next":
            self.put(b + "ssm_ba.weight", (2 * s["n_v"], e))
        else:
            self.put(b + "ssm_alpha.weight", (s["n_v"], e))
            self.put(b + "ssm_beta.weight", (s["n_v"], e))
        self.put(b + "ssm_conv1d.weight", (2 * keys + vals, s["taps"]))
        self.put(b + "ssm_dt.bias", (s["n_v"],), Q.F32, 1.0, -2.0)
        a = -np.exp(self.rng.uniform(-3.0, 1.0, s["n_v"])).astype(np.float32)
        self.w.add_tensor(b + "ssm_a", a)
        self.norm(b + "ssm_norm.weight", s["dim"])
        self.put(b + "ssm_out.weight", (e, vals))

    def layer(self, l, kind):
        s, b, e = self.s, "blk.%d." % l, self.s["embd"]
        self.norm(b + "attn_norm.weight", e)
        self.norm(b + "post_attention_norm.weight", e)
        if kind == "delta":
            self.delta(l)
        else:
            self.attention(b, s["head"], True)
        self.experts(b, l in s["fused"], s["gate_up"], s["down"])
        self.put(b + "ffn_gate_inp_shexp.weight", (e,))
        self.put(b + "ffn_gate_shexp.weight", (s["shared"], e))
        self.put(b + "ffn_up_shexp.weight", (s["shared"], e))
        self.put(b + "ffn_down_shexp.weight", (e, s["shared"]))

    def tensors(self):
        s, e = self.s, self.s["embd"]
        self.ends("output_norm.weight", s["tied"])
        for l in range(s["layers"]):
            self.layer(l, "full" if (l + 1) % s["every"] == 0 else "delta")
        for l in range(s["layers"], s["layers"] + s["nextn"]):
            self.layer(l, "full")
            self.put("blk.%d.nextn.eh_proj.weight" % l, (e, 2 * e))
            self.norm("blk.%d.nextn.enorm.weight" % l, e)
            self.norm("blk.%d.nextn.hnorm.weight" % l, e)


class Lfm2(Model):
    def keys(self):
        s, a = self.s, "lfm2moe."
        self.common_keys(s["layers"], s["ff"], s["embd"] // s["heads"], s["embd"] // s["heads"])
        self.w.add_array(a + "attention.head_count_kv",
                         [s["kv"] if l in s["attn"] else 0 for l in range(s["layers"])])
        self.w.add_uint32(a + "leading_dense_block_count", s["dense"])
        self.w.add_uint32(a + "expert_gating_func", 2)
        self.w.add_uint32(a + "shortconv.l_cache", s["taps"])

    def tensors(self):
        s, e = self.s, self.s["embd"]
        self.ends("token_embd_norm.weight", True)
        for l in range(s["layers"]):
            b = "blk.%d." % l
            self.norm(b + "attn_norm.weight", e)
            self.norm(b + "ffn_norm.weight", e)
            if l in s["attn"]:
                self.attention(b, e // s["heads"], False)
            else:
                self.put(b + "shortconv.conv.weight", (e, s["taps"]), Q.F32, 1.0)
                self.put(b + "shortconv.in_proj.weight", (3 * e, e))
                self.put(b + "shortconv.out_proj.weight", (e, e))
            if l < s["dense"]:
                self.put(b + "ffn_gate.weight", (s["ff"], e))
                self.put(b + "ffn_up.weight", (s["ff"], e))
                self.put(b + "ffn_down.weight", (e, s["ff"]))
            else:
                self.experts(b, False, Q.F16, Q.Q8_0)
                self.put(b + "exp_probs_b.bias", (s["experts"],), Q.F32, 0.3)


def main():
    folder = sys.argv[1]
    for s in MODELS:
        path = os.path.join(folder, s["name"])
        m = (Lfm2 if s["name"] == "lfm2moe" else Delta)(path + ".gguf", s)
        m.keys()
        m.tensors()
        m.done()
        ids = np.random.default_rng(s["seed"] + 1000).integers(0, s["vocab"], N_IDS)
        with open(path + ".ids", "w") as f:
            f.write(",".join(map(str, ids)) + "\n")
        if len(sys.argv) < 3:
            continue
        env = dict(os.environ, KV="f32", FA="0", THREADS="1")
        subprocess.run([sys.argv[2], path + ".gguf", path + ".all", "@" + path + ".ids"],
                       check=True, env=env)
        x = np.fromfile(path + ".all", "<f4").reshape(N_IDS, s["vocab"])
        x[[i * (N_IDS - 1) // (N_POS - 1) for i in range(N_POS)]].tofile(path + ".logits.f32")
        if not os.environ.get("KEEP"):
            os.remove(path + ".all")


main()
