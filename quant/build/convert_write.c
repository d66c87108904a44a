/* See convert.h: writing.
 *
 * A piece is some rows of one matrix.  Its values lie in one range of the source, which is read at
 * once; the rows are then gathered, decoded, scaled and encoded by the pool.  Matrices that have to
 * be turned are one piece. */
#include <string.h>
#include <stdlib.h>

#include "quant/build/convert.h"
#include "quant/codec.h"

enum { PIECE_BYTES = 4 << 20, TASK_VALUES = 1 << 15 };

struct job {
    struct convert *c;
    struct pool *pool;
    enum cpu_tier tier;
    const struct convert_tensor *t;
    const struct st_tensor *src; /* of the matrix */
    uint64_t mat;                /* of that source */
    /* the piece: rows row0 .. of it, values lo .. of the source */
    uint64_t row0, n_rows, lo, task_rows;
    char *raw, *out;
    uint64_t raw_cap, out_cap;
    /* a row of each worker, as floats and as it stands in the source */
    float *x;
    char *gathered;
    uint64_t row_cap;
    /* FP8: a scale for every blk_rows x blk_cols values of the source, n_blk of them in a row */
    float *scale;
    uint64_t blk_rows, blk_cols, n_blk;
    bool scaled;

    bool (*progress)(void *arg, uint64_t done, uint64_t total);
    void *arg;
    uint64_t done;
};

static enum status grow(void **p, uint64_t *cap, uint64_t need, struct err *e)
{
    if (need <= *cap) return OK;
    void *q = need > SIZE_MAX / 2 ? NULL : malloc((size_t)need);
    if (!q)
        return err_set(e, ERR_MEMORY, "no memory for a piece of %llu bytes",
                       (unsigned long long)need);
    free(*p);
    *p = q;
    *cap = need;
    return OK;
}

static enum status put(struct job *j, const void *data, uint64_t bytes, struct err *e)
{
    enum status s = gguf_writer_data(j->c->w, data, bytes, e);
    j->done += bytes;
    if (!s && j->progress && !j->progress(j->arg, j->done, j->c->bytes_out))
        s = err_set(e, ERR_CANCELLED, "interrupted");
    return s;
}

/* ---- FP8 scales ---- */

static enum status read_scales(struct job *j, struct err *e)
{
    const struct hf_model *m = &j->c->model;
    const struct st_tensor *s = j->src, *x;
    char name[600];
    j->scaled = s->type == ST_F8_E4M3;
    if (!j->scaled) return OK;
    (void)snprintf(name, sizeof name, "%.512s_scale_inv", s->name);
    x = st_find(j->c->st, name);
    if (!x)
        return err_set(e, ERR_MISSING, "%s: tensor %.200s has no %.200s",
                       st_path(j->c->st, s->shard), s->name, name);
    const uint64_t rows = s->n_dims == 2 ? s->dim[0] : 0, cols = s->n_dims == 2 ? s->dim[1] : 0;
    j->blk_rows = m->fp8_rows ? (uint64_t)m->fp8_rows : rows;
    j->blk_cols = m->fp8_cols ? (uint64_t)m->fp8_cols : cols;
    const uint64_t down = rows ? (rows + j->blk_rows - 1) / j->blk_rows : 0;
    j->n_blk = cols ? (cols + j->blk_cols - 1) / j->blk_cols : 0;
    const uint64_t n = x->dim[0] * x->dim[1] * x->dim[2] * x->dim[3];
    const bool fits = m->fp8_rows ? x->n_dims == 2 && x->dim[0] == down && x->dim[1] == j->n_blk
                                  : n == 1;
    if (!n || !rows || !fits || (x->type != ST_F32 && x->type != ST_BF16 && x->type != ST_F16))
        return err_set(e, ERR_SHAPE, "%s: tensor %.200s [%llu, %llu] of type %s does not fit the "
                       "values that it scales", st_path(j->c->st, x->shard), x->name,
                       (unsigned long long)x->dim[0], (unsigned long long)x->dim[1], x->type_name);
    free(j->scale);
    j->scale = malloc((size_t)n * sizeof *j->scale);
    char *raw = malloc((size_t)x->bytes);
    enum status st = j->scale && raw ? st_read(j->c->st, x, raw, x->bytes, 0, e)
                                     : err_set(e, ERR_MEMORY, "no memory for the scales of %.100s",
                                               s->name);
    if (!st) st_decode(x->type, raw, j->scale, n);
    free(raw);
    return st;
}

static void apply_scales(const struct job *j, uint64_t first, uint64_t step, float *x, uint64_t n)
{
    const uint64_t cols = j->src->dim[1];
    for (uint64_t i = 0; i < n; i++) {
        const uint64_t at = first + i * step;
        x[i] *= j->scale[at / cols / j->blk_rows * j->n_blk + at % cols / j->blk_cols];
    }
}

/* ---- pieces ---- */

/* Where row r of the matrix lies: pairs come from the two halves of a head. */
static uint64_t source_row(const struct convert_tensor *t, uint64_t r)
{
    if (!t->head_rows) return r;
    const uint64_t in = r % t->head_rows;
    return r - in + in / 2 + in % 2 * (t->head_rows / 2);
}

static uint64_t first_value(const struct job *j, uint64_t row)
{
    return j->t->off + j->mat * j->t->mat_step + row * j->t->row_step;
}

static void encode_rows(void *arg, int task, int worker)
{
    const struct job *j = arg;
    const struct convert_tensor *t = j->t;
    const uint64_t n = t->n_cols, width = (uint64_t)st_width(j->src->type);
    const uint64_t out_row = qtype_bytes(t->type, n);
    float *x = j->x + (uint64_t)worker * j->row_cap;
    char *g = j->gathered + (uint64_t)worker * j->row_cap * 4;
    const uint64_t from = (uint64_t)task * j->task_rows;
    const uint64_t to = from + j->task_rows < j->n_rows ? from + j->task_rows : j->n_rows;
    for (uint64_t r = from; r < to; r++) {
        const uint64_t at = first_value(j, source_row(t, j->row0 + r));
        const char *p = j->raw + (at - j->lo) * width;
        if (t->col_step > 1) {
            for (uint64_t i = 0; i < n; i++)
                memcpy(g + i * width, p + i * t->col_step * width, (size_t)width);
            p = g;
        }
        st_decode(j->src->type, p, x, n);
        if (j->scaled) apply_scales(j, at, t->col_step, x, n);
        codec_encode(j->tier, t->type, x, NULL, j->out + r * out_row, (int64_t)n);
    }
}

/* Values of the source from the first of the piece to the last. */
static uint64_t span(const struct job *j)
{
    return (j->n_rows - 1) * j->t->row_step + (j->t->n_cols - 1) * j->t->col_step + 1;
}

static enum status write_piece(struct job *j, struct err *e)
{
    const uint64_t width = (uint64_t)st_width(j->src->type), n = span(j);
    const uint64_t bytes = j->n_rows * qtype_bytes(j->t->type, j->t->n_cols);
    enum status s;
    j->lo = first_value(j, j->row0);
    if ((s = grow((void **)&j->raw, &j->raw_cap, n * width, e)) ||
        (s = grow((void **)&j->out, &j->out_cap, bytes, e)) ||
        (s = st_read(j->c->st, j->src, j->raw, n * width, j->lo * width, e)))
        return s;
    j->task_rows = j->t->n_cols < TASK_VALUES ? TASK_VALUES / j->t->n_cols : 1;
    pool_run(j->pool, encode_rows, j, (int)((j->n_rows + j->task_rows - 1) / j->task_rows));
    return put(j, j->out, bytes, e);
}

/* Value k of 32 is a nibble of byte k / 2 there; here the first 16 have the low nibbles. */
static void repack(const uint8_t *from, uint8_t scale, uint8_t *to)
{
    to[0] = scale;
    for (int k = 0; k < 16; k++) {
        const int shift = k % 2 * 4;
        to[1 + k] = (uint8_t)((from[k / 2] >> shift & 15) | (from[8 + k / 2] >> shift & 15) << 4);
    }
}

static enum status write_mxfp4(struct job *j, struct err *e)
{
    const struct convert_tensor *t = j->t;
    const uint64_t row = t->n_cols / 32, n = (j->n_rows - 1) * t->row_step + row;
    const uint64_t lo = first_value(j, j->row0), bytes = j->n_rows * row * 17;
    enum status s;
    if ((s = grow((void **)&j->raw, &j->raw_cap, n * 17, e)) ||
        (s = grow((void **)&j->out, &j->out_cap, bytes, e)) ||
        (s = st_read(j->c->st, j->src, j->raw, n * 16, lo * 16, e)) ||
        (s = st_read(j->c->st, t->scales, j->raw + n * 16, n, lo, e)))
        return s;
    const uint8_t *blocks = (const uint8_t *)j->raw, *scales = blocks + n * 16;
    for (uint64_t r = 0; r < j->n_rows; r++)
        for (uint64_t i = 0; i < row; i++) {
            const uint64_t at = r * t->row_step + i;
            repack(blocks + at * 16, scales[at], (uint8_t *)j->out + (r * row + i) * 17);
        }
    return put(j, j->out, bytes, e);
}

/* ---- tensors ---- */

/* Rows per piece. */
static uint64_t rows_per_piece(const struct convert_tensor *t)
{
    const uint64_t unit = t->head_rows ? t->head_rows : 1;
    if (t->col_step > t->row_step) return t->n_rows; /* turned: its rows lie across everything */
    const uint64_t wide = t->row_step > t->n_cols ? t->row_step : t->n_cols;
    const uint64_t rows = PIECE_BYTES / 4 / wide / unit * unit;
    return rows ? rows : unit;
}

static enum status write_tensor(struct job *j, const struct convert_tensor *t, struct err *e)
{
    const uint64_t step = rows_per_piece(t);
    enum status s = OK;
    j->t = t;
    for (uint64_t mat = 0; mat < t->n_mats && !s; mat++) {
        j->src = j->c->src[t->first_src + (t->n_src > 1 ? mat : 0)];
        j->mat = t->n_src > 1 ? 0 : mat;
        if (!mat || t->n_src > 1) s = read_scales(j, e);
        for (j->row0 = 0; j->row0 < t->n_rows && !s; j->row0 += step) {
            j->n_rows = t->n_rows - j->row0 < step ? t->n_rows - j->row0 : step;
            s = t->scales ? write_mxfp4(j, e) : write_piece(j, e);
        }
    }
    return s;
}

static enum status room_for_rows(struct job *j, struct err *e)
{
    j->row_cap = 1;
    for (uint32_t i = 0; i < j->c->n; i++)
        if (j->c->tensor[i].n_cols > j->row_cap) j->row_cap = j->c->tensor[i].n_cols;
    const uint64_t bytes = j->row_cap * 4 * (uint64_t)pool_size(j->pool);
    uint64_t cap = 0;
    enum status s = grow((void **)&j->x, &cap, bytes, e);
    cap = 0;
    return s ? s : grow((void **)&j->gathered, &cap, bytes, e);
}

enum status convert_write(struct convert *c, const char *out, struct pool *pool,
                          bool (*progress)(void *arg, uint64_t done, uint64_t total), void *arg,
                          struct err *e)
{
    struct job j = {.c = c, .pool = pool, .tier = cpu_tier_best(), .progress = progress,
                    .arg = arg};
    enum status s = room_for_rows(&j, e);
    if (!s) s = gguf_writer_begin(c->w, out, e);
    for (uint32_t i = 0; i < c->n && !s; i++) {
        const struct convert_tensor *t = &c->tensor[i];
        s = t->n_src ? write_tensor(&j, t, e) : put(&j, c->model.rope_freqs, t->bytes, e);
    }
    if (!s) s = gguf_writer_end(c->w, e);
    free(j.raw);
    free(j.out);
    free(j.x);
    free(j.gathered);
    free(j.scale);
    return s;
}
