/* See informed.h. */
#include "moe/run/informed.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "moe/base/rng.h"
#include "moe/run/engine_int.h"

static const char TYPE[] = "tessera.forecasters";
enum { SIDE_MAX = 1 << 16 };

/* ---- the side file ---- */

void forecasters_free(struct forecasters *f)
{
    free(f->op);
    free(f->layer);
    free(f->data);
    memset(f, 0, sizeof *f);
}

enum status forecasters_write(const struct forecasters *f, const char *model_name, const char *path,
                              struct err *e)
{
    struct gguf_writer *w = gguf_writer_new();
    float *bias = malloc(sizeof *bias * (size_t)f->n_parts);
    if (!w || !bias) {
        gguf_writer_close(w);
        free(bias);
        return err_set(e, ERR_MEMORY, "no memory to write %s", path);
    }
    for (int k = 0; k < f->n_parts; k++) bias[k] = f->layer[k].judge_bias;
    const uint64_t dim[2] = {(uint64_t)approx_floats(f->n_embd, f->rank), (uint64_t)f->n_parts};
    gguf_put_str(w, "general.type", TYPE);
    gguf_put_u64(w, "tessera.model.hash", f->model_hash);
    gguf_put_str(w, "tessera.model.name", model_name);
    gguf_put_u32(w, "tessera.forecasters.n_embd", (uint32_t)f->n_embd);
    gguf_put_u32(w, "tessera.forecasters.rank", (uint32_t)f->rank);
    gguf_put_array(w, "tessera.forecasters.parts", GGUF_I32, f->op, (uint64_t)f->n_parts);
    gguf_put_array(w, "tessera.forecasters.judge_bias", GGUF_F32, bias, (uint64_t)f->n_parts);
    gguf_put_array(w, "tessera.forecasters.quantiles", GGUF_F32, f->quantile, 101);
    gguf_put_array(w, "tessera.forecasters.share", GGUF_F32, f->share, (uint64_t)f->n_prices);
    gguf_put_array(w, "tessera.forecasters.kl", GGUF_F32, f->kl, (uint64_t)f->n_prices);
    gguf_put_tensor(w, "layers", QTYPE_F32, 2, dim, dim[0] * dim[1] * sizeof(float));
    enum status s = gguf_writer_begin(w, path, e);
    if (!s) s = gguf_writer_data(w, f->data, dim[0] * dim[1] * sizeof(float), e);
    if (!s) s = gguf_writer_end(w, e);
    gguf_writer_close(w);
    free(bias);
    return s;
}

/* An array of n elements of that type, every one finite; NULL otherwise. */
static const struct gguf_kv *list(const struct gguf *g, const char *key, uint32_t elem, uint64_t n)
{
    const struct gguf_kv *kv = gguf_find(g, key);
    if (!kv || kv->value.type != GGUF_ARRAY || kv->value.elem != elem || kv->value.n != n) return NULL;
    for (uint64_t i = 0; i < n && elem == GGUF_F32; i++)
        if (!isfinite(gguf_elem_f64(&kv->value, i))) return NULL;
    return kv;
}

static enum status take(struct forecasters *f, const struct gguf *g, struct err *e)
{
    const char *path = gguf_path(g, 0);
    struct gguf_str type;
    uint64_t n_embd, rank;
    enum status s;
    if (gguf_get_str(g, "general.type", &type, NULL) || !gguf_str_is(type, TYPE))
        return err_set(e, ERR_FORMAT, "%s holds no forecasters: `tessera trace --fit-forecasters` makes "
                       "them", path);
    if ((s = gguf_get_u64(g, "tessera.model.hash", &f->model_hash, e)) ||
        (s = gguf_get_u64(g, "tessera.forecasters.n_embd", &n_embd, e)) ||
        (s = gguf_get_u64(g, "tessera.forecasters.rank", &rank, e)))
        return s;
    const struct gguf_tensor *t = gguf_find_tensor(g, "layers");
    const struct gguf_kv *share = gguf_find(g, "tessera.forecasters.share");
    const uint64_t parts = t && t->n_dims == 2 ? t->dim[1] : t ? 1 : 0;
    const uint64_t prices = share && share->value.type == GGUF_ARRAY ? share->value.n : 0;
    const struct gguf_kv *op = list(g, "tessera.forecasters.parts", GGUF_I32, parts),
                         *bias = list(g, "tessera.forecasters.judge_bias", GGUF_F32, parts),
                         *q = list(g, "tessera.forecasters.quantiles", GGUF_F32, 101),
                         *kl = list(g, "tessera.forecasters.kl", GGUF_F32, prices);
    if (gguf_n_shards(g) != 1 || !n_embd || n_embd > SIDE_MAX || !rank || rank > APPROX_RANK_MAX ||
        !parts || parts > SIDE_MAX || !op || !bias || !q || !kl || prices > APPROX_PRICES ||
        t->type != QTYPE_F32 || t->dim[0] != (uint64_t)approx_floats((int)n_embd, (int)rank))
        return err_set(e, ERR_SHAPE, "%s: the forecasters' sizes do not suit each other", path);
    f->n_embd = (int)n_embd;
    f->rank = (int)rank;
    f->n_parts = (int)parts;
    f->n_prices = (int)prices;
    const long each = approx_floats(f->n_embd, f->rank);
    f->op = calloc(parts, sizeof *f->op);
    f->layer = calloc(parts, sizeof *f->layer);
    f->data = malloc(sizeof *f->data * (size_t)each * parts);
    if (!f->op || !f->layer || !f->data) return err_set(e, ERR_MEMORY, "no memory to read %s", path);
    for (int k = 0; k < f->n_parts; k++) {
        f->op[k] = (int32_t)gguf_elem_i64(&op->value, (uint64_t)k);
        approx_point(f->n_embd, f->rank, f->data + each * k, &f->layer[k]);
        f->layer[k].judge_bias = (float)gguf_elem_f64(&bias->value, (uint64_t)k);
    }
    for (int i = 0; i < 101; i++) f->quantile[i] = (float)gguf_elem_f64(&q->value, (uint64_t)i);
    for (int i = 0; i < f->n_prices; i++) {
        f->share[i] = (float)gguf_elem_f64(&share->value, (uint64_t)i);
        f->kl[i] = (float)gguf_elem_f64(&kl->value, (uint64_t)i);
    }
    struct osfile file;
    if ((s = osfile_open(&file, path, 0, NULL, e))) return s;
    s = osfile_read(&file, f->data, sizeof *f->data * (size_t)each * parts, t->offset, e);
    osfile_close(&file);
    for (size_t i = 0; i < (size_t)each * parts && !s; i++)
        if (!isfinite(f->data[i])) s = err_set(e, ERR_FORMAT, "%s: a weight is no number", path);
    return s;
}

enum status forecasters_read(struct forecasters *f, const char *path, struct err *e)
{
    struct gguf *g;
    memset(f, 0, sizeof *f);
    enum status s = gguf_open(path, NULL, &g, e);
    if (s == ERR_FORMAT) { /* what is said of models that do not open helps nobody here */
        err_clear(e);
        return err_set(e, s, "%s holds no forecasters, or is damaged: `tessera trace --fit-forecasters` makes "
                       "them", path);
    }
    if (s) return s;
    s = take(f, g, e);
    gguf_close(g);
    if (s) forecasters_free(f);
    return s;
}

double forecasters_price(const struct forecasters *f, double share)
{
    for (int i = 0; i < f->n_prices; i++)
        if (fabs((double)f->share[i] - share) < 0.005) return (double)f->kl[i];
    return NAN;
}

/* ---- in an engine ---- */

struct approx *approx_of(tessera_engine *e) { return e->approx; }

void approx_close(struct approx *a)
{
    if (!a) return;
    forecasters_free(&a->f);
    free(a->part);
    free(a->begins);
    free(a->ends);
    free(a->of);
    free(a->x);
    free(a->z);
    free(a->on);
    free(a->n_of);
    free(a);
}

static enum status bind(struct approx *a, const struct tessera_engine *e, struct err *err)
{
    const int n_op = e->model.n_op;
    const size_t rows = (size_t)e->opt.n_ubatch, d = (size_t)e->hp.n_embd;
    a->begins = malloc(sizeof *a->begins * (size_t)(n_op + 1));
    a->ends = malloc(sizeof *a->ends * (size_t)(n_op + 1));
    a->of = malloc(sizeof *a->of * (size_t)a->n_parts);
    a->x = malloc(sizeof *a->x * rows * d);
    a->z = malloc(sizeof *a->z * rows * d);
    a->on = calloc(rows, 1);
    a->n_of = calloc(rows, sizeof *a->n_of);
    if (!a->begins || !a->ends || !a->of || !a->x || !a->z || !a->on || !a->n_of)
        return err_set(err, ERR_MEMORY, "no memory for informed routing");
    a->open = -1;
    for (int i = 0; i <= n_op; i++) a->begins[i] = a->ends[i] = -1;
    for (int p = 0; p < a->n_parts; p++) {
        a->of[p] = -1;
        if (a->part[p].kind != BRANCH_FEED_FORWARD) continue;
        a->begins[a->part[p].from] = p;
        a->ends[a->part[p].to] = p;
    }
    return OK;
}

enum status approx_open(struct tessera_engine *e, const char *path, struct err *err)
{
    struct approx *a = calloc(1, sizeof *a);
    if (!a) return err_set(err, ERR_MEMORY, "no memory for informed routing");
    enum status s = branches_parts(e, &a->part, &a->n_parts, err);
    if (!s) s = bind(a, e, err);
    struct forecasters f = {.n_parts = 0};
    if (!s && path) s = forecasters_read(&f, path, err);
    if (!s && path && (f.model_hash != e->identity || f.n_embd != e->hp.n_embd))
        s = err_set(err, ERR_SHAPE, "%s was fitted to another model: `tessera trace --fit-forecasters` "
                    "fits it to this one", path);
    a->bytes = sizeof(float) * ((2 * (uint64_t)e->hp.n_embd + 1) * (uint64_t)e->opt.n_ubatch +
                                (uint64_t)approx_floats(f.n_embd, f.rank) * (uint64_t)f.n_parts);
    if (!s && path) approx_take(a, &f);
    else forecasters_free(&f);
    if (s) approx_close(a);
    else e->approx = a;
    return s;
}

void approx_take(struct approx *a, struct forecasters *f)
{
    a->f = *f;
    memset(f, 0, sizeof *f);
    for (int p = 0; p < a->n_parts; p++) {
        a->of[p] = -1;
        for (int k = 0; k < a->f.n_parts; k++)
            if (a->f.op[k] == a->part[p].from && a->part[p].kind == BRANCH_FEED_FORWARD) a->of[p] = k;
    }
}

void approx_set(struct approx *a, enum approx_mode mode, double share)
{
    const double at = 100 * share;
    const int i = at >= 100 ? 99 : (int)at;
    a->mode = share > 0 ? mode : APPROX_OFF;
    a->share = share;
    const float *q = mode == APPROX_GATE ? a->gate : a->f.quantile;
    a->threshold = q[i] + (float)(at - i) * (q[i + 1] - q[i]);
    a->rows = a->rows_on = a->skipped = 0;
}

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

void approx_gates(struct approx *a, float *w, long n)
{
    if (n > 0) qsort(w, (size_t)n, sizeof *w, by_value);
    for (int i = 0; i <= 100 && n > 0; i++) a->gate[i] = w[(n - 1) * i / 100];
}

int32_t *approx_routed(struct tessera_engine *e, const struct route_params *p, int n, int32_t *id,
                       float *w)
{
    struct approx *a = e->approx;
    const int k = p->n_used, keep_sum = p->normalise || p->score == ROUTE_SOFTMAX_CHOSEN;
    if (a->see_gates) a->see_gates(a->see_arg, n * k, w);
    if (a->mode != APPROX_GATE) return NULL;
    for (int r = 0; r < n; r++) {
        a->n_of[r] = approx_leave(k, id + r * k, w + r * k, a->threshold, keep_sum);
        a->rows_on += (uint64_t)(k - a->n_of[r]);
    }
    a->rows += (uint64_t)(n * k);
    return a->n_of;
}

static bool drawn(const struct approx *a, int part, int32_t pos)
{
    uint64_t x = (uint64_t)part << 32 | (uint32_t)pos;
    return (double)(rng_splitmix(&x) >> 11) * 0x1p-53 < a->share;
}

static bool decide(struct approx *a, int part, const float *x, int32_t pos, float *z)
{
    const struct approx_layer *l = &a->f.layer[a->of[part]];
    const float scale = approx_scale(l->n, x);
    const bool on = a->mode == APPROX_JUDGE ? approx_judge(l, x, scale) < a->threshold
                                            : drawn(a, part, pos);
    if (!on) return false;
    if (a->mode == APPROX_RANDOM) memcpy(z, x, sizeof *x * (size_t)l->n);
    else approx_apply(l, x, scale, z);
    return true;
}

/* A part that ends before op i: what was decided for its rows takes effect. */
void approx_end(struct tessera_engine *e, int i)
{
    struct approx *a = e->approx;
    const int part = a->ends[i];
    if (part < 0 || a->open != part) return;
    a->open = -1;
    const struct branch_part *p = &a->part[part];
    const struct dev_buf *out = &e->buf[p->out];
    const int n = e->set[out->rows].n, d = e->hp.n_embd;
    for (int r = 0; r < n; r++) {
        float *z = a->z + (size_t)r * (size_t)d;
        if (a->see) memcpy(z, dev_buf_floats(out, r), sizeof *z * (size_t)d);
        else if (a->on[r]) memcpy(dev_buf_floats(out, r), z, sizeof *z * (size_t)d);
    }
    if (a->see && n) a->see(a->see_arg, part, n, a->x, a->z);
    memset(a->on, 0, (size_t)n);
}

int approx_at(struct tessera_engine *e, int i)
{
    struct approx *a = e->approx;
    approx_end(e, i);
    const int part = a->begins[i];
    if (part < 0) return i;
    a->open = -1; /* a step that failed has left it open */
    if (!a->see && (a->mode == APPROX_OFF || a->mode == APPROX_GATE || a->of[part] < 0)) return i;
    const struct branch_part *p = &a->part[part];
    const struct dev_buf *in = &e->buf[p->in];
    const struct dev_rows *set = &e->set[in->rows];
    const size_t d = (size_t)e->hp.n_embd;
    int n_on = 0;
    for (int r = 0; r < set->n; r++) {
        if (a->see) {
            memcpy(a->x + (size_t)r * d, dev_buf_floats(in, r), sizeof *a->x * d);
            continue;
        }
        a->on[r] = decide(a, part, dev_buf_floats(in, r), e->row[dev_row_at(set, r)].pos,
                          a->z + (size_t)r * d);
        n_on += a->on[r];
    }
    a->open = part;
    if (a->see) return i;
    a->rows += (uint64_t)set->n;
    a->rows_on += (uint64_t)n_on;
    if (!set->n || n_on < set->n) return i;
    a->skipped++;
    a->open = -1;
    for (int r = 0; r < set->n; r++)
        memcpy(dev_buf_floats(&e->buf[p->out], r), a->z + (size_t)r * d, sizeof *a->z * d);
    memset(a->on, 0, (size_t)set->n);
    return p->to;
}
