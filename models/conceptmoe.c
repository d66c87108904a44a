/* conceptmoe: ConceptMoE (arXiv 2601.21420), a mixture-of-experts Llama whose middle layers see
 * concepts: neighbouring tokens that resemble each other are merged into one row.  Describes only.
 *
 * Keys conceptmoe.* as qwen3moe's (block_count: all physical layers, expert_gating_func as others
 * have it) and conceptmoe.concept.*:
 *   encoder_block_count, decoder_block_count  the first and the last layers, which see every token;
 *                         those between them are the concept network
 *   target_ratio          tokens per concept that training aimed at, 1 or more; what a text has is
 *                         measured
 *   threshold             chance of a boundary from which on there is one; absent: 0.5
 *   query                 "current" or "previous": which token's W_q meets the other one's W_k
 *   reduce                "last" or "sum": a concept is its span's last token, or all of them
 *   joint_decoding        absent: true
 *   ema_recursive         true; the other reading of the paper's equation is refused
 *   embedding_length, attention.head_count, attention.head_count_kv, feed_forward_length,
 *   expert_feed_forward_length, expert_used_count  of the concept network; absent: the model's
 *   loop.first, loop.count, loop.times  concept layers first .. first + count - 1 run so many times
 *                         as a group, each time with K and V of their own
 * Tensors concept.router_q and router_k; concept.up and concept.down where the width changes;
 * blk.N.attn_{q,k,v}_concept of the decoder's layers with joint decoding; blk.N once for each
 * physical layer, with norms per head of Q and K where a file has them; neox rotary pairs, in the
 * concept network by the concept's number.
 *
 * A token begins a boundary where (1 - cos(W_q h, W_k h of the token before)) / 2 reaches the
 * threshold, h being what the encoder gives; the first one always does.  A boundary closes the span
 * of tokens since the last one, itself included, so that a concept never knows what comes later; from
 * this token on the decoder sees what the concept network has made of it, smoothed by the chances.
 * The concept network's rows are a row set, with a timeline of their own. */
#include <string.h>

#include "models/arch.h"

static const char arch[] = "conceptmoe";

/* ---- keys ---- */

static enum status one_of_two(const struct gguf *g, const char *key, const char *no, const char *yes,
                              bool *out, struct err *e)
{
    struct gguf_str s;
    *out = false;
    if (!gguf_find(g, key)) return OK;
    enum status st = gguf_get_str(g, key, &s, e);
    if (st) return st;
    *out = gguf_str_is(s, yes);
    if (*out || gguf_str_is(s, no)) return OK;
    return err_set(e, ERR_UNSUPPORTED, "%s: key %s says \"%.*s\"; known are %s and %s",
                   gguf_path(g, 0), key, (int)(s.n < 32 ? s.n : 32), s.s, no, yes);
}

static enum status get_layers(const struct gguf *g, struct hparams *h, struct err *e)
{
    struct concept_params *p = &h->concept;
    enum status s;
    if ((s = hparams_int(g, arch, "concept.encoder_block_count", -1, &p->n_encoder, e)) ||
        (s = hparams_int(g, arch, "concept.decoder_block_count", -1, &p->n_decoder, e)))
        return s;
    if (p->n_encoder < 1 || p->n_decoder < 1 || p->n_encoder >= h->n_layer - p->n_decoder)
        return err_set(e, ERR_RANGE, "%s: keys conceptmoe.concept.encoder_block_count and "
                       "decoder_block_count say %d and %d; each is 1 or more, and of the %d layers of "
                       "conceptmoe.block_count one at least is left between them", gguf_path(g, 0),
                       p->n_encoder, p->n_decoder, h->n_layer);
    const int n = h->n_layer - p->n_encoder - p->n_decoder;
    if ((s = hparams_int(g, arch, "concept.loop.first", 0, &p->loop_first, e)) ||
        (s = hparams_int(g, arch, "concept.loop.count", 0, &p->loop_count, e)) ||
        (s = hparams_int(g, arch, "concept.loop.times", 1, &p->loop_times, e)))
        return s;
    if (p->loop_first > n || p->loop_count > n - p->loop_first || p->loop_times < 1 ||
        p->loop_times > LOOPS_MAX)
        return err_set(e, ERR_RANGE, "%s: keys conceptmoe.concept.loop.first, count and times say %d, "
                       "%d and %d; the concept network has %d layers, which run 1 to %d times",
                       gguf_path(g, 0), p->loop_first, p->loop_count, p->loop_times, n, LOOPS_MAX);
    return OK;
}

static enum status get_boundaries(const struct gguf *g, struct hparams *h, struct err *e)
{
    struct concept_params *p = &h->concept;
    bool recursive;
    enum status s;
    if ((s = hparams_f32(g, arch, "concept.target_ratio", -1, &p->ratio, e)) ||
        (s = hparams_f32(g, arch, "concept.threshold", 0.5f, &p->threshold, e)) ||
        (s = hparams_bool(g, arch, "concept.ema_recursive", true, &recursive, e)) ||
        (s = hparams_bool(g, arch, "concept.joint_decoding", true, &p->joint, e)) ||
        (s = one_of_two(g, "conceptmoe.concept.query", "current", "previous", &p->previous, e)) ||
        (s = one_of_two(g, "conceptmoe.concept.reduce", "last", "sum", &p->sum, e)))
        return s;
    if (!(p->ratio >= 1) || p->ratio > 1e6f)
        return err_set(e, ERR_RANGE, "%s: key conceptmoe.concept.target_ratio says %g; a concept is of "
                       "1 to 1e6 tokens", gguf_path(g, 0), (double)p->ratio);
    if (!(p->threshold >= 0 && p->threshold <= 1))
        return err_set(e, ERR_RANGE, "%s: key conceptmoe.concept.threshold says %g; a chance is from 0 "
                       "to 1", gguf_path(g, 0), (double)p->threshold);
    if (!recursive)
        return err_set(e, ERR_UNSUPPORTED, "%s: key conceptmoe.concept.ema_recursive is false; concepts "
                       "are smoothed from the smoothed one before", gguf_path(g, 0));
    return OK;
}

/* The concept network's own sizes, in a description's terms. */
static struct hparams network(const struct hparams *h)
{
    const struct concept_params *p = &h->concept;
    struct hparams c = *h;
    c.n_embd = p->n_embd;
    c.n_heads = p->n_heads;
    c.n_kv_heads = p->n_kv_heads;
    c.n_ff = p->n_ff;
    c.n_ff_expert = p->n_ff_expert;
    c.n_expert_used = c.route.n_used = p->n_used;
    return c;
}

static enum status get_network(const struct gguf *g, struct hparams *h, struct err *e)
{
    struct concept_params *p = &h->concept;
    enum status s;
    if ((s = hparams_int(g, arch, "concept.embedding_length", h->n_embd, &p->n_embd, e)) ||
        (s = hparams_int(g, arch, "concept.attention.head_count", h->n_heads, &p->n_heads, e)) ||
        (s = hparams_int(g, arch, "concept.attention.head_count_kv", h->n_kv_heads, &p->n_kv_heads,
                         e)) ||
        (s = hparams_int(g, arch, "concept.feed_forward_length", h->n_ff, &p->n_ff, e)) ||
        (s = hparams_int(g, arch, "concept.expert_feed_forward_length", h->n_ff_expert,
                         &p->n_ff_expert, e)) ||
        (s = hparams_int(g, arch, "concept.expert_used_count", h->n_expert_used, &p->n_used, e)))
        return s;
    const struct hparams c = network(h);
    if ((s = hparams_check(g, "conceptmoe.concept", &c, e))) return s;
    /* What is as large as the larger of both is sized by it. */
    if (p->n_used > h->n_expert_used) h->n_expert_used = p->n_used;
    return OK;
}

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    enum status s;
    if ((s = hparams_common(g, arch, h, e)) || (s = hparams_router(g, arch, 1, h, e)) ||
        (s = get_layers(g, h, e)) || (s = get_boundaries(g, h, e)))
        return s;
    h->rope.neox = 1;
    return get_network(g, h, e);
}

/* ---- layers ---- */

/* Who begins a concept; returns the chances. */
static int boundaries(struct block *k, int x, int set)
{
    struct build *b = k->b;
    const struct concept_params *p = &k->h->concept;
    const int n = k->h->n_embd;
    const int q = build_router(b, "router_q", "concept.router_q.weight", n, x);
    const int key = build_router(b, "router_k", "concept.router_k.weight", n, x);
    build_l2_norm(b, "router_q", q, 1, n, 1e-12f);
    build_l2_norm(b, "router_k", key, 1, n, 1e-12f);
    return build_boundary(b, "boundary", p->previous ? key : q, p->previous ? q : key,
                          (struct depth_params){.rule = DEPTH_BOUNDARY, .set = set, .step = 1,
                                                .n_steps = 1, .at = p->threshold});
}

/* The concept network over the rows at hand. */
static int concepts(struct block *c, int x)
{
    struct build *b = c->b;
    const struct concept_params *p = &c->h->concept;
    const int n = c->h->n_layer - p->n_encoder - p->n_decoder, d = c->h->n_embd;
    const int end = p->loop_first + p->loop_count, was = b->err->code ? 0 : b->buf[x].width;
    if (d != was) x = build_linear(b, "concept_up", x, build_tiles(b, "concept.up.weight", 0, was, d, 1));
    build_foresee(b, x);
    for (int l = 0, times = 1; l < n && !b->err->code; l++) {
        block_layer(c, p->n_encoder + l, &x);
        if (l + 1 == end && p->loop_count && times < p->loop_times) {
            times++;
            l = p->loop_first - 1;
        }
    }
    b->at_layer = -1;
    if (d != was) x = build_linear(b, "concept_down", x,
                                   build_tiles(b, "concept.down.weight", 0, d, was, 1));
    return x;
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {.qk_norm = QK_NORM_HEAD, .qk_norm_optional = true};
    const struct concept_params *p = &h->concept;
    const struct hparams hc = network(h);
    struct block k, c = {.b = b, .h = &hc, .style = &style, .more = true};
    int x = block_begin(&k, b, h, &style);
    k.more = true;
    for (int l = 0; l < p->n_encoder && !b->err->code; l++) block_layer(&k, l, &x);
    b->at_layer = -1;
    b->depth_first = 0;
    b->n_depth = 1;
    const int set = build_row_set(b, "chunk", 1 / (double)p->ratio);
    const int chance = boundaries(&k, x, set);
    const int span = p->sum ? build_span(b, "span", x, set) : x;
    b->rows = set;
    const int y = concepts(&c, build_select(b, "concept", span));
    b->rows = ROWS_ALL;
    const int smooth = build_smooth(b, "smooth", y, chance, 0);
    build_add(b, "concept", smooth, x);
    build_foresee(b, x);
    k.joint = p->joint ? smooth : 0;
    for (int l = h->n_layer - p->n_decoder; l < h->n_layer && !b->err->code; l++) {
        k.more = l + 1 < h->n_layer;
        block_layer(&k, l, &x);
    }
    block_end(&k, x);
}

const struct arch arch_conceptmoe = {arch, "ConceptMoE: similar tokens merge into concepts", hparams,
                                     describe};
