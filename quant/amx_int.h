/* Private to the AMX files: the tile unit (amx-tile, amx-int8), and activations as it takes them. */
#ifndef QUANT_AMX_INT_H
#define QUANT_AMX_INT_H

#include "quant/mm_avx512_int.h"

#if defined(__AVX512VNNI__)

enum { DEEP = 64 }; /* bytes of a row of A */

/* The compiler knows nothing of tile registers: every access is a barrier for memory. */
#define TILE_LOAD(t, p, stride)                                                                    \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(p), "r"((long)(stride)) : "memory")
#define TILE_STORE(t, p)                                                                           \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(p), "r"(64l) : "memory")
#define TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t ::)
#define TILE_DOT_SS(c, a, b)                                                                       \
    __asm__ volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)
#define TILE_DOT_SU(c, a, b)                                                                       \
    __asm__ volatile("tdpbsud %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

/* Tiles 0-3 are C, 4 and 5 A, 6 and 7 B; deep: bytes of a row of A. */
static void tiles_begin(int deep)
{
    uint8_t cfg[64] = {1};
    for (int t = 0; t < 8; t++) {
        cfg[16 + 2 * t] = (uint8_t)(t == 4 || t == 5 ? deep : 64);
        cfg[48 + t] = (uint8_t)(t >= 6 ? deep / 4 : 16);
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(cfg));
}

static void tiles_end(void) { __asm__ volatile("tilerelease" ::); }

/* Columns k0 .. k0 + n_k - 1 of n rows, groups of 16 in a, each of at most n_deep tiles; the rows up
 * to the next multiple of `group` become zeros. */
INLINE void copy_rows(int8_t (*a)[16][DEEP], int n_deep, const void *const *x, int n, int group,
                      int k0, int n_k)
{
    for (int r = 0; r < (n + group - 1) / group * group; r++)
        for (int k = 0; k < n_k; k += DEEP) {
            const int m = n_k - k < DEEP ? n_k - k : DEEP;
            const __mmask64 some = m < 64 ? (1ull << m) - 1 : ~0ull;
            const __m512i v = r < n ? _mm512_maskz_loadu_epi8(some, (const char *)x[r] + k0 + k)
                                    : zero();
            _mm512_store_si512(a[r / 16 * n_deep + k / DEEP][r % 16], v);
        }
}

#endif
#endif
