/* See denoise.h.
 *
 * DESIGN.  A text is prompt, settled tokens and hidden ones.  Every pass computes rows from .. to of
 * it against the session's timeline and asks for logits of the rows that hidden places of the current
 * block are read at, and no others.  Where every row sees every other (SEES_ALL), `from` is 0 and the
 * pass is exact; with a cache, the first pass of a block is, and later ones leave K and V of what is
 * outside as that pass left them.  Where rows see to the end of their block only, blocks are the
 * model's own: K and V of a block whose tokens are all settled do not change any more, so passes begin
 * at the first block that was not settled when it was last computed (`clean`), and end with the current
 * one.  Experts that choose tokens compare all rows of a pass, so for them only whole passes are exact.
 *
 * A pass that would settle nothing is not run: nothing would be different after it. */
#include "moe/run/denoise.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "moe/run/engine_int.h"

static const double T_LAST = 1e-3;
enum { LENGTH_DEFAULT = 128, BLOCK_DEFAULT = 32, ENDS_MAX = 16 };

/* ---- decisions ---- */

int denoise_transfer(int m, int s, int n) { return m / n + (s < m % n); }

static double time_at(int s, int n) { return 1 + (T_LAST - 1) * s / n; }

double denoise_ratio(int s, int n)
{
    return s == n - 1 ? 1 : 1 - time_at(s + 1, n) / time_at(s, n);
}

static bool is_dream(enum tessera_denoise_alg alg) { return alg >= TESSERA_ALG_ORIGIN; }

static double value(float logit) { return isnan(logit) ? -INFINITY : (double)logit; }

/* -ln(-ln U): adding it to logits and taking the largest draws from their softmax. */
static double gumbel(struct rng *r)
{
    const double u = rng_f64(r);
    return -log(-log(u > 0 ? u : 0x1p-54));
}

static struct denoise_pick choose_llada(const struct denoise_rule *rule, const float *logits, int n,
                                        struct rng *r)
{
    const double temp = rule->temp > 0 ? (double)rule->temp : 0;
    struct denoise_pick p = {.id = 0};
    double best = -INFINITY, top = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++) {
        const double x = value(logits[i]), y = temp > 0 ? x + temp * gumbel(r) : x;
        if (y > best) {
            best = y;
            p.id = i;
        }
        if (x > top) top = x;
    }
    for (int i = 0; i < n && top > -INFINITY; i++) sum += exp(value(logits[i]) - top);
    p.confidence = sum > 0 ? exp(value(logits[p.id]) - top) / sum : 0;
    if (rule->alg == TESSERA_ALG_RANDOM) p.confidence = rng_f64(r);
    return p;
}

static int likelier(const void *a, const void *b)
{
    const struct sampler_cand *x = a, *y = b;
    if (x->p > y->p || x->p < y->p) return x->p > y->p ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int normalise(struct sampler_cand *c, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += c[i].p;
    for (int i = 0; i < n && sum > 0; i++) c[i].p /= sum;
    return n;
}

/* Probabilities of what top-p and then top-k leave, likeliest first if one of them is on. */
static int candidates(const struct denoise_rule *rule, const float *logits, int n,
                      struct sampler_cand *c)
{
    const double temp = rule->temp > 0 ? (double)rule->temp : 1;
    double top = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++)
        if (value(logits[i]) > top) top = value(logits[i]);
    for (int i = 0; i < n; i++) {
        c[i].id = i;
        c[i].p = top > -INFINITY ? exp((value(logits[i]) - top) / temp) : 0;
    }
    n = normalise(c, n);
    const bool by_p = rule->top_p < 1, by_k = rule->top_k > 0 && rule->top_k < n;
    if (!by_p && !by_k) return n;
    qsort(c, (size_t)n, sizeof *c, likelier);
    int keep = n;
    if (by_p)
        for (keep = 0; keep < n && (!keep || sum <= (double)rule->top_p); keep++) sum += c[keep].p;
    if (by_k && rule->top_k < keep) keep = rule->top_k;
    return normalise(c, keep);
}

static struct denoise_pick choose_dream(const struct denoise_rule *rule, const float *logits,
                                        int n_vocab, struct rng *r, struct sampler_cand *c)
{
    const int n = candidates(rule, logits, n_vocab, c);
    int best = 0, next = -1;
    for (int i = 1; i < n; i++) {
        if (c[i].p > c[best].p) {
            next = best;
            best = i;
        } else if (next < 0 || c[i].p > c[next].p) {
            next = i;
        }
    }
    int pick = best;
    if (rule->temp > 0) {
        double u = rng_f64(r);
        for (pick = 0; pick < n - 1 && (u -= c[pick].p) >= 0;) pick++;
        while (pick > 0 && !(c[pick].p > 0)) pick--;
    }
    struct denoise_pick p = {c[pick].id, c[pick].p};
    if (rule->alg == TESSERA_ALG_TOPK_MARGIN) p.confidence = c[best].p - (next < 0 ? 0 : c[next].p);
    if (rule->alg == TESSERA_ALG_ENTROPY) {
        p.confidence = 0;
        for (int i = 0; i < n; i++)
            if (c[i].p > 0) p.confidence += c[i].p * log(c[i].p);
    }
    return p;
}

struct denoise_pick denoise_choose(const struct denoise_rule *rule, const float *logits, int n_vocab,
                                   struct rng *r, struct sampler_cand *cand)
{
    return is_dream(rule->alg) ? choose_dream(rule, logits, n_vocab, r, cand)
                               : choose_llada(rule, logits, n_vocab, r);
}

void denoise_best(const struct denoise_pick *pick, const unsigned char *hidden, int n, int k,
                  unsigned char *settle)
{
    memset(settle, 0, (size_t)n);
    for (; k > 0; k--) {
        int best = -1;
        for (int i = 0; i < n; i++)
            if (hidden[i] && !settle[i] &&
                (best < 0 || pick[i].confidence > pick[best].confidence)) best = i;
        if (best < 0) return;
        settle[best] = 1;
    }
}

/* ---- a text being denoised ---- */

struct denoise {
    struct tessera_session *s;
    struct tessera_denoising opt;  /* resolved */
    struct denoise_rule rule;
    int32_t *text;                 /* [n] */
    unsigned char *hidden;         /* [n] */
    unsigned char *settle, *want;  /* [n] of this pass: what settles; rows with logits */
    struct denoise_pick *pick;     /* [n] */
    int n_prompt, n, settled;
    int mask, shift;               /* shift 1: place i is read at row i - 1 */
    int block0, block1, n_hidden;  /* the current block, and what is hidden of it */
    int block_no, n_blocks;
    int step, n_steps, m0;         /* within the block; hidden when it began */
    int k;                         /* how many this pass settles; -1: marked in settle already */
    int from, to;                  /* rows of this pass */
    int clean;                     /* positions whose K and V will not change; SEES_ALL: 0 */
    bool own_blocks, begun, second; /* begun: a pass of this block was run; second: of guidance */
    bool compare;                  /* the next pass is the last one as a whole, to measure */
    int32_t *blank;                /* [n] the text with its prompt hidden; guidance only */
    struct region saved;           /* logits of that, or of a cached pass that is measured */
    struct tessera_session *beside; /* where passes are run as a whole, to measure */
    struct tessera_timing measured;
    float *row;                    /* [n_vocab] */
    struct sampler_cand *cand;     /* [n_vocab] */
    int32_t end[ENDS_MAX];         /* never chosen */
    int n_end, n_passes;
    struct rng rng;
};

struct tessera_denoising tessera_denoising_defaults(const tessera_engine *e,
                                                    struct tessera_sampling *sampling)
{
    const struct denoise_params *p = &e->hp.denoise;
    if (sampling)
        *sampling = (struct tessera_sampling){.temp = p->temp, .top_p = p->top_p, .repeat_penalty = 1};
    return (struct tessera_denoising){
        .alg = p->by_entropy ? TESSERA_ALG_ENTROPY : TESSERA_ALG_LOW_CONFIDENCE,
        .block = p->sees > 0 ? p->sees : p->by_entropy ? -1 : BLOCK_DEFAULT,
    };
}

static enum status check_options(const struct denoise *d, const struct tessera_generator_options *o,
                                 struct err *err)
{
    const struct tessera_denoising *p = &d->opt;
    const enum tessera_denoise_alg alg = p->alg;
    if (o->sampling.min_p > 0 || o->sampling.repeat_penalty < 1 || o->sampling.repeat_penalty > 1)
        return err_set(err, ERR_USAGE, "a text that is denoised has no last tokens: min-p and a "
                       "repetition penalty are not for it");
    if (!is_dream(alg) && (o->sampling.top_k > 0 || o->sampling.top_p < 1 || p->alg_temp > 0))
        return err_set(err, ERR_USAGE, "top-k, top-p and a temperature of the order go with origin, "
                       "maskgit_plus, topk_margin and entropy only");
    if (p->threshold < 0 || p->threshold > 1 || p->steps < 0 || p->block < -1 || p->alg_temp < 0 ||
        p->guidance < 0)
        return err_set(err, ERR_USAGE, "threshold, steps, block, guidance or the order's temperature is "
                       "out of range");
    if (p->threshold > 0 && alg != TESSERA_ALG_LOW_CONFIDENCE && alg != TESSERA_ALG_MASKGIT_PLUS)
        return err_set(err, ERR_USAGE, "a threshold is one of a token's probability: it goes with "
                       "low_confidence and maskgit_plus");
    if (p->guidance > 0 && p->cache)
        return err_set(err, ERR_USAGE, "guidance hides the prompt in every second pass: there is "
                       "nothing to cache");
    if (d->own_blocks && (p->cache || p->block != d->s->engine->hp.denoise.sees || p->guidance > 0))
        return err_set(err, ERR_USAGE, "%s sees blocks of %d tokens: they are the blocks, their K and V "
                       "are kept as they are, and there is no guidance", d->s->engine->arch->name,
                       d->s->engine->hp.denoise.sees);
    return OK;
}

static enum status length(struct denoise *d, int n_gen, struct err *err)
{
    const int room = d->s->n_ctx - d->n_prompt;
    if (room < 1)
        return err_set(err, ERR_FULL, "the prompt has %d tokens, the context %d: there is no room for "
                       "an answer", d->n_prompt, d->s->n_ctx);
    if (n_gen < 0) n_gen = room < LENGTH_DEFAULT ? room : LENGTH_DEFAULT;
    if (n_gen > room)
        return err_set(err, ERR_FULL, "an answer of %d tokens behind a prompt of %d: the context has "
                       "%d, and an answer is written as a whole", n_gen, d->n_prompt, d->s->n_ctx);
    d->n = d->n_prompt + n_gen;
    return OK;
}

static int end_of_block(const struct denoise *d, int from)
{
    const int b = d->opt.block, n = d->own_blocks ? (from / b + 1) * b : from + b;
    return b < 0 || n > d->n ? d->n : n;
}

/* Blocks and the steps of the first one; steps that do not go up evenly go to the first blocks. */
static enum status plan_blocks(struct denoise *d, struct err *err)
{
    const int n_gen = d->n - d->n_prompt;
    for (int at = d->n_prompt; at < d->n; at = end_of_block(d, at)) d->n_blocks++;
    if (!d->opt.steps) d->opt.steps = n_gen;
    if (d->opt.steps < d->n_blocks)
        return err_set(err, ERR_USAGE, "%d steps for %d blocks: each takes one at least", d->opt.steps,
                       d->n_blocks);
    return OK;
}

static void begin_block(struct denoise *d, int from)
{
    d->block0 = from;
    d->block1 = end_of_block(d, from);
    d->m0 = d->n_hidden = d->block1 - from;
    d->step = 0;
    d->n_steps = denoise_transfer(d->opt.steps, d->block_no++, d->n_blocks);
    d->begun = false;
}

static enum status open_arrays(struct denoise *d, const int32_t *ids, struct err *err)
{
    const size_t n = (size_t)d->n, v = (size_t)d->s->engine->model.n_vocab;
    d->text = calloc(n, sizeof *d->text);
    d->blank = calloc(n, sizeof *d->blank);
    d->hidden = calloc(3 * n, 1);
    d->pick = calloc(n, sizeof *d->pick);
    d->row = calloc(v, sizeof *d->row);
    d->cand = calloc(v, sizeof *d->cand);
    if (!d->text || !d->blank || !d->hidden || !d->pick || !d->row || !d->cand)
        return err_set(err, ERR_MEMORY, "no memory for the answer");
    d->settle = d->hidden + n;
    d->want = d->settle + n;
    for (int i = 0; i < d->n; i++) {
        d->text[i] = i < d->n_prompt ? ids[i] : d->mask;
        d->hidden[i] = i >= d->n_prompt;
        if (d->text[i] < 0 || d->text[i] >= (int)v)
            return err_set(err, ERR_RANGE, "token id %d is outside the vocabulary (0 to %d)", d->text[i],
                           (int)v - 1);
    }
    return OK;
}

/* Room for the logits of a pass that another one will be compared with. */
static enum status open_saved(struct denoise *d, struct err *err)
{
    struct tessera_engine *e = d->s->engine;
    const uint64_t most = (uint64_t)e->logits_stride * (uint64_t)(d->n - d->n_prompt);
    d->opt.measure = d->opt.measure && d->opt.cache;
    if (!(d->opt.guidance > 0) && !d->opt.measure) return OK;
    enum status s = region_reserve(&d->saved, &e->ledger, MEM_ACT, most, err);
    if (!s) s = engine_commit(e, &d->saved, most, err);
    return s || !d->opt.measure ? s : tessera_session_open(e, d->s->n_ctx, &d->beside, err);
}

static void ban_ends(struct denoise *d)
{
    const struct tok *t = d->s->engine->tok;
    for (int32_t i = 0; t && i < tok_n_vocab(t) && d->n_end < ENDS_MAX; i++)
        if (tok_is_end(t, i)) d->end[d->n_end++] = i;
}

enum status denoise_open(tessera_session *s, const int32_t *ids, int n,
                         const struct tessera_generator_options *o, struct denoise **out,
                         struct err *err)
{
    const struct tessera_engine *e = s->engine;
    const struct tessera_denoising own = tessera_denoising_defaults(e, NULL);
    *out = NULL;
    if (e->mask < 0)
        return err_set(err, ERR_MISSING, "%s: key tokenizer.ggml.mask_token_id is missing, and no token "
                       "of the vocabulary is known as the mask: the model cannot write", e->path);
    struct denoise *d = calloc(1, sizeof *d);
    if (!d) return err_set(err, ERR_MEMORY, "no memory for the answer");
    d->s = s;
    d->opt = o->denoise;
    if (!d->opt.alg) d->opt.alg = own.alg;
    if (!d->opt.block) d->opt.block = own.block;
    d->rule = (struct denoise_rule){d->opt.alg, o->sampling.temp, o->sampling.top_p,
                                    o->sampling.top_k};
    d->n_prompt = d->settled = n;
    d->mask = e->mask;
    d->shift = e->hp.denoise.shift;
    d->own_blocks = e->hp.denoise.sees > 0;
    rng_seed(&d->rng, o->sampling.seed);
    enum status st = check_options(d, o, err);
    if (!st) st = length(d, o->n_gen_max, err);
    if (!st) st = plan_blocks(d, err);
    if (!st) st = open_arrays(d, ids, err);
    if (!st) st = open_saved(d, err);
    if (st) {
        denoise_close(d);
        return st;
    }
    if (o->ignore_end) ban_ends(d);
    begin_block(d, n);
    *out = d;
    return OK;
}

void denoise_close(struct denoise *d)
{
    if (!d) return;
    region_release(&d->saved);
    tessera_session_close(d->beside);
    free(d->text);
    free(d->blank);
    free(d->hidden);
    free(d->pick);
    free(d->row);
    free(d->cand);
    free(d);
}

/* How many the next step settles; steps that settle nothing are passed over. */
static void next_step(struct denoise *d)
{
    d->k = d->n_hidden;
    if (d->opt.threshold > 0) {
        d->k = 1; /* at least */
    } else if (d->rule.alg == TESSERA_ALG_ORIGIN) {
        for (d->k = 0; !d->k; d->step++) {
            const double ratio = denoise_ratio(d->step, d->n_steps);
            for (int i = d->block0; i < d->block1; i++) {
                d->settle[i] = d->hidden[i] && rng_f64(&d->rng) < ratio;
                d->k += d->settle[i];
            }
        }
        d->k = -1;
    } else if (is_dream(d->rule.alg)) {
        for (d->k = 0; !d->k; d->step++)
            d->k = (int)(d->n_hidden * denoise_ratio(d->step, d->n_steps));
    } else {
        for (d->k = 0; !d->k; d->step++) d->k = denoise_transfer(d->m0, d->step, d->n_steps);
    }
}

/* Rows of the pass, and what the timeline keeps for it. */
static void set_rows(struct denoise *d)
{
    const bool whole = !d->begun || !d->opt.cache;
    d->to = d->n;
    d->from = whole ? 0 : d->block0 - d->shift;
    if (d->own_blocks && !d->s->engine->hp.route.choice.k_max) {
        if (d->clean < d->block0 - d->shift) d->from = d->clean;
        else d->from = d->block0 - d->shift; /* that row gives the same again */
        d->to = d->block1;
    } else if (!whole && d->opt.cache == TESSERA_CACHE_DUAL) {
        d->to = d->block1;
        return; /* nothing is cut: these rows are rewritten */
    }
    session_cut(d->s, d->from);
}

bool denoise_want(struct denoise *d, struct tessera_input *in)
{
    if (d->settled == d->n) return false;
    if (d->compare) {
        session_cut(d->beside, 0);
        *in = (struct tessera_input){.session = d->beside, .ids = d->text, .n = d->n,
                                     .logits = TESSERA_LOGITS_SOME, .some = d->want};
        return true;
    }
    if (!d->second) {
        next_step(d);
        for (int i = 0; i < d->n; i++) d->want[i] = 0;
        for (int i = d->block0; i < d->block1; i++)
            if (d->hidden[i] && (d->k >= 0 || d->settle[i])) d->want[i - d->shift] = 1;
    }
    set_rows(d);
    const bool blank = d->opt.guidance > 0 && !d->second;
    for (int i = 0; blank && i < d->n; i++) d->blank[i] = i < d->n_prompt ? d->mask : d->text[i];
    *in = (struct tessera_input){
        .session = d->s, .ids = (blank ? d->blank : d->text) + d->from, .n = d->to - d->from,
        .logits = TESSERA_LOGITS_SOME, .some = d->want + d->from,
        .rewrite = d->s->n > d->from, .at = d->from,
        .block = d->from > 0 ? d->block_no : 0, /* a whole pass uses what all places do */
    };
    return true;
}

static float *saved_row(const struct denoise *d, int i)
{
    return (float *)(void *)((char *)d->saved.base +
                             (size_t)d->s->engine->logits_stride * (size_t)(i - d->n_prompt));
}

/* KL(p || q) of two rows of logits. */
static double divergence(const float *p, const float *q, int n)
{
    double top[2] = {-INFINITY, -INFINITY}, sum[2] = {0}, kl = 0;
    for (int i = 0; i < n; i++) {
        if (value(p[i]) > top[0]) top[0] = value(p[i]);
        if (value(q[i]) > top[1]) top[1] = value(q[i]);
    }
    for (int i = 0; i < n; i++) {
        sum[0] += exp(value(p[i]) - top[0]);
        sum[1] += exp(value(q[i]) - top[1]);
    }
    const double shift = top[1] + log(sum[1]) - top[0] - log(sum[0]);
    for (int i = 0; i < n; i++) {
        const double chance = exp(value(p[i]) - top[0]) / sum[0];
        if (chance > 0) kl += chance * (value(p[i]) - value(q[i]) + shift);
    }
    return kl;
}

static int likeliest(const float *x, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        if (value(x[i]) > value(x[best])) best = i;
    return best;
}

/* The cached pass as a whole: its logits beside those that are saved. */
static enum status measure(struct denoise *d, int i_in, struct err *err)
{
    const struct tessera_engine *e = d->s->engine;
    for (int i = d->block0; i < d->block1; i++) {
        if (!d->hidden[i] || !d->want[i - d->shift]) continue;
        const float *whole = tessera_logits(e, i_in, i - d->shift), *cached = saved_row(d, i);
        const int n = e->model.n_vocab;
        if (!whole) return err_set(err, ERR_USAGE, "a pass without the logits that it was to give");
        d->measured.n_compared++;
        d->measured.n_changed += likeliest(whole, n) != likeliest(cached, n);
        d->measured.kl += divergence(whole, cached, n);
    }
    return OK;
}

static void pick_one(struct denoise *d, const float *logits, int i)
{
    const int n = d->s->engine->model.n_vocab;
    memcpy(d->row, logits, sizeof *d->row * (size_t)n);
    if (d->opt.guidance > 0) {
        const float *u = saved_row(d, i), by = d->opt.guidance + 1;
        for (int k = 0; k < n; k++) d->row[k] = u[k] + by * (d->row[k] - u[k]);
    }
    d->row[d->mask] = -INFINITY;
    for (int k = 0; k < d->n_end; k++) d->row[d->end[k]] = -INFINITY;
    d->pick[i] = denoise_choose(&d->rule, d->row, n, &d->rng, d->cand);
}

/* Which of the block settle. */
static void decide(struct denoise *d)
{
    const int b0 = d->block0, n = d->block1 - b0;
    struct denoise_pick *p = d->pick + b0;
    if (d->k < 0) return;
    if (d->opt.alg_temp > 0)
        for (int i = 0; i < n; i++)
            if (d->hidden[b0 + i])
                p[i].confidence = p[i].confidence / (double)d->opt.alg_temp + gumbel(&d->rng);
    denoise_best(p, d->hidden + b0, n, d->k, d->settle + b0);
    for (int i = 0; d->opt.threshold > 0 && i < n; i++)
        if (d->hidden[b0 + i] && p[i].confidence >= (double)d->opt.threshold) d->settle[b0 + i] = 1;
}

/* What every place of a pass would become; logits that another pass is for are saved. */
static enum status take_logits(struct denoise *d, int i_in, bool blank, struct err *err)
{
    const struct tessera_engine *e = d->s->engine;
    for (int i = d->block0; i < d->block1; i++) {
        const int at = i - d->shift;
        if (!d->hidden[i] || !d->want[at]) continue;
        const float *logits = tessera_logits(e, i_in, at - d->from);
        if (!logits) return err_set(err, ERR_USAGE, "a pass without the logits that it was to give");
        if (blank || d->compare) memcpy(saved_row(d, i), logits, e->logits_stride);
        if (!blank) pick_one(d, logits, i);
    }
    return OK;
}

static int settle(struct denoise *d)
{
    int n = 0;
    decide(d);
    for (int i = d->block0; i < d->block1; i++) {
        if (!d->hidden[i] || !d->settle[i]) continue;
        d->text[i] = d->pick[i].id;
        d->hidden[i] = 0;
        d->n_hidden--;
        n++;
    }
    d->begun = true;
    /* What was settled before this pass has its last K and V now. */
    if (d->own_blocks) d->clean = d->block0 / d->opt.block * d->opt.block;
    while (d->settled < d->n && !d->hidden[d->settled]) d->settled++;
    if (!d->n_hidden && d->settled < d->n) begin_block(d, d->block1);
    return n;
}

enum status denoise_take(struct denoise *d, int i_in, int *n_new, struct err *err)
{
    enum status s;
    *n_new = 0;
    if (d->compare) {
        s = measure(d, i_in, err);
        d->compare = false;
    } else {
        const bool blank = d->opt.guidance > 0 && !d->second;
        d->n_passes++;
        d->compare = d->opt.measure && d->begun;
        s = take_logits(d, i_in, blank, err);
        d->second = blank;
        if (blank || d->compare) return s;
    }
    if (!s) *n_new = settle(d);
    return s;
}

const int32_t *denoise_text(const struct denoise *d, int *n)
{
    *n = d->n;
    return d->text;
}

int denoise_settled(const struct denoise *d) { return d->settled; }
int denoise_passes(const struct denoise *d) { return d->n_passes; }

void denoise_measured(const struct denoise *d, struct tessera_timing *t)
{
    t->n_compared = d->measured.n_compared;
    t->n_changed = d->measured.n_changed;
    t->kl = d->measured.kl;
}
