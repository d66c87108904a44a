/* See requant.h. */
#include "quant/build/requant.h"

#include <stdlib.h>
#include <string.h>

#include "quant/codec.h"

enum { PIECE_WEIGHTS = 1 << 20, TASK_WEIGHTS = 1 << 15 };

static bool ends_with(struct gguf_str s, const char *tail)
{
    const size_t n = strlen(tail);
    return s.n >= n && !memcmp(s.s + s.n - n, tail, n);
}

/* Matrices that are multiplied by activations; routers and small projections stay exact. */
static bool is_matrix(const struct gguf_tensor *t)
{
    return t->n_dims >= 2 && ends_with(t->name, ".weight") &&
           !ends_with(t->name, "ffn_gate_inp.weight") &&
           !ends_with(t->name, "ffn_gate_inp_shexp.weight") &&
           !ends_with(t->name, "norm.weight") && !ends_with(t->name, "conv1d.weight");
}

static enum qtype fitting(enum qtype want, uint64_t n_cols)
{
    if (n_cols % (uint64_t)qtype_info(want)->block == 0) return want;
    return n_cols % 32 == 0 ? QTYPE_Q8_0 : QTYPE_F16;
}

enum status requant_plan(struct requant *r, const struct gguf *in, enum qtype type, struct err *e)
{
    memset(r, 0, sizeof *r);
    if (!codec_can_encode(type))
        return err_set(e, ERR_UNSUPPORTED, "weight type %s can be read, but not written yet",
                       qtype_info((uint32_t)type)->name);
    r->in = in;
    r->tensor = calloc((size_t)gguf_n_tensors(in) + 1, sizeof *r->tensor);
    if (!r->tensor) return err_set(e, ERR_MEMORY, "no memory for the list of tensors");
    for (uint64_t i = 0; i < gguf_n_tensors(in); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(in, i);
        struct requant_tensor *q = &r->tensor[r->n++];
        if (!qtype_info(t->type)) {
            requant_free(r);
            return err_set_at(e, ERR_UNSUPPORTED, t->offset,
                              "%s: tensor %.*s has weight type %u, which cannot be read",
                              gguf_path(in, t->shard), (int)t->name.n, t->name.s, t->type);
        }
        q->in = t;
        q->kept = !is_matrix(t);
        q->type = q->kept ? (enum qtype)t->type : fitting(type, t->dim[0]);
        q->fallback = !q->kept && q->type != type;
        q->bytes = qtype_bytes(q->type, t->dim[0] * t->dim[1] * t->dim[2] * t->dim[3]);
        r->bytes_in += t->bytes;
        r->bytes_out += q->bytes;
    }
    return OK;
}

void requant_free(struct requant *r)
{
    free(r->tensor);
    memset(r, 0, sizeof *r);
}

/* ---- one piece: some whole rows of a tensor ---- */

struct piece {
    const struct requant_tensor *t;
    const char *in;
    char *out;
    float *x;
    int64_t n;    /* weights */
    int64_t task; /* weights per task, whole rows */
};

static void encode_task(void *arg, int task, int worker)
{
    (void)worker;
    const struct piece *p = arg;
    const int64_t at = (int64_t)task * p->task;
    const int64_t n = p->n - at < p->task ? p->n - at : p->task;
    const enum qtype from = (enum qtype)p->t->in->type;
    codec_decode(from, p->in + qtype_bytes(from, (uint64_t)at), p->x + at, n);
    codec_encode(p->t->type, p->x + at, p->out + qtype_bytes(p->t->type, (uint64_t)at), n);
}

struct job {
    const struct requant *r;
    struct osfile *file; /* [shards] */
    struct gguf_writer *w;
    struct pool *pool;
    char *in, *out;      /* PIECE_WEIGHTS at their widest, or one row if that is longer */
    float *x;
    uint64_t room;
    bool (*progress)(void *arg, uint64_t done, uint64_t total);
    void *arg;
    uint64_t done;
};

static enum status write_tensor(struct job *j, const struct requant_tensor *t, struct err *e)
{
    const uint64_t cols = t->in->dim[0], rows = t->in->dim[1] * t->in->dim[2] * t->in->dim[3];
    const uint64_t step = cols < j->room ? j->room / cols : 1;
    const enum qtype from = (enum qtype)t->in->type;
    for (uint64_t row = 0; row < rows; row += step) {
        const uint64_t n = (rows - row < step ? rows - row : step) * cols;
        const uint64_t bytes = qtype_bytes(from, n);
        enum status s = osfile_read(&j->file[t->in->shard], j->in, bytes,
                                    t->in->offset + qtype_bytes(from, row * cols), e);
        if (!s && t->type == from) {
            s = gguf_writer_data(j->w, j->in, bytes, e);
        } else if (!s) {
            const uint64_t task = cols < TASK_WEIGHTS ? TASK_WEIGHTS / cols * cols : cols;
            struct piece p = {t, j->in, j->out, j->x, (int64_t)n, (int64_t)task};
            pool_run(j->pool, encode_task, &p, (int)((n + task - 1) / task));
            s = gguf_writer_data(j->w, j->out, qtype_bytes(t->type, n), e);
        }
        if (s) return s;
        j->done += bytes;
        if (j->progress && !j->progress(j->arg, j->done, j->r->bytes_in))
            return err_set(e, ERR_CANCELLED, "interrupted");
    }
    return OK;
}

static void put_header(struct job *j)
{
    const struct gguf *g = j->r->in;
    for (uint64_t i = 0; i < gguf_n_kv(g); i++) {
        const struct gguf_kv *kv = gguf_kv_at(g, i);
        const struct gguf_str k = kv->key;
        /* A split set becomes one file; the file type describes the old weights. */
        if (k.n > 6 && !memcmp(k.s, "split.", 6)) continue;
        if (k.n == 17 && !memcmp(k.s, "general.file_type", 17)) continue;
        gguf_put_kv(j->w, kv);
    }
    for (uint64_t i = 0; i < j->r->n; i++) {
        const struct requant_tensor *t = &j->r->tensor[i];
        char name[256];
        (void)snprintf(name, sizeof name, "%.*s", (int)t->in->name.n, t->in->name.s);
        gguf_put_tensor(j->w, name, t->type, t->in->n_dims, t->in->dim, t->bytes);
    }
}

static enum status open_job(struct job *j, struct err *e)
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
    if (!j->w || !j->file || !j->in || !j->out || !j->x)
        return err_set(e, ERR_MEMORY, "no memory to requantise");
    for (int i = 0; i < n; i++) j->file[i].fd = -1;
    for (int i = 0; i < n; i++) {
        enum status s = osfile_open(&j->file[i], gguf_path(j->r->in, i), 0, NULL, e);
        if (s) return s;
    }
    return OK;
}

enum status requant_write(const struct requant *r, const char *out, struct pool *pool,
                          bool (*progress)(void *arg, uint64_t done, uint64_t total), void *arg,
                          struct err *e)
{
    struct job j = {.r = r, .pool = pool, .progress = progress, .arg = arg};
    enum status s = open_job(&j, e);
    if (!s) {
        put_header(&j);
        s = gguf_writer_begin(j.w, out, e);
    }
    for (uint64_t i = 0; i < r->n && !s; i++) s = write_tensor(&j, &r->tensor[i], e);
    if (!s) s = gguf_writer_end(j.w, e);
    gguf_writer_close(j.w);
    for (int i = 0; j.file && i < gguf_n_shards(r->in); i++) osfile_close(&j.file[i]);
    free(j.file);
    free(j.in);
    free(j.out);
    free(j.x);
    return s;
}
