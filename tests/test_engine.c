/* The engine on tiny random models of every architecture and weight type: fixed arithmetic (any
 * split, batch, thread count, KV type, tier gives the same bits), sessions (mark, roll back, reuse,
 * save, load), limits, errors, and the plan's promises (memory, no allocation on the token path). */
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
#include "tests/fault.h"

enum { N = 90 }; /* past a KV page */

static char dir[64] = "/tmp/tessera-engine-XXXXXX";

static const char *tiny(const char *arch, enum qtype type)
{
    static char path[128];
    struct err e;
    err_clear(&e);
    struct gen_spec g = gen_tiny(arch, type);
    (void)snprintf(path, sizeof path, "%s/%s-%s.gguf", dir, arch, qtype_info(type)->name);
    if (access(path, R_OK) && gen_write(&g, path, NULL, &e)) fail_msg("%s", e.msg);
    return path;
}

static tessera_engine *open_with(struct tessera_options o, const char *tier)
{
    struct err e;
    tessera_engine *engine;
    if (tier) (void)setenv("TESSERA_CPU", tier, 1);
    else (void)unsetenv("TESSERA_CPU");
    if (tessera_open(&o, &engine, &e)) fail_msg("%s", e.msg);
    return engine;
}

static tessera_engine *open_tiny(const char *arch, enum qtype type)
{
    struct tessera_options o = tessera_defaults();
    o.model_path = tiny(arch, type);
    o.n_threads = 2;
    return open_with(o, NULL);
}

static void tokens(int32_t *ids, int n, uint64_t seed)
{
    struct rng r;
    rng_seed(&r, seed);
    for (int i = 0; i < n; i++) ids[i] = (int32_t)rng_below(&r, 96);
}

/* Appends ids in random pieces of at most `most`, beside a random second session when asked, and
 * stores the logits of every position. */
static void feed(tessera_engine *e, tessera_session *s, tessera_session *other, const int32_t *ids,
                 int n, int most, uint64_t seed, float *out)
{
    struct rng r;
    struct err err;
    const size_t nv = (size_t)e->model.n_vocab;
    rng_seed(&r, seed);
    for (int at = 0; at < n;) {
        int take = 1 + (int)rng_below(&r, (uint32_t)most);
        if (take > n - at) take = n - at;
        struct tessera_input in[2] = {{s, ids + at, take, TESSERA_LOGITS_ALL}};
        int n_in = 1;
        if (other && tessera_session_n(other) + 9 < N)
            in[n_in++] = (struct tessera_input){other, ids, 1 + (int)rng_below(&r, 8),
                                                TESSERA_LOGITS_LAST};
        if (tessera_step(e, in, n_in, &err)) fail_msg("%s", err.msg);
        for (int i = 0; out && i < take; i++)
            memcpy(out + (size_t)(at + i) * nv, tessera_logits(e, 0, i), nv * sizeof *out);
        at += take;
    }
}

/* Every tier, thread count, KV type, split and batch: the bits of the first run. */
static void check_bits(const char *arch, enum qtype type)
{
    static const char *const tiers[] = {"ref", "avx2", "avx512"};
    int32_t ids[N];
    float *want = calloc(N * 96, sizeof *want), *got = calloc(N * 96, sizeof *got);
    tokens(ids, N, 7);
    for (int kv = 0; kv < 2; kv++) {
        if (kv && type != QTYPE_Q4_K && type != QTYPE_Q6_K) continue; /* heads of 64 */
        for (int v = 0; v < 12; v++) {
            struct tessera_options o = tessera_defaults();
            o.model_path = tiny(arch, type);
            o.n_threads = v / 3 % 3 + 1;
            o.kv = kv ? TESSERA_KV_Q8_0 : TESSERA_KV_F16;
            o.n_ubatch = v % 2 ? 128 : 33;
            tessera_engine *e = open_with(o, tiers[v % 3]);
            tessera_session *s = session(e), *other = v % 2 ? session(e) : NULL;
            feed(e, s, other, ids, N, v == 0 ? 33 : 1 + v * 2, (uint64_t)v, v ? got : want);
            if (v) assert_memory_equal(want, got, N * 96 * sizeof *want);
            for (int i = 0; i < N * 96; i++) assert_true(isfinite(want[i]));
            tessera_session_close(s);
            tessera_session_close(other);
            tessera_close(e);
        }
    }
    free(want);
    free(got);
}

static const enum qtype types[] = {QTYPE_F32,  QTYPE_F16,  QTYPE_BF16, QTYPE_Q8_0,
                                   QTYPE_Q4_0, QTYPE_Q4_K, QTYPE_Q6_K};

static void test_fixed_arithmetic(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) check_bits("qwen3moe", types[i]);
    check_bits("olmoe", QTYPE_Q8_0);
    check_bits("llama", QTYPE_Q4_K);
}

static void test_timeline(void **state)
{
    (void)state;
    tessera_engine *e = open_tiny("qwen3moe", QTYPE_Q8_0);
    tessera_session *s = session(e), *t = session(e);
    int32_t ids[N], other[N];
    float *want = calloc(N * 96, sizeof *want), *got = calloc(N * 96, sizeof *got);
    struct err err;
    tokens(ids, N, 1);
    tokens(other, N, 2);
    feed(e, s, NULL, ids, N, 20, 1, want);
    /* Go another way from the middle, come back, and say the same as before. */
    feed(e, t, NULL, ids, 40, 20, 2, NULL);
    struct tessera_mark m = tessera_session_mark(t);
    feed(e, t, NULL, other, 45, 9, 3, NULL);
    assert_int_equal(tessera_session_rollback(t, m, &err), OK);
    assert_int_equal(tessera_session_n(t), 40);
    feed(e, t, NULL, ids + 40, N - 40, 11, 4, got + 40 * 96);
    assert_memory_equal(want + 40 * 96, got + 40 * 96, (N - 40) * 96 * sizeof *want);
    err_clear(&err);
    assert_int_equal(tessera_session_rollback(t, (struct tessera_mark){N + 1}, &err), ERR_RANGE);
    /* The shared prefix is kept, but never the last token. */
    memcpy(other, ids, 10 * sizeof *ids);
    other[10] = (ids[10] + 1) % 96;
    assert_int_equal(tessera_session_reuse(t, other, 20), 10);
    assert_int_equal(tessera_session_reuse(t, ids, 10), 9);
    assert_memory_equal(tessera_session_ids(t), ids, 9 * sizeof *ids);
    free(want);
    free(got);
    tessera_session_close(s);
    tessera_session_close(t);
    tessera_close(e);
}

static void test_save_load(void **state)
{
    (void)state;
    tessera_engine *e = open_tiny("qwen3moe", QTYPE_Q8_0);
    tessera_session *s = session(e), *t = session(e);
    int32_t ids[N];
    float want[96], got[96];
    char path[128], none[160];
    struct err err;
    err_clear(&err);
    (void)snprintf(path, sizeof path, "%s/saved", dir);
    tokens(ids, N, 3);
    feed(e, s, NULL, ids, 70, 20, 1, NULL);
    assert_int_equal(tessera_session_save(s, path, &err), OK);
    feed(e, s, NULL, ids + 70, 1, 1, 1, want);
    assert_int_equal(tessera_session_load(t, path, &err), OK);
    assert_int_equal(tessera_session_n(t), 70);
    assert_memory_equal(tessera_session_ids(t), ids, 70 * sizeof *ids);
    feed(e, t, NULL, ids + 70, 1, 1, 1, got);
    assert_memory_equal(want, got, sizeof want);
    /* Another model refuses it and keeps its own timeline. */
    tessera_engine *f = open_tiny("qwen3moe", QTYPE_F16);
    tessera_session *u = session(f);
    feed(f, u, NULL, ids, 5, 5, 1, NULL);
    assert_int_equal(tessera_session_load(u, path, &err), ERR_SHAPE);
    assert_int_equal(tessera_session_n(u), 5);
    err_clear(&err);
    assert_int_equal(tessera_session_load(t, tiny("olmoe", QTYPE_F16), &err), ERR_FORMAT);
    err_clear(&err);
    (void)snprintf(none, sizeof none, "%s/no/such/folder", dir);
    assert_int_equal(tessera_session_save(t, none, &err), ERR_IO);
    tessera_session_close(s);
    tessera_session_close(t);
    tessera_session_close(u);
    tessera_close(e);
    tessera_close(f);
}

static void test_limits(void **state)
{
    (void)state;
    struct err err;
    tessera_engine *e = open_tiny("qwen3moe", QTYPE_F32);
    tessera_session *s;
    int32_t ids[N];
    tokens(ids, N, 4);
    assert_int_equal(tessera_session_open(e, 40, &s, &err), OK);
    struct tessera_input in = {s, ids, 41, TESSERA_LOGITS_LAST};
    assert_int_equal(tessera_step(e, &in, 1, &err), ERR_FULL);
    assert_int_equal(tessera_session_n(s), 0);
    in.n = 40;
    assert_int_equal(tessera_step(e, &in, 1, &err), OK);
    in.n = 1;
    assert_int_equal(tessera_step(e, &in, 1, &err), ERR_FULL);
    (void)tessera_session_rollback(s, (struct tessera_mark){0}, &err);
    ids[2] = 96;
    in.n = 5;
    assert_int_equal(tessera_step(e, &in, 1, &err), ERR_RANGE);
    ids[2] = -1;
    assert_int_equal(tessera_step(e, &in, 1, &err), ERR_RANGE);
    in.n = 0;
    assert_int_equal(tessera_step(e, &in, 1, &err), ERR_RANGE);
    ids[2] = 0;
    struct tessera_input twice[2] = {{s, ids, 1, TESSERA_LOGITS_LAST}, {s, ids, 1, TESSERA_LOGITS_LAST}};
    assert_int_equal(tessera_step(e, twice, 2, &err), ERR_USAGE);
    assert_null(tessera_logits(e, 0, 0));
    /* A cancelled step leaves the timeline as it was; the next one runs. */
    in.n = 5;
    tessera_cancel(e);
    assert_int_equal(tessera_step(e, &in, 1, &err), ERR_CANCELLED);
    assert_int_equal(tessera_session_n(s), 0);
    assert_int_equal(tessera_step(e, &in, 1, &err), OK);
    assert_non_null(tessera_logits(e, 0, 4));
    assert_null(tessera_logits(e, 0, 3));
    assert_null(tessera_logits(e, 1, 0));
    tessera_session_close(s);
    tessera_close(e);
}

static void test_budget(void **state)
{
    (void)state;
    struct err err;
    tessera_engine *e;
    struct tessera_options o = tessera_defaults();
    o.model_path = tiny("qwen3moe", QTYPE_F16);
    o.mem_budget = 1 << 20;
    assert_int_equal(tessera_open(&o, &e, &err), ERR_BUDGET);
    assert_null(e);
    /* The number in the message is one that works. */
    const char *at = strstr(err.msg, "--mem ");
    assert_non_null(at);
    o.mem_budget = strtoull(at + 6, NULL, 10) << 20;
    assert_int_equal(tessera_open(&o, &e, &err), OK);
    struct tessera_memory m = tessera_memory(e);
    assert_true(m.peak <= o.mem_budget);
    assert_true(m.weights >= e->resid.parts.bytes && m.staging == 0);
    tessera_close(e);
    o.mem_budget -= 1 << 20;
    assert_int_equal(tessera_open(&o, &e, &err), ERR_BUDGET);
    o.mem_budget = 0;
    o.n_ctx = 100000;
    assert_int_equal(tessera_open(&o, &e, &err), ERR_RANGE);
    o.n_ctx = 0;
    o.n_threads = -1;
    assert_int_equal(tessera_open(&o, &e, &err), ERR_USAGE);
    o.n_threads = 1;
    o.header_only = true;
    assert_int_equal(tessera_open(&o, &e, &err), OK);
    tessera_session *s = session(e);
    int32_t id = 1;
    struct tessera_input in = {s, &id, 1, TESSERA_LOGITS_LAST};
    assert_int_equal(tessera_step(e, &in, 1, &err), ERR_USAGE);
    tessera_session_close(s);
    tessera_close(e);
}

/* Steps after the first allocate nothing: not one heap block. */
static void test_no_allocation(void **state)
{
    (void)state;
    struct err err;
    tessera_engine *e = open_tiny("qwen3moe", QTYPE_Q4_K);
    tessera_session *s = session(e);
    int32_t ids[N];
    tokens(ids, N, 5);
    struct tessera_input in = {s, ids, 40, TESSERA_LOGITS_ALL};
    assert_int_equal(tessera_step(e, &in, 1, &err), OK);
    fault_arm(FAULT_ALLOC, 1 << 30);
    for (int i = 0; i < 50; i++) {
        in = (struct tessera_input){s, ids + i % N, 1, TESSERA_LOGITS_LAST};
        assert_int_equal(tessera_step(e, &in, 1, &err), OK);
    }
    const int calls = (1 << 30) - atomic_load(&fault_left);
    (void)fault_disarm();
    assert_int_equal(calls, 0);
    tessera_session_close(s);
    tessera_close(e);
}

/* Opening, one step, saving and closing while the Nth system call fails, for every N. */
static void test_faults(void **state)
{
    (void)state;
    const char *path = tiny("qwen3moe", QTYPE_F16);
    char saved[128], aside[160];
    (void)snprintf(saved, sizeof saved, "%s/fault", dir);
    (void)snprintf(aside, sizeof aside, "%s.part", saved);
    const long before = fault_living();
    int n = 1;
    for (; n < 100000; n++) {
        struct err err;
        tessera_engine *e;
        tessera_session *s = NULL;
        struct tessera_options o = tessera_defaults();
        o.model_path = path;
        o.n_threads = 2;
        o.n_ubatch = 8;
        (void)unlink(saved);
        fault_arm(FAULT_ALL, n);
        enum status st = tessera_open(&o, &e, &err);
        if (!st) st = tessera_session_open(e, 0, &s, &err);
        if (!st) {
            int32_t ids[3] = {1, 2, 3};
            struct tessera_input in = {s, ids, 3, TESSERA_LOGITS_LAST};
            st = tessera_step(e, &in, 1, &err);
        }
        if (!st) st = tessera_session_save(s, saved, &err);
        tessera_session_close(s);
        tessera_close(e);
        const int failed = fault_disarm();
        assert_int_equal(fault_living(), before);
        assert_true(access(aside, F_OK) != 0);
        if (st) {
            assert_true(failed);
            assert_true(err.msg[0]);
            assert_true(access(saved, F_OK) != 0);
        }
        if (!failed) break;
    }
    printf("[  NOTE    ] %d calls failed one by one\n", n - 1);
    assert_true(n > 100);
}

static void test_explain(void **state)
{
    (void)state;
    struct err err;
    tessera_engine *e = open_tiny("qwen3moe", QTYPE_F16);
    for (int json = 0; json < 2; json++) {
        char *text = NULL;
        size_t n = 0;
        FILE *f = open_memstream(&text, &n);
        assert_int_equal(tessera_explain(e, f, json, &err), OK);
        (void)fclose(f);
        assert_non_null(strstr(text, "attention"));
        free(text);
    }
    /* No two buffers that are alive together share a byte. */
    for (int k = 0; k < e->n_plans; k++) {
        const struct plan *p = &e->plan[k];
        for (int i = 1; i < e->model.n_buf; i++)
            for (int j = i + 1; j < e->model.n_buf; j++) {
                const struct buf *a = &e->model.buf[i], *b = &e->model.buf[j];
                if (a->kind == BUF_LOGITS || b->kind == BUF_LOGITS) continue;
                const int together = a->first <= b->last && b->first <= a->last;
                const int apart = p->offset[i] + p->bytes[i] <= p->offset[j] ||
                                  p->offset[j] + p->bytes[j] <= p->offset[i];
                assert_true(!together || apart);
            }
    }
    tessera_close(e);
}

struct looked {
    int n;
    uint64_t sum; /* of what was seen, to compare with the ring */
};

static uint64_t obs_hash(const struct obs *o)
{
    uint64_t h = (uint64_t)(o->pos * 31 + o->layer * 7 + o->token);
    for (int k = 0; k < o->n_used; k++) {
        uint32_t w;
        memcpy(&w, &o->weight[k], sizeof w);
        h = h * 1000003u + (uint64_t)o->expert[k] * 97u + w;
    }
    return h;
}

static void look(void *arg, const struct obs *o)
{
    struct looked *l = arg;
    l->n++;
    l->sum += obs_hash(o);
}

/* What the router chose is observed, in order, once per layer and row, weights included; who looks
 * on sees the same records while the step runs. */
static void test_observations(void **state)
{
    (void)state;
    tessera_engine *e = open_tiny("qwen3moe", QTYPE_F16);
    tessera_session *s = session(e);
    struct looked looked = {0};
    uint64_t sum = 0;
    int32_t ids[N];
    tokens(ids, 10, 6);
    tessera_observe(e, look, &looked);
    feed(e, s, NULL, ids, 10, 1, 1, NULL);
    tessera_observe(e, NULL, NULL);
    feed(e, s, NULL, ids, 1, 1, 1, NULL);
    struct obs o;
    assert_int_equal(looked.n, 10 * 2);
    for (uint64_t i = 0; i < 20; i++) {
        assert_true(obs_get(&e->obs, i, &o));
        sum += obs_hash(&o);
        assert_true(o.weight[0] >= o.weight[1] && o.weight[1] > 0);
        assert_true(fabsf(o.weight[0] + o.weight[1] - 1) < 1e-5f);
    }
    assert_true(sum == looked.sum);
    tessera_session_close(s);
    s = session(e);
    e->obs.n_written = 0;
    feed(e, s, NULL, ids, 10, 1, 1, NULL);
    assert_int_equal(e->obs.n_written, 10 * 2);
    for (uint64_t i = 0; i < e->obs.n_written; i++) {
        assert_true(obs_get(&e->obs, i, &o));
        assert_int_equal(o.pos, i / 2);
        assert_int_equal(o.layer, i % 2);
        assert_int_equal(o.token, ids[i / 2]);
        assert_true(o.expert[0] != o.expert[1] && o.expert[0] >= 0 && o.expert[0] < 8);
    }
    tessera_session_close(s);
    tessera_close(e);
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
        cmocka_unit_test(test_fixed_arithmetic), cmocka_unit_test(test_timeline),
        cmocka_unit_test(test_save_load),        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_budget),           cmocka_unit_test(test_no_allocation),
        cmocka_unit_test(test_faults),           cmocka_unit_test(test_explain),
        cmocka_unit_test(test_observations),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
