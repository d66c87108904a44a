/* See imatrix.h. */
#include "quant/build/imatrix.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "moe/load/cursor.h"
#include "quant/qtype.h"

enum { NAME_MAX_BYTES = 1024, PIECE = 1 << 14 };
/* Columns that no activation reached still get a little weight, so that their block's scale suits
 * them as well as it can at no cost to the others. */
static const double LEAST = 1e-5;

/* ---- the list ---- */

void imatrix_free(struct imatrix *m)
{
    for (uint64_t i = 0; i < m->n; i++) {
        free(m->entry[i].name);
        free(m->entry[i].sum);
        free(m->entry[i].count);
    }
    for (uint64_t i = 0; i < m->n_datasets; i++) free(m->dataset[i]);
    free(m->entry);
    free(m->dataset);
    memset(m, 0, sizeof *m);
}

/* Where the name is, or belongs; *there tells which. */
static uint64_t place_of(const struct imatrix *m, struct gguf_str name, bool *there)
{
    uint64_t lo = 0, hi = m->n;
    *there = false;
    while (lo < hi) {
        const uint64_t mid = lo + (hi - lo) / 2;
        const char *s = m->entry[mid].name;
        const size_t n = strlen(s);
        int d = memcmp(s, name.s, n < name.n ? n : (size_t)name.n);
        if (!d) d = (n > name.n) - (n < name.n);
        if (!d) {
            *there = true;
            return mid;
        }
        if (d < 0) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

const struct imatrix_entry *imatrix_find(const struct imatrix *m, struct gguf_str name)
{
    bool there;
    const uint64_t at = place_of(m, name, &there);
    return there ? &m->entry[at] : NULL;
}

static struct imatrix_entry *insert(struct imatrix *m, struct gguf_str name, uint64_t n_sums,
                                    uint64_t n_counts, struct err *e)
{
    bool there;
    const uint64_t at = place_of(m, name, &there);
    if (there) {
        struct imatrix_entry *x = &m->entry[at];
        if (x->n_sums == n_sums && x->n_counts == n_counts) return x;
        err_set(e, ERR_SHAPE, "importance of %.*s: %llu values in %llu matrices do not go with "
                "%llu in %llu", (int)name.n, name.s, (unsigned long long)n_sums,
                (unsigned long long)n_counts, (unsigned long long)x->n_sums,
                (unsigned long long)x->n_counts);
        return NULL;
    }
    if (m->n == m->cap) {
        const uint64_t cap = m->cap ? 2 * m->cap : 64;
        struct imatrix_entry *grown = realloc(m->entry, (size_t)cap * sizeof *grown);
        if (!grown) goto none;
        m->entry = grown;
        m->cap = cap;
    }
    struct imatrix_entry x = {.n_sums = n_sums, .n_counts = n_counts};
    x.name = strndup(name.s, (size_t)name.n);
    x.sum = calloc((size_t)n_sums, sizeof *x.sum);
    x.count = calloc((size_t)n_counts, sizeof *x.count);
    if (!x.name || !x.sum || !x.count) {
        free(x.name);
        free(x.sum);
        free(x.count);
        goto none;
    }
    memmove(m->entry + at + 1, m->entry + at, (size_t)(m->n - at) * sizeof x);
    m->entry[at] = x;
    m->n++;
    return &m->entry[at];
none:
    err_set(e, ERR_MEMORY, "no memory for the importance of %.*s", (int)name.n, name.s);
    return NULL;
}

struct imatrix_entry *imatrix_want(struct imatrix *m, const char *name, uint64_t n_mats,
                                   uint64_t n_cols, struct err *e)
{
    const struct gguf_str s = {name, strlen(name)};
    bool there;
    const uint64_t at = place_of(m, s, &there);
    if (there && m->entry[at].n_counts == 1 && n_mats > 1 &&
        m->entry[at].n_sums == n_mats * n_cols) { /* one count for all: each gets it */
        struct imatrix_entry *x = &m->entry[at];
        double *count = realloc(x->count, (size_t)n_mats * sizeof *count);
        if (!count) {
            err_set(e, ERR_MEMORY, "no memory for the importance of %s", name);
            return NULL;
        }
        for (uint64_t i = 1; i < n_mats; i++) count[i] = count[0];
        x->count = count;
        x->n_counts = n_mats;
    }
    return insert(m, s, n_mats * n_cols, n_mats, e);
}

static enum status add_dataset(struct imatrix *m, struct gguf_str name, struct err *e)
{
    char **grown = realloc(m->dataset, (size_t)(m->n_datasets + 1) * sizeof *grown);
    if (grown) m->dataset = grown;
    char *copy = grown ? strndup(name.s, (size_t)name.n) : NULL;
    if (!copy) return err_set(e, ERR_MEMORY, "no memory for the name of a text");
    m->dataset[m->n_datasets++] = copy;
    return OK;
}

enum status imatrix_add_dataset(struct imatrix *m, const char *name, struct err *e)
{
    return add_dataset(m, (struct gguf_str){name, strlen(name)}, e);
}

enum status imatrix_merge(struct imatrix *m, const struct imatrix *from, struct err *e)
{
    for (uint64_t i = 0; i < from->n; i++) {
        const struct imatrix_entry *x = &from->entry[i];
        bool there;
        const uint64_t at = place_of(m, (struct gguf_str){x->name, strlen(x->name)}, &there);
        uint64_t n = x->n_counts;
        if (there && m->entry[at].n_counts > n) n = m->entry[at].n_counts;
        if (x->n_sums % n)
            return err_set(e, ERR_SHAPE, "importance of %s: %llu values are not those of %llu "
                           "matrices", x->name, (unsigned long long)x->n_sums,
                           (unsigned long long)n);
        struct imatrix_entry *to = imatrix_want(m, x->name, n, x->n_sums / n, e);
        if (!to) return e ? e->code : ERR_SHAPE;
        for (uint64_t k = 0; k < x->n_sums; k++) to->sum[k] += x->sum[k];
        for (uint64_t k = 0; k < n; k++) to->count[k] += x->count[x->n_counts == 1 ? 0 : k];
    }
    for (uint64_t i = 0; i < from->n_datasets; i++) {
        enum status s = imatrix_add_dataset(m, from->dataset[i], e);
        if (s) return s;
    }
    m->n_chunks += from->n_chunks;
    if (!m->chunk_size) m->chunk_size = from->chunk_size;
    return OK;
}

void imatrix_weights(const struct imatrix_entry *x, uint64_t mat, uint64_t n_cols, float *out)
{
    const double *sum = x->sum + mat * n_cols;
    double mean = 0;
    for (uint64_t k = 0; k < n_cols; k++) mean += sum[k];
    mean /= (double)n_cols;
    const bool met = x->count[x->n_counts == 1 ? 0 : mat] > 0 && mean > 0;
    for (uint64_t k = 0; k < n_cols; k++)
        out[k] = met ? (float)fmax(sum[k] / mean, LEAST) : 1.0f;
}

/* ---- reading ---- */

struct source {
    const char *path;
    struct osfile file;
};

static enum status check_value(const struct source *f, const char *name, double v, uint64_t pos,
                               struct err *e)
{
    if (v >= 0 && isfinite(v)) return OK;
    return err_set_at(e, ERR_RANGE, pos, "%s: the importance of %s holds %g", f->path, name, v);
}

/* n floats from byte pos of the file, each times scale. */
static enum status read_floats(const struct source *f, const char *name, uint64_t pos, uint64_t n,
                               double scale, double *out, struct err *e)
{
    uint8_t buf[PIECE];
    enum status s = OK;
    for (uint64_t done = 0; done < n && !s;) {
        const uint64_t k = n - done < PIECE / 4 ? n - done : PIECE / 4;
        s = osfile_read(&f->file, buf, (size_t)(4 * k), pos + 4 * done, e);
        for (uint64_t i = 0; i < k && !s; i++) {
            const uint32_t bits = (uint32_t)cursor_le(buf + 4 * i, 4);
            float v;
            memcpy(&v, &bits, 4);
            s = check_value(f, name, (double)v, pos + 4 * (done + i), e);
            out[done + i] = (double)v * scale;
        }
        done += k;
    }
    return s;
}

static bool ends_with(struct gguf_str s, const char *tail)
{
    const size_t n = strlen(tail);
    return s.n > n && !memcmp(s.s + s.n - n, tail, n);
}

static enum status read_gguf_entry(const struct source *f, const struct gguf *g,
                                   const struct gguf_tensor *t, struct imatrix *m, struct err *e)
{
    static const char sums[] = ".in_sum2", counts[] = ".counts";
    char other[NAME_MAX_BYTES];
    struct gguf_str name = t->name;
    if (!ends_with(name, sums)) return OK;
    name.n -= sizeof sums - 1;
    (void)snprintf(other, sizeof other, "%.*s%s", (int)name.n, name.s, counts);
    const struct gguf_tensor *c = gguf_find_tensor(g, other);
    const uint64_t n = t->dim[0] * t->dim[1] * t->dim[2] * t->dim[3];
    if (!c)
        return err_set(e, ERR_MISSING, "%s has %.*s%s, but no %s", f->path, (int)name.n, name.s,
                       sums, other);
    const uint64_t n_counts = c->dim[0] * c->dim[1] * c->dim[2] * c->dim[3];
    if (t->type != QTYPE_F32 || c->type != QTYPE_F32 || n % n_counts)
        return err_set(e, ERR_SHAPE, "%s: %.*s: sums and counts must be F32 and of sizes that go "
                       "together, not %llu and %llu", f->path, (int)name.n, name.s,
                       (unsigned long long)n, (unsigned long long)n_counts);
    struct imatrix_entry *x = insert(m, name, n, n_counts, e);
    if (!x) return e->code;
    enum status s = read_floats(f, x->name, t->offset, n, 1, x->sum, e);
    if (!s) s = read_floats(f, x->name, c->offset, n_counts, 1, x->count, e);
    return s;
}

static enum status read_gguf(const struct source *f, struct imatrix *m, struct err *e)
{
    struct gguf *g;
    uint64_t chunks = 0, size = 0, cursor = 0;
    enum status s = gguf_open(f->path, NULL, &g, e);
    if (s) return s;
    if (!(s = gguf_get_u64_or(g, "imatrix.chunk_count", 0, &chunks, e)))
        s = gguf_get_u64_or(g, "imatrix.chunk_size", 0, &size, e);
    m->n_chunks = (uint32_t)chunks;
    m->chunk_size = (uint32_t)size;
    const struct gguf_kv *kv = gguf_find(g, "imatrix.datasets");
    if (kv && kv->value.type == GGUF_ARRAY && kv->value.elem == GGUF_STRING)
        for (uint64_t i = 0; i < kv->value.n && !s; i++)
            s = add_dataset(m, gguf_elem_next_str(&kv->value, &cursor), e);
    for (uint64_t i = 0; i < gguf_n_tensors(g) && !s; i++)
        s = read_gguf_entry(f, g, gguf_tensor_at(g, i), m, e);
    if (!s && !m->n)
        s = err_set(e, ERR_MISSING, "%s is no importance matrix: no tensor is called "
                    "NAME.in_sum2", f->path);
    gguf_close(g);
    return s;
}

/* An i32 at *pos that is lo..hi; moves *pos. */
static enum status read_int(const struct source *f, uint64_t *pos, int64_t lo, int64_t hi,
                            const char *what, int32_t *out, struct err *e)
{
    uint8_t b[4];
    enum status s = osfile_read(&f->file, b, 4, *pos, e);
    if (s) return s;
    *out = (int32_t)(uint32_t)cursor_le(b, 4);
    if (*out < lo || *out > hi)
        return err_set_at(e, ERR_FORMAT, *pos, "%s is no importance matrix: %s is %d", f->path,
                          what, (int)*out);
    *pos += 4;
    return OK;
}

static enum status read_name(const struct source *f, uint64_t *pos, int lo,
                             char name[NAME_MAX_BYTES], struct err *e)
{
    int32_t n;
    enum status s = read_int(f, pos, lo, NAME_MAX_BYTES - 1, "the length of a name", &n, e);
    if (!s) s = osfile_read(&f->file, name, (size_t)n, *pos, e);
    if (s) return s;
    name[n] = 0;
    *pos += (uint64_t)n;
    return OK;
}

/* The file keeps means times calls; a call was a chunk of unknown size: any size gives the means
 * back, and 512 the usual weight beside others. */
static enum status read_dat(const struct source *f, struct imatrix *m, struct err *e)
{
    enum { CHUNK = 512 };
    char name[NAME_MAX_BYTES];
    uint64_t pos = 0;
    int32_t n, calls, n_values;
    enum status s = read_int(f, &pos, 1, 1 << 20, "the number of entries", &n, e);
    for (int i = 0; i < n && !s; i++) {
        if ((s = read_name(f, &pos, 1, name, e)) ||
            (s = read_int(f, &pos, 0, INT32_MAX, "the number of calls", &calls, e)) ||
            (s = read_int(f, &pos, 1, (int64_t)((f->file.size - pos) / 4), "the number of values",
                          &n_values, e)))
            break;
        struct imatrix_entry *x =
            insert(m, (struct gguf_str){name, strlen(name)}, (uint64_t)n_values, 1, e);
        if (!x) return e->code;
        s = read_floats(f, name, pos, (uint64_t)n_values, CHUNK, x->sum, e);
        x->count[0] = calls > 0 ? (double)calls * CHUNK : CHUNK;
        pos += 4 * (uint64_t)n_values;
    }
    if (s || pos == f->file.size) return s;
    if ((s = read_int(f, &pos, 0, INT32_MAX, "the number of chunks", &n, e))) return s;
    m->n_chunks = (uint32_t)n;
    if (pos == f->file.size) return OK;
    if ((s = read_name(f, &pos, 0, name, e))) return s;
    return *name ? imatrix_add_dataset(m, name, e) : OK;
}

enum status imatrix_read(const char *path, struct imatrix *m, struct err *e)
{
    struct err local;
    struct source f = {.path = path};
    char magic[4] = {0};
    if (!e) e = &local, err_clear(e);
    memset(m, 0, sizeof *m);
    enum status s = osfile_open(&f.file, path, 0, NULL, e);
    if (s) return s;
    if (f.file.size >= 4) s = osfile_read(&f.file, magic, 4, 0, e);
    if (!s) s = (memcmp(magic, "GGUF", 4) ? read_dat : read_gguf)(&f, m, e);
    osfile_close(&f.file);
    if (s) imatrix_free(m);
    return s;
}

/* ---- writing ---- */

static void put_floats(struct gguf_writer *w, const double *x, uint64_t n, enum status *s,
                       struct err *e)
{
    float buf[PIECE / 4];
    for (uint64_t done = 0; done < n && !*s;) {
        const uint64_t k = n - done < PIECE / 4 ? n - done : PIECE / 4;
        for (uint64_t i = 0; i < k; i++) buf[i] = (float)x[done + i];
        *s = gguf_writer_data(w, buf, 4 * k, e);
        done += k;
    }
}

static enum status describe(struct gguf_writer *w, const struct imatrix *m, struct err *e)
{
    struct gguf_str *names = calloc((size_t)m->n_datasets + 1, sizeof *names);
    if (!names) return err_set(e, ERR_MEMORY, "no memory for the names of the texts");
    for (uint64_t i = 0; i < m->n_datasets; i++)
        names[i] = (struct gguf_str){m->dataset[i], strlen(m->dataset[i])};
    gguf_put_str(w, "general.type", "imatrix");
    gguf_put_strs(w, "imatrix.datasets", names, m->n_datasets);
    free(names);
    gguf_put_u32(w, "imatrix.chunk_count", m->n_chunks);
    gguf_put_u32(w, "imatrix.chunk_size", m->chunk_size);
    for (uint64_t i = 0; i < m->n; i++) {
        const struct imatrix_entry *x = &m->entry[i];
        const uint64_t sums[2] = {x->n_sums / x->n_counts, x->n_counts};
        const uint64_t counts[2] = {1, x->n_counts};
        char name[NAME_MAX_BYTES + 16];
        (void)snprintf(name, sizeof name, "%s.in_sum2", x->name);
        gguf_put_tensor(w, name, QTYPE_F32, 2, sums, 4 * x->n_sums);
        (void)snprintf(name, sizeof name, "%s.counts", x->name);
        gguf_put_tensor(w, name, QTYPE_F32, 2, counts, 4 * x->n_counts);
    }
    return OK;
}

enum status imatrix_write(const struct imatrix *m, const char *path, struct err *e)
{
    struct gguf_writer *w = gguf_writer_new();
    if (!w) return err_set(e, ERR_MEMORY, "no memory to write %s", path);
    enum status s = describe(w, m, e);
    if (!s) s = gguf_writer_begin(w, path, e);
    for (uint64_t i = 0; i < m->n && !s; i++) {
        put_floats(w, m->entry[i].sum, m->entry[i].n_sums, &s, e);
        put_floats(w, m->entry[i].count, m->entry[i].n_counts, &s, e);
    }
    if (!s) s = gguf_writer_end(w, e);
    gguf_writer_close(w);
    return s;
}
