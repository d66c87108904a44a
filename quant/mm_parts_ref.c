/* The reference kernels of the types in parts_int.h: plain C, exactly the order that
 * quant/README.md fixes and every other tier repeats.  Owns nothing.
 *
 * DESIGN: a row's block is taken apart once and meets every prepared row; the output element itself
 * is the accumulator. */
#include <math.h>
#include <string.h>

#include "quant/mm_int.h"
#include "quant/parts_int.h"

static float load_f32(const char *p)
{
    float v;
    memcpy(&v, p, 4);
    return v;
}

static int dot(const int8_t *q, const int8_t *a, int n)
{
    int s = 0;
    for (int i = 0; i < n; i++) s += q[i] * a[i];
    return s;
}

static int sum(const int8_t *a, int n)
{
    int s = 0;
    for (int i = 0; i < n; i++) s += a[i];
    return s;
}

/* acc plus the block's products with n activations at a; da is their scale. */
static float block_step(enum qtype type, const struct parts *p, const int8_t *a, float da, int n,
                        float acc)
{
    int isum = 0, msum = 0;
    if (n == 32) {
        isum = dot(p->q, a, 32);
        msum = sum(a, 32);
    }
    for (int s = 0; n == 256 && s < 16; s++) {
        isum += p->scale[s] * dot(p->q + 16 * s, a + 16 * s, 16);
        if (parts_has_min(type)) msum += p->min[s] * sum(a + 16 * s, 16);
    }
    acc = fmaf(p->d * da, (float)isum, acc);
    return parts_has_min(type) ? fmaf(p->m * da, (float)msum, acc) : acc;
}

static float step(enum qtype type, const struct parts *p, const int8_t *x, int n_cols, int b,
                  float acc)
{
    const char *da = (const char *)x + n_cols;
    if (type == QTYPE_NVFP4) {
        for (int s = 0; s < 4; s++) {
            int isum = dot(p->q + 16 * s, x + 64 * b + 16 * s, 16);
            acc = fmaf(p->d16[s] * load_f32(da + 8 * b + s / 2 * 4), (float)isum, acc);
        }
        return acc;
    }
    const int n = qtype_info((uint32_t)type)->block;
    return block_step(type, p, x + n * b, load_f32(da + 4 * b), n, acc);
}

static void mm_parts(enum qtype type, int n_cols, int n_tiles, const void *w, int n_rows,
                     const void *const *x, float *const *y)
{
    const struct qtype_info *t = qtype_info((uint32_t)type);
    const uint8_t *column = w;
    for (int i = 0; i < n_tiles; i++) {
        for (int r = 0; r < n_rows; r++) memset(y[r] + TILE_ROWS * i, 0, 4 * TILE_ROWS);
        for (int b = 0; b < n_cols / t->block; b++, column += TILE_ROWS * t->block_bytes)
            for (int lane = 0; lane < TILE_ROWS; lane++) {
                uint8_t block[256];
                struct parts p;
                tile_gather(type, column, lane, block);
                parts_of(type, block, &p);
                for (int r = 0; r < n_rows; r++) {
                    float *acc = y[r] + TILE_ROWS * i + lane;
                    *acc = step(type, &p, x[r], n_cols, b, *acc);
                }
            }
    }
}

#define MM(TYPE)                                                                                 \
    void mm_ref_##TYPE(int n_cols, int n_tiles, const void *w, int n_rows, const void *const *x, \
                       float *const *y)                                                          \
    {                                                                                            \
        mm_parts(QTYPE_##TYPE, n_cols, n_tiles, w, n_rows, x, y);                                \
    }
MM_PARTS_TYPES(MM)
