/* Residency policies against brute force: a second implementation that keeps the whole history and
 * searches it at every eviction, an exhaustive search for the optimum, and the rules that no policy
 * may break. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "moe/base/rng.h"
#include "offload/policy.h"

enum { LAYERS = 5, EXPERTS = 12, ITEMS = LAYERS * EXPERTS, USED = 3, STEPS = 120,
       EVENTS = STEPS * LAYERS,
       WIDE = 80, WIDE_ITEMS = LAYERS * WIDE, WIDE_STEPS = 36 }; /* more than a list holds */

/* ---- a synthetic record: skewed, with some memory ---- */

struct record {
    int n_events, n_layers, n_experts, used;
    int32_t item[EVENTS * USED];
    uint32_t first[EVENTS + 1];
};

static void make_record(struct record *r, uint64_t seed, int n_layers, int n_experts, int used,
                        int n_steps)
{
    struct rng g;
    rng_seed(&g, seed);
    r->n_layers = n_layers;
    r->n_experts = n_experts;
    r->used = used;
    r->n_events = 0;
    r->first[0] = 0;
    for (int t = 0; t < n_steps; t++) {
        for (int l = 0; l < n_layers; l++) {
            int32_t *to = r->item + r->first[r->n_events];
            for (int k = 0; k < used;) {
                int x = (int)rng_below(&g, (uint32_t)n_experts);
                if (rng_below(&g, 3)) x = (int)rng_below(&g, (uint32_t)x + 1);
                if (t && !rng_below(&g, 3)) x = to[k - n_layers * used] % n_experts;
                int32_t item = l * n_experts + x;
                bool twice = false;
                for (int i = 0; i < k; i++) twice |= to[i] == item;
                if (!twice) to[k++] = item;
            }
            r->n_events++;
            r->first[r->n_events] = r->first[r->n_events - 1] + (uint32_t)used;
        }
    }
}

/* ---- the reference: no clock but the history itself ---- */

struct brute {
    const struct record *r;
    enum policy_kind kind;
    const float *frequency;
    double half_life;
    int now;                /* event under way */
    bool resident[WIDE_ITEMS];
    int since[WIDE_ITEMS];       /* event that brought it in */
};

static bool uses(const struct record *r, int event, int32_t x)
{
    for (uint32_t u = r->first[event]; u < r->first[event + 1]; u++)
        if (r->item[u] == x) return true;
    return false;
}

/* What this item is worth now, by the definition of the policy. */
static double worth(const struct brute *b, int32_t x)
{
    const struct record *r = b->r;
    double sum = 0;
    int last = -1, n = 0;
    switch (b->kind) {
    case POLICY_LRU:
        for (int e = 0; e <= b->now; e++) last = uses(r, e, x) ? e : last;
        return last;
    case POLICY_LFU:
        for (int e = b->since[x]; e <= b->now; e++)
            if (uses(r, e, x)) {
                n++;
                last = e;
            }
        return n + last * 0x1p-32;
    case POLICY_LRFU:
        for (int e = 0; e <= b->now; e++)
            if (uses(r, e, x))
                sum += exp2(-(b->now / r->n_layers - e / r->n_layers) / b->half_life);
        return sum;
    case POLICY_STATIC: return (double)b->frequency[x];
    case POLICY_MIN:
        for (int e = b->now + 1; e < r->n_events; e++)
            if (uses(r, e, x)) return -e;
        return -INFINITY;
    default: return 0;
    }
}

static int32_t brute_victim(const struct brute *b)
{
    const int L = b->r->n_layers, layer = b->now % L;
    int32_t best = -1;
    double least = 0;
    int far = 0;
    for (int32_t x = 0; x < L * b->r->n_experts; x++) {
        if (!b->resident[x] || uses(b->r, b->now, x)) continue;
        const double w = worth(b, x);
        int d = (x / b->r->n_experts - layer + L) % L;
        if (!d) d = L;
        /* sums of powers in another order differ by rounding: call those equal */
        const double tie = b->kind == POLICY_LRFU ? 1e-12 * (least + w) : 0;
        if (best < 0 || w < least - tie || (w <= least + tie && d > far)) {
            best = x;
            least = w;
            far = d;
        }
    }
    return best;
}

/* Runs a record through policy and reference side by side; every victim must agree. */
static int run_both(const struct record *r, enum policy_kind kind, int slots,
                    const float *frequency, int *hits)
{
    static struct brute b;
    memset(&b, 0, sizeof b);
    b = (struct brute){.r = r, .kind = kind, .frequency = frequency, .half_life = 8};
    struct policy_options o = {.kind = kind, .n_layers = r->n_layers, .n_experts = r->n_experts,
                               .frequency = frequency,
                               .future = {r->item, r->first, (uint32_t)r->n_events}};
    struct policy *p;
    struct err e;
    err_clear(&e);
    assert_true(policy_open(&o, &p, &e) == OK);
    int n = 0, bad = 0;
    *hits = 0;
    for (int ev = 0; ev < r->n_events; ev++) {
        int32_t expert[USED];
        for (int k = 0; k < r->used; k++) expert[k] = r->item[ev * r->used + k] % r->n_experts;
        if (ev % r->n_layers == 0) policy_step(p, 1);
        b.now = ev;
        policy_route(p, ev % r->n_layers, expert, NULL, r->used);
        for (int k = 0; k < r->used; k++) {
            const int32_t x = r->item[ev * r->used + k];
            assert_true(policy_resident(p, x) == b.resident[x]);
            if (policy_resident(p, x)) {
                ++*hits;
                continue;
            }
            if (n == slots) {
                const int32_t v = policy_victim(p, -1), w = brute_victim(&b);
                bad += v != w;
                if (v < 0) break;
                assert_true(!uses(r, ev, v));
                policy_removed(p, v);
                b.resident[v] = false;
                n--;
            }
            policy_added(p, x, false);
            b.resident[x] = true;
            b.since[x] = ev;
            n++;
        }
        policy_done(p);
    }
    policy_close(p);
    return bad;
}

static void test_brute_force(void **state)
{
    (void)state;
    static struct record r;
    float frequency[ITEMS];
    for (int seed = 1; seed <= 3; seed++) {
        make_record(&r, (uint64_t)seed, LAYERS, EXPERTS, USED, STEPS);
        memset(frequency, 0, sizeof frequency);
        for (int u = 0; u < 60 * LAYERS * USED; u++) frequency[r.item[u]]++;
        for (int slots = USED; slots <= ITEMS; slots += 8) {
            int best, hits;
            assert_int_equal(run_both(&r, POLICY_MIN, slots, NULL, &best), 0);
            for (int k = POLICY_LRU; k <= POLICY_STATIC; k++) {
                assert_int_equal(run_both(&r, (enum policy_kind)k, slots, frequency, &hits), 0);
                assert_true(hits <= best);
            }
        }
    }
}

static void test_many(void **state)
{
    (void)state;
    static struct record r;
    static float frequency[WIDE_ITEMS];
    make_record(&r, 7, LAYERS, WIDE, USED, WIDE_STEPS);
    for (uint32_t u = 0; u < r.first[r.n_events]; u += 2) frequency[r.item[u]]++; /* many are equal */
    for (int slots = 90; slots <= 230; slots += 70)
        for (int k = 0; k < POLICY_N; k++) {
            int hits;
            if (k == POLICY_PLEC) continue;
            assert_int_equal(run_both(&r, (enum policy_kind)k, slots, frequency, &hits), 0);
        }
}

/* ---- the optimum, by trying everything ---- */

static int optimum(const struct record *r, int slots, int event, unsigned resident)
{
    if (event == r->n_events) return 0;
    unsigned want = 0;
    int hits = 0, n = 0;
    for (int k = 0; k < r->used; k++) {
        const unsigned bit = 1u << r->item[event * r->used + k];
        hits += (resident & bit) != 0;
        want |= bit;
    }
    const unsigned all = resident | want;
    for (unsigned m = all; m; m &= m - 1) n++;
    if (n <= slots) return hits + optimum(r, slots, event + 1, all);
    int best = 0;
    for (unsigned out = all & ~want; out; out = (out - 1) & (all & ~want)) {
        int gone = 0;
        for (unsigned m = out; m; m &= m - 1) gone++;
        if (gone != n - slots) continue;
        const int h = hits + optimum(r, slots, event + 1, all & ~out);
        if (h > best) best = h;
    }
    return best;
}

static void test_min_is_optimal(void **state)
{
    (void)state;
    static struct record r;
    for (int seed = 1; seed <= 40; seed++) {
        make_record(&r, (uint64_t)seed, 2, 4, 2, 5);
        for (int slots = 2; slots <= 6; slots++) {
            int hits;
            assert_int_equal(run_both(&r, POLICY_MIN, slots, NULL, &hits), 0);
            assert_int_equal(hits, optimum(&r, slots, 0, 0));
        }
    }
}

/* ---- what no policy may do ---- */

static struct policy *open_kind(enum policy_kind kind, const struct record *r, const float *freq)
{
    const uint8_t classes[LAYERS] = {0, 1, 0, 1, 2};
    struct policy_options o = {.kind = kind, .n_layers = LAYERS, .n_experts = EXPERTS,
                               .slot_class = classes, .frequency = freq,
                               .future = {r->item, r->first, (uint32_t)r->n_events}};
    struct policy *p;
    assert_true(policy_open(&o, &p, NULL) == OK);
    assert_true(policy_memory(&o) > ITEMS * sizeof(double));
    return p;
}

/* Random calls in any order: residency as told, victims never pinned nor of the event, classes
 * kept, prefetch only what was predicted and is absent. */
static void test_invariants(void **state)
{
    (void)state;
    static struct record r;
    float freq[ITEMS];
    for (int i = 0; i < ITEMS; i++) freq[i] = (float)(i * 7 % 13);
    make_record(&r, 9, LAYERS, EXPERTS, USED, STEPS);
    for (int k = 0; k < POLICY_N; k++) {
        struct policy *p = open_kind((enum policy_kind)k, &r, freq);
        struct rng g;
        rng_seed(&g, (uint64_t)k);
        int pins[ITEMS] = {0}, event = -1;
        bool in[ITEMS] = {0}, guess[ITEMS] = {0};
        for (int i = 0; i < 40000; i++) {
            const int32_t x = (int32_t)rng_below(&g, ITEMS);
            int32_t expert[3] = {x % EXPERTS, (x + 1) % EXPERTS, (x + 5) % EXPERTS}, v;
            float prob[3] = {0.9f, 0.5f, 0.1f};
            switch (rng_below(&g, 8)) {
            case 0:
                if (event >= 0 && x % 3 == 0) policy_done(p);
                if (x % 9 == 0) policy_step(p, 1 + x % 2);
                event = x / EXPERTS;
                policy_route(p, event, expert, NULL, 3);
                memset(guess + event * EXPERTS, 0, EXPERTS);
                break;
            case 1:
                if (in[x] && !pins[x]) policy_removed(p, x);
                else if (!in[x]) policy_added(p, x, x & 1);
                in[x] = !in[x] || pins[x];
                break;
            case 2:
                if (in[x] && pins[x] < 3) policy_pin(p, x), pins[x]++;
                break;
            case 3:
                if (pins[x]) policy_unpin(p, x), pins[x]--;
                break;
            case 4:
                if (x / EXPERTS == event) break;
                policy_predict(p, x / EXPERTS, expert, prob, 3);
                memset(guess + x / EXPERTS * EXPERTS, 0, EXPERTS);
                for (int j = 0; j < 3; j++) guess[x / EXPERTS * EXPERTS + expert[j]] = true;
                break;
            case 5:
                policy_done(p);
                event = -1;
                break;
            case 6: {
                const int want = x % 4 - 1;
                const uint8_t classes[LAYERS] = {0, 1, 0, 1, 2};
                v = policy_victim(p, want);
                if (v < 0) break;
                assert_true(in[v] && !pins[v]);
                assert_true(want < 0 || classes[v / EXPERTS] == want);
                break;
            }
            default: {
                int room[256] = {x % 2, x % 3 == 0, 0};
                const int32_t y = policy_prefetch(p, room, &v);
                if (y < 0) break;
                assert_true(guess[y] && !in[y]);
                assert_true(v < 0 || (in[v] && !pins[v]));
                break;
            }
            }
            assert_true(policy_resident(p, x) == in[x]);
        }
        policy_close(p);
    }
}

/* Everything pinned, or wanted now: there is no victim. */
static void test_no_victim(void **state)
{
    (void)state;
    static struct record r;
    make_record(&r, 1, LAYERS, EXPERTS, USED, 2);
    struct policy *p = open_kind(POLICY_LRFU, &r, NULL);
    const int32_t expert[2] = {3, 4};
    policy_step(p, 1);
    assert_int_equal(policy_victim(p, -1), -1);
    policy_route(p, 1, expert, NULL, 2);
    policy_added(p, EXPERTS + 3, false);
    policy_added(p, EXPERTS + 4, false);
    assert_int_equal(policy_victim(p, -1), -1);
    policy_pin(p, EXPERTS + 4);
    policy_done(p);
    assert_int_equal(policy_victim(p, -1), EXPERTS + 3);
    assert_int_equal(policy_victim(p, 0), -1); /* layer 1 is of class 1 */
    policy_removed(p, EXPERTS + 3);
    assert_int_equal(policy_victim(p, -1), -1);
    policy_unpin(p, EXPERTS + 4);
    assert_int_equal(policy_victim(p, 1), EXPERTS + 4);
    policy_close(p);
}

/* A newcomer needs twice its victim's heat when the margin is 1. */
static void test_admission(void **state)
{
    (void)state;
    struct policy_options o = {.kind = POLICY_LRFU, .n_layers = 1, .n_experts = 8,
                               .selective = true, .margin = 1};
    struct policy *p;
    const int32_t a = 0, b = 1;
    assert_true(policy_open(&o, &p, NULL) == OK);
    for (int i = 0; i < 4; i++) {
        policy_step(p, 1);
        policy_route(p, 0, &a, NULL, 1);
        if (!i) policy_added(p, 0, false);
        policy_done(p);
    }
    bool admitted = false;
    int uses_needed = 0;
    while (!admitted && uses_needed < 100) {
        policy_step(p, 1);
        policy_route(p, 0, &b, NULL, 1);
        admitted = policy_admits(p, 1, policy_victim(p, -1));
        policy_done(p);
        uses_needed++;
    }
    /* sum over n uses of b, twice that of a's four, n tokens ago: first true for n = 4 */
    double q = exp2(-1.0 / 8), hot = 0, cold = 0;
    int n = 0;
    for (int i = 0; i < 4; i++) cold += pow(q, i);
    while (hot < 2 * cold) {
        hot = hot * q + 1;
        cold *= q;
        n++;
    }
    assert_int_equal(uses_needed, n);
    policy_close(p);
}

/* Predictive caching: grants in execution order, wrong guesses leave first. */
static void test_plec(void **state)
{
    (void)state;
    struct policy_options o = {.kind = POLICY_PLEC, .n_layers = 3, .n_experts = 8};
    struct policy *p;
    assert_true(policy_open(&o, &p, NULL) == OK);
    const int32_t l0[3] = {0, 1, 2}, l1[2] = {0, 1};
    int room[256] = {4};
    int32_t v, got[5], want[4] = {0, 1, 2, 8};
    policy_step(p, 1);
    policy_predict(p, 1, l1, NULL, 2);
    policy_predict(p, 0, l0, NULL, 3);
    for (int i = 0; i < 4; i++) {
        got[i] = policy_prefetch(p, room, &v);
        assert_int_equal(got[i], want[i]); /* demands 3 and 2 with 4 slots: 3 and 1 */
        assert_int_equal(v, -1);
        policy_added(p, got[i], true);
        room[0]--;
    }
    assert_int_equal(policy_prefetch(p, room, &v), -1); /* layer 1's second waits for a slot */
    const int32_t chosen[1] = {1};
    policy_route(p, 0, chosen, NULL, 1);
    policy_done(p);
    assert_int_equal(policy_prefetch(p, room, &v), 9); /* now layer 0's wrong guess makes room */
    assert_int_equal(v, 0);
    policy_removed(p, 0);
    policy_added(p, 9, true);
    assert_int_equal(policy_victim(p, -1), 2); /* the other wrong guess */
    policy_removed(p, 2);
    assert_int_equal(policy_victim(p, -1), 1); /* then what has had its turn */
    policy_removed(p, 1);
    assert_int_equal(policy_victim(p, -1), 8); /* then what is wanted */
    policy_close(p);
}

/* What is predicted stays although it is coldest, until its turn has passed it by. */
static void test_foresight(void **state)
{
    (void)state;
    struct policy_options o = {.kind = POLICY_LRFU, .n_layers = 2, .n_experts = 8};
    struct policy *p;
    const int32_t cold = 0, warm = 1, other = 5;
    const float sure = 0.9f, hardly = 0.001f;
    assert_true(policy_open(&o, &p, NULL) == OK);
    policy_step(p, 1);
    policy_route(p, 0, &cold, NULL, 1);
    policy_added(p, 0, false);
    for (int i = 0; i < 5; i++) {
        policy_step(p, 1);
        policy_route(p, 0, &warm, NULL, 1);
        if (!i) policy_added(p, 1, false);
    }
    policy_step(p, 1);
    assert_int_equal(policy_victim(p, -1), 0);
    policy_predict(p, 0, &cold, &hardly, 1); /* less than its own past promises: no change */
    assert_int_equal(policy_victim(p, -1), 0);
    policy_predict(p, 0, &cold, &sure, 1);
    assert_int_equal(policy_victim(p, -1), 1);
    int32_t v;
    policy_predict(p, 1, &other, &sure, 1); /* worth the warm one, not what is surely wanted */
    assert_int_equal(policy_prefetch(p, NULL, &v), 8 + 5);
    assert_int_equal(v, 1);
    policy_predict(p, 1, &other, &hardly, 1);
    assert_int_equal(policy_prefetch(p, NULL, &v), -1);
    policy_route(p, 0, &warm, NULL, 1);
    policy_done(p);
    assert_int_equal(policy_victim(p, -1), 0);
    policy_close(p);
}

static void test_refused(void **state)
{
    (void)state;
    struct policy *p;
    struct err e;
    err_clear(&e);
    struct policy_options o = {.kind = POLICY_STATIC, .n_layers = 2, .n_experts = 2};
    assert_true(policy_open(&o, &p, &e) == ERR_RANGE && !p && strstr(e.msg, "frequency"));
    o.kind = POLICY_MIN;
    assert_true(policy_open(&o, &p, NULL) == ERR_RANGE);
    o.kind = POLICY_LRU;
    o.n_layers = 0;
    assert_true(policy_open(&o, &p, NULL) == ERR_RANGE);
    assert_int_equal(policy_by_name("lrfu"), POLICY_LRFU);
    assert_int_equal(policy_by_name("nonsense"), POLICY_N);
    assert_true(!strcmp(policy_name(POLICY_MIN), "min"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_brute_force), cmocka_unit_test(test_many), cmocka_unit_test(test_min_is_optimal),
        cmocka_unit_test(test_invariants),  cmocka_unit_test(test_no_victim),
        cmocka_unit_test(test_admission),   cmocka_unit_test(test_plec),
        cmocka_unit_test(test_foresight), cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
