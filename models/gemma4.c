/* gemma4: Gemma 4, with experts (26B-A4B), dense (31B) and small (E2B, E4B).
 * Keys gemma4.*; a period of windowed layers and one that sees everything, each kind with its own
 * heads, rotary base and number of rotated values; RMS norms per head on Q, K and (without weights)
 * V; scores are not scaled; what attention and the feed-forward add is normed; embeddings times the
 * square root of their width; logits capped.
 *
 * Full layers turn neox pairs whose angles rope_freqs divides: by 1e30, which is not at all, where
 * the model leaves values alone ("proportional" rotary positions).  They may have no attn_v: V is
 * what attn_k gives.
 *
 * With experts a layer has a dense unit and the experts side by side, with norms of their own.  The
 * router looks at x itself, normed by ffn_gate_inp.scale and divided by the root of the width;
 * softmax, the chosen weights renormalised, then multiplied by each expert's ffn_down_exps.scale.
 *
 * The small ones: the last attention.shared_kv_layers layers look at K and V of the last layer of
 * their kind before them, and have no own; a prompt's rows that need no logits end there.  And
 * every layer gets, through a gate, its part of an input that a token has beside its embedding. */
#include <math.h>

#include "models/arch.h"

enum { WIDTH_MAX = 1 << 20 };

static const char arch[] = "gemma4";

/* ---- keys ---- */

static bool is_windowed(const struct hparams *h, int l) { return (l + 1) % h->window_period != 0; }

/* attention.sliding_window_pattern, one bool per layer, as a period: its last layer sees all. */
static enum status get_window(const struct gguf *g, struct hparams *h, struct err *e)
{
    static const char key[] = "gemma4.attention.sliding_window_pattern";
    const struct gguf_kv *kv = gguf_find(g, key);
    enum status s = hparams_int(g, arch, "attention.sliding_window", -1, &h->window, e);
    if (s) return s;
    if (!h->window)
        return err_set(e, ERR_RANGE, "%s: key gemma4.attention.sliding_window is 0",
                       gguf_path(g, 0));
    const bool is_list = kv && kv->value.type == GGUF_ARRAY && kv->value.elem != GGUF_STRING &&
                         kv->value.elem != GGUF_F32 && kv->value.elem != GGUF_F64;
    if (!is_list || kv->value.n < (uint64_t)h->n_layer)
        return err_set(e, ERR_MISSING, "%s: key %s is missing or not one bool for each of %d "
                       "layers", gguf_path(g, 0), key, h->n_layer);
    h->window_period = 1;
    while (h->window_period < h->n_layer &&
           gguf_elem_u64(&kv->value, (uint64_t)h->window_period - 1))
        h->window_period++;
    for (int l = 0; l < h->n_layer; l++)
        if ((gguf_elem_u64(&kv->value, (uint64_t)l) != 0) != is_windowed(h, l))
            return err_set_at(e, ERR_UNSUPPORTED, kv->pos, "%s: key %s does not repeat itself at "
                              "layer %d: only windowed layers and then a full one, again and again,"
                              " are supported", gguf_path(g, 0), key, l);
    return OK;
}

/* The number of every layer of one kind, where a key has one for each layer. */
static enum status of_kind(const struct gguf *g, const char *key, const struct hparams *h,
                           bool windowed, int *out, struct err *e)
{
    int first = -1;
    for (int l = 0; l < h->n_layer; l++) {
        int n = 0;
        if (is_windowed(h, l) != windowed) continue;
        enum status s = hparams_of_layer(g, arch, key, l, h->n_heads, &n, e);
        if (s) return s;
        if (first >= 0 && n != first)
            return err_set(e, ERR_UNSUPPORTED, "%s: key gemma4.%s says %d for some %s layers and "
                           "%d for others: that is not supported", gguf_path(g, 0), key, first,
                           windowed ? "windowed" : "full", n);
        first = n;
    }
    if (first >= 0) *out = first;
    return OK;
}

static enum status get_heads(const struct gguf *g, struct hparams *h, struct err *e)
{
    struct gemma_params *m = &h->gemma;
    int dim_v = 0;
    enum status s;
    m->window_kv_heads = h->n_kv_heads;
    if ((s = of_kind(g, "attention.head_count_kv", h, true, &m->window_kv_heads, e)) ||
        (s = of_kind(g, "attention.head_count_kv", h, false, &h->n_kv_heads, e)) ||
        (s = hparams_int(g, arch, "attention.key_length_swa", -1, &m->window_head_dim, e)) ||
        (s = hparams_int(g, arch, "attention.value_length_swa", -1, &dim_v, e)) ||
        (s = hparams_int(g, arch, "rope.dimension_count_swa", h->rope.n_rot, &m->window_n_rot,
                         e)) ||
        (s = hparams_f32(g, arch, "rope.freq_base_swa", 1e4f, &h->window_rope_base, e)))
        return s;
    if (dim_v != m->window_head_dim)
        return err_set(e, ERR_UNSUPPORTED, "%s: K heads of %d and V heads of %d values in windowed "
                       "layers; gemma4 has them equal", gguf_path(g, 0), m->window_head_dim, dim_v);
    return OK;
}

/* Layers with and without their own K and V may differ in the width of their unit. */
static enum status get_widths(const struct gguf *g, struct hparams *h, struct err *e)
{
    static const char key[] = "feed_forward_length";
    int *late = &h->gemma.n_ff_shared_kv;
    enum status s;
    if ((s = hparams_int(g, arch, "attention.shared_kv_layers", 0, &h->n_shared_kv, e)) ||
        (s = hparams_int(g, arch, "embedding_length_per_layer_input", 0, &h->gemma.n_embd_layer,
                         e)) ||
        (s = hparams_of_layer(g, arch, key, 0, -1, &h->n_ff, e)) ||
        (s = hparams_of_layer(g, arch, key, h->n_layer - 1, -1, late, e)))
        return s;
    const int own = h->n_layer - h->n_shared_kv, most = WIDTH_MAX / h->n_layer;
    if (h->n_shared_kv > 0 && own < h->window_period)
        return err_set(e, ERR_UNSUPPORTED, "%s: key gemma4.attention.shared_kv_layers leaves %d "
                       "layers of their own K and V, not a period of %d", gguf_path(g, 0), own,
                       h->window_period);
    if (h->gemma.n_embd_layer > most)
        return err_set(e, ERR_RANGE, "%s: key gemma4.embedding_length_per_layer_input says %d; at "
                       "most %d is possible: the file is damaged", gguf_path(g, 0),
                       h->gemma.n_embd_layer, most);
    for (int l = 0; l < h->n_layer; l++) {
        int n = 0;
        if ((s = hparams_of_layer(g, arch, key, l, -1, &n, e))) return s;
        if (n < 1 || n > WIDTH_MAX || n != (l < own ? h->n_ff : *late))
            return err_set(e, ERR_UNSUPPORTED, "%s: key gemma4.%s says %d for layer %d: that is "
                           "not supported", gguf_path(g, 0), key, n, l);
    }
    return OK;
}

/* The two kinds of layers, each as a model of nothing else. */
static void kinds(const struct hparams *h, struct hparams *full, struct hparams *windowed)
{
    *full = *windowed = *h;
    full->window = 0;
    full->rope_divisor = DIVISOR_ALL;
    windowed->window_period = 0;
    windowed->n_kv_heads = h->gemma.window_kv_heads;
    windowed->head_dim = h->gemma.window_head_dim;
    windowed->rope.n_rot = h->gemma.window_n_rot;
    windowed->rope.base = h->window_rope_base;
    windowed->rope.scale = 1;
}

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    struct hparams full, windowed;
    enum status s;
    if ((s = hparams_common(g, arch, h, e)) || (s = get_window(g, h, e)) ||
        (s = get_heads(g, h, e)) || (s = get_widths(g, h, e)) ||
        (s = hparams_f32(g, arch, "final_logit_softcapping", 0.0f, &h->logit_softcap, e)))
        return s;
    if (h->rope.yarn || h->rope_divisor != DIVISOR_NONE)
        return err_set(e, ERR_UNSUPPORTED, "%s: key gemma4.rope.scaling.type: no scaling but a "
                       "linear one is supported", gguf_path(g, 0));
    h->rope.neox = h->route.normalise = 1;
    h->attn_scale = 1;
    h->embed_scale = sqrtf((float)h->n_embd);
    kinds(h, &full, &windowed);
    s = hparams_check(g, arch, &full, e);
    return s ? s : hparams_check(g, arch, &windowed, e);
}

/* ---- layers ---- */

static int router(struct block *k, int l, int x)
{
    struct build *b = k->b;
    const int embd = k->h->n_embd, ne = k->h->n_expert;
    int n = build_norm(b, "router_norm", x,
                       build_vector(b, "blk.%d.ffn_gate_inp.scale", l, embd), k->h->norm_eps);
    build_scale(b, "router_scale", n, 1.0f / sqrtf((float)embd));
    return build_linear(b, "ffn_gate_inp", n,
                        build_tiles(b, "blk.%d.ffn_gate_inp.weight", l, embd, ne, 1));
}

static void feed_forward(struct block *k, int l, int x)
{
    const struct hparams *h = k->h;
    const int ff = l < h->n_layer - h->n_shared_kv ? h->n_ff : h->gemma.n_ff_shared_kv;
    int o = block_gated_unit(k, l, block_norm(k, "ffn_norm", l, x), "", ff);
    if (h->n_expert) {
        o = block_norm(k, "post_ffw_norm_1", l, o);
        int y = block_experts(k, l, block_norm(k, "pre_ffw_norm_2", l, x), router(k, l, x));
        build_add(k->b, "ffn_experts", block_norm(k, "post_ffw_norm_2", l, y), o);
    }
    build_add(k->b, "ffn_residual", block_norm(k, "post_ffw_norm", l, o), x);
}

/* What a token brings for each layer beside its embedding, [n_layer][n_embd_layer]: a part of its
 * own and a part made of the embedding, normed, their sum over the root of two. */
static int layer_inputs(struct block *k, int x)
{
    struct build *b = k->b;
    const struct hparams *h = k->h;
    const int n = h->gemma.n_embd_layer, all = n * h->n_layer;
    int own = build_embed(b, "layer_embd", "own_inputs",
                          build_rows(b, "per_layer_token_embd.weight", all, h->n_vocab));
    build_scale(b, "in_own_scale", own, sqrtf((float)n));
    int y = build_linear(b, "layer_inputs", x,
                         build_tiles(b, "per_layer_model_proj.weight", 0, h->n_embd, all, 1));
    build_scale(b, "in_scale", y, 1.0f / sqrtf((float)h->n_embd));
    build_head_norm(b, "in_norm", y, build_vector(b, "per_layer_proj_norm.weight", 0, n),
                    h->n_layer, n, h->norm_eps);
    build_add(b, "in_add", own, y);
    build_scale(b, "in_half", y, 1.0f / sqrtf(2.0f));
    return y;
}

static void add_input(struct block *k, int l, int inputs, int x)
{
    struct build *b = k->b;
    const int n = k->h->gemma.n_embd_layer, embd = k->h->n_embd;
    int gate = build_linear(b, "inp_gate", x,
                            build_tiles(b, "blk.%d.inp_gate.weight", l, embd, n, 1));
    int in = build_heads(b, "layer_input", 1, n);
    build_copy_heads(b, "layer_input", inputs, in, (struct copy_heads){1, n, l * n, 0, 0, 0});
    int y = build_linear(b, "inp_proj", build_glu(b, GLU_GELU, gate, in),
                         build_tiles(b, "blk.%d.proj.weight", l, n, embd, 1));
    build_add(b, "input_residual", block_norm(k, "post_norm", l, y), x);
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {
        .qk_norm = QK_NORM_HEAD, .v_norm = true, .attn_post_norm = true, .act = GLU_GELU,
    };
    static const char scale[] = "blk.%d.layer_output_scale.weight";
    static const char *const spare[] = {"attn_k.weight", "attn_v.weight", "attn_k_norm.weight"};
    struct hparams of[2];
    struct block kind[2]; /* full, windowed */
    kinds(h, &of[0], &of[1]);
    int x = block_begin(&kind[0], b, &of[0], &style);
    kind[1] = (struct block){.b = b, .h = &of[1], .style = &style};
    block_rope_tables(&kind[1]);
    int inputs = h->gemma.n_embd_layer ? layer_inputs(&kind[0], x) : 0;
    /* Files may keep what the layers without K and V of their own were trained beside. */
    for (int i = 0; i < 3 && h->n_shared_kv; i++)
        weights_skip(b->ws, h->n_layer - h->n_shared_kv, spare[i]);
    for (int l = 0; l < h->n_layer && !b->err->code; l++) {
        struct block *k = &kind[is_windowed(h, l)];
        const int before = b->rows;
        block_attention(k, l, &x);
        if (inputs && b->rows != before) inputs = build_select(b, "layer_inputs", inputs);
        feed_forward(k, l, x);
        if (inputs) add_input(k, l, inputs, x);
        if (build_has(b, scale, l))
            build_scale_by(b, "layer_scale", x, build_vector(b, scale, l, 1));
    }
    block_end(&kind[0], x);
}

const struct arch arch_gemma4 = {arch, "Gemma 4: 26B-A4B, 31B, E2B, E4B", hparams, describe};
