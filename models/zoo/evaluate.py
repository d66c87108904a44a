"""How good is a model: held-out loss, routing, samples.

What it is:  measures an exported GGUF (the file users get), in f32: loss, perplexity and bits per byte of the three held-out sets,
             how evenly every layer uses its experts, and on request a few answers; or compares logits with a reference file.
Owns:        the numbers in README.md.
Never does:  train, or read anything that was trained on.

    python evaluate.py MODEL.gguf DATA                     the tables
    python evaluate.py MODEL.gguf DATA --say "..." "..."   answers, temperature 0.7
    python evaluate.py MODEL.gguf --logits IDS REFERENCE   largest difference from f32 logits of another implementation
"""
import argparse, math
import numpy as np, sentencepiece as spm, torch
import export

def entropy(f): return -(f * (f + 1e-12).log()).sum(-1)

class Watch:
    """Sees what every router picks: how often each expert, and how many experts a token shares with the one before it."""
    def __init__(s, net):
        s.kept, s.pairs = torch.zeros(net.c.layers), torch.zeros(net.c.layers)
        s.used, s.top = torch.zeros(net.c.layers, net.c.experts), [b.ffn.c.top for b in net.blocks]
        for i, b in enumerate(net.blocks): b.ffn.register_forward_pre_hook(lambda m, a, i=i: s.see(i, a[1] @ m.router.t()))
    def see(s, i, logits):
        top = s.top[i]
        on = torch.zeros_like(logits).scatter_(1, logits.topk(top).indices, 1)
        s.used[i] += on.sum(0)
        s.kept[i] += (on[1:] * on[:-1]).sum() / top
        s.pairs[i] += len(on) - 1
    def take(s):
        """The counts since the last call."""
        u, s.used = s.used, torch.zeros_like(s.used)
        return u

@torch.no_grad()
def held_out(net, sp, data, limit):
    T, E = net.c.context, net.c.experts
    watch, used = Watch(net) if E else None, []
    print("| held-out | tokens | loss | perplexity | bits per byte |\n|---|---|---|---|---|")
    depths = []
    for name in ("stories", "dialogues", "books"):
        ids = np.load(f"{data}/held-{name}.npy").astype(np.int64)
        n = min(limit, (len(ids) - 1) // T)
        total, size = 0.0, len(sp.decode(ids[:n * T + 1].tolist()).encode())
        for k in range(n):
            torch.manual_seed(k)                             # what a denoiser hides
            z = torch.from_numpy(ids[k * T:k * T + T + 1])[None]
            total += net(z[:, :-1], z[:, 1:])[0].item()
            if net.depths is not None: depths.append(net.depths.flatten())
            if net.concepts: depths.append(net.concepts.bound.flatten())
        if watch: used.append(watch.take())
        loss = total / n
        print(f"| {name} | {n * T} | {loss:.4f} | {math.exp(loss):.2f} | {loss * n * T / math.log(2) / size:.3f} |", flush=True)
    if net.concepts:
        d = torch.cat(depths).float()
        print(f"\n{len(d) / d.sum():.3f} tokens to a concept; the aim was {net.c.ratio:g}")
    elif depths:
        d = torch.cat(depths)
        print(f"\nmean depth {d.float().mean():.3f} of {net.c.recursions}; tokens of depth 0, 1, ...: "
              + ", ".join(f"{x / len(d) * 100:.1f} %" for x in torch.bincount(d, minlength=net.c.recursions + 1).tolist()))
    if not E: return
    f = torch.stack(used)                                # [set, layer, expert]
    f, each = f.sum(0) / f.sum((0, 2))[:, None], f / f.sum(-1, keepdim=True)
    h = entropy(f) / math.log(E)
    told = (entropy(each.mean(0)) - entropy(each).mean(0)) / math.log(len(used))
    kept = watch.kept / watch.pairs
    print("\n| layer | routing entropy / uniform | most used | least used | tells the set | kept |\n|---|---|---|---|---|---|")
    for i in range(len(h)): print(f"| {i} | {h[i] * 100:.1f} % | {f[i].max() * 100:.2f} % | {f[i].min() * 100:.2f} % | {told[i] * 100:.1f} % | {kept[i] * 100:.1f} % |")
    print(f"\ntells the set: information that a picked expert carries about stories, dialogues or books, of what there is; "
          f"kept: experts that the next token uses again (by chance {net.c.top / E * 100:.1f} %)")

@torch.no_grad()
def say(net, sp, asks, temp, seed, limit=400):
    end = sp.piece_to_id("<|im_end|>")
    g = torch.Generator().manual_seed(seed)
    for ask in asks:
        ids = sp.encode(f"<|im_start|>user\n{ask}<|im_end|>\n<|im_start|>assistant\n")
        start = len(ids)
        while len(ids) < start + limit:
            z = net(torch.tensor([ids[-net.c.context:]]))[0, -1]
            ids.append(int(z.argmax()) if temp == 0 else int(torch.multinomial((z / temp).softmax(-1), 1, generator=g)))
            if ids[-1] == end: break
        print(f"\n> {ask}\n{sp.decode(ids[start:])}\n[{len(ids) - start} tokens, {'ended' if ids[-1] == end else 'cut'}]", flush=True)

@torch.no_grad()
def compare(net, ids, reference):
    x = torch.tensor([[int(i) for i in open(ids).read().replace(",", " ").split()]])
    ref = torch.from_numpy(np.fromfile(reference, np.float32)).view(x.shape[1], -1)
    got = net(x)[0]
    print(f"largest difference {(got - ref).abs().max():.2e}, normalised squared error {((got - ref) ** 2).sum() / (ref ** 2).sum():.2e}")

if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("model"); ap.add_argument("data", nargs="?")
    ap.add_argument("--say", nargs="+"); ap.add_argument("--temp", type=float, default=0.7); ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--exact", action="store_true", help="mixture-of-recursions: the best tokens of every window go deeper, not those above a half")
    ap.add_argument("--logits", nargs=2); ap.add_argument("--windows", type=int, default=10**9); ap.add_argument("--threads", type=int, default=2)
    o = ap.parse_args()
    torch.set_num_threads(o.threads)
    net = export.read(o.model)
    if o.exact: net.recursions.exact = True
    if o.logits: compare(net, *o.logits)
    else:
        sp = spm.SentencePieceProcessor(model_file=o.data + "/tokenizer.model")
        if o.say: say(net, sp, o.say, o.temp, o.seed)
        else: held_out(net, sp, o.data, o.windows)
