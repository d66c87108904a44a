/* Masked diffusion and experts that choose their tokens, against the independent reference of
 * tests/choice/make.py: logits of every variant of the router, schedules, loads, transfer counts, and
 * texts token by token in the order in which they settle, for every way to write.  Also: the same bits
 * in every tier, by blocks and beside other texts; logits of the named rows alone; rewriting; files and
 * options that must be refused; changes that must break the bound.  Writes to a folder of its own in
 * /tmp. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "bench/gen.h"
#include "moe/base/rng.h"
#include "moe/compute/dev.h"
#include "moe/run/branch.h"
#include "moe/run/denoise.h"
#include "moe/run/obs.h"
#include "moe/tessera.h"
#include "routing/choice.h"
#include "tests/engine.h"
#include "tests/rewrite.h"
#include "tests/shared.h"

enum { BUDGET = 22 << 20 };
enum { N_IDS = 48, VOCAB = 40, E = 6, LAYERS = 2, MASK = 39, N_PROMPT = 21, LINES = 64 };

static char dir[64] = "/tmp/tessera-choice-XXXXXX";
static char path[128];
static int32_t ids[N_IDS];
static struct tessera_options opt;

/* ---- files ---- */

/* The value of " key=" in a line of options; NULL = not there. */
static const char *option(const char *line, const char *key)
{
    static char out[2][40];
    static int n;
    char word[48];
    (void)snprintf(word, sizeof word, " %s=", key);
    const char *at = strstr(line, word);
    if (!at) return NULL;
    char *to = out[n++ % 2];
    (void)snprintf(to, 40, "%.*s", (int)strcspn(at + strlen(word), " "), at + strlen(word));
    return to;
}

static double number(const char *line, const char *key, double dflt)
{
    const char *v = option(line, key);
    return v ? atof(v) : dflt;
}

static void set_global(struct rw *r, const char *key, char type, double v)
{
    rw_set(r, "", type, v, NULL);
    (void)snprintf(r->key[r->n_keys - 1].key, sizeof r->key->key, "%s", key);
}

/* The model of a line of cases.txt or writing.txt at `path`. */
static void make_model(const char *line, const char *routing)
{
    static const char *const texts[] = {"activation", "scope", "schedule"};
    static const char *const numbers[] = {"k", "k_min", "k_max"};
    static char text[4][40], table[200];
    char key[64];
    struct rw r;
    size_t n;
    rw_open(&r, "tests/choice/ecdlm.gguf");
    (void)snprintf(text[3], sizeof text[3], "%s",
                   option(line, "routing") ? option(line, "routing") : routing);
    rw_set(&r, "expert_routing", 's', 0, text[3]);
    for (int i = 0; i < 3; i++) {
        (void)snprintf(key, sizeof key, "expert_choice.%s", texts[i]);
        if (option(line, texts[i])) {
            (void)snprintf(text[i], sizeof text[i], "%s", option(line, texts[i]));
            rw_set(&r, key, 's', 0, text[i]);
        }
        (void)snprintf(key, sizeof key, "expert_choice.%s", numbers[i]);
        if (option(line, numbers[i])) rw_set(&r, key, 'u', number(line, numbers[i], 0), NULL);
    }
    if (option(line, "block")) rw_set(&r, "attention.block_length", 'u', number(line, "block", 0), NULL);
    if (option(line, "scale")) {
        char *s = shared_slurp("tests/choice/scale.txt", &n);
        assert_non_null(s);
        (void)snprintf(table, sizeof table, "%s", s);
        free(s);
        rw_set(&r, "expert_choice.scale", 'a', 0, table);
    }
    if (option(line, "shift")) set_global(&r, "diffusion.shift_logits", 'b', 1);
    rw_write(&r, path);
    rw_close(&r);
}

/* Lines of a file in tests/choice; the text is the caller's to free. */
static int lines_of(const char *name, char **text, char *line[LINES])
{
    char full[64];
    size_t n;
    int k = 0;
    (void)snprintf(full, sizeof full, "tests/choice/%s", name);
    *text = shared_slurp(full, &n);
    assert_non_null(*text);
    for (char *p = strtok(*text, "\n"); p; p = strtok(NULL, "\n")) {
        assert_true(k < LINES);
        line[k++] = p;
    }
    return k;
}

static int set_up(void **state)
{
    (void)state;
    assert_non_null(mkdtemp(dir));
    (void)snprintf(path, sizeof path, "%s/model.gguf", dir);
    assert_true(shared_ids("tests/choice/text.ids", N_IDS, ids));
    opt = tessera_defaults();
    opt.model_path = path;
    opt.n_threads = 2;
    opt.n_sessions = 2;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    return tests_remove(dir);
}

/* ---- the router's pieces ---- */

static void test_schedules(void **state)
{
    (void)state;
    static const char *const names[] = {"static", "linear", "linear_reverse", "cosine",
                                        "cosine_reverse", "bell", "gaussian", "gaussian_reverse"};
    size_t n;
    int lines = 0;
    char *text = shared_slurp("tests/choice/schedules.txt", &n), name[24];
    assert_non_null(text);
    for (char *p = text; *p; p = strchr(p, '\n') + 1, lines++) {
        struct choice_params c = {0};
        double r, share;
        int k, s = 0;
        assert_int_equal(sscanf(p, "%23s %d %d %lf %d %lf", name, &c.k_min, &c.k_max, &r, &k, &share), 6);
        while (strcmp(names[s], name)) s++;
        c.schedule = (enum choice_schedule)s;
        assert_true(fabs(choice_schedule(c.schedule, r) - share) < 1e-9);
        assert_int_equal(choice_k(&c, r), k);
    }
    free(text);
    assert_int_equal(lines, 7 * 3 * 17);
    assert_int_equal(choice_k(&(struct choice_params){.k_min = 4, .k_max = 4}, 0.3), 4);
    assert_int_equal(choice_capacity(512, 20, 512), 20);
    assert_int_equal(choice_capacity(48, 5, 6), 40);
    assert_int_equal(choice_capacity(5, 1, 6), 1);  /* one at least */
    assert_int_equal(choice_capacity(7, 6, 6), 7);
    assert_int_equal(choice_capacity(1, 3, 64), 1);
}

/* Whether i comes before k, by the rule of choice.h. */
static bool comes_before(const float *x, int i, int k)
{
    if (isnan(x[i]) || isnan(x[k])) return !isnan(x[i]) || (isnan(x[k]) && i < k);
    return x[i] > x[k] || (!(x[i] < x[k]) && i < k);
}

static void test_take(void **state)
{
    (void)state;
    static const float odd[] = {0.0f, -0.0f, INFINITY, -INFINITY, 1e-40f, -1e-40f, 1, -1};
    struct rng r;
    rng_seed(&r, 1);
    for (int round = 0; round < 4000; round++) {
        float x[70];
        unsigned char taken[70];
        const int n = 1 + (int)rng_below(&r, 70), c = 1 + (int)rng_below(&r, (uint32_t)n);
        const bool ties = round % 3 == 0;
        for (int i = 0; i < n; i++) {
            x[i] = ties ? (float)rng_below(&r, 5) - 2 : rng_range(&r, -3, 3);
            if (rng_below(&r, 10) == 0) x[i] = odd[rng_below(&r, 8)];
            if (rng_below(&r, 40) == 0) x[i] = NAN;
        }
        choice_take(x, n, c, taken);
        for (int i = 0; i < n; i++) {
            int before = 0;
            for (int k = 0; k < n; k++) before += k != i && comes_before(x, k, i);
            assert_int_equal(taken[i], before < c);
        }
    }
}

static void test_transfers(void **state)
{
    (void)state;
    char *text, *line[LINES];
    const int n = lines_of("transfers.txt", &text, line);
    assert_int_equal(n, 6);
    for (int i = 0; i < n; i++) {
        char *at = line[i];
        const int m = (int)strtol(at, &at, 10), steps = (int)strtol(at, &at, 10);
        for (int s = 0; s < steps; s++)
            assert_int_equal(denoise_transfer(m, s, steps), strtol(at, &at, 10));
    }
    free(text);
    static const int want[] = {7, 7, 6, 6, 6};
    for (int s = 0; s < 5; s++) assert_int_equal(denoise_transfer(32, s, 5), want[s]);
    /* Dream: t falls from 1 to 1/1000. */
    assert_true(fabs(denoise_ratio(0, 10) - 0.0999) < 1e-12);
    assert_true(fabs(denoise_ratio(8, 10) - (1 - 0.1009 / 0.2008)) < 1e-12);
    assert_true(fabs(denoise_ratio(9, 10) - 1) < 1e-12);
}

/* ---- logits ---- */

static void hide(int n, int32_t *out)
{
    memcpy(out, ids, sizeof ids);
    for (int i = 0; i < n; i++) out[17 * i % N_IDS] = MASK;
}

/* What each expert took, and each row's sum of gates. */
struct seen {
    int load[LAYERS][E];
    double least, most;
};

static void see(void *arg, const struct obs *o)
{
    struct seen *s = arg;
    double sum = 0;
    for (int i = 0; i < o->n_used; i++) {
        s->load[o->layer][o->expert[i]]++;
        sum += (double)o->weight[i];
    }
    if (!o->n_used) return;
    if (sum < s->least) s->least = sum;
    if (sum > s->most) s->most = sum;
}

/* All logits of the case's text, as one step of one or two sessions. */
static void run_case(const char *line, const struct tessera_options *o, struct seen *seen, float *out)
{
    struct err err;
    int32_t x[N_IDS];
    char name[40];
    int hidden = 0;
    assert_int_equal(sscanf(line, "%39s %d", name, &hidden), 2);
    hide(hidden, x);
    const int n = (int)number(line, "rows", N_IDS), at = (int)number(line, "split", n);
    tessera_engine *e = must_open(o);
    tessera_session *s[2] = {session(e), session(e)};
    const struct tessera_input in[2] = {{s[0], x, at, TESSERA_LOGITS_ALL},
                                        {s[1], x + at, n - at, TESSERA_LOGITS_ALL}};
    if (seen) tessera_observe(e, see, seen);
    if (tessera_step(e, in, n > at ? 2 : 1, &err)) fail_msg("%s: %s", name, err.msg);
    for (int i = 0; i < n; i++)
        memcpy(out + i * VOCAB, tessera_logits(e, i >= at, i < at ? i : i - at), sizeof(float) * VOCAB);
    tessera_session_close(s[0]);
    tessera_session_close(s[1]);
    tessera_close(e);
}

/* Largest difference over the reference's root mean square; NaN where there is one. */
static double distance(const char *line, const float *got)
{
    char name[40], full[96];
    size_t bytes = 0;
    double sum = 0, max = 0;
    (void)sscanf(line, "%39s", name);
    const int n = (int)number(line, "rows", N_IDS) * VOCAB;
    (void)snprintf(full, sizeof full, "tests/choice/%s.logits.f32", name);
    float *want = (float *)(void *)shared_slurp(full, &bytes);
    assert_non_null(want);
    assert_int_equal(bytes, sizeof(float) * (size_t)n);
    for (int i = 0; i < n; i++) {
        const double d = fabs((double)got[i] - (double)want[i]);
        sum += (double)want[i] * (double)want[i];
        max = isnan(d) || isnan(max) ? NAN : fmax(max, d);
    }
    free(want);
    return max / sqrt(sum / n);
}

static const double BOUND = 1e-4;

static void check_loads(const char *line, const char *loads, const struct seen *seen)
{
    char *at = strchr(loads, ' ');
    const bool two = option(line, "split") && !option(line, "scope");
    for (int l = 0; at && *at && l < LAYERS; l++) {
        int want = (int)strtol(at, &at, 10);
        if (two) want += (int)strtol(at, &at, 10);
        for (int e = 0; e < E; e++) assert_int_equal(seen->load[l][e], want);
    }
    if (option(line, "activation") && !strcmp(option(line, "activation"), "pre_softmax")) return;
    if (!option(line, "scale")) assert_true(seen->least > 1 - 1e-6 && seen->most < 1 + 1e-6);
}

static void test_reference(void **state)
{
    (void)state;
    char *text, *line[LINES], *text2, *loads[LINES];
    static float got[N_IDS * VOCAB], again[N_IDS * VOCAB];
    static const char *const tiers[] = {"ref", "avx2", "avx512"};
    const int n = lines_of("cases.txt", &text, line);
    double worst = 0;
    assert_int_equal(n, lines_of("loads.txt", &text2, loads));
    assert_int_equal(n, 25);
    for (int i = 0; i < n; i++) {
        struct seen seen = {.least = 9};
        memset(got, 0, sizeof got);
        memset(again, 0, sizeof again);
        make_model(line[i], "expert_choice");
        run_case(line[i], &opt, &seen, got);
        const double d = distance(line[i], got);
        if (!(d <= BOUND)) fail_msg("%s: %g of the reference's rms", line[i], d);
        worst = d > worst ? d : worst;
        if (!strstr(line[i], "routing=token")) check_loads(line[i], loads[i], &seen);
        for (int t = 0; t < 3; t++) {
            struct tessera_options o = opt;
            o.n_threads = 1 + t;
            (void)setenv("TESSERA_CPU", tiers[t], 1);
            run_case(line[i], &o, NULL, again);
            (void)unsetenv("TESSERA_CPU");
            assert_memory_equal(again, got, sizeof got);
        }
    }
    print_message("%d variants: worst difference %.2g of the reference's rms\n", n, worst);
    free(text);
    free(text2);
}

/* A capacity that is forced gives the bits of a model that has no other. */
static void test_capacity(void **state)
{
    (void)state;
    static float want[N_IDS * VOCAB];
    struct err err;
    int32_t x[N_IDS];
    hide(24, x);
    for (int k = 1; k <= 5; k++) {
        char line[64];
        (void)snprintf(line, sizeof line, "some 24 k=%d", k);
        make_model(line, "expert_choice");
        run_case(line, &opt, NULL, want);
        make_model("some 24 k_min=1 k_max=5 schedule=linear", "expert_choice");
        tessera_engine *e = must_open(&opt);
        tessera_session *s = session(e);
        const struct tessera_input in = {s, x, N_IDS, TESSERA_LOGITS_ALL};
        assert_int_equal(branches_capacity(e, k, &err), OK);
        assert_int_equal(tessera_step(e, &in, 1, &err), OK);
        for (int i = 0; i < N_IDS; i++)
            assert_memory_equal(tessera_logits(e, 0, i), want + i * VOCAB, sizeof(float) * VOCAB);
        assert_int_equal(branches_capacity(e, 6, &err), ERR_RANGE);
        assert_int_equal(branches_capacity(e, 0, &err), OK);
        assert_int_equal(tessera_session_rollback(s, (struct tessera_mark){0}, &err), OK);
        assert_int_equal(tessera_step(e, &in, 1, &err), OK);
        if (k == 5) assert_true(memcmp(tessera_logits(e, 0, 0), want, sizeof(float) * VOCAB) != 0);
        tessera_session_close(s);
        tessera_close(e);
    }
}

/* Each changes one thing about a case: the bound must not hold any more. */
static void test_mutations(void **state)
{
    (void)state;
    static const char *const change[][2] = {
        {"soft24 24", "soft24 24 k=3"},
        {"soft24 24", "soft24 24 activation=sigmoid"},
        {"soft24 24", "soft24 24 activation=pre_softmax"},
        {"soft24 24", "soft24 24 scale=1"},
        {"soft24 24", "soft24 24 block=16"},
        {"soft24 24", "soft24 24 routing=token_choice"},
        {"lin44 44", "lin44 44 k_min=1 k_max=5 schedule=linear_reverse"},
        {"two 24", "two 24 k_min=1 k_max=4 schedule=linear_reverse split=29 scope=batch"},
        {"blocks 24", "blocks 24 block=12"},
        {"cos12 12", "cos12 12 k_min=1 k_max=5 schedule=bell"},
    };
    static float got[N_IDS * VOCAB];
    for (size_t i = 0; i < sizeof change / sizeof *change; i++) {
        make_model(change[i][1], "expert_choice");
        run_case(change[i][1], &opt, NULL, got);
        const double d = distance(change[i][0], got);
        if (!(d > 100 * BOUND)) fail_msg("not seen: %s (%g)", change[i][1], d);
    }
}

/* A text by itself, beside another one, and on a second device; a text by its blocks. */
static void test_same_bits(void **state)
{
    (void)state;
    static const char two[] = "two 24 k_min=1 k_max=4 schedule=linear_reverse split=29";
    static float all[N_IDS * VOCAB], got[N_IDS * VOCAB];
    struct err err;
    int32_t x[N_IDS];
    hide(24, x);
    make_model(two, "expert_choice");
    run_case(two, &opt, NULL, all);
    run_case("two 24 rows=29", &opt, NULL, got);
    assert_memory_equal(got, all, sizeof(float) * 29 * VOCAB);
    struct tessera_options o = opt;
    o.device = dev_sim_api();
    run_case(two, &o, NULL, got);
    assert_memory_equal(got, all, sizeof all);

    make_model("b 24 block=16", "token_choice");
    run_case("b 24", &opt, NULL, all);
    tessera_engine *e = must_open(&opt);
    tessera_session *s = session(e);
    assert_int_equal(tessera_model(e).block, 16);
    for (int at = 0; at < N_IDS; at += 16) {
        const struct tessera_input in = {s, x + at, 16, TESSERA_LOGITS_ALL};
        if (tessera_step(e, &in, 1, &err)) fail_msg("%s", err.msg);
        for (int i = 0; i < 16; i++)
            assert_memory_equal(tessera_logits(e, 0, i), all + (at + i) * VOCAB, sizeof(float) * VOCAB);
    }
    tessera_session_close(s);
    tessera_close(e);
}

/* Logits of some rows; rows that are written again. */
static void test_rows(void **state)
{
    (void)state;
    static float all[N_IDS * VOCAB];
    unsigned char some[N_IDS] = {0};
    struct err err;
    int32_t x[N_IDS];
    hide(24, x);
    for (int m = 0; m < 2; m++) {
        make_model("m 24", m ? "expert_choice" : "token_choice");
        run_case("m 24", &opt, NULL, all);
        tessera_engine *e = must_open(&opt);
        tessera_session *s = session(e);
        for (int i = 0; i < N_IDS; i++) some[i] = i % 5 == 2 || i == N_IDS - 1;
        struct tessera_input in = {s, x, N_IDS, TESSERA_LOGITS_SOME, some, false, 0};
        if (tessera_step(e, &in, 1, &err)) fail_msg("%s", err.msg);
        for (int i = 0; i < N_IDS; i++) {
            const float *got = tessera_logits(e, 0, i);
            assert_int_equal(got != NULL, some[i]);
            if (got) assert_memory_equal(got, all + i * VOCAB, sizeof(float) * VOCAB);
        }
        /* The same tokens in the same places: nothing is different; experts would choose among
         * fewer. */
        in = (struct tessera_input){s, x + 10, 20, TESSERA_LOGITS_ALL, NULL, true, 10};
        if (tessera_step(e, &in, 1, &err)) fail_msg("%s", err.msg);
        assert_int_equal(tessera_session_n(s), N_IDS);
        for (int i = 0; i < 20 && !m; i++)
            assert_memory_equal(tessera_logits(e, 0, i), all + (10 + i) * VOCAB, sizeof(float) * VOCAB);
        /* Others are seen by all. */
        x[12] = x[12] == 3 ? 4 : 3;
        in = (struct tessera_input){s, x + 12, 1, TESSERA_LOGITS_NONE, NULL, true, 12};
        if (tessera_step(e, &in, 1, &err)) fail_msg("%s", err.msg);
        assert_int_equal(tessera_session_ids(s)[12], x[12]);
        in = (struct tessera_input){s, x + 40, 1, TESSERA_LOGITS_ALL, NULL, true, 40};
        if (tessera_step(e, &in, 1, &err)) fail_msg("%s", err.msg);
        assert_memory_not_equal(tessera_logits(e, 0, 0), all + 40 * VOCAB, sizeof(float) * VOCAB);
        in.at = N_IDS;
        assert_int_equal(tessera_step(e, &in, 1, &err), ERR_RANGE);
        in.at = -1;
        assert_int_equal(tessera_step(e, &in, 1, &err), ERR_RANGE);
        assert_int_equal(tessera_session_n(s), N_IDS);
        /* Half of it may be written: the timeline ends before it. */
        in = (struct tessera_input){s, x + 20, 5, TESSERA_LOGITS_ALL, NULL, true, 20};
        tessera_cancel(e);
        assert_int_equal(tessera_step(e, &in, 1, &err), ERR_CANCELLED);
        assert_int_equal(tessera_session_n(s), 20);
        hide(24, x);
        tessera_session_close(s);
        tessera_close(e);
    }
}

/* ---- experts that choose the rows of prompts ---- */

static struct tessera_options prompt_options(bool lossy)
{
    struct tessera_options o = opt;
    o.model_path = "tests/choice/prompt.gguf";
    o.expert_choice = lossy;
    o.n_logits = N_IDS;
    return o;
}

/* How many rows each expert of the first layer took in the longest step, and all pairs of it. */
struct prompt_seen {
    int load[E], pairs, most;
};

static void see_prompt(void *arg, const struct obs *o)
{
    struct prompt_seen *s = arg;
    if (o->layer) return;
    for (int i = 0; i < o->n_used; i++) s->load[o->expert[i]]++;
    s->pairs += o->n_used;
    if (o->n_used > s->most) s->most = o->n_used;
}

/* The text in steps of piece[], then token by token. */
static void run_prompt(const struct tessera_options *o, const int *piece, int n_pieces, bool own,
                       struct prompt_seen *seen, float *out)
{
    struct err err;
    tessera_engine *e = must_open(o);
    tessera_session *s = session(e);
    tessera_own_routing(e, own);
    for (int i = 0, at = 0, n; at < N_IDS; i++, at += n) {
        n = i < n_pieces ? piece[i] : 1;
        tessera_observe(e, seen && !i ? see_prompt : NULL, seen);
        const struct tessera_input in = {s, ids + at, n, TESSERA_LOGITS_ALL};
        if (tessera_step(e, &in, 1, &err)) fail_msg("%s", err.msg);
        for (int r = 0; r < n; r++)
            memcpy(out + (at + r) * VOCAB, tessera_logits(e, 0, r), sizeof(float) * VOCAB);
    }
    tessera_session_close(s);
    tessera_close(e);
}

static int pieces_of(const char *line, int *piece)
{
    int n = 0;
    char *at = strchr(line, ' ');
    do piece[n++] = (int)strtol(at + 1, &at, 10);
    while (*at == ',');
    return n;
}

static void test_prompts(void **state)
{
    (void)state;
    static float got[N_IDS * VOCAB], again[N_IDS * VOCAB], plain[N_IDS * VOCAB];
    static const char *const tiers[] = {"ref", "avx2", "avx512"};
    char *text, *line[LINES];
    const int n = lines_of("prompts.txt", &text, line);
    assert_int_equal(n, 4);
    for (int i = 0; i < n; i++) {
        struct tessera_options o = prompt_options(strstr(line[i], "routing=prompt") != NULL);
        int piece[8];
        const int n_pieces = pieces_of(line[i], piece);
        run_prompt(&o, piece, n_pieces, false, NULL, got);
        const double d = distance(line[i], got);
        if (!(d <= BOUND)) fail_msg("%s: %g of the reference's rms", line[i], d);
        for (int t = 0; t < 3; t++) {
            o.n_threads = 1 + t;
            (void)setenv("TESSERA_CPU", tiers[t], 1);
            run_prompt(&o, piece, n_pieces, false, NULL, again);
            (void)unsetenv("TESSERA_CPU");
            assert_memory_equal(again, got, sizeof got);
        }
        if (strstr(line[i], "pieces")) { /* more rows than are computed at once */
            const int one = 34;
            o.n_ubatch = 16;
            o.n_batch = 34;
            o.n_logits = 1;
            struct err err;
            tessera_engine *e = must_open(&o);
            tessera_session *s = session(e);
            const struct tessera_input in = {s, ids, one, TESSERA_LOGITS_LAST};
            if (tessera_step(e, &in, 1, &err)) fail_msg("%s", err.msg);
            assert_memory_equal(tessera_logits(e, 0, one - 1), got + (one - 1) * VOCAB,
                                sizeof(float) * VOCAB);
            tessera_session_close(s);
            tessera_close(e);
        }
    }
    free(text);
    /* Without the switch, with it put aside, and where no rows come together: the same bits. */
    static const int whole = 40, ones = 1;
    struct tessera_options o = prompt_options(false), lossy = prompt_options(true);
    struct prompt_seen seen = {.pairs = 0};
    run_prompt(&o, &whole, 1, false, NULL, plain);
    run_prompt(&lossy, &whole, 1, true, NULL, got);
    assert_memory_equal(got, plain, sizeof plain);
    run_prompt(&lossy, &ones, 1, false, NULL, got);
    assert_memory_equal(got, plain, sizeof plain);
    run_prompt(&lossy, &whole, 1, false, &seen, got);
    assert_memory_not_equal(got, plain, sizeof plain);
    for (int x = 0; x < E; x++) assert_int_equal(seen.load[x], 40 * 2 / E);
    assert_true(seen.pairs <= 80 && seen.most > 2);
    lossy.device = dev_sim_api();
    run_prompt(&lossy, &whole, 1, false, NULL, again);
    assert_memory_equal(again, got, sizeof got);
}

/* ---- writing ---- */

static const char *const algs[] = {"", "low_confidence", "random", "origin", "maskgit_plus",
                                   "topk_margin", "entropy"};

static struct tessera_generator_options writing(const char *line)
{
    struct tessera_generator_options o = {.n_gen_max = (int)number(line, "g", 8)};
    int alg = 0;
    while (option(line, "alg") && strcmp(algs[alg], option(line, "alg"))) alg++;
    const char *cache = option(line, "cache");
    o.sampling = (struct tessera_sampling){
        .temp = (float)number(line, "temp", 0), .top_p = (float)number(line, "top_p", 1),
        .top_k = (int)number(line, "top_k", 0), .repeat_penalty = 1,
        .seed = (uint64_t)number(line, "seed", 0)};
    o.denoise = (struct tessera_denoising){
        .alg = (enum tessera_denoise_alg)alg, .steps = (int)number(line, "steps", 0),
        .block = (int)number(line, "b", option(line, "block") ? 0 : -1),
        .threshold = (float)number(line, "threshold", 0), .guidance = (float)number(line, "cfg", 0),
        .alg_temp = (float)number(line, "alg_temp", 0),
        .cache = !cache ? TESSERA_CACHE_NONE : cache[0] == 'd' ? TESSERA_CACHE_DUAL
                                                               : TESSERA_CACHE_PREFIX};
    return o;
}

/* What settled, as in written.txt. */
static void write_text(const char *line, const struct tessera_options *how, char *out, size_t cap)
{
    struct err err;
    tessera_engine *e = must_open(how);
    tessera_session *s = session(e);
    struct tessera_generator_options o = writing(line);
    struct tessera_answer a = {.stop = TESSERA_RUNNING};
    tessera_generator *g;
    char log[2048] = "";
    size_t n = 0;
    unsigned char done[N_IDS + 24] = {0};
    err_clear(&err);
    if (tessera_generator_open(s, ids, N_PROMPT, &o, &g, &err)) fail_msg("%s: %s", line, err.msg);
    while (!a.stop) {
        if (tessera_generator_next(g, &a, &err)) fail_msg("%s: %s", line, err.msg);
        for (int i = N_PROMPT; i < a.n_canvas; i++) {
            if (done[i] || a.canvas[i] == MASK) continue;
            done[i] = 1;
            n += (size_t)snprintf(log + n, sizeof log - n, " %d:%d:%d",
                                  tessera_generator_timing(g).n_passes, i, a.canvas[i]);
        }
    }
    assert_int_equal(a.stop, TESSERA_STOP_LENGTH);
    assert_memory_equal(a.canvas, ids, N_PROMPT * sizeof *ids);
    (void)snprintf(out, cap, "%.*s %d%s", (int)strcspn(line, " "), line,
                   tessera_generator_timing(g).n_passes, log);
    tessera_generator_close(g);
    tessera_session_close(s);
    tessera_close(e);
}

static void test_writing(void **state)
{
    (void)state;
    char *text, *line[LINES], *text2, *want[LINES];
    const int n = lines_of("writing.txt", &text, line);
    assert_int_equal(n, lines_of("written.txt", &text2, want));
    assert_int_equal(n, 28);
    for (int i = 0; i < n; i++) {
        char got[2200], again[2200];
        struct tessera_options o = opt;
        make_model(line[i], "token_choice");
        write_text(line[i], &opt, got, sizeof got);
        if (strcmp(got, want[i])) fail_msg("%s\n     got %s\n    want %s", line[i], got, want[i]);
        o.n_threads = 1;
        write_text(line[i], &o, again, sizeof again);
        assert_string_equal(got, again);
    }
    free(text);
    free(text2);
}

/* A cache is measured against whole passes, and that changes nothing; where nothing is left out there
 * is no distance. */
static void test_measure(void **state)
{
    (void)state;
    static const char *const lines[] = {"w alg=low_confidence g=24 b=8 cache=prefix",
                                        "w alg=low_confidence g=24 b=8 cache=dual",
                                        "w alg=low_confidence g=24 b=24 cache=dual"};
    make_model("w", "token_choice");
    for (int i = 0; i < 3; i++) {
        char plain[2200];
        struct err err;
        struct tessera_answer a = {.stop = TESSERA_RUNNING};
        tessera_generator *g;
        write_text(lines[i], &opt, plain, sizeof plain);
        tessera_engine *e = must_open(&opt);
        tessera_session *s = session(e);
        struct tessera_generator_options o = writing(lines[i]);
        o.denoise.measure = true;
        err_clear(&err);
        if (tessera_generator_open(s, ids, N_PROMPT, &o, &g, &err)) fail_msg("%s", err.msg);
        while (!a.stop)
            if (tessera_generator_next(g, &a, &err)) fail_msg("%s", err.msg);
        char *at = plain + 1; /* the same tokens in the end: pass:place:token */
        (void)strtol(at, &at, 10);
        while (*at) {
            (void)strtol(at, &at, 10);
            const long place = strtol(at + 1, &at, 10), token = strtol(at + 1, &at, 10);
            assert_int_equal(a.canvas[place], token);
        }
        const struct tessera_timing t = tessera_generator_timing(g);
        /* Blocks of b: all but the first pass of each; place k of a pass has b - k left. */
        assert_int_equal(t.n_compared, i < 2 ? 3 * 28 : 276);
        assert_true(t.kl > 1e-8 && t.n_changed >= 0 && t.n_changed < t.n_compared);
        tessera_generator_close(g);
        tessera_session_close(s);
        tessera_close(e);
    }
}

/* Two texts in one step, each measured: as each by itself. */
static void test_measure_beside(void **state)
{
    (void)state;
    struct err err;
    struct tessera_options two = opt;
    tessera_generator *g[3];
    tessera_session *s[3];
    struct tessera_answer a[3] = {{.stop = TESSERA_RUNNING}, {.stop = TESSERA_RUNNING}, {.stop = TESSERA_RUNNING}};
    make_model("w", "token_choice");
    two.n_sessions = 6;
    two.n_logits = 24;
    tessera_engine *e = must_open(&two);
    struct tessera_generator_options o = writing("w alg=low_confidence g=24 b=8 cache=dual");
    o.denoise.measure = true;
    for (int i = 0; i < 3; i++) { /* the last one is the first by itself */
        s[i] = session(e);
        if (tessera_generator_open(s[i], ids, i == 1 ? 14 : N_PROMPT, &o, &g[i], &err)) fail_msg("%s", err.msg);
    }
    while (!a[2].stop)
        if (tessera_generator_next(g[2], &a[2], &err)) fail_msg("%s", err.msg);
    while (!a[0].stop || !a[1].stop) {
        struct tessera_input in[2];
        int at[2], n = 0;
        for (int i = 0; i < 2; i++)
            if (!a[i].stop && tessera_generator_want(g[i], 512, &in[n])) at[n++] = i;
        if (tessera_step(e, in, n, &err)) fail_msg("%s", err.msg);
        for (int i = 0; i < n; i++)
            if (tessera_generator_take(g[at[i]], i, &a[at[i]], &err)) fail_msg("%s", err.msg);
    }
    assert_int_equal(a[0].n_canvas, a[2].n_canvas);
    assert_memory_equal(a[0].canvas, a[2].canvas, sizeof *a[0].canvas * (size_t)a[0].n_canvas);
    const struct tessera_timing t = tessera_generator_timing(g[0]), alone = tessera_generator_timing(g[2]);
    assert_int_equal(t.n_compared, 3 * 28);
    assert_memory_equal(&t.kl, &alone.kl, sizeof t.kl);
    assert_int_equal(t.n_passes, alone.n_passes);
    assert_int_equal(tessera_generator_timing(g[1]).n_compared, 3 * 28);
    for (int i = 0; i < 3; i++) {
        tessera_generator_close(g[i]);
        tessera_session_close(s[i]);
    }
    tessera_close(e);
}

/* A text in blocks with most experts on disk: what was read for it, and the text. */
static struct tessera_traffic write_away(uint64_t budget, int cache, bool hold, int32_t *text)
{
    struct err err;
    struct tessera_options o = opt;
    o.mem_budget = budget;
    o.predictor = "none";
    tessera_engine *e = must_open(&o);
    tessera_session *s = session(e);
    struct tessera_sampling sampling;
    struct tessera_generator_options how = {.n_gen_max = 96, .denoise = tessera_denoising_defaults(e, &sampling)};
    how.sampling = sampling;
    how.denoise.cache = (enum tessera_denoise_cache)cache;
    how.denoise.block = 32;
    how.ignore_end = true;
    struct tessera_answer a = {.stop = TESSERA_RUNNING};
    struct tessera_input in;
    tessera_generator *g;
    const struct tessera_traffic before = tessera_traffic(e);
    if (tessera_generator_open(s, ids, N_PROMPT, &how, &g, &err)) fail_msg("%s", err.msg);
    while (!a.stop && tessera_generator_want(g, 512, &in)) {
        if (!hold) in.block = 0;
        if (tessera_step(e, &in, 1, &err) || tessera_generator_take(g, 0, &a, &err)) fail_msg("%s", err.msg);
    }
    memcpy(text, a.canvas, sizeof *text * (size_t)a.n_canvas);
    struct tessera_traffic t = tessera_traffic(e);
    t.bytes_read -= before.bytes_read;
    t.misses -= before.misses;
    tessera_generator_close(g);
    tessera_session_close(s);
    tessera_close(e);
    return t;
}

/* Experts that a block uses stay until it is sealed: fewer bytes are read where there is room for them, none
 * too many where there is not, and the text is the same. */
static void test_held(void **state)
{
    (void)state;
    struct err err;
    struct gen_spec spec = gen_defaults();
    int32_t text[3][N_PROMPT + 96];
    spec.arch = "ecdlm";
    spec.rows_choose = true;
    spec.n_layer = 3;
    spec.n_embd = 256;
    spec.n_ff = 128;
    spec.n_head = 4;
    spec.n_head_kv = 2;
    spec.head_dim = 64;
    spec.n_expert = 64;
    spec.n_ctx = 256;
    for (int used = 5; used <= 16; used += 11) { /* of a block some; nearly all */
        spec.n_expert_used = used;
        if (gen_write(&spec, path, NULL, &err)) fail_msg("%s", err.msg);
        for (int cache = TESSERA_CACHE_PREFIX; cache <= TESSERA_CACHE_DUAL; cache++) {
            const struct tessera_traffic plain = write_away(BUDGET, cache, false, text[0]),
                                         held = write_away(BUDGET, cache, true, text[1]);
            (void)write_away(UINT64_MAX, cache, true, text[2]);
            assert_memory_equal(text[1], text[0], sizeof text[0]);
            assert_memory_equal(text[2], text[0], sizeof text[0]);
            print_message("%d of 64 experts, cache %d: %.1f MB are read, without holding %.1f\n", used, cache,
                          1e-6 * (double)held.bytes_read, 1e-6 * (double)plain.bytes_read);
            assert_true(plain.bytes_read > 0);
            assert_true(held.bytes_read * 20 <= plain.bytes_read * (used == 5 ? 19 : 21));
        }
    }
}

/* Another seed is another text; a threshold of next to nothing is one pass for each block. */
static void test_ways(void **state)
{
    (void)state;
    char a[2200], b[2200];
    make_model("w", "token_choice");
    write_text("w alg=random g=24 seed=1", &opt, a, sizeof a);
    write_text("w alg=random g=24 seed=2", &opt, b, sizeof b);
    assert_string_not_equal(a, b);
    write_text("w alg=low_confidence g=24 b=8 threshold=1e-9", &opt, a, sizeof a);
    assert_memory_equal(a, "w 3 ", 4);
    write_text("w alg=low_confidence g=24 b=8 threshold=1", &opt, a, sizeof a);
    assert_memory_equal(a, "w 24 ", 5);
    /* Waste is not run: more steps than tokens. */
    write_text("w alg=low_confidence g=8 steps=100", &opt, a, sizeof a);
    assert_memory_equal(a, "w 8 ", 4);
    /* What the model is made for. */
    tessera_engine *e = must_open(&opt);
    struct tessera_sampling s;
    const struct tessera_denoising d = tessera_denoising_defaults(e, &s);
    assert_int_equal(d.alg, TESSERA_ALG_LOW_CONFIDENCE);
    assert_int_equal(d.block, 32);
    assert_true(!(s.temp > 0) && s.top_k == 0);
    assert_true(tessera_model(e).sees_both && tessera_model(e).mask == MASK);
    tessera_close(e);
}

/* ---- what must be refused ---- */

static void refused(const char *key, char type, double v, const char *text, const char *more,
                    enum status want, const char *says)
{
    struct rw r;
    struct err err;
    tessera_engine *e;
    rw_open(&r, "tests/choice/ecdlm.gguf");
    if (strcmp(key, "expert_routing")) rw_set(&r, "expert_routing", 's', 0, "expert_choice");
    if (strchr(more, 'd')) {
        rw_set(&r, "expert_choice.schedule", 's', 0, "linear");
        rw_set(&r, "expert_choice.k_max", 'u', 4, NULL);
    }
    if (!strncmp(key, "tokenizer.", 10)) set_global(&r, key, type, v);
    else rw_set(&r, key, type, v, text);
    rw_write(&r, path);
    rw_close(&r);
    const enum status s = tessera_open(&opt, &e, &err);
    if (!s) tessera_close(e);
    if (s != want || !strstr(err.msg, says)) fail_msg("%s: %d, %s", key, s, s ? err.msg : "opened");
}

static void test_bad_files(void **state)
{
    (void)state;
    refused("expert_routing", 's', 0, "coin_toss", "", ERR_UNSUPPORTED, "token_choice, expert_choice");
    refused("expert_choice.schedule", 's', 0, "square", "", ERR_UNSUPPORTED, "linear_reverse");
    refused("expert_choice.activation", 's', 0, "tanh", "", ERR_UNSUPPORTED, "sigmoid");
    refused("expert_choice.scope", 's', 0, "world", "", ERR_UNSUPPORTED, "batch");
    refused("expert_choice.scope", 'u', 1, NULL, "", ERR_SHAPE, "expert_choice.scope");
    refused("expert_choice.k", 'u', 0, NULL, "", ERR_RANGE, "1 to 6");
    refused("expert_choice.k", 'u', 7, NULL, "", ERR_RANGE, "1 to 6");
    refused("expert_choice.k_min", 'u', 5, NULL, "d", ERR_RANGE, "k_min");
    refused("expert_choice.activation", 's', 0, "pre_softmax", "d", ERR_UNSUPPORTED, "static");
    refused("expert_choice.scale", 'a', 0, "1 1 1", "", ERR_SHAPE, "list of 7");
    refused("expert_choice.scale", 'a', 0, "1 1 1 -1 1 1 1", "", ERR_RANGE, "-1 for 3");
    refused("expert_choice.scale", 'f', 1, NULL, "", ERR_SHAPE, "list of 7");
    refused("tokenizer.ggml.mask_token_id", 'u', 40, NULL, "", ERR_RANGE, "has 40 tokens");
    refused("tokenizer.ggml.mask_token_id", 0, 0, NULL, "d", ERR_MISSING, "mask_token_id");
    refused("attention.causal", 'b', 1, NULL, "", ERR_UNSUPPORTED, "both sides");
}

static void no_switch(const char *file, const char *says)
{
    struct tessera_options o = prompt_options(true);
    struct err err;
    tessera_engine *e;
    o.model_path = file;
    const enum status s = tessera_open(&o, &e, &err);
    if (!s) tessera_close(e);
    if (s != ERR_USAGE || !strstr(err.msg, says)) fail_msg("%s: %d, %s", file, s, s ? err.msg : "opened");
}

static void test_no_switch(void **state)
{
    (void)state;
    no_switch("tests/choice/ecdlm.gguf", "token by token");
    make_model("w", "expert_choice");
    no_switch(path, "choose anyway");
}

static void not_written(const char *line, int n_prompt, enum status want, const char *says)
{
    struct err err;
    tessera_engine *e = must_open(&opt);
    tessera_session *s = session(e);
    struct tessera_generator_options o = writing(line);
    tessera_generator *g;
    if (option(line, "min_p")) o.sampling.min_p = 0.1f;
    err_clear(&err);
    const enum status got = tessera_generator_open(s, ids, n_prompt, &o, &g, &err);
    if (got != want || !strstr(err.msg, says)) fail_msg("%s: %d, %s", line, got, got ? err.msg : "opened");
    assert_null(g);
    tessera_session_close(s);
    tessera_close(e);
}

static void test_bad_ways(void **state)
{
    (void)state;
    make_model("w", "token_choice");
    not_written("w alg=entropy threshold=0.5", 4, ERR_USAGE, "low_confidence and maskgit_plus");
    not_written("w alg=low_confidence top_k=5", 4, ERR_USAGE, "top-k");
    not_written("w alg=low_confidence min_p=1", 4, ERR_USAGE, "min-p");
    not_written("w alg=low_confidence cfg=1 cache=dual", 4, ERR_USAGE, "nothing to cache");
    not_written("w alg=low_confidence b=2 steps=3", 4, ERR_USAGE, "3 steps for 4 blocks");
    not_written("w alg=low_confidence threshold=1.5", 4, ERR_USAGE, "out of range");
    not_written("w alg=low_confidence g=250", 21, ERR_FULL, "written as a whole");
    not_written("w alg=low_confidence g=8", 0, ERR_RANGE, "empty");
    make_model("w block=16", "token_choice");
    not_written("w alg=low_confidence b=8 block=16", 4, ERR_USAGE, "blocks of 16");
    not_written("w alg=low_confidence block=16 cache=prefix", 4, ERR_USAGE, "blocks of 16");
    struct rw r;
    rw_open(&r, "tests/choice/ecdlm.gguf");
    set_global(&r, "tokenizer.ggml.mask_token_id", 0, 0);
    rw_write(&r, path);
    rw_close(&r);
    not_written("w alg=low_confidence", 4, ERR_MISSING, "mask_token_id");
}

/* The first layer of a model of tests/awkward under another architecture's name. */
static void one_layer_as(const char *model, const char *from, const char *to, const char *out)
{
    struct rw r;
    struct err e;
    char file[96], key[128];
    (void)snprintf(file, sizeof file, "tests/awkward/%s.gguf", model);
    rw_open(&r, file);
    for (int i = r.n - 1; i >= 0; i--)
        if ((!strncmp(r.t[i].name, "blk.", 4) && strncmp(r.t[i].name, "blk.0.", 6)) ||
            !strncmp(r.t[i].name, "rope_freqs", 10)) /* llama's only */
            rw_drop(&r, &r.t[i]);
    struct gguf_writer *w = gguf_writer_new();
    assert_non_null(w);
    gguf_put_str(w, "general.architecture", to);
    (void)snprintf(key, sizeof key, "%s.block_count", to);
    gguf_put_u32(w, key, 1);
    for (uint64_t i = 0; i < gguf_n_kv(r.g); i++) {
        struct gguf_kv kv = *gguf_kv_at(r.g, i);
        const size_t n = strlen(from);
        char name[128];
        (void)snprintf(name, sizeof name, "%.*s", (int)kv.key.n, kv.key.s);
        if (!strcmp(name, "general.architecture") || strstr(name, ".block_count")) continue;
        if (!strncmp(name, from, n) && name[n] == '.') (void)snprintf(key, sizeof key, "%s%s", to, name + n);
        else (void)snprintf(key, sizeof key, "%s", name);
        kv.key = (struct gguf_str){key, strlen(key)};
        gguf_put_kv(w, &kv);
    }
    for (int i = 0; i < r.n; i++)
        gguf_put_tensor(w, r.t[i].name, r.t[i].type, r.t[i].n_dims, r.t[i].dim, r.t[i].piece[0].bytes);
    if (gguf_writer_begin(w, out, &e)) fail_msg("%s", e.msg);
    for (int i = 0; i < r.n; i++)
        if (gguf_writer_data(w, r.t[i].piece[0].data, r.t[i].piece[0].bytes, &e)) fail_msg("%s", e.msg);
    if (gguf_writer_end(w, &e)) fail_msg("%s", e.msg);
    gguf_writer_close(w);
    rw_close(&r);
}

/* With one layer the last token sees the same from one side as from both: the architectures without a
 * reference of their own give what those give whose layers they have, and other tokens do not. */
static void test_siblings(void **state)
{
    (void)state;
    static const char *const models[][3] = {
        {"llama", "llama", "llada"}, {"qwen2", "qwen2", "dream"}, {"qwen3moe", "qwen3moe", "rnd1"}};
    static float one[2][N_IDS * 64];
    for (int i = 0; i < 3; i++) {
        int32_t x[N_IDS];
        size_t nv = 0;
        for (int m = 0; m < 2; m++) {
            struct err err;
            one_layer_as(models[i][0], models[i][1], models[i][1 + m], path);
            tessera_engine *e = must_open(&opt);
            tessera_session *s = session(e);
            nv = (size_t)tessera_model(e).n_vocab;
            assert_true(nv <= 64);
            for (int t = 0; t < N_IDS; t++) x[t] = ids[t] % (int)nv;
            const struct tessera_input in = {s, x, N_IDS, TESSERA_LOGITS_ALL};
            if (tessera_step(e, &in, 1, &err)) fail_msg("%s", err.msg);
            for (int t = 0; t < N_IDS; t++)
                memcpy(one[m] + (size_t)t * nv, tessera_logits(e, 0, t), nv * sizeof *one[m]);
            assert_int_equal(tessera_model(e).sees_both, m);
            tessera_session_close(s);
            tessera_close(e);
        }
        assert_memory_equal(one[0] + (N_IDS - 1) * nv, one[1] + (N_IDS - 1) * nv, nv * sizeof *one[0]);
        assert_memory_not_equal(one[0] + (N_IDS - 9) * nv, one[1] + (N_IDS - 9) * nv,
                                nv * sizeof *one[0]);
    }
}

/* A model that sees only what is before a token. */
static void test_other_models(void **state)
{
    (void)state;
    struct err err;
    struct gen_spec g = gen_tiny("qwen3moe", QTYPE_F16);
    bool fell_back;
    if (gen_write(&g, path, &fell_back, &err)) fail_msg("%s", err.msg);
    not_written("w alg=entropy", 4, ERR_USAGE, "token by token");
    tessera_engine *e = must_open(&opt);
    tessera_session *s = session(e);
    struct tessera_input in = {s, ids, 8, TESSERA_LOGITS_NONE};
    if (tessera_step(e, &in, 1, &err)) fail_msg("%s", err.msg);
    in = (struct tessera_input){s, ids, 2, TESSERA_LOGITS_NONE, NULL, true, 3};
    assert_int_equal(tessera_step(e, &in, 1, &err), ERR_USAGE);
    assert_int_equal(tessera_session_n(s), 8);
    tessera_session_close(s);
    tessera_close(e);
}

/* Many short texts in one step: every expert takes a token of each. */
static void test_short_texts(void **state)
{
    (void)state;
    struct err err;
    for (int k = 1; k <= 5; k += 4) {
        char line[16];
        (void)snprintf(line, sizeof line, "m k=%d", k);
        make_model(line, "expert_choice");
        tessera_engine *e = must_open(&opt);
        tessera_session *s[2] = {session(e), session(e)};
        const struct tessera_input in[2] = {{s[0], ids, 1, TESSERA_LOGITS_ALL},
                                            {s[1], ids + 1, 1, TESSERA_LOGITS_ALL}};
        struct seen seen = {.least = 9};
        tessera_observe(e, see, &seen);
        /* 12 pairs; there is room for 2 rows of k and one short text, 2 k + 6. */
        const enum status got = tessera_step(e, in, 2, &err);
        assert_int_equal(got, k == 1 ? ERR_RANGE : OK);
        if (got) assert_non_null(strstr(err.msg, "so few tokens"));
        for (int x = 0; x < E && !got; x++) assert_int_equal(seen.load[0][x], 2);
        tessera_session_close(s[0]);
        tessera_session_close(s[1]);
        tessera_close(e);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_schedules), cmocka_unit_test(test_take),
        cmocka_unit_test(test_transfers), cmocka_unit_test(test_reference),
        cmocka_unit_test(test_capacity), cmocka_unit_test(test_mutations), cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_rows),      cmocka_unit_test(test_writing),
        cmocka_unit_test(test_measure),   cmocka_unit_test(test_measure_beside),
        cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_no_switch), cmocka_unit_test(test_held),
        cmocka_unit_test(test_ways),      cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_bad_ways),  cmocka_unit_test(test_other_models),
        cmocka_unit_test(test_short_texts), cmocka_unit_test(test_siblings),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
