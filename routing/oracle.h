/* Oracles: what the best choice would have been, found by trying.  After Duo-LLM (arXiv 2410.10846).
 *
 * A model is a chain of units, each of which a token may go through or pass by (its hidden state stays
 * as it is); some are fixed.  A route says which ones it goes through: bit u of a mask, counting the
 * units that are not fixed.  What a route is worth is the loss at its end.
 *
 *   routes    the best ones for every number of units gone through.  They are evaluated as a trie: what
 *             routes have in common from the start is run once, and all rows of a level together.
 *             All 2^n when that is allowed, otherwise beams: the best `beam` of every number of units
 *             passed by, judged by the loss when the rest is gone through
 *   experts   the best k of a layer's experts: all sets, or swaps from where the router is, the best
 *             of all single swaps until none helps
 *   schedule  how many experts per row each step of a denoiser is given: the best at a total
 *   spending  how a budget is best shared out among tokens, given what each would gain
 *
 * No I/O, no threads, no randomness but what a seed gives: the same call gives the same answer, bit for
 * bit.  Ties: the smaller mask; the set that comes first when sorted.  Allocates as it goes; nothing
 * stays allocated but what an open struct owns. */
#ifndef ROUTING_ORACLE_H
#define ROUTING_ORACLE_H

#include <stdbool.h>
#include <stdint.h>

#include "moe/base/err.h"
#include "moe/base/rng.h"

enum { ORACLE_UNITS = 63 };

/* What is searched, for one token at one place. */
struct oracle_model {
    int n_units, n_embd;
    const bool *fixed;       /* [n_units] */
    /* Unit on n hidden states, in to out [n][n_embd]; losses behind the last unit. */
    enum status (*run)(void *arg, int unit, int n, const float *in, float *out, struct err *e);
    enum status (*loss)(void *arg, int n, const float *in, double *loss, struct err *e);
    void *arg;
};

/* Work done, and what the same routes one by one, each from the start, would have taken. */
struct oracle_work {
    uint64_t run, alone, routes;
};

/* Losses of n routes; x [n_embd]: before the first unit.  ERR_MEMORY, or what the model returns. */
enum status oracle_evaluate(const struct oracle_model *m, const float *x, int n,
                            const uint64_t *route, double *loss, struct oracle_work *w,
                            struct err *e);

struct oracle_options {
    int skips;   /* units passed by at most; -1 = any number */
    int all;     /* try all routes when there are at most so many */
    int beam;    /* otherwise */
    int random;  /* routes drawn for comparison, of each number of units */
    uint64_t seed;
};

/* [c]: routes through c units that are not fixed; c from n - skips to n. */
struct oracle_routes {
    int n;                       /* units that are not fixed */
    bool all;                    /* every route was tried */
    double best[ORACLE_UNITS + 1];
    uint64_t route[ORACLE_UNITS + 1];
    double random[ORACLE_UNITS + 1]; /* best of those drawn */
    double mean[ORACLE_UNITS + 1];   /* of those drawn: what chance gives */
};

/* The number of units that are not fixed; ERR_RANGE above ORACLE_UNITS. */
enum status oracle_routes(const struct oracle_model *m, const float *x,
                          const struct oracle_options *o, struct oracle_routes *out,
                          struct oracle_work *w, struct err *e);

/* ---- sets of experts ---- */

struct oracle_sets {
    int n_expert, n_used;
    /* Losses of n sets [n][n_used]. */
    enum status (*loss)(void *arg, int n, const int32_t *set, double *loss, struct err *e);
    void *arg;
    int all;     /* try all sets when there are at most so many */
    int rounds;  /* of swaps at most */
    int random;  /* sets drawn for comparison */
    uint64_t seed;
};

struct oracle_set {
    double start, best, random; /* losses of the set given, the best, the best of those drawn */
    bool all;
    int64_t tried;
};

/* set [n_used]: the router's on the way in, the best, rising, on the way out. */
enum status oracle_experts(const struct oracle_sets *o, int32_t *set, struct oracle_set *out,
                           struct err *e);

/* ---- schedules ---- */

/* The levels [n_steps] of the least sum of losses among all whose costs sum to at most `budget`; loss
 * [n_steps][n_levels], a level costs `first` and one more for each below it.  Exact.  Ties: the lower level
 * in the later step.  ERR_RANGE: even the cheapest cost more; ERR_MEMORY. */
enum status oracle_schedule(const double *loss, int n_steps, int n_levels, int first, int budget,
                            int *level, struct err *e);
/* Draws levels whose costs sum to exactly that, which must be possible: step after step, evenly among
 * those that leave a way to it. */
void oracle_draw_schedule(struct rng *g, int n_steps, int n_levels, int first, int budget, int *level);

/* ---- spending ---- */

/* Chooses for each of n_tokens a level so that the sum of their losses is small while the levels sum to
 * at most `budget`: by a common price per level, which is best where losses are convex.  loss
 * [n_tokens][n_levels]; INFINITY = cannot be had; level 0 costs `first`, each further one 1 more.
 * False: even the cheapest levels cost more. */
bool oracle_spend(const double *loss, int n_tokens, int n_levels, int first, double budget, int *level);

#endif
