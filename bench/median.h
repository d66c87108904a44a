/* The middle of measured times; header only. */
#ifndef BENCH_MEDIAN_H
#define BENCH_MEDIAN_H

#include <stdlib.h>

static int median_order(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts x; of an even number the larger one of the two in the middle.  n > 0. */
static double median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, median_order);
    return x[n / 2];
}

#endif
