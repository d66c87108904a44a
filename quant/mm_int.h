/* Private to quant/: the kernel tables of the tiers, and what they share; constant data only. */
#ifndef QUANT_MM_INT_H
#define QUANT_MM_INT_H

#include <stddef.h>
#include <stdint.h>

#include "quant/mm.h"
#include "quant/tile.h"

/* How many prepared rows, a multiple of `group`, fit L2 beside the weights in use. */
static inline int mm_chunk(enum act_kind act, int n_cols, int group)
{
    int n = (int)(((size_t)384 << 10) / act_bytes(act, n_cols));
    return n < group ? group : n / group * group;
}

/* Puts one row's block of a block column together again as GGUF has it. */
void tile_gather(enum qtype type, const uint8_t *column, int row, uint8_t *block);

/* A tile's block column of a grid type taken apart: weights plus 64, so that they are 1 .. 126, and
 * signed scales per 16, in the layout that Q6_K has in its tiles. */
struct flat {
    uint8_t w[64][TILE_ROWS][4];
    int8_t scale[4][TILE_ROWS][4];
    float d[TILE_ROWS];
};

extern const struct mm_kernels mm_kernels_ref, mm_kernels_avx2, mm_kernels_avx512, mm_kernels_amx;

/* Products of a type of parts_int.h, in the tiers' files for the newer types. */
typedef void mm_fn(int n_cols, int n_tiles, const void *w, int n_rows, const void *const *x,
                   float *const *y);
#define MM_PARTS_TYPES(X)                                                                        \
    X(Q4_1) X(Q5_0) X(Q5_1) X(Q2_K) X(Q3_K) X(Q5_K) X(IQ4_NL) X(IQ4_XS) X(MXFP4) MM_GRID_TYPES(X)
#define MM_GRID_TYPES(X)                                                                         \
    X(NVFP4) X(IQ3_S) X(IQ3_XXS) X(IQ2_S) X(IQ2_XS) X(IQ2_XXS) X(IQ1_S) X(IQ1_M)
#define MM_DECLARE(TYPE) mm_fn mm_ref_##TYPE, mm_avx2_##TYPE, mm_avx512_##TYPE;
MM_PARTS_TYPES(MM_DECLARE)
#undef MM_DECLARE

/* AVX-512 kernels that the AMX tier keeps. */
mm_fn mm_avx512_F32, mm_avx512_F16, mm_avx512_BF16;
void act_q8_32_avx512(int n_cols, const float *x, void *out);
void act_q8_64_avx512(int n_cols, const float *x, void *out);
void act_q8_256_avx512(int n_cols, const float *x, void *out);

/* Stacked matrices. */
typedef void stack_fn(const struct stacked *w, int t0, int n_tiles, int n_rows, const void *const *x,
                      float *const *y);
stack_fn nested_ref, nested_avx2, nested_avx512, nested_amx, factored_few_avx512;
void factored_tile_ref(const struct stacked *w, int t, float *tile);
void factored_tile_avx2(const struct stacked *w, int t, float *tile);
void factored_tile_avx512(const struct stacked *w, int t, float *tile);

turn_fn turn_dwords_ref, turn_dwords_avx2, turn_dwords_avx512;

/* Reference kernels that a tier may keep. */
void act_f32_ref(int n_cols, const float *x, void *out);
void act_q8_32_ref(int n_cols, const float *x, void *out);
void act_q8_64_ref(int n_cols, const float *x, void *out);
void act_q8_256_ref(int n_cols, const float *x, void *out);

#endif
