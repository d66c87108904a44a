/* See predictor.h. */
#include "moe/run/predictor.h"

#include <stdlib.h>
#include <string.h>

#include "moe/load/gguf.h"
#include "quant/qtype.h"

static const char TYPE[] = "tessera.predictor";
enum { SIDE_MAX = 1 << 20, N_ARRAYS = 8 };

/* The arrays in the order of the file, each with its place in the struct. */
struct array {
    const char *name;
    const float **at;
    int rows, cols;
};

static void arrays(struct predictor *p, struct array a[N_ARRAYS])
{
    struct path_model *m = &p->path;
    const int n_out = m->n_layers * m->n_expert;
    const struct array all[N_ARRAYS] = {
        {"embed", &m->embed, m->n_vocab, m->n_dim},
        {"taps", &m->tap, PATH_BACK, m->n_dim},
        {"slow_taps", &m->slow_tap, PATH_SLOW, m->n_dim},
        {"hidden", &m->hidden, m->n_hidden, m->n_dim},
        {"hidden_bias", &m->hidden_bias, 1, m->n_hidden},
        {"out", &m->out, m->n_hidden, n_out},
        {"out_bias", &m->out_bias, 1, n_out},
        {"frequency", &p->frequency, 1, n_out},
    };
    memcpy(a, all, sizeof all);
}

uint64_t predictor_floats(const struct path_model *shape)
{
    struct predictor p = {.path = *shape};
    struct array a[N_ARRAYS];
    uint64_t n = 0;
    arrays(&p, a);
    for (int i = 0; i < N_ARRAYS; i++) n += (uint64_t)a[i].rows * (uint64_t)a[i].cols;
    return n;
}

void predictor_place(struct predictor *p, float *data)
{
    struct array a[N_ARRAYS];
    arrays(p, a);
    p->data = data;
    for (int i = 0; i < N_ARRAYS; i++) {
        *a[i].at = data;
        data += (size_t)a[i].rows * (size_t)a[i].cols;
    }
}

void predictor_free(struct predictor *p)
{
    free(p->data);
    memset(p, 0, sizeof *p);
}

enum status predictor_write(const struct predictor *p, const char *model_name, const char *path,
                            struct err *e)
{
    struct predictor copy = *p;
    struct array a[N_ARRAYS];
    struct gguf_writer *w = gguf_writer_new();
    if (!w) return err_set(e, ERR_MEMORY, "no memory to write %s", path);
    arrays(&copy, a);
    gguf_put_str(w, "general.type", TYPE);
    gguf_put_u64(w, "tessera.model.hash", p->model_hash);
    gguf_put_str(w, "tessera.model.name", model_name);
    gguf_put_u32(w, "tessera.predictor.n_layers", (uint32_t)p->path.n_layers);
    gguf_put_u32(w, "tessera.predictor.n_experts", (uint32_t)p->path.n_expert);
    gguf_put_u32(w, "tessera.predictor.n_used", (uint32_t)p->path.n_used);
    for (int i = 0; i < N_ARRAYS; i++) {
        const uint64_t dim[2] = {(uint64_t)a[i].cols, (uint64_t)a[i].rows};
        gguf_put_tensor(w, a[i].name, QTYPE_F32, 2, dim, dim[0] * dim[1] * sizeof(float));
    }
    enum status s = gguf_writer_begin(w, path, e);
    for (int i = 0; i < N_ARRAYS && !s; i++)
        s = gguf_writer_data(w, *a[i].at, (uint64_t)a[i].rows * (uint64_t)a[i].cols * sizeof(float),
                             e);
    if (!s) s = gguf_writer_end(w, e);
    gguf_writer_close(w);
    return s;
}

/* The shape from the keys and from two tensors; every side is bounded before it is multiplied. */
static enum status read_shape(const struct gguf *g, struct predictor *p, struct err *e)
{
    const char *path = gguf_path(g, 0);
    struct gguf_str type;
    uint64_t layers, experts, used;
    enum status s;
    if (gguf_get_str(g, "general.type", &type, NULL) || !gguf_str_is(type, TYPE))
        return err_set(e, ERR_FORMAT, "%s is not a predictor: `tessera trace --train` makes one",
                       path);
    if ((s = gguf_get_u64(g, "tessera.model.hash", &p->model_hash, e)) ||
        (s = gguf_get_u64(g, "tessera.predictor.n_layers", &layers, e)) ||
        (s = gguf_get_u64(g, "tessera.predictor.n_experts", &experts, e)) ||
        (s = gguf_get_u64(g, "tessera.predictor.n_used", &used, e)))
        return s;
    const struct gguf_tensor *embed = gguf_find_tensor(g, "embed"),
                             *hidden = gguf_find_tensor(g, "hidden");
    if (!embed || !hidden || embed->n_dims != 2 || hidden->n_dims != 2 || gguf_n_shards(g) != 1)
        return err_set(e, ERR_SHAPE, "%s: tensors embed and hidden must be matrices", path);
    if (!layers || !experts || !used || layers > SIDE_MAX || experts > SIDE_MAX ||
        layers * experts > SIDE_MAX || used > experts || embed->dim[0] > SIDE_MAX ||
        embed->dim[1] > 16 * SIDE_MAX || hidden->dim[1] > SIDE_MAX)
        return err_set(e, ERR_SHAPE, "%s: a size is 0 or too large", path);
    p->path = (struct path_model){
        .n_vocab = (int)embed->dim[1], .n_dim = (int)embed->dim[0],
        .n_hidden = (int)hidden->dim[1], .n_layers = (int)layers, .n_expert = (int)experts,
        .n_used = (int)used};
    return OK;
}

/* Every tensor is there in full before memory is asked for. */
static enum status check_tensors(const struct gguf *g, struct predictor *p, struct err *e)
{
    struct array a[N_ARRAYS];
    arrays(p, a);
    for (int i = 0; i < N_ARRAYS; i++) {
        const struct gguf_tensor *t = gguf_find_tensor(g, a[i].name);
        if (!t || t->type != QTYPE_F32 || t->n_dims != 2 || t->dim[0] != (uint64_t)a[i].cols ||
            t->dim[1] != (uint64_t)a[i].rows)
            return err_set(e, ERR_SHAPE, "%s: tensor %s must be F32 [%d][%d]", gguf_path(g, 0),
                           a[i].name, a[i].rows, a[i].cols);
    }
    return OK;
}

static enum status read_tensors(const struct gguf *g, const struct osfile_ops *ops,
                                struct predictor *p, struct err *e)
{
    struct array a[N_ARRAYS];
    struct osfile f;
    enum status s = osfile_open(&f, gguf_path(g, 0), 0, ops, e);
    if (s) return s;
    arrays(p, a);
    for (int i = 0; i < N_ARRAYS && !s; i++) {
        const struct gguf_tensor *t = gguf_find_tensor(g, a[i].name);
        s = osfile_read(&f, p->data + (*a[i].at - p->data), t->bytes, t->offset, e);
    }
    osfile_close(&f);
    return s;
}

enum status predictor_read(const char *path, const struct osfile_ops *ops, struct predictor *out,
                           struct err *e)
{
    struct gguf *g;
    memset(out, 0, sizeof *out);
    enum status s = gguf_open(path, ops, &g, e);
    if (s) return s;
    s = read_shape(g, out, e);
    if (!s) s = check_tensors(g, out, e);
    if (!s) {
        float *data = malloc(predictor_floats(&out->path) * sizeof *data);
        if (data) predictor_place(out, data);
        else s = err_set(e, ERR_MEMORY, "no memory to read %s", path);
    }
    if (!s) s = read_tensors(g, ops, out, e);
    gguf_close(g);
    if (s) predictor_free(out);
    return s;
}
