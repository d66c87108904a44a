/* The inside of a policy; private to offload/policy*.c and their tests.
 *
 * DESIGN.  Every item has a key; the smallest one goes first.  A family (policy_score.c,
 * policy_plec.c, policy_min.c) is a rule that sets keys when something happens; keys do not change
 * between events, so no ageing pass is needed.  The rest is common: per layer an unordered bag of
 * exactly the items that may be evicted (resident, not pinned, not of the event under way), their
 * keys side by side, and the first of them, which is looked for again only when a victim is wanted
 * and it has left or risen since.  So using an item costs a few stores, and a victim a pass over the
 * layers' firsts and over one or two bags: no branch depends on keys, which is what made a heap
 * slower at every size up to some hundred experts per layer.  Victims are compared by (key, distance
 * of the layer from its next turn, item): ties go to the layer that has just run although that
 * changes at every event. */
#ifndef OFFLOAD_POLICY_INT_H
#define OFFLOAD_POLICY_INT_H

#include "offload/policy.h"

struct policy_rule {
    /* What a family keeps keys by; any may be NULL (does nothing, yes). */
    void (*open)(struct policy *p, const struct policy_options *o);
    void (*route)(struct policy *p);                  /* before used(), once per event */
    void (*used)(struct policy *p, int32_t item, int count);
    void (*added)(struct policy *p, int32_t item);    /* speculatively only */
    void (*predicted)(struct policy *p, int32_t item);
    void (*passed)(struct policy *p, int32_t item);   /* resident, its layer ran without it */
    bool (*admits)(const struct policy *p, int32_t item, int32_t victim);
    /* Whether reading item ahead is worth victim; NULL = unless that is a guess that is due. */
    bool (*displaces)(const struct policy *p, int32_t item, int32_t victim);
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
    int32_t *at;            /* place in the bag of its layer, -1 = not in it */
    uint16_t *pins;
    uint8_t *flags;         /* ITEM_* */

    /* per layer */
    uint8_t *slot_class;    /* [n_layers] */
    bool one_class;         /* all layers are of the same */
    int *n_bag;             /* [n_layers] */
    int32_t *bag;           /* [n_layers][n_experts] items */
    double *bag_key;        /* the same shape: their keys */
    int32_t *first;         /* [n_layers] the bag's first item; -1 = it is empty */
    double *first_key;      /* [n_layers] INFINITY = the bag is empty; of lost ones anything */
    int *lost;              /* [n_lost] layers whose first has to be looked for */
    int n_lost;
    uint8_t *stirred;       /* [n_layers] guessed at since its last turn */
    int *n_guess;           /* [n_layers] */
    int32_t *guess;         /* [n_layers][n_experts] items, best first */

    struct policy_future future;
    uint32_t *next;         /* [uses] POLICY_MIN: event of the same item's next use */
};

enum {
    ITEM_RESIDENT = 1,
    ITEM_NOW = 2,  /* of the event under way */
    ITEM_GUESS = 4 /* brought in speculatively; its turn has not come yet */
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

/* Changes a key. */
void policy_set_key(struct policy *p, int32_t item, double key);
/* Turns of layers until this layer's next one: 1 .. n_layers. */
int policy_distance(const struct policy *p, int layer);

extern const struct policy_rule policy_rule_lru, policy_rule_lfu, policy_rule_lrfu,
    policy_rule_static, policy_rule_plec, policy_rule_min;

#endif
