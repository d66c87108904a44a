/* The kernels of the CUDA plugin (kernels.h), in the words of gpu.h: C and CUDA at once.  Owns nothing.
 *
 * DESIGN.  A block of threads makes the 16 rows of one tile for one pair.  Thread t is row t % 16 and
 * takes every sixteenth PIECE of that row: what a thread reads at once, 32 weights or 64.  Integer sums
 * of pieces are exact, so who makes them and in which order is free; only the float steps have an
 * order (quant/README.md), and there are few of them: one or two per block of weights.  So all threads
 * leave integer sums and scales in shared memory, PIECES at a time, and then one thread per row takes
 * the float steps as they stand.  The sixteen threads of a piece read 64 neighbouring bytes.
 *
 * Weights of one value are pieces of their own: p is the weight, v the activation's bits.
 *
 * Nothing here has been measured on a GPU yet (moe/compute/cuda/README.md). */
#include "moe/compute/cuda/gpu.h"
#include "moe/compute/cuda/kernels.h"

#include "moe/compute/elem_exp.h"
#include "moe/compute/op.h"
#include "quant/tile.h"

enum { LANES = 16, SLICES = GPU_THREADS / LANES, PIECES = 64 };

/* ---- reading ------------------------------------------------------------------------------ */

DEV uint32_t half_at(const void *p) { return *(const uint16_t *)p; }
DEV float load_half(const void *p) { return gpu_half((uint16_t)half_at(p)); }
DEV float load_float(const void *p) { return FLOAT(gpu_load(p)); }
DEV int load_i16(const void *p) { return *(const int16_t *)p; }

/* Dword j of a row in a field of a tile. */
DEV uint32_t field(const uint8_t *f, int lane, int j) { return gpu_load(f + 64 * j + 4 * lane); }

/* Byte i of a row in a field of a tile. */
DEV int byte_of(const uint8_t *f, int lane, int i) { return f[(i >> 2) * 64 + 4 * lane + (i & 3)]; }

DEV uint32_t low4(uint32_t w) { return w & 0x0f0f0f0fu; }
DEV uint32_t high4(uint32_t w) { return w >> 4 & 0x0f0f0f0fu; }
DEV uint32_t ones(uint32_t w, int bit) { return w >> bit & 0x01010101u; }

/* Four nibbles as four bytes of a table of sixteen, which is given as dwords. */
DEV uint32_t look_up(uint32_t n, uint32_t t0, uint32_t t1, uint32_t t2, uint32_t t3)
{
    uint32_t out = 0;
    for (int i = 0; i < 32; i += 8) {
        const uint32_t k = n >> i & 15;
        const uint32_t word = k & 8 ? (k & 4 ? t3 : t2) : (k & 4 ? t1 : t0);
        out |= (word >> 8 * (k & 3) & 255u) << i;
    }
    return out;
}

/* -127 -104 -83 -65  -49 -35 -22 -10  1 13 25 38  53 69 89 113 */
DEV uint32_t iq4(uint32_t n)
{
    return look_up(n, 0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u);
}

/* 0 1 2 3  4 6 8 12, and negative */
DEV uint32_t fp4(uint32_t n)
{
    return look_up(n, 0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu);
}

DEV float e8m0(uint32_t e) { return FLOAT(e < 2 ? 0x00200000u << e : (e - 1) << 23); }

DEV float ue4m3(uint32_t e)
{
    const uint32_t exp = e >> 3 & 15, man = e & 7;
    if (e == 0 || e == 0x7f) return 0;
    if (!exp) return MUL((float)man, FLOAT(0x3a800000u)); /* 2^-10 */
    return MUL((float)(8 + man), FLOAT((exp - 11 + 127) << 23));
}

/* The sums of a prepared row of 256 columns a block (quant/mm.h). */
DEV int sum16(const char *x, int n, int i) { return load_i16(x + n + n / 256 * 4 + 2 * i); }
DEV int sum32(const char *x, int n, int i)
{
    return load_i16(x + n + n / 256 * 4 + n / 16 * 2 + 2 * i);
}

/* Scale and min of sub-block s in the twelve bytes of Q4_K and Q5_K. */
DEV void scale_min(const uint8_t *sc, int lane, int s, int *scale, int *min)
{
    if (s < 4) {
        *scale = byte_of(sc, lane, s) & 63;
        *min = byte_of(sc, lane, s + 4) & 63;
    } else {
        *scale = (byte_of(sc, lane, s + 4) & 15) | (byte_of(sc, lane, s - 4) >> 6) << 4;
        *min = byte_of(sc, lane, s + 4) >> 4 | (byte_of(sc, lane, s) >> 6) << 4;
    }
}

/* ---- pieces ------------------------------------------------------------------------------- */

/* Float steps of a piece: acc = fma(p, v, acc), then fma(pm, m, acc) where the type has mins.  Where
 * several pieces make a step, v and m are summed first, and p and pm are the first one's. */
struct term {
    int32_t v, m;
    float p, pm;
};

DEV int piece_cols(int type)
{
    switch (type) {
    case QTYPE_F32:
    case QTYPE_F16:
    case QTYPE_BF16: return 1;
    case QTYPE_NVFP4: return 16;
    case QTYPE_Q2_K:
    case QTYPE_Q3_K:
    case QTYPE_Q4_K:
    case QTYPE_Q5_K:
    case QTYPE_Q6_K:
    case QTYPE_IQ4_XS: return 64;
    default: return 32;
    }
}

DEV int step_pieces(int type) { return piece_cols(type) == 64 ? 4 : 1; }

DEV int has_min(int type)
{
    return type == QTYPE_Q4_1 || type == QTYPE_Q5_1 || type == QTYPE_Q2_K || type == QTYPE_Q4_K ||
           type == QTYPE_Q5_K;
}

DEV int is_float(int type) { return piece_cols(type) == 1; }

/* Weights of one value: column i. */
DEV struct term piece_float(int type, const uint8_t *tile, int lane, const char *x, int i)
{
    struct term t = {(int32_t)gpu_load(x + 4 * (size_t)i), 0, 0, 0};
    if (type == QTYPE_F32) t.p = load_float(tile + 64 * (size_t)i + 4 * lane);
    else if (type == QTYPE_F16) t.p = load_half(tile + 32 * (size_t)i + 2 * lane);
    else t.p = FLOAT(half_at(tile + 32 * (size_t)i + 2 * lane) << 16);
    return t;
}

/* Blocks of 32 nibbles, with a fifth bit and an offset perhaps: block i. */
DEV struct term piece_32(int type, int n, const uint8_t *tile, int lane, const char *x, int i)
{
    const int with_h = type == QTYPE_Q5_0 || type == QTYPE_Q5_1;
    const int bytes = type == QTYPE_Q4_1   ? T4_1_BYTES
                      : type == QTYPE_Q5_0 ? T5_0_BYTES
                      : type == QTYPE_Q5_1 ? T5_1_BYTES
                      : type == QTYPE_MXFP4 ? TMX4_BYTES
                                            : T4_0_BYTES;
    const int at_q = type == QTYPE_Q4_1   ? T4_1_Q
                     : type == QTYPE_Q5_0 ? T5_0_Q
                     : type == QTYPE_Q5_1 ? T5_1_Q
                     : type == QTYPE_MXFP4 ? TMX4_Q
                                           : T4_0_Q;
    const int from = type == QTYPE_Q4_0 ? 8 : type == QTYPE_Q5_0 ? 16 : 0;
    const uint8_t *c = tile + (size_t)i * bytes;
    const char *a = x + 32 * i;
    const float da = load_float(x + n + 4 * i);
    const int s32 = (int)gpu_load(x + n + n / 32 * 4 + 4 * i);
    const uint32_t h = with_h ? gpu_load(c + (type == QTYPE_Q5_0 ? T5_0_H : T5_1_H) + 4 * lane) : 0;
    struct term t = {0, 0, 0, 0};
    for (int j = 0; j < 4; j++) {
        const uint32_t w = field(c + at_q, lane, j);
        uint32_t lo = low4(w), hi = high4(w);
        if (with_h) {
            lo |= ones(h, j) << 4;
            hi |= ones(h, j + 4) << 4;
        }
        if (type == QTYPE_IQ4_NL) lo = iq4(lo), hi = iq4(hi);
        if (type == QTYPE_MXFP4) lo = fp4(lo), hi = fp4(hi);
        t.v = gpu_dot4(lo, gpu_load(a + 4 * j), t.v);
        t.v = gpu_dot4(hi, gpu_load(a + 16 + 4 * j), t.v);
    }
    t.v -= from * s32;
    t.p = MUL(type == QTYPE_MXFP4 ? e8m0(c[lane]) : load_half(c + 2 * lane), da);
    if (has_min(type)) {
        t.m = s32;
        t.pm = MUL(load_half(c + (type == QTYPE_Q4_1 ? T4_1_M : T5_1_M) + 2 * lane), da);
    }
    return t;
}

DEV struct term piece_q8_0(int n, const uint8_t *tile, int lane, const char *x, int i)
{
    const uint8_t *c = tile + (size_t)i * T8_0_BYTES;
    struct term t = {0, 0, 0, 0};
    for (int j = 0; j < 8; j++)
        t.v = gpu_dot4(field(c + T8_0_Q, lane, j) ^ 0x80808080u, gpu_load(x + 32 * i + 4 * j), t.v);
    t.p = MUL(load_half(c + 2 * lane), load_float(x + n + 4 * i));
    return t;
}

/* A quarter of a block of 64, which has a scale and a float step of its own. */
DEV struct term piece_nvfp4(int n, const uint8_t *tile, int lane, const char *x, int i)
{
    const int b = i >> 2, s = i & 3;
    const uint8_t *c = tile + (size_t)b * TNV4_BYTES;
    const char *a = x + 16 * i;
    struct term t = {0, 0, 0, 0};
    for (int j = 0; j < 2; j++) {
        const uint32_t w = field(c + TNV4_Q, lane, 2 * s + j);
        t.v = gpu_dot4(fp4(low4(w)), gpu_load(a + 4 * j), t.v);
        t.v = gpu_dot4(fp4(high4(w)), gpu_load(a + 8 + 4 * j), t.v);
    }
    t.p = MUL(ue4m3((uint32_t)byte_of(c, lane, s)), load_float(x + n + i / 2 * 4));
    return t;
}

/* Sub-blocks 2q and 2q + 1 of Q4_K and Q5_K. */
DEV struct term piece_q45_k(int type, int n, const uint8_t *tile, int lane, const char *x, int i)
{
    const int b = i >> 2, q = i & 3, five = type == QTYPE_Q5_K;
    const uint8_t *c = tile + (size_t)b * (five ? T5_K_BYTES : T4_K_BYTES);
    const uint8_t *f = c + (five ? T5_K_Q : T4_K_Q);
    const char *a = x + 64 * i;
    const float da = load_float(x + n + 4 * b);
    int lo = 0, hi = 0, scale[2], min[2];
    for (int j = 0; j < 8; j++) {
        const uint32_t w = field(f, lane, 8 * q + j);
        uint32_t l = low4(w), u = high4(w);
        if (five) {
            const uint32_t h = field(c + T5_K_H, lane, j);
            l |= ones(h, 2 * q) << 4;
            u |= ones(h, 2 * q + 1) << 4;
        }
        lo = gpu_dot4(l, gpu_load(a + 4 * j), lo);
        hi = gpu_dot4(u, gpu_load(a + 32 + 4 * j), hi);
    }
    for (int k = 0; k < 2; k++)
        scale_min(c + (five ? T5_K_SC : T4_K_SC), lane, 2 * q + k, &scale[k], &min[k]);
    struct term t;
    t.v = scale[0] * lo + scale[1] * hi;
    t.m = min[0] * sum32(x, n, 2 * i) + min[1] * sum32(x, n, 2 * i + 1);
    t.p = MUL(load_half(c + 2 * lane), da);
    t.pm = -MUL(load_half(c + (five ? T5_K_DMIN : T4_K_DMIN) + 2 * lane), da);
    return t;
}

/* Quarters u and u + 2 of a half, i & 3 = 2 half + u: they share their low bits' bytes. */
DEV struct term piece_q6_k(int n, const uint8_t *tile, int lane, const char *x, int i)
{
    const int b = i >> 2, half = i >> 1 & 1, u = i & 1;
    const uint8_t *c = tile + (size_t)b * T6_K_BYTES;
    struct term t = {0, 0, 0, 0};
    int dot[2][2] = {{0, 0}, {0, 0}}; /* quarter, sixteen of it */
    for (int j = 0; j < 8; j++) {
        const uint32_t l = field(c + T6_K_QL, lane, 16 * half + 8 * u + j);
        const uint32_t h = field(c + T6_K_QH, lane, 8 * half + j);
        const char *a = x + 256 * b + 128 * half + 32 * u + 4 * j;
        const uint32_t lo = low4(l) | (h >> 2 * u & 0x03030303u) << 4;
        const uint32_t hi = high4(l) | (h >> (2 * u + 4) & 0x03030303u) << 4;
        dot[0][j >> 2] = gpu_dot4(lo, gpu_load(a), dot[0][j >> 2]);
        dot[1][j >> 2] = gpu_dot4(hi, gpu_load(a + 64), dot[1][j >> 2]);
    }
    for (int k = 0; k < 4; k++) {
        const int s = 8 * half + 2 * (u + (k & 2)) + (k & 1);
        const int scale = (int8_t)byte_of(c + T6_K_SC, lane, s);
        t.v += scale * (dot[k >> 1][k & 1] - 32 * sum16(x, n, 16 * b + s));
    }
    t.p = MUL(load_half(c + 2 * lane), load_float(x + n + 4 * b));
    return t;
}

/* Quarters r and r + 1 of a half, i & 3 = 2 half + r / 2. */
DEV struct term piece_q23_k(int type, int n, const uint8_t *tile, int lane, const char *x, int i)
{
    const int b = i >> 2, half = i >> 1 & 1, r = 2 * (i & 1), three = type == QTYPE_Q3_K;
    const uint8_t *c = tile + (size_t)b * (three ? T3_K_BYTES : T2_K_BYTES);
    const float da = load_float(x + n + 4 * b);
    struct term t = {0, 0, 0, 0};
    int dot[2][2] = {{0, 0}, {0, 0}}; /* quarter, sixteen of it */
    for (int j = 0; j < 8; j++) {
        const uint32_t w = field(c + (three ? T3_K_Q : T2_K_Q), lane, 8 * half + j);
        const uint32_t h = three ? field(c + T3_K_H, lane, j) : 0;
        const char *a = x + 256 * b + 128 * half + 32 * r + 4 * j;
        for (int k = 0; k < 2; k++) {
            uint32_t v = w >> 2 * (r + k) & 0x03030303u;
            if (three) v |= ones(h, 4 * half + r + k) << 2;
            dot[k][j >> 2] = gpu_dot4(v, gpu_load(a + 32 * k), dot[k][j >> 2]);
        }
    }
    for (int k = 0; k < 4; k++) {
        const int s = 8 * half + 2 * r + k, d = dot[k >> 1][k & 1], a16 = sum16(x, n, 16 * b + s);
        if (three) {
            const uint8_t *sc = c + T3_K_SC;
            const int lo = s < 8 ? byte_of(sc, lane, s) & 15 : byte_of(sc, lane, s - 8) >> 4;
            const int hi = byte_of(sc, lane, 8 + s % 4) >> s / 4 * 2 & 3;
            t.v += ((lo | hi << 4) - 32) * (d - 4 * a16);
        } else {
            const int both = byte_of(c + T2_K_SC, lane, s);
            t.v += (both & 15) * d;
            t.m += (both >> 4) * a16;
        }
    }
    t.p = MUL(load_half(c + 2 * lane), da);
    if (!three) t.pm = -MUL(load_half(c + T2_K_DMIN + 2 * lane), da);
    return t;
}

/* Sub-blocks 2q and 2q + 1. */
DEV struct term piece_iq4_xs(int n, const uint8_t *tile, int lane, const char *x, int i)
{
    const int b = i >> 2, q = i & 3;
    const uint8_t *c = tile + (size_t)b * T4_XS_BYTES;
    struct term t = {0, 0, 0, 0};
    for (int k = 0; k < 2; k++) {
        const int s = 2 * q + k;
        const int lo = byte_of(c + T4_XS_SL, lane, s / 2) >> 4 * k & 15;
        const int hi = (int)(half_at(c + T4_XS_SH + 2 * lane) >> 2 * s & 3);
        const char *a = x + 256 * b + 32 * s;
        int dot = 0;
        for (int j = 0; j < 4; j++) {
            const uint32_t w = field(c + T4_XS_Q, lane, 4 * s + j);
            dot = gpu_dot4(iq4(low4(w)), gpu_load(a + 4 * j), dot);
            dot = gpu_dot4(iq4(high4(w)), gpu_load(a + 16 + 4 * j), dot);
        }
        t.v += ((lo | hi << 4) - 32) * dot;
    }
    t.p = MUL(load_half(c + 2 * lane), load_float(x + n + 4 * b));
    return t;
}

DEV struct term piece(int type, int n, const uint8_t *tile, int lane, const char *x, int i)
{
    switch (type) {
    case QTYPE_F32:
    case QTYPE_F16:
    case QTYPE_BF16: return piece_float(type, tile, lane, x, i);
    case QTYPE_Q8_0: return piece_q8_0(n, tile, lane, x, i);
    case QTYPE_NVFP4: return piece_nvfp4(n, tile, lane, x, i);
    case QTYPE_Q4_K:
    case QTYPE_Q5_K: return piece_q45_k(type, n, tile, lane, x, i);
    case QTYPE_Q6_K: return piece_q6_k(n, tile, lane, x, i);
    case QTYPE_Q2_K:
    case QTYPE_Q3_K: return piece_q23_k(type, n, tile, lane, x, i);
    case QTYPE_IQ4_XS: return piece_iq4_xs(n, tile, lane, x, i);
    default: return piece_32(type, n, tile, lane, x, i);
    }
}

/* ---- products ----------------------------------------------------------------------------- */

struct pieces {
    int32_t v[PIECES][LANES], m[PIECES][LANES];
    float p[PIECES][LANES], pm[PIECES][LANES];
};

/* The float steps of n pieces of one row, in order. */
DEV float fold(int type, const struct pieces *s, int n, int lane, float acc)
{
    const int step = step_pieces(type);
    for (int i = 0; i < n; i += step) {
        int32_t v = s->v[i][lane], m = has_min(type) ? s->m[i][lane] : 0;
        for (int k = 1; k < step; k++) {
            v += s->v[i + k][lane];
            if (has_min(type)) m += s->m[i + k][lane];
        }
        acc = FMA(s->p[i][lane], is_float(type) ? FLOAT((uint32_t)v) : (float)v, acc);
        if (has_min(type)) acc = FMA(s->pm[i][lane], (float)m, acc);
    }
    return acc;
}

/* Block (tile, pair, matrix). */
DEV void product(int type, const struct gpu_product *a, int tile, int pair, int mat)
{
    SHARED struct pieces s;
    SHARED float acc[LANES];
    const struct gpu_pair *e = &a->pair[pair];
    const uint8_t *w = (const uint8_t *)e->w[a->first + mat] + (size_t)tile * a->tile_bytes;
    const char *x = a->x + a->x_stride * (uint64_t)(a->x_by_pair ? pair : e->row);
    const int n_pieces = a->n_cols / piece_cols(type);
    EACH_THREAD(t) {
        if (t < LANES) acc[t] = 0;
    } SYNC
    for (int at = 0; at < n_pieces; at += PIECES) {
        const int n = n_pieces - at < PIECES ? n_pieces - at : PIECES;
        EACH_THREAD(t) {
            for (int i = t / LANES, lane = t % LANES; i < n; i += SLICES) {
                const struct term r = piece(type, a->n_cols, w, lane, x, at + i);
                s.v[i][lane] = r.v;
                s.p[i][lane] = r.p;
                if (!has_min(type)) continue;
                s.m[i][lane] = r.m;
                s.pm[i][lane] = r.pm;
            }
        } SYNC
        EACH_THREAD(t) {
            if (t < LANES) acc[t] = fold(type, &s, n, t, acc[t]);
        } SYNC
    }
    EACH_THREAD(t) {
        const int row = tile * LANES + t;
        if (t < LANES && row < a->n_rows) {
            const float *bias = a->bias[mat];
            float *out = (float *)(void *)(a->out[mat] + a->out_stride * (uint64_t)pair);
            out[row] = bias ? ADD(acc[t], bias[(size_t)e->expert * (size_t)a->n_rows + row]) : acc[t];
        }
    } SYNC
}

#define PRODUCT_TYPES(X)                                                                           \
    X(F32) X(F16) X(BF16) X(Q8_0) X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(Q2_K) X(Q3_K) X(Q4_K) X(Q5_K)   \
    X(Q6_K) X(IQ4_NL) X(IQ4_XS) X(MXFP4) X(NVFP4)
#define DEFINE(T)                                                                                  \
    DEV void product_##T(const struct gpu_product *a, int x, int y, int z)                         \
    {                                                                                              \
        product(QTYPE_##T, a, x, y, z);                                                            \
    }                                                                                              \
    KERNEL(T, struct gpu_product, product_##T)
PRODUCT_TYPES(DEFINE)

/* ---- between the products ------------------------------------------------------------------ */

DEV float exp1(float x)
{
    if (x != x) return FLOAT(EXP_NAN);
    if (x > EXP_HI) return FLOAT(0x7f800000u);
    if (x < EXP_LO) return 0.0f;
    const float t = FMA(x, EXP_LOG2E, EXP_MAGIC);
    const float n = ADD(t, -EXP_MAGIC);
    float r = FMA(-n, EXP_LN2_HI, x);
    r = FMA(-n, EXP_LN2_LO, r);
    float p = EXP_C6;
    p = FMA(p, r, EXP_C5);
    p = FMA(p, r, EXP_C4);
    p = FMA(p, r, EXP_C3);
    p = FMA(p, r, EXP_C2);
    p = FMA(p, r, 1.0f);
    p = FMA(p, r, 1.0f);
    return FLOAT(BITS(p) + (BITS(t) << 23));
}

/* As the CPU device has it, operation by operation. */
DEV float glu_of(int act, float g, float u)
{
    if (act == GLU_RELU) return MUL(g > 0 ? g : 0.0f, u);
    if (act == GLU_SILU) return MUL(DIV(g, ADD(1.0f, exp1(-g))), u);
    if (act == GLU_GELU) {
        const float z = MUL(MUL(0.79788456080286535588f, g),
                            ADD(1.0f, MUL(MUL(0.044715f, g), g)));
        return MUL(DIV(g, ADD(1.0f, exp1(MUL(-2.0f, z)))), u);
    }
    const float x = g < 7.0f ? g : 7.0f, v = u > 7.0f ? 7.0f : u < -7.0f ? -7.0f : u;
    return MUL(DIV(x, ADD(1.0f, exp1(MUL(-1.702f, x)))), ADD(v, 1.0f));
}

/* 1.5 * 2^23 leaves the integer in the low bits. */
DEV int round_even(float v)
{
    return (int)(int8_t)(int32_t)(BITS(ADD(v, EXP_MAGIC)) - BITS(EXP_MAGIC));
}

/* Block (256 values, pair, 0). */
DEV void glu(int kind, const struct gpu_glu *a, int chunk, int pair, int unused)
{
    enum { CHUNK = GPU_THREADS };
    SHARED float h[CHUNK];
    SHARED uint32_t most[CHUNK];
    SHARED int q[CHUNK];
    const int n = a->n, from = chunk * CHUNK, group = kind == ACT_Q8_256 ? 256 : 32;
    const float *gate = (const float *)(const void *)(a->gate + a->stride * (uint64_t)pair) + from;
    const float *up = (const float *)(const void *)(a->up + a->stride * (uint64_t)pair) + from;
    char *out = a->out + a->out_stride * (uint64_t)pair;
    (void)unused;
    EACH_THREAD(t) {
        h[t] = from + t < n ? glu_of(a->act, gate[t], up[t]) : 0;
        most[t] = BITS(h[t]) & 0x7fffffffu;
        if (kind == ACT_F32 && from + t < n) ((float *)(void *)out)[from + t] = h[t];
    } SYNC
    if (kind == ACT_F32) return;
    for (int w = group / 2; w; w /= 2) {
        EACH_THREAD(t) {
            if (t % group < w && most[t + w] > most[t]) most[t] = most[t + w];
        } SYNC
    }
    EACH_THREAD(t) {
        const uint32_t bits = most[t / group * group];
        const float amax = FLOAT(bits);
        const int bad = bits >= 0x7f800000u, none = bad || amax < ACT_AMAX_MIN;
        q[t] = none ? 0 : round_even(MUL(h[t], DIV(127.0f, amax)));
        if (from + t < n) {
            ((int8_t *)(void *)out)[from + t] = (int8_t)q[t];
            if (t % group == 0)
                *(float *)(void *)(out + n + (from + t) / group * 4) =
                    bad ? FLOAT(ACT_BAD_SCALE) : none ? 0.0f : DIV(amax, 127.0f);
        }
    } SYNC
    EACH_THREAD(t) {
        const int wide = t % 32 == 0 ? 32 : 16;
        int s16 = 0, s32 = 0;
        if (t % 16 == 0 && from + t < n)
            for (int i = 0; i < wide; i++) {
                if (i < 16) s16 += q[t + i];
                s32 += q[t + i];
            }
        char *sums = out + n + n / group * 4;
        const int at = from + t;
        if (t % 16 == 0 && at < n && kind == ACT_Q8_256)
            *(int16_t *)(void *)(sums + at / 16 * 2) = (int16_t)s16;
        if (t % 32 == 0 && at < n && kind == ACT_Q8_256)
            *(int16_t *)(void *)(sums + n / 16 * 2 + at / 32 * 2) = (int16_t)s32;
        if (t % 32 == 0 && at < n && kind == ACT_Q8_32)
            *(int32_t *)(void *)(sums + at / 32 * 4) = s32;
    } SYNC
}

#define DEFINE_GLU(T)                                                                              \
    DEV void glu_##T(const struct gpu_glu *a, int x, int y, int z) { glu(ACT_##T, a, x, y, z); }    \
    KERNEL(glu_##T, struct gpu_glu, glu_##T)
DEFINE_GLU(F32)
DEFINE_GLU(Q8_32)
DEFINE_GLU(Q8_256)

/* ---- launches ----------------------------------------------------------------------------- */

static const void *product_entry(enum qtype type)
{
    switch ((int)type) {
#define CASE(T)                                                                                    \
    case QTYPE_##T: return KERNEL_ENTRY(T);
        PRODUCT_TYPES(CASE)
    default: return 0;
    }
}

static const void *glu_entry(enum act_kind kind)
{
    if (kind == ACT_F32) return KERNEL_ENTRY(glu_F32);
    return kind == ACT_Q8_32 ? KERNEL_ENTRY(glu_Q8_32) : KERNEL_ENTRY(glu_Q8_256);
}

static dim3 grid(int x, int y, int z)
{
    dim3 g = {(unsigned)x, (unsigned)y, (unsigned)z};
    return g;
}

bool gpu_has_product(enum qtype type) { return product_entry(type) != 0; }

cudaError_t gpu_product(cudaStream_t s, enum qtype type, const struct gpu_product *a)
{
    struct gpu_product copy = *a;
    void *args[1];
    args[0] = &copy;
    return cudaLaunchKernel(product_entry(type), grid((a->n_rows + LANES - 1) / LANES, a->n_pairs,
                                                      a->n_mats),
                            grid(GPU_THREADS, 1, 1), args, 0, s);
}

cudaError_t gpu_glu(cudaStream_t s, enum act_kind kind, const struct gpu_glu *a)
{
    struct gpu_glu copy = *a;
    void *args[1];
    args[0] = &copy;
    return cudaLaunchKernel(glu_entry(kind), grid((a->n + GPU_THREADS - 1) / GPU_THREADS, a->n_pairs, 1),
                            grid(GPU_THREADS, 1, 1), args, 0, s);
}

cudaError_t gpu_load_all(void)
{
    static const enum qtype all[] = {
#define LIST(T) QTYPE_##T,
        PRODUCT_TYPES(LIST)};
    struct cudaFuncAttributes f;
    cudaError_t e = cudaSuccess;
    for (unsigned i = 0; e == cudaSuccess && i < sizeof all / sizeof all[0]; i++)
        e = cudaFuncGetAttributes(&f, product_entry(all[i]));
    for (int k = 0; e == cudaSuccess && k < 3; k++)
        e = cudaFuncGetAttributes(&f, glu_entry((enum act_kind)k));
    return e;
}
