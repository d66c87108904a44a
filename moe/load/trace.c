/* See trace.h.  The CSV form is trace_csv.c's. */
#include "moe/load/trace.h"

#include <stdlib.h>
#include <string.h>

#include "moe/base/f16.h"
#include "moe/load/gguf.h"

static const char TYPE[] = "tessera.trace";
enum { T_F32, T_F16, T_I8 = 24, T_I16 = 25, T_I32 = 26 }; /* GGUF's tensor types */
enum { BLOCK = 1 << 14 };                              /* values converted at a time */
enum { STREAM = 1 << 20 };                             /* routed slots of a block of rows */

/* ---- in memory ---- */

enum status trace_new(int n_layers, int n_experts, int n_used, unsigned with, struct trace **out,
                      struct err *e)
{
    *out = NULL;
    if (n_layers < 1 || n_layers > TRACE_LAYERS || n_experts < 1 || n_experts > TRACE_EXPERTS ||
        n_used < 1 || n_used > TRACE_USED || n_used > n_experts ||
        n_layers > TRACE_ITEMS / n_experts)
        return err_set(e, ERR_RANGE,
                       "a trace of %d layers with %d of %d experts: at most %d, %d and %d, and %d "
                       "experts in all", n_layers, n_used, n_experts, TRACE_LAYERS, TRACE_USED,
                       TRACE_EXPERTS, TRACE_ITEMS);
    struct trace *t = calloc(1, sizeof *t);
    if (!t) return err_set(e, ERR_MEMORY, "no memory for a trace");
    t->n_layers = n_layers;
    t->n_experts = n_experts;
    t->n_used = n_used;
    t->layer = calloc((size_t)n_layers, sizeof *t->layer);
    t->expert_bytes = calloc((size_t)n_layers, sizeof *t->expert_bytes);
    /* One place each, so that what is present shows from the start. */
    t->weight = with & TRACE_WITH_WEIGHTS ? malloc(1) : NULL;
    t->tier = with & TRACE_WITH_TIERS ? malloc(1) : NULL;
    t->wait = with & TRACE_WITH_WAITS ? malloc(1) : NULL;
    t->norm = with & TRACE_WITH_NORMS ? malloc(1) : NULL;
    t->loss = with & TRACE_WITH_LOSSES ? malloc(1) : NULL;
    if (!t->layer || !t->expert_bytes || (with & TRACE_WITH_WEIGHTS && !t->weight) ||
        (with & TRACE_WITH_TIERS && !t->tier) || (with & TRACE_WITH_WAITS && !t->wait) ||
        (with & TRACE_WITH_NORMS && !t->norm) || (with & TRACE_WITH_LOSSES && !t->loss)) {
        trace_free(t);
        return err_set(e, ERR_MEMORY, "no memory for a trace");
    }
    for (int l = 0; l < n_layers; l++) t->layer[l] = l;
    *out = t;
    return OK;
}

void trace_free(struct trace *t)
{
    if (!t) return;
    free(t->layer);
    free(t->expert_bytes);
    free(t->step);
    free(t->session);
    free(t->pos);
    free(t->token);
    free(t->expert);
    free(t->weight);
    free(t->tier);
    free(t->wait);
    free(t->norm);
    free(t->loss);
    free(t);
}

static bool grow(void *at, size_t n, size_t size)
{
    void **p = at;
    void *q = n > SIZE_MAX / size ? NULL : realloc(*p, n * size);
    if (q) *p = q;
    return q != NULL;
}

enum status trace_append(struct trace *t, int32_t n, struct err *e)
{
    const size_t per_row = (size_t)t->n_layers * (size_t)t->n_used;
    ASSERT(n >= 0);
    if (n > INT32_MAX / 2 - t->n_rows) return err_set(e, ERR_MEMORY, "a trace of too many rows");
    const int32_t need = t->n_rows + n;
    if (need > t->cap) {
        const int32_t cap = need > 2 * t->cap ? need : 2 * t->cap;
        const size_t rows = (size_t)cap;
        if (!grow(&t->step, rows, sizeof *t->step) ||
            !grow(&t->session, rows, sizeof *t->session) ||
            !grow(&t->pos, rows, sizeof *t->pos) || !grow(&t->token, rows, sizeof *t->token) ||
            !grow(&t->expert, rows * per_row, sizeof *t->expert) ||
            (t->weight && !grow(&t->weight, rows * per_row, sizeof *t->weight)) ||
            (t->tier && !grow(&t->tier, rows * per_row, sizeof *t->tier)) ||
            (t->wait && !grow(&t->wait, rows * (size_t)t->n_layers, sizeof *t->wait)) ||
            (t->norm && !grow(&t->norm, rows * (size_t)t->n_layers, sizeof *t->norm)) ||
            (t->loss && !grow(&t->loss, rows, sizeof *t->loss)))
            return err_set(e, ERR_MEMORY, "no memory for a trace of %d tokens", need);
        t->cap = cap;
    }
    const size_t at = (size_t)t->n_rows, some = (size_t)n;
    memset(t->step + at, 0, some * sizeof *t->step);
    memset(t->session + at, 0, some * sizeof *t->session);
    memset(t->pos + at, 0, some * sizeof *t->pos);
    memset(t->token + at, 0xff, some * sizeof *t->token);
    memset(t->expert + at * per_row, 0xff, some * per_row * sizeof *t->expert);
    if (t->weight) memset(t->weight + at * per_row, 0, some * per_row * sizeof *t->weight);
    if (t->tier) memset(t->tier + at * per_row, 0, some * per_row);
    if (t->wait)
        memset(t->wait + at * (size_t)t->n_layers, 0,
               some * (size_t)t->n_layers * sizeof *t->wait);
    if (t->norm)
        memset(t->norm + at * (size_t)t->n_layers, 0,
               some * (size_t)t->n_layers * sizeof *t->norm);
    for (size_t i = 0; t->loss && i < some; i++) t->loss[at + i] = -1;
    t->n_rows = need;
    return OK;
}

void trace_clear(struct trace *t) { t->n_rows = 0; }

/* A session's rows of one step follow each other. */
int32_t trace_step_end(const struct trace *t, int32_t row, bool *prompt)
{
    int32_t end = row + 1;
    *prompt = false;
    for (; end < t->n_rows && t->step[end] == t->step[row]; end++)
        *prompt = *prompt || t->session[end] == t->session[end - 1];
    return end;
}

void trace_events_free(struct trace_events *v)
{
    free(v->row);
    free(v->event);
    free(v->prompt);
    free(v->layer);
    free(v->first);
    free(v->item);
    free(v->count);
    memset(v, 0, sizeof *v);
}

/* One layer of one step; count [n_experts] is scratch, zero before and after. */
static void add_event(const struct trace *t, int layer, int32_t row, int32_t end, int32_t *count,
                      struct trace_events *v)
{
    uint32_t n = v->first[v->n_events];
    for (int32_t r = row; r < end; r++) {
        const uint16_t *x = trace_experts(t, r, layer);
        for (int k = 0; k < t->n_used; k++)
            if (x[k] != TRACE_NONE) count[x[k]]++;
    }
    for (int x = 0; x < t->n_experts; x++) {
        if (!count[x]) continue;
        v->item[n] = layer * t->n_experts + x;
        v->count[n++] = count[x];
        count[x] = 0;
    }
    if (n == v->first[v->n_events]) return;
    v->layer[v->n_events++] = layer;
    v->first[v->n_events] = n;
}

enum status trace_events_make(const struct trace *t, struct trace_events *out, struct err *e)
{
    struct trace_events v = {0};
    bool prompt;
    size_t n_items = 0;
    for (int32_t r = 0, end; r < t->n_rows; r = end, v.n_steps++) {
        end = trace_step_end(t, r, &prompt);
        const size_t all = (size_t)(end - r) * (size_t)t->n_used, most = (size_t)t->n_experts;
        n_items += (size_t)t->n_layers * (all < most ? all : most);
    }
    const size_t n_events = (size_t)v.n_steps * (size_t)t->n_layers;
    int32_t *count = calloc((size_t)t->n_experts, sizeof *count);
    if (n_items < UINT32_MAX && n_events < INT32_MAX) {
        v.row = calloc((size_t)v.n_steps + 1, sizeof *v.row);
        v.event = calloc((size_t)v.n_steps + 1, sizeof *v.event);
        v.prompt = calloc((size_t)v.n_steps + 1, 1);
        v.layer = calloc(n_events + 1, sizeof *v.layer);
        v.first = calloc(n_events + 1, sizeof *v.first);
        v.item = calloc(n_items + 1, sizeof *v.item);
        v.count = calloc(n_items + 1, sizeof *v.count);
    }
    if (!count || !v.row || !v.event || !v.prompt || !v.layer || !v.first || !v.item ||
        !v.count) {
        free(count);
        trace_events_free(&v);
        return err_set(e, ERR_MEMORY, "no memory for the events of a trace");
    }
    for (int32_t r = 0, i = 0, end; r < t->n_rows; r = end, i++) {
        end = trace_step_end(t, r, &prompt);
        v.row[i] = r;
        v.event[i] = v.n_events;
        v.prompt[i] = prompt;
        for (int l = 0; l < t->n_layers; l++) add_event(t, l, r, end, count, &v);
    }
    v.row[v.n_steps] = t->n_rows;
    v.event[v.n_steps] = v.n_events;
    free(count);
    *out = v;
    return OK;
}

/* ---- writing ---- */

static enum status put_experts(const struct trace *t, struct gguf_writer *w, struct err *e)
{
    const size_t n = (size_t)t->n_rows * (size_t)t->n_layers * (size_t)t->n_used;
    const int bytes = t->n_experts <= 255 ? 1 : 2;
    uint8_t block[2 * BLOCK];
    enum status s = OK;
    for (size_t i = 0; i < n && !s;) {
        size_t k = 0, m = n - i < BLOCK ? n - i : BLOCK;
        for (; m > 0; m--, i++) {
            block[k++] = (uint8_t)t->expert[i];
            if (bytes == 2) block[k++] = (uint8_t)(t->expert[i] >> 8);
        }
        s = gguf_writer_data(w, block, k, e);
    }
    return s;
}

static enum status put_words(struct gguf_writer *w, const void *data, size_t n, struct err *e)
{
    uint8_t block[4 * BLOCK];
    const uint32_t *v = data;
    enum status s = OK;
    for (size_t i = 0; i < n && !s;) {
        size_t k = 0, m = n - i < BLOCK ? n - i : BLOCK;
        for (; m > 0; m--, i++)
            for (int b = 0; b < 4; b++) block[k++] = (uint8_t)(v[i] >> 8 * b);
        s = gguf_writer_data(w, block, k, e);
    }
    return s;
}

static enum status put_weights(const struct trace *t, struct gguf_writer *w, struct err *e)
{
    const size_t n = (size_t)t->n_rows * (size_t)t->n_layers * (size_t)t->n_used;
    uint8_t block[2 * BLOCK];
    enum status s = OK;
    for (size_t i = 0; i < n && !s;) {
        size_t k = 0, m = n - i < BLOCK ? n - i : BLOCK;
        for (; m > 0; m--, i++) {
            const uint16_t h = f16_from_f32(t->weight[i]);
            block[k++] = (uint8_t)h;
            block[k++] = (uint8_t)(h >> 8);
        }
        s = gguf_writer_data(w, block, k, e);
    }
    return s;
}

enum status trace_write(const struct trace *t, const char *path, struct err *e)
{
    if (!t->n_rows) return err_set(e, ERR_RANGE, "there is nothing to write to %s", path);
    struct gguf_writer *w = gguf_writer_new();
    if (!w) return err_set(e, ERR_MEMORY, "no memory to write %s", path);
    const uint64_t rows = (uint64_t)t->n_rows, layers = (uint64_t)t->n_layers;
    const uint64_t dim[3] = {(uint64_t)t->n_used, layers, rows}, per = dim[0] * dim[1] * rows;
    const uint64_t layer_dim[2] = {layers, rows};
    const uint64_t expert_bytes = t->n_experts <= 255 ? 1 : 2;
    const struct { const char *name; const int32_t *data; } words[] = {
        {"steps", t->step}, {"sessions", t->session}, {"positions", t->pos}, {"tokens", t->token}};
    enum { N_WORDS = sizeof words / sizeof *words };
    gguf_put_str(w, "general.type", TYPE);
    gguf_put_u64(w, "tessera.model.hash", t->model_hash);
    gguf_put_str(w, "tessera.model.name", t->name);
    gguf_put_str(w, "tessera.trace.model_arch", t->arch);
    gguf_put_u32(w, "tessera.trace.n_layers", (uint32_t)t->n_layers);
    gguf_put_u32(w, "tessera.trace.n_experts", (uint32_t)t->n_experts);
    gguf_put_u32(w, "tessera.trace.n_used", (uint32_t)t->n_used);
    gguf_put_u32(w, "tessera.trace.n_vocab", (uint32_t)t->n_vocab);
    gguf_put_array(w, "tessera.trace.layers", GGUF_I32, t->layer, layers);
    gguf_put_array(w, "tessera.trace.expert_bytes", GGUF_U64, t->expert_bytes, layers);
    for (int i = 0; i < N_WORDS; i++)
        gguf_put_tensor(w, words[i].name, T_I32, 1, &rows, rows * 4);
    gguf_put_tensor(w, "experts", expert_bytes == 1 ? T_I8 : T_I16, 3, dim, per * expert_bytes);
    if (t->weight) gguf_put_tensor(w, "weights", T_F16, 3, dim, per * 2);
    if (t->tier) gguf_put_tensor(w, "tiers", T_I8, 3, dim, per);
    if (t->wait) gguf_put_tensor(w, "waits", T_I32, 2, layer_dim, layers * rows * 4);
    if (t->norm) gguf_put_tensor(w, "norms", T_F32, 2, layer_dim, layers * rows * 4);
    if (t->loss) gguf_put_tensor(w, "losses", T_F32, 1, &rows, rows * 4);
    enum status s = gguf_writer_begin(w, path, e);
    for (int i = 0; i < N_WORDS && !s; i++) s = put_words(w, words[i].data, (size_t)rows, e);
    if (!s) s = put_experts(t, w, e);
    if (!s && t->weight) s = put_weights(t, w, e);
    if (!s && t->tier) s = gguf_writer_data(w, t->tier, per, e);
    if (!s && t->wait) s = put_words(w, t->wait, (size_t)(layers * rows), e);
    if (!s && t->norm) s = put_words(w, t->norm, (size_t)(layers * rows), e);
    if (!s && t->loss) s = put_words(w, t->loss, (size_t)rows, e);
    if (!s) s = gguf_writer_end(w, e);
    gguf_writer_close(w);
    return s;
}

/* ---- reading ---- */

struct reader {
    const char *path;
    const struct gguf *g;
    struct osfile file;
    struct trace *t;
    int32_t step; /* of the row before those in t, -1 = none */
    struct err *e;
};

static enum status bad(struct reader *r, const char *what)
{
    return err_set(r->e, ERR_FORMAT, "%s is no good trace: %s", r->path, what);
}

/* A tensor of the expected type and shape whose bytes are all in the file; NULL otherwise. */
static const struct gguf_tensor *tensor(struct reader *r, const char *name, uint32_t type,
                                        int n_dims, const uint64_t *dim, uint64_t size)
{
    const struct gguf_tensor *x = gguf_find_tensor(r->g, name);
    uint64_t bytes = size;
    bool good = x && x->type == type && x->n_dims == n_dims;
    for (int i = 0; i < n_dims && good; i++) {
        good = x->dim[i] == dim[i];
        bytes *= dim[i];
    }
    if (!good)
        (void)err_set(r->e, ERR_SHAPE, "%s: tensor %s is missing or has another type or shape",
                      r->path, name);
    else if (x->offset > r->file.size || bytes > r->file.size - x->offset)
        (void)err_set_at(r->e, ERR_FORMAT, x->offset, "%s: tensor %s ends beyond the file", r->path,
                         name);
    else
        return x;
    return NULL;
}

/* Reads n little-endian values of `size` bytes from number `from` on, in blocks; put(t, i, value)
 * stores them, i from 0. */
static enum status values(struct reader *r, const struct gguf_tensor *x, uint64_t from, uint64_t n,
                          int size, void (*put)(struct trace *t, uint64_t i, uint32_t v))
{
    uint8_t block[4 * BLOCK];
    for (uint64_t i = 0; i < n;) {
        const uint64_t m = n - i < BLOCK ? n - i : BLOCK;
        enum status s = osfile_read(&r->file, block, (size_t)m * (size_t)size,
                                    x->offset + (from + i) * (uint64_t)size, r->e);
        if (s) return s;
        for (uint64_t k = 0; k < m; k++, i++) {
            uint32_t v = 0;
            for (int b = size; b-- > 0;) v = v << 8 | block[k * (uint64_t)size + (uint64_t)b];
            put(r->t, i, v);
        }
    }
    return OK;
}

static void put_step(struct trace *t, uint64_t i, uint32_t v) { t->step[i] = (int32_t)v; }
static void put_session(struct trace *t, uint64_t i, uint32_t v) { t->session[i] = (int32_t)v; }
static void put_pos(struct trace *t, uint64_t i, uint32_t v) { t->pos[i] = (int32_t)v; }
static void put_token(struct trace *t, uint64_t i, uint32_t v) { t->token[i] = (int32_t)v; }
static void put_expert(struct trace *t, uint64_t i, uint32_t v)
{
    t->expert[i] = t->n_experts <= 255 && v == 255 ? TRACE_NONE : (uint16_t)v;
}
static void put_weight(struct trace *t, uint64_t i, uint32_t v)
{
    t->weight[i] = f16_to_f32((uint16_t)v);
}
static void put_tier(struct trace *t, uint64_t i, uint32_t v) { t->tier[i] = (uint8_t)v; }
static void put_wait(struct trace *t, uint64_t i, uint32_t v) { t->wait[i] = v; }
static void put_norm(struct trace *t, uint64_t i, uint32_t v)
{
    memcpy(&t->norm[i], &v, sizeof v);
}

static void put_loss(struct trace *t, uint64_t i, uint32_t v)
{
    memcpy(&t->loss[i], &v, sizeof v);
}

/* ids, steps and positions must be what the rest of the tree takes for granted. */
static enum status check_rows(struct reader *r)
{
    const struct trace *t = r->t;
    for (int32_t i = 0; i < t->n_rows; i++) {
        if (t->step[i] < 0 || t->step[i] < r->step) return bad(r, "steps go back");
        r->step = t->step[i];
        if (t->session[i] < 0 || t->pos[i] < 0) return bad(r, "a session or position is negative");
        if (t->token[i] < -1 || (t->n_vocab && t->token[i] >= t->n_vocab))
            return bad(r, "a token is outside the vocabulary");
    }
    const size_t n = trace_at(t, t->n_rows, 0);
    for (size_t i = 0; i < n; i++) {
        if (t->expert[i] != TRACE_NONE && t->expert[i] >= t->n_experts)
            return bad(r, "an expert has too high a number");
        if (t->weight && !(t->weight[i] >= -65504.0f && t->weight[i] <= 65504.0f))
            return bad(r, "a weight is no number");
        if (t->tier && t->tier[i] > TRACE_DEVICE) return bad(r, "an unknown tier");
    }
    for (size_t i = 0; t->norm && i < (size_t)t->n_rows * (size_t)t->n_layers; i++)
        if (!(t->norm[i] >= 0)) return bad(r, "a norm is no length");
    for (int32_t i = 0; t->loss && i < t->n_rows; i++)
        if (!(t->loss[i] >= -1)) return bad(r, "a loss is no loss");
    return OK;
}

/* Rows from .. from + n - 1 of the file, which t has room for and nothing else. */
static enum status read_rows(struct reader *r, const uint64_t dim[3], uint64_t from, uint64_t n)
{
    struct trace *t = r->t;
    const uint64_t rows = dim[2], per = dim[0] * dim[1], layer_dim[2] = {dim[1], rows};
    const bool narrow = t->n_experts <= 255;
    const struct {
        const char *name;
        void (*put)(struct trace *t, uint64_t i, uint32_t v);
    } words[] = {{"steps", put_step}, {"sessions", put_session}, {"positions", put_pos},
                 {"tokens", put_token}};
    const struct gguf_tensor *x;
    enum status s = OK;
    for (size_t i = 0; i < sizeof words / sizeof *words && !s; i++) {
        if (!(x = tensor(r, words[i].name, T_I32, 1, &rows, 4))) return r->e->code;
        s = values(r, x, from, n, 4, words[i].put);
    }
    if (s) return s;
    if (!(x = tensor(r, "experts", narrow ? T_I8 : T_I16, 3, dim, narrow ? 1 : 2)))
        return r->e->code;
    if ((s = values(r, x, from * per, n * per, narrow ? 1 : 2, put_expert))) return s;
    if (t->weight) {
        if (!(x = tensor(r, "weights", T_F16, 3, dim, 2))) return r->e->code;
        if ((s = values(r, x, from * per, n * per, 2, put_weight))) return s;
    }
    if (t->tier) {
        if (!(x = tensor(r, "tiers", T_I8, 3, dim, 1))) return r->e->code;
        if ((s = values(r, x, from * per, n * per, 1, put_tier))) return s;
    }
    if (t->wait) {
        if (!(x = tensor(r, "waits", T_I32, 2, layer_dim, 4))) return r->e->code;
        if ((s = values(r, x, from * dim[1], n * dim[1], 4, put_wait))) return s;
    }
    if (t->norm) {
        if (!(x = tensor(r, "norms", T_F32, 2, layer_dim, 4))) return r->e->code;
        if ((s = values(r, x, from * dim[1], n * dim[1], 4, put_norm))) return s;
    }
    if (t->loss) {
        if (!(x = tensor(r, "losses", T_F32, 1, &rows, 4))) return r->e->code;
        if ((s = values(r, x, from, n, 4, put_loss))) return s;
    }
    return check_rows(r);
}

static void copy_str(const struct gguf *g, const char *key, char *to, size_t cap)
{
    struct gguf_str s;
    if (!gguf_find(g, key) || gguf_get_str(g, key, &s, NULL)) return;
    size_t n = s.n < cap - 1 ? (size_t)s.n : cap - 1;
    memcpy(to, s.s, n);
    to[n] = 0;
}

/* Per-layer facts; both arrays have one element per layer. */
static enum status read_layers(struct reader *r)
{
    const struct gguf_kv *layers = gguf_find(r->g, "tessera.trace.layers"),
                         *bytes = gguf_find(r->g, "tessera.trace.expert_bytes");
    if (!layers || layers->value.type != GGUF_ARRAY || layers->value.elem != GGUF_I32 || !bytes ||
        bytes->value.type != GGUF_ARRAY || bytes->value.elem != GGUF_U64 ||
        layers->value.n != (uint64_t)r->t->n_layers || bytes->value.n != (uint64_t)r->t->n_layers)
        return bad(r, "tessera.trace.layers or expert_bytes does not suit the number of layers");
    for (int l = 0; l < r->t->n_layers; l++) {
        r->t->layer[l] = (int32_t)gguf_elem_i64(&layers->value, (uint64_t)l);
        r->t->expert_bytes[l] = gguf_elem_u64(&bytes->value, (uint64_t)l);
        if (r->t->layer[l] < 0 || r->t->expert_bytes[l] > (uint64_t)1 << 48)
            return bad(r, "a layer's number or size makes no sense");
    }
    return OK;
}

/* What the container holds, into an empty trace; dim: of its experts. */
static enum status read_head(struct reader *r, uint64_t dim[3])
{
    struct gguf_str type;
    uint64_t layers, experts, used, vocab, hash;
    enum status s;
    if (gguf_get_str(r->g, "general.type", &type, NULL) || type.n != sizeof TYPE - 1 ||
        memcmp(type.s, TYPE, type.n))
        return err_set(r->e, ERR_FORMAT, "%s is not a trace: `tessera trace` records one", r->path);
    if (gguf_n_shards(r->g) != 1) return bad(r, "a trace is one file");
    if ((s = gguf_get_u64(r->g, "tessera.trace.n_layers", &layers, r->e)) ||
        (s = gguf_get_u64(r->g, "tessera.trace.n_experts", &experts, r->e)) ||
        (s = gguf_get_u64(r->g, "tessera.trace.n_used", &used, r->e)) ||
        (s = gguf_get_u64_or(r->g, "tessera.trace.n_vocab", 0, &vocab, r->e)) ||
        (s = gguf_get_u64_or(r->g, "tessera.model.hash", 0, &hash, r->e)))
        return s;
    if (layers > TRACE_LAYERS || experts > TRACE_EXPERTS || used > TRACE_USED || vocab > INT32_MAX)
        return bad(r, "too many layers, experts or tokens");
    const struct gguf_tensor *x = gguf_find_tensor(r->g, "experts");
    const uint64_t rows = x && x->n_dims == 3 ? x->dim[2] : 0;
    dim[0] = used;
    dim[1] = layers;
    dim[2] = rows;
    if (!rows || rows > INT32_MAX / 2) return bad(r, "it has no rows");
    /* Before anything is allocated: are those bytes there at all? */
    if (!tensor(r, "experts", experts <= 255 ? T_I8 : T_I16, 3, dim, experts <= 255 ? 1 : 2))
        return r->e->code;
    unsigned with = (gguf_find_tensor(r->g, "weights") ? TRACE_WITH_WEIGHTS : 0) |
                    (gguf_find_tensor(r->g, "tiers") ? TRACE_WITH_TIERS : 0) |
                    (gguf_find_tensor(r->g, "waits") ? TRACE_WITH_WAITS : 0) |
                    (gguf_find_tensor(r->g, "norms") ? TRACE_WITH_NORMS : 0) |
                    (gguf_find_tensor(r->g, "losses") ? TRACE_WITH_LOSSES : 0);
    if ((s = trace_new((int)layers, (int)experts, (int)used, with, &r->t, r->e))) return s;
    r->t->n_vocab = (int)vocab;
    r->t->model_hash = hash;
    copy_str(r->g, "tessera.model.name", r->t->name, sizeof r->t->name);
    copy_str(r->g, "tessera.trace.model_arch", r->t->arch, sizeof r->t->arch);
    return read_layers(r);
}

/* All rows at once, or in blocks to fn. */
static enum status read_container(struct reader *r, trace_block_fn *fn, void *arg)
{
    uint64_t dim[3];
    enum status s = read_head(r, dim);
    if (s) return s;
    uint64_t most = fn ? STREAM / (dim[0] * dim[1]) : dim[2];
    if (!most) most = 1;
    for (uint64_t at = 0, n; at < dim[2] && !s; at += n) {
        n = dim[2] - at < most ? dim[2] - at : most;
        trace_clear(r->t);
        if ((s = trace_append(r->t, (int32_t)n, r->e)) || (s = read_rows(r, dim, at, n))) return s;
        if (fn) s = fn(arg, r->t, r->e);
    }
    return s;
}

static enum status read_text(struct reader *r)
{
    char *text = r->file.size < SIZE_MAX ? malloc((size_t)r->file.size + 1) : NULL;
    if (!text) return err_set(r->e, ERR_MEMORY, "no memory to read %s", r->path);
    enum status s = osfile_read(&r->file, text, (size_t)r->file.size, 0, r->e);
    if (!s) s = trace_read_csv(r->path, text, r->file.size, &r->t, r->e);
    free(text);
    return s;
}

/* Reads a file of either form to r->t; in blocks to fn, unless that is NULL. */
static enum status read_file(struct reader *r, const struct osfile_ops *ops, trace_block_fn *fn,
                             void *arg)
{
    struct gguf *g = NULL;
    char head[4] = {0};
    enum status s = osfile_open(&r->file, r->path, 0, ops, r->e);
    if (s) return s;
    if (r->file.size >= sizeof head) s = osfile_read(&r->file, head, sizeof head, 0, r->e);
    const bool container = !memcmp(head, "GGUF", sizeof head);
    if (!s && !container && memcmp(head, "# ro", sizeof head) != 0) {
        s = err_set(r->e, ERR_FORMAT, "%s is neither a record of `tessera trace` nor a \"# route_trace v1\" "
                    "table", r->path);
    } else if (!s && container) {
        s = gguf_open(r->path, ops, &g, r->e);
        r->g = g;
        if (!s) s = read_container(r, fn, arg);
        gguf_close(g);
    } else if (!s) {
        s = read_text(r);
        if (!s && fn) s = fn(arg, r->t, r->e);
    }
    osfile_close(&r->file);
    return s;
}

enum status trace_read(const char *path, const struct osfile_ops *ops, struct trace **out,
                       struct err *e)
{
    struct err local;
    if (!e) {
        err_clear(&local);
        e = &local;
    }
    struct reader r = {.path = path, .step = -1, .e = e};
    enum status s = read_file(&r, ops, NULL, NULL);
    *out = NULL;
    if (s) trace_free(r.t);
    else *out = r.t;
    return s;
}

enum status trace_stream(const char *path, const struct osfile_ops *ops, trace_block_fn *fn,
                         void *arg, struct err *e)
{
    struct reader r = {.path = path, .step = -1, .e = e};
    enum status s = read_file(&r, ops, fn, arg);
    trace_free(r.t);
    return s;
}
