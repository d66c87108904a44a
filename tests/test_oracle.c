/* Oracles against brute force: on a made-up model, and on real ones where every route and every set of
 * experts is also run alone, from the start, one row at a time; the parts of a pass against a step, bit
 * for bit, and a layer passed by against the same model with that layer's weights zero. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "bench/gen.h"
#include "moe/run/branch.h"
#include "moe/tessera.h"
#include "routing/oracle.h"
#include "tests/engine.h"
#include "tests/rewrite.h"

static char dir[64] = "/tmp/tessera-oracle-XXXXXX";
static const char story[] = "models/zoo/story-q8_0.gguf";

static const char *in_dir(const char *name)
{
    static char path[128];
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

/* ---- a made-up model: each unit mixes its number into a state of two floats ---- */

enum { MADE_UNITS = 9 };

static uint64_t made_rows;

static enum status made_run(void *arg, int unit, int n, const float *in, float *out, struct err *e)
{
    (void)arg;
    (void)e;
    for (int r = 0; r < n; r++) {
        out[2 * r] = sinf(in[2 * r] * 3 + (float)unit) + in[2 * r + 1];
        out[2 * r + 1] = cosf(in[2 * r] - (float)unit * in[2 * r + 1]);
    }
    made_rows += (uint64_t)n;
    return OK;
}

static enum status made_loss(void *arg, int n, const float *in, double *loss, struct err *e)
{
    (void)arg;
    (void)e;
    for (int r = 0; r < n; r++) loss[r] = (double)(in[2 * r] * in[2 * r] + in[2 * r + 1]);
    return OK;
}

static const bool made_fixed[MADE_UNITS] = {false, false, true, false, false, false, true, false, false};
static const struct oracle_model made = {MADE_UNITS, 2, made_fixed, made_run, made_loss, NULL};

/* One route, from the start, alone. */
static double made_alone(uint64_t route)
{
    float x[2] = {0.25f, -0.5f}, y[2];
    double loss;
    for (int u = 0, bit = 0; u < MADE_UNITS; u++) {
        if (!made_fixed[u] && !(route >> bit++ & 1)) continue;
        (void)made_run(NULL, u, 1, x, y, NULL);
        memcpy(x, y, sizeof x);
    }
    (void)made_loss(NULL, 1, x, &loss, NULL);
    return loss;
}

static void brute(double best[8], uint64_t route[8])
{
    for (int c = 0; c < 8; c++) best[c] = INFINITY;
    for (uint64_t r = 0; r < 128; r++) {
        const int c = __builtin_popcountll(r);
        const double l = made_alone(r);
        if (!(l < best[c])) continue;
        best[c] = l;
        route[c] = r;
    }
}

static void test_routes(void **state)
{
    (void)state;
    const float x[2] = {0.25f, -0.5f};
    double best[8];
    uint64_t route[8];
    struct oracle_work w = {0};
    struct oracle_routes all, beam;
    struct err e;
    brute(best, route);
    const struct oracle_options o = {.skips = -1, .all = 128, .beam = 4, .random = 5, .seed = 3};
    made_rows = 0;
    assert_int_equal(oracle_routes(&made, x, &o, &all, &w, &e), OK);
    assert_true(all.all && all.n == 7);
    for (int c = 0; c < 8; c++) {
        assert_true(all.best[c] == best[c] && all.route[c] == route[c]);
        assert_true(all.random[c] >= best[c] && all.mean[c] >= all.random[c]);
    }
    /* Each node once: 2^i rows before the i-th free unit, which all of them go through. */
    assert_int_equal(w.run, made_rows);
    assert_int_equal(w.run, 1 + 2 + 4 + 4 + 8 + 16 + 32 + 32 + 64);
    assert_int_equal(w.alone, 128 * 2 + 7 * 64);
    assert_int_equal(w.routes, 128);

    /* Beams that lose nothing find the same; narrow ones find no better, and say the truth. */
    struct oracle_options b = o;
    b.all = 127;
    b.beam = 35; /* 7 over 3 */
    assert_int_equal(oracle_routes(&made, x, &b, &beam, &w, &e), OK);
    assert_false(beam.all);
    for (int c = 0; c < 8; c++) {
        assert_true(beam.best[c] == best[c] && beam.route[c] == route[c]);
        assert_true(beam.random[c] == all.random[c] && beam.mean[c] == all.mean[c]);
    }
    b.beam = 2;
    assert_int_equal(oracle_routes(&made, x, &b, &beam, &w, &e), OK);
    for (int c = 0; c < 8; c++) {
        assert_true(beam.best[c] >= best[c]);
        assert_true(made_alone(beam.route[c]) == beam.best[c]);
    }
    b = o;
    b.skips = 2;
    assert_int_equal(oracle_routes(&made, x, &b, &beam, &w, &e), OK);
    for (int c = 0; c < 8; c++) assert_true(c < 5 ? isinf(beam.best[c]) : beam.best[c] == best[c]);
}

static double set_loss(const int32_t *set, int k)
{
    double s = 0;
    for (int i = 0; i < k; i++) s += sin(1 + 2.7 * set[i]) + 0.3 * cos((double)set[i] * set[(i + 1) % k]);
    return s;
}

static enum status sets_loss(void *arg, int n, const int32_t *set, double *loss, struct err *e)
{
    (void)e;
    for (int i = 0; i < n; i++) loss[i] = set_loss(set + i * 3, 3);
    *(int64_t *)arg += n;
    return OK;
}

static void test_experts(void **state)
{
    (void)state;
    double best = INFINITY;
    int32_t want[3] = {0}, set[3] = {9, 4, 7};
    int64_t n = 0;
    struct oracle_set out;
    struct err e;
    for (int32_t a = 0; a < 10; a++)
        for (int32_t b = a + 1; b < 10; b++)
            for (int32_t c = b + 1; c < 10; c++) {
                const int32_t s[3] = {a, b, c};
                if (!(set_loss(s, 3) < best)) continue;
                best = set_loss(s, 3);
                memcpy(want, s, sizeof s);
            }
    struct oracle_sets o = {10, 3, sets_loss, &n, .all = 120, .rounds = 9, .random = 8, .seed = 1};
    assert_int_equal(oracle_experts(&o, set, &out, &e), OK);
    assert_true(out.all && out.tried == 120 && n == 1 + 120 + 8);
    assert_memory_equal(set, want, sizeof set);
    assert_true(out.best == best && out.random >= best);
    const int32_t start[3] = {4, 7, 9};
    assert_true(out.start == set_loss(start, 3));
    /* Swaps end where no single one helps. */
    o.all = 119;
    memcpy(set, start, sizeof set);
    assert_int_equal(oracle_experts(&o, set, &out, &e), OK);
    assert_false(out.all);
    assert_true(out.best <= out.start && out.best == set_loss(set, 3));
    for (int i = 0; i < 3; i++)
        for (int32_t x = 0; x < 10; x++) {
            int32_t other[3] = {set[0], set[1], set[2]};
            if (x == set[0] || x == set[1] || x == set[2]) continue;
            other[i] = x;
            for (int k = 0; k < 2; k++)
                for (int m = 0; m < 2; m++)
                    if (other[m] > other[m + 1]) {
                        const int32_t t = other[m];
                        other[m] = other[m + 1];
                        other[m + 1] = t;
                    }
            assert_true(set_loss(other, 3) >= out.best);
        }
}

/* Convex losses: no way to spend as much is better. */
static void test_spend(void **state)
{
    (void)state;
    const double loss[3][4] = {{9, 4, 3, 2.5}, {8, 7.5, 7.25, 7.2}, {6, 3, 1, 0.5}};
    int level[3];
    for (int budget = 3; budget <= 12; budget++) {
        double least = INFINITY, got = 0;
        int sum = 0;
        assert_true(oracle_spend(&loss[0][0], 3, 4, 1, budget, level));
        for (int t = 0; t < 3; t++) {
            got += loss[t][level[t]];
            sum += 1 + level[t];
        }
        assert_true(sum <= budget);
        for (int i = 0; i < 64; i++) {
            const int l[3] = {i & 3, i >> 2 & 3, i >> 4};
            const double s = loss[0][l[0]] + loss[1][l[1]] + loss[2][l[2]];
            if (3 + l[0] + l[1] + l[2] <= sum && s < least) least = s;
        }
        assert_true(fabs(got - least) < 1e-12);
    }
    assert_false(oracle_spend(&loss[0][0], 3, 4, 1, 2.5, level));
}

/* Against all 4^5 schedules, of losses with many ties. */
static void test_schedule(void **state)
{
    (void)state;
    enum { S = 5, K = 4, ALL = 1024 };
    struct rng g;
    rng_seed(&g, 5);
    for (int round = 0; round < 40; round++) {
        double loss[S][K];
        int level[S];
        for (int i = 0; i < S * K; i++) loss[i / K][i % K] = (double)rng_below(&g, 7) - (i % K) * (round % 3);
        for (int budget = S; budget <= S * K + 2; budget++) {
            double least = INFINITY, got = 0;
            int sum = 0;
            for (int i = 0; i < ALL; i++) {
                double l = 0;
                int cost = S;
                for (int s = 0; s < S; s++) {
                    l += loss[s][i >> 2 * s & 3];
                    cost += i >> 2 * s & 3;
                }
                if (cost <= budget && l < least) least = l;
            }
            assert_int_equal(oracle_schedule(&loss[0][0], S, K, 1, budget, level, NULL), OK);
            for (int s = 0; s < S; s++) {
                got += loss[s][level[s]];
                sum += 1 + level[s];
            }
            assert_true(sum <= budget && got <= least && got >= least);
            if (budget > S * K) continue;
            oracle_draw_schedule(&g, S, K, 1, budget, level);
            sum = 0;
            for (int s = 0; s < S; s++) {
                assert_in_range(level[s], 0, K - 1);
                sum += 1 + level[s];
            }
            assert_int_equal(sum, budget);
        }
        struct err e;
        assert_int_equal(oracle_schedule(&loss[0][0], S, K, 1, S - 1, level, &e), ERR_RANGE);
    }
}

/* ---- real models ---- */

struct one {
    struct branches b;
    int32_t target;
    tessera_engine *e;
    tessera_session *s;
};

static enum status one_run(void *arg, int unit, int n, const float *in, float *out, struct err *e)
{
    struct one *o = arg;
    return branches_run(&o->b, unit, 1, n, in, out, NULL, NULL, e);
}

static enum status one_loss(void *arg, int n, const float *in, double *loss, struct err *e)
{
    struct one *o = arg;
    return branches_loss(&o->b, n, in, o->target, loss, e);
}

static struct one open_one(const char *path)
{
    struct one o = {.target = 0};
    struct err err;
    struct tessera_options opt = tessera_defaults();
    opt.model_path = path;
    opt.n_ctx = 64;
    opt.n_logits = 48;
    opt.n_threads = 2;
    o.e = must_open(&opt);
    o.s = session(o.e);
    if (branches_open(o.e, &o.b, &err)) fail_msg("%s", err.msg);
    return o;
}

static void close_one(struct one *o)
{
    branches_close(&o->b);
    tessera_session_close(o->s);
    tessera_close(o->e);
}

static void step(struct one *o, int32_t id, const float **logits)
{
    struct err err;
    const struct tessera_input in = {.session = o->s, .ids = &id, .n = 1, .logits = TESSERA_LOGITS_LAST};
    if (tessera_step(o->e, &in, 1, &err)) fail_msg("%s", err.msg);
    *logits = tessera_logits(o->e, 0, 0);
}

/* A route alone: row by row, part by part. */
static double alone(struct one *o, const float *x0, uint64_t route)
{
    float x[512];
    double loss;
    struct err err;
    memcpy(x, x0, sizeof *x * (size_t)o->b.n_embd);
    for (int u = 0; u < o->b.n_parts; u++)
        if (route >> u & 1 && branches_run(&o->b, u, 1, 1, x, x, NULL, NULL, &err))
            fail_msg("%s", err.msg);
    if (branches_loss(&o->b, 1, x, o->target, &loss, &err)) fail_msg("%s", err.msg);
    return loss;
}

/* What a step says, summed as branches_loss does. */
static double step_loss(const float *logit, int n, int32_t target)
{
    float most = logit[0];
    double sum = 0;
    for (int i = 1; i < n; i++) most = logit[i] > most ? logit[i] : most;
    for (int i = 0; i < n; i++) sum += (double)expf(logit[i] - most);
    return log(sum) - (double)(logit[target] - most);
}

static void check_model(const char *path, int n_parts, int n_tokens)
{
    struct one o = open_one(path);
    const bool fixed[64] = {false};
    const int n_vocab = tessera_model(o.e).n_vocab;
    float x[512];
    struct err err;
    struct rng g;
    assert_int_equal(o.b.n_parts, n_parts);
    assert_true(o.b.n_embd <= 512);
    rng_seed(&g, 11);
    int32_t id = 3;
    for (int t = 0; t < n_tokens; t++) {
        const float *logits;
        o.target = (int32_t)rng_below(&g, (uint32_t)n_vocab);
        if (branches_token(&o.b, o.s, id, x, &err)) fail_msg("%s", err.msg);
        const struct oracle_model m = {n_parts, o.b.n_embd, fixed, one_run, one_loss, &o};
        const struct oracle_options all = {.skips = -1, .all = 1 << n_parts, .random = 3, .seed = 5};
        struct oracle_work w = {0};
        struct oracle_routes r;
        if (oracle_routes(&m, x, &all, &r, &w, &err)) fail_msg("%s", err.msg);
        double best[16];
        for (int c = 0; c <= n_parts; c++) best[c] = INFINITY;
        for (uint64_t route = 0; route < (uint64_t)1 << n_parts; route++) {
            const double l = alone(&o, x, route);
            const int c = __builtin_popcountll(route);
            if (l < best[c]) best[c] = l;
        }
        for (int c = 0; c <= n_parts; c++) assert_true(r.best[c] == best[c]);
        step(&o, id, &logits); /* the pass as it is: the same bits */
        assert_true(step_loss(logits, n_vocab, o.target) == r.best[n_parts]);
        id = (int32_t)rng_below(&g, (uint32_t)n_vocab);
    }
    close_one(&o);
}

static void make(const char *name, void (*set)(struct gen_spec *s))
{
    struct gen_spec s = gen_defaults();
    struct err err;
    s.arch = "qwen3moe";
    s.n_layer = 3;
    s.n_embd = 64;
    s.n_head = 4;
    s.n_head_kv = 2;
    s.head_dim = 16;
    s.n_ff = 32;
    s.n_expert = 6;
    s.n_expert_used = 3;
    s.n_ctx = 64;
    s.n_vocab = 96;
    s.type = QTYPE_F32;
    s.seed = 4;
    if (set) set(&s);
    if (gen_write(&s, in_dir(name), NULL, &err)) fail_msg("%s", err.msg);
}

static void dense(struct gen_spec *s)
{
    s->arch = "llama";
    s->n_expert = s->n_expert_used = 0;
}

static void test_against_brute_force(void **state)
{
    (void)state;
    make("moe.gguf", NULL);
    check_model(in_dir("moe.gguf"), 6, 5);
    make("dense.gguf", dense);
    check_model(in_dir("dense.gguf"), 6, 5);
    if (access(story, R_OK)) print_message("%s is not there\n", story);
    else check_model(story, 10, 2);
}

/* Passing by is adding nothing: layers whose last matrices are zero, at the first token of a text. */
static void test_passing_by(void **state)
{
    (void)state;
    make("moe.gguf", NULL);
    for (int mask = 0; mask < 64; mask += 7) {
        static const char *const name[2] = {"blk.%d.attn_output.weight", "blk.%d.ffn_down_exps.weight"};
        struct rw r;
        const float *logits;
        float x[512];
        struct err err;
        rw_open(&r, in_dir("moe.gguf"));
        for (int u = 0; u < 6; u++) {
            char tensor[64];
            (void)snprintf(tensor, sizeof tensor, name[u % 2], u / 2);
            struct rw_tensor *t = rw_find(&r, tensor);
            if (!(mask >> u & 1))
                for (int k = 0; k < t->n_pieces; k++)
                    memset((char *)(uintptr_t)t->piece[k].data, 0, (size_t)t->piece[k].bytes);
        }
        rw_write(&r, in_dir("zero.gguf"));
        rw_close(&r);
        struct one zero = open_one(in_dir("zero.gguf")), o = open_one(in_dir("moe.gguf"));
        step(&zero, 17, &logits);
        o.target = 5;
        if (branches_token(&o.b, o.s, 17, x, &err)) fail_msg("%s", err.msg);
        assert_true(step_loss(logits, 96, 5) == alone(&o, x, (uint64_t)mask));
        close_one(&zero);
        close_one(&o);
    }
}

/* Given experts: the router's own are the router's bits in any order; others are others. */
static void test_given_experts(void **state)
{
    (void)state;
    make("moe.gguf", NULL);
    struct one o = open_one(in_dir("moe.gguf"));
    float x[64], y[4 * 64], z[4 * 64], rows[4 * 64];
    int32_t chosen[12], set[12];
    struct err err;
    const float *logits;
    step(&o, 7, &logits);
    if (branches_token(&o.b, o.s, 9, x, &err) || branches_run(&o.b, 0, 1, 1, x, x, NULL, NULL, &err))
        fail_msg("%s", err.msg);
    for (int r = 0; r < 4; r++) memcpy(rows + 64 * r, x, sizeof x);
    assert_int_equal(o.b.part[1].n_expert, 6);
    assert_int_equal(o.b.part[1].n_used, 3);
    if (branches_run(&o.b, 1, 1, 4, rows, y, NULL, chosen, &err)) fail_msg("%s", err.msg);
    for (int r = 0; r < 4; r++) {
        assert_memory_equal(chosen, chosen + 3 * r, 3 * sizeof *chosen);
        for (int k = 0; k < 3; k++) set[3 * r + k] = chosen[(k + r) % 3];
    }
    int32_t other = 0;
    while (other == chosen[0] || other == chosen[1] || other == chosen[2]) other++;
    set[10] = other;
    int32_t ordered[12];
    if (branches_run(&o.b, 1, 1, 4, rows, z, set, ordered, &err)) fail_msg("%s", err.msg);
    assert_memory_equal(y, z, 3 * 64 * sizeof *y);
    assert_memory_equal(ordered, chosen, 9 * sizeof *chosen);
    assert_true(memcmp(y + 192, z + 192, 64 * sizeof *y) != 0);
    close_one(&o);
}

static void refuse(const char *path, const char *why)
{
    struct branches b;
    struct err err;
    struct tessera_options opt = tessera_defaults();
    err_clear(&err);
    opt.model_path = path;
    tessera_engine *e = must_open(&opt);
    assert_int_equal(branches_open(e, &b, &err), ERR_UNSUPPORTED);
    if (!strstr(err.msg, why)) fail_msg("%s", err.msg);
    tessera_close(e);
}

/* Every architecture that has parts: all of them, one after another, are a step, bit for bit. */
static void test_architectures(void **state)
{
    (void)state;
    static const char *const names[] = {
        "bailingmoe2", "deepseek2-lite", "deepseek2-v3", "dots1", "ernie4_5-moe", "gemma4",
        "gemma4-small", "glm4moe", "gpt-oss", "granitemoe", "hunyuan-moe", "lfm2moe", "llama",
        "minimax-m2", "mixtral", "olmoe", "phimoe", "qwen2", "qwen2moe", "qwen3", "qwen35moe",
        "qwen3moe", "qwen3next", "smallthinker"};
    int n_run = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[64];
        struct branches b;
        struct err err;
        err_clear(&err);
        (void)snprintf(path, sizeof path, "tests/awkward/%s.gguf", names[i]);
        struct tessera_options opt = tessera_defaults();
        opt.model_path = path;
        opt.n_ctx = 32;
        tessera_engine *e = must_open(&opt);
        if (branches_open(e, &b, &err)) {
            assert_int_equal(err.code, ERR_UNSUPPORTED);
            print_message("%s: %s\n", names[i], err.msg);
            tessera_close(e);
            continue;
        }
        branches_close(&b);
        tessera_close(e);
        struct one o = open_one(path);
        const int n_vocab = tessera_model(o.e).n_vocab;
        for (int32_t t = 0; t < 3; t++) {
            float x[512];
            const float *logits;
            assert_true(o.b.n_embd <= 512);
            o.target = 9 + t;
            if (branches_token(&o.b, o.s, 20 + t, x, &err)) fail_msg("%s: %s", names[i], err.msg);
            const double whole = alone(&o, x, UINT64_MAX);
            step(&o, 20 + t, &logits);
            if (!(step_loss(logits, n_vocab, o.target) == whole)) fail_msg("%s: token %d", names[i], t);
        }
        close_one(&o);
        n_run++;
    }
    print_message("%d architectures\n", n_run);
    assert_int_equal(n_run, sizeof names / sizeof *names - 4); /* gemma4-small and three recurrent ones */
}

static void test_refused(void **state)
{
    (void)state;
    struct err err;
    struct tessera_options opt = tessera_defaults();
    refuse("tests/depth/mor-token.gguf", "not all rows go through its layers");
    refuse("tests/choice/ecdlm.gguf", "see what follows them");
    refuse("tests/concept/concept.gguf", "cannot be taken apart");
    refuse("tests/awkward/qwen3next.gguf", "recurrent layers");
    opt.model_path = "tests/depth/mor-token.gguf";
    tessera_engine *e = must_open(&opt);
    assert_int_equal(branches_depth(e, 9, &err), ERR_RANGE);
    assert_int_equal(branches_depth(e, branches_least_depth(e), &err), OK);
    assert_int_equal(branches_depth(e, -1, &err), OK);
    tessera_close(e);
}

static int make_dir(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : 1;
}

static int remove_dir(void **state)
{
    (void)state;
    return tests_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_routes), cmocka_unit_test(test_experts), cmocka_unit_test(test_spend),
        cmocka_unit_test(test_schedule),
        cmocka_unit_test(test_against_brute_force), cmocka_unit_test(test_passing_by),
        cmocka_unit_test(test_given_experts), cmocka_unit_test(test_architectures),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
