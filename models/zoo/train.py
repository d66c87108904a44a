"""Trains one preset on the stream that prepare.py wrote.

What it is:  a synchronous data-parallel loop. On a CPU several one-thread processes share weights, gradients and optimiser state
             in shared memory and meet at two barriers per step; on CUDA there is one process. Muon moves the matrices, AdamW the rest.
Owns:        the optimiser, the schedule (counted in windows, never in seconds), the run folder: last.pt, log.csv, schedule.json.
Never does:  choose data (the stream's order is fixed) or write a model file for users (export.py does).

    python train.py story DATA RUN [--tokens 20e6] [--procs 2] [--schedule OTHER_RUN/schedule.json]

A file RUN/stop makes it save and end. Started again with the same folder it goes on where it stopped. Started again with fewer --tokens, the rest of the run is shortened:
the learning rate lands at zero earlier and windows are left out evenly, so that the end of the stream is still the end of the run.
schedule.json records that; a twin given the file sees the same windows in the same order.
"""
import argparse, csv, json, math, os, time
# Large blocks are kept, not mapped anew each time. The compiler is told that the CPU's vectors work: its own trial gives up without
# a word when the machine is busy, and everything it makes is scalar then.
if __name__ == "__main__" and "MALLOC_MMAP_MAX_" not in os.environ:
    import sys
    os.environ.update(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_="17179869184", TORCHINDUCTOR_VEC_ISA_OK="1")
    os.execv(sys.executable, [sys.executable] + sys.argv)
import numpy as np
import torch
import torch.multiprocessing as mp
import model as M

class Schedule:
    """Which window comes when, and at what rate. segments: [first window slot, slots in the whole run, position in the stream]"""
    def __init__(s, n_stream, segments): s.n, s.seg = n_stream, segments
    def at(s, slot): return [g for g in s.seg if g[0] <= slot][-1]
    def position(s, slot):
        first, total, pos = s.at(slot)
        return pos + (slot - first) * (s.n - pos) / max(1, total - first)
    def window(s, slot): return min(s.n - 1, int(s.position(slot)))
    def total(s): return s.seg[-1][1]
    def cut(s, slot, total):
        if total != s.total(): s.seg.append([slot, total, s.position(slot)])
    def rate(s, slot, warm, flat=0.35):
        t = slot / s.at(slot)[1]
        return min(1.0, (slot + 1) / warm, max(0.0, 1 - t) / (1 - flat))

def orthogonal(g, steps=5):
    """Nearest (half-)orthogonal matrices to a batch of matrices, by an odd quintic iterated (Newton-Schulz). Few at a time stay in cache."""
    out = []
    for x in g.split(8 if g.device.type == "cpu" else len(g)):
        x = x.bfloat16()
        tall = x.shape[-2] > x.shape[-1]
        if tall: x = x.mT
        x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)
        for _ in range(steps):
            a = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
        out.append((x.mT if tall else x).float())
    return torch.cat(out)

class State:
    """All parameters laid end to end: f32 master, one gradient row per process, momentum, second moment."""
    def __init__(s, net, procs, device):
        s.slices, s.names, at = [], [], 0
        for name, p in net.named_parameters():
            s.names.append(name); s.slices.append((at, at + p.numel())); at += p.numel()
        z = lambda *n: torch.zeros(*n, device=device)
        s.master, s.grad, s.mom, s.second, s.note = z(at), z(procs, at), z(at), z(at), z(procs, 4)
        for (a, b), p in zip(s.slices, net.parameters()): s.master[a:b] = p.data.flatten().float()
    def share(s):
        for t in (s.master, s.grad, s.mom, s.second, s.note): t.share_memory_()
    def save(s): return {"master": s.master, "mom": s.mom, "second": s.second}
    def load(s, d, net, what=("master", "mom", "second")):
        assert [tuple(x) for x in d["slices"]] == s.slices, "weights of another shape"
        for k in what: getattr(s, k).copy_(d[k])
        for (a, b), p in zip(s.slices, net.parameters()): p.data.copy_(s.master[a:b].view_as(p))

def as_matrices(name, p, c):
    """How Muon sees a parameter: a batch of matrices, or None where AdamW moves it."""
    if p.dim() < 2 or name == "embed" or name.endswith("router"): return None
    if name.endswith("qkv"): return (-1, c.head_dim, c.width)
    if name.endswith("gate_up"): return (-1, c.ff, c.width)
    return (-1, *p.shape[-2:])

def update(st, net, mine, step, rate, o):
    """One optimiser step on the parameters listed in `mine`."""
    params = list(net.parameters())
    for i in mine:
        (a, b), p, name = st.slices[i], params[i], st.names[i]
        w, m = st.master[a:b], st.mom[a:b]
        g = st.grad[:, a:b].sum(0)
        shape = as_matrices(name, p, net.c)
        if shape:
            lr = o.muon_lr * rate
            m.mul_(0.95).add_(g)
            d = orthogonal((g + 0.95 * m).view(shape)) * max(1.0, shape[-2] / shape[-1]) ** 0.5
            w.mul_(1 - lr * o.decay).sub_(d.flatten(), alpha=lr)
        else:
            lr, v = o.adam_lr * rate, st.second[a:b]
            m.lerp_(g, 0.1); v.lerp_(g * g, 0.05)
            w.addcdiv_(m / (1 - 0.9 ** (step + 1)), (v / (1 - 0.95 ** (step + 1))).sqrt_().add_(1e-10), value=-lr)
        p.data.copy_(w.view_as(p))
        st.grad[:, a:b] = 0

def deal(st, procs):
    """Parameters to processes, largest first to the least loaded."""
    load, hands = [0] * procs, [[] for _ in range(procs)]
    for i in sorted(range(len(st.slices)), key=lambda i: st.slices[i][0] - st.slices[i][1]):
        r = load.index(min(load)); hands[r].append(i); load[r] += st.slices[i][1] - st.slices[i][0]
    return hands

@torch.no_grad()
def held_out(net, data, device, windows=16):
    T, out = net.c.context, {}
    for name in ("stories", "dialogues", "books"):
        ids = np.load(f"{data}/held-{name}.npy")
        n = min(windows, (len(ids) - 1) // T)
        loss = 0.0
        for k in range(0, n, 4):
            z = torch.stack([torch.from_numpy(ids[j * T:j * T + T + 1].astype(np.int64)) for j in range(k, min(n, k + 4))]).to(device)
            with torch.random.fork_rng():
                torch.manual_seed(k)                         # what a denoiser hides
                loss += net(z[:, :-1], z[:, 1:])[0].item() * len(z)
        out[name] = loss / n
    return out

def work(rank, procs, o, net, st, sched, step0, barrier, device):
    if device == "cpu": torch.set_num_threads(1)
    if not o.eager: M.compile_pieces()
    stream = np.load(o.data + "/train.npy", mmap_mode="r")
    starts = torch.from_numpy(np.load(o.data + "/starts.npy")) if o.block else None
    net.block = o.block
    mine = deal(st, procs)[rank]
    for (a, b), p in zip(st.slices, net.parameters()):
        def hook(p, row=st.grad[rank, a:b]):
            row.add_(p.grad.flatten()); p.grad = None
        p.register_post_accumulate_grad_hook(hook)
    span = stream.shape[1] - 1
    batch = o.batch // span                              # windows of a step; each process takes every procs-th micro batch
    micro = max(1, o.micro // span)
    torch.manual_seed(o.seed * procs + rank)             # what a denoiser hides
    total = sched.total() // batch
    wait = barrier.wait if barrier else lambda: None
    log = open(o.run + "/log.csv", "a", newline="") if rank == 0 else None
    t0, at0, saved = time.time(), step0, time.time()
    for step in range(step0, total):
        slots = range(step * batch, (step + 1) * batch)
        parts = [slots[i:i + micro] for i in range(0, batch, micro)]
        loss_sum = aux_sum = 0.0; counts = None; depth = ""
        for part in parts[rank::procs]:
            which = [sched.window(k) % len(stream) for k in part]
            z = torch.from_numpy(np.stack([stream[k] for k in which]).astype(np.int64)).to(device)
            loss, aux, n = net(z[:, :-1], z[:, 1:]) if starts is None else net(z[:, :-1], z[:, 1:], starts[which])
            ((loss + aux) * (len(part) / batch)).backward()
            loss_sum += loss.item() * len(part) / batch; aux_sum += (aux.item() if n else 0.0) * len(part) / batch
            if n: counts = torch.stack(n).float() if counts is None else counts + torch.stack(n)
        low = 1.0
        if counts is not None:
            f = counts / counts.sum(-1, keepdim=True)
            low = float((-(f * (f + 1e-9).log()).sum(-1) / math.log(f.shape[-1])).min())
        st.note[rank, :3] = torch.tensor([loss_sum, aux_sum, low])
        if net.depths is not None: depth = net.depths.float().mean().item()
        wait()
        rate = sched.rate(step * batch, o.warm * batch)
        update(st, net, mine, step, rate, o)
        if rank == 0:
            loss, aux, low = st.note[:, 0].sum().item(), st.note[:, 1].sum().item(), st.note[:, 2].min().item()
            done = step + 1
            row = [done, done * batch * span, f"{loss:.4f}", f"{o.muon_lr * rate:.5f}", f"{aux:.4f}", f"{low:.3f}", depth and f"{depth:.3f}"]
            if not math.isfinite(loss): raise SystemExit("the loss is not finite")
            st.note[0, 3] = os.path.exists(o.run + "/stop")
        wait()
        stop = bool(st.note[0, 3])
        if rank:
            if stop: break
            continue
        now = time.time()
        if done % 10 == 0 or done == total:
            row += [f"{(done - at0) * batch * span / (now - t0):.0f}"]; t0, at0 = now, done
            if done % o.eval_every == 0 or done == total: row += [f"{v:.4f}" for v in held_out(net, o.data, device).values()]
            csv.writer(log).writerow(row); log.flush()
            print(*row, flush=True)
        if now - saved > o.save_every or done == total or stop:
            save(o, net, st, sched, done); saved = now
        if stop:
            os.remove(o.run + "/stop"); print(f"stopped after step {done}"); break

def save(o, net, st, sched, step):
    d = {"config": net.c.dict(), "preset": o.preset, "step": step, "names": st.names, "slices": st.slices, "shapes": [tuple(p.shape) for p in net.parameters()], **st.save()}
    torch.save(d, o.run + "/last.tmp"); os.replace(o.run + "/last.tmp", o.run + "/last.pt")
    json.dump({"stream": sched.n, "segments": sched.seg}, open(o.run + "/schedule.json", "w"))

def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("preset", choices=M.PRESETS); ap.add_argument("data"); ap.add_argument("run")
    ap.add_argument("--tokens", type=float, help="length of the run; default: the whole stream once")
    ap.add_argument("--from", dest="first", metavar="FILE", help="first weights: upcycle.py's file, another run's last.pt or a GGUF of the same shape")
    ap.add_argument("--schedule", help="schedule.json of another run, to see exactly its data")
    ap.add_argument("--seed", type=int, default=1, help="of the first weights; the data's order is the stream's")
    ap.add_argument("--procs", type=int, default=2); ap.add_argument("--batch", type=int, default=8192); ap.add_argument("--micro", type=int, default=2048)
    ap.add_argument("--muon-lr", type=float, default=0.02); ap.add_argument("--adam-lr", type=float, default=4e-3); ap.add_argument("--decay", type=float, default=0.1)
    ap.add_argument("--block", type=int, default=0, metavar="N", help="hide as when text is written in blocks of N; DATA is distill.py's")
    ap.add_argument("--rounds", type=int, default=1, help="times the stream is gone through")
    ap.add_argument("--warm", type=int, default=60, help="steps"); ap.add_argument("--eval-every", type=int, default=200)
    ap.add_argument("--save-every", type=float, default=240, help="seconds"); ap.add_argument("--eager", action="store_true")
    o = ap.parse_args()
    os.makedirs(o.run, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda": o.procs = 1
    torch.manual_seed(o.seed)
    c = M.PRESETS[o.preset]
    net = M.Model(c).to(device)
    st = State(net, o.procs, device)
    n_stream, width = np.load(o.data + "/train.npy", mmap_mode="r").shape
    assert width == c.context + 1 or (c.mask >= 0 and ((width - 1) % c.context == 0 or o.block)), "prepare.py made windows of another length"
    n_stream *= o.rounds
    batch, step = o.batch // (width - 1), 0
    sched = Schedule(n_stream, [[0, n_stream // batch * batch, 0]])
    if o.first and not os.path.exists(o.run + "/last.pt"):
        if o.first.endswith(".gguf"):
            import export
            old = dict(export.read(o.first).named_parameters())
            first = {"slices": st.slices, "master": torch.cat([old[n].detach().flatten() for n in st.names])}
        else: first = torch.load(o.first, map_location=device)
        st.load(first, net, ["master"])
    if os.path.exists(o.run + "/last.pt"):
        d = torch.load(o.run + "/last.pt", map_location=device)
        st.load(d, net); step = d["step"]
        sched.seg = json.load(open(o.run + "/schedule.json"))["segments"]
    elif o.schedule: sched.seg = json.load(open(o.schedule))["segments"]
    if o.tokens: sched.cut(step * batch, min(n_stream, int(o.tokens / (width - 1))) // batch * batch)
    print(f"{o.preset}: {len(st.master) / 1e6:.2f} M parameters, step {step} of {sched.total() // batch}, {device}", flush=True)
    if step == 0 and not os.path.exists(o.run + "/log.csv"):
        open(o.run + "/log.csv", "w").write("step,tokens,loss,lr,router_loss,lowest_entropy,depth,tokens_per_s,held_stories,held_dialogues,held_books\n")
    if o.procs == 1: work(0, 1, o, net, st, sched, step, None, device)
    else:
        net.share_memory(); st.share()
        ctx = mp.get_context("spawn")
        mp.spawn(work, (o.procs, o, net, st, sched, step, ctx.Barrier(o.procs), device), o.procs)

if __name__ == "__main__":
    main()
