/* See stackfile.h. */
#include "moe/load/stackfile.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static enum status broken(const struct gguf *g, struct err *e, const char *what)
{
    return err_set(e, ERR_FORMAT, "%s: the stack is broken: %s: build it again with `tessera stack`",
                   gguf_path(g, 0), what);
}

static enum status read_codec(struct stackfile *s, const struct gguf *g, struct err *e)
{
    uint64_t version = 0, rank = 0;
    struct gguf_str codec;
    enum status st = gguf_get_u64(g, "tessera.stack.version", &version, e);
    if (!st) st = gguf_get_str(g, "tessera.stack.codec", &codec, e);
    if (!st) st = gguf_get_u64_or(g, "tessera.stack.rank", 0, &rank, e);
    if (!st) st = gguf_get_u64(g, "tessera.stack.hash", &s->hash, e);
    if (st) return st;
    if (version != 1)
        return err_set(e, ERR_UNSUPPORTED, "%s: a stack of version %" PRIu64 ", this program knows 1",
                       gguf_path(g, 0), version);
    if (gguf_n_shards(g) != 1)
        return err_set(e, ERR_UNSUPPORTED, "%s: a stack is one file, not a split set",
                       gguf_path(g, 0));
    if (!gguf_str_is(codec, "nested") && !gguf_str_is(codec, "factored"))
        return broken(g, e, "its codec is neither nested nor factored");
    s->type = gguf_str_is(codec, "nested") ? QTYPE_NEST2 : QTYPE_SIGN1;
    if (s->type == QTYPE_SIGN1 && (rank < 1 || rank > STACK_RANK_MAX))
        return broken(g, e, "its rank is out of range");
    s->rank = s->type == QTYPE_SIGN1 ? (int)rank : 0;
    return OK;
}

static enum status read_tensor(struct stackfile *s, const struct gguf *g, struct gguf_str name,
                               struct err *e)
{
    char text[128];
    const struct qtype_info *q = qtype_info((uint32_t)s->type);
    (void)snprintf(text, sizeof text, "%.*s", (int)(name.n < 100 ? name.n : 100), name.s);
    const struct gguf_tensor *t = name.n < 100 ? gguf_find_tensor(g, text) : NULL;
    if (!t || t->type != GGUF_TENSOR_I8 || t->dim[3] != 1)
        return err_set(e, ERR_FORMAT, "%s: the stack is broken: it names %s, which is no base",
                       gguf_path(g, 0), text);
    const uint64_t rows = t->dim[1] * t->dim[2], most = gguf_file_bytes(g);
    if (t->dim[0] % (uint64_t)q->block_bytes || t->dim[0] > INT32_MAX / 64 ||
        t->dim[1] > INT32_MAX / 64 || t->dim[2] > 65536 || rows > most / t->dim[0] ||
        t->offset + rows * t->dim[0] > most)
        return err_set_at(e, ERR_FORMAT, t->offset, "%s: the base of %s does not fit the file: it "
                          "is truncated or damaged", gguf_path(g, 0), text);
    s->tensor[s->n_tensors++] = (struct stack_tensor){
        t, (int)(t->dim[0] / (uint64_t)q->block_bytes * (uint64_t)q->block), (int)t->dim[1],
        (int)t->dim[2]};
    return OK;
}

static const struct gguf_value *array(const struct gguf *g, const char *key, enum gguf_type elem)
{
    const struct gguf_kv *kv = gguf_find(g, key);
    return kv && kv->value.type == GGUF_ARRAY && kv->value.elem == elem ? &kv->value : NULL;
}

static enum status read_tensors(struct stackfile *s, const struct gguf *g, struct err *e)
{
    const struct gguf_value *v = array(g, "tessera.stack.tensors", GGUF_STRING);
    uint64_t cursor = 0;
    if (!v || v->n < 1 || v->n > gguf_n_tensors(g)) return broken(g, e, "it names no tensors");
    s->tensor = calloc((size_t)v->n, sizeof *s->tensor);
    if (!s->tensor) return err_set(e, ERR_MEMORY, "no memory for the stack's tensors");
    for (uint64_t i = 0; i < v->n; i++) {
        enum status st = read_tensor(s, g, gguf_elem_next_str(v, &cursor), e);
        if (st) return st;
    }
    return OK;
}

/* One unit, whose matrix has `next` levels so far. */
static enum status add_unit(struct stackfile *s, const struct gguf *g, const int32_t *u,
                            uint8_t *const *next, uint64_t *at, struct err *e)
{
    const int i = s->n_units;
    const bool known = u[0] >= 0 && u[0] < s->n_tensors && u[1] >= 0 &&
                       u[1] < s->tensor[u[0]].n_mats && u[2] <= stack_levels(s->type);
    if (!known)
        return err_set(e, ERR_FORMAT, "%s: the stack is broken: unit %d of its order is tensor %d, "
                       "matrix %d, level %d, which do not exist", gguf_path(g, 0), i, u[0], u[1],
                       u[2]);
    const struct stack_tensor *t = &s->tensor[u[0]];
    const int first = s->type == QTYPE_NEST2, want = next[u[0]][u[1]] + first;
    if (u[2] != want)
        return err_set(e, ERR_FORMAT, "%s: the stack is broken: unit %d of its order is level %d of "
                       "%.*s, matrix %d, where level %d is due: a level is missing or the order is "
                       "wrong", gguf_path(g, 0), i, u[2], (int)t->base->name.n, t->base->name.s,
                       u[1], want);
    next[u[0]][u[1]]++;
    *at += stack_level_bytes(s->type, s->rank, t->n_cols, t->n_rows, u[2]);
    s->unit[s->n_units++] = (struct stack_unit){u[0], u[1], u[2], *at};
    return OK;
}

static enum status read_order(struct stackfile *s, const struct gguf *g, struct err *e)
{
    const struct gguf_value *v = array(g, "tessera.stack.order", GGUF_I32);
    uint64_t floor = 0, at = STACK_HEAD, n_mats = 0;
    if (!v || v->n % 3 || v->n / 3 > INT32_MAX) return broken(g, e, "its order is missing");
    enum status st = gguf_get_u64_or(g, "tessera.stack.floor", 0, &floor, e);
    if (st) return st;
    if (floor > v->n / 3) return broken(g, e, "its floor is above its top");
    for (int i = 0; i < s->n_tensors; i++) n_mats += (uint64_t)s->tensor[i].n_mats;
    s->unit = calloc((size_t)v->n / 3 + 1, sizeof *s->unit);
    uint8_t *count = calloc((size_t)n_mats + 1, 1);
    uint8_t **next = calloc((size_t)s->n_tensors + 1, sizeof *next);
    if (!s->unit || !count || !next) st = err_set(e, ERR_MEMORY, "no memory for the stack's order");
    for (int i = 0, m = 0; !st && i < s->n_tensors; m += s->tensor[i++].n_mats) next[i] = count + m;
    for (uint64_t i = 0; !st && i < v->n; i += 3) {
        int32_t u[3];
        for (uint64_t k = 0; k < 3; k++) u[k] = (int32_t)gguf_elem_i64(v, i + k);
        st = add_unit(s, g, u, next, &at, e);
    }
    s->n_floor = (int)floor;
    /* The factored codec's bases are nothing without their factors. */
    for (uint64_t m = 0; !st && s->type == QTYPE_SIGN1 && m < n_mats; m++)
        if (!count[m]) st = broken(g, e, "a base has no factors");
    free(count);
    free(next);
    return st;
}

/* What of the levels is in the file. */
static enum status measure(struct stackfile *s, const struct gguf *g, struct err *e)
{
    const uint64_t end = stackfile_end(s, s->n_units);
    const uint64_t file = gguf_file_bytes(g), from = s->levels->offset;
    if (s->levels->type != GGUF_TENSOR_I8 || s->levels->dim[0] != STACK_ROW ||
        s->levels->dim[1] != end / STACK_ROW || s->levels->dim[2] != 1 || s->levels->dim[3] != 1)
        return err_set_at(e, ERR_FORMAT, from, "%s: the stack is broken: its order needs %" PRIu64
                          " bytes of levels, tessera.stack.levels has %" PRIu64 " x %" PRIu64,
                          gguf_path(g, 0), end, s->levels->dim[0], s->levels->dim[1]);
    uint64_t there = file > from ? file - from : 0;
    if (there >= end) {
        s->n_rows = end / STACK_ROW;
        return OK;
    }
    const int n = stackfile_units_in(s, there);
    if (there < STACK_HEAD || n < s->n_floor || stackfile_end(s, n) != there)
        return err_set_at(e, ERR_FORMAT, file, "%s: the file is truncated inside of unit %d of its "
                          "stack: download it again, or cut it to %" PRIu64 " bytes",
                          gguf_path(g, 0), n, from + stackfile_end(s, n));
    s->n_cut = s->n_units - n;
    s->n_units = n;
    s->n_rows = there / STACK_ROW;
    return OK;
}

static enum status check_head(const struct stackfile *s, const struct gguf *g, struct err *e)
{
    struct osfile f;
    char head[STACK_HEAD];
    uint64_t hash;
    enum status st = osfile_open(&f, gguf_path(g, 0), OSFILE_BUFFERED, NULL, e);
    if (st) return st;
    st = osfile_read(&f, head, sizeof head, s->levels->offset, e);
    osfile_close(&f);
    if (st) return st;
    memcpy(&hash, head + 8, sizeof hash);
    if (memcmp(head, "TSRSTACK", 8) || hash != s->hash)
        return err_set_at(e, ERR_FORMAT, s->levels->offset, "%s: the levels are those of another "
                          "model: build the stack again with `tessera stack`", gguf_path(g, 0));
    return OK;
}

static enum status read_curve(struct stackfile *s, const struct gguf *g, struct err *e)
{
    const struct gguf_value *u = array(g, "tessera.stack.curve_units", GGUF_I32);
    const struct gguf_value *p = array(g, "tessera.stack.curve_ppl", GGUF_F32);
    if (!u && !p) return OK;
    if (!u || !p || u->n != p->n || u->n > 4096) return broken(g, e, "its curve does not fit");
    s->curve_units = calloc((size_t)u->n + 1, sizeof *s->curve_units);
    s->curve_ppl = calloc((size_t)u->n + 1, sizeof *s->curve_ppl);
    if (!s->curve_units || !s->curve_ppl) return err_set(e, ERR_MEMORY, "no memory for the curve");
    for (uint64_t i = 0; i < u->n; i++) {
        const int64_t n = gguf_elem_i64(u, i);
        if (n < (i ? s->curve_units[i - 1] : 0) || n > INT32_MAX)
            return broken(g, e, "its curve does not rise");
        s->curve_units[i] = (int)n;
        s->curve_ppl[i] = (float)gguf_elem_f64(p, i);
    }
    s->n_curve = (int)u->n;
    if (gguf_find(g, "tessera.stack.curve_text"))
        return gguf_get_str(g, "tessera.stack.curve_text", &s->curve_text, e);
    return OK;
}

enum status stackfile_open(struct stackfile *s, const struct gguf *g, struct err *e)
{
    memset(s, 0, sizeof *s);
    if (!gguf_find(g, "tessera.stack.version")) return OK;
    enum status st = read_codec(s, g, e);
    s->levels = gguf_find_tensor(g, "tessera.stack.levels");
    if (!st && !s->levels) st = broken(g, e, "tessera.stack.levels is missing");
    if (!st) st = read_tensors(s, g, e);
    if (!st) st = read_order(s, g, e);
    if (!st) st = measure(s, g, e);
    if (!st) st = check_head(s, g, e);
    if (!st) st = read_curve(s, g, e);
    s->present = !st;
    if (st) stackfile_close(s);
    return st;
}

void stackfile_close(struct stackfile *s)
{
    free(s->tensor);
    free(s->unit);
    free(s->curve_units);
    free(s->curve_ppl);
    memset(s, 0, sizeof *s);
}

uint64_t stackfile_end(const struct stackfile *s, int n)
{
    if (n > s->n_units) n = s->n_units;
    return n < 1 ? STACK_HEAD : s->unit[n - 1].end;
}

int stackfile_units_in(const struct stackfile *s, uint64_t bytes)
{
    int lo = 0, hi = s->n_units;
    while (lo < hi) {
        const int mid = (lo + hi + 1) / 2;
        if (s->unit[mid - 1].end <= bytes) lo = mid;
        else hi = mid - 1;
    }
    return lo;
}

double stackfile_ppl(const struct stackfile *s, int n_units)
{
    if (!s->n_curve) return 0;
    int i = 0;
    while (i < s->n_curve && s->curve_units[i] < n_units) i++;
    if (i == s->n_curve) return (double)s->curve_ppl[s->n_curve - 1];
    if (!i || s->curve_units[i] == n_units) return (double)s->curve_ppl[i];
    const double a = (double)stackfile_end(s, s->curve_units[i - 1]);
    const double b = (double)stackfile_end(s, s->curve_units[i]);
    const double t = b > a ? ((double)stackfile_end(s, n_units) - a) / (b - a) : 1;
    return (double)s->curve_ppl[i - 1] * (1 - t) + (double)s->curve_ppl[i] * t;
}
