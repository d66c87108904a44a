/* The AVX-512 kernels (F, BW, VL, DQ, VBMI, VNNI).  Bit-equal to quant/mm_ref.c in every output;
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
#include <immintrin.h>
#include <string.h>

#include "moe/base/f16.h"
#include "quant/mm_int.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    FEW = 8,           /* rows whose sums stay in registers */
    GROUP = 32,        /* rows of a group: scratch is GROUP * 2 vectors of each kind */
    AHEAD = 8192,      /* bytes that one stream of weights is prefetched before its use */
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

/* acc + sum of four-byte products of w[0..n) with n dwords of activations. */
INLINE __m512i dot(__m512i acc, const __m512i *w, const char *a, int n)
{
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) acc = _mm512_dpbusd_epi32(acc, w[i], all_lanes(a + 4 * i));
    return acc;
}

/* ---- Q8_0 and Q4_0: one float step per block of 32 --------------------------------------- */

INLINE int block_bytes(enum qtype type) { return type == QTYPE_Q8_0 ? T8_0_BYTES : T4_0_BYTES; }

/* The block's weights as unsigned bytes, in the order of the activations. */
INLINE void unpack_32(enum qtype type, const uint8_t *p, __m512i *w)
{
    if (type == QTYPE_Q8_0) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) w[i] = load512(p + T8_0_Q + 64 * i);
    } else {
        const __m512i low = _mm512_set1_epi8(15);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            __m512i v = load512(p + T4_0_Q + 64 * i);
            w[i] = _mm512_and_si512(v, low);
            w[i + 4] = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
        }
    }
}

/* What reading the weights as unsigned added to the block's sum, with its sign turned. */
INLINE __m512i offset_32(enum qtype type, const char *s32)
{
    __m512i s = all_lanes(s32);
    return _mm512_sub_epi32(zero(), _mm512_slli_epi32(s, type == QTYPE_Q8_0 ? 7 : 3));
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
            prefetch(p + AHEAD, block_bytes(type));
            unpack_32(type, p, w);
            __m512 d = load_halfs(p);
#pragma GCC unroll 8
            for (int c = 0; c < C; c++) {
                __m512i s = dot(offset_32(type, a[c] + at_s), w, a[c] + 32 * b, 4);
                s = _mm512_add_epi32(s, dot(zero(), w + 4, a[c] + 32 * b + 16, 4));
                acc[c] = _mm512_fmadd_ps(_mm512_mul_ps(d, all_lanes_f32(a[c] + at_d)),
                                         _mm512_cvtepi32_ps(s), acc[c]);
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
        __m512 d[2];
        const size_t ahead = ahead_of((size_t)b * (size_t)block_bytes(type), T, tile);
#pragma GCC unroll 2
        for (int t = 0; t < T; t++) {
            if (cold) prefetch(p + tile * (size_t)t + ahead, block_bytes(type));
            unpack_32(type, p + tile * (size_t)t, w[t]);
            d[t] = load_halfs(p + tile * (size_t)t);
        }
        size_t at_d = (size_t)n_cols + 4 * (size_t)b, at_s = at_d + (size_t)n_cols / 32 * 4;
        for (int r = 0; r < n; r++) {
            const char *a = x[r];
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
                sc->f[r][t] = _mm512_fmadd_ps(_mm512_mul_ps(d[t], da), _mm512_cvtepi32_ps(s[t]),
                                              sc->f[r][t]);
        }
    }
}

/* ---- Q4_K and Q6_K: super-blocks of 256 in eight stretches of 32 --------------------------- */

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

/* Stretches that differ in their shifts only: unrolled, so that the shifts are constants. */
INLINE int phases(enum qtype type) { return type == QTYPE_Q4_K ? 2 : 4; }

INLINE void unpack_256(enum qtype type, const uint8_t *p, int i, int phase, __m512i *w)
{
    if (type == QTYPE_Q4_K) unpack_q4_k(p, i, phase, w);
    else unpack_q6_k(p, i, phase, w);
}

/* The correction sums of a super-block: sum m_s * s32_s (Q4_K), sum sc_s * s16_s (Q6_K). */
INLINE __m512i pair_sum(const __m512i *pair, int n, const char *sums)
{
    __m512i s = zero();
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) s = _mm512_dpwssd_epi32(s, pair[i], all_lanes(sums + 4 * i));
    return s;
}

/* What a super-block needs besides its weights, for one tile. */
struct super {
    __m512i scale[16]; /* int32 per sub-block: 8 (Q4_K) or 16 (Q6_K) */
    __m512i pair[8];   /* int16 pairs of mins (4) or scales (8) */
    __m512 d, dmin;
};

INLINE void super_head(enum qtype type, const uint8_t *p, struct super *s)
{
    s->d = load_halfs(p);
    if (type == QTYPE_Q4_K) {
        __m512i sc[2], m[2];
        s->dmin = load_halfs(p + T4_K_DMIN);
        q4_k_scales(p + T4_K_SC, sc, m);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) s->scale[i] = byte_u8(sc[i / 4], i % 4);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) s->pair[i] = byte_pair(m[i / 2], i % 2);
    } else {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            __m512i v = load512(p + T6_K_SC + 64 * j);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) s->scale[4 * j + i] = byte_i8(v, i);
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) s->pair[2 * j + i] = byte_pair_signed(v, i);
        }
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
    if (type == QTYPE_Q4_K) {
        __m512i msum = pair_sum(s->pair, 4, x + o.s32 + 16 * (size_t)b);
        acc = _mm512_fmadd_ps(_mm512_mul_ps(s->d, da), _mm512_cvtepi32_ps(isum), acc);
        return _mm512_fnmadd_ps(_mm512_mul_ps(s->dmin, da), _mm512_cvtepi32_ps(msum), acc);
    }
    __m512i off = pair_sum(s->pair, 8, x + o.s16 + 32 * (size_t)b);
    isum = _mm512_sub_epi32(isum, _mm512_slli_epi32(off, 5));
    return _mm512_fmadd_ps(_mm512_mul_ps(s->d, da), _mm512_cvtepi32_ps(isum), acc);
}

/* The scaled integer sum of stretch u with the 32 activations at a. */
INLINE __m512i stretch_sum(enum qtype type, const __m512i *w, const __m512i *scale, int u,
                           const char *a)
{
    if (type == QTYPE_Q4_K) return _mm512_mullo_epi32(dot(zero(), w, a, 8), scale[u]);
    return _mm512_add_epi32(_mm512_mullo_epi32(dot(zero(), w, a, 4), scale[2 * u]),
                            _mm512_mullo_epi32(dot(zero(), w + 4, a + 16, 4), scale[2 * u + 1]));
}

/* C rows, all sums in registers, tile after tile. */
INLINE void few_256(enum qtype type, int C, int n_cols, int n_tiles, const uint8_t *p,
                    const void *const *x, float *const *y, int y_at)
{
    const int bytes = type == QTYPE_Q4_K ? T4_K_BYTES : T6_K_BYTES;
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
                    prefetch(p + AHEAD + bytes / 8 * u, bytes / 8);
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
    const int bytes = type == QTYPE_Q4_K ? T4_K_BYTES : T6_K_BYTES;
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
    if (type == QTYPE_Q4_K || type == QTYPE_Q6_K)
        group_256(type, T, n_cols, p, tile, cold, n, x, sc);
    else group_32(type, T, n_cols, p, tile, cold, n, x, sc);
}

INLINE void few_any(enum qtype type, int C, int n_cols, int n_tiles, const uint8_t *p,
                    const void *const *x, float *const *y, int y_at)
{
    if (type == QTYPE_Q4_K || type == QTYPE_Q6_K) few_256(type, C, n_cols, n_tiles, p, x, y, y_at);
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

/* ---- F32, F16, BF16: one float step per weight ---------------------------------------------- */

INLINE __m512 load_plain(enum qtype type, const uint8_t *p)
{
    if (type == QTYPE_F32) return _mm512_loadu_ps((const float *)p);
    if (type == QTYPE_F16) return load_halfs(p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(
        _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}

/* T tiles against C rows, all sums in registers. */
INLINE void block_plain(enum qtype type, int T, int C, int n_cols, const uint8_t *p, size_t tile,
                        const void *const *x, float *const *y, int y_at)
{
    const size_t step = type == QTYPE_F32 ? 64 : 32;
    const size_t ahead = (size_t)AHEAD / (size_t)T;
    __m512 acc[4][8];
    const char *a[8];
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) {
        a[c] = x[c];
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) acc[t][c] = _mm512_setzero_ps();
    }
    for (int k = 0; k < n_cols; k++, p += step) {
        __m512 v[4];
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
            v[t] = load_plain(type, p + tile * (size_t)t);
            if (type == QTYPE_F32 || !(k & 1))
                _mm_prefetch((const char *)(p + tile * (size_t)t + ahead), _MM_HINT_T0);
        }
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) {
            __m512 b = all_lanes_f32(a[c] + 4 * (size_t)k);
#pragma GCC unroll 4
            for (int t = 0; t < T; t++) acc[t][c] = _mm512_fmadd_ps(v[t], b, acc[t][c]);
        }
    }
#pragma GCC unroll 8
    for (int c = 0; c < C; c++)
#pragma GCC unroll 4
        for (int t = 0; t < T; t++)
            _mm512_storeu_ps(y[c] + y_at + TILE_ROWS * t, acc[t][c]);
}

INLINE void rows_plain(enum qtype type, int T, int n_cols, const uint8_t *p, size_t tile, int n,
                       const void *const *x, float *const *y, int y_at)
{
    for (; n >= 8; n -= 8, x += 8, y += 8) block_plain(type, T, 8, n_cols, p, tile, x, y, y_at);
    switch (n) {
#define ROWS(C)                                                                                  \
    case C: block_plain(type, T, C, n_cols, p, tile, x, y, y_at); break;
        ROWS(1)
        ROWS(2)
        ROWS(3)
        ROWS(4)
        ROWS(5)
        ROWS(6)
        ROWS(7)
#undef ROWS
    }
}

INLINE void mm_plain(enum qtype type, int n_cols, int n_tiles, const void *w, int n_rows,
                     const void *const *x, float *const *y)
{
    const size_t tile = tile_bytes(type, n_cols);
    const uint8_t *p = w;
    int t = 0;
    if (n_rows == 1)
        for (; t + 4 <= n_tiles; t += 4)
            block_plain(type, 4, 1, n_cols, p + tile * (size_t)t, tile, x, y, TILE_ROWS * t);
    for (; t + 2 <= n_tiles; t += 2)
        rows_plain(type, 2, n_cols, p + tile * (size_t)t, tile, n_rows, x, y, TILE_ROWS * t);
    if (t < n_tiles)
        rows_plain(type, 1, n_cols, p + tile * (size_t)t, tile, n_rows, x, y, TILE_ROWS * t);
}

#define MM_PLAIN(name, TYPE)                                                                     \
    static void mm_##name(int n_cols, int n_tiles, const void *w, int n_rows,                    \
                          const void *const *x, float *const *y)                                 \
    {                                                                                            \
        mm_plain(QTYPE_##TYPE, n_cols, n_tiles, w, n_rows, x, y);                                \
    }
#define MM_QUANT(name, TYPE, ACT)                                                                \
    static void mm_##name(int n_cols, int n_tiles, const void *w, int n_rows,                    \
                          const void *const *x, float *const *y)                                 \
    {                                                                                            \
        mm_any(QTYPE_##TYPE, ACT, n_cols, n_tiles, w, n_rows, x, y);                             \
    }
MM_PLAIN(f32, F32)
MM_PLAIN(f16, F16)
MM_PLAIN(bf16, BF16)
MM_QUANT(q8_0, Q8_0, ACT_Q8_32)
MM_QUANT(q4_0, Q4_0, ACT_Q8_32)
MM_QUANT(q4_k, Q4_K, ACT_Q8_256)
MM_QUANT(q6_k, Q6_K, ACT_Q8_256)

/* ---- activations -------------------------------------------------------------------------- */

/* The bits of the largest magnitude among 32 n values. */
INLINE uint32_t top_bits(const float *x, int n)
{
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i m = zero();
    for (int i = 0; i < 32 * n; i += 16)
        m = _mm512_max_epu32(m, _mm512_and_si512(_mm512_loadu_si512(x + i), magnitude));
    return _mm512_reduce_max_epu32(m);
}

/* Scales of sixteen blocks from their largest magnitudes: inv = 127 / amax, 0 where the block is
 * all zeros, too small or bad; d = amax / 127, 0 or NaN there. */
INLINE void scales_16(__m512i bits, __m512 *inv, __m512 *d)
{
    __m512 amax = _mm512_castsi512_ps(bits), top = _mm512_set1_ps(127.0f);
    __mmask16 bad = _mm512_cmpge_epu32_mask(bits, _mm512_set1_epi32(0x7f800000));
    __mmask16 good = _mm512_cmp_ps_mask(amax, _mm512_set1_ps(ACT_AMAX_MIN), _CMP_GE_OQ);
    good = (__mmask16)(good & ~bad);
    *inv = _mm512_maskz_div_ps(good, top, amax);
    *d = _mm512_maskz_div_ps(good, amax, top);
    *d = _mm512_castsi512_ps(_mm512_mask_mov_epi32(_mm512_castps_si512(*d), bad,
                                                   _mm512_set1_epi32((int)ACT_BAD_SCALE)));
}

/* 32 values times inv as bytes.  A bad block has inv = 0, and what is infinite or NaN in it
 * converts to INT_MIN, whose low byte is 0 like the rest. */
INLINE __m256i quantise(const float *x, float inv)
{
    __m512 a = _mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(inv));
    __m512 b = _mm512_mul_ps(_mm512_loadu_ps(x + 16), _mm512_set1_ps(inv));
    return _mm256_set_m128i(_mm512_cvtepi32_epi8(_mm512_cvtps_epi32(b)),
                            _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)));
}

/* The sums of both halves of 32 bytes. */
INLINE void sums_of_16(__m256i q, int32_t *first, int32_t *second)
{
    __m256i s = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), q);
    s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0x4e));
    s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0xb1));
    *first = _mm_cvtsi128_si32(_mm256_castsi256_si128(s));
    *second = _mm_cvtsi128_si32(_mm256_extracti128_si256(s, 1));
}

/* Sixteen blocks at a time, so that their divisions are two instructions. */
static void act_q8_32(int n_cols, const float *x, void *out)
{
    int n_blocks = n_cols / 32;
    int8_t *q = out;
    char *d = (char *)out + n_cols, *s32 = d + 4 * (size_t)n_blocks;
    for (int b0 = 0; b0 < n_blocks; b0 += 16) {
        int n = n_blocks - b0 < 16 ? n_blocks - b0 : 16;
        uint32_t bits[16] = {0};
        float inv[16];
        __m512 v_inv, v_d;
        for (int b = 0; b < n; b++) bits[b] = top_bits(x + 32 * (b0 + b), 1);
        scales_16(_mm512_loadu_si512(bits), &v_inv, &v_d);
        _mm512_storeu_ps(inv, v_inv);
        _mm512_mask_storeu_ps(d + 4 * (size_t)b0, (__mmask16)((1u << n) - 1), v_d);
        for (int b = 0; b < n; b++) {
            __m256i v = quantise(x + 32 * (b0 + b), inv[b]);
            int32_t s0, s1;
            sums_of_16(v, &s0, &s1);
            s0 += s1;
            _mm256_storeu_si256((__m256i *)(q + 32 * (b0 + b)), v);
            memcpy(s32 + 4 * (size_t)(b0 + b), &s0, 4);
        }
    }
    size_t used = (size_t)n_cols + 8 * (size_t)n_blocks;
    memset((char *)out + used, 0, act_bytes(ACT_Q8_32, n_cols) - used);
}

static void act_q8_256(int n_cols, const float *x, void *out)
{
    int n_blocks = n_cols / 256;
    int8_t *q = out;
    struct act256 o = act256(n_cols);
    char *base = out;
    for (int b = 0; b < n_blocks; b++) {
        __m512 inv, d;
        scales_16(_mm512_set1_epi32((int)top_bits(x + 256 * b, 8)), &inv, &d);
        _mm512_mask_storeu_ps(base + o.d + 4 * (size_t)b, 1, d);
        for (int k = 8 * b; k < 8 * b + 8; k++) {
            __m256i v = quantise(x + 32 * k, _mm512_cvtss_f32(inv));
            int32_t s0, s1;
            sums_of_16(v, &s0, &s1);
            int16_t pair[2] = {(int16_t)s0, (int16_t)s1}, both = (int16_t)(s0 + s1);
            _mm256_storeu_si256((__m256i *)(q + 32 * k), v);
            memcpy(base + o.s16 + 4 * (size_t)k, pair, 4);
            memcpy(base + o.s32 + 2 * (size_t)k, &both, 2);
        }
    }
    size_t used = o.s32 + (size_t)n_cols / 32 * 2;
    memset(base + used, 0, act_bytes(ACT_Q8_256, n_cols) - used);
}

const struct mm_kernels mm_kernels_avx512 = {
    .act = {[ACT_F32] = act_f32_ref, [ACT_Q8_32] = act_q8_32, [ACT_Q8_256] = act_q8_256},
    .mm = {[QTYPE_F32] = mm_f32,
           [QTYPE_F16] = mm_f16,
           [QTYPE_BF16] = mm_bf16,
           [QTYPE_Q8_0] = mm_q8_0,
           [QTYPE_Q4_0] = mm_q4_0,
           [QTYPE_Q4_K] = mm_q4_k,
           [QTYPE_Q6_K] = mm_q6_k},
};
