/* Traces: the container round trip, the CSV form, every kind of damage, and the events that an
 * executor would see against a plain count. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "moe/base/rng.h"
#include "moe/load/gguf.h"
#include "moe/load/trace.h"
#include "moe/load/trace_export.h"
#include "tests/engine.h"
#include "tests/memfile.h"
#include "tests/shared.h"

static char dir[64] = "/tmp/tessera-trace-XXXXXX";

static const char *in_dir(const char *name)
{
    static char path[128];
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

/* Random routes: two sessions, a prompt step each, then single tokens in turn. */
static struct trace *make_trace(int layers, int experts, int used, unsigned with, int rows)
{
    struct trace *t;
    struct rng g;
    rng_seed(&g, (uint64_t)(experts + used));
    assert_int_equal(trace_new(layers, experts, used, with, &t, NULL), OK);
    for (int r = 0; r < rows; r++) {
        assert_int_equal(trace_append(t, 1, NULL), OK);
        t->step[r] = r < 7 ? 0 : r < 12 ? 1 : r - 10;
        t->session[r] = r < 7 ? 0 : r < 12 ? 1 : r % 2;
        t->pos[r] = r;
        t->token[r] = (int32_t)rng_below(&g, 1000);
        if (t->loss && r) t->loss[r] = (float)rng_below(&g, 1000) / 7;
        for (int l = 0; l < layers; l++) {
            uint16_t *x = trace_experts(t, r, l);
            if (r == 3 && l == layers - 1) continue; /* not routed */
            for (int k = 0; k < used;) {
                x[k] = (uint16_t)rng_below(&g, (uint32_t)experts);
                int i = 0;
                while (i < k && x[i] != x[k]) i++;
                k += i == k;
            }
            for (int k = 0; k < used; k++) {
                const size_t at = trace_at(t, r, l) + (size_t)k;
                if (t->weight) t->weight[at] = (float)rng_below(&g, 1024) / 1024;
                if (t->tier) t->tier[at] = (uint8_t)rng_below(&g, 3);
            }
            if (t->wait) t->wait[r * layers + l] = (uint32_t)rng_u64(&g);
            if (t->norm) t->norm[r * layers + l] = (float)rng_below(&g, 1 << 20) / 3;
        }
    }
    t->n_vocab = 1000;
    t->model_hash = 0x123456789abcdef0u;
    (void)snprintf(t->name, sizeof t->name, "a model");
    (void)snprintf(t->arch, sizeof t->arch, "qwen3moe");
    for (int l = 0; l < layers; l++) {
        t->layer[l] = l + 3;
        t->expert_bytes[l] = 1000u + (unsigned)l;
    }
    return t;
}

static void assert_same(const struct trace *a, const struct trace *b)
{
    const size_t n = trace_at(a, a->n_rows, 0), rows = (size_t)a->n_rows;
    assert_int_equal(a->n_layers, b->n_layers);
    assert_int_equal(a->n_experts, b->n_experts);
    assert_int_equal(a->n_used, b->n_used);
    assert_int_equal(a->n_rows, b->n_rows);
    assert_int_equal(a->n_vocab, b->n_vocab);
    assert_true(a->model_hash == b->model_hash);
    assert_string_equal(a->name, b->name);
    assert_string_equal(a->arch, b->arch);
    assert_memory_equal(a->layer, b->layer, sizeof *a->layer * (size_t)a->n_layers);
    assert_memory_equal(a->expert_bytes, b->expert_bytes, 8 * (size_t)a->n_layers);
    assert_memory_equal(a->step, b->step, 4 * rows);
    assert_memory_equal(a->session, b->session, 4 * rows);
    assert_memory_equal(a->pos, b->pos, 4 * rows);
    assert_memory_equal(a->token, b->token, 4 * rows);
    assert_memory_equal(a->expert, b->expert, 2 * n);
    assert_int_equal(!a->weight, !b->weight);
    assert_int_equal(!a->tier, !b->tier);
    assert_int_equal(!a->wait, !b->wait);
    assert_int_equal(!a->norm, !b->norm);
    assert_int_equal(!a->loss, !b->loss);
    if (a->loss) assert_memory_equal(a->loss, b->loss, 4 * rows);
    if (a->weight) assert_memory_equal(a->weight, b->weight, 4 * n); /* 1/1024ths are exact in F16 */
    if (a->tier) assert_memory_equal(a->tier, b->tier, n);
    if (a->wait) assert_memory_equal(a->wait, b->wait, 4 * rows * (size_t)a->n_layers);
    if (a->norm) assert_memory_equal(a->norm, b->norm, 4 * rows * (size_t)a->n_layers);
}

static void test_round_trip(void **state)
{
    (void)state;
    const int shapes[][4] = {{1, 1, 1, 1}, {3, 8, 2, 40}, {2, 255, 6, 30}, {2, 256, 6, 30},
                             {4, 300, 3, 9000}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        for (unsigned with = 0; with < 32; with++) {
            struct trace *t = make_trace(shapes[i][0], shapes[i][1], shapes[i][2], with, shapes[i][3]);
            struct trace *u;
            struct err e;
            err_clear(&e);
            assert_int_equal(trace_write(t, in_dir("t.gguf"), &e), OK);
            if (trace_read(in_dir("t.gguf"), NULL, &u, &e)) fail_msg("%s", e.msg);
            assert_same(t, u);
            trace_free(t);
            trace_free(u);
        }
    }
}

static void test_refused(void **state)
{
    (void)state;
    struct trace *t;
    struct err e;
    err_clear(&e);
    assert_int_equal(trace_new(0, 8, 2, 0, &t, &e), ERR_RANGE);
    assert_null(t);
    assert_int_equal(trace_new(2, 8, 9, 0, &t, NULL), ERR_RANGE);
    assert_int_equal(trace_new(2, 70000, 9, 0, &t, NULL), ERR_RANGE);
    assert_int_equal(trace_new(4000, 4000, 9, 0, &t, NULL), ERR_RANGE);
    assert_int_equal(trace_new(2, 8, 2, 0, &t, NULL), OK);
    assert_int_equal(trace_write(t, in_dir("empty.gguf"), NULL), ERR_RANGE);
    assert_int_equal(access(in_dir("empty.gguf"), F_OK), -1);
    trace_free(t);
    assert_int_equal(trace_read(in_dir("none.gguf"), NULL, &t, NULL), ERR_IO);
}

/* Every single byte of a file changed, and every length of it: an answer, never more than that. */
static void test_damage(void **state)
{
    (void)state;
    struct trace *t = make_trace(2, 8, 2, 7, 14), *u;
    size_t n = 0;
    assert_int_equal(trace_write(t, in_dir("d.gguf"), NULL), OK);
    trace_free(t);
    char *good = shared_slurp(in_dir("d.gguf"), &n);
    assert_non_null(good);
    int opened = 0, refused = 0;
    for (size_t i = 0; i < n; i++) {
        for (int bit = 0; bit < 8; bit += 7) {
            char *copy = malloc(n);
            memcpy(copy, good, n);
            copy[i] = (char)(copy[i] ^ 1 << bit);
            memfile_reset();
            memfile_add("x", copy, n, n);
            const enum status s = trace_read("x", &memfile_ops, &u, NULL);
            assert_int_equal(s == OK, u != NULL);
            opened += s == OK;
            refused += s != OK;
            assert_int_equal(memfile_io.opened, memfile_io.closed);
            trace_free(u);
            free(copy);
        }
        char *shorter = malloc(i ? i : 1);
        memcpy(shorter, good, i);
        memfile_reset();
        memfile_add("x", shorter, i, i);
        const enum status cut = trace_read("x", &memfile_ops, &u, NULL);
        assert_int_equal(cut == OK, u != NULL);
        assert_true(cut || i + 32 > n); /* only padding may be missing */
        trace_free(u);
        free(shorter);
    }
    assert_true(opened > 100 && refused > 500);
    free(good);
}

static void expect_bad(struct trace *t, const char *what)
{
    struct trace *u;
    struct err e;
    err_clear(&e);
    assert_int_equal(trace_write(t, in_dir("b.gguf"), NULL), OK);
    assert_int_equal(trace_read(in_dir("b.gguf"), NULL, &u, &e), ERR_FORMAT);
    if (!strstr(e.msg, what)) fail_msg("'%s' does not say '%s'", e.msg, what);
    trace_free(t);
}

/* What the writer does not look at, the reader does. */
static void test_nonsense(void **state)
{
    (void)state;
    struct trace *t = make_trace(2, 8, 2, 3, 20);
    t->step[5] = -1;
    expect_bad(t, "steps");
    t = make_trace(2, 8, 2, 3, 20);
    t->step[5] = 9;
    expect_bad(t, "steps");
    t = make_trace(2, 8, 2, 3, 20);
    t->token[19] = 1000;
    expect_bad(t, "vocabulary");
    t = make_trace(2, 8, 2, 3, 20);
    t->session[0] = -2;
    expect_bad(t, "negative");
    t = make_trace(2, 8, 2, 3, 20);
    trace_experts(t, 4, 1)[1] = 8;
    expect_bad(t, "expert");
    t = make_trace(2, 8, 2, 3, 20);
    t->weight[7] = 1e9f; /* infinite as a half */
    expect_bad(t, "weight");
    t = make_trace(2, 8, 2, 3, 20);
    t->tier[7] = 3;
    expect_bad(t, "tier");
    t = make_trace(2, 8, 2, 3, 20);
    t->layer[1] = -1;
    expect_bad(t, "layer");
}

/* ---- events ---- */

static void test_events(void **state)
{
    (void)state;
    struct trace *t = make_trace(3, 8, 2, 0, 60);
    struct trace_events v;
    assert_int_equal(trace_events_make(t, &v, NULL), OK);
    assert_int_equal(v.n_steps, 2 + 48);
    assert_true(v.prompt[0] && v.prompt[1] && !v.prompt[2]);
    int32_t event = 0;
    for (int s = 0; s < v.n_steps; s++) {
        assert_int_equal(v.event[s], event);
        for (int l = 0; l < 3; l++, event++) {
            int count[8] = {0}, n = 0;
            for (int32_t r = v.row[s]; r < v.row[s + 1]; r++) {
                assert_int_equal(t->step[r], t->step[v.row[s]]);
                for (int k = 0; k < 2; k++)
                    if (trace_experts(t, r, l)[k] != TRACE_NONE) count[trace_experts(t, r, l)[k]]++;
            }
            assert_int_equal(v.layer[event], l);
            for (int x = 0; x < 8; x++) {
                if (!count[x]) continue;
                const uint32_t at = v.first[event] + (uint32_t)n++;
                assert_int_equal(v.item[at], l * 8 + x);
                assert_int_equal(v.count[at], count[x]);
            }
            assert_int_equal(v.first[event + 1] - v.first[event], n);
        }
    }
    assert_int_equal(v.n_events, event);
    assert_int_equal(v.row[v.n_steps], 60);
    trace_events_free(&v);
    trace_free(t);
}

/* ---- CSV ---- */

#define HEAD                                                                                       \
    "# route_trace v1\n# model=m.gguf arch=x n_layer=2 n_expert=8 n_expert_used=2\n"               \
    "# layer=0 expert_bytes=100 dense_bytes=5\n# layer=1 expert_bytes=200 dense_bytes=5\n"
#define COLUMNS "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes\n"

static enum status csv(const char *text, struct trace **t, struct err *e)
{
    err_clear(e);
    return trace_read_csv("t.csv", text, strlen(text), t, e);
}

static void test_csv(void **state)
{
    (void)state;
    struct trace *t;
    struct err e;
    /* a prompt of two tokens layer by layer, two decoded tokens, a second turn */
    if (csv(HEAD COLUMNS "0,0,0,0,0,3,0.75,0,100\n0,0,0,0,1,4,0.25,0,100\n0,0,1,0,0,5,1,1,0\r\n"
            "0,0,0,1,0,7,1,0,200\n0,0,1,1,0,6,1,0,200\n"
            "0,1,2,0,0,1,0.5,2,0\n0,1,2,1,0,2,1,0,0\n0,1,3,0,0,1,1,0,0\n"
            "1,0,0,0,0,0,1,0,0\n1,0,1,0,0,1,1,0,0\n1,1,2,0,0,2,1,0,0", &t, &e))
        fail_msg("%s", e.msg);
    const int32_t step[] = {0, 0, 1, 2, 3, 3, 4}, session[] = {0, 0, 0, 0, 1, 1, 1},
                  pos[] = {0, 1, 2, 3, 0, 1, 2};
    assert_int_equal(t->n_rows, 7);
    assert_memory_equal(t->step, step, sizeof step);
    assert_memory_equal(t->session, session, sizeof session);
    assert_memory_equal(t->pos, pos, sizeof pos);
    assert_int_equal(trace_experts(t, 0, 0)[1], 4);
    assert_int_equal(trace_experts(t, 1, 0)[1], TRACE_NONE);
    assert_int_equal(trace_experts(t, 1, 1)[0], 6);
    assert_int_equal(t->tier[trace_at(t, 2, 0)], TRACE_DEVICE);
    assert_true(t->expert_bytes[1] == 200 && t->token[0] == -1 && !t->n_vocab);
    assert_string_equal(t->name, "m.gguf");
    assert_string_equal(t->arch, "x");
    trace_free(t);
}

static void test_csv_refused(void **state)
{
    (void)state;
    static const struct { const char *text, *say; } cases[] = {
        {"", "model"},
        {"# route_trace v1\n", "model"},
        {"# route_trace v1\n# model=m n_layer=2 n_expert=8\n" COLUMNS, "n_expert_used"},
        {"# route_trace v1\n# model=m n_layer=99999 n_expert=8 n_expert_used=2\n", "too large"},
        {HEAD "# layer=2 expert_bytes=1\n", "layer"},
        {HEAD "turn,phase\n", "columns"},
        {HEAD COLUMNS, "empty"},
        {HEAD COLUMNS "0,0,0,0,0,3,0.75,0\n", "nine numbers"},
        {HEAD COLUMNS "0,0,0,0,0,3,0.75,0,1,2\n", "nine numbers"},
        {HEAD COLUMNS "0,0,0,0,0,x,0.75,0,1\n", "nine numbers"},
        {HEAD COLUMNS "0,0,0,0,0,-3,0.75,0,1\n", "nine numbers"},
        {HEAD COLUMNS "0,0,0,2,0,3,0.75,0,1\n", "outside"},
        {HEAD COLUMNS "0,0,0,0,2,3,0.75,0,1\n", "outside"},
        {HEAD COLUMNS "0,0,0,0,0,8,0.75,0,1\n", "outside"},
        {HEAD COLUMNS "0,0,0,0,0,3,nan,0,1\n", "weight"},
        {HEAD COLUMNS "0,0,0,0,0,3,1,7,1\n", "residency"},
        {HEAD COLUMNS "0,0,0,0,0,3,1,0,1\n0,0,2,0,0,3,1,0,1\n", "left out"},
        {HEAD COLUMNS "1,0,0,0,0,3,1,0,1\n0,0,0,0,0,3,1,0,1\n", "back"},
        {HEAD COLUMNS "0,0,5,0,0,3,1,0,1\n0,0,4,0,0,3,1,0,1\n", "back"},
        {"# route_trace v1\n# model=m n_layer=100 n_expert=100 n_expert_used=50\n" COLUMNS
         "0,0,0,0,0,3,1,0,1\n", "too short"},
        {"# route_trace v1\n# model=m n_layer=4096 n_expert=4096 n_expert_used=2\n", "in all"},
        {HEAD COLUMNS "0,0,9999999999999999999,0,0,3,1,0,1\n0,0,0,0,0,3,1,0,1\n", "back"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct trace *t;
        struct err e;
        assert_int_not_equal(csv(cases[i].text, &t, &e), OK);
        assert_null(t);
        if (!strstr(e.msg, cases[i].say)) fail_msg("%zu: '%s' lacks '%s'", i, e.msg, cases[i].say);
    }
}

static void test_real_csv(void **state)
{
    (void)state;
    static const struct { const char *file; int rows, layers, used, prompt; } real[] = {
        {"qwen", 156, 48, 6, 28}, {"gemma", 157, 30, 6, 29}, {"gptoss", 149, 36, 2, 85}};
    for (int i = 0; i < 3; i++) {
        char path[512], name[64];
        struct trace *t;
        struct err e;
        bool prompt;
        err_clear(&e);
        (void)snprintf(name, sizeof name, "reference/traces/%s.route.csv", real[i].file);
        if (!shared_file(path, sizeof path, name)) continue;
        if (trace_read(path, NULL, &t, &e)) fail_msg("%s", e.msg);
        assert_int_equal(t->n_rows, real[i].rows);
        assert_int_equal(t->n_layers, real[i].layers);
        assert_int_equal(t->n_used, real[i].used);
        assert_int_equal(trace_step_end(t, 0, &prompt), real[i].prompt);
        assert_true(prompt);
        trace_free(t);
    }
}

/* ---- in blocks, and out ---- */

struct blocks {
    const struct trace *whole;
    int32_t at;
    int n;
};

static enum status take_block(void *arg, const struct trace *block, struct err *e)
{
    (void)e;
    struct blocks *b = arg;
    const int l = block->n_layers;
    for (int32_t r = 0; r < block->n_rows; r++, b->at++) {
        assert_int_equal(block->step[r], b->whole->step[b->at]);
        assert_memory_equal(trace_experts(block, r, 0), trace_experts(b->whole, b->at, 0),
                            (size_t)(l * block->n_used) * sizeof(uint16_t));
        assert_memory_equal(block->norm + r * l, b->whole->norm + b->at * l, (size_t)l * 4);
    }
    return ++b->n == 3 ? ERR_CANCELLED : OK;
}

/* Blocks are the whole file in order, and what ends them is what fn returned. */
static void test_stream(void **state)
{
    (void)state;
    struct err e;
    struct trace *t = make_trace(64, 128, 100, TRACE_WITH_WEIGHTS | TRACE_WITH_NORMS, 250);
    struct blocks b = {.whole = t};
    err_clear(&e);
    assert_int_equal(trace_write(t, in_dir("s"), NULL), OK);
    assert_int_equal(trace_stream(in_dir("s"), NULL, take_block, &b, &e), OK);
    assert_int_equal(b.at, 250);
    assert_int_equal(b.n, 2);
    b = (struct blocks){.whole = t, .n = 2};
    assert_int_equal(trace_stream(in_dir("s"), NULL, take_block, &b, &e), ERR_CANCELLED);
    trace_free(t);
}

static void export_to(const struct trace *t, const char *path)
{
    struct trace_export x;
    struct err e;
    if (trace_export_open(&x, path, trace_form_of(path), t, &e) ||
        trace_export_rows(&x, t, &e) || trace_export_close(&x, &e)) fail_msg("%s", e.msg);
    assert_int_equal(x.n, t->n_rows * t->n_layers);
}

/* Every form holds every value: text is read back number by number, binary byte by byte. */
static void test_export(void **state)
{
    (void)state;
    size_t n = 0;
    struct trace *t = make_trace(3, 300, 4, 31, 20);
    export_to(t, in_dir("x.csv"));
    char *text = shared_slurp(in_dir("x.csv"), &n), *at = strchr(text, '\n') + 1;
    assert_memory_equal(text, "step,session,position,token,layer,expert_0,expert_1,", 52);
    for (int i = 0; i < 60; i++) {
        double v[20];
        for (int k = 0; k < 20; k++, at++) v[k] = strtod(at, &at);
        assert_true(v[0] == t->step[i / 3] && v[3] == t->token[i / 3] && v[4] == i % 3 + 3);
        const uint16_t x = trace_experts(t, i / 3, i % 3)[2];
        assert_true(v[7] == (x == TRACE_NONE ? -1 : x));
        assert_true((float)v[9] == t->weight[i * 4] && v[16] == t->tier[i * 4 + 3]);
        assert_true(v[17] == t->wait[i] && (float)v[18] == t->norm[i]);
        assert_true((float)v[19] == t->loss[i / 3]);
        assert_int_equal(at[-1], '\n');
    }
    assert_true(at == text + n);
    char *csv = text;
    export_to(t, in_dir("x.npy"));
    text = shared_slurp(in_dir("x.npy"), &n);
    const size_t head = 10 + (unsigned char)text[8] + 256u * (unsigned char)text[9];
    assert_int_equal(head % 64, 0);
    assert_int_equal(text[head - 1], '\n');
    assert_non_null(strstr(text + 10, "'shape':(60,)}"));
    assert_int_equal(n - head, 60 * 68);
    for (int i = 0; i < 60; i++) {
        const char *r = text + head + i * 68;
        int32_t token;
        memcpy(&token, r + 12, 4);
        assert_int_equal(token, t->token[i / 3]);
        assert_memory_equal(r + 36, t->weight + i * 4, 16);
        assert_memory_equal(r + 60, t->norm + i, 4);
        assert_memory_equal(r + 64, t->loss + i / 3, 4);
    }
    free(text);
    export_to(t, in_dir("x.jsonl"));
    text = shared_slurp(in_dir("x.jsonl"), &n);
    int lines = 0;
    for (size_t i = 0; i < n; i++) lines += text[i] == '\n';
    assert_int_equal(lines, 60);
    char *json = text;
    at = strchr(csv, '\n') + 1;
    for (int i = 0; i < 60 * 20; i++, at++) { /* the same numbers in the same order */
        json += strcspn(json, "-0123456789");
        assert_true(strtod(json, &json) == strtod(at, &at));
    }
    assert_string_equal(json, "}\n");
    free(csv);
    free(text);
    assert_int_equal(trace_form_of("x.json"), TRACE_FORMS);
    assert_int_equal(trace_form_of(".csv"), TRACE_FORMS);
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
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_damage),     cmocka_unit_test(test_nonsense),
        cmocka_unit_test(test_events),     cmocka_unit_test(test_csv),
        cmocka_unit_test(test_csv_refused), cmocka_unit_test(test_real_csv),
        cmocka_unit_test(test_stream), cmocka_unit_test(test_export),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
