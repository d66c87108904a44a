/* Stacks: sizes are the paper's arithmetic; the file comes back as it was coded; every budget runs, and
 * what a resize leaves gives the same bits as an engine that never had another placement, with the same
 * KV; nothing above the budget; broken files are refused. */
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
#include "quant/build/stack_build.h"
#include "quant/build/stack_int.h"
#include "quant/codec.h"
#include "tests/engine.h"
#include "tests/plugin.h"
#include "tests/shared.h"

enum { N = 24, VOCAB = 1024, MIB = 1 << 20 };

static char dir[64] = "/tmp/tessera-stack-XXXXXX";
static int32_t ids[N + 300];

static const char *in_dir(const char *name)
{
    static char path[8][160];
    static int turn;
    char *p = path[turn++ % 8];
    (void)snprintf(p, 160, "%s/%s", dir, name);
    return p;
}

static const char *source(void)
{
    struct err e;
    err_clear(&e);
    struct gen_spec g = gen_tiny("qwen3moe", QTYPE_F16);
    const char *path = in_dir("source.gguf");
    g.n_layer = 3;
    g.n_embd = 512;
    g.n_head = 8;
    g.n_head_kv = 2;
    g.head_dim = 64;
    g.n_ff = 192;
    g.n_expert = 8;
    g.n_expert_used = 3;
    g.n_ctx = 1024;
    g.n_vocab = VOCAB;
    g.tied = true;
    if (access(path, R_OK) && gen_write(&g, path, NULL, &e)) fail_msg("%s", e.msg);
    return path;
}

/* Order of the units as written, for the file that was built last. */
static struct built {
    int n_units, n_floor;
    uint64_t levels;
} built;

static const char *stack(enum qtype base)
{
    const char *path = in_dir(base == QTYPE_NEST2 ? "nested.gguf" : "factored.gguf");
    const struct stack_options o = {.base = base, .rank = base == QTYPE_NEST2 ? 0 : 3,
                                    .n_levels = base == QTYPE_NEST2 ? 4 : 2};
    struct err e;
    struct gguf *g;
    struct stack_build b;
    struct pool *pool;
    err_clear(&e);
    if (gguf_open(source(), NULL, &g, &e) || stack_build_open(&b, g, &o, NULL, &e) ||
        pool_open(2, &pool, &e))
        fail_msg("%s", e.msg);
    if (stack_encode(&b, path, pool, NULL, NULL, &e)) fail_msg("%s", e.msg);
    int32_t *order = stack_order(&b, &built.n_units, &built.n_floor);
    assert_non_null(order);
    built.levels = stack_order_bytes(&b, order, built.n_units);
    if (stack_write(&b, path, order, built.n_units, built.n_floor, NULL, pool, NULL, NULL, &e))
        fail_msg("%s", e.msg);
    for (int i = 0; i < b.n_parts; i++)
        for (int m = 0; m < b.part[i].n_mats; m++)
            for (int d = 1; d <= o.n_levels; d++)
                assert_true(b.part[i].mat[m].error[d] < b.part[i].mat[m].error[d - 1]);
    free(order);
    pool_close(pool);
    stack_build_close(&b);
    gguf_close(g);
    return path;
}

static struct tessera_options options(const char *path, uint64_t budget)
{
    struct tessera_options o = tessera_defaults();
    o.model_path = path;
    o.n_threads = 2;
    o.n_ctx = 512;
    o.n_ubatch = 32;
    o.mem_budget = budget;
    return o;
}

static const float *step(tessera_engine *e, tessera_session *s, const int32_t *id, int n)
{
    struct err err;
    const int most = tessera_model(e).n_ubatch;
    for (; n > most; n -= most, id += most) { /* as pieces; the bits are the same */
        struct tessera_input in = {s, id, most, TESSERA_LOGITS_NONE};
        if (tessera_step(e, &in, 1, &err)) fail_msg("%s", err.msg);
    }
    struct tessera_input in = {s, id, n, TESSERA_LOGITS_LAST};
    if (tessera_step(e, &in, 1, &err)) fail_msg("%s", err.msg);
    return tessera_logits(e, 0, n - 1);
}

/* ---- sizes ---- */

static void test_paper_sizes(void **state)
{
    (void)state;
    static const struct { int m, n; double mib; } table[] = { /* Table 6, k = 16 */
        {4096, 4096, 2.25}, {11008, 4096, 5.84}, {5120, 5120, 3.44}, {13824, 5120, 9.02},
        {1024, 4096, 0.66}, {14336, 4096, 7.56}, {8192, 8192, 8.50}, {1024, 8192, 1.28},
        {28672, 8192, 29.13}};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        const double mib =
            (double)stack_level_bytes(QTYPE_SIGN1, 16, table[i].n, table[i].m, 1) / MIB;
        assert_true(fabs(mib - table[i].mib) < 0.0051);
    }
    assert_int_equal(stack_level_bytes(QTYPE_SIGN1, 16, 2048, 768, 1), 286720);
    assert_int_equal(stack_level_bytes(QTYPE_SIGN1, 1, 2048, 768, 1), 202240);
    assert_int_equal(stack_level_bytes(QTYPE_NEST2, 0, 2048, 768, 1), 2048 * 768 / 8);
    assert_int_equal(qtype_bytes(QTYPE_NEST2, 64), 17);
}

/* ---- the factored codec beside the algorithm in NumPy (tests/stack/factor.py) ---- */

/* One matrix through the decomposition: base as tiles and levels, as kernels take them. */
struct factored {
    struct stacked w;
    void *mem[STACK_LEVELS + 2];
    struct stack_mat mat;
};

static void factor_one(struct factored *f, int m, int n, int rank, int planes, const float *w,
                       const float *square)
{
    struct gguf_tensor t = {.type = QTYPE_F32, .dim = {(uint64_t)n, (uint64_t)m, 1, 1}};
    struct requant_tensor q = {.in = &t};
    struct stack_part p = {.t = &q, .n_cols = n, .n_rows = m, .n_mats = 1, .mat = &f->mat};
    struct stack_build b = {.o = {.base = QTYPE_SIGN1, .rank = rank, .n_levels = planes - 1}};
    struct stack_job j = {.b = &b};
    struct err e;
    double sum[256];
    err_clear(&e);
    FILE *file = tmpfile();
    assert_non_null(file);
    b.work = fileno(file);
    for (int i = 0; i < n; i++) sum[i] = (double)square[i];
    if (pool_open(2, &j.pool, &e) || stack_factor(&j, &p, 0, (const char *)w, sum, &e))
        fail_msg("%s", e.msg);
    f->w = (struct stacked){.type = QTYPE_SIGN1, .n_cols = n, .n_rows = m, .rank = rank};
    for (int l = -1; l < planes; l++) {
        const size_t bytes = l < 0 ? stack_mat_bytes(&b, &p) : stack_unit_bytes(&b, &p, l);
        f->mem[l + 1] = malloc(bytes);
        assert_int_equal(pread(b.work, f->mem[l + 1], bytes, (off_t)stack_unit_at(&b, &p, 0, l)),
                         bytes);
        if (l >= 0) f->w.level[l] = f->mem[l + 1];
    }
    char *tiles = malloc(tile_bytes(QTYPE_SIGN1, n) * (size_t)(m / TILE_ROWS));
    for (int r = 0; r < m; r += TILE_ROWS)
        tile_pack(mm_kernels(CPU_REF), QTYPE_SIGN1, n, TILE_ROWS, (char *)f->mem[0] + r * n / 8,
                  (size_t)n / 8, tiles + tile_bytes(QTYPE_SIGN1, n) * (size_t)(r / TILE_ROWS));
    free(f->mem[0]);
    f->w.base = f->mem[0] = tiles;
    pool_close(j.pool);
    assert_int_equal(fclose(file), 0);
}

static void test_official_algorithm(void **state)
{
    (void)state;
    size_t n_bytes;
    float *v = (float *)(void *)shared_slurp("tests/stack/factor.bin", &n_bytes);
    assert_non_null(v);
    const int m = (int)v[0], n = (int)v[1], rank = (int)v[2], planes = (int)v[3];
    const float *w = v + 4, *square = w + m * n, *want = square + n;
    assert_int_equal(n_bytes, 4 * (4 + (size_t)(m * n) * (size_t)(planes + 1) + (size_t)n));
    struct factored f = {.mat = {0}};
    factor_one(&f, m, n, rank, planes, w, square);
    for (int d = 0; d < planes; d++, want += m * n) {
        double off = 0, energy = 0, error = 0;
        float row[256];
        f.w.depth = d;
        for (int i = 0; i < m; i++) {
            stack_row_f32(&f.w, i, row);
            for (int c = 0; c < n; c++) {
                const double s = (double)square[c], x = (double)w[i * n + c];
                off += s * pow((double)row[c] - (double)want[i * n + c], 2);
                error += s * pow(x - (double)want[i * n + c], 2);
                energy += s * x * x;
            }
        }
        /* A half has 11 bits; a weight whose residual is about zero may get the other sign. */
        assert_true(off < 2e-6 * energy);
        assert_true(fabs(f.mat.error[d] - error) < 0.01 * error);
        assert_true(fabs(f.mat.energy - energy) < 1e-4 * energy);
    }
    for (int i = 0; i <= planes; i++) free(f.mem[i]);
    free(v);
}

/* ---- a build that is interrupted ---- */

static bool stop_at(void *arg, uint64_t done, uint64_t total)
{
    (void)total;
    return done < *(uint64_t *)arg;
}

/* Codes until so many bytes went, and leaves what is there; else writes the stack.  Returns how many
 * tensors were coded before. */
static int build_until(uint64_t bytes, int n_levels, const char *out)
{
    const struct stack_options o = {.base = QTYPE_NEST2, .n_levels = n_levels};
    struct err e;
    struct gguf *g;
    struct stack_build b;
    struct pool *pool;
    int n, n_floor;
    err_clear(&e);
    if (gguf_open(source(), NULL, &g, &e) || stack_build_open(&b, g, &o, NULL, &e) || pool_open(2, &pool, &e))
        fail_msg("%s", e.msg);
    const enum status s = stack_encode(&b, out, pool, stop_at, &bytes, &e);
    const int coded = b.n_coded;
    assert_int_equal(s, bytes == UINT64_MAX ? OK : ERR_CANCELLED);
    b.keep = s == ERR_CANCELLED;
    if (!s) {
        int32_t *order = stack_order(&b, &n, &n_floor);
        assert_non_null(order);
        if (stack_write(&b, out, order, n, n_floor, NULL, pool, NULL, NULL, &e)) fail_msg("%s", e.msg);
        free(order);
    }
    pool_close(pool);
    stack_build_close(&b);
    gguf_close(g);
    return coded;
}

static void test_interrupted(void **state)
{
    (void)state;
    char out[160], done[160], work[160]; /* in_dir()'s own last for eight calls */
    (void)snprintf(out, sizeof out, "%s", in_dir("again.gguf"));
    (void)snprintf(done, sizeof done, "%s", in_dir("again.gguf.done.part"));
    (void)snprintf(work, sizeof work, "%s", in_dir("again.gguf.work.part"));
    size_t n_want, n_got;
    char *want = shared_slurp(stack(QTYPE_NEST2), &n_want);
    assert_int_equal(build_until(4 * MIB, 4, out), 0);
    const int some = build_until(6 * MIB, 4, out);
    assert_true(some > 0);
    assert_int_equal(access(out, R_OK), -1); /* nothing half-written under its name */
    assert_true(build_until(UINT64_MAX, 4, out) > some);
    char *got = shared_slurp(out, &n_got);
    assert_int_equal(n_got, n_want);
    assert_memory_equal(got, want, n_want);
    free(got);
    assert_int_equal(access(done, R_OK), -1);
    assert_int_equal(access(work, R_OK), -1);
    /* A torn record counts as not there. */
    (void)build_until(6 * MIB, 4, out);
    const int whole = build_until(6 * MIB, 4, out);
    FILE *f = fopen(done, "rb");
    assert_non_null(f);
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    assert_int_equal(truncate(done, ftell(f) - 9), 0);
    assert_int_equal(fclose(f), 0);
    assert_true(whole > 1);
    assert_int_equal(build_until(6 * MIB, 4, out), whole - 1);
    /* The work file was removed, what says that it is done was not: all anew. */
    assert_int_equal(unlink(work), 0);
    assert_int_equal(build_until(6 * MIB, 4, out), 0);
    /* Other options: all anew. */
    assert_int_equal(build_until(6 * MIB, 3, out), 0);
    assert_int_equal(build_until(UINT64_MAX, 4, out), 0);
    got = shared_slurp(out, &n_got);
    assert_int_equal(n_got, n_want);
    assert_memory_equal(got, want, n_want);
    free(got);
    free(want);
}

/* ---- budgets ---- */

/* Of nine budgets from the smallest to the whole stack; a sanitizer sees both ends and the middle. */
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { EVERY = 4 };
#else
enum { EVERY = 1 };
#endif

static void check_budgets(enum qtype base)
{
    const char *path = stack(base);
    struct tessera_options o = options(path, UINT64_MAX);
    const uint64_t least = smallest(&o);
    uint64_t most = least;
    tessera_engine *e = must_open(&o);
    assert_int_equal(tessera_stack(e).n_loaded, built.n_units);
    most = fit_need(e, &e->placement);
    tessera_close(e);
    int last = -1, compared = 0;
    for (int i = 0; i <= 8; i += EVERY) {
        o.mem_budget = least + (most - least) / 8 * (uint64_t)i;
        e = must_open(&o);
        const int n = tessera_stack(e).n_loaded;
        assert_true(n >= last && n >= built.n_floor);
        last = n;
        tessera_session *s = session(e);
        float one[VOCAB];
        memcpy(one, step(e, s, ids, N), sizeof one);
        assert_true(tessera_memory(e).peak <= o.mem_budget);
        tessera_session_close(s);
        tessera_close(e);
        /* One thread, token by token, not to be waited for if it could be: the same bits. */
        struct tessera_options t = o;
        t.background = true;
        t.n_threads = 1;
        t.n_ubatch = 1;
        e = must_open(&t);
        if (tessera_stack(e).n_loaded == n) { /* staging is smaller with one thread */
            s = session(e);
            const float *two = NULL;
            for (int k = 0; k < N; k++) two = step(e, s, ids + k, 1);
            assert_memory_equal(one, two, sizeof one);
            tessera_session_close(s);
            compared++;
        }
        tessera_close(e);
    }
    assert_int_equal(last, built.n_units);
    assert_true(compared > 0);
}

static void test_nested_budgets(void **state)
{
    (void)state;
    check_budgets(QTYPE_NEST2);
}

static void test_factored_budgets(void **state)
{
    (void)state;
    check_budgets(QTYPE_SIGN1);
    /* A device has no kernels for it. */
    struct tessera_options o = options(in_dir("factored.gguf"), UINT64_MAX);
    o.device = dev_sim_api();
    tessera_engine *e = must_open(&o);
    const char *line = tessera_warning(e, 0);
    assert_true(line && strstr(line, "cannot run the experts of this model") && strstr(line, "SIGN1"));
    tessera_close(e);
}

/* Resizes at random in one long timeline; after some, another engine that is given what is placed now
 * and the same KV must give the same logits.  (Opened with that budget it could place otherwise: it
 * would not have this timeline's KV to hold.) */
static void test_resizes(void **state)
{
    (void)state;
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
    enum { RESIZES = 40, FRESH_EVERY = 10 };
#else
    enum { RESIZES = 200, FRESH_EVERY = 10 };
#endif
    const char *path = stack(QTYPE_NEST2), *kv = in_dir("kv.gguf");
    struct tessera_options o = options(path, UINT64_MAX);
    tessera_engine *e = must_open(&o);
    const uint64_t least = fit_least(e), most = fit_need(e, &e->placement) + MIB;
    tessera_session *s = session(e);
    struct err err;
    struct rng r;
    int depths = 0, last = -1;
    uint64_t before = UINT64_MAX;
    rng_seed(&r, 5);
    (void)step(e, s, ids, N);
    for (int i = 0; i < RESIZES; i++) {
        const uint64_t budget = i % 3 == 0   ? least
                                : i % 3 == 1 ? most
                                             : least + rng_below(&r, (uint32_t)(most - least));
        atomic_store(&e->ledger.peak, atomic_load(&e->ledger.total));
        if (tessera_resize(e, budget, &err)) fail_msg("%s", err.msg);
        const struct tessera_memory m = tessera_memory(e);
        assert_true(m.total <= budget && m.peak <= (budget > before ? budget : before));
        before = budget;
        depths += tessera_stack(e).n_loaded != last;
        last = tessera_stack(e).n_loaded;
        const bool fresh = i % FRESH_EVERY < 3;
        if (fresh && tessera_session_save(s, kv, &err)) fail_msg("%s", err.msg);
        float got[VOCAB];
        memcpy(got, step(e, s, ids + N + i, 1), sizeof got);
        if (!fresh) continue;
        struct tessera_options f = o;
        f.mem_budget = UINT64_MAX;
        tessera_engine *e2 = must_open(&f);
        struct placement p = e->placement;
        assert_int_equal(resid_apply(&e2->resid, &p, NULL, NULL, &err), OK);
        tessera_session *s2 = session(e2);
        if (tessera_session_load(s2, kv, &err)) fail_msg("%s", err.msg);
        assert_memory_equal(got, step(e2, s2, ids + N + i, 1), sizeof got);
        tessera_session_close(s2);
        tessera_close(e2);
    }
    assert_true(depths > RESIZES / 2);
    tessera_session_close(s);
    tessera_close(e);
}

/* ---- a device ---- */

/* What the model says behind some ids in one piece and some one by one, on a session of their own. */
static void say(tessera_engine *e, float *out)
{
    enum { PIECE = 8, ALONE = 3 };
    tessera_session *s = session(e);
    const float *y = step(e, s, ids, PIECE);
    for (int i = 0; i < ALONE; i++) y = step(e, s, ids + PIECE + i, 1);
    memcpy(out, y, VOCAB * sizeof *out);
    tessera_session_close(s);
}

/* The same as an engine without a device that has the same levels, before and after its experts come. */
static void same_without(tessera_engine *e, int depth)
{
    struct tessera_options o = options(e->opt.model_path, UINT64_MAX);
    struct err err;
    float want[VOCAB], got[VOCAB];
    tessera_engine *plain = must_open(&o);
    if (resid_apply(&plain->resid, &e->placement, NULL, NULL, &err)) fail_msg("%s", err.msg);
    if (depth < STACK_NESTED && tessera_stack_limit(plain, NULL, -1, depth, &err)) fail_msg("%s", err.msg);
    say(plain, want);
    tessera_close(plain);
    for (int i = 0; i < 2; i++) {
        say(e, got);
        assert_memory_equal(got, want, sizeof want);
    }
}

/* So many levels in memory, as a resize leaves them. */
static void set_levels(tessera_engine *e, int n)
{
    struct err err;
    const struct place_sizes *sizes = &e->resid.sizes;
    e->placement.bytes += place_level_bytes(sizes, n) - place_level_bytes(sizes, e->placement.n_units);
    e->placement.n_units = n;
    if (resid_apply(&e->resid, &e->placement, NULL, NULL, &err)) fail_msg("%s", err.msg);
    assert_int_equal(e->resid.now.n_units, n);
}

/* The experts that a device has follow the host's levels, whatever happens to those. */
static void check_device(const char *path, const struct dev_api *api, uint64_t own)
{
    struct tessera_options o = options(path, UINT64_MAX);
    struct err err;
    o.device = api;
    for (int some = 0; some < 2; some++) { /* room for all of them, or for some */
        o.vram_budget = own + (uint64_t)(some ? 5 : 40) * MIB;
        tessera_engine *e = must_open(&o);
        if (tessera_warning(e, 0)) fail_msg("%s", tessera_warning(e, 0));
        assert_true(some ? e->devtier.plan.n_all < 24 : e->devtier.plan.n_all == 24);
        const int levels[] = {built.n_units, built.n_units / 2, built.n_floor, built.n_units * 3 / 4};
        for (int i = 0; i < 4; i++) {
            const struct tessera_traffic before = tessera_traffic(e);
            set_levels(e, levels[i]);
            same_without(e, STACK_NESTED);
            const struct tessera_traffic t = tessera_traffic(e);
            assert_true(t.device_ran > before.device_ran && (!i || t.device_filled > before.device_filled));
            assert_null(tessera_warning(e, 0));
        }
        if (tessera_stack_limit(e, NULL, -1, 1, &err)) fail_msg("%s", err.msg);
        same_without(e, 1);
        if (tessera_resize(e, UINT64_MAX, &err)) fail_msg("%s", err.msg);
        assert_int_equal(tessera_stack(e).n_loaded, built.n_units);
        same_without(e, STACK_NESTED);
        tessera_close(e);
    }
}

static void test_devices(void **state)
{
    (void)state;
    const char *path = stack(QTYPE_NEST2);
    check_device(path, dev_sim_api(), 0);
    (void)setenv("TEST_CUDA", "", 1);
    check_device(path, plugin(""), (uint64_t)CUDA_OWN * MIB);
}

/* What the file holds at full depth is what the encoder said of it. */
static void test_comes_back(void **state)
{
    (void)state;
    struct tessera_options o = options(stack(QTYPE_NEST2), UINT64_MAX);
    tessera_engine *e = must_open(&o);
    struct gguf *g;
    struct err err;
    assert_int_equal(gguf_open(source(), NULL, &g, &err), OK);
    const struct gguf_tensor *t = gguf_find_tensor(g, "blk.1.ffn_up_exps.weight");
    size_t n;
    char *file = shared_slurp(source(), &n);
    float want[512], got[512];
    int w = 0;
    while (strcmp(e->weights.at[w].name, "blk.1.ffn_up_exps.weight")) w++;
    double error[5] = {0}, energy = 0;
    for (int mat = 0; mat < 8; mat++)
        for (int d = 0; d <= STACK_NESTED; d++) {
            struct stacked m = e->resid.stack.mat[e->weights.at[w].first_part + mat];
            int32_t one = mat;
            resid_limit_levels(&e->resid, e->weights.at[w].first_part + mat, d);
            (void)one;
            const int bank = 1, gi = e->resid.first_expert + bank * 8 + mat;
            m = e->resid.stack.mat[e->weights.at[w].first_part + mat];
            m.base = e->resid.group[gi].base + e->resid.group[gi].at[1];
            assert_int_equal(m.depth, d);
            for (int row = 0; row < 192; row++) {
                codec_decode(QTYPE_F16,
                             file + t->offset + 1024 * (size_t)(mat * 192 + row), want, 512);
                stack_row_f32(&m, row, got);
                for (int c = 0; c < 512; c++) {
                    const double x = (double)want[c] - (double)got[c];
                    error[d] += x * x;
                    energy += d ? 0 : (double)want[c] * (double)want[c];
                }
            }
        }
    for (int d = 0; d <= STACK_NESTED; d++) {
        static const double most[5] = {.14, .04, .010, .003, .0008};
        assert_true(error[d] < most[d] * energy);
    }
    free(file);
    gguf_close(g);
    tessera_close(e);
}

/* ---- broken files ---- */

static char *whole;
static size_t n_whole;

static const char *put(const char *bytes, size_t n)
{
    const char *path = in_dir("broken.gguf");
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
    return path;
}

static void refused(const char *path, const char *why)
{
    struct tessera_options o = options(path, UINT64_MAX);
    struct err err;
    tessera_engine *e = NULL;
    const enum status s = tessera_open(&o, &e, &err);
    if (!s) tessera_close(e);
    assert_int_not_equal(s, OK);
    if (!strstr(err.msg, why)) fail_msg("'%s' does not say '%s'", err.msg, why);
}

static size_t find(const char *text)
{
    for (size_t i = 0; i + strlen(text) < n_whole; i++)
        if (!memcmp(whole + i, text, strlen(text))) return i;
    fail_msg("%s is not in the file", text);
    return 0;
}

static void test_broken(void **state)
{
    (void)state;
    const char *path = stack(QTYPE_NEST2);
    struct err err;
    struct gguf *g;
    struct stackfile s;
    whole = shared_slurp(path, &n_whole);
    assert_int_equal(gguf_open(path, NULL, &g, &err), OK);
    assert_int_equal(stackfile_open(&s, g, &err), OK);
    const uint64_t from = s.levels->offset, half = s.unit[s.n_units / 2].end;
    const struct gguf_kv *order = gguf_find(g, "tessera.stack.order");
    const size_t at_order = order->pos + 12; /* element type, count */

    /* Cut between units: what is there is used, and it is said. */
    struct tessera_options o = options(put(whole, from + half), UINT64_MAX);
    tessera_engine *e = must_open(&o);
    assert_int_equal(tessera_stack(e).n_loaded, s.n_units / 2 + 1);
    assert_int_equal(tessera_stack(e).n_units, s.n_units);
    assert_non_null(strstr(tessera_warning(e, 0), "was cut"));
    tessera_session *t = session(e);
    (void)step(e, t, ids, N);
    tessera_session_close(t);
    tessera_close(e);

    refused(put(whole, from + half + 64), "truncated inside of unit");
    refused(put(whole, from + 32), "truncated");
    refused(put(whole, s.tensor[1].base->offset + 10), "truncated");

    int32_t u[6], v[6];
    memcpy(u, whole + at_order, sizeof u);
    memcpy(v, u, sizeof v);
    v[2] = 3; /* a level is missing */
    memcpy(whole + at_order, v, sizeof v);
    refused(put(whole, n_whole), "a level is missing");
    v[2] = u[2];
    v[1] = 77; /* no such matrix */
    memcpy(whole + at_order, v, sizeof v);
    refused(put(whole, n_whole), "do not exist");
    v[1] = -1;
    memcpy(whole + at_order, v, sizeof v);
    refused(put(whole, n_whole), "do not exist");
    memcpy(whole + at_order, u, sizeof u);

    whole[from + 9] ^= 1; /* somebody else's levels */
    refused(put(whole, n_whole), "another model");
    whole[from + 9] ^= 1;
    whole[find("nested")] = 'x';
    refused(put(whole, n_whole), "codec");
    stackfile_close(&s);
    gguf_close(g);
    free(whole);
}

static int set_up(void **state)
{
    (void)state;
    struct rng r;
    rng_seed(&r, 9);
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) ids[i] = (int32_t)rng_below(&r, VOCAB);
    return mkdtemp(dir) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    static const char *const names[] = {"source.gguf", "nested.gguf", "factored.gguf", "kv.gguf",
                                        "broken.gguf", "again.gguf"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) (void)unlink(in_dir(names[i]));
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_paper_sizes),      cmocka_unit_test(test_official_algorithm),
        cmocka_unit_test(test_interrupted),      cmocka_unit_test(test_nested_budgets),
        cmocka_unit_test(test_factored_budgets), cmocka_unit_test(test_resizes),
        cmocka_unit_test(test_comes_back),       cmocka_unit_test(test_broken),
        cmocka_unit_test(test_devices),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
