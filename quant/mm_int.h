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

extern const struct mm_kernels mm_kernels_ref, mm_kernels_avx2, mm_kernels_avx512;

/* Reference kernels that a tier may keep. */
void act_f32_ref(int n_cols, const float *x, void *out);
void act_q8_32_ref(int n_cols, const float *x, void *out);
void act_q8_256_ref(int n_cols, const float *x, void *out);

#endif
