/* Private to the elem_* and attn_* files: the vector forms of exp, tiers' tables.
 *
 * Owns nothing.  Never include it outside moe/compute: elem.h is the interface. */
#ifndef MOE_COMPUTE_ELEM_INT_H
#define MOE_COMPUTE_ELEM_INT_H

#include "moe/compute/elem.h"
#include "moe/compute/elem_exp.h"

enum { Q8_BLOCK = 32 };

/* What the inner attention kernels read: floats, or a page as it is stored. */
enum kind { SRC_F32, SRC_F16, SRC_I8 };

/* Part of a page's K for one kernel call.  `ahead` is how many bytes behind what is read the
 * prefetch goes; SRC_F32 does not prefetch. */
struct k_piece {
    const void *k; /* [n_d][64] */
    ptrdiff_t ahead;
    const uint16_t *kd; /* [64] scales of a Q8_0 block, else NULL */
    int d0, n_d;        /* which d of q it meets; scores start at d0 = 0 and continue after it */
};

/* Part of a page's V. */
struct v_piece {
    const void *v; /* [64][ld], n_col of it */
    ptrdiff_t ahead;
    size_t ld;
    int c0, n_col; /* which outputs it makes */
};

#if defined(__x86_64__)
extern const struct elem_kernels elem_table_avx2, elem_table_avx512;

/* Index: enum kv_type.  In attn_avx2.c and attn_avx512.c. */
typedef void attn_fn(int dk, int dv, int n_q, float scale, int n_rows, const struct attn_row *rows);
attn_fn attn_f16_avx2, attn_q8_avx2, attn_f16_avx512, attn_q8_avx512;
attn_fn attn_latent_f16_avx2, attn_latent_q8_avx2, attn_latent_f16_avx512, attn_latent_q8_avx512;
#endif

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

static inline __m256 elem_exp256(__m256 x)
{
    const __m256 magic = _mm256_set1_ps(EXP_MAGIC), one = _mm256_set1_ps(1.0f);
    __m256 t = _mm256_fmadd_ps(x, _mm256_set1_ps(EXP_LOG2E), magic);
    __m256 n = _mm256_sub_ps(t, magic);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(EXP_LN2_HI), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(EXP_LN2_LO), r);
    __m256 p = _mm256_set1_ps(EXP_C6);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_C5));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_C4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_C3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_C2));
    p = _mm256_fmadd_ps(p, r, one);
    p = _mm256_fmadd_ps(p, r, one);
    __m256 y = _mm256_castsi256_ps(_mm256_add_epi32(
        _mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(t), 23)));
    y = _mm256_blendv_ps(y, _mm256_set1_ps(__builtin_inff()),
                         _mm256_cmp_ps(x, _mm256_set1_ps(EXP_HI), _CMP_GT_OQ));
    y = _mm256_andnot_ps(_mm256_cmp_ps(x, _mm256_set1_ps(EXP_LO), _CMP_LT_OQ), y);
    return _mm256_blendv_ps(y, _mm256_castsi256_ps(_mm256_set1_epi32(EXP_NAN)),
                            _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}
#endif

#if defined(__AVX512F__) && defined(__AVX512DQ__)
static inline __m512 elem_exp512(__m512 x)
{
    const __m512 magic = _mm512_set1_ps(EXP_MAGIC), one = _mm512_set1_ps(1.0f);
    __m512 t = _mm512_fmadd_ps(x, _mm512_set1_ps(EXP_LOG2E), magic);
    __m512 n = _mm512_sub_ps(t, magic);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(EXP_LN2_HI), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(EXP_LN2_LO), r);
    __m512 p = _mm512_set1_ps(EXP_C6);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_C5));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_C4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_C3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_C2));
    p = _mm512_fmadd_ps(p, r, one);
    p = _mm512_fmadd_ps(p, r, one);
    __m512i y = _mm512_add_epi32(_mm512_castps_si512(p),
                                 _mm512_slli_epi32(_mm512_castps_si512(t), 23));
    y = _mm512_mask_mov_epi32(y, _mm512_cmp_ps_mask(x, _mm512_set1_ps(EXP_HI), _CMP_GT_OQ),
                              _mm512_set1_epi32(0x7f800000));
    /* Not less than EXP_LO, or NaN: everything else becomes +0. */
    y = _mm512_maskz_mov_epi32(_mm512_cmp_ps_mask(x, _mm512_set1_ps(EXP_LO), _CMP_NLT_UQ), y);
    y = _mm512_mask_mov_epi32(y, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q),
                              _mm512_set1_epi32(EXP_NAN));
    return _mm512_castsi512_ps(y);
}
#endif

#endif
