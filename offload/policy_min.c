/* Belady's MIN from a recorded trace: evict what is used again last.  See policy.h.
 *
 * Keys follow the record, event by event, whatever is really routed: exact as long as both agree.
 * Optimal in the number of demand reads for slots of one size. */
#include <string.h>

#include "offload/policy_int.h"

#define NEVER UINT32_MAX

static double key_of(uint32_t next_event)
{
    return next_event == NEVER ? KEY_FIRST : -(double)next_event;
}

/* Backwards over the record: the key holds the event of each item's first use seen so far. */
static void min_open(struct policy *p, const struct policy_options *o)
{
    const struct policy_future *f = &o->future;
    const int n_items = o->n_layers * o->n_experts;
    for (uint32_t e = f->n_events; e-- > 0;) {
        for (uint32_t u = f->first[e]; u < f->first[e + 1]; u++) {
            const int32_t x = f->item[u];
            ASSERT(x >= 0 && x < n_items);
            p->next[u] = p->key[x] > KEY_FIRST ? (uint32_t)-p->key[x] : NEVER;
            p->key[x] = key_of(e);
        }
    }
}

static void min_route(struct policy *p)
{
    const struct policy_future *f = &p->future;
    if (p->events >= (int64_t)f->n_events) return;
    for (uint32_t u = f->first[p->events]; u < f->first[p->events + 1]; u++)
        policy_set_key(p, f->item[u], key_of(p->next[u]));
}

static bool min_admits(const struct policy *p, int32_t item, int32_t victim)
{
    return p->key[item] > p->key[victim];
}

const struct policy_rule policy_rule_min = {
    .open = min_open, .route = min_route, .admits = min_admits, .displaces = min_admits,
};
