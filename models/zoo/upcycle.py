"""A small mixture -> the first weights of one with many experts (sparse upcycling).

What it is:  copies embedding, attention and norms of a GGUF, gives every expert n copies and every copy a router row of its own.
Owns:        the function at the start: nearly that of the small model, already spread evenly over all experts.
Never does:  train (train.py --from goes on from here), or take a model whose vocabulary differs from the data's.

    python upcycle.py SMALL.gguf PRESET DATA/tokenizer.model OUT.pt

With top k -> n/2 k, half of the copies of each of the k best experts should win and share that expert's weight. The router has no bias, so
what tells copies apart is a direction: copies come in pairs whose rows are r + d and r - d with a random d. At every token one of a pair
is raised as far as the other is lowered, which one depends on the token. d is as long as moves the logits by 1 (standard deviation):
enough to spread the tokens over the copies, less than what mostly lies between the best experts and the rest.

Equal copies would teach the router nothing about which of them to choose. So every copy forgets a quarter of its neurons, each copy
others: they get random inputs and outputs of zero, and the outputs of the rest grow by a third. The chosen copies make up for one another.
"""
import argparse
import gguf, sentencepiece as spm, torch
import export, model as M

SPREAD = 1.0        # standard deviation of what a copy's own direction adds to its logit
FORGET = 0.25       # share of neurons that a copy begins anew

def same_vocabulary(path, tokenizer):
    sp = spm.SentencePieceProcessor(model_file=tokenizer)
    field = gguf.GGUFReader(path).fields
    tokens, scores = (field["tokenizer.ggml." + k].contents() for k in ("tokens", "scores"))
    ids = range(sp.get_piece_size())
    return [sp.id_to_piece(i) for i in ids] == tokens and [sp.get_score(i) for i in ids] == scores

def router(row, n, scale, g):
    """Rows [E, D] -> [E n, D]: pairs r + d, r - d. scale: length of the vectors that the router will see."""
    E, D = row.shape
    d = torch.nn.functional.normalize(torch.randn(E, n // 2, D, generator=g), dim=-1) * SPREAD * D ** 0.5 / scale
    return row.repeat_interleave(n, 0) + torch.stack([d, -d], 2).view(E * n, D)

def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("small"); ap.add_argument("preset", choices=M.PRESETS); ap.add_argument("tokenizer"); ap.add_argument("out")
    o = ap.parse_args()
    if not same_vocabulary(o.small, o.tokenizer): raise SystemExit(f"{o.tokenizer} is not the vocabulary of {o.small}: run prepare.py with its sentencepiece version")
    small, c = export.read(o.small), M.PRESETS[o.preset]
    n = c.experts // small.c.experts
    for k in ("layers", "width", "heads", "kv_heads", "head_dim", "ff", "vocab", "rope_base", "eps"):
        if abs(getattr(c, k) / getattr(small.c, k) - 1) > 1e-6: raise SystemExit(f"{o.preset} and {o.small} differ in {k}")
    if n * small.c.experts != c.experts or n % 2 or c.top * 2 != n * small.c.top: raise SystemExit(f"{o.preset}: not an even number of copies, half of them chosen")
    g = torch.Generator().manual_seed(1)
    kept = [torch.rand(c.experts, c.ff, generator=g) >= FORGET for _ in range(c.layers)]
    parts, names, slices, shapes, at = [], [], [], [], 0
    old = dict(small.named_parameters())
    for name, p in M.Model(c, torch.float32).named_parameters():
        w = old[name].detach()
        if ".ffn." in name:
            if name.endswith("router"): w = router(w, n, old[name.replace("ffn.router", "ffn_norm")].norm().item(), g)
            else:
                w, keep = w.repeat_interleave(n, 0), kept[int(name.split(".")[1])]
                if name.endswith("down"): w *= keep[:, None] / (1 - FORGET)
                else: w[~keep.repeat(1, 2)] = w.std() * torch.randn(2 * int((~keep).sum()), c.width, generator=g)
        assert w.shape == p.shape, name
        parts.append(w.flatten()); names.append(name); slices.append((at, at + w.numel())); shapes.append(tuple(w.shape)); at += w.numel()
    torch.save({"config": c.dict(), "preset": o.preset, "step": 0, "names": names, "slices": slices, "shapes": shapes, "master": torch.cat(parts)}, o.out)
    print(f"{o.out}: {at / 1e6:.2f} M weights, {n} copies of each expert")

if __name__ == "__main__": main()
