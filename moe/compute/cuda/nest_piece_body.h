/* Pieces of stacked matrices of the nested codec (quant/stack.h), a part of product.cu: blocks of 64 weights,
 * each with a float step of its own.
 *
 * DESIGN.  Experts of one launch have different depths.  Codes are put together as if all levels were there,
 * the missing ones being zero, four weights to a dword, and their magnitudes are looked up in the card's
 * memory: 32 bytes at the most, which L1 serves to a whole warp at once. */

enum { NESTED = 4 /* levels at most */ };

#define NEST_TABLE(name) TABLE uint8_t name[NESTED + 1][32]
#include "quant/nest_body.h"
#undef NEST_TABLE

/* Block i of a row of tile `at` of n_tiles; matrix: as moe/compute/dev.h has it. */
DEV struct term piece_nest(const uint8_t *matrix, int at, int n_tiles, int n, int lane, const char *x, int i)
{
    const size_t per_tile = (size_t)(n / 64), n_blocks = (size_t)n_tiles * per_tile;
    const size_t b = (size_t)at * per_tile + (size_t)i;
    const int depth = (int)gpu_load(matrix), missing = NESTED - depth;
    const uint8_t *c = matrix + TNEST_HEAD + b * TNEST2_BYTES;
    const uint8_t *level = matrix + TNEST_HEAD + (n_blocks * TNEST2_BYTES + 63) / 64 * 64 + b * TNEST_LEVEL;
    const uint8_t *magnitude = nest_table[depth];
    struct term t = {0, 0, 0, 0};
    for (int half = 0; half < 2; half++) {
        uint32_t h[NESTED];
        for (int l = 0; l < NESTED; l++)
            h[l] = l < depth ? field(level + (size_t)l * n_blocks * TNEST_LEVEL, lane, half) : 0;
        for (int k = 0; k < 8; k++) {
            const uint32_t two = field(c + TNEST2_Q, lane, 2 * half + k / 4) >> 2 * (k % 4);
            const uint32_t minus = ones(two, 1);
            uint32_t code = ones(two, 0), v = 0;
            for (int l = 0; l < NESTED; l++) code = code << 1 | ones(h[l], k);
            for (int j = 0; j < 4; j++) v |= (uint32_t)magnitude[code >> (8 * j + missing) & 31] << 8 * j;
            t.v = gpu_dot4((v ^ minus * 255) + minus, gpu_load(x + 64 * i + 32 * half + 4 * k), t.v);
        }
    }
    t.p = MUL(gpu_half((uint16_t)(c[lane] << 7)), load_float(x + n + 4 * i));
    return t;
}
