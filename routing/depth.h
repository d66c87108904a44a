/* Depth routers: how many passes through shared layers a token gets.  Mixture-of-recursions
 * (arXiv 2507.10524): expert choice, where each recursion keeps some of the rows of the one before
 * it, and token choice, where a row chooses its depth at once.  Looped models with an exit gate
 * (Ouro, arXiv 2510.25741).
 *
 * Pure functions on the caller's arrays: no I/O, no threads, no allocation.  Router arithmetic is
 * f32, in the order written here; the same row gives the same bits in any company. */
#ifndef ROUTING_DEPTH_H
#define ROUTING_DEPTH_H

#include <stdbool.h>

#include "moe/compute/elem.h"
#include "moe/compute/op.h"

/* sigmoid, tanh or the logit itself. */
float depth_score(enum depth_score score, const struct elem_kernels *el, float logit);

/* DEPTH_CHOOSE.  chance[i] = softmax or sigmoid of the n_steps logits, times alpha; the depth is the
 * number (from 1) of the largest chance + bias (ties: the lower one first; bias may be NULL).
 * out [1 + 2 n_steps] = depth; then chance[i] where i + 1 is the depth, else 0; then the chances. */
void depth_choose(const struct depth_params *p, const struct elem_kernels *el, const float *bias,
                  const float *logit, float *out);

/* The same with the depth given: changes what depth_choose has written. */
void depth_choose_given(const struct depth_params *p, int depth, float *out);

/* DEPTH_EXIT.  chance = sigmoid(logit); out [3] = what is left of 1 after this step, the sum of the
 * chances so far, the chance to stop at this step; before: the step before's out, NULL = none.  The
 * last step takes all that is left. */
void depth_exit(const struct depth_params *p, const struct elem_kernels *el, float logit,
                const float *before, float *out);

/* How many of n rows a share of them is, at least 1.  A share that f32 has rounded down counts as
 * the fraction that was meant: 3/7 of 7 rows are 3. */
int depth_capacity(float share, int n);

#endif
