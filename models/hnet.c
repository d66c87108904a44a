/* hnet: H-Net (arXiv 2507.07955), bytes that are merged into chunks, and chunks into larger ones: each
 * stage's encoder finds where a chunk begins, the next stage sees those rows only, and the stage's
 * decoder sees what it gave, smoothed.  Attention layers only: the released models' Mamba-2 layers are
 * refused.  Describes only.
 *
 * Keys hnet.stage_count (the innermost one included), hnet.context_length, hnet.rope.freq_base,
 * hnet.chunk.query ("previous") and for stage S, outermost first, hnet.stage.S.*:
 *   embedding_length, attention.head_count, feed_forward_length, rope.dimension_count
 *   attention.sliding_window  rows of the stage's own that attention sees; absent or 0: all
 *   encoder_layout, decoder_layout  letters with counts, "T1t4": t attention, T with a SwiGLU behind it;
 *                             the innermost stage has an encoder only
 * Tensors st.S.enc.blk.N.* and st.S.dec.blk.N.* (attn_norm, attn_qkv: Q, K and V, attn_output; of T
 * ffn_norm, ffn_gate, ffn_up, ffn_down), st.S.enc.norm and st.S.dec.norm, st.S.router_q, st.S.router_k,
 * st.S.res_proj.weight and .bias; st.S.pad: what is appended to rows that come from a narrower stage;
 * token_embd, output. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "models/arch.h"

static const char arch[] = "hnet";

enum { STAGE_LAYERS_MAX = 128 };

/* ---- keys ---- */

static enum status layout(const struct gguf *g, int stage, const char *part, char *out, struct err *e)
{
    char key[64];
    struct gguf_str s;
    int n = 0;
    (void)snprintf(key, sizeof key, "hnet.stage.%d.%s_layout", stage, part);
    enum status st = gguf_get_str(g, key, &s, e);
    if (st) return st;
    for (size_t i = 0; i < s.n;) {
        const char letter = s.s[i++];
        int count = 0;
        while (i < s.n && s.s[i] >= '0' && s.s[i] <= '9' && count < STAGE_LAYERS_MAX)
            count = 10 * count + (s.s[i++] - '0');
        if (letter == 'm' || letter == 'M')
            return err_set(e, ERR_UNSUPPORTED, "%s: key %s says \"%.*s\": Mamba-2 layers (m, M) are not "
                           "supported, attention layers (t, T) are", gguf_path(g, 0), key,
                           (int)(s.n < 32 ? s.n : 32), s.s);
        if ((letter != 't' && letter != 'T') || count < 1 || count > STAGE_LAYERS_MAX - n)
            return err_set(e, ERR_RANGE, "%s: key %s says \"%.*s\"; letters t and T with counts like "
                           "T1t4 are known, %d layers at most", gguf_path(g, 0), key,
                           (int)(s.n < 32 ? s.n : 32), s.s, STAGE_LAYERS_MAX);
        memset(out + n, letter, (size_t)count);
        n += count;
    }
    out[n] = 0;
    return OK;
}

static enum status get_stage(const struct gguf *g, int i, int n, struct hnet_stage *p, struct err *e)
{
    char prefix[32];
    enum status s;
    (void)snprintf(prefix, sizeof prefix, "hnet.stage.%d", i);
    if ((s = hparams_int(g, prefix, "embedding_length", -1, &p->n_embd, e)) ||
        (s = hparams_int(g, prefix, "attention.head_count", -1, &p->n_heads, e)) ||
        (s = hparams_int(g, prefix, "feed_forward_length", 0, &p->n_ff, e)) ||
        (s = hparams_int(g, prefix, "attention.sliding_window", 0, &p->window, e)) ||
        (s = hparams_int(g, prefix, "rope.dimension_count", -1, &p->n_rot, e)) ||
        (s = layout(g, i, "encoder", p->encoder, e)) ||
        (i + 1 < n && (s = layout(g, i, "decoder", p->decoder, e))))
        return s;
    /* Sizes in the terms of models that have one stage. */
    struct hparams h = {.n_layer = 1, .n_embd = p->n_embd, .n_ctx_train = 1, .n_heads = p->n_heads,
                        .n_kv_heads = p->n_heads, .n_ff = p->n_ff > 0 ? p->n_ff : 1,
                        .head_dim = p->n_heads ? p->n_embd / p->n_heads : 0,
                        .rope = {.n_rot = p->n_rot, .base = 1}};
    if ((s = hparams_check(g, prefix, &h, e))) return s;
    if (p->n_embd % p->n_heads || (i && p->n_embd < p[-1].n_embd))
        return err_set(e, ERR_SHAPE, "%s: stage %d is %d wide with %d heads; heads are of one size, and a "
                       "stage is as wide as the one around it at least", gguf_path(g, 0), i, p->n_embd,
                       p->n_heads);
    if ((strchr(p->encoder, 'T') || strchr(p->decoder, 'T')) && !p->n_ff)
        return err_set(e, ERR_MISSING, "%s: key %s.feed_forward_length is missing or 0, and there are T "
                       "layers", gguf_path(g, 0), prefix);
    return OK;
}

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    struct gguf_str query;
    const struct gguf_tensor *t = gguf_find_tensor(g, "token_embd.weight");
    enum status s;
    memset(h, 0, sizeof *h);
    if ((s = hparams_int(g, arch, "stage_count", -1, &h->hnet.n, e)) ||
        (s = hparams_int(g, arch, "context_length", -1, &h->n_ctx_train, e)) ||
        (s = hparams_f32(g, arch, "rope.freq_base", 1e4f, &h->rope.base, e)))
        return s;
    if (h->hnet.n < 2 || h->hnet.n > HNET_STAGES_MAX)
        return err_set(e, ERR_RANGE, "%s: key hnet.stage_count says %d; 2 to %d are possible",
                       gguf_path(g, 0), h->hnet.n, HNET_STAGES_MAX);
    if (h->n_ctx_train < 1 || h->n_ctx_train > 1 << 30 || !(h->rope.base > 0))
        return err_set(e, ERR_RANGE, "%s: keys hnet.context_length and hnet.rope.freq_base must be "
                       "positive", gguf_path(g, 0));
    if (gguf_find(g, "hnet.chunk.query")) {
        if ((s = gguf_get_str(g, "hnet.chunk.query", &query, e))) return s;
        if (!gguf_str_is(query, "previous"))
            return err_set(e, ERR_UNSUPPORTED, "%s: key hnet.chunk.query says \"%.*s\"; known is previous",
                           gguf_path(g, 0), (int)(query.n < 32 ? query.n : 32), query.s);
    }
    for (int i = 0; i < h->hnet.n; i++) {
        if ((s = get_stage(g, i, h->hnet.n, &h->hnet.stage[i], e))) return s;
        h->n_layer += (int)(strlen(h->hnet.stage[i].encoder) + strlen(h->hnet.stage[i].decoder));
    }
    if (!t || t->dim[1] > 1 << 24)
        return err_set(e, ERR_MISSING, "%s: tensor token_embd.weight is missing or too large",
                       gguf_path(g, 0));
    h->n_vocab = (int)t->dim[1];
    h->n_embd = h->hnet.stage[0].n_embd;
    return OK;
}

/* ---- layers ---- */

struct part {
    struct build *b;
    const struct hnet_stage *p;
    struct rope_params rope;
    int stage, table;
    char prefix[24];     /* "st.1.enc." */
};

static const char *name_of(const struct part *k, const char *end, char out[64])
{
    (void)snprintf(out, 64, "%s%s", k->prefix, end);
    return out;
}

static int norm(const struct part *k, const char *step, const char *name, int l, int x)
{
    char full[64];
    return build_norm(k->b, step, x, build_vector(k->b, name_of(k, name, full), l, k->p->n_embd), 1e-5f);
}

static void attention(const struct part *k, int l, int x)
{
    static const char *const out[3] = {"q", "k", "v"};
    struct build *b = k->b;
    const int d = k->p->n_embd, n = k->p->n_heads, dim = d / n, stored = (dim + 15) / 16 * 16;
    char full[64];
    int w[3], y[3];
    build_layer(b);
    const int slot = build_kv_slot(b, (struct kv_slot){
        .type = KV_SLOT_DENSE, .n_heads = n, .dim = dim, .dk = stored, .dv = stored,
    });
    const int in = norm(k, "attn_norm", "blk.%d.attn_norm.weight", l, x);
    for (int i = 0; i < 3; i++)
        w[i] = build_tiles_part(b, name_of(k, "blk.%d.attn_qkv.weight", full), l, d, 3 * d, i * d, d, 1);
    build_linears(b, "attn_qkv", in, 3, w, out, y);
    build_rope(b, "attn_k_rope", y[1], k->table, n, dim, k->rope);
    build_kv_put(b, y[1], y[2], slot);
    build_rope(b, "attn_q_rope", y[0], k->table, n, dim, k->rope);
    const int a = build_attention(b, y[0], slot, n, 1.0f / sqrtf((float)dim), k->p->window, -1);
    const int o = build_tiles(b, name_of(k, "blk.%d.attn_output.weight", full), l, d, d, 1);
    build_add(b, "attn_residual", build_linear(b, "attn_output", a, o), x);
}

static void feed_forward(const struct part *k, int l, int x)
{
    static const char *const out[2] = {"gate", "up"};
    struct build *b = k->b;
    const int d = k->p->n_embd, ff = k->p->n_ff;
    char full[64];
    int w[2], y[2];
    const int in = norm(k, "ffn_norm", "blk.%d.ffn_norm.weight", l, x);
    w[0] = build_tiles(b, name_of(k, "blk.%d.ffn_gate.weight", full), l, d, ff, 1);
    w[1] = build_tiles(b, name_of(k, "blk.%d.ffn_up.weight", full), l, d, ff, 1);
    build_linears(b, "ffn_gate_up", in, 2, w, out, y);
    const int a = build_glu(b, GLU_SILU, y[0], y[1]);
    const int o = build_tiles(b, name_of(k, "blk.%d.ffn_down.weight", full), l, ff, d, 1);
    build_add(b, "ffn_residual", build_linear(b, "ffn_down", a, o), x);
}

/* The layers of an encoder or a decoder, and the norm behind them. */
static int isotropic(struct part *k, const char *which, const char *layers, int x)
{
    (void)snprintf(k->prefix, sizeof k->prefix, "st.%d.%s.", k->stage, which);
    for (int l = 0; layers[l] && !k->b->err->code; l++) {
        attention(k, l, x);
        if (layers[l] == 'T') feed_forward(k, l, x);
    }
    k->b->at_layer = -1;
    return norm(k, which, "norm.weight", 0, x);
}

/* One of a stage's two square matrices that decide. */
static int router(const struct part *k, const char *which, int x)
{
    char name[64];
    (void)snprintf(name, sizeof name, "st.%d.%s.weight", k->stage, which);
    const int u = build_router(k->b, which, name, k->p->n_embd, x);
    build_l2_norm(k->b, which, u, 1, k->p->n_embd, 1e-12f);
    return u;
}

static int narrower(struct build *b, int x, int width)
{
    if (b->err->code || b->buf[x].width == width) return x;
    const int y = build_heads(b, "narrow", 1, width);
    build_copy_heads(b, "narrow", x, y, (struct copy_heads){1, width, 0, width, 0, width});
    return y;
}

static int wider(struct build *b, int stage, int x, int width)
{
    char name[64];
    const int was = b->err->code ? width : b->buf[x].width;
    if (was == width) return x;
    (void)snprintf(name, sizeof name, "st.%d.pad", stage);
    const int y = build_fill(b, "wide", width, was, build_vector(b, name, 0, width - was));
    build_copy_heads(b, "wide", x, y, (struct copy_heads){1, was, 0, was, 0, was});
    return y;
}

/* Stage s over the rows at hand, which are as wide as the stage around it; returns such rows. */
static int stage(struct build *b, const struct hparams *h, int s, int x)
{
    struct part k = {.b = b, .p = &h->hnet.stage[s], .stage = s};
    const int outer = b->err->code ? 0 : b->buf[x].width, rows = b->rows;
    char name[64];
    k.rope = (struct rope_params){.n_rot = k.p->n_rot, .neox = 1, .base = h->rope.base, .scale = 1,
                                  .magnitude = 1};
    k.table = build_rope_table(b, k.rope, -1);
    x = isotropic(&k, "enc", k.p->encoder, wider(b, s, x, k.p->n_embd));
    if (s + 1 == h->hnet.n) return narrower(b, x, outer);
    (void)snprintf(name, sizeof name, "st.%d.res_proj.weight", s);
    const int left = build_linear(b, "res_proj", x,
                                  build_tiles(b, name, 0, k.p->n_embd, k.p->n_embd, 1));
    (void)snprintf(name, sizeof name, "st.%d.res_proj.bias", s);
    build_bias(b, "res_proj.bias", left, build_vector(b, name, 0, k.p->n_embd));
    const int q = router(&k, "router_q", x), key = router(&k, "router_k", x);
    (void)snprintf(name, sizeof name, "stage%d", s + 1);
    const int set = build_row_set(b, name, 1);
    const int chance = build_boundary(b, "boundary", key, q, (struct depth_params){
        .rule = DEPTH_BOUNDARY, .set = set, .step = s + 1, .n_steps = h->hnet.n - 1,
        .at = nextafterf(0.5f, 1), /* above a half */
    });
    b->rows = set;
    const int inner = stage(b, h, s + 1, build_select(b, "chunk", x));
    b->rows = rows;
    const int y = build_smooth(b, "smooth", inner, chance, 1e-4f);
    build_add(b, "res_proj", left, y);
    return narrower(b, isotropic(&k, "dec", k.p->decoder, y), outer);
}

static void describe(struct build *b, const struct hparams *h)
{
    const int d = h->n_embd;
    b->depth_first = 0;
    b->n_depth = h->hnet.n - 1;
    int x = build_embed(b, "token_embd", "x", build_rows(b, "token_embd.weight", d, h->n_vocab));
    x = stage(b, h, 0, x);
    b->rows = ROWS_OUT;
    (void)build_logits(b, build_select(b, "x_out", x),
                       build_tiles(b, "output.weight", 0, d, h->n_vocab, 1));
}

const struct arch arch_hnet = {arch, "H-Net with attention layers: chunks of chunks of bytes", hparams,
                               describe};
