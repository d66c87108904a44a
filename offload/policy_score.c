/* The families that look at the past only: recency, frequency, both, or a table.  See policy.h.
 *
 * DESIGN of the decayed frequency (LRFU, Lee et al. 2001, in the log domain).  A use at time t, in
 * tokens, counts 2^((now - t) / -H).  The sum over an item's uses at any time `now` is
 * 2^(s - now / H) with s = log2 sum 2^(t / H), and s only changes when the item is used:
 *     s <- max(s, a) + log2(1 + 2^-|s - a|),  a = t / H.
 * Comparing items compares their s: no ageing, ever.  s is a double: t = 2^40 tokens leave it a
 * resolution of 2^-15.  It is kept for absent items too (ghosts), which is what makes a returning
 * item beat a newcomer, and keeps the hit ratio above zero when the slots are fewer than one token
 * uses.  In a step of n rows, c uses of an item count as if spread evenly over the rows.  A predicted
 * probability of use at the next turn is comparable with the rate that a score promises, so until
 * that turn the larger of both is the key. */
#include <math.h>

#include "offload/policy_int.h"

/* ---- least recently used ---- */

static void lru_used(struct policy *p, int32_t item, int count)
{
    (void)count;
    policy_set_key(p, item, (double)p->events);
}

static void lru_added(struct policy *p, int32_t item)
{
    policy_set_key(p, item, (double)p->events);
}

const struct policy_rule policy_rule_lru = {.used = lru_used, .added = lru_added};

/* ---- least often used since it came; the longer unused one of two equals goes ---- */

static void lfu_used(struct policy *p, int32_t item, int count)
{
    p->score[item] = policy_resident(p, item) ? p->score[item] + count : count;
    policy_set_key(p, item, p->score[item] * 0x1p32 + (double)p->events);
}

static void lfu_added(struct policy *p, int32_t item)
{
    p->score[item] = 0;
    policy_set_key(p, item, (double)p->events);
}

const struct policy_rule policy_rule_lfu = {.used = lfu_used, .added = lfu_added};

/* ---- decayed frequency ---- */

static void lrfu_open(struct policy *p, const struct policy_options *o)
{
    for (int x = 0; x < o->n_layers * o->n_experts; x++) p->score[x] = KEY_FIRST;
}

static void lrfu_used(struct policy *p, int32_t item, int count)
{
    double a = p->tokens / p->half_life;
    if (count > 1 || p->rows > 1) { /* count / rows at each of the step's last `rows` tokens */
        const double q = exp2(-1 / p->half_life);
        a += log2((double)count / p->rows * (1 - exp2(-p->rows / p->half_life)) / (1 - q));
    }
    const double s = p->score[item], hi = s > a ? s : a, lo = s > a ? a : s;
    p->score[item] = hi + log2(1 + exp2(lo - hi));
    policy_set_key(p, item, p->score[item]);
}

/* A key as uses per token, and back. */
static double lrfu_rate(const struct policy *p, double key)
{
    return exp2(key - p->tokens / p->half_life) * (1 - exp2(-1 / p->half_life));
}

static double lrfu_key(const struct policy *p, double rate)
{
    return p->tokens / p->half_life + log2(rate / (1 - exp2(-1 / p->half_life)));
}

/* Until its turn an item is worth what the past promises or what the prediction does. */
static void lrfu_predicted(struct policy *p, int32_t item)
{
    const double key = lrfu_key(p, (double)p->prob[item]);
    policy_set_key(p, item, key > p->score[item] ? key : p->score[item]);
}

static void lrfu_added(struct policy *p, int32_t item)
{
    if (p->prob[item] > 0) lrfu_predicted(p, item);
    else policy_set_key(p, item, p->score[item]);
}

static void lrfu_passed(struct policy *p, int32_t item)
{
    policy_set_key(p, item, p->score[item]);
}

static bool lrfu_admits(const struct policy *p, int32_t item, int32_t victim)
{
    return p->score[item] >= p->key[victim] + p->margin;
}

/* One guess never pushes out another that is due, nor what is likelier to be used. */
static bool lrfu_displaces(const struct policy *p, int32_t item, int32_t victim)
{
    if (policy_is_due(p, victim)) return false;
    return p->key[victim] <= KEY_FIRST || (double)p->prob[item] > lrfu_rate(p, p->key[victim]);
}

const struct policy_rule policy_rule_lrfu = {
    .open = lrfu_open, .used = lrfu_used, .added = lrfu_added, .predicted = lrfu_predicted,
    .passed = lrfu_passed, .admits = lrfu_admits, .displaces = lrfu_displaces,
};

/* ---- a frequency table ---- */

static void static_open(struct policy *p, const struct policy_options *o)
{
    for (int x = 0; x < o->n_layers * o->n_experts; x++)
        p->score[x] = p->key[x] = (double)o->frequency[x];
}

static void static_used(struct policy *p, int32_t item, int count)
{
    (void)count;
    policy_set_key(p, item, p->score[item]); /* a wrong guess may have lowered it */
}

static void static_added(struct policy *p, int32_t item)
{
    policy_set_key(p, item, p->score[item]);
}

static bool static_admits(const struct policy *p, int32_t item, int32_t victim)
{
    return p->score[item] > p->key[victim];
}

const struct policy_rule policy_rule_static = {
    .open = static_open, .used = static_used, .added = static_added, .admits = static_admits,
    .displaces = static_admits,
};
