/* Replay against a second implementation that keeps nothing but sets and the record, against limits
 * that hold for every policy, against what was published for three real traces, and the clock
 * against hand-made cases. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cli/replay_record.h"
#include "moe/base/rng.h"
#include "moe/load/trace.h"
#include "offload/replay.h"
#include "tests/shared.h"

enum { LAYERS = 4, EXPERTS = 10, USED = 2, ITEMS = LAYERS * EXPERTS, ROWS = 150, PROMPT = 20 };

struct film {
    struct trace *t;
    struct trace_events v;
    struct replay_record r;
};

static void film_make(struct film *f, struct trace *t)
{
    f->t = t;
    assert_int_equal(trace_events_make(t, &f->v, NULL), OK);
    f->r = cli_replay_record(t, &f->v);
}

static void film_free(struct film *f)
{
    trace_events_free(&f->v);
    trace_free(f->t);
}

/* A skewed walk with some memory; the first `prompt` rows are one step. */
static struct trace *walk(uint64_t seed, int prompt)
{
    struct trace *t;
    struct rng g;
    rng_seed(&g, seed);
    assert_int_equal(trace_new(LAYERS, EXPERTS, USED, 0, &t, NULL), OK);
    assert_int_equal(trace_append(t, ROWS, NULL), OK);
    for (int r = 0; r < ROWS; r++) {
        t->step[r] = r < prompt ? 0 : r;
        t->pos[r] = r;
        for (int l = 0; l < LAYERS; l++) {
            uint16_t *x = trace_experts(t, r, l);
            for (int k = 0; k < USED;) {
                x[k] = (uint16_t)rng_below(&g, EXPERTS);
                if (rng_below(&g, 3)) x[k] = (uint16_t)rng_below(&g, (uint32_t)x[k] + 1);
                if (r && rng_below(&g, 2)) x[k] = trace_experts(t, r - 1, l)[k];
                k += k == 0 || x[k] != x[0];
            }
        }
    }
    for (int l = 0; l < LAYERS; l++) t->expert_bytes[l] = 100u + 10u * (unsigned)l;
    return t;
}

/* ---- a plain replay: sets, and worth by searching the record ---- */

struct plain {
    const struct replay_record *r;
    enum policy_kind kind;
    const float *frequency;
    int slots, n;
    bool in[ITEMS];
    int pieces;                     /* routed so far */
    int piece_of[1 << 14];          /* [use] which piece it was in */
    double time_of[1 << 14];        /* [use] tokens by the end of its step */
    int rows_of[1 << 14];
    int since[ITEMS];               /* piece that brought it in */
    uint32_t upto;                  /* uses routed so far */
    uint32_t n_uses;
};

static double worth(const struct plain *p, int32_t x, double now)
{
    const struct replay_record *r = p->r;
    double sum = 0, n = 0, last = -1;
    switch (p->kind) {
    case POLICY_LRU:
        for (uint32_t u = 0; u < p->upto; u++)
            if (r->item[u] == x) last = p->piece_of[u];
        return last;
    case POLICY_LFU:
        for (uint32_t u = 0; u < p->upto; u++)
            if (r->item[u] == x && p->piece_of[u] >= p->since[x]) {
                n += r->count[u];
                last = p->piece_of[u];
            }
        return n + last * 0x1p-32;
    case POLICY_LRFU: /* the uses of a step are spread evenly over its tokens */
        for (uint32_t u = 0; u < p->upto; u++)
            for (int i = 0; r->item[u] == x && i < p->rows_of[u]; i++)
                sum += (double)r->count[u] / p->rows_of[u] *
                       exp2(-(now - (p->time_of[u] - i)) / 8);
        return sum;
    case POLICY_STATIC: return (double)p->frequency[x];
    case POLICY_MIN:
        for (uint32_t u = p->upto; u < p->n_uses; u++)
            if (r->item[u] == x) return -p->piece_of[u];
        return -1e18;
    default: fail_msg("no plain form"); return 0;
    }
}

static int32_t plain_victim(const struct plain *p, uint32_t from, int layer, double now)
{
    int32_t best = -1;
    double least = 0;
    int far = 0;
    for (int32_t x = 0; x < ITEMS; x++) {
        bool wanted = false;
        for (uint32_t u = from; u < p->upto; u++) wanted |= p->r->item[u] == x;
        if (!p->in[x] || wanted) continue;
        const double w = worth(p, x, now), tie = p->kind == POLICY_LRFU ? 1e-12 * (w + least) : 0;
        int d = (x / EXPERTS - layer + LAYERS) % LAYERS;
        if (!d) d = LAYERS;
        if (best >= 0 && (w > least + tie || (w >= least - tie && d <= far))) continue;
        best = x;
        least = w;
        far = d;
    }
    return best;
}

/* Hits of the decode steps. */
static int plain_replay(struct plain *p)
{
    const struct replay_record *r = p->r;
    int hits = 0;
    double tokens = 0;
    p->n_uses = r->first[r->n_events];
    for (int32_t s = 0; s < r->n_steps; s++) {
        tokens += r->row[s + 1] - r->row[s];
        for (int32_t e = r->event[s]; e < r->event[s + 1]; e++) {
            uint32_t piece = r->first[e + 1] - r->first[e], most = (uint32_t)p->slots / 4;
            if (r->prompt[s] && piece > most) piece = most ? most : 1;
            for (uint32_t u = r->first[e]; u < r->first[e + 1]; u++) {
                p->piece_of[u] = p->pieces + (int)((u - r->first[e]) / piece);
                p->time_of[u] = tokens;
                p->rows_of[u] = r->row[s + 1] - r->row[s];
            }
            p->pieces = p->piece_of[r->first[e + 1] - 1] + 1;
        }
    }
    for (int32_t s = 0; s < r->n_steps; s++) {
        for (int32_t e = r->event[s]; e < r->event[s + 1]; e++) {
            for (uint32_t u = r->first[e], to; u < r->first[e + 1]; u = to) {
                for (to = u; to < r->first[e + 1] && p->piece_of[to] == p->piece_of[u];) to++;
                p->upto = to;
                for (uint32_t k = u; k < to; k++) hits += !r->prompt[s] && p->in[r->item[k]];
                for (uint32_t k = u; k < to; k++) {
                    if (p->in[r->item[k]]) continue;
                    if (p->n == p->slots) {
                        p->in[plain_victim(p, u, r->layer[e], p->time_of[u])] = false;
                        p->n--;
                    }
                    p->in[r->item[k]] = true;
                    p->since[r->item[k]] = p->piece_of[k];
                    p->n++;
                }
            }
        }
    }
    return hits;
}

static struct replay_result run(const struct film *f, struct replay_options o)
{
    struct replay_result out;
    struct err e;
    err_clear(&e);
    if (replay_run(&f->r, &o, &out, &e)) fail_msg("%s", e.msg);
    return out;
}

static void test_brute_force(void **state)
{
    (void)state;
    float frequency[ITEMS];
    struct rng g;
    rng_seed(&g, 5);
    for (int i = 0; i < ITEMS; i++) frequency[i] = (float)rng_below(&g, 100);
    for (int seed = 1; seed <= 2; seed++) {
        struct film f;
        film_make(&f, walk((uint64_t)seed, seed == 1 ? PROMPT : 1));
        for (int slots = USED; slots <= ITEMS; slots += 5) {
            int64_t best = 0;
            for (int k = POLICY_MIN; k >= 0; k--) {
                if (k == POLICY_PLEC) continue;
                static struct plain p;
                memset(&p, 0, sizeof p);
                p.r = &f.r;
                p.kind = (enum policy_kind)k;
                p.frequency = frequency;
                p.slots = slots;
                const struct replay_result got = run(&f, (struct replay_options){
                    .policy = {.kind = (enum policy_kind)k, .frequency = frequency},
                    .slots = slots});
                assert_int_equal(got.hits, plain_replay(&p));
                assert_int_equal(got.uses, (ROWS - (seed == 1 ? PROMPT : 0)) * LAYERS * USED);
                assert_int_equal(got.reads, got.uses - got.hits);
                if (k == POLICY_MIN) best = got.hits;
                assert_true(got.hits <= best && best <= got.uses - got.compulsory);
            }
        }
        film_free(&f);
    }
}

/* ---- predictions ---- */

/* An oracle that is wrong in one of `wrong` guesses. */
struct seer {
    const struct film *f;
    uint32_t wrong;
    struct rng g;
};

static int see(void *arg, int32_t step, int layer, int max, int32_t *expert, float *prob)
{
    struct seer *s = arg;
    const uint16_t *x = trace_experts(s->f->t, s->f->v.row[step], layer);
    int n = 0;
    for (; n < USED && n < max; n++) {
        expert[n] = s->wrong && !rng_below(&s->g, s->wrong) ? (int32_t)rng_below(&s->g, EXPERTS)
                                                             : x[n];
        prob[n] = 0.9f;
    }
    return n;
}

/* Nobody moves fewer experts than Belady; an oracle's cache never misses; bytes add up. */
static void test_predictions(void **state)
{
    (void)state;
    struct film f;
    film_make(&f, walk(3, PROMPT));
    for (int slots = USED; slots <= ITEMS; slots += 3) {
        const struct replay_result least =
            run(&f, (struct replay_options){.policy = {.kind = POLICY_MIN}, .slots = slots});
        for (uint32_t wrong = 0; wrong < 4; wrong++) {
            for (int k = 0; k < POLICY_MIN; k++) {
                float frequency[ITEMS] = {0};
                struct seer s = {&f, wrong, {{1, 2, 3, 4}}};
                const struct replay_result got = run(&f, (struct replay_options){
                    .policy = {.kind = (enum policy_kind)k, .frequency = frequency},
                    .slots = slots, .predictor = {see, &s}, .prefetch = USED});
                assert_true(got.reads + got.ahead >= least.reads);
                assert_true(got.useful <= got.ahead && got.wasted_bytes <= got.ahead_bytes);
                assert_int_equal(got.reads, got.uses - got.hits);
                assert_int_equal(got.uploads, got.reads + got.ahead);
                if (k == POLICY_PLEC && !wrong) {
                    assert_int_equal(got.hits, got.uses);
                    assert_int_equal(got.named, got.asked);
                    assert_int_equal(got.wasted_bytes, 0);
                }
            }
        }
    }
    film_free(&f);
}

/* ---- predictive caching against its words ---- */

/* A cache as sets.  Slots are granted to the predicted experts in execution order; a wrong guess goes
 * first, then what was used longest ago, then what is predicted for the farthest turn. */
struct words {
    const struct film *f;
    int slots, n;
    bool in[ITEMS];
    int64_t due[ITEMS];     /* turn at which it is predicted to be used, 0 = not predicted */
    int64_t unwanted[ITEMS]; /* event at which it turned out to be a wrong guess, 0 = it did not */
    bool ahead[ITEMS];      /* read ahead for a turn that has not come */
    int64_t used[ITEMS];    /* event of its last use */
    int64_t event;
    int64_t hits, ahead_reads;
};

/* Smaller goes first. */
static double rank_of(const struct words *w, int32_t x)
{
    if (w->due[x]) return 1e12 - (double)w->due[x];
    if (w->unwanted[x] < 0) return -1e12; /* read for nothing */
    if (w->unwanted[x]) return (double)w->unwanted[x];
    return 1e6 + (double)w->used[x];
}

static int32_t first_to_go(const struct words *w, int layer_now)
{
    int32_t best = -1;
    int far = 0;
    for (int32_t x = 0; x < ITEMS; x++) {
        int d = (x / EXPERTS - layer_now + LAYERS) % LAYERS;
        if (!d) d = LAYERS;
        if (!w->in[x]) continue;
        if (best >= 0 && (rank_of(w, x) > rank_of(w, best) ||
                          (!(rank_of(w, x) < rank_of(w, best)) && d <= far))) continue;
        best = x;
        far = d;
    }
    return best;
}

static void fetch_ahead(struct words *w, int layer_now, const int32_t guess[][USED])
{
    for (int d = 1; d <= LAYERS; d++) {
        const int l = (layer_now + d) % LAYERS;
        if (layer_now >= 0 && l <= layer_now) continue; /* had its turn */
        for (int k = 0; k < USED; k++) {
            const int32_t x = l * EXPERTS + guess[l][k];
            if (w->in[x] || !w->due[x]) continue;
            if (w->n == w->slots) {
                const int32_t v = first_to_go(w, layer_now);
                if (!(rank_of(w, x) > rank_of(w, v))) break;
                w->in[v] = w->ahead[v] = false;
                w->n--;
            }
            w->in[x] = w->ahead[x] = true;
            w->unwanted[x] = 0;
            w->n++;
            w->ahead_reads++;
        }
    }
}

static void run_words(struct words *w, uint32_t wrong)
{
    const struct film *f = w->f;
    struct seer s = {f, wrong, {{1, 2, 3, 4}}};
    for (int step = 0; step < f->v.n_steps; step++) {
        int32_t guess[LAYERS][USED];
        float prob[USED];
        for (int l = 0; l < LAYERS; l++) {
            (void)see(&s, step, l, USED, guess[l], prob);
            for (int k = 0; k < USED; k++)
                w->due[l * EXPERTS + guess[l][k]] = 1 + step * LAYERS + l;
        }
        fetch_ahead(w, -1, guess);
        for (int l = 0; l < LAYERS; l++) {
            const uint16_t *chosen = trace_experts(f->t, step, l);
            bool now[ITEMS] = {false};
            w->event++;
            for (int k = 0; k < USED; k++) now[l * EXPERTS + chosen[k]] = true;
            for (int32_t x = 0; x < ITEMS; x++) {
                if (!now[x]) continue;
                w->hits += w->in[x];
                w->used[x] = w->event;
                w->due[x] = w->unwanted[x] = 0;
                w->ahead[x] = false;
            }
            for (int32_t x = 0; x < ITEMS; x++) {
                if (!now[x] || w->in[x]) continue;
                if (w->n == w->slots) {
                    bool kept[ITEMS];
                    memcpy(kept, w->in, sizeof kept);
                    for (int32_t y = 0; y < ITEMS; y++) w->in[y] = w->in[y] && !now[y];
                    const int32_t v = first_to_go(w, l);
                    memcpy(w->in, kept, sizeof kept);
                    w->in[v] = w->ahead[v] = false;
                    w->n--;
                }
                w->in[x] = true;
                w->n++;
            }
            for (int32_t x = l * EXPERTS; x < (l + 1) * EXPERTS; x++) {
                if (w->due[x] && w->in[x]) w->unwanted[x] = w->ahead[x] ? -1 : w->event;
                w->due[x] = 0;
                w->ahead[x] = false;
            }
            fetch_ahead(w, l, guess);
        }
    }
}

static void test_plec(void **state)
{
    (void)state;
    struct film f;
    film_make(&f, walk(8, 1));
    for (int slots = USED; slots <= ITEMS; slots += 3) {
        for (uint32_t wrong = 0; wrong < 4; wrong++) {
            static struct words w;
            struct seer s = {&f, wrong, {{1, 2, 3, 4}}};
            memset(&w, 0, sizeof w);
            w.f = &f;
            w.slots = slots;
            run_words(&w, wrong);
            const struct replay_result got = run(&f, (struct replay_options){
                .policy = {.kind = POLICY_PLEC}, .slots = slots, .predictor = {see, &s},
                .prefetch = USED});
            if (got.hits != w.hits || got.ahead != w.ahead_reads)
                fail_msg("%d slots, one in %u wrong: %d hits, %d read ahead; in words %d and %d",
                         slots, (unsigned)wrong, (int)got.hits, (int)got.ahead, (int)w.hits,
                         (int)w.ahead_reads);
        }
    }
    film_free(&f);
}

/* Recall, where it can be counted by hand: the predictor names the token's first expert only. */
static int name_one(void *arg, int32_t step, int layer, int max, int32_t *expert, float *prob)
{
    const struct film *f = arg;
    assert_true(max >= 1);
    expert[0] = trace_experts(f->t, f->v.row[step], layer)[0];
    prob[0] = 1;
    return 1;
}

static void test_recall(void **state)
{
    (void)state;
    struct film f;
    film_make(&f, walk(4, PROMPT));
    const struct replay_result got = run(&f, (struct replay_options){
        .policy = {.kind = POLICY_LRU}, .slots = 9, .predictor = {name_one, &f}});
    assert_int_equal(got.asked, got.uses);
    assert_int_equal(2 * got.named, got.asked);
    assert_int_equal(got.missed, got.uses - got.hits);
    assert_true(got.missed_named > 0 && got.missed_named < got.missed);
    assert_int_equal(got.ahead, 0);
    film_free(&f);
}

/* ---- admission ---- */

static void test_selective(void **state)
{
    (void)state;
    struct film f;
    film_make(&f, walk(6, PROMPT));
    const struct replay_result all =
        run(&f, (struct replay_options){.policy = {.kind = POLICY_LRFU}, .slots = 10});
    int64_t uploads = all.uploads;
    for (double margin = 0; margin <= 4; margin++) {
        const struct replay_result got = run(&f, (struct replay_options){
            .policy = {.kind = POLICY_LRFU, .selective = true, .margin = margin}, .slots = 10});
        assert_true(got.uploads <= uploads);
        assert_int_equal(got.uploads + got.bypassed, got.reads);
        uploads = got.uploads;
    }
    assert_true(uploads < all.uploads / 4);
    /* Belady that may refuse is no worse than one that may not. */
    const struct replay_result min =
        run(&f, (struct replay_options){.policy = {.kind = POLICY_MIN}, .slots = 10});
    const struct replay_result choosy = run(&f, (struct replay_options){
        .policy = {.kind = POLICY_MIN, .selective = true}, .slots = 10});
    assert_true(choosy.hits >= min.hits);
    film_free(&f);
}

/* ---- the clock ---- */

static int tell(void *arg, int32_t step, int layer, int max, int32_t *expert, float *prob)
{
    (void)max;
    const struct film *f = arg;
    expert[0] = trace_experts(f->t, f->v.row[step], layer)[0];
    prob[0] = 1;
    return 1;
}

/* Two layers, one expert each, 100 bytes; 10 bytes a second from disk, 50 in memory. */
static void test_clock(void **state)
{
    (void)state;
    struct trace *t;
    assert_int_equal(trace_new(2, 8, 1, 0, &t, NULL), OK);
    assert_int_equal(trace_append(t, 3, NULL), OK);
    for (int r = 0; r < 3; r++) {
        t->step[r] = r;
        t->pos[r] = r;
        for (int l = 0; l < 2; l++) trace_experts(t, r, l)[0] = (uint16_t)(r + 2 * l);
    }
    t->expert_bytes[0] = t->expert_bytes[1] = 100;
    struct film f;
    film_make(&f, t);
    struct replay_options o = {.policy = {.kind = POLICY_LRFU}, .slots = 16, .disk_rate = 10,
                               .ram_rate = 50};
    /* six reads of 10 s, each followed by 2 s of work that nothing overlaps */
    struct replay_result got = run(&f, o);
    assert_true(fabs(got.seconds - 72) < 1e-9 && fabs(got.stall - 60) < 1e-9);
    /* the second layer's read begins while the first computes: 2 s of each of its waits are hidden */
    o.predictor = (struct replay_predictor){tell, &f};
    o.prefetch = 1;
    got = run(&f, o);
    assert_int_equal(got.ahead, 3);
    assert_int_equal(got.useful, 3);
    assert_true(fabs(got.seconds - 66) < 1e-9 && fabs(got.stall - 54) < 1e-9);
    /* the slots begin full, layer by layer: experts 0 to 2 of the first and 0 and 1 of the second */
    o = (struct replay_options){.policy = {.kind = POLICY_LRFU}, .slots = 16, .filled = true};
    got = run(&f, o);
    assert_true(got.hits == 6 && got.reads == 0);
    o.slots = 5;
    o.policy = (struct policy_options){.kind = POLICY_STATIC, .frequency = (const float[16]){
        [0] = 1, [1] = 1, [2] = 1, [8] = 1, [9] = 1}}; /* they stay */
    got = run(&f, o);
    assert_true(got.hits == 3 && got.reads == 3);
    film_free(&f);
}

static void test_refused(void **state)
{
    (void)state;
    struct film f;
    struct replay_result out;
    struct err e;
    err_clear(&e);
    film_make(&f, walk(1, ROWS)); /* a prompt and nothing else */
    struct replay_options o = {.policy = {.kind = POLICY_LRU}, .slots = 10};
    assert_int_equal(replay_run(&f.r, &o, &out, &e), ERR_RANGE);
    film_free(&f);
    film_make(&f, walk(1, PROMPT));
    o.slots = USED - 1;
    assert_int_equal(replay_run(&f.r, &o, &out, NULL), ERR_RANGE);
    o.slots = USED;
    o.policy.kind = POLICY_STATIC; /* without a table */
    assert_int_equal(replay_run(&f.r, &o, &out, NULL), ERR_RANGE);
    film_free(&f);
}

/* ---- real traces ---- */

/* LRU and Belady on three real models, per cent, measured by others' simulators on the same files
 * (BigMoeOnEdge's own LRU among them); 0 = not given.  And what the default must keep to. */
static void test_real(void **state)
{
    (void)state;
    static const double share[] = {0.01, 0.05, 0.08, 0.10, 0.12, 0.18, 0.20, 0.25, 0.40, 0.50};
    enum { N = sizeof share / sizeof *share };
    static const struct { const char *file; double lru[N], min[N]; } real[] = {
        {"qwen", {0, 37.7, 44.5, 0, 56.9, 70.8, 0, 82.3, 0, 96.3},
         {0, 58.2, 69.9, 0, 79.5, 88.0, 0, 93.3, 0, 97.1}},
        {"gemma", {0, 35.4, 0, 0, 57.0, 0, 0, 79.2, 0, 0}, {0, 0, 0, 0, 78.0, 0, 0, 91.5, 0, 0}},
        {"gptoss", {0, 44.2, 0, 0, 62.3, 0, 0, 0, 0, 0}, {0, 67.9, 0, 0, 83.8, 0, 0, 0, 0, 0}},
    };
    for (int i = 0; i < 3; i++) {
        char path[512], name[64];
        struct trace *t;
        struct film f;
        (void)snprintf(name, sizeof name, "reference/traces/%s.route.csv", real[i].file);
        if (!shared_file(path, sizeof path, name)) continue;
        assert_int_equal(trace_read(path, NULL, &t, NULL), OK);
        film_make(&f, t);
        for (int k = 0; k < N; k++) {
            const int slots = (int)(share[k] * t->n_layers * t->n_experts);
            struct replay_options o = {.policy = {.kind = POLICY_LRU}, .slots = slots};
            const struct replay_result a = run(&f, o);
            o.policy.kind = POLICY_LRFU;
            const struct replay_result b = run(&f, o);
            o.policy.kind = POLICY_MIN;
            const struct replay_result c = run(&f, o);
            const double lru = 100.0 * (double)a.hits / (double)a.uses,
                         lrfu = 100.0 * (double)b.hits / (double)b.uses,
                         min = 100.0 * (double)c.hits / (double)c.uses;
            if (real[i].lru[k] > 0) assert_true(fabs(lru - real[i].lru[k]) < 0.5);
            if (real[i].min[k] > 0) assert_true(fabs(min - real[i].min[k]) < 0.7);
            assert_true(lrfu > 0 && lrfu >= lru - 2 && min >= lru && min >= lrfu);
            if (share[k] >= 0.08 && share[k] <= 0.18) assert_true(lrfu > lru);
        }
        film_free(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_brute_force), cmocka_unit_test(test_predictions),
        cmocka_unit_test(test_plec),        cmocka_unit_test(test_recall),
        cmocka_unit_test(test_selective),
        cmocka_unit_test(test_clock),       cmocka_unit_test(test_refused),
        cmocka_unit_test(test_real),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
