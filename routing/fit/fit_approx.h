/* Fits what approx.h needs for one layer from pairs of hidden states before (x) and behind (z) its
 * feed-forward: ridge regression of z - x on x / rms(x), reduced to a rank, then ridge regression of the
 * log of what that loses.  Closed form but for the subspace iteration that finds the rank; one thread;
 * the same pairs give the same fit. */
#ifndef ROUTING_FIT_APPROX_H
#define ROUTING_FIT_APPROX_H

#include "moe/base/err.h"
#include "routing/approx.h"

enum { FIT_RANK = 100 };

/* x, z [n_pairs][n]; data: room for approx_floats(), into which *out points then.  loss [n_pairs]: what
 * the judge says of each pair.  ERR_MEMORY; ERR_RANGE with fewer pairs than n. */
enum status fit_approx(int n, int rank, long n_pairs, const float *x, const float *z, float *data,
                       struct approx_layer *out, float *loss, struct err *e);

#endif
