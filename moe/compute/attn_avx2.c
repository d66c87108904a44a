/* Attention of elem.h with AVX2, FMA and F16C: the inner kernels; the driver is attn_body.h.
 *
 * Owns nothing.  Register plan: up to 6 vectors x 2 registers of 8 positions (or outputs), 12
 * accumulators, 2 registers of K or V and one broadcast. */
#include <immintrin.h>
#include <math.h>

#include "moe/compute/elem_int.h"

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 8, STRIP = 16, GROUP_F32 = 6, GROUP_DIRECT = 6 };

/* Eight values from element i of src. */
INLINE __m256 load8(enum kind kind, const void *src, size_t i)
{
    if (kind == SRC_F32) return _mm256_loadu_ps((const float *)src + i);
    if (kind == SRC_F16)
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)src + i)));
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)((const int8_t *)src + i))));
}

/* Into the first-level cache; any address may be named. */
INLINE void prefetch(const void *p, size_t bytes, ptrdiff_t ahead)
{
    _mm_prefetch((const char *)((uintptr_t)p + bytes + (uintptr_t)ahead), _MM_HINT_T0);
}

INLINE void to_f32(enum kind kind, int n, const void *src, float *dst)
{
    for (int i = 0; i < n; i += LANES) _mm256_storeu_ps(dst + i, load8(kind, src, (size_t)i));
}

static void scale_by(const float *x, const float *w, float *y)
{
    for (int i = 0; i < KV_PAGE; i += LANES)
        _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(w + i)));
}

/* nq vectors x 16 positions, from position at. */
INLINE void qk_strip(enum kind kind, const int nq, const float *const *q,
                     const struct k_piece *k, float *s, size_t at)
{
    const uint16_t *kd = kind == SRC_F16 ? NULL : k->kd;
    const int first = k->d0 == 0;
    const size_t n_d = (size_t)k->n_d;
    __m256 a[6][2];
    const float *qi[6];
    s += at;
#pragma GCC unroll 6
    for (int i = 0; i < nq; i++) {
        qi[i] = q[i] + k->d0;
#pragma GCC unroll 2
        for (int z = 0; z < 2; z++)
            a[i][z] = kd || first ? _mm256_setzero_ps()
                                  : _mm256_loadu_ps(s + i * KV_PAGE + z * LANES);
    }
    for (size_t d = 0; d < n_d; d++) {
        const size_t row = d * KV_PAGE + at;
        const __m256 k0 = load8(kind, k->k, row), k1 = load8(kind, k->k, row + LANES);
        if (kind == SRC_F16) prefetch(k->k, row * 2, k->ahead);
        if (kind == SRC_I8) prefetch(k->k, row, k->ahead);
#pragma GCC unroll 6
        for (int i = 0; i < nq; i++) {
            const __m256 b = _mm256_broadcast_ss(qi[i] + d);
            a[i][0] = _mm256_fmadd_ps(b, k0, a[i][0]);
            a[i][1] = _mm256_fmadd_ps(b, k1, a[i][1]);
        }
    }
#pragma GCC unroll 2
    for (int z = 0; z < 2; z++) {
        const __m256 f = kd ? load8(SRC_F16, kd, at + (size_t)z * LANES) : _mm256_setzero_ps();
#pragma GCC unroll 6
        for (int i = 0; i < nq; i++) {
            float *si = s + i * KV_PAGE + z * LANES;
            if (kd)
                a[i][z] = _mm256_fmadd_ps(a[i][z], f,
                                          first ? _mm256_setzero_ps() : _mm256_loadu_ps(si));
            _mm256_storeu_ps(si, a[i][z]);
        }
    }
}

INLINE void qk_page(enum kind kind, const int nq, const float *const *q,
                    const struct k_piece *k, float *s)
{
    for (size_t at = 0; at < KV_PAGE; at += STRIP)
        qk_strip(kind, nq, q, k, s, at);
}

INLINE void qk_kind(enum kind kind, int nq, const float *const *q, const struct k_piece *k,
                    float *s)
{
    switch (nq) {
    case 1: qk_page(kind, 1, q, k, s); break;
    case 2: qk_page(kind, 2, q, k, s); break;
    case 3: qk_page(kind, 3, q, k, s); break;
    case 4: qk_page(kind, 4, q, k, s); break;
    case 5: qk_page(kind, 5, q, k, s); break;
    default: qk_page(kind, 6, q, k, s); break;
    }
}

static void qk_group(enum kind kind, int nq, const float *const *q, const struct k_piece *k,
                     float *s)
{
    if (kind == SRC_F32)
        qk_kind(SRC_F32, nq, q, k, s);
    else if (kind == SRC_F16)
        qk_kind(SRC_F16, nq, q, k, s);
    else
        qk_kind(SRC_I8, nq, q, k, s);
}

INLINE float fold_add(__m256 lo, __m256 hi)
{
    const __m256 b = _mm256_add_ps(lo, hi);
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

INLINE float fold_max(__m256 lo, __m256 hi, float m)
{
    const __m256 b = _mm256_max_ps(lo, hi);
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(_mm_max_ss(c, _mm_movehdup_ps(c)), _mm_set_ss(m)));
}

/* All ones where lo <= position <= hi, for positions z * 8 and up. */
INLINE __m256 seen(int z, int lo, int hi)
{
    const __m256i at = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                                        _mm256_set1_epi32(z * LANES));
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_cmpgt_epi32(at, _mm256_set1_epi32(lo - 1)),
                                                _mm256_cmpgt_epi32(_mm256_set1_epi32(hi + 1), at)));
}

INLINE float top_of(float *s, int lo, int hi, float scale, float m)
{
    const __m256 f = _mm256_set1_ps(scale), none = _mm256_set1_ps(-INFINITY);
    __m256 top[2] = {none, none};
    for (int z = 0; z < 8; z++) {
        const __m256 x = _mm256_blendv_ps(none, _mm256_mul_ps(_mm256_loadu_ps(s + z * LANES), f),
                                          seen(z, lo, hi));
        _mm256_storeu_ps(s + z * LANES, x);
        top[z & 1] = _mm256_max_ps(x, top[z & 1]);
    }
    return fold_max(top[0], top[1], m);
}

INLINE float weigh(float *s, float top)
{
    const __m256 m = _mm256_set1_ps(top);
    __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int z = 0; z < 8; z++) {
        const __m256 e = elem_exp256(_mm256_sub_ps(_mm256_loadu_ps(s + z * LANES), m));
        _mm256_storeu_ps(s + z * LANES, e);
        sum[z & 1] = _mm256_add_ps(sum[z & 1], e);
    }
    return fold_add(sum[0], sum[1]);
}

INLINE void exp_diff(int n, const float *x, float *y)
{
    for (int i = 0; i < n; i += LANES)
        _mm256_storeu_ps(y + i, elem_exp256(_mm256_sub_ps(_mm256_loadu_ps(y + i),
                                                          _mm256_loadu_ps(x + i))));
}

/* nq vectors x 16 outputs, from output col of the piece. */
INLINE void pv_strip(enum kind kind, const int nq, const float *e, const float *c, int lo, int hi,
                     const struct v_piece *v, float *const *o, size_t col)
{
    const size_t c0 = (size_t)v->c0 + col;
    __m256 a[6][2];
#pragma GCC unroll 6
    for (int i = 0; i < nq; i++) {
        const __m256 f = _mm256_set1_ps(c[i]);
        a[i][0] = _mm256_mul_ps(_mm256_loadu_ps(o[i] + c0), f);
        a[i][1] = _mm256_mul_ps(_mm256_loadu_ps(o[i] + c0 + LANES), f);
    }
    for (int p = lo; p <= hi; p++) {
        const size_t row = (size_t)p * v->ld + col;
        const __m256 v0 = load8(kind, v->v, row), v1 = load8(kind, v->v, row + LANES);
        if (kind == SRC_F16) prefetch(v->v, row * 2, v->ahead);
        if (kind == SRC_I8) prefetch(v->v, row, v->ahead);
#pragma GCC unroll 6
        for (int i = 0; i < nq; i++) {
            const __m256 b = _mm256_broadcast_ss(e + i * KV_PAGE + p);
            a[i][0] = _mm256_fmadd_ps(b, v0, a[i][0]);
            a[i][1] = _mm256_fmadd_ps(b, v1, a[i][1]);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < nq; i++) {
        _mm256_storeu_ps(o[i] + c0, a[i][0]);
        _mm256_storeu_ps(o[i] + c0 + LANES, a[i][1]);
    }
}

INLINE void pv_cols(enum kind kind, const int nq, const float *e, const float *c, int lo, int hi,
                    const struct v_piece *v, float *const *o)
{
    for (size_t col = 0; col < (size_t)v->n_col; col += STRIP)
        pv_strip(kind, nq, e, c, lo, hi, v, o, col);
}

INLINE void pv_kind(enum kind kind, int nq, const float *e, const float *c, int lo, int hi,
                    const struct v_piece *v, float *const *o)
{
    switch (nq) {
    case 1: pv_cols(kind, 1, e, c, lo, hi, v, o); break;
    case 2: pv_cols(kind, 2, e, c, lo, hi, v, o); break;
    case 3: pv_cols(kind, 3, e, c, lo, hi, v, o); break;
    case 4: pv_cols(kind, 4, e, c, lo, hi, v, o); break;
    case 5: pv_cols(kind, 5, e, c, lo, hi, v, o); break;
    default: pv_cols(kind, 6, e, c, lo, hi, v, o); break;
    }
}

static void pv_group(enum kind kind, int nq, const float *e, const float *c, int lo, int hi,
                     const struct v_piece *v, float *const *o)
{
    if (kind == SRC_F32)
        pv_kind(SRC_F32, nq, e, c, lo, hi, v, o);
    else if (kind == SRC_F16)
        pv_kind(SRC_F16, nq, e, c, lo, hi, v, o);
    else
        pv_kind(SRC_I8, nq, e, c, lo, hi, v, o);
}

static void finish(int dv, float *o, float l)
{
    const __m256 d = _mm256_set1_ps(l);
    for (int i = 0; i < dv; i += LANES)
        _mm256_storeu_ps(o + i, _mm256_div_ps(_mm256_loadu_ps(o + i), d));
}

#include "moe/compute/attn_body.h"

void attn_f16_avx2(int dk, int dv, int n_q, float scale, int n_rows, const struct attn_row *rows)
{
    attn_rows(KV_F16, false, dk, dv, n_q, scale, n_rows, rows);
}

void attn_q8_avx2(int dk, int dv, int n_q, float scale, int n_rows, const struct attn_row *rows)
{
    attn_rows(KV_Q8_0, false, dk, dv, n_q, scale, n_rows, rows);
}

void attn_latent_f16_avx2(int dk, int dv, int n_q, float scale, int n_rows,
                          const struct attn_row *rows)
{
    attn_rows(KV_F16, true, dk, dv, n_q, scale, n_rows, rows);
}

void attn_latent_q8_avx2(int dk, int dv, int n_q, float scale, int n_rows,
                         const struct attn_row *rows)
{
    attn_rows(KV_Q8_0, true, dk, dv, n_q, scale, n_rows, rows);
}
