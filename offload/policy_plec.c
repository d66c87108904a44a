/* Predictive locality-aware caching as ExpertFlow describes it (arXiv 2410.17954, section on the
 * expert cache engine); our reading, since no source was at hand.  See policy.h.
 *
 * DESIGN.  The predictor names, before a step, the experts of every layer.  Slots go to layers by
 * demand instead of equally: predicted items are kept and fetched in execution order, the nearest
 * layer first, so the cache is a window that slides over depth; a layer that has run gives its
 * slots to layers further down.  Three classes, worst first:
 *     unwanted   predicted, but its layer has run and the router did not choose it
 *     ordinary   by recency: this is the locality
 *     wanted     predicted for a turn to come; the farthest turn goes first
 * Real-time error correction: when a layer has been routed, what was guessed wrongly becomes
 * unwanted; what was missed is read at once by the caller and takes those slots first.
 *
 * Whether whatever else the router leaves out becomes unwanted too is open in what we could read.
 * We keep it ordinary: with perfect predictions, where nothing else could tell, the other reading
 * moves up to three times the bytes on recorded traces (slots for 20 to 40 % of the experts). */
#include "offload/policy_int.h"

#define ORDINARY 0x1p41
#define LEAST_WANTED 0x1p42
#define WANTED 0x1p43 /* less the number of the turn, which stays below 2^42 */

static void plec_used(struct policy *p, const int32_t *count)
{
    (void)count;
    for (int i = 0; i < p->n_now; i++) policy_key_now(p, p->now[i], ORDINARY + (double)p->events);
}

/* The turn at which a prediction made now will be answered, counted in layers since the start. */
static double due(const struct policy *p, int layer)
{
    return (double)(p->steps * p->n_layers + p->layer + policy_distance(p, layer));
}

static void plec_predicted(struct policy *p, int32_t item)
{
    policy_set_key(p, item, WANTED - due(p, policy_layer_of(p, item)));
}

static void plec_passed(struct policy *p, int32_t item)
{
    if (p->key[item] >= LEAST_WANTED) policy_set_key(p, item, (double)p->events);
}

/* A wanted item is only given up for one that is wanted sooner. */
static bool plec_displaces(const struct policy *p, int32_t item, int32_t victim)
{
    return p->key[item] > p->key[victim];
}

const struct policy_rule policy_rule_plec = {
    .used = plec_used, .predicted = plec_predicted, .passed = plec_passed,
    .displaces = plec_displaces, .rises = true,
};
