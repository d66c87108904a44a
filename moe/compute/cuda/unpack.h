/* What products read: fields of tiles (quant/tile.h), weights and scales in them, prepared rows
 * (quant/mm.h).  In the words of gpu.h; `type` is a constant where these are called, so that of each switch
 * one case is left.  Owns nothing.
 *
 * Here integers come out as quant/README.md has them, four to a dword: whose product they go into, and in
 * which order floats are summed, is product.cu's. */
#ifndef MOE_COMPUTE_CUDA_UNPACK_H
#define MOE_COMPUTE_CUDA_UNPACK_H

#include "moe/compute/cuda/gpu.h"
#include "quant/qtype.h"
#include "quant/tile.h"

/* ---- fields ------------------------------------------------------------------------------- */

DEV uint32_t half_at(const void *p) { return *(const uint16_t *)p; }
DEV float load_half(const void *p) { return gpu_half((uint16_t)half_at(p)); }
DEV float load_float(const void *p) { return FLOAT(gpu_load(p)); }
DEV int load_i16(const void *p) { return *(const int16_t *)p; }

/* Dword j of a row in a field of a tile. */
DEV uint32_t field(const uint8_t *f, int lane, int j)
{
    return gpu_load(&((const uint32_t(*)[16])(const void *)f)[j][lane]);
}

DEV uint32_t low4(uint32_t w) { return w & 0x0f0f0f0fu; }
DEV uint32_t high4(uint32_t w) { return w >> 4 & 0x0f0f0f0fu; }
DEV uint32_t low2(uint32_t w, int bit) { return w >> bit & 0x03030303u; }
DEV uint32_t ones(uint32_t w, int bit) { return w >> bit & 0x01010101u; }

/* Each byte less `by`, which is at most 128, of bytes that are less than 128. */
DEV uint32_t less(uint32_t w, int by)
{
    return by ? (w + (128u - (uint32_t)by) * 0x01010101u) ^ 0x80808080u : w;
}

/* Byte i, signed. */
DEV int byte_of(uint32_t w, int i) { return (int8_t)(w >> 8 * i); }

/* The low (0) or high (1) nibbles of w as bytes of a table of sixteen, given as dwords. */
DEV uint32_t look_up(uint32_t w, int high, uint32_t t0, uint32_t t1, uint32_t t2, uint32_t t3)
{
    const uint32_t in_half = w & 0x77777777u, which = (w >> 1 & 0x44444444u) | 0x32103210u;
    uint32_t four[2]; /* nibbles 0 .. 3, 4 .. 7 */
    for (int i = 0; i < 2; i++)
        four[i] = gpu_pick(gpu_pick(t0, t1, in_half >> 16 * i), gpu_pick(t2, t3, in_half >> 16 * i),
                           which >> 16 * i);
    return gpu_pick(four[0], four[1], high ? 0x7531u : 0x6420u);
}

/* -127 -104 -83 -65  -49 -35 -22 -10  1 13 25 38  53 69 89 113 */
DEV uint32_t iq4(uint32_t w, int high)
{
    return look_up(w, high, 0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u);
}

/* 0 1 2 3  4 6 8 12, and negative */
DEV uint32_t fp4(uint32_t w, int high)
{
    return look_up(w, high, 0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu);
}

DEV float e8m0(uint32_t e) { return FLOAT(e < 2 ? 0x00200000u << e : (e - 1) << 23); }

DEV float ue4m3(uint32_t e)
{
    const uint32_t exp = e >> 3 & 15, man = e & 7;
    if (e == 0 || e == 0x7f) return 0;
    if (!exp) return MUL((float)man, FLOAT(0x3a800000u)); /* 2^-10 */
    return MUL((float)(8 + man), FLOAT((exp - 11 + 127) << 23));
}

#include "moe/compute/cuda/grid_piece_body.h"

/* ---- prepared rows of n columns ------------------------------------------------------------- */

/* Of 256 columns a block: the sums of columns 16 i .., 32 i ... */
DEV const char *at_sum16(const char *x, int n, int i) { return x + n + n / 256 * 4 + 2 * i; }
DEV const char *at_sum32(const char *x, int n, int i) { return at_sum16(x, n, n / 16 + i); }
/* Of 32: those of block i. */
DEV int sum_of(const char *x, int n, int i) { return (int)gpu_load(x + n + n / 32 * 4 + 4 * i); }

/* ---- types ---------------------------------------------------------------------------------- */

DEV int is_grid(int type)
{
    return type == QTYPE_IQ3_S || type == QTYPE_IQ3_XXS || type == QTYPE_IQ2_S || type == QTYPE_IQ2_XS ||
           type == QTYPE_IQ2_XXS || type == QTYPE_IQ1_S || type == QTYPE_IQ1_M;
}

/* Columns of a block of weights, and of a sub-block with a scale. */
DEV int block_cols(int type)
{
    if (is_grid(type)) return 256;
    switch (type) {
    case QTYPE_Q2_K:
    case QTYPE_Q3_K:
    case QTYPE_Q4_K:
    case QTYPE_Q5_K:
    case QTYPE_Q6_K:
    case QTYPE_IQ4_XS: return 256;
    case QTYPE_NVFP4: return 64;
    default: return 32;
    }
}
DEV int scale_cols(int type)
{
    switch (type) {
    case QTYPE_Q2_K:
    case QTYPE_Q3_K:
    case QTYPE_Q6_K:
    case QTYPE_NVFP4:
    case QTYPE_IQ2_S:
    case QTYPE_IQ2_XS:
    case QTYPE_IQ1_M: return 16;
    default: return 32;
    }
}

DEV int has_min(int type)
{
    return type == QTYPE_Q4_1 || type == QTYPE_Q5_1 || type == QTYPE_Q2_K || type == QTYPE_Q4_K ||
           type == QTYPE_Q5_K;
}

DEV int column_bytes(int type)
{
    if (is_grid(type)) return 16 * grid_block(type);
    switch (type) {
    case QTYPE_Q8_0: return T8_0_BYTES;
    case QTYPE_Q4_1: return T4_1_BYTES;
    case QTYPE_Q5_0: return T5_0_BYTES;
    case QTYPE_Q5_1: return T5_1_BYTES;
    case QTYPE_MXFP4: return TMX4_BYTES;
    case QTYPE_NVFP4: return TNV4_BYTES;
    case QTYPE_Q2_K: return T2_K_BYTES;
    case QTYPE_Q3_K: return T3_K_BYTES;
    case QTYPE_Q4_K: return T4_K_BYTES;
    case QTYPE_Q5_K: return T5_K_BYTES;
    case QTYPE_Q6_K: return T6_K_BYTES;
    case QTYPE_IQ4_XS: return T4_XS_BYTES;
    default: return T4_0_BYTES;
    }
}

/* Weights are read in pieces: a block, or 64 columns of a block of 256, which are two runs of 32.  Where run k
 * of piece i begins in its block: quarters u and u + 2 of a half of Q6_K share their low bits' bytes. */
DEV int run_at(int type, int i, int k)
{
    if (type == QTYPE_Q6_K) return 128 * (i >> 1 & 1) + 32 * (i & 1) + 64 * k;
    return (block_cols(type) == 256 ? 64 * (i & 3) : 0) + 32 * k;
}

/* What codes stand for more than the weight is. */
DEV int code_zero(int type)
{
    switch (type) {
    case QTYPE_Q4_0: return 8;
    case QTYPE_Q5_0: return 16;
    case QTYPE_Q3_K: return 4;
    case QTYPE_Q6_K: return 32;
    default: return 0;
    }
}

/* Codes of columns 16 h + 4 j .. of run k of piece i of a row; c is the block column, j < 4. */
DEV uint32_t codes(int type, const uint8_t *c, int lane, int i, int k, int h, int j)
{
    const int half = i >> 1 & 1, u = i & 1;
    if (is_grid(type)) return grid_four(type, c, lane, 8 * (i & 3) + 4 * k + 2 * h + (j >> 1), j & 1);
    switch (type) {
    case QTYPE_Q8_0: return field(c + T8_0_Q, lane, 4 * h + j) ^ 0x80808080u;
    case QTYPE_NVFP4: return fp4(field(c + TNV4_Q, lane, 4 * k + 2 * h + (j & 1)), j >> 1);
    case QTYPE_IQ4_XS: return iq4(field(c + T4_XS_Q, lane, 8 * (i & 3) + 4 * k + j), h);
    case QTYPE_Q4_K:
    case QTYPE_Q5_K: {
        const int five = type == QTYPE_Q5_K;
        const uint32_t w = field(c + (five ? T5_K_Q : T4_K_Q), lane, 8 * (i & 3) + 4 * h + j);
        const uint32_t n = k ? high4(w) : low4(w);
        return five ? n | ones(field(c + T5_K_H, lane, 4 * h + j), 2 * (i & 3) + k) << 4 : n;
    }
    case QTYPE_Q6_K: {
        const uint32_t w = field(c + T6_K_QL, lane, 16 * half + 8 * u + 4 * h + j);
        return (k ? high4(w) : low4(w)) |
               low2(field(c + T6_K_QH, lane, 8 * half + 4 * h + j), 2 * u + 4 * k) << 4;
    }
    case QTYPE_Q2_K: return low2(field(c + T2_K_Q, lane, 8 * half + 4 * h + j), 4 * u + 2 * k);
    case QTYPE_Q3_K:
        return low2(field(c + T3_K_Q, lane, 8 * half + 4 * h + j), 4 * u + 2 * k) |
               ones(field(c + T3_K_H, lane, 4 * h + j), 2 * (i & 3) + k) << 2;
    default: { /* blocks of 32 nibbles, with a fifth bit perhaps */
        const int at = type == QTYPE_Q4_1    ? T4_1_Q
                       : type == QTYPE_Q5_0  ? T5_0_Q
                       : type == QTYPE_Q5_1  ? T5_1_Q
                       : type == QTYPE_MXFP4 ? TMX4_Q
                                             : T4_0_Q;
        const uint32_t w = field(c + at, lane, j), n = h ? high4(w) : low4(w);
        if (type == QTYPE_IQ4_NL) return iq4(w, h);
        if (type == QTYPE_MXFP4) return fp4(w, h);
        if (type != QTYPE_Q5_0 && type != QTYPE_Q5_1) return n;
        return n | ones(field(c + (type == QTYPE_Q5_0 ? T5_0_H : T5_1_H), lane, 0), 4 * h + j) << 4;
    }
    }
}

/* Scales of sub-blocks 4 j .. of a block of 256, signed. */
DEV uint32_t scales(int type, const uint8_t *c, int lane, int j)
{
    uint32_t four = 0;
    for (int s = 0; is_grid(type) && s < 4; s++) four |= (uint32_t)grid_scale(type, c, lane, 4 * j + s) << 8 * s;
    if (is_grid(type)) return four;
    switch (type) {
    case QTYPE_Q6_K: return field(c + T6_K_SC, lane, j);
    case QTYPE_Q2_K: return low4(field(c + T2_K_SC, lane, j));
    case QTYPE_Q3_K: {
        const uint32_t w = field(c + T3_K_SC, lane, j & 1);
        return less((j < 2 ? low4(w) : high4(w)) | low2(field(c + T3_K_SC, lane, 2), 2 * j) << 4, 32);
    }
    case QTYPE_IQ4_XS: { /* four nibbles, and four times two bits, to a byte each */
        uint32_t lo = field(c + T4_XS_SL, lane, 0) >> 16 * j & 0xffffu;
        uint32_t hi = half_at(c + T4_XS_SH + 2 * lane) >> 8 * j & 0xffu;
        lo = (lo | lo << 8) & 0xff00ffu;
        hi = low2(hi | hi << 6 | hi << 12 | hi << 18, 0);
        return less(low4(lo | lo << 4) | hi << 4, 32);
    }
    default: { /* Q4_K, Q5_K */
        const uint8_t *f = c + (type == QTYPE_Q5_K ? T5_K_SC : T4_K_SC);
        const uint32_t w = field(f, lane, 0);
        return j ? low4(field(f, lane, 2)) | low2(w, 6) << 4 : w & 0x3f3f3f3fu;
    }
    }
}

/* That of sub-block s. */
DEV int scale(int type, const uint8_t *c, int lane, int s)
{
    return is_grid(type) ? grid_scale(type, c, lane, s) : byte_of(scales(type, c, lane, s >> 2), s & 3);
}

/* Mins of sub-blocks 4 j .. of a block of 256. */
DEV uint32_t mins(int type, const uint8_t *c, int lane, int j)
{
    if (type == QTYPE_Q2_K) return high4(field(c + T2_K_SC, lane, j));
    const uint8_t *f = c + (type == QTYPE_Q5_K ? T5_K_SC : T4_K_SC);
    const uint32_t w = field(f, lane, 1);
    return j ? high4(field(f, lane, 2)) | low2(w, 6) << 4 : w & 0x3f3f3f3fu;
}

/* The block's scale, of NVFP4 that of sub-block s; and what the mins, or 1, are multiplied with. */
DEV float scale_of(int type, const uint8_t *c, int lane, int s)
{
    if (type == QTYPE_MXFP4) return e8m0(c[lane]);
    if (type == QTYPE_NVFP4) return ue4m3(c[4 * lane + s]);
    if (is_grid(type)) return grid_d(type, c, lane);
    return load_half(c + 2 * lane);
}
DEV float min_of(int type, const uint8_t *c, int lane)
{
    switch (type) {
    case QTYPE_Q4_1: return load_half(c + T4_1_M + 2 * lane);
    case QTYPE_Q5_1: return load_half(c + T5_1_M + 2 * lane);
    case QTYPE_Q2_K: return -load_half(c + T2_K_DMIN + 2 * lane);
    case QTYPE_Q5_K: return -load_half(c + T5_K_DMIN + 2 * lane);
    default: return -load_half(c + T4_K_DMIN + 2 * lane);
    }
}

#endif
