/* Weights and scales of the grid types (IQ1, IQ2, IQ3), a part of unpack.h.
 *
 * DESIGN.  A tile is a half of each row (but for IQ1_M) and then the GGUF block's dwords.  Every eight
 * weights have a code of one point, of two where points have four coordinates, and signs.  The points are
 * the CPU's table, words of two or three bits a coordinate in the card's memory, at most 4 KiB of it: lanes
 * look up places of their own, which L1 serves and constant memory would not.  Coordinates become bytes,
 * values and signs four at a time in a dword, without carries. */

#define GRID(name, n) TABLE uint16_t name[n]
#include "quant/grid_body.h"
#undef GRID

DEV uint32_t bits_of(uint32_t w, int at, int n) { return w >> at & ((1u << n) - 1); }

/* The low four codes of two bits, and of three, as bytes. */
DEV uint32_t codes_2(uint32_t v)
{
    v = (v | v << 12) & 0x000f000fu;
    return (v | v << 6) & 0x03030303u;
}
DEV uint32_t codes_3(uint32_t v)
{
    v = (v | v << 10) & 0x003f003fu;
    return (v | v << 5) & 0x07070707u;
}

/* 8, 25, 43 */
DEV uint32_t values_iq2(uint32_t c) { return 0x08080808u + 17 * c + ones(c, 1); }

/* 4, 12, .. 52, 62, or 1, 3, .. 15 */
DEV uint32_t values_iq3(int type, uint32_t c)
{
    return type == QTYPE_IQ3_S ? 0x01010101u + 2 * c
                               : 0x04040404u + 8 * c + 2 * (ones(c, 0) & ones(c, 1) & ones(c, 2));
}

/* Negates the bytes of v, none of which is 0, whose bit of the low four of signs is set. */
DEV uint32_t signed_by(uint32_t v, uint32_t signs)
{
    const uint32_t n = (signs & 15) * 0x00204081u & 0x01010101u;
    return (v ^ n * 255) + n;
}

/* Seven sign bits; the eighth makes their number even. */
DEV uint32_t even_signs(uint32_t s)
{
    return s | (0x6996u >> ((s ^ s >> 4) & 15) & 1) << 7; /* the parities of 0 .. 15 */
}

/* A block column's dwords. */
DEV const uint8_t *grid_dwords(int type, const uint8_t *c) { return type == QTYPE_IQ1_M ? c : c + 32; }

/* Weights 8 i + 4 h .. of a block as bytes. */
DEV uint32_t grid_four(int type, const uint8_t *c, int lane, int i, int h)
{
    const uint8_t *f = grid_dwords(type, c);
    const int s = i >> 2, k = i & 3;
    switch (type) {
    case QTYPE_IQ2_XXS: {
        const uint32_t point = grid_iq2_xxs[bits_of(field(f, lane, 2 * s), 8 * k, 8)];
        const uint32_t signs = even_signs(bits_of(field(f, lane, 2 * s + 1), 7 * k, 7));
        return signed_by(values_iq2(codes_2(point >> 8 * h)), signs >> 4 * h);
    }
    case QTYPE_IQ2_XS: {
        const uint32_t u = bits_of(field(f, lane, i >> 1), 16 * (i & 1), 16);
        return signed_by(values_iq2(codes_2(grid_iq2_xs[u & 511] >> 8 * h)), even_signs(u >> 9) >> 4 * h);
    }
    case QTYPE_IQ2_S: {
        const uint32_t high = bits_of(field(f, lane, 16 + (s >> 2)), 8 * (s & 3) + 2 * k, 2);
        const uint32_t point = grid_iq2_s[bits_of(field(f, lane, s), 8 * k, 8) | high << 8];
        return signed_by(values_iq2(codes_2(point >> 8 * h)), field(f, lane, 8 + s) >> (8 * k + 4 * h));
    }
    case QTYPE_IQ3_XXS: {
        const uint32_t point = grid_iq3_xxs[bits_of(field(f, lane, i >> 1), 16 * (i & 1) + 8 * h, 8)];
        const uint32_t signs = even_signs(bits_of(field(f, lane, 16 + s), 7 * k, 7));
        return signed_by(values_iq3(type, codes_3(point)), signs >> 4 * h);
    }
    case QTYPE_IQ3_S: {
        const uint32_t high = bits_of(field(f, lane, 16 + (s >> 2)), 8 * (s & 3) + 2 * k + h, 1);
        const uint32_t low = bits_of(field(f, lane, i >> 1), 16 * (i & 1) + 8 * h, 8);
        return signed_by(values_iq3(type, codes_3(grid_iq3_s[low | high << 8])),
                         field(f, lane, 18 + s) >> (8 * k + 4 * h));
    }
    default: { /* IQ1: -1, 0, 1, and an eighth more or less, in eighths */
        const uint32_t u = type == QTYPE_IQ1_S ? bits_of(field(f, lane, 8 + (s >> 1)), 16 * (s & 1), 16)
                                               : bits_of(field(f, lane, 8 + (i >> 3)), 4 * (i & 7), 4);
        const uint32_t high = type == QTYPE_IQ1_S ? bits_of(u, 3 * k, 3) : u & 7;
        const uint32_t minus = type == QTYPE_IQ1_S ? u >> 15 : u >> 3;
        const uint32_t point = grid_iq1[bits_of(field(f, lane, s), 8 * k, 8) | high << 8];
        const uint32_t from = minus ? 0x77777777u : 0x79797979u; /* 128 more than -9, or -7 */
        return (from + 8 * codes_2(point >> 8 * h)) ^ 0x80808080u;
    }
    }
}

/* The scale of sub-block s of a block. */
DEV int grid_scale(int type, const uint8_t *c, int lane, int s)
{
    const uint8_t *f = grid_dwords(type, c);
    uint32_t v = 0;
    if (type == QTYPE_IQ3_S) v = bits_of(field(f, lane, 26), 4 * s, 4);
    if (type == QTYPE_IQ3_XXS) v = field(f, lane, 16 + s) >> 28;
    if (type == QTYPE_IQ2_S) v = bits_of(field(f, lane, 18 + (s >> 3)), 4 * (s & 7), 4);
    if (type == QTYPE_IQ2_XS) v = bits_of(field(f, lane, 16 + (s >> 3)), 4 * (s & 7), 4);
    if (type == QTYPE_IQ2_XXS) v = field(f, lane, 2 * s + 1) >> 28;
    if (type == QTYPE_IQ1_S) v = bits_of(field(f, lane, 8 + (s >> 1)), 16 * (s & 1) + 12, 3);
    if (type == QTYPE_IQ1_M)
        v = bits_of(field(f, lane, 12 + (s >> 3)), 16 * (s >> 2 & 1) + 3 * (s & 3), 3);
    return 2 * (int)v + 1;
}

/* That of the block; of IQ1_M the top nibbles of its scales. */
DEV float grid_d(int type, const uint8_t *c, int lane)
{
    if (type == QTYPE_IQ3_S) return load_half(c + 2 * lane);
    if (type == QTYPE_IQ3_XXS) return MUL(load_half(c + 2 * lane), 0.25f);
    if (type != QTYPE_IQ1_M) return MUL(load_half(c + 2 * lane), 0.125f);
    const uint32_t a = field(c, lane, 12), b = field(c, lane, 13);
    const uint32_t h = bits_of(a, 12, 4) | bits_of(a, 28, 4) << 4 | bits_of(b, 12, 4) << 8 | b >> 28 << 12;
    return MUL(gpu_half((uint16_t)h), 0.125f);
}

DEV int grid_block(int type)
{
    switch (type) {
    case QTYPE_IQ3_S: return 110;
    case QTYPE_IQ3_XXS: return 98;
    case QTYPE_IQ2_S: return 82;
    case QTYPE_IQ2_XS: return 74;
    case QTYPE_IQ2_XXS: return 66;
    case QTYPE_IQ1_S: return 50;
    default: return 56; /* IQ1_M */
    }
}
