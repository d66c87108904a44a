/* See parts_int.h.  Every format by its own small function, from the descriptions in
 * quant/README.md.
 *
 * DESIGN: points of a grid are handled eight coordinates at a time as the bytes of a 64-bit word:
 * codes are spread to bytes, turned into values by arithmetic without carries, and negated where
 * their sign bit is set. */
#include "quant/parts_int.h"

#include <string.h>

#include "moe/base/f16.h"

const int8_t table_iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                              1,    13,   25,  38,  53,  69,  89,  113};
const int8_t table_fp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
static uint32_t get32(const uint8_t *p) { return get16(p) | (uint32_t)get16(p + 2) << 16; }
static float half(const uint8_t *p) { return f16_to_f32(get16(p)); }

float scale_e8m0(uint8_t e)
{
    return f32_from_bits(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

float scale_ue4m3(uint8_t e)
{
    if (e == 0 || e == 0x7f) return 0;
    int exp = e >> 3 & 15, man = e & 7;
    if (!exp) return (float)man * 0x1p-10f;
    return (float)(8 + man) * f32_from_bits((uint32_t)(exp - 11 + 127) << 23);
}

static void ones(int16_t *v)
{
    for (int i = 0; i < 16; i++) v[i] = 1;
}

/* ---- blocks of 32 ------------------------------------------------------------------------- */

/* Sixteen bytes of nibbles, low ones first, and their fifth bits. */
static void nibbles_32(const uint8_t *n, uint32_t fifth, int from, int8_t *q)
{
    for (int i = 0; i < 16; i++) {
        q[i] = (int8_t)(((n[i] & 15) | (int)(fifth >> i & 1) << 4) - from);
        q[i + 16] = (int8_t)((n[i] >> 4 | (int)(fifth >> (i + 16) & 1) << 4) - from);
    }
}

static void table_32(const uint8_t *n, const int8_t *table, int8_t *q)
{
    for (int i = 0; i < 16; i++) {
        q[i] = table[n[i] & 15];
        q[i + 16] = table[n[i] >> 4];
    }
}

static void parts_nvfp4(const uint8_t *b, struct parts *p)
{
    for (int s = 0; s < 4; s++) {
        p->d16[s] = scale_ue4m3(b[s]);
        for (int i = 0; i < 8; i++) {
            p->q[16 * s + i] = table_fp4[b[4 + 8 * s + i] & 15];
            p->q[16 * s + 8 + i] = table_fp4[b[4 + 8 * s + i] >> 4];
        }
    }
}

static void parts_32(enum qtype type, const uint8_t *b, struct parts *p)
{
    ones(p->scale);
    ones(p->min);
    p->d = type == QTYPE_MXFP4 ? scale_e8m0(b[0]) : half(b);
    if (type == QTYPE_Q4_1 || type == QTYPE_Q5_1) p->m = half(b + 2);
    if (type == QTYPE_Q4_1) nibbles_32(b + 4, 0, 0, p->q);
    if (type == QTYPE_Q5_0) nibbles_32(b + 6, get32(b + 2), 16, p->q);
    if (type == QTYPE_Q5_1) nibbles_32(b + 8, get32(b + 4), 0, p->q);
    if (type == QTYPE_IQ4_NL) table_32(b + 2, table_iq4, p->q);
    if (type == QTYPE_MXFP4) table_32(b + 1, table_fp4, p->q);
}

/* ---- blocks of 256 with scales for 16 or 32 weights ---------------------------------------- */

static void parts_q2_k(const uint8_t *b, struct parts *p)
{
    p->d = half(b + 80);
    p->m = -half(b + 82);
    for (int s = 0; s < 16; s++) {
        p->scale[s] = b[s] & 15;
        p->min[s] = b[s] >> 4;
    }
    for (int k = 0; k < 256; k++)
        p->q[k] = (int8_t)(b[16 + (k >> 7) * 32 + (k & 31)] >> 2 * (k >> 5 & 3) & 3);
}

static void parts_q3_k(const uint8_t *b, struct parts *p)
{
    const uint8_t *sc = b + 96;
    p->d = half(b + 108);
    for (int s = 0; s < 16; s++)
        p->scale[s] = (int16_t)(((s < 8 ? sc[s] & 15 : sc[s - 8] >> 4) |
                                 (sc[8 + s % 4] >> s / 4 * 2 & 3) << 4) - 32);
    for (int k = 0; k < 256; k++) {
        int lo = b[32 + (k >> 7) * 32 + (k & 31)] >> 2 * (k >> 5 & 3) & 3;
        int hi = b[k & 31] >> (k >> 5) & 1;
        p->q[k] = (int8_t)((lo | hi << 2) - 4);
    }
}

static void parts_q5_k(const uint8_t *b, struct parts *p)
{
    const uint8_t *sc = b + 4;
    p->d = half(b);
    p->m = -half(b + 2);
    for (int s = 0; s < 8; s++) {
        int scale = sc[s] & 63, min = sc[s + 4] & 63;
        if (s >= 4) {
            scale = (sc[s + 4] & 15) | (sc[s - 4] >> 6) << 4;
            min = sc[s + 4] >> 4 | (sc[s] >> 6) << 4;
        }
        p->scale[2 * s] = p->scale[2 * s + 1] = (int16_t)scale;
        p->min[2 * s] = p->min[2 * s + 1] = (int16_t)min;
    }
    for (int k = 0; k < 256; k++) {
        int s = k >> 5, i = k & 31, n = b[48 + (s >> 1) * 32 + i];
        p->q[k] = (int8_t)((s & 1 ? n >> 4 : n & 15) | (b[16 + i] >> s & 1) << 4);
    }
}

static void parts_iq4_xs(const uint8_t *b, struct parts *p)
{
    p->d = half(b);
    for (int s = 0; s < 8; s++) {
        int lo = b[4 + s / 2] >> 4 * (s & 1) & 15, hi = get16(b + 2) >> 2 * s & 3;
        p->scale[2 * s] = p->scale[2 * s + 1] = (int16_t)((lo | hi << 4) - 32);
        table_32(b + 8 + 16 * s, table_iq4, p->q + 32 * s);
    }
}

/* ---- grids -------------------------------------------------------------------------------- */

static const uint64_t bytes_1 = 0x0101010101010101u;

/* Eight codes of two bits as bytes. */
static uint64_t spread_2(uint64_t v)
{
    v = (v | v << 24) & 0x000000ff000000ffu;
    v = (v | v << 12) & 0x000f000f000f000fu;
    return (v | v << 6) & 0x0303030303030303u;
}

/* Four codes of three bits as bytes. */
static uint64_t spread_3(uint64_t v)
{
    v = (v | v << 10) & 0x003f003fu;
    return (v | v << 5) & 0x07070707u;
}

static uint64_t point_iq2(uint32_t code) /* 8, 25, 43 */
{
    uint64_t c = spread_2(code);
    return 8 * bytes_1 + 17 * c + (c >> 1 & bytes_1);
}

static uint64_t point_iq3_xxs(uint32_t a, uint32_t b) /* 4, 12, .. 52, 62 */
{
    uint64_t c = spread_3(a) | spread_3(b) << 32;
    return 4 * bytes_1 + 8 * c + 2 * (c & c >> 1 & c >> 2 & bytes_1);
}

static uint64_t point_iq3_s(uint32_t a, uint32_t b) /* 1, 3, .. 15 */
{
    return bytes_1 + 2 * (spread_3(a) | spread_3(b) << 32);
}

/* Stores eight values, negated where their bit of signs is set; no value is 0. */
static void put_signed(int8_t *q, uint64_t v, uint32_t signs)
{
    uint64_t t = signs * bytes_1 & 0x8040201008040201u;
    uint64_t n = (t + 0x7f * bytes_1) >> 7 & bytes_1;
    v = (v ^ n * 255) + n;
    for (int i = 0; i < 8; i++) q[i] = (int8_t)(uint8_t)(v >> 8 * i);
}

/* Seven sign bits; the eighth makes their number even. */
static uint32_t even_signs(uint32_t s)
{
    uint32_t odd = s ^ s >> 4;
    odd ^= odd >> 2;
    return s | ((odd ^ odd >> 1) & 1) << 7;
}

static void set_scale(struct parts *p, int s, int n, int scale)
{
    for (int i = 0; i < n; i++) p->scale[n * s + i] = (int16_t)scale;
}

static void parts_iq2_xxs(const uint8_t *b, struct parts *p)
{
    p->d = half(b) * 0.125f;
    for (int s = 0; s < 8; s++) {
        const uint8_t *g = b + 2 + 8 * s;
        uint32_t u = get32(g + 4);
        set_scale(p, s, 2, 2 * (int)(u >> 28) + 1);
        for (int i = 0; i < 4; i++)
            put_signed(p->q + 32 * s + 8 * i, point_iq2(grid_iq2_xxs[g[i]]),
                       even_signs(u >> 7 * i & 127));
    }
}

static void parts_iq2_xs(const uint8_t *b, struct parts *p)
{
    p->d = half(b) * 0.125f;
    for (int s = 0; s < 16; s++) set_scale(p, s, 1, 2 * (b[66 + s / 2] >> 4 * (s & 1) & 15) + 1);
    for (int i = 0; i < 32; i++) {
        uint32_t u = get16(b + 2 + 2 * i);
        put_signed(p->q + 8 * i, point_iq2(grid_iq2_xs[u & 511]), even_signs(u >> 9));
    }
}

static void parts_iq2_s(const uint8_t *b, struct parts *p)
{
    p->d = half(b) * 0.125f;
    for (int s = 0; s < 16; s++) set_scale(p, s, 1, 2 * (b[74 + s / 2] >> 4 * (s & 1) & 15) + 1);
    for (int i = 0; i < 32; i++) {
        int code = b[2 + i] | (b[66 + i / 4] >> 2 * (i & 3) & 3) << 8;
        put_signed(p->q + 8 * i, point_iq2(grid_iq2_s[code]), b[34 + i]);
    }
}

static void parts_iq3_xxs(const uint8_t *b, struct parts *p)
{
    p->d = half(b) * 0.25f;
    for (int s = 0; s < 8; s++) {
        uint32_t u = get32(b + 66 + 4 * s);
        const uint8_t *g = b + 2 + 8 * s;
        set_scale(p, s, 2, 2 * (int)(u >> 28) + 1);
        for (int i = 0; i < 4; i++)
            put_signed(p->q + 32 * s + 8 * i,
                       point_iq3_xxs(grid_iq3_xxs[g[2 * i]], grid_iq3_xxs[g[2 * i + 1]]),
                       even_signs(u >> 7 * i & 127));
    }
}

static void parts_iq3_s(const uint8_t *b, struct parts *p)
{
    p->d = half(b);
    for (int s = 0; s < 8; s++) {
        set_scale(p, s, 2, 2 * (b[106 + s / 2] >> 4 * (s & 1) & 15) + 1);
        for (int i = 0; i < 4; i++) {
            const uint8_t *g = b + 2 + 8 * s + 2 * i;
            int high = b[66 + s] >> 2 * i;
            put_signed(p->q + 32 * s + 8 * i,
                       point_iq3_s(grid_iq3_s[g[0] | (high & 1) << 8],
                                   grid_iq3_s[g[1] | (high & 2) << 7]),
                       b[74 + 4 * s + i]);
        }
    }
}

/* Eight weights of -1, 0, 1, moved by an eighth: in eighths, 8 c - 8 + 1 or - 1. */
static void put_iq1(int8_t *q, int code, bool down)
{
    uint64_t c = spread_2(grid_iq1[code]);
    for (int i = 0; i < 8; i++)
        q[i] = (int8_t)(8 * (int)(c >> 8 * i & 3) - 8 + (down ? -1 : 1));
}

static void parts_iq1_s(const uint8_t *b, struct parts *p)
{
    p->d = half(b) * 0.125f;
    for (int s = 0; s < 8; s++) {
        int u = get16(b + 34 + 2 * s);
        set_scale(p, s, 2, 2 * (u >> 12 & 7) + 1);
        for (int i = 0; i < 4; i++)
            put_iq1(p->q + 32 * s + 8 * i, b[2 + 4 * s + i] | (u >> 3 * i & 7) << 8, u >> 15);
    }
}

static void parts_iq1_m(const uint8_t *b, struct parts *p)
{
    uint32_t d = 0;
    for (int i = 0; i < 4; i++) d |= (uint32_t)(get16(b + 48 + 2 * i) >> 12) << 4 * i;
    p->d = f16_to_f32((uint16_t)d) * 0.125f;
    for (int s = 0; s < 16; s++)
        set_scale(p, s, 1, 2 * (get16(b + 48 + s / 4 * 2) >> 3 * (s & 3) & 7) + 1);
    for (int i = 0; i < 32; i++) {
        int high = b[32 + i / 2] >> 4 * (i & 1);
        put_iq1(p->q + 8 * i, b[i] | (high & 7) << 8, high & 8);
    }
}

/* ---- the table ---------------------------------------------------------------------------- */

static void (*const apart[QTYPE_ID_END])(const uint8_t *, struct parts *) = {
    [QTYPE_Q2_K] = parts_q2_k,       [QTYPE_Q3_K] = parts_q3_k,
    [QTYPE_Q5_K] = parts_q5_k,       [QTYPE_IQ4_XS] = parts_iq4_xs,
    [QTYPE_NVFP4] = parts_nvfp4,     [QTYPE_IQ2_XXS] = parts_iq2_xxs,
    [QTYPE_IQ2_XS] = parts_iq2_xs,   [QTYPE_IQ2_S] = parts_iq2_s,
    [QTYPE_IQ3_XXS] = parts_iq3_xxs, [QTYPE_IQ3_S] = parts_iq3_s,
    [QTYPE_IQ1_S] = parts_iq1_s,     [QTYPE_IQ1_M] = parts_iq1_m,
};

static bool is_32(enum qtype t)
{
    return t == QTYPE_Q4_1 || t == QTYPE_Q5_0 || t == QTYPE_Q5_1 || t == QTYPE_IQ4_NL ||
           t == QTYPE_MXFP4;
}

bool parts_has(enum qtype type) { return is_32(type) || apart[type]; }

bool parts_has_min(enum qtype type)
{
    return type == QTYPE_Q4_1 || type == QTYPE_Q5_1 || type == QTYPE_Q2_K || type == QTYPE_Q5_K;
}

void parts_of(enum qtype type, const uint8_t *block, struct parts *p)
{
    if (is_32(type)) parts_32(type, block, p);
    else apart[type](block, p);
}
