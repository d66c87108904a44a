/* The inside of a policy; private to offload/policy*.c and their tests.
 *
 * DESIGN.  Every item has a key; the smallest one goes first.  A family (policy_score.c,
 * policy_plec.c, policy_min.c) is a rule that sets keys when something happens; keys do not change
 * between events, so no ageing pass is needed.  The rest is common: one 4-ary min-heap per layer
 * with exactly the items that may be evicted (resident, not pinned, not of the event under way), and
 * for each item its place in it.  So a victim is the best of n_layers tops, compared by (key,
 * distance of the layer from its next turn, item), which is how ties go to the layer that has just
 * run although that changes at every event; nothing is deleted lazily, and the heaps, being as
 * large as the layers, never grow. */
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
    int32_t *at;            /* place in the heap of its layer, -1 = not in it */
    uint16_t *pins;
    uint8_t *flags;         /* ITEM_* */

    /* per layer */
    uint8_t *slot_class;    /* [n_layers] */
    int *n_heap;            /* [n_layers] */
    int32_t *heap;          /* [n_layers][n_experts] items */
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

/* Changes a key and restores the heap. */
void policy_set_key(struct policy *p, int32_t item, double key);
/* Turns of layers until this layer's next one: 1 .. n_layers. */
int policy_distance(const struct policy *p, int layer);

extern const struct policy_rule policy_rule_lru, policy_rule_lfu, policy_rule_lrfu,
    policy_rule_static, policy_rule_plec, policy_rule_min;

#endif
