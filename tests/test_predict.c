/* Predictors against plain computations in double, the router on the same state, and fitting: what
 * can be learned is, what cannot is not claimed; the predictor's file and its damage. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "moe/base/rng.h"
#include "moe/run/predictor.h"
#include "routing/fit/fit_approx.h"
#include "routing/fit/fit_path.h"
#include "routing/predict.h"
#include "routing/route.h"
#include "tests/engine.h"
#include "tests/memfile.h"
#include "tests/shared.h"

static char dir[64] = "/tmp/tessera-predict-XXXXXX";

static const char *in_dir(const char *name)
{
    static char path[128];
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void fill(struct rng *g, float *x, int n)
{
    for (int i = 0; i < n; i++) x[i] = rng_range(g, -1, 1);
}

/* ---- top ---- */

static void test_top(void **state)
{
    (void)state;
    struct rng g;
    rng_seed(&g, 1);
    for (int round = 0; round < 2000; round++) {
        float score[40], prob[40];
        int32_t id[40];
        const int n = 1 + (int)rng_below(&g, 40), max = 1 + (int)rng_below(&g, 40);
        for (int i = 0; i < n; i++) score[i] = (float)rng_below(&g, 12) - 2; /* ties, some <= 0 */
        const int got = predict_top(score, n, max, id, prob);
        bool taken[40] = {false};
        int want = 0;
        for (; want < max; want++) {
            int best = -1;
            for (int i = 0; i < n; i++)
                if (!taken[i] && score[i] > 0 && (best < 0 || score[i] > score[best])) best = i;
            if (best < 0) break;
            taken[best] = true;
            assert_int_equal(id[want], best);
            assert_true(!(prob[want] < score[best]) && !(prob[want] > score[best]));
        }
        assert_int_equal(got, want);
    }
    const float nan[3] = {NAN, 1, NAN};
    float prob[3];
    int32_t id[3];
    assert_int_equal(predict_top(nan, 3, 3, id, prob), 1);
    assert_int_equal(id[0], 1);
}

/* ---- what was seen ---- */

static void test_seen(void **state)
{
    (void)state;
    enum { N = 8, T = 50 };
    struct rng g;
    rng_seed(&g, 2);
    uint16_t used[T][2];
    float rate[N] = {0};
    const float keep = exp2f(-1.0f / 6);
    for (int t = 0; t < T; t++) {
        used[t][0] = (uint16_t)rng_below(&g, N);
        used[t][1] = (uint16_t)(t % 5 ? N + 3 : (used[t][0] + 1) % N); /* ids beyond are skipped */
        predict_seen(rate, N, keep, used[t], 2);
    }
    for (int x = 0; x < N; x++) {
        double want = 0;
        for (int t = 0; t < T; t++)
            for (int k = 0; k < 2; k++)
                if (used[t][k] == x) want += (1 - (double)keep) * pow((double)keep, T - 1 - t);
        assert_true(fabs(want - (double)rate[x]) < 1e-5);
    }
    predict_seen(rate, N, 0, used[3], 2); /* the previous token: itself only */
    for (int x = 0; x < N; x++) assert_true((rate[x] > 0) == (x == used[3][0]));
}

/* ---- the next layer's gate ---- */

/* On the state that the layer will really see, the gate names what its router chooses. */
static void test_gate(void **state)
{
    (void)state;
    enum { N = 24 };
    struct rng g;
    rng_seed(&g, 3);
    const struct elem_kernels *el = elem_kernels(cpu_tier_best());
    for (int round = 0; round < 200; round++) {
        float logits[N], bias[N], x[N], pick[N], prob[N], w[N];
        int32_t id[N], chosen[N];
        fill(&g, logits, N);
        fill(&g, bias, N);
        const float *b = round % 5 ? bias : NULL;
        const struct route_params p = {
            .n_expert = N, .n_used = 4, .score = round % 3, .normalise = 1, .scale = 2.5f,
            .n_group = round % 2 ? 4 : 0, .n_group_used = 2};
        memcpy(x, logits, sizeof x);
        assert_int_equal(predict_gate(&p, el, b, x, pick, 4, id, prob), 4);
        memcpy(x, logits, sizeof x);
        route_token_choice(&p, el, b, NULL, x, pick, chosen, w);
        for (int k = 0; k < 4; k++) assert_int_equal(id[k], chosen[k]);
        /* more than it uses: the first ones stay */
        memcpy(x, logits, sizeof x);
        const int n = predict_gate(&p, el, b, x, pick, 9, id, prob);
        assert_int_equal(n, 9);
        for (int k = 0; k < 4; k++) assert_int_equal(id[k], chosen[k]);
        memcpy(x, logits, sizeof x);
        assert_int_equal(predict_gate(&p, el, b, x, pick, 1000, id, prob), N);
    }
}

/* ---- the path model against its definition ---- */

static void test_path(void **state)
{
    (void)state;
    enum { V = 11, D = 7, H = 9, L = 3, E = 5, T = 20, OUT = L * E };
    struct rng g;
    rng_seed(&g, 4);
    float embed[V * D], tap[PATH_BACK * D], slow[PATH_SLOW * D], hidden[H * D], hb[H], out[H * OUT],
        ob[OUT], mean[PATH_SLOW * D], mix[D], h[H], p[OUT];
    fill(&g, embed, V * D);
    fill(&g, tap, PATH_BACK * D);
    fill(&g, slow, PATH_SLOW * D);
    fill(&g, hidden, H * D);
    fill(&g, hb, H);
    fill(&g, out, H * OUT);
    fill(&g, ob, OUT);
    const struct path_model m = {V, D, H, L, E, 2, embed, tap, slow, hidden, hb, out, ob};
    struct path_state s = {.mean = mean};
    int32_t ids[T];
    path_reset(&m, &s);
    for (int t = 0; t < T; t++) {
        ids[t] = t % 7 == 5 ? (t % 2 ? -1 : V) : (int32_t)rng_below(&g, V); /* unknown ones too */
        path_step(&m, &s, ids[t], mix, h, p);
        double x[D] = {0}, hh[H];
        for (int k = 0; k < D; k++) {
            for (int j = 0; j < PATH_BACK && j <= t; j++)
                if (ids[t - j] >= 0 && ids[t - j] < V)
                    x[k] += (double)tap[j * D + k] * (double)embed[ids[t - j] * D + k];
            for (int i = 0; i < PATH_SLOW; i++)
                for (int j = 0; j <= t; j++)
                    if (ids[t - j] >= 0 && ids[t - j] < V)
                        x[k] += (double)slow[i * D + k] * (1 - (double)path_keep(i)) *
                                pow((double)path_keep(i), j) * (double)embed[ids[t - j] * D + k];
        }
        for (int i = 0; i < H; i++) {
            hh[i] = (double)hb[i];
            for (int k = 0; k < D; k++) hh[i] += (double)hidden[i * D + k] * x[k];
            if (hh[i] < 0) hh[i] = 0;
        }
        for (int o = 0; o < OUT; o++) {
            double z = (double)ob[o];
            for (int i = 0; i < H; i++) z += (double)out[i * OUT + o] * hh[i];
            assert_true(fabs(1 / (1 + exp(-z)) - (double)p[o]) < 1e-5);
        }
    }
}

/* ---- fitting ---- */

enum { VOCAB = 40, LAYERS = 3, EXPERTS = 16, USED = 2, ROWS = 6000 };

/* The routes of a layer follow from the last two tokens (learnable), or from nothing (not). */
static struct trace *language(uint64_t seed, bool learnable)
{
    struct trace *t;
    struct rng g;
    rng_seed(&g, seed);
    assert_int_equal(trace_new(LAYERS, EXPERTS, USED, 0, &t, NULL), OK);
    assert_int_equal(trace_append(t, ROWS, NULL), OK);
    t->n_vocab = VOCAB;
    t->model_hash = 77;
    for (int r = 0; r < ROWS; r++) {
        t->step[r] = r;
        t->session[r] = r / 500;
        t->pos[r] = r % 500;
        t->token[r] = (int32_t)rng_below(&g, VOCAB);
        const int before = r % 500 ? t->token[r - 1] : 0;
        for (int l = 0; l < LAYERS; l++) {
            uint16_t *x = trace_experts(t, r, l);
            x[0] = (uint16_t)(learnable ? (t->token[r] * 5 + l) % 8 : (int)rng_below(&g, 8));
            x[1] = (uint16_t)(8 + (learnable ? (before * 3 + l) % 8 : (int)rng_below(&g, 8)));
        }
    }
    return t;
}

static double recall_of(const struct predictor *p, const struct trace *t)
{
    const struct path_model *m = &p->path;
    float *mix = calloc((size_t)m->n_dim, 4), *h = calloc((size_t)m->n_hidden, 4);
    float *out = calloc(LAYERS * EXPERTS, 4), *mean = calloc((size_t)(PATH_SLOW * m->n_dim), 4);
    struct path_state s = {.mean = mean};
    int found = 0;
    for (int r = 0; r < t->n_rows; r++) {
        if (!t->pos[r]) path_reset(m, &s);
        path_step(m, &s, t->token[r], mix, h, out);
        for (int l = 0; l < LAYERS; l++) {
            int32_t id[USED];
            float prob[USED];
            const int n = predict_top(out + l * EXPERTS, EXPERTS, USED, id, prob);
            for (int k = 0; k < USED; k++)
                for (int i = 0; i < n; i++) found += id[i] == trace_experts(t, r, l)[k];
        }
    }
    free(mix);
    free(h);
    free(out);
    free(mean);
    return (double)found / (double)(t->n_rows * LAYERS * USED);
}

struct told {
    int passes;
    double first, last;
};

static bool tell(void *arg, int pass, double loss, double recall)
{
    struct told *t = arg;
    assert_int_equal(pass, t->passes++);
    assert_true(loss > 0 && recall >= 0 && recall <= 1);
    if (!pass) t->first = loss;
    t->last = loss;
    return true;
}

static void test_fit(void **state)
{
    (void)state;
    struct trace *learn = language(1, true), *check = language(2, true);
    struct told told = {0};
    struct predictor p, q;
    struct err e;
    err_clear(&e);
    const struct fit_path_options o = {.passes = 6, .n_dim = 32, .n_hidden = 64, .seed = 1,
                                       .progress = tell, .arg = &told};
    const struct trace *one = learn;
    if (fit_path(&one, 1, &o, &p, &e)) fail_msg("%s", e.msg);
    assert_int_equal(told.passes, 6);
    assert_true(told.last < told.first);
    const double seen = recall_of(&p, check);
    if (seen < 0.9) fail_msg("recall on unseen text is %.3f", seen);
    /* frequencies: each expert of a half is used by about an eighth of the tokens */
    for (int i = 0; i < LAYERS * EXPERTS; i++)
        assert_true(p.frequency[i] > 0.05f && p.frequency[i] < 0.25f);
    /* the same again gives the same */
    told = (struct told){0};
    assert_int_equal(fit_path(&one, 1, &o, &q, NULL), OK);
    assert_memory_equal(p.data, q.data, predictor_floats(&p.path) * sizeof(float));
    predictor_free(&q);

    assert_int_equal(predictor_write(&p, "a model", in_dir("p.gguf"), NULL), OK);
    if (predictor_read(in_dir("p.gguf"), NULL, &q, &e)) fail_msg("%s", e.msg);
    assert_memory_equal(p.data, q.data, predictor_floats(&p.path) * sizeof(float));
    assert_true(q.model_hash == 77 && q.path.n_used == USED && q.path.n_layers == LAYERS);
    assert_true(recall_of(&q, check) >= seen);
    predictor_free(&q);
    predictor_free(&p);
    trace_free(learn);
    trace_free(check);
}

/* Where there is nothing to learn it does no better than guessing two of eight and eight. */
static void test_fit_noise(void **state)
{
    (void)state;
    struct trace *learn = language(1, false), *check = language(2, false);
    const struct fit_path_options o = {.passes = 2, .n_dim = 16, .n_hidden = 32, .seed = 1};
    const struct trace *one = learn;
    struct predictor p;
    assert_int_equal(fit_path(&one, 1, &o, &p, NULL), OK);
    assert_true(recall_of(&p, check) < 0.2);
    predictor_free(&p);
    trace_free(learn);
    trace_free(check);
}

static bool stop(void *arg, int pass, double loss, double recall)
{
    (void)arg, (void)pass, (void)loss, (void)recall;
    return false;
}

static void test_fit_refused(void **state)
{
    (void)state;
    struct trace *t = language(1, true), *u = language(1, true);
    const struct trace *both[2] = {t, u};
    struct fit_path_options o = {.passes = 1, .seed = 1, .progress = stop};
    struct predictor p;
    assert_int_equal(fit_path(both, 1, &o, &p, NULL), ERR_CANCELLED);
    assert_null(p.data);
    u->model_hash++;
    assert_int_equal(fit_path(both, 2, &o, &p, NULL), ERR_SHAPE);
    u->model_hash--;
    u->token[9] = -1;
    assert_int_equal(fit_path(both, 2, &o, &p, NULL), ERR_MISSING);
    t->n_vocab = 0;
    assert_int_equal(fit_path(both, 1, &o, &p, NULL), ERR_MISSING);
    trace_free(t);
    trace_free(u);
}

/* Any byte of the file changed, any length: an answer, no more. */
static void test_file_damage(void **state)
{
    (void)state;
    struct predictor p = {.path = {.n_vocab = 3, .n_dim = 2, .n_hidden = 2, .n_layers = 1,
                                   .n_expert = 2, .n_used = 1}, .model_hash = 5};
    const size_t floats = (size_t)predictor_floats(&p.path);
    predictor_place(&p, calloc(floats, sizeof(float)));
    assert_int_equal(predictor_write(&p, "m", in_dir("d.gguf"), NULL), OK);
    predictor_free(&p);
    size_t n = 0;
    char *good = shared_slurp(in_dir("d.gguf"), &n);
    assert_non_null(good);
    for (size_t i = 0; i < n; i++) {
        char *copy = malloc(n), *shorter = malloc(i ? i : 1);
        memcpy(copy, good, n);
        copy[i] = (char)(copy[i] ^ (i % 2 ? 1 : 128));
        memfile_reset();
        memfile_add("x", copy, n, n);
        const enum status s = predictor_read("x", &memfile_ops, &p, NULL);
        assert_int_equal(s == OK, p.data != NULL);
        predictor_free(&p);
        free(copy);
        memcpy(shorter, good, i);
        memfile_reset();
        memfile_add("x", shorter, i, i);
        assert_true(predictor_read("x", &memfile_ops, &p, NULL) || i + 32 > n);
        predictor_free(&p);
        free(shorter);
    }
    free(good);
}

static int make_dir(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    return tests_remove(dir);
}

/* ---- forecasters ---- */

enum { AN = 24, ARANK = 3, APAIRS = 1200 };

/* Pairs behind a linear map of rank 3, and noise of `noise` e^(x'[0]). */
static void make_pairs(float *x, float *z, double noise, double *amplitude)
{
    static double down[ARANK][AN], up[ARANK][AN], bias[AN];
    struct rng g;
    rng_seed(&g, 11);
    for (int i = 0; i < AN; i++) {
        for (int k = 0; k < ARANK; k++) {
            down[k][i] = 2 * rng_f64(&g) - 1;
            up[k][i] = 2 * rng_f64(&g) - 1;
        }
        bias[i] = rng_f64(&g);
    }
    for (int p = 0; p < APAIRS; p++) {
        float *a = x + p * AN, *b = z + p * AN;
        for (int i = 0; i < AN; i++) a[i] = (float)(3 * (2 * rng_f64(&g) - 1));
        const double scale = (double)approx_scale(AN, a);
        amplitude[p] = (double)a[0] * scale;
        for (int i = 0; i < AN; i++)
            b[i] = (float)((double)a[i] + bias[i] + noise * exp(amplitude[p]) * (2 * rng_f64(&g) - 1));
        for (int k = 0; k < ARANK; k++) {
            double mid = 0;
            for (int i = 0; i < AN; i++) mid += down[k][i] * (double)a[i] * scale;
            for (int i = 0; i < AN; i++) b[i] += (float)(up[k][i] * mid);
        }
    }
}

static double lost(const struct approx_layer *l, const float *x, const float *z)
{
    double off = 0, all = 0;
    float out[AN];
    for (int p = 0; p < APAIRS; p++) {
        approx_apply(l, x + p * AN, approx_scale(AN, x + p * AN), out);
        for (int i = 0; i < AN; i++) {
            off += pow((double)(out[i] - z[p * AN + i]), 2);
            all += pow((double)(x[p * AN + i] - z[p * AN + i]), 2);
        }
    }
    return off / all;
}

static void test_fit_approx(void **state)
{
    (void)state;
    static float x[APAIRS * AN], z[APAIRS * AN], loss[2][APAIRS];
    static double amplitude[APAIRS];
    const size_t bytes = sizeof(float) * (size_t)approx_floats(AN, ARANK);
    float *data[2] = {malloc(bytes), malloc(bytes)};
    struct approx_layer l[2];
    struct err e;
    assert_true(data[0] && data[1]);
    make_pairs(x, z, 0, amplitude);
    assert_int_equal(fit_approx(AN, ARANK, APAIRS, x, z, data[0], &l[0], loss[0], &e), OK);
    assert_true(lost(&l[0], x, z) < 1e-5); /* the map itself, less what the ridge takes */
    assert_int_equal(fit_approx(AN, ARANK - 1, APAIRS, x, z, data[1], &l[1], loss[1], &e), OK);
    assert_true(lost(&l[1], x, z) > 1e-2); /* it has no such rank */
    make_pairs(x, z, 0.05, amplitude);
    for (int k = 0; k < 2; k++)
        assert_int_equal(fit_approx(AN, ARANK, APAIRS, x, z, data[k], &l[k], loss[k], &e), OK);
    assert_memory_equal(data[0], data[1], bytes);
    assert_memory_equal(loss[0], loss[1], sizeof loss[0]);
    double s[5] = {0}; /* the judge's word for it, and where the noise was */
    for (int p = 0; p < APAIRS; p++) {
        const double a = amplitude[p], b = (double)loss[0][p];
        const float judged = approx_judge(&l[0], x + p * AN, approx_scale(AN, x + p * AN));
        assert_true(fabs((double)judged - b) < 1e-4);
        s[0] += a / APAIRS;
        s[1] += b / APAIRS;
        s[2] += a * a / APAIRS;
        s[3] += b * b / APAIRS;
        s[4] += a * b / APAIRS;
    }
    assert_true((s[4] - s[0] * s[1]) / sqrt((s[2] - s[0] * s[0]) * (s[3] - s[1] * s[1])) > 0.95);
    assert_int_equal(fit_approx(AN, ARANK, AN - 1, x, z, data[0], &l[0], loss[0], &e), ERR_RANGE);
    free(data[0]);
    free(data[1]);
}

static void test_leave(void **state)
{
    (void)state;
    int32_t id[4] = {7, 3, 9, 1};
    float w[4] = {0.4f, 0.1f, 0.3f, 0.2f};
    assert_int_equal(approx_leave(4, id, w, 0.2f, 1), 3);
    assert_true(id[0] == 7 && id[1] == 9 && id[2] == 1);
    assert_true(fabsf(w[0] + w[1] + w[2] - 1) < 1e-6f && fabsf(w[0] / w[1] - 4.0f / 3) < 1e-6f);
    assert_int_equal(approx_leave(3, id, w, 2, 0), 1); /* never all */
    assert_true(id[0] == 7 && fabsf(w[0] - 4.0f / 9) < 1e-6f);
    assert_int_equal(approx_leave(1, id, w, 2, 1), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_top),       cmocka_unit_test(test_seen),
        cmocka_unit_test(test_gate),      cmocka_unit_test(test_path),
        cmocka_unit_test(test_fit),       cmocka_unit_test(test_fit_noise),
        cmocka_unit_test(test_fit_refused),
        cmocka_unit_test(test_fit_approx), cmocka_unit_test(test_leave),
        cmocka_unit_test(test_file_damage),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
