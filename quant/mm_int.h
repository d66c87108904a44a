/* Private to quant/: where the fields of a tile's block column lie, and the kernel tables of the
 * tiers.  The layouts are described in quant/README.md; constant data only. */
#ifndef QUANT_MM_INT_H
#define QUANT_MM_INT_H

#include <stddef.h>
#include <stdint.h>

#include "quant/mm.h"

/* Bytes of one block column (16 blocks, one per row), and offsets of its fields. */
enum {
    T8_0_BYTES = 544, /* half d[16] | u8 q[8][16][4] */
    T8_0_Q = 32,

    T4_0_BYTES = 288, /* half d[16] | u8 q[4][16][4] */
    T4_0_Q = 32,

    T4_K_BYTES = 2304, /* half d[16] | half dmin[16] | u8 sc[3][16][4] | u8 q[32][16][4] */
    T4_K_DMIN = 32,
    T4_K_SC = 64,
    T4_K_Q = 256,

    T6_K_BYTES = 3360, /* half d[16] | i8 sc[4][16][4] | u8 ql[32][16][4] | u8 qh[16][16][4] */
    T6_K_SC = 32,
    T6_K_QL = 288,
    T6_K_QH = 2336,

    T4_1_BYTES = 320, /* half d[16] | half m[16] | u8 q[4][16][4] */
    T4_1_M = 32,
    T4_1_Q = 64,

    T5_0_BYTES = 352, /* half d[16] | u8 h[16][4], bit i of byte k: weight 4 i + k | q[4][16][4] */
    T5_0_H = 32,
    T5_0_Q = 96,

    T5_1_BYTES = 384, /* half d[16] | half m[16] | h[16][4] | q[4][16][4] */
    T5_1_M = 32,
    T5_1_H = 64,
    T5_1_Q = 128,

    TMX4_BYTES = 272, /* u8 e[16] | u8 q[4][16][4] */
    TMX4_Q = 16,

    TNV4_BYTES = 576, /* u8 d[16][4] | u8 q[8][16][4] */
    TNV4_Q = 64,

    T2_K_BYTES = 1344, /* half d[16] | half dmin[16] | u8 sc[4][16][4] | u8 q[16][16][4] */
    T2_K_DMIN = 32,
    T2_K_SC = 64,
    T2_K_Q = 320,

    T3_K_BYTES = 1760, /* half d[16] | u8 sc[3][16][4] | u8 h[8][16][4] | u8 q[16][16][4] */
    T3_K_SC = 32,
    T3_K_H = 224,
    T3_K_Q = 736,

    T5_K_BYTES = 2816, /* half d[16] | half dmin[16] | sc[3][16][4] | h[8][16][4] | q[32][16][4] */
    T5_K_DMIN = 32,
    T5_K_SC = 64,
    T5_K_H = 256,
    T5_K_Q = 768,

    T4_XS_BYTES = 2176, /* half d[16] | u16 sh[16] | u8 sl[16][4] | u8 q[32][16][4] */
    T4_XS_SH = 32,
    T4_XS_SL = 64,
    T4_XS_Q = 128,

    TNEST2_BYTES = 272, /* u8 e[16] | u8 q[4][16][4], 64 columns */
    TNEST2_Q = 16,
    TNEST_LEVEL = 128,  /* of a level: h[2][16][4], bit i of byte k: weight 32 j + 4 i + k */

    TSIGN1_BYTES = 64, /* h[16][4], bit i of byte k: weight 4 i + k */
};

/* A block whose largest magnitude is below this is prepared as zeros: 127/amax must be finite. */
#define ACT_AMAX_MIN 0x1p-120f

/* Bits of the scale of a block with an infinity or a NaN in it; its products become NaN. */
#define ACT_BAD_SCALE 0x7fc00000u

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
void act_q8_256_avx512(int n_cols, const float *x, void *out);

void stack_expand_avx2(const struct stacked *w, int t, void *tile);
void stack_expand_avx512(const struct stacked *w, int t, void *tile);
void stack_few_avx512(const struct stacked *w, int t0, int n_tiles, int n_rows,
                      const void *const *x, float *const *y);

/* Reference kernels that a tier may keep. */
void act_f32_ref(int n_cols, const float *x, void *out);
void act_q8_32_ref(int n_cols, const float *x, void *out);
void act_q8_256_ref(int n_cols, const float *x, void *out);

#endif
