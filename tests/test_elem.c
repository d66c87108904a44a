/* elem.h against the formulas in double precision, with bounds; every tier of this machine.  That
 * the tiers agree bit for bit is check_elem's business; here is what the results mean, what NaN and
 * infinity do, and that a row of attention does not see its neighbours.  Deterministic. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "moe/base/f16.h"
#include "moe/base/rng.h"
#include "moe/compute/elem.h"

static struct rng rng;

#define EACH_TIER(k)                                                                       \
    for (int tier_ = 0; tier_ <= (int)cpu_tier_best(); tier_++)                            \
        for (const struct elem_kernels *k = elem_kernels((enum cpu_tier)tier_); k; k = NULL)

static void fill(float *x, size_t n, float lo, float hi)
{
    for (size_t i = 0; i < n; i++) x[i] = rng_range(&rng, lo, hi);
}

/* |got - want| <= bound, with the place when not. */
static void near_to(double got, double want, double bound, const char *what, size_t i)
{
    if (fabs(got - want) <= bound) return;
    print_error("%s[%zu]: %.9g, want %.9g, off by %.3g > %.3g\n", what, i, got, want,
                fabs(got - want), bound);
    fail();
}

/* ---- exp -------------------------------------------------------------------------------- */

static void exp_ulp(void **state)
{
    (void)state;
    enum { N = 4096 };
    static float x[N], y[N];
    EACH_TIER(k) {
        for (int round = 0; round < 64; round++) {
            const float span = round % 4 == 0 ? 1.0f : round % 4 == 1 ? 20.0f : 87.3f;
            fill(x, N, -span, round % 4 == 3 ? 88.7f : span);
            k->exp(N, x, y);
            for (int i = 0; i < N; i++) {
                const double want = exp((double)x[i]);
                const double ulp = ldexp(1.0, ilogb(want) - 23);
                const double off = fabs((double)y[i] - want) / ulp;
                if (!(off <= 1.1)) fail_msg("exp(%a): off by %.3f ulp", (double)x[i], off);
            }
        }
    }
}

static void exp_edges(void **state)
{
    (void)state;
    const float hi = 0x1.62e42ep+6f, lo = -0x1.5d589ep+6f;
    const float x[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, hi, nextafterf(hi, 100.0f), lo,
                       nextafterf(lo, -100.0f), -1e30f, 1e30f, -104.0f, 0x1p-149f, -3e38f, 3e38f};
    float y[sizeof x / sizeof *x];
    EACH_TIER(k) {
        k->exp(sizeof x / sizeof *x, x, y);
        assert_true(y[0] == 1.0f && y[1] == 1.0f && y[12] == 1.0f);
        assert_true(y[2] == INFINITY && y[6] == INFINITY && y[10] == INFINITY && y[14] == INFINITY);
        /* Zero, and never -0. */
        assert_int_equal(f32_bits(y[3]) | f32_bits(y[8]) | f32_bits(y[9]), 0);
        assert_int_equal(f32_bits(y[11]) | f32_bits(y[13]), 0);
        assert_true(y[4] != y[4]);
        assert_true(isfinite(y[5]) && y[5] > 3.4e38f);
        assert_true(y[7] >= 0x1p-126f && y[7] < 0x1.01p-126f); /* the last one is still normal */
    }
}

/* ---- rows ------------------------------------------------------------------------------- */

static const int sizes[] = {1, 3, 15, 16, 17, 100, 128, 2048, 4099};
enum { N_SIZES = sizeof sizes / sizeof *sizes, N_MAX = 4099 };
static float xs[N_MAX], ws[N_MAX], us[N_MAX], ys[N_MAX];

static void rms_norm_formula(void **state)
{
    (void)state;
    EACH_TIER(k) {
        for (int s = 0; s < N_SIZES; s++) {
            const int n = sizes[s];
            fill(xs, (size_t)n, -3.0f, 5.0f);
            fill(ws, (size_t)n, 0.5f, 1.5f);
            double sum = 0;
            for (int i = 0; i < n; i++) sum += (double)xs[i] * (double)xs[i];
            const double r = 1.0 / sqrt(sum / n + (double)1e-6f);
            k->rms_norm(n, xs, ws, 1e-6f, ys);
            for (int i = 0; i < n; i++) {
                const double want = (double)xs[i] * r * (double)ws[i];
                near_to((double)ys[i], want, 2e-6 * fabs(want) + 1e-30, "rms_norm", (size_t)i);
            }
            k->rms_norm(n, xs, NULL, 1e-6f, xs);
            for (int i = 0; i < n; i++)
                near_to((double)xs[i] * (double)ws[i], (double)ys[i], 1e-6, "ones", (size_t)i);
        }
    }
}

static void softmax_formula(void **state)
{
    (void)state;
    EACH_TIER(k) {
        for (int s = 0; s < N_SIZES; s++) {
            const int n = sizes[s];
            fill(xs, (size_t)n, -30.0f, 10.0f);
            double max = -INFINITY, sum = 0, got = 0;
            for (int i = 0; i < n; i++) max = fmax(max, (double)xs[i]);
            for (int i = 0; i < n; i++) sum += exp((double)xs[i] - max);
            memcpy(ys, xs, sizeof(float) * (size_t)n);
            k->softmax(n, ys);
            for (int i = 0; i < n; i++) {
                const double want = exp((double)xs[i] - max) / sum;
                near_to((double)ys[i], want, 5e-6 * want, "softmax", (size_t)i);
                got += (double)ys[i];
            }
            near_to(got, 1.0, 1e-5, "softmax sum", 0);
        }
        /* -inf gets weight zero; a NaN spoils the row. */
        float x[20];
        fill(x, 20, -1.0f, 1.0f);
        x[3] = x[19] = -INFINITY;
        k->softmax(20, x);
        assert_int_equal(f32_bits(x[3]) | f32_bits(x[19]), 0);
        assert_true(x[0] > 0);
        x[7] = NAN;
        k->softmax(20, x);
        for (int i = 0; i < 20; i++) assert_true(x[i] != x[i]);
    }
}

static void swiglu_formula(void **state)
{
    (void)state;
    EACH_TIER(k) {
        for (int s = 0; s < N_SIZES; s++) {
            const int n = sizes[s];
            fill(xs, (size_t)n, -20.0f, 20.0f);
            fill(us, (size_t)n, -2.0f, 2.0f);
            k->swiglu(n, xs, us, ys);
            for (int i = 0; i < n; i++) {
                const double g = (double)xs[i], want = g / (1 + exp(-g)) * (double)us[i];
                near_to((double)ys[i], want, 6e-7 * fabs(want) + 1e-30, "swiglu", (size_t)i);
            }
        }
        const float g[4] = {-1000.0f, 1000.0f, 0.0f, -88.0f}, u[4] = {1, 1, 1, 1};
        k->swiglu(4, g, u, ys);
        assert_true(ys[0] == 0.0f && ys[1] == 1000.0f && ys[2] == 0.0f && fabsf(ys[3]) < 1e-35f);
    }
}

static void combine_and_add(void **state)
{
    (void)state;
    static float x[6][N_MAX];
    const float *p[6];
    float w[6];
    EACH_TIER(k) {
        for (int s = 0; s < N_SIZES; s++) {
            const int n = sizes[s];
            fill(w, 6, 0.0f, 1.0f);
            for (int j = 0; j < 6; j++) {
                fill(x[j], (size_t)n, -4.0f, 4.0f);
                p[j] = x[j];
            }
            k->combine(n, 6, w, p, ys);
            for (int i = 0; i < n; i++) {
                double want = 0;
                for (int j = 0; j < 6; j++) want += (double)w[j] * (double)x[j][i];
                near_to((double)ys[i], want, 2e-6 * 4 * 6, "combine", (size_t)i);
            }
            memcpy(us, ys, sizeof(float) * (size_t)n);
            k->add(n, x[0], ys);
            for (int i = 0; i < n; i++) assert_true(ys[i] == us[i] + x[0][i]);
            k->combine(n, 0, w, p, ys);
            for (int i = 0; i < n; i++) assert_int_equal(f32_bits(ys[i]), 0);
        }
    }
}

static void rope_formula(void **state)
{
    (void)state;
    static const int rots[] = {2, 6, 16, 20, 64, 96, 128};
    float x[128], y[128], cs[128];
    EACH_TIER(k) {
        for (size_t s = 0; s < sizeof rots / sizeof *rots; s++) {
            const int n = rots[s], h = n / 2;
            for (int i = 0; i < h; i++) {
                const double a = 37.0 * pow(10000.0, -2.0 * i / n);
                cs[i] = (float)cos(a);
                cs[h + i] = (float)sin(a);
            }
            fill(x, 128, -2.0f, 2.0f);
            for (int neox = 0; neox < 2; neox++) {
                memcpy(y, x, sizeof x);
                (neox ? k->rope_neox : k->rope_norm)(n, cs, y);
                for (int i = 0; i < h; i++) {
                    const int ia = neox ? i : 2 * i, ib = neox ? h + i : 2 * i + 1;
                    const double a = (double)x[ia], b = (double)x[ib];
                    const double c = (double)cs[i], sn = (double)cs[h + i];
                    near_to((double)y[ia], a * c - b * sn, 1e-6, "rope a", (size_t)i);
                    near_to((double)y[ib], b * c + a * sn, 1e-6, "rope b", (size_t)i);
                }
                assert_memory_equal(x + n, y + n, sizeof(float) * (size_t)(128 - n));
            }
        }
    }
}

/* ---- KV --------------------------------------------------------------------------------- */

/* What a page holds, as kv_put is specified: element d of position p. */
static double stored(enum kv_type type, int dk, int dv, const char *page, int is_v, int p, int d)
{
    const int n = is_v ? dv : dk;
    const size_t k_bytes = attn_head_bytes(type, dk, 0);
    const char *base = page + (is_v ? k_bytes : 0);
    const size_t at = is_v ? (size_t)(p * dv + d) : (size_t)(d * KV_PAGE + p);
    uint16_t h;
    if (type == KV_F16) {
        memcpy(&h, base + 2 * at, 2);
        return (double)f16_to_f32(h);
    }
    const int blocks = n / 32;
    memcpy(&h, base + 2 * (is_v ? p * blocks + d / 32 : d / 32 * KV_PAGE + p), 2);
    return (double)f16_to_f32(h) * (double)*(const int8_t *)(base + blocks * KV_PAGE * 2 + at);
}

static void kv_put_values(void **state)
{
    (void)state;
    enum { DK = 96, DV = 64 };
    float k_in[DK], v_in[DV];
    EACH_TIER(k) {
        for (int type = 0; type < 2; type++) {
            char *page = aligned_alloc(64, attn_head_bytes((enum kv_type)type, DK, DV));
            assert_non_null(page);
            for (int pos = 0; pos < KV_PAGE; pos += 21) {
                fill(k_in, DK, -3.0f, 3.0f);
                fill(v_in, DV, -30.0f, 30.0f);
                memset(v_in + 32, 0, 32 * sizeof *v_in); /* a block of zeros */
                k->kv_put[type](DK, DV, k_in, v_in, page, pos);
                /* f16: 2^-11 relative; q8_0: half a step of amax / 127, plus the scale's. */
                for (int d = 0; d < DK; d++)
                    near_to(stored((enum kv_type)type, DK, DV, page, 0, pos, d), (double)k_in[d],
                            type ? 3.0 / 127 * 0.5 + 0.0015 : 0.0015, "k", (size_t)d);
                for (int d = 0; d < DV; d++)
                    near_to(stored((enum kv_type)type, DK, DV, page, 1, pos, d), (double)v_in[d],
                            type ? 30.0 / 127 * 0.5 + 0.015 : 0.015, "v", (size_t)d);
            }
            free(page);
        }
    }
}

/* A block that Q8_0 cannot hold stays visibly broken; one too small to hold is zero. */
static void kv_put_q8_edges(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY, 1e9f, 3e38f};
    float in[32];
    _Alignas(64) char page[64 * (64 + 4)];
    EACH_TIER(k) {
        for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
            fill(in, 32, -1.0f, 1.0f);
            in[5] = bad[i];
            k->kv_put[KV_Q8_0](32, 32, in, in, page, 7);
            for (int d = 0; d < 32; d++) {
                const double v = stored(KV_Q8_0, 32, 32, page, 0, 7, d);
                assert_true(v != v);
            }
        }
        for (int d = 0; d < 32; d++) in[d] = d & 1 ? 1e-30f : -1e-41f;
        k->kv_put[KV_Q8_0](32, 32, in, in, page, 7);
        for (int d = 0; d < 32; d++) assert_true(stored(KV_Q8_0, 32, 32, page, 1, 7, d) == 0);
        for (int d = 0; d < 32; d++) in[d] = d ? 0.5f : -1.0f;
        k->kv_put[KV_Q8_0](32, 32, in, in, page, 7);
        near_to(stored(KV_Q8_0, 32, 32, page, 0, 7, 0), -1.0, 0.0005, "amax", 0);
        near_to(stored(KV_Q8_0, 32, 32, page, 0, 7, 9), 64.0 / 127, 0.0005, "63.5 to even", 9);
    }
}

/* ---- attention -------------------------------------------------------------------------- */

enum { PAGES = 4, POS = PAGES * KV_PAGE, D_MAX = 128, Q_MAX = 9 };

struct cache {
    enum kv_type type;
    int dk, dv;
    size_t stride;
    char *kv; /* [PAGES] heads, the bytes between them poisoned */
};

/* A cache of n positions; everything else is 0xff: NaN halves. */
static struct cache cache_make(enum kv_type type, int dk, int dv, int n)
{
    struct cache c = {type, dk, dv, attn_head_bytes(type, dk, dv) + 64, NULL};
    c.kv = aligned_alloc(64, c.stride * PAGES);
    assert_non_null(c.kv);
    memset(c.kv, 0xff, c.stride * PAGES);
    float k[D_MAX], v[D_MAX];
    for (int p = 0; p < n; p++) {
        fill(k, (size_t)dk, -1.0f, 1.0f);
        fill(v, (size_t)dv, -1.0f, 1.0f);
        elem_kernels(CPU_REF)->kv_put[type](dk, dv, k, v, c.kv + c.stride * (size_t)(p / KV_PAGE),
                                            p % KV_PAGE);
    }
    return c;
}

static void naive(const struct cache *c, const float *q, double scale, int first, int last,
                  double *out)
{
    static double w[POS];
    double max = -INFINITY, sum = 0;
    for (int p = first; p <= last; p++) {
        const char *page = c->kv + c->stride * (size_t)(p / KV_PAGE);
        double s = 0;
        for (int d = 0; d < c->dk; d++)
            s += (double)q[d] * stored(c->type, c->dk, c->dv, page, 0, p % KV_PAGE, d);
        w[p] = s * scale;
        max = fmax(max, w[p]);
    }
    for (int p = first; p <= last; p++) sum += w[p] = exp(w[p] - max);
    for (int d = 0; d < c->dv; d++) out[d] = 0;
    for (int p = first; p <= last; p++) {
        const char *page = c->kv + c->stride * (size_t)(p / KV_PAGE);
        for (int d = 0; d < c->dv; d++)
            out[d] += w[p] / sum * stored(c->type, c->dk, c->dv, page, 1, p % KV_PAGE, d);
    }
}

static void attn_against_softmax(void **state)
{
    (void)state;
    static const int shapes[][2] = {{32, 32}, {64, 64}, {96, 128}, {128, 64}};
    /* first, last: page borders, windows that begin inside and at a border, single positions. */
    static const int spans[][2] = {{0, 0},    {0, 62},   {0, 63},    {0, 64},    {0, 65},
                                   {0, 126},  {0, 127},  {0, 128},   {0, 129},   {0, 200},
                                   {1, 64},   {63, 64},  {64, 64},   {63, 63},   {64, 127},
                                   {64, 128}, {65, 190}, {100, 101}, {127, 128}, {128, 200}};
    const float scale = 0.5f;
    float q[2 * D_MAX], out[2 * D_MAX];
    double want[D_MAX];
    for (int i = 0; i < 8; i++) {
        const enum kv_type type = i & 1 ? KV_Q8_0 : KV_F16;
        const int dk = shapes[i / 2][0], dv = shapes[i / 2][1];
        const struct cache c = cache_make(type, dk, dv, 201);
        for (size_t s = 0; s < sizeof spans / sizeof *spans; s++) {
            fill(q, 2 * (size_t)dk, -1.0f, 1.0f);
            const struct attn_row row = {q, out, c.kv, c.stride, spans[s][0], spans[s][1]};
            EACH_TIER(k) {
                k->attn[type](dk, dv, 2, scale, 1, &row);
                for (int h = 0; h < 2; h++) {
                    naive(&c, q + h * dk, (double)scale, row.first, row.last, want);
                    for (int d = 0; d < dv; d++)
                        near_to((double)out[h * dv + d], want[d], 3e-6, "attn", (size_t)d);
                }
            }
        }
        free(c.kv);
    }
}

/* Rows of many lengths, windows and caches in one call: each must be bit-equal to itself alone. */
/* Latent heads: V read from K gives the bits of V stored beside K. */
static void attn_latent_is_attn(void **state)
{
    (void)state;
    enum { DK = 96, DV = 64, N_Q = 20, N = 150 };
    float x[DK], q[N_Q * DK], want[N_Q * DV], got[N_Q * DV];
    for (int type = 0; type < 2; type++) {
        const struct cache both = {(enum kv_type)type, DK, DV,
                                   attn_head_bytes((enum kv_type)type, DK, DV),
                                   aligned_alloc(64, PAGES * attn_head_bytes(type, DK, DV))};
        const struct cache one = {(enum kv_type)type, DK, 0,
                                  attn_head_bytes((enum kv_type)type, DK, 0),
                                  aligned_alloc(64, PAGES * attn_head_bytes(type, DK, 0))};
        memset(both.kv, 0xff, PAGES * both.stride);
        memset(one.kv, 0xff, PAGES * one.stride);
        const struct elem_kernels *ref = elem_kernels(CPU_REF);
        for (int p = 0; p < N; p++) {
            const size_t page = (size_t)(p / KV_PAGE);
            fill(x, DK, -1.0f, 1.0f);
            ref->kv_put[type](DK, DV, x, x, both.kv + both.stride * page, p % KV_PAGE);
            ref->kv_put[type](DK, 0, x, NULL, one.kv + one.stride * page, p % KV_PAGE);
        }
        fill(q, N_Q * DK, -1.0f, 1.0f);
        for (int n_q = 1; n_q <= N_Q; n_q += n_q < 9 ? 1 : 11) {
            const struct attn_row a = {q, want, both.kv, both.stride, 3, N - 1, NULL};
            const struct attn_row b = {q, got, one.kv, one.stride, 3, N - 1, NULL};
            EACH_TIER(k) {
                k->attn[type](DK, DV, n_q, 0.3f, 1, &a);
                k->attn_latent[type](DK, DV, n_q, 0.3f, 1, &b);
                assert_memory_equal(got, want, sizeof(float) * (size_t)(n_q * DV));
            }
        }
        free(both.kv);
        free(one.kv);
    }
}

static void attn_rows_are_alone(void **state)
{
    (void)state;
    enum { ROWS = 37, DK = 64, DV = 64 };
    float *q = malloc(sizeof *q * ROWS * Q_MAX * DK);
    float *out = malloc(sizeof *out * ROWS * Q_MAX * DV);
    float one[Q_MAX * DV];
    struct attn_row rows[ROWS];
    assert_true(q && out);
    for (int type = 0; type < 2; type++) {
        const struct cache c[2] = {cache_make((enum kv_type)type, DK, DV, POS - 5),
                                   cache_make((enum kv_type)type, DK, DV, POS - 5)};
        for (int mix = 0; mix < 6; mix++) {
            const int n_q = mix < 3 ? 1 + 3 * mix : Q_MAX - 2 * (mix - 3);
            fill(q, ROWS * Q_MAX * DK, -1.0f, 1.0f);
            for (int i = 0; i < ROWS; i++) {
                const int last = mix % 2 ? POS - 6 - ROWS + i : (int)rng_below(&rng, POS - 5);
                const int first = mix % 3 ? (int)rng_below(&rng, (uint32_t)last + 1) : 0;
                const struct cache *s = &c[mix % 3 == 2 && rng_below(&rng, 4) == 0];
                rows[i] = (struct attn_row){q + i * n_q * DK, out + i * n_q * DV, s->kv, s->stride,
                                            first, last};
            }
            EACH_TIER(k) {
                k->attn[type](DK, DV, n_q, 0.2f, ROWS, rows);
                for (int i = 0; i < ROWS; i++) {
                    struct attn_row row = rows[i];
                    row.out = one;
                    k->attn[type](DK, DV, n_q, 0.2f, 1, &row);
                    assert_memory_equal(one, rows[i].out, sizeof(float) * (size_t)(n_q * DV));
                    /* And one head alone is the same as among its sisters. */
                    row.q += (n_q - 1) * DK;
                    k->attn[type](DK, DV, 1, 0.2f, 1, &row);
                    assert_memory_equal(one, rows[i].out + (n_q - 1) * DV, sizeof(float) * DV);
                }
            }
        }
        free(c[0].kv);
        free(c[1].kv);
    }
    free(q);
    free(out);
}

/* A NaN query spoils its own row only; a NaN value only the rows that see it. */
static void attn_nan(void **state)
{
    (void)state;
    enum { D = 32, ROWS = 8, BAD = 70 };
    float q[ROWS * D], out[ROWS * D], nan[D];
    for (int d = 0; d < D; d++) nan[d] = NAN;
    for (int type = 0; type < 2; type++) {
        struct cache c = cache_make((enum kv_type)type, D, D, 100);
        fill(q, ROWS * D, -1.0f, 1.0f);
        struct attn_row rows[ROWS];
        for (int i = 0; i < ROWS; i++)
            rows[i] = (struct attn_row){q + i * D, out + i * D, c.kv, c.stride, 0, BAD - 4 + i};
        elem_kernels(CPU_REF)->kv_put[type](D, D, q, nan, c.kv + c.stride, BAD - KV_PAGE);
        q[2 * D + 5] = NAN;
        EACH_TIER(k) {
            k->attn[type](D, D, 1, 1.0f, ROWS, rows);
            for (int i = 0; i < ROWS; i++)
                for (int d = 0; d < D; d++)
                    assert_int_equal(out[i * D + d] != out[i * D + d], i == 2 || i >= 4);
        }
        free(c.kv);
    }
}

int main(void)
{
    rng_seed(&rng, 20240607);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exp_ulp),          cmocka_unit_test(exp_edges),
        cmocka_unit_test(rms_norm_formula), cmocka_unit_test(softmax_formula),
        cmocka_unit_test(swiglu_formula),   cmocka_unit_test(combine_and_add),
        cmocka_unit_test(rope_formula),     cmocka_unit_test(kv_put_values),
        cmocka_unit_test(kv_put_q8_edges),  cmocka_unit_test(attn_against_softmax),
        cmocka_unit_test(attn_latent_is_attn), cmocka_unit_test(attn_rows_are_alone),
        cmocka_unit_test(attn_nan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
