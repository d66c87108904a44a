/* Private to the recur_* files: what their tiers share. */
#ifndef MOE_COMPUTE_RECUR_INT_H
#define MOE_COMPUTE_RECUR_INT_H

#include <math.h>

#include "moe/compute/recur.h"

#if defined(__x86_64__)
extern const struct recur_kernels recur_table_avx2, recur_table_avx512;
#endif

static inline float recur_l2_factor(float sum, float eps)
{
    const float root = sqrtf(sum);
    return 1.0f / (root > eps ? root : root != root ? root : eps);
}

#endif
