/* See stack_build.h. */
#include "quant/build/stack_build.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "moe/load/stackfile.h"
#include "quant/build/stack_int.h"
#include "quant/codec.h"

enum { PIECE_WEIGHTS = 1 << 20 };

/* ---- which tensors ------------------------------------------------------------------------- */

/* Matrices that a token's activations are multiplied with, whole. */
static bool is_stackable(const struct gguf *g, const struct requant_tensor *q,
                         const struct stack_options *o)
{
    static const char *const kinds[] = {
        "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_qkv.weight", "attn_output.weight",
        "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight", "ffn_gate_exps.weight",
        "ffn_up_exps.weight", "ffn_down_exps.weight", "ffn_gate_shexp.weight",
        "ffn_up_shexp.weight", "ffn_down_shexp.weight"};
    const struct gguf_tensor *t = q->in;
    const uint64_t unit = o->base == QTYPE_NEST2 ? 64 : 32;
    char name[128];
    if (q->kept || t->n_dims < 2 || t->dim[3] != 1 || t->dim[0] % unit || t->name.n >= sizeof name ||
        t->dim[0] > INT32_MAX / 64 || t->dim[1] > INT32_MAX / 64 || t->dim[2] > 65536)
        return false;
    (void)snprintf(name, sizeof name, "%.*s", (int)t->name.n, t->name.s);
    if (!strcmp(name, "output.weight")) return true;
    if (!strcmp(name, "token_embd.weight")) /* with no output of its own it is the output, too */
        return o->base == QTYPE_NEST2 && !gguf_find_tensor(g, "output.weight");
    const char *kind = strncmp(name, "blk.", 4) ? NULL : strchr(name + 4, '.');
    for (size_t i = 0; kind && i < sizeof kinds / sizeof kinds[0]; i++)
        if (!strcmp(kind + 1, kinds[i])) return true;
    return false;
}

size_t stack_mat_bytes(const struct stack_build *b, const struct stack_part *p)
{
    return qtype_bytes(b->o.base, (uint64_t)p->n_cols) * (size_t)p->n_rows;
}

size_t stack_unit_bytes(const struct stack_build *b, const struct stack_part *p, int level)
{
    return stack_level_bytes(b->o.base, b->o.rank, p->n_cols, p->n_rows, level);
}

uint64_t stack_unit_at(const struct stack_build *b, const struct stack_part *p, int mat, int level)
{
    uint64_t at = p->at + p->stride * (uint64_t)mat;
    if (level < 0) return at;
    at += stack_mat_bytes(b, p);
    for (int l = 0; l < level; l++) at += stack_unit_bytes(b, p, l);
    return at;
}

static enum status add_part(struct stack_build *b, const struct requant_tensor *t, uint64_t *at,
                            struct err *e)
{
    struct stack_part *p = &b->part[b->n_parts];
    *p = (struct stack_part){.t = t, .n_cols = (int)t->in->dim[0], .n_rows = (int)t->in->dim[1],
                             .n_mats = (int)t->in->dim[2], .at = *at, .worth = 1};
    p->mat = calloc((size_t)p->n_mats, sizeof *p->mat);
    if (!p->mat) return err_set(e, ERR_MEMORY, "no memory for the list of matrices");
    b->n_parts++;
    p->stride = stack_mat_bytes(b, p);
    for (int l = 0; l <= b->o.n_levels; l++) p->stride += stack_unit_bytes(b, p, l);
    *at += p->stride * (uint64_t)p->n_mats;
    return OK;
}

enum status stack_build_open(struct stack_build *b, const struct gguf *in,
                             const struct stack_options *o, const struct imatrix *imatrix,
                             struct err *e)
{
    memset(b, 0, sizeof *b);
    b->o = *o;
    b->work = b->state = -1;
    const struct recipe_options rest = {.recipe = recipe_by_name("Q6_K"), .importance = imatrix,
                                        .embedding = RECIPE_TYPE_OPEN, .output = RECIPE_TYPE_OPEN};
    enum status s = requant_plan(&b->plan, in, &rest, imatrix, e);
    if (s) return s;
    if (gguf_find(in, "tessera.stack.version"))
        s = err_set(e, ERR_UNSUPPORTED, "%s is a stack already", gguf_path(in, 0));
    b->part = calloc((size_t)b->plan.n + 1, sizeof *b->part);
    b->part_of = calloc((size_t)b->plan.n + 1, sizeof *b->part_of);
    if (!s && (!b->part || !b->part_of))
        s = err_set(e, ERR_MEMORY, "no memory for the list of tensors");
    uint64_t at = 0;
    for (uint64_t i = 0; i < b->plan.n && !s; i++) {
        b->part_of[i] = -1;
        if (!is_stackable(in, &b->plan.tensor[i], o)) continue;
        b->part_of[i] = b->n_parts;
        s = add_part(b, &b->plan.tensor[i], &at, e);
    }
    if (!s && !b->n_parts)
        s = err_set(e, ERR_UNSUPPORTED, "%s has no matrix whose columns are a multiple of %d: "
                    "nothing can be stacked", gguf_path(in, 0), o->base == QTYPE_NEST2 ? 64 : 32);
    if (s) stack_build_close(b);
    return s;
}

void stack_build_close(struct stack_build *b)
{
    for (int i = 0; i < b->n_parts; i++) free(b->part[i].mat);
    free(b->part);
    free(b->part_of);
    stack_work_close(b);
    requant_free(&b->plan);
    memset(b, 0, sizeof *b);
    b->work = b->state = -1;
}

/* ---- encoding ------------------------------------------------------------------------------- */

/* Columns' importance: weight[n_cols] about 1 in the mean for the search, sum[n_cols] as it is. */
static void importance_of(const struct stack_part *p, int mat, float *weight, double *sum)
{
    const struct imatrix_entry *x = p->t->importance;
    const uint64_t n = (uint64_t)p->n_cols;
    for (uint64_t c = 0; c < n; c++) {
        weight[c] = 1;
        sum[c] = x ? x->sum[(uint64_t)mat * n + c] : 1;
    }
    if (x) imatrix_weights(x, (uint64_t)mat, n, weight);
}

/* What one task leaves: tasks add up in order, so the sums do not depend on threads. */
struct nested_piece {
    const struct stack_part *p;
    const char *in;          /* rows of the source */
    char *base;              /* their blocks */
    uint8_t *level[STACK_NESTED + 1];
    const float *weight;
    const double *sum;
    int n_rows, n_levels;
    struct stack_mat *tile;  /* [tiles] errors */
    _Atomic int failed;
};

static void nested_row(const struct nested_piece *j, int row, float *x, float *w, uint8_t *scale,
                       uint8_t *code, struct stack_mat *m)
{
    const int n = j->p->n_cols, blocks = n / 64;
    const enum qtype from = (enum qtype)j->p->t->in->type;
    codec_decode(from, j->in + qtype_bytes(from, (uint64_t)n) * (size_t)row, x, n);
    double mean = 0;
    for (int c = 0; c < n; c++) mean += (double)x[c] * (double)x[c];
    mean /= n;
    /* Large weights count more than small ones: what they do is less likely to cancel.  Perplexity of
     * the bundled model's held-out stories at 2.5 bits: 12.08 this way, 12.48 with the root of it,
     * 12.60 all alike; of the calibration text at 2.65 bits it was 8.79, and 8.68 all alike. */
    for (int c = 0; c < n; c++)
        w[c] = j->weight[c] * ((float)mean / 2 + x[c] * x[c]) + 1e-30f;
    nest_encode(x, w, n, scale, code);
    for (int b = 0; b < blocks; b++) {
        nest_put_base(scale[b], code + 64 * b,
                      (uint8_t *)j->base + (size_t)(row * blocks + b) * 17);
        for (int l = 1; l <= j->n_levels; l++)
            nest_put_level(code + 64 * b, l, row % TILE_ROWS,
                           j->level[l] + (size_t)(row / TILE_ROWS * blocks + b) * 128);
    }
    for (int c = 0; c < n; c++) {
        m->energy += j->sum[c] * (double)x[c] * (double)x[c];
        for (int d = 0; d <= j->n_levels; d++) {
            const double d_x = (double)x[c] - (double)nest_value(scale[c / 64], code[c], d);
            m->error[d] += j->sum[c] * d_x * d_x;
        }
    }
}

static void nested_task(void *arg, int task, int worker)
{
    (void)worker;
    struct nested_piece *j = arg;
    const size_t n = (size_t)j->p->n_cols;
    float *x = malloc(n * (2 * sizeof *x + 2));
    if (!x) {
        j->failed = 1;
        return;
    }
    uint8_t *code = (uint8_t *)(x + 2 * n), *scale = code + n;
    const int end = (task + 1) * TILE_ROWS < j->n_rows ? (task + 1) * TILE_ROWS : j->n_rows;
    for (int r = task * TILE_ROWS; r < end; r++)
        nested_row(j, r, x, x + n, scale, code, &j->tile[task]);
    free(x);
}

/* Rows row0 .. of a matrix; a multiple of 16 of them unless they are its last. */
static enum status nested_rows(struct stack_job *s, const struct stack_part *p, int mat, int row0,
                               int n_rows, const char *in, const float *weight, const double *sum,
                               struct err *e)
{
    const struct stack_build *b = s->b;
    const size_t tiles = (size_t)(n_rows + TILE_ROWS - 1) / TILE_ROWS;
    const size_t row = qtype_bytes(QTYPE_NEST2, (uint64_t)p->n_cols);
    const size_t plane = tiles * TILE_ROWS * (size_t)p->n_cols / 8;
    struct nested_piece j = {.p = p, .in = in, .weight = weight, .sum = sum, .n_rows = n_rows,
                             .n_levels = b->o.n_levels};
    char *mem = calloc(1, row * (size_t)n_rows + plane * STACK_NESTED + tiles * sizeof *j.tile);
    if (!mem) return err_set(e, ERR_MEMORY, "no memory to encode");
    j.tile = (struct stack_mat *)(void *)mem;
    j.level[1] = (uint8_t *)(j.tile + tiles);
    for (int l = 2; l <= STACK_NESTED; l++) j.level[l] = j.level[l - 1] + plane;
    j.base = (char *)j.level[STACK_NESTED] + plane;
    pool_run(s->pool, nested_task, &j, (int)tiles);
    enum status st = j.failed ? err_set(e, ERR_MEMORY, "no memory to encode") : OK;
    if (!st)
        st = stack_work_put(b, j.base, row * (size_t)n_rows,
                            stack_unit_at(b, p, mat, -1) + row * (size_t)row0, e);
    const uint64_t at = (uint64_t)row0 * (uint64_t)p->n_cols / 8;
    for (int l = 1; l <= b->o.n_levels && !st; l++)
        st = stack_work_put(b, j.level[l], plane, stack_unit_at(b, p, mat, l) + at, e);
    struct stack_mat *m = &p->mat[mat];
    for (size_t t = 0; t < tiles; t++) {
        m->energy += j.tile[t].energy;
        for (int d = 0; d <= b->o.n_levels; d++) m->error[d] += j.tile[t].error[d];
    }
    free(mem);
    return st;
}

static enum status encode_mat(struct stack_job *s, const struct stack_part *p, int mat,
                              struct err *e)
{
    const struct gguf_tensor *t = p->t->in;
    const uint64_t row = qtype_bytes((enum qtype)t->type, (uint64_t)p->n_cols);
    int step = PIECE_WEIGHTS / p->n_cols / TILE_ROWS * TILE_ROWS;
    if (step < TILE_ROWS) step = TILE_ROWS;
    if (s->b->o.base == QTYPE_SIGN1) step = p->n_rows;
    float *weight = malloc(sizeof *weight * (size_t)p->n_cols);
    double *sum = malloc(sizeof *sum * (size_t)p->n_cols);
    char *in = malloc(row * (size_t)(step < p->n_rows ? step : p->n_rows));
    enum status st = OK;
    if (!weight || !sum || !in) st = err_set(e, ERR_MEMORY, "no memory to encode");
    else importance_of(p, mat, weight, sum);
    for (int r = 0; r < p->n_rows && !st; r += step) {
        const int n = p->n_rows - r < step ? p->n_rows - r : step;
        const uint64_t at = t->offset + ((uint64_t)mat * t->dim[1] + (uint64_t)r) * row;
        st = osfile_read(&s->io.file[t->shard], in, row * (size_t)n, at, e);
        if (!st && s->b->o.base == QTYPE_NEST2)
            st = nested_rows(s, p, mat, r, n, in, weight, sum, e);
        if (!st && s->b->o.base == QTYPE_SIGN1) st = stack_factor(s, p, mat, in, sum, e);
        if (!st) st = requant_went(&s->io, row * (uint64_t)n, e);
    }
    free(weight);
    free(sum);
    free(in);
    return st;
}

enum status stack_encode(struct stack_build *b, const char *out, struct pool *pool,
                         requant_progress *progress, void *arg, struct err *e)
{
    struct stack_job s = {.b = b, .pool = pool,
                          .io = {.r = &b->plan, .progress = progress, .arg = arg}};
    for (int i = 0; i < b->n_parts; i++) s.io.total += b->part[i].t->in->bytes;
    enum status st = stack_work_open(b, out, e);
    if (!st) st = requant_open(&s.io, e);
    for (int i = 0; i < b->n_parts && !st; i++) {
        struct stack_part *p = &b->part[i];
        if (p->coded) {
            st = requant_went(&s.io, p->t->in->bytes, e);
            continue;
        }
        memset(p->mat, 0, sizeof *p->mat * (size_t)p->n_mats);
        for (int m = 0; m < p->n_mats && !st; m++) st = encode_mat(&s, p, m, e);
        if (!st) st = stack_work_coded(b, p, e);
    }
    requant_close(&s.io);
    return st;
}

/* ---- the order ------------------------------------------------------------------------------ */

struct ranked {
    double score;
    int32_t part, mat, level;
};

static int by_score(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    if (x->level != y->level) return x->level - y->level;
    if (x->part != y->part) return x->part - y->part;
    return x->mat - y->mat;
}

/* Levels of one matrix, best first: a level that helps more than the one before it, per byte, shares
 * with it, because it cannot come alone (the upper hull of what is gained over bytes). */
static void rank_levels(const struct stack_build *b, const struct stack_part *p, int mat,
                        struct ranked *r)
{
    const struct stack_mat *m = &p->mat[mat];
    for (int l = 1; l <= b->o.n_levels;) {
        double best = -1, gain = 0, bytes = 0;
        int to = l;
        for (int k = l; k <= b->o.n_levels; k++) {
            gain += p->worth * (m->error[k - 1] - m->error[k]);
            bytes += (double)stack_unit_bytes(b, p, k);
            if (gain / bytes > best) best = gain / bytes, to = k;
        }
        for (; l <= to; l++) r[l - 1] = (struct ranked){best, (int32_t)(p - b->part), mat, l};
    }
}

int32_t *stack_order(const struct stack_build *b, int *n, int *n_floor)
{
    const int levels = b->o.n_levels;
    size_t mats = 0, at = 0;
    for (int i = 0; i < b->n_parts; i++) mats += (size_t)b->part[i].n_mats;
    struct ranked *r = calloc(mats * (size_t)levels + 1, sizeof *r);
    int32_t *order = calloc(3 * mats * (size_t)(levels + 1) + 1, sizeof *order);
    *n = *n_floor = 0;
    if (r && order) {
        for (int i = 0; i < b->n_parts; i++)
            for (int m = 0; m < b->part[i].n_mats; m++, at += (size_t)levels) {
                rank_levels(b, &b->part[i], m, r + at);
                if (b->o.base == QTYPE_NEST2) continue;
                memcpy(order + 3 * (*n)++, (int32_t[]){i, m, 0}, 3 * sizeof *order);
            }
        *n_floor = *n;
        qsort(r, at, sizeof *r, by_score);
        for (size_t i = 0; i < at; i++)
            memcpy(order + 3 * (*n)++, (int32_t[]){r[i].part, r[i].mat, r[i].level},
                   3 * sizeof *order);
    }
    free(r);
    if (r) return order;
    free(order);
    return NULL;
}

uint64_t stack_order_bytes(const struct stack_build *b, const int32_t *order, int n)
{
    uint64_t sum = STACK_HEAD;
    for (int i = 0; i < n; i++)
        sum += stack_unit_bytes(b, &b->part[order[3 * i]], order[3 * i + 2]);
    return sum;
}

/* ---- writing -------------------------------------------------------------------------------- */

/* Of what the levels belong to: names, shapes, and what the bases leave of each matrix. */
static uint64_t hash_of(const struct stack_build *b)
{
    uint64_t h = STACK_HASH;
    for (int i = 0; i < b->n_parts; i++) {
        const struct stack_part *p = &b->part[i];
        h = stack_hash(h, p->t->in->name.s, p->t->in->name.n);
        h = stack_hash(h, p->t->in->dim, sizeof p->t->in->dim);
        for (int m = 0; m < p->n_mats; m++) h = stack_hash(h, &p->mat[m], sizeof p->mat[m]);
    }
    return h;
}

static void put_keys(struct stack_job *s, const int32_t *order, int n, int n_floor,
                     const struct stack_curve *curve, struct gguf_str *names)
{
    const struct stack_build *b = s->b;
    struct gguf_writer *w = s->io.w;
    requant_put_keys(&s->io);
    gguf_put_u32(w, "tessera.stack.version", 1);
    gguf_put_str(w, "tessera.stack.codec", b->o.base == QTYPE_NEST2 ? "nested" : "factored");
    if (b->o.base == QTYPE_SIGN1) gguf_put_u32(w, "tessera.stack.rank", (uint32_t)b->o.rank);
    for (int i = 0; i < b->n_parts; i++) names[i] = b->part[i].t->in->name;
    gguf_put_strs(w, "tessera.stack.tensors", names, (uint64_t)b->n_parts);
    gguf_put_array(w, "tessera.stack.order", GGUF_I32, order, 3 * (uint64_t)n);
    gguf_put_u64(w, "tessera.stack.floor", (uint64_t)n_floor);
    gguf_put_u64(w, "tessera.stack.hash", hash_of(b));
    if (!curve || !curve->n) return;
    gguf_put_array(w, "tessera.stack.curve_units", GGUF_I32, curve->units, (uint64_t)curve->n);
    gguf_put_array(w, "tessera.stack.curve_ppl", GGUF_F32, curve->ppl, (uint64_t)curve->n);
    if (curve->text) gguf_put_str(w, "tessera.stack.curve_text", curve->text);
}

static void put_tensors(struct stack_job *s, uint64_t level_bytes)
{
    const struct stack_build *b = s->b;
    for (uint64_t i = 0; i < b->plan.n; i++) {
        const struct gguf_tensor *t = b->plan.tensor[i].in;
        if (b->part_of[i] < 0) {
            requant_put_tensor(&s->io, &b->plan.tensor[i]);
            continue;
        }
        const struct stack_part *p = &b->part[b->part_of[i]];
        const uint64_t dim[3] = {qtype_bytes(b->o.base, (uint64_t)p->n_cols), (uint64_t)p->n_rows,
                                 (uint64_t)p->n_mats};
        char name[256];
        (void)snprintf(name, sizeof name, "%.*s", (int)t->name.n, t->name.s);
        gguf_put_tensor(s->io.w, name, GGUF_TENSOR_I8, p->n_mats > 1 ? 3 : 2, dim,
                        dim[0] * dim[1] * dim[2]);
    }
    gguf_put_tensor(s->io.w, "tessera.stack.levels", GGUF_TENSOR_I8, 2,
                    (uint64_t[]){STACK_ROW, level_bytes / STACK_ROW}, level_bytes);
}

/* n bytes of the work file into the stack file. */
static enum status copy_work(struct stack_job *s, uint64_t at, uint64_t n, struct err *e)
{
    enum { STEP = 1 << 20 };
    char *buf = malloc(n < STEP ? (size_t)n + 1 : STEP);
    enum status st = buf ? OK : err_set(e, ERR_MEMORY, "no memory to copy");
    for (uint64_t k = 0; k < n && !st; k += STEP) {
        const size_t m = n - k < STEP ? (size_t)(n - k) : STEP;
        st = stack_work_get(s->b, buf, m, at + k, e);
        if (!st) st = gguf_writer_data(s->io.w, buf, m, e);
        if (!st) st = requant_went(&s->io, m, e);
    }
    free(buf);
    return st;
}

static enum status write_data(struct stack_job *s, const int32_t *order, int n, struct err *e)
{
    const struct stack_build *b = s->b;
    enum status st = OK;
    for (uint64_t i = 0; i < b->plan.n && !st; i++) {
        if (b->part_of[i] < 0) {
            st = requant_write_tensor(&s->io, &b->plan.tensor[i], s->pool, e);
            continue;
        }
        const struct stack_part *p = &b->part[b->part_of[i]];
        for (int m = 0; m < p->n_mats && !st; m++)
            st = copy_work(s, stack_unit_at(b, p, m, -1), stack_mat_bytes(b, p), e);
    }
    char head[STACK_HEAD] = "TSRSTACK";
    const uint64_t hash = hash_of(b);
    memcpy(head + 8, &hash, sizeof hash);
    if (!st) st = gguf_writer_data(s->io.w, head, sizeof head, e);
    for (int i = 0; i < n && !st; i++) {
        const struct stack_part *p = &b->part[order[3 * i]];
        st = copy_work(s, stack_unit_at(b, p, order[3 * i + 1], order[3 * i + 2]),
                       stack_unit_bytes(b, p, order[3 * i + 2]), e);
    }
    return st;
}

enum status stack_write(const struct stack_build *b, const char *out, const int32_t *order, int n,
                        int n_floor, const struct stack_curve *curve, struct pool *pool,
                        requant_progress *progress, void *arg, struct err *e)
{
    struct stack_job s = {.b = b, .pool = pool,
                          .io = {.r = &b->plan, .progress = progress, .arg = arg}};
    struct gguf_str *names = calloc((size_t)b->n_parts, sizeof *names);
    enum status st = names ? requant_open(&s.io, e) : err_set(e, ERR_MEMORY, "no memory to write");
    const uint64_t levels = stack_order_bytes(b, order, n);
    s.io.total = levels - STACK_HEAD;
    for (uint64_t i = 0; i < b->plan.n; i++) {
        const struct stack_part *p = b->part_of[i] < 0 ? NULL : &b->part[b->part_of[i]];
        s.io.total += p ? stack_mat_bytes(b, p) * (uint64_t)p->n_mats : b->plan.tensor[i].in->bytes;
    }
    if (!st) {
        put_keys(&s, order, n, n_floor, curve, names);
        put_tensors(&s, levels);
        st = gguf_writer_begin(s.io.w, out, e);
    }
    if (!st) st = write_data(&s, order, n, e);
    if (!st) st = gguf_writer_end(s.io.w, e);
    requant_close(&s.io);
    free(names);
    return st;
}
