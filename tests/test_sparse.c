/* Popular releases as files of a header and a hole: the names, shapes and types of their tensors,
 * no weights.  Each must open, bind and plan without reading any, with the number of parameters
 * that its makers give, so that a wrong shape cannot hide.  Writes to a folder of its own in
 * /tmp. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "moe/tessera.h"
#include "quant/mm.h"
#include "tests/ggufblob.h"

/* GGUF's ids of types that may not be here yet. */
enum { F32 = 0, F16 = 1, Q5_0 = 6, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14, MXFP4 = 39 };

static char dir[64] = "/tmp/tessera-sparse-XXXXXX";

struct file {
    const char *arch;
    struct blob keys, tensors;
    uint64_t n_keys, n_tensors, bytes;
    bool substituted; /* a type without kernels became Q8_0 */
};

static void key_int(struct file *f, const char *key, uint64_t v)
{
    char full[96];
    (void)snprintf(full, sizeof full, "%s.%s", f->arch, key);
    blob_kv_int(&f->keys, full, GGUF_U32, v);
    f->n_keys++;
}

static void key_float(struct file *f, const char *key, float v)
{
    char full[96];
    uint32_t bits;
    memcpy(&bits, &v, 4);
    (void)snprintf(full, sizeof full, "%s.%s", f->arch, key);
    blob_key(&f->keys, full, GGUF_F32);
    blob_u32(&f->keys, bits);
    f->n_keys++;
}

static void key_str(struct file *f, const char *key, const char *v)
{
    blob_kv_str(&f->keys, key, v);
    f->n_keys++;
}

static uint32_t usable(struct file *f, uint32_t type)
{
    const struct qtype_info *t = qtype_info(type);
    if (t && (type == F32 || mm_kernels(CPU_REF)->mm[type])) return type;
    f->substituted = true;
    return Q8_0;
}

/* A tensor a x b x c.  Where blocks do not suit the columns the type falls back, as llama-quantize
 * has it: Q4_K to Q5_0, Q5_K and Q6_K to Q8_0 (Q5_1 for Q5_K, which no release here meets). */
static void tensor(struct file *f, int layer, const char *name, uint32_t type, int a, int b, int c)
{
    char full[96];
    const int dim[3] = {a, b, c}, n = c ? 3 : b ? 2 : 1;
    if (a % 256 && type == Q4_K) type = Q5_0;
    if (a % 256 && (type == Q5_K || type == Q6_K)) type = Q8_0;
    type = usable(f, type);
    if (layer >= 0) (void)snprintf(full, sizeof full, "blk.%d.%s", layer, name);
    else (void)snprintf(full, sizeof full, "%s", name);
    blob_str(&f->tensors, full);
    blob_u32(&f->tensors, (uint32_t)n);
    for (int i = 0; i < n; i++) blob_u64(&f->tensors, (uint64_t)dim[i]);
    blob_u32(&f->tensors, type);
    blob_u64(&f->tensors, f->bytes);
    f->bytes += qtype_bytes((enum qtype)type, (uint64_t)a) * (uint64_t)(b ? b : 1) *
                (uint64_t)(c ? c : 1);
    f->bytes = (f->bytes + 31) / 32 * 32;
    f->n_tensors++;
}

static void write_file(struct file *f, const char *path)
{
    struct blob all = {0};
    blob_head(&all, 3, f->n_tensors, f->n_keys);
    blob_put(&all, f->keys.p, f->keys.n);
    blob_put(&all, f->tensors.p, f->tensors.n);
    blob_pad(&all, 32);
    FILE *to = fopen(path, "wb");
    assert_non_null(to);
    assert_int_equal(fwrite(all.p, 1, all.n, to), all.n);
    assert_int_equal(fclose(to), 0);
    if (truncate(path, (off_t)(all.n + f->bytes))) fail_msg("no sparse file: %s", strerror(errno));
    blob_free(&all);
    blob_free(&f->keys);
    blob_free(&f->tensors);
}

/* ---- the releases ---- */

struct release {
    const char *name, *arch;
    int layers, ctx, embd, ff, ff_exp, heads, kv, dim, vocab, experts, used;
    float base, eps;
    void (*keys)(struct file *f);
    void (*layer)(struct file *f, const struct release *m, int l);
    uint32_t embd_type, output_type;
    uint64_t n_params;        /* as published */
    uint64_t kv_bytes;        /* of one token, F16 */
};

/* The layers that llama-quantize gives more bits in a Q4_K_M. */
static uint32_t q4_or_q6(const struct release *m, int l)
{
    const int n = m->layers;
    return l < n / 8 || l >= 7 * n / 8 || (l - n / 8) % 3 == 2 ? Q6_K : Q4_K;
}

static void attention(struct file *f, const struct release *m, int l, uint32_t qk, uint32_t v,
                      uint32_t o)
{
    const int nq = m->heads * m->dim, nkv = m->kv * m->dim;
    tensor(f, l, "attn_norm.weight", F32, m->embd, 0, 0);
    tensor(f, l, "attn_q.weight", qk, m->embd, nq, 0);
    tensor(f, l, "attn_k.weight", m->experts == 8 ? Q8_0 : qk, m->embd, nkv, 0);
    tensor(f, l, "attn_v.weight", v, m->embd, nkv, 0);
    tensor(f, l, "attn_output.weight", o, nq, m->embd, 0);
}

static void qkv_biases(struct file *f, const struct release *m, int l)
{
    tensor(f, l, "attn_q.bias", F32, m->heads * m->dim, 0, 0);
    tensor(f, l, "attn_k.bias", F32, m->kv * m->dim, 0, 0);
    tensor(f, l, "attn_v.bias", F32, m->kv * m->dim, 0, 0);
}

static void qk_norms(struct file *f, int l, int q, int k)
{
    tensor(f, l, "attn_q_norm.weight", F32, q, 0, 0);
    tensor(f, l, "attn_k_norm.weight", F32, k, 0, 0);
}

static void experts(struct file *f, const struct release *m, int l, uint32_t gate_up, uint32_t down)
{
    tensor(f, l, "ffn_gate_inp.weight", F32, m->embd, m->experts, 0);
    tensor(f, l, "ffn_gate_exps.weight", gate_up, m->embd, m->ff_exp, m->experts);
    tensor(f, l, "ffn_up_exps.weight", gate_up, m->embd, m->ff_exp, m->experts);
    tensor(f, l, "ffn_down_exps.weight", down, m->ff_exp, m->embd, m->experts);
}

/* Q4_K_M with eight experts: more bits for K, V and the attention's output. */
static void mixtral_layer(struct file *f, const struct release *m, int l)
{
    attention(f, m, l, Q4_K, Q8_0, Q5_K);
    tensor(f, l, "ffn_norm.weight", F32, m->embd, 0, 0);
    experts(f, m, l, Q4_K, q4_or_q6(m, l));
}

/* As the first files had it: every expert a matrix of its own, the router in F16. */
static void old_mixtral_layer(struct file *f, const struct release *m, int l)
{
    attention(f, m, l, Q4_K, Q8_0, Q5_K);
    tensor(f, l, "ffn_norm.weight", F32, m->embd, 0, 0);
    tensor(f, l, "ffn_gate_inp.weight", F16, m->embd, m->experts, 0);
    for (int i = 0; i < m->experts; i++) {
        char name[3][32];
        (void)snprintf(name[0], sizeof name[0], "ffn_gate.%d.weight", i);
        (void)snprintf(name[1], sizeof name[1], "ffn_up.%d.weight", i);
        (void)snprintf(name[2], sizeof name[2], "ffn_down.%d.weight", i);
        tensor(f, l, name[0], Q4_K, m->embd, m->ff_exp, 0);
        tensor(f, l, name[1], Q4_K, m->embd, m->ff_exp, 0);
        tensor(f, l, name[2], q4_or_q6(m, l), m->ff_exp, m->embd, 0);
    }
}

static void qwen3moe_layer(struct file *f, const struct release *m, int l)
{
    attention(f, m, l, Q4_K, q4_or_q6(m, l), Q4_K);
    qk_norms(f, l, m->dim, m->dim);
    tensor(f, l, "ffn_norm.weight", F32, m->embd, 0, 0);
    experts(f, m, l, Q4_K, q4_or_q6(m, l));
}

static void olmoe_layer(struct file *f, const struct release *m, int l)
{
    attention(f, m, l, Q4_K, q4_or_q6(m, l), Q4_K);
    qk_norms(f, l, m->embd, m->embd);
    tensor(f, l, "ffn_norm.weight", F32, m->embd, 0, 0);
    experts(f, m, l, Q4_K, q4_or_q6(m, l));
}

static void gptoss_keys(struct file *f)
{
    key_int(f, "attention.sliding_window", 128);
    key_str(f, "gpt-oss.rope.scaling.type", "yarn");
    key_float(f, "rope.scaling.factor", 32);
    key_int(f, "rope.scaling.original_context_length", 4096);
}

static void gptoss_layer(struct file *f, const struct release *m, int l)
{
    attention(f, m, l, Q8_0, Q8_0, Q8_0);
    qkv_biases(f, m, l);
    tensor(f, l, "attn_output.bias", F32, m->embd, 0, 0);
    tensor(f, l, "attn_sinks.weight", F32, m->heads, 0, 0);
    tensor(f, l, "post_attention_norm.weight", F32, m->embd, 0, 0);
    experts(f, m, l, MXFP4, MXFP4);
    tensor(f, l, "ffn_gate_inp.bias", F32, m->experts, 0, 0);
    tensor(f, l, "ffn_gate_exps.bias", F32, m->ff_exp, m->experts, 0);
    tensor(f, l, "ffn_up_exps.bias", F32, m->ff_exp, m->experts, 0);
    tensor(f, l, "ffn_down_exps.bias", F32, m->embd, m->experts, 0);
}

static void glm_keys(struct file *f)
{
    key_int(f, "rope.dimension_count", 64);
    key_int(f, "expert_shared_count", 1);
    key_int(f, "leading_dense_block_count", 1);
    key_int(f, "nextn_predict_layers", 1);
    key_int(f, "expert_gating_func", 2);
    key_float(f, "expert_weights_scale", 1.0f);
    blob_kv_int(&f->keys, "glm4moe.expert_weights_norm", GGUF_BOOL, 1);
    f->n_keys++;
}

static void glm_nextn(struct file *f, const struct release *m, int l)
{
    static const char *const norms[] = {"nextn.enorm.weight", "nextn.hnorm.weight",
                                        "nextn.shared_head_norm.weight"};
    tensor(f, l, "nextn.eh_proj.weight", Q4_K, 2 * m->embd, m->embd, 0);
    tensor(f, l, "nextn.embed_tokens.weight", Q4_K, m->embd, m->vocab, 0);
    tensor(f, l, "nextn.shared_head_head.weight", Q4_K, m->embd, m->vocab, 0);
    for (int i = 0; i < 3; i++) tensor(f, l, norms[i], F32, m->embd, 0, 0);
}

static void glm_layer(struct file *f, const struct release *m, int l)
{
    const uint32_t down = q4_or_q6(m, l);
    attention(f, m, l, Q4_K, down, Q4_K);
    qkv_biases(f, m, l);
    tensor(f, l, "post_attention_norm.weight", F32, m->embd, 0, 0);
    if (l == 0) {
        tensor(f, l, "ffn_gate.weight", Q4_K, m->embd, m->ff, 0);
        tensor(f, l, "ffn_up.weight", Q4_K, m->embd, m->ff, 0);
        tensor(f, l, "ffn_down.weight", down, m->ff, m->embd, 0);
        return;
    }
    experts(f, m, l, Q4_K, down);
    tensor(f, l, "exp_probs_b.bias", F32, m->experts, 0, 0);
    tensor(f, l, "ffn_gate_shexp.weight", Q4_K, m->embd, m->ff_exp, 0);
    tensor(f, l, "ffn_up_shexp.weight", Q4_K, m->embd, m->ff_exp, 0);
    tensor(f, l, "ffn_down_shexp.weight", down, m->ff_exp, m->embd, 0);
    if (l == m->layers - 1) glm_nextn(f, m, l);
}

static const struct release releases[] = {
    {"Mixtral-8x7B Q4_K_M", "llama", 32, 32768, 4096, 14336, 14336, 32, 8, 128, 32000, 8, 2, 1e6f,
     1e-5f, NULL, mixtral_layer, Q4_K, Q6_K, 46702792704u, 2 * 2 * 32 * 1024},
    {"Mixtral-8x7B Q4_K_M, split", "llama", 32, 32768, 4096, 14336, 14336, 32, 8, 128, 32000, 8, 2,
     1e6f, 1e-5f, NULL, old_mixtral_layer, Q4_K, Q6_K, 46702792704u, 2 * 2 * 32 * 1024},
    {"Qwen3-30B-A3B Q4_K_M", "qwen3moe", 48, 40960, 2048, 6144, 768, 32, 4, 128, 151936, 128, 8,
     1e6f, 1e-6f, NULL, qwen3moe_layer, Q4_K, Q6_K, 30532122624u, 2 * 2 * 48 * 512},
    {"gpt-oss-20b MXFP4", "gpt-oss", 24, 131072, 2880, 2880, 2880, 64, 8, 64, 201088, 32, 4, 150000,
     1e-5f, gptoss_keys, gptoss_layer, Q8_0, Q8_0, 20914757184u, 2 * 2 * 24 * 512},
    {"gpt-oss-120b MXFP4", "gpt-oss", 36, 131072, 2880, 2880, 2880, 64, 8, 64, 201088, 128, 4,
     150000, 1e-5f, gptoss_keys, gptoss_layer, Q8_0, Q8_0, 116829156672u, 2 * 2 * 36 * 512},
    /* 110,468,824,832 with the layer that does not run. */
    {"GLM-4.5-Air Q4_K_M", "glm4moe", 47, 131072, 4096, 10944, 1408, 96, 8, 128, 151552, 128, 8,
     1e6f, 1e-5f, glm_keys, glm_layer, Q4_K, Q6_K, 106852251264u, 2 * 2 * 46 * 1024},
    {"OLMoE-1B-7B Q4_K_M", "olmoe", 16, 4096, 2048, 1024, 1024, 16, 16, 128, 50304, 64, 8, 1e4f,
     1e-5f, NULL, olmoe_layer, Q4_K, Q6_K, 6919161856u, 2 * 2 * 16 * 2048},
};

static void describe(struct file *f, const struct release *m)
{
    f->arch = m->arch;
    key_str(f, "general.architecture", m->arch);
    key_str(f, "general.name", m->name);
    const struct { const char *key; int v; } ints[] = {
        {"block_count", m->layers}, {"context_length", m->ctx}, {"embedding_length", m->embd},
        {"feed_forward_length", m->ff}, {"attention.head_count", m->heads},
        {"attention.head_count_kv", m->kv}, {"attention.key_length", m->dim},
        {"attention.value_length", m->dim}, {"expert_count", m->experts},
        {"expert_used_count", m->used}, {"expert_feed_forward_length", m->ff_exp},
    };
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++)
        key_int(f, ints[i].key, (uint64_t)ints[i].v);
    key_float(f, "attention.layer_norm_rms_epsilon", m->eps);
    key_float(f, "rope.freq_base", m->base);
    if (m->keys) m->keys(f);
    tensor(f, -1, "token_embd.weight", m->embd_type, m->embd, m->vocab, 0);
    tensor(f, -1, "output.weight", m->output_type, m->embd, m->vocab, 0);
    tensor(f, -1, "output_norm.weight", F32, m->embd, 0, 0);
    for (int l = 0; l < m->layers; l++) m->layer(f, m, l);
}

/* ---- the checks ---- */

static tessera_engine *open_plan(const char *path, uint64_t budget, int n_ctx)
{
    struct err e;
    tessera_engine *engine;
    struct tessera_options o = tessera_defaults();
    o.model_path = path;
    o.mem_budget = budget;
    o.n_ctx = n_ctx;
    o.header_only = true;
    if (tessera_open(&o, &engine, &e)) fail_msg("%s", e.msg);
    return engine;
}

/* "kv": bytes in the plan's JSON. */
static double planned(const char *json, const char *what)
{
    char key[32];
    (void)snprintf(key, sizeof key, "\"%s\":", what);
    const char *at = strstr(json, key);
    if (!at) fail_msg("the plan has no %s", what);
    return strtod(at + strlen(key), NULL);
}

static void check_plan(const struct release *m, const tessera_engine *e, int n_ctx)
{
    struct err err;
    char *text = NULL;
    size_t n = 0;
    for (int json = 0; json < 2; json++) {
        FILE *to = open_memstream(&text, &n);
        assert_non_null(to);
        assert_int_equal(tessera_explain(e, to, json, &err), OK);
        assert_int_equal(fclose(to), 0);
        assert_non_null(strstr(text, m->name));
        if (json)
            assert_true(planned(text, "kv") == (double)m->kv_bytes * n_ctx);
        free(text);
    }
}

static void test_releases(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof releases / sizeof *releases; i++) {
        const struct release *m = &releases[i];
        char path[128];
        struct file f = {0};
        struct stat st;
        describe(&f, m);
        (void)snprintf(path, sizeof path, "%s/release.gguf", dir);
        write_file(&f, path);
        assert_int_equal(stat(path, &st), 0);
        assert_true(st.st_blocks * 512 < st.st_size / 100); /* a hole indeed */
        tessera_engine *e = open_plan(path, UINT64_MAX, 4096);
        const struct tessera_model model = tessera_model(e);
        printf("[  NOTE    ] %s: %.1f GB, %llu parameters, %llu per token%s\n", m->name,
               (double)st.st_size / 1e9, (unsigned long long)model.n_params,
               (unsigned long long)model.n_params_active,
               f.substituted ? " (Q8_0 for a type without kernels)" : "");
        assert_true(model.n_params == m->n_params);
        assert_int_equal(tessera_memory(e).weights, 0);
        check_plan(m, e, 4096);
        tessera_close(e);
        (void)unlink(path);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_releases)};
    if (!mkdtemp(dir)) return 1;
    const int bad = cmocka_run_group_tests(tests, NULL, NULL);
    (void)rmdir(dir);
    return bad;
}
