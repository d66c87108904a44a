/* AVX2 tier of recur.h; bit for bit the reference.  Owns nothing. */
#include "moe/compute/elem_int.h"
#include "moe/compute/recur_int.h"

#if defined(__AVX2__) && defined(__FMA__)

enum { V = 8, BLOCK = 4 * V }; /* columns per pass over S */

static inline __m256i lanes_below(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static void l2_norm_avx2(int n, float eps, float *x)
{
    __m256 a = _mm256_setzero_ps(), b = a; /* lanes 0..7, 8..15 */
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m256 u = _mm256_loadu_ps(x + i), v = _mm256_loadu_ps(x + i + V);
        a = _mm256_fmadd_ps(u, u, a);
        b = _mm256_fmadd_ps(v, v, b);
    }
    if (i < n) {
        /* Lanes without an element add 0 * 0 to a sum of squares, which changes nothing. */
        const __m256 u = _mm256_maskload_ps(x + i, lanes_below(n - i));
        a = _mm256_fmadd_ps(u, u, a);
        if (i + V < n) {
            const __m256 v = _mm256_maskload_ps(x + i + V, lanes_below(n - i - V));
            b = _mm256_fmadd_ps(v, v, b);
        }
    }
    a = _mm256_add_ps(a, b);
    __m128 f = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    f = _mm_add_ps(f, _mm_movehl_ps(f, f));
    f = _mm_add_ss(f, _mm_movehdup_ps(f));
    const float r = recur_l2_factor(_mm_cvtss_f32(f), eps);
    for (i = 0; i + V <= n; i += V)
        _mm256_storeu_ps(x + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(r)));
    for (; i < n; i++) x[i] *= r;
}

static inline __m256 silu256(__m256 x)
{
    const __m256 e = elem_exp256(_mm256_xor_ps(x, _mm256_set1_ps(-0.0f)));
    return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}

/* Masked moves are slow on some machines, so whole vectors go without. */
static inline __m256 load8(const float *x, bool whole, __m256i m)
{
    return whole ? _mm256_loadu_ps(x) : _mm256_maskload_ps(x, m);
}

static inline void store8(float *x, bool whole, __m256i m, __m256 v)
{
    if (whole) _mm256_storeu_ps(x, v);
    else _mm256_maskstore_ps(x, m, v);
}

/* Eight channels, those of mask m. */
static void conv8(const struct recur_conv *c, int ch, __m256i m)
{
    const int back = c->taps - 1;
    const bool whole = c->n - ch >= V;
    const __m256i at = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                                          _mm256_set1_epi32(c->taps));
    __m256 w[RECUR_TAPS_MAX], past[RECUR_TAPS_MAX];
    for (int k = 0; k <= back; k++)
        w[k] = _mm256_mask_i32gather_ps(_mm256_setzero_ps(),
                                        c->w + (size_t)ch * (size_t)c->taps + k, at,
                                        _mm256_castsi256_ps(m), 4);
    for (int k = 0; k < back; k++)
        past[k] = load8(c->from + (size_t)k * c->ld + ch, whole, m);
    for (int r = 0; r < c->n_rows; r++) {
        float *x = c->x + (size_t)r * c->stride + ch;
        __m256 acc = _mm256_setzero_ps();
        past[back] = load8(x, whole, m);
        for (int k = 0; k <= back; k++) acc = _mm256_fmadd_ps(w[k], past[k], acc);
        for (int k = 0; k < back; k++) past[k] = past[k + 1];
        store8(x, whole, m, c->silu ? silu256(acc) : acc);
    }
    for (int k = 0; k < back; k++) store8(c->to + (size_t)k * c->ld + ch, whole, m, past[k]);
}

static void conv_avx2(const struct recur_conv *c)
{
    for (int ch = 0; ch < c->n; ch += V) conv8(c, ch, lanes_below(c->n - ch));
}

/* nv vectors of columns from column j, whole or one under mask m. */
static inline __attribute__((always_inline)) void delta_block(const struct recur_delta *d, int j,
                                                              const int nv, const bool whole,
                                                              __m256i m)
{
    const float *from = d->from + j;
    float *to = d->to + j;
    for (int r = 0; r < d->n_rows; r++, from = to) {
        const float *q = d->q + (size_t)r * d->stride, *k = d->k + (size_t)r * d->stride;
        const float *v = d->v + (size_t)r * d->stride + j;
        float *out = d->out + (size_t)r * d->stride_out + j;
        const __m256 decay = _mm256_set1_ps(d->decay[(size_t)r * d->stride_gate]);
        const __m256 beta = _mm256_set1_ps(d->beta[(size_t)r * d->stride_gate]);
        __m256 p[4], o[4], t;
        for (int n = 0; n < nv; n++) p[n] = o[n] = _mm256_setzero_ps();
        for (int i = 0; i < d->dk; i++)
            for (int n = 0; n < nv; n++) {
                t = load8(from + (size_t)i * d->ld + n * V, whole, m);
                p[n] = _mm256_fmadd_ps(_mm256_mul_ps(t, decay), _mm256_set1_ps(k[i]), p[n]);
            }
        for (int n = 0; n < nv; n++)
            p[n] = _mm256_mul_ps(_mm256_sub_ps(load8(v + n * V, whole, m), p[n]), beta);
        for (int i = 0; i < d->dk; i++)
            for (int n = 0; n < nv; n++) {
                t = _mm256_mul_ps(load8(from + (size_t)i * d->ld + n * V, whole, m), decay);
                t = _mm256_fmadd_ps(_mm256_set1_ps(k[i]), p[n], t);
                store8(to + (size_t)i * d->ld + n * V, whole, m, t);
                o[n] = _mm256_fmadd_ps(t, _mm256_set1_ps(q[i]), o[n]);
            }
        for (int n = 0; n < nv; n++)
            store8(out + n * V, whole, m, _mm256_mul_ps(o[n], _mm256_set1_ps(d->scale)));
    }
}

static void delta_avx2(const struct recur_delta *d)
{
    int j = 0;
    for (; j + BLOCK <= d->n; j += BLOCK) delta_block(d, j, 4, true, _mm256_setzero_si256());
    for (; j < d->n; j += V) delta_block(d, j, 1, false, lanes_below(d->n - j));
}

const struct recur_kernels recur_table_avx2 = {
    .l2_norm = l2_norm_avx2, .conv = conv_avx2, .delta = delta_avx2,
};

#endif
