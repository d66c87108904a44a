#!/usr/bin/env python3
"""The independent reference of tests/test_concept.c: models whose middle sees concepts instead of tokens,
in NumPy, in float64, written from their specifications (ConceptMoE, arXiv 2601.21420; H-Net, arXiv
2507.07955, with attention layers only), not from Tessera.

Writes small random models (concept, concept-wide, hnet: .gguf, one seed, one file), the ids of one text,
and for every variant that cases.txt lists the logits of all positions (f32), for each token how many
rates it is seen at beside the tokens' (bytes: .depth) and its chance of a boundary (f32: .chance).  Needs
numpy and gguf (pip).    make.py DIR

Like the runtime's cache, K and V are rounded to F16; matrices are F16 in the files and nothing else is
rounded, see tests/depth/make.py.  A seed is refused when a decision (a boundary, an expert) is so close
that rounding could turn it."""
import os
import sys
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import refmake
from refmake import DIM, EPS, BASE, VOCAB, Folder, attend, f16, rms, rotate, sigmoid

N_IDS, EMBD, EXPERTS = 100, 64, 4
MARGIN = 1e-4


def far(values, at, what):
    refmake.far(values, at, what, MARGIN)


class Weights(refmake.Weights):
    drawn = np.float64

    def write(self, path, arch, keys):
        super().write(path, arch, "concepts " + arch, keys)


def silu(x):
    return x * sigmoid(x)


def unit(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True))


def causal(q, k, v, rot=DIM, window=0):
    """Rows that are each other's positions: all before, the last `window` rows where it is not 0."""
    n = np.arange(len(q))
    seen = n[None] <= n[:, None]
    if window:
        seen &= n[None] > n[:, None] - window
    return attend(rotate(q, n, rot=rot), f16(rotate(k, n, rot=rot)), f16(v), seen)


# ---- ConceptMoE: section 2.1 ----

def moe_layers(w, first, n, d, heads, kv, ff):
    for l in range(first, first + n):
        b = f"blk.{l}."
        w.vector(b + "attn_norm.weight", d)
        w.matrix(b + "attn_q.weight", heads * DIM, d)
        w.matrix(b + "attn_k.weight", kv * DIM, d)
        w.matrix(b + "attn_v.weight", kv * DIM, d)
        w.matrix(b + "attn_output.weight", d, heads * DIM, gain=0.3)
        w.vector(b + "ffn_norm.weight", d)
        w.matrix(b + "ffn_gate_inp.weight", EXPERTS, d, exact=True)
        w.matrix(b + "ffn_gate_exps.weight", EXPERTS, ff, d)
        w.matrix(b + "ffn_up_exps.weight", EXPERTS, ff, d)
        w.matrix(b + "ffn_down_exps.weight", EXPERTS, d, ff)


def concept_model(seed, encoder, network, decoder, wide):
    """wide: (width, heads, kv heads, ff) of the concept network"""
    w = Weights(seed)
    w.matrix("token_embd.weight", VOCAB, EMBD, gain=np.sqrt(EMBD))
    w.vector("output_norm.weight", EMBD)
    w.matrix("output.weight", VOCAB, EMBD)
    d, heads, kv, ff = wide or (EMBD, 4, 2, 32)
    moe_layers(w, 0, encoder, EMBD, 4, 2, 32)
    moe_layers(w, encoder, network, d, heads, kv, ff)
    moe_layers(w, encoder + network, decoder, EMBD, 4, 2, 32)
    w.matrix("concept.router_q.weight", EMBD, EMBD, exact=True)
    w.matrix("concept.router_k.weight", EMBD, EMBD, exact=True)
    if wide:
        w.matrix("concept.up.weight", d, EMBD)
        w.matrix("concept.down.weight", EMBD, d)
    for l in range(encoder + network, encoder + network + decoder):
        for x, n in (("q", 4), ("k", 2), ("v", 2)):
            w.matrix(f"blk.{l}.attn_{x}_concept.weight", n * DIM, EMBD, gain=0.5)
    return w


def concept_keys(encoder, network, decoder, wide, used):
    keys = {"vocab_size": VOCAB, "context_length": 256, "embedding_length": EMBD,
            "block_count": encoder + network + decoder, "feed_forward_length": 32,
            "expert_feed_forward_length": 32, "expert_count": EXPERTS, "expert_used_count": 2,
            "expert_weights_norm": True, "attention.head_count": 4, "attention.head_count_kv": 2,
            "attention.key_length": DIM, "attention.value_length": DIM, "rope.dimension_count": DIM,
            "attention.layer_norm_rms_epsilon": EPS, "rope.freq_base": BASE,
            "concept.encoder_block_count": encoder, "concept.decoder_block_count": decoder,
            "concept.target_ratio": 2.0}
    if wide:
        keys.update({"concept.embedding_length": wide[0], "concept.attention.head_count": wide[1],
                     "concept.attention.head_count_kv": wide[2],
                     "concept.expert_feed_forward_length": wide[3], "concept.expert_used_count": used})
    return keys


def moe_layer(w, l, x, used, ctil=None):
    b = f"blk.{l}."
    n = rms(x, w[b + "attn_norm.weight"])
    y = {}
    for p in "qkv":
        y[p] = n @ w[b + f"attn_{p}.weight"].T
        if ctil is not None:
            y[p] = y[p] + ctil @ w[b + f"attn_{p}_concept.weight"].T
        y[p] = y[p].reshape(len(x), -1, DIM)
    a = causal(y["q"], y["k"], y["v"])
    x = x + a @ w[b + "attn_output.weight"].T
    n = rms(x, w[b + "ffn_norm.weight"])
    u = n @ w[b + "ffn_gate_inp.weight"].T
    e = np.exp(u - u.max(1, keepdims=True))
    e /= e.sum(1, keepdims=True)
    order = np.argsort(-e, 1, kind="stable")
    top = np.take_along_axis(e, order, 1)
    if used < EXPERTS:
        far(top[:, used - 1] - top[:, used], 0, f"layer {l}'s experts")
    out = np.zeros_like(x)
    for t in range(len(x)):
        share = top[t, :used] / top[t, :used].sum()
        for i, s in zip(order[t, :used], share):
            f = silu(w[b + "ffn_gate_exps.weight"][i] @ n[t]) * (w[b + "ffn_up_exps.weight"][i] @ n[t])
            out[t] += s * (w[b + "ffn_down_exps.weight"][i] @ f)
    return x + out


def conceptmoe(w, ids, encoder, network, decoder, query="current", reduce="last", joint=True,
               threshold=0.5, used=2, loop=None):
    S = len(ids)
    x = w["token_embd.weight"][ids]
    for l in range(encoder):
        x = moe_layer(w, l, x, 2)
    q, k = unit(x @ w["concept.router_q.weight"].T), unit(x @ w["concept.router_k.weight"].T)
    cos = (q[1:] * k[:-1] if query == "current" else q[:-1] * k[1:]).sum(1)
    p = np.concatenate([[1.0], (1 - cos) / 2])
    far(p[1:], threshold, "boundary")
    at = np.flatnonzero((p >= threshold) | (np.arange(S) == 0))
    if reduce == "last":
        c = x[at]
    else:
        c = np.array([x[(at[m - 1] + 1 if m else 0):at[m] + 1].sum(0) for m in range(len(at))])
    if "concept.up.weight" in w.t:
        c = c @ w["concept.up.weight"].T
    program = list(range(network))
    if loop:
        first, count, times = loop
        program = program[:first] + program[first:first + count] * times + program[first + count:]
    for l in program:
        c = moe_layer(w, encoder + l, c, used)
    if "concept.down.weight" in w.t:
        c = c @ w["concept.down.weight"].T
    smooth = np.empty_like(c)
    for m in range(len(at)):
        smooth[m] = c[0] if m == 0 else p[at[m]] * c[m] + (1 - p[at[m]]) * smooth[m - 1]
    ctil = smooth[np.searchsorted(at, np.arange(S), side="right") - 1]
    x = x + ctil
    for l in range(encoder + network, encoder + network + decoder):
        x = moe_layer(w, l, x, 2, ctil if joint else None)
    depth = np.zeros(S, int)
    depth[at] = 1
    return rms(x, w["output_norm.weight"]) @ w["output.weight"].T, depth, p


# ---- H-Net: section 2.5 ----

STAGES = [dict(d=32, heads=2, rot=8, window=12, enc="t1", dec="t1", ff=0),
          dict(d=32, heads=2, rot=8, window=7, enc="T1", dec="t1T1", ff=48),
          dict(d=48, heads=3, rot=16, window=0, enc="T2", dec="", ff=40)]


def letters(layout):
    return "".join(layout[i] * int(layout[i + 1]) for i in range(0, len(layout), 2))


def hnet_model(seed):
    w = Weights(seed)
    w.matrix("token_embd.weight", VOCAB, STAGES[0]["d"], gain=np.sqrt(STAGES[0]["d"]))
    w.matrix("output.weight", VOCAB, STAGES[0]["d"])
    for s, g in enumerate(STAGES):
        d = g["d"]
        for part in ("enc", "dec") if g["dec"] else ("enc",):
            for n, kind in enumerate(letters(g[part])):
                b = f"st.{s}.{part}.blk.{n}."
                w.vector(b + "attn_norm.weight", d)
                w.matrix(b + "attn_qkv.weight", 3 * d, d)
                w.matrix(b + "attn_output.weight", d, d, gain=0.15)
                if kind == "T":
                    w.vector(b + "ffn_norm.weight", d)
                    w.matrix(b + "ffn_gate.weight", g["ff"], d)
                    w.matrix(b + "ffn_up.weight", g["ff"], d)
                    w.matrix(b + "ffn_down.weight", d, g["ff"])
            w.vector(f"st.{s}.{part}.norm.weight", d)
        if g["dec"]:
            w.matrix(f"st.{s}.router_q.weight", d, d, exact=True)
            w.matrix(f"st.{s}.router_k.weight", d, d, exact=True)
            w.matrix(f"st.{s}.res_proj.weight", d, d, gain=0.5, exact=True)
            w.vector(f"st.{s}.res_proj.bias", d, 0, 0.1)
        if s and d > STAGES[s - 1]["d"]:
            w.vector(f"st.{s}.pad", d - STAGES[s - 1]["d"], 0, 0.5)
    return w


def hnet_keys():
    keys = {"vocab_size": VOCAB, "context_length": 256, "stage_count": len(STAGES),
            "rope.freq_base": BASE, "chunk.query": "previous"}
    for s, g in enumerate(STAGES):
        b = f"stage.{s}."
        keys.update({b + "embedding_length": g["d"], b + "encoder_layout": g["enc"],
                     b + "feed_forward_length": g["ff"], b + "attention.head_count": g["heads"],
                     b + "rope.dimension_count": g["rot"], b + "attention.sliding_window": g["window"]})
        if g["dec"]:
            keys[b + "decoder_layout"] = g["dec"]
    return keys


def isotropic(w, s, part, x):
    g = STAGES[s]
    for n, kind in enumerate(letters(g[part])):
        b = f"st.{s}.{part}.blk.{n}."
        y = (rms(x, w[b + "attn_norm.weight"]) @ w[b + "attn_qkv.weight"].T).reshape(len(x), 3, -1, DIM)
        a = causal(y[:, 0], y[:, 1], y[:, 2], g["rot"], g["window"])
        x = x + a @ w[b + "attn_output.weight"].T
        if kind == "T":
            y = rms(x, w[b + "ffn_norm.weight"])
            x = x + (silu(y @ w[b + "ffn_gate.weight"].T) * (y @ w[b + "ffn_up.weight"].T)) @ \
                w[b + "ffn_down.weight"].T
    return rms(x, w[f"st.{s}.{part}.norm.weight"])


def stage(w, s, x):
    """Returns the rows, for each how many inner stages it is in, its chance."""
    d, parent = STAGES[s]["d"], x.shape[1]
    if d > parent:
        x = np.concatenate([x, np.broadcast_to(w[f"st.{s}.pad"], (len(x), d - parent))], 1)
    enc = isotropic(w, s, "enc", x)
    depth, p = np.zeros(len(x), int), np.ones(len(x))
    if not STAGES[s]["dec"]:
        return enc[:, :parent], depth, p
    r = enc @ w[f"st.{s}.res_proj.weight"].T + w[f"st.{s}.res_proj.bias"]
    q, k = unit(enc[:-1] @ w[f"st.{s}.router_q.weight"].T), unit(enc[1:] @ w[f"st.{s}.router_k.weight"].T)
    p[1:] = np.clip((1 - (q * k).sum(1)) / 2, 0, 1)
    far(p[1:], 0.5, "boundary")
    at = np.flatnonzero(p > 0.5)
    inner, deeper, _ = stage(w, s + 1, enc[at])
    c, y, held = np.clip(p, 1e-4, 1 - 1e-4), np.empty_like(enc), 0
    m = 0
    for t in range(len(x)):
        if m < len(at) and at[m] == t:
            held = c[t] * inner[m] + (1 - c[t]) * held
            m += 1
        y[t] = held
    depth[at] = 1 + deeper
    return isotropic(w, s, "dec", y + r)[:, :parent], depth, p


def main(out):
    os.makedirs(out, exist_ok=True)
    ids = np.random.default_rng(3).integers(0, VOCAB, N_IDS)
    folder = Folder(out, ids)

    def case(name, model, options, result):
        folder.case(name, model, options, *result)

    sizes = (2, 3, 2)
    w = concept_model(SEEDS[0], *sizes, None)
    w.write(f"{out}/concept.gguf", "conceptmoe", concept_keys(*sizes, None, 2))
    for query in ("current", "previous"):
        for reduce in ("last", "sum"):
            for joint in (True, False):
                case(f"{query[0]}-{reduce}" + ("" if joint else "-plain"), "concept",
                     f"query={query} reduce={reduce}" + ("" if joint else " plain"),
                     conceptmoe(w, ids, *sizes, query, reduce, joint))
    case("often", "concept", "threshold=0.4", conceptmoe(w, ids, *sizes, threshold=0.4))
    case("seldom", "concept", "threshold=0.6 reduce=sum",
         conceptmoe(w, ids, *sizes, reduce="sum", threshold=0.6))
    case("always", "concept", "threshold=0", conceptmoe(w, ids, *sizes, threshold=0.0))
    case("once", "concept", "threshold=1 reduce=sum", conceptmoe(w, ids, *sizes, reduce="sum", threshold=1.0))
    case("loop", "concept", "loop=1,2,3", conceptmoe(w, ids, *sizes, loop=(1, 2, 3)))
    case("loop-all", "concept", "loop=0,3,2", conceptmoe(w, ids, *sizes, loop=(0, 3, 2)))
    sizes, wide = (1, 2, 1), (96, 6, 3, 48)
    w = concept_model(SEEDS[1], *sizes, wide)
    w.write(f"{out}/concept-wide.gguf", "conceptmoe", concept_keys(*sizes, wide, 3))
    for reduce in ("last", "sum"):
        case(f"wide-{reduce}", "concept-wide", f"reduce={reduce}",
             conceptmoe(w, ids, *sizes, reduce=reduce, used=3))
    w = hnet_model(SEEDS[2])
    w.write(f"{out}/hnet.gguf", "hnet", hnet_keys())
    logits, depth, chance = stage(w, 0, w["token_embd.weight"][ids])
    case("hnet", "hnet", "", (logits @ w["output.weight"].T, depth, chance))
    folder.close()


SEEDS = [15, 2, 1]
if __name__ == "__main__":
    if len(sys.argv) > 2:
        SEEDS = [int(x) for x in sys.argv[2].split(",")]
    main(sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__)))
