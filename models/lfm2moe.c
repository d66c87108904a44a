/* lfm2moe: LFM2-8B-A1B and 24B-A2B.  Keys lfm2moe.*; most layers mix by a short convolution between
 * two gates, out = C * conv(B * x) with B, C and x from one projection; those that have
 * attn_q attend, with RMS norm per head on Q and K and neox rotary pairs.  The first layers have
 * a dense feed-forward, the others experts chosen by sigmoid scores plus a bias, the chosen scores
 * renormalised without it.  The last norm is called token_embd_norm. */
#include "models/arch.h"

enum { TAPS_MAX = 8 };

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    static const char arch[] = "lfm2moe";
    enum status s;
    if ((s = hparams_common(g, arch, h, e)) || (s = hparams_need_experts(g, arch, h, e)) ||
        (s = hparams_router(g, arch, -1, h, e)) ||
        (s = hparams_int(g, arch, "shortconv.l_cache", -1, &h->delta.taps, e)))
        return s;
    if (h->delta.taps < 2 || h->delta.taps > TAPS_MAX)
        return err_set(e, ERR_RANGE, "%s: key lfm2moe.shortconv.l_cache says %d; 2 to %d is "
                       "possible", gguf_path(g, 0), h->delta.taps, TAPS_MAX);
    h->rope.neox = 1;
    h->route.normalise = 1;
    return OK;
}

static void short_conv(struct block *k, int l, int *x)
{
    static const char *const names[3] = {"b", "c", "x"};
    static const char in[] = "blk.%d.shortconv.in_proj.weight";
    struct build *b = k->b;
    const int embd = k->h->n_embd, taps = k->h->delta.taps;
    const int slot = build_kv_slot(b, (struct kv_slot){
        .type = KV_SLOT_RECURRENT, .dim = embd, .dim_v = taps - 1,
    });
    build_layer(b);
    int n = build_norm(b, "attn_norm", *x, build_vector(b, "blk.%d.attn_norm.weight", l, embd),
                       k->h->norm_eps);
    int w[3], y[3];
    for (int i = 0; i < 3; i++)
        w[i] = build_tiles_part(b, in, l, embd, 3 * embd, i * embd, embd, 1);
    build_linears(b, "in_proj", n, 3, w, names, y);
    build_mul(b, "gate_in", y[0], y[2]);
    build_conv(b, y[2], build_vectors(b, "blk.%d.shortconv.conv.weight", l, taps, embd), taps,
               false, slot);
    if (l == k->h->n_layer - 1) {
        b->rows = ROWS_OUT;
        *x = build_select(b, "x_out", *x);
        y[1] = build_select(b, "c", y[1]);
        y[2] = build_select(b, "x", y[2]);
    }
    build_mul(b, "gate_out", y[1], y[2]);
    int o = build_linear(b, "out_proj", y[2],
                         build_tiles(b, "blk.%d.shortconv.out_proj.weight", l, embd, embd, 1));
    build_add(b, "attn_residual", o, *x);
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {
        .qk_norm = QK_NORM_HEAD, .output_norm = "token_embd_norm.weight",
        .must = MUST_CHOOSE_BIAS,
    };
    struct block k;
    int x = block_begin(&k, b, h, &style);
    for (int l = 0; l < h->n_layer && !b->err->code; l++) {
        if (build_has(b, "blk.%d.shortconv.conv.weight", l)) short_conv(&k, l, &x);
        else block_attention(&k, l, &x);
        block_feed_forward(&k, l, x, 0);
    }
    block_end(&k, x);
}

const struct arch arch_lfm2moe = {"lfm2moe", "LFM2 Mixture-of-Experts", hparams, describe};
