/* Checks the products of stacked matrices (quant/stack.h) of every tier against the reference, bit by
 * bit, on random planes, at every depth; and the reference against sums in double over the rows as
 * floats.  With --bench measures decoding from DRAM.
 *
 *     check_stack [--bench] [--filter TEXT] [--seed N]
 *
 * Exit code 1 when anything differs.  TESSERA_CPU limits the tiers. */
#include <math.h>
#include <pthread.h>
#include <time.h>

#include "moe/base/f16.h"
#include "quant/stack.h"
#include "tests/check.h"

enum { ROWS_MAX = 70 };

static void *need(size_t n)
{
    void *p = aligned_alloc(64, (n + 127) / 64 * 64);
    if (!p) exit(1);
    memset(p, 0, n);
    return p;
}

struct made {
    struct stacked w;
    void *owned[STACK_LEVELS + 2];
};

static void fill(void *p, size_t n, struct rng *r)
{
    for (size_t i = 0; i < n; i++) ((uint8_t *)p)[i] = (uint8_t)rng_below(r, 256);
}

/* Halves of moderate size. */
static void fill_halfs(void *p, size_t n, struct rng *r)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t h = (uint16_t)(0x2800 + rng_below(r, 0x1000) + (rng_below(r, 2) << 15));
        memcpy((uint8_t *)p + 2 * i, &h, 2);
    }
}

static struct made make(enum qtype type, int n_cols, int n_rows, int rank, int depth, struct rng *r)
{
    struct made m = {.w = {.type = type, .n_cols = n_cols, .n_rows = n_rows, .rank = rank,
                           .depth = depth}};
    const int tiles = (n_rows + 15) / 16;
    const size_t tile = tile_bytes(type, n_cols);
    uint8_t *base = m.owned[STACK_LEVELS + 1] = need(tile * (size_t)tiles);
    fill(base, tile * (size_t)tiles, r);
    for (size_t b = 0; type == QTYPE_NEST2 && b < tile * (size_t)tiles; b += 272)
        for (int i = 0; i < 16; i++) base[b + (size_t)i] = (uint8_t)(0x40 + rng_below(r, 0x40));
    m.w.base = base;
    for (int l = type == QTYPE_NEST2; l <= depth; l++) {
        const size_t n = stack_level_bytes(type, rank, n_cols, n_rows, l);
        m.owned[l] = need(n);
        fill(m.owned[l], n, r);
        if (type == QTYPE_SIGN1) fill_halfs(m.owned[l], fact_at_signs(rank, n_cols, n_rows) / 2, r);
        m.w.level[l] = m.owned[l];
    }
    return m;
}

static void done(struct made *m)
{
    for (int i = 0; i < STACK_LEVELS + 2; i++) free(m->owned[i]);
}

static int bad(const char *name, const struct made *m, int n, int row, int out, float a, float b)
{
    printf("%s: %d columns, %d rows, depth %d, %d activations: row %d output %d is %a, not %a\n",
           name, m->w.n_cols, m->w.n_rows, m->w.depth, n, row, out, (double)a, (double)b);
    return 1;
}

/* The reference against what the rows say, in double. */
static int check_rows(const struct made *m, int n, void **x, float **y)
{
    const bool bytes = m->w.type == QTYPE_NEST2;
    float *row = need(4 * (size_t)m->w.n_cols);
    int wrong = 0;
    for (int i = 0; i < m->w.n_rows && !wrong; i++) {
        stack_row_f32(&m->w, i, row);
        for (int r = 0; r < n && !wrong; r++) {
            double sum = 0, size = 0;
            for (int c = 0; c < m->w.n_cols; c++) {
                const float *d = (const float *)(const void *)((char *)x[r] + m->w.n_cols);
                double a = bytes ? (double)((int8_t *)x[r])[c] * (double)d[c / 64]
                                 : (double)((float *)x[r])[c];
                sum += a * (double)row[c];
                size += fabs(a * (double)row[c]);
            }
            if (fabs(sum - (double)y[r][i]) > 1e-5 * size + 1e-30)
                wrong = bad("reference", m, n, r, i, y[r][i], (float)sum);
        }
    }
    free(row);
    return wrong;
}

static int check_one(const struct check_opts *o, enum qtype type, int n_cols, int n_rows, int rank,
                     int depth, int n, struct rng *r)
{
    const enum act_kind act = type == QTYPE_NEST2 ? ACT_Q8_64 : ACT_F32;
    struct made m = make(type, n_cols, n_rows, rank, depth, r);
    const int tiles = (n_rows + 15) / 16, t0 = (int)rng_below(r, (uint32_t)tiles);
    void *x[ROWS_MAX];
    float *ref[ROWS_MAX], *got[ROWS_MAX], *in = need(4 * (size_t)n_cols);
    int wrong = 0;
    for (int i = 0; i < n; i++) {
        check_fill(CHECK_UNIFORM, in, (size_t)n_cols, r);
        x[i] = need(act_bytes(act, n_cols));
        mm_kernels(CPU_REF)->act[act](n_cols, in, x[i]);
        ref[i] = need(4 * 16 * (size_t)tiles);
        got[i] = need(4 * 16 * (size_t)tiles);
    }
    stack_mm(mm_kernels(CPU_REF), &m.w, 0, tiles, n, (const void *const *)x, ref);
    if (n <= 3) wrong += check_rows(&m, n, x, ref);
    for (int tier = CPU_AVX2; tier <= (int)cpu_tier_best() && !wrong; tier++) {
        char name[64];
        snprintf(name, sizeof name, "stack.%s.%s", type == QTYPE_NEST2 ? "nested" : "factored",
                 cpu_tier_name((enum cpu_tier)tier));
        if (!check_wanted(o, name)) continue;
        stack_mm(mm_kernels((enum cpu_tier)tier), &m.w, t0, tiles - t0, n, (const void *const *)x,
                 got);
        for (int i = 0; i < n && !wrong; i++)
            for (int k = 0; k < 16 * (tiles - t0) && !wrong; k++)
                if (f32_bits(got[i][k]) != f32_bits(ref[i][16 * t0 + k]))
                    wrong = bad(name, &m, n, i, 16 * t0 + k, got[i][k], ref[i][16 * t0 + k]);
    }
    for (int i = 0; i < n; i++) free(x[i]), free(ref[i]), free(got[i]);
    free(in);
    done(&m);
    return wrong;
}

/* ---- the encoder's bits come back ---- */

static int check_encode(struct rng *r)
{
    enum { N = 4096 };
    static const double most[5] = {.125, .034, .0083, .0022, .0006}; /* of a Gaussian's energy */
    float x[N], w[N];
    uint8_t scale[N / 64], code[N];
    int wrong = 0;
    for (int i = 0; i < N; i++) { /* about Gaussian */
        x[i] = -6 * 0x1p24f;
        for (int k = 0; k < 12; k++) x[i] += (float)rng_below(r, 1 << 24);
        x[i] *= 0x1p-30f;
        w[i] = 1;
    }
    nest_encode(x, w, N, scale, code);
    for (int d = 0; d <= STACK_NESTED; d++) {
        double err = 0, all = 0;
        for (int i = 0; i < N; i++) {
            const double e = (double)x[i] - (double)nest_value(scale[i / 64], code[i], d);
            err += e * e;
            all += (double)x[i] * (double)x[i];
        }
        printf("nested depth %d: %.5f of the energy is error\n", d, err / all);
        if (err > most[d] * all) wrong = 1;
    }
    /* One row put in its places and read back at every depth. */
    uint8_t block[17 * N / 64], *tile = need(N / 64 * 272), *level[5];
    for (int b = 0; b < N / 64; b++) nest_put_base(scale[b], code + 64 * b, block + 17 * b);
    tile_pack(mm_kernels(CPU_REF), QTYPE_NEST2, N, 1, block, sizeof block, tile);
    struct stacked m = {.type = QTYPE_NEST2, .n_cols = N, .n_rows = 1, .base = tile};
    for (int l = 1; l <= STACK_NESTED; l++) {
        m.level[l] = level[l] = need(N / 64 * 128);
        for (int b = 0; b < N / 64; b++) nest_put_level(code + 64 * b, l, 0, level[l] + 128 * b);
    }
    for (int d = 0; d <= STACK_NESTED; d++) {
        float y[N];
        m.depth = d;
        stack_row_f32(&m, 0, y);
        for (int i = 0; i < N; i++) wrong |= y[i] != nest_value(scale[i / 64], code[i], d);
    }
    for (int l = 1; l <= STACK_NESTED; l++) free(level[l]);
    free(tile);
    if (wrong) printf("nested: the encoder is wrong\n");
    return wrong;
}

/* ---- bench ---- */

struct stream {
    struct made m;
    enum cpu_tier tier;
    double seconds;
    int passes, rows;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *run_stream(void *arg)
{
    struct stream *s = arg;
    const struct stacked *w = &s->m.w;
    const enum act_kind act = w->type == QTYPE_NEST2 ? ACT_Q8_64 : ACT_F32;
    const int tiles = w->n_rows / 16;
    float *in = need(4 * (size_t)w->n_cols), *y[ROWS_MAX];
    void *x[ROWS_MAX];
    for (int i = 0; i < w->n_cols; i++) in[i] = (float)(i % 13) - 6;
    for (int r = 0; r < s->rows; r++) {
        x[r] = need(act_bytes(act, w->n_cols));
        mm_kernels(s->tier)->act[act](w->n_cols, in, x[r]);
        y[r] = need(4 * (size_t)w->n_rows);
    }
    const double t = now();
    for (int p = 0; p < s->passes; p++)
        for (int at = 0; at < tiles; at += 32)
            stack_mm(mm_kernels(s->tier), w, at, tiles - at < 32 ? tiles - at : 32, s->rows,
                     (const void *const *)x, y);
    s->seconds = now() - t;
    for (int r = 0; r < s->rows; r++) free(x[r]), free(y[r]);
    free(in);
    return NULL;
}

static void bench_one(const struct check_opts *o, enum qtype type, int rank, int depth, int rows,
                      enum cpu_tier tier)
{
    enum { COLS = 2048, THREADS = 2 };
    char name[64];
    snprintf(name, sizeof name, "stack.%s.%s", type == QTYPE_NEST2 ? "nested" : "factored",
             cpu_tier_name(tier));
    if (!check_wanted(o, name)) return;
    struct rng r;
    struct stream s[THREADS];
    pthread_t th[THREADS];
    const int n_rows = rows > 8 || rank ? 4096 : 65536, passes = rows > 8 || rank ? 4 : 6;
    double most = 0, bytes = 0, gw = 0;
    rng_seed(&r, 3);
    for (int i = 0; i < THREADS; i++) {
        s[i] = (struct stream){make(type, COLS, n_rows, rank, depth, &r), tier, 0, passes, rows};
        pthread_create(&th[i], NULL, run_stream, &s[i]);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(th[i], NULL);
        if (s[i].seconds > most) most = s[i].seconds;
        size_t n = tile_bytes(type, COLS) * (size_t)n_rows / 16;
        for (int l = 0; l <= depth; l++) n += stack_level_bytes(type, rank, COLS, n_rows, l);
        bytes += (double)n * passes;
        gw += 1e-9 * COLS * (double)n_rows * passes;
        done(&s[i].m);
    }
    printf("%s %s depth %d, %d rows: %.1f GB/s, %.1f Gweights/s, %.1f GMAC/s\n",
           type == QTYPE_NEST2 ? "nested" : "factored", cpu_tier_name(tier), depth, rows,
           bytes / most * 1e-9, gw / most, gw * rows / most);
}

int main(int argc, char **argv)
{
    struct check_opts o;
    if (!check_parse(&o, argc, argv)) return 2;
    struct rng r;
    int wrong = 0;
    rng_seed(&r, o.seed);
    if (o.bench) {
        for (int tier = CPU_AVX2; tier <= (int)cpu_tier_best(); tier++)
            for (int d = 0; d <= STACK_NESTED; d++)
                for (int rows = 1; rows <= 64; rows *= 8)
                    bench_one(&o, QTYPE_NEST2, 0, d, rows, (enum cpu_tier)tier);
        for (int d = 1; d <= 3; d += 2) bench_one(&o, QTYPE_SIGN1, 16, d, 1, cpu_tier_best());
        return 0;
    }
    static const int rows[] = {1, 2, 3, 5, 8, 9, 33, 70};
    for (int i = 0; i < 160 && !wrong; i++) {
        const bool nested = i % 4 != 3;
        const int unit = nested ? 64 : 32, n_cols = unit * (1 + (int)rng_below(&r, 5));
        const int depth = (int)rng_below(&r, nested ? 5 : 4), n_rows = 1 + (int)rng_below(&r, 70);
        const int rank = nested ? 0 : 1 + (int)rng_below(&r, 16);
        wrong += check_one(&o, nested ? QTYPE_NEST2 : QTYPE_SIGN1, n_cols, n_rows, rank, depth,
                           rows[rng_below(&r, 8)], &r);
    }
    wrong += check_encode(&r);
    if (!wrong) printf("stacked products: every tier agrees\n");
    return wrong != 0;
}
