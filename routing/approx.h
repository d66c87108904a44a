/* Informed routing (after arXiv 2510.13831): a small linear forecaster stands in for a layer's
 * feed-forward where a judge says that it will do, and the layer's experts are neither run nor read.
 *
 *   forecast  y = bias + up (down x'),  x' = x / rms(x), of the hidden state x before the feed-forward
 *   judge     judge_bias + judge . x': the log of how much is lost, |y - forecast| / |x|, as expected
 *
 * Pure functions on the caller's arrays; f32 in the order written here, so that a row's decision and
 * forecast are the same in any company and on any machine.  routing/fit/fit_approx.h fits them. */
#ifndef ROUTING_APPROX_H
#define ROUTING_APPROX_H

#include <stdint.h>

enum { APPROX_RANK_MAX = 256 };

struct approx_layer {
    int n, rank;        /* rank: at most APPROX_RANK_MAX */
    const float *down;  /* [rank][n] */
    const float *up;    /* [rank][n] */
    const float *bias;  /* [n] */
    const float *judge; /* [n] */
    float judge_bias;
};

/* Floats of a layer's arrays, which lie one after another: down, up, bias, judge; points out to them. */
long approx_floats(int n, int rank);
void approx_point(int n, int rank, float *data, struct approx_layer *out);

/* 1 / rms(x). */
float approx_scale(int n, const float *x);
/* x' [n] is x times that. */
float approx_judge(const struct approx_layer *l, const float *x, float scale);
/* out [n] = x + forecast; may be x itself. */
void approx_apply(const struct approx_layer *l, const float *x, float scale, float *out);

/* What the above is compared with: of a row's n experts those with a gate weight below `least` leave,
 * never all of them; the others, in their order, keep their weights or, with keep_sum, share out the
 * sum of all.  Returns how many stay. */
int approx_leave(int n, int32_t *id, float *w, float least, int keep_sum);

#endif
