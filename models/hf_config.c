/* config.json of a Hugging Face checkpoint in GGUF's terms: see hf.h.
 *
 * Keys and values are those that llama.cpp's converter writes.  Defaults are those of the models'
 * own configuration classes.  A setting that would change the result and that the GGUF architecture
 * cannot say is an error.  Errors stick: a function that reads goes on after one. */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "models/arch.h"
#include "models/hf.h"

enum { WIDTH_MAX = 1 << 24, EXPERTS_MAX = 4096, CTX_MAX = 1 << 30 };

struct hf_config {
    const cJSON *c;
    const char *path;
    struct gguf_writer *w;
    struct hf_model *m;
    struct err *e;
};

static void fail(struct hf_config *c, enum status code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static void fail(struct hf_config *c, enum status code, const char *fmt, ...)
{
    char what[300];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    (void)err_set(c->e, code, "%.150s: %s", c->path, what);
}

/* ---- values ---- */

/* The first of the names ("a|b") that o has. */
static const cJSON *get(const cJSON *o, const char *names)
{
    char name[64];
    for (const char *p = names; *p;) {
        const size_t n = strcspn(p, "|");
        (void)snprintf(name, sizeof name, "%.*s", (int)n, p);
        const cJSON *v = jf_get(o, name);
        if (v) return v;
        p += n + (p[n] == '|');
    }
    return NULL;
}

/* A whole number; dflt < 0: it must be there. */
static int whole(struct hf_config *c, const char *names, int dflt, int lo, int hi)
{
    uint64_t x;
    const cJSON *v = get(c->c, names);
    if (!v) {
        if (dflt < 0) fail(c, ERR_MISSING, "\"%s\" is missing", names);
        return dflt < 0 ? lo : dflt;
    }
    if (jf_u64(v, &x) && x >= (uint64_t)lo && x <= (uint64_t)hi) return (int)x;
    fail(c, ERR_FORMAT, "\"%s\" is no whole number from %d to %d", names, lo, hi);
    return lo;
}

static double real_of(struct hf_config *c, const cJSON *o, const char *names, double dflt)
{
    const cJSON *v = get(o, names);
    if (!v) return dflt;
    if (cJSON_IsNumber(v) && isfinite(v->valuedouble)) return v->valuedouble;
    fail(c, ERR_FORMAT, "\"%s\" is no finite number", names);
    return dflt;
}

static double real(struct hf_config *c, const char *names, double dflt)
{
    return real_of(c, c->c, names, dflt);
}

static bool yes(struct hf_config *c, const char *name, bool dflt)
{
    const cJSON *v = jf_get(c->c, name);
    if (v && !cJSON_IsBool(v)) fail(c, ERR_FORMAT, "\"%s\" is not true or false", name);
    return v ? cJSON_IsTrue(v) : dflt;
}

static void full_key(const struct hf_config *c, const char *key, char out[96])
{
    (void)snprintf(out, 96, "%s.%s", c->m->arch->name, key);
}

static void put(struct hf_config *c, const char *key, int v)
{
    char full[96];
    full_key(c, key, full);
    gguf_put_u32(c->w, full, (uint32_t)v);
}

static void put_f32(struct hf_config *c, const char *key, double v)
{
    char full[96];
    full_key(c, key, full);
    gguf_put_f32(c->w, full, (float)v);
}

/* ---- what must be as the architecture has it ---- */

static void must_be_text(struct hf_config *c, const char *name, const char *value)
{
    const char *s = jf_str(c->c, name);
    if (s && strcmp(s, value))
        fail(c, ERR_UNSUPPORTED, "\"%s\" is \"%.40s\"; %s models have \"%s\"", name, s,
             c->m->arch->name, value);
}

static void must_be(struct hf_config *c, const char *name, double value, double dflt)
{
    const cJSON *v = jf_get(c->c, name);
    double x = dflt;
    if (cJSON_IsBool(v)) x = cJSON_IsTrue(v);
    else if (v) x = real(c, name, dflt);
    if (x < value || x > value)
        fail(c, ERR_UNSUPPORTED, "\"%s\" is %g; %s models that can be converted have %g", name, x,
             c->m->arch->name, value);
}

static void must_be_absent(struct hf_config *c, const char *name)
{
    const cJSON *v = jf_get(c->c, name);
    if (v && !(cJSON_IsArray(v) && !v->child))
        fail(c, ERR_UNSUPPORTED, "\"%s\" is set, which the architecture %s of GGUF files does not "
             "have", name, c->m->arch->name);
}

/* ---- rotary embeddings ---- */

/* Llama 3.1: long waves are slowed down by `factor`, short ones are left, with a ramp between. */
static void llama3_factors(struct hf_config *c, const cJSON *r, double base)
{
    struct hf_model *m = c->m;
    const double factor = real_of(c, r, "factor", 8), low = real_of(c, r, "low_freq_factor", 1);
    const double high = real_of(c, r, "high_freq_factor", 4);
    const double ctx = real_of(c, r, "original_max_position_embeddings", 8192);
    if (!(factor > 0) || !(low > 0) || !(high > low) || !(ctx > 0) ||
        m->head_dim / 2 > HF_ROPE_MAX) {
        fail(c, ERR_FORMAT, "the rope scaling \"llama3\" has impossible factors");
        return;
    }
    if (strcmp(m->arch->name, "llama")) {
        fail(c, ERR_UNSUPPORTED, "the rope scaling \"llama3\" is not supported for %s",
             m->arch->name);
        return;
    }
    m->n_rope_freqs = m->head_dim / 2;
    for (int i = 0; i < m->n_rope_freqs; i++) {
        const double wave = 2 * 3.14159265358979323846 * pow(base, 2.0 * i / m->head_dim);
        const double smooth = (ctx / wave - low) / (high - low);
        double f = 1 / ((1 - smooth) / factor + smooth);
        if (wave < ctx / high) f = 1;
        else if (wave > ctx / low) f = factor;
        m->rope_freqs[i] = (float)f;
    }
}

/* How much YaRN enlarges cos and sin (arXiv 2309.00071), as Hugging Face computes it. */
static double yarn_magnitude(double factor, double mscale)
{
    return factor > 1 ? 0.1 * mscale * log(factor) + 1 : 1;
}

static void yarn(struct hf_config *c, const cJSON *r, double factor)
{
    char key[96];
    const bool latent = !strcmp(c->m->arch->name, "deepseek2");
    const double one = real_of(c, r, "mscale", 0), all = real_of(c, r, "mscale_all_dim", 0);
    const double usual = yarn_magnitude(factor, 1);
    double own = usual;
    full_key(c, "rope.scaling.type", key);
    gguf_put_str(c->w, key, "yarn");
    put_f32(c, "rope.scaling.factor", factor);
    put(c, "rope.scaling.original_context_length",
        (int)real_of(c, r, "original_max_position_embeddings",
                     whole(c, "original_max_position_embeddings|max_position_embeddings", -1, 1,
                           CTX_MAX)));
    if (get(r, "beta_fast"))
        put_f32(c, "rope.scaling.yarn_beta_fast", real_of(c, r, "beta_fast", 0));
    if (get(r, "beta_slow"))
        put_f32(c, "rope.scaling.yarn_beta_slow", real_of(c, r, "beta_slow", 0));
    if (latent) {
        /* Readers take equal scales for granted: cos and sin stay, scores grow by the square. */
        if (get(r, "mscale_all_dim") && fabs(one - all) > 1e-6)
            fail(c, ERR_UNSUPPORTED,
                 "\"mscale\" and \"mscale_all_dim\" of the rope scaling differ");
        if (get(r, "mscale_all_dim")) put_f32(c, "rope.scaling.yarn_log_multiplier", 0.1 * all);
        return;
    }
    if (one != 0 && all != 0) own = yarn_magnitude(factor, one) / yarn_magnitude(factor, all);
    own = real_of(c, r, "attention_factor", own);
    if (fabs(own / usual - 1) > 1e-6) put_f32(c, "rope.scaling.attn_factor", own / usual);
}

static void rope(struct hf_config *c, double dflt_base)
{
    const cJSON *r = get(c->c, "rope_parameters|rope_scaling");
    const double base = real_of(c, r, "rope_theta", real(c, "rope_theta", dflt_base));
    const double factor = real_of(c, r, "factor", 1);
    const cJSON *t = get(r, "rope_type|type");
    const char *type = t ? cJSON_GetStringValue(t) : "default";
    must_be(c, "partial_rotary_factor", 1, 1);
    if (jf_get(r, "full_attention") || jf_get(r, "sliding_attention"))
        fail(c, ERR_UNSUPPORTED, "rope parameters that depend on the layer are not supported");
    if (!(base > 0) || !(factor > 0))
        fail(c, ERR_FORMAT, "\"rope_theta\" or \"factor\" is not positive");
    if (!type || !strcmp(type, "default") || c->e->code) {
        if (!type) fail(c, ERR_FORMAT, "the rope scaling has no \"rope_type\"");
    } else if (!strcmp(type, "linear")) {
        char key[96];
        full_key(c, "rope.scaling.type", key);
        gguf_put_str(c->w, key, "linear");
        put_f32(c, "rope.scaling.factor", factor);
    } else if (!strcmp(type, "yarn")) {
        yarn(c, r, factor);
    } else if (!strcmp(type, "llama3")) {
        llama3_factors(c, r, base);
    } else {
        fail(c, ERR_UNSUPPORTED,
             "the rope scaling \"%.40s\" is not supported; linear, yarn and llama3 are",
             type);
    }
    put_f32(c, "rope.freq_base", base);
}

/* ---- what the architectures share ---- */

/* The GGUF architecture has no windows: within the window nothing differs. */
static void window(struct hf_config *c)
{
    const int n = whole(c, "sliding_window", 0, 0, CTX_MAX);
    if (cJSON_IsFalse(jf_get(c->c, "use_sliding_window"))) return;
    if (n < whole(c, "max_position_embeddings", 0, 0, CTX_MAX)) c->m->ignored_window = n;
}

/* Defaults: rope_theta, rms_norm_eps, head_dim (0: they share the width). */
static void common(struct hf_config *c, double dflt_base, double dflt_eps, int dflt_dim)
{
    struct hf_model *m = c->m;
    m->n_layer = whole(c, "num_hidden_layers|n_layers", -1, 1, LAYERS_MAX);
    const int width = whole(c, "hidden_size|d_model", -1, 1, WIDTH_MAX);
    m->n_head = whole(c, "num_attention_heads|n_heads", -1, 1, WIDTH_MAX);
    m->n_kv_head = whole(c, "num_key_value_heads|n_kv_heads", m->n_head, 1, WIDTH_MAX);
    if (!dflt_dim) dflt_dim = width / m->n_head > 0 ? width / m->n_head : 1;
    m->head_dim = whole(c, "head_dim", dflt_dim, 1, 1 << 16);
    m->n_dense_lead = m->n_layer;
    m->tied = yes(c, "tie_word_embeddings", false);
    must_be_text(c, "hidden_act", "silu");
    if (m->arch->rows != hf_rows_mor) put(c, "block_count", m->n_layer); /* unrolled there */
    put(c, "context_length", whole(c, "max_position_embeddings|max_sequence_length", -1, 1, CTX_MAX));
    put(c, "embedding_length", width);
    put(c, "feed_forward_length",
        whole(c, "dense_intermediate_size|intermediate_size|mlp_hidden_size", -1, 1, WIDTH_MAX));
    put(c, "attention.head_count", m->n_head);
    put_f32(c, "attention.layer_norm_rms_epsilon", real(c, "rms_norm_eps", dflt_eps));
    rope(c, dflt_base);
}

static void heads(struct hf_config *c)
{
    put(c, "attention.head_count_kv", c->m->n_kv_head);
    put(c, "attention.key_length", c->m->head_dim);
    put(c, "attention.value_length", c->m->head_dim);
}

static void experts(struct hf_config *c, const char *count, int dflt_count, int dflt_used)
{
    c->m->n_expert = whole(c, count, dflt_count, 1, EXPERTS_MAX);
    c->m->n_dense_lead = 0;
    put(c, "expert_count", c->m->n_expert);
    put(c, "expert_used_count", whole(c, "num_experts_per_tok", dflt_used, 1, c->m->n_expert));
}

/* ---- one by one ---- */

static void llama_keys(struct hf_config *c)
{
    common(c, 1e4, 1e-6, 0);
    heads(c);
    window(c);
    put(c, "vocab_size", whole(c, "vocab_size", -1, 1, WIDTH_MAX));
    put(c, "rope.dimension_count", c->m->head_dim);
}

static void mixtral_keys(struct hf_config *c)
{
    common(c, 1e6, 1e-5, 0);
    heads(c);
    window(c);
    put(c, "vocab_size", whole(c, "vocab_size", -1, 1, WIDTH_MAX));
    put(c, "rope.dimension_count", c->m->head_dim);
    experts(c, "num_local_experts", 8, 2);
}

static void qwen2_keys(struct hf_config *c)
{
    common(c, 1e4, 1e-6, 0);
    heads(c);
    window(c);
}

static void qwen3_keys(struct hf_config *c)
{
    common(c, 1e4, 1e-6, 128);
    heads(c);
    window(c);
}

static void qwen_moe(struct hf_config *c)
{
    must_be_absent(c, "mlp_only_layers");
    must_be(c, "decoder_sparse_step", 1, 1);
    put(c, "expert_feed_forward_length", whole(c, "moe_intermediate_size", -1, 1, WIDTH_MAX));
}

static void qwen2moe_keys(struct hf_config *c)
{
    qwen2_keys(c);
    qwen_moe(c);
    experts(c, "num_experts", 60, 4);
    must_be(c, "norm_topk_prob", 0, 0);
    put(c, "expert_shared_feed_forward_length",
        whole(c, "shared_expert_intermediate_size", -1, 1, WIDTH_MAX));
}

static void qwen3moe_keys(struct hf_config *c)
{
    qwen3_keys(c);
    qwen_moe(c);
    experts(c, "num_experts", 128, 8);
    must_be(c, "norm_topk_prob", 1, 0);
}

static void olmoe_keys(struct hf_config *c)
{
    common(c, 1e4, 1e-5, 0);
    heads(c);
    experts(c, "num_experts", 64, 8);
    must_be(c, "norm_topk_prob", 0, 0);
    must_be_absent(c, "clip_qkv");
}

/* Masked diffusion: attention looks both ways. */
static void sees_both(struct hf_config *c)
{
    char key[96];
    full_key(c, "attention.causal", key);
    gguf_put_bool(c->w, key, false);
}

static void dream_keys(struct hf_config *c)
{
    qwen2_keys(c);
    sees_both(c);
}

static void rnd1_keys(struct hf_config *c)
{
    qwen3moe_keys(c);
    sees_both(c);
}

static void llada_keys(struct hf_config *c)
{
    common(c, 1e4, 1e-5, 0);
    heads(c);
    put(c, "vocab_size", whole(c, "vocab_size", -1, 1, WIDTH_MAX));
    put(c, "rope.dimension_count", c->m->head_dim);
    must_be_text(c, "block_type", "llama");
    must_be_text(c, "activation_type", "silu");
    must_be_text(c, "layer_norm_type", "rms");
    must_be(c, "include_bias", 0, 0);
    must_be(c, "include_qkv_bias", 0, 0);
    must_be(c, "attention_layer_norm", 0, 0);
    must_be(c, "scale_logits", 0, 0);
    c->m->tied = yes(c, "weight_tying", false);
    c->m->add_bos = true;
    sees_both(c);
    gguf_put_bool(c->w, "diffusion.shift_logits", false);
}

enum { LLADA_MOE_MASK = 156895 };

static void lladamoe_keys(struct hf_config *c)
{
    common(c, 5e4, 1e-5, 0);
    heads(c);
    experts(c, "num_experts", -1, -1);
    must_be(c, "norm_topk_prob", 0, 0);
    must_be(c, "qk_layernorm", 1, 1);
    must_be_absent(c, "shared_expert_intermediate_size");
    put(c, "expert_feed_forward_length", whole(c, "expert_intermediate_size", -1, 1, WIDTH_MAX));
    sees_both(c);
    gguf_put_bool(c->w, "diffusion.shift_logits", false);
    /* The published configuration does not name the mask. */
    if (!get(c->c, "mask_token_id")) gguf_put_u32(c->w, "tokenizer.ggml.mask_token_id", LLADA_MOE_MASK);
}

static void latent_heads(struct hf_config *c)
{
    struct hf_model *m = c->m;
    const int rank = whole(c, "kv_lora_rank", -1, 1, 1 << 16);
    const int rot = whole(c, "qk_rope_head_dim", -1, 1, 1 << 16);
    const int q_rank = whole(c, "q_lora_rank", 0, 0, WIDTH_MAX);
    m->dim_nope = whole(c, "qk_nope_head_dim", -1, 1, 1 << 16);
    m->dim_v = whole(c, "v_head_dim", -1, 1, 1 << 16);
    m->latent_q = q_rank > 0;
    must_be(c, "rope_interleave", 1, 1);
    if (m->n_kv_head != m->n_head)
        fail(c, ERR_UNSUPPORTED, "%d heads and %d KV heads; latent attention has them equal",
             m->n_head, m->n_kv_head);
    put(c, "attention.head_count_kv", 1); /* all heads share the latent */
    put(c, "attention.key_length", rank + rot);
    put(c, "attention.value_length", rank);
    put(c, "attention.key_length_mla", m->dim_nope + rot);
    put(c, "attention.value_length_mla", m->dim_v);
    put(c, "attention.kv_lora_rank", rank);
    if (q_rank) put(c, "attention.q_lora_rank", q_rank);
    put(c, "rope.dimension_count", rot);
}

static void latent_router(struct hf_config *c, bool v3)
{
    const char *score = jf_str(c->c, "scoring_func"), *how = jf_str(c->c, "topk_method");
    if (!score) score = v3 ? "sigmoid" : "softmax";
    if (strcmp(score, "sigmoid") && strcmp(score, "softmax"))
        fail(c, ERR_UNSUPPORTED, "\"scoring_func\" is \"%.40s\"; sigmoid and softmax are supported",
             score);
    const int groups = whole(c, "n_group", 1, 1, EXPERTS_MAX);
    if (how && !strcmp(how, "group_limited_greedy") && groups > 1)
        fail(c, ERR_UNSUPPORTED,
             "\"topk_method\" is group_limited_greedy with %d groups, which GGUF files cannot say",
             groups);
    put(c, "expert_gating_func", strcmp(score, "sigmoid") ? 1 : 2);
    put(c, "expert_group_count", groups);
    put(c, "expert_group_used_count", whole(c, "topk_group", 1, 1, groups));
    put_f32(c, "expert_weights_scale", real(c, "routed_scaling_factor", v3 ? 2.5 : 1));
    if (yes(c, "norm_topk_prob", v3)) {
        char key[96];
        full_key(c, "expert_weights_norm", key);
        gguf_put_bool(c->w, key, true);
    }
}

static void deepseek_keys(struct hf_config *c)
{
    struct hf_model *m = c->m;
    const char *type = jf_str(c->c, "model_type");
    const bool v3 = type && !strcmp(type, "deepseek_v3");
    common(c, 1e4, 1e-6, 0);
    latent_heads(c);
    experts(c, "n_routed_experts", -1, -1);
    m->n_dense_lead = whole(c, "first_k_dense_replace", 0, 0, m->n_layer);
    m->n_shared = whole(c, "n_shared_experts", 0, 0, EXPERTS_MAX);
    must_be(c, "moe_layer_freq", 1, 1);
    put(c, "leading_dense_block_count", m->n_dense_lead);
    put(c, "vocab_size", whole(c, "vocab_size", -1, 1, WIDTH_MAX));
    put(c, "expert_feed_forward_length", whole(c, "moe_intermediate_size", -1, 1, WIDTH_MAX));
    put(c, "expert_shared_count", m->n_shared);
    latent_router(c, v3);
}

/* Every second layer sees a window, the first among them. */
static void gptoss_layers(struct hf_config *c)
{
    const cJSON *types = jf_get(c->c, "layer_types");
    int i = 0;
    for (const cJSON *t = types ? types->child : NULL; t; t = t->next, i++) {
        const char *s = cJSON_GetStringValue(t);
        if (!s || strcmp(s, i % 2 ? "full_attention" : "sliding_attention"))
            fail(c, ERR_UNSUPPORTED, "\"layer_types\" do not take turns from sliding_attention on");
    }
}

static void gptoss_keys(struct hf_config *c)
{
    common(c, 150000, 1e-5, 64);
    heads(c);
    experts(c, "num_local_experts", 128, 4);
    gptoss_layers(c);
    must_be(c, "swiglu_limit", 7, 7);
    put(c, "attention.sliding_window", whole(c, "sliding_window", 128, 1, CTX_MAX));
    put(c, "expert_feed_forward_length", whole(c, "intermediate_size", -1, 1, WIDTH_MAX));
}

static void put_bool(struct hf_config *c, const char *key, bool v)
{
    char full[96];
    full_key(c, key, full);
    gguf_put_bool(c->w, full, v);
}

static void put_text(struct hf_config *c, const char *key, const char *v)
{
    char full[96];
    full_key(c, key, full);
    gguf_put_str(c->w, full, v);
}

static void nanbeige_keys(struct hf_config *c)
{
    llama_keys(c);
    put(c, "num_loops", whole(c, "num_loops", 1, 1, LOOPS_MAX));
    put_bool(c, "skip_loop_final_norm", yes(c, "skip_loop_final_norm", false));
}

static void ouro_keys(struct hf_config *c)
{
    common(c, 1e6, 1e-6, 0);
    heads(c);
    window(c);
    put(c, "vocab_size", whole(c, "vocab_size", -1, 1, WIDTH_MAX));
    put(c, "rope.dimension_count", c->m->head_dim);
    put(c, "num_loops", whole(c, "total_ut_steps", 4, 1, LOOPS_MAX));
    put_bool(c, "skip_loop_final_norm", false);
    put_f32(c, "early_exit_threshold", real(c, "early_exit_threshold", 1));
}

/* A list of numbers, or as the released training code has it one text with commas between. */
static void put_floats(struct hf_config *c, const cJSON *v, const char *name, const char *key, int n)
{
    float list[64];
    char full[96], text[256];
    const char *s = cJSON_GetStringValue(v);
    int have = 0;
    if (s && (size_t)snprintf(text, sizeof text, "%s", s) < sizeof text)
        for (char *p = text, *end; *p && have < 64; p = end + strspn(end, ", ")) {
            list[have++] = strtof(p, &end);
            if (end == p) break;
        }
    for (const cJSON *x = s ? NULL : v ? v->child : NULL; x && have < 64; x = x->next)
        list[have++] = (float)x->valuedouble;
    if (have != n) {
        fail(c, ERR_SHAPE, "\"%s\" has %d values for %d recursions", name, have, n);
        return;
    }
    full_key(c, key, full);
    gguf_put_array(c->w, full, GGUF_F32, list, (uint64_t)n);
}

static const char *text_of(const cJSON *o, const char *name, const char *dflt)
{
    const char *s = jf_str(o, name);
    return s ? s : dflt;
}

/* The layers that are there after those that run: unrolled, from which each copy of one comes. */
static void mor_layers(struct hf_config *c, const cJSON *rec)
{
    struct hf_model *m = c->m;
    const struct hf_config of = {rec, c->path, c->w, m, c->e};
    struct hf_config sub = of;
    const int n = whole(&sub, "num_recursion", -1, 1, RECURSIONS_MAX), unrolled = m->n_layer;
    const char *sharing = text_of(rec, "sharing", "cycle");
    const bool middle = !strncmp(sharing, "middle_", 7);
    const char *kind = middle ? sharing + 7 : sharing;
    if (strcmp(kind, "cycle") && strcmp(kind, "sequence"))
        fail(c, ERR_UNSUPPORTED, "\"sharing\" is \"%.40s\"; cycle, sequence, middle_cycle and "
             "middle_sequence are known", sharing);
    m->first = middle ? 1 : 0;
    m->in_place = !strcmp(kind, "sequence");
    m->n_recursions = n;
    m->n_block = (unrolled - 2 * m->first) / n;
    if (m->n_block < 1 || m->n_block * n != unrolled - 2 * m->first)
        fail(c, ERR_SHAPE, "%d layers%s cannot be cut into %d recursions of equal length", unrolled,
             middle ? " less the first and the last" : "", n);
    m->n_layer = m->n_dense_lead = m->n_block + 2 * m->first;
    put(c, "block_count", m->n_layer);
    put(c, "recursion.count", n);
    put(c, "recursion.block_first", m->first);
    put(c, "recursion.block_count", m->n_block);
    put_text(c, "recursion.sharing", sharing);
}

/* "recursive", "mor" and "kv_sharing" are the sections of the released training code's own files. */
static void mor_keys(struct hf_config *c)
{
    const cJSON *rec = jf_get(c->c, "recursive"), *mor = jf_get(c->c, "mor");
    const cJSON *kv = jf_get(c->c, "kv_sharing"), *expert = jf_get(mor, "expert");
    common(c, 1e4, 1e-5, 0);
    heads(c);
    put(c, "vocab_size", whole(c, "vocab_size", -1, 1, WIDTH_MAX));
    put(c, "rope.dimension_count", c->m->head_dim);
    if (!rec) {
        fail(c, ERR_MISSING, "\"recursive\" is missing: what the training's configuration has under "
             "recursive, mor and kv_sharing must be in config.json");
        return;
    }
    mor_layers(c, rec);
    if (c->e->code) return;
    const bool routed = mor && !cJSON_IsFalse(jf_get(mor, "enable"));
    const char *type = routed ? text_of(mor, "type", "expert") : "none";
    if (routed && strcmp(type, "expert"))
        fail(c, ERR_UNSUPPORTED, "\"type\" of \"mor\" is \"%.40s\"; how a checkpoint lays out any "
             "but \"expert\" is not known here", type);
    c->m->wrapped = routed;
    put_text(c, "recursion.router", type);
    if (kv && !cJSON_IsFalse(jf_get(kv, "enable")))
        put_text(c, "recursion.kv", cJSON_IsTrue(jf_get(kv, "update_cache")) ? "shared_update" : "shared");
    if (!routed) return;
    const char *router = text_of(mor, "router_type", "linear");
    if (strcmp(router, "linear"))
        fail(c, ERR_UNSUPPORTED, "\"router_type\" is \"%.40s\"; linear is supported", router);
    put_text(c, "recursion.router_func", text_of(expert, "router_func", "sigmoid"));
    put_f32(c, "recursion.alpha", real_of(c, expert, "alpha", 0.1));
    put_f32(c, "recursion.temp", real_of(c, mor, "temp", 1));
    put_bool(c, "recursion.gated", !strcmp(text_of(expert, "gating", "weighted"), "weighted"));
    if (jf_get(mor, "capacity"))
        put_floats(c, jf_get(mor, "capacity"), "capacity", "recursion.capacity",
                   c->m->n_recursions);
    if (jf_get(mor, "threshold"))
        put_floats(c, jf_get(mor, "threshold"), "threshold", "recursion.threshold",
                   c->m->n_recursions);
}

static const struct hf_arch archs[] = {
    {"LlamaForCausalLM LLaMAForCausalLM MistralForCausalLM", "llama", hf_rows_llama, false,
     llama_keys},
    {"MixtralForCausalLM", "llama", hf_rows_mixtral, false, mixtral_keys},
    {"Qwen2ForCausalLM", "qwen2", hf_rows_qwen2, false, qwen2_keys},
    {"Qwen2MoeForCausalLM", "qwen2moe", hf_rows_qwen2moe, false, qwen2moe_keys},
    {"Qwen3ForCausalLM", "qwen3", hf_rows_qwen3, false, qwen3_keys},
    {"Qwen3MoeForCausalLM", "qwen3moe", hf_rows_qwen3moe, false, qwen3moe_keys},
    {"OlmoeForCausalLM", "olmoe", hf_rows_qwen3moe, false, olmoe_keys},
    {"DeepseekV2ForCausalLM DeepseekV3ForCausalLM", "deepseek2", hf_rows_deepseek, true,
     deepseek_keys},
    {"GptOssForCausalLM", "gpt-oss", hf_rows_gptoss, false, gptoss_keys},
    {"NanbeigeForCausalLM", "nanbeige", hf_rows_llama, false, nanbeige_keys},
    {"OuroForCausalLM", "ouro", hf_rows_ouro, false, ouro_keys},
    {"MoRLlamaForCausalLM", "mor", hf_rows_mor, false, mor_keys},
    {"DreamModel", "dream", hf_rows_qwen2, false, dream_keys},
    {"LLaDAModelLM", "llada", hf_rows_llada, false, llada_keys},
    {"LLaDAMoEModelLM LLaDAMoEModel", "llada-moe", hf_rows_qwen3moe, false, lladamoe_keys},
    {"RND1", "rnd1", hf_rows_qwen3moe, false, rnd1_keys},
};
enum { N_ARCHS = sizeof archs / sizeof *archs };

const struct hf_arch *hf_arch_at(int i) { return i >= 0 && i < N_ARCHS ? &archs[i] : NULL; }

/* ---- the way in ---- */

static bool has_word(const char *words, const char *word)
{
    const size_t n = strlen(word);
    for (const char *p = words; *p; p += strcspn(p, " "), p += *p == ' ')
        if (strcspn(p, " ") == n && !memcmp(p, word, n)) return true;
    return false;
}

static void find_arch(struct hf_config *c)
{
    const cJSON *list = jf_get(c->c, "architectures");
    const char *name = cJSON_IsArray(list) ? cJSON_GetStringValue(list->child) : NULL;
    char known[400];
    size_t n = 0;
    if (!name) {
        fail(c, ERR_FORMAT, "no \"architectures\": this is no config.json of a language model");
        return;
    }
    for (int i = 0; i < N_ARCHS; i++) {
        if (has_word(archs[i].classes, name)) c->m->arch = &archs[i];
        if (n < sizeof known)
            n += (size_t)snprintf(known + n, sizeof known - n, "%s%s", i ? " " : "",
                                  archs[i].classes);
    }
    if (!c->m->arch)
        (void)err_set(c->e, ERR_UNSUPPORTED, "%.100s: %.60s cannot be converted; these can: %s",
                      c->path, name, known);
}

/* Weights that are stored in fewer bits. */
static void quantisation(struct hf_config *c)
{
    const cJSON *q = jf_get(c->c, "quantization_config"), *b = jf_get(q, "weight_block_size");
    const char *method = jf_str(q, "quant_method");
    uint64_t rows, cols;
    if (!q) return;
    if (method && !strcmp(method, "mxfp4") && !strcmp(c->m->arch->name, "gpt-oss")) {
        c->m->mxfp4 = true;
    } else if (method && !strcmp(method, "fp8")) {
        c->m->fp8 = true;
        if (!b) return;
        if (cJSON_GetArraySize(b) != 2 || !jf_u64(b->child, &rows) ||
            !jf_u64(b->child->next, &cols) || !rows || !cols || rows > 1 << 16 || cols > 1 << 16) {
            fail(c, ERR_FORMAT, "\"weight_block_size\" is not two numbers");
            return;
        }
        c->m->fp8_rows = (int)rows;
        c->m->fp8_cols = (int)cols;
    } else {
        fail(c, ERR_UNSUPPORTED,
             "weights quantised by \"%.40s\" cannot be converted; fp8, and mxfp4 of gpt-oss, can",
             method ? method : "?");
    }
}

enum status hf_model_read(const cJSON *config, const char *path, struct gguf_writer *w,
                          struct hf_model *m, struct err *e)
{
    struct err own;
    if (!e) err_clear(e = &own);
    struct hf_config c = {config, path, w, m, e};
    memset(m, 0, sizeof *m);
    find_arch(&c);
    if (e->code) return e->code;
    gguf_put_str(w, "general.architecture", m->arch->name);
    m->arch->keys(&c);
    quantisation(&c);
    return e->code;
}

bool hf_layer_name(const struct hf_model *m, int layer, int copy, char out[32])
{
    const int n = m->n_recursions, j = layer - m->first;
    if (!n || j < 0 || j >= m->n_block) {
        const int behind = !n || j < 0 ? layer : m->first + (m->wrapped ? n : n * m->n_block) +
                                                     j - m->n_block;
        (void)snprintf(out, 32, "%d", behind);
        return copy == 0;
    }
    const int u = m->in_place ? j * n + copy : copy * m->n_block + j;
    if (m->wrapped)
        (void)snprintf(out, 32, "%d.block.%d", m->first + u / m->n_block, u % m->n_block);
    else
        (void)snprintf(out, 32, "%d", m->first + u);
    return copy < n;
}

static bool ends_with(const char *s, const char *tail)
{
    const size_t n = strlen(s), k = strlen(tail);
    return n >= k && !strcmp(s + n - k, tail);
}

bool hf_is_ignored(const struct hf_model *m, const char *name)
{
    static const char layers[] = "model.layers.";
    if (ends_with(name, ".rotary_emb.inv_freq") || ends_with(name, ".attention.masked_bias"))
        return true;
    if (m->tied && !strcmp(name, "lm_head.weight")) return true;
    if (m->fp8 && (ends_with(name, ".activation_scale") || ends_with(name, ".input_scale")))
        return true;
    if (!m->arch->nextn || strncmp(name, layers, sizeof layers - 1)) return false;
    int layer = 0;
    for (const char *p = name + sizeof layers - 1; *p >= '0' && *p <= '9' && layer < LAYERS_MAX;
         p++)
        layer = layer * 10 + (*p - '0');
    return layer >= m->n_layer;
}
