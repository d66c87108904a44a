/* See part.h.
 *
 * DESIGN.  Loading is a list of pieces, each some whole tiles of one part (about PIECE_BYTES of
 * file).  A worker reads a piece into its own staging buffer and packs it into place; pieces do not
 * overlap, so there is nothing to lock but the first error. */
#include "offload/part.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe/base/f16.h"
#include "quant/codec.h"
#include "quant/mm.h"

enum { PART_ALIGN = 64, PIECE_BYTES = 2 << 20 };

static uint64_t align_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

static void fill_part(struct part *p, const struct weight *w, int index, int mat)
{
    const struct gguf_tensor *t = w->src[w->n_src == 1 ? 0 : mat];
    const uint64_t row = qtype_bytes(w->type, (uint64_t)w->n_cols);
    uint64_t skip = (uint64_t)w->row0 * row;
    if (w->n_src == 1) skip += (uint64_t)mat * (uint64_t)w->n_all * row;
    p->weight = index;
    p->mat = mat;
    p->row0 = w->row0;
    p->n_rows = w->n_rows;
    p->n_levels = 1;
    p->n_extents = 1;
    p->extent[0] = (struct part_extent){t->shard, t->offset + skip, w->mat_file_bytes};
    p->bytes = w->mat_bytes;
}

enum status part_store_open(struct part_store *s, const struct weights *ws, struct err *e)
{
    memset(s, 0, sizeof *s);
    s->weights = ws;
    s->part = calloc((size_t)ws->n_parts + 1, sizeof *s->part);
    if (!s->part) return err_set(e, ERR_MEMORY, "no memory for %d parts", ws->n_parts);
    for (int i = 0; i < ws->n; i++) {
        for (int m = 0; m < ws->at[i].n_mats; m++) {
            struct part *p = &s->part[s->n_parts++];
            fill_part(p, &ws->at[i], i, m);
            p->offset = s->bytes;
            s->bytes += align_up(p->bytes, PART_ALIGN);
        }
    }
    return OK;
}

void part_store_close(struct part_store *s)
{
    region_release(&s->region);
    for (int i = 0; i < s->n_files; i++) osfile_close(&s->file[i]);
    free(s->file);
    free(s->part);
    memset(s, 0, sizeof *s);
}

const void *part_pin(struct part_store *s, int part)
{
    ASSERT(s->loaded && part >= 0 && part < s->n_parts);
    return (const char *)s->region.base + s->part[part].offset;
}

void part_unpin(struct part_store *s, int part) { ASSERT(part >= 0 && part < s->n_parts); }

/* ---- loading ---- */

struct piece {
    int part, row0, n_rows;
};

struct loader {
    struct part_store *store;
    const struct part_load *how;
    struct piece *piece;
    int n_pieces;
    struct region *staging; /* [pool_size] */
    atomic_int failed;
    pthread_mutex_t lock; /* first error, progress and the warnings */
    struct err err;
    uint64_t done, total;
    unsigned char *warned; /* [n weights] */
};

static uint64_t row_file_bytes(const struct weight *w)
{
    return qtype_bytes(w->type, (uint64_t)w->n_cols);
}

/* Rows per piece: whole tiles, about PIECE_BYTES of file. */
static int piece_rows(const struct weight *w)
{
    uint64_t n = PIECE_BYTES / row_file_bytes(w) / TILE_ROWS * TILE_ROWS;
    if (n < TILE_ROWS) n = TILE_ROWS;
    return n < (uint64_t)w->n_rows ? (int)n : w->n_rows;
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

/* Every value of a float type, every scale of a quantised one. */
static bool has_nan(enum qtype type, const char *p, uint64_t bytes)
{
    const struct qtype_info *info = qtype_info(type);
    const uint64_t stride = (uint64_t)info->block_bytes, n = bytes / stride;
    switch (type) {
    case QTYPE_F32:
        for (uint64_t i = 0; i < n; i++) {
            uint32_t u;
            memcpy(&u, p + 4 * i, sizeof u);
            if ((u & 0x7fffffffu) > 0x7f800000u) return true;
        }
        return false;
    case QTYPE_BF16:
        for (uint64_t i = 0; i < n; i++) {
            uint16_t u;
            memcpy(&u, p + 2 * i, sizeof u);
            if ((u & 0x7fffu) > 0x7f80u) return true;
        }
        return false;
    case QTYPE_F16:
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
    case QTYPE_MXFP4: /* every scale byte of these is a number */
    case QTYPE_NVFP4:
    case QTYPE_ID_END: break;
    }
    return false;
}

static void loader_fail(struct loader *l, const struct err *e)
{
    pthread_mutex_lock(&l->lock);
    if (!l->err.code) l->err = *e;
    pthread_mutex_unlock(&l->lock);
    atomic_store(&l->failed, 1);
}

static void loader_report(struct loader *l, const struct part *p, uint64_t bytes, bool nan)
{
    const struct weight *w = &l->store->weights->at[p->weight];
    const struct gguf_tensor *t = w->src[w->n_src == 1 ? 0 : p->mat];
    pthread_mutex_lock(&l->lock);
    l->done += bytes;
    if (nan && !l->warned[p->weight] && l->how->warn) {
        char text[512];
        (void)snprintf(text, sizeof text,
                       "%s: tensor %.*s holds NaN: what the model says will be unusable",
                       gguf_path(l->store->weights->file, t->shard), (int)t->name.n, t->name.s);
        l->warned[p->weight] = 1;
        l->how->warn(l->how->warn_arg, text);
    }
    if (l->how->progress && !l->how->progress(l->how->progress_arg, l->done, l->total) &&
        !l->err.code) {
        err_set(&l->err, ERR_CANCELLED, "loading was interrupted");
        atomic_store(&l->failed, 1);
    }
    pthread_mutex_unlock(&l->lock);
}

static void place(const struct weight *w, const struct piece *pc, const char *rows, char *dst)
{
    const uint64_t row_bytes = row_file_bytes(w);
    switch (w->layout) {
    case WEIGHT_ROWS:
        memcpy(dst + (uint64_t)pc->row0 * row_bytes, rows, (uint64_t)pc->n_rows * row_bytes);
        break;
    case WEIGHT_VECTOR:
        codec_decode(w->type, rows, (float *)(void *)dst + (size_t)pc->row0 * (size_t)w->n_cols,
                     (int64_t)pc->n_rows * w->n_cols);
        break;
    case WEIGHT_TILES: {
        const size_t tb = tile_bytes(w->type, w->n_cols);
        for (int r = 0; r < pc->n_rows; r += TILE_ROWS) {
            int n = pc->n_rows - r < TILE_ROWS ? pc->n_rows - r : TILE_ROWS;
            tile_pack(w->type, w->n_cols, n, rows + (uint64_t)r * row_bytes, row_bytes,
                      dst + (uint64_t)((pc->row0 + r) / TILE_ROWS) * tb);
        }
        break;
    }
    }
}

static void load_piece(void *arg, int task, int worker)
{
    struct loader *l = arg;
    if (atomic_load(&l->failed)) return;
    const struct piece *pc = &l->piece[task];
    const struct part *p = &l->store->part[pc->part];
    const struct weight *w = &l->store->weights->at[p->weight];
    const uint64_t row_bytes = row_file_bytes(w), bytes = (uint64_t)pc->n_rows * row_bytes;
    char *buf = l->staging[worker].base;
    struct err e;
    err_clear(&e);
    if (osfile_read(&l->store->file[p->extent[0].shard], buf, bytes,
                    p->extent[0].offset + (uint64_t)pc->row0 * row_bytes, &e)) {
        loader_fail(l, &e);
        return;
    }
    place(w, pc, buf, (char *)l->store->region.base + p->offset);
    loader_report(l, p, bytes, has_nan(w->type, buf, bytes));
}

uint64_t part_store_staging(const struct part_store *s)
{
    uint64_t max = 0;
    for (int i = 0; i < s->n_parts; i++) {
        const struct weight *w = &s->weights->at[s->part[i].weight];
        const uint64_t bytes = (uint64_t)piece_rows(w) * row_file_bytes(w);
        if (bytes > max) max = bytes;
    }
    return max;
}

static enum status list_pieces(struct loader *l, struct err *e)
{
    const struct part_store *s = l->store;
    int n = 0;
    for (int i = 0; i < s->n_parts; i++) {
        const struct weight *w = &s->weights->at[s->part[i].weight];
        int step = piece_rows(w);
        n += (w->n_rows + step - 1) / step;
        l->total += w->mat_file_bytes;
    }
    l->piece = calloc((size_t)n + 1, sizeof *l->piece);
    l->warned = calloc((size_t)s->weights->n + 1, 1);
    if (!l->piece || !l->warned) return err_set(e, ERR_MEMORY, "no memory for the loader");
    for (int i = 0; i < s->n_parts; i++) {
        const struct weight *w = &s->weights->at[s->part[i].weight];
        int step = piece_rows(w);
        for (int r = 0; r < w->n_rows; r += step) {
            int rows = w->n_rows - r < step ? w->n_rows - r : step;
            l->piece[l->n_pieces++] = (struct piece){i, r, rows};
        }
    }
    return OK;
}

static enum status open_files(struct part_store *s, const struct osfile_ops *ops, struct err *e)
{
    int n = gguf_n_shards(s->weights->file);
    s->file = calloc((size_t)n, sizeof *s->file);
    if (!s->file) return err_set(e, ERR_MEMORY, "no memory for %d files", n);
    for (int i = 0; i < n; i++) {
        if (osfile_open(&s->file[i], gguf_path(s->weights->file, i), 0, ops, e)) return e->code;
        s->n_files++;
    }
    return OK;
}

enum status part_store_load(struct part_store *s, const struct part_load *how, struct err *e)
{
    struct err local;
    if (!e) e = &local;
    err_clear(e);
    struct loader l = {.store = s, .how = how};
    const int n_workers = pool_size(how->pool);
    const uint64_t staging_bytes = part_store_staging(s);
    pthread_mutex_init(&l.lock, NULL);
    l.staging = calloc((size_t)n_workers, sizeof *l.staging);
    if (!l.staging) err_set(e, ERR_MEMORY, "no memory for the loader");
    if (!e->code) (void)open_files(s, how->ops, e);
    if (!e->code) (void)list_pieces(&l, e);
    if (!e->code) (void)region_reserve(&s->region, how->ledger, MEM_WEIGHTS, s->bytes, e);
    if (!e->code) (void)region_commit(&s->region, s->bytes, e);
    for (int i = 0; i < n_workers && !e->code; i++) {
        (void)region_reserve(&l.staging[i], how->ledger, MEM_STAGING, staging_bytes, e);
        if (!e->code) (void)region_commit(&l.staging[i], staging_bytes, e);
    }
    if (!e->code) pool_run(how->pool, load_piece, &l, l.n_pieces);
    if (!e->code && l.err.code) *e = l.err;
    for (int i = 0; l.staging && i < n_workers; i++) region_release(&l.staging[i]);
    free(l.staging);
    free(l.piece);
    free(l.warned);
    pthread_mutex_destroy(&l.lock);
    s->loaded = !e->code;
    return e->code;
}
