/* Elementwise and attention kernels on float rows, under the fixed arithmetic.
 *
 * Every reduction has one order, the same in all tiers: sixteen lanes, lane j takes the elements
 * with index = j (mod 16) in rising order by fused multiply-add (or add, max), then the lanes fold
 * 8, 4, 2, 1: lane j += lane j+8 for j < 8, and so on.  max(a, b) is a > b ? a : b with the new
 * element as a.  exp is our own polynomial, made of the same operations in every tier.  Written
 * formulas are evaluated as they stand, a product feeding a sum is fused only where fma is written;
 * division and square root are IEEE.  So all tiers agree bit for bit, except which NaN a NaN is.
 *
 * Pure functions on the caller's memory that touch exactly the elements they are told to (n need
 * not be a multiple of anything); 64-byte aligned rows are fastest, floats aligned to 4 will do.
 * They never allocate, never fail and check nothing.  NaN in gives NaN out, in its row only.  The
 * rounding mode must be to nearest, without flush-to-zero.  Any thread. */
#ifndef MOE_COMPUTE_ELEM_H
#define MOE_COMPUTE_ELEM_H

#include <stddef.h>
#include <stdint.h>

#include "moe/base/cpu.h"

/* KV pages: 64 positions anchored at multiples of 64.  Per page and KV head, at
 *   base + page * page_stride + head * attn_head_bytes(...)
 *   F16   K: half k[dk][64] (position is the lane) | V: half v[64][dv]
 *   Q8_0  K: half d[dk/32][64], int8 k[dk][64]     | V: half d[64][dv/32], int8 v[64][dv]
 * dk and dv are multiples of 16 (Q8_0: of 32), without an upper limit.  Halves are rounded to
 * nearest even.  A Q8_0 block of 32 values along dk or dv has d = half(amax / 127) and
 * q = rne(x * (127 / amax)); all q are 0 when d is 0 or not finite (amax above 8.3e6, infinite or
 * NaN: the block then reads as NaN).
 *
 * Latent heads (multi-head latent attention): V is the first dv values of K, 0 < dv <= dk, and is
 * not stored again.  Their pages are those of dv = 0: attn_head_bytes(type, dk, 0), kv_put with
 * dv = 0, and attn_latent instead of attn.  The results are the same bits as from both stored. */
enum kv_type { KV_F16 = 0, KV_Q8_0 = 1 };
enum { KV_PAGE = 64 };

/* Bytes of one KV head in one page; a multiple of 64. */
static inline size_t attn_head_bytes(enum kv_type type, int dk, int dv)
{
    const size_t d = (size_t)dk + (size_t)dv;
    if (type == KV_F16) return KV_PAGE * d * sizeof(uint16_t);
    return KV_PAGE * (d + d / 32 * sizeof(uint16_t));
}

/* One query row against one KV head.  Blocks of KV_PAGE positions are taken in rising order
 * (page = 0, 1, ...), with the online softmax
 *   s[p] = (sum_d q[d] k[p][d]) * scale     (fma over d in rising order, then one multiplication)
 *   m' = max(max s, m), c = exp(m - m'), e[p] = exp(s[p] - m')
 *   l = fma(l, c, sum_p e[p])               (the 64 e's in the sixteen-lane order)
 *   o = o * c, then o = fma(e[p], v[p], o)  (p in rising order)
 * from m = -inf, l = 0, o = 0, and out = o / l at the end.  Q8_0 instead has
 *   sum_d: per block of 32 d, rising: t = fma(q[d], (float)k8[d][p], t) from t = 0,
 *          then acc = fma(t, kd[block][p], acc)
 *   o = fma(e[p] * vd[p][block], (float)v8[p], o)
 * A row sees positions 0 <= first <= last.  Pages outside are not touched; masked positions inside
 * a page have s = -inf and e = 0 and take no part in o, whatever bytes they hold.
 *
 * The result of a row and head does not depend on the others in the call.  Consecutive rows with
 * equal kv and page_stride share the conversion of a page, so put a session's rows together. */
struct attn_row {
    const float *q;      /* [n_q][dk], the query heads that share this KV head, one after another */
    float *out;          /* [n_q][dv] */
    const char *kv;      /* base of page 0 for this KV head */
    size_t page_stride;  /* bytes from page to page */
    int32_t first, last; /* positions seen, inclusive */
    const float *sink;   /* [n_q] or NULL: a score without a value, as if it came first (m = sink,
                            l = 1 before the first page) */
};

struct elem_kernels {
    /* y = (x * r) * w, r = 1 / sqrt(sum(x^2) / n + eps), the sum by fma;  w may be NULL (ones).
     * In place allowed. */
    void (*rms_norm)(int n, const float *x, const float *w, float eps, float *y);
    /* y += x */
    void (*add)(int n, const float *x, float *y);
    /* y = silu(gate) * up, silu(x) = x / (1 + exp(-x)), -0 far below zero.  y may be gate or up. */
    void (*swiglu)(int n, const float *gate, const float *up, float *y);
    /* x = exp(x - max) / sum over n.  In place.  All -inf gives NaN. */
    void (*softmax)(int n, float *x);
    /* y[i] = sum over slots s of w[s] * x[s][i], slots in rising order by fma from +0. */
    void (*combine)(int n, int n_slots, const float *w, const float *const *x, float *y);
    /* Rotary embedding of one head of d values; the first n_rot are rotated.  cs holds cos then
     * sin, [n_rot/2] each.  neox: pairs (i, i + n_rot/2); else pairs (2i, 2i+1).  In place.
     * (a, b) becomes fma(a, cos, -(b * sin)), fma(b, cos, a * sin). */
    void (*rope_neox)(int n_rot, const float *cs, float *x);
    void (*rope_norm)(int n_rot, const float *cs, float *x);
    /* Stores one position's K [dk] and V [dv] of one KV head: kv is the head's page base, pos the
     * index 0..63 in the page. */
    void (*kv_put[2])(int dk, int dv, const float *k, const float *v, char *kv, int pos);
    /* n_rows rows, each with n_q query heads on one KV head.  Index: enum kv_type. */
    void (*attn[2])(int dk, int dv, int n_q, float scale, int n_rows, const struct attn_row *rows);
    void (*attn_latent[2])(int dk, int dv, int n_q, float scale, int n_rows,
                           const struct attn_row *rows);
    /* y[i] = exp(x[i]) within 1.1 ulp; a result below 2^-126 is +0, above FLT_MAX +inf.  For tests
     * and as the definition of exp (elem_exp.h). */
    void (*exp)(int n, const float *x, float *y);
};

/* The kernels of a tier, which the machine must have (cpu_tier_best).  Valid forever. */
const struct elem_kernels *elem_kernels(enum cpu_tier tier);

/* x = 1 / (1 + exp(-x)). */
static inline void elem_sigmoid(const struct elem_kernels *el, int n, float *x)
{
    for (int i = 0; i < n; i++) x[i] = -x[i];
    el->exp(n, x, x);
    for (int i = 0; i < n; i++) x[i] = 1.0f / (1.0f + x[i]);
}

#endif
