/* Stacked weights: a matrix as a base and levels above it, of which any prefix is a matrix.
 *
 * A level adds about one bit to every weight.  The runtime loads as many levels of each matrix as
 * its budget allows; the products here use those that are there and touch nothing else.  There are
 * two codecs:
 *
 *   nested    what is used.  A weight's code is a path in a binary tree: base = sign and first bit,
 *             level l = its next bit.  weight = scale * table[2 + depth][code]; one scale for 64
 *             weights serves all depths.  2.125 bits per weight, and 1 more per level.
 *   factored  BitStack's own (arXiv 2410.23918), for comparison: weight = sum over planes i of
 *             +-1 * sum over r < rank of u[i][row][r] v[i][r][column].
 *
 * Blocks, tiles, tables and the order of sums: quant/README.md, "Stacked weights".  A product of the
 * factored codec equals, bit for bit, that of the matrix expanded to F32.
 *
 * Pure functions on the caller's memory; any thread. */
#ifndef QUANT_STACK_H
#define QUANT_STACK_H

#include "quant/mm.h"

enum {
    STACK_LEVELS = 15,  /* levels above the base at most */
    STACK_NESTED = 4,   /* of the nested codec */
    STACK_RANK_MAX = 16,
};

/* A matrix as kernels see it.  Levels hold whole tiles, in the order of the base's. */
struct stacked {
    enum qtype type;                     /* QTYPE_NEST2 or QTYPE_SIGN1 */
    int n_cols, n_rows, rank;            /* rank: of the factored codec, else 0 */
    int depth;                           /* levels that are there */
    const void *base;                    /* tiles of type */
    const void *level[STACK_LEVELS + 1]; /* [1 .. depth]; [0]: the base's factors, factored only */
};

/* The most levels that a codec has, and bytes of level l of a matrix, a multiple of 64; l = 0: what
 * the base needs beside its tiles. */
int stack_levels(enum qtype type);
size_t stack_level_bytes(enum qtype type, int rank, int n_cols, int n_rows, int level);

/* y[r][0 .. 16 n_tiles) = tiles t0 .. of w times x[r], as mm[] does it. */
void stack_mm(const struct mm_kernels *k, const struct stacked *w, int t0, int n_tiles, int n_rows,
              const void *const *x, float *const *y);

/* Bytes of the caller's stack that a product takes at most, beside what every product takes. */
size_t stack_scratch(enum qtype type, int n_cols);
/* Row `row` of the matrix as floats: y[n_cols]. */
void stack_row_f32(const struct stacked *w, int row, float *y);

/* ---- the nested codec's encoder ---- */

/* The magnitudes of depth d, 2^(d+1) of them, rising; a code's sign is its top bit. */
extern const uint8_t nest_table[STACK_NESTED + 1][32];

/* A row of n weights, n a multiple of 64: a byte of scale for 64 of them, and codes of 6 bits: sign,
 * then five bits of magnitude from the top, so that a prefix is the code of a smaller depth.
 * weight[n] says how much each counts, positive. */
void nest_encode(const float *x, const float *weight, int n, uint8_t *scale, uint8_t *code);
/* What a code of 6 bits stands for at a depth. */
float nest_value(uint8_t scale, uint8_t code, int depth);
/* Puts codes in their places: a GGUF block of the base, and bit l of 64 codes of a tile's row in a
 * level's block column (128 bytes). */
void nest_put_base(uint8_t scale, const uint8_t *code, uint8_t *block);
void nest_put_level(const uint8_t *code, int level, int row, uint8_t *column);

/* ---- the factored codec's parts of a level ---- */

/* A level is v: half [rank][n_cols] | u: half [tiles][rank][16] | signs of [tiles], as in the base's
 * tiles, missing for level 0; each from a multiple of 64 bytes on. */
size_t fact_at_u(int rank, int n_cols);
size_t fact_at_signs(int rank, int n_cols, int n_rows);

#endif
