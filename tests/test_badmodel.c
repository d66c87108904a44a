/* Bad models: a good tiny model is rewritten with one defect at a time, and every defect must end
 * in an error with the right code whose message names the file and the key or tensor, or in a
 * warning where the model can still be opened.  Never a crash; under the sanitizers no leak either.
 *
 * A struct model is a file in memory, keys and tensors apart, that tests change and write out. */
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

enum { TENSORS_MAX = 128, STEPS = 6 };

static char dir[64];

static const char *file(const char *name)
{
    static char path[4][128];
    static int k;
    k = (k + 1) % 4;
    (void)snprintf(path[k], sizeof path[k], "%s/%s", dir, name);
    return path[k];
}

/* ---- a model to be spoiled ---- */

struct item {
    char name[160];
    uint32_t type;
    int n_dims;
    uint64_t dim[4], bytes;
    unsigned char *data;
};

struct model {
    struct gguf *g; /* its keys, and what the tensors were at first */
    int n;
    struct item at[TENSORS_MAX];
    const char *key; /* this key is left out, or with a trailing '.' all that begin so */
    /* and this put instead */
    void (*put)(struct gguf_writer *w, const char *key, const void *arg);
    const void *arg;
};

static struct gen_spec small(const char *arch, enum qtype type)
{
    struct gen_spec g = gen_tiny(arch, type);
    g.n_layer = 1;
    if (g.n_embd == 64) {
        g.n_embd = g.n_ff = 32;
        g.n_head = 2;
        g.n_head_kv = strcmp(arch, "olmoe") ? 1 : 2;
    }
    g.n_expert = 4;
    g.n_vocab = 48;
    return g;
}

static void read_at(const char *path, uint64_t offset, void *to, uint64_t n)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fseek(f, (long)offset, SEEK_SET), 0);
    assert_int_equal(fread(to, 1, n, f), n);
    (void)fclose(f);
}

static struct model *model_of(struct gen_spec spec)
{
    struct err e;
    err_clear(&e);
    struct model *m = calloc(1, sizeof *m);
    assert_non_null(m);
    const char *path = file("good.gguf");
    if (gen_write(&spec, path, NULL, &e) || gguf_open(path, NULL, &m->g, &e)) fail_msg("%s", e.msg);
    m->n = (int)gguf_n_tensors(m->g);
    assert_true(m->n < TENSORS_MAX / 2);
    for (int i = 0; i < m->n; i++) {
        const struct gguf_tensor *t = gguf_tensor_at(m->g, (uint64_t)i);
        struct item *it = &m->at[i];
        (void)snprintf(it->name, sizeof it->name, "%.*s", (int)t->name.n, t->name.s);
        it->type = t->type;
        it->n_dims = t->n_dims;
        memcpy(it->dim, t->dim, sizeof it->dim);
        it->bytes = t->bytes;
        it->data = malloc(t->bytes);
        assert_non_null(it->data);
        read_at(path, t->offset, it->data, t->bytes);
    }
    return m;
}

static struct model *good(const char *arch) { return model_of(small(arch, QTYPE_F32)); }

static void model_free(struct model *m)
{
    for (int i = 0; i < m->n; i++) free(m->at[i].data);
    gguf_close(m->g);
    free(m);
}

static struct item *find(struct model *m, const char *name)
{
    for (int i = 0; i < m->n; i++)
        if (!strcmp(m->at[i].name, name)) return &m->at[i];
    fail_msg("the test's model has no %s", name);
    return NULL;
}

/* Takes tensor i out; undone by model_insert. */
static struct item model_take(struct model *m, int i)
{
    struct item it = m->at[i];
    memmove(&m->at[i], &m->at[i + 1], sizeof it * (size_t)(m->n - 1 - i));
    m->n--;
    return it;
}

static void model_insert(struct model *m, int i, struct item it)
{
    assert_true(m->n < TENSORS_MAX);
    memmove(&m->at[i + 1], &m->at[i], sizeof it * (size_t)(m->n - i));
    m->at[i] = it;
    m->n++;
}

static struct item new_item(const char *name, uint32_t type, uint64_t a, uint64_t b, uint64_t bytes)
{
    struct item it = {.type = type, .n_dims = b ? 2 : 1, .dim = {a, b ? b : 1, 1, 1},
                      .bytes = bytes, .data = calloc(1, bytes)};
    assert_non_null(it.data);
    (void)snprintf(it.name, sizeof it.name, "%s", name);
    return it;
}

static bool key_is(struct gguf_str key, const char *what)
{
    const size_t n = what ? strlen(what) : 0;
    if (!n || key.n < n || memcmp(key.s, what, n)) return false;
    return key.n == n || what[n - 1] == '.';
}

static const char *save(const struct model *m)
{
    const char *path = file("bad.gguf");
    struct err e;
    err_clear(&e);
    struct gguf_writer *w = gguf_writer_new();
    assert_non_null(w);
    for (uint64_t i = 0; i < gguf_n_kv(m->g); i++)
        if (!key_is(gguf_kv_at(m->g, i)->key, m->key)) gguf_put_kv(w, gguf_kv_at(m->g, i));
    if (m->put) m->put(w, m->key, m->arg);
    for (int i = 0; i < m->n; i++) {
        const struct item *t = &m->at[i];
        gguf_put_tensor(w, t->name, t->type, t->n_dims, t->dim, t->bytes);
    }
    (void)gguf_writer_begin(w, path, &e);
    for (int i = 0; i < m->n && !e.code; i++)
        (void)gguf_writer_data(w, m->at[i].data, m->at[i].bytes, &e);
    if (!e.code) (void)gguf_writer_end(w, &e);
    if (e.code) fail_msg("the test cannot write its file: %s", e.msg);
    gguf_writer_close(w);
    return path;
}

/* ---- opening ---- */

static struct tessera_options options(const char *path)
{
    struct tessera_options o = tessera_defaults();
    o.model_path = path;
    o.n_threads = 1;
    o.n_ubatch = 8;
    o.mem_budget = UINT64_MAX;
    return o;
}

static tessera_engine *open_file(const char *path)
{
    const struct tessera_options o = options(path);
    return must_open(&o);
}

/* A few tokens through the model; logits of the last one, whatever they are. */
static void step(tessera_engine *e, float *out)
{
    struct err err;
    tessera_session *s;
    const int32_t ids[STEPS] = {1, 7, 3, 30, 7, 2};
    if (tessera_session_open(e, 0, &s, &err)) fail_msg("%s", err.msg);
    const int n = STEPS < tessera_session_n_ctx(s) ? STEPS : tessera_session_n_ctx(s);
    struct tessera_input in = {s, ids, n, TESSERA_LOGITS_LAST};
    if (tessera_step(e, &in, 1, &err)) fail_msg("%s", err.msg);
    if (out)
        memcpy(out, tessera_logits(e, 0, n - 1), sizeof *out * (size_t)e->model.n_vocab);
    tessera_session_close(s);
}

/* The logits of the file, opened and closed again. */
static void logits_of(const char *path, float out[48])
{
    tessera_engine *e = open_file(path);
    assert_int_equal(e->model.n_vocab, 48);
    step(e, out);
    tessera_close(e);
}

/* Opening the model must fail with this code, and the message name the file and `what`. */
static void refused(const struct model *m, enum status code, const char *what)
{
    struct err e;
    tessera_engine *engine;
    const struct tessera_options o = options(save(m));
    const enum status s = tessera_open(&o, &engine, &e);
    if (!s) fail_msg("opened, although it is wrong: %s", what);
    assert_null(engine);
    assert_int_equal(e.code, s);
    if (s != code) fail_msg("%s: code %d, not %d: %s", what, s, code, e.msg);
    if (!strstr(e.msg, "bad.gguf") || !strstr(e.msg, what))
        fail_msg("the message names not both, file and %s: %s", what, e.msg);
}

static void refused_key(struct model *m, const char *key, enum status code)
{
    m->key = key;
    refused(m, code, key);
    m->key = NULL;
    m->put = NULL;
}

/* ---- putting one key ---- */

static void put_u64(struct gguf_writer *w, const char *key, const void *arg)
{
    uint64_t v;
    memcpy(&v, arg, sizeof v);
    gguf_put_u64(w, key, v);
}

static void put_i32(struct gguf_writer *w, const char *key, const void *arg)
{
    int32_t v;
    memcpy(&v, arg, sizeof v);
    gguf_put_i32(w, key, v);
}

static void put_f32(struct gguf_writer *w, const char *key, const void *arg)
{
    float v;
    memcpy(&v, arg, sizeof v);
    gguf_put_f32(w, key, v);
}

static void put_str(struct gguf_writer *w, const char *key, const void *arg)
{
    gguf_put_str(w, key, arg);
}

static void put_list(struct gguf_writer *w, const char *key, const void *arg)
{
    gguf_put_array(w, key, GGUF_I32, arg, 2);
}

static void bad_u64(struct model *m, const char *key, uint64_t v, enum status code)
{
    m->put = put_u64;
    m->arg = &v;
    refused_key(m, key, code);
}

static void bad_f32(struct model *m, const char *key, float v, enum status code)
{
    m->put = put_f32;
    m->arg = &v;
    refused_key(m, key, code);
}

/* ---- keys ---- */

static void test_good(void **state)
{
    (void)state;
    static const char *const archs[] = {"qwen3moe", "olmoe", "llama"};
    for (int i = 0; i < 3; i++) {
        struct model *m = good(archs[i]);
        float x[48];
        logits_of(save(m), x);
        for (int k = 0; k < 48; k++) assert_true(isfinite(x[k]));
        model_free(m);
    }
}

static void test_missing_key(void **state)
{
    (void)state;
    static const char *const keys[] = {
        "general.architecture", "qwen3moe.block_count", "qwen3moe.embedding_length",
        "qwen3moe.context_length", "qwen3moe.attention.head_count", "qwen3moe.expert_count",
        "qwen3moe.expert_used_count", "qwen3moe.attention.layer_norm_rms_epsilon",
    };
    struct model *m = good("qwen3moe");
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) refused_key(m, keys[i], ERR_MISSING);
    /* The other keys have a default; where it does not suit, the tensor that shows it is named. */
    m->key = "qwen3moe.attention.head_count_kv";
    refused(m, ERR_SHAPE, "blk.0.attn_k.weight");
    m->key = "qwen3moe.";
    refused(m, ERR_MISSING, "qwen3moe.");
    model_free(m);
    m = good("olmoe");
    refused_key(m, "olmoe.expert_count", ERR_MISSING);
    m->key = "olmoe.feed_forward_length"; /* olmoe has no key for experts alone */
    refused(m, ERR_MISSING, "feed_forward_length");
    model_free(m);
    struct gen_spec dense = small("llama", QTYPE_F32);
    dense.n_expert = dense.n_expert_used = 0;
    m = model_of(dense);
    refused_key(m, "llama.feed_forward_length", ERR_MISSING);
    model_free(m);
}

static void test_key_type(void **state)
{
    (void)state;
    static const char *const ints[] = {
        "block_count", "embedding_length", "context_length", "attention.head_count",
        "attention.head_count_kv", "feed_forward_length", "expert_count", "expert_used_count",
        "expert_feed_forward_length", "attention.key_length", "attention.value_length",
        "rope.dimension_count",
    };
    static const char *const floats[] = {
        "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.factor"
    };
    const uint64_t one = 1;
    const float half = 0.5f;
    const int32_t list[2] = {-1, 4}, different[2] = {1, 2};
    const struct { void (*put)(struct gguf_writer *, const char *, const void *); const void *arg; }
        no_int[] = {{put_str, "4"}, {put_f32, &half}, {put_list, list}, {put_i32, list}},
        no_float[] = {{put_str, "1e-6"}, {put_u64, &one}, {put_list, list}};
    struct model *m = good("qwen3moe");
    char key[96];
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++)
        for (size_t k = 0; k < sizeof no_int / sizeof *no_int; k++) {
            (void)snprintf(key, sizeof key, "qwen3moe.%s", ints[i]);
            m->put = no_int[k].put;
            m->arg = no_int[k].arg;
            refused_key(m, key, ERR_SHAPE);
        }
    /* One number for each layer is understood, but not different ones. */
    for (int k = 0; k < 2; k++) {
        m->put = put_list;
        m->arg = different;
        refused_key(m, k ? "qwen3moe.feed_forward_length" : "qwen3moe.attention.head_count_kv",
                    ERR_UNSUPPORTED);
    }
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++)
        for (size_t k = 0; k < sizeof no_float / sizeof *no_float; k++) {
            (void)snprintf(key, sizeof key, "qwen3moe.%s", floats[i]);
            m->put = no_float[k].put;
            m->arg = no_float[k].arg;
            refused_key(m, key, ERR_SHAPE);
        }
    bad_u64(m, "general.architecture", 1, ERR_SHAPE);
    bad_u64(m, "qwen3moe.rope.scaling.type", 1, ERR_SHAPE);
    model_free(m);
}

static void test_key_value(void **state)
{
    (void)state;
    static const struct { const char *key; uint64_t v; enum status code; } bad[] = {
        {"block_count", 0, ERR_RANGE}, {"block_count", 5000, ERR_RANGE},
        {"embedding_length", 0, ERR_RANGE}, {"embedding_length", 1 << 25, ERR_RANGE},
        {"context_length", 0, ERR_RANGE}, {"context_length", INT32_MAX, ERR_RANGE},
        {"attention.head_count", 0, ERR_RANGE}, {"attention.head_count", 1 << 25, ERR_RANGE},
        {"attention.head_count", 1 << 23, ERR_RANGE}, /* times the head: past 2^24 */
        {"attention.head_count_kv", 0, ERR_RANGE}, {"attention.head_count_kv", 3, ERR_RANGE},
        {"expert_count", 5000, ERR_RANGE}, {"expert_count", 0, ERR_MISSING},
        {"expert_used_count", 5, ERR_RANGE}, {"expert_used_count", 0, ERR_MISSING},
        {"feed_forward_length", 1 << 25, ERR_RANGE},
        {"expert_feed_forward_length", 1 << 25, ERR_RANGE},
        {"rope.dimension_count", 0, ERR_SHAPE}, {"rope.dimension_count", 3, ERR_SHAPE},
        {"rope.dimension_count", 18, ERR_SHAPE},
    };
    struct model *m = good("qwen3moe");
    char key[96];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        (void)snprintf(key, sizeof key, "qwen3moe.%s", bad[i].key);
        bad_u64(m, key, bad[i].v, bad[i].code);
        bad_u64(m, key, (uint64_t)INT32_MAX + 1, ERR_RANGE);
        bad_u64(m, key, UINT64_MAX, ERR_RANGE);
    }
    uint64_t three = 3;
    m->put = put_u64;
    m->arg = &three;
    m->key = "qwen3moe.attention.head_count";
    refused(m, ERR_SHAPE, "attn_q.weight");
    struct gen_spec odd = small("qwen3moe", QTYPE_F32);
    odd.n_head = odd.n_head_kv = 2;
    model_free(m);
    m = model_of(odd);
    bad_u64(m, "qwen3moe.attention.head_count", 3, ERR_SHAPE); /* 3 on 2 KV heads */
    m->put = put_u64;
    m->arg = &three;
    m->key = "qwen3moe.attention.value_length";
    refused(m, ERR_UNSUPPORTED, "V heads of 3");
    m->put = NULL;
    static const float no_eps[] = {NAN, INFINITY, -INFINITY, -1e-6f};
    static const float no_base[] = {NAN, INFINITY, -INFINITY, -1e4f, 0};
    for (int i = 0; i < 4; i++)
        bad_f32(m, "qwen3moe.attention.layer_norm_rms_epsilon", no_eps[i], ERR_RANGE);
    for (int i = 0; i < 5; i++) bad_f32(m, "qwen3moe.rope.freq_base", no_base[i], ERR_RANGE);
    bad_f32(m, "qwen3moe.rope.scaling.factor", NAN, ERR_RANGE);
    model_free(m);
}

/* Every number of the file times many values: refused with a good message, or it runs. */
static void test_key_sweep(void **state)
{
    (void)state;
    static const uint64_t values[] = {
        0,        1,        2,        3,         8,         16,         32,
        65535,    1u << 24, 1u << 25, 1u << 30,  INT32_MAX, 1u << 31,   UINT32_MAX,
        (uint64_t)1 << 32,  INT64_MAX, UINT64_MAX,
    };
    struct model *m = good("qwen3moe");
    int n_opened = 0, n_refused = 0;
    for (uint64_t i = 0; i < gguf_n_kv(m->g); i++) {
        const struct gguf_kv *kv = gguf_kv_at(m->g, i);
        char key[96];
        (void)snprintf(key, sizeof key, "%.*s", (int)kv->key.n, kv->key.s);
        if (kv->value.type != GGUF_U32 || strncmp(key, "qwen3moe.", 9)) continue;
        for (size_t k = 0; k < sizeof values / sizeof *values; k++) {
            struct err e;
            tessera_engine *engine;
            m->key = key;
            m->put = put_u64;
            m->arg = &values[k];
            const struct tessera_options o = options(save(m));
            if (tessera_open(&o, &engine, &e)) {
                assert_null(engine);
                assert_non_null(strstr(e.msg, "bad.gguf"));
                assert_true(e.code == ERR_MISSING || e.code == ERR_SHAPE || e.code == ERR_RANGE ||
                            e.code == ERR_UNSUPPORTED);
                n_refused++;
                continue;
            }
            step(engine, NULL);
            tessera_close(engine);
            n_opened++;
        }
    }
    assert_true(n_opened > 20 && n_refused > 100);
    model_free(m);
}

struct scaling {
    const char *type; /* NULL: no such key */
    float factor;     /* 0: no such key */
};

static void put_scaling(struct gguf_writer *w, const char *key, const void *arg)
{
    const struct scaling *s = arg;
    (void)key;
    if (s->type) gguf_put_str(w, "qwen3moe.rope.scaling.type", s->type);
    if (s->factor != 0) gguf_put_f32(w, "qwen3moe.rope.scaling.factor", s->factor);
}

static void test_rope_scaling(void **state)
{
    (void)state;
    static const struct scaling refuse[] = {{"spiral", 4}, {"spiral", 0}, {"", 2}, {"Linear", 2}},
                                same[] = {{"none", 0}, {"none", 4}, {"linear", 0}, {"linear", 1}},
                                linear[] = {{"linear", 4}, {NULL, 4}};
    struct model *m = good("qwen3moe");
    float plain[48], x[48], y[48];
    logits_of(save(m), plain);
    m->key = "qwen3moe.rope.scaling.";
    m->put = put_scaling;
    for (int i = 0; i < 4; i++) {
        m->arg = &refuse[i];
        refused(m, ERR_UNSUPPORTED, "qwen3moe.rope.scaling.type");
    }
    for (int i = 0; i < 4; i++) {
        m->arg = &same[i];
        logits_of(save(m), x);
        assert_memory_equal(plain, x, sizeof x);
    }
    bad_f32(m, "qwen3moe.rope.scaling.factor", -1, ERR_RANGE);
    m->key = "qwen3moe.rope.scaling.";
    m->put = put_scaling;
    m->arg = &linear[0];
    logits_of(save(m), x);
    m->arg = &linear[1];
    logits_of(save(m), y);
    assert_memory_equal(x, y, sizeof x);
    assert_memory_not_equal(plain, x, sizeof x);
    model_free(m);
}

static void test_arch(void **state)
{
    (void)state;
    struct model *m = good("qwen3moe");
    m->key = "general.architecture";
    m->put = put_str;
    m->arg = "mamba9";
    for (int i = 0; arch_at(i); i++) refused(m, ERR_UNSUPPORTED, arch_at(i)->name);
    refused(m, ERR_UNSUPPORTED, "mamba9");
    m->arg = "";
    refused(m, ERR_UNSUPPORTED, "llama");
    /* Known, but not what the file holds. */
    m->arg = "olmoe";
    refused(m, ERR_MISSING, "olmoe.");
    model_free(m);
}

/* ---- tensors ---- */

static void test_missing_tensor(void **state)
{
    (void)state;
    static const char *const archs[] = {"qwen3moe", "olmoe", "llama"};
    for (int a = 0; a < 3; a++) {
        struct model *m = good(archs[a]);
        for (int i = 0; i < m->n; i++) {
            struct item it = model_take(m, i);
            /* Without an output matrix the embedding takes its place. */
            if (!strcmp(it.name, "output.weight")) tessera_close(open_file(save(m)));
            else refused(m, ERR_MISSING, it.name);
            model_insert(m, i, it);
        }
        model_free(m);
    }
}

/* Each tensor with its first, second and third dim changed in turn. */
static void test_tensor_shape(void **state)
{
    (void)state;
    struct model *m = good("qwen3moe");
    for (int i = 0; i < m->n; i++) {
        struct item *it = &m->at[i];
        const struct item was = *it;
        for (int d = 0; d < 4; d++) {
            if (d == 1 && !strcmp(was.name, "token_embd.weight")) continue; /* the vocabulary */
            it->dim[d] = d == 3 ? 2 : was.dim[d] + 32;
            it->n_dims = d + 1 > was.n_dims ? d + 1 : was.n_dims;
            it->bytes = 4 * it->dim[0] * it->dim[1] * it->dim[2] * it->dim[3];
            it->data = calloc(1, it->bytes);
            refused(m, ERR_SHAPE, was.name);
            free(it->data);
            *it = was;
        }
        if (was.n_dims < 2 || was.dim[0] == was.dim[1]) continue;
        it->dim[0] = was.dim[1];
        it->dim[1] = was.dim[0];
        refused(m, ERR_SHAPE, was.name);
        *it = was;
    }
    /* More rows of the embedding mean a larger vocabulary, which the output does not have. */
    struct item *embd = find(m, "token_embd.weight");
    const struct item was = *embd;
    embd->dim[1] = 49;
    embd->bytes = 4 * 32 * 49;
    embd->data = calloc(1, embd->bytes);
    refused(m, ERR_SHAPE, "output.weight");
    free(embd->data);
    *embd = was;
    model_free(m);
}

static void test_tensor_type(void **state)
{
    (void)state;
    struct model *m = good("qwen3moe");
    for (int i = 0; i < m->n; i++) {
        const uint32_t was = m->at[i].type;
        m->at[i].type = 77;
        refused(m, ERR_UNSUPPORTED, m->at[i].name);
        refused(m, ERR_UNSUPPORTED, "77");
        m->at[i].type = was;
    }
    struct item *norm = find(m, "blk.0.attn_norm.weight");
    const struct item was = *norm;
    norm->type = QTYPE_Q8_0;
    norm->bytes = qtype_bytes(QTYPE_Q8_0, 32);
    refused(m, ERR_SHAPE, norm->name);
    *norm = was;
    model_free(m);
}

static void test_extra_tensor(void **state)
{
    (void)state;
    static const char *const names[] = {"blk.0.mystery.weight", "blk.1.attn_q.weight", "mtp.weight",
                                        "blk.0.ffn_gate.weight", "token_embd.bias"};
    struct model *m = good("qwen3moe");
    for (int i = 0; i < 5; i++) {
        model_insert(m, m->n, new_item(names[i], QTYPE_F32, 32, 2, 256));
        refused(m, ERR_UNSUPPORTED, names[i]);
        m->at[m->n - 1].type = 77; /* its type does not matter */
        refused(m, ERR_UNSUPPORTED, names[i]);
        free(m->at[--m->n].data);
    }
    /* A long name is cut, not the message. */
    char name[150];
    memset(name, 'x', sizeof name - 1);
    name[sizeof name - 1] = 0;
    model_insert(m, m->n, new_item(name, QTYPE_F32, 32, 2, 256));
    refused(m, ERR_UNSUPPORTED, "xxxxxxxx is not part of this architecture");
    model_free(m);
}

/* ---- NaN ---- */

/* Where a block of the type keeps what makes it NaN: one byte offset, or two for Q4_K. */
static int nan_places(enum qtype type, int at[2])
{
    at[0] = type == QTYPE_Q6_K ? 208 : 0;
    at[1] = 2;
    return type == QTYPE_Q4_K ? 2 : 1;
}

static void poke_nan(struct item *t, uint64_t block, int place)
{
    const uint64_t size = (uint64_t)qtype_info(t->type)->block_bytes;
    const uint32_t quiet = 0x7fc00000u;
    const uint16_t h = t->type == QTYPE_BF16 ? 0xffc1 : 0xfe01;
    if (t->type == QTYPE_F32) memcpy(t->data + block * size, &quiet, 4);
    else memcpy(t->data + block * size + place, &h, 2);
}

static int count_warnings(const tessera_engine *e, const char *what)
{
    int n = 0;
    for (int i = 0; tessera_warning(e, i); i++)
        n += strstr(tessera_warning(e, i), what) && strstr(tessera_warning(e, i), "bad.gguf");
    return n;
}

static void check_nan(struct model *m, const char *name, uint64_t block, int place)
{
    struct item *t = find(m, name);
    const uint64_t size = (uint64_t)qtype_info(t->type)->block_bytes;
    unsigned char kept[256];
    memcpy(kept, t->data + block * size, size);
    poke_nan(t, block, place);
    tessera_engine *e = open_file(save(m));
    assert_int_equal(count_warnings(e, name), 1);
    assert_non_null(strstr(tessera_warning(e, 0), "NaN"));
    assert_null(tessera_warning(e, 1));
    step(e, NULL);
    tessera_close(e);
    memcpy(t->data + block * size, kept, size);
}

/* Float types are looked through eight bytes at a time: every place, every remainder, the smallest
 * NaN of either sign beside infinities. */
static void test_nan_lanes(void **state)
{
    static const struct { enum qtype type; int bytes; uint32_t inf; } of[] = {
        {QTYPE_F32, 4, 0x7f800000}, {QTYPE_F16, 2, 0x7c00}, {QTYPE_BF16, 2, 0x7f80}};
    (void)state;
    for (size_t t = 0; t < sizeof of / sizeof *of; t++)
        for (int n = 1; n < 10; n++)
            for (int at = -1; at < n; at++)
                for (int sign = 0; sign < 2; sign++) {
                    const int b = of[t].bytes;
                    char p[9 * 4];
                    for (int i = 0; i < n; i++) {
                        const uint32_t minus = (uint32_t)((i + sign) & 1) << (8 * b - 1);
                        const uint32_t v = (of[t].inf + (i == at)) | minus;
                        memcpy(p + i * b, &v, (size_t)b);
                    }
                    assert_int_equal(part_has_nan(of[t].type, p, (uint64_t)(n * b)), at >= 0);
                }
}

static void test_nan(void **state)
{
    (void)state;
    static const enum qtype types[] = {QTYPE_F32,  QTYPE_F16,  QTYPE_BF16, QTYPE_Q8_0,
                                       QTYPE_Q4_0, QTYPE_Q4_K, QTYPE_Q6_K};
    static const char *const names[] = {"token_embd.weight", "blk.0.attn_q.weight",
                                        "blk.0.ffn_up_exps.weight", "blk.0.ffn_down_exps.weight"};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        struct model *m = model_of(small("qwen3moe", types[i]));
        tessera_engine *e = open_file(save(m));
        assert_null(tessera_warning(e, 0));
        tessera_close(e);
        int at[2];
        const int n = nan_places(types[i], at);
        for (int k = 0; k < 4; k++) {
            const struct item *t = find(m, names[k]);
            assert_int_equal(t->type, types[i]);
            const uint64_t blocks = t->bytes / (uint64_t)qtype_info(t->type)->block_bytes;
            check_nan(m, names[k], k % 2 ? 0 : blocks - 1, at[k % n]);
        }
        check_nan(m, "blk.0.ffn_gate_inp.weight", 5, 0);
        check_nan(m, "blk.0.ffn_norm.weight", 31, 0);
        model_free(m);
    }
}

/* All of it NaN: one warning per tensor as far as they are kept, and greedy text still ends. */
static void test_nan_everywhere(void **state)
{
    (void)state;
    struct model *m = model_of(small("qwen3moe", QTYPE_Q8_0));
    for (int i = 0; i < m->n; i++) {
        struct item *t = &m->at[i];
        const uint64_t n = t->bytes / (uint64_t)qtype_info(t->type)->block_bytes;
        for (uint64_t b = 0; b < n; b++) poke_nan(t, b, 0);
    }
    struct err err;
    tessera_engine *e = open_file(save(m));
    tessera_session *s;
    tessera_generator *g;
    const int32_t ids[3] = {1, 2, 3};
    struct tessera_answer a = {.stop = TESSERA_RUNNING};
    const float temps[2] = {0, 1};
    assert_int_equal(count_warnings(e, "NaN"), m->n < WARNINGS_MAX ? m->n : WARNINGS_MAX);
    for (int i = 0; i < 2; i++) {
        struct tessera_generator_options o = {.n_gen_max = 5};
        o.sampling = tessera_sampling_defaults();
        o.sampling.temp = temps[i];
        assert_int_equal(tessera_session_open(e, 0, &s, &err), OK);
        assert_int_equal(tessera_generator_open(s, ids, 3, &o, &g, &err), OK);
        do {
            assert_int_equal(tessera_generator_next(g, &a, &err), OK);
            assert_int_equal(a.id, 0); /* nothing is comparable */
        } while (!a.stop);
        tessera_generator_close(g);
        tessera_session_close(s);
    }
    tessera_close(e);
    model_free(m);
}

/* ---- the file itself ---- */

static void test_truncated(void **state)
{
    (void)state;
    struct model *m = good("qwen3moe");
    const uint64_t size = gguf_file_bytes(m->g);
    unsigned char *all = malloc(size);
    assert_non_null(all);
    read_at(gguf_path(m->g, 0), 0, all, size);
    const char *path = file("bad.gguf");
    int n = 0;
    for (uint64_t cut = 0; cut < size; cut += 4096, n++) {
        FILE *f = fopen(path, "wb");
        assert_non_null(f);
        assert_int_equal(fwrite(all, 1, cut, f), cut);
        assert_int_equal(fclose(f), 0);
        struct err e;
        tessera_engine *engine;
        const struct tessera_options o = options(path);
        assert_int_equal(tessera_open(&o, &engine, &e), ERR_FORMAT);
        assert_null(engine);
        assert_non_null(strstr(e.msg, "bad.gguf"));
        assert_true(e.pos <= cut);
    }
    assert_true(n > 10);
    free(all);
    model_free(m);
}

static void test_no_file(void **state)
{
    (void)state;
    struct err e;
    tessera_engine *engine;
    struct tessera_options o = options(file("nowhere.gguf"));
    assert_int_equal(tessera_open(&o, &engine, &e), ERR_IO);
    assert_non_null(strstr(e.msg, "nowhere.gguf"));
    o.model_path = dir;
    assert_int_equal(tessera_open(&o, &engine, &e), ERR_IO);
    assert_non_null(strstr(e.msg, "directory"));
    o.model_path = NULL;
    assert_int_equal(tessera_open(&o, &engine, &e), ERR_USAGE);
    FILE *f = fopen(file("text.gguf"), "w");
    assert_non_null(f);
    for (int i = 0; i < 1000; i++) (void)fputs("this is no model\n", f);
    assert_int_equal(fclose(f), 0);
    o.model_path = file("text.gguf");
    assert_int_equal(tessera_open(&o, &engine, &e), ERR_FORMAT);
    assert_non_null(strstr(e.msg, "text.gguf"));
    assert_null(engine);
}

struct shrink {
    const char *path;
    long size;
    int calls;
};

static bool shrink(void *arg, uint64_t done, uint64_t total)
{
    struct shrink *s = arg;
    assert_true(done <= total);
    if (!s->calls++) assert_int_equal(truncate(s->path, s->size), 0);
    return true;
}

/* The header was read and was right; then the file changes under the loader. */
static void test_shrunk(void **state)
{
    (void)state;
    struct model *m = good("qwen3moe");
    const uint64_t data = gguf_tensor_at(m->g, 0)->offset, size = gguf_file_bytes(m->g);
    for (uint64_t cut = data; cut < size; cut += (size - data) / 5) {
        struct err e;
        tessera_engine *engine;
        struct tessera_options o = options(save(m));
        struct shrink how = {o.model_path, (long)cut, 0};
        o.progress = shrink;
        o.progress_arg = &how;
        assert_int_equal(tessera_open(&o, &engine, &e), ERR_IO);
        assert_null(engine);
        assert_true(how.calls > 0);
        assert_non_null(strstr(e.msg, "bad.gguf"));
        /* Either a read came short (test_read_short makes sure of one), or all had been read before the
         * cut and the file is another. */
        const bool read_short = strstr(e.msg, "truncated or changed") != NULL;
        assert_true(read_short || strstr(e.msg, "was written to while"));
        assert_true(!read_short || (e.pos >= cut && e.pos <= size));
    }
    model_free(m);
}

static const char *cut_path;
static long cut_to;
static _Atomic int cut_calls;

static int64_t cut_pread(int fd, void *buf, size_t n, uint64_t offset)
{
    if (!atomic_fetch_add(&cut_calls, 1)) assert_int_equal(truncate(cut_path, cut_to), 0);
    return osfile_system.pread(fd, buf, n, offset);
}

/* Cut inside of the last tensor before anything is read: the place is told to the byte. */
static void test_read_short(void **state)
{
    (void)state;
    struct model *m = good("qwen3moe");
    struct err e;
    tessera_engine *engine;
    struct osfile_ops ops = osfile_system;
    ops.pread = cut_pread;
    struct tessera_options o = options(save(m));
    o.files = &ops;
    const struct gguf_tensor *last = gguf_tensor_at(m->g, gguf_n_tensors(m->g) - 1);
    const uint64_t cut = last->offset + last->bytes / 2;
    char text[64];
    cut_path = o.model_path;
    cut_to = (long)cut;
    atomic_store(&cut_calls, 0);
    assert_int_equal(tessera_open(&o, &engine, &e), ERR_IO);
    assert_null(engine);
    assert_int_equal(e.pos, cut);
    (void)snprintf(text, sizeof text, "bad.gguf ends at byte %llu", (unsigned long long)cut);
    assert_non_null(strstr(e.msg, text));
    assert_non_null(strstr(e.msg, "truncated or changed"));
    model_free(m);
}

/* The same between the header and the first read; and gone altogether. */
static void test_shrunk_before(void **state)
{
    (void)state;
    struct model *m = good("qwen3moe");
    for (int gone = 0; gone < 2; gone++) {
        const char *path = save(m);
        struct err e;
        struct gguf *g;
        const struct arch *arch;
        struct hparams hp;
        struct weights ws;
        struct build b;
        struct resid resid;
        struct ledger ledger;
        err_clear(&e);
        assert_int_equal(gguf_open(path, NULL, &g, &e), OK);
        assert_int_equal(arch_find(g, &arch, &e), OK);
        assert_int_equal(arch->hparams(g, &hp, &e), OK);
        weights_init(&ws, g);
        build_init(&b, &ws, &e);
        arch->describe(&b, &hp);
        const struct resid_options o = {.n_experts = 0}; /* experts as if they were matrices */
        assert_int_equal(resid_open(&resid, &ws, &o, &e), OK);
        assert_int_equal(gone ? unlink(path) : truncate(path, 5000), 0);
        ledger_init(&ledger, UINT64_MAX);
        resid_prepare(&resid, &(struct resid_start){.ledger = &ledger, .n_threads = 3});
        const struct placement all = place_all(&resid.sizes);
        assert_int_equal(resid_apply(&resid, &all, NULL, NULL, &e), ERR_IO);
        assert_non_null(strstr(e.msg, "bad.gguf"));
        resid_close(&resid);
        build_free(&b);
        weights_free(&ws);
        gguf_close(g);
        assert_int_equal(ledger.total, 0);
    }
    model_free(m);
}

static bool stop_loading(void *arg, uint64_t done, uint64_t total)
{
    (void)arg;
    return done < total / 3;
}

static void test_cancelled(void **state)
{
    (void)state;
    struct model *m = good("qwen3moe");
    struct err e;
    tessera_engine *engine;
    struct tessera_options o = options(save(m));
    o.progress = stop_loading;
    assert_int_equal(tessera_open(&o, &engine, &e), ERR_CANCELLED);
    assert_null(engine);
    model_free(m);
}

/* ---- tokenizer ---- */

/* A few tokens from ids alone; without a tokenizer there is no text. */
static void generate(tessera_engine *e, bool text)
{
    struct err err;
    tessera_session *s;
    tessera_generator *g;
    const int32_t ids[3] = {1, 20, 30};
    struct tessera_generator_options o = {.n_gen_max = 8, .ignore_end = true};
    struct tessera_answer a = {.stop = TESSERA_RUNNING};
    assert_int_equal(tessera_session_open(e, 0, &s, &err), OK);
    assert_int_equal(tessera_generator_open(s, ids, 3, &o, &g, &err), OK);
    while (!a.stop) {
        assert_int_equal(tessera_generator_next(g, &a, &err), OK);
        assert_true(a.id >= 0 && a.id < e->model.n_vocab);
        assert_non_null(a.text);
        assert_true(text || a.n_text == 0);
    }
    assert_int_equal(a.stop, TESSERA_STOP_LENGTH);
    tessera_generator_close(g);
    tessera_session_close(s);
}

static void test_no_tokenizer(void **state)
{
    (void)state;
    struct gen_spec spec = small("qwen3moe", QTYPE_F32);
    spec.byte_vocab = true;
    struct model *m = model_of(spec);
    tessera_engine *e = open_file(save(m));
    assert_non_null(tessera_tok(e));
    assert_string_equal(tessera_tok_error(e), "");
    generate(e, true);
    tessera_close(e);
    static const char *const keys[] = {"tokenizer.", "tokenizer.ggml.model",
                                       "tokenizer.ggml.tokens", "tokenizer.ggml.scores"};
    for (int i = 0; i < 4; i++) {
        m->key = keys[i];
        e = open_file(save(m));
        assert_null(tessera_tok(e));
        assert_non_null(strstr(tessera_tok_error(e), "tokenizer"));
        generate(e, false);
        tessera_close(e);
    }
    m->key = "tokenizer.ggml.model";
    m->put = put_str;
    m->arg = "runes";
    e = open_file(save(m));
    assert_null(tessera_tok(e));
    assert_non_null(strstr(tessera_tok_error(e), "runes"));
    tessera_close(e);
    model_free(m);
}

static void put_vocab(struct gguf_writer *w, const char *key, const void *arg)
{
    (void)key;
    (void)arg;
    gen_byte_vocab(w, NULL);
}

static void test_large_tokenizer(void **state)
{
    (void)state;
    struct model *m = good("qwen3moe"); /* 48 ids */
    m->key = "tokenizer.";
    m->put = put_vocab;
    tessera_engine *e = open_file(save(m));
    char want[64];
    (void)snprintf(want, sizeof want, "%d tokens but the model only 48", GEN_BYTE_VOCAB);
    assert_int_equal(count_warnings(e, want), 1);
    assert_null(tessera_warning(e, 1));
    generate(e, true);
    /* An id that only the tokenizer knows is refused. */
    struct err err;
    tessera_session *s;
    tessera_generator *g;
    const int32_t ids[2] = {1, 48};
    const struct tessera_generator_options o = {.n_gen_max = 1};
    err_clear(&err);
    assert_int_equal(tessera_session_open(e, 0, &s, &err), OK);
    assert_int_equal(tessera_generator_open(s, ids, 2, &o, &g, &err), ERR_RANGE);
    assert_null(g);
    assert_non_null(strstr(err.msg, "48"));
    tessera_session_close(s);
    tessera_close(e);
    model_free(m);
}

/* ---- two ways to write the same model ---- */

/* Old Mixtral files: every expert a matrix of its own. */
static void split_experts(struct model *m)
{
    for (int i = 0; i < m->n; i++) {
        struct item *t = &m->at[i], whole;
        char *at = strstr(t->name, "_exps.weight");
        if (!at) continue;
        *at = 0;
        whole = model_take(m, i);
        const uint64_t bytes = whole.bytes / whole.dim[2];
        for (uint64_t x = 0; x < whole.dim[2]; x++) {
            char name[192];
            (void)snprintf(name, sizeof name, "%s.%d.weight", whole.name, (int)x);
            struct item one = new_item(name, whole.type, whole.dim[0], whole.dim[1], bytes);
            memcpy(one.data, whole.data + x * bytes, bytes);
            model_insert(m, i + (int)x, one);
        }
        free(whole.data);
    }
}

static void test_old_mixtral(void **state)
{
    (void)state;
    static const enum qtype types[] = {QTYPE_F32, QTYPE_F16, QTYPE_Q8_0};
    for (int i = 0; i < 3; i++) {
        struct model *m = model_of(small("llama", types[i]));
        float want[48], got[48];
        logits_of(save(m), want);
        split_experts(m);
        logits_of(save(m), got);
        assert_memory_equal(want, got, sizeof got);
        model_free(m);
    }
    struct model *m = model_of(small("llama", QTYPE_F16));
    split_experts(m);
    for (int x = 0; x < 4; x++) {
        char name[64];
        (void)snprintf(name, sizeof name, "blk.0.ffn_up.%d.weight", x);
        struct item *t = find(m, name), was = *t;
        const int i = (int)(t - m->at);
        /* Another type; another shape; not there. */
        t->type = QTYPE_F32;
        t->bytes = 2 * was.bytes;
        t->data = calloc(1, t->bytes);
        (void)snprintf(name, sizeof name, "blk.0.ffn_up.%d.weight", x ? x : 1);
        refused(m, ERR_UNSUPPORTED, name); /* when the first one differs, the second is named */
        free(t->data);
        *t = was;
        t->dim[0] = was.dim[0] / 2;
        t->dim[1] = was.dim[1] * 2;
        refused(m, ERR_SHAPE, was.name);
        *t = was;
        was = model_take(m, i);
        refused(m, ERR_MISSING, was.name);
        model_insert(m, i, was);
    }
    /* NaN: the expert's own tensor is named. */
    check_nan(m, "blk.0.ffn_gate.2.weight", 3, 0);
    /* One expert more than the key says. */
    model_insert(m, m->n, new_item("blk.0.ffn_up.4.weight", QTYPE_F16, 32, 32, 2048));
    refused(m, ERR_UNSUPPORTED, "blk.0.ffn_up.4.weight");
    model_free(m);
}

static void test_tied(void **state)
{
    (void)state;
    static const enum qtype types[] = {QTYPE_F32,  QTYPE_F16,  QTYPE_BF16, QTYPE_Q8_0,
                                       QTYPE_Q4_0, QTYPE_Q4_K, QTYPE_Q6_K};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        struct model *m = model_of(small("qwen3moe", types[i]));
        struct item *out = find(m, "output.weight"), *embd = find(m, "token_embd.weight");
        float tied[48], untied[48];
        out->type = embd->type;
        out->bytes = embd->bytes;
        free(out->data);
        out->data = malloc(out->bytes);
        assert_non_null(out->data);
        memcpy(out->data, embd->data, out->bytes);
        logits_of(save(m), untied);
        struct item was = model_take(m, (int)(out - m->at));
        logits_of(save(m), tied);
        assert_memory_equal(tied, untied, sizeof tied);
        free(was.data);
        model_free(m);
    }
}

/* In memory where that is possible: the writer syncs each of the two thousand files. */
static int make_dir(void **state)
{
    (void)state;
    const char *root = access("/dev/shm", W_OK | X_OK) ? "/tmp" : "/dev/shm";
    (void)snprintf(dir, sizeof dir, "%s/tessera-bad-XXXXXX", root);
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
        cmocka_unit_test(test_good),           cmocka_unit_test(test_missing_key),
        cmocka_unit_test(test_key_type),       cmocka_unit_test(test_key_value),
        cmocka_unit_test(test_key_sweep),      cmocka_unit_test(test_rope_scaling),
        cmocka_unit_test(test_arch),           cmocka_unit_test(test_missing_tensor),
        cmocka_unit_test(test_tensor_shape),   cmocka_unit_test(test_tensor_type),
        cmocka_unit_test(test_extra_tensor),   cmocka_unit_test(test_nan_lanes),
        cmocka_unit_test(test_nan),
        cmocka_unit_test(test_nan_everywhere), cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_no_file),        cmocka_unit_test(test_shrunk),
        cmocka_unit_test(test_read_short),
        cmocka_unit_test(test_shrunk_before),  cmocka_unit_test(test_cancelled),
        cmocka_unit_test(test_no_tokenizer),   cmocka_unit_test(test_large_tokenizer),
        cmocka_unit_test(test_old_mixtral),    cmocka_unit_test(test_tied),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
