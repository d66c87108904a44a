/* Routers against plain ones: token choice (every scoring rule, groups, a bias, ties, damaged
 * logits) and the grouping of routes by expert, on random inputs and in every instruction tier. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "moe/base/rng.h"
#include "routing/route.h"

enum { EXPERTS = 160, USED = 16, ROWS = 64, REST = 4 };

static const int expert_counts[] = {1, 2, 7, 8, 16, 60, 64, 128, EXPERTS};
enum { N_COUNTS = sizeof expert_counts / sizeof *expert_counts };

/* ---- a plain router ---- */

/* The better of two experts: higher score, then lower id; a NaN is worse than any number. */
static int better(const double *x, int a, int b)
{
    if (isnan(x[a]) || isnan(x[b])) return isnan(x[a]) == isnan(x[b]) ? a < b : isnan(x[b]);
    return x[a] > x[b] || (!(x[a] < x[b]) && a < b);
}

static void plain_order(const double *x, int n, int *id)
{
    for (int i = 0; i < n; i++) {
        int k = i;
        for (; k > 0 && better(x, i, id[k - 1]); k--) id[k] = id[k - 1];
        id[k] = i;
    }
}

static void plain_softmax(const float *x, int n, double *y)
{
    double sum = 0, max = -INFINITY;
    for (int i = 0; i < n; i++) max = (double)x[i] > max ? (double)x[i] : max;
    for (int i = 0; i < n; i++) sum += y[i] = exp((double)x[i] - max);
    for (int i = 0; i < n; i++) y[i] /= sum;
}

static void plain_scores(const struct route_params *p, const float *logits, double *x)
{
    if (p->score == ROUTE_SOFTMAX) plain_softmax(logits, p->n_expert, x);
    for (int i = 0; i < p->n_expert; i++) {
        if (p->score == ROUTE_SIGMOID) x[i] = 1 / (1 + exp(-(double)logits[i]));
        if (p->score == ROUTE_SOFTMAX_CHOSEN) x[i] = (double)logits[i];
    }
}

/* The experts outside the best groups are ruled out. */
static void plain_groups(const struct route_params *p, double *pick)
{
    const int n = p->n_group ? p->n_expert / p->n_group : 0;
    double sum[EXPERTS];
    int order[EXPERTS], in[EXPERTS];
    if (p->n_group < 2) return;
    for (int g = 0; g < p->n_group; g++) {
        plain_order(pick + g * n, n, in);
        sum[g] = pick[g * n + in[0]] + (n > 1 ? pick[g * n + in[1]] : 0);
    }
    plain_order(sum, p->n_group, order);
    for (int k = p->n_group_used; k < p->n_group; k++)
        for (int i = 0; i < n; i++) pick[order[k] * n + i] = -INFINITY;
}

static void plain_choice(const struct route_params *p, const float *bias, const float *logits,
                         int *id, double *w)
{
    double x[EXPERTS], pick[EXPERTS], sum = 0;
    float chosen[EXPERTS];
    plain_scores(p, logits, x);
    for (int i = 0; i < p->n_expert; i++) pick[i] = x[i] + (bias ? (double)bias[i] : 0);
    plain_groups(p, pick);
    plain_order(pick, p->n_expert, id);
    for (int s = 0; s < p->n_used; s++) {
        w[s] = x[id[s]];
        chosen[s] = (float)w[s];
    }
    if (p->score == ROUTE_SOFTMAX_CHOSEN) plain_softmax(chosen, p->n_used, w);
    for (int s = 0; s < p->n_used; s++) sum += w[s];
    if (sum < 0x1p-14) sum = 0x1p-14;
    for (int s = 0; s < p->n_used; s++) {
        if (p->normalise) w[s] /= sum;
        w[s] *= (double)p->scale;
    }
}

/* ---- token choice ---- */

struct choice {
    int32_t id[USED + REST];
    float w[USED + REST];
};

/* Runs the router with canaries behind its outputs. */
static struct choice choose_scaled(const struct route_params *p, enum cpu_tier tier,
                                   const float *bias, const float *scale, const float *logits)
{
    float x[EXPERTS + REST], pick[EXPERTS + REST];
    struct choice c;
    for (int i = 0; i < USED + REST; i++) {
        c.id[i] = -7;
        c.w[i] = 77;
    }
    for (int i = 0; i < EXPERTS + REST; i++) x[i] = pick[i] = 55;
    memcpy(x, logits, sizeof *x * (size_t)p->n_expert);
    route_token_choice(p, elem_kernels(tier), bias, scale, x, pick, c.id, c.w);
    for (int i = p->n_used; i < USED + REST; i++) {
        assert_int_equal(c.id[i], -7);
        assert_true(c.w[i] == 77);
    }
    for (int i = p->n_expert; i < EXPERTS + REST; i++) assert_true(x[i] == 55 && pick[i] == 55);
    return c;
}

static struct choice choose(const struct route_params *p, enum cpu_tier tier, const float *bias,
                            const float *logits)
{
    return choose_scaled(p, tier, bias, NULL, logits);
}

static void random_logits(struct rng *r, float *x, int n)
{
    const int kind = (int)rng_below(r, 4);
    for (int i = 0; i < n; i++) {
        x[i] = rng_range(r, -6, 6);
        if (kind == 1) x[i] = (float)((int)rng_below(r, 5) - 2); /* many ties */
        if (kind == 2) x[i] *= 10;
        if (kind == 3) x[i] = 0; /* nothing but ties */
    }
}

/* Every rule, with and without groups; never more experts than the chosen groups have. */
static struct route_params random_params(struct rng *r)
{
    struct route_params p = {.n_expert = expert_counts[rng_below(r, N_COUNTS)], .scale = 1.0f};
    const int most = p.n_expert < USED ? p.n_expert : USED;
    p.n_used = 1 + (int)rng_below(r, (uint32_t)most);
    p.score = (enum route_score)rng_below(r, 3);
    p.normalise = (int)rng_below(r, 2);
    if (rng_below(r, 2)) p.scale = rng_range(r, 0.5f, 3);
    if (p.n_expert % 8 == 0 && rng_below(r, 2)) {
        p.n_group = p.n_expert > 8 && rng_below(r, 2) ? 8 : 4;
        p.n_group_used = 1 + (int)rng_below(r, (uint32_t)p.n_group);
        const int in_groups = p.n_group_used * (p.n_expert / p.n_group);
        if (p.n_used > in_groups) p.n_used = in_groups;
    }
    return p;
}

/* The order may differ from the plain one only where the scores are equal within rounding. */
static void compare(const struct route_params *p, const struct choice *c, const int *id,
                    const double *w)
{
    for (int s = 0; s < p->n_used; s++) {
        assert_true(c->id[s] >= 0 && c->id[s] < p->n_expert);
        for (int t = 0; t < s; t++) assert_true(c->id[t] != c->id[s]);
        assert_true(fabs((double)c->w[s] - w[s]) <= 4e-6 * fabs(w[s]) + 1e-37);
        if (c->id[s] == id[s]) continue;
        fail_msg("slot %d: expert %d, not %d (rule %d, %d of %d)", s, c->id[s], id[s],
                 (int)p->score, p->n_used, p->n_expert);
    }
}

/* Are two different scores so close that f32 may order them otherwise than doubles do? */
static int too_close(const struct route_params *p, const float *bias, const float *logits)
{
    double x[EXPERTS], pick[EXPERTS], sum[EXPERTS];
    int id[EXPERTS], n = p->n_group ? p->n_expert / p->n_group : 0;
    plain_scores(p, logits, x);
    for (int i = 0; i < p->n_expert; i++) pick[i] = x[i] + (bias ? (double)bias[i] : 0);
    for (int g = 0; g < p->n_group; g++) {
        plain_order(pick + g * n, n, id);
        sum[g] = pick[g * n + id[0]] + (n > 1 ? pick[g * n + id[1]] : 0);
    }
    for (int k = 0; k < 2; k++) {
        const double *v = k ? sum : pick;
        const int m = k ? p->n_group : p->n_expert;
        plain_order(v, m, id);
        for (int i = 1; i < m; i++) {
            const double gap = v[id[i - 1]] - v[id[i]];
            /* Equal logits have equal scores in both; a sum of equal scores may round apart. */
            const int same = !k && !bias && !(logits[id[i - 1]] < logits[id[i]]) &&
                             !(logits[id[i - 1]] > logits[id[i]]);
            if (!same && gap < 1e-6 * fabs(v[id[i - 1]])) return 1;
            if (!same && v[id[i - 1]] < 1e-35) return 1; /* f32 has no such numbers */
        }
    }
    return 0;
}

static void test_choice(void **state)
{
    (void)state;
    struct rng r;
    int compared = 0, ties = 0;
    rng_seed(&r, 1);
    for (int trial = 0; trial < 6000; trial++) {
        const struct route_params p = random_params(&r);
        float logits[EXPERTS], some[EXPERTS];
        const float *bias = rng_below(&r, 3) ? NULL : some;
        random_logits(&r, logits, p.n_expert);
        for (int i = 0; i < p.n_expert; i++) some[i] = rng_range(&r, -1, 1);
        int id[EXPERTS];
        double w[EXPERTS];
        const struct choice c = choose(&p, CPU_REF, bias, logits);
        for (int t = 1; t <= (int)cpu_tier_best(); t++) {
            const struct choice same = choose(&p, (enum cpu_tier)t, bias, logits);
            assert_memory_equal(&c, &same, sizeof c);
        }
        if (p.n_group < 2 && !bias) { /* equal logits: the lower id comes first */
            for (int s = 1; s < p.n_used; s++) {
                const float a = logits[c.id[s - 1]], b = logits[c.id[s]];
                if (a > b || a < b) continue;
                assert_true(c.id[s - 1] < c.id[s]);
                ties++;
            }
        }
        if (too_close(&p, bias, logits)) continue;
        plain_choice(&p, bias, logits, id, w);
        compare(&p, &c, id, w);
        compared++;
    }
    assert_true(compared > 2500 && ties > 1000);
}

/* Weights: their sum, and what the scale does to it. */
static void test_weights(void **state)
{
    (void)state;
    struct rng r;
    rng_seed(&r, 2);
    for (int trial = 0; trial < 500; trial++) {
        struct route_params p = random_params(&r);
        float logits[EXPERTS];
        random_logits(&r, logits, p.n_expert);
        for (int i = 0; i < p.n_expert; i++) logits[i] /= 10;
        p.normalise = 1;
        double sum = 0;
        const struct choice c = choose(&p, CPU_REF, NULL, logits);
        for (int s = 0; s < p.n_used; s++) {
            assert_true(c.w[s] >= 0);
            assert_true(s == 0 || p.n_group > 1 || c.w[s] <= c.w[s - 1]);
            sum += (double)c.w[s];
        }
        assert_true(fabs(sum - (double)p.scale) < 1e-5 * (double)p.scale);
        /* All of the experts, without a rule: their own softmax, which sums to one. */
        struct route_params all = {.n_expert = p.n_expert, .n_used = p.n_expert, .scale = 1};
        if (all.n_used > USED) continue;
        sum = 0;
        const struct choice d = choose(&all, CPU_REF, NULL, logits);
        for (int s = 0; s < all.n_used; s++) sum += (double)d.w[s];
        assert_true(fabs(sum - 1) < 1e-5);
    }
    /* Scales of experts change no choice. */
    for (int trial = 0; trial < 500; trial++) {
        const struct route_params p = random_params(&r);
        float logits[EXPERTS], scale[EXPERTS];
        random_logits(&r, logits, p.n_expert);
        for (int i = 0; i < p.n_expert; i++) scale[i] = rng_range(&r, -1, 3);
        const struct choice plain = choose(&p, CPU_REF, NULL, logits);
        const struct choice c = choose_scaled(&p, CPU_REF, NULL, scale, logits);
        for (int s = 0; s < p.n_used; s++) {
            const float want = plain.w[s] * scale[plain.id[s]];
            assert_int_equal(c.id[s], plain.id[s]);
            assert_memory_equal(&c.w[s], &want, sizeof want);
        }
    }
    /* Scores that vanish are not divided by nothing. */
    const struct route_params p = {.n_expert = 8, .n_used = 3, .score = ROUTE_SIGMOID,
                                   .normalise = 1, .scale = 1};
    const float low[8] = {-200, -200, -200, -200, -200, -200, -200, -200};
    const struct choice c = choose(&p, CPU_REF, NULL, low);
    for (int s = 0; s < 3; s++) {
        assert_int_equal(c.id[s], s);
        assert_true(isfinite(c.w[s]) && c.w[s] >= 0);
    }
}

/* Whatever the logits are: n_used different experts, so that the step can go on. */
static void test_damaged(void **state)
{
    (void)state;
    static const float odd[] = {NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 0};
    struct rng r;
    rng_seed(&r, 3);
    for (int trial = 0; trial < 4000; trial++) {
        const struct route_params p = random_params(&r);
        float logits[EXPERTS];
        random_logits(&r, logits, p.n_expert);
        const uint32_t dense = trial % 3 ? 5 : 1;
        for (int i = 0; i < p.n_expert; i++)
            if (!rng_below(&r, dense)) logits[i] = odd[rng_below(&r, 6)];
        for (int t = 0; t <= (int)cpu_tier_best(); t++) {
            const struct choice c = choose(&p, (enum cpu_tier)t, NULL, logits);
            char seen[EXPERTS] = {0};
            for (int s = 0; s < p.n_used; s++) {
                assert_true(c.id[s] >= 0 && c.id[s] < p.n_expert && !seen[c.id[s]]);
                seen[c.id[s]] = 1;
            }
        }
    }
    /* A NaN is chosen last, wherever it stands. */
    for (int at = 0; at < 8; at++) {
        const struct route_params p = {.n_expert = 8, .n_used = 7, .score = ROUTE_SIGMOID,
                                       .scale = 1};
        float logits[8] = {1, 2, 3, 4, 5, 6, 7, 8};
        logits[at] = NAN;
        const struct choice c = choose(&p, CPU_REF, NULL, logits);
        for (int s = 0; s < 7; s++) assert_true(c.id[s] != at && isfinite(c.w[s]));
    }
    /* Nothing but NaN: the first ones. */
    const struct route_params p = {.n_expert = 8, .n_used = 3, .normalise = 1, .scale = 1};
    const float nans[8] = {NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN};
    const struct choice c = choose(&p, CPU_REF, NULL, nans);
    for (int s = 0; s < 3; s++) assert_int_equal(c.id[s], s);
}

/* ---- grouping ---- */

static void check_group(const int32_t *id, int n_rows, int n_used, int n_expert)
{
    const int n = n_rows * n_used;
    int32_t count[EXPERTS + 1], expert[EXPERTS + 1], first[EXPERTS + 2], pair[ROWS * USED + 1];
    int want[EXPERTS] = {0}, used = 0;
    char seen[ROWS * USED] = {0};
    count[n_expert] = expert[n_expert] = first[n_expert + 1] = pair[n] = -9;
    for (int i = 0; i < n; i++) want[id[i]]++;
    for (int x = 0; x < n_expert; x++) used += want[x] > 0;
    const int got = route_group(id, NULL, n_rows, n_used, n_expert, count, expert, first, pair);
    assert_int_equal(got, used);
    assert_int_equal(first[0], 0);
    assert_int_equal(first[used], n);
    for (int a = 0; a < used; a++) {
        assert_true(expert[a] >= 0 && expert[a] < n_expert);
        assert_true(a == 0 || expert[a] > expert[a - 1]);
        assert_int_equal(first[a + 1] - first[a], want[expert[a]]);
        for (int k = first[a]; k < first[a + 1]; k++) {
            assert_true(pair[k] >= 0 && pair[k] < n && !seen[pair[k]]);
            seen[pair[k]] = 1;
            assert_int_equal(id[pair[k]], expert[a]);
            assert_true(k == first[a] || pair[k] > pair[k - 1]);
        }
    }
    for (int i = 0; i < n; i++) assert_true(seen[i]);
    assert_true(count[n_expert] == -9 && expert[n_expert] == -9 && first[n_expert + 1] == -9 &&
                pair[n] == -9);
}

static void test_group(void **state)
{
    (void)state;
    struct rng r;
    rng_seed(&r, 4);
    for (int trial = 0; trial < 3000; trial++) {
        const int n_expert = expert_counts[rng_below(&r, N_COUNTS)];
        const int most = n_expert < USED ? n_expert : USED;
        const int n_used = 1 + (int)rng_below(&r, (uint32_t)most);
        const int n_rows = trial % 10 ? 1 + (int)rng_below(&r, ROWS) : 0;
        /* How many experts the rows choose from: all of them, or few. */
        const int range = trial % 2 ? n_expert : n_used;
        int32_t id[ROWS * USED], order[EXPERTS];
        for (int row = 0; row < n_rows; row++) {
            for (int i = 0; i < range; i++) order[i] = n_expert - 1 - i;
            for (int s = 0; s < n_used; s++) { /* different ones within a row */
                const int k = s + (int)rng_below(&r, (uint32_t)(range - s));
                const int32_t t = order[s];
                order[s] = order[k];
                order[k] = t;
                id[row * n_used + s] = order[s];
            }
        }
        check_group(id, n_rows, n_used, n_expert);
    }
    int32_t none = 0;
    check_group(&none, 0, 1, 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choice),  cmocka_unit_test(test_weights),
        cmocka_unit_test(test_damaged), cmocka_unit_test(test_group),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
