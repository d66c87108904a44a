/* The sampler: one token from one row of logits.
 *
 * Order as in llama.cpp: repetition penalty, top-k, softmax, top-p, min-p, temperature, draw.
 * Deterministic for a seed; ties go to the lower id.  Owns its candidate list; one thread. */
#ifndef MOE_RUN_SAMPLER_H
#define MOE_RUN_SAMPLER_H

#include "moe/base/rng.h"
#include "moe/tessera.h"

struct sampler_cand {
    int32_t id;
    float logit;
    double p;
};

struct sampler {
    struct tessera_sampling set;
    struct rng rng;
    struct sampler_cand *cand; /* [n_vocab] */
    unsigned char *seen;       /* [n_vocab] for the penalty: zero between calls */
    int n_vocab;
};

enum status sampler_open(struct sampler *s, const struct tessera_sampling *set, int n_vocab,
                         struct err *e);
void sampler_close(struct sampler *s);

/* logits [n_vocab]; past: the timeline so far, n_past tokens.  NaN logits never win; if nothing
 * is comparable, id 0. */
int32_t sampler_draw(struct sampler *s, const float *logits, const int32_t *past, int n_past);

#endif
