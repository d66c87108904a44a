/* See requant.h. */
#include "quant/build/requant.h"

#include <stdlib.h>
#include <string.h>

#include "quant/codec.h"

enum { PIECE_WEIGHTS = 1 << 20, TASK_WEIGHTS = 1 << 15, QUANTISATION_VERSION = 2 };

static bool is_float(uint32_t type)
{
    return type == QTYPE_F32 || type == QTYPE_F16 || type == QTYPE_BF16;
}

/* ---- the plan ---- */

static enum status find_importance(struct requant *r, struct requant_tensor *q, struct err *e)
{
    const struct gguf_tensor *t = q->in;
    const bool searched = !q->kept && q->type != t->type && !is_float(q->type) &&
                          q->type != QTYPE_Q8_0;
    r->n_searched += searched;
    if (!r->imatrix || !searched) return OK;
    const struct imatrix_entry *x = imatrix_find(r->imatrix, t->name);
    const uint64_t n_mats = t->dim[2] * t->dim[3];
    if (!x) {
        if (!r->n_missing++) r->missing = q;
        return OK;
    }
    if (x->n_sums != t->dim[0] * n_mats || (x->n_counts != 1 && x->n_counts != n_mats))
        return err_set(e, ERR_SHAPE, "the importance matrix has %llu values for %.*s, which has "
                       "%llu columns in %llu matrices: it was made from another model",
                       (unsigned long long)x->n_sums, (int)t->name.n, t->name.s,
                       (unsigned long long)t->dim[0], (unsigned long long)n_mats);
    q->importance = x;
    return OK;
}

static enum status plan_tensor(struct requant *r, const struct gguf_tensor *t,
                               const struct recipe_choice *c, struct err *e)
{
    struct requant_tensor *q = &r->tensor[r->n++];
    if (!qtype_in_files(t->type))
        return err_set_at(e, ERR_UNSUPPORTED, t->offset,
                          "%s: tensor %.*s has weight type %u, which cannot be read",
                          gguf_path(r->in, t->shard), (int)t->name.n, t->name.s, t->type);
    *q = (struct requant_tensor){
        .in = t, .type = c->type, .kept = c->kept, .fallback = c->fallback};
    if (q->type != t->type && !codec_can_encode(q->type))
        return err_set(e, ERR_UNSUPPORTED, "%.*s: weight type %s can be read, but not written yet",
                       (int)t->name.n, t->name.s, qtype_info((uint32_t)q->type)->name);
    if (q->type != t->type && !is_float(t->type) && !r->lossy) r->lossy = q;
    q->bytes = qtype_bytes(q->type, t->dim[0] * t->dim[1] * t->dim[2] * t->dim[3]);
    r->bytes_in += t->bytes;
    r->bytes_out += q->bytes;
    return find_importance(r, q, e);
}

enum status requant_plan(struct requant *r, const struct gguf *in, const struct recipe_options *o,
                         const struct imatrix *imatrix, struct err *e)
{
    const size_t n = (size_t)gguf_n_tensors(in) + 1;
    memset(r, 0, sizeof *r);
    r->in = in;
    r->recipe = o->recipe;
    r->imatrix = imatrix;
    r->tensor = calloc(n, sizeof *r->tensor);
    struct recipe_choice *choice = calloc(n, sizeof *choice);
    enum status s = r->tensor && choice
                        ? recipe_choose(o, in, choice, e)
                        : err_set(e, ERR_MEMORY, "no memory for the list of tensors");
    for (uint64_t i = 0; i < gguf_n_tensors(in) && !s; i++)
        s = plan_tensor(r, gguf_tensor_at(in, i), &choice[i], e);
    if (!s && imatrix && r->n_searched && r->n_missing == r->n_searched)
        s = err_set(e, ERR_MISSING, "the importance matrix has nothing for any matrix of %s: it "
                    "was made from another model", gguf_path(in, 0));
    free(choice);
    if (s) requant_free(r);
    return s;
}

void requant_free(struct requant *r)
{
    free(r->tensor);
    memset(r, 0, sizeof *r);
}

/* ---- one piece: some whole rows of a tensor ---- */

struct piece {
    const struct requant_tensor *t;
    enum cpu_tier tier;
    const float *importance; /* [n_mats][cols], NULL = none */
    uint64_t row;            /* of the tensor, where the piece begins */
    uint64_t n_rows;
    uint64_t task;           /* rows per task */
    const char *in;
    char *out;
    float *x;
};

static void encode_task(void *arg, int task, int worker)
{
    (void)worker;
    const struct piece *p = arg;
    const struct gguf_tensor *t = p->t->in;
    const uint64_t cols = t->dim[0], first = (uint64_t)task * p->task;
    const uint64_t end = first + p->task < p->n_rows ? first + p->task : p->n_rows;
    const enum qtype from = (enum qtype)t->type, to = p->t->type;
    codec_decode(from, p->in + qtype_bytes(from, first * cols), p->x + first * cols,
                 (int64_t)((end - first) * cols));
    for (uint64_t r = first; r < end; r++) {
        const float *w = p->importance ? p->importance + (p->row + r) / t->dim[1] * cols : NULL;
        codec_encode(p->tier, to, p->x + r * cols, w, p->out + qtype_bytes(to, r * cols),
                     (int64_t)cols);
    }
}

static enum status importance_of(const struct requant_tensor *t, float **out, struct err *e)
{
    const uint64_t cols = t->in->dim[0], n_mats = t->in->dim[2] * t->in->dim[3];
    *out = NULL;
    if (!t->importance) return OK;
    *out = malloc((size_t)(n_mats * cols) * sizeof **out);
    if (!*out)
        return err_set(e, ERR_MEMORY, "no memory for the importance of %.*s", (int)t->in->name.n,
                       t->in->name.s);
    for (uint64_t m = 0; m < n_mats; m++)
        imatrix_weights(t->importance, m, cols, *out + m * cols);
    return OK;
}

enum status requant_went(struct requant_job *j, uint64_t bytes, struct err *e)
{
    j->done += bytes;
    if (!j->progress || j->progress(j->arg, j->done, j->total)) return OK;
    return err_set(e, ERR_CANCELLED, "interrupted");
}

static enum status write_rows(struct requant_job *j, const struct requant_tensor *t, const float *w,
                              struct pool *pool, struct err *e)
{
    const uint64_t cols = t->in->dim[0], rows = t->in->dim[1] * t->in->dim[2] * t->in->dim[3];
    const uint64_t step = cols < j->room ? j->room / cols : 1;
    const enum qtype from = (enum qtype)t->in->type;
    for (uint64_t row = 0; row < rows; row += step) {
        const uint64_t n = rows - row < step ? rows - row : step;
        const uint64_t bytes = qtype_bytes(from, n * cols);
        enum status s = osfile_read(&j->file[t->in->shard], j->in, bytes,
                                    t->in->offset + qtype_bytes(from, row * cols), e);
        if (!s && t->type == from) {
            s = gguf_writer_data(j->w, j->in, bytes, e);
        } else if (!s) {
            const uint64_t task = cols < TASK_WEIGHTS ? TASK_WEIGHTS / cols : 1;
            struct piece p = {t, cpu_tier_best(), w, row, n, task, j->in, j->out, j->x};
            pool_run(pool, encode_task, &p, (int)((n + task - 1) / task));
            s = gguf_writer_data(j->w, j->out, qtype_bytes(t->type, n * cols), e);
        }
        if (s || (s = requant_went(j, bytes, e))) return s;
    }
    return OK;
}

enum status requant_write_tensor(struct requant_job *j, const struct requant_tensor *t,
                                 struct pool *pool, struct err *e)
{
    float *w;
    enum status s = importance_of(t, &w, e);
    if (!s) s = write_rows(j, t, w, pool, e);
    free(w);
    return s;
}

/* ---- the file ---- */

void requant_put_keys(struct requant_job *j)
{
    const struct gguf *in = j->r->in;
    for (uint64_t i = 0; i < gguf_n_kv(in); i++) {
        const struct gguf_kv *kv = gguf_kv_at(in, i);
        /* A split set becomes one file; the rest described the old weights. */
        if (kv->key.n > 6 && !memcmp(kv->key.s, "split.", 6)) continue;
        if (kv->key.n > 17 && !memcmp(kv->key.s, "quantize.imatrix.", 17)) continue;
        if (gguf_str_is(kv->key, "general.file_type") ||
            gguf_str_is(kv->key, "general.quantization_version"))
            continue;
        gguf_put_kv(j->w, kv);
    }
    gguf_put_u32(j->w, "general.quantization_version", QUANTISATION_VERSION);
}

void requant_put_tensor(struct requant_job *j, const struct requant_tensor *t)
{
    char name[256];
    (void)snprintf(name, sizeof name, "%.*s", (int)t->in->name.n, t->in->name.s);
    gguf_put_tensor(j->w, name, (uint32_t)t->type, t->in->n_dims, t->in->dim, t->bytes);
}

static void put_header(struct requant_job *j, const struct requant_origin *origin)
{
    const struct requant *r = j->r;
    requant_put_keys(j);
    gguf_put_u32(j->w, "general.file_type", r->recipe->file_type);
    if (r->imatrix) {
        if (origin->imatrix_file) gguf_put_str(j->w, "quantize.imatrix.file", origin->imatrix_file);
        if (origin->imatrix_dataset)
            gguf_put_str(j->w, "quantize.imatrix.dataset", origin->imatrix_dataset);
        gguf_put_u32(j->w, "quantize.imatrix.entries_count", (uint32_t)r->imatrix->n);
        gguf_put_u32(j->w, "quantize.imatrix.chunks_count", r->imatrix->n_chunks);
    }
    for (uint64_t i = 0; i < r->n; i++) requant_put_tensor(j, &r->tensor[i]);
}

enum status requant_open(struct requant_job *j, struct err *e)
{
    const int n = gguf_n_shards(j->r->in);
    j->room = PIECE_WEIGHTS;
    for (uint64_t i = 0; i < j->r->n; i++)
        if (j->r->tensor[i].in->dim[0] > j->room) j->room = j->r->tensor[i].in->dim[0];
    j->w = gguf_writer_new();
    j->file = calloc((size_t)n, sizeof *j->file);
    j->in = malloc(j->room * sizeof(float));
    j->out = malloc(j->room * sizeof(float));
    j->x = malloc(j->room * sizeof(float));
    for (int i = 0; j->file && i < n; i++) j->file[i].fd = -1;
    if (!j->w || !j->file || !j->in || !j->out || !j->x)
        return err_set(e, ERR_MEMORY, "no memory to requantise");
    for (int i = 0; i < n; i++) {
        enum status s = osfile_open(&j->file[i], gguf_path(j->r->in, i), OSFILE_BUFFERED, NULL, e);
        if (s) return s;
    }
    return OK;
}

void requant_close(struct requant_job *j)
{
    gguf_writer_close(j->w);
    for (int i = 0; j->file && i < gguf_n_shards(j->r->in); i++) osfile_close(&j->file[i]);
    free(j->file);
    free(j->in);
    free(j->out);
    free(j->x);
}

enum status requant_write(const struct requant *r, const char *out,
                          const struct requant_origin *origin, struct pool *pool,
                          requant_progress *progress, void *arg, struct err *e)
{
    struct requant_job j = {.r = r, .progress = progress, .arg = arg, .total = r->bytes_in};
    enum status s = requant_open(&j, e);
    if (!s) {
        put_header(&j, origin);
        s = gguf_writer_begin(j.w, out, e);
    }
    for (uint64_t i = 0; i < r->n && !s; i++) s = requant_write_tensor(&j, &r->tensor[i], pool, e);
    if (!s) s = gguf_writer_end(j.w, e);
    requant_close(&j);
    return s;
}
