/* Residency policies: which experts stay in a tier when not all of them fit.
 *
 * A policy is told what happens (the router chose, a slot was filled, a slot was emptied) and asked
 * what to do (whom to evict, whether a newcomer is worth it, what to read ahead).  It moves nothing
 * itself: the residency pool does in the engine, a loop over a recorded trace does in
 * `tessera replay`; both drive the same code through this header.
 *
 *   policy_step(p, n_rows)                      a forward pass over n_rows tokens begins
 *   policy_predict(p, layer, expert, prob, n)   any number of guesses, at any time
 *   for each layer with experts, in order:
 *       policy_route(p, layer, expert, count, n)    the router has chosen: these are wanted now
 *       for each of them that is not resident:
 *           while there is no room: v = policy_victim(p, class); move it out; policy_removed(p, v)
 *           policy_added(p, item, false)            its slot is taken, the read has begun
 *       policy_done(p)                              the layer has run
 *   whenever the drive is idle:
 *       x = policy_prefetch(p, free_slots, &v)  then policy_removed(p, v), policy_added(p, x, true)
 *
 * An item is one expert of one layer: item = layer * n_experts + expert, where layer counts the
 * layers with experts only.  A victim is never pinned, and never one that policy_route() named
 * until policy_done(): such items are not even looked at.
 *
 * Ties go to the layer that is farthest from its next turn, then to the lower item.
 *
 * A policy allocates at open only, has no threads, does no I/O, and belongs to one thread.  The
 * order of its answers is a function of the calls made before.  It may be wrong, at the price of
 * time; it can never be incorrect. */
#ifndef OFFLOAD_POLICY_H
#define OFFLOAD_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moe/base/err.h"

enum policy_kind {
    POLICY_LRU,    /* least recently used */
    POLICY_LFU,    /* least often used since it was brought in (what MoE-Infinity's code does) */
    POLICY_LRFU,   /* exponentially decayed frequency, remembered for absent items too: default */
    POLICY_STATIC, /* a frequency table from elsewhere; never learns */
    POLICY_PLEC,   /* predictive locality-aware caching of ExpertFlow (arXiv 2410.17954) */
    POLICY_MIN,    /* Belady: farthest next use in a recorded future */
    POLICY_N
};

/* "lru", "lfu", "lrfu", "static", "plec", "min"; POLICY_N for an unknown name. */
const char *policy_name(enum policy_kind kind);
enum policy_kind policy_by_name(const char *name);

/* What POLICY_MIN knows: event e, one per policy_route() call, uses item[first[e] .. first[e+1]). */
struct policy_future {
    const int32_t *item;
    const uint32_t *first; /* [n_events + 1] */
    uint32_t n_events;
};

struct policy_options {
    enum policy_kind kind;
    int n_layers;              /* with experts */
    int n_experts;             /* of a layer */
    /* Layers whose experts fit the same slots have the same number, 0 .. 255: victims are asked for
     * by class.  NULL: one class, 0. */
    const uint8_t *slot_class; /* [n_layers], copied */
    double half_life;          /* POLICY_LRFU: tokens after which a use counts half; 0 = 8 */
    /* Whether policy_admits() may refuse: for a tier whose misses are served from where they are
     * (a device whose misses the CPU computes).  A RAM tier has read the bytes anyway: off. */
    bool selective;
    double margin;             /* POLICY_LRFU: 1 = the newcomer must be twice as hot as its victim */
    const float *frequency;    /* [n_items] POLICY_STATIC: any unit; copied */
    struct policy_future future; /* POLICY_MIN; borrowed until policy_close() */
};

struct policy;

/* ERR_MEMORY; ERR_RANGE when sizes are not positive or what the kind needs is missing. */
enum status policy_open(const struct policy_options *o, struct policy **out, struct err *e);
void policy_close(struct policy *p);
/* Bytes that policy_open() allocates, for the ledger. */
size_t policy_memory(const struct policy_options *o);

/* ---- what happens ---- */

/* The clock goes on by n_rows tokens; a layer that was not ended is. */
void policy_step(struct policy *p, int n_rows);
/* The router of a layer has chosen these distinct experts [n]; count[i] = tokens of the step that use
 * expert[i], NULL = 1.  When a long prompt chooses more than there are slots, either call it in
 * pieces, each its own event, or, when policy_victim() has none, take back the slot of one that has
 * run: policy_removed() takes items of the event too. */
void policy_route(struct policy *p, int layer, const int32_t *expert, const int32_t *count, int n);
void policy_done(struct policy *p);
/* Those of the event under way that are not resident, in its order, to item [n of the event + 1]; returns how many. */
int policy_absent(const struct policy *p, int32_t *item);

/* An item has a slot from now on: read on demand, or speculatively.  Must be absent. */
void policy_added(struct policy *p, int32_t item, bool speculative);
/* It has none any more.  Must be resident and not pinned. */
void policy_removed(struct policy *p, int32_t item);
bool policy_resident(const struct policy *p, int32_t item);
/* Pins nest; a pinned item is no victim.  Needs residency. */
void policy_pin(struct policy *p, int32_t item);
void policy_unpin(struct policy *p, int32_t item);

/* Layer is expected to use these experts at its next turn with these probabilities (in [0, 1],
 * falling); NULL = all 1.  Replaces earlier guesses about that turn; over when the turn is. */
void policy_predict(struct policy *p, int layer, const int32_t *expert, const float *prob, int n);

/* ---- what to do ---- */

/* The item to evict from a slot of this class (-1 = any class); -1 when every one is in use. */
int32_t policy_victim(struct policy *p, int slot_class);
/* Whether an item that was just missed should take the place of victim. */
bool policy_admits(const struct policy *p, int32_t item, int32_t victim);
/* The next item to read ahead, -1 when nothing is worth it.  free_slots [256] by class, NULL = none
 * are free: *victim is -1 when the item takes a free one, otherwise whom to evict for it.  The same
 * answer comes until the item is added or its layer has had its turn. */
int32_t policy_prefetch(struct policy *p, const int *free_slots, int32_t *victim);

#endif
