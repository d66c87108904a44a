/* Packing of tiles in AVX2, see tile.c: eight rows by eight dwords are turned at once.  Pure. */
#include <immintrin.h>

#include "quant/mm_int.h"

static __m128i load(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)(const void *)p); }

void turn_dwords_avx2(const uint8_t *const *src, size_t at, int n, uint32_t flip, uint8_t *dst)
{
    const __m256i x = _mm256_set1_epi32((int)flip);
    int j = 0;
    for (; j + 4 <= n; j += 4, at += 16, dst += 4 * 64)
        for (int r = 0; r < TILE_ROWS; r += 8) {
            __m256i v[4], t[4]; /* four dwords of rows r + i | r + i + 4 */
            for (int i = 0; i < 4; i++)
                v[i] = _mm256_set_m128i(load(src[r + i + 4] + at), load(src[r + i] + at));
            for (int i = 0; i < 4; i += 2) { /* dwords 0, 1 and 2, 3 of two rows */
                t[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
                t[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
            }
            for (int i = 0; i < 2; i++) {
                v[2 * i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
                v[2 * i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
            }
            for (int i = 0; i < 4; i++)
                _mm256_storeu_si256((__m256i *)(void *)(dst + 64 * i + 4 * r),
                                    _mm256_xor_si256(v[i], x));
        }
    turn_dwords_ref(src, at, n - j, flip, dst);
}
