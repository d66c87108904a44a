/* Elementwise and attention kernels on float rows, under the fixed arithmetic.
 *
 * Every reduction has one order, the same in all tiers: sixteen lanes, lane j takes the elements
 * with index = j (mod 16) in rising order by fused multiply-add (or add, max), then the lanes fold
 * 8, 4, 2, 1: lane j += lane j+8 for j < 8, and so on.  exp is our own polynomial (elem_exp), made
 * of the same operations in every tier.  So all tiers agree bit for bit.
 *
 * Pure functions on the caller's memory; rows start 64-byte aligned and their buffers are padded
 * to a multiple of 16 floats, which kernels may overwrite but never read into a result.  Any
 * thread. */
#ifndef MOE_COMPUTE_ELEM_H
#define MOE_COMPUTE_ELEM_H

#include <stddef.h>
#include <stdint.h>

#include "moe/base/cpu.h"

/* KV pages: 64 positions anchored at multiples of 64.  Per page and KV head, at
 *   base + page * page_stride + head * attn_head_bytes(...)
 *   F16   K: half k[dk][64] (position is the lane) | V: half v[64][dv]
 *   Q8_0  K: half d[dk/32][64], int8 k[dk][64]     | V: half d[64][dv/32], int8 v[64][dv]
 * dk and dv are multiples of 16 (Q8_0: of 32). */
enum kv_type { KV_F16 = 0, KV_Q8_0 = 1 };
enum { KV_PAGE = 64 };

/* Bytes of one KV head in one page; a multiple of 64. */
size_t attn_head_bytes(enum kv_type type, int dk, int dv);

/* One query row against one KV head.  Blocks of KV_PAGE positions are taken in rising order
 * (page = 0, 1, ...), with the online softmax
 *   s[p] = scale * sum_d q[d] k[p][d]       (fma over d in rising order, then one multiplication)
 *   m' = max(m, max s), c = exp(m - m'), l = l*c + sum_p exp(s[p]-m'), o = o*c + sum_p e[p] v[p]
 * (p in rising order by fma for o; the 64 e's fold in the sixteen-lane order for l), and
 * out = o / l at the end.  A row sees positions first .. last.  Whole pages before `first` are
 * skipped; masked positions inside a page have s = -inf and e = 0. */
struct attn_row {
    const float *q;      /* [n_q][dk], the query heads that share this KV head, one after another */
    float *out;          /* [n_q][dv] */
    const char *kv;      /* base of page 0 for this KV head */
    size_t page_stride;  /* bytes from page to page */
    int32_t first, last; /* positions seen, inclusive */
};

struct elem_kernels {
    /* y = x / sqrt(mean(x^2) + eps) * w;  w may be NULL (ones).  In place allowed. */
    void (*rms_norm)(int n, const float *x, const float *w, float eps, float *y);
    /* y += x */
    void (*add)(int n, const float *x, float *y);
    /* y = silu(gate) * up, silu(x) = x / (1 + exp(-x)).  y may be gate or up. */
    void (*swiglu)(int n, const float *gate, const float *up, float *y);
    /* x = exp(x - max) / sum over n.  In place. */
    void (*softmax)(int n, float *x);
    /* y[i] = sum over slots s of w[s] * x[s][i], slots in rising order by fma from +0. */
    void (*combine)(int n, int n_slots, const float *w, const float *const *x, float *y);
    /* Rotary embedding of one head of d values; the first n_rot are rotated.  cs holds cos then
     * sin, [n_rot/2] each.  neox: pairs (i, i + n_rot/2); else pairs (2i, 2i+1).  In place. */
    void (*rope_neox)(int n_rot, const float *cs, float *x);
    void (*rope_norm)(int n_rot, const float *cs, float *x);
    /* Stores one position's K [dk] and V [dv] of one KV head: kv is the head's page base, pos the
     * index 0..63 in the page. */
    void (*kv_put[2])(int dk, int dv, const float *k, const float *v, char *kv, int pos);
    /* n_rows rows, each with n_q query heads on one KV head.  Index: enum kv_type. */
    void (*attn[2])(int dk, int dv, int n_q, float scale, int n_rows, const struct attn_row *rows);
    /* y[i] = exp(x[i]); for tests and as the definition of exp. */
    void (*exp)(int n, const float *x, float *y);
};

/* The kernels of a tier: reference first, then overwritten tier by tier.  Valid forever. */
const struct elem_kernels *elem_kernels(enum cpu_tier tier);

#endif
