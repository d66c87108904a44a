/* Error measures, each defined once. */
#ifndef TESTS_METRIC_H
#define TESTS_METRIC_H

#include <stddef.h>

/* Normalised mean squared error: sum (a-b)^2 / sum b^2, b is the reference. */
static inline double metric_nmse(const float *a, const float *b, size_t n)
{
    double err = 0, ref = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = (double)a[i] - (double)b[i];
        err += d * d;
        ref += (double)b[i] * (double)b[i];
    }
    return ref > 0 ? err / ref : err;
}

#endif
