/* Budgets: the same bits whatever is in memory, from the smallest budget that works to no limit, for
 * decode, prefill, batches, resizes in the middle, every policy and every predictor; nothing above the
 * budget; refusals; and reads that fail, come short, or find another file. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#if defined(__linux__)
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#endif
#include <cmocka.h>

#include "moe/load/trace.h"
#include "moe/run/engine_int.h"
#include "tests/engine.h"
#include "tests/fault.h"
#include "tests/gen_small.h"

/* More than a page of K and V, and than the largest piece. */
enum { N = 72, VOCAB = 2048, MIB = 1 << 20 };

static char dir[64] = "/tmp/tessera-budget-XXXXXX";
static int32_t ids[N];

static const char *model(const char *arch, unsigned type, bool tied)
{
    static char path[160];
    struct err e;
    err_clear(&e);
    struct gen_spec g = gen_small(arch, type);
    if (!strcmp(arch, "olmoe")) {
        g.n_head_kv = 16;
        g.head_dim = 32;
    }
    if (!strcmp(arch, "llama")) g.n_expert = 0;
    g.n_vocab = VOCAB;
    g.tied = tied;
    (void)snprintf(path, sizeof path, "%s/%s-%u%s.gguf", dir, arch, type, tied ? "-tied" : "");
    if (access(path, R_OK) && gen_write(&g, path, NULL, &e)) fail_msg("%s", e.msg);
    return path;
}

static struct tessera_options options(const char *path, uint64_t budget)
{
    struct tessera_options o = tessera_defaults();
    o.model_path = path;
    o.n_threads = 2;
    o.n_ctx = 128;
    o.n_ubatch = 64;
    o.n_logits = 64;
    o.mem_budget = budget;
    return o;
}

/* Feeds all ids in pieces of at most `most`; resize() is called between steps when it is there. */
static enum status feed(tessera_engine *e, int most, float *out,
                        void (*between)(tessera_engine *e, int at), struct err *err)
{
    tessera_session *s = session(e);
    enum status st = OK;
    if (most > e->opt.n_ubatch) most = e->opt.n_ubatch;
    for (int at = 0; at < N && !st;) {
        const int n = N - at < most ? N - at : most;
        struct tessera_input in = {s, ids + at, n, TESSERA_LOGITS_ALL};
        st = tessera_step(e, &in, 1, err);
        for (int i = 0; i < n && !st; i++)
            memcpy(out + (size_t)(at + i) * VOCAB, tessera_logits(e, 0, i), VOCAB * sizeof *out);
        at += n;
        if (between && !st) between(e, at);
        assert_true(tessera_memory(e).peak <= tessera_memory(e).budget || between);
    }
    tessera_session_close(s);
    return st;
}

/* A budget with which some experts have to be read, and nothing else: so many MiB above the least of them. */
static uint64_t pooled(const struct tessera_options *like, int more)
{
    struct tessera_options o = *like;
    for (o.mem_budget = smallest(like);; o.mem_budget += MIB / 2) {
        tessera_engine *e = must_open(&o);
        const bool home = e->resid.now.dense_home;
        assert_false(e->resid.all_ram);
        tessera_close(e);
        if (home) return o.mem_budget + (uint64_t)more * MIB;
    }
}

struct bits {
    float *want, *got;
};

static struct bits reference(const struct tessera_options *o)
{
    struct bits b = {calloc(N * VOCAB, sizeof(float)), calloc(N * VOCAB, sizeof(float))};
    struct tessera_options all = *o;
    struct err err;
    all.mem_budget = UINT64_MAX;
    tessera_engine *e = must_open(&all);
    assert_true(e->resid.all_ram);
    assert_int_equal(feed(e, 64, b.want, NULL, &err), OK);
    tessera_close(e);
    return b;
}

static void bits_free(struct bits *b)
{
    free(b->want);
    free(b->got);
}

/* ---- full contexts ---- */

/* A context that is full at the smallest budget, to the byte: what was lent to the weights comes back,
 * page after page, though their slots are coarse. */
static void check_full(const char *arch, unsigned type)
{
    enum { PAGE = 64, PAGES = 8 };
    struct tessera_options o = options(model(arch, type, false), UINT64_MAX);
    float *want = calloc(PAGES * VOCAB, sizeof *want);
    struct err err;
    for (int pages = PAGES; pages > 1; pages -= 2) {
        o.n_ctx = pages * PAGE;
        o.mem_budget = UINT64_MAX;
        uint64_t least = 0;
        for (int k = 0; k < 2; k++, o.mem_budget = least) {
            tessera_engine *e = must_open(&o);
            tessera_session *s = session(e);
            if (!k) least = fit_least(e);
            for (int at = 0; at < o.n_ctx; at += PAGE / 2) {
                int32_t piece[PAGE / 2];
                for (int i = 0; i < PAGE / 2; i++) piece[i] = ids[(at + i) % N];
                const struct tessera_input in = {.session = s, .ids = piece, .n = PAGE / 2,
                                                 .logits = TESSERA_LOGITS_LAST};
                if (tessera_step(e, &in, 1, &err)) fail_msg("%s: %d of %d: %s", arch, at, o.n_ctx, err.msg);
                if (at % PAGE == 0) continue;
                float *row = want + (size_t)(at / PAGE) * VOCAB;
                if (k) assert_memory_equal(row, tessera_logits(e, 0, PAGE / 2 - 1), VOCAB * sizeof *row);
                else memcpy(row, tessera_logits(e, 0, PAGE / 2 - 1), VOCAB * sizeof *row);
            }
            assert_true(tessera_memory(e).peak <= o.mem_budget);
            tessera_session_close(s);
            tessera_close(e);
        }
    }
    free(want);
}

static void test_full(void **state)
{
    (void)state;
    check_full("olmoe", QTYPE_Q4_K);
    check_full("qwen3moe", QTYPE_Q8_0);
    check_full("llama", QTYPE_Q4_0);
}

/* ---- the same bits ---- */

static void check_budgets(const char *arch, unsigned type, bool tied)
{
    const struct tessera_options o = options(model(arch, type, tied), 0);
    const uint64_t least = smallest(&o);
    struct bits b = reference(&o);
    int streamed = 0, pooled = 0, all = 0;
    for (int step = 0; step < 12; step++) {
        struct tessera_options p = o;
        struct err err;
        p.mem_budget = least + (uint64_t)step * step * MIB / 2;
        p.no_uring = step % 4 == 3;
        tessera_engine *e = must_open(&p);
        streamed += !e->resid.now.dense_home;
        pooled += e->resid.now.dense_home && !e->resid.all_ram;
        all += e->resid.all_ram;
        assert_int_equal(feed(e, step % 3 == 0 ? 1 : step % 3 == 1 ? 64 : 7, b.got, NULL, &err), OK);
        assert_memory_equal(b.want, b.got, N * VOCAB * sizeof *b.want);
        tessera_close(e);
    }
    assert_true(streamed && (pooled || !strcmp(arch, "llama")));
    struct err err;
    struct tessera_options p = o;
    tessera_engine *e;
    p.mem_budget = least - MIB;
    assert_int_equal(tessera_open(&p, &e, &err), ERR_BUDGET);
    bits_free(&b);
}

static void test_same_bits(void **state)
{
    (void)state;
    check_budgets("qwen3moe", QTYPE_Q8_0, false);
    check_budgets("qwen3moe", GEN_Q4_K_M, true);
    check_budgets("olmoe", QTYPE_F16, false);
    check_budgets("llama", QTYPE_Q8_0, false);
}

/* ---- resizing ---- */

static uint64_t least_now, most_now;

static void resize(tessera_engine *e, int at)
{
    struct err err;
    const uint64_t span = most_now - least_now, before = tessera_memory(e).budget;
    /* down to the least, up to everything, and in between */
    const uint64_t to = at % 5 == 0 ? least_now : at % 5 == 1 ? most_now
                        : least_now + span / 97 * (uint64_t)(at * 31 % 97);
    const bool had_all = e->resid.all_ram;
    atomic_store(&e->ledger.peak, atomic_load(&e->ledger.total));
    if (tessera_resize(e, to, &err)) fail_msg("%s", err.msg);
    const struct tessera_memory m = tessera_memory(e);
    assert_true(m.budget == to && m.total <= to);
    assert_true(m.peak <= (to > before ? to : before));
    assert_true(e->resid.all_ram || to < most_now || !had_all);
    atomic_store(&e->ledger.peak, m.total);
}

static void check_resize(const char *arch, unsigned type)
{
    struct tessera_options o = options(model(arch, type, false), UINT64_MAX);
    struct bits b = reference(&o);
    struct err err;
    o.n_ubatch = 16; /* what a resize keeps */
    o.n_logits = 16;
    tessera_engine *e = must_open(&o);
    least_now = (fit_least(e) + MIB - 1) / MIB * MIB;
    most_now = fit_need(e, &e->placement) + 8 * MIB;
    assert_int_equal(feed(e, 3, b.got, resize, &err), OK);
    assert_memory_equal(b.want, b.got, N * VOCAB * sizeof *b.want);
    /* Too little is refused and changes nothing. */
    const struct tessera_memory before = tessera_memory(e);
    assert_int_equal(tessera_resize(e, least_now - MIB, &err), ERR_BUDGET);
    assert_non_null(strstr(err.msg, "needs"));
    assert_int_equal(tessera_memory(e).total, before.total);
    assert_int_equal(feed(e, 16, b.got, NULL, &err), OK);
    assert_memory_equal(b.want, b.got, N * VOCAB * sizeof *b.want);
    tessera_close(e);
    bits_free(&b);
}

static void test_resize(void **state)
{
    (void)state;
    check_resize("qwen3moe", GEN_Q4_K_M);
    check_resize("llama", QTYPE_Q8_0);
}

/* Logits of many rows that the plan knew nothing of: expert slots give way. */
static void test_room(void **state)
{
    (void)state;
    struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0, false), 0);
    struct bits b = reference(&o);
    struct err err;
    o.n_logits = 1;
    o.n_ubatch = 32;
    o.mem_budget = smallest(&o) + 6 * MIB;
    tessera_engine *e = must_open(&o);
    assert_false(e->resid.all_ram);
    const uint64_t before = tessera_memory(e).weights;
    assert_int_equal(feed(e, 32, b.got, NULL, &err), OK);
    assert_memory_equal(b.want, b.got, N * VOCAB * sizeof *b.want);
    assert_true(tessera_memory(e).weights <= before);
    tessera_close(e);
    bits_free(&b);
}

/* What a KV cache has not filled works for the weights, and is given back page by page. */
static void test_lent(void **state)
{
    (void)state;
    enum { CTX = 512 };
    static float want[VOCAB], got[VOCAB];
    struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0, false), 0);
    struct err err;
    o.n_ctx = CTX;
    o.n_ubatch = 32;
    o.n_logits = 1;
    const uint64_t least = smallest(&o);
    for (int k = 0; k < 4; k++) {
        o.mem_budget = k ? least + (uint64_t)(k - 1) * 3 * MIB : UINT64_MAX;
        tessera_engine *e = must_open(&o);
        tessera_session *s = session(e);
        const uint64_t before = tessera_memory(e).weights;
        for (int at = 0; at < CTX; at += 8) {
            struct tessera_input in = {s, ids + at % 64, 8, TESSERA_LOGITS_LAST};
            assert_int_equal(tessera_step(e, &in, 1, &err), OK);
            assert_true(tessera_memory(e).peak <= o.mem_budget);
        }
        memcpy(k ? got : want, tessera_logits(e, 0, 7), sizeof got);
        if (k) {
            assert_memory_equal(want, got, sizeof got);
            assert_true(tessera_memory(e).weights < before);
            assert_true(tessera_memory(e).kv >= fit_kv_bytes(e, CTX));
        }
        tessera_session_close(s);
        tessera_close(e);
    }
}

/* ---- reading ahead ---- */

struct film {
    struct trace *t;
    struct err err;
};

static void see(void *arg, const struct obs *o)
{
    struct film *f = arg;
    if (f->t->n_rows == o->pos && trace_append(f->t, 1, &f->err)) return;
    f->t->step[o->pos] = f->t->pos[o->pos] = o->pos;
    f->t->token[o->pos] = o->token;
    for (int k = 0; k < o->n_used; k++)
        trace_experts(f->t, o->pos, o->layer)[k] = (uint16_t)o->expert[k];
}

/* A record of what decoding ids one by one routes, and a predictor of random numbers. */
static void make_side_files(const struct tessera_options *o, char *record, char *learned, float *out)
{
    struct tessera_options all = *o;
    struct film f = {NULL};
    all.mem_budget = UINT64_MAX;
    tessera_engine *e = must_open(&all);
    const struct tessera_model m = tessera_model(e);
    const struct resid *r = &e->resid;
    assert_int_equal(trace_new(r->n_banks, r->n_experts, m.n_expert_used, 0, &f.t, &f.err), OK);
    f.t->model_hash = m.hash;
    tessera_observe(e, see, &f);
    assert_int_equal(feed(e, 1, out, NULL, &f.err), OK);
    tessera_observe(e, NULL, NULL);
    (void)snprintf(record, 160, "%s/record.gguf", dir);
    assert_int_equal(trace_write(f.t, record, &f.err), OK);
    struct predictor p = {.model_hash = m.hash,
                          .path = {.n_vocab = VOCAB, .n_dim = 8, .n_hidden = 8,
                                   .n_layers = r->n_banks, .n_expert = r->n_experts,
                                   .n_used = m.n_expert_used}};
    const uint64_t n = predictor_floats(&p.path);
    float *data = calloc(n, sizeof *data);
    struct rng g;
    rng_seed(&g, 5);
    for (uint64_t i = 0; i < n; i++) data[i] = (float)rng_below(&g, 2000) / 1000.0f - 1.0f;
    predictor_place(&p, data);
    (void)snprintf(learned, 160, "%s/learned.gguf", dir);
    assert_int_equal(predictor_write(&p, "random", learned, &f.err), OK);
    predictor_free(&p);
    trace_free(f.t);
    tessera_close(e);
}

static void test_predictors(void **state)
{
    (void)state;
    static const char *const policies[] = {"lrfu", "lru", "lfu", "plec"};
    struct tessera_options o = options(model("qwen3moe", GEN_Q4_K_M, false), 0);
    struct bits b = reference(&o);
    char record[160], learned[160], which[5][180];
    uint64_t least = 0, home = 0;
    make_side_files(&o, record, learned, b.got);
    assert_memory_equal(b.want, b.got, N * VOCAB * sizeof *b.want);
    (void)snprintf(which[0], sizeof which[0], "gate,always");
    (void)snprintf(which[1], sizeof which[1], "previous,always");
    (void)snprintf(which[2], sizeof which[2], "frequency,always");
    (void)snprintf(which[3], sizeof which[3], "%s,always", learned);
    (void)snprintf(which[4], sizeof which[4], "%s,always", record);
    for (int k = 0; k < 5 * 5; k++) { /* the last of five streams its dense matrices */
        struct err err;
        const int predictor = k / 5, policy = k % 5 < 4 ? k % 5 : predictor % 4;
        o.policy = policies[policy];
        o.predictor = which[predictor]; /* which takes memory, too */
        if (k % 5 == 0) {
            least = smallest(&o);
            home = pooled(&o, 0);
        }
        o.mem_budget = k % 5 == 4 ? least : home + (k % 2 ? 1 : 3) * MIB;
        o.no_uring = k % 7 == 6;
        tessera_engine *e = must_open(&o);
        assert_int_equal(feed(e, k % 5 == 4 ? 3 : 1, b.got, NULL, &err), OK);
        assert_memory_equal(b.want, b.got, N * VOCAB * sizeof *b.want);
        const struct tessera_traffic t = tessera_traffic(e);
        assert_string_equal(t.policy, policies[policy]);
        assert_true(t.useful <= t.guessed && t.late <= t.useful && t.cancelled <= t.guessed);
        assert_true(t.useful_bytes + t.wasted_bytes <= t.guess_bytes &&
                    t.guess_bytes <= t.bytes_read);
        assert_true(t.missed_named <= t.missed && t.named <= t.asked);
        if (e->resid.now.dense_home && predictor == 4 && k % 5 != 4)
            assert_true(t.named == t.asked && t.asked > 0 && t.useful > 0);
        if (e->resid.now.dense_home && predictor == 0) assert_true(t.asked && t.guessed);
        tessera_close(e);
    }
    /* Files of another model, and names that mean nothing. */
    struct tessera_options other = options(model("olmoe", QTYPE_F16, false), UINT64_MAX);
    tessera_engine *e;
    struct err err;
    other.predictor = record;
    assert_int_equal(tessera_open(&other, &e, &err), ERR_SHAPE);
    other.predictor = "no-such-file";
    assert_int_equal(tessera_open(&other, &e, &err), ERR_IO);
    other.predictor = NULL;
    other.policy = "min";
    assert_int_equal(tessera_open(&other, &e, &err), ERR_USAGE);
    bits_free(&b);
}

/* The gate names what the router chooses where what lies between changes nothing: this model's embedding
 * holds every layer's choice, and no layer adds to those columns. */
static void test_gate_names(void **state)
{
    (void)state;
    char path[160];
    struct trace *t;
    struct err err;
    struct rng r;
    err_clear(&err);
    struct gen_spec g = gen_small("qwen3moe", QTYPE_Q8_0);
    assert_int_equal(trace_new(g.n_layer, g.n_expert, g.n_expert_used, 0, &t, &err), OK);
    assert_int_equal(trace_append(t, N, &err), OK);
    rng_seed(&r, 7);
    for (int i = 0; i < N; i++)
        for (int l = 0; l < g.n_layer; l++) {
            uint16_t *x = trace_experts(t, i, l);
            for (int k = 0; k < g.n_expert_used; k++) /* of each third of them one */
                x[k] = (uint16_t)(5 * k + (int)rng_below(&r, 5));
        }
    g.trace = t;
    (void)snprintf(path, sizeof path, "%s/traced.gguf", dir);
    if (gen_write(&g, path, NULL, &err)) fail_msg("%s", err.msg);
    struct tessera_options o = options(path, 0);
    o.predictor = "gate,always";
    o.mem_budget = pooled(&o, 1);
    tessera_engine *e = must_open(&o);
    assert_true(e->resid.now.dense_home && !e->resid.all_ram);
    tessera_session *s = session(e);
    for (int i = 0; i < N; i++) {
        const int32_t id = GEN_TRACE_FIRST + i;
        struct tessera_input in = {s, &id, 1, TESSERA_LOGITS_LAST};
        if (tessera_step(e, &in, 1, &err)) fail_msg("%s", err.msg);
    }
    const struct tessera_traffic now = tessera_traffic(e);
    /* All layers but the first, which has no layer before it to guess from. */
    assert_int_equal(now.asked, N * (g.n_layer - 1) * g.n_expert_used);
    assert_int_equal(now.named, now.asked);
    tessera_session_close(s);
    tessera_close(e);
    trace_free(t);
}

struct seen {
    uint64_t uses, in_ram, layers;
    double waited;
};

static void count_seen(void *arg, const struct obs *o)
{
    struct seen *s = arg;
    s->layers++;
    s->uses += (uint64_t)o->n_used;
    for (int k = 0; k < o->n_used; k++) s->in_ram += o->in_ram[k];
    s->waited += 1e-6 * o->wait_us;
}

/* Records say what was in memory when it was named, and how long the layer waited. */
static void test_observed(void **state)
{
    (void)state;
    struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0, false), 0);
    const uint64_t least = smallest(&o);
    float *out = calloc(N * VOCAB, sizeof *out);
    for (int k = 0; k < 2; k++) {
        struct seen seen = {0};
        struct err err;
        o.mem_budget = k ? UINT64_MAX : least + 5 * MIB;
        const double from = os_seconds();
        tessera_engine *e = must_open(&o);
        const struct tessera_traffic a = tessera_traffic(e);
        tessera_observe(e, count_seen, &seen);
        assert_int_equal(feed(e, 1, out, NULL, &err), OK);
        const struct tessera_traffic b = tessera_traffic(e);
        assert_int_equal(seen.layers, N * 3);
        assert_int_equal(seen.uses, b.hits - a.hits + b.misses - a.misses);
        assert_int_equal(seen.in_ram, b.hits - a.hits);
        assert_true(k == (seen.in_ram == seen.uses));
        /* Embedding rows and pieces are waited for outside of layers' experts. */
        assert_true(seen.waited <= b.waited - a.waited + 1e-9);
        assert_true(k ? seen.waited <= 0 : seen.waited > 0);
        assert_true(b.reading > 0 && b.reading <= os_seconds() - from);
        assert_true(k || b.reading > a.reading);
        tessera_close(e);
    }
    free(out);
}

/* Reading ahead is tried with and without in turns, and judged; the bits stay. */
static void test_trial(void **state)
{
    (void)state;
    struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0, false), 0);
    struct bits b = reference(&o);
    struct err err;
    o.mem_budget = smallest(&o) + 5 * MIB;
    tessera_engine *e = must_open(&o);
    assert_string_equal(tessera_traffic(e).predictor, "gate");
    for (int i = 0; i < 2; i++) {
        assert_int_equal(feed(e, 1, b.got, NULL, &err), OK);
        assert_memory_equal(b.want, b.got, N * VOCAB * sizeof *b.want);
    }
    const struct tessera_traffic t = tessera_traffic(e);
    assert_int_equal(t.trials, 1);
    assert_true(t.seconds_of[0] > 0 && t.seconds_of[1] > 0);
    assert_int_equal(t.ahead, t.trials_won);
    assert_true(t.ahead == (t.seconds_of[1] < 0.99 * t.seconds_of[0]));
    tessera_close(e);
    bits_free(&b);
}

/* ---- more rows than are computed at once ---- */

/* A prompt of N rows in one step, a layer at a time in pieces: the same bits, in memory or not, and each
 * expert is read once at most. */
static void test_layer_by_layer(void **state)
{
    (void)state;
    static const struct { const char *arch; unsigned type; } models[] = {
        {"qwen3moe", GEN_Q4_K_M}, {"olmoe", QTYPE_F16}, {"llama", QTYPE_Q8_0}};
    int in_waves = 0;
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        struct tessera_options o = options(model(models[m].arch, models[m].type, false), 0);
        struct bits b = reference(&o);
        struct err err;
        o.n_ubatch = 16;
        o.n_logits = 16;
        o.n_batch = 128;
        const uint64_t least = smallest(&o);
        static const int more[] = {0, 2, 6, 12, 36}; /* MiB; with 36 olmoe has slots to read into between pieces */
        for (int turn = 0; turn < 12; turn++) {
            const int k = turn % 6;
            o.background = turn >= 6;
            o.mem_budget = k == 5 ? UINT64_MAX : least + (uint64_t)more[k] * MIB;
            tessera_engine *e = must_open(&o);
            tessera_session *s = session(e);
            const struct tessera_model now = tessera_model(e);
            assert_true(now.n_batch >= now.n_ubatch);
            if (k == 5 || !e->resid.now.dense_home) assert_int_equal(now.n_batch, now.n_ubatch);
            if (k == 3 && m < 2 && !place_resident(&e->resid.sizes, &e->resid.now))
                assert_true(now.n_batch > now.n_ubatch);
            const struct tessera_traffic before = tessera_traffic(e);
            /* all but the last 7, then those: with logits of all of them */
            struct tessera_input in = {s, ids, N - 7, TESSERA_LOGITS_LAST};
            if (now.n_batch < N) in.n = now.n_batch < N - 7 ? now.n_batch : N - 7;
            const int n = k == 5 ? N - 7 : in.n;
            in.n = n; /* everything in memory: it may be larger all the same */
            if (tessera_step(e, &in, 1, &err)) fail_msg("%s", err.msg);
            assert_memory_equal(b.want + (size_t)(n - 1) * VOCAB, tessera_logits(e, 0, n - 1),
                                VOCAB * sizeof(float));
            const struct tessera_traffic after = tessera_traffic(e);
            if (n > now.n_ubatch && e->resid.cls[0].n_slots > 24) {
                assert_true(after.misses - before.misses <= 3 * 16);
                if (!o.background) /* nor twice: read ahead, lost and read again */
                    assert_true(after.bytes_read - before.bytes_read <= 49 * e->resid.cls[0].slot_bytes);
                in_waves += !place_resident(&e->resid.sizes, &e->resid.now);
            }
            const int rest = N - n < now.n_ubatch ? N - n : now.n_ubatch;
            in = (struct tessera_input){s, ids + n, rest, TESSERA_LOGITS_ALL};
            if (tessera_step(e, &in, 1, &err)) fail_msg("%s", err.msg);
            for (int i = 0; i < rest; i++)
                assert_memory_equal(b.want + (size_t)(n + i) * VOCAB, tessera_logits(e, 0, i),
                                    VOCAB * sizeof(float));
            in = (struct tessera_input){s, ids, 20, TESSERA_LOGITS_ALL};
            if (tessera_session_n(s) + 20 <= 128)
                assert_int_equal(tessera_step(e, &in, 1, &err), ERR_RANGE);
            assert_true(tessera_memory(e).peak <= tessera_memory(e).budget);
            tessera_session_close(s);
            tessera_close(e);
        }
        bits_free(&b);
    }
    assert_true(in_waves > 0);
}

/* ---- the token path allocates nothing ---- */

static void test_no_allocation(void **state)
{
    (void)state;
    struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0, false), 0);
    o.predictor = "gate,always";
    for (int k = 0; k < 2; k++) {
        struct err err;
        o.mem_budget = k ? pooled(&o, 1) : smallest(&o);
        tessera_engine *e = must_open(&o);
        assert_int_equal(e->resid.now.dense_home, k);
        tessera_session *s = session(e);
        struct tessera_input in = {s, ids, 1, TESSERA_LOGITS_LAST};
        assert_int_equal(tessera_step(e, &in, 1, &err), OK);
        fault_arm(FAULT_ALLOC, 1 << 30);
        for (int i = 0; i < 30; i++) {
            in = (struct tessera_input){s, ids + i, 1, TESSERA_LOGITS_LAST};
            assert_int_equal(tessera_step(e, &in, 1, &err), OK);
        }
        const int calls = (1 << 30) - atomic_load(&fault_left);
        (void)fault_disarm();
        assert_int_equal(calls, 0);
        assert_true(tessera_traffic(e).misses > 0);
        tessera_session_close(s);
        tessera_close(e);
    }
}

/* ---- files that misbehave ---- */

static _Atomic int countdown; /* reads until one fails; < 0: never */
static _Atomic int fail_with; /* errno; 0: the file ends there */
static _Atomic int short_by;  /* reads of at most this many bytes; 0: whole */

static int64_t bad_pread(int fd, void *buf, size_t n, uint64_t offset)
{
    if (atomic_load(&countdown) >= 0 && atomic_fetch_sub(&countdown, 1) == 0) {
        const int e = atomic_load(&fail_with);
        return e ? -e : 0;
    }
    const size_t most = (size_t)atomic_load(&short_by);
    return osfile_system.pread(fd, buf, most && n > most ? most : n, offset);
}

static int buffered_open(const char *path, int how)
{
    return how == OSFILE_DIRECT ? -EINVAL : osfile_system.open(path, how);
}

static int no_open(const char *path, int how)
{
    (void)path;
    (void)how;
    return -EACCES;
}

static struct osfile_ops bad_ops(void)
{
    struct osfile_ops ops = osfile_system;
    ops.pread = bad_pread;
    ops.peek = NULL;
    atomic_store(&countdown, -1);
    atomic_store(&short_by, 0);
    return ops;
}

static void nothing(tessera_engine *e, int at) { (void)e, (void)at; }

/* Steps begin while the weights are still on their way: the same bits, and a read that fails fails
 * the step that needed it and nothing else. */
static void test_background(void **state)
{
    (void)state;
    struct osfile_ops ops = bad_ops();
    struct tessera_options o = options(model("qwen3moe", GEN_Q4_K_M, false), 0);
    struct bits b = reference(&o);
    const uint64_t least = smallest(&o), budget[3] = {o.mem_budget, least, least + 6 * MIB};
    struct err err;
    o.background = true;
    for (int k = 0; k < 9; k++) {
        o.files = k / 3 ? &ops : NULL;
        o.mem_budget = budget[k % 3];
        tessera_engine *e = must_open(&o);
        int failed = 0;
        if (k / 3 < 2) {
            assert_int_equal(feed(e, k ? 30 : 7, b.got, NULL, &err), OK);
            assert_memory_equal(b.want, b.got, N * VOCAB * sizeof *b.want);
        } else {
            const int n = e->opt.n_ubatch < 30 ? e->opt.n_ubatch : 30;
            atomic_store(&fail_with, EIO);
            /* A loader's own read may fail, too, before a step asks for anything: it is read again. */
            for (int tries = 0; tries < 13; tries++) {
                tessera_session *s = session(e);
                struct tessera_input in = {s, ids, n, TESSERA_LOGITS_ALL};
                atomic_store(&countdown, tries < 12 ? 5 * (tries % 6) : -1);
                const enum status st = tessera_step(e, &in, 1, &err);
                assert_true(st == (tries < 12 && st ? ERR_IO : OK));
                assert_int_equal(tessera_session_n(s), st ? 0 : n);
                for (int i = 0; !st && i < n; i++)
                    assert_memory_equal(b.want + (size_t)i * VOCAB, tessera_logits(e, 0, i),
                                        VOCAB * sizeof(float));
                tessera_session_close(s);
                failed += st != OK;
            }
            /* In more than the least the loaders may have brought everything before a step asks. */
            if (k % 3 == 1) assert_true(failed > 2);
        }
        /* A resize in the middle of it, and an end. */
        atomic_store(&countdown, -1);
        if (k / 3 == 1) {
            assert_int_equal(tessera_resize(e, least + 3 * MIB, &err), OK);
            assert_int_equal(feed(e, 30, b.got, nothing, &err), OK);
            assert_memory_equal(b.want, b.got, N * VOCAB * sizeof *b.want);
        }
        tessera_close(e);
    }
    for (int k = 0; k < 3; k++) { /* closed before the first step */
        o.mem_budget = budget[k];
        o.files = NULL;
        tessera_close(must_open(&o));
    }
    bits_free(&b);
}

/* Short reads change nothing; a failing one fails the step and nothing else. */
static void test_bad_reads(void **state)
{
    (void)state;
    struct osfile_ops ops = bad_ops();
    struct tessera_options o = options(model("qwen3moe", GEN_Q4_K_M, false), 0);
    struct bits b = reference(&o);
    const uint64_t least = smallest(&o);
    struct err err;
    o.files = &ops;
    for (int k = 0; k < 6; k++) {
        o.mem_budget = least + (k % 2 ? 6 : 0) * MIB;
        o.predictor = k < 4 ? "none" : "previous,always";
        ops.open = k / 2 == 1 ? buffered_open : osfile_system.open;
        tessera_engine *e = must_open(&o);
        atomic_store(&short_by, 8192);
        assert_int_equal(feed(e, 9, b.got, NULL, &err), OK);
        assert_memory_equal(b.want, b.got, N * VOCAB * sizeof *b.want);
        atomic_store(&short_by, 0);
        tessera_session *s = session(e);
        struct rng r;
        rng_seed(&r, (uint64_t)k + 1);
        int failed = 0;
        for (int at = 0, tries = 0; at < N; tries++) {
            atomic_store(&fail_with, tries % 2 ? EIO : 0);
            atomic_store(&countdown, tries < 40 ? (int)rng_below(&r, k < 5 ? 40 : 10) : -1);
            const int most = k < 4 && e->opt.n_ubatch > 5 ? 5 : 1, n = N - at < most ? N - at : most;
            struct tessera_input in = {s, ids + at, n, TESSERA_LOGITS_ALL};
            const enum status st = tessera_step(e, &in, 1, &err);
            assert_int_equal(tessera_session_n(s), st ? at : at + n);
            if (st) {
                assert_int_equal(st, ERR_IO);
                assert_non_null(strstr(err.msg, ".gguf"));
                failed++;
                continue;
            }
            for (int i = 0; i < n; i++)
                assert_memory_equal(b.want + (size_t)(at + i) * VOCAB, tessera_logits(e, 0, i),
                                    VOCAB * sizeof(float));
            at += n;
        }
        assert_true(failed > 3);
        atomic_store(&countdown, -1);
        tessera_session_close(s);
        tessera_close(e);
    }
    /* While opening: every read once (a direct file's first one only asks whether it can be). */
    ops.open = buffered_open;
    o.mem_budget = least + 4 * MIB;
    atomic_store(&fail_with, EIO);
    int n = 0;
    for (;; n += 1 + n / 8) {
        tessera_engine *e;
        atomic_store(&countdown, n);
        const enum status st = tessera_open(&o, &e, &err);
        if (!st) {
            tessera_close(e);
            break;
        }
        assert_int_equal(st, ERR_IO);
    }
    assert_true(n > 5);
    bits_free(&b);
}

/* A resize that cannot read goes on with less, and another one tries again. */
static void test_bad_resize(void **state)
{
    (void)state;
    struct osfile_ops ops = bad_ops();
    struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0, false), 0);
    struct bits b = reference(&o);
    struct err err;
    int failed = 0;
    o.files = &ops;
    o.mem_budget = smallest(&o) + 8 * MIB;
    tessera_engine *e = must_open(&o);
    const struct placement whole = place_all(&e->resid.sizes);
    const uint64_t all = fit_need(e, &whole) + 8 * MIB, least = (fit_least(e) + MIB - 1) / MIB * MIB;
    atomic_store(&fail_with, EIO);
    for (int n = 0; n < 60; n += 1 + n / 6) {
        const uint64_t to = n % 2 ? all : least + (uint64_t)(n % 5) * 3 * MIB;
        atomic_store(&countdown, n);
        const enum status st = tessera_resize(e, to, &err);
        atomic_store(&countdown, -1);
        failed += st != OK;
        if (st) {
            assert_int_equal(st, ERR_IO);
            assert_non_null(strstr(err.msg, "steps go on with less"));
            assert_false(e->resid.all_ram);
        }
        const struct tessera_memory m = tessera_memory(e);
        assert_true(m.total <= m.budget && m.budget == to);
        atomic_store(&e->ledger.peak, m.total);
        assert_int_equal(feed(e, 32, b.got, NULL, &err), OK);
        assert_memory_equal(b.want, b.got, N * VOCAB * sizeof *b.want);
    }
    assert_true(failed > 2);
    if (tessera_resize(e, all, &err)) fail_msg("%s", err.msg);
    assert_true(e->resid.all_ram);
    assert_int_equal(feed(e, 32, b.got, NULL, &err), OK);
    assert_memory_equal(b.want, b.got, N * VOCAB * sizeof *b.want);
    /* Nothing can be read at all: refused, and said, until it can. */
    ops.open = no_open;
    assert_int_equal(tessera_resize(e, least + 2 * MIB, &err), ERR_IO);
    atomic_store(&e->ledger.peak, tessera_memory(e).total);
    assert_non_null(strstr(err.msg, "until another resize"));
    assert_int_equal(feed(e, 32, b.got, NULL, &err), ERR_IO);
    ops.open = osfile_system.open;
    if (tessera_resize(e, least + 2 * MIB, &err)) fail_msg("%s", err.msg);
    assert_int_equal(feed(e, 32, b.got, NULL, &err), OK);
    assert_memory_equal(b.want, b.got, N * VOCAB * sizeof *b.want);
    tessera_close(e);
    bits_free(&b);
}

/* io_uring refused by the system itself (containers do): plain reads, one line about it, same bits. */
static int without_uring(const struct tessera_options *o, const float *want)
{
#if defined(__linux__) && defined(SYS_io_uring_setup)
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog filter = {sizeof code / sizeof *code, code};
    struct err err;
    tessera_engine *e;
    float *got = calloc(N * VOCAB, sizeof *got);
    if (!got) return 2;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter))
        return 77;
    if (tessera_open(o, &e, &err)) return 3;
    const char *line = tessera_warning(e, 0);
    if (!line || !strstr(line, "io_uring")) return 4;
    const bool same = !feed(e, 9, got, NULL, &err) && !memcmp(want, got, N * VOCAB * sizeof *got);
    tessera_close(e);
    free(got);
    return same ? 0 : 5;
#else
    (void)o;
    (void)want;
    return 77;
#endif
}

static void test_uring_denied(void **state)
{
    (void)state;
    struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0, false), 0);
    struct bits b = reference(&o);
    int status = 0;
    o.mem_budget = smallest(&o) + 2 * MIB;
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (!pid) _exit(without_uring(&o, b.want));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) != 77) assert_int_equal(WEXITSTATUS(status), 0);
    bits_free(&b);
}

/* Cancelled in the middle, the timeline is as it was and the next step runs. */
static void test_cancel(void **state)
{
    (void)state;
    struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0, false), 0);
    struct bits b = reference(&o);
    struct err err;
    o.mem_budget = smallest(&o) + 2 * MIB;
    tessera_engine *e = must_open(&o);
    for (int i = 0; i < 5; i++) {
        tessera_session *s = session(e);
        struct tessera_input in = {s, ids, 20, TESSERA_LOGITS_ALL};
        tessera_cancel(e);
        assert_int_equal(tessera_step(e, &in, 1, &err), ERR_CANCELLED);
        tessera_session_close(s);
    }
    assert_int_equal(feed(e, 20, b.got, NULL, &err), OK);
    assert_memory_equal(b.want, b.got, N * VOCAB * sizeof *b.want);
    tessera_close(e);
    bits_free(&b);
}

/* Written to or cut while it is in use: an error that stays.  Replaced by another: no matter. */
static void test_changed(void **state)
{
    (void)state;
    const char *good = model("qwen3moe", QTYPE_Q8_0, false);
    char copy[160], cmd[800];
    (void)snprintf(copy, sizeof copy, "%s/copy.gguf", dir);
    struct tessera_options o = options(good, 0);
    struct bits b = reference(&o);
    const uint64_t least = smallest(&o);
    for (int how = 0; how < 3; how++) {
        struct err err;
        (void)snprintf(cmd, sizeof cmd, "rm -f %s && cp %s %s", copy, good, copy);
        assert_int_equal(system(cmd), 0);
        o.model_path = copy;
        o.mem_budget = least + 2 * MIB;
        tessera_engine *e = must_open(&o);
        tessera_session *s = session(e);
        struct tessera_input in = {s, ids, 10, TESSERA_LOGITS_LAST};
        assert_int_equal(tessera_step(e, &in, 1, &err), OK);
        (void)usleep(20000); /* a file system's clock is coarse */
        if (how == 0) assert_int_equal(truncate(copy, 100000), 0);
        if (how == 1) {
            FILE *f = fopen(copy, "r+b");
            assert_non_null(f);
            assert_int_equal(fseek(f, 3 << 20, SEEK_SET), 0);
            assert_int_equal(fputc(7, f), 7);
            assert_int_equal(fclose(f), 0);
        }
        if (how == 2) {
            (void)snprintf(cmd, sizeof cmd, "head -c 999 %s > %s.new && mv %s.new %s", good, copy,
                           copy, copy);
            assert_int_equal(system(cmd), 0);
            assert_int_equal(feed(e, 10, b.got, NULL, &err), OK);
            assert_memory_equal(b.want, b.got, N * VOCAB * sizeof *b.want);
        } else {
            in = (struct tessera_input){s, ids + 10, 30, TESSERA_LOGITS_LAST};
            assert_int_equal(tessera_step(e, &in, 1, &err), ERR_IO);
            assert_non_null(strstr(err.msg, "copy.gguf"));
            assert_int_equal(tessera_session_n(s), 10);
            if (how == 1) assert_int_equal(tessera_step(e, &in, 1, &err), ERR_IO);
        }
        tessera_session_close(s);
        tessera_close(e);
    }
    bits_free(&b);
}

static int make_dir(void **state)
{
    (void)state;
    struct rng r;
    rng_seed(&r, 11);
    for (int i = 0; i < N; i++) ids[i] = (int32_t)rng_below(&r, VOCAB);
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
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_same_bits), cmocka_unit_test(test_resize),
        cmocka_unit_test(test_room),      cmocka_unit_test(test_lent),
        cmocka_unit_test(test_predictors), cmocka_unit_test(test_gate_names),
        cmocka_unit_test(test_layer_by_layer), cmocka_unit_test(test_observed),  cmocka_unit_test(test_trial),
        cmocka_unit_test(test_no_allocation),
        cmocka_unit_test(test_bad_reads), cmocka_unit_test(test_bad_resize),
        cmocka_unit_test(test_uring_denied), cmocka_unit_test(test_background),
        cmocka_unit_test(test_cancel),    cmocka_unit_test(test_changed),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
