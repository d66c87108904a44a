/* AVX2 expansion of stacked matrices (quant/stack.h); products are the expanded type's.  Bit-equal to
 * the reference.  Owns nothing.
 *
 * DESIGN.  A code's magnitude has five bits: two tables of sixteen for vpshufb and a blend by the
 * fifth; then the sign. */
#include "quant/mm_avx2_int.h"

#include "quant/stack.h"

#if defined(__AVX2__)

/* Bit `at` of every byte moved to bit `to`, the others cleared. */
INLINE __m256i bit_at(__m256i v, int at, int to)
{
    const __m256i moved = at < to ? _mm256_slli_epi16(v, to - at) : _mm256_srli_epi16(v, at - to);
    return _mm256_and_si256(moved, _mm256_set1_epi8((char)(1 << to)));
}

/* Rows 8 r .. of half h of a block of 64 columns as the bytes of Q8_0's tile. */
INLINE void unpack_nested(int depth, const uint8_t *q, const uint8_t *const *p, int h, int r,
                          const __m256i *table, __m256i *w)
{
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        const __m256i base = load256(q + 128 * h + i / 4 * 64 + 32 * r);
        __m256i v = bit_at(base, i % 4 * 2, 4);
#pragma GCC unroll 4
        for (int l = 1; l <= depth; l++)
            v = _mm256_or_si256(v, bit_at(load256(p[l] + 64 * h + 32 * r), i, STACK_NESTED - l));
        const __m256i low = _mm256_shuffle_epi8(table[0], _mm256_and_si256(v, _mm256_set1_epi8(15)));
        const __m256i high =
            _mm256_shuffle_epi8(table[1], _mm256_and_si256(v, _mm256_set1_epi8(15)));
        const __m256i mag = _mm256_blendv_epi8(low, high, _mm256_slli_epi16(v, 3));
        const __m256i sign = bit_at(base, i % 4 * 2 + 1, 5);
        const __m256i minus = _mm256_cmpeq_epi8(sign, _mm256_set1_epi8(32));
        const __m256i value = _mm256_sub_epi8(_mm256_xor_si256(mag, minus), minus);
        w[i] = _mm256_xor_si256(value, _mm256_set1_epi8(-128));
    }
}

INLINE void expand_depth(int depth, const struct stacked *m, int t, uint8_t *out)
{
    const int n_blocks = m->n_cols / 64;
    const size_t first = (size_t)t * (size_t)n_blocks;
    const uint8_t *base = (const uint8_t *)m->base + first * TNEST2_BYTES, *p[STACK_NESTED + 1];
    uint8_t mag[32];
    for (int i = 0; i < 32; i++) mag[i] = nest_table[depth][i >> (STACK_NESTED - depth)];
    const __m256i table[2] = {
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)mag)),
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(mag + 16)))};
    for (int l = 1; l <= depth; l++) p[l] = (const uint8_t *)m->level[l] + first * TNEST_LEVEL;
    for (int b = 0; b < n_blocks; b++, base += TNEST2_BYTES) {
        const __m256i e = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)base));
        for (int h = 0; h < 2; h++, out += T8_0_BYTES) {
            _mm256_storeu_si256((__m256i *)out, _mm256_slli_epi16(e, 7));
            for (int r = 0; r < 2; r++) {
                __m256i w[8];
                unpack_nested(depth, base + TNEST2_Q, p, h, r, table, w);
                for (int i = 0; i < 8; i++)
                    _mm256_storeu_si256((__m256i *)(out + T8_0_Q + 64 * i + 32 * r), w[i]);
            }
        }
        for (int l = 1; l <= depth; l++) p[l] += TNEST_LEVEL;
    }
}

static void expand_nested(const struct stacked *m, int t, uint8_t *out)
{
    switch (m->depth) {
    case 0: expand_depth(0, m, t, out); break;
    case 1: expand_depth(1, m, t, out); break;
    case 2: expand_depth(2, m, t, out); break;
    case 3: expand_depth(3, m, t, out); break;
    default: expand_depth(4, m, t, out); break;
    }
}

/* Eight rows of a column at a time. */
static void expand_factored(const struct stacked *m, int t, float *out)
{
    const size_t n_cols = (size_t)m->n_cols, k = (size_t)m->rank, tile = (size_t)t;
    const size_t at_u = fact_at_u(m->rank, m->n_cols);
    const size_t at_signs = fact_at_signs(m->rank, m->n_cols, m->n_rows);
    for (int half = 0; half < 2; half++)
        for (size_t c = 0; c < n_cols; c++) {
            __m256 sum = _mm256_setzero_ps();
            for (int l = 0; l <= m->depth; l++) {
                const uint8_t *v = m->level[l], *u = v + at_u, *sign = l ? v + at_signs : m->base;
                __m256 mag = _mm256_setzero_ps();
                for (size_t r = 0; r < k; r++) {
                    uint16_t vh;
                    memcpy(&vh, v + 2 * (r * n_cols + c), 2);
                    const uint8_t *uh = u + 2 * ((tile * k + r) * TILE_ROWS + 8 * (size_t)half);
                    mag = _mm256_fmadd_ps(load_halfs(uh), _mm256_set1_ps(_cvtsh_ss(vh)), mag);
                }
                const __m256i bits =
                    load256(sign + (tile * (n_cols / 32) + c / 32) * TSIGN1_BYTES + 32 * half);
                const __m256i at = _mm256_set1_epi32((int)(1u << (c % 4 * 8 + c % 32 / 4)));
                const __m256i plus = _mm256_cmpeq_epi32(_mm256_and_si256(bits, at), at);
                const __m256i flip =
                    _mm256_andnot_si256(plus, _mm256_set1_epi32((int)0x80000000u));
                sum = _mm256_add_ps(sum, _mm256_xor_ps(mag, _mm256_castsi256_ps(flip)));
            }
            _mm256_storeu_ps(out + c * TILE_ROWS + 8 * half, sum);
        }
}

void stack_expand_avx2(const struct stacked *w, int t, void *tile)
{
    if (w->type == QTYPE_NEST2) expand_nested(w, t, tile);
    else expand_factored(w, t, tile);
}

#endif
