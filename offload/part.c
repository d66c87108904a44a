/* See part.h. */
#include "offload/part.h"

#include <stdlib.h>
#include <string.h>

#include "quant/codec.h"
#include "quant/mm.h"

static void fill_part(struct part *p, const struct weight *w, int index, int mat)
{
    const struct gguf_tensor *t = w->src[w->n_src == 1 ? 0 : mat];
    const uint64_t row = part_row_bytes(w);
    uint64_t skip = (uint64_t)w->row0 * row;
    if (w->n_src == 1) skip += (uint64_t)mat * (uint64_t)w->n_all * row;
    p->weight = index;
    p->mat = mat;
    p->row0 = w->row0;
    p->n_rows = w->n_rows;
    p->extent = (struct part_extent){t->shard, t->offset + skip, w->mat_file_bytes};
    p->bytes = w->mat_bytes;
}

enum status part_table_open(struct part_table *t, const struct weights *ws, struct err *e)
{
    memset(t, 0, sizeof *t);
    t->weights = ws;
    t->kernels = mm_kernels(cpu_tier_best());
    t->part = calloc((size_t)ws->n_parts + 1, sizeof *t->part);
    if (!t->part) return err_set(e, ERR_MEMORY, "no memory for %d parts", ws->n_parts);
    for (int i = 0; i < ws->n; i++) {
        for (int m = 0; m < ws->at[i].n_mats; m++) {
            fill_part(&t->part[t->n_parts], &ws->at[i], i, m);
            t->bytes += t->part[t->n_parts++].bytes;
        }
    }
    return OK;
}

void part_table_close(struct part_table *t)
{
    free(t->part);
    memset(t, 0, sizeof *t);
}

uint64_t part_row_bytes(const struct weight *w) { return qtype_bytes(w->type, (uint64_t)w->n_cols); }

int part_piece_rows(const struct weight *w)
{
    uint64_t n = PART_PIECE / part_row_bytes(w) / TILE_ROWS * TILE_ROWS;
    if (n < TILE_ROWS) n = TILE_ROWS;
    return n < (uint64_t)w->n_rows ? (int)n : w->n_rows;
}

uint64_t part_rows_bytes(const struct weight *w, int n_rows)
{
    switch (w->layout) {
    case WEIGHT_TILES:
        return (uint64_t)((n_rows + TILE_ROWS - 1) / TILE_ROWS) * tile_bytes(w->type, w->n_cols);
    case WEIGHT_ROWS: return part_row_bytes(w) * (uint64_t)n_rows;
    case WEIGHT_VECTOR: return sizeof(float) * (uint64_t)w->n_cols * (uint64_t)n_rows;
    }
    return 0;
}

void part_pack(const struct part_table *t, const struct weight *w, int row0, int n_rows,
               const char *rows, char *dst)
{
    const uint64_t row_bytes = part_row_bytes(w);
    dst += part_rows_bytes(w, row0);
    switch (w->layout) {
    case WEIGHT_ROWS: memcpy(dst, rows, (uint64_t)n_rows * row_bytes); break;
    case WEIGHT_VECTOR:
        codec_decode(w->type, rows, (float *)(void *)dst, (int64_t)n_rows * w->n_cols);
        break;
    case WEIGHT_TILES: {
        const size_t tb = tile_bytes(w->type, w->n_cols);
        for (int r = 0; r < n_rows; r += TILE_ROWS)
            tile_pack(t->kernels, w->type, w->n_cols,
                      n_rows - r < TILE_ROWS ? n_rows - r : TILE_ROWS,
                      rows + (uint64_t)r * row_bytes, row_bytes,
                      dst + (uint64_t)(r / TILE_ROWS) * tb);
        break;
    }
    }
}

static bool halves_have_nan(const char *p, uint64_t n, uint64_t stride)
{
    for (uint64_t i = 0; i < n; i++, p += stride) {
        uint16_t h;
        memcpy(&h, p, sizeof h);
        if ((h & 0x7fffu) > 0x7c00u) return true;
    }
    return false;
}

/* Is one of the lanes of 16 or 32 bits, its sign apart, above a limit?  Eight bytes at once: adding
 * what is missing to the largest magnitude carries into the sign, and into no other lane. */
static bool lanes_above(const char *p, uint64_t bytes, uint64_t magnitude, uint64_t limit)
{
    uint64_t any = 0;
    for (uint64_t i = 0; i < bytes; i += 8) {
        uint64_t w = 0;
        memcpy(&w, p + i, bytes - i < 8 ? bytes - i : 8);
        any |= ((w & magnitude) + (magnitude - limit)) & ~magnitude;
    }
    return any;
}

bool part_has_nan(enum qtype type, const char *p, uint64_t bytes)
{
    const struct qtype_info *info = qtype_info(type);
    const uint64_t stride = (uint64_t)info->block_bytes, n = bytes / stride;
    switch (type) {
    case QTYPE_F32: return lanes_above(p, bytes, 0x7fffffff7fffffff, 0x7f8000007f800000);
    case QTYPE_BF16: return lanes_above(p, bytes, 0x7fff7fff7fff7fff, 0x7f807f807f807f80);
    case QTYPE_F16: return lanes_above(p, bytes, 0x7fff7fff7fff7fff, 0x7c007c007c007c00);
    case QTYPE_Q8_0:
    case QTYPE_Q4_0:
    case QTYPE_Q5_0:
    case QTYPE_IQ4_NL:
    case QTYPE_IQ4_XS:
    case QTYPE_IQ3_S:
    case QTYPE_IQ3_XXS:
    case QTYPE_IQ2_S:
    case QTYPE_IQ2_XS:
    case QTYPE_IQ2_XXS:
    case QTYPE_IQ1_S: return halves_have_nan(p, n, stride);
    case QTYPE_Q4_1:
    case QTYPE_Q5_1:
    case QTYPE_Q4_K:
    case QTYPE_Q5_K: return halves_have_nan(p, n, stride) || halves_have_nan(p + 2, n, stride);
    case QTYPE_Q2_K:
        return halves_have_nan(p + 80, n, stride) || halves_have_nan(p + 82, n, stride);
    case QTYPE_Q3_K: return halves_have_nan(p + 108, n, stride);
    case QTYPE_Q6_K: return halves_have_nan(p + 208, n, stride);
    case QTYPE_IQ1_M: /* the scale's nibbles are the top ones of four words */
        for (uint64_t i = 0; i < n; i++) {
            const unsigned char *w = (const unsigned char *)p + i * stride + 48;
            unsigned u = 0;
            for (int k = 0; k < 4; k++) u |= (unsigned)(w[2 * k + 1] >> 4) << 4 * k;
            if ((u & 0x7fffu) > 0x7c00u) return true;
        }
        return false;
    case QTYPE_NEST2: /* a scale is the top byte of a half, its sign left out */
        for (uint64_t i = 0; i < n; i++)
            if ((unsigned char)p[i * stride] > 0xf8) return true;
        return false;
    case QTYPE_SIGN1:
    case QTYPE_BYTES:
    case QTYPE_MXFP4: /* every scale byte of these is a number */
    case QTYPE_NVFP4:
    case QTYPE_ID_END: break;
    }
    return false;
}
