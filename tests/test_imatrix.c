/* Importance matrices: what tessera_watch shows of eight small models of all kinds, beside what
 * llama-imatrix made of them (tests/imatrix, see make.py there); both file formats, and files that
 * are wrong.  Writes to a folder of its own in /tmp. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include <math.h>

#include "moe/tessera.h"
#include "quant/build/requant.h"
#include "tests/shared.h"

enum { CHUNKS = 2, CTX = 64, TOKENS = CHUNKS * CTX };

static const char *const models[] = {"deepseek2-v3", "dots1",    "glm4moe",  "gpt-oss",
                                     "lfm2moe",      "qwen2moe", "qwen3moe", "qwen35moe"};
enum { N_MODELS = sizeof models / sizeof models[0] };

static char dir[64] = "/tmp/tessera-imatrix-XXXXXX";

static void path_in(char path[128], const char *name)
{
    (void)snprintf(path, 128, "%s/%s", dir, name);
}

/* The model with all its matrices in F32, so that no engine rounds activations. */
static void widen(const char *model, char path[128])
{
    struct err e;
    struct gguf *g;
    struct requant r;
    struct pool *pool;
    char from[128];
    const struct recipe_options o = {.recipe = recipe_by_name("F32"),
                                     .embedding = RECIPE_TYPE_OPEN, .output = RECIPE_TYPE_OPEN};
    err_clear(&e);
    (void)snprintf(from, sizeof from, "tests/awkward/%s.gguf", model);
    path_in(path, "model.gguf");
    if (gguf_open(from, NULL, &g, &e) || requant_plan(&r, g, &o, NULL, &e) ||
        pool_open(1, &pool, &e) ||
        requant_write(&r, path, &(struct requant_origin){0}, pool, NULL, NULL, &e))
        fail_msg("%s: %s", model, e.msg);
    pool_close(pool);
    requant_free(&r);
    gguf_close(g);
}

/* ---- collecting ---- */

static void make_tokens(int32_t *ids)
{
    uint32_t s = 1;
    for (int i = 0; i < TOKENS; i++) {
        s = (1103515245u * s + 12345u) & 0x7fffffffu;
        ids[i] = 4 + (int32_t)((s >> 16) % 24);
    }
}

static void add(void *arg, const struct tessera_watched *w)
{
    struct imatrix *m = arg;
    struct err e;
    err_clear(&e);
    if (strncmp(w->tensor, "blk.", 4) && strcmp(w->tensor, "output.weight") != 0) return;
    if (!w->n_matrices) return; /* a norm */
    struct imatrix_entry *x =
        imatrix_want(m, w->tensor, (uint64_t)w->n_matrices, (uint64_t)w->n_cols, &e);
    if (!x) fail_msg("%s", e.msg);
    assert_true(w->matrix >= 0 && w->matrix < w->n_matrices && w->n_rows > 0);
    for (int r = 0; r < w->n_rows; r++)
        for (int k = 0; k < w->n_cols; k++)
            x->sum[w->matrix * w->n_cols + k] += (double)w->row[r][k] * (double)w->row[r][k];
    x->count[w->matrix] += w->n_rows;
}

/* Runs the tokens, `piece` rows a step; the hash of all logits. */
static uint64_t run(const char *path, int piece, struct imatrix *m)
{
    struct err e;
    tessera_engine *engine;
    tessera_session *session;
    struct tessera_options o = tessera_defaults();
    int32_t ids[TOKENS];
    uint64_t hash = 0xcbf29ce484222325u;
    err_clear(&e);
    make_tokens(ids);
    o.model_path = path;
    o.n_ctx = CTX;
    o.n_ubatch = piece;
    o.n_threads = 2;
    if (tessera_open(&o, &engine, &e) || tessera_session_open(engine, CTX, &session, &e) ||
        (m && tessera_watch(engine, add, m, &e)))
        fail_msg("%s: %s", path, e.msg);
    for (int at = 0; at < TOKENS;) {
        if (at % CTX == 0)
            assert_int_equal(tessera_session_rollback(session, (struct tessera_mark){0}, &e), OK);
        const int left = CTX - at % CTX, n = left < piece ? left : piece;
        const struct tessera_input in = {session, ids + at, n, TESSERA_LOGITS_ALL};
        if (tessera_step(engine, &in, 1, &e)) fail_msg("%s: %s", path, e.msg);
        for (int r = 0; r < n; r++) {
            const unsigned char *p = (const unsigned char *)tessera_logits(engine, 0, r);
            for (size_t i = 0; i < sizeof(float) * (size_t)tessera_model(engine).n_vocab; i++)
                hash = (hash ^ p[i]) * 0x100000001b3u;
        }
        at += n;
    }
    tessera_session_close(session);
    tessera_close(engine);
    return hash;
}

static void read_fixture(const char *model, const char *form, struct imatrix *m)
{
    struct err e;
    char path[128];
    err_clear(&e);
    (void)snprintf(path, sizeof path, "tests/imatrix/%s.%s", model, form);
    if (imatrix_read(path, m, &e)) fail_msg("%s", e.msg);
}

/* ---- beside llama-imatrix ---- */

/* The same tensors, counts, and means: to 0.5 % where a column matters (KV caches differ: f16 here,
 * f32 there), and together to a normalised squared error of 1e-6. */
static void compare(const char *model, const struct imatrix *a, const struct imatrix *b)
{
    double err = 0, sum = 0, worst = 0;
    assert_int_equal(a->n, b->n);
    for (uint64_t i = 0; i < a->n; i++) {
        const struct imatrix_entry *x = &a->entry[i], *y = &b->entry[i];
        double mean = 0;
        assert_string_equal(x->name, y->name);
        assert_int_equal(x->n_sums, y->n_sums);
        for (uint64_t k = 0; k < x->n_counts; k++) {
            const double want = y->count[y->n_counts == 1 ? 0 : k];
            if (fabs(x->count[k] - want) > 0.5)
                fail_msg("%s %s[%d]: %g rows, not %g", model, x->name, (int)k, x->count[k], want);
        }
        for (uint64_t k = 0; k < x->n_sums; k++) mean += y->sum[k] / (double)y->n_sums;
        for (uint64_t k = 0; k < x->n_sums; k++) {
            const double d = x->sum[k] - y->sum[k];
            err += d / mean * d / mean;
            sum += y->sum[k] / mean * y->sum[k] / mean;
            worst = fmax(worst, fabs(d) / (y->sum[k] + 0.01 * mean));
        }
    }
    print_message("%s: %d tensors, nmse %.1e, worst column %.1e\n", model, (int)a->n, err / sum,
                  worst);
    assert_true(err < 1e-6 * sum);
    assert_true(worst < 0.005);
}

static void test_beside_llama(void **state)
{
    (void)state;
    for (int i = 0; i < N_MODELS; i++) {
        struct imatrix ours = {0}, theirs;
        char path[128];
        widen(models[i], path);
        (void)run(path, CTX, &ours);
        (void)unlink(path);
        read_fixture(models[i], "gguf", &theirs);
        assert_int_equal(theirs.n_chunks, CHUNKS);
        assert_int_equal(theirs.chunk_size, CTX);
        assert_int_equal(theirs.n_datasets, 1);
        compare(models[i], &ours, &theirs);
        imatrix_free(&ours);
        imatrix_free(&theirs);
    }
}

/* Steps of any size show the same rows, and nobody's looking changes a bit of the results. */
static void test_any_split(void **state)
{
    (void)state;
    for (int i = 0; i < N_MODELS; i++) {
        struct imatrix a = {0}, b = {0};
        char path[128];
        (void)snprintf(path, sizeof path, "tests/awkward/%s.gguf", models[i]);
        const uint64_t plain = run(path, CTX, NULL);
        assert_true(plain == run(path, CTX, &a));
        assert_true(plain == run(path, 7, &b));
        assert_int_equal(a.n, b.n);
        for (uint64_t k = 0; k < a.n; k++) {
            const struct imatrix_entry *x = &a.entry[k], *y = &b.entry[k];
            assert_string_equal(x->name, y->name);
            assert_memory_equal(x->count, y->count, sizeof *x->count * x->n_counts);
            for (uint64_t j = 0; j < x->n_sums; j++)
                assert_true(fabs(x->sum[j] - y->sum[j]) <= 1e-12 * x->sum[j]);
        }
        imatrix_free(&a);
        imatrix_free(&b);
    }
}

/* ---- files ---- */

static bool near(double a, double b) { return fabs(a - b) <= 1e-6 * fabs(b); }

static void test_formats(void **state)
{
    (void)state;
    struct imatrix a, b;
    read_fixture("qwen3moe", "gguf", &a);
    read_fixture("qwen3moe", "dat", &b);
    assert_int_equal(a.n, b.n);
    assert_int_equal(b.n_chunks, CHUNKS);
    assert_string_equal(a.dataset[0], "text");
    assert_string_equal(b.dataset[0], "text");
    for (uint64_t i = 0; i < a.n; i++) {
        const struct imatrix_entry *x = &a.entry[i], *y = &b.entry[i];
        assert_string_equal(x->name, y->name);
        assert_int_equal(x->n_sums, y->n_sums);
        assert_int_equal(y->n_counts, 1);
        for (uint64_t k = 0; k < x->n_sums; k++) {
            const double count = x->count[k / (x->n_sums / x->n_counts)];
            assert_true(near(y->sum[k] / y->count[0], count > 0 ? x->sum[k] / count : 1));
        }
    }
    imatrix_free(&a);
    imatrix_free(&b);
}

/* Written and read back the same; added to itself twice as much. */
static void test_write_merge(void **state)
{
    (void)state;
    struct imatrix a, b, dat;
    struct err e;
    char path[128];
    err_clear(&e);
    path_in(path, "out.gguf");
    read_fixture("qwen2moe", "gguf", &a);
    assert_int_equal(imatrix_write(&a, path, &e), OK);
    assert_int_equal(imatrix_read(path, &b, &e), OK);
    assert_int_equal(imatrix_merge(&b, &a, &e), OK);
    assert_int_equal(b.n, a.n);
    assert_int_equal(b.n_chunks, 2 * a.n_chunks);
    assert_int_equal(b.n_datasets, 2);
    for (uint64_t i = 0; i < a.n; i++) {
        for (uint64_t k = 0; k < a.entry[i].n_sums; k++)
            assert_true(b.entry[i].sum[k] == 2 * a.entry[i].sum[k]);
        for (uint64_t k = 0; k < a.entry[i].n_counts; k++)
            assert_true(b.entry[i].count[k] == 2 * a.entry[i].count[k]);
    }
    imatrix_free(&a);
    imatrix_free(&b);
    /* One count for all experts and a count for each go together, in either order. */
    for (int order = 0; order < 2; order++) {
        read_fixture("qwen3moe", "gguf", &a);
        read_fixture("qwen3moe", "dat", &dat);
        struct imatrix *to = order ? &a : &dat;
        assert_int_equal(imatrix_merge(to, order ? &dat : &a, &e), OK);
        for (uint64_t i = 0; i < to->n; i++)
            assert_true(to->entry[i].n_counts == 1 || to->entry[i].n_counts == 8);
        imatrix_free(&a);
        imatrix_free(&dat);
    }
    read_fixture("qwen2moe", "gguf", &a);
    read_fixture("glm4moe", "gguf", &b);
    assert_int_equal(imatrix_merge(&a, &b, &e), ERR_SHAPE); /* of another model */
    imatrix_free(&a);
    imatrix_free(&b);
    (void)unlink(path);
}

static void test_weights(void **state)
{
    (void)state;
    struct imatrix m = {0};
    struct err e;
    float w[4];
    err_clear(&e);
    struct imatrix_entry *x = imatrix_want(&m, "blk.0.ffn_up_exps.weight", 2, 4, &e);
    assert_non_null(x);
    const double sums[8] = {0, 3, 1, 4, 7, 7, 7, 7};
    memcpy(x->sum, sums, sizeof sums);
    x->count[0] = 10;
    imatrix_weights(x, 0, 4, w);
    assert_true(w[0] > 0 && w[0] < 1e-4f);
    assert_true(near(w[1], 1.5) && near(w[2], 0.5) && near(w[3], 2));
    imatrix_weights(x, 1, 4, w); /* no row met it */
    for (int k = 0; k < 4; k++) assert_true(w[k] == 1);
    x->sum[1] = x->sum[2] = x->sum[3] = 0;
    imatrix_weights(x, 0, 4, w); /* all of them were zero */
    for (int k = 0; k < 4; k++) assert_true(w[k] == 1);
    assert_null(imatrix_want(&m, "blk.0.ffn_up_exps.weight", 2, 5, &e));
    assert_int_equal(e.code, ERR_SHAPE);
    assert_null(imatrix_find(&m, (struct gguf_str){"blk.0.ffn_up_exps", 17}));
    imatrix_free(&m);
}

/* ---- what is wrong ---- */

static enum status read_bytes(const void *data, size_t n, struct err *e)
{
    struct imatrix m;
    char path[128];
    path_in(path, "bad");
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
    err_clear(e);
    const enum status s = imatrix_read(path, &m, e);
    if (s) assert_true(!m.n && !m.entry && strstr(e->msg, "bad"));
    else imatrix_free(&m);
    (void)unlink(path);
    return s;
}

static void test_bad_dat(void **state)
{
    (void)state;
    struct err e;
    size_t n = 0;
    char *good = shared_slurp("tests/imatrix/qwen3moe.dat", &n);
    assert_non_null(good);
    assert_int_equal(read_bytes(good, n, &e), OK);
    for (size_t cut = 0; cut < n; cut += 1 + cut / 40) {
        const enum status s = read_bytes(good, cut, &e);
        assert_true(s != OK || cut == n - 8 - 4); /* what follows the entries may be missing */
    }
    static const uint32_t bad[] = {0, 0xffffffffu, 0x7fffffffu, 0x7fc00000u, 0x80000001u};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        const size_t name = 4 + 4; /* entries, length of the name; name; calls, values */
        uint32_t len;
        memcpy(&len, good + 4, 4);
        char *copy = malloc(n);
        assert_non_null(copy);
        for (int field = 0; field < 4; field++) {
            memcpy(copy, good, n);
            const size_t at = field < 2 ? 4 * (size_t)field : name + len + 4 * (size_t)(field - 2);
            if (field == 2 && bad[i] <= INT32_MAX) continue; /* any number of calls will do */
            memcpy(copy + at, &bad[i], 4);
            assert_true(read_bytes(copy, n, &e) != OK);
        }
        free(copy);
    }
    free(good);
}

static void test_bad_gguf(void **state)
{
    (void)state;
    struct err e;
    struct imatrix m;
    size_t n = 0;
    char *good = shared_slurp("tests/imatrix/qwen3moe.gguf", &n), *at;
    assert_non_null(good);
    for (size_t cut = 4; cut < n; cut += 97) assert_true(read_bytes(good, cut, &e) != OK);
    const float odd[] = {-1, NAN, INFINITY};
    for (int i = 0; i < 3; i++) {
        char *copy = malloc(n);
        assert_non_null(copy);
        memcpy(copy, good, n);
        memcpy(copy + n - 64, &odd[i], 4);
        assert_int_equal(read_bytes(copy, n, &e), ERR_RANGE);
        free(copy);
    }
    for (at = good; memcmp(at, ".counts", 7); at++)
        assert_true(at < good + n - 8);
    at[1] = 'k';
    assert_int_equal(read_bytes(good, n, &e), ERR_MISSING);
    assert_non_null(strstr(e.msg, ".counts"));
    assert_int_equal(imatrix_read("tests/awkward/qwen3.gguf", &m, &e), ERR_MISSING);
    err_clear(&e);
    assert_int_equal(imatrix_read("/nonexistent/x", &m, &e), ERR_IO);
    free(good);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_beside_llama), cmocka_unit_test(test_any_split),
        cmocka_unit_test(test_formats),      cmocka_unit_test(test_write_merge),
        cmocka_unit_test(test_weights),      cmocka_unit_test(test_bad_dat),
        cmocka_unit_test(test_bad_gguf),
    };
    if (!mkdtemp(dir)) return 1;
    const int bad = cmocka_run_group_tests(tests, NULL, NULL);
    (void)rmdir(dir);
    return bad;
}
