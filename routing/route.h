/* Routers: who computes what.  Pure functions on the caller's arrays: no I/O, no threads, no
 * allocation.  Router arithmetic is f32, in the order written here. */
#ifndef ROUTING_ROUTE_H
#define ROUTING_ROUTE_H

#include "moe/compute/elem.h"
#include "moe/compute/op.h"

/* Token choice for one row: scores = softmax or sigmoid of the logits over all experts (or the
 * logits themselves); the n_used best of score + bias are chosen (ties: the lower id first), where
 * asked for only from the best groups of neighbours (DeepSeek-V3, arXiv 2412.19437: a group counts
 * by the sum of its two best).  Their weights are the scores without bias (or the softmax over the
 * chosen ones), divided by their sum in slot order if p->normalise (a sum below 2^-14 counts as
 * 2^-14, as llama.cpp has it), times p->scale and each expert's own scale.
 * bias, scale: [n_expert] or NULL; logits [n_expert] are overwritten by the scores; pick [n_expert]
 * is scratch; id, w: [n_used], best first. */
void route_token_choice(const struct route_params *p, const struct elem_kernels *el,
                        const float *bias, const float *scale, float *logits, float *pick,
                        int32_t *id, float *w);

/* The same with the experts given instead of chosen, for oracles: id [n_used] holds different ones in any
 * order and is put in the order in which the router would have them; the weights are what it gives
 * them. */
void route_given(const struct route_params *p, const struct elem_kernels *el, const float *bias,
                 const float *scale, float *logits, float *pick, int32_t *id, float *w);

/* What a row's experts are compared by: pick [n_expert] = score + bias; x as above. */
void route_compare(const struct route_params *p, const struct elem_kernels *el, const float *bias,
                   float *x, float *pick);

/* The same routes the other way round, expert-major.  id: [n_rows * n_used]; of a row's slots the
 * first n_of[row] count, all where n_of is NULL.  Out: the used experts
 * rising in expert[], their pairs (row * n_used + slot, rising) in pair[first[a] .. first[a+1]).
 * count: [n_expert] scratch.  Returns the number of used experts. */
int route_group(const int32_t *id, const int32_t *n_of, int n_rows, int n_used, int n_expert,
                int32_t *count, int32_t *expert, int32_t *first, int32_t *pair);

#endif
