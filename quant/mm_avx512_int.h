/* Private to the AVX-512 files: the products of quantised types as inline functions of a constant
 * type, instantiated by MM_QUANT and MM_PARTS.  Bit-equal to the reference in every output;
 * quant/README.md has the order.  Owns nothing but stack scratch of a few kilobytes.
 *
 * DESIGN.  A lane is an output row, so a zmm holds one tile row of 16 outputs and nothing is ever
 * summed across lanes.  Weight bytes are the unsigned operand of vpdpbusd, four activation bytes,
 * broadcast, the signed one.
 *
 * Few rows (decode): tile after tile, which is one contiguous stream of DRAM, prefetched AHEAD
 * bytes.  All sums are in registers.  Each block's integer sums are independent, so out-of-order
 * execution overlaps them and only the float chain is serial: one fma per block.  For F32, F16 and
 * BF16 the chain has one fma per weight; four tiles run together to hide its latency.
 *
 * Many rows (prefill): two tiles at a time; a stretch of 32 weights of both tiles is unpacked into
 * sixteen registers and meets every row of the group before the next stretch, so unpacking is paid
 * once per group.  Float (and, for K types, integer) accumulators wait in L1 scratch: one load and
 * one store per eight vpdpbusd.  A group is at most GROUP rows; groups are taken inside a tile
 * pair, so that the pair stays in L2, and everything inside a chunk of rows whose activations fit
 * L2. */
#ifndef QUANT_MM_AVX512_INT_H
#define QUANT_MM_AVX512_INT_H

#if defined(__AVX512VNNI__)
#include <immintrin.h>
#include <string.h>

#include "moe/base/f16.h"
#include "quant/mm_int.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    FEW = 8,           /* rows whose sums stay in registers */
    GROUP = 32,        /* rows of a group: scratch is GROUP * 2 vectors of each kind */
    AHEAD = 8192,      /* bytes that one stream of weights is prefetched before its use, to L2 */
    NEAR = 1024,       /* and from there to L1 */
    AHEAD_PAIR = 4096, /* the same for each of two streams */
};

/* ---- small pieces ----------------------------------------------------------------------- */

INLINE __m512i load512(const uint8_t *p) { return _mm512_loadu_si512(p); }

/* The four bytes at p in every lane. */
INLINE __m512i all_lanes(const char *p)
{
    int32_t v;
    memcpy(&v, p, 4);
    return _mm512_set1_epi32(v);
}

INLINE __m512 all_lanes_f32(const char *p)
{
    float v;
    memcpy(&v, p, 4);
    return _mm512_set1_ps(v);
}

INLINE __m512 load_halfs(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

INLINE __m512i zero(void) { return _mm512_setzero_si512(); }

INLINE void prefetch(const uint8_t *p, int n)
{
    for (int i = 0; i < n; i += 64) _mm_prefetch((const char *)p + i, _MM_HINT_T0);
}

/* For a stream from DRAM, n bytes at p being used now.  In two steps: more lines can be on their way
 * to L2 than to L1. */
INLINE void prefetch_stream(const uint8_t *p, int n)
{
    for (int i = 0; i < n; i += 64) _mm_prefetch((const char *)p + AHEAD + i, _MM_HINT_T1);
    for (int i = 0; i < n; i += 64) _mm_prefetch((const char *)p + NEAR + i, _MM_HINT_T0);
}

/* acc + sum of four-byte products of w[0..n) with n dwords of activations. */
INLINE __m512i dot(__m512i acc, const __m512i *w, const char *a, int n)
{
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) acc = _mm512_dpbusd_epi32(acc, w[i], all_lanes(a + 4 * i));
    return acc;
}

/* ---- blocks of 32: one float step, or two, per block --------------------------------------- */

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

/* IQ4's table plus 128, FP4's plus 16. */
INLINE __m512i nibble_table(enum qtype type)
{
    if (type == QTYPE_MXFP4)
        return _mm512_broadcast_i32x4(
            _mm_setr_epi8(16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4));
    return _mm512_broadcast_i32x4(_mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, (char)129,
                                                (char)141, (char)153, (char)166, (char)181,
                                                (char)197, (char)217, (char)241));
}

/* The block's weights as unsigned bytes, in the order of the activations. */
INLINE void unpack_32(enum qtype type, const uint8_t *p, __m512i *w)
{
    if (type == QTYPE_Q8_0) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) w[i] = load512(p + T8_0_Q + 64 * i);
        return;
    }
    const __m512i low = _mm512_set1_epi8(15);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512i v = load512(p + nibbles_at(type) + 64 * i);
        w[i] = _mm512_and_si512(v, low);
        w[i + 4] = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
    }
    if (type == QTYPE_IQ4_NL || type == QTYPE_MXFP4) {
        const __m512i table = nibble_table(type);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) w[i] = _mm512_shuffle_epi8(table, w[i]);
    }
    if (type == QTYPE_Q5_0 || type == QTYPE_Q5_1) {
        const __m512i h = load512(p + (type == QTYPE_Q5_0 ? T5_0_H : T5_1_H));
        const __m512i fifth = _mm512_set1_epi8(16);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            __m512i v = i < 4 ? _mm512_slli_epi16(h, (unsigned)(i < 4 ? 4 - i : 0))
                              : _mm512_srli_epi16(h, (unsigned)(i < 4 ? 0 : i - 4));
            w[i] = _mm512_ternarylogic_epi32(w[i], v, fifth, 0xf8);
        }
    }
}

INLINE __m512 scale_32(enum qtype type, const uint8_t *p)
{
    if (type != QTYPE_MXFP4) return load_halfs(p);
    __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
    __m512i v = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
    __mmask16 tiny = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
    return _mm512_castsi512_ps(
        _mm512_mask_sllv_epi32(v, tiny, _mm512_set1_epi32(0x00200000), e));
}

/* What reading the weights as unsigned added to the block's sum, with its sign turned. */
INLINE __m512i offset_32(enum qtype type, const char *s32)
{
    if (min_at(type)) return zero();
    const int shift = type == QTYPE_Q8_0 || type == QTYPE_IQ4_NL ? 7 : type == QTYPE_Q4_0 ? 3 : 4;
    return _mm512_sub_epi32(zero(), _mm512_slli_epi32(all_lanes(s32), (unsigned)shift));
}

/* The float steps of a block: d and m are the weights' scales, s32 the sum of activations. */
INLINE __m512 step_32(enum qtype type, __m512 d, __m512 m, __m512 da, __m512i isum,
                      const char *s32, __m512 acc)
{
    acc = _mm512_fmadd_ps(_mm512_mul_ps(d, da), _mm512_cvtepi32_ps(isum), acc);
    if (!min_at(type)) return acc;
    return _mm512_fmadd_ps(_mm512_mul_ps(m, da), _mm512_cvtepi32_ps(all_lanes(s32)), acc);
}

/* C rows, all sums in registers, tile after tile. */
INLINE void few_32(enum qtype type, int C, int n_cols, int n_tiles, const uint8_t *p,
                   const void *const *x, float *const *y, int y_at)
{
    const char *a[FEW];
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) a[c] = x[c];
    for (int t = 0; t < n_tiles; t++) {
        __m512 acc[FEW];
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) acc[c] = _mm512_setzero_ps();
        for (int b = 0; b < n_cols / 32; b++, p += block_bytes(type)) {
            const size_t at_d = (size_t)n_cols + 4 * (size_t)b;
            const size_t at_s = at_d + (size_t)n_cols / 32 * 4;
            __m512i w[8];
            prefetch_stream(p, block_bytes(type));
            unpack_32(type, p, w);
            __m512 d = scale_32(type, p), m = load_halfs(p + min_at(type));
#pragma GCC unroll 8
            for (int c = 0; c < C; c++) {
                __m512i s = dot(offset_32(type, a[c] + at_s), w, a[c] + 32 * b, 4);
                s = _mm512_add_epi32(s, dot(zero(), w + 4, a[c] + 32 * b + 16, 4));
                acc[c] = step_32(type, d, m, all_lanes_f32(a[c] + at_d), s, a[c] + at_s, acc[c]);
            }
        }
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) _mm512_storeu_ps(y[c] + y_at + TILE_ROWS * t, acc[c]);
    }
}

struct scratch {
    __m512 f[GROUP][2];
    __m512i i[GROUP][2];
};

/* How far from byte `at` of a tile its stream is prefetched: past the tile's end it goes on in the
 * tile T further, because T streams run side by side. */
INLINE size_t ahead_of(size_t at, int T, size_t tile)
{
    const size_t ahead = T == 1 ? AHEAD : AHEAD_PAIR;
    return at + ahead < tile ? ahead : ahead + (size_t)(T - 1) * tile;
}

/* n rows against T tiles; the sums are left in sc->f.  cold: the weights come from DRAM. */
INLINE void group_32(enum qtype type, int T, int n_cols, const uint8_t *p, size_t tile, int cold,
                     int n, const void *const *x, struct scratch *sc)
{
    for (int r = 0; r < n; r++)
        for (int t = 0; t < T; t++) sc->f[r][t] = _mm512_setzero_ps();
    for (int b = 0; b < n_cols / 32; b++, p += block_bytes(type)) {
        __m512i w[2][8];
        __m512 d[2], m[2];
        const size_t ahead = ahead_of((size_t)b * (size_t)block_bytes(type), T, tile);
#pragma GCC unroll 2
        for (int t = 0; t < T; t++) {
            if (cold) prefetch(p + tile * (size_t)t + ahead, block_bytes(type));
            unpack_32(type, p + tile * (size_t)t, w[t]);
            d[t] = scale_32(type, p + tile * (size_t)t);
            m[t] = load_halfs(p + tile * (size_t)t + min_at(type));
        }
        size_t at_d = (size_t)n_cols + 4 * (size_t)b, at_s = at_d + (size_t)n_cols / 32 * 4;
        for (int r = 0; r < n; r++) {
            const char *a = x[r], *s32 = a + at_s;
            __m512i off = offset_32(type, a + at_s);
            __m512 da = all_lanes_f32(a + at_d);
            a += 32 * b;
            __m512i s[2] = {off, off};
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                __m512i v = all_lanes(a + 4 * i);
#pragma GCC unroll 2
                for (int t = 0; t < T; t++) s[t] = _mm512_dpbusd_epi32(s[t], w[t][i], v);
            }
#pragma GCC unroll 2
            for (int t = 0; t < T; t++)
                sc->f[r][t] = step_32(type, d[t], m[t], da, s[t], s32, sc->f[r][t]);
        }
    }
}

/* ---- super-blocks of 256 in eight stretches of 32 ------------------------------------------ */

/* The twelve scale bytes of Q4_K as four bytes per lane: scales 0-3, 4-7, mins 0-3, 4-7. */
INLINE void q4_k_scales(const uint8_t *p, __m512i *sc, __m512i *m)
{
    const __m512i low6 = _mm512_set1_epi32(0x3f3f3f3f), low4 = _mm512_set1_epi32(0x0f0f0f0f);
    const __m512i high = _mm512_set1_epi32(0x30303030);
    __m512i a = load512(p), b = load512(p + 64), c = load512(p + 128);
    sc[0] = _mm512_and_si512(a, low6);
    sc[1] = _mm512_or_si512(_mm512_and_si512(c, low4),
                            _mm512_and_si512(_mm512_srli_epi32(a, 2), high));
    m[0] = _mm512_and_si512(b, low6);
    m[1] = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi32(c, 4), low4),
                           _mm512_and_si512(_mm512_srli_epi32(b, 2), high));
}

/* Bytes 2 i and 2 i + 1 of every lane as two words. */
INLINE __m512i byte_pair(__m512i v, int i)
{
    const __m512i lo = _mm512_set1_epi32((int)0x80018000u);
    const __m512i hi = _mm512_set1_epi32((int)0x80038002u);
    const __m512i base = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x00040004, 0x00080008,
                                                               0x000c000c));
    return _mm512_shuffle_epi8(v, _mm512_add_epi8(i ? hi : lo, base));
}

INLINE __m512i byte_pair_signed(__m512i v, int i)
{
    return _mm512_srai_epi16(_mm512_slli_epi16(byte_pair(v, i), 8), 8);
}

INLINE __m512i byte_u8(__m512i v, int i)
{
    return _mm512_and_si512(_mm512_srli_epi32(v, (unsigned)(8 * i)), _mm512_set1_epi32(255));
}

INLINE __m512i byte_i8(__m512i v, int i)
{
    return _mm512_srai_epi32(_mm512_slli_epi32(v, (unsigned)(24 - 8 * i)), 24);
}

/* Stretch 2 i + odd of a Q4_K super-block: the low or the high nibbles of quarter i. */
INLINE void unpack_q4_k(const uint8_t *p, int i, int odd, __m512i *w)
{
    const __m512i low = _mm512_set1_epi8(15);
    p += T4_K_Q + i * 512;
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        __m512i v = load512(p + 64 * j);
        w[j] = _mm512_and_si512(odd ? _mm512_srli_epi16(v, 4) : v, low);
    }
}

/* Stretch 4 i + t of a Q6_K super-block: quarter t of half i. */
INLINE void unpack_q6_k(const uint8_t *p, int i, int t, __m512i *w)
{
    const __m512i low = _mm512_set1_epi8(15), high = _mm512_set1_epi8(0x30);
    const uint8_t *ql = p + T6_K_QL + (i * 16 + (t & 1) * 8) * 64;
    const uint8_t *qh = p + T6_K_QH + i * 512;
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        __m512i lo = load512(ql + 64 * j), hi = load512(qh + 64 * j);
        if (t & 2) lo = _mm512_srli_epi16(lo, 4);
        if (t < 2) hi = _mm512_slli_epi16(hi, t ? 2 : 4);
        if (t == 3) hi = _mm512_srli_epi16(hi, 2);
        /* (lo & low) | (hi & high) */
        w[j] = _mm512_ternarylogic_epi32(_mm512_and_si512(lo, low), hi, high, 0xf8);
    }
}

/* Bit u of every byte of h moved to bit `to`; the other bits are in the way. */
INLINE __m512i bit_to(__m512i h, int u, int to)
{
    return _mm512_rorv_epi32(h, _mm512_set1_epi32((u - to) & 31));
}

/* Stretch 2 i + odd of a Q5_K super-block: as Q4_K, and a fifth bit. */
INLINE void unpack_q5_k(const uint8_t *p, int i, int odd, __m512i *w)
{
    const __m512i low = _mm512_set1_epi8(15), fifth = _mm512_set1_epi8(16);
    const uint8_t *q = p + T5_K_Q + i * 512;
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        __m512i v = load512(q + 64 * j), h = load512(p + T5_K_H + 64 * j);
        if (odd) v = _mm512_srli_epi16(v, 4);
        w[j] = _mm512_ternarylogic_epi32(_mm512_and_si512(v, low), bit_to(h, 2 * i + odd, 4), fifth,
                                         0xf8);
    }
}

/* Stretch 4 i + t of a Q2_K or Q3_K super-block: two bits, and Q3_K's third. */
INLINE void unpack_q23_k(enum qtype type, const uint8_t *p, int i, int t, __m512i *w)
{
    const __m512i low = _mm512_set1_epi8(3), third = _mm512_set1_epi8(4);
    const uint8_t *q = p + (type == QTYPE_Q2_K ? T2_K_Q : T3_K_Q) + i * 512;
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        __m512i v = load512(q + 64 * j);
        if (t) v = _mm512_srli_epi16(v, (unsigned)(2 * t));
        w[j] = _mm512_and_si512(v, low);
        if (type == QTYPE_Q2_K) continue;
        __m512i h = load512(p + T3_K_H + 64 * j);
        w[j] = _mm512_ternarylogic_epi32(w[j], bit_to(h, 4 * i + t, 2), third, 0xf8);
    }
}

INLINE void unpack_iq4_xs(const uint8_t *p, int u, __m512i *w)
{
    const __m512i low = _mm512_set1_epi8(15), table = nibble_table(QTYPE_IQ4_XS);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        __m512i v = load512(p + T4_XS_Q + 256 * u + 64 * j);
        w[j] = _mm512_shuffle_epi8(table, _mm512_and_si512(v, low));
        w[j + 4] = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(v, 4), low));
    }
}

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

/* Stretches that differ in their shifts only: unrolled, so that the shifts are constants. */
INLINE int phases(enum qtype type)
{
    return by_16(type) ? 4 : type == QTYPE_IQ4_XS ? 1 : 2;
}

INLINE void unpack_256(enum qtype type, const uint8_t *p, int i, int phase, __m512i *w)
{
    if (type == QTYPE_Q4_K) unpack_q4_k(p, i, phase, w);
    else if (type == QTYPE_Q5_K) unpack_q5_k(p, i, phase, w);
    else if (type == QTYPE_Q6_K) unpack_q6_k(p, i, phase, w);
    else if (type == QTYPE_IQ4_XS) unpack_iq4_xs(p, i, w);
    else unpack_q23_k(type, p, i, phase, w);
}

/* The correction sums of a super-block: mins or scales times the sums of activations. */
INLINE __m512i pair_sum(const __m512i *pair, int n, const char *sums)
{
    __m512i s = zero();
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) s = _mm512_dpwssd_epi32(s, pair[i], all_lanes(sums + 4 * i));
    return s;
}

/* What a super-block needs besides its weights, for one tile. */
struct super {
    __m512i scale[16]; /* int32 per sub-block: 8 or 16 */
    __m512i pair[8];   /* int16 pairs of mins, or of scales where there are no mins */
    __m512 d, dmin;
};

/* Sixteen signed scales, four bytes of a lane together. */
INLINE void signed_head(const __m512i *v, struct super *s)
{
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) s->scale[4 * j + i] = byte_i8(v[j], i);
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) s->pair[2 * j + i] = byte_pair_signed(v[j], i);
    }
}

INLINE void q2_k_head(const uint8_t *p, struct super *s)
{
    const __m512i low4 = _mm512_set1_epi8(15);
    s->dmin = load_halfs(p + T2_K_DMIN);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        __m512i v = load512(p + T2_K_SC + 64 * j), sc = _mm512_and_si512(v, low4);
        __m512i m = _mm512_and_si512(_mm512_srli_epi16(v, 4), low4);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) s->scale[4 * j + i] = byte_u8(sc, i);
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) s->pair[2 * j + i] = byte_pair(m, i);
    }
}

INLINE void q3_k_head(const uint8_t *p, struct super *s)
{
    const __m512i low4 = _mm512_set1_epi8(15), high2 = _mm512_set1_epi8(0x30);
    __m512i v[4], c = load512(p + T3_K_SC + 128);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        __m512i lo = load512(p + T3_K_SC + 64 * (j & 1)), hi = c;
        if (j & 2) lo = _mm512_srli_epi16(lo, 4);
        if (j < 2) hi = _mm512_slli_epi16(hi, j ? 2 : 4);
        if (j == 3) hi = _mm512_srli_epi16(hi, 2);
        lo = _mm512_ternarylogic_epi32(_mm512_and_si512(lo, low4), hi, high2, 0xf8);
        v[j] = _mm512_sub_epi8(lo, _mm512_set1_epi8(32));
    }
    signed_head(v, s);
}

INLINE void iq4_xs_head(const uint8_t *p, struct super *s)
{
    const __m512i low4 = _mm512_set1_epi32(15), high2 = _mm512_set1_epi32(0x30);
    __m512i sl = load512(p + T4_XS_SL);
    __m512i sh = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p + T4_XS_SH)));
    sh = _mm512_slli_epi32(sh, 4);
#pragma GCC unroll 8
    for (int u = 0; u < 8; u++) {
        __m512i v = _mm512_and_si512(_mm512_srli_epi32(sl, (unsigned)(4 * u)), low4);
        v = _mm512_ternarylogic_epi32(v, _mm512_srli_epi32(sh, (unsigned)(2 * u)), high2, 0xf8);
        s->scale[u] = _mm512_sub_epi32(v, _mm512_set1_epi32(32));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        s->pair[i] = _mm512_mask_blend_epi16(0xaaaaaaaau, s->scale[2 * i],
                                             _mm512_slli_epi32(s->scale[2 * i + 1], 16));
}

INLINE void super_head(enum qtype type, const uint8_t *p, struct super *s)
{
    s->d = load_halfs(p);
    if (type == QTYPE_Q4_K || type == QTYPE_Q5_K) {
        __m512i sc[2], m[2];
        s->dmin = load_halfs(p + T4_K_DMIN);
        q4_k_scales(p + T4_K_SC, sc, m); /* Q5_K has them at the same place */
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) s->scale[i] = byte_u8(sc[i / 4], i % 4);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) s->pair[i] = byte_pair(m[i / 2], i % 2);
    } else if (type == QTYPE_Q2_K) {
        q2_k_head(p, s);
    } else if (type == QTYPE_Q3_K) {
        q3_k_head(p, s);
    } else if (type == QTYPE_IQ4_XS) {
        iq4_xs_head(p, s);
    } else {
        __m512i v[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) v[j] = load512(p + T6_K_SC + 64 * j);
        signed_head(v, s);
    }
}

/* Offsets of a prepared ACT_Q8_256 row. */
struct act256 {
    size_t d, s16, s32;
};

INLINE struct act256 act256(int n_cols)
{
    size_t n = (size_t)n_cols;
    return (struct act256){n, n + n / 64, n + n / 64 + n / 8};
}

/* The float step of a super-block. */
INLINE __m512 super_step(enum qtype type, const struct super *s, __m512i isum, const char *x,
                         struct act256 o, int b, __m512 acc)
{
    __m512 da = all_lanes_f32(x + o.d + 4 * (size_t)b);
    const char *sums = by_16(type) ? x + o.s16 + 32 * (size_t)b : x + o.s32 + 16 * (size_t)b;
    __m512i pairs = pair_sum(s->pair, by_16(type) ? 8 : 4, sums);
    if (has_min(type)) {
        acc = _mm512_fmadd_ps(_mm512_mul_ps(s->d, da), _mm512_cvtepi32_ps(isum), acc);
        return _mm512_fnmadd_ps(_mm512_mul_ps(s->dmin, da), _mm512_cvtepi32_ps(pairs), acc);
    }
    const int shift = type == QTYPE_Q3_K ? 2 : type == QTYPE_IQ4_XS ? 7 : 5;
    isum = _mm512_sub_epi32(isum, _mm512_slli_epi32(pairs, (unsigned)shift));
    return _mm512_fmadd_ps(_mm512_mul_ps(s->d, da), _mm512_cvtepi32_ps(isum), acc);
}

/* The scaled integer sum of stretch u with the 32 activations at a. */
INLINE __m512i stretch_sum(enum qtype type, const __m512i *w, const __m512i *scale, int u,
                           const char *a)
{
    if (!by_16(type)) return _mm512_mullo_epi32(dot(zero(), w, a, 8), scale[u]);
    return _mm512_add_epi32(_mm512_mullo_epi32(dot(zero(), w, a, 4), scale[2 * u]),
                            _mm512_mullo_epi32(dot(zero(), w + 4, a + 16, 4), scale[2 * u + 1]));
}

/* C rows, all sums in registers, tile after tile. */
INLINE void few_256(enum qtype type, int C, int n_cols, int n_tiles, const uint8_t *p,
                    const void *const *x, float *const *y, int y_at)
{
    const int bytes = super_bytes(type);
    struct act256 o = act256(n_cols);
    const char *a[FEW];
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) a[c] = x[c];
    for (int t = 0; t < n_tiles; t++) {
        __m512 acc[FEW];
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) acc[c] = _mm512_setzero_ps();
        for (int b = 0; b < n_cols / 256; b++, p += bytes) {
            struct super s;
            __m512i isum[FEW];
            super_head(type, p, &s);
#pragma GCC unroll 8
            for (int c = 0; c < C; c++) isum[c] = zero();
            /* Better not unrolled: from DRAM, the prefetches of a whole super-block in one run of
             * code measured 15 % slower. */
            for (int i = 0; i < 8 / phases(type); i++)
#pragma GCC unroll 4
                for (int k = 0; k < phases(type); k++) {
                    const int u = i * phases(type) + k;
                    __m512i w[8];
                    prefetch_stream(p + bytes / 8 * u, bytes / 8);
                    unpack_256(type, p, i, k, w);
#pragma GCC unroll 8
                    for (int c = 0; c < C; c++)
                        isum[c] = _mm512_add_epi32(
                            isum[c],
                            stretch_sum(type, w, s.scale, u, a[c] + 256 * b + 32 * u));
                }
#pragma GCC unroll 8
            for (int c = 0; c < C; c++)
                acc[c] = super_step(type, &s, isum[c], a[c], o, b, acc[c]);
        }
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) _mm512_storeu_ps(y[c] + y_at + TILE_ROWS * t, acc[c]);
    }
}

INLINE void group_256(enum qtype type, int T, int n_cols, const uint8_t *p, size_t tile, int cold,
                      int n, const void *const *x, struct scratch *sc)
{
    const int bytes = super_bytes(type);
    struct act256 o = act256(n_cols);
    struct super s[2];
    for (int r = 0; r < n; r++)
        for (int t = 0; t < T; t++) {
            sc->f[r][t] = _mm512_setzero_ps();
            sc->i[r][t] = zero();
        }
    for (int b = 0; b < n_cols / 256; b++, p += bytes) {
        const size_t ahead = ahead_of((size_t)b * (size_t)bytes, T, tile);
        for (int t = 0; t < T; t++) super_head(type, p + tile * (size_t)t, &s[t]);
        for (int i = 0; i < 8 / phases(type); i++)
#pragma GCC unroll 4
            for (int k = 0; k < phases(type); k++) {
                const int u = i * phases(type) + k;
                __m512i w[2][8];
#pragma GCC unroll 2
                for (int t = 0; t < T; t++) {
                    const uint8_t *q = p + tile * (size_t)t;
                    if (cold) prefetch(q + ahead + bytes / 8 * u, bytes / 8);
                    unpack_256(type, q, i, k, w[t]);
                }
                for (int r = 0; r < n; r++) {
                    const char *a = (const char *)x[r] + 256 * b + 32 * u;
#pragma GCC unroll 2
                    for (int t = 0; t < T; t++)
                        sc->i[r][t] = _mm512_add_epi32(
                            sc->i[r][t], stretch_sum(type, w[t], s[t].scale, u, a));
                }
            }
        for (int r = 0; r < n; r++)
            for (int t = 0; t < T; t++) {
                sc->f[r][t] = super_step(type, &s[t], sc->i[r][t], x[r], o, b, sc->f[r][t]);
                sc->i[r][t] = zero();
            }
    }
}

/* ---- the loops around the quantised types -------------------------------------------------- */

INLINE void group_any(enum qtype type, int T, int n_cols, const uint8_t *p, size_t tile, int cold,
                      int n, const void *const *x, struct scratch *sc)
{
    if (super_bytes(type))
        group_256(type, T, n_cols, p, tile, cold, n, x, sc);
    else group_32(type, T, n_cols, p, tile, cold, n, x, sc);
}

INLINE void few_any(enum qtype type, int C, int n_cols, int n_tiles, const uint8_t *p,
                    const void *const *x, float *const *y, int y_at)
{
    if (super_bytes(type)) few_256(type, C, n_cols, n_tiles, p, x, y, y_at);
    else few_32(type, C, n_cols, n_tiles, p, x, y, y_at);
}

/* n <= FEW rows.  There is code for some counts only: a row that is computed twice, to the same
 * place, fills the gap. */
INLINE void few_rows(enum qtype type, int n_cols, int n_tiles, const uint8_t *p, int n,
                     const void *const *x, float *const *y, int y_at)
{
    const void *xs[FEW];
    float *ys[FEW];
    for (int c = 0; c < FEW; c++) {
        xs[c] = x[c < n ? c : n - 1];
        ys[c] = y[c < n ? c : n - 1];
    }
    if (n == 1) few_any(type, 1, n_cols, n_tiles, p, xs, ys, y_at);
    else if (n == 2) few_any(type, 2, n_cols, n_tiles, p, xs, ys, y_at);
    else if (n == 3) few_any(type, 3, n_cols, n_tiles, p, xs, ys, y_at);
    else if (n == 4) few_any(type, 4, n_cols, n_tiles, p, xs, ys, y_at);
    else if (n <= 6) few_any(type, 6, n_cols, n_tiles, p, xs, ys, y_at);
    else few_any(type, 8, n_cols, n_tiles, p, xs, ys, y_at);
}

INLINE void mm_any(enum qtype type, enum act_kind act, int n_cols, int n_tiles, const void *w,
                   int n_rows, const void *const *x, float *const *y)
{
    if (n_rows <= FEW) {
        few_rows(type, n_cols, n_tiles, w, n_rows, x, y, 0);
        return;
    }
    struct scratch sc;
    const size_t tile = tile_bytes(type, n_cols);
    const int chunk = mm_chunk(act, n_cols, GROUP);
    for (int c0 = 0; c0 < n_rows; c0 += chunk) {
        int c1 = c0 + chunk < n_rows ? c0 + chunk : n_rows;
        int groups = (c1 - c0 + GROUP - 1) / GROUP, even = (c1 - c0 + groups - 1) / groups;
        for (int t = 0; t < n_tiles; t += 2) {
            const uint8_t *p = (const uint8_t *)w + tile * (size_t)t;
            const int pair = n_tiles - t >= 2;
            for (int r0 = c0; r0 < c1; r0 += even) {
                int n = c1 - r0 < even ? c1 - r0 : even;
                if (pair) group_any(type, 2, n_cols, p, tile, r0 == c0, n, x + r0, &sc);
                else group_any(type, 1, n_cols, p, tile, r0 == c0, n, x + r0, &sc);
                for (int r = 0; r < n; r++)
                    for (int i = 0; i <= pair; i++)
                        _mm512_storeu_ps(y[r0 + r] + TILE_ROWS * (t + i), sc.f[r][i]);
            }
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
    void mm_avx512_##TYPE(int n_cols, int n_tiles, const void *w, int n_rows,                    \
                          const void *const *x, float *const *y)                                 \
    {                                                                                            \
        mm_any(QTYPE_##TYPE, ACT, n_cols, n_tiles, w, n_rows, x, y);                             \
    }

#endif
#endif
