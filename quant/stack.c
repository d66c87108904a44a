/* See stack.h: sizes, the reference and what is the same for all tiers.
 *
 * DESIGN.  Nested: every tier unpacks a tile into a buffer on the stack once for many rows; the wider
 * ones put planes straight into registers for few rows.  Factored: two tiles at a time are expanded to
 * floats on the stack and meet all rows by F32's kernel. */
#include "quant/stack.h"

#include <math.h>
#include <string.h>

#include "moe/base/f16.h"
#include "quant/mm_int.h"

#define NEST_TABLE(name) const uint8_t name[STACK_NESTED + 1][32]
#include "quant/nest_body.h"

static size_t round64(size_t n) { return (n + 63) & ~(size_t)63; }

int stack_levels(enum qtype type) { return type == QTYPE_NEST2 ? STACK_NESTED : STACK_LEVELS; }

size_t fact_at_u(int rank, int n_cols) { return round64(2 * (size_t)rank * (size_t)n_cols); }

static size_t tiles_of(int n_rows) { return (size_t)(n_rows + TILE_ROWS - 1) / TILE_ROWS; }

size_t fact_at_signs(int rank, int n_cols, int n_rows)
{
    return fact_at_u(rank, n_cols) + round64(tiles_of(n_rows) * 2 * TILE_ROWS * (size_t)rank);
}

size_t stack_level_bytes(enum qtype type, int rank, int n_cols, int n_rows, int level)
{
    const size_t plane = tiles_of(n_rows) * TILE_ROWS * ((size_t)n_cols / 8);
    if (type == QTYPE_NEST2) return level ? plane : 0;
    return fact_at_signs(rank, n_cols, n_rows) + (level ? plane : 0);
}

size_t stack_scratch(enum qtype type, int n_cols)
{
    const size_t n = (size_t)n_cols; /* nested: 16 bytes a column, and 16 floats for 64 of them */
    return type == QTYPE_NEST2 ? 17 * n : 2 * tile_bytes(QTYPE_F32, n_cols);
}

/* ---- nested ------------------------------------------------------------------------------ */

/* What a code of 6 bits stands for, levels above `depth` ignored, in units of the scale. */
static int nest_int(uint8_t code, int depth)
{
    const int m = nest_table[depth][(code & 31) >> (STACK_NESTED - depth)];
    return code & 32 ? -m : m;
}

static float scale_of(int byte) { return f16_to_f32((uint16_t)(byte << 7)); }

float nest_value(uint8_t scale, uint8_t code, int depth)
{
    return scale_of(scale) * (float)nest_int(code, depth);
}

void nest_put_base(uint8_t scale, const uint8_t *code, uint8_t *block)
{
    memset(block, 0, 17);
    block[0] = scale;
    for (int i = 0; i < 64; i++)
        block[1 + i / 16 * 4 + i % 4] |= (uint8_t)((code[i] >> 4 & 3) << 2 * (i / 4 % 4));
}

void nest_put_level(const uint8_t *code, int level, int row, uint8_t *column)
{
    uint8_t bits[2][4] = {{0}};
    for (int i = 0; i < 64; i++)
        bits[i / 32][i % 4] |= (uint8_t)((code[i] >> (STACK_NESTED - level) & 1) << (i / 4 % 8));
    for (int j = 0; j < 2; j++) memcpy(column + 64 * j + 4 * row, bits[j], 4);
}

/* The code of weight i of a row in a block column. */
static uint8_t code_at(const struct stacked *w, const uint8_t *base, size_t at_level, int row,
                       int i)
{
    unsigned c = (unsigned)(base[TNEST2_Q + i / 16 * 64 + 4 * row + i % 4] >> 2 * (i / 4 % 4) & 3) << 4;
    for (int l = 1; l <= w->depth; l++) {
        const uint8_t *p = (const uint8_t *)w->level[l] + at_level;
        c |= (unsigned)(p[i / 32 * 64 + 4 * row + i % 4] >> (i / 4 % 8) & 1) << (STACK_NESTED - l);
    }
    return (uint8_t)c;
}

/* The integers of row `row` of the matrix, and its scales. */
static void expand_row(const struct stacked *w, int row, int8_t *q, float *scale)
{
    const size_t n_blocks = (size_t)w->n_cols / 64, first = (size_t)(row / TILE_ROWS) * n_blocks;
    for (size_t b = 0; b < n_blocks; b++) {
        const uint8_t *base = (const uint8_t *)w->base + (first + b) * TNEST2_BYTES;
        scale[b] = scale_of(base[row % TILE_ROWS]);
        for (int i = 0; i < 64; i++)
            q[b * 64 + (size_t)i] = (int8_t)nest_int(
                code_at(w, base, (first + b) * TNEST_LEVEL, row % TILE_ROWS, i), w->depth);
    }
}

static float element_nested(int n_cols, const int8_t *q, const float *scale, const void *x)
{
    const int8_t *a = x;
    const char *da = (const char *)x + n_cols;
    float acc = 0;
    for (int b = 0; b < n_cols / 64; b++, q += 64, a += 64) {
        int32_t isum = 0;
        float d;
        for (int k = 0; k < 64; k++) isum += q[k] * a[k];
        memcpy(&d, da + 4 * b, 4);
        acc = fmaf(scale[b] * d, (float)isum, acc);
    }
    return acc;
}

void nested_ref(const struct stacked *w, int t0, int n_tiles, int n_rows, const void *const *x,
                float *const *y)
{
    const size_t n = (size_t)w->n_cols;
    float *scale = __builtin_alloca(n / 64 * sizeof *scale + n);
    int8_t *q = (int8_t *)(scale + n / 64);
    for (int i = 0; i < TILE_ROWS * n_tiles; i++) {
        expand_row(w, TILE_ROWS * t0 + i, q, scale);
        for (int r = 0; r < n_rows; r++) y[r][i] = element_nested(w->n_cols, q, scale, x[r]);
    }
}

/* ---- factored ---------------------------------------------------------------------------- */

static float half_at(const uint8_t *p, size_t i)
{
    uint16_t h;
    memcpy(&h, p + 2 * i, 2);
    return f16_to_f32(h);
}

static float weight_factored(const struct stacked *w, size_t tile, size_t row, size_t c)
{
    const size_t n_cols = (size_t)w->n_cols, k = (size_t)w->rank;
    const size_t at_u = fact_at_u(w->rank, w->n_cols);
    const size_t at_signs = fact_at_signs(w->rank, w->n_cols, w->n_rows);
    float sum = 0;
    for (int l = 0; l <= w->depth; l++) {
        const uint8_t *v = w->level[l], *u = v + at_u, *sign = l ? v + at_signs : w->base;
        float m = 0;
        for (size_t r = 0; r < k; r++)
            m = fmaf(half_at(u, (tile * k + r) * TILE_ROWS + row), half_at(v, r * n_cols + c), m);
        sign += (tile * (n_cols / 32) + c / 32) * TSIGN1_BYTES + 4 * row + c % 4;
        sum += *sign >> (c % 32 / 4) & 1 ? m : -m;
    }
    return sum;
}

void factored_tile_ref(const struct stacked *w, int t, float *tile)
{
    for (size_t c = 0; c < (size_t)w->n_cols; c++)
        for (size_t row = 0; row < TILE_ROWS; row++)
            tile[c * TILE_ROWS + row] = weight_factored(w, (size_t)t, row, c);
}

void stack_row_f32(const struct stacked *w, int row, float *y)
{
    const int t = row / TILE_ROWS, r = row % TILE_ROWS;
    const size_t n_blocks = (size_t)w->n_cols / 64, first = (size_t)t * n_blocks;
    for (int c = 0; w->type == QTYPE_SIGN1 && c < w->n_cols; c++)
        y[c] = weight_factored(w, (size_t)t, (size_t)r, (size_t)c);
    for (size_t b = 0; w->type == QTYPE_NEST2 && b < n_blocks; b++) {
        const uint8_t *base = (const uint8_t *)w->base + (first + b) * TNEST2_BYTES;
        for (int i = 0; i < 64; i++)
            y[b * 64 + (size_t)i] =
                nest_value(base[r], code_at(w, base, (first + b) * TNEST_LEVEL, r, i), w->depth);
    }
}

/* ---- products ---------------------------------------------------------------------------- */

static void factored_mm(const struct mm_kernels *k, const struct stacked *w, int t0, int n_tiles,
                        int n_rows, const void *const *x, float *const *y)
{
    enum { ROWS = 128 };
    const size_t floats = (size_t)TILE_ROWS * (size_t)w->n_cols;
    float *tile = __builtin_alloca_with_align(2 * floats * sizeof *tile, 512), *to[ROWS];
    for (int t = 0; t < n_tiles; t += 2) {
        const int n = n_tiles - t < 2 ? 1 : 2;
        for (int i = 0; i < n; i++) k->factored_tile(w, t0 + t + i, tile + (size_t)i * floats);
        for (int r0 = 0; r0 < n_rows; r0 += ROWS) {
            const int m = n_rows - r0 < ROWS ? n_rows - r0 : ROWS;
            for (int r = 0; r < m; r++) to[r] = y[r0 + r] + TILE_ROWS * t;
            k->mm[QTYPE_F32](w->n_cols, n, tile, m, x + r0, to);
        }
    }
}

void stack_mm(const struct mm_kernels *k, const struct stacked *w, int t0, int n_tiles, int n_rows,
              const void *const *x, float *const *y)
{
    if (w->type == QTYPE_NEST2) k->nested(w, t0, n_tiles, n_rows, x, y);
    else if (k->factored_few && n_rows <= FACTORED_FEW) k->factored_few(w, t0, n_tiles, n_rows, x, y);
    else factored_mm(k, w, t0, n_tiles, n_rows, x, y);
}

/* ---- encoding ---------------------------------------------------------------------------- */

/* How much the squared error of each depth counts: about one over what it is for Gaussian weights,
 * the two deepest half as much. */
static const float depth_weight[STACK_NESTED + 1] = {1 / .118f, 1 / .0313f, 1 / .0074f,
                                                     .5f / .0019f, .5f / .0005f};

enum { NEAR_HALVES = 256, SCALES_AROUND = 6, SCALE_MAX = 0xf7 };

/* The nearest of the deepest magnitudes to i / 2, for i below NEAR_HALVES. */
static void make_nearest(uint8_t *at)
{
    const uint8_t *t = nest_table[STACK_NESTED];
    for (int i = 0, c = 0; i < NEAR_HALVES; i++) {
        while (c < 31 && i + 1 > t[c] + t[c + 1]) c++;
        at[i] = (uint8_t)c;
    }
}

/* The byte of the largest scale that is not above d. */
static int scale_byte(float d)
{
    const int b = f16_from_f32(d) >> 7;
    return b < 1 ? 1 : b > SCALE_MAX ? SCALE_MAX : b;
}

/* Codes of 64 magnitudes in units of the scale; returns what their errors cost, all depths. */
static float try_scale(const uint8_t *near, const float *mag, const float *weight, float d,
                       uint8_t *code)
{
    float sum[STACK_NESTED + 1] = {0}, all = 0;
    const float inv = 1 / d;
    for (int i = 0; i < 64; i++) {
        const float a = mag[i] * inv, h = 2 * a < NEAR_HALVES - 1 ? 2 * a : NEAR_HALVES - 1;
        code[i] = near[(int)h];
        for (int p = 0; p <= STACK_NESTED; p++) {
            const float e = a - (float)nest_table[p][code[i] >> (STACK_NESTED - p)];
            sum[p] += weight[i] * e * e;
        }
    }
    for (int p = 0; p <= STACK_NESTED; p++) all += depth_weight[p] * sum[p];
    return all * d * d;
}

static uint8_t encode_64(const uint8_t *near, const float *x, const float *weight, uint8_t *code)
{
    float mag[64], energy = 0, total = 0, best = INFINITY;
    uint8_t one[64];
    int found = 0;
    for (int i = 0; i < 64; i++) {
        mag[i] = fabsf(x[i]);
        energy += weight[i] * x[i] * x[i];
        total += weight[i];
    }
    memset(code, 0, 64);
    if (!(energy > 0)) return 0;
    /* A Gaussian block's scale is its deviation over 46. */
    const int middle = scale_byte(sqrtf(energy / total) / 46);
    for (int b = middle - SCALES_AROUND; b <= middle + SCALES_AROUND; b++) {
        if (b < 1 || b > SCALE_MAX) continue;
        const float cost = try_scale(near, mag, weight, scale_of(b), one);
        if (!(cost < best)) continue;
        best = cost;
        found = b;
        memcpy(code, one, 64);
    }
    for (int i = 0; i < 64; i++) code[i] |= (uint8_t)(x[i] < 0 ? 32 : 0);
    return (uint8_t)found;
}

void nest_encode(const float *x, const float *weight, int n, uint8_t *scale, uint8_t *code)
{
    uint8_t near[NEAR_HALVES];
    make_nearest(near);
    for (int i = 0; i < n; i += 64) scale[i / 64] = encode_64(near, x + i, weight + i, code + i);
}
