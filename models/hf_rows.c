/* The tensors of Hugging Face checkpoints, and what they are called in GGUF files: see hf.h.
 * The names are facts of the models' reference implementations and of llama.cpp. */
#include "models/hf.h"

#define L "model.layers.#."
#define B "blk.#."

#define ENDS                                              \
    {"token_embd.weight", "model.embed_tokens.weight"},   \
    {"output_norm.weight", "model.norm.weight"},          \
    {"output.weight", "lm_head.weight", HF_AS_IS, HF_UNTIED}

#define NORMS                                                        \
    {B "attn_norm.weight", L "input_layernorm.weight"},              \
    {B "ffn_norm.weight", L "post_attention_layernorm.weight"}

/* Biases where a checkpoint has them, or where it must (bias = HF_MUST). */
#define ATTENTION(q, kv, bias)                                        \
    {B "attn_q.weight", L "self_attn.q_proj.weight", q},              \
    {B "attn_q.bias", L "self_attn.q_proj.bias", q, bias},            \
    {B "attn_k.weight", L "self_attn.k_proj.weight", kv},             \
    {B "attn_k.bias", L "self_attn.k_proj.bias", kv, bias},           \
    {B "attn_v.weight", L "self_attn.v_proj.weight"},                 \
    {B "attn_v.bias", L "self_attn.v_proj.bias", HF_AS_IS, bias},     \
    {B "attn_output.weight", L "self_attn.o_proj.weight"},            \
    {B "attn_output.bias", L "self_attn.o_proj.bias", HF_AS_IS, HF_MAY}

#define QK_NORMS                                                                   \
    {B "attn_q_norm.weight", L "self_attn.q_norm.weight"},                         \
    {B "attn_k_norm.weight", L "self_attn.k_norm.weight"}

#define DENSE                                                                      \
    {B "ffn_gate.weight", L "mlp.gate_proj.weight", HF_AS_IS, HF_DENSE},           \
    {B "ffn_up.weight", L "mlp.up_proj.weight", HF_AS_IS, HF_DENSE},               \
    {B "ffn_down.weight", L "mlp.down_proj.weight", HF_AS_IS, HF_DENSE}

/* One by one, or stacked with gate above up. */
#define EXPERTS(base, gate, up, down)                                              \
    {B "ffn_gate_exps.weight", L base ".experts.*." gate ".weight", HF_EXPERTS, HF_MOE}, \
    {B "ffn_gate_exps.weight", L "mlp.experts.gate_up_proj", HF_FIRST_ROWS, HF_MOE},     \
    {B "ffn_up_exps.weight", L base ".experts.*." up ".weight", HF_EXPERTS, HF_MOE},     \
    {B "ffn_up_exps.weight", L "mlp.experts.gate_up_proj", HF_LAST_ROWS, HF_MOE},        \
    {B "ffn_down_exps.weight", L base ".experts.*." down ".weight", HF_EXPERTS, HF_MOE}, \
    {B "ffn_down_exps.weight", L "mlp.experts.down_proj", HF_AS_IS, HF_MOE}
#define PLAIN_EXPERTS EXPERTS("mlp", "gate_proj", "up_proj", "down_proj")
#define ROUTER {B "ffn_gate_inp.weight", L "mlp.gate.weight", HF_AS_IS, HF_MOE}

#define SHARED(from, when)                                                          \
    {B "ffn_gate_shexp.weight", L "mlp." from ".gate_proj.weight", HF_AS_IS, when}, \
    {B "ffn_up_shexp.weight", L "mlp." from ".up_proj.weight", HF_AS_IS, when},     \
    {B "ffn_down_shexp.weight", L "mlp." from ".down_proj.weight", HF_AS_IS, when}

/* The rotation pairs neighbours there, halves here. */
const struct hf_row hf_rows_llama[] = {
    ENDS,
    {"rope_freqs.weight", NULL, HF_ROPE_FREQS, HF_MAY},
    NORMS,
    ATTENTION(HF_PAIRS_Q, HF_PAIRS_KV, HF_MAY),
    DENSE,
    {B "ffn_gate.bias", L "mlp.gate_proj.bias", HF_AS_IS, HF_MAY},
    {B "ffn_up.bias", L "mlp.up_proj.bias", HF_AS_IS, HF_MAY},
    {B "ffn_down.bias", L "mlp.down_proj.bias", HF_AS_IS, HF_MAY},
    {0},
};

const struct hf_row hf_rows_mixtral[] = {
    ENDS,
    NORMS,
    ATTENTION(HF_PAIRS_Q, HF_PAIRS_KV, HF_MAY),
    {B "ffn_gate_inp.weight", L "block_sparse_moe.gate.weight", HF_AS_IS, HF_MOE},
    ROUTER,
    EXPERTS("block_sparse_moe", "w1", "w3", "w2"),
    {0},
};

const struct hf_row hf_rows_qwen2[] = {
    ENDS, NORMS, ATTENTION(HF_AS_IS, HF_AS_IS, HF_MUST), DENSE, {0},
};

const struct hf_row hf_rows_qwen2moe[] = {
    ENDS,
    NORMS,
    ATTENTION(HF_AS_IS, HF_AS_IS, HF_MUST),
    ROUTER,
    PLAIN_EXPERTS,
    {B "ffn_gate_inp_shexp.weight", L "mlp.shared_expert_gate.weight", HF_AS_IS, HF_MOE},
    SHARED("shared_expert", HF_MOE),
    {0},
};

const struct hf_row hf_rows_qwen3[] = {
    ENDS, NORMS, ATTENTION(HF_AS_IS, HF_AS_IS, HF_MAY), QK_NORMS, DENSE, {0},
};

/* OLMoE's too. */
const struct hf_row hf_rows_qwen3moe[] = {
    ENDS, NORMS, ATTENTION(HF_AS_IS, HF_AS_IS, HF_MAY), QK_NORMS, ROUTER, PLAIN_EXPERTS, {0},
};

#define T "model.transformer."
#define TL T "blocks.#."
const struct hf_row hf_rows_llada[] = {
    {"token_embd.weight", T "wte.weight"},
    {"output_norm.weight", T "ln_f.weight"},
    {"output.weight", T "ff_out.weight", HF_AS_IS, HF_UNTIED},
    {B "attn_norm.weight", TL "attn_norm.weight"},
    {B "ffn_norm.weight", TL "ff_norm.weight"},
    {B "attn_q.weight", TL "q_proj.weight", HF_PAIRS_Q},
    {B "attn_k.weight", TL "k_proj.weight", HF_PAIRS_KV},
    {B "attn_v.weight", TL "v_proj.weight"},
    {B "attn_output.weight", TL "attn_out.weight"},
    {B "ffn_gate.weight", TL "ff_proj.weight"},
    {B "ffn_up.weight", TL "up_proj.weight"},
    {B "ffn_down.weight", TL "ff_out.weight"},
    {0},
};

const struct hf_row hf_rows_deepseek[] = {
    ENDS,
    NORMS,
    {B "attn_q.weight", L "self_attn.q_proj.weight", HF_AS_IS, HF_PLAIN_Q},
    {B "attn_q_a.weight", L "self_attn.q_a_proj.weight", HF_AS_IS, HF_LATENT_Q},
    {B "attn_q_a_norm.weight", L "self_attn.q_a_layernorm.weight", HF_AS_IS, HF_LATENT_Q},
    {B "attn_q_b.weight", L "self_attn.q_b_proj.weight", HF_AS_IS, HF_LATENT_Q},
    {B "attn_kv_a_mqa.weight", L "self_attn.kv_a_proj_with_mqa.weight"},
    {B "attn_kv_a_norm.weight", L "self_attn.kv_a_layernorm.weight"},
    {B "attn_k_b.weight", L "self_attn.kv_b_proj.weight", HF_K_B},
    {B "attn_v_b.weight", L "self_attn.kv_b_proj.weight", HF_V_B},
    {B "attn_output.weight", L "self_attn.o_proj.weight"},
    DENSE,
    ROUTER,
    {B "exp_probs_b.bias", L "mlp.gate.e_score_correction_bias", HF_AS_IS, HF_MOE_MAY},
    PLAIN_EXPERTS,
    SHARED("shared_experts", HF_SHARED),
    {0},
};

/* Norms on both sides of attention and feed-forward. */
const struct hf_row hf_rows_ouro[] = {
    ENDS,
    {"exit_gate.weight", "model.early_exit_gate.weight"},
    {"exit_gate.bias", "model.early_exit_gate.bias"},
    NORMS,
    {B "post_attention_norm.weight", L "input_layernorm_2.weight"},
    {B "post_ffw_norm.weight", L "post_attention_layernorm_2.weight"},
    ATTENTION(HF_AS_IS, HF_AS_IS, HF_MAY),
    DENSE,
    {0},
};

/* Mixture-of-recursions: Llama's layers, repeated, and a router in front of each recursion. */
const struct hf_row hf_rows_mor[] = {
    ENDS,
    {"rec.@.router.weight", "model.layers.@.mor_router.router.weight", HF_AS_IS, HF_ROUTED},
    {"rec.@.aux.weight", "model.layers.@.mlp_router.router.weight", HF_AS_IS, HF_ROUTED_MAY},
    NORMS,
    ATTENTION(HF_AS_IS, HF_AS_IS, HF_MAY),
    DENSE,
    {0},
};

#define OSS L "mlp.experts."
const struct hf_row hf_rows_gptoss[] = {
    ENDS,
    {B "attn_norm.weight", L "input_layernorm.weight"},
    {B "post_attention_norm.weight", L "post_attention_layernorm.weight"},
    ATTENTION(HF_AS_IS, HF_AS_IS, HF_MUST),
    {B "attn_sinks.weight", L "self_attn.sinks"},
    {B "ffn_gate_inp.weight", L "mlp.router.weight", HF_AS_IS, HF_MOE},
    {B "ffn_gate_inp.bias", L "mlp.router.bias", HF_AS_IS, HF_MOE},
    {B "ffn_gate_exps.weight", OSS "gate_up_proj", HF_MXFP4_EVEN, HF_MOE},
    {B "ffn_gate_exps.weight", OSS "gate_up_proj", HF_TURNED_EVEN, HF_MOE},
    {B "ffn_gate_exps.bias", OSS "gate_up_proj_bias", HF_EVEN_COLS, HF_MOE},
    {B "ffn_up_exps.weight", OSS "gate_up_proj", HF_MXFP4_ODD, HF_MOE},
    {B "ffn_up_exps.weight", OSS "gate_up_proj", HF_TURNED_ODD, HF_MOE},
    {B "ffn_up_exps.bias", OSS "gate_up_proj_bias", HF_ODD_COLS, HF_MOE},
    {B "ffn_down_exps.weight", OSS "down_proj", HF_MXFP4, HF_MOE},
    {B "ffn_down_exps.weight", OSS "down_proj", HF_TURNED, HF_MOE},
    {B "ffn_down_exps.bias", OSS "down_proj_bias", HF_AS_IS, HF_MOE},
    {0},
};
