/* The kernels of the CUDA plugin (kernels.h), in the words of gpu.h: C and CUDA at once.  Owns nothing.
 *
 * DESIGN.  Products.  A block of threads makes the 16 outputs of one tile for one activation row, or for
 * up to eight that meet the same matrix.  Thread t is output t % 16 and takes every so manieth PIECE of
 * that: what a thread reads at once, 32 weights or 64.  Integer sums of pieces are exact, so who makes
 * them and in which order is free; only the float steps have an order (quant/README.md), and there are
 * few of them: one or two per block of weights.  So all threads leave integer sums and scales in shared
 * memory, SLOTS at a time, and then one thread per output takes the float steps as they stand.  The
 * sixteen threads of a piece read 64 neighbouring bytes; with eight rows a thread meets four of them
 * with the piece that it has just read, and its neighbour in the block the other four.
 *
 * Weights of one value are pieces of their own: p is the weight, v the activation's bits.
 *
 * Attention.  A block makes one query head of one row, four pages a round.  The online softmax has an
 * order from page to page, but scores have none among each other, and the greatest so far is exact: so a
 * round scores all its positions at once, a thread each, and then sums all values of the output at once,
 * a thread each from page to page.
 *
 * Nothing here has been measured on a GPU yet (moe/compute/cuda/README.md). */
#include <string.h>

#include "moe/compute/cuda/gpu.h"
#include "moe/compute/cuda/kernels.h"

#include "moe/compute/elem.h"
#include "moe/compute/elem_exp.h"
#include "moe/compute/op.h"
#include "quant/tile.h"

enum { LANES = 16, SLICES = GPU_THREADS / LANES, SLOTS = 64, CHUNK = GPU_THREADS };

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
    case QTYPE_IQ4_XS:
    case QTYPE_IQ3_S:
    case QTYPE_IQ3_XXS:
    case QTYPE_IQ2_S:
    case QTYPE_IQ2_XS:
    case QTYPE_IQ2_XXS:
    case QTYPE_IQ1_S:
    case QTYPE_IQ1_M:
    case QTYPE_NEST2: return 64;
    default: return 32;
    }
}

DEV int step_pieces(int type) { return piece_cols(type) == 64 && type != QTYPE_NEST2 ? 4 : 1; }

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

#include "moe/compute/cuda/grid_piece_body.h"
#include "moe/compute/cuda/nest_piece_body.h"

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
    case QTYPE_IQ3_S:
    case QTYPE_IQ3_XXS:
    case QTYPE_IQ2_S:
    case QTYPE_IQ2_XS:
    case QTYPE_IQ2_XXS:
    case QTYPE_IQ1_S:
    case QTYPE_IQ1_M: return piece_grid(type, n, tile, lane, x, i);
    default: return piece_32(type, n, tile, lane, x, i);
    }
}

/* ---- products ----------------------------------------------------------------------------- */

/* [piece * rows + row][output] */
struct pieces {
    int32_t v[SLOTS][LANES], m[SLOTS][LANES];
    float p[SLOTS][LANES], pm[SLOTS][LANES];
};

/* The float steps of n pieces of one output of row r of `rows`, in order. */
DEV float fold(int type, const struct pieces *s, int n, int rows, int r, int lane, float acc)
{
    const int step = step_pieces(type);
    for (int i = 0; i < n; i += step) {
        const int at = i * rows + r;
        int32_t v = s->v[at][lane], m = has_min(type) ? s->m[at][lane] : 0;
        for (int k = 1; k < step; k++) {
            v += s->v[at + k * rows][lane];
            if (has_min(type)) m += s->m[at + k * rows][lane];
        }
        acc = FMA(s->p[at][lane], is_float(type) ? FLOAT((uint32_t)v) : (float)v, acc);
        if (has_min(type)) acc = FMA(s->pm[at][lane], (float)m, acc);
    }
    return acc;
}

/* Block (tile of all matrices, group of at most `rows` rows, head). */
DEV void product(int type, int rows, const struct gpu_product *a, int x, int g, int head)
{
    SHARED struct pieces s;
    SHARED float acc[GPU_ROWS][LANES];
    SHARED const char *in[GPU_ROWS];
    const int round = SLOTS / rows;                        /* pieces in shared memory */
    const int wide = round < SLICES ? round : SLICES;      /* threads of an output beside each other */
    const int per = rows / (SLICES / wide);                /* rows that a thread meets */
    const int n_pieces = a->n_cols / piece_cols(type);
    const struct gpu_group *e = a->group ? &a->group[g] : 0;
    const int first = e ? e->first : g * rows, left = a->n_rows - first;
    const int n_rows = e ? e->n : left < rows ? left : rows;
    int mat = 0, tile = x;
    while (tile >= a->mat[mat].n_tiles) tile -= a->mat[mat++].n_tiles;
    const struct gpu_mat *m = &a->mat[mat];
    const int expert = e ? e->expert : a->id ? a->id[first] : 0;
    const void *tiles = e       ? e->w[a->first + mat]
                        : a->id ? a->table[expert * GPU_MATS + a->first + mat]
                                : m->w;
    const uint8_t *w = (const uint8_t *)tiles +
                       ((size_t)head * (size_t)m->n_tiles + (size_t)tile) * a->tile_bytes;
    EACH_THREAD(t) {
        const int r = t / LANES;
        if (r < n_rows) acc[r][t % LANES] = 0;
        if (t < n_rows)
            in[t] = a->x + a->x_head * (uint64_t)head +
                    a->x_stride * (uint64_t)(a->row      ? a->row[first + t]
                                             : a->n_used ? (first + t) / a->n_used
                                                         : first + t);
    } SYNC
    for (int at = 0; at < n_pieces; at += round) {
        const int n = n_pieces - at < round ? n_pieces - at : round;
        EACH_THREAD(t) {
            const int lane = t % LANES, slice = t / LANES;
            for (int i = slice % wide; i < n; i += wide)
                for (int k = 0; k < per; k++) {
                    const int r = slice / wide * per + k, to = i * rows + r;
                    if (r >= n_rows) break;
                    const struct term v =
                        type == QTYPE_NEST2 ? piece_nest((const uint8_t *)tiles, tile, m->n_tiles, a->n_cols,
                                                         lane, in[r], at + i)
                                            : piece(type, a->n_cols, w, lane, in[r], at + i);
                    s.v[to][lane] = v.v;
                    s.p[to][lane] = v.p;
                    if (!has_min(type)) continue;
                    s.m[to][lane] = v.m;
                    s.pm[to][lane] = v.pm;
                }
        } SYNC
        EACH_THREAD(t) {
            const int lane = t % LANES, r = t / LANES;
            if (r < n_rows) acc[r][lane] = fold(type, &s, n, rows, r, lane, acc[r][lane]);
        } SYNC
    }
    EACH_THREAD(t) {
        const int r = t / LANES, lane = t % LANES, i = tile * LANES + lane;
        if (r < n_rows && i < m->n_rows) {
            float *out = (float *)(void *)(m->out + m->out_stride * (uint64_t)(first + r) +
                                           a->out_head * (uint64_t)head);
            out[i] = m->bias ? ADD(acc[r][lane], m->bias[(size_t)expert * (size_t)m->n_rows + i])
                             : acc[r][lane];
        }
    } SYNC
}

#define PRODUCT_TYPES(X)                                                                           \
    X(F32) X(F16) X(BF16) X(Q8_0) X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(Q2_K) X(Q3_K) X(Q4_K) X(Q5_K)   \
    X(Q6_K) X(IQ4_NL) X(IQ4_XS) X(MXFP4) X(NVFP4) X(IQ3_S) X(IQ3_XXS) X(IQ2_S) X(IQ2_XS)            \
    X(IQ2_XXS) X(IQ1_S) X(IQ1_M) X(NEST2)
#define DEFINE(T)                                                                                  \
    DEV void product_##T(const struct gpu_product *a, int x, int y, int z)                         \
    {                                                                                              \
        product(QTYPE_##T, 1, a, x, y, z);                                                         \
    }                                                                                              \
    DEV void products_##T(const struct gpu_product *a, int x, int y, int z)                        \
    {                                                                                              \
        product(QTYPE_##T, GPU_ROWS, a, x, y, z);                                                  \
    }                                                                                              \
    KERNEL(T, struct gpu_product, product_##T)                                                     \
    KERNEL(many_##T, struct gpu_product, products_##T)
PRODUCT_TYPES(DEFINE)

/* ---- rows of floats ------------------------------------------------------------------------ */

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

/* most[t] = the greatest of most[] in t's group of neighbours, for the first of them. */
DEV void group_max(uint32_t *most, int group)
{
    for (int w = group / 2; w; w /= 2) {
        EACH_THREAD(t) {
            if (t % group < w && most[t + w] > most[t]) most[t] = most[t + w];
        } SYNC
    }
}

DEV const float *floats(const char *base, uint64_t stride, int r)
{
    return (const float *)(const void *)(base + stride * (uint64_t)r);
}

/* Block (256 values, row, head). */
DEV void prepare(int kind, const struct gpu_prepare *a, int chunk, int row, int head)
{
    SHARED float h[CHUNK];
    SHARED uint32_t most[CHUNK];
    SHARED int q[CHUNK];
    const int n = a->n, from = chunk * CHUNK, group = kind == ACT_Q8_256 ? 256 : kind == ACT_Q8_64 ? 64 : 32;
    const float *x = floats(a->x, a->x_stride, row) + (size_t)head * (size_t)a->x_head + from;
    const float *up = a->up ? floats(a->up, a->up_stride, row) + from : 0;
    char *out = a->out + a->out_stride * (uint64_t)row + a->out_head * (uint64_t)head;
    EACH_THREAD(t) {
        h[t] = from + t >= n ? 0 : up ? glu_of(a->act, x[t], up[t]) : x[t];
        most[t] = BITS(h[t]) & 0x7fffffffu;
        if (kind == ACT_F32 && from + t < n) ((float *)(void *)out)[from + t] = h[t];
    } SYNC
    if (kind == ACT_F32) return;
    group_max(most, group);
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
        const int narrow = kind == ACT_Q8_256 ? 16 : group, wide = narrow > 16 || t % 32 ? narrow : 32;
        int s16 = 0, sum = 0;
        if (t % narrow == 0 && from + t < n)
            for (int i = 0; i < wide; i++) {
                if (i < 16) s16 += q[t + i];
                sum += q[t + i];
            }
        char *sums = out + n + n / group * 4;
        const int at = from + t;
        if (t % 16 == 0 && at < n && kind == ACT_Q8_256)
            *(int16_t *)(void *)(sums + at / 16 * 2) = (int16_t)s16;
        if (t % 32 == 0 && at < n && kind == ACT_Q8_256)
            *(int16_t *)(void *)(sums + n / 16 * 2 + at / 32 * 2) = (int16_t)sum;
        if (t % group == 0 && at < n && kind != ACT_Q8_256)
            *(int32_t *)(void *)(sums + at / group * 4) = sum;
    } SYNC
}

#define DEFINE_PREPARE(T)                                                                          \
    DEV void prepare_##T(const struct gpu_prepare *a, int x, int y, int z)                         \
    {                                                                                              \
        prepare(ACT_##T, a, x, y, z);                                                              \
    }                                                                                              \
    KERNEL(prepare_##T, struct gpu_prepare, prepare_##T)
DEFINE_PREPARE(F32)
DEFINE_PREPARE(Q8_32)
DEFINE_PREPARE(Q8_256)
DEFINE_PREPARE(Q8_64)

/* Sixteen lanes, folded by 8, 4, 2, 1. */
DEV float fold_add(const float *lane)
{
    float a[LANES / 2];
    for (int j = 0; j < LANES / 2; j++) a[j] = ADD(lane[j], lane[j + LANES / 2]);
    for (int half = LANES / 4; half; half /= 2)
        for (int j = 0; j < half; j++) a[j] = ADD(a[j], a[j + half]);
    return a[0];
}

DEV float max2(float a, float b) { return a > b ? a : b; }

DEV float fold_max(const float *lane)
{
    float a[LANES / 2];
    for (int j = 0; j < LANES / 2; j++) a[j] = max2(lane[j], lane[j + LANES / 2]);
    for (int half = LANES / 4; half; half /= 2)
        for (int j = 0; j < half; j++) a[j] = max2(a[j], a[j + half]);
    return a[0];
}

/* Block (row, head, 0). */
DEV void norm(const struct gpu_norm *a, int row, int head, int unused)
{
    enum { MOST = 8 * CHUNK };
    SHARED float v[MOST], lane[LANES];
    const int n = a->n;
    const float *x = floats(a->x, a->x_stride, row) + (size_t)head * (size_t)n;
    float *y = (float *)(void *)(a->y + a->y_stride * (uint64_t)row) + (size_t)head * (size_t)n;
    (void)unused;
    EACH_THREAD(t) {
        if (t < LANES) lane[t] = 0;
    } SYNC
    for (int at = 0; at < n; at += MOST) {
        const int m = n - at < MOST ? n - at : MOST;
        EACH_THREAD(t) {
            for (int i = t; i < m; i += GPU_THREADS) v[i] = x[at + i];
        } SYNC
        EACH_THREAD(t) {
            float sum = t < LANES ? lane[t] : 0;
            for (int i = t; t < LANES && i < m; i += LANES) sum = FMA(v[i], v[i], sum);
            if (t < LANES) lane[t] = sum;
        } SYNC
    }
    EACH_THREAD(t) {
        const float r = DIV(1.0f, SQRT(ADD(DIV(fold_add(lane), (float)n), a->eps)));
        for (int i = t; i < n; i += GPU_THREADS)
            y[i] = a->w ? MUL(MUL(x[i], r), a->w[i]) : MUL(x[i], r);
    } SYNC
}
KERNEL(norm, struct gpu_norm, norm)

DEV float sigmoid(float x) { return DIV(1.0f, ADD(1.0f, exp1(-x))); }

DEV float map_of(const struct gpu_map *a, float x, float y)
{
    switch (a->code) {
    case GPU_ADD: return ADD(y, x);
    case GPU_MUL: return MUL(y, x);
    case GPU_GATE: return MUL(y, sigmoid(x));
    case GPU_SCALE: return MUL(y, a->w ? MUL(a->by, a->w[0]) : a->by);
    case GPU_SOFTCAP: {
        const float t = exp1(MUL(2.0f, DIV(y, a->by)));
        return MUL(a->by, ADD(1.0f, -DIV(2.0f, ADD(t, 1.0f))));
    }
    default: return x; /* GPU_COPY */
    }
}

/* Block (256 values, row, head). */
DEV void map(const struct gpu_map *a, int chunk, int row, int head)
{
    const int x_row = a->x_row ? a->x_row[row] : row;
    const float *x = a->x ? floats(a->x, a->x_stride, x_row) + (size_t)head * (size_t)a->x_head : 0;
    float *y = (float *)(void *)(a->y + a->y_stride * (uint64_t)row) +
               (size_t)head * (size_t)a->y_head;
    EACH_THREAD(t) {
        const int i = chunk * CHUNK + t;
        if (i < a->n) y[i] = map_of(a, x ? x[a->one ? 0 : i] : 0, a->code == GPU_COPY ? 0 : y[i]);
    } SYNC
}
KERNEL(map, struct gpu_map, map)

/* Block (256 pairs of all heads, row, 0). */
DEV void rope(const struct gpu_rope *a, int chunk, int row, int unused)
{
    const int half = a->n_rot / 2;
    const float *cs = floats(a->cs, a->cs_stride, row);
    float *x = (float *)(void *)(a->x + a->x_stride * (uint64_t)row);
    (void)unused;
    EACH_THREAD(t) {
        const int k = chunk * CHUNK + t, h = k / half, i = k % half;
        if (h < a->n_heads) {
            float *pa = x + (size_t)h * (size_t)a->dim + a->at + (a->neox ? i : 2 * i);
            float *pb = pa + (a->neox ? half : 1);
            const float va = *pa, vb = *pb, c = cs[i], s = cs[half + i];
            *pa = FMA(va, c, -MUL(vb, s));
            *pb = FMA(vb, c, MUL(va, s));
        }
    } SYNC
}
KERNEL(rope, struct gpu_rope, rope)

/* Block (256 values, row, 0). */
DEV void combine(const struct gpu_combine *a, int chunk, int row, int unused)
{
    const int first = row * a->n_used;
    float *y = (float *)(void *)(a->out + a->out_stride * (uint64_t)row);
    (void)unused;
    EACH_THREAD(t) {
        const int i = chunk * CHUNK + t;
        float acc = 0;
        for (int s = first; i < a->n && s < first + a->n_used; s++) {
            const int pair = a->slot ? a->slot[s].pair : s;
            if (pair < 0) break;
            acc = FMA(a->slot ? a->slot[s].w : a->w[s], floats(a->x, a->x_stride, pair)[i], acc);
        }
        if (i < a->n) y[i] = acc;
    } SYNC
}
KERNEL(combine, struct gpu_combine, combine)

/* ---- routing -------------------------------------------------------------------------------- */

/* A strict order, so that the lower number stays before on ties; a NaN comes after every number. */
DEV int beats(float a, float b) { return a > b || (b != b && a == a); }

/* How many of x[n] come before number i. */
DEV int rank_of(const float *x, int n, int i)
{
    int rank = 0;
    for (int j = 0; j < n; j++) rank += beats(x[j], x[i]) || (j < i && !beats(x[i], x[j]));
    return rank;
}

/* Of n values by one thread; lanes as everywhere. */
DEV void softmax_few(float *x, int n)
{
    float lane[LANES], top, sum;
    for (int j = 0; j < LANES; j++) lane[j] = FLOAT(0xff800000u);
    for (int i = 0; i < n; i++) lane[i % LANES] = max2(x[i], lane[i % LANES]);
    top = fold_max(lane);
    for (int j = 0; j < LANES; j++) lane[j] = 0;
    for (int i = 0; i < n; i++) {
        x[i] = exp1(ADD(x[i], -top));
        lane[i % LANES] = ADD(lane[i % LANES], x[i]);
    }
    sum = fold_add(lane);
    for (int i = 0; i < n; i++) x[i] = DIV(x[i], sum);
}

/* The sum of the two best of x[n]. */
DEV float best_two(const float *x, int n)
{
    int a = 0, b = -1;
    for (int i = 1; i < n; i++) {
        if (beats(x[i], x[a])) b = a, a = i;
        else if (b < 0 || beats(x[i], x[b])) b = i;
    }
    return ADD(x[a], b < 0 ? 0.0f : x[b]);
}

/* Block (row, 0, 0). */
DEV void route(const struct gpu_route *a, int row, int unused, int neither)
{
    SHARED float v[GPU_EXPERTS], pick[GPU_EXPERTS], lane[LANES], group[GPU_GROUPS], w[GPU_USED];
    SHARED int32_t id[GPU_USED], in[GPU_GROUPS];
    const int n = a->n_expert, k = a->n_used, groups = a->n_group > 1 && a->n_group_used < a->n_group;
    const int per = groups ? n / a->n_group : 1;
    const float *x = floats(a->x, a->x_stride, row);
    (void)unused;
    (void)neither;
    EACH_THREAD(t) {
        for (int i = t; i < n; i += GPU_THREADS)
            v[i] = a->score == ROUTE_SIGMOID ? sigmoid(x[i]) : x[i];
    } SYNC
    if (a->score == ROUTE_SOFTMAX) {
        EACH_THREAD(t) {
            float top = FLOAT(0xff800000u);
            for (int i = t; t < LANES && i < n; i += LANES) top = max2(v[i], top);
            if (t < LANES) lane[t] = top;
        } SYNC
        EACH_THREAD(t) {
            const float top = fold_max(lane);
            for (int i = t; i < n; i += GPU_THREADS) v[i] = exp1(ADD(v[i], -top));
        } SYNC
        EACH_THREAD(t) {
            float sum = 0;
            for (int i = t; t < LANES && i < n; i += LANES) sum = ADD(sum, v[i]);
            if (t < LANES) lane[t] = sum;
        } SYNC
        EACH_THREAD(t) {
            const float sum = fold_add(lane);
            for (int i = t; i < n; i += GPU_THREADS) v[i] = DIV(v[i], sum);
        } SYNC
    }
    EACH_THREAD(t) {
        for (int i = t; i < n; i += GPU_THREADS) pick[i] = a->bias ? ADD(v[i], a->bias[i]) : v[i];
    } SYNC
    if (groups) {
        EACH_THREAD(t) {
            if (t < a->n_group) group[t] = best_two(pick + t * per, per);
        } SYNC
        EACH_THREAD(t) {
            if (t < a->n_group) in[t] = rank_of(group, a->n_group, t) < a->n_group_used;
        } SYNC
        EACH_THREAD(t) {
            for (int i = t; i < per * a->n_group; i += GPU_THREADS)
                if (!in[i / per]) pick[i] = FLOAT(0xff800000u);
        } SYNC
    }
    EACH_THREAD(t) {
        for (int i = t; i < n; i += GPU_THREADS) {
            const int at = rank_of(pick, n, i);
            if (at < k) id[at] = i;
        }
    } SYNC
    EACH_THREAD(t) {
        if (t < k) w[t] = v[id[t]];
    } SYNC
    EACH_THREAD(t) {
        if (t == 0) {
            float sum = 0;
            if (a->score == ROUTE_SOFTMAX_CHOSEN) softmax_few(w, k);
            for (int s = 0; s < k; s++) sum = ADD(sum, w[s]);
            if (sum < FLOAT(0x38800000u)) sum = FLOAT(0x38800000u); /* 2^-14 */
            for (int s = 0; s < k; s++) {
                if (a->normalise) w[s] = DIV(w[s], sum);
                if (a->by != 1.0f) w[s] = MUL(w[s], a->by);
                if (a->scale) w[s] = MUL(w[s], a->scale[id[s]]);
            }
        }
    } SYNC
    EACH_THREAD(t) {
        if (t < k) {
            a->w[(size_t)row * (size_t)k + t] = w[t];
            a->id[(size_t)row * (size_t)k + t] = id[t];
        }
    } SYNC
}
KERNEL(route, struct gpu_route, route)

/* ---- keys and values ------------------------------------------------------------------------ */

enum { Q8_BLOCK = 32 };

/* Block (256 values of K and V, KV head, row): how they lie in a page is in elem.h. */
DEV void kv_put(const struct gpu_kv_put *a, int chunk, int head, int row)
{
    SHARED float h[CHUNK];
    SHARED uint32_t most[CHUNK];
    const struct gpu_place *at = &a->place[row];
    const int pos = at->last % KV_PAGE, dk = a->dk, dv = a->dv, from = chunk * CHUNK;
    const float *k = floats(a->k, a->k_stride, row) + (size_t)head * (size_t)a->dim;
    const float *v = a->v ? floats(a->v, a->v_stride, row) + (size_t)head * (size_t)a->dim_v : 0;
    char *page = at->kv + a->kv_at + a->page_bytes * (uint64_t)(at->last / KV_PAGE) +
                 a->head_bytes * (uint64_t)head;
    EACH_THREAD(t) {
        const int i = from + t, j = i - dk;
        h[t] = i < dk ? (i < a->dim ? k[i] : 0) : v && j < dv && j < a->dim_v ? v[j] : 0;
        most[t] = BITS(h[t]) & 0x7fffffffu;
    } SYNC
    if (!a->q8) {
        EACH_THREAD(t) {
            const int i = from + t, j = i - dk;
            uint16_t *to = (uint16_t *)(void *)page;
            if (i < dk) to[(size_t)i * KV_PAGE + pos] = gpu_to_half(h[t]);
            else if (j < dv) to[(size_t)dk * KV_PAGE + (size_t)pos * dv + j] = gpu_to_half(h[t]);
        } SYNC
        return;
    }
    group_max(most, Q8_BLOCK);
    EACH_THREAD(t) {
        const int i = from + t, j = i - dk, kb = dk / Q8_BLOCK, vb = dv / Q8_BLOCK;
        const float amax = FLOAT(most[t / Q8_BLOCK * Q8_BLOCK]);
        const uint16_t d = gpu_to_half(DIV(amax, 127.0f));
        const int good = d != 0 && d < 0x7c00u;
        const int8_t q = good ? (int8_t)(uint8_t)BITS(ADD(MUL(h[t], DIV(127.0f, amax)), EXP_MAGIC)) : 0;
        char *kq = page + 2 * (size_t)kb * KV_PAGE, *vd = kq + (size_t)dk * KV_PAGE;
        char *vq = vd + 2 * (size_t)vb * KV_PAGE;
        if (i < dk) {
            kq[(size_t)i * KV_PAGE + pos] = (char)q;
            if (i % Q8_BLOCK == 0) ((uint16_t *)(void *)page)[i / Q8_BLOCK * KV_PAGE + pos] = d;
        } else if (j < dv) {
            vq[(size_t)pos * dv + j] = (char)q;
            if (j % Q8_BLOCK == 0) ((uint16_t *)(void *)vd)[pos * vb + j / Q8_BLOCK] = d;
        }
    } SYNC
}
KERNEL(kv_put, struct gpu_kv_put, kv_put)

/* q * k of one position. */
DEV float score(int q8, int dk, const float *q, const char *page, int p)
{
    const uint16_t *k = (const uint16_t *)(const void *)page;
    float acc = 0;
    if (!q8) {
        for (int d = 0; d < dk; d++) acc = FMA(q[d], gpu_half(k[d * KV_PAGE + p]), acc);
        return acc;
    }
    const int8_t *kq = (const int8_t *)(const void *)(k + dk / Q8_BLOCK * KV_PAGE);
    for (int b = 0; b < dk / Q8_BLOCK; b++) {
        float t = 0;
        for (int d = b * Q8_BLOCK; d < (b + 1) * Q8_BLOCK; d++)
            t = FMA(q[d], (float)kq[d * KV_PAGE + p], t);
        acc = FMA(t, gpu_half(k[b * KV_PAGE + p]), acc);
    }
    return acc;
}

/* Value d of positions lo .. hi onto acc, e[p] of each. */
DEV float values(int q8, int latent, int dk, int dv, const float *e, const char *page, int d, int lo,
                 int hi, float acc)
{
    const uint16_t *k = (const uint16_t *)(const void *)page;
    const int kb = dk / Q8_BLOCK, b = d / Q8_BLOCK, vb = dv / Q8_BLOCK;
    const int8_t *kq = (const int8_t *)(const void *)(k + kb * KV_PAGE);
    const uint16_t *vd = (const uint16_t *)(const void *)(kq + dk * KV_PAGE);
    const int8_t *vq = (const int8_t *)(const void *)(vd + vb * KV_PAGE);
    for (int p = lo; p <= hi; p++) {
        if (q8) {
            const float scale = gpu_half(latent ? k[b * KV_PAGE + p] : vd[p * vb + b]);
            const int8_t v = latent ? kq[d * KV_PAGE + p] : vq[p * dv + d];
            acc = FMA(MUL(e[p], scale), (float)v, acc);
        } else {
            acc = FMA(e[p], gpu_half(latent ? k[d * KV_PAGE + p] : k[dk * KV_PAGE + p * dv + d]), acc);
        }
    }
    return acc;
}

/* Positions of a page that a row sees. */
DEV int first_in(const struct gpu_place *at, int page)
{
    const int lo = at->first - page * KV_PAGE;
    return lo > 0 ? lo : 0;
}
DEV int last_in(const struct gpu_place *at, int page)
{
    const int hi = at->last - page * KV_PAGE;
    return hi < KV_PAGE ? hi : KV_PAGE - 1;
}

/* Block (query head, row, 0). */
DEV void attention(int q8, int latent, const struct gpu_attention *a, int h, int row, int unused)
{
    enum { ROUND = GPU_THREADS / KV_PAGE };
    SHARED float q[GPU_HEAD], o[GPU_HEAD], e[ROUND][KV_PAGE], part[ROUND][LANES];
    SHARED float most[ROUND], c[ROUND], far[2]; /* so far: the greatest, the sum */
    const int dk = a->dk, dv = a->dv;
    const struct gpu_place *at = &a->place[row];
    const char *kv = at->kv + a->kv_at + a->head_bytes * (uint64_t)(h / (a->n_q / a->n_kv));
    const float *in = floats(a->q, a->q_stride, row) + (size_t)h * (size_t)a->dim;
    float *out = (float *)(void *)(a->out + a->out_stride * (uint64_t)row) + (size_t)h * (size_t)a->dim_v;
    (void)unused;
    EACH_THREAD(t) {
        for (int d = t; d < dk; d += GPU_THREADS) q[d] = d < a->dim ? in[d] : 0;
        for (int d = t; d < dv; d += GPU_THREADS) o[d] = 0;
        if (t < 2) far[t] = t ? (a->sink ? 1.0f : 0.0f) : a->sink ? a->sink[h] : FLOAT(0xff800000u);
    } SYNC
    for (int base = at->first / KV_PAGE; base <= at->last / KV_PAGE; base += ROUND) {
        const int left = at->last / KV_PAGE - base + 1, n = left < ROUND ? left : ROUND;
        EACH_THREAD(t) {
            const int k = t / KV_PAGE, p = t % KV_PAGE, page = base + k;
            if (k < n)
                e[k][p] = p < first_in(at, page) || p > last_in(at, page)
                              ? FLOAT(0xff800000u)
                              : MUL(score(q8, dk, q, kv + a->page_bytes * (uint64_t)page, p), a->scale);
        } SYNC
        EACH_THREAD(t) {
            const int k = t / LANES, j = t % LANES;
            float top = FLOAT(0xff800000u);
            for (int i = j; k < n && i < KV_PAGE; i += LANES) top = max2(e[k][i], top);
            if (k < n) part[k][j] = top;
        } SYNC
        EACH_THREAD(t) {
            if (t < n) most[t] = fold_max(part[t]);
        } SYNC
        EACH_THREAD(t) {
            const int k = t / KV_PAGE, p = t % KV_PAGE, page = base + k;
            float before = far[0], top = far[0];
            for (int i = 0; i <= k && k < n; i++) {
                before = top;
                top = max2(most[i], top);
            }
            if (k < n) {
                e[k][p] = p < first_in(at, page) || p > last_in(at, page) ? 0.0f : exp1(ADD(e[k][p], -top));
                if (p == 0) c[k] = exp1(ADD(before, -top));
            }
        } SYNC
        EACH_THREAD(t) {
            const int k = t / LANES, j = t % LANES;
            float sum = 0;
            for (int i = j; k < n && i < KV_PAGE; i += LANES) sum = ADD(sum, e[k][i]);
            if (k < n) part[k][j] = sum;
            for (int i = 0; t == 0 && i < n; i++) far[0] = max2(most[i], far[0]);
        } SYNC
        EACH_THREAD(t) {
            for (int d = t; d < dv; d += GPU_THREADS) {
                float acc = o[d];
                for (int k = 0; k < n; k++)
                    acc = values(q8, latent, dk, dv, e[k], kv + a->page_bytes * (uint64_t)(base + k), d,
                                 first_in(at, base + k), last_in(at, base + k), MUL(acc, c[k]));
                o[d] = acc;
            }
            for (int k = 0; t == GPU_THREADS - 1 && k < n; k++) far[1] = FMA(far[1], c[k], fold_add(part[k]));
        } SYNC
    }
    EACH_THREAD(t) {
        for (int d = t; d < dv && d < a->dim_v; d += GPU_THREADS) out[d] = DIV(o[d], far[1]);
    } SYNC
}

#define DEFINE_ATTENTION(NAME, Q8, LATENT)                                                         \
    DEV void NAME(const struct gpu_attention *a, int x, int y, int z)                              \
    {                                                                                              \
        attention(Q8, LATENT, a, x, y, z);                                                         \
    }                                                                                              \
    KERNEL(NAME, struct gpu_attention, NAME)
DEFINE_ATTENTION(attention_f16, 0, 0)
DEFINE_ATTENTION(attention_q8, 1, 0)
DEFINE_ATTENTION(latent_f16, 0, 1)
DEFINE_ATTENTION(latent_q8, 1, 1)

/* ---- launches ----------------------------------------------------------------------------- */

static const void *product_entry(enum qtype type, int many)
{
    switch ((int)type) {
#define CASE(T)                                                                                    \
    case QTYPE_##T: return many ? KERNEL_ENTRY(many_##T) : KERNEL_ENTRY(T);
        PRODUCT_TYPES(CASE)
    default: return 0;
    }
}

static const void *prepare_entry(enum act_kind kind)
{
    switch ((int)kind) {
    case ACT_Q8_32: return KERNEL_ENTRY(prepare_Q8_32);
    case ACT_Q8_64: return KERNEL_ENTRY(prepare_Q8_64);
    case ACT_Q8_256: return KERNEL_ENTRY(prepare_Q8_256);
    default: return KERNEL_ENTRY(prepare_F32);
    }
}

static const void *attention_entry(int q8, int latent)
{
    if (latent) return q8 ? KERNEL_ENTRY(latent_q8) : KERNEL_ENTRY(latent_f16);
    return q8 ? KERNEL_ENTRY(attention_q8) : KERNEL_ENTRY(attention_f16);
}

static struct gpu_launch launch(const void *kernel, int x, int y, int z)
{
    struct gpu_launch l;
    memset(&l, 0, sizeof l); /* launches are compared byte by byte */
    l.kernel = kernel;
    l.grid[0] = (unsigned)x;
    l.grid[1] = (unsigned)y;
    l.grid[2] = (unsigned)z;
    return l;
}

static int chunks(int n) { return (n + CHUNK - 1) / CHUNK; }

bool gpu_has_product(enum qtype type) { return product_entry(type, 0) != 0; }

struct gpu_launch gpu_product(enum qtype type, const struct gpu_product *a)
{
    int tiles = 0;
    for (int i = 0; i < a->n_mats; i++) tiles += a->mat[i].n_tiles;
    const int groups = a->group ? a->n_groups : a->many ? (a->n_rows + GPU_ROWS - 1) / GPU_ROWS : a->n_rows;
    struct gpu_launch l = launch(product_entry(type, a->many), tiles, groups, a->n_heads);
    l.a.product = *a;
    return l;
}

struct gpu_launch gpu_prepare(enum act_kind kind, const struct gpu_prepare *a)
{
    struct gpu_launch l = launch(prepare_entry(kind), chunks(a->n), a->n_rows, a->n_heads);
    l.a.prepare = *a;
    return l;
}

struct gpu_launch gpu_norm(const struct gpu_norm *a)
{
    struct gpu_launch l = launch(KERNEL_ENTRY(norm), a->n_rows, a->n_heads, 1);
    l.a.norm = *a;
    return l;
}

struct gpu_launch gpu_map(const struct gpu_map *a)
{
    struct gpu_launch l = launch(KERNEL_ENTRY(map), chunks(a->n), a->n_rows, a->n_heads);
    l.a.map = *a;
    return l;
}

struct gpu_launch gpu_rope(const struct gpu_rope *a)
{
    struct gpu_launch l = launch(KERNEL_ENTRY(rope), chunks(a->n_heads * (a->n_rot / 2)), a->n_rows, 1);
    l.a.rope = *a;
    return l;
}

struct gpu_launch gpu_combine(const struct gpu_combine *a)
{
    struct gpu_launch l = launch(KERNEL_ENTRY(combine), chunks(a->n), a->n_rows, 1);
    l.a.combine = *a;
    return l;
}

struct gpu_launch gpu_route(const struct gpu_route *a)
{
    struct gpu_launch l = launch(KERNEL_ENTRY(route), a->n_rows, 1, 1);
    l.a.route = *a;
    return l;
}

struct gpu_launch gpu_kv_put(const struct gpu_kv_put *a)
{
    struct gpu_launch l = launch(KERNEL_ENTRY(kv_put), chunks(a->dk + a->dv), a->n_kv, a->n_rows);
    l.a.kv_put = *a;
    return l;
}

struct gpu_launch gpu_attention(const struct gpu_attention *a)
{
    struct gpu_launch l = launch(attention_entry(a->q8, a->latent), a->n_q, a->n_rows, 1);
    l.a.attention = *a;
    return l;
}

cudaError_t gpu_start(cudaStream_t s, const struct gpu_launch *l)
{
    struct gpu_launch copy = *l;
    void *args[1];
    dim3 grid = {copy.grid[0], copy.grid[1], copy.grid[2]}, block = {GPU_THREADS, 1, 1};
    args[0] = &copy.a;
    return cudaLaunchKernel(copy.kernel, grid, block, args, 0, s);
}

cudaError_t gpu_load_all(void)
{
    const void *all[96];
    struct cudaFuncAttributes f;
    cudaError_t e = cudaSuccess;
    int n = 0;
#define LIST(T) all[n++] = KERNEL_ENTRY(T), all[n++] = KERNEL_ENTRY(many_##T);
    PRODUCT_TYPES(LIST)
    for (int k = 0; k < ACT_N; k++) all[n++] = prepare_entry((enum act_kind)k);
    for (int k = 0; k < 4; k++) all[n++] = attention_entry(k & 1, k >> 1);
    all[n++] = KERNEL_ENTRY(norm);
    all[n++] = KERNEL_ENTRY(map);
    all[n++] = KERNEL_ENTRY(rope);
    all[n++] = KERNEL_ENTRY(combine);
    all[n++] = KERNEL_ENTRY(route);
    all[n++] = KERNEL_ENTRY(kv_put);
    for (int i = 0; e == cudaSuccess && i < n; i++) e = cudaFuncGetAttributes(&f, all[i]);
    return e;
}
