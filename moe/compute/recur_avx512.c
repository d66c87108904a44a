/* AVX-512 tier of recur.h; bit for bit the reference.  Owns nothing. */
#include "moe/compute/elem_int.h"
#include "moe/compute/recur_int.h"

#if defined(__AVX512F__) && defined(__AVX512DQ__)

enum { V = 16, BLOCK = 4 * V }; /* columns per pass over S */

static inline __mmask16 lanes_below(int n)
{
    return n >= V ? (__mmask16)0xffff : (__mmask16)((1u << n) - 1);
}

static void l2_norm_avx512(int n, float eps, float *x)
{
    __m512 a = _mm512_setzero_ps();
    for (int i = 0; i < n; i += V) {
        const __m512 u = _mm512_maskz_loadu_ps(lanes_below(n - i), x + i);
        a = _mm512_fmadd_ps(u, u, a);
    }
    const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 f = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    f = _mm_add_ps(f, _mm_movehl_ps(f, f));
    f = _mm_add_ss(f, _mm_movehdup_ps(f));
    const __m512 r = _mm512_set1_ps(recur_l2_factor(_mm_cvtss_f32(f), eps));
    for (int i = 0; i < n; i += V) {
        const __mmask16 m = lanes_below(n - i);
        _mm512_mask_storeu_ps(x + i, m, _mm512_mul_ps(_mm512_maskz_loadu_ps(m, x + i), r));
    }
}

static inline __m512 silu512(__m512 x)
{
    const __m512 e = elem_exp512(_mm512_xor_ps(x, _mm512_set1_ps(-0.0f)));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

/* Sixteen channels, those of mask m. */
static void conv16(const struct recur_conv *c, int ch, __mmask16 m)
{
    const int back = c->taps - 1;
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i at = _mm512_mullo_epi32(lane, _mm512_set1_epi32(c->taps));
    __m512 w[RECUR_TAPS_MAX], past[RECUR_TAPS_MAX];
    for (int k = 0; k <= back; k++)
        w[k] = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), m, at,
                                        c->w + (size_t)ch * (size_t)c->taps + k, 4);
    for (int k = 0; k < back; k++)
        past[k] = _mm512_maskz_loadu_ps(m, c->from + (size_t)k * c->ld + ch);
    for (int r = 0; r < c->n_rows; r++) {
        float *x = c->x + (size_t)r * c->stride + ch;
        __m512 acc = _mm512_setzero_ps();
        past[back] = _mm512_maskz_loadu_ps(m, x);
        for (int k = 0; k <= back; k++) acc = _mm512_fmadd_ps(w[k], past[k], acc);
        for (int k = 0; k < back; k++) past[k] = past[k + 1];
        _mm512_mask_storeu_ps(x, m, c->silu ? silu512(acc) : acc);
    }
    for (int k = 0; k < back; k++)
        _mm512_mask_storeu_ps(c->to + (size_t)k * c->ld + ch, m, past[k]);
}

static void conv_avx512(const struct recur_conv *c)
{
    for (int ch = 0; ch < c->n; ch += V) conv16(c, ch, lanes_below(c->n - ch));
}

/* nv vectors of columns from column j, the last of them under mask m. */
static inline __attribute__((always_inline)) void delta_block(const struct recur_delta *d, int j,
                                                              const int nv, __mmask16 m)
{
#define MASK(n) ((n) == nv - 1 ? m : (__mmask16)0xffff)
    const float *from = d->from + j;
    float *to = d->to + j;
    for (int r = 0; r < d->n_rows; r++, from = to) {
        const float *q = d->q + (size_t)r * d->stride, *k = d->k + (size_t)r * d->stride;
        const float *v = d->v + (size_t)r * d->stride + j;
        float *out = d->out + (size_t)r * d->stride_out + j;
        const __m512 decay = _mm512_set1_ps(d->decay[(size_t)r * d->stride_gate]);
        const __m512 beta = _mm512_set1_ps(d->beta[(size_t)r * d->stride_gate]);
        __m512 p[4], o[4], t;
        for (int n = 0; n < nv; n++) p[n] = o[n] = _mm512_setzero_ps();
        for (int i = 0; i < d->dk; i++)
            for (int n = 0; n < nv; n++) {
                t = _mm512_maskz_loadu_ps(MASK(n), from + (size_t)i * d->ld + n * V);
                p[n] = _mm512_fmadd_ps(_mm512_mul_ps(t, decay), _mm512_set1_ps(k[i]), p[n]);
            }
        for (int n = 0; n < nv; n++) {
            t = _mm512_maskz_loadu_ps(MASK(n), v + n * V);
            p[n] = _mm512_mul_ps(_mm512_sub_ps(t, p[n]), beta);
        }
        for (int i = 0; i < d->dk; i++)
            for (int n = 0; n < nv; n++) {
                t = _mm512_maskz_loadu_ps(MASK(n), from + (size_t)i * d->ld + n * V);
                t = _mm512_fmadd_ps(_mm512_set1_ps(k[i]), p[n], _mm512_mul_ps(t, decay));
                _mm512_mask_storeu_ps(to + (size_t)i * d->ld + n * V, MASK(n), t);
                o[n] = _mm512_fmadd_ps(t, _mm512_set1_ps(q[i]), o[n]);
            }
        for (int n = 0; n < nv; n++)
            _mm512_mask_storeu_ps(out + n * V, MASK(n),
                                  _mm512_mul_ps(o[n], _mm512_set1_ps(d->scale)));
    }
#undef MASK
}

static void delta_avx512(const struct recur_delta *d)
{
    int j = 0;
    for (; j + BLOCK <= d->n; j += BLOCK) delta_block(d, j, 4, 0xffff);
    for (; j < d->n; j += V) delta_block(d, j, 1, lanes_below(d->n - j));
}

const struct recur_kernels recur_table_avx512 = {
    .l2_norm = l2_norm_avx512, .conv = conv_avx512, .delta = delta_avx512,
};

#endif
