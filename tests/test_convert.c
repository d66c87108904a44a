/* Hugging Face checkpoints to GGUF: the tiny ones in tests/convert (tests/convert/make.py) against
 *   - what llama.cpp's converter makes of the same folder, key by key and tensor by tensor;
 *   - the logits that transformers computes from it;
 *   - the ids that the tokenizers library gives;
 * and folders that must be refused.  Writes to a folder of its own in /tmp. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "moe/load/tok.h"
#include "moe/tessera.h"
#include "quant/build/convert.h"
#include "tests/metric.h"
#include "tests/shared.h"

static const char *const models[] = {
    "llama2", "llama3", "mixtral", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "qwen3moe-fused",
    "olmoe", "deepseek2", "deepseek3", "gpt-oss", "gpt-oss-bf16", "dream", "llada", "llada-moe", "rnd1",
};
enum { N_MODELS = sizeof models / sizeof *models, N_IDS = 25, N_POS = 4 };

static char dir[64] = "/tmp/tessera-convert-XXXXXX";
static char out[96];

static int make_dir(void **state)
{
    (void)state;
    if (!mkdtemp(dir)) return -1;
    (void)snprintf(out, sizeof out, "%s/out.gguf", dir);
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    (void)unlink(out);
    return rmdir(dir); /* fails when something was left behind */
}

static const char *fixture(const char *name, const char *tail)
{
    static char path[4][160];
    static int turn;
    char *p = path[turn++ % 4];
    (void)snprintf(p, sizeof path[0], "tests/convert/%s%s", name, tail);
    return p;
}

/* ---- converting ---- */

static enum status convert_with(struct convert_options o, int threads, struct err *e)
{
    struct convert c;
    struct pool *pool;
    err_clear(e);
    assert_int_equal(pool_open(threads, &pool, NULL), OK);
    enum status s = convert_open(&c, &o, e);
    if (!s) s = convert_write(&c, out, pool, NULL, NULL, e);
    convert_close(&c);
    pool_close(pool);
    assert_int_equal(s, e->code);
    return s;
}

static void convert(const char *name, enum convert_type type)
{
    struct err e;
    if (convert_with((struct convert_options){.dir = fixture(name, ""), .type = type}, 2, &e))
        fail_msg("%s: %s", name, e.msg);
}

/* ---- as llama.cpp's converter ---- */

/* A line of a .want file is words with blanks between, the last goes to the end. */
static char *word(char **at)
{
    char *w = *at;
    *at += strcspn(w, " ");
    if (**at) *(*at)++ = 0;
    return w;
}

static const char *kind_name(enum gguf_type t)
{
    static const char *const names[GGUF_TYPE_N] = {
        [GGUF_U32] = "UINT32", [GGUF_I32] = "INT32", [GGUF_F32] = "FLOAT32", [GGUF_BOOL] = "BOOL",
        [GGUF_STRING] = "STRING", [GGUF_ARRAY] = "ARRAY",
    };
    return names[t] ? names[t] : "?";
}

static bool same_scalar(const struct gguf_value *v, uint64_t i, enum gguf_type t, const cJSON *x)
{
    if (t == GGUF_F32) return cJSON_IsNumber(x) && gguf_elem_f64(v, i) == x->valuedouble;
    if (t == GGUF_BOOL) return cJSON_IsBool(x) && gguf_elem_u64(v, i) == (uint64_t)cJSON_IsTrue(x);
    return cJSON_IsNumber(x) && (double)gguf_elem_i64(v, i) == x->valuedouble;
}

static bool same_text(const char *s, uint64_t n, const cJSON *x)
{
    return cJSON_IsString(x) && strlen(x->valuestring) == n && !memcmp(s, x->valuestring, n);
}

static bool same_value(const struct gguf_value *v, const cJSON *x)
{
    uint64_t cursor = 0, i = 0;
    if (v->type == GGUF_STRING) return same_text(v->data, v->bytes, x);
    if (v->type != GGUF_ARRAY) return same_scalar(v, 0, v->type, x);
    if ((uint64_t)cJSON_GetArraySize(x) != v->n) return false;
    for (const cJSON *y = x->child; y; y = y->next, i++) {
        if (v->elem != GGUF_STRING) {
            if (!same_scalar(v, i, v->elem, y)) return false;
            continue;
        }
        const struct gguf_str s = gguf_elem_next_str(v, &cursor);
        if (!same_text(s.s, s.n, y)) return false;
    }
    return true;
}

/* Where we differ on purpose. */
static bool ours_may_miss(const char *key)
{
    return !strcmp(key, "tokenizer.ggml.add_sep_token"); /* says nothing about one text */
}

static bool ours_may_add(const char *key)
{
    return strstr(key, ".attention.key_length") || strstr(key, ".attention.value_length") ||
           !strcmp(key, "tokenizer.ggml.unknown_token_id") ||
           !strcmp(key, "tokenizer.ggml.eot_token_id");
}

static void want_key(const char *name, const struct gguf *g, char *at)
{
    char *key = word(&at), *kind = word(&at), mine[40];
    const struct gguf_kv *kv = gguf_find(g, key);
    if (!kv) {
        if (!ours_may_miss(key)) fail_msg("%s: no key %s", name, key);
        return;
    }
    (void)snprintf(mine, sizeof mine, "%s%s%s", kind_name(kv->value.type),
                   kv->value.type == GGUF_ARRAY ? "/" : "",
                   kv->value.type == GGUF_ARRAY ? kind_name(kv->value.elem) : "");
    if (strcmp(mine, kind)) fail_msg("%s: key %s is %s, not %s", name, key, mine, kind);
    /* There all scores are -1000 where a folder has no tokenizer.model. */
    if (!strcmp(key, "tokenizer.ggml.scores") && !strcmp(name, "mixtral")) return;
    cJSON *x = cJSON_Parse(at);
    assert_non_null(x);
    if (!same_value(&kv->value, x)) fail_msg("%s: key %s is not %.200s", name, key, at);
    cJSON_Delete(x);
}

static uint64_t fnv(const char *p, uint64_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (uint64_t i = 0; i < n; i++) h = (h ^ (uint8_t)p[i]) * 0x100000001b3u;
    return h;
}

static void want_tensor(const char *name, const struct gguf *g, const char *file, char *at)
{
    const char *tensor = word(&at), *type = word(&at), *shape = word(&at);
    const struct gguf_tensor *t = gguf_find_tensor(g, tensor);
    char mine[96];
    int n = 0;
    if (!t) fail_msg("%s: no tensor %s", name, tensor);
    for (int i = 0; i < t->n_dims; i++)
        n += snprintf(mine + n, sizeof mine - (size_t)n, "%s%llu", i ? "x" : "",
                      (unsigned long long)t->dim[i]);
    if (strcmp(mine, shape)) fail_msg("%s: tensor %s is %s, not %s", name, tensor, mine, shape);
    assert_string_equal(qtype_info(t->type)->name, type);
    if (!strcmp(tensor, "rope_freqs.weight")) return; /* see want_values */
    if (fnv(file + t->offset, t->bytes) != strtoull(at, NULL, 16))
        fail_msg("%s: tensor %s %s has other bytes", name, tensor, type);
}

static void want_values(const char *name, const struct gguf *g, const char *file, char *at)
{
    const struct gguf_tensor *t = gguf_find_tensor(g, word(&at));
    cJSON *x = cJSON_Parse(at);
    assert_true(t && t->type == QTYPE_F32 && x);
    assert_int_equal(cJSON_GetArraySize(x), t->dim[0]);
    const float *v = (const float *)(const void *)(file + t->offset);
    for (const cJSON *y = x->child; y; y = y->next, v++)
        if (!(fabs((double)*v / y->valuedouble - 1) < 3e-7))
            fail_msg("%s: %g, not %g", name, (double)*v, y->valuedouble);
    cJSON_Delete(x);
}

/* Every line of the section `outtype`, and nothing else. */
static void as_wanted(const char *name, const char *outtype)
{
    size_t n, n_file;
    struct gguf *g;
    char *text = shared_slurp(fixture(name, ".want"), &n), *file = shared_slurp(out, &n_file);
    bool inside = false, all_keys = false;
    uint64_t n_tensors = 0, n_keys = 0;
    assert_true(text && file);
    assert_int_equal(gguf_open(out, NULL, &g, NULL), OK);
    for (char *line = text, *end; *line; line = end) {
        end = line + strcspn(line, "\n");
        if (*end) *end++ = 0;
        const char *what = word(&line);
        if (!strcmp(what, "outtype")) {
            inside = !strcmp(line, outtype);
            all_keys = inside && !strcmp(outtype, "f32");
            if (inside) n_tensors = 0;
        } else if (inside && !strcmp(what, "key")) {
            n_keys += !ours_may_miss(line);
            want_key(name, g, line);
        } else if (inside && !strcmp(what, "values")) {
            want_values(name, g, file, line);
        } else if (inside) {
            n_tensors++;
            want_tensor(name, g, file, line);
        }
        if (all_keys && (!*end || !strncmp(end, "outtype", 7))) break;
    }
    assert_true(n_tensors > 10);
    for (uint64_t i = 0; all_keys && i < gguf_n_kv(g); i++) {
        char key[96];
        const struct gguf_str k = gguf_kv_at(g, i)->key;
        (void)snprintf(key, sizeof key, "%.*s", (int)k.n, k.s);
        if (ours_may_add(key)) continue;
        /* Written by us: it must have been wanted. */
        char find[120];
        (void)snprintf(find, sizeof find, "key %s ", key);
        size_t m;
        char *again = shared_slurp(fixture(name, ".want"), &m);
        if (!strstr(again, find)) fail_msg("%s: llama.cpp writes no key %s", name, key);
        free(again);
    }
    assert_true(!all_keys || n_keys > 22);
    gguf_close(g);
    free(text);
    free(file);
}

static uint64_t wanted_tensors(const char *name)
{
    size_t n;
    uint64_t count = 0;
    char *text = shared_slurp(fixture(name, ".want"), &n);
    assert_non_null(text);
    char *end = strstr(text, "outtype q8_0");
    assert_non_null(end);
    for (const char *p = text; (p = strstr(p, "\ntensor ")) && p < end; p++) count++;
    free(text);
    return count;
}

static void test_as_llamacpp(void **state)
{
    (void)state;
    static const struct { const char *name; enum convert_type type; } types[] = {
        {"f32", CONVERT_F32}, {"q8_0", CONVERT_Q8_0}, {"auto", CONVERT_AUTO},
    };
    for (int i = 0; i < N_MODELS; i++)
        for (size_t k = 0; k < 3; k++) {
            struct gguf *g;
            convert(models[i], types[k].type);
            as_wanted(models[i], types[k].name);
            assert_int_equal(gguf_open(out, NULL, &g, NULL), OK);
            assert_int_equal(gguf_n_tensors(g), wanted_tensors(models[i]));
            gguf_close(g);
        }
}

/* ---- as transformers computes ---- */

static void read_ids(const char *name, int32_t *ids)
{
    assert_true(shared_ids(fixture(name, ".ids"), N_IDS, ids));
}

/* Logits of the converted file against the fixture: the largest error of a position. */
static double distance(const char *name)
{
    struct err e;
    tessera_engine *engine;
    tessera_session *s;
    int32_t ids[N_IDS];
    size_t n;
    double worst = 0;
    struct tessera_options o = tessera_defaults();
    o.model_path = out;
    o.n_threads = 2;
    read_ids(name, ids);
    char *ref = shared_slurp(fixture(name, ".logits.f32"), &n);
    assert_non_null(ref);
    if (tessera_open(&o, &engine, &e)) fail_msg("%s: %s", name, e.msg);
    if (tessera_session_open(engine, 0, &s, &e)) fail_msg("%s: %s", name, e.msg);
    const size_t nv = (size_t)tessera_model(engine).n_vocab;
    assert_int_equal(n, sizeof(float) * N_POS * nv);
    const struct tessera_input in = {s, ids, N_IDS, TESSERA_LOGITS_ALL};
    if (tessera_step(engine, &in, 1, &e)) fail_msg("%s: %s", name, e.msg);
    for (int i = 0; i < N_POS; i++) {
        const float *r = (const float *)(const void *)ref + (size_t)i * nv;
        const double d =
            metric_nmse(tessera_logits(engine, 0, i * (N_IDS - 1) / (N_POS - 1)), r, nv);
        worst = isnan(d) || isnan(worst) ? NAN : fmax(worst, d);
    }
    free(ref);
    tessera_session_close(s);
    tessera_close(engine);
    return worst;
}

/* The cache is F16, which is some 1e-7; products with MXFP4 quantise what meets them. */
static double bound(const char *name) { return strcmp(name, "gpt-oss") ? 2e-6 : 2e-4; }

static void test_as_transformers(void **state)
{
    (void)state;
    for (int i = 0; i < N_MODELS; i++) {
        convert(models[i], CONVERT_F32);
        const double d = distance(models[i]);
        if (!(d < bound(models[i]))) fail_msg("%s: error %g", models[i], d);
    }
}

/* Changes the bytes of one tensor of the converted file. */
static void mutate(const char *tensor, void (*change)(char *p, const struct gguf_tensor *t))
{
    struct gguf *g;
    size_t n = 0;
    char *file = shared_slurp(out, &n);
    assert_int_equal(gguf_open(out, NULL, &g, NULL), OK);
    const struct gguf_tensor *t = gguf_find_tensor(g, tensor);
    assert_non_null(t);
    change(file + t->offset, t);
    FILE *f = fopen(out, "wb");
    assert_true(f && fwrite(file, 1, n, f) == n && !fclose(f));
    gguf_close(g);
    free(file);
}

/* Two rows change places. */
static void swap_rows(char *p, const struct gguf_tensor *t)
{
    const size_t row = t->dim[0] * sizeof(float);
    for (size_t i = 0; i < row; i++) {
        const char c = p[i];
        p[i] = p[row + i];
        p[row + i] = c;
    }
}

/* Two experts change places. */
static void swap_experts(char *p, const struct gguf_tensor *t)
{
    const size_t mat = t->dim[0] * t->dim[1] * sizeof(float);
    for (size_t i = 0; i < mat; i++) {
        const char c = p[i];
        p[i] = p[mat + i];
        p[mat + i] = c;
    }
}

/* What a wrong order would do must be seen: the bounds can fail. */
static void test_mutations(void **state)
{
    (void)state;
    static const struct {
        const char *model, *tensor;
        void (*change)(char *p, const struct gguf_tensor *t);
    } cases[] = {
        {"llama3", "blk.0.attn_q.weight", swap_rows}, {"llama2", "blk.1.attn_k.weight", swap_rows},
        {"mixtral", "blk.0.ffn_gate_exps.weight", swap_experts},
        {"qwen3moe-fused", "blk.1.ffn_up_exps.weight", swap_experts},
        {"deepseek3", "blk.1.attn_k_b.weight", swap_rows},
        {"deepseek2", "blk.0.attn_v_b.weight", swap_experts},
        {"gpt-oss-bf16", "blk.1.ffn_down_exps.weight", swap_rows},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        convert(cases[i].model, CONVERT_F32);
        mutate(cases[i].tensor, cases[i].change);
        const double d = distance(cases[i].model);
        if (!(d > 5 * bound(cases[i].model)))
            fail_msg("%s: %s: error %g only", cases[i].model, cases[i].tensor, d);
    }
}

/* ---- as the tokenizers library encodes ---- */

static void same_ids(const char *name, const struct tok *t, const cJSON *line)
{
    const char *text = cJSON_GetStringValue(line->child);
    const cJSON *want = line->child->next;
    int32_t ids[512];
    const int64_t n = tok_encode(t, text, strlen(text), TOK_SPECIAL, ids, 512);
    bool same = n == cJSON_GetArraySize(want);
    int i = 0;
    for (const cJSON *x = want->child; x && same; x = x->next) same = ids[i++] == x->valueint;
    if (!same) {
        printf("%s: \"%s\":", name, text);
        for (i = 0; i < n; i++) printf(" %d", (int)ids[i]);
        printf("\n");
        fail_msg("%s: other ids for \"%s\"", name, text);
    }
}

static void test_as_tokenizers(void **state)
{
    (void)state;
    for (int i = 0; i < N_MODELS; i++) {
        struct gguf *g;
        struct tok *t;
        struct err e;
        size_t n;
        int lines = 0;
        err_clear(&e);
        convert(models[i], CONVERT_AUTO);
        assert_int_equal(gguf_open(out, NULL, &g, NULL), OK);
        if (tok_open(g, &t, &e)) fail_msg("%s: %s", models[i], e.msg);
        char *text = shared_slurp(fixture(models[i], ".texts"), &n);
        assert_non_null(text);
        for (char *line = text, *end; *line; line = end, lines++) {
            end = line + strcspn(line, "\n");
            if (*end) *end++ = 0;
            cJSON *x = cJSON_Parse(line);
            assert_non_null(x);
            same_ids(models[i], t, x);
            cJSON_Delete(x);
        }
        assert_int_equal(lines, 12);
        free(text);
        tok_close(t);
        gguf_close(g);
    }
}

/* ---- folders that are not as they should be ---- */

static char bad_dir[96];

/* Empties the folder of the last variant and removes it. */
static void clear_variant(void)
{
    DIR *d = opendir(bad_dir);
    for (struct dirent *f; d && (f = readdir(d));) {
        char path[400];
        (void)snprintf(path, sizeof path, "%s/%s", bad_dir, f->d_name);
        if (f->d_name[0] != '.') (void)unlink(path);
    }
    if (d) closedir(d);
    (void)rmdir(bad_dir);
}

/* A copy of a checkpoint in which `from` in one file is `to` (once); from NULL: without that file. */
static void variant(const char *name, const char *file, const char *from, const char *to)
{
    char here[300], there[400], cwd[1000], target[1400];
    (void)snprintf(bad_dir, sizeof bad_dir, "%s/tiny-model", dir);
    clear_variant();
    assert_int_equal(mkdir(bad_dir, 0700), 0);
    assert_non_null(getcwd(cwd, sizeof cwd));
    DIR *d = opendir(fixture(name, ""));
    assert_non_null(d);
    for (struct dirent *f; (f = readdir(d));) {
        if (f->d_name[0] == '.' || !strcmp(f->d_name, file)) continue;
        (void)snprintf(target, sizeof target, "%s/%s/%s", cwd, fixture(name, ""), f->d_name);
        (void)snprintf(there, sizeof there, "%s/%s", bad_dir, f->d_name);
        assert_int_equal(symlink(target, there), 0);
    }
    closedir(d);
    if (!from) return;
    size_t n;
    (void)snprintf(here, sizeof here, "%s/%s", fixture(name, ""), file);
    (void)snprintf(there, sizeof there, "%s/%s", bad_dir, file);
    char *text = shared_slurp(here, &n), *at = text ? strstr(text, from) : NULL;
    if (!at) fail_msg("%s has no %s", here, from);
    FILE *f = fopen(there, "wb");
    assert_non_null(f);
    assert_true(fprintf(f, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from)) > 0);
    (void)fclose(f);
    free(text);
}

static void refused(const char *name, const char *file, const char *from, const char *to,
                    enum status code, const char *message)
{
    struct err e;
    variant(name, file, from, to);
    const enum status s = convert_with((struct convert_options){.dir = bad_dir}, 1, &e);
    if (s != code) fail_msg("%s: %s -> %s: code %d: %s", name, from, to, (int)s, e.msg);
    if (!strstr(e.msg, message)) fail_msg("%s: no \"%s\" in: %s", name, message, e.msg);
    assert_int_equal(access(out, F_OK), -1);
}

static void test_refused_configs(void **state)
{
    (void)state;
    static const char c[] = "config.json";
    (void)unlink(out);
    refused("qwen3", c, "Qwen3ForCausalLM", "GPT2LMHeadModel", ERR_UNSUPPORTED, "LlamaForCausalLM");
    refused("qwen3", c, "\"silu\"", "\"gelu\"", ERR_UNSUPPORTED, "hidden_act");
    refused("qwen3", c, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", ERR_MISSING,
            "model.layers.2.input_layernorm.weight");
    refused("qwen3", c, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1", ERR_UNSUPPORTED,
            "model.layers.1.");
    refused("qwen3", c, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 2.5", ERR_FORMAT,
            "whole number");
    refused("qwen3", c, "\"hidden_size\"", "\"width\"", ERR_MISSING, "hidden_size");
    refused("qwen3", c, "\"hidden_size\"", "\"rope_scaling\":{\"type\":\"dynamic\"},\"hidden_size\"",
            ERR_UNSUPPORTED, "dynamic");
    refused("qwen3", c, "\"hidden_size\"", "\"partial_rotary_factor\":0.5,\"hidden_size\"",
            ERR_UNSUPPORTED, "partial_rotary_factor");
    refused("qwen3", c, "\"hidden_size\"",
            "\"quantization_config\":{\"quant_method\":\"gptq\"},\"hidden_size\"", ERR_UNSUPPORTED,
            "gptq");
    refused("qwen3", c, "{", "[", ERR_FORMAT, "JSON");
    refused("qwen3", c, "\"vocab_size\": 304", "\"vocab_size\": 100", ERR_FORMAT, "vocab_size");
    refused("qwen3", c, "\"vocab_size\": 304", "\"vocab_size\": 0", ERR_FORMAT, "vocab_size");
    refused("llama3", c, "\"num_attention_heads\": 4", "\"num_attention_heads\": 8", ERR_SHAPE,
            "heads");
    refused("llama3", c, "\"low_freq_factor\": 1.0", "\"low_freq_factor\": 5", ERR_FORMAT,
            "llama3");
    refused("qwen2moe", c, "\"norm_topk_prob\": false", "\"norm_topk_prob\": true", ERR_UNSUPPORTED,
            "norm_topk_prob");
    refused("qwen3moe", c, "\"norm_topk_prob\": true", "\"norm_topk_prob\": false", ERR_UNSUPPORTED,
            "norm_topk_prob");
    refused("qwen3moe", c, "\"mlp_only_layers\": []", "\"mlp_only_layers\": [1]", ERR_UNSUPPORTED,
            "mlp_only_layers");
    refused("qwen3moe", c, "\"num_experts\": 4", "\"num_experts\": 5", ERR_MISSING, "experts.4");
    refused("qwen3moe", c, "\"num_experts\": 4", "\"num_experts\": 3", ERR_UNSUPPORTED, "experts.3");
    refused("olmoe", c, "\"hidden_size\"", "\"clip_qkv\":8,\"hidden_size\"", ERR_UNSUPPORTED,
            "clip_qkv");
    refused("deepseek3", c, "   24,\n", "   16,\n", ERR_SHAPE, "scale_inv");
    refused("deepseek3", c, "\"fp8\"", "\"none\"", ERR_UNSUPPORTED, "none");
    refused("deepseek3", c, "\"v_head_dim\": 16", "\"v_head_dim\": 8", ERR_SHAPE, "v_head_dim");
    refused("deepseek2", c, "\"mscale\": 0.707", "\"mscale\": 1.0", ERR_UNSUPPORTED, "mscale");
    refused("gpt-oss", c, "\"sliding_attention\"", "\"full_attention\"", ERR_UNSUPPORTED,
            "layer_types");
    refused("gpt-oss", c, "\"swiglu_limit\": 7.0", "\"swiglu_limit\": 8.0", ERR_UNSUPPORTED,
            "swiglu_limit");
    clear_variant();
}

static void test_refused_vocabularies(void **state)
{
    (void)state;
    static const char t[] = "tokenizer.json";
    (void)unlink(out);
    refused("qwen3", t, "|\\\\p{N}|", "|\\\\p{N}{1,2}|", ERR_UNSUPPORTED, "deepseek-coder");
    refused("qwen3", t, "Isolated", "MergedWithNext", ERR_UNSUPPORTED, "--pre");
    refused("qwen3", t, "\"BPE\"", "\"Unigram\"", ERR_UNSUPPORTED, "Unigram");
    refused("olmoe", t, "\"NFC\"", "\"Lowercase\"", ERR_UNSUPPORTED, "normalizer");
    refused("mixtral", t, "\"Prepend\"", "\"Strip\"", ERR_UNSUPPORTED, "normalizer");
    refused("qwen3", t, "\"merges\":[[", "\"merges\":[[\"a\"],[", ERR_FORMAT, "merge 0");
    refused("qwen3", t, "\"!\":0", "\"!\":1", ERR_FORMAT, "twice");
    refused("qwen3", t, "\"!\":0", "\"!\":-1", ERR_FORMAT, "no number");
    refused("qwen3", t, "\"content\":\"<think>\"", "\"content\":\"<|im_end|>\"", ERR_FORMAT,
            "same text");
    refused("mixtral", t, "\"merges\":[[", "\"merges\":[[\"q\",\"zz\"],[", ERR_FORMAT,
            "makes no token");
    refused("qwen3", t, NULL, NULL, ERR_MISSING, "tokenizer.model");
    clear_variant();
}

static void test_refused_files(void **state)
{
    (void)state;
    (void)unlink(out);
    refused("qwen3", "config.json", NULL, NULL, ERR_IO, "config.json");
    refused("qwen3", "model.safetensors", NULL, NULL, ERR_IO, "model.safetensors");
    refused("llama3", "model-00002-of-00003.safetensors", NULL, NULL, ERR_IO, "00002");
    refused("llama3", "model.safetensors.index.json", "model-00001", "../model-00001", ERR_FORMAT,
            "no file of this folder");
    clear_variant();
}

/* What flags and other files change. */
static void test_variants(void **state)
{
    (void)state;
    struct err e;
    struct gguf *g;
    uint64_t id;
    struct gguf_str s;
    /* An unknown pre-tokenizer with a name for it; a name that is none. */
    variant("qwen3", "tokenizer.json", "|\\\\p{N}|", "|\\\\p{N}{1,2}|");
    struct convert_options o = {.dir = bad_dir, .pre = "qwen2", .name = "A name"};
    assert_int_equal(convert_with(o, 1, &e), OK);
    assert_int_equal(gguf_open(out, NULL, &g, NULL), OK);
    assert_int_equal(gguf_get_str(g, "general.name", &s, NULL), OK);
    assert_true(s.n == 6 && !memcmp(s.s, "A name", 6));
    gguf_close(g);
    o.pre = "qwen9";
    assert_int_equal(convert_with(o, 1, &e), ERR_UNSUPPORTED);
    /* The same words, but merged as the merges say. */
    variant("llama3", "tokenizer.json", "\"ignore_merges\":true", "\"ignore_merges\":false");
    assert_int_equal(convert_with((struct convert_options){.dir = bad_dir}, 1, &e), OK);
    assert_int_equal(gguf_open(out, NULL, &g, NULL), OK);
    assert_int_equal(gguf_get_str(g, "tokenizer.ggml.pre", &s, NULL), OK);
    assert_true(s.n == 4 && !memcmp(s.s, "dbrx", 4));
    gguf_close(g);
    /* A further end of answers that its text does not tell; the folder's name. */
    variant("qwen3", "generation_config.json", "[", "[5, ");
    assert_int_equal(convert_with((struct convert_options){.dir = bad_dir}, 1, &e), OK);
    assert_int_equal(gguf_open(out, NULL, &g, NULL), OK);
    assert_int_equal(gguf_get_u64(g, "tokenizer.ggml.eot_token_id", &id, NULL), OK);
    assert_int_equal(id, 5);
    assert_null(gguf_find(g, "tokenizer.ggml.eom_token_id"));
    assert_int_equal(gguf_get_str(g, "general.name", &s, NULL), OK);
    assert_true(s.n == 10 && !memcmp(s.s, "Tiny Model", 10));
    gguf_close(g);
    /* A window that the architecture does not have, and a head that is tied but written. */
    struct convert c;
    variant("qwen2", "config.json", "\"use_sliding_window\": false",
            "\"sliding_window\":64,\"tie_word_embeddings\":true");
    err_clear(&e);
    o = (struct convert_options){.dir = bad_dir};
    assert_int_equal(convert_open(&c, &o, &e), OK);
    assert_int_equal(c.model.ignored_window, 64);
    assert_int_equal(c.n_ignored, 0); /* the first of equal keys counts: not tied */
    convert_close(&c);
    variant("qwen2", "config.json", "\"tie_word_embeddings\": false",
            "\"tie_word_embeddings\": true");
    assert_int_equal(convert_open(&c, &o, &e), OK);
    assert_int_equal(c.n_ignored, 1);
    convert_close(&c);
    clear_variant();
}

/* Any number of threads, the same bytes; a caller who stops leaves nothing. */
static bool stop(void *arg, uint64_t done, uint64_t total)
{
    (void)total;
    *(uint64_t *)arg = done;
    return done < 20000;
}

static void test_threads_and_stop(void **state)
{
    (void)state;
    struct err e;
    size_t n1 = 0, n4 = 0;
    const struct convert_options o = {.dir = fixture("deepseek3", ""), .type = CONVERT_Q8_0};
    assert_int_equal(convert_with(o, 1, &e), OK);
    char *one = shared_slurp(out, &n1);
    assert_int_equal(convert_with(o, 4, &e), OK);
    char *four = shared_slurp(out, &n4);
    assert_true(one && four && n1 == n4 && !memcmp(one, four, n1));
    free(one);
    free(four);
    (void)unlink(out);
    struct convert c;
    struct pool *pool;
    uint64_t done = 0;
    assert_int_equal(pool_open(1, &pool, NULL), OK);
    assert_int_equal(convert_open(&c, &o, &e), OK);
    assert_int_equal(convert_write(&c, out, pool, stop, &done, &e), ERR_CANCELLED);
    assert_true(done >= 20000);
    convert_close(&c);
    pool_close(pool);
    assert_int_equal(access(out, F_OK), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_as_llamacpp),
        cmocka_unit_test(test_as_transformers),
        cmocka_unit_test(test_mutations),
        cmocka_unit_test(test_as_tokenizers),
        cmocka_unit_test(test_refused_configs),
        cmocka_unit_test(test_refused_vocabularies),
        cmocka_unit_test(test_refused_files),
        cmocka_unit_test(test_variants),
        cmocka_unit_test(test_threads_and_stop),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
