#!/usr/bin/env python3
"""Writes the small gemma4 vocabulary of tests/test_tok.c and what the library `tokenizers` makes of
some texts with it: BPE over characters with "▁" for a space, merges by rank, bytes as fallback, the
markers of Gemma 4.  Needs tokenizers and gguf (pip).

  make_gemma4.py README.md

learns merges from a text, and writes gemma4.gguf, gemma4.inp (texts, each followed by a line
__ggml_vocab_test__) and gemma4.out (a line of ids per text) beside itself."""
import json
import os
import random
import sys
from gguf import GGUFWriter, TokenType
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

N_VOCAB = 700
CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|turn>", "<turn|>"]
VISIBLE = ["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>",
           "<tool_response|>", '<|"|>']
BYTES = [f"<0x{b:02X}>" for b in range(256)]
TEXTS = [
    "Once upon a time, there was a little rabbit named Benny.",
    " a space in front", "two  spaces,   three,    four", "behind  ", "   ", " ", "\t\ttabs\t",
    "one line\nand another\n", "\n", "\n\n", "\n\n\n", "\n\n\n\n\n\n\n", " \n \n", "\r\n\r\n",
    "a\n\n\nb\n", "\n the memory budget", "weights \n\n  of the model",
    "the the the the", "tessera plan -m F --mem 6G", "12 345 6789", "fn(x) { return x * x; }",
    "na\u00efve caf\u00e9 \u2014 \u201cquoted\u201d", "\u4f60\u597d\uff0c\u4e16\u754c",
    "\U0001f999 and \U0001f468\u200d\U0001f469\u200d\U0001f467", "\u0411\u044a\u043b\u0433\u0430",
    "\u2581the\u2581\u2581weights", "\x01\x7f", "e\u0301\u0323",
    "<|channel>thought\n<channel|>", 'a <|"|>b<|"|>', "</s> is a tag here", "<0x41> is text",
]


def random_texts(n):
    r = random.Random(4)
    parts = [" ", " ", "  ", "\n", "\n\n", "the", " memory", "weights", "e", "t", "x", "Z", ".", "9",
             "\u2581", "\u00e9", "\u4e16", "\U0001f999", "\t", "<", "|", "token", "s", "ing"]
    return ["".join(r.choice(parts) for _ in range(r.randint(1, 60))) for _ in range(n)]


def learn(text):
    """Characters and merges; no token has a newline beside anything else."""
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.Replace(" ", "\u2581")
    t.pre_tokenizer = pre_tokenizers.Split(Regex("\n+|\u2581*[^\u2581\n]+|\u2581+"), "isolated")
    n = N_VOCAB - len(CONTROL) - len(VISIBLE) - len(BYTES)
    alphabet = [chr(c) for c in range(33, 127)] + ["\n", "\u2581", "\u00e9"]
    t.train_from_iterator([text], trainers.BpeTrainer(vocab_size=n, initial_alphabet=alphabet,
                                                      limit_alphabet=len(alphabet),
                                                      show_progress=False))
    m = json.loads(t.to_str())["model"]
    return sorted(m["vocab"], key=m["vocab"].get), [tuple(x) for x in m["merges"]]


def main():
    here = os.path.dirname(os.path.abspath(__file__)) + "/gemma4"
    with open(sys.argv[1], encoding="utf-8") as f:
        pieces, merges = learn(f.read() + "\n\n\n" * 40)
    tokens = CONTROL + VISIBLE + BYTES + pieces
    t = Tokenizer(models.BPE({x: i for i, x in enumerate(tokens)}, merges, byte_fallback=True,
                             unk_token="<unk>", fuse_unk=True))
    t.normalizer = normalizers.Replace(" ", "\u2581")
    t.add_special_tokens([AddedToken(x, normalized=False, special=True) for x in CONTROL])
    t.add_tokens([AddedToken(x, normalized=False) for x in VISIBLE])

    w = GGUFWriter(here + ".gguf", "gemma4")
    w.add_tokenizer_model("gemma4")
    w.add_token_list(tokens)
    w.add_token_scores([-1000.0] * len(tokens))
    w.add_token_types([TokenType.CONTROL] * len(CONTROL) + [TokenType.USER_DEFINED] * len(VISIBLE) +
                      [TokenType.BYTE] * 256 + [TokenType.NORMAL] * len(pieces))
    w.add_token_merges([f"{a} {b}" for a, b in merges])
    for name, i in (("bos", 2), ("eos", 1), ("unknown", 3), ("padding", 0)):
        w.add_uint32(f"tokenizer.ggml.{name}_token_id", i)
    w.add_add_space_prefix(False)
    w.add_add_bos_token(False)  # as some files say
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()

    texts = TEXTS + random_texts(60)
    with open(here + ".inp", "w", encoding="utf-8", newline="") as f:
        f.write("".join(x + "\n__ggml_vocab_test__\n" for x in texts))
    with open(here + ".out", "w", encoding="ascii") as f:
        for x in texts:
            f.write("".join(f" {i}" for i in t.encode(x, add_special_tokens=False).ids) + "\n")


main()
