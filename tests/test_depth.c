/* Recursive and looped models against the independent reference of tests/depth/make.py: logits and
 * every token's depth, in every variant; the same bits in every split, batch and tier, after going
 * back and after saving; KV bytes as derived; steps on empty row sets do not run; changes that must
 * break the bound; files and options that must be refused.  Writes to a folder of its own in /tmp. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "bench/gen.h"
#include "moe/base/rng.h"
#include "moe/compute/elem.h"
#include "moe/run/engine_int.h"
#include "moe/tessera.h"
#include "quant/build/convert.h"
#include "tests/refcase.h"
#include "tests/rewrite.h"
#include "tests/shared.h"

/* A sanitizer looks for bad accesses: there every variant is cut in a few ways only. */
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { N_SPLITS = 200 };
#else
enum { N_SPLITS = 1000 };
#endif

/* ---- variants ---- */

static void model_path(const char *model, char out[160])
{
    (void)snprintf(out, 160, "tests/depth/%s.gguf", strcmp(model, "mor-none") ? model : "mor-expert");
}

static void drop_routers(struct rw *r)
{
    for (int i = r->n - 1; i >= 0; i--)
        if (!strncmp(r->t[i].name, "rec.", 4)) rw_drop(r, &r->t[i]);
}

/* The next recursion's router, of the last one the first's, as each one's auxiliary router. */
static void add_aux(struct rw *r)
{
    for (int i = 1; i <= 3; i++) {
        char from[40], to[40];
        (void)snprintf(from, sizeof from, "rec.%d.router.weight", i % 3 + 1);
        (void)snprintf(to, sizeof to, "rec.%d.aux.weight", i);
        struct rw_tensor *t = rw_add(r, to, 0), *s = rw_find(r, from);
        t->n_dims = s->n_dims;
        memcpy(t->dim, s->dim, sizeof t->dim);
        rw_piece(t, s->piece[0].data, s->piece[0].bytes);
    }
}

/* One option of cases.txt: how the file is opened, or a key of it. */
static void apply(struct variant *v, struct rw *r, const char *option)
{
    char word[40], *value;
    (void)snprintf(word, sizeof word, "%s", option);
    if ((value = strchr(word, '='))) *value++ = 0;
    if (!strcmp(word, "exact")) v->open.depth_exact = true;
    else if (!strcmp(word, "aux")) add_aux(r);
    else if (!strcmp(word, "weighted")) v->open.exit_weighted = true;
    else if (!strcmp(word, "loops")) v->open.loops = atoi(value);
    else if (!strcmp(word, "exit")) v->open.exit_at = strtof(value, NULL);
    else if (!strcmp(word, "skip")) rw_set(r, "skip_loop_final_norm", 'b', 1, NULL);
    else if (!strcmp(word, "alpha")) rw_set(r, "recursion.alpha", 'f', strtod(value, NULL), NULL);
    else if (!strcmp(word, "gated")) rw_set(r, "recursion.gated", 'b', 0, NULL);
    else if (!strcmp(word, "gate_every_step")) rw_set(r, "recursion.gate_every_step", 'b', 1, NULL);
    else {
        char key[64];
        static char texts[CASES][4][32];
        static int n;
        char *text = texts[n / 4 % CASES][n % 4];
        n++;
        (void)snprintf(key, sizeof key, "recursion.%s", word);
        (void)snprintf(text, 32, "%s", value);
        rw_set(r, key, 's', 0, text);
    }
}

static void make_variant(struct variant *v)
{
    struct rw r;
    char from[160], options[80];
    model_path(v->model, from);
    rw_open(&r, from);
    (void)snprintf(options, sizeof options, "%s", v->options);
    for (char *o = strtok(options, " "); o; o = strtok(NULL, " ")) apply(v, &r, o);
    if (!strcmp(v->model, "mor-none")) drop_routers(&r);
    rw_write(&r, v->path);
    rw_close(&r);
}

static int set_up(void **state)
{
    (void)state;
    ref_open("tests/depth", make_variant);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    ref_close();
    return 0;
}

static bool by_row(const struct variant *v)
{
    return strcmp(v->model, "nanbeige") && (strcmp(v->model, "ouro") || v->open.exit_at > 0);
}

/* ---- tests ---- */

static void test_reference(void **state)
{
    (void)state;
    double worst = 0;
    assert_int_equal(n_variants, 51);
    for (int i = 0; i < n_variants; i++) {
        struct run got, want;
        memset(&got, 0, sizeof got);
        want_of(variant[i].name, &want);
        run_all(&variant[i], N_IDS, &got);
        const double d = distance(&got, &want);
        if (!(d <= 1e-4)) fail_msg("%s: %g of the reference's rms", variant[i].name, d);
        if (by_row(&variant[i]) && strcmp(variant[i].model, "mor-none"))
            assert_memory_equal(got.depth, want.depth, N_IDS);
        worst = d > worst ? d : worst;
    }
    print_message("%d variants: worst difference %.2g of the reference's rms\n", n_variants, worst);
}

static void test_splits(void **state)
{
    (void)state;
    const int n = check_splits(1, N_SPLITS / 41 + 1); /* one thread beside two */
    assert_true(n >= N_SPLITS);
    print_message("%d random splits: the same bits\n", n);
}

static void test_rollback(void **state)
{
    (void)state;
    static const char *const names[] = {"e-m-cycle", "t-cycle", "e-m-cycle-shared", "ouro-exit50",
                                        "e-m-cycle-update", "t-seq-shared"};
    struct rng r;
    rng_seed(&r, 8);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) check_rollback(names[i], &r);
}

static void test_batch_and_tiers(void **state)
{
    (void)state;
    static const char *const names[] = {"e-m-cycle", "t-seq", "e-cycle-shared", "ouro-exit75",
                                        "e-m-cycle-update"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        check_batch(names[i]);
        check_tiers(names[i]);
    }
}

static void test_save(void **state)
{
    (void)state;
    static const char *const names[] = {"e-m-cycle", "t-cycle-shared", "ouro-exit50",
                                        "e-cycle-update"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) check_save(names[i]);
}

static void test_spill(void **state)
{
    (void)state;
    static const char *const names[] = {"e-m-cycle", "t-cycle", "ouro-exit50"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) check_spill(names[i], 0);
}

/* What is copied for rows that leave early, in both types of cache: the coarse one stays near the
 * other, and its splits are equal. */
static void test_carry(void **state)
{
    (void)state;
    struct err err;
    struct variant v = {.model = "ouro", .open = tessera_defaults()};
    struct gen_spec g = gen_tiny("ouro", QTYPE_F32);
    struct run fine, coarse, split;
    int deep = 0;
    (void)snprintf(v.path, sizeof v.path, "%s/carry.gguf", dir);
    g.n_expert = g.n_expert_used = 0;
    g.n_repeats = 4;
    g.n_head = g.n_head_kv = 2;
    g.head_dim = 32;
    g.n_vocab = VOCAB;
    g.router_sigma = 0.2f;
    if (gen_write(&g, v.path, NULL, &err)) fail_msg("%s", err.msg);
    v.open.model_path = v.path;
    v.open.exit_at = 0.6f;
    run_all(&v, 17, &fine);
    v.open.kv = TESSERA_KV_Q8_0;
    run_all(&v, N_IDS, &coarse);
    run_all(&v, 1, &split);
    assert_true(same(&split, &coarse));
    for (int i = 0; i < N_IDS; i++) deep += coarse.depth[i] > 1;
    assert_in_range(deep, 5, 95); /* some leave, some do not */
    /* Where a rounding has turned nobody's depth they are near to each other. */
    int n = 0;
    for (; n < N_IDS && fine.depth[n] == coarse.depth[n]; n++) {}
    assert_true(n > 60);
    double sum = 0, max = 0;
    for (int i = 0; i < n * VOCAB; i++) {
        const double w = (double)fine.logits[i], d = fabs((double)coarse.logits[i] - w);
        sum += w * w;
        max = d > max ? d : max;
    }
    if (!(max < 0.1 * sqrt(sum / (n * VOCAB))))
        fail_msg("%g of rms %g after %d", max, sqrt(sum / (n * VOCAB)), n);
    (void)unlink(v.path);
}

/* ---- memory and work ---- */

/* Per step: the two private layers have every token, the two of each recursion those that are in it.
 * Shared: four layers in all; with updates every layer of every recursion, all tokens. */
static void test_kv_bytes(void **state)
{
    (void)state;
    static const struct { const char *name; int whole; } cases[] = {
        {"e-m-cycle", 2}, {"e-m-cycle-shared", 4}, {"e-m-cycle-update", 8}, {"e-m-seq-shared", 4},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        const struct variant *v = find(cases[c].name);
        struct run got;
        memset(&got, 0, sizeof got);
        tessera_engine *e = must_open(&v->open);
        tessera_session *s = session(e);
        feed(e, s, N_IDS, N_IDS, NULL, &got);
        uint64_t want = round_page(kv_of(cases[c].whole, N_IDS, 2));
        for (int r = 1; r <= 3 && !c; r++) {
            int n = 0;
            for (int i = 0; i < N_IDS; i++) n += got.depth[i] >= r;
            want += round_page(kv_of(2, n, 2));
        }
        assert_int_equal(tessera_memory(e).kv, want);
        tessera_session_close(s);
        tessera_close(e);
    }
}

/* Runs of all steps on products of layers, from the profile. */
static uint64_t product_bytes(tessera_engine *e)
{
    struct tessera_step_kind k;
    uint64_t n = 0;
    for (int i = 0; tessera_profile_at(e, i, &k); i++)
        if (!strcmp(k.step, "matmul") && strcmp(k.name, "output") && strcmp(k.name, "router") &&
            strcmp(k.name, "exit_gate"))
            n += k.bytes;
    return n;
}

/* Decoding reads a block's weights once for each recursion, or loop, that the token is in, and not
 * once more: what the profile has measured, step by step, and what the counters say. */
static void test_work(void **state)
{
    (void)state;
    static const struct { const char *name; int ends, block; } cases[] = {
        {"e-m-cycle", 2, 2}, {"t-cycle", 0, 4}, {"ouro-exit50", 0, 2},
    };
    const uint64_t layer = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 48);
    for (int c = 0; c < 3; c++) {
        const struct variant *v = find(cases[c].name);
        struct run got;
        struct err err;
        memset(&got, 0, sizeof got);
        tessera_engine *e = must_open(&v->open);
        tessera_session *s = session(e);
        if (tessera_profile(e, true, &err)) fail_msg("%s", err.msg);
        feed(e, s, N_IDS, 1, NULL, &got);
        uint64_t deep = 0;
        for (int i = 0; i < N_IDS; i++) deep += got.depth[i];
        assert_int_equal(product_bytes(e), layer * ((uint64_t)cases[c].ends * N_IDS +
                                                    (uint64_t)cases[c].block * deep));
        const struct tessera_depth d = tessera_depth(e);
        assert_int_equal(d.rows, N_IDS);
        uint64_t rows = 0, sum = 0;
        for (int i = 0; i <= d.n_max; i++) {
            rows += d.rows_at[i];
            sum += (uint64_t)i * d.rows_at[i];
        }
        assert_int_equal(rows, N_IDS);
        assert_int_equal(sum, deep);
        const uint64_t not_run = (uint64_t)d.n_max * N_IDS - deep;
        assert_int_equal(d.macs_saved / (layer / 2), not_run * (uint64_t)cases[c].block);
        assert_true(d.bytes_saved >= not_run * (uint64_t)cases[c].block * layer);
        tessera_session_close(s);
        tessera_close(e);
    }
}

static void put_file(const char *folder, const char *name, const void *data, size_t n)
{
    char path[192];
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* ---- what must fail ---- */

static void test_mutations(void **state)
{
    (void)state;
    /* Each variant's reference is another's mutation. */
    static const char *const pairs[][2] = {
        {"e-m-cycle", "e-m-cycle-shared"}, {"e-m-cycle", "e-m-seq"}, {"e-m-cycle", "e-ungated"},
        {"e-m-cycle", "e-tanh"}, {"e-tanh", "e-identity"}, {"e-m-cycle", "e-aux"}, {"e-cycle", "e-cycle-shared"},
        {"t-m-cycle", "t-m-cycle-shared"}, {"t-m-cycle", "t-every"}, {"t-cycle", "t-seq"},
        {"ouro", "ouro-loops3"}, {"ouro", "ouro-weighted"}, {"ouro-exit50", "ouro-exit75"},
        {"nanbeige", "nanbeige-skip"}, {"n-cycle", "n-cycle-shared"},
        {"e-m-cycle-exact", "e-m-cycle-shared-exact"}, {"e-m-cycle", "e-m-cycle-update"},
        {"e-m-cycle-shared", "e-m-cycle-update"}, {"e-m-seq", "e-m-seq-shared"}, {"t-seq", "t-seq-shared"},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) check_differs(pairs[i][1], pairs[i][0]);
}

/* At a threshold of 1 nothing leaves: the plain loop, bit for bit; so do the last of n loops. */
static void test_exit_at_one(void **state)
{
    (void)state;
    struct variant v = *find("ouro");
    struct run plain, one;
    memset(&plain, 0, sizeof plain);
    memset(&one, 0, sizeof one);
    run_all(&v, N_IDS, &plain);
    v.open.exit_at = 1;
    run_all(&v, N_IDS, &one);
    assert_true(same(&plain, &one));
    v.open.exit_at = 0.99999994f; /* the row sets, and hardly anybody leaves */
    memset(&one, 0, sizeof one);
    run_all(&v, N_IDS, &one);
    assert_memory_equal(plain.logits, one.logits, sizeof one.logits);
}

static void test_bad_files(void **state)
{
    (void)state;
    static const struct bad bad[] = {
        {"mor-expert", "recursion.capacity", 'a', 0, "1 0.5", "one for each recursion"},
        {"mor-expert", "recursion.threshold", 'a', 0, "0.5 0.5 0.5 0.5", "one for each recursion"},
        {"mor-expert", "recursion.capacity", 'a', 0, "1 0.5 1.5", "for recursion 3"},
        {"mor-expert", "recursion.capacity", 'u', 1, NULL, "no list of f32"},
        {"mor-expert", "recursion.count", 'u', 0, NULL, "recursion.count"},
        {"mor-expert", "recursion.count", 'u', 99, NULL, "recursion.count"},
        {"mor-expert", "recursion.count", 'u', 4, NULL, "rec.4.router.weight"},
        {"mor-expert", "recursion.count", 'u', 2, NULL, "rec.3.router.weight"},
        {"mor-expert", "recursion.block_count", 'u', 3, NULL, "block_count"},
        {"mor-expert", "recursion.block_first", 'u', 0, NULL, "block_first"},
        {"mor-expert", "recursion.sharing", 's', 0, "spiral", "spiral"},
        {"mor-expert", "recursion.router", 's', 0, "committee", "committee"},
        {"mor-expert", "recursion.router", 's', 0, "token", "rec.router.weight"},
        {"mor-expert", "recursion.router_func", 's', 0, "softmax", "softmax"},
        {"mor-token", "recursion.kv", 's', 0, "shared_update", "for expert choice"},
        {"mor-expert", "recursion.alpha", 'f', -1, NULL, "positive"},
        {"mor-token", "recursion.gated", 'b', 0, NULL, "token router"},
        {"mor-token", "recursion.count", 'u', 3, NULL, "rec.router.weight"},
        {"ouro", "num_loops", 'u', 0, NULL, "num_loops"},
        {"ouro", "early_exit_threshold", 'f', 0, NULL, "not positive"},
        {"ouro", "skip_loop_final_norm", 'b', 1, NULL, "skip_loop_final_norm"},
        {"nanbeige", "num_loops", 'u', 1000, NULL, "num_loops"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct rw r;
        char from[160];
        model_path(bad[i].model, from);
        rw_open(&r, from);
        rw_set(&r, bad[i].key, bad[i].type, bad[i].number, bad[i].text);
        must_refuse(&r, tessera_defaults(), bad[i].key, bad[i].want);
    }
}

static void test_quantised_routers(void **state)
{
    (void)state;
    static const char *const cases[][2] = {{"mor-expert", "rec.2.router.weight"},
                                           {"ouro", "exit_gate.weight"}};
    for (int i = 0; i < 2; i++) {
        struct rw r;
        char from[160];
        struct tessera_options o = tessera_defaults();
        model_path(cases[i][0], from);
        rw_open(&r, from);
        o.exit_at = i ? 0.5f : 0;
        must_refuse_rounded(&r, o, cases[i][1]);
    }
}

/* A saved session whose timelines do not make sense is not taken, and the session goes on. */
static void test_bad_saves(void **state)
{
    (void)state;
    static const char *const from[] = {"tessera.line.2", "kv.1", "depth"};
    const struct variant *v = find("e-m-cycle");
    struct run want, got;
    struct err err;
    char path[128];
    (void)snprintf(path, sizeof path, "%s/saved.kv", dir);
    memset(&want, 0, sizeof want);
    tessera_engine *e = must_open(&v->open);
    tessera_session *s = session(e);
    feed(e, s, 80, 80, NULL, &want);
    for (int i = 0; i < 3; i++) {
        size_t n = 0;
        if (tessera_session_save(s, path, &err)) fail_msg("%s", err.msg);
        char *text = shared_slurp(path, &n), *at = NULL;
        for (size_t k = 0; k + strlen(from[i]) < n && !at; k++) /* its name, behind its length */
            if (!memcmp(text + k, from[i], strlen(from[i])) && text[k - 8] == (char)strlen(from[i]))
                at = text + k;
        assert_non_null(at);
        at[0] = 'x';
        put_file(dir, "saved.kv", text, n);
        free(text);
        assert_int_not_equal(tessera_session_load(s, path, &err), OK);
        if (tessera_session_rollback(s, (struct tessera_mark){0}, &err)) fail_msg("%s", err.msg);
        memset(&got, 0, sizeof got);
        feed(e, s, 80, 33, NULL, &got);
        assert_true(same(&want, &got));
    }
    tessera_session_close(s);
    tessera_close(e);
    (void)unlink(path);
}

static void test_bad_options(void **state)
{
    (void)state;
    static const struct { const char *name, *want; int loops; float exit; bool weighted, exact; } bad[] = {
        {"ouro", "1 to 4 loops", 5, 0, false, false}, {"e-m-cycle", "no loops", 2, 0, false, false},
        {"nanbeige", "no exit gate", 0, 0.5f, false, false}, {"ouro", "above 0", 0, 1.5f, false, false},
        {"ouro", "weighted", 0, 0.5f, true, false}, {"t-cycle", "capacity", 0, 0, false, true},
        {"ouro", "capacity", 0, 0, false, true},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct tessera_options o = find(bad[i].name)->open;
        struct err e;
        tessera_engine *engine;
        o.loops = bad[i].loops;
        o.exit_at = bad[i].exit;
        o.exit_weighted = bad[i].weighted;
        o.depth_exact = bad[i].exact;
        assert_int_equal(tessera_open(&o, &engine, &e), ERR_USAGE);
        if (!strstr(e.msg, bad[i].want)) fail_msg("case %zu: \"%s\"", i, e.msg);
    }
    const struct variant *v = find("e-m-cycle-exact"); /* a text in two steps */
    tessera_engine *e = must_open(&v->open);
    tessera_session *s = session(e);
    struct err err;
    struct tessera_input in = {s, ids, 8, TESSERA_LOGITS_NONE};
    assert_int_equal(tessera_step(e, &in, 1, &err), OK);
    assert_int_equal(tessera_step(e, &in, 1, &err), ERR_USAGE);
    assert_non_null(strstr(err.msg, "one step"));
    tessera_session_close(s);
    tessera_close(e);
}

/* ---- checkpoints ---- */

enum { ST_MAX = 256 };

/* A safetensors file being made: names, shapes and bytes, matrices as F16, vectors as F32. */
struct checkpoint {
    char folder[96];
    int n;
    struct { char name[96]; const struct rw_tensor *t; char *own; } at[ST_MAX];
};

static void add(struct checkpoint *c, const char *name, const struct rw_tensor *t)
{
    assert_true(c->n < ST_MAX);
    (void)snprintf(c->at[c->n].name, sizeof c->at[0].name, "%s", name);
    c->at[c->n].own = malloc(t->piece[0].bytes);
    assert_non_null(c->at[c->n].own);
    memcpy(c->at[c->n].own, t->piece[0].data, t->piece[0].bytes);
    c->at[c->n++].t = t;
}

static void write_checkpoint(const struct checkpoint *c, const char *config)
{
    static char head[1 << 16];
    size_t n = 8, at = 0;
    n += (size_t)snprintf(head + n, sizeof head - n, "{");
    for (int i = 0; i < c->n; i++) {
        const struct rw_tensor *t = c->at[i].t;
        const size_t bytes = t->piece[0].bytes;
        n += (size_t)snprintf(head + n, sizeof head - n, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[",
                              i ? "," : "", c->at[i].name, t->type ? "F16" : "F32");
        for (int d = t->n_dims - 1; d >= 0; d--)
            n += (size_t)snprintf(head + n, sizeof head - n, "%llu%s", (unsigned long long)t->dim[d],
                                  d ? "," : "");
        n += (size_t)snprintf(head + n, sizeof head - n, "],\"data_offsets\":[%zu,%zu]}", at,
                              at + bytes);
        at += bytes;
        assert_true(n < sizeof head);
    }
    n += (size_t)snprintf(head + n, sizeof head - n, "}");
    for (int i = 0; i < 8; i++) head[i] = (char)((n - 8) >> (8 * i) & 0xff);
    char *all = malloc(n + at);
    assert_non_null(all);
    memcpy(all, head, n);
    for (int i = 0; i < c->n; i++) {
        memcpy(all + n, c->at[i].own, c->at[i].t->piece[0].bytes);
        n += c->at[i].t->piece[0].bytes;
    }
    put_file(c->folder, "model.safetensors", all, n);
    free(all);
    put_file(c->folder, "config.json", config, strlen(config));
}

/* A byte-level vocabulary of the 40 characters from ! on, without a merge. */
static void write_vocab(const struct checkpoint *c)
{
    char text[2048];
    size_t n = (size_t)snprintf(text, sizeof text, "{\"model\":{\"type\":\"BPE\",\"merges\":[],"
                                "\"vocab\":{");
    for (int i = 0; i < VOCAB; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s\"%s%c\":%d", i ? "," : "",
                              33 + i == '"' || 33 + i == '\\' ? "\\" : "", 33 + i, i);
    n += (size_t)snprintf(text + n, sizeof text - n, "}},\"added_tokens\":[]}");
    put_file(c->folder, "tokenizer.json", text, n);
}

/* Rows of each head: neighbours become halves. */
static void halves(char *rows, size_t row_bytes, int n_rows)
{
    char *old = malloc(row_bytes * 16);
    assert_non_null(old);
    for (int h = 0; h < n_rows / 16; h++) {
        char *head = rows + (size_t)h * 16 * row_bytes;
        memcpy(old, head, row_bytes * 16);
        for (size_t i = 0; i < 16; i++)
            memcpy(head + (i / 2 + i % 2 * 8) * row_bytes, old + i * row_bytes, row_bytes);
    }
    free(old);
}

static const struct { const char *to, *from; } hf_names[] = {
    {"attn_norm", "input_layernorm"}, {"ffn_norm", "post_attention_layernorm"},
    {"attn_q", "self_attn.q_proj"}, {"attn_k", "self_attn.k_proj"}, {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"}, {"ffn_gate", "mlp.gate_proj"}, {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"}, {"post_attention_norm", "input_layernorm_2"},
    {"post_ffw_norm", "post_attention_layernorm_2"},
};

/* The tensors of a layer under a prefix. */
static void add_layer(struct checkpoint *c, const struct rw *r, int layer, const char *prefix,
                      bool turn)
{
    for (size_t i = 0; i < sizeof hf_names / sizeof *hf_names; i++) {
        char name[96];
        (void)snprintf(name, sizeof name, "blk.%d.%s.weight", layer, hf_names[i].to);
        const struct rw_tensor *t = rw_find(r, name);
        if (!t) continue;
        (void)snprintf(name, sizeof name, "%s.%s.weight", prefix, hf_names[i].from);
        add(c, name, t);
        if (turn && (i == 2 || i == 3))
            halves(c->at[c->n - 1].own, t->piece[0].bytes / t->dim[1], (int)t->dim[1]);
    }
}

static void add_ends(struct checkpoint *c, const struct rw *r)
{
    add(c, "model.embed_tokens.weight", rw_find(r, "token_embd.weight"));
    add(c, "model.norm.weight", rw_find(r, "output_norm.weight"));
    add(c, "lm_head.weight", rw_find(r, "output.weight"));
}

#define CONFIG(class, layers, more)                                                             \
    "{\"architectures\":[\"" class "\"],\"num_hidden_layers\":" layers ",\"hidden_size\":64,"   \
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":16,\"vocab_size\":40,"      \
    "\"intermediate_size\":48,\"max_position_embeddings\":256,\"rms_norm_eps\":1e-5,"            \
    "\"rope_theta\":5000.0,\"hidden_act\":\"silu\"," more "}"
#define MOR(n, more) "\"recursive\":{\"enable\":true,\"num_recursion\":" n                       \
    ",\"sharing\":\"middle_cycle\"},\"kv_sharing\":{\"enable\":false}" more
#define EXPERT ",\"mor\":{\"enable\":true,\"type\":\"expert\",\"router_type\":\"linear\","         \
    "\"temp\":1.0,\"capacity\":\"1.0,0.6666667,0.33333334\",\"expert\":{\"router_func\":\"sigmoid\","  \
    "\"alpha\":0.1,\"gating\":\"weighted\"}}"

static void open_checkpoint(struct checkpoint *c, struct rw *r, const char *model)
{
    char path[160];
    memset(c, 0, sizeof *c);
    (void)snprintf(c->folder, sizeof c->folder, "%s/hf", dir);
    (void)mkdir(c->folder, 0700);
    model_path(model, path);
    rw_open(r, path);
    add_ends(c, r);
    write_vocab(c);
}

static void close_checkpoint(struct checkpoint *c, struct rw *r)
{
    static const char *const files[] = {"model.safetensors", "config.json", "tokenizer.json"};
    char path[192];
    for (int i = 0; i < 3; i++) {
        (void)snprintf(path, sizeof path, "%s/%s", c->folder, files[i]);
        (void)unlink(path);
    }
    (void)rmdir(c->folder);
    for (int i = 0; i < c->n; i++) free(c->at[i].own);
    rw_close(r);
}

static enum status convert_to(const struct checkpoint *c, const char *out, struct err *e)
{
    struct convert v;
    struct pool *pool;
    err_clear(e);
    assert_int_equal(pool_open(2, &pool, NULL), OK);
    enum status s = convert_open(&v, &(struct convert_options){
        .dir = c->folder, .type = CONVERT_F16, .pre = "qwen2"}, e);
    if (!s) s = convert_write(&v, out, pool, NULL, NULL, e);
    convert_close(&v);
    pool_close(pool);
    return s;
}

/* What comes out says the same as the file that the checkpoint was made from, bit for bit. */
static void check_converted(const struct checkpoint *c, const char *name)
{
    struct variant v = *find(name);
    struct run want, got;
    struct err e;
    char out[160];
    memset(&want, 0, sizeof want);
    memset(&got, 0, sizeof got);
    run_all(&v, N_IDS, &want);
    (void)snprintf(out, sizeof out, "%s/out.gguf", dir);
    if (convert_to(c, out, &e)) fail_msg("%s: %s", name, e.msg);
    v.open.model_path = out;
    run_all(&v, N_IDS, &got);
    assert_true(same(&want, &got));
    (void)unlink(out);
}

static void check_refused(const struct checkpoint *c, const char *want)
{
    struct err e;
    char out[160];
    (void)snprintf(out, sizeof out, "%s/out.gguf", dir);
    if (!convert_to(c, out, &e)) fail_msg("taken, but not: %s", want);
    if (!strstr(e.msg, want)) fail_msg("\"%s\" does not say \"%s\"", e.msg, want);
}

static void test_convert_loops(void **state)
{
    (void)state;
    struct checkpoint c;
    struct rw r;
    for (int ouro = 0; ouro < 2; ouro++) {
        open_checkpoint(&c, &r, ouro ? "ouro" : "nanbeige");
        for (int l = 0; l < 2; l++)
            add_layer(&c, &r, l, l ? "model.layers.1" : "model.layers.0", !ouro);
        if (ouro) {
            add(&c, "model.early_exit_gate.weight", rw_find(&r, "exit_gate.weight"));
            add(&c, "model.early_exit_gate.bias", rw_find(&r, "exit_gate.bias"));
        }
        write_checkpoint(&c, ouro ? CONFIG("OuroForCausalLM", "2",
                                           "\"total_ut_steps\":4,\"early_exit_threshold\":1.0")
                                  : CONFIG("NanbeigeForCausalLM", "2", "\"num_loops\":3"));
        check_converted(&c, ouro ? "ouro" : "nanbeige");
        if (ouro) check_converted(&c, "ouro-exit50");
        close_checkpoint(&c, &r);
    }
}

/* As the released code stores it: every tied copy, in wrappers behind the first layer. */
static void test_convert_recursions(void **state)
{
    (void)state;
    struct checkpoint c;
    struct rw r;
    char name[96];
    open_checkpoint(&c, &r, "mor-expert");
    add_layer(&c, &r, 0, "model.layers.0", false);
    for (int i = 1; i <= 3; i++) {
        char from[64];
        for (int j = 0; j < 2; j++) {
            (void)snprintf(name, sizeof name, "model.layers.%d.block.%d", i, j);
            add_layer(&c, &r, 1 + j, name, false);
        }
        (void)snprintf(from, sizeof from, "rec.%d.router.weight", i);
        (void)snprintf(name, sizeof name, "model.layers.%d.mor_router.router.weight", i);
        add(&c, name, rw_find(&r, from));
    }
    add_layer(&c, &r, 3, "model.layers.4", false);
    const char *good = CONFIG("MoRLlamaForCausalLM", "8", MOR("3", EXPERT));
    write_checkpoint(&c, good);
    check_converted(&c, "e-m-cycle");
    check_converted(&c, "e-m-cycle-exact");
    write_checkpoint(&c, CONFIG("MoRLlamaForCausalLM", "9", MOR("3", EXPERT)));
    check_refused(&c, "cannot be cut into 3 recursions");
    write_checkpoint(&c, CONFIG("MoRLlamaForCausalLM", "8", MOR("2", EXPERT)));
    check_refused(&c, "\"capacity\" has 3 values for 2 recursions");
    write_checkpoint(&c, CONFIG("MoRLlamaForCausalLM", "8", "\"x\":1"));
    check_refused(&c, "\"recursive\" is missing");
    for (int i = 0; i < c.n; i++)
        if (!strcmp(c.at[i].name, "model.layers.3.block.1.mlp.up_proj.weight")) c.at[i].own[77] ^= 1;
    write_checkpoint(&c, good);
    check_refused(&c, "should be one and the same");
    close_checkpoint(&c, &r);
    /* Without routers the copies are plain layers. */
    open_checkpoint(&c, &r, "mor-none");
    for (int l = 0; l < 8; l++) {
        (void)snprintf(name, sizeof name, "model.layers.%d", l);
        add_layer(&c, &r, l == 0 ? 0 : l == 7 ? 3 : 1 + (l - 1) % 2, name, false);
    }
    write_checkpoint(&c, CONFIG("MoRLlamaForCausalLM", "8", MOR("3", "")));
    check_converted(&c, "n-m-cycle");
    close_checkpoint(&c, &r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference), cmocka_unit_test(test_splits),
        cmocka_unit_test(test_rollback), cmocka_unit_test(test_batch_and_tiers),
        cmocka_unit_test(test_save), cmocka_unit_test(test_spill),
        cmocka_unit_test(test_carry), cmocka_unit_test(test_kv_bytes),
        cmocka_unit_test(test_work), cmocka_unit_test(test_mutations),
        cmocka_unit_test(test_exit_at_one), cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_quantised_routers), cmocka_unit_test(test_bad_saves),
        cmocka_unit_test(test_bad_options), cmocka_unit_test(test_convert_loops),
        cmocka_unit_test(test_convert_recursions),
    };
    return cmocka_run_group_tests_name("depth", tests, set_up, tear_down);
}
