"""Checkpoint -> GGUF, and back.

What it is:  writes the f32 master weights of a run as a qwen3moe (or qwen3, mor, conceptmoe or ecdlm) GGUF with its tokenizer and ChatML template; reads such
             a file into the torch model again, so that the file and not only the checkpoint can be evaluated.
Owns:        the mapping between our parameter names and GGUF's.
Never does:  quantise (the runtime does), or change a weight beyond its number format. Norms and routers stay f32.

    python export.py RUN/last.pt DATA/tokenizer.model OUT.gguf [--f32]
"""
import argparse
import gguf, numpy as np, sentencepiece as spm, torch
import model as M

LICENCE = ("Weights: CC BY-SA 4.0. Trained on: TinyStories sample (CDLA-Sharing-1.0); African Storybook and Pratham Books (CC BY); "
           "Schema-Guided Dialogue (CC BY-SA 4.0); children's classics (public domain)")
TEMPLATE = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

def weights(path):
    """Checkpoint -> (config, preset, {name: f32 array})"""
    d = torch.load(path, map_location="cpu")
    w = {n: d["master"][a:b].view(s).numpy() for n, (a, b), s in zip(d["names"], d["slices"], d["shapes"])}
    return M.Config(**d["config"]), d["preset"], w

def names(c):
    """(GGUF name, our name, which rows of ours, stays f32) for every tensor."""
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    yield "token_embd", "embed", None, False
    yield "output_norm", "norm", None, True
    x = "_exps" if c.experts else ""
    if c.router == "token": yield "rec.router", "recursions.rec.0.router", None, True
    for r in range(c.recursions if c.router == "expert" else 0): yield f"rec.{r + 1}.router", f"recursions.rec.{r}.router", None, True
    for a in "qk" if c.ratio else "": yield f"concept.router_{a}", f"concepts.{a}_router", None, True
    for i in range(c.layers):
        g, o = f"blk.{i}.", f"blocks.{i}."
        for a, b in (("attn_norm", "attn_norm"), ("attn_q_norm", "q_norm"), ("attn_k_norm", "k_norm"), ("ffn_norm", "ffn_norm")): yield g + a, o + b, None, True
        for a, r in (("q", (0, q)), ("k", (q, q + kv)), ("v", (q + kv, q + 2 * kv))): yield g + "attn_" + a, o + "qkv", r, False
        at = i - c.layers + c.decoder
        for a, r in (("q", (0, q)), ("k", (q, q + kv)), ("v", (q + kv, q + 2 * kv))) if c.ratio and at >= 0 else ():
            yield g + f"attn_{a}_concept", f"concepts.joint.{at}", r, False
        yield g + "attn_output", o + "out", None, False
        if c.experts: yield g + "ffn_gate_inp", o + "ffn.router", None, True
        yield g + "ffn_gate" + x, o + "ffn.gate_up", (0, c.ff), False
        yield g + "ffn_up" + x, o + "ffn.gate_up", (c.ff, 2 * c.ff), False
        yield g + "ffn_down" + x, o + "ffn.down", None, False

def write(ckpt, tokenizer, out, f32):
    c, preset, w = weights(ckpt)
    sp = spm.SentencePieceProcessor(model_file=tokenizer)
    arch = "mor" if c.recursions else "conceptmoe" if c.ratio else "ecdlm" if c.mask >= 0 else "qwen3moe" if c.experts else "qwen3"
    g = gguf.GGUFWriter(out, arch)
    if c.mask >= 0:
        g.add_bool("ecdlm.attention.causal", False); g.add_bool("diffusion.shift_logits", True)
        g.add_uint32("tokenizer.ggml.mask_token_id", c.mask)
        g.add_string("ecdlm.expert_routing", c.choice + "_choice")
        if c.choice == "expert":
            g.add_string("ecdlm.expert_choice.schedule", "static" if c.least == c.most else "linear_reverse")
            for k, v in (("k", c.top), ("k_min", c.least), ("k_max", c.most)): g.add_uint32("ecdlm.expert_choice." + k, v)
    if c.recursions: g.add_uint32("mor.recursion.count", c.recursions); g.add_string("mor.recursion.router", c.router)
    if c.ratio:
        for k, v in (("encoder_block_count", c.encoder), ("decoder_block_count", c.decoder), ("expert_used_count", c.concept_top)):
            g.add_uint32(f"conceptmoe.concept.{k}", v)
        g.add_float32("conceptmoe.concept.target_ratio", c.ratio); g.add_float32("conceptmoe.concept.threshold", 0.5)
        g.add_string("conceptmoe.concept.query", "current"); g.add_string("conceptmoe.concept.reduce", "sum")
        g.add_bool("conceptmoe.expert_weights_norm", True)
    g.add_name(f"tessera {preset}"); g.add_license(LICENCE)
    g.add_description("A small model of short stories and simple dialogues, in English")
    g.add_context_length(c.context); g.add_embedding_length(c.width); g.add_block_count(c.layers); g.add_feed_forward_length(c.ff)
    g.add_head_count(c.heads); g.add_head_count_kv(c.kv_heads); g.add_key_length(c.head_dim); g.add_value_length(c.head_dim)
    g.add_layer_norm_rms_eps(c.eps); g.add_rope_freq_base(c.rope_base); g.add_rope_dimension_count(c.head_dim); g.add_vocab_size(c.vocab)
    if c.experts: g.add_expert_count(c.experts); g.add_expert_used_count(c.top); g.add_expert_feed_forward_length(c.ff)
    g.add_file_type(gguf.LlamaFileType.ALL_F32 if f32 else gguf.LlamaFileType.MOSTLY_F16)
    T = gguf.TokenType
    kind = lambda i: (T.UNKNOWN if sp.is_unknown(i) else T.BYTE if sp.is_byte(i) else
                      T.CONTROL if sp.is_control(i) or sp.id_to_piece(i) in ("<|im_start|>", "<|im_end|>") else T.NORMAL)
    ids = range(sp.get_piece_size())
    g.add_tokenizer_model("llama"); g.add_token_list([sp.id_to_piece(i).encode() for i in ids])
    g.add_token_scores([sp.get_score(i) for i in ids]); g.add_token_types([int(kind(i)) for i in ids])
    g.add_bos_token_id(sp.bos_id()); g.add_eos_token_id(sp.piece_to_id("<|im_end|>")); g.add_unk_token_id(sp.unk_id())
    g.add_add_bos_token(False); g.add_add_eos_token(False); g.add_add_space_prefix(False); g.add_chat_template(TEMPLATE)
    for to, name, rows, keep in names(c):
        a = w[name] if rows is None else w[name][..., rows[0]:rows[1], :]
        g.add_tensor(to + ".weight", np.ascontiguousarray(a, np.float32 if keep or f32 else np.float16))
    g.write_header_to_file(); g.write_kv_data_to_file(); g.write_tensors_to_file(); g.close()
    q8 = sum(a.size * (34 / 32 if a.ndim > 1 and not n.endswith("router") else 4) for n, a in w.items())
    print(f"{out}: {sum(a.size for a in w.values()) / 1e6:.2f} M weights; as Q8_0 about {q8 / 1e6:.2f} MB and the tokenizer")

def read(path):
    """GGUF (f32, f16 or quantised) -> torch model in f32"""
    r = gguf.GGUFReader(path)
    arch = r.fields["general.architecture"].contents()
    get = lambda k, d=None: r.fields[f"{arch}.{k}"].contents() if f"{arch}.{k}" in r.fields else d
    t = {x.name: torch.from_numpy(np.array(gguf.dequantize(x.data, x.tensor_type), np.float32)) for x in r.tensors}
    E = get("expert_count", 0)
    c = M.Config(layers=get("block_count"), width=get("embedding_length"), heads=get("attention.head_count"), kv_heads=get("attention.head_count_kv"),
                 head_dim=get("attention.key_length"), ff=get("expert_feed_forward_length") if E else get("feed_forward_length"), experts=E,
                 top=get("expert_used_count", 0), vocab=len(t["token_embd.weight"]), context=get("context_length"), rope_base=get("rope.freq_base"),
                 choice=get("expert_routing", "token_choice")[:-7], least=get("expert_choice.k_min", 0), most=get("expert_choice.k_max", 0),
                 mask=r.fields["tokenizer.ggml.mask_token_id"].contents() if arch == "ecdlm" else -1,
                 eps=get("attention.layer_norm_rms_epsilon"), recursions=get("recursion.count", 0), router=get("recursion.router", ""),
                 ratio=get("concept.target_ratio", 0), encoder=get("concept.encoder_block_count", 0),
                 decoder=get("concept.decoder_block_count", 0), concept_top=get("concept.expert_used_count", 0))
    net = M.Model(c, torch.float32)
    p = dict(net.named_parameters())
    with torch.no_grad():
        for name, ours, rows, _ in names(c):
            (p[ours] if rows is None else p[ours][..., rows[0]:rows[1], :]).copy_(t[name + ".weight"])
    net.untied = t.get("output.weight")
    return net

if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("checkpoint"); ap.add_argument("tokenizer"); ap.add_argument("out"); ap.add_argument("--f32", action="store_true")
    o = ap.parse_args()
    write(o.checkpoint, o.tokenizer, o.out, o.f32)
