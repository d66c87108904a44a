/* Models whose middle sees concepts instead of tokens against the independent reference of
 * tests/concept/make.py: logits, every boundary and its chance, in every variant; the same bits in every
 * split, batch and tier, after going back, spilling and saving; KV bytes as derived; the concept network's
 * weights are not read where no token begins a concept; changes that must break the bound; files that
 * must be refused.  Writes to a folder of its own in /tmp. */
#include "bench/gen.h"
#include "moe/compute/elem.h"
#include "moe/run/engine_int.h"
#include "routing/chunk.h"
#include "tests/refcase.h"
#include "tests/rewrite.h"

enum { N_SPLITS = 1000 };

static void drop_joint(struct rw *r)
{
    for (int i = r->n - 1; i >= 0; i--)
        if (strstr(r->t[i].name, "_concept.weight")) rw_drop(r, &r->t[i]);
    rw_set(r, "concept.joint_decoding", 'b', 0, NULL);
}

static void open_model(struct rw *r, const char *model)
{
    char from[96];
    (void)snprintf(from, sizeof from, "tests/concept/%.60s.gguf", model);
    rw_open(r, from);
}

/* One option of cases.txt: a key, mostly. */
static void apply(struct rw *r, const char *option)
{
    static char texts[CASES][16];
    static int n_texts;
    char word[40], key[64], *value;
    int first, count, times;
    (void)snprintf(word, sizeof word, "%s", option);
    if ((value = strchr(word, '='))) *value++ = 0;
    (void)snprintf(key, sizeof key, "concept.%s", word);
    if (!strcmp(word, "plain")) drop_joint(r);
    else if (!strcmp(word, "threshold")) rw_set(r, key, 'f', strtod(value, NULL), NULL);
    else if (!strcmp(word, "loop")) {
        assert_int_equal(sscanf(value, "%d,%d,%d", &first, &count, &times), 3);
        rw_set(r, "concept.loop.first", 'u', first, NULL);
        rw_set(r, "concept.loop.count", 'u', count, NULL);
        rw_set(r, "concept.loop.times", 'u', times, NULL);
    } else {
        char *text = texts[n_texts++ % CASES];
        (void)snprintf(text, sizeof texts[0], "%s", value);
        rw_set(r, key, 's', 0, text);
    }
}

static void make_variant(struct variant *v)
{
    struct rw r;
    char options[80];
    open_model(&r, v->model);
    (void)snprintf(options, sizeof options, "%s", v->options);
    for (char *o = strtok(options, " "); o; o = strtok(NULL, " ")) apply(&r, o);
    rw_write(&r, v->path);
    rw_close(&r);
}

static int set_up(void **state)
{
    (void)state;
    ref_open("tests/concept", make_variant);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    ref_close();
    return 0;
}

/* ---- numbers ---- */

static void test_reference(void **state)
{
    (void)state;
    double worst = 0, worst_chance = 0;
    assert_int_equal(n_variants, 17);
    for (int i = 0; i < n_variants; i++) {
        struct run got, want;
        size_t n = 0;
        memset(&got, 0, sizeof got);
        want_of(variant[i].name, &want);
        tessera_engine *e = must_open(&variant[i].open);
        tessera_session *s = session(e);
        feed(e, s, N_IDS, N_IDS, NULL, &got);
        const double d = distance(&got, &want);
        if (!(d <= 1e-4)) fail_msg("%s: %g of the reference's rms", variant[i].name, d);
        assert_memory_equal(got.depth, want.depth, N_IDS);
        char *p = ref_slurp(variant[i].name, ".chance.f32", &n);
        assert_int_equal(n, sizeof(float) * N_IDS);
        const float *chance = tessera_session_chances(s);
        for (int t = 0; t < N_IDS; t++) {
            float c;
            memcpy(&c, p + sizeof c * (size_t)t, sizeof c);
            const double off = fabs((double)c - (double)chance[t]);
            if (!(off < 1e-4)) fail_msg("%s: a chance is off by %g", variant[i].name, off);
            worst_chance = fmax(worst_chance, off);
        }
        free(p);
        worst = d > worst ? d : worst;
        tessera_session_close(s);
        tessera_close(e);
    }
    print_message("%d variants: worst difference %.2g of the reference's rms, of a chance %.2g\n",
                  n_variants, worst, worst_chance);
}

static void test_splits(void **state)
{
    (void)state;
    const int n = check_splits(2, N_SPLITS / 17 + 1);
    assert_true(n >= N_SPLITS);
    print_message("%d random splits: the same bits\n", n);
}

static void test_rollback(void **state)
{
    (void)state;
    static const char *const names[] = {"c-last", "p-sum", "wide-sum", "loop", "hnet"};
    struct rng r;
    rng_seed(&r, 8);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) check_rollback(names[i], &r);
}

static void test_batch_and_tiers(void **state)
{
    (void)state;
    static const char *const names[] = {"c-sum", "p-last", "wide-last", "seldom", "hnet"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        check_batch(names[i]);
        check_tiers(names[i]);
    }
}

static void test_save(void **state)
{
    (void)state;
    static const char *const names[] = {"c-sum", "wide-last", "hnet"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) check_save(names[i]);
}

static void test_spill(void **state)
{
    (void)state;
    static const char *const names[] = {"c-sum", "loop", "hnet"};
    const uint64_t kept = (uint64_t)sysconf(_SC_PAGESIZE); /* what is held of the concept so far */
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) check_spill(names[i], kept);
}

/* Three projections of zeros are no joint decoding. */
static void test_zero_joint(void **state)
{
    (void)state;
    static char zeros[64 * 64 * 2];
    struct run plain, zero;
    struct variant v = *find("c-last");
    struct rw r;
    memset(&plain, 0, sizeof plain);
    memset(&zero, 0, sizeof zero);
    run_all(find("c-last-plain"), N_IDS, &plain);
    open_model(&r, "concept");
    for (int i = 0; i < r.n; i++)
        if (strstr(r.t[i].name, "_concept.weight")) r.t[i].piece[0].data = zeros;
    (void)snprintf(v.path, sizeof v.path, "%s/zero.gguf", dir);
    rw_write(&r, v.path);
    rw_close(&r);
    v.open.model_path = v.path;
    run_all(&v, N_IDS, &zero);
    assert_true(same(&plain, &zero));
    (void)unlink(v.path);
}

/* The first factor of H-Net's smoothing is 0.9999, ConceptMoE's is 1. */
static void test_first_factor(void **state)
{
    (void)state;
    const float c[2] = {3, -2};
    float y[2] = {0}, z[2] = {0};
    chunk_smooth(2, 1, 1e-4f, c, y);
    chunk_smooth(2, 1, 0, c, z);
    assert_true(fabsf(y[0] / c[0] - 0.9999f) < 1e-7f && z[0] >= 3 && z[0] <= 3);
    /* The dot product against double, at lengths that fill no sixteen lanes. */
    struct rng r;
    rng_seed(&r, 5);
    for (int n = 1; n < 80; n++) {
        float a[80], b[80];
        double dot = 0;
        for (int i = 0; i < n; i++) {
            a[i] = (float)rng_below(&r, 2001) / 1000.0f - 1;
            b[i] = (float)rng_below(&r, 2001) / 1000.0f - 1;
            a[i] /= (float)n;
            dot += (double)a[i] * (double)b[i];
        }
        assert_true(fabs((1 - dot) / 2 - (double)chunk_chance(n, a, b)) < 1e-6);
    }
}

/* ---- memory and work ---- */

/* (L_E + L_D) S + L_C S/R rows of K and V, in whole pages; loops leave theirs on every pass. */
static void test_kv_bytes(void **state)
{
    (void)state;
    static const struct { const char *name; int tokens, network, heads; } cases[] = {
        {"c-last", 4, 3, 2}, {"often", 4, 3, 2}, {"seldom", 4, 3, 2}, {"wide-sum", 2, 2, 3},
        {"loop", 4, 1 + 2 * 3, 2},
    };
    for (int i = 0; i < 5; i++) {
        const struct variant *v = find(cases[i].name);
        struct run got;
        int n = 0;
        memset(&got, 0, sizeof got);
        tessera_engine *e = must_open(&v->open);
        tessera_session *s = session(e);
        feed(e, s, N_IDS, 23, NULL, &got);
        for (int t = 0; t < N_IDS; t++) n += got.depth[t];
        assert_int_equal(session_committed(s), round_page(kv_of(cases[i].tokens, N_IDS, 2)) +
                                               round_page(kv_of(cases[i].network, n, cases[i].heads)));
        tessera_session_close(s);
        tessera_close(e);
    }
}

static uint64_t bytes_of(tessera_engine *e, const char *step, const char *name)
{
    struct tessera_step_kind k;
    uint64_t n = 0;
    for (int i = 0; tessera_profile_at(e, i, &k); i++)
        if (!strcmp(k.step, step) && !strcmp(k.name, name)) n += k.bytes;
    return n;
}

/* Decoding reads the concept network once for each boundary, and not once more: what the profile has
 * measured, step by step, and what the counters say. */
static void test_work(void **state)
{
    (void)state;
    const struct variant *v = find("c-last");
    struct run got;
    struct err err;
    memset(&got, 0, sizeof got);
    tessera_engine *e = must_open(&v->open);
    tessera_session *s = session(e);
    if (tessera_profile(e, true, &err)) fail_msg("%s", err.msg);
    feed(e, s, N_IDS, 1, NULL, &got);
    uint64_t n = 0;
    for (int t = 0; t < N_IDS; t++) n += got.depth[t];
    assert_in_range(n, 20, 80);
    const uint64_t experts = 2 * 2 * 3 * 64 * 32, out = 2 * 64 * 64;
    assert_int_equal(bytes_of(e, "experts", "ffn_experts"), experts * (4 * N_IDS + 3 * n));
    assert_int_equal(bytes_of(e, "matmul", "attn_output"), out * (4 * N_IDS + 3 * n));
    const struct tessera_depth d = tessera_depth(e);
    assert_int_equal(d.rows, N_IDS);
    assert_int_equal(d.n_max, 1);
    assert_int_equal(d.rows_at[1], n);
    assert_int_equal(d.rows_at[0], N_IDS - n);
    const uint64_t layer = 64 * (64 * 2 + 32 * 2 + 4) + 2 * 3 * 64 * 32;
    assert_int_equal(d.macs_saved, (N_IDS - n) * 3 * layer);
    assert_true(d.bytes_saved >= (N_IDS - n) * 3 * 2 * layer);
    tessera_session_close(s);
    tessera_close(e);
}

/* Whether a group of the pool is of the concept network, layers 1 to 4 of 6. */
static bool is_network(const tessera_engine *e, const struct group *g)
{
    int l = -1;
    const int w = e->resid.parts.part[g->part[0]].weight;
    return sscanf(e->weights.at[w].name, "blk.%d.", &l) == 1 && l >= 1 && l <= 4;
}

/* Groups that have come from the disk since the last call: of the concept network, others. */
static void count_fresh(const tessera_engine *e, bool was[], int *network, int *others)
{
    for (int i = 0; i < e->resid.n_groups; i++) {
        const struct group *g = &e->resid.group[i];
        const bool there = g->state != GROUP_DISK;
        if (g->n_parts < 1) continue;
        if (there && !was[i]) ++*(is_network(e, g) ? network : others);
        was[i] = there;
    }
}

/* One text, token by token; the last logits. */
static void read_text(tessera_engine *e, const int32_t *text, int n, bool was[], int *network,
                      int *others, float logits[VOCAB])
{
    struct err err;
    tessera_session *s = session(e);
    for (int i = 0; i < n; i++) {
        const struct tessera_input in = {s, text + i, 1, TESSERA_LOGITS_LAST};
        if (tessera_step(e, &in, 1, &err)) fail_msg("%s", err.msg);
        if (i) count_fresh(e, was, network, others); /* the first token begins a concept */
        else count_fresh(e, was, &(int){0}, &(int){0});
    }
    memcpy(logits, tessera_logits(e, 0, 0), sizeof(float) * VOCAB);
    tessera_session_close(s);
}

/* Forty megabytes of experts in a fifth of it: the same bits whoever guesses what is needed next, and
 * for tokens that begin no concept (ids are even) nothing of the concept network comes from the disk. */
static void test_not_read(void **state)
{
    (void)state;
    static const char *const guess[] = {"none", "gate,always", "previous,always", "frequency,always"};
    static bool was[8192];
    int32_t mixed[60], even[60];
    float want[2][VOCAB], got[VOCAB];
    struct gen_spec g = gen_tiny("conceptmoe", QTYPE_Q8_0);
    struct tessera_options o = tessera_defaults();
    struct err err;
    char path[128];
    int network = 0, others = 0;
    (void)snprintf(path, sizeof path, "%s/large.gguf", dir);
    g.n_layer = 6;
    g.n_embd = g.n_ff = 256;
    g.head_dim = 64;
    g.n_expert = 32;
    g.n_vocab = VOCAB;
    if (gen_write(&g, path, NULL, &err)) fail_msg("%s", err.msg);
    for (int i = 0; i < 60; i++) {
        mixed[i] = ids[i];
        even[i] = ids[i] & ~1;
    }
    o.model_path = path;
    o.n_threads = 2;
    tessera_engine *e = must_open(&o);
    read_text(e, mixed, 60, was, &network, &others, want[0]);
    read_text(e, even, 60, was, &network, &others, want[1]);
    tessera_close(e);
    o.mem_budget = smallest(&o);
    if (o.mem_budget < 13 << 20) o.mem_budget = 13 << 20; /* room for more than a step's */
    for (int i = 0; i < 4; i++) {
        o.predictor = guess[i];
        e = must_open(&o);
        assert_in_range(e->resid.n_groups, 1, 8191);
        assert_false(e->resid.all_ram);
        memset(was, 0, sizeof was);
        network = others = 0;
        read_text(e, mixed, 60, was, &network, &others, got);
        assert_memory_equal(got, want[0], sizeof got);
        assert_true((i > 0 || network > 5) && others > 30); /* both come and go; what is guessed when, time tells */
        network = others = 0;
        read_text(e, even, 60, was, &network, &others, got);
        assert_memory_equal(got, want[1], sizeof got);
        assert_true(others > 20);
        if (network) fail_msg("%s: %d parts were read for nothing", guess[i], network);
        tessera_close(e);
    }
    (void)unlink(path);
}

/* ---- what must fail ---- */

static void test_mutations(void **state)
{
    (void)state;
    /* Each variant's reference is another's mutation. */
    static const char *const pairs[][2] = {
        {"c-last", "p-last"}, {"c-last", "c-sum"}, {"c-last", "c-last-plain"}, {"p-sum", "c-sum"},
        {"c-last", "often"}, {"seldom", "once"}, {"always", "often"}, {"loop", "loop-all"},
        {"c-last", "loop"}, {"wide-last", "wide-sum"},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) check_differs(pairs[i][1], pairs[i][0]);
}

static void test_bad_files(void **state)
{
    (void)state;
    static const struct bad bad[] = {
        {"concept", "concept.encoder_block_count", 'u', 0, NULL, "encoder_block_count"},
        {"concept", "concept.decoder_block_count", 'u', 5, NULL, "decoder_block_count"},
        {"concept", "concept.encoder_block_count", 'u', 4e9, NULL, "encoder_block_count"},
        {"concept", "concept.target_ratio", 'f', 0.5, NULL, "target_ratio says 0.5"},
        {"concept", "concept.target_ratio", 'f', 1e9, NULL, "target_ratio"},
        {"concept", "concept.target_ratio", 'f', NAN, NULL, "target_ratio"},
        {"concept", "concept.threshold", 'f', 1.5, NULL, "threshold says 1.5"},
        {"concept", "concept.threshold", 'f', -0.1, NULL, "threshold says -0.1"},
        {"concept", "concept.query", 's', 0, "next", "says \"next\"; known are current and previous"},
        {"concept", "concept.reduce", 's', 0, "mean", "says \"mean\"; known are last and sum"},
        {"concept", "concept.ema_recursive", 'b', 0, NULL, "ema_recursive"},
        {"concept", "concept.joint_decoding", 'b', 0, NULL, "attn_q_concept.weight"},
        {"concept", "concept.loop.first", 'u', 4, NULL, "loop.first"},
        {"concept", "concept.loop.count", 'u', 4, NULL, "loop.first"},
        {"concept", "concept.loop.times", 'u', 0, NULL, "loop.first"},
        {"concept", "concept.embedding_length", 'u', 96, NULL, "concept.up.weight"},
        {"concept-wide", "concept.embedding_length", 'u', 64, NULL, "blk.1.attn_norm.weight"},
        {"concept-wide", "concept.attention.head_count", 'u', 5, NULL, "head_count"},
        {"concept-wide", "concept.expert_used_count", 'u', 9, NULL, "concept.expert_used_count"},
        {"hnet", "stage_count", 'u', 1, NULL, "stage_count says 1"},
        {"hnet", "stage_count", 'u', 9, NULL, "stage_count says 9"},
        {"hnet", "stage.0.encoder_layout", 's', 0, "m4", "Mamba-2"},
        {"hnet", "stage.1.decoder_layout", 's', 0, "t1Q2", "t1Q2"},
        {"hnet", "stage.1.decoder_layout", 's', 0, "t", "layout says \"t\""},
        {"hnet", "stage.1.decoder_layout", 's', 0, "t99999999999", "128 layers"},
        {"hnet", "stage.1.feed_forward_length", 'u', 0, NULL, "feed_forward_length"},
        {"hnet", "stage.1.embedding_length", 'u', 16, NULL, "as wide as"},
        {"hnet", "stage.0.attention.head_count", 'u', 0, NULL, "head_count"},
        {"hnet", "chunk.query", 's', 0, "current", "known is previous"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct rw r;
        open_model(&r, bad[i].model);
        rw_set(&r, bad[i].key, bad[i].type, bad[i].number, bad[i].text);
        must_refuse(&r, tessera_defaults(), bad[i].key, bad[i].want);
    }
    static const char *const gone[][2] = {
        {"concept", "concept.router_q.weight"}, {"concept", "concept.router_k.weight"},
        {"concept", "blk.6.attn_v_concept.weight"}, {"concept-wide", "concept.down.weight"},
        {"hnet", "st.1.router_k.weight"}, {"hnet", "st.2.pad"}, {"hnet", "st.0.res_proj.bias"},
    };
    for (size_t i = 0; i < sizeof gone / sizeof *gone; i++) {
        struct rw r;
        open_model(&r, gone[i][0]);
        struct rw_tensor *t = rw_find(&r, gone[i][1]);
        assert_non_null(t);
        rw_drop(&r, t);
        must_refuse(&r, tessera_defaults(), gone[i][1], gone[i][1]);
    }
    for (int i = 0; i < 2; i++) {
        struct rw r;
        open_model(&r, i ? "hnet" : "concept");
        must_refuse_rounded(&r, tessera_defaults(), i ? "st.0.router_q.weight" : "concept.router_k.weight");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference), cmocka_unit_test(test_splits),
        cmocka_unit_test(test_rollback), cmocka_unit_test(test_batch_and_tiers),
        cmocka_unit_test(test_save), cmocka_unit_test(test_spill),
        cmocka_unit_test(test_zero_joint), cmocka_unit_test(test_first_factor),
        cmocka_unit_test(test_kv_bytes), cmocka_unit_test(test_work),
        cmocka_unit_test(test_not_read),
        cmocka_unit_test(test_mutations), cmocka_unit_test(test_bad_files),
    };
    return cmocka_run_group_tests_name("concept", tests, set_up, tear_down);
}
