/* The CPU device: runs ops with the kernels of quant/ and elem.h on a thread pool.
 *
 * Owns nothing but its own small struct; allocates nothing while ops run.  It decides only how an
 * op is cut into tasks, which never changes a result: every output element is computed whole by one
 * kernel call (fixed arithmetic).
 *
 * DESIGN.  A product is cut into tasks of some neighbouring tiles times at most ROW_BLOCK rows.
 * Tasks that share tiles are neighbours, so in prefill a group of tiles stays in L2 while the rows
 * pass over it; in decode a task is a stretch of some hundred KiB that is read once, in order.
 * Experts run expert-major (see there), then each row sums its slots in router order. */
#include "moe/compute/dev.h"
#include "moe/compute/recur.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quant/codec.h"
#include "quant/stack.h"

enum {
    ROW_BLOCK = 128,       /* rows per task of a product */
    ATTN_ROWS = 16,        /* query rows per task of attention */
    ELEM_ROWS = 8,         /* rows per task of an elementwise op */
    SLOTS_MAX = 4096,      /* experts per token at most */
    HEAD_MAX = 512,        /* values per head at most */
    PAD_Q = 16,            /* query heads per KV head that are padded at once */
    /* Weight bytes of a task.  Few rows: the longer a thread reads in order, the better (96 KiB to
     * 1 MiB: 7 to 10 % less time per token, bench/README.md).  Many rows: the tiles and a block of
     * rows share L2. */
    TASK_BYTES_FEW = 1 << 20,
    TASK_BYTES_MANY = 96 << 10,
    TASK_BYTES_AMX = 512 << 10, /* the same where a task also copies its rows */
    FEW_ROWS = 16,
    TAIL_PARTS = 4,        /* the last tasks of few rows are so many times shorter */
};

struct dev {
    struct pool *pool;
    const struct mm_kernels *mm;
    const struct elem_kernels *el;
    const struct recur_kernels *rk;
    size_t task_bytes_many;
    dev_fence n_done;
};

/* Everything a task needs to know. */
struct job {
    const struct dev *d;
    const struct op *op;
    const struct dev_bind *b;
    int n_rows;
    /* products */
    int group[OP_IO];     /* tiles per task, fewer from tile tail_at on */
    int tail_at[OP_IO], tail_group[OP_IO];
    int n_groups[OP_IO];
    int n_row_blocks;
    struct experts *ex;
};

static int ceil_div(int a, int b) { return (a + b - 1) / b; }
static uint64_t round64(uint64_t n) { return (n + 63) & ~(uint64_t)63; }

static char *row_of(const struct dev_bind *b, int buf, int row)
{
    return dev_buf_row(&b->buf[buf], row);
}

static float *frow(const struct dev_bind *b, int buf, int row)
{
    return dev_buf_floats(&b->buf[buf], row);
}

static int n_rows_of(const struct op *op, const struct dev_bind *b)
{
    return b->set[op->rows].n;
}

static const struct dev_row *batch_row(const struct op *op, const struct dev_bind *b, int r)
{
    return &b->row[dev_row_at(&b->set[op->rows], r)];
}

/* The row of a buffer of any set that belongs to row `at` of the step. */
static char *row_for(const struct dev_bind *b, int buf, int at)
{
    return row_of(b, buf, dev_row_in(&b->set[b->buf[buf].rows], at));
}

/* Where row `at` of the step is on the timeline of a KV slot of that row set. */
static int kv_pos(const struct dev_bind *b, int rows, int at)
{
    return b->set[rows].pos ? b->set[rows].pos[at] : b->row[at].pos;
}

static int n_tiles(const struct dev_weight *w) { return ceil_div(w->n_rows, TILE_ROWS); }

/* ---- elementwise: tasks of ELEM_ROWS rows ---- */

static void embed_row(const struct dev_weight *w, int32_t id, float *y)
{
    if (qtype_is_stacked(w->type)) {
        stack_row_f32(w->data, id, y);
    } else if (w->tiles) {
        const char *t = (const char *)w->data + (size_t)(id / TILE_ROWS) *
                                                    tile_bytes(w->type, w->n_cols);
        tile_row_f32(w->type, w->n_cols, t, id % TILE_ROWS, y);
    } else {
        const char *p = (const char *)w->data + qtype_bytes(w->type, (uint64_t)w->n_cols) *
                                                    (uint64_t)id;
        codec_decode(w->type, p, y, w->n_cols);
    }
}

/* Divisors of the angles, NULL for none: LongRoPE has others for long contexts. */
static const float *rope_divisor(const struct op *op, const struct dev_bind *b)
{
    const bool is_long = op->weight[1] >= 0 && b->n_ctx > op->p.rope.rope.n_ctx_orig;
    const int w = op->weight[is_long ? 1 : 0];
    return w < 0 ? NULL : b->weight[w].data;
}

/* cos then sin of pos * scale * base^(-2i/n_rot), in double: one table per step, not per layer. */
static void rope_row(const struct rope_params *p, const float *divisor, int32_t pos, float *cs)
{
    const int half = p->n_rot / 2;
    /* YaRN: pair number at which n_ctx_orig positions make `beta` full turns. */
    const double log_base = log((double)p->base), two_pi = 6.283185307179586;
    double lo = 0, hi = 1;
    if (p->yarn) {
        lo = floor(p->n_rot * log(p->n_ctx_orig / ((double)p->beta_fast * two_pi)) /
                   (2 * log_base));
        hi = ceil(p->n_rot * log(p->n_ctx_orig / ((double)p->beta_slow * two_pi)) /
                  (2 * log_base));
        lo = lo < 0 ? 0 : lo;
        hi = hi > p->n_rot - 1 ? p->n_rot - 1 : hi;
    }
    for (int i = 0; i < half; i++) {
        double theta = (double)pos * pow((double)p->base, -2.0 * i / (double)p->n_rot);
        if (divisor) theta /= (double)divisor[i];
        double keep = 0; /* how much of the angle is not interpolated */
        if (p->yarn) {
            const double ramp = (i - lo) / (hi - lo > 0.001 ? hi - lo : 0.001);
            keep = 1 - (ramp < 0 ? 0 : ramp > 1 ? 1 : ramp);
        }
        theta = theta * (double)p->scale * (1 - keep) + theta * keep;
        cs[i] = (float)(cos(theta) * (double)p->magnitude);
        cs[half + i] = (float)(sin(theta) * (double)p->magnitude);
    }
}

/* y *= sigmoid(x); x is as wide as y, or one value for the row. */
static void gate_row(const struct elem_kernels *el, int n, const float *x, int n_x, float *y)
{
    enum { CHUNK = 256 };
    float e[CHUNK];
    if (n_x == 1) {
        float g = x[0];
        elem_sigmoid(el, 1, &g);
        for (int i = 0; i < n; i++) y[i] *= g;
        return;
    }
    for (int at = 0; at < n; at += CHUNK) {
        const int m = n - at < CHUNK ? n - at : CHUNK;
        memcpy(e, x + at, sizeof *e * (size_t)m);
        elem_sigmoid(el, m, e);
        for (int i = 0; i < m; i++) y[at + i] *= e[i];
    }
}

/* tanh(x) = 1 - 2 / (exp(2x) + 1), by our own exp: the same in every tier. */
static void softcap_row(const struct elem_kernels *el, int n, float cap, float *y)
{
    for (int i = 0; i < n; i++) {
        float t = 2.0f * (y[i] / cap);
        el->exp(1, &t, &t);
        y[i] = cap * (1.0f - 2.0f / (t + 1.0f));
    }
}

static void glu_row(const struct elem_kernels *el, enum glu_act act, int n, const float *gate,
                    const float *up, float *y)
{
    enum { CHUNK = 256 };
    float e[CHUNK];
    if (act == GLU_SILU) {
        el->swiglu(n, gate, up, y);
        return;
    }
    for (int at = 0; at < n; at += CHUNK) {
        const int m = n - at < CHUNK ? n - at : CHUNK;
        const float *g = gate + at, *u = up + at;
        if (act == GLU_RELU) {
            for (int i = 0; i < m; i++) y[at + i] = (g[i] > 0 ? g[i] : 0) * u[i];
        } else if (act == GLU_GELU) {
            /* 0.5 g (1 + tanh(z)) = g * sigmoid(2 z), z = sqrt(2/pi) (g + 0.044715 g^3) */
            for (int i = 0; i < m; i++)
                e[i] = -2.0f * (0.79788456080286535588f * g[i] * (1.0f + 0.044715f * g[i] * g[i]));
            el->exp(m, e, e);
            for (int i = 0; i < m; i++) y[at + i] = g[i] / (1.0f + e[i]) * u[i];
        } else {
            for (int i = 0; i < m; i++) e[i] = -1.702f * (g[i] < 7.0f ? g[i] : 7.0f);
            el->exp(m, e, e);
            for (int i = 0; i < m; i++) {
                const float x = g[i] < 7.0f ? g[i] : 7.0f;
                const float v = u[i] > 7.0f ? 7.0f : u[i] < -7.0f ? -7.0f : u[i];
                y[at + i] = x / (1.0f + e[i]) * (v + 1.0f);
            }
        }
    }
}

static void kv_put_row(const struct job *j, int r)
{
    const struct op *op = j->op;
    const struct dev_bind *b = j->b;
    const struct dev_rows *line = &b->set[op->kv_rows];
    const int at = dev_row_at(&b->set[op->rows], r), pos = kv_pos(b, op->kv_rows, at);
    const int dk = op->p.attn.dk, dv = op->p.attn.latent ? 0 : op->p.attn.dv;
    const size_t head = attn_head_bytes(b->kv_type, dk, dv);
    char *page = line->kv_base[b->row[at].session] + b->kv_offset[op->kv_slot] +
                 line->kv_page_bytes * (uint64_t)(pos / KV_PAGE);
    const float *k = frow(b, op->in[0], r), *v = frow(b, op->in[1], r);
    const int dim = op->p.attn.dim, dim_v = op->p.attn.dim_v;
    float pad_k[HEAD_MAX] = {0}, pad_v[HEAD_MAX] = {0};
    for (int h = 0; h < op->p.attn.n_kv_heads; h++) {
        const float *kh = k + h * dim, *vh = v + h * dim_v;
        if (dim != dk) kh = memcpy(pad_k, kh, sizeof(float) * (size_t)dim);
        if (dv && dim_v != dv) vh = memcpy(pad_v, vh, sizeof(float) * (size_t)dim_v);
        j->d->el->kv_put[b->kv_type](dk, dv, kh, vh, page + (size_t)h * head, pos % KV_PAGE);
    }
}

/* out may be in itself. */
static void scatter_row(const struct job *j, int r)
{
    const struct op *op = j->op;
    const struct dev_bind *b = j->b;
    const int at = dev_row_at(&b->set[op->rows], r), width = b->buf[op->out[0]].width;
    const float *x = (const float *)(const void *)row_for(b, op->in[0], at);
    float *y = (float *)(void *)row_for(b, op->out[0], at), w = op->p.scatter.by;
    if (op->in[1] >= 0)
        w *= ((const float *)(const void *)row_for(b, op->in[1], at))[op->p.scatter.column];
    if (op->p.scatter.put) {
        for (int i = 0; i < width; i++) y[i] = w * x[i];
    } else if (w < 0 || w > 0 || isnan(w)) { /* 0: it is not this row's turn */
        for (int i = 0; i < width; i++) y[i] += w * x[i];
    }
}

static void elem_row(const struct job *j, int r)
{
    const struct op *op = j->op;
    const struct dev_bind *b = j->b;
    const struct elem_kernels *el = j->d->el;
    const int width = op->out[0] >= 0 ? b->buf[op->out[0]].width : 0;
    switch (op->code) {
    case OP_EMBED: {
        embed_row(&b->weight[op->weight[0]], batch_row(op, b, r)->id, frow(b, op->out[0], r));
        break;
    }
    case OP_ROPE_TABLE:
        rope_row(&op->p.rope.rope, rope_divisor(op, b),
                 kv_pos(b, op->rows, dev_row_at(&b->set[op->rows], r)), frow(b, op->out[0], r));
        break;
    case OP_RMS_NORM:
        el->rms_norm(width, frow(b, op->in[0], r), b->weight[op->weight[0]].data, op->p.head.eps,
                     frow(b, op->out[0], r));
        break;
    case OP_HEAD_NORM:
        for (int h = 0; h < op->p.head.n_heads; h++) {
            float *x = frow(b, op->out[0], r) + h * op->p.head.dim;
            const void *w = op->weight[0] < 0 ? NULL : b->weight[op->weight[0]].data;
            el->rms_norm(op->p.head.dim, x, w, op->p.head.eps, x);
        }
        break;
    case OP_PREPARE:
        j->d->mm->act[op->p.prepare.kind](width, frow(b, op->in[0], r), row_of(b, op->out[0], r));
        break;
    case OP_ROPE:
        for (int h = 0; h < op->p.rope.n_heads; h++) {
            float *x = frow(b, op->out[0], r) + h * op->p.rope.dim + op->p.rope.at;
            const float *cs = frow(b, op->in[1], r);
            (op->p.rope.rope.neox ? el->rope_neox : el->rope_norm)(op->p.rope.rope.n_rot, cs, x);
        }
        break;
    case OP_HEAD_PREPARE: {
        const size_t out = act_bytes(op->p.prepare.kind, op->p.prepare.dim);
        for (int h = 0; h < op->p.prepare.n_heads; h++)
            j->d->mm->act[op->p.prepare.kind](op->p.prepare.dim,
                                              frow(b, op->in[0], r) + h * op->p.prepare.stride,
                                              row_of(b, op->out[0], r) + (size_t)h * out);
        break;
    }
    case OP_COPY_HEADS: {
        const struct copy_heads *c = &op->p.copy;
        for (int h = 0; h < c->n_heads; h++)
            memcpy(frow(b, op->out[0], r) + c->at_out + h * c->stride_out,
                   frow(b, op->in[0], r) + c->at_in + h * c->stride_in,
                   sizeof(float) * (size_t)c->dim);
        break;
    }
    case OP_KV_PUT: kv_put_row(j, r); break;
    case OP_ADD: el->add(width, frow(b, op->in[0], r), frow(b, op->out[0], r)); break;
    case OP_ADD_BIAS:
        el->add(width, (const float *)b->weight[op->weight[0]].data + op->p.bias.at,
                frow(b, op->out[0], r));
        break;
    case OP_FILL: {
        const struct dev_weight *w = &b->weight[op->weight[0]];
        memcpy(frow(b, op->out[0], r) + op->p.bias.at, w->data, sizeof(float) * (size_t)w->n_cols);
        break;
    }
    case OP_SELECT:
        memcpy(row_of(b, op->out[0], r), row_for(b, op->in[0], dev_row_at(&b->set[op->rows], r)),
               b->buf[op->out[0]].stride);
        break;
    case OP_SCATTER: scatter_row(j, r); break;
    case OP_SCALE: {
        float *y = frow(b, op->out[0], r), by = op->p.scale.by;
        if (op->weight[0] >= 0) by *= *(const float *)b->weight[op->weight[0]].data;
        for (int i = 0; i < width; i++) y[i] *= by;
        break;
    }
    case OP_GATE:
        gate_row(el, width, frow(b, op->in[0], r), b->buf[op->in[0]].width, frow(b, op->out[0], r));
        break;
    case OP_MUL: {
        const float *x = frow(b, op->in[0], r);
        float *y = frow(b, op->out[0], r);
        for (int i = 0; i < width; i++) y[i] *= x[i];
        break;
    }
    case OP_SOFTCAP: softcap_row(el, width, op->p.scale.by, frow(b, op->out[0], r)); break;
    case OP_GLU:
        glu_row(el, op->p.glu.act, width, frow(b, op->in[0], r), frow(b, op->in[1], r),
                frow(b, op->out[0], r));
        break;
    case OP_MATMUL:
    case OP_HEAD_MATMUL:
    case OP_ATTENTION:
    case OP_KV_CARRY:
    case OP_ROUTE:
    case OP_CHOOSE:
    case OP_DEPTH:
    case OP_SPAN:
    case OP_SMOOTH:
    case OP_FORESEE:
    case OP_EXPERTS:
    case OP_L2_NORM:
    case OP_CONV:
    case OP_DELTA_GATES:
    case OP_DELTA:
    case OP_CODE_N: ASSERT(!"not an elementwise op"); break;
    }
}

static void elem_task(void *arg, int task, int worker)
{
    (void)worker;
    const struct job *j = arg;
    const int end = (task + 1) * ELEM_ROWS < j->n_rows ? (task + 1) * ELEM_ROWS : j->n_rows;
    for (int r = task * ELEM_ROWS; r < end; r++) elem_row(j, r);
}

/* ---- products ---- */

/* Tiles per task, such that every thread gets a share of `n_mats` such matrices. */
static int tile_group(const struct dev *d, const struct dev_weight *w, int n_rows, int n_mats)
{
    const size_t bytes = n_rows <= FEW_ROWS ? TASK_BYTES_FEW : d->task_bytes_many;
    const int share = ceil_div(n_tiles(w) * n_mats, 2 * pool_size(d->pool));
    int g = (int)(bytes / tile_bytes(w->type, w->n_cols));
    if (g > share) g = share;
    g = (g + 1) & ~1; /* kernels take tiles in pairs */
    return g < 2 ? 2 : g > n_tiles(w) ? n_tiles(w) : g;
}

/* y = tiles t0 .. of a matrix of w's kind times the prepared rows x. */
static void multiply(const struct dev *d, const struct dev_weight *w, const void *matrix, int t0,
                     int nt, int nr, const void *const *x, float *const *y)
{
    if (qtype_is_stacked(w->type)) {
        stack_mm(d->mm, matrix, t0, nt, nr, x, y);
        return;
    }
    const char *tiles = (const char *)matrix + (size_t)t0 * tile_bytes(w->type, w->n_cols);
    d->mm->mm[w->type](w->n_cols, nt, tiles, nr, x, y);
}

static void matmul_task(void *arg, int task, int worker)
{
    (void)worker;
    const struct job *j = arg;
    const struct op *op = j->op;
    const struct dev_bind *b = j->b;
    const int block = task % j->n_row_blocks;
    int g = task / j->n_row_blocks, i = 0;
    while (g >= j->n_groups[i]) g -= j->n_groups[i++];
    const struct dev_weight *w = &b->weight[op->weight[i]];
    const int n_big = j->tail_at[i] / j->group[i];
    const int t0 = g < n_big ? g * j->group[i] : j->tail_at[i] + (g - n_big) * j->tail_group[i];
    const int most = g < n_big ? j->group[i] : j->tail_group[i];
    const int nt = n_tiles(w) - t0 < most ? n_tiles(w) - t0 : most;
    const int r0 = block * ROW_BLOCK;
    const int nr = j->n_rows - r0 < ROW_BLOCK ? j->n_rows - r0 : ROW_BLOCK;
    const void *x[ROW_BLOCK];
    float *y[ROW_BLOCK];
    for (int r = 0; r < nr; r++) {
        x[r] = row_of(b, op->in[0], r0 + r);
        y[r] = frow(b, op->out[i], r0 + r) + t0 * TILE_ROWS;
    }
    multiply(j->d, w, w->data, t0, nt, nr, x, y);
}

/* Few rows: the end of the matrix, at most a quarter of it, is cut finer, so that the threads end
 * together though their tasks are long. */
static void run_matmul(struct job *j)
{
    const int n_threads = pool_size(j->d->pool);
    int n = 0;
    j->n_row_blocks = ceil_div(j->n_rows, ROW_BLOCK);
    for (int i = 0; i < OP_IO && j->op->weight[i] >= 0; i++) {
        const struct dev_weight *w = &j->b->weight[j->op->weight[i]];
        const int group = tile_group(j->d, w, j->n_rows, 1);
        int tail = j->n_rows <= FEW_ROWS && n_threads > 1 ? n_tiles(w) / 4 : 0;
        if (tail > n_threads * group) tail = n_threads * group;
        j->group[i] = group;
        j->tail_at[i] = (n_tiles(w) - tail) / group * group;
        j->tail_group[i] = (ceil_div(group, TAIL_PARTS) + 1) & ~1;
        j->n_groups[i] = j->tail_at[i] / group +
                         ceil_div(n_tiles(w) - j->tail_at[i], j->tail_group[i]);
        n += j->n_groups[i];
    }
    pool_run(j->d->pool, matmul_task, j, n * j->n_row_blocks);
}

/* A task is some tiles of one head's matrix times some rows. */
static void head_matmul_task(void *arg, int task, int worker)
{
    (void)worker;
    const struct job *j = arg;
    const struct op *op = j->op;
    const struct dev_bind *b = j->b;
    const struct dev_weight *w = &b->weight[op->weight[0]];
    const int per_head = n_tiles(w) / op->p.heads.n_heads, r0 = task % j->n_row_blocks * ROW_BLOCK;
    const int g = task / j->n_row_blocks, h = g / j->n_groups[0];
    const int t0 = g % j->n_groups[0] * j->group[0];
    const int nt = per_head - t0 < j->group[0] ? per_head - t0 : j->group[0];
    const int nr = j->n_rows - r0 < ROW_BLOCK ? j->n_rows - r0 : ROW_BLOCK;
    const size_t in = act_bytes(qtype_info(w->type)->act, w->n_cols);
    const void *x[ROW_BLOCK];
    float *y[ROW_BLOCK];
    for (int r = 0; r < nr; r++) {
        x[r] = row_of(b, op->in[0], r0 + r) + (size_t)h * in;
        y[r] = frow(b, op->out[0], r0 + r) + h * op->p.heads.stride + t0 * TILE_ROWS;
    }
    multiply(j->d, w, w->data, h * per_head + t0, nt, nr, x, y);
}

static void run_head_matmul(struct job *j)
{
    const struct dev_weight *w = &j->b->weight[j->op->weight[0]];
    const int n_heads = j->op->p.heads.n_heads, per_head = n_tiles(w) / n_heads;
    const int group = tile_group(j->d, w, j->n_rows, 1);
    j->group[0] = group < per_head ? group : per_head;
    j->n_groups[0] = ceil_div(per_head, j->group[0]);
    j->n_row_blocks = ceil_div(j->n_rows, ROW_BLOCK);
    pool_run(j->d->pool, head_matmul_task, j, n_heads * j->n_groups[0] * j->n_row_blocks);
}

/* ---- attention: a task is some query rows against one KV head ---- */

typedef void attn_fun(int dk, int dv, int n_q, float scale, int n_rows, const struct attn_row *r);

static attn_fun *attn_of(const struct job *j)
{
    const enum kv_type type = j->b->kv_type;
    return j->op->p.attn.latent ? j->d->el->attn_latent[type] : j->d->el->attn[type];
}

/* Heads whose width is no multiple of 16 are stored padded: their queries are padded here, one row
 * and PAD_Q query heads at a time.  Small old models only. */
static void attn_padded(const struct job *j, const struct attn_row *row, int n_q)
{
    const struct op *op = j->op;
    const int dim = op->p.attn.dim, dim_v = op->p.attn.dim_v;
    const int dk = op->p.attn.dk, dv = op->p.attn.dv;
    float q[PAD_Q * HEAD_MAX] __attribute__((aligned(64)));
    float out[PAD_Q * HEAD_MAX] __attribute__((aligned(64)));
    for (int h0 = 0; h0 < n_q; h0 += PAD_Q) {
        const int n = n_q - h0 < PAD_Q ? n_q - h0 : PAD_Q;
        memset(q, 0, sizeof(float) * (size_t)(n * dk));
        for (int h = 0; h < n; h++)
            memcpy(q + h * dk, row->q + (h0 + h) * dim, sizeof(float) * (size_t)dim);
        struct attn_row one = *row;
        one.q = q;
        one.out = out;
        one.sink = row->sink ? row->sink + h0 : NULL;
        attn_of(j)(dk, dv, n, op->p.attn.scale, 1, &one);
        for (int h = 0; h < n; h++)
            memcpy(row->out + (h0 + h) * dim_v, out + h * dv, sizeof(float) * (size_t)dim_v);
    }
}

static void attn_task(void *arg, int task, int worker)
{
    (void)worker;
    const struct job *j = arg;
    const struct op *op = j->op;
    const struct dev_bind *b = j->b;
    const int n_kv = op->p.attn.n_kv_heads, all_q = op->p.attn.n_q_heads / n_kv;
    const int dk = op->p.attn.dk, dv = op->p.attn.dv, h = task / j->n_groups[0] % n_kv;
    const int q0 = task % j->n_groups[0] * j->group[0], at = h * all_q + q0;
    const int n_q = all_q - q0 < j->group[0] ? all_q - q0 : j->group[0];
    const int r0 = task / j->n_groups[0] / n_kv * ATTN_ROWS;
    const int nr = j->n_rows - r0 < ATTN_ROWS ? j->n_rows - r0 : ATTN_ROWS;
    const size_t head = attn_head_bytes(b->kv_type, dk, op->p.attn.latent ? 0 : dv);
    struct attn_row rows[ATTN_ROWS];
    for (int r = 0; r < nr; r++) {
        const struct dev_rows *line = &b->set[op->kv_rows];
        const int step_row = dev_row_at(&b->set[op->rows], r0 + r);
        const int pos = kv_pos(b, op->kv_rows, step_row);
        const int window = op->p.attn.window, sees = op->p.attn.sees;
        const int session = b->row[step_row].session;
        rows[r] = (struct attn_row){
            .q = frow(b, op->in[0], r0 + r) + at * op->p.attn.dim,
            .out = frow(b, op->out[0], r0 + r) + at * op->p.attn.dim_v,
            .kv = line->kv_base[session] + b->kv_offset[op->kv_slot] +
                  (size_t)h * head,
            .page_stride = line->kv_page_bytes,
            .first = window > 0 && pos >= window ? pos - window + 1 : 0,
            .last = sees ? dev_last_seen(sees, pos, b->end[session]) : pos,
            .sink = op->weight[0] < 0 ? NULL
                                      : (const float *)b->weight[op->weight[0]].data + at,
        };
    }
    if (op->p.attn.dim == dk && op->p.attn.dim_v == dv) {
        attn_of(j)(dk, dv, n_q, op->p.attn.scale, nr, rows);
        return;
    }
    for (int r = 0; r < nr; r++) attn_padded(j, &rows[r], n_q);
}

/* Where rows and KV heads make too few tasks, the query heads of one KV head are divided as well,
 * by 8 at least: each task reads the pages for itself. */
static void run_attention(struct job *j)
{
    const int n_kv = j->op->p.attn.n_kv_heads, n_q = j->op->p.attn.n_q_heads / n_kv;
    const int tasks = ceil_div(j->n_rows, ATTN_ROWS) * n_kv;
    int groups = ceil_div(pool_size(j->d->pool), tasks);
    if (groups > ceil_div(n_q, 8)) groups = ceil_div(n_q, 8);
    j->group[0] = ceil_div(n_q, groups);
    j->n_groups[0] = ceil_div(n_q, j->group[0]);
    pool_run(j->d->pool, attn_task, j, tasks * j->n_groups[0]);
}

/* ---- K and V of positions that went less deep ---- */

/* Up to a page of positions, each from the page of its own depth.  K has a position in every row of
 * its page, V has all values of a position together: elem.h. */
struct carry_list {
    int n, pos[KV_PAGE];
    const char *from[KV_PAGE];
};

static void carry_values(const struct carry_list *l, size_t at, size_t step, size_t bytes, char *to)
{
    for (int i = 0; i < l->n; i++) {
        const size_t p = at + step * (size_t)l->pos[i];
        memcpy(to + p, l->from[i] + p, bytes);
    }
}

static void carry_head(enum kv_type type, int dk, int dv, size_t head, struct carry_list *l, char *to)
{
    const size_t half = sizeof(uint16_t), one = type == KV_Q8_0 ? 1 : half;
    const size_t kb = type == KV_Q8_0 ? (size_t)dk / 32 : 0, vb = type == KV_Q8_0 ? (size_t)dv / 32 : 0;
    size_t at = 0;
    for (size_t i = 0; i < kb; i++, at += half * KV_PAGE) carry_values(l, at, half, half, to);
    for (int i = 0; i < dk; i++, at += one * KV_PAGE) carry_values(l, at, one, one, to);
    if (vb) carry_values(l, at, half * vb, half * vb, to);
    at += half * vb * KV_PAGE;
    carry_values(l, at, one * (size_t)dv, one * (size_t)dv, to);
    for (int i = 0; i < l->n; i++) l->from[i] += head;
}

static bool has_rows(const struct dev_bind *b, int set, int session)
{
    for (int r = 0; r < b->set[set].n; r++)
        if (b->row[dev_row_at(&b->set[set], r)].session == session) return true;
    return false;
}

/* One slot of one session. */
static void carry_task(void *arg, int task, int worker)
{
    (void)worker;
    const struct job *j = arg;
    const struct op *op = j->op;
    const struct dev_bind *b = j->b;
    const int n = op->p.carry.n, s = task / n, slot = op->kv_slot + task % n, step = op->p.carry.step;
    const struct dev_rows *line = &b->set[op->kv_rows];
    const struct dev_carry *c = &b->carry[s];
    const size_t head = attn_head_bytes(b->kv_type, op->p.carry.dk, op->p.carry.dv);
    if (!has_rows(b, op->rows, s)) return;
    for (int32_t pos = c->from[step]; pos < c->end;) {
        char *page = line->kv_base[s] + line->kv_page_bytes * (uint64_t)(pos / KV_PAGE);
        struct carry_list l = {.n = 0};
        for (const int32_t last = pos / KV_PAGE; pos < c->end && pos / KV_PAGE == last; pos++) {
            if (c->depth[pos] >= step) continue;
            l.pos[l.n] = pos % KV_PAGE;
            const int from = op->p.carry.from ? op->p.carry.from : c->depth[pos];
            l.from[l.n++] = page + b->kv_offset[slot + (from - 1) * n];
        }
        char *to = page + b->kv_offset[slot + (step - 1) * n];
        for (int h = 0; h < op->p.carry.n_kv_heads && l.n; h++, to += head)
            carry_head(b->kv_type, op->p.carry.dk, op->p.carry.dv, head, &l, to);
    }
}

/* ---- experts ---- */

/* DESIGN.  One region for all of an expert's work, so that no thread waits at a barrier between
 * gate, up and down.  Tasks come in blocks: U(a), gate and up of expert a with the activation behind
 * them, and D(a), down.  The blocks are taken in the order U(0) U(1) .. D(0) U(n) D(1) ..: D stays
 * `lag` experts behind, which is enough work to keep all threads busy.  The worker that ends the
 * last task of U(a) prepares its rows for D(a) and opens it.  U tasks wait for nothing and start
 * before their D, so waiting ends.  The last experts are cut finer: the threads end together. */
struct experts {
    const struct dev_route *rt;
    const struct dev_weight *wg, *wu, *wd;
    const float *bias[OP_IO]; /* [n_expert][n] of gate, up, down; NULL = none */
    int n_embd, n_ff;
    int c0, c1;           /* pairs of this submission, in expert-major order */
    enum act_kind kind;   /* what down wants */
    int up_group, down_group, tail_from; /* tiles per task; experts from tail_from on: fewer */
    /* scratch, per pair */
    uint64_t ff_stride, prep_stride, out_stride;
    char *gate, *up, *prep, *out;
    int32_t *place;       /* [n_slots] c of pair r*n_used + s */
    /* per active expert and per block, two blocks an expert */
    _Atomic int32_t *left;   /* tasks left of U, DOWN_OPEN when down may start */
    int32_t *block_first;    /* first task of a block */
    int32_t *block_expert;   /* a for U(a), ~a for D(a) */
    int n_blocks;
};

enum { DOWN_OPEN = -1 };

uint64_t dev_experts_scratch(int n_pairs, int n_slots, int n_embd, int n_ff,
                             enum act_kind down_kind)
{
    const uint64_t ff = round64(sizeof(float) * (uint64_t)n_ff);
    const uint64_t embd = round64(sizeof(float) * (uint64_t)n_embd);
    const uint64_t per = 2 * ff + round64(act_bytes(down_kind, n_ff)) + embd;
    return (uint64_t)n_pairs * per + round64(sizeof(int32_t) * (uint64_t)(n_slots + 1)) +
           5 * round64(sizeof(int32_t) * (uint64_t)(n_pairs + 1));
}

static void experts_layout(struct experts *x, char *p, int n_pairs, int n_slots)
{
    const uint64_t n = (uint64_t)n_pairs, ints = round64(sizeof(int32_t) * (n + 1));
    x->ff_stride = dev_experts_hidden_stride(x->n_ff);
    x->prep_stride = round64(act_bytes(x->kind, x->n_ff));
    x->out_stride = dev_experts_out_stride(x->n_embd);
    x->gate = p; /* where watchers look for what down is multiplied with (dev.h) */
    x->up = x->gate + n * x->ff_stride;
    x->prep = x->up + n * x->ff_stride;
    x->out = x->prep + n * x->prep_stride;
    char *q = x->out + n * x->out_stride;
    x->place = (int32_t *)(void *)q;
    q += round64(sizeof(int32_t) * (uint64_t)(n_slots + 1));
    x->left = (_Atomic int32_t *)(void *)q;
    x->block_first = (int32_t *)(void *)(q + ints);
    x->block_expert = (int32_t *)(void *)(q + 3 * ints);
}

static int group_of(const struct experts *x, int group, int a)
{
    if (a < x->tail_from) return group;
    group = ceil_div(group, TAIL_PARTS);
    return (group + 1) & ~1;
}

/* Tasks of one expert's U or D: groups of tiles times blocks of rows. */
static int expert_tasks(const struct experts *x, const struct dev_weight *w, int group, int a)
{
    const int rows = x->rt->first[a + 1] - x->rt->first[a];
    return ceil_div(n_tiles(w), group_of(x, group, a)) * ceil_div(rows, ROW_BLOCK);
}

/* Lists the blocks; returns the number of tasks. */
static int experts_blocks(struct experts *x, const struct dev *dev)
{
    const int n_threads = pool_size(dev->pool);
    const int a0 = x->rt->begin, a1 = x->rt->end, n = a1 - a0;
    const int rows = ceil_div(x->c1 - x->c0, n);
    x->up_group = tile_group(dev, x->wg, rows, n);
    x->down_group = tile_group(dev, x->wd, rows, n);
    x->tail_from = rows <= FEW_ROWS ? a1 - n_threads : a1;
    const int per = expert_tasks(x, x->wg, x->up_group, a0);
    int lag = 1 + ceil_div(2 * n_threads, per);
    if (lag > n) lag = n;
    int n_tasks = 0;
    x->n_blocks = 0;
    for (int i = 0; i < n + lag; i++) {
        const int u = a0 + i, d = u - lag;
        if (i < n) {
            const int tasks = expert_tasks(x, x->wg, x->up_group, u);
            atomic_store_explicit(&x->left[u], tasks, memory_order_relaxed);
            x->block_expert[x->n_blocks] = u;
            x->block_first[x->n_blocks++] = n_tasks;
            n_tasks += tasks;
        }
        if (i >= lag) {
            x->block_expert[x->n_blocks] = ~d;
            x->block_first[x->n_blocks++] = n_tasks;
            n_tasks += expert_tasks(x, x->wd, x->down_group, d);
        }
    }
    return n_tasks;
}

struct piece {
    int a;        /* active expert */
    int t0, nt;   /* tiles */
    int c0, nr;   /* pairs in expert-major order */
};

static struct piece expert_piece(const struct experts *x, const struct dev_weight *w, int group,
                                 int a, int local)
{
    const int n = x->rt->first[a + 1] - x->rt->first[a], blocks = ceil_div(n, ROW_BLOCK);
    const int g = group_of(x, group, a);
    struct piece p = {.a = a, .t0 = local / blocks * g};
    p.nt = n_tiles(w) - p.t0 < g ? n_tiles(w) - p.t0 : g;
    const int r0 = local % blocks * ROW_BLOCK;
    p.c0 = x->rt->first[a] + r0;
    p.nr = n - r0 < ROW_BLOCK ? n - r0 : ROW_BLOCK;
    return p;
}

static float *pair_row(char *base, uint64_t stride, int c)
{
    return (float *)(void *)(base + stride * (uint64_t)c);
}

/* y[r][..] += an expert's bias, for the outputs of one piece; bias may be NULL. */
static void add_bias(const float *bias, int expert, int n, const struct piece *p, float *const *y)
{
    if (!bias) return;
    const int from = p->t0 * TILE_ROWS;
    const int m = n - from < p->nt * TILE_ROWS ? n - from : p->nt * TILE_ROWS;
    const float *b = bias + (size_t)expert * (size_t)n + from;
    for (int r = 0; r < p->nr; r++)
        for (int i = 0; i < m; i++) y[r][i] += b[i];
}

/* Gate and up of some tiles, and the activation while they are in cache. */
static void up_task(const struct job *j, struct experts *x, int a, int local)
{
    const struct piece p = expert_piece(x, x->wg, x->up_group, a, local);
    const void *in[ROW_BLOCK];
    float *gate[ROW_BLOCK], *up[ROW_BLOCK];
    for (int r = 0; r < p.nr; r++) {
        in[r] = row_of(j->b, j->op->in[0], x->rt->pair[p.c0 + r] / x->rt->n_used);
        gate[r] = pair_row(x->gate, x->ff_stride, p.c0 + r) + p.t0 * TILE_ROWS;
        up[r] = pair_row(x->up, x->ff_stride, p.c0 + r) + p.t0 * TILE_ROWS;
    }
    const int expert = x->rt->expert[a];
    multiply(j->d, x->wg, x->rt->gate[a], p.t0, p.nt, p.nr, in, gate);
    multiply(j->d, x->wu, x->rt->up[a], p.t0, p.nt, p.nr, in, up);
    add_bias(x->bias[0], expert, x->n_ff, &p, gate);
    add_bias(x->bias[1], expert, x->n_ff, &p, up);
    const int from = p.t0 * TILE_ROWS, all = p.nt * TILE_ROWS;
    const int n = x->n_ff - from < all ? x->n_ff - from : all;
    for (int r = 0; r < p.nr; r++)
        glu_row(j->d->el, j->op->p.moe.act, n, gate[r], up[r], gate[r]);
    if (atomic_fetch_sub(&x->left[a], 1) != 1) return;
    for (int c = x->rt->first[a]; c < x->rt->first[a + 1]; c++)
        j->d->mm->act[x->kind](x->n_ff, pair_row(x->gate, x->ff_stride, c),
                               x->prep + x->prep_stride * (uint64_t)c);
    atomic_store_explicit(&x->left[a], DOWN_OPEN, memory_order_release);
}

static void down_task(const struct job *j, struct experts *x, int a, int local)
{
    const struct piece p = expert_piece(x, x->wd, x->down_group, a, local);
    const void *in[ROW_BLOCK];
    float *out[ROW_BLOCK];
    for (int r = 0; r < p.nr; r++) {
        in[r] = x->prep + x->prep_stride * (uint64_t)(p.c0 + r);
        out[r] = pair_row(x->out, x->out_stride, p.c0 + r) + p.t0 * TILE_ROWS;
    }
    pool_wait(&x->left[a], DOWN_OPEN);
    multiply(j->d, x->wd, x->rt->down[a], p.t0, p.nt, p.nr, in, out);
    add_bias(x->bias[2], x->rt->expert[a], x->n_embd, &p, out);
}

static void expert_task(void *arg, int task, int worker)
{
    (void)worker;
    const struct job *j = arg;
    struct experts *x = j->ex;
    int lo = 0, hi = x->n_blocks - 1;
    while (lo < hi) {
        const int mid = (lo + hi + 1) / 2;
        if (x->block_first[mid] <= task) lo = mid;
        else hi = mid - 1;
    }
    const int a = x->block_expert[lo], local = task - x->block_first[lo];
    if (a >= 0) up_task(j, x, a, local);
    else down_task(j, x, ~a, local);
}

static void combine_task(void *arg, int task, int worker)
{
    (void)worker;
    const struct job *j = arg;
    const struct experts *x = j->ex;
    const int k = x->rt->n_used;
    const int end = (task + 1) * ELEM_ROWS < j->n_rows ? (task + 1) * ELEM_ROWS : j->n_rows;
    for (int r = task * ELEM_ROWS; r < end; r++) {
        const float *slot[SLOTS_MAX];
        const int n = x->rt->n_of ? x->rt->n_of[r] : k;
        for (int s = 0; s < n; s++)
            slot[s] = pair_row(x->out, x->out_stride, x->place[r * k + s]);
        j->d->el->combine(x->n_embd, n, x->rt->w + (size_t)r * (size_t)k, slot,
                          frow(j->b, j->op->out[0], r));
    }
}

static void experts_of(struct experts *x, const struct op *op, const struct dev_bind *b)
{
    const struct dev_route *rt = b->route;
    const struct dev_weight *w[OP_IO];
    for (int i = 0; i < OP_IO; i++) w[i] = &b->weight[op->weight[i]];
    *x = (struct experts){
        .rt = rt, .wg = w[0], .wu = w[1], .wd = w[2], .n_embd = w[0]->n_cols, .n_ff = w[0]->n_rows,
        .kind = qtype_info(w[2]->type)->act,
    };
    for (int i = 0; i < OP_IO; i++) {
        const int bias = op->weight[OP_IO + i];
        x->bias[i] = bias < 0 ? NULL : b->weight[bias].data;
    }
    experts_layout(x, b->scratch, rt->n_pairs, rt->n_slots);
    if (rt->pair_out) x->out = rt->pair_out;
}

void dev_experts_put(const struct op *op, const struct dev_bind *b, int first, int n,
                     const char *rows)
{
    struct experts x;
    experts_of(&x, op, b);
    memcpy(x.out + x.out_stride * (uint64_t)first, rows, x.out_stride * (uint64_t)n);
    for (int c = first; c < first + n; c++) x.place[b->route->pair[c]] = c;
}

static void run_experts(struct job *j)
{
    const struct dev_route *rt = j->b->route;
    struct experts x;
    experts_of(&x, j->op, j->b);
    ASSERT(rt->n_used <= SLOTS_MAX && rt->n_rows == j->n_rows && rt->begin <= rt->end);
    j->ex = &x;
    if (rt->begin < rt->end) {
        x.c0 = rt->first[rt->begin];
        x.c1 = rt->first[rt->end];
        if (!rt->pair_out)
            for (int c = x.c0; c < x.c1; c++) x.place[rt->pair[c]] = c;
        pool_run(j->d->pool, expert_task, j, experts_blocks(&x, j->d));
    }
    if (rt->sum) pool_run(j->d->pool, combine_task, j, ceil_div(j->n_rows, ELEM_ROWS));
    j->ex = NULL;
}

/* ---- the interface ---- */

static void run_op(struct dev *d, const struct op *op, const struct dev_bind *b)
{
    struct job j = {.d = d, .op = op, .b = b, .n_rows = n_rows_of(op, b)};
    if (j.n_rows == 0) return;
    switch (op->code) {
    case OP_MATMUL: run_matmul(&j); break;
    case OP_HEAD_MATMUL: run_head_matmul(&j); break;
    case OP_ATTENTION: run_attention(&j); break;
    case OP_EXPERTS: run_experts(&j); break;
    case OP_KV_CARRY: pool_run(d->pool, carry_task, &j, b->n_inputs * op->p.carry.n); break;
    case OP_L2_NORM:
    case OP_CONV:
    case OP_DELTA_GATES:
    case OP_DELTA: recur_run(d->pool, d->rk, op, b); break;
    case OP_ROUTE:
    case OP_CHOOSE:
    case OP_SPAN:
    case OP_SMOOTH:
    case OP_FORESEE:
    case OP_DEPTH: ASSERT(!"routing is the executor's"); break;
    case OP_EMBED:
    case OP_ROPE_TABLE:
    case OP_RMS_NORM:
    case OP_HEAD_NORM:
    case OP_PREPARE:
    case OP_HEAD_PREPARE:
    case OP_COPY_HEADS:
    case OP_ROPE:
    case OP_KV_PUT:
    case OP_ADD:
    case OP_ADD_BIAS:
    case OP_FILL:
    case OP_SELECT:
    case OP_SCATTER:
    case OP_SCALE:
    case OP_GATE:
    case OP_MUL:
    case OP_SOFTCAP:
    case OP_GLU: pool_run(d->pool, elem_task, &j, ceil_div(j.n_rows, ELEM_ROWS)); break;
    case OP_CODE_N: break;
    }
}

static bool cpu_supports(const struct dev *d, const struct op *op, const struct dev_weight *weight)
{
    (void)d;
    (void)weight;
    return op->code != OP_ROUTE && op->code != OP_CHOOSE && op->code != OP_DEPTH &&
           op->code != OP_SPAN && op->code != OP_SMOOTH && op->code != OP_FORESEE;
}

static dev_fence cpu_submit(struct dev *d, const struct op *ops, int n, const struct dev_bind *b)
{
    for (int i = 0; i < n; i++) run_op(d, &ops[i], b);
    return ++d->n_done;
}

static enum dev_state cpu_wait(struct dev *d, dev_fence f, double seconds, struct err *e)
{
    (void)seconds;
    (void)e;
    ASSERT(f <= d->n_done);
    return DEV_PASSED;
}

static void cpu_close(struct dev *d) { free(d); }

enum status dev_cpu_open(struct pool *pool, enum cpu_tier tier, struct dev **out, struct err *e)
{
    struct dev *d = calloc(1, sizeof *d);
    *out = d;
    if (!d) return err_set(e, ERR_MEMORY, "no memory for the CPU device");
    d->pool = pool;
    d->mm = mm_kernels(tier);
    d->el = elem_kernels(tier);
    d->rk = recur_kernels(tier);
    d->task_bytes_many = tier >= CPU_AMX ? TASK_BYTES_AMX : TASK_BYTES_MANY;
    return OK;
}

const struct dev_api *dev_cpu_api(void)
{
    static const struct dev_api api = {
        .abi = DEV_ABI, .size = sizeof(struct dev_api), .build = dev_build, .name = "cpu",
        .supports = cpu_supports, .submit = cpu_submit, .wait = cpu_wait, .close = cpu_close,
    };
    return &api;
}
