/* What the keys of a file say: reading "<arch>.<key>", the keys that the architectures share, and
 * the checks that they make sense together.  Describes nothing, binds nothing: see block.c.
 *
 * Keys as llama.cpp's converters write them.  A key that would change the result and is not
 * understood is an error, never ignored. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "models/arch.h"

enum {
    EXPERTS_MAX = 4096, USED_MAX = 64, WIDTH_MAX = 1 << 24, HEAD_DIM_MAX = 512,
    CTX_MAX = 1 << 30, GROUPS_MAX = 64
};

static void key_of(char *out, size_t cap, const char *arch, const char *key)
{
    (void)snprintf(out, cap, "%s.%s", arch, key);
}

static const struct gguf_kv *find_key(const struct gguf *g, const char *arch, const char *key)
{
    char full[96];
    key_of(full, sizeof full, arch, key);
    return gguf_find(g, full);
}

bool hparams_has(const struct gguf *g, const char *arch, const char *key)
{
    return find_key(g, arch, key) != NULL;
}

enum status hparams_int(const struct gguf *g, const char *arch, const char *key, int dflt,
                        int *out, struct err *e)
{
    char full[96];
    uint64_t v;
    key_of(full, sizeof full, arch, key);
    enum status s = dflt < 0 ? gguf_get_u64(g, full, &v, e)
                             : gguf_get_u64_or(g, full, (uint64_t)dflt, &v, e);
    if (s) return s;
    if (v > INT32_MAX)
        return err_set(e, ERR_RANGE, "%s: key %s is %llu, which no model can mean: the file is "
                       "damaged", gguf_path(g, 0), full, (unsigned long long)v);
    *out = (int)v;
    return OK;
}

enum status hparams_f32(const struct gguf *g, const char *arch, const char *key, float dflt,
                        float *out, struct err *e)
{
    char full[96];
    key_of(full, sizeof full, arch, key);
    enum status s = dflt < 0 ? gguf_get_f32(g, full, out, e)
                             : gguf_get_f32_or(g, full, dflt, out, e);
    if (!s && !isfinite(*out))
        s = err_set(e, ERR_RANGE, "%s: key %s is not a finite number", gguf_path(g, 0), full);
    return s;
}

enum status hparams_bool(const struct gguf *g, const char *arch, const char *key, bool dflt,
                         bool *out, struct err *e)
{
    char full[96];
    key_of(full, sizeof full, arch, key);
    return gguf_get_bool_or(g, full, dflt, out, e);
}

enum status hparams_one_of(const struct gguf *g, const char *arch, const char *key,
                           const char *const *names, int *out, struct err *e)
{
    char list[200] = "", full[96];
    struct gguf_str v;
    *out = 0;
    key_of(full, sizeof full, arch, key);
    const struct gguf_kv *kv = gguf_find(g, full);
    if (!kv) return OK;
    enum status s = gguf_get_str(g, full, &v, e);
    if (s) return s;
    for (int i = 0; names[i]; i++) {
        const size_t n = strlen(list);
        if (gguf_str_is(v, names[i])) {
            *out = i;
            return OK;
        }
        (void)snprintf(list + n, sizeof list - n, "%s%s", n ? ", " : "", names[i]);
    }
    return err_set_at(e, ERR_UNSUPPORTED, kv->pos, "%s: key %s says \"%.*s\"; known are %s",
                      gguf_path(g, 0), full, (int)(v.n < 40 ? v.n : 40), v.s, list);
}

enum status hparams_of_layer(const struct gguf *g, const char *arch, const char *key, int layer,
                             int dflt, int *out, struct err *e)
{
    const struct gguf_kv *kv = find_key(g, arch, key);
    if (!kv || kv->value.type != GGUF_ARRAY) return hparams_int(g, arch, key, dflt, out, e);
    const enum gguf_type t = kv->value.elem;
    const bool is_int = t != GGUF_F32 && t != GGUF_F64 && t != GGUF_BOOL && t != GGUF_STRING;
    const int64_t v = is_int && (uint64_t)layer < kv->value.n
                          ? gguf_elem_i64(&kv->value, (uint64_t)layer) : -1;
    if (v < 0 || v > INT32_MAX)
        return err_set_at(e, ERR_SHAPE, kv->pos, "%s: key %s.%s holds no usable number for layer "
                          "%d: the file is damaged", gguf_path(g, 0), arch, key, layer);
    *out = (int)v;
    return OK;
}

/* ---- checks ---- */

static enum status in_range(const struct gguf *g, const char *arch, const char *key, int v, int lo,
                            int hi, struct err *e)
{
    if (v >= lo && v <= hi) return OK;
    return err_set(e, ERR_RANGE, "%s: key %s.%s says %d; %d to %d is possible: the file is damaged",
                   gguf_path(g, 0), arch, key, v, lo, hi);
}

static enum status check_groups(const struct gguf *g, const char *arch, const struct hparams *h,
                                struct err *e)
{
    const int n = h->route.n_group, used = h->route.n_group_used;
    if (n <= 1) return OK;
    if (n > GROUPS_MAX || used < 1 || used > n || h->n_expert % n)
        return err_set(e, ERR_RANGE, "%s: %d of %d groups of experts for %d experts "
                       "(%s.expert_group_count, expert_group_used_count): the file is damaged",
                       gguf_path(g, 0), used, n, h->n_expert, arch);
    return in_range(g, arch, "expert_used_count", h->n_expert_used, 1, h->n_expert / n * used, e);
}

static enum status check_experts(const struct gguf *g, const char *arch, const struct hparams *h,
                                 struct err *e)
{
    const char *path = gguf_path(g, 0);
    const int n = h->n_expert, most = n < USED_MAX ? n : USED_MAX;
    if (!n)
        return h->n_ff ? OK : err_set(e, ERR_MISSING, "%s: key %s.feed_forward_length is missing "
                                      "or 0", path, arch);
    if (!h->n_expert_used)
        return err_set(e, ERR_MISSING, "%s: key %s.expert_used_count is missing or 0", path, arch);
    if (!h->n_ff_expert)
        return err_set(e, ERR_MISSING, "%s: key %s.expert_feed_forward_length (or else "
                       "feed_forward_length) is missing or 0", path, arch);
    enum status s = in_range(g, arch, "expert_count", n, 1, EXPERTS_MAX, e);
    if (!s) s = in_range(g, arch, "expert_used_count", h->n_expert_used, 1, most, e);
    return s ? s : check_groups(g, arch, h, e);
}

enum status hparams_check(const struct gguf *g, const char *arch, const struct hparams *h,
                          struct err *e)
{
    const char *path = gguf_path(g, 0);
    enum status s;
    if ((s = in_range(g, arch, "block_count", h->n_layer, 1, LAYERS_MAX, e)) ||
        (s = in_range(g, arch, "embedding_length", h->n_embd, 1, WIDTH_MAX, e)) ||
        (s = in_range(g, arch, "context_length", h->n_ctx_train, 1, CTX_MAX, e)) ||
        (s = in_range(g, arch, "attention.head_count", h->n_heads, 1, WIDTH_MAX, e)) ||
        (s = in_range(g, arch, "attention.head_count_kv", h->n_kv_heads, 1, h->n_heads, e)) ||
        (s = in_range(g, arch, "feed_forward_length", h->n_ff, 0, WIDTH_MAX, e)) ||
        (s = in_range(g, arch, "expert_feed_forward_length", h->n_ff_expert, 0, WIDTH_MAX, e)))
        return s;
    if (h->n_heads % h->n_kv_heads)
        return err_set(e, ERR_SHAPE, "%s: %d heads cannot share %d KV heads evenly "
                       "(%s.attention.head_count, head_count_kv)", path, h->n_heads, h->n_kv_heads,
                       arch);
    if (h->head_dim < 2 || h->head_dim > HEAD_DIM_MAX)
        return err_set(e, ERR_UNSUPPORTED, "%s: heads of %d values (%s.attention.key_length); 2 to "
                       "%d are supported", path, h->head_dim, arch, HEAD_DIM_MAX);
    if (h->n_heads > WIDTH_MAX / h->head_dim)
        return err_set(e, ERR_RANGE, "%s: %d heads of %d values (%s.attention.head_count, "
                       "key_length) are more than any model has", path, h->n_heads, h->head_dim,
                       arch);
    if (h->rope.n_rot < 2 || h->rope.n_rot % 2 || h->rope.n_rot > h->head_dim)
        return err_set(e, ERR_SHAPE, "%s: %d rotated values (%s.rope.dimension_count) in heads of "
                       "%d", path, h->rope.n_rot, arch, h->head_dim);
    if (h->norm_eps < 0)
        return err_set(e, ERR_RANGE, "%s: key %s.attention.layer_norm_rms_epsilon is negative",
                       path, arch);
    if (!(h->rope.base > 0))
        return err_set(e, ERR_RANGE, "%s: key %s.rope.freq_base is not positive", path, arch);
    return check_experts(g, arch, h, e);
}

/* ---- scaling of positions ---- */

/* YaRN (arXiv 2309.00071), and the magnitude that goes with it: cos and sin grow by
 * 1 + 0.1 ln(factor). */
static enum status yarn(const struct gguf *g, const char *arch, float factor, struct rope_params *r,
                        struct err *e)
{
    enum status s;
    if ((s = hparams_f32(g, arch, "rope.scaling.yarn_beta_fast", 32.0f, &r->beta_fast, e)) ||
        (s = hparams_f32(g, arch, "rope.scaling.yarn_beta_slow", 1.0f, &r->beta_slow, e)))
        return s;
    if (!(r->base > 1) || !(r->beta_fast > 0) || !(r->beta_slow > 0))
        return err_set(e, ERR_RANGE, "%s: YaRN needs %s.rope.freq_base above 1 and positive "
                       "rope.scaling.yarn_beta_fast and yarn_beta_slow", gguf_path(g, 0), arch);
    r->yarn = 1;
    if (factor > 1) r->magnitude *= 1.0f + 0.1f * logf(factor);
    return OK;
}

/* The factor is under one of two names; 0 or none of them means 1. */
static enum status scaling_factor(const struct gguf *g, const char *arch, float *factor,
                                  struct err *e)
{
    const bool old = !hparams_has(g, arch, "rope.scaling.factor");
    const char *key = old ? "rope.scale_linear" : "rope.scaling.factor";
    enum status s = hparams_f32(g, arch, key, 1.0f, factor, e);
    if (!s && *factor < 0)
        s = err_set(e, ERR_RANGE, "%s: key %s.%s is negative", gguf_path(g, 0), arch, key);
    if (!s && !(*factor > 0)) *factor = 1;
    return s;
}

static enum status rope_scaling(const struct gguf *g, const char *arch, struct hparams *h,
                                struct err *e)
{
    struct rope_params *r = &h->rope;
    char key[96];
    struct gguf_str type = {"linear", 6};
    float factor = 1;
    enum status s = OK;
    key_of(key, sizeof key, arch, "rope.scaling.type");
    if (gguf_find(g, key)) s = gguf_get_str(g, key, &type, e);
    if (s || (s = scaling_factor(g, arch, &factor, e)) ||
        (s = hparams_f32(g, arch, "rope.scaling.attn_factor", 1.0f, &r->magnitude, e)) ||
        (s = hparams_int(g, arch, "rope.scaling.original_context_length", h->n_ctx_train,
                         &r->n_ctx_orig, e)))
        return s;
    if (!r->n_ctx_orig) r->n_ctx_orig = h->n_ctx_train;
    if (gguf_str_is(type, "none")) return OK;
    r->scale = 1.0f / factor;
    if (gguf_str_is(type, "linear")) return OK;
    if (gguf_str_is(type, "yarn")) return yarn(g, arch, factor, r, e);
    if (gguf_str_is(type, "longrope") && gguf_find_tensor(g, "rope_factors_long.weight")) {
        h->rope_divisor = DIVISOR_BY_CTX;
        return OK;
    }
    return err_set(e, ERR_UNSUPPORTED, "%s: key %s says \"%.*s\" with factor %g: that scaling is "
                   "not supported yet", gguf_path(g, 0), key, (int)(type.n < 32 ? type.n : 32),
                   type.s, (double)factor);
}

/* ---- what all have ---- */

/* With latent attention (deepseek2.c) K and V differ, and key_length may be that of the cache. */
static enum status heads(const struct gguf *g, const char *arch, struct hparams *h, struct err *e)
{
    int dim = h->n_heads > 0 ? h->n_embd / h->n_heads : 0;
    const bool latent = hparams_has(g, arch, "attention.kv_lora_rank");
    const bool own = latent && hparams_has(g, arch, "attention.key_length_mla");
    const char *key = own ? "attention.key_length_mla" : "attention.key_length";
    enum status s;
    if ((s = hparams_int(g, arch, key, dim, &h->head_dim, e)) ||
        (s = hparams_int(g, arch, "attention.value_length", h->head_dim, &dim, e)) ||
        (s = hparams_int(g, arch, "rope.dimension_count", h->head_dim, &h->rope.n_rot, e)))
        return s;
    if (dim != h->head_dim && !latent)
        return err_set(e, ERR_UNSUPPORTED, "%s: K heads of %d and V heads of %d values; %s has "
                       "them equal", gguf_path(g, 0), h->head_dim, dim, arch);
    return OK;
}

/* One number, or one per layer: 0 where a layer has none, else the same everywhere, unless windowed
 * layers are of another kind (attention.key_length_swa): then its architecture looks again. */
static enum status same_in_layers(const struct gguf *g, const char *arch, const char *key, int dflt,
                                  int *out, struct err *e)
{
    const struct gguf_kv *kv = find_key(g, arch, key);
    const bool two_kinds = hparams_has(g, arch, "attention.key_length_swa");
    if (!kv || kv->value.type != GGUF_ARRAY) return hparams_int(g, arch, key, dflt, out, e);
    for (uint64_t i = 0; i < kv->value.n && i < LAYERS_MAX; i++) {
        int n = 0;
        enum status s = hparams_of_layer(g, arch, key, (int)i, dflt, &n, e);
        if (s) return s;
        if (n && *out && n != *out && !two_kinds)
            return err_set_at(e, ERR_UNSUPPORTED, kv->pos, "%s: key %s.%s says %d for some layers "
                              "and %d for others: that is not supported", gguf_path(g, 0), arch,
                              key, *out, n);
        if (n) *out = n;
    }
    return OK;
}

static enum status vocabulary(const struct gguf *g, struct hparams *h, struct err *e)
{
    const struct gguf_tensor *t = gguf_find_tensor(g, "token_embd.weight");
    if (!t)
        return err_set(e, ERR_MISSING, "%s: tensor token_embd.weight is missing: the file is "
                       "incomplete", gguf_path(g, 0));
    if (t->dim[1] > WIDTH_MAX)
        return err_set(e, ERR_SHAPE, "%s: token_embd.weight has too many rows", gguf_path(g, 0));
    h->n_vocab = (int)t->dim[1];
    return OK;
}

enum status hparams_common(const struct gguf *g, const char *arch, struct hparams *h,
                           struct err *e)
{
    memset(h, 0, sizeof *h);
    h->rope.scale = h->rope.magnitude = h->route.scale = 1;
    h->embed_scale = h->residual_scale = h->logit_scale = 1;
    h->denoise.mask = -1;
    h->denoise.top_p = 1;
    enum status s;
    if ((s = hparams_int(g, arch, "block_count", -1, &h->n_layer, e)) ||
        (s = hparams_int(g, arch, "embedding_length", -1, &h->n_embd, e)) ||
        (s = hparams_int(g, arch, "context_length", -1, &h->n_ctx_train, e)) ||
        (s = hparams_int(g, arch, "attention.head_count", -1, &h->n_heads, e)) ||
        (s = same_in_layers(g, arch, "attention.head_count_kv", h->n_heads, &h->n_kv_heads, e)) ||
        (s = same_in_layers(g, arch, "feed_forward_length", 0, &h->n_ff, e)) ||
        (s = hparams_int(g, arch, "leading_dense_block_count", 0, &h->n_dense_lead, e)) ||
        (s = hparams_int(g, arch, "expert_count", 0, &h->n_expert, e)) ||
        (s = hparams_int(g, arch, "expert_used_count", 0, &h->n_expert_used, e)) ||
        (s = hparams_int(g, arch, "expert_group_count", 0, &h->route.n_group, e)) ||
        (s = hparams_int(g, arch, "expert_group_used_count", 0, &h->route.n_group_used, e)) ||
        (s = hparams_int(g, arch, "expert_feed_forward_length", h->n_ff, &h->n_ff_expert, e)) ||
        (s = heads(g, arch, h, e)) ||
        (s = hparams_f32(g, arch, "attention.layer_norm_rms_epsilon", -1, &h->norm_eps, e)) ||
        (s = hparams_f32(g, arch, "rope.freq_base", 1e4f, &h->rope.base, e)) ||
        (s = rope_scaling(g, arch, h, e)) || (s = vocabulary(g, h, e)))
        return s;
    h->route.n_expert = h->n_expert;
    h->route.n_used = h->n_expert_used;
    return hparams_check(g, arch, h, e);
}

/* ---- what some have ---- */

enum status hparams_need_experts(const struct gguf *g, const char *arch, const struct hparams *h,
                                 struct err *e)
{
    if (h->n_expert) return OK;
    return err_set(e, ERR_MISSING, "%s: key %s.expert_count is missing or 0", gguf_path(g, 0),
                   arch);
}

enum status hparams_router(const struct gguf *g, const char *arch, int dflt_gate, struct hparams *h,
                           struct err *e)
{
    static const enum route_score scores[] = {
        [1] = ROUTE_SOFTMAX, [2] = ROUTE_SIGMOID, [3] = ROUTE_SOFTMAX_CHOSEN,
    };
    int gate = 0;
    bool normalise = false;
    enum status s;
    if ((s = hparams_int(g, arch, "expert_gating_func", dflt_gate, &gate, e)) ||
        (s = hparams_bool(g, arch, "expert_weights_norm", false, &normalise, e)) ||
        (s = hparams_f32(g, arch, "expert_weights_scale", 1.0f, &h->route.scale, e)))
        return s;
    if (!gate && dflt_gate > 0) gate = dflt_gate;
    if (gate < 1 || gate > 3)
        return err_set(e, ERR_UNSUPPORTED, "%s: key %s.expert_gating_func says %d; 1 (softmax), 2 "
                       "(sigmoid) and 3 (softmax over the chosen) are known", gguf_path(g, 0), arch,
                       gate);
    h->route.score = scores[gate];
    h->route.normalise = normalise;
    if (!(h->route.scale < 0) && !(h->route.scale > 0)) h->route.scale = 1;
    return OK;
}

enum status hparams_shared(const struct gguf *g, const char *arch, int n, int width,
                           struct hparams *h, struct err *e)
{
    if (n < 0 || width < 0 || (width > 0 && n > WIDTH_MAX / width))
        return err_set(e, ERR_RANGE, "%s: %d shared experts of width %d (%s.expert_shared_count, "
                       "expert_shared_feed_forward_length) are more than any model has",
                       gguf_path(g, 0), n, width, arch);
    h->n_ff_shared = n * width;
    return OK;
}

enum status hparams_nextn(const struct gguf *g, const char *arch, struct hparams *h, struct err *e)
{
    enum status s = hparams_int(g, arch, "nextn_predict_layers", 0, &h->n_nextn, e);
    if (s) return s;
    if (h->n_nextn >= h->n_layer)
        return err_set(e, ERR_RANGE, "%s: key %s.nextn_predict_layers says %d of %d layers",
                       gguf_path(g, 0), arch, h->n_nextn, h->n_layer);
    h->n_layer -= h->n_nextn;
    return OK;
}

enum status hparams_denoise(const struct gguf *g, const char *arch, struct hparams *h,
                            struct err *e)
{
    bool causal;
    uint64_t mask;
    enum status s;
    if ((s = hparams_bool(g, arch, "attention.causal", false, &causal, e)) ||
        (s = gguf_get_bool_or(g, "diffusion.shift_logits", true, &h->denoise.shift, e)) ||
        (s = gguf_get_u64_or(g, "tokenizer.ggml.mask_token_id", UINT64_MAX, &mask, e)))
        return s;
    if (causal)
        return err_set(e, ERR_UNSUPPORTED, "%s: key %s.attention.causal is true: %s sees both sides",
                       gguf_path(g, 0), arch, arch);
    if (mask != UINT64_MAX && mask >= (uint64_t)h->n_vocab)
        return err_set(e, ERR_RANGE, "%s: key tokenizer.ggml.mask_token_id says %llu; the vocabulary "
                       "has %d tokens", gguf_path(g, 0), (unsigned long long)mask, h->n_vocab);
    h->denoise.sees = SEES_ALL;
    h->denoise.mask = mask == UINT64_MAX ? -1 : (int32_t)mask;
    return OK;
}

/* The table of scales: a positive number for 0 to n_expert experts. */
static enum status choice_table(const struct gguf *g, const char *arch, struct hparams *h,
                                struct err *e)
{
    const struct gguf_kv *kv = find_key(g, arch, "expert_choice.scale");
    if (!kv) return OK;
    if (kv->value.type != GGUF_ARRAY || kv->value.elem != GGUF_F32 ||
        kv->value.n != (uint64_t)h->n_expert + 1)
        return err_set_at(e, ERR_SHAPE, kv->pos, "%s: key %s.expert_choice.scale is no list of %d "
                          "f32: one for each number of experts, 0 included", gguf_path(g, 0), arch,
                          h->n_expert + 1);
    for (uint64_t i = 0; i < kv->value.n; i++) {
        const double v = gguf_elem_f64(&kv->value, i);
        if (!(v > 0 && v < 1e30))
            return err_set_at(e, ERR_RANGE, kv->pos, "%s: key %s.expert_choice.scale: %g for %d "
                              "experts is no factor", gguf_path(g, 0), arch, v, (int)i);
    }
    h->choice_scale = kv;
    return OK;
}

enum status hparams_choice(const struct gguf *g, const char *arch, struct hparams *h, struct err *e)
{
    static const char *const routing[] = {"token_choice", "expert_choice", NULL};
    static const char *const scopes[] = {"sequence", "batch", NULL};
    static const char *const gates[] = {"softmax", "sigmoid", "pre_softmax", NULL};
    static const enum route_score scores[] = {ROUTE_SOFTMAX_CHOSEN, ROUTE_SIGMOID, ROUTE_SOFTMAX};
    static const char *const schedules[] = {
        [CHOICE_STATIC] = "static", [CHOICE_LINEAR] = "linear",
        [CHOICE_LINEAR_REVERSE] = "linear_reverse", [CHOICE_COSINE] = "cosine",
        [CHOICE_COSINE_REVERSE] = "cosine_reverse", [CHOICE_BELL] = "bell",
        [CHOICE_GAUSSIAN] = "gaussian", [CHOICE_GAUSSIAN_REVERSE] = "gaussian_reverse", NULL};
    struct choice_params *c = &h->route.choice;
    int by_expert, gate, schedule, k;
    enum status s;
    if ((s = hparams_one_of(g, arch, "expert_routing", routing, &by_expert, e)) || !by_expert) return s;
    if ((s = hparams_one_of(g, arch, "expert_choice.scope", scopes, &c->whole_batch, e)) ||
        (s = hparams_one_of(g, arch, "expert_choice.activation", gates, &gate, e)) ||
        (s = hparams_one_of(g, arch, "expert_choice.schedule", schedules, &schedule, e)) ||
        (s = hparams_int(g, arch, "expert_choice.k", h->n_expert_used, &k, e)) ||
        (s = hparams_int(g, arch, "expert_choice.k_min", k, &c->k_min, e)) ||
        (s = hparams_int(g, arch, "expert_choice.k_max", k, &c->k_max, e)))
        return s;
    c->schedule = (enum choice_schedule)schedule;
    c->mask = h->denoise.mask;
    h->route.score = scores[gate];
    if (c->schedule == CHOICE_STATIC) c->k_min = c->k_max = k;
    if (c->k_min < 1 || c->k_max < c->k_min || c->k_max > h->n_expert)
        return err_set(e, ERR_RANGE, "%s: keys %s.expert_choice.k_min and k_max (or k) say %d and %d; "
                       "1 to %d experts per token are possible", gguf_path(g, 0), arch, c->k_min,
                       c->k_max, h->n_expert);
    if (c->schedule != CHOICE_STATIC && c->mask < 0)
        return err_set(e, ERR_MISSING, "%s: key tokenizer.ggml.mask_token_id is missing: the capacity "
                       "of experts follows how many tokens are masked", gguf_path(g, 0));
    if (gate == 2 && c->schedule != CHOICE_STATIC)
        return err_set(e, ERR_UNSUPPORTED, "%s: key %s.expert_choice.activation says pre_softmax, "
                       "which goes with a static capacity only", gguf_path(g, 0), arch);
    return choice_table(g, arch, h, e);
}

enum status hparams_window(const struct gguf *g, const char *arch, int dflt_period,
                           struct hparams *h, struct err *e)
{
    enum status s;
    if ((s = hparams_int(g, arch, "attention.sliding_window", 0, &h->window, e)) ||
        (s = hparams_int(g, arch, "attention.sliding_window_pattern", dflt_period,
                         &h->window_period, e)) ||
        (s = hparams_f32(g, arch, "rope.freq_base_swa", h->rope.base, &h->window_rope_base, e)))
        return s;
    if (!(h->window_rope_base > 0))
        return err_set(e, ERR_RANGE, "%s: key %s.rope.freq_base_swa is not positive",
                       gguf_path(g, 0), arch);
    return OK;
}
