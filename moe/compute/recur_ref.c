/* Reference of recur.h in plain C, and the choice of a tier's table.
 *
 * Owns the definition of every result (tests/check_recur.c).  Clear before fast; allocates
 * nothing. */
#include <math.h>

#include "moe/compute/elem.h"
#include "moe/compute/recur_int.h"

enum { LANES = 16 };

static void l2_norm_ref(int n, float eps, float *x)
{
    float a[LANES] = {0};
    for (int i = 0; i < n; i++) a[i % LANES] = fmaf(x[i], x[i], a[i % LANES]);
    for (int half = LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++) a[j] += a[j + half];
    const float r = recur_l2_factor(a[0], eps);
    for (int i = 0; i < n; i++) x[i] *= r;
}

static void conv_ref(const struct recur_conv *c)
{
    const struct elem_kernels *el = elem_kernels(CPU_REF);
    const int back = c->taps - 1;
    for (int ch = 0; ch < c->n; ch++) {
        float past[RECUR_TAPS_MAX]; /* the last `back` inputs, oldest first */
        for (int k = 0; k < back; k++) past[k] = c->from[(size_t)k * c->ld + (size_t)ch];
        for (int r = 0; r < c->n_rows; r++) {
            float *x = c->x + (size_t)r * c->stride + ch;
            const float *w = c->w + (size_t)ch * (size_t)c->taps;
            float acc = 0.0f, e;
            past[back] = *x;
            for (int k = 0; k <= back; k++) acc = fmaf(w[k], past[k], acc);
            for (int k = 0; k < back; k++) past[k] = past[k + 1];
            if (c->silu) {
                e = -acc;
                el->exp(1, &e, &e);
                acc = acc / (1.0f + e);
            }
            *x = acc;
        }
        for (int k = 0; k < back; k++) c->to[(size_t)k * c->ld + (size_t)ch] = past[k];
    }
}

static void delta_ref(const struct recur_delta *d)
{
    for (int j = 0; j < d->n; j++) {
        const float *from = d->from + j;
        for (int r = 0; r < d->n_rows; r++) {
            const float *q = d->q + (size_t)r * d->stride, *k = d->k + (size_t)r * d->stride;
            const float decay = d->decay[(size_t)r * d->stride_gate];
            const float beta = d->beta[(size_t)r * d->stride_gate];
            float p = 0.0f, o = 0.0f;
            for (int i = 0; i < d->dk; i++) p = fmaf(from[(size_t)i * d->ld] * decay, k[i], p);
            const float change = (d->v[(size_t)r * d->stride + (size_t)j] - p) * beta;
            for (int i = 0; i < d->dk; i++) {
                float *s = d->to + (size_t)i * d->ld + j;
                *s = fmaf(k[i], change, from[(size_t)i * d->ld] * decay);
                o = fmaf(*s, q[i], o);
            }
            d->out[(size_t)r * d->stride_out + (size_t)j] = o * d->scale;
            from = d->to + j;
        }
    }
}

static const struct recur_kernels table_ref = {
    .l2_norm = l2_norm_ref, .conv = conv_ref, .delta = delta_ref,
};

const struct recur_kernels *recur_kernels(enum cpu_tier tier)
{
#if defined(__x86_64__)
    if (tier >= CPU_AVX512) return &recur_table_avx512;
    if (tier == CPU_AVX2) return &recur_table_avx2;
#endif
    (void)tier;
    return &table_ref;
}
