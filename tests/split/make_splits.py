#!/usr/bin/env python3
"""Writes what tests/test_split.c compares with: how the `regex` module (Matthew Barnett's engine, with
its own Unicode tables) cuts 10,000 random strings by the expressions of every pre-tokenizer.  Needs
regex (pip).

  make_splits.py [NAME NUMBER]

writes beside itself
  alphabet.txt  what strings are made of, a line each, as hexadecimal code points: snippets, then
                single characters, nearly all with the category that they have had since Unicode 3.2
  splits.txt    per set of expressions a line with the names that use it and a line of hashes: FNV-1a
                of the ends of all words, for BLOCK strings each
With a name and a number it prints the words of that string instead.

The expressions are the published ones (tokenizer.json of the models), with the two liberties that
llama.cpp takes and that its files therefore mean: English short forms are ASCII, whatever the case,
and the upper and lower case of GPT-4o and Tekken is that of ASCII."""
import os
import sys
import unicodedata
import regex

N_STRINGS, BLOCK, N_CHARS = 10000, 200, 3000
M64 = (1 << 64) - 1
S = r"\p{White_Space}"
SHORT = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
END = rf"{S}*[\r\n]+|{S}+(?!\P{{White_Space}})|{S}+"
GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^{S}\p{{L}}\p{{N}}]+|" \
       rf"{S}+(?!\P{{White_Space}})|{S}+"


def cl100k(digits):
    return rf"(?:{SHORT})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^{S}\p{{L}}\p{{N}}]+[\r\n]*|{END}"


def cased(upper, lower, short, digits, marks_end):
    lead = r"[^\r\n\p{L}\p{N}]?"
    return rf"{lead}{upper}*{lower}+{short}|{lead}{upper}+{lower}*{short}|{digits}|" \
           rf" ?[^{S}\p{{L}}\p{{N}}]+{marks_end}|{END}"


ASCII_CASE = (r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])")
ALL_CASE = (r"[[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]--\p{Han}]", r"[[\p{Ll}\p{Lm}\p{Lo}\p{M}]--\p{Han}]")
DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293"
    "\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c"
    "\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"
    "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59"
    "\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"
    "\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"
    "\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943")
CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
PUNCT = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"

SETS = [
    ("default", [r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"]),
    ("gpt-2 phi-2 gigachat mellum a.x-4.0 olmo mpt jais trillion exaone4 granite-docling", [GPT2]),
    ("starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", [r"\p{N}", GPT2]),
    ("qwen2 deepseek-r1-qwen megrez stablelm2 hunyuan solar-open grok-2", [cl100k(r"\p{N}")]),
    ("qwen35", [rf"(?:{SHORT})|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|"
                rf" ?[^{S}\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{END}"]),
    ("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 dbrx smaug-bpe glm4 "
     "chatglm-bpe", [cl100k(r"\p{N}{1,3}")]),
    ("gpt-4o llama4 kanana2 minimax-m2",
     [cased(*ASCII_CASE, f"(?:{SHORT})?", r"\p{N}{1,3}", r"[\r\n/]*")]),
    ("tekken", [cased(*ASCII_CASE, "", r"\p{N}", r"[\r\n/]*")]),
    ("bailingmoe bailingmoe2 llada-moe",
     [rf"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{{L}}\p{{N}}]?+\p{{L}}+|\p{{N}}|"
      rf" ?[^{S}\p{{L}}\p{{N}}]++[\r\n]*|{S}*[\r\n]|{S}+(?!\P{{White_Space}})|{S}+"]),
    ("seed-coder", [rf"(?:{SHORT})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}|"
                    rf" ?[^{S}\p{{L}}\p{{N}}\r\n]+|{END}"]),
    ("deepseek-llm", [r"[\r\n]", rf"{S}?[{DEEPSEEK_LETTERS}]+",
                      rf"{S}?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", rf"{S}+$", CJK, r"\p{N}+"]),
    ("deepseek-coder", [r"[\r\n]", rf"{S}?\p{{L}}+", rf"{S}?\p{{P}}+", CJK, r"\p{N}"]),
    ("deepseek-v3 hunyuan-dense joyai-llm",
     [r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
      rf"{PUNCT}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+|"
      rf" ?[\p{{P}}\p{{S}}]+[\r\n]*|{END}"]),
    ("kimi-k2", [r"\p{Han}+|" + cased(*ALL_CASE, f"(?:{SHORT})?", r"\p{N}{1,3}", r"[\r\n]*")]),
]

SNIPPETS = [
    " ", "  ", "   ", "\n", "\n\n", "\r\n", "\r", "\t", " \n", "\n ", "\u00a0", "\u3000", "\u2003 ",
    "'s", "'S", "'t", "'Re", "'ve", "'LL", "'d", "'", "''", "don't", "I'M", "1", "12", "123", "12345",
    "\u0663\u0664", "\u00bd", "...", "!?", "/", "//\n", "=", "$1", "HTTPServer", "camelCase", "Word",
    "<|im_end|>", "\u4f60\u597d", "\u3042\u308a", "\uac00\ub098", "e\u0301", "\u093f", "\u200d", "\u180e",
]
EXTRA = [0x85, 0x1680, 0x180e, 0x200b, 0x2028, 0x2029, 0x202f, 0x205f, 0x3000, 0x3005, 0x3007, 0x3021,
         0x800, 0x4dff, 0x4e00, 0x9fa5, 0x3040, 0x309f, 0x30a0, 0x30ff, 0xac00, 0xd7a3, 0xff01, 0xff5e,
         0x2018, 0x201f, 0x1f600, 0x20000, 0x10400, 0x1f1e6, 0xfeff, 0xfffd]


def agreed(c):
    """Two versions of Unicode, Python's own and the module's, say the same."""
    return regex.fullmatch(r"\p{%s}" % unicodedata.category(chr(c)), chr(c)) is not None


def stable(c):
    now = unicodedata.category(chr(c))
    return (now not in ("Cn", "Cs", "Co") and unicodedata.ucd_3_2_0.category(chr(c)) == now and
            agreed(c))


def characters():
    """ASCII and Latin-1, the ends of every stretch of DeepSeek's letters, and an even sample."""
    edges = [ord(x) for x in DEEPSEEK_LETTERS if x != "-"]
    few = [c for c in range(0x20, 0x250)] + EXTRA + edges
    few += [c + d for c in edges for d in (-1, 1) if stable(c + d)]
    rest = [c for c in range(0x250, 0x30000) if stable(c)]
    small = [c for c in rest if unicodedata.category(chr(c))[0] in "NPSZM"]
    letters = [c for c in rest if unicodedata.category(chr(c))[0] not in "NPSZM"]
    n = (N_CHARS - len(set(few))) // 2
    few += small[::max(1, len(small) // n)] + letters[::max(1, len(letters) // n)]
    return [c for c in sorted(set(few)) if agreed(c)]


class Rng:
    """moe/base/rng.h"""

    def __init__(self, seed):
        self.s = []
        for _ in range(4):
            seed = (seed + 0x9e3779b97f4a7c15) & M64
            z = ((seed ^ seed >> 30) * 0xbf58476d1ce4e5b9) & M64
            z = ((z ^ z >> 27) * 0x94d049bb133111eb) & M64
            self.s.append(z ^ z >> 31)

    def below(self, n):
        s = self.s
        x = s[1] * 5 & M64
        x = ((x << 7 | x >> 57) & M64) * 9 & M64
        t = s[1] << 17 & M64
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = (s[3] << 45 | s[3] >> 19) & M64
        return (x >> 32) * n >> 32


def strings(snippets, chars):
    """test_split.c does the same, draw for draw."""
    r, at = Rng(2026), 0
    for _ in range(N_STRINGS):
        s = ""
        for _ in range(1 + r.below(24)):
            kind = r.below(6)
            if kind == 0:
                at = r.below(len(chars))
                s += chars[at]
            elif kind == 1:
                at = r.below(len(chars))
                s += chars[at] * (1 + r.below(4))
            elif kind == 2:  # its neighbours, which are of its kind
                for _ in range(1 + r.below(5)):
                    at = (at + r.below(4)) % len(chars)
                    s += chars[at]
            elif kind == 3:
                s += snippets[r.below(len(snippets))]
            elif kind == 4:
                s += chr(32 + r.below(95))
            else:
                for _ in range(1 + r.below(6)):
                    s += chr((97 if r.below(3) else 65) + r.below(26))
        yield s


def split(s, exprs):
    """Each expression cuts what the ones before left, into its matches and what lies between."""
    pieces = [s]
    for e in exprs:
        cut = []
        for p in pieces:
            at = 0
            for m in e.finditer(p):
                if m.end() == m.start():
                    continue
                if m.start() > at:
                    cut.append(p[at:m.start()])
                cut.append(m.group())
                at = m.end()
            if at < len(p):
                cut.append(p[at:])
        pieces = cut
    return pieces


def fnv(h, v):
    for b in v.to_bytes(4, "little"):
        h = ((h ^ b) * 0x100000001b3) & M64
    return h


def hashes(texts, exprs):
    h, out = 0xcbf29ce484222325, []
    for i, s in enumerate(texts):
        at = 0
        for w in split(s, exprs):
            at += len(w.encode())
            h = fnv(h, at)
        h = fnv(h, 0xffffffff)
        if (i + 1) % BLOCK == 0:
            out.append(f"{h:016x}")
            h = 0xcbf29ce484222325
    return out


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    chars = [chr(c) for c in characters()]
    texts = list(strings(SNIPPETS, chars))
    sets = [(names, [regex.compile(x, regex.V1) for x in exprs]) for names, exprs in SETS]
    if len(sys.argv) == 3:
        exprs = next(e for names, e in sets if sys.argv[1] in names.split())
        print(split(texts[int(sys.argv[2])], exprs))
        return
    with open(here + "/alphabet.txt", "w", encoding="ascii") as f:
        f.write(f"{len(SNIPPETS)} {len(chars)}\n")
        for x in SNIPPETS + chars:
            f.write(" ".join(f"{ord(c):x}" for c in x) + "\n")
    with open(here + "/splits.txt", "w", encoding="ascii") as f:
        for names, exprs in sets:
            f.write(names + "\n" + " ".join(hashes(texts, exprs)) + "\n")


main()
