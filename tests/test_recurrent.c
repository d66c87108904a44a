/* Hybrids with recurrent layers (qwen3next, qwen35moe, lfm2moe): llama.cpp's logits for the awkward
 * models of tests/awkward/gen_recurrent.py and for those of ../shared, the same bits in every
 * split, tier, thread count and batch, mutations that must break the bound, and what a session does
 * with states that cannot be cut: failed steps, marks, snapshots, reuse, save and load.  Writes to
 * a folder of its own in /tmp. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "moe/run/engine_int.h"
#include "tests/engine.h"
#include "tests/fault.h"
#include "tests/metric.h"
#include "tests/shared.h"

enum { N_IDS = 300, N_POS = 16, N_VOCAB = 64 };

static char dir[64] = "/tmp/tessera-recurrent-XXXXXX";
static const char *const names[] = {"qwen3next", "qwen35moe", "lfm2moe"};

static const char *path_of(const char *name, const char *end)
{
    static char path[160];
    (void)snprintf(path, sizeof path, "tests/awkward/%s.%s", name, end);
    return path;
}

static void read_ids(const char *path, int n, int32_t *ids)
{
    assert_true(shared_ids(path, n, ids));
}

static tessera_engine *open_model(const char *path, int n_threads, const char *tier)
{
    struct err e;
    tessera_engine *engine;
    struct tessera_options o = tessera_defaults();
    o.model_path = path;
    o.n_threads = n_threads;
    (void)setenv("TESSERA_CPU", tier, 1);
    if (tessera_open(&o, &engine, &e)) fail_msg("%s", e.msg);
    (void)unsetenv("TESSERA_CPU");
    return engine;
}

static tessera_engine *open_awkward(const char *name)
{
    return open_model(path_of(name, "gguf"), 2, "");
}

/* Appends ids in pieces; the logits of every position go to out, which may be NULL. */
static void feed(tessera_session *s, const int32_t *ids, int n, int piece, float *out)
{
    struct err err;
    tessera_engine *e = s->engine;
    const size_t nv = (size_t)e->model.n_vocab;
    for (int at = 0; at < n; at += piece) {
        const int m = n - at < piece ? n - at : piece;
        struct tessera_input in = {s, ids + at, m, TESSERA_LOGITS_ALL};
        if (tessera_step(e, &in, 1, &err)) fail_msg("%s", err.msg);
        for (int r = 0; out && r < m; r++)
            memcpy(out + (size_t)(at + r) * nv, tessera_logits(e, 0, r), nv * sizeof *out);
    }
}

/* ---- the reference, and the same bits however it is run ---- */

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

struct nmse {
    double median, p95;
};

/* n positions, those of ref one after another, those of got i * (n_ids - 1) / (n - 1). */
static struct nmse distance(const float *got, int n_ids, const float *ref, int n, int n_vocab)
{
    double at[128];
    for (int i = 0; i < n; i++)
        at[i] = metric_nmse(got + (size_t)(i * (n_ids - 1) / (n - 1)) * (size_t)n_vocab,
                            ref + i * n_vocab, (size_t)n_vocab);
    qsort(at, (size_t)n, sizeof *at, by_value);
    return (struct nmse){at[n / 2], at[n * 95 / 100]};
}

static bool within(struct nmse d) { return d.median <= 5e-6 && d.p95 <= 1e-4; }

static struct nmse awkward_distance(const char *name, const float *got)
{
    size_t n = 0;
    float *ref = (float *)(void *)shared_slurp(path_of(name, "logits.f32"), &n);
    assert_int_equal(n, sizeof(float) * N_POS * N_VOCAB);
    const struct nmse d = distance(got, N_IDS, ref, N_POS, N_VOCAB);
    free(ref);
    return d;
}

/* All logits, alone or beside a session that takes another number of rows in every step. */
static void run(tessera_engine *e, const int32_t *ids, int n, int piece, int beside, float *out)
{
    struct err err;
    const size_t nv = (size_t)e->model.n_vocab;
    tessera_session *s = session(e), *other = beside ? session(e) : NULL;
    for (int at = 0, k = 1; at < n; at += piece, k = k % 5 + 1) {
        const int m = n - at < piece ? n - at : piece;
        struct tessera_input in[2] = {{other, ids + 9, k, TESSERA_LOGITS_LAST},
                                      {s, ids + at, m, TESSERA_LOGITS_ALL}};
        const int skip = !beside || tessera_session_n(other) + k > n;
        if (tessera_step(e, in + skip, 2 - skip, &err)) fail_msg("%s", err.msg);
        for (int r = 0; r < m; r++)
            memcpy(out + (size_t)(at + r) * nv, tessera_logits(e, 1 - skip, r), nv * sizeof *out);
    }
    tessera_session_close(s);
    tessera_session_close(other);
}

static const struct {
    const char *tier;
    int threads, piece, beside, n;
} how[] = {
    {"", 2, 300, 0, 300},     {"", 1, 7, 0, 300},      {"", 3, 1, 1, 300}, {"", 2, 64, 1, 300},
    {"avx512", 2, 31, 1, 300}, {"avx2", 3, 7, 1, 300}, {"ref", 2, 7, 0, 64},
};

static void check_bits(const char *path, const int32_t *ids, int n, float *first)
{
    float *again = NULL;
    for (size_t i = 0; i < sizeof how / sizeof *how; i++) {
        tessera_engine *e = open_model(path, how[i].threads, how[i].tier);
        const size_t nv = (size_t)e->model.n_vocab;
        const int m = how[i].n < n ? how[i].n : n;
        if (!again) again = calloc((size_t)n * nv, sizeof *again);
        run(e, ids, m, how[i].piece, how[i].beside, i ? again : first);
        tessera_close(e);
        if (i) assert_memory_equal(first, again, (size_t)m * nv * sizeof *first);
    }
    free(again);
}

static void test_awkward(void **state)
{
    (void)state;
    int32_t ids[N_IDS];
    float *got = calloc(N_IDS * N_VOCAB, sizeof *got);
    for (int i = 0; i < 3; i++) {
        read_ids(path_of(names[i], "ids"), N_IDS, ids);
        check_bits(path_of(names[i], "gguf"), ids, N_IDS, got);
        const struct nmse d = awkward_distance(names[i], got);
        printf("[  NOTE    ] %s: nmse per position: median %.1e, 95 %% %.1e\n", names[i], d.median,
               d.p95);
        assert_true(within(d));
    }
    free(got);
}

static void test_shared(void **state)
{
    (void)state;
    enum { N = 64, NV = 128 };
    float *got = calloc(N * NV, sizeof *got);
    for (int i = 0; i < 2; i++) {
        char model[256], path[256], file[128];
        int32_t ids[N];
        size_t n = 0;
        (void)snprintf(file, sizeof file, "reference/architectures/%s-moe.gguf", names[i]);
        if (!shared_file(model, sizeof model, file)) break;
        strcat(file, ".ids");
        assert_true(shared_file(path, sizeof path, file));
        read_ids(path, N, ids);
        strcpy(strrchr(file, '.'), ".logits.f32");
        assert_true(shared_file(path, sizeof path, file));
        float *ref = (float *)(void *)shared_slurp(path, &n);
        assert_int_equal(n, sizeof(float) * N * NV);
        check_bits(model, ids, N, got);
        const struct nmse d = distance(got, N, ref, N, NV);
        printf("[  NOTE    ] %s-moe: nmse per position: median %.1e, 95 %% %.1e\n", names[i],
               d.median, d.p95);
        assert_true(within(d));
        free(ref);
    }
    free(got);
}

/* ---- mutations: one thing wrong must be seen ---- */

enum mutation {
    NONE, NO_SILU, NO_L2, OTHER_HEADS, NO_OUTPUT_GATE, NO_SHARED, SHARED_UNGATED, ROPE_BASE,
    DT_IS_A, GATE_UP_SWAPPED, NO_CHOICE_BIAS, SOFTMAX_SCORES, NO_GATE_IN, TAP_LATE, NOT_NORMALISED,
    MUTATION_N
};

static const char *const mutation_names[MUTATION_N] = {
    "unchanged", "no silu after the convolution", "q and k not normalised", "v meets other heads",
    "no gate on attention", "no shared expert", "shared expert not gated", "rope base / 2",
    "dt and a swapped", "gate and up swapped", "no bias for choosing", "softmax for sigmoid",
    "no gate before the convolution", "window one token late", "weights not normalised"
};

static int to_nothing(struct op *op)
{
    op->code = OP_SCALE;
    op->p.scale.by = 1.0f;
    return 1;
}

static int swap_weights(struct op *op)
{
    const int w = op->weight[0];
    op->weight[0] = op->weight[1];
    op->weight[1] = w;
    return 1;
}

/* Whether op was changed. */
static int mutate(struct op *op, enum mutation m)
{
    const bool gate = op->code == OP_GATE, shared = gate && !strcmp(op->name, "ffn_shexp_gate");
    switch (m) {
    case NO_SILU: return op->code == OP_CONV && op->p.conv.silu ? !(op->p.conv.silu = 0) : 0;
    case NO_L2: return op->code == OP_L2_NORM ? !(op->p.head.n_heads = 0) : 0;
    case OTHER_HEADS:
        if (op->code != OP_DELTA) return 0;
        op->p.delta.tiled = !op->p.delta.tiled;
        return 1;
    case NO_OUTPUT_GATE: return gate && !shared ? to_nothing(op) : 0;
    case NO_SHARED:
        if (op->code != OP_ADD || strcmp(op->name, "ffn_shexp")) return 0;
        op->in[0] = op->out[0];
        op->code = OP_SCALE;
        op->p.scale.by = 1.0f;
        return 1;
    case SHARED_UNGATED: return shared ? to_nothing(op) : 0;
    case ROPE_BASE: return op->code == OP_ROPE_TABLE ? (op->p.rope.rope.base /= 2) > 0 : 0;
    case DT_IS_A: return op->code == OP_DELTA_GATES ? swap_weights(op) : 0;
    case GATE_UP_SWAPPED: return op->code == OP_EXPERTS ? swap_weights(op) : 0;
    case NO_CHOICE_BIAS:
        return op->code == OP_ROUTE && op->weight[0] >= 0 ? (op->weight[0] = -1) : 0;
    case SOFTMAX_SCORES:
        if (op->code != OP_ROUTE || op->p.moe.route.score != ROUTE_SIGMOID) return 0;
        op->p.moe.route.score = ROUTE_SOFTMAX;
        return 1;
    case NO_GATE_IN: return op->code == OP_MUL && !strcmp(op->name, "gate_in") ? to_nothing(op) : 0;
    case TAP_LATE: return op->code == OP_CONV ? !!(op->p.conv.taps -= 1) : 0;
    case NOT_NORMALISED:
        return op->code == OP_ROUTE ? !(op->p.moe.route.normalise = 0) : 0;
    case NONE:
    case MUTATION_N: break;
    }
    return 0;
}

static void test_mutations(void **state)
{
    (void)state;
    int32_t ids[N_IDS];
    float *got = calloc(N_IDS * N_VOCAB, sizeof *got);
    int tried[MUTATION_N] = {0};
    for (int i = 0; i < 3; i++) {
        read_ids(path_of(names[i], "ids"), N_IDS, ids);
        for (int m = NONE; m < MUTATION_N; m++) {
            tessera_engine *e = open_awkward(names[i]);
            int n = 0;
            for (int k = 0; k < e->model.n_op; k++)
                n += !!mutate(&e->model.op[k], (enum mutation)m);
            /* Where the matrices lie is known since they were read. */
            for (int g = e->resid.first_expert; m == GATE_UP_SWAPPED && g < e->resid.first_piece; g++) {
                const uint32_t at = e->resid.group[g].at[0];
                e->resid.group[g].at[0] = e->resid.group[g].at[1];
                e->resid.group[g].at[1] = at;
            }
            if (n || m == NONE) run(e, ids, N_IDS, N_IDS, 0, got);
            tessera_close(e);
            if (!n && m != NONE) continue;
            tried[m]++;
            const struct nmse d = awkward_distance(names[i], got);
            if (within(d) != (m == NONE))
                fail_msg("%s, %s: median %g, 95 %% %g", names[i], mutation_names[m], d.median,
                         d.p95);
        }
    }
    for (int m = NONE; m < MUTATION_N; m++)
        if (!tried[m]) fail_msg("%s: no model has it", mutation_names[m]);
    free(got);
}

/* ---- sessions ---- */

/* A device that cancels the step after some submissions. */
static struct {
    const struct dev_api *real;
    tessera_engine *engine;
    int left;
} spy;

static dev_fence spy_submit(struct dev *d, const struct op *ops, int n, const struct dev_bind *b)
{
    if (spy.left-- == 0) tessera_cancel(spy.engine);
    return spy.real->submit(d, ops, n, b);
}

/* A step that is cancelled anywhere leaves the session as it was. */
static void test_cancel(void **state)
{
    (void)state;
    int32_t ids[N_IDS];
    float want[3 * N_VOCAB], got[3 * N_VOCAB];
    for (int i = 0; i < 3; i++) {
        struct err err;
        tessera_engine *e = open_awkward(names[i]);
        read_ids(path_of(names[i], "ids"), N_IDS, ids);
        tessera_session *s = session(e), *t = session(e);
        struct dev_api api = *e->api;
        spy.real = e->api;
        spy.engine = e;
        api.submit = spy_submit;
        feed(t, ids, 20, 20, NULL);
        feed(t, ids + 20, 3, 3, want);
        int n = 0;
        for (; n < 100; n++) {
            const int before = n % 4 == 0 ? 0 : 20; /* also at the start of a timeline */
            (void)tessera_session_rollback(s, (struct tessera_mark){0}, &err);
            if (before) feed(s, ids, before, 7, NULL);
            struct tessera_input in = {s, ids + before, 9, TESSERA_LOGITS_LAST};
            e->api = &api;
            spy.left = n;
            const enum status st = tessera_step(e, &in, 1, &err);
            e->api = spy.real;
            if (!st) break;
            assert_int_equal(st, ERR_CANCELLED);
            assert_int_equal(tessera_session_n(s), before);
            if (!before) feed(s, ids, 20, 11, NULL);
            feed(s, ids + 20, 3, 1, got);
            assert_memory_equal(want, got, sizeof want);
        }
        assert_true(n > 3);
        tessera_session_close(s);
        tessera_session_close(t);
        tessera_close(e);
    }
}

/* Marks are exact; between them one lands at the nearest before. */
static void test_marks(void **state)
{
    (void)state;
    struct err err;
    int32_t ids[N_IDS], other[N_IDS];
    float *want = calloc(N_IDS * N_VOCAB, sizeof *want);
    float *got = calloc(N_IDS * N_VOCAB, sizeof *got);
    for (int i = 0; i < 3; i++) {
        tessera_engine *e = open_awkward(names[i]);
        read_ids(path_of(names[i], "ids"), N_IDS, ids);
        for (int k = 0; k < N_IDS; k++) other[k] = (ids[k] + 1) % N_VOCAB;
        tessera_session *s = session(e), *t = session(e);
        feed(s, ids, N_IDS, 64, want);
        feed(t, ids, 40, 16, NULL);
        const struct tessera_mark m = tessera_session_mark(t);
        for (int round = 0; round < 3; round++) {
            feed(t, other + 40, 20 + round, 9, NULL);
            assert_int_equal(tessera_session_rollback(t, m, &err), OK);
            assert_int_equal(tessera_session_n(t), 40);
        }
        feed(t, ids + 40, N_IDS - 40, 13, got + 40 * N_VOCAB);
        assert_memory_equal(want + 40 * N_VOCAB, got + 40 * N_VOCAB,
                            (N_IDS - 40) * N_VOCAB * sizeof *want);
        /* 256 is kept without asking, 290 is not; 41 falls back to the mark, 39 to the start */
        static const int ask[][2] = {{290, 256}, {256, 256}, {255, 40}, {41, 40}, {39, 0}};
        for (int k = 0; k < 5; k++) {
            assert_int_equal(tessera_session_rollback(t, (struct tessera_mark){ask[k][0]}, &err),
                             OK);
            const int at = tessera_session_n(t);
            assert_int_equal(at, ask[k][1]);
            feed(t, ids + at, ask[k][0] - at + 2, 50, got + at * N_VOCAB);
            assert_memory_equal(want + at * N_VOCAB, got + at * N_VOCAB,
                                (size_t)(ask[k][0] - at + 2) * N_VOCAB * sizeof *want);
            if (ask[k][0] == 290) assert_int_equal(tessera_session_reuse(t, ids, 270), 256);
        }
        assert_int_equal(tessera_session_rollback(t, (struct tessera_mark){300}, &err), ERR_RANGE);
        tessera_session_close(s);
        tessera_session_close(t);
        tessera_close(e);
    }
    free(want);
    free(got);
}

/* A bounded number of snapshots: the newest marks stay, memory stays, everything stays right. */
static void test_bounded(void **state)
{
    (void)state;
    struct err err;
    int32_t ids[N_IDS];
    float want[N_VOCAB], got[N_VOCAB];
    read_ids(path_of(names[0], "ids"), N_IDS, ids);
    for (int most = 0; most <= SNAPSHOTS_MAX; most += most ? 3 : 1) {
        tessera_engine *e = open_awkward(names[0]);
        assert_int_equal(e->n_snapshots, SNAPSHOTS_MAX);
        e->n_snapshots = most;
        tessera_session *s = session(e), *t = session(e);
        for (int k = 0; k < 29; k++) {
            feed(s, ids + 10 * k, 10, 10, NULL);
            (void)tessera_session_mark(s);
        }
        const uint64_t states = (uint64_t)(most + 2) * e->state_bytes;
        assert_true(s->state.mem.committed <= states + mem_page_size());
        for (int k = 28; k >= 0; k--) {
            const struct tessera_mark m = {10 * k + 5};
            if (m.n > tessera_session_n(s)) continue;
            assert_int_equal(tessera_session_rollback(s, m, &err), OK);
            const bool there = k > 29 - most && k > 0;
            if (there) assert_int_equal(tessera_session_n(s), 10 * k);
            assert_true(tessera_session_n(s) <= 10 * k);
        }
        assert_int_equal(tessera_session_rollback(s, (struct tessera_mark){0}, &err), OK);
        feed(s, ids, N_IDS, 77, NULL);
        feed(t, ids, N_IDS, 300, NULL);
        feed(s, ids, 1, 1, got);
        feed(t, ids, 1, 1, want);
        assert_memory_equal(want, got, sizeof want);
        tessera_session_close(s);
        tessera_session_close(t);
        assert_int_equal(tessera_memory(e).kv, 0);
        tessera_close(e);
    }
}

/* The same prompt again, without reading it again: the state before its last token was kept. */
static void test_regenerate(void **state)
{
    (void)state;
    struct err err;
    int32_t ids[N_IDS], first[8], again[8];
    for (int i = 0; i < 3; i++) {
        tessera_engine *e = open_awkward(names[i]);
        tessera_session *s = session(e);
        read_ids(path_of(names[i], "ids"), N_IDS, ids);
        for (int round = 0; round < 3; round++) {
            tessera_generator *g;
            struct tessera_answer a;
            struct tessera_generator_options o = {.sampling = {.repeat_penalty = 1},
                                                  .n_gen_max = 8};
            if (tessera_generator_open(s, ids, 100 + round / 2, &o, &g, &err))
                fail_msg("%s", err.msg);
            for (int k = 0; k < 8; k++) {
                if (tessera_generator_next(g, &a, &err)) fail_msg("%s", err.msg);
                (round ? again : first)[k] = a.id;
            }
            const int reused = tessera_generator_timing(g).n_prompt_reused;
            assert_int_equal(reused, round ? 99 : 0);
            tessera_generator_close(g);
            if (round == 1) assert_memory_equal(first, again, sizeof first);
        }
        tessera_session_close(s);
        tessera_close(e);
    }
}

static void test_save_load(void **state)
{
    (void)state;
    int32_t ids[N_IDS];
    float want[N_VOCAB], got[N_VOCAB];
    char path[128];
    (void)snprintf(path, sizeof path, "%s/saved", dir);
    for (int i = 0; i < 3; i++) {
        struct err err;
        err_clear(&err);
        tessera_engine *e = open_awkward(names[i]);
        tessera_session *s = session(e), *t = session(e);
        read_ids(path_of(names[i], "ids"), N_IDS, ids);
        assert_int_equal(tessera_session_save(s, path, &err), OK); /* an empty timeline */
        feed(t, ids, 9, 9, NULL);
        if (tessera_session_load(t, path, &err)) fail_msg("%s", err.msg);
        assert_int_equal(tessera_session_n(t), 0);
        feed(s, ids, 70, 20, NULL);
        assert_int_equal(tessera_session_save(s, path, &err), OK);
        feed(t, ids + 3, 40, 9, NULL);
        if (tessera_session_load(t, path, &err)) fail_msg("%s", err.msg);
        assert_int_equal(tessera_session_n(t), 70);
        feed(s, ids + 70, 1, 1, want);
        feed(t, ids + 70, 1, 1, got);
        assert_memory_equal(want, got, sizeof want);
        /* What was kept before loading belonged to another timeline. */
        assert_int_equal(tessera_session_rollback(t, (struct tessera_mark){60}, &err), OK);
        assert_int_equal(tessera_session_n(t), 0);
        assert_int_equal(truncate(path, 4096), 0);
        assert_true(tessera_session_load(t, path, &err) != OK);
        tessera_session_close(s);
        tessera_session_close(t);
        tessera_close(e);
    }
}

/* Steps, marks and going back allocate nothing. */
static void test_no_allocation(void **state)
{
    (void)state;
    struct err err;
    int32_t ids[N_IDS];
    read_ids(path_of(names[1], "ids"), N_IDS, ids);
    tessera_engine *e = open_awkward(names[1]);
    tessera_session *s = session(e);
    feed(s, ids, N_IDS, 50, NULL);
    (void)tessera_session_rollback(s, (struct tessera_mark){256}, &err);
    fault_arm(FAULT_ALLOC, 1 << 30);
    for (int i = 0; i < 40; i++) {
        const struct tessera_mark m = tessera_session_mark(s);
        feed(s, ids + 256, 20, 1 + i % 20, NULL);
        assert_int_equal(tessera_session_rollback(s, m, &err), OK);
    }
    const int calls = (1 << 30) - atomic_load(&fault_left);
    (void)fault_disarm();
    assert_int_equal(calls, 0);
    tessera_session_close(s);
    tessera_close(e);
}

/* Everything a session does while the Nth system call fails, for every N. */
static void test_faults(void **state)
{
    (void)state;
    char saved[128];
    int32_t ids[N_IDS];
    read_ids(path_of(names[2], "ids"), N_IDS, ids);
    (void)snprintf(saved, sizeof saved, "%s/fault", dir);
    const long before = fault_living();
    int n = 1;
    for (; n < 100000; n++) {
        struct err err;
        tessera_engine *e;
        tessera_session *s = NULL;
        struct tessera_options o = tessera_defaults();
        o.model_path = path_of(names[2], "gguf");
        o.n_threads = 2;
        o.n_ubatch = 8;
        fault_arm(FAULT_ALL, n);
        enum status st = tessera_open(&o, &e, &err);
        if (!st) st = tessera_session_open(e, 0, &s, &err);
        for (int k = 0; k < 4 && !st; k++) {
            struct tessera_input in = {s, ids + 8 * k, 8, TESSERA_LOGITS_LAST};
            st = tessera_step(e, &in, 1, &err);
            (void)tessera_session_mark(s);
        }
        if (!st) st = tessera_session_rollback(s, (struct tessera_mark){9}, &err);
        if (!st) st = tessera_session_save(s, saved, &err);
        if (!st) st = tessera_session_load(s, saved, &err);
        tessera_session_close(s);
        tessera_close(e);
        const int failed = fault_disarm();
        assert_int_equal(fault_living(), before);
        if (st) assert_true(failed && err.msg[0]);
        if (!failed) break;
    }
    printf("[  NOTE    ] %d calls failed one by one\n", n - 1);
    assert_true(n > 100);
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
        cmocka_unit_test(test_awkward),    cmocka_unit_test(test_shared),
        cmocka_unit_test(test_mutations),  cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_marks),      cmocka_unit_test(test_bounded),
        cmocka_unit_test(test_regenerate), cmocka_unit_test(test_save_load),
        cmocka_unit_test(test_no_allocation), cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
