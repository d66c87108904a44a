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
    "olmoe", "deepseek2", "deepseek3", "gpt-oss", "gpt-oss-bf16",
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
    assert_true(!all_keys || n_keys > 25);
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
    size_t n = 0;
    char *text = shared_slurp(fixture(name, ".ids"), &n), *at = text;
    assert_non_null(text);
    for (int i = 0; i < N_IDS; i++) {
        ids[i] = (int32_t)strtol(at, &at, 10);
        at += strspn(at, ",\n");
    }
    free(text);
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
        const double d = metric_nmse(tessera_logits(engine, 0, i * (N_IDS - 1) / (N_POS - 1)), r, nv);
        if (!(d <= worst)) worst = d;
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_as_llamacpp),
        cmocka_unit_test(test_as_transformers),
        cmocka_unit_test(test_mutations),
        cmocka_unit_test(test_as_tokenizers),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
