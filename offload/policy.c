/* What all policies share: see policy.h and, for the design, policy_int.h.
 *
 * Owns the arrays of a policy, which are one allocation.  Never decides what an item is worth: that
 * is the family's rule. */
#include "offload/policy_int.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { HALF_LIFE = 8, ITEMS_MAX = 1 << 24, LOST = -2 };

static const struct {
    const char *name;
    const struct policy_rule *rule;
} kinds[POLICY_N] = {
    [POLICY_LRU] = {"lru", &policy_rule_lru},
    [POLICY_LFU] = {"lfu", &policy_rule_lfu},
    [POLICY_LRFU] = {"lrfu", &policy_rule_lrfu},
    [POLICY_STATIC] = {"static", &policy_rule_static},
    [POLICY_PLEC] = {"plec", &policy_rule_plec},
    [POLICY_MIN] = {"min", &policy_rule_min},
};

const char *policy_name(enum policy_kind kind)
{
    return (unsigned)kind < POLICY_N ? kinds[kind].name : "unknown";
}

enum policy_kind policy_by_name(const char *name)
{
    int k = 0;
    while (k < POLICY_N && strcmp(kinds[k].name, name)) k++;
    return (enum policy_kind)k;
}

/* ---- memory ---- */

#define HEAD ((sizeof(struct policy) + 15) & ~(size_t)15) /* where the pieces begin */

/* Gives out pieces of one block; with base NULL it only counts. */
struct carve {
    char *base;
    size_t used;
};

static void *carve(struct carve *c, size_t n, size_t size)
{
    size_t at = c->used;
    c->used += (n * size + 15) & ~(size_t)15;
    return c->base ? c->base + at : NULL;
}

static void carve_all(struct policy *p, struct carve *c, const struct policy_options *o)
{
    const size_t n_layers = (size_t)o->n_layers, n = n_layers * (size_t)o->n_experts;
    p->now = carve(c, (size_t)o->n_experts, sizeof *p->now);
    p->key = carve(c, n, sizeof *p->key);
    p->score = carve(c, n, sizeof *p->score);
    p->prob = carve(c, n, sizeof *p->prob);
    p->at = carve(c, n, sizeof *p->at);
    p->pins = carve(c, n, sizeof *p->pins);
    p->flags = carve(c, n, sizeof *p->flags);
    p->slot_class = carve(c, n_layers, sizeof *p->slot_class);
    p->n_bag = carve(c, n_layers, sizeof *p->n_bag);
    p->bag = carve(c, n, sizeof *p->bag);
    p->bag_key = carve(c, n, sizeof *p->bag_key);
    p->first = carve(c, n_layers, sizeof *p->first);
    p->first_key = carve(c, n_layers, sizeof *p->first_key);
    p->lost = carve(c, n_layers, sizeof *p->lost);
    p->stirred = carve(c, n_layers, sizeof *p->stirred);
    p->n_guess = carve(c, n_layers, sizeof *p->n_guess);
    p->guess = carve(c, n, sizeof *p->guess);
    if (o->kind == POLICY_MIN)
        p->next = carve(c, o->future.first[o->future.n_events], sizeof *p->next);
}

size_t policy_memory(const struct policy_options *o)
{
    struct policy p;
    struct carve c = {NULL, HEAD};
    memset(&p, 0, sizeof p);
    carve_all(&p, &c, o);
    return c.used;
}

static enum status check_options(const struct policy_options *o, struct err *e)
{
    if ((unsigned)o->kind >= POLICY_N || o->n_layers < 1 || o->n_experts < 1 ||
        o->n_layers > ITEMS_MAX / o->n_experts)
        return err_set(e, ERR_RANGE, "a policy needs a kind, layers and experts: %d, %d x %d",
                       (int)o->kind, o->n_layers, o->n_experts);
    if (o->half_life < 0 || !(o->margin >= 0))
        return err_set(e, ERR_RANGE, "half-life and margin of a policy are at least 0");
    if (o->kind == POLICY_STATIC && !o->frequency)
        return err_set(e, ERR_RANGE, "the static policy needs a frequency table");
    if (o->kind == POLICY_MIN && (!o->future.item || !o->future.first))
        return err_set(e, ERR_RANGE, "Belady's policy needs a recorded future");
    return OK;
}

enum status policy_open(const struct policy_options *o, struct policy **out, struct err *e)
{
    *out = NULL;
    enum status s = check_options(o, e);
    if (s) return s;
    const size_t bytes = policy_memory(o);
    struct policy *p = calloc(1, bytes);
    if (!p) return err_set(e, ERR_MEMORY, "no memory for a policy of %d experts",
                           o->n_layers * o->n_experts);
    struct carve c = {(char *)p, HEAD};
    carve_all(p, &c, o);
    p->kind = o->kind;
    p->rule = kinds[o->kind].rule;
    p->n_layers = o->n_layers;
    p->n_experts = o->n_experts;
    p->half_life = o->half_life > 0 ? o->half_life : HALF_LIFE;
    p->margin = o->margin;
    p->selective = o->selective;
    p->layer = -1;
    p->one_class = true;
    p->future = o->future;
    for (int x = 0; x < o->n_layers * o->n_experts; x++) {
        p->at[x] = -1;
        p->key[x] = KEY_FIRST;
    }
    for (int l = 0; l < o->n_layers; l++) {
        p->first[l] = -1;
        p->first_key[l] = INFINITY;
        if (o->slot_class) p->slot_class[l] = o->slot_class[l];
        p->one_class = p->one_class && p->slot_class[l] == p->slot_class[0];
    }
    if (p->rule->open) p->rule->open(p, o);
    *out = p;
    return OK;
}

void policy_close(struct policy *p) { free(p); }

/* ---- the bag of a layer ---- */

static bool before(double a, int32_t item_a, double b, int32_t item_b)
{
    return a < b || (a <= b && item_a < item_b);
}

static void lose_first(struct policy *p, int layer)
{
    p->first[layer] = LOST;
    p->lost[p->n_lost++] = layer;
}

/* INFINITY of none.  Four chains, so that one comparison need not wait for the one before. */
static double least_of(const double *x, int n)
{
    double a = INFINITY, b = a, c = a, d = a;
    int i = 0;
    for (; i + 4 <= n; i += 4) {
        a = x[i] < a ? x[i] : a;
        b = x[i + 1] < b ? x[i + 1] : b;
        c = x[i + 2] < c ? x[i + 2] : c;
        d = x[i + 3] < d ? x[i + 3] : d;
    }
    for (; i < n; i++) a = x[i] < a ? x[i] : a;
    a = b < a ? b : a;
    c = d < c ? d : c;
    return c < a ? c : a;
}

/* Looks for the first item of a layer's bag again. */
static void find_first(struct policy *p, int layer)
{
    const size_t at = (size_t)layer * (size_t)p->n_experts;
    const double *key = p->bag_key + at;
    const int32_t *item = p->bag + at;
    const int n = p->n_bag[layer];
    const double least = least_of(key, n);
    int32_t best = -1;
    for (int i = 0; i < n; i++)
        if (key[i] <= least && (best < 0 || item[i] < best)) best = item[i];
    p->first[layer] = best;
    p->first_key[layer] = least;
}

/* Is item, whose key has changed or which is new, the first one now? */
static void maybe_first(struct policy *p, int layer, int32_t item)
{
    const int32_t first = p->first[layer];
    if (first == LOST) return; /* it will be looked for */
    if (first >= 0 && !before(p->key[item], item, p->first_key[layer], first)) return;
    p->first[layer] = item;
    p->first_key[layer] = p->key[item];
}

static void bag_put(struct policy *p, int layer, int32_t item)
{
    const int i = p->n_bag[layer]++;
    const size_t at = (size_t)layer * (size_t)p->n_experts + (size_t)i;
    p->bag[at] = item;
    p->bag_key[at] = p->key[item];
    p->at[item] = i;
    maybe_first(p, layer, item);
}

static void bag_take(struct policy *p, int layer, int32_t item)
{
    int32_t *bag = p->bag + (size_t)layer * (size_t)p->n_experts;
    double *key = p->bag_key + (size_t)layer * (size_t)p->n_experts;
    const int at = p->at[item], last = --p->n_bag[layer];
    bag[at] = bag[last];
    key[at] = key[last];
    p->at[bag[at]] = at;
    p->at[item] = -1;
    if (p->first[layer] == item) lose_first(p, layer);
}

/* Puts the item in its layer's bag or takes it out, as its state says. */
static void settle_in(struct policy *p, int layer, int32_t item)
{
    const bool in = p->at[item] >= 0;
    const bool should = (p->flags[item] & (ITEM_RESIDENT | ITEM_NOW)) == ITEM_RESIDENT &&
                        !p->pins[item];
    if (in == should) return;
    if (should) bag_put(p, layer, item);
    else bag_take(p, layer, item);
}

static void settle(struct policy *p, int32_t item) { settle_in(p, policy_layer_of(p, item), item); }

void policy_set_key(struct policy *p, int32_t item, double key)
{
    const double old = p->key[item];
    p->key[item] = key;
    if (p->at[item] < 0) return;
    const int layer = policy_layer_of(p, item);
    p->bag_key[(size_t)layer * (size_t)p->n_experts + (size_t)p->at[item]] = key;
    if (p->first[layer] != item) maybe_first(p, layer, item);
    else if (key > old) lose_first(p, layer);
    else p->first_key[layer] = key;
}

/* ---- what happens ---- */

/* What was guessed of this layer has been answered. */
static void forget_guesses(struct policy *p, int layer)
{
    const int32_t *guess = p->guess + (size_t)layer * (size_t)p->n_experts;
    for (int i = 0; i < p->n_guess[layer]; i++) p->prob[guess[i]] = 0;
    p->n_guess[layer] = 0;
}

void policy_step(struct policy *p, int n_rows)
{
    ASSERT(n_rows > 0);
    policy_done(p);
    p->tokens += n_rows;
    p->rows = n_rows;
    p->steps++;
    p->layer = -1;
}

void policy_route(struct policy *p, int layer, const int32_t *expert, const int32_t *count, int n)
{
    ASSERT(layer >= 0 && layer < p->n_layers && n >= 0 && n <= p->n_experts);
    policy_done(p);
    p->layer = layer;
    p->under_way = true;
    p->n_now = n;
    forget_guesses(p, layer);
    if (p->rule->route) p->rule->route(p);
    p->events++;
    for (int i = 0; i < n; i++) {
        const int32_t x = layer * p->n_experts + expert[i];
        ASSERT(expert[i] >= 0 && expert[i] < p->n_experts && !(p->flags[x] & ITEM_NOW));
        p->now[i] = x;
        p->flags[x] |= ITEM_NOW;
        settle_in(p, layer, x);
        if (p->rule->used) p->rule->used(p, x, count ? count[i] : 1);
        p->flags[x] &= (uint8_t)~ITEM_GUESS;
    }
}

void policy_done(struct policy *p)
{
    if (!p->under_way) return;
    p->under_way = false;
    /* Without a guess since its last turn nothing of the layer can have been guessed wrongly. */
    const int32_t first = p->layer * p->n_experts, n = p->stirred[p->layer] ? p->n_experts : 0;
    p->stirred[p->layer] = 0;
    for (int32_t x = first; x < first + n; x++) {
        if ((p->flags[x] & (ITEM_RESIDENT | ITEM_NOW)) != ITEM_RESIDENT) continue;
        if (!(p->flags[x] & ITEM_GUESS)) {
            if (p->rule->passed) p->rule->passed(p, x);
            continue;
        }
        p->flags[x] &= (uint8_t)~ITEM_GUESS; /* a wrong one */
        if (p->kind != POLICY_MIN) policy_set_key(p, x, KEY_FIRST);
    }
    for (int i = 0; i < p->n_now; i++) {
        p->flags[p->now[i]] &= (uint8_t)~ITEM_NOW;
        settle_in(p, p->layer, p->now[i]);
    }
}

void policy_added(struct policy *p, int32_t item, bool speculative)
{
    ASSERT(item >= 0 && item < p->n_layers * p->n_experts && !(p->flags[item] & ITEM_RESIDENT));
    p->flags[item] |= ITEM_RESIDENT;
    if (speculative && !(p->flags[item] & ITEM_NOW)) {
        p->flags[item] |= ITEM_GUESS;
        p->stirred[policy_layer_of(p, item)] = 1;
        if (p->rule->added) p->rule->added(p, item);
    }
    settle(p, item);
}

void policy_removed(struct policy *p, int32_t item)
{
    ASSERT(policy_resident(p, item) && !p->pins[item]);
    p->flags[item] &= (uint8_t)~(ITEM_RESIDENT | ITEM_GUESS);
    settle(p, item);
}

bool policy_resident(const struct policy *p, int32_t item)
{
    return p->flags[item] & ITEM_RESIDENT;
}

void policy_pin(struct policy *p, int32_t item)
{
    ASSERT(policy_resident(p, item) && p->pins[item] < UINT16_MAX);
    p->pins[item]++;
    settle(p, item);
}

void policy_unpin(struct policy *p, int32_t item)
{
    ASSERT(p->pins[item]);
    p->pins[item]--;
    settle(p, item);
}

void policy_predict(struct policy *p, int layer, const int32_t *expert, const float *prob, int n)
{
    ASSERT(layer >= 0 && layer < p->n_layers && n >= 0 && n <= p->n_experts);
    if (p->under_way && layer == p->layer) return; /* it is known by now */
    forget_guesses(p, layer);
    int32_t *guess = p->guess + (size_t)layer * (size_t)p->n_experts;
    for (int i = 0; i < n; i++) {
        const int32_t x = layer * p->n_experts + expert[i];
        const float q = prob ? prob[i] : 1.0f;
        ASSERT(expert[i] >= 0 && expert[i] < p->n_experts);
        if (!(q > 0)) break;
        if (p->prob[x] > 0) continue; /* named twice */
        p->prob[x] = q;
        p->stirred[layer] = 1;
        guess[p->n_guess[layer]++] = x;
        if (p->rule->predicted) p->rule->predicted(p, x);
    }
}

/* ---- what to do ---- */

int policy_distance(const struct policy *p, int layer)
{
    const int d = (layer - p->layer) % p->n_layers;
    return d > 0 ? d : d + p->n_layers;
}

/* Of all layers the one whose first item goes first, -1 = all bags are empty: the smallest key, on
 * ties the farthest turn, which is that of the layer at hand, then of those before it. */
static int first_layer(const struct policy *p)
{
    const int n = p->n_layers;
    const double *key = p->first_key;
    const double least = least_of(key, n);
    for (int l = p->layer; l >= 0; l--)
        if (key[l] <= least && p->n_bag[l]) return l;
    for (int l = n - 1; l > p->layer; l--)
        if (key[l] <= least && p->n_bag[l]) return l;
    return -1;
}

int32_t policy_victim(struct policy *p, int slot_class)
{
    while (p->n_lost) find_first(p, p->lost[--p->n_lost]);
    if (slot_class < 0 || (p->one_class && slot_class == p->slot_class[0])) {
        const int l = first_layer(p);
        return l < 0 ? -1 : p->first[l];
    }
    int best = -1;
    for (int l = 0; l < p->n_layers; l++) {
        if (!p->n_bag[l] || p->slot_class[l] != slot_class) continue;
        if (best >= 0 && (p->first_key[best] < p->first_key[l] ||
                          (p->first_key[best] <= p->first_key[l] &&
                           policy_distance(p, best) > policy_distance(p, l)))) continue;
        best = l;
    }
    return best < 0 ? -1 : p->first[best];
}

bool policy_admits(const struct policy *p, int32_t item, int32_t victim)
{
    return !p->selective || !p->rule->admits || p->rule->admits(p, item, victim);
}

int32_t policy_prefetch(struct policy *p, const int *free_slots, int32_t *victim)
{
    for (int d = 1; d <= p->n_layers; d++) {
        const int l = (p->layer + d) % p->n_layers, cls = p->slot_class[l];
        const int32_t *guess = p->guess + (size_t)l * (size_t)p->n_experts;
        int32_t v = -2; /* not looked for yet */
        for (int i = 0; i < p->n_guess[l]; i++) {
            if (p->flags[guess[i]] & ITEM_RESIDENT) continue;
            *victim = -1;
            if (free_slots && free_slots[cls] > 0) return guess[i];
            if (v == -2) v = policy_victim(p, cls);
            if (v < 0) break;
            *victim = v;
            if (p->rule->displaces ? p->rule->displaces(p, guess[i], v) : !policy_is_due(p, v))
                return guess[i];
            break; /* the others of this layer are less likely */
        }
    }
    *victim = -1;
    return -1;
}
