/* Attention of elem.h with AVX-512: the inner kernels; the driver is attn_body.h.
 *
 * Owns nothing.  Register plan: up to 6 vectors x 4 registers of 16 positions (or outputs), 24
 * accumulators, 4 registers of K or V and one broadcast; 7 and 8 vectors take 2 registers each. */
#include <immintrin.h>
#include <math.h>

#include "moe/compute/elem_int.h"

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16, GROUP_F32 = 6, GROUP_DIRECT = 8 };

/* Sixteen values from element i of src. */
INLINE __m512 load16(enum kind kind, const void *src, size_t i)
{
    if (kind == SRC_F32) return _mm512_loadu_ps((const float *)src + i);
    if (kind == SRC_F16)
        return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)((const uint16_t *)src + i)));
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)((const int8_t *)src + i))));
}

/* Into the first-level cache; any address may be named. */
INLINE void prefetch(const void *p, size_t bytes, ptrdiff_t ahead)
{
    _mm_prefetch((const char *)((uintptr_t)p + bytes + (uintptr_t)ahead), _MM_HINT_T0);
}

INLINE void to_f32(enum kind kind, int n, const void *src, float *dst)
{
    for (int i = 0; i < n; i += LANES) _mm512_storeu_ps(dst + i, load16(kind, src, (size_t)i));
}

static void scale_by(const float *x, const float *w, float *y)
{
    for (int i = 0; i < KV_PAGE; i += LANES)
        _mm512_storeu_ps(y + i, _mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_loadu_ps(w + i)));
}

/* nq vectors x nz registers of positions, from position at. */
INLINE void qk_strip(enum kind kind, const int nq, const int nz, const float *const *q,
                     const struct k_piece *k, float *s, size_t at)
{
    const uint16_t *kd = kind == SRC_F16 ? NULL : k->kd;
    const int first = k->d0 == 0;
    const size_t n_d = (size_t)k->n_d;
    __m512 a[8][4];
    const float *qi[8];
    s += at;
#pragma GCC unroll 8
    for (int i = 0; i < nq; i++) {
        qi[i] = q[i] + k->d0;
#pragma GCC unroll 4
        for (int z = 0; z < nz; z++)
            a[i][z] = kd || first ? _mm512_setzero_ps()
                                  : _mm512_loadu_ps(s + i * KV_PAGE + z * LANES);
    }
    for (size_t d = 0; d < n_d; d++) {
        __m512 kv[4];
        const size_t row = d * KV_PAGE + at;
        if (kind == SRC_F16) prefetch(k->k, row * 2, k->ahead);
        if (kind == SRC_F16 && nz == 4) prefetch(k->k, row * 2 + 64, k->ahead);
        if (kind == SRC_I8) prefetch(k->k, row, k->ahead);
#pragma GCC unroll 4
        for (int z = 0; z < nz; z++) kv[z] = load16(kind, k->k, row + (size_t)z * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < nq; i++) {
            const __m512 b = _mm512_set1_ps(qi[i][d]);
#pragma GCC unroll 4
            for (int z = 0; z < nz; z++) a[i][z] = _mm512_fmadd_ps(b, kv[z], a[i][z]);
        }
    }
#pragma GCC unroll 4
    for (int z = 0; z < nz; z++) {
        const __m512 f = kd ? load16(SRC_F16, kd, at + (size_t)z * LANES) : _mm512_setzero_ps();
#pragma GCC unroll 8
        for (int i = 0; i < nq; i++) {
            float *si = s + i * KV_PAGE + z * LANES;
            if (kd)
                a[i][z] = _mm512_fmadd_ps(a[i][z], f,
                                          first ? _mm512_setzero_ps() : _mm512_loadu_ps(si));
            _mm512_storeu_ps(si, a[i][z]);
        }
    }
}

INLINE void qk_kind(enum kind kind, int nq, const float *const *q, const struct k_piece *k,
                    float *s)
{
    switch (nq) {
    case 1: qk_strip(kind, 1, 4, q, k, s, 0); break;
    case 2: qk_strip(kind, 2, 4, q, k, s, 0); break;
    case 3: qk_strip(kind, 3, 4, q, k, s, 0); break;
    case 4: qk_strip(kind, 4, 4, q, k, s, 0); break;
    case 5: qk_strip(kind, 5, 4, q, k, s, 0); break;
    case 6: qk_strip(kind, 6, 4, q, k, s, 0); break;
    case 7:
        for (size_t at = 0; at < KV_PAGE; at += 32)
            qk_strip(kind, 7, 2, q, k, s, at);
        break;
    default:
        for (size_t at = 0; at < KV_PAGE; at += 32)
            qk_strip(kind, 8, 2, q, k, s, at);
        break;
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

INLINE float fold_add(__m512 a)
{
    __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

INLINE float fold_max(__m512 a, float m)
{
    __m256 b = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(_mm_max_ss(c, _mm_movehdup_ps(c)), _mm_set_ss(m)));
}

/* Bit p tells whether position p is seen. */
INLINE uint64_t seen(int lo, int hi) { return (UINT64_MAX << lo) & (UINT64_MAX >> (63 - hi)); }

INLINE float top_of(float *s, int lo, int hi, float scale, float m)
{
    const __m512 f = _mm512_set1_ps(scale), none = _mm512_set1_ps(-INFINITY);
    const uint64_t mask = seen(lo, hi);
    __m512 top = none;
#pragma GCC unroll 4
    for (int z = 0; z < 4; z++) {
        const __m512 x = _mm512_mask_mul_ps(none, (__mmask16)(mask >> (z * LANES)),
                                            _mm512_loadu_ps(s + z * LANES), f);
        _mm512_storeu_ps(s + z * LANES, x);
        top = _mm512_max_ps(x, top);
    }
    return fold_max(top, m);
}

INLINE float weigh(float *s, float top)
{
    const __m512 m = _mm512_set1_ps(top);
    __m512 sum = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int z = 0; z < 4; z++) {
        const __m512 e = elem_exp512(_mm512_sub_ps(_mm512_loadu_ps(s + z * LANES), m));
        sum = _mm512_add_ps(sum, e);
        _mm512_storeu_ps(s + z * LANES, e);
    }
    return fold_add(sum);
}

INLINE void exp_diff(int n, const float *x, float *y)
{
    for (int i = 0; i < n; i += LANES)
        _mm512_storeu_ps(y + i, elem_exp512(_mm512_sub_ps(_mm512_loadu_ps(y + i),
                                                          _mm512_loadu_ps(x + i))));
}

/* nq vectors x nz registers of outputs, from output col of the piece. */
INLINE void pv_strip(enum kind kind, const int nq, const int nz, const float *e, const float *c,
                     int lo, int hi, const struct v_piece *v, float *const *o, size_t col)
{
    const size_t c0 = (size_t)v->c0 + col;
    __m512 a[8][4];
#pragma GCC unroll 8
    for (int i = 0; i < nq; i++) {
        const __m512 f = _mm512_set1_ps(c[i]);
#pragma GCC unroll 4
        for (int z = 0; z < nz; z++)
            a[i][z] = _mm512_mul_ps(_mm512_loadu_ps(o[i] + c0 + z * LANES), f);
    }
    for (int p = lo; p <= hi; p++) {
        __m512 vv[4];
        const size_t row = (size_t)p * v->ld + col;
        if (kind == SRC_F16) prefetch(v->v, row * 2, v->ahead);
        if (kind == SRC_F16 && nz == 4) prefetch(v->v, row * 2 + 64, v->ahead);
        if (kind == SRC_I8) prefetch(v->v, row, v->ahead);
#pragma GCC unroll 4
        for (int z = 0; z < nz; z++)
            vv[z] = load16(kind, v->v, row + (size_t)z * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < nq; i++) {
            const __m512 b = _mm512_set1_ps(e[i * KV_PAGE + p]);
#pragma GCC unroll 4
            for (int z = 0; z < nz; z++) a[i][z] = _mm512_fmadd_ps(b, vv[z], a[i][z]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < nq; i++)
#pragma GCC unroll 4
        for (int z = 0; z < nz; z++) _mm512_storeu_ps(o[i] + c0 + z * LANES, a[i][z]);
}

/* All columns of a piece: wide strips, then what is left.  A block of Q8_0 is 2 registers. */
INLINE void pv_cols(enum kind kind, const int nq, const int nz, const float *e, const float *c,
                    int lo, int hi, const struct v_piece *v, float *const *o)
{
    size_t col = 0;
    const size_t n = (size_t)v->n_col;
    if (nz == 4)
        for (; col + 4 * LANES <= n; col += 4 * LANES)
            pv_strip(kind, nq, 4, e, c, lo, hi, v, o, col);
    for (; col + 2 * LANES <= n; col += 2 * LANES)
        pv_strip(kind, nq, 2, e, c, lo, hi, v, o, col);
    if (kind != SRC_I8 && col < n) pv_strip(kind, nq, 1, e, c, lo, hi, v, o, col);
}

INLINE void pv_kind(enum kind kind, int nq, const float *e, const float *c, int lo, int hi,
                    const struct v_piece *v, float *const *o)
{
    const int nz = kind == SRC_I8 ? 2 : 4;
    switch (nq) {
    case 1: pv_cols(kind, 1, nz, e, c, lo, hi, v, o); break;
    case 2: pv_cols(kind, 2, nz, e, c, lo, hi, v, o); break;
    case 3: pv_cols(kind, 3, nz, e, c, lo, hi, v, o); break;
    case 4: pv_cols(kind, 4, nz, e, c, lo, hi, v, o); break;
    case 5: pv_cols(kind, 5, nz, e, c, lo, hi, v, o); break;
    case 6: pv_cols(kind, 6, nz, e, c, lo, hi, v, o); break;
    case 7: pv_cols(kind, 7, 2, e, c, lo, hi, v, o); break;
    default: pv_cols(kind, 8, 2, e, c, lo, hi, v, o); break;
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
    const __m512 d = _mm512_set1_ps(l);
    for (int i = 0; i < dv; i += LANES)
        _mm512_storeu_ps(o + i, _mm512_div_ps(_mm512_loadu_ps(o + i), d));
}

#include "moe/compute/attn_body.h"

void attn_f16_avx512(int dk, int dv, int n_q, float scale, int n_rows, const struct attn_row *rows)
{
    attn_rows(KV_F16, false, dk, dv, n_q, scale, n_rows, rows);
}

void attn_q8_avx512(int dk, int dv, int n_q, float scale, int n_rows, const struct attn_row *rows)
{
    attn_rows(KV_Q8_0, false, dk, dv, n_q, scale, n_rows, rows);
}

void attn_latent_f16_avx512(int dk, int dv, int n_q, float scale, int n_rows,
                            const struct attn_row *rows)
{
    attn_rows(KV_F16, true, dk, dv, n_q, scale, n_rows, rows);
}

void attn_latent_q8_avx512(int dk, int dv, int n_q, float scale, int n_rows,
                           const struct attn_row *rows)
{
    attn_rows(KV_Q8_0, true, dk, dv, n_q, scale, n_rows, rows);
}
