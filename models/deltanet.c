/* Gated DeltaNet layers (arXiv 2412.06464) and the hybrids built of them: qwen3next and qwen35moe.
 * Describes only.
 *
 * Tensors, per layer: attn_qkv and attn_gate (or, in old files, ssm_in with both interleaved by
 * head of k), a convolution over the channels of q, k and v, ssm_alpha and ssm_beta (or ssm_ba,
 * interleaved) with ssm_dt and ssm_a for the gates, ssm_norm and ssm_out.  A layer is recurrent if
 * it has ssm_conv1d.  Where q, k and v lie in interleaved rows: per head of k its q, its k, the v
 * and then the z of its heads of v. */
#include "models/arch.h"

enum { HEADS_MAX = 4096, DIM_MAX = 1024, TAPS_MAX = 8 };

enum status hparams_delta(const struct gguf *g, const char *arch, bool tiled, struct hparams *h,
                          struct err *e)
{
    struct delta_params *d = &h->delta;
    int inner;
    enum status s;
    if ((s = hparams_int(g, arch, "ssm.conv_kernel", -1, &d->taps, e)) ||
        (s = hparams_int(g, arch, "ssm.state_size", -1, &d->dim, e)) ||
        (s = hparams_int(g, arch, "ssm.group_count", -1, &d->n_k, e)) ||
        (s = hparams_int(g, arch, "ssm.time_step_rank", -1, &d->n_v, e)) ||
        (s = hparams_int(g, arch, "ssm.inner_size", -1, &inner, e)))
        return s;
    d->tiled = tiled;
    if (d->taps < 2 || d->taps > TAPS_MAX || d->dim < 1 || d->dim > DIM_MAX || d->n_k < 1 ||
        d->n_v < d->n_k || d->n_v > HEADS_MAX || d->n_v % d->n_k)
        return err_set(e, ERR_RANGE, "%s: %d and %d heads of %d values with a convolution of %d "
                       "(%s.ssm.group_count, time_step_rank, state_size, conv_kernel): the file is "
                       "damaged", gguf_path(g, 0), d->n_k, d->n_v, d->dim, d->taps, arch);
    if (inner != d->n_v * d->dim)
        return err_set(e, ERR_UNSUPPORTED, "%s: key %s.ssm.inner_size says %d, not %d heads of %d",
                       gguf_path(g, 0), arch, inner, d->n_v, d->dim);
    return OK;
}

/* Copies `dim` values per head of k from place `from` of its `stride` to place `to` of out. */
static void pick(struct block *k, int in, int out, int dim, int from, int stride, int to)
{
    build_copy_heads(k->b, "split", in, out, (struct copy_heads){k->h->delta.n_k, dim, from, stride,
                                                                 to, dim});
}

static void old_qkvz(struct block *k, int l, int n, int *qkv, int *z)
{
    const struct delta_params *d = &k->h->delta;
    const int v = d->n_v / d->n_k * d->dim, stride = 2 * d->dim + 2 * v, keys = d->n_k * d->dim;
    int x = build_linear(k->b, "ssm_in", n, build_tiles(k->b, "blk.%d.ssm_in.weight", l,
                                                        k->h->n_embd, d->n_k * stride, 1));
    *qkv = build_heads(k->b, "qkv", 2 * d->n_k + d->n_v, d->dim);
    *z = build_heads(k->b, "z", d->n_v, d->dim);
    pick(k, x, *qkv, d->dim, 0, stride, 0);
    pick(k, x, *qkv, d->dim, d->dim, stride, keys);
    pick(k, x, *qkv, v, 2 * d->dim, stride, 2 * keys);
    pick(k, x, *z, v, 2 * d->dim + v, stride, 0);
}

static void project(struct block *k, int l, int n, int *qkv, int *z)
{
    static const char *const names[2] = {"qkv", "z"};
    const struct delta_params *d = &k->h->delta;
    const int keys = d->n_k * d->dim, values = d->n_v * d->dim, embd = k->h->n_embd;
    if (!build_has(k->b, "blk.%d.attn_qkv.weight", l)) {
        old_qkvz(k, l, n, qkv, z);
        return;
    }
    const int w[2] = {build_tiles(k->b, "blk.%d.attn_qkv.weight", l, embd, 2 * keys + values, 1),
                      build_tiles(k->b, "blk.%d.attn_gate.weight", l, embd, values, 1)};
    int y[2];
    build_linears(k->b, "attn_qkv_gate", n, 2, w, names, y);
    *qkv = y[0];
    *z = y[1];
}

/* What becomes the decay of the state and the strength of its change, per head of v. */
static void gates(struct block *k, int l, int n, int *alpha, int *beta)
{
    static const char *const names[2] = {"alpha", "beta"};
    const struct delta_params *d = &k->h->delta;
    if (build_has(k->b, "blk.%d.ssm_ba.weight", l)) {
        const int per = d->n_v / d->n_k;
        int x = build_linear(k->b, "ssm_ba", n, build_tiles(k->b, "blk.%d.ssm_ba.weight", l,
                                                            k->h->n_embd, 2 * d->n_v, 1));
        *beta = build_heads(k->b, "beta", d->n_v, 1);
        *alpha = build_heads(k->b, "alpha", d->n_v, 1);
        pick(k, x, *beta, per, 0, 2 * per, 0);
        pick(k, x, *alpha, per, per, 2 * per, 0);
    } else {
        const int w[2] = {
            build_tiles(k->b, "blk.%d.ssm_alpha.weight", l, k->h->n_embd, d->n_v, 1),
            build_tiles(k->b, "blk.%d.ssm_beta.weight", l, k->h->n_embd, d->n_v, 1)};
        int y[2];
        build_linears(k->b, "ssm_alpha_beta", n, 2, w, names, y);
        *alpha = y[0];
        *beta = y[1];
    }
    build_delta_gates(k->b, *alpha, *beta, build_vector(k->b, "blk.%d.ssm_dt.bias", l, d->n_v),
                      build_vector(k->b, "blk.%d.ssm_a", l, d->n_v));
}

void block_delta(struct block *k, int l, int *x)
{
    struct build *b = k->b;
    const struct delta_params *d = &k->h->delta;
    const int channels = (2 * d->n_k + d->n_v) * d->dim, embd = k->h->n_embd;
    const int slot = build_kv_slot(b, (struct kv_slot){
        .type = KV_SLOT_RECURRENT, .n_heads = d->n_v, .dim = channels, .dk = d->dim, .dv = d->dim,
        .dim_v = d->taps - 1,
    });
    build_layer(b);
    int qkv, z, alpha, beta;
    int n = build_norm(b, "attn_norm", *x, build_vector(b, "blk.%d.attn_norm.weight", l, embd),
                       k->h->norm_eps);
    project(k, l, n, &qkv, &z);
    gates(k, l, n, &alpha, &beta);
    build_conv(b, qkv, build_vectors(b, "blk.%d.ssm_conv1d.weight", l, d->taps, channels), d->taps,
               true, slot);
    build_l2_norm(b, "qk_l2_norm", qkv, 2 * d->n_k, d->dim, k->h->norm_eps);
    int o = build_delta(b, qkv, alpha, beta, d->n_k, d->tiled, slot);
    if (l == k->h->n_layer - 1) {
        b->rows = ROWS_OUT;
        *x = build_select(b, "x_out", *x);
        o = build_select(b, "delta", o);
        z = build_select(b, "z", z);
    }
    build_head_norm(b, "ssm_norm", o, build_vector(b, "blk.%d.ssm_norm.weight", l, d->dim), d->n_v,
                    d->dim, k->h->norm_eps);
    int y = build_linear(b, "ssm_out", build_glu(b, GLU_SILU, z, o),
                         build_tiles(b, "blk.%d.ssm_out.weight", l, d->n_v * d->dim, embd, 1));
    build_add(b, "attn_residual", y, *x);
}

void delta_model(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {
        .qk_norm = QK_NORM_HEAD, .q_gate = true, .shared_gate = true,
        .ffn_norm = "post_attention_norm",
    };
    struct block k;
    int x = block_begin(&k, b, h, &style);
    weights_skip(b->ws, 0, "ssm_in.weight"); /* attn_qkv and attn_gate say the same */
    for (int l = 0; l < h->n_layer && !b->err->code; l++) {
        if (build_has(b, "blk.%d.ssm_conv1d.weight", l)) block_delta(&k, l, &x);
        else block_attention(&k, l, &x);
        block_feed_forward(&k, l, x, 0);
    }
    block_end(&k, x);
}
