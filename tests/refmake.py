"""Shared by the independent references (make.py of choice, concept and depth): arithmetic, random weights
and the GGUF files that they go to, a text, and the results by case.  Written from specifications, not from
Tessera.  Needs numpy and gguf (pip).

Like the runtime's cache, K and V are rounded to F16; matrices are F16 in the files and nothing else is
rounded."""
import numpy as np
from gguf import GGUFWriter, GGMLQuantizationType as Q

VOCAB, DIM = 40, 16
BASE, EPS = 5000.0, 1e-5


def f16(x):
    return np.asarray(x, np.float32).astype(np.float16).astype(np.float64)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rms(x, w):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * w


def rotate(x, pos, neox=True, rot=DIM):
    """x [n][heads][DIM]: the first `rot` values of each head, halves (neox) or neighbours against each
    other."""
    a = pos[:, None] * BASE ** (-2.0 * np.arange(rot // 2) / rot)
    c, s = np.cos(a)[:, None], np.sin(a)[:, None]
    y = x.copy()
    i, j = (slice(0, rot // 2), slice(rot // 2, rot)) if neox else (slice(0, rot, 2), slice(1, rot, 2))
    y[..., i] = x[..., i] * c - x[..., j] * s
    y[..., j] = x[..., j] * c + x[..., i] * s
    return y


def attend(q, k, v, seen):
    """q [n][heads][DIM], k and v [m][kv][DIM], seen [n][m] -> [n][heads * DIM]"""
    out = np.empty_like(q)
    for h in range(q.shape[1]):
        g = h // (q.shape[1] // k.shape[1])
        s = np.where(seen, q[:, h] @ k[:, g].T / np.sqrt(DIM), -np.inf)
        e = np.exp(s - s.max(1, keepdims=True))
        out[:, h] = e / e.sum(1, keepdims=True) @ v[:, g]
    return out.reshape(len(q), -1)


def far(values, at, what, margin):
    """Refuses a seed with which a decision is so close that rounding could turn it."""
    d = np.abs(np.asarray(values) - at).min() if len(values) else 1
    if d < margin:
        raise SystemExit(f"{what}: a decision is only {d:g} from its threshold: take another seed")


class Weights:
    drawn = np.float32  # what a matrix is before it is rounded

    def __init__(self, seed):
        self.rng, self.t = np.random.default_rng(seed), {}

    def matrix(self, name, *shape, gain=1.0, exact=False):
        x = (gain / np.sqrt(shape[-1]) * self.rng.standard_normal(shape)).astype(self.drawn)
        self.t[name] = x.astype(np.float32 if exact else np.float16)

    def vector(self, name, n, mean=1.0, spread=0.2):
        self.t[name] = (mean + spread * self.rng.standard_normal(n)).astype(np.float32)

    def __getitem__(self, name):
        return self.t[name].astype(np.float64)

    def write(self, path, arch, name, keys, plain={}):
        """keys: of the architecture; plain: others"""
        w = GGUFWriter(path, arch)
        w.add_name(name)
        w.add_tokenizer_model("no_vocab")
        put = {bool: w.add_bool, str: w.add_string, int: w.add_uint32, float: w.add_float32}
        for k, v in {**{f"{arch}.{k}": v for k, v in keys.items()}, **plain}.items():
            put[type(v)](k, v)
        for n, x in self.t.items():
            w.add_tensor(n, x, raw_dtype=Q.F16 if x.dtype == np.float16 else Q.F32)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()


class Folder:
    """What a reference writes: the ids of one text and each case's results."""

    def __init__(self, path, ids):
        self.path, self.cases = path, []
        with open(f"{path}/text.ids", "w") as f:
            f.write(",".join(map(str, ids)) + "\n")

    def case(self, name, model, options, logits, depth, chance=None):
        logits.astype(np.float32).tofile(f"{self.path}/{name}.logits.f32")
        depth.astype(np.uint8).tofile(f"{self.path}/{name}.depth")
        if chance is not None:
            chance.astype(np.float32).tofile(f"{self.path}/{name}.chance.f32")
        self.cases.append(f"{name} {model} {options}".strip())
        print(f"{name:24} mean depth {depth.mean():.2f} {np.bincount(depth).tolist()}, logits' rms "
              f"{np.sqrt((logits ** 2).mean()):.2f}")

    def close(self):
        with open(f"{self.path}/cases.txt", "w") as f:
            f.write("\n".join(self.cases) + "\n")
