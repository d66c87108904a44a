/* elem.h with AVX-512: one register is the sixteen lanes of the fixed order.  Attention is in
 * attn_avx512.c.
 *
 * Owns nothing.  Tails go through masks, so nothing behind element n is read or written.  Absent
 * lanes hold +0 in sums and -inf in maxima, which changes no bit. */
#include <math.h>

#include "moe/compute/elem_int.h"

enum { LANES = 16 };

static inline __mmask16 head(int n)
{
    return n >= LANES ? (__mmask16)0xffff : (__mmask16)((1u << n) - 1u);
}

/* Lane j of the result is lane j + 8 (4, 2, 1) of a. */
static inline float fold_add(__m512 a)
{
    __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

static inline float fold_max(__m512 a)
{
    __m256 b = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

static void rms_norm(int n, const float *x, const float *w, float eps, float *y)
{
    __m512 a = _mm512_setzero_ps();
    for (int i = 0; i < n; i += LANES) {
        __m512 v = _mm512_maskz_loadu_ps(head(n - i), x + i);
        a = _mm512_fmadd_ps(v, v, a);
    }
    const __m512 r = _mm512_set1_ps(1.0f / sqrtf(fold_add(a) / (float)n + eps));
    for (int i = 0; i < n; i += LANES) {
        const __mmask16 k = head(n - i);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(k, x + i), r);
        if (w) v = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(k, w + i));
        _mm512_mask_storeu_ps(y + i, k, v);
    }
}

static void add(int n, const float *x, float *y)
{
    for (int i = 0; i < n; i += LANES) {
        const __mmask16 k = head(n - i);
        _mm512_mask_storeu_ps(y + i, k, _mm512_add_ps(_mm512_maskz_loadu_ps(k, y + i),
                                                      _mm512_maskz_loadu_ps(k, x + i)));
    }
}

static void swiglu(int n, const float *gate, const float *up, float *y)
{
    const __m512 one = _mm512_set1_ps(1.0f), sign = _mm512_set1_ps(-0.0f);
    for (int i = 0; i < n; i += LANES) {
        const __mmask16 k = head(n - i);
        __m512 g = _mm512_maskz_loadu_ps(k, gate + i), u = _mm512_maskz_loadu_ps(k, up + i);
        __m512 e = elem_exp512(_mm512_xor_ps(g, sign));
        _mm512_mask_storeu_ps(y + i, k, _mm512_mul_ps(_mm512_div_ps(g, _mm512_add_ps(one, e)), u));
    }
}

static void softmax(int n, float *x)
{
    __m512 m = _mm512_set1_ps(-INFINITY), a = _mm512_setzero_ps();
    for (int i = 0; i < n; i += LANES) {
        const __mmask16 k = head(n - i);
        m = _mm512_mask_max_ps(m, k, _mm512_maskz_loadu_ps(k, x + i), m);
    }
    m = _mm512_set1_ps(fold_max(m));
    for (int i = 0; i < n; i += LANES) {
        const __mmask16 k = head(n - i);
        __m512 e = elem_exp512(_mm512_sub_ps(_mm512_maskz_loadu_ps(k, x + i), m));
        a = _mm512_mask_add_ps(a, k, a, e);
        _mm512_mask_storeu_ps(x + i, k, e);
    }
    const __m512 sum = _mm512_set1_ps(fold_add(a));
    for (int i = 0; i < n; i += LANES) {
        const __mmask16 k = head(n - i);
        _mm512_mask_storeu_ps(x + i, k, _mm512_div_ps(_mm512_maskz_loadu_ps(k, x + i), sum));
    }
}

static void combine(int n, int n_slots, const float *w, const float *const *x, float *y)
{
    int i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        __m512 a = _mm512_setzero_ps(), b = a, c = a, d = a;
        for (int s = 0; s < n_slots; s++) {
            const __m512 f = _mm512_set1_ps(w[s]);
            const float *p = x[s] + i;
            a = _mm512_fmadd_ps(f, _mm512_loadu_ps(p), a);
            b = _mm512_fmadd_ps(f, _mm512_loadu_ps(p + LANES), b);
            c = _mm512_fmadd_ps(f, _mm512_loadu_ps(p + 2 * LANES), c);
            d = _mm512_fmadd_ps(f, _mm512_loadu_ps(p + 3 * LANES), d);
        }
        _mm512_storeu_ps(y + i, a);
        _mm512_storeu_ps(y + i + LANES, b);
        _mm512_storeu_ps(y + i + 2 * LANES, c);
        _mm512_storeu_ps(y + i + 3 * LANES, d);
    }
    for (; i < n; i += LANES) {
        const __mmask16 k = head(n - i);
        __m512 a = _mm512_setzero_ps();
        for (int s = 0; s < n_slots; s++)
            a = _mm512_fmadd_ps(_mm512_set1_ps(w[s]), _mm512_maskz_loadu_ps(k, x[s] + i), a);
        _mm512_mask_storeu_ps(y + i, k, a);
    }
}

static void rope_neox(int n_rot, const float *cs, float *x)
{
    const int h = n_rot / 2;
    for (int i = 0; i < h; i += LANES) {
        const __mmask16 k = head(h - i);
        __m512 a = _mm512_maskz_loadu_ps(k, x + i), b = _mm512_maskz_loadu_ps(k, x + h + i);
        __m512 c = _mm512_maskz_loadu_ps(k, cs + i), s = _mm512_maskz_loadu_ps(k, cs + h + i);
        _mm512_mask_storeu_ps(x + i, k, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
        _mm512_mask_storeu_ps(x + h + i, k, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
    }
}

static void rope_norm(int n_rot, const float *cs, float *x)
{
    const int h = n_rot / 2;
    const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    for (int i = 0; i < h; i += LANES / 2) {
        const int n = h - i;
        const __mmask16 k = head(2 * n), kc = head(n < LANES / 2 ? n : LANES / 2);
        __m512 v = _mm512_maskz_loadu_ps(k, x + 2 * i);
        __m512 c = _mm512_permutexvar_ps(twice, _mm512_maskz_loadu_ps(kc, cs + i));
        __m512 s = _mm512_permutexvar_ps(twice, _mm512_maskz_loadu_ps(kc, cs + h + i));
        /* Even lanes a*c - b*s, odd lanes b*c + a*s. */
        v = _mm512_fmaddsub_ps(v, c, _mm512_mul_ps(_mm512_permute_ps(v, 0xb1), s));
        _mm512_mask_storeu_ps(x + 2 * i, k, v);
    }
}

static void exps(int n, const float *x, float *y)
{
    for (int i = 0; i < n; i += LANES) {
        const __mmask16 k = head(n - i);
        _mm512_mask_storeu_ps(y + i, k, elem_exp512(_mm512_maskz_loadu_ps(k, x + i)));
    }
}

static inline __m256i to_f16(__m512 v)
{
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static void kv_put_f16(int dk, int dv, const float *k, const float *v, char *kv, int pos)
{
    uint16_t *kp = (uint16_t *)kv + pos;          /* [dk][64] */
    uint16_t *vp = (uint16_t *)kv + (size_t)dk * KV_PAGE + (size_t)pos * (size_t)dv;
    for (int d = 0; d < dk; d += LANES, kp += LANES * KV_PAGE) {
        uint16_t t[LANES];
        _mm256_storeu_si256((__m256i *)t, to_f16(_mm512_loadu_ps(k + d)));
        for (int i = 0; i < LANES; i++) kp[i * KV_PAGE] = t[i];
    }
    for (int d = 0; d < dv; d += LANES)
        _mm256_storeu_si256((__m256i *)(vp + d), to_f16(_mm512_loadu_ps(v + d)));
}

/* 32 values to q[32] and the half scale; see elem_ref.c. */
static inline uint16_t quant_q8(const float *x, int8_t *q)
{
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + LANES);
    const __m512i mag = _mm512_set1_epi32(0x7fffffff);
    const __m512i top = _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(a), mag),
                                         _mm512_and_si512(_mm512_castps_si512(b), mag));
    const __m128 amax = _mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(top)));
    const __m128 n127 = _mm_set_ss(127.0f);
    const uint16_t d = (uint16_t)_mm_extract_epi16(
        _mm_cvtps_ph(_mm_div_ss(amax, n127), _MM_FROUND_TO_NEAREST_INT), 0);
    if (d == 0 || d >= 0x7c00u) {
        _mm256_storeu_si256((__m256i *)q, _mm256_setzero_si256());
        return d;
    }
    const __m512 inv = _mm512_broadcastss_ps(_mm_div_ss(n127, amax));
    const __m512i qa = _mm512_cvtps_epi32(_mm512_mul_ps(a, inv));
    const __m512i qb = _mm512_cvtps_epi32(_mm512_mul_ps(b, inv));
    _mm_storeu_si128((__m128i *)q, _mm512_cvtepi32_epi8(qa));
    _mm_storeu_si128((__m128i *)(q + LANES), _mm512_cvtepi32_epi8(qb));
    return d;
}

static void kv_put_q8(int dk, int dv, const float *k, const float *v, char *kv, int pos)
{
    const size_t kb = (size_t)dk / Q8_BLOCK, vb = (size_t)dv / Q8_BLOCK, p = (size_t)pos;
    uint16_t *kd = (uint16_t *)kv;                          /* [dk/32][64] */
    int8_t *kq = (int8_t *)(kd + kb * KV_PAGE);             /* [dk][64] */
    uint16_t *vd = (uint16_t *)(kq + (size_t)dk * KV_PAGE); /* [64][dv/32] */
    int8_t *vq = (int8_t *)(vd + vb * KV_PAGE);             /* [64][dv] */
    for (size_t b = 0; b < kb; b++) {
        int8_t q[Q8_BLOCK];
        kd[b * KV_PAGE + p] = quant_q8(k + b * Q8_BLOCK, q);
        for (size_t i = 0; i < Q8_BLOCK; i++) kq[(b * Q8_BLOCK + i) * KV_PAGE + p] = q[i];
    }
    for (size_t b = 0; b < vb; b++)
        vd[p * vb + b] = quant_q8(v + b * Q8_BLOCK, vq + p * (size_t)dv + b * Q8_BLOCK);
}

const struct elem_kernels elem_table_avx512 = {
    .rms_norm = rms_norm,
    .add = add,
    .swiglu = swiglu,
    .softmax = softmax,
    .combine = combine,
    .rope_neox = rope_neox,
    .rope_norm = rope_norm,
    .kv_put = {kv_put_f16, kv_put_q8},
    .attn = {attn_f16_avx512, attn_q8_avx512},
    .attn_latent = {attn_latent_f16_avx512, attn_latent_q8_avx512},
    .exp = exps,
};
