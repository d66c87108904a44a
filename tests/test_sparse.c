/* Popular releases as files of a header and a hole: the names, shapes and types of their tensors,
 * no weights.  Each must open, bind and plan without reading any, with the number of parameters
 * that its makers give (to a tenth of a billion where they give no more), so that a wrong shape
 * cannot hide, and as many tensors of each type.  Types are those that llama-quantize --dry-run
 * lists (gpt-oss: those of its makers' file; the old DeepSeek-V2-Lite: of a published one).  Writes
 * to a folder of its own in /tmp. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "moe/tessera.h"
#include "quant/qtype.h"
#include "tests/ggufblob.h"

/* GGUF's ids of types that may not be here yet. */
enum {
    F32 = 0, F16 = 1, Q5_0 = 6, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14, MXFP4 = 39,
    TIED = 1000 /* as a type: no such tensor */
};

static char dir[64] = "/tmp/tessera-sparse-XXXXXX";

struct file {
    const char *arch;
    struct blob keys, tensors;
    uint64_t n_keys, n_tensors, bytes;
    int n_of_type[64];
};

static void key_int(struct file *f, const char *key, uint64_t v)
{
    char full[96];
    (void)snprintf(full, sizeof full, "%s.%s", f->arch, key);
    blob_kv_int(&f->keys, full, GGUF_U32, v);
    f->n_keys++;
}

static void key_bool(struct file *f, const char *key, bool v)
{
    char full[96];
    (void)snprintf(full, sizeof full, "%s.%s", f->arch, key);
    blob_kv_int(&f->keys, full, GGUF_BOOL, v);
    f->n_keys++;
}

/* Opens a list of n elements, which follow. */
static void key_array(struct file *f, const char *key, enum gguf_type type, int n)
{
    char full[96];
    (void)snprintf(full, sizeof full, "%s.%s", f->arch, key);
    blob_array(&f->keys, full, type, (uint64_t)n);
    f->n_keys++;
}

static void key_float(struct file *f, const char *key, float v)
{
    char full[96];
    uint32_t bits;
    memcpy(&bits, &v, 4);
    (void)snprintf(full, sizeof full, "%s.%s", f->arch, key);
    blob_key(&f->keys, full, GGUF_F32);
    blob_u32(&f->keys, bits);
    f->n_keys++;
}

static void key_str(struct file *f, const char *key, const char *v)
{
    blob_kv_str(&f->keys, key, v);
    f->n_keys++;
}

/* A tensor a x b x c.  Where blocks do not suit the columns the type falls back, as llama-quantize
 * has it: Q4_K to Q5_0, Q5_K and Q6_K to Q8_0 (Q5_1 for Q5_K, which no release here meets). */
static void tensor(struct file *f, int layer, const char *name, uint32_t type, int a, int b, int c)
{
    char full[96];
    const int dim[3] = {a, b, c}, n = c ? 3 : b ? 2 : 1;
    if (a % 256 && type == Q4_K) type = Q5_0;
    if (a % 256 && (type == Q5_K || type == Q6_K)) type = Q8_0;
    if (layer >= 0) (void)snprintf(full, sizeof full, "blk.%d.%s", layer, name);
    else (void)snprintf(full, sizeof full, "%s", name);
    blob_str(&f->tensors, full);
    blob_u32(&f->tensors, (uint32_t)n);
    for (int i = 0; i < n; i++) blob_u64(&f->tensors, (uint64_t)dim[i]);
    blob_u32(&f->tensors, type);
    blob_u64(&f->tensors, f->bytes);
    f->bytes += qtype_bytes((enum qtype)type, (uint64_t)a) * (uint64_t)(b ? b : 1) *
                (uint64_t)(c ? c : 1);
    f->bytes = (f->bytes + 31) / 32 * 32;
    f->n_tensors++;
    f->n_of_type[type]++;
}

static void write_file(struct file *f, const char *path)
{
    struct blob all = {0};
    blob_head(&all, 3, f->n_tensors, f->n_keys);
    blob_put(&all, f->keys.p, f->keys.n);
    blob_put(&all, f->tensors.p, f->tensors.n);
    blob_pad(&all, 32);
    FILE *to = fopen(path, "wb");
    assert_non_null(to);
    assert_int_equal(fwrite(all.p, 1, all.n, to), all.n);
    assert_int_equal(fclose(to), 0);
    if (truncate(path, (off_t)(all.n + f->bytes))) fail_msg("no sparse file: %s", strerror(errno));
    blob_free(&all);
    blob_free(&f->keys);
    blob_free(&f->tensors);
}

/* ---- the releases ---- */

struct release {
    const char *name, *arch;
    int layers, ctx, embd, ff, ff_exp, heads, kv, dim, vocab, experts, used; /* 0: see keys() */
    float base, eps;
    void (*keys)(struct file *f);
    void (*layer)(struct file *f, const struct release *m, int l);
    uint32_t embd_type, output_type;
    uint64_t n_params;        /* as published */
    uint64_t kv_bytes;        /* of one token, F16 */
    const char *types;
    uint64_t state_bytes;     /* of the recurrent layers */
};

/* The ones of n that llama-quantize gives more bits in a Q4_K_M. */
static uint32_t q4_or_q6_of(int i, int n)
{
    return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2 ? Q6_K : Q4_K;
}

static uint32_t q4_or_q6(const struct release *m, int l) { return q4_or_q6_of(l, m->layers); }

static void attention(struct file *f, const struct release *m, int l, uint32_t qk, uint32_t v,
                      uint32_t o)
{
    const int nq = m->heads * m->dim, nkv = m->kv * m->dim;
    tensor(f, l, "attn_norm.weight", F32, m->embd, 0, 0);
    tensor(f, l, "attn_q.weight", qk, m->embd, nq, 0);
    tensor(f, l, "attn_k.weight", m->experts == 8 ? Q8_0 : qk, m->embd, nkv, 0);
    tensor(f, l, "attn_v.weight", v, m->embd, nkv, 0);
    tensor(f, l, "attn_output.weight", o, nq, m->embd, 0);
}

static void qkv_biases(struct file *f, const struct release *m, int l)
{
    tensor(f, l, "attn_q.bias", F32, m->heads * m->dim, 0, 0);
    tensor(f, l, "attn_k.bias", F32, m->kv * m->dim, 0, 0);
    tensor(f, l, "attn_v.bias", F32, m->kv * m->dim, 0, 0);
}

static void qk_norms(struct file *f, int l, int q, int k)
{
    tensor(f, l, "attn_q_norm.weight", F32, q, 0, 0);
    tensor(f, l, "attn_k_norm.weight", F32, k, 0, 0);
}

static void experts(struct file *f, const struct release *m, int l, uint32_t gate_up, uint32_t down)
{
    tensor(f, l, "ffn_gate_inp.weight", F32, m->embd, m->experts, 0);
    tensor(f, l, "ffn_gate_exps.weight", gate_up, m->embd, m->ff_exp, m->experts);
    tensor(f, l, "ffn_up_exps.weight", gate_up, m->embd, m->ff_exp, m->experts);
    tensor(f, l, "ffn_down_exps.weight", down, m->ff_exp, m->embd, m->experts);
}

/* Q4_K_M with eight experts: more bits for K, V and the attention's output. */
static void mixtral_layer(struct file *f, const struct release *m, int l)
{
    attention(f, m, l, Q4_K, Q8_0, Q5_K);
    tensor(f, l, "ffn_norm.weight", F32, m->embd, 0, 0);
    experts(f, m, l, Q4_K, q4_or_q6(m, l));
}

/* As the first files had it: every expert a matrix of its own, the router in F16. */
static void old_mixtral_layer(struct file *f, const struct release *m, int l)
{
    attention(f, m, l, Q4_K, Q8_0, Q5_K);
    tensor(f, l, "ffn_norm.weight", F32, m->embd, 0, 0);
    tensor(f, l, "ffn_gate_inp.weight", F16, m->embd, m->experts, 0);
    for (int i = 0; i < m->experts; i++) {
        char name[3][32];
        (void)snprintf(name[0], sizeof name[0], "ffn_gate.%d.weight", i);
        (void)snprintf(name[1], sizeof name[1], "ffn_up.%d.weight", i);
        (void)snprintf(name[2], sizeof name[2], "ffn_down.%d.weight", i);
        tensor(f, l, name[0], Q4_K, m->embd, m->ff_exp, 0);
        tensor(f, l, name[1], Q4_K, m->embd, m->ff_exp, 0);
        tensor(f, l, name[2], q4_or_q6(m, l), m->ff_exp, m->embd, 0);
    }
}

static void qwen3moe_layer(struct file *f, const struct release *m, int l)
{
    attention(f, m, l, Q4_K, q4_or_q6(m, l), Q4_K);
    qk_norms(f, l, m->dim, m->dim);
    tensor(f, l, "ffn_norm.weight", F32, m->embd, 0, 0);
    experts(f, m, l, Q4_K, q4_or_q6(m, l));
}

static void olmoe_layer(struct file *f, const struct release *m, int l)
{
    attention(f, m, l, Q4_K, q4_or_q6(m, l), Q4_K);
    qk_norms(f, l, m->embd, m->embd);
    tensor(f, l, "ffn_norm.weight", F32, m->embd, 0, 0);
    experts(f, m, l, Q4_K, q4_or_q6(m, l));
}

static void gptoss_keys(struct file *f)
{
    key_int(f, "attention.sliding_window", 128);
    key_str(f, "gpt-oss.rope.scaling.type", "yarn");
    key_float(f, "rope.scaling.factor", 32);
    key_int(f, "rope.scaling.original_context_length", 4096);
}

static void gptoss_layer(struct file *f, const struct release *m, int l)
{
    attention(f, m, l, Q8_0, Q8_0, Q8_0);
    qkv_biases(f, m, l);
    tensor(f, l, "attn_output.bias", F32, m->embd, 0, 0);
    tensor(f, l, "attn_sinks.weight", F32, m->heads, 0, 0);
    tensor(f, l, "post_attention_norm.weight", F32, m->embd, 0, 0);
    experts(f, m, l, MXFP4, MXFP4);
    tensor(f, l, "ffn_gate_inp.bias", F32, m->experts, 0, 0);
    tensor(f, l, "ffn_gate_exps.bias", F32, m->ff_exp, m->experts, 0);
    tensor(f, l, "ffn_up_exps.bias", F32, m->ff_exp, m->experts, 0);
    tensor(f, l, "ffn_down_exps.bias", F32, m->embd, m->experts, 0);
}

static void glm_keys(struct file *f)
{
    key_int(f, "rope.dimension_count", 64);
    key_int(f, "expert_shared_count", 1);
    key_int(f, "leading_dense_block_count", 1);
    key_int(f, "nextn_predict_layers", 1);
    key_int(f, "expert_gating_func", 2);
    key_float(f, "expert_weights_scale", 1.0f);
    key_bool(f, "expert_weights_norm", true);
}

static void glm_nextn(struct file *f, const struct release *m, int l)
{
    static const char *const norms[] = {"nextn.enorm.weight", "nextn.hnorm.weight",
                                        "nextn.shared_head_norm.weight"};
    tensor(f, l, "nextn.eh_proj.weight", Q4_K, 2 * m->embd, m->embd, 0);
    tensor(f, l, "nextn.embed_tokens.weight", Q4_K, m->embd, m->vocab, 0);
    tensor(f, l, "nextn.shared_head_head.weight", Q4_K, m->embd, m->vocab, 0);
    for (int i = 0; i < 3; i++) tensor(f, l, norms[i], F32, m->embd, 0, 0);
}

static void glm_layer(struct file *f, const struct release *m, int l)
{
    const uint32_t down = q4_or_q6(m, l);
    attention(f, m, l, Q4_K, down, Q4_K);
    qkv_biases(f, m, l);
    tensor(f, l, "post_attention_norm.weight", F32, m->embd, 0, 0);
    if (l == 0) {
        tensor(f, l, "ffn_gate.weight", Q4_K, m->embd, m->ff, 0);
        tensor(f, l, "ffn_up.weight", Q4_K, m->embd, m->ff, 0);
        tensor(f, l, "ffn_down.weight", down, m->ff, m->embd, 0);
        return;
    }
    experts(f, m, l, Q4_K, down);
    tensor(f, l, "exp_probs_b.bias", F32, m->experts, 0, 0);
    tensor(f, l, "ffn_gate_shexp.weight", Q4_K, m->embd, m->ff_exp, 0);
    tensor(f, l, "ffn_up_shexp.weight", Q4_K, m->embd, m->ff_exp, 0);
    tensor(f, l, "ffn_down_shexp.weight", down, m->ff_exp, m->embd, 0);
    if (l == m->layers - 1) glm_nextn(f, m, l);
}

/* DeepSeek: lite has a plain query; old files have attn_kv_b, and whole heads in the cache. */
static void deepseek_keys(struct file *f, bool lite, bool latent)
{
    key_int(f, "attention.key_length", latent ? 576 : 192);
    key_int(f, "attention.value_length", latent ? 512 : 128);
    if (latent) key_int(f, "attention.key_length_mla", 192);
    if (latent) key_int(f, "attention.value_length_mla", 128);
    key_int(f, "attention.head_count_kv", latent ? 1 : 16);
    key_int(f, "attention.kv_lora_rank", 512);
    if (!lite) key_int(f, "attention.q_lora_rank", 1536);
    key_int(f, "rope.dimension_count", 64);
    key_int(f, "leading_dense_block_count", lite ? 1 : 3);
    key_int(f, "expert_shared_count", lite ? 2 : 1);
    if (!lite) key_int(f, "expert_gating_func", 2);
    if (!lite) key_int(f, "expert_group_count", 8);
    if (!lite) key_int(f, "expert_group_used_count", 4);
    key_float(f, "expert_weights_scale", lite ? 1.0f : 2.5f);
    key_bool(f, "expert_weights_norm", !lite);
    key_str(f, "deepseek2.rope.scaling.type", "yarn");
    key_float(f, "rope.scaling.factor", 40.0f);
    key_int(f, "rope.scaling.original_context_length", 4096);
    key_float(f, "rope.scaling.yarn_log_multiplier", lite ? 0.0707f : 0.1f);
}

static void old_lite_keys(struct file *f) { deepseek_keys(f, true, false); }
static void lite_keys(struct file *f) { deepseek_keys(f, true, true); }
static void v3_keys(struct file *f) { deepseek_keys(f, false, true); }

static void deepseek_layer(struct file *f, const struct release *m, int l, bool lite, bool latent)
{
    const int shared = lite ? 2 : 1, dense = lite ? 1 : 3, q_rank = 1536;
    const uint32_t more = q4_or_q6(m, l);
    tensor(f, l, "attn_norm.weight", F32, m->embd, 0, 0);
    tensor(f, l, "ffn_norm.weight", F32, m->embd, 0, 0);
    tensor(f, l, "attn_kv_a_norm.weight", F32, 512, 0, 0);
    tensor(f, l, "attn_kv_a_mqa.weight", Q4_K, m->embd, 576, 0);
    tensor(f, l, "attn_output.weight", Q4_K, m->heads * 128, m->embd, 0);
    if (lite) {
        tensor(f, l, "attn_q.weight", Q4_K, m->embd, m->heads * 192, 0);
    } else {
        tensor(f, l, "attn_q_a.weight", Q4_K, m->embd, q_rank, 0);
        tensor(f, l, "attn_q_a_norm.weight", F32, q_rank, 0, 0);
        tensor(f, l, "attn_q_b.weight", Q4_K, q_rank, m->heads * 192, 0);
    }
    if (latent) {
        tensor(f, l, "attn_k_b.weight", Q4_K, 128, 512, m->heads);
        tensor(f, l, "attn_v_b.weight", Q4_K, 512, 128, m->heads);
    } else {
        tensor(f, l, "attn_kv_b.weight", Q4_K, 512, m->heads * 256, 0);
    }
    if (l < dense) {
        tensor(f, l, "ffn_gate.weight", Q4_K, m->embd, m->ff, 0);
        tensor(f, l, "ffn_up.weight", Q4_K, m->embd, m->ff, 0);
        tensor(f, l, "ffn_down.weight", more, m->ff, m->embd, 0);
        return;
    }
    experts(f, m, l, Q4_K, more);
    if (!lite) tensor(f, l, "exp_probs_b.bias", F32, m->experts, 0, 0);
    tensor(f, l, "ffn_gate_shexp.weight", Q4_K, m->embd, shared * m->ff_exp, 0);
    tensor(f, l, "ffn_up_shexp.weight", Q4_K, m->embd, shared * m->ff_exp, 0);
    tensor(f, l, "ffn_down_shexp.weight", more, shared * m->ff_exp, m->embd, 0);
}

static void old_lite_layer(struct file *f, const struct release *m, int l)
{
    deepseek_layer(f, m, l, true, false);
}

static void lite_layer(struct file *f, const struct release *m, int l)
{
    deepseek_layer(f, m, l, true, true);
}

static void v3_layer(struct file *f, const struct release *m, int l)
{
    deepseek_layer(f, m, l, false, true);
}

/* Hybrids of gated DeltaNet and attention: 16 heads of k, 32 of v, 128 values each. */
enum { KEYS = 16 * 128, VALUES = 32 * 128, STATE = 4 * (32 * 128 * 128 + 3 * (2 * KEYS + VALUES)) };

static void delta_keys(struct file *f)
{
    static const uint32_t sections[4] = {11, 11, 10, 0};
    key_int(f, "rope.dimension_count", 64);
    key_int(f, "expert_shared_feed_forward_length", 512);
    key_int(f, "ssm.conv_kernel", 4);
    key_int(f, "ssm.state_size", 128);
    key_int(f, "ssm.group_count", 16);
    key_int(f, "ssm.time_step_rank", 32);
    key_int(f, "ssm.inner_size", VALUES);
    key_int(f, "full_attention_interval", 4);
    if (strcmp(f->arch, "qwen35moe")) return;
    key_array(f, "rope.dimension_sections", GGUF_I32, 4);
    for (int i = 0; i < 4; i++) blob_u32(&f->keys, sections[i]);
}

static void delta_layer(struct file *f, const struct release *m, int l)
{
    const bool next = !strcmp(m->arch, "qwen3next");
    const uint32_t more = q4_or_q6(m, l);
    tensor(f, l, "attn_norm.weight", F32, m->embd, 0, 0);
    tensor(f, l, "post_attention_norm.weight", F32, m->embd, 0, 0);
    if ((l + 1) % 4 == 0) {
        const int nq = m->heads * m->dim, nkv = m->kv * m->dim;
        tensor(f, l, "attn_q.weight", Q4_K, m->embd, 2 * nq, 0);
        tensor(f, l, "attn_k.weight", Q4_K, m->embd, nkv, 0);
        tensor(f, l, "attn_v.weight", more, m->embd, nkv, 0);
        tensor(f, l, "attn_output.weight", Q4_K, nq, m->embd, 0);
        qk_norms(f, l, m->dim, m->dim);
    } else {
        tensor(f, l, "attn_qkv.weight", more, m->embd, 2 * KEYS + VALUES, 0);
        tensor(f, l, "attn_gate.weight", Q4_K, m->embd, VALUES, 0);
        tensor(f, l, "ssm_conv1d.weight", F32, 4, 2 * KEYS + VALUES, 0);
        tensor(f, l, "ssm_dt.bias", F32, 32, 0, 0);
        tensor(f, l, "ssm_a", F32, 32, 0, 0);
        tensor(f, l, "ssm_norm.weight", F32, 128, 0, 0);
        tensor(f, l, "ssm_out.weight", Q4_K, VALUES, m->embd, 0);
        if (next) tensor(f, l, "ssm_ba.weight", Q4_K, m->embd, 64, 0);
        if (!next) tensor(f, l, "ssm_alpha.weight", Q4_K, m->embd, 32, 0);
        if (!next) tensor(f, l, "ssm_beta.weight", Q4_K, m->embd, 32, 0);
    }
    experts(f, m, l, Q4_K, more);
    tensor(f, l, "ffn_gate_inp_shexp.weight", F32, m->embd, 0, 0);
    tensor(f, l, "ffn_gate_shexp.weight", Q4_K, m->embd, m->ff_exp, 0);
    tensor(f, l, "ffn_up_shexp.weight", Q4_K, m->embd, m->ff_exp, 0);
    tensor(f, l, "ffn_down_shexp.weight", more, m->ff_exp, m->embd, 0);
}

/* Gemma 4: five windowed layers, then one that sees everything and has no attn_v. */
static bool gemma_windowed(int l) { return (l + 1) % 6 != 0; }

static void gemma_keys(struct file *f)
{
    key_array(f, "attention.head_count_kv", GGUF_I32, 30);
    for (int l = 0; l < 30; l++) blob_u32(&f->keys, gemma_windowed(l) ? 8 : 2);
    key_array(f, "attention.sliding_window_pattern", GGUF_BOOL, 30);
    for (int l = 0; l < 30; l++) blob_le(&f->keys, gemma_windowed(l), 1);
    key_int(f, "attention.sliding_window", 1024);
    key_int(f, "attention.key_length_swa", 256);
    key_int(f, "attention.value_length_swa", 256);
    key_int(f, "attention.shared_kv_layers", 0);
    key_int(f, "embedding_length_per_layer_input", 0);
    key_int(f, "rope.dimension_count", 512);
    key_int(f, "rope.dimension_count_swa", 256);
    key_float(f, "rope.freq_base_swa", 1e4f);
    key_float(f, "final_logit_softcapping", 30.0f);
    tensor(f, -1, "rope_freqs.weight", F32, 256, 0, 0);
}

static void gemma_layer(struct file *f, const struct release *m, int l)
{
    static const char *const norms[] = {
        "attn_norm.weight", "post_attention_norm.weight", "ffn_norm.weight",
        "post_ffw_norm.weight", "post_ffw_norm_1.weight", "pre_ffw_norm_2.weight",
        "post_ffw_norm_2.weight", "ffn_gate_inp.scale",
    };
    const bool windowed = gemma_windowed(l);
    const int dim = windowed ? 256 : 512, nq = m->heads * dim, nkv = (windowed ? 8 : 2) * dim;
    const uint32_t more = q4_or_q6(m, l);
    for (int i = 0; i < 8; i++) tensor(f, l, norms[i], F32, m->embd, 0, 0);
    tensor(f, l, "attn_q.weight", Q4_K, m->embd, nq, 0);
    tensor(f, l, "attn_k.weight", Q4_K, m->embd, nkv, 0);
    if (windowed) tensor(f, l, "attn_v.weight", q4_or_q6_of(l - l / 6, 25), m->embd, nkv, 0);
    tensor(f, l, "attn_output.weight", Q4_K, nq, m->embd, 0);
    qk_norms(f, l, dim, dim);
    tensor(f, l, "ffn_gate.weight", Q4_K, m->embd, m->ff, 0);
    tensor(f, l, "ffn_up.weight", Q4_K, m->embd, m->ff, 0);
    tensor(f, l, "ffn_down.weight", more, m->ff, m->embd, 0);
    tensor(f, l, "ffn_gate_inp.weight", F32, m->embd, m->experts, 0);
    tensor(f, l, "ffn_gate_up_exps.weight", Q4_K, m->embd, 2 * m->ff_exp, m->experts);
    tensor(f, l, "ffn_down_exps.weight", more, m->ff_exp, m->embd, m->experts);
    tensor(f, l, "ffn_down_exps.scale", F32, m->experts, 0, 0);
    tensor(f, l, "layer_output_scale.weight", F32, 1, 0, 0);
}

static const struct release releases[] = {
    {"Mixtral-8x7B Q4_K_M", "llama", 32, 32768, 4096, 14336, 14336, 32, 8, 128, 32000, 8, 2, 1e6f,
     1e-5f, NULL, mixtral_layer, Q4_K, Q6_K, 46702792704u, 2 * 2 * 32 * 1024,
     "97 F32, 64 Q8_0, 113 Q4_K, 32 Q5_K, 17 Q6_K"},
    {"Mixtral-8x7B Q4_K_M, split", "llama", 32, 32768, 4096, 14336, 14336, 32, 8, 128, 32000, 8, 2,
     1e6f, 1e-5f, NULL, old_mixtral_layer, Q4_K, Q6_K, 46702792704u, 2 * 2 * 32 * 1024,
     "65 F32, 32 F16, 64 Q8_0, 673 Q4_K, 32 Q5_K, 129 Q6_K"},
    {"Qwen3-30B-A3B Q4_K_M", "qwen3moe", 48, 40960, 2048, 6144, 768, 32, 4, 128, 151936, 128, 8,
     1e6f, 1e-6f, NULL, qwen3moe_layer, Q4_K, Q6_K, 30532122624u, 2 * 2 * 48 * 512,
     "241 F32, 289 Q4_K, 49 Q6_K"},
    {"gpt-oss-20b MXFP4", "gpt-oss", 24, 131072, 2880, 2880, 2880, 64, 8, 64, 201088, 32, 4, 150000,
     1e-5f, gptoss_keys, gptoss_layer, Q8_0, Q8_0, 20914757184u, 2 * 2 * 24 * 512,
     "289 F32, 98 Q8_0, 72 MXFP4"},
    {"gpt-oss-120b MXFP4", "gpt-oss", 36, 131072, 2880, 2880, 2880, 64, 8, 64, 201088, 128, 4,
     150000, 1e-5f, gptoss_keys, gptoss_layer, Q8_0, Q8_0, 116829156672u, 2 * 2 * 36 * 512,
     "433 F32, 146 Q8_0, 108 MXFP4"},
    /* 110,468,824,832 with the layer that does not run. */
    {"GLM-4.5-Air Q4_K_M", "glm4moe", 47, 131072, 4096, 10944, 1408, 96, 8, 128, 151552, 128, 8,
     1e6f, 1e-5f, glm_keys, glm_layer, Q4_K, Q6_K, 106852251264u, 2 * 2 * 46 * 1024,
     "331 F32, 48 Q5_0, 45 Q8_0, 355 Q4_K, 24 Q6_K"},
    {"OLMoE-1B-7B Q4_K_M", "olmoe", 16, 4096, 2048, 1024, 1024, 16, 16, 128, 50304, 64, 8, 1e4f,
     1e-5f, NULL, olmoe_layer, Q4_K, Q6_K, 6919161856u, 2 * 2 * 16 * 2048,
     "81 F32, 97 Q4_K, 17 Q6_K"},
    {"DeepSeek-V2-Lite Q4_K_M, old", "deepseek2", 27, 163840, 2048, 10944, 1408, 16, 0, 0, 102400,
     64, 6, 1e4f, 1e-6f, old_lite_keys, old_lite_layer, Q4_K, Q6_K, 15706484224u,
     2 * 27 * 16 * (192 + 128), "108 F32, 14 Q5_0, 13 Q8_0, 229 Q4_K, 13 Q6_K"},
    {"DeepSeek-V2-Lite Q4_K_M", "deepseek2", 27, 163840, 2048, 10944, 1408, 16, 0, 0, 102400, 64, 6,
     1e4f, 1e-6f, lite_keys, lite_layer, Q4_K, Q6_K, 15706484224u, 2 * 27 * 576,
     "108 F32, 41 Q5_0, 13 Q8_0, 229 Q4_K, 13 Q6_K"},
    {"DeepSeek-V3 Q4_K_M", "deepseek2", 61, 163840, 7168, 18432, 2048, 128, 0, 0, 129280, 256, 8,
     1e4f, 1e-6f, v3_keys, v3_layer, Q4_K, Q6_K, 671026419200u, 2 * 61 * 576,
     "361 F32, 61 Q5_0, 606 Q4_K, 58 Q6_K"},
    {"Qwen3-Next-80B-A3B Q4_K_M", "qwen3next", 48, 262144, 2048, 5120, 512, 16, 2, 256, 151936, 512,
     10, 1e7f, 1e-6f, delta_keys, delta_layer, Q4_K, Q6_K, 79674391296u, 2 * 2 * 12 * 512,
     "361 F32, 409 Q4_K, 73 Q6_K", 36 * STATE},
    {"Qwen3.5-35B-A3B Q4_K_M", "qwen35moe", 40, 262144, 2048, 0, 512, 16, 2, 256, 248320, 256, 8,
     1e7f, 1e-6f, delta_keys, delta_layer, Q4_K, Q6_K, 34660610688u, 2 * 2 * 10 * 512,
     "301 F32, 371 Q4_K, 61 Q6_K", 30 * STATE},
    {"Gemma-4-26B-A4B Q4_K_M", "gemma4", 30, 262144, 2816, 2112, 704, 16, 0, 512, 262144, 128, 8,
     1e6f, 1e-6f, gemma_keys, gemma_layer, Q6_K, TIED, 25233142046u,
     2 * 2 * (25 * 2048 + 5 * 1024), "392 F32, 32 Q5_0, 28 Q8_0, 192 Q4_K, 14 Q6_K"},
};

static void describe(struct file *f, const struct release *m)
{
    f->arch = m->arch;
    key_str(f, "general.architecture", m->arch);
    key_str(f, "general.name", m->name);
    const struct { const char *key; int v; } ints[] = {
        {"block_count", m->layers}, {"context_length", m->ctx}, {"embedding_length", m->embd},
        {"feed_forward_length", m->ff}, {"attention.head_count", m->heads},
        {"attention.head_count_kv", m->kv}, {"attention.key_length", m->dim},
        {"attention.value_length", m->dim}, {"expert_count", m->experts},
        {"expert_used_count", m->used}, {"expert_feed_forward_length", m->ff_exp},
    };
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++)
        if (ints[i].v) key_int(f, ints[i].key, (uint64_t)ints[i].v);
    key_float(f, "attention.layer_norm_rms_epsilon", m->eps);
    key_float(f, "rope.freq_base", m->base);
    if (m->keys) m->keys(f);
    tensor(f, -1, "token_embd.weight", m->embd_type, m->embd, m->vocab, 0);
    if (m->output_type != TIED)
        tensor(f, -1, "output.weight", m->output_type, m->embd, m->vocab, 0);
    tensor(f, -1, "output_norm.weight", F32, m->embd, 0, 0);
    for (int l = 0; l < m->layers; l++) m->layer(f, m, l);
}

/* ---- the checks ---- */

static tessera_engine *open_plan(const char *path, uint64_t budget, int n_ctx)
{
    struct err e;
    tessera_engine *engine;
    struct tessera_options o = tessera_defaults();
    o.model_path = path;
    o.mem_budget = budget;
    o.n_ctx = n_ctx;
    o.header_only = true;
    if (tessera_open(&o, &engine, &e)) fail_msg("%s", e.msg);
    return engine;
}

/* "kv": bytes in the plan's JSON. */
static double planned(const char *json, const char *what)
{
    char key[32];
    (void)snprintf(key, sizeof key, "\"%s\":", what);
    const char *at = strstr(json, key);
    if (!at) fail_msg("the plan has no %s", what);
    return strtod(at + strlen(key), NULL);
}

static void check_plan(const struct release *m, const tessera_engine *e, int n_ctx)
{
    struct err err;
    char *text = NULL;
    size_t n = 0;
    for (int json = 0; json < 2; json++) {
        FILE *to = open_memstream(&text, &n);
        assert_non_null(to);
        assert_int_equal(tessera_explain(e, to, json, &err), OK);
        assert_int_equal(fclose(to), 0);
        assert_non_null(strstr(text, m->name));
        if (json) {
            const double states = m->state_bytes ? planned(text, "kv_recurrent") : 0;
            assert_true(planned(text, "kv") - states == (double)m->kv_bytes * n_ctx);
            assert_true(states >= 2 * (double)m->state_bytes);
            if (states > 0) assert_true(fmod(states, (double)m->state_bytes) == 0);
        }
        free(text);
    }
}

static void check_types(const struct file *f, const struct release *m)
{
    char got[128] = "";
    for (uint32_t t = 0; t < 64; t++) {
        const size_t n = strlen(got);
        if (f->n_of_type[t])
            (void)snprintf(got + n, sizeof got - n, "%s%d %s", n ? ", " : "", f->n_of_type[t],
                           qtype_info(t)->name);
    }
    assert_string_equal(got, m->types);
}

static void test_releases(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof releases / sizeof *releases; i++) {
        const struct release *m = &releases[i];
        char path[128];
        struct file f = {0};
        struct stat st;
        describe(&f, m);
        (void)snprintf(path, sizeof path, "%s/release.gguf", dir);
        write_file(&f, path);
        assert_int_equal(stat(path, &st), 0);
        assert_true(st.st_blocks * 512 < st.st_size / 100); /* a hole indeed */
        tessera_engine *e = open_plan(path, UINT64_MAX, 4096);
        const struct tessera_model model = tessera_model(e);
        printf("[  NOTE    ] %s: %.1f GB, %llu parameters, %llu per token\n", m->name,
               (double)st.st_size / 1e9, (unsigned long long)model.n_params,
               (unsigned long long)model.n_params_active);
        assert_true(model.n_params == m->n_params);
        check_types(&f, m);
        assert_int_equal(tessera_memory(e).weights, 0);
        check_plan(m, e, 4096);
        tessera_close(e);
        (void)unlink(path);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_releases)};
    if (!mkdtemp(dir)) return 1;
    const int bad = cmocka_run_group_tests(tests, NULL, NULL);
    (void)rmdir(dir);
    return bad;
}
