/* What the architecture files share: common keys and the pre-norm transformer block with rotary
 * attention and a dense or expert feed-forward.  Describes only. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "models/arch.h"

enum {
    LAYERS_MAX = 4096, EXPERTS_MAX = 4096, USED_MAX = 64, WIDTH_MAX = 1 << 24, HEAD_DIM_MAX = 512,
    CTX_MAX = 1 << 30
};

static void key_of(char *out, size_t cap, const char *arch, const char *key)
{
    (void)snprintf(out, cap, "%s.%s", arch, key);
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

static enum status get_f32(const struct gguf *g, const char *arch, const char *key, float dflt,
                           float *out, struct err *e)
{
    char full[96];
    key_of(full, sizeof full, arch, key);
    enum status s = gguf_get_f32_or(g, full, dflt, out, e);
    if (!s && !isfinite(*out))
        s = err_set(e, ERR_RANGE, "%s: key %s is not a finite number", gguf_path(g, 0), full);
    return s;
}

static enum status in_range(const struct gguf *g, const char *arch, const char *key, int v, int lo,
                            int hi, struct err *e)
{
    if (v >= lo && v <= hi) return OK;
    return err_set(e, ERR_RANGE, "%s: key %s.%s says %d; %d to %d is possible: the file is damaged",
                   gguf_path(g, 0), arch, key, v, lo, hi);
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
    return s ? s : in_range(g, arch, "expert_used_count", h->n_expert_used, 1, most, e);
}

static enum status check(const struct gguf *g, const char *arch, const struct hparams *h,
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

/* Scaling of positions: linear, which is also what a factor alone means, is understood; anything
 * else must not pass unnoticed. */
static enum status rope_scaling(const struct gguf *g, const char *arch, struct hparams *h,
                                struct err *e)
{
    char key[96];
    struct gguf_str type = {"linear", 6};
    key_of(key, sizeof key, arch, "rope.scaling.type");
    if (gguf_find(g, key)) {
        enum status s = gguf_get_str(g, key, &type, e);
        if (s) return s;
    }
    float factor = 1;
    enum status s = get_f32(g, arch, "rope.scaling.factor", 1.0f, &factor, e);
    if (s) return s;
    if (type.n == 6 && !memcmp(type.s, "linear", 6) && factor > 0) {
        h->rope.scale = 1.0f / factor;
        return OK;
    }
    if (type.n == 4 && !memcmp(type.s, "none", 4)) return OK;
    if (type.n == 4 && !memcmp(type.s, "yarn", 4) && factor == 1.0f) return OK;
    return err_set(e, ERR_UNSUPPORTED, "%s: key %s says \"%.*s\" with factor %g: that scaling is "
                   "not supported yet", gguf_path(g, 0), key, (int)(type.n < 32 ? type.n : 32),
                   type.s, (double)factor);
}

enum status hparams_common(const struct gguf *g, const char *arch, struct hparams *h,
                           struct err *e)
{
    memset(h, 0, sizeof *h);
    h->rope.scale = h->rope.magnitude = 1;
    int dim = 0;
    enum status s;
    if ((s = hparams_int(g, arch, "block_count", -1, &h->n_layer, e)) ||
        (s = hparams_int(g, arch, "embedding_length", -1, &h->n_embd, e)) ||
        (s = hparams_int(g, arch, "context_length", -1, &h->n_ctx_train, e)) ||
        (s = hparams_int(g, arch, "attention.head_count", -1, &h->n_heads, e)) ||
        (s = hparams_int(g, arch, "attention.head_count_kv", h->n_heads, &h->n_kv_heads, e)) ||
        (s = hparams_int(g, arch, "feed_forward_length", 0, &h->n_ff, e)) ||
        (s = hparams_int(g, arch, "expert_count", 0, &h->n_expert, e)) ||
        (s = hparams_int(g, arch, "expert_used_count", 0, &h->n_expert_used, e)) ||
        (s = hparams_int(g, arch, "expert_feed_forward_length", h->n_ff, &h->n_ff_expert, e)))
        return s;
    if (h->n_heads > 0) dim = h->n_embd / h->n_heads;
    if ((s = hparams_int(g, arch, "attention.key_length", dim, &h->head_dim, e)) ||
        (s = hparams_int(g, arch, "attention.value_length", h->head_dim, &dim, e)) ||
        (s = hparams_int(g, arch, "rope.dimension_count", h->head_dim, &h->rope.n_rot, e)) ||
        (s = get_f32(g, arch, "attention.layer_norm_rms_epsilon", 1e-5f, &h->norm_eps, e)) ||
        (s = get_f32(g, arch, "rope.freq_base", 1e4f, &h->rope.base, e)) ||
        (s = rope_scaling(g, arch, h, e)))
        return s;
    if (dim != h->head_dim)
        return err_set(e, ERR_UNSUPPORTED, "%s: K heads of %d and V heads of %d values; %s has "
                       "them equal", gguf_path(g, 0), h->head_dim, dim, arch);
    const struct gguf_tensor *t = gguf_find_tensor(g, "token_embd.weight");
    if (!t)
        return err_set(e, ERR_MISSING, "%s: tensor token_embd.weight is missing: the file is "
                       "incomplete", gguf_path(g, 0));
    if (t->dim[1] > WIDTH_MAX)
        return err_set(e, ERR_SHAPE, "%s: token_embd.weight has too many rows", gguf_path(g, 0));
    h->n_vocab = (int)t->dim[1];
    return check(g, arch, h, e);
}

/* ---- the block ---- */

static int expert_tiles(struct build *b, const char *which, int layer, int n_cols, int n_rows,
                        int n_mats)
{
    char name[64], prefix[64];
    (void)snprintf(name, sizeof name, "blk.%d.ffn_%s_exps.weight", layer, which);
    if (weights_has(b->ws, name) || b->err->code)
        return build_tiles(b, name, layer, n_cols, n_rows, n_mats);
    /* Old Mixtral files hold every expert as a matrix of its own. */
    (void)snprintf(prefix, sizeof prefix, "blk.%d.ffn_%s.0.weight", layer, which);
    if (!weights_has(b->ws, prefix)) return build_tiles(b, name, layer, n_cols, n_rows, n_mats);
    (void)snprintf(prefix, sizeof prefix, "blk.%d.ffn_%s.", layer, which);
    int w = weights_bind_split(b->ws, (struct weight_shape){WEIGHT_TILES, n_cols, n_rows, n_mats,
                                                         0, 0},
                               name, prefix, ".weight", b->err);
    return w < 0 ? 0 : w;
}

static void bias_if_there(struct build *b, const char *name, int layer, int x, int n)
{
    if (build_has(b, name, layer)) build_bias(b, name + 7, x, build_vector(b, name, layer, n));
}

static void qk_norm(struct build *b, const struct hparams *h, const struct block_style *style,
                    int layer, bool is_q, int x)
{
    const char *name = is_q ? "blk.%d.attn_q_norm.weight" : "blk.%d.attn_k_norm.weight";
    const char *label = is_q ? "attn_q_norm" : "attn_k_norm";
    const int heads = is_q ? h->n_heads : h->n_kv_heads;
    const int width = heads * h->head_dim;
    if (style->qk_norm == QK_NORM_HEAD)
        build_head_norm(b, label, x, build_vector(b, name, layer, h->head_dim), heads, h->head_dim,
                        h->norm_eps);
    else if (style->qk_norm == QK_NORM_ROW)
        build_head_norm(b, label, x, build_vector(b, name, layer, width), 1, width, h->norm_eps);
}

struct tables {
    int all, out; /* rope tables per row set; 0 = not built yet */
};

static int rope_table(struct build *b, const struct hparams *h, struct tables *t)
{
    int *x = b->rows == ROWS_OUT ? &t->out : &t->all;
    if (!*x) *x = build_rope_table(b, h->rope, h->rope_divisor ? build_vector(b, "rope_freqs.weight", 0, h->rope.n_rot / 2) : -1);
    return *x;
}

/* Attention of one layer; adds to *x and, in the last layer, narrows it to the rows that need
 * logits: those alone have a query, while every row leaves its K and V. */
static void attention(struct build *b, const struct hparams *h, const struct block_style *style,
                      int l, struct tables *t, int *x)
{
    const int nq = h->n_heads * h->head_dim, nkv = h->n_kv_heads * h->head_dim;
    const bool last = l == h->n_layer - 1;
    const int stored = (h->head_dim + 15) / 16 * 16;
    const int slot = build_kv_slot(b, (struct kv_slot){KV_SLOT_DENSE, h->n_kv_heads, h->head_dim,
                                                       stored, stored});
    build_layer(b, l, l, slot);
    int n = build_norm(b, "attn_norm", *x, build_vector(b, "blk.%d.attn_norm.weight", l, h->n_embd),
                       h->norm_eps);
    const int w[3] = {
        build_tiles(b, "blk.%d.attn_k.weight", l, h->n_embd, nkv, 1),
        build_tiles(b, "blk.%d.attn_v.weight", l, h->n_embd, nkv, 1),
        build_tiles(b, "blk.%d.attn_q.weight", l, h->n_embd, nq, 1),
    };
    static const char *const names[3] = {"k", "v", "q"};
    int y[3];
    build_linears(b, last ? "attn_kv" : "attn_qkv", n, last ? 2 : 3, w, names, y);
    bias_if_there(b, "blk.%d.attn_k.bias", l, y[0], nkv);
    bias_if_there(b, "blk.%d.attn_v.bias", l, y[1], nkv);
    qk_norm(b, h, style, l, false, y[0]);
    build_rope(b, "attn_k_rope", y[0], rope_table(b, h, t), h->n_kv_heads, h->head_dim, h->rope);
    build_kv_put(b, y[0], y[1], slot);
    if (last) {
        b->rows = ROWS_OUT;
        *x = build_select(b, "x_out", *x);
        n = build_select(b, "attn_norm", n);
        build_linears(b, "attn_q", n, 1, w + 2, names + 2, y + 2);
    }
    bias_if_there(b, "blk.%d.attn_q.bias", l, y[2], nq);
    qk_norm(b, h, style, l, true, y[2]);
    build_rope(b, "attn_q_rope", y[2], rope_table(b, h, t), h->n_heads, h->head_dim, h->rope);
    int a = build_attention(b, y[2], slot, h->n_heads, 1.0f / sqrtf((float)h->head_dim), 0, -1);
    int o = build_linear(b, "attn_output", a,
                         build_tiles(b, "blk.%d.attn_output.weight", l, nq, h->n_embd, 1));
    bias_if_there(b, "blk.%d.attn_output.bias", l, o, h->n_embd);
    build_add(b, "attn_residual", o, *x);
}

static void feed_forward(struct build *b, const struct hparams *h, const struct block_style *style,
                         int l, int x)
{
    int n = build_norm(b, "ffn_norm", x, build_vector(b, "blk.%d.ffn_norm.weight", l, h->n_embd),
                       h->norm_eps);
    int o;
    if (style->route.n_expert) {
        const int ne = h->n_expert, ff = h->n_ff_expert;
        int logits = build_linear(b, "ffn_gate_inp", n,
                                  build_tiles(b, "blk.%d.ffn_gate_inp.weight", l, h->n_embd, ne,
                                              1));
        int g = expert_tiles(b, "gate", l, h->n_embd, ff, ne);
        int u = expert_tiles(b, "up", l, h->n_embd, ff, ne);
        int d = expert_tiles(b, "down", l, ff, h->n_embd, ne);
        const struct build_moe m = {style->route, GLU_SILU, g, u, d, {-1, -1, -1}, -1};
        o = build_experts(b, n, logits, &m);
    } else {
        const int w[2] = {build_tiles(b, "blk.%d.ffn_gate.weight", l, h->n_embd, h->n_ff, 1),
                          build_tiles(b, "blk.%d.ffn_up.weight", l, h->n_embd, h->n_ff, 1)};
        static const char *const names[2] = {"gate", "up"};
        int y[2];
        build_linears(b, "ffn_gate_up", n, 2, w, names, y);
        bias_if_there(b, "blk.%d.ffn_gate.bias", l, y[0], h->n_ff);
        bias_if_there(b, "blk.%d.ffn_up.bias", l, y[1], h->n_ff);
        int a = build_glu(b, GLU_SILU, y[0], y[1]);
        o = build_linear(b, "ffn_down", a,
                         build_tiles(b, "blk.%d.ffn_down.weight", l, h->n_ff, h->n_embd, 1));
        bias_if_there(b, "blk.%d.ffn_down.bias", l, o, h->n_embd);
    }
    build_add(b, "ffn_residual", o, x);
}

void block_model(struct build *b, const struct hparams *h, const struct block_style *style)
{
    const bool tied = !weights_has(b->ws, "output.weight");
    struct tables t = {0};
    int embd = tied ? build_tiles(b, "token_embd.weight", 0, h->n_embd, h->n_vocab, 1)
                    : build_rows(b, "token_embd.weight", h->n_embd, h->n_vocab);
    int x = build_embed(b, embd);
    (void)rope_table(b, h, &t);
    for (int l = 0; l < h->n_layer && !b->err->code; l++) {
        attention(b, h, style, l, &t, &x);
        feed_forward(b, h, style, l, x);
    }
    b->at_layer = -1;
    int n = build_norm(b, "output_norm", x, build_vector(b, "output_norm.weight", 0, h->n_embd),
                       h->norm_eps);
    build_logits(b, n, tied ? embd : build_tiles(b, "output.weight", 0, h->n_embd, h->n_vocab, 1));
}
