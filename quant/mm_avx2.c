/* The AVX2 kernels (AVX2, FMA, F16C; no VNNI).  Bit-equal to quant/mm_ref.c in every output;
 * quant/README.md has the order.  Owns nothing.
 *
 * DESIGN.  A lane is an output row; a ymm holds eight of a tile's sixteen, so a tile is two halves.
 * Products go through vpmaddubsw, whose int16 pairs must not saturate:
 *   Q8_0        |w| unsigned times the activation with w's sign: 2 * 128 * 127 = 32,512 fits, so
 *               each pair is widened by vpmaddwd with ones at once;
 *   Q4_0, Q4_K  nibbles: eight pairs, 8 * 2 * 15 * 127 = 30,480, fit before widening;
 *   Q6_K        six bits: two pairs, 2 * 2 * 63 * 127 = 32,004, fit.
 * For the K types the widening vpmaddwd multiplies by the sub-block's scale instead of ones.
 *
 * One row (decode) takes both halves of a block together, so that a tile is read front to back.
 * Several rows: 32 weights of one half are unpacked into eight registers and meet every row of a
 * group of at most GROUP before the next; accumulators wait in L1 scratch (see mm_avx512.c). */
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

/* ---- Q8_0 and Q4_0 ------------------------------------------------------------------------ */

INLINE int block_bytes(enum qtype type) { return type == QTYPE_Q8_0 ? T8_0_BYTES : T4_0_BYTES; }

/* Half h of a block in the order of the activations: signed bytes (Q8_0), nibbles (Q4_0). */
INLINE void unpack_32(enum qtype type, const uint8_t *p, int h, __m256i *w)
{
    if (type == QTYPE_Q8_0) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            w[i] = _mm256_xor_si256(load256(p + T8_0_Q + 64 * i + 32 * h), _mm256_set1_epi8(-128));
    } else {
        const __m256i low = _mm256_set1_epi8(15);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            __m256i v = load256(p + T4_0_Q + 64 * i + 32 * h);
            w[i] = _mm256_and_si256(v, low);
            w[i + 4] = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
        }
    }
}

/* The block's exact integer sums with the 32 activations at a; s32 is their sum. */
INLINE __m256i sum_32(enum qtype type, const __m256i *w, const char *a, const char *s32)
{
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i s[2] = {zero(), zero()};
    if (type == QTYPE_Q8_0) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            __m256i v = _mm256_sign_epi8(all_lanes(a + 4 * i), w[i]);
            v = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w[i]), v), ones);
            s[i & 1] = _mm256_add_epi32(s[i & 1], v);
        }
        return _mm256_add_epi32(s[0], s[1]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        s[i & 1] = _mm256_add_epi16(s[i & 1], _mm256_maddubs_epi16(w[i], all_lanes(a + 4 * i)));
    return _mm256_sub_epi32(_mm256_madd_epi16(_mm256_add_epi16(s[0], s[1]), ones),
                            _mm256_slli_epi32(all_lanes(s32), 3));
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
            acc[h] = fma_step(load_halfs(p + 16 * h), all_lanes_f32(da + 4 * b),
                              sum_32(type, w, x + 32 * b, s32 + 4 * b), acc[h]);
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
        __m256 d = load_halfs(p + 16 * h);
        __m256i w[8];
        prefetch(p + AHEAD, block_bytes(type));
        unpack_32(type, p, h, w);
        for (int r = 0; r < n; r++) {
            const char *a = x[r];
            __m256i s = sum_32(type, w, a + 32 * b, a + at_s);
            sc->f[r] = fma_step(d, all_lanes_f32(a + at_d), s, sc->f[r]);
        }
    }
}

/* ---- Q4_K and Q6_K ------------------------------------------------------------------------ */

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

INLINE void super_head(enum qtype type, const uint8_t *p, int h, struct super *s)
{
    s->d = load_halfs(p + 16 * h);
    if (type == QTYPE_Q4_K) {
        __m256i sc[2], m[2];
        s->dmin = load_halfs(p + T4_K_DMIN + 16 * h);
        q4_k_scales(p + T4_K_SC + 32 * h, sc, m);
        for (int i = 0; i < 8; i++) s->scale[i] = byte_pair(sc[i / 4], i % 4, i % 4);
        for (int i = 0; i < 4; i++) s->pair[i] = byte_pair(m[i / 2], i % 2 * 2, i % 2 * 2 + 1);
    } else {
        for (int j = 0; j < 4; j++) {
            __m256i v = load256(p + T6_K_SC + 64 * j + 32 * h);
            for (int i = 0; i < 4; i++) s->scale[4 * j + i] = byte_pair(v, i, i);
            for (int i = 0; i < 2; i++) s->pair[2 * j + i] = byte_pair(v, 2 * i, 2 * i + 1);
        }
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

/* Stretches that differ in their shifts only: unrolled, so that the shifts are constants. */
INLINE int phases(enum qtype type) { return type == QTYPE_Q4_K ? 2 : 4; }

INLINE void unpack_256(enum qtype type, const uint8_t *p, int h, int i, int phase, __m256i *w)
{
    if (type == QTYPE_Q4_K) unpack_q4_k(p, h, i, phase, w);
    else unpack_q6_k(p, h, i, phase, w);
}

/* The scaled integer sum of stretch u with the 32 activations at a. */
INLINE __m256i stretch_sum(enum qtype type, const __m256i *w, const __m256i *scale, int u,
                           const char *a)
{
    __m256i v[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) v[i] = _mm256_maddubs_epi16(w[i], all_lanes(a + 4 * i));
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) v[i] = _mm256_add_epi16(v[i], v[i + 1]);
    if (type == QTYPE_Q4_K) {
        v[0] = _mm256_add_epi16(_mm256_add_epi16(v[0], v[2]), _mm256_add_epi16(v[4], v[6]));
        return _mm256_madd_epi16(v[0], scale[u]);
    }
    const __m256i *sc = scale + 2 * u;
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
    if (type == QTYPE_Q4_K) {
        __m256i msum = pair_sum(s->pair, 4, s32 + 16 * (size_t)b);
        acc = fma_step(s->d, da, isum, acc);
        return _mm256_fnmadd_ps(_mm256_mul_ps(s->dmin, da), _mm256_cvtepi32_ps(msum), acc);
    }
    __m256i off = pair_sum(s->pair, 8, s16 + 32 * (size_t)b);
    return fma_step(s->d, da, _mm256_sub_epi32(isum, _mm256_slli_epi32(off, 5)), acc);
}

INLINE void row_256(enum qtype type, int n_cols, const uint8_t *p, const char *x, float *y)
{
    const int bytes = type == QTYPE_Q4_K ? T4_K_BYTES : T6_K_BYTES;
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
    const int bytes = type == QTYPE_Q4_K ? T4_K_BYTES : T6_K_BYTES;
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

/* ---- F32, F16, BF16 ----------------------------------------------------------------------- */

INLINE __m256 load_plain(enum qtype type, const uint8_t *p, int h)
{
    if (type == QTYPE_F32) return _mm256_loadu_ps((const float *)p + 8 * h);
    if (type == QTYPE_F16) return load_halfs(p + 16 * h);
    return _mm256_castsi256_ps(_mm256_slli_epi32(
        _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p + 16 * h))), 16));
}

/* T tiles against C rows (T * C <= 6), all sums in registers. */
INLINE void block_plain(enum qtype type, int T, int C, int n_cols, const uint8_t *p, size_t tile,
                        const void *const *x, float *const *y, int y_at)
{
    const size_t step = type == QTYPE_F32 ? 64 : 32;
    const size_t ahead = 2 * (size_t)AHEAD / (size_t)T;
    const char *a[3];
    __m256 acc[4][2][3];
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
        a[c] = x[c];
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) acc[t][0][c] = acc[t][1][c] = _mm256_setzero_ps();
    }
    for (int k = 0; k < n_cols; k++, p += step) {
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
            if (type == QTYPE_F32 || !(k & 1))
                _mm_prefetch((const char *)(p + tile * (size_t)t + ahead), _MM_HINT_T0);
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                __m256 v = load_plain(type, p + tile * (size_t)t, h);
#pragma GCC unroll 4
                for (int c = 0; c < C; c++)
                    acc[t][h][c] = _mm256_fmadd_ps(v, all_lanes_f32(a[c] + 4 * (size_t)k),
                                                   acc[t][h][c]);
            }
        }
    }
#pragma GCC unroll 4
    for (int c = 0; c < C; c++)
#pragma GCC unroll 4
        for (int t = 0; t < T; t++)
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++)
                _mm256_storeu_ps(y[c] + y_at + TILE_ROWS * t + 8 * h, acc[t][h][c]);
}

INLINE void rows_plain(enum qtype type, int T, int n_cols, const uint8_t *p, size_t tile, int n,
                       const void *const *x, float *const *y, int y_at)
{
    for (; n >= 3; n -= 3, x += 3, y += 3) block_plain(type, T, 3, n_cols, p, tile, x, y, y_at);
    if (n == 2) block_plain(type, T, 2, n_cols, p, tile, x, y, y_at);
    if (n == 1) block_plain(type, T, 1, n_cols, p, tile, x, y, y_at);
}

INLINE void mm_plain(enum qtype type, int n_cols, int n_tiles, const void *w, int n_rows,
                     const void *const *x, float *const *y)
{
    const size_t tile = tile_bytes(type, n_cols);
    const uint8_t *p = w;
    int t = 0;
    if (n_rows == 1)
        for (; t + 4 <= n_tiles; t += 4, p += 4 * tile)
            block_plain(type, 4, 1, n_cols, p, tile, x, y, TILE_ROWS * t);
    for (; t + 2 <= n_tiles; t += 2, p += 2 * tile)
        rows_plain(type, 2, n_cols, p, tile, n_rows, x, y, TILE_ROWS * t);
    if (t < n_tiles) rows_plain(type, 1, n_cols, p, tile, n_rows, x, y, TILE_ROWS * t);
}

/* ---- the loops around the quantised types -------------------------------------------------- */

INLINE void row_any(enum qtype type, int n_cols, const uint8_t *p, const char *x, float *y)
{
    if (type == QTYPE_Q4_K || type == QTYPE_Q6_K) row_256(type, n_cols, p, x, y);
    else row_32(type, n_cols, p, x, y);
}

INLINE void group_any(enum qtype type, int n_cols, const uint8_t *p, int h, int n,
                      const void *const *x, struct scratch *sc)
{
    if (type == QTYPE_Q4_K || type == QTYPE_Q6_K) group_256(type, n_cols, p, h, n, x, sc);
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

INLINE uint32_t max_bits(__m256i m)
{
    __m128i v = _mm_max_epu32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    v = _mm_max_epu32(v, _mm_shuffle_epi32(v, 0x4e));
    v = _mm_max_epu32(v, _mm_shuffle_epi32(v, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(v);
}

/* Quantises 32 n values with one scale; returns the scale. */
INLINE float quantise(const float *x, int n, int8_t *q)
{
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i m = zero();
    for (int i = 0; i < 32 * n; i += 8)
        m = _mm256_max_epu32(m, _mm256_and_si256(load256((const uint8_t *)(x + i)), magnitude));
    uint32_t bits = max_bits(m);
    if (bits >= 0x7f800000u || f32_from_bits(bits) < ACT_AMAX_MIN) {
        memset(q, 0, (size_t)(32 * n));
        return bits >= 0x7f800000u ? f32_from_bits(ACT_BAD_SCALE) : 0.0f;
    }
    float amax = f32_from_bits(bits);
    __m256 inv = _mm256_set1_ps(127.0f / amax);
    for (int i = 0; i < 32 * n; i += 32) {
        __m256i v[4];
        for (int j = 0; j < 4; j++)
            v[j] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8 * j), inv));
        __m256i b = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]),
                                       _mm256_packs_epi32(v[2], v[3]));
        b = _mm256_permutevar8x32_epi32(b, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((__m256i *)(q + i), b);
    }
    return amax / 127.0f;
}

/* The sums of the two halves of 32 bytes. */
INLINE void sums_of_16(const int8_t *q, int *first, int *second)
{
    __m256i v = load256((const uint8_t *)q);
    __m256i s = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), v),
                                  _mm256_set1_epi16(1));
    s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0x4e));
    s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0xb1));
    *first = _mm_cvtsi128_si32(_mm256_castsi256_si128(s));
    *second = _mm_cvtsi128_si32(_mm256_extracti128_si256(s, 1));
}

static void act_q8_32(int n_cols, const float *x, void *out)
{
    int n_blocks = n_cols / 32, s0, s1;
    int8_t *q = out;
    char *d = (char *)out + n_cols, *s32 = d + 4 * (size_t)n_blocks;
    for (int b = 0; b < n_blocks; b++) {
        float scale = quantise(x + 32 * b, 1, q + 32 * b);
        sums_of_16(q + 32 * b, &s0, &s1);
        s0 += s1;
        memcpy(d + 4 * (size_t)b, &scale, 4);
        memcpy(s32 + 4 * (size_t)b, &s0, 4);
    }
    size_t used = (size_t)n_cols + 8 * (size_t)n_blocks;
    memset((char *)out + used, 0, act_bytes(ACT_Q8_32, n_cols) - used);
}

static void act_q8_256(int n_cols, const float *x, void *out)
{
    int n_blocks = n_cols / 256;
    int8_t *q = out;
    char *d = (char *)out + n_cols, *s16 = d + 4 * (size_t)n_blocks;
    char *s32 = s16 + n_cols / 16 * 2;
    for (int b = 0; b < n_blocks; b++) {
        float scale = quantise(x + 256 * b, 8, q + 256 * b);
        memcpy(d + 4 * (size_t)b, &scale, 4);
    }
    for (int i = 0; i < n_cols / 32; i++) {
        int s0, s1;
        sums_of_16(q + 32 * i, &s0, &s1);
        int16_t v[2] = {(int16_t)s0, (int16_t)s1}, both = (int16_t)(s0 + s1);
        memcpy(s16 + 4 * (size_t)i, v, 4);
        memcpy(s32 + 2 * (size_t)i, &both, 2);
    }
    size_t used = (size_t)(s32 - (char *)out) + (size_t)n_cols / 32 * 2;
    memset((char *)out + used, 0, act_bytes(ACT_Q8_256, n_cols) - used);
}

const struct mm_kernels mm_kernels_avx2 = {
    .act = {[ACT_F32] = act_f32_ref, [ACT_Q8_32] = act_q8_32, [ACT_Q8_256] = act_q8_256},
    .mm = {[QTYPE_F32] = mm_f32,
           [QTYPE_F16] = mm_f16,
           [QTYPE_BF16] = mm_bf16,
           [QTYPE_Q8_0] = mm_q8_0,
           [QTYPE_Q4_0] = mm_q4_0,
           [QTYPE_Q4_K] = mm_q4_k,
           [QTYPE_Q6_K] = mm_q6_k},
};
