/* Errors of quantised files: two of them beside the file that they were made from.
 *
 *   build/release/bench/encode_error SOURCE OURS THEIRS [IMATRIX] [--tensors]
 *
 * Both must have the same tensors.  For every weight type that both give to the same tensors: the
 * sum of (w - w')^2, weighted with the importance matrix where there is one, ours over theirs; with
 * --tensors the worst tensor as well.  Matrices without importance count plainly in both.  Prints
 * "TYPE n_tensors ours theirs ratio worst_ratio". */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe/load/gguf.h"
#include "quant/build/imatrix.h"
#include "quant/codec.h"

struct model {
    struct gguf *g;
    struct osfile f;
};

struct sum {
    int n;
    double a, b, worst;
};

static void die(const char *what)
{
    fprintf(stderr, "encode_error: %s\n", what);
    exit(1);
}

static void open_model(struct model *m, const char *path)
{
    struct err e;
    err_clear(&e);
    if (gguf_open(path, NULL, &m->g, &e) || osfile_open(&m->f, path, 0, NULL, &e)) die(e.msg);
    if (gguf_n_shards(m->g) != 1) die("split files are not for this");
}

/* The whole tensor as floats; caller frees. */
static float *floats(const struct model *m, const struct gguf_tensor *t, uint64_t n)
{
    struct err e;
    err_clear(&e);
    void *raw = malloc(t->bytes);
    float *x = malloc(n * sizeof *x);
    if (!raw || !x || !qtype_info(t->type)) die("no memory, or a type that cannot be read");
    if (osfile_read(&m->f, raw, t->bytes, t->offset, &e)) die(e.msg);
    codec_decode((enum qtype)t->type, raw, x, (int64_t)n);
    free(raw);
    return x;
}

static double error(const float *x, const float *y, const struct gguf_tensor *t,
                    const struct imatrix_entry *im)
{
    const uint64_t cols = t->dim[0], rows = t->dim[1], mats = t->dim[2] * t->dim[3];
    float *w = malloc(cols * sizeof *w);
    double sum = 0;
    if (!w) die("no memory");
    for (uint64_t m = 0; m < mats; m++) {
        for (uint64_t k = 0; k < cols; k++) w[k] = 1;
        if (im) imatrix_weights(im, m, cols, w);
        for (uint64_t r = 0; r < rows; r++)
            for (uint64_t k = 0; k < cols; k++, x++, y++)
                sum += (double)w[k] * ((double)*x - *y) * ((double)*x - *y);
    }
    free(w);
    return sum;
}

int main(int argc, char **argv)
{
    struct model source, ours, theirs;
    struct imatrix im = {0};
    struct err e;
    err_clear(&e);
    if (argc < 4) die("usage: encode_error SOURCE OURS THEIRS [IMATRIX]");
    open_model(&source, argv[1]);
    open_model(&ours, argv[2]);
    open_model(&theirs, argv[3]);
    if (argc > 4 && imatrix_read(argv[4], &im, &e)) die(e.msg);
    static struct sum sums[QTYPE_ID_END];
    for (uint64_t i = 0; i < gguf_n_tensors(source.g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(source.g, i);
        char name[128];
        (void)snprintf(name, sizeof name, "%.*s", (int)t->name.n, t->name.s);
        const struct gguf_tensor *a = gguf_find_tensor(ours.g, name);
        const struct gguf_tensor *b = gguf_find_tensor(theirs.g, name);
        const uint64_t n = t->dim[0] * t->dim[1] * t->dim[2] * t->dim[3];
        if (!a || !b || a->type != b->type) {
            fprintf(stderr, "encode_error: %s differs in type\n", name);
            continue;
        }
        if (a->type == t->type) continue;
        float *x = floats(&source, t, n), *y = floats(&ours, a, n), *z = floats(&theirs, b, n);
        const struct imatrix_entry *w = imatrix_find(&im, t->name);
        const double p = error(x, y, t, w), q = error(x, z, t, w);
        struct sum *s = &sums[a->type];
        s->n++;
        s->a += p;
        s->b += q;
        s->worst = fmax(s->worst, q > 0 ? p / q : p > 0 ? INFINITY : 1);
        free(x);
        free(y);
        free(z);
    }
    for (int k = 0; k < QTYPE_ID_END; k++)
        if (sums[k].n)
            printf("%s %d %.6g %.6g %.4f %.4f\n", qtype_info((uint32_t)k)->name, sums[k].n,
                   sums[k].a, sums[k].b, sums[k].a / sums[k].b, sums[k].worst);
    return 0;
}
