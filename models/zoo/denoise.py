"""How well and how fast a denoiser writes: every way to write on the same prompts.

What it is:  runs `tessera run` on the prompts of prompts.jsonl with each way, and scores what it wrote by another model of the same
             vocabulary (generative perplexity: tokens of the answer behind the chat's beginning). Beside it the share of four words in a row
             that are different ones.
Owns:        the table of ways in README.md.
Never does:  train, or judge by anything but the other model's logits.

    python denoise.py TESSERA MODEL.gguf SCORER.gguf [--file F] [--prompts N] [--n 64] [--ways "NAME=FLAGS;NAME=FLAGS"]
"""
import argparse, json, math, os, re, subprocess, tempfile
import numpy as np

WAYS = ("one per pass=--block 32;half the passes=--block 32 --steps 32;a quarter=--block 32 --steps 16;random order=--block 32 --alg random;"
        "one block=--block -1;maskgit_plus=--alg maskgit_plus --block -1;topk_margin=--alg topk_margin --block -1;entropy=--alg entropy --block -1;"
        "origin=--alg origin --block -1;threshold 0.9=--block 32 --threshold 0.9;threshold 0.7=--block 32 --threshold 0.7;"
        "threshold 0.5=--block 32 --threshold 0.5;threshold 0.3=--block 32 --threshold 0.3;prefix cache=--block 32 --cache prefix;"
        "dual cache=--block 32 --cache dual;dual, threshold 0.5=--block 32 --cache dual --threshold 0.5;guidance 1=--block 32 --cfg-scale 1")

def call(*args):
    return subprocess.run(args, capture_output=True, text=True, check=True)

def ids_of(tessera, model, text):
    return [int(x) for x in call(tessera, "tokenize", "-m", model, "--special", "--no-bos", "-p", text).stdout.split(",")]

def score(tessera, scorer, head, text):
    """Nats and tokens of the text behind head."""
    a, b = ids_of(tessera, scorer, head), ids_of(tessera, scorer, head + text)
    with tempfile.NamedTemporaryFile() as f:
        call(tessera, "logits", "-m", scorer, "--ids", ",".join(map(str, b)), "-o", f.name)
        z = np.fromfile(f.name, np.float32).reshape(len(b), -1).astype(np.float64)
    z -= z.max(-1, keepdims=True)
    z -= np.log(np.exp(z).sum(-1, keepdims=True))
    return -sum(z[i - 1, b[i]] for i in range(len(a), len(b))), len(b) - len(a)

def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("tessera"); ap.add_argument("model"); ap.add_argument("scorer")
    ap.add_argument("--file", help="of prompts; default: prompts.jsonl beside this file")
    ap.add_argument("--prompts", type=int, default=20); ap.add_argument("--n", type=int, default=64); ap.add_argument("--ways", default=WAYS)
    o = ap.parse_args()
    lines = open(o.file or os.path.join(os.path.dirname(__file__), "prompts.jsonl")).read().splitlines()[:o.prompts]
    print("| way | passes | tokens per pass | seconds | tokens per second | generative perplexity | different |\n|---|---|---|---|---|---|---|")
    for way in o.ways.split(";"):
        name, flags = way.split("=", 1)
        passes = seconds = nats = tokens = scored = 0
        grams = []                                       # of four words: answers that repeat themselves, or each other, score well
        for line in lines:
            head = json.loads(line)["prompt"]
            r = call(o.tessera, "run", "-m", o.model, "-p", head, "--no-escape", "-n", str(o.n), "--ignore-eos", "-s", "1", *flags.split())
            m = re.search(r"\+ (\d+) tokens in (\d+) passes \([^)]*\), ([\d.]+) s", r.stderr)
            passes += int(m[2]); seconds += float(m[3]); tokens += int(m[1])
            x, n = score(o.tessera, o.scorer, head, r.stdout)
            nats += x; scored += n
            words = r.stdout.split()
            grams += [tuple(words[i:i + 4]) for i in range(len(words) - 3)]
        n = len(lines)
        print(f"| {name} | {passes / n:.1f} | {tokens / passes:.2f} | {seconds / n:.3f} | {tokens / seconds:.0f} | {math.exp(nats / scored):.2f} | {len(set(grams)) / len(grams):.2f} |", flush=True)

if __name__ == "__main__": main()
