#!/usr/bin/env python3
"""The independent reference of tests/test_depth.c: recursive and looped models in NumPy, in float64,
written from their specifications (mixture-of-recursions, arXiv 2507.10524 and its released code's
token-choice gate; Ouro, arXiv 2510.25741; llama.cpp's nanbeige keys), not from Tessera.

Writes small random models (mor-expert, mor-token, ouro, nanbeige: .gguf, one seed, one file), the ids
of one text, and for every variant that cases.txt lists the logits of all positions (f32) and each
token's depth (bytes).  Needs numpy and gguf (pip).    make.py DIR

Like the runtime's cache, K and V are rounded to F16; matrices are F16 in the files and nothing else is
rounded.  A value that lies between two halves is rounded one way in float64 and the other in float32
now and then, which is nearly all of the difference that is left (1e-7 up to the first such place, some
1e-5 behind it); attn_output is small so that it stays small.  A seed is refused when a decision is so close that rounding could turn it."""
import os
import sys
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import refmake
from refmake import BASE, DIM, EPS, VOCAB, Folder, attend, f16, rms, rotate, sigmoid

N_IDS, EMBD, FF, HEADS, KV = 100, 64, 48, 4, 2
MARGIN = 2e-4


def far(values, at, what):
    refmake.far(values, at, what, MARGIN)


class Weights(refmake.Weights):
    def layers(self, n, sandwich):
        for l in range(n):
            b = f"blk.{l}."
            self.vector(b + "attn_norm.weight", EMBD)
            self.matrix(b + "attn_q.weight", HEADS * DIM, EMBD)
            self.matrix(b + "attn_k.weight", KV * DIM, EMBD)
            self.matrix(b + "attn_v.weight", KV * DIM, EMBD)
            self.matrix(b + "attn_output.weight", EMBD, HEADS * DIM, gain=0.15)
            self.vector(b + "ffn_norm.weight", EMBD)
            self.matrix(b + "ffn_gate.weight", FF, EMBD)
            self.matrix(b + "ffn_up.weight", FF, EMBD)
            self.matrix(b + "ffn_down.weight", EMBD, FF)
            if sandwich:
                self.vector(b + "post_attention_norm.weight", EMBD, 0.04, 0.01)
                self.vector(b + "post_ffw_norm.weight", EMBD)

    def ends(self):
        self.matrix("token_embd.weight", VOCAB, EMBD, gain=np.sqrt(EMBD))
        self.vector("output_norm.weight", EMBD)
        self.matrix("output.weight", VOCAB, EMBD)

    def write(self, path, arch, keys):
        n_layer = sum(n.endswith("attn_q.weight") for n in self.t)
        super().write(path, arch, "depth " + arch, {
            "vocab_size": VOCAB, "context_length": 256, "embedding_length": EMBD, "block_count": n_layer,
            "feed_forward_length": FF, "attention.head_count": HEADS, "attention.head_count_kv": KV,
            "attention.key_length": DIM, "attention.value_length": DIM, "rope.dimension_count": DIM,
            "attention.layer_norm_rms_epsilon": EPS, "rope.freq_base": BASE, **keys})


class Net:
    """Layers over rows that know their positions.  A cache is (positions, K, V), rising."""

    def __init__(self, w, neox, sandwich):
        self.w, self.neox, self.sandwich = w, neox, sandwich

    def keys(self, l, n, pos):
        b = f"blk.{l}."
        k = (n @ self.w[b + "attn_k.weight"].T).reshape(-1, KV, DIM)
        v = (n @ self.w[b + "attn_v.weight"].T).reshape(-1, KV, DIM)
        return pos, f16(rotate(k, pos, self.neox)), f16(v)

    def layer(self, l, x, pos, cache=None, over=None):
        """cache None: these rows' own; over: a cache of all positions in which these rows' own are put
        in place of what it has of them.  Returns the rows and the cache."""
        w, b = self.w, f"blk.{l}."
        n = rms(x, w[b + "attn_norm.weight"])
        cache = cache or self.keys(l, n, pos)
        if over:
            k, v = over[1].copy(), over[2].copy()
            k[pos], v[pos] = cache[1], cache[2]
            cache = over[0], k, v
        q = rotate((n @ w[b + "attn_q.weight"].T).reshape(-1, HEADS, DIM), pos, self.neox)
        seen = cache[0][None, :] <= pos[:, None]
        o = attend(q, cache[1], cache[2], seen) @ w[b + "attn_output.weight"].T
        x = x + (rms(o, w[b + "post_attention_norm.weight"]) if self.sandwich else o)
        n = rms(x, w[b + "ffn_norm.weight"])
        g = n @ w[b + "ffn_gate.weight"].T
        f = (g * sigmoid(g) * (n @ w[b + "ffn_up.weight"].T)) @ w[b + "ffn_down.weight"].T
        return x + (rms(f, w[b + "post_ffw_norm.weight"]) if self.sandwich else f), cache

    def norm(self, x):
        return rms(x, self.w["output_norm.weight"])

    def head(self, n):
        return n @ self.w["output.weight"].T


def mor(w, ids, n_layer, N, sharing="middle_cycle", router="expert", func=None, kv="per_step",
        exact=False, gated=True, every=False, alpha=None, theta=None, capacity=None, full_pass=False,
        aux=False):
    """Section 1 of the specification.  full_pass: shared K and V as the training code has them, all
    rows through the block and gathered afterwards, for recursions from 2 on.  aux: the next recursion's
    router stands in for an auxiliary one, which says who goes on; the gate is the router's own."""
    net, S = Net(w, True, False), len(ids)
    ends = sharing.startswith("middle")
    B = n_layer - 2 if ends else n_layer
    first = 1 if ends else 0
    in_place = sharing.endswith("sequence")
    every_row, depth = np.arange(S), np.zeros(S, int)
    h = w["token_embd.weight"][ids]
    caches = {}

    def block(r, x, pos):
        for i in range(B):
            u = (r - 1) * B + i
            l = first + (u // N if in_place else u % B)
            x, c = net.layer(l, x, pos, caches.get(l) if kv == "shared" else None,
                             caches.get(l) if kv == "shared_update" else None)
            caches.setdefault(l, c)
        return x

    def pushes_all(r):
        """Shared: is some layer's first run here?  Then all rows go through, and are gathered afterwards."""
        return kv != "per_step" and (r == 1 or in_place)

    if ends:
        h, _ = net.layer(0, h, every_row)
    if router == "none":
        for r in range(1, N + 1):
            h = block(r, h, every_row)
        depth[:] = N
    elif router == "expert":
        score = {"sigmoid": sigmoid, "tanh": np.tanh, "identity": lambda u: u}[func or "sigmoid"]
        theta = theta or [0.5 if (func or "sigmoid") == "sigmoid" else 0.0] * N
        capacity = capacity or [(N - r) / N for r in range(N)]
        A = every_row
        for r in range(1, N + 1):
            u = h[A] @ w[f"rec.{r}.router.weight"][0]
            g = (alpha or 0.1) * score(u)
            if exact:
                k = max(1, int(np.floor(np.float64(np.float32(capacity[r - 1])) * S * (1 + 1e-6))))
                order = np.argsort(-u, kind="stable")
                if k < len(u):
                    far([u[order[k - 1]] - u[order[k]]], 0, "capacity")
                keep = np.sort(order[:k])
            else:
                say = score(h[A] @ w[f"rec.{r % N + 1}.router.weight"][0] if aux else u)
                far(say, theta[r - 1], "threshold")
                keep = np.flatnonzero(say >= theta[r - 1])
            g, rows = g[keep], A[keep]
            if pushes_all(r) or full_pass:
                y = block(r, h, every_row)[rows]
            else:
                y = block(r, h[rows], rows)
            h = h.copy()
            h[rows] += (g[:, None] if gated else 1) * y
            depth[rows] += 1
            A = rows
    else:
        u = h @ w["rec.router.weight"].T
        if func == "sigmoid":
            p = (alpha or 0.1) * sigmoid(u)
        else:
            e = np.exp(u - u.max(1, keepdims=True))
            p = (alpha or 1.0) * e / e.sum(1, keepdims=True)
        pick = p + w["rec.router.bias"] if "rec.router.bias" in w.t else p
        two = np.sort(pick, 1)[:, -2:]
        far(two[:, 1] - two[:, 0], 0, "token choice")
        depth = pick.argmax(1) + 1
        h, y, last, rows = h.copy(), h.copy(), h.copy(), every_row
        for r in range(1, N + 1):
            if r > 1:
                keep = depth[rows] >= r
                y, rows = y[keep], rows[keep]
                if every:
                    y = p[rows, r - 2][:, None] * y
            if pushes_all(r):
                last[rows] = y  # rows that have stopped stay what they came into their last recursion with
                y = block(r, last, every_row)[rows]
            else:
                y = block(r, y, rows) if len(rows) else y
            end = depth[rows] == r
            h[rows[end]] += p[rows[end], r - 1][:, None] * y[end]
    if ends:
        h, _ = net.layer(n_layer - 1, h, every_row)
    return net.head(net.norm(h)), depth


def looped(w, ids, n_layer, T, neox, skip=False):
    net, pos = Net(w, neox, neox), np.arange(len(ids))
    x = w["token_embd.weight"][ids]
    for t in range(T):
        for l in range(n_layer):
            x, _ = net.layer(l, x, pos)
        if t < T - 1 and not skip:
            x = net.norm(x)
    return net.head(net.norm(x)), np.full(len(ids), T)


def ouro_weighted(w, ids, n_layer, T):
    net, pos = Net(w, True, True), np.arange(len(ids))
    x, left = w["token_embd.weight"][ids], np.ones(len(ids))
    logits = 0
    for t in range(1, T + 1):
        for l in range(n_layer):
            x, _ = net.layer(l, x, pos)
        x = net.norm(x)
        stop = sigmoid(x @ w["exit_gate.weight"][0] + w["exit_gate.bias"][0])
        p = left if t == T else stop * left
        left = left * (1 - stop)
        logits = logits + p[:, None] * net.head(x)
    return logits, np.full(len(ids), T)


def ouro_exit(w, ids, n_layer, T, q):
    """Token by token, as decoding does: a token that left at loop t stands in later loops with what it
    left in loop t (a table of who to look at in its place: min(loop, exit of that token))."""
    net = Net(w, True, True)
    slots = [[([], [], []) for _ in range(n_layer)] for _ in range(T)]
    exits, logits = [], []
    for i, token in enumerate(ids):
        pos, x = np.array([i]), w["token_embd.weight"][[token]]
        cdf, left = 0.0, 1.0
        for t in range(1, T + 1):
            for l in range(n_layer):
                n = rms(x, w[f"blk.{l}.attn_norm.weight"])
                _, k, v = net.keys(l, n, pos)
                slots[t - 1][l][1].append(k[0])
                slots[t - 1][l][2].append(v[0])
                slots[t - 1][l][0].append(i)
                ks, vs = [], []
                for j in range(i + 1):
                    at = min(t, exits[j] if j < i else t)
                    s = slots[at - 1][l]
                    m = s[0].index(j)
                    ks.append(s[1][m])
                    vs.append(s[2][m])
                x, _ = net.layer(l, x, pos, (np.arange(i + 1), np.array(ks), np.array(vs)))
            x = net.norm(x)
            stop = sigmoid(x[0] @ w["exit_gate.weight"][0] + w["exit_gate.bias"][0])
            cdf += left if t == T else stop * left
            left *= 1 - stop
            if t < T:
                far([cdf], q, "exit")
            if cdf >= q or t == T:
                break
        exits.append(t)
        logits.append(net.head(x)[0])
    return np.array(logits), np.array(exits)


def expert_model(seed):
    w = Weights(seed)
    w.ends()
    w.layers(4, False)
    for r in range(1, 4):
        w.matrix(f"rec.{r}.router.weight", 1, EMBD, exact=True)
    return w


def main(out):
    os.makedirs(out, exist_ok=True)
    ids = np.random.default_rng(3).integers(0, VOCAB, N_IDS)
    folder = Folder(out, ids)

    def case(name, model, options, result):
        folder.case(name, model, options, *result)

    w = expert_model(21)
    w.write(f"{out}/mor-expert.gguf", "mor", {"recursion.count": 3})
    for sharing in ("middle_cycle", "cycle", "middle_sequence", "sequence"):
        s = sharing.replace("middle_", "m-").replace("sequence", "seq")
        case(f"e-{s}", "mor-expert", f"sharing={sharing}", mor(w, ids, 4, 3, sharing))
        case(f"e-{s}-exact", "mor-expert", f"sharing={sharing} exact",
             mor(w, ids, 4, 3, sharing, exact=True))
        case(f"e-{s}-shared", "mor-expert", f"sharing={sharing} kv=shared",
             mor(w, ids, 4, 3, sharing, kv="shared"))
        shared = mor(w, ids, 4, 3, sharing, kv="shared", exact=True)
        case(f"e-{s}-shared-exact", "mor-expert", f"sharing={sharing} kv=shared exact", shared)
        full = mor(w, ids, 4, 3, sharing, kv="shared", exact=True, full_pass=True)
        assert np.abs(full[0] - shared[0]).max() < 1e-9  # gather first == full pass
        if sharing.endswith("cycle"):
            for exact in (False, True):
                case(f"e-{s}-update" + exact * "-exact", "mor-expert",
                     f"sharing={sharing} kv=shared_update" + exact * " exact",
                     mor(w, ids, 4, 3, sharing, kv="shared_update", exact=exact))
        case(f"n-{s}", "mor-none", f"sharing={sharing} router=none",
             mor(w, ids, 4, 3, sharing, "none"))
        case(f"n-{s}-shared", "mor-none", f"sharing={sharing} router=none kv=shared",
             mor(w, ids, 4, 3, sharing, "none", kv="shared"))
    case("e-tanh", "mor-expert", "router_func=tanh", mor(w, ids, 4, 3, func="tanh"))
    case("e-identity", "mor-expert", "router_func=identity", mor(w, ids, 4, 3, func="identity"))
    case("e-aux", "mor-expert", "aux", mor(w, ids, 4, 3, aux=True))
    case("e-ungated", "mor-expert", "gated=false", mor(w, ids, 4, 3, gated=False))

    w = Weights(12)
    w.ends()
    w.layers(4, False)
    w.matrix("rec.router.weight", 4, EMBD, gain=0.7, exact=True)
    w.vector("rec.router.bias", 4, 0, 0.1)
    w.write(f"{out}/mor-token.gguf", "mor", {"recursion.count": 4, "recursion.router": "token"})
    for sharing in ("middle_cycle", "cycle", "middle_sequence", "sequence"):
        s = sharing.replace("middle_", "m-").replace("sequence", "seq")
        case(f"t-{s}", "mor-token", f"sharing={sharing}", mor(w, ids, 4, 4, sharing, "token"))
        case(f"t-{s}-shared", "mor-token", f"sharing={sharing} kv=shared",
             mor(w, ids, 4, 4, sharing, "token", kv="shared"))
    case("t-sigmoid", "mor-token", "router_func=sigmoid",
         mor(w, ids, 4, 4, router="token", func="sigmoid"))
    case("t-every", "mor-token", "gate_every_step=true alpha=3",
         mor(w, ids, 4, 4, router="token", every=True, alpha=3.0))

    w = Weights(13)
    w.ends()
    w.layers(2, True)
    w.matrix("exit_gate.weight", 1, EMBD, gain=0.7, exact=True)
    w.vector("exit_gate.bias", 1, -0.5, 0)
    w.write(f"{out}/ouro.gguf", "ouro", {"num_loops": 4, "skip_loop_final_norm": False,
                                        "early_exit_threshold": 1.0})
    case("ouro", "ouro", "", looped(w, ids, 2, 4, True))
    for n in (1, 2, 3):
        case(f"ouro-loops{n}", "ouro", f"loops={n}", looped(w, ids, 2, n, True))
    case("ouro-weighted", "ouro", "weighted", ouro_weighted(w, ids, 2, 4))
    for q in (0.5, 0.75):
        case(f"ouro-exit{int(100 * q)}", "ouro", f"exit={q}", ouro_exit(w, ids, 2, 4, q))

    w = Weights(14)
    w.ends()
    w.layers(2, False)
    w.write(f"{out}/nanbeige.gguf", "nanbeige", {"num_loops": 3})
    case("nanbeige", "nanbeige", "", looped(w, ids, 2, 3, False))
    case("nanbeige-skip", "nanbeige", "skip=true", looped(w, ids, 2, 3, False, skip=True))
    folder.close()


main(sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__)))
