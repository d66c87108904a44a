/* See trace_export.h.
 *
 * An NPY head (format 1.0 of NumPy's documentation) is padded to a fixed length, so that it can be
 * written again when the number of records is known. */
#include "moe/load/trace_export.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

enum { HEAD = 1 << 16, NPY_SMALL = 128 };

enum trace_form trace_form_of(const char *path)
{
    static const char *const ends[TRACE_FORMS] = {".csv", ".jsonl", ".npy"};
    const size_t n = strlen(path);
    for (int f = 0; f < TRACE_FORMS; f++) {
        const size_t m = strlen(ends[f]);
        if (n > m && !strcmp(path + n - m, ends[f])) return (enum trace_form)f;
    }
    return TRACE_FORMS;
}

static enum status failed(const struct osfile_writer *w, struct err *e)
{
    return err_set(e, ERR_IO, "cannot write %s: %s", w->path, strerror(errno ? errno : EIO));
}

/* ---- NPY ---- */

/* The head for `dict`, padded to `size` bytes, at the beginning of the file. */
static enum status npy_head(const struct osfile_writer *w, const char *dict, size_t size,
                            struct err *e)
{
    const size_t n = strlen(dict), room = size - 10;
    ASSERT(n < room && room <= UINT16_MAX);
    const unsigned char magic[10] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0,
                                     (unsigned char)room, (unsigned char)(room >> 8)};
    errno = 0;
    if (fseek(w->fp, 0, SEEK_SET))
        return err_set(e, ERR_IO, "%s cannot be written from its beginning: NPY needs a file",
                       w->path);
    (void)fwrite(magic, 1, sizeof magic, w->fp);
    fprintf(w->fp, "%s%*s\n", dict, (int)(room - n - 1), "");
    return ferror(w->fp) ? failed(w, e) : OK;
}

static void put_le(FILE *f, uint32_t v, int bytes)
{
    for (int b = 0; b < bytes; b++) (void)fputc((int)(v >> 8 * b & 0xff), f);
}

static void put_f32(FILE *f, float x)
{
    uint32_t v;
    memcpy(&v, &x, sizeof v);
    put_le(f, v, 4);
}

/* Names of a trace's fields, n_used of those with a %d. */
static size_t add(char *to, size_t at, size_t cap, const char *name, int n, const char *type)
{
    for (int k = 0; k < n; k++) {
        char one[32];
        (void)snprintf(one, sizeof one, name, k);
        at += (size_t)snprintf(to + at, cap - at, "('%s','%s'),", one, type);
        if (at >= cap) return cap - 1;
    }
    return at;
}

static size_t trace_dict(char *to, size_t cap, const struct trace_export *x, uint64_t n)
{
    size_t at = (size_t)snprintf(to, cap, "{'descr':[");
    at = add(to, at, cap, "step", 1, "<i4");
    at = add(to, at, cap, "session", 1, "<i4");
    at = add(to, at, cap, "position", 1, "<i4");
    at = add(to, at, cap, "token", 1, "<i4");
    at = add(to, at, cap, "layer", 1, "<i4");
    at = add(to, at, cap, "expert_%d", x->n_used, "<i4");
    if (x->with & TRACE_WITH_WEIGHTS)
        at = add(to, at, cap, "weight_%d", x->n_used, "<f4");
    if (x->with & TRACE_WITH_TIERS)
        at = add(to, at, cap, "tier_%d", x->n_used, "|u1");
    if (x->with & TRACE_WITH_WAITS)
        at = add(to, at, cap, "wait_us", 1, "<u4");
    if (x->with & TRACE_WITH_NORMS)
        at = add(to, at, cap, "norm", 1, "<f4");
    if (x->with & TRACE_WITH_LOSSES)
        at = add(to, at, cap, "loss", 1, "<f4");
    return at + (size_t)snprintf(to + at, cap - at,
                                 "],'fortran_order':False,'shape':(%" PRIu64 ",)}", n);
}

/* Bytes of a trace's head: the same whatever the number of records is. */
static enum status trace_head(const struct trace_export *x, struct err *e)
{
    char dict[HEAD], widest[HEAD];
    (void)trace_dict(dict, sizeof dict, x, x->n);
    const size_t most = trace_dict(widest, sizeof widest, x, UINT64_MAX);
    const size_t size = (most + 11 + 63) / 64 * 64;
    if (size > UINT16_MAX)
        return err_set(e, ERR_RANGE, "NPY has no room for the names of %d slots: use .csv or .jsonl",
                       x->n_used);
    return npy_head(&x->file, dict, size, e);
}

enum status npy_open(struct npy *x, const char *path, struct err *e)
{
    memset(x, 0, sizeof *x);
    enum status s = osfile_writer_open(&x->file, path, e);
    return s ? s : npy_head(&x->file, "", NPY_SMALL, e);
}

enum status npy_row(struct npy *x, const float *row, int n_cols, struct err *e)
{
    if (!x->n_cols) x->n_cols = n_cols;
    if (x->n_cols != n_cols)
        return err_set(e, ERR_SHAPE, "%s: rows of %d and of %d values", x->file.path, x->n_cols,
                       n_cols);
    for (int i = 0; i < n_cols; i++) put_f32(x->file.fp, row[i]);
    x->n_rows++;
    return ferror(x->file.fp) ? failed(&x->file, e) : OK;
}

enum status npy_close(struct npy *x, struct err *e)
{
    char dict[96];
    (void)snprintf(dict, sizeof dict, "{'descr':'<f4','fortran_order':False,'shape':(%" PRIu64 ",%d)}",
                   x->n_rows, x->n_cols);
    enum status s = npy_head(&x->file, dict, NPY_SMALL, e);
    if (s) osfile_writer_abort(&x->file);
    else s = osfile_writer_commit(&x->file, e);
    return s;
}

void npy_abort(struct npy *x) { osfile_writer_abort(&x->file); }

/* ---- one record ---- */

static int expert_of(const uint16_t *x, int k) { return x[k] == TRACE_NONE ? -1 : x[k]; }

static void put_binary(FILE *f, const struct trace *t, int32_t row, int l)
{
    const uint16_t *x = trace_experts(t, row, l);
    const size_t at = trace_at(t, row, l), in_layer = at / (size_t)t->n_used;
    put_le(f, (uint32_t)t->step[row], 4);
    put_le(f, (uint32_t)t->session[row], 4);
    put_le(f, (uint32_t)t->pos[row], 4);
    put_le(f, (uint32_t)t->token[row], 4);
    put_le(f, (uint32_t)t->layer[l], 4);
    for (int k = 0; k < t->n_used; k++) put_le(f, (uint32_t)expert_of(x, k), 4);
    for (int k = 0; t->weight && k < t->n_used; k++) put_f32(f, t->weight[at + (size_t)k]);
    for (int k = 0; t->tier && k < t->n_used; k++) put_le(f, t->tier[at + (size_t)k], 1);
    if (t->wait) put_le(f, t->wait[in_layer], 4);
    if (t->norm) put_f32(f, t->norm[in_layer]);
    if (t->loss) put_f32(f, t->loss[row]);
}

static void put_csv(FILE *f, const struct trace *t, int32_t row, int l)
{
    const uint16_t *x = trace_experts(t, row, l);
    const size_t at = trace_at(t, row, l), in_layer = at / (size_t)t->n_used;
    fprintf(f, "%d,%d,%d,%d,%d", t->step[row], t->session[row], t->pos[row], t->token[row],
            t->layer[l]);
    for (int k = 0; k < t->n_used; k++) fprintf(f, ",%d", expert_of(x, k));
    for (int k = 0; t->weight && k < t->n_used; k++)
        fprintf(f, ",%.9g", (double)t->weight[at + (size_t)k]);
    for (int k = 0; t->tier && k < t->n_used; k++) fprintf(f, ",%d", t->tier[at + (size_t)k]);
    if (t->wait) fprintf(f, ",%" PRIu32, t->wait[in_layer]);
    if (t->norm) fprintf(f, ",%.9g", (double)t->norm[in_layer]);
    if (t->loss) fprintf(f, ",%.9g", (double)t->loss[row]);
    (void)fputc('\n', f);
}

static void put_csv_head(FILE *f, const struct trace *t)
{
    fprintf(f, "step,session,position,token,layer");
    for (int k = 0; k < t->n_used; k++) fprintf(f, ",expert_%d", k);
    for (int k = 0; t->weight && k < t->n_used; k++) fprintf(f, ",weight_%d", k);
    for (int k = 0; t->tier && k < t->n_used; k++) fprintf(f, ",tier_%d", k);
    fprintf(f, "%s%s%s\n", t->wait ? ",wait_us" : "", t->norm ? ",norm" : "", t->loss ? ",loss" : "");
}

/* JSON knows no NaN. */
static void put_number(FILE *f, float x)
{
    if (isfinite(x)) fprintf(f, "%.9g", (double)x);
    else fprintf(f, "null");
}

static void put_json(FILE *f, const struct trace *t, int32_t row, int l)
{
    const uint16_t *x = trace_experts(t, row, l);
    const size_t at = trace_at(t, row, l), in_layer = at / (size_t)t->n_used;
    fprintf(f, "{\"step\":%d,\"session\":%d,\"position\":%d,\"token\":%d,\"layer\":%d,\"experts\":",
            t->step[row], t->session[row], t->pos[row], t->token[row], t->layer[l]);
    for (int k = 0; k < t->n_used; k++) fprintf(f, "%c%d", k ? ',' : '[', expert_of(x, k));
    (void)fputc(']', f);
    if (t->weight) fprintf(f, ",\"weights\":");
    for (int k = 0; t->weight && k < t->n_used; k++) {
        (void)fputc(k ? ',' : '[', f);
        put_number(f, t->weight[at + (size_t)k]);
    }
    if (t->weight) (void)fputc(']', f);
    if (t->tier) fprintf(f, ",\"tiers\":");
    for (int k = 0; t->tier && k < t->n_used; k++)
        fprintf(f, "%c%d", k ? ',' : '[', t->tier[at + (size_t)k]);
    if (t->tier) (void)fputc(']', f);
    if (t->wait) fprintf(f, ",\"wait_us\":%" PRIu32, t->wait[in_layer]);
    if (t->norm) {
        fprintf(f, ",\"norm\":");
        put_number(f, t->norm[in_layer]);
    }
    if (t->loss) {
        fprintf(f, ",\"loss\":");
        put_number(f, t->loss[row]);
    }
    fprintf(f, "}\n");
}

/* ---- a file ---- */

enum status trace_export_open(struct trace_export *x, const char *path, enum trace_form form,
                              const struct trace *shape, struct err *e)
{
    *x = (struct trace_export){
        .form = form, .n_used = shape->n_used,
        .with = (shape->weight ? TRACE_WITH_WEIGHTS : 0) | (shape->tier ? TRACE_WITH_TIERS : 0) |
                (shape->wait ? TRACE_WITH_WAITS : 0) | (shape->norm ? TRACE_WITH_NORMS : 0) |
                (shape->loss ? TRACE_WITH_LOSSES : 0)};
    enum status s = osfile_writer_open(&x->file, path, e);
    if (s) return s;
    if (form == TRACE_CSV) put_csv_head(x->file.fp, shape);
    if (form == TRACE_NPY && (s = trace_head(x, e))) osfile_writer_abort(&x->file);
    return s;
}

enum status trace_export_rows(struct trace_export *x, const struct trace *t, struct err *e)
{
    static void (*const put[TRACE_FORMS])(FILE *f, const struct trace *t, int32_t row, int l) = {
        put_csv, put_json, put_binary};
    errno = 0;
    for (int32_t r = 0; r < t->n_rows; r++)
        for (int l = 0; l < t->n_layers; l++, x->n++) put[x->form](x->file.fp, t, r, l);
    return ferror(x->file.fp) ? failed(&x->file, e) : OK;
}

enum status trace_export_close(struct trace_export *x, struct err *e)
{
    enum status s = x->form == TRACE_NPY ? trace_head(x, e) : OK;
    if (s) osfile_writer_abort(&x->file);
    else s = osfile_writer_commit(&x->file, e);
    return s;
}

void trace_export_abort(struct trace_export *x) { osfile_writer_abort(&x->file); }
