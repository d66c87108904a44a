/* The families that look at the past only: recency, frequency, both, or a table.  See policy.h.
 *
 * DESIGN of the decayed frequency (LRFU, Lee et al. 2001).  A use at time t, in tokens, counts
 * 2^((now - t) / -H).  The sum over an item's uses at any time `now` is S 2^(-now / H) with
 * S = sum 2^(t / H), and S only changes when the item is used: S += 2^a, a = t / H.  Comparing items
 * compares their S: no ageing, ever.  S = m 2^e, 1 <= m < 2, is kept as e + (m - 1), a double that
 * grows with it, lies within 0.09 of its logarithm, and takes the addition of 2^a, which is the same
 * for all items of a step, with shifts of exponents instead of a logarithm for every use; t = 2^40
 * tokens leave it a resolution of 2^-15.  It is kept for absent items too (ghosts), which is what makes
 * a returning item beat a newcomer, and keeps the hit ratio above zero when the slots are fewer than one
 * token uses.  In a step of n rows, c uses of an item count as if spread evenly over the rows.  A
 * predicted probability of use at the next turn is comparable with the rate that a score promises, so
 * until that turn the larger of both is the key. */
#include <math.h>
#include <string.h>

#include "offload/policy_int.h"

/* ---- least recently used ---- */

static void lru_used(struct policy *p, const int32_t *count)
{
    (void)count;
    for (int i = 0; i < p->n_now; i++) policy_key_now(p, p->now[i], (double)p->events);
}

static void lru_added(struct policy *p, int32_t item)
{
    policy_set_key(p, item, (double)p->events);
}

const struct policy_rule policy_rule_lru = {.used = lru_used, .added = lru_added,
                                             .rises = true};

/* ---- least often used since it came; the longer unused one of two equals goes ---- */

static void lfu_used(struct policy *p, const int32_t *count)
{
    for (int i = 0; i < p->n_now; i++) {
        const int32_t x = p->now[i];
        const double c = count ? (double)count[i] : 1;
        p->score[x] = p->flags[x] & ITEM_RESIDENT ? p->score[x] + c : c;
        policy_key_now(p, x, p->score[x] * 0x1p32 + (double)p->events);
    }
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
    p->one_at = -1; /* before the first step, too, it has to be computed */
    for (int x = 0; x < o->n_layers * o->n_experts; x++) p->score[x] = KEY_FIRST;
}

/* Logarithms begin at 2^10, so that all are positive. */
static double lrfu_time(const struct policy *p) { return p->tokens / p->half_life + 0x1p10; }

/* 2^s as e + (m - 1), and back; nothing stays nothing. */
static double lrfu_pack(double s)
{
    if (!(s > 0)) return KEY_FIRST;
    const double e = (double)(int64_t)s;
    return e + (exp2(s - e) - 1);
}

static double lrfu_log2(double key)
{
    if (key <= KEY_FIRST) return key;
    const double e = (double)(int64_t)key;
    return e + log2(1 + (key - e));
}

static uint64_t bits_of(double x)
{
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static double of_bits(uint64_t u)
{
    double x;
    memcpy(&x, &u, sizeof x);
    return x;
}

#define FRACTION 0xfffffffffffffull
#define ONE 0x3ff0000000000000ull

/* The sum of two packed numbers. */
static double lrfu_plus(double a, double b)
{
    const double hi = a > b ? a : b, lo = a > b ? b : a;
    if (!(hi - lo < 54)) return hi;
    const int64_t e = (int64_t)hi, f = (int64_t)lo;
    const double m = 1 + (hi - (double)e), n = 1 + (lo - (double)f);
    const double sum = m + n * of_bits(ONE - ((uint64_t)(e - f) << 52)); /* below 4 */
    const uint64_t u = bits_of(sum);
    return (double)(e + (int64_t)(u >> 52) - (int64_t)(ONE >> 52)) + (of_bits((u & FRACTION) | ONE) - 1);
}

static void lrfu_used(struct policy *p, const int32_t *count)
{
    if (p->one_at < p->tokens) {
        p->one_at = p->tokens;
        p->one = lrfu_pack(lrfu_time(p));
    }
    for (int i = 0; i < p->n_now; i++) {
        const int32_t x = p->now[i];
        double more = p->one;
        if (p->rows > 1 || (count && count[i] > 1)) { /* c / rows at each of the step's last `rows` tokens */
            const double q = exp2(-1 / p->half_life);
            more = lrfu_pack(lrfu_time(p) + log2((double)(count ? count[i] : 1) / p->rows *
                                                 (1 - exp2(-p->rows / p->half_life)) / (1 - q)));
        }
        policy_key_now(p, x, p->score[x] = lrfu_plus(p->score[x], more));
    }
}

/* The key of something that is used so often per token. */
static double lrfu_key(const struct policy *p, double rate)
{
    return lrfu_pack(lrfu_time(p) + log2(rate / (1 - exp2(-1 / p->half_life))));
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
    const double whole = (double)(int64_t)p->margin, key = p->key[victim];
    if (key <= KEY_FIRST) return true;
    return p->score[item] >= (p->margin > whole ? lrfu_pack(lrfu_log2(key) + p->margin) : key + whole);
}

/* One guess never pushes out another that is due, nor what is likelier to be used. */
static bool lrfu_displaces(const struct policy *p, int32_t item, int32_t victim)
{
    if (policy_is_due(p, victim)) return false;
    return lrfu_key(p, (double)p->prob[item]) > p->key[victim];
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

static void static_used(struct policy *p, const int32_t *count)
{
    (void)count;
    for (int i = 0; i < p->n_now; i++) /* a wrong guess may have lowered it */
        if (p->key[p->now[i]] < p->score[p->now[i]]) policy_key_now(p, p->now[i], p->score[p->now[i]]);
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
