/* deepseek2: DeepSeek-V2, V2-Lite, V3 and R1, and models whose files say the same: GLM-4.7-Flash,
 * Kimi-K2.  Keys deepseek2.*; leading dense layers, then experts chosen by softmax or sigmoid, with
 * or without groups and a bias for choosing, beside shared experts.
 *
 * DESIGN.  Multi-head latent attention (arXiv 2405.04434).  A token leaves a latent c and one
 * rotated part r that all heads share: K of head h is [A_h c | r], its V is B_h c.
 *   - Files with attn_k_b (A_h transposed) and attn_v_b (B_h): as q . A_h c = (A_h' q) . c, the
 *     query is taken to the latent instead, and B_h is applied once to what attention returns.  The
 *     cache then holds [c | r] as the only KV head, whose values are c, the beginning of the same
 *     row, and are not stored again.
 *   - Old files with attn_kv_b (A_h and B_h, head by head): every head's K and V are made and kept.
 *     Reordering that tensor at load would save the memory, but change what a quantised file says. */
#include <math.h>

#include "models/arch.h"

enum { WIDTH_MAX = 1 << 24, HEAD_MAX = 1 << 14, PADDED_MAX = 512, SHARED_MAX = 64 };

static const char arch[] = "deepseek2";

/* ---- keys ---- */

static enum status get_int(const struct gguf *g, const char *key, int dflt, int hi, int *out,
                           struct err *e)
{
    enum status s = hparams_int(g, arch, key, dflt, out, e);
    if (s || *out <= hi) return s;
    return err_set(e, ERR_RANGE, "%s: key %s.%s says %d; %d at most is possible: the file is "
                   "damaged", gguf_path(g, 0), arch, key, *out, hi);
}

static enum status get_heads(const struct gguf *g, struct hparams *h, struct err *e)
{
    struct mla_params *m = &h->mla;
    enum status s;
    if ((s = get_int(g, "attention.q_lora_rank", 0, WIDTH_MAX, &m->q_rank, e)) ||
        (s = get_int(g, "attention.kv_lora_rank", -1, HEAD_MAX, &m->kv_rank, e)) ||
        (s = get_int(g, "attention.key_length_mla", 0, HEAD_MAX, &m->dim_k, e)) ||
        (s = get_int(g, "attention.value_length_mla", 0, HEAD_MAX, &m->dim_v, e)))
        return s;
    m->latent = m->dim_k > 0 && m->dim_v > 0;
    if (!m->latent &&
        ((s = get_int(g, "attention.key_length", -1, HEAD_MAX, &m->dim_k, e)) ||
         (s = get_int(g, "attention.value_length", -1, HEAD_MAX, &m->dim_v, e))))
        return s;
    /* Lite models have a plain query, whatever their keys say. */
    if (gguf_find_tensor(g, "blk.0.attn_q.weight")) m->q_rank = 0;
    return OK;
}

/* Width of a K and a V head in the cache. */
static int cached_k(const struct hparams *h)
{
    return h->mla.latent ? h->mla.kv_rank + h->rope.n_rot : h->mla.dim_k;
}

static int cached_v(const struct hparams *h)
{
    return h->mla.latent ? h->mla.kv_rank : h->mla.dim_v;
}

static enum status check_heads(const struct gguf *g, const struct hparams *h, struct err *e)
{
    const struct mla_params *m = &h->mla;
    const char *path = gguf_path(g, 0);
    const int k = cached_k(h), v = cached_v(h), most = k > m->dim_k ? k : m->dim_k;
    if (!m->kv_rank || !m->dim_v)
        return err_set(e, ERR_RANGE, "%s: key %s.attention.kv_lora_rank or value_length is 0", path,
                       arch);
    if (h->rope.n_rot >= m->dim_k)
        return err_set(e, ERR_SHAPE, "%s: %d rotated values (%s.rope.dimension_count) in heads of "
                       "%d", path, h->rope.n_rot, arch, m->dim_k);
    if (h->n_heads > WIDTH_MAX / (most + m->dim_v))
        return err_set(e, ERR_RANGE, "%s: %d heads of %d values (%s.attention.head_count) are more "
                       "than any model has", path, h->n_heads, m->dim_k, arch);
    if ((k % 16 || v % 16) && (k > PADDED_MAX || v > PADDED_MAX))
        return err_set(e, ERR_UNSUPPORTED, "%s: heads of %d and %d values: steps of 16 are "
                       "supported where there are more than %d", path, k, v, PADDED_MAX);
    return OK;
}

/* The scale of scores.  With YaRN by a factor f they grow by (1 + a ln f)^2, a =
 * yarn_log_multiplier (the converter writes 0.1 * mscale_all_dim), while cos and sin stay as they
 * are; without that key cos and sin grow by 1 + 0.1 ln f, and scores by its square. */
static enum status get_scale(const struct gguf *g, struct hparams *h, struct err *e)
{
    float a = 0, mscale = h->rope.magnitude;
    enum status s = hparams_f32(g, arch, "rope.scaling.yarn_log_multiplier", 0.0f, &a, e);
    if (s) return s;
    const float ln = -logf(h->rope.scale);
    if (ln < 0 || (ln > 0 && !h->rope.yarn))
        return err_set(e, ERR_UNSUPPORTED, "%s: key %s.rope.scaling.factor is %g: only YaRN by 1 "
                       "or more is supported", gguf_path(g, 0), arch, (double)expf(ln));
    if (a != 0 && ln > 0) {
        mscale = h->rope.magnitude = mscale / (1.0f + 0.1f * ln);
        mscale *= 1.0f + a * ln;
    }
    h->attn_scale = mscale * mscale / sqrtf((float)h->mla.dim_k);
    return OK;
}

static enum status get_experts(const struct gguf *g, struct hparams *h, struct err *e)
{
    int n = 0;
    /* Files from before the key mean softmax, but for GLM-4.7-Flash. */
    const bool glm = (h->n_layer == 47 || h->n_layer == 48) && h->n_vocab == 154880;
    enum status s = get_int(g, "expert_shared_count", 0, SHARED_MAX, &n, e);
    if (s || (s = hparams_router(g, arch, glm ? 2 : 1, h, e)) ||
        (s = hparams_shared(g, arch, n, h->n_ff_expert, h, e)))
        return s;
    if (h->n_dense_lead < h->n_layer && (s = hparams_need_experts(g, arch, h, e))) return s;
    if (h->n_dense_lead > 0 && !h->n_ff)
        return err_set(e, ERR_MISSING, "%s: key %s.feed_forward_length is missing or 0",
                       gguf_path(g, 0), arch);
    return OK;
}

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    enum status s;
    float temperature = 0;
    if ((s = hparams_common(g, arch, h, e)) || (s = hparams_nextn(g, arch, h, e)) ||
        (s = get_heads(g, h, e)) || (s = check_heads(g, h, e)) || (s = get_experts(g, h, e)) ||
        (s = get_scale(g, h, e)) ||
        (s = hparams_f32(g, arch, "attention.temperature_scale", 0.0f, &temperature, e)))
        return s;
    if (temperature > 0 || temperature < 0)
        s = err_set(e, ERR_UNSUPPORTED, "%s: key %s.attention.temperature_scale: attention that "
                    "depends on the position is not supported", gguf_path(g, 0), arch);
    return s;
}

/* ---- attention ---- */

static int rope_table(struct block *k)
{
    int *x = &k->rope[0][k->b->rows];
    if (!*x) *x = build_rope_table(k->b, k->h->rope, -1);
    return *x;
}

/* What a token leaves in the cache; kv is the row [latent | rotated part], ready. */
static void put_kv(struct build *b, const struct hparams *h, int l, int kv, int slot)
{
    const struct mla_params *m = &h->mla;
    const int rot = h->rope.n_rot, nope = m->dim_k - rot, pair = nope + m->dim_v;
    if (m->latent) {
        build_kv_put(b, kv, kv, slot);
        return;
    }
    int c = build_heads(b, "latent", 1, m->kv_rank);
    build_copy_heads(b, "latent", kv, c, (struct copy_heads){1, m->kv_rank, 0, 0, 0, 0});
    int y = build_linear(b, "attn_kv_b", c, build_tiles(b, "blk.%d.attn_kv_b.weight", l, m->kv_rank,
                                                        h->n_heads * pair, 1));
    int k = build_heads(b, "k", h->n_heads, m->dim_k);
    int v = build_heads(b, "v", h->n_heads, m->dim_v);
    build_copy_heads(b, "k", y, k, (struct copy_heads){h->n_heads, nope, 0, pair, 0, m->dim_k});
    build_copy_heads(b, "k_rope", kv, k,
                     (struct copy_heads){h->n_heads, rot, m->kv_rank, 0, nope, m->dim_k});
    build_copy_heads(b, "v", y, v,
                     (struct copy_heads){h->n_heads, m->dim_v, nope, pair, 0, m->dim_v});
    build_kv_put(b, k, v, slot);
}

/* The query of every head, rotated, and what attention makes of it: [n_heads][dim_v].  q is the
 * product with the first query matrix. */
static int ask(struct build *b, const struct hparams *h, int l, int q, int slot, int table)
{
    const struct mla_params *m = &h->mla;
    const int rot = h->rope.n_rot, nope = m->dim_k - rot, n = h->n_heads, wide = m->kv_rank + rot;
    if (m->q_rank) {
        q = build_norm(b, "attn_q_a_norm", q,
                       build_vector(b, "blk.%d.attn_q_a_norm.weight", l, m->q_rank), h->norm_eps);
        q = build_linear(b, "attn_q_b", q,
                         build_tiles(b, "blk.%d.attn_q_b.weight", l, m->q_rank, n * m->dim_k, 1));
    }
    build_rope_at(b, "attn_q_rope", q, table, n, m->dim_k, nope, h->rope);
    if (!m->latent) return build_attention(b, q, slot, n, h->attn_scale, 0, -1);
    int y = build_heads(b, "q_latent", n, wide);
    build_head_linear(b, "attn_k_b", q, m->dim_k,
                      build_head_tiles(b, "blk.%d.attn_k_b.weight", l, nope, m->kv_rank, n), n, y,
                      wide);
    build_copy_heads(b, "q_rope", q, y,
                     (struct copy_heads){n, rot, nope, m->dim_k, m->kv_rank, wide});
    int a = build_attention(b, y, slot, n, h->attn_scale, 0, -1);
    int o = build_heads(b, "v", n, m->dim_v);
    build_head_linear(b, "attn_v_b", a, m->kv_rank,
                      build_head_tiles(b, "blk.%d.attn_v_b.weight", l, m->kv_rank, m->dim_v, n), n,
                      o, m->dim_v);
    return o;
}

static int kv_slot(struct build *b, const struct hparams *h)
{
    const int k = cached_k(h), v = cached_v(h);
    return build_kv_slot(b, (struct kv_slot){
        .type = KV_SLOT_DENSE, .n_heads = h->mla.latent ? 1 : h->n_heads, .dim = k, .dim_v = v,
        .dk = (k + 15) / 16 * 16, .dv = (v + 15) / 16 * 16, .latent = h->mla.latent,
    });
}

/* Adds attention to *x and, in the last layer, narrows it to the rows that need logits: those alone
 * have a query, while every row leaves its K and V. */
static void attention(struct block *k, int l, int *x)
{
    struct build *b = k->b;
    const struct hparams *h = k->h;
    const struct mla_params *m = &h->mla;
    const bool last = l == h->n_layer - 1;
    const int slot = kv_slot(b, h), rot = h->rope.n_rot, nq = h->n_heads * m->dim_k;
    build_layer(b);
    int n = build_norm(b, "attn_norm", *x, build_vector(b, "blk.%d.attn_norm.weight", l, h->n_embd),
                       h->norm_eps);
    const int w[2] = {
        build_tiles(b, "blk.%d.attn_kv_a_mqa.weight", l, h->n_embd, m->kv_rank + rot, 1),
        m->q_rank ? build_tiles(b, "blk.%d.attn_q_a.weight", l, h->n_embd, m->q_rank, 1)
                  : build_tiles(b, "blk.%d.attn_q.weight", l, h->n_embd, nq, 1),
    };
    const char *const names[2] = {"kv_a", m->q_rank ? "q_a" : "q"};
    int y[2];
    build_linears(b, last ? "attn_kv_a" : "attn_qkv_a", n, last ? 1 : 2, w, names, y);
    build_head_norm(b, "attn_kv_a_norm", y[0],
                    build_vector(b, "blk.%d.attn_kv_a_norm.weight", l, m->kv_rank), 1, m->kv_rank,
                    h->norm_eps);
    build_rope_at(b, "attn_k_rope", y[0], rope_table(k), 1, m->kv_rank + rot, m->kv_rank,
                  h->rope);
    put_kv(b, h, l, y[0], slot);
    if (last) {
        b->rows = ROWS_OUT;
        *x = build_select(b, "x_out", *x);
        n = build_select(b, "attn_norm", n);
        build_linears(b, "attn_q_a", n, 1, w + 1, names + 1, y + 1);
    }
    int a = ask(b, h, l, y[1], slot, rope_table(k));
    int o = build_linear(b, "attn_output", a, build_tiles(b, "blk.%d.attn_output.weight", l,
                                                          h->n_heads * m->dim_v, h->n_embd, 1));
    build_add(b, "attn_residual", o, *x);
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {.act = GLU_SILU};
    struct block k;
    int x = block_begin(&k, b, h, &style);
    for (int l = 0; l < h->n_layer && !b->err->code; l++) {
        attention(&k, l, &x);
        block_feed_forward(&k, l, x, 0);
    }
    block_end(&k, x);
}

const struct arch arch_deepseek2 = {arch, "DeepSeek-V2, V3, R1; GLM-4.7-Flash; Kimi-K2", hparams,
                                    describe};
