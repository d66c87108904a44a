/* Tiles: 16 rows interleaved, and read back.  The layouts are in quant/README.md; sizes and bytes
 * are exactly those of 16 GGUF rows.  Owns nothing.
 *
 * DESIGN: in a tile the fields of a GGUF block are sixteen-row columns.  Bytes and nibbles move as
 * dwords, so packing is a transposition of 16 x n dwords per field (sixteen rows, dword j of every
 * row together), and halfs move as 16 x n halfs.  Four rows by four dwords are turned at once in
 * SSE2 registers, which x86-64 always has; elsewhere a plain loop does the same, and AVX2 and
 * AVX-512 turn more at once.  While a model streams this runs on the cores that compute, and it is
 * bound by memory: so a block column is put together in L1 and written past the caches (a line that
 * is written whole need not be read first), and the rows, sixteen streams, are fetched early. */
#include <string.h>

#include "moe/base/err.h"
#include "moe/base/f16.h"
#include "quant/codec.h"
#include "quant/mm_int.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

/* A field of a block: n units of `unit` bytes at `src` in the GGUF block, at `dst` in the tile's
 * block column; `flip` is xored into every byte. */
struct field {
    int src, dst, unit, n;
    uint32_t flip;
    int bits; /* set: the 32 bits of a dword change places, see turn_bits */
};

struct layout {
    int n_fields;
    struct field f[5];
};

static const struct layout layouts[QTYPE_ID_END] = {
    [QTYPE_Q8_0] = {2, {{0, 0, 2, 1, 0}, {2, T8_0_Q, 4, 8, 0x80808080u}}},
    [QTYPE_Q4_0] = {2, {{0, 0, 2, 1, 0}, {2, T4_0_Q, 4, 4, 0}}},
    [QTYPE_Q4_K] = {4,
                    {{0, 0, 2, 1, 0},
                     {2, T4_K_DMIN, 2, 1, 0},
                     {4, T4_K_SC, 4, 3, 0},
                     {16, T4_K_Q, 4, 32, 0}}},
    [QTYPE_Q6_K] = {4,
                    {{208, 0, 2, 1, 0},
                     {192, T6_K_SC, 4, 4, 0},
                     {0, T6_K_QL, 4, 32, 0},
                     {128, T6_K_QH, 4, 16, 0}}},
    [QTYPE_Q4_1] = {3, {{0, 0, 2, 1, 0}, {2, T4_1_M, 2, 1, 0}, {4, T4_1_Q, 4, 4, 0}}},
    [QTYPE_Q5_0] = {3, {{0, 0, 2, 1, 0}, {2, T5_0_H, 4, 1, 0, 1}, {6, T5_0_Q, 4, 4, 0}}},
    [QTYPE_Q5_1] = {4,
                    {{0, 0, 2, 1, 0},
                     {2, T5_1_M, 2, 1, 0},
                     {4, T5_1_H, 4, 1, 0, 1},
                     {8, T5_1_Q, 4, 4, 0}}},
    [QTYPE_IQ4_NL] = {2, {{0, 0, 2, 1, 0}, {2, T4_0_Q, 4, 4, 0}}},
    [QTYPE_MXFP4] = {2, {{0, 0, 1, 1, 0}, {1, TMX4_Q, 4, 4, 0}}},
    [QTYPE_NVFP4] = {2, {{0, 0, 4, 1, 0}, {4, TNV4_Q, 4, 8, 0}}},
    [QTYPE_Q2_K] = {4,
                    {{80, 0, 2, 1, 0},
                     {82, T2_K_DMIN, 2, 1, 0},
                     {0, T2_K_SC, 4, 4, 0},
                     {16, T2_K_Q, 4, 16, 0}}},
    [QTYPE_Q3_K] = {4,
                    {{108, 0, 2, 1, 0},
                     {96, T3_K_SC, 4, 3, 0},
                     {0, T3_K_H, 4, 8, 0},
                     {32, T3_K_Q, 4, 16, 0}}},
    [QTYPE_Q5_K] = {5,
                    {{0, 0, 2, 1, 0},
                     {2, T5_K_DMIN, 2, 1, 0},
                     {4, T5_K_SC, 4, 3, 0},
                     {16, T5_K_H, 4, 8, 0},
                     {48, T5_K_Q, 4, 32, 0}}},
    [QTYPE_IQ4_XS] = {4,
                      {{0, 0, 2, 1, 0},
                       {2, T4_XS_SH, 2, 1, 0},
                       {4, T4_XS_SL, 4, 1, 0},
                       {8, T4_XS_Q, 4, 32, 0}}},
    /* The grid formats: their half, then dwords as they are. */
    [QTYPE_IQ3_S] = {2, {{0, 0, 2, 1, 0}, {2, 32, 4, 27, 0}}},
    [QTYPE_IQ3_XXS] = {2, {{0, 0, 2, 1, 0}, {2, 32, 4, 24, 0}}},
    [QTYPE_IQ2_S] = {2, {{0, 0, 2, 1, 0}, {2, 32, 4, 20, 0}}},
    [QTYPE_IQ2_XS] = {2, {{0, 0, 2, 1, 0}, {2, 32, 4, 18, 0}}},
    [QTYPE_IQ2_XXS] = {2, {{0, 0, 2, 1, 0}, {2, 32, 4, 16, 0}}},
    [QTYPE_IQ1_S] = {2, {{0, 0, 2, 1, 0}, {2, 32, 4, 12, 0}}},
    [QTYPE_IQ1_M] = {1, {{0, 0, 4, 14, 0}}},
    [QTYPE_NEST2] = {2, {{0, 0, 1, 1, 0}, {1, TNEST2_Q, 4, 4, 0}}},
    [QTYPE_SIGN1] = {1, {{0, 0, 4, 1, 0, 1}}},
};

/* The unit of a type whose block is one weight, 0 for block types. */
static int plain_unit(enum qtype type)
{
    if (type == QTYPE_F32) return 4;
    return type == QTYPE_F16 || type == QTYPE_BF16 ? 2 : 0;
}

/* ---- packing ---------------------------------------------------------------------------- */

enum { COLUMNS_MAX = 4096 };

void turn_dwords_ref(const uint8_t *const *src, size_t at, int n, uint32_t flip, uint8_t *dst)
{
    int j = 0;
#if defined(__SSE2__)
    const __m128i x = _mm_set1_epi32((int)flip);
    for (; j + 4 <= n; j += 4)
        for (int r = 0; r < TILE_ROWS; r += 4) {
            __m128i v[4], t[4];
            for (int i = 0; i < 4; i++)
                v[i] = _mm_loadu_si128((const __m128i *)(src[r + i] + at + 4 * (size_t)j));
            t[0] = _mm_unpacklo_epi32(v[0], v[1]);
            t[1] = _mm_unpackhi_epi32(v[0], v[1]);
            t[2] = _mm_unpacklo_epi32(v[2], v[3]);
            t[3] = _mm_unpackhi_epi32(v[2], v[3]);
            v[0] = _mm_unpacklo_epi64(t[0], t[2]);
            v[1] = _mm_unpackhi_epi64(t[0], t[2]);
            v[2] = _mm_unpacklo_epi64(t[1], t[3]);
            v[3] = _mm_unpackhi_epi64(t[1], t[3]);
            for (int i = 0; i < 4; i++)
                _mm_storeu_si128((__m128i *)(dst + 64 * (size_t)(j + i) + 4 * (size_t)r),
                                 _mm_xor_si128(v[i], x));
        }
#endif
    for (; j < n; j++)
        for (int r = 0; r < TILE_ROWS; r++) {
            uint32_t v;
            memcpy(&v, src[r] + at + 4 * (size_t)j, 4);
            v ^= flip;
            memcpy(dst + 64 * (size_t)j + 4 * (size_t)r, &v, 4);
        }
}

/* dst[j][r] = half j of src[r], for n halfs. */
static void turn_halfs(const uint8_t *const *src, size_t at, int n, uint8_t *dst)
{
    int j = 0;
#if defined(__SSE2__)
    for (; j + 8 <= n; j += 8)
        for (int r = 0; r < TILE_ROWS; r += 8) {
            __m128i v[8], t[8];
            for (int i = 0; i < 8; i++)
                v[i] = _mm_loadu_si128((const __m128i *)(src[r + i] + at + 2 * (size_t)j));
            for (int i = 0; i < 4; i++) { /* pairs of rows */
                t[i] = _mm_unpacklo_epi16(v[2 * i], v[2 * i + 1]);
                t[i + 4] = _mm_unpackhi_epi16(v[2 * i], v[2 * i + 1]);
            }
            for (int i = 0; i < 8; i += 2) { /* fours of rows: v[i] halfs 2i, 2i+1 */
                v[i] = _mm_unpacklo_epi32(t[i], t[i + 1]);
                v[i + 1] = _mm_unpackhi_epi32(t[i], t[i + 1]);
            }
            for (int i = 0; i < 4; i++) {
                int lo = i < 2 ? i : i + 2; /* v[lo], v[lo + 2]: the same halfs, both fours */
                __m128i a = _mm_unpacklo_epi64(v[lo], v[lo + 2]);
                __m128i b = _mm_unpackhi_epi64(v[lo], v[lo + 2]);
                uint8_t *to = dst + 32 * (size_t)(j + 2 * i) + 2 * (size_t)r;
                _mm_storeu_si128((__m128i *)to, a);
                _mm_storeu_si128((__m128i *)(to + 32), b);
            }
        }
#endif
    for (; j < n; j++)
        for (int r = 0; r < TILE_ROWS; r++)
            memcpy(dst + 32 * (size_t)j + 2 * (size_t)r, src[r] + at + 2 * (size_t)j, 2);
}

/* Bit 4 i + k of a dword goes to bit i of byte k: then one shift brings the bits of weights 4 i to
 * 4 i + 3 to the same place in their bytes. */
static uint32_t turn_bits(uint32_t v)
{
    uint32_t out = 0;
    for (int i = 0; i < 8; i++, v >>= 4) out |= ((v & 15) * 0x00204081u & 0x01010101u) << i;
    return out;
}

static uint32_t turn_bits_back(uint32_t v)
{
    uint32_t out = 0;
    for (int i = 0; i < 8; i++, v >>= 1)
        out |= ((v & 0x01010101u) * 0x01020408u >> 24 & 15) << 4 * i;
    return out;
}

static void turn_bit_dwords(uint8_t *p)
{
    for (int r = 0; r < TILE_ROWS; r++) {
        uint32_t v;
        memcpy(&v, p + 4 * r, 4);
        v = turn_bits(v);
        memcpy(p + 4 * r, &v, 4);
    }
}

/* dst = src, n bytes in steps of 16, past the caches. */
static void put_past_caches(uint8_t *dst, const uint8_t *src, size_t n)
{
#if defined(__SSE2__)
    for (size_t i = 0; i < n; i += 16)
        _mm_stream_si128((__m128i *)(void *)(dst + i),
                         _mm_load_si128((const __m128i *)(const void *)(src + i)));
#else
    memcpy(dst, src, n);
#endif
}

/* A block column of a block type. */
static void pack_column(turn_fn *turn, const struct layout *l, const uint8_t *const *src,
                        size_t block, uint8_t *column)
{
    for (const struct field *f = l->f; f < l->f + l->n_fields; f++) {
        const size_t from = block + (size_t)f->src;
        if (f->unit == 2) turn_halfs(src, from, f->n, column + f->dst);
        if (f->unit == 4) turn(src, from, f->n, f->flip, column + f->dst);
        if (f->bits) turn_bit_dwords(column + f->dst);
        for (int r = 0; f->unit == 1 && r < TILE_ROWS; r++) column[f->dst + r] = src[r][from];
    }
}

/* Packs n blocks of sixteen rows. */
static void pack_blocks(turn_fn *turn, enum qtype type, const uint8_t *const *src, int n,
                        uint8_t *tile)
{
    const int unit = plain_unit(type);
    const size_t bytes = (size_t)qtype_info((uint32_t)type)->block_bytes;
    const int step = (int)(COLUMNS_MAX / TILE_ROWS / bytes);
    _Alignas(64) uint8_t columns[COLUMNS_MAX];
    ASSERT(step > 0);
    for (int b = 0; b < n; b += step) {
        const int some = n - b < step ? n - b : step;
        const size_t from = (size_t)b * bytes, size = (size_t)some * bytes;
        if (unit == 4) turn(src, from, some, 0, columns);
        if (unit == 2) turn_halfs(src, from, some, columns);
        for (size_t at = 0; at < size && !unit; at += bytes)
            pack_column(turn, &layouts[type], src, from + at, columns + TILE_ROWS * at);
        for (int r = 0; r < TILE_ROWS; r++)
            for (size_t i = 0; i < size; i += 64)
                __builtin_prefetch(src[r] + from + size + i); /* the row may end before */
        put_past_caches(tile + TILE_ROWS * from, columns, TILE_ROWS * size);
    }
#if defined(__SSE2__)
    _mm_sfence(); /* whoever is told that the tile is there sees it */
#endif
}

void tile_pack(const struct mm_kernels *k, enum qtype type, int n_cols, int n_rows, const void *rows,
               size_t row_bytes, void *tile)
{
    enum { STEP = 512 }; /* weights per stretch: a zero row as long as that stands for the rest */
    static const uint8_t zeros[STEP * 4];
    const struct qtype_info *t = qtype_info((uint32_t)type);
    ASSERT(t && n_rows >= 0 && n_rows <= TILE_ROWS && n_cols % t->block == 0);
    const uint8_t *src[TILE_ROWS];
    for (int r = 0; r < n_rows; r++) src[r] = (const uint8_t *)rows + (size_t)r * row_bytes;
    int n_blocks = n_cols / t->block, step = STEP / t->block;
    if (n_rows == TILE_ROWS) {
        pack_blocks(k->turn, type, src, n_blocks, tile);
        return;
    }
    /* A partial tile is rare (the last of a matrix): pack stretch by stretch from moved origins,
     * so that the missing rows can all read the same short row of zeros. */
    for (int b = 0; b < n_blocks; b += step) {
        size_t at = (size_t)b * (size_t)t->block_bytes;
        const uint8_t *part[TILE_ROWS];
        for (int r = 0; r < TILE_ROWS; r++) part[r] = r < n_rows ? src[r] + at : zeros;
        int n = n_blocks - b < step ? n_blocks - b : step;
        pack_blocks(k->turn, type, part, n, (uint8_t *)tile + TILE_ROWS * at);
    }
}

/* ---- reading back ----------------------------------------------------------------------- */

void tile_gather(enum qtype type, const uint8_t *column, int row, uint8_t *block)
{
    int unit = plain_unit(type);
    if (unit) {
        memcpy(block, column + unit * row, (size_t)unit);
        return;
    }
    const struct layout *l = &layouts[type];
    for (const struct field *f = l->f; f < l->f + l->n_fields; f++)
        for (int j = 0; j < f->n; j++) {
            uint8_t *to = block + f->src + f->unit * j;
            memcpy(to, column + f->dst + f->unit * (TILE_ROWS * j + row), (size_t)f->unit);
            for (int i = 0; i < f->unit; i++) to[i] ^= (uint8_t)f->flip;
            if (f->bits) {
                uint32_t v;
                memcpy(&v, to, 4);
                v = turn_bits_back(v);
                memcpy(to, &v, 4);
            }
        }
}

void tile_row_f32(enum qtype type, int n_cols, const void *tile, int row, float *y)
{
    const struct qtype_info *t = qtype_info((uint32_t)type);
    ASSERT(t && row >= 0 && row < TILE_ROWS && n_cols % t->block == 0);
    const uint8_t *column = tile;
    uint8_t block[256];
    for (int k = 0; k < n_cols; k += t->block, column += TILE_ROWS * t->block_bytes) {
        tile_gather(type, column, row, block);
        codec_decode(type, block, y + k, t->block);
    }
}
