/* Masked diffusion: which tokens of a text are hidden, which of them a pass settles, and which rows
 * the next pass needs.  LLaDA's remasking in blocks (arXiv 2502.09992), Dream's four orders (arXiv
 * 2508.15487), decoding by threshold and caches of K and V (Fast-dLLM, arXiv 2505.22618), guidance.
 *
 * The decisions are pure functions of logits and of a random stream, so that they can be tested
 * without a model; struct denoise drives a session with them.  One thread. */
#ifndef MOE_RUN_DENOISE_H
#define MOE_RUN_DENOISE_H

#include "moe/base/rng.h"
#include "moe/run/sampler.h"
#include "moe/tessera.h"

/* ---- decisions ---- */

/* How many of m hidden tokens step s of n settles, in LLaDA: m / n, and one more in the first m % n. */
int denoise_transfer(int m, int s, int n);

/* The share of what is hidden that step s of n settles, in Dream: 1 - t(s + 1) / t(s), where t falls
 * from 1 to 1/1000 in equal steps; all of it in the last one. */
double denoise_ratio(int s, int n);

struct denoise_rule {
    enum tessera_denoise_alg alg; /* not TESSERA_ALG_DEFAULT */
    float temp, top_p;
    int top_k;                    /* top_k, top_p: Dream's orders only */
};

struct denoise_pick {
    int32_t id;
    double confidence;
};

/* A token for a hidden place and how sure that is.  logits [n_vocab]: -INFINITY is never chosen, NaN
 * counts as that; cand [n_vocab] is scratch.  Draws from r: n_vocab numbers for a temperature in
 * LLaDA's rules, then one for ALG_RANDOM; one for a temperature in Dream's. */
struct denoise_pick denoise_choose(const struct denoise_rule *rule, const float *logits, int n_vocab,
                                   struct rng *r, struct sampler_cand *cand);

/* Marks in settle[n] the k most confident of those with hidden[i] != 0 (ties: the lower one first). */
void denoise_best(const struct denoise_pick *pick, const unsigned char *hidden, int n, int k,
                  unsigned char *settle);

/* ---- a text being denoised ---- */

struct denoise;

/* A text of ids[n] and hidden tokens behind it; o is resolved against the model's own ways, and what
 * makes no sense is ERR_USAGE.  n_gen < 0: the model's own length, or what the context has room for. */
enum status denoise_open(tessera_session *s, const int32_t *ids, int n,
                         const struct tessera_generator_options *o, struct denoise **out,
                         struct err *err);
void denoise_close(struct denoise *d);

/* The next pass; false: nothing is hidden any more.  The timeline is cut to what the pass goes on
 * from. */
bool denoise_want(struct denoise *d, struct tessera_input *in);
/* Takes the result of that pass, input i_in of a step.  *n_new: tokens that it has settled. */
enum status denoise_take(struct denoise *d, int i_in, int *n_new, struct err *err);

/* The text so far: hidden tokens are the model's mask.  [n], borrowed. */
const int32_t *denoise_text(const struct denoise *d, int *n);
/* Settled tokens at its beginning, without a hidden one between them. */
int denoise_settled(const struct denoise *d);
int denoise_passes(const struct denoise *d);
/* Puts what tessera_denoising.measure has found into t. */
void denoise_measured(const struct denoise *d, struct tessera_timing *t);

#endif
