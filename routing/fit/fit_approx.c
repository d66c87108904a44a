/* See fit_approx.h. */
#include "routing/fit/fit_approx.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "moe/base/rng.h"

enum { SWEEPS = 8 };

struct fit {
    int n, rank;
    long m;
    const float *x, *z;
    double *mean_x, *mean_y;  /* [n] */
    double *s;                /* [n][n] of x' less its mean; then its Cholesky factor, lower */
    double *b;                /* [n][n] row j: what x'[j] adds to each y */
    double *cov;              /* [n][n] of x', kept */
    double *q, *r, *t;        /* [rank][n] basis of y, and work; [n] */
    float *row, *err;         /* [n] x', y; [m] log of what is lost */
};

static void axpy(int n, double a, const double *x, double *y)
{
    for (int i = 0; i < n; i++) y[i] += a * x[i];
}

static double dot(int n, const double *x, const double *y)
{
    double s[4] = {0};
    int i = 0;
    for (; i + 4 <= n; i += 4)
        for (int k = 0; k < 4; k++) s[k] += x[i + k] * y[i + k];
    for (; i < n; i++) s[0] += x[i] * y[i];
    return (s[0] + s[1]) + (s[2] + s[3]);
}

/* x' and y of a pair, less their means. */
static void centred(const struct fit *f, long p, double *x, double *y)
{
    const float *a = f->x + p * f->n, *z = f->z + p * f->n;
    const double scale = (double)approx_scale(f->n, a);
    for (int i = 0; i < f->n; i++) {
        x[i] = (double)a[i] * scale - f->mean_x[i];
        y[i] = (double)z[i] - (double)a[i] - f->mean_y[i];
    }
}

static void accumulate(struct fit *f, double *x, double *y)
{
    const int n = f->n;
    for (int pass = 0; pass < 2; pass++) {
        double *mx = f->t, *my = f->t + n;
        memset(f->t, 0, sizeof *f->t * 2 * (size_t)n);
        for (long p = 0; p < f->m; p++) {
            centred(f, p, x, y);
            for (int i = 0; i < n && !pass; i++) {
                mx[i] += x[i] / (double)f->m;
                my[i] += y[i] / (double)f->m;
            }
            for (int i = 0; i < n && pass; i++) {
                axpy(i + 1, x[i], x, f->s + (long)i * n);
                axpy(n, x[i], y, f->b + (long)i * n);
            }
        }
        if (pass) continue;
        memcpy(f->mean_x, mx, sizeof *mx * (size_t)n);
        memcpy(f->mean_y, my, sizeof *my * (size_t)n);
    }
    double trace = 0;
    for (int i = 0; i < n; i++) trace += f->s[(long)i * n + i];
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < i; k++) f->s[(long)k * n + i] = f->s[(long)i * n + k];
    }
    memcpy(f->cov, f->s, sizeof *f->s * (size_t)n * (size_t)n);
    for (int i = 0; i < n; i++) f->s[(long)i * n + i] += 1e-3 * trace / n + 1e-9;
}

static void factor(struct fit *f)
{
    const int n = f->n;
    for (int i = 0; i < n; i++) {
        double *row = f->s + (long)i * n;
        for (int k = 0; k < i; k++) {
            const double *other = f->s + (long)k * n;
            row[k] = (row[k] - dot(k, row, other)) / other[k];
        }
        const double d = row[i] - dot(i, row, row);
        row[i] = sqrt(d > 1e-12 ? d : 1e-12);
    }
}

/* Solves for n_cols right sides in b [n][n_cols], in place. */
static void solve(const struct fit *f, double *b, int n_cols)
{
    const int n = f->n;
    for (int i = 0; i < n; i++) {
        double *row = b + (long)i * n_cols;
        for (int k = 0; k < i; k++) axpy(n_cols, -f->s[(long)i * n + k], b + (long)k * n_cols, row);
        for (int c = 0; c < n_cols; c++) row[c] /= f->s[(long)i * n + i];
    }
    for (int i = n - 1; i >= 0; i--) {
        double *row = b + (long)i * n_cols;
        for (int k = i + 1; k < n; k++) axpy(n_cols, -f->s[(long)k * n + i], b + (long)k * n_cols, row);
        for (int c = 0; c < n_cols; c++) row[c] /= f->s[(long)i * n + i];
    }
}

/* to [n] = B' C B q, C the covariance of x': that of what is forecast, times q. */
static void spread(const struct fit *f, const double *q, double *to)
{
    const int n = f->n;
    double *u = f->t, *v = f->t + n;
    for (int j = 0; j < n; j++) u[j] = dot(n, f->b + (long)j * n, q);
    for (int j = 0; j < n; j++) v[j] = dot(n, f->cov + (long)j * n, u);
    memset(to, 0, sizeof *to * (size_t)n);
    for (int j = 0; j < n; j++) axpy(n, v[j], f->b + (long)j * n, to);
}

/* The directions of y in which most is forecast: an orthonormal basis in q. */
static void find_basis(struct fit *f)
{
    const int n = f->n;
    struct rng g;
    rng_seed(&g, 1);
    for (long i = 0; i < (long)f->rank * n; i++)
        f->q[i] = rng_f64(&g) - 0.5;
    for (int sweep = 0; sweep < SWEEPS; sweep++)
        for (int k = 0; k < f->rank; k++) {
            double *q = f->q + (long)k * n;
            spread(f, q, f->r);
            for (int twice = 0; twice < 2; twice++)
                for (int i = 0; i < k; i++)
                    axpy(n, -dot(n, f->r, f->q + (long)i * n), f->q + (long)i * n, f->r);
            const double len = sqrt(dot(n, f->r, f->r));
            for (int i = 0; i < n; i++) q[i] = f->r[i] / (len > 1e-30 ? len : 1e-30);
        }
}

/* down = q B', up = q, bias = mean of y less what the mean of x' forecasts. */
static void write_map(struct fit *f, float *data)
{
    const int n = f->n;
    float *down = data, *up = data + (long)f->rank * n, *bias = up + (long)f->rank * n;
    double *b = f->t;
    memcpy(b, f->mean_y, sizeof *b * (size_t)n);
    for (int k = 0; k < f->rank; k++) {
        const double *q = f->q + (long)k * n;
        double at_mean = 0;
        for (int j = 0; j < n; j++) {
            const double w = dot(n, f->b + (long)j * n, q);
            down[(long)k * n + j] = (float)w;
            at_mean += w * f->mean_x[j];
        }
        for (int i = 0; i < n; i++) up[(long)k * n + i] = (float)q[i];
        axpy(n, -at_mean, q, b);
    }
    for (int i = 0; i < n; i++) bias[i] = (float)b[i];
}

static void fit_judge(struct fit *f, float *data, struct approx_layer *out, double *x, double *y)
{
    const int n = f->n;
    double mean = 0;
    double *w = f->r;
    memset(w, 0, sizeof *w * (size_t)n);
    for (long p = 0; p < f->m; p++) {
        const float *a = f->x + p * n, *z = f->z + p * n;
        double lost = 0, all = 0;
        approx_apply(out, a, approx_scale(n, a), f->row);
        for (int i = 0; i < n; i++) {
            lost += ((double)f->row[i] - (double)z[i]) * ((double)f->row[i] - (double)z[i]);
            all += (double)a[i] * (double)a[i];
        }
        f->err[p] = (float)(0.5 * log((lost + 1e-12) / (all + 1e-12)));
        mean += (double)f->err[p] / (double)f->m;
    }
    for (long p = 0; p < f->m; p++) {
        centred(f, p, x, y);
        axpy(n, (double)f->err[p] - mean, x, w);
    }
    solve(f, w, 1);
    float *judge = data + 2L * f->rank * n + n;
    double bias = mean;
    for (int i = 0; i < n; i++) {
        judge[i] = (float)w[i];
        bias -= w[i] * f->mean_x[i];
    }
    out->judge_bias = (float)bias;
}

enum status fit_approx(int n, int rank, long n_pairs, const float *x, const float *z, float *data,
                       struct approx_layer *out, float *loss, struct err *e)
{
    if (n_pairs < n)
        return err_set(e, ERR_RANGE, "%ld tokens are too few to fit %d values: use a longer text", n_pairs,
                       n);
    const size_t d = (size_t)n;
    double *mem = calloc(3 * d * d + (size_t)rank * d + 7 * d, sizeof *mem);
    float *row = malloc(sizeof *row * d);
    if (!mem || !row) {
        free(mem);
        free(row);
        return err_set(e, ERR_MEMORY, "no memory to fit a layer");
    }
    struct fit f = {.n = n, .rank = rank, .m = n_pairs, .x = x, .z = z, .s = mem, .b = mem + d * d,
                    .cov = mem + 2 * d * d, .q = mem + 3 * d * d, .row = row, .err = loss};
    f.mean_x = f.q + (size_t)rank * d;
    f.mean_y = f.mean_x + d;
    f.t = f.mean_y + d;
    f.r = f.t + 2 * d;
    double *one = f.r + d, *two = one + d;
    accumulate(&f, one, two);
    factor(&f);
    solve(&f, f.b, n);
    find_basis(&f);
    approx_point(n, rank, data, out);
    write_map(&f, data);
    fit_judge(&f, data, out, one, two);
    for (long p = 0; p < n_pairs; p++) {
        const float *a = x + p * n;
        loss[p] = approx_judge(out, a, approx_scale(n, a));
    }
    free(mem);
    free(row);
    return OK;
}
