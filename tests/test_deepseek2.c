/* deepseek2: two awkward models against llama.cpp's logits (tests/awkward/gen_deepseek2.py), the
 * same bits in every split, tier, thread count and batch, and with the weights on disk, mutations
 * that must break the bound, and keys that must be refused.  Writes to a folder of its own in
 * /tmp. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "bench/gen.h"
#include "moe/base/f16.h"
#include "moe/base/rng.h"
#include "moe/run/engine_int.h"
#include "tests/metric.h"
#include "tests/shared.h"

enum { N_IDS = 300, N_POS = 16, N_VOCAB = 64 };

static char dir[64] = "/tmp/tessera-deepseek2-XXXXXX";

/* The positions whose logits are in the fixture. */
static int position(int i) { return i * (N_IDS - 1) / (N_POS - 1); }

static void read_ids(const char *name, int32_t *ids)
{
    char path[160];
    (void)snprintf(path, sizeof path, "tests/awkward/%s.ids", name);
    assert_true(shared_ids(path, N_IDS, ids));
}

static tessera_engine *open_kv(const char *path, int n_threads, const char *tier,
                               enum tessera_kv kv)
{
    struct err e;
    tessera_engine *engine;
    struct tessera_options o = tessera_defaults();
    o.model_path = path;
    o.n_threads = n_threads;
    o.kv = kv;
    (void)setenv("TESSERA_CPU", tier, 1);
    if (tessera_open(&o, &engine, &e)) fail_msg("%s", e.msg);
    (void)unsetenv("TESSERA_CPU");
    return engine;
}

static tessera_engine *open_model(const char *path, int n_threads, const char *tier)
{
    return open_kv(path, n_threads, tier, TESSERA_KV_F16);
}

/* Logits of the first n positions, fed in pieces, optionally beside another session. */
static void run(tessera_engine *e, const int32_t *ids, int n, int piece, int beside, float *out)
{
    struct err err;
    tessera_session *s, *other = NULL;
    if (tessera_session_open(e, 0, &s, &err)) fail_msg("%s", err.msg);
    if (beside && tessera_session_open(e, 0, &other, &err)) fail_msg("%s", err.msg);
    for (int at = 0; at < n; at += piece) {
        const int m = n - at < piece ? n - at : piece;
        struct tessera_input in[2] = {{s, ids + at, m, TESSERA_LOGITS_ALL},
                                      {other, ids + 9, 3, TESSERA_LOGITS_LAST}};
        const int n_in = beside && tessera_session_n(other) + 3 <= N_IDS ? 2 : 1;
        if (tessera_step(e, in, n_in, &err)) fail_msg("%s", err.msg);
        for (int r = 0; r < m; r++)
            memcpy(out + (size_t)(at + r) * N_VOCAB, tessera_logits(e, 0, r),
                   N_VOCAB * sizeof *out);
    }
    tessera_session_close(s);
    tessera_session_close(other);
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Error against the fixture, per position: median and 95 %. */
struct nmse {
    double median, p95;
};

static struct nmse distance(const char *name, const float *got)
{
    char path[160];
    size_t n = 0;
    (void)snprintf(path, sizeof path, "tests/awkward/%s.logits.f32", name);
    float *ref = (float *)(void *)shared_slurp(path, &n);
    assert_non_null(ref);
    assert_int_equal(n, sizeof(float) * N_POS * N_VOCAB);
    double at[N_POS];
    for (int i = 0; i < N_POS; i++)
        at[i] = metric_nmse(got + position(i) * N_VOCAB, ref + i * N_VOCAB, N_VOCAB);
    free(ref);
    qsort(at, N_POS, sizeof *at, by_value);
    return (struct nmse){at[N_POS / 2], at[N_POS * 95 / 100]};
}

static bool within(struct nmse d) { return d.median <= 5e-6 && d.p95 <= 1e-4; }

static const char *model_path(const char *name)
{
    static char path[160];
    (void)snprintf(path, sizeof path, "tests/awkward/%s.gguf", name);
    return path;
}

/* ---- the reference, and the same bits however it is run ---- */

static void check_awkward(const char *name)
{
    static const struct {
        const char *tier;
        int threads, piece, beside, n;
    } how[] = {
        {"", 2, N_IDS, 0, N_IDS}, {"", 1, 7, 0, N_IDS},    {"", 3, 1, 1, N_IDS},
        {"", 2, 64, 1, N_IDS},    {"avx2", 2, 7, 0, N_IDS}, {"ref", 2, 31, 0, 96},
    };
    int32_t ids[N_IDS];
    read_ids(name, ids);
    float *first = calloc(N_IDS * N_VOCAB, sizeof *first);
    float *again = calloc(N_IDS * N_VOCAB, sizeof *again);
    for (size_t i = 0; i < sizeof how / sizeof *how; i++) {
        tessera_engine *e = open_model(model_path(name), how[i].threads, how[i].tier);
        run(e, ids, how[i].n, how[i].piece, how[i].beside, i ? again : first);
        tessera_close(e);
        if (i) assert_memory_equal(first, again, (size_t)how[i].n * N_VOCAB * sizeof *first);
    }
    const struct nmse d = distance(name, first);
    printf("[  NOTE    ] %s: nmse per position: median %.1e, 95 %% %.1e\n", name, d.median, d.p95);
    assert_true(within(d));
    free(first);
    free(again);
}

static void test_v3(void **state) { (void)state; check_awkward("deepseek2-v3"); }
static void test_lite(void **state) { (void)state; check_awkward("deepseek2-lite"); }

/* Latent heads of 576 and 512 values, as all real models have them, in a Q8_0 cache. */
static void test_q8_cache(void **state)
{
    (void)state;
    enum { N = 128 };
    char path[512];
    if (!shared_file(path, sizeof path, "reference/architectures/deepseek2-moe.gguf")) return;
    struct err e;
    int32_t ids[N];
    for (int i = 0; i < N; i++) ids[i] = (i * 37 + 11) % N;
    float *logits[3];
    for (int v = 0; v < 3; v++) {
        struct tessera_session *s;
        logits[v] = calloc(N, sizeof(float));
        tessera_engine *m = open_kv(path, 2, v == 1 ? "avx2" : "",
                                    v < 2 ? TESSERA_KV_Q8_0 : TESSERA_KV_F16);
        if (tessera_session_open(m, 0, &s, &e)) fail_msg("%s", e.msg);
        for (int at = 0, n; at < N; at += n) {
            n = v == 1 ? (N - at < 7 ? N - at : 7) : N;
            const struct tessera_input in = {s, ids + at, n, TESSERA_LOGITS_LAST};
            if (tessera_step(m, &in, 1, &e)) fail_msg("%s", e.msg);
            memcpy(logits[v], tessera_logits(m, 0, n - 1), N * sizeof(float));
        }
        tessera_session_close(s);
        tessera_close(m);
    }
    assert_memory_equal(logits[0], logits[1], N * sizeof(float));
    const double d = metric_nmse(logits[0], logits[2], N);
    printf("[  NOTE    ] q8_0 cache against f16: nmse %.1e\n", d);
    assert_true(d > 0 && d < 1e-3);
    for (int v = 0; v < 3; v++) free(logits[v]);
}

/* Many query heads on one KV head are divided between threads: the same bits as undivided. */
static void test_heads_divided(void **state)
{
    (void)state;
    enum { N = 40 };
    char path[128];
    int32_t ids[N];
    struct err e;
    err_clear(&e);
    struct gen_spec g = gen_tiny("llama", QTYPE_F16);
    g.n_head = 20;
    g.n_head_kv = 1;
    g.n_vocab = N_VOCAB;
    (void)snprintf(path, sizeof path, "%s/heads.gguf", dir);
    if (gen_write(&g, path, NULL, &e)) fail_msg("%s", e.msg);
    for (int i = 0; i < N; i++) ids[i] = (i * 13 + 5) % N_VOCAB;
    float *one = calloc(N * N_VOCAB, sizeof *one), *many = calloc(N * N_VOCAB, sizeof *many);
    for (int threads = 1; threads < 6; threads++) {
        tessera_engine *m = open_model(path, threads, "");
        run(m, ids, N, threads == 1 ? N : 5, 0, threads == 1 ? one : many);
        tessera_close(m);
        if (threads > 1) assert_memory_equal(one, many, N * N_VOCAB * sizeof *one);
    }
    (void)unlink(path);
    free(one);
    free(many);
}

/* ---- heads' matrices that stream ---- */

/* Wide enough that the matrices of heads stream in pieces that begin and end inside of heads: 12
 * heads of 384 x 128 (K) and 80 x 384 (V) in F16, pieces of 512 KiB. */
enum { EMBD = 64, HEADS = 12, RANK = 384, NOPE = 128, ROT = 32, V_DIM = 80, FF = 64, EXPERTS = 4 };

static const struct wide_tensor {
    const char *name;
    int f32, n_dims;
    uint64_t dim[3];
} wide_tensors[] = {
    {"token_embd.weight", 0, 2, {EMBD, N_VOCAB}},
    {"output_norm.weight", 1, 1, {EMBD}},
    {"output.weight", 0, 2, {EMBD, N_VOCAB}},
    {"blk.%d.attn_norm.weight", 1, 1, {EMBD}},
    {"blk.%d.attn_q.weight", 0, 2, {EMBD, HEADS * (NOPE + ROT)}},
    {"blk.%d.attn_kv_a_mqa.weight", 0, 2, {EMBD, RANK + ROT}},
    {"blk.%d.attn_kv_a_norm.weight", 1, 1, {RANK}},
    {"blk.%d.attn_k_b.weight", 0, 3, {NOPE, RANK, HEADS}},
    {"blk.%d.attn_v_b.weight", 0, 3, {RANK, V_DIM, HEADS}},
    {"blk.%d.attn_output.weight", 0, 2, {HEADS * V_DIM, EMBD}},
    {"blk.%d.ffn_norm.weight", 1, 1, {EMBD}},
    {"blk.%d.ffn_gate_inp.weight", 1, 2, {EMBD, EXPERTS}},
    {"blk.%d.ffn_gate_exps.weight", 0, 3, {EMBD, FF, EXPERTS}},
    {"blk.%d.ffn_up_exps.weight", 0, 3, {EMBD, FF, EXPERTS}},
    {"blk.%d.ffn_down_exps.weight", 0, 3, {FF, EMBD, EXPERTS}},
    {"blk.%d.ffn_gate_shexp.weight", 0, 2, {EMBD, FF}},
    {"blk.%d.ffn_up_shexp.weight", 0, 2, {EMBD, FF}},
    {"blk.%d.ffn_down_shexp.weight", 0, 2, {FF, EMBD}},
};
enum { N_WIDE = sizeof wide_tensors / sizeof *wide_tensors, N_ENDS = 3, N_LAYERS = 2 };

/* The i-th tensor of the file; n values. */
static const struct wide_tensor *wide_at(int i, char *name, uint64_t *n)
{
    const int per = N_WIDE - N_ENDS, in = i < N_ENDS ? i : N_ENDS + (i - N_ENDS) % per;
    const struct wide_tensor *t = &wide_tensors[in];
    (void)snprintf(name, 64, t->name, i < N_ENDS ? 0 : (i - N_ENDS) / per);
    *n = 1;
    for (int d = 0; d < t->n_dims; d++) *n *= t->dim[d];
    return t;
}

static void write_wide(const char *path)
{
    static const struct { const char *key; uint32_t value; } ints[] = {
        {"vocab_size", N_VOCAB}, {"context_length", 512}, {"embedding_length", EMBD},
        {"block_count", N_LAYERS}, {"leading_dense_block_count", 0}, {"feed_forward_length", FF},
        {"expert_feed_forward_length", FF}, {"expert_count", EXPERTS}, {"expert_used_count", 2},
        {"expert_shared_count", 1}, {"attention.head_count", HEADS},
        {"attention.head_count_kv", 1}, {"attention.q_lora_rank", 0},
        {"attention.kv_lora_rank", RANK}, {"rope.dimension_count", ROT},
        {"attention.key_length", RANK + ROT}, {"attention.value_length", RANK},
        {"attention.key_length_mla", NOPE + ROT}, {"attention.value_length_mla", V_DIM},
    };
    const int n_tensors = N_ENDS + N_LAYERS * (N_WIDE - N_ENDS);
    char name[64];
    uint64_t n, most = 0;
    struct err e;
    struct gguf_writer *w = gguf_writer_new();
    gguf_put_str(w, "general.architecture", "deepseek2");
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
        char key[96];
        (void)snprintf(key, sizeof key, "deepseek2.%s", ints[i].key);
        gguf_put_u32(w, key, ints[i].value);
    }
    gguf_put_f32(w, "deepseek2.attention.layer_norm_rms_epsilon", 1e-6f);
    gguf_put_f32(w, "deepseek2.rope.freq_base", 10000.0f);
    for (int i = 0; i < n_tensors; i++) {
        const struct wide_tensor *t = wide_at(i, name, &n);
        gguf_put_tensor(w, name, t->f32 ? QTYPE_F32 : QTYPE_F16, t->n_dims, t->dim,
                        n * (t->f32 ? 4 : 2));
        most = n > most ? n : most;
    }
    if (gguf_writer_begin(w, path, &e)) fail_msg("%s", e.msg);
    float *f = calloc(most, sizeof *f);
    uint16_t *h = calloc(most, sizeof *h);
    struct rng r;
    rng_seed(&r, 77);
    for (int i = 0; i < n_tensors; i++) {
        const struct wide_tensor *t = wide_at(i, name, &n);
        const float scale = t->n_dims == 1 ? 0.1f : 1.7f / sqrtf((float)t->dim[0]);
        for (uint64_t k = 0; k < n; k++) {
            f[k] = scale * ((float)rng_below(&r, 2001) / 1000.0f - 1) + (t->n_dims == 1 ? 1 : 0);
            h[k] = f16_from_f32(f[k]);
        }
        if (gguf_writer_data(w, t->f32 ? (const void *)f : h, n * (t->f32 ? 4 : 2), &e))
            fail_msg("%s", e.msg);
    }
    if (gguf_writer_end(w, &e)) fail_msg("%s", e.msg);
    gguf_writer_close(w);
    free(f);
    free(h);
}

/* With next to nothing in memory: the same bits as with everything. */
static void test_heads_stream(void **state)
{
    (void)state;
    enum { N = 40 };
    char path[128];
    int32_t ids[N];
    struct err err;
    (void)snprintf(path, sizeof path, "%s/wide.gguf", dir);
    write_wide(path);
    for (int i = 0; i < N; i++) ids[i] = (i * 29 + 3) % N_VOCAB;
    float *all = calloc(N * N_VOCAB, sizeof *all), *least = calloc(N * N_VOCAB, sizeof *least);
    tessera_engine *e = open_model(path, 2, "");
    run(e, ids, N, N, 0, all);
    for (int piece = 1; piece <= N; piece += 13) {
        const struct placement none = place_least(&e->resid.sizes);
        if (resid_apply(&e->resid, &none, NULL, NULL, &err)) fail_msg("%s", err.msg);
        assert_false(e->resid.now.dense_home);
        const uint64_t before = e->resid.count.pieces_read;
        run(e, ids, N, piece, piece > 20, least);
        assert_memory_equal(all, least, N * N_VOCAB * sizeof *all);
        assert_true(e->resid.count.pieces_read > before);
    }
    int n_heads_pieces = 0; /* of attn_k_b and attn_v_b, in one layer: 3 and 2 */
    for (int i = 0; i < e->model.n_op; i++) {
        if (e->model.op[i].code != OP_HEAD_MATMUL || e->model.op[i].layer) continue;
        const int w = e->model.op[i].weight[0], rows = e->weights.at[w].n_rows;
        for (int g = e->resid.piece_of[w], at = 0; at < rows; g++, n_heads_pieces++)
            at += e->resid.group[g].n_rows;
    }
    assert_int_equal(n_heads_pieces, 5);
    tessera_close(e);
    (void)unlink(path);
    free(all);
    free(least);
}

/* ---- mutations ---- */

struct mutation {
    const char *what;
    const char *key;       /* set to this value, an integer or a float */
    int as_int;
    float as_float;
    const char *zero;      /* tensors whose name holds this become zeros */
    const char *swap[2];   /* tensors whose names hold these give each other their values */
};

static bool holds(struct gguf_str name, const char *part)
{
    char text[128];
    (void)snprintf(text, sizeof text, "%.*s", (int)name.n, name.s);
    return part && strstr(text, part);
}

/* The tensor whose values go where t's were. */
static const struct gguf_tensor *values_of(const struct gguf *g, const struct gguf_tensor *t,
                                           const struct mutation *m)
{
    for (int k = 0; k < 2; k++) {
        char name[128];
        if (!m->swap[k] || !holds(t->name, m->swap[k])) continue;
        (void)snprintf(name, sizeof name, "%.*s", (int)t->name.n, t->name.s);
        char *at = strstr(name, m->swap[k]), tail[64];
        (void)snprintf(tail, sizeof tail, "%s", at + strlen(m->swap[k]));
        (void)snprintf(at, sizeof name - (size_t)(at - name), "%s%s", m->swap[!k], tail);
        return gguf_find_tensor(g, name);
    }
    return t;
}

static void put_key(struct gguf_writer *w, const struct mutation *m)
{
    char key[96];
    if (!m->key) return;
    (void)snprintf(key, sizeof key, "deepseek2.%s", m->key);
    if (m->as_float != 0) gguf_put_f32(w, key, m->as_float);
    else gguf_put_u32(w, key, (uint32_t)m->as_int);
}

/* Copies a model with one thing changed. */
static void mutate(const char *from, const char *to, const struct mutation *m)
{
    struct err e;
    struct gguf *g;
    size_t n = 0;
    char *file = shared_slurp(from, &n);
    assert_non_null(file);
    if (gguf_open(from, NULL, &g, &e)) fail_msg("%s", e.msg);
    struct gguf_writer *w = gguf_writer_new();
    for (uint64_t i = 0; i < gguf_n_kv(g); i++) {
        const struct gguf_kv *kv = gguf_kv_at(g, i);
        if (!m->key || kv->key.n != strlen(m->key) + 10 || !holds(kv->key, m->key))
            gguf_put_kv(w, kv);
    }
    put_key(w, m);
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        char name[128];
        (void)snprintf(name, sizeof name, "%.*s", (int)t->name.n, t->name.s);
        gguf_put_tensor(w, name, t->type, t->n_dims, t->dim, t->bytes);
    }
    if (gguf_writer_begin(w, to, &e)) fail_msg("%s", e.msg);
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = values_of(g, gguf_tensor_at(g, i), m);
        assert_non_null(t);
        if (holds(t->name, m->zero)) memset(file + t->offset, 0, (size_t)t->bytes);
        if (gguf_writer_data(w, file + t->offset, t->bytes, &e)) fail_msg("%s", e.msg);
    }
    if (gguf_writer_end(w, &e)) fail_msg("%s", e.msg);
    gguf_writer_close(w);
    gguf_close(g);
    free(file);
}

static void check_mutation(const char *name, const struct mutation *m, bool breaks)
{
    char path[128];
    int32_t ids[N_IDS];
    float *got = calloc(N_IDS * N_VOCAB, sizeof *got);
    (void)snprintf(path, sizeof path, "%s/mutant.gguf", dir);
    mutate(model_path(name), path, m);
    read_ids(name, ids);
    tessera_engine *e = open_model(path, 2, "");
    run(e, ids, N_IDS, N_IDS, 0, got);
    tessera_close(e);
    const struct nmse d = distance(name, got);
    printf("[  NOTE    ] %s, %s: median %.1e, 95 %% %.1e\n", name, m->what, d.median, d.p95);
    assert_true(within(d) == !breaks);
    (void)unlink(path);
    free(got);
}

static void test_mutations(void **state)
{
    (void)state;
    static const struct mutation v3[] = {
        {"rope base 9000", "rope.freq_base", 0, 9000.0f, NULL, {0}},
        {"no shared expert", NULL, 0, 0, "ffn_down_shexp", {0}},
        {"gate and up swapped", NULL, 0, 0, NULL, {"ffn_gate_exps", "ffn_up_exps"}},
        {"no bias for choosing", NULL, 0, 0, "exp_probs_b", {0}},
        {"mscale ignored", "rope.scaling.yarn_log_multiplier", 0, 1e-30f, NULL, {0}},
        {"YaRN ignored", "rope.scaling.factor", 0, 1.0f, NULL, {0}},
        {"original context 640", "rope.scaling.original_context_length", 640, 0, NULL, {0}},
        {"groups ignored", "expert_group_count", 1, 0, NULL, {0}},
        {"3 of 4 groups", "expert_group_used_count", 3, 0, NULL, {0}},
        {"softmax for sigmoid", "expert_gating_func", 1, 0, NULL, {0}},
        {"weights not scaled", "expert_weights_scale", 0, 1.0f, NULL, {0}},
        {"one expert fewer", "expert_used_count", 2, 0, NULL, {0}},
        {"last layer skipped", "nextn_predict_layers", 1, 0, NULL, {0}},
    };
    static const struct mutation lite[] = {
        {"rope base 4500", "rope.freq_base", 0, 4500.0f, NULL, {0}},
        {"no shared expert", NULL, 0, 0, "ffn_down_shexp", {0}},
        {"sigmoid for softmax", "expert_gating_func", 2, 0, NULL, {0}},
        {"mscale ignored", "rope.scaling.yarn_log_multiplier", 0, 1e-30f, NULL, {0}},
        {"weights scaled", "expert_weights_scale", 0, 1.2f, NULL, {0}},
    };
    static const struct mutation none = {"unchanged", NULL, 0, 0, NULL, {0}};
    check_mutation("deepseek2-v3", &none, false);
    check_mutation("deepseek2-lite", &none, false);
    for (size_t i = 0; i < sizeof v3 / sizeof *v3; i++)
        check_mutation("deepseek2-v3", &v3[i], true);
    for (size_t i = 0; i < sizeof lite / sizeof *lite; i++)
        check_mutation("deepseek2-lite", &lite[i], true);
}

/* ---- keys that must be refused, by name ---- */

static void test_refused(void **state)
{
    (void)state;
    static const struct mutation bad[] = {
        {"kv_lora_rank", "attention.kv_lora_rank", 0, 0, NULL, {0}},
        {"kv_lora_rank", "attention.kv_lora_rank", 1 << 20, 0, NULL, {0}},
        {"attn_kv_a_mqa", "attention.kv_lora_rank", 48, 0, NULL, {0}},
        {"rope.dimension_count", "rope.dimension_count", 11, 0, NULL, {0}},
        {"rope.dimension_count", "rope.dimension_count", 64, 0, NULL, {0}},
        {"attn_q_a", "attention.q_lora_rank", 16, 0, NULL, {0}},
        {"attn_q", "attention.head_count", 5, 0, NULL, {0}},
        {"head_count", "attention.head_count", 0, 0, NULL, {0}},
        {"head_count", "attention.head_count", 1 << 23, 0, NULL, {0}},
        {"block_count", "block_count", 0, 0, NULL, {0}},
        {"attn_norm", "block_count", 4, 0, NULL, {0}},
        {"blk.2", "block_count", 2, 0, NULL, {0}},
        {"ffn_gate.", "leading_dense_block_count", 2, 0, NULL, {0}},
        {"expert_group_count", "expert_group_count", 3, 0, NULL, {0}},
        {"expert_group_used_count", "expert_group_used_count", 5, 0, NULL, {0}},
        {"expert_used_count", "expert_used_count", 5, 0, NULL, {0}},
        {"expert_used_count", "expert_used_count", 65, 0, NULL, {0}},
        {"expert_gating_func", "expert_gating_func", 4, 0, NULL, {0}},
        {"expert_feed_forward_length", "expert_feed_forward_length", 0, 0, NULL, {0}},
        {"ffn_gate_shexp", "expert_shared_count", 3, 0, NULL, {0}},
        {"shexp", "expert_shared_count", 0, 0, NULL, {0}},
        {"feed_forward_length", "feed_forward_length", 0, 0, NULL, {0}},
        {"rope.scaling.factor", "rope.scaling.factor", 0, 0.5f, NULL, {0}},
        {"rope.freq_base", "rope.freq_base", 0, INFINITY, NULL, {0}},
        {"freq_base", "rope.freq_base", 0, -2.0f, NULL, {0}},
        {"temperature_scale", "attention.temperature_scale", 0, 0.1f, NULL, {0}},
        {"nextn_predict_layers", "nextn_predict_layers", 3, 0, NULL, {0}},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char path[128];
        struct err e;
        tessera_engine *engine;
        struct tessera_options o = tessera_defaults();
        (void)snprintf(path, sizeof path, "%s/bad.gguf", dir);
        mutate(model_path("deepseek2-v3"), path, &bad[i]);
        o.model_path = path;
        o.header_only = true;
        if (!tessera_open(&o, &engine, &e))
            fail_msg("%s = %d, %g was accepted", bad[i].key, bad[i].as_int,
                     (double)bad[i].as_float);
        if (!strstr(e.msg, bad[i].what))
            fail_msg("%s: the message does not name %s: %s", bad[i].key, bad[i].what, e.msg);
        (void)unlink(path);
    }
}

static int setup(void **state) { (void)state; return !mkdtemp(dir); }
static int teardown(void **state) { (void)state; return rmdir(dir); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_v3),      cmocka_unit_test(test_lite),
        cmocka_unit_test(test_q8_cache), cmocka_unit_test(test_mutations),
        cmocka_unit_test(test_refused),   cmocka_unit_test(test_heads_divided),
        cmocka_unit_test(test_heads_stream),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
