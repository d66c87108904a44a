/* The block that most architectures share: pre-norm rotary attention and a gated feed-forward,
 * dense or of routed experts, with the variants of struct block_style.  Describes only.
 *
 * DESIGN.  What a key says is in struct hparams, what only the architecture's name says in struct
 * block_style, and what the tensors say (biases, fused tensors, a tied head) is looked up: a tensor
 * that a file has is always used, as weights_check_all_used() refuses the file otherwise. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "models/arch.h"

/* A layer's tensor, "blk.%d.<stem><suffix>.<end>". */
struct name {
    char s[64];
};

static struct name name_of(const char *stem, const char *suffix, const char *end)
{
    struct name n;
    (void)snprintf(n.s, sizeof n.s, "blk.%%d.%s%s.%s", stem, suffix, end);
    return n;
}

static bool must(const struct block *k, unsigned what) { return (k->style->must & what) != 0; }

/* Adds <stem>.bias to x. */
static void bias(struct block *k, const char *stem, const char *suffix, int l, int x, int n,
                 bool needed)
{
    const struct name name = name_of(stem, suffix, "bias");
    if (needed || build_has(k->b, name.s, l))
        build_bias(k->b, name.s + 7, x, build_vector(k->b, name.s, l, n));
}

int block_norm(struct block *k, const char *stem, int l, int x)
{
    int n = build_norm(k->b, stem, x,
                       build_vector(k->b, name_of(stem, "", "weight").s, l, k->h->n_embd),
                       k->h->norm_eps);
    bias(k, stem, "", l, n, k->h->n_embd, must(k, MUST_NORM_BIAS));
    return n;
}

/* What a sub-block leaves, scaled, is added to x. */
static void residual(struct block *k, const char *name, int y, int x)
{
    if (k->h->residual_scale != 1.0f) build_scale(k->b, "residual_scale", y, k->h->residual_scale);
    build_add(k->b, name, y, x);
}

/* ---- positions ---- */

static bool is_windowed(const struct block *k, int l)
{
    const int period = k->h->window_period;
    if (!k->h->window) return false;
    if (!period) return true;
    return k->style->full_first ? l % period != 0 : l % period < period - 1;
}

static bool is_rotated(const struct block *k, int l)
{
    const int every = k->style->no_rope_every;
    return k->h->rope.n_rot > 0 && (!every || l % every != 0);
}

static int make_rope_table(struct block *k, struct rope_params p)
{
    const int n = p.n_rot / 2;
    switch (k->h->rope_divisor) {
    case DIVISOR_ALL:
        return build_rope_table(k->b, p, build_vector(k->b, "rope_freqs.weight", 0, n));
    case DIVISOR_BY_CTX: {
        const int is_short = build_vector(k->b, "rope_factors_short.weight", 0, n);
        const int is_long = build_vector(k->b, "rope_factors_long.weight", 0, n);
        return build_rope_table_by_ctx(k->b, p, is_short, is_long);
    }
    case DIVISOR_NONE: break;
    }
    return build_rope_table(k->b, p, -1);
}

/* The table for the rows at hand; windowed layers may turn at another base. */
static int rope_table(struct block *k, bool windowed)
{
    struct rope_params p = k->h->rope;
    const bool own = windowed && (k->h->window_rope_base < p.base ||
                                  k->h->window_rope_base > p.base);
    int *x = &k->rope[own][k->b->rows];
    if (own) p.base = k->h->window_rope_base;
    if (*x) return *x;
    const int all = k->rope[own][ROWS_ALL];
    *x = all && k->b->rows >= ROWS_FIRST ? build_select(k->b, "rope", all) : make_rope_table(k, p);
    return *x;
}

void block_rope_tables(struct block *k)
{
    if (k->h->rope.n_rot) (void)rope_table(k, false);
    if (k->h->rope.n_rot && k->h->window) (void)rope_table(k, true);
}

static void rotate(struct block *k, int l, bool is_q, int x)
{
    const struct hparams *h = k->h;
    if (is_rotated(k, l))
        build_rope(k->b, is_q ? "attn_q_rope" : "attn_k_rope", x, rope_table(k, is_windowed(k, l)),
                   is_q ? h->n_heads : h->n_kv_heads, h->head_dim, h->rope);
}

/* ---- attention ---- */

enum { K, V, Q, QKV };

/* Where the rows of K, V and Q lie in a fused tensor: Q first, then K, then V. */
struct qkv_rows {
    int at[QKV], n[QKV], all;
};

static struct qkv_rows qkv_rows(const struct hparams *h)
{
    const int nq = h->n_heads * h->head_dim, nkv = h->n_kv_heads * h->head_dim;
    return (struct qkv_rows){{nq, nq + nkv, 0}, {nkv, nkv, nq}, nq + 2 * nkv};
}

static const char *const qkv_stem[QKV] = {"attn_k", "attn_v", "attn_q"};

static int qkv_tiles(struct block *k, int l, int which)
{
    const struct qkv_rows r = qkv_rows(k->h);
    if (build_has(k->b, "blk.%d.attn_qkv.weight", l))
        return build_tiles_part(k->b, "blk.%d.attn_qkv.weight", l, k->h->n_embd, r.all,
                                r.at[which], r.n[which], 1);
    const bool gated = which == Q && k->style->q_gate;
    return build_tiles(k->b, name_of(qkv_stem[which], "", "weight").s, l, k->h->n_embd,
                       gated ? 2 * r.n[which] : r.n[which], 1);
}

/* The rows at hand of x. */
static int rows_of(struct block *k, const char *name, int x)
{
    return !k->b->err->code && k->b->buf[x].rows != k->b->rows ? build_select(k->b, name, x) : x;
}

/* Adds the products of k->joint. */
static void project_joint(struct block *k, int l, int n, const int *which, const char *const *name,
                          const int *out)
{
    const struct qkv_rows r = qkv_rows(k->h);
    int w[QKV], more[QKV];
    for (int i = 0; i < n; i++)
        w[i] = build_tiles(k->b, name_of(qkv_stem[which[i]], "_concept", "weight").s, l,
                           k->h->n_embd, r.n[which[i]], 1);
    build_linears(k->b, "attn_concept", rows_of(k, "concept", k->joint), n, w, name, more);
    for (int i = 0; i < n; i++) build_add(k->b, "attn_concept", more[i], out[i]);
}

/* The products of n with K's, V's and Q's matrix, those that are wanted, in one step. */
static void project(struct block *k, int l, const char *step, int n, const bool want[QKV],
                    int y[QKV])
{
    static const char *const names[QKV] = {"k", "v", "q"};
    const char *name[QKV];
    int w[QKV], which[QKV], out[QKV], m = 0;
    for (int i = 0; i < QKV; i++) {
        if (!want[i]) continue;
        which[m] = i;
        w[m] = qkv_tiles(k, l, i);
        name[m++] = names[i];
    }
    build_linears(k->b, step, n, m, w, name, out);
    if (k->joint) project_joint(k, l, m, which, name, out);
    for (int i = QKV - 1; i >= 0; i--)
        if (want[i]) y[i] = out[--m];
}

static void qkv_bias(struct block *k, int l, int which, int x)
{
    const struct qkv_rows r = qkv_rows(k->h);
    if (build_has(k->b, "blk.%d.attn_qkv.bias", l))
        build_bias_at(k->b, "attn_qkv.bias", x,
                      build_vector(k->b, "blk.%d.attn_qkv.bias", l, r.all), r.at[which]);
    else
        bias(k, qkv_stem[which], "", l, x, r.n[which], false);
}

static void qk_norm(struct block *k, int l, bool is_q, int x)
{
    const struct hparams *h = k->h;
    const char *stem = is_q ? "attn_q_norm" : "attn_k_norm";
    const struct name name = name_of(stem, "", "weight");
    const int heads = is_q ? h->n_heads : h->n_kv_heads, width = heads * h->head_dim;
    if (k->style->qk_norm_optional && !build_has(k->b, name.s, l)) return;
    if (k->style->qk_norm == QK_NORM_HEAD)
        build_head_norm(k->b, stem, x, build_vector(k->b, name.s, l, h->head_dim), heads,
                        h->head_dim, h->norm_eps);
    else if (k->style->qk_norm == QK_NORM_ROW)
        build_head_norm(k->b, stem, x, build_vector(k->b, name.s, l, width), 1, width, h->norm_eps);
}

/* Q or K from the product to the scores. */
static void finish_heads(struct block *k, int l, bool is_q, int x)
{
    qkv_bias(k, l, is_q ? Q : K, x);
    if (!k->style->qk_norm_late) qk_norm(k, l, is_q, x);
    rotate(k, l, is_q, x);
    if (k->style->qk_norm_late) qk_norm(k, l, is_q, x);
}

/* Each head of attn_q's product is a query, then the gate of that head's output. */
static int split_gate(struct block *k, int x, int *gate)
{
    const int n = k->h->n_heads, dim = k->h->head_dim;
    const int q = build_heads(k->b, "q_heads", n, dim);
    *gate = build_heads(k->b, "q_gate", n, dim);
    build_copy_heads(k->b, "q_heads", x, q, (struct copy_heads){n, dim, 0, 2 * dim, 0, dim});
    build_copy_heads(k->b, "q_gate", x, *gate, (struct copy_heads){n, dim, dim, 2 * dim, 0, dim});
    return q;
}

static int attend(struct block *k, int l, int q, int gate, int slot)
{
    const struct hparams *h = k->h;
    const float scale = h->attn_scale != 0 ? h->attn_scale : 1.0f / sqrtf((float)h->head_dim);
    int sinks = -1;
    if (k->style->sinks) sinks = build_vector(k->b, "blk.%d.attn_sinks.weight", l, h->n_heads);
    int a = build_attention(k->b, q, slot, h->n_heads, scale, is_windowed(k, l) ? h->window : 0,
                            sinks);
    if (gate) build_gate(k->b, "attn_gate", gate, a);
    int o = build_linear(k->b, "attn_output", a,
                         build_tiles(k->b, "blk.%d.attn_output.weight", l, h->n_heads * h->head_dim,
                                     h->n_embd, 1));
    bias(k, "attn_output", "", l, o, h->n_embd, must(k, MUST_ATTN_BIAS));
    return k->style->attn_post_norm ? block_norm(k, "post_attention_norm", l, o) : o;
}

/* Adds K and V of every row to the slot. */
static void leave_kv(struct block *k, int l, int y[QKV], bool has_v, int slot)
{
    const int n = k->h->n_kv_heads, dim = k->h->head_dim;
    if (!has_v) {
        y[V] = build_heads(k->b, "v", n, dim);
        build_copy_heads(k->b, "v", y[K], y[V], (struct copy_heads){n, dim, 0, dim, 0, dim});
    }
    finish_heads(k, l, false, y[K]);
    if (has_v) qkv_bias(k, l, V, y[V]);
    if (k->style->v_norm)
        build_head_norm(k->b, "attn_v_norm", y[V], -1, n, dim, k->h->norm_eps);
    build_kv_put(k->b, y[K], y[V], slot);
}

/* Does layer l leave K and V, or look at those of an earlier one? */
static bool leaves_kv(const struct hparams *h, int l) { return l < h->n_layer - h->n_shared_kv; }

/* Only the rows that need logits have a query in the last layer that leaves K and V, while every
 * row leaves its own; the layers behind it, if any, go on with those rows alone. */
static void attention(struct block *k, int l, int slot, int *x)
{
    struct build *b = k->b;
    const bool kv = leaves_kv(k->h, l) && !k->reads_slot;
    const bool last = kv && !k->more && !leaves_kv(k->h, l + 1);
    const bool has_v = !k->style->v_norm || build_has(b, "blk.%d.attn_v.weight", l) ||
                       build_has(b, "blk.%d.attn_qkv.weight", l);
    int y[QKV], gate = 0;
    int n = block_norm(k, "attn_norm", l, *x);
    const char *step = !kv ? "attn_q" : last ? "attn_kv" : "attn_qkv";
    project(k, l, step, n, (const bool[QKV]){[K] = kv, [V] = kv && has_v, [Q] = !last}, y);
    if (kv) leave_kv(k, l, y, has_v, slot);
    if (last) {
        b->rows = ROWS_OUT;
        *x = build_select(b, "x_out", *x);
        n = build_select(b, "attn_norm", n);
        project(k, l, "attn_q", n, (const bool[QKV]){[Q] = true}, y);
    }
    if (k->style->q_gate) y[Q] = split_gate(k, y[Q], &gate);
    finish_heads(k, l, true, y[Q]);
    residual(k, "attn_residual", attend(k, l, y[Q], gate, slot), *x);
}

int block_kv_slot(struct block *k)
{
    const struct hparams *h = k->h;
    const int stored = (h->head_dim + 15) / 16 * 16;
    return build_kv_slot(k->b, (struct kv_slot){
        .type = KV_SLOT_DENSE, .n_heads = h->n_kv_heads, .dim = h->head_dim,
        .dk = stored, .dv = stored,
    });
}

static int open_layer(struct block *k, int l)
{
    if (k->use_slot) k->slot = k->use_slot - 1;
    else if (leaves_kv(k->h, l)) k->slot = block_kv_slot(k);
    build_layer(k->b);
    return k->slot;
}

void block_attention(struct block *k, int l, int *x) { attention(k, l, open_layer(k, l), x); }

/* ---- feed-forward ---- */

static bool has_experts(const struct hparams *h, int l)
{
    return h->n_expert > 0 && l >= h->n_dense_lead && (!h->moe_step || (l + 1) % h->moe_step == 0);
}

int block_gated_unit(struct block *k, int l, int n, const char *suffix, int n_ff)
{
    static const char *const names[2] = {"gate", "up"};
    struct build *b = k->b;
    const int embd = k->h->n_embd;
    const int w[2] = {build_tiles(b, name_of("ffn_gate", suffix, "weight").s, l, embd, n_ff, 1),
                      build_tiles(b, name_of("ffn_up", suffix, "weight").s, l, embd, n_ff, 1)};
    int y[2];
    build_linears(b, suffix[0] ? "ffn_gate_up_shexp" : "ffn_gate_up", n, 2, w, names, y);
    bias(k, "ffn_gate", suffix, l, y[0], n_ff, false);
    bias(k, "ffn_up", suffix, l, y[1], n_ff, false);
    int a = build_glu(b, k->style->act, y[0], y[1]);
    int o = build_linear(b, suffix[0] ? "ffn_down_shexp" : "ffn_down", a,
                         build_tiles(b, name_of("ffn_down", suffix, "weight").s, l, n_ff, embd, 1));
    bias(k, "ffn_down", suffix, l, o, embd, false);
    return o;
}

static int shared_experts(struct block *k, int l, int n)
{
    int o = block_gated_unit(k, l, n, "_shexp", k->h->n_ff_shared);
    if (k->style->shared_gate) {
        int w = build_tiles(k->b, "blk.%d.ffn_gate_inp_shexp.weight", l, k->h->n_embd, 1, 1);
        build_gate(k->b, "ffn_shexp_gate", build_linear(k->b, "ffn_gate_inp_shexp", n, w), o);
    }
    return o;
}

static int router(struct block *k, int l, int n)
{
    const int ne = k->h->n_expert;
    int logits = build_linear(k->b, "ffn_gate_inp", n,
                              build_tiles(k->b, "blk.%d.ffn_gate_inp.weight", l, k->h->n_embd, ne,
                                          1));
    bias(k, "ffn_gate_inp", "", l, logits, ne, must(k, MUST_ROUTER_BIAS));
    return logits;
}

/* Old Mixtral files hold every expert as a matrix of its own. */
static int split_expert_tiles(struct block *k, const char *stem, int l, struct weight_shape s)
{
    char name[64], prefix[64], one[64], two[64];
    (void)snprintf(name, sizeof name, "blk.%d.%s_exps.weight", l, stem);
    (void)snprintf(prefix, sizeof prefix, "blk.%d.%s.", l, stem);
    (void)snprintf(one, sizeof one, "%.48s0.weight", prefix);
    (void)snprintf(two, sizeof two, "%.48s1.weight", prefix);
    if (!weights_has(k->b->ws, one) && !weights_has(k->b->ws, two)) return -1;
    int w = weights_bind_split(k->b->ws, s, name, prefix, ".weight", k->b->err);
    return w < 0 ? 0 : w;
}

static int expert_tiles(struct block *k, const char *stem, int l, int n_cols, int n_rows)
{
    const int ne = k->h->n_expert;
    const struct name name = name_of(stem, "_exps", "weight");
    int w = -1;
    if (!build_has(k->b, name.s, l) && !k->b->err->code)
        w = split_expert_tiles(k, stem, l, (struct weight_shape){
            .layout = WEIGHT_TILES, .n_cols = n_cols, .n_rows = n_rows, .n_mats = ne,
        });
    return w >= 0 ? w : build_tiles(k->b, name.s, l, n_cols, n_rows, ne);
}

static int expert_bias(struct block *k, const char *stem, int l, int n)
{
    const struct name name = name_of(stem, "_exps", "bias");
    if (!must(k, MUST_EXPERT_BIAS) && !build_has(k->b, name.s, l)) return -1;
    return build_vectors(k->b, name.s, l, n, k->h->n_expert);
}

static void gate_and_up(struct block *k, int l, struct build_moe *m)
{
    static const char fused[] = "blk.%d.ffn_gate_up_exps.weight";
    const int embd = k->h->n_embd, ff = k->h->n_ff_expert, ne = k->h->n_expert;
    if (build_has(k->b, fused, l)) {
        m->gate = build_tiles_part(k->b, fused, l, embd, 2 * ff, 0, ff, ne);
        m->up = build_tiles_part(k->b, fused, l, embd, 2 * ff, ff, ff, ne);
    } else {
        m->gate = expert_tiles(k, "ffn_gate", l, embd, ff);
        m->up = expert_tiles(k, "ffn_up", l, embd, ff);
    }
}

int block_experts(struct block *k, int l, int n, int logits)
{
    static const char by[] = "blk.%d.ffn_down_exps.scale";
    const int embd = k->h->n_embd, ff = k->h->n_ff_expert;
    struct build_moe m = {.route = k->h->route, .act = k->style->act, .choose_bias = -1,
                          .scale = -1};
    gate_and_up(k, l, &m);
    m.down = expert_tiles(k, "ffn_down", l, ff, embd);
    m.bias[0] = expert_bias(k, "ffn_gate", l, ff);
    m.bias[1] = expert_bias(k, "ffn_up", l, ff);
    m.bias[2] = expert_bias(k, "ffn_down", l, embd);
    if (must(k, MUST_CHOOSE_BIAS) || build_has(k->b, "blk.%d.exp_probs_b.bias", l))
        m.choose_bias = build_vector(k->b, "blk.%d.exp_probs_b.bias", l, k->h->n_expert);
    /* The scale is of what down's matrix gives: of the whole expert where that has no bias. */
    if (m.bias[2] < 0 && build_has(k->b, by, l))
        m.scale = build_vector(k->b, by, l, k->h->n_expert);
    return build_experts(k->b, n, logits, &m);
}

void block_feed_forward(struct block *k, int l, int x, int logits)
{
    int n = block_norm(k, k->style->ffn_norm ? k->style->ffn_norm : "ffn_norm", l, x), o;
    if (has_experts(k->h, l)) {
        o = block_experts(k, l, n, logits ? logits : router(k, l, n));
        if (k->h->n_ff_shared) build_add(k->b, "ffn_shexp", shared_experts(k, l, n), o);
    } else {
        o = block_gated_unit(k, l, n, "", k->h->n_ff);
    }
    if (k->style->ffn_post_norm) o = block_norm(k, "post_ffw_norm", l, o);
    residual(k, "ffn_residual", o, x);
}

/* ---- the model ---- */

int block_begin(struct block *k, struct build *b, const struct hparams *h,
                const struct block_style *style)
{
    *k = (struct block){.b = b, .h = h, .style = style};
    b->sees = h->denoise.sees;
    const bool tied = !must(k, MUST_OUTPUT) && !weights_has(b->ws, "output.weight");
    k->embd = tied ? build_tiles(b, "token_embd.weight", 0, h->n_embd, h->n_vocab, 1)
                   : build_rows(b, "token_embd.weight", h->n_embd, h->n_vocab);
    int x = build_embed(b, "token_embd", "x", k->embd);
    if (h->embed_scale != 1.0f) build_scale(b, "embed_scale", x, h->embed_scale);
    block_rope_tables(k);
    if (h->n_nextn) weights_skip(b->ws, h->n_layer, NULL);
    return x;
}

void block_layer(struct block *k, int l, int *x)
{
    const int slot = open_layer(k, l), before = k->b->rows;
    const bool early = k->style->router_first && has_experts(k->h, l);
    int logits = early ? router(k, l, *x) : 0;
    attention(k, l, slot, x);
    if (early && k->b->rows != before) logits = build_select(k->b, "ffn_gate_inp", logits);
    block_feed_forward(k, l, *x, logits);
}

int block_last_norm(struct block *k, int x)
{
    struct build *b = k->b;
    const struct hparams *h = k->h;
    b->at_layer = -1;
    const char *name = k->style->output_norm ? k->style->output_norm : "output_norm.weight";
    int n = build_norm(b, "output_norm", x, build_vector(b, name, 0, h->n_embd), h->norm_eps);
    if (must(k, MUST_NORM_BIAS) || build_has(b, "output_norm.bias", 0))
        build_bias(b, "output_norm.bias", n, build_vector(b, "output_norm.bias", 0, h->n_embd));
    return n;
}

void block_head(struct block *k, int n)
{
    struct build *b = k->b;
    const struct hparams *h = k->h;
    const bool own = must(k, MUST_OUTPUT) || weights_has(b->ws, "output.weight");
    int y = build_logits(b, n, own ? build_tiles(b, "output.weight", 0, h->n_embd, h->n_vocab, 1)
                                   : k->embd);
    if (must(k, MUST_OUTPUT_BIAS) || build_has(b, "output.bias", 0))
        build_bias(b, "output.bias", y, build_vector(b, "output.bias", 0, h->n_vocab));
    if (h->logit_scale != 1.0f) build_scale(b, "logit_scale", y, 1.0f / h->logit_scale);
    if (h->logit_softcap > 0) build_softcap(b, y, h->logit_softcap);
}

void block_end(struct block *k, int x) { block_head(k, block_last_norm(k, x)); }

void block_model(struct build *b, const struct hparams *h, const struct block_style *style)
{
    struct block k;
    int x = block_begin(&k, b, h, style);
    for (int l = 0; l < h->n_layer && !b->err->code; l++) block_layer(&k, l, &x);
    block_end(&k, x);
}
