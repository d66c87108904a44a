/* Products of the CUDA plugin (kernels.h), in the words of gpu.h: C and CUDA at once.  Owns nothing.
 *
 * The bits are those of quant/README.md: a block's integers are exact, so who sums them and how is free;
 * only the float steps have an order, one or two per block of weights, and those of an output are made
 * one after another by one thread.
 *
 * DESIGN.  Few rows.  A block of threads makes the 16 outputs of one tile for one activation row, or for
 * up to eight that meet the same matrix.  Thread t is output t % 16 and takes every so manieth PIECE of
 * that: what a thread reads at once, 32 weights or 64.  All threads leave integer sums and scales in
 * shared memory, SLOTS at a time, and then one thread per output takes the float steps as they stand.  The
 * sixteen threads of a piece read 64 neighbouring bytes; with eight rows a thread meets four of them
 * with the piece that it has just read, and its neighbour in the block the other four.
 *
 * Weights of one value are pieces of their own: p is the weight, v the activation's bits.
 *
 * Many rows: tensor cores, mma.m16n8k32 of signed bytes.  A tile is its 16 outputs, eight rows its n, a run
 * of 32 columns its k, and what a thread holds of A lies in the tile as dwords: threads g, u of a warp read
 * dwords u and u + 4 of rows g and g + 8.  A warp makes a tile for up to 64 rows and goes through the columns
 * from the first to the last: a piece is unpacked once, into registers, and meets eight times eight rows.
 * A thread has two outputs and two rows of each product, sums them over a block in integers and takes the
 * float steps itself, in registers.  Sub-blocks of 16 are two products of k = 16.  Of mins the sum over
 * sub-blocks is a product, too: A is the mins, B the low and the high bytes of the prepared row's sums.
 * A block of threads is eight warps with as many tiles and the same rows, 256 columns of which lie in shared
 * memory as the warps read them, with the tiles' scales taken apart.  Of blocks of 32 the float step comes
 * for every product, so there the sum begins at 1.5 * 2^23: what comes out is a float already.
 * Where that makes too few blocks for a card, two or four warps share a tile, with 16 or 32 rows each.
 *
 * What to expect, in multiply-accumulates (MAC) per cycle of an SM; the H100's tensor cores do 4096 of
 * bytes, those of the cards with 7.5, 8.6 and 8.9 do 1024:
 *   - instructions, as compiled for 9.0, of a warp for 4096 MAC and 64 rows: Q4_K 17, IQ4_XS 18, Q5_K 19,
 *     Q2_K, Q3_K 22, Q6_K, Q8_0 24, Q4_0 25, Q5_0 27, MXFP4, IQ4_NL 28, Q4_1, Q5_1 35, NVFP4 46,
 *     the grid types 25 to 33.  Four a cycle make 960 MAC for Q4_K, 690 for Q8_0: 23 and 17 % of the H100's
 *     peak, 94 and 67 % of the others', where the product itself (16 cycles of a quarter of an SM, 18 with
 *     Q4_K's mins) is Q4_K's limit.  Of Q8_0's 24, 15 cannot be less in this order: four sums, each becoming a
 *     float (1), being scaled (1: the rounded product of two scales) and added (1), two reads of shared
 *     memory and the product; 3 of the rest are a stage's.  Of K types a step is shared by 256 columns, but
 *     every sub-block's scale is a multiplication for each sum, at half of the rate.
 *   - bytes from L2: 256 columns of 8 tiles and 64 rows are 38 KB (Q4_K) or 55 KB (Q8_0) for 2.1 M MAC, 55
 *     and 38 MAC a byte.  5.5 TB/s, an H100's L2, are 24 bytes a cycle and SM: 1300 and 900 MAC, above what
 *     instructions allow.  With 32 rows it would be 37 and 23: below it.
 *   - shared memory gives 128 bytes a cycle: B takes two of an SM's cycles for a product, scales one or two more
 *     where each product has some.  That is 8 of the 17 in which four products are made (Q4_K), 16 of 24 (Q8_0).
 * Against that, few rows by dp4a: 5 (Q8_0) to 7 (Q4_K) instructions for 128 MAC, seven to thirteen times as
 * many.  But a block of them makes one tile, not eight: of a matrix of 2048 outputs that is 128 blocks
 * where here are 16, so for up to eight rows, half of which a product of 16 would waste, it stays.  Between 9
 * and some 64 rows of a small matrix either may win: `check_cuda --bench` times both.
 *
 * Nothing here has been measured on a GPU yet (moe/compute/cuda/README.md). */
#include "moe/compute/cuda/kernels_int.h"
#include "moe/compute/cuda/unpack.h"

enum { LANES = 16, SLICES = GPU_THREADS / LANES, SLOTS = 64 };

/* ---- which rows meet which tile --------------------------------------------------------------- */

/* Rows first .. first + n - 1 of the list, and whom they meet. */
struct rows {
    const struct gpu_group *group; /* NULL: the matrices of the launch, or of an id */
    int first, n, expert;
    int n_tiles;                   /* of all matrices */
};

DEV struct rows rows_of(const struct gpu_product *a, int g)
{
    struct rows r = {a->group ? &a->group[g] : 0, g * a->share, 0, 0, 0};
    const int left = a->n_rows - r.first;
    r.n = left < a->share ? left : a->share;
    if (r.group) r.first = r.group->first, r.n = r.group->n, r.expert = r.group->expert;
    else if (a->id) r.expert = a->id[r.first];
    for (int m = 0; m < a->n_mats; m++) r.n_tiles += a->mat[m].n_tiles;
    return r;
}

/* Prepared row i of the list. */
DEV const char *row_in(const struct gpu_product *a, int head, int i)
{
    return a->x + a->x_head * (uint64_t)head +
           a->x_stride * (uint64_t)(a->row ? a->row[i] : a->n_used ? i / a->n_used : i);
}

/* Which matrix has tile x of all of them, and which of its tiles that is. */
struct tile {
    int mat, i;
    const uint8_t *matrix, *w;
};

DEV struct tile tile_of(const struct gpu_product *a, const struct rows *r, int x, int head)
{
    struct tile t = {0, x, 0, 0};
    while (t.i >= a->mat[t.mat].n_tiles) t.i -= a->mat[t.mat++].n_tiles;
    const struct gpu_mat *m = &a->mat[t.mat];
    t.matrix = (const uint8_t *)(r->group ? r->group->w[a->first + t.mat]
                                 : a->id  ? a->table[r->expert * GPU_MATS + a->first + t.mat]
                                          : m->w);
    t.w = t.matrix + ((size_t)head * (size_t)m->n_tiles + (size_t)t.i) * a->tile_bytes;
    return t;
}

/* Output `lane` of the tile and row i of the list. */
DEV void put(const struct gpu_product *a, const struct rows *r, const struct tile *t, int head, int lane,
             int i, float v)
{
    const struct gpu_mat *m = &a->mat[t->mat];
    const int at = t->i * LANES + lane;
    if (at >= m->n_rows) return;
    float *out = (float *)(void *)(m->out + m->out_stride * (uint64_t)i + a->out_head * (uint64_t)head);
    out[at] = m->bias ? ADD(v, m->bias[(size_t)r->expert * (size_t)m->n_rows + at]) : v;
}

/* ---- few rows: pieces ------------------------------------------------------------------------- */

/* Float steps of a piece: acc = fma(p, v, acc), then fma(pm, m, acc) where the type has mins.  Where
 * several pieces make a step, v and m are summed first, and p and pm are the first one's. */
struct term {
    int32_t v, m;
    float p, pm;
};

#include "moe/compute/cuda/nest_piece_body.h"

DEV int is_float(int type) { return type == QTYPE_F32 || type == QTYPE_F16 || type == QTYPE_BF16; }

DEV int piece_cols(int type)
{
    if (is_float(type)) return 1;
    if (type == QTYPE_NEST2) return 64;
    return type == QTYPE_NVFP4 ? 16 : block_cols(type) == 256 ? 64 : 32;
}

DEV int step_pieces(int type) { return block_cols(type) == 256 ? 4 : 1; }

/* Weights of one value: column i. */
DEV struct term piece_float(int type, const uint8_t *tile, int lane, const char *x, int i)
{
    struct term t = {(int32_t)gpu_load(x + 4 * (size_t)i), 0, 0, 0};
    if (type == QTYPE_F32) t.p = load_float(tile + 64 * (size_t)i + 4 * lane);
    else if (type == QTYPE_F16) t.p = load_half(tile + 32 * (size_t)i + 2 * lane);
    else t.p = FLOAT(half_at(tile + 32 * (size_t)i + 2 * lane) << 16);
    return t;
}

/* Sixteen columns of run k. */
DEV int dot16(int type, const uint8_t *c, int lane, const char *x, int i, int k, int h)
{
    int dot = 0;
    UNROLL for (int j = 0; j < 4; j++) dot = gpu_dot4(codes(type, c, lane, i, k, h, j), gpu_load(x + 4 * j), dot);
    return dot;
}

/* A quarter of a block of 64, which has a scale and a float step of its own. */
DEV struct term piece_nvfp4(int n, const uint8_t *tile, int lane, const char *x, int i)
{
    const uint8_t *c = tile + (size_t)(i >> 2) * TNV4_BYTES;
    struct term t = {0, 0, 0, 0};
    t.v = dot16(QTYPE_NVFP4, c, lane, x + 16 * i, 0, i >> 1 & 1, i & 1);
    t.p = MUL(scale_of(QTYPE_NVFP4, c, lane, i & 3), load_float(x + n + i / 2 * 4));
    return t;
}

/* Blocks of 32. */
DEV struct term piece_32(int type, int n, const uint8_t *tile, int lane, const char *x, int i)
{
    const uint8_t *c = tile + (size_t)i * (size_t)column_bytes(type);
    const float da = load_float(x + n + 4 * i);
    struct term t = {0, 0, 0, 0};
    UNROLL for (int h = 0; h < 2; h++) t.v += dot16(type, c, lane, x + 32 * i + 16 * h, i, 0, h);
    if (code_zero(type)) t.v -= code_zero(type) * sum_of(x, n, i);
    t.p = MUL(scale_of(type, c, lane, 0), da);
    if (has_min(type)) {
        t.m = sum_of(x, n, i);
        t.pm = MUL(min_of(type, c, lane), da);
    }
    return t;
}

/* 64 columns of a block of 256. */
DEV struct term piece_64(int type, int n, const uint8_t *tile, int lane, const char *x, int i)
{
    const int b = i >> 2;
    const uint8_t *c = tile + (size_t)b * (size_t)column_bytes(type);
    const float da = load_float(x + n + 4 * b);
    struct term t = {0, 0, 0, 0};
    UNROLL for (int k = 0; k < 2; k++) {
        const int at = run_at(type, i, k);
        int dot[2];
        UNROLL for (int h = 0; h < 2; h++)
            dot[h] = dot16(type, c, lane, x + 256 * b + at + 16 * h, i, k, h);
        UNROLL for (int h = 0; h < 32 / scale_cols(type); h++) {
            const int s = at / scale_cols(type) + h;
            const char *sum = scale_cols(type) == 16 ? at_sum16(x, n, 16 * b + s) : at_sum32(x, n, 8 * b + s);
            const int d = scale_cols(type) == 16 ? dot[h] : dot[0] + dot[1];
            const int from = code_zero(type) ? code_zero(type) * load_i16(sum) : 0;
            t.v += scale(type, c, lane, s) * (d - from);
            if (has_min(type)) t.m += byte_of(mins(type, c, lane, s >> 2), s & 3) * load_i16(sum);
        }
    }
    t.p = MUL(scale_of(type, c, lane, 0), da);
    if (has_min(type)) t.pm = MUL(min_of(type, c, lane), da);
    return t;
}

DEV struct term piece(int type, int n, const uint8_t *tile, int lane, const char *x, int i)
{
    if (is_float(type)) return piece_float(type, tile, lane, x, i);
    if (type == QTYPE_NVFP4) return piece_nvfp4(n, tile, lane, x, i);
    return block_cols(type) == 256 ? piece_64(type, n, tile, lane, x, i)
                                   : piece_32(type, n, tile, lane, x, i);
}

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
    const struct rows in_all = rows_of(a, g);
    const struct tile tile = tile_of(a, &in_all, x, head);
    EACH_THREAD(t) {
        const int r = t / LANES;
        if (r < in_all.n) acc[r][t % LANES] = 0;
        if (t < in_all.n) in[t] = row_in(a, head, in_all.first + t);
    } SYNC
    for (int at = 0; at < n_pieces; at += round) {
        const int n = n_pieces - at < round ? n_pieces - at : round;
        EACH_THREAD(t) {
            const int lane = t % LANES, slice = t / LANES;
            for (int i = slice % wide; i < n; i += wide)
                UNROLL for (int k = 0; k < per; k++) {
                    const int r = slice / wide * per + k, to = i * rows + r;
                    if (r >= in_all.n) break;
                    const struct term v =
                        type == QTYPE_NEST2 ? piece_nest(tile.matrix, tile.i, a->mat[tile.mat].n_tiles,
                                                         a->n_cols, lane, in[r], at + i)
                                            : piece(type, a->n_cols, tile.w, lane, in[r], at + i);
                    s.v[to][lane] = v.v;
                    s.p[to][lane] = v.p;
                    if (!has_min(type)) continue;
                    s.m[to][lane] = v.m;
                    s.pm[to][lane] = v.pm;
                }
        } SYNC
        EACH_THREAD(t) {
            const int lane = t % LANES, r = t / LANES;
            if (r < in_all.n) acc[r][lane] = fold(type, &s, n, rows, r, lane, acc[r][lane]);
        } SYNC
    }
    EACH_THREAD(t) {
        const int r = t / LANES, lane = t % LANES;
        if (r < in_all.n) put(a, &in_all, &tile, head, lane, in_all.first + r, acc[r][lane]);
    } SYNC
}

/* ---- many rows: tensor cores ------------------------------------------------------------------ */

/* Columns that lie in shared memory, runs of 32 of them, groups of 8 rows. */
enum { STAGE = 256, RUNS = STAGE / 32, EIGHTS = GPU_MANY / 8, WARPS = GPU_THREADS / GPU_WARP, QUAD = 4 };

/* As many blocks keep a card busy: below that, several warps share a tile. */
enum { ENOUGH_BLOCKS = 256 };

/* An integer below 2^22 in magnitude, summed onto this, is a float that much above 1.5 * 2^23. */
#define TENSOR_MAGIC 0x4b400000

/* STAGE columns of what a block of threads multiplies, as threads of a warp read it.  q: [run][row][thread
 * of the row], behind the runs sums of sub-blocks, low bytes and high ones.  d, sum: of runs, or of a block
 * of 256, in pairs of rows.  of: each warp's tile's scales, [sub-block][output], then mins, as floats;
 * of blocks of 256 integers, four to a dword, then the block's scale and its mins'. */
struct __attribute__((aligned(8))) pair {
    float v[2];
};
struct stage {
    struct gpu_b q[RUNS + 1][GPU_MANY][QUAD];
    struct pair d[RUNS][GPU_MANY / 2], sum[RUNS][GPU_MANY / 2];
    uint32_t of[WARPS][2 * RUNS][LANES];
};
enum { SHORT_MINS = RUNS, LONG_SCALE = RUNS, LONG_MINS };

/* What a thread of a warp has of its tile and of its rows, beside its part of the matrices. */
struct own {
    const uint8_t *w;       /* its tile from the stage's first column on */
    int warp, g, u;         /* and its place there */
    int first;              /* eight rows of the warp */
};

struct quad {
    float v[QUAD];
};

DEV int is_long(int type) { return block_cols(type) == 256; }
DEV int tensor_runs(int type) { return block_cols(type) == 32 ? 1 : 2; }

/* Columns at .. at + n - 1 of prepared row x, what thread u of its four brings. */
DEV void stage_row(int type, struct stage *s, int row, int u, const char *x, int n_cols, int at, int n)
{
    UNROLL for (int g = 0; g < RUNS; g++) {
        const char *p = x + at + 32 * g + 4 * u;
        if (32 * g < n) s->q[g][row][u] = (struct gpu_b){{gpu_load(p), gpu_load(p + 16)}};
    }
    if (!is_long(type)) {
        for (int g = u; 32 * g < n; g += QUAD) {
            s->d[g][row / 2].v[row % 2] = load_float(x + n_cols + (at / 32 + g) * 4);
            if (has_min(type)) s->sum[g][row / 2].v[row % 2] = (float)sum_of(x, n_cols, at / 32 + g);
        }
        return;
    }
    if (u == 0) s->d[0][row / 2].v[row % 2] = load_float(x + n_cols + at / 256 * 4);
    if (has_min(type)) {
        const char *p = scale_cols(type) == 16 ? at_sum16(x, n_cols, at / 16 + 4 * u)
                                               : at_sum32(x, n_cols, at / 32 + 4 * u);
        const int there = 4 * u < 256 / scale_cols(type);
        const uint32_t lo = there ? gpu_load(p) : 0, hi = there ? gpu_load(p + 4) : 0;
        s->q[RUNS][row][u] = (struct gpu_b){{gpu_pick(lo, hi, 0x6420), gpu_pick(lo, hi, 0x7531)}};
    }
}

/* Scales of n columns of a tile from w on, what thread t of its warp brings. */
DEV void stage_scales(int type, uint32_t (*of)[LANES], int t, const uint8_t *w, int n)
{
    const int lane = t % LANES, second = t / LANES;
    if (is_long(type)) {
        UNROLL for (int i = 0; i < 32 / scale_cols(type); i++)
            of[2 * i + second][lane] = scales(type, w, lane, 2 * i + second);
        if (!second) of[LONG_SCALE][lane] = BITS(scale_of(type, w, lane, 0));
        else if (has_min(type)) of[LONG_MINS][lane] = BITS(min_of(type, w, lane));
        return;
    }
    const int per = block_cols(type) / scale_cols(type);
    UNROLL for (int i = 0; i < STAGE / scale_cols(type) / 2; i++) {
        const int j = 2 * i + second;
        if (j * scale_cols(type) >= n) break;
        const uint8_t *c = w + j / per * column_bytes(type);
        of[j][lane] = BITS(scale_of(type, c, lane, j % per));
        if (has_min(type)) of[SHORT_MINS + j][lane] = BITS(min_of(type, c, lane));
    }
}

/* What a thread has of piece i, of block column c. */
DEV void unpack(int type, const uint8_t *c, int i, int g, int u, struct gpu_a *w0, struct gpu_a *w1)
{
    UNROLL for (int k = 0; k < tensor_runs(type); k++)
        UNROLL for (int h = 0; h < 2; h++)
            UNROLL for (int e = 0; e < 2; e++)
                (k ? w1 : w0)->r[2 * h + e] = less(codes(type, c, g + 8 * e, i, k, h, u), code_zero(type));
}

/* Float steps of a thread's four sums, of two outputs and two rows. */
DEV void step(struct quad *acc, const uint32_t *d, struct pair da, const float *v)
{
    UNROLL for (int i = 0; i < QUAD; i++)
        acc->v[i] = FMA(MUL(FLOAT(d[i / 2 * 8]), da.v[i % 2]), v[i], acc->v[i]);
}

/* Sixteen or 32 columns of a block of at most 64. */
DEV void step_short(int type, struct quad *acc, const struct gpu_c *c, const struct stage *s, const struct own *o,
                    int sub, int run, int at)
{
    float v[QUAD];
    UNROLL for (int i = 0; i < QUAD; i++) v[i] = ADD(FLOAT((uint32_t)c->r[i]), -FLOAT(TENSOR_MAGIC));
    step(acc, &s->of[o->warp][sub][o->g], s->d[run][at], v);
    if (!has_min(type)) return;
    UNROLL for (int i = 0; i < QUAD; i++) v[i] = s->sum[run][at].v[i % 2];
    step(acc, &s->of[o->warp][SHORT_MINS + sub][o->g], s->d[run][at], v);
}

/* A block of 256. */
DEV void step_long(int type, struct quad *acc, const struct gpu_c *sum, const struct gpu_c *low,
                   const struct gpu_c *high, const struct stage *s, const struct own *o, int at)
{
    float v[QUAD];
    UNROLL for (int i = 0; i < QUAD; i++) v[i] = (float)sum->r[i];
    step(acc, &s->of[o->warp][LONG_SCALE][o->g], s->d[0][at], v);
    if (!has_min(type)) return;
    UNROLL for (int i = 0; i < QUAD; i++) v[i] = (float)(low->r[i] + 256 * high->r[i]);
    step(acc, &s->of[o->warp][LONG_MINS][o->g], s->d[0][at], v);
}

/* Block (WARPS / a->slices tiles of all matrices, group of up to GPU_MANY rows, head). */
DEV void tensor(int type, const struct gpu_product *a, int x, int g, int head)
{
    SHARED struct stage s;
    SHARED struct rows rows;
    SHARED const char *in[GPU_MANY];
    struct own own[OWN];
    struct quad acc[EIGHTS][OWN];
    struct gpu_c sum[EIGHTS][OWN], c[OWN], high[OWN], from[OWN];
    struct gpu_a w[2][OWN];
    struct gpu_b b[OWN];
    const int n_halfs = 32 / scale_cols(type), piece = 32 * tensor_runs(type);
    EACH_THREAD(t) {
        if (t == 0) rows = rows_of(a, g);
    } SYNC
    const int slices = a->slices, per = 2 * (((rows.n + 15) / 16 + slices - 1) / slices); /* eights of a warp */
    EACH_THREAD(t) {
        struct own *o = &own[ME(t)];
        const int i = (x * WARPS + t / GPU_WARP) / slices;
        if (t < GPU_MANY) in[t] = row_in(a, head, rows.first + (t < rows.n ? t : 0));
        o->w = tile_of(a, &rows, i < rows.n_tiles ? i : rows.n_tiles - 1, head).w;
        o->warp = t / GPU_WARP;
        o->g = t % GPU_WARP / QUAD;
        o->u = t % QUAD;
        o->first = o->warp % slices * per;
        UNROLL for (int k = 0; k < QUAD; k++) from[ME(t)].r[k] = is_long(type) ? 0 : TENSOR_MAGIC;
        UNROLL for (int r = 0; r < EIGHTS; r++) acc[r][ME(t)] = (struct quad){{0, 0, 0, 0}};
    } SYNC
    for (int at = 0; at < a->n_cols; at += STAGE) {
        const int left = a->n_cols - at, n = is_long(type) || left > STAGE ? STAGE : left;
        const int bytes = STAGE / block_cols(type) * column_bytes(type);
        const int to_end = left / block_cols(type) * column_bytes(type);
        EACH_THREAD(t) {
            const struct own *o = &own[ME(t)];
            if (t / QUAD < 8 * per * slices)
                stage_row(type, &s, t / QUAD, o->u, in[t / QUAD], a->n_cols, at, n);
            stage_scales(type, s.of[o->warp], t % GPU_WARP, o->w, n);
            for (int i = bytes + 128 * (t % GPU_WARP); i < 2 * bytes && i < to_end; i += 128 * GPU_WARP)
                gpu_ahead(o->w + i);
            UNROLL for (int r = 0; r < EIGHTS; r++) sum[r][ME(t)] = (struct gpu_c){{0, 0, 0, 0}};
        } SYNC
        ROLLED for (int p = 0; p < n; p += piece) {
            EACH_THREAD(t) {
                const struct own *o = &own[ME(t)];
                unpack(type, o->w + p / block_cols(type) * column_bytes(type), p / piece, o->g, o->u, &w[0][ME(t)],
                       &w[1][ME(t)]);
            }
            UNROLL for (int r = 0; r < EIGHTS; r++) {
                if (r % 2 == 0 && r >= per) break;
                UNROLL for (int k = 0; k < tensor_runs(type); k++) {
                    const int run = is_long(type) ? run_at(type, p / piece, k) / 32 : p / 32 + k;
                    EACH_THREAD(t) {
                        const struct own *o = &own[ME(t)];
                        b[ME(t)] = s.q[run][8 * (o->first + r) + o->g][o->u];
                    }
                    UNROLL for (int h = 0; h < n_halfs; h++) {
                        const int sub = n_halfs * run + h;
                        if (n_halfs == 1) gpu_mma32(c, w[k], b, from);
                        else gpu_mma16(c, w[k], b, h, from);
                        EACH_THREAD(t) {
                            const struct own *o = &own[ME(t)];
                            const uint32_t(*of)[LANES] = s.of[o->warp];
                            if (is_long(type))
                                UNROLL for (int q = 0; q < QUAD; q++)
                                    sum[r][ME(t)].r[q] +=
                                        ((const int8_t *)&of[sub / 4][o->g + q / 2 * 8])[sub % 4] * c[ME(t)].r[q];
                            else
                                step_short(type, &acc[r][ME(t)], &c[ME(t)], &s, o, sub, run,
                                           4 * (o->first + r) + o->u);
                        }
                    }
                }
            }
        }
        if (is_long(type)) {
            if (has_min(type)) {
                EACH_THREAD(t) {
                    const struct own *o = &own[ME(t)];
                    UNROLL for (int e = 0; e < QUAD; e++)
                        w[0][ME(t)].r[e] = mins(type, o->w, o->g + 8 * (e % 2), type == QTYPE_Q2_K ? o->u : o->u % 2);
                }
            }
            UNROLL for (int r = 0; r < EIGHTS; r++) {
                if (r % 2 == 0 && r >= per) break;
                if (has_min(type)) {
                    EACH_THREAD(t) {
                        const struct own *o = &own[ME(t)];
                        b[ME(t)] = s.q[RUNS][8 * (o->first + r) + o->g][o->u];
                    }
                    gpu_mma16u(c, w[0], b, 0, from);
                    gpu_mma16(high, w[0], b, 1, from);
                }
                EACH_THREAD(t) {
                    const struct own *o = &own[ME(t)];
                    step_long(type, &acc[r][ME(t)], &sum[r][ME(t)], &c[ME(t)], &high[ME(t)], &s, o,
                              4 * (o->first + r) + o->u);
                }
            }
        }
        EACH_THREAD(t) own[ME(t)].w += bytes;
        SYNC
    }
    EACH_THREAD(t) {
        const struct own *o = &own[ME(t)];
        const int i = (x * WARPS + o->warp) / slices;
        const struct tile tile = tile_of(a, &rows, i < rows.n_tiles ? i : rows.n_tiles - 1, head);
        UNROLL for (int r = 0; r < EIGHTS; r++) {
            if (i >= rows.n_tiles || r >= per) break;
            UNROLL for (int q = 0; q < QUAD; q++) {
                const int row = 8 * (o->first + r) + 2 * o->u + q % 2;
                if (row < rows.n)
                    put(a, &rows, &tile, head, o->g + q / 2 * 8, rows.first + row, acc[r][ME(t)].v[q]);
            }
        }
    }
}

/* ---- kernels ---------------------------------------------------------------------------------- */

#define FEW_TYPES(X) X(F32) X(F16) X(BF16) X(NEST2)
#define TENSOR_TYPES(X)                                                                            \
    X(Q8_0) X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(Q2_K) X(Q3_K) X(Q4_K) X(Q5_K) X(Q6_K) X(IQ4_NL)       \
    X(IQ4_XS) X(MXFP4) X(NVFP4) X(IQ3_S) X(IQ3_XXS) X(IQ2_S) X(IQ2_XS) X(IQ2_XXS) X(IQ1_S) X(IQ1_M)
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
#define DEFINE_TENSOR(T)                                                                           \
    DEV void tensor_##T(const struct gpu_product *a, int x, int y, int z)                          \
    {                                                                                              \
        tensor(QTYPE_##T, a, x, y, z);                                                             \
    }                                                                                              \
    KERNEL(tensor_##T, struct gpu_product, tensor_##T)
FEW_TYPES(DEFINE)
TENSOR_TYPES(DEFINE)
TENSOR_TYPES(DEFINE_TENSOR)

static const void *entry(enum qtype type, int share)
{
    switch ((int)type) {
#define CASE(T)                                                                                    \
    case QTYPE_##T: return share > 1 ? KERNEL_ENTRY(many_##T) : KERNEL_ENTRY(T);
#define CASE_TENSOR(T)                                                                             \
    case QTYPE_##T:                                                                                \
        return share > GPU_ROWS ? KERNEL_ENTRY(tensor_##T)                                         \
               : share > 1      ? KERNEL_ENTRY(many_##T)                                           \
                                : KERNEL_ENTRY(T);
        FEW_TYPES(CASE)
        TENSOR_TYPES(CASE_TENSOR)
    default: return 0;
    }
}

bool gpu_has_product(enum qtype type) { return entry(type, 1) != 0; }

int gpu_share(enum qtype type, int n_rows)
{
    const bool tensor = entry(type, GPU_MANY) != entry(type, GPU_ROWS);
    return n_rows > GPU_ROWS && tensor ? GPU_MANY : n_rows > 1 ? GPU_ROWS : 1;
}

struct gpu_launch gpu_product(enum qtype type, const struct gpu_product *a)
{
    int tiles = 0, slices = 1;
    for (int i = 0; i < a->n_mats; i++) tiles += a->mat[i].n_tiles;
    const int groups = a->group ? a->n_groups : (a->n_rows + a->share - 1) / a->share;
    const int most = a->group || a->n_rows > GPU_MANY ? GPU_MANY : a->n_rows;
    int x = tiles;
    if (a->share == GPU_MANY) {
        while (16 * slices < most && (int64_t)tiles * slices / WARPS * groups * a->n_heads < ENOUGH_BLOCKS) slices *= 2;
        x = (tiles * slices + WARPS - 1) / WARPS;
    }
    struct gpu_launch l = gpu_launch(entry(type, a->share), x, groups, a->n_heads);
    l.a.product = *a;
    l.a.product.slices = slices;
    return l;
}

int gpu_product_entries(const void **all)
{
    int n = 0;
#define LIST(T) all[n++] = KERNEL_ENTRY(T), all[n++] = KERNEL_ENTRY(many_##T);
#define LIST_TENSOR(T) all[n++] = KERNEL_ENTRY(tensor_##T);
    FEW_TYPES(LIST)
    TENSOR_TYPES(LIST)
    TENSOR_TYPES(LIST_TENSOR)
    return n;
}
