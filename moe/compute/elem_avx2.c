/* elem.h with AVX2, FMA and F16C: the sixteen lanes are two registers, lo (0..7) and hi (8..15).
 * Attention is in attn_avx2.c.
 *
 * Owns nothing.  Tails go through masked loads and stores, so nothing behind element n is read or
 * written.  Absent lanes hold +0 in sums and -inf in maxima, which changes no bit. */
#include <math.h>

#include "moe/compute/elem_int.h"

enum { HALF = 8, LANES = 16 };

/* All ones in the first n lanes. */
static inline __m256i head(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline __m256 load(const float *p, int n)
{
    return n >= HALF ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, head(n));
}

static inline void store(float *p, int n, __m256 v)
{
    if (n >= HALF)
        _mm256_storeu_ps(p, v);
    else
        _mm256_maskstore_ps(p, head(n), v);
}

static inline float fold_add(__m256 lo, __m256 hi)
{
    const __m256 b = _mm256_add_ps(lo, hi);
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

static inline float fold_max(__m256 lo, __m256 hi)
{
    const __m256 b = _mm256_max_ps(lo, hi);
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

static void rms_norm(int n, const float *x, const float *w, float eps, float *y)
{
    __m256 lo = _mm256_setzero_ps(), hi = lo;
    for (int i = 0; i < n; i += LANES) {
        const __m256 a = load(x + i, n - i);
        lo = _mm256_fmadd_ps(a, a, lo);
        if (n - i <= HALF) break;
        const __m256 b = load(x + i + HALF, n - i - HALF);
        hi = _mm256_fmadd_ps(b, b, hi);
    }
    const __m256 r = _mm256_set1_ps(1.0f / sqrtf(fold_add(lo, hi) / (float)n + eps));
    for (int i = 0; i < n; i += HALF) {
        __m256 v = _mm256_mul_ps(load(x + i, n - i), r);
        if (w) v = _mm256_mul_ps(v, load(w + i, n - i));
        store(y + i, n - i, v);
    }
}

static void add(int n, const float *x, float *y)
{
    for (int i = 0; i < n; i += HALF)
        store(y + i, n - i, _mm256_add_ps(load(y + i, n - i), load(x + i, n - i)));
}

static void swiglu(int n, const float *gate, const float *up, float *y)
{
    const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
    for (int i = 0; i < n; i += HALF) {
        const __m256 g = load(gate + i, n - i), u = load(up + i, n - i);
        const __m256 e = elem_exp256(_mm256_xor_ps(g, sign));
        store(y + i, n - i, _mm256_mul_ps(_mm256_div_ps(g, _mm256_add_ps(one, e)), u));
    }
}

/* x where the lane is among the first n, else what. */
static inline __m256 load_or(const float *p, int n, __m256 what)
{
    if (n >= HALF) return _mm256_loadu_ps(p);
    const __m256i k = head(n);
    return _mm256_blendv_ps(what, _mm256_maskload_ps(p, k), _mm256_castsi256_ps(k));
}

static void softmax(int n, float *x)
{
    const __m256 none = _mm256_set1_ps(-INFINITY);
    __m256 m[2] = {none, none}, a[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int i = 0, h = 0; i < n; i += HALF, h ^= 1)
        m[h] = _mm256_max_ps(load_or(x + i, n - i, none), m[h]);
    const __m256 top = _mm256_set1_ps(fold_max(m[0], m[1]));
    for (int i = 0, h = 0; i < n; i += HALF, h ^= 1) {
        __m256 e = elem_exp256(_mm256_sub_ps(load(x + i, n - i), top));
        store(x + i, n - i, e);
        if (n - i < HALF) e = _mm256_and_ps(e, _mm256_castsi256_ps(head(n - i)));
        a[h] = _mm256_add_ps(a[h], e);
    }
    const __m256 sum = _mm256_set1_ps(fold_add(a[0], a[1]));
    for (int i = 0; i < n; i += HALF)
        store(x + i, n - i, _mm256_div_ps(load(x + i, n - i), sum));
}

static void combine(int n, int n_slots, const float *w, const float *const *x, float *y)
{
    int i = 0;
    for (; i + 4 * HALF <= n; i += 4 * HALF) {
        __m256 a = _mm256_setzero_ps(), b = a, c = a, d = a;
        for (int s = 0; s < n_slots; s++) {
            const __m256 f = _mm256_set1_ps(w[s]);
            const float *p = x[s] + i;
            a = _mm256_fmadd_ps(f, _mm256_loadu_ps(p), a);
            b = _mm256_fmadd_ps(f, _mm256_loadu_ps(p + HALF), b);
            c = _mm256_fmadd_ps(f, _mm256_loadu_ps(p + 2 * HALF), c);
            d = _mm256_fmadd_ps(f, _mm256_loadu_ps(p + 3 * HALF), d);
        }
        _mm256_storeu_ps(y + i, a);
        _mm256_storeu_ps(y + i + HALF, b);
        _mm256_storeu_ps(y + i + 2 * HALF, c);
        _mm256_storeu_ps(y + i + 3 * HALF, d);
    }
    for (; i < n; i += HALF) {
        __m256 a = _mm256_setzero_ps();
        for (int s = 0; s < n_slots; s++)
            a = _mm256_fmadd_ps(_mm256_set1_ps(w[s]), load(x[s] + i, n - i), a);
        store(y + i, n - i, a);
    }
}

static void rope_neox(int n_rot, const float *cs, float *x)
{
    const int h = n_rot / 2;
    for (int i = 0; i < h; i += HALF) {
        const int n = h - i;
        const __m256 a = load(x + i, n), b = load(x + h + i, n);
        const __m256 c = load(cs + i, n), s = load(cs + h + i, n);
        store(x + i, n, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
        store(x + h + i, n, _mm256_fmadd_ps(b, c, _mm256_mul_ps(a, s)));
    }
}

static void rope_norm(int n_rot, const float *cs, float *x)
{
    const int h = n_rot / 2;
    const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    for (int i = 0; i < h; i += HALF / 2) {
        const int n = h - i < HALF / 2 ? h - i : HALF / 2;
        const __m256 v = load(x + 2 * i, 2 * n);
        const __m256 c = _mm256_permutevar8x32_ps(load(cs + i, n), twice);
        const __m256 s = _mm256_permutevar8x32_ps(load(cs + h + i, n), twice);
        /* Even lanes a*c - b*s, odd lanes b*c + a*s. */
        store(x + 2 * i, 2 * n,
              _mm256_fmaddsub_ps(v, c, _mm256_mul_ps(_mm256_permute_ps(v, 0xb1), s)));
    }
}

static void exps(int n, const float *x, float *y)
{
    for (int i = 0; i < n; i += HALF) store(y + i, n - i, elem_exp256(load(x + i, n - i)));
}

static inline __m128i to_f16(__m256 v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }

static void kv_put_f16(int dk, int dv, const float *k, const float *v, char *kv, int pos)
{
    uint16_t *kp = (uint16_t *)kv + pos;          /* [dk][64] */
    uint16_t *vp = (uint16_t *)kv + (size_t)dk * KV_PAGE + (size_t)pos * (size_t)dv;
    for (int d = 0; d < dk; d += HALF, kp += HALF * KV_PAGE) {
        uint16_t t[HALF];
        _mm_storeu_si128((__m128i *)t, to_f16(_mm256_loadu_ps(k + d)));
        for (int i = 0; i < HALF; i++) kp[i * KV_PAGE] = t[i];
    }
    for (int d = 0; d < dv; d += HALF)
        _mm_storeu_si128((__m128i *)(vp + d), to_f16(_mm256_loadu_ps(v + d)));
}

/* 32 values to q[32] and the half scale; see elem_ref.c. */
static inline uint16_t quant_q8(const float *x, int8_t *q)
{
    const __m256i mag = _mm256_set1_epi32(0x7fffffff);
    __m256 v[4];
    __m256i top = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_loadu_ps(x + i * HALF);
        top = _mm256_max_epi32(top, _mm256_and_si256(_mm256_castps_si256(v[i]), mag));
    }
    __m128i t = _mm_max_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    t = _mm_max_epi32(t, _mm_shuffle_epi32(t, 0x4e));
    t = _mm_max_epi32(t, _mm_shuffle_epi32(t, 0xb1));
    const __m128 amax = _mm_castsi128_ps(t), n127 = _mm_set1_ps(127.0f);
    const uint16_t d = (uint16_t)_mm_extract_epi16(
        _mm_cvtps_ph(_mm_div_ps(amax, n127), _MM_FROUND_TO_NEAREST_INT), 0);
    if (d == 0 || d >= 0x7c00u) {
        _mm256_storeu_si256((__m256i *)q, _mm256_setzero_si256());
        return d;
    }
    const __m256 inv = _mm256_broadcastss_ps(_mm_div_ps(n127, amax));
    __m256i w[4];
    for (int i = 0; i < 4; i++) w[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inv));
    /* The packs work in 128-bit halves; the permutation puts the groups of four in order. */
    const __m256i b = _mm256_packs_epi16(_mm256_packs_epi32(w[0], w[1]),
                                         _mm256_packs_epi32(w[2], w[3]));
    _mm256_storeu_si256((__m256i *)q, _mm256_permutevar8x32_epi32(
                                          b, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
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

const struct elem_kernels elem_table_avx2 = {
    .rms_norm = rms_norm,
    .add = add,
    .swiglu = swiglu,
    .softmax = softmax,
    .combine = combine,
    .rope_neox = rope_neox,
    .rope_norm = rope_norm,
    .kv_put = {kv_put_f16, kv_put_q8},
    .attn = {attn_f16_avx2, attn_q8_avx2},
    .attn_latent = {attn_latent_f16_avx2, attn_latent_q8_avx2},
    .exp = exps,
};
