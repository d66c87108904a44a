/* Trace-carrying models (bench/gen_trace.h): the routes that the engine observes are the trace's,
 * slot by slot, as a prompt and token by token; greedy decoding walks through it; the weights of the
 * experts are near the trace's.  With room for all logits and without. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "bench/gen.h"
#include "moe/run/engine_int.h"
#include "tests/engine.h"

static char dir[64] = "/tmp/tessera-carry-XXXXXX";

static struct trace *random_trace(int layers, int experts, int used, int rows)
{
    struct trace *t;
    struct rng g;
    rng_seed(&g, (uint64_t)(layers * experts));
    assert_int_equal(trace_new(layers, experts, used, TRACE_WITH_WEIGHTS, &t, NULL), OK);
    assert_int_equal(trace_append(t, rows, NULL), OK);
    for (int r = 0; r < rows; r++) {
        t->step[r] = t->pos[r] = r;
        for (int l = 0; l < layers; l++) {
            uint16_t *x = trace_experts(t, r, l);
            float *w = t->weight + trace_at(t, r, l), sum = 0;
            for (int k = 0; k < used;) {
                x[k] = (uint16_t)rng_below(&g, (uint32_t)experts);
                int i = 0;
                while (i < k && x[i] != x[k]) i++;
                k += i == k;
            }
            for (int k = 0; k < used; k++)
                sum += w[k] = (k ? w[k - 1] : 1) * rng_range(&g, 0.5f, 0.98f);
            for (int k = 0; k < used; k++) w[k] /= sum;
        }
    }
    return t;
}

struct seen {
    const struct trace *t;
    int32_t first; /* row of position 0 */
    int n, wrong;
    float worst;   /* difference of a weight */
};

static void see(void *arg, const struct obs *o)
{
    struct seen *s = arg;
    const int32_t row = (s->first + o->pos) % s->t->n_rows;
    const uint16_t *x = trace_experts(s->t, row, o->layer);
    const float *w = s->t->weight + trace_at(s->t, row, o->layer);
    assert_int_equal(o->token, GEN_TRACE_FIRST + row);
    for (int k = 0; k < o->n_used; k++, s->n++) {
        s->wrong += o->expert[k] != x[k];
        if (fabsf(o->weight[k] - w[k]) > s->worst) s->worst = fabsf(o->weight[k] - w[k]);
    }
}

static int32_t argmax(const float *x, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

/* The whole trace as one prompt, then on from its middle by greedy decoding, past its end. */
static void replay_model(const struct trace *t, const char *path)
{
    struct tessera_options o = tessera_defaults();
    struct err err;
    tessera_engine *e;
    tessera_session *s, *d;
    err_clear(&err);
    o.model_path = path;
    o.n_threads = 2;
    o.n_sessions = 2;
    if (tessera_open(&o, &e, &err)) fail_msg("%s", err.msg);
    assert_int_equal(tessera_session_open(e, 0, &s, NULL), OK);
    assert_int_equal(tessera_session_open(e, 0, &d, NULL), OK);
    struct seen seen = {.t = t};
    tessera_observe(e, see, &seen);
    int32_t *ids = malloc(sizeof *ids * (size_t)t->n_rows);
    for (int i = 0; i < t->n_rows; i++) ids[i] = GEN_TRACE_FIRST + i;
    struct tessera_input in = {.session = s, .ids = ids, .n = t->n_rows,
                               .logits = TESSERA_LOGITS_ALL};
    if (tessera_step(e, &in, 1, &err)) fail_msg("%s", err.msg);
    const int n_vocab = tessera_model(e).n_vocab;
    for (int i = 0; i < t->n_rows; i++)
        assert_int_equal(argmax(tessera_logits(e, 0, i), n_vocab),
                         GEN_TRACE_FIRST + (i + 1) % t->n_rows);
    assert_int_equal(seen.n, t->n_rows * t->n_layers * t->n_used);
    assert_int_equal(seen.wrong, 0);

    seen = (struct seen){.t = t, .first = t->n_rows / 2, .worst = seen.worst};
    int32_t id = GEN_TRACE_FIRST + t->n_rows / 2;
    for (int i = 0; i < t->n_rows; i++) {
        in = (struct tessera_input){.session = d, .ids = &id, .n = 1, .logits = TESSERA_LOGITS_LAST};
        assert_int_equal(tessera_step(e, &in, 1, NULL), OK);
        id = argmax(tessera_logits(e, 0, 0), n_vocab);
        assert_int_equal(id, GEN_TRACE_FIRST + (t->n_rows / 2 + i + 1) % t->n_rows);
    }
    assert_int_equal(seen.wrong, 0);
    assert_true(seen.worst < 0.03f);
    free(ids);
    tessera_session_close(s);
    tessera_session_close(d);
    tessera_close(e);
}

static void test_routes(void **state)
{
    (void)state;
    static const struct {
        int layers, experts, used, rows, embd;
        enum qtype type;
        bool tight;
    } cases[] = {
        {2, 8, 2, 60, 64, QTYPE_F32, false},    {2, 8, 2, 150, 128, QTYPE_Q8_0, false},
        {4, 16, 4, 100, 256, QTYPE_Q4_0, false}, {3, 32, 6, 100, 256, QTYPE_Q4_K, false},
        {6, 64, 4, 80, 256, QTYPE_Q8_0, true},  {5, 40, 3, 80, 256, QTYPE_Q6_K, true},
    };
    char path[128];
    (void)snprintf(path, sizeof path, "%s/m.gguf", dir);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct trace *t =
            random_trace(cases[i].layers, cases[i].experts, cases[i].used, cases[i].rows);
        struct gen_spec g = gen_tiny("qwen3moe", cases[i].type);
        struct gen_carry c;
        struct err e;
        err_clear(&e);
        g.trace = t;
        g.n_layer = t->n_layers;
        g.n_expert = t->n_experts;
        g.n_expert_used = t->n_used;
        g.n_embd = cases[i].embd;
        if (gen_write(&g, path, NULL, &e)) fail_msg("%s", e.msg);
        assert_int_equal(gen_carry_make(&c, t, g.n_embd, g.n_layer, g.seed, NULL), OK);
        assert_int_equal(c.vector != NULL, cases[i].tight);
        gen_carry_free(&c);
        replay_model(t, path);
        trace_free(t);
    }
}

/* A prompt's last layer that was not routed takes the next route; what does not fit is refused. */
static void test_refused(void **state)
{
    (void)state;
    struct trace *t = random_trace(2, 8, 2, 20);
    struct gen_spec g = gen_tiny("qwen3moe", QTYPE_F32);
    char path[128];
    struct err e;
    (void)snprintf(path, sizeof path, "%s/r.gguf", dir);
    g.trace = t;
    for (int r = 0; r < 10; r++) trace_experts(t, r, 1)[0] = trace_experts(t, r, 1)[1] = TRACE_NONE;
    assert_int_equal(gen_write(&g, path, NULL, NULL), OK);
    trace_experts(t, 19, 1)[1] = TRACE_NONE;
    err_clear(&e);
    assert_int_equal(gen_write(&g, path, NULL, &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "row 19"));
    trace_experts(t, 19, 1)[1] = trace_experts(t, 19, 1)[0] ? 0 : 1;
    g.n_expert_used = 3;
    assert_int_equal(gen_write(&g, path, NULL, NULL), ERR_USAGE);
    g.n_expert_used = 2;
    g.n_layer = 3;
    assert_int_equal(gen_write(&g, path, NULL, NULL), ERR_USAGE);
    g.n_layer = 2;
    g.tied = true;
    assert_int_equal(gen_write(&g, path, NULL, NULL), ERR_USAGE);
    trace_free(t);
    t = random_trace(8, 64, 8, 20);
    g = gen_tiny("qwen3moe", QTYPE_F32);
    g.trace = t;
    g.n_layer = 8;
    g.n_expert = 64;
    g.n_expert_used = 8;
    err_clear(&e);
    assert_int_equal(gen_write(&g, path, NULL, &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "columns are too few"));
    trace_free(t);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_routes), cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
