/* Products of weight tiles with prepared activation rows: the canonical arithmetic.
 *
 * A TILE is 16 rows of a weight matrix, interleaved so that one SIMD lane is one output row:
 * there are no horizontal sums, and an output element is summed in one fixed order whatever the
 * tier, the number of rows, the thread count or the batch (quant/README.md has the layouts and the
 * order per type).  All tiers agree bit for bit.  Tiles have exactly the bytes of 16 GGUF rows; a
 * matrix whose row count is no multiple of 16 ends in a tile padded with zero rows.
 *
 * Pure functions on the caller's memory; any thread. */
#ifndef QUANT_MM_H
#define QUANT_MM_H

#include <stddef.h>
#include <stdint.h>

#include "moe/base/cpu.h"
#include "moe/base/err.h"
#include "quant/qtype.h"

enum { TILE_ROWS = 16, FACTORED_FEW = 8 };

struct stacked;

/* Bytes of one tile of a matrix with n_cols columns. */
static inline size_t tile_bytes(enum qtype type, int n_cols)
{
    return TILE_ROWS * qtype_bytes(type, (uint64_t)n_cols);
}

struct mm_kernels;

/* Interleaves up to 16 GGUF rows (row_bytes apart) into one tile; rows beyond n_rows become 0.
 * Reads nothing beyond the n_rows rows; rows need no alignment, a tile is 16-byte aligned. */
void tile_pack(const struct mm_kernels *k, enum qtype type, int n_cols, int n_rows, const void *rows,
               size_t row_bytes, void *tile);

/* Reads row 0..15 of a tile back as floats: y[n_cols]. */
void tile_row_f32(enum qtype type, int n_cols, const void *tile, int row, float *y);

/* Bytes of a prepared activation row of n_cols elements; a multiple of 64.  Layout:
 *   ACT_F32     float x[n]
 *   ACT_Q8_32   int8 q[n] | float d[n/32]  | int32 s32[n/32]
 *   ACT_Q8_64   int8 q[n] | float d[n/64]  | int32 s64[n/64]
 *   ACT_Q8_256  int8 q[n] | float d[n/256] | int16 s16[n/16] | int16 s32[n/32]
 * with q = round-to-nearest-even(x * (127/amax)), d = amax/127, and s16, s32, s64 the sums of q over
 * 16, 32 and 64 neighbours; rest 0.  q = 0 and d = 0 where amax is below 2^-120 (127/amax must be finite);
 * a block with an infinity or a NaN in it gets q = 0 and d = NaN, so that its products are NaN. */
static inline size_t act_bytes(enum act_kind kind, int n_cols)
{
    const size_t n = (size_t)n_cols;
    size_t bytes = 4 * n;
    if (kind == ACT_Q8_32) bytes = n + n / 32 * 8;
    if (kind == ACT_Q8_64) bytes = n + n / 64 * 8;
    if (kind == ACT_Q8_256) bytes = n + n / 256 * 4 + n / 16 * 2 + n / 32 * 2;
    return (bytes + 63) / 64 * 64;
}

/* dst[j][r] = flip ^ dword j of src[r] + at, for j < n and r < TILE_ROWS; no alignment. */
typedef void turn_fn(const uint8_t *const *src, size_t at, int n, uint32_t flip, uint8_t *dst);

struct mm_kernels {
    turn_fn *turn; /* what packs tiles */

    /* Prepares one row; out is 64-byte aligned. */
    void (*act[ACT_N])(int n_cols, const float *x, void *out);

    /* y[r][0 .. 16*n_tiles) = tiles * x[r] for n_rows >= 1 prepared rows.  w points to n_tiles
     * consecutive tiles, 64-byte aligned as are x[r]; every y[r] has room for 16*n_tiles floats,
     * needs no alignment, and may lie anywhere (rows of a batch need no order).  Bytes behind the
     * tiles may be prefetched, never read.
     * NULL for a type without kernels.  Index: enum qtype. */
    void (*mm[QTYPE_ID_END])(int n_cols, int n_tiles, const void *w, int n_rows,
                             const void *const *x, float *const *y);

    /* Stacked matrices (quant/stack.h).  nested: products of that codec, tiles t0 .. of w, as mm[] does
     * them.  Of the other codec: one tile as a tile of F32, and, where the tier has it (else NULL),
     * products with at most FACTORED_FEW rows. */
    void (*nested)(const struct stacked *w, int t0, int n_tiles, int n_rows, const void *const *x,
                   float *const *y);
    void (*factored_tile)(const struct stacked *w, int t, float *tile);
    void (*factored_few)(const struct stacked *w, int t0, int n_tiles, int n_rows,
                         const void *const *x, float *const *y);

    /* n times what the tier's integer dot product can do at best: as many independent ones as hide
     * its latency, on registers.  Returns the multiply-accumulates done; NULL in plain C. */
    uint64_t (*peak)(int n);
};

/* The kernels of a tier: reference first, then overwritten tier by tier.  Valid forever. */
const struct mm_kernels *mm_kernels(enum cpu_tier tier);

/* The ceiling of integer products: 1e9 multiply-accumulates per second that n_threads reach
 * together with `peak`, best of some passes; 0 in plain C.  Takes a quarter of a second. */
enum status mm_measure_peak(enum cpu_tier tier, int n_threads, double *gmac_per_s, struct err *e);

#endif
