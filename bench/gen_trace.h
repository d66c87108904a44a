/* Models whose routers replay a recorded trace: part of bench/gen.h.
 *
 * DESIGN.  There is one token id per row of the trace, after 261 specials and bytes that behave as
 * one of the rows.  The first columns of the residual stream, the carrier, are written by the
 * embedding and by nothing else (attention output and down matrices have zero rows there), so every
 * layer finds in them what the embedding put in:
 *
 *     [ who the token is: n_id signs | a slice of n_slice values per layer | noise ]
 *
 * A layer's router reads its slice.  Where there is room for n_slice = n_expert the slice holds the
 * gate logits themselves and the router is a piece of the identity: log(weight) above a base for the
 * chosen experts, 0 for the others.  Otherwise the router's rows are random unit vectors v_e, and the
 * slice is a point c with v_e . c = the logit for the chosen and less than the base by GAP for the
 * others, found by projecting onto one constraint after another (Kaczmarz).  The output matrix holds
 * at each token the signs of the token before it: greedy decoding walks through the trace and begins
 * again at its end.
 *
 * Norms have weight 1.  A norm divides the whole row by one number, which leaves the order of logits
 * alone whatever the layers add to the noise; so that the logits' size, and with it the weights,
 * stay near the trace's, every row has the same energy, in the embedding's noise, and all of it is
 * LOUD times what layers add.  Embedding and routers are F32, so no engine's arithmetic on the other
 * matrices can change a route. */
#ifndef BENCH_GEN_TRACE_H
#define BENCH_GEN_TRACE_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "moe/base/err.h"
#include "moe/base/rng.h"
#include "moe/load/trace.h"

enum {
    GEN_TRACE_FIRST = 5 + 256, /* id of row 0: after the specials and the bytes */
    GEN_TRACE_ID = 128,        /* signs that say who a token is, at most */
    GEN_TRACE_SWEEPS = 4000
};

#define GEN_TRACE_BASE 2.0f /* logit of the least chosen expert; the others have 0 */
#define GEN_TRACE_HIGH 16.0f /* the same with vectors: a small share of it is a gap easy to find */
#define GEN_TRACE_GAP 0.5f
#define GEN_TRACE_STEP 0.02f /* neighbouring slots differ by at least this much */
#define GEN_TRACE_LOUD 32.0f

struct gen_carry {
    const struct trace *t;
    int n_embd, n_layer, n_id, n_slice, n_carry;
    float energy;    /* of a row of the embedding before LOUD */
    uint64_t *sign;  /* [n_rows][2] */
    float *vector;   /* [n_layer][n_expert][n_slice]; NULL = the identity */
    float *slice;    /* [n_rows][n_layer][n_slice] */
};

static void gen_carry_free(struct gen_carry *c)
{
    free(c->sign);
    free(c->vector);
    free(c->slice);
}

static float gen_sign(const struct gen_carry *c, int32_t row, int i)
{
    return c->sign[2 * row + i / 64] >> i % 64 & 1 ? 1.0f : -1.0f;
}

/* The row that a token id behaves as. */
static int32_t gen_row_of(const struct gen_carry *c, int id)
{
    return (id >= GEN_TRACE_FIRST ? id - GEN_TRACE_FIRST : id) % c->t->n_rows;
}

/* Random signs; any two rows differ in at least an eighth of them. */
static enum status gen_signs(struct gen_carry *c, struct rng *r, struct err *e)
{
    const uint64_t mask[2] = {c->n_id >= 64 ? UINT64_MAX : (UINT64_C(1) << c->n_id) - 1,
                              c->n_id > 64 ? UINT64_MAX >> (128 - c->n_id) : 0};
    for (int32_t i = 0; i < c->t->n_rows; i++) {
        uint64_t *s = c->sign + 2 * i;
        int32_t k = 0;
        for (int tries = 0; tries < 1000; tries++) {
            s[0] = rng_u64(r) & mask[0];
            s[1] = rng_u64(r) & mask[1];
            for (k = 0; k < i; k++)
                if (__builtin_popcountll(s[0] ^ c->sign[2 * k]) +
                        __builtin_popcountll(s[1] ^ c->sign[2 * k + 1]) < (c->n_id + 7) / 8) break;
            if (k == i) break;
        }
        if (k < i)
            return err_set(e, ERR_USAGE, "%d columns are too few to tell the trace's tokens apart: "
                           "give a larger --embd", c->n_embd);
    }
    return OK;
}

/* The logits wanted: log weights above the base, falling from slot to slot. */
static void gen_logits(const struct trace *t, int32_t row, int layer, float *logit)
{
    const float *w = t->weight ? t->weight + trace_at(t, row, layer) : NULL;
    const int last = t->n_used - 1;
    float at = GEN_TRACE_BASE;
    for (int k = last; k >= 0; k--) {
        const float rise = w && k < last && w[k] > 0 && w[k + 1] > 0 ? logf(w[k] / w[k + 1]) : 0;
        if (k < last) at += rise > GEN_TRACE_STEP ? rise : GEN_TRACE_STEP;
        logit[k] = at;
    }
}

static float gen_dot(int n, const float *a, const float *b)
{
    float sum = 0;
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* A point of the slice that gives these logits; false when none was found. */
static bool gen_solve(const struct gen_carry *c, int layer, const uint16_t *expert,
                      const float *logit, float *x)
{
    const struct trace *t = c->t;
    const int m = c->n_slice;
    memset(x, 0, sizeof *x * (size_t)m);
    if (!c->vector) {
        for (int k = 0; k < t->n_used; k++) x[expert[k]] = logit[k];
        return true;
    }
    const float *v = c->vector + (size_t)layer * (size_t)t->n_experts * (size_t)m;
    for (int sweep = 0; sweep < GEN_TRACE_SWEEPS; sweep++) {
        float worst = 0;
        for (int i = 0; i < t->n_experts; i++) {
            int k = 0;
            while (k < t->n_used && expert[k] != i) k++;
            const float *u = v + (size_t)i * (size_t)m, now = gen_dot(m, u, x);
            float move = (k < t->n_used ? logit[k] : GEN_TRACE_BASE - GEN_TRACE_GAP) +
                         (GEN_TRACE_HIGH - GEN_TRACE_BASE) - now;
            if (k == t->n_used && move > 0) continue;
            if (fabsf(move) > worst) worst = fabsf(move);
            /* The vectors have length 1; a little further than the border of an inequality. */
            if (k == t->n_used) move *= 1.2f;
            for (int j = 0; j < m; j++) x[j] += move * u[j];
        }
        if (worst < GEN_TRACE_STEP / 8) return true;
    }
    return false;
}

/* The row whose route stands for this row's: its own, or where the layer did not route it (the last
 * one of a prompt, in most engines) that of the next row with one; -1 when there is none. */
static int32_t gen_routed_row(const struct trace *t, int32_t row, int layer)
{
    for (; row < t->n_rows; row++) {
        const uint16_t *x = trace_experts(t, row, layer);
        bool whole = true;
        for (int k = 0; k < t->n_used; k++) {
            whole = whole && x[k] != TRACE_NONE;
            for (int i = 0; i < k; i++) whole = whole && x[i] != x[k];
        }
        if (whole) return row;
    }
    return -1;
}

static enum status gen_slices(struct gen_carry *c, struct err *e)
{
    const struct trace *t = c->t;
    float logit[TRACE_USED];
    for (int32_t r = 0; r < t->n_rows; r++) {
        float sum = (float)c->n_id;
        for (int l = 0; l < c->n_layer; l++) {
            const int32_t from = gen_routed_row(t, r, l);
            float *to = c->slice + ((size_t)r * (size_t)c->n_layer + (size_t)l) * (size_t)c->n_slice;
            if (from < 0)
                return err_set(e, ERR_USAGE, "from row %d on the trace has no complete route in "
                               "layer %d", (int)r, l);
            gen_logits(t, from, l, logit);
            if (!gen_solve(c, l, trace_experts(t, from, l), logit, to))
                return err_set(e, ERR_USAGE, "%d columns are too few for the routes of %d layers: "
                               "give a larger --embd or fewer --layers", c->n_embd, c->n_layer);
            sum += gen_dot(c->n_slice, to, to);
        }
        if (sum > c->energy) c->energy = sum;
    }
    c->energy *= 1.05f; /* every row gets some noise */
    return OK;
}

/* Lays the carrier out and fills it; ERR_USAGE when the trace does not fit the shape. */
static enum status gen_carry_make(struct gen_carry *c, const struct trace *t, int n_embd,
                                  int n_layer, uint64_t seed, struct err *e)
{
    struct rng r;
    rng_seed(&r, seed ^ 0x7ace);
    memset(c, 0, sizeof *c);
    c->t = t;
    c->n_embd = n_embd;
    c->n_layer = n_layer;
    if (n_layer > t->n_layers)
        return err_set(e, ERR_USAGE, "the trace has %d layers, the model %d", t->n_layers, n_layer);
    c->n_id = n_embd / 4 < GEN_TRACE_ID ? n_embd / 4 : GEN_TRACE_ID;
    const int room = (n_embd - c->n_id - n_embd / 32) / n_layer; /* some is left to the layers */
    c->n_slice = room < t->n_experts ? room : t->n_experts;
    c->n_carry = c->n_id + n_layer * c->n_slice;
    if (c->n_slice < t->n_used)
        return err_set(e, ERR_USAGE, "%d columns are too few for the routes of %d layers", n_embd,
                       n_layer);
    const size_t rows = (size_t)t->n_rows, m = (size_t)c->n_slice, n = (size_t)n_layer;
    c->sign = calloc(2 * rows, sizeof *c->sign);
    c->slice = calloc(rows * n * m, sizeof *c->slice);
    if (c->n_slice < t->n_experts)
        c->vector = calloc(n * (size_t)t->n_experts * m, sizeof *c->vector);
    if (!c->sign || !c->slice || (c->n_slice < t->n_experts && !c->vector))
        return err_set(e, ERR_MEMORY, "no memory for the routes of a trace");
    for (size_t i = 0; c->vector && i < n * (size_t)t->n_experts; i++) {
        float *v = c->vector + i * m;
        for (int j = 0; j < c->n_slice; j++)
            v[j] = rng_range(&r, -1, 1) + rng_range(&r, -1, 1) + rng_range(&r, -1, 1);
        const float scale = 1 / sqrtf(gen_dot(c->n_slice, v, v));
        for (int j = 0; j < c->n_slice; j++) v[j] *= scale;
    }
    enum status s = gen_signs(c, &r, e);
    return s ? s : gen_slices(c, e);
}

/* ---- rows of the matrices that the trace decides ---- */

/* x [n_embd] */
static void gen_carry_embed(const struct gen_carry *c, int id, struct rng *r, float *x)
{
    const int32_t row = gen_row_of(c, id);
    const size_t n = (size_t)c->n_layer * (size_t)c->n_slice;
    for (int i = 0; i < c->n_id; i++) x[i] = gen_sign(c, row, i);
    memcpy(x + c->n_id, c->slice + (size_t)row * n, sizeof *x * n);
    const float left = c->energy - gen_dot(c->n_carry, x, x);
    float noise = 0;
    for (int i = c->n_carry; i < c->n_embd; i++) {
        x[i] = rng_range(r, -1, 1);
        noise += x[i] * x[i];
    }
    const float scale = sqrtf(left / noise);
    for (int i = c->n_carry; i < c->n_embd; i++) x[i] *= scale;
    for (int i = 0; i < c->n_embd; i++) x[i] *= GEN_TRACE_LOUD;
}

/* Router of a layer, expert i; undoes what the norm does to a row of that energy. */
static void gen_carry_gate(const struct gen_carry *c, int layer, int i, float *x)
{
    const float scale = sqrtf(c->energy / (float)c->n_embd);
    float *slice = x + c->n_id + layer * c->n_slice;
    memset(x, 0, sizeof *x * (size_t)c->n_embd);
    if (!c->vector) {
        slice[i] = scale;
        return;
    }
    const float *v = c->vector + ((size_t)layer * (size_t)c->t->n_experts + (size_t)i) *
                                     (size_t)c->n_slice;
    for (int j = 0; j < c->n_slice; j++) slice[j] = scale * v[j];
}

/* Output row: the token wins when the one before it is seen.  Specials and bytes never do. */
static void gen_carry_output(const struct gen_carry *c, int id, float *x)
{
    memset(x, 0, sizeof *x * (size_t)c->n_embd);
    if (id < GEN_TRACE_FIRST) return;
    const int32_t row = gen_row_of(c, id), before = row ? row - 1 : c->t->n_rows - 1;
    for (int i = 0; i < c->n_id; i++) x[i] = gen_sign(c, before, i);
}

#endif
