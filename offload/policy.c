/* What all policies share: see policy.h and, for the design, policy_int.h.
 *
 * Owns the arrays of a policy, which are one allocation.  Never decides what an item is worth: that
 * is the family's rule. */
#include "offload/policy_int.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { HALF_LIFE = 8, ITEMS_MAX = 1 << 24, CLASSES_MAX = 256 };

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

/* Numbers the classes by their first layers; class_of [n_layers] NULL = only counts them. */
static int number_classes(const struct policy_options *o, uint8_t *class_of)
{
    int n = 0;
    int16_t number[CLASSES_MAX];
    for (int k = 0; k < CLASSES_MAX; k++) number[k] = -1;
    for (int l = 0; l < o->n_layers; l++) {
        const int k = o->slot_class ? o->slot_class[l] : 0;
        if (number[k] < 0) number[k] = (int16_t)n++;
        if (class_of) class_of[l] = (uint8_t)number[k];
    }
    return n;
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
    p->class_of = carve(c, n_layers, sizeof *p->class_of);
    p->n_classes = number_classes(o, c->base ? p->class_of : NULL);
    p->cls = carve(c, (size_t)p->n_classes, sizeof *p->cls);
    int32_t *bag = carve(c, n, sizeof *bag);
    const bool rises = kinds[o->kind].rule->rises;
    struct policy_entry *list = carve(c, (size_t)p->n_classes * LIST_MAX + (rises ? 2 * n : 0), sizeof *list);
    for (int k = 0; k < p->n_classes && c->base; k++) {
        p->cls[k] = (struct policy_class){.bag = bag, .list = list,
                                          .bound = rises ? INFINITY : -INFINITY};
        for (int l = 0; l < o->n_layers; l++) {
            if (p->class_of[l] != k) continue;
            p->cls[k].slot_class = o->slot_class ? o->slot_class[l] : 0;
            p->cls[k].n_items += o->n_experts;
        }
        p->cls[k].most = LIST_MAX + (rises ? 2 * p->cls[k].n_items : 0);
        bag += p->cls[k].n_items;
        list += p->cls[k].most;
    }
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
    p->whole = p->rule->rises;
    p->layer = -1;
    p->future = o->future;
    for (int x = 0; x < o->n_layers * o->n_experts; x++) p->key[x] = KEY_FIRST;
    for (int l = 0; l < o->n_layers && o->slot_class; l++) p->slot_class[l] = o->slot_class[l];
    if (p->rule->open) p->rule->open(p, o);
    *out = p;
    return OK;
}

void policy_close(struct policy *p) { free(p); }

/* ---- bags and lists ---- */

/* By key, and item. */
static bool is_less(const struct policy_entry *a, const struct policy_entry *b)
{
    return a->key < b->key || (a->key <= b->key && a->item < b->item);
}

static bool is_true(const struct policy *p, const struct policy_entry *x)
{
    return policy_is_free(p, x->item) && p->key[x->item] <= x->key && p->key[x->item] >= x->key;
}

/* Makes room in a full list: what is not true goes; then, if it must be, the later half, and the bound
 * comes down. */
static void shorten(struct policy *p, struct policy_class *c)
{
    int n = 0;
    for (int i = c->head; i < c->end; i++) {
        if (is_true(p, &c->list[i])) c->list[n++] = c->list[i];
        else p->flags[c->list[i].item] &= (uint8_t)~ITEM_LISTED;
    }
    c->head = 0;
    c->end = n;
    if (n < c->most) return;
    for (n = c->most / 2; n > 0 && c->list[n - 1].key >= c->list[n].key;) n--;
    for (int i = n; i < c->end; i++) p->flags[c->list[i].item] &= (uint8_t)~ITEM_LISTED;
    c->end = n;
    c->bound = n ? c->list[n - 1].key : -INFINITY;
    c->tied = false;
}

void policy_list(struct policy *p, struct policy_class *c, int32_t item, int layer)
{
    const double key = p->key[item];
    if (p->flags[item] & ITEM_LISTED) return;
    if (c->end == c->most) shorten(p, c);
    if (key > c->bound || (c->tied && key >= c->bound)) return;
    int i;
    const struct policy_entry one = {key, item, layer};
    if (c->head && key < c->list[(c->head + c->end) / 2].key) {
        i = --c->head; /* what comes before it moves */
        for (; i + 1 < c->end && is_less(&c->list[i + 1], &one); i++) c->list[i] = c->list[i + 1];
    } else {
        i = c->end++;
        for (; i > c->head && is_less(&one, &c->list[i - 1]); i--) c->list[i] = c->list[i - 1];
    }
    c->list[i] = one;
    p->flags[item] |= ITEM_LISTED;
}

/* The least n of x [m] come to its front, in no order. */
static void least_first(struct policy_entry *x, int m, int n)
{
    for (int lo = 0, hi = m - 1; lo < hi;) {
        const double pivot = x[(lo + hi) / 2].key;
        int i = lo, j = hi;
        while (i <= j) {
            while (x[i].key < pivot) i++;
            while (x[j].key > pivot) j--;
            if (i > j) break;
            const struct policy_entry t = x[i];
            x[i++] = x[j];
            x[j--] = t;
        }
        if (n <= j) hi = j;
        else if (n >= i) lo = i;
        else return;
    }
}

/* A key that about LIST_NEW items of a bag lie below, by a sample; INFINITY when they all find room. */
static double likely_limit(const struct policy *p, const struct policy_class *c)
{
    enum { SAMPLE = 48 };
    double least[SAMPLE];
    if (c->n_bag <= LIST_MAX) return INFINITY;
    const int keep = 1 + SAMPLE * LIST_NEW / c->n_bag;
    for (int k = 0; k < keep; k++) least[k] = INFINITY;
    for (int k = 0; k < SAMPLE; k++) {
        const double key = p->key[c->bag[(int64_t)k * c->n_bag / SAMPLE]];
        int i = keep - 1;
        if (key >= least[i]) continue;
        for (; i > 0 && least[i - 1] > key; i--) least[i] = least[i - 1];
        least[i] = key;
    }
    return least[keep - 1];
}

/* Free items with a key below the limit, which comes down where they are too many; returns how many. */
static int collect(const struct policy *p, const struct policy_class *c, double *upto)
{
    double limit = *upto;
    struct policy_entry *x = c->list;
    int n = 0;
    for (int i = 0; i < c->n_bag; i++) {
        const int32_t item = c->bag[i];
        x[n] = (struct policy_entry){p->key[item], item, 0};
        n += policy_is_free(p, item) & (x[n].key < limit);
        if (n < LIST_MAX) continue;
        least_first(x, n, LIST_NEW);
        limit = x[0].key;
        for (n = 1; n < LIST_NEW; n++) limit = x[n].key > limit ? x[n].key : limit;
    }
    for (int i = 0; i < n;) { /* others may have the same key as the last ones */
        if (x[i].key < limit) i++;
        else x[i] = x[--n];
    }
    *upto = limit;
    return n;
}

/* Makes the list anew. */
static void make_list(struct policy *p, struct policy_class *c)
{
    struct policy_entry *x = c->list;
    for (int i = c->head; i < c->end; i++) p->flags[x[i].item] &= (uint8_t)~ITEM_LISTED;
    double limit = likely_limit(p, c);
    int n = collect(p, c, &limit);
    if (!n && limit < INFINITY) {
        limit = INFINITY;
        n = collect(p, c, &limit);
    }
    for (int k = 1; k < n; k++) {
        const struct policy_entry one = x[k];
        int i = k;
        for (; i > 0 && is_less(&one, &x[i - 1]); i--) x[i] = x[i - 1];
        x[i] = one;
    }
    for (int i = 0; i < n; i++) {
        p->flags[x[i].item] |= ITEM_LISTED;
        x[i].layer = policy_layer_of(p, x[i].item);
    }
    c->head = 0;
    c->end = n;
    c->tied = !n && limit < INFINITY;
    c->bound = n ? x[n - 1].key : c->tied ? limit : -INFINITY;
}

/* Does a go before b? */
static bool before(const struct policy *p, const struct policy_entry *a, const struct policy_entry *b)
{
    if (a->key < b->key || a->key > b->key) return a->key < b->key;
    if (a->layer == b->layer) return a->item < b->item;
    return policy_distance(p, a->layer) > policy_distance(p, b->layer);
}

/* Of free items with the key `bound` the one that goes first; item -1 = none. */
static struct policy_entry first_tied(const struct policy *p, const struct policy_class *c)
{
    for (int d = 0; d < p->n_layers; d++) {
        const int l = (p->layer < 0 ? p->n_layers - 1 : p->layer) - d, layer = l < 0 ? l + p->n_layers : l;
        if (&p->cls[p->class_of[layer]] != c) continue;
        for (int32_t x = layer * p->n_experts; x < (layer + 1) * p->n_experts; x++)
            if (policy_is_free(p, x) && p->key[x] <= c->bound)
                return (struct policy_entry){c->bound, x, layer};
    }
    return (struct policy_entry){INFINITY, -1, 0};
}

static struct policy_entry first_of(struct policy *p, struct policy_class *c)
{
    for (; c->head < c->end && !is_true(p, &c->list[c->head]); c->head++)
        p->flags[c->list[c->head].item] &= (uint8_t)~ITEM_LISTED;
    struct policy_entry best = {INFINITY, -1, 0};
    for (int pass = 0; c->head == c->end; pass++) {
        if (c->tied && (best = first_tied(p, c)).item >= 0) return best;
        if (pass) return best; /* nothing is free */
        make_list(p, c);
    }
    best = c->list[c->head];
    for (int i = c->head + 1; i < c->end && c->list[i].key <= best.key; i++) /* of one layer: in order */
        if (c->list[i].layer != best.layer && before(p, &c->list[i], &best) && is_true(p, &c->list[i]))
            best = c->list[i];
    return best;
}

/* Lists are short from now on. */
static void keep_short(struct policy *p)
{
    for (int k = 0; k < p->n_classes; k++) {
        struct policy_class *c = &p->cls[k];
        for (int i = c->head; i < c->end; i++) p->flags[c->list[i].item] &= (uint8_t)~ITEM_LISTED;
        c->head = c->end = 0;
        c->most = LIST_MAX;
        c->bound = -INFINITY;
    }
    p->whole = false;
}

static void bag_put(struct policy *p, struct policy_class *c, int32_t item)
{
    c->bag[c->n_bag] = item;
    p->at[item] = c->n_bag++;
}

static void bag_take(struct policy *p, struct policy_class *c, int32_t item)
{
    const int32_t last = c->bag[--c->n_bag], at = p->at[item];
    c->bag[at] = last;
    p->at[last] = at;
}

/* An item may have become free. */
static void settle(struct policy *p, int32_t item)
{
    const int layer = policy_layer_of(p, item);
    struct policy_class *c = &p->cls[p->class_of[layer]];
    if (policy_is_free(p, item) && p->key[item] <= c->bound) policy_list(p, c, item, layer);
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
    const int32_t first = layer * p->n_experts;
    for (int i = 0; i < n; i++) {
        const int32_t x = first + expert[i];
        ASSERT(expert[i] >= 0 && expert[i] < p->n_experts && !(p->flags[x] & ITEM_NOW));
        p->now[i] = x;
        p->flags[x] |= ITEM_NOW;
    }
    if (p->rule->used) p->rule->used(p, count);
    for (int i = 0; i < n; i++) p->flags[p->now[i]] &= (uint8_t)~ITEM_GUESS;
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
    struct policy_class *c = &p->cls[p->class_of[p->layer]];
    for (int i = 0; i < p->n_now; i++) {
        const int32_t x = p->now[i];
        p->flags[x] &= (uint8_t)~ITEM_NOW;
        if (p->key[x] <= c->bound && policy_is_free(p, x)) policy_list(p, c, x, p->layer);
    }
}

void policy_added(struct policy *p, int32_t item, bool speculative)
{
    ASSERT(item >= 0 && item < p->n_layers * p->n_experts && !(p->flags[item] & ITEM_RESIDENT));
    p->flags[item] |= ITEM_RESIDENT;
    bag_put(p, policy_class_of(p, item), item);
    if (speculative && !(p->flags[item] & ITEM_NOW)) {
        p->flags[item] |= ITEM_GUESS;
        p->stirred[policy_layer_of(p, item)] = 1;
        if (p->rule->added) p->rule->added(p, item);
    }
    settle(p, item);
}

int policy_absent(const struct policy *p, int32_t *item)
{
    int n = 0;
    for (int i = 0; i < p->n_now; i++) {
        item[n] = p->now[i];
        n += !(p->flags[p->now[i]] & ITEM_RESIDENT);
    }
    return n;
}

void policy_removed(struct policy *p, int32_t item)
{
    ASSERT(policy_resident(p, item) && !p->pins[item]);
    p->flags[item] &= (uint8_t)~(ITEM_RESIDENT | ITEM_GUESS);
    struct policy_class *c = policy_class_of(p, item);
    bag_take(p, c, item);
    if (c->head == c->end || c->list[c->head].item != item) return;
    c->head++; /* it was the victim */
    p->flags[item] &= (uint8_t)~ITEM_LISTED;
}

bool policy_resident(const struct policy *p, int32_t item)
{
    return p->flags[item] & ITEM_RESIDENT;
}

void policy_pin(struct policy *p, int32_t item)
{
    ASSERT(policy_resident(p, item) && p->pins[item] < UINT16_MAX);
    p->pins[item]++;
    p->flags[item] |= ITEM_PINNED;
}

void policy_unpin(struct policy *p, int32_t item)
{
    ASSERT(p->pins[item]);
    if (--p->pins[item]) return;
    p->flags[item] &= (uint8_t)~ITEM_PINNED;
    settle(p, item);
}

void policy_predict(struct policy *p, int layer, const int32_t *expert, const float *prob, int n)
{
    ASSERT(layer >= 0 && layer < p->n_layers && n >= 0 && n <= p->n_experts);
    if (p->under_way && layer == p->layer) return; /* it is known by now */
    if (p->whole) keep_short(p); /* what is used has no longer the largest key */
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

int32_t policy_victim(struct policy *p, int slot_class)
{
    struct policy_entry best = {INFINITY, -1, 0};
    for (int k = 0; k < p->n_classes; k++) {
        if (slot_class >= 0 && p->cls[k].slot_class != slot_class) continue;
        const struct policy_entry x = first_of(p, &p->cls[k]);
        if (x.item >= 0 && (best.item < 0 || before(p, &x, &best))) best = x;
    }
    return best.item;
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
