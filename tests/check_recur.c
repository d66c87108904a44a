/* Compares every kernel of recurrent layers of every tier with the reference, bit by bit.
 *
 *     check_recur [--bench] [--filter TEXT] [--seed N] [--list]
 *
 * Sizes cross the vector borders; everything written lies between guards that start right behind
 * its last element.  Every call is also made a second time in pieces of rows and of columns, in
 * place, which must give the same bits: states are cut and chained at will. */
#include "tests/check.h"

#include "moe/compute/recur.h"

static const int sizes[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100, 128, 200};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

struct job {
    struct check_opts *o;
    const struct recur_kernels *ref, *k;
    const char *tier;
    struct rng rng;
};

static struct check_buf filled(struct job *j, enum check_regime g, size_t n)
{
    struct check_buf b = check_canary_alloc(n * sizeof(float));
    check_fill(g, b.data, n, &j->rng);
    return b;
}

static struct check_buf copy_of(const struct check_buf *a)
{
    struct check_buf b = check_canary_alloc(a->bytes);
    memcpy(b.data, a->data, a->bytes);
    return b;
}

static void compare(struct job *j, const char *name, const char *what, struct check_buf *want,
                    struct check_buf *got)
{
    check_same_f32(j->o, name, what, want->data, got->data, want->bytes / sizeof(float));
    check_same_canary(j->o, name, what, want);
    check_same_canary(j->o, name, what, got);
    check_canary_free(want);
    check_canary_free(got);
}

static void l2_norm_one(struct job *j, int n, enum check_regime g)
{
    char what[96];
    (void)snprintf(what, sizeof what, "%s n=%d %s", j->tier, n, check_regime_name(g));
    struct check_buf a = filled(j, g, (size_t)n), b = copy_of(&a);
    const float eps = rng_below(&j->rng, 2) ? 1e-6f : 0.5f;
    j->ref->l2_norm(n, eps, a.data);
    j->k->l2_norm(n, eps, b.data);
    compare(j, "l2_norm", what, &a, &b);
}

/* ---- convolution ---- */

static void conv_pieces(const struct recur_kernels *k, struct recur_conv c, struct rng *r)
{
    const float *from = c.from;
    const int n_rows = c.n_rows, n = c.n, cut = (int)rng_below(r, (uint32_t)n);
    for (int at = 0, rows; at < n_rows; at += rows, from = c.to) {
        rows = 1 + (int)rng_below(r, (uint32_t)(n_rows - at));
        struct recur_conv d = c;
        d.from = from;
        d.x += (size_t)at * c.stride;
        d.n_rows = rows;
        d.n = cut;
        if (cut) k->conv(&d);
        d.n = n - cut;
        d.w += (size_t)cut * (size_t)c.taps;
        d.from += cut;
        d.to += cut;
        d.x += cut;
        k->conv(&d);
    }
}

static void conv_one(struct job *j, int n, enum check_regime g)
{
    char what[96];
    struct rng *r = &j->rng;
    const int taps = 1 + (int)rng_below(r, RECUR_TAPS_MAX), n_rows = 1 + (int)rng_below(r, 9);
    const int gap = (int)rng_below(r, 3), silu = (int)rng_below(r, 2);
    const int pieces = (int)rng_below(r, 2);
    (void)snprintf(what, sizeof what, "%s n=%d taps=%d rows=%d silu=%d pieces=%d %s", j->tier, n,
                   taps, n_rows, silu, pieces, check_regime_name(g));
    const size_t stride = (size_t)(n + gap), window = (size_t)(taps - 1) * stride + 1;
    struct check_buf x0 = filled(j, g, (size_t)n_rows * stride), x1 = copy_of(&x0);
    struct check_buf w = filled(j, CHECK_UNIFORM, (size_t)n * (size_t)taps);
    struct check_buf from = filled(j, g, window), to0 = copy_of(&from), to1 = copy_of(&from);
    struct recur_conv c = {
        .n = n, .taps = taps, .silu = silu, .w = w.data, .from = from.data, .to = to0.data,
        .ld = stride, .x = x0.data, .stride = stride, .n_rows = n_rows,
    };
    j->ref->conv(&c);
    c.to = to1.data;
    c.x = x1.data;
    if (pieces) conv_pieces(j->k, c, r);
    else j->k->conv(&c);
    compare(j, "conv", what, &x0, &x1);
    compare(j, "conv", what, &to0, &to1);
    check_canary_free(&w);
    check_canary_free(&from);
}

/* ---- delta rule ---- */

static void delta_pieces(const struct recur_kernels *k, struct recur_delta d, struct rng *r)
{
    const float *from = d.from;
    const int n_rows = d.n_rows, n = d.n, cut = (int)rng_below(r, (uint32_t)n);
    for (int at = 0, rows; at < n_rows; at += rows, from = d.to) {
        const size_t a = (size_t)at;
        rows = 1 + (int)rng_below(r, (uint32_t)(n_rows - at));
        struct recur_delta e = d;
        e.from = from;
        e.n_rows = rows;
        e.q += a * d.stride;
        e.k += a * d.stride;
        e.v += a * d.stride;
        e.decay += a * d.stride_gate;
        e.beta += a * d.stride_gate;
        e.out += a * d.stride_out;
        e.n = cut;
        if (cut) k->delta(&e);
        e.n = n - cut;
        e.v += cut;
        e.out += cut;
        e.from += cut;
        e.to += cut;
        k->delta(&e);
    }
}

static void delta_one(struct job *j, int n, enum check_regime g)
{
    char what[96];
    struct rng *r = &j->rng;
    const int dk = sizes[rng_below(r, N_SIZES)], n_rows = 1 + (int)rng_below(r, 7);
    const int pieces = (int)rng_below(r, 2), in_place = (int)rng_below(r, 2);
    (void)snprintf(what, sizeof what, "%s dk=%d n=%d rows=%d pieces=%d in_place=%d %s", j->tier, dk,
                   n, n_rows, pieces, in_place, check_regime_name(g));
    const size_t stride = (size_t)(2 * dk + n) + rng_below(r, 3), out = (size_t)n + rng_below(r, 3);
    const size_t ld = (size_t)n + rng_below(r, 3), rows = (size_t)n_rows;
    struct check_buf x = filled(j, g, rows * stride), gates = filled(j, CHECK_UNIFORM, 2 * rows);
    struct check_buf s = filled(j, g, (size_t)dk * ld), s0 = copy_of(&s), s1 = copy_of(&s);
    struct check_buf o0 = filled(j, g, rows * out), o1 = copy_of(&o0);
    const float *v = x.data;
    struct recur_delta d = {
        .dk = dk, .n = n, .n_rows = n_rows, .q = v, .k = v + dk, .v = v + 2 * dk, .stride = stride,
        .decay = gates.data, .beta = (const float *)gates.data + 1, .stride_gate = 2,
        .out = o0.data, .stride_out = out, .from = s.data, .to = s0.data, .ld = ld, .scale = 0.125f,
    };
    j->ref->delta(&d);
    d.out = o1.data;
    d.to = s1.data;
    if (in_place) d.from = s1.data;
    if (pieces) delta_pieces(j->k, d, r);
    else j->k->delta(&d);
    compare(j, "delta", what, &o0, &o1);
    compare(j, "delta", what, &s0, &s1);
    check_canary_free(&x);
    check_canary_free(&gates);
    check_canary_free(&s);
}

static void check_tier(struct job *j)
{
    for (int i = 0; i < N_SIZES; i++)
        for (int g = 0; g < CHECK_REGIME_N; g++)
            for (int rep = 0; rep < 4; rep++) {
                if (check_wanted(j->o, "l2_norm")) l2_norm_one(j, sizes[i], (enum check_regime)g);
                if (check_wanted(j->o, "conv")) conv_one(j, sizes[i], (enum check_regime)g);
                if (check_wanted(j->o, "delta")) delta_one(j, sizes[i], (enum check_regime)g);
            }
}

/* ---- time ---- */

enum { DIM = 128, ROWS = 64, CHANNELS = 8192 };

struct timed {
    const struct recur_kernels *k;
    struct recur_conv conv;
    struct recur_delta delta;
};

static void call_conv(void *arg)
{
    const struct timed *t = arg;
    t->k->conv(&t->conv);
}

static void call_delta(void *arg)
{
    const struct timed *t = arg;
    t->k->delta(&t->delta);
}

/* One head of 128 x 128, a token at a time and 64 in a row; 8192 channels of a convolution. */
static void bench_tier(const struct recur_kernels *k, const char *tier)
{
    float *x = check_huge_alloc(sizeof(float) * ROWS * CHANNELS);
    float *s = check_huge_alloc(sizeof(float) * 2 * DIM * DIM), *out = s + DIM * DIM;
    for (int rows = 1; rows <= ROWS; rows *= ROWS) {
        struct timed t = {.k = k};
        t.delta = (struct recur_delta){
            .dk = DIM, .n = 64, .n_rows = rows, .q = x, .k = x + DIM, .v = x + 2 * DIM,
            .stride = 3 * DIM, .decay = x, .beta = x, .stride_gate = 1, .out = out,
            .stride_out = DIM, .from = s, .to = s, .ld = DIM, .scale = 1,
        };
        t.conv = (struct recur_conv){
            .n = CHANNELS, .taps = 4, .silu = true, .w = x, .from = x, .to = x, .ld = CHANNELS,
            .x = x, .stride = CHANNELS, .n_rows = rows,
        };
        const double a = check_bench(call_delta, &t, 0.2) / rows;
        const double b = check_bench(call_conv, &t, 0.2) / rows;
        printf("delta %-7s rows %2d  64 of 128 columns %9.0f ns/row %7.1f GFLOP/s\n", tier, rows, a,
               7.0 * DIM * 64 / a);
        printf("conv  %-7s rows %2d  %d channels   %9.0f ns/row %7.1f GB/s\n", tier, rows, CHANNELS,
               b, 8.0 * CHANNELS / b);
    }
}

int main(int argc, char **argv)
{
    struct check_opts o;
    if (!check_parse(&o, argc, argv)) return 2;
    for (int t = CPU_REF; t <= (int)cpu_tier_best(); t++) {
        const struct recur_kernels *k = recur_kernels((enum cpu_tier)t);
        if (t > CPU_REF && k == recur_kernels((enum cpu_tier)(t - 1))) continue; /* none of its own */
        if (o.bench) {
            bench_tier(k, cpu_tier_name((enum cpu_tier)t));
            continue;
        }
        struct job j = {.o = &o, .ref = recur_kernels(CPU_REF), .k = k,
                        .tier = cpu_tier_name((enum cpu_tier)t)};
        rng_seed(&j.rng, o.seed + (uint64_t)t);
        check_tier(&j);
        if (o.list) break;
    }
    return check_finish(&o);
}
