/* Expert choice: in every sequence each expert takes the tokens that want it most, as many as every
 * other expert (arXiv 2202.09368; in denoisers, with a capacity that follows the step: arXiv
 * 2604.01622).
 *
 * Pure functions on the caller's arrays: no I/O, no threads, no allocation.  Router arithmetic is
 * f32, in the order written here; schedules are computed in double. */
#ifndef ROUTING_CHOICE_H
#define ROUTING_CHOICE_H

#include <stdbool.h>

#include "moe/compute/elem.h"
#include "moe/compute/op.h"

/* Where between k_min (0) and k_max (1) a pass is of whose tokens the share `hidden` is masked. */
double choice_schedule(enum choice_schedule s, double hidden);

/* Experts per token on average: k_min + (k_max - k_min) * schedule, rounded (halves to even). */
int choice_k(const struct choice_params *p, double hidden);

/* Rows of n that an expert takes: n k / n_expert, rounded down, but 1 at least and n at most. */
int choice_capacity(int n, int k, int n_expert);

/* Marks in taken[n] the c rows of the highest scores (ties: the lower row first; NaN last).
 * O(n), whatever the scores. */
void choice_take(const float *score, int n, int c, unsigned char *taken);

/* What the rows' gates are made of, and what experts rank them by: ROUTE_SOFTMAX turns a row's
 * logits [n_expert] into their softmax, the others leave them. */
void choice_scores(const struct route_params *p, const struct elem_kernels *el, float *logits);

/* One row: the experts that took it (taken[e * stride] != 0) in id[], rising, and their gates in w[];
 * returns how many.  Gates: softmax over these experts' logits alone (ROUTE_SOFTMAX_CHOSEN), their
 * sigmoids over the sum of these (ROUTE_SIGMOID), or the softmax over all as it is (ROUTE_SOFTMAX);
 * times p->scale, and times scale[how many] where there is a table of n_expert + 1. */
int choice_gates(const struct route_params *p, const struct elem_kernels *el, const float *scale,
                 const float *x, const unsigned char *taken, int stride, int32_t *id, float *w);

#endif
