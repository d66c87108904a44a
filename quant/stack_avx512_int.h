/* Private to the files of AVX-512 and AMX products of the nested codec: unpacking its planes.
 *
 * DESIGN.  vpermb looks 64 bytes up in a table of 64 by the low six bits of each: a nested code.  The
 * base gives bits 5 and 4, the levels the bits below; what is not loaded is left as it comes, because
 * a table of smaller depth does not look at it.  A level has the bits of eight groups of 64 weights in
 * a register; three or four levels become eight groups of nibbles by two rounds of swapping halves,
 * two operations for a group.  So 64 weights take a shift or two, a select and the look-up beside. */
#ifndef QUANT_STACK_AVX512_INT_H
#define QUANT_STACK_AVX512_INT_H

#include "quant/mm_avx512_int.h"
#include "quant/stack.h"

#if defined(__AVX512VNNI__)

/* The planes of a matrix from some block on. */
struct planes {
    const uint8_t *base, *level[STACK_NESTED + 1];
};

INLINE struct planes planes_at(int depth, const struct stacked *m, size_t block)
{
    struct planes p = {.base = (const uint8_t *)m->base + block * TNEST2_BYTES};
#pragma GCC unroll 4
    for (int l = 1; l <= depth; l++) p.level[l] = (const uint8_t *)m->level[l] + block * TNEST_LEVEL;
    return p;
}

INLINE void planes_next(int depth, struct planes *p)
{
    p->base += TNEST2_BYTES;
#pragma GCC unroll 4
    for (int l = 1; l <= depth; l++) p->level[l] += TNEST_LEVEL;
}

/* Base and levels are separate streams of DRAM, each prefetched like the only one of a plain type. */
INLINE void planes_prefetch(int depth, const struct planes *p)
{
    prefetch_stream(p->base, TNEST2_BYTES);
#pragma GCC unroll 4
    for (int l = 1; l <= depth; l++) prefetch_stream(p->level[l], TNEST_LEVEL);
}

/* Values of a depth plus `offset`, for every code of six bits. */
INLINE __m512i nest_values(int depth, int offset)
{
    _Alignas(64) uint8_t v[64];
    for (int i = 0; i < 64; i++) {
        const int m = nest_table[depth][(i & 31) >> (STACK_NESTED - depth)];
        v[i] = (uint8_t)(offset + (i & 32 ? -m : m));
    }
    return _mm512_load_si512(v);
}

/* The bits of a where mask has ones, those of b elsewhere. */
INLINE __m512i select_bits(int mask, __m512i a, __m512i b)
{
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8((char)mask), a, b, 0xca);
}

/* Bits of bytes moved up, or down; what crosses into a neighbour is selected away. */
INLINE __m512i up(__m512i v, int n)
{
    if (n > 0) return _mm512_slli_epi16(v, (unsigned)(n > 0 ? n : 0));
    return n < 0 ? _mm512_srli_epi16(v, (unsigned)(n < 0 ? -n : 0)) : v;
}

/* Bits of levels a (the upper) and b side by side: even groups in pairs[0], odd ones in pairs[1], two
 * groups further in the next two bits. */
INLINE void pair_bits(__m512i a, __m512i b, __m512i *pairs)
{
    pairs[0] = select_bits(0xaa, up(a, 1), b);
    pairs[1] = select_bits(0xaa, a, up(b, -1));
}

/* Half h of a block of 64 columns as bytes: table[code]. */
INLINE void unpack_nested(int depth, const struct planes *p, int h, __m512i table, __m512i *w)
{
    __m512i level[STACK_NESTED + 1], high[2], low[2], nibble[4];
#pragma GCC unroll 4
    for (int l = 1; l <= depth; l++) level[l] = load512(p->level[l] + 64 * h);
    if (depth >= 2) pair_bits(level[1], level[2], high);
    if (depth >= 3) {
        pair_bits(level[3], level[depth], low); /* depth 3: the last bit is not looked at */
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) { /* groups i and i + 4; i + 2 and i + 6 */
            nibble[i] = select_bits(0xcc, up(high[i], 2), low[i]);
            nibble[i + 2] = select_bits(0xcc, high[i], up(low[i], -2));
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        __m512i v = up(load512(p->base + TNEST2_Q + 128 * h + i / 4 * 64), 4 - 2 * (i % 4));
        if (depth == 1) v = select_bits(0x30, v, up(level[1], 3 - i));
        if (depth == 2) v = select_bits(0x30, v, up(high[i % 2], 2 - i / 2 * 2));
        if (depth >= 3) v = select_bits(0x30, v, up(nibble[i % 4], i < 4 ? 0 : -4));
        w[i] = _mm512_permutexvar_epi8(v, table);
    }
}

INLINE __m512 nest_scale(const uint8_t *p)
{
    const __m256i e = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p));
    return _mm512_cvtph_ps(_mm256_slli_epi16(e, 7));
}

#endif
#endif
