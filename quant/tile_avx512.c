/* Packing of tiles in AVX-512, see tile.c: sixteen rows by eight dwords are turned at once, a line of
 * the tile is stored whole.  Pure. */
#include <immintrin.h>

#include "quant/mm_int.h"

static __m256i load(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }

/* v[k], of four rows: their dwords k | k + 4, and of the rows eight below the same. */
static void turn_four(__m512i *v)
{
    __m512i t[4];
    for (int i = 0; i < 4; i += 2) {
        t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        v[2 * i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        v[2 * i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    }
}

void turn_dwords_avx512(const uint8_t *const *src, size_t at, int n, uint32_t flip, uint8_t *dst)
{
    const __m512i x = _mm512_set1_epi32((int)flip);
    const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    const __m512i high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    int j = 0;
    for (; j + 8 <= n; j += 8, at += 32, dst += 8 * 64) {
        __m512i v[8]; /* eight dwords of rows i | i + 8 */
        for (int i = 0; i < 8; i++)
            v[i] = _mm512_inserti64x4(_mm512_castsi256_si512(load(src[i] + at)), load(src[i + 8] + at), 1);
        turn_four(v);
        turn_four(v + 4);
        for (int k = 0; k < 4; k++) {
            const __m512i a = _mm512_permutex2var_epi64(v[k], low, v[k + 4]);
            const __m512i b = _mm512_permutex2var_epi64(v[k], high, v[k + 4]);
            _mm512_storeu_si512(dst + 64 * k, _mm512_xor_si512(a, x));
            _mm512_storeu_si512(dst + 64 * (k + 4), _mm512_xor_si512(b, x));
        }
    }
    turn_dwords_avx2(src, at, n - j, flip, dst);
}
