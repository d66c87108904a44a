/* See oracle.h. */
#include "routing/oracle.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int bits(uint64_t x) { return __builtin_popcountll(x); }

/* ---- a trie of routes ---- */

/* Routes with the same way so far lie next to each other: a node.  Node g has routes first[g] ..
 * first[g + 1] - 1 of order, and its hidden state in row g of x. */
struct trie {
    const struct oracle_model *m;
    const uint64_t *route;
    int n, n_nodes;
    int *order, *spare;        /* [n] */
    int *first, *next_first;   /* [n + 1] */
    float *x, *next, *in, *out; /* [n][n_embd] */
};

static void trie_close(struct trie *t)
{
    free(t->order);
    free(t->spare);
    free(t->first);
    free(t->next_first);
    free(t->x);
    free(t->next);
    free(t->in);
    free(t->out);
}

static bool trie_open(struct trie *t, const float *x)
{
    const size_t n = (size_t)t->n, row = (size_t)t->m->n_embd;
    t->order = calloc(n, sizeof *t->order);
    t->spare = calloc(n, sizeof *t->spare);
    t->first = calloc(n + 1, sizeof *t->first);
    t->next_first = calloc(n + 1, sizeof *t->next_first);
    t->x = malloc(n * row * sizeof *t->x);
    t->next = malloc(n * row * sizeof *t->next);
    t->in = malloc(n * row * sizeof *t->in);
    t->out = malloc(n * row * sizeof *t->out);
    if (!t->order || !t->spare || !t->first || !t->next_first || !t->x || !t->next || !t->in ||
        !t->out) return false;
    for (int i = 0; i < t->n; i++) t->order[i] = i;
    memcpy(t->x, x, row * sizeof *x);
    t->n_nodes = 1;
    t->first[1] = t->n;
    return true;
}

static float *row_of(const struct trie *t, float *x, int i)
{
    return x + (size_t)i * (size_t)t->m->n_embd;
}

/* Every node's routes, those that pass by first, keeping their order; returns how many those are. */
static int split(struct trie *t, int g, int bit)
{
    int n = 0, at = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int i = t->first[g]; i < t->first[g + 1]; i++)
            if ((t->route[t->order[i]] >> bit & 1) == (unsigned)pass) t->spare[at++] = t->order[i];
        if (!pass) n = at;
    }
    memcpy(t->order + t->first[g], t->spare, (size_t)at * sizeof *t->order);
    return n;
}

/* Goes through a unit, or past it. */
static enum status descend(struct trie *t, int unit, int bit, struct oracle_work *w, struct err *e)
{
    const size_t row = sizeof(float) * (size_t)t->m->n_embd;
    int n_run = 0, n_next = 0, at = 0;
    for (int g = 0; g < t->n_nodes; g++) {
        bool through = bit < 0;
        for (int i = t->first[g]; i < t->first[g + 1] && !through; i++)
            through = t->route[t->order[i]] >> bit & 1;
        if (through) memcpy(row_of(t, t->in, n_run++), row_of(t, t->x, g), row);
    }
    if (n_run) {
        enum status s = t->m->run(t->m->arg, unit, n_run, t->in, t->out, e);
        if (s) return s;
    }
    w->run += (uint64_t)n_run;
    for (int g = 0; g < t->n_nodes; g++) {
        const int from = t->first[g], to = t->first[g + 1];
        const int past = bit < 0 ? 0 : split(t, g, bit);
        if (past) {
            memcpy(row_of(t, t->next, n_next), row_of(t, t->x, g), row);
            t->next_first[n_next++] = from;
        }
        if (from + past < to) {
            memcpy(row_of(t, t->next, n_next), row_of(t, t->out, at++), row);
            t->next_first[n_next++] = from + past;
            w->alone += (uint64_t)(to - from - past);
        }
    }
    t->next_first[n_next] = t->n;
    t->n_nodes = n_next;
    float *x = t->x;
    int *first = t->first;
    t->x = t->next;
    t->next = x;
    t->first = t->next_first;
    t->next_first = first;
    return OK;
}

enum status oracle_evaluate(const struct oracle_model *m, const float *x, int n,
                            const uint64_t *route, double *loss, struct oracle_work *w,
                            struct err *e)
{
    struct trie t = {.m = m, .route = route, .n = n};
    double *at_end = malloc(sizeof *at_end * (size_t)(n ? n : 1));
    if (n < 1 || !at_end || !trie_open(&t, x)) {
        trie_close(&t);
        free(at_end);
        return n < 1 ? OK : err_set(e, ERR_MEMORY, "no memory for %d routes", n);
    }
    enum status s = OK;
    for (int u = 0, bit = 0; u < m->n_units && !s; u++)
        s = descend(&t, u, m->fixed[u] ? -1 : bit++, w, e);
    if (!s) s = m->loss(m->arg, t.n_nodes, t.x, at_end, e);
    for (int g = 0; g < t.n_nodes && !s; g++)
        for (int i = t.first[g]; i < t.first[g + 1]; i++) loss[t.order[i]] = at_end[g];
    w->routes += (uint64_t)n;
    trie_close(&t);
    free(at_end);
    return s;
}

/* ---- the best routes ---- */

/* Routes and their losses, growing. */
struct list {
    uint64_t *route;
    double *loss;
    int n, cap;
};

static bool add(struct list *l, uint64_t route, double loss)
{
    if (l->n == l->cap) {
        const int cap = l->cap ? 2 * l->cap : 64;
        uint64_t *r = realloc(l->route, sizeof *r * (size_t)cap);
        if (r) l->route = r;
        double *d = r ? realloc(l->loss, sizeof *d * (size_t)cap) : NULL;
        if (!d) return false;
        l->loss = d;
        l->cap = cap;
    }
    l->route[l->n] = route;
    l->loss[l->n++] = loss;
    return true;
}

static void list_free(struct list *l)
{
    free(l->route);
    free(l->loss);
}

static bool better(double a, uint64_t route_a, double b, uint64_t route_b)
{
    return a < b || (a <= b && route_a < route_b);
}

static void note(struct oracle_routes *out, uint64_t route, double loss)
{
    const int c = bits(route);
    if (!better(loss, route, out->best[c], out->route[c])) return;
    out->best[c] = loss;
    out->route[c] = route;
}

/* How many routes there are, or a number above `most`. */
static uint64_t count_routes(int n, int skips, uint64_t most)
{
    uint64_t sum = 0, c = 1;
    for (int s = 0; s <= skips && sum <= most; s++) {
        sum += c;
        c = c > most ? c : c * (uint64_t)(n - s) / (uint64_t)(s + 1);
    }
    return sum;
}

static enum status evaluate(const struct oracle_model *m, const float *x, struct list *l,
                            struct oracle_work *w, struct err *e)
{
    return oracle_evaluate(m, x, l->n, l->route, l->loss, w, e);
}

/* All routes with at most `skips` units passed by. */
static enum status try_all(const struct oracle_model *m, const float *x, int n, int skips,
                           struct list *l, struct oracle_work *w, struct err *e)
{
    const uint64_t full = ((uint64_t)1 << n) - 1;
    for (uint64_t past = 0; past <= full; past++)
        if (bits(past) <= skips && !add(l, full & ~past, 0))
            return err_set(e, ERR_MEMORY, "no memory for routes");
    return evaluate(m, x, l, w, e);
}

/* The best of `from` with s units passed by, at most `beam`, to the front of `to`. */
static bool keep_best(const struct list *from, int n, int s, int beam, struct list *to)
{
    bool *taken = calloc((size_t)from->n + 1, sizeof *taken);
    bool good = taken != NULL;
    for (int k = 0; k < beam && good; k++) {
        int best = -1;
        for (int i = 0; i < from->n; i++)
            if (!taken[i] && n - bits(from->route[i]) == s &&
                (best < 0 || better(from->loss[i], from->route[i], from->loss[best],
                                    from->route[best])))
                best = i;
        if (best < 0) break;
        taken[best] = true;
        good = add(to, from->route[best], from->loss[best]);
    }
    free(taken);
    return good;
}

/* Unit by unit: every route kept so far goes through it, or past it. */
static enum status try_beam(const struct oracle_model *m, const float *x, int n, int skips, int beam,
                            struct list *l, struct oracle_work *w, struct err *e)
{
    const uint64_t full = ((uint64_t)1 << n) - 1;
    enum status s = add(l, full, 0) ? evaluate(m, x, l, w, e) : ERR_MEMORY;
    for (int u = 0; u < n && !s; u++) {
        struct list past = {0}, kept = {0};
        bool good = true;
        for (int i = 0; i < l->n && good; i++)
            if (n - bits(l->route[i]) < skips) good = add(&past, l->route[i] & ~((uint64_t)1 << u), 0);
        if (good && past.n) s = evaluate(m, x, &past, w, e);
        for (int i = 0; i < past.n && good && !s; i++) good = add(l, past.route[i], past.loss[i]);
        for (int k = 0; k <= skips && good && !s; k++) good = keep_best(l, n, k, beam, &kept);
        list_free(&past);
        list_free(l);
        *l = kept;
        if (!good) s = ERR_MEMORY;
    }
    return s == ERR_MEMORY ? err_set(e, ERR_MEMORY, "no memory for routes") : s;
}

/* A route through c of n units. */
static uint64_t draw(struct rng *g, int n, int c)
{
    uint64_t r = 0;
    for (int left = n, want = c; left > 0; left--) {
        if ((int)rng_below(g, (uint32_t)left) >= want) continue;
        r |= (uint64_t)1 << (left - 1);
        want--;
    }
    return r;
}

/* What chance gives, at every number of units. */
static enum status try_random(const struct oracle_model *m, const float *x,
                              const struct oracle_options *o, int skips, const struct list *known,
                              struct oracle_routes *out, struct oracle_work *w, struct err *e)
{
    const int n = out->n;
    struct rng g;
    struct list l = {0};
    rng_seed(&g, o->seed);
    for (int c = n - skips; c <= n; c++)
        for (int i = 0; i < o->random; i++)
            if (!add(&l, draw(&g, n, c), 0)) {
                list_free(&l);
                return err_set(e, ERR_MEMORY, "no memory for routes");
            }
    enum status s = OK;
    if (out->all) { /* they are known: in the order of what is passed by */
        const uint64_t full = ((uint64_t)1 << n) - 1;
        for (int i = 0; i < l.n; i++) {
            int lo = 0, hi = known->n - 1;
            while (lo < hi) {
                const int mid = (lo + hi) / 2;
                if ((full & ~known->route[mid]) < (full & ~l.route[i])) lo = mid + 1;
                else hi = mid;
            }
            l.loss[i] = known->loss[lo];
        }
    } else if (l.n) {
        s = evaluate(m, x, &l, w, e);
    }
    for (int c = n - skips, at = 0; c <= n && !s && o->random; c++) {
        out->random[c] = INFINITY;
        out->mean[c] = 0;
        for (int i = 0; i < o->random; i++, at++) {
            if (l.loss[at] < out->random[c]) out->random[c] = l.loss[at];
            out->mean[c] += l.loss[at] / o->random;
        }
    }
    list_free(&l);
    return s;
}

enum status oracle_routes(const struct oracle_model *m, const float *x,
                          const struct oracle_options *o, struct oracle_routes *out,
                          struct oracle_work *w, struct err *e)
{
    struct list l = {0};
    memset(out, 0, sizeof *out);
    for (int u = 0; u < m->n_units; u++) out->n += !m->fixed[u];
    if (out->n > ORACLE_UNITS)
        return err_set(e, ERR_RANGE, "%d units to choose from; an oracle takes %d", out->n,
                       ORACLE_UNITS);
    for (int c = 0; c <= out->n; c++) out->best[c] = out->random[c] = out->mean[c] = INFINITY;
    const int skips = o->skips < 0 || o->skips > out->n ? out->n : o->skips;
    out->all = out->n < 31 && count_routes(out->n, skips, (uint64_t)o->all) <= (uint64_t)o->all;
    enum status s = out->all ? try_all(m, x, out->n, skips, &l, w, e)
                             : try_beam(m, x, out->n, skips, o->beam, &l, w, e);
    for (int i = 0; i < l.n && !s; i++) note(out, l.route[i], l.loss[i]);
    if (!s) s = try_random(m, x, o, skips, &l, out, w, e);
    list_free(&l);
    return s;
}

/* ---- sets of experts ---- */

static int64_t count_sets(int n, int k, int64_t most)
{
    int64_t c = 1;
    for (int i = 1; i <= k && c <= most; i++) c = c * (n - k + i) / i;
    return c;
}

static int compare_sets(const int32_t *a, const int32_t *b, int k)
{
    for (int i = 0; i < k; i++)
        if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
    return 0;
}

static void sort_set(int32_t *x, int k)
{
    for (int i = 1; i < k; i++)
        for (int j = i; j > 0 && x[j - 1] > x[j]; j--) {
            const int32_t t = x[j];
            x[j] = x[j - 1];
            x[j - 1] = t;
        }
}

/* Sets to try, all of n_used. */
struct sets {
    int32_t *set;
    double *loss;
    int n;
};

static enum status room(struct sets *s, int n, int k, struct err *e)
{
    s->set = malloc(sizeof *s->set * (size_t)n * (size_t)k);
    s->loss = malloc(sizeof *s->loss * (size_t)n);
    return s->set && s->loss ? OK : err_set(e, ERR_MEMORY, "no memory for sets of experts");
}

static void next_set(int32_t *x, int n, int k)
{
    int i = k - 1;
    while (i > 0 && x[i] == n - k + i) i--;
    x[i]++;
    for (int j = i + 1; j < k; j++) x[j] = x[j - 1] + 1;
}

/* Tries all of s; whether one is better than *best, which then is in set. */
static enum status try_sets(const struct oracle_sets *o, const struct sets *s, int32_t *set,
                            double *best, bool *found, struct err *e)
{
    enum status st = s->n ? o->loss(o->arg, s->n, s->set, s->loss, e) : OK;
    *found = false;
    for (int i = 0; i < s->n && !st; i++) {
        const int32_t *one = s->set + (size_t)i * (size_t)o->n_used;
        if (s->loss[i] > *best ||
            (s->loss[i] >= *best && compare_sets(one, set, o->n_used) >= 0)) continue;
        *found = true;
        *best = s->loss[i];
        memcpy(set, one, sizeof *set * (size_t)o->n_used);
    }
    return st;
}

static enum status all_sets(const struct oracle_sets *o, int n, struct sets *s, int32_t *set,
                            double *best, struct err *e)
{
    const int k = o->n_used;
    bool found;
    for (int i = 0; i < k; i++) s->set[i] = i;
    for (s->n = 1; s->n < n; s->n++) {
        int32_t *one = s->set + (size_t)s->n * (size_t)k;
        memcpy(one, one - k, sizeof *one * (size_t)k);
        next_set(one, o->n_expert, k);
    }
    return try_sets(o, s, set, best, &found, e);
}

static enum status swaps(const struct oracle_sets *o, struct sets *s, int32_t *set, double *best,
                         int64_t *tried, struct err *e)
{
    const int k = o->n_used;
    bool found = true;
    for (int r = 0; r < o->rounds && found; r++) {
        s->n = 0;
        for (int32_t x = 0; x < o->n_expert; x++) {
            bool in = false;
            for (int i = 0; i < k; i++) in = in || set[i] == x;
            for (int i = 0; i < k && !in; i++, s->n++) {
                int32_t *one = s->set + (size_t)s->n * (size_t)k;
                memcpy(one, set, sizeof *one * (size_t)k);
                one[i] = x;
                sort_set(one, k);
            }
        }
        *tried += s->n;
        enum status st = try_sets(o, s, set, best, &found, e);
        if (st) return st;
    }
    return OK;
}

static void draw_set(struct rng *g, int n, int k, int32_t *set)
{
    int at = 0;
    for (int x = 0; x < n && at < k; x++)
        if ((int)rng_below(g, (uint32_t)(n - x)) < k - at) set[at++] = x;
}

enum status oracle_experts(const struct oracle_sets *o, int32_t *set, struct oracle_set *out,
                           struct err *e)
{
    const int k = o->n_used, n_swaps = k * (o->n_expert - k);
    const int64_t n_all = count_sets(o->n_expert, k, o->all);
    struct sets s = {0};
    struct rng g;
    memset(out, 0, sizeof *out);
    out->all = n_all <= o->all;
    int most = out->all ? (int)n_all : n_swaps;
    if (o->random > most) most = o->random;
    enum status st = room(&s, most ? most : 1, k, e);
    sort_set(set, k);
    if (!st) st = o->loss(o->arg, 1, set, &out->start, e);
    out->best = out->start;
    if (!st && out->all) {
        out->tried = n_all;
        st = all_sets(o, (int)n_all, &s, set, &out->best, e);
    } else if (!st) {
        st = swaps(o, &s, set, &out->best, &out->tried, e);
    }
    rng_seed(&g, o->seed);
    for (s.n = 0; s.n < o->random && !st; s.n++)
        draw_set(&g, o->n_expert, k, s.set + (size_t)s.n * (size_t)k);
    if (!st && s.n) st = o->loss(o->arg, s.n, s.set, s.loss, e);
    out->random = INFINITY;
    for (int i = 0; i < s.n && !st; i++)
        if (s.loss[i] < out->random) out->random = s.loss[i];
    free(s.set);
    free(s.loss);
    return st;
}

/* ---- spending ---- */

/* Each token's best level at that price; the sum of what they cost. */
static double buy(const double *loss, int n_tokens, int n_levels, int first, double price, int *level)
{
    double sum = 0;
    for (int t = 0; t < n_tokens; t++) {
        const double *l = loss + (size_t)t * (size_t)n_levels;
        int best = -1;
        for (int i = 0; i < n_levels; i++)
            if (isfinite(l[i]) && (best < 0 || l[i] + price * i < l[best] + price * best)) best = i;
        level[t] = best < 0 ? 0 : best;
        sum += first + level[t];
    }
    return sum;
}

bool oracle_spend(const double *loss, int n_tokens, int n_levels, int first, double budget, int *level)
{
    double lo = 0, hi = 1;
    if (buy(loss, n_tokens, n_levels, first, 0, level) <= budget) return true;
    while (hi < 1e12 && buy(loss, n_tokens, n_levels, first, hi, level) > budget) hi *= 2;
    if (buy(loss, n_tokens, n_levels, first, hi, level) > budget) return false;
    for (int i = 0; i < 60; i++) {
        const double mid = (lo + hi) / 2;
        if (buy(loss, n_tokens, n_levels, first, mid, level) > budget) lo = mid;
        else hi = mid;
    }
    (void)buy(loss, n_tokens, n_levels, first, hi, level);
    return true;
}

/* ---- schedules ---- */

enum status oracle_schedule(const double *loss, int n_steps, int n_levels, int first, int budget,
                            int *level, struct err *e)
{
    const int most = n_steps * (n_levels - 1);
    int left = budget - n_steps * first; /* steps up from the lowest levels */
    if (left < 0)
        return err_set(e, ERR_RANGE, "%d steps of at least %d cost more than %d", n_steps, first, budget);
    left = left < most ? left : most;
    const size_t row = (size_t)left + 1;
    double *sum = malloc(sizeof *sum * 2 * row), *next = sum ? sum + row : NULL;
    int *choice = malloc(sizeof *choice * row * (size_t)n_steps);
    if (!sum || !choice) {
        free(sum);
        free(choice);
        return err_set(e, ERR_MEMORY, "no memory for a schedule of %d steps", n_steps);
    }
    for (int b = 0; b <= left; b++) sum[b] = 0;
    for (int s = 0; s < n_steps; s++) { /* sum[b]: of the steps before, with at most b */
        const double *l = loss + (size_t)s * (size_t)n_levels;
        int *at = choice + row * (size_t)s;
        for (int b = 0; b <= left; b++) {
            at[b] = 0;
            next[b] = sum[b] + l[0];
            for (int i = 1; i < n_levels && i <= b; i++)
                if (sum[b - i] + l[i] < next[b]) {
                    next[b] = sum[b - i] + l[i];
                    at[b] = i;
                }
        }
        memcpy(sum, next, sizeof *sum * row);
    }
    for (int s = n_steps - 1, b = left; s >= 0; s--) {
        level[s] = choice[row * (size_t)s + (size_t)b];
        b -= level[s];
    }
    free(sum);
    free(choice);
    return OK;
}

void oracle_draw_schedule(struct rng *g, int n_steps, int n_levels, int first, int budget, int *level)
{
    int left = budget - n_steps * first;
    for (int s = 0; s < n_steps; s++) {
        const int behind = (n_steps - s - 1) * (n_levels - 1);
        const int lo = left > behind ? left - behind : 0, hi = left < n_levels - 1 ? left : n_levels - 1;
        level[s] = lo + (int)rng_below(g, (uint32_t)(hi - lo + 1));
        left -= level[s];
    }
}
