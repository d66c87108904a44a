/* mor: mixture-of-recursions (arXiv 2507.10524), a Llama whose middle layers run up to
 * mor.recursion.count times over the same weights, as many times as a router gives each token.
 *
 * Keys mor.* as llama's (block_count: physical layers) and mor.recursion.*:
 *   count            recursions
 *   sharing          "cycle" and "middle_cycle": the block as a whole is repeated; "sequence" and
 *                    "middle_sequence": each of its layers at its place.  middle_ keeps the first
 *                    and the last layer out of it
 *   block_first, block_count  physical layers before the block and in it, which follow from these
 *   router           "expert", "token" or "none"; router_func "sigmoid", "tanh", "identity" or, of
 *                    tokens, "softmax"; alpha, temp
 *   threshold        [count]; absent: 0.5 of a sigmoid, else 0
 *   capacity         [count]; absent: (count - r + 1) / count
 *   kv               "per_step": each recursion has K and V of the tokens that are in it; "shared":
 *                    those of a layer's first run, of all tokens; "shared_update": in each recursion
 *                    its tokens' own, and of the others the first recursion's
 *   gated, gate_every_step
 * Tensors rec.R.router.weight (R from 1; rec.R.aux.weight decides in its place who goes on), or
 * rec.router.weight and .bias; blk.N once for each physical layer, with norms per head of Q and K
 * where a file has them; neox rotary pairs.
 *
 * Expert choice: recursion r keeps some of the rows of recursion r - 1.  By default those whose score
 * is at the threshold or above, which a token knows without the text that follows; hparams.rec.exact
 * takes the best share of a whole text instead, as in training.  Token choice: a token chooses its
 * depth once, before the block.  Every recursion's rows are a row set of their own.
 *
 * Shared K and V are those of every token, and so a recursion in which a layer runs for the first time
 * is run with all rows, as in the released code: with "cycle" the first one, with "sequence" nearly
 * every one, which is slower than "per_step".  What a row that has stopped is there: expert choice, its
 * residual stream; token choice, what it came into its last recursion with.  "shared_update" needs a
 * slot for each recursion: in the released code what the first recursion left is not lost either. */
#include <stdio.h>
#include <string.h>

#include "models/arch.h"

static const char arch[] = "mor";

/* ---- keys ---- */

/* One float for each recursion, in [lo, hi]; absent: out stays. */
static enum status floats(const struct gguf *g, const char *key, int n, float lo, float hi,
                          float *out, struct err *e)
{
    const struct gguf_kv *kv = gguf_find(g, key);
    if (!kv) return OK;
    if (kv->value.type != GGUF_ARRAY || kv->value.elem != GGUF_F32)
        return err_set_at(e, ERR_FORMAT, kv->pos, "%s: key %s is no list of f32",
                          gguf_path(g, 0), key);
    if (kv->value.n != (uint64_t)n)
        return err_set_at(e, ERR_SHAPE, kv->pos, "%s: key %s has %llu values, but "
                          "mor.recursion.count says %d: one for each recursion is needed",
                          gguf_path(g, 0), key, (unsigned long long)kv->value.n, n);
    for (int i = 0; i < n; i++) {
        out[i] = (float)gguf_elem_f64(&kv->value, (uint64_t)i);
        if (!(out[i] >= lo && out[i] <= hi))
            return err_set_at(e, ERR_RANGE, kv->pos, "%s: key %s: %g for recursion %d; %g to %g is "
                              "possible", gguf_path(g, 0), key, (double)out[i], i + 1, (double)lo,
                              (double)hi);
    }
    return OK;
}

static enum status get_layers(const struct gguf *g, struct hparams *h, struct err *e)
{
    static const char *const sharing[] = {"middle_cycle", "cycle", "middle_sequence", "sequence",
                                          NULL};
    struct recursion_params *p = &h->rec;
    int kind, first, n_block;
    enum status s;
    if ((s = hparams_int(g, arch, "recursion.count", -1, &p->n, e)) ||
        (s = hparams_one_of(g, arch, "recursion.sharing", sharing, &kind, e)))
        return s;
    if (p->n < 1 || p->n > RECURSIONS_MAX)
        return err_set(e, ERR_RANGE, "%s: key mor.recursion.count says %d; 1 to %d are possible",
                       gguf_path(g, 0), p->n, RECURSIONS_MAX);
    const int ends = kind % 2 == 0 ? 1 : 0;
    p->in_place = kind >= 2;
    p->first = ends;
    p->n_block = h->n_layer - 2 * ends;
    if ((s = hparams_int(g, arch, "recursion.block_first", p->first, &first, e)) ||
        (s = hparams_int(g, arch, "recursion.block_count", p->n_block, &n_block, e)))
        return s;
    if (p->n_block < 1 || first != p->first || n_block != p->n_block)
        return err_set(e, ERR_SHAPE, "%s: keys mor.recursion.block_first and block_count say %d and "
                       "%d; with sharing \"%s\" and %d physical layers they are %d and %d",
                       gguf_path(g, 0), first, n_block, sharing[kind], h->n_layer, p->first,
                       p->n_block);
    return OK;
}

static enum status get_router(const struct gguf *g, struct hparams *h, struct err *e)
{
    static const char *const routers[] = {"expert", "token", "none", NULL};
    static const char *const funcs[] = {"sigmoid", "tanh", "identity", "softmax", NULL};
    static const enum depth_score scores[] = {DEPTH_SIGMOID, DEPTH_TANH, DEPTH_IDENTITY,
                                              DEPTH_SOFTMAX};
    static const int kinds[] = {ROUTER_EXPERT, ROUTER_TOKEN, ROUTER_NONE};
    struct recursion_params *p = &h->rec;
    int router, func;
    enum status s;
    if ((s = hparams_one_of(g, arch, "recursion.router", routers, &router, e)) ||
        (s = hparams_one_of(g, arch, "recursion.router_func", funcs, &func, e)))
        return s;
    p->router = kinds[router];
    if (p->router == ROUTER_TOKEN && !hparams_has(g, arch, "recursion.router_func")) func = 3;
    p->score = scores[func];
    if (p->router != ROUTER_NONE && (p->router == ROUTER_EXPERT ? func == 3 : func == 1 || func == 2))
        return err_set(e, ERR_UNSUPPORTED, "%s: key mor.recursion.router_func says \"%s\", which no "
                       "%s router has", gguf_path(g, 0), funcs[func], routers[router]);
    if ((s = hparams_f32(g, arch, "recursion.alpha", func == 3 ? 1.0f : 0.1f, &p->alpha, e)) ||
        (s = hparams_f32(g, arch, "recursion.temp", 1.0f, &p->temp, e)) ||
        (s = hparams_bool(g, arch, "recursion.gated", true, &p->gated, e)) ||
        (s = hparams_bool(g, arch, "recursion.gate_every_step", false, &p->gate_every_step, e)))
        return s;
    if (!(p->alpha > 0) || !(p->temp > 0))
        return err_set(e, ERR_RANGE, "%s: keys mor.recursion.alpha and temp must be positive",
                       gguf_path(g, 0));
    if (p->router == ROUTER_TOKEN && !p->gated)
        return err_set(e, ERR_UNSUPPORTED, "%s: key mor.recursion.gated is false, which a token "
                       "router cannot be", gguf_path(g, 0));
    for (int i = 0; i < p->n; i++) {
        p->threshold[i] = p->score == DEPTH_SIGMOID ? 0.5f : 0.0f;
        p->capacity[i] = (float)(p->n - i) / (float)p->n;
    }
    if ((s = floats(g, "mor.recursion.threshold", p->n, -1e30f, 1e30f, p->threshold, e))) return s;
    return floats(g, "mor.recursion.capacity", p->n, 0, 1, p->capacity, e);
}

static enum status get_kv(const struct gguf *g, struct hparams *h, struct err *e)
{
    static const char *const kinds[] = {"per_step", "shared", "shared_update", NULL};
    struct recursion_params *p = &h->rec;
    int kind;
    enum status s = hparams_one_of(g, arch, "recursion.kv", kinds, &kind, e);
    if (s) return s;
    p->shared_kv = kind > 0;
    p->update_kv = kind == 2;
    if (p->update_kv && (p->router != ROUTER_EXPERT || p->in_place))
        return err_set(e, ERR_UNSUPPORTED, "%s: key mor.recursion.kv says \"shared_update\", which is "
                       "defined for expert choice over a block that is repeated as a whole only",
                       gguf_path(g, 0));
    return OK;
}

static enum status hparams(const struct gguf *g, struct hparams *h, struct err *e)
{
    enum status s;
    if ((s = hparams_common(g, arch, h, e)) || (s = get_layers(g, h, e)) ||
        (s = get_router(g, h, e)))
        return s;
    h->rope.neox = 1;
    return get_kv(g, h, e);
}

/* ---- layers ---- */

/* A model being described: slot of each physical layer's K and V, when they are shared, and where the
 * slots of all recursions begin, when each has its own. */
struct mor {
    struct block k;
    int slot[LAYERS_MAX], first_slot;
};

static int layer_of(const struct recursion_params *p, int r, int i)
{
    return p->in_place ? ((r - 1) * p->n_block + i) / p->n : i;
}

/* Does a layer of recursion r leave K and V that later ones look at? */
static bool leaves_shared(const struct mor *m, int r)
{
    const struct recursion_params *p = &m->k.h->rec;
    for (int i = 0; p->shared_kv && i < p->n_block; i++)
        if (m->slot[layer_of(p, r, i)] < 0) return true;
    return false;
}

/* Recursion r, from 1: layers (r - 1) n_block .. of the unrolled block over the rows at hand. */
static void recursion(struct mor *m, int r, int *x)
{
    struct block *k = &m->k;
    const struct recursion_params *p = &k->h->rec;
    for (int i = 0; i < p->n_block && !k->b->err->code; i++) {
        const int l = layer_of(p, r, i);
        const bool seen = p->shared_kv && m->slot[l] >= 0;
        k->use_slot = seen ? m->slot[l] + 1 : 0;
        k->reads_slot = seen;
        if (p->update_kv) {
            k->use_slot = 1 + m->first_slot + (r - 1) * p->n_block + i;
            k->reads_slot = false;
        }
        block_layer(k, p->first + l, x);
        m->slot[l] = k->slot;
    }
    k->use_slot = 0;
    k->reads_slot = false;
    k->b->at_layer = -1;
}

static int router_linear(struct block *k, const char *name, int r, int n, int x)
{
    char full[64];
    (void)snprintf(full, sizeof full, name, r);
    int u = build_router(k->b, "router", full, n, x);
    if (k->h->rec.temp < 1 || k->h->rec.temp > 1)
        build_scale(k->b, "router_temp", u, 1.0f / k->h->rec.temp);
    return u;
}

static int set_of(struct block *k, int r)
{
    char name[24];
    (void)snprintf(name, sizeof name, "rec%d", r);
    return build_row_set(k->b, name, (double)k->h->rec.capacity[r - 1]);
}

static void expert_choice(struct mor *m, int x)
{
    struct block *k = &m->k;
    struct build *b = k->b;
    const struct recursion_params *p = &k->h->rec;
    b->depth_first = 0;
    b->n_depth = p->n;
    m->first_slot = b->n_slot;
    for (int i = 0; p->update_kv && i < p->n * p->n_block; i++) (void)block_kv_slot(k);
    for (int r = 1; r <= p->n && !b->err->code; r++) {
        static const char aux[] = "rec.%d.aux.weight";
        char name[64];
        int in = build_select(b, "h", x);
        int u = router_linear(k, "rec.%d.router.weight", r, 1, in), other = 0;
        (void)snprintf(name, sizeof name, aux, r);
        if (build_has(b, name, 0)) other = router_linear(k, aux, r, 1, in);
        const int set = set_of(k, r);
        int score = build_depth(b, "router", u, other, 1, (struct depth_params){
            .rule = DEPTH_SCORE, .score = p->score, .set = set, .step = r, .n_steps = p->n,
            .at = p->threshold[r - 1], .share = p->exact ? p->capacity[r - 1] : 0,
        });
        b->rows = leaves_shared(m, r) ? ROWS_ALL : set;
        if (b->rows == set || r > 1) in = build_select(b, "h", x);
        if (p->update_kv && r > 1) build_kv_carry(b, m->first_slot, p->n_block, r, 1);
        recursion(m, r, &in);
        b->rows = set;
        build_scatter(b, "recursion", in, x, p->gated ? score : -1, 0, p->gated ? p->alpha : 1);
    }
}

static void token_choice(struct mor *m, int x)
{
    struct block *k = &m->k;
    struct build *b = k->b;
    const struct recursion_params *p = &k->h->rec;
    b->depth_first = 1;
    b->n_depth = p->n;
    int u = router_linear(k, "rec.router.weight", 0, p->n, x);
    int chosen = build_depth(b, "router", u, 0, 1 + 2 * p->n, (struct depth_params){
        .rule = DEPTH_CHOOSE, .score = p->score, .n_steps = p->n, .alpha = p->alpha,
    });
    if (build_has(b, "rec.router.bias", 0) && !b->err->code)
        b->op[b->n_op - 1].weight[0] = build_vector(b, "rec.router.bias", 0, p->n);
    const bool all = p->shared_kv && p->in_place;
    int y = build_select(b, "h", x), h = all ? build_select(b, "h_all", x) : 0;
    for (int r = 1; r <= p->n && !b->err->code; r++) {
        if (r > 1) {
            const int set = set_of(k, r);
            (void)build_depth(b, "router", chosen, 0, 0, (struct depth_params){
                .rule = DEPTH_REACH, .set = set, .step = r, .n_steps = p->n,
            });
            b->rows = set;
            if (!all || p->gate_every_step) y = build_select(b, "h", y);
            if (p->gate_every_step) build_put(b, "gate", y, y, chosen, p->n + r - 1);
            if (all) {
                build_put(b, "h_all", y, h, -1, 0);
                if (leaves_shared(m, r)) b->rows = ROWS_ALL;
                y = build_select(b, "h", h);
            }
        }
        recursion(m, r, &y);
        build_scatter(b, "recursion", y, x, chosen, r, 1);
    }
}

static void no_choice(struct mor *m, int *x)
{
    for (int r = 1; r <= m->k.h->rec.n; r++) recursion(m, r, x);
}

static void describe(struct build *b, const struct hparams *h)
{
    static const struct block_style style = {.qk_norm = QK_NORM_HEAD, .qk_norm_optional = true};
    const struct recursion_params *p = &h->rec;
    struct mor m;
    for (int l = 0; l < LAYERS_MAX; l++) m.slot[l] = -1;
    int x = block_begin(&m.k, b, h, &style);
    m.k.more = true;
    for (int l = 0; l < p->first; l++) block_layer(&m.k, l, &x);
    b->at_layer = -1;
    if (p->router == ROUTER_EXPERT) expert_choice(&m, x);
    else if (p->router == ROUTER_TOKEN) token_choice(&m, x);
    else no_choice(&m, &x);
    b->rows = ROWS_ALL;
    m.k.more = false;
    for (int l = p->first + p->n_block; l < h->n_layer; l++) block_layer(&m.k, l, &x);
    if (b->rows == ROWS_ALL) {
        b->rows = ROWS_OUT;
        x = build_select(b, "x_out", x);
    }
    block_end(&m.k, x);
}

const struct arch arch_mor = {arch, "mixture-of-recursions (Llama blocks)", hparams, describe};
