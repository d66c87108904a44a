/* See kl.h. */
#include "cli/kl.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char magic[8] = {'_', 'l', 'o', 'g', 'i', 't', 's', '_'};

enum { HEAD = 4 }; /* u16s before the codes: scale and min */

static size_t row_words(int n_vocab) { return (size_t)HEAD + ((size_t)n_vocab + 1) / 2 * 2; }

static float max_of(const float *x, int n, int *at)
{
    *at = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[*at]) *at = i;
    return x[*at];
}

/* log of the sum of exp(x - max) */
static double log_sum(const float *x, int n, float max)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += expf(x[i] - max);
    return log(sum);
}

double kl_rows(const float *p, const float *q, int n, double z[2])
{
    double own[2] = {0}, top[2] = {(double)p[0], (double)q[0]}, kl = 0;
    if (!z) z = own;
    for (int i = 1; i < n; i++) {
        top[0] = fmax(top[0], (double)p[i]);
        top[1] = fmax(top[1], (double)q[i]);
    }
    z[0] = z[1] = 0;
    for (int i = 0; i < n; i++) {
        z[0] += exp((double)p[i] - top[0]);
        z[1] += exp((double)q[i] - top[1]);
    }
    for (int k = 0; k < 2; k++) z[k] = top[k] + log(z[k]);
    for (int i = 0; i < n; i++)
        kl += exp((double)p[i] - z[0]) * ((double)p[i] - z[0] - (double)q[i] + z[1]);
    return kl;
}

/* ---- writing ---- */

static enum status write_failed(const struct kl_writer *k, struct err *e)
{
    return err_set(e, ERR_IO, "cannot write %s: %s", k->w.path, strerror(errno ? errno : EIO));
}

enum status kl_create(struct kl_writer *k, const char *path, int n_vocab, int n_ctx, int n_chunk,
                      const int32_t *ids, struct err *e)
{
    k->n_vocab = n_vocab;
    k->row_bytes = row_words(n_vocab) * sizeof *k->row;
    k->row = calloc(1, k->row_bytes);
    if (!k->row) return err_set(e, ERR_MEMORY, "no memory for a distribution");
    enum status s = osfile_writer_open(&k->w, path, e);
    if (s) return s;
    int32_t head[3] = {n_ctx, n_vocab, n_chunk};
    size_t n = (size_t)n_ctx * (size_t)n_chunk;
    if (fwrite(magic, sizeof magic, 1, k->w.fp) != 1 ||
        fwrite(head, sizeof head, 1, k->w.fp) != 1 || fwrite(ids, sizeof *ids, n, k->w.fp) != n)
        s = write_failed(k, e);
    return s;
}

enum status kl_put(struct kl_writer *k, const float *logits, struct err *e)
{
    int top, n = k->n_vocab;
    float max = max_of(logits, n, &top), min = max;
    for (int i = 0; i < n; i++) min = logits[i] < min ? logits[i] : min;
    if (min < max - 16) min = max - 16; /* what is less likely than e^-16 is told as e^-16 */
    float lse = (float)log_sum(logits, n, max);
    float head[2] = {(max - min) / 65535.0f, min - max - lse};
    memcpy(k->row, head, sizeof head);
    for (int i = 0; i < n; i++) {
        float above = logits[i] - min;
        k->row[HEAD + i] = above > 0 && head[0] > 0 ? (uint16_t)lrintf(above / head[0]) : 0;
    }
    if (fwrite(k->row, k->row_bytes, 1, k->w.fp) != 1) return write_failed(k, e);
    osfile_writer_settle(&k->w);
    return OK;
}

enum status kl_commit(struct kl_writer *k, struct err *e)
{
    enum status s = osfile_writer_commit(&k->w, e);
    kl_abort(k);
    return s;
}

void kl_abort(struct kl_writer *k)
{
    if (k->w.fp) osfile_writer_abort(&k->w);
    free(k->row);
    memset(k, 0, sizeof *k);
}

/* ---- reading ---- */

static enum status bad_base(const struct kl_reader *k, const char *what, struct err *e)
{
    return err_set(e, ERR_FORMAT, "%s %s; tessera perplexity --kl-divergence-base makes such files",
                   k->path, what);
}

/* The size must be what the header says, before anything is allocated by it. */
static enum status check_head(struct kl_reader *k, const int32_t head[3], int n_vocab,
                              struct err *e)
{
    struct stat st;
    int64_t n_ctx = head[0], n_chunk = head[2];
    if (n_ctx < 4 || n_ctx > 1 << 24 || n_chunk < 1 || n_chunk > 1 << 24)
        return bad_base(k, "has an absurd header: it is damaged", e);
    if (head[1] != n_vocab)
        return err_set(e, ERR_SHAPE, "%s was made with a vocabulary of %d, this model has %d",
                       k->path, (int)head[1], n_vocab);
    int64_t scored = n_chunk * (n_ctx - 1 - n_ctx / 2);
    int64_t ids_end = 20 + 4 * n_ctx * n_chunk;
    if (fstat(fileno(k->f), &st) || st.st_size < ids_end ||
        (st.st_size - ids_end) / (int64_t)k->row_bytes < scored)
        return bad_base(k, "is shorter than its header says: it is truncated", e);
    return OK;
}

enum status kl_open(struct kl_reader *k, const char *path, int n_vocab, int *n_ctx, int *n_chunk,
                    int32_t **ids, struct err *e)
{
    char start[sizeof magic];
    int32_t head[3];
    k->path = path;
    k->n_vocab = n_vocab;
    k->row_bytes = row_words(n_vocab) * sizeof *k->row;
    k->f = fopen(path, "re");
    if (!k->f) return err_set(e, ERR_IO, "cannot open %s: %s", path, strerror(errno));
    if (fread(start, sizeof start, 1, k->f) != 1 || memcmp(start, magic, sizeof magic) ||
        fread(head, sizeof head, 1, k->f) != 1)
        return bad_base(k, "holds no saved distributions", e);
    enum status s = check_head(k, head, n_vocab, e);
    if (s) return s;
    size_t n = (size_t)head[0] * (size_t)head[2];
    k->row = malloc(k->row_bytes);
    *ids = malloc(n * sizeof **ids);
    if (!k->row || !*ids) return err_set(e, ERR_MEMORY, "no memory for the ids of %s", path);
    if (fread(*ids, sizeof **ids, n, k->f) != n) return bad_base(k, "cannot be read", e);
    for (size_t i = 0; i < n; i++)
        if ((*ids)[i] < 0 || (*ids)[i] >= n_vocab)
            return bad_base(k, "holds an id outside the vocabulary: it is damaged", e);
    *n_ctx = head[0];
    *n_chunk = head[2];
    return OK;
}

void kl_close(struct kl_reader *k)
{
    if (k->f) (void)fclose(k->f);
    free(k->row);
    memset(k, 0, sizeof *k);
}

/* ---- comparing ---- */

static enum status keep(struct kl_sum *s, float kld, float dp, struct err *e)
{
    if (s->count == s->cap) {
        int64_t cap = s->cap ? 2 * s->cap : 4096;
        float *a = realloc(s->klds, (size_t)cap * sizeof *a);
        if (a) s->klds = a;
        float *b = a ? realloc(s->dps, (size_t)cap * sizeof *b) : NULL;
        if (!b) return err_set(e, ERR_MEMORY, "no memory for the statistics");
        s->dps = b;
        s->cap = cap;
    }
    s->klds[s->count] = kld;
    s->dps[s->count++] = dp;
    return OK;
}

enum status kl_compare(struct kl_reader *k, const float *logits, int32_t next, struct kl_sum *s,
                       struct err *e)
{
    float head[2];
    if (fread(k->row, k->row_bytes, 1, k->f) != 1) return bad_base(k, "ends too early", e);
    memcpy(head, k->row, sizeof head);
    const uint16_t *q = k->row + HEAD;
    int top, base_top = 0, n = k->n_vocab;
    float max = max_of(logits, n, &top);
    double norm = (double)max + log_sum(logits, n, max), kld = 0;
    for (int i = 0; i < n; i++) {
        float lp = head[0] * (float)q[i] + head[1];
        if (q[i] > q[base_top]) base_top = i;
        if (lp > -16.0f) kld += exp(lp) * ((double)lp - (double)logits[i] + norm);
    }
    double nll = norm - (double)logits[next];
    double base = -((double)head[0] * q[next] + (double)head[1]);
    double dp = exp(-nll) - exp(-base);
    s->nll += nll, s->nll2 += nll * nll;
    s->base += base, s->base2 += base * base, s->nll_base += nll * base;
    s->kld += kld, s->kld2 += kld * kld;
    s->dp += dp, s->dp2 += dp * dp, s->dp4 += dp * dp * dp * dp;
    s->same_top += top == base_top;
    return keep(s, (float)kld, (float)dp, e);
}

void kl_sum_free(struct kl_sum *s)
{
    free(s->klds);
    free(s->dps);
    memset(s, 0, sizeof *s);
}

/* ---- printing ---- */

struct mean {
    double x, dx; /* value and uncertainty */
};

static struct mean mean_of(double sum, double sum2, int64_t count)
{
    double n = (double)count, x = sum / n, var = sum2 / n - x * x;
    return (struct mean){x, var > 0 && count > 10 ? sqrt(var / (n - 1)) : 0};
}

/* ln(PPL here / PPL base); the two are correlated. */
static struct mean ratio_of(const struct kl_sum *s, double *cov)
{
    double n = (double)s->count;
    struct mean a = mean_of(s->nll, s->nll2, s->count), b = mean_of(s->base, s->base2, s->count);
    *cov = s->count < 10 ? 0 : (s->nll_base / n - s->nll / n * (s->base / n)) / (n - 1);
    double var = a.dx * a.dx + b.dx * b.dx - 2 * *cov;
    return (struct mean){a.x - b.x, var > 0 ? sqrt(var) : 0};
}

static struct mean rms_dp(const struct kl_sum *s)
{
    struct mean m = mean_of(s->dp2, s->dp4, s->count);
    double rms = sqrt(m.x);
    return (struct mean){100 * rms, rms > 0 ? 50 / rms * m.dx : 0};
}

static struct mean top_of(const struct kl_sum *s)
{
    double n = (double)s->count, p = (double)s->same_top / n;
    return (struct mean){100 * p, n > 1 ? 100 * sqrt(p * (1 - p) / (n - 1)) : 0};
}

void kl_print_chunk(const struct kl_sum *s, int chunk)
{
    double cov;
    if (!chunk) {
        printf("chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence  "
               "            Δp RMS            Same top p\n");
        return;
    }
    struct mean ppl = mean_of(s->nll, s->nll2, s->count), ratio = ratio_of(s, &cov);
    struct mean kld = mean_of(s->kld, s->kld2, s->count), dp = rms_dp(s), top = top_of(s);
    printf("%4d    %9.4f ± %9.4f    %10.5f ± %10.5f    %10.5f ± %10.5f    %6.3f ± %6.3f %%"
           "    %6.3f ± %6.3f %%\n",
           chunk, exp(ppl.x), exp(ppl.x) * ppl.dx, ratio.x, ratio.dx, kld.x, kld.dx, dp.x, dp.dx,
           top.x, top.dx);
}

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double percentile(const float *sorted, int64_t n, double fraction)
{
    double at = fraction * (double)(n - 1);
    int64_t i = (int64_t)at, j = i + 1 < n ? i + 1 : n - 1;
    return (1 - (at - (double)i)) * (double)sorted[i] + (at - (double)i) * (double)sorted[j];
}

static void print_percentiles(const char *what, const float *sorted, int64_t n, double scale)
{
    static const struct { const char *name; double at; } rows[] = {
        {"Maximum", 1},    {"99.9%  ", 0.999}, {"99.0%  ", 0.99}, {"95.0%  ", 0.95},
        {"90.0%  ", 0.9},  {"75.0%  ", 0.75},  {"Median ", 0.5},  {"25.0%  ", 0.25},
        {"10.0%  ", 0.1},  {" 5.0%  ", 0.05},  {" 1.0%  ", 0.01}, {" 0.1%  ", 0.001},
        {"Minimum", 0},
    };
    bool percent = scale > 1;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char number[32];
        double v = scale * percentile(sorted, n, rows[i].at);
        (void)snprintf(number, sizeof number, percent ? "%6.3f%%" : "%10.6f", v);
        printf("%s %s: %s\n", rows[i].name, what, number);
    }
}

static void print_ppl(const struct kl_sum *s)
{
    double cov;
    struct mean a = mean_of(s->nll, s->nll2, s->count), b = mean_of(s->base, s->base2, s->count);
    struct mean ratio = ratio_of(s, &cov);
    double pa = exp(a.x), pb = exp(b.x), da = pa * a.dx, db = pb * b.dx;
    double var = da * da + db * db - 2 * pa * pb * cov;
    double cor = a.dx > 0 && b.dx > 0 ? cov / (a.dx * b.dx) : 1;
    printf("====== Perplexity statistics ======\n");
    printf("Mean PPL(Q)                   : %10.6f ± %10.6f\n", pa, da);
    printf("Mean PPL(base)                : %10.6f ± %10.6f\n", pb, db);
    printf("Cor(ln(PPL(Q)), ln(PPL(base))): %6.2f%%\n", 100 * cor);
    printf("Mean ln(PPL(Q)/PPL(base))     : %10.6f ± %10.6f\n", ratio.x, ratio.dx);
    printf("Mean PPL(Q)/PPL(base)         : %10.6f ± %10.6f\n", exp(ratio.x),
           exp(ratio.x) * ratio.dx);
    printf("Mean PPL(Q)-PPL(base)         : %10.6f ± %10.6f\n\n", pa - pb,
           var > 0 ? sqrt(var) : 0);
}

void kl_print(struct kl_sum *s)
{
    if (!s->count) return;
    qsort(s->klds, (size_t)s->count, sizeof *s->klds, by_value);
    qsort(s->dps, (size_t)s->count, sizeof *s->dps, by_value);
    struct mean kld = mean_of(s->kld, s->kld2, s->count), dp = mean_of(s->dp, s->dp2, s->count);
    struct mean rms = rms_dp(s), top = top_of(s);
    print_ppl(s);
    printf("====== KL divergence statistics ======\n");
    printf("Mean    KLD: %10.6f ± %10.6f\n", kld.x, kld.dx);
    print_percentiles("KLD", s->klds, s->count, 1);
    printf("\n====== Token probability statistics ======\n");
    printf("Mean    Δp: %6.3f ± %5.3f %%\n", 100 * dp.x, 100 * dp.dx);
    print_percentiles("Δp", s->dps, s->count, 100);
    printf("RMS Δp    : %6.3f ± %5.3f %%\n", rms.x, rms.dx);
    printf("Same top p: %6.3f ± %5.3f %%\n\n", top.x, top.dx);
}
