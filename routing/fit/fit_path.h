/* Fits a routing-path predictor (routing/predict.h) to recorded traces: token ids in, all layers'
 * experts out, as a multi-label logistic regression over a small mixture of recent embeddings.
 * Minutes on one CPU; deterministic for a seed.  Allocates; never part of inference. */
#ifndef ROUTING_FIT_FIT_PATH_H
#define ROUTING_FIT_FIT_PATH_H

#include <stdbool.h>

#include "moe/load/trace.h"
#include "moe/run/predictor.h"

struct fit_path_options {
    int passes;         /* over all rows */
    int n_dim, n_hidden; /* 0 = 64, 128 */
    uint64_t seed;
    /* After each pass: mean loss per label, share of experts among the n_used likeliest; false
     * stops with ERR_CANCELLED.  May be NULL. */
    bool (*progress)(void *arg, int pass, double loss, double recall);
    void *arg;
};

/* The traces must be of one model and have token ids (ERR_SHAPE, ERR_MISSING).  *out is the
 * caller's to predictor_free(). */
enum status fit_path(const struct trace *const *traces, int n, const struct fit_path_options *o,
                     struct predictor *out, struct err *e);

#endif
