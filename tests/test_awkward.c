/* Small awkward models of the architectures that share models/block.c against llama.cpp's logits
 * (tests/awkward/make.py): the bounds, the same bits in every split and tier, fused and split
 * tensors alike, mutations that must break the bound, and files that must be refused.  Writes to a
 * folder of its own in /tmp. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "moe/tessera.h"
#include "tests/metric.h"
#include "tests/rewrite.h"
#include "tests/shared.h"

enum { N_IDS = 300, N_POS = 16, VOCAB_MAX = 64 };

static char dir[64] = "/tmp/tessera-awkward-XXXXXX";

static const char *const models[] = {
    "llama",   "mixtral", "qwen2",        "qwen3",       "qwen2moe",    "qwen3moe",
    "olmoe",   "glm4moe", "gpt-oss",      "dots1",       "ernie4_5-moe", "hunyuan-moe",
    "bailingmoe2", "minimax-m2", "granitemoe", "phimoe", "smallthinker", "gemma4",
    "gemma4-small",
};
enum { N_MODELS = sizeof models / sizeof *models };

/* ---- running ---- */

struct logits {
    int n_vocab;
    float at[N_IDS * VOCAB_MAX];
};

static void read_ids(const char *name, int32_t *ids)
{
    char path[160];
    (void)snprintf(path, sizeof path, "tests/awkward/%s.ids", name);
    assert_true(shared_ids(path, N_IDS, ids));
}

static tessera_engine *open_model(const char *path, int threads, const char *tier,
                                  tessera_session **s)
{
    struct err e;
    tessera_engine *engine;
    struct tessera_options o = tessera_defaults();
    o.model_path = path;
    o.n_threads = threads;
    (void)setenv("TESSERA_CPU", tier, 1);
    if (tessera_open(&o, &engine, &e)) fail_msg("%s", e.msg);
    (void)unsetenv("TESSERA_CPU");
    if (tessera_session_open(engine, 0, s, &e)) fail_msg("%s", e.msg);
    return engine;
}

/* Logits of the first n positions of a model's prompt, fed in pieces. */
static void run(const char *path, const char *name, int threads, const char *tier, int n, int piece,
                struct logits *out)
{
    struct err e;
    tessera_session *s;
    int32_t ids[N_IDS];
    read_ids(name, ids);
    tessera_engine *engine = open_model(path, threads, tier, &s);
    const size_t nv = (size_t)(out->n_vocab = tessera_model(engine).n_vocab);
    assert_true(nv <= VOCAB_MAX);
    for (int at = 0; at < n; at += piece) {
        const int m = n - at < piece ? n - at : piece;
        const struct tessera_input in = {s, ids + at, m, TESSERA_LOGITS_ALL};
        if (tessera_step(engine, &in, 1, &e)) fail_msg("%s", e.msg);
        for (int r = 0; r < m; r++)
            memcpy(out->at + (size_t)(at + r) * nv, tessera_logits(engine, 0, r),
                   nv * sizeof *out->at);
    }
    tessera_session_close(s);
    tessera_close(engine);
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

static struct nmse distance(const char *name, const struct logits *got)
{
    char path[160];
    size_t n = 0;
    const size_t nv = (size_t)got->n_vocab;
    (void)snprintf(path, sizeof path, "tests/awkward/%s.logits.f32", name);
    float *ref = (float *)(void *)shared_slurp(path, &n);
    assert_non_null(ref);
    assert_int_equal(n, sizeof(float) * N_POS * nv);
    double at[N_POS];
    for (size_t i = 0; i < N_POS; i++)
        at[i] = metric_nmse(got->at + i * (N_IDS - 1) / (N_POS - 1) * nv, ref + i * nv, nv);
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

static void equal(const struct logits *a, const struct logits *b, int n)
{
    assert_int_equal(a->n_vocab, b->n_vocab);
    assert_memory_equal(a->at, b->at, sizeof(float) * (size_t)n * (size_t)a->n_vocab);
}

/* ---- the reference, and the same bits however it is run ---- */

static void test_reference(void **state)
{
    static const struct {
        const char *tier;
        int threads, n, piece;
    } how[] = {{"", 1, N_IDS, 7}, {"", 3, N_IDS, 1}, {"avx2", 2, N_IDS, 64}, {"ref", 2, 40, 13}};
    static struct logits first, again;
    (void)state;
    for (int i = 0; i < N_MODELS; i++) {
        run(model_path(models[i]), models[i], 2, "", N_IDS, N_IDS, &first);
        const struct nmse d = distance(models[i], &first);
        printf("[  NOTE    ] %s: nmse per position: median %.1e, 95 %% %.1e\n", models[i], d.median,
               d.p95);
        assert_true(within(d));
        for (size_t k = 0; k < sizeof how / sizeof *how; k++) {
            run(model_path(models[i]), models[i], how[k].threads, how[k].tier, how[k].n,
                how[k].piece, &again);
            equal(&first, &again, how[k].n);
        }
    }
}

/* Rows whose logits nobody wants end early: the others do not notice. */
static void test_last_only(void **state)
{
    static struct logits all;
    (void)state;
    for (int i = 0; i < N_MODELS; i++) {
        struct err e;
        tessera_session *s;
        int32_t ids[N_IDS];
        read_ids(models[i], ids);
        run(model_path(models[i]), models[i], 2, "", 100, 100, &all);
        tessera_engine *engine = open_model(model_path(models[i]), 2, "", &s);
        for (int at = 0; at < 100; at += 50) {
            const struct tessera_input in = {s, ids + at, 50, TESSERA_LOGITS_LAST};
            if (tessera_step(engine, &in, 1, &e)) fail_msg("%s", e.msg);
            assert_memory_equal(tessera_logits(engine, 0, 49), all.at + (at + 49) * all.n_vocab,
                                sizeof(float) * (size_t)all.n_vocab);
        }
        tessera_session_close(s);
        tessera_close(engine);
    }
}

/* ---- the same weights in other tensors ---- */

/* "blk.%d.<stem>" of a copy, or NULL. */
static struct rw_tensor *at_layer(const struct rw *r, int l, const char *stem)
{
    char name[RW_NAME + 16];
    (void)snprintf(name, sizeof name, "blk.%d.%s", l, stem);
    return rw_find(r, name);
}

/* Q, K and V, or their biases, become one tensor; false where there is nothing to fuse. */
static bool fuse_qkv(struct rw *r, int l, const char *end)
{
    char name[3][RW_NAME];
    static const char *const stem[3] = {"attn_q", "attn_k", "attn_v"};
    struct rw_tensor *t[3];
    for (int i = 0; i < 3; i++) {
        (void)snprintf(name[i], sizeof name[i], "%s.%s", stem[i], end);
        t[i] = at_layer(r, l, name[i]);
        if (!t[i] || t[i]->type != t[0]->type) return false;
    }
    (void)snprintf(t[0]->name, sizeof t[0]->name, "blk.%d.attn_qkv.%s", l, end);
    for (int i = 1; i < 3; i++) {
        t[0]->dim[t[0]->n_dims - 1] += t[i]->dim[t[i]->n_dims - 1];
        rw_piece(t[0], t[i]->piece[0].data, t[i]->piece[0].bytes);
    }
    for (int i = 1; i < 3; i++) rw_drop(r, at_layer(r, l, name[i]));
    return true;
}

/* The other way round: one tensor becomes three. */
static bool split_qkv(struct rw *r, int l)
{
    static const char *const stem[3] = {"attn_q", "attn_k", "attn_v"};
    struct rw_tensor *t = at_layer(r, l, "attn_qkv.weight");
    if (!t) return false;
    const double dim = rw_number(r, "attention.key_length");
    const double kv = rw_number(r, "attention.head_count_kv") * dim;
    const uint64_t rows[3] = {(uint64_t)(rw_number(r, "attention.head_count") * dim), (uint64_t)kv,
                              (uint64_t)kv};
    const uint64_t row_bytes = t->piece[0].bytes / t->dim[1];
    const char *data = t->piece[0].data;
    for (int i = 0; i < 3; i++) {
        char name[RW_NAME];
        (void)snprintf(name, sizeof name, "blk.%d.%s.weight", l, stem[i]);
        struct rw_tensor *one = rw_add(r, name, t->type);
        one->n_dims = 2;
        one->dim[0] = t->dim[0];
        one->dim[1] = rows[i];
        rw_piece(one, data, rows[i] * row_bytes);
        data += rows[i] * row_bytes;
    }
    rw_drop(r, at_layer(r, l, "attn_qkv.weight"));
    return true;
}

/* Gate and up of all experts become one tensor. */
static bool fuse_gate_up(struct rw *r, int l)
{
    struct rw_tensor *g = at_layer(r, l, "ffn_gate_exps.weight");
    struct rw_tensor *u = at_layer(r, l, "ffn_up_exps.weight");
    if (!g || !u || g->type != u->type) return false;
    const uint64_t ne = g->dim[2], bytes = g->piece[0].bytes / ne;
    const char *gate = g->piece[0].data, *up = u->piece[0].data;
    (void)snprintf(g->name, sizeof g->name, "blk.%d.ffn_gate_up_exps.weight", l);
    g->dim[1] *= 2;
    g->n_pieces = 0;
    for (uint64_t i = 0; i < ne; i++) {
        rw_piece(g, gate + i * bytes, bytes);
        rw_piece(g, up + i * bytes, bytes);
    }
    rw_drop(r, u);
    return true;
}

/* Every expert becomes a matrix of its own. */
static bool split_experts(struct rw *r, int l)
{
    static const char *const stem[3] = {"ffn_gate", "ffn_up", "ffn_down"};
    char name[RW_NAME];
    for (int i = 0; i < 3; i++) {
        (void)snprintf(name, sizeof name, "%s_exps.weight", stem[i]);
        struct rw_tensor *t = at_layer(r, l, name);
        if (!t) return false;
        const uint64_t bytes = t->piece[0].bytes / t->dim[2];
        for (uint64_t k = 0; k < t->dim[2]; k++) {
            char own[RW_NAME];
            (void)snprintf(own, sizeof own, "blk.%d.%s.%d.weight", l, stem[i], (int)k);
            struct rw_tensor *one = rw_add(r, own, t->type);
            one->n_dims = 2;
            one->dim[0] = t->dim[0];
            one->dim[1] = t->dim[1];
            rw_piece(one, t->piece[0].data + k * bytes, bytes);
        }
        rw_drop(r, at_layer(r, l, name));
    }
    return true;
}

enum layout { FUSED, SPLIT_QKV, SPLIT_EXPERTS };

/* How many tensors were laid out anew. */
static int lay_out(struct rw *r, enum layout how)
{
    int n = 0;
    for (int l = 0; l < (int)rw_number(r, "block_count"); l++) {
        if (how == FUSED)
            n += fuse_qkv(r, l, "weight") + fuse_qkv(r, l, "bias") + fuse_gate_up(r, l);
        else
            n += how == SPLIT_QKV ? split_qkv(r, l) : split_experts(r, l);
    }
    return n;
}

static void check_layout(const char *name, enum layout how)
{
    static struct logits first, again;
    char path[128];
    struct rw r;
    rw_open(&r, model_path(name));
    const int n = lay_out(&r, how);
    (void)snprintf(path, sizeof path, "%s/layout.gguf", dir);
    rw_write(&r, path);
    rw_close(&r);
    if (n) {
        run(model_path(name), name, 2, "", 100, 100, &first);
        run(path, name, 2, "", 100, 100, &again);
        equal(&first, &again, 100);
    }
    assert_true(n > 0 || !strcmp(name, "bailingmoe2"));
    (void)unlink(path);
}

static void test_layouts(void **state)
{
    (void)state;
    for (int i = 0; i < N_MODELS; i++) check_layout(models[i], FUSED);
    check_layout("bailingmoe2", SPLIT_QKV);
    check_layout("mixtral", SPLIT_EXPERTS);
    check_layout("qwen2moe", SPLIT_EXPERTS);
}

/* ---- mutations ---- */

struct change {
    const char *model, *what;
    const char *key; /* set, or left out where type is 0 */
    char type;
    double number;
    const char *text;
    const char *tensor; /* F32 tensors whose name holds this are filled, others become zeros */
    float fill;
    const char *swap[2]; /* tensors whose names hold these exchange their values */
};

static bool fill(struct rw *r, const struct change *c)
{
    bool found = false;
    for (int i = 0; i < r->n && c->tensor; i++) {
        struct rw_tensor *t = &r->t[i];
        if (!strstr(t->name, c->tensor)) continue;
        char *to = r->file + (t->piece[0].data - r->file);
        memset(to, 0, (size_t)t->piece[0].bytes);
        for (uint64_t k = 0; t->type == 0 && k < t->piece[0].bytes; k += sizeof c->fill)
            memcpy(to + k, &c->fill, sizeof c->fill);
        found = true;
    }
    return found;
}

static bool swap(struct rw *r, const struct change *c)
{
    bool found = false;
    for (int i = 0; i < r->n && c->swap[0]; i++) {
        const char *at = strstr(r->t[i].name, c->swap[0]);
        char other[RW_NAME];
        if (!at) continue;
        (void)snprintf(other, sizeof other, "%.*s%s%s", (int)(at - r->t[i].name), r->t[i].name,
                       c->swap[1], at + strlen(c->swap[0]));
        struct rw_tensor *t = rw_find(r, other);
        assert_non_null(t);
        const struct rw_piece p = t->piece[0];
        t->piece[0] = r->t[i].piece[0];
        r->t[i].piece[0] = p;
        found = true;
    }
    return found;
}

/* Does the change put a model out of the bounds?  -1 where it has nothing to change. */
static int breaks(const char *name, const struct change *c)
{
    static struct logits got;
    char path[128];
    struct rw r;
    rw_open(&r, model_path(name));
    if (c->key) rw_set(&r, c->key, c->type, c->number, c->text);
    const bool changed = fill(&r, c) | swap(&r, c) | (c->key != NULL);
    (void)snprintf(path, sizeof path, "%s/mutant.gguf", dir);
    rw_write(&r, path);
    rw_close(&r);
    if (!changed) return -1;
    run(path, name, 2, "", N_IDS, N_IDS, &got);
    const struct nmse d = distance(name, &got);
    printf("[  NOTE    ] %s, %s: median %.1e, 95 %% %.1e\n", name, c->what, d.median, d.p95);
    (void)unlink(path);
    return !within(d);
}

/* What must break every model that has it. */
static void test_mutations_common(void **state)
{
    static const struct change all[] = {
        {.what = "no shared expert", .tensor = "ffn_down_shexp"},
        {.what = "gate and up swapped", .swap = {"ffn_gate_exps.weight", "ffn_up_exps.weight"}},
        {.what = "gate and up swapped", .swap = {"ffn_gate.weight", "ffn_up.weight"}},
        {.what = "no bias for choosing", .tensor = "exp_probs_b"},
        {.what = "no bias on Q", .tensor = "attn_q.bias"},
        {.what = "no bias on V", .tensor = "attn_v.bias"},
        {.what = "no norm of Q", .tensor = "attn_q_norm", .fill = 1},
        {.what = "no bias after attention", .tensor = "attn_output.bias"},
        {.what = "no bias on logits", .tensor = "output.bias"},
    };
    static const struct change same = {.what = "unchanged", .key = "vocab_size", .type = 'u',
                                       .number = 1};
    (void)state;
    for (int i = 0; i < N_MODELS; i++) {
        struct rw r;
        rw_open(&r, model_path(models[i]));
        const double base = rw_number(&r, "rope.freq_base");
        rw_close(&r);
        const struct change rope = {.what = "rope base half higher", .key = "rope.freq_base",
                                    .type = 'f', .number = 1.5 * base};
        assert_int_equal(breaks(models[i], &same), 0);
        assert_int_equal(breaks(models[i], &rope), 1);
        for (size_t k = 0; k < sizeof all / sizeof *all; k++)
            assert_int_not_equal(breaks(models[i], &all[k]), 0);
    }
}

/* What each model has of its own. */
static void test_mutations_own(void **state)
{
#define U(k, v) .key = k, .type = 'u', .number = v
#define F(k, v) .key = k, .type = 'f', .number = v
    static const struct change own[] = {
        {"llama", "no divisors of the angles", .tensor = "rope_freqs", .fill = 1},
        {"llama", "positions not scaled", F("rope.scaling.factor", 1)},
        {"llama", "no bias in the unit", .tensor = "ffn_up.bias"},
        {"mixtral", "no YaRN", .key = "rope.scaling.type", .type = 's', .text = "none"},
        {"mixtral", "one expert", U("expert_used_count", 1)},
        {"qwen2", "linear scaling", .key = "rope.scaling.type", .type = 's', .text = "linear"},
        {"qwen2", "YaRN's magnitude", F("rope.scaling.attn_factor", 1.02)},
        {"qwen3", "YaRN's context", U("rope.scaling.original_context_length", 640)},
        {"qwen2moe", "no gate on the shared expert", .tensor = "ffn_gate_inp_shexp"},
        {"qwen3moe", "groups ignored", U("expert_group_count", 1)},
        {"olmoe", "1 of 4 groups", U("expert_group_used_count", 3)},
        {"glm4moe", "weights not scaled", F("expert_weights_scale", 1)},
        {"glm4moe", "weights not normalised", .key = "expert_weights_norm", .type = 'b'},
        {"glm4moe", "softmax for sigmoid", U("expert_gating_func", 1)},
        {"glm4moe", "more is rotated", U("rope.dimension_count", 10)},
        {"gpt-oss", "no sinks", .tensor = "attn_sinks", .fill = -1e4f},
        {"gpt-oss", "a window less by one", U("attention.sliding_window", 23)},
        {"gpt-oss", "a window more by one", U("attention.sliding_window", 25)},
        {"gpt-oss", "all layers windowed", U("attention.sliding_window_pattern", 0)},
        {"gpt-oss", "no layer windowed", U("attention.sliding_window_pattern", 1)},
        {"gpt-oss", "no bias on the router", .tensor = "ffn_gate_inp.bias"},
        {"gpt-oss", "no bias on gates", .tensor = "ffn_gate_exps.bias"},
        {"gpt-oss", "no bias on downs", .tensor = "ffn_down_exps.bias"},
        {"gpt-oss", "YaRN's factor", F("rope.scaling.factor", 7.5)},
        {"dots1", "weights not scaled", F("expert_weights_scale", 1)},
        {"dots1", "groups ignored", U("expert_group_count", 1)},
        {"ernie4_5-moe", "groups ignored", U("expert_group_count", 1)},
        {"hunyuan-moe", "YaRN's factor", F("rope.scaling.factor", 3.5)},
        {"bailingmoe2", "more is rotated", U("rope.dimension_count", 6)},
        {"bailingmoe2", "groups ignored", U("expert_group_count", 1)},
        {"minimax-m2", "softmax for sigmoid", U("expert_gating_func", 1)},
        {"minimax-m2", "no norm of K", .tensor = "attn_k_norm", .fill = 1},
        {"granitemoe", "logits", F("logit_scale", 6.05)},
        {"granitemoe", "residual", F("residual_scale", 0.69)},
        {"granitemoe", "embedding", F("embedding_scale", 1.49)},
        {"granitemoe", "scores", F("attention.scale", 0.2)},
        {"granitemoe", "not rotated", .key = "rope.scaling.finetuned", .type = 'b'},
        {"phimoe", "divisors for short contexts", U("rope.scaling.original_context_length", 600)},
        {"phimoe", "magnitude", F("rope.scaling.attn_factor", 1.1)},
        {"phimoe", "no bias in norms", .tensor = "ffn_norm.bias"},
        {"smallthinker", "all rotated", .key = "attention.sliding_window"},
        {"smallthinker", "softmax for sigmoid", U("expert_gating_func", 1)},
        {"gemma4", "a window less by one", U("attention.sliding_window", 23)},
        {"gemma4", "a window more by one", U("attention.sliding_window", 25)},
        {"gemma4", "the base of windowed layers", F("rope.freq_base_swa", 600)},
        {"gemma4", "more is rotated in windowed layers", U("rope.dimension_count_swa", 10)},
        {"gemma4", "no divisors of the angles", .tensor = "rope_freqs", .fill = 1},
        {"gemma4", "one expert less", U("expert_used_count", 2)},
        {"gemma4", "no experts", .tensor = "post_ffw_norm_2"},
        {"gemma4", "no unit beside the experts", .tensor = "post_ffw_norm_1"},
        {"gemma4", "no scales of experts", .tensor = "ffn_down_exps.scale", .fill = 1},
        {"gemma4", "no scale of the router", .tensor = "ffn_gate_inp.scale", .fill = 6},
        {"gemma4", "no scales of layers", .tensor = "layer_output_scale", .fill = 1},
        {"gemma4", "no norm after attention", .tensor = "post_attention_norm", .fill = 1},
        {"gemma4", "no norm after the unit", .tensor = "post_ffw_norm.", .fill = 0.5f},
        {"gemma4", "logits not capped", .key = "final_logit_softcapping"},
        {"gemma4-small", "logits capped", F("final_logit_softcapping", 3.05)},
        {"gemma4-small", "full layers not scaled", F("rope.scaling.factor", 1)},
        {"gemma4-small", "no token's own input", .tensor = "per_layer_token_embd"},
        {"gemma4-small", "no input from the embedding", .tensor = "per_layer_proj_norm"},
        {"gemma4-small", "no norm of inputs", .tensor = "blk.2.post_norm", .fill = 0.5f},
        {"gemma4-small", "no K to share", .tensor = "blk.1.attn_k.weight"},
        {"gemma4-small", "no V to share", .tensor = "blk.0.attn_v.weight"},
    };
    /* What does not run: nothing in it matters. */
    static const struct change idle[] = {
        {"glm4moe", "another last layer", .tensor = "blk.3.", .fill = 9},
        {"bailingmoe2", "another last layer", .tensor = "blk.3.", .fill = 9},
        {"gemma4-small", "other K that nobody looks at", .tensor = "blk.4.attn_k.", .fill = 9},
    };
    (void)state;
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (breaks(own[i].model, &own[i]) != 1)
            fail_msg("%s, %s: the bound holds", own[i].model, own[i].what);
    for (size_t i = 0; i < sizeof idle / sizeof *idle; i++)
        assert_int_equal(breaks(idle[i].model, &idle[i]), 0);
}

/* ---- files that must be refused, with the key or tensor named ---- */

static void refused(const char *name, struct rw *r, const char *named)
{
    char path[128];
    struct err e;
    tessera_engine *engine;
    struct tessera_options o = tessera_defaults();
    (void)snprintf(path, sizeof path, "%s/bad.gguf", dir);
    rw_write(r, path);
    o.model_path = path;
    o.header_only = true;
    if (!tessera_open(&o, &engine, &e)) fail_msg("%s without or with a bad %s opened", name, named);
    if (!strstr(e.msg, named)) fail_msg("%s: %s is not named: %s", name, named, e.msg);
    (void)unlink(path);
}

static void test_refused_keys(void **state)
{
    static const struct change bad[] = {
        {"gpt-oss", "sliding_window", .key = "attention.sliding_window"},
        {"gpt-oss", "sliding_window", U("attention.sliding_window", 0)},
        {"gpt-oss", "expert_count", .key = "expert_count"},
        {"gpt-oss", "freq_base_swa", F("rope.freq_base_swa", -1)},
        {"gpt-oss", "yarn_beta_fast", F("rope.scaling.yarn_beta_fast", 0)},
        {"gpt-oss", "rope.scaling.type", .key = "rope.scaling.type", .type = 's', .text = "spiral"},
        {"gpt-oss", "scaling.factor", F("rope.scaling.factor", -2)},
        {"glm4moe", "nextn_predict_layers", U("nextn_predict_layers", 4)},
        {"glm4moe", "blk.3", U("nextn_predict_layers", 0)},
        {"glm4moe", "expert_gating_func", U("expert_gating_func", 4)},
        {"glm4moe", "expert_shared_count", .key = "expert_shared_count"},
        {"glm4moe", "ffn_gate_shexp", U("expert_shared_count", 3)},
        {"glm4moe", "_shexp", U("expert_shared_count", 0)},
        {"glm4moe", "expert_shared_count", U("expert_shared_count", 1 << 30)},
        {"glm4moe", "ffn_gate.weight", U("leading_dense_block_count", 2)},
        {"glm4moe", "ffn_gate_inp", U("leading_dense_block_count", 0)},
        {"glm4moe", "expert_group", U("expert_group_count", 3)},
        {"glm4moe", "expert_group", U("expert_group_used_count", 5)},
        {"glm4moe", "expert_group", U("expert_group_used_count", 0)},
        {"glm4moe", "expert_used_count", U("expert_used_count", 5)},
        {"dots1", "expert_gating_func", .key = "expert_gating_func"},
        {"dots1", "expert_gating_func", U("expert_gating_func", 0)},
        {"ernie4_5-moe", "interleave_moe_layer_step", U("interleave_moe_layer_step", 0)},
        {"ernie4_5-moe", "ffn_gate.weight", U("interleave_moe_layer_step", 2)},
        {"ernie4_5-moe", "_shexp", .key = "expert_shared_feed_forward_length"},
        {"minimax-m2", "attn_k.weight", U("attention.head_count_kv", 1)},
        {"granitemoe", "logit_scale", .key = "logit_scale"},
        {"granitemoe", "logit_scale", F("logit_scale", 0)},
        {"granitemoe", "residual_scale", F("residual_scale", INFINITY)},
        {"phimoe", "rope_factors_", U("rope.dimension_count", 6)},
        {"qwen2moe", "ffn_gate_shexp", U("expert_shared_feed_forward_length", 32)},
        {"qwen2moe", "ffn_gate_exps", .key = "expert_feed_forward_length"},
        {"gemma4", "sliding_window", .key = "attention.sliding_window"},
        {"gemma4", "sliding_window", U("attention.sliding_window", 0)},
        {"gemma4", "sliding_window_pattern", .key = "attention.sliding_window_pattern"},
        {"gemma4", "sliding_window_pattern", U("attention.sliding_window_pattern", 3)},
        {"gemma4", "sliding_window_pattern", U("block_count", 5)},
        {"gemma4", "head_count_kv", .key = "attention.key_length_swa"},
        {"gemma4", "value_length_swa", .key = "attention.value_length_swa"},
        {"gemma4", "V heads", U("attention.value_length_swa", 16)},
        {"gemma4", "V heads", U("attention.key_length", 12)},
        {"gemma4", "dimension_count", U("rope.dimension_count_swa", 14)},
        {"gemma4", "attn_k.weight", U("attention.head_count_kv", 3)},
        {"gemma4", "rope.scaling.type", .key = "rope.scaling.type", .type = 's', .text = "yarn"},
        {"gemma4", "freq_base", F("rope.freq_base_swa", -1)},
        {"gemma4", "final_logit_softcapping", F("final_logit_softcapping", INFINITY)},
        {"gemma4", "shared_kv_layers", U("attention.shared_kv_layers", 2)},
        {"gemma4", "feed_forward_length", U("feed_forward_length", 0)},
        {"gemma4-small", "ffn_gate.weight", U("feed_forward_length", 32)},
        {"gemma4-small", "shared_kv_layers", U("attention.shared_kv_layers", 4)},
        {"gemma4-small", "shared_kv_layers", U("attention.shared_kv_layers", 6)},
        {"gemma4-small", "feed_forward_length", U("attention.shared_kv_layers", 2)},
        {"gemma4-small", "feed_forward_length", U("attention.shared_kv_layers", 0)},
        {"gemma4-small", "per_layer_token_embd", .key = "embedding_length_per_layer_input"},
        {"gemma4-small", "per_layer_token_embd", U("embedding_length_per_layer_input", 12)},
        {"gemma4-small", "per_layer", U("embedding_length_per_layer_input", 1 << 20)},
    };
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct rw r;
        rw_open(&r, model_path(bad[i].model));
        rw_set(&r, bad[i].key, bad[i].type, bad[i].number, bad[i].text);
        refused(bad[i].model, &r, bad[i].what);
        rw_close(&r);
    }
}

/* Without any one tensor that its architecture must have, a model is refused; the rest are biases
 * that may be there or not, and norms of Q and K where they are optional. */
static void test_refused_tensors(void **state)
{
    static const struct { const char *model, *tensor; } may[] = {
        {"*", "attn_q.bias"}, {"*", "attn_k.bias"}, {"*", "attn_v.bias"},
        {"llama", ".bias"}, {"llama", "rope_freqs"}, {"qwen2", "output.bias"},
        {"*", "nextn."}, {"*", "blk.3.layer_output_norm"}, {"glm4moe", "attn_q_norm"},
        {"glm4moe", "attn_k_norm"}, {"dots1", "exp_probs_b"}, {"ernie4_5-moe", "exp_probs_b"},
        {"bailingmoe2", "exp_probs_b"}, {"glm4moe", "blk.3."}, {"bailingmoe2", "blk.3."},
        {"qwen3moe", "output.weight"}, {"olmoe", "output.weight"}, {"glm4moe", "output.weight"},
        {"qwen2", "output.weight"}, {"phimoe", "rope_factors_long"},
        {"gemma4", "layer_output_scale"}, {"gemma4-small", "layer_output_scale"},
        {"gemma4", "attn_v.weight"}, {"gemma4-small", "attn_v.weight"},
        {"gemma4", "ffn_down_exps.scale"}, {"gemma4-small", "blk.4.attn_k"},
    };
    (void)state;
    for (int i = 0; i < N_MODELS; i++) {
        struct rw r;
        rw_open(&r, model_path(models[i]));
        const int n = r.n;
        rw_close(&r);
        for (int k = 0; k < n; k++) {
            char name[RW_NAME];
            bool optional = false;
            rw_open(&r, model_path(models[i]));
            (void)snprintf(name, sizeof name, "%s", r.t[k].name);
            for (size_t m = 0; m < sizeof may / sizeof *may; m++)
                optional |= (may[m].model[0] == '*' || !strcmp(may[m].model, models[i])) &&
                            strstr(name, may[m].tensor);
            rw_drop(&r, &r.t[k]);
            /* Without the fused tensor, the first of the three is asked for. */
            const char *named = strstr(name, "attn_qkv") ? "attn_k.weight" : name;
            if (!optional) refused(models[i], &r, named);
            rw_close(&r);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),      cmocka_unit_test(test_last_only),
        cmocka_unit_test(test_layouts),
        cmocka_unit_test(test_mutations_common), cmocka_unit_test(test_mutations_own),
        cmocka_unit_test(test_refused_keys),   cmocka_unit_test(test_refused_tensors),
    };
    if (!mkdtemp(dir)) return 1;
    const int bad = cmocka_run_group_tests(tests, NULL, NULL);
    (void)rmdir(dir);
    return bad;
}
