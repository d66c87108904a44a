/* The sampler against a straightforward one in doubles: the candidates that are left, their
 * probabilities, and the frequency of what is drawn (chi-square, fixed seeds); then ties, the
 * repetition penalty, damaged logits, extreme settings, and seeds. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "moe/run/sampler.h"

enum { N = 200 };

static struct sampler sampler_of(struct tessera_sampling set, int n)
{
    struct sampler s;
    assert_int_equal(sampler_open(&s, &set, n, NULL), OK);
    return s;
}

static const struct tessera_sampling plain = {1.0f, 0, 1.0f, 0.0f, 1.0f, 64, 0};

/* About normal, times spread. */
static void random_logits(struct rng *r, float *x, int n, float spread)
{
    for (int i = 0; i < n; i++) {
        float sum = 0;
        for (int k = 0; k < 4; k++) sum += rng_range(r, -1, 1);
        x[i] = spread * sum;
    }
}

/* ---- the plain sampler ---- */

struct ref {
    int n;         /* candidates left */
    int id[N];     /* best first */
    double p[N];
};

static int ref_best(const double *x, const char *used, int n)
{
    int best = -1;
    for (int i = 0; i < n; i++)
        if (!used[i] && (best < 0 || x[i] > x[best])) best = i;
    return best;
}

static void ref_softmax(struct ref *r, const double *x, double temp)
{
    double sum = 0;
    for (int i = 0; i < r->n; i++) sum += r->p[i] = exp((x[r->id[i]] - x[r->id[0]]) / temp);
    for (int i = 0; i < r->n; i++) r->p[i] /= sum;
}

static void ref_sample(struct ref *r, const struct tessera_sampling *set, const float *logits,
                       int n, const int32_t *past, int n_past)
{
    double x[N];
    char used[N] = {0};
    for (int i = 0; i < n; i++) x[i] = (double)logits[i];
    for (int i = 0; i < n; i++) {
        int seen = 0;
        for (int k = 0; k < n_past; k++)
            seen |= past[k] == i && (set->repeat_last_n < 0 || k >= n_past - set->repeat_last_n);
        if (seen) x[i] = x[i] > 0 ? x[i] / (double)set->repeat_penalty
                                  : x[i] * (double)set->repeat_penalty;
    }
    r->n = set->top_k > 0 && set->top_k < n ? set->top_k : n;
    for (int i = 0; i < r->n; i++) {
        r->id[i] = ref_best(x, used, n);
        used[r->id[i]] = 1;
    }
    ref_softmax(r, x, 1);
    if (set->top_p < 1) {
        double sum = 0;
        int keep = 0;
        do sum += r->p[keep++];
        while (keep < r->n && sum < (double)set->top_p);
        r->n = keep;
    }
    if (set->min_p > 0) {
        int keep = 1;
        while (keep < r->n && r->p[keep] >= (double)set->min_p * r->p[0]) keep++;
        r->n = keep;
    }
    ref_softmax(r, x, (double)set->temp);
}

/* The same candidates with the same probabilities, and the draw is one of them. */
static void compare(const struct sampler *s, const struct ref *r, int32_t id)
{
    int in = 0;
    for (int i = 0; i < r->n; i++) {
        assert_int_equal(s->cand[i].id, r->id[i]);
        assert_true(fabs(s->cand[i].p - r->p[i]) <= 2e-5 * r->p[i] + 1e-12);
        in |= r->id[i] == id;
    }
    assert_true(in);
}

static void test_against_plain(void **state)
{
    (void)state;
    static const int ks[] = {0, 1, 2, 5, 40, N - 1, N, N + 5};
    static const float top_ps[] = {1.0f, 0.95f, 0.5f, 0.1f, 0.0f}, min_ps[] = {0, 0.05f, 0.3f, 1};
    static const float temps[] = {0.2f, 0.8f, 1.0f, 1.7f}, spreads[] = {0.1f, 2, 15};
    struct rng r;
    rng_seed(&r, 1);
    for (int trial = 0; trial < 600; trial++) {
        struct tessera_sampling set = {
            .temp = temps[rng_below(&r, 4)], .top_k = ks[rng_below(&r, 8)],
            .top_p = top_ps[rng_below(&r, 5)], .min_p = min_ps[rng_below(&r, 4)],
            .repeat_penalty = rng_below(&r, 2) ? 1.0f : rng_range(&r, 0.5f, 2),
            .repeat_last_n = (int)rng_below(&r, 20) - 1, .seed = (uint64_t)trial,
        };
        float logits[N];
        int32_t past[32];
        const int n = trial % 5 ? N : 1 + (int)rng_below(&r, N), n_past = (int)rng_below(&r, 33);
        random_logits(&r, logits, n, spreads[rng_below(&r, 3)]);
        for (int i = 0; i < n_past; i++) past[i] = (int32_t)rng_below(&r, (uint32_t)n);
        struct sampler s = sampler_of(set, n);
        struct ref want;
        ref_sample(&want, &set, logits, n, past, n_past);
        const int32_t id = sampler_draw(&s, logits, past, n_past);
        compare(&s, &want, id);
        for (int i = 0; i < n; i++) assert_int_equal(s.seen[i], 0);
        sampler_close(&s);
    }
}

/* Chi-square of 20,000 draws; 0.1 % critical value by Wilson and Hilferty. */
static void check_draws(struct tessera_sampling set, uint64_t seed)
{
    enum { DRAWS = 20000 };
    struct rng r;
    struct ref want;
    float logits[N];
    int count[N] = {0};
    rng_seed(&r, seed);
    random_logits(&r, logits, N, 2);
    ref_sample(&want, &set, logits, N, NULL, 0);
    struct sampler s = sampler_of(set, N);
    for (int i = 0; i < DRAWS; i++) count[sampler_draw(&s, logits, NULL, 0)]++;
    sampler_close(&s);
    double chi = 0, rest = 0;
    int cells = 0, rest_count = 0, total = 0;
    for (int i = 0; i < want.n; i++) {
        const double expected = want.p[i] * DRAWS;
        total += count[want.id[i]];
        if (expected < 8) { /* too few for a cell of its own */
            rest += expected;
            rest_count += count[want.id[i]];
            continue;
        }
        const double d = count[want.id[i]] - expected;
        chi += d * d / expected;
        cells++;
    }
    if (rest >= 8) {
        chi += (rest_count - rest) * (rest_count - rest) / rest;
        cells++;
    }
    assert_int_equal(total, DRAWS); /* nothing outside the candidates */
    if (cells < 2) return;
    const double k = cells - 1, t = 1 - 2 / (9 * k) + 3.09 * sqrt(2 / (9 * k));
    if (chi > k * t * t * t) fail_msg("chi-square %.1f with %d cells", chi, cells);
}

static void test_distribution(void **state)
{
    (void)state;
    struct tessera_sampling set = plain;
    for (uint64_t seed = 0; seed < 3; seed++) {
        set = plain;
        set.seed = seed;
        check_draws(set, seed);
        set.temp = 0.7f;
        check_draws(set, seed);
        set.temp = 1.5f;
        set.top_k = 7;
        check_draws(set, seed);
        set.top_k = 0;
        set.top_p = 0.8f;
        check_draws(set, seed);
        set.min_p = 0.2f;
        check_draws(set, seed);
        set = tessera_sampling_defaults();
        set.seed = seed;
        check_draws(set, seed);
    }
}

/* ---- greedy ---- */

static void test_greedy(void **state)
{
    (void)state;
    struct tessera_sampling set = tessera_sampling_defaults();
    set.temp = 0;
    struct sampler s = sampler_of(set, N);
    struct rng r;
    rng_seed(&r, 3);
    for (int trial = 0; trial < 500; trial++) {
        float x[N];
        int first = 0;
        for (int i = 0; i < N; i++) x[i] = (float)(int)rng_below(&r, trial % 7 + 1) - 3;
        for (int i = 1; i < N; i++)
            if (x[i] > x[first]) first = i; /* of equals the lowest id */
        assert_int_equal(sampler_draw(&s, x, NULL, 0), first);
    }
    float zeros[4] = {-0.0f, 0.0f, -0.0f, 0.0f};
    s.n_vocab = 4;
    assert_int_equal(sampler_draw(&s, zeros, NULL, 0), 0);
    sampler_close(&s);
    /* top-k 1 is greedy at any temperature, ties included. */
    set.temp = 2;
    set.top_k = 1;
    s = sampler_of(set, N);
    for (int trial = 0; trial < 100; trial++) {
        float x[N];
        int first = 0;
        for (int i = 0; i < N; i++) x[i] = (float)rng_below(&r, 9);
        for (int i = 1; i < N; i++)
            if (x[i] > x[first]) first = i;
        assert_int_equal(sampler_draw(&s, x, NULL, 0), first);
    }
    sampler_close(&s);
}

/* Ties at the edge of top-k: the lower ids stay. */
static void test_ties(void **state)
{
    (void)state;
    struct tessera_sampling set = plain;
    float x[N] = {0};
    int seen[N] = {0};
    x[150] = 1;
    for (int k = 2; k < 60; k += 19) {
        set.top_k = k;
        struct sampler s = sampler_of(set, N);
        for (int i = 0; i < 50; i++) seen[sampler_draw(&s, x, NULL, 0)]++;
        assert_int_equal(s.cand[0].id, 150);
        for (int i = 1; i < k; i++) assert_int_equal(s.cand[i].id, i - 1);
        sampler_close(&s);
        for (int i = k; i < N; i++) assert_true(i == 150 || !seen[i]);
    }
}

/* ---- repetition ---- */

static void test_penalty(void **state)
{
    (void)state;
    struct tessera_sampling set = tessera_sampling_defaults();
    set.temp = 0;
    set.repeat_penalty = 2;
    set.repeat_last_n = 3;
    struct sampler s = sampler_of(set, 4);
    const float x[4] = {4, 3, -1, -1.5f}, negative[4] = {-1, -1.5f, -1.8f, -3};
    const int32_t past[6] = {1, 0, 2, 2, 2, 0}, none[4] = {0, 2, 2, 2};
    assert_int_equal(sampler_draw(&s, x, NULL, 0), 0);
    assert_int_equal(sampler_draw(&s, x, past, 6), 1);     /* 4 / 2 < 3 */
    assert_int_equal(sampler_draw(&s, x, none, 4), 0);     /* too long ago */
    assert_int_equal(sampler_draw(&s, negative, past, 2), 2); /* both -1 and -1.5 doubled */
    /* Once, however often it was said. */
    const int32_t often[3] = {0, 0, 0};
    const float y[4] = {4, 1.5f, 0, 0};
    assert_int_equal(sampler_draw(&s, y, often, 3), 0);
    s.set.repeat_last_n = 0; /* looks at nothing */
    assert_int_equal(sampler_draw(&s, x, past, 6), 0);
    s.set.repeat_last_n = -1; /* at everything */
    assert_int_equal(sampler_draw(&s, x, none, 4), 1);
    s.set.repeat_last_n = INT32_MAX;
    assert_int_equal(sampler_draw(&s, x, none, 4), 1);
    s.set.repeat_penalty = 0.25f; /* a reward */
    assert_int_equal(sampler_draw(&s, x, (const int32_t[]){1}, 1), 1);
    s.set.repeat_penalty = 0; /* meaningless: off */
    assert_int_equal(sampler_draw(&s, x, past, 6), 0);
    sampler_close(&s);
}

/* ---- damaged logits, extreme settings ---- */

static void test_not_numbers(void **state)
{
    (void)state;
    static const float temps[] = {0, 0.5f, 1, 3};
    struct rng r;
    rng_seed(&r, 9);
    for (int t = 0; t < 4; t++) {
        struct tessera_sampling set = plain;
        set.temp = temps[t];
        struct sampler s = sampler_of(set, 8);
        const float nans[8] = {NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN};
        const float one[8] = {NAN, NAN, -INFINITY, -50, NAN, -INFINITY, NAN, NAN};
        const float low[8] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY,
                              -INFINITY, -INFINITY, -INFINITY, -INFINITY};
        const float high[8] = {1, NAN, 3, INFINITY, 2, INFINITY, -INFINITY, 0};
        const float two[8] = {NAN, -INFINITY, 1, NAN, 1, -INFINITY, NAN, NAN};
        const float huge[8] = {3e38f, -3e38f, 0, 0, 0, 0, 0, 3e38f};
        int count[8] = {0};
        for (int i = 0; i < 200; i++) {
            assert_int_equal(sampler_draw(&s, nans, NULL, 0), 0);
            assert_int_equal(sampler_draw(&s, low, NULL, 0), 0);
            assert_int_equal(sampler_draw(&s, one, NULL, 0), 3);
            assert_int_equal(sampler_draw(&s, high, NULL, 0), 3);
            const int32_t id = sampler_draw(&s, huge, NULL, 0);
            assert_true(id == 0 || id == 7);
            count[sampler_draw(&s, two, NULL, 0)]++;
        }
        assert_int_equal(count[2] + count[4], 200);
        assert_true(t == 0 ? count[2] == 200 : count[2] > 50 && count[4] > 50);
        sampler_close(&s);
    }
}

static void test_extremes(void **state)
{
    (void)state;
    static const float tiny[] = {1e-45f, 1e-40f, 1e-30f, 1e-3f};
    float x[N];
    struct rng r;
    rng_seed(&r, 11);
    for (int trial = 0; trial < 100; trial++) {
        random_logits(&r, x, N, trial % 2 ? 5 : 0.5f);
        for (int i = 0; i < N && trial % 3 == 0; i++) x[i] -= 100; /* all of them negative */
        int best = 0;
        for (int i = 1; i < N; i++)
            if (x[i] > x[best]) best = i;
        /* A temperature near zero is greedy, even where logit / temp overflows. */
        for (int t = 0; t < 3; t++) {
            struct tessera_sampling set = plain;
            set.temp = tiny[t];
            set.seed = (uint64_t)trial;
            struct sampler s = sampler_of(set, N);
            assert_int_equal(sampler_draw(&s, x, NULL, 0), best);
            sampler_close(&s);
        }
        /* top-p of nothing and min-p of everything leave the best. */
        struct tessera_sampling set = plain;
        set.top_p = trial % 2 ? 0 : -1;
        struct sampler s = sampler_of(set, N);
        assert_int_equal(sampler_draw(&s, x, NULL, 0), best);
        s.set = plain;
        s.set.min_p = 1 + (float)(trial % 2);
        assert_int_equal(sampler_draw(&s, x, NULL, 0), best);
        /* A very high temperature draws from what is left, evenly. */
        s.set = plain;
        s.set.temp = 1e30f;
        s.set.top_k = 4;
        const int32_t id = sampler_draw(&s, x, NULL, 0);
        int above = 0;
        for (int i = 0; i < N; i++) above += x[i] > x[id];
        assert_true(above < 4);
        sampler_close(&s);
    }
    struct sampler s = sampler_of(plain, 1);
    assert_int_equal(sampler_draw(&s, x, NULL, 0), 0);
    sampler_close(&s);
}

/* ---- seeds ---- */

static void test_seeds(void **state)
{
    (void)state;
    float x[N];
    struct rng r;
    int differ = 0;
    rng_seed(&r, 5);
    random_logits(&r, x, N, 1);
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct tessera_sampling set = plain, other = plain;
        set.seed = seed;
        other.seed = seed + 1;
        struct sampler a = sampler_of(set, N), b = sampler_of(set, N), c = sampler_of(other, N);
        for (int i = 0; i < 100; i++) {
            const int32_t id = sampler_draw(&a, x, NULL, 0);
            assert_int_equal(sampler_draw(&b, x, NULL, 0), id);
            differ += sampler_draw(&c, x, NULL, 0) != id;
        }
        sampler_close(&a);
        sampler_close(&b);
        sampler_close(&c);
    }
    assert_true(differ > 1500);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_plain), cmocka_unit_test(test_distribution),
        cmocka_unit_test(test_greedy),        cmocka_unit_test(test_ties),
        cmocka_unit_test(test_penalty),       cmocka_unit_test(test_not_numbers),
        cmocka_unit_test(test_extremes),      cmocka_unit_test(test_seeds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
