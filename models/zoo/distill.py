"""Windows of text that a model wrote: what a denoiser is taught from so that it may settle many tokens at once.

What it is:  asks a model (greedily: one answer to one question) for every story that prepare.py's stream asks for, and writes question
             and answer as windows for `train.py --block`. What is asked for in prompts.jsonl, by those words or by that subject, is left
             out: denoise.py measures there.
Owns:        OUT/train.npy and OUT/starts.npy; the held-out sets are linked, not made.
Never does:  train, or show the writer's doubts (only what it said).

    python distill.py TESSERA WRITER.gguf DATA OUT [--texts 8000] [--n 116] [--flags "--block 32"] [--rest 60]
"""
import argparse, json, os, random, re, subprocess, tempfile
import numpy as np
import sentencepiece as spm
from prepare import START, END, turn

ASKED = re.compile(re.escape(START) + r"user\n([^<\n]{4,90})" + re.escape(END) + "\n" + re.escape(START) + r"assistant\n([^<]*)")
SUBJECT = re.compile(r" about (?:an? )?([^.?,!]+?)(?:, please)?[.?!]")

def asked(stream, tok, texts):
    """Different questions for stories, in the stream's order, each with the first words of a story told for it."""
    lines = open(os.path.join(os.path.dirname(__file__), "prompts.jsonl")).read().splitlines()
    held = {ASKED.match(json.loads(l)["prompt"])[1] for l in lines}
    subjects = {m[1] for a in held if (m := SUBJECT.search(a))}
    seen = {}
    for row in stream:
        for m in ASKED.finditer(tok.decode(row.tolist())):
            about = SUBJECT.search(m[1])
            if not re.search(r"\bstory|^Tell me about", m[1], re.I) or m[1] in held or (about and about[1] in subjects): continue
            seen.setdefault(m[1], m[2])
        if len(seen) >= texts: break
    return list(seen.items())[:texts]

def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("tessera"); ap.add_argument("writer"); ap.add_argument("data"); ap.add_argument("out")
    ap.add_argument("--texts", type=int, default=8000); ap.add_argument("--n", type=int, default=116)
    ap.add_argument("--rest", type=int, default=0, help="only write so many questions behind the first TEXTS to OUT/prompts.jsonl, for denoise.py")
    ap.add_argument("--window", type=int, default=128); ap.add_argument("--flags", default="", help="of tessera run")
    o = ap.parse_args()
    os.makedirs(o.out, exist_ok=True)
    tok = spm.SentencePieceProcessor(model_file=o.data + "/tokenizer.model")
    pairs, rng = asked(np.load(o.data + "/train.npy", mmap_mode="r"), tok, o.texts + o.rest), random.Random(1)
    if o.rest:
        with open(o.out + "/prompts.jsonl", "w") as f:
            for ask, _ in pairs[o.texts:]: f.write(json.dumps({"prompt": turn("user", ask) + START + "assistant\n"}) + "\n")
        return
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as f:
        for i, (ask, story) in enumerate(pairs):
            words = story.split(" ")[:rng.choice((0, 0, 0, 6, 12))]      # most answers from the start, some from a child's own beginning
            pairs[i] = turn("user", ask) + START + "assistant\n" + " ".join(words)
            f.write(json.dumps({"id": str(i), "prompt": pairs[i], "n": o.n, "temp": 0}) + "\n")
        f.flush()
        r = subprocess.run([o.tessera, "run", "-m", o.writer, "--batch", f.name, "--no-escape", *o.flags.split()], stdout=subprocess.PIPE, text=True, check=True)
    rows, starts = [], []
    for line in r.stdout.splitlines():
        d = json.loads(line)
        ids = tok.encode(pairs[int(d["id"])] + d["text"])[:o.window]
        if len(ids) < o.window: continue
        rows.append(ids + [0]); starts.append(len(tok.encode(pairs[int(d["id"])])))  # the last is a target that a denoiser has no use for
    order = np.random.default_rng(1).permutation(len(rows))
    np.save(o.out + "/train.npy", np.array(rows, np.uint16)[order]); np.save(o.out + "/starts.npy", np.array(starts)[order])
    for name in ("stories", "dialogues", "books"):
        if not os.path.exists(p := f"{o.out}/held-{name}.npy"): os.symlink(os.path.abspath(f"{o.data}/held-{name}.npy"), p)
    print(f"{len(rows)} of {len(pairs)} answers fill a window of {o.window}")

if __name__ == "__main__": main()
