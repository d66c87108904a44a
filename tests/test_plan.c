/* The planner's promises.  EXPLAIN of tiny models is compared with golden files, its JSON form with
 * its text, its bytes with what the engine really takes, and its reads with the weights.
 *
 * Golden files: tests/golden/plans/<arch>-<type>.txt.  A change of the plan shows here as a diff;
 * when it is meant, write them anew and look at `git diff`:
 *
 *     make build/release/tests/test_plan && build/release/tests/test_plan --update */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cjson/cJSON.h>
#include <cmocka.h>

#include "bench/gen.h"
#include "moe/run/engine_int.h"
#include "tests/engine.h"

static char dir[64] = "/tmp/tessera-plan-XXXXXX";
static const char golden_dir[] = "tests/golden/plans";
static bool update;

static const struct row {
    const char *name, *arch;
    int n_expert, n_repeats;
    int n_layers; /* that run: of the file's three, how often each does */
} models[] = {
    {"qwen3moe", "qwen3moe", 8, 0, 3}, {"olmoe", "olmoe", 8, 0, 3}, {"llama", "llama", 0, 0, 3},
    {"mixtral", "llama", 8, 0, 3}, {"mor", "mor", 0, 3, 1 + 3 + 1}, {"ouro", "ouro", 0, 2, 2 * 3},
};
static const enum qtype types[] = {QTYPE_F16, QTYPE_Q4_K};
enum { N_MODELS = 6, N_ONCE = 4 /* whose layers run once */, N_TYPES = 2 };

/* Three layers: the last one differs, because only rows that need logits pass all of it. */
static const char *tiny(const struct row *r, enum qtype type, bool tied)
{
    static char path[160];
    struct err e;
    err_clear(&e);
    struct gen_spec g = gen_tiny(r->arch, type);
    g.n_layer = 3;
    g.n_expert = r->n_expert;
    g.n_repeats = r->n_repeats;
    g.n_vocab = 288;
    g.tied = tied;
    (void)snprintf(path, sizeof path, "%s/%s-%s%s.gguf", dir, r->name, qtype_info(type)->name,
                   tied ? "-tied" : "");
    if (access(path, R_OK) && gen_write(&g, path, NULL, &e)) fail_msg("%s", e.msg);
    return path;
}

static tessera_engine *open_model(const char *path, bool header_only, enum tessera_kv kv)
{
    struct err e;
    tessera_engine *engine;
    struct tessera_options o = tessera_defaults();
    o.model_path = path;
    o.n_threads = 2;
    o.n_ctx = 200;
    o.n_ubatch = 16;
    o.n_sessions = 2;
    o.mem_budget = UINT64_MAX;
    o.kv = kv;
    o.header_only = header_only;
    if (tessera_open(&o, &engine, &e)) fail_msg("%s", e.msg);
    return engine;
}

static char *explain(const tessera_engine *e, bool json)
{
    struct err err;
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    assert_non_null(f);
    assert_int_equal(tessera_explain(e, f, json, &err), OK);
    assert_int_equal(fclose(f), 0);
    return text;
}

/* ---- golden files ---- */

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    if (!f) fail_msg("cannot write %s: run from the root of the repository", path);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static bool equals_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "r");
    if (!f) return false;
    const size_t n = strlen(text);
    char *have = malloc(n + 2);
    assert_non_null(have);
    const size_t got = fread(have, 1, n + 1, f);
    const bool same = got == n && !memcmp(have, text, n);
    free(have);
    (void)fclose(f);
    return same;
}

static void check_golden(const struct row *r, enum qtype type)
{
    char path[160], actual[160], cmd[512];
    tessera_engine *e = open_model(tiny(r, type, false), true, TESSERA_KV_F16);
    char *text = explain(e, false);
    tessera_close(e);
    (void)snprintf(path, sizeof path, "%s/%s-%s.txt", golden_dir, r->name, qtype_info(type)->name);
    if (update) {
        write_file(path, text);
    } else if (!equals_file(path, text)) {
        (void)snprintf(actual, sizeof actual, "%s/actual.txt", dir);
        write_file(actual, text);
        (void)snprintf(cmd, sizeof cmd, "diff -u %s %s >&2", path, actual);
        const int differs = system(cmd);
        free(text);
        fail_msg("the plan is not that of %s (diff says %d); if that is meant: test_plan --update",
                 path, differs);
    }
    free(text);
}

static void test_golden(void **state)
{
    (void)state;
    for (int i = 0; i < N_MODELS; i++)
        for (int k = 0; k < N_TYPES; k++) check_golden(&models[i], types[k]);
}

/* The plan does not depend on the machine: no tier, no thread count but in the staging. */
static void test_same_on_every_tier(void **state)
{
    (void)state;
    static const char *const tiers[] = {"ref", "avx2", "avx512"};
    char *want = NULL;
    for (int i = 0; i < 3; i++) {
        (void)setenv("TESSERA_CPU", tiers[i], 1);
        tessera_engine *e = open_model(tiny(&models[0], QTYPE_Q4_K, false), true, TESSERA_KV_F16);
        char *text = explain(e, false);
        if (want) assert_string_equal(text, want);
        free(want);
        want = text;
        tessera_close(e);
    }
    free(want);
    (void)unsetenv("TESSERA_CPU");
}

/* ---- JSON ---- */

static const cJSON *member(const cJSON *o, const char *name)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, name);
    if (!v) fail_msg("the JSON plan has no %s", name);
    return v;
}

static uint64_t number(const cJSON *o, const char *name)
{
    const cJSON *v = member(o, name);
    assert_true(cJSON_IsNumber(v) && v->valuedouble >= 0);
    return (uint64_t)v->valuedouble;
}

/* Steps that the text lists after the line that begins with `phase`, layers counted as often as the
 * text says. */
static int steps_in_text(const char *text, const char *phase)
{
    char head[32];
    (void)snprintf(head, sizeof head, "\n%s of up to ", phase);
    const char *at = strstr(text, head);
    assert_non_null(at);
    int n = 0, times = 1, from, to, k;
    at = strchr(at + 1, '\n') + 1; /* the column titles */
    while ((at = strchr(at, '\n')) && at[1] && at[1] != '\n') {
        at++;
        if (at[0] == ' ' && at[1] == ' ') n += times;
        else if (sscanf(at, " layers %d-%d (%d times)", &from, &to, &k) == 3) {
            assert_int_equal(k, to - from + 1);
            times = k;
        } else {
            times = 1; /* "layer N:", "after the layers:" */
        }
    }
    return n;
}

static void check_phase(const tessera_engine *e, const char *text, const cJSON *all,
                        const char *phase, const struct plan *p)
{
    const cJSON *o = member(all, phase), *steps = member(o, "steps"), *step;
    const struct plan_step total = plan_total(p);
    struct plan_step sum = {0};
    assert_int_equal(cJSON_GetArraySize(steps), e->model.n_op);
    assert_int_equal(steps_in_text(text, phase), e->model.n_op);
    assert_int_equal(number(o, "rows_max"), p->n_rows);
    assert_int_equal(number(o, "arena_bytes"), p->arena_bytes);
    assert_int_equal(number(o, "macs"), total.macs);
    assert_int_equal(number(o, "weight_bytes_expected"), total.weight_bytes);
    cJSON_ArrayForEach(step, steps) {
        assert_true(cJSON_IsString(member(step, "step")) && cJSON_IsString(member(step, "lane")));
        assert_non_null(strstr(text, member(step, "step")->valuestring));
        assert_true(number(step, "weight_bytes_max") >= number(step, "weight_bytes_expected"));
        sum.weight_bytes += number(step, "weight_bytes_expected");
        sum.macs += number(step, "macs");
    }
    assert_int_equal(sum.weight_bytes, total.weight_bytes);
    assert_int_equal(sum.macs, total.macs);
}

static void test_json(void **state)
{
    (void)state;
    for (int i = 0; i < N_MODELS * N_TYPES; i++) {
        const struct row *r = &models[i / N_TYPES];
        tessera_engine *e = open_model(tiny(r, types[i % N_TYPES], false), true, TESSERA_KV_F16);
        char *text = explain(e, false), *json = explain(e, true);
        cJSON *o = cJSON_Parse(json);
        assert_non_null(o);
        assert_string_equal(member(o, "arch")->valuestring, r->arch);
        assert_int_equal(number(o, "layers"), r->n_layers);
        assert_int_equal(number(o, "experts"), r->n_expert);
        assert_int_equal(number(o, "context"), 200);
        assert_int_equal(number(o, "parts"), e->resid.parts.n_parts);
        check_phase(e, text, o, "prefill", &e->plan[e->n_plans - 1]);
        check_phase(e, text, o, "decode", &e->plan[0]);
        cJSON_Delete(o);
        free(text);
        free(json);
        tessera_close(e);
    }
}

/* ---- memory: planned against taken ---- */

static uint64_t pages(uint64_t n)
{
    const uint64_t p = (uint64_t)sysconf(_SC_PAGESIZE);
    return (n + p - 1) / p * p;
}

static void fill(tessera_engine *e, tessera_session *s)
{
    struct err err;
    int32_t ids[16] = {1, 2, 3};
    while (tessera_session_n(s) < tessera_session_n_ctx(s)) {
        const int left = tessera_session_n_ctx(s) - tessera_session_n(s);
        struct tessera_input in = {s, ids, left < 16 ? left : 16, TESSERA_LOGITS_LAST};
        assert_int_equal(tessera_step(e, &in, 1, &err), OK);
    }
}

static void check_memory(const struct row *r, enum qtype type, enum tessera_kv kv)
{
    struct err err;
    const char *path = tiny(r, type, false);
    tessera_engine *e = open_model(path, true, kv);
    char *json = explain(e, true);
    assert_int_equal(tessera_memory(e).total, 0); /* a plan alone takes nothing */
    tessera_close(e);
    cJSON *o = cJSON_Parse(json);
    const cJSON *mem = member(o, "memory_bytes");
    e = open_model(path, false, kv);
    char *again = explain(e, true);
    assert_string_equal(json, again);
    struct tessera_memory m = tessera_memory(e);
    const uint64_t act = pages(number(mem, "activations")) + pages(number(mem, "logits"));
    assert_int_equal(m.weights, pages(number(mem, "weights")));
    assert_int_equal(m.activations, act);
    assert_int_equal(m.kv, 0);
    assert_int_equal(m.staging, 0);
    const uint64_t loading = m.weights + m.activations + m.process + number(mem, "staging");
    assert_true(m.peak <= loading + 2 * pages(1) && m.peak >= m.total);
    tessera_session *s[2];
    for (int i = 0; i < 2; i++) {
        assert_int_equal(tessera_session_open(e, 0, &s[i], &err), OK);
        fill(e, s[i]);
    }
    m = tessera_memory(e);
    const uint64_t kv_planned = number(mem, "kv");
    assert_true(m.kv >= kv_planned && m.kv <= kv_planned + 2 * pages(1));
    assert_int_equal(m.total, m.weights + m.activations + m.kv + m.staging + m.process);
    /* Steps took nothing else: prefill, decode and logits of the last row fit what was planned. */
    assert_int_equal(m.activations, act);
    for (int i = 0; i < 2; i++) tessera_session_close(s[i]);
    assert_int_equal(tessera_memory(e).kv, 0);
    tessera_close(e);
    cJSON_Delete(o);
    free(json);
    free(again);
}

static void test_memory(void **state)
{
    (void)state;
    for (int i = 0; i < N_MODELS; i++)
        for (int k = 0; k < N_TYPES; k++) check_memory(&models[i], types[k], TESSERA_KV_F16);
    check_memory(&models[0], QTYPE_Q4_K, TESSERA_KV_Q8_0);
}

/* The smallest budget that the refusal names is one that works, and the peak stays under it with
 * what the process itself may take, also while many threads load. */
static void test_smallest_budget(void **state)
{
    (void)state;
    struct err err;
    tessera_engine *e;
    struct tessera_options o = tessera_defaults();
    o.model_path = tiny(&models[0], QTYPE_F16, false);
    o.n_ctx = 64;
    for (o.n_threads = 1; o.n_threads <= 64; o.n_threads *= 8) {
        o.mem_budget = 1 << 20;
        assert_int_equal(tessera_open(&o, &e, &err), ERR_BUDGET);
        const char *at = strstr(err.msg, "--mem ");
        assert_non_null(at);
        o.mem_budget = (uint64_t)(strtod(at + 6, NULL) * (1 << 20));
        assert_int_equal(tessera_open(&o, &e, &err), OK);
        assert_true(tessera_memory(e).peak <= o.mem_budget);
        tessera_close(e);
    }
}

/* ---- traffic: planned reads against the weights ---- */

static bool is_lookup_only(const tessera_engine *e, int w)
{
    bool embed = false;
    for (int i = 0; i < e->model.n_op; i++)
        for (int k = 0; k < OP_IO; k++)
            if (e->model.op[i].weight[k] == w) {
                if (e->model.op[i].code != OP_EMBED) return false;
                embed = true;
            }
    return embed;
}

static void check_traffic(const struct row *r, enum qtype type, bool tied)
{
    tessera_engine *e = open_model(tiny(r, type, tied), true, TESSERA_KV_F16);
    const struct plan *decode = &e->plan[0], *prefill = &e->plan[e->n_plans - 1];
    uint64_t dense = 0, experts = 0, all_experts = 0, looked_up = 0;
    for (int i = 0; i < e->weights.n; i++) {
        const struct weight *w = &e->weights.at[i];
        if (w->n_mats > 1) {
            experts += w->mat_bytes * (uint64_t)e->hp.n_expert_used;
            all_experts += w->mat_bytes * (uint64_t)w->n_mats;
        } else if (is_lookup_only(e, i)) {
            looked_up += w->mat_bytes;
        } else {
            dense += w->mat_bytes;
        }
    }
    assert_int_equal(looked_up != 0, !tied);
    /* Dense weights are read once, whatever the rows; experts by use; the embedding row by row. */
    const struct plan *plans[2] = {decode, prefill};
    for (int k = 0; k < 2; k++) {
        uint64_t d = 0, x = 0, max = 0;
        for (int i = 0; i < e->model.n_op; i++) {
            const struct op *op = &e->model.op[i];
            const struct plan_step *s = &plans[k]->step[i];
            if (op->code == OP_EXPERTS) {
                x += s->weight_bytes;
                max += s->weight_bytes_max;
            } else if (op->code == OP_EMBED) {
                assert_int_equal(s->weight_bytes,
                                 (uint64_t)plans[k]->n_rows *
                                     qtype_bytes(e->weights.at[op->weight[0]].type,
                                                 (uint64_t)e->hp.n_embd));
            } else {
                d += s->weight_bytes;
            }
        }
        assert_int_equal(d, dense);
        assert_true(x >= experts && x <= max && max <= all_experts);
        if (!k) assert_true(x == experts && max == experts);
        else assert_int_equal(max, all_experts); /* 16 rows could ask for all eight */
    }
    /* One row: every matrix that is used is multiplied once. */
    uint64_t macs = 0;
    for (int i = 0; i < e->weights.n; i++) {
        const struct weight *w = &e->weights.at[i];
        if (w->layout != WEIGHT_TILES) continue;
        macs += (uint64_t)w->n_cols * (uint64_t)w->n_rows *
                (uint64_t)(w->n_mats > 1 ? e->hp.n_expert_used : 1);
    }
    assert_int_equal(plan_total(decode).macs, macs);
    tessera_close(e);
}

static void test_traffic(void **state)
{
    (void)state;
    for (int i = 0; i < N_ONCE; i++)
        for (int k = 0; k < N_TYPES; k++)
            for (int tied = 0; tied < 2; tied++) check_traffic(&models[i], types[k], tied);
}

/* Buckets rise, the largest is the micro-batch, and each plan's arena holds all its buffers. */
static void test_buckets(void **state)
{
    (void)state;
    tessera_engine *e = open_model(tiny(&models[0], QTYPE_F16, false), true, TESSERA_KV_F16);
    for (int i = 0; i < e->n_plans; i++) {
        const struct plan *p = &e->plan[i];
        assert_true(i == 0 ? p->n_rows == 1 : p->n_rows > e->plan[i - 1].n_rows);
        for (int k = 1; k < e->model.n_buf; k++) {
            if (e->model.buf[k].kind == BUF_LOGITS) continue;
            assert_true(p->offset[k] + p->bytes[k] <= p->arena_bytes);
            assert_int_equal(p->offset[k] % 64, 0);
            assert_true(p->bytes[k] >= (uint64_t)p->stride[k] * (uint64_t)p->n_rows);
        }
    }
    assert_int_equal(e->plan[e->n_plans - 1].n_rows, 16);
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

int main(int argc, char **argv)
{
    update = argc == 2 && !strcmp(argv[1], "--update");
    if (argc > 1 && !update) {
        (void)fprintf(stderr, "usage: test_plan [--update]\n");
        return 2;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),  cmocka_unit_test(test_same_on_every_tier),
        cmocka_unit_test(test_json),    cmocka_unit_test(test_memory),
        cmocka_unit_test(test_traffic), cmocka_unit_test(test_buckets),
        cmocka_unit_test(test_smallest_budget),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
