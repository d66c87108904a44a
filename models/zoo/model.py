"""The model: a decoder in the qwen3 / qwen3moe layout, a denoiser in the same one, and the named presets.

What it is:  RMSNorm, grouped-query attention with per-head q/k norm and neox rope, SwiGLU, softmax-then-top-k routing with
             renormalised weights, tied embeddings. `experts=0` gives the dense layout; `recursions` a mixture-of-recursions; `mask` a
             masked diffusion model that sees both sides, with experts that tokens choose or that choose tokens; `ratio` a ConceptMoE.
Owns:        shapes, the forward pass, the loss (cross entropy and load balance).
Never does:  read data, step an optimiser, write a file.

Matrices and activations have the width `Model.half` (bf16 in training); norms, routers and the residual stream stay f32.
"""
from dataclasses import dataclass, asdict, replace
import torch, torch.nn as nn, torch.nn.functional as F

@dataclass
class Config:
    layers: int = 5
    width: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    ff: int = 256            # of one expert; of the whole layer when dense
    experts: int = 8         # 0: dense
    top: int = 2
    vocab: int = 4096
    context: int = 512
    rope_base: float = 1e4
    eps: float = 1e-6
    balance: float = 0.01    # weight of the load-balance loss
    router_z: float = 1e-4   # weight of the squared log-sum-exp of the router
    recursions: int = 0      # the layers but the first and the last run up to so many times (arXiv 2507.10524, middle-cycle)
    router: str = ""         # "expert": a recursion keeps some of the tokens of the one before; "token": a token chooses its depth
    mask: int = -1           # the token that hides others: attention sees both sides, what is hidden at i is read at i - 1 (as in Dream)
    choice: str = "token"    # "expert": an expert takes the tokens of a sequence that want it most (arXiv 2604.01622)
    least: int = 0           # experts per token on average while all tokens are hidden, ...
    most: int = 0            # ... and when none is: linear in between, rounded

    ratio: float = 0         # tokens per concept that training aims at; 0: no concepts (arXiv 2601.21420)
    encoder: int = 0         # the first and the last layers, which see tokens; those between them see concepts
    decoder: int = 0
    concept_top: int = 0     # experts that a concept uses; a token uses `top`

    def dict(self): return asdict(self)

PRESETS = {
    "story": Config(),
    "story-dense": Config(experts=0, top=0, ff=512),     # the same active matrices per token
    "middle": Config(experts=64, top=8),                 # story with eight experts for each of its experts, see upcycle.py
    # Mixtures of recursions, 8 layers unrolled, and their twin at the same compute per run: the mean depth is 2 of 3, so 6 layers per
    # token against 8, and the twin sees 0.783 of the tokens (products per token, the head's and causal attention's included).
    "mor": Config(4, 128, 2, 1, experts=0, top=0, ff=256, recursions=3, router="expert"),
    "mor-token": Config(4, 128, 2, 1, experts=0, top=0, ff=256, recursions=3, router="token"),
    "mor-twin": Config(8, 128, 2, 1, experts=0, top=0, ff=256),
    # Masked diffusion, made from `story`: tokens choose two of eight experts; experts choose two per token on average, the same at every
    # step or one while much is hidden and three when little is. Products per token are the same in all three, averaged over steps.
    "denoise": Config(context=256, mask=0),
    "denoise-expert": Config(context=256, mask=0, choice="expert", least=2, most=2),
    "denoise-reverse": Config(context=256, mask=0, choice="expert", least=1, most=3),
    # Two tokens to a concept, which uses twice the experts, and the twin: the same layers, experts and products per token.
    "concept": Config(layers=6, width=128, heads=2, kv_heads=1, ff=128, ratio=2, encoder=1, decoder=1, concept_top=4),
    "concept-twin": Config(layers=6, width=128, heads=2, kv_heads=1, ff=128),
    "tiny": Config(layers=2, experts=4),                 # for trying things out
}

# Small fused pieces: plain functions, compiled where a compiler is there.

def norm(x, w, eps):
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w

def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

def project_qkv(x, wn, wqkv, qn, kn, cos, sin, heads, kv, eps, more=None):
    """[B,T,D] -> q [B,heads,T,d], k and v [B,kv,T,d]; more: what is added to all three before their norms"""
    B, T, _ = x.shape
    h = norm(x, wn, eps).to(wqkv.dtype)
    d = qn.numel()
    z = F.linear(h, wqkv)
    if more is not None: z = z + more
    z = z.view(B, T, heads + 2 * kv, d)
    q, k, v = z.split([heads, kv, kv], 2)
    q = rotate(norm(q, qn, eps).transpose(1, 2), cos, sin).to(wqkv.dtype)
    k = rotate(norm(k, kn, eps).transpose(1, 2), cos, sin).to(wqkv.dtype)
    return q.contiguous(), k.contiguous(), v.transpose(1, 2).contiguous()

def attend_block(q, k, v, first):
    """Queries first.. of a causal sequence against all keys up to their end; kv heads are shared by folding their queries into rows."""
    B, H, T, d = q.shape
    KV, S = k.shape[1], k.shape[2]
    s = (q.reshape(B * KV, H // KV * T, d) @ k.reshape(B * KV, S, d).mT).view(B, H, T, S)
    rows = torch.arange(T, device=q.device)[:, None] + first
    hide = torch.arange(S, device=q.device)[None] > rows
    p = (s.float() * d ** -0.5).masked_fill(hide, float("-inf")).softmax(-1).to(q.dtype)
    return (p.view(B * KV, H // KV * T, S) @ v.reshape(B * KV, S, d)).view(B, H, T, d)

def swiglu(h):
    g, u = h.float().chunk(2, -1)
    return (F.silu(g) * u).to(h.dtype)

def weigh(y, w):
    """[N,K,D] of the experts, [N,K] -> their sum [N,D]"""
    return (y * w[..., None]).sum(1)

def compile_pieces():
    global project_qkv, attend_block, swiglu, weigh, norm_to
    project_qkv, attend_block, swiglu, weigh, norm_to = (torch.compile(f) for f in (project_qkv, attend_block, swiglu, weigh, norm_to))

def norm_to(x, w, eps, like):
    return norm(x, w, eps).to(like.dtype)

def attend(q, k, v, causal=True, block=128):
    if not causal:
        if q.is_cuda: return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return torch.cat([attend_block(q[:, :, i:i + block], k, v, k.shape[2]) for i in range(0, q.shape[2], block)], 2)
    if q.is_cuda: return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    T = q.shape[2]
    return torch.cat([attend_block(q[:, :, i:i + block], k[:, :, :i + block], v[:, :, :i + block], i) for i in range(0, T, block)], 2)

class Gather(torch.autograd.Function):
    """rows x[src]; every row of x is taken k times and `back` lists where, so that the gradient is a gather, too. Rows in `spare` are never taken."""
    @staticmethod
    def forward(ctx, x, src, back, k, spare=None):
        ctx.save_for_backward(back, spare); ctx.k = k
        return x.index_select(0, src)
    @staticmethod
    def backward(ctx, g):
        back, spare = ctx.saved_tensors
        g = g.index_select(0, back)
        if spare is not None: g.index_fill_(0, spare, 0)
        return (g.view(-1, ctx.k, g.shape[-1]).sum(1) if ctx.k > 1 else g), None, None, None, None

def filled(order, count, grain=64):
    """Makes room for every expert's rows up to a multiple of grain: the CPU library compiles a kernel for each new size, so there must be few.
    Returns rows per expert, where each row comes from (anywhere for the spare ones), where the sorted rows went, which are spare."""
    n = (count + grain - 1) // grain * grain
    gap = n - count
    at = torch.arange(len(order)) + (gap.cumsum(0) - gap).repeat_interleave(count)
    src, spare = order.new_zeros(int(n.sum())), torch.ones(int(n.sum()), dtype=torch.bool)
    src[at] = order; spare[at] = False
    return n.tolist(), src, at, spare.nonzero()[:, 0]

class Grouped(torch.autograd.Function):
    """y = x @ w[e]^T for rows sorted by expert, n[e] rows each. Every product is written where it belongs: nothing is joined afterwards."""
    @staticmethod
    def forward(ctx, x, w, n):
        ctx.save_for_backward(x, w); ctx.n = n
        y = x.new_empty(len(x), w.shape[1])
        for a, m, b in zip(x.split(n), w, y.split(n)): torch.mm(a, m.t(), out=b)
        return y
    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        dx, dw = torch.empty_like(x), torch.empty_like(w)
        for a, m, b, da, dm in zip(x.split(ctx.n), w, g.contiguous().split(ctx.n), dx.split(ctx.n), dw):
            torch.mm(b, m, out=da)
            torch.mm(b.t(), a, out=dm)
        return dx, dw, None

class Experts(nn.Module):
    def __init__(s, c):
        super().__init__()
        s.c = c
        s.router = nn.Parameter(torch.empty(c.experts, c.width))
        s.gate_up = nn.Parameter(torch.empty(c.experts, 2 * c.ff, c.width))
        s.down = nn.Parameter(torch.empty(c.experts, c.width, c.ff))

    def chosen(s, h, hf, share):
        """The experts choose: share [B] is the hidden part of each sequence, which says how many rows of it an expert takes."""
        E, B = s.c.experts, len(share)
        T = len(h) // B
        logits = (hf @ s.router.t()).view(B, T, E)
        per = (s.c.least + (s.c.most - s.c.least) * (1 - share)).round().clamp(s.c.least, s.c.most).long()
        out, count = torch.zeros_like(h), torch.zeros(E, dtype=torch.long, device=h.device)
        for k in per.unique().tolist():
            seq = (per == k).nonzero()[:, 0]
            C = max(1, T * k // E)
            x = logits[seq]
            pick = x.topk(C, 1).indices.transpose(1, 2)                                       # [b,E,C]
            taken = torch.zeros_like(x).scatter_(1, pick.transpose(1, 2), 1).bool()
            e = x.masked_fill(~taken, float("-inf"))
            e = (e - e.amax(-1, keepdim=True).clamp_min(-1e30)).exp()
            gate = (e / (e.sum(-1, keepdim=True) + 1e-20)).gather(1, pick.transpose(1, 2))    # [b,C,E]
            rows = (seq[:, None, None] * T + pick).transpose(0, 1).reshape(E, -1)             # [E,b C]
            y = swiglu(torch.bmm(h[rows.flatten()].view(E, -1, h.shape[1]), s.gate_up.mT))
            y = torch.bmm(y, s.down.mT) * gate.permute(2, 0, 1).reshape(E, -1, 1).to(h.dtype)
            out = out.index_add(0, rows.flatten(), y.flatten(0, 1))
            count += rows.shape[1]
        z = logits.logsumexp(-1).pow(2).mean()
        return out, s.c.router_z * z, count

    def forward(s, h, hf, share=None):
        """h: rows for the experts; hf: the same rows in f32 for the router. Returns rows and the router's losses."""
        if s.c.choice == "expert": return s.chosen(h, hf, share)
        E, K, N = s.c.experts, s.c.top, h.shape[0]
        logits = hf @ s.router.t()
        prob = logits.softmax(-1)
        w, pick = prob.topk(K, -1)
        w = w / w.sum(-1, keepdim=True)
        flat = pick.flatten()
        order = flat.argsort(stable=True)
        count = torch.bincount(flat, minlength=E)
        src, at, spare = order, torch.arange(N * K, device=h.device), None
        if not h.is_cuda: n, src, at, spare = filled(order, count)
        back = torch.empty_like(order); back[order] = at
        rows = Gather.apply(h, src // K, back, K)
        if h.is_cuda:
            ends = count.cumsum(0).int()
            mid = swiglu(F.grouped_mm(rows, s.gate_up.mT, offs=ends))
            y = F.grouped_mm(mid, s.down.mT, offs=ends)
        else:
            y = Grouped.apply(swiglu(Grouped.apply(rows, s.gate_up, n)), s.down, n)
        y = Gather.apply(y, back, src, 1, spare).view(N, K, -1)
        out = torch.bmm(w.to(y.dtype)[:, None], y)[:, 0] if h.is_cuda else weigh(y, w)
        share = count.float() / (N * K)
        balance = E * (share * prob.mean(0)).sum()
        z = logits.logsumexp(-1).pow(2).mean()
        return out, s.c.balance * balance + s.c.router_z * z, count

class Dense(nn.Module):
    def __init__(s, c):
        super().__init__()
        s.gate_up = nn.Parameter(torch.empty(2 * c.ff, c.width))
        s.down = nn.Parameter(torch.empty(c.width, c.ff))
    def forward(s, h, hf, share=None):
        return F.linear(swiglu(F.linear(h, s.gate_up)), s.down), 0.0, None

class Block(nn.Module):
    def __init__(s, c):
        super().__init__()
        s.c = c
        s.attn_norm = nn.Parameter(torch.ones(c.width)); s.ffn_norm = nn.Parameter(torch.ones(c.width))
        s.q_norm = nn.Parameter(torch.ones(c.head_dim)); s.k_norm = nn.Parameter(torch.ones(c.head_dim))
        s.qkv = nn.Parameter(torch.empty((c.heads + 2 * c.kv_heads) * c.head_dim, c.width))
        s.out = nn.Parameter(torch.empty(c.width, c.heads * c.head_dim))
        s.ffn = Experts(c) if c.experts else Dense(c)

    def forward(s, x, cos, sin, share=None, more=None, real=None):
        """more: see project_qkv; real [B,T]: rows that are no filling, None: all"""
        c = s.c
        B, T, D = x.shape
        q, k, v = project_qkv(x, s.attn_norm, s.qkv, s.q_norm, s.k_norm, cos, sin, c.heads, c.kv_heads, c.eps, more)
        a = attend(q, k, v, c.mask < 0).transpose(1, 2).reshape(B, T, -1)
        x = x + F.linear(a, s.out)
        hf = norm_to(x, s.ffn_norm, c.eps, x).view(-1, D)
        if real is not None: hf = hf[real.view(-1)]
        y, aux, count = s.ffn(hf.to(s.qkv.dtype), hf, share)
        if real is not None: y = y.new_zeros(B * T, D).masked_scatter(real.view(-1, 1), y)
        return x + y.view(B, T, D), aux, count

class Router(nn.Module):
    def __init__(s, n, width):
        super().__init__()
        s.router = nn.Parameter(torch.empty(n, width))
    def forward(s, h): return h @ s.router.t()

def take(x, rows): return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))

def kept_first(keep, grain=64):
    """[B,T] -> the kept rows of every sequence in order, then others up to the same number for all, a multiple of grain (see `filled`).
    The others stand behind: no kept row attends to them. The caller gives them no weight."""
    n = min(keep.shape[1], (int(keep.sum(1).max()) + grain - 1) // grain * grain)
    return (~keep).byte().argsort(dim=1, stable=True)[:, :n]

class Recursions(nn.Module):
    """Who goes through the shared blocks how often. While gradients are wanted, and where `exact`, expert choice takes the best share of
    every sequence; else those whose score is at least a half, which does not look ahead."""
    ALPHA, AUX, BALANCE, Z = 0.1, 1e-3, 0.1, 1e-3
    def __init__(s, c):
        super().__init__()
        s.c, s.exact = c, False
        s.rec = nn.ModuleList(Router(1, c.width) for _ in range(c.recursions)) if c.router == "expert" else nn.ModuleList([Router(c.recursions, c.width)])

    def forward(s, h, block, cos, sin):
        """h [B,T,D]; block(x, cos, sin) runs the shared layers once. Returns h, the routers' losses, depths [B,T]."""
        if s.c.router == "token": return s.chosen(h, block, cos, sin)
        return (s.best if s.exact or torch.is_grad_enabled() else s.above)(h, block, cos, sin)

    def step(s, h, rows, w, block, cos, sin):
        y = block(take(h, rows), cos[rows][:, None], sin[rows][:, None])
        return h.scatter_add(1, rows[..., None].expand(-1, -1, h.shape[-1]), w[..., None] * y)

    def best(s, h, block, cos, sin):
        B, T, _ = h.shape
        at, aux, depth = torch.arange(T, device=h.device).expand(B, T), 0.0, torch.zeros(B, T, dtype=torch.long, device=h.device)
        for r, router in enumerate(s.rec):
            u = router(take(h, at))[..., 0]
            k = max(1, (len(s.rec) - r) * T // len(s.rec))
            pick = u.topk(k, 1).indices.sort(1).values
            member = torch.zeros_like(u).scatter_(1, pick, 1.0)
            aux = aux + s.AUX * F.binary_cross_entropy_with_logits(u, member)
            at = at.gather(1, pick)
            depth = depth.scatter_add(1, at, torch.ones_like(at))
            h = s.step(h, at, s.ALPHA * u.gather(1, pick).sigmoid(), block, cos, sin)
        return h, aux, depth

    def above(s, h, block, cos, sin):
        depth, keep = torch.zeros(h.shape[:2], dtype=torch.long), True
        for router in s.rec:
            score = router(h)[..., 0].sigmoid()
            keep = (score >= 0.5) & keep
            if not keep.any(): break
            depth = depth + keep
            rows = kept_first(keep)
            h = s.step(h, rows, (s.ALPHA * score * keep).gather(1, rows), block, cos, sin)
        return h, 0.0, depth

    def chosen(s, h, block, cos, sin):
        u = s.rec[0](h)
        p = u.softmax(-1)
        depth = p.argmax(-1) + 1
        share = F.one_hot(depth - 1, p.shape[-1]).float().mean((0, 1))
        aux = s.BALANCE * p.shape[-1] * (share * p.mean((0, 1))).sum() + s.Z * u.logsumexp(-1).pow(2).mean()
        y, out = h, h
        for r in range(1, s.c.recursions + 1):
            if not (depth >= r).any(): break
            rows = kept_first(depth >= r)
            wide = rows[..., None].expand(-1, -1, h.shape[-1])
            z = block(take(y, rows), cos[rows][:, None], sin[rows][:, None])
            y = y.scatter(1, wide, z)
            out = out.scatter_add(1, wide, (p[..., r - 1] * (depth == r)).gather(1, rows)[..., None] * z)
        return out, aux, depth

class Concepts(nn.Module):
    """Neighbouring tokens that resemble each other become one row for the layers in the middle (arXiv 2601.21420). A token begins anew where
    its query and the key of the token before it point apart; a concept is the sum of the tokens since the last one, its own included. While
    gradients are wanted the decisions are drawn, near one half both ways; else they fall at one half."""
    WEIGHT, TAU = 0.03, 6.0
    def __init__(s, c):
        super().__init__()
        s.c, s.chance, s.bound = c, None, None
        s.q_router = nn.Parameter(torch.empty(c.width, c.width)); s.k_router = nn.Parameter(torch.empty(c.width, c.width))
        n = (c.heads + 2 * c.kv_heads) * c.head_dim
        s.joint = nn.ParameterList(nn.Parameter(torch.empty(n, c.width)) for _ in range(c.decoder))

    def decide(s, h):
        """[B,T,D] -> chance and decision of a boundary [B,T], the loss that draws their mean to 1 / ratio"""
        q, k = h @ s.q_router.t(), h @ s.k_router.t()
        p = (1 - F.cosine_similarity(q[:, 1:], k[:, :-1], dim=-1, eps=1e-12)) / 2
        p = torch.cat([torch.ones_like(p[:, :1]), p.clamp(0, 1)], 1)
        with torch.no_grad():
            sharp = torch.where(p > 0.5, p ** (1 / s.TAU), 1 - (1 - p) ** (1 / s.TAU))
            b = torch.bernoulli(sharp) > 0 if s.training and s.drawn else p >= 0.5
            b[:, 0] = True
        R, share = s.c.ratio, b.float().mean()
        aux = s.WEIGHT * R / (R - 1) * ((R - 1) * share * p.mean() + (1 - share) * (1 - p.mean()))
        s.chance, s.bound = p.detach(), b
        return p, b, aux

    def forward(s, h, middle):
        """h [B,T,D]; middle(x, real) runs the layers between on [B,M,D]. Returns h with its concepts, the concepts of each token, the loss."""
        B, T, D = h.shape
        s.drawn = torch.is_grad_enabled()
        p, b, aux = s.decide(h)
        n = b.sum(1)
        M = min(T, -(-int(n.max()) // 32) * 32)          # few different sizes
        at = (~b).byte().argsort(dim=1, stable=True)[:, :M]  # the boundaries, then anything
        real = torch.arange(M, device=h.device) < n[:, None]
        span = b.cumsum(1) - b.long()                    # boundaries before a token: the concept that it goes into
        x = h.new_zeros(B, T + 1, D).scatter_add(1, span[..., None].expand(-1, -1, D), h)[:, :M] * real[..., None]
        y = middle(x, real)
        pm = p.gather(1, at)
        stay = torch.log1p(-pm.clamp(max=1 - 1e-6))
        stay = torch.cat([torch.zeros_like(stay[:, :1]), stay[:, 1:]], 1).cumsum(1)
        later = torch.ones(M, M, dtype=torch.bool, device=h.device).tril()
        A = (stay[:, :, None] - stay[:, None]).masked_fill(~later, float("-inf")).exp() * pm[:, None]
        c = (A @ y).gather(1, (b.cumsum(1) - 1)[..., None].expand(-1, -1, D))
        sure = torch.where(b, p, 1 - p)
        return h + (sure + (1 - sure).detach())[..., None] * c, c, aux

class TiedLoss(torch.autograd.Function):
    """Mean cross entropy of h @ E^T against y, in row blocks that stay in cache; the gradients are made on the way forward.
    With w [rows] the sum of what every row has, times its w."""
    @staticmethod
    def forward(ctx, h, E, y, w=None, block=512):
        n = h.shape[0] if w is None else 1
        total = 0.0
        dh, dE = torch.empty_like(h), torch.zeros(E.shape, dtype=torch.float32, device=E.device)
        for i in range(0, h.shape[0], block):
            hb, yb = h[i:i + block], y[i:i + block]
            z = (hb @ E.t()).float()
            lse = z.logsumexp(-1)
            wb = 1 if w is None else w[i:i + block]
            total = total + ((lse - z.gather(1, yb[:, None])[:, 0]) * wb).sum()
            p = z.sub_(lse[:, None]).exp_()
            p.scatter_add_(1, yb[:, None], torch.full((len(yb), 1), -1.0, device=p.device))
            if w is not None: p *= wb[:, None]
            p = p.to(h.dtype)
            dh[i:i + block] = p @ E
            dE += p.t() @ hb
        ctx.save_for_backward(dh, dE); ctx.n = n
        return total / n
    @staticmethod
    def backward(ctx, g):
        dh, dE = ctx.saved_tensors
        return dh * (g / ctx.n), (dE * (g / ctx.n)).to(dh.dtype), None, None, None

class Model(nn.Module):
    def __init__(s, c, half=torch.bfloat16):
        super().__init__()
        s.c = c
        s.embed = nn.Parameter(torch.empty(c.vocab, c.width))
        middle = range(c.encoder, c.layers - c.decoder) if c.ratio else ()
        s.blocks = nn.ModuleList(Block(replace(c, top=c.concept_top) if i in middle else c) for i in range(c.layers))
        s.norm = nn.Parameter(torch.ones(c.width))
        s.recursions = Recursions(c) if c.recursions else None
        s.concepts = Concepts(c) if c.ratio else None
        s.depths = None          # of the last pass
        s.block = 32             # what a denoiser settles before it goes on, see `hidden`
        s.untied = None          # an output matrix of its own: only in files read back for comparison
        for n, p in s.named_parameters():
            if p.dim() < 2: continue
            std = 0.02 if n == "embed" else p.shape[-1] ** -0.5 * (0.1 if n.endswith("router") else 0.5)
            if n.endswith(("out", "down")): std *= (2 * c.layers) ** -0.5
            nn.init.normal_(p, 0, std)
            if not n.endswith("router"): p.data = p.data.to(half)
        if s.concepts:
            for p in (s.concepts.q_router, s.concepts.k_router): nn.init.eye_(p)
            for p in s.concepts.joint: nn.init.zeros_(p)

    def hidden(s, x, first):
        """[B,T] windows, [B] where what is written begins -> windows cut short, and what of a block is hidden in each. As when text is written
        in blocks: all before the block stands there, of the block a share from 0 to 1 is hidden, and all behind it, which is learned nothing of."""
        n, (B, T) = s.block, x.shape
        blocks = int((T - first).min()) // n
        j = torch.randint(0, blocks, (1,))
        a = (first + n * j)[:, None]
        at = torch.arange(T)[None]
        t = ((torch.rand(1) + torch.arange(B) / B) % 1).clamp_min(1 / n)[:, None]
        inside = (at >= a) & (at < a + n)
        some = torch.rand(B, T) < t
        end = min(T, int(a.max() + n * (1 + torch.randint(0, 2, (1,))) + 31) // 32 * 32)     # few different lengths
        return torch.where((inside & some) | (at >= a + n), s.c.mask, x)[:, :end], (inside & some)[:, :end]

    def forward(s, x, y=None, first=None):
        """Tokens [B,T] -> logits [B,T,V]; with targets y -> (cross entropy, router losses, expert counts per layer).
        A denoiser hides tokens of x itself when it is given any y, and its loss is the bound of arXiv 2502.09992, in nats per token; with
        first (see `hidden`) the mean over what is hidden in the block."""
        c, T = s.c, x.shape[1]
        hide = None
        if first is not None:
            (x, hide), y = s.hidden(x, first), x
            B, T = x.shape; y = y[:, :T]
            t = torch.full((B, 1), hide.sum() / (B * T))
        elif c.mask >= 0 and y is not None:
            y = x.reshape(-1, min(T, c.context)); B, T = y.shape
            t = ((torch.rand(1) + torch.arange(B) / B) % 1).clamp_min(1 / T)[:, None]   # spread evenly over a batch
            hide = torch.rand(B, T) < t
            hide[:, 0] = False                                                           # nothing stands before it
            x = torch.where(hide, c.mask, y)
        share = (x == c.mask).float().mean(1)
        inv = c.rope_base ** (-torch.arange(0, c.head_dim, 2, device=x.device).float() / c.head_dim)
        ang = torch.arange(T, device=x.device).float()[:, None] * inv
        cos, sin = ang.cos(), ang.sin()
        h, aux, counts = F.embedding(x, s.embed).float(), 0.0, []
        if s.recursions:
            def shared(z, cos, sin):
                for b in s.blocks[1:-1]: z = b(z, cos, sin)[0]
                return z
            h = s.blocks[0](h, cos, sin)[0]
            h, aux, s.depths = s.recursions(h, shared, cos, sin)
            aux = aux * c.layers # divided below
            h = s.blocks[-1](h, cos, sin)[0]
        if s.concepts:
            def layers(z, which, **kw):
                nonlocal aux
                for i in which:
                    more = F.linear(now, s.concepts.joint[i - c.layers + c.decoder]) if kw.get("joint") else None
                    z, a, n = s.blocks[i](z, cos[:z.shape[1]], sin[:z.shape[1]], None, more, kw.get("real"))
                    aux = aux + a; counts.append(n)
                return z
            h = layers(h, range(c.encoder))
            h, now, a = s.concepts(h, lambda z, real: layers(z, range(c.encoder, c.layers - c.decoder), real=real))
            aux = aux + a * c.layers # divided below
            now = now.to(s.embed.dtype)
            h = layers(h, range(c.layers - c.decoder, c.layers), joint=True)
        for b in s.blocks if not (s.recursions or s.concepts) else ():
            h, a, n = b(h, cos, sin, share)
            aux = aux + a
            if n is not None: counts.append(n)
        h = norm(h, s.norm, c.eps).to(s.embed.dtype)
        if hide is not None:
            at = hide.flatten().nonzero()[:, 0]
            w = (1 / t).expand(B, T).flatten()[at] / (B * T)
            return TiedLoss.apply(h.view(-1, c.width)[at - 1], s.embed, y.reshape(-1)[at], w), aux / c.layers, counts
        if y is None: return h @ (s.embed if s.untied is None else s.untied).t()
        return TiedLoss.apply(h.view(-1, c.width), s.embed, y.reshape(-1)), aux / c.layers, counts
