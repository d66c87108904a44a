/* Predictors: which experts a layer will use, said before its router can.  Pure functions on the
 * caller's arrays: no I/O, no threads, no allocation.
 *
 * A prediction is a list of experts, likeliest first, with probabilities of use.  It is a hint for
 * reading ahead: being wrong costs time only.
 *
 *   previous token   what the layer used for the token before           a token ahead
 *   frequency        what it uses most, exponentially decayed           a token ahead
 *   next gate        the layer's own router on an earlier hidden state  a layer ahead
 *   path             token ids in, all layers' experts out; learned     a token ahead, all layers
 *                    (routing/fit/), after ExpertFlow's routing path predictor (arXiv 2410.17954) */
#ifndef ROUTING_PREDICT_H
#define ROUTING_PREDICT_H

#include "moe/compute/elem.h"
#include "moe/compute/op.h"

/* The `max` experts with the highest positive score, ties to the lower id; returns how many.
 * score [n]; expert, prob: [max]. */
int predict_top(const float *score, int n, int max, int32_t *expert, float *prob);

/* rate [n_expert] = rate * keep + (1 - keep) where used: the decayed frequency of use, in [0, 1].
 * keep = 2^(-1 / half-life in tokens); keep = 0 gives the previous token.  expert [n_used]: ids of
 * n_expert and above are skipped. */
void predict_seen(float *rate, int n_expert, float keep, const uint16_t *expert, int n_used);

/* A layer's own router on the hidden state of an earlier layer: its rule, but the `max` best.
 * logits [n_expert]: the router's product with that state; overwritten.  bias as in
 * route_token_choice, pick [n_expert] scratch.  Returns n = min(max, n_expert) experts, likeliest
 * first; prob is what they have in the router's score, no calibrated probability. */
int predict_gate(const struct route_params *p, const struct elem_kernels *el, const float *bias,
                 float *logits, float *pick, int max, int32_t *expert, float *prob);

/* ---- the learned routing path ----
 *
 * mix  = sum over j < n_back of tap[j] * embed[id[t - j]]  +  sum over i < n_slow of
 *        slow_tap[i] * (running mean of embeddings with its own decay)      element by element
 * h    = max(0, hidden mix + hidden_bias)                                     [n_hidden]
 * p    = sigmoid(out h + out_bias)                                            [n_layers][n_expert]
 * Positions before the start contribute nothing. */
enum { PATH_BACK = 4, PATH_SLOW = 2 };

struct path_model {
    int n_vocab, n_dim, n_hidden, n_layers, n_expert, n_used;
    const float *embed;       /* [n_vocab][n_dim] */
    const float *tap;         /* [PATH_BACK][n_dim] */
    const float *slow_tap;    /* [PATH_SLOW][n_dim] */
    const float *hidden;      /* [n_hidden][n_dim] */
    const float *hidden_bias; /* [n_hidden] */
    const float *out;         /* [n_hidden][n_layers * n_expert]: a row per hidden unit */
    const float *out_bias;    /* [n_layers * n_expert] */
};

/* What a session remembers between tokens: the last embeddings and the running means. */
struct path_state {
    int32_t back[PATH_BACK]; /* ids, newest first; -1 = none */
    float *mean;             /* [PATH_SLOW][n_dim], caller's */
};
void path_reset(const struct path_model *m, struct path_state *s);

/* Takes the next token id in (an id outside the vocabulary counts as unknown: no embedding) and
 * writes the probabilities.  mix [n_dim] and h [n_hidden] are left filled (training reads them);
 * p [n_layers * n_expert], NULL: only takes it in. */
void path_step(const struct path_model *m, struct path_state *s, int32_t id, float *mix, float *h,
               float *p);

/* Decay per token of running mean i. */
float path_keep(int i);

#endif
