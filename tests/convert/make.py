#!/usr/bin/env python3
"""Makes the checkpoints of tests/test_convert.c: tiny random models as Hugging Face's libraries write
them, and what other programs say of them.  Needs torch, transformers, tokenizers, safetensors,
sentencepiece, protobuf (pip), and llama.cpp's converter for the expected files.

  make.py DIR [--only NAME,NAME] [--llama-cpp FOLDER]

DIR/NAME/        the checkpoint
DIR/NAME.ids     a prompt
DIR/NAME.logits.f32   what transformers says of it in float32 at N_POS positions, i * (n - 1) / (N_POS - 1)
DIR/NAME.texts   tokenizer: lines of JSON [text, ids], as the tokenizers library encodes it
DIR/NAME.want    with --llama-cpp: keys and tensors (type, shape, FNV-1a of the bytes) of the file
                 that its converter makes

llama.cpp's converter knows byte-level vocabularies by a hash of their ids, so it has to be told what
these made-up ones are: get_vocab_base_pre must return the environment variable CONVERT_PRE.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import unicodedata

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, \
    pre_tokenizers, processors, trainers
import transformers as tf

VOCAB, N_IDS, N_POS = 304, 25, 4

TEXT = """
Once upon a time there was a little rabbit who lived in the forest with her mother and her brothers. It's
said that they'll never leave, and we've seen 12345 carrots in 2024. The rabbit's house wasn't large, but
it was warm: there was a fire in winter, there were flowers in the summer. "Who's there?" she asked.
Le caf\u00e9 est ferm\u00e9, na\u00efve \u00fcber stra\u00dfe. \u4f60\u597d\uff0c\u4e16\u754c\u3002 \u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8.
def main():
    return 1 + 2 * 3    # comment
The the the there then than that this those these, other another mother brother rather weather.
""" * 4

PROBES = [
    "", "Hello, world!", "the rabbit's house wasn't", "  two  spaces\n\nand lines \n x", "12345 3.14 007",
    "caf\u00e9 \u00fcber \u4f60\u597d \u65e5\u672c\u8a9e\u306e \U0001f600 e\u0301", "I'LL we've SHE'S they'd",
    "def f(x):\n\treturn x+1  # note", "<unk>?{}[]|\\~^", "HTTPServer camelCase ALLCAPS", "a" * 40,
    "<|end|> <s> user",
]

CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" \
         r"|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = CL100K.replace("{1,3}", "")
UP, LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (rf"[^\r\n\p{{L}}\p{{N}}]?{UP}*{LOW}+{SHORT}|[^\r\n\p{{L}}\p{{N}}]?{UP}+{LOW}*{SHORT}"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DS3 = [r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
       "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
       "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"]
DS2_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf"
    "\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d"
    "\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4"
    "\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943")
DS2 = ["[\r\n]", "\\s?[" + DS2_LETTERS + "]+",
       "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", "\\s+$",
       "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"]

# ---- tokenizers ----

def splits(exprs, tail=(), behavior="isolated", invert=False):
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r), behavior, invert) for r in exprs] + list(tail) +
        [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

def byte_level(pre, specials, ignore_merges=False, bos=None, users=()):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB - len(specials) - len(users) - 2, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    t.train_from_iterator([TEXT], trainer)
    t.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in specials])
    t.add_tokens([AddedToken(s, normalized=False, special=False) for s in users])
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    if bos:
        t.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B",
                                          special_tokens=[(bos, t.token_to_id(bos))])])
    return t

def sentencepiece(folder):
    """A BPE model with byte fallback, as tokenizer.model; returns the path."""
    import sentencepiece as spm
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/text", "w") as f:
        f.write(TEXT)
    spm.SentencePieceTrainer.Train(
        input=f"{folder}/text", model_prefix=f"{folder}/tokenizer", vocab_size=VOCAB + 40, model_type="bpe",
        byte_fallback=True, character_coverage=0.99, normalization_rule_name="identity",
        remove_extra_whitespaces=False, split_digits=True, hard_vocab_limit=False, num_threads=1,
        minloglevel=2)
    os.remove(f"{folder}/text")
    os.remove(f"{folder}/tokenizer.vocab")
    return f"{folder}/tokenizer.model"

def sp_tokenizer(path):
    """The same as the JSON that transformers makes of such files."""
    import sentencepiece as spm
    sp = spm.SentencePieceProcessor(model_file=path)
    n = sp.get_piece_size()
    vocab = {sp.id_to_piece(i): i for i in range(n)}
    score = {sp.id_to_piece(i): sp.get_score(i) for i in range(n)}
    merges = []
    for piece, i in vocab.items():
        if sp.is_byte(i) or sp.is_control(i) or sp.is_unknown(i):
            continue
        local = [(piece[:k], piece[k:]) for k in range(1, len(piece))
                 if piece[:k] in vocab and piece[k:] in vocab]
        local.sort(key=lambda p: (vocab[p[0]], vocab[p[1]]))
        merges += [(a, b, score[piece]) for a, b in local]
    merges.sort(key=lambda m: -m[2])
    t = Tokenizer(models.BPE(vocab, [(a, b) for a, b, _ in merges], unk_token="<unk>", fuse_unk=True,
                             byte_fallback=True, ignore_merges=False))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    t.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B",
                                                     special_tokens=[("<s>", 1)])
    t.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in ("<unk>", "<s>", "</s>")])
    return t

# ---- checkpoints ----

def save_tokenizer(t, folder, config, compact=True):
    with open(f"{folder}/tokenizer.json", "w") as f:
        f.write(t.to_str(pretty=not compact))
    with open(f"{folder}/tokenizer_config.json", "w") as f:
        json.dump(config, f, indent=1)

def write_config(folder, config, generation=None):
    with open(f"{folder}/config.json", "w") as f:
        json.dump(config, f, indent=1)
    if generation:
        with open(f"{folder}/generation_config.json", "w") as f:
            json.dump(generation, f, indent=1)

def fill(model, seed):
    """Weights of a size that keeps logits lively and sums well conditioned; 16-bit values."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            x = torch.randn(p.shape, generator=g)
            if "norm" in name:
                x = 1 + 0.2 * x
            elif name.endswith("bias") or "sinks" in name:
                x = 0.3 * x
            elif "embed" in name:
                x = x
            else:
                x = x * 1.2 / p.shape[-1] ** 0.5
            p.copy_(x.to(torch.bfloat16).float())

def original_names(model):
    """The weights under the names that checkpoints use (experts one by one)."""
    import tempfile
    with tempfile.TemporaryDirectory() as d:
        model.save_pretrained(d)
        w = {}
        for f in sorted(os.listdir(d)):
            if f.endswith(".safetensors"):
                w.update(load_file(f"{d}/{f}"))
    return w

def shard(weights, folder, n=1):
    names = sorted(weights)
    if n == 1:
        save_file({k: weights[k].contiguous() for k in names}, f"{folder}/model.safetensors",
                  metadata={"format": "pt"})
        return
    where = {}
    for i in range(n):
        part = names[i::n]  # neighbours lie in different files
        file = f"model-{i + 1:05}-of-{n:05}.safetensors"
        save_file({k: weights[k].contiguous() for k in part}, f"{folder}/{file}", metadata={"format": "pt"})
        where.update({k: file for k in part})
    with open(f"{folder}/model.safetensors.index.json", "w") as f:
        json.dump({"metadata": {"total_size": sum(w.nbytes for w in weights.values())},
                   "weight_map": dict(sorted(where.items()))}, f, indent=0)

def logits(model, ids):
    """Of a model that sees both sides (model.both): with a mask that hides nothing."""
    model.eval()
    more = {}
    if getattr(model, "both", False):
        more["attention_mask"] = torch.zeros(1, 1, len(ids), len(ids))
    with torch.no_grad():
        all = model(torch.tensor([ids]), **more).logits[0].float().numpy()
    return all[[i * (N_IDS - 1) // (N_POS - 1) for i in range(N_POS)]]

BASE = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, bos_token_id=None, eos_token_id=None,
            pad_token_id=None)
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"

def qwen_tokenizer():
    return byte_level(splits([QWEN2]), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], users=["<think>"])

QWEN_TOK = dict(tokenizer_class="Qwen2Tokenizer", add_bos_token=False, eos_token="<|im_end|>",
                pad_token="<|endoftext|>", bos_token=None, chat_template=CHATML)

def fp8(w, block):
    """e4m3 with one scale per block of rows and columns; and what that means."""
    n, k = w.shape
    s = torch.zeros((n + block - 1) // block, (k + block - 1) // block)
    q = torch.zeros(n, k, dtype=torch.float8_e4m3fn)
    back = torch.zeros(n, k)
    for i in range(s.shape[0]):
        for j in range(s.shape[1]):
            at = (slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block))
            s[i, j] = w[at].abs().max() / 448
            q[at] = (w[at] / s[i, j]).to(torch.float8_e4m3fn)
            back[at] = q[at].float() * s[i, j]
    return q, s, back

MXFP4 = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6, 0, -.5, -1, -1.5, -2, -3, -4, -6])

def mxfp4(w):
    """[..., n] -> blocks [..., n/32, 16], scales [..., n/32], and what they mean."""
    x = w.reshape(*w.shape[:-1], -1, 32)
    e = torch.floor(torch.log2(x.abs().amax(-1).clamp(min=1e-30))) - 2
    q = (x[..., None] / torch.exp2(e)[..., None, None] - MXFP4).abs().argmin(-1)
    back = (MXFP4[q] * torch.exp2(e)[..., None]).reshape(w.shape)
    blocks = (q[..., 0::2] | q[..., 1::2] << 4).to(torch.uint8)
    return blocks, (e + 127).to(torch.uint8), back

def bf16(w):
    return {k: (v.to(torch.bfloat16) if v.is_floating_point() else v) for k, v in w.items()}

def plain(folder, model, config, arch, dtype=torch.bfloat16, n=1, names=None, **more):
    w = names(model) if names else original_names(model)
    shard({k: v.to(dtype) for k, v in w.items()}, folder, n)
    c = json.loads(config.to_json_string(use_diff=False)) if more.pop("full", False) else {}
    c.update(more)
    write_config(folder, {"architectures": [arch], "torch_dtype": str(dtype)[6:], **c},
                 more.pop("generation", None))

def drop_none(d):
    return {k: v for k, v in d.items() if v is not None}

def llama2(folder):
    path = sentencepiece(folder)
    n = Tokenizer.from_str(sp_tokenizer(path).to_str()).get_vocab_size()
    c = dict(BASE, vocab_size=n + 3, num_key_value_heads=4, rms_norm_eps=1e-5)
    m = tf.LlamaForCausalLM(tf.LlamaConfig(**c))
    fill(m, 1)
    shard({k: v.to(torch.float16) for k, v in original_names(m).items()}, folder)
    write_config(folder, {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float16",
                          "hidden_act": "silu", "rope_scaling": None, "tie_word_embeddings": False,
                          **drop_none(c), "bos_token_id": 1, "eos_token_id": 2},
                 {"temperature": 0.6, "top_p": 0.9, "bos_token_id": 1, "eos_token_id": 2})
    with open(f"{folder}/tokenizer_config.json", "w") as f:
        json.dump({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False,
                   "bos_token": {"__type": "AddedToken", "content": "<s>"}, "eos_token": "</s>",
                   "unk_token": "<unk>", "legacy": False,
                   "added_tokens_decoder": {
                       "0": {"content": "<unk>", "special": True}, "1": {"content": "<s>", "special": True},
                       "2": {"content": "</s>", "special": True},
                       str(n): {"content": "<extra>", "special": False}}}, f, indent=1)
    return m, sp_tokenizer(path), None

def llama3(folder):
    t = byte_level(splits([CL100K]), ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
                   ignore_merges=True, bos="<|begin_of_text|>")
    bos, eos, eot = (t.token_to_id(s) for s in ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"))
    scaling = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
               "original_max_position_embeddings": 64, "rope_type": "llama3"}
    c = dict(BASE, num_attention_heads=4, head_dim=16, rope_theta=500000.0, tie_word_embeddings=True,
             rope_scaling=scaling, max_position_embeddings=512, attention_bias=True, rms_norm_eps=1e-5)
    m = tf.LlamaForCausalLM(tf.LlamaConfig(**{k: v for k, v in c.items() if k not in ("rope_theta",
                            "rope_scaling")}, rope_parameters={**scaling, "rope_theta": 500000.0}))
    fill(m, 2)
    shard(bf16(original_names(m)), folder, 3)
    write_config(folder, {"architectures": ["LlamaForCausalLM"], "model_type": "llama",
                          "torch_dtype": "bfloat16", "hidden_act": "silu", **drop_none(c),
                          "bos_token_id": bos, "eos_token_id": [eos, eot]},
                 {"bos_token_id": bos, "eos_token_id": [eos, eot], "temperature": 0.6, "top_p": 0.9,
                  "do_sample": True})
    save_tokenizer(t, folder, {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>",
                               "eos_token": "<|eot_id|>"})
    with open(f"{folder}/chat_template.jinja", "w") as f:
        f.write("{{ bos_token }}{% for m in messages %}<|start|>{{ m.content }}<|eot_id|>{% endfor %}")
    return m, t, "llama-bpe"

def mixtral(folder):
    path = sentencepiece(folder)
    t = sp_tokenizer(path)
    os.remove(path)
    c = dict(BASE, vocab_size=t.get_vocab_size(), num_local_experts=4, num_experts_per_tok=2, rope_theta=1e6,
             rms_norm_eps=1e-5, sliding_window=None, intermediate_size=16)
    m = tf.MixtralForCausalLM(tf.MixtralConfig(**{k: v for k, v in c.items() if k != "rope_theta"},
                              rope_parameters={"rope_type": "default", "rope_theta": 1e6}))
    fill(m, 3)
    shard(bf16(original_names(m)), folder, 2)
    write_config(folder, {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
                          "torch_dtype": "bfloat16", "hidden_act": "silu", "tie_word_embeddings": False,
                          **drop_none(c), "bos_token_id": 1, "eos_token_id": 2, "sliding_window": None})
    save_tokenizer(t, folder, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True,
                               "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>",
                               "unk_token": "<unk>", "legacy": True,
                               "chat_template": [{"name": "default", "template": "{{ messages }}"},
                                                 {"name": "tool_use", "template": "{{ tools }}"}]})
    return m, t, None

def qwen(folder, kind, seed, n=1, fused=False, **more):
    t = qwen_tokenizer()
    tied = more.pop("tied", False)
    c = dict(BASE, rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=tied, **more)
    cls, conf = getattr(tf, kind + "ForCausalLM"), getattr(tf, kind + "Config")
    m = cls(conf(**{k: v for k, v in c.items() if k != "rope_theta"},
                 rope_parameters={"rope_type": "default", "rope_theta": 1e6}))
    fill(m, seed)
    w = {k: v for k, v in m.state_dict().items()} if fused else original_names(m)
    if tied:
        w.pop("lm_head.weight", None)
    shard(bf16(w), folder, n)
    end = t.token_to_id("<|im_end|>")
    write_config(folder, {"architectures": [kind + "ForCausalLM"], "model_type": m.config.model_type,
                          "torch_dtype": "bfloat16", "hidden_act": "silu", **drop_none(c),
                          "use_sliding_window": False, "eos_token_id": end},
                 {"eos_token_id": [end, t.token_to_id("<|endoftext|>")], "temperature": 0.7, "top_k": 20,
                  "top_p": 0.8, "repetition_penalty": 1.05})
    save_tokenizer(t, folder, QWEN_TOK)
    return m, t, "qwen2"

def qwen2(folder):
    return qwen(folder, "Qwen2", 4)

def qwen2moe(folder):
    return qwen(folder, "Qwen2Moe", 5, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
                shared_expert_intermediate_size=48, decoder_sparse_step=1, norm_topk_prob=False)

def qwen3(folder):
    return qwen(folder, "Qwen3", 6, head_dim=16, tied=True)

def qwen3moe(folder):
    return qwen(folder, "Qwen3Moe", 7, n=2, head_dim=16, num_experts=4, num_experts_per_tok=2,
                moe_intermediate_size=16, decoder_sparse_step=1, norm_topk_prob=True, mlp_only_layers=[])

def qwen3moe_fused(folder):
    return qwen(folder, "Qwen3Moe", 8, fused=True, tied=True, head_dim=8, num_experts=3,
                num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=True)

def olmoe(folder):
    t = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True), ["<|endoftext|>",
                   "<|padding|>"])
    t.normalizer = normalizers.NFC()
    c = dict(BASE, num_experts=4, num_experts_per_tok=2, intermediate_size=16, num_key_value_heads=4,
             rope_theta=10000.0, norm_topk_prob=False, clip_qkv=None)
    m = tf.OlmoeForCausalLM(tf.OlmoeConfig(**{k: v for k, v in c.items() if k != "rope_theta"},
                            rope_parameters={"rope_type": "default", "rope_theta": 1e4}))
    fill(m, 9)
    shard(bf16(original_names(m)), folder)
    end = t.token_to_id("<|endoftext|>")
    write_config(folder, {"architectures": ["OlmoeForCausalLM"], "model_type": "olmoe",
                          "torch_dtype": "bfloat16", "hidden_act": "silu", "tie_word_embeddings": False,
                          **drop_none(c), "eos_token_id": end, "pad_token_id": t.token_to_id("<|padding|>")})
    save_tokenizer(t, folder, {"tokenizer_class": "GPTNeoXTokenizer", "add_bos_token": False,
                               "add_eos_token": False, "eos_token": "<|endoftext|>", "bos_token": None,
                               "pad_token": "<|padding|>", "unk_token": "<|endoftext|>"})
    return m, t, "gpt-2"

DEEP = dict(hidden_size=40, kv_lora_rank=32, qk_nope_head_dim=32, qk_rope_head_dim=8, v_head_dim=16,
            n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=2, moe_intermediate_size=16,
            first_k_dense_replace=1, num_key_value_heads=4)
BOS_DS, EOS_DS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"

def deepseek2(folder):
    """V2-Lite: a plain query, softmax, YaRN with mscale_all_dim."""
    t = byte_level(splits(DS2, [pre_tokenizers.Digits(individual_digits=True)]), [BOS_DS, EOS_DS],
                   users=["<user\u2581word>"])
    scaling = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
               "original_max_position_embeddings": 128, "type": "yarn"}
    c = dict(BASE, **DEEP, q_lora_rank=None, rope_theta=10000, max_position_embeddings=512, n_group=1,
             topk_group=1, norm_topk_prob=False, routed_scaling_factor=1.0, rms_norm_eps=1e-6)
    m = tf.DeepseekV2ForCausalLM(tf.DeepseekV2Config(
        **{k: v for k, v in c.items() if k not in ("rope_theta", "norm_topk_prob")}, topk_method="greedy",
        rope_parameters={**scaling, "rope_type": "yarn", "rope_theta": 10000.0}))
    fill(m, 10)
    shard(bf16(original_names(m)), folder)
    bos, eos = t.token_to_id(BOS_DS), t.token_to_id(EOS_DS)
    write_config(folder, {"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
                          "torch_dtype": "bfloat16", "hidden_act": "silu", "tie_word_embeddings": False,
                          **drop_none(c), "q_lora_rank": None, "rope_scaling": scaling, "scoring_func": "softmax",
                          "topk_method": "greedy", "moe_layer_freq": 1, "ep_size": 1, "seq_aux": True,
                          "attention_bias": False, "bos_token_id": bos, "eos_token_id": eos})
    save_tokenizer(t, folder, {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True,
                               "add_eos_token": False, "bos_token": {"__type": "AddedToken", "content": BOS_DS},
                               "eos_token": {"__type": "AddedToken", "content": EOS_DS}, "legacy": True,
                               "chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"})
    return m, t, "deepseek-llm"

def deepseek3(folder):
    """V3: a query latent, sigmoid with a bias and groups, FP8 blocks, a layer for the next token."""
    t = byte_level(splits(DS3), [BOS_DS, EOS_DS])
    scaling = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
               "original_max_position_embeddings": 128, "type": "yarn"}
    c = dict(BASE, **{**DEEP, "n_routed_experts": 8, "n_shared_experts": 1}, q_lora_rank=24, rope_theta=10000,
             max_position_embeddings=512, n_group=4, topk_group=2, norm_topk_prob=True,
             routed_scaling_factor=2.5, rms_norm_eps=1e-6)
    m = tf.DeepseekV3ForCausalLM(tf.DeepseekV3Config(
        **{k: v for k, v in c.items() if k != "rope_theta"},
        rope_parameters={**scaling, "rope_type": "yarn", "rope_theta": 10000.0}))
    fill(m, 11)
    w = original_names(m)
    g = torch.Generator().manual_seed(12)
    for k in list(w):
        if "e_score_correction_bias" in k:
            w[k] = (0.3 * torch.randn(w[k].shape, generator=g)).float()
    out, back = {}, {}
    for k, v in w.items():
        if v.ndim == 2 and ".layers." in k and "mlp.gate.weight" not in k:
            out[k], out[k + "_scale_inv"], back[k] = fp8(v.float(), 24)
        else:
            out[k] = v if "e_score" in k else v.to(torch.bfloat16)
            back[k] = out[k].float()
    # The layer behind the last one that predicts a further token: it is left out.
    out["model.layers.2.eh_proj.weight"] = torch.zeros(4, 4, dtype=torch.bfloat16)
    out["model.layers.2.embed_tokens.weight"] = torch.zeros(4, 4, dtype=torch.bfloat16)
    shard(out, folder, 2)
    import tempfile
    with tempfile.TemporaryDirectory() as d:
        shard(back, d)
        m.config.save_pretrained(d)
        m = tf.DeepseekV3ForCausalLM.from_pretrained(d, dtype=torch.float32)
    bos, eos = t.token_to_id(BOS_DS), t.token_to_id(EOS_DS)
    write_config(folder, {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
                          "torch_dtype": "bfloat16", "hidden_act": "silu", "tie_word_embeddings": False,
                          **drop_none(c), "rope_scaling": scaling, "scoring_func": "sigmoid",
                          "topk_method": "noaux_tc", "moe_layer_freq": 1, "num_nextn_predict_layers": 1,
                          "attention_bias": False, "bos_token_id": bos, "eos_token_id": eos,
                          "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3",
                                                  "quant_method": "fp8", "weight_block_size": [24, 24]}})
    save_tokenizer(t, folder, {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True,
                               "add_eos_token": False, "bos_token": {"__type": "AddedToken", "content": BOS_DS},
                               "eos_token": {"__type": "AddedToken", "content": EOS_DS}})
    return m, t, "deepseek-v3"

def gptoss(folder, quantised):
    t = byte_level(splits([O200K], behavior="removed", invert=True),
                   ["<|startoftext|>", "<|endoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|call|>"])
    scaling = {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 64,
               "rope_type": "yarn", "truncate": True}
    c = dict(BASE, hidden_size=32, intermediate_size=64 if quantised else 32, head_dim=16, num_local_experts=3,
             num_experts_per_tok=2, sliding_window=8, rope_theta=150000, rms_norm_eps=1e-5,
             max_position_embeddings=2048, layer_types=["sliding_attention", "full_attention"])
    m = tf.GptOssForCausalLM(tf.GptOssConfig(
        **{k: v for k, v in c.items() if k != "rope_theta"}, attn_implementation="eager",
        rope_parameters={**scaling, "rope_theta": 150000.0}))
    fill(m, 13)
    w = dict(m.state_dict())
    out = {}
    for k, v in w.items():
        if quantised and k.endswith(("experts.gate_up_proj", "experts.down_proj")):
            # checkpoints: [experts][out][in]; the library's own: [experts][in][out]
            blocks, scales, back = mxfp4(v.transpose(1, 2).contiguous().float())
            out[k + "_blocks"], out[k + "_scales"] = blocks, scales
            v.copy_(back.transpose(1, 2))
        else:
            out[k] = v.to(torch.bfloat16)
    shard(out, folder)
    ids = {s: t.token_to_id(s) for s in ("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|call|>")}
    q = {"quantization_config": {"modules_to_not_convert": ["lm_head"], "quant_method": "mxfp4"}}
    write_config(folder, {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss",
                          "torch_dtype": "bfloat16", "hidden_act": "silu", "tie_word_embeddings": False,
                          **drop_none(c), "rope_scaling": scaling, "swiglu_limit": 7.0, "attention_bias": True,
                          "eos_token_id": ids["<|return|>"], "pad_token_id": ids["<|endoftext|>"],
                          **(q if quantised else {})},
                 {"bos_token_id": ids["<|startoftext|>"], "do_sample": True, "eos_token_id": [
                     ids["<|return|>"], ids["<|endoftext|>"], ids["<|call|>"]]})
    save_tokenizer(t, folder, {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|startoftext|>",
                               "eos_token": "<|return|>", "pad_token": "<|endoftext|>"})
    with open(f"{folder}/chat_template.jinja", "w") as f:
        f.write("{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}")
    return m, t, "gpt-4o"

# Masked diffusion models have no code in transformers: each has the layers of a model that does.

def denoiser(folder, kind, arch, seed, names=None, config=None, tok=QWEN_TOK, **more):
    t = byte_level(splits([QWEN2]), ["<|endoftext|>", "<|mask|>", "<|im_end|>"], users=["<think>"])
    c = dict(BASE, rms_norm_eps=1e-5, tie_word_embeddings=False, **more)
    base = c.pop("rope_theta", 1e6)
    m = getattr(tf, kind + "ForCausalLM")(getattr(tf, kind + "Config")(
        **c, attn_implementation="eager", rope_parameters={"rope_type": "default", "rope_theta": base}))
    m.both = True
    fill(m, seed)
    w = original_names(m)
    if names:
        w = {names(k): v for k, v in w.items()}
    shard(bf16(w), folder)
    ids = {"eos_token_id": t.token_to_id("<|endoftext|>"), "mask_token_id": t.token_to_id("<|mask|>")}
    shared = {**drop_none(c), "rope_theta": base, "hidden_act": "silu"} if config is None else config
    write_config(folder, {"architectures": [arch], "torch_dtype": "bfloat16", **shared, **ids})
    save_tokenizer(t, folder, tok)
    return m, t, "qwen2"

def dream(folder):
    return denoiser(folder, "Qwen2", "DreamModel", 14)

def rnd1(folder):
    return denoiser(folder, "Qwen3Moe", "RND1", 15, head_dim=16, num_experts=4, num_experts_per_tok=2,
                    moe_intermediate_size=16, decoder_sparse_step=1, norm_topk_prob=True)

def llada_name(k):
    for a, b in (("model.embed_tokens", "model.transformer.wte"), ("model.norm", "model.transformer.ln_f"),
                 ("lm_head", "model.transformer.ff_out"), ("model.layers", "model.transformer.blocks"),
                 ("self_attn.o_proj", "attn_out"), ("self_attn.", ""), ("mlp.gate_proj", "ff_proj"),
                 ("mlp.up_proj", "up_proj"), ("mlp.down_proj", "ff_out"), ("input_layernorm", "attn_norm"),
                 ("post_attention_layernorm", "ff_norm")):
        k = k.replace(a, b)
    return k

def llada(folder):
    return denoiser(folder, "Llama", "LLaDAModelLM", 16, llada_name, rope_theta=500000.0, config={
        "model_type": "llada", "vocab_size": VOCAB, "embedding_size": VOCAB, "d_model": 32, "mlp_hidden_size": 64,
        "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_sequence_length": 256, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms",
        "rope": True, "alibi": False, "include_bias": False, "include_qkv_bias": False, "weight_tying": False})

def llada_moe(folder):
    """Its converter in llama.cpp writes the published model's mask, 156895, which this vocabulary has not: the
    line of it in .want is that of the configuration."""
    more = dict(num_experts=4, num_experts_per_tok=2, num_key_value_heads=4, rope_theta=50000.0)
    return denoiser(folder, "Qwen3Moe", "LLaDAMoEModelLM", 17, moe_intermediate_size=16, head_dim=8,
                    norm_topk_prob=False, decoder_sparse_step=1, config={
        "model_type": "llada_moe", **{k: v for k, v in BASE.items() if k in (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")},
        **more, "dense_intermediate_size": 64, "expert_intermediate_size": 16, "hidden_act": "silu",
        "norm_topk_prob": None, "qk_layernorm": True, "rms_norm_eps": 1e-5, "partial_rotary_factor": 1,
        "shared_expert_intermediate_size": None, "tie_word_embeddings": False}, **more)

MAKERS = {
    "llama2": llama2, "llama3": llama3, "mixtral": mixtral, "qwen2": qwen2, "qwen2moe": qwen2moe,
    "qwen3": qwen3, "qwen3moe": qwen3moe, "qwen3moe-fused": qwen3moe_fused, "olmoe": olmoe,
    "deepseek2": deepseek2, "deepseek3": deepseek3, "gpt-oss": lambda f: gptoss(f, True),
    "gpt-oss-bf16": lambda f: gptoss(f, False),
    "dream": dream, "rnd1": rnd1, "llada": llada, "llada-moe": llada_moe,
}

# ---- what llama.cpp makes of it ----

def fnv(data):
    h = 0xcbf29ce484222325
    for b in data:
        h = (h ^ b) * 0x100000001b3 & 0xffffffffffffffff
    return h

def describe(path, lc):
    sys.path.insert(0, f"{lc}/gguf-py")
    import gguf
    r = gguf.GGUFReader(path)
    lines = []
    for f in r.fields.values():
        if f.name.startswith("GGUF."):
            continue
        v = f.contents()
        kind = [t.name for t in f.types]
        lines.append(f"key {f.name} {'/'.join(kind)} {json.dumps(v)}")
    for t in r.tensors:
        shape = "x".join(str(n) for n in t.shape)
        lines.append(f"tensor {t.name} {t.tensor_type.name} {shape} {fnv(t.data.tobytes()):016x}")
        if t.name == "rope_freqs.weight":  # computed, so that the last bit may differ
            lines.append(f"values {t.name} {json.dumps([float(x) for x in t.data])}")
    return sorted(lines)

def mask_of(folder):
    return json.load(open(f"{folder}/config.json"))["mask_token_id"]

def want(name, folder, pre, lc):
    """One section per --outtype."""
    text = []
    for out in ("f32", "q8_0", "auto"):
        gguf = f"/tmp/{name}-{out}.gguf"
        env = dict(os.environ, CONVERT_PRE=pre or "default")
        subprocess.run([sys.executable, f"{lc}/convert_hf_to_gguf.py", folder, "--outfile", gguf, "--outtype",
                        out], check=True, env=env, stderr=subprocess.PIPE)
        lines = describe(gguf, lc)
        os.remove(gguf)
        lines = [l.replace(" 156895", f" {mask_of(folder)}") if "mask_token_id" in l else l for l in lines]
        if out != "f32":  # the vocabulary is the same
            lines = [l for l in lines if not l.startswith("key ") or "file_type" in l]
        text += [f"outtype {out}"] + lines
    return "\n".join(text) + "\n"

def main():
    p = argparse.ArgumentParser()
    p.add_argument("dir")
    p.add_argument("--only")
    p.add_argument("--llama-cpp")
    a = p.parse_args()
    for name, make in MAKERS.items():
        if a.only and name not in a.only.split(","):
            continue
        folder = os.path.join(a.dir, name)
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        torch.manual_seed(0)
        model, tok, pre = make(folder)
        ids = [int(i) for i in np.random.default_rng(len(name)).integers(0, VOCAB - 8, N_IDS)]
        with open(f"{folder}.ids", "w") as f:
            f.write(",".join(map(str, ids)) + "\n")
        logits(model, ids).astype("<f4").tofile(f"{folder}.logits.f32")
        with open(f"{folder}.texts", "w") as f:
            for s in PROBES:
                if tok.normalizer and "NFC" in repr(tok.normalizer):
                    s = unicodedata.normalize("NFC", s)  # GGUF runtimes take text as it is
                f.write(json.dumps([s, tok.encode(s, add_special_tokens=False).ids]) + "\n")
        if a.llama_cpp:
            with open(f"{folder}.want", "w") as f:
                f.write(want(name, folder, pre, a.llama_cpp))
        print(name, sum(os.path.getsize(f"{folder}/{x}") for x in os.listdir(folder)), flush=True)

main()
