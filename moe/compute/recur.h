/* Kernels of recurrent layers: short convolutions and the gated delta rule (arXiv 2412.06464).
 *
 * DESIGN.  A recurrent layer keeps, per session, a window of the last inputs of its convolution and
 * one matrix S [dk][dv] per head.  For every token, with q and k of unit length,
 *     S = decay S;  d = beta (v - S' k);  S = S + k d';  out = scale S' q
 * We run exactly that, token by token: no chunked form, whose sums would depend on where chunks
 * begin.  Column j of S meets no other column, so a lane is a column and every sum runs over the
 * rows i of S in rising order: no horizontal sums, and columns can be cut into tasks at will.  Per
 * token a column is read twice and written once; a block of 64 columns of 128 rows is 32 KiB and
 * stays in the cache over all rows of a prefill.  The float order is
 *     t[i] = S[i][j] * decay;  p = fma(t[i], k[i], p) from p = +0;  d = (v[j] - p) * beta
 *     S[i][j] = fma(k[i], d, S[i][j] * decay);  o = fma(S[i][j], q[i], o) from o = +0
 *     out[j] = o * scale
 * in every tier, so that prefill in any split, decode and any batch agree bit for bit.
 *
 * Pure functions on the caller's memory that touch exactly what they are told to; rules as in
 * elem.h (no allocation, no failure, NaN stays in its column).  Any thread. */
#ifndef MOE_COMPUTE_RECUR_H
#define MOE_COMPUTE_RECUR_H

#include <stdbool.h>
#include <stddef.h>

#include "moe/base/cpu.h"

struct pool;
struct op;
struct dev_bind;

enum { RECUR_TAPS_MAX = 8 };

/* Some channels of a convolution over consecutive rows of one session, in place:
 *   acc = +0;  acc = fma(w[c][k], x of taps-1-k rows ago, acc) for k rising
 * and with silu the result is acc / (1 + exp(-acc)).
 * Rows before the first are those of the window `from`, oldest first; `to` gets the last inputs. */
struct recur_conv {
    int n, taps;           /* channels; 1 <= taps <= RECUR_TAPS_MAX */
    bool silu;
    const float *w;        /* [n][taps] */
    const float *from;     /* [taps-1][ld] */
    float *to;             /* [taps-1][ld], may be from */
    size_t ld;
    float *x;              /* [n_rows][stride] */
    size_t stride;
    int n_rows;            /* >= 1 */
};

/* Some columns of one head's S over consecutive rows of one session. */
struct recur_delta {
    int dk, n;             /* rows of S; columns in this call */
    int n_rows;            /* >= 1 */
    const float *q, *k;    /* [n_rows][stride], dk values each */
    const float *v;        /* [n_rows][stride], n values each */
    size_t stride;
    const float *decay, *beta; /* [n_rows][stride_gate] */
    size_t stride_gate;
    float *out;            /* [n_rows][stride_out], n values each */
    size_t stride_out;
    const float *from;     /* [dk][ld] */
    float *to;             /* [dk][ld], may be from */
    size_t ld;
    float scale;
};

struct recur_kernels {
    /* x *= 1 / max(sqrt(sum x^2), eps), the sum in the sixteen-lane order of elem.h. */
    void (*l2_norm)(int n, float eps, float *x);
    void (*conv)(const struct recur_conv *c);
    void (*delta)(const struct recur_delta *d);
};

/* The kernels of a tier, which the machine must have.  Valid forever. */
const struct recur_kernels *recur_kernels(enum cpu_tier tier);

/* Runs OP_L2_NORM, OP_DELTA_GATES, OP_CONV or OP_DELTA on a pool (recur_run.c). */
void recur_run(struct pool *pool, const struct recur_kernels *k, const struct op *op,
               const struct dev_bind *b);

#endif
