/* Private to the AVX2 files: the products of quantised types as inline functions of a constant
 * type, instantiated by MM_QUANT and MM_PARTS (AVX2, FMA, F16C; no VNNI).  Bit-equal to the
 * reference in every output; quant/README.md has the order.  Owns nothing.
 *
 * DESIGN.  A lane is an output row; a ymm holds eight of a tile's sixteen, so a tile is two halves.
 * Products go through vpmaddubsw, whose int16 pairs must not saturate:
 *   Q8_0        |w| unsigned times the activation with w's sign: 2 * 128 * 127 = 32,512 fits, so
 *               each pair is widened by vpmaddwd with ones at once;
 *   IQ4         the same way: 2 * 127 * 127 = 32,258;
 *   Q4_0, Q4_K  nibbles: eight pairs, 8 * 2 * 15 * 127 = 30,480, fit before widening;
 *   Q5, MXFP4   five bits: four pairs, 4 * 2 * 31 * 127 = 31,496, fit;
 *   Q6_K        six bits: two pairs, 2 * 2 * 63 * 127 = 32,004, fit.
 * For the K types the widening vpmaddwd multiplies by the sub-block's scale instead of ones.
 *
 * One row (decode) takes both halves of a block together, so that a tile is read front to back.
 * Several rows: 32 weights of one half are unpacked into eight registers and meet every row of a
 * group of at most GROUP before the next; accumulators wait in L1 scratch (see mm_avx512.c). */
#ifndef QUANT_MM_AVX2_INT_H
#define QUANT_MM_AVX2_INT_H

#if defined(__AVX2__)
#include <immintrin.h>
#include <string.h>

#include "moe/base/f16.h"
#include "quant/mm_int.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    GROUP = 32,   /* rows of a group */
    AHEAD = 4096, /* bytes that a stream of weights is prefetched before its use */
};

/* ---- small pieces ------------------------------------------------------------------------- */

INLINE __m256i load256(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }

INLINE __m256i all_lanes(const char *p)
{
    int32_t v;
    memcpy(&v, p, 4);
    return _mm256_set1_epi32(v);
}

INLINE __m256 all_lanes_f32(const char *p)
{
    float v;
    memcpy(&v, p, 4);
    return _mm256_set1_ps(v);
}

INLINE __m256 load_halfs(const uint8_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

INLINE __m256i zero(void) { return _mm256_setzero_si256(); }

INLINE void prefetch(const uint8_t *p, int n)
{
    for (int i = 0; i < n; i += 64) _mm_prefetch((const char *)p + i, _MM_HINT_T0);
}

INLINE __m256 fma_step(__m256 d, __m256 da, __m256i isum, __m256 acc)
{
    return _mm256_fmadd_ps(_mm256_mul_ps(d, da), _mm256_cvtepi32_ps(isum), acc);
}

/* ---- blocks of 32 ------------------------------------------------------------------------- */

INLINE int block_bytes(enum qtype type)
{
    switch (type) {
    case QTYPE_Q8_0: return T8_0_BYTES;
    case QTYPE_Q4_1: return T4_1_BYTES;
    case QTYPE_Q5_0: return T5_0_BYTES;
    case QTYPE_Q5_1: return T5_1_BYTES;
    case QTYPE_MXFP4: return TMX4_BYTES;
    default: return T4_0_BYTES; /* Q4_0, IQ4_NL */
    }
}

INLINE int nibbles_at(enum qtype type)
{
    switch (type) {
    case QTYPE_Q4_1: return T4_1_Q;
    case QTYPE_Q5_0: return T5_0_Q;
    case QTYPE_Q5_1: return T5_1_Q;
    case QTYPE_MXFP4: return TMX4_Q;
    default: return T4_0_Q;
    }
}

/* Where the second scale lies, 0 for types without one. */
INLINE int min_at(enum qtype type)
{
    return type == QTYPE_Q4_1 ? T4_1_M : type == QTYPE_Q5_1 ? T5_1_M : 0;
}

/* IQ4's table, signed; FP4's plus 16. */
INLINE __m256i nibble_table(enum qtype type)
{
    if (type == QTYPE_MXFP4)
        return _mm256_broadcastsi128_si256(
            _mm_setr_epi8(16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4));
    return _mm256_broadcastsi128_si256(_mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1,
                                                     13, 25, 38, 53, 69, 89, 113));
}

/* Types whose bytes are signed after unpacking, for sign_products. */
INLINE int is_signed(enum qtype type)
{
    return type == QTYPE_Q8_0 || type == QTYPE_IQ4_NL || type == QTYPE_IQ4_XS;
}

/* Half h of a block in the order of the activations. */
INLINE void unpack_32(enum qtype type, const uint8_t *p, int h, __m256i *w)
{
    if (type == QTYPE_Q8_0) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            w[i] = _mm256_xor_si256(load256(p + T8_0_Q + 64 * i + 32 * h), _mm256_set1_epi8(-128));
        return;
    }
    const __m256i low = _mm256_set1_epi8(15);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m256i v = load256(p + nibbles_at(type) + 64 * i + 32 * h);
        w[i] = _mm256_and_si256(v, low);
        w[i + 4] = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
    }
    if (type == QTYPE_IQ4_NL || type == QTYPE_MXFP4) {
        const __m256i table = nibble_table(type);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) w[i] = _mm256_shuffle_epi8(table, w[i]);
    }
    if (type == QTYPE_Q5_0 || type == QTYPE_Q5_1) {
        const __m256i b = load256(p + (type == QTYPE_Q5_0 ? T5_0_H : T5_1_H) + 32 * h);
        const __m256i fifth = _mm256_set1_epi8(16);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            __m256i v = i < 4 ? _mm256_slli_epi16(b, i < 4 ? 4 - i : 0)
                              : _mm256_srli_epi16(b, i < 4 ? 0 : i - 4);
            w[i] = _mm256_or_si256(w[i], _mm256_and_si256(v, fifth));
        }
    }
}

/* Pairs of products of signed bytes. */
INLINE __m256i sign_products(__m256i w, __m256i a)
{
    return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
}

/* The block's exact integer sums with the 32 activations at a; s32 is their sum. */
INLINE __m256i sum_32(enum qtype type, const __m256i *w, const char *a, const char *s32)
{
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i s[2] = {zero(), zero()};
    if (is_signed(type)) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            __m256i v = _mm256_madd_epi16(sign_products(w[i], all_lanes(a + 4 * i)), ones);
            s[i & 1] = _mm256_add_epi32(s[i & 1], v);
        }
        return _mm256_add_epi32(s[0], s[1]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        s[i & 1] = _mm256_add_epi16(s[i & 1], _mm256_maddubs_epi16(w[i], all_lanes(a + 4 * i)));
    if (type == QTYPE_Q4_0 || type == QTYPE_Q4_1)
        s[0] = _mm256_madd_epi16(_mm256_add_epi16(s[0], s[1]), ones);
    else
        s[0] = _mm256_add_epi32(_mm256_madd_epi16(s[0], ones), _mm256_madd_epi16(s[1], ones));
    if (min_at(type)) return s[0];
    return _mm256_sub_epi32(s[0], _mm256_slli_epi32(all_lanes(s32), type == QTYPE_Q4_0 ? 3 : 4));
}

INLINE __m256 scale_32(enum qtype type, const uint8_t *p, int h)
{
    if (type != QTYPE_MXFP4) return load_halfs(p + 16 * h);
    __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8 * h)));
    __m256i v = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    __m256i tiny = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    __m256i is_tiny = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
    return _mm256_castsi256_ps(_mm256_blendv_epi8(v, tiny, is_tiny));
}

/* The float steps of a block; s32 is the sum of its activations. */
INLINE __m256 step_32(enum qtype type, const uint8_t *p, int h, __m256 d, __m256 da, __m256i isum,
                      const char *s32, __m256 acc)
{
    acc = fma_step(d, da, isum, acc);
    if (!min_at(type)) return acc;
    return fma_step(load_halfs(p + min_at(type) + 16 * h), da, all_lanes(s32), acc);
}

INLINE void row_32(enum qtype type, int n_cols, const uint8_t *p, const char *x, float *y)
{
    const char *da = x + n_cols, *s32 = da + n_cols / 32 * 4;
    __m256 acc[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int b = 0; b < n_cols / 32; b++, p += block_bytes(type)) {
        prefetch(p + AHEAD, block_bytes(type));
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            __m256i w[8];
            unpack_32(type, p, h, w);
            acc[h] = step_32(type, p, h, scale_32(type, p, h), all_lanes_f32(da + 4 * b),
                             sum_32(type, w, x + 32 * b, s32 + 4 * b), s32 + 4 * b, acc[h]);
        }
    }
    _mm256_storeu_ps(y, acc[0]);
    _mm256_storeu_ps(y + 8, acc[1]);
}

struct scratch {
    __m256 f[GROUP];
    __m256i i[GROUP];
};

/* n rows against half h of a tile; the sums are left in sc->f. */
INLINE void group_32(enum qtype type, int n_cols, const uint8_t *p, int h, int n,
                     const void *const *x, struct scratch *sc)
{
    for (int r = 0; r < n; r++) sc->f[r] = _mm256_setzero_ps();
    for (int b = 0; b < n_cols / 32; b++, p += block_bytes(type)) {
        size_t at_d = (size_t)n_cols + 4 * (size_t)b, at_s = at_d + (size_t)n_cols / 32 * 4;
        __m256 d = scale_32(type, p, h);
        __m256i w[8];
        prefetch(p + AHEAD, block_bytes(type));
        unpack_32(type, p, h, w);
        for (int r = 0; r < n; r++) {
            const char *a = x[r];
            __m256i s = sum_32(type, w, a + 32 * b, a + at_s);
            sc->f[r] = step_32(type, p, h, d, all_lanes_f32(a + at_d), s, a + at_s, sc->f[r]);
        }
    }
}

/* ---- super-blocks of 256 ------------------------------------------------------------------ */

/* The twelve scale bytes of Q4_K as four bytes per lane: scales 0-3, 4-7, mins 0-3, 4-7. */
INLINE void q4_k_scales(const uint8_t *p, __m256i *sc, __m256i *m)
{
    const __m256i low6 = _mm256_set1_epi32(0x3f3f3f3f), low4 = _mm256_set1_epi32(0x0f0f0f0f);
    const __m256i high = _mm256_set1_epi32(0x30303030);
    __m256i a = load256(p), b = load256(p + 64), c = load256(p + 128);
    sc[0] = _mm256_and_si256(a, low6);
    sc[1] = _mm256_or_si256(_mm256_and_si256(c, low4),
                            _mm256_and_si256(_mm256_srli_epi32(a, 2), high));
    m[0] = _mm256_and_si256(b, low6);
    m[1] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi32(c, 4), low4),
                           _mm256_and_si256(_mm256_srli_epi32(b, 2), high));
}

/* Bytes i and j of every lane as the high bytes of two words; the low bytes are 0. */
INLINE __m256i byte_words(__m256i v, int i, int j)
{
    uint32_t one = 0x00800080u | (uint32_t)i << 8 | (uint32_t)j << 24;
    __m256i base = _mm256_setr_epi32(0, 0x04000400, 0x08000800, 0x0c000c00, 0, 0x04000400,
                                     0x08000800, 0x0c000c00);
    return _mm256_shuffle_epi8(v, _mm256_add_epi8(_mm256_set1_epi32((int)one), base));
}

/* The same as signed words; bytes below 128 read the same either way. */
INLINE __m256i byte_pair(__m256i v, int i, int j)
{
    return _mm256_srai_epi16(byte_words(v, i, j), 8);
}

/* One half of a super-block: its scales doubled as words, its correction pairs, its floats. */
struct super {
    __m256i scale[16], pair[8];
    __m256 d, dmin;
};

INLINE int super_bytes(enum qtype type)
{
    switch (type) {
    case QTYPE_Q2_K: return T2_K_BYTES;
    case QTYPE_Q3_K: return T3_K_BYTES;
    case QTYPE_Q4_K: return T4_K_BYTES;
    case QTYPE_Q5_K: return T5_K_BYTES;
    case QTYPE_Q6_K: return T6_K_BYTES;
    case QTYPE_IQ4_XS: return T4_XS_BYTES;
    default: return 0;
    }
}

/* A scale for every 16 weights; otherwise for every 32. */
INLINE int by_16(enum qtype type)
{
    return type == QTYPE_Q2_K || type == QTYPE_Q3_K || type == QTYPE_Q6_K;
}

INLINE int has_min(enum qtype type)
{
    return type == QTYPE_Q2_K || type == QTYPE_Q4_K || type == QTYPE_Q5_K;
}

/* Sixteen signed scales, four bytes of a lane together. */
INLINE void signed_head(const __m256i *v, struct super *s)
{
    for (int j = 0; j < 4; j++) {
        for (int i = 0; i < 4; i++) s->scale[4 * j + i] = byte_pair(v[j], i, i);
        for (int i = 0; i < 2; i++) s->pair[2 * j + i] = byte_pair(v[j], 2 * i, 2 * i + 1);
    }
}

INLINE void q2_k_head(const uint8_t *p, int h, struct super *s)
{
    const __m256i low4 = _mm256_set1_epi8(15);
    s->dmin = load_halfs(p + T2_K_DMIN + 16 * h);
    for (int j = 0; j < 4; j++) {
        __m256i v = load256(p + T2_K_SC + 64 * j + 32 * h), sc = _mm256_and_si256(v, low4);
        __m256i m = _mm256_and_si256(_mm256_srli_epi16(v, 4), low4);
        for (int i = 0; i < 4; i++) s->scale[4 * j + i] = byte_pair(sc, i, i);
        for (int i = 0; i < 2; i++) s->pair[2 * j + i] = byte_pair(m, 2 * i, 2 * i + 1);
    }
}

INLINE void q3_k_head(const uint8_t *p, int h, struct super *s)
{
    const __m256i low4 = _mm256_set1_epi8(15), high2 = _mm256_set1_epi8(0x30);
    __m256i v[4], c = load256(p + T3_K_SC + 128 + 32 * h);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        __m256i lo = load256(p + T3_K_SC + 64 * (j & 1) + 32 * h), hi = c;
        if (j & 2) lo = _mm256_srli_epi16(lo, 4);
        if (j < 2) hi = _mm256_slli_epi16(hi, j ? 2 : 4);
        if (j == 3) hi = _mm256_srli_epi16(hi, 2);
        lo = _mm256_or_si256(_mm256_and_si256(lo, low4), _mm256_and_si256(hi, high2));
        v[j] = _mm256_sub_epi8(lo, _mm256_set1_epi8(32));
    }
    signed_head(v, s);
}

INLINE void iq4_xs_head(const uint8_t *p, int h, struct super *s)
{
    const __m256i low4 = _mm256_set1_epi32(15), high2 = _mm256_set1_epi32(0x30);
    __m256i sl = load256(p + T4_XS_SL + 32 * h);
    __m256i sh = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p + T4_XS_SH + 16 * h)));
    sh = _mm256_slli_epi32(sh, 4);
    for (int u = 0; u < 8; u++) {
        __m256i v = _mm256_and_si256(_mm256_srli_epi32(sl, 4 * u), low4);
        v = _mm256_or_si256(v, _mm256_and_si256(_mm256_srli_epi32(sh, 2 * u), high2));
        v = _mm256_sub_epi32(v, _mm256_set1_epi32(32));
        s->scale[u] = _mm256_blend_epi16(v, _mm256_slli_epi32(v, 16), 0xaa);
    }
}

INLINE void super_head(enum qtype type, const uint8_t *p, int h, struct super *s)
{
    s->d = load_halfs(p + 16 * h);
    if (type == QTYPE_Q4_K || type == QTYPE_Q5_K) {
        __m256i sc[2], m[2];
        s->dmin = load_halfs(p + T4_K_DMIN + 16 * h);
        q4_k_scales(p + T4_K_SC + 32 * h, sc, m); /* Q5_K has them at the same place */
        for (int i = 0; i < 8; i++) s->scale[i] = byte_pair(sc[i / 4], i % 4, i % 4);
        for (int i = 0; i < 4; i++) s->pair[i] = byte_pair(m[i / 2], i % 2 * 2, i % 2 * 2 + 1);
    } else if (type == QTYPE_Q2_K) {
        q2_k_head(p, h, s);
    } else if (type == QTYPE_Q3_K) {
        q3_k_head(p, h, s);
    } else if (type == QTYPE_IQ4_XS) {
        iq4_xs_head(p, h, s);
    } else {
        __m256i v[4];
        for (int j = 0; j < 4; j++) v[j] = load256(p + T6_K_SC + 64 * j + 32 * h);
        signed_head(v, s);
    }
}

/* Stretch 2 i + odd of a Q4_K super-block, half h: the low or the high nibbles of quarter i. */
INLINE void unpack_q4_k(const uint8_t *p, int h, int i, int odd, __m256i *w)
{
    const __m256i low = _mm256_set1_epi8(15);
    p += T4_K_Q + i * 512 + 32 * h;
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        __m256i v = load256(p + 64 * j);
        w[j] = _mm256_and_si256(odd ? _mm256_srli_epi16(v, 4) : v, low);
    }
}

/* Stretch 4 i + t of a Q6_K super-block, half h: quarter t of weights 128 i and on. */
INLINE void unpack_q6_k(const uint8_t *p, int h, int i, int t, __m256i *w)
{
    const __m256i low = _mm256_set1_epi8(15), high = _mm256_set1_epi8(0x30);
    const uint8_t *ql = p + T6_K_QL + (i * 16 + (t & 1) * 8) * 64 + 32 * h;
    const uint8_t *qh = p + T6_K_QH + i * 512 + 32 * h;
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        __m256i lo = load256(ql + 64 * j), hi = load256(qh + 64 * j);
        if (t & 2) lo = _mm256_srli_epi16(lo, 4);
        if (t < 2) hi = _mm256_slli_epi16(hi, t ? 2 : 4);
        if (t == 3) hi = _mm256_srli_epi16(hi, 2);
        w[j] = _mm256_or_si256(_mm256_and_si256(lo, low), _mm256_and_si256(hi, high));
    }
}

/* Bit u of every byte of v moved to bit `to`; the other bits are in the way. */
INLINE __m256i bit_to(__m256i v, int u, int to)
{
    return _mm256_slli_epi16(_mm256_srl_epi16(v, _mm_cvtsi32_si128(u)), to);
}

/* Stretch 2 i + odd of a Q5_K super-block: as Q4_K, and a fifth bit. */
INLINE void unpack_q5_k(const uint8_t *p, int h, int i, int odd, __m256i *w)
{
    const __m256i low = _mm256_set1_epi8(15), fifth = _mm256_set1_epi8(16);
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        __m256i v = load256(p + T5_K_Q + i * 512 + 64 * j + 32 * h);
        __m256i b = load256(p + T5_K_H + 64 * j + 32 * h);
        if (odd) v = _mm256_srli_epi16(v, 4);
        b = _mm256_and_si256(bit_to(b, 2 * i + odd, 4), fifth);
        w[j] = _mm256_or_si256(_mm256_and_si256(v, low), b);
    }
}

/* Stretch 4 i + t of a Q2_K or Q3_K super-block: two bits, and Q3_K's third. */
INLINE void unpack_q23_k(enum qtype type, const uint8_t *p, int h, int i, int t, __m256i *w)
{
    const __m256i low = _mm256_set1_epi8(3), third = _mm256_set1_epi8(4);
    const uint8_t *q = p + (type == QTYPE_Q2_K ? T2_K_Q : T3_K_Q) + i * 512 + 32 * h;
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        __m256i v = load256(q + 64 * j);
        if (t) v = _mm256_srli_epi16(v, 2 * t);
        w[j] = _mm256_and_si256(v, low);
        if (type == QTYPE_Q2_K) continue;
        v = bit_to(load256(p + T3_K_H + 64 * j + 32 * h), 4 * i + t, 2);
        w[j] = _mm256_or_si256(w[j], _mm256_and_si256(v, third));
    }
}

INLINE void unpack_iq4_xs(const uint8_t *p, int h, int u, __m256i *w)
{
    const __m256i low = _mm256_set1_epi8(15), table = nibble_table(QTYPE_IQ4_XS);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        __m256i v = load256(p + T4_XS_Q + 256 * u + 64 * j + 32 * h);
        w[j] = _mm256_shuffle_epi8(table, _mm256_and_si256(v, low));
        w[j + 4] = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), low));
    }
}

/* Stretches that differ in their shifts only: unrolled, so that the shifts are constants. */
INLINE int phases(enum qtype type)
{
    return by_16(type) ? 4 : type == QTYPE_IQ4_XS ? 1 : 2;
}

INLINE void unpack_256(enum qtype type, const uint8_t *p, int h, int i, int phase, __m256i *w)
{
    if (type == QTYPE_Q4_K) unpack_q4_k(p, h, i, phase, w);
    else if (type == QTYPE_Q5_K) unpack_q5_k(p, h, i, phase, w);
    else if (type == QTYPE_Q6_K) unpack_q6_k(p, h, i, phase, w);
    else if (type == QTYPE_IQ4_XS) unpack_iq4_xs(p, h, i, w);
    else unpack_q23_k(type, p, h, i, phase, w);
}

/* The scaled integer sum of stretch u with the 32 activations at a. */
INLINE __m256i stretch_sum(enum qtype type, const __m256i *w, const __m256i *scale, int u,
                           const char *a)
{
    const __m256i *sc = scale + (by_16(type) ? 2 * u : u);
    const __m256i sc1 = sc[by_16(type) ? 1 : 0];
    __m256i v[8];
    if (is_signed(type)) { /* no two pairs fit */
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            v[i] = _mm256_madd_epi16(sign_products(w[i], all_lanes(a + 4 * i)), sc[0]);
#pragma GCC unroll 4
        for (int i = 0; i < 8; i += 2) v[i] = _mm256_add_epi32(v[i], v[i + 1]);
        return _mm256_add_epi32(_mm256_add_epi32(v[0], v[2]), _mm256_add_epi32(v[4], v[6]));
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) v[i] = _mm256_maddubs_epi16(w[i], all_lanes(a + 4 * i));
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) v[i] = _mm256_add_epi16(v[i], v[i + 1]);
    if (type == QTYPE_Q4_K) { /* all eight fit */
        v[0] = _mm256_add_epi16(_mm256_add_epi16(v[0], v[2]), _mm256_add_epi16(v[4], v[6]));
        return _mm256_madd_epi16(v[0], sc[0]);
    }
    if (type != QTYPE_Q6_K) { /* four fit */
        v[0] = _mm256_madd_epi16(_mm256_add_epi16(v[0], v[2]), sc[0]);
        v[4] = _mm256_madd_epi16(_mm256_add_epi16(v[4], v[6]), sc1);
        return _mm256_add_epi32(v[0], v[4]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) v[2 * i] = _mm256_madd_epi16(v[2 * i], sc[i / 2]);
    return _mm256_add_epi32(_mm256_add_epi32(v[0], v[2]), _mm256_add_epi32(v[4], v[6]));
}

INLINE __m256i pair_sum(const __m256i *pair, int n, const char *sums)
{
    __m256i s = zero();
    for (int i = 0; i < n; i++)
        s = _mm256_add_epi32(s, _mm256_madd_epi16(pair[i], all_lanes(sums + 4 * i)));
    return s;
}

/* The float step of a super-block; a is the row, b the super-block. */
INLINE __m256 super_step(enum qtype type, const struct super *s, __m256i isum, const char *a,
                         int n_cols, int b, __m256 acc)
{
    const char *d = a + n_cols, *s16 = d + n_cols / 256 * 4, *s32 = s16 + n_cols / 16 * 2;
    __m256 da = all_lanes_f32(d + 4 * (size_t)b);
    if (type == QTYPE_IQ4_XS) return fma_step(s->d, da, isum, acc);
    const char *sums = by_16(type) ? s16 + 32 * (size_t)b : s32 + 16 * (size_t)b;
    __m256i pairs = pair_sum(s->pair, by_16(type) ? 8 : 4, sums);
    if (has_min(type)) {
        acc = fma_step(s->d, da, isum, acc);
        return _mm256_fnmadd_ps(_mm256_mul_ps(s->dmin, da), _mm256_cvtepi32_ps(pairs), acc);
    }
    pairs = _mm256_slli_epi32(pairs, type == QTYPE_Q3_K ? 2 : 5);
    return fma_step(s->d, da, _mm256_sub_epi32(isum, pairs), acc);
}

INLINE void row_256(enum qtype type, int n_cols, const uint8_t *p, const char *x, float *y)
{
    const int bytes = super_bytes(type);
    __m256 acc[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    struct super s[2];
    for (int b = 0; b < n_cols / 256; b++, p += bytes) {
        __m256i isum[2] = {zero(), zero()};
        super_head(type, p, 0, &s[0]);
        super_head(type, p, 1, &s[1]);
        for (int i = 0; i < 8 / phases(type); i++)
#pragma GCC unroll 4
            for (int k = 0; k < phases(type); k++) {
                const int u = i * phases(type) + k;
                prefetch(p + AHEAD + bytes / 8 * u, bytes / 8);
#pragma GCC unroll 2
                for (int h = 0; h < 2; h++) {
                    __m256i w[8];
                    unpack_256(type, p, h, i, k, w);
                    isum[h] = _mm256_add_epi32(
                        isum[h], stretch_sum(type, w, s[h].scale, u, x + 256 * b + 32 * u));
                }
            }
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++)
            acc[h] = super_step(type, &s[h], isum[h], x, n_cols, b, acc[h]);
    }
    _mm256_storeu_ps(y, acc[0]);
    _mm256_storeu_ps(y + 8, acc[1]);
}

INLINE void group_256(enum qtype type, int n_cols, const uint8_t *p, int h, int n,
                      const void *const *x, struct scratch *sc)
{
    const int bytes = super_bytes(type);
    struct super s;
    for (int r = 0; r < n; r++) {
        sc->f[r] = _mm256_setzero_ps();
        sc->i[r] = zero();
    }
    for (int b = 0; b < n_cols / 256; b++, p += bytes) {
        super_head(type, p, h, &s);
        for (int i = 0; i < 8 / phases(type); i++)
#pragma GCC unroll 4
            for (int k = 0; k < phases(type); k++) {
                const int u = i * phases(type) + k;
                __m256i w[8];
                prefetch(p + AHEAD + bytes / 8 * u, bytes / 8);
                unpack_256(type, p, h, i, k, w);
                for (int r = 0; r < n; r++) {
                    const char *a = (const char *)x[r] + 256 * b + 32 * u;
                    sc->i[r] = _mm256_add_epi32(sc->i[r], stretch_sum(type, w, s.scale, u, a));
                }
            }
        for (int r = 0; r < n; r++) {
            sc->f[r] = super_step(type, &s, sc->i[r], x[r], n_cols, b, sc->f[r]);
            sc->i[r] = zero();
        }
    }
}

/* ---- the loops around the quantised types -------------------------------------------------- */

INLINE void row_any(enum qtype type, int n_cols, const uint8_t *p, const char *x, float *y)
{
    if (super_bytes(type)) row_256(type, n_cols, p, x, y);
    else row_32(type, n_cols, p, x, y);
}

INLINE void group_any(enum qtype type, int n_cols, const uint8_t *p, int h, int n,
                      const void *const *x, struct scratch *sc)
{
    if (super_bytes(type)) group_256(type, n_cols, p, h, n, x, sc);
    else group_32(type, n_cols, p, h, n, x, sc);
}

/* Rows r0 .. r1-1 against one tile whose outputs are y[r][0 .. 16). */
INLINE void rows_any(enum qtype type, int n_cols, const uint8_t *p, int r0, int r1,
                     const void *const *x, float *const *y, int y_at)
{
    struct scratch sc;
    for (; r0 < r1; r0 += GROUP) {
        int n = r1 - r0 < GROUP ? r1 - r0 : GROUP;
        for (int h = 0; h < 2; h++) {
            group_any(type, n_cols, p, h, n, x + r0, &sc);
            for (int r = 0; r < n; r++) _mm256_storeu_ps(y[r0 + r] + y_at + 8 * h, sc.f[r]);
        }
    }
}

INLINE void mm_any(enum qtype type, enum act_kind act, int n_cols, int n_tiles, const void *w,
                   int n_rows, const void *const *x, float *const *y)
{
    const size_t tile = tile_bytes(type, n_cols);
    const int chunk = mm_chunk(act, n_cols, GROUP);
    for (int c0 = 0; c0 < n_rows; c0 += chunk) {
        int c1 = n_rows - c0 < chunk ? n_rows : c0 + chunk;
        const uint8_t *p = w;
        for (int t = 0; t < n_tiles; t++, p += tile) {
            if (n_rows == 1) row_any(type, n_cols, p, x[0], y[0] + TILE_ROWS * t);
            else rows_any(type, n_cols, p, c0, c1, x, y, TILE_ROWS * t);
        }
    }
}

#define MM_QUANT(name, TYPE, ACT)                                                                \
    static void mm_##name(int n_cols, int n_tiles, const void *w, int n_rows,                    \
                          const void *const *x, float *const *y)                                 \
    {                                                                                            \
        mm_any(QTYPE_##TYPE, ACT, n_cols, n_tiles, w, n_rows, x, y);                             \
    }

/* The same for the types of parts_int.h. */
#define MM_PARTS(TYPE, ACT)                                                                      \
    void mm_avx2_##TYPE(int n_cols, int n_tiles, const void *w, int n_rows,                      \
                        const void *const *x, float *const *y)                                   \
    {                                                                                            \
        mm_any(QTYPE_##TYPE, ACT, n_cols, n_tiles, w, n_rows, x, y);                             \
    }

#endif
#endif
