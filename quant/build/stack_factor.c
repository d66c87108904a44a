/* The factored codec of a stack: BitStack's iterative absolute value decomposition (arXiv 2410.23918),
 * written from its description.
 *
 *   R = W D, D = the columns' activations; for every plane:
 *     S = sign(R), zero counts as +1;  |R| ~ U V^T, the best of rank k;  R -= S (.) (U V^T)
 *
 * U and D^-1 V are stored as halfs, and the residual is formed from what was stored.  So the file holds
 * a replacement of W itself: no norm has to change with it.
 *
 * DESIGN.  The k largest singular vectors come from subspace iteration with a few vectors more than
 * needed, in double, orthonormalised twice; then the small problem is solved by Jacobi rotations.  It
 * ends when the singular values stand still: where they are close to each other it does not matter
 * which of their vectors are taken. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "moe/base/f16.h"
#include "moe/base/rng.h"
#include "quant/build/stack_int.h"
#include "quant/codec.h"

enum { MORE = 8, K_MAX = STACK_RANK_MAX + MORE, TASK = 32, SMALL = 1 << 13, TURNS = 12,
       TURNS_SMALL = 400 };

struct factor {
    int m, n, k, kk;         /* kk: vectors iterated */
    float *r;                /* [m][n] residual */
    double *y, *z;           /* [kk][m], [kk][n] */
    double value[K_MAX];     /* singular values, falling */
};

/* ---- |R| times vectors ---------------------------------------------------------------------- */

static void rows_task(void *arg, int task, int worker)
{
    (void)worker;
    struct factor *f = arg;
    const int end = (task + 1) * TASK < f->m ? (task + 1) * TASK : f->m;
    for (int i = task * TASK; i < end; i++)
        for (int v = 0; v < f->kk; v++) {
            const float *row = f->r + (size_t)i * (size_t)f->n;
            const double *z = f->z + (size_t)v * (size_t)f->n;
            double s = 0;
            for (int j = 0; j < f->n; j++) s += (double)fabsf(row[j]) * z[j];
            f->y[(size_t)v * (size_t)f->m + (size_t)i] = s;
        }
}

static void columns_task(void *arg, int task, int worker)
{
    (void)worker;
    struct factor *f = arg;
    const int from = task * TASK, end = from + TASK < f->n ? from + TASK : f->n;
    for (int v = 0; v < f->kk; v++) {
        double s[TASK] = {0};
        for (int i = 0; i < f->m; i++) {
            const float *row = f->r + (size_t)i * (size_t)f->n;
            const double y = f->y[(size_t)v * (size_t)f->m + (size_t)i];
            for (int j = from; j < end; j++) s[j - from] += (double)fabsf(row[j]) * y;
        }
        for (int j = from; j < end; j++) f->z[(size_t)v * (size_t)f->n + (size_t)j] = s[j - from];
    }
}

static double dot(const double *a, const double *b, int n)
{
    double s = 0;
    for (int i = 0; i < n; i++) s += a[i] * b[i];
    return s;
}

/* Gram-Schmidt, twice; lengths of the vectors as they were left by the first pass. */
static void orthonormal(double *a, int n, int k, double *length)
{
    for (int v = 0; v < k; v++) {
        double *x = a + (size_t)v * (size_t)n;
        for (int pass = 0; pass < 2; pass++) {
            for (int u = 0; u < v; u++) {
                const double *q = a + (size_t)u * (size_t)n, d = dot(q, x, n);
                for (int i = 0; i < n; i++) x[i] -= d * q[i];
            }
            const double len = sqrt(dot(x, x, n));
            if (!pass && length) length[v] = len;
            for (int i = 0; i < n; i++) x[i] = len > 1e-300 ? x[i] / len : 0;
        }
    }
}

/* Turns the vectors so that Z's are orthogonal: Jacobi on the Gram matrix of Z, Y along with it. */
static void diagonalise(struct factor *f)
{
    const int k = f->kk;
    double g[K_MAX][K_MAX];
    for (int a = 0; a < k; a++)
        for (int b = 0; b < k; b++)
            g[a][b] = dot(f->z + (size_t)a * (size_t)f->n, f->z + (size_t)b * (size_t)f->n, f->n);
    for (int sweep = 0; sweep < 40; sweep++)
        for (int a = 0; a < k; a++)
            for (int b = a + 1; b < k; b++) {
                if (fabs(g[a][b]) <= 1e-15 * sqrt(g[a][a] * g[b][b])) continue;
                const double t = (g[b][b] - g[a][a]) / (2 * g[a][b]);
                const double tan = (t < 0 ? -1 : 1) / (fabs(t) + sqrt(1 + t * t));
                const double c = 1 / sqrt(1 + tan * tan), s = tan * c;
                for (int i = 0; i < k; i++) {
                    const double x = g[a][i], y = g[b][i];
                    g[a][i] = c * x - s * y;
                    g[b][i] = s * x + c * y;
                }
                for (int i = 0; i < k; i++) {
                    const double x = g[i][a], y = g[i][b];
                    g[i][a] = c * x - s * y;
                    g[i][b] = s * x + c * y;
                }
                double *za = f->z + (size_t)a * (size_t)f->n, *zb = f->z + (size_t)b * (size_t)f->n;
                double *ya = f->y + (size_t)a * (size_t)f->m, *yb = f->y + (size_t)b * (size_t)f->m;
                for (int i = 0; i < f->n; i++) {
                    const double x = za[i], y = zb[i];
                    za[i] = c * x - s * y;
                    zb[i] = s * x + c * y;
                }
                for (int i = 0; i < f->m; i++) {
                    const double x = ya[i], y = yb[i];
                    ya[i] = c * x - s * y;
                    yb[i] = s * x + c * y;
                }
            }
    for (int a = 0; a < k; a++) f->value[a] = sqrt(g[a][a] > 0 ? g[a][a] : 0);
}

/* The k best vectors to the front, largest first. */
static void sort_vectors(struct factor *f)
{
    for (int a = 0; a < f->k; a++) {
        int best = a;
        for (int b = a + 1; b < f->kk; b++)
            if (f->value[b] > f->value[best]) best = b;
        const double v = f->value[a];
        f->value[a] = f->value[best];
        f->value[best] = v;
        for (int i = 0; i < f->n; i++) {
            double *x = f->z + (size_t)a * (size_t)f->n + i, *y = f->z + (size_t)best * (size_t)f->n + i;
            const double t = *x;
            *x = *y, *y = t;
        }
        for (int i = 0; i < f->m; i++) {
            double *x = f->y + (size_t)a * (size_t)f->m + i, *y = f->y + (size_t)best * (size_t)f->m + i;
            const double t = *x;
            *x = *y, *y = t;
        }
    }
}

/* y: left singular vectors; z: right ones times their value. */
static void singular(struct pool *pool, struct factor *f)
{
    struct rng r;
    double last[K_MAX] = {0}, now[K_MAX];
    const int turns = (long)f->m * f->n <= SMALL ? TURNS_SMALL : TURNS;
    rng_seed(&r, 1);
    for (size_t i = 0; i < (size_t)f->kk * (size_t)f->n; i++) f->z[i] = rng_f64(&r);
    for (int t = 0; t < turns; t++) {
        orthonormal(f->z, f->n, f->kk, now);
        double moved = 0;
        for (int v = 0; v < f->k; v++) moved += fabs(now[v] - last[v]) / (now[0] + 1e-300);
        memcpy(last, now, sizeof last);
        const bool still = t > 2 && moved < 1e-13;
        pool_run(pool, rows_task, f, (f->m + TASK - 1) / TASK);
        orthonormal(f->y, f->m, f->kk, NULL);
        pool_run(pool, columns_task, f, (f->n + TASK - 1) / TASK);
        if (still) break;
    }
    diagonalise(f);
    sort_vectors(f);
}

/* ---- planes --------------------------------------------------------------------------------- */

static uint16_t half_of(double v)
{
    return f16_from_f32((float)(v > 65504 ? 65504 : v < -65504 ? -65504 : v));
}

static void put_half(uint8_t *p, size_t i, uint16_t h) { memcpy(p + 2 * i, &h, 2); }

/* Writes factors and signs of one plane and takes them off the residual.  signs: of level 0 as rows of
 * the base, else as tiles. */
static void take_plane(struct factor *f, const float *scale, int level, uint8_t *unit, uint8_t *base)
{
    const size_t m = (size_t)f->m, n = (size_t)f->n, k = (size_t)f->k;
    uint8_t *u = unit + fact_at_u(f->k, f->n), *signs = unit + fact_at_signs(f->k, f->n, f->m);
    for (size_t r = 0; r < k; r++) {
        const double root = sqrt(f->value[r] > 0 ? f->value[r] : 0);
        for (size_t j = 0; j < n; j++) /* z holds value times vector */
            put_half(unit, r * n + j,
                     half_of(root > 0 ? f->z[r * n + j] / root / (double)scale[j] : 0));
        for (size_t i = 0; i < m; i++)
            put_half(u, (i / TILE_ROWS * k + r) * TILE_ROWS + i % TILE_ROWS,
                     half_of(f->y[r * m + i] * root));
    }
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            float mag = 0, *x = f->r + i * n + j;
            for (size_t r = 0; r < k; r++) {
                uint16_t a, b;
                memcpy(&a, u + 2 * ((i / TILE_ROWS * k + r) * TILE_ROWS + i % TILE_ROWS), 2);
                memcpy(&b, unit + 2 * (r * n + j), 2);
                mag = fmaf(f16_to_f32(a), f16_to_f32(b), mag);
            }
            const bool plus = *x >= 0;
            if (plus && !level) base[i * (n / 8) + j / 8] |= (uint8_t)(1u << j % 8);
            if (plus && level)
                signs[(i / TILE_ROWS * (n / 32) + j / 32) * 64 + 4 * (i % TILE_ROWS) + j % 4] |=
                    (uint8_t)(1u << j % 32 / 4);
            *x -= (plus ? mag : -mag) * scale[j];
        }
}

/* Squared activations of the columns to what they are scaled by; a thousandth of the mean at least. */
static void scales(const double *sum, int n, float *scale)
{
    double mean = 0;
    for (int j = 0; j < n; j++) mean += sqrt(sum[j]);
    mean /= n;
    for (int j = 0; j < n; j++)
        scale[j] = mean > 0 ? (float)(sqrt(sum[j]) / mean + 1e-3) : 1.0f;
}

static void note_error(const struct factor *f, const double *sum, const float *scale, double *error)
{
    *error = 0;
    for (int i = 0; i < f->m; i++)
        for (int j = 0; j < f->n; j++) {
            const double x = (double)f->r[(size_t)i * (size_t)f->n + (size_t)j] / (double)scale[j];
            *error += sum[j] * x * x;
        }
}

static enum status planes(struct stack_job *s, const struct stack_part *p, int mat, struct factor *f,
                          const float *scale, const double *sum, struct err *e)
{
    const struct stack_build *b = s->b;
    enum status st = OK;
    for (int l = 0; l <= b->o.n_levels && !st; l++) {
        const size_t n = stack_unit_bytes(b, p, l), base_n = stack_mat_bytes(b, p);
        uint8_t *unit = calloc(1, n), *base = calloc(1, base_n);
        if (!unit || !base) st = err_set(e, ERR_MEMORY, "no memory to decompose");
        if (!st) {
            singular(s->pool, f);
            take_plane(f, scale, l, unit, base);
            note_error(f, sum, scale, &p->mat[mat].error[l]);
            st = stack_work_put(b, unit, n, stack_unit_at(b, p, mat, l), e);
        }
        if (!st && !l) st = stack_work_put(b, base, base_n, stack_unit_at(b, p, mat, -1), e);
        free(unit);
        free(base);
    }
    return st;
}

enum status stack_factor(struct stack_job *s, const struct stack_part *p, int mat, const char *in,
                         const double *sum, struct err *e)
{
    const size_t m = (size_t)p->n_rows, n = (size_t)p->n_cols;
    const int k = s->b->o.rank, least = p->n_rows < p->n_cols ? p->n_rows : p->n_cols;
    const int kk = k + MORE < least ? k + MORE : least;
    struct factor f = {.m = p->n_rows, .n = p->n_cols, .k = k < kk ? k : kk, .kk = kk};
    if (k > least)
        return err_set(e, ERR_RANGE, "a rank of %d is more than a matrix of %d x %d has", k,
                       p->n_cols, p->n_rows);
    f.r = malloc(m * n * sizeof *f.r);
    f.y = malloc((size_t)kk * m * sizeof *f.y);
    f.z = malloc((size_t)kk * n * sizeof *f.z);
    float *scale = malloc(n * sizeof *scale);
    enum status st = OK;
    if (!f.r || !f.y || !f.z || !scale) {
        st = err_set(e, ERR_MEMORY, "no memory to decompose");
    } else {
        scales(sum, p->n_cols, scale);
        codec_decode((enum qtype)p->t->in->type, in, f.r, (int64_t)(m * n));
        for (size_t i = 0; i < m * n; i++) {
            p->mat[mat].energy += sum[i % n] * (double)f.r[i] * (double)f.r[i];
            f.r[i] *= scale[i % n];
        }
        st = planes(s, p, mat, &f, scale, sum, e);
    }
    free(f.r);
    free(f.y);
    free(f.z);
    free(scale);
    return st;
}
