/* What a policy, a predictor and a number of slots would have done on a recorded trace: the
 * engine's loop around offload/policy.h without an engine.  `tessera replay` prints it.
 *
 * Counting is atomic per event (one layer of one step): all experts of the event are looked up
 * before any of them is brought in, and none of them evicts another; replaying expert by expert
 * instead flatters LRU.  A prompt warms the cache and is counted apart; its union goes through in
 * pieces of at most a quarter of the slots.
 *
 * With rates the clock is modelled: one lane computes (bytes used / ram_rate), one reads
 * (bytes / disk_rate, demand before speculation, what has begun is not interrupted); experts that
 * are there run while others arrive.  Without, reading ahead costs no time and is bounded by the
 * slots alone.
 *
 * Borrows everything; allocates for the length of a call; one thread per call. */
#ifndef OFFLOAD_REPLAY_H
#define OFFLOAD_REPLAY_H

#include "offload/policy.h"

struct replay_record {
    int n_layers, n_experts;
    const uint64_t *expert_bytes; /* [n_layers] */
    int32_t n_steps, n_events;
    const int32_t *row, *event;   /* [n_steps + 1] first row and first event of a step */
    const uint8_t *prompt;        /* [n_steps] */
    const int32_t *layer;         /* [n_events] */
    const uint32_t *first;        /* [n_events + 1] */
    const int32_t *item, *count;  /* layer * n_experts + expert, distinct in an event; tokens */
};

/* Guesses for one layer of a step before it runs: up to `max` experts, likeliest first, to expert
 * and prob; returns how many.  Decode steps only, each once, in order, layer by layer.  It may look
 * at the record before the step (and, as an oracle, at the step itself). */
struct replay_predictor {
    int (*predict)(void *arg, int32_t step, int layer, int max, int32_t *expert, float *prob);
    void *arg;
};

struct replay_options {
    struct policy_options policy;    /* kind, half_life, selective, margin, frequency; the rest is
                                        the record's */
    int slots;                       /* experts that fit; at least those of a decode event */
    struct replay_predictor predictor; /* predict NULL = none */
    int prefetch;                    /* guesses per layer that are acted on; 0: only judged */
    double disk_rate, ram_rate;      /* bytes per second; 0 = no clock */
    bool filled;                     /* the slots begin full, every layer alike, as the engine's do
                                        (residency_load.c, fill_slots); else they begin empty */
};

struct replay_result {
    int64_t tokens, events;       /* decoded */
    int64_t uses, hits;           /* of experts in those events */
    int64_t compulsory;           /* uses of experts that nobody had used before, prompt included */
    int64_t reads, bypassed;      /* on demand; of those, not admitted */
    int64_t ahead, useful;        /* read speculatively; of those, used before they were evicted */
    uint64_t use_bytes, hit_bytes, read_bytes, ahead_bytes, wasted_bytes, prompt_bytes;
    int64_t uploads;              /* slots filled, demand and speculative */
    int64_t asked, named, missed, missed_named; /* recall of as many guesses as the event uses */
    int64_t named_twice, missed_named_twice;    /* of twice as many */
    double seconds, stall;        /* modelled; 0 without rates */
};

/* ERR_RANGE when slots are too few or the record has no decode steps; ERR_MEMORY. */
enum status replay_run(const struct replay_record *r, const struct replay_options *o,
                       struct replay_result *out, struct err *e);

#endif
