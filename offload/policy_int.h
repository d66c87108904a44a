/* The inside of a policy; private to offload/policy*.c and their tests.
 *
 * DESIGN.  Every item has a key; the smallest one goes first.  A family (policy_score.c,
 * policy_plec.c, policy_min.c) is a rule that sets keys when something happens; keys do not change
 * between events, so no ageing pass is needed.  The rest is common and lazy.  Per class of slots there
 * is a bag, without order, of its resident items, and a short list, in the order of keys, of every
 * item that may be evicted (resident, not pinned, not of the event under way) and whose key is at most
 * `bound`.  Keys mostly rise, so using an item is a store: what its entry says is not true any more,
 * and whoever meets it there passes it by.  A key that falls to the bound or below puts an entry in.
 * A victim is the first true entry; when there is none the list is made anew, in one pass over the
 * bag, of about LIST_NEW smallest; where more than it would hold have the very smallest key, they are
 * looked for layer by layer instead, in the order in which they go.  Where every new key is the largest
 * (recency) the list holds all that is free and is never made anew.  So a victim costs a share of a
 * pass, and a hit almost nothing.  Victims are compared by (key, distance of the layer from its next
 * turn, item); distances change at every event, so among equal keys they are compared when a victim
 * is asked for.  offload/README.md has what else was tried. */
#ifndef OFFLOAD_POLICY_INT_H
#define OFFLOAD_POLICY_INT_H

#include "offload/policy.h"

struct policy_rule {
    /* What a family keeps keys by; any may be NULL (does nothing, yes). */
    void (*open)(struct policy *p, const struct policy_options *o);
    void (*route)(struct policy *p);                  /* before used(), once per event */
    /* The event's items p->now [n_now], which are in the list no more; count NULL = 1. */
    void (*used)(struct policy *p, const int32_t *count);
    void (*added)(struct policy *p, int32_t item);    /* speculatively only */
    void (*predicted)(struct policy *p, int32_t item);
    void (*passed)(struct policy *p, int32_t item);   /* resident, its layer ran without it */
    bool (*admits)(const struct policy *p, int32_t item, int32_t victim);
    /* Whether reading item ahead is worth victim; NULL = unless that is a guess that is due. */
    bool (*displaces)(const struct policy *p, int32_t item, int32_t victim);
    bool rises; /* without guesses, what is used has the largest key of all */
};

enum { LIST_NEW = 64, LIST_MAX = 128 };

struct policy_entry {
    double key;
    int32_t item, layer;
};

struct policy_class {
    int slot_class;         /* the caller's number */
    int n_bag, n_items;     /* residents; the most there can be */
    int32_t *bag;           /* [n_items] residents */
    double bound;           /* -INFINITY: there is no list */
    bool tied;              /* more items than a list holds have the key `bound`: they are not in it */
    int head, end, most;    /* of the list */
    struct policy_entry *list; /* [most] LIST_MAX, or twice the items where keys rise */
};

struct policy {
    enum policy_kind kind;
    const struct policy_rule *rule;
    int n_layers, n_experts;
    double half_life, margin;
    bool selective;

    /* the clock */
    double tokens;          /* processed before and in this step */
    int rows;               /* of this step */
    int64_t steps;          /* begun */
    int64_t events;         /* begun */
    int layer;              /* whose event is under way or was last in this step; -1 = none yet */
    bool under_way;
    int n_now;
    int32_t *now;           /* [n_experts] items of the event */

    /* per item */
    double *key;
    double *score;          /* what the family remembers: decayed log2 count, uses, frequency */
    float *prob;            /* of use at the next turn; 0 = not predicted */
    int32_t *at;            /* place in its bag, of residents */
    uint16_t *pins;
    uint8_t *flags;         /* ITEM_* */

    /* per layer */
    uint8_t *slot_class;    /* [n_layers] as the caller numbers them */
    uint8_t *class_of;      /* [n_layers] as we do */
    uint8_t *stirred;       /* [n_layers] guessed at since its last turn */
    int *n_guess;           /* [n_layers] */
    int32_t *guess;         /* [n_layers][n_experts] items, best first */

    bool whole;             /* lists hold all that is free: keys rise, so it costs nothing */
    double one, one_at;     /* POLICY_LRFU: a use now, computed at so many tokens */

    int n_classes;
    struct policy_class *cls; /* [n_classes] */

    struct policy_future future;
    uint32_t *next;         /* [uses] POLICY_MIN: event of the same item's next use */
};

enum {
    ITEM_RESIDENT = 1,
    ITEM_NOW = 2,  /* of the event under way */
    ITEM_GUESS = 4, /* brought in speculatively; its turn has not come yet */
    ITEM_PINNED = 8,
    ITEM_LISTED = 16 /* an entry with this key is in the list; those without may have one, too */
};

#define KEY_FIRST (-1e300) /* goes before everything that was ever wanted */

static inline int policy_layer_of(const struct policy *p, int32_t item)
{
    return item / p->n_experts;
}

/* Brought in by a guess whose turn is still to come. */
static inline bool policy_is_due(const struct policy *p, int32_t item)
{
    return p->flags[item] & ITEM_GUESS;
}

static inline struct policy_class *policy_class_of(const struct policy *p, int32_t item)
{
    return p->n_classes == 1 ? p->cls : &p->cls[p->class_of[policy_layer_of(p, item)]];
}

static inline bool policy_is_free(const struct policy *p, int32_t item)
{
    return (p->flags[item] & (ITEM_RESIDENT | ITEM_NOW | ITEM_PINNED)) == ITEM_RESIDENT;
}

/* Puts a free item with a key up to the bound into the list. */
void policy_list(struct policy *p, struct policy_class *c, int32_t item, int layer);

/* The key of an item of the event under way. */
static inline void policy_key_now(struct policy *p, int32_t item, double key)
{
    p->key[item] = key;
    p->flags[item] &= (uint8_t)~ITEM_LISTED;
}

/* Any item's. */
static inline void policy_set_key(struct policy *p, int32_t item, double key)
{
    policy_key_now(p, item, key);
    if (!policy_is_free(p, item)) return;
    const int layer = policy_layer_of(p, item);
    struct policy_class *c = &p->cls[p->class_of[layer]];
    if (key <= c->bound) policy_list(p, c, item, layer);
}

/* Turns of layers until this layer's next one: 1 .. n_layers. */
static inline int policy_distance(const struct policy *p, int layer)
{
    return layer > p->layer ? layer - p->layer : layer - p->layer + p->n_layers;
}

extern const struct policy_rule policy_rule_lru, policy_rule_lfu, policy_rule_lrfu,
    policy_rule_static, policy_rule_plec, policy_rule_min;

#endif
