/* Where the fields of a tile's block column lie, and the constants of prepared activations: what a
 * kernel has to know of mm.h's bytes, for those of quant/ and of devices.  The layouts are described in
 * quant/README.md.  Constants only. */
#ifndef QUANT_TILE_H
#define QUANT_TILE_H

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
    TNEST_HEAD = 64,    /* of a stack in a device's memory: see moe/compute/dev.h */

    TSIGN1_BYTES = 64, /* h[16][4], bit i of byte k: weight 4 i + k */
};

/* A block whose largest magnitude is below this is prepared as zeros: 127/amax must be finite. */
#define ACT_AMAX_MIN 0x1p-120f

/* Bits of the scale of a block with an infinity or a NaN in it; its products become NaN. */
#define ACT_BAD_SCALE 0x7fc00000u

#endif
